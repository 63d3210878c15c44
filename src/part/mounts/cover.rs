//! What of the kernel's file systems is covered: masked, read-only, or by the sandbox's own files.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::{CPUS, MASKED_OF_A_CPU, Made, PROC, SYSFS, kernel_attributes, restrict};
use crate::error::{Result, fault};
use crate::part::inside::open_existing;
use crate::part::rootfs::assemble::new_file_system;
use crate::sys;

/// What is to be covered.
pub(super) enum Target<'a> {
    /// By its name in a new file system, in which nobody but the kernel has put anything: to open it first takes as long as to cover it.
    Named(BorrowedFd<'a>, &'a Path),
    /// Opened, so that it is what was looked at.
    Opened(OwnedFd),
}

impl Target<'_> {
    /// Covers it with a mount that is nowhere yet.
    ///
    /// # Errors
    /// With the kernel's reason.
    pub(super) fn cover(&self, with: &OwnedFd) -> Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let covered = match self {
            Target::Named(root, name) => rustix::mount::move_mount(with, "", root, *name, flags),
            Target::Opened(target) => {
                rustix::mount::move_mount(with, "", target, "", flags | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
            }
        };
        Ok(covered?)
    }

    /// Covers it with what is called `with` in `root`, which this process then is in. Two names in one file system are the shortest way for
    /// the kernel: a mount that is nowhere at first takes a third longer.
    ///
    /// # Errors
    /// With the kernel's reason.
    pub(super) fn cover_by_name(&self, root: BorrowedFd<'_>, with: &Path) -> Option<Result<()>> {
        let Target::Named(own, name) = self else { return None };
        let bind = || {
            rustix::process::fchdir(root)?;
            Ok(rustix::mount::mount_bind(with, *name)?)
        };
        (own.as_raw_fd() == root.as_raw_fd()).then(bind)
    }

    /// A mount of it and of what is mounted below.
    fn copy(&self) -> Result<OwnedFd> {
        match self {
            Target::Named(root, name) => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                Ok(rustix::mount::open_tree(root, *name, flags | OpenTreeFlags::AT_RECURSIVE)?)
            }
            Target::Opened(target) => clone_mount(target),
        }
    }
}

/// The root that is put together.
pub(super) struct Inside<'a> {
    pub(super) tree: BorrowedFd<'a>,
    pub(super) made: &'a [Made],
}

impl Inside<'_> {
    /// The new file system that `path` is on, and the rest of the path; for what is on it this takes half the time of a way through the
    /// whole root.
    pub(super) fn own<'p>(&self, path: &'p Path) -> Option<(BorrowedFd<'_>, &'p Path)> {
        self.made.iter().rev().find_map(|made| Some((made.mount.as_fd(), path.strip_prefix(made.at).ok()?)))
    }

    /// What `path` names; `None` where there is nothing.
    pub(super) fn find<'s>(&'s self, path: &'s Path) -> Result<Option<Target<'s>>> {
        match self.named(path) {
            Some(named) => Ok(named?.map(|(target, _)| target)),
            None => Ok(self.open(path)?.map(Target::Opened)),
        }
    }

    /// The same and of what kind it is, and it is sure to be the kernel's own file.
    fn find_of_kernel<'s>(&'s self, path: &'s Path) -> Result<Option<(Target<'s>, FileType)>> {
        if let Some(named) = self.named(path) {
            return named;
        }
        let Some(opened) = self.open_of_kernel(path)? else { return Ok(None) };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
        Ok(Some((Target::Opened(opened), kind)))
    }

    /// What `path` names, where that is on one of the new file systems and no link.
    fn named<'s>(&'s self, path: &'s Path) -> Option<Result<Option<(Target<'s>, FileType)>>> {
        let (root, name) = self.own(path).filter(|(_, name)| !name.as_os_str().is_empty())?;
        match rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                (kind != FileType::Symlink).then(|| Ok(Some((Target::Named(root, name), kind))))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Some(Ok(None)),
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Opens what `path` names, through links only as far as they stay in the root; `None` where there is nothing.
    fn open(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let (root, path) = self.own(path).unwrap_or((self.tree, path));
        match open_existing(root, path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if Errno::from_io_error(&error).is_some_and(is_absence) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, and it is sure to be the kernel's own file: not one that an image or a mount has put there, CVE-2025-52881.
    fn open_of_kernel(&self, path: &Path) -> Result<Option<OwnedFd>> {
        const DEBUGFS: i64 = 0x6462_6720;
        const SECURITYFS: i64 = 0x7363_6673;
        const TRACEFS: i64 = 0x7472_6163;
        const CGROUP: i64 = 0x0027_e0eb;
        const CGROUP2: i64 = 0x6367_7270;
        const TMPFS: i64 = 0x0102_1994;
        let Some(target) = self.open(path)? else { return Ok(None) };
        if self.own(path).is_some() {
            // Nobody else has seen that one.
            return Ok(Some(target));
        }
        let expected: &[i64] = if path.starts_with("/proc") {
            &[PROC]
        } else if path.starts_with("/sys/fs/cgroup") {
            // On cgroup v1 a tmpfs with a directory for each hierarchy.
            &[SYSFS, CGROUP, CGROUP2, TMPFS]
        } else {
            &[SYSFS, DEBUGFS, SECURITYFS, TRACEFS]
        };
        let kind = rustix::fs::fstatfs(&target)?.f_type;
        if !expected.contains(&kind) {
            return Err(fault(format!("it is on a file system of another kind ({kind:#x}) than it should be")).into());
        }
        Ok(Some(target))
    }
}

/// Of a file that this kernel has not, or that a /sys of another machine's making has not.
fn is_absence(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)
}

/// What is masked of every CPU that this machine shows.
pub(super) fn of_each_cpu(inside: &Inside<'_>) -> Result<Vec<PathBuf>> {
    let Some(directory) = inside.open_of_kernel(Path::new(CPUS))? else { return Ok(Vec::new()) };
    // All CPUs of a machine have it or none, and to list them takes longer.
    let there = |path: &Path| rustix::fs::accessat(&directory, path, Access::EXISTS, AtFlags::empty()).is_ok();
    if there(Path::new("cpu0")) && !there(&Path::new("cpu0").join(MASKED_OF_A_CPU)) {
        return Ok(Vec::new());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(&directory, ".", flags, Mode::empty()).with_context(|| format!("open {CPUS}"))?;
    let mut paths = Vec::new();
    for entry in rustix::fs::Dir::read_from(listed)? {
        let entry = entry.with_context(|| format!("read {CPUS}"))?;
        let name = entry.file_name().to_string_lossy();
        let is_cpu = name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
        let path = Path::new(&*name).join(MASKED_OF_A_CPU);
        if is_cpu && there(&path) {
            paths.push(Path::new(CPUS).join(path));
        }
    }
    Ok(paths)
}

/// The null device of the root, which covers files: nothing else that may be called so, CVE-2025-31133.
fn null_device(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let null = open_existing(root, Path::new("/dev/null")).context("open /dev/null in the root")?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
    if is_null { Ok(null) } else { Err(fault("/dev/null in the root is not the null device").into()) }
}

/// A mount of a device alone that nobody can change the owner or mode of.
fn read_only_copy(device: &OwnedFd) -> Result<OwnedFd> {
    let mount = clone_mount(device)?;
    match sys::mount_setattr(mount.as_fd(), 0, sys::attr::RDONLY | sys::attr::NOSUID | sys::attr::NOEXEC) {
        // Before Linux 5.12 it is a bind of the host's, which has these.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(mount),
        result => Ok(result.map(|()| mount)?),
    }
}

/// What masked paths are covered with, each found once: files with /dev/null, directories with an empty one.
#[derive(Default)]
pub(super) struct Covers<'a> {
    null: Option<Cover<'a>>,
    empty: Option<Cover<'a>>,
}

/// A mount, and the first that it covers.
struct Cover<'a> {
    mount: OwnedFd,
    first: Target<'a>,
}

impl Cover<'_> {
    /// Covers `target`, too.
    fn cover(&self, target: &Target<'_>) -> Result<()> {
        let by_name = match self.first {
            Target::Named(root, first) => target.cover_by_name(root, first),
            Target::Opened(_) => None,
        };
        by_name.unwrap_or_else(|| target.cover(&clone_mount(&self.mount)?))
    }
}

impl<'a> Covers<'a> {
    /// Source and target are looked at first.
    pub(super) fn mask(&mut self, inside: &'a Inside<'a>, path: &'a Path) -> Result<()> {
        let Some((target, kind)) = inside.find_of_kernel(path)? else {
            return Ok(());
        };
        let cover = if kind == FileType::Directory { &mut self.empty } else { &mut self.null };
        if let Some(cover) = cover {
            return cover.cover(&target);
        }
        let mount = match kind {
            FileType::Directory => empty_directory(inside)?,
            _ => read_only_copy(&null_device(inside.tree)?)?,
        };
        target.cover(&mount)?;
        *cover = Some(Cover { mount, first: target });
        Ok(())
    }
}

/// A read-only directory in which there is nothing. The sandbox's own sysfs has some in which there can never be anything, as mount
/// points; a file system for it alone would be one more of which the kernel keeps lists for every cgroup.
fn empty_directory(inside: &Inside<'_>) -> Result<OwnedFd> {
    let path = Path::new("/sys/fs/cgroup");
    let of_sysfs = if inside.own(path).is_some() { inside.open(path)? } else { None };
    if let Some(directory) = of_sysfs.filter(|found| rustix::fs::fstatfs(found).is_ok_and(|of| of.f_type == SYSFS)) {
        return clone_mount(&directory);
    }
    let options = [("mode", "0755".to_owned()), ("size", "4096".to_owned()), ("nr_inodes", "2".to_owned())];
    Ok(new_file_system("tmpfs", &options, kernel_attributes() | MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

/// A copy of what is to be read-only, that is not yet over it.
pub(super) struct ReadOnly<'a> {
    target: Target<'a>,
    copy: OwnedFd,
}

impl<'a> ReadOnly<'a> {
    /// Makes it; `None` where there is nothing.
    pub(super) fn copy(inside: &'a Inside<'a>, path: &'a Path) -> Result<Option<ReadOnly<'a>>> {
        let Some((target, _)) = inside.find_of_kernel(path)? else { return Ok(None) };
        let copy = target.copy()?;
        Ok(Some(ReadOnly { target, copy }))
    }

    /// Puts it over what it is a copy of, and over all that is stacked on that.
    pub(super) fn put(&self) -> Result<()> {
        self.target.cover(&self.copy)?;
        let attributes = sys::attr::RDONLY | sys::attr::NOSUID | sys::attr::NODEV | sys::attr::NOEXEC;
        restrict(self.copy.as_fd(), attributes, true)
    }
}

fn clone_mount(of: &OwnedFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(of, "", flags)?)
}
