//! Signals: relayed once to the payload, job control, the second Ctrl-C, and sudden deaths.

use crate::bed::{self, Bed};
use crate::command::Running;
use crate::daily::Stopped;
use crate::{Test, alone, test, unit};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("signals/relayed_once", needs![root, systemd], relayed_once),
        test("signals/relayed_once_as_pid1", needs![root, systemd], relayed_once_as_pid1),
        test("signals/default_actions", needs![root, systemd], default_actions),
        test("signals/only_the_payload", needs![root, systemd], only_the_payload),
        test("signals/stop_and_continue", needs![root, systemd], stop_and_continue),
        test("signals/second_interrupt_kills", needs![root, systemd], second_interrupt_kills),
        test("signals/later_interrupt_does_not_kill", needs![root, systemd], later_interrupt_does_not_kill),
        test("signals/second_interrupt_kills_the_stopped", needs![root, systemd], second_interrupt_kills_the_stopped),
        test("signals/stalled_reader", needs![root, systemd], stalled_reader),
        test("signals/from_the_terminal_as_pid1", needs![root, systemd], from_the_terminal_as_pid1),
        test("signals/stop_gives_the_terminal_back", needs![root, systemd], stop_gives_the_terminal_back),
        test("signals/during_the_start", needs![root, systemd], during_the_start),
        alone(
            "signals/while_systemd_is_slow",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            while_systemd_is_slow,
        ),
        test("signals/dispositions_are_fresh", needs![root, systemd], dispositions_are_fresh),
        test("signals/launcher_killed", needs![root, systemd], launcher_killed),
        test("signals/launcher_killed_as_pid1", needs![root, systemd], launcher_killed_as_pid1),
        test("signals/launcher_killed_with_share_pid", needs![root, systemd], launcher_killed_with_share_pid),
        test("signals/stub_killed", needs![root, systemd], stub_killed),
        test("signals/stub_terminated_from_inside", needs![root, systemd], stub_terminated_from_inside),
        test("signals/stub_is_out_of_reach", needs![root, systemd], stub_is_out_of_reach),
        test("signals/stub_shrinks_before_a_tracer", needs![root, systemd], stub_shrinks_before_a_tracer),
    ]
}

/// Says each signal that comes, with how often it has come, and ends with 9 at SIGUSR2.
fn counting() -> String {
    let names = ["HUP", "INT", "QUIT", "USR1", "TERM", "WINCH", "CONT"];
    let traps: String =
        names.iter().map(|name| format!("trap 'n{name}=$((n{name}+1)); echo {name} $n{name}.' {name}; ")).collect();
    format!("{traps} trap 'echo end; exit 9' USR2; echo ready; while :; do sleep 0.02; done")
}

#[track_caller]
fn relay(bed: &Bed, flags: &[&str]) {
    let (mut running, _) = bed.live(flags, &counting());
    for round in 1..=2 {
        for (signal, name) in [
            (Signal::HUP, "HUP"),
            (Signal::INT, "INT"),
            (Signal::QUIT, "QUIT"),
            (Signal::USR1, "USR1"),
            (Signal::TERM, "TERM"),
            (Signal::WINCH, "WINCH"),
            (Signal::CONT, "CONT"),
        ] {
            if round == 2 && name == "INT" {
                continue; // the second within a second kills
            }
            running.signal(signal);
            running.wait_for(&format!("{name} {round}."));
        }
    }
    running.signal(Signal::USR2);
    running.wait_for("end");
    let outcome = running.finish().exited(9);
    let said: Vec<String> = outcome.text().lines().map(str::to_owned).collect();
    assert_eq!(said.len(), 1 + 13 + 1, "each signal comes once: {said:?}");
}

fn relayed_once(bed: &Bed) {
    relay(bed, &[]);
    relay(bed, &["--share", "pid"]);
}

fn relayed_once_as_pid1(bed: &Bed) {
    relay(bed, &["--as-pid1"]);
}

fn default_actions(bed: &Bed) {
    for (signal, number) in
        [(Signal::HUP, 1), (Signal::INT, 2), (Signal::QUIT, 3), (Signal::USR1, 10), (Signal::TERM, 15)]
    {
        let (running, scope) = bed.live([""; 0], "ulimit -c 0; echo ready; exec sleep 1000");
        running.signal(signal);
        let outcome = running.finish().exited(128 + number);
        assert_eq!(outcome.errors(), "");
        bed.poll("the scope is gone", || unit::is_gone(&scope));
    }
}

/// Not its children: a shell decides itself what a signal means to them.
fn only_the_payload(bed: &Bed) {
    let script = "trap 'kill -0 $! && echo only me; exit 3' TERM; sh -c 'trap \"echo child got it\" TERM; echo ready; while :; do sleep 0.02; done' & wait";
    let (mut running, _) = bed.live([""; 0], script);
    running.signal(Signal::TERM);
    running.wait_for("only me");
    let outcome = running.finish().exited(3);
    assert!(!outcome.text().contains("child got it"), "{}", outcome.text());
}

fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

/// Ctrl-Z in a shell: SIGTSTP stops launcher and payload, its whole group; SIGCONT continues them.
fn stop_and_continue(bed: &Bed) {
    let (mut running, scope) = bed.live([""; 0], "sleep 1000 & echo ready; while read line; do echo got $line; done");
    let launcher = running.pid();
    let stub = unit::only_child(bed, launcher);
    let payload: Vec<u32> = unit::processes(&scope).into_iter().filter(|pid| *pid != stub).collect();
    assert_eq!(payload.len(), 2);
    for round in ["first", "second"] {
        running.signal(Signal::TSTP);
        bed.poll("all are stopped", || state(launcher) == 'T' && payload.iter().all(|pid| state(*pid) == 'T'));
        assert!(unit::is_active(&scope));
        running.signal(Signal::CONT);
        bed.poll("all go on", || state(launcher) != 'T' && payload.iter().all(|pid| state(*pid) != 'T'));
        running.send(format!("{round}\n"));
        running.wait_for(&format!("got {round}"));
    }
    // Stopped and killed by its unit.
    running.signal(Signal::TSTP);
    bed.poll("the launcher is stopped", || state(launcher) == 'T');
    bed.command("systemctl", ["kill", "--signal=KILL", &scope]).output().succeeded();
    bed.poll("the payload is gone", || payload.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    running.signal(Signal::CONT);
    running.finish().exited(137);
}

fn second_interrupt_kills(bed: &Bed) {
    for flags in [&[][..], &["--as-pid1"]] {
        let (mut running, scope) =
            bed.live(flags, "trap 'echo interrupted' INT; echo ready; while :; do sleep 0.02; done");
        running.signal(Signal::INT);
        running.wait_for("interrupted");
        running.signal(Signal::INT);
        running.finish().exited(137);
        bed.poll("the scope is gone", || unit::is_gone(&scope));
    }
}

/// Who presses Ctrl-C again a while later asks again; only who does it at once wants an end.
fn later_interrupt_does_not_kill(bed: &Bed) {
    for flags in [&[][..], &["--as-pid1"]] {
        let (mut running, scope) =
            bed.live(flags, "trap 'n=$((n+1)); echo interrupted $n.' INT; echo ready; while :; do sleep 0.02; done");
        for round in 1..=3 {
            running.signal(Signal::INT);
            running.wait_for(&format!("interrupted {round}."));
            // The launcher looked at its clock before the payload heard of it.
            std::thread::sleep(Duration::from_millis(1100));
        }
        assert!(!running.is_over() && unit::is_active(&scope));
        // More often than twice: on a slow bed a second may pass between two.
        bed.poll("it is killed", || {
            running.signal(Signal::INT);
            std::thread::sleep(Duration::from_millis(100));
            running.is_over()
        });
        running.finish().exited(137);
    }
}

/// Also when neither the payload nor the stub can hear of it.
fn second_interrupt_kills_the_stopped(bed: &Bed) {
    for stub_too in [false, true] {
        let (mut running, scope) = bed.live([""; 0], "trap '' INT; echo ready; kill -STOP $$; sleep 1000");
        if stub_too {
            let stub = unit::only_child(bed, running.pid());
            bed.command("kill", ["-STOP", &stub.to_string()]).output().succeeded();
            // More than the socket to it takes.
            for _ in 0..1500 {
                running.signal(Signal::USR1);
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        // More often than twice: two that come before the launcher looks are one.
        bed.poll("it is killed", || {
            running.signal(Signal::INT);
            std::thread::sleep(Duration::from_millis(100));
            running.is_over()
        });
        running.finish().exited(137);
        bed.poll("the scope is gone", || unit::is_gone(&scope));
    }
}

/// With a terminal of the sandbox's own the launcher hands the output on: who does not read it must not keep signals waiting.
fn stalled_reader(bed: &Bed) {
    let name = format!("{}.scope", bed.unit());
    let start = |payload: &str| {
        let unit = bed.unit();
        let args = ["run", "-q", "-t", "--unit", &unit, "--", "sh", "-c", payload];
        let mut command = Command::new(bed::sandbox_binary());
        // Whatever fails below: the pipe closes with the test, and that ends a launcher that waits for its reader.
        let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        bed.poll("the payload writes", || unit::is_active(&name) && unit::processes(&name).len() >= 2);
        // Until every buffer is full.
        std::thread::sleep(Duration::from_millis(500));
        child
    };
    // The first one ends the payload, and the rest of its output waits for the reader; a second one gives that up.
    let mut child = start("exec yes");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    bed.poll("the payload is gone", || unit::is_gone(&name));
    assert!(child.try_wait().unwrap().is_none(), "a slow reader would have lost the end");
    kill_process(pid, Signal::TERM).unwrap();
    bed.poll("the launcher ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    // A payload that ignores signals is killed by the second, and nothing is waited for.
    let mut child = start("trap '' INT; yes");
    let pid = Pid::from_child(&child);
    bed.poll("it is killed", || {
        kill_process(pid, Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

/// A shell waits for its foreground child before it looks at a signal: Ctrl-C has to reach both.
fn from_the_terminal_as_pid1(bed: &Bed) {
    let script = "trap 'echo interrupted; exit 4' INT; sh -c 'echo ready; exec sleep 1000'; echo after";
    for flags in [&["--pipe"][..], &["--pipe", "--as-pid1"], &["-t", "--as-pid1"]] {
        let mut running = bed.run(flags, script).pty(24, 80).spawn();
        running.wait_for("ready");
        running.send("\x03");
        running.wait_for("interrupted");
        assert!(!running.finish().exited(4).text().contains("after"), "{flags:?}");
    }
}

/// Whoever stops the launcher gets a terminal that can be worked in; continued it follows the size that came meanwhile.
fn stop_gives_the_terminal_back(bed: &Bed) {
    let script = "trap 'stty size' CONT; echo ready; while :; do sleep 0.02; done";
    let mut running = bed.run(["-t"], script).pty(24, 80).spawn();
    running.wait_for("ready");
    let pid = running.pid();
    let is_raw = || {
        let settings = bed.command("stty", ["-a", "-F", &format!("/proc/{pid}/fd/0")]).output().succeeded().text();
        settings.contains("-icanon")
    };
    assert!(is_raw());
    running.signal(Signal::TSTP);
    bed.poll("the launcher is stopped", || state(pid) == 'T');
    assert!(!is_raw());
    running.resize(33, 77);
    running.signal(Signal::CONT);
    running.wait_for("33 77");
    assert!(is_raw());
    running.signal(Signal::TERM);
    running.finish().exited(143);
}

/// A signal that comes before there is a payload is not lost, and leaves nothing.
fn during_the_start(bed: &Bed) {
    for _ in 0..10 {
        let unit = bed.unit();
        let running = bed.run(["--unit", &unit], "exec sleep 1000").spawn();
        // As soon as the launcher has blocked its signals it takes them; before, the signal ends it.
        running.signal(Signal::TERM);
        assert_eq!(running.finish().status, 143);
        bed.poll("the scope is gone", || unit::is_gone(&format!("{unit}.scope")));
    }
}

/// A signal that ends a start ends it also where systemd gets to it after that, and where it does not.
fn while_systemd_is_slow(bed: &Bed) {
    for goes_on in [true, false] {
        let unit = bed.unit();
        // Else it is the bus that is waited for, which the manager starts.
        bed.command("systemctl", ["--user", "start", "dbus"]).user().output().succeeded();
        let stopped = Stopped::manager();
        let flags = ["run", "--user", "--as-pid1", "--unit", &unit, "--", "sleep", "1000"];
        let running = bed.sandbox(flags).user().timeout(Duration::from_secs(25)).spawn();
        bed.poll("the child waits", || !unit::children(running.pid()).is_empty());
        std::thread::sleep(Duration::from_secs(1));
        running.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(500));
        let stopped = Some(stopped).filter(|_| !goes_on);
        let outcome = running.finish().exited(143);
        assert!(outcome.errors().contains("interrupted by SIGTERM before the command ran"), "{}", outcome.errors());
        drop(stopped);
        let is_gone = || {
            let state = bed.command("systemctl", ["--user", "is-active", &format!("{unit}.scope")]).user().output();
            state.text().trim() == "inactive"
        };
        bed.poll("the scope is gone", is_gone);
    }
}

/// What the caller ignores or blocks, the payload does not.
fn dispositions_are_fresh(bed: &Bed) {
    let program = super::bed::sandbox_binary();
    let show = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let script = format!(
        "import signal, os\nfor s in (1, 2, 3, 13, 15, 20): signal.signal(s, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, [10, 12, 17])\nos.execv('{0}', ['{0}', 'run', '-q', 'sh', '-c', \"exec {show}\"])",
        program.display()
    );
    let text = bed.command("python3", ["-c", &script]).output().succeeded().text();
    let mask = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
    let masks: Vec<u64> = text.lines().map(mask).collect();
    // 32 and 33 are glibc's own; some callers come with them ignored.
    assert_eq!((masks[0], masks[1] & !(3 << 31)), (0, 0), "{text}");
}

/// Nothing inside outlives its launcher, daemons of other sessions neither.
fn killed(bed: &Bed, flags: &[&str], script: &str, at_least: usize) -> Running {
    let (running, scope) = bed.live(flags, script);
    let processes = unit::processes(&scope);
    assert!(processes.len() >= at_least, "{processes:?}");
    running.signal(Signal::KILL);
    for pid in processes {
        bed.poll("everything inside is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    }
    bed.poll("the scope is gone", || unit::is_gone(&scope));
    running
}

const DAEMONS: &str = "trap '' TERM HUP INT; setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1001' & setsid setsid sleep 1002 & while ! pgrep -f 'sleep 1002'; do :; done > /dev/null; echo ready; sleep 1003";

fn launcher_killed(bed: &Bed) {
    assert_eq!(killed(bed, &[], DAEMONS, 6).finish().status, 137);
}

fn launcher_killed_as_pid1(bed: &Bed) {
    assert_eq!(killed(bed, &["--as-pid1"], DAEMONS, 5).finish().status, 137);
}

fn launcher_killed_with_share_pid(bed: &Bed) {
    let script = "echo ready; exec sleep 1000";
    assert_eq!(killed(bed, &["--share", "pid"], script, 2).finish().status, 137);
}

fn stub_killed(bed: &Bed) {
    let (running, scope) = bed.live([""; 0], DAEMONS);
    let processes = unit::processes(&scope);
    let stub = unit::only_child(bed, running.pid());
    bed.command("kill", ["-9", &stub.to_string()]).output().succeeded();
    running.finish().exited(137);
    for pid in processes {
        bed.poll("everything inside is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    }
    bed.poll("the scope is gone", || unit::is_gone(&scope));
}

fn stub_terminated_from_inside(bed: &Bed) {
    let script = "trap 'echo asked to end; exit 5' TERM; kill 1; while :; do sleep 0.02; done";
    let outcome = bed.run([""; 0], script).output().exited(5);
    assert_eq!(outcome.text(), "asked to end");
}

/// Who may trace on the host could else make the stub do what the payload may not: a static program looks at once.
fn stub_shrinks_before_a_tracer(bed: &Bed) {
    let flags = ["run", "-q", "--userns", "host", "--cap-add", "SYS_PTRACE", "--"];
    for _ in 0..20 {
        let look = bed.sandbox(flags).args(["busybox", "grep", "^Seccomp:", "/proc/1/status"]).output();
        assert_eq!(look.succeeded().text(), "Seccomp:\t2");
    }
}

/// Its own root cannot end it, stop it or look into it.
fn stub_is_out_of_reach(bed: &Bed) {
    let script = "kill -9 1; kill -STOP 1; kill -HUP 1; kill -INT 1; echo still; for f in environ maps mem fd/0 root/etc cwd; do cat /proc/1/$f > /dev/null 2>&1 && echo read $f; done; \
        readlink /proc/1/fd/* /proc/1/exe /proc/1/cwd; ls /proc/1/root 2>/dev/null; exit 0";
    let (running, _) = bed.live(["--cap-add", "KILL"], &format!("({script}); echo ready; exec cat"));
    let stub = unit::only_child(bed, running.pid());
    assert_ne!(state(stub), 'T');
    let outcome = running.finish().succeeded();
    assert_eq!(outcome.text(), "still\nready", "{}", outcome.errors());
}
