//! `sandbox stop`.

use std::time::Duration;

use clap::Args;

use crate::error::Result;
use crate::living::{self, Named};

// Flags of `sandbox stop`.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    super::each(&arguments.names, |name| stop(&living::find_any(name)?))
}

/// Longer than any unit's own time, and short enough to be added to a clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Asks systemd to stop the unit and waits until it has: stop signal, the unit's TimeoutStopSec, kill.
pub(super) fn stop(named: &Named) -> Result<()> {
    let mut bus = living::connect(named.manager())?;
    let wait = Duration::from_micros(bus.timeout_stop_usec(named.unit()).unwrap_or(u64::MAX));
    bus.stop(named.unit(), wait.saturating_add(Duration::from_secs(10)).min(LONGEST))
}
