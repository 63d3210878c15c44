//! What the child mounts itself, because it belongs to its own namespaces: /proc, /sys, /dev/pts, /dev/mqueue and the cgroup
//! file system; and what of them is masked. Before, the old root goes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::parse_mountinfo;
use crate::layer::Namespace;
use crate::part::inside::{Make, open_existing, open_or_make};
use crate::part::rootfs::assemble::new_file_system;
use crate::part::users::UserPlan;
use crate::procview;
use crate::spec::Spec;
use crate::sys;

mod cover;

use cover::{Covers, Inside, ReadOnly, of_each_cpu};

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
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/devices/virtual/thermal",
    "/sys/firmware",
];

/// The same in a /proc in which the host's root is somebody: they are that one's, and nobody else may read them.
const MASKED_OF_ROOT: &[&str] = &["/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags"];

/// The same in the host's /sys: in a new one they are mount points, in which there can never be anything.
const MASKED_OF_THE_HOST: &[&str] = &["/sys/kernel/debug", "/sys/kernel/security", "/sys/kernel/tracing"];

/// Read-only as in the OCI runtime specification's defaults.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// In each CPU's directory of sysfs: how often it was too hot, which tells what others compute.
pub(crate) const MASKED_OF_A_CPU: &str = "thermal_throttle";

/// Where sysfs has a directory for each CPU.
pub(crate) const CPUS: &str = "/sys/devices/system/cpu";

impl KernelMounts {
    /// Decides what is mounted: `shares` tells which namespaces are the host's.
    pub(crate) fn plan(
        spec: &Spec,
        shares: impl Fn(Namespace) -> bool,
        cgroup: bool,
        users: &UserPlan,
    ) -> KernelMounts {
        let of_root = MASKED_OF_ROOT.iter().filter(|_| !users.own_range());
        let of_the_host = MASKED_OF_THE_HOST.iter().filter(|_| shares(Namespace::Net));
        let mut masked: Vec<PathBuf> = MASKED.iter().chain(of_root).chain(of_the_host).map(PathBuf::from).collect();
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
            tty_group: users.maps_tty_group(),
            masked,
            read_only: READ_ONLY.iter().map(PathBuf::from).collect(),
            nesting: spec.nesting,
            place: ["/tmp", "/mnt", "/run", "/usr"].map(PathBuf::from).to_vec(),
        }
    }

    /// Whether what is at /proc or /sys is new.
    fn makes(&self, at: &str) -> bool {
        if at == "/proc" { self.proc } else { self.sysfs }
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

/// Attaches `tree` where it can become the root of this process's mount namespace: below one of `places`, which the old root has.
///
/// # Errors
/// With the kernel's reason.
fn attach_root(places: &[PathBuf], tree: &OwnedFd) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("make / private")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let attach_at = |place: &PathBuf| rustix::mount::move_mount(tree, "", CWD, place.as_path(), flags).is_ok();
    if places.iter().any(attach_at) {
        return Ok(());
    }
    Err(fault(format!("attach the new root: none of {places:?} can hold it")).into())
}

/// Makes the working directory, a mount in this thread's mount namespace, the root of that one and of each process that had its old root;
/// that is stacked on the new one. pivot_root(2) looks at every thread of the machine, which takes a millisecond where there are 3,000.
///
/// # Errors
/// With the kernel's reason.
pub(crate) fn pivot() -> Result<()> {
    // Both names are the new root, so no directory for the old one is needed, pivot_root(2).
    rustix::process::pivot_root(".", ".").context("pivot_root")
}

/// A root, and whether it is the sandbox's mount namespace's already, by [`pivot`].
#[derive(Debug)]
pub(crate) struct Root {
    /// A tree of mounts.
    pub(crate) tree: OwnedFd,
    /// Else it is attached elsewhere in that namespace, or nowhere.
    pub(crate) is_ours: bool,
}

/// Makes `root` the root of this process's mount namespace, with the kernel's file systems in it and the files of `view` over theirs,
/// and drops the old root.
///
/// # Errors
/// With the object and the kernel's reason.
pub(crate) fn enter(plan: &KernelMounts, made: &[Made], root: &Root, view: Option<&OwnedFd>) -> Result<()> {
    let Root { tree, is_ours } = root;
    if !is_ours {
        attach_root(&plan.place, tree)?;
    }
    rustix::process::fchdir(tree).context("enter the new root")?;
    if *is_ours {
        // Whatever the root was that this process had of the caller.
        rustix::process::chroot(".").context("enter the new root")?;
    } else {
        pivot()?;
    }
    // Before any way through the new root is gone: with something stacked on it a `..` in one of its links leads there, RESOLVE_IN_ROOT
    // or not.
    detach(Path::new(".")).context("detach the old root")?;
    for Made { mount, at } in made {
        attach(mount, tree.as_fd(), Path::new(at), Make::Directory).with_context(|| format!("mount {at}"))?;
    }
    for (at, kind) in [("/proc", PROC), ("/sys", SYSFS)].into_iter().filter(|(at, _)| !plan.makes(at)) {
        check_top(tree, at, kind).with_context(|| format!("look at {at} in the root"))?;
    }
    let inside = Inside { tree: tree.as_fd(), made };
    let of_each_cpu = of_each_cpu(&inside)?;
    let mut covers = Covers::default();
    for path in plan.masked.iter().chain(&of_each_cpu) {
        covers.mask(&inside, path).with_context(|| format!("mask {}", path.display()))?;
    }
    // One of the host's /proc is not the view's place.
    let is_place = |path: &Path| view.is_some() && path == Path::new(VIEW) && inside.own(path).is_some();
    let mut cover = None;
    for path in &plan.read_only {
        let context = || format!("make {} read-only", path.display());
        let Some(copy) = ReadOnly::copy(&inside, path).with_context(context)? else { continue };
        if is_place(path) {
            cover = Some(copy);
        } else {
            copy.put().with_context(context)?;
        }
    }
    view.map_or(Ok(()), |view| bind_view(&inside, view, cover.as_ref()))?;
    rustix::process::chdir("/").context("enter /")
}

/// What statfs(2) says of proc and of sysfs.
pub(crate) const PROC: i64 = 0x9fa0;
const SYSFS: i64 = 0x6265_6572;

/// Sees to it that `at` is the whole of the host's own file system there: what is masked by its path in it would else be missed.
fn check_top(tree: &OwnedFd, at: &str, kind: i64) -> Result<()> {
    let top = open_existing(tree.as_fd(), Path::new(at))?;
    // Both number their root 1: PROC_ROOT_INO, and kernfs.
    if rustix::fs::fstatfs(&top)?.f_type != kind || rustix::fs::fstat(&top)?.st_ino != 1 {
        return Err(fault("it is not the kernel's file system").into());
    }
    Ok(())
}

/// Where the view is stacked on: a directory that every kernel makes, in the same file system as most of what its files cover.
const VIEW: &str = "/proc/fs";

/// Binds the view's files over the kernel's own. A mount that is nowhere cannot be bound from, so it is attached, when all that they cover is
/// found. Then `cover` comes over it, and without one it is detached: for that the kernel waits until no CPU can still look at it, a grace
/// period of RCU, some tenths of a millisecond.
fn bind_view(inside: &Inside<'_>, view: &OwnedFd, cover: Option<&ReadOnly<'_>>) -> Result<()> {
    let files: Vec<_> = procview::bound().collect();
    let context = |path: &Path| format!("make {} the sandbox's own", path.display());
    let find = |(name, path)| Ok(inside.find(path).with_context(|| context(path))?.map(|target| (name, path, target)));
    let targets: Vec<_> = files.iter().map(|(name, path)| find((name, path))).collect::<Result<_>>()?;
    // Without a new /proc the root, below which all of them then are found by other ways.
    let (root, at) = inside.own(Path::new(VIEW)).unwrap_or((inside.tree, Path::new(".")));
    rustix::process::fchdir(root).context("enter what the sandbox's own /proc files are attached in")?;
    rustix::mount::move_mount(view, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("attach the sandbox's own /proc files")?;
    for (name, path, target) in targets.into_iter().flatten() {
        let by_name = target.cover_by_name(root, &at.join(name));
        let covered = by_name.unwrap_or_else(|| target.cover(&procview::mount::file(view, name)?));
        covered.with_context(|| context(path))?;
    }
    match cover {
        Some(cover) => cover.put().with_context(|| format!("make {VIEW} read-only")),
        None => detach(at).context("detach the sandbox's own /proc files"),
    }
}

/// Takes away what is stacked on `at`: what was put there last.
fn detach(at: &Path) -> rustix::io::Result<()> {
    rustix::mount::unmount(at, UnmountFlags::DETACH)
}

/// A /proc of this process's PID namespace: the host's, or where the root is a new one already one that nobody else sees.
pub(crate) fn proc_of_this() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = rustix::fs::open("/proc", flags, Mode::empty()).ok();
    // A new root has a directory there, or what an image put in its place.
    let is_one = |proc: &OwnedFd| rustix::fs::fstatfs(proc).is_ok_and(|of| of.f_type == PROC);
    here.filter(is_one).or_else(|| new_file_system("proc", &[], kernel_attributes()).ok())
}

/// The text of a file below a directory.
///
/// # Errors
/// What openat(2) and read(2) say.
pub(crate) fn read_at(directory: &OwnedFd, path: &str) -> std::io::Result<String> {
    let file = rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    std::io::read_to_string(std::fs::File::from(file))
}

fn attach(mount: &OwnedFd, root: BorrowedFd<'_>, at: &Path, make: Make) -> Result<()> {
    // Root inside, or where the map has none the only user that it has.
    let owner = (rustix::process::geteuid(), rustix::process::getegid());
    let target = open_or_make(root, at, make, owner)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", &target, "", flags)?)
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
