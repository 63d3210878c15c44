//! Units and cgroups as seen from outside.

use crate::bed::Bed;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("systemctl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Some properties of a unit, as `systemctl show` prints them. A unit that is not loaded has them too, with `LoadState=not-found`.
#[allow(dead_code, reason = "helpers are here before the tests that use them")]
pub(crate) fn properties(unit: &str, names: &[&str]) -> BTreeMap<String, String> {
    let shown = systemctl(&["show", unit, "-p", &names.join(",")]);
    shown
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

pub(crate) fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", unit, "-p", name, "--value"]).trim_end().to_owned()
}

pub(crate) fn is_active(unit: &str) -> bool {
    property(unit, "ActiveState") == "active"
}

/// Whether systemd no longer knows it: a collected unit.
pub(crate) fn is_gone(unit: &str) -> bool {
    property(unit, "LoadState") == "not-found" || property(unit, "ActiveState") == "inactive"
}

/// Where `controller` (memory, cpu, pids …; "" for systemd's own tracking hierarchy) is mounted.
fn hierarchy(controller: &str) -> PathBuf {
    let top = Path::new("/sys/fs/cgroup");
    match controller {
        _ if top.join("cgroup.controllers").exists() => top.to_owned(),
        "" if top.join("unified").exists() => top.join("unified"),
        "" => top.join("systemd"),
        _ => top.join(controller),
    }
}

/// Whether there is a unified hierarchy, whose cgroup.events tell systemd of a unit's end. With cgroup v1 alone it looks itself.
pub(crate) fn hears_of_ends_by_the_kernel() -> bool {
    ["cgroup.controllers", "unified"].iter().any(|name| Path::new("/sys/fs/cgroup").join(name).exists())
}

/// The directory of a unit's cgroup in the hierarchy of a controller; on cgroup v2 it is the same for all.
pub(crate) fn cgroup_dir(unit: &str, controller: &str) -> PathBuf {
    let path = property(unit, "ControlGroup");
    assert!(!path.is_empty(), "{unit} has no cgroup");
    hierarchy(controller).join(path.trim_start_matches('/'))
}

/// One file of a unit's cgroup: `cgroup_file("x.scope", "memory", "memory.max")`, v1: `"memory.limit_in_bytes"`. None if it is not there.
pub(crate) fn cgroup_file(unit: &str, controller: &str, file: &str) -> Option<String> {
    Some(fs::read_to_string(cgroup_dir(unit, controller).join(file)).ok()?.trim_end().to_owned())
}

/// The path of a process in the hierarchy of a controller ("" for systemd's own, on v1 too), from /proc/PID/cgroup.
pub(crate) fn cgroup_of(pid: u32, controller: &str) -> Option<String> {
    let v2 = hierarchy("memory").join("cgroup.controllers").exists();
    let wanted = if controller.is_empty() { "name=systemd" } else { controller };
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let found = if v2 { controllers.is_empty() } else { controllers.split(',').any(|name| name == wanted) };
        found.then(|| path.to_owned())
    })
}

/// The processes of a unit, as pids of this machine, those of cgroups below it too.
pub(crate) fn processes(unit: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let mut todo = vec![cgroup_dir(unit, "")];
    while let Some(dir) = todo.pop() {
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(pids.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    found
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |child: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    all.filter(|child| parent(*child) == Some(pid)).collect()
}

/// The one process whose parent is `pid`, once what made the root and was killed has been waited for.
pub(crate) fn only_child(bed: &Bed, pid: u32) -> u32 {
    let mut found = Vec::new();
    bed.poll("one child", || {
        found = children(pid);
        found.len() == 1
    });
    found[0]
}

/// Ends every scope, service and slice with `id` in its name; for the end of a test, so it fails nothing.
pub(crate) fn stop_all_named(id: &str) {
    // The next character tells test 2 from test 24.
    let listed = systemctl(&["list-units", "--all", "--plain", "--no-legend", &format!("*{id}[!0-9]*")]);
    let units: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    if units.is_empty() {
        return;
    }
    for verb in [&["kill", "-s", "KILL"][..], &["stop"], &["reset-failed"]] {
        let _ = Command::new("systemctl").args(verb).args(&units).output();
    }
}
