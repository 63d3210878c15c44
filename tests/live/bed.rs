//! What one test works with: names of its own, directories, commands, patience.

use crate::command::{Cmd, Running};
use crate::facts::{Facts, TESTER};
use crate::snapshot::HostState;
use crate::unit;
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Every time limit is multiplied by this: emulation is slow, and a limit is there to end a hang, not to measure.
pub(crate) static SLOW: LazyLock<u32> =
    LazyLock::new(|| std::env::var("SANDBOX_TEST_SLOW").ok().and_then(|v| v.parse().ok()).unwrap_or(1));
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A time limit on this bed.
pub(crate) fn patience(native: Duration) -> Duration {
    native * *SLOW
}

/// How many starts at once: systemd has 30 s for all of them, however slow the bed is.
pub(crate) fn at_once(native: u32, least: u32) -> u32 {
    (native / *SLOW).max(least)
}

/// Waits until `done` holds, and panics with `what` when it does not within `limit` (before the bed's factor).
#[track_caller]
pub(crate) fn poll_until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let limit = patience(limit);
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One test's share of the machine.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) facts: &'static Facts,
    id: String,
    named: Cell<bool>,
    dirs: RefCell<Vec<TempDir>>,
}

#[allow(dead_code, reason = "helpers are here before the tests that use them")]
impl Bed {
    pub(crate) fn new(facts: &'static Facts) -> Self {
        // No dash in it: in a slice's name a dash means nesting.
        let id = format!("sbt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { facts, id, named: Cell::new(false), dirs: RefCell::new(Vec::new()) }
    }

    /// A word that no other test uses, to begin names with. Units whose name contains it are stopped when the test ends.
    pub(crate) fn id(&self) -> &str {
        self.named.set(true);
        &self.id
    }

    /// A unit name without its suffix, for `--unit`.
    pub(crate) fn unit(&self) -> String {
        format!("{}-u", self.id())
    }

    pub(crate) fn slice(&self) -> String {
        format!("{}s.slice", self.id())
    }

    /// The program under test.
    pub(crate) fn sandbox<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Cmd {
        Cmd::new(sandbox_binary(), args)
    }

    pub(crate) fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: I,
    ) -> Cmd {
        Cmd::new(program, args)
    }

    /// `sandbox run -q FLAGS -- sh -c SCRIPT`.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>, script: &str) -> Cmd {
        let flags = flags.into_iter().fold(self.sandbox(["run", "-q"]), Cmd::arg);
        flags.arg("--").arg("sh").arg("-c").arg(script)
    }

    /// The same in the background, in a unit of this test (its name is returned, with `.scope`). The script says `ready` on stdout
    /// when it has come to where the test begins; that is waited for.
    #[track_caller]
    pub(crate) fn live<S: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = S>, script: &str) -> (Running, String) {
        self.start(self.sandbox(["run", "-q"]).args(flags), script)
    }

    /// The same with its warnings, but for the one that a bed without idmapped mounts would owe.
    #[track_caller]
    pub(crate) fn live_loud<S: AsRef<OsStr>>(
        &self,
        flags: impl IntoIterator<Item = S>,
        script: &str,
    ) -> (Running, String) {
        self.start(self.sandbox(["run", "--userns", "identity"]).args(flags), script)
    }

    #[track_caller]
    fn start(&self, run: Cmd, script: &str) -> (Running, String) {
        let unit = format!("{}{}", self.unit(), COUNT.fetch_add(1, Ordering::Relaxed));
        let own = [format!("--unit={unit}"), format!("--slice={}", self.slice())];
        let mut running = run.args(own).args(["--", "sh", "-c", script]).spawn();
        running.wait_for("ready");
        (running, format!("{unit}.scope"))
    }

    /// A shell line, for what is clearest as one.
    pub(crate) fn sh(&self, script: &str) -> Cmd {
        Cmd::new("sh", ["-c", script])
    }

    /// An empty directory, gone after the test: on /tmp, which a bed may have on tmpfs.
    pub(crate) fn dir(&self) -> PathBuf {
        self.keep(tempfile::tempdir())
    }

    /// The same on the root file system, where layers can be idmapped and trusted.* attributes are kept.
    pub(crate) fn disk_dir(&self) -> PathBuf {
        self.keep(tempfile::tempdir_in("/var/tmp"))
    }

    /// The same in a place that the host view does not hide.
    pub(crate) fn seen_dir(&self) -> PathBuf {
        self.keep(tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir_in("/srv"))
    }

    /// A directory of / that nobody but root may list.
    pub(crate) fn closed_dir(&self) -> PathBuf {
        let mode = Permissions::from_mode(0o700);
        self.keep(tempfile::Builder::new().prefix("sbt-").permissions(mode).tempdir_in("/"))
    }

    /// A directory of `tester`'s on the root file system.
    pub(crate) fn user_dir(&self) -> PathBuf {
        let dir = self.disk_dir();
        std::os::unix::fs::chown(&dir, Some(TESTER), Some(TESTER)).expect("chown");
        dir
    }

    fn keep(&self, dir: std::io::Result<TempDir>) -> PathBuf {
        let dir = dir.expect("a directory for the test");
        let path = dir.path().to_owned();
        self.dirs.borrow_mut().push(dir);
        path
    }

    /// Five seconds of patience: systemd collects units later, processes end later.
    #[track_caller]
    pub(crate) fn poll(&self, what: &str, done: impl FnMut() -> bool) {
        poll_until(Duration::from_secs(5), what, done);
    }

    /// The host is as it was before, within ten seconds. Only for tests registered with `alone`.
    #[track_caller]
    pub(crate) fn nothing_left(&self, before: &HostState) {
        self.nothing_left_after(before, || {});
    }

    /// The same, once `cleaning` has been done again and again.
    #[track_caller]
    pub(crate) fn nothing_left_after(&self, before: &HostState, mut cleaning: impl FnMut()) {
        let limit = patience(Duration::from_secs(10));
        let start = Instant::now();
        loop {
            cleaning();
            let cleaned = Instant::now();
            // The cleaning may have had a unit of its own, which systemd takes its time to collect.
            while cleaned.elapsed() < limit / 5 {
                let changes = before.changes(&HostState::take());
                if changes.is_empty() {
                    return;
                }
                assert!(start.elapsed() < limit, "left on the host:\n{}", changes.join("\n"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.named.get() && self.facts.systemd.is_some() && self.facts.root {
            unit::stop_all_named(&self.id);
        }
    }
}

/// `SANDBOX_BIN`, which the beds set, else what cargo built beside us.
pub(crate) fn sandbox_binary() -> PathBuf {
    std::env::var_os("SANDBOX_BIN").map_or_else(|| Path::new(env!("CARGO_BIN_EXE_sandbox")).to_owned(), PathBuf::from)
}
