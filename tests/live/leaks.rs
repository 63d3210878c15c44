//! Nothing is left on the host: after many starts, failed ones, and ones that were killed at any moment.

use crate::bed::{self, Bed};
use crate::snapshot::HostState;
use crate::{Test, alone};
use rustix::process::Signal;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        alone("leaks/many_starts", needs![root, systemd], many_starts),
        alone("leaks/failed_starts", needs![root, systemd], failed_starts),
        alone("leaks/killed_starts", needs![root, systemd], killed_starts),
        alone("leaks/interrupted_starts", needs![root, systemd], interrupted_starts),
        alone("leaks/stopped_units", needs![root, systemd], stopped_units),
    ]
}

/// 200 at native speed, a tenth under emulation.
fn many(native: u32) -> u32 {
    if bed::patience(Duration::from_secs(1)) > Duration::from_secs(1) { native / 10 } else { native }
}

/// The host after the first start, which makes the slice and the directory of locks.
fn settled(bed: &Bed) -> HostState {
    bed.run(["--slice", &bed.slice()], "true").output().succeeded();
    bed.run([""; 0], "true").output().succeeded();
    bed.poll("the first ones are collected", || {
        let left = bed
            .command("systemctl", ["list-units", "--all", "--plain", "--no-legend", "--type=scope", "sandbox-*"])
            .output();
        left.text().is_empty()
    });
    // What earlier tests left for the next look to remove.
    bed.sandbox(["ps", "-q"]).output().succeeded();
    HostState::take()
}

fn many_starts(bed: &Bed) {
    let before = settled(bed);
    let flags = ["--slice", &bed.slice(), "-p", "MemoryMax=100M", "--tmpfs", "/mnt/x", "--bind", "/usr/share:/mnt/y"];
    for number in 0..many(200) {
        let status = i32::try_from(number % 3).unwrap();
        bed.run(flags, &format!("echo x > /etc/x; sleep 1000 & exit {status}")).output().exited(status);
    }
    bed.nothing_left(&before);
}

fn failed_starts(bed: &Bed) {
    let before = settled(bed);
    let root = bed.disk_dir();
    let failing: [(&[&str], i32); 12] = [
        (&["/no/such"], 127),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
        (&["/etc"], 126),
        (&["--as-pid1", "/no/such"], 127),
        (&["-t", "/no/such"], 127),
        (&["-p", "MemoryMax=lots", "true"], 125),
        (&["--bind", "/no/such", "true"], 125),
        (&["--rootfs", "/no/such", "true"], 125),
        (&["--rootfs", root.to_str().unwrap(), "true"], 127),
        (&["--working-directory", "/no/such", "true"], 125),
        (&["--uid", "no-such-user", "true"], 125),
    ];
    for _ in 0..many(10).max(2) {
        for (words, status) in failing {
            bed.sandbox(["run", "-q"]).args(words).output().exited(status);
        }
        // Refused by the launcher while systemd works, on machines whose root may not lower it.
        let outcome = bed.run(["-p", "OOMScoreAdjust=-999"], "true").output();
        assert!([0, 125].contains(&outcome.status), "{}", outcome.errors());
        // Refused by systemd itself, and by the kernel when all else was done.
        bed.run(["-p", "Slice=x.service"], "true").output().exited(125);
        bed.run(["--bind", "/usr:/etc/passwd"], "true").output().exited(125);
        bed.run(["--bind", "/etc/passwd:/usr"], "true").output().exited(125);
    }
    bed.nothing_left(&before);
}

/// SIGKILL of the launcher at moments spread over a whole start.
fn killed_starts(bed: &Bed) {
    let before = settled(bed);
    at_moments(bed, Signal::KILL);
    // A child whose launcher died before it asked for the unit waits a moment for it. Names of locks stay for the next starts to
    // find unlocked: each removes a few. Their state files go when somebody looks.
    bed.nothing_left_after(&before, || {
        bed.sandbox(["ps", "-q"]).output().succeeded();
        bed.run(["--slice", &bed.slice()], "true").output().succeeded();
    });
}

fn interrupted_starts(bed: &Bed) {
    let before = settled(bed);
    at_moments(bed, Signal::TERM);
    bed.nothing_left(&before);
}

fn at_moments(bed: &Bed, signal: Signal) {
    let whole = bed.run([""; 0], "true").output().succeeded().took;
    let flags = ["--slice", &bed.slice(), "--tmpfs", "/mnt/x", "-p", "TasksMax=50"];
    for moment in 0..20 {
        let running = bed.run(flags, "exec sleep 1000").spawn();
        // Not to wait for something: the moment itself is what is tested.
        std::thread::sleep(whole * moment / 16);
        running.signal(signal);
        let status = running.finish().status;
        let number = signal.as_raw();
        assert_eq!(status, 128 + number, "at {moment}/16 of a start");
    }
}

fn stopped_units(bed: &Bed) {
    let before = settled(bed);
    for flags in [&[][..], &["--as-pid1", "-p", "TimeoutStopSec=1"], &["-t"], &["--share", "pid"]] {
        let (running, scope) = bed.live(flags, "sleep 1000 & echo ready; sleep 1000");
        bed.command("systemctl", ["stop", &scope]).output().succeeded();
        assert_ne!(running.finish().status, 0);
    }
    bed.nothing_left(&before);
}
