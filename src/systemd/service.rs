//! Transient services: `run --detach` asks systemd for one whose main process is `sandbox run` itself.

use std::time::Duration;

use zbus::Variant;

use crate::error::{Result, fault};
use crate::exit;

use super::bus::{Bus, WAIT};
use super::property::{Setting, Value};
use super::scope::device_allow;
use super::variant::variant;

/// A unit to start, whatever its kind.
pub(super) trait Request {
    /// With its suffix.
    fn name(&self) -> &str;
    /// What was asked for; it wins over what the request has of its own.
    fn settings(&self) -> &[Setting];
    /// All properties as they are sent, but for those that this systemd does not take.
    fn properties<'a>(&'a self, left_out: &[&str]) -> Vec<(&'a str, Variant<'a>)>;
    /// Whether the kernel shows when systemd is done.
    fn is_shown(&self) -> bool {
        false
    }
    /// Whether the kernel shows that systemd is done; `None` where it does not show that.
    fn stands(&self) -> Option<bool> {
        None
    }
    /// Whether processes are named in them by number.
    fn has_numbers(&self, _left_out: &[&str]) -> bool {
        false
    }
    /// The error for a job that ended as `result`, where more is known than that; what is left of the unit stays then.
    fn explain(&self, _bus: &mut Bus, _result: &str) -> Option<anyhow::Error> {
        None
    }
    /// How long a start may take, in seconds.
    fn patience(&self) -> u64 {
        WAIT.as_secs()
    }
}

/// A service to start.
#[derive(Debug, Clone)]
pub(crate) struct ServiceRequest<'a> {
    /// With its suffix: `web.service`.
    pub(crate) name: &'a str,
    /// With its suffix.
    pub(crate) slice: &'a str,
    /// What `systemctl status` shows.
    pub(crate) description: &'a str,
    /// The program and its arguments, none of which systemd expands.
    pub(crate) command: Vec<String>,
    /// `NAME=VALUE`, for the program.
    pub(crate) environment: Vec<String>,
    /// Where the program starts.
    pub(crate) directory: &'a str,
    /// What the journal calls it.
    pub(crate) identifier: &'a str,
    /// The limits and whatever else was asked, translated.
    pub(crate) settings: &'a [Setting],
    /// How long a stop waits before it kills, in microseconds.
    pub(crate) timeout_stop_usec: u64,
    /// Whether processes may be moved into it by its owner; user managers need it for `exec`.
    pub(crate) delegate: bool,
    /// Whether only the standard devices may be opened, and those that `settings` allow.
    pub(crate) closed_devices: bool,
    /// Devices that are allowed then, for what runs in it beside the payload.
    pub(crate) own_devices: &'a [&'static str],
}

/// Until the program says that it is ready: the payload runs. An image may have to be unpacked before.
const START: Duration = Duration::from_secs(600);

/// What follows a hint in a status text: [`crate::part::service`] writes it so.
pub(crate) const HINT: &str = " (hint: ";

impl Request for ServiceRequest<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn settings(&self) -> &[Setting] {
        self.settings
    }

    fn properties<'a>(&'a self, left_out: &[&str]) -> Vec<(&'a str, Variant<'a>)> {
        // Not ExecStartEx=, which could say that variables are not to be expanded: 252 writes it into the unit's file and cannot
        // read it there at the next daemon-reload, and takes the limits away.
        let words: Vec<String> = self.command.iter().map(|word| word.replace('$', "$$")).collect();
        let program = self.command.first().cloned().unwrap_or_default();
        let start_usec = u64::try_from(START.as_micros()).unwrap_or(u64::MAX);
        // A shell whose command ended by the signal that stops it did as it was told; it reports that as 128+15.
        let success: (Vec<i32>, Vec<i32>) = (vec![143], Vec::new());
        let mut properties = vec![
            ("Description", Variant::from(self.description)),
            ("Slice", Variant::from(self.slice)),
            ("CollectMode", Variant::from("inactive")),
            ("Type", Variant::from("notify")),
            ("NotifyAccess", Variant::from("all")),
            ("ExecStart", Variant::new(vec![(program, words, false)])),
            ("Environment", Variant::new(self.environment.clone())),
            ("WorkingDirectory", Variant::from(self.directory)),
            ("SyslogIdentifier", Variant::from(self.identifier)),
            ("KillMode", Variant::from("mixed")),
            ("SuccessExitStatus", Variant::new(success)),
            ("TimeoutStartUSec", Variant::from(start_usec)),
            ("TimeoutStopUSec", Variant::from(self.timeout_stop_usec)),
            ("OOMPolicy", Variant::from("continue")),
        ];
        if self.delegate {
            properties.push(("Delegate", Variant::from(true)));
        }
        if self.closed_devices {
            properties.push(("DevicePolicy", Variant::from("closed")));
        }
        let asked = |name: &str| self.settings.iter().any(|setting| setting.name == name);
        properties.retain(|(name, _)| !asked(name) && !left_out.contains(name));
        properties.extend(self.settings.iter().map(|setting| (setting.name.as_str(), variant(&setting.value))));
        properties.extend(device_allow(self.closed_devices, self.own_devices));
        properties
    }

    fn explain(&self, bus: &mut Bus, result: &str) -> Option<anyhow::Error> {
        (result == "failed").then(|| {
            let error = self.failure(bus);
            // One that failed stays to be looked at. With Restart= it has not, and would be tried again behind its caller's back.
            if bus
                .unit_property(self.name, "Unit", "ActiveState")
                .is_ok_and(|state| state != Value::Text("failed".into()))
            {
                bus.clean_up(self.name);
            }
            error
        })
    }

    fn patience(&self) -> u64 {
        self.start_usec() / 1_000_000
    }
}

impl ServiceRequest<'_> {
    fn start_usec(&self) -> u64 {
        let asked = self.settings.iter().find(|setting| setting.name == "TimeoutStartUSec");
        match asked.map(|setting| &setting.value) {
            // systemd's words for no limit.
            Some(Value::U64(0)) => u64::MAX / 2,
            Some(Value::U64(usec)) => *usec,
            _ => u64::try_from(START.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// What the program said of its failure, else what systemd knows.
    fn failure(&self, bus: &mut Bus) -> anyhow::Error {
        let text = |bus: &mut Bus, name: &str| match bus.unit_property(self.name, "Service", name) {
            Ok(Value::Text(text)) => text,
            _ => String::new(),
        };
        let status = match bus.unit_property(self.name, "Service", "ExecMainStatus") {
            Ok(Value::I32(status)) => u8::try_from(status).unwrap_or_default(),
            _ => 0,
        };
        let exit = if matches!(status, 126 | 127) { status } else { exit::FAILED };
        let said = text(bus, "StatusText");
        let user = if bus.user { " --user" } else { "" };
        let journal = format!("journalctl{user} -b -u {}", self.name);
        if said.is_empty() {
            let result = text(bus, "Result");
            let result = match result.as_str() {
                // By Restart= it has been started anew, and what was said of the first time is gone.
                "success" => "it is to be restarted".to_owned(),
                _ => format!("systemd calls its result `{result}`"),
            };
            let line = format!("{} did not start: {result}, status {status}", self.name);
            return fault(line).status(exit).hint(journal).into();
        }
        match said.strip_suffix(')').and_then(|said| said.split_once(HINT)) {
            Some((line, hint)) => fault(line).status(exit).hint(hint).into(),
            None => fault(said).status(exit).into(),
        }
    }
}

impl Bus {
    /// Starts a service and waits until it is ready.
    ///
    /// # Errors
    /// When it failed, with what it said of the reason. A failed unit stays, for `systemctl status`.
    pub(crate) fn start_service(&mut self, request: &ServiceRequest<'_>) -> Result<()> {
        let wait = Duration::from_micros(request.start_usec()).saturating_add(Duration::from_secs(10));
        let pending = self.begin(request, wait.min(Duration::from_secs(u64::from(u32::MAX))))?;
        self.finish(request, pending).map(drop)
    }
}
