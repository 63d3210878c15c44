//! Units over the bus: what a scope is asked for with; stop, kill, freeze, look at and change a unit.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Pid;
use serde::Serialize;
use zbus::wire::OwnedVariant;
use zbus::{DynamicType, Fd, OwnedObjectPath, Variant};

use crate::error::{Result, fault};

use super::bus::{Bus, interface, manager_call, object_call, unit_path};
use super::cgroup::{CgroupMode, CgroupPaths};
use super::job::{Job, Order};
use super::property::{Setting, Value};
use super::service::Request;
use super::variant::{value, variant};
use super::wire::{Call, Deadline, Exchange, Failure};

/// How long a clean-up after a failure may take; nobody is served by waiting for it longer.
pub(super) const CLEANUP_WAIT: Duration = Duration::from_secs(2);

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
    /// Whose service manager is asked; `None`: the system's.
    pub(crate) user: Option<u32>,
    /// The layout of this machine's cgroups.
    pub(crate) mode: CgroupMode,
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

    fn is_shown(&self) -> bool {
        // On v1 a user's manager has one hierarchy of all, and it is not known of the others what it leaves alone.
        self.user.is_none() || self.mode == CgroupMode::Unified
    }

    fn stands(&self) -> Option<bool> {
        if !self.is_shown() {
            return None;
        }
        let is_in_it = |pid: Pid| {
            let paths = CgroupPaths::of(&pid.as_raw_nonzero().to_string());
            paths.is_ok_and(|paths| paths.has_entered(self.name, self.user))
        };
        Some([self.pid].into_iter().chain(self.beside).all(is_in_it))
    }
}

impl ScopeRequest<'_> {
    /// Whether the kernel shows the process in the unit; `None` where that cannot be known.
    pub(crate) fn has_entered(&self) -> Option<bool> {
        self.stands()
    }
}

impl Bus {
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
            self.match_jobs(unit, Order::Before)?;
            let job = Job::of(self.wire.send(call, body)?);
            self.await_job(job, deadline)
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
