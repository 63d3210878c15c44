//! The command line: one file a command, with its flags and its thin handler.

mod doctor;
mod run;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// Start a command in a container that systemd owns.
///
/// No daemon: each sandbox is a transient unit in a slice, with limits that are checked to be in force, around a process that has
/// its own namespaces and a copy-on-write root. systemctl, systemd-cgls, systemd-cgtop and journalctl stay the tools to look at it.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version, max_term_width = 100, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  sandbox run -- bash                                a shell on a copy-on-write view of this machine
  sandbox run -m 500M --cpus 1.5 -- make -j8         with limits
  sandbox run --slice=test --unit=toptest -p CPUShares=600 -p MemoryMax=500M -- top -b
  systemctl status toptest.scope                     look at it, from another terminal
  sandbox run --bind $PWD --network host -- ./build  with a directory of the host and its network
  sandbox doctor                                     what this machine can do

Exit status of run: the command's own; 128+n when signal n ended it; 125 when sandbox itself failed and the command never
ran, 126 when it cannot be executed, 127 when it was not found.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new sandbox and exit with its status
    Run(Box<run::Arguments>),
    /// Say what this machine can do for sandboxes, and what mends what is missing
    Doctor(doctor::Arguments),
}

/// Parses the process's arguments and runs the command they name; the result is the exit status.
///
/// # Errors
/// With the one line that is to be printed.
pub(crate) fn main() -> Result<u8> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match arguments.command {
        Command::Run(arguments) => run::main(*arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
    }
}

/// Help and version are printed; what is wrong becomes one line and a hint, like every other error.
fn usage(error: &clap::Error) -> Result<u8> {
    if !error.use_stderr() {
        error.print()?;
        return Ok(0);
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.print()?;
        return Ok(crate::exit::FAILED);
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let mut message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    let mut hint = None;
    for line in lines.take_while(|line| !line.starts_with("Usage:")) {
        match line.strip_prefix("tip: ") {
            Some(tip) => hint = hint.or(Some(tip.to_owned())),
            None if line.starts_with('[') => message = format!("{message} {line}"),
            None if !line.starts_with("For more") => message = format!("{message} {line}"),
            None => {}
        }
    }
    let hint = hint.unwrap_or_else(|| "sandbox --help and sandbox run --help list every flag".to_owned());
    Err(crate::error::fault(message).hint(hint).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    fn run(words: &[&str]) -> crate::layer::Layer {
        let words = ["sandbox", "run"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => arguments.layer,
            Command::Doctor(_) => unreachable!("parsed as run"),
        }
    }

    #[test]
    fn flags_after_the_command_are_the_commands() {
        let layer = run(&["--unit=toptest", "top", "-b", "--unit=x"]);
        assert_eq!(layer.unit.as_deref(), Some("toptest"));
        assert_eq!(layer.command, ["top", "-b", "--unit=x"]);
        assert_eq!(run(&["-q", "--", "--odd"]).command, ["--odd"]);
    }

    #[test]
    fn docker_users_type_it() {
        let layer = run(&["-it", "-m", "500m", "-e", "A=1", "-v", "/srv:/data:ro", "sh"]);
        assert_eq!((layer.interactive, layer.pty), (Some(true), Some(true)));
        assert_eq!(layer.memory.as_deref(), Some("500m"));
        assert_eq!(layer.bind, ["/srv:/data:ro"]);
        assert_eq!(layer.command, ["sh"]);
    }

    #[test]
    fn a_wrong_flag_is_one_line_with_a_hint() {
        let error = Arguments::try_parse_from(["sandbox", "run", "--memoryy=1", "x"]).unwrap_err();
        let error = usage(&error).unwrap_err();
        let fault = error.downcast_ref::<crate::error::Fault>().unwrap();
        assert_eq!(fault.to_string(), "unexpected argument '--memoryy' found");
        assert!(fault.hint_text().unwrap().contains("--memory"), "{:?}", fault.hint_text());
    }
}
