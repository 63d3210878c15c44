//! Reads the [`Statistics`] of one sandbox: cgroup v1 and v2, the unit and the slices that it is in.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

use super::memory::Amounts;
use super::statistics::{self as say, Cpu, Disk, Level, Memory, Nodes, Statistics, Tasks, Usage};
use super::sysinfo::Numbers;
use super::table::{HostText, Need, Row};
use super::tasks::{Count, Counter};
use crate::host::read_of_kernel;
use crate::plan::Plan;
use crate::systemd::{CgroupMode, CgroupPaths};

/// What is needed to read the numbers of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Its first process.
    pub(crate) pid: Pid,
    /// It has a unit of its own, whose cgroups count nobody else.
    pub(crate) own_unit: bool,
    /// CPUs that the payload is told to stay on.
    pub(crate) affinity: Option<Vec<u32>>,
}

impl Subject {
    /// The sandbox of a plan, whose first process is `pid`.
    pub(crate) fn new(plan: &Plan, pid: Pid) -> Subject {
        Subject { pid, own_unit: plan.unit.is_some(), affinity: plan.process.affinity.clone() }
    }
}

/// Reads; keeps what has to be compared with the next time.
#[derive(Debug)]
pub(crate) struct Reader {
    subject: Subject,
    /// /sys/fs/cgroup.
    base: PathBuf,
    /// Read when somebody first asks: most payloads never do.
    place: OnceCell<Place>,
    /// Seconds that the boot-time clock inside is ahead of this process's; read when it is set.
    offset: Option<f64>,
    load: Load,
    counter: Counter,
}

/// Where the sandbox is among the machine's cgroups.
#[derive(Debug)]
struct Place {
    mode: Option<CgroupMode>,
    paths: CgroupPaths,
}

impl Place {
    fn of(pid: Pid) -> Place {
        let groups = text_of(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Place { mode: CgroupMode::read().ok(), paths: CgroupPaths::parse(&groups) }
    }
}

/// The load averages at some time, and the counters then.
#[derive(Debug, Default)]
struct Load {
    at: f64,
    loads: [f64; 3],
    usage: f64,
    /// Seconds in which a task waited for a CPU, and for a disk.
    waited: [f64; 2],
}

impl Reader {
    /// For a sandbox whose first process is in its unit already.
    pub(crate) fn new(subject: Subject) -> Reader {
        let reader = Reader::of(subject);
        if !rustix::process::geteuid().is_root() {
            // Once the first process hides itself, a /proc that hides what is another's (hidepid=) hides it from a plain user.
            reader.place();
        }
        reader
    }

    fn of(subject: Subject) -> Reader {
        Reader {
            subject,
            base: "/sys/fs/cgroup".into(),
            place: OnceCell::new(),
            offset: None,
            // Its cgroups are new: all their counters are about 0.
            load: Load { at: boot_time(), ..Load::default() },
            counter: Counter::default(),
        }
    }

    /// The text of the file of a row at `path`, as it is now.
    ///
    /// # Errors
    /// When the host's own file cannot be read.
    pub(crate) fn text(&mut self, row: &Row, path: &Path) -> io::Result<String> {
        let own = text_of(path)?;
        let meminfo = match row.needs.contains(&Need::Memory) {
            true if row.path == MEMINFO => own.clone(),
            true => text_of(MEMINFO)?,
            false => String::new(),
        };
        let statistics = self.read(row.needs);
        let page = rustix::param::page_size() as u64;
        Ok((row.text)(&statistics, &HostText { own: &own, meminfo: &meminfo, page, node: row.node_in(path) }))
    }

    /// What sysinfo(2) tells.
    pub(super) fn numbers(&mut self) -> Numbers {
        let statistics = self.read(&[Need::Memory, Need::Cpu, Need::Tasks]);
        let meminfo = text_of(MEMINFO).unwrap_or_default();
        let machine = rustix::system::sysinfo();
        let amounts = Amounts::new(&statistics.memory.unwrap_or_default(), &meminfo);
        let loads = machine.loads.map(|load| load as f64 / 65536.0);
        let (loads, tasks) = statistics.tasks.map_or((loads, machine.procs.into()), |tasks| (tasks.loads, tasks.total));
        let uptime = statistics.cpu.map_or(machine.uptime as f64, |cpu| cpu.uptime);
        Numbers { uptime, amounts, loads, tasks }
    }

    /// Reads what is needed.
    pub(crate) fn read(&mut self, needs: &[Need]) -> Statistics {
        let mut statistics = Statistics::default();
        for need in needs {
            match need {
                Need::Memory => statistics.memory = self.memory(),
                Need::Cpu => statistics.cpu = Some(self.cpu()),
                Need::Tasks => statistics.tasks = self.tasks(),
                Need::Disks => statistics.disks = self.disks(),
                Need::Nodes => statistics.nodes = self.nodes(),
                Need::Pressure(file) => statistics.pressure = self.pressure(file),
            }
        }
        statistics
    }

    fn place(&self) -> &Place {
        self.place.get_or_init(|| Place::of(self.subject.pid))
    }

    /// The directories of a controller from the sandbox's own up, without the root, which has no limits.
    fn directories(&self, controller: &str) -> Vec<PathBuf> {
        let Place { mode, paths } = self.place();
        let Some(mode) = *mode else { return Vec::new() };
        let Some(path) = paths.path(mode, Some(controller)) else { return Vec::new() };
        let top = self.base.join(mode.hierarchy(Some(controller)));
        path.ancestors().filter(|path| !path.as_os_str().is_empty()).map(|path| top.join(path)).collect()
    }

    /// The unit's directory of a controller, where the unit has one of its own.
    fn own_directory(&self, controller: &str) -> Option<PathBuf> {
        let Place { mode, paths } = self.place();
        let unit = paths.path(mode.filter(|_| self.subject.own_unit)?, None)?.file_name()?;
        self.directories(controller).into_iter().next().filter(|directory| directory.file_name() == Some(unit))
    }

    fn is_v2(&self) -> bool {
        self.place().mode == Some(CgroupMode::Unified)
    }

    fn memory(&self) -> Option<Memory> {
        let directories = self.directories("memory");
        let mut memory = Memory { complete: self.is_v2(), ..Memory::default() };
        for (index, directory) in directories.iter().enumerate() {
            let Some((mut level, swap)) = self.memory_level(directory) else { continue };
            if index == 0 || level.limit.is_some() {
                let stat = self.memory_stat(directory);
                level.reclaimable = say::reclaimable(&stat);
                if index == 0 {
                    memory.stat = stat;
                }
            }
            memory.levels.push(level);
            memory.swap.extend(swap);
        }
        (!memory.levels.is_empty()).then_some(memory)
    }

    fn memory_level(&self, directory: &Path) -> Option<(Level, Option<Level>)> {
        let number = |file: &str| say::limit(&line_of(directory.join(file)).ok()?);
        let level = |limit, used| Level { limit, used, reclaimable: 0 };
        if self.is_v2() {
            let limits = ["memory.max", "memory.high"].into_iter().filter_map(number);
            let own = level(limits.min(), number("memory.current")?);
            return Some((own, number("memory.swap.current").map(|used| level(number("memory.swap.max"), used))));
        }
        let own = level(number("memory.limit_in_bytes"), number("memory.usage_in_bytes")?);
        let both = number("memory.memsw.limit_in_bytes").zip(number("memory.memsw.usage_in_bytes"));
        let swap = both.map(|(limit, used)| {
            // v1 limits memory and swap together; a limit of memory alone leaves swap without one.
            let limit = limit.saturating_sub(own.limit.unwrap_or(0));
            level(Some(limit), used.saturating_sub(own.used))
        });
        Some((own, swap))
    }

    fn memory_stat(&self, directory: &Path) -> BTreeMap<String, u64> {
        let text = text_of(directory.join("memory.stat")).unwrap_or_default();
        if self.is_v2() { say::pairs(&text) } else { say::memory_stat_v1(&text) }
    }

    fn cpu(&mut self) -> Cpu {
        let uptime = boot_time() + self.offset();
        let now = clock_gettime(ClockId::Realtime);
        let booted = super::cpu::whole_number(now.tv_sec as f64 + now.tv_nsec as f64 / 1e9 - uptime);
        Cpu { visible: self.visible(), uptime, booted, usage: self.usage() }
    }

    /// The CPUs that are seen.
    pub(crate) fn visible(&self) -> Vec<u32> {
        say::visible(&self.allowed(), self.quota())
    }

    /// The CPUs that the sandbox may run on: the kernel keeps a process's mask within its cpuset.
    pub(crate) fn allowed(&self) -> Vec<u32> {
        let masks = [Some(self.subject.pid), None].into_iter();
        let Some(mask) = masks.filter_map(|pid| rustix::thread::sched_getaffinity(pid).ok()).next() else {
            return vec![0];
        };
        let allowed: Vec<u32> = (0..1024).filter(|cpu| mask.is_set(*cpu as usize)).collect();
        let told = |cpu: &u32| self.subject.affinity.as_ref().is_none_or(|told| told.contains(cpu));
        let both: Vec<u32> = allowed.iter().copied().filter(told).collect();
        if both.is_empty() { allowed } else { both }
    }

    fn quota(&self) -> Option<f64> {
        let of = |directory: PathBuf| {
            let line = |file: &str| line_of(directory.join(file)).ok();
            if self.is_v2() {
                return say::quota_v2(&line("cpu.max")?);
            }
            // -1 is none.
            let quota = line("cpu.cfs_quota_us").filter(|quota| !quota.starts_with('-'))?;
            say::quota_of(&quota, &line("cpu.cfs_period_us")?)
        };
        self.directories("cpu").into_iter().filter_map(of).reduce(f64::min)
    }

    fn usage(&mut self) -> Option<Usage> {
        let own = self.own_directory("cpuacct");
        if let (true, Some(directory)) = (self.is_v2(), &own) {
            return say::cpu_usage_v2(&text_of(directory.join("cpu.stat")).unwrap_or_default());
        }
        let line =
            |file: &str| own.as_ref().and_then(|directory| line_of(directory.join(file)).ok()).unwrap_or_default();
        let accounted = say::cpu_usage_v1(&line("cpuacct.usage_user"), &line("cpuacct.usage_sys"));
        // v1: without accounting systemd makes the unit's directory, and takes it away again, as the units beside it come and go: what that
        // counts begins late, or is over. What its processes say, and have from those that they waited for, is rounded.
        let of =
            |count: Count| Usage { user: count.user as f64 / 100.0, nice: 0.0, system: count.system as f64 / 100.0 };
        let counted = self.count().map(of);
        accounted.into_iter().chain(counted).max_by(|one, other| one.total().total_cmp(&other.total()))
    }

    /// Seconds that the boot-time clock inside is ahead of this process's: negative, the clock inside starts at 0.
    fn offset(&mut self) -> f64 {
        if let Some(offset) = self.offset {
            return offset;
        }
        let of = |pid: &str| {
            let text = text_of(format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
            boottime_offset(&text)
        };
        let offset = of(&self.subject.pid.to_string()) - of("self");
        self.offset = Some(offset);
        offset
    }

    fn tasks(&mut self) -> Option<Tasks> {
        let count = self.count()?;
        let current = self.own_directory("pids").and_then(|d| say::limit(&line_of(d.join("pids.current")).ok()?));
        self.load(count.running);
        Some(Tasks {
            loads: self.load.loads,
            // Whoever asks runs, too, were it not waiting for this answer.
            running: count.running + 1,
            blocked: count.blocked,
            total: current.unwrap_or(count.threads).max(count.running + 1),
            last: count.last,
        })
    }

    /// Brings the load averages up to now: over the gap as many tasks were active as CPUs were busy, and of those that waited
    /// at least one for as long as some did.
    fn load(&mut self, running: u64) {
        let now = boot_time();
        let gap = now - self.load.at;
        if gap <= 0.0 {
            return;
        }
        let usage = self.usage().map_or(0.0, Usage::total);
        let waited = self.waited();
        let busy = (usage - self.load.usage).max(0.0) / gap;
        let [cpu, disk] = [0, 1].map(|i| ((waited[i] - self.load.waited[i]) / gap).clamp(0.0, 1.0));
        let active = busy + cpu * (running as f64 - busy).max(1.0) + disk;
        self.load = Load { at: now, loads: say::decay(self.load.loads, active, gap), usage, waited };
    }

    fn waited(&self) -> [f64; 2] {
        ["cpu.pressure", "io.pressure"]
            .map(|file| self.pressure(file).and_then(|text| say::waited(&text)).map_or(0.0, |usec| usec as f64 / 1e6))
    }

    fn disks(&self) -> Option<BTreeMap<(u32, u32), Disk>> {
        let directory = self.own_directory(if self.is_v2() { "io" } else { "blkio" })?;
        let text = |file: &str| text_of(directory.join(file)).ok();
        if self.is_v2() {
            return Some(say::disks_v2(&text("io.stat")?));
        }
        Some(say::disks_v1(&text("blkio.throttle.io_service_bytes")?, &text("blkio.throttle.io_serviced")?))
    }

    /// The memory nodes that the sandbox's CPUs are of, and those that its memory may be of, which the kernel tells by process.
    fn nodes(&self) -> Option<Nodes> {
        let status = text_of(format!("/proc/{}/status", self.subject.pid)).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"));
        let (allowed, visible) = (say::numbers(allowed?), self.visible());
        let mut nodes = Nodes::default();
        for number in say::numbers(&line_of(format!("{NODES}/online")).ok()?) {
            let cpus = line_of(format!("{NODES}/node{number}/cpulist")).map(|list| say::numbers(&list));
            if cpus.is_ok_and(|cpus| cpus.iter().any(|cpu| visible.contains(cpu))) {
                nodes.with_cpus.push(number);
            }
            if allowed.contains(&number) {
                let meminfo = text_of(format!("{NODES}/node{number}/meminfo")).unwrap_or_default();
                nodes.memory.insert(number, super::node::total(&meminfo).unwrap_or(0));
            }
        }
        Some(nodes)
    }

    fn pressure(&self, file: &str) -> Option<String> {
        let directory = self.own_directory("pressure").filter(|_| self.is_v2())?;
        text_of(directory.join(file)).ok().filter(|text| !text.is_empty())
    }

    /// The processes of the unit; `None` where it has none of its own.
    fn count(&mut self) -> Option<Count> {
        let Place { mode, paths } = self.place();
        let mode = mode.filter(|_| self.subject.own_unit)?;
        let directory = self.base.join(mode.hierarchy(None)).join(paths.path(mode, None)?);
        Some(self.counter.count(&directory))
    }
}

const MEMINFO: &str = "/proc/meminfo";

const NODES: &str = "/sys/devices/system/node";

/// Seconds of the line `boottime` of a timens_offsets, time_namespaces(7).
fn boottime_offset(text: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix("boottime"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    number() + number() / 1e9
}

fn boot_time() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// A file of the kernel whole.
pub(super) fn text_of(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read_of_kernel(path)?).map_err(io::Error::other)
}

/// The same of a file with one line, which one read gives: where nothing else is read that is half of the calls.
fn line_of(path: impl AsRef<Path>) -> io::Result<String> {
    let file = rustix::fs::open(path.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(256);
    retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut text)))?;
    String::from_utf8(text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A reader of cgroups in a directory, for a unit in a slice.
    fn reader(base: &Path, mode: CgroupMode, groups: &str, files: &[(&str, &str)]) -> Reader {
        for (path, text) in files {
            let path = base.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let subject = Subject { pid: rustix::process::getpid(), own_unit: true, affinity: None };
        let place = OnceCell::from(Place { mode: Some(mode), paths: CgroupPaths::parse(groups) });
        let (load, counter) = (Load::default(), Counter::default());
        Reader { subject, base: base.into(), place, offset: None, load, counter }
    }

    #[test]
    fn the_unit_and_its_slices_on_v2() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            ("memory.current", "1"),
            ("a.slice/memory.max", "1073741824\n"),
            ("a.slice/memory.high", "max\n"),
            ("a.slice/memory.current", "943718400\n"),
            ("a.slice/memory.stat", "active_file 1048576\nanon 5\n"),
            ("a.slice/cpu.max", "50000 100000\n"),
            ("a.slice/u.scope/memory.max", "max\n"),
            ("a.slice/u.scope/memory.high", "314572800\n"),
            ("a.slice/u.scope/memory.current", "104857600\n"),
            ("a.slice/u.scope/memory.stat", "file 7\nslab_reclaimable 2097152\n"),
            ("a.slice/u.scope/memory.swap.max", "67108864\n"),
            ("a.slice/u.scope/memory.swap.current", "0\n"),
            ("a.slice/u.scope/cpu.max", "max 100000\n"),
            ("a.slice/u.scope/cpu.stat", "usage_usec 3\nuser_usec 2000000\nsystem_usec 1000000\n"),
            ("a.slice/u.scope/io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
            ("a.slice/u.scope/cpu.pressure", "some avg10=0.00 total=9\n"),
            ("a.slice/u.scope/cgroup.procs", "1\n"),
        ];
        let mut reader = reader(directory.path(), CgroupMode::Unified, "0::/a.slice/u.scope\n", &files);
        let memory = reader.memory().unwrap();
        let unit = Level { limit: Some(300 * MIB), used: 100 * MIB, reclaimable: 2 * MIB };
        let slice = Level { limit: Some(1024 * MIB), used: 900 * MIB, reclaimable: MIB };
        assert_eq!((&memory.levels[..], memory.stat("file"), memory.complete), (&[unit, slice][..], 7, true));
        assert_eq!(memory.swap, [Level { limit: Some(64 * MIB), used: 0, reclaimable: 0 }]);
        assert_eq!(reader.quota(), Some(0.5));
        assert_eq!(reader.usage(), Some(Usage { user: 2.0, nice: 0.0, system: 1.0 }));
        assert_eq!(reader.disks().unwrap()[&(8, 0)].reads, 1);
        assert_eq!(reader.pressure("cpu.pressure").as_deref(), Some("some avg10=0.00 total=9\n"));
        assert_eq!(reader.visible().len(), 1);
        assert!(reader.tasks().unwrap().total >= 1);
        // Without a unit of its own what the cgroup counts is others', but its limits hold.
        reader.subject.own_unit = false;
        assert_eq!((reader.usage(), reader.disks(), reader.pressure("cpu.pressure")), (None, None, None));
        assert_eq!(reader.quota(), Some(0.5));
    }

    #[test]
    fn the_unit_and_its_slices_on_v1() {
        let directory = tempfile::tempdir().unwrap();
        let groups = "4:memory:/a.slice/u.scope\n3:cpu:/a.slice/u.scope\n2:cpuacct:/a.slice\n1:name=systemd:/a.slice/u.scope\n0::/a.slice/u.scope\n";
        let files = [
            ("memory/a.slice/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/a.slice/memory.usage_in_bytes", "943718400\n"),
            ("memory/a.slice/u.scope/memory.limit_in_bytes", "314572800\n"),
            ("memory/a.slice/u.scope/memory.usage_in_bytes", "104857600\n"),
            ("memory/a.slice/u.scope/memory.memsw.limit_in_bytes", "419430400\n"),
            ("memory/a.slice/u.scope/memory.memsw.usage_in_bytes", "115343360\n"),
            ("memory/a.slice/u.scope/memory.stat", "cache 1\ntotal_cache 5\ntotal_active_file 1048576\n"),
            ("cpu/a.slice/cpu.cfs_quota_us", "-1\n"),
            ("cpu/a.slice/cpu.cfs_period_us", "100000\n"),
            ("cpu/a.slice/u.scope/cpu.cfs_quota_us", "150000\n"),
            ("cpu/a.slice/u.scope/cpu.cfs_period_us", "100000\n"),
            ("cpuacct/a.slice/cpuacct.usage_user", "7000000000\n"),
            ("unified/a.slice/u.scope/cgroup.procs", "1\n"),
        ];
        let mut reader = reader(directory.path(), CgroupMode::Hybrid, groups, &files);
        let memory = reader.memory().unwrap();
        assert_eq!(memory.levels[0], Level { limit: Some(300 * MIB), used: 100 * MIB, reclaimable: MIB });
        assert_eq!((memory.levels.len(), memory.stat("file"), memory.complete), (2, 5, false));
        assert_eq!(memory.swap, [Level { limit: Some(100 * MIB), used: 10 * MIB, reclaimable: 0 }]);
        assert_eq!(reader.quota(), Some(1.5));
        // The slice's time is not the unit's: its processes are asked instead.
        assert!(reader.usage().unwrap().total() < 1e6 && reader.disks().is_none() && reader.pressure("x").is_none());
    }

    #[test]
    fn cpu_time_on_v1_where_directories_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let groups = "2:cpuacct:/a.slice/u.scope\n1:name=systemd:/a.slice/u.scope\n0::/a.slice/u.scope\n";
        let own = directory.path().join("cpuacct/a.slice/u.scope");
        let (user, system) = (own.join("cpuacct.usage_user"), own.join("cpuacct.usage_sys"));
        let mut reader =
            reader(directory.path(), CgroupMode::Hybrid, groups, &[("unified/a.slice/u.scope/cgroup.procs", "1\n")]);
        let counted = reader.usage().unwrap();
        assert!((0.0..1e6).contains(&counted.total()), "the directory is gone: {counted:?}");
        std::fs::create_dir_all(&own).unwrap();
        for (text, want) in [("2000000000000000\n", 4e6), ("0\n", counted.total())] {
            std::fs::write(&user, text).unwrap();
            std::fs::write(&system, text).unwrap();
            let usage = reader.usage().unwrap();
            assert!((want..want + 1e6).contains(&usage.total()), "{text}: {usage:?}");
        }
    }

    #[test]
    fn lines_of_proc() {
        assert_eq!(boottime_offset("monotonic           0         0\nboottime    -29219 500000000\n"), -29218.5);
        assert_eq!(boottime_offset(""), 0.0);
    }
}
