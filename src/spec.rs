//! [`Spec`]: the whole request, typed and checked. "X needs Y" lives here and nowhere else.

pub(crate) mod limits;
pub(crate) mod network;
mod process;
pub(crate) mod root;

pub(crate) use process::variable;

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use crate::error::{Result, fault};
use crate::layer::{Layer, Log, Manager, Namespace, Notify, Procview, Userns};
use crate::part::caps::Capabilities;
use crate::part::label::Label;
use crate::part::landlock;
use crate::seccomp;
use crate::systemd::Assignment;
use crate::value::{CpuSet, Rlimit};
use network::{Network, NetworkSpec};

/// A request for one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// The command and its arguments.
    pub(crate) command: Vec<OsString>,
    /// The unit around it.
    pub(crate) unit: UnitSpec,
    /// The root and what is in it.
    pub(crate) root: RootSpec,
    /// Namespaces that are the host's.
    pub(crate) share: Vec<Namespace>,
    /// The network.
    pub(crate) network: NetworkSpec,
    /// How IDs map.
    pub(crate) userns: Userns,
    /// Name of the sandbox.
    pub(crate) name: String,
    /// Hostname inside.
    pub(crate) hostname: String,
    /// Whether /proc tells the sandbox's own numbers; `None`: where that can be had.
    pub(crate) procview: Option<Procview>,
    /// What runs inside may make namespaces and mounts of its own.
    pub(crate) nesting: bool,
    /// Capabilities that the payload's bounding set keeps.
    pub(crate) capabilities: Capabilities,
    /// What the payload may use of files and network.
    pub(crate) landlock: landlock::Restrictions,
    /// What a security module of the kernel calls the payload.
    pub(crate) label: Option<Label>,
    /// The filter of system calls.
    pub(crate) seccomp: seccomp::Asked,
    /// How the payload starts.
    pub(crate) process: ProcessSpec,
}

/// What is asked of the unit.
#[derive(Debug, Clone)]
pub(crate) struct UnitSpec {
    /// Unit name to the letter, with its `.scope`, or `.service` when detached.
    pub(crate) name: Option<String>,
    /// In the background, as a service.
    pub(crate) detach: bool,
    /// Where output goes; `None`: as the caller's streams are.
    pub(crate) log: Option<Log>,
    /// When a service counts as started.
    pub(crate) notify: Notify,
    /// Slice, with its `.slice`.
    pub(crate) slice: Option<String>,
    /// Text for humans.
    pub(crate) description: Option<String>,
    /// Properties and limits.
    pub(crate) assignments: Vec<Assignment>,
    /// What an image says about the signal that stops it; an assignment of that property counts more.
    pub(crate) stop_signal: Option<Assignment>,
    /// The caller's own service manager (true) or the system's (false); `None`: by who calls.
    pub(crate) user: Option<bool>,
    /// Who makes the unit.
    pub(crate) manager: Manager,
}

/// What the root is made of.
#[derive(Debug, Clone)]
pub(crate) struct RootSpec {
    /// The lowest layers.
    pub(crate) source: RootSource,
    /// The layers have their marks in user.overlay.* attributes.
    pub(crate) user_marks: bool,
    /// Directories that are made where they are missing.
    pub(crate) directories: Vec<PathBuf>,
    /// Where writes go.
    pub(crate) upper: Upper,
    /// The root cannot be written.
    pub(crate) read_only: bool,
    /// Files and directories of the host.
    pub(crate) binds: Vec<Bind>,
    /// Empty directories: path inside, size in bytes.
    pub(crate) tmpfs: Vec<(PathBuf, Option<u64>)>,
    /// In /proc each user sees the processes of that user only.
    pub(crate) hide_pids: bool,
    /// Device nodes of the host.
    pub(crate) devices: Vec<Device>,
    /// The host view hides nothing.
    pub(crate) host_secrets: bool,
}

/// The lowest layers of a root.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RootSource {
    /// The host's own files.
    HostView,
    /// These directories, lowest first.
    Layers(Vec<PathBuf>),
}

/// Where writes to the root go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Upper {
    /// Memory, gone at the end; size in bytes, `None`: half of the machine's.
    Memory(Option<u64>),
    /// A directory that keeps them.
    Directory(PathBuf),
}

/// A file or directory of the host, seen inside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bind {
    /// Path on the host, without links.
    pub(crate) source: PathBuf,
    /// Path inside.
    pub(crate) at: PathBuf,
    /// Cannot be written.
    pub(crate) read_only: bool,
}

/// A device node of the host, in the sandbox's /dev.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Device {
    /// Path on the host, without links.
    pub(crate) source: PathBuf,
    /// Path inside.
    pub(crate) at: PathBuf,
    /// Of `rwm`: what the unit allows.
    pub(crate) access: String,
}

/// How the payload starts.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSpec {
    /// User, by name or number.
    pub(crate) user: Option<String>,
    /// Group, by name or number.
    pub(crate) group: Option<String>,
    /// Variables: name, and value or the caller's.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    /// Directory it starts in.
    pub(crate) directory: Option<PathBuf>,
    /// It is PID 1 itself.
    pub(crate) as_pid1: bool,
    /// A terminal of its own: asked (true), refused (false), or as stdin and stdout are (`None`).
    pub(crate) terminal: Option<bool>,
    /// Resource limits.
    pub(crate) rlimits: Vec<Rlimit>,
    /// Nice value.
    pub(crate) nice: Option<i32>,
    /// OOM score adjustment.
    pub(crate) oom_score_adjust: Option<i32>,
    /// File mode creation mask.
    pub(crate) umask: Option<u32>,
    /// CPUs by sched_setaffinity(2).
    pub(crate) affinity: Option<CpuSet>,
    /// No warnings on stderr.
    pub(crate) quiet: bool,
}

impl Spec {
    /// Checks a layer of settings and completes it.
    ///
    /// # Errors
    /// One line that names the flag, the value and what is accepted.
    pub(crate) fn from_layer(mut layer: Layer) -> Result<Spec> {
        let Some(program) = layer.command.first() else {
            return Err(fault("no command was given").hint("sandbox run [flags] -- CMD…").into());
        };
        let name = match &layer.name {
            Some(name) => checked_name("--name", name)?,
            None => name_of(program),
        };
        let mut share = std::mem::take(&mut layer.share);
        let network = network::network(&layer, &share)?;
        if network.kind == Network::Host {
            share.push(Namespace::Net);
        }
        let userns = userns(&layer, &share)?;
        if userns == Userns::Host {
            share.push(Namespace::User);
        }
        share.sort_unstable();
        share.dedup();
        let (assignments, own) = limits::assignments(&layer)?;
        let process = process::process(&layer, own)?;
        let spec = Spec {
            hostname: hostname(&layer, &name, &share)?,
            unit: unit(&layer, assignments)?,
            root: root::root(&layer)?,
            procview: layer.procview,
            nesting: layer.nesting.unwrap_or(false),
            capabilities: Capabilities::parse(&layer.cap_add, &layer.cap_drop, &layer.cap_ambient)?,
            landlock: landlock::Restrictions::parse(&layer.landlock, layer.landlock_best_effort.unwrap_or(false))?,
            label: Label::of(layer.apparmor.take(), layer.selinux_label.take())?,
            seccomp: layer.seccomp.as_deref().map_or(Ok(seccomp::Asked::Default), seccomp::Asked::parse)?,
            command: layer.command,
            share,
            network,
            userns,
            name,
            process,
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether a namespace is the host's.
    pub(crate) fn shares(&self, namespace: Namespace) -> bool {
        self.share.contains(&namespace)
    }

    /// What needs what.
    fn check(&self) -> Result<()> {
        let root_asked = self.root.source != RootSource::HostView
            || self.root.upper != Upper::Memory(None)
            || self.root.read_only
            || !self.root.binds.is_empty()
            || !self.root.tmpfs.is_empty()
            || !self.root.devices.is_empty()
            || self.root.hide_pids
            || self.root.host_secrets;
        let names_asked =
            !self.network.dns.is_empty() || !self.network.search.is_empty() || !self.network.hosts.is_empty();
        if self.shares(Namespace::Mount) && names_asked {
            return Err(fault("--share mount leaves the host's /etc: no --dns, --dns-search, --add-host").into());
        }
        if self.shares(Namespace::Mount) && root_asked {
            return Err(fault(
                "--share mount leaves no root of its own: no --rootfs, --layer, --bind, --tmpfs, --upper, --read-only, \
                 --host-secrets, --device, --hidepid",
            )
            .into());
        }
        if self.procview == Some(Procview::On) && self.shares(Namespace::Mount) {
            return Err(fault("--procview on needs mounts of its own: it goes without --share mount").into());
        }
        if self.unit.detach && self.process.terminal == Some(true) {
            return Err(fault("--detach leaves nobody to be at the terminal: it goes without --pty")
                .hint("`sandbox exec -t NAME sh` gives a terminal in a running sandbox")
                .into());
        }
        if self.unit.detach && self.unit.log == Some(Log::Caller) {
            return Err(fault("--detach leaves no caller to log to: it goes without --log caller").into());
        }
        if self.unit.detach && self.unit.manager == Manager::None {
            return Err(fault("--detach needs a unit: it goes without --manager none").into());
        }
        if self.process.as_pid1 && self.shares(Namespace::Pid) {
            return Err(fault("--as-pid1 needs a PID namespace of its own: it goes without --share pid").into());
        }
        if self.root.hide_pids && self.shares(Namespace::Pid) {
            return Err(fault("--hidepid needs a /proc of its own: it goes without --share pid").into());
        }
        if self.root.host_secrets && self.root.source != RootSource::HostView {
            return Err(
                fault("--host-secrets needs the view of the host as the root: it goes without another one").into()
            );
        }
        self.check_nesting()?;
        self.check_targets()
    }

    /// Who makes mounts inside needs a user namespace to be root of, and the kernel's file systems to be the sandbox's own.
    fn check_nesting(&self) -> Result<()> {
        if !self.nesting {
            return Ok(());
        }
        let rows = [
            (self.shares(Namespace::User), "a user namespace of its own: it goes without --userns host"),
            (self.shares(Namespace::Mount), "mounts of its own: it goes without --share mount"),
            (self.shares(Namespace::Pid), "a /proc of its own: it goes without --share pid"),
            (
                self.landlock.restricts_files(),
                "mounts, which rules for files forbid: it goes without --landlock ro:, rw:, exec:",
            ),
        ];
        match rows.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, why)) => Err(fault(format!("--nesting needs {why}")).into()),
            None => Ok(()),
        }
    }

    /// What is mounted where our own /proc, /sys or /dev come later would never be seen.
    fn check_targets(&self) -> Result<()> {
        let binds = self.root.binds.iter().map(|bind| ("--bind", &bind.at));
        let binds = binds.chain(self.root.devices.iter().map(|device| ("--device", &device.at)));
        for (flag, at) in binds.chain(self.root.tmpfs.iter().map(|(at, _)| ("--tmpfs", at))) {
            let (shown, path) = (at.display(), without_dots(at));
            let line = if path.starts_with("/proc") && !self.shares(Namespace::Pid) {
                format!("{flag} {shown}: /proc is the sandbox's own, a mount in it needs --share pid")
            } else if path.starts_with("/sys") && !self.shares(Namespace::Net) {
                format!("{flag} {shown}: /sys is the sandbox's own, a mount in it needs --network host")
            } else if path == Path::new("/dev") {
                format!("{flag} {shown}: /dev is the sandbox's own, a mount needs a place in it: {shown}/NAME")
            } else {
                continue;
            };
            return Err(fault(line).into());
        }
        Ok(())
    }
}

fn userns(layer: &Layer, share: &[Namespace]) -> Result<Userns> {
    match (layer.userns, share.contains(&Namespace::User)) {
        (Some(Userns::Auto | Userns::Identity), true) => {
            Err(fault("--share user and --userns ask for different things").hint("give only one of them").into())
        }
        (_, true) => Ok(Userns::Host),
        (asked, false) => Ok(asked.unwrap_or(Userns::Auto)),
    }
}

/// The name that a command gives its sandbox: its file name, with what no unit or host may be called left out.
pub(crate) fn name_of(program: &OsStr) -> String {
    let file = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let name: String = file.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    let name = name.trim_matches('-').to_ascii_lowercase();
    if name.is_empty() { "sandbox".into() } else { name }
}

/// A name that fits a unit name and a hostname, systemd.unit(5) and hostname(7).
fn checked_name(flag: &str, name: &str) -> Result<String> {
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.']);
    if fits {
        return Ok(name.to_owned());
    }
    Err(fault(format!(
        "{flag} {name:?}: a name is 1 to 63 letters, digits, -, . and _, and begins and ends with a letter or digit"
    ))
    .into())
}

fn hostname(layer: &Layer, name: &str, share: &[Namespace]) -> Result<String> {
    match &layer.hostname {
        Some(hostname) if share.contains(&Namespace::Uts) => {
            let line = format!("--hostname {hostname} needs a UTS namespace of its own: it goes without --share uts");
            Err(fault(line).into())
        }
        Some(hostname) => checked_name("--hostname", hostname),
        None => Ok(name.to_owned()),
    }
}

fn unit(layer: &Layer, assignments: Vec<Assignment>) -> Result<UnitSpec> {
    let detach = layer.detach.unwrap_or(false);
    let suffix = if detach { ".service" } else { ".scope" };
    Ok(UnitSpec {
        name: layer.unit.as_deref().map(|name| unit_name("--unit", name, suffix)).transpose()?,
        detach,
        log: layer.log,
        notify: layer.notify.unwrap_or(Notify::Exec),
        slice: layer.slice.as_deref().map(|name| unit_name("--slice", name, ".slice")).transpose()?,
        description: layer.description.clone(),
        assignments,
        stop_signal: layer.stop_signal.as_deref().map(stop_signal).transpose()?,
        user: match (layer.user, layer.system) {
            (Some(user), _) => Some(user),
            (None, Some(system)) => Some(!system),
            (None, None) => None,
        },
        manager: layer.manager.unwrap_or(Manager::Auto),
    })
}

fn stop_signal(signal: &str) -> Result<Assignment> {
    let asked = format!("the image's StopSignal {signal}");
    Ok(Assignment::parse(&format!("KillSignal={signal}")).with_context(|| asked.clone())?.asked_as(asked))
}

/// Every suffix of a unit, systemd.unit(5).
const UNIT_SUFFIXES: &[&str] = &[
    ".service",
    ".socket",
    ".device",
    ".mount",
    ".automount",
    ".swap",
    ".target",
    ".path",
    ".timer",
    ".slice",
    ".scope",
];

pub(crate) fn unit_name(flag: &str, name: &str, suffix: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    let stem = name.strip_suffix(suffix).unwrap_or(name);
    if let Some(other) = UNIT_SUFFIXES.iter().find(|s| stem.ends_with(**s)) {
        return Err(fault(format!("{flag} {name}: this unit is a {}, not a {other}", &suffix[1..]))
            .hint(if *other == ".service" {
                "run in the foreground makes a scope: leave the suffix out, or add --detach"
            } else {
                "leave the suffix out"
            })
            .into());
    }
    let bad_slice =
        suffix == ".slice" && (stem.starts_with('-') || stem.ends_with('-') || stem.contains("--")) && stem != "-";
    if stem.is_empty() || bad_slice || !stem.chars().all(allowed) || stem.len() + suffix.len() > 255 {
        return Err(fault(format!(
            "{flag} {name:?}: a unit name is up to 255 letters, digits and : - _ . \\ (a slice has no empty part between dashes)"
        ))
        .into());
    }
    Ok(format!("{stem}{suffix}"))
}

/// A path inside: it begins at the root.
fn absolute(flag: &str, path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(fault(format!("{flag} {}: a path inside begins with /", path.display())).into())
}

/// `path` with . and .. taken away, as they are where no link is on the way.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => out.push(component),
        }
    }
    out
}
