//! `exec`: one more process in a sandbox that lives.

use crate::bed::Bed;
use crate::unit;
use rustix::process::Signal;
use std::fs;

/// Namespaces, capabilities and cgroups of a process, as it sees them itself.
const CONFINEMENT: &str = "readlink /proc/self/ns/cgroup /proc/self/ns/ipc /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/pid \
     /proc/self/ns/time /proc/self/ns/user /proc/self/ns/uts; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; \
     cat /proc/self/cgroup; umask; id; hostname";

pub(super) fn exec(bed: &Bed) {
    let (mut running, scope) = bed.live(["-E", "MARK=1"], &format!("{CONFINEMENT}; echo ready; exec cat"));
    let own = running.stdout_so_far().replace("ready", "").trim().to_owned();
    let entered = bed.sandbox(["exec", &scope, "sh", "-c", CONFINEMENT]).output().succeeded().text();
    assert_eq!(entered, own);
    let mut second = bed.sandbox(["exec", &scope, "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    second.wait_for("ready");
    let commands: Vec<String> =
        unit::processes(&scope).iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap()).collect();
    assert!(commands.contains(&"sleep\n".to_owned()), "{commands:?}");
    let seen = bed.sandbox(["exec", &scope, "sh", "-c", "echo $MARK; ls /proc/self/fd | wc -l"]).output().succeeded();
    assert_eq!(seen.text(), "1\n4", "standard streams and the directory itself");
    running.close_stdin();
    running.finish().succeeded();
    assert_eq!(second.finish().status, 137, "it ends with the sandbox");
}

pub(super) fn exec_streams_and_status(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let exec = |flags: &[&str], words: &[&str]| bed.sandbox(["exec"]).args(flags).arg(&scope).args(words);
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
    {
        exec(&[], &["sh", "-c", script]).output().exited(status);
    }
    exec(&[], &["no-such-program"]).output().refused(127, ["no-such-program"]);
    exec(&[], &["/etc/passwd"]).output().refused(126, ["/etc/passwd"]);
    exec(&["--uid=no-such-user"], &["true"]).output().refused(125, ["no-such-user"]);
    exec(&["-w", "/no/such"], &["true"]).output().refused(125, ["/no/such"]);
    exec(&["-w", "relative"], &["true"]).output().refused(125, ["relative"]);
    let both = exec(&[], &["sh", "-c", "cat; echo err >&2"]).stdin("through\n").output().succeeded();
    assert_eq!((both.text(), both.errors()), ("through".to_owned(), "err".to_owned()));
    let asked =
        exec(&["--uid=nobody", "-w", "/tmp", "-E", "A=b c"], &["sh", "-c", "id -un; pwd; echo $A --x"]).output();
    assert_eq!(asked.succeeded().text(), "nobody\n/tmp\nb c --x");
    bed.sandbox(["exec", "no-such-sandbox", "true"]).output().refused(125, ["no-such-sandbox"]);
}

pub(super) fn exec_terminal(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let script = "tty; stty size; test -t 2 && echo terminal";
    let inside = bed.sandbox(["exec", "-t", &scope, "sh", "-c", script]).pty(31, 97).output().succeeded();
    let text = inside.text();
    assert!(text.contains("/dev/pts/0") && text.contains("31 97") && text.contains("terminal"), "{text}");
}

/// A root with one static program in it and nothing else.
pub(super) fn exec_without_anything_inside(bed: &Bed) {
    let root = bed.disk_dir();
    crate::tree::busybox(&root);
    let program = root.join("busybox");
    fs::rename(root.join("bin/busybox"), &program).unwrap();
    for entry in fs::read_dir(&root).unwrap().flatten().filter(|entry| entry.path() != program) {
        fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path())).unwrap();
    }
    let name = bed.unit();
    let start = bed.sandbox(["run", "-q", "-d", "--unit", &name, "--rootfs"]).arg(&root);
    start.args(["--", "/busybox", "sleep", "1000"]).output().succeeded();
    let entered = bed.sandbox(["exec", &name, "/busybox", "echo", "inside"]).output().succeeded();
    assert_eq!(entered.text(), "inside");
    bed.sandbox(["exec", &name, "sh"]).output().refused(127, ["sh", "not found"]);
}

pub(super) fn exec_ten_at_once(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let all: Vec<_> = (10..20)
        .map(|status| {
            (status, bed.sandbox(["exec", &scope, "sh", "-c", &format!("echo {status}; exit {status}")]).spawn())
        })
        .collect();
    for (status, running) in all {
        let outcome = running.finish().exited(status);
        assert_eq!(outcome.text(), status.to_string());
    }
}

pub(super) fn exec_ends_with_its_caller(bed: &Bed) {
    let (_running, scope) = bed.live([""; 0], "echo ready; exec cat");
    let before = unit::processes(&scope).len();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut entered = bed.sandbox(["exec", &scope, "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
        entered.wait_for("ready");
        entered.signal(signal);
        assert_eq!(entered.finish().status, 128 + signal.as_raw());
        bed.poll("the end of what it ran", || unit::processes(&scope).len() == before);
    }
}

pub(super) fn exec_as_pid1(bed: &Bed) {
    let (_running, scope) = bed.live(["--as-pid1"], "echo ready; exec cat");
    let seen = bed
        .sandbox(["exec", &scope, "sh", "-c", "cat /proc/1/comm; readlink /proc/self/ns/time /proc/1/ns/time"])
        .output();
    let text = seen.succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "cat");
    assert_eq!(lines[1], lines[2]);
}

/// Until a sandbox is in its root, its first process has the host's mounts: whoever joins it then waits.
pub(super) fn exec_while_it_starts(bed: &Bed) {
    let dir = bed.dir();
    fs::write(dir.join("secret"), "secret").unwrap();
    let mut flags = vec!["--userns".to_owned(), "host".to_owned(), format!("--unit={}", bed.unit())];
    for n in 0..200 {
        let source = dir.join(format!("d{n}"));
        fs::create_dir(&source).unwrap();
        flags.push(format!("--bind={}:/mnt/d{n}", source.display()));
    }
    for round in 0..3 {
        let more = if round == 2 { "--as-pid1" } else { "--init" };
        let flags = flags.iter().map(String::as_str).chain([more]);
        let _running = bed.run(flags, "exec sleep 1000").spawn();
        let unit = format!("{}.scope", bed.unit());
        bed.poll("an answer", || {
            let outcome =
                bed.sandbox(["exec", &unit, "cat", "/proc/1/comm", dir.join("secret").to_str().unwrap()]).output();
            assert!(!outcome.text().contains("secret"), "{}", outcome.text());
            let first: &[&str] = if round == 2 { &["sh", "sleep"] } else { &["sandbox"] };
            let is_first = first.contains(&outcome.text().as_str());
            assert!(outcome.status == 125 || is_first, "{}: {}", outcome.text(), outcome.errors());
            outcome.status == 1
        });
        bed.sandbox(["kill", "-s", "KILL", &unit]).output().succeeded();
        bed.poll("its end", || unit::is_gone(&unit));
    }
}

pub(super) fn exec_with_its_limits(bed: &Bed) {
    let flags = ["--ulimit", "nofile=77", "-p", "Nice=7", "-p", "OOMScoreAdjust=300", "-p", "CPUAffinity=0"];
    let script = "ulimit -n; nice; cat /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/self/status";
    let (_running, scope) = bed.live(flags, &format!("{script}; echo ready; exec cat"));
    let text = bed.sandbox(["exec", &scope, "sh", "-c", script]).output().succeeded().text();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["77", "7", "300", "Cpus_allowed_list:", "0"]);
}
