//! `sandbox`: a command in a container that systemd owns.

mod cli {
    pub(crate) mod image;
}
mod error;
mod image;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "sandbox", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Image(cli::image::ImageArgs),
}

fn main() -> ExitCode {
    env_logger::init();
    let Command::Image(args) = Args::parse().command;
    match cli::image::main(&args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let fault = error.chain().find_map(|cause| cause.downcast_ref::<error::Fault>());
            let mut out = std::io::stderr().lock();
            let _ = writeln!(out, "sandbox: {error:#}");
            if let Some(hint) = fault.and_then(error::Fault::hint_text) {
                let _ = writeln!(out, "hint: {hint}");
            }
            ExitCode::from(fault.map_or(125, error::Fault::exit_status))
        }
    }
}
