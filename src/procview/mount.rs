//! The mounts: one file system, of which each file is bound over the kernel's own.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::mount::{FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::error::{Result, fault};
use crate::part::rootfs::assemble::create;

/// The device that a server of files opens.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// Opens the device. Its mount can be made only in the user namespace that this is called in.
///
/// # Errors
/// When it is missing or not for this user.
pub(crate) fn open() -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(DEVICE, flags, Mode::empty())?)
}

/// Why the device cannot be used, in a few words; `None`: it can.
pub(crate) fn obstacle() -> Option<String> {
    open().err().map(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "not there".to_owned(),
        std::io::ErrorKind::PermissionDenied => "not for this user".to_owned(),
        _ => crate::error::line(&error.into()),
    })
}

/// Makes the file system, not attached yet. `allow_other`: everybody inside may read, not only who mounted it.
///
/// # Errors
/// With the kernel's reason.
pub(crate) fn make(device: BorrowedFd<'_>) -> Result<OwnedFd> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let options = [
        ("source", "sandbox".to_owned()),
        ("subtype", "sandbox".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "040555".to_owned()),
        ("user_id", uid.to_string()),
        ("group_id", gid.to_string()),
    ];
    file_system(&options).map_err(|error| {
        fault(format!("mount the sandbox's own /proc files: {}", crate::error::line(&error)))
            .hint("--procview off shows the machine's")
            .into()
    })
}

fn file_system(options: &[(&str, String)]) -> Result<OwnedFd> {
    let file_system = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&file_system, *key, value.as_str())?;
    }
    for key in ["allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(&file_system, key)?;
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    create(&file_system, attributes)
}

/// A mount of one file of an attached `mount`. Nobody has to answer on the device when [`look_up_all`] was called before.
///
/// # Errors
/// With the kernel's reason.
pub(crate) fn file(mount: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(mount.as_fd(), name, flags)?)
}

/// One question for all names instead of one for each: the kernel keeps the answer. Somebody has to answer on the device meanwhile, so it
/// is called where there is time. When what it returns is closed, who answers is told so: it is closed where that one is woken anyway.
///
/// # Errors
/// When nobody does.
pub(crate) fn look_up_all(mount: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let what = "list the sandbox's own /proc files";
    let directory = rustix::fs::openat(mount, ".", flags, Mode::empty()).context(what)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    RawDir::new(&directory, &mut buffer).next().transpose().context(what)?;
    Ok(directory)
}
