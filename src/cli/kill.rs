//! `sandbox kill`.

use anyhow::Context;
use clap::Args;
use rustix::process::{PidfdFlags, Signal};

use crate::enter;
use crate::error::{Result, fault};
use crate::living::{self, Sandbox};
use crate::value;

// Flags of `sandbox kill`.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    /// Which signal, by name or number
    #[arg(long, short = 's', value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
    /// To every process of the unit, not to the command alone
    #[arg(long, short = 'a')]
    all: bool,
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let number = value::signal(&arguments.signal).with_context(|| format!("--signal {}", arguments.signal))?;
    super::each(&arguments.names, |name| {
        let sandbox = living::find(name)?;
        if arguments.all {
            return sandbox.manager()?.kill(&sandbox.unit.name, "all", number);
        }
        kill_payload(&sandbox, number)
    })
}

fn kill_payload(sandbox: &Sandbox, number: i32) -> Result<()> {
    let record = &sandbox.found.record;
    let gone = || enter::unseen(record);
    let payload = enter::await_payload(record).ok_or_else(gone)?;
    let pidfd =
        rustix::process::pidfd_open(payload.pid().ok_or_else(gone)?, PidfdFlags::empty()).map_err(|_| gone())?;
    if !payload.lives() {
        return Err(gone());
    }
    let signal = Signal::from_named_raw(number).ok_or_else(|| {
        fault(format!("signal {number} cannot be sent to the command alone")).hint("--all sends it to the unit")
    })?;
    rustix::process::pidfd_send_signal(&pidfd, signal).with_context(|| format!("signal {}", record.name))
}
