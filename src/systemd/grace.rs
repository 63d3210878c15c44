//! What a start waits for most is one write of systemd's: the first one to a `cgroup.procs` after an idle moment takes a grace period
//! of RCU, some 8 ms, since it takes `cgroup_threadgroup_rwsem` (kernel/cgroup/cgroup.c) from readers that pay nothing; those that
//! come soon after take 0.02 ms. So the grace period is begun here, while the launcher still decides: by a process that moves itself to
//! the cgroup where it is already, which changes nothing. As long as that takes, the kernel (before 6.8) lets nobody read a
//! /proc/PID/cgroup, so the launcher has read those that it needs before.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::cgroup::CgroupPaths;
use crate::sys::Writer;

/// A grace period that has begun. Dropping it waits for its end.
pub(crate) struct Grace(#[expect(dead_code, reason = "is only dropped")] Writer);

impl Grace {
    /// Begins one, where this process may: else systemd's own write begins it, and nothing is lost but time.
    pub(crate) fn begin() -> Option<Grace> {
        match own_procs().map(|file| Writer::start(file, b"0")) {
            Some(Ok(writer)) => Some(Grace(writer)),
            Some(Err(error)) => {
                log::debug!("begin a grace period: {error}");
                None
            }
            None => None,
        }
    }
}

/// The `cgroup.procs` of the cgroup that this process is in, in whichever hierarchy systemd mounts; all share the one lock.
fn own_procs() -> Option<OwnedFd> {
    let paths = CgroupPaths::of_this_process().ok()?;
    let (below, path) = paths.of_systemd()?;
    let file = format!("/sys/fs/cgroup/{below}{path}/cgroup.procs");
    rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}
