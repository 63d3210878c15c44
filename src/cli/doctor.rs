//! `sandbox doctor`.

use std::io::{IsTerminal, Write};

use clap::Args;

use crate::doctor::{Facts, Report, Style, table};
use crate::error::Result;

/// Exit status when something that is needed is missing.
const MISSING: u8 = 1;

const AFTER_HELP: &str = "\
What stands for what:
  ok       it is there
  limited  it is there in part, or something else is used in its place
  absent   it is not there; nothing that sandbox run does by default needs it
  MISSING  it is not there; sandbox run without flags cannot work

Exit status: 0 when nothing is MISSING, 1 when something is, 125 when the
machine could not be looked at.

JSON: one object with
  ok       false when a check is both needed and missing
  version  of sandbox
  uid      of the user for whom it was looked
  checks   a list; each has name, state (found, limited or missing), needed
           (true or false), found (text), advice (text or null) and command
           (for a shell, or null)";

// Flags of `sandbox doctor`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, max_term_width = 100)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let report = Report::new(&Facts::read()?);
    let text =
        if arguments.json { format!("{:#}\n", serde_json::to_value(&report)?) } else { table(&report.checks, style()) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if report.ok { 0 } else { MISSING })
}

fn style() -> Style {
    let out = std::io::stdout();
    let terminal = out.is_terminal();
    // https://no-color.org: any value but the empty one.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let size = rustix::termios::tcgetwinsize(&out).ok().filter(|_| terminal);
    Style { width: size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0), colour: terminal && !plain }
}
