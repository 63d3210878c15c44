//! Our own program as nobody inside can write it. Processes of ours that become a payload are for a moment seen inside as
//! /proc/PID/exe, and a command may be /proc/self/exe itself: opened there, and kept until nothing runs it any more, the file on the
//! host could be replaced by whoever owns it (CVE-2019-5736). Where root inside owns what root outside does, or is the very user
//! whose program it is, this process therefore goes on as the same program from a place that is read-only: a bind, or where a plain
//! user can make none, a sealed copy in memory. A range of IDs of its own owns nothing on the host and needs neither.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use nix::fcntl::AtFlags;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};

use crate::error::Result;
use crate::plan::{Plan, UnitKind};
use crate::sys;
use crate::systemd::Grace;

/// The name by which a process reaches its own program.
const OWN: &str = "/proc/self/exe";

/// Does [`go_on_sealed`] where this process is the one that starts what is planned, not a service that it asks for. The process behind
/// `grace` is waited for first: what goes on does not know of it, and it would stay as a zombie.
///
/// # Errors
/// As that.
pub(crate) fn before_start(plan: &Plan, grace: &mut Option<Grace>) -> Result<()> {
    let asks = plan.unit.as_ref().is_some_and(|unit| unit.kind == UnitKind::Service);
    if asks {
        return Ok(());
    }
    match exposed(plan.users.own_range())? {
        Some(own) => {
            *grace = None;
            go_on(own)
        }
        None => Ok(()),
    }
}

/// Goes on as a read-only copy of this program where one is needed and this is none yet; otherwise returns. `own_range` says that the
/// sandbox has IDs that are nobody else's. To be called before anything is locked or started: all that was done is done again.
///
/// # Errors
/// When it is needed and cannot be had.
pub(crate) fn go_on_sealed(own_range: bool) -> Result<()> {
    exposed(own_range)?.map_or(Ok(()), go_on)
}

/// Our own program, where somebody inside could write it.
fn exposed(own_range: bool) -> Result<Option<File>> {
    if own_range {
        return Ok(None);
    }
    let own = File::open(OWN).context("open our own program")?;
    if is_sealed(&own)? {
        // The kernel has named it after a descriptor.
        rustix::thread::set_name(c"sandbox").context("name this process")?;
        return Ok(None);
    }
    Ok(is_exposed(&own)?.then_some(own))
}

fn go_on(own: File) -> Result<()> {
    let sealed = match bind(&own) {
        Ok(bind) => bind,
        Err(error) => {
            log::debug!("our own program cannot be bound read-only: {error:#}");
            copy(own).context("make a sealed copy of our own program")?
        }
    };
    let strings = |list: Vec<Vec<u8>>| list.into_iter().map(CString::new).collect::<std::result::Result<Vec<_>, _>>();
    let arguments = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        [name.into_vec(), b"=".to_vec(), value.into_vec()].concat()
    };
    let environment = strings(std::env::vars_os().map(variable).collect())?;
    nix::unistd::execveat(sealed.as_fd(), c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
        .context("go on as a read-only copy of our own program")?;
    Ok(())
}

/// Whether an ID that exists inside may write the program on the host: root's own, or the caller's and subordinate ones.
fn is_exposed(own: &File) -> Result<bool> {
    let meta = own.metadata().context("look at our own program")?;
    Ok(rustix::process::geteuid().is_root() || meta.uid() != 0 || meta.mode() & 0o022 != 0)
}

/// Whether it is such a copy, or on a file system that cannot be written.
fn is_sealed(own: &File) -> Result<bool> {
    let read_only =
        rustix::fs::fstatvfs(own).context("look at our own program")?.f_flag.contains(StatVfsMountFlags::RDONLY);
    // EINVAL: no file in memory.
    let seals = rustix::fs::fcntl_get_seals(own).unwrap_or(SealFlags::empty());
    Ok(read_only || seals.contains(SealFlags::WRITE))
}

/// A bind of the program, attached nowhere.
fn bind(own: &File) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, OWN, flags)?;
    let attributes = sys::attr::RDONLY | sys::attr::NOSUID | sys::attr::NODEV;
    let mount = match sys::mount_setattr(mount.as_fd(), 0, attributes) {
        Ok(()) => mount,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            let thread = std::thread::Builder::new().spawn(bind_elsewhere)?;
            thread.join().map_err(|_| anyhow::anyhow!("the thread that binds it panicked"))??
        }
        Err(error) => return Err(error.into()),
    };
    let same = |a: rustix::fs::Stat, b: rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    anyhow::ensure!(same(rustix::fs::fstat(&mount)?, rustix::fs::fstat(own)?), "it has been replaced");
    Ok(mount)
}

/// The same in a mount namespace of this thread, which ends with it and leaves the bind attached nowhere: before Linux 5.12 only what is
/// attached can be made read-only.
fn bind_elsewhere() -> Result<OwnedFd> {
    let path = std::fs::read_link(OWN)?;
    sys::unshare(libc::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount_bind(&path, &path)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(&path, flags, c"")?;
    Ok(rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// A copy in memory that nobody can change.
fn copy(mut own: File) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create("sandbox", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every one may be executed.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("sandbox", flags)?,
        memory => memory?,
    };
    let mut file = File::from(memory);
    std::io::copy(&mut own, &mut file)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}
