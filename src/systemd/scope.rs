//! Units over the bus: start a scope and wait until it stands, stop, kill, freeze, look at and change a unit.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::Serialize;
use zbus::wire::OwnedVariant;
use zbus::{DynamicType, Fd, OwnedObjectPath, Variant};

use crate::error::{Result, fault};

use super::bus::{Bus, WAIT, interface, manager_call, no_room_for, object_call, unit_path, unknown_property};
use super::property::{Setting, Value};
use super::service::Request;
use super::variant::{value, variant};
use super::wire::{Call, Deadline, Exchange, Failure, Incoming};

/// How long a clean-up after a failure may take; nobody is served by waiting for it longer.
const CLEANUP_WAIT: Duration = Duration::from_secs(2);

/// How long a name is waited for that is another's: of one that has just ended systemd hears a moment later.
const NAME_WAIT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };

/// A scope to start. What `settings` names wins over the field that says the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScopeRequest<'a> {
    /// With its suffix: `toptest.scope`.
    pub(crate) name: &'a str,
    /// With its suffix: `test.slice`; systemd makes it when it does not exist.
    pub(crate) slice: &'a str,
    /// What `systemctl status` shows, best the command.
    pub(crate) description: &'a str,
    /// The process that goes in, as PID 1 numbers it. It must be a child of ours, so that the number stays its own.
    pub(crate) pid: Pid,
    /// One more that goes in, likewise.
    pub(crate) beside: Option<Pid>,
    /// The same process as a descriptor; systemd takes it since 255.
    pub(crate) pidfd: Option<BorrowedFd<'a>>,
    /// The limits and whatever else was asked, translated.
    pub(crate) settings: &'a [Setting],
    /// How long a stop waits between SIGTERM and SIGKILL, in microseconds.
    pub(crate) timeout_stop_usec: u64,
    /// `continue`, `stop` or `kill`: what an OOM kill inside does to the rest. Left out on systemd that does not take
    /// it (before 253), since nobody asked for it by name.
    pub(crate) oom_policy: &'a str,
    /// Whether the payload may have cgroups of its own; user managers need it for `exec`.
    pub(crate) delegate: bool,
    /// Whether only the standard devices may be opened, and those that `settings` allow.
    pub(crate) closed_devices: bool,
    /// Devices that are allowed then, for what runs in it beside the payload.
    pub(crate) own_devices: &'a [&'static str],
    /// `inactive-or-failed`: nothing is left of a scope that failed.
    pub(crate) collect_mode: &'a str,
}

/// A scope that stands, with the process in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartedScope {
    /// Its object on the bus.
    pub(crate) object: String,
    /// The bus properties that this systemd is too old for and that were left out: `PIDFDs`, `OOMPolicy`.
    pub(crate) left_out: Vec<&'static str>,
}

/// A start that was sent; systemd works on it. End it with [`Bus::finish_scope`].
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingScope {
    call: u32,
    deadline: Deadline,
    left_out: Vec<&'static str>,
    was_reset: bool,
    /// When the name was first found taken.
    taken: Option<Instant>,
}

/// What came of one attempt to start.
enum Attempt {
    Done,
    Retry,
}

impl Request for ScopeRequest<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn settings(&self) -> &[Setting] {
        self.settings
    }

    fn properties<'a>(&'a self, left_out: &[&str]) -> Vec<(&'a str, Variant<'a>)> {
        properties(self, left_out)
    }

    fn has_numbers(&self, left_out: &[&str]) -> bool {
        self.pidfd.is_none() || left_out.contains(&"PIDFDs")
    }
}

impl Bus {
    /// Sends the start and returns: what the caller does next happens while systemd works.
    pub(crate) fn begin_scope(&mut self, request: &ScopeRequest<'_>) -> Result<PendingScope> {
        self.begin(request, WAIT)
    }

    /// The same for any kind of unit; the start may take `wait` at the longest.
    pub(super) fn begin(&mut self, request: &dyn Request, wait: Duration) -> Result<PendingScope> {
        let deadline = Deadline::after(wait);
        let mut pending = PendingScope { call: 0, deadline, left_out: Vec::new(), was_reset: false, taken: None };
        self.send(request, &mut pending)?;
        Ok(pending)
    }

    /// Waits until systemd has put the process into the scope.
    ///
    /// # Errors
    /// When it has not, for whatever reason; nothing is left of the unit then.
    pub(crate) fn finish_scope(&mut self, request: &ScopeRequest<'_>, pending: PendingScope) -> Result<StartedScope> {
        self.finish(request, pending)
    }

    /// The same for any kind of unit.
    pub(super) fn finish(&mut self, request: &dyn Request, mut pending: PendingScope) -> Result<StartedScope> {
        loop {
            match self.await_start(request, &mut pending)? {
                Attempt::Done => {
                    return Ok(StartedScope { object: unit_path(request.name()), left_out: pending.left_out });
                }
                Attempt::Retry => self.send(request, &mut pending)?,
            }
        }
    }

    fn send(&mut self, request: &dyn Request, pending: &mut PendingScope) -> Result<()> {
        let what = format!("start {}", request.name());
        if request.has_numbers(&pending.left_out) {
            self.check_numbers(&what)?;
        }
        self.send_start(request, pending).map_err(|failure| self.explain(&what, failure))
    }

    fn send_start(&mut self, request: &dyn Request, pending: &mut PendingScope) -> Exchange<()> {
        loop {
            match self.try_send_start(request, pending) {
                Err(failure) if self.is_elsewhere(&failure) => self.next_place(failure)?,
                other => return other,
            }
        }
    }

    fn try_send_start(&mut self, request: &dyn Request, pending: &mut PendingScope) -> Exchange<()> {
        self.greeted(pending.deadline)?;
        self.match_jobs(request.name())?;
        let properties = request.properties(&pending.left_out);
        let nothing_else: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (request.name(), "fail", properties, nothing_else);
        pending.call = self.wire.send(&manager_call("StartTransientUnit"), &body)?;
        Ok(())
    }

    /// Asks the bus daemon for the end of jobs of one unit. The call that makes the job goes out right behind it,
    /// and a daemon handles what it gets in order, so no signal is missed and no answer is waited for. systemd's own
    /// socket sends them all unasked.
    fn match_jobs(&mut self, unit: &str) -> Exchange<()> {
        if !self.daemon || self.watched.as_deref() == Some(unit) {
            return Ok(());
        }
        let rule = format!(
            "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved',arg2='{unit}'"
        );
        self.watched = Some(unit.to_owned());
        self.wire.send_along(&Call::daemon("AddMatch"), &(rule,))
    }

    fn await_start(&mut self, request: &dyn Request, pending: &mut PendingScope) -> Result<Attempt> {
        let name = request.name();
        match self.await_job(pending.call, pending.deadline) {
            Ok(result) if result == "done" => Ok(Attempt::Done),
            Ok(result) => {
                if let Some(error) = request.explain(self, &result) {
                    return Err(error);
                }
                self.clean_up(name);
                let line = fault(format!("systemd did not start {name}: its job ended as `{result}`"));
                let user = if self.user { " --user" } else { "" };
                Err(line.hint(format!("journalctl{user} -b -u {name}")).into())
            }
            Err((Failure::Timeout(_), job)) => {
                // Without a job the name may be another's.
                let stopped = job.is_some() || self.job_comes(pending.call);
                if stopped {
                    self.clean_up(name);
                }
                let job = job.map_or_else(String::new, |job| format!(" ({job})"));
                let stopped = if stopped { "; it was stopped" } else { "" };
                let line = format!("systemd did not start {name} within {} s{job}{stopped}", request.patience());
                Err(fault(line).hint("systemctl list-jobs").into())
            }
            Err((failure, _)) => self.recover(request, pending, failure),
        }
    }

    /// Decides whether a refused start is tried again: with less for an old systemd, after a failed leftover of the
    /// name was reset, or on another socket.
    fn recover(&mut self, request: &dyn Request, pending: &mut PendingScope, failure: Failure) -> Result<Attempt> {
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

    fn unit_exists(&mut self, name: &str, pending: &mut PendingScope) -> Result<Attempt> {
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

    /// Whether a call made it, such as ours, and no file: nobody else has to know that it failed.
    pub(super) fn is_transient(&mut self, name: &str) -> bool {
        matches!(self.unit_property(name, "Unit", "Transient"), Ok(Value::Bool(true)))
    }

    /// Whether it is a scope without any process. systemd ends one when its last process ends, but does not see it where that process
    /// was killed just when it was to be moved into the scope: nobody would ever end that one.
    pub(crate) fn is_empty_scope(&mut self, name: &str) -> bool {
        // Path, PID and command line of each.
        type Process = (String, u32, String);
        name.ends_with(".scope")
            && self.manager::<_, Vec<Process>>("GetUnitProcesses", &(name,)).is_ok_and(|processes| processes.is_empty())
    }

    /// Waits for the answer to a call that makes a job, and then for the end of that job: its result.
    /// A failure comes with the job, once that is known.
    fn await_job(&mut self, call: u32, deadline: Deadline) -> std::result::Result<String, (Failure, Option<String>)> {
        let mut job: Option<String> = None;
        let mut ended: Vec<(String, String)> = Vec::new();
        loop {
            let incoming = self.wire.receive(deadline).map_err(|failure| (failure, job.clone()))?;
            if incoming.answers(call) {
                let path: OwnedObjectPath = incoming.body().map_err(|failure| (failure, None))?;
                job = Some(path.as_str().to_owned());
            } else {
                ended.extend(ended_job(&incoming));
            }
            let result = ended.iter().find(|(path, _)| Some(path) == job.as_ref());
            if let Some((_, result)) = result {
                return Ok(result.clone());
            }
        }
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

    /// Ends what a failed start may have left; its own failure changes nothing for the user.
    pub(super) fn clean_up(&mut self, unit: &str) {
        let deadline = Deadline::after(CLEANUP_WAIT);
        let stop: Exchange<OwnedObjectPath> = self.wire.call(&manager_call("StopUnit"), &(unit, "replace"), deadline);
        let reset: Exchange<()> = self.wire.call(&manager_call("ResetFailedUnit"), &(unit,), deadline);
        log::debug!("{unit}: clean-up after a failed start: stop {stop:?}, reset {reset:?}");
    }

    /// Stops a unit and waits until it is gone, `wait` at the longest: a stop may take the unit's TimeoutStopSec.
    pub(crate) fn stop(&mut self, unit: &str, wait: Duration) -> Result<()> {
        self.stop_by(unit, &manager_call("StopUnit"), &(unit, "replace"), wait)
    }

    /// The same for one run of it, [`Bus::run_of`]: if that is over, the unit of its name, which is another one's then, goes on.
    pub(crate) fn stop_run(&mut self, unit: &str, run: &str, wait: Duration) -> Result<()> {
        let path = unit_path(run);
        self.stop_by(unit, &object_call(&path, "org.freedesktop.systemd1.Unit", "Stop"), &("replace",), wait)
    }

    fn stop_by<B>(&mut self, unit: &str, call: &Call<'_>, body: &B, wait: Duration) -> Result<()>
    where
        B: Serialize + DynamicType,
    {
        let deadline = Deadline::after(wait);
        let mut stop = || {
            self.greeted(deadline)?;
            self.match_jobs(unit)?;
            let call = self.wire.send(call, body)?;
            self.await_job(call, deadline).map_err(|(failure, _)| failure)
        };
        match stop() {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(fault(format!("systemd did not stop {unit}: its job ended as `{result}`")).into()),
            Err(failure) => Err(self.explain(&format!("stop {unit}"), failure)),
        }
    }

    /// Forgets that a unit failed, so that its name is free again.
    pub(crate) fn reset_failed(&mut self, unit: &str) -> Result<()> {
        self.manager("ResetFailedUnit", &(unit,)).map_err(|failure| self.explain(&format!("reset {unit}"), failure))
    }

    /// Sends a signal to the processes of a unit: `whom` is `all` or `main`.
    pub(crate) fn kill(&mut self, unit: &str, whom: &str, signal: i32) -> Result<()> {
        self.manager("KillUnit", &(unit, whom, signal))
            .map_err(|failure| self.explain(&format!("kill {unit}"), failure))
    }

    /// Stops the processes of a unit where they are; cgroup v2 only.
    pub(crate) fn freeze(&mut self, unit: &str) -> Result<()> {
        self.manager("FreezeUnit", &(unit,)).map_err(|failure| self.explain(&format!("freeze {unit}"), failure))
    }

    /// Undoes [`Bus::freeze`].
    pub(crate) fn thaw(&mut self, unit: &str) -> Result<()> {
        self.manager("ThawUnit", &(unit,)).map_err(|failure| self.explain(&format!("thaw {unit}"), failure))
    }

    /// Changes properties of a living unit: until the next boot when `runtime`, else for ever.
    pub(crate) fn set_properties(&mut self, unit: &str, runtime: bool, settings: &[Setting]) -> Result<()> {
        let properties: Vec<_> =
            settings.iter().map(|setting| (setting.name.as_str(), variant(&setting.value))).collect();
        self.manager("SetUnitProperties", &(unit, runtime, properties))
            .map_err(|failure| self.explain(&format!("change {unit}"), failure))
    }

    /// What these properties of a unit are now, to set them back with; those that are lists, to which a setting adds, are left out.
    pub(crate) fn values(&mut self, unit: &str, settings: &[Setting]) -> Vec<Setting> {
        let kind = interface(unit);
        let now = |setting: &Setting| {
            let name = setting.name.trim_end_matches("Scale");
            let value = self.unit_property(unit, kind, name).ok().filter(|value| !value.is_list())?;
            Some(Setting { name: name.to_owned(), value, ..setting.clone() })
        };
        settings.iter().filter_map(now).collect()
    }

    /// Reads one property of the service manager itself: `Version`, `Features`, `ControlGroup`.
    pub(crate) fn manager_property(&mut self, name: &str) -> Result<Value> {
        let path = manager_call("Get").path;
        self.property(path, "org.freedesktop.systemd1.Manager", name)
            .map_err(|failure| self.explain(&format!("tell its {name}"), failure))
    }

    /// Reads one property of a unit; `interface` is the last part of its name: `Unit`, `Scope`, `Service`.
    pub(crate) fn unit_property(&mut self, unit: &str, interface: &str, name: &str) -> Result<Value> {
        self.property(&unit_path(unit), &format!("org.freedesktop.systemd1.{interface}"), name)
            .map_err(|failure| self.explain(&format!("tell {name} of {unit}"), failure))
    }

    /// The ID of the run of a unit that there is now (`InvocationID`), by which systemd knows the unit too, like by its name.
    ///
    /// # Errors
    /// When systemd does not answer, or knows no such unit.
    pub(crate) fn run_of(&mut self, unit: &str) -> Result<String> {
        match self.unit_property(unit, "Unit", "InvocationID")? {
            Value::Bytes(id) if id.len() == 16 => Ok(id.iter().map(|byte| format!("{byte:02x}")).collect()),
            _ => Err(fault(format!("{unit} has no invocation ID")).into()),
        }
    }

    /// The file that a unit is made of, its drop-ins aside; `None` where there is none. One that a call made has one below /run.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn unit_file(&mut self, unit: &str) -> Result<Option<PathBuf>> {
        match self.unit_property(unit, "Unit", "FragmentPath")? {
            Value::Text(path) if !path.is_empty() => Ok(Some(path.into())),
            _ => Ok(None),
        }
    }

    /// The main process of a service; `None` while it has none.
    pub(crate) fn main_pid(&mut self, unit: &str) -> Result<Option<u32>> {
        match self.unit_property(unit, "Service", "MainPID")? {
            Value::U32(pid) if pid > 0 => Ok(Some(pid)),
            _ => Ok(None),
        }
    }

    fn property(&mut self, path: &str, interface: &str, name: &str) -> Exchange<Value> {
        let call = object_call(path, "org.freedesktop.DBus.Properties", "Get");
        let found: OwnedVariant = self.call(&call, &(interface, name))?;
        value(&found).ok_or_else(|| Failure::Broken(format!("the property is of type {}", found.value_signature())))
    }
}

/// Reads a JobRemoved signal: the job and its result.
fn ended_job(incoming: &Incoming) -> Option<(String, String)> {
    if !incoming.is_signal("JobRemoved") {
        return None;
    }
    let (_, job, _, result) = incoming.body::<(u32, OwnedObjectPath, String, String)>().ok()?;
    Some((job.as_str().to_owned(), result))
}

/// The properties of a new scope; what is in `left_out` this systemd does not take.
fn properties<'a>(request: &ScopeRequest<'a>, left_out: &[&str]) -> Vec<(&'a str, Variant<'a>)> {
    let mut properties = vec![
        ("Description", Variant::from(request.description)),
        ("Slice", Variant::from(request.slice)),
        ("CollectMode", Variant::from(request.collect_mode)),
        ("TimeoutStopUSec", Variant::from(request.timeout_stop_usec)),
        ("OOMPolicy", Variant::from(request.oom_policy)),
    ];
    if request.delegate {
        properties.push(("Delegate", Variant::from(true)));
    }
    if request.closed_devices {
        properties.push(("DevicePolicy", Variant::from("closed")));
    }
    let asked = |name: &str| request.settings.iter().any(|setting| setting.name == name);
    properties.retain(|(name, _)| !asked(name) && !left_out.contains(name));
    properties.extend(request.settings.iter().map(|setting| (setting.name.as_str(), variant(&setting.value))));
    properties.extend(device_allow(request.closed_devices, request.own_devices));
    properties.push(match request.pidfd.filter(|_| !request.has_numbers(left_out)) {
        Some(pidfd) => ("PIDFDs", Variant::from(vec![Fd::from(pidfd)])),
        None => {
            let number = |pid: Pid| u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default();
            let pids: Vec<u32> = [request.pid].into_iter().chain(request.beside).map(number).collect();
            ("PIDs", Variant::from(pids))
        }
    });
    properties
}

/// Beside the devices that were asked for: systemd adds to the list.
pub(super) fn device_allow<'a>(closed: bool, devices: &[&str]) -> Option<(&'a str, Variant<'a>)> {
    let rows: Vec<(String, String)> = devices.iter().map(|device| ((*device).to_owned(), "rw".to_owned())).collect();
    (closed && !rows.is_empty()).then(|| ("DeviceAllow", Variant::new(rows)))
}

#[cfg(test)]
mod tests;
