//! What is done with sandboxes that live: exec, ps, inspect, stats, wait, stop, kill, pause, set-property, rm, logs.

mod exec;

use crate::bed::Bed;
use crate::services::detached;
use crate::{Test, alone, test, unit};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("daily/exec", needs![root, systemd], exec::exec),
        test("daily/exec_streams_and_status", needs![root, systemd], exec::exec_streams_and_status),
        test("daily/exec_terminal", needs![root, systemd], exec::exec_terminal),
        test("daily/exec_without_anything_inside", needs![root, systemd], exec::exec_without_anything_inside),
        test("daily/exec_ten_at_once", needs![root, systemd], exec::exec_ten_at_once),
        test("daily/exec_ends_with_its_caller", needs![root, systemd], exec::exec_ends_with_its_caller),
        test("daily/exec_as_pid1", needs![root, systemd], exec::exec_as_pid1),
        test("daily/exec_while_it_starts", needs![root, systemd], exec::exec_while_it_starts),
        test("daily/exec_with_its_limits", needs![root, systemd], exec::exec_with_its_limits),
        test("daily/ps", needs![root, systemd], ps),
        test("daily/ps_stale_file", needs![root, systemd], ps_stale_file),
        test("daily/ps_unit_vanished", needs![root, systemd], ps_unit_vanished),
        test("daily/names", needs![root, systemd], names),
        test("daily/inspect", needs![root, systemd], inspect),
        test("daily/inspect_undecided", needs![root, systemd], inspect_undecided),
        test("daily/stats", needs![root, systemd], stats),
        test("daily/wait", needs![root, systemd], wait),
        test("daily/kill", needs![root, systemd], kill),
        test("daily/pause_needs_cgroup2", needs![root, systemd, cgroup1], pause_needs_cgroup2),
        test("daily/pause", needs![root, systemd, cgroup2], pause),
        test("daily/set_property", needs![root, systemd], set_property),
        test("daily/set_property_refused", needs![root, systemd], set_property_refused),
        test("daily/set_property_of_another_period", needs![root, systemd], set_property_of_another_period),
        test("daily/ps_forged", needs![root, systemd, user_manager], ps_forged),
        alone(
            "daily/ps_of_a_stopped_manager",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            ps_of_a_stopped_manager,
        ),
        test("daily/rm", needs![root, systemd], rm),
        test("daily/failed_by_name", needs![root, systemd], failed_by_name),
        test("daily/logs", needs![root, systemd], logs),
        test("daily/log_journal", needs![root, systemd], log_journal),
        test("daily/log_journal_terminal", needs![root, systemd], log_journal_terminal),
    ]
}

fn json(bed: &Bed, words: &[&str]) -> Value {
    serde_json::from_str(&bed.sandbox(words).output().succeeded().text()).unwrap()
}

fn listed(bed: &Bed, flags: &[&str], unit: &str) -> Option<Value> {
    let list = json(bed, &[&["ps", "--json"], flags].concat());
    list.as_array().unwrap().iter().find(|row| row["unit"] == unit).cloned()
}

fn ps(bed: &Bed) {
    let name = bed.id();
    let (_running, scope) = bed.live(["--name", name, "-m", "64M"], "echo ready; exec cat");
    let row = listed(bed, &[], &scope).expect("it is listed");
    assert_eq!((row["name"].as_str(), row["state"].as_str()), (Some(name), Some("running")));
    assert_eq!(row["slice"], bed.slice());
    assert_eq!(row["root"], "host view");
    assert!(row["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{row}");
    let pid = u32::try_from(row["pid"].as_u64().unwrap()).unwrap();
    assert!(unit::processes(&scope).contains(&pid));
    let table = bed.sandbox(["ps"]).output().succeeded().text();
    assert!(table.lines().any(|line| line.starts_with(name) && line.contains(&scope)), "{table}");
    assert!(table.starts_with("NAME "), "{table}");
    let failed = detached(bed, "f", &[], "exit 5");
    bed.poll("its failure", || listed(bed, &["-a"], &failed).is_some_and(|row| row["state"] == "failed"));
    let row = listed(bed, &["-a"], &failed).unwrap();
    assert_eq!((row["status"].as_i64(), row["result"].as_str()), (Some(5), Some("exit-code")));
    assert!(listed(bed, &[], &failed).is_none());
}

fn state_file(unit: &str) -> std::path::PathBuf {
    format!("/run/sandbox/{unit}.json").into()
}

/// The line of such a file that is the sandbox's record; behind it comes what was decided.
fn record(text: &str) -> Value {
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

/// What a killed launcher leaves is not believed, and goes.
fn ps_stale_file(bed: &Bed) {
    let (running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let file = state_file(&scope);
    let text = fs::read_to_string(&file).unwrap();
    running.signal(Signal::KILL);
    running.finish();
    bed.poll("the end of its unit", || unit::is_gone(&scope));
    assert!(listed(bed, &["-a"], &scope).is_none());
    assert!(!file.exists(), "it is swept");
    // The same with its PIDs reused, by this very process.
    let own = std::process::id().to_string();
    let mut record = record(&text);
    for who in ["launcher", "leader"] {
        record[who]["pid"] = own.parse::<u64>().unwrap().into();
    }
    fs::write(&file, record.to_string()).unwrap();
    assert!(listed(bed, &["-a"], &scope).is_none());
    let _ = fs::remove_file(&file);
    for garbage in ["", "{", "null", "[]", "{\"name\": 1}"] {
        fs::write(&file, garbage).unwrap();
        assert!(listed(bed, &["-a"], &scope).is_none(), "{garbage}");
    }
    fs::remove_file(&file).unwrap();
}

/// The word of a file whose processes live is not enough: systemd must have the unit, and they must be in it.
fn ps_unit_vanished(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let mut record = record(&fs::read_to_string(state_file(&scope)).unwrap());
    for other in [format!("{}-none.scope", bed.id()), "init.scope".to_owned()] {
        record["unit"] = other.clone().into();
        let file = state_file(&format!("{}x", bed.id()));
        fs::write(&file, record.to_string()).unwrap();
        let row = listed(bed, &[], &other);
        fs::remove_file(&file).unwrap();
        assert!(row.is_none(), "{other}");
    }
    assert!(listed(bed, &[], &scope).is_some());
}

/// A plain user writes what is in such a file of a service of the machine's: nobody takes that user's word for it.
fn ps_forged(bed: &Bed) {
    let victim = format!("{}-v.service", bed.id());
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    bed.command("systemd-run", ["-q", "--unit", &victim, "sleep", "1000"]).output().succeeded();
    let pid: u64 = unit::property(&victim, "MainPID").parse().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let started: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let mut record = record(&fs::read_to_string(state_file(&scope)).unwrap());
    record["unit"] = victim.clone().into();
    record["service"] = true.into();
    record["as_pid1"] = true.into();
    record["entry"]["namespaces"] = Value::Array(Vec::new());
    for who in ["launcher", "leader"] {
        record[who]["pid"] = pid.into();
        record[who]["started"] = started.into();
    }
    let directory = std::path::PathBuf::from(format!("/run/user/{}/sandbox", crate::facts::TESTER));
    let file = directory.join(format!("{}.json", bed.id()));
    bed.command("mkdir", ["-p", directory.to_str().unwrap()]).user().output().succeeded();
    let script = "cat > \"$1\"";
    bed.command("sh", ["-c", script, "sh", file.to_str().unwrap()])
        .user()
        .stdin(record.to_string())
        .output()
        .succeeded();
    let row = listed(bed, &[], &victim);
    let outcomes = ["exec", "stop"]
        .map(|command| bed.sandbox([command, &victim]).args((command == "exec").then_some("true")).output());
    let active = unit::is_active(&victim);
    fs::remove_file(&file).unwrap();
    bed.command("systemctl", ["stop", &victim]).output().succeeded();
    assert!(row.is_none() && active, "{row:?}");
    outcomes.into_iter().for_each(|outcome| drop(outcome.refused(125, [&victim])));
}

/// A process that goes on when this is dropped.
pub(crate) struct Stopped(rustix::process::Pid);

impl Stopped {
    /// The service manager of tester.
    pub(crate) fn manager() -> Stopped {
        let manager = unit::property(&format!("user@{}.service", crate::facts::TESTER), "MainPID").parse().unwrap();
        let manager = rustix::process::Pid::from_raw(manager).unwrap();
        rustix::process::kill_process(manager, Signal::STOP).unwrap();
        Stopped(manager)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::CONT);
    }
}

/// A plain user stops the own service manager, which answers nobody then: root's list has the others' without waiting half a minute.
fn ps_of_a_stopped_manager(bed: &Bed) {
    let unit = format!("{}.service", bed.unit());
    bed.sandbox(["run", "-q", "-d", "--unit", &unit, "--", "sleep", "1000"]).user().output().succeeded();
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let list = || bed.sandbox(["ps", "-q"]).timeout(Duration::from_secs(20)).output().succeeded().text();
    let both = list();
    assert!(both.contains(&unit) && both.contains(&scope), "{both}");
    let stopped = Stopped::manager();
    let one = list();
    assert!(one.contains(&scope) && !one.contains(&unit), "{one}");
    drop(stopped);
    assert!(list().contains(&unit));
    bed.sandbox(["stop", &unit]).output().succeeded();
}

fn names(bed: &Bed) {
    let name = bed.id().to_owned();
    let (_one, first) = bed.live(["--name", &name], "echo ready; exec cat");
    let (_two, second) = bed.live(["--name", &name], "echo ready; exec cat");
    let exec = |name: &str| bed.sandbox(["exec", name, "true"]).output();
    exec(&name).refused(125, [&first, &second]);
    exec(&first).succeeded();
    exec(first.trim_end_matches(".scope")).succeeded();
    let (_three, third) = bed.live(["--name", &format!("{name}-third")], "echo ready; exec cat");
    // The beginning of a name that somebody gave is another name.
    for command in ["exec", "stop", "kill", "rm", "wait"] {
        let words = [command, &format!("{name}-th"), "true"];
        let count = if command == "exec" { 3 } else { 2 };
        bed.sandbox(&words[..count]).output().refused(125, ["no sandbox"]);
    }
    exec(&third).succeeded();
    exec(&format!("{name}-none")).refused(125, ["no sandbox"]);
}

fn inspect(bed: &Bed) {
    let (running, scope) = bed.live(["-m", "64M", "-p", "KillMode=mixed"], "echo ready; exec cat");
    let report = json(bed, &["inspect", "--json", &scope]);
    assert_eq!(report["launcher"], running.pid());
    let stub = unit::only_child(bed, running.pid());
    assert_eq!(report["leader"], stub);
    assert_eq!(report["payload"], unit::children(stub)[0]);
    assert_eq!(report["cgroup"], format!("/{}/{scope}", bed.slice()));
    assert_eq!(report["plan"]["unit"]["name"], scope);
    let limits = report["limits"].as_array().unwrap();
    let memory = limits.iter().find(|limit| limit["asked"] == "--memory 64M").unwrap();
    assert_eq!(memory["limits"][0]["in_force"], "67108864");
    assert!(limits.iter().any(|limit| limit["asked"] == "KillMode=mixed" && limit["error"].is_null()), "{limits:?}");
    let given = report["given"].as_array().unwrap();
    let property = given.iter().find(|given| given["key"] == "property").unwrap();
    assert_eq!((&property["value"], &property["from"]), (&"KillMode=mixed".into(), &"command line".into()));
    let text = bed.sandbox(["inspect", &scope]).output().succeeded().text();
    assert!(text.contains("given         memory 64M (command line)"), "{text}");
    assert!(text.contains("in force      --memory 64M: ") && text.contains("67108864"), "{text}");
}

/// A launcher that is stopped at once has not written down what was decided: the rest is told all the same.
fn inspect_undecided(bed: &Bed) {
    let (running, scope) = bed.live([""; 0], "echo ready; exec cat");
    assert!(json(bed, &["inspect", "--json", &scope])["plan"]["unit"].is_object());
    running.signal(Signal::STOP);
    let file = state_file(&scope);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.lines().next().unwrap()).unwrap();
    let report = json(bed, &["inspect", "--json", &scope]);
    assert!(report["plan"].is_null() && report["launcher"] == running.pid(), "{report}");
    let text = bed.sandbox(["inspect", &scope]).output().succeeded().text();
    assert!(text.contains("decided       not written down yet: its launcher is stopped"), "{text}");
    running.signal(Signal::CONT);
}

fn stats(bed: &Bed) {
    let (_running, scope) = bed.live(["-m", "64M", "--cpu-shares=512"], "echo ready; exec cat");
    let rows = json(bed, &["stats", "--json", &scope]);
    assert_eq!(rows[0]["unit"], scope);
    assert!(rows[0]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{rows}");
    assert_eq!(rows.as_array().map(Vec::len), Some(1));
    let mut live = bed.sandbox(["stats", "--follow", &scope]).spawn();
    live.wait_for("NAME");
    live.wait_for(&scope);
    live.signal(Signal::TERM);
    live.finish();
}

fn wait(bed: &Bed) {
    for (script, status) in [("exit 7", "7"), ("kill -KILL $$", "137")] {
        let (mut running, scope) = bed.live([""; 0], &format!("echo ready; cat; {script}"));
        let waiting = bed.sandbox(["wait", &scope]).spawn();
        // It has found the sandbox when it waits for the launcher's end.
        let files = format!("/proc/{}/fd", waiting.pid());
        bed.poll("the wait", || {
            let mut open = fs::read_dir(&files).into_iter().flatten().flatten();
            open.any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path.to_string_lossy().contains("pidfd")))
        });
        running.close_stdin();
        assert_eq!(waiting.finish().succeeded().text(), status.to_string());
        running.finish();
        assert!(!state_file(&scope).exists());
    }
    let failed = detached(bed, "f", &[], "exit 5");
    bed.poll("its failure", || unit::property(&failed, "ActiveState") == "failed");
    assert_eq!(bed.sandbox(["wait", &failed]).output().succeeded().text(), "5");
}

fn kill(bed: &Bed) {
    let script = "trap 'echo got one' USR1; echo ready; while :; do sleep 0.05; done";
    let (mut running, scope) = bed.live([""; 0], script);
    bed.sandbox(["kill", "-s", "USR1", &scope]).output().succeeded();
    running.wait_for("got one");
    bed.sandbox(["kill", "-s", "NOSUCH", &scope]).output().refused(125, ["NOSUCH"]);
    bed.sandbox(["kill", "-s", "KILL", &scope]).output().succeeded();
    assert_eq!(running.finish().status, 137);
    let (running, scope) = bed.live([""; 0], "echo ready; exec cat");
    bed.sandbox(["kill", "--all", &scope]).output().succeeded();
    assert_eq!(running.finish().status, 143);
}

fn pause_needs_cgroup2(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    for word in ["pause", "resume"] {
        bed.sandbox([word, &scope]).output().refused(125, [word, "cgroup v2"]);
    }
}

fn pause(bed: &Bed) {
    let (mut running, scope) = bed.live([""; 0], "echo ready; while read x; do echo $x; done");
    bed.sandbox(["pause", &scope]).output().succeeded();
    assert_eq!(listed(bed, &[], &scope).unwrap()["state"], "paused");
    bed.sandbox(["exec", &scope, "true"]).output().refused(125, ["paused"]);
    running.send("later\n");
    bed.sandbox(["resume", &scope]).output().succeeded();
    running.wait_for("later");
    assert_eq!(listed(bed, &[], &scope).unwrap()["state"], "running");
}

fn set_property(bed: &Bed) {
    let (_running, scope) = bed.live(["-m", "64M"], "echo ready; exec cat");
    let set = |words: &[&str]| bed.sandbox(["set-property", &scope]).args(words).output();
    set(&["MemoryMax=32M", "CPUShares=512"]).succeeded();
    let v2 = bed.facts.has(&crate::facts::need::cgroup2()).is_ok();
    let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!(unit::cgroup_file(&scope, "memory", file).as_deref(), Some("33554432"));
    let (file, value) = if v2 { ("cpu.weight", "50") } else { ("cpu.shares", "512") };
    assert_eq!(unit::cgroup_file(&scope, "cpu", file).as_deref(), Some(value));
    set(&["KillMode=mixed"]).refused(125, ["KillMode=mixed"]);
    set(&["MemoryMaxx=1G"]).refused(125, ["MemoryMaxx"]);
    if !v2 {
        set(&["AllowedCPUs=0"]).refused(125, ["AllowedCPUs=0", "cgroup v1"]);
    }
}

/// What the kernel does not take is set back, for `systemctl show` would tell it as if it were so, and no drop-in of our own is blamed.
fn set_property_refused(bed: &Bed) {
    let v2 = bed.facts.has(&crate::facts::need::cgroup2()).is_ok();
    let (_running, scope) = bed.live(["-m", "64M"], "head -c 20M /dev/zero >/tmp/held; echo ready; exec cat");
    // Before v2 the kernel refuses a limit below what is in use; with it only CPUs that are not there remain to ask for.
    let (asked, property) = if v2 { ("AllowedCPUs=999", "AllowedCPUs") } else { ("MemoryMax=8M", "MemoryLimit") };
    let before = unit::property(&scope, property);
    let refused = bed.sandbox(["set-property", &scope, asked]).output().refused(125, [asked, "is not in force"]);
    assert!(!refused.errors().contains("drop-in"), "{}", refused.errors());
    assert_eq!(unit::property(&scope, property), before);
    assert_eq!(unit::property(&scope, "MemoryMax"), "67108864");
}

/// A quota is what it leaves of a CPU: the unit's period need not be that of systemd.
fn set_property_of_another_period(bed: &Bed) {
    let (_running, scope) = bed.live(["--cpu-quota", "20000", "--cpu-period", "50000"], "echo ready; exec cat");
    bed.sandbox(["set-property", &scope, "CPUQuota=50%"]).output().succeeded();
    assert_eq!(unit::property(&scope, "CPUQuotaPerSecUSec"), "500ms");
}

fn rm(bed: &Bed) {
    let failed = detached(bed, "f", &[], "exit 5");
    bed.poll("its failure", || unit::property(&failed, "ActiveState") == "failed");
    bed.sandbox(["rm", &failed]).output().succeeded();
    assert!(unit::is_gone(&failed));
    let running = detached(bed, "r", &[], "exec sleep 1000");
    bed.sandbox(["rm", &running]).output().refused(125, ["running"]);
    bed.sandbox(["rm", "-f", &running]).output().succeeded();
    assert!(unit::is_gone(&running));
    bed.sandbox(["rm", &running]).output().refused(125, [&running]);
}

/// One that failed is found by the name it was given, until `rm` or the next start of that name.
fn failed_by_name(bed: &Bed) {
    let name = format!("{}-n", bed.id());
    let start = |script: &str| {
        let run = bed.sandbox(["run", "--detach", "--name", &name, "--", "sh", "-c", script]).output().succeeded();
        let unit = run.text();
        assert!(unit.starts_with(&format!("sandbox-{name}-")), "{unit}");
        unit
    };
    let first = start("echo gone wrong >&2; exit 5");
    bed.poll("its failure", || unit::property(&first, "ActiveState") == "failed");
    assert_eq!(listed(bed, &["-a"], &first).unwrap()["name"], name.as_str());
    assert_eq!(bed.sandbox(["wait", &name]).output().succeeded().text(), "5");
    assert!(bed.sandbox(["logs", &name]).output().succeeded().text().contains("gone wrong"));
    let second = start("exec sleep 1000");
    assert!(unit::is_gone(&first), "the next start of the name takes its place");
    assert!(!unit::is_gone(&second));
    bed.sandbox(["rm", "--force", &name]).output().succeeded();
    assert!(unit::is_gone(&second));
}

fn logs(bed: &Bed) {
    let unit = detached(bed, "a", &[], "echo one; echo two; exec sleep 1000");
    let read = |words: &[&str]| bed.sandbox(["logs"]).args(words).output().succeeded().text();
    bed.poll("its lines", || read(&[&unit]).contains("two"));
    assert!(read(&[&unit]).contains("one"));
    // systemd's own line about the start may come after the unit's (seen on 262), so the last is not known beforehand.
    bed.poll("the last line alone", || {
        let last = read(&["-n1", &unit]);
        let whole = read(&[&unit]);
        lines(&last).count() == 1 && lines(&whole).count() > 1 && lines(&last).last() == lines(&whole).last()
    });
    bed.sandbox(["stop", &unit]).output().succeeded();
    assert!(read(&[&unit]).contains("two"), "when it is over, too");
    // Also by the name alone, of one whose unit was called after it.
    let name = format!("{}n", bed.id());
    bed.sandbox(["run", "--detach", "--name", &name, "--", "echo", "said"]).output().succeeded();
    bed.poll("its line", || {
        let outcome = bed.sandbox(["logs", &name]).output();
        outcome.status == 0 && outcome.text().contains("said")
    });
    bed.sandbox(["logs", "-f", "never-there"]).output().refused(125, ["never-there"]);
}

/// Without the head that journalctl writes before 250.
fn lines(journal: &str) -> impl DoubleEndedIterator<Item = &str> {
    journal.lines().filter(|line| !line.starts_with("-- "))
}

/// Writers that are gone before journald looks at them are under the unit all the same.
fn log_journal(bed: &Bed) {
    let name = bed.unit();
    let script = "for i in $(seq 50); do sh -c \"echo line $i.\" & done; wait; echo problem >&2";
    let outcome = bed.run(["--log=journal", &format!("--unit={name}")], script).output().succeeded();
    assert_eq!((outcome.text(), outcome.errors()), (String::new(), String::new()));
    let script = format!("journalctl --sync; journalctl -u {name}.scope _TRANSPORT=stdout -o cat");
    let text = bed.sh(&script).output().succeeded().text();
    for line in 1..=50 {
        assert!(text.lines().any(|found| found == format!("line {line}.")), "line {line} is not there: {text}");
    }
    let errors = bed.command("journalctl", ["-u", &format!("{name}.scope"), "-p", "err", "-o", "cat"]).output();
    assert_eq!(errors.succeeded().text(), "problem");
}

fn log_journal_terminal(bed: &Bed) {
    let name = bed.unit();
    let script = "printf '\\033[1mbold\\033[0m\\nlast'";
    let shown =
        bed.run(["-t", "--log=journal", &format!("--unit={name}")], script).pty(24, 80).output().succeeded().text();
    assert!(shown.contains("bold") && shown.contains("last"), "{shown}");
    let script = format!("journalctl --sync; journalctl -u {name}.scope -o cat");
    let text = bed.sh(&script).output().succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&"bold") && lines.contains(&"last"), "{text}");
}
