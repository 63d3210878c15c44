//! Tables, sizes and times as the commands print them.

use std::time::Duration;

/// Rows in columns as wide as they must be, two blanks apart; the last one is not padded.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            // What others wrote cannot speak to the terminal.
            let cell = crate::error::plain(cell);
            format!("{cell:width$}")
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// `1.5M`, as systemctl writes sizes: base 1024, one digit after the point.
pub(super) fn bytes(number: u64) -> String {
    let mut whole = number;
    let mut tenths = 0;
    let mut unit = "B";
    for next in ["K", "M", "G", "T", "P"] {
        if whole < 1024 {
            break;
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    if unit == "B" { format!("{whole}B") } else { format!("{whole}.{tenths}{unit}") }
}

/// How long ago: the two greatest units that are not zero.
pub(super) fn age(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}min {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}min"),
        _ => format!("{days}d {hours}h"),
    }
}

/// CPU time in seconds.
pub(super) fn cpu_time(usec: u64) -> String {
    format!("{}.{:02}s", usec / 1_000_000, usec / 10_000 % 100)
}

/// At most so many characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        for (number, want) in
            [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (524_288_000, "500.0M"), (u64::MAX, "16383.9P")]
        {
            assert_eq!(bytes(number), want);
        }
        for (seconds, want) in
            [(-1.0, "0s"), (59.9, "59s"), (61.0, "1min 1s"), (7_265.0, "2h 1min"), (90_000.0, "1d 1h")]
        {
            assert_eq!(age(seconds), want);
        }
        assert_eq!((cpu_time(1_234_567), shortened("abcdef", 4)), ("1.23s".to_owned(), "abc…".to_owned()));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A", "B"], ["long", "x\x1b[2Jy"]].map(|row| row.map(str::to_owned).to_vec());
        let text = columns(&rows);
        assert!(text.starts_with("A     B\nlong  x") && !text.contains('\x1b'), "{text:?}");
    }
}
