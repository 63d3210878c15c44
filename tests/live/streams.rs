//! Standard input, output and error: pipes untouched, terminals as terminals.

use crate::bed::{self, Bed};
use crate::{Test, test, unit};
use std::fs;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("streams/binary", needs![root, systemd], binary),
        test("streams/both_ways_at_once", needs![root, systemd], both_ways_at_once),
        test("streams/stderr_apart", needs![root, systemd], stderr_apart),
        test("streams/closed", needs![root, systemd], closed),
        test("streams/full", needs![root, systemd], full),
        test("streams/reader_leaves", needs![root, systemd], reader_leaves),
        test("streams/files", needs![root, systemd], files),
        test("streams/dev_stdout", needs![root, systemd], dev_stdout),
        test("streams/shared_pipe", needs![root, systemd], shared_pipe),
        test("streams/in_the_background", needs![root, systemd], in_the_background),
        test("streams/pty", needs![root, systemd], pty),
        test("streams/pty_by_default", needs![root, systemd], pty_by_default),
        test("streams/pty_keys", needs![root, systemd], pty_keys),
        test("streams/pty_complete_output", needs![root, systemd], pty_complete_output),
        test("streams/pty_restored", needs![root, systemd], pty_restored),
        test("streams/pty_from_pipes", needs![root, systemd], pty_from_pipes),
        test("streams/pty_as_user", needs![root, systemd], pty_as_user),
        test("streams/pty_written_late", needs![root, systemd], pty_written_late),
        test("streams/idle_costs_nothing", needs![root, systemd], idle_costs_nothing),
        test("streams/no_terminal_of_the_caller", needs![root, systemd], no_terminal_of_the_caller),
    ]
}

fn bytes(count: usize) -> Vec<u8> {
    // Every byte, in an order that no terminal setting leaves as it is.
    (0..count).map(|n| u8::try_from((n * 7 + n / 256) % 256).unwrap()).collect()
}

/// Sandboxes with IDs of their own, at one pipe, as in a log of `make -j`.
fn shared_pipe(bed: &Bed) {
    let program = bed::sandbox_binary();
    let program = program.display();
    let script = format!(
        "{{ {program} run -q -- sh -c 'echo a1 >/dev/stderr; sleep 1; echo a2 >/dev/stderr' & sleep 0.5; \
         {program} run -q -- sh -c 'echo b1 >/dev/stderr'; wait; }} 2>&1 | cat"
    );
    let text = bed.sh(&script).output().succeeded().text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a1", "a2", "b1"]);
}

/// A shell's `sandbox run … &`: the terminal is somebody else's, who would stop it.
fn in_the_background(bed: &Bed) {
    let program = bed::sandbox_binary();
    let program = program.display();
    let script = format!(
        "set -m; {program} run -q -- sh -c 'test -t 1 && echo on it' & wait $!; {program} run -q -t -- tty & wait $!; echo $?"
    );
    let outcome = bed.command("bash", ["-c", &script]).pty(24, 80).output().succeeded();
    let text = outcome.text();
    assert!(text.contains("on it") && text.contains("/dev/pts/0") && text.ends_with('0'), "{text}");
}

fn binary(bed: &Bed) {
    let sent = bytes(1 << 20);
    for flags in [&[][..], &["--pipe"], &["--as-pid1"], &["-i"]] {
        let outcome = bed.run(flags, "exec cat").stdin(sent.clone()).output().succeeded();
        assert!(outcome.stdout == sent, "{flags:?}: {} bytes came back", outcome.stdout.len());
    }
}

fn both_ways_at_once(bed: &Bed) {
    let sent = bytes(1 << 20);
    let outcome = bed.run([""; 0], "cat | tee /dev/stderr").stdin(sent.clone()).output().succeeded();
    assert!(outcome.stdout == sent && outcome.stderr == sent);
}

fn stderr_apart(bed: &Bed) {
    let outcome = bed.run([""; 0], "echo out; echo err >&2; test ! -t 0 && test ! -t 1").output().succeeded();
    assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("out", "err"));
}

fn by_shell(bed: &Bed, rest: &str) -> crate::command::Outcome {
    bed.sh(&format!("{} run -q -- {rest}", bed::sandbox_binary().display())).output()
}

fn closed(bed: &Bed) {
    // What is closed must not become some file of ours: whoever writes to it would write there.
    let outcome = by_shell(bed, "sh -c 'cat; echo $?; ls -l /proc/self/fd' <&-");
    assert!(outcome.status == 0, "{} {}", outcome.status, outcome.errors());
    let outcome = by_shell(bed, "sh -c 'echo lost; exit 3' >&-");
    assert_eq!((outcome.status, outcome.text().as_str()), (3, ""), "{}", outcome.errors());
    let outcome = by_shell(bed, "sh -c 'echo out; echo lost >&2; exit 4' 2>&-");
    assert_eq!((outcome.status, outcome.text().as_str()), (4, "out"));
    let outcome = by_shell(bed, "sh -c 'exit 5' <&- >&- 2>&-");
    assert_eq!(outcome.status, 5);
    assert_eq!(bed.run([""; 0], "cat; echo end").output().succeeded().text(), "end", "an empty stdin");
}

fn full(bed: &Bed) {
    let outcome = by_shell(bed, "sh -c 'echo x || exit 8' > /dev/full");
    assert_eq!(outcome.status, 8, "the payload sees the error: {}", outcome.errors());
}

fn reader_leaves(bed: &Bed) {
    let outcome = by_shell(bed, "sh -c 'yes; echo yes ended with $? >&2' | head -n 1");
    assert_eq!(outcome.text(), "y");
    assert!(outcome.errors().contains("yes ended with 141"), "SIGPIPE as everywhere: {}", outcome.errors());
}

fn files(bed: &Bed) {
    let dir = bed.disk_dir();
    fs::write(dir.join("in"), bytes(70_000)).unwrap();
    let outcome = by_shell(bed, &format!("cat < {0}/in > {0}/out", dir.display()));
    assert_eq!(outcome.status, 0, "{}", outcome.errors());
    assert!(fs::read(dir.join("out")).unwrap() == bytes(70_000));
    let outcome = by_shell(bed, &format!("sh -c 'echo more; echo end' >> {}/out", dir.display()));
    assert_eq!(outcome.status, 0);
    assert!(fs::read(dir.join("out")).unwrap().ends_with(b"more\nend\n"));
    assert_eq!(fs::read(dir.join("out")).unwrap().len(), 70_009);
}

/// Programs that log to /dev/stdout and /dev/stderr, as images of web servers do.
fn dev_stdout(bed: &Bed) {
    for flags in [&[][..], &["--uid", "33"], &["--userns", "host", "--uid", "33"], &["--as-pid1"]] {
        let outcome =
            bed.run(flags, "echo out > /dev/stdout && echo err > /dev/stderr && cat < /dev/stdin").stdin("in").output();
        assert_eq!(
            (outcome.text().as_str(), outcome.errors().as_str(), outcome.status),
            ("out\nin", "err", 0),
            "{flags:?}"
        );
    }
}

fn pty(bed: &Bed) {
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && ls -l $(tty); ps -o tty= -p $$; trap 'stty size; exit 11' WINCH; echo ready; while :; do sleep 0.02; done";
    let mut running = bed.run(["-t"], script).pty(30, 90).spawn();
    running.wait_for("ready");
    let text = running.stdout_so_far();
    assert!(text.starts_with("/dev/pts/0\r\n30 90\r\ncrw--w---- 1 root tty 136, 0 "), "{text}");
    assert!(text.contains("\npts/0"), "it is the controlling one: {text}");
    running.resize(31, 91);
    running.wait_for("31 91");
    running.finish().exited(11);
}

fn pty_by_default(bed: &Bed) {
    let text = bed.run([""; 0], "tty; stty size").pty(20, 70).output().succeeded().text();
    assert_eq!(text, "/dev/pts/0\r\n20 70");
    let text = bed.sandbox(["run", "-q", "-it", "sh", "-c", "tty"]).pty(20, 70).output().succeeded().text();
    assert_eq!(text, "/dev/pts/0");
    // Where one of the two is no terminal: pipes, as they are.
    let script =
        format!("{} run -q sh -c 'test -t 0; echo $?; test -t 1; echo $?' | cat", bed::sandbox_binary().display());
    assert_eq!(bed.sh(&script).pty(20, 70).output().succeeded().text(), "0\r\n1");
    assert_eq!(bed.run([""; 0], "tty").output().text(), "not a tty");
    assert_eq!(
        bed.run(["--pipe"], "test -t 1 && echo it is the callers").pty(20, 70).output().succeeded().text(),
        "it is the callers"
    );
}

fn pty_keys(bed: &Bed) {
    let mut running = bed.run(["-t"], "trap 'echo interrupted' INT; trap 'echo quit' QUIT; echo ready; cat; echo eof; until read x; do :; done; echo got $x; exit 4").pty(24, 80).spawn();
    running.wait_for("ready");
    running.send("line\n");
    running.wait_for("line\r\nline\r\n");
    running.send("\x04");
    running.wait_for("eof");
    // A shell that gets the signal just before it reads waits for the next one.
    for (key, answer) in [("\x1c", "quit"), ("\x03", "interrupted")] {
        bed.poll(answer, || {
            running.send(key);
            std::thread::sleep(std::time::Duration::from_millis(200));
            running.stdout_so_far().contains(answer)
        });
    }
    running.send("word\n");
    running.wait_for("got word");
    assert_eq!(running.finish().status, 4);
    // Without a handler ^C ends the payload, once and for all; ^Z stops the payload alone, for its own shell to see.
    let mut running = bed.run(["-t"], "echo ready; exec sleep 1000").pty(24, 80).spawn();
    running.wait_for("ready");
    running.send("\x03");
    assert_eq!(running.finish().status, 130);
}

fn pty_complete_output(bed: &Bed) {
    for _ in 0..5 {
        let outcome = bed.run(["-t"], "seq 1 20000; exit 3").pty(24, 80).output();
        assert_eq!(outcome.status, 3);
        let text = outcome.text();
        let expected: Vec<String> = (1..=20000).map(|n| n.to_string()).collect();
        assert!(
            text.split("\r\n").eq(expected.iter().map(String::as_str)),
            "{} bytes, ending in {:?}",
            text.len(),
            &text[text.len().saturating_sub(20)..]
        );
    }
}

/// The caller's terminal is as it was, however the sandbox ended.
fn pty_restored(bed: &Bed) {
    let program = bed::sandbox_binary();
    let program = program.display();
    for run in ["true", "sh -c 'exit 7'", "sh -c 'kill -9 $$'", "stty raw -echo", "/no/such", "--bind /no/such true"] {
        let script = format!(
            "stty intr ^G; stty -g; {program} run -q -t {run} >/dev/null 2>&1; {program} run -q -t {run}; stty -g"
        );
        let text = bed.sh(&script).pty(24, 80).output().text();
        let lines: Vec<&str> =
            text.lines().map(str::trim_end).filter(|line| line.contains(':') && !line.contains(' ')).collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "after {run}: {text}");
    }
}

fn pty_from_pipes(bed: &Bed) {
    let outcome = bed
        .run(
            ["-t"],
            "test -t 0 && test -t 1 && stty -echo; echo ready; while read line; do echo got $line; done; echo end",
        )
        .stdin("one\ntwo\n")
        .output()
        .succeeded();
    let text = outcome.text();
    assert!(text.contains("got one\r\n") && text.contains("got two\r\n") && text.ends_with("end"), "{text}");
    // An end of file in the middle of a line.
    let text = bed.run(["-t"], "stty -echo; cat; echo end").stdin("part").output().succeeded().text();
    assert!(text.ends_with("partend"), "{text}");
}

fn pty_as_user(bed: &Bed) {
    let text = bed
        .run(["-t", "--uid", "33"], "tty; stat -c %u:%G $(tty); echo x > $(tty)")
        .pty(24, 80)
        .output()
        .succeeded()
        .text();
    assert_eq!(text, "/dev/pts/0\r\n33:tty\r\nx");
}

/// A program that has closed its streams may still write to /dev/tty, more than a terminal holds.
fn pty_written_late(bed: &Bed) {
    let script = "exec <&- >&- 2>&-; sleep 0.3; echo late > /dev/tty; sleep 0.3; seq 1 5000 > /dev/tty; exit 3";
    for flags in [&["-t"][..], &["-t", "--as-pid1"]] {
        let text = bed.run(flags, script).timeout(Duration::from_secs(20)).output().exited(3).text();
        assert!(text.starts_with("late\r\n1\r\n2\r\n") && text.ends_with("\r\n5000"), "{flags:?}: {text}");
        assert_eq!(text.lines().count(), 5001, "{flags:?}");
    }
}

/// The clock ticks of CPU time that a process has had.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let times = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    times.map(|time| time.parse::<u64>().unwrap()).sum()
}

/// A closed descriptor is not polled: the launcher sleeps while nothing happens.
fn idle_costs_nothing(bed: &Bed) {
    let closed = "echo ready; exec <&- >&- 2>&-; exec sleep 1000";
    for flags in [&["--as-pid1"][..], &["-t"], &["-t", "--as-pid1"]] {
        // Its standard input ends at once.
        let mut running = bed.run(flags, closed).stdin("x\n").spawn();
        running.wait_for("ready");
        std::thread::sleep(Duration::from_millis(300));
        let before = ticks(running.pid());
        std::thread::sleep(Duration::from_secs(1));
        let used = ticks(running.pid()) - before;
        assert!(used <= 5, "{flags:?}: {used} ticks in a second of nothing");
    }
}

/// Even with the caller's terminal as stdin: it is not the controlling one, so nothing can be typed into it.
fn no_terminal_of_the_caller(bed: &Bed) {
    let push = "import fcntl, os\nfor name in ('/dev/tty',):\n  try: os.open(name, os.O_RDWR); print('opened', name)\n  except OSError as e: print(e.strerror)\n\
        try: fcntl.ioctl(0, 0x5412, b'x'); print('pushed')\nexcept OSError as e: print('refused', e.strerror)";
    let outcome = bed.sandbox(["run", "-q", "--pipe", "python3", "-c", push]).pty(24, 80).output();
    let text = outcome.text();
    assert!(
        text.contains("No such device or address") && text.contains("refused") && !text.contains("pushed"),
        "{text}"
    );
    let (running, scope) = bed.live(["--pipe"], "ps -o tty=,sid= -p $$; echo ready; exec cat");
    assert!(running.stdout_so_far().starts_with('?'), "{}", running.stdout_so_far());
    assert!(unit::is_active(&scope));
    running.finish().succeeded();
}
