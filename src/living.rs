//! Sandboxes that live: what their launchers wrote down, confirmed by systemd. Nothing is believed that systemd does not confirm.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::error::{Result, fault};
use crate::state::{self, Found};
use crate::systemd::{Bus, CgroupMode, DownService, ListedUnit, UnitOfProcess, Usage};

/// How long a launcher takes at the most, on a busy machine, to write down a sandbox whose unit stands.
const PUBLISHED: Duration = Duration::from_secs(2);

/// One that lives.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What its launcher wrote down.
    pub(crate) found: Found,
    /// What systemd says of its unit.
    pub(crate) unit: ListedUnit,
    /// The unit's cgroup, below the mount of systemd's own hierarchy.
    pub(crate) cgroup: std::path::PathBuf,
}

impl Sandbox {
    /// Connects to the service manager that has its unit.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) fn manager(&self) -> Result<Bus> {
        connect(self.found.record.manager)
    }

    /// What it uses now.
    pub(crate) fn usage(&self, mode: CgroupMode) -> Usage {
        Usage::read(self.found.record.leader.pid, &self.cgroup, &self.unit.name, mode)
    }

    /// Whether it is paused, by cgroup v2's freezer.
    pub(crate) fn is_paused(&self) -> bool {
        let file = std::path::Path::new("/sys/fs/cgroup").join(&self.cgroup).join("cgroup.freeze");
        std::fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
    }

    /// `running`, `paused`, or systemd's word where it is on its way to something else.
    pub(crate) fn state(&self) -> &str {
        match self.unit.state.as_str() {
            "active" if self.is_paused() => "paused",
            "active" => "running",
            other => other,
        }
    }
}

/// Whether it is a user's who is not the caller.
fn is_anothers(manager: Option<u32>) -> bool {
    manager.is_some_and(|uid| uid != rustix::process::geteuid().as_raw())
}

/// Connects to the system's service manager, or to that of a user.
///
/// # Errors
/// When it cannot be reached.
pub(crate) fn connect(manager: Option<u32>) -> Result<Bus> {
    match manager {
        None => Bus::system(),
        Some(uid) if uid == rustix::process::geteuid().as_raw() => Bus::user(),
        Some(uid) => Bus::user_of(uid),
    }
}

/// One connection to each service manager that a command asks, made when it first does.
#[derive(Debug, Default)]
pub(crate) struct Managers(BTreeMap<Option<u32>, Bus>);

impl Managers {
    fn get(&mut self, manager: Option<u32>) -> Result<&mut Bus> {
        match self.0.entry(manager) {
            Entry::Occupied(bus) => Ok(bus.into_mut()),
            Entry::Vacant(place) => {
                let bus = place.insert(connect(manager)?);
                if is_anothers(manager) {
                    bus.hurry();
                }
                Ok(bus)
            }
        }
    }

    fn own(&mut self) -> Result<&mut Bus> {
        self.get(own_manager())
    }
}

/// Every one, sorted by name; a manager that cannot be asked confirms none.
///
/// # Errors
/// When the caller's own manager cannot be asked, or one of its sandboxes cannot be looked at.
pub(crate) fn all(managers: &mut Managers) -> Result<Vec<Sandbox>> {
    let mut written: BTreeMap<Option<u32>, Vec<Found>> = BTreeMap::new();
    for found in state::all()? {
        written.entry(found.record.manager).or_default().push(found);
    }
    let mut list = Vec::new();
    for (manager, found) in written {
        let names: Vec<&str> = found.iter().map(|found| found.record.unit.as_str()).collect();
        match managers.get(manager).and_then(|bus| Ok((bus.list(&names)?, bus))) {
            Ok((units, bus)) => {
                for found in found {
                    match confirmed(found, &units, bus) {
                        Ok(sandbox) => list.extend(sandbox),
                        // What others do is no reason to fail either.
                        Err(error) if is_anothers(manager) => log::info!("{error:#}"),
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) if is_anothers(manager) => {
                // What others do is no reason to warn root of at each command.
                log::info!("sandboxes of user {}: {error:#}", manager.unwrap_or_default());
            }
            Err(error) => return Err(error),
        }
    }
    list.sort_by(|a, b| (&a.found.record.name, &a.unit.name).cmp(&(&b.found.record.name, &b.unit.name)));
    Ok(list)
}

/// It lives when systemd has its unit, and its first process is in that unit of that manager.
///
/// # Errors
/// When that process is there and cannot be looked at.
fn confirmed(found: Found, units: &[ListedUnit], bus: &mut Bus) -> Result<Option<Sandbox>> {
    let record = &found.record;
    let is_there =
        |unit: &&ListedUnit| unit.name == record.unit && !matches!(unit.state.as_str(), "inactive" | "failed");
    let Some(unit) = units.iter().find(is_there) else { return Ok(None) };
    let read = UnitOfProcess::try_read(&record.leader.pid.to_string());
    if record.leader.is_gone() {
        return Ok(None);
    }
    let cgroup = match read {
        Ok(place) => {
            place.filter(|place| place.unit == record.unit && place.user == record.manager).map(|place| place.path)
        }
        Err(error) if found.ours && hides(&error) => {
            let cgroup = bus.control_group(&record.unit);
            if record.leader.is_gone() {
                return Ok(None);
            }
            cgroup?
        }
        Err(error) => {
            return Err(error)
                .context(format!("{}: find the cgroup of its process {}", record.name, record.leader.pid));
        }
    };
    Ok(cgroup.map(|cgroup| Sandbox { unit: unit.clone(), cgroup, found }))
}

/// Whether /proc says this of a process that it hides from a plain user (`hidepid=`, proc(5)), as it does the stub of a sandbox of that
/// user's, whose memory is not to be read. Then systemd's word on the unit has to do, but not for what others wrote down: they could
/// name a first process of anybody's for root to enter.
fn hides(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOENT))
}

/// Every service of `run --detach` or of a unit file, of the caller's own manager, that has failed or waits for its restart; none of
/// those in `living`.
///
/// # Errors
/// When that manager cannot be asked.
pub(crate) fn down(managers: &mut Managers, living: &[Sandbox]) -> Result<Vec<DownService>> {
    let services = managers.own()?.services_in(&["failed", "activating", "deactivating"])?;
    let lives = |service: &DownService| living.iter().any(|sandbox| sandbox.unit.name == service.unit.name);
    Ok(services.into_iter().filter(|service| !lives(service)).collect())
}

/// Ends what a kill in the middle of a start left with the caller's own manager; none of those in `living`.
///
/// # Errors
/// When that manager cannot be asked.
pub(crate) fn sweep(managers: &mut Managers, living: &[Sandbox]) -> Result<()> {
    let known: Vec<&str> = living.iter().map(|sandbox| sandbox.unit.name.as_str()).collect();
    managers.own()?.stop_empty_scopes(&known)
}

/// The manager that a caller's sandboxes are with who asks for no other.
pub(crate) fn own_manager() -> Option<u32> {
    Some(rustix::process::geteuid().as_raw()).filter(|uid| *uid != 0)
}

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Named {
    /// One that lives.
    Living(Box<Sandbox>),
    /// A service without one.
    Down(DownService),
}

impl Named {
    /// Its unit.
    pub(crate) fn unit(&self) -> &str {
        match self {
            Named::Living(sandbox) => &sandbox.unit.name,
            Named::Down(service) => &service.unit.name,
        }
    }

    /// The user whose service manager has it; `None`: the system's.
    pub(crate) fn manager(&self) -> Option<u32> {
        match self {
            Named::Living(sandbox) => sandbox.found.record.manager,
            Named::Down(_) => own_manager(),
        }
    }
}

/// Like [`find`], among services that have failed or wait for their restart, too.
///
/// # Errors
/// When there is none, or more than one.
pub(crate) fn find_any(word: &str) -> Result<Named> {
    look_up(word)?.ok_or_else(|| not_running(word))
}

/// The same; `None` when there is none.
///
/// # Errors
/// When there is more than one.
pub(crate) fn look_up(word: &str) -> Result<Option<Named>> {
    patiently(word, || look_up_now(word))
}

/// What `look` finds. Whose unit stands and whose launcher has not written it down yet is there a moment later.
fn patiently<T>(word: &str, look: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + PUBLISHED;
    loop {
        let found = look()?;
        if found.is_some() || Instant::now() > deadline || !is_starting(word) {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a scope of that name stands, as far as can be said.
fn is_starting(word: &str) -> bool {
    let scope = if word.ends_with(".scope") { word.to_owned() } else { format!("{word}.scope") };
    let units = Managers::default().own().and_then(|bus| bus.list(&[&scope]));
    units.is_ok_and(|units| units.iter().any(|unit| matches!(unit.state.as_str(), "active" | "activating")))
}

fn look_up_now(word: &str) -> Result<Option<Named>> {
    let mut managers = Managers::default();
    let mut list = all(&mut managers)?;
    let mut down = down(&mut managers, &list)?;
    let names: Vec<[&str; 2]> = list
        .iter()
        .map(|sandbox| [sandbox.found.record.name.as_str(), sandbox.unit.name.as_str()])
        .chain(down.iter().map(|service| [service.name(), service.unit.name.as_str()]))
        .collect();
    let Some(chosen) = choose(word, &names)? else {
        // One that is restarted may have been down when it was looked for among the living, and up the moment after.
        let name = if word.ends_with(".service") { word.to_owned() } else { format!("{word}.service") };
        return Ok(managers.own()?.service(&name)?.map(Named::Down));
    };
    Ok(Some(match chosen.checked_sub(list.len()) {
        None => Named::Living(Box::new(list.swap_remove(chosen))),
        Some(at) => Named::Down(down.swap_remove(at)),
    }))
}

fn not_running(word: &str) -> anyhow::Error {
    fault(format!("{word}: no sandbox of that name is running")).hint("sandbox ps -a").into()
}

/// The one that is meant: by its name, its unit's name with or without suffix, or as much of one with an ID as no other has.
///
/// # Errors
/// When there is none, or more than one.
pub(crate) fn find(word: &str) -> Result<Sandbox> {
    patiently(word, || find_now(word))?.ok_or_else(|| not_running(word))
}

fn find_now(word: &str) -> Result<Option<Sandbox>> {
    let mut list = all(&mut Managers::default())?;
    let names: Vec<[&str; 2]> =
        list.iter().map(|sandbox| [sandbox.found.record.name.as_str(), sandbox.unit.name.as_str()]).collect();
    Ok(choose(word, &names)?.map(|chosen| list.swap_remove(chosen)))
}

/// Whether a name and a unit are meant.
type Rule<'a> = &'a dyn Fn(&[&str; 2]) -> bool;

/// The index of the only one that `word` names; each has a name and a unit.
fn choose(word: &str, list: &[[&str; 2]]) -> Result<Option<usize>> {
    let stem = |unit: &str| unit.rsplit_once('.').map_or(unit, |(stem, _)| stem).to_owned();
    // Of a name that somebody gave a beginning is another name: who stops `db` does not mean `db-backup`.
    let into_id = |name: &str, unit: &str| {
        let id = unit.strip_prefix("sandbox-").and_then(|rest| rest.strip_prefix(name)?.strip_prefix('-'));
        id.is_some_and(|id| unit.starts_with(word) && word.len() > unit.len() - id.len())
    };
    let rules: [Rule<'_>; 3] =
        [&|[_, unit]| *unit == word || stem(unit) == word, &|[name, _]| *name == word, &|[name, unit]| {
            into_id(name, unit)
        }];
    for rule in rules {
        let hits: Vec<usize> = (0..list.len()).filter(|at| list.get(*at).is_some_and(rule)).collect();
        match hits.as_slice() {
            [] => {}
            [only] => return Ok(Some(*only)),
            several => {
                let units: Vec<&str> = several.iter().filter_map(|at| list.get(*at).map(|[_, unit]| *unit)).collect();
                let line = format!("{word}: {} sandboxes have that name: {}", units.len(), units.join(", "));
                return Err(fault(line).hint("name the unit").into());
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_beginnings() {
        let list = [
            ["web", "toptest.scope"],
            ["sleep", "sandbox-sleep-0a1b2c.scope"],
            ["sleep", "sandbox-sleep-0d1b2c.scope"],
            ["db", "web.service"],
        ];
        let table = [
            ("toptest", Some(0)),
            ("toptest.scope", Some(0)),
            ("web", Some(3)),
            ("db", Some(3)),
            ("we", None),
            ("top", None),
            ("sandbox-sleep-", None),
            ("sleep", None),
            ("sandbox-sleep-0a", Some(1)),
            ("sandbox-sleep-0d1b2c.sc", Some(2)),
            ("sandbox-sleep-0", None),
            ("", None),
            ("toptest.service", None),
        ];
        for (word, want) in table {
            assert_eq!(choose(word, &list).ok().flatten(), want, "{word}");
        }
        assert!(choose("sleep", &list).unwrap_err().to_string().contains("sandbox-sleep-0d1b2c.scope"));
    }
}
