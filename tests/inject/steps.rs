//! Which of a program's instructions are executed: `inject LOG all steps -- COMMAND…`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Steps through `first` and all that comes of it, from its program's first instruction on, until they end or execute another
/// program. The log gets the addresses in hexadecimal, ascending, each once.
pub(crate) fn follow(first: Pid, log: &str) -> Result<()> {
    let mut steps = Steps { first, addresses: None };
    loop {
        let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => break,
            status => status?,
        };
        let Some(pid) = status.pid() else { continue };
        match steps.stopped(pid, status) {
            Err(Errno::ESRCH) | Ok(()) => {}
            Err(error) => return Err(error).with_context(|| format!("trace {pid}: {status:?}")),
        }
    }
    let lines: Vec<String> = steps.addresses.iter().flatten().map(|address| format!("{address:x}\n")).collect();
    // Whoever waits for it sees it whole.
    let part = format!("{log}.part");
    std::fs::write(&part, lines.concat())?;
    std::fs::rename(&part, log).context("write the log")
}

struct Steps {
    first: Pid,
    /// None before the program is executed.
    addresses: Option<BTreeSet<u64>>,
}

impl Steps {
    fn stopped(&mut self, pid: Pid, status: WaitStatus) -> nix::Result<()> {
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {
                Ok(())
            }
            WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                if pid == self.first && self.addresses.is_none() {
                    self.addresses = Some(BTreeSet::new());
                    return ptrace::step(pid, None);
                }
                ptrace::detach(pid, None)
            }
            WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_) => self.step(pid, None),
            // A new one begins with a stop of its own; the others are steps.
            WaitStatus::Stopped(_, Signal::SIGTRAP | Signal::SIGSTOP) => {
                if let Some(addresses) = &mut self.addresses {
                    addresses.insert(ptrace::getregs(pid)?.rip);
                }
                self.step(pid, None)
            }
            WaitStatus::Stopped(_, signal) => self.step(pid, Some(signal)),
        }
    }

    fn step(&self, pid: Pid, signal: Option<Signal>) -> nix::Result<()> {
        if self.addresses.is_none() { ptrace::cont(pid, signal) } else { ptrace::step(pid, signal) }
    }
}
