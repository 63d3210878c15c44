//! The launcher while the payload lives: signals in, the terminal both ways, the payload's status out.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};

use crate::error::Result;
use crate::part::journal::TerminalLog;
use crate::signals::{self, Arrived, Signals};
use crate::sync::{ParentEnd, ToChild, ToParent};

/// A second SIGINT within this time kills.
const SECOND_INTERRUPT: Duration = Duration::from_secs(1);

/// Bytes under way in one direction at most.
const BUFFER: usize = 16 << 10;

/// Bytes read or written at once: PIPE_BUF, so that a pipe that poll(2) calls writable takes them without a wait; pipe(7).
const CHUNK: usize = 4096;

/// Longest wait for a stub that does not read, because somebody stopped it: the next signal may be the one that kills it.
const STUB_PATIENCE: Duration = Duration::from_millis(20);

/// Time for the caller's terminal to catch up before it may be closed: a read of its master that meets the close may give EIO with
/// more than a buffer still on its way inside the kernel, and who reads it ends at EIO.
const LAST_BYTES: Duration = Duration::from_millis(10);

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
    /// There is no stub: signals go to the payload itself, the socket closes when it is executed.
    as_pid1: bool,
    /// The payload where it is this process's child: it leads its session, so its process group has the same number.
    group: Option<Pid>,
    socket_open: bool,
    interrupted: Option<Instant>,
    /// A signal to end was passed on.
    asked: bool,
    /// The second interrupt killed: what is under way is not waited for.
    killed: bool,
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
        set_socket_timeout(end, Timeout::Send, Some(STUB_PATIENCE)).context("limit the wait for the stub")?;
        let group = if as_pid1 { signals::child_of(pidfd) } else { None };
        let terminal = master.map(Terminal::new).transpose()?;
        Ok(Relay {
            end,
            pidfd,
            signals,
            terminal,
            as_pid1,
            group,
            socket_open: true,
            interrupted: None,
            asked: false,
            killed: false,
            status: None,
        })
    }

    /// Returns when nothing inside runs any more: with the payload's status (as by wait(2)) when the stub reported it, or without
    /// when the first process inside is gone.
    ///
    /// # Errors
    /// When the payload could not be executed, or an event cannot be read.
    pub(crate) fn until_end(&mut self, seen: &mut dyn FnMut(&ToParent)) -> Result<Option<i32>> {
        loop {
            let ready = self.poll()?;
            if let Some(terminal) = &mut self.terminal {
                terminal.turn(&ready);
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
        wait_for(fds, None)
    }

    /// Hands on what was written before the last process inside ended. A reader that is slow is waited for, as a writer to a pipe
    /// waits; whoever asks a second time, the first being what ended the payload, wants the end and not the rest.
    fn drain(&mut self) -> Result<()> {
        if let Some(terminal) = &mut self.terminal {
            // So that the stub's is the last: the kernel carries over in its own time what was written, until the hang-up.
            terminal.held = None;
        }
        while let Some(terminal) = &mut self.terminal {
            terminal.read_rest();
            let (wanted, patience) = match terminal.output_interest() {
                Some(output) => (output, None),
                None if terminal.master_open => (terminal.master_interest(), Some(HANG_UP)),
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
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
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
                // ESRCH: it has just ended, which the poll will see. Its number is its own until this process has waited for it.
                let _ = match self.group.filter(|_| group) {
                    Some(leader) => rustix::process::kill_process_group(leader, signal),
                    None => rustix::process::pidfd_send_signal(self.pidfd, signal),
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

/// The sandbox's terminal on one side, standard input and output on the other.
#[derive(Debug)]
struct Terminal {
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
    log: Option<TerminalLog>,
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
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(rustix::stdio::stdin()).map_or(true, |group| group == rustix::process::getpgrp())
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Terminal> {
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
            set_raw(&before, OptionalActions::Flush).context("set the terminal to raw mode")?;
            terminal.before = Some(before);
            terminal.raw = true;
        }
        Ok(terminal)
    }

    /// Gives the caller's terminal back as it was.
    fn restore(&mut self) {
        if let Some(before) = self.before.as_ref().filter(|_| self.raw) {
            // Now: with a terminal that takes no more output, waiting for what is under way would last for ever.
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
        self.raw = false;
    }

    /// Takes the caller's terminal again after a stop, in which its shell had it, and maybe another size.
    fn resume(&mut self) {
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
    fn follow_size(&self) {
        let size = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
            .into_iter()
            .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok());
        if let Some(size) = size {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    fn interest(&self) -> Vec<(Source, PollFd<'_>)> {
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

    fn master_interest(&self) -> (Source, PollFd<'_>) {
        (Source::Master, PollFd::new(&self.master, PollFlags::IN))
    }

    fn output_interest(&self) -> Option<(Source, PollFd<'_>)> {
        let wanted = !self.to_caller.is_empty();
        wanted.then(|| (Source::Output, PollFd::from_borrowed_fd(self.output(), PollFlags::OUT)))
    }

    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_ref().map_or(rustix::stdio::stdout(), AsFd::as_fd)
    }

    fn turn(&mut self, ready: &Ready) {
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
    fn read_rest(&mut self) {
        let mut empty = 0;
        while empty < 3 && self.to_caller.len() < BUFFER {
            let before = self.to_caller.len();
            self.read_output();
            empty = if self.to_caller.len() == before { empty + 1 } else { 0 };
        }
    }

    fn write_output(&mut self) {
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
