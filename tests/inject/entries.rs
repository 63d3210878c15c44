//! Which of a program's functions are executed: `inject LOG all entries FUNCTIONS -- COMMAND…`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// INT3 of x86.
const BREAKPOINT: u8 = 0xcc;

/// Follows `first` and all that comes of it, from its program's first instruction on, until they end or execute another program. `list`
/// is a file with the addresses of the program's functions, in hexadecimal, one a line: each gets a breakpoint in each process, which goes
/// when it is hit. The log gets a line for each thread, in the order in which they began: the functions in the order of their first call.
pub(crate) fn follow(first: Pid, list: &str, log: &str) -> Result<()> {
    let text = std::fs::read_to_string(list).with_context(|| format!("read {list}"))?;
    let functions: BTreeSet<u64> = text.lines().map(|line| u64::from_str_radix(line, 16)).collect::<Result<_, _>>()?;
    let mut entries = Entries { first, functions, code: None, threads: BTreeMap::new() };
    loop {
        let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => break,
            status => status?,
        };
        let Some(pid) = status.pid() else { continue };
        match entries.stopped(pid, status) {
            Err(error) if is_gone(&error) => {}
            result => result.with_context(|| format!("trace {pid}: {status:?}"))?,
        }
    }
    let line = |thread: &Executed| thread.order.iter().map(|address| format!("{address:x} ")).collect::<String>();
    let lines: String = entries.threads.values().map(|thread| line(thread).trim_end().to_owned() + "\n").collect();
    // Whoever waits for it sees it whole.
    let part = format!("{log}.part");
    std::fs::write(&part, lines)?;
    std::fs::rename(&part, log).context("write the log")
}

struct Entries {
    first: Pid,
    functions: BTreeSet<u64>,
    /// None before the program is executed.
    code: Option<Code>,
    /// By their numbers, which ascend.
    threads: BTreeMap<Pid, Executed>,
}

/// From the first function's first byte to the last one's.
struct Code {
    start: u64,
    original: Vec<u8>,
    planted: Vec<u8>,
}

/// What one thread has executed.
#[derive(Default)]
struct Executed {
    seen: BTreeSet<u64>,
    order: Vec<u64>,
}

/// Whether the process was killed meanwhile: its memory then has no room, or is not there.
fn is_gone(error: &anyhow::Error) -> bool {
    let gone = |error: &std::io::Error| {
        let errno = error.raw_os_error();
        error.kind() == std::io::ErrorKind::WriteZero || matches!(errno, Some(libc::ESRCH | libc::ENOENT | libc::EIO))
    };
    error.downcast_ref() == Some(&Errno::ESRCH) || error.downcast_ref().is_some_and(gone)
}

fn memory(pid: Pid) -> Result<File> {
    Ok(File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?)
}

impl Entries {
    fn stopped(&mut self, pid: Pid, status: WaitStatus) -> Result<()> {
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {
                Ok(())
            }
            WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                if pid != self.first || self.code.is_some() {
                    return Ok(ptrace::detach(pid, None)?);
                }
                self.code = Some(self.read(pid)?);
                self.begin(pid)
            }
            // A new one begins with such a stop.
            WaitStatus::PtraceEvent(..) if !self.threads.contains_key(&pid) => self.begin(pid),
            WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_) => Ok(ptrace::cont(pid, None)?),
            WaitStatus::Stopped(_, Signal::SIGTRAP) if self.hit(pid)? => Ok(ptrace::cont(pid, None)?),
            WaitStatus::Stopped(_, signal) => Ok(ptrace::cont(pid, Some(signal))?),
        }
    }

    fn read(&self, pid: Pid) -> Result<Code> {
        let (first, last) = self.functions.first().zip(self.functions.last()).context("there are no functions")?;
        let mut original = vec![0; usize::try_from(last - first)? + 1];
        memory(pid)?.read_exact_at(&mut original, *first).context("read the program")?;
        let mut planted = original.clone();
        for function in &self.functions {
            planted[usize::try_from(function - first)?] = BREAKPOINT;
        }
        Ok(Code { start: *first, original, planted })
    }

    /// All breakpoints, for a new thread: where it shares its memory, they are there again for the others.
    fn begin(&mut self, pid: Pid) -> Result<()> {
        if let Some(code) = &self.code {
            self.threads.entry(pid).or_default();
            memory(pid)?.write_all_at(&code.planted, code.start).context("plant breakpoints")?;
        }
        Ok(ptrace::cont(pid, None)?)
    }

    /// Whether it is a breakpoint of ours.
    fn hit(&mut self, pid: Pid) -> Result<bool> {
        let Some(code) = &self.code else { return Ok(false) };
        let mut registers = ptrace::getregs(pid)?;
        registers.rip -= 1;
        let address = registers.rip;
        if !self.functions.contains(&address) {
            return Ok(false);
        }
        let byte = code.original[usize::try_from(address - code.start)?];
        memory(pid)?.write_all_at(&[byte], address).context("take a breakpoint away")?;
        ptrace::setregs(pid, registers)?;
        let thread = self.threads.entry(pid).or_default();
        if thread.seen.insert(address) {
            thread.order.push(address);
        }
        Ok(true)
    }
}
