//! The table of virtual files: one row for each. A new file is one row here and one test.

use std::path::Path;

use super::statistics::Statistics;
use super::{cpu, disk, memory, node};

/// What has to be read for a file beside the host's own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// [`Statistics::memory`].
    Memory,
    /// [`Statistics::cpu`].
    Cpu,
    /// [`Statistics::tasks`].
    Tasks,
    /// [`Statistics::disks`].
    Disks,
    /// [`Statistics::nodes`].
    Nodes,
    /// [`Statistics::pressure`], of this file of the unit's cgroup.
    Pressure(&'static str),
}

/// The host's own texts that one file is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HostText<'a> {
    /// The file itself.
    pub(crate) own: &'a str,
    /// /proc/meminfo, where [`Need::Memory`] is among the needs.
    pub(crate) meminfo: &'a str,
    /// Size of a page in bytes.
    pub(crate) page: u64,
    /// The memory node that the file is of, where there is a file for each.
    pub(crate) node: Option<u32>,
}

/// One virtual file.
#[derive(Debug)]
pub(crate) struct Row {
    /// Where it is, inside and on the host; a `*` stands for the number of each memory node.
    pub(crate) path: &'static str,
    /// Permission bits.
    pub(crate) mode: u32,
    /// What is read for it.
    pub(crate) needs: &'static [Need],
    /// The sandbox's text, from its statistics and the host's.
    pub(crate) text: fn(&Statistics, &HostText<'_>) -> String,
}

const fn row(path: &'static str, needs: &'static [Need], text: fn(&Statistics, &HostText<'_>) -> String) -> Row {
    Row { path, mode: 0o444, needs, text }
}

/// Every file. A kernel that lacks one has no place to put it, and the row is left out.
pub(crate) static TABLE: &[Row] = &[
    row("/proc/cpuinfo", &[Need::Cpu], |statistics, host| cpu::cpuinfo(statistics, host.own)),
    row("/proc/diskstats", &[Need::Disks], |statistics, host| disk::diskstats(statistics, host.own)),
    row("/proc/loadavg", &[Need::Tasks], |statistics, host| cpu::loadavg(statistics, host.own)),
    row("/proc/meminfo", &[Need::Memory], |statistics, host| memory::meminfo(statistics, host.own)),
    row("/proc/pressure/cpu", &[Need::Pressure("cpu.pressure")], pressure),
    row("/proc/pressure/io", &[Need::Pressure("io.pressure")], pressure),
    row("/proc/pressure/irq", &[Need::Pressure("irq.pressure")], pressure),
    row("/proc/pressure/memory", &[Need::Pressure("memory.pressure")], pressure),
    row("/proc/stat", &[Need::Cpu, Need::Tasks], |statistics, host| cpu::stat(statistics, host.own)),
    row("/proc/swaps", &[Need::Memory], |statistics, host| memory::swaps(statistics, host.own, host.meminfo)),
    row("/proc/uptime", &[Need::Cpu], |statistics, host| cpu::uptime(statistics, host.own)),
    row("/proc/vmstat", &[Need::Memory, Need::Disks], |statistics, host| {
        memory::vmstat(statistics, host.own, host.meminfo, host.page)
    }),
    row("/sys/devices/system/cpu/online", &[Need::Cpu], |statistics, host| cpu::list(statistics, host.own)),
    row("/sys/devices/system/cpu/possible", &[Need::Cpu], |statistics, host| cpu::list(statistics, host.own)),
    row("/sys/devices/system/cpu/present", &[Need::Cpu], |statistics, host| cpu::list(statistics, host.own)),
    row("/sys/devices/system/node/has_cpu", &[Need::Nodes], |statistics, host| node::with_cpus(statistics, host.own)),
    row("/sys/devices/system/node/has_memory", &[Need::Nodes], |statistics, host| {
        node::with_memory(statistics, host.own)
    }),
    row("/sys/devices/system/node/has_normal_memory", &[Need::Nodes], |statistics, host| {
        node::with_memory(statistics, host.own)
    }),
    row("/sys/devices/system/node/node*/cpulist", &[Need::Cpu], |statistics, host| node::cpulist(statistics, host.own)),
    row("/sys/devices/system/node/node*/cpumap", &[Need::Cpu], |statistics, host| node::cpumap(statistics, host.own)),
    row("/sys/devices/system/node/node*/meminfo", &[Need::Memory, Need::Nodes], node::meminfo),
    row("/sys/devices/system/node/node*/vmstat", &[Need::Memory, Need::Nodes], node::vmstat),
];

impl Row {
    /// The number for which the `*` of the path stands in `path`: `Some(None)` where it has none and is the same.
    fn number_in(&self, path: &Path) -> Option<Option<u32>> {
        let path = path.to_str()?;
        match self.path.split_once('*') {
            None => (self.path == path).then_some(None),
            Some((before, after)) => path.strip_prefix(before)?.strip_suffix(after)?.parse().ok().map(Some),
        }
    }

    /// The memory node whose file is at `path`.
    pub(crate) fn node_in(&self, path: &Path) -> Option<u32> {
        self.number_in(path).flatten()
    }
}

/// The row whose file is at `path`.
pub(crate) fn row_of(path: &Path) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.number_in(path).is_some())
}

/// A cgroup's pressure file has the form of the machine's.
fn pressure(statistics: &Statistics, host: &HostText<'_>) -> String {
    statistics.pressure.clone().unwrap_or_else(|| host.own.to_owned())
}
