//! A directory tree that is written by name, where no name leads out of it.
//!
//! Every path is opened from the tree's root with openat2(2) and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`; where that call
//! is missing (or forbidden by a seccomp filter) part by part with `O_NOFOLLOW`, which is as strict and slower. The last
//! part is then created, never opened, with calls that do not follow it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::super::tar::Time;

/// The longest path handed to the kernel at once; PATH_MAX is 4096 with the NUL.
const PATH_PIECE: usize = 4000;

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    openat2: bool,
    /// The directory that was used last: members of one directory follow each other.
    last: Option<(Vec<u8>, OwnedFd)>,
}

/// Why a directory could not be opened.
#[derive(Debug)]
pub(crate) enum Blocked {
    /// A part of the path does not exist.
    Missing,
    /// A part of it is a symbolic link.
    Symlink,
    /// A part of it is something else than a directory.
    NotDirectory,
    /// The kernel said no.
    Error(Errno),
}

impl From<Errno> for Blocked {
    fn from(errno: Errno) -> Blocked {
        match errno {
            Errno::NOENT => Blocked::Missing,
            Errno::LOOP => Blocked::Symlink,
            Errno::NOTDIR => Blocked::NotDirectory,
            other => Blocked::Error(other),
        }
    }
}

impl Tree {
    /// Opens the directory `root`.
    pub(crate) fn open(root: &Path) -> io::Result<Tree> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Tree { root: fs::open(root, flags, Mode::empty())?, openat2: true, last: None })
    }

    /// Uses the part-by-part walk only, as on a kernel without openat2.
    #[cfg(test)]
    pub(crate) fn without_openat2(mut self) -> Tree {
        self.openat2 = false;
        self
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets the directory that was used last: after something was removed it may be another one.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// The directory at `path` (already clean: no empty, `.` or `..` parts; empty is the root), for use as a base.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Blocked> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(known, _)| known != path) {
            let opened = self.walk(path, OFlags::PATH)?;
            self.last = Some((path.to_vec(), opened));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory.as_fd()),
            None => Err(Blocked::Missing),
        }
    }

    /// Opens the directory at `path` for reading and for changing its metadata.
    pub(crate) fn open_directory(&mut self, path: &[u8]) -> Result<OwnedFd, Blocked> {
        if path.is_empty() {
            return Ok(fs::openat(
                &self.root,
                c".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?);
        }
        self.walk(path, OFlags::RDONLY)
    }

    fn walk(&mut self, path: &[u8], access: OFlags) -> Result<OwnedFd, Blocked> {
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if self.openat2 {
            match self.walk_at_once(path, flags) {
                Err(Blocked::Error(Errno::NOSYS | Errno::PERM)) => self.openat2 = false,
                // Said of a link at the end as well: the walk tells the two apart.
                Err(Blocked::NotDirectory) => {}
                other => return other,
            }
        }
        let mut here: Option<OwnedFd> = None;
        for part in path.split(|byte| *byte == b'/') {
            let base = here.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            here = Some(open_part(base, part, flags)?);
        }
        here.ok_or(Blocked::Missing)
    }

    fn walk_at_once(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Blocked> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut here: Option<OwnedFd> = None;
        let mut rest = path;
        while !rest.is_empty() {
            let piece = piece(rest);
            let base = here.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            here = Some(fs::openat2(base, piece, flags, Mode::empty(), resolve)?);
            rest = rest.get(piece.len() + 1..).unwrap_or_default();
        }
        here.ok_or(Blocked::Missing)
    }
}

/// The front of `path`, whole parts, that fits one call.
fn piece(path: &[u8]) -> &[u8] {
    if path.len() <= PATH_PIECE {
        return path;
    }
    match path[..PATH_PIECE].iter().rposition(|byte| *byte == b'/') {
        Some(slash) => &path[..slash],
        // One part longer than that: the kernel says ENAMETOOLONG.
        None => path,
    }
}

/// Opens one part. With `O_DIRECTORY | O_NOFOLLOW` the kernel says ENOTDIR for a symbolic link as for a file.
fn open_part(base: BorrowedFd<'_>, part: &[u8], flags: OFlags) -> Result<OwnedFd, Blocked> {
    match fs::openat(base, part, flags, Mode::empty()) {
        Ok(directory) => Ok(directory),
        Err(Errno::NOTDIR) => match look(base, part) {
            Ok(Some(stat)) if kind(&stat) == FileType::Symlink => Err(Blocked::Symlink),
            _ => Err(Blocked::NotDirectory),
        },
        Err(other) => Err(other.into()),
    }
}

/// What `name` in `base` is, not following it; `None` when there is nothing.
pub(crate) fn look(base: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The type of what was looked at.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is overlay's mark for "deleted here": a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The names in an open directory, sorted, without those of itself and its parent.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    // Opened anew, since it may be open as a place only (O_PATH).
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in fs::Dir::new(fs::openat(directory, c".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

/// Attributes of one file: name and value, sorted.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes whose names are `wanted`, none where the file system has none. `list` and `get` are the calls of whichever form
/// names the file, xattr(7).
pub(crate) fn attributes(
    list: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<Attributes, Errno> {
    // The most that the kernel gives of either.
    let mut keys = vec![0u8; 64 << 10];
    let length = match list(&mut keys) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    let mut value = vec![0u8; 64 << 10];
    for key in keys[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty() && wanted(key)) {
        let length = get(key, &mut value)?;
        found.push((key.to_vec(), value[..length].to_vec()));
    }
    found.sort();
    Ok(found)
}

/// A path that names `name` in `base` for the calls that take no directory descriptor. The last part is not followed by
/// the `l…xattr` calls that it is used with.
pub(crate) fn through_proc(base: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", base.as_raw_fd()).as_bytes(), name].concat()
}

/// Times for utimensat: access and change the same, as an archive knows only one.
pub(crate) fn timestamps(time: Time) -> fs::Timestamps {
    let spec = fs::Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    fs::Timestamps { last_access: spec, last_modification: spec }
}
