//! `sandbox wait`.

use std::io::Write;

use anyhow::Context;
use clap::Args;
use rustix::event::{PollFd, PollFlags};
use rustix::process::PidfdFlags;

use crate::error::{Result, fault};
use crate::living::{self, Named, Sandbox};

const AFTER_HELP: &str = "\
Prints the exit status of each sandbox's command, one a line, when it has ended:
its own, or 128+n when signal n ended it. That of one which is over already is
known only where it failed: systemd forgets what ended well.";

// Flags of `sandbox wait`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    // All are looked up before any is waited for: a later one may be over by then.
    let all = arguments.names.iter().map(|name| living::find_any(name)).collect::<Result<Vec<_>>>()?;
    for named in &all {
        let status = match named {
            Named::Living(sandbox) => i32::from(wait(sandbox)?),
            Named::Down(service) => service.status,
        };
        writeln!(std::io::stdout(), "{status}")?;
    }
    Ok(0)
}

fn wait(sandbox: &Sandbox) -> Result<u8> {
    let record = &sandbox.found.record;
    let pidfd = record.launcher.pid().and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(pidfd) = pidfd.filter(|_| record.launcher.lives()) {
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, None)).context("wait for the launcher")?;
    }
    sandbox.found.status().ok_or_else(|| {
        fault(format!("{}: its launcher was killed, so the command's status is not known", record.name)).into()
    })
}
