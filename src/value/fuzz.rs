//! Any text as each kind of value.

use super::*;

/// What is read as a value is in its range, and is the same value when it is written as a number or as the kernel writes it.
pub(crate) fn values(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for read in [size, size_decimal] {
        if let Ok(amount) = read(text) {
            assert_eq!(read(&amount.to_string()).ok(), Some(amount), "size {text:?}");
        }
    }
    if let Ok(span) = time_span(text) {
        let again = if span == INFINITY { "infinity".to_owned() } else { format!("{span}us") };
        assert_eq!(time_span(&again).ok(), Some(span), "time {text:?}");
    }
    shares(text);
    if let Ok(set) = CpuSet::parse(text) {
        assert_eq!(CpuSet::from_mask(&set.mask()), set, "CPUs {text:?}");
        assert_eq!(CpuSet::parse(&set.to_string()).ok().as_ref(), Some(&set), "CPUs {text:?}");
        assert!(set.numbers().is_sorted() && set.mask().len() <= 1024, "CPUs {text:?}");
    }
    if let Ok(number) = signal(text) {
        assert!((1..=64).contains(&number), "signal {text:?}");
        assert_eq!(signal(&number.to_string()).ok(), Some(number), "signal {text:?}");
    }
    if let Ok(limit) = Rlimit::parse(text) {
        let written = limit.to_string();
        let again = written.strip_prefix("Limit").map(Rlimit::parse);
        assert_eq!(again.and_then(Result::ok), Some(limit), "limit {text:?} written {written:?}");
    }
}

fn shares(text: &str) {
    if let Ok(share) = permyriad(text) {
        assert!(share <= 10_000, "share {text:?}");
        let written = format!("{}.{:02}%", share / 100, share % 100);
        assert_eq!(permyriad(&written).ok(), Some(share), "share {text:?}");
        // To the nearest hundredth of a percent it comes back from the form that the bus has.
        let of_million = unscale(scale(share), 1_000_000);
        assert!(of_million.abs_diff(u64::from(share) * 100) <= 1, "share {text:?}: {of_million}");
    }
    for read in [cpu_quota, cpus] {
        assert!(read(text).map_or(true, |quota| quota >= QUOTA_MIN && quota != INFINITY), "quota {text:?}");
    }
}
