//! Reads the limits back from the kernel: a start goes on only with limits that are in force.
//!
//! systemd answers with success also where it set nothing: a controller that is not delegated, a file that the kernel
//! does not have, a drop-in that says otherwise, a BPF program that could not be loaded. On the good path this is a few
//! reads and no word with systemd.

mod compare;
mod device;
mod expect;
mod explain;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::Pid;
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::read_of_kernel;
use crate::sys;

use super::bus::Bus;
use super::cgroup::{CgroupMode, CgroupPaths, is_of_unit};
use super::property::{Setting, Value};
use compare::{Verdict, compare};
use expect::{Expectation, Machine, QUOTA_V1, Want, expectations};
use explain::{absent, different, named, not_in_unit, outside, plain, set_since};

/// What is verified.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// A process in the unit.
    pub(crate) pid: Pid,
    /// With its suffix: `toptest.scope`.
    pub(crate) unit: &'a str,
    /// As they were sent.
    pub(crate) settings: &'a [Setting],
    /// The layout of this machine's cgroups.
    pub(crate) mode: CgroupMode,
    /// Whether the unit belongs to a user's service manager.
    pub(crate) user: bool,
    /// What a drop-in of `set-property` means here.
    pub(crate) changes: Changes,
}

/// What it means that `set-property`, or `systemctl set-property --runtime`, has set something otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changes {
    /// The setting that is verified is not in force.
    Differ,
    /// They are what is verified: set just now.
    Asked,
    /// They hold: the unit is a service that starts again.
    Hold,
}

/// A limit that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Limit {
    /// As the manual spells it: `MemoryMax`.
    pub(crate) property: &'static str,
    /// What the user wrote: `MemoryMax=500M`.
    pub(crate) asked: String,
    /// Where the kernel shows it: `memory.max`; empty for BPF programs.
    pub(crate) file: &'static str,
    /// What the kernel shows.
    pub(crate) in_force: String,
    /// What holds in the end where a cgroup further up is tighter.
    pub(crate) effective: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The limits in the order asked.
    pub(crate) limits: Vec<Limit>,
    /// One line for each thing that is tighter than asked.
    pub(crate) warnings: Vec<String>,
    /// The directory of the unit's memory cgroup (memory.events on v2), where it has one.
    pub(crate) memory: Option<PathBuf>,
    /// The directory of its cgroup in systemd's own hierarchy.
    pub(crate) cgroup: PathBuf,
}

/// Verifies that the process is in its unit and each setting in force; asks systemd for drop-ins only where one is not as asked.
///
/// # Errors
/// When a setting is not in force, or looser than asked: one line with property, asked, found and reason.
pub(crate) fn verify(bus: &mut Bus, subject: &Subject<'_>) -> Result<Report> {
    Kernel::here(subject.settings).verify(subject, bus)
}

/// What is asked of systemd when something is not as it should be; tests answer themselves.
trait Manager {
    /// The drop-in files of a unit.
    fn drop_ins(&mut self, unit: &str) -> Vec<PathBuf>;
    /// What systemd was built with: `+PAM … -BPF_FRAMEWORK …`.
    fn features(&mut self) -> String;
}

impl Bus {
    /// What `set-property` changed of a unit until the next boot: each property, and the file that says so.
    pub(crate) fn runtime_settings(&mut self, unit: &str) -> Vec<(String, PathBuf)> {
        let settings = self.drop_ins(unit).into_iter().filter_map(|path| Some((set_at_runtime(&path)?, path)));
        settings.collect()
    }
}

/// The property that a drop-in of `set-property` sets until the next boot; `None`: it is another's.
fn set_at_runtime(drop_in: &Path) -> Option<String> {
    let directory = drop_in.parent().and_then(Path::parent)?;
    let is_control = ["system.control", "user.control", "transient"].iter().any(|own| directory.ends_with(own));
    let name = drop_in.file_name()?.to_str()?.strip_prefix("50-")?.strip_suffix(".conf")?;
    (is_control && drop_in.starts_with("/run")).then(|| name.to_owned())
}

impl Manager for Bus {
    fn drop_ins(&mut self, unit: &str) -> Vec<PathBuf> {
        match self.unit_property(unit, "Unit", "DropInPaths") {
            Ok(Value::Texts(paths)) => paths.into_iter().map(PathBuf::from).collect(),
            other => {
                log::debug!("drop-ins of {unit}: {other:?}");
                Vec::new()
            }
        }
    }

    fn features(&mut self) -> String {
        match self.manager_property("Features") {
            Ok(Value::Text(features)) => features,
            other => {
                log::debug!("features of systemd: {other:?}");
                String::new()
            }
        }
    }
}

/// The files that are read; tests bring their own.
struct Kernel {
    proc: PathBuf,
    cgroup: PathBuf,
    sys: PathBuf,
    machine: Machine,
    /// Counts the BPF programs of a type on a cgroup.
    programs: fn(&Path, u32) -> io::Result<u32>,
}

/// The unit's place in one hierarchy.
struct Place<'a> {
    /// The mount of the hierarchy.
    mount: PathBuf,
    /// The unit's cgroup in it.
    unit: &'a Path,
}

impl Kernel {
    fn here(settings: &[Setting]) -> Kernel {
        let info = rustix::system::sysinfo();
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let memory = info.totalram.saturating_mul(u64::from(info.mem_unit)) / page * page;
        let share = settings.iter().any(|setting| setting.name == "TasksMaxScale");
        let tasks = if share { tasks_max(Path::new("/proc")) } else { 0 };
        let machine = Machine { page, memory, tasks };
        let (proc, cgroup, sys) = ("/proc".into(), "/sys/fs/cgroup".into(), "/sys".into());
        Kernel { proc, cgroup, sys, machine, programs }
    }

    fn verify(&self, subject: &Subject<'_>, manager: &mut dyn Manager) -> Result<Report> {
        let file = self.proc.join(subject.pid.as_raw_nonzero().to_string()).join("cgroup");
        let paths = read(&file).with_context(|| format!("read {}", file.display()))?;
        let paths = CgroupPaths::parse(&paths.unwrap_or_default());
        let Some(own) = self.place(subject, &paths, None) else {
            return Err(not_in_unit(subject, &paths).into());
        };
        let mut report = Report { cgroup: own.mount.join(own.unit), ..Report::default() };
        for expectation in expectations(subject.settings, subject.mode, &self.machine) {
            let Some(place) = self.place(subject, &paths, expectation.controller) else {
                return Err(outside(subject, &paths, &expectation).into());
            };
            self.check(subject, &place, &expectation, &mut report, manager)?;
        }
        let memory = self.place(subject, &paths, Some("memory"));
        report.memory = memory.map(|place| place.mount.join(place.unit));
        Ok(report)
    }

    /// Finds the unit's cgroup in the hierarchy of a controller; the process may be in one below it.
    fn place<'a>(&self, subject: &Subject<'_>, paths: &'a CgroupPaths, controller: Option<&str>) -> Option<Place<'a>> {
        let path = paths.path(subject.mode, controller)?;
        let unit = path.ancestors().find(|part| is_of_unit(part, subject.unit))?;
        Some(Place { mount: self.cgroup.join(subject.mode.hierarchy(controller)), unit })
    }

    fn check(
        &self,
        subject: &Subject<'_>,
        place: &Place<'_>,
        expectation: &Expectation,
        report: &mut Report,
        manager: &mut dyn Manager,
    ) -> Result<()> {
        let Some(found) = self.look(subject, place, expectation)? else {
            return Err(absent(subject, place, expectation).into());
        };
        let limit = Limit {
            property: expectation.property,
            asked: expectation.asked.clone(),
            file: found.file,
            in_force: found.text.clone(),
            effective: self.effective(place, found.file, &found.want),
        };
        match found.verdict {
            // v1 takes no quota above one further up, and that one holds.
            Verdict::Looser if found.file == QUOTA_V1 && limit.effective.is_some() => {}
            Verdict::Looser if subject.changes == Changes::Hold && set_since(subject, expectation, manager) => {
                let line = "was changed by a set-property, which holds until the unit is stopped";
                report.warnings.push(format!("{}: {} has {}, it {line}", expectation.asked, found.file, found.text));
            }
            Verdict::Looser => return Err(different(subject, expectation, &found, manager).into()),
            Verdict::Tighter => {
                let by = named(&manager.drop_ins(subject.unit), expectation)
                    .map_or_else(String::new, |by| format!(", by {by}"));
                report.warnings.push(format!("{}: {} has {}{by}", expectation.asked, found.file, found.text));
            }
            Verdict::InForce => {}
        }
        if let Some(effective) = &limit.effective {
            let cpus = matches!(found.want, Want::Cpus(_));
            let why = if cpus { "not all of these can be used" } else { "a cgroup further up is tighter" };
            report.warnings.push(format!("{}: {why}, {effective} holds", expectation.asked));
        }
        report.warnings.extend(self.idle_weight(place, expectation, found.file));
        report.limits.push(limit);
        Ok(())
    }

    /// Looks at the places that can show a setting, the one where it is in force first; `None` when none is there.
    fn look(&self, subject: &Subject<'_>, place: &Place<'_>, expectation: &Expectation) -> Result<Option<Found>> {
        let mut first = None;
        for (file, want) in &expectation.places {
            let found = match want {
                Want::Programs(types) => Some(self.look_at_programs(subject, place, expectation, types)?),
                _ => self.look_at_file(place, expectation, file, want)?,
            };
            match found {
                Some(found) if found.verdict == Verdict::InForce => return Ok(Some(found)),
                Some(found) => first = first.or(Some(found)),
                None => {}
            }
        }
        Ok(first)
    }

    fn look_at_file(
        &self,
        place: &Place<'_>,
        expectation: &Expectation,
        file: &'static str,
        want: &Want,
    ) -> Result<Option<Found>> {
        let path = place.mount.join(place.unit).join(file);
        let Some(text) = read_value(&path).with_context(|| format!("read {}", path.display()))? else {
            return Ok(None);
        };
        let device = match want {
            Want::Device { path, .. } => match device::number(&self.sys, Path::new(path)) {
                Ok(device) => device,
                Err(error) => {
                    let line = format!("{} is not in force: {path}: {}", expectation.asked, plain(&error));
                    return Err(fault(line).hint("lsblk lists the disks of this machine").into());
                }
            },
            _ => None,
        };
        let (verdict, text) = compare(want, &text, device.as_deref());
        let found = Found { file, want: want.clone(), verdict, text, disk: device };
        Ok(Some(self.unusable_cpus(place, &found).unwrap_or(found)))
    }

    /// Where none of the CPUs asked for is there, the kernel takes the list and uses the parent's CPUs instead.
    fn unusable_cpus(&self, place: &Place<'_>, found: &Found) -> Option<Found> {
        let file = match (&found.want, found.file) {
            (Want::Cpus(_), "cpuset.cpus") => "cpuset.cpus.effective",
            (Want::Cpus(_), "cpuset.mems") => "cpuset.mems.effective",
            _ => return None,
        };
        let used = read(&place.mount.join(place.unit).join(file)).ok()??;
        let (verdict, text) = compare(&found.want, &used, None);
        (verdict == Verdict::Looser).then(|| Found { file, want: found.want.clone(), verdict, text, disk: None })
    }

    fn look_at_programs(
        &self,
        subject: &Subject<'_>,
        place: &Place<'_>,
        expectation: &Expectation,
        types: &[u32],
    ) -> Result<Found> {
        let refused = |why: String| fault(format!("{} is not in force: {why}", expectation.asked));
        if subject.user {
            let line = refused("a user's service manager may not load BPF programs".to_owned());
            return Err(line.hint("run it as root without --user").into());
        }
        let directory = place.mount.join(place.unit);
        let mut count = 0;
        for kind in types {
            let programs = (self.programs)(&directory, *kind);
            let programs =
                programs.map_err(|error| refused(format!("BPF programs cannot be counted: {}", plain(&error))))?;
            count = programs;
            if programs == 0 {
                break;
            }
        }
        let verdict = if count > 0 { Verdict::InForce } else { Verdict::Looser };
        let text = if count > 0 { "a BPF program" } else { "no BPF program" }.to_owned();
        Ok(Found { file: "", want: Want::Programs(types.to_vec()), verdict, text, disk: None })
    }

    /// What holds in the end, when a cgroup further up is tighter than `want`.
    fn effective(&self, place: &Place<'_>, file: &str, want: &Want) -> Option<String> {
        let tighter = |want: &Want, path: PathBuf| {
            let text = read_value(&path).ok()??;
            let (verdict, found) = compare(want, &text, None);
            (verdict == Verdict::Tighter).then_some(found)
        };
        match want {
            Want::Cpus(_) => tighter(want, place.mount.join(place.unit).join(format!("{file}.effective"))),
            Want::Most(_) | Want::Share(_) | Want::ShareOfTasks(_) | Want::Quota(..) => {
                let ancestors = place.unit.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
                let mut want = match want {
                    Want::Share(most) | Want::ShareOfTasks(most) => Want::Most(*most),
                    other => other.clone(),
                };
                let mut tightest = None;
                for ancestor in ancestors {
                    if let Some(found) = tighter(&want, place.mount.join(ancestor).join(file)) {
                        want = narrowed(&want, &found);
                        let name = ancestor.file_name().unwrap_or_default().to_string_lossy();
                        tightest = Some(format!("{found} of {name}"));
                    }
                }
                tightest
            }
            _ => None,
        }
    }

    /// io.weight without a scheduler that weighs is only a number.
    fn idle_weight(&self, place: &Place<'_>, expectation: &Expectation, file: &str) -> Option<String> {
        if file != "io.weight" || place.mount.join(place.unit).join("io.bfq.weight").exists() {
            return None;
        }
        let cost = read(&place.mount.join("io.cost.qos")).ok()?.unwrap_or_default();
        let weighs = cost.contains("enable=1");
        (!weighs).then(|| format!("{}: set, but no disk here weighs: neither bfq nor io.cost is on", expectation.asked))
    }
}

/// What the kernel shows of one setting.
struct Found {
    file: &'static str,
    want: Want,
    verdict: Verdict,
    text: String,
    /// The number of the disk that a path stands for, where that is the question and can be told.
    disk: Option<String>,
}

/// The limit that is left when a tighter one was found.
fn narrowed(want: &Want, found: &str) -> Want {
    let number = |text: &str| text.trim().parse().ok();
    match want {
        Want::Most(most) => Want::Most(number(found).unwrap_or(*most)),
        Want::Quota(quota, period) => match found.split_once(' ').map(|(a, b)| (number(a), number(b))) {
            Some((Some(quota), Some(period))) => Want::Quota(quota, period),
            _ => Want::Quota(*quota, *period),
        },
        other => other.clone(),
    }
}

fn programs(cgroup: &Path, kind: u32) -> io::Result<u32> {
    sys::bpf_prog_query(File::open(cgroup)?.as_fd(), kind)
}

/// Reads a small file; `None` when it is not there.
fn read(path: &Path) -> io::Result<Option<String>> {
    match read_of_kernel(path) {
        Ok(text) => String::from_utf8(text).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a file that shows a setting; v1 has quota and period in two files, which make the one line of v2.
fn read_value(path: &Path) -> io::Result<Option<String>> {
    let text = read(path)?;
    if path.file_name().is_none_or(|name| name != QUOTA_V1) {
        return Ok(text);
    }
    let period = read(&path.with_file_name("cpu.cfs_period_us"))?;
    Ok(text.zip(period).map(|(quota, period)| format!("{} {}", quota.trim(), period.trim())))
}

/// What systemd takes percentages of tasks of (`system_tasks_max`).
fn tasks_max(proc: &Path) -> u64 {
    let number = |file: &str| read(&proc.join(file)).ok().flatten().and_then(|text| text.trim().parse::<u64>().ok());
    let threads = number("sys/kernel/threads-max").unwrap_or(u64::MAX);
    // 0 is no process, so one less than the numbers.
    threads.min(number("sys/kernel/pid_max").unwrap_or(u64::MAX).saturating_sub(1))
}

#[cfg(test)]
mod tests;
