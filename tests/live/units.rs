//! The unit: its name, slice, description, and that systemd's own commands work on it.

mod manager;

use crate::bed::{Bed, patience};
use crate::{Test, alone, test, unit};
use std::fs;
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("units/default_name_and_slice", needs![root, systemd], default_name_and_slice),
        test("units/name_to_the_letter", needs![root, systemd], name_to_the_letter),
        test("units/name_of_another_kind", needs![root, systemd], name_of_another_kind),
        test("units/existing_name", needs![root, systemd], existing_name),
        test("units/same_name_again", needs![root, systemd], same_name_again),
        test("units/same_name_after_shared_pids", needs![root, systemd], same_name_after_shared_pids),
        test("units/named_like_a_controller", needs![root, systemd], named_like_a_controller),
        test("units/stopped_while_it_starts", needs![root, systemd], stopped_while_it_starts),
        test("units/empty_leftover_gives_way", needs![root, systemd], empty_leftover_gives_way),
        test("units/failed_leftover_gives_way", needs![root, systemd], failed_leftover_gives_way),
        test("units/nested_slice", needs![root, systemd], nested_slice),
        test("units/description", needs![root, systemd], description),
        test("units/collected_after_failure", needs![root, systemd], collected_after_failure),
        test("units/defaults", needs![root, systemd], defaults),
        test("units/systemctl_kill", needs![root, systemd], systemctl_kill),
        test("units/stop_signals_once", needs![root, systemd], stop_signals_once),
        test("units/stop_when_term_is_ignored", needs![root, systemd], stop_when_term_is_ignored),
        test("units/stop_as_pid1", needs![root, systemd], stop_as_pid1),
        test("units/stop_slice", needs![root, systemd], stop_slice),
        test("units/user_bus_missing", needs![root, systemd, user_manager, kernel_min(5, 11)], user_bus_missing),
        test("units/user_bus_wrong", needs![root, systemd, user_manager], user_bus_wrong),
        test(
            "units/system_as_a_user",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            manager::system_as_a_user,
        ),
        test("units/without_systemd", needs![root, systemd], manager::without_systemd),
        test("units/without_systemd_refused", needs![root, systemd], manager::without_systemd_refused),
        test("units/without_systemd_detached", needs![root, systemd], manager::without_systemd_detached),
        test("units/from_another_pid_namespace", needs![root, systemd], manager::from_another_pid_namespace),
        test("units/user_manager", needs![root, systemd, user_manager, kernel_min(5, 11)], user_manager),
        test(
            "units/user_manager_kept_upper",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            user_manager_kept_upper,
        ),
        alone("units/without_dbus_daemon", needs![root, systemd], without_dbus_daemon),
    ]
}

/// The scope that a process is in.
fn scope_of(pid: u32) -> String {
    let path = unit::cgroup_of(pid, "").expect("the process has a cgroup");
    path.rsplit('/').next().unwrap().to_owned()
}

fn default_name_and_slice(bed: &Bed) {
    let name = bed.id();
    let mut running = bed.run(["--name", name], "echo ready; hostname; exec cat").spawn();
    running.wait_for(&format!("ready\n{name}\n"));
    let scope = scope_of(unit::only_child(bed, running.pid()));
    let id = scope.strip_prefix(&format!("sandbox-{name}-")).and_then(|rest| rest.strip_suffix(".scope"));
    let id = id.unwrap_or_else(|| panic!("unit {scope}"));
    assert!(id.len() == 6 && id.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)), "{scope}");
    assert_eq!(unit::property(&scope, "Slice"), "sandbox.slice");
    assert_eq!(unit::property(&scope, "ControlGroup"), format!("/sandbox.slice/{scope}"));
    running.finish().succeeded();
}

fn name_to_the_letter(bed: &Bed) {
    for (given, expected) in [("Web_1:a", "Web_1:a.scope"), ("b.c.scope", "b.c.scope"), ("x-y", "x-y.scope")] {
        let name = format!("{}{given}", bed.id());
        let mut running = bed.run(["--unit", &name], "echo ready; exec cat").spawn();
        running.wait_for("ready");
        assert_eq!(scope_of(unit::only_child(bed, running.pid())), format!("{}{expected}", bed.id()));
        running.finish().succeeded();
    }
}

fn name_of_another_kind(bed: &Bed) {
    for name in ["x.service", "x.slice", "x.timer"] {
        bed.run(["--unit", name], "true").output().refused(125, ["--unit", name]);
    }
    for name in ["", "a/b", "a b", &"x".repeat(300)] {
        bed.run(["--unit", name], "true").output().refused(125, ["--unit"]);
    }
    bed.run(["--slice", "a--b"], "true").output().refused(125, ["--slice", "a--b"]);
    bed.run(["--slice", "a.service"], "true").output().refused(125, ["--slice", "a.service"]);
}

fn existing_name(bed: &Bed) {
    let (mut running, scope) = bed.live([""; 0], "echo ready; read line; echo got $line");
    let before = unit::property(&scope, "InvocationID");
    // What shares the host's PIDs stops its unit at the end, but its own only.
    for flags in [&["--unit", &scope][..], &["--share", "pid", "--unit", &scope]] {
        let outcome = bed.run(flags, "echo never").output().refused(125, [&scope, "exists"]);
        assert!(outcome.hint().contains("systemctl stop"), "{}", outcome.hint());
    }
    assert!(unit::is_active(&scope) && unit::property(&scope, "InvocationID") == before, "the first one goes on");
    bed.sandbox(["exec", &scope, "true"]).output().succeeded();
    running.send("on\n");
    running.wait_for("got on");
    running.finish().succeeded();
}

/// One after the other, as a script does it: systemd hears of each end a moment later than whoever waits for the command.
fn same_name_again(bed: &Bed) {
    for round in 0..15 {
        let outcome = bed.run(["--unit", &bed.unit()], &format!("exit {round}")).output();
        outcome.exited(round);
    }
}

/// What shares the host's PIDs stops its scope at the end, which may be another's by then.
fn same_name_after_shared_pids(bed: &Bed) {
    for _ in 0..12 {
        let (mut first, scope) = bed.live(["--share", "pid"], "echo ready; read x");
        first.send("\n");
        bed.poll("the second one", || {
            let outcome = bed.run(["--unit", &scope], "sleep 0.2; exit 7").output();
            let taken = outcome.status == 125 && outcome.errors().contains("exists already");
            assert!(taken || outcome.status == 7, "{}: {}", outcome.status, outcome.errors());
            !taken
        });
        first.finish().succeeded();
    }
}

/// systemd puts `_` before a cgroup whose name the kernel could take for a file of its own.
fn named_like_a_controller(bed: &Bed) {
    let outcome = bed.run(["--unit=memory", "-m", "64M"], "echo ran").output();
    assert_eq!(outcome.succeeded().text(), "ran");
    bed.sandbox(["run", "--detach", "--unit=cpu.x", "-m", "64M", "--", "sleep", "1000"]).output().succeeded();
    let listed = bed.sandbox(["ps", "--json"]).output().succeeded().text();
    assert!(listed.contains("\"cpu.x.service\""), "{listed}");
    bed.sandbox(["exec", "cpu.x", "true"]).output().succeeded();
    bed.sandbox(["stop", "cpu.x"]).output().succeeded();
}

/// A stop or a signal while the sandbox starts: it ends, and at once.
fn stopped_while_it_starts(bed: &Bed) {
    for (round, command) in ["stop", "kill"].into_iter().cycle().take(12).enumerate() {
        let unit = format!("{}{round}", bed.unit());
        let running = bed.run(["--unit", &unit], "exec sleep 1000").spawn();
        bed.poll("the unit", || unit::is_active(&format!("{unit}.scope")));
        bed.sandbox([command, &unit]).output().succeeded();
        let outcome = running.finish();
        assert!([125, 143].contains(&outcome.status), "{command}: {}", outcome.status);
    }
}

/// A failed scope of the name, which an older `CollectMode` left: the name is free for the next start.
/// Whoever is killed just when systemd moves it into its scope leaves one that nobody would end.
fn empty_leftover_gives_way(bed: &Bed) {
    let scope = format!("{}.scope", bed.unit());
    let anonymous = "sandbox-empty-0a1b2c.scope";
    for name in [scope.as_str(), anonymous] {
        let script = format!(
            "(sleep 0 & exec sleep 1000) > /dev/null 2>&1 & zombie=; \
             until [ $zombie ]; do zombie=$(ps -o stat=,pid= --ppid $! | awk '/^Z/ {{ print $2 }}'); done; busctl call org.freedesktop.systemd1 \
             /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit 'ssa(sv)a(sa(sv))' {name} fail \
             1 PIDs au 1 $zombie 0 && read -r end"
        );
        // It says the job, which systemd does when it has no messages to read: until then there has to be that dead process, else the
        // scope fails, and stays. What another test's `sandbox ps` sees of the one without a name it ends.
        let mut started = bed.sh(&script).spawn();
        started.wait_for("/job/");
        bed.poll("its job", || unit::property(name, "Job").is_empty());
    }
    if !unit::hears_of_ends_by_the_kernel() {
        return bed.poll("systemd ends it by itself", || unit::is_gone(&scope) && unit::is_gone(anonymous));
    }
    bed.poll("the empty scope", || unit::is_active(&scope));
    let flag = format!("--unit={}", scope.trim_end_matches(".scope"));
    assert_eq!(bed.sandbox(["run", &flag, "--", "echo", "works"]).output().succeeded().text(), "works");
    // Where others start and stop much at that moment, systemd takes its time for each answer.
    let start = Instant::now();
    loop {
        let asked = bed.sandbox(["ps"]).env("SANDBOX_LOG", "debug").output().succeeded();
        if unit::is_gone(anonymous) {
            return;
        }
        let told = unit::properties(anonymous, &["ActiveState", "SubState", "Result", "Job", "ControlGroup"]);
        let is_early = start.elapsed() < patience(Duration::from_secs(30));
        assert!(is_early, "ps does not end it: {told:?}\n{}", asked.errors());
    }
}

fn failed_leftover_gives_way(bed: &Bed) {
    let unit = bed.unit();
    let scope = format!("{unit}.scope");
    let _left = bed
        .command(
            "systemd-run",
            ["--scope", "-q", "--unit", &unit, "-p", "CollectMode=inactive", "-p", "TimeoutStopSec=1"],
        )
        .args(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
        .spawn();
    let mut left = _left;
    left.wait_for("ready");
    bed.command("systemctl", ["stop", &scope]).output();
    bed.poll("it failed", || unit::property(&scope, "ActiveState") == "failed");
    bed.run(["--unit", &unit], "exit 4").output().exited(4);
    bed.poll("nothing is left of either", || unit::property(&scope, "LoadState") == "not-found");
}

fn nested_slice(bed: &Bed) {
    let outer = bed.id().to_owned();
    let slice = format!("{outer}-in-deep.slice");
    let mut running = bed.run(["--unit", &bed.unit(), "--slice", &slice], "echo ready; exec cat").spawn();
    running.wait_for("ready");
    let scope = format!("{}.scope", bed.unit());
    assert_eq!(unit::property(&scope, "Slice"), slice);
    assert_eq!(unit::property(&scope, "ControlGroup"), format!("/{outer}.slice/{outer}-in.slice/{slice}/{scope}"));
    running.finish().succeeded();
}

fn description(bed: &Bed) {
    let (running, scope) = bed.live(["--description", "The wéb server"], "echo ready; exec cat");
    assert_eq!(unit::property(&scope, "Description"), "The wéb server");
    running.finish().succeeded();
    let scope = format!("{}.scope", bed.unit());
    let mut running =
        bed.sandbox(["run", "-q", "--unit", &bed.unit(), "sh", "-c", "echo ready; cat", "a b", "it's"]).spawn();
    running.wait_for("ready");
    assert_eq!(unit::property(&scope, "Description"), r"sh -c 'echo ready; cat' 'a b' 'it'\''s'");
    running.finish().succeeded();
}

fn collected_after_failure(bed: &Bed) {
    for script in ["echo ready; read x; exit 3", "echo ready; read x; kill -SEGV $$"] {
        let (running, scope) = bed.live([""; 0], script);
        assert_eq!(unit::property(&scope, "CollectMode"), "inactive-or-failed");
        assert_ne!(running.finish().status, 0);
        bed.poll("the scope is collected", || unit::property(&scope, "LoadState") == "not-found");
    }
}

fn defaults(bed: &Bed) {
    let (running, scope) = bed.live([""; 0], "echo ready; exec cat");
    assert_eq!(unit::property(&scope, "TimeoutStopUSec"), "10s");
    if bed.facts.systemd >= Some(253) {
        assert_eq!(unit::property(&scope, "OOMPolicy"), "continue");
    }
    running.finish().succeeded();
    let (_running, scope) = bed.live(
        ["-p", "TimeoutStopSec=2min 30s", "-p", "KillSignal=SIGINT", "-p", "SendSIGHUP=yes"],
        "echo ready; exec cat",
    );
    assert_eq!(unit::property(&scope, "TimeoutStopUSec"), "2min 30s");
    assert_eq!(unit::property(&scope, "KillSignal"), "2");
    assert_eq!(unit::property(&scope, "SendSIGHUP"), "yes");
}

fn systemctl_kill(bed: &Bed) {
    let (mut running, scope) = bed.live([""; 0], "trap 'echo got usr1' USR1; echo ready; while :; do sleep 0.02; done");
    // sleep has no handler and ends at the signal, which is meant for the whole unit; the shell goes on.
    bed.command("systemctl", ["kill", "--signal=USR1", &scope]).output().succeeded();
    running.wait_for("got usr1");
    assert!(unit::is_active(&scope));
    bed.command("systemctl", ["kill", "--signal=KILL", &scope]).output().succeeded();
    running.finish().exited(137);
    bed.poll("the scope is gone", || unit::is_gone(&scope));
}

/// systemd signals every process of the unit; the stub must not pass its own on to a payload that has it already.
fn stop_signals_once(bed: &Bed) {
    let script = "trap 'n=$((n+1)); echo term $n' TERM; trap 'echo end $n; exit 5' WINCH; echo ready; while :; do sleep 0.02; done";
    let (mut running, scope) = bed.live([""; 0], script);
    bed.command("systemctl", ["kill", "--signal=TERM", &scope]).output().succeeded();
    running.wait_for("term 1");
    // Two at once would be one to the payload, so another one to the stub alone.
    let stub = unit::only_child(bed, running.pid());
    bed.command("kill", ["-TERM", &stub.to_string()]).output().succeeded();
    bed.poll("the stub has taken it", || {
        let status = fs::read_to_string(format!("/proc/{stub}/status")).unwrap();
        status.contains("State:\tS") && status.contains("ShdPnd:\t0000000000000000")
    });
    // A shell takes what is pending in the order of the numbers: this one after SIGTERM.
    bed.command("systemctl", ["kill", "--signal=WINCH", &scope]).output().succeeded();
    running.wait_for("end 1");
    running.finish().exited(5);
}

/// systemd gives the payload its time and then sends SIGKILL: how long that is, is systemd's word, not a clock of ours.
fn stop_when_term_is_ignored(bed: &Bed) {
    let (running, scope) =
        bed.live(["-p", "TimeoutStopSec=1"], "trap '' TERM; echo ready; while :; do sleep 0.1; done");
    assert_eq!(stop_settings(&scope), ["1s", "15", "yes", "control-group"]);
    let stop = bed.command("systemctl", ["stop", &scope]).output();
    assert!(stop.took >= Duration::from_secs(1), "the payload had no second to end: {:?}", stop.took);
    running.finish().exited(137);
    bed.poll("the scope is gone", || unit::is_gone(&scope));
}

/// What decides when a stop becomes a kill.
fn stop_settings(scope: &str) -> [String; 4] {
    ["TimeoutStopUSec", "KillSignal", "SendSIGKILL", "KillMode"].map(|name| unit::property(scope, name))
}

/// A PID 1 without a handler ignores SIGTERM, so the unit's own ten seconds are all that it has.
fn stop_as_pid1(bed: &Bed) {
    let (running, scope) = bed.live(["--as-pid1"], "echo ready; exec sleep 1000");
    assert_eq!(stop_settings(&scope), ["10s", "15", "yes", "control-group"]);
    let stop = bed.command("systemctl", ["stop", &scope]).output();
    assert!(stop.took >= Duration::from_secs(10), "SIGKILL came early: {:?}", stop.took);
    running.finish().exited(137);
    bed.poll("the scope is gone", || unit::is_gone(&scope));
    // One with a handler ends by it, and is not killed.
    let (running, scope) = bed.live(["--as-pid1"], "trap 'exit 6' TERM; echo ready; while :; do sleep 0.02; done");
    bed.command("systemctl", ["stop", &scope]).output().succeeded();
    running.finish().exited(6);
}

fn stop_slice(bed: &Bed) {
    let (first, scope) = bed.live([""; 0], "echo ready; exec cat");
    let (second, _) = bed.live([""; 0], "echo ready; exec cat");
    bed.command("systemctl", ["stop", &bed.slice()]).output().succeeded();
    for running in [first, second] {
        running.finish().exited(143);
    }
    bed.poll("the scope is gone", || unit::is_gone(&scope));
}

/// Where the variables do not say where the user's manager is, the error names the place that was tried.
fn user_bus_missing(bed: &Bed) {
    let nobody = bed.sandbox(["run", "-q", "--user", "true"]);
    let nobody =
        bed.command("setpriv", ["--reuid=1999", "--regid=1999", "--clear-groups", "env", "-i"]).args(nobody.words());
    let outcome = nobody.dir("/").output().refused(125, ["/run/user/1999", "No such file"]);
    assert!(outcome.hint().contains("enable-linger 1999"), "{}", outcome.hint());
}

/// Never from the user bus to the system bus, not even for root.
fn user_bus_wrong(bed: &Bed) {
    let nowhere = bed.dir();
    bed.run(["--user", "--unit", &bed.unit()], "echo never")
        .env("XDG_RUNTIME_DIR", &nowhere)
        .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}/bus", nowhere.display()))
        .output()
        .refused(125, [nowhere.to_str().unwrap()]);
    assert_eq!(unit::property(&format!("{}.scope", bed.unit()), "LoadState"), "not-found");
}

fn of_user(bed: &Bed, unit: &str, property: &str) -> String {
    bed.command("systemctl", ["--user", "show", unit, "-p", property, "--value"]).user().output().succeeded().text()
}

fn as_user(bed: &Bed, flags: &[&str]) {
    let unit = bed.unit();
    let script = "echo ready $(id -u); cat /proc/self/uid_map; exec cat";
    let mut running = bed.run(["--unit", &unit].iter().chain(flags), script).user().dir("/").spawn();
    running.wait_for("ready 0");
    let scope = format!("{unit}.scope");
    assert_eq!(of_user(bed, &scope, "ActiveState"), "active");
    assert_eq!(of_user(bed, &scope, "Slice"), "sandbox.slice");
    assert_eq!(of_user(bed, &scope, "Delegate"), "yes");
    let path = of_user(bed, &scope, "ControlGroup");
    assert!(path.starts_with("/user.slice/user-1000.slice/user@1000.service/") && path.ends_with(&scope), "{path}");
    let inside = unit::only_child(bed, running.pid());
    assert_eq!(unit::cgroup_of(inside, "").as_deref(), Some(path.as_str()));
    let status = fs::read_to_string(format!("/proc/{inside}/status")).unwrap();
    assert!(status.contains("Uid:\t1000\t1000\t"), "root inside is the user outside: {status}");
    assert_eq!(unit::property(&scope, "LoadState"), "not-found", "the system's manager knows nothing of it");
    bed.command("systemctl", ["--user", "stop", &scope]).user().output().succeeded();
    running.finish().exited(143);
    bed.poll("the scope is gone", || of_user(bed, &scope, "LoadState") == "not-found");
}

fn user_manager(bed: &Bed) {
    as_user(bed, &["--user"]);
    as_user(bed, &[]);
}

fn user_manager_kept_upper(bed: &Bed) {
    let upper = bed.user_dir().join("upper");
    if bed.facts.root_fs == "overlay" {
        bed.run(["--user", "--upper", upper.to_str().unwrap()], "true")
            .user()
            .output()
            .refused(125, ["--upper", "overlay"]);
        return;
    }
    as_user(bed, &["--upper", upper.to_str().unwrap()]);
}

/// Root talks to systemd's private socket then.
fn without_dbus_daemon(bed: &Bed) {
    let stopped = StoppedDbus::stop(bed);
    let (mut running, scope) = bed.live(["-p", "MemoryMax=50M"], "echo ready; exec cat");
    running.send("through\n");
    running.wait_for("through");
    drop(stopped);
    bed.poll("the bus answers", || unit::is_active(&scope));
    assert_eq!(unit::property(&scope, "MemoryMax"), "52428800");
    assert_eq!(unit::processes(&scope).len(), 2);
    running.finish().succeeded();
    bed.poll("the scope is gone", || unit::is_gone(&scope));
}

struct StoppedDbus;

impl StoppedDbus {
    fn stop(bed: &Bed) -> Self {
        bed.command("systemctl", ["stop", "dbus.socket", "dbus.service"]).output();
        bed.poll("the bus is gone", || !bed.command("busctl", ["--system", "list"]).output().errors().is_empty());
        Self
    }
}

impl Drop for StoppedDbus {
    fn drop(&mut self) {
        // A user manager does not come back to the bus by itself, and on cgroup v1 it needs it to move processes. It starts once logind
        // is back there.
        let services = ["systemd-logind.service", "user@1000.service"].map(|service| ["try-restart", service]);
        for verb in [&["start", "dbus.socket", "dbus.service"][..], &services[0], &services[1]] {
            let _ = std::process::Command::new("systemctl").args(verb).status();
        }
    }
}
