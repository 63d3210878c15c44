//! Makes the root that [`super::plan`] decided, and hands it over as one tree of mounts.
//!
//! For root this runs in the launcher's helper, which has the host's user namespace: so `trusted.overlay.*` marks of layers are
//! honoured and nothing is chowned. For a plain user it runs in the child. Layers and uppers are *attached* before the overlay is
//! made: kernels up to 6.12 refuse detached mounts as layers (EINVAL, "failed to clone upperpath"). Where they are attached goes
//! with the child's old root, or with the mount namespace of the helper.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::actor::Actor;
use super::device::own_device;
use super::source::{Source, Wanted, sources};
use super::{BindPlan, Operation, RootPlan, Tmpfs};
use crate::error::{Result, fault};
use crate::part::inside::{Make, give, make_in, make_name, open_or_make};
use crate::part::mounts;
use crate::sys;

/// Whose files the root's own are: the IDs that root inside has for the file systems, and the namespace that maps layers.
#[derive(Debug)]
pub(crate) struct Ids<'a> {
    /// What 0 inside is in the caller's user namespace.
    pub(crate) base: u32,
    /// A user namespace with the sandbox's map.
    pub(crate) userns: Option<BorrowedFd<'a>>,
    /// The mount namespace of the sandbox, to put the root together in: a namespace less to copy and to take down. `None`: the caller is
    /// in one of its own.
    pub(crate) inside: Option<BorrowedFd<'a>>,
}

impl Ids<'_> {
    /// The ID that `id` on disk is to the caller's user namespace.
    pub(super) fn shift(&self, id: u32) -> u32 {
        if id < crate::part::users::RANGE || self.base == 0 { self.base.saturating_add(id) } else { id }
    }

    /// Who owns what the root is made of. Where a plain user's map has no root it is the one user that there is: this process's.
    pub(super) fn root(&self) -> (Uid, Gid) {
        if !rustix::process::geteuid().is_root() {
            return (rustix::process::geteuid(), rustix::process::getegid());
        }
        (Uid::from_raw(self.base), Gid::from_raw(self.base))
    }
}

/// Makes the root and returns it as a tree of mounts, and whether it is attached: in the mount namespace `ids.inside`, where this thread
/// then is. Where that one may not be entered (setns(2) wants SYS_CHROOT), this thread then is in one of its own. `meanwhile` is called
/// after each step.
///
/// # Errors
/// With the object and the kernel's reason, when anything of the plan cannot be had.
pub(crate) fn assemble(plan: &RootPlan, ids: &Ids<'_>, mut meanwhile: impl FnMut()) -> Result<(OwnedFd, bool)> {
    let make_private = || {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("make / private")
    };
    if ids.inside.is_none() {
        make_private()?;
    }
    // All sources are opened before anything is mounted over where they are.
    let mut sources = plan.operations.iter().map(|operation| sources(operation, ids)).collect::<Result<Vec<_>>>()?;
    let upper = plan.upper.as_deref().map(|path| open_upper(path, ids)).transpose()?;
    let attached = ids.inside.map_or(Ok(false), enter)?;
    if ids.inside.is_some() {
        make_private()?;
    }
    for (operation, sources) in plan.operations.iter().zip(&mut sources) {
        sources.extend(own_device(operation, ids)?);
    }
    let scratch = Scratch::make(plan, upper)?;
    let actor = Actor::new(ids)?;
    let mount_points = if plan.upper.is_some() { mount_points(&plan.operations, &sources) } else { Vec::new() };
    let mut assembly = Assembly {
        plan,
        ids,
        actor,
        scratch,
        attached,
        fresh: 0,
        last_fresh: None,
        root: None,
        overlays: Vec::new(),
        mount_points,
    };
    for (operation, sources) in plan.operations.iter().zip(sources) {
        assembly.add(operation, sources)?;
        meanwhile();
    }
    assembly.finish()
}

/// Enters the mount namespace `inside`, or makes one where that is not allowed; which it was.
fn enter(inside: BorrowedFd<'_>) -> Result<bool> {
    match sys::setns(inside, libc::CLONE_NEWNS) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            sys::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?;
            Ok(false)
        }
        Err(error) => Err(error).context("enter the sandbox's mount namespace"),
    }
}

/// Every place where something is mounted, and whether that is a directory.
fn mount_points<'a>(operations: &'a [Operation], sources: &[Vec<Source>]) -> Vec<(&'a Path, bool)> {
    let is_directory = |source: &Source| FileType::from_raw_mode(source.stat.st_mode) == FileType::Directory;
    let point = |(operation, sources): (&'a Operation, &Vec<Source>)| match operation {
        // Where it is mounted after all, it is on a tmpfs.
        Operation::Node(_) | Operation::Directory(_) | Operation::Link { .. } | Operation::File { .. } => None,
        Operation::Bind(bind) => Some((bind.at.as_path(), is_directory(sources.first()?))),
        Operation::Overlay(_) | Operation::Tmpfs(_) | Operation::Sysfs | Operation::Copy { .. } => {
            Some((operation.at(), true))
        }
    };
    operations.iter().zip(sources).filter_map(point).collect()
}

/// A place that only this mount namespace sees, for uppers, init layers and attached layers.
pub(super) struct Scratch {
    /// The root directory of the tmpfs.
    pub(super) directory: OwnedFd,
    /// The kept upper, attached, where there is one.
    pub(super) kept: bool,
}

impl Scratch {
    fn make(plan: &RootPlan, upper: Option<OwnedFd>) -> Result<Scratch> {
        let mut options = vec![("mode", "0755".to_owned())];
        options.extend(plan.memory.map(|size| ("size", size.to_string())));
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let directory = new_file_system("tmpfs", &options, attributes).context("make a tmpfs for the root's writes")?;
        let attach = |place: &PathBuf| {
            rustix::mount::move_mount(&directory, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).is_ok()
        };
        if !plan.scratch.iter().any(attach) {
            return Err(fault(format!("attach a tmpfs: none of {:?} is a directory", plan.scratch)).into());
        }
        // Relative paths keep option strings short; absolute ones could be covered.
        rustix::process::fchdir(&directory).context("enter the scratch tmpfs")?;
        let scratch = Scratch { directory, kept: upper.is_some() };
        scratch.make_directory("root")?;
        if !plan.many_layers {
            scratch.make_directory("overlay")?;
        }
        if let Some(upper) = upper {
            scratch.make_directory("kept")?;
            rustix::mount::move_mount(&upper, "", CWD, "kept", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .context("attach the kept upper")?;
        }
        Ok(scratch)
    }

    pub(super) fn make_directory(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))
            .with_context(|| format!("make scratch directory {}", name.display()))
    }
}

/// Opens the directory that keeps the writes, made where it is missing, idmapped so that root inside is owner 0 on disk.
fn open_upper(path: &Path, ids: &Ids<'_>) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("make --upper {}", path.display()));
        }
    }
    Ok(Wanted::new(path, "upper").idmapped(ids.userns.is_some()).open(ids)?.mount)
}

pub(super) struct Assembly<'a> {
    pub(super) plan: &'a RootPlan,
    pub(super) ids: &'a Ids<'a>,
    pub(super) actor: Actor,
    pub(super) scratch: Scratch,
    /// What is made is attached where the sandbox is.
    attached: bool,
    /// How many empty directories were made.
    fresh: u32,
    /// The empty /dev, as long as nothing was attached elsewhere: what is made in it needs no way through the root.
    last_fresh: Option<(PathBuf, OwnedFd)>,
    /// The first mount, attached.
    root: Option<OwnedFd>,
    /// Overlays that become read-only at the end, when every mount point in them exists.
    pub(super) overlays: Vec<OwnedFd>,
    /// Where something is mounted, and whether that is a directory; only where the writes are kept does it matter.
    pub(super) mount_points: Vec<(&'a Path, bool)>,
}

impl Assembly<'_> {
    fn add(&mut self, operation: &Operation, sources: Vec<Source>) -> Result<()> {
        let at = operation.at();
        let step = match operation {
            Operation::Overlay(overlay) => {
                let mount =
                    self.overlay(overlay, sources).with_context(|| format!("mount overlay on {}", at.display()))?;
                self.overlays.push(mount);
                Ok(())
            }
            Operation::Bind(bind) => self.bind(bind, sources),
            Operation::Tmpfs(tmpfs) => self.tmpfs(tmpfs),
            Operation::Node(at) => self.node(at),
            Operation::Directory(at) => self.target(at, Make::Directory).map(drop),
            Operation::Sysfs => sources.iter().try_for_each(|source| self.attach(&source.mount, at, Make::Directory)),
            Operation::Link { at, target } => self.link(at, target),
            Operation::File { at, content } => self.file(at, content),
            Operation::Copy { at, .. } => self.copy(at, &sources),
        };
        step.with_context(|| format!("make {} in the root", at.display()))
    }

    /// The directory (or file) inside where something is to be mounted.
    fn target(&self, at: &Path, make: Make) -> Result<OwnedFd> {
        self.actor.as_owner();
        let Some(root) = &self.root else {
            return Ok(rustix::fs::openat(
                &self.scratch.directory,
                "root",
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
            )?);
        };
        if let Some((directory, name)) = self.in_fresh(at) {
            match make_in(directory, name, make) {
                Err(rustix::io::Errno::EXIST) => {}
                made => return Ok(made?),
            }
        }
        Ok(open_or_make(root.as_fd(), at, make, self.ids.root())?)
    }

    /// The directory of `at`, and its name there, if that directory is one that only this process has seen.
    pub(super) fn in_fresh<'p>(&self, at: &'p Path) -> Option<(BorrowedFd<'_>, &'p OsStr)> {
        let (place, directory) = self.last_fresh.as_ref()?;
        (at.parent() == Some(place)).then(|| Some((directory.as_fd(), at.file_name()?)))?
    }

    pub(super) fn attach(&mut self, mount: &OwnedFd, at: &Path, make: Make) -> Result<()> {
        if let Some((directory, name)) = self.in_fresh(at) {
            self.actor.as_owner();
            match make_name(directory, name, make) {
                // There is no need to open it.
                Ok(()) => {
                    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    return Ok(rustix::mount::move_mount(mount, "", directory, name, flags)?);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let target = self.target(at, make)?;
        if let Some(root) = &self.root
            && is_same(&target, root)?
        {
            return Err(fault("a link in the root leads to the root itself").into());
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", &target, "", flags)?;
        if self.in_fresh(at).is_none() {
            // By whatever way, it may be covered.
            self.last_fresh = None;
        }
        if self.root.is_none() {
            self.root = Some(mount.try_clone()?);
        }
        Ok(())
    }

    /// Without a size of its own a tmpfs is a directory of the scratch one: one file system less to make and to take down, and
    /// one limit for all memory that the root takes.
    fn tmpfs(&mut self, tmpfs: &Tmpfs) -> Result<()> {
        let mount = self.new_tmpfs(tmpfs)?;
        self.attach(&mount, &tmpfs.at, Make::Directory)?;
        // The one that much is made in.
        if tmpfs.at == Path::new("/dev") && self.leads_to(&tmpfs.at, &mount)? && self.makes_for_root() {
            self.last_fresh = Some((tmpfs.at.clone(), mount));
        }
        Ok(())
    }

    /// Whether the way to `at` ends at the root of this mount: not where it is covered, or a link that led there is.
    fn leads_to(&self, at: &Path, mount: &OwnedFd) -> Result<bool> {
        Ok(is_same(&self.target(at, Make::Directory)?, mount)?)
    }

    /// Whether what the actor makes is the root's without being given to it.
    fn makes_for_root(&self) -> bool {
        let (uid, gid) = self.ids.root();
        self.ids.base != 0 || (uid, gid) == (rustix::process::geteuid(), rustix::process::getegid())
    }

    fn new_tmpfs(&mut self, tmpfs: &Tmpfs) -> Result<OwnedFd> {
        Ok(match tmpfs.size {
            Some(size) => {
                let (uid, gid) = self.ids.root();
                let [uid, gid] = [uid.as_raw(), gid.as_raw()].map(|id| id.to_string());
                let mode = format!("{:o}", tmpfs.mode);
                let options = [("mode", mode), ("uid", uid), ("gid", gid), ("size", size.to_string())];
                let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
                new_file_system("tmpfs", &options, attributes)?
            }
            None => {
                self.fresh += 1;
                let place = self.last_fresh_place();
                self.make_directory(&place, (self.ids.base, self.ids.base), tmpfs.mode)?;
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let mount = rustix::mount::open_tree(CWD, &place, flags)?;
                if tmpfs.devices {
                    sys::let_devices_be_opened(mount.as_fd())?;
                }
                mount
            }
        })
    }

    /// The scratch directory that [`Assembly::new_tmpfs`] made last.
    fn last_fresh_place(&self) -> PathBuf {
        PathBuf::from(format!("fresh-{}", self.fresh))
    }

    /// Copies, since the file system of credentials (ramfs) cannot be idmapped, and root inside could not read root's own.
    fn copy(&mut self, at: &Path, sources: &[Source]) -> Result<()> {
        let Some(source) = sources.first() else { return Ok(()) };
        let mount = self.new_tmpfs(&Tmpfs::new(at, 0o555, None))?;
        let place = self.last_fresh_place();
        let files = format!("/proc/self/fd/{}", source.mount.as_raw_fd());
        self.actor.as_self();
        for entry in std::fs::read_dir(files).context("list the files to copy")? {
            let entry = entry.context("list the files to copy")?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let copy = place.join(entry.file_name());
                std::fs::copy(entry.path(), &copy).with_context(|| format!("copy {}", entry.file_name().display()))?;
                own(&copy, self.ids.base, self.ids.base, 0o444)?;
            }
        }
        self.attach(&mount, at, Make::Directory)?;
        let attributes = sys::attr::RDONLY | sys::attr::NODEV | sys::attr::NOSUID | sys::attr::NOEXEC;
        mounts::restrict(mount.as_fd(), attributes, false)
    }

    pub(super) fn bind(&mut self, bind: &BindPlan, sources: Vec<Source>) -> Result<()> {
        let Some(source) = sources.into_iter().next() else {
            return Ok(());
        };
        let directory = FileType::from_raw_mode(source.stat.st_mode) == FileType::Directory;
        self.attach(&source.mount, &bind.at, if directory { Make::Directory } else { Make::File })?;
        if source.is_restricted {
            return Ok(());
        }
        mounts::restrict(source.mount.as_fd(), bind.attributes(), bind.recursive)
    }

    fn file(&self, at: &Path, content: &str) -> Result<()> {
        let file = self.target(at, Make::File)?;
        Ok(std::fs::write(format!("/proc/self/fd/{}", file.as_raw_fd()), content)?)
    }

    fn link(&self, at: &Path, target: &Path) -> Result<()> {
        let (Some(directory), Some(name)) = (at.parent(), at.file_name()) else {
            return Ok(());
        };
        if let Some((directory, name)) = self.in_fresh(at) {
            self.actor.as_owner();
            return Ok(rustix::fs::symlinkat(target, directory, name)?);
        }
        let directory = self.target(directory, Make::Directory)?;
        rustix::fs::symlinkat(target, &directory, name)?;
        Ok(give(directory.as_fd(), name, self.ids.root())?)
    }

    /// The owner (shifted) that `stat` has on disk.
    pub(super) fn owner(&self, stat: &Stat) -> (u32, u32) {
        (self.ids.shift(stat.st_uid), self.ids.shift(stat.st_gid))
    }

    /// Makes a scratch directory with this owner and mode: most have what it has when it is made by the mapped root.
    pub(super) fn make_directory(&self, path: &Path, (uid, gid): (u32, u32), mode: u32) -> Result<()> {
        self.actor.as_owner();
        let first = mode & 0o755;
        rustix::fs::mkdirat(&self.scratch.directory, path, Mode::from_raw_mode(first))
            .with_context(|| format!("make scratch directory {}", path.display()))?;
        if (uid, gid) == (self.ids.base, self.ids.base) && mode & 0o7777 == first {
            return Ok(());
        }
        own(path, uid, gid, mode)
    }

    /// Makes the root read-only where asked, and takes the finished tree out of this namespace if it is not the sandbox's.
    fn finish(self) -> Result<(OwnedFd, bool)> {
        let root = self.root.ok_or_else(|| fault("the plan has no root"))?;
        if self.plan.read_only {
            // A plain user's view of the host is a tmpfs, with an overlay for each directory in it.
            for mount in self.overlays.iter().chain([&root]) {
                mounts::restrict(mount.as_fd(), sys::attr::RDONLY | sys::attr::NODEV, false)?;
            }
        }
        if self.attached {
            return Ok((root, true));
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        Ok((rustix::mount::open_tree(&root, "", flags).context("take the finished root")?, false))
    }
}

/// Whether both are the same file.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let [one, other] = [rustix::fs::fstat(one)?, rustix::fs::fstat(other)?];
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

pub(super) fn own(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<()> {
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    // A plain user cannot give files away: what is not theirs stays theirs, as everything in a single-ID map does.
    if rustix::fs::chown(path, owner.0, owner.1).is_err() && rustix::process::geteuid().is_root() {
        log::debug!("owner {uid}:{gid} of {} has no place in the map", path.display());
    }
    match rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777)) {
        // systemd's RestrictSUIDSGID= around us refuses the set-id bits, which on a directory only choose the group of new files.
        Err(rustix::io::Errno::PERM) => rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o1777)),
        result => result,
    }
    .with_context(|| format!("set the mode of {}", path.display()))
}

/// A mount point as one file name: `-` for its slashes, and nothing that overlayfs or mount(2) read in an option (`\\`, `,`, `:`).
pub(super) fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = text.trim_matches('/');
    if text.is_empty() {
        return "-".to_owned();
    }
    let code = |c: char| match c {
        '/' => "-".to_owned(),
        '-' | '_' | ',' | ':' | '\\' => format!("_{:02x}", u32::from(c)),
        _ => c.to_string(),
    };
    text.chars().map(code).collect()
}

/// What [`escape`] made of a mount point, turned back.
pub(crate) fn unescape(name: &str) -> PathBuf {
    let mut path = String::from("/");
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let code = rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (c, code) {
            ('-', _) => path.push('/'),
            ('_', Some(code)) => {
                path.push(char::from(code));
                rest = &rest[2..];
            }
            _ => path.push(c),
        }
    }
    PathBuf::from(if name == "-" { "/" } else { &path })
}

/// A new file system, mounted but not attached.
pub(crate) fn new_file_system(
    name: &str,
    options: &[(&str, String)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let file_system = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&file_system, "source", name)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&file_system, *key, value.as_str())?;
    }
    create(&file_system, attributes)
        .map_err(|error| error.downcast::<io::Error>().unwrap_or_else(|other| io::Error::other(format!("{other:#}"))))
}

/// Makes the configured file system; the kernel's own words go into the error where it has any.
pub(crate) fn create(file_system: &OwnedFd, attributes: MountAttrFlags) -> Result<OwnedFd> {
    if let Err(error) = rustix::mount::fsconfig_create(file_system) {
        let mut text = [0; 512];
        let said = rustix::io::read(file_system, &mut text).unwrap_or(0);
        let said = String::from_utf8_lossy(&text[..said]).trim().to_owned();
        let error = io::Error::from(error);
        return Err(if said.is_empty() { error.into() } else { fault(format!("{error} ({said})")).into() });
    }
    Ok(rustix::mount::fsmount(file_system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_as_file_names_and_back() {
        for (path, name) in
            [("/", "-"), ("/srv", "srv"), ("/srv/a b", "srv-a b"), ("/a-b/c_d,e:f", "a_2db-c_5fd_2ce_3af")]
        {
            assert_eq!(escape(Path::new(path)), name);
            assert_eq!(unescape(name), Path::new(path));
        }
    }
}
