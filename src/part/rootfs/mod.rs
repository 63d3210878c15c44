//! The root of a sandbox: a list of mounts, decided here as plain data in the order they are made, and made by [`assemble`].

mod actor;
pub(crate) mod assemble;
mod device;
mod init;
mod overlay;
mod show;
mod source;
mod view;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::{Host, Mount};
use crate::part::network::names;
use crate::part::scratch;
use crate::spec::{Bind, RootSource, Spec, Upper};
use crate::sys;
use view::View;

/// The first kernel that takes the layers of an overlay one by one (`lowerdir+`); in one string they have at most 4096 bytes.
pub(crate) const LAYER_BY_LAYER: (u32, u32) = (6, 5);

/// Everything that makes the root, in order; the first one is the root itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RootPlan {
    /// What is mounted or made, in order.
    pub(crate) operations: Vec<Operation>,
    /// Size of the memory that takes the writes, in bytes; `None`: half of the machine's, tmpfs(5).
    pub(crate) memory: Option<u64>,
    /// A directory that takes the writes.
    pub(crate) upper: Option<PathBuf>,
    /// That directory is made for this sandbox and removed at its end.
    pub(crate) temporary: bool,
    /// No overlay can be written to.
    pub(crate) read_only: bool,
    /// A plain user's root: made by the child, in its own user namespace.
    pub(crate) by_child: bool,
    /// Overlays have their marks in `user.overlay.*`: a plain user may not write `trusted.*`.
    pub(crate) userxattr: bool,
    /// `lowerdir+` exists (Linux 6.5), so the number of layers is not bounded by one page of options.
    pub(crate) many_layers: bool,
    /// Directories on the host that may serve as a place for scratch mounts, in a mount namespace that is not the host's.
    pub(crate) scratch: Vec<PathBuf>,
    /// The helper needs a mount namespace of its own, and does not put the root together in the sandbox's. There what it attaches could
    /// spread to the host without a user namespace of the sandbox's own, and a mount of the host's that is unbindable is so for the
    /// helper, too, unless its namespace has a copy that is not.
    #[serde(skip)]
    pub(crate) own_namespace: bool,
}

/// One step of making the root.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// Read-only layers with a writable upper on top.
    Overlay(Overlay),
    /// A file or directory of the host.
    Bind(BindPlan),
    /// An empty directory in memory.
    Tmpfs(Tmpfs),
    /// A node for a device of the host's that has the same name there.
    Node(PathBuf),
    /// A directory, where it is missing.
    Directory(PathBuf),
    /// /sys of the network namespace that is joined, read-only.
    Sysfs,
    /// A file of the sandbox's own.
    File {
        /// Where it is.
        at: PathBuf,
        /// What it says.
        content: String,
    },
    /// A symbolic link in a directory that was just made.
    Link {
        /// Where it is.
        at: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A directory in memory with copies of a directory's files, which everybody inside may read and nobody change.
    Copy {
        /// The directory on the host.
        source: PathBuf,
        /// Where it is.
        at: PathBuf,
    },
}

/// Layers under a writable upper.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Overlay {
    /// Where it is inside.
    pub(crate) at: PathBuf,
    /// Directories of the host, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// The init layer: files between the layers and the upper.
    pub(crate) init: Vec<InitEntry>,
    /// The layers are shown through the ID map of the sandbox.
    pub(crate) idmap: bool,
}

/// One entry of the init layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct InitEntry {
    /// Path inside the overlay, without a leading slash.
    pub(crate) path: PathBuf,
    /// What is there instead of what the layers have.
    pub(crate) what: InitKind,
}

/// What the init layer puts at a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InitKind {
    /// A file with this content.
    File(String),
    /// A directory, where the layers have none.
    Directory,
    /// Nothing: a whiteout.
    Absent,
    /// An empty directory with the owner and mode of the hidden one.
    Empty,
}

/// A file or directory of the host, seen inside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BindPlan {
    /// Path on the host.
    pub(crate) source: PathBuf,
    /// Path inside.
    pub(crate) at: PathBuf,
    /// Cannot be written.
    pub(crate) read_only: bool,
    /// With everything mounted below it.
    pub(crate) recursive: bool,
    /// Is a device node that may be opened.
    pub(crate) device: bool,
    /// Owners are shown through the ID map of the sandbox; a device is a node of our own then.
    pub(crate) idmap: bool,
    /// Left out where the host has no such file.
    pub(crate) optional: bool,
}

impl BindPlan {
    /// What its mount may not do, [`sys::attr`].
    fn attributes(&self) -> u64 {
        let kind = if self.device { sys::attr::NOEXEC } else { sys::attr::NODEV };
        sys::attr::NOSUID | kind | if self.read_only { sys::attr::RDONLY } else { 0 }
    }

    /// Of a device of the host's, with nothing of it changed.
    fn device(path: PathBuf) -> BindPlan {
        BindPlan {
            source: path.clone(),
            at: path,
            // A read-only mount still lets data through a device node; what it stops is chmod and the like, on the host's own.
            read_only: true,
            recursive: false,
            device: true,
            idmap: false,
            optional: false,
        }
    }

    /// Whether it is a node of our own for the same device: what holds the host's nodes cannot be idmapped.
    fn is_own_node(&self) -> bool {
        self.device && self.idmap
    }
}

/// An empty directory in memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Tmpfs {
    /// Path inside.
    pub(crate) at: PathBuf,
    /// Mode of the directory.
    pub(crate) mode: u32,
    /// Size in bytes; `None`: what [`RootPlan::memory`] leaves.
    pub(crate) size: Option<u64>,
    /// Nodes in it may be opened; who may make them has a right on the host.
    pub(crate) devices: bool,
}

impl Tmpfs {
    fn new(at: impl Into<PathBuf>, mode: u32, size: Option<u64>) -> Tmpfs {
        Tmpfs { at: at.into(), mode, size, devices: false }
    }
}

/// Devices that every sandbox has.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Links in /dev.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// How owners of the host's files reach the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Through the sandbox's own range: every layer and bind must be idmapped.
    Mapped,
    /// As they are.
    Same,
}

/// Decides the root; `warnings` gets a line for what of the host cannot be had as it is.
///
/// # Errors
/// When a bind or an upper cannot be idmapped but has to be, and when a plain user's kernel has no overlay for them.
pub(crate) fn plan(
    spec: &Spec,
    host: &Host,
    owners: Owners,
    share_sys: bool,
    share_proc: bool,
    warnings: &mut Vec<String>,
) -> Result<RootPlan> {
    let rootless = host.uid != 0;
    if rootless && host.kernel < (5, 11) {
        let (major, minor) = host.kernel;
        return Err(fault(format!("overlay root: a plain user cannot mount one on Linux {major}.{minor} (5.11 can)"))
            .hint("run as root: sudo sandbox run …")
            .into());
    }
    let mut operations = match &spec.root.source {
        RootSource::HostView => {
            let view = View::new(spec, host, owners);
            warnings.extend(view.degraded());
            warnings.extend(not_kept(spec, host));
            view.operations()
        }
        RootSource::Layers(layers) => {
            let mut init = init_files(spec, host);
            // A distroless image may have none. Made here they are no change of the sandbox's.
            let mount_points =
                ["dev", "proc", "sys"].map(|path| InitEntry { path: path.into(), what: InitKind::Directory });
            init.extend(mount_points);
            let at = PathBuf::from("/");
            let idmap = owners == Owners::Mapped;
            vec![Operation::Overlay(Overlay { at, layers: layers.clone(), init, idmap })]
        }
    };
    operations.extend(kernel_directories(share_sys, share_proc));
    if spec.network.is_joined() && !rootless {
        // What the host's own shows are the host's interfaces.
        let own = operations.iter_mut().filter(|operation| operation.at() == Path::new("/sys"));
        own.for_each(|operation| *operation = Operation::Sysfs);
    }
    operations.extend(devices(host, owners));
    operations.extend(spec.root.directories.iter().cloned().map(Operation::Directory));
    operations.extend(asked(spec, host, owners)?);
    let no_user_xattrs = rootless && host.kernel < (6, 6);
    if no_user_xattrs {
        hide_by_absence(&mut operations);
    }
    let (memory, upper) = match &spec.root.upper {
        Upper::Memory(None) if no_user_xattrs => (None, Some(scratch::path(host.uid, &host.id))),
        Upper::Memory(Some(_)) if no_user_xattrs => return Err(no_memory_upper(host)),
        Upper::Memory(size) => (*size, None),
        Upper::Directory(path) => (None, Some(path.clone())),
    };
    let temporary = upper.is_some() && matches!(spec.root.upper, Upper::Memory(_));
    if let Some(upper) = &upper {
        check_upper(host, upper, owners)?;
    }
    Ok(RootPlan {
        operations,
        memory,
        upper,
        temporary,
        read_only: spec.root.read_only,
        by_child: rootless,
        userxattr: rootless || spec.root.user_marks,
        many_layers: host.kernel >= LAYER_BY_LAYER,
        scratch: ["/tmp", "/mnt", "/run", "/usr"].map(PathBuf::from).to_vec(),
        own_namespace: owners == Owners::Same || host.mounts.iter().any(|mount| mount.unbindable),
    })
}

/// A plain user's view of the host is made of parts, each with an upper of its own; what they are in has none.
fn not_kept(spec: &Spec, host: &Host) -> Option<String> {
    (host.uid != 0 && matches!(spec.root.upper, Upper::Directory(_))).then(|| {
        "what is written in / itself is not kept, only what is below /etc, /usr and so on: a plain user's view of the host is made of parts".into()
    })
}

/// Before 6.6 a tmpfs has no user.* attributes and so cannot hold an opaque directory: what is hidden is absent then, not empty.
fn hide_by_absence(operations: &mut [Operation]) {
    for operation in operations {
        if let Operation::Overlay(overlay) = operation {
            let empty = overlay.init.iter_mut().filter(|entry| entry.what == InitKind::Empty);
            empty.for_each(|entry| entry.what = InitKind::Absent);
        }
    }
}

/// For the same reason it cannot take a plain user's writes either: removing a directory and making it again would give EIO.
fn no_memory_upper(host: &Host) -> anyhow::Error {
    let (major, minor) = host.kernel;
    fault(format!(
        "--upper tmpfs:SIZE: on Linux {major}.{minor} a plain user's writes need a place on a disk (on 6.6 they do not)"
    ))
    .hint("leave it out for a directory in /var/tmp that is removed at the end; or --upper DIR; or run as root")
    .into()
}

/// Whether `mount` can be idmapped: the file systems that can, with the first kernel where each can (FS_ALLOW_IDMAP in the
/// kernel's sources). Overlays on idmapped layers exist since 5.19.
pub(crate) fn can_idmap(mount: &Mount, kernel: (u32, u32)) -> bool {
    const SINCE: &[(&str, (u32, u32))] = &[
        ("ext4", (5, 19)),
        ("ext3", (5, 19)),
        ("ext2", (5, 19)),
        ("xfs", (5, 19)),
        ("btrfs", (5, 19)),
        ("f2fs", (5, 19)),
        ("vfat", (5, 19)),
        ("ntfs3", (5, 19)),
        ("erofs", (5, 19)),
        ("squashfs", (6, 2)),
        ("tmpfs", (6, 3)),
        ("bcachefs", (6, 10)),
    ];
    SINCE.iter().any(|(name, since)| *name == mount.fstype && kernel >= *since)
}

/// The first layer that cannot be idmapped, with its file system: the reason for falling back to identity.
pub(crate) fn idmap_obstacle(spec: &Spec, host: &Host) -> Option<String> {
    let (major, minor) = host.kernel;
    if host.kernel < (5, 19) {
        return Some(format!("Linux {major}.{minor} cannot map the owners of an overlay's layers (5.19 can)"));
    }
    let (layer, mount) = match &spec.root.source {
        RootSource::HostView => View::obstacle(spec, host).map(|mount| (mount.point.as_path(), mount)),
        RootSource::Layers(layers) => layers.iter().find_map(|layer| {
            let mount = host.mount_of(layer)?;
            (!can_idmap(mount, host.kernel)).then_some((layer.as_path(), mount))
        }),
    }?;
    let (layer, fstype) = (layer.display(), &mount.fstype);
    Some(format!("the owners of files on {layer} ({fstype}) cannot be mapped on Linux {major}.{minor}"))
}

/// Whether the writes of an overlay can be kept at `path`.
fn check_upper(host: &Host, path: &Path, owners: Owners) -> Result<()> {
    if host.mount_of(path).is_some_and(|mount| mount.fstype == "overlay") {
        let line =
            format!("--upper {}: it is on an overlay itself, which cannot keep the writes of another", path.display());
        return Err(fault(line).hint("a directory on a disk, or --upper tmpfs").into());
    }
    if owners == Owners::Mapped { require_idmap(host, path, "--upper") } else { Ok(()) }
}

fn require_idmap(host: &Host, path: &Path, what: &str) -> Result<()> {
    match host.mount_of(path) {
        Some(mount) if !can_idmap(mount, host.kernel) => Err(fault(format!(
            "{what} {}: the owners of files on {} cannot be mapped into the sandbox's own range of IDs",
            path.display(),
            mount.fstype
        ))
        .hint("--userns identity shares IDs with the host")
        .into()),
        _ => Ok(()),
    }
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf.
/// What the init layer has of every sandbox's own: never part of a diff, a commit or an apply.
pub(crate) const INIT_FILES: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

fn init_files(spec: &Spec, host: &Host) -> Vec<InitEntry> {
    let name = &spec.hostname;
    let own = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{name}\n");
    let hosts = match spec.root.source {
        RootSource::HostView => format!("{}127.0.1.1\t{name}\n", with_newline(&host.view.hosts)),
        RootSource::Layers(_) => own,
    };
    let file = |path: &str, content: String| InitEntry { path: path.into(), what: InitKind::File(content) };
    let hosts = hosts + &names::hosts(&spec.network, host);
    let resolv_conf = names::resolv_conf(&spec.network, host);
    let [hostname_file, hosts_file, resolv_file] = INIT_FILES;
    vec![file(hostname_file, format!("{name}\n")), file(hosts_file, hosts), file(resolv_file, resolv_conf)]
}

fn with_newline(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// /proc and /sys: directories for the child's own mounts, or the host's where its namespace is shared: the kernel refuses a
/// new sysfs without a network namespace of one's own and a new proc without a PID namespace.
fn kernel_directories(share_sys: bool, share_proc: bool) -> Vec<Operation> {
    [("/proc", share_proc), ("/sys", share_sys)]
        .into_iter()
        .map(|(path, shared)| {
            if !shared {
                return Operation::Directory(path.into());
            }
            Operation::Bind(BindPlan {
                source: path.into(),
                at: path.into(),
                read_only: path == "/sys",
                recursive: true,
                device: false,
                idmap: false,
                optional: false,
            })
        })
        .collect()
}

/// /dev. Where owners are mapped nobody inside has MKNOD on the host, and the devices are nodes in it: a bind of each takes five times as
/// long. Not under SELinux, by whose rules a device is what the label of its node says: the host's have the right one.
fn devices(host: &Host, owners: Owners) -> Vec<Operation> {
    let nodes = owners == Owners::Mapped && !host.mounts.iter().any(|mount| mount.fstype == "selinuxfs");
    let mut operations = vec![Operation::Tmpfs(Tmpfs { devices: nodes, ..Tmpfs::new("/dev", 0o755, None) })];
    operations.extend(DEVICES.iter().map(|name| {
        let path = Path::new("/dev").join(name);
        if nodes { Operation::Node(path) } else { Operation::Bind(BindPlan::device(path)) }
    }));
    operations.extend(
        DEVICE_LINKS
            .iter()
            .map(|(name, target)| Operation::Link { at: Path::new("/dev").join(name), target: target.into() }),
    );
    operations.extend(["/dev/pts", "/dev/mqueue"].map(|path| Operation::Directory(path.into())));
    operations.push(Operation::Tmpfs(Tmpfs::new("/dev/shm", 0o1777, None)));
    operations
}

/// The binds and tmpfs of the request, what is nearer to the root first, in the order of the request otherwise.
fn asked(spec: &Spec, host: &Host, owners: Owners) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for Bind { source, at, read_only } in &spec.root.binds {
        let mapped = owners == Owners::Mapped;
        if mapped {
            require_idmap(host, source, "--bind")?;
        }
        operations.push(Operation::Bind(BindPlan {
            source: source.clone(),
            at: at.clone(),
            read_only: *read_only,
            recursive: true,
            device: false,
            idmap: mapped,
            optional: false,
        }));
    }
    operations.extend(spec.root.devices.iter().map(|device| {
        Operation::Bind(BindPlan {
            source: device.source.clone(),
            at: device.at.clone(),
            read_only: true,
            recursive: false,
            device: true,
            idmap: owners == Owners::Mapped,
            optional: false,
        })
    }));
    operations.extend(spec.root.tmpfs.iter().map(|(at, size)| Operation::Tmpfs(Tmpfs::new(at, 0o1777, *size))));
    operations.sort_by_key(|operation| operation.at().components().count());
    Ok(operations)
}

impl Operation {
    /// Where it is inside.
    pub(crate) fn at(&self) -> &Path {
        match self {
            Operation::Overlay(overlay) => &overlay.at,
            Operation::Bind(bind) => &bind.at,
            Operation::Tmpfs(tmpfs) => &tmpfs.at,
            Operation::Sysfs => Path::new("/sys"),
            Operation::Node(at)
            | Operation::Directory(at)
            | Operation::File { at, .. }
            | Operation::Link { at, .. }
            | Operation::Copy { at, .. } => at,
        }
    }
}
