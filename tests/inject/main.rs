//! Runs a command and, at its Nth system call, kills the process that makes it, or makes the call fail (`tests/crash.sh`).
//!
//! ```text
//! inject LOG first|all count -- COMMAND…            write to LOG how many system calls COMMAND makes
//! inject LOG first|all kill N -- COMMAND…           SIGKILL at the entry of the Nth, which is not done
//! inject LOG first|all ENOSPC N -- COMMAND…         the Nth is not done and returns this error
//! inject LOG all entries FUNCTIONS -- COMMAND…      write to LOG which of COMMAND's program's FUNCTIONS are called
//! ```
//! `first` counts the calls of COMMAND's own process, all its threads; `all` those of its descendants too, in the order in which they are
//! seen. strace(1) cannot do this: its `when=N` counts each kind of call, and each thread, for itself. The command keeps the process ID, the
//! parent and the streams that this program was given, so that a service manager sees nothing else than the command.
//!
//! LOG gets one line: `total N`, or `NAME of PROGRAM`, what was hit; nothing when there was no Nth call.
//! Without arguments it tries itself.
#![allow(clippy::print_stderr, reason = "a tool of the tests, whose errors are for who runs it")]

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

mod entries;
mod own_tests;

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Count,
    Kill,
    Fail(Errno),
}

/// Whose calls are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Whose {
    First,
    All,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some(TRACER) => tracer(&words[1..]),
        Some(_) if words.iter().any(|word| word == "--") => become_traced(&words),
        // By cargo.
        _ => return own_tests::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inject: {error:#}");
            ExitCode::from(125)
        }
    }
}

/// Calls that do not return, or not there, and those that the manual knows no error of.
const NEVER_FAIL: &[&str] = &[
    "exit",
    "exit_group",
    "rt_sigreturn",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "umask",
    // EINVAL and EFAULT only, which are mistakes of the caller.
    "rt_sigprocmask",
    "rt_sigaction",
];

const TRACER: &str = "--tracer";

/// Starts the tracer, waits until it has this process, and becomes the command.
fn become_traced(words: &[String]) -> Result<()> {
    let (options, command) =
        words.iter().position(|word| word == "--").map(|at| (&words[..at], &words[at + 1..])).context("no --")?;
    let [program, arguments @ ..] = command else { bail!("no command") };
    // Where Yama lets only ancestors trace (ptrace_scope 1); elsewhere there is nothing to allow.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    // A grandchild: the command has no child that it did not make.
    let (mut word, end) = std::io::pipe()?;
    let starter = Command::new("/proc/self/exe")
        .arg(TRACER)
        .arg(std::process::id().to_string())
        .args(options)
        .stdin(Stdio::null())
        .stdout(end)
        .spawn()?
        .wait()?;
    ensure!(starter.success(), "the tracer does not start");
    let mut text = String::new();
    word.read_to_string(&mut text)?;
    ensure!(text == "ready", "the tracer is gone");
    drop(word);
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("execute {program}"))
}

/// `PID LOG WHOSE DEED [N]`: the first time it starts itself again and ends; with its environment's mark it traces.
fn tracer(words: &[String]) -> Result<()> {
    const AGAIN: &str = "INJECT_AGAIN";
    if std::env::var_os(AGAIN).is_none() {
        Command::new("/proc/self/exe").arg(TRACER).args(words).env(AGAIN, "1").stderr(Stdio::null()).spawn()?;
        return Ok(());
    }
    let [pid, log, whose, deed, number @ ..] = words else { bail!("what is {words:?}?") };
    let first = Pid::from_raw(pid.parse()?);
    let whose = match whose.as_str() {
        "first" => Whose::First,
        "all" => Whose::All,
        other => bail!("whose is {other}?"),
    };
    let deed = match deed.as_str() {
        "entries" => None,
        "count" => Some(Deed::Count),
        "kill" => Some(Deed::Kill),
        name => Some(Deed::Fail(errno(name)?)),
    };
    let at = number.first().filter(|_| deed.is_some()).map_or(Ok(0), |number| number.parse())?;
    leave_cgroup();
    take(first)?;
    let mut out = std::io::stdout();
    out.write_all(b"ready")?;
    out.flush()?;
    // The other end waits for the end of it.
    rustix::stdio::dup2_stdout(std::fs::File::open("/dev/null")?)?;
    match deed {
        Some(deed) => Tracer::new(first, whose, deed, at, log).follow(),
        // Nobody else hears of it: its own streams are closed.
        None => {
            let list = number.first().context("which functions?")?;
            entries::follow(first, list, log).or_else(|error| Ok(std::fs::write(log, format!("{error:#}\n"))?))
        }
    }
}

fn errno(name: &str) -> Result<Errno> {
    let all = [Errno::EIO, Errno::ENOSPC, Errno::ENOMEM, Errno::EPERM, Errno::EINTR];
    all.into_iter().find(|error| format!("{error:?}") == name).with_context(|| format!("no error {name}"))
}

/// A unit whose command is traced is to hold nothing else.
fn leave_cgroup() {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next().unwrap_or_default().trim_start_matches("name=");
        for top in [format!("/sys/fs/cgroup/{controllers}"), "/sys/fs/cgroup/unified".to_owned()] {
            // A hierarchy that is not mounted there is one that no unit is seen in.
            let _ = std::fs::write(format!("{top}/cgroup.procs"), "0");
        }
    }
}

fn take(pid: Pid) -> Result<()> {
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    waitpid(pid, Some(WaitPidFlag::__WALL))?;
    ptrace::syscall(pid, None)?;
    Ok(())
}

/// Follows a process and all that comes of it.
#[derive(Debug)]
struct Tracer {
    first: Pid,
    whose: Whose,
    deed: Deed,
    at: u64,
    /// Calls counted; none before the command is executed.
    count: Option<u64>,
    /// The thread whose call is on its way to fail.
    failing: Option<Pid>,
    /// Its first argument, where another one was given in its place: the caller may still need the register.
    asked: Option<u64>,
    /// It was hit; from then on every process goes its way.
    hit: bool,
    /// The path of the log.
    log: String,
    /// The process of each thread.
    processes: HashMap<Pid, Pid>,
}

impl Tracer {
    fn new(first: Pid, whose: Whose, deed: Deed, at: u64, log: &str) -> Tracer {
        let processes = HashMap::new();
        let log = log.to_owned();
        Tracer { first, whose, deed, at, count: None, failing: None, asked: None, hit: false, log, processes }
    }

    fn follow(mut self) -> Result<()> {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)) {
                Err(Errno::ECHILD) => break,
                // A real-time signal, which the library has no name for.
                Err(error) => return Err(error.into()),
                Ok(status) => status,
            };
            let Some(pid) = status.pid() else { continue };
            // One that was killed meanwhile is gone; its end is waited for like any other.
            match self.stopped(pid, status) {
                Err(Errno::ESRCH) | Ok(()) => {}
                Err(error) => return Err(error).with_context(|| format!("trace {pid}: {status:?}")),
            }
        }
        if self.deed == Deed::Count {
            std::fs::write(&self.log, format!("total {}\n", self.count.unwrap_or(0)))?;
        } else if !self.hit {
            std::fs::write(&self.log, "")?;
        }
        Ok(())
    }

    fn stopped(&mut self, pid: Pid, status: WaitStatus) -> nix::Result<()> {
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                self.processes.remove(&pid);
                Ok(())
            }
            WaitStatus::PtraceSyscall(_) => self.call(pid),
            WaitStatus::PtraceEvent(_, _, event) => {
                if event == Event::PTRACE_EVENT_EXEC as i32 && pid == self.first && self.count.is_none() {
                    self.count = Some(0);
                }
                self.go_on(pid, None)
            }
            WaitStatus::Stopped(_, signal) => self.go_on(pid, Some(signal)),
            WaitStatus::Continued(_) | WaitStatus::StillAlive => Ok(()),
        }
    }

    fn go_on(&self, pid: Pid, signal: Option<Signal>) -> nix::Result<()> {
        if self.hit && self.failing.is_none() { ptrace::detach(pid, signal) } else { ptrace::syscall(pid, signal) }
    }

    /// At the entry of a call, or at its exit.
    fn call(&mut self, pid: Pid) -> nix::Result<()> {
        let is_entry = ptrace::syscall_info(pid)?.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
        if !is_entry {
            if self.failing == Some(pid) {
                self.failing = None;
                self.give_error(pid)?;
            }
            return self.go_on(pid, None);
        }
        if !self.hit && self.counts(pid) {
            let count = self.count.map_or(0, |count| count + 1);
            self.count = Some(count);
            if count == self.at {
                self.strike(pid)?;
            }
        }
        self.go_on(pid, None)
    }

    fn counts(&mut self, pid: Pid) -> bool {
        let first = self.first;
        let process = *self.processes.entry(pid).or_insert_with(|| process_of(pid));
        self.count.is_some() && (self.whose == Whose::All || process == first)
    }

    fn strike(&mut self, pid: Pid) -> nix::Result<()> {
        let mut registers = ptrace::getregs(pid)?;
        let number = registers.orig_rax;
        let name = usize::try_from(number).ok().and_then(syscalls::Sysno::new).map_or("unknown", |call| call.name());
        let line = format!("{name} of {}\n", program_of(pid));
        match self.deed {
            Deed::Count => return Ok(()),
            Deed::Kill => kill(*self.processes.get(&pid).unwrap_or(&pid), Signal::SIGKILL)?,
            Deed::Fail(_) if NEVER_FAIL.contains(&name) => return Ok(()),
            // A close that fails has closed all the same (close(2)), and no kernel loses a wake-up (futex(2)): these are done, and
            // their result is another one. In place of the others is a call that every filter lets through.
            Deed::Fail(_) => {
                match name {
                    "close" | "futex" => {}
                    // It fails by returning the end as it is.
                    "brk" => {
                        self.asked = Some(registers.rdi);
                        registers.rdi = 0;
                    }
                    _ => registers.orig_rax = libc::SYS_getpid.cast_unsigned(),
                }
                ptrace::setregs(pid, registers)?;
                self.failing = Some(pid);
            }
        }
        self.hit = true;
        // Now, since what is left of it may hang.
        std::fs::write(&self.log, line).map_err(|_| Errno::EIO)
    }

    fn give_error(&self, pid: Pid) -> nix::Result<()> {
        let Deed::Fail(error) = self.deed else { return Ok(()) };
        let mut registers = ptrace::getregs(pid)?;
        match self.asked {
            Some(argument) => registers.rdi = argument,
            None => registers.rax = i64::from(-(error as i32)).cast_unsigned(),
        }
        ptrace::setregs(pid, registers)
    }
}

fn process_of(thread: Pid) -> Pid {
    status_of(thread, "Tgid:").and_then(|tgid| i32::from_str(&tgid).ok()).map_or(thread, Pid::from_raw)
}

/// The name of a program, and what tells a process inside the sandbox, or a thread, from the launcher: `sandbox, inside`.
fn program_of(thread: Pid) -> String {
    let name = std::fs::read_to_string(format!("/proc/{thread}/comm")).unwrap_or_default();
    let is_inside = status_of(thread, "NSpid:").is_some_and(|numbers| numbers.split('\t').count() > 1);
    let inside = if is_inside { ", inside" } else { "" };
    let kind = if process_of(thread) == thread { "" } else { ", a thread" };
    format!("{}{inside}{kind}", name.trim_end())
}

/// A field of /proc/PID/status.
fn status_of(thread: Pid, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
}
