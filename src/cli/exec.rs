//! `sandbox exec`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use crate::enter::{self, Asked};
use crate::error::{Result, fault};
use crate::living;
use crate::sealed;
use crate::spec::variable;

const AFTER_HELP: &str = "\
Examples:
  sandbox exec toptest ps aux
  sandbox exec -t web sh
  sandbox exec --uid=nobody -E LANG=C web id

Exit status: the command's own; 128+n when signal n ended it; 125 when sandbox
itself failed and the command never ran, 126 when it cannot be executed, 127
when it was not found.";

// Flags of `sandbox exec`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP, override_usage = "sandbox exec [OPTIONS] NAME CMD [ARG]...")]
pub(super) struct Arguments {
    /// A terminal of its own [default where standard input and output are both terminals]
    #[arg(long, short = 't', visible_alias = "tty", overrides_with = "pipe")]
    pty: bool,
    /// Standard input, output and error as they are [default elsewhere]
    #[arg(long, short = 'P', overrides_with = "pty")]
    pipe: bool,
    /// Nothing: for those who type Docker's -it; standard input is always connected
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Set a variable, beside those of the sandbox's command; without =VALUE it is the caller's
    #[arg(long, short = 'E', visible_short_alias = 'e', visible_alias = "env", value_name = "NAME[=VALUE]")]
    setenv: Vec<OsString>,
    /// Working directory [default: as the sandbox's command started]
    #[arg(long, short = 'w', visible_alias = "workdir", value_name = "DIR")]
    working_directory: Option<PathBuf>,
    /// User inside, by name or number [default: that of the sandbox's command]
    #[arg(long, short = 'u', visible_alias = "user", value_name = "USER")]
    uid: Option<String>,
    /// Group inside, by name or number [default: the user's]
    #[arg(long, value_name = "GROUP")]
    gid: Option<String>,
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME")]
    name: String,
    /// The command and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Runs it.
pub(super) fn main(arguments: Arguments) -> Result<u8> {
    let terminals = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let terminal = arguments.pty || terminals && !arguments.pipe;
    if let Some(directory) = arguments.working_directory.as_ref().filter(|path| !path.is_absolute()) {
        let line = format!("--working-directory {}: a path inside begins with /", directory.display());
        return Err(fault(line).into());
    }
    let mut environment = Vec::new();
    if let Some(term) = std::env::var_os("TERM").filter(|_| terminal) {
        environment.push(("TERM".into(), term));
    }
    for text in &arguments.setenv {
        let (name, value) = variable(text)?;
        environment.extend(value.or_else(|| std::env::var_os(&name)).map(|value| (name, value)));
    }
    let sandbox = living::find(&arguments.name)?;
    sealed::go_on_sealed(sandbox.found.record.entry.own_range)?;
    let asked = Asked {
        command: arguments.command,
        environment,
        user: arguments.uid,
        group: arguments.gid,
        directory: arguments.working_directory,
        terminal,
    };
    enter::enter(&sandbox, &enter::process(&sandbox.found.record.entry, &asked))
}
