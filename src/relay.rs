//! The launcher while the payload lives: signals in, the terminal both ways, the payload's status out.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios};

use crate::error::Result;
use crate::signals::{Arrived, Signals};
use crate::sync::{ParentEnd, ToChild, ToParent};

/// A second SIGINT within this time kills.
const SECOND_INTERRUPT: Duration = Duration::from_secs(1);

/// Bytes under way in one direction at most: what a terminal's own buffer holds, times four.
const BUFFER: usize = 16 << 10;

/// Watches one sandbox until its end.
#[derive(Debug)]
pub(crate) struct Relay<'a> {
    end: &'a ParentEnd,
    pidfd: &'a OwnedFd,
    signals: &'a Signals,
    terminal: Option<Terminal>,
    /// There is no stub: signals go to the payload itself, the socket closes when it is executed.
    as_pid1: bool,
    socket_open: bool,
    interrupted: Option<Instant>,
    status: Option<i32>,
}

impl<'a> Relay<'a> {
    /// Prepares the caller's terminal where the sandbox has one of its own.
    ///
    /// # Errors
    /// When the terminal cannot be set.
    pub(crate) fn new(
        end: &'a ParentEnd,
        pidfd: &'a OwnedFd,
        signals: &'a Signals,
        master: Option<OwnedFd>,
        as_pid1: bool,
    ) -> Result<Relay<'a>> {
        let terminal = master.map(Terminal::new).transpose()?;
        Ok(Relay { end, pidfd, signals, terminal, as_pid1, socket_open: true, interrupted: None, status: None })
    }

    /// Returns when nothing inside runs any more: with the payload's status (as by wait(2)) when the stub reported it, or without
    /// when the first process inside is gone.
    ///
    /// # Errors
    /// When the payload could not be executed, or an event cannot be read.
    pub(crate) fn until_end(&mut self, seen: &mut dyn FnMut(&ToParent)) -> Result<Option<i32>> {
        loop {
            let ready = self.poll()?;
            if ready.signals {
                while let Some(arrived) = self.signals.next()? {
                    self.pass_on(arrived);
                }
            }
            if let Some(terminal) = &mut self.terminal {
                terminal.turn(ready.input, ready.output);
            }
            if ready.socket {
                self.hear(seen)?;
            }
            // The stub reports when nothing else runs inside; the rest of its end, taking the mounts down, need not be waited for.
            if ready.ended || self.status.is_some() {
                if let Some(terminal) = &mut self.terminal {
                    terminal.drain();
                }
                // What the stub said before it ended may still be in the socket.
                while self.socket_open && self.status.is_none() {
                    self.hear(seen)?;
                }
                return Ok(self.status);
            }
        }
    }

    fn poll(&self) -> Result<Ready> {
        let socket = if self.socket_open { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.end.as_fd(), socket),
        ];
        if let Some(terminal) = &self.terminal {
            fds.extend(terminal.interest());
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for events"),
        }
        let happened = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            ended: happened(0),
            signals: happened(1),
            socket: happened(2) && self.socket_open,
            output: happened(3),
            input: happened(4),
        })
    }

    fn hear(&mut self, seen: &mut dyn FnMut(&ToParent)) -> Result<()> {
        match self.end.receive()? {
            Some(ToParent::Failed(failure)) => return Err(failure.into_error()),
            Some(message) => {
                if let ToParent::Exited(status) = message {
                    self.status = Some(status);
                }
                seen(&message);
            }
            None => {
                self.socket_open = false;
                if self.as_pid1 {
                    seen(&ToParent::Executed);
                }
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, arrived: Arrived) {
        let Arrived { signal, from_terminal } = arrived;
        match signal {
            Signal::SIGWINCH => match &self.terminal {
                Some(terminal) => terminal.follow_size(),
                None => self.send(signal, false),
            },
            Signal::SIGTSTP => {
                self.send(Signal::SIGSTOP, true);
                // Stopped here until somebody continues this process, which then continues the payload.
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
            }
            Signal::SIGCONT => self.send(signal, true),
            Signal::SIGINT if self.is_second_interrupt() => {
                let _ = rustix::process::pidfd_send_signal(self.pidfd, rustix::process::Signal::KILL);
            }
            // A terminal signals a whole foreground group, of which only this process is a member.
            _ => self.send(signal, from_terminal),
        }
    }

    fn is_second_interrupt(&mut self) -> bool {
        let now = Instant::now();
        self.interrupted.replace(now).is_some_and(|before| now.duration_since(before) < SECOND_INTERRUPT)
    }

    fn send(&self, signal: Signal, group: bool) {
        let number = signal as i32;
        if self.as_pid1 {
            if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                // ESRCH: it has just ended, which the poll will see.
                let _ = rustix::process::pidfd_send_signal(self.pidfd, signal);
            }
            return;
        }
        let message = if group { ToChild::SignalGroup(number) } else { ToChild::Signal(number) };
        // EPIPE: the same.
        drop(self.end.send(&message));
    }
}

/// What a poll found.
struct Ready {
    ended: bool,
    signals: bool,
    socket: bool,
    output: bool,
    input: bool,
}

/// The sandbox's terminal on one side, standard input and output on the other.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    to_payload: VecDeque<u8>,
    to_caller: VecDeque<u8>,
    input_open: bool,
    output_open: bool,
    before: Option<Termios>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, before);
        }
    }
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true).context("set the terminal to non-blocking")?;
        let mut terminal = Terminal {
            master,
            to_payload: VecDeque::new(),
            to_caller: VecDeque::new(),
            input_open: true,
            output_open: true,
            before: None,
        };
        terminal.follow_size();
        if std::io::stdin().is_terminal() {
            let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).context("read the terminal's settings")?;
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &raw)
                .context("set the terminal to raw mode")?;
            terminal.before = Some(before);
        }
        Ok(terminal)
    }

    /// Gives the sandbox's terminal the size of the caller's, where there is one.
    fn follow_size(&self) {
        let size = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
            .into_iter()
            .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok());
        if let Some(size) = size {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// The master first, then standard input.
    fn interest(&self) -> [PollFd<'_>; 2] {
        let mut master = PollFlags::empty();
        if self.output_open && self.to_caller.len() < BUFFER {
            master |= PollFlags::IN;
        }
        if !self.to_payload.is_empty() {
            master |= PollFlags::OUT;
        }
        let input = if self.input_open && self.to_payload.len() < BUFFER { PollFlags::IN } else { PollFlags::empty() };
        [PollFd::new(&self.master, master), PollFd::from_borrowed_fd(rustix::stdio::stdin(), input)]
    }

    fn turn(&mut self, input: bool, output: bool) {
        if input && self.input_open {
            self.read_input();
        }
        self.write_input();
        if output {
            self.read_output();
        }
        self.write_output();
    }

    fn read_input(&mut self) {
        let mut bytes = [0; 4096];
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
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) => self.output_open = false,
            Ok(length) => self.to_caller.extend(&bytes[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // EIO: nobody inside has the terminal open any more.
            Err(_) => self.output_open = false,
        }
    }

    fn write_output(&mut self) {
        while !self.to_caller.is_empty() {
            let (bytes, _) = self.to_caller.as_slices();
            match rustix::io::write(rustix::stdio::stdout(), bytes) {
                Ok(length) => drop(self.to_caller.drain(..length)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait_for(rustix::stdio::stdout(), PollFlags::OUT),
                // Nobody reads any more.
                Err(_) => self.to_caller.clear(),
            }
        }
    }

    /// Everything that was written before the last process inside ended.
    fn drain(&mut self) {
        loop {
            let before = self.to_caller.len();
            self.read_output();
            if self.to_caller.len() == before {
                break;
            }
            self.write_output();
        }
        self.write_output();
    }
}

fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) {
    let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None);
}
