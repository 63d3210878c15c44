//! The directory that takes the writes to the root.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

use crate::error::{Result, fault};
use crate::part;
use crate::part::rootfs::RootPlan;
use crate::part::scratch;
use crate::part::users::UserPlan;

/// The directory that takes the writes, locked: two sandboxes at a time would damage each other's overlay.
pub(super) struct LockedUpper<'a> {
    /// Held as long as it is used.
    pub(super) lock: File,
    /// It goes with the sandbox.
    temporary: Option<(&'a Path, &'a UserPlan)>,
}

impl Drop for LockedUpper<'_> {
    fn drop(&mut self) {
        if let Some((path, users)) = self.temporary {
            scratch::remove(path, users);
        }
    }
}

/// Locks the directory that `root` keeps its writes in; `None` where it keeps them in memory.
///
/// # Errors
/// When it is in use, or cannot be made.
pub(super) fn lock_upper<'a>(root: &'a RootPlan, users: &'a UserPlan) -> Result<Option<LockedUpper<'a>>> {
    let Some(path) = &root.upper else { return Ok(None) };
    if root.temporary {
        scratch::sweep(users);
        scratch::make(path)?;
    } else {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make --upper {}", path.display()));
            }
            _ => {}
        }
    }
    let only_a_directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
    let directory = only_a_directory.with_context(|| format!("open --upper {}", path.display()))?;
    match directory.try_lock() {
        Ok(()) if !part::is_still_at(path, &directory)? => {
            Err(fault(format!("--upper {}: it was taken away just now", path.display())).into())
        }
        Ok(()) => {
            let temporary = root.temporary.then_some((path.as_path(), users));
            Ok(Some(LockedUpper { lock: directory, temporary }))
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(fault(format!("--upper {}: another sandbox uses it", path.display())).into())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock --upper {}", path.display()))
        }
    }
}
