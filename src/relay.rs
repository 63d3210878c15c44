//! The launcher while the payload lives: signals in, the terminal both ways, the payload's status out.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::Pid;

use crate::error::Result;
use crate::part::journal::TerminalLog;
use crate::procview::{Part, View};
use crate::signals::{Arrived, Signals};
use crate::sync::{ParentEnd, ToChild, ToParent};

mod terminal;

pub(crate) use terminal::is_in_foreground;

use terminal::Terminal;

/// A second SIGINT within this time kills.
const SECOND_INTERRUPT: Duration = Duration::from_secs(1);

/// Longest wait for a stub that does not read, because somebody stopped it: the next signal may be the one that kills it.
const STUB_PATIENCE: Duration = Duration::from_millis(20);

/// Longest wait for the terminal's hang-up once everything inside has ended: the stub's last act. Somebody outside who has it open
/// (--share pid) is not waited for.
const HANG_UP: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Watches one sandbox until its end.
#[derive(Debug)]
pub(crate) struct Relay<'a> {
    end: &'a ParentEnd,
    pidfd: &'a OwnedFd,
    signals: &'a Signals,
    terminal: Option<Terminal>,
    /// The sandbox's own numbers.
    view: Option<View>,
    /// The payload where it is this process's child: there is no stub, signals go to it, the socket closes when it is executed. It
    /// leads its session, so its process group has the same number.
    payload: Option<Pid>,
    socket_open: bool,
    interrupted: Option<Instant>,
    /// A signal to end was passed on.
    asked: bool,
    /// The second interrupt killed: what is under way is not waited for.
    killed: bool,
    status: Option<i32>,
    /// What SIGTERM becomes for the payload.
    stop_signal: Option<i32>,
    /// When [`Event::Settled`] is due.
    settles: Option<Instant>,
}

/// What a relay tells who called it.
#[derive(Debug)]
pub(crate) enum Event<'m> {
    /// The first process inside said something.
    Said(&'m ToParent),
    /// The payload has run for as long as [`Relay::settle_after`] says.
    Settled,
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
        payload: Option<Pid>,
    ) -> Result<Relay<'a>> {
        set_socket_timeout(end, Timeout::Send, Some(STUB_PATIENCE)).context("limit the wait for the stub")?;
        let terminal = master.map(Terminal::new).transpose()?;
        Ok(Relay {
            end,
            pidfd,
            signals,
            terminal,
            view: None,
            payload,
            socket_open: true,
            interrupted: None,
            asked: false,
            killed: false,
            status: None,
            stop_signal: None,
            settles: None,
        })
    }

    /// Answers for the sandbox's own numbers from now on.
    pub(crate) fn serve(&mut self, view: View) {
        self.view = Some(view);
    }

    /// Returns when nothing inside runs any more: with the payload's status (as by wait(2)) when the stub reported it, or without
    /// when the first process inside is gone.
    ///
    /// # Errors
    /// When the payload could not be executed, or an event cannot be read.
    pub(crate) fn until_end(&mut self, seen: &mut dyn FnMut(Event<'_>)) -> Result<Option<i32>> {
        loop {
            let ready = self.poll()?;
            if let Some(terminal) = &mut self.terminal {
                terminal.turn(&ready);
            }
            if let Some(view) = &mut self.view {
                ready.parts().for_each(|(part, flags)| view.turn(part, flags));
            }
            if ready.has(Source::Socket) {
                self.hear(seen)?;
            }
            // The stub reports when nothing else runs inside; the rest of its end, taking the mounts down, need not be waited for.
            if ready.has(Source::Child) || self.status.is_some() {
                self.drain()?;
                // What the stub said before it ended may still be in the socket.
                while self.socket_open && self.status.is_none() {
                    self.hear(seen)?;
                }
                return Ok(self.status);
            }
            if self.settles.take_if(|at| Instant::now() >= *at).is_some() {
                seen(Event::Settled);
            }
            // One at a time, and after the end was looked for: a signal that came later than that is for drain().
            if ready.has(Source::Signals)
                && let Some(arrived) = self.signals.next()?
            {
                self.pass_on(arrived);
            }
        }
    }

    /// From now on what the terminal shows goes to the journal, too.
    pub(crate) fn log_to(&mut self, log: TerminalLog) {
        if let Some(terminal) = &mut self.terminal {
            terminal.log = Some(log);
        }
    }

    /// From now on a SIGTERM is passed on as this signal, by its number.
    pub(crate) fn stop_by(&mut self, signal: Option<i32>) {
        self.stop_signal = signal;
    }

    /// Says so ([`Event::Settled`]) when the payload has run for so long.
    pub(crate) fn settle_after(&mut self, time: Duration) {
        self.settles = Some(Instant::now() + time);
    }

    fn poll(&self) -> Result<Ready> {
        let mut fds = vec![
            (Source::Child, PollFd::new(&self.pidfd, PollFlags::IN)),
            (Source::Signals, PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)),
        ];
        if self.socket_open {
            fds.push((Source::Socket, PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)));
        }
        if let Some(terminal) = &self.terminal {
            fds.extend(terminal.interest());
        }
        let parts = self.view.iter().flat_map(View::interest);
        fds.extend(parts.map(|(part, fd)| (Source::View(part), PollFd::from_borrowed_fd(fd, PollFlags::IN))));
        let left = self.settles.map(|at| at.saturating_duration_since(Instant::now()));
        wait_for(fds, left.and_then(|left| Timespec::try_from(left).ok()).as_ref())
    }

    /// Hands on what was written before the last process inside ended. A reader that is slow is waited for, as a writer to a pipe
    /// waits; whoever asks a second time, the first being what ended the payload, wants the end and not the rest.
    fn drain(&mut self) -> Result<()> {
        if let Some(terminal) = &mut self.terminal {
            terminal.let_go();
        }
        while let Some(terminal) = &mut self.terminal {
            terminal.read_rest();
            let (wanted, patience) = match terminal.output_interest() {
                Some(output) => (output, None),
                None if terminal.is_open() => (terminal.master_interest(), Some(HANG_UP)),
                None => break,
            };
            let fds = vec![(Source::Signals, PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)), wanted];
            let patience = if self.killed { Some(Timespec { tv_sec: 0, tv_nsec: 0 }) } else { patience };
            let ready = wait_for(fds, patience.as_ref())?;
            if ready.has(Source::Output) {
                terminal.write_output();
            } else if self.killed || (patience.is_some() && !ready.has(Source::Master) && !ready.has(Source::Signals)) {
                break;
            }
            if ready.has(Source::Signals)
                && let Some(arrived) = self.signals.next()?
            {
                if self.asked && arrived.asks_to_end() {
                    break;
                }
                self.pass_on(arrived);
            }
        }
        Ok(())
    }

    fn hear(&mut self, seen: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        match self.end.receive()? {
            Some(ToParent::Failed(failure)) => return Err(failure.into_error()),
            Some(ToParent::Calls(listener)) => {
                if let Some(view) = &mut self.view {
                    view.answer(listener);
                }
            }
            Some(message) => {
                if let ToParent::Exited(status) = message {
                    self.status = Some(status);
                }
                seen(Event::Said(&message));
            }
            None => {
                self.socket_open = false;
                if self.payload.is_some() {
                    seen(Event::Said(&ToParent::Executed));
                }
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, arrived: Arrived) {
        let Arrived { signal, from_terminal } = arrived;
        self.asked |= arrived.asks_to_end();
        match signal {
            Signal::SIGWINCH => match &self.terminal {
                Some(terminal) => terminal.follow_size(),
                None => self.send(signal, from_terminal),
            },
            Signal::SIGTSTP => {
                self.send(Signal::SIGSTOP, true);
                if let Some(terminal) = &mut self.terminal {
                    terminal.restore();
                }
                // Stopped here until somebody continues this process, which then continues the payload.
                let _ = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGSTOP);
            }
            Signal::SIGCONT => {
                if let Some(terminal) = &mut self.terminal {
                    terminal.resume();
                }
                self.send(signal, true);
            }
            Signal::SIGINT if self.is_second_interrupt() => {
                self.killed = true;
                // The first process inside, whatever state it and the payload are in: the kernel ends the rest with it.
                let _ = rustix::process::pidfd_send_signal(self.pidfd, rustix::process::Signal::KILL);
            }
            Signal::SIGTERM => self.send_number(self.stop_signal.unwrap_or(libc::SIGTERM), from_terminal),
            // A terminal signals a whole foreground group, of which only this process is a member.
            _ => self.send(signal, from_terminal),
        }
    }

    fn is_second_interrupt(&mut self) -> bool {
        let now = Instant::now();
        self.interrupted.replace(now).is_some_and(|before| now.duration_since(before) < SECOND_INTERRUPT)
    }

    fn send(&self, signal: Signal, group: bool) {
        self.send_number(signal as i32, group);
    }

    fn send_number(&self, number: i32, group: bool) {
        if let Some(leader) = self.payload {
            if let Some(signal) = crate::sys::signal(number) {
                // ESRCH: it has just ended, which the poll will see. Its number is its own until this process has waited for it.
                let _ = if group {
                    rustix::process::kill_process_group(leader, signal)
                } else {
                    rustix::process::pidfd_send_signal(self.pidfd, signal)
                };
            }
            return;
        }
        let message = if group { ToChild::SignalGroup(number) } else { ToChild::Signal(number) };
        // EPIPE: the same. EAGAIN: the stub is stopped, with hundreds of signals before this one.
        drop(self.end.send(&message));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Child,
    Signals,
    Socket,
    Master,
    Input,
    Output,
    View(Part),
}

/// What a poll found, by what was polled.
struct Ready(Vec<(Source, PollFlags)>);

impl Ready {
    fn flags(&self, source: Source) -> PollFlags {
        self.0.iter().find(|(from, _)| *from == source).map_or(PollFlags::empty(), |(_, flags)| *flags)
    }

    fn has(&self, source: Source) -> bool {
        !self.flags(source).is_empty()
    }

    /// Of the view what has something.
    fn parts(&self) -> impl Iterator<Item = (Part, PollFlags)> {
        let ready = self.0.iter().filter(|(_, flags)| !flags.is_empty());
        ready.filter_map(|(source, flags)| if let Source::View(part) = source { Some((*part, *flags)) } else { None })
    }
}

/// Only what something is wanted of may be among `fds`: with no events asked for, poll(2) still returns for a closed other end,
/// at once and every time.
fn wait_for(fds: Vec<(Source, PollFd<'_>)>, limit: Option<&Timespec>) -> Result<Ready> {
    let (sources, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
    match rustix::event::poll(&mut fds, limit) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Ready(Vec::new())),
        Err(error) => return Err(error).context("wait for events"),
    }
    Ok(Ready(sources.into_iter().zip(fds.iter().map(PollFd::revents)).collect()))
}
