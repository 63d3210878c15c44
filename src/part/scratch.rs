//! A directory on a disk that takes the writes of a root and is removed at the end: where a tmpfs cannot (a plain user's overlay
//! before Linux 6.6). Its name says whose it is, its lock that it is in use; what a killed launcher left is removed by the next
//! start of the same user, and by systemd-tmpfiles(8) after 30 days at the latest.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::part::users::{self, UserPlan};
use anyhow::Context;

/// Where such directories are made; file-hierarchy(7).
const PLACE: &str = "/var/tmp";

/// The directory of one sandbox of user `uid`.
pub(crate) fn path(uid: u32, id: &str) -> PathBuf {
    Path::new(PLACE).join(format!("{}{id}", prefix(uid)))
}

fn prefix(uid: u32) -> String {
    format!("sandbox-{uid}-")
}

/// Makes the directory, for this user alone; it must not exist.
///
/// # Errors
/// When it cannot be made or is there already.
pub(crate) fn make(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(path).with_context(|| format!("make {}", path.display()))
}

/// Removes what killed launchers of this user left. What cannot be removed stays for systemd-tmpfiles.
pub(crate) fn sweep(users: &UserPlan) {
    let uid = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(&prefix(uid))
            && std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && is_old(&meta));
        if ours && File::open(&path).is_ok_and(|directory| directory.try_lock().is_ok()) {
            log::debug!("{} was left by a killed launcher", path.display());
            remove(&path, users);
        }
    }
}

/// A minute old: one that is being made has no lock yet.
fn is_old(meta: &std::fs::Metadata) -> bool {
    meta.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age.as_secs() >= 60)
}

/// Removes the directory with everything in it, whoever inside owns it: as root of a user namespace with the sandbox's map.
pub(crate) fn remove(path: &Path, users: &UserPlan) {
    if let Err(error) = try_remove(path, users) {
        log::warn!("{} is left behind: {error:#}", path.display());
    }
}

/// The same, with the reason when something stays.
///
/// # Errors
/// When not all of it can be removed.
pub(crate) fn try_remove(path: &Path, users: &UserPlan) -> Result<()> {
    if users::inside_map(users, || Ok(u8::from(remove_tree(path).is_err())))? == 0 { Ok(()) } else { remove_tree(path) }
}

fn remove_tree(path: &Path) -> Result<()> {
    // The work directory of an overlay has mode 0, and a payload may have left others that cannot be listed.
    open_up(path);
    std::fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
}

/// Lets its owner into every directory of a tree that is to be removed. What cannot be opened, the removal names.
pub(crate) fn open_up(directory: &Path) {
    drop(std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)));
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}
