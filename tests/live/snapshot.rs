//! The state of the host, to be compared: what a sandbox must not change or leave.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// PID 1 opens and closes descriptors in the course of its work; a leak shows as more than this.
const PID1_SLACK: usize = 8;

/// What was there at one moment.
#[derive(Debug)]
pub(crate) struct HostState {
    mounts: BTreeSet<String>,
    units: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    run: BTreeSet<String>,
    pid1_fds: usize,
}

impl HostState {
    pub(crate) fn take() -> Self {
        Self {
            mounts: mounts(),
            units: units(),
            cgroups: directories("/sys/fs/cgroup"),
            run: run_files(),
            pid1_fds: pid1_fds(),
        }
    }

    /// A line for each thing that came or went since.
    pub(crate) fn changes(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (what, before, after) in [
            ("mount", &self.mounts, &later.mounts),
            ("unit", &self.units, &later.units),
            ("cgroup", &self.cgroups, &later.cgroups),
            ("file", &self.run, &later.run),
        ] {
            lines.extend(after.difference(before).map(|name| format!("+ {what} {name}")));
            lines.extend(before.difference(after).map(|name| format!("- {what} {name}")));
        }
        if later.pid1_fds > self.pid1_fds + PID1_SLACK {
            lines.push(format!("+ descriptors of PID 1: {} -> {}", self.pid1_fds, later.pid1_fds));
        }
        lines
    }
}

/// Whether a sandbox that nobody gave a unit of its own has one still: systemd collects it a moment after the end.
pub(crate) fn has_ended_ones() -> bool {
    directories("/sys/fs/cgroup").iter().any(|path| path.contains("/sandbox.slice/") && path.ends_with(".scope"))
}

/// Mount table lines without the mount's own number, which tells nothing.
fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    table.lines().map(|line| line.split(' ').skip(2).collect::<Vec<_>>().join(" ")).collect()
}

fn units() -> BTreeSet<String> {
    let list = Command::new("systemctl")
        .args(["list-units", "--all", "--plain", "--no-legend", "--type=scope,service,slice"])
        .output()
        .expect("systemctl");
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// All directories below `top`, itself not.
fn directories(top: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(Path::new(top), &mut |path, is_dir| {
        if is_dir {
            found.insert(path.to_owned());
        }
    });
    found
}

/// Everything in /run but for what the journal and logins write all the time.
fn run_files() -> BTreeSet<String> {
    const NOISE: [&str; 6] = [
        "/run/log/",
        "/run/systemd/journal/",
        "/run/user/",
        "/run/systemd/sessions/",
        "/run/udev/",
        "/run/systemd/users/",
    ];
    let mut found = BTreeSet::new();
    walk(Path::new("/run"), &mut |path, _| {
        if !NOISE.iter().any(|noise| path.starts_with(noise)) && !path.contains("/.#") {
            found.insert(path.to_owned());
        }
    });
    found
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&str, bool)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path().to_string_lossy(), is_dir);
        if is_dir {
            walk(&entry.path(), visit);
        }
    }
}

fn pid1_fds() -> usize {
    fs::read_dir("/proc/1/fd").map_or(0, Iterator::count)
}
