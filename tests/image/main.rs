//! `sandbox image` as a command, on real things: killed at any instant, and side by side with the tools it must agree with.
//!
//! A peer that is not installed skips its test, saying so; with `SANDBOX_TEST_MUST_RUN=1` that is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod kill;
mod peers;

use std::path::Path;
use std::process::{Command, Output};

/// The command under test, on the store at `store`.
fn image(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox"));
    command.arg("image").arg("--store").arg(store);
    command
}

/// Runs what must succeed, and gives its standard output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a command.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A shell script in `directory`, stopped at its first error.
fn shell(directory: &Path, script: &str) -> String {
    run(Command::new("bash").args(["-euc", script]).current_dir(directory))
}

/// Whether all `programs` are there and we are root; when not, the test that asks is skipped, or fails where that is not allowed.
fn can_run(programs: &[&str]) -> bool {
    let found = |program: &&&str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let mut missing: Vec<&str> = programs.iter().filter(|program| !found(program)).copied().collect();
    if !rustix::process::geteuid().is_root() {
        missing.push("root");
    }
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("SANDBOX_TEST_MUST_RUN").is_none(), "missing: {}", missing.join(", "));
    eprintln!("skipped: missing {}", missing.join(", "));
    false
}
