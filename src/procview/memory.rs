//! meminfo, swaps and vmstat: the host's text with the sandbox's numbers in it.

use super::statistics::{Level, Memory, Statistics};

const KIB: u64 = 1024;

/// Memory as programs count it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// The tightest limit, or all that the machine has.
    pub(crate) total: u64,
    /// What nobody uses.
    pub(crate) free: u64,
    /// What can be had without swapping.
    pub(crate) available: u64,
    /// The page cache, tmpfs in it.
    pub(crate) cached: u64,
    /// Of that what is shared memory and tmpfs.
    pub(crate) shared: u64,
    /// Swap that may be used.
    pub(crate) swap_total: u64,
    /// What of it is left.
    pub(crate) swap_free: u64,
}

/// The value of `Name:  123 kB` in a meminfo, in bytes.
pub(super) fn in_meminfo(host: &str, name: &str) -> Option<u64> {
    let line = host.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(KIB)
}

impl Amounts {
    /// Puts the unit, its slices and the machine together: of each the tightest counts. `host` is the host's meminfo.
    pub(crate) fn new(memory: &Memory, host: &str) -> Amounts {
        let machine = in_meminfo(host, "MemTotal").unwrap_or(u64::MAX);
        let host_available = in_meminfo(host, "MemAvailable").unwrap_or(machine);
        let limited: Vec<Level> =
            memory.levels.iter().copied().filter(|l| l.limit.is_some_and(|l| l < machine)).collect();
        let total = limited.iter().filter_map(|level| level.limit).fold(machine, u64::min);
        let room = |level: &Level| level.limit.unwrap_or(u64::MAX).saturating_sub(level.used);
        let rest = |level: &Level| room(level).saturating_add(level.reclaimable.min(level.used));
        let available = limited.iter().map(rest).fold(host_available.min(total), u64::min);
        let unused = total.saturating_sub(memory.used());
        // The page cache of others on the machine can be had, and is nothing that is used here.
        let own_cache = memory.levels.first().map_or(0, |unit| unit.reclaimable.min(unit.used));
        let most_free = host_available.saturating_sub(own_cache).min(available);
        let free = limited.iter().map(room).fold(unused, u64::min).min(most_free);
        let cached = memory.stat("file").min(total - free);
        let (swap_total, swap_free) = swap(memory, host);
        Amounts { total, free, available, cached, shared: memory.stat("shmem").min(cached), swap_total, swap_free }
    }
}

fn swap(memory: &Memory, host: &str) -> (u64, u64) {
    let machine = in_meminfo(host, "SwapTotal").unwrap_or(0);
    let host_free = in_meminfo(host, "SwapFree").unwrap_or(0);
    let total = memory.swap.iter().filter_map(|level| level.limit).fold(machine, u64::min);
    let used = memory.swap.first().map_or(machine - host_free.min(machine), |unit| unit.used);
    let room = |level: &Level| level.limit.unwrap_or(u64::MAX).saturating_sub(level.used);
    let free = memory.swap.iter().map(room).fold(total.saturating_sub(used), u64::min).min(host_free);
    (total, free)
}

/// What a line of meminfo says here, in bytes; `None`: it is the machine's, or nothing that we know.
pub(super) fn meminfo_value(name: &str, memory: &Memory, amounts: &Amounts, host: u64) -> Option<u64> {
    let stat = |name: &str| memory.stat(name).min(amounts.total);
    // What cgroup v1 does not count is 0 where it is a part of a sum, and the host's where it is not.
    let counted = |name: &str| memory.complete.then(|| stat(name));
    Some(match name {
        "MemTotal" => amounts.total,
        "MemFree" => amounts.free,
        "MemAvailable" => amounts.available,
        // Blocks of devices are page cache like any other to a cgroup.
        "Buffers" => 0,
        "Cached" => amounts.cached,
        "SwapCached" => stat("swapcached"),
        "Active" => stat("active_anon").saturating_add(stat("active_file")).min(amounts.total),
        "Inactive" => stat("inactive_anon").saturating_add(stat("inactive_file")).min(amounts.total),
        "Active(anon)" => stat("active_anon"),
        "Inactive(anon)" => stat("inactive_anon"),
        "Active(file)" => stat("active_file"),
        "Inactive(file)" => stat("inactive_file"),
        "Unevictable" => stat("unevictable"),
        "Mlocked" => host.min(stat("unevictable")),
        "SwapTotal" => amounts.swap_total,
        "SwapFree" => amounts.swap_free,
        "Zswap" => stat("zswap"),
        "Zswapped" => stat("zswapped"),
        "Dirty" => stat("file_dirty"),
        "Writeback" => stat("file_writeback"),
        "AnonPages" => stat("anon"),
        "Mapped" => stat("file_mapped"),
        "Shmem" => amounts.shared,
        "KReclaimable" | "SReclaimable" => stat("slab_reclaimable").min(amounts.total - amounts.free - amounts.cached),
        "Slab" => stat("slab"),
        "SUnreclaim" => stat("slab_unreclaimable"),
        "KernelStack" => return counted("kernel_stack"),
        "PageTables" => return counted("pagetables"),
        "SecPageTables" => return counted("sec_pagetables"),
        "Percpu" => return counted("percpu"),
        "AnonHugePages" => stat("anon_thp"),
        "ShmemHugePages" => stat("shmem_thp"),
        "FileHugePages" => stat("file_thp"),
        "ShmemPmdMapped" => host.min(stat("shmem_thp")),
        "FilePmdMapped" => host.min(stat("file_thp")),
        _ => return None,
    })
}

/// /proc/meminfo.
pub(super) fn meminfo(statistics: &Statistics, host: &str) -> String {
    let Some(memory) = &statistics.memory else { return host.to_owned() };
    let amounts = Amounts::new(memory, host);
    let mut out = String::with_capacity(host.len());
    for line in host.lines() {
        match meminfo_line(line, memory, &amounts) {
            Some(line) => out.push_str(&line),
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// A line with another number.
fn meminfo_line(line: &str, memory: &Memory, amounts: &Amounts) -> Option<String> {
    with_kib(line, |name, host| meminfo_value(name, memory, amounts, host))
}

/// A line with what `value` says of its name and number, in bytes; as wide as the kernel writes it: `%8lu kB` after the name
/// (fs/proc/meminfo.c).
pub(super) fn with_kib(line: &str, value: impl FnOnce(&str, u64) -> Option<u64>) -> Option<String> {
    let (name, rest) = line.split_once(':')?;
    let host = rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(KIB);
    let value = value(name, host)? / KIB;
    let width = rest.len() - " kB".len();
    Some(format!("{name}:{value:>width$} kB"))
}

/// /proc/swaps: one line for all that may be used, since the devices are the host's; as the kernel aligns them (mm/swapfile.c).
pub(super) fn swaps(statistics: &Statistics, host: &str, meminfo: &str) -> String {
    let Some(memory) = &statistics.memory else { return host.to_owned() };
    let amounts = Amounts::new(memory, meminfo);
    let mut out = host.lines().next().unwrap_or_default().to_owned();
    out.push('\n');
    if amounts.swap_total > 0 {
        let (total, used) = (amounts.swap_total / KIB, (amounts.swap_total - amounts.swap_free) / KIB);
        let gap = if total < 10_000_000 { "\t" } else { "" };
        out.push_str(&format!("none{:36}virtual\t\t{total}\t{gap}{used}\t{gap}0\n", ""));
    }
    out
}

/// What a line of vmstat says here; `None`: it is the machine's.
pub(super) fn vmstat_value(name: &str, memory: &Memory, amounts: &Amounts, page: u64, host: u64) -> Option<u64> {
    let pages = |name: &str| memory.stat(name) / page;
    Some(match name {
        "nr_free_pages" => amounts.free / page,
        // Parts of what is free, dirty and unevictable, which the machine's may be more than.
        "nr_free_pages_blocks" => host.min(amounts.free / page),
        "nr_zone_write_pending" => pages("file_dirty").saturating_add(pages("file_writeback")),
        "nr_mlock" => host.min(pages("unevictable")),
        "nr_inactive_anon" | "nr_zone_inactive_anon" => pages("inactive_anon"),
        "nr_active_anon" | "nr_zone_active_anon" => pages("active_anon"),
        "nr_inactive_file" | "nr_zone_inactive_file" => pages("inactive_file"),
        "nr_active_file" | "nr_zone_active_file" => pages("active_file"),
        "nr_unevictable" | "nr_zone_unevictable" => pages("unevictable"),
        "nr_anon_pages" => pages("anon"),
        "nr_mapped" => pages("file_mapped"),
        "nr_file_pages" => amounts.cached / page,
        "nr_shmem" => amounts.shared / page,
        "nr_dirty" => pages("file_dirty"),
        "nr_writeback" => pages("file_writeback"),
        "nr_slab_reclaimable" if memory.complete => pages("slab_reclaimable"),
        "nr_slab_unreclaimable" if memory.complete => pages("slab_unreclaimable"),
        "nr_page_table_pages" if memory.complete => pages("pagetables"),
        "nr_kernel_stack" if memory.complete => memory.stat("kernel_stack") / KIB,
        // Events have the same names in memory.stat as far as it counts them.
        _ if name.starts_with("pg") || name.starts_with("workingset_") || name.starts_with("thp_") => {
            return memory.stat.get(name).copied();
        }
        _ if matches!(name, "pswpin" | "pswpout") => return memory.stat.get(name).copied(),
        _ => return None,
    })
}

/// /proc/vmstat.
pub(super) fn vmstat(statistics: &Statistics, host: &str, meminfo: &str, page: u64) -> String {
    let amounts = statistics.memory.as_ref().map(|memory| (memory, Amounts::new(memory, meminfo)));
    let moved = statistics.disks.as_ref().map(|disks| {
        let sum = |of: fn(&super::statistics::Disk) -> u64| disks.values().map(of).fold(0, u64::saturating_add) / KIB;
        (sum(|disk| disk.read_bytes), sum(|disk| disk.written_bytes))
    });
    let mut out = String::with_capacity(host.len());
    for line in host.lines() {
        let (name, host) = line.split_once(' ').unwrap_or((line, ""));
        let host = host.trim().parse().unwrap_or(0);
        let value = match (name, moved) {
            ("pgpgin", Some((read, _))) => Some(read),
            ("pgpgout", Some((_, written))) => Some(written),
            _ => amounts.as_ref().and_then(|(memory, amounts)| vmstat_value(name, memory, amounts, page, host)),
        };
        match value {
            Some(value) => out.push_str(&format!("{name} {value}\n")),
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}
