//! `sandbox inspect`.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::enter;
use crate::error::{Result, line};
use crate::living::{self, Sandbox};
use crate::part::network::publish::Publish;
use crate::state::{Decisions, Record};
use crate::systemd::{self, Assignment, Bus, CgroupMode, Changes, KeptSetting, Limit, Setting, Subject, Usage};

/// How long it is waited for what the launcher writes down of a sandbox that has just begun.
const DECIDED: Duration = Duration::from_secs(2);

const AFTER_HELP: &str = "\
JSON: one object with
  name, unit, slice, manager, root, state, command, ports
           as in `sandbox ps --json`
  cgroup   the unit's path below /sys/fs/cgroup, in systemd's own hierarchy
  started  µs since 1970
  launcher, leader, payload
           PIDs on the host: of `sandbox run`, of the first process inside, of
           the command
  arguments
           the command line it was started with
  limits   a list: asked (as it was given), limits (what the kernel shows now:
           property, file, in_force, effective), error (why one is not in force)
  usage    memory_bytes, cpu_usec, tasks
  given    a list of every setting: key, value, from (command line, FILE:LINE,
           image ID, kept root NAME)
  plan     every decision, as `sandbox run --dry-run --json` prints it; null
           where its launcher has not written it down, as is given then";

// Flags of `sandbox inspect`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The sandbox: its name, its unit, or sandbox-NAME- and the beginning of its ID
    #[arg(value_name = "NAME")]
    name: String,
}

/// Everything there is to say.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a str,
    unit: &'a str,
    slice: &'a str,
    manager: Option<u32>,
    root: &'a str,
    state: &'a str,
    cgroup: String,
    started: u64,
    launcher: i32,
    leader: i32,
    payload: Option<i32>,
    command: &'a [String],
    arguments: &'a [String],
    ports: &'a [Publish],
    limits: Vec<Asked>,
    usage: Usage,
    given: &'a serde_json::Value,
    plan: &'a serde_json::Value,
}

/// One setting, and what the kernel makes of it now.
#[derive(Debug, Serialize)]
struct Asked {
    asked: String,
    limits: Vec<Limit>,
    error: Option<String>,
    /// It is not in force because `set-property` set it otherwise.
    #[serde(skip)]
    changed: bool,
}

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    let sandbox = living::find(&arguments.name)?;
    let record = &sandbox.found.record;
    let mode = CgroupMode::read()?;
    let mut bus = sandbox.manager()?;
    let asked_for = settings(&mut bus, record, mode);
    if record.leader.refusal().is_some() {
        log::warn!("{}; so what is set is known, but not whether it is in force", enter::unseen(record));
    }
    let decisions = decisions(&sandbox);
    // Another user's may be anything.
    let plan = decisions.as_ref().and_then(|decisions| serde_json::from_str(decisions.plan.get()).ok());
    let plan: serde_json::Value = plan.unwrap_or_default();
    let report = Report {
        name: &record.name,
        unit: &record.unit,
        slice: &record.slice,
        manager: record.manager,
        root: &record.root,
        state: sandbox.state(),
        cgroup: format!("/{}", sandbox.cgroup.display()),
        started: record.started,
        launcher: record.launcher.pid,
        leader: record.leader.pid,
        payload: enter::payload(record).map(|payload| payload.pid),
        command: &record.command,
        arguments: &record.arguments,
        ports: &record.ports,
        limits: asked_for.into_iter().filter_map(|setting| asked(&mut bus, &sandbox, setting, mode)).collect(),
        usage: sandbox.usage(mode),
        given: plan.get("given").unwrap_or(&serde_json::Value::Null),
        plan: &plan,
    };
    let text = if arguments.json {
        format!("{:#}\n", serde_json::to_value(&report)?)
    } else {
        shown(&report, decisions.as_ref())
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}

/// What was decided. Its launcher writes that down a moment after the start; one that is stopped or paused before then does not.
fn decisions(sandbox: &Sandbox) -> Option<Decisions> {
    let end = Instant::now() + DECIDED;
    loop {
        let decisions = sandbox.found.decisions();
        if decisions.is_some() || Instant::now() >= end || !sandbox.found.record.launcher.lives() {
            return decisions;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The settings that the unit was made with, then what `set-property` added.
fn settings(bus: &mut Bus, record: &Record, mode: CgroupMode) -> Vec<Setting> {
    let mut settings: Vec<Setting> = record.settings.iter().filter_map(KeptSetting::setting).collect();
    for (name, path) in bus.runtime_settings(&record.unit) {
        if settings.iter().any(|setting| setting.is_called(&name)) {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let assignments = text.lines().filter(|line| line.starts_with(&name)).map(Assignment::parse);
        let Ok(assignments) = assignments.collect::<Result<Vec<_>>>() else { continue };
        settings.extend(systemd::translate(&assignments, mode).map_or_else(|_| Vec::new(), |found| found.settings));
    }
    settings
}

fn asked(bus: &mut Bus, sandbox: &Sandbox, setting: Setting, mode: CgroupMode) -> Option<Asked> {
    let record = &sandbox.found.record;
    let settings = [setting];
    let asked = settings.iter().map(|setting| setting.asked.clone()).collect();
    if record.leader.refusal().is_some() {
        return Some(Asked { asked, limits: Vec::new(), error: None, changed: false });
    }
    let pid = record.leader.pid()?;
    let subject = Subject {
        pid,
        unit: &record.unit,
        settings: &settings,
        mode,
        user: record.manager.is_some(),
        changes: Changes::Differ,
    };
    Some(match systemd::verify(bus, &subject) {
        Ok(report) => Asked { asked, limits: report.limits, error: None, changed: false },
        Err(error) => {
            let runtime = bus.runtime_settings(&record.unit);
            let changed = settings.iter().any(|setting| runtime.iter().any(|(name, _)| setting.is_called(name)));
            Asked { asked, limits: Vec::new(), error: Some(line(&error)), changed }
        }
    })
}

fn shown(report: &Report<'_>, decisions: Option<&Decisions>) -> String {
    let mut rows: Vec<(&str, String)> = vec![
        ("state", report.state.to_owned()),
        ("cgroup", report.cgroup.clone()),
        ("launcher", report.launcher.to_string()),
        ("leader", report.leader.to_string()),
        ("payload", report.payload.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
        ("started as", report.arguments.join(" ")),
    ];
    for asked in &report.limits {
        let key = if asked.changed { "changed" } else { "not in force" };
        rows.extend(asked.error.iter().map(|error| (key, error.clone())));
        rows.extend(asked.limits.iter().map(|limit| {
            let effective = limit.effective.as_ref().map_or_else(String::new, |found| format!("; {found} holds"));
            ("in force", format!("{}: {} {}{effective}", asked.asked, limit.file, limit.in_force))
        }));
        if asked.error.is_none() && asked.limits.is_empty() {
            rows.push(("set", asked.asked.clone()));
        }
    }
    let given = report.given.as_array().into_iter().flatten();
    rows.extend(given.map(|given| {
        let text = |field: &str| given.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
        ("given", format!("{} {} ({})", text("key"), text("value"), text("from")))
    }));
    let now: String = rows.iter().map(|(key, value)| format!("{key:<13} {}\n", crate::error::plain(value))).collect();
    match decisions {
        Some(decisions) => {
            let decided = decisions.decided.lines().map(|line| format!("{}\n", crate::error::plain(line)));
            format!("{}{now}", decided.collect::<String>())
        }
        None => format!("{:<13} not written down yet: its launcher is stopped, or still starts it\n{now}", "decided"),
    }
}
