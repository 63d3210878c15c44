//! How work on layers tells what it is doing. Nothing here prints: the command line decides what is shown.

use std::sync::atomic::{AtomicBool, Ordering};

/// Where news of an import or a pull goes.
pub(crate) trait Progress: Sync {
    /// Work on one layer or blob begins: its short name, what is done, and how many bytes there are.
    fn begin(&self, item: &str, verb: &'static str, total: u64) -> Box<dyn Meter>;
    /// A line worth reading that is not about one layer.
    fn note(&self, line: &str);
}

/// The progress of one piece of work.
pub(crate) trait Meter: Send + Sync {
    /// More bytes are done.
    fn advance(&self, bytes: u64);
    /// The work is done; `outcome` says how.
    fn done(&self, outcome: &str);
    /// Whether to stop, as the whole has failed elsewhere.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

impl Progress for Silent {
    fn begin(&self, _item: &str, _verb: &'static str, _total: u64) -> Box<dyn Meter> {
        Box::new(Silent)
    }

    fn note(&self, _line: &str) {}
}

impl Meter for Silent {
    fn advance(&self, _bytes: u64) {}

    fn done(&self, _outcome: &str) {}
}

/// A meter that stops its work when a sibling has failed.
pub(crate) struct Joined<'a> {
    inner: Box<dyn Meter>,
    failed: &'a AtomicBool,
}

impl<'a> Joined<'a> {
    /// Watches `failed`.
    pub(crate) fn new(inner: Box<dyn Meter>, failed: &'a AtomicBool) -> Joined<'a> {
        Joined { inner, failed }
    }
}

impl std::fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Meter for Joined<'_> {
    fn advance(&self, bytes: u64) {
        self.inner.advance(bytes);
    }

    fn done(&self, outcome: &str) {
        self.inner.done(outcome);
    }

    fn cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}
