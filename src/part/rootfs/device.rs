//! Nodes of the root's own for the host's devices.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::assemble::{Assembly, Ids, new_file_system};
use super::source::{Source, Wanted};
use super::{BindPlan, Operation};
use crate::error::Result;

impl Assembly<'_> {
    /// Makes a node for the device of the host that is called `at`, with its mode, or binds that one where the root's /dev is none that was
    /// just made, or none may be made: in a service whose DeviceAllow= has no `m`, or a container.
    pub(super) fn node(&mut self, at: &Path) -> Result<()> {
        let stat = rustix::fs::stat(at)?;
        let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode & 0o777));
        if let Some((directory, name)) = self.in_fresh(at).filter(|_| kind == FileType::CharacterDevice) {
            self.actor.as_owner();
            match rustix::fs::mknodat(directory, name, kind, mode, stat.st_rdev) {
                // The mask of this process has cut it.
                Ok(()) => return Ok(rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?),
                // What forbids this may not forbid the bind, which says why it fails.
                Err(error) => log::debug!("make a node {}: {error}", at.display()),
            }
        }
        let bind = BindPlan::device(at.to_owned());
        let source = Wanted::of(&bind).open(self.ids)?;
        self.bind(&bind, vec![source])
    }
}

/// The node of a device that gets one of its own. Made where things may be attached.
pub(super) fn own_device(operation: &Operation, ids: &Ids<'_>) -> Result<Option<Source>> {
    match operation {
        Operation::Bind(bind) if bind.is_own_node() => own_node(&bind.source, ids).map(Some),
        _ => Ok(None),
    }
}

/// A node for the same device, on a file system of its own: what holds the host's nodes cannot be idmapped.
fn own_node(path: &Path, ids: &Ids<'_>) -> Result<Source> {
    let context = || format!("device {}", path.display());
    let stat = rustix::fs::stat(path).with_context(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // Two inodes and room for their labels, which count as inodes since Linux 6.6.
    let options = [("mode", "0755".to_owned()), ("nr_inodes", "8".to_owned()), ("size", "4096".to_owned())];
    let place = new_file_system("tmpfs", &options, attributes).with_context(context)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match rustix::fs::mknodat(&place, "node", kind, Mode::from_raw_mode(stat.st_mode & 0o777), stat.st_rdev) {
        Ok(()) => {}
        // A service whose DeviceAllow= has no `m`, and we are in it: then the host's own node, with its owner as it is.
        Err(rustix::io::Errno::PERM) => return Wanted::new(path, "device").open(ids),
        Err(error) => return Err(error).with_context(context),
    }
    // The mask of this process has cut it.
    rustix::fs::chmodat(&place, "node", Mode::from_raw_mode(stat.st_mode & 0o777), AtFlags::empty())
        .with_context(context)?;
    let (uid, gid) = (Uid::from_raw(ids.shift(stat.st_uid)), Gid::from_raw(ids.shift(stat.st_gid)));
    rustix::fs::chownat(&place, "node", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).with_context(context)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match rustix::mount::open_tree(&place, "node", flags) {
        Ok(mount) => mount,
        // Copies of what is not attached exist since Linux 6.15.
        Err(rustix::io::Errno::INVAL) => copy_attached(&place, flags).with_context(context)?,
        Err(error) => return Err(error).with_context(context),
    };
    let stat = rustix::fs::fstat(&mount).with_context(context)?;
    Ok(Source { mount, stat, is_restricted: false })
}

/// Attaches `place` in this mount namespace for as long as it takes to copy what is called `node` in it.
fn copy_attached(place: &OwnedFd, flags: OpenTreeFlags) -> io::Result<OwnedFd> {
    for at in ["/tmp", "/mnt", "/run", "/usr"] {
        if rustix::mount::move_mount(place, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).is_ok() {
            let copy = rustix::mount::open_tree(place, "node", flags);
            rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH)?;
            return Ok(copy?);
        }
    }
    Err(io::Error::other("there is no place to attach it"))
}
