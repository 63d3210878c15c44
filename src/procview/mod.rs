//! The truthful /proc: what runs inside sees its own limits, not the machine.
//!
//! [`table`] has the virtual files, each a pure function from [`statistics::Statistics`] and the host's text to the sandbox's text;
//! [`reader`] reads the statistics. [`tree`] is the directory of CPUs, of which only those that are seen are shown. [`mount`] makes the file system and binds its files over the kernel's own, in the sandbox's mount
//! namespace only; [`server`] answers for them, in the launcher's poll loop ([`crate::relay`]), which is outside of that namespace: a
//! server that its own files cover would wait for itself. [`sysinfo`] answers the system calls that tell the same numbers.
//!
//! /proc/sys and /proc/PID stay the kernel's. A process of `exec` shares the mount namespace and so the files; its sysinfo(2) is the
//! kernel's, since whoever answered it would have to live as long as what the process leaves behind.

mod cpu;
mod disk;
mod fuse;
mod memory;
pub(crate) mod mount;
mod reader;
mod server;
mod statistics;
mod sysinfo;
mod table;
mod tasks;
mod tree;
mod view;

use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::Host;
use crate::layer::Procview;
use crate::part::mounts::CPUS;
use crate::spec::Spec;
use crate::systemd::CgroupMode;

pub(crate) use reader::Subject;
pub(crate) use server::{Served, Server};
pub(crate) use sysinfo::listen;
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

/// Whether the file comes with the directory of CPUs.
fn is_of_cpus(row: &Row) -> bool {
    row.path.starts_with(CPUS)
}

/// What is bound, by its name in our file system: the directory of CPUs and each file that is not in there.
fn bound() -> impl Iterator<Item = (String, &'static str)> {
    let files = TABLE.iter().filter(|row| !is_of_cpus(row)).map(|row| row.path);
    files.chain([CPUS]).map(|path| (flat_name(path), path))
}

#[cfg(test)]
mod tests;
