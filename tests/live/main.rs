//! Live tests: the program on a real systemd and a real kernel, in the lab and in the VM matrix (`tests/run.sh`).
//!
//! One file per area, each with a `tests()` that lists its tests, called below. A test is a `fn(&Bed)` that panics when something
//! is wrong:
//! ```ignore
//! test("limits/memory_max", needs![root, systemd, cgroup2], limits::memory_max),
//! alone("leaks/two_hundred_starts", needs![root, systemd], leaks::two_hundred_starts),   // nothing else runs meanwhile
//! ```
//! Needs (`facts.rs`): root systemd cgroup1 joint_cpuacct cgroup2 idmap disk overlay_root user_manager fuse pasta apparmor apparmor4 selinux
//! systemd_min(N) systemd_max(N) kernel_min(A, B).
//! A need that is not met makes the test "ignored" and says so on stderr. With `SANDBOX_TEST_MUST_RUN=1` a need that the bed
//! promised (`SANDBOX_TEST_PROMISES="root systemd …"`) and lacks is a failure.
//!
//! What a test has (`bed.rs`, `command.rs`, `unit.rs`, `snapshot.rs`):
//! - `bed.unit()`, `bed.slice()`, `bed.id()`: names that no other test uses; what is left of them is stopped when the test ends.
//! - `bed.sandbox(["run", …])`, `bed.command("systemctl", […])` → `.env() .stdin() .dir() .user() .with_mounts("mount …")
//!   .pty(24, 80) .timeout()`, then `.output()` → `Outcome { status, stdout, stderr, … }` with `.succeeded()`, `.exited(125)`, `.text()`, `.errors()`; or
//!   `.spawn()` → `Running` with `.pid() .wait_for("text") .signal() .send() .resize() .finish()`; dropped = killed.
//!   `status` is the exit code, or 128+n after signal n. A command that outlives its timeout fails the test.
//! - `bed.run(flags, script)`: `sandbox run -q FLAGS -- sh -c SCRIPT`; `bed.live(flags, script)` starts it under a unit of the test and
//!   waits until the payload has said `ready`; `bed.live_loud` the same without -q. `Outcome::refused(125, ["MemoryMax"])`: one error line, at most one hint.
//! - `tree::Tree::take(dir)`: everything about a directory tree, to be compared; `tree::busybox(&dir)`: a small root.
//! - `bed.poll("what", || …)`: up to 5 s; `bed.dir()` on tmpfs, `bed.disk_dir()` on the root file system, `bed.seen_dir()` the same where
//!   the host view shows it.
//! - `unit::property("x.scope", "MemoryMax")`, `unit::cgroup_file("x.scope", "memory", "memory.max")` in either cgroup version,
//!   `unit::processes("x.scope")`, `unit::cgroup_of(pid, "memory")`.
//! - `let before = HostState::take(); …; bed.nothing_left(&before)`: mounts, units, cgroups, /run and PID 1's descriptors.
//!
//! Environment: `SANDBOX_BIN` (else cargo's), `SANDBOX_TEST_SLOW` (a factor for every time limit, 8 under emulation),
//! `SANDBOX_TEST_TIMES` (set: how long each test took, on stderr).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a broken expectation is a failure, which a panic reports"
)]
#![allow(clippy::print_stderr, reason = "a test that cannot run must say so where a human looks")]

/// `needs![root, systemd_min(253)]`
macro_rules! needs {
    ($($name:ident $(($($arg:expr),*))?),* $(,)?) => { vec![$(crate::facts::need::$name($($($arg),*)?)),*] };
}

mod bed;
mod bed_itself;
mod binds;
mod command;
mod commandline;
mod confinement;
mod daily;
mod escape;
mod facts;
mod hostview;
mod images;
mod kept;
mod labels;
mod leaks;
mod limits;
mod namespaces;
mod nesting;
mod network;
mod outside;
mod pressure;
mod process;
mod procview;
mod profiles;
mod rootfs;
mod seccomp;
mod services;
mod signals;
mod snapshot;
mod statuses;
mod streams;
mod tree;
mod unit;
mod units;
mod workflow;

use bed::Bed;
use facts::{Facts, Need};
use libtest_mimic::{Arguments, Completion, Conclusion, Trial};
use std::cell::Cell;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

struct Test {
    name: &'static str,
    needs: Vec<Need>,
    alone: bool,
    run: fn(&Bed),
}

fn test(name: &'static str, needs: Vec<Need>, run: fn(&Bed)) -> Test {
    Test { name, needs, alone: false, run }
}

fn alone(name: &'static str, needs: Vec<Need>, run: fn(&Bed)) -> Test {
    Test { name, needs, alone: true, run }
}

fn all() -> Vec<Test> {
    let areas = [
        bed_itself::tests(),
        binds::tests(),
        commandline::tests(),
        confinement::tests(),
        escape::tests(),
        daily::tests(),
        hostview::tests(),
        images::tests(),
        kept::tests(),
        labels::tests(),
        leaks::tests(),
        process::tests(),
        procview::tests(),
        profiles::tests(),
        rootfs::tests(),
        seccomp::tests(),
        limits::tests(),
        namespaces::tests(),
        nesting::tests(),
        network::tests(),
        pressure::tests(),
        workflow::tests(),
        services::tests(),
        signals::tests(),
        statuses::tests(),
        streams::tests(),
        units::tests(),
    ];
    areas.into_iter().flatten().collect()
}

/// Tests share this; one that must be alone holds it for itself.
static TURN: RwLock<()> = RwLock::new(());

fn trial(test: Test, facts: &'static Facts) -> Trial {
    Trial::ignorable_test(test.name, move || {
        for need in &test.needs {
            let Err(why) = facts.has(need) else { continue };
            if facts.promised(need) {
                return Err(format!("the bed promised {need} and lacks it: {why}").into());
            }
            // One write, so that two threads do not mix their lines.
            let _ = std::io::stderr().write_all(format!("NOT RUN {}: needs {need}: {why}\n", test.name).as_bytes());
            return Ok(Completion::ignored_with(format!("needs {need}")));
        }
        // Poisoned only means that another test failed.
        let _all = test.alone.then(|| TURN.write().unwrap_or_else(PoisonError::into_inner));
        let _one = (!test.alone).then(|| TURN.read().unwrap_or_else(PoisonError::into_inner));
        NAME.set(test.name);
        let start = Instant::now();
        // What the tests before have left to systemd is nothing that this one finds gone after it.
        while test.alone && snapshot::has_ended_ones() && start.elapsed() < bed::patience(Duration::from_secs(10)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        (test.run)(&Bed::new(facts));
        if std::env::var_os("SANDBOX_TEST_TIMES").is_some() {
            let _ = std::io::stderr()
                .write_all(format!("{:8.2} s {}\n", start.elapsed().as_secs_f64(), test.name).as_bytes());
        }
        Ok(Completion::Completed)
    })
}

thread_local! {
    /// The test that runs on this thread; empty while it expects a panic.
    static NAME: Cell<&'static str> = const { Cell::new("") };
}

/// Says which test failed and where; a backtrace through the test harness would tell nothing more.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let name = NAME.get();
    if !name.is_empty() {
        eprintln!("FAILED {name}: {panic}");
    }
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(2);
    let facts: &'static Facts = Box::leak(Box::new(Facts::read()));
    if !args.list {
        eprintln!("{facts}");
    }
    let conclusion: Conclusion = libtest_mimic::run(&args, all().into_iter().map(|test| trial(test, facts)).collect());
    conclusion.exit_code()
}
