//! `sandbox logs`: journalctl, for the unit that is meant.

use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;

use crate::error::{Result, fault};
use crate::exit;
use crate::living;

// Flags of `sandbox logs`.
#[derive(Debug, Args)]
#[command(max_term_width = 100)]
pub(super) struct Arguments {
    /// Go on with what is written from now on
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "N", visible_alias = "tail")]
    lines: Option<u32>,
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID; also when it is over, as far as the journal goes back
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs it; returns only when journalctl cannot be run.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let mut command = journalctl();
    command.args(matches(&arguments.name)?);
    command.args(arguments.follow.then_some("--follow"));
    command.args(arguments.lines.map(|lines| format!("--lines={lines}")));
    Err(cannot(command.exec()))
}

fn matches(name: &str) -> Result<Vec<String>> {
    let own = living::own_manager();
    let unit = |unit: &str, manager: Option<u32>| match manager {
        None => format!("--unit={unit}"),
        Some(uid) if Some(uid) == own => format!("--user-unit={unit}"),
        Some(_) => format!("_SYSTEMD_USER_UNIT={unit}"),
    };
    match living::look_up(name)? {
        Some(named) => Ok(vec![unit(named.unit(), named.manager())]),
        // It may be over, with its lines still there.
        None if name.ends_with(".scope") || name.ends_with(".service") => known(name, vec![unit(name, own)]),
        None => {
            let id = "[0-9a-f]".repeat(6);
            let stems = [name.to_owned(), format!("sandbox-{name}-{id}")];
            let kinds = |stem: &String| ["scope", "service"].map(|kind| unit(&format!("{stem}.{kind}"), own));
            known(name, stems.iter().flat_map(kinds).collect())
        }
    }
}

/// Nothing is written under a name that is mistyped, and `--follow` would wait for it for ever.
fn known(name: &str, units: Vec<String>) -> Result<Vec<String>> {
    let found = journalctl().args(&units).args(["--lines=1", "--quiet", "--output=cat"]).output().map_err(cannot)?;
    if !found.status.success() || !found.stdout.is_empty() {
        return Ok(units);
    }
    let line = format!("{name}: no sandbox that lives, and nothing in the journal that you may read");
    Err(fault(line)
        .hint("`sandbox ps` lists those that live; `journalctl --list-boots` tells how far back the journal goes")
        .into())
}

fn journalctl() -> Command {
    Command::new("journalctl")
}

fn cannot(error: std::io::Error) -> anyhow::Error {
    fault(format!("run journalctl: {error}")).status(exit::NOT_FOUND).hint("it is part of systemd").into()
}
