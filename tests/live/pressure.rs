//! What limits do to a payload that goes for them.

use crate::bed::Bed;
use crate::{Test, test, unit};
use std::fs;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("pressure/fork_bomb", needs![root, systemd], fork_bomb),
        test("pressure/memory_bomb", needs![root, systemd], memory_bomb),
        test("pressure/memory_of_the_root", needs![root, systemd], memory_of_the_root),
        test("pressure/cpu_quota", needs![root, systemd], cpu_quota),
        test("pressure/oom_stop", needs![root, systemd, cgroup2, systemd_min(253)], oom_stop),
    ]
}

fn fork_bomb(bed: &Bed) {
    let script = "import os, time\nn = 0\nwhile n < 200:\n  try:\n    if os.fork() == 0: time.sleep(1000)\n    n += 1\n  except BlockingIOError:\n    break\nprint('ready', n, flush=True)\ninput()";
    let flags = ["-p", "TasksMax=20"];
    let (mut running, scope) = bed.live(flags, &format!("python3 -c \"{script}\""));
    // Stub, shell, python and its children.
    assert_eq!(running.stdout_so_far(), "ready 17\n");
    assert_eq!(unit::processes(&scope).len(), 20);
    assert_eq!(unit::cgroup_file(&scope, "pids", "pids.current").as_deref(), Some("20"));
    // The host can still fork, and the sandbox ends as a whole.
    bed.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do sleep 0.01 & done; wait")
        .output()
        .succeeded();
    running.send("\n");
    running.finish().succeeded();
    bed.poll("all are gone", || unit::is_gone(&scope));
}

/// Takes 400 MiB, all of it touched.
const BOMB: &str = "python3 -c 'b = bytearray(400 << 20)'";

fn without_swap(bed: &Bed) -> Vec<&'static str> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap();
    if bed.facts.cgroup2 && swaps.lines().count() > 1 { vec!["-p", "MemorySwapMax=0"] } else { Vec::new() }
}

fn memory_bomb(bed: &Bed) {
    let script = format!("sleep 1000 & {BOMB}; echo bomb $?; kill -0 $! && echo alive; exit 6");
    let flags = ["run", "--userns", "identity", "-p", "MemoryMax=64M"].into_iter().chain(without_swap(bed));
    let outcome = bed.sandbox(flags).arg("sh").arg("-c").arg(script).output().exited(6);
    assert_eq!(outcome.text(), "bomb 137\nalive", "the kernel killed the one, the others go on");
    let errors = outcome.errors();
    if bed.facts.cgroup2 {
        let said =
            errors.lines().filter(|line| line.starts_with("sandbox: ") && line.contains("out of memory")).count();
        assert_eq!(said, 1, "{errors}");
    }
    // The payload itself.
    let flags = ["-p", "MemoryMax=64M"].into_iter().chain(without_swap(bed));
    bed.run(flags, &format!("exec {BOMB}")).output().exited(137);
}

/// Files in memory count, so the root's writes cannot take the machine's.
fn memory_of_the_root(bed: &Bed) {
    let flags = ["-p", "MemoryMax=64M"].into_iter().chain(without_swap(bed));
    bed.run(flags, "exec head -c 400000000 /dev/zero > /tmp/big").output().exited(137);
    // Its own half of the machine's memory is no limit for the unit's.
    let flags = ["-p", "MemoryMax=64M", "--upper", "tmpfs:16M"].into_iter().chain(without_swap(bed));
    let outcome = bed.run(flags, "exec head -c 400000000 /dev/zero > /tmp/big").output();
    assert!(
        outcome.status == 1 && outcome.errors().contains("No space left"),
        "{} {}",
        outcome.status,
        outcome.errors()
    );
}

/// A payload that wants a whole CPU and may have a tenth is stopped again and again.
fn cpu_quota(bed: &Bed) {
    let throttled = |quota: &str| -> u64 {
        let spin = "import time\nwhile time.process_time() < 0.4: pass\nprint('ready', flush=True)\ninput()";
        let (mut running, scope) = bed.live(["-p", quota], &format!("exec python3 -c \"{spin}\""));
        let stat = unit::cgroup_file(&scope, "cpu", "cpu.stat").unwrap();
        running.send("\n");
        running.finish().succeeded();
        stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap().parse().unwrap()
    };
    assert!(throttled("CPUQuota=10%") >= 2);
    assert_eq!(throttled("CPUQuota=1000%"), 0);
}

fn oom_stop(bed: &Bed) {
    for (policy, status) in [("stop", 143), ("kill", 137)] {
        let flags = ["--oom", policy, "-p", "MemoryMax=64M"].into_iter().chain(without_swap(bed));
        let outcome = bed.run(flags, &format!("{BOMB}; sleep 1000")).output();
        assert_eq!(outcome.status, status, "--oom {policy}: {}", outcome.errors());
    }
}
