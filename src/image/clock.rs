//! Dates as image documents write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// `2026-11-24T04:20:22Z` (RFC 3339, whole seconds).
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = date(seconds / DAY);
    let rest = seconds % DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The time that an RFC 3339 text names, to the second; offsets from UTC are minded.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let field = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (field(0..4)?, field(5..7)?, field(8..10)?);
    let (hour, minute, second) = (field(11..13)?, field(14..16)?, field(17..19)?);
    if !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let at = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset =
        |zone: &str| Some(zone.get(1..3)?.parse::<u64>().ok()? * 3600 + zone.get(4..6)?.parse::<u64>().ok()? * 60);
    let at = match zone.bytes().next()? {
        b'Z' | b'z' => at,
        b'+' => at.checked_sub(offset(zone)?)?,
        b'-' => at + offset(zone)?,
        _ => return None,
    };
    UNIX_EPOCH.checked_add(Duration::from_secs(at))
}

/// How long ago, in the largest unit that fits, as Docker's lists show it.
pub(crate) fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).map_or(0, |passed| passed.as_secs());
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..DAY => (seconds / 3600, "hour"),
        _ if seconds < 14 * DAY => (seconds / DAY, "day"),
        _ if seconds < 60 * DAY => (seconds / (7 * DAY), "week"),
        _ if seconds < 730 * DAY => (seconds / (30 * DAY), "month"),
        _ => (seconds / (365 * DAY), "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_length(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970 of the first of January.
fn year_start(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

fn days(year: u64, month: u64, day: u64) -> u64 {
    year_start(year) + (1..month).map(|month| month_length(year, month)).sum::<u64>() + day - 1
}

fn date(days: u64) -> (u64, u64, u64) {
    // A guess that is never too late, then at most a step or two.
    let mut year = 1970 + days / 366;
    while year_start(year + 1) <= days {
        year += 1;
    }
    let mut left = days - year_start(year);
    let mut month = 1;
    while left >= month_length(year, month) {
        left -= month_length(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_there_and_back() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_583_020_799, "2020-02-29T23:59:59Z"),
            (1_795_494_022, "2026-11-24T04:20:22Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time), text);
            assert_eq!(parse(text), Some(time));
        }
        let noon = parse("2020-06-03T12:00:00Z");
        assert_eq!(parse("2020-06-03T19:46:00.123456789+07:46"), noon);
        assert_eq!(parse("2020-06-03T11:30:00-00:30"), noon);
        for bad in [
            "",
            "2020-06-03",
            "2020-13-03T00:00:00Z",
            "2020-06-03T19:46:00",
            "0001-01-01T00:00:00Z",
            "2020-06-03T19:46:00é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ages() {
        for (seconds, text) in [
            (1, "1 second ago"),
            (119, "1 minute ago"),
            (DAY, "1 day ago"),
            (20 * DAY, "2 weeks ago"),
            (100 * DAY, "3 months ago"),
            (800 * DAY, "2 years ago"),
        ] {
            assert_eq!(ago(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
