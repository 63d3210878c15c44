//! `sandbox doctor`: what this machine can do for sandboxes, and what mends what is missing.
//!
//! The way through: [`facts::Facts`] are read, with short trials in child processes ([`trial`]); [`rules::checks`] judges them,
//! pure; [`table`] shows the result.

mod distribution;
mod facts;
mod rules;
mod table;
mod trial;

use serde::Serialize;

pub(crate) use distribution::{Distribution, Package};
pub(crate) use facts::Facts;
pub(crate) use rules::checks;
pub(crate) use table::{Style, table};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It is there.
    Found,
    /// It is there in part, or something else is used in its place.
    Limited,
    /// It is not there.
    Missing,
}

/// One thing that sandboxes use, as it is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What it is called; stable, for scripts.
    pub(crate) name: &'static str,
    /// How it stands.
    pub(crate) state: State,
    /// `sandbox run` without flags cannot do without it, for the user who asks.
    pub(crate) needed: bool,
    /// What was found, or why it is not there.
    pub(crate) found: String,
    /// What it means or what to do, in words.
    pub(crate) advice: Option<String>,
    /// A shell command that mends it.
    pub(crate) command: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Check {
        Check { name, state, needed: false, found: found.into(), advice: None, command: None }
    }

    fn needed(self, needed: bool) -> Check {
        Check { needed, ..self }
    }

    fn advice(self, advice: impl Into<String>) -> Check {
        Check { advice: Some(advice.into()), ..self }
    }

    fn command(self, command: impl Into<String>) -> Check {
        Check { command: Some(command.into()), ..self }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Nothing that is needed is missing: the exit status is 0.
    pub(crate) ok: bool,
    /// The version of this program.
    pub(crate) version: &'static str,
    /// The user ID for whom the checks were made.
    pub(crate) uid: u32,
    /// One entry for each thing, in the order of the table.
    pub(crate) checks: Vec<Check>,
}

impl Report {
    /// Judges `facts`.
    pub(crate) fn new(facts: &Facts) -> Report {
        let checks = checks(facts);
        Report {
            ok: !checks.iter().any(|check| check.needed && check.state == State::Missing),
            version: env!("CARGO_PKG_VERSION"),
            uid: facts.uid,
            checks,
        }
    }
}
