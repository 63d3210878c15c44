//! One entry brought to its place on the host: made under a temporary name beside it, on the disk, then renamed. That name is the same
//! each time: what an apply that was killed has left there, the next one of the same kept root removes.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::differ::attributes;
use crate::error::{Result, fault};
use crate::image::unpack::tree::{kind, look, names, through_proc};

/// The outcome of one system call.
type Call<T> = std::result::Result<T, Errno>;

/// Brings entries of one kept root to their places.
#[derive(Debug)]
pub(super) struct Placer {
    /// The end of every temporary name: which kept root it is of.
    end: String,
    /// Files with several names in the upper: where the first is now.
    links: HashMap<u64, PathBuf>,
}

impl Placer {
    /// Of the kept root that `lock` is a file of; it must be held, since two at a time would use the same names.
    pub(super) fn new(lock: &File) -> Result<Placer> {
        let stat = fs::fstat(lock)?;
        Ok(Placer { end: format!(".sandbox-{:x}-{:x}", stat.st_dev, stat.st_ino), links: HashMap::new() })
    }

    /// Makes `target` what `source` is. A directory that is there stays and gets its owner, mode and attributes.
    pub(super) fn put(&mut self, source: &Path, stat: &Stat, target: &Path) -> Result<()> {
        let named = |errno: Errno| fault(format!("{}: {errno}", target.display()));
        let Some(name) = target.file_name() else {
            // The root itself: only what it is like can have changed.
            let root = open_directory(target).map_err(named)?;
            return Ok(like(source, stat, root.as_fd(), b".").map_err(named)?);
        };
        let parent = open_directory(target.parent().unwrap_or(Path::new("/"))).map_err(named)?;
        let there = look(parent.as_fd(), name.as_bytes()).map_err(named)?;
        let is_directory = |stat: &Stat| kind(stat) == FileType::Directory;
        let new = self.free_name(parent.as_fd(), name.as_bytes()).map_err(named)?;
        if is_directory(stat) && there.as_ref().is_some_and(is_directory) {
            return Ok(like(source, stat, parent.as_fd(), name.as_bytes()).map_err(named)?);
        }
        let made = make(source, stat, parent.as_fd(), &new, &self.links).and_then(|()| {
            // A directory can only be replaced by one; and a file by none.
            if there.as_ref().is_some_and(|there| is_directory(there) || is_directory(stat)) {
                exchange(parent.as_fd(), &new, name.as_bytes())
            } else {
                fs::renameat(&parent, new.as_slice(), &parent, name)
            }
        });
        if let Err(errno) = made {
            let _ = remove_in(parent.as_fd(), &new);
            return Err(named(errno).into());
        }
        if kind(stat) != FileType::Directory && stat.st_nlink > 1 {
            self.links.entry(stat.st_ino).or_insert_with(|| target.to_owned());
        }
        Ok(fs::fsync(&parent).map_err(named)?)
    }

    /// Removes `target` with everything in it; in one step it is gone from its place.
    pub(super) fn remove(&self, target: &Path) -> Result<()> {
        let named = |errno: Errno| fault(format!("{}: {errno}", target.display()));
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(fault("/: the root is not removed").into());
        };
        let parent = open_directory(parent).map_err(named)?;
        let away = self.free_name(parent.as_fd(), name.as_bytes()).map_err(named)?;
        match fs::renameat(&parent, name, &parent, away.as_slice()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(named(errno).into()),
        }
        remove_in(parent.as_fd(), &away).map_err(named)?;
        Ok(fs::fsync(&parent).map_err(named)?)
    }

    /// The temporary name beside `name`, at which there is nothing then.
    fn free_name(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Call<Vec<u8>> {
        // A name has at most 255 bytes.
        let room = 255 - self.end.len() - 1;
        let free = [b".", &name[..name.len().min(room)], self.end.as_bytes()].concat();
        match remove_in(parent, &free) {
            Ok(()) | Err(Errno::NOENT) => Ok(free),
            Err(errno) => Err(errno),
        }
    }
}

/// The new one takes the place of the old in one step; then the old goes.
fn exchange(parent: BorrowedFd<'_>, new: &[u8], name: &[u8]) -> Call<()> {
    fs::renameat_with(parent, new, parent, name, RenameFlags::EXCHANGE)?;
    remove_in(parent, new)
}

fn make(source: &Path, stat: &Stat, parent: BorrowedFd<'_>, name: &[u8], links: &HashMap<u64, PathBuf>) -> Call<()> {
    if let Some(first) = links.get(&stat.st_ino).filter(|_| stat.st_nlink > 1)
        && fs::linkat(CWD, first, parent, name, AtFlags::empty()).is_ok()
    {
        return Ok(());
    }
    match kind(stat) {
        FileType::RegularFile => copy(source, parent, name)?,
        FileType::Directory => fs::mkdirat(parent, name, Mode::RWXU)?,
        FileType::Symlink => fs::symlinkat(fs::readlink(source, Vec::new())?, parent, name)?,
        other => fs::mknodat(parent, name, other, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    like(source, stat, parent, name)?;
    if kind(stat) == FileType::RegularFile {
        fs::fsync(fs::openat(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)?;
    }
    Ok(())
}

fn copy(source: &Path, parent: BorrowedFd<'_>, name: &[u8]) -> Call<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let new = File::from(fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
    let old = File::from(fs::open(source, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    // copy_file_range(2) where it works.
    std::io::copy(&mut &old, &mut &new).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(())
}

/// Owner, then attributes, then mode (a change of owner takes set-id bits and capabilities away), then times.
fn like(source: &Path, stat: &Stat, parent: BorrowedFd<'_>, name: &[u8]) -> Call<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fs::chownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    let path = through_proc(parent, name);
    let (Some(holder), Some(source)) = (source.parent(), source.file_name()) else { return Err(Errno::INVAL) };
    let holder = fs::open(holder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let wanted = attributes(holder.as_fd(), source.as_bytes())?;
    for (key, _) in attributes(parent, name)? {
        if !wanted.iter().any(|(other, _)| *other == key) {
            fs::lremovexattr(path.as_slice(), key.as_slice())?;
        }
    }
    for (key, value) in &wanted {
        fs::lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty())?;
    }
    if kind(stat) != FileType::Symlink {
        fs::chmodat(parent, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    set_times(parent, Path::new(std::ffi::OsStr::from_bytes(name)), stat)
}

/// Gives `name` in `parent` the times that `stat` has.
pub(super) fn set_times(parent: BorrowedFd<'_>, name: &Path, stat: &Stat) -> Call<()> {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// A directory of the host, by a path in which nothing is a link: what was seen inside under it is really there.
fn open_directory(path: &Path) -> Call<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = fs::open("/", flags, Mode::empty())?;
    for part in path.components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
        here = fs::openat(&here, part.as_os_str(), flags, Mode::empty())?;
    }
    Ok(here)
}

/// Removes a file or a whole tree, following no link and entering no mount.
fn remove_in(parent: BorrowedFd<'_>, name: &[u8]) -> Call<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = fs::openat(parent, name, flags, Mode::empty())?;
    if fs::fstat(&directory)?.st_dev != fs::fstat(parent)?.st_dev {
        return Err(Errno::BUSY);
    }
    for entry in names(&directory)? {
        remove_in(directory.as_fd(), &entry)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
