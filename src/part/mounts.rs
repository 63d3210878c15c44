//! What the child mounts itself, because it belongs to its own namespaces: /proc, /sys, /dev/pts, /dev/mqueue and the cgroup
//! file system; and what of them is masked. Then the old root goes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::parse_mountinfo;
use crate::layer::Namespace;
use crate::part::inside::{Make, open_existing, open_or_make};
use crate::part::rootfs::assemble::new_file_system;
use crate::procview;
use crate::spec::Spec;
use crate::sys;

/// The kernel's file systems inside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct KernelMounts {
    /// A new /proc of the PID namespace (else the root has the host's).
    pub(crate) proc: bool,
    /// In /proc each user sees the processes of that user only.
    pub(crate) hide_pids: bool,
    /// A new /sys of the network namespace (else the root has the host's).
    pub(crate) sysfs: bool,
    /// A new /dev/mqueue of the IPC namespace.
    pub(crate) mqueue: bool,
    /// /sys/fs/cgroup rooted at the unit, read-only; cgroup v2 only.
    pub(crate) cgroup: bool,
    /// Group 5 (tty) owns terminals; not where it is not mapped.
    pub(crate) tty_group: bool,
    /// Paths that appear empty.
    pub(crate) masked: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub(crate) read_only: Vec<PathBuf>,
    /// A bare /proc and /sys stay, covered, so that what runs inside may mount its own.
    pub(crate) nesting: bool,
    /// Where the new root may be attached before it becomes the root.
    pub(crate) place: Vec<PathBuf>,
}

/// Masked as in the OCI runtime specification's defaults and beyond: what tells about, or acts on, the whole machine.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/devices/virtual/thermal",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// Read-only as in the OCI runtime specification's defaults.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// In each CPU's directory of sysfs: how often it was too hot, which tells what others compute.
pub(crate) const MASKED_OF_A_CPU: &str = "thermal_throttle";

/// Where sysfs has a directory for each CPU.
pub(crate) const CPUS: &str = "/sys/devices/system/cpu";

impl KernelMounts {
    /// Decides what is mounted: `shares` tells which namespaces are the host's.
    pub(crate) fn plan(spec: &Spec, shares: impl Fn(Namespace) -> bool, cgroup: bool, tty_group: bool) -> KernelMounts {
        let mut masked: Vec<PathBuf> = MASKED.iter().map(PathBuf::from).collect();
        if shares(Namespace::Net) && !cgroup && !shares(Namespace::Cgroup) {
            // The host's /sys, with the host's whole tree in it.
            masked.push("/sys/fs/cgroup".into());
        }
        KernelMounts {
            proc: !shares(Namespace::Pid),
            hide_pids: spec.root.hide_pids,
            sysfs: !shares(Namespace::Net),
            mqueue: !shares(Namespace::Ipc),
            cgroup,
            tty_group,
            masked,
            read_only: READ_ONLY.iter().map(PathBuf::from).collect(),
            nesting: spec.nesting,
            place: ["/tmp", "/mnt", "/run", "/usr"].map(PathBuf::from).to_vec(),
        }
    }
}

/// Where the bare file systems are that the kernel wants to see before it lets a user namespace mount another one. They are attached
/// before the sandbox's own /proc, which then covers the directory that they are in: a mount that is covered counts, and no path leads
/// to it. Nobody can take the cover away without SYS_ADMIN, with which the masks can be undone as well.
const BARE_PROC: &str = "/proc/proc";
/// It is read-only, and so is what can be mounted because of it: its files have the machine's root for an owner.
const BARE_SYSFS: &str = "/proc/sys";

/// The flags of every mount of a kernel file system.
fn kernel_attributes() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// A new file system that is not attached yet, and where it goes.
#[derive(Debug)]
pub(crate) struct Made {
    mount: OwnedFd,
    at: &'static str,
}

/// Makes the kernel's file systems, while the root is still being assembled elsewhere. Before the old root goes and before anything
/// covers a part of it: the kernel lets a user namespace have new ones only while it sees whole ones (mount_too_revealing() in
/// fs/namespace.c).
///
/// # Errors
/// With the object and the kernel's reason.
pub(crate) fn make(plan: &KernelMounts) -> Result<Vec<Made>> {
    let kernel = kernel_attributes();
    let fixed = kernel | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut made = Vec::new();
    if plan.nesting {
        made.push(make_one("tmpfs", "/proc", &[("mode", "0700".to_owned()), ("size", "4096".to_owned())], kernel)?);
        made.push(make_one("proc", BARE_PROC, &[], kernel)?);
        if plan.sysfs {
            made.push(make_one("sysfs", BARE_SYSFS, &[], fixed)?);
        }
    }
    if plan.proc {
        let options = [("hidepid", "2".to_owned())];
        made.push(make_one("proc", "/proc", if plan.hide_pids { &options } else { &[] }, kernel)?);
    }
    if plan.sysfs {
        made.push(make_one("sysfs", "/sys", &[], fixed)?);
    }
    let mut options = vec![("ptmxmode", "0666".to_owned()), ("mode", "0620".to_owned())];
    if plan.tty_group {
        options.push(("gid", "5".into()));
    }
    let terminals = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    made.push(make_one("devpts", "/dev/pts", &options, terminals)?);
    if plan.mqueue {
        made.push(make_one("mqueue", "/dev/mqueue", &[], kernel)?);
    }
    Ok(made)
}

/// A new sysfs, which shows the network namespace that the caller is in; not attached.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn new_sysfs() -> std::io::Result<OwnedFd> {
    new_file_system("sysfs", &[], kernel_attributes() | MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn make_one(kind: &str, at: &'static str, options: &[(&str, String)], flags: MountAttrFlags) -> Result<Made> {
    let mount = new_file_system(kind, options, flags).map_err(|error| {
        let fault = fault(format!("mount {kind} on {at}: {error}"));
        if error.raw_os_error() == Some(libc::EPERM) {
            return fault.hint(format!(
                "something on this host covers a part of {at}, or we run in a container: try --userns host"
            ));
        }
        fault
    })?;
    Ok(Made { mount, at })
}

/// Makes `tree` the root of this process's mount namespace, with the kernel's file systems in it and the files of `view` over theirs,
/// and drops the old root.
///
/// # Errors
/// With the object and the kernel's reason.
pub(crate) fn enter(plan: &KernelMounts, made: &[Made], tree: &OwnedFd, view: Option<&OwnedFd>) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("make / private")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let attach_at = |place: &&PathBuf| rustix::mount::move_mount(tree, "", CWD, place.as_path(), flags).is_ok();
    let Some(place) = plan.place.iter().find(attach_at) else {
        return Err(fault(format!("attach the new root: none of {:?} can hold it", plan.place)).into());
    };
    rustix::process::fchdir(tree).context("enter the new root")?;
    for Made { mount, at } in made {
        attach(mount, tree.as_fd(), Path::new(at), Make::Directory).with_context(|| format!("mount {at}"))?;
    }
    let inside = Inside { tree: tree.as_fd(), made };
    let mut covers = Covers::default();
    for path in plan.masked.iter().chain(&of_each_cpu(&inside)?) {
        covers.mask(&inside, path).with_context(|| format!("mask {}", path.display()))?;
    }
    for path in &plan.read_only {
        make_read_only(&inside, path).with_context(|| format!("make {} read-only", path.display()))?;
    }
    if let Some(view) = view {
        let places: Vec<&PathBuf> = plan.place.iter().filter(|other| *other != place).collect();
        procview::mount::bind(view, &places, |path, make| inside.cover(path, make))?;
    }
    // Both names are the new root: the old one is stacked on it and detached, so no directory for it is needed, pivot_root(2).
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("detach the old root")?;
    rustix::process::chdir("/").context("enter /")
}

fn attach(mount: &OwnedFd, root: BorrowedFd<'_>, at: &Path, make: Make) -> Result<()> {
    // Root inside, or where the map has none the only user that it has.
    let owner = (rustix::process::geteuid(), rustix::process::getegid());
    let target = open_or_make(root, at, make, owner)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", &target, "", flags)?)
}

/// What statfs(2) says of sysfs.
const SYSFS: i64 = 0x6265_6572;

/// What is to be covered.
enum Target<'a> {
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
    fn cover(&self, with: &OwnedFd) -> Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let covered = match self {
            Target::Named(root, name) => rustix::mount::move_mount(with, "", root, *name, flags),
            Target::Opened(target) => {
                rustix::mount::move_mount(with, "", target, "", flags | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
            }
        };
        Ok(covered?)
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
struct Inside<'a> {
    tree: BorrowedFd<'a>,
    made: &'a [Made],
}

impl Inside<'_> {
    /// The new file system that `path` is on, and the rest of the path; for what is on it this takes half the time of a way through the
    /// whole root.
    fn own<'p>(&self, path: &'p Path) -> Option<(BorrowedFd<'_>, &'p Path)> {
        self.made.iter().rev().find_map(|made| Some((made.mount.as_fd(), path.strip_prefix(made.at).ok()?)))
    }

    /// Covers what `path` names, if there is something, with what `make` makes.
    fn cover(&self, path: &Path, make: &dyn Fn() -> Result<OwnedFd>) -> Result<()> {
        let target = match self.named(path) {
            Some(named) => named?.map(|(target, _)| target),
            None => self.open(path)?.map(Target::Opened),
        };
        target.map_or(Ok(()), |target| target.cover(&make()?))
    }

    /// What `path` names and of what kind it is, which is sure to be the kernel's own file; `None` where there is nothing.
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
            Err(error) if is_absence(error) => Some(Ok(None)),
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Opens what `path` names, through links only as far as they stay in the root; `None` where there is nothing.
    fn open(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let (root, path) = self.own(path).unwrap_or((self.tree, path));
        match open_existing(root, path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if rustix::io::Errno::from_io_error(&error).is_some_and(is_absence) => Ok(None),
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
        const PROC: i64 = 0x9fa0;
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
fn is_absence(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::ACCESS)
}

/// What is masked of every CPU that this machine shows.
fn of_each_cpu(inside: &Inside<'_>) -> Result<Vec<PathBuf>> {
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

/// What masked paths are covered with, each found once: files with /dev/null, directories with an empty one.
#[derive(Default)]
struct Covers {
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl Covers {
    /// Source and target are looked at first.
    fn mask(&mut self, inside: &Inside<'_>, path: &Path) -> Result<()> {
        let Some((target, kind)) = inside.find_of_kernel(path)? else {
            return Ok(());
        };
        let cover = if kind == FileType::Directory { &mut self.empty } else { &mut self.null };
        let mount = match (&cover, kind) {
            (Some(cover), _) => clone_mount(cover)?,
            (None, FileType::Directory) => empty_directory(inside)?,
            (None, _) => clone_mount(&null_device(inside.tree)?)?,
        };
        target.cover(&mount)?;
        cover.get_or_insert(mount);
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

fn make_read_only(inside: &Inside<'_>, path: &Path) -> Result<()> {
    let Some((target, _)) = inside.find_of_kernel(path)? else {
        return Ok(());
    };
    let copy = target.copy()?;
    target.cover(&copy)?;
    let attributes = sys::attr::RDONLY | sys::attr::NOSUID | sys::attr::NODEV | sys::attr::NOEXEC;
    restrict(copy.as_fd(), attributes, true)
}

fn clone_mount(of: &OwnedFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(of, "", flags)?)
}

/// Mounts the cgroup file system; called when this process is in its unit and has a cgroup namespace, so its root is the unit.
///
/// # Errors
/// With the kernel's reason.
pub(crate) fn mount_cgroup() -> Result<()> {
    let at = "/sys/fs/cgroup";
    let mount = new_file_system("cgroup2", &[], kernel_attributes() | MountAttrFlags::MOUNT_ATTR_RDONLY)
        .with_context(|| format!("mount cgroup2 on {at}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", CWD, at, flags).with_context(|| format!("mount cgroup2 on {at}"))
}

/// Adds `attributes` ([`sys::attr`]) to the attached mount that `mount` is the root of, and with `recursive` to all below it.
///
/// # Errors
/// With the kernel's reason.
pub(crate) fn restrict(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> Result<()> {
    let flags = if recursive { sys::attr::RECURSIVE } else { 0 };
    match sys::mount_setattr(mount, flags, attributes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => remount(mount, attributes, recursive),
        result => Ok(result?),
    }
}

/// Before Linux 5.12: mount(2) with MS_REMOUNT|MS_BIND, mount by mount.
fn remount(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    remount_path(Path::new(&path), attributes)?;
    if recursive {
        let top = std::fs::read_link(&path)?;
        // The helper is a thread with mounts of its own: /proc/self is the launcher's first one.
        let table = parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo")?);
        for below in table.iter().filter(|m| m.point != top && m.point.starts_with(&top)) {
            remount_path(&below.point, attributes)?;
        }
    }
    Ok(())
}

fn remount_path(path: &Path, attributes: u64) -> Result<()> {
    // What is set stays set: a user namespace may not clear it, and MS_REMOUNT replaces all flags.
    let now = rustix::fs::statvfs(path)?.f_flag;
    let rows = [
        (sys::attr::RDONLY, StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (sys::attr::NOSUID, StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (sys::attr::NODEV, StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (sys::attr::NOEXEC, StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (0, StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (0, StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (0, StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let flags = rows
        .into_iter()
        .filter(|(asked, set, _)| attributes & asked != 0 || now.contains(*set))
        .fold(MountFlags::BIND, |flags, (_, _, flag)| flags | flag);
    rustix::mount::mount_remount(path, flags, "").with_context(|| format!("remount {}", path.display()))
}
