//! What the cgroups of a sandbox say, as plain numbers: the one input of the table's functions beside the host's own text.

use std::collections::BTreeMap;

/// One reading of a sandbox. What was not asked for, or what this machine cannot tell, is `None`: then the host's text stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Statistics {
    /// Memory and swap.
    pub(crate) memory: Option<Memory>,
    /// The CPUs that it may use, and for how long it ran.
    pub(crate) cpu: Option<Cpu>,
    /// Its tasks and its load.
    pub(crate) tasks: Option<Tasks>,
    /// What it read and wrote, by device number.
    pub(crate) disks: Option<BTreeMap<(u32, u32), Disk>>,
    /// The memory nodes that it has to do with.
    pub(crate) nodes: Option<Nodes>,
    /// The text of the unit's own pressure file.
    pub(crate) pressure: Option<String>,
}

/// A limit and what counts against it, in bytes: of the unit, or of a slice that it is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Level {
    /// `None`: no limit.
    pub(crate) limit: Option<u64>,
    /// What all in it use.
    pub(crate) used: u64,
    /// What of that the kernel gives back when it is needed: the page cache and reclaimable slabs.
    pub(crate) reclaimable: u64,
}

/// Memory and swap of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// The unit first, then its slices.
    pub(crate) levels: Vec<Level>,
    /// The same for swap; empty where nobody counts it.
    pub(crate) swap: Vec<Level>,
    /// The unit's memory.stat by the names of cgroup v2; amounts in bytes, events as they are.
    pub(crate) stat: BTreeMap<String, u64>,
    /// Everything is counted, kernel memory too (cgroup v2).
    pub(crate) complete: bool,
}

impl Memory {
    /// An entry of memory.stat; 0 where there is none.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.stat.get(name).copied().unwrap_or(0)
    }

    /// What the unit itself uses, in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.levels.first().map_or(0, |unit| unit.used)
    }
}

/// The CPUs of a sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cpu {
    /// The numbers that it sees, ascending: as many as its quota fills, of those that it may run on.
    pub(crate) visible: Vec<u32>,
    /// Seconds since it started, by the clock that processes inside read (CLOCK_BOOTTIME).
    pub(crate) uptime: f64,
    /// The start of that clock, in seconds since 1970.
    pub(crate) booted: u64,
    /// The time that it ran, in seconds; `None` where no cgroup of its own counts it.
    pub(crate) usage: Option<Usage>,
}

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// In programs, of normal priority.
    pub(crate) user: f64,
    /// In programs, at a lower priority.
    pub(crate) nice: f64,
    /// In the kernel.
    pub(crate) system: f64,
}

impl Usage {
    /// All of it.
    pub(crate) fn total(self) -> f64 {
        self.user + self.nice + self.system
    }
}

/// The tasks of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tasks {
    /// Load averages over 1, 5 and 15 minutes.
    pub(crate) loads: [f64; 3],
    /// How many run or wait for a CPU now.
    pub(crate) running: u64,
    /// How many wait for a disk now.
    pub(crate) blocked: u64,
    /// How many there are.
    pub(crate) total: u64,
    /// The newest one's number inside; 0 where it is not known.
    pub(crate) last: u64,
}

/// What went to and from one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Bytes read.
    pub(crate) read_bytes: u64,
    /// Bytes written.
    pub(crate) written_bytes: u64,
    /// Read requests.
    pub(crate) reads: u64,
    /// Write requests.
    pub(crate) writes: u64,
    /// Bytes discarded.
    pub(crate) discarded_bytes: u64,
    /// Discard requests.
    pub(crate) discards: u64,
}

/// The memory nodes of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nodes {
    /// Those that have CPUs which it sees.
    pub(crate) with_cpus: Vec<u32>,
    /// Those that its memory may be of, and how much the machine has there, in bytes.
    pub(crate) memory: BTreeMap<u32, u64>,
}

/// The numbers of a list as cpuset(7) has it; what is no number is left out.
pub(super) fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().map(u32::from).collect()
}

/// A limit as its file has it: `max` (v2) and a negative number (v1) are none.
pub(super) fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines `name number`, as memory.stat and cpu.stat have them.
pub(super) fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// memory.stat of cgroup v1, whole hierarchy, under the names of v2.
pub(super) fn memory_stat_v1(text: &str) -> BTreeMap<String, u64> {
    const NAMES: &[(&str, &str)] = &[
        ("total_cache", "file"),
        ("total_rss", "anon"),
        ("total_rss_huge", "anon_thp"),
        ("total_shmem", "shmem"),
        ("total_mapped_file", "file_mapped"),
        ("total_dirty", "file_dirty"),
        ("total_writeback", "file_writeback"),
        ("total_inactive_anon", "inactive_anon"),
        ("total_active_anon", "active_anon"),
        ("total_inactive_file", "inactive_file"),
        ("total_active_file", "active_file"),
        ("total_unevictable", "unevictable"),
        ("total_pgfault", "pgfault"),
        ("total_pgmajfault", "pgmajfault"),
    ];
    let all = pairs(text);
    NAMES.iter().filter_map(|(v1, v2)| Some(((*v2).to_owned(), *all.get(*v1)?))).collect()
}

/// What of a memory.stat (v2 names) the kernel can take back without swap.
pub(super) fn reclaimable(stat: &BTreeMap<String, u64>) -> u64 {
    let names = ["active_file", "inactive_file", "slab_reclaimable"];
    names.iter().filter_map(|name| stat.get(*name)).fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
}

/// Seconds of CPU time in a cpu.stat of v2.
pub(super) fn cpu_usage_v2(text: &str) -> Option<Usage> {
    let stat = pairs(text);
    let seconds = |name: &str| stat.get(name).map(|usec| *usec as f64 / 1e6);
    let nice = seconds("nice_usec").unwrap_or(0.0);
    let user = (seconds("user_usec")? - nice).max(0.0);
    Some(Usage { user, nice, system: seconds("system_usec")? })
}

/// Seconds of CPU time in the files cpuacct.usage_user and cpuacct.usage_sys of v1, which are in ns.
pub(super) fn cpu_usage_v1(user: &str, system: &str) -> Option<Usage> {
    let seconds = |text: &str| text.trim().parse::<u64>().ok().map(|ns| ns as f64 / 1e9);
    Some(Usage { user: seconds(user)?, nice: 0.0, system: seconds(system)? })
}

/// How many CPUs a quota fills, in CPUs: `cpu.max` of v2.
pub(super) fn quota_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota_of(quota, period)
}

/// The same of cpu.cfs_quota_us and cpu.cfs_period_us of v1, where -1 is none.
pub(super) fn quota_of(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (period > 0 && quota > 0).then(|| quota as f64 / period as f64)
}

/// As many of `allowed` as the quota fills, at least one.
pub(super) fn visible(allowed: &[u32], quota: Option<f64>) -> Vec<u32> {
    let filled =
        quota.map_or(allowed.len(), |cpus| (1..allowed.len()).find(|n| cpus <= *n as f64).unwrap_or(allowed.len()));
    allowed.iter().copied().take(filled.max(1)).collect()
}

/// io.stat of v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
pub(super) fn disks_v2(text: &str) -> BTreeMap<(u32, u32), Disk> {
    let line = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let mut disk = Disk::default();
        for (key, value) in rest.split_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                "dbytes" => disk.discarded_bytes = value,
                "dios" => disk.discards = value,
                _ => {}
            }
        }
        Some((device_number(device)?, disk))
    };
    text.lines().filter_map(line).collect()
}

/// blkio.throttle.io_service_bytes and blkio.throttle.io_serviced of v1: `8:0 Read 1`.
pub(super) fn disks_v1(bytes: &str, requests: &str) -> BTreeMap<(u32, u32), Disk> {
    let mut disks: BTreeMap<(u32, u32), Disk> = BTreeMap::new();
    for (text, in_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [device, kind, value] = words[..] else { continue };
            let (Some(device), Ok(value)) = (device_number(device), value.parse()) else { continue };
            let disk = disks.entry(device).or_default();
            match (kind, in_bytes) {
                ("Read", true) => disk.read_bytes = value,
                ("Read", false) => disk.reads = value,
                ("Write", true) => disk.written_bytes = value,
                ("Write", false) => disk.writes = value,
                ("Discard", true) => disk.discarded_bytes = value,
                ("Discard", false) => disk.discards = value,
                _ => {}
            }
        }
    }
    disks
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The load averages after `seconds` in which `active` tasks ran or waited on average: each old value fades with its own time, as
/// the kernel's do in their steps of five seconds (kernel/sched/loadavg.c), here over whatever gap there was.
pub(super) fn decay(loads: [f64; 3], active: f64, seconds: f64) -> [f64; 3] {
    let minutes = [1.0, 5.0, 15.0];
    let faded = |(load, minutes): (f64, f64)| {
        let keep = (-seconds.max(0.0) / (minutes * 60.0)).exp();
        load * keep + active.max(0.0) * (1.0 - keep)
    };
    let [one, five, fifteen] = loads;
    [faded((one, minutes[0])), faded((five, minutes[1])), faded((fifteen, minutes[2]))]
}

/// The µs that some task waited: `total=` of the line `some` of a pressure file.
pub(super) fn waited(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read() {
        for (list, expected) in [("0-2,5\n", &[0, 1, 2, 5][..]), ("\t0\n", &[0]), ("\n", &[]), ("3-1", &[])] {
            assert_eq!(numbers(list), expected, "{list:?}");
        }
    }

    #[test]
    fn a_quota_fills_whole_cpus() {
        let all = [0, 2, 3, 7];
        for (quota, want) in [
            (None, &all[..]),
            (Some(0.01), &all[..1]),
            (Some(1.0), &all[..1]),
            (Some(1.5), &all[..2]),
            (Some(3.0), &all[..3]),
            (Some(64.0), &all[..]),
        ] {
            assert_eq!(visible(&all, quota), want, "{quota:?}");
        }
        assert_eq!(quota_v2("150000 100000\n"), Some(1.5));
        assert_eq!(quota_v2("max 100000\n"), None);
        assert_eq!(quota_of("-1\n", "100000\n"), None);
        assert_eq!(quota_of("50000\n", "100000\n"), Some(0.5));
    }

    #[test]
    fn limits_that_are_none() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("314572800\n"), Some(314_572_800));
        assert_eq!(limit("-1\n"), None);
    }

    #[test]
    fn loads_fade_over_any_gap() {
        let minute = decay([0.0; 3], 1.0, 60.0);
        assert!((minute[0] - 0.632).abs() < 0.001 && minute[1] < minute[0] && minute[2] < minute[1], "{minute:?}");
        let in_steps = (0..12).fold([0.0; 3], |loads, _| decay(loads, 1.0, 5.0));
        assert!(minute.iter().zip(in_steps).all(|(a, b)| (a - b).abs() < 1e-9), "{minute:?} {in_steps:?}");
        assert_eq!(decay([1.0, 2.0, 3.0], 5.0, 0.0), [1.0, 2.0, 3.0]);
        assert_eq!(waited("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull total=3\n"), Some(1_500_000));
    }

    #[test]
    fn devices_of_both_versions() {
        let disk = Disk { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4, discarded_bytes: 5, discards: 6 };
        let v2 = disks_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.wait=9\n254:16 \nbad\n");
        assert_eq!(v2[&(8, 0)], disk);
        let bytes = "8:0 Read 1\n8:0 Write 2\n8:0 Discard 5\n8:0 Total 8\nTotal 8\n";
        let v1 = disks_v1(bytes, "8:0 Read 3\n8:0 Write 4\n8:0 Discard 6\nTotal 13\n");
        assert_eq!(v1, [((8, 0), disk)].into());
    }

    #[test]
    fn time_of_both_versions() {
        let usage = cpu_usage_v2("usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnice_usec 500000\n");
        assert_eq!(usage, Some(Usage { user: 2.0, nice: 0.5, system: 1.0 }));
        assert_eq!(cpu_usage_v1("1500000000\n", "5\n").map(|u| u.user), Some(1.5));
        assert_eq!(cpu_usage_v2(""), None);
    }
}
