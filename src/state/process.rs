//! Processes by which state files are known to be alive or stale.

use rustix::io::Errno;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, test_kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::host::read_of_kernel;

/// A process that cannot be taken for another one: by its number and when it started, in clock ticks after boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its PID on the host.
    pub(crate) pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub(crate) started: u64,
}

impl Process {
    /// Reads when a process started; `None` when it is gone.
    pub(crate) fn read(pid: Pid) -> Option<Process> {
        let pid = pid.as_raw_nonzero().get();
        let started = Process::start_of(&stat_of(pid).ok()??)?;
        Some(Process { pid, started })
    }

    /// Seconds since its start, which no change of the clock changes.
    pub(crate) fn age(self) -> f64 {
        let now = clock_gettime(ClockId::Boottime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9 - self.started as f64 / clock_ticks_per_second() as f64
    }

    /// Field 22 of a /proc/PID/stat, unless the process has ended.
    fn start_of(stat: &str) -> Option<u64> {
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_ascii_whitespace();
        // A zombie has ended.
        let alive = !matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        alive.then_some(started)
    }

    /// Its number.
    pub(crate) fn pid(self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }

    /// Whether it still runs, for sure.
    pub(crate) fn lives(self) -> bool {
        self.pid().and_then(Process::read) == Some(self)
    }

    /// Whether it has ended, for sure: what cannot be looked at just now is not gone.
    pub(crate) fn is_gone(self) -> bool {
        let started = |stat: Option<String>| stat.and_then(|stat| Process::start_of(&stat));
        stat_of(self.pid).is_ok_and(|stat| started(stat) != Some(self.started))
    }

    /// What /proc says of one that is there and cannot be looked at; `None` of any other.
    pub(crate) fn refusal(self) -> Option<Errno> {
        stat_of(self.pid).err().map(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Whether no process has this number, for sure.
pub(super) fn is_free(pid: Pid) -> bool {
    stat_of(pid.as_raw_nonzero().get()).is_ok_and(|stat| stat.is_none())
}

/// /proc/PID/stat; `None` when the process is gone.
///
/// # Errors
/// When it cannot be read, also where /proc hides the processes of others (`hidepid=`, proc(5)).
pub(super) fn stat_of(pid: i32) -> std::io::Result<Option<String>> {
    let error = match read_of_kernel(format!("/proc/{pid}/stat")) {
        Ok(stat) => return Ok(Some(String::from_utf8_lossy(&stat).into_owned())),
        Err(error) => error,
    };
    let is_absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
    // A file may have any number: below 1 it is no process's, kill(2).
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let is_hidden = || pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH));
    if is_absent && !is_hidden() { Ok(None) } else { Err(error) }
}
