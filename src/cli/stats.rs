//! `sandbox stats`.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::text;
use crate::error::Result;
use crate::living::{self, Managers, Sandbox};
use crate::systemd::{CgroupMode, Usage};

const AFTER_HELP: &str = "\
JSON: a list of objects, one list a line with --follow; each has name, unit,
cpu_percent (of one CPU, since the look before), cpu_usec (since the start),
memory_bytes and tasks; null where its cgroups do not count it.";

/// Between two looks where the first is only there for the second.
const SHORT: Duration = Duration::from_millis(250);

// Flags of `sandbox stats`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Look again and again
    #[arg(long, short = 'f')]
    follow: bool,
    /// Seconds between two looks, with --follow
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "follow", value_parser = clap::value_parser!(u16).range(1..))]
    interval: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only these: names or units [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    unit: String,
    cpu_percent: Option<f64>,
    #[serde(flatten)]
    usage: Usage,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let mode = CgroupMode::read()?;
    let interval = Duration::from_secs(u64::from(arguments.interval));
    let mut before = look(&arguments.names, mode)?.1;
    let mut wait = SHORT;
    loop {
        std::thread::sleep(wait);
        let (rows, now) = look(&arguments.names, mode)?;
        let rows: Vec<Row> = rows.into_iter().map(|row| with_percent(row, &before, &now)).collect();
        if show(&rows, arguments).is_err() || !arguments.follow {
            return Ok(0);
        }
        (before, wait) = (now, interval);
    }
}

/// CPU time of each unit, and when it was read.
type Sample = HashMap<String, (u64, Instant)>;

fn look(names: &[String], mode: CgroupMode) -> Result<(Vec<Row>, Sample)> {
    let all = if names.is_empty() {
        living::all(&mut Managers::default())?
    } else {
        names.iter().map(|name| living::find(name)).collect::<Result<_>>()?
    };
    let row = |sandbox: &Sandbox| Row {
        name: sandbox.found.record.name.clone(),
        unit: sandbox.unit.name.clone(),
        cpu_percent: None,
        usage: sandbox.usage(mode),
    };
    let rows: Vec<Row> = all.iter().map(row).collect();
    let sample = rows.iter().filter_map(|row| Some((row.unit.clone(), (row.usage.cpu_usec?, Instant::now()))));
    let sample = sample.collect();
    Ok((rows, sample))
}

fn with_percent(mut row: Row, before: &Sample, now: &Sample) -> Row {
    if let (Some((used_before, then)), Some((used, now))) = (before.get(&row.unit), now.get(&row.unit)) {
        let used = Duration::from_micros(used.saturating_sub(*used_before)).as_secs_f64();
        let passed = now.duration_since(*then).as_secs_f64();
        row.cpu_percent = (passed > 0.0).then(|| (used / passed * 1000.0).round() / 10.0);
    }
    row
}

fn show(rows: &[Row], arguments: &Arguments) -> Result<()> {
    let mut out = std::io::stdout();
    if arguments.json {
        let rows = serde_json::to_value(rows)?;
        let text = if arguments.follow { format!("{rows}\n") } else { format!("{rows:#}\n") };
        out.write_all(text.as_bytes())?;
        return Ok(out.flush()?);
    }
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![["NAME", "UNIT", "CPU%", "CPU", "MEMORY", "TASKS"].map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.unit.clone(),
            dash(row.cpu_percent.map(|percent| format!("{percent:.1}"))),
            dash(row.usage.cpu_usec.map(text::cpu_time)),
            dash(row.usage.memory_bytes.map(text::bytes)),
            dash(row.usage.tasks.map(|tasks| tasks.to_string())),
        ]
    }));
    // Home, and what was below.
    let clear = if arguments.follow && out.is_terminal() { "\x1b[H\x1b[J" } else { "" };
    out.write_all(format!("{clear}{}", text::columns(&lines)).as_bytes())?;
    Ok(out.flush()?)
}
