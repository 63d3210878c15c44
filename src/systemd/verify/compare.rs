//! What the kernel says against what it must say.

use crate::value::{CpuSet, INFINITY};

use super::expect::{PERIOD, Want};

/// How a value found compares with the value asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what was asked.
    InForce,
    /// It allows less than was asked.
    Tighter,
    /// It allows more than was asked, or is not there.
    Looser,
}

use Verdict::{InForce, Looser, Tighter};

/// Compares; `device` is the number of the device that a [`Want::Device`] speaks of, as `8:0`.
/// Returns the part of `text` that was looked at.
pub(super) fn compare(want: &Want, text: &str, device: Option<&str>) -> (Verdict, String) {
    let text = text.trim();
    match want {
        Want::Most(most) => upper(*most, number(text), text),
        Want::Share(most) => share(*most, 1 << 16, number(text), text),
        Want::ShareOfTasks(most) => share(*most, 1, number(text), text),
        Want::Least(least) => lower(*least, number(text), text),
        Want::Exactly(exactly) => {
            let verdict = if number(text) == Some(*exactly) { InForce } else { Looser };
            (verdict, text.to_owned())
        }
        Want::Weight(weight) => {
            // `default 50` in the first line of io.weight, the bare number elsewhere.
            let first = text.lines().next().unwrap_or_default();
            let found = first.strip_prefix("default ").unwrap_or(first);
            upper(*weight, number(found), found)
        }
        Want::Quota(quota, period) => quotas(*quota, *period, text),
        Want::Cpus(cpus) => cpu_lists(cpus, text),
        Want::Device { key, number, .. } => device_line(key, *number, text, device),
        Want::Word(word) => ((if text == word { InForce } else { Looser }), text.to_owned()),
        Want::SomeDevices => {
            let all = text.lines().any(|line| line.trim() == "a *:* rwm");
            (if all { Looser } else { InForce }, if all { "all devices" } else { "a list of devices" }.to_owned())
        }
        Want::Exists => (InForce, "on".to_owned()),
        Want::Programs(_) => (Looser, text.to_owned()),
    }
}

/// A number of the kernel's: `max`, −1 and what v1 writes for no limit (2⁶³ less a page) are [`INFINITY`].
fn number(text: &str) -> Option<u64> {
    match text {
        "max" | "-1" => Some(INFINITY),
        _ => text.parse().ok().map(|number: u64| if number >= 1 << 62 { INFINITY } else { number }),
    }
}

fn upper(want: u64, found: Option<u64>, text: &str) -> (Verdict, String) {
    let verdict = match found {
        Some(found) if found == want => InForce,
        Some(found) if found < want => Tighter,
        _ => Looser,
    };
    (verdict, text.to_owned())
}

/// systemd may see less memory than we do when it runs in a container itself, never more; `slack` is rounding: some pages, or a task.
fn share(want: u64, slack: u64, found: Option<u64>, text: &str) -> (Verdict, String) {
    let verdict = match found {
        Some(found) if found > want.saturating_add(slack) => Looser,
        Some(found) if found < want - want / 50 => Tighter,
        Some(_) => InForce,
        None => Looser,
    };
    (verdict, text.to_owned())
}

/// Of a protection less is looser, and more takes from others: it is what nobody asked for, but no loss.
fn lower(want: u64, found: Option<u64>, text: &str) -> (Verdict, String) {
    let verdict = match found {
        Some(found) if found == want => InForce,
        Some(found) if found > want => Tighter,
        _ => Looser,
    };
    (verdict, text.to_owned())
}

fn quotas(quota: u64, period: u64, text: &str) -> (Verdict, String) {
    let (found, found_period) = text.split_once(' ').unwrap_or((text, ""));
    let verdict = match (number(found), number(found_period)) {
        (Some(found), Some(found_period)) if (found, found_period) == (quota, period) => InForce,
        (Some(INFINITY), _) if quota == INFINITY => InForce,
        // No period was asked, and the unit has one from elsewhere.
        (Some(found), Some(found_period)) if period == PERIOD && same(found, found_period, quota, period) => InForce,
        (Some(found), Some(found_period)) if found != INFINITY && less(found, found_period, quota, period) => Tighter,
        _ => Looser,
    };
    (verdict, text.to_owned())
}

/// Whether two quotas leave the same of a CPU, but for the microsecond that the kernel counts in.
fn same(quota: u64, period: u64, other: u64, other_period: u64) -> bool {
    let (one, two) = (u128::from(quota) * u128::from(other_period), u128::from(other) * u128::from(period));
    quota != INFINITY && other != INFINITY && one.abs_diff(two) <= u128::from(period.max(other_period))
}

/// Compares two quotas by what they leave of a CPU.
fn less(quota: u64, period: u64, other: u64, other_period: u64) -> bool {
    other == INFINITY || u128::from(quota) * u128::from(other_period) < u128::from(other) * u128::from(period)
}

fn cpu_lists(want: &CpuSet, text: &str) -> (Verdict, String) {
    let verdict = match CpuSet::parse(text) {
        Ok(found) if found == *want => InForce,
        Ok(found) if found.numbers().iter().all(|cpu| want.numbers().contains(cpu)) => Tighter,
        _ => Looser,
    };
    (verdict, if text.is_empty() { "nothing".to_owned() } else { text.to_owned() })
}

/// Finds the line of the device. Where the device behind a path could not be told (btrfs and its like), any line with
/// the number will do: only this setting can have put it there.
fn device_line(key: &str, want: u64, text: &str, device: Option<&str>) -> (Verdict, String) {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        let of_device = words.next().is_some_and(|first| device.is_none_or(|device| first == device));
        let mut values = words.filter_map(|word| match key {
            "" => number(word),
            _ => number(word.strip_prefix(key)?.strip_prefix('=')?),
        });
        if of_device { values.next() } else { None }
    };
    let found: Vec<u64> = text.lines().filter(|line| line.contains(':')).filter_map(value).collect();
    let shown = |found: u64| if found == INFINITY { "max".to_owned() } else { found.to_string() };
    match found.as_slice() {
        many if many.contains(&want) => (InForce, shown(want)),
        [] if want == INFINITY => (InForce, "max".to_owned()),
        [] => (Looser, "nothing for it".to_owned()),
        _ if device.is_none() => (Looser, "nothing for it".to_owned()),
        [first, ..] => (if *first < want { Tighter } else { Looser }, shown(*first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Want {
        CpuSet::parse(text).map_or(Want::Exists, Want::Cpus)
    }

    #[test]
    fn as_the_kernel_writes_it() {
        let device = |key, number| Want::Device { path: "/".into(), key, number };
        let io = "253:0 rbps=1000000 wbps=max riops=max wiops=7\n8:0 rbps=5 wbps=max riops=max wiops=max\n";
        let table = [
            (Want::Most(999_424), "999424\n", InForce),
            (Want::Most(999_424), "max\n", Looser),
            (Want::Most(999_424), "4096\n", Tighter),
            (Want::Most(INFINITY), "max\n", InForce),
            (Want::Most(INFINITY), "9223372036854771712\n", InForce),
            (Want::Most(INFINITY), "-1\n", InForce),
            (Want::Most(INFINITY), "4096\n", Tighter),
            (Want::Most(5), "nonsense", Looser),
            (Want::Share(1 << 30), "1073741824\n", InForce),
            (Want::Share(1 << 30), "1073737728\n", InForce),
            (Want::Share(1 << 30), "536870912\n", Tighter),
            (Want::Share(1 << 30), "max\n", Looser),
            (Want::Least(8192), "8192\n", InForce),
            (Want::Least(8192), "0\n", Looser),
            (Want::Weight(58), "58\n", InForce),
            (Want::Weight(50), "default 50\n8:0 10\n", InForce),
            (Want::Weight(50), "default 100\n", Looser),
            (Want::Weight(50), "10\n", Tighter),
            (Want::ShareOfTasks(1927), "1927\n", InForce),
            (Want::ShareOfTasks(1927), "60000\n", Looser),
            (Want::Quota(1_000, 200_000), "1000 200000\n", InForce),
            (Want::Quota(50_000, 100_000), "25000 50000\n", InForce),
            (Want::Quota(33_333, 100_000), "16666 50000\n", InForce),
            (Want::Quota(50_000, 100_000), "25010 50000\n", Looser),
            (Want::Quota(25_000, 50_000), "50000 100000\n", Looser),
            (Want::Quota(20_000, 100_000), "max 100000\n", Looser),
            (Want::Quota(20_000, 100_000), "10000 100000\n", Tighter),
            (Want::Quota(20_000, 100_000), "10000 20000\n", Looser),
            (Want::Quota(INFINITY, 100_000), "max 100000\n", InForce),
            (cpus("0-3,5"), "0-3,5\n", InForce),
            (cpus("0-3"), "0\n", Tighter),
            (cpus("0"), "0-1\n", Looser),
            (cpus("0"), "\n", Looser),
            (device("rbps", 1_000_000), io, InForce),
            (device("rbps", 2_000_000), io, Tighter),
            (device("wiops", 7), io, InForce),
            (device("wbps", 9), io, Looser),
            (device("wbps", INFINITY), io, InForce),
            (device("", 10), "default 100\n253:0 10\n", InForce),
            (device("", 10), "default 100\n8:0 10\n", Looser),
            (Want::SomeDevices, "a *:* rwm\n", Looser),
            (Want::SomeDevices, "c 1:3 rwm\n", InForce),
            (Want::SomeDevices, "", InForce),
            (Want::Word("root".into()), "root\n", InForce),
            (Want::Word("root".into()), "root invalid (Parent is not a partition root)\n", Looser),
            (Want::Exactly(1), "1\n", InForce),
            (Want::Exactly(1), "0\n", Looser),
        ];
        for (want, text, verdict) in table {
            assert_eq!(compare(&want, text, Some("253:0")).0, verdict, "{want:?} {text:?}");
        }
        assert_eq!(compare(&device("rbps", 5), io, None).0, InForce, "any device");
        assert_eq!(compare(&device("rbps", 6), io, None).0, Looser, "another device says nothing");
    }
}
