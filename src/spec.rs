//! [`Spec`]: the whole request, typed and checked. "X needs Y" lives here and nowhere else.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::error::{Result, fault};
use crate::layer::{Layer, Manager, Namespace, Network, OomPolicy, Userns};
use crate::part::caps::Capabilities;
use crate::systemd::{Asked, Assignment, OwnSetting};
use crate::value::{self, CpuSet, Rlimit};

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
    /// How IDs map.
    pub(crate) userns: Userns,
    /// Name of the sandbox.
    pub(crate) name: String,
    /// Hostname inside.
    pub(crate) hostname: String,
    /// Capabilities that the payload's bounding set keeps.
    pub(crate) capabilities: Capabilities,
    /// How the payload starts.
    pub(crate) process: ProcessSpec,
}

/// What is asked of the unit.
#[derive(Debug, Clone)]
pub(crate) struct UnitSpec {
    /// Unit name to the letter, with its `.scope`.
    pub(crate) name: Option<String>,
    /// Slice, with its `.slice`.
    pub(crate) slice: Option<String>,
    /// Text for humans.
    pub(crate) description: Option<String>,
    /// Properties and limits.
    pub(crate) assignments: Vec<Assignment>,
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
    /// Where writes go.
    pub(crate) upper: Upper,
    /// The root cannot be written.
    pub(crate) read_only: bool,
    /// Files and directories of the host.
    pub(crate) binds: Vec<Bind>,
    /// Empty directories: path inside, size in bytes.
    pub(crate) tmpfs: Vec<(PathBuf, Option<u64>)>,
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
        match layer.network {
            Some(Network::Host) => share.push(Namespace::Net),
            Some(Network::None) if share.contains(&Namespace::Net) => {
                return Err(fault("--network none and --share net ask for different things")
                    .hint("give only one of them")
                    .into());
            }
            _ => {}
        }
        let userns = userns(&layer, &share)?;
        if userns == Userns::Host {
            share.push(Namespace::User);
        }
        share.sort_unstable();
        share.dedup();
        let (assignments, own) = assignments(&layer)?;
        let process = process(&layer, own)?;
        let spec = Spec {
            hostname: hostname(&layer, &name)?,
            unit: unit(&layer, assignments)?,
            root: root(&layer)?,
            capabilities: Capabilities::parse(&layer.cap_add, &layer.cap_drop)?,
            command: layer.command,
            share,
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
            || !self.root.tmpfs.is_empty();
        if self.shares(Namespace::Mount) && root_asked {
            return Err(fault(
                "--share mount leaves no root of its own: no --rootfs, --layer, --bind, --tmpfs, --upper, --read-only",
            )
            .into());
        }
        if self.process.as_pid1 && self.shares(Namespace::Pid) {
            return Err(fault("--as-pid1 needs a PID namespace of its own: it goes without --share pid").into());
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
fn name_of(program: &OsStr) -> String {
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

fn hostname(layer: &Layer, name: &str) -> Result<String> {
    match &layer.hostname {
        Some(hostname) => checked_name("--hostname", hostname),
        None => Ok(name.to_owned()),
    }
}

fn unit(layer: &Layer, assignments: Vec<Assignment>) -> Result<UnitSpec> {
    Ok(UnitSpec {
        name: layer.unit.as_deref().map(|name| unit_name("--unit", name, ".scope")).transpose()?,
        slice: layer.slice.as_deref().map(|name| unit_name("--slice", name, ".slice")).transpose()?,
        description: layer.description.clone(),
        assignments,
        user: match (layer.user, layer.system) {
            (Some(user), _) => Some(user),
            (None, Some(system)) => Some(!system),
            (None, None) => None,
        },
        manager: layer.manager.unwrap_or(Manager::Auto),
    })
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

fn unit_name(flag: &str, name: &str, suffix: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
    let stem = name.strip_suffix(suffix).unwrap_or(name);
    if let Some(other) = UNIT_SUFFIXES.iter().find(|s| stem.ends_with(**s)) {
        return Err(fault(format!("{flag} {name}: this unit is a {}, not a {other}", &suffix[1..]))
            .hint(if *other == ".service" {
                "run in the foreground makes a scope; leave the suffix out"
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

/// Every property and limit flag as an assignment, and the settings that we carry out ourselves.
fn assignments(layer: &Layer) -> Result<(Vec<Assignment>, Vec<OwnSetting>)> {
    let (mut assignments, mut own) = (Vec::new(), Vec::new());
    for text in &layer.property {
        match Asked::parse(text)? {
            Asked::Unit(assignment) => assignments.push(assignment),
            Asked::Own(setting) => own.push(setting),
        }
    }
    let mut flag = |flag: &str, value: &str, property: String| -> Result<()> {
        let asked = format!("{flag} {value}");
        let assignment = Assignment::parse(&property).with_context(|| asked.clone())?;
        assignments.push(assignment.asked_as(asked));
        Ok(())
    };
    if let Some(memory) = &layer.memory {
        flag("--memory", memory, format!("MemoryMax={memory}"))?;
    }
    if let Some(shares) = &layer.cpu_shares {
        flag("--cpu-shares", shares, format!("CPUShares={shares}"))?;
    }
    if let Some(cpus) = &layer.cpuset_cpus {
        flag("--cpuset-cpus", cpus, format!("AllowedCPUs={cpus}"))?;
    }
    if let Some(pids) = &layer.pids_limit {
        // Docker's words for no limit are 0 and -1.
        let tasks = if matches!(pids.as_str(), "0" | "-1") { "infinity" } else { pids };
        flag("--pids-limit", pids, format!("TasksMax={tasks}"))?;
    }
    if let Some(oom) = layer.oom {
        let policy = match oom {
            OomPolicy::Continue => "continue",
            OomPolicy::Stop => "stop",
            OomPolicy::Kill => "kill",
        };
        flag("--oom", policy, format!("OOMPolicy={policy}"))?;
    }
    for (asked, property) in cpu_quota(layer)? {
        assignments.push(Assignment::parse(&property).with_context(|| asked.clone())?.asked_as(asked));
    }
    Ok((assignments, own))
}

/// `--cpus`, or `--cpu-quota` in each `--cpu-period`: the flags as typed, each with the property it stands for.
fn cpu_quota(layer: &Layer) -> Result<Vec<(String, String)>> {
    let (quota, asked) = match (&layer.cpus, &layer.cpu_quota, &layer.cpu_period) {
        (None, None, None) => return Ok(Vec::new()),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(fault("--cpus and --cpu-quota say the same thing in two ways")
                .hint("give only one of them")
                .into());
        }
        (None, None, Some(period)) => {
            return Err(fault(format!("--cpu-period {period} needs --cpu-quota")).into());
        }
        (Some(cpus), None, None) => {
            let per_second = value::cpus(cpus).with_context(|| format!("--cpus {cpus}"))?;
            (per_second, format!("--cpus {cpus}"))
        }
        (None, Some(quota), period) => {
            let asked = format!("--cpu-quota {quota}");
            if matches!(quota.as_str(), "-1" | "0") {
                return Ok(vec![(asked, "CPUQuota=".into())]);
            }
            let micros = value::number_in(quota, 1000, 1_000_000_000_000).with_context(|| asked.clone())?;
            let period = period.as_deref().unwrap_or("100000");
            let period = value::number_in(period, 1000, 1_000_000).with_context(|| format!("--cpu-period {period}"))?;
            (micros.saturating_mul(1_000_000) / period, asked)
        }
    };
    // CPUQuota= takes hundredths of a percent; per second that is 100 µs.
    let permyriad = (quota / 100).max(1);
    let mut list = vec![(asked, format!("CPUQuota={}.{:02}%", permyriad / 100, permyriad % 100))];
    if let Some(period) = &layer.cpu_period {
        list.push((format!("--cpu-period {period}"), format!("CPUQuotaPeriodSec={period}us")));
    }
    Ok(list)
}

fn process(layer: &Layer, own: Vec<OwnSetting>) -> Result<ProcessSpec> {
    let mut process = ProcessSpec {
        user: layer.uid.clone(),
        group: layer.gid.clone(),
        environment: layer.setenv.iter().map(|text| variable(text)).collect::<Result<_>>()?,
        directory: layer.working_directory.as_deref().map(|d| absolute("--working-directory", d)).transpose()?,
        as_pid1: layer.as_pid1.unwrap_or(false) && !layer.init.unwrap_or(false),
        terminal: terminal(layer),
        rlimits: Vec::new(),
        nice: None,
        oom_score_adjust: None,
        umask: None,
        affinity: None,
        quiet: layer.quiet.unwrap_or(false),
    };
    for text in &layer.ulimit {
        process.rlimits.push(Rlimit::parse(text).with_context(|| format!("--ulimit {text}"))?);
    }
    for setting in own {
        apply(&mut process, layer, setting)?;
    }
    check_rlimits(&process.rlimits)?;
    Ok(process)
}

/// A limit given twice has to be the same; a soft limit is at most the hard one.
fn check_rlimits(rlimits: &[Rlimit]) -> Result<()> {
    for (index, limit) in rlimits.iter().enumerate() {
        let twice = rlimits.iter().skip(index + 1).any(|other| other.resource == limit.resource && other != limit);
        if twice {
            return Err(fault(format!("limit {} is asked twice and differently", limit.name())).into());
        }
    }
    Ok(())
}

fn apply(process: &mut ProcessSpec, layer: &Layer, setting: OwnSetting) -> Result<()> {
    let twice = |property: &str, flag: &str| -> anyhow::Error {
        fault(format!("-p {property}= and {flag} ask for different things")).hint("give only one of them").into()
    };
    match setting {
        OwnSetting::Slice(name) => {
            if layer.slice.as_ref().is_none_or(|slice| *slice != name) {
                return Err(fault(format!("-p Slice={name}: the slice is given by --slice"))
                    .hint(format!("--slice={name}"))
                    .into());
            }
        }
        OwnSetting::Limit(limit) => process.rlimits.push(limit),
        OwnSetting::Nice(nice) => process.nice = Some(nice),
        OwnSetting::OomScoreAdjust(score) => process.oom_score_adjust = Some(score),
        OwnSetting::Umask(mask) => process.umask = Some(mask),
        OwnSetting::CpuAffinity(cpus) => process.affinity = Some(cpus),
        OwnSetting::WorkingDirectory(path) => {
            let path = absolute("-p WorkingDirectory=", Path::new(&path))?;
            if process.directory.replace(path.clone()).is_some_and(|old| old != path) {
                return Err(twice("WorkingDirectory", "--working-directory"));
            }
        }
        OwnSetting::User(name) => {
            if process.user.replace(name.clone()).is_some_and(|old| old != name) {
                return Err(twice("User", "--uid"));
            }
        }
        OwnSetting::Group(name) => {
            if process.group.replace(name.clone()).is_some_and(|old| old != name) {
                return Err(twice("Group", "--gid"));
            }
        }
        OwnSetting::Environment(list) => {
            process.environment.extend(list.into_iter().map(|(name, value)| (name.into(), Some(value.into()))));
        }
    }
    Ok(())
}

fn terminal(layer: &Layer) -> Option<bool> {
    match (layer.pty, layer.pipe) {
        (Some(pty), _) => Some(pty),
        (None, Some(pipe)) => Some(!pipe),
        (None, None) => None,
    }
}

fn variable(text: &OsStr) -> Result<(OsString, Option<OsString>)> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => (bytes, None),
    };
    let valid =
        name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') && !name.first().is_none_or(u8::is_ascii_digit);
    if !valid {
        return Err(fault(format!(
            "--setenv {}: accepted is NAME=VALUE or NAME, letters, digits and _",
            text.to_string_lossy()
        ))
        .into());
    }
    Ok((OsStr::from_bytes(name).to_owned(), value))
}

fn root(layer: &Layer) -> Result<RootSpec> {
    let source = match (&layer.rootfs, layer.layer.as_slice()) {
        (None, []) => RootSource::HostView,
        (Some(rootfs), _) => RootSource::Layers(vec![directory("--rootfs", rootfs)?]),
        (None, layers) => {
            RootSource::Layers(layers.iter().map(|path| directory("--layer", path)).collect::<Result<_>>()?)
        }
    };
    Ok(RootSpec {
        source,
        upper: layer.upper.as_deref().map_or(Ok(Upper::Memory(None)), upper)?,
        read_only: layer.read_only.unwrap_or(false),
        binds: layer.bind.iter().map(|text| bind(text)).collect::<Result<_>>()?,
        tmpfs: layer.tmpfs.iter().map(|text| tmpfs(text)).collect::<Result<_>>()?,
        host_secrets: layer.host_secrets.unwrap_or(false),
    })
}

/// An existing directory of the host, without links in its path.
fn directory(flag: &str, path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).with_context(|| format!("{flag} {}", path.display()))?;
    if real.is_dir() { Ok(real) } else { Err(fault(format!("{flag} {}: Not a directory", path.display())).into()) }
}

fn absolute(flag: &str, path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(fault(format!("{flag} {}: a path inside begins with /", path.display())).into())
}

fn upper(text: &OsStr) -> Result<Upper> {
    let shown = text.to_string_lossy();
    if text == "tmpfs" {
        return Ok(Upper::Memory(None));
    }
    if let Some(size) = shown.strip_prefix("tmpfs:") {
        return Ok(Upper::Memory(Some(tmpfs_size("--upper", &shown, size)?)));
    }
    // The directory itself may be missing, what it is in may not.
    let path = Path::new(text);
    let name = path
        .file_name()
        .ok_or_else(|| fault(format!("--upper {shown}: accepted is tmpfs, tmpfs:SIZE or a directory")))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Upper::Directory(directory("--upper", parent)?.join(name)))
}

fn tmpfs_size(flag: &str, text: &str, size: &str) -> Result<u64> {
    let size = value::size(size).with_context(|| format!("{flag} {text}"))?;
    if size == 0 {
        // 0 means no limit to tmpfs(5), and memory without one takes the machine down.
        return Err(fault(format!("{flag} {text}: a size is at least 1 byte")).into());
    }
    Ok(size)
}

fn tmpfs(text: &OsStr) -> Result<(PathBuf, Option<u64>)> {
    let shown = text.to_string_lossy();
    let (path, size) = match shown.split_once(':') {
        Some((path, size)) => {
            // Docker writes size=64m among mount options.
            let size = size.strip_prefix("size=").unwrap_or(size);
            (PathBuf::from(path), Some(tmpfs_size("--tmpfs", &shown, size)?))
        }
        None => (PathBuf::from(text), None),
    };
    Ok((below_root("--tmpfs", &path)?, size))
}

/// An absolute path inside that is not / itself.
fn below_root(flag: &str, path: &Path) -> Result<PathBuf> {
    let path = absolute(flag, path)?;
    if path.components().count() < 2 {
        return Err(fault(format!("{flag} {}: the root itself is not mounted over", path.display())).into());
    }
    Ok(path)
}

fn bind(text: &OsStr) -> Result<Bind> {
    let shown = text.to_string_lossy().into_owned();
    let mut parts = text.as_bytes().split(|b| *b == b':').map(|part| Path::new(OsStr::from_bytes(part)));
    let source = parts.next().filter(|p| !p.as_os_str().is_empty());
    let source = source.ok_or_else(|| fault(format!("--bind {shown}: accepted is SRC[:DST[:ro|rw]]")))?;
    let source_full = std::path::absolute(source).with_context(|| format!("--bind {shown}"))?;
    let at = parts.next().filter(|p| !p.as_os_str().is_empty()).map_or(source_full, Path::to_path_buf);
    let read_only = match parts.next().map(|p| p.as_os_str().as_bytes()) {
        None | Some(b"rw") => false,
        Some(b"ro") => true,
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(fault(format!("--bind {shown}: `{other}` is no option: accepted are ro and rw")).into());
        }
    };
    if parts.next().is_some() {
        return Err(fault(format!("--bind {shown}: accepted is SRC[:DST[:ro|rw]]")).into());
    }
    let source = std::fs::canonicalize(source).with_context(|| format!("--bind {shown}: {}", source.display()))?;
    Ok(Bind { source, at: below_root("--bind", &at)?, read_only })
}
