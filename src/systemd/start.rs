//! The start of a unit: the call that makes it, what systemd may say to that, and the wait until it stands.

use std::time::{Duration, Instant};

use rustix::event::Timespec;
use zbus::{OwnedObjectPath, Variant};

use crate::error::{Result, fault};

use super::bus::{Bus, WAIT, manager_call, no_room_for, unknown_property};
use super::job::{Job, Order};
use super::property::Value;
use super::scope::{CLEANUP_WAIT, ScopeRequest};
use super::service::Request;
use super::wire::{Deadline, Exchange, Failure};

/// How long a name is waited for that is another's: of one that has just ended systemd hears a moment later.
const NAME_WAIT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// How often it is looked whether systemd is done that has not said so: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LAST_PAUSE: Duration = Duration::from_millis(20);

/// A start that was sent; systemd works on it. End it with [`Bus::finish_scope`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Pending {
    job: Job,
    pub(super) deadline: Deadline,
    /// The bus properties that this systemd is too old for: `PIDFDs`, `OOMPolicy`.
    pub(super) left_out: Vec<&'static str>,
    was_reset: bool,
    /// When the name was first found taken.
    taken: Option<Instant>,
}

impl Pending {
    /// How long systemd is waited for; nothing when it is too late.
    pub(crate) fn patience(&self) -> Timespec {
        self.deadline.remaining().unwrap_or_default()
    }
}

/// How far a start is.
#[derive(Debug)]
pub(crate) enum Progress {
    /// What is in the unit is in it.
    Stands,
    /// systemd has not said so.
    Waits(Pending),
}

/// What came of one attempt to start.
enum Attempt {
    Done,
    Retry,
}

/// For what it is waited.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// Nothing: what has come is taken in.
    No,
    /// The unit.
    Yes,
}

impl Bus {
    /// Sends the start and returns: what the caller does next happens while systemd works.
    pub(crate) fn begin_scope(&mut self, request: &ScopeRequest<'_>) -> Result<Pending> {
        self.begin(request, WAIT)
    }

    /// The same for any kind of unit; the start may take `wait` at the longest.
    pub(super) fn begin(&mut self, request: &dyn Request, wait: Duration) -> Result<Pending> {
        let (job, deadline) = (Job::default(), Deadline::after(wait));
        let mut pending = Pending { job, deadline, left_out: Vec::new(), was_reset: false, taken: None };
        self.send(request, &mut pending)?;
        Ok(pending)
    }

    /// Takes in what systemd has said by now.
    ///
    /// # Errors
    /// As [`Bus::finish_scope`].
    pub(crate) fn turn_scope(&mut self, request: &ScopeRequest<'_>, pending: Pending) -> Result<Progress> {
        self.advance(request, pending, Wait::No)
    }

    /// Waits until systemd has put the process into the scope: until it says so, or the kernel does.
    ///
    /// systemd ends the job of a scope in the same step in which it moves the process, and has set all limits before
    /// (`scope_start`, `unit_realize_cgroup`). Then it tells the bus of everything that has changed, JobRemoved last: a millisecond in
    /// which the payload may run already.
    ///
    /// # Errors
    /// When it has not, for whatever reason; nothing is left of the unit then, but where [`Bus::take_unanswered`] has something.
    pub(crate) fn finish_scope(&mut self, request: &ScopeRequest<'_>, pending: Pending) -> Result<Progress> {
        self.finish(request, pending)
    }

    /// The start that the last failure was not systemd's answer to: it may go on.
    pub(crate) fn take_unanswered(&mut self) -> Option<Pending> {
        self.unanswered.take()
    }

    /// The same for any kind of unit.
    pub(super) fn finish(&mut self, request: &dyn Request, pending: Pending) -> Result<Progress> {
        self.advance(request, pending, Wait::Yes)
    }

    fn advance(&mut self, request: &dyn Request, mut pending: Pending, wait: Wait) -> Result<Progress> {
        loop {
            let attempt = match self.await_end(request, &mut pending, wait) {
                Ok(None) => return Ok(Progress::Waits(pending)),
                Ok(Some(result)) => self.conclude(request, &result)?,
                Err(Failure::Timeout(_)) => return Err(self.give_up(request, &pending.job)),
                Err(failure) => {
                    let may_go_on = !matches!(failure, Failure::Remote { .. }) && !self.is_elsewhere(&failure);
                    match self.recover(request, &mut pending, failure) {
                        Err(error) if may_go_on => {
                            self.unanswered = Some(pending);
                            return Err(error);
                        }
                        result => result?,
                    }
                }
            };
            match attempt {
                Attempt::Done => return Ok(Progress::Stands),
                Attempt::Retry => self.send(request, &mut pending)?,
            }
        }
    }

    fn send(&mut self, request: &dyn Request, pending: &mut Pending) -> Result<()> {
        let what = format!("start {}", request.name());
        if request.has_numbers(&pending.left_out) {
            self.check_numbers(&what)?;
        }
        self.send_start(request, pending).map_err(|failure| self.explain(&what, failure))
    }

    fn send_start(&mut self, request: &dyn Request, pending: &mut Pending) -> Exchange<()> {
        loop {
            match self.try_send_start(request, pending) {
                Err(failure) if self.is_elsewhere(&failure) => self.next_place(failure)?,
                other => return other,
            }
        }
    }

    fn try_send_start(&mut self, request: &dyn Request, pending: &mut Pending) -> Exchange<()> {
        self.greeted(pending.deadline)?;
        self.match_jobs(request.name(), if request.is_shown() { Order::Behind } else { Order::Before })?;
        let properties = request.properties(&pending.left_out);
        let nothing_else: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (request.name(), "fail", properties, nothing_else);
        pending.job = Job::of(self.wire.send(&manager_call("StartTransientUnit"), &body)?);
        Ok(())
    }

    /// How the job ended; `None`: it has not, and is not waited for.
    fn await_end(&mut self, request: &dyn Request, pending: &mut Pending, wait: Wait) -> Exchange<Option<String>> {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(result) = pending.job.result() {
                return Ok(Some(result.to_owned()));
            }
            // Only of a job that was granted: the name may be another's.
            let stands = (wait == Wait::Yes && pending.job.path.is_some()).then(|| request.stands()).flatten();
            let within = match (wait, stands) {
                (_, Some(true)) => return Ok(Some("done".to_owned())),
                (Wait::No, _) => Some(Duration::ZERO),
                (Wait::Yes, Some(false)) => Some(pause),
                (Wait::Yes, None) => None,
            };
            match self.wire.receive_within(within, pending.deadline)? {
                Some(incoming) => pending.job.hear(&incoming)?,
                None if wait == Wait::No => return Ok(None),
                None => pause = (pause + pause / 4).min(LAST_PAUSE),
            }
        }
    }

    fn conclude(&mut self, request: &dyn Request, result: &str) -> Result<Attempt> {
        if result == "done" {
            return Ok(Attempt::Done);
        }
        if let Some(error) = request.explain(self, result) {
            return Err(error);
        }
        let name = request.name();
        self.clean_up(name);
        let line = fault(format!("systemd did not start {name}: its job ended as `{result}`"));
        let user = if self.user { " --user" } else { "" };
        Err(line.hint(format!("journalctl{user} -b -u {name}")).into())
    }

    fn give_up(&mut self, request: &dyn Request, job: &Job) -> anyhow::Error {
        let name = request.name();
        // Without a job the name may be another's.
        let stopped = job.path.is_some() || self.job_comes(job.call);
        if stopped {
            self.clean_up(name);
        }
        let job = job.path.as_ref().map_or_else(String::new, |job| format!(" ({job})"));
        let stopped = if stopped { "; it was stopped" } else { "" };
        let line = format!("systemd did not start {name} within {} s{job}{stopped}", request.patience());
        fault(line).hint("systemctl list-jobs").into()
    }

    /// Decides whether a refused start is tried again: with less for an old systemd, after a failed leftover of the
    /// name was reset, or on another socket.
    fn recover(&mut self, request: &dyn Request, pending: &mut Pending, failure: Failure) -> Result<Attempt> {
        let what = format!("start {}", request.name());
        if self.is_elsewhere(&failure) {
            self.next_place(failure).map_err(|failure| self.explain(&what, failure))?;
            return Ok(Attempt::Retry);
        }
        let Failure::Remote { name, message } = &failure else { return Err(self.explain(&what, failure)) };
        match name.rsplit('.').next().unwrap_or_default() {
            "UnknownProperty" | "PropertyReadOnly" => {
                let dispensable =
                    ["PIDFDs", "OOMPolicy"].into_iter().find(|known| unknown_property(message) == Some(known));
                let asked = |known: &str| request.settings().iter().any(|setting| setting.name == known);
                match dispensable {
                    Some(known) if !asked(known) && !pending.left_out.contains(&known) => {
                        pending.left_out.push(known);
                        Ok(Attempt::Retry)
                    }
                    _ => Err(self.explain(&what, failure)),
                }
            }
            "UnitExists" => self.unit_exists(request.name(), pending),
            "NoSuchUnit" => {
                let full = no_room_for(request.name(), self.user);
                Err(full.map_or_else(|| self.explain(&what, failure), Into::into))
            }
            _ => Err(self.explain(&what, failure)),
        }
    }

    fn unit_exists(&mut self, name: &str, pending: &mut Pending) -> Result<Attempt> {
        let state = match self.unit_property(name, "Unit", "ActiveState") {
            Ok(Value::Text(state)) => state,
            _ => "loaded".to_owned(),
        };
        let is_left = state == "failed" && self.is_transient(name);
        if is_left && !pending.was_reset {
            pending.was_reset = true;
            self.reset_failed(name)?;
            return Ok(Attempt::Retry);
        }
        if state == "active" && !pending.was_reset && self.is_empty_scope(name) {
            pending.was_reset = true;
            if let Err(error) = self.stop(name, WAIT) {
                // It may just have ended; if not, it is still there at the next attempt.
                log::debug!("{error:#}");
            }
            return Ok(Attempt::Retry);
        }
        if state != "failed" && pending.taken.get_or_insert_with(Instant::now).elapsed() < NAME_WAIT {
            std::thread::sleep(Duration::from_millis(5));
            return Ok(Attempt::Retry);
        }
        let line = fault(format!("{name} exists already, it is {state}"));
        let systemctl = if self.user { "systemctl --user" } else { "systemctl" };
        Err(match state.as_str() {
            "failed" if is_left => line.hint(format!("{systemctl} reset-failed {name}")),
            "failed" | "inactive" | "loaded" => line.hint("a unit file of that name exists: choose another --unit"),
            _ => line.hint(format!("{systemctl} stop {name}, or choose another --unit")),
        }
        .into())
    }

    /// Whether a start that nobody wants any more is granted yet, within the time for a clean-up. One that systemd takes up later fails,
    /// since who asked for it is gone.
    fn job_comes(&mut self, call: u32) -> bool {
        let deadline = Deadline::after(CLEANUP_WAIT);
        while let Ok(incoming) = self.wire.receive(deadline) {
            if incoming.answers(call) {
                return incoming.body::<OwnedObjectPath>().is_ok();
            }
        }
        false
    }
}
