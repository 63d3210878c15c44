//! Properties and the flags that stand for them.

use anyhow::Context;

use crate::error::{Result, fault};
use crate::layer::{Layer, OomPolicy};
use crate::systemd::{Asked, Assignment, OwnSetting};
use crate::value;

/// How an assignment begins that stands for a device; without a unit, or in one of a user's service manager, which cannot have it
/// in force, the node alone is what gives access.
pub(crate) const DEVICE: &str = "--device ";

/// Every property and limit flag as an assignment, and the settings that we carry out ourselves.
pub(super) fn assignments(layer: &Layer) -> Result<(Vec<Assignment>, Vec<OwnSetting>)> {
    let (mut assignments, mut own) = (Vec::new(), Vec::new());
    for text in &layer.property {
        match Asked::parse(text)? {
            Asked::Unit(assignment) => assignments.push(assignment),
            Asked::Own(setting) => own.push(setting),
        }
    }
    for (asked, property) in flags(layer)? {
        assignments.push(Assignment::parse(&property).with_context(|| asked.clone())?.asked_as(asked));
    }
    Ok((assignments, own))
}

/// Docker's words for no limit at all.
const NO_LIMIT: &[(&str, &[&str])] = &[
    ("--memory", &["0"]),
    ("--cpus", &["0"]),
    ("--cpu-shares", &["0"]),
    ("--cpu-quota", &["0", "-1"]),
    ("--pids-limit", &["0", "-1"]),
];

/// Whether the value of a flag says that there is to be no limit.
pub(crate) fn is_no_limit(flag: &str, value: &str) -> bool {
    NO_LIMIT.iter().any(|(name, words)| *name == flag && words.contains(&value))
}

/// The limit flags: as typed, each with the property it stands for.
///
/// # Errors
/// When two of them say the same thing, or one needs another.
pub(crate) fn flags(layer: &Layer) -> Result<Vec<(String, String)>> {
    let mut list = Vec::new();
    let mut flag = |flag: &str, value: &str, property: String| list.push((format!("{flag} {value}"), property));
    if let Some(memory) = &layer.memory {
        let bytes = if is_no_limit("--memory", memory) { "infinity" } else { memory };
        flag("--memory", memory, format!("MemoryMax={bytes}"));
    }
    if let Some(shares) = &layer.cpu_shares {
        let weight = if is_no_limit("--cpu-shares", shares) { "" } else { shares };
        flag("--cpu-shares", shares, format!("CPUShares={weight}"));
    }
    if let Some(cpus) = &layer.cpuset_cpus {
        flag("--cpuset-cpus", cpus, format!("AllowedCPUs={cpus}"));
    }
    if let Some(pids) = &layer.pids_limit {
        let tasks = if is_no_limit("--pids-limit", pids) { "infinity" } else { pids };
        flag("--pids-limit", pids, format!("TasksMax={tasks}"));
    }
    if let Some(oom) = layer.oom {
        let policy = match oom {
            OomPolicy::Continue => "continue",
            OomPolicy::Stop => "stop",
            OomPolicy::Kill => "kill",
        };
        flag("--oom", policy, format!("OOMPolicy={policy}"));
    }
    for text in &layer.device {
        let device = super::root::device(text)?;
        let property = format!("DeviceAllow={} {}", device.source.display(), device.access);
        list.push((format!("{DEVICE}{}", text.to_string_lossy()), property));
    }
    list.extend(cpu_quota(layer)?);
    list.extend(network(layer)?);
    Ok(list)
}

/// What the unit lets through.
fn network(layer: &Layer) -> Result<Vec<(String, String)>> {
    let denied = |text: &String| text.strip_prefix("IPAddressDeny").is_some_and(|rest| rest.starts_with('='));
    if let Some(allowed) = layer.allow_ip.first()
        && layer.deny_ip.is_empty()
        && !layer.property.iter().any(denied)
    {
        return Err(fault(format!("--allow-ip {allowed} is an exception of --deny-ip, and nothing is denied"))
            .hint("--deny-ip any")
            .into());
    }
    let mut list = Vec::new();
    for (flag, values, property) in [
        ("--allow-ip", &layer.allow_ip, "IPAddressAllow"),
        ("--deny-ip", &layer.deny_ip, "IPAddressDeny"),
        ("--allow-bind", &layer.allow_bind, "SocketBindAllow"),
    ] {
        list.extend(values.iter().map(|value| (format!("{flag} {value}"), format!("{property}={value}"))));
    }
    if let Some(allowed) = layer.allow_bind.first() {
        // What is not allowed is denied.
        list.push((format!("SocketBindDeny=any of --allow-bind {allowed}"), "SocketBindDeny=any".into()));
    }
    Ok(list)
}

/// `--cpus`, or `--cpu-quota` in each `--cpu-period`: the flags as typed, each with the property it stands for.
fn cpu_quota(layer: &Layer) -> Result<Vec<(String, String)>> {
    let (quota, asked) = match (&layer.cpus, &layer.cpu_quota, &layer.cpu_period) {
        (None, None, None) => return Ok(Vec::new()),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(fault("--cpus and --cpu-quota say the same thing in two ways")
                .hint("give only one of them")
                .into());
        }
        (None, None, Some(period)) => {
            return Err(fault(format!("--cpu-period {period} needs --cpu-quota")).into());
        }
        (Some(cpus), None, None) => {
            if is_no_limit("--cpus", cpus) {
                return Ok(vec![(format!("--cpus {cpus}"), "CPUQuota=".into())]);
            }
            let per_second = value::cpus(cpus).with_context(|| format!("--cpus {cpus}"))?;
            (per_second, format!("--cpus {cpus}"))
        }
        (None, Some(quota), period) => {
            let asked = format!("--cpu-quota {quota}");
            if is_no_limit("--cpu-quota", quota) {
                return Ok(vec![(asked, "CPUQuota=".into())]);
            }
            let micros = value::number_in(quota, 1000, 1_000_000_000_000).with_context(|| asked.clone())?;
            let period = period.as_deref().unwrap_or("100000");
            let period = value::number_in(period, 1000, 1_000_000).with_context(|| format!("--cpu-period {period}"))?;
            // systemd rounds down when it writes the quota of a period.
            (micros.saturating_mul(1_000_000).div_ceil(period), asked)
        }
    };
    let mut list = vec![(asked, format!("CPUQuota={}", percent(quota.max(1))))];
    if let Some(period) = &layer.cpu_period {
        list.push((format!("--cpu-period {period}"), format!("CPUQuotaPeriodSec={period}us")));
    }
    Ok(list)
}

/// Microseconds per second as a percentage. Without zeros at its end: systemd before 249 reads `50.00%` in no unit file.
fn percent(quota: u64) -> String {
    let text = format!("{}.{:04}", quota / 10_000, quota % 10_000);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn percentages_are_as_short_as_they_can_be() {
        let texts: Vec<String> = [1, 1_000, 2_500, 10_000, 123_450, 500_000, 1_505_000, 2_000_000].map(percent).into();
        assert_eq!(texts, ["0.0001%", "0.1%", "0.25%", "1%", "12.345%", "50%", "150.5%", "200%"]);
    }
}
