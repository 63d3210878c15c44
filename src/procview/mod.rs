//! The truthful /proc: what runs inside sees its own limits, not the machine.
//!
//! [`table`] has the virtual files, each a pure function from [`statistics::Statistics`] and the host's text to the sandbox's text;
//! [`reader`] reads the statistics. [`tree`] has the directories of CPUs and of memory nodes, in which only the CPUs that are seen are
//! shown. [`mount`] makes the file system, whose files [`crate::part::mounts`] binds over the kernel's own, in the sandbox's mount
//! namespace only; [`server`] answers for them, in the launcher's poll loop ([`crate::relay`]), which is outside of that namespace: a
//! server that its own files cover would wait for itself. Until the child is ready it is the helper of the start that answers, with names.
//! [`sysinfo`] answers the system calls that tell the same numbers.
//!
//! /proc/sys and /proc/PID stay the kernel's. A process of `exec` shares the mount namespace and so the files; its sysinfo(2) is the
//! kernel's, since whoever answered it would have to live as long as what the process leaves behind.

mod cpu;
mod disk;
mod fuse;
mod memory;
pub(crate) mod mount;
mod node;
mod reader;
mod server;
mod statistics;
mod sysinfo;
mod table;
mod tasks;
mod tree;
mod view;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::Host;
use crate::layer::Procview;
use crate::spec::Spec;
use crate::systemd::CgroupMode;

pub(crate) use reader::Subject;
pub(crate) use server::Server;
pub(crate) use sysinfo::{Filter, filter, listen};
pub(crate) use view::{Part, View};

use table::{Row, TABLE};

/// The view, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ViewPlan {
    /// Calls of sched_getaffinity(2) are answered, too: a quota leaves fewer CPUs than the mask has.
    pub(crate) affinity: bool,
    /// What is the machine's all the same, since cgroup v1 does not tell it.
    pub(crate) machines: Vec<&'static str>,
}

/// What cgroup v1 does not count, or only where its accounting was asked for.
const NOT_ON_V1: &[&str] = &["pressure", "kernel memory", "disks without IOAccounting="];

/// Decides whether there is a view; `has_root` says that the sandbox has mounts of its own, `quota` that its CPU time is limited.
/// Where the default has to give way `warnings` gets a line.
///
/// # Errors
/// When it was asked for and cannot be had.
pub(crate) fn plan(
    spec: &Spec,
    host: &Host,
    has_root: bool,
    quota: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<ViewPlan>> {
    if spec.procview == Some(Procview::Off) || !has_root {
        return Ok(None);
    }
    match (&host.no_fuse, spec.procview) {
        (None, _) => {
            let v1 = host.cgroup != Some(CgroupMode::Unified);
            let machines = if v1 { NOT_ON_V1.to_vec() } else { Vec::new() };
            Ok(Some(ViewPlan { affinity: quota, machines }))
        }
        (Some(why), Some(_)) => {
            let line = format!("--procview on needs {}: {why}", mount::DEVICE);
            Err(fault(line).hint("modprobe fuse, as root; sandbox doctor tells more").into())
        }
        (Some(why), None) => {
            warnings.push(format!("/proc inside shows this machine's memory and CPUs: {}: {why}", mount::DEVICE));
            Ok(None)
        }
    }
}

/// The name in our file system of what covers a path: the path, flat.
fn flat_name(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

/// Whether the file comes with one of the directories.
fn is_in_a_directory(row: &Row) -> bool {
    let below = row.path.strip_prefix(tree::BASE).and_then(|path| path.strip_prefix('/'));
    // In pieces: to take paths apart and put them together takes ten times as long, and a start asks for each file.
    below.is_some_and(|path| path.split('/').next().is_some_and(|top| tree::TOPS.contains(&top)))
}

/// The directories that are ours as a whole.
fn directories() -> impl Iterator<Item = PathBuf> {
    tree::TOPS.iter().map(|top| Path::new(tree::BASE).join(top))
}

/// What is bound, by its name in our file system: the directories, and each file that is in none of them.
pub(crate) fn bound() -> impl Iterator<Item = (String, PathBuf)> {
    let files = TABLE.iter().filter(|row| !is_in_a_directory(row)).map(|row| PathBuf::from(row.path));
    files.chain(directories()).map(|path| (flat_name(&path.to_string_lossy()), path))
}

#[cfg(test)]
mod tests;
