//! The command line: one file a command, with its flags and its thin handler.

mod doctor;
mod exec;
mod generate;
mod image;
mod inspect;
mod kept;
mod kill;
mod logs;
mod pause;
mod ps;
mod rm;
mod run;
mod set_property;
mod stats;
mod stop;
mod text;
mod unit;
mod wait;

use std::mem::ManuallyDrop;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Result;

/// Start a command in a container that systemd owns
///
/// Each sandbox is a transient unit in a slice, with limits that are checked to be in force, around a process that has its own
/// namespaces and a copy-on-write root. There is no daemon: systemctl, systemd-cgls, systemd-cgtop and journalctl are the tools to
/// look at it.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version, max_term_width = 100, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  sandbox run -- bash
      A shell on a copy-on-write view of this machine; its writes go at the end.
  sandbox run --slice=test --unit=toptest \\
          -p CPUShares=600 -p MemoryMax=500M -- top -b
      With limits, in a unit that `systemctl status toptest.scope` shows.
  sandbox run --bind $PWD --network host -- make
      With a directory of this machine and its network.
  sandbox run --detach --name web -p Restart=on-failure -- nginx -g 'daemon off;'
      In the background; then sandbox ps, logs -f web, exec -t web sh, stop web.
  sandbox doctor
      Whether this machine has all that sandboxes need, and what mends it.

`sandbox run -h` lists the flags, `sandbox run --help` explains them.";

// Only the flags of the command that is called are defined. What says `//` above a struct of flags would otherwise, being
// documentation, become the text of the command.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a command in a new sandbox and exit with its status
    Run(Box<run::Arguments>),
    /// Run one more command in a running sandbox: same unit, same namespaces, same confinement
    Exec(exec::Arguments),
    /// List running sandboxes
    Ps(ps::Arguments),
    /// Show everything of a sandbox: what was asked, what was decided, what is in force
    Inspect(inspect::Arguments),
    /// Show what sandboxes use: CPU, memory, tasks
    Stats(stats::Arguments),
    /// Show a sandbox's lines in the journal
    Logs(logs::Arguments),
    /// Wait until sandboxes have ended, and print their exit statuses
    Wait(wait::Arguments),
    /// Stop sandboxes: the stop signal, then after the unit's TimeoutStopSec SIGKILL
    Stop(stop::Arguments),
    /// Send a signal to a sandbox's command
    Kill(kill::Arguments),
    /// Stop every process of a sandbox where it is (cgroup v2)
    Pause(pause::Arguments),
    /// Let a paused sandbox go on
    Resume(pause::Arguments),
    /// Change limits of a running sandbox, and see that they are in force
    SetProperty(set_property::Arguments),
    /// Forget a failed detached sandbox
    Rm(rm::Arguments),
    /// Keep images: bring them in, look at them, hand them on
    ///
    /// An image is a stack of read-only layers and a description of how to run it. `sandbox run --image NAME` starts a
    /// command on one. NAME is what Docker users type: `mysql:5.7`, `ghcr.io/owner/name:tag`, `name@sha256:…`, or an
    /// image ID or its first digits. `docker:NAME` and `podman:NAME` are images in Docker's and podman's own stores, used
    /// where they lie.
    Image(Box<image::ImageArgs>),
    /// Show what a kept root changed: A added, C changed, D deleted
    ///
    /// It is told from the files that `sandbox run --name NAME --keep` left, beside what they lie on. A directory is listed when its own
    /// owner, mode or attributes changed, not when something in it did.
    Diff(kept::DiffArguments),
    /// Make an image of a kept root: one more layer on the image that it stands on
    ///
    /// The kept root stays as it is. Without a name the image can be found by its ID until `sandbox image gc`.
    Commit(kept::CommitArguments),
    /// Bring what a kept view of the host changed onto the host
    ///
    /// Shows the changes and asks first. Each file is made beside its place and renamed into it, with owner, mode, times and attributes;
    /// deletions too. Nothing is done when a file was changed on the host since the root was made, unless --force is given.
    Apply(kept::ApplyArguments),
    /// Throw a kept root away
    Discard(kept::DiscardArguments),
    /// Say what this machine has of what sandboxes need, and what mends the rest
    ///
    /// It answers for the user who runs it. Some things can only be known by trying: they are tried in short-lived child
    /// processes with namespaces of their own, and nothing stays behind.
    Doctor(doctor::Arguments),
    /// Make systemd units from profiles
    Unit(unit::Arguments),
    /// Write man pages or shell completions
    Generate(generate::Arguments),
}

/// Parses the process's arguments and runs the command they name; the result is the exit status.
///
/// # Errors
/// With the one line that is to be printed.
pub(crate) fn main() -> Result<u8> {
    if std::env::args_os().nth(1).is_some_and(|word| word == "run") {
        crate::sys::heap::touch();
    }
    // Never taken down: with all flags of `run` that takes 70,000 instructions, and the process ends with it anyway.
    let mut definition = ManuallyDrop::new(Arguments::command());
    let parsed = definition.try_get_matches_from_mut(std::env::args_os()).and_then(|mut matches| {
        Arguments::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut definition))
    });
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match arguments.command {
        Command::Run(arguments) => run::main(*arguments),
        Command::Exec(arguments) => exec::main(arguments),
        Command::Ps(arguments) => ps::main(&arguments),
        Command::Inspect(arguments) => inspect::main(&arguments),
        Command::Stats(arguments) => stats::main(&arguments),
        Command::Logs(arguments) => logs::main(&arguments),
        Command::Wait(arguments) => wait::main(&arguments),
        Command::Stop(arguments) => stop::main(&arguments),
        Command::Kill(arguments) => kill::main(&arguments),
        Command::Pause(arguments) => pause::pause(&arguments),
        Command::Resume(arguments) => pause::resume(&arguments),
        Command::SetProperty(arguments) => set_property::main(&arguments),
        Command::Rm(arguments) => rm::main(&arguments),
        Command::Image(arguments) => image::main(&arguments),
        Command::Diff(arguments) => kept::diff(&arguments),
        Command::Commit(arguments) => kept::commit(arguments),
        Command::Apply(arguments) => kept::apply(&arguments),
        Command::Discard(arguments) => kept::discard(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Unit(arguments) => unit::main(&arguments),
        Command::Generate(arguments) => generate::main(&arguments),
    }
}

/// The definition of the whole command line.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Does it for each name, whatever becomes of the others; the last error is returned, those before it are printed.
fn each(names: &[String], act: impl Fn(&str) -> Result<()>) -> Result<u8> {
    let mut errors: Vec<anyhow::Error> = names.iter().filter_map(|name| act(name).err()).collect();
    let last = errors.pop();
    for error in &errors {
        crate::report(error);
    }
    last.map_or(Ok(0), Err)
}

/// Help and version are printed; what is wrong becomes one line and a hint, like every other error.
fn usage(error: &clap::Error) -> Result<u8> {
    if !error.use_stderr() {
        match error.print() {
            // `sandbox --help | head` has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            printed => printed?,
        }
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
            // That a mistyped flag could be a value is seldom what is meant.
            Some(tip) if tip.starts_with("to pass") => {}
            Some(tip) => hint = hint.or(Some(tip.to_owned())),
            None if line.starts_with('[') => message = format!("{message} {line}"),
            None if !line.starts_with("For more") => message = format!("{message} {line}"),
            None => {}
        }
    }
    let hint = hint.unwrap_or_else(|| format!("{} --help lists what is accepted", meant(std::env::args_os())));
    Err(crate::error::fault(message).hint(hint).into())
}

/// The command that these words name: `sandbox image ls`.
fn meant(words: impl Iterator<Item = std::ffi::OsString>) -> String {
    let mut command = Arguments::command();
    let mut meant = "sandbox".to_owned();
    for word in words.skip(1) {
        let Some(next) = command.find_subcommand(&word).cloned() else { break };
        meant = format!("{meant} {}", next.get_name());
        command = next;
    }
    meant
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        let mut command = Arguments::command();
        command.build();
        command.debug_assert();
    }

    fn run(words: &[&str]) -> crate::layer::Layer {
        let words = ["sandbox", "run"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => arguments.layer,
            _ => unreachable!("parsed as run"),
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
