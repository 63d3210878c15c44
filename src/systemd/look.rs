//! What systemd says of units, several at a time.

use std::path::{Path, PathBuf};

use zbus::wire::OwnedVariant;
use zbus::{OwnedObjectPath, Variant};

use crate::error::Result;

use super::bus::{Bus, interface, object_call, unit_path};
use super::cgroup::{CgroupMode, CgroupPaths, is_of_unit};
use super::property::Value;

/// One unit, as systemd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedUnit {
    /// With its suffix.
    pub(crate) name: String,
    /// Text for humans.
    pub(crate) description: String,
    /// `active`, `activating`, `deactivating`, `failed`, `inactive`.
    pub(crate) state: String,
    /// What that means for its kind: `running`, `auto-restart`, `exited` …
    pub(crate) sub_state: String,
}

/// As the bus carries it: name, description, load, active and sub state, what it follows, object; job number, type and object.
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl From<Row> for ListedUnit {
    fn from((name, description, _, state, sub_state, ..): Row) -> ListedUnit {
        ListedUnit { name, description, state, sub_state }
    }
}

/// A service of `sandbox run` without a sandbox: it has failed, or is between an end and a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DownService {
    /// The unit.
    pub(crate) unit: ListedUnit,
    /// The arguments of its command line.
    pub(crate) arguments: Vec<String>,
    /// systemd's word for what became of it: `exit-code`, `signal`, `timeout`, `watchdog` …
    pub(crate) result: String,
    /// Exit status of its main process; 128+n when signal n ended it.
    pub(crate) status: i32,
    /// The slice it is in.
    pub(crate) slice: String,
}

impl DownService {
    /// Its sandbox's name as far as the unit's tells it: sandbox-NAME-ID.service, sandbox@NAME.service, sandbox-NAME.service, else all
    /// before the suffix.
    pub(crate) fn name(&self) -> &str {
        let stem = self.unit.name.trim_end_matches(".service");
        let Some(name) = stem.strip_prefix("sandbox-").or_else(|| stem.strip_prefix("sandbox@")) else { return stem };
        match name.rsplit_once('-') {
            Some((name, id)) if id.len() == 6 && id.bytes().all(|digit| digit.is_ascii_hexdigit()) => name,
            _ => name,
        }
    }
}

impl Bus {
    /// The states of these units; one that systemd does not know is `inactive`, or left out.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn list(&mut self, names: &[&str]) -> Result<Vec<ListedUnit>> {
        let rows: Vec<Row> =
            self.manager("ListUnitsByNames", &(names,)).map_err(|failure| self.explain("list units", failure))?;
        Ok(rows.into_iter().map(ListedUnit::from).collect())
    }

    /// The cgroup of this unit, below the mount of systemd's own hierarchy, without a leading slash; `None` when it has none, or has none
    /// any more.
    ///
    /// # Errors
    /// When systemd does not answer, or knows no such unit.
    pub(crate) fn control_group(&mut self, unit: &str) -> Result<Option<PathBuf>> {
        Ok(match self.unit_property(unit, interface(unit), "ControlGroup")? {
            Value::Text(path) if !path.is_empty() => Some(PathBuf::from(path.trim_start_matches('/'))),
            _ => None,
        })
    }

    /// How long a stop of this unit may take before systemd kills, in µs.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn timeout_stop_usec(&mut self, unit: &str) -> Result<u64> {
        match self.unit_property(unit, interface(unit), "TimeoutStopUSec")? {
            Value::U64(usec) => Ok(usec),
            _ => Ok(u64::MAX),
        }
    }

    /// Every service whose command is `sandbox run` and that is in one of these states (`failed`, `activating` …).
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn services_in(&mut self, states: &[&str]) -> Result<Vec<DownService>> {
        let rows: Vec<Row> =
            self.manager("ListUnitsFiltered", &(states,)).map_err(|failure| self.explain("list units", failure))?;
        let services = rows.into_iter().map(ListedUnit::from).filter(|unit| unit.name.ends_with(".service"));
        Ok(services.filter_map(|unit| self.down_service(unit)).collect())
    }

    /// Forgets the failed services of `run --detach` that have this sandbox's name and an ID of their own: it is started again.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn forget_failed(&mut self, name: &str) -> Result<()> {
        let pattern = format!("sandbox-{name}-??????.service");
        let rows: Vec<Row> = self
            .manager("ListUnitsByPatterns", &(["failed"].as_slice(), [pattern.as_str()].as_slice()))
            .map_err(|failure| self.explain("list units", failure))?;
        for unit in rows.into_iter().map(ListedUnit::from) {
            let is_it = self.down_service(unit.clone()).is_some_and(|service| service.name() == name);
            if is_it && self.is_transient(&unit.name) {
                // Somebody else may just have done it.
                drop(self.reset_failed(&unit.name));
            }
        }
        Ok(())
    }

    /// Stops the scopes of sandboxes without a name of their user's that have no process, see [`Bus::is_empty_scope`]; but for those in
    /// `known`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn stop_empty_scopes(&mut self, known: &[&str]) -> Result<()> {
        let patterns = ["sandbox-*-??????.scope"];
        let rows: Vec<Row> = self
            .manager("ListUnitsByPatterns", &(["active"].as_slice(), patterns.as_slice()))
            .map_err(|failure| self.explain("list units", failure))?;
        for unit in rows.into_iter().map(ListedUnit::from).filter(|unit| !known.contains(&unit.name.as_str())) {
            if self.is_empty_scope(&unit.name) {
                // It may just have ended by itself.
                drop(self.stop(&unit.name, super::bus::WAIT));
            }
        }
        Ok(())
    }

    /// This service, where its command is `sandbox run` and it is not over; `None` for a name that no unit can have, too.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub(crate) fn service(&mut self, name: &str) -> Result<Option<DownService>> {
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c)) {
            return Ok(None);
        }
        let unit = self.list(&[name])?.into_iter().find(|unit| unit.name == name && unit.state != "inactive");
        Ok(unit.and_then(|unit| self.down_service(unit)))
    }

    fn down_service(&mut self, unit: ListedUnit) -> Option<DownService> {
        let call = object_call("", "org.freedesktop.DBus.Properties", "Get");
        let path = unit_path(&unit.name);
        let call = super::wire::Call { path: &path, ..call };
        let found: OwnedVariant = self.call(&call, &("org.freedesktop.systemd1.Service", "ExecStart")).ok()?;
        let arguments = sandbox_run(&found)?;
        let mut text = |interface: &str, name: &str| match self.unit_property(&unit.name, interface, name) {
            Ok(Value::Text(text)) => text,
            _ => String::new(),
        };
        let (result, slice) = (text("Service", "Result"), text("Service", "Slice"));
        let mut number = |name: &str| match self.unit_property(&unit.name, "Service", name) {
            Ok(Value::I32(status)) => status,
            _ => 0,
        };
        let by_signal = matches!(number("ExecMainCode"), libc::CLD_KILLED | libc::CLD_DUMPED);
        let status = number("ExecMainStatus") + if by_signal { 128 } else { 0 };
        Some(DownService { unit, arguments, result, status, slice })
    }
}

/// The arguments of `ExecStart=…/sandbox run …`: an array of structures, whose first members are the program and all words.
fn sandbox_run(found: &Variant<'_>) -> Option<Vec<String>> {
    let Variant::Array(commands) = found else { return None };
    let first = commands.iter().next()?;
    let Variant::Structure(command) = first else { return None };
    let [Variant::Str(program), words, ..] = command.fields() else { return None };
    let words: Vec<String> = words.try_clone().ok()?.try_into().ok()?;
    let is_ours = Path::new(program.as_str()).file_name().is_some_and(|name| name == "sandbox");
    (is_ours && words.get(1).is_some_and(|word| word == "run")).then_some(words)
}

/// What a unit uses now; `None` where its cgroup does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Usage {
    /// Bytes of memory, page cache included.
    pub(crate) memory_bytes: Option<u64>,
    /// CPU time since the start, in µs.
    pub(crate) cpu_usec: Option<u64>,
    /// Processes and threads.
    pub(crate) tasks: Option<u64>,
}

impl Usage {
    /// Reads it from the cgroups of a process in the unit; where that cannot be looked at, from `cgroup`, the unit's in systemd's own
    /// hierarchy, which on cgroup v2 has all there is.
    pub(crate) fn read(pid: i32, cgroup: &Path, unit: &str, mode: CgroupMode) -> Usage {
        let paths = CgroupPaths::of(&pid.to_string()).unwrap_or_else(|_| CgroupPaths::of_v2(cgroup));
        let directory = |controller: &str| -> Option<PathBuf> {
            let path = paths.path(mode, Some(controller))?;
            let unit = path.ancestors().find(|part| is_of_unit(part, unit))?;
            Some(Path::new("/sys/fs/cgroup").join(mode.hierarchy(Some(controller))).join(unit))
        };
        let text = |controller: &str, file: &str| std::fs::read_to_string(directory(controller)?.join(file)).ok();
        let number = |controller: &str, file: &str| text(controller, file)?.trim().parse::<u64>().ok();
        let tasks = number("pids", "pids.current");
        if mode == CgroupMode::Unified {
            let cpu = text("cpu", "cpu.stat");
            let cpu = cpu.as_ref().and_then(|cpu| cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")));
            let cpu_usec = cpu.and_then(|number| number.parse().ok());
            return Usage { memory_bytes: number("memory", "memory.current"), cpu_usec, tasks };
        }
        let memory_bytes = number("memory", "memory.usage_in_bytes");
        Usage { memory_bytes, cpu_usec: number("cpuacct", "cpuacct.usage").map(|ns| ns / 1000), tasks }
    }
}

/// Moves a process into the cgroups of another one, in every hierarchy: what `exec` starts belongs to the unit. systemd itself does
/// so only for units that are delegated.
///
/// # Errors
/// With the directory and the kernel's reason.
pub(crate) fn join_cgroups(pid: i32, of: i32, mode: CgroupMode) -> Result<()> {
    use anyhow::Context;
    let text = std::fs::read_to_string(format!("/proc/{of}/cgroup")).context("read the sandbox's cgroups")?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let hierarchy = match (mode, controllers.strip_prefix("name=").unwrap_or(controllers)) {
            (CgroupMode::Unified, _) => "",
            (CgroupMode::Hybrid, "") => "unified",
            (CgroupMode::Legacy, "") => continue,
            (_, name) => name,
        };
        let directory = Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/'));
        let joined = std::fs::write(directory.join("cgroup.procs"), pid.to_string());
        // A hierarchy that systemd does not use for this unit has the process at its root, where it is already.
        if path != "/" {
            joined.with_context(|| format!("enter {}", directory.display()))?;
        }
    }
    Ok(())
}

impl Bus {
    /// Asks systemd to move a process into a unit, which must be delegated; the way for a plain user.
    ///
    /// # Errors
    /// With systemd's reason.
    pub(crate) fn attach(&mut self, unit: &str, pid: i32) -> Result<()> {
        self.check_numbers(&format!("put a process into {unit}"))?;
        let pids = vec![u32::try_from(pid).unwrap_or_default()];
        self.manager("AttachProcessesToUnit", &(unit, "", pids))
            .map_err(|failure| self.explain(&format!("put a process into {unit}"), failure))
    }
}
