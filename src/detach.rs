//! `run --detach`: a transient service whose main process runs the same command line again, and finds itself in it.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::Context;

use crate::error::{Result, fault};
use crate::host::Host;
use crate::part::service::DETACHED;
use crate::plan::{Plan, UnitPlan};
use crate::run::interrupted;
use crate::signals::Signals;
use crate::spec::Spec;
use crate::systemd::ServiceRequest;
use crate::unit;

/// Variables of the caller that decide what the launcher does: where profiles are looked for, programs and files are found, what is
/// logged. A service manager gives none of them.
const PASSED: &[&str] = &["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PATH", "SANDBOX_LOG"];

/// Starts the service and returns when the payload has been executed.
///
/// # Errors
/// When it was not, with the reason that the launcher in the service had.
pub(crate) fn start(spec: &Spec, host: &Host, plan: &Plan, unit: &UnitPlan) -> Result<()> {
    if host.environment.contains_key(OsStr::new(DETACHED)) {
        return Err(fault(format!("--detach: this is {DETACHED}'s own start, and its unit is another one")).into());
    }
    let signals = Signals::block()?;
    let directory = utf8(host.cwd.as_os_str(), "the working directory")?;
    let request = ServiceRequest {
        name: &unit.name,
        slice: &unit.slice,
        description: &unit.description,
        command: command()?,
        environment: environment(spec, host, unit)?,
        directory: &directory,
        identifier: &plan.name,
        settings: &unit.settings,
        timeout_stop_usec: unit.timeout_stop_usec,
        delegate: unit.delegate,
        closed_devices: unit.closed_devices,
        own_devices: &unit.own_devices,
    };
    let mut bus = unit::connect(unit)?;
    bus.interrupt_by(signals.ending());
    bus.forget_failed(&plan.name)?;
    bus.start_service(&request).map_err(|error| match signals.ended_by() {
        Ok(Some(signal)) => interrupted(signal),
        Ok(None) | Err(_) => error,
    })
}

/// This program with the arguments that it was given.
fn command() -> Result<Vec<String>> {
    let program = std::env::current_exe().context("find this program's own file")?;
    if !Path::new(&program).exists() {
        let line = format!("--detach: systemd cannot start {}: it is gone", program.display());
        return Err(fault(line).hint("run the program that replaced it").into());
    }
    let words = [program.into_os_string()].into_iter().chain(std::env::args_os().skip(1));
    words.map(|word| utf8(&word, "an argument")).collect()
}

fn environment(spec: &Spec, host: &Host, unit: &UnitPlan) -> Result<Vec<String>> {
    let asked = spec.process.environment.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_os_str());
    let mut list = vec![format!("{DETACHED}={}", unit.name)];
    for name in PASSED.iter().map(OsStr::new).chain(asked) {
        if let Some(value) = host.environment.get(name) {
            let line: OsString = [name, OsStr::new("="), value].into_iter().collect();
            list.push(utf8(&line, "a variable")?);
        }
    }
    Ok(list)
}

/// D-Bus carries nothing else.
fn utf8(text: &OsStr, what: &str) -> Result<String> {
    let Some(text) = text.to_str() else {
        return Err(fault(format!("--detach: {what} is not UTF-8: {}", text.to_string_lossy())).into());
    };
    Ok(text.to_owned())
}
