//! `sandbox ps`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::text;
use crate::error::Result;
use crate::living::{self, Managers, Sandbox};
use crate::part::network::publish::Publish;
use crate::systemd::{CgroupMode, DownService, Usage};

const AFTER_HELP: &str = "\
Only what systemd confirms is listed: a sandbox whose unit is gone is gone, one
without a unit (--manager none) is never here.
Root sees everybody's, others see their own.

JSON: a list of objects with
  name     of the sandbox
  unit     its unit
  slice    the slice that the unit is in
  manager  null for the system's service manager, else the user's ID
  root     what its root is made of
  pid      of its first process, on the host; null when there is none
  state    running, paused, starting, activating, deactivating or failed
  started  seconds since 1970, as the clock was then; null when it does not run
  command  the command and its arguments
  ports    published ports: address (null: all), host_port, port (inside), count (of
           ports from these on), protocol
  memory_bytes, cpu_usec, tasks
           what it uses now; null where its cgroups do not count it
  result, status
           of one that -a shows: systemd's word for what became of it, and the exit
           status of its main process; else null";

// Flags of `sandbox ps`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Services that have failed or wait for their restart, too
    #[arg(long, short = 'a')]
    all: bool,
    /// Names of units only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    unit: String,
    slice: String,
    manager: Option<u32>,
    root: String,
    pid: Option<i32>,
    state: String,
    started: Option<f64>,
    #[serde(skip)]
    age: Option<f64>,
    command: Vec<String>,
    ports: Vec<Publish>,
    #[serde(flatten)]
    usage: Usage,
    result: Option<String>,
    status: Option<i32>,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let mode = CgroupMode::read()?;
    let mut managers = Managers::default();
    let living = living::all(&mut managers)?;
    // Without a manager there is nothing to sweep.
    if let Err(error) = living::sweep(&mut managers, &living) {
        log::debug!("{error:#}");
    }
    let mut rows: Vec<Row> = living.iter().map(|sandbox| living_row(sandbox, mode)).collect();
    if arguments.all {
        rows.extend(living::down(&mut managers, &living)?.into_iter().map(down_row));
    }
    let text = match (arguments.json, arguments.quiet) {
        (true, _) => format!("{:#}\n", serde_json::to_value(&rows)?),
        (false, true) => rows.iter().map(|row| format!("{}\n", row.unit)).collect(),
        (false, false) => table(&rows),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}

fn living_row(sandbox: &Sandbox, mode: CgroupMode) -> Row {
    let record = &sandbox.found.record;
    Row {
        name: record.name.clone(),
        unit: record.unit.clone(),
        slice: record.slice.clone(),
        manager: record.manager,
        root: record.root.clone(),
        pid: Some(record.leader.pid),
        state: sandbox.state().to_owned(),
        started: Some(Duration::from_micros(record.started).as_secs_f64()),
        age: Some(record.leader.age()),
        command: record.command.clone(),
        ports: record.ports.clone(),
        usage: sandbox.usage(mode),
        result: None,
        status: None,
    }
}

fn down_row(down: DownService) -> Row {
    Row {
        name: down.name().to_owned(),
        unit: down.unit.name,
        slice: down.slice,
        manager: living::own_manager(),
        root: String::new(),
        pid: None,
        state: down.unit.state,
        started: None,
        age: None,
        command: vec![down.unit.description],
        ports: Vec::new(),
        usage: Usage::default(),
        result: Some(down.result),
        status: Some(down.status),
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["NAME", "UNIT", "SLICE", "ROOT", "PID", "STATE", "AGE", "MEMORY", "CPU", "TASKS", "PORTS", "COMMAND"];
    let dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let state = match (&row.result, row.status) {
            (Some(result), Some(status)) => format!("{} ({result} {status})", row.state),
            _ => row.state.clone(),
        };
        lines.push(vec![
            row.name.clone(),
            row.unit.clone(),
            row.slice.clone(),
            dash(Some(row.root.clone())),
            dash(row.pid.map(|pid| pid.to_string())),
            state,
            dash(row.age.map(text::age)),
            dash(row.usage.memory_bytes.map(text::bytes)),
            dash(row.usage.cpu_usec.map(text::cpu_time)),
            dash(row.usage.tasks.map(|tasks| tasks.to_string())),
            dash(Some(row.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))),
            text::shortened(&row.command.join(" "), 40),
        ]);
    }
    text::columns(&lines)
}
