//! `sandbox generate`: what a package ships besides the program, made from the same definitions as the help.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::error::Result;

// Flags of `sandbox generate`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write sandbox.1 and a page for each command into a directory
    Man {
        /// The directory, made where it is missing
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the completions for a shell
    Completions {
        /// Which one
        #[arg(value_name = "SHELL", value_enum)]
        shell: Shell,
    },
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    match &arguments.what {
        What::Man { directory } => man(directory)?,
        What::Completions { shell } => std::io::stdout().write_all(&completions(*shell))?,
    }
    Ok(0)
}

fn man(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for (name, text) in pages()? {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// File name and text of each page: the program's own, and one for each command that the help lists.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut program = super::Arguments::command();
    program.build();
    let mut pages = Vec::new();
    collect(program, &mut pages);
    pages.into_iter().map(page).collect()
}

/// `command` and those below it; a page is called as the man page of git-commit(1) is.
fn collect(command: clap::Command, pages: &mut Vec<clap::Command>) {
    let below: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().collect();
    let page = command.get_name().to_owned();
    pages.push(command);
    for command in below {
        let name = format!("{page}-{}", command.get_name());
        let invocation = name.replace('-', " ");
        collect(command.name(name).bin_name(invocation).version(env!("CARGO_PKG_VERSION")), pages);
    }
}

fn page(command: clap::Command) -> Result<(String, Vec<u8>)> {
    let page = clap_mangen::Man::new(command.disable_help_flag(true));
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok((page.get_filename(), text))
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    let mut program = super::Arguments::command();
    program.build();
    clap_complete::generate(shell, &mut program, "sandbox", &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_command_has_a_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "sandbox.1",
            "sandbox-run.1",
            "sandbox-exec.1",
            "sandbox-set-property.1",
            "sandbox-image.1",
            "sandbox-image-import.1",
            "sandbox-unit-install.1",
            "sandbox-doctor.1",
            "sandbox-generate.1",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
        let run = String::from_utf8(pages[1].1.clone()).unwrap();
        for text in ["cpu\\-shares", "Exit status"] {
            assert!(run.contains(text), "{text}: {run}");
        }
    }

    #[test]
    fn completions_know_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(completions(shell)).unwrap();
            assert!(text.contains("cpu-shares"), "{shell}");
        }
    }
}
