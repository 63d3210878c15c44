//! Services: `run --detach`, and `run` as the main process of a unit that is there.

use crate::bed::{Bed, patience};
use crate::{Test, alone, test, unit};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("services/detach", needs![root, systemd], detach),
        test("services/detach_streams", needs![root, systemd], detach_streams),
        test("services/detach_that_fails", needs![root, systemd], detach_that_fails),
        test("services/detach_refusals", needs![root, systemd], detach_refusals),
        test("services/caller_of_detach", needs![root, systemd], caller_of_detach),
        test("services/restart", needs![root, systemd], restart),
        test("services/restart_with_more", needs![root, systemd], restart_with_more),
        test("services/runtime_max", needs![root, systemd], runtime_max),
        test("services/watchdog", needs![root, systemd], watchdog),
        test("services/stop_when_term_is_ignored", needs![root, systemd], stop_when_term_is_ignored),
        test("services/end_of_the_payload", needs![root, systemd], end_of_the_payload),
        test("services/detach_by_a_user", needs![root, systemd, user_manager, kernel_min(5, 11)], detach_by_a_user),
        test("services/hidden_processes", needs![root, systemd, user_manager, kernel_min(5, 11)], hidden_processes),
        test("services/own_unit", needs![root, systemd], own_unit),
        test("services/own_unit_cannot_have_it", needs![root, systemd], own_unit_cannot_have_it),
        test("services/not_the_main_process", needs![root, systemd], not_the_main_process),
        test("services/notifications", needs![root, systemd], notifications),
        test("services/payload_is_ready_later", needs![root, systemd], payload_is_ready_later),
        test("services/sockets", needs![root, systemd], sockets),
        test("services/credentials", needs![root, systemd], credentials),
        alone("services/survive_restarts_of_others", needs![root, systemd], survive_restarts_of_others),
    ]
}

/// Starts `sandbox run --detach` under a name of the test's; its unit.
pub(crate) fn detached(bed: &Bed, name: &str, flags: &[&str], script: &str) -> String {
    let unit = format!("{}-{name}.service", bed.id());
    let own = ["--detach".to_owned(), format!("--unit={}", unit.trim_end_matches(".service"))];
    let outcome = bed.run(own.iter().map(String::as_str).chain(flags.iter().copied()), script).output().succeeded();
    assert_eq!(outcome.text(), unit, "the unit and nothing else on stdout");
    assert_eq!(outcome.errors(), "");
    unit
}

/// The fields of a unit's lines in the journal: priority and text.
fn journal(bed: &Bed, unit: &str) -> Vec<(String, String)> {
    let script =
        format!("journalctl --sync; journalctl -u {unit} _TRANSPORT=stdout -o json --output-fields=PRIORITY,MESSAGE");
    let text = bed.sh(&script).output().succeeded().text();
    let field = |line: &serde_json::Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.map(|line| (field(&line, "PRIORITY"), field(&line, "MESSAGE"))).collect()
}

fn detach(bed: &Bed) {
    let slice = format!("--slice={}", bed.slice());
    let unit = detached(bed, "a", &[&slice, "-m", "64M", "-p", "CPUShares=600"], "exec sleep 1000");
    assert_eq!(unit::property(&unit, "SubState"), "running");
    assert_eq!(unit::property(&unit, "ControlGroup"), format!("/{}/{unit}", bed.slice()));
    assert_eq!(unit::property(&unit, "MemoryMax"), "67108864");
    let commands: Vec<String> =
        unit::processes(&unit).iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap()).collect();
    assert_eq!(commands.iter().filter(|name| name.trim() == "sandbox").count(), 2, "{commands:?}");
    assert_eq!(commands.iter().filter(|name| name.trim() == "sleep").count(), 1, "{commands:?}");
    bed.command("systemctl", ["stop", &unit]).output().succeeded();
    assert!(unit::is_gone(&unit), "{}", unit::property(&unit, "ActiveState"));
}

fn detach_streams(bed: &Bed) {
    let unit = detached(bed, "a", &[], "echo to out; echo to err >&2; exec sleep 1000");
    let wanted = [("6", "to out"), ("3", "to err")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    bed.poll("both lines in the journal", || {
        let lines = journal(bed, &unit);
        wanted.iter().all(|line| lines.contains(line))
    });
}

fn detach_that_fails(bed: &Bed) {
    let unit = format!("{}.service", bed.unit());
    let start = |command: &str| {
        let outcome = bed.sandbox(["run", "-q", "-d", "--unit", &bed.unit(), "--", command]).output();
        assert_eq!(outcome.text(), "");
        outcome
    };
    start("no-such-program").refused(127, ["no-such-program", "not found"]);
    assert_eq!(unit::property(&unit, "ActiveState"), "failed", "it stays to be looked at");
    let hinted = start("/home/x/y").refused(127, ["/home/x/y"]);
    assert!(hinted.hint().contains("--bind"), "{}", hinted.errors());
    start("/etc/passwd").refused(126, ["/etc/passwd"]);
    // With Restart= it would be tried again and again, and by whom nobody knows.
    let again =
        ["run", "-q", "-d", "--unit", &format!("{}r", bed.unit()), "-p", "Restart=always", "-p", "RestartSec=1min"];
    bed.sandbox(again).args(["--", "/no/such"]).output().refused(127, ["/no/such"]);
    assert_eq!(unit::property(&format!("{}r.service", bed.unit()), "ActiveState"), "inactive");
    bed.sandbox(["run", "-d", "--unit", &bed.unit(), "--", "sleep", "1000"]).output().succeeded();
    assert_eq!(unit::property(&unit, "ActiveState"), "active", "the next start of its name takes its place");
    start("true").refused(125, ["exists already"]);
}

fn detach_refusals(bed: &Bed) {
    let run = |flags: &[&str]| bed.run(flags, "true").output();
    run(&["-d", "-t"]).refused(125, ["--detach", "--pty"]);
    run(&["-d", "--manager=none"]).refused(125, ["--detach", "--manager none"]);
    run(&["-d", "--unit=x.scope"]).refused(125, ["--unit x.scope"]);
    run(&["-d", "-p", "Restart=maybe"]).refused(125, ["Restart=maybe", "on-failure"]);
    run(&["-p", "Restart=always"]).refused(125, ["Restart=always", "a scope has no property"]);
}

/// Variables, the working directory and arguments with everything in them that systemd would expand.
fn caller_of_detach(bed: &Bed) {
    let dir = bed.seen_dir();
    let text = "%n $HOME ${HOME} \\x41 'a b' \"";
    let script = format!("printf '%s|' \"$@\" \"$GIVEN\" \"$PWD\" > {}/out", dir.display());
    let unit = format!("{}.service", bed.unit());
    let bind = format!("--bind={}", dir.display());
    let flags = ["run", "-d", "--unit", &bed.unit(), "-E", "GIVEN", &bind, "-p", "Restart=no", "--", "sh", "-c"];
    bed.sandbox(flags).arg(script).args(["sh", text]).env("GIVEN", text).dir(&dir).output().succeeded();
    bed.poll("its end", || unit::is_gone(&unit));
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), format!("{text}|{text}|{}|", dir.display()));
}

fn restart(bed: &Bed) {
    let unit = detached(bed, "a", &["-p", "Restart=on-failure", "-p", "RestartSec=50ms"], "sleep 0.1; exit 3");
    bed.poll("two restarts", || unit::property(&unit, "NRestarts").parse::<u32>().is_ok_and(|count| count >= 2));
    bed.sandbox(["stop", &unit]).output().succeeded();
    bed.poll("its end", || !matches!(unit::property(&unit, "ActiveState").as_str(), "active" | "activating"));
}

/// What set-property raised holds for the next run of the unit, too: that it is no more what was asked at first is no failure.
fn restart_with_more(bed: &Bed) {
    let flags = ["-m", "64M", "-p", "Restart=on-failure", "-p", "RestartSec=50ms"];
    let unit = detached(bed, "a", &flags, "exec sleep 1000");
    bed.sandbox(["set-property", &unit, "MemoryMax=96M", "TasksMax=50"]).output().succeeded();
    let shown = bed.sandbox(["inspect", &unit]).output().succeeded().text();
    assert!(shown.contains("TasksMax=50") && shown.contains("pids.max 50"), "{shown}");
    bed.sandbox(["kill", "-s", "KILL", &unit]).output().succeeded();
    bed.poll("the restart", || {
        unit::property(&unit, "NRestarts") == "1" && unit::property(&unit, "SubState") == "running"
    });
    assert_eq!(unit::property(&unit, "MemoryMax"), "100663296");
    bed.sandbox(["stop", &unit]).output().succeeded();
}

fn runtime_max(bed: &Bed) {
    let unit = detached(bed, "a", &["-p", "RuntimeMaxSec=200ms"], "exec sleep 1000");
    bed.poll("its end", || unit::property(&unit, "Result") == "timeout");
}

/// A payload that says that it lives is left alone, one that stops saying so is not.
fn watchdog(bed: &Bed) {
    let limit = patience(std::time::Duration::from_secs(2)).as_millis();
    let script = format!(
        "test $WATCHDOG_USEC = {limit}000 && test -z $WATCHDOG_PID || exit 9
        for i in 1 2 3 4 5 6 7 8 9 10; do systemd-notify WATCHDOG=1; sleep 0.1; done; echo silent; exec sleep 1000"
    );
    let unit = detached(bed, "a", &["-p", &format!("WatchdogSec={limit}ms")], &script);
    bed.poll("the watchdog", || unit::property(&unit, "Result") == "watchdog");
    assert!(journal(bed, &unit).contains(&("6".to_owned(), "silent".to_owned())), "it came only after the silence");
}

fn stop_when_term_is_ignored(bed: &Bed) {
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let unit = detached(bed, "a", &["-p", "TimeoutStopSec=300ms"], script);
    // --detach returns when sh has been executed, not when it has come to its trap.
    bed.poll("the trap", || journal(bed, &unit).contains(&("6".to_owned(), "ready".to_owned())));
    bed.sandbox(["stop", &unit]).output().succeeded();
    assert_eq!(unit::property(&unit, "Result"), "timeout");
    assert!(unit::property(&unit, "ControlGroup").is_empty() || unit::processes(&unit).is_empty());
}

/// systemd sees what it would see of the payload itself.
fn end_of_the_payload(bed: &Bed) {
    let table = [
        ("exit 7", "exit-code", "1", "7"),
        ("kill -SEGV $$", "signal", "2", "11"),
        ("kill -KILL $$", "signal", "2", "9"),
    ];
    for (at, (script, result, code, status)) in table.into_iter().enumerate() {
        let unit = detached(bed, &format!("e{at}"), &[], &format!("sleep 0.1; {script}"));
        bed.poll("its end", || unit::property(&unit, "ActiveState") == "failed");
        let found = ["Result", "ExecMainCode", "ExecMainStatus"].map(|name| unit::property(&unit, name));
        assert_eq!(found, [result, code, status], "{script}");
    }
}

fn detach_by_a_user(bed: &Bed) {
    let name = bed.unit();
    let unit = format!("{name}.service");
    let run = |words: &[&str]| bed.sandbox(words).user().output();
    let started = run(&["run", "-q", "-d", "--unit", &name, "--", "sleep", "1000"]).succeeded();
    assert_eq!(started.text(), unit);
    let shown = bed.command("systemctl", ["--user", "is-active", &unit]).user().output();
    assert_eq!(shown.text().trim(), "active");
    let inside = run(&["exec", &name, "sh", "-c", "id -u; cat /proc/1/comm"]).succeeded();
    assert_eq!(inside.text(), "0\nsandbox");
    assert!(run(&["ps", "-q"]).succeeded().text().contains(&unit));
    assert!(bed.sandbox(["ps", "-q"]).output().succeeded().text().contains(&unit), "root sees everybody's");
    assert_eq!(bed.sandbox(["exec", &unit, "id", "-u"]).output().succeeded().text(), "0");
    bed.sandbox(["stop", &unit]).output().succeeded();
    assert!(!run(&["ps", "-aq"]).succeeded().text().contains(&unit));
}

/// A /proc that hides the processes of others from a plain user hides the first one of that user's sandbox, too.
fn hidden_processes(bed: &Bed) {
    for hides in ["noaccess", "invisible"] {
        let name = format!("{}-{hides}", bed.unit());
        let mount = format!("mount -t proc -o hidepid={hides} proc /proc");
        let run = |words: &[&str]| bed.sandbox(words).user().with_mounts(&mount).output();
        run(&["run", "-q", "-d", "--unit", &name, "--", "sleep", "1000"]).succeeded();
        assert!(run(&["ps", "-q"]).succeeded().text().contains(&name), "{hides}");
        for words in
            [["exec", &name, "true"], ["set-property", &name, "MemoryMax=1G"], ["kill", &name, "--signal=TERM"]]
        {
            run(&words).refused(125, ["hidepid"]);
        }
        let shown = run(&["inspect", &name]).succeeded();
        assert!(shown.errors().contains("hidepid") && !shown.text().contains("not in force"), "{}", shown.text());
        run(&["stop", &name]).succeeded();
        assert!(!run(&["ps", "-aq"]).succeeded().text().contains(&name), "{hides}");
        let start = bed.run(["--unit", &name], "echo ready; exec cat").user().with_mounts(&mount);
        let mut running = start.spawn();
        running.wait_for("ready");
        assert!(run(&["ps", "-q"]).succeeded().text().contains(&name), "{hides}");
        run(&["kill", "--all", &name]).succeeded();
        running.finish().exited(143);
        assert!(!run(&["ps", "-aq"]).succeeded().text().contains(&name), "{hides}");
    }
}

/// A unit file of this test's, gone after it.
struct UnitFile {
    name: String,
    path: PathBuf,
    others: Vec<PathBuf>,
}

impl UnitFile {
    /// `flags` and `command` of `sandbox run`, and other lines of its section.
    fn new(bed: &Bed, flags: &str, command: &str, lines: &str) -> UnitFile {
        let name = format!("{}-own.service", bed.id());
        let path = PathBuf::from(format!("/run/systemd/system/{name}"));
        let program = crate::bed::sandbox_binary();
        let start = format!("ExecStart={} run {flags} -- {command}", program.display());
        let seconds = patience(std::time::Duration::from_secs(20)).as_secs();
        let text = format!(
            "[Service]\nType=notify\nKillMode=mixed\nTimeoutStopSec=5\nTimeoutStartSec={seconds}\n{lines}\n{start}\n"
        );
        fs::write(&path, text).unwrap();
        UnitFile { name, path, others: Vec::new() }
    }

    fn start(&self, bed: &Bed) -> crate::command::Outcome {
        bed.command("systemctl", ["daemon-reload"]).output().succeeded();
        bed.command("systemctl", ["start", &self.name]).output()
    }
}

impl Drop for UnitFile {
    fn drop(&mut self) {
        for path in self.others.iter().chain([&self.path]) {
            drop(fs::remove_file(path));
        }
        drop(std::process::Command::new("systemctl").args(["stop", &self.name]).output());
        drop(std::process::Command::new("systemctl").args(["reset-failed", &self.name]).output());
        let control = format!("/run/systemd/system.control/{}.d", self.name);
        drop(fs::remove_dir_all(control));
        drop(std::process::Command::new("systemctl").arg("daemon-reload").output());
    }
}

fn own_unit(bed: &Bed) {
    let flags = format!("--unit={}other --slice={} -m 48M", bed.id(), bed.slice());
    let unit = UnitFile::new(bed, &flags, "sleep 1000", "");
    unit.start(bed).succeeded();
    assert_eq!(unit::property(&unit.name, "Slice"), "system.slice", "it makes no unit of its own");
    assert_eq!(unit::property(&unit.name, "MemoryMax"), "50331648", "its limit is given to the unit that is there");
    let file =
        if bed.facts.has(&crate::facts::need::cgroup2()).is_ok() { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!(unit::cgroup_file(&unit.name, "memory", file).as_deref(), Some("50331648"));
    let shown = bed.sandbox(["ps", "-q"]).output().succeeded().text();
    assert!(shown.contains(&unit.name) && !shown.contains(&format!("{}other", bed.id())), "{shown}");
    bed.command("systemctl", ["stop", &unit.name]).output().succeeded();
    assert_eq!(unit::property(&unit.name, "Result"), "success", "a stop is no failure");
    let text = fs::read_to_string(&unit.path).unwrap().replace("-m 48M", "");
    fs::write(&unit.path, text).unwrap();
    unit.start(bed).succeeded();
    let said = bed.sh(&format!("journalctl --sync; journalctl -u {} -o cat", unit.name)).output().succeeded().text();
    assert!(said.contains("50-MemoryMax.conf still holds"), "a limit of the start before is told: {said}");
}

fn own_unit_cannot_have_it(bed: &Bed) {
    let unit = UnitFile::new(bed, "-m 48M --bind=/no/such/place", "sleep 1000", "");
    unit.start(bed).exited(1);
    let status = unit::property(&unit.name, "StatusText");
    assert!(status.contains("/no/such/place"), "systemctl status says why: {status}");
    assert_eq!(unit::property(&unit.name, "ExecMainStatus"), "125");
}

/// What a service's script starts is a sandbox of its own, in a scope.
fn not_the_main_process(bed: &Bed) {
    let name = bed.unit();
    let script = format!("{} run -q --unit={name} -- sleep 1000; true", crate::bed::sandbox_binary().display());
    let service = format!("--unit={name}-script");
    bed.command("systemd-run", ["-q", &service, "sh", "-c", &script]).output().succeeded();
    bed.poll("the scope", || unit::is_active(&format!("{name}.scope")));
    bed.command("systemctl", ["stop", &format!("{name}-script.service")]).output().succeeded();
    bed.poll("its end", || unit::is_gone(&format!("{name}.scope")));
}

fn notifications(bed: &Bed) {
    // Again and again: systemd-notify waits 5 s until it was read, and while another test has systemd executed anew that may be too
    // short on an emulated machine. Whose message it was systemd cannot tell when the process is gone.
    let command = "sh -c 'while :; do systemd-notify --status=well; sleep 1; done'";
    let unit = UnitFile::new(bed, "", command, "NotifyAccess=all");
    unit.start(bed).succeeded();
    bed.poll("the payload's status", || unit::property(&unit.name, "StatusText") == "well");
}

fn payload_is_ready_later(bed: &Bed) {
    let dir = bed.seen_dir();
    let flags = format!("--notify=payload --bind={}", dir.display());
    // systemd-notify waits five seconds for systemd to take it; later it is gone, and nobody knows whose word it was.
    let command = format!(
        "sh -c 'while ! test -e {}/go; do sleep 0.05; done; until systemd-notify --ready; do :; done; exec sleep 1000'",
        dir.display()
    );
    let unit = UnitFile::new(bed, &flags, &command, "NotifyAccess=all");
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
    bed.command("systemctl", ["start", "--no-block", &unit.name]).output().succeeded();
    bed.poll("the payload", || {
        let inside = unit::property(&unit.name, "ControlGroup");
        !inside.is_empty() && unit::processes(&unit.name).len() >= 3
    });
    assert_eq!(unit::property(&unit.name, "ActiveState"), "activating");
    fs::write(dir.join("go"), "").unwrap();
    bed.poll("ready", || unit::is_active(&unit.name));
}

/// A socket unit's connection reaches the payload, and ends with it.
fn sockets(bed: &Bed) {
    let dir = bed.dir();
    let script = "test $LISTEN_FDS = 1 && test $LISTEN_PID = $$ && test $LISTEN_FDNAMES = web && echo served >&3; exec sleep 1000";
    let mut unit = UnitFile::new(bed, "", &format!("sh -c '{}'", script.replace('$', "$$")), "");
    let socket = unit.name.replace(".service", ".socket");
    let path = PathBuf::from(format!("/run/systemd/system/{socket}"));
    let listen = dir.join("socket");
    let text = format!("[Socket]\nListenFIFO={}\nFileDescriptorName=web\n", listen.display());
    fs::write(&path, text).unwrap();
    unit.others.push(path);
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
    bed.command("systemctl", ["start", &socket]).output().succeeded();
    let read = bed.sh(&format!("head -n 1 {}", listen.display())).spawn();
    unit.start(bed).succeeded();
    assert_eq!(read.finish().text(), "served");
    bed.command("systemctl", ["stop", &socket]).output().succeeded();
    assert!(UnixStream::connect(&listen).is_err());
}

fn credentials(bed: &Bed) {
    // As systemd sets them up, which it cannot in every lab.
    let dir = bed.dir();
    fs::write(dir.join("password"), "secret\n").unwrap();
    let out = bed.seen_dir();
    let flags = format!("--bind={}", out.display());
    let command = format!(
        "sh -c 'cat $$CREDENTIALS_DIRECTORY/password > {0}/read; touch $$CREDENTIALS_DIRECTORY/x 2> {0}/err; exec sleep 1000'",
        out.display()
    );
    let unit = UnitFile::new(bed, &flags, &command, &format!("Environment=CREDENTIALS_DIRECTORY={}", dir.display()));
    unit.start(bed).succeeded();
    bed.poll("the secret", || fs::read_to_string(out.join("read")).is_ok_and(|text| text == "secret\n"));
    bed.poll("the refusal", || fs::read_to_string(out.join("err")).is_ok_and(|text| text.contains("Read-only")));
}

/// What is there stays there whatever is restarted around it, and can be reached.
fn survive_restarts_of_others(bed: &Bed) {
    let unit = detached(bed, "a", &["-m", "64M", "-p", "DevicePolicy=closed"], "while sleep 0.1; do echo alive; done");
    let (mut scope, scope_unit) = bed.live(["-m", "48M"], "echo ready; exec cat");
    let file =
        if bed.facts.has(&crate::facts::need::cgroup2()).is_ok() { "memory.max" } else { "memory.limit_in_bytes" };
    let restarts: [&[&str]; 4] =
        [&["daemon-reload"], &["daemon-reexec"], &["restart", "systemd-journald"], &["try-restart", "dbus"]];
    for words in restarts {
        bed.command("systemctl", words).output().succeeded();
        bed.poll("systemd", || unit::is_active(&unit) && unit::is_active(&scope_unit));
        assert_eq!(unit::cgroup_file(&unit, "memory", file).as_deref(), Some("67108864"), "{words:?}");
        assert_eq!(unit::cgroup_file(&scope_unit, "memory", file).as_deref(), Some("50331648"), "{words:?}");
        assert_eq!(unit::property(&unit, "LoadState"), "loaded", "{words:?}");
        let listed = bed.sandbox(["ps", "-q"]).output().succeeded().text();
        assert!(listed.contains(&unit) && listed.contains(&scope_unit), "{words:?}: {listed}");
        for name in [&unit, &scope_unit] {
            assert_eq!(bed.sandbox(["exec", name, "cat", "/dev/null"]).output().succeeded().text(), "", "{words:?}");
        }
    }
    bed.sandbox(["stop", &unit, &scope_unit]).output().succeeded();
    assert!(unit::is_gone(&unit) && unit::is_gone(&scope_unit));
    scope.close_stdin();
    assert_eq!(scope.finish().status, 143);
    // A user's manager does not find back to the system's bus by itself, and needs it for scopes.
    if bed.facts.has(&crate::facts::need::user_manager()).is_ok() {
        bed.command("systemctl", ["--user", "daemon-reexec"]).user().output().succeeded();
    }
}
