//! Resource limits of processes, written Docker's way (`nofile=1024:2048`) or systemd's (`LimitNOFILE=1024:2048`).

use std::fmt;

use rustix::process::Resource;
use serde::Serialize;

use super::{INFINITY, is_infinity, number, size, time_span_in, wrong};
use crate::error::{Result, fault};

/// What a limit counts, and so how its value is written.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
    Seconds,
    Microseconds,
    /// `LimitNICE=-5` means nice level −5, which the kernel writes as 20 − (−5).
    Nice,
}

/// Every limit of getrlimit(2): name as in `Limit…=`, number, what it counts.
const LIMITS: &[(&str, Resource, Unit)] = &[
    ("AS", Resource::As, Unit::Bytes),
    ("CORE", Resource::Core, Unit::Bytes),
    ("CPU", Resource::Cpu, Unit::Seconds),
    ("DATA", Resource::Data, Unit::Bytes),
    ("FSIZE", Resource::Fsize, Unit::Bytes),
    ("LOCKS", Resource::Locks, Unit::Count),
    ("MEMLOCK", Resource::Memlock, Unit::Bytes),
    ("MSGQUEUE", Resource::Msgqueue, Unit::Bytes),
    ("NICE", Resource::Nice, Unit::Nice),
    ("NOFILE", Resource::Nofile, Unit::Count),
    ("NPROC", Resource::Nproc, Unit::Count),
    ("RSS", Resource::Rss, Unit::Bytes),
    ("RTPRIO", Resource::Rtprio, Unit::Count),
    ("RTTIME", Resource::Rttime, Unit::Microseconds),
    ("SIGPENDING", Resource::Sigpending, Unit::Count),
    ("STACK", Resource::Stack, Unit::Bytes),
];

/// One resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Rlimit {
    /// The number that setrlimit(2) takes.
    pub(crate) resource: u32,
    /// In the unit of getrlimit(2): bytes, seconds, microseconds or a count; [`INFINITY`] is no limit.
    pub(crate) soft: u64,
    /// What an unprivileged process may raise `soft` to.
    pub(crate) hard: u64,
}

impl Rlimit {
    /// Parses Docker's `NAME=SOFT[:HARD]`, the name in either case.
    pub(crate) fn parse(text: &str) -> Result<Rlimit> {
        match text.split_once('=') {
            Some((name, value)) => Rlimit::named(name, value),
            None => Err(wrong(text, "a limit", "NAME=SOFT[:HARD] (nofile=1024:2048)")),
        }
    }

    /// Parses the value of the limit `name` (`NOFILE`); one number is both soft and hard.
    pub(crate) fn named(name: &str, value: &str) -> Result<Rlimit> {
        let Some((_, resource, unit)) = LIMITS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)) else {
            let known = LIMITS.iter().map(|(name, ..)| name.to_ascii_lowercase()).collect::<Vec<_>>().join(", ");
            return Err(wrong(name, "a resource limit", &known));
        };
        let (soft, hard) = value.split_once(':').unwrap_or((value, value));
        let (soft, hard) = (amount(soft, *unit)?, amount(hard, *unit)?);
        if soft > hard {
            return Err(fault(format!("`{value}`: the soft limit is above the hard one"))
                .hint(format!("{name}={hard}"))
                .into());
        }
        Ok(Rlimit { resource: *resource as u32, soft, hard })
    }

    /// The name of the limit as in `Limit…=`.
    pub(crate) fn name(&self) -> &'static str {
        LIMITS.iter().find(|(_, resource, _)| *resource as u32 == self.resource).map_or("?", |(name, ..)| name)
    }
}

/// As systemd writes it: `LimitNOFILE=1024:2048`.
impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |n: u64| if n == INFINITY { "infinity".to_owned() } else { n.to_string() };
        write!(f, "Limit{}={}:{}", self.name(), word(self.soft), word(self.hard))
    }
}

/// Reads one of the two numbers; Docker writes no limit as −1.
fn amount(text: &str, unit: Unit) -> Result<u64> {
    if is_infinity(text) || (text == "-1" && !matches!(unit, Unit::Nice)) {
        return Ok(INFINITY);
    }
    match unit {
        Unit::Count => number(text),
        Unit::Bytes => size(text),
        Unit::Seconds => Ok(time_span_in(text, super::SEC)?.div_ceil(super::SEC)),
        Unit::Microseconds => time_span_in(text, 1),
        Unit::Nice => nice_limit(text),
    }
}

/// `+5` and `-5` are nice levels, a bare number is the kernel's own 1 to 40.
fn nice_limit(text: &str) -> Result<u64> {
    let level = text.strip_prefix('+').map(|n| number(n).map(|n| 20u64.saturating_sub(n)));
    let level = level.or_else(|| text.strip_prefix('-').map(|n| number(n).map(|n| n.saturating_add(20))));
    match level.unwrap_or_else(|| number(text)) {
        Ok(n) if (1..=40).contains(&n) => Ok(n),
        _ => Err(wrong(text, "a nice limit", "nice levels from -20 to +19 with their sign, and 1 to 40")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_both_ways() {
        let table = [
            ("nofile=1024:2048", "LimitNOFILE=1024:2048"),
            ("NOFILE=1024", "LimitNOFILE=1024:1024"),
            ("core=-1", "LimitCORE=infinity:infinity"),
            ("core=0:unlimited", "LimitCORE=0:infinity"),
            ("as=1G:2G", "LimitAS=1073741824:2147483648"),
            ("cpu=1500ms", "LimitCPU=2:2"),
            ("rttime=5ms", "LimitRTTIME=5000:5000"),
            ("nice=-5", "LimitNICE=25:25"),
            ("nice=+19", "LimitNICE=1:1"),
        ];
        for (text, want) in table {
            assert_eq!(Rlimit::parse(text).map(|limit| limit.to_string()).ok().as_deref(), Some(want), "{text}");
        }
        for text in ["nofile", "nofile=", "nofile=-2", "nofile=2:1", "files=1", "nice=41", "nofile=1K"] {
            assert!(Rlimit::parse(text).is_err(), "{text}");
        }
    }
}
