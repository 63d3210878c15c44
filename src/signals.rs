//! Signals of the launcher: taken from a descriptor, so that none is lost between clone and wait.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::error::Result;
use crate::sys;

/// What is relayed to the payload; SIGWINCH goes to its terminal, SIGTSTP and SIGCONT stop and continue both sides.
const TAKEN: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// `SI_KERNEL` of siginfo(2): the terminal sent it to the whole foreground group.
const FROM_TERMINAL: i32 = 0x80;

/// What ends a start that is under way, and what whoever sends it a second time wants the end with.
const ENDING: &[Signal] = &[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The taken signals, blocked and waiting in a descriptor.
#[derive(Debug)]
pub(crate) struct Signals {
    taken: SignalFd,
    /// Never read: readable while one of [`ENDING`] waits.
    ending: SignalFd,
}

/// One signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Which.
    pub(crate) signal: Signal,
    /// It came from the terminal, not from kill(2).
    pub(crate) from_terminal: bool,
}

impl Arrived {
    /// Whoever sent it most likely wants the end: it is one of [`ENDING`].
    pub(crate) fn asks_to_end(self) -> bool {
        ENDING.contains(&self.signal)
    }
}

impl Signals {
    /// Blocks those that are not ignored; what is sent from now on waits.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn block() -> Result<Signals> {
        // What the caller ignores stays ignored: nohup(1), and a shell's background jobs.
        let heard = |signals: &[Signal]| -> SigSet {
            signals.iter().copied().filter(|signal| !sys::is_ignored(*signal as i32)).collect()
        };
        heard(TAKEN).thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let make = |signals: &[Signal]| SignalFd::with_flags(&heard(signals), flags).context("make a signalfd");
        Ok(Signals { taken: make(TAKEN)?, ending: make(ENDING)? })
    }

    /// A descriptor that is readable while a signal waits that ends a start under way.
    pub(crate) fn ending(&self) -> BorrowedFd<'_> {
        self.ending.as_fd()
    }

    /// Whether such a signal waits.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn has_ending(&self) -> Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.ending(), PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).context("look for signals")?;
        Ok(fds.iter().any(|fd| !fd.revents().is_empty()))
    }

    /// Such a signal, if one waits; others that wait are forgotten.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub(crate) fn ended_by(&self) -> Result<Option<Signal>> {
        while let Some(arrived) = self.next()? {
            if ENDING.contains(&arrived.signal) {
                return Ok(Some(arrived.signal));
            }
        }
        Ok(None)
    }

    /// The next one that waits.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub(crate) fn next(&self) -> Result<Option<Arrived>> {
        let arrived = |info: siginfo| {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())?;
            Some(Arrived { signal, from_terminal: info.ssi_code == FROM_TERMINAL })
        };
        Ok(self.taken.read_signal().context("read a signal")?.and_then(arrived))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.taken.as_fd()
    }
}
