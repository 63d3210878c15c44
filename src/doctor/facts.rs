//! [`Facts`]: what doctor read of this machine and what its trials showed. Reading decides nothing.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::error::Result;
use crate::host::{Host, is_kernel};
use crate::layer::{Layer, Namespace};
use crate::part::account;
use crate::part::label;
use crate::part::rootfs::{self, Operation};
use crate::part::users::{self, UserPlan};
use crate::spec::Spec;
use crate::sync::Failure;
use crate::systemd::{CgroupMode, Socket};

use super::distribution::Distribution;
use super::trial::{self, Trial};

/// What was read and tried.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Effective user ID of the caller.
    pub(crate) uid: u32,
    /// The user whose own service manager is looked at: the caller, or who called sudo.
    pub(crate) person: Person,
    /// The kernel's version, major and minor.
    pub(crate) kernel: (u32, u32),
    /// How programs are installed here.
    pub(crate) distribution: Distribution,
    /// systemd is PID 1, sd_booted(3).
    pub(crate) booted: bool,
    /// systemd's version by way of the system bus, or why there is no answer.
    pub(crate) system_bus: Answer,
    /// The same by way of systemd's private socket; root only.
    pub(crate) private_socket: Option<Answer>,
    /// The same of the person's own manager; asked only by themselves.
    pub(crate) user_manager: Option<Answer>,
    /// The cgroups.
    pub(crate) cgroups: Cgroups,
    /// The kernel's switches.
    pub(crate) switches: Switches,
    /// Names in /proc/self/ns.
    pub(crate) namespaces: Vec<String>,
    /// What trials in namespaces showed.
    pub(crate) trials: Trials,
    /// What of /proc and /sys something else is mounted over.
    pub(crate) covered: Vec<PathBuf>,
    /// The calls and devices.
    pub(crate) calls: Calls,
    /// The kernel's security modules.
    pub(crate) modules: Modules,
}

/// An answer of a service manager: its version, or why there was none.
pub(crate) type Answer = std::result::Result<String, String>;

/// A user of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Person {
    /// User ID; 0 when root asks without sudo.
    pub(crate) uid: u32,
    /// Login name, or the number.
    pub(crate) name: String,
    /// Has lines in /etc/subuid and /etc/subgid.
    pub(crate) subordinate_ids: bool,
    /// newuidmap(1) and newgidmap(1) are in the PATH.
    pub(crate) map_tools: bool,
    /// The user manager's socket directory exists, so it runs.
    pub(crate) manager_runs: bool,
}

/// How limits can be had.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    /// Layout of the hierarchies.
    pub(crate) mode: Option<CgroupMode>,
    /// Controllers that the system's manager has, by their v2 names.
    pub(crate) controllers: Vec<String>,
    /// Controllers that the person's manager was given; `None`: it has no cgroup.
    pub(crate) user_controllers: Option<Vec<String>>,
    /// The hierarchy is mounted with `favordynmods`.
    pub(crate) favordynmods: bool,
}

/// Settings below /proc/sys; `None` where the kernel has no such switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    /// kernel.unprivileged_userns_clone (Debian's kernels): 0 forbids plain users to make user namespaces.
    pub(crate) unprivileged_userns_clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu's kernels): 1 takes their power away.
    pub(crate) apparmor_restrict_unprivileged_userns: Option<u64>,
    /// user.max_user_namespaces: how many each user may have.
    pub(crate) max_user_namespaces: Option<u64>,
}

/// What trials showed.
#[derive(Debug, Clone)]
pub(crate) struct Trials {
    /// A user namespace with power.
    pub(crate) user_namespace: Trial,
    /// A new proc.
    pub(crate) proc: Trial,
    /// A new sysfs.
    pub(crate) sysfs: Trial,
    /// A time namespace with an offset.
    pub(crate) time: Trial,
    /// The root that `run` makes by default: how many overlays it has, or what failed.
    pub(crate) root: std::result::Result<usize, Failure>,
    /// How the IDs of that root are mapped.
    pub(crate) owners: Owners,
}

/// How the IDs of a default sandbox relate to the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owners {
    /// A range of their own, layers idmapped.
    Range,
    /// Root's fallback, with the reason.
    Identity(String),
    /// A plain user's map: this many lines.
    Maps(usize),
}

/// System calls and devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// seccomp(2) knows SECCOMP_RET_USER_NOTIF.
    pub(crate) seccomp_notify: bool,
    /// openat2(2) works.
    pub(crate) openat2: bool,
    /// Why /dev/fuse cannot be opened.
    pub(crate) fuse: Option<String>,
    /// pasta is in the PATH.
    pub(crate) pasta: Option<PathBuf>,
}

/// Which security modules can give the command a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    /// AppArmor decides here.
    pub(crate) apparmor: bool,
    /// SELinux has a policy: whether it enforces it.
    pub(crate) selinux: Option<bool>,
}

impl Facts {
    /// Reads everything and makes the trials; about 0.1 s, and some seconds where a bus daemon is stuck.
    ///
    /// # Errors
    /// When /proc cannot be read, or the working directory is gone.
    pub(crate) fn read() -> Result<Facts> {
        let mut host = Host::read()?;
        host.read_view()?;
        let person = person(&host);
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let root = host.uid == 0;
        Ok(Facts {
            uid: host.uid,
            kernel: host.kernel,
            distribution: Distribution::parse(&release),
            booted: host.booted_by_systemd,
            system_bus: Socket::SystemBus.version(),
            private_socket: root.then(|| Socket::Private.version()),
            user_manager: (!root).then(|| own_manager(host.uid).version()),
            cgroups: cgroups(&host, person.uid),
            switches: Switches {
                unprivileged_userns_clone: switch("kernel/unprivileged_userns_clone"),
                apparmor_restrict_unprivileged_userns: switch("kernel/apparmor_restrict_unprivileged_userns"),
                max_user_namespaces: switch("user/max_user_namespaces"),
            },
            namespaces: names_in("/proc/self/ns"),
            trials: trials(&host)?,
            covered: covered(&host),
            calls: calls(),
            modules: Modules { apparmor: label::apparmor_is_on(), selinux: label::selinux_enforces() },
            person,
        })
    }
}

/// Who asks, or who asked for root by sudo(8).
fn person(host: &Host) -> Person {
    let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    let uid = sudo.filter(|_| host.uid == 0).unwrap_or(host.uid);
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = account::by_uid(&passwd, uid).map_or_else(|| uid.to_string(), |entry| entry.name);
    let has_lines = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let number = uid.to_string();
        text.lines().filter_map(|line| line.split(':').next()).any(|owner| owner == name || owner == number)
    };
    Person {
        uid,
        subordinate_ids: has_lines("/etc/subuid") && has_lines("/etc/subgid"),
        map_tools: in_path("newuidmap").is_some() && in_path("newgidmap").is_some(),
        manager_runs: Path::new(&format!("/run/user/{uid}/systemd/private")).exists(),
        name,
    }
}

fn own_manager(uid: u32) -> Socket {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into());
    let session = std::env::var_os("DBUS_SESSION_BUS_ADDRESS");
    Socket::User { session, runtime }
}

fn cgroups(host: &Host, person: u32) -> Cgroups {
    let own = format!("/sys/fs/cgroup/user.slice/user-{person}.slice/user@{person}.service/cgroup.controllers");
    let controllers = match host.cgroup {
        Some(CgroupMode::Unified) => words("/sys/fs/cgroup/cgroup.controllers"),
        Some(CgroupMode::Hybrid | CgroupMode::Legacy) => v1_controllers(host),
        None => None,
    };
    let mount = host.mount_of(Path::new("/sys/fs/cgroup"));
    Cgroups {
        mode: host.cgroup,
        controllers: controllers.unwrap_or_default(),
        user_controllers: words(&own),
        favordynmods: mount.is_some_and(|mount| mount.super_options.split(',').any(|option| option == "favordynmods")),
    }
}

/// The mounted v1 hierarchies' controllers; `blkio` is called by its v2 name.
fn v1_controllers(host: &Host) -> Option<Vec<String>> {
    let mounted = host.mounts.iter().filter(|mount| mount.fstype == "cgroup");
    let options = mounted.flat_map(|mount| mount.super_options.split(','));
    let known = options.filter(|o| ["cpu", "cpuset", "blkio", "memory", "pids"].contains(o));
    Some(known.map(|o| if o == "blkio" { "io" } else { o }.to_owned()).collect())
}

fn words(path: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.split_whitespace().map(str::to_owned).collect())
}

fn switch(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    text.trim().parse().ok()
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What lies over a part of /proc or /sys. The kernel's own file systems there sit on directories that are always empty, which
/// hides nothing.
fn covered(host: &Host) -> Vec<PathBuf> {
    let below = |point: &Path| ["/proc", "/sys"].iter().any(|top| point.starts_with(top));
    let covers = host.mounts.iter().filter(|mount| {
        let own = is_kernel(&mount.fstype) && mount.root == Path::new("/");
        let cgroups = mount.point.starts_with("/sys/fs/cgroup");
        let top = ["/proc", "/sys"].iter().any(|t| mount.point == Path::new(t));
        below(&mount.point) && !top && !own && !cgroups && mount.fstype != "autofs"
    });
    covers.map(|mount| mount.point.clone()).collect()
}

fn trials(host: &Host) -> Result<Trials> {
    let layer = Layer { command: vec!["true".into()], ..Layer::default() };
    let spec = Spec::from_layer(layer)?;
    let (users, _) = users::plan(&spec, host)?;
    Ok(Trials {
        user_namespace: trial::user_namespace(&users),
        proc: trial::kernel_file_system(&users, "proc"),
        sysfs: trial::kernel_file_system(&users, "sysfs"),
        time: trial::time_namespace(&users),
        root: root(&spec, host, &users),
        owners: match &users {
            UserPlan::Maps { uid, .. } => Owners::Maps(uid.len()),
            UserPlan::Range { .. } => Owners::Range,
            UserPlan::Identity | UserPlan::Host => {
                Owners::Identity(rootfs::idmap_obstacle(&spec, host).unwrap_or_default())
            }
        },
    })
}

fn root(spec: &Spec, host: &Host, users: &UserPlan) -> std::result::Result<usize, Failure> {
    let (net, pid) = (spec.shares(Namespace::Net), spec.shares(Namespace::Pid));
    let plan = rootfs::plan(spec, host, users.owners(), net, pid, &mut Vec::new())
        .map_err(|error| Failure::from_error(&error))?;
    trial::root(&plan, users)?;
    let overlays = plan.operations.iter().filter(|operation| matches!(operation, Operation::Overlay(_)));
    Ok(overlays.count())
}

fn calls() -> Calls {
    let actions = words("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let openat2 = rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::empty()).is_ok();
    Calls {
        seccomp_notify: actions.iter().any(|action| action == "user_notif"),
        openat2,
        fuse: crate::procview::mount::obstacle(),
        pasta: in_path("pasta"),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join(program));
    let mut files = places.filter(|place| place.is_file());
    files.next()
}
