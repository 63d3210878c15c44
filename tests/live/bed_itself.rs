//! The bed's own tests: what the others rely on.

use crate::bed::Bed;
use crate::facts::Need;
use crate::snapshot::HostState;
use crate::{Test, alone, test, unit};
use rustix::process::Signal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("bed/promises", needs![], promises),
        test("bed/systemd", needs![root, systemd], systemd),
        test("bed/scope_v1", needs![root, systemd, cgroup1], scope_v1),
        test("bed/scope_v2", needs![root, systemd, cgroup2], scope_v2),
        test("bed/idmap", needs![root, idmap], idmap),
        test("bed/fuse", needs![root, fuse], fuse),
        test("bed/user_manager", needs![root, user_manager], user_manager),
        test("bed/outcomes", needs![], outcomes),
        test("bed/streams", needs![], streams),
        test("bed/pty", needs![], pty),
        test("bed/time_limit", needs![], time_limit),
        test("bed/background", needs![], background),
        alone("bed/snapshot", needs![root, systemd], snapshot),
        alone("bed/names_are_cleaned_up", needs![root, systemd], names_are_cleaned_up),
    ]
}

/// The message of a failure that must happen.
fn failure(run: impl FnOnce()) -> String {
    let name = crate::NAME.replace("");
    let failed = catch_unwind(AssertUnwindSafe(run));
    crate::NAME.set(name);
    failed.expect_err("it should have failed").downcast_ref::<String>().expect("a message").clone()
}

/// Every word in SANDBOX_TEST_PROMISES is a need, and is met.
fn promises(bed: &Bed) {
    let known = [
        Need::Root,
        Need::Systemd,
        Need::Cgroup1,
        Need::JointCpuacct,
        Need::Cgroup2,
        Need::Idmap,
        Need::Disk,
        Need::OverlayRoot,
        Need::UserManager,
        Need::Fuse,
        Need::Pasta,
        Need::Apparmor,
        Need::Apparmor4,
        Need::Selinux,
    ]
    .map(|need| (need.to_string(), need));
    for promise in &bed.facts.promises {
        let (_, need) =
            known.iter().find(|(name, _)| name == promise).unwrap_or_else(|| panic!("no need is called {promise}"));
        if let Err(why) = bed.facts.has(need) {
            panic!("promised {promise}: {why}");
        }
    }
}

fn systemd(bed: &Bed) {
    let state = bed.command("systemctl", ["is-system-running"]).output().text();
    assert!(["running", "degraded"].contains(&state.as_str()), "the system is {state}");
    bed.command("busctl", ["--system", "list"]).output().succeeded();
}

fn scope(bed: &Bed, controller: &str, file: &str, expected: &str) {
    let unit = bed.unit();
    let mut running = bed
        .command("systemd-run", ["--scope", "-q", "-p", "MemoryMax=64M", "--slice", &bed.slice(), "--unit", &unit])
        .arg("sh")
        .arg("-c")
        .arg("echo started; exec sleep 100")
        .spawn();
    running.wait_for("started");
    let scope = format!("{unit}.scope");
    assert!(unit::is_active(&scope));
    assert_eq!(unit::property(&scope, "Slice"), bed.slice());
    assert_eq!(unit::properties(&scope, &["MemoryMax", "Id"]).get("MemoryMax").map(String::as_str), Some("67108864"));
    assert_eq!(unit::cgroup_file(&scope, controller, file).as_deref(), Some(expected));
    assert_eq!(unit::processes(&scope), [running.pid()]);
    let path = unit::property(&scope, "ControlGroup");
    assert_eq!(unit::cgroup_of(running.pid(), controller), Some(path));
    bed.command("systemctl", ["stop", &scope]).output().succeeded();
    let outcome = running.finish();
    assert_eq!((outcome.status, outcome.signal), (143, Some(15)));
    bed.poll("the scope is collected", || unit::is_gone(&scope));
}

fn scope_v1(bed: &Bed) {
    scope(bed, "memory", "memory.limit_in_bytes", "67108864");
}

fn scope_v2(bed: &Bed) {
    scope(bed, "memory", "memory.max", "67108864");
}

/// The file system type told the truth: an unprivileged user namespace exists too.
fn idmap(bed: &Bed) {
    let map = bed.command("unshare", ["--user", "--map-root-user", "cat", "/proc/self/uid_map"]).output().succeeded();
    assert_eq!(map.text().split_whitespace().collect::<Vec<_>>(), ["0", "0", "1"]);
}

fn fuse(bed: &Bed) {
    let types = bed.command("cat", ["/proc/filesystems"]).output().succeeded().text();
    assert!(types.lines().any(|line| line.ends_with("\tfuse")), "the kernel has no fuse");
}

fn user_manager(bed: &Bed) {
    let outcome =
        bed.command("systemd-run", ["--user", "--scope", "-q", "cat", "/proc/self/cgroup"]).user().output().succeeded();
    assert!(outcome.text().contains("/user@1000.service/"), "{}", outcome.text());
}

fn outcomes(bed: &Bed) {
    bed.sh("exit 42").output().exited(42);
    let killed = bed.sh("kill -9 $$").output();
    assert_eq!((killed.status, killed.signal), (137, Some(9)));
    let message = failure(|| drop(bed.sh("echo why >&2; exit 1").output().succeeded()));
    assert!(message.contains("why"), "{message}");
}

fn streams(bed: &Bed) {
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let outcome = bed.command("cat", ["-"]).stdin(bytes.clone()).output().succeeded();
    assert!(outcome.stdout == bytes, "the bytes changed on their way");
    let outcome = bed.sh("pwd; echo $SOME; echo err >&2").env("SOME", "value").dir("/usr").output().succeeded();
    assert_eq!((outcome.text().as_str(), outcome.errors().as_str()), ("/usr\nvalue", "err"));
}

fn pty(bed: &Bed) {
    let mut running = bed
        .sh("trap 'stty size; exit 3' WINCH; stty size; tty; while :; do sleep 0.05; done < /dev/tty")
        .pty(30, 90)
        .spawn();
    running.wait_for("30 90");
    running.wait_for("/dev/pts/");
    running.resize(31, 91);
    running.wait_for("31 91");
    running.finish().exited(3);
}

fn time_limit(bed: &Bed) {
    let message = failure(|| drop(bed.sh("sleep 1000").timeout(Duration::from_millis(50)).output()));
    assert!(message.contains("still running"), "{message}");
    let message = failure(|| drop(bed.sh("sleep 1000 & exit 0").output()));
    assert!(message.contains("still holds its output"), "{message}");
}

fn background(bed: &Bed) {
    let mut running = bed.sh("echo $$; read line; echo got $line; exec sleep 1000").spawn();
    running.send("something\n");
    running.wait_for("got something");
    let pid = running.pid();
    drop(running);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "dropped, and alive");
    let running = bed.sh("exec sleep 1000").spawn();
    running.signal(Signal::TERM);
    assert_eq!(running.finish().status, 143);
}

fn snapshot(bed: &Bed) {
    let before = HostState::take();
    let unit = bed.unit();
    let mut running = bed
        .command("systemd-run", ["--scope", "-q", "--unit", &unit, "sh", "-c", "echo started; exec sleep 100"])
        .spawn();
    running.wait_for("started");
    let changes = before.changes(&HostState::take());
    for expected in
        [format!("+ unit {unit}.scope"), "+ cgroup ".to_owned(), "+ file /run/systemd/transient/".to_owned()]
    {
        assert!(changes.iter().any(|line| line.starts_with(&expected)), "no '{expected}' in {changes:#?}");
    }
    drop(running);
    bed.nothing_left(&before);
}

fn names_are_cleaned_up(bed: &Bed) {
    let before = HostState::take();
    let other = Bed::new(bed.facts);
    let unit = format!("{}-left", other.id());
    other
        .command("systemd-run", ["-q", "--unit", &unit, "--slice", &other.slice(), "sleep", "1000"])
        .output()
        .succeeded();
    assert!(unit::is_active(&format!("{unit}.service")));
    drop(other);
    bed.nothing_left(&before);
}
