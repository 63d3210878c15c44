//! One upper beside the stack that it lies on, entry by entry, by metadata: what overlayfs copied up keeps its times until somebody
//! changes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::diff::{Change, How, child};
use crate::error::{Result, fault};
use crate::image::lookup::{Directory, Entry, Merged};
use crate::image::unpack::is_overlays_own;
use crate::image::unpack::tree::{self, Attributes, is_whiteout, kind, through_proc};

pub(super) struct Differ<'a> {
    pub(super) lower: Merged,
    /// Where the overlay is inside.
    pub(super) at: &'a Path,
    pub(super) upper: &'a Path,
    /// Paths inside that are never a change.
    pub(super) left_out: [Vec<u8>; 3],
    pub(super) found: Vec<Change>,
}

impl Differ<'_> {
    pub(super) fn root(&mut self, root: &OwnedFd) -> Result<()> {
        let below = self.lower.root();
        if self.directory_changed(root, &below).map_err(|errno| named(self.at, errno))? {
            self.add(How::Changed, Path::new(""));
        }
        self.directory(root, Some(&below), Path::new(""))
    }

    fn add(&mut self, change: How, path: &Path) {
        let inside = if path.as_os_str().is_empty() { self.at.to_owned() } else { self.at.join(path) };
        self.found.push(Change { change, path: inside, upper: self.upper.join(path) });
    }

    fn directory(&mut self, upper: &OwnedFd, lower: Option<&Directory>, path: &Path) -> Result<()> {
        let names = tree::names(upper).map_err(|errno| named(path, errno))?;
        for name in &names {
            let here = child(path, name);
            if !self.left_out.iter().any(|left_out| self.at.join(&here).as_os_str().as_bytes() == left_out) {
                self.entry(upper, lower, name, &here)?;
            }
        }
        // Nothing of the lower one shows through an opaque directory.
        if let Some(lower) = lower.filter(|_| is_opaque(upper)) {
            for name in self.lower.names(lower).map_err(|errno| named(path, errno))? {
                if names.binary_search(&name).is_err() {
                    self.add(How::Deleted, &child(path, &name));
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, upper: &OwnedFd, lower: Option<&Directory>, name: &[u8], path: &Path) -> Result<()> {
        let fail = |errno| named(path, errno);
        let stat = fs::statat(upper, name, fs::AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let below = lower.map(|lower| self.lower.entry(lower, name)).transpose().map_err(fail)?.flatten();
        if is_whiteout(&stat) {
            if below.is_some() {
                self.add(How::Deleted, path);
            }
            return Ok(());
        }
        if kind(&stat) != FileType::Directory {
            match &below {
                None => self.add(How::Added, path),
                Some(Entry::Directory(_)) => self.add(How::Changed, path),
                Some(Entry::Other(holder, old)) => {
                    if self.file_changed(upper, &stat, holder, old, name).map_err(fail)? {
                        self.add(How::Changed, path);
                    }
                }
            }
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat(upper, name, flags, Mode::empty()).map_err(fail)?;
        let lower = match &below {
            None => {
                self.add(How::Added, path);
                None
            }
            Some(Entry::Other(..)) => {
                self.add(How::Changed, path);
                None
            }
            Some(Entry::Directory(lower)) => {
                if self.directory_changed(&directory, lower).map_err(fail)? {
                    self.add(How::Changed, path);
                }
                Some(lower)
            }
        };
        self.directory(&directory, lower, path)
    }

    fn directory_changed(&self, upper: &OwnedFd, lower: &Directory) -> std::result::Result<bool, Errno> {
        let Some(top) = lower.first() else { return Ok(true) };
        let (new, old) = (fs::fstat(upper)?, fs::fstat(top)?);
        Ok(!same_owner_and_mode(&new, &old) || attributes(upper.as_fd(), b".")? != attributes(top.as_fd(), b".")?)
    }

    fn file_changed(
        &self,
        upper: &OwnedFd,
        new: &Stat,
        holder: &OwnedFd,
        old: &Stat,
        name: &[u8],
    ) -> std::result::Result<bool, Errno> {
        let times = (new.st_mtime, new.st_mtime_nsec) == (old.st_mtime, old.st_mtime_nsec);
        if !times || new.st_size != old.st_size || new.st_rdev != old.st_rdev || !same_owner_and_mode(new, old) {
            return Ok(true);
        }
        if kind(new) == FileType::Symlink {
            let target = |base: &OwnedFd| fs::readlinkat(base, name, Vec::new());
            return Ok(target(upper)? != target(holder)?);
        }
        Ok(attributes(upper.as_fd(), name)? != attributes(holder.as_fd(), name)?)
    }
}

fn same_owner_and_mode(new: &Stat, old: &Stat) -> bool {
    (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let says = |name: &str| fs::fgetxattr(directory, name, &mut [0u8; 1]) == Ok(1);
    says("trusted.overlay.opaque") || says("user.overlay.opaque")
}

/// The attributes that are the file's own: not overlayfs' marks, and not a security module's label, which depends on where it is.
pub(super) fn attributes(base: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Attributes, Errno> {
    let path = through_proc(base, name);
    let list = |keys: &mut [u8]| fs::llistxattr(path.as_slice(), keys);
    let get = |key: &[u8], value: &mut [u8]| fs::lgetxattr(path.as_slice(), key, value);
    tree::attributes(list, get, |key| !is_overlays_own(key) && key != b"security.selinux")
}

fn named(path: &Path, errno: Errno) -> anyhow::Error {
    fault(format!("{}: {errno}", path.display())).into()
}
