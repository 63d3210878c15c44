//! Flags of mount_setattr(2) that rustix has no words for.

/// The mount and everything below it.
pub(crate) const RECURSIVE: libc::c_uint = 0x8000;
/// Read-only.
pub(crate) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-ID bits and file capabilities have no effect.
pub(crate) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes cannot be opened.
pub(crate) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Nothing can be executed.
pub(crate) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
