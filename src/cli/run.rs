//! `sandbox run`.

use std::io::Write;

use clap::Args;

use crate::error::Result;
use crate::host::Host;
use crate::layer::Layer;
use crate::plan::Plan;
use crate::spec::{RootSource, Spec};
use crate::timings::Timings;

/// Flags of `sandbox run`.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) layer: Layer,
    /// Show what would be done, and start nothing
    #[arg(long, help_heading = "Look")]
    dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run", help_heading = "Look")]
    json: bool,
    /// Say on stderr at the end what the time of the start was spent on
    #[arg(long, help_heading = "Look")]
    timings: bool,
}

/// Runs it.
pub(super) fn main(arguments: Arguments) -> Result<u8> {
    let mut timings = Timings::begin();
    let spec = Spec::from_layer(arguments.layer)?;
    let mut host = Host::read()?;
    if spec.root.source == RootSource::HostView {
        host.read_view()?;
    }
    let plan = Plan::new(&spec, &host)?;
    timings.mark("plan");
    if arguments.dry_run {
        let text = if arguments.json { format!("{:#}\n", serde_json::to_value(&plan)?) } else { plan.to_string() };
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(0);
    }
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    drop((spec, host));
    let status = crate::run::run(&plan, &mut timings);
    if arguments.timings {
        std::io::stderr().write_all(timings.to_string().as_bytes())?;
    }
    status
}
