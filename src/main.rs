//! `sandbox`: a command in a container that systemd owns.
//!
//! The way through the code: arguments and [`profile`] → [`layer::Layer`] → [`spec::Spec`] → (with [`host::Host`]) [`plan::Plan`] →
//! [`run::run`] → exit status. Decisions happen before the plan, effects after it.

#![cfg_attr(all(feature = "fuzzing", not(test)), no_main)]

mod child;
mod cli;
mod detach;
mod doctor;
mod enter;
mod error;
mod exit;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod given;
mod host;
mod image;
mod kept;
mod layer;
mod living;
mod nearest;
mod part;
mod pid1;
mod plan;
mod procview;
mod profile;
mod relay;
mod run;
mod sealed;
mod seccomp;
mod signals;
mod spec;
mod state;
mod sync;
mod sys;
mod systemd;
mod timings;
mod unit;
mod unit_file;
mod value;

use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;

fn main() -> ExitCode {
    log_to_stderr();
    sys::heap::begin();
    std::panic::set_hook(Box::new(|panic| {
        if sys::heap::is_stuck() {
            drop(std::io::stderr().write_all(
                b"sandbox: internal error: the heap is broken\nhint: a mistake in sandbox: please report it\n",
            ));
            sys::exit_now(exit::FAILED);
        }
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        let text = panic.payload();
        let text = text.downcast_ref::<&str>().copied().or_else(|| text.downcast_ref::<String>().map(String::as_str));
        let what = text.unwrap_or("panic");
        report(
            &error::fault(format!("internal error: {what}{place}"))
                .hint("a mistake in sandbox: please report it")
                .into(),
        );
        sys::exit_now(exit::FAILED);
    }));
    match cli::main() {
        Ok(status) => ExitCode::from(status),
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// Warnings as `sandbox: warning: …`; more with `SANDBOX_LOG=debug`.
fn log_to_stderr() {
    let is_asked = std::env::var_os("SANDBOX_LOG").is_some();
    log::set_max_level(if is_asked { logger().filter() } else { log::LevelFilter::Warn });
    // There is no other.
    let _ = log::set_logger(&Logger);
}

/// Made with the first line: most runs log nothing.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, about: &log::Metadata<'_>) -> bool {
        logger().enabled(about)
    }

    fn log(&self, record: &log::Record<'_>) {
        logger().log(record);
    }

    fn flush(&self) {
        logger().flush();
    }
}

fn logger() -> &'static env_logger::Logger {
    static MADE: OnceLock<env_logger::Logger> = OnceLock::new();
    MADE.get_or_init(make_logger)
}

fn make_logger() -> env_logger::Logger {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .parse_env("SANDBOX_LOG")
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Warn => "warning",
                log::Level::Error => "error",
                log::Level::Info => "info",
                log::Level::Debug | log::Level::Trace => "debug",
            };
            let priority = match record.level() {
                _ if !host::logs_to_journal() => "",
                log::Level::Error => "<3>",
                log::Level::Warn => "<4>",
                log::Level::Info => "<6>",
                log::Level::Debug | log::Level::Trace => "<7>",
            };
            writeln!(out, "{priority}sandbox: {level}: {}", error::plain(&record.args().to_string()))
        })
        .build()
}

/// Prints an error; the exit status it leads to.
fn report(error: &anyhow::Error) -> u8 {
    let (mut text, status) = report_text(error);
    if host::logs_to_journal() {
        text = text.lines().map(|line| format!("<3>{line}\n")).collect();
    }
    // Without a standard error there is nobody to tell.
    drop(std::io::stderr().write_all(text.as_bytes()));
    status
}

/// One line, the hint where there is one, and the exit status.
fn report_text(error: &anyhow::Error) -> (String, u8) {
    let fault = error.chain().find_map(|cause| cause.downcast_ref::<error::Fault>());
    let mut text = format!("sandbox: {}\n", error::line(error));
    if let Some(hint) = fault.and_then(error::Fault::hint_text) {
        text.push_str(&format!("hint: {}\n", error::plain(hint)));
    }
    (text, fault.map_or(exit::FAILED, error::Fault::exit_status))
}
