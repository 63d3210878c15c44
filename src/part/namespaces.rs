//! Namespaces: which are made by clone3, which by the child, namespaces(7).

use std::os::fd::AsFd;

use serde::Serialize;

use crate::error::Result;
use crate::layer::Namespace;
use crate::sys;
use anyhow::Context;

/// The namespaces of one sandbox that are its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Namespaces(Vec<Namespace>);

impl Namespaces {
    /// All but the shared ones.
    pub(crate) fn plan(shared: &[Namespace]) -> Namespaces {
        use Namespace::{Cgroup, Ipc, Mount, Net, Pid, Time, User, Uts};
        Namespaces(
            [Mount, Pid, Uts, Ipc, Net, Cgroup, Time, User].into_iter().filter(|n| !shared.contains(n)).collect(),
        )
    }

    /// All of them.
    pub(crate) fn list(&self) -> &[Namespace] {
        &self.0
    }

    /// Whether this one is its own.
    pub(crate) fn has(&self, namespace: Namespace) -> bool {
        self.0.contains(&namespace)
    }

    /// The flags for clone3. The network is made later by the child, since it takes half a millisecond that systemd's work can
    /// hide; the cgroup one only when the child is in its unit, since that is what becomes its root; the time one by the child,
    /// since a clock's offset can be set only before a process is in it (time_namespaces(7)).
    pub(crate) fn clone_flags(&self) -> libc::c_int {
        let rows = [
            (Namespace::User, libc::CLONE_NEWUSER),
            (Namespace::Mount, libc::CLONE_NEWNS),
            (Namespace::Pid, libc::CLONE_NEWPID),
            (Namespace::Uts, libc::CLONE_NEWUTS),
            (Namespace::Ipc, libc::CLONE_NEWIPC),
        ];
        rows.into_iter().filter(|(namespace, _)| self.has(*namespace)).fold(0, |flags, (_, flag)| flags | flag)
    }

    /// Enters the cgroup namespace, whose root is the cgroup that this process is in now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn enter_cgroup(&self) -> Result<()> {
        if self.has(Namespace::Cgroup) {
            sys::unshare(libc::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
        }
        Ok(())
    }

    /// Makes the time namespace, in which the boot-time clock is at 0 at its second `zero`, and enters it: a process that shares this one's
    /// memory has to be in the same one (clone(2) says EINVAL otherwise before Linux 6.1). The files in /proc have to be this process's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn enter_time(&self, zero: u64) -> Result<()> {
        if self.has(Namespace::Time) {
            sys::unshare(TIME).context("unshare the time namespace")?;
            // Only the boot-time clock: the monotonic one has to agree with systemd's in notifications, sd_notify(3).
            // No process inside may have begun before its zero: that is a huge number to ps(1).
            std::fs::write("/proc/self/timens_offsets", format!("boottime -{zero} 0"))
                .context("set the boot-time clock")?;
            let made = std::fs::File::open("/proc/self/ns/time_for_children").context("open the time namespace")?;
            sys::setns(made.as_fd(), TIME).context("enter the time namespace")?;
        }
        Ok(())
    }
}

/// `CLONE_NEWTIME` of linux/sched.h; libc has it for some targets only.
pub(crate) const TIME: libc::c_int = 0x80;

impl std::fmt::Display for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.iter().map(|namespace| format!("{namespace:?}").to_lowercase()).collect();
        f.write_str(&names.join(" "))
    }
}
