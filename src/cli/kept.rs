//! `sandbox diff`, `commit`, `apply` and `discard`: what is done with a kept root.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::image::{print, progress};
use crate::error::{Result, fault, plain};
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::kept::Kept;
use crate::kept::apply::Step;
use crate::kept::commit::{Instruction, Told};
use crate::kept::diff::Change;
use crate::part::users;

// Which kept root.
#[derive(Debug, Args)]
struct Which {
    /// Its name, as given to `sandbox run --name NAME --keep`
    #[arg(value_name = "NAME")]
    name: String,
    /// The image store it is in, instead of /var/lib/sandbox (root) or $XDG_DATA_HOME/sandbox
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

impl Which {
    fn open(&self) -> Result<Kept> {
        let store = Store::path(self.store.clone())?;
        Kept::open(&store, &self.name)
    }
}

// Flags of `sandbox diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArguments {
    #[command(flatten)]
    which: Which,
}

// Flags of `sandbox commit`.
#[derive(Debug, Args)]
pub(super) struct CommitArguments {
    #[command(flatten)]
    which: Which,
    /// The name of the new image
    #[arg(value_name = "IMAGE[:TAG]")]
    image: Option<Reference>,
    /// Change the config as this line of a Dockerfile would: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "LINE")]
    change: Vec<Instruction>,
    /// What was done, for the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Who did it, for the image's history
    #[arg(long, short, value_name = "TEXT")]
    author: Option<String>,
    /// Print no progress
    #[arg(long, short)]
    quiet: bool,
}

// Flags of `sandbox apply`.
#[derive(Debug, Args)]
pub(super) struct ApplyArguments {
    #[command(flatten)]
    which: Which,
    /// Only what is at or below these paths
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Also where the host's file was changed since the root was made, or was hidden from the sandbox
    #[arg(long)]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

// Flags of `sandbox discard`.
#[derive(Debug, Args)]
pub(super) struct DiscardArguments {
    #[command(flatten)]
    which: Which,
}

/// Runs `sandbox diff`.
pub(super) fn diff(arguments: &DiffArguments) -> Result<u8> {
    let kept = arguments.which.open()?;
    users::inside_map(&kept.map()?, || {
        let changes = kept.changes()?;
        if arguments.which.json {
            return print::print_json(&changes);
        }
        let mut out = io::stdout().lock();
        for change in &changes {
            writeln!(out, "{}", line(change))?;
        }
        Ok(0)
    })
}

fn line(change: &Change) -> String {
    format!("{} {}", change.change.letter(), plain(&change.path.to_string_lossy()))
}

/// Runs `sandbox commit`.
pub(super) fn commit(arguments: CommitArguments) -> Result<u8> {
    let kept = arguments.which.open()?;
    let progress = progress::shown(arguments.quiet || arguments.which.json);
    let told = Told {
        names: arguments.image.into_iter().collect(),
        changes: arguments.change,
        message: arguments.message,
        author: arguments.author,
    };
    let arrived = kept.commit(told, &*progress)?;
    if arguments.which.json {
        return print::print_json(&arrived);
    }
    writeln!(io::stdout(), "{}", arrived.id)?;
    Ok(0)
}

/// Runs `sandbox apply`.
pub(super) fn apply(arguments: &ApplyArguments) -> Result<u8> {
    let mut kept = arguments.which.open()?;
    let held = if arguments.dry_run { None } else { Some(kept.hold()?) };
    let paths = arguments.paths.iter().map(|path| std::path::absolute(path).context("find the current directory"));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    let steps = kept.steps(&paths)?;
    if arguments.which.json {
        print::print_json(&steps)?;
    } else {
        show(&steps)?;
    }
    let Some(held) = held.filter(|_| !steps.is_empty()) else { return Ok(0) };
    if let Some(step) = steps.iter().find(|step| step.conflict.is_some() && !arguments.force) {
        let count = steps.iter().filter(|step| step.conflict.is_some()).count();
        let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        let why = step.conflict.as_deref().unwrap_or_default();
        return Err(fault(format!("{}: {why}{more}; nothing was applied", step.change.path.display()))
            .hint("look at both, then --force; or name the paths that are to be applied")
            .into());
    }
    if !arguments.yes {
        if !confirmed(steps.len())? {
            return Err(fault("nothing was applied").into());
        }
        // The answer is to what was shown, and may have taken long.
        if kept.steps(&paths)? != steps {
            return Err(fault("the host has changed since they were shown; nothing was applied")
                .hint(format!("look again: sandbox apply {}", kept.name()))
                .into());
        }
    }
    kept.apply(&steps, &held)?;
    Ok(0)
}

fn show(steps: &[Step]) -> Result<()> {
    let mut out = io::stdout().lock();
    for step in steps {
        let why = step.conflict.as_ref().map_or_else(String::new, |why| format!("   ({why})"));
        writeln!(out, "{}{}", line(&step.change), plain(&why))?;
    }
    Ok(())
}

/// Asks on the terminal.
fn confirmed(count: usize) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(fault("apply: nobody can be asked, standard input is no terminal; nothing was applied")
            .hint("--yes")
            .into());
    }
    let mut out = io::stderr().lock();
    write!(out, "Apply {count} change{} to this machine? [y/N] ", if count == 1 { "" } else { "s" })?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Runs `sandbox discard`.
pub(super) fn discard(arguments: &DiscardArguments) -> Result<u8> {
    let kept = arguments.which.open()?;
    kept.discard()?;
    if arguments.which.json {
        return print::print_json(&serde_json::json!({ "discarded": arguments.which.name }));
    }
    Ok(0)
}
