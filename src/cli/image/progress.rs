//! What is shown of work on layers.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::image::progress::{Meter, Progress, Silent};

/// Bars on a terminal, a line a layer elsewhere, nothing when nothing is wanted. All on standard error.
pub(in crate::cli) fn shown(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Silent)
    } else if io::stderr().is_terminal() {
        Box::new(Bars { all: MultiProgress::new() })
    } else {
        Box::new(Lines)
    }
}

struct Bars {
    all: MultiProgress,
}

struct Bar {
    item: String,
    bar: ProgressBar,
}

impl Progress for Bars {
    fn begin(&self, item: &str, verb: &'static str, total: u64) -> Box<dyn Meter> {
        let bar = self.all.add(if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() });
        let template = if total > 0 {
            "{prefix}  {msg:<10} [{wide_bar}] {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}"
        } else {
            "{prefix}  {msg:<10} {bytes:>10} {bytes_per_sec:>12}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("{item:<12}"));
        bar.set_message(verb);
        bar.enable_steady_tick(Duration::from_millis(200));
        Box::new(Bar { item: item.to_string(), bar })
    }

    fn note(&self, line: &str) {
        // Only the terminal could refuse, and then there is nobody to tell.
        let _ = self.all.println(line);
    }
}

impl Meter for Bar {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn done(&self, outcome: &str) {
        if let Ok(style) = ProgressStyle::with_template("{prefix}  {msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_prefix(format!("{:<12}", self.item));
        self.bar.finish_with_message(outcome.to_string());
    }
}

struct Lines;

struct Line {
    item: Arc<str>,
}

impl Progress for Lines {
    fn begin(&self, item: &str, _verb: &'static str, _total: u64) -> Box<dyn Meter> {
        Box::new(Line { item: item.into() })
    }

    fn note(&self, line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

impl Meter for Line {
    fn advance(&self, _bytes: u64) {}

    fn done(&self, outcome: &str) {
        let _ = writeln!(io::stderr(), "{:<12}  {outcome}", self.item);
    }
}
