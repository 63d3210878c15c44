//! Values as users write them for systemd and Docker: sizes, percentages, time spans, weights, CPU lists, signals, limits.
//!
//! Pure parsers. Each error names the value and says what is accepted; who asked for it (a property, a flag) is put in
//! front by the caller. Where the two worlds differ, a number means what systemd means by it: `512M` is 512 × 1024².

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::error::{Result, fault};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod rlimit;
pub(crate) use rlimit::Rlimit;

/// No limit, as systemd and `RLIM_INFINITY` write it.
pub(crate) const INFINITY: u64 = u64::MAX;

/// What 100 % is in a `…Scale` property (systemd's `UINT32_SCALE_FROM_PERMYRIAD`).
const SCALE_MAX: u64 = u32::MAX as u64;

/// The highest CPU or memory node number of any kernel configuration (`NR_CPUS` is at most 8192).
const CPU_MAX: u32 = 8191;

const SEC: u64 = 1_000_000;

/// Makes the error of this module: the value, what it is not, what is accepted.
fn wrong(text: &str, what: &str, accepted: &str) -> anyhow::Error {
    fault(format!("`{text}` is not {what}: accepted are {accepted}")).into()
}

/// A number with decimals, kept exact: `1.50` is 150 / 10².
#[derive(Clone, Copy)]
struct Decimal {
    digits: u128,
    decimals: u32,
}

impl Decimal {
    /// Reads a decimal number off the front of `text`; the rest is returned. At most 18 decimals.
    fn take(text: &str) -> Option<(Decimal, &str)> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > 18 || whole.len() > 20 {
            return None;
        }
        let decimals = u32::try_from(fraction.len()).ok()?;
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some((Decimal { digits, decimals }, rest))
    }

    /// This number times `factor`, rounded down; `None` when it does not fit below [`INFINITY`].
    fn times(self, factor: u64) -> Option<u64> {
        let product = self.digits.checked_mul(u128::from(factor))? / 10u128.pow(self.decimals);
        u64::try_from(product).ok().filter(|n| *n != INFINITY)
    }

    /// This number times `factor`, `None` too when that is no whole number.
    fn times_exactly(self, factor: u64) -> Option<u64> {
        let product = self.digits.checked_mul(u128::from(factor))?;
        (product % 10u128.pow(self.decimals) == 0).then(|| self.times(factor))?
    }
}

/// Parses an unsigned whole number; unlike `str::parse` it takes no leading `+`.
pub(crate) fn number(text: &str) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(n) if digits => Ok(n),
        _ => Err(wrong(text, "a number", "whole numbers from 0")),
    }
}

/// Parses a number that must lie in `min..=max`.
pub(crate) fn number_in(text: &str, min: u64, max: u64) -> Result<u64> {
    match number(text) {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(wrong(text, "in range", &format!("whole numbers from {min} to {max}"))),
    }
}

/// Parses a boolean as systemd does (`parse_boolean`), without regard to case.
pub(crate) fn boolean(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Ok(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Ok(false),
        _ => Err(wrong(text, "a boolean", "yes, no, true, false, on, off, 1 and 0")),
    }
}

/// Parses a size in bytes with base 1024, as `MemoryMax=` and `docker --memory` read it: `500M`, `1.5G`, `512m`, `1Gi`, `10kB`.
pub(crate) fn size(text: &str) -> Result<u64> {
    sized(text, 1024)
}

/// Parses a size in bytes with base 1000, as systemd reads bandwidths (`IOReadBandwidthMax=`); `Ki`, `Mi` … are still 1024.
pub(crate) fn size_decimal(text: &str) -> Result<u64> {
    sized(text, 1000)
}

fn sized(text: &str, base: u64) -> Result<u64> {
    let bytes = || {
        let (decimal, unit) = Decimal::take(text.trim())?;
        let unit = unit.trim_start().to_ascii_lowercase();
        let mut letters = unit.chars();
        let power = match letters.next() {
            None | Some('b') => return letters.as_str().is_empty().then(|| decimal.times(1))?,
            Some(letter) => u32::try_from("kmgtpe".find(letter)?).ok()? + 1,
        };
        let base = match letters.as_str() {
            "" | "b" => base,
            "i" | "ib" => 1024,
            _ => return None,
        };
        decimal.times(base.checked_pow(power)?)
    };
    bytes().ok_or_else(|| wrong(text, "a size", "bytes with an optional K, M, G, T, P or E (1024, 500M, 1.5G)"))
}

/// A limit that systemd also takes relative to the machine: `500M`, `50%`, `infinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum SizeOrPercent {
    /// Bytes, or tasks; [`INFINITY`] is no limit.
    Absolute(u64),
    /// A share of the machine's memory (or task limit) in hundredths of a percent, 0 to 10000.
    Permyriad(u32),
}

impl SizeOrPercent {
    /// Parses with `absolute` for what is neither `infinity` nor a percentage.
    pub(crate) fn parse(text: &str, absolute: fn(&str) -> Result<u64>) -> Result<SizeOrPercent> {
        if is_infinity(text) {
            return Ok(SizeOrPercent::Absolute(INFINITY));
        }
        if is_percentage(text) {
            return Ok(SizeOrPercent::Permyriad(permyriad(text)?));
        }
        match absolute(text) {
            Ok(n) => Ok(SizeOrPercent::Absolute(n)),
            Err(error) => Err(fault(format!("{error}, a percentage (50%) or `infinity`")).into()),
        }
    }
}

/// Says whether `text` means no limit: systemd's `infinity`, `ulimit`'s `unlimited`.
pub(crate) fn is_infinity(text: &str) -> bool {
    matches!(text, "infinity" | "unlimited")
}

fn is_percentage(text: &str) -> bool {
    text.ends_with(['%', '‰', '‱'])
}

/// Parses `50%`, `12.34%`, `5‰` or `5‱` into hundredths of a percent, without an upper bound (a CPU quota may be `150%`).
pub(crate) fn permyriad_unbounded(text: &str) -> Result<u64> {
    let factors = [('%', 100), ('‰', 10), ('‱', 1)];
    let parse = || {
        let factor = factors.iter().find(|(sign, _)| text.ends_with(*sign))?.1;
        let (decimal, rest) = Decimal::take(text.trim_end_matches(['%', '‰', '‱']))?;
        rest.is_empty().then(|| decimal.times_exactly(factor))?
    };
    parse()
        .ok_or_else(|| wrong(text, "a percentage", "numbers with at most two decimals and a percent sign (20%, 12.5%)"))
}

/// Parses a percentage of 0 to 100 into hundredths of a percent.
pub(crate) fn permyriad(text: &str) -> Result<u32> {
    match permyriad_unbounded(text).map(u32::try_from) {
        Ok(Ok(n)) if n <= 10_000 => Ok(n),
        _ => Err(wrong(text, "a share", "0% to 100% with at most two decimals")),
    }
}

/// Hundredths of a percent as systemd's bus takes them: scaled so that 2³² − 1 is 100 %, rounded to nearest.
pub(crate) fn scale(permyriad: u32) -> u32 {
    let scaled = (u64::from(permyriad.min(10_000)) * SCALE_MAX + 5_000) / 10_000;
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

/// The share of `total` that a scaled value stands for, rounded down as systemd's `physical_memory_scale` does.
pub(crate) fn unscale(scale: u32, total: u64) -> u64 {
    u64::try_from(u128::from(total) * u128::from(scale) / u128::from(SCALE_MAX)).unwrap_or(u64::MAX)
}

/// The lowest quota that a kernel can keep: 1 ms in its longest period of 1 s, in µs per second.
const QUOTA_MIN: u64 = 1_000;

/// Parses `CPUQuota=` (`20%`, `150%`, `0.5%`) into microseconds of CPU time per second. The bus takes each of them, so four decimals of
/// a percentage count (`12.345%`); a unit file has two.
pub(crate) fn cpu_quota(text: &str) -> Result<u64> {
    let fine = || {
        let (percent, rest) = Decimal::take(text)?;
        (rest == "%").then(|| percent.times_exactly(SEC / 100))?
    };
    match permyriad_unbounded(text).ok().map_or_else(fine, |n| n.checked_mul(SEC / 10_000)) {
        Some(quota) if quota >= QUOTA_MIN => Ok(quota),
        _ => Err(wrong(text, "a CPU quota", "percentages from 0.1% (100% is one CPU, 150% one and a half)")),
    }
}

/// Parses Docker's `--cpus` (`1.5`) into microseconds of CPU time per second.
pub(crate) fn cpus(text: &str) -> Result<u64> {
    // Docker's own examples have `.5`.
    let whole = if text.starts_with('.') { format!("0{text}") } else { text.to_owned() };
    let quota = Decimal::take(&whole).filter(|(_, rest)| rest.is_empty()).and_then(|(n, _)| n.times(SEC));
    match quota {
        Some(quota) if quota >= QUOTA_MIN => Ok(quota),
        _ => Err(wrong(text, "a number of CPUs", "decimal numbers from 0.001 (1.5)")),
    }
}

/// Units of systemd.time(7) in microseconds; longer names first, since the first that fits the front wins.
const TIME_UNITS: &[(&str, u64)] = &[
    ("seconds", SEC),
    ("second", SEC),
    ("sec", SEC),
    ("s", SEC),
    ("minutes", 60 * SEC),
    ("minute", 60 * SEC),
    ("min", 60 * SEC),
    ("months", 2_629_800 * SEC),
    ("month", 2_629_800 * SEC),
    ("M", 2_629_800 * SEC),
    ("msec", 1_000),
    ("ms", 1_000),
    ("m", 60 * SEC),
    ("hours", 3_600 * SEC),
    ("hour", 3_600 * SEC),
    ("hr", 3_600 * SEC),
    ("h", 3_600 * SEC),
    ("days", 86_400 * SEC),
    ("day", 86_400 * SEC),
    ("d", 86_400 * SEC),
    ("weeks", 604_800 * SEC),
    ("week", 604_800 * SEC),
    ("w", 604_800 * SEC),
    ("years", 31_557_600 * SEC),
    ("year", 31_557_600 * SEC),
    ("y", 31_557_600 * SEC),
    ("usec", 1),
    ("us", 1),
    ("μs", 1),
    ("µs", 1),
];

/// Parses a time span of systemd.time(7) into microseconds: `5` (seconds), `100ms`, `1min 30s`, `1.5h`, `infinity`.
pub(crate) fn time_span(text: &str) -> Result<u64> {
    time_span_in(text, SEC)
}

/// Like [`time_span`], with a unit of one's own for a bare number (`LimitRTTIME=` counts microseconds).
pub(crate) fn time_span_in(text: &str, default_unit: u64) -> Result<u64> {
    if is_infinity(text) {
        return Ok(INFINITY);
    }
    let parse = || {
        let mut rest = text.trim();
        let mut total = 0u64;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let (decimal, after) = Decimal::take(rest)?;
            let after = after.trim_start();
            let unit = TIME_UNITS.iter().find(|(name, _)| after.starts_with(name));
            let (name, factor) = unit.copied().unwrap_or(("", default_unit));
            // 292,271 years: a number of µs beyond that is one that neither systemd nor this can read.
            total = total.checked_add(decimal.times(factor)?).filter(|n| *n <= i64::MAX.unsigned_abs())?;
            rest = after.get(name.len()..)?.trim_start();
        }
        Some(total)
    };
    parse().ok_or_else(|| {
        wrong(
            text,
            "a time span",
            "seconds, or numbers with us, ms, s, min, h, d, w, M, y (100ms, 1min 30s), or `infinity`",
        )
    })
}

/// A set of CPU or memory node numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct CpuSet(Vec<u32>);

impl CpuSet {
    /// Parses `0-3,5` as Docker writes it and `0-3 5` as systemd also does.
    pub(crate) fn parse(text: &str) -> Result<CpuSet> {
        let parse = || {
            let mut cpus = BTreeSet::new();
            for word in text.split([',', ' ', '\t']).filter(|word| !word.is_empty()) {
                let (from, to) = word.split_once('-').unwrap_or((word, word));
                let (from, to) = (number(from).ok()?, number(to).ok()?);
                let (from, to) = (u32::try_from(from).ok()?, u32::try_from(to).ok()?);
                if from > to || to > CPU_MAX {
                    return None;
                }
                cpus.extend(from..=to);
            }
            (!cpus.is_empty()).then(|| CpuSet(cpus.into_iter().collect()))
        };
        parse().ok_or_else(|| wrong(text, "a CPU list", "numbers and ranges (0-3,5), each at most 8191"))
    }

    /// The numbers, ascending.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.0
    }

    /// The set as systemd's bus takes it: bit `n % 8` of byte `n / 8`.
    pub(crate) fn mask(&self) -> Vec<u8> {
        let mut mask = Vec::new();
        for cpu in &self.0 {
            let byte = usize::try_from(cpu / 8).unwrap_or(usize::MAX);
            if mask.len() <= byte {
                mask.resize(byte + 1, 0);
            }
            if let Some(bits) = mask.get_mut(byte) {
                *bits |= 1u8 << (cpu % 8);
            }
        }
        mask
    }

    /// Reads a mask back; the opposite of [`CpuSet::mask`].
    pub(crate) fn from_mask(mask: &[u8]) -> CpuSet {
        let bits = (0u32..).zip(mask.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)));
        CpuSet(bits.filter(|(_, bit)| *bit == 1).map(|(cpu, _)| cpu).collect())
    }
}

/// As the kernel writes it: `0-3,5`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

/// The signals of Linux by name, those that differ between architectures as on x86, ARM, RISC-V, PowerPC and s390.
const SIGNALS: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The first and last real-time signal that a program may use (glibc keeps 32 and 33; systemd counts the same way).
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Parses a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
pub(crate) fn signal(text: &str) -> Result<i32> {
    let parse = || {
        if let Ok(n) = number(text) {
            return i32::try_from(n).ok();
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
            return i32::try_from(index + 1).ok();
        }
        let offset = |rest: &str, sign: char| match rest {
            "" => Some(0),
            _ => i32::try_from(number(rest.strip_prefix(sign)?).ok()?).ok(),
        };
        match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => SIGRTMIN.checked_add(offset(rest, '+')?).filter(|n| *n <= SIGRTMAX),
            (_, Some(rest)) => SIGRTMAX.checked_sub(offset(rest, '-')?).filter(|n| *n >= SIGRTMIN),
            _ if name == "POLL" => signal("IO").ok(),
            _ => None,
        }
    };
    match parse() {
        Some(signal) if (1..=SIGRTMAX).contains(&signal) => Ok(signal),
        _ => Err(wrong(text, "a signal", "names (TERM, SIGUSR1, RTMIN+3) and numbers from 1 to 64")),
    }
}

#[cfg(test)]
mod tests;
