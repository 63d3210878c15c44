//! The eight namespaces: own by default, the host's with `--share`, and what each of them shows inside.

mod ranges;

use crate::bed::Bed;
use crate::{Test, alone, test, unit};
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

/// Their names for `--share` and in /proc/PID/ns.
const ALL: [(&str, &str); 8] = [
    ("mount", "mnt"),
    ("pid", "pid"),
    ("uts", "uts"),
    ("ipc", "ipc"),
    ("net", "net"),
    ("cgroup", "cgroup"),
    ("time", "time"),
    ("user", "user"),
];

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("namespaces/own_by_default", needs![root, systemd], own_by_default),
        test("namespaces/share_one", needs![root, systemd], share_one),
        test("namespaces/share_all", needs![root, systemd], share_all),
        test("namespaces/share_contradicted", needs![root, systemd], share_contradicted),
        test("namespaces/pid", needs![root, systemd], pid),
        test("namespaces/pid1_reaps", needs![root, systemd], pid1_reaps),
        test("namespaces/as_pid1", needs![root, systemd], as_pid1),
        test("namespaces/share_pid", needs![root, systemd], share_pid),
        test("namespaces/uts", needs![root, systemd], uts),
        test("namespaces/ipc", needs![root, systemd], ipc),
        test("namespaces/net", needs![root, systemd], net),
        test("namespaces/net_host", needs![root, systemd], net_host),
        test("namespaces/cgroup", needs![root, systemd], cgroup),
        test("namespaces/time", needs![root, systemd], time),
        test("namespaces/user_range", needs![root, systemd, idmap], user_range),
        test("namespaces/user_ranges_at_once", needs![root, systemd, idmap], user_ranges_at_once),
        test("namespaces/user_range_is_locked", needs![root, systemd, idmap], ranges::is_locked_for_nspawn),
        test("namespaces/user_range_avoids_accounts", needs![root, systemd, idmap], ranges::avoids_accounts),
        alone("namespaces/user_range_avoids_locks", needs![root, systemd, idmap], ranges::avoids_locks),
        test("namespaces/user_identity", needs![root, systemd], user_identity),
        test("namespaces/user_fallback", needs![root, systemd], user_fallback),
        test("namespaces/user_host", needs![root, systemd], user_host),
    ]
}

/// The number of a namespace, as `net:[4026531840]`.
fn of(pid: impl std::fmt::Display, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string()
}

/// Shows every namespace of the payload, one `name:[number]` a line.
const SHOW: &str = "for n in mnt pid uts ipc net cgroup time user; do readlink /proc/self/ns/$n; done";

fn own_by_default(bed: &Bed) {
    let (running, scope) = bed.live([""; 0], &format!("{SHOW}; echo ready; exec cat"));
    let text = running.stdout_so_far();
    let inside: Vec<&str> = text.lines().take(8).collect();
    // The payload is the newest process of the unit.
    let payload = unit::children(unit::only_child(bed, running.pid()))[0];
    assert!(unit::processes(&scope).contains(&payload));
    for ((_, name), shown) in ALL.iter().zip(inside) {
        assert_ne!(shown, of("self", name), "{name} is the host's");
        assert_eq!(shown, of(payload, name), "{name}, inside and outside");
    }
    running.finish().succeeded();
}

fn share_one(bed: &Bed) {
    for (shared, _) in ALL {
        let outcome = bed.run(["--share", shared], SHOW).output().succeeded();
        let text = outcome.text();
        for ((other, name), shown) in ALL.iter().zip(text.lines()) {
            assert_eq!(shown == of("self", name), *other == shared, "--share {shared}: {name} is {shown}");
        }
    }
}

fn share_all(bed: &Bed) {
    let all = ALL.map(|(name, _)| name).join(",");
    let text = bed.run(["--share", &all], SHOW).output().succeeded().text();
    let expected: Vec<String> = ALL.iter().map(|(_, name)| of("self", name)).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let text = bed.run(["--share", "uts", "--share", "ipc,time"], SHOW).output().succeeded().text();
    let shared: Vec<&str> = ALL
        .iter()
        .zip(text.lines())
        .filter(|((_, name), shown)| *shown == of("self", name))
        .map(|((_, name), _)| *name)
        .collect();
    assert_eq!(shared, ["uts", "ipc", "time"]);
}

fn share_contradicted(bed: &Bed) {
    bed.run(["--share", "mnt"], "true").output().refused(125, ["mnt", "mount"]);
    bed.run(["--share", "net", "--network", "none"], "true").output().refused(125, ["--network none", "--share net"]);
    bed.run(["--share", "pid", "--as-pid1"], "true").output().refused(125, ["--as-pid1"]);
    bed.run(["--share", "mount", "--bind", "/srv"], "true").output().refused(125, ["--share mount"]);
    bed.run(["--share", "user", "--userns", "auto"], "true").output().refused(125, ["--userns"]);
}

fn pid(bed: &Bed) {
    let script = "echo $$; cat /proc/1/comm; echo /proc/[0-9]*; echo ready; exec cat";
    let (running, scope) = bed.live([""; 0], script);
    assert_eq!(running.stdout_so_far(), "2\nsandbox\n/proc/1 /proc/2\nready\n", "the stub and the shell");
    let outside = unit::processes(&scope);
    let numbers = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap().to_owned();
        line.split_whitespace().last().unwrap().to_owned()
    };
    let mut inside: Vec<String> = outside.into_iter().map(numbers).collect();
    inside.sort();
    assert_eq!(inside, ["1", "2"], "the same processes, as their own namespace numbers them");
    running.finish().succeeded();
}

fn pid1_reaps(bed: &Bed) {
    // The grandchild is orphaned at once and ends a moment later; it must not stay as a zombie.
    let script = "sh -c 'sleep 0.1 & echo $!' > /tmp/pid; read p < /tmp/pid; while [ -e /proc/$p ]; do sleep 0.05; done; echo reaped";
    assert_eq!(bed.run([""; 0], script).output().succeeded().text(), "reaped");
}

fn as_pid1(bed: &Bed) {
    let (running, scope) = bed.live(["--as-pid1"], "echo $$; cat /proc/1/comm; echo ready; exec cat");
    assert_eq!(running.stdout_so_far(), "1\nsh\nready\n");
    // Its other child is outside the unit: it ends the payload when the launcher is gone.
    let [process] = unit::processes(&scope)[..] else { panic!("one process: {:?}", unit::processes(&scope)) };
    assert!(unit::children(running.pid()).contains(&process), "the launcher's own child");
    running.finish().succeeded();
}

/// With the host's process IDs: it sees others, still ends as a whole, and has the host's /proc.
fn share_pid(bed: &Bed) {
    let me = std::process::id();
    let script = format!("cat /proc/{me}/comm; setsid sleep 1000 & echo ready; read x; exit 4");
    let (mut running, scope) = bed.live(["--share", "pid"], &script);
    assert!(running.stdout_so_far().starts_with(fs::read_to_string("/proc/self/comm").unwrap().as_str()));
    let processes = unit::processes(&scope);
    assert_eq!(processes.len(), 3, "{processes:?}");
    running.send("\n");
    running.finish().exited(4);
    bed.poll("the scope is gone, with what the payload left", || unit::is_gone(&scope));
    for pid in processes {
        bed.poll("all gone", || !fs::exists(format!("/proc/{pid}")).unwrap());
    }
}

fn uts(bed: &Bed) {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let show = "hostname; cat /proc/sys/kernel/hostname /etc/hostname; grep -c \"[[:space:]]$(hostname)$\" /etc/hosts";
    let text = bed.run(["--hostname", "Web-1.example"], show).output().succeeded().text();
    assert_eq!(text, "Web-1.example\nWeb-1.example\nWeb-1.example\n1");
    assert_eq!(bed.run(["--name", "box"], "hostname").output().succeeded().text(), "box");
    assert_eq!(bed.run([""; 0], "hostname").output().succeeded().text(), "sh", "the command's name");
    bed.run(["--hostname=-x"], "true").output().refused(125, ["--hostname"]);
    assert_eq!(bed.run(["--share", "uts"], "hostname").output().succeeded().text(), before.trim_end());
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before, "the host's own name");
}

fn ipc(bed: &Bed) {
    let made = bed.command("ipcmk", ["-M", "4096"]).output().succeeded().text();
    let id = made.rsplit(' ').next().unwrap().to_owned();
    let outside = bed.run(["--share", "ipc"], "ipcs -m").output().succeeded().text();
    let inside =
        bed.run([""; 0], "ipcs -m; ipcmk -M 4096 > /dev/null; ipcs -m | grep -c 4096").output().succeeded().text();
    bed.command("ipcrm", ["-m", &id]).output().succeeded();
    assert!(outside.contains(" 4096 "), "the host's segment is there with --share ipc: {outside}");
    assert!(inside.ends_with("\n1"), "only its own segment: {inside}");
    assert!(bed.run([""; 0], "mount | grep -c 'mqueue on /dev/mqueue'").output().succeeded().text() == "1");
}

fn net(bed: &Bed) {
    let show = "ls /sys/class/net; cat /sys/class/net/lo/flags; cat /proc/net/dev | wc -l";
    let text = bed.run([""; 0], show).output().succeeded().text();
    assert_eq!(text, "lo\n0x9\n3", "lo alone, up and a loopback");
    let talk = "import socket; s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(); c=socket.create_connection(s.getsockname()); print('connected')";
    assert_eq!(
        bed.sandbox(["run", "-q", "--network", "none", "python3", "-c", talk]).output().succeeded().text(),
        "connected"
    );
}

fn net_host(bed: &Bed) {
    let outside = fs::read_to_string("/proc/self/net/dev").unwrap();
    let interfaces = |text: &str| {
        text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect::<BTreeSet<_>>()
    };
    for flags in [["--network", "host"], ["--net", "host"], ["--share", "net"]] {
        let inside = bed
            .run(flags, "cat /proc/net/dev; test -d /sys/class/net/lo && ! touch /sys/x 2>/dev/null")
            .output()
            .succeeded()
            .text();
        assert_eq!(interfaces(&inside), interfaces(&outside), "{flags:?}");
    }
}

fn cgroup(bed: &Bed) {
    let text = bed.run([""; 0], "cat /proc/self/cgroup").output().succeeded().text();
    for line in text.lines() {
        // v1 hierarchies that systemd keeps no units in show the caller's place as the root, too.
        assert!(line.ends_with(":/"), "the unit is the root of what is seen: {line}");
    }
    let script = "grep -c . /proc/self/cgroup; ls /sys/fs/cgroup; echo ready; exec cat";
    let (running, scope) = bed.live(["-p", "TasksMax=77"], script);
    if bed.facts.cgroup2 {
        let shown = running.stdout_so_far();
        assert!(shown.contains("cgroup.procs\n") && shown.contains("pids.max\n"), "{shown}");
        let (running, _) = bed
            .live(["-p", "TasksMax=78"], "cat /sys/fs/cgroup/pids.max; echo 5 > /sys/fs/cgroup/pids.max || echo ready");
        assert!(
            running.stdout_so_far().starts_with("78\nready"),
            "its own limits, read-only: {}",
            running.stdout_so_far()
        );
    }
    assert_eq!(unit::cgroup_file(&scope, "pids", "pids.max").as_deref(), Some("77"));
}

fn time(bed: &Bed) {
    let monotonic = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    let started = Instant::now();
    let before = monotonic();
    let script = "import time; print(int(time.clock_gettime(time.CLOCK_BOOTTIME))); print(int(time.monotonic())); \
        print(int(float(open('/proc/uptime').read().split()[0])))";
    let text = bed.sandbox(["run", "-q", "python3", "-c", script]).output().succeeded().text();
    let numbers: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let ours = i64::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!((0..=ours).contains(&numbers[0]), "the boot-time clock starts at 0: {text}");
    assert!((0..=ours).contains(&numbers[2]), "/proc/uptime starts at 0: {text}");
    assert!((before..=monotonic()).contains(&numbers[1]), "the monotonic clock is the host's: {text}");
    let text = bed.run(["--share", "time"], "cut -d. -f1 /proc/uptime").output().succeeded().text();
    let host = fs::read_to_string("/proc/uptime").unwrap();
    let host: i64 = host.split('.').next().unwrap().parse().unwrap();
    assert!(host - text.parse::<i64>().unwrap() <= ours + 60, "with --share time the host's uptime");
}

fn map(text: &str) -> Vec<u64> {
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[track_caller]
fn check_range(map: &[u64]) -> u64 {
    assert!(map.len() == 3 && map[0] == 0 && map[2] == 65536, "{map:?}");
    assert!(map[1] >= 524_288 && map[1] + 65535 <= 1_879_048_191 && map[1].is_multiple_of(65536), "{map:?}");
    map[1]
}

fn user_range(bed: &Bed) {
    let script = "cat /proc/self/uid_map; id -u; stat -c %u:%g /etc/passwd; touch /srv/new; stat -c %u /srv/new; cat /proc/self/gid_map; echo ready; exec cat";
    let (running, scope) = bed.live([""; 0], script);
    let text = running.stdout_so_far();
    let lines: Vec<&str> = text.lines().collect();
    let base = check_range(&map(lines[0]));
    assert_eq!(lines[1..4], ["0", "0:0", "0"], "root inside owns the host's files and what it makes");
    assert_eq!(check_range(&map(lines[4])), base);
    for pid in unit::processes(&scope) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains(&format!("Uid:\t{base}\t{base}\t{base}\t{base}\n")), "outside it is nobody: {status}");
    }
    running.finish().succeeded();
}

fn user_ranges_at_once(bed: &Bed) {
    let count = crate::bed::at_once(50, 8);
    let mut running: Vec<_> =
        (0..count).map(|_| bed.run([""; 0], "cat /proc/self/uid_map; echo ready; exec cat").spawn()).collect();
    let mut bases = BTreeSet::new();
    for one in &mut running {
        one.wait_for("ready");
        let text = one.stdout_so_far();
        assert!(bases.insert(check_range(&map(text.lines().next().unwrap()))), "two sandboxes have one range");
    }
    for one in running {
        one.finish().succeeded();
    }
}

fn user_identity(bed: &Bed) {
    let outcome = bed.sandbox(["run", "--userns", "identity", "cat", "/proc/self/uid_map"]).output().succeeded();
    assert_eq!(map(&outcome.text()), [0, 0, 4_294_967_295]);
    assert_eq!(outcome.errors(), "", "what was asked for needs no warning");
    // Root of a namespace of its own: no capability reaches the host.
    let script = "readlink /proc/self/ns/user; ! hostname x 2>/dev/null || test \"$(hostname)\" = x";
    assert_ne!(bed.run(["--userns", "identity"], script).output().text(), of("self", "user"));
    // The launcher goes on as a sealed copy of its program, and has waited for what it had started before.
    let (running, _) = bed.live(["--userns", "identity"], "echo ready; exec cat");
    unit::only_child(bed, running.pid());
    running.finish().succeeded();
}

/// Where the kernel or the lower file system cannot map owners: one warning, unless --quiet; the same in --dry-run.
fn user_fallback(bed: &Bed) {
    let possible = bed.facts.has(&crate::facts::Need::Idmap).is_ok();
    let outcome = bed.sandbox(["run", "cat", "/proc/self/uid_map"]).output().succeeded();
    let dry = bed.sandbox(["run", "--dry-run", "true"]).output().succeeded();
    if possible {
        check_range(&map(&outcome.text()));
        assert_eq!(outcome.errors(), "");
        return;
    }
    assert_eq!(map(&outcome.text()), [0, 0, 4_294_967_295]);
    let errors = outcome.errors();
    assert!(
        errors.starts_with("sandbox: warning: user namespace falls back to identity") && errors.lines().count() == 1,
        "{errors}"
    );
    assert!(dry.text().contains("falls back to identity"), "{}", dry.text());
    assert_eq!(bed.run([""; 0], "true").output().succeeded().errors(), "", "--quiet");
}

fn user_host(bed: &Bed) {
    let outside = fs::read_to_string("/proc/self/uid_map").unwrap();
    for flags in [["--userns", "host"], ["--share", "user"]] {
        let text = bed
            .run(flags, "cat /proc/self/uid_map; readlink /proc/self/ns/user; stat -c %u /etc/passwd")
            .output()
            .succeeded()
            .text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(map(lines[0]), map(&outside));
        assert_eq!((lines[1], lines[2]), (of("self", "user").as_str(), "0"));
    }
}
