//! `--timings`: what the milliseconds of a start are spent on.

use std::fmt;
use std::time::{Duration, Instant};

/// Moments of one start, in order.
#[derive(Debug)]
pub(crate) struct Timings {
    began: Instant,
    /// They are printed at the end.
    pub(crate) wanted: bool,
    marks: Vec<(&'static str, Duration)>,
}

impl Timings {
    /// Begins now.
    pub(crate) fn begin(wanted: bool) -> Timings {
        Timings { began: Instant::now(), wanted, marks: Vec::new() }
    }

    /// Notes that this step is done.
    pub(crate) fn mark(&mut self, step: &'static str) {
        self.marks.push((step, self.began.elapsed()));
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = Duration::ZERO;
        for (step, at) in &self.marks {
            let (at_ms, took) = (at.as_secs_f64() * 1e3, at.saturating_sub(before).as_secs_f64() * 1e3);
            writeln!(f, "{at_ms:9.3} ms  +{took:8.3}  {step}")?;
            before = *at;
        }
        Ok(())
    }
}
