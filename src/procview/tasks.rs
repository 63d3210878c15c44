//! What the processes of a sandbox tell together: no cgroup counts who runs and who waits.
//!
//! Whoever reads makes the launcher look at each of them, in time that nobody accounts to the sandbox. So a count is kept for a
//! multiple of what it took: a thousand readers at once cost what a few do, and a reading of a small sandbox is always new. That is
//! decided at the next reading, no timer ends it.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use super::reader::text_of;

/// So many processes are looked at; a reading must not take longer the more a sandbox forks.
const MOST_PROCESSES: usize = 256;

/// Of the time of a CPU no more than a tenth goes into counting: a count is kept for nine times as long as it took …
const KEPT_FOR: f64 = 9.0;

/// … and for no more than so many seconds, however long somebody else had the CPU while it was made.
const LONGEST: f64 = 0.1;

/// The sum over all processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// How many run or wait for a CPU.
    pub(super) running: u64,
    /// How many wait for a disk.
    pub(super) blocked: u64,
    /// Threads of all.
    pub(super) threads: u64,
    /// The newest one's number inside; 0 where it is not known.
    pub(super) last: u64,
    /// Ticks in programs, with those of children that were waited for.
    pub(super) user: u64,
    /// The same in the kernel.
    pub(super) system: u64,
}

/// Counts, and keeps the last count for a while.
#[derive(Debug, Default)]
pub(super) struct Counter {
    /// Until when, in seconds of the monotonic clock.
    kept: Option<(f64, Count)>,
}

impl Counter {
    /// The processes of the cgroup `directory` and of those below it, the first [`MOST_PROCESSES`] of them.
    pub(super) fn count(&mut self, directory: &Path) -> Count {
        self.count_by(monotonic, || Count::of(&pids(directory)))
    }

    fn count_by(&mut self, clock: impl Fn() -> f64, count: impl FnOnce() -> Count) -> Count {
        let begin = clock();
        if let Some((until, count)) = self.kept
            && begin < until
        {
            return count;
        }
        let count = count();
        let end = clock();
        self.kept = Some((end + ((end - begin) * KEPT_FOR).min(LONGEST), count));
        count
    }
}

impl Count {
    fn of(pids: &[u64]) -> Count {
        let mut count = Count::default();
        let mut newest = None;
        for process in pids.iter().filter_map(|pid| Process::read(*pid)) {
            match process.state {
                'R' => count.running += 1,
                'D' => count.blocked += 1,
                _ => {}
            }
            count.threads += process.threads;
            count.user += process.user;
            count.system += process.system;
            newest = newest.max(Some(process.pid));
        }
        count.last = newest.map_or(0, number_inside);
        count
    }
}

fn pids(directory: &Path) -> Vec<u64> {
    let mut pids = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        let text = text_of(directory.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|pid| pid.parse::<u64>().ok()));
        if pids.len() > MOST_PROCESSES {
            break;
        }
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        todo.extend(entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
    pids.truncate(MOST_PROCESSES);
    pids
}

fn monotonic() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// A process, as /proc/PID/stat has it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u64,
    state: char,
    /// Ticks, with those of children that it waited for.
    user: u64,
    system: u64,
    threads: u64,
}

impl Process {
    fn read(pid: u64) -> Option<Process> {
        Process::parse(pid, &text_of(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(pid: u64, text: &str) -> Option<Process> {
        // The name before it may have anything in it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let state = fields.first()?.chars().next()?;
        Some(Process {
            pid,
            state,
            user: number(11)? + number(13)?,
            system: number(12)? + number(14)?,
            threads: number(17)?,
        })
    }
}

/// The number of a process in its own PID namespace: the last of the line NSpid in /proc/PID/status.
fn number_inside(pid: u64) -> u64 {
    let status = text_of(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_count_is_kept_for_a_multiple_of_what_it_took() {
        let now = Cell::new(5.0);
        let clock = || now.get();
        let mut counter = Counter::default();
        let mut count = |running: u64, took: f64| {
            let made = || {
                now.set(now.get() + took);
                Count { running, ..Count::default() }
            };
            counter.count_by(clock, made).running
        };
        assert_eq!(count(1, 0.001), 1);
        now.set(now.get() + 0.008);
        assert_eq!(count(2, 0.001), 1);
        now.set(now.get() + 0.002);
        assert_eq!(count(3, 7.0), 3);
        now.set(now.get() + LONGEST);
        assert_eq!(count(4, 0.0), 4);
        assert_eq!(count(5, 0.0), 5);
    }

    #[test]
    fn lines_of_proc() {
        let text = "7 (a b) c) R 1 7 7 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 5 0 1 2 3\n";
        assert_eq!(Process::parse(7, text), Some(Process { pid: 7, state: 'R', user: 13, system: 24, threads: 5 }));
        assert_eq!(Process::parse(7, "7 (a"), None);
        let own = u64::from(std::process::id());
        let count = Count::of(&[own]);
        assert!(count.threads >= 1 && count.last > 0, "{count:?}");
    }
}
