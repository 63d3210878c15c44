use proptest::prelude::*;

use super::*;

type Table<'a, T> = &'a [(&'a str, Option<T>)];

fn check<T: PartialEq + fmt::Debug>(parse: fn(&str) -> Result<T>, table: Table<'_, T>) {
    for (text, want) in table {
        let found = parse(text);
        assert_eq!(found.as_ref().ok(), want.as_ref(), "{text}");
        if let Err(error) = found {
            assert!(error.to_string().contains(text), "the error names the value: {error}");
        }
    }
}

#[test]
fn sizes() {
    check(
        size,
        &[
            ("1024", Some(1024)),
            ("500M", Some(524_288_000)),
            ("512m", Some(536_870_912)),
            ("1.5G", Some(1_610_612_736)),
            ("1Gi", Some(1 << 30)),
            ("1GiB", Some(1 << 30)),
            ("10kB", Some(10_240)),
            ("10 K", Some(10_240)),
            ("7B", Some(7)),
            ("0", Some(0)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("18446744073709551615", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("", None),
            ("K", None),
            ("1.2.3", None),
            ("500Q", None),
            ("5i", None),
            ("infinity", None),
            ("0x10", None),
        ],
    );
    check(size_decimal, &[("1M", Some(1_000_000)), ("1Mi", Some(1 << 20)), ("1.5k", Some(1_500))]);
}

#[test]
fn shares_of_the_machine() {
    check(
        |text| SizeOrPercent::parse(text, size),
        &[
            ("infinity", Some(SizeOrPercent::Absolute(INFINITY))),
            ("1K", Some(SizeOrPercent::Absolute(1024))),
            ("50%", Some(SizeOrPercent::Permyriad(5_000))),
            ("12.34%", Some(SizeOrPercent::Permyriad(1_234))),
            ("5‰", Some(SizeOrPercent::Permyriad(50))),
            ("100%", Some(SizeOrPercent::Permyriad(10_000))),
            ("101%", None),
            ("12.345%", None),
            ("%", None),
        ],
    );
    assert_eq!(scale(5_000), 2_147_483_648);
    assert_eq!(scale(10_000), u32::MAX);
    assert_eq!(unscale(u32::MAX, 1 << 34), 1 << 34);
}

#[test]
fn cpu_time() {
    check(
        cpu_quota,
        &[
            ("20%", Some(200_000)),
            ("150%", Some(1_500_000)),
            ("0.5%", Some(5_000)),
            ("12.345%", Some(123_450)),
            ("33.3333%", Some(333_333)),
            ("33.33333%", None),
            ("0.1%", Some(1_000)),
            ("0.09%", None),
            ("0%", None),
            ("20", None),
            ("-5%", None),
        ],
    );
    check(
        cpus,
        &[
            ("1.5", Some(1_500_000)),
            ("0.001", Some(1_000)),
            (".5", Some(500_000)),
            (".", None),
            ("2", Some(2_000_000)),
            ("0", None),
            ("x", None),
            ("1.5c", None),
        ],
    );
}

#[test]
fn time_spans() {
    check(
        time_span,
        &[
            ("5", Some(5_000_000)),
            ("100ms", Some(100_000)),
            ("1min 30s", Some(90_000_000)),
            ("1min30s", Some(90_000_000)),
            ("2h", Some(7_200_000_000)),
            ("1.5h", Some(5_400_000_000)),
            ("7us", Some(7)),
            ("7µs", Some(7)),
            ("1M", Some(2_629_800_000_000)),
            ("0", Some(0)),
            ("infinity", Some(INFINITY)),
            ("", None),
            ("5 parsecs", None),
            ("-1s", None),
            ("999999999999y", None),
        ],
    );
}

#[test]
fn cpu_lists() {
    let shown = |text: &str| CpuSet::parse(text).map(|set| set.to_string()).ok();
    let table: Table<'_, &str> = &[
        ("0-3,5", Some("0-3,5")),
        ("5 0-3", Some("0-3,5")),
        ("0,1,2", Some("0-2")),
        ("8191", Some("8191")),
        ("8192", None),
        ("3-1", None),
        ("", None),
        ("a", None),
        ("1-", None),
    ];
    for (text, want) in table {
        assert_eq!(shown(text).as_deref(), *want, "{text}");
    }
    let mask = CpuSet::parse("0-3,9").map(|set| set.mask()).ok();
    assert_eq!(mask, Some(vec![0b1111, 0b10]));
}

#[test]
fn booleans_and_numbers() {
    check(boolean, &[("yes", Some(true)), ("ON", Some(true)), ("0", Some(false)), ("maybe", None), ("", None)]);
    check(number, &[("0", Some(0)), ("42", Some(42)), ("+1", None), ("-1", None), ("", None)]);
    check(|text| number_in(text, 1, 10), &[("10", Some(10)), ("0", None), ("11", None)]);
}

#[test]
fn signals() {
    check(
        signal,
        &[
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigterm", Some(15)),
            ("9", Some(9)),
            ("SIGUSR1", Some(10)),
            ("SYS", Some(31)),
            ("RTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMIN+31", None),
            ("0", None),
            ("65", None),
            ("NOPE", None),
            ("", None),
        ],
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = (size(&text), time_span(&text), CpuSet::parse(&text), signal(&text), cpu_quota(&text), Rlimit::parse(&text));
    }

    #[test]
    fn cpu_masks_come_back(cpus in proptest::collection::btree_set(0u32..300, 1..40)) {
        let set = CpuSet(cpus.into_iter().collect());
        prop_assert_eq!(&CpuSet::from_mask(&set.mask()), &set);
        prop_assert_eq!(CpuSet::parse(&set.to_string()).ok(), Some(set));
    }
}
