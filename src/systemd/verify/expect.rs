//! What the kernel must say of each setting: which file of which controller, and which value as the kernel rounds it.
//!
//! Pure. The formulas are systemd's (cgroup.c, `cgroup_context_apply`), the rounding is the kernel's.

use crate::value::{self, CpuSet, INFINITY};

use super::super::cgroup::CgroupMode;
use super::super::property::{ATTACH_TYPES, Setting, Value};

/// What rounding and percentages are relative to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Bytes of a page: memory limits are whole pages.
    pub(crate) page: u64,
    /// Bytes of memory that percentages are taken of.
    pub(crate) memory: u64,
    /// Tasks that percentages are taken of.
    pub(crate) tasks: u64,
}

/// One setting and what the kernel must say of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expectation {
    /// What the user wrote: `MemoryMax=500M`.
    pub(crate) asked: String,
    /// The property as the manual spells it: `MemoryMax`.
    pub(crate) property: &'static str,
    /// Its name on the bus as sent: `MemoryMax`, for `CPUShares=` on v2 `CPUWeight`.
    pub(crate) sent: String,
    /// Who makes the file, and on v1 whose hierarchy it is in; `None` for BPF programs.
    pub(crate) controller: Option<&'static str>,
    /// Files that can show it, the best first; one of them must.
    pub(crate) places: Vec<(&'static str, Want)>,
}

/// A value in a file of the kernel's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Want {
    /// An upper limit; [`INFINITY`] is written `max`, and on v1 −1 or a number near 2⁶³.
    Most(u64),
    /// An upper limit that systemd computes from a percentage of the memory.
    Share(u64),
    /// The same of the tasks.
    ShareOfTasks(u64),
    /// A protection: what lies below is kept.
    Least(u64),
    /// A number that is taken as it is.
    Exactly(u64),
    /// A weight: a smaller one gets less.
    Weight(u64),
    /// `QUOTA PERIOD` in microseconds; the quota may be [`INFINITY`].
    Quota(u64, u64),
    /// CPU or memory node numbers.
    Cpus(CpuSet),
    /// In the line of the device behind `path` the number after `key=`, or without a key the number itself.
    Device { path: String, key: &'static str, number: u64 },
    /// A word.
    Word(String),
    /// A list of devices that is not simply all.
    SomeDevices,
    /// The file is there: the controller counts.
    Exists,
    /// BPF programs of these attach types on the cgroup.
    Programs(Vec<u32>),
}

/// systemd's period where none was asked (`CGROUP_CPU_QUOTA_DEFAULT_PERIOD_USEC`), microseconds.
pub(super) const PERIOD: u64 = 100_000;

/// Where v1 shows a quota; the period beside it is read with it.
pub(super) const QUOTA_V1: &str = "cpu.cfs_quota_us";

/// What is said of one setting before the user's words are put to it.
type Place = (Option<&'static str>, Vec<(&'static str, Want)>);

/// Lists what to look for. Settings that the kernel shows nothing of are left out.
pub(crate) fn expectations(settings: &[Setting], mode: CgroupMode, machine: &Machine) -> Vec<Expectation> {
    let mut expectations = Vec::new();
    for setting in settings {
        let places = match mode {
            CgroupMode::Unified => on_v2(setting, settings, machine),
            CgroupMode::Hybrid | CgroupMode::Legacy => on_v1(setting, settings, machine),
        };
        let expectation = |(controller, places)| {
            let (asked, sent) = (setting.asked.clone(), setting.name.clone());
            Expectation { asked, property: setting.property, sent, controller, places }
        };
        expectations.extend(places.into_iter().map(expectation));
    }
    expectations
}

fn one(controller: &'static str, file: &'static str, want: Want) -> Vec<Place> {
    vec![(Some(controller), vec![(file, want)])]
}

fn on_v2(setting: &Setting, all: &[Setting], machine: &Machine) -> Vec<Place> {
    let number = match &setting.value {
        Value::U64(number) => *number,
        _ => 0,
    };
    let name = setting.name.as_str();
    match (name, &setting.value) {
        ("CPUWeight" | "IOWeight" | "CPUQuotaPerSecUSec", Value::U64(INFINITY)) => Vec::new(),
        ("CPUWeight", Value::U64(0)) => one("cpu", "cpu.idle", Want::Exactly(1)),
        ("CPUWeight", _) => one("cpu", "cpu.weight", Want::Weight(number)),
        ("CPUQuotaPerSecUSec", _) => {
            let (quota, period) = quota(number, all);
            one("cpu", "cpu.max", Want::Quota(quota, period))
        }
        ("AllowedCPUs" | "AllowedMemoryNodes", Value::Bytes(mask)) if !mask.is_empty() => {
            let file = if name == "AllowedCPUs" { "cpuset.cpus" } else { "cpuset.mems" };
            one("cpuset", file, Want::Cpus(CpuSet::from_mask(mask)))
        }
        // What every cgroup is anyhow.
        ("CPUSetPartition", Value::Text(kind)) if kind == "member" => Vec::new(),
        ("CPUSetPartition", Value::Text(kind)) => one("cpuset", "cpuset.cpus.partition", Want::Word(kind.clone())),
        ("MemoryZSwapWriteback", Value::Bool(yes)) => {
            one("memory", "memory.zswap.writeback", Want::Exactly((*yes).into()))
        }
        ("MemoryAccounting", Value::Bool(true)) => one("memory", "memory.current", Want::Exists),
        ("TasksAccounting", Value::Bool(true)) => one("pids", "pids.current", Want::Exists),
        ("IOAccounting", Value::Bool(true)) => one("io", "io.stat", Want::Exists),
        ("TasksMax" | "TasksMaxScale", value) => one("pids", "pids.max", tasks(value, machine)),
        ("IOWeight", _) => {
            vec![(Some("io"), vec![("io.weight", Want::Weight(number)), ("io.bfq.weight", Want::Weight(bfq(number)))])]
        }
        ("IODeviceWeight", Value::Devices(devices)) => {
            let place = |(path, weight): &(String, u64)| {
                let want = |number| Want::Device { path: path.clone(), key: "", number };
                (Some("io"), vec![("io.weight", want(*weight)), ("io.bfq.weight", want(bfq(*weight)))])
            };
            devices.iter().map(place).collect()
        }
        (_, Value::Devices(devices)) => io_devices(name, devices),
        _ if memory_file(name).is_some() => {
            let (file, protection) = memory_file(name).unwrap_or_default();
            one("memory", file, memory(&setting.value, protection, machine))
        }
        _ => programs(setting, true).into_iter().collect(),
    }
}

fn on_v1(setting: &Setting, all: &[Setting], machine: &Machine) -> Vec<Place> {
    let number = match &setting.value {
        Value::U64(number) => *number,
        _ => 0,
    };
    match (setting.name.as_str(), &setting.value) {
        ("CPUShares" | "BlockIOWeight" | "CPUQuotaPerSecUSec", Value::U64(INFINITY)) => Vec::new(),
        ("CPUShares", _) => one("cpu", "cpu.shares", Want::Weight(number)),
        ("CPUQuotaPerSecUSec", _) => {
            let (quota, period) = quota(number, all);
            one("cpu", QUOTA_V1, Want::Quota(quota, period))
        }
        ("MemoryMax" | "MemoryMaxScale", value) => {
            one("memory", "memory.limit_in_bytes", memory(value, false, machine))
        }
        ("TasksMax" | "TasksMaxScale", value) => one("pids", "pids.max", tasks(value, machine)),
        ("MemoryAccounting", Value::Bool(true)) => one("memory", "memory.usage_in_bytes", Want::Exists),
        ("TasksAccounting", Value::Bool(true)) => one("pids", "pids.current", Want::Exists),
        ("BlockIOAccounting", Value::Bool(true)) => one("blkio", "blkio.throttle.io_service_bytes", Want::Exists),
        ("BlockIOWeight", _) => {
            let places = vec![("blkio.weight", Want::Weight(number)), ("blkio.bfq.weight", Want::Weight(bfq(number)))];
            vec![(Some("blkio"), places)]
        }
        (name, Value::Devices(devices)) => block_devices(name, devices),
        ("DevicePolicy", Value::Text(policy)) if policy != "auto" => one("devices", "devices.list", Want::SomeDevices),
        ("DeviceAllow", Value::Pairs(allowed)) if !allowed.is_empty() => {
            one("devices", "devices.list", Want::SomeDevices)
        }
        _ => programs(setting, false).into_iter().collect(),
    }
}

/// The file of a memory property on v2, and whether it protects rather than limits.
fn memory_file(name: &str) -> Option<(&'static str, bool)> {
    Some(match name.strip_suffix("Scale").unwrap_or(name) {
        "MemoryMax" => ("memory.max", false),
        "MemoryHigh" => ("memory.high", false),
        "MemorySwapMax" => ("memory.swap.max", false),
        "MemoryZSwapMax" => ("memory.zswap.max", false),
        "MemoryLow" => ("memory.low", true),
        "MemoryMin" => ("memory.min", true),
        _ => return None,
    })
}

/// The kernel counts whole pages and drops the rest (`page_counter_memparse`).
fn memory(value: &Value, protection: bool, machine: &Machine) -> Want {
    let pages = |bytes: u64| bytes / machine.page * machine.page;
    match value {
        Value::U32(share) if protection => Want::Least(pages(value::unscale(*share, machine.memory))),
        Value::U32(share) => Want::Share(pages(value::unscale(*share, machine.memory))),
        Value::U64(INFINITY) if protection => Want::Least(INFINITY),
        Value::U64(bytes) if protection => Want::Least(pages(*bytes)),
        Value::U64(bytes) if *bytes != INFINITY => Want::Most(pages(*bytes)),
        _ => Want::Most(INFINITY),
    }
}

fn tasks(value: &Value, machine: &Machine) -> Want {
    match value {
        Value::U32(share) => Want::ShareOfTasks(value::unscale(*share, machine.tasks)),
        Value::U64(tasks) => Want::Most(*tasks),
        _ => Want::Most(INFINITY),
    }
}

/// Quota and period as systemd writes them: the kernel takes no quota below 1 ms and no period above 1 s, so a small
/// quota gets a longer period (`cgroup_cpu_adjust_period`): 0.5 % is 1 ms in 200 ms. All in microseconds.
fn quota(per_second: u64, all: &[Setting]) -> (u64, u64) {
    const MS: u64 = 1_000;
    const S: u64 = 1_000_000;
    if per_second == INFINITY {
        return (INFINITY, PERIOD);
    }
    let asked = all.iter().find(|setting| setting.name == "CPUQuotaPeriodUSec").map(|setting| &setting.value);
    let period = match asked {
        Some(Value::U64(period)) if *period != INFINITY => *period,
        _ => PERIOD,
    };
    let period = period.max(MS).max(MS * S / per_second.max(1)).min(S);
    let quota = u128::from(per_second) * u128::from(period) / u128::from(S);
    (u64::try_from(quota).unwrap_or(INFINITY).max(MS), period)
}

/// systemd's `BFQ_WEIGHT`: bfq weighs from 1 to 1000 with 100 in the middle of both scales.
fn bfq(weight: u64) -> u64 {
    match weight {
        0..=100 => weight.max(1),
        _ => 100 + (weight.min(10_000) - 100) * 900 / 9_900,
    }
}

/// Rates and latencies on v2.
fn io_devices(name: &str, devices: &[(String, u64)]) -> Vec<Place> {
    let (file, key) = match name {
        "IOReadBandwidthMax" => ("io.max", "rbps"),
        "IOWriteBandwidthMax" => ("io.max", "wbps"),
        "IOReadIOPSMax" => ("io.max", "riops"),
        "IOWriteIOPSMax" => ("io.max", "wiops"),
        "IODeviceLatencyTargetUSec" => ("io.latency", "target"),
        _ => return Vec::new(),
    };
    devices
        .iter()
        .flat_map(|(path, number)| one("io", file, Want::Device { path: path.clone(), key, number: *number }))
        .collect()
}

/// Rates and weights on v1.
fn block_devices(name: &str, devices: &[(String, u64)]) -> Vec<Place> {
    let file = match name {
        "BlockIOReadBandwidth" => "blkio.throttle.read_bps_device",
        "BlockIOWriteBandwidth" => "blkio.throttle.write_bps_device",
        "BlockIODeviceWeight" => "blkio.weight_device",
        _ => return Vec::new(),
    };
    let want = |path: &String, number: u64| Want::Device { path: path.clone(), key: "", number };
    devices.iter().flat_map(|(path, number)| one("blkio", file, want(path, *number))).collect()
}

/// The kernel's attach types (`enum bpf_attach_type`) of what systemd makes of a setting.
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;
const SOCK_CREATE: u32 = 2;
const DEVICE: u32 = 6;
const BIND4: u32 = 8;
const BIND6: u32 = 9;

fn programs(setting: &Setting, devices: bool) -> Option<Place> {
    let types = match (setting.name.as_str(), &setting.value) {
        ("DevicePolicy", Value::Text(policy)) if devices && policy != "auto" => vec![DEVICE],
        ("DeviceAllow", Value::Pairs(allowed)) if devices && !allowed.is_empty() => vec![DEVICE],
        ("IPAddressAllow" | "IPAddressDeny", Value::Addresses(addresses)) if !addresses.is_empty() => {
            vec![INGRESS, EGRESS]
        }
        ("IPAccounting", Value::Bool(true)) => vec![INGRESS, EGRESS],
        ("IPIngressFilterPath", Value::Texts(paths)) if !paths.is_empty() => vec![INGRESS],
        ("IPEgressFilterPath", Value::Texts(paths)) if !paths.is_empty() => vec![EGRESS],
        ("SocketBindAllow" | "SocketBindDeny", Value::Ports(ports)) if !ports.is_empty() => vec![BIND4, BIND6],
        ("RestrictNetworkInterfaces", Value::Interfaces((_, names))) if !names.is_empty() => vec![INGRESS, EGRESS],
        ("BindNetworkInterface", Value::Text(name)) if !name.is_empty() => vec![SOCK_CREATE],
        ("BPFProgram", Value::Pairs(programs)) => programs
            .iter()
            .filter_map(|(kind, _)| ATTACH_TYPES.iter().find(|(name, _)| name == kind))
            .map(|(_, n)| *n)
            .collect(),
        _ => return None,
    };
    Some((None, vec![("", Want::Programs(types))]))
}

#[cfg(test)]
mod tests {
    use super::super::super::property::Assignment;
    use super::super::super::translate::translate;
    use super::*;

    const MACHINE: Machine = Machine { page: 4096, memory: 16 << 30, tasks: 10_000 };

    fn shown(texts: &[&str], mode: CgroupMode) -> String {
        let assignments: Vec<_> = texts.iter().filter_map(|text| Assignment::parse(text).ok()).collect();
        assert_eq!(assignments.len(), texts.len(), "{texts:?}");
        let settings = translate(&assignments, mode).map(|translated| translated.settings).unwrap_or_default();
        let place = |(file, want): &(&str, Want)| format!("{file} {want:?}");
        let line = |expectation: Expectation| {
            let places: Vec<_> = expectation.places.iter().map(place).collect();
            format!("{}: {}", expectation.controller.unwrap_or("bpf"), places.join(" | "))
        };
        expectations(&settings, mode, &MACHINE).into_iter().map(line).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn on_cgroup_v2() {
        let table: &[(&[&str], &str)] = &[
            (&["CPUShares=600"], "cpu: cpu.weight Weight(58)"),
            (&["CPUWeight=idle"], "cpu: cpu.idle Exactly(1)"),
            (&["CPUWeight="], ""),
            (&["CPUQuota=20%"], "cpu: cpu.max Quota(20000, 100000)"),
            (&["CPUQuota=0.5%"], "cpu: cpu.max Quota(1000, 200000)"),
            (&["CPUQuota=0.1%"], "cpu: cpu.max Quota(1000, 1000000)"),
            (&["CPUQuota=150%", "CPUQuotaPeriodSec=10ms"], "cpu: cpu.max Quota(15000, 10000)"),
            (&["CPUQuotaPeriodSec=10ms"], ""),
            (&["MemoryMax=1000001"], "memory: memory.max Most(999424)"),
            (&["MemoryMax=50%"], "memory: memory.max Share(8589934592)"),
            (&["MemoryMax=infinity"], "memory: memory.max Most(18446744073709551615)"),
            (&["MemorySwapMax=0"], "memory: memory.swap.max Most(0)"),
            (&["MemoryLow=8192"], "memory: memory.low Least(8192)"),
            (&["TasksMax=7"], "pids: pids.max Most(7)"),
            (&["TasksMax=10%"], "pids: pids.max ShareOfTasks(1000)"),
            (&["AllowedCPUs=0-1,5"], "cpuset: cpuset.cpus Cpus(CpuSet([0, 1, 5]))"),
            (&["IOWeight=50"], "io: io.weight Weight(50) | io.bfq.weight Weight(50)"),
            (&["IOWeight=1000"], "io: io.weight Weight(1000) | io.bfq.weight Weight(181)"),
            (
                &["IOReadBandwidthMax=/dev/vda 1M"],
                "io: io.max Device { path: \"/dev/vda\", key: \"rbps\", number: 1000000 }",
            ),
            (&["IPAddressDeny=any"], "bpf:  Programs([0, 1])"),
            (&["SocketBindDeny=any"], "bpf:  Programs([8, 9])"),
            (&["DevicePolicy=closed"], "bpf:  Programs([6])"),
            (&["DevicePolicy=auto"], ""),
            (&["MemoryAccounting=yes"], "memory: memory.current Exists"),
            (&["KillMode=mixed", "StartupCPUWeight=10", "ManagedOOMSwap=kill"], ""),
        ];
        for (texts, want) in table {
            assert_eq!(shown(texts, CgroupMode::Unified), *want, "{texts:?}");
        }
    }

    #[test]
    fn on_cgroup_v1() {
        let table: &[(&[&str], &str)] = &[
            (&["CPUShares=600"], "cpu: cpu.shares Weight(600)"),
            (&["CPUWeight=58"], "cpu: cpu.shares Weight(593)"),
            (&["CPUQuota=20%"], "cpu: cpu.cfs_quota_us Quota(20000, 100000)"),
            (&["MemoryLimit=500M"], "memory: memory.limit_in_bytes Most(524288000)"),
            (&["TasksMax=7"], "pids: pids.max Most(7)"),
            // Seen on 252: IOWeight=50 becomes 113.
            (&["IOWeight=50"], "blkio: blkio.weight Weight(250) | blkio.bfq.weight Weight(113)"),
            (&["DevicePolicy=strict"], "devices: devices.list SomeDevices"),
            (&["IPAddressDeny=any"], "bpf:  Programs([0, 1])"),
        ];
        for (texts, want) in table {
            assert_eq!(shown(texts, CgroupMode::Hybrid), *want, "{texts:?}");
        }
    }
}
