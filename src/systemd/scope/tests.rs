use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use zbus::ObjectPath;
use zbus::message::Message;

use super::super::Progress;
use super::super::bus::Place;
use super::super::property::Assignment;
use super::super::wire::GREETING;
use super::super::wire::tests::{answer, next_call, signal_of};
use super::*;
use crate::error::Fault;

/// What the fake systemd does on a call.
#[derive(Clone, Copy)]
enum Act {
    /// Answers with this job, which ends at once with this result.
    Job(&'static str, &'static str),
    /// The job ends before the answer is sent; another unit's job ends too.
    JobEndsFirst(&'static str),
    /// Answers with an error.
    Error(&'static str, &'static str),
    /// Answers with a property that is a text.
    Text(&'static str),
    /// Answers with a property that says yes or no.
    Bool(bool),
    /// Answers with a list of so many processes.
    Processes(u32),
    /// Answers with nothing in it.
    Nothing,
    /// Answers with a job that never ends.
    Stuck,
    /// Does not answer.
    Silent,
    /// Ends the connection.
    Close,
}

/// Serves one connection on `socket`: each call must be the next of the script. Returns what was called, with a `+`
/// for each of two properties in it.
fn systemd(socket: &Path, script: Vec<(&'static str, Act)>) -> std::io::Result<JoinHandle<Vec<String>>> {
    let listener = UnixListener::bind(socket)?;
    Ok(std::thread::spawn(move || listener.accept().map(|(stream, _)| serve(stream, &script)).unwrap_or_default()))
}

fn serve(mut stream: UnixStream, script: &[(&'static str, Act)]) -> Vec<String> {
    let mut calls = Vec::new();
    let mut greeting = [0; GREETING.len()];
    if stream.read_exact(&mut greeting).is_err() || stream.write_all(b"DATA\r\nOK 1\r\nAGREE_UNIX_FD\r\n").is_err() {
        return calls;
    }
    let mut buffer = Vec::new();
    for (member, act) in script {
        let Some((serial, called, bytes)) = next_call(&mut stream, &mut buffer) else { return calls };
        assert_eq!(called, *member, "after {calls:?}");
        let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
        let extra = ["PIDFDs", "OOMPolicy"].iter().filter(|name| has(name)).map(|name| format!("+{name}"));
        calls.push(format!("{called}{}", extra.collect::<String>()));
        let messages = match act {
            Act::Job(path, result) => vec![answer(serial, &job(path)), ended(path, result)],
            Act::JobEndsFirst(path) => {
                vec![ended("/other", "failed"), ended(path, "done"), answer(serial, &job(path))]
            }
            Act::Error(name, text) => vec![error(serial, name, text)],
            Act::Text(text) => vec![answer(serial, &Variant::from(*text))],
            Act::Bool(is) => vec![answer(serial, &Variant::from(*is))],
            Act::Processes(count) => {
                let row = |pid| ("/".to_owned(), pid, "true".to_owned());
                vec![answer(serial, &(1..=*count).map(row).collect::<Vec<_>>())]
            }
            Act::Nothing => vec![answer(serial, &())],
            Act::Stuck => vec![answer(serial, &job("/stuck"))],
            Act::Silent => Vec::new(),
            Act::Close => return calls,
        };
        for message in messages {
            drop(stream.write_all(&message));
        }
    }
    // What nobody expected.
    while let Some((_, called, _)) = next_call(&mut stream, &mut buffer) {
        calls.push(called);
    }
    calls
}

fn job(path: &str) -> ObjectPath<'_> {
    ObjectPath::try_from(path).unwrap_or_default()
}

fn ended(path: &str, result: &str) -> Vec<u8> {
    signal_of("JobRemoved", &(1u32, job(path), "t.scope", result))
}

fn error(serial: std::num::NonZeroU32, name: &str, text: &str) -> Vec<u8> {
    let call = Message::method_call("/a", "M").serial(serial).build(&());
    let message = call.and_then(|call| Message::error(&call.header(), name).serial(serial).build(&(text,)));
    message.map(|message| message.data().bytes().to_vec()).unwrap_or_default()
}

/// A request of which the kernel shows this.
struct Shown<'a>(ScopeRequest<'a>, Option<bool>);

impl Request for Shown<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn settings(&self) -> &[Setting] {
        self.0.settings()
    }

    fn properties<'a>(&'a self, left_out: &[&str]) -> Vec<(&'a str, Variant<'a>)> {
        self.0.properties(left_out)
    }

    fn is_shown(&self) -> bool {
        self.1.is_some()
    }

    fn stands(&self) -> Option<bool> {
        self.1
    }
}

/// Starts a scope against the script; returns the outcome in words and what was called.
fn start(script: &[(&'static str, Act)], settings: &[Setting], wait: Duration) -> (String, String) {
    start_shown(script, settings, wait, Some(false))
}

/// The same, where the kernel shows that it stands, or does not.
fn start_shown(
    script: &[(&'static str, Act)],
    settings: &[Setting],
    wait: Duration,
    stands: Option<bool>,
) -> (String, String) {
    let outcome = || -> Result<(String, String)> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("private");
        let server = systemd(&socket, script.to_vec())?;
        let mut bus = Bus::connect(vec![Place { path: socket, daemon: false }], false).map_err(anyhow::Error::msg)?;
        let null = std::fs::File::open("/dev/null")?;
        let request = Shown(ScopeRequest { pidfd: Some(null.as_fd()), settings, ..request() }, stands);
        let mut pending = bus.begin(&request, LONG)?;
        pending.deadline = Deadline::after(wait);
        let text = match bus.finish(&request, pending) {
            Ok(Progress::Stands) => "started".to_owned(),
            Ok(Progress::Waits(_)) => "not yet".to_owned(),
            Err(error) => {
                let hint = error.downcast_ref::<Fault>().and_then(Fault::hint_text).unwrap_or_default();
                let open = if bus.take_unanswered().is_some() { " | it may go on" } else { "" };
                format!("{error:#} | {hint}{open}")
            }
        };
        drop(bus);
        Ok((text, server.join().unwrap_or_default().join(" ")))
    };
    outcome().unwrap_or_else(|error| (format!("{error:#}"), String::new()))
}

fn request() -> ScopeRequest<'static> {
    ScopeRequest {
        name: "t.scope",
        slice: "x.slice",
        description: "test",
        pid: rustix::process::getpid(),
        beside: None,
        pidfd: None,
        settings: &[],
        timeout_stop_usec: 1,
        oom_policy: "continue",
        delegate: false,
        closed_devices: false,
        own_devices: &[],
        collect_mode: "inactive-or-failed",
        user: None,
        mode: CgroupMode::Unified,
    }
}

const LONG: Duration = Duration::from_secs(20);
const START: &str = "StartTransientUnit";
const BOTH: &str = "StartTransientUnit+PIDFDs+OOMPolicy";

/// What the other side does, call by call.
type Acts<'a> = &'a [(&'static str, Act)];

#[test]
fn a_start_whose_answer_is_lost_may_go_on() {
    let refused =
        Act::Error("org.freedesktop.DBus.Error.PropertyReadOnly", "Cannot set property PIDFDs, or unknown property.");
    // Who has answered before had taken the call.
    let (text, calls) = start(&[(START, refused), (START, Act::Close)], &[], LONG);
    assert_eq!(
        text,
        "systemd cannot start t.scope: the other side closed the connection | sandbox doctor | it may go on"
    );
    assert_eq!(calls, "StartTransientUnit+PIDFDs+OOMPolicy StartTransientUnit+OOMPolicy");
}

#[test]
fn starts_and_what_may_happen() {
    let old = |name| Act::Error("org.freedesktop.DBus.Error.PropertyReadOnly", name);
    let no_pidfds = old("Cannot set property PIDFDs, or unknown property.");
    let no_policy = old("Cannot set property OOMPolicy, or unknown property.");
    let exists = Act::Error("org.freedesktop.systemd1.UnitExists", "Unit t.scope already exists.");
    let done = Act::Job("/job/1", "done");
    let table: &[(Acts<'_>, &str, &str)] = &[
        (&[(START, done)], "started", BOTH),
        (&[(START, Act::JobEndsFirst("/job/1"))], "started", BOTH),
        (
            &[(START, no_pidfds), (START, no_policy), (START, done)],
            "started",
            "StartTransientUnit+PIDFDs+OOMPolicy StartTransientUnit+OOMPolicy StartTransientUnit",
        ),
        (
            &[(START, old("Cannot set property Foo, or unknown property."))],
            "systemd cannot start t.scope: Cannot set property Foo, or unknown property | ",
            BOTH,
        ),
        (
            &[
                (START, exists),
                ("Get", Act::Text("failed")),
                ("Get", Act::Bool(true)),
                ("ResetFailedUnit", Act::Nothing),
                (START, done),
            ],
            "started",
            "StartTransientUnit+PIDFDs+OOMPolicy Get Get ResetFailedUnit StartTransientUnit+PIDFDs+OOMPolicy",
        ),
        (
            &[(START, exists), ("Get", Act::Text("active")), ("GetUnitProcesses", Act::Processes(1))],
            "t.scope exists already, it is active | systemctl stop t.scope, or choose another --unit",
            "StartTransientUnit+PIDFDs+OOMPolicy Get GetUnitProcesses",
        ),
        (
            &[
                (START, exists),
                ("Get", Act::Text("active")),
                ("GetUnitProcesses", Act::Processes(0)),
                ("StopUnit", Act::Job("/job/2", "done")),
                (START, done),
            ],
            "started",
            "StartTransientUnit+PIDFDs+OOMPolicy Get GetUnitProcesses StopUnit StartTransientUnit+PIDFDs+OOMPolicy",
        ),
        (
            &[(START, Act::Job("/job/1", "failed")), ("StopUnit", Act::Nothing), ("ResetFailedUnit", Act::Nothing)],
            "systemd did not start t.scope: its job ended as `failed` | journalctl -b -u t.scope",
            "StartTransientUnit+PIDFDs+OOMPolicy StopUnit ResetFailedUnit",
        ),
        (
            &[(START, Act::Close)],
            "systemd cannot start t.scope: the other side closed the connection | sandbox doctor",
            BOTH,
        ),
    ];
    for (script, want, calls) in table {
        assert_eq!(start(script, &[], LONG), ((*want).to_owned(), (*calls).to_owned()));
    }
}

#[test]
fn a_failed_unit_with_a_file_stays_failed() {
    let exists = Act::Error("org.freedesktop.systemd1.UnitExists", "Unit t.scope already exists.");
    let script = [(START, exists), ("Get", Act::Text("failed")), ("Get", Act::Bool(false))];
    let (text, calls) = start(&script, &[], LONG);
    assert_eq!(text, "t.scope exists already, it is failed | a unit file of that name exists: choose another --unit");
    assert_eq!(calls, format!("{BOTH} Get Get"));
}

#[test]
fn a_start_that_hangs_is_stopped() {
    let script = [(START, Act::Stuck), ("StopUnit", Act::Nothing), ("ResetFailedUnit", Act::Nothing)];
    let (text, calls) = start(&script, &[], Duration::from_millis(100));
    assert_eq!(text, "systemd did not start t.scope within 30 s (/stuck); it was stopped | systemctl list-jobs");
    assert_eq!(calls, format!("{BOTH} StopUnit ResetFailedUnit"));
}

#[test]
fn a_start_that_is_never_answered_stops_nobody() {
    let (text, calls) = start(&[(START, Act::Silent)], &[], Duration::from_millis(100));
    assert_eq!(text, "systemd did not start t.scope within 30 s | systemctl list-jobs");
    assert_eq!(calls, BOTH);
}

#[test]
fn what_the_kernel_shows_is_enough_for_a_start_that_was_granted() {
    let shown = |act, stands| {
        let script = [(START, act), ("StopUnit", Act::Nothing), ("ResetFailedUnit", Act::Nothing)];
        start_shown(&script, &[], Duration::from_millis(100), stands).0
    };
    assert_eq!(shown(Act::Stuck, Some(true)), "started");
    assert!(shown(Act::Silent, Some(true)).starts_with("systemd did not start"));
    assert!(shown(Act::Stuck, Some(false)).starts_with("systemd did not start"));
    assert!(shown(Act::Stuck, None).starts_with("systemd did not start"));
    let refused = Act::Error("org.freedesktop.DBus.Error.AccessDenied", "No");
    assert!(shown(refused, Some(true)).starts_with("systemd cannot start t.scope: No"));
}

#[test]
fn what_has_come_is_taken_in_without_a_wait() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("private");
    let server = systemd(&socket, vec![(START, Act::Job("/job/1", "done"))]).unwrap();
    let mut bus = Bus::connect(vec![Place { path: socket, daemon: false }], false).unwrap();
    let mut progress = Progress::Waits(bus.begin_scope(&request()).unwrap());
    let end = std::time::Instant::now() + LONG;
    while let Progress::Waits(pending) = progress {
        assert!(std::time::Instant::now() < end);
        progress = bus.turn_scope(&request(), pending).unwrap();
    }
    drop(bus);
    assert_eq!(server.join().unwrap(), ["StartTransientUnit+OOMPolicy"]);
}

#[test]
fn a_policy_that_was_asked_for_is_not_left_out() {
    let settings: Vec<_> = Assignment::parse("OOMPolicy=stop").into_iter().map(|assignment| assignment.0).collect();
    let old = Act::Error(
        "org.freedesktop.DBus.Error.PropertyReadOnly",
        "Cannot set property OOMPolicy, or unknown property.",
    );
    let (text, _) = start(&[(START, old)], &settings, LONG);
    assert!(text.contains("OOMPolicy") && text.contains("came with systemd 253"), "{text}");
}

#[test]
fn settings_win_over_the_fields_of_the_request() {
    let parse = |text: &str| Assignment::parse(text).map(|assignment| assignment.0);
    let settings: Vec<_> = ["TimeoutStopSec=5", "Delegate=no", "IPAddressDeny=any", "AllowedCPUs=0"]
        .iter()
        .flat_map(|text| parse(text))
        .collect();
    let request = ScopeRequest { settings: &settings, delegate: true, collect_mode: "inactive", ..request() };
    let signatures = properties(&request, &["OOMPolicy"]);
    let shown: Vec<_> = signatures.iter().map(|(name, value)| format!("{name}:{}", value.value_signature())).collect();
    let want =
        "Description:s Slice:s CollectMode:s TimeoutStopUSec:t Delegate:b IPAddressDeny:a(iayu) AllowedCPUs:ay PIDs:au";
    assert_eq!(shown.join(" "), want);
}
