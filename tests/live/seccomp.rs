//! The filter of system calls, as a payload meets it.

use crate::bed::Bed;
use crate::{Test, test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("seccomp/mode", needs![root, systemd], mode),
        test("seccomp/default", needs![root, systemd], default),
        test("seccomp/capabilities", needs![root, systemd], capabilities),
        test("seccomp/profile", needs![root, systemd], profile),
        test("seccomp/exec", needs![root, systemd], exec),
        test("seccomp/stub", needs![root, systemd], stub),
    ]
}

const MODE: &str = "grep -E '^Seccomp:' /proc/self/status | tr -dc 0-9";

fn mode(bed: &Bed) {
    for flags in [&[][..], &["--as-pid1"], &["--uid", "33"], &["--userns", "host"], &["--share", "mount"], &["-t"]] {
        assert_eq!(bed.run(flags, MODE).output().succeeded().text(), "2", "{flags:?}");
    }
    // The truthful /proc has a filter of its own, which hands two calls over and forbids none.
    assert_eq!(bed.run(["--seccomp", "unconfined", "--procview", "off"], MODE).output().succeeded().text(), "0");
    let plan = bed.sandbox(["run", "--dry-run", "true"]).output().succeeded().text();
    assert!(plan.contains("\nseccomp       default\n"), "{plan}");
}

/// What system calls fail with, or 0, each given as its number and arguments (zero where there are none).
pub(crate) fn calls(bed: &Bed, flags: &[&str], calls: &[&str]) -> Vec<i32> {
    let script = "for (@ARGV) { my @a = map { hex } split /,/; $! = 0; \
                  print syscall($a[0], map { $_ // 0 } @a[1..5]) == -1 ? $! + 0 : 0, ' ' }";
    let hex = |word: &&str| {
        word.split(',').map(|part| part.trim_start_matches("0x").to_owned()).collect::<Vec<_>>().join(",")
    };
    let run = bed.sandbox(["run", "-q"]).args(flags).args(["--", "perl", "-e", script]).args(calls.iter().map(hex));
    run.output().succeeded().text().split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// A call's number as [`calls`] takes it.
pub(crate) fn number(call: i64) -> String {
    format!("{call:#x}")
}

fn default(bed: &Bed) {
    let denied = [
        libc::SYS_keyctl,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_unshare,
        libc::SYS_fsopen,
        libc::SYS_perf_event_open,
        libc::SYS_kexec_load,
    ]
    .map(number);
    let denied: Vec<&str> = denied.iter().map(String::as_str).collect();
    // Root over the host, too: it is the filter that says so, not the missing capability.
    for flags in [&[][..], &["--userns", "host"]] {
        assert_eq!(calls(bed, flags, &denied), vec![libc::EPERM; denied.len()], "{flags:?}");
    }
    let unknown = [number(libc::SYS_clone3), "0x3ff".to_owned()];
    let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
    assert_eq!(calls(bed, &[], &unknown), [libc::ENOSYS; 2]);
    // Threads, and a fork, by a C library that has heard ENOSYS.
    let script = "import threading, subprocess; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); \
                  subprocess.run(['true'], check=True)";
    let text = bed.sandbox(["run", "-q", "python3", "-c", script]).output().succeeded().text();
    assert_eq!(text, "thread");
}

fn capabilities(bed: &Bed) {
    let unshare = format!("{:#x},0x20000", libc::SYS_unshare);
    let all = [unshare.as_str(), &number(libc::SYS_fsopen), &number(libc::SYS_keyctl)];
    // fsopen gets as far as its null pointer.
    assert_eq!(calls(bed, &["--cap-add", "SYS_ADMIN"], &all), [0, libc::EFAULT, libc::EPERM]);
    bed.run(["--cap-add", "SYS_ADMIN"], "unshare -m mount -t tmpfs none /mnt").output().succeeded();
}

fn profile(bed: &Bed) {
    let file = bed.dir().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    std::fs::write(&file, text).unwrap();
    let flags = ["--seccomp", file.to_str().unwrap()];
    let outcome = bed.run(flags, "mkdir /tmp/x").output();
    assert!(outcome.errors().contains("No space left on device"), "{}", outcome.errors());
    assert_eq!(bed.run(flags, "exec chmod 700 /tmp").output().status, 128 + libc::SIGSYS);
    assert_eq!(bed.run(flags, MODE).output().succeeded().text(), "2");
    std::fs::write(&file, r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).unwrap();
    bed.run(flags, "true").output().refused(125, ["profile.json", "SCMP_ACT_NOTIFY"]);
    let outcome =
        bed.run(["--seccomp", "/no/such"], "true").output().refused(125, ["--seccomp /no/such: No such file"]);
    assert!(outcome.hint().contains("unconfined"));
}

fn exec(bed: &Bed) {
    for (flags, expected) in [(&[][..], "2"), (&["--seccomp", "unconfined"], "0"), (&["--as-pid1"], "2")] {
        let (running, unit) = bed.live(flags, "echo ready; exec sleep 1000");
        let text = bed.sandbox(["exec", &unit, "sh", "-c", MODE]).output().succeeded().text();
        assert_eq!(text, expected, "{flags:?}");
        let text = bed.sandbox(["inspect", &unit]).output().succeeded().text();
        let source = flags.get(1).copied().unwrap_or("default");
        assert!(text.contains(&format!("seccomp       {source}")), "{text}");
        drop(running);
    }
}

/// Who may trace (SYS_PTRACE) gets no more by way of PID 1 than it has.
fn stub(bed: &Bed) {
    let text = bed
        .run(
            ["--cap-add", "SYS_PTRACE"],
            "grep -E '^(Seccomp:|NoNewPrivs|CapBnd)' /proc/1/status /proc/self/status | sed 's/.*://'",
        )
        .output()
        .succeeded()
        .text();
    let values: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(values.len(), 6, "{text}");
    assert_eq!(values[..3], values[3..], "{text}");
}
