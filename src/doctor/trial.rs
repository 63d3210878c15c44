//! Trials: what can only be known by doing it is done in a child process with namespaces of its own. Nothing outlives the
//! child: its mounts are in its own mount namespace, and it is killed when the trial is over or takes too long.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::MountAttrFlags;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitId, WaitIdOptions};

use crate::error::{Result, fault};
use crate::part::rootfs::RootPlan;
use crate::part::rootfs::assemble::{Ids, assemble, new_file_system};
use crate::part::scratch;
use crate::part::users::{self, UserPlan};
use crate::sync::{self, ChildEnd, Failure, ParentEnd, ToChild, ToParent};
use crate::sys::{self, Side};

/// How a trial ended.
pub(crate) type Trial = std::result::Result<(), Failure>;

/// The longest that a trial may take, in seconds.
const PATIENCE: i64 = 10;

/// First ID of the range that trials map. No file is made on a disk with it and no process runs as it for long, so it needs no claim.
const BASE: u32 = 1_878_982_656;

/// A child process that makes a trial; killed when dropped.
struct Child {
    end: ParentEnd,
    pid: Pid,
    pidfd: OwnedFd,
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to do.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let pidfd = WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(pidfd, WaitIdOptions::EXITED);
    }
}

impl Child {
    /// Starts `work` in a child with the namespaces of `flags`; its end tells how that went.
    fn start(flags: libc::c_int, work: impl FnOnce(&ChildEnd) -> Result<()>) -> Result<Child> {
        let (end, child_end) = sync::pair().context("make a socket pair")?;
        match sys::clone_process(flags).context("make namespaces")? {
            Side::Child => {
                drop(end);
                let message = match work(&child_end) {
                    Ok(()) => ToParent::Ready(None),
                    Err(error) => ToParent::Failed(Failure::from_error(&error)),
                };
                // Without the parent there is nobody to tell.
                drop(child_end.send(&message));
                sys::exit_now(0)
            }
            Side::Parent(pid, pidfd) => Ok(Child { end, pid, pidfd }),
        }
    }

    /// The same in a user namespace with the map of `users`, as its root.
    fn start_mapped(users: &UserPlan, flags: libc::c_int, work: impl FnOnce() -> Result<()>) -> Result<Child> {
        let child = Child::start(flags | libc::CLONE_NEWUSER, |end| {
            match end.receive()? {
                Some(ToChild::Mapped) => users::become_root(users)?,
                _ => return Err(fault("the ID map was not written").into()),
            }
            work()
        })?;
        let (uid, gid) = users::map_lines(users, BASE).unwrap_or_default();
        let is_root = rustix::process::geteuid().is_root();
        users::write_maps(child.pid, &uid, &gid, is_root)?;
        child.end.send(&ToChild::Mapped).context("tell the trial's child")?;
        Ok(child)
    }

    /// Waits for the answer.
    fn answer(self) -> Result<()> {
        let mut poll = [PollFd::new(&self.end, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&patience)))?;
        if ready == 0 {
            return Err(fault(format!("no end within {PATIENCE} s")).into());
        }
        match self.end.receive()? {
            Some(ToParent::Ready(_)) => Ok(()),
            Some(ToParent::Failed(failure)) => Err(failure.into_error()),
            _ => Err(fault("the trial's process ended early").into()),
        }
    }
}

fn told(result: Result<()>) -> Trial {
    result.map_err(|error| Failure::from_error(&error))
}

/// Whether a user namespace can be made and its root has power in it (AppArmor can take that away).
pub(super) fn user_namespace(users: &UserPlan) -> Trial {
    let work = || {
        new_file_system("tmpfs", &[], MountAttrFlags::MOUNT_ATTR_NODEV).context("mount in a user namespace")?;
        Ok(())
    };
    told(Child::start_mapped(users, libc::CLONE_NEWNS, work).and_then(Child::answer))
}

/// Whether a new file system of the kernel (`proc`, `sysfs`) can be mounted by all namespaces' root; read-only as sandboxes do
/// it for `sysfs`.
pub(super) fn kernel_file_system(users: &UserPlan, name: &str) -> Trial {
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    let work = || {
        let mut attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        if name == "sysfs" {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        new_file_system(name, &[], attributes)?;
        Ok(())
    };
    told(Child::start_mapped(users, flags, work).and_then(Child::answer))
}

/// Whether the boot-time clock can be set in a time namespace.
pub(super) fn time_namespace(users: &UserPlan) -> Trial {
    use crate::layer::Namespace::{Cgroup, Ipc, Mount, Net, Pid, User, Uts};
    let work = || {
        // The change to root of the namespace made /proc/self somebody else's, proc_pid(5).
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        let others = [Mount, Pid, Uts, Ipc, Net, Cgroup, User];
        crate::part::namespaces::Namespaces::plan(&others).enter_time(1)
    };
    told(Child::start_mapped(users, 0, work).and_then(Child::answer))
}

/// Makes the whole root that `run` would make, as `run` does it, and throws it away.
pub(super) fn root(plan: &RootPlan, users: &UserPlan) -> Trial {
    let temporary = plan.upper.as_ref().filter(|_| plan.temporary);
    if let Some(path) = temporary {
        told(scratch::make(path))?;
    }
    let made = if plan.userxattr { own_root(plan, users) } else { helpers_root(plan, users) };
    if let Some(path) = temporary {
        scratch::remove(path, users);
    }
    told(made)
}

/// A plain user's root is made by the child itself.
fn own_root(plan: &RootPlan, users: &UserPlan) -> Result<()> {
    let ids = Ids { base: 0, userns: None, inside: None };
    Child::start_mapped(users, libc::CLONE_NEWNS, || assemble(plan, &ids, || {}).map(drop))?.answer()
}

/// Root's is made by a helper outside the user namespace, which exists only to have a map.
fn helpers_root(plan: &RootPlan, users: &UserPlan) -> Result<()> {
    let mapped = match users {
        UserPlan::Range { .. } => Some(hold_user_namespace(users)?),
        UserPlan::Identity | UserPlan::Host | UserPlan::Maps { .. } => None,
    };
    let ids = Ids {
        base: if mapped.is_some() { BASE } else { 0 },
        userns: mapped.as_ref().map(|(_, file)| file.as_fd()),
        inside: None,
    };
    Child::start(libc::CLONE_NEWNS, |_| assemble(plan, &ids, || {}).map(drop))?.answer()
}

/// A user namespace with the map of `users`; it lives as long as the file is open.
fn hold_user_namespace(users: &UserPlan) -> Result<(Child, File)> {
    let child = Child::start(libc::CLONE_NEWUSER, |end| {
        // Until the parent closes its end.
        while end.receive()?.is_some() {}
        Ok(())
    })?;
    let (uid, gid) = users::map_lines(users, BASE).unwrap_or_default();
    users::write_maps(child.pid, &uid, &gid, true)?;
    let file = users::open_namespace(child.pid, "user")?;
    Ok((child, file))
}
