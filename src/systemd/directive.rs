//! A property as a line of a unit file. The words of the bus and of unit files differ: `CPUQuotaPerSecUSec` is `CPUQuota=20%` there.

use crate::error::{Result, fault};

use super::cgroup::CgroupMode;
use super::own::only_in_a_unit_file;
use super::property::{Asked, Value, of_every_unit};
use super::translate::{shown, translate};

/// One line of a unit file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Directive {
    /// It is in `[Unit]`, not in `[Service]`.
    pub(crate) of_every_unit: bool,
    /// What is left of the `=`.
    pub(crate) name: String,
    /// What is right of it, as a unit file wants it.
    pub(crate) value: String,
}

/// What our units say themselves; another answer would break them.
const OURS: &[&str] = &["Type", "ExecStart"];

impl Directive {
    /// The directive for a `-p NAME=VALUE` on a machine whose cgroups are laid out as `mode` says; `None` for what `sandbox run`
    /// does itself.
    ///
    /// # Errors
    /// When it cannot be in force there, or not in a unit file.
    pub(crate) fn of(text: &str, mode: CgroupMode) -> Result<Option<Directive>> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if value.chars().any(char::is_control) || value.ends_with('\\') {
            return Err(
                fault(format!("{text}: a line of a unit file has no control character and no \\ at its end")).into()
            );
        }
        if OURS.contains(&name) {
            return Err(fault(format!("{text}: the unit's {name}= is `sandbox unit`'s own"))
                .hint("leave it out")
                .into());
        }
        if name == "CPUQuota"
            && value.split_once('.').is_some_and(|(_, decimals)| decimals.trim_end_matches('%').len() > 2)
        {
            return Err(fault(format!("{text}: a unit file keeps hundredths of a percent"))
                .hint("a quota that is one: CPUQuota=12.34%, cpus = 0.1234, or a cpu_quota that cpu_period divides so")
                .into());
        }
        if only_in_a_unit_file(text) {
            let name = name.to_owned();
            return Ok(Some(Directive { of_every_unit: false, name, value: value.to_owned() }));
        }
        let Asked::Unit(assignment) = Asked::parse(text)? else { return Ok(None) };
        let mut translated = translate(std::slice::from_ref(&assignment), mode)?;
        let Some(sent) = translated.settings.pop() else { return Ok(None) };
        let asked = &assignment.0;
        // Only what goes out under another name and counts otherwise has another text.
        let renamed = sent.name != asked.name;
        let name = if renamed { sent.name.trim_end_matches("Scale") } else { name };
        let value = match &sent.value {
            Value::U64(_) | Value::Devices(_) if renamed && sent.value != asked.value => shown(&sent.value),
            Value::U64(_) if value == "unlimited" => "infinity".to_owned(),
            Value::U64(_) | Value::Devices(_) if !is_time(name) && !is_systemds(value) => shown(&sent.value),
            _ if is_percentage(&asked.value, &asked.name) => value.to_owned(),
            _ => value.replace('%', "%%"),
        };
        Ok(Some(Directive { of_every_unit: of_every_unit(asked.property), name: name.to_owned(), value }))
    }
}

/// Times are read by both alike.
fn is_time(name: &str) -> bool {
    name.ends_with("Sec") || name.ends_with("USec")
}

/// Whether systemd reads what stands at the end as the number that we read: of sizes it knows `K` to `E` only, no `m`, `kB` or `MiB`.
fn is_systemds(value: &str) -> bool {
    let number = value.rsplit_once(' ').map_or(value, |(_, number)| number);
    let digits = number.trim_end_matches(['K', 'M', 'G', 'T', 'P', 'E']);
    // Words (`idle`) are systemd's own.
    let is_number = number.starts_with(|first: char| first.is_ascii_digit());
    !is_number
        || number.len() - digits.len() <= 1 && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'%')
}

/// A value where systemd reads `%` as it is; elsewhere it begins a specifier, systemd.unit(5).
fn is_percentage(value: &Value, name: &str) -> bool {
    matches!(value, Value::U32(_)) || name.starts_with("CPUQuota")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_becomes_the_line_that_means_it() {
        let table = [
            ("CPUShares=600", CgroupMode::Unified, "CPUWeight=58"),
            ("CPUShares=600", CgroupMode::Hybrid, "CPUShares=600"),
            ("MemoryLimit=1G", CgroupMode::Unified, "MemoryMax=1G"),
            ("MemoryLimit=50%", CgroupMode::Unified, "MemoryMax=50%"),
            ("MemoryMax=infinity", CgroupMode::Unified, "MemoryMax=infinity"),
            ("CPUQuota=20%", CgroupMode::Unified, "CPUQuota=20%"),
            ("MemoryMax=512m", CgroupMode::Unified, "MemoryMax=536870912"),
            ("MemoryMax=1.5G", CgroupMode::Unified, "MemoryMax=1.5G"),
            ("MemoryHigh=64MiB", CgroupMode::Unified, "MemoryHigh=67108864"),
            ("TasksMax=unlimited", CgroupMode::Unified, "TasksMax=infinity"),
            ("IOReadBandwidthMax=/dev/vda 10m", CgroupMode::Unified, "IOReadBandwidthMax=/dev/vda 10000000"),
            ("IOReadBandwidthMax=/dev/vda 10M", CgroupMode::Unified, "IOReadBandwidthMax=/dev/vda 10M"),
            ("CPUQuota=", CgroupMode::Unified, "CPUQuota="),
            ("CPUWeight=idle", CgroupMode::Unified, "CPUWeight=idle"),
            ("TimeoutStopSec=unlimited", CgroupMode::Unified, "TimeoutStopSec=infinity"),
            ("TimeoutStopSec=1min 30s", CgroupMode::Unified, "TimeoutStopSec=1min 30s"),
            ("AllowedCPUs=0-3,5", CgroupMode::Unified, "AllowedCPUs=0-3,5"),
            ("BlockIODeviceWeight=/dev/vda 500", CgroupMode::Unified, "IODeviceWeight=/dev/vda 100"),
            ("IOWeight=100", CgroupMode::Hybrid, "BlockIOWeight=500"),
            ("DeviceAllow=/dev/null rw", CgroupMode::Unified, "DeviceAllow=/dev/null rw"),
            ("IPAddressDeny=any", CgroupMode::Unified, "IPAddressDeny=any"),
            ("Description=100% of it", CgroupMode::Unified, "[Unit] Description=100%% of it"),
            ("After=network.target", CgroupMode::Unified, "[Unit] After=network.target"),
            ("ConditionPathExists=!/x", CgroupMode::Unified, "[Unit] ConditionPathExists=!/x"),
            ("Restart=on-failure", CgroupMode::Unified, "Restart=on-failure"),
            ("StateDirectory=%p", CgroupMode::Unified, "StateDirectory=%p"),
            ("Nice=5", CgroupMode::Unified, ""),
            ("User=www", CgroupMode::Unified, ""),
        ];
        for (text, mode, want) in table {
            let line = Directive::of(text, mode).unwrap().map(|directive| {
                let section = if directive.of_every_unit { "[Unit] " } else { "" };
                format!("{section}{}={}", directive.name, directive.value)
            });
            assert_eq!(line.unwrap_or_default(), want, "{text}");
        }
    }

    #[test]
    fn no_value_can_write_a_second_line() {
        for text in
            ["Description=a\nExecStart=/bin/sh", "After=a \\", "ExecStart=/bin/sh", "Restart=a\nUser=b", "Type=oneshot"]
        {
            assert!(Directive::of(text, CgroupMode::Unified).is_err(), "{text:?}");
        }
        assert!(Directive::of("AllowedCPUs=1", CgroupMode::Hybrid).is_err());
    }
}
