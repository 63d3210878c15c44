//! `sandbox rm`.

use clap::Args;

use crate::error::{Result, fault};
use crate::living::{self, Named};

// Flags of `sandbox rm`.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    /// Stop one that runs
    #[arg(long, short = 'f')]
    force: bool,
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    super::each(&arguments.names, |name| {
        let named = living::find_any(name)?;
        if let Named::Living(sandbox) = &named
            && !arguments.force
        {
            let line = format!("{} is {}", sandbox.unit.name, sandbox.state());
            return Err(fault(line).hint(format!("sandbox stop {name}; or sandbox rm --force {name}")).into());
        }
        if !matches!(&named, Named::Down(service) if service.unit.state == "failed") {
            super::stop::stop(&named)?;
        }
        let mut bus = living::connect(named.manager())?;
        let failed = bus.list(&[named.unit()])?.iter().any(|unit| unit.state == "failed");
        if failed { bus.reset_failed(named.unit()) } else { Ok(()) }
    })
}
