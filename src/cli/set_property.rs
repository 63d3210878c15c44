//! `sandbox set-property`.

use anyhow::Context;
use clap::Args;

use crate::enter;
use crate::error::{Result, fault, line};
use crate::living::{self, Sandbox};
use crate::systemd::{self, Assignment, CgroupMode, Changes, Setting, Subject};

const AFTER_HELP: &str = "\
Each limit is read back from the kernel, as at the start; one that is not in
force then is an error, and what is no list is set back to what it was.
The change lasts as long as the unit. For one of a unit file that is until
the next boot, but what its profile says counts again from its next start.

Examples:
  sandbox set-property toptest MemoryMax=1G CPUWeight=50
  sandbox set-property web CPUQuota=";

// Flags of `sandbox set-property`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME")]
    name: String,
    /// Properties of systemd.resource-control(5)
    #[arg(value_name = "K=V", required = true)]
    properties: Vec<String>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let assignments = arguments.properties.iter().map(|text| Assignment::parse(text)).collect::<Result<Vec<_>>>()?;
    let mode = CgroupMode::read()?;
    let settings = systemd::translate(&assignments, mode)?.settings;
    if let Some(setting) = settings.iter().find(|setting| !setting.is_live()) {
        let line = format!("{}: systemd changes {}= only at the start of a unit", setting.asked, setting.property);
        return Err(fault(line).hint("sandbox run -p, or the unit file").into());
    }
    change(&living::find(&arguments.name)?, &settings, mode)?;
    Ok(0)
}

fn change(sandbox: &Sandbox, settings: &[Setting], mode: CgroupMode) -> Result<()> {
    let record = &sandbox.found.record;
    if record.leader.refusal().is_some() {
        // Nobody could say whether it is in force.
        return Err(enter::unseen(record));
    }
    let mut bus = sandbox.manager()?;
    let before = bus.values(&record.unit, settings);
    bus.set_properties(&record.unit, true, settings)?;
    let pid = record.leader.pid().ok_or_else(|| fault(format!("{} has just ended", record.name)))?;
    let subject =
        Subject { pid, unit: &record.unit, settings, mode, user: record.manager.is_some(), changes: Changes::Asked };
    match systemd::verify(&mut bus, &subject) {
        Ok(report) => {
            report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
            Ok(())
        }
        Err(error) => {
            // What is not in force would be believed by whoever looks with systemctl.
            bus.set_properties(&record.unit, true, &before)
                .with_context(|| format!("{}; and it could not be taken back", line(&error)))?;
            Err(error)
        }
    }
}
