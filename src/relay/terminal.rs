//! The terminal that a sandbox has of its own (--pty), joined to the caller's standard input and output without waits.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

use super::{Ready, Source};
use crate::error::Result;
use crate::part::journal::TerminalLog;

/// Bytes under way in one direction at most.
const BUFFER: usize = 16 << 10;

/// Bytes read or written at once: PIPE_BUF, so that a pipe that poll(2) calls writable takes them without a wait; pipe(7).
const CHUNK: usize = 4096;

/// Time for the caller's terminal to catch up before it may be closed: a read of its master that meets the close may give EIO with
/// more than a buffer still on its way inside the kernel, and who reads it ends at EIO.
const LAST_BYTES: Duration = Duration::from_millis(10);

/// The sandbox's terminal on one side, standard input and output on the other.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    /// The terminal itself, from when nobody inside had it open any more: whoever opens it again is heard.
    held: Option<OwnedFd>,
    /// Standard output, where a write to it need not wait; else the inherited one is used.
    output: Option<OwnedFd>,
    /// Bytes written to standard output.
    written: usize,
    to_payload: VecDeque<u8>,
    to_caller: VecDeque<u8>,
    input_open: bool,
    master_open: bool,
    /// The settings that the caller's terminal had.
    before: Option<Termios>,
    raw: bool,
    /// Who else gets what the terminal shows.
    pub(super) log: Option<TerminalLog>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
        if self.written >= CHUNK && rustix::termios::isatty(rustix::stdio::stdout()) {
            std::thread::sleep(LAST_BYTES);
        }
    }
}

/// Standard output opened anew without waits, where it is a pipe or a terminal: O_NONBLOCK on the inherited descriptor would be
/// everybody's who shares it. A terminal is called writable when it takes one byte, and a longer write would wait.
fn open_output() -> Option<OwnedFd> {
    let stdout = rustix::stdio::stdout();
    let is_pipe = FileType::from_raw_mode(rustix::fs::fstat(stdout).ok()?.st_mode) == FileType::Fifo;
    // The master of a terminal passes for one; opened anew it would be another.
    let is_terminal = || rustix::termios::isatty(stdout) && rustix::pty::ptsname(stdout, Vec::new()).is_err();
    if !is_pipe && !is_terminal() {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Refused where it belongs to another user, as after su(1).
    rustix::fs::open("/proc/self/fd/1", flags, Mode::empty()).ok()
}

/// Whether the caller's terminal is this process's to set: it would be stopped for it in the background, tcsetattr(3).
pub(crate) fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(rustix::stdio::stdin()).map_or(true, |group| group == rustix::process::getpgrp())
}

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true).context("set the terminal to non-blocking")?;
        let mut terminal = Terminal {
            master,
            held: None,
            output: open_output(),
            written: 0,
            to_payload: VecDeque::new(),
            to_caller: VecDeque::new(),
            input_open: true,
            master_open: true,
            before: None,
            raw: false,
            log: None,
        };
        terminal.follow_size();
        if std::io::stdin().is_terminal() {
            let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).context("read the terminal's settings")?;
            // In the background it is left to whoever has it, until this process comes to the front ([`Terminal::resume`]).
            terminal.raw = is_in_foreground();
            if terminal.raw {
                set_raw(&before, OptionalActions::Flush).context("set the terminal to raw mode")?;
            }
            terminal.before = Some(before);
        }
        Ok(terminal)
    }

    /// Gives the caller's terminal back as it was.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.as_ref().filter(|_| self.raw) {
            // Now: with a terminal that takes no more output, waiting for what is under way would last for ever.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
        self.raw = false;
    }

    /// Takes the caller's terminal again after a stop, in which its shell had it, and maybe another size.
    pub(super) fn resume(&mut self) {
        self.follow_size();
        if self.before.is_none() || !is_in_foreground() {
            // Whoever has it now has set it; a later SIGCONT brings this process to the front.
            self.raw = false;
            return;
        }
        if !self.raw
            && let Ok(now) = rustix::termios::tcgetattr(rustix::stdio::stdin())
        {
            self.before = Some(now);
        }
        // A stop that nothing announced (SIGSTOP) left the mark, but a shell has its own settings in force.
        self.raw = self.before.as_ref().is_some_and(|before| set_raw(before, OptionalActions::Now).is_ok());
    }

    /// Gives the sandbox's terminal the size of the caller's, where there is one.
    pub(super) fn follow_size(&self) {
        let size = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
            .into_iter()
            .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok());
        if let Some(size) = size {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    pub(super) fn interest(&self) -> Vec<(Source, PollFd<'_>)> {
        let mut fds = Vec::new();
        let mut master = PollFlags::empty();
        if self.master_open && self.to_caller.len() < BUFFER {
            master |= PollFlags::IN;
        }
        if !self.to_payload.is_empty() {
            master |= PollFlags::OUT;
        }
        if !master.is_empty() {
            fds.push((Source::Master, PollFd::new(&self.master, master)));
        }
        if self.input_open && self.to_payload.len() < BUFFER {
            fds.push((Source::Input, PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN)));
        }
        fds.extend(self.output_interest());
        fds
    }

    pub(super) fn master_interest(&self) -> (Source, PollFd<'_>) {
        (Source::Master, PollFd::new(&self.master, PollFlags::IN))
    }

    pub(super) fn output_interest(&self) -> Option<(Source, PollFd<'_>)> {
        let wanted = !self.to_caller.is_empty();
        wanted.then(|| (Source::Output, PollFd::from_borrowed_fd(self.output(), PollFlags::OUT)))
    }

    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_ref().map_or(rustix::stdio::stdout(), AsFd::as_fd)
    }

    pub(super) fn turn(&mut self, ready: &Ready) {
        if ready.has(Source::Input) {
            self.read_input();
        }
        self.write_input();
        let master = ready.flags(Source::Master);
        if master.contains(PollFlags::HUP) && self.master_open {
            self.hold();
        }
        if !master.is_empty() && self.to_caller.len() < BUFFER {
            self.read_output();
        }
        // Without a wait in it there is no need to ask first.
        if ready.has(Source::Output) || self.output.is_some() {
            self.write_output();
        }
    }

    /// Nobody inside has the terminal open, or it was hung up; vhangup(2). The hang-up lasts until somebody opens it again: that is
    /// done here, so that it can be waited for that somebody inside does. What was written before stays to be read.
    fn hold(&mut self) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        match rustix::pty::ioctl_tiocgptpeer(&self.master, flags) {
            Ok(terminal) => self.held = Some(terminal),
            Err(_) => {
                self.read_rest();
                self.master_open = false;
            }
        }
    }

    /// Leaves the stub's as the last descriptor of the terminal: the kernel carries over in its own time what was written, until the
    /// hang-up.
    pub(super) fn let_go(&mut self) {
        self.held = None;
    }

    /// Whether something may still come from inside.
    pub(super) fn is_open(&self) -> bool {
        self.master_open
    }

    fn read_input(&mut self) {
        let mut bytes = [0; CHUNK];
        match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(0) => {
                self.input_open = false;
                // The end of a pipe becomes the terminal's end-of-file character, twice: after a part of a line one is not enough.
                self.to_payload.extend([4, 4]);
            }
            Ok(length) => self.to_payload.extend(&bytes[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.input_open = false,
        }
    }

    fn write_input(&mut self) {
        let (bytes, _) = self.to_payload.as_slices();
        if let Ok(length) = rustix::io::write(&self.master, bytes) {
            self.to_payload.drain(..length);
        }
    }

    fn read_output(&mut self) {
        let mut bytes = [0; CHUNK];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) => self.master_open = false,
            Ok(length) => {
                self.to_caller.extend(&bytes[..length]);
                if let Some(log) = &mut self.log {
                    log.write(&bytes[..length]);
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // EIO: hung up although it is held.
            Err(_) => self.master_open = false,
        }
    }

    /// As much as there is and fits. One read that finds nothing proves nothing: bytes may be on their way inside the kernel.
    pub(super) fn read_rest(&mut self) {
        let mut empty = 0;
        while empty < 3 && self.to_caller.len() < BUFFER {
            let before = self.to_caller.len();
            self.read_output();
            empty = if self.to_caller.len() == before { empty + 1 } else { 0 };
        }
    }

    pub(super) fn write_output(&mut self) {
        let (bytes, _) = self.to_caller.as_slices();
        if bytes.is_empty() {
            return;
        }
        match rustix::io::write(self.output(), &bytes[..bytes.len().min(CHUNK)]) {
            Ok(length) => {
                self.written += length;
                self.to_caller.drain(..length);
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            // Nobody reads any more.
            Err(_) => self.to_caller.clear(),
        }
    }
}

fn set_raw(before: &Termios, when: OptionalActions) -> rustix::io::Result<()> {
    let mut raw = before.clone();
    raw.make_raw();
    rustix::termios::tcsetattr(rustix::stdio::stdin(), when, &raw)
}
