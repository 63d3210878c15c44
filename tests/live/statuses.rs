//! Exit statuses and the one line that explains those which are `sandbox`'s own.

use crate::bed::Bed;
use crate::{Test, test, unit};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("statuses/own", needs![root, systemd], own),
        test("statuses/signals", needs![root, systemd], signals),
        test("statuses/as_pid1", needs![root, systemd], as_pid1),
        test("statuses/not_found", needs![root, systemd], not_found),
        test("statuses/interpreter_missing", needs![root, systemd], interpreter_missing),
        test("statuses/loader_missing", needs![root, systemd], loader_missing),
        test("statuses/not_executable", needs![root, systemd], not_executable),
        test("statuses/as_another_user", needs![root, systemd], as_another_user),
        test("statuses/path_search", needs![root, systemd], path_search),
        test("statuses/sandbox_failed", needs![root, systemd], sandbox_failed),
        test("statuses/orphans_end_with_the_payload", needs![root, systemd], orphans_end_with_the_payload),
    ]
}

fn own(bed: &Bed) {
    for status in [0, 1, 7, 124, 125, 126, 127, 128, 137, 255] {
        let outcome = bed.run([""; 0], &format!("exit {status}")).output().exited(status);
        assert_eq!((outcome.text(), outcome.errors()), (String::new(), String::new()), "status {status}");
    }
}

fn signals(bed: &Bed) {
    for (name, number) in
        [("HUP", 1), ("INT", 2), ("QUIT", 3), ("ABRT", 6), ("KILL", 9), ("USR1", 10), ("SEGV", 11), ("TERM", 15)]
    {
        let outcome = bed.run([""; 0], &format!("ulimit -c 0; kill -{name} $$")).output().exited(128 + number);
        assert_eq!(outcome.errors(), "", "SIG{name}");
    }
    bed.run([""; 0], "kill -34 $$").output().exited(162);
}

fn as_pid1(bed: &Bed) {
    for status in [0, 7, 255] {
        bed.run(["--as-pid1"], &format!("test $$ = 1 && exit {status}")).output().exited(status);
    }
    let outcome = bed.sandbox(["run", "-q", "--as-pid1", "/no/such"]).output();
    outcome.refused(127, ["/no/such", "no such file"]);
    // From outside even a PID 1 can be killed.
    let (running, _) = bed.live(["--as-pid1"], "echo ready; exec sleep 1000");
    // The first of its children; another one watches for its end.
    let pid = unit::children(running.pid())[0];
    bed.command("kill", ["-9", &pid.to_string()]).output().succeeded();
    running.finish().exited(137);
}

fn not_found(bed: &Bed) {
    bed.sandbox(["run", "-q", "no-such-command", "x"]).output().refused(127, ["no-such-command", "not found in PATH"]);
    bed.sandbox(["run", "-q", "--", "/no/such/file"]).output().refused(127, ["/no/such/file", "no such file"]);
    bed.sandbox(["run", "-q", "--", "/etc/passwd/x"]).output().refused(127, ["/etc/passwd/x"]);
    bed.sandbox(["run", "-q", "--", ""]).output().refused(127, []);
    // A file of the host that its view hides: the hint brings it.
    let script = executable(&bed.dir(), "here", "#!/bin/sh\nexit 3\n");
    let outcome = bed.sandbox(["run", "-q", &script]).output().refused(127, [&script, "no such file"]);
    let directory = Path::new(&script).parent().unwrap().to_str().unwrap();
    assert!(outcome.hint().contains(&format!("--bind {directory}")), "{}", outcome.hint());
    bed.sandbox(["run", "-q", "--bind", directory, &script]).output().exited(3);
}

fn executable(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn interpreter_missing(bed: &Bed) {
    let dir = bed.seen_dir();
    let script = executable(&dir, "script", "#!/no/such/interpreter -x\necho never\n");
    bed.sandbox(["run", "-q", &script]).output().refused(127, [&script, "interpreter /no/such/interpreter is missing"]);
    // The same by name, found in PATH.
    let path = format!("PATH={}:/bin", dir.display());
    bed.sandbox(["run", "-q", "-E", &path, "script"]).output().refused(127, [&script, "/no/such/interpreter"]);
}

fn loader_missing(bed: &Bed) {
    let dir = bed.seen_dir();
    let mut program = fs::read("/bin/true").unwrap();
    let loader = b"/lib64/ld-linux-x86-64.so.2\0";
    let Some(at) = program.windows(loader.len()).position(|bytes| bytes == loader) else {
        panic!("/bin/true asks for another loader than this test knows");
    };
    program[at..at + loader.len()].copy_from_slice(b"/lib64/ld-nowhere-86-64.so.2\0".get(..loader.len()).unwrap());
    program[at + loader.len() - 1] = 0;
    let path = executable(&dir, "program", program);
    bed.sandbox(["run", "-q", &path]).output().refused(127, [&path, "interpreter /lib64/ld-nowhere", "is missing"]);
}

fn not_executable(bed: &Bed) {
    let dir = bed.seen_dir();
    fs::write(dir.join("plain"), "#!/bin/sh\n").unwrap();
    let plain = dir.join("plain").display().to_string();
    bed.sandbox(["run", "-q", &plain]).output().refused(126, [&plain, "Permission denied"]);
    let directory = dir.display().to_string();
    bed.sandbox(["run", "-q", &directory]).output().refused(126, [&directory]);
    let empty = executable(&dir, "empty", "");
    bed.sandbox(["run", "-q", &empty]).output().refused(126, [&empty]);
    let text = executable(&dir, "text", "echo no first line\n");
    bed.sandbox(["run", "-q", &text]).output().refused(126, [&text, "#!"]);
    let broken = executable(&dir, "broken", b"\x7fELF and then nothing");
    bed.sandbox(["run", "-q", &broken]).output().refused(126, [&broken]);
}

/// What root could run and the payload's user cannot.
fn as_another_user(bed: &Bed) {
    let dir = bed.seen_dir();
    let script = executable(&dir, "script", "#!/bin/sh\nexit 9\n");
    bed.sandbox(["run", "-q", "--uid", "33", &script]).output().exited(9);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    bed.sandbox(["run", "-q", &script]).output().exited(9);
    bed.sandbox(["run", "-q", "--uid", "33", &script]).output().refused(126, [&script, "Permission denied"]);
}

/// As execvp(3): a file that cannot be run does not end the search, but its error counts when nothing else is found.
fn path_search(bed: &Bed) {
    let (first, second) = (bed.seen_dir(), bed.seen_dir());
    fs::write(first.join("tool"), "").unwrap();
    let path = format!("PATH=/no/such:/etc/passwd:{}:{}", first.display(), second.display());
    let denied = first.join("tool").display().to_string();
    bed.sandbox(["run", "-q", "-E", &path, "tool"]).output().refused(126, [&denied]);
    executable(&second, "tool", "#!/bin/sh\necho second $1\n");
    assert_eq!(bed.sandbox(["run", "-q", "-E", &path, "tool", "it"]).output().succeeded().text(), "second it");
}

fn sandbox_failed(bed: &Bed) {
    bed.sandbox(["run", "-q"]).output().refused(125, ["no command"]);
    bed.sandbox(["run", "--no-such-flag", "true"]).output().refused(125, ["--no-such-flag"]);
    bed.run(["-p", "Nonsense=1"], "true").output().refused(125, ["Nonsense"]);
    bed.run(["--bind", "/no/such/source"], "true").output().refused(125, ["--bind", "/no/such/source"]);
    bed.run(["--rootfs", "/no/such/root"], "true").output().refused(125, ["--rootfs", "/no/such/root"]);
    bed.run(["--uid", "nobody-of-that-name"], "true").output().refused(125, ["--uid", "nobody-of-that-name"]);
    bed.run(["--working-directory", "/no/such/dir"], "true").output().refused(125, ["/no/such/dir"]);
}

/// Who the payload left behind does not outlive it, and does not hold its streams.
fn orphans_end_with_the_payload(bed: &Bed) {
    let (mut running, scope) =
        bed.live([""; 0], "setsid sleep 1000 & setsid sh -c 'sleep 1001 & wait' & echo ready; read x; exit 12");
    // The last of them is started by one that nobody waits for.
    bed.poll("all processes", || unit::processes(&scope).len() >= 5);
    let processes = unit::processes(&scope);
    running.send("\n");
    running.finish().exited(12);
    for pid in processes {
        bed.poll("everything inside is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    }
}
