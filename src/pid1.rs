//! The stub: PID 1 inside. It reaps, relays signals to the payload, reports the payload's status and ends; the kernel then ends
//! everything else in its PID namespace. A PID 1 with default handlers ignores SIGTERM and SIGINT, pid_namespaces(7): that is why
//! the payload is not PID 1 unless asked.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::child::{self, Origin, Payload};
use crate::error::{Result, fault};
use crate::layer::Namespace;
use crate::part::process::Prepared;
use crate::plan::Plan;
use crate::sync::{ChildEnd, Failure, ToChild, ToParent};
use crate::sys;

/// Longest wait for the launcher to have looked at what the unit counted.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

/// Starts the payload and stays until it has ended; the result is the exit status of this process, which nobody reads. That the payload
/// runs is told to the launcher where it is to be: that wakes it.
///
/// # Errors
/// When the payload cannot be started, with its own reason.
pub(crate) fn supervise(
    plan: &Plan,
    end: &ChildEnd,
    payload: Payload<'_>,
    prepared: &Prepared,
    terminal: Option<OwnedFd>,
    tell: bool,
) -> Result<u8> {
    let signals = watch_signals()?;
    // Where the PID namespace is the host's, orphans of the payload come to the stub all the same.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).context("become a subreaper")?;
    // Before there is anybody who could look into it; execve takes it from the payload.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("hide the stub's memory")?;
    let (payload, started) = begin(plan, end, payload, prepared, terminal.as_ref())?;
    if let Some(failure) = read_failure(started)? {
        return Err(failure.into_error());
    }
    if tell {
        end.send(&ToParent::Executed).context("tell the launcher")?;
    }
    let own_pids = plan.namespaces.has(Namespace::Pid);
    let status = Stub { end, signals, payload, in_unit: plan.unit.is_some(), own_pids }.watch()?;
    end_the_rest(own_pids);
    end.send(&ToParent::Exited(status)).context("tell the launcher")?;
    // Open until here: without anybody that has it open its master is hung up, which looks like the end, while what still runs inside
    // may open it again.
    drop(terminal);
    wait_for_release(end);
    Ok(0)
}

/// Starts the payload and takes the stub's rights from it, in this order only where the payload can do nothing with them; as [`vfork`].
fn begin(
    plan: &Plan,
    end: &ChildEnd,
    payload: Payload<'_>,
    prepared: &Prepared,
    terminal: Option<&OwnedFd>,
) -> Result<(Pid, OwnedFd)> {
    let become_it = |kept: &[BorrowedFd<'_>], gate: Option<BorrowedFd<'_>>, origin: Origin<'_>| {
        let left = child::leave_descriptors(plan, kept, terminal);
        match left.and_then(|()| gate.map_or(Ok(()), pass)) {
            Ok(()) => payload.become_it(prepared, terminal, origin),
            Err(error) => error,
        }
    };
    if payload.may_share_memory() {
        let begun = vfork(|report| become_it(&[report, end.as_fd()], None, Origin::Vfork(report)))?;
        child::shrink_stub(plan, end)?;
        return Ok(begun);
    }
    let (gate, opener) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
    let begun =
        fork(|report| become_it(&[report, end.as_fd(), gate.as_fd()], Some(gate.as_fd()), Origin::Fork(report)))?;
    child::shrink_stub(plan, end)?;
    rustix::io::write(&opener, b"g").context("let the payload begin")?;
    Ok(begun)
}

/// Lets the launcher look at the unit's cgroup, which systemd removes when this process ends, and mostly end first. One that somebody
/// stopped is not waited for long.
fn wait_for_release(end: &ChildEnd) {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut ready, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return,
            // Signals for a payload that has ended.
            Ok(_) if matches!(end.receive(), Ok(Some(_))) => {}
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits in the payload's process until the stub is without its rights.
fn pass(gate: BorrowedFd<'_>) -> Result<()> {
    match rustix::io::retry_on_intr(|| rustix::io::read(gate, &mut [0; 1])).context("wait for the stub")? {
        0 => Err(fault("the stub is gone").into()),
        _ => Ok(()),
    }
}

/// Starts the process that becomes the payload by `become_it`, which returns only why it could not, and waits for either. Its number,
/// and the pipe through which [`read_failure`] reads that; `become_it` gets the end of it that it must leave open.
fn vfork(become_it: impl Fn(BorrowedFd<'_>) -> anyhow::Error) -> Result<(Pid, OwnedFd)> {
    let (started, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
    let payload = sys::vfork(|| {
        report_failure(&report, &become_it(report.as_fd()));
        crate::exit::FAILED
    });
    let payload = payload.context("start the payload")?;
    // A switch to another user sets it anew for the memory that both had, prctl(2).
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("hide the stub's memory")?;
    Ok((payload, started))
}

/// The same by a copy of this process, which is not waited for, and may enter namespaces that take nobody whose memory is shared (EUSERS,
/// setns(2)).
fn fork(become_it: impl FnOnce(BorrowedFd<'_>) -> anyhow::Error) -> Result<(Pid, OwnedFd)> {
    let (started, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
    match sys::clone_process(0).context("fork the payload")? {
        sys::Side::Child => {
            drop(started);
            report_failure(&report, &become_it(report.as_fd()));
            sys::exit_now(crate::exit::FAILED)
        }
        sys::Side::Parent(pid, _) => Ok((pid, started)),
    }
}

/// Does for a process of `exec` what the stub does for the payload: starts it, relays signals, reports its status. This process is in
/// the unit but not in the PID namespace, so nobody inside sees it.
///
/// # Errors
/// When the process cannot be started, with its own reason.
pub(crate) fn attend(end: &ChildEnd, become_it: impl FnOnce(BorrowedFd<'_>) -> anyhow::Error) -> Result<u8> {
    let signals = watch_signals()?;
    let (payload, started) = fork(become_it)?;
    child::leave_streams(end);
    if let Some(failure) = read_failure(started)? {
        return Err(failure.into_error());
    }
    let status = Stub { end, signals, payload, in_unit: true, own_pids: false }.watch()?;
    end.send(&ToParent::Exited(status)).context("tell the launcher")?;
    Ok(0)
}

/// Kills whatever the payload left and waits for its end, so that nothing of it runs any more when the launcher returns; the mounts
/// go a moment later with this process. What `exec` brought in, nobody's child here, goes with this process, too.
fn end_the_rest(own_pids: bool) {
    loop {
        // To signal all is to look at each process of the machine: only where there are any.
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::CHILD) => return,
            Ok(Some(_)) | Err(_) => continue,
            Ok(None) => {}
        }
        if own_pids {
            // As PID 1 of a namespace: -1 is everything in it, kill(2). ESRCH: nothing is left.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
        } else {
            // Orphans have come to this subreaper, and more come as their parents end.
            let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn watch_signals() -> Result<SignalFd> {
    // Every signal is blocked: as PID 1 that changes nothing, with the host's PIDs a signal for the whole unit would end the stub.
    sys::block_all_signals().context("block signals")?;
    let set: SigSet = [Signal::SIGCHLD, Signal::SIGTERM].into_iter().collect();
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("make a signalfd")
}

/// The longest report, in bytes: a pipe takes as much when nobody reads yet, since who would read waits; pipe(7).
const REPORT: usize = 4096;

/// The payload's reason, through a pipe that execve closes: nothing in it means that the payload runs.
fn report_failure(pipe: &OwnedFd, error: &anyhow::Error) {
    let failure = Failure::from_error(error);
    // The message last: what names the command may be as long as that.
    let mut text = format!("{}\0{}\0{}", failure.status, failure.hint, failure.message).into_bytes();
    text.truncate(REPORT);
    // Without a reader there is nobody to tell.
    let _ = rustix::io::write(pipe, &text);
}

fn read_failure(pipe: OwnedFd) -> Result<Option<Failure>> {
    let mut text = Vec::new();
    File::from(pipe).read_to_end(&mut text).context("wait for the payload")?;
    let text = String::from_utf8_lossy(&text);
    let mut parts = text.splitn(3, '\0');
    let (Some(status), Some(hint), Some(message)) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(None);
    };
    Ok(Some(Failure { status: status.parse().unwrap_or(125), message: message.into(), hint: hint.into() }))
}

struct Stub<'a> {
    end: &'a ChildEnd,
    signals: SignalFd,
    payload: Pid,
    in_unit: bool,
    own_pids: bool,
}

impl Stub<'_> {
    /// Waits until the payload has ended; its status as by wait(2).
    fn watch(&self) -> Result<i32> {
        // What stopped the unit before the payload had begun has reached this process alone; one that had begun has died of it.
        self.pass_on(|_| true)?;
        loop {
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            let mut ready =
                [PollFd::new(&self.signals, PollFlags::IN), PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for events"),
            }
            let from_launcher = !ready[1].revents().is_empty();
            // Who sends it from inside (`kill 1`) means the payload. From outside, where the sender has no number here,
            // systemd signals every process of the unit: passed on, the payload would get one stop twice.
            self.pass_on(|sender| self.own_pids && sender != 0 || !self.in_unit)?;
            if from_launcher {
                self.obey()?;
            }
        }
    }

    /// Passes a SIGTERM that waits on to the payload, if its sender's number here says that it is meant.
    fn pass_on(&self, is_meant: impl Fn(u32) -> bool) -> Result<()> {
        while let Some(signal) = self.signals.read_signal().context("read signals")? {
            if is_meant(signal.ssi_pid) && signal.ssi_signo == libc::SIGTERM.cast_unsigned() {
                self.signal(libc::SIGTERM, false);
            }
        }
        Ok(())
    }

    /// Reaps whatever has ended; the payload's status when it is among them.
    fn reap(&self) -> Result<Option<i32>> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.payload => return Ok(Some(status.as_raw())),
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(io::Error::from(error)).context("wait for the payload"),
            }
        }
    }

    fn obey(&self) -> Result<()> {
        match self.end.receive()? {
            Some(ToChild::Signal(number)) => self.signal(number, false),
            Some(ToChild::SignalGroup(number)) => self.signal(number, true),
            // The launcher is gone: so is everything inside, by this process ending.
            None => {
                self.signal(libc::SIGKILL, true);
                sys::exit_now(crate::exit::FAILED)
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn signal(&self, number: i32, group: bool) {
        let Some(signal) = sys::signal(number) else { return };
        // The payload leads its session, so its own group has its number. ESRCH: it has just ended, which reap() will see.
        let _ = if group {
            rustix::process::kill_process_group(self.payload, signal)
        } else {
            rustix::process::kill_process(self.payload, signal)
        };
    }
}
