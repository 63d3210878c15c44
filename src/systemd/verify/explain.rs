//! Why a setting is not in force, in one line, and what mends it.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Fault, fault};

use super::super::cgroup::{CgroupMode, CgroupPaths};
use super::expect::{Expectation, Want};
use super::{Changes, Found, Manager, Place, Subject, read, set_at_runtime};

/// An error of the system without its number.
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Whether a drop-in names the property.
fn names(path: &Path, expectation: &Expectation) -> bool {
    let sent = expectation.sent.trim_end_matches("Scale").trim_end_matches("PerSecUSec");
    let text = read(path).ok().flatten().unwrap_or_default();
    text.lines().any(|line| line.trim_start().starts_with(sent) || line.trim_start().starts_with(expectation.property))
}

/// Whether it is `set-property`, and nobody else, that says otherwise.
pub(super) fn set_since(subject: &Subject<'_>, expectation: &Expectation, manager: &mut dyn Manager) -> bool {
    let drop_ins = manager.drop_ins(subject.unit);
    let mut naming = drop_ins.iter().filter(|path| names(path, expectation)).peekable();
    naming.peek().is_some() && naming.all(|path| set_at_runtime(path).is_some())
}

/// The drop-ins that name the property, else all: `None` when there are none.
pub(super) fn named(drop_ins: &[PathBuf], expectation: &Expectation) -> Option<String> {
    let naming: Vec<_> = drop_ins.iter().filter(|path| names(path, expectation)).collect();
    let chosen = if naming.is_empty() { drop_ins.iter().collect() } else { naming };
    let list = chosen.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    (!list.is_empty()).then_some(list)
}

/// The value asked, as the kernel would show it.
fn asked(want: &Want) -> String {
    match want {
        Want::Most(u64::MAX) | Want::Least(u64::MAX) => "max".to_owned(),
        Want::Most(n)
        | Want::Share(n)
        | Want::ShareOfTasks(n)
        | Want::Least(n)
        | Want::Exactly(n)
        | Want::Weight(n) => n.to_string(),
        Want::Quota(u64::MAX, period) => format!("max {period}"),
        Want::Quota(quota, period) => format!("{quota} {period}"),
        Want::Cpus(cpus) => cpus.to_string(),
        Want::Device { path, key: "", number } => format!("{number} for {path}"),
        Want::Device { path, key, number } => format!("{key}={number} for {path}"),
        Want::Word(word) => word.clone(),
        Want::SomeDevices => "a list of devices".to_owned(),
        Want::Exists => "the file".to_owned(),
        Want::Programs(_) => "a BPF program".to_owned(),
    }
}

/// The line for a value that is looser than asked.
pub(super) fn different(
    subject: &Subject<'_>,
    expectation: &Expectation,
    found: &Found,
    manager: &mut dyn Manager,
) -> Fault {
    let place = if found.file.is_empty() { "on its cgroup" } else { &format!("in {}", found.file) };
    let asked = asked(&found.want);
    let line = format!("{} is not in force: asked {asked}, found {} {place}", expectation.asked, found.text);
    let user = if subject.user { " --user" } else { "" };
    let mut drop_ins = manager.drop_ins(subject.unit);
    drop_ins.retain(|path| subject.changes != Changes::Asked || set_at_runtime(path).is_none());
    if let Some(files) = named(&drop_ins, expectation) {
        let hint = format!("systemctl{user} cat {}", subject.unit);
        return fault(format!("{line}: a drop-in says otherwise: {files}")).hint(hint);
    }
    let why = match &found.want {
        Want::Device { path, .. } if found.disk.is_none() => format!("no single disk is known behind {path}"),
        Want::Programs(_) if needs_framework(expectation.property) && manager.features().contains("-BPF_FRAMEWORK") => {
            "this systemd was built without the BPF framework (`systemctl --version`)".to_owned()
        }
        Want::Cpus(_) if found.file.ends_with("effective") => "this machine, or the slice, has no others".to_owned(),
        _ => "systemd did not set it or the kernel did not take it".to_owned(),
    };
    fault(format!("{line}: {why}")).hint(format!("journalctl{user} -b -u {}", subject.unit))
}

/// Says whether systemd loads the program for a property with libbpf, which not every distribution builds in (Debian 12
/// does not); what it makes of IPAddress…= and Device…= it assembles itself.
fn needs_framework(property: &str) -> bool {
    property.starts_with("SocketBind") || matches!(property, "RestrictNetworkInterfaces" | "BindNetworkInterface")
}

/// What gives a user manager the controllers that it lacks.
const DELEGATE: &str = "as root: mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' \
                        > /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload, then log in anew";

/// The line for a setting whose file is not in the unit's cgroup.
pub(super) fn absent(subject: &Subject<'_>, place: &Place<'_>, expectation: &Expectation) -> Fault {
    let want = expectation.places.first().map_or_else(String::new, |(_, want)| asked(want));
    let missing = match expectation.places.as_slice() {
        [(file, _)] => format!("{file} is not there"),
        places => {
            format!("neither {} is there", places.iter().map(|(file, _)| *file).collect::<Vec<_>>().join(" nor "))
        }
    };
    let line = format!("{} is not in force: asked {want}, {missing}", expectation.asked);
    let controller = expectation.controller.unwrap_or_default();
    let enabled = read(&place.mount.join(place.unit).join("cgroup.controllers")).ok().flatten().unwrap_or_default();
    let enabled = enabled.split_whitespace().any(|name| name == controller);
    match (subject.mode, enabled) {
        (CgroupMode::Unified, false) if subject.user => {
            fault(format!("{line}: the controller {controller} is not delegated to your service manager"))
                .hint(DELEGATE)
        }
        (CgroupMode::Unified, false) => {
            let hint = format!(
                "cat /sys/fs/cgroup/cgroup.controllers; the kernel may have been booted with cgroup_disable={controller}"
            );
            fault(format!("{line}: the controller {controller} is not enabled for {}", subject.unit)).hint(hint)
        }
        _ if expectation.places.iter().any(|(file, _)| file.contains("bfq")) => {
            fault(format!("{line}: no scheduler here weighs disks")).hint("modprobe bfq")
        }
        _ => fault(format!("{line}: this kernel does not have it")),
    }
}

/// The line for a process that is not in the unit in the hierarchy of a controller.
pub(super) fn outside(subject: &Subject<'_>, paths: &CgroupPaths, expectation: &Expectation) -> Fault {
    let line = format!("{} is not in force", expectation.asked);
    let path = paths.path(subject.mode, expectation.controller);
    let path = path.map_or_else(|| "nowhere".to_owned(), |path| format!("in /{}", path.display()));
    match (subject.mode, expectation.controller) {
        (CgroupMode::Hybrid | CgroupMode::Legacy, Some(controller)) if subject.user => fault(format!(
            "{line}: on cgroup v1 a user's service manager has no {controller} controller (the process is {path})"
        ))
        .hint("run it as root without --user, or boot with systemd.unified_cgroup_hierarchy=1"),
        (CgroupMode::Hybrid | CgroupMode::Legacy, Some(controller)) => {
            fault(format!("{line}: for the {controller} controller the process is {path}, not in {}", subject.unit))
                .hint(format!("journalctl -b -u {}", subject.unit))
        }
        _ => not_in_unit(subject, paths),
    }
}

/// The line for a process that systemd did not put into the unit at all: it ends a start job well also when a condition
/// of the unit is not met (seen on 257).
pub(super) fn not_in_unit(subject: &Subject<'_>, paths: &CgroupPaths) -> Fault {
    let path = paths.path(subject.mode, None);
    let path = path.map_or_else(|| "in no cgroup".to_owned(), |path| format!("in /{}", path.display()));
    let user = if subject.user { " --user" } else { "" };
    let line = format!("systemd did not put the process into {}: it is {path}", subject.unit);
    fault(line).hint(format!("a Condition…= may not be met: journalctl{user} -b -u {}", subject.unit))
}
