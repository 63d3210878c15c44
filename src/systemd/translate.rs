//! From what the user asked to what is sent: old names become those in force, and what cannot be in force is refused.
//!
//! systemd ≥ 258 takes CPUShares= and MemoryLimit= over the bus, answers with success and sets no limit (seen on 262);
//! cgroup v1 cannot do most of what v2 can. So nothing is left for systemd to translate.

use serde::Serialize;

use crate::error::{Result, fault};
use crate::value::CpuSet;

use super::cgroup::CgroupMode;
use super::property::{Assignment, Reach, Setting, Value, reach};

/// What goes to systemd, and the lines that `--dry-run` shows about it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Translated {
    /// In the order asked.
    pub(crate) settings: Vec<Setting>,
    /// One line for each setting that is sent under another name: `CPUShares=600 is sent as CPUWeight=58`.
    pub(crate) notes: Vec<String>,
}

/// Decides what is sent for `assignments` on a machine whose cgroups are laid out as `mode` says.
///
/// # Errors
/// When a property cannot be in force there, or when two properties ask for different things.
pub(crate) fn translate(assignments: &[Assignment], mode: CgroupMode) -> Result<Translated> {
    let mut translated = Translated::default();
    for Assignment(asked) in assignments {
        check_reach(asked, mode)?;
        let setting = rename(asked, mode);
        if setting.name != asked.name {
            translated.notes.push(format!("{} is sent as {}={}", asked.asked, setting.name, shown(&setting.value)));
        }
        add(&mut translated.settings, setting)?;
    }
    Ok(translated)
}

/// Refuses what this machine's cgroups cannot do.
fn check_reach(asked: &Setting, mode: CgroupMode) -> Result<()> {
    let idle = asked.value == Value::U64(0) && asked.property.ends_with("CPUWeight");
    let acts_on_oom = asked.property == "OOMPolicy" && asked.value != Value::Text("continue".into());
    let missing = match (reach(asked.property), mode) {
        (_, CgroupMode::Hybrid | CgroupMode::Legacy) if acts_on_oom => {
            "systemd hears of what the kernel kills for memory on cgroup v2 only"
        }
        (Reach::V2, CgroupMode::Hybrid | CgroupMode::Legacy) => "cgroup v1 cannot do this",
        (Reach::Bpf, CgroupMode::Legacy) => "this takes a BPF program on a cgroup v2 tree, and none is mounted",
        (Reach::Any, CgroupMode::Hybrid | CgroupMode::Legacy) if idle => "cgroup v1 knows no idle weight",
        _ => return Ok(()),
    };
    let hint = "boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2";
    Err(fault(format!("{} would not be in force: {missing}", asked.asked)).hint(hint).into())
}

/// A number as the other cgroup version counts it.
type Formula = fn(u64) -> u64;

/// systemd's `cgroup_cpu_shares_to_weight`.
fn shares_to_weight(shares: u64) -> u64 {
    (shares.saturating_mul(100) / 1024).clamp(1, 10_000)
}

/// systemd's `cgroup_cpu_weight_to_shares`.
fn weight_to_shares(weight: u64) -> u64 {
    (weight.saturating_mul(1024) / 100).clamp(2, 262_144)
}

/// systemd's `cgroup_weight_blkio_to_io`.
fn blkio_to_io(weight: u64) -> u64 {
    (weight.saturating_mul(100) / 500).clamp(1, 10_000)
}

/// systemd's `cgroup_weight_io_to_blkio`.
fn io_to_blkio(weight: u64) -> u64 {
    (weight.saturating_mul(500) / 100).clamp(10, 1_000)
}

fn same(number: u64) -> u64 {
    number
}

/// What is sent under another name on cgroup v2.
const TO_V2: &[(&str, &str, Formula)] = &[
    ("CPUShares", "CPUWeight", shares_to_weight),
    ("StartupCPUShares", "StartupCPUWeight", shares_to_weight),
    ("MemoryLimit", "MemoryMax", same),
    ("MemoryLimitScale", "MemoryMaxScale", same),
    ("BlockIOAccounting", "IOAccounting", same),
    ("BlockIOWeight", "IOWeight", blkio_to_io),
    ("StartupBlockIOWeight", "StartupIOWeight", blkio_to_io),
    ("BlockIODeviceWeight", "IODeviceWeight", blkio_to_io),
    ("BlockIOReadBandwidth", "IOReadBandwidthMax", same),
    ("BlockIOWriteBandwidth", "IOWriteBandwidthMax", same),
];

/// What is sent under another name on v1. One family of names only: systemd ignores BlockIO… beside IO….
/// MemoryMax= is what systemd writes to memory.limit_in_bytes before MemoryLimit= (seen on 252).
const TO_V1: &[(&str, &str, Formula)] = &[
    ("CPUWeight", "CPUShares", weight_to_shares),
    ("StartupCPUWeight", "StartupCPUShares", weight_to_shares),
    ("MemoryLimit", "MemoryMax", same),
    ("MemoryLimitScale", "MemoryMaxScale", same),
    ("IOAccounting", "BlockIOAccounting", same),
    ("IOWeight", "BlockIOWeight", io_to_blkio),
    ("StartupIOWeight", "StartupBlockIOWeight", io_to_blkio),
    ("IODeviceWeight", "BlockIODeviceWeight", io_to_blkio),
    ("IOReadBandwidthMax", "BlockIOReadBandwidth", same),
    ("IOWriteBandwidthMax", "BlockIOWriteBandwidth", same),
];

/// The name of a property on cgroup v2; its own where that is no other.
pub(super) fn modern(name: &str) -> &str {
    TO_V2.iter().find(|(old, ..)| *old == name).map_or(name, |(_, new, _)| new)
}

fn rename(asked: &Setting, mode: CgroupMode) -> Setting {
    let names = if mode == CgroupMode::Unified { TO_V2 } else { TO_V1 };
    let Some((_, name, formula)) = names.iter().find(|(old, ..)| *old == asked.name) else {
        return asked.clone();
    };
    // u64::MAX is no weight at all ("back to the default"), whatever the formula.
    let convert = |number: &u64| if *number == u64::MAX { u64::MAX } else { formula(*number) };
    let value = match &asked.value {
        Value::U64(number) => Value::U64(convert(number)),
        Value::Devices(devices) => {
            Value::Devices(devices.iter().map(|(path, number)| (path.clone(), convert(number))).collect())
        }
        other => other.clone(),
    };
    Setting { name: (*name).to_owned(), value, ..asked.clone() }
}

/// Names on the bus that say the same thing in two ways: an amount, and a share of the machine.
fn subject(name: &str) -> &str {
    name.strip_suffix("Scale").unwrap_or(name)
}

/// Adds a setting; the same thing asked twice and differently is an error, asked twice and alike is once.
fn add(settings: &mut Vec<Setting>, setting: Setting) -> Result<()> {
    let about_the_same = settings.iter().filter(|other| subject(&other.name) == subject(&setting.name));
    for other in about_the_same {
        if other.name == setting.name && other.value == setting.value {
            return Ok(());
        }
        if !setting.value.is_list() || same_device(&other.value, &setting.value) {
            let message = format!("{} and {} contradict each other", other.asked, setting.asked);
            return Err(fault(message).hint("give one of them").into());
        }
    }
    settings.push(setting);
    Ok(())
}

/// Says whether two items of a list speak of one device.
fn same_device(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Devices(a), Value::Devices(b)) => a.iter().any(|(path, _)| b.iter().any(|(other, _)| path == other)),
        (Value::Pairs(a), Value::Pairs(b)) => {
            a.iter().any(|(path, _)| path.starts_with('/') && b.iter().any(|(other, _)| path == other))
        }
        _ => false,
    }
}

/// A value as the user would write it, for the notes.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::U64(u64::MAX) => "infinity".to_owned(),
        Value::U64(number) => number.to_string(),
        Value::U32(share) => format!("{:.2}%", f64::from(*share) * 100.0 / f64::from(u32::MAX)),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::I32(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Texts(texts) => texts.join(" "),
        Value::Bytes(mask) => CpuSet::from_mask(mask).to_string(),
        Value::Devices(devices) => {
            devices.iter().map(|(path, number)| format!("{path} {number}")).collect::<Vec<_>>().join(", ")
        }
        Value::Pairs(pairs) => pairs.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>().join(", "),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(texts: &[&str], mode: CgroupMode) -> Result<Translated> {
        let assignments: Result<Vec<_>> = texts.iter().map(|text| Assignment::parse(text)).collect();
        translate(&assignments?, mode)
    }

    fn sent(texts: &[&str], mode: CgroupMode) -> String {
        match translated(texts, mode) {
            Ok(translated) => {
                let one = |setting: &Setting| format!("{}={}", setting.name, shown(&setting.value));
                translated.settings.iter().map(one).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("error: {error:#}"),
        }
    }

    #[test]
    fn old_names_become_those_in_force() {
        use CgroupMode::{Hybrid, Legacy, Unified};
        let table: &[(&[&str], CgroupMode, &str)] = &[
            (&["CPUShares=600"], Unified, "CPUWeight=58"),
            (&["CPUShares=2"], Unified, "CPUWeight=1"),
            (&["CPUShares=262144"], Unified, "CPUWeight=10000"),
            (&["CPUShares="], Unified, "CPUWeight=infinity"),
            (&["StartupCPUShares=1024"], Unified, "StartupCPUWeight=100"),
            (&["MemoryLimit=1K0"], Unified, "error: MemoryLimit=1K0: `1K0` is not a size"),
            (&["MemoryLimit=1M"], Unified, "MemoryMax=1048576"),
            (&["MemoryLimit=50%"], Unified, "MemoryMaxScale=50.00%"),
            (&["BlockIOWeight=50"], Unified, "IOWeight=10"),
            (&["BlockIODeviceWeight=/dev/vda 500"], Unified, "IODeviceWeight=/dev/vda 100"),
            (&["BlockIOReadBandwidth=/dev/vda 5M"], Unified, "IOReadBandwidthMax=/dev/vda 5000000"),
            (&["CPUShares=600", "MemoryMax=1M"], Hybrid, "CPUShares=600 MemoryMax=1048576"),
            (&["CPUWeight=58"], Hybrid, "CPUShares=593"),
            (&["CPUWeight=58"], Unified, "CPUWeight=58"),
            (&["IOWeight=50"], Legacy, "BlockIOWeight=250"),
            (&["IOWriteBandwidthMax=/dev/vda 5M"], Legacy, "BlockIOWriteBandwidth=/dev/vda 5000000"),
            (
                &["CPUQuota=20%", "TasksMax=9", "DevicePolicy=closed"],
                Legacy,
                "CPUQuotaPerSecUSec=200000 TasksMax=9 DevicePolicy=closed",
            ),
            (&["AllowedCPUs=0"], Hybrid, "error: AllowedCPUs=0 would not be in force: cgroup v1 cannot do this"),
            (
                &["OOMPolicy=kill"],
                Hybrid,
                "error: OOMPolicy=kill would not be in force: systemd hears of what the kernel kills for memory on cgroup v2 only",
            ),
            (&["MemoryHigh=1M"], Legacy, "error: MemoryHigh=1M would not be in force: cgroup v1 cannot do this"),
            (
                &["CPUWeight=idle"],
                Hybrid,
                "error: CPUWeight=idle would not be in force: cgroup v1 knows no idle weight",
            ),
            (&["KillMode=mixed"], Legacy, "KillMode=mixed"),
        ];
        for (texts, mode, want) in table {
            let found = sent(texts, *mode);
            assert!(
                found == *want || (want.starts_with("error") && found.starts_with(want)),
                "{texts:?} {mode:?}: {found}"
            );
        }
        let legacy = sent(&["IPAddressDeny=any"], Legacy);
        assert!(legacy.starts_with("error: IPAddressDeny=any would not be in force"), "{legacy}");
    }

    #[test]
    fn notes_say_what_is_sent() {
        let notes = translated(&["CPUShares=600", "MemoryMax=1M"], CgroupMode::Unified).map(|t| t.notes).ok();
        assert_eq!(notes, Some(vec!["CPUShares=600 is sent as CPUWeight=58".to_owned()]));
        let flag =
            Assignment::parse("CPUShares=512").map(|a| a.asked_as("--cpu-shares 512")).into_iter().collect::<Vec<_>>();
        let notes = translate(&flag, CgroupMode::Unified).map(|t| t.notes).ok();
        assert_eq!(notes, Some(vec!["--cpu-shares 512 is sent as CPUWeight=50".to_owned()]));
    }

    #[test]
    fn asked_twice() {
        let table: &[(&[&str], &str)] = &[
            (&["MemoryMax=1M", "MemoryMax=1048576"], "MemoryMax=1048576"),
            (&["MemoryMax=1M", "MemoryMax=2M"], "error: MemoryMax=1M and MemoryMax=2M contradict each other"),
            (&["MemoryMax=1M", "MemoryMax=50%"], "error: MemoryMax=1M and MemoryMax=50% contradict each other"),
            (&["MemoryLimit=1M", "MemoryMax=2M"], "error: MemoryLimit=1M and MemoryMax=2M contradict each other"),
            (&["CPUShares=1024", "CPUWeight=100"], "CPUWeight=100"),
            (&["CPUShares=600", "CPUWeight=100"], "error: CPUShares=600 and CPUWeight=100 contradict each other"),
            (
                &["IODeviceWeight=/dev/a 1", "IODeviceWeight=/dev/b 2"],
                "IODeviceWeight=/dev/a 1 IODeviceWeight=/dev/b 2",
            ),
            (
                &["IODeviceWeight=/dev/a 1", "IODeviceWeight=/dev/a 2"],
                "error: IODeviceWeight=/dev/a 1 and IODeviceWeight=/dev/a 2 contradict each other",
            ),
        ];
        for (texts, want) in table {
            assert_eq!(sent(texts, CgroupMode::Unified), *want, "{texts:?}");
        }
    }
}
