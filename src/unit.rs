//! The unit around one sandbox: started while the child works, or there already; its limits verified; stopped where it has to be.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::process::Pid;

use crate::child;
use crate::error::{Result, fault};
use crate::host;
use crate::layer::Manager;
use crate::plan::{UnitKind, UnitPlan};
use crate::spec::Spec;
use crate::systemd::{
    self, Bus, CgroupMode, Changes, Pending, Progress, Report, ScopeRequest, Setting, Subject, UnitOfProcess,
};

/// A unit that is being started, and then runs.
#[derive(Debug)]
pub(crate) struct Unit<'a> {
    plan: &'a UnitPlan,
    pid: Pid,
    /// One more that belongs to it.
    beside: Option<Pid>,
    /// Until [`Unit::leave_bus`]: a bus daemon takes only so many connections of a user (256), root included.
    bus: Option<Bus>,
    pending: Option<Pending>,
    /// systemd has made it, so it is nobody else's.
    stands: bool,
    memory_events: Option<File>,
    /// The directory of its cgroup, and the inode that it had.
    cgroup: Option<(PathBuf, u64)>,
}

impl<'a> Unit<'a> {
    /// Asks systemd for the unit with process `pid`, and one more, in it, and does not wait for it. Later waits end when `interrupt` is readable.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub(crate) fn begin(
        plan: &'a UnitPlan,
        pid: Pid,
        beside: Option<Pid>,
        pidfd: BorrowedFd<'_>,
        mut bus: Bus,
        interrupt: BorrowedFd<'_>,
    ) -> Result<Unit<'a>> {
        bus.interrupt_by(interrupt);
        let pending = match plan.kind {
            UnitKind::Own { .. } => None,
            UnitKind::Scope | UnitKind::Service => Some(bus.begin_scope(&request(plan, pid, beside, Some(pidfd)))?),
        };
        Ok(Unit { plan, pid, beside, bus: Some(bus), pending, stands: false, memory_events: None, cgroup: None })
    }

    /// Readable when systemd has said something of a start that is under way, and how long to wait for that: then it is time for
    /// [`Unit::turn`], too.
    pub(crate) fn answer(&self) -> Option<(BorrowedFd<'_>, Timespec)> {
        self.bus.as_ref().map(Bus::socket).zip(self.pending.as_ref().map(Pending::patience))
    }

    /// Takes in what systemd has said; whether the process is in the unit now.
    ///
    /// # Errors
    /// As [`Unit::finish`].
    pub(crate) fn turn(&mut self, pidfd: BorrowedFd<'_>) -> Result<bool> {
        self.advance(pidfd, Bus::turn_scope)
    }

    /// Waits until the process is in the unit.
    ///
    /// # Errors
    /// With systemd's reason; nothing of the unit is left then.
    pub(crate) fn finish(&mut self, pidfd: BorrowedFd<'_>) -> Result<()> {
        self.advance(pidfd, Bus::finish_scope).map(drop)
    }

    fn advance(
        &mut self,
        pidfd: BorrowedFd<'_>,
        step: fn(&mut Bus, &ScopeRequest<'_>, Pending) -> Result<Progress>,
    ) -> Result<bool> {
        if let (Some(pending), Some(bus)) = (self.pending.take(), &mut self.bus) {
            match step(bus, &request(self.plan, self.pid, self.beside, Some(pidfd)), pending) {
                Ok(Progress::Stands) => self.stands = true,
                Ok(Progress::Waits(pending)) => self.pending = Some(pending),
                Err(error) => {
                    self.pending = bus.take_unanswered();
                    return Err(error);
                }
            }
        }
        Ok(self.pending.is_none())
    }

    /// Waits for the end of a start that nobody wants any more, so that what is in the unit then can end with it.
    pub(crate) fn settle(&mut self, pidfd: BorrowedFd<'_>) {
        if let Err(error) = self.finish(pidfd) {
            log::debug!("{error:#}");
        }
        // Nobody tells how that ends but the kernel.
        if self.pending.take().is_some() {
            self.stands = self.comes(pidfd);
        }
    }

    /// Whether the process comes into the unit, within the time in which systemd would do that.
    fn comes(&self, pidfd: BorrowedFd<'_>) -> bool {
        let start = Instant::now();
        let request = request(self.plan, self.pid, self.beside, Some(pidfd));
        while start.elapsed() < child::UNIT_WAIT {
            match request.has_entered() {
                Some(false) => std::thread::sleep(Duration::from_millis(5)),
                known => return known == Some(true),
            }
        }
        false
    }

    /// Reads every limit back from the kernel.
    ///
    /// # Errors
    /// With property, asked, found and reason, when one is not in force.
    pub(crate) fn verify(&mut self) -> Result<Report> {
        let UnitPlan { user, name, settings, cgroup, .. } = self.plan;
        if let Some(beside) = self.beside {
            check_member(beside, name)?;
        }
        // Made with every property of the request, it starts again with what was changed since.
        let again = self.plan.kind == UnitKind::Own { complete: true };
        let changes = if again { Changes::Hold } else { Changes::Differ };
        let subject = Subject { pid: self.pid, unit: name, settings, mode: *cgroup, user: *user, changes };
        let mut bus = self.bus.take().map_or_else(|| connect(self.plan), Ok)?;
        let mut warnings = Vec::new();
        if self.plan.kind == (UnitKind::Own { complete: false }) {
            warnings = apply(&mut bus, self.plan)?;
        }
        let mut report = systemd::verify(&mut bus, &subject)?;
        self.bus = Some(bus);
        report.warnings.append(&mut warnings);
        self.cgroup = inode(&report.cgroup).map(|inode| (report.cgroup.clone(), inode));
        // Held open, because the file is gone from the tree as soon as systemd sees the unit empty.
        let name = if *cgroup == CgroupMode::Unified { "memory.events" } else { "memory.oom_control" };
        self.memory_events = report.memory.as_ref().and_then(|directory| File::open(directory.join(name)).ok());
        Ok(report)
    }

    /// Ends the connection to the service manager.
    pub(crate) fn leave_bus(&mut self) {
        self.bus = None;
    }

    /// How many of its processes the kernel has killed for memory; `None` where that is not known.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let mut bytes = [0; 512];
        let length = self.memory_events.as_ref()?.read_at(&mut bytes, 0).ok()?;
        let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.parse().ok()
    }

    /// Stops it, with whatever is still in it. Not one that this start did not make: a name that was taken is another's unit, and one
    /// of kind `Own` ends with this process, and systemd ends the rest.
    pub(crate) fn stop(&mut self) {
        // A scope ends by itself with its last process, and then the name may be another's at once.
        if self.cgroup.as_ref().is_none_or(|(path, _)| is_populated(path)) {
            self.stop_if(|_| true);
        }
    }

    /// The same after a start that failed, whose processes have ended: mostly it is gone then, but systemd may have missed that.
    pub(crate) fn stop_empty(&mut self) {
        let name = &self.plan.name;
        self.stop_if(|bus| bus.is_empty_scope(name));
    }

    fn stop_if(&self, wanted: impl FnOnce(&mut Bus) -> bool) {
        let name = &self.plan.name;
        let is_gone = || self.cgroup.as_ref().is_some_and(|(path, own)| inode(path) != Some(*own));
        if !self.stands || is_gone() {
            return;
        }
        let wait = Duration::from_micros(self.plan.timeout_stop_usec) + Duration::from_secs(5);
        let stop = |mut bus: Bus| {
            if !wanted(&mut bus) {
                return Ok(());
            }
            // Whose cgroup is still there had the name when systemd was asked; by now it may be another's.
            let run = bus.run_of(name)?;
            if is_gone() { Ok(()) } else { bus.stop_run(name, &run, wait) }
        };
        if let Err(error) = connect(self.plan).and_then(stop) {
            log::debug!("{error:#}");
        }
    }
}

/// Whether a process is in a cgroup or in one below it; not, where it is gone.
fn is_populated(cgroup: &Path) -> bool {
    let has_processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|list| !list.is_empty());
    let below = || std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    has_processes
        || below().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_populated(&entry.path()))
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The process is in the unit, so that its limits hold for it and it ends with it.
fn check_member(pid: Pid, unit: &str) -> Result<()> {
    let place = UnitOfProcess::read(&pid.as_raw_nonzero().to_string());
    if place.as_ref().is_some_and(|place| place.unit == unit) {
        return Ok(());
    }
    let place = place.map_or_else(|| "in no unit".to_owned(), |place| format!("in {}", place.unit));
    Err(fault(format!("systemd did not put the network's process into {unit}: it is {place}")).into())
}

/// Gives a unit that is there already the limits that were asked for; one line for each setting that only its file can change.
fn apply(bus: &mut Bus, plan: &UnitPlan) -> Result<Vec<String>> {
    let (live, fixed): (Vec<_>, Vec<_>) = plan.settings.iter().cloned().partition(Setting::is_live);
    if !live.is_empty() {
        bus.set_properties(&plan.name, true, &live)?;
    }
    // Stop settings are properties of the kind of unit, the rest of all units.
    let mut differs = |setting: &&Setting| {
        let mut is = |interface| {
            let found = bus.unit_property(&plan.name, interface, &setting.name);
            found.is_ok_and(|found| found.has(&setting.value))
        };
        !is("Service") && !is("Unit")
    };
    let line = |setting: &Setting| {
        format!(
            "{} is left out: it has to be in the unit file ({}=, `systemctl edit {}`)",
            setting.asked, setting.property, plan.name
        )
    };
    let mut warnings: Vec<String> = fixed.iter().filter(|setting| differs(setting)).map(line).collect();
    let is_asked = |name: &str| live.iter().any(|setting| setting.is_called(name));
    // An earlier start with other settings left them, as `systemctl set-property` does.
    let earlier = bus.runtime_settings(&plan.name).into_iter().filter(|(name, _)| !is_asked(name));
    warnings.extend(earlier.map(|(name, path)| {
        format!(
            "{name}= of {} still holds, from an earlier start or a set-property; `systemctl revert {}` ends it",
            path.display(),
            plan.name
        )
    }));
    Ok(warnings)
}

/// Connects to the service manager that the plan names, and waits for nothing: its greeting comes while the caller does other work.
///
/// # Errors
/// When it cannot be reached.
pub(crate) fn connect(plan: &UnitPlan) -> Result<Bus> {
    connect_to(plan.user)
}

fn connect_to(user: bool) -> Result<Bus> {
    if user { Bus::user() } else { Bus::system() }
}

/// The same before there is a plan, where that will most likely want it: the bus daemon greets while the rest is decided. Where it
/// fails, the connection that is made later says why.
pub(crate) fn greet(spec: &Spec) -> Option<Bus> {
    let wanted =
        spec.unit.manager != Manager::None && !spec.unit.detach && host::is_booted_by_systemd().unwrap_or(false);
    let user = spec.unit.user.unwrap_or_else(|| !rustix::process::geteuid().is_root());
    if wanted { connect_to(user).ok() } else { None }
}

fn request<'a>(plan: &'a UnitPlan, pid: Pid, beside: Option<Pid>, pidfd: Option<BorrowedFd<'a>>) -> ScopeRequest<'a> {
    ScopeRequest {
        name: &plan.name,
        slice: &plan.slice,
        description: &plan.description,
        pid,
        beside,
        pidfd: pidfd.filter(|_| plan.pidfd && beside.is_none()),
        settings: &plan.settings,
        timeout_stop_usec: plan.timeout_stop_usec,
        oom_policy: "continue",
        delegate: plan.delegate,
        closed_devices: plan.closed_devices,
        own_devices: &plan.own_devices,
        collect_mode: "inactive-or-failed",
        user: plan.user.then(|| rustix::process::getuid().as_raw()),
        mode: plan.cgroup,
    }
}
