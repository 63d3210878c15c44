//! `sandbox pause` and `sandbox resume`.

use clap::Args;

use crate::error::{Result, fault};
use crate::living;
use crate::systemd::CgroupMode;

// Flags of both.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Stops every process of the unit where it is.
pub(super) fn pause(arguments: &Arguments) -> Result<u8> {
    check("pause")?;
    super::each(&arguments.names, |name| {
        let sandbox = living::find(name)?;
        sandbox.manager()?.freeze(&sandbox.unit.name)
    })
}

/// Undoes it.
pub(super) fn resume(arguments: &Arguments) -> Result<u8> {
    check("resume")?;
    super::each(&arguments.names, |name| {
        let sandbox = living::find(name)?;
        sandbox.manager()?.thaw(&sandbox.unit.name)
    })
}

fn check(what: &str) -> Result<()> {
    if CgroupMode::read()? == CgroupMode::Unified {
        return Ok(());
    }
    Err(fault(format!("{what}: systemd freezes units on cgroup v2 only, and this machine has cgroup v1"))
        .hint("boot with systemd.unified_cgroup_hierarchy=1; or `sandbox kill -s SIGSTOP`, and SIGCONT later, for the command alone")
        .into())
}
