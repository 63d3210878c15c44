//! What the payload may not do: privileges, capabilities, descriptors, the kernel.

use crate::bed::{self, Bed};
use crate::{Test, test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("confinement/no_new_privs", needs![root, systemd], no_new_privs),
        test("confinement/capabilities", needs![root, systemd], capabilities),
        test("confinement/capabilities_of_a_user", needs![root, systemd], capabilities_of_a_user),
        test("confinement/cap_add_and_drop", needs![root, systemd], cap_add_and_drop),
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
