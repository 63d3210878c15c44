//! Paths inside a root that is not ours to trust: resolved so that no symbolic link in it and no `..` leads out, and made where
//! they are missing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// As many links as the kernel follows in one path, path_resolution(7).
const MAX_LINKS: usize = 40;

/// What a missing last component is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// Nothing: it is an error then.
    Nothing,
    /// A directory.
    Directory,
    /// An empty regular file.
    File,
}

/// Opens (O_PATH) what `path` names below `root`, as if `root` were /. Missing directories, and what the path names, are made
/// with `owner`.
///
/// # Errors
/// ELOOP after 40 links; ENOTDIR and what openat(2) and mkdirat(2) say.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &Path, make: Make, owner: (Uid, Gid)) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() {
        return Ok(rustix::fs::openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    }
    if is_for_the_kernel(path) {
        return open_or_make_top(root, relative, make, owner);
    }
    let open = |path: &Path| {
        rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    match open(relative) {
        Ok(found) => Ok(found),
        Err(Errno::NOENT) if make == Make::Nothing => Err(Errno::NOENT.into()),
        // Mostly it is the last name that is missing. EEXIST: a link that leads nowhere yet.
        Err(Errno::NOENT)
            if let (Some(parent), Some(name)) = (relative.parent(), relative.file_name())
                && let Ok(parent) = open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) =>
        {
            match make_for(parent.as_fd(), name, make, owner) {
                Err(Errno::EXIST) => Walk::new(root, make, owner)?.follow(relative),
                made => Ok(made?),
            }
        }
        // ENOSYS: a seccomp filter around us (systemd's RestrictSUIDSGID=) hides openat2; the walk is as safe, only slower.
        // EAGAIN: something was mounted or renamed meanwhile, so that openat2 cannot tell where a `..` led.
        Err(Errno::NOENT | Errno::NOSYS | Errno::PERM | Errno::AGAIN) => Walk::new(root, make, owner)?.follow(relative),
        Err(error) => Err(error.into()),
    }
}

/// Whether this is where the kernel's own files go, which masks are laid over by their paths: with a link in its place, what is made later
/// could lead the same path elsewhere.
fn is_for_the_kernel(at: &Path) -> bool {
    matches!(at.as_os_str().as_bytes(), b"/proc" | b"/sys")
}

/// Opens (O_PATH) the directory `name` right below `root`, made with `owner` where it is missing and something is to be made; no link is
/// followed.
fn open_or_make_top(root: BorrowedFd<'_>, name: &Path, make: Make, owner: (Uid, Gid)) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Err(Errno::NOENT) if make != Make::Nothing => Ok(make_for(root, name.as_os_str(), Make::Directory, owner)?),
        found => Ok(found?),
    }
}

/// Opens (O_PATH) what `path` names below `root`, as if `root` were /, and makes nothing.
///
/// # Errors
/// ENOENT where there is nothing; ELOOP after 40 links; what openat2(2) says.
pub(crate) fn open_existing(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    open_or_make(root, path, Make::Nothing, (Uid::ROOT, Gid::ROOT))
}

/// A walk by descriptors: every step opens one name without following it, so nothing that changes meanwhile leads out.
struct Walk {
    /// From the root to where the walk is; `..` goes back along it.
    stack: Vec<OwnedFd>,
    make: Make,
    owner: (Uid, Gid),
}

impl Walk {
    fn new(root: BorrowedFd<'_>, make: Make, owner: (Uid, Gid)) -> io::Result<Walk> {
        let root = rustix::fs::openat(root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Walk { stack: vec![root], make, owner })
    }

    fn follow(mut self, path: &Path) -> io::Result<OwnedFd> {
        let mut todo: Vec<OsString> = steps(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                if self.stack.len() > 1 {
                    self.stack.pop();
                }
                continue;
            }
            let next = self.step(&name, todo.is_empty())?;
            match link_target(&next)? {
                None => self.stack.push(next),
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.is_absolute() {
                        self.stack.truncate(1);
                    }
                    todo.extend(steps(&target));
                }
            }
        }
        self.stack.pop().ok_or_else(|| Errno::NOENT.into())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(CWD, AsFd::as_fd)
    }

    fn step(&self, name: &OsStr, last: bool) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.here(), name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        if self.make == Make::Nothing {
            return Err(Errno::NOENT.into());
        }
        let make = if last { self.make } else { Make::Directory };
        Ok(make_for(self.here(), name, make, self.owner)?)
    }
}

/// Makes what is called `name` in `parent`, gives it to `owner`, and opens it (O_PATH).
fn make_for(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    make: Make,
    owner: (Uid, Gid),
) -> std::result::Result<OwnedFd, Errno> {
    let made = make_in(parent, name, make)?;
    give(parent, name, owner)?;
    Ok(made)
}

/// Makes what is called `name` in `parent`.
///
/// # Errors
/// What mknodat(2) and mkdirat(2) say: EEXIST.
pub(crate) fn make_name(parent: BorrowedFd<'_>, name: &OsStr, make: Make) -> std::result::Result<(), Errno> {
    match make {
        Make::File => rustix::fs::mknodat(parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
        Make::Directory | Make::Nothing => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
    }
}

/// Makes what is called `name` in `parent`, and opens it (O_PATH).
///
/// # Errors
/// What mknodat(2), mkdirat(2) and openat(2) say: EEXIST.
pub(crate) fn make_in(parent: BorrowedFd<'_>, name: &OsStr, make: Make) -> std::result::Result<OwnedFd, Errno> {
    make_name(parent, name, make)?;
    rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Gives what was just made in `parent` to `owner`. Mostly that is who made it, and to ask takes a fifth of the time.
///
/// # Errors
/// What fstatat(2) and fchownat(2) say.
pub(crate) fn give(parent: BorrowedFd<'_>, name: &OsStr, (uid, gid): (Uid, Gid)) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if (stat.st_uid, stat.st_gid) == (uid.as_raw(), gid.as_raw()) {
        return Ok(());
    }
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// The names of a path, last first.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// Where the link that `fd` was opened on (O_PATH|O_NOFOLLOW) leads; `None` when it is no link.
fn link_target(fd: &OwnedFd) -> io::Result<Option<PathBuf>> {
    let stat = rustix::fs::fstat(fd)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(fd, "", Vec::new())?;
    Ok(Some(PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target.as_bytes()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn own() -> (Uid, Gid) {
        (rustix::process::getuid(), rustix::process::getgid())
    }

    fn open_dir(path: &Path) -> OwnedFd {
        OwnedFd::from(std::fs::File::open(path).unwrap())
    }

    fn where_is(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn links_and_dots_stay_inside_and_missing_parts_are_made() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        symlink("/", root.join("abs")).unwrap();
        symlink("../../../..", root.join("a/up")).unwrap();
        symlink("/a/new", root.join("dangling")).unwrap();
        let root_fd = open_dir(&root);
        let rows = [
            ("/x/y", "x/y"),
            ("/abs/b", "b"),
            ("/a/up/c", "c"),
            ("/../../d", "d"),
            ("/dangling/e", "a/new/e"),
            ("/a/./f/../g", "a/g"),
        ];
        for (path, expected) in rows {
            for resolve in [open_or_make, |root: BorrowedFd<'_>, path: &Path, make, owner| {
                Walk::new(root, make, owner)?.follow(path)
            }] {
                let found = resolve(root_fd.as_fd(), Path::new(path), Make::Directory, own()).unwrap();
                assert_eq!(where_is(&found), root.join(expected), "{path}");
            }
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_made_where_nothing_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("p")).unwrap();
        symlink("/p", root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("p/kcore"), "").unwrap();
        let fd = open_dir(root.path());
        assert_eq!(
            where_is(&open_existing(fd.as_fd(), Path::new("/proc/kcore")).unwrap()),
            root.path().join("p/kcore")
        );
        for walk in
            [open_existing, |root: BorrowedFd<'_>, path: &Path| Walk::new(root, Make::Nothing, own())?.follow(path)]
        {
            assert_eq!(walk(fd.as_fd(), Path::new("/proc/none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        }
        assert_eq!(std::fs::read_dir(root.path().join("p")).unwrap().count(), 1);
    }

    #[test]
    fn a_loop_ends_and_a_file_is_made_as_a_file() {
        let root = tempfile::tempdir().unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        let fd = open_dir(root.path());
        let looped = open_or_make(fd.as_fd(), Path::new("loop/x"), Make::Directory, own());
        assert_eq!(looped.unwrap_err().raw_os_error(), Some(libc::ELOOP));
        open_or_make(fd.as_fd(), Path::new("/etc/resolv.conf"), Make::File, own()).unwrap();
        assert!(root.path().join("etc/resolv.conf").is_file());
    }
}
