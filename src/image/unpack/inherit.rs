//! Directories that an archive only implies.
//!
//! A layer may have `data/new` and no member for `data`. overlayfs takes a directory's owner, mode and times from the
//! uppermost layer that has it, so a `data` made up here would change that of the layer below: one that only its owner may
//! enter would be open to all. Such a directory therefore becomes a copy of the one that it lies upon.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, XattrFlags};
use rustix::io::Errno;

use super::super::lookup::Merged;
use super::super::tar::Time;
use super::place::blocked_text;
use super::refuse;
use super::rights::{Call, Marks, Rights, failed, group, is_overlays_own, owner};
use super::tree::{Tree, timestamps};
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
    let mut list = vec![0u8; 64 << 10];
    let mut value = vec![0u8; 64 << 10];
    let length = match fs::flistxattr(model, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let keys = list[..length].split(|byte| *byte == 0);
    for key in keys.filter(|key| !key.is_empty() && !is_overlays_own(key)) {
        let length = fs::fgetxattr(model, key, value.as_mut_slice())?;
        fs::fsetxattr(directory, key, &value[..length], XattrFlags::empty())?;
    }
    fs::fchmod(directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    fs::futimens(directory, &timestamps(Time { seconds: stat.st_mtime, nanoseconds }))
}
