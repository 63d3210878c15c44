//! Directories that an archive only implies.
//!
//! A layer may have `data/new` and no member for `data`. overlayfs takes a directory's owner, mode and times from the
//! uppermost layer that has it, so a `data` made up here would change that of the layer below: one that only its owner may
//! enter would be open to all. Such a directory therefore becomes a copy of the one that it lies upon.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, XattrFlags};

use super::super::lookup::Merged;
use super::super::tar::Time;
use super::place::blocked_text;
use super::refuse;
use super::rights::{Call, Marks, Rights, failed, group, is_overlays_own, owner};
use super::tree::{Tree, attributes, timestamps};
use crate::error::{Result, fault};

/// Gives the directories `implied` of the layer at `root` the metadata that `below` (lowest first) shows at their paths.
/// What is not there below stays as it was made.
pub(crate) fn inherit(root: &Path, implied: &[Vec<u8>], below: &[PathBuf], marks: Marks) -> Result<()> {
    if implied.is_empty() || below.is_empty() {
        return Ok(());
    }
    let merged = Merged::open(below, marks)?;
    let mut tree = Tree::open(root).map_err(|error| fault(format!("{}: {error}", root.display())))?;
    let rights = Rights::of_caller(marks);
    for path in implied {
        let model = merged.directory(path).map_err(|errno| failed(path, "look below it", errno))?;
        let Some(model) = model else { continue };
        let directory = tree.open_directory(path).map_err(|blocked| refuse(path, blocked_text(&blocked)))?;
        copy(&model, &directory, rights).map_err(|errno| failed(path, "make it like the one below", errno))?;
    }
    Ok(())
}

fn copy(model: &OwnedFd, directory: &OwnedFd, rights: Rights) -> Call {
    let stat = fs::fstat(model)?;
    if rights.owners {
        fs::fchown(directory, owner(stat.st_uid), group(stat.st_gid))?;
    }
    let list = |keys: &mut [u8]| fs::flistxattr(model, keys);
    let get = |key: &[u8], value: &mut [u8]| fs::fgetxattr(model, key, value);
    for (key, value) in attributes(list, get, |key| !is_overlays_own(key))? {
        fs::fsetxattr(directory, key, &value, XattrFlags::empty())?;
    }
    fs::fchmod(directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    fs::futimens(directory, &timestamps(Time { seconds: stat.st_mtime, nanoseconds }))
}
