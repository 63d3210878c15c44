//! /run/sandbox: one file a sandbox that lives, written by its launcher and removed by it. It says what systemd does not know; that the
//! sandbox lives is asked of systemd (see [`crate::living`]).
//!
//! A plain user's are in $XDG_RUNTIME_DIR/sandbox. The last thing a launcher does with its file, before it removes it, is to add
//! the payload's exit status: whoever has it open (`sandbox wait`) reads it there.

mod process;
mod text;

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::Result;
use crate::host::read_of_kernel;
use crate::layer::Namespace;
use crate::part::label::Label;
use crate::part::landlock::Restrictions;
use crate::part::network::publish::Publish;
use crate::part::rootfs::{Operation, RootPlan};
use crate::plan::{Plan, UnitKind, UnitPlan};
use crate::seccomp::Filter;
use crate::systemd::{KeptSetting, UnitOfProcess};

pub(crate) use process::Process;
use text::{is_same, open_file, read};

/// Root's directory.
const ROOT: &str = "/run/sandbox";

/// What a further process in the sandbox starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Namespaces that are not the host's.
    pub(crate) namespaces: Vec<Namespace>,
    /// The IDs inside are a range of their own.
    pub(crate) own_range: bool,
    /// Capabilities that remain, without CAP_.
    pub(crate) capabilities: Vec<String>,
    /// Those of them that a user other than root has.
    pub(crate) ambient: Vec<String>,
    /// What it may use of files and network.
    pub(crate) landlock: Restrictions,
    /// What a security module of the kernel calls it.
    pub(crate) label: Option<Label>,
    /// The filter of system calls.
    pub(crate) seccomp: Filter,
    /// The payload's environment.
    pub(crate) environment: Vec<(String, String)>,
    /// The payload's user.
    pub(crate) user: String,
    /// The payload's group.
    pub(crate) group: Option<String>,
    /// Where it starts: the first that exists inside.
    pub(crate) directories: Vec<PathBuf>,
    /// File mode creation mask.
    pub(crate) umask: u32,
    /// Resource limits: number of getrlimit(2), soft, hard.
    #[serde(default)]
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    /// Nice value.
    #[serde(default)]
    pub(crate) nice: Option<i32>,
    /// OOM score adjustment.
    #[serde(default)]
    pub(crate) oom_score_adjust: Option<i32>,
    /// CPUs by sched_setaffinity(2).
    #[serde(default)]
    pub(crate) affinity: Option<Vec<u32>>,
    /// setgroups(2) works.
    pub(crate) can_set_groups: bool,
    /// Ranges of group IDs that exist inside: first, count.
    pub(crate) group_ids: Vec<(u32, u32)>,
    /// It sees the host's files.
    pub(crate) host_view: bool,
}

/// What a launcher writes down of its sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of the sandbox.
    pub(crate) name: String,
    /// Its unit.
    pub(crate) unit: String,
    /// The slice that the unit is in.
    pub(crate) slice: String,
    /// The unit is the service whose main process the launcher is.
    pub(crate) service: bool,
    /// The user whose service manager has the unit; `None`: the system's.
    pub(crate) manager: Option<u32>,
    /// What the root is made of.
    pub(crate) root: String,
    /// The launcher.
    pub(crate) launcher: Process,
    /// The first process inside: the stub, or with `--as-pid1` the payload.
    pub(crate) leader: Process,
    /// The leader is the payload.
    pub(crate) as_pid1: bool,
    /// When it started, in µs since 1970.
    pub(crate) started: u64,
    /// The payload and its arguments.
    pub(crate) command: Vec<String>,
    /// The command line that it was started with.
    pub(crate) arguments: Vec<String>,
    /// Properties as they were sent.
    pub(crate) settings: Vec<KeptSetting>,
    /// Ports of the host that lead into it.
    #[serde(default)]
    pub(crate) ports: Vec<Publish>,
    /// How one gets in.
    pub(crate) entry: Entry,
}

/// Every decision of a start. Nobody has to know them to find the sandbox or to enter it, and to write them down takes a fortieth of a
/// start, so the launcher adds them when the sandbox has lived for a moment: [`crate::run`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Decisions {
    /// As `run --dry-run` prints them.
    pub(crate) decided: String,
    /// As `run --dry-run --json` prints them.
    pub(crate) plan: Box<RawValue>,
}

impl Record {
    /// Writes down what was decided; `None` for a sandbox without a unit, of which systemd could say nothing.
    fn new(plan: &Plan, leader: Pid) -> Option<Record> {
        let unit = plan.unit.as_ref()?;
        let lossy = |list: &[OsString]| list.iter().map(|text| text.to_string_lossy().into_owned()).collect();
        Some(Record {
            name: plan.name.clone(),
            unit: unit.name.clone(),
            slice: unit.slice.clone(),
            service: matches!(unit.kind, UnitKind::Own { .. }),
            manager: unit.user.then(|| rustix::process::geteuid().as_raw()),
            root: plan.given.image().map_or_else(|| root(plan.root.as_ref()), str::to_owned),
            launcher: Process::read(rustix::process::getpid())?,
            leader: Process::read(leader)?,
            as_pid1: plan.process.as_pid1,
            started: now(),
            command: lossy(&plan.process.command),
            arguments: lossy(&std::env::args_os().collect::<Vec<_>>()),
            settings: unit.settings.iter().map(KeptSetting::from).collect(),
            ports: plan.network.published().to_vec(),
            entry: entry(plan),
        })
    }

    /// Whether it is what the main process of a unit of the system's would have written that runs as this user. Others can read of
    /// processes what is in such a file, but not be the parent of one in that unit.
    fn is_of_a_service_of(&self, owner: u32) -> bool {
        let launcher = self.launcher.pid;
        let unit = UnitOfProcess::read(&launcher.to_string());
        let is_in_unit = unit.is_some_and(|place| place.user.is_none() && place.unit == self.unit);
        let is_owners = || user(launcher) == Some(owner);
        // The caller's own word is taken where /proc hides the leader.
        let is_own = || rustix::process::geteuid().as_raw() == owner && self.leader.refusal().is_some();
        let is_parent = || parent(self.leader.pid) == Some(launcher) || is_own();
        self.service && self.manager.is_none() && is_in_unit && is_owners() && is_parent()
    }
}

/// The real user ID of a process.
fn user(pid: i32) -> Option<u32> {
    let status = read_of_kernel(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status).into_owned();
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// The parent of a process: field 4 of /proc/PID/stat.
fn parent(pid: i32) -> Option<i32> {
    process::stat_of(pid).ok()??.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn entry(plan: &Plan) -> Entry {
    let process = &plan.process;
    let text = |text: &OsString| text.to_string_lossy().into_owned();
    // What was handed to the payload is not handed to another process.
    let own = ["NOTIFY_SOCKET", "WATCHDOG_USEC"];
    let environment = process.environment.iter().filter(|(name, _)| !own.iter().any(|own| name == own));
    let joined = plan.network.join().map(|_| Namespace::Net);
    Entry {
        namespaces: plan.namespaces.list().iter().copied().chain(joined).collect(),
        own_range: plan.users.own_range(),
        capabilities: plan.capabilities.names().map(str::to_owned).collect(),
        ambient: plan.capabilities.ambient_names().map(str::to_owned).collect(),
        landlock: plan.landlock.clone(),
        label: plan.label.clone(),
        seccomp: plan.seccomp.clone(),
        environment: environment.map(|(name, value)| (text(name), text(value))).collect(),
        user: process.user.clone(),
        group: process.group.clone(),
        directories: process.directories.clone(),
        umask: process.umask,
        rlimits: process.rlimits.iter().map(|(resource, limit)| (*resource, limit.soft, limit.hard)).collect(),
        nice: process.nice,
        oom_score_adjust: process.oom_score_adjust,
        affinity: process.affinity.clone(),
        can_set_groups: process.can_set_groups,
        group_ids: process.group_ids.iter().map(|range| (range.first, range.count)).collect(),
        host_view: process.host_view,
    }
}

/// The root in a few words.
fn root(root: Option<&RootPlan>) -> String {
    let Some(root) = root else { return "the host's".to_owned() };
    match root.operations.first() {
        Some(Operation::Overlay(overlay)) => match overlay.layers.as_slice() {
            [layer] if layer == Path::new("/") => "host view".to_owned(),
            [layer] => layer.display().to_string(),
            layers => layers
                .last()
                .map_or_else(String::new, |top| format!("{} and {} below", top.display(), layers.len() - 1)),
        },
        _ => "host view".to_owned(),
    }
}

/// The directory of the caller's own files; `None` where the caller has no runtime directory.
pub(crate) fn own_directory() -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    if uid == 0 {
        return Some(ROOT.into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    let runtime = runtime.unwrap_or_else(|| format!("/run/user/{uid}").into());
    let is_own = |meta: std::fs::Metadata| meta.is_dir() && meta.uid() == uid;
    std::fs::metadata(&runtime).is_ok_and(is_own).then(|| runtime.join("sandbox"))
}

/// Every directory that the caller may read and whose owner is to be believed, with that owner.
fn directories() -> Vec<(PathBuf, u32)> {
    let uid = rustix::process::geteuid().as_raw();
    let mut list: Vec<(PathBuf, u32)> = own_directory().into_iter().map(|path| (path, uid)).collect();
    if uid == 0 {
        for entry in std::fs::read_dir("/run/user").into_iter().flatten().flatten() {
            let owner = entry.file_name().to_str().and_then(|name| name.parse().ok());
            list.extend(owner.filter(|owner| *owner != 0).map(|owner| (entry.path().join("sandbox"), owner)));
        }
    }
    list
}

/// The file of a sandbox that lives; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct StateFile {
    /// Where it is now.
    at: PathBuf,
    /// Where it is to be found.
    path: PathBuf,
    file: File,
    /// How long it is, in bytes.
    length: Cell<u64>,
}

impl StateFile {
    /// Writes it, under a name that nobody looks at: until systemd has given the unit's name to this start it may be another's. `None`
    /// where there is nothing to write or no place for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(plan: &Plan, leader: Pid) -> Result<Option<StateFile>> {
        let (Some(record), Some(directory), Some(unit)) = (Record::new(plan, leader), own_directory(), &plan.unit)
        else {
            return Ok(None);
        };
        let text = serde_json::to_vec(&record).context("write down the sandbox's state")?;
        let path = directory.join(file_name(unit));
        let state = StateFile::write_in(&directory, path, &text);
        state.map(Some).with_context(|| format!("write {}", directory.display()))
    }

    fn write_in(directory: &Path, path: PathBuf, text: &[u8]) -> std::io::Result<StateFile> {
        let at = directory.join(format!(".{}", std::process::id()));
        let mut file = create(directory, &at)?;
        file.write_all(text).inspect_err(|_| drop(std::fs::remove_file(&at)))?;
        Ok(StateFile { at, path, file, length: Cell::new(text.len() as u64) })
    }

    /// Puts it where the others look.
    ///
    /// # Errors
    /// What rename(2) says.
    pub(crate) fn publish(&mut self) -> Result<()> {
        std::fs::rename(&self.at, &self.path).with_context(|| format!("write {}", self.path.display()))?;
        self.at.clone_from(&self.path);
        Ok(())
    }

    /// Adds what was decided.
    pub(crate) fn describe(&self, plan: &Plan) {
        let plan_text = serde_json::value::to_raw_value(plan);
        let text = plan_text
            .and_then(|plan_text| serde_json::to_string(&Decisions { decided: plan.to_string(), plan: plan_text }));
        match text {
            Ok(text) => self.add(&text),
            Err(error) => log::debug!("{}: {error}", self.at.display()),
        }
    }

    /// Adds the payload's exit status, for those that wait for it.
    pub(crate) fn ended(&self, status: u8) {
        self.add(&status.to_string());
    }

    /// Adds a line.
    fn add(&self, line: &str) {
        let line = format!("\n{line}\n");
        match self.file.write_all_at(line.as_bytes(), self.length.get()) {
            Ok(()) => self.length.set(self.length.get() + line.len() as u64),
            Err(error) => {
                log::debug!("{}: {error}", self.at.display());
                // A part of it would be in the way of the next.
                drop(self.file.set_len(self.length.get()));
            }
        }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        // A later sandbox of the same name may have put its own there.
        if is_same(&self.at, &self.file) {
            drop(std::fs::remove_file(&self.at));
        }
    }
}

/// Names of units are unique in one service manager; who may use two of them has the other one's marked.
fn file_name(unit: &UnitPlan) -> String {
    let other = match (unit.user, rustix::process::geteuid().is_root()) {
        (true, true) => "user:",
        (false, false) => "system:",
        (true, false) | (false, true) => "",
    };
    format!("{other}{}.json", unit.name)
}

fn create(directory: &Path, path: &Path) -> std::io::Result<File> {
    let create = || File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    match create() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
            create()
        }
        // Left by a killed launcher that had this PID before.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            create()
        }
        file => file,
    }
}

/// A state file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// What is in it.
    pub(crate) record: Record,
    path: PathBuf,
    /// Open, so that it can be read once it is gone; `None` beyond [`KEPT_OPEN`].
    file: Option<File>,
    /// The caller has written it.
    pub(crate) ours: bool,
}

impl Found {
    /// The payload's exit status, once its launcher has written it.
    pub(crate) fn status(&self) -> Option<u8> {
        // Of a launcher that was killed over it the line has no end.
        let text = self.text()?;
        let lines = text.split_inclusive('\n').skip(1).filter_map(|line| line.strip_suffix('\n'));
        lines.filter_map(|line| line.parse().ok()).next()
    }

    /// What was decided, once its launcher has written it; one of a former version has it in its first line.
    pub(crate) fn decisions(&self) -> Option<Decisions> {
        self.text()?.lines().find_map(|line| serde_json::from_str(line).ok())
    }

    fn text(&self) -> Option<String> {
        let read = match &self.file {
            Some(file) => read(file),
            None => open_file(&self.path).and_then(|file| read(&file)),
        };
        let (text, _) = read.ok()??;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Removes what a killed launcher left, where that is the caller's to do.
    fn sweep(&self) {
        if self.ours
            && self.record.launcher.is_gone()
            && self.file.as_ref().is_some_and(|file| is_same(&self.path, file))
        {
            log::debug!("{} is stale", self.path.display());
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// How many state files of those that are found stay open: a process has 1024 descriptors, and a machine may have more sandboxes.
const KEPT_OPEN: usize = 256;

/// Every state file whose launcher and leader live; others are swept, and what is no state file is passed over.
///
/// # Errors
/// When the caller's own directory is there and cannot be read.
pub(crate) fn all() -> Result<Vec<Found>> {
    let uid = rustix::process::geteuid().as_raw();
    let mut list: Vec<Found> = Vec::new();
    for (directory, owner) in directories() {
        let say = |path: &Path, error: std::io::Error| {
            // Not of one that has just ended, nor of what others have in their directories: that is theirs.
            if error.kind() != std::io::ErrorKind::NotFound && owner == uid {
                log::warn!("{}: {error}", path.display());
            }
        };
        let entries = match std::fs::read_dir(&directory).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) if owner != uid || error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(format!("list {}", directory.display())),
        };
        for entry in entries {
            let path = entry.path();
            if owner == uid {
                sweep_temporary(&path);
            }
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let mut found = match open(&path, owner, owner == uid) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    say(&path, error);
                    continue;
                }
            };
            if found.record.launcher.is_gone() || found.record.leader.is_gone() {
                found.sweep();
                continue;
            }
            if list.len() >= KEPT_OPEN {
                found.file = None;
            }
            list.push(found);
        }
    }
    Ok(list)
}

/// Removes a file that a launcher was killed over.
fn sweep_temporary(path: &Path) {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('.'));
    let writer = name.and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    if writer.is_some_and(process::is_free) {
        drop(std::fs::remove_file(path));
    }
}

/// Reads one that its owner wrote; `None` for what is no such file: another user's word on a path or a process is not taken.
///
/// # Errors
/// When it cannot be read.
fn open(path: &Path, owner: u32, ours: bool) -> std::io::Result<Option<Found>> {
    let file = match open_file(path) {
        // A link, a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Ok(None),
        file => file?,
    };
    let Some((text, _)) = read(&file)?.filter(|(_, its)| *its == owner) else { return Ok(None) };
    Ok(believed(&text, owner).map(|record| Found { record, path: path.to_owned(), file: Some(file), ours }))
}

fn believed(text: &[u8], owner: u32) -> Option<Record> {
    let record: Record = serde_json::from_slice(text.split(|byte| *byte == b'\n').next()?).ok()?;
    // A plain user has no sandboxes in another user's units, nor in the system's but where one of those runs this program as that user.
    let believed = owner == 0 || record.manager == Some(owner) || record.is_of_a_service_of(owner);
    believed.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let own = Process::read(rustix::process::getpid()).unwrap();
        Record {
            name: "web".into(),
            unit: "web.scope".into(),
            slice: "test.slice".into(),
            service: false,
            manager: None,
            root: "host view".into(),
            launcher: own,
            leader: own,
            as_pid1: false,
            started: 1,
            command: vec!["sleep".into()],
            arguments: vec![],
            settings: vec![],
            ports: Vec::new(),
            entry: Entry {
                namespaces: vec![Namespace::Pid],
                own_range: true,
                capabilities: vec!["KILL".into()],
                ambient: vec![],
                landlock: Restrictions::default(),
                label: None,
                seccomp: Filter { source: "unconfined".into(), program: Vec::new(), flags: 0 },
                environment: vec![("A".into(), "1".into())],
                user: "0".into(),
                group: None,
                directories: vec!["/".into()],
                umask: 0o22,
                rlimits: vec![(7, 77, 99)],
                nice: Some(7),
                oom_score_adjust: None,
                affinity: None,
                can_set_groups: true,
                group_ids: vec![(0, 65536)],
                host_view: true,
            },
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let own = Process::read(rustix::process::getpid()).unwrap();
        assert!(own.lives());
        assert!(!Process { started: own.started + 1, ..own }.lives());
        let later = Process { started: own.started + 100 * rustix::param::clock_ticks_per_second(), ..own };
        assert!((0.0..100_000.0).contains(&own.age()) && later.age() < own.age() - 50.0, "{} s", own.age());
        assert!(!Process { pid: i32::MAX, ..own }.lives());
    }

    #[test]
    fn who_has_it_open_reads_the_status_after_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (sub, uid) = (directory.path().join("sandbox"), rustix::process::geteuid().as_raw());
        let path = sub.join("web.scope.json");
        let mut record = record();
        record.manager = Some(uid);
        let text = serde_json::to_vec(&record).unwrap();
        let mut state = StateFile::write_in(&sub, path.clone(), &text).unwrap();
        state.publish().unwrap();
        let found = open(&path, uid, true).unwrap().unwrap();
        assert_eq!((serde_json::to_vec(&found.record).unwrap(), found.status()), (text, None));
        assert!(found.decisions().is_none());
        state.add(r#"{"decided":"unit web.scope\n","plan":{"name":"web"}}"#);
        state.ended(143);
        drop(state);
        let decisions = found.decisions().unwrap();
        assert_eq!((decisions.decided.as_str(), decisions.plan.get()), ("unit web.scope\n", r#"{"name":"web"}"#));
        assert_eq!(found.status(), Some(143));
        assert_eq!(std::fs::read_dir(&sub).unwrap().count(), 0);
    }

    #[test]
    fn what_a_former_version_wrote_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let mut record = record();
        record.manager = Some(uid);
        let mut text = serde_json::to_value(&record).unwrap();
        text["decided"] = "unit web.scope\n".into();
        text["plan"] = serde_json::json!({ "name": "web" });
        let path = directory.path().join("web.scope.json");
        std::fs::write(&path, format!("{text}\n7\n")).unwrap();
        let found = open(&path, uid, true).unwrap().unwrap();
        let decisions = found.decisions().unwrap();
        assert_eq!((decisions.decided.as_str(), decisions.plan.get()), ("unit web.scope\n", r#"{"name":"web"}"#));
        assert_eq!(found.status(), Some(7));
    }

    #[test]
    fn a_later_one_of_the_same_name_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.scope.json");
        let write = || StateFile::write_in(directory.path(), path.clone(), b"{}").unwrap();
        let mut first = write();
        first.publish().unwrap();
        // A start that is refused never publishes.
        drop(write());
        assert!(is_same(&path, &first.file));
        let mut second = write();
        second.publish().unwrap();
        drop(first);
        assert!(is_same(&path, &second.file));
        drop(second);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_another_wrote_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        let uid = rustix::process::geteuid().as_raw();
        std::fs::write(&path, serde_json::to_vec(&record()).unwrap()).unwrap();
        assert!(open(&path, uid + 1, false).unwrap().is_none());
        std::fs::write(&path, "{").unwrap();
        assert!(open(&path, uid, true).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(open(&path, uid, true).unwrap().is_none());
    }
}
