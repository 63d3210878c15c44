//! What the payload may not do: privileges, capabilities, descriptors, the kernel.

use crate::bed::{self, Bed};
use crate::{Test, test, unit};
use std::path::Path;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("confinement/no_new_privs", needs![root, systemd], no_new_privs),
        test("confinement/capabilities", needs![root, systemd], capabilities),
        test("confinement/capabilities_of_the_caller", needs![root, systemd], capabilities_of_the_caller),
        test("confinement/bounded_caller", needs![root, systemd], bounded_caller),
        test("confinement/capabilities_of_a_user", needs![root, systemd], capabilities_of_a_user),
        test("confinement/cap_add_and_drop", needs![root, systemd], cap_add_and_drop),
        test("confinement/ambient", needs![root, systemd], ambient),
        test("confinement/device", needs![root, systemd], device),
        test("confinement/device_of_a_user", needs![root, systemd, user_manager, kernel_min(5, 11)], device_of_a_user),
        test("confinement/device_policy", needs![root, systemd], device_policy),
        test("confinement/landlock", needs![root, systemd], landlock),
        test("confinement/hidepid", needs![root, systemd], hidepid),
        test("confinement/masked", needs![root, systemd], masked),
        test("confinement/files-of-root", needs![root, systemd], files_of_root),
        test("confinement/descriptors", needs![root, systemd], descriptors),
        test("confinement/forbidden", needs![root, systemd], forbidden),
        test("confinement/host_processes", needs![root, systemd], host_processes),
        test("confinement/sessions", needs![root, systemd], sessions),
    ]
}

const STATUS: &str = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -d '\\t'";

fn no_new_privs(bed: &Bed) {
    for flags in [&[][..], &["--as-pid1"], &["--uid", "33"], &["--userns", "host"], &["-t"]] {
        let text = bed.run(flags, "grep NoNewPrivs /proc/self/status").output().succeeded().text();
        assert_eq!(text.split_whitespace().last(), Some("1"), "{flags:?}: {text}");
    }
    // A program that would become root does not.
    let text = bed.run(["--uid", "33", "--userns", "host"], "su -c id root < /dev/null 2>&1; id -u").output().text();
    assert!(text.ends_with("\n33") || text == "33", "{text}");
}

/// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT SETFCAP
const DEFAULT: &str = "00000000800425fb";

fn capabilities(bed: &Bed) {
    for flags in [&[][..], &["--as-pid1"], &["--userns", "host"], &["--userns", "identity"]] {
        let text = bed.run(flags, STATUS).output().succeeded().text();
        let expected = format!(
            "CapInh:0000000000000000\nCapPrm:{DEFAULT}\nCapEff:{DEFAULT}\nCapBnd:{DEFAULT}\nCapAmb:0000000000000000\nNoNewPrivs:1"
        );
        assert_eq!(text, expected, "{flags:?}");
    }
}

/// What the caller's process hands on by inheritance ends here.
fn capabilities_of_the_caller(bed: &Bed) {
    let program = bed::sandbox_binary();
    let run = [
        program.to_str().unwrap(),
        "run",
        "-q",
        "--userns",
        "host",
        "grep",
        "-E",
        "^Cap(Inh|Amb)",
        "/proc/self/status",
    ];
    let caller = bed.command("setpriv", ["--inh-caps", "+chown,+sys_admin", "--ambient-caps", "+chown,+sys_admin"]);
    let text = caller.args(run).output().succeeded().text();
    let sets: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(sets, ["0000000000000000"; 2], "{text}");
}

/// Root in a service or a container that may do less starts one all the same: without the rights to change its root directory, as entering
/// a mount namespace takes, and to look into a process that has become another user.
fn bounded_caller(bed: &Bed) {
    let program = bed::sandbox_binary();
    // Often, since it may depend on how far the child has got.
    for set in ["-sys_chroot", "-sys_ptrace", "-sys_chroot,-sys_ptrace"].repeat(6) {
        let caller = bed.command("setpriv", ["--bounding-set", set, program.to_str().unwrap()]);
        let shown = caller.args(["run", "-q", "sh", "-c", "touch /x && cat /etc/hostname"]).output().succeeded();
        assert_eq!(shown.text(), "sh", "{set}");
    }
}

fn capabilities_of_a_user(bed: &Bed) {
    let none = "0000000000000000";
    let text = bed.run(["--uid", "33"], STATUS).output().succeeded().text();
    assert_eq!(
        text,
        format!("CapInh:{none}\nCapPrm:{none}\nCapEff:{none}\nCapBnd:{DEFAULT}\nCapAmb:{none}\nNoNewPrivs:1")
    );
}

fn cap_add_and_drop(bed: &Bed) {
    let effective = |flags: &[&str]| {
        let text = bed.run(flags, "grep -E '^Cap(Eff|Bnd)' /proc/self/status").output().succeeded().text();
        let sets: Vec<u64> = text
            .lines()
            .map(|line| u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap())
            .collect();
        assert_eq!(sets[0], sets[1], "{flags:?}: what it has and what it could have");
        sets[0]
    };
    let default = u64::from_str_radix(DEFAULT, 16).unwrap();
    assert_eq!(effective(&["--cap-add", "SYS_NICE"]), default | 1 << 23);
    assert_eq!(effective(&["--cap-add", "cap_net_admin,SYS_PTRACE"]), default | 1 << 12 | 1 << 19);
    assert_eq!(effective(&["--cap-drop", "NET_RAW", "--cap-drop", "CAP_KILL"]), default & !(1 << 13) & !(1 << 5));
    assert_eq!(effective(&["--cap-drop", "ALL"]), 0);
    assert_eq!(effective(&["--cap-drop", "all", "--cap-add", "CHOWN"]), 1);
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    assert_eq!(effective(&["--cap-add", "ALL"]), (1 << (last + 1)) - 1);
    bed.run(["--cap-add", "FLY"], "true").output().refused(125, ["--cap-add FLY"]);
    // It does what it says.
    assert_ne!(bed.run(["--cap-drop", "CHOWN"], "touch /tmp/f; chown 5 /tmp/f").output().status, 0);
    bed.run(["--cap-add", "NET_ADMIN"], "ip link add d0 type dummy || ip link set lo down").output().succeeded();
    assert_ne!(bed.run([""; 0], "ip link set lo down").output().status, 0);
}

/// Capabilities of a user other than root, in that user's programs and the programs that they start.
fn ambient(bed: &Bed) {
    let flags = ["--uid", "33", "--cap-add", "NET_ADMIN", "--cap-ambient", "NET_ADMIN,KILL"];
    let mask = format!("{:016x}", 1_u64 << 12 | 1 << 5);
    let text = bed.run(flags, STATUS).output().succeeded().text();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(text.contains(&format!("{set}:{mask}")), "{text}");
    }
    bed.run(flags, "ip link set lo down").output().succeeded();
    let (running, unit) = bed.live(flags, "echo ready; exec sleep 1000");
    let text = bed.sandbox(["exec", &unit, "sh", "-c", STATUS]).output().succeeded().text();
    assert!(text.contains(&format!("CapAmb:{mask}")), "{text}");
    drop(running);
    // Root needs none of it, and has all the rest as ever.
    let text = bed.run(["--cap-ambient", "KILL"], STATUS).output().succeeded().text();
    assert!(text.contains(&format!("CapEff:{DEFAULT}")) && text.contains("CapAmb:0000000000000020"), "{text}");
    bed.run(["--cap-ambient", "SYS_TIME"], "true").output().refused(125, ["--cap-ambient SYS_TIME"]);
}

/// /dev/kmsg stands for any device: every machine has it, no sandbox has it without being asked.
fn device(bed: &Bed) {
    bed.run([""; 0], "ls /dev/kmsg /dev/fuse").output().exited(2);
    for userns in ["auto", "identity", "host"] {
        let flags = ["--userns", userns, "--device", "/dev/kmsg", "--device", "/dev/full:/dev/other/place:r"];
        let script = "stat -c '%F %u:%g %t,%T' /dev/kmsg /dev/other/place; stat -c %a /dev/other/place; echo sandbox test > /dev/kmsg && echo written; \
                      ls -l /proc/self/mountinfo > /dev/null; grep -c ' /dev/kmsg ' /proc/self/mountinfo";
        let text = bed.run(flags, script).output().succeeded().text();
        let expected = "character special file 0:0 1,b\ncharacter special file 0:0 1,7\n666\nwritten\n1";
        assert_eq!(text, expected, "--userns {userns}");
    }
    for wrong in [
        "/dev/no-such",
        "/dev",
        "/etc/passwd",
        "/dev/kmsg:rx",
        "/dev/kmsg:rr",
        "/dev/kmsg:x:y:z",
        "kmsg",
        "/dev/kmsg::",
    ] {
        bed.run(["--device", wrong], "true").output().refused(125, [&format!("--device {wrong}")]);
    }
}

fn device_of_a_user(bed: &Bed) {
    // /dev/full is one that everybody may open, here under another name.
    let run = bed.sandbox(["run", "-q", "--device", "/dev/full:/dev/mine", "sh", "-c", "head -c 3 /dev/mine | wc -c"]);
    assert_eq!(run.user().output().succeeded().text(), "3");
}

/// The unit knows of the devices, so that nothing that systemd does later takes them away or opens others.
fn device_policy(bed: &Bed) {
    let (running, unit) = bed.live(["--device", "/dev/kmsg:rw"], "echo ready; exec sleep 1000");
    assert_eq!(unit::property(&unit, "DevicePolicy"), "closed");
    assert_eq!(unit::property(&unit, "DeviceAllow"), "/dev/kmsg rw");
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
    bed.sandbox([
        "exec",
        &unit,
        "sh",
        "-c",
        "head -c 1 /dev/zero && echo x > /dev/kmsg && tty < /dev/ptmx || test -c /dev/ptmx",
    ])
    .output()
    .succeeded();
    drop(running);
    let (running, unit) = bed.live(["-p", "DevicePolicy=auto"], "echo ready; exec sleep 1000");
    assert_eq!(unit::property(&unit, "DevicePolicy"), "auto");
    drop(running);
    // A node that root could make here is of no use: the unit says no.
    let flags = ["--userns", "host", "--cap-add", "MKNOD,SYS_ADMIN"];
    let script = "mount -t tmpfs none /mnt; mknod /mnt/k c 1 11; head -c 1 /mnt/k";
    let outcome = bed.run(flags, script).output();
    assert!(outcome.errors().contains("not permitted"), "{}", outcome.errors());
}

/// Whether this kernel has Landlock is asked of the kernel, by way of a start.
fn landlock(bed: &Bed) {
    let base = ["--landlock", "exec:/usr", "--landlock", "ro:/etc", "--landlock", "rw:/tmp", "--landlock", "rw:/dev"];
    let script = "cat /etc/hostname > /tmp/x && echo read; cat /proc/1/status 2>&1; echo x > /etc/x; cp /usr/bin/id /tmp/id; /tmp/id 2>&1";
    let outcome = bed.run(base, script).output();
    if outcome.status == 125 {
        assert!(outcome.hint().contains("--landlock-best-effort"), "{}", outcome.errors());
        bed.run(base.iter().chain(&["--landlock-best-effort"]), "true").output().succeeded();
        return;
    }
    let text = outcome.text() + &outcome.errors();
    assert!(text.starts_with("read") && text.matches("ermission denied").count() == 3, "{text}");
    let (running, unit) = bed.live(base, "echo ready; exec sleep 1000");
    let text = bed.sandbox(["exec", &unit, "sh", "-c", "ls / 2>&1"]).output().text();
    assert!(text.contains("ermission denied"), "{text}");
    drop(running);
    let refused = bed.run(["--landlock", "ro:/etc"], "true").output().refused(126, ["sh: Permission denied"]);
    assert!(refused.hint().contains("--landlock exec:"));
    bed.run(["--landlock", "ro:/no/such"], "true").output().refused(125, ["--landlock /no/such"]);
    // Ports say nothing of files.
    let script = "use Socket; for my $port (9, 10) { socket(my $s, AF_INET, SOCK_STREAM, 0); \
                  connect($s, pack_sockaddr_in($port, INADDR_LOOPBACK)); print $! + 0, ' ' }";
    let text =
        bed.sandbox(["run", "-q", "--landlock", "tcp-connect:9", "perl", "-e", script]).output().succeeded().text();
    assert_eq!(text, format!("{} {}", libc::ECONNREFUSED, libc::EACCES));
}

fn hidepid(bed: &Bed) {
    let script =
        "sleep 1000 & setpriv --reuid 33 --regid 33 --clear-groups sh -c 'ls -d /proc/[0-9]* | wc -l'; kill $!";
    let seen = |flags: &[&str]| bed.run(flags, script).output().succeeded().text().parse::<u32>().unwrap();
    assert!(seen(&[]) >= 4, "all are seen");
    assert!(seen(&["--hidepid"]) <= 3, "only its own");
    bed.run(["--hidepid", "--share", "pid"], "true").output().refused(125, ["--hidepid"]);
}

/// What tells about the whole machine, or acts on it, is empty or read-only; `mountinfo` says it of every path that this kernel has.
fn masked(bed: &Bed) {
    let empty = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/kcore",
        "/proc/keys",
        "/proc/key-users",
        "/proc/kmsg",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/sys/devices/virtual/powercap",
        "/sys/devices/virtual/thermal",
        "/sys/firmware",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ];
    let mount_points = ["/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing"];
    let fixed = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    for more in [&[][..], &["--network", "host"], &["--share", "pid"]] {
        let script = format!("ls -A {} 2>&1 | grep -v -e : -e '^$'; cat /proc/self/mountinfo", mount_points.join(" "));
        let text = bed.run(more, &script).output().succeeded().text();
        // A new sysfs has nothing in them.
        assert!(text.lines().all(|line| line.contains(" - ")), "{more:?}: {text}");
        let mounts: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        let of = |path: &str| mounts.iter().rev().find(|fields| fields[4] == path);
        for path in empty.into_iter().filter(|path| Path::new(path).exists()) {
            let fields = of(path).unwrap_or_else(|| panic!("{path} is not masked: {more:?}"));
            assert!(fields[5].starts_with("ro"), "{path}: {fields:?}");
        }
        for path in fixed.into_iter().filter(|path| Path::new(path).exists()) {
            let fields = of(path).unwrap_or_else(|| panic!("{path} is writable: {more:?}"));
            assert!(fields[5].starts_with("ro,nosuid,nodev,noexec"), "{path}: {fields:?}");
        }
    }
}

/// Files of the host's root alone: where that one is somebody inside they are masked, else nobody may read them.
fn files_of_root(bed: &Bed) {
    let script = "for f in /proc/kpageflags /proc/kpagecount /proc/kpagecgroup; do test ! -e $f || (head -c 8 $f 2>&1 | wc -c); done; \
                  head -c 8 /proc/kpageflags 2>&1 | grep -c 'Permission denied'; grep -c ' /proc/kpage' /proc/self/mountinfo";
    if !Path::new("/proc/kpageflags").exists() {
        return;
    }
    for more in [&[][..], &["--share", "pid"], &["--userns", "identity"], &["--userns", "host"]] {
        let text = bed.run(more, script).output().text();
        let lines: Vec<&str> = text.lines().collect();
        let [.., denied, masks] = lines[..] else { panic!("{more:?}: {text}") };
        assert_ne!((denied, masks), ("0", "0"), "{more:?}: {text}");
        assert!(denied == "1" || lines[0] == "0", "{more:?}: {text}");
    }
}

/// Nothing that the caller or the launcher has open comes in but the three streams.
fn descriptors(bed: &Bed) {
    let program = bed::sandbox_binary();
    for flags in ["", "--as-pid1", "--share mount", "--uid 33"] {
        let script = format!(
            "exec 3</etc/passwd 9</etc/shadow 200<>/dev/null; exec {} run -q {flags} sh -c 'echo /proc/self/fd/*; ls -l /proc/self/fd'",
            program.display()
        );
        let text = bed.command("bash", ["-c", &script]).output().succeeded().text();
        let first = text.lines().next().unwrap();
        // The shell may hold one of its own while it reads the directory.
        let numbers: Vec<&str> = first.split(' ').map(|path| path.rsplit('/').next().unwrap()).collect();
        assert!(numbers.starts_with(&["0", "1", "2"]) && numbers.len() <= 4, "{flags}: {text}");
        for file in ["passwd", "shadow", "socket", "anon_inode", "net:", "mnt:"] {
            assert!(!text.contains(file), "{flags}: {text}");
        }
    }
    let text = bed.run(["-t"], "ls /proc/self/fd").pty(24, 80).output().succeeded().text();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is the directory that ls reads");
}

/// What would reach the kernel or the host, tried as root inside, with the host's user namespace too.
fn forbidden(bed: &Bed) {
    let attempts = [
        "mount -t tmpfs none /mnt",
        "mount --bind /etc /mnt",
        "umount /proc",
        "mount -o remount,rw /sys",
        "unshare -m true",
        "mknod /tmp/m b 254 0",
        "hostname other",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "dmesg",
        "date -s 2001-01-01",
        "chroot / mount -t tmpfs none /mnt",
        "cat /dev/kmsg",
        "cat /dev/mem",
        "modprobe loop",
    ];
    for userns in ["auto", "host"] {
        for attempt in attempts {
            let outcome = bed.run(["--userns", userns], attempt).output();
            assert!(outcome.status != 0, "--userns {userns}: `{attempt}` worked: {}", outcome.text());
        }
    }
}

fn host_processes(bed: &Bed) {
    let me = std::process::id();
    let outcome =
        bed.run([""; 0], &format!("kill -0 {me} 2>&1; ls -d /proc/{me} 2>&1; ls /proc | grep -c '^[0-9]'")).output();
    let text = outcome.text();
    assert!(text.contains("No such process") && text.contains("No such file"), "{text}");
    assert!(text.lines().last().unwrap().parse::<u32>().unwrap() <= 4, "{text}");
}

fn sessions(bed: &Bed) {
    let text = bed
        .sandbox(["run", "-q", "python3", "-c", "import os; print(os.getsid(0) == os.getpid() == os.getpgid(0))"])
        .output()
        .succeeded()
        .text();
    assert_eq!(text, "True", "a session and a process group of its own");
}
