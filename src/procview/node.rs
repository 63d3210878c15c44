//! The memory nodes in /sys/devices/system/node: the CPUs of each, and the memory.
//!
//! A limit is of memory wherever it is: each node that the sandbox's memory may be of has a share of it, as large as its share of the
//! machine's. So under a limit the nodes add up to what /proc/meminfo says, and where there is one node it says the same.

use super::cpu::list_of;
use super::memory::{self, Amounts, in_meminfo, meminfo_value, vmstat_value};
use super::statistics::{Memory, Nodes, Statistics, numbers};
use super::table::HostText;

/// Bits in one group of digits of a mask, bitmap_print_to_pagebuf().
const GROUP: usize = 32;

/// has_cpu: the nodes with CPUs that are seen.
pub(super) fn with_cpus(statistics: &Statistics, host: &str) -> String {
    of_nodes(statistics, host, |nodes, number| nodes.with_cpus.contains(&number))
}

/// has_memory, and the like for kinds of memory: the nodes that the sandbox's may be of.
pub(super) fn with_memory(statistics: &Statistics, host: &str) -> String {
    of_nodes(statistics, host, |nodes, number| nodes.memory.contains_key(&number))
}

fn of_nodes(statistics: &Statistics, host: &str, has: impl Fn(&Nodes, u32) -> bool) -> String {
    let Some(nodes) = &statistics.nodes else { return host.to_owned() };
    list_of(&numbers(host).into_iter().filter(|number| has(nodes, *number)).collect::<Vec<_>>())
}

/// nodeN/cpulist: those of the node's CPUs that are seen.
pub(super) fn cpulist(statistics: &Statistics, host: &str) -> String {
    let Some(cpu) = &statistics.cpu else { return host.to_owned() };
    list_of(&numbers(host).into_iter().filter(|number| cpu.visible.contains(number)).collect::<Vec<_>>())
}

/// nodeN/cpumap: the same as a mask, groups of hexadecimal digits, the highest first; as many digits as the machine's has.
pub(super) fn cpumap(statistics: &Statistics, host: &str) -> String {
    let Some(cpu) = &statistics.cpu else { return host.to_owned() };
    let groups: Vec<&str> = host.trim_end().split(',').collect();
    let masked = groups.iter().rev().enumerate().map(|(index, group)| {
        let seen = (0..GROUP).filter(|bit| u32::try_from(index * GROUP + bit).is_ok_and(|n| cpu.visible.contains(&n)));
        let mask = seen.fold(0_u32, |mask, bit| mask | 1 << bit);
        u32::from_str_radix(group, 16).map(|own| format!("{:0width$x}", own & mask, width = group.len()))
    });
    match masked.collect::<Result<Vec<_>, _>>() {
        Ok(groups) => groups.into_iter().rev().collect::<Vec<_>>().join(",") + "\n",
        Err(_) => host.to_owned(),
    }
}

/// MemTotal of a nodeN/meminfo, in bytes.
pub(super) fn total(meminfo: &str) -> Option<u64> {
    lines(meminfo).find_map(|(_, line)| in_meminfo(line, "MemTotal"))
}

/// Each line after its `Node N `, and that.
fn lines(meminfo: &str) -> impl Iterator<Item = (&str, &str)> {
    meminfo.lines().map(|line| {
        let words = line.strip_prefix("Node ").and_then(|rest| rest.split_once(' '));
        words.map_or(("", line), |(_, rest)| line.split_at(line.len() - rest.len()))
    })
}

/// What one node has of the sandbox's memory.
struct Share<'a> {
    memory: &'a Memory,
    amounts: Amounts,
    own: u64,
    all: u64,
    /// There is no limit: then a node has what the kernel says of it, which need not add up to what /proc/meminfo says.
    whole: bool,
}

impl Share<'_> {
    fn new<'a>(statistics: &'a Statistics, host: &HostText<'_>) -> Option<Share<'a>> {
        let (memory, nodes) = (statistics.memory.as_ref()?, statistics.nodes.as_ref()?);
        let own = nodes.memory.get(&host.node?).copied().unwrap_or(0);
        let all = nodes.memory.values().copied().fold(0, u64::saturating_add);
        let amounts = Amounts::new(memory, host.meminfo);
        let whole = host.meminfo.lines().find_map(|line| in_meminfo(line, "MemTotal")) == Some(amounts.total);
        Some(Share { memory, amounts, own, all, whole })
    }

    fn total(&self) -> u64 {
        if self.whole { self.own } else { self.of(self.amounts.total) }
    }

    fn of(&self, amount: u64) -> u64 {
        let share = u128::from(amount) * u128::from(self.own) / u128::from(self.all.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// What a line says; its names are those of /proc/meminfo but for these two.
    fn value(&self, name: &str, host: u64) -> Option<u64> {
        let whole = match name {
            "MemTotal" => self.total(),
            "MemUsed" => self.total().saturating_sub(self.of(self.amounts.free)),
            "FilePages" => self.of(self.amounts.cached),
            _ => self.of(meminfo_value(name, self.memory, &self.amounts, host)?),
        };
        Some(whole)
    }
}

/// nodeN/meminfo.
pub(super) fn meminfo(statistics: &Statistics, host: &HostText<'_>) -> String {
    let Some(share) = Share::new(statistics, host) else { return host.own.to_owned() };
    let line = |(node, line): (&str, &str)| {
        let changed = memory::with_kib(line, |name, host| share.value(name, host));
        format!("{node}{}\n", changed.as_deref().unwrap_or(line))
    };
    lines(host.own).map(line).collect()
}

/// nodeN/vmstat.
pub(super) fn vmstat(statistics: &Statistics, host: &HostText<'_>) -> String {
    let Some(share) = Share::new(statistics, host) else { return host.own.to_owned() };
    let line = |line: &str| {
        let (name, own) = line.split_once(' ')?;
        let value = vmstat_value(name, share.memory, &share.amounts, host.page, own.trim().parse().ok()?)?;
        Some(format!("{name} {}\n", share.of(value)))
    };
    host.own.lines().map(|text| line(text).unwrap_or_else(|| format!("{text}\n"))).collect()
}
