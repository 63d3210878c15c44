//! A plan as `--dry-run` shows it.

use std::fmt::{self, Write};
use std::path::Path;

use crate::layer::Namespace;
use crate::part::rootfs::Operation;

use super::{Plan, UnitKind, UnitPlan, description, quoted};

/// One line: what it is about, and what was decided.
fn row(f: &mut fmt::Formatter<'_>, key: &str, value: &str) -> fmt::Result {
    writeln!(f, "{key:<13} {value}")
}

/// What a file of ours says, its comments left out.
fn one_line(content: &str) -> String {
    let lines: Vec<String> = content.lines().filter(|line| !line.starts_with('#')).map(spaced).collect();
    if lines.is_empty() { "empty".to_owned() } else { lines.join("; ") }
}

fn spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "name", &self.name)?;
        match &self.unit {
            None => row(f, "unit", "none: no limits")?,
            Some(unit) => unit.show(f)?,
        }
        for note in &self.notes {
            row(f, "note", note)?;
        }
        row(f, "namespaces", &self.namespaces.to_string())?;
        row(f, "network", &self.network.to_string())?;
        for publish in self.network.published() {
            row(f, "publish", &publish.to_string())?;
        }
        row(f, "users", &self.users.to_string())?;
        row(f, "hostname", &self.hostname)?;
        self.show_root(f)?;
        self.show_confinement(f)?;
        let mut environment = String::new();
        for (name, value) in &self.process.environment {
            write!(environment, "{}={} ", name.to_string_lossy(), quoted(&value.to_string_lossy()))?;
        }
        row(f, "environment", environment.trim_end())?;
        if self.namespaces.has(Namespace::Pid) {
            let stub = "a process of sandbox's, which reaps and passes signals on";
            row(f, "PID 1", if self.process.as_pid1 { "the command itself" } else { stub })?;
        }
        for (key, value) in self.process.rows() {
            row(f, key, &value)?;
        }
        row(f, "command", &description(&self.process.command))?;
        if let Some(log) = &self.log {
            row(f, "log", &log.to_string())?;
        }
        for warning in &self.warnings {
            row(f, "warning", warning)?;
        }
        Ok(())
    }
}

impl UnitPlan {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manager = if self.user { "user" } else { "system" };
        let own = if matches!(self.kind, UnitKind::Own { .. }) { ", as its main process" } else { "" };
        row(f, "unit", &format!("{} in {} ({manager} manager{own})", self.name, self.slice))?;
        row(f, "description", &self.description)?;
        for setting in &self.settings {
            row(f, "property", &setting.to_string())?;
        }
        match self.stop_signal {
            Some(number) => row(f, "stop signal", &format!("{number}, when systemd stops the service with SIGTERM")),
            None => Ok(()),
        }
    }
}

impl Plan {
    fn show_root(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = || self.root.iter().flat_map(|root| &root.operations);
        for operation in operations().filter(|operation| operation.at().parent() != Some(Path::new("/dev"))) {
            row(f, "root", &operation.to_string())?;
        }
        let devices = operations().filter_map(|operation| operation.at().strip_prefix("/dev/").ok());
        let devices: Vec<String> =
            devices.map(|name| name.display().to_string()).filter(|name| !name.is_empty()).collect();
        for (path, content) in operations().flat_map(Operation::files) {
            row(f, "file", &format!("{}: {}", path.display(), one_line(content)))?;
        }
        if !devices.is_empty() {
            row(f, "devices", &devices.join(" "))?;
        }
        if let Some(root) = &self.root {
            row(f, "writes", &root.writes())?;
        }
        if self.kernel_mounts.hide_pids {
            row(f, "proc", "a user sees the processes of that user only")?;
        }
        if self.kernel_mounts.nesting {
            row(
                f,
                "nesting",
                "namespaces and mounts can be made inside; a /proc made there shows what is masked in the sandbox's",
            )?;
        }
        match &self.procview {
            None if self.root.is_some() => row(f, "procview", "off: /proc tells the machine's memory and CPUs"),
            Some(view) if !view.machines.is_empty() => {
                row(f, "procview", &format!("the machine's on cgroup v1: {}", view.machines.join(", ")))
            }
            _ => Ok(()),
        }
    }

    fn show_confinement(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "capabilities", &self.capabilities.to_string())?;
        if !self.landlock.is_empty() {
            row(f, "landlock", &self.landlock.to_string())?;
        }
        if let Some(label) = &self.label {
            row(f, "label", &label.to_string())?;
        }
        row(f, "seccomp", &self.seccomp.to_string())
    }
}
