//! The seed's workflow, step by step, as a sysadmin goes through it: start, look with systemd's tools, change a limit, stop.

use crate::bed::Bed;
use crate::command::Running;
use crate::{Test, test, unit};
use std::fs;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("workflow/started", needs![root, systemd], started),
        test("workflow/systemds_own_eyes", needs![root, systemd], systemds_own_eyes),
        test("workflow/limits_v1", needs![root, systemd, cgroup1], limits_v1),
        test("workflow/limits_v2", needs![root, systemd, cgroup2], limits_v2),
        test("workflow/set_property_v1", needs![root, systemd, cgroup1], set_property_v1),
        test("workflow/set_property_v2", needs![root, systemd, cgroup2], set_property_v2),
        test("workflow/stop", needs![root, systemd], stop),
    ]
}

/// `sandbox run --slice=test --unit=toptest -p CPUShares=600 -p MemoryMax=500M -- top -b`, under names of this test.
#[track_caller]
fn top(bed: &Bed) -> (Running, String) {
    let unit = bed.unit();
    // --slice as the seed types it, without the suffix.
    let slice = bed.slice();
    let slice = slice.trim_end_matches(".slice");
    let mut running = bed
        .sandbox([
            "run",
            "--slice",
            slice,
            "--unit",
            &unit,
            "-p",
            "CPUShares=600",
            "-p",
            "MemoryMax=500M",
            "--",
            "top",
            "-b",
            "-d",
            "0.5",
        ])
        .env("TERM", "dumb")
        .spawn();
    running.wait_for("COMMAND");
    running.wait_for(" top\n");
    (running, format!("{unit}.scope"))
}

/// It sees itself and the stub; from outside both are in the scope, the scope is in the slice.
fn started(bed: &Bed) {
    let (mut running, scope) = top(bed);
    // With as many spaces before the number as its version likes.
    running.wait_for(" 2 total, ");
    assert!(unit::is_active(&scope));
    let path = unit::property(&scope, "ControlGroup");
    assert_eq!(path, format!("/{}/{scope}", bed.slice()));
    let processes = unit::processes(&scope);
    assert_eq!(processes.len(), 2, "stub and payload: {processes:?}");
    assert!(!processes.contains(&running.pid()), "the launcher is not in the unit");
    let mut names: Vec<String> =
        processes.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap()).collect();
    names.sort();
    assert_eq!(names, ["sandbox\n", "top\n"]);
    for pid in processes {
        assert_eq!(unit::cgroup_of(pid, "").as_ref(), Some(&path), "in systemd's own hierarchy");
        for controller in ["cpu", "memory"] {
            assert_eq!(unit::cgroup_of(pid, controller).as_ref(), Some(&path), "in the hierarchy of {controller}");
        }
    }
}

fn systemds_own_eyes(bed: &Bed) {
    let (_running, scope) = top(bed);
    let tree = bed
        .command("systemd-cgls", ["--no-pager", "--full", "--unit", &bed.slice()])
        .env("LANG", "C.UTF-8")
        .output()
        .succeeded()
        .text();
    let lines: Vec<&str> = tree.lines().collect();
    let at = lines.iter().position(|line| line.contains(&scope)).unwrap_or_else(|| panic!("{scope} is not in\n{tree}"));
    assert!(
        lines[at..].iter().any(|line| line.trim_end().ends_with("top -b -d 0.5")),
        "the payload is not below its scope:\n{tree}"
    );
    let status = bed.command("systemctl", ["status", "--no-pager", "--full", &scope]).output().succeeded().text();
    for expected in ["active (running)", &format!("/{}/{scope}", bed.slice()), "top -b -d 0.5"] {
        assert!(status.contains(expected), "'{expected}' is not in\n{status}");
    }
    assert_eq!(unit::property(&scope, "Description"), "top -b -d 0.5");
    assert_eq!(unit::property(&scope, "Transient"), "yes");
    let listed =
        bed.command("systemctl", ["list-units", "--plain", "--no-legend", "--type=scope"]).output().succeeded().text();
    assert!(listed.contains(&scope), "{listed}");
}

#[track_caller]
fn expect(scope: &str, files: &[(&str, &str, &str)]) {
    for (controller, file, value) in files {
        assert_eq!(unit::cgroup_file(scope, controller, file).as_deref(), Some(*value), "{file} of {scope}");
    }
}

fn limits_v1(bed: &Bed) {
    let (_running, scope) = top(bed);
    expect(&scope, &[("cpu", "cpu.shares", "600"), ("memory", "memory.limit_in_bytes", "524288000")]);
}

fn limits_v2(bed: &Bed) {
    let (_running, scope) = top(bed);
    expect(&scope, &[("cpu", "cpu.weight", "58"), ("memory", "memory.max", "524288000")]);
}

/// What `systemctl set-property` wrote goes with the test, wherever this systemd keeps it.
struct Reverted<'a>(&'a Bed, &'a str);

impl Drop for Reverted<'_> {
    fn drop(&mut self) {
        self.0.command("systemctl", ["revert", self.1]).output();
    }
}

/// For now with `--runtime`, or as the seed types it for good.
fn set_property<'a>(bed: &'a Bed, scope: &'a str, flags: &[&str], properties: &[&str]) -> Reverted<'a> {
    let reverted = Reverted(bed, scope);
    bed.command("systemctl", ["set-property"]).args(flags).arg(scope).args(properties).output().succeeded();
    reverted
}

fn set_property_v1(bed: &Bed) {
    let (running, scope) = top(bed);
    let _now = set_property(bed, &scope, &["--runtime"], &["MemoryMax=300M", "CPUShares=512"]);
    expect(&scope, &[("cpu", "cpu.shares", "512"), ("memory", "memory.limit_in_bytes", "314572800")]);
    let _for_good = set_property(bed, &scope, &[], &["MemoryMax=200M", "CPUShares=256"]);
    expect(&scope, &[("cpu", "cpu.shares", "256"), ("memory", "memory.limit_in_bytes", "209715200")]);
    assert!(!running.stderr_so_far().contains("error"), "{}", running.stderr_so_far());
}

fn set_property_v2(bed: &Bed) {
    let (running, scope) = top(bed);
    let _now = set_property(bed, &scope, &["--runtime"], &["MemoryMax=300M", "CPUWeight=50", "TasksMax=33"]);
    expect(&scope, &[("cpu", "cpu.weight", "50"), ("memory", "memory.max", "314572800"), ("pids", "pids.max", "33")]);
    let _for_good = set_property(bed, &scope, &[], &["MemoryMax=200M", "CPUWeight=25", "TasksMax=34"]);
    expect(&scope, &[("cpu", "cpu.weight", "25"), ("memory", "memory.max", "209715200"), ("pids", "pids.max", "34")]);
    assert!(!running.stderr_so_far().contains("error"), "{}", running.stderr_so_far());
}

/// Launcher, payload, scope and cgroup are gone when `systemctl stop` has returned, or a moment later.
fn stop(bed: &Bed) {
    let (running, scope) = top(bed);
    let processes = unit::processes(&scope);
    let directory = unit::cgroup_dir(&scope, "memory");
    assert!(directory.is_dir());
    bed.command("systemctl", ["stop", &scope]).output().succeeded();
    assert!(unit::is_gone(&scope), "{scope} is {}", unit::property(&scope, "ActiveState"));
    bed.poll("the cgroup is gone", || !directory.exists());
    for pid in processes {
        bed.poll("its processes are gone", || !fs::exists(format!("/proc/{pid}")).unwrap());
    }
    // top ends by itself at SIGTERM.
    let outcome = running.finish();
    assert!(
        [0, 143].contains(&outcome.status) && outcome.signal.is_none(),
        "the launcher's status is {}",
        outcome.status
    );
    assert_eq!(unit::property(&scope, "LoadState"), "not-found", "a stopped scope is collected");
}
