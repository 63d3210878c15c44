//! [`Plan`]: every decision taken, as plain data. Nothing right of it decides anything; it can be printed (`--dry-run`) and
//! tested without root.

use std::ffi::OsString;

use serde::Serialize;

use crate::error::{Result, fault};
use crate::given::Provenance;
use crate::host::Host;
use crate::layer::{Manager, Namespace, Userns};
use crate::part::caps::Capabilities;
use crate::part::journal::{self, LogPlan};
use crate::part::label::Label;
use crate::part::landlock::Restrictions;
use crate::part::mounts::KernelMounts;
use crate::part::namespaces::Namespaces;
use crate::part::network::{self, NetworkPlan};
use crate::part::process::{self, ProcessPlan};
use crate::part::rootfs::{self, RootPlan};
use crate::part::service::{self, OwnService, ServicePlan};
use crate::part::users::{self, UserPlan};
use crate::procview::{self, ViewPlan};
use crate::seccomp::{Asked, Circumstances, Filter};
use crate::spec::limits::{DEVICE, is_no_limit};
use crate::spec::{RootSource, Spec};
use crate::systemd::{self, Assignment, CgroupMode, Setting};

/// One sandbox, decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Name of the sandbox.
    pub(crate) name: String,
    /// The unit; `None`: no unit and no limits.
    pub(crate) unit: Option<UnitPlan>,
    /// Namespaces of its own.
    pub(crate) namespaces: Namespaces,
    /// The network.
    pub(crate) network: NetworkPlan,
    /// How IDs map.
    pub(crate) users: UserPlan,
    /// Hostname inside.
    pub(crate) hostname: String,
    /// The root; `None`: the host's own mounts.
    pub(crate) root: Option<RootPlan>,
    /// The kernel's file systems in the root.
    pub(crate) kernel_mounts: KernelMounts,
    /// The sandbox's own numbers in /proc; `None`: the machine's.
    pub(crate) procview: Option<ViewPlan>,
    /// Capabilities that remain.
    pub(crate) capabilities: Capabilities,
    /// What the payload may use of files and network.
    pub(crate) landlock: Restrictions,
    /// What a security module of the kernel calls the payload.
    pub(crate) label: Option<Label>,
    /// The filter of system calls.
    #[serde(serialize_with = "Filter::summary")]
    pub(crate) seccomp: Filter,
    /// That of the stub: a profile may forbid what it needs.
    #[serde(skip)]
    pub(crate) stub_seccomp: Filter,
    /// The payload.
    pub(crate) process: ProcessPlan,
    /// What passes between the service manager and the payload.
    pub(crate) service: ServicePlan,
    /// What goes to the journal.
    pub(crate) log: Option<LogPlan>,
    /// Every setting that was given, and by whom; for whoever looks, nothing is decided by it.
    pub(crate) given: Provenance,
    /// One line each, printed on stderr unless `--quiet`: where a default had to give way.
    pub(crate) warnings: Vec<String>,
    /// One line each, shown by `--dry-run`: what was asked and goes out under another name.
    pub(crate) notes: Vec<String>,
}

/// How the unit comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnitKind {
    /// A scope of its own, around a child of the launcher.
    Scope,
    /// A service of its own, whose main process will be another launcher.
    Service,
    /// The service whose main process the launcher is.
    Own {
        /// It was made with every property of the request.
        complete: bool,
    },
}

/// The unit around the payload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct UnitPlan {
    /// What SIGTERM becomes for the payload where systemd says it to the launcher: the image's stop signal.
    pub(crate) stop_signal: Option<i32>,
    /// How it comes to be.
    pub(crate) kind: UnitKind,
    /// The caller's own manager, not the system's.
    pub(crate) user: bool,
    /// Name, with its suffix.
    pub(crate) name: String,
    /// Slice, with `.slice`.
    pub(crate) slice: String,
    /// Text for humans.
    pub(crate) description: String,
    /// Properties, as they are sent.
    pub(crate) settings: Vec<Setting>,
    /// Layout of the cgroup hierarchies.
    pub(crate) cgroup: CgroupMode,
    /// The payload's processes may be moved by their owner: only so can others join a user's unit.
    pub(crate) delegate: bool,
    /// No device but the harmless ones and those that were asked for (DevicePolicy=closed), where the request says nothing. A user's
    /// service manager cannot have it in force.
    pub(crate) closed_devices: bool,
    /// Devices that processes of ours in the unit open, and are allowed beside those: the payload has no node of them.
    pub(crate) own_devices: Vec<&'static str>,
    /// Offer the process as a descriptor first, which systemd takes since 255; refused, it costs a round trip.
    pub(crate) pidfd: bool,
    /// Time between the stop signal and the kill in µs, where the request says nothing; systemd's own is 90 s.
    pub(crate) timeout_stop_usec: u64,
}

/// TimeoutStopUSec= where nothing was asked.
const TIMEOUT_STOP_USEC: u64 = 10_000_000;

impl Plan {
    /// Decides everything.
    ///
    /// # Errors
    /// When the request cannot be had on this host: one line with the reason, and a hint.
    pub(crate) fn new(spec: &Spec, host: &Host) -> Result<Plan> {
        let mut warnings = Vec::new();
        let (unit, notes) = match manager(spec, host, &mut warnings)? {
            Manager::None => (None, Vec::new()),
            Manager::Auto | Manager::Systemd => {
                let (unit, notes) = unit(spec, host, &mut warnings)?;
                (Some(unit), notes)
            }
        };
        let namespaces = namespaces(spec, host, &mut warnings);
        let (users, fallback) = users::plan(spec, host)?;
        warnings.extend(fallback);
        check_sys_admin(spec, &users, &mut warnings)?;
        warnings.extend(unit.as_ref().and_then(|unit| devices_by_a_reload(spec, host, &users, unit)));
        let network = network::plan(spec, host, &users, &mut warnings)?;
        let shares = |namespace| spec.shares(namespace);
        let service = service::plan(spec, host, namespaces.has(Namespace::Mount), &mut warnings);
        let mut root = None;
        if namespaces.has(Namespace::Mount) {
            let (net, pid) = (!namespaces.has(Namespace::Net), shares(Namespace::Pid));
            let root = root.insert(rootfs::plan(spec, host, users.owners(), net, pid, &mut warnings)?);
            root.operations.extend(service.operations());
        }
        let own_cgroup = namespaces.has(Namespace::Cgroup) && host.cgroup == Some(CgroupMode::Unified);
        check_nesting(spec, &users)?;
        let kernel_mounts =
            KernelMounts::plan(spec, |namespace| !namespaces.has(namespace), own_cgroup && root.is_some(), &users);
        let quota = unit.as_ref().is_some_and(UnitPlan::may_have_quota);
        let procview = procview::plan(spec, host, root.is_some(), quota, &mut warnings)?;
        let unit = unit.map(|unit| UnitPlan { own_devices: unit.needs(&network, procview.is_some()), ..unit });
        let process = process::plan(spec, host, &users, &service, root.as_ref());
        let circumstances = Circumstances::new(spec, host.kernel);
        let seccomp = Filter::plan(&spec.seccomp, circumstances, &mut warnings)?;
        let names = unit.as_ref().map(|unit| (unit.name.as_str(), unit.user));
        let log = journal::plan(spec, host, names, process.terminal)?;
        Ok(Plan {
            name: spec.name.clone(),
            log,
            unit,
            namespaces,
            network,
            hostname: spec.hostname.clone(),
            root,
            kernel_mounts,
            procview,
            capabilities: spec.capabilities.clone(),
            stub_seccomp: stub_filter(spec, &seccomp, circumstances)?,
            landlock: spec.landlock.clone(),
            label: spec.label.clone(),
            seccomp,
            process,
            service,
            users,
            given: Provenance::default(),
            warnings: if spec.process.quiet { Vec::new() } else { warnings },
            notes,
        })
    }
}

/// A profile of the user's may forbid what the stub needs.
fn stub_filter(spec: &Spec, payloads: &Filter, circumstances: Circumstances<'_>) -> Result<Filter> {
    match &spec.seccomp {
        Asked::Profile(..) => Filter::plan(&Asked::Default, circumstances, &mut Vec::new()),
        Asked::Default | Asked::Unconfined => Ok(payloads.clone()),
    }
}

impl UnitPlan {
    /// Devices for what runs in the unit beside the payload: pasta, and in a service the launcher, which serves the files of /proc.
    fn needs(&self, network: &NetworkPlan, procview: bool) -> Vec<&'static str> {
        let fuse = procview && self.kind != UnitKind::Scope;
        let tun = matches!(network, NetworkPlan::Pasta(..));
        [(fuse, "/dev/fuse"), (tun, "/dev/net/tun")]
            .into_iter()
            .filter_map(|(needs, path)| needs.then_some(path))
            .collect()
    }

    /// Whether its CPU time is limited, as far as that can be known: what the unit file of a service says is not.
    fn may_have_quota(&self) -> bool {
        matches!(self.kind, UnitKind::Own { .. })
            || self.settings.iter().any(|setting| setting.property.starts_with("CPUQuota"))
    }
}

/// Flags of mounts are locked only in a user namespace below the one that owns the mounts: with SYS_ADMIN root inside can take them
/// away, nodev too, and then a device node that a layer carries is the device.
fn check_sys_admin(spec: &Spec, users: &UserPlan, warnings: &mut Vec<String>) -> Result<()> {
    if !spec.capabilities.keeps("SYS_ADMIN") {
        return Ok(());
    }
    let layers = spec.root.source != RootSource::HostView;
    if layers && matches!(users, UserPlan::Identity | UserPlan::Host) {
        return Err(fault(
            "--cap-add SYS_ADMIN with a root of layers needs a range of user IDs of its own: root inside could open a device \
             node that a layer carries",
        )
        .hint("leave SYS_ADMIN out (--cap-drop SYS_ADMIN beside --cap-add ALL)")
        .into());
    }
    let opens = "--cap-add SYS_ADMIN: root inside can undo read-only binds, masked paths and nodev";
    let devices = layers && matches!(users, UserPlan::Range { .. });
    warnings.push(format!("{opens}{}", if devices { ", and open device nodes that a layer carries" } else { "" }));
    Ok(())
}

/// A /proc that somebody inside mounts has no part that is read-only: whoever has the user ID of the machine's root there could write
/// kernel.core_pattern, and so run a program outside.
fn check_nesting(spec: &Spec, users: &UserPlan) -> Result<()> {
    if !spec.nesting || !matches!(users, UserPlan::Identity) {
        return Ok(());
    }
    let line = "--nesting needs a range of user IDs of its own: root inside, being the machine's root, could write \
                kernel.core_pattern and the like in a /proc that it mounts";
    Err(match spec.userns {
        Userns::Identity => fault(line).hint("leave --userns identity out, or run it as a plain user"),
        Userns::Auto | Userns::Host => fault(line)
            .hint("--dry-run without --nesting says why there is none here; a plain user's sandbox needs none"),
    }
    .into())
}

/// The time namespace needs a fork after it is made, which a payload that is PID 1 itself does not have: before Linux 6.3 it would
/// stay outside while its children are inside.
fn namespaces(spec: &Spec, host: &Host, warnings: &mut Vec<String>) -> Namespaces {
    let mut share = spec.share.clone();
    if spec.process.as_pid1 && host.kernel < (6, 3) && !share.contains(&Namespace::Time) {
        let (major, minor) = host.kernel;
        warnings.push(format!("--as-pid1 shares the boot-time clock with the host on Linux {major}.{minor}"));
        share.push(Namespace::Time);
    }
    if spec.network.is_joined() {
        share.push(Namespace::Net);
    }
    Namespaces::plan(&share)
}

/// Who makes the unit, decided.
fn manager(spec: &Spec, host: &Host, warnings: &mut Vec<String>) -> Result<Manager> {
    let asked = asked_of_unit(spec);
    let no_systemd = "systemd is not running this machine (it is not PID 1)";
    match (spec.unit.manager, host.booted_by_systemd, asked) {
        (Manager::Systemd | Manager::Auto, true, _) => Ok(Manager::Systemd),
        (Manager::Systemd, false, _) => Err(fault(format!("--manager systemd: {no_systemd}"))
            .hint("boot with systemd, or --manager none for a sandbox without unit and limits; `sandbox doctor` tells more")
            .into()),
        (Manager::Auto, false, Some(asked)) => Err(fault(format!("{asked} cannot be had: {no_systemd}"))
            .hint("boot with systemd, or leave units and limits out; `sandbox doctor` tells more")
            .into()),
        (Manager::Auto, false, None) => {
            warnings.push(format!("no unit and no limits: {no_systemd}"));
            Ok(Manager::None)
        }
        (Manager::None, _, Some(asked)) => Err(fault(format!("--manager none has no unit, so {asked} cannot be had"))
            .hint("leave --manager out, or leave units and limits out")
            .into()),
        (Manager::None, _, None) => Ok(Manager::None),
    }
}

/// The first thing in the request that only a unit can give.
fn asked_of_unit(spec: &Spec) -> Option<String> {
    let unit = &spec.unit;
    let name = unit.name.as_ref().map(|name| format!("--unit {name}"));
    let slice = || unit.slice.as_ref().map(|slice| format!("--slice {slice}"));
    let is_none = |asked: &str| asked.split_once(' ').is_some_and(|(flag, value)| is_no_limit(flag, value));
    let is_limit = |asked: &&str| !asked.starts_with(DEVICE) && !is_none(asked);
    let limits = unit.assignments.iter().map(Assignment::asked).filter(is_limit);
    let limit = || limits.into_iter().next().map(str::to_owned);
    let user = || unit.user.map(|user| if user { "--user".to_owned() } else { "--system".to_owned() });
    let detach = || unit.detach.then(|| "--detach".to_owned());
    name.or_else(slice).or_else(limit).or_else(user).or_else(detach)
}

fn unit(spec: &Spec, host: &Host, warnings: &mut Vec<String>) -> Result<(UnitPlan, Vec<String>)> {
    let cgroup = host.cgroup.ok_or_else(|| {
        fault("/sys/fs/cgroup: no cgroup hierarchy is mounted").hint("mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    })?;
    let asked = &spec.unit.assignments;
    let is_asked = |stop: &&Assignment| asked.iter().any(|other| other.property() == stop.property());
    let stop_signal = spec.unit.stop_signal.as_ref().filter(|stop| !is_asked(stop));
    let is_service = host.service.is_some() || spec.unit.detach;
    // systemd stops a service by a signal to its main process, the launcher: that says it to the payload in the image's words.
    let (in_unit, relayed) = if is_service { (None, stop_signal) } else { (stop_signal, None) };
    let user = match &host.service {
        Some(service) => service.user,
        None => spec.unit.user.unwrap_or(host.uid != 0),
    };
    let in_force = |assignment: &&Assignment| !user || !assignment.asked().starts_with(DEVICE);
    let assignments: Vec<_> = asked.iter().filter(in_force).chain(in_unit).cloned().collect();
    let translated = systemd::translate(&assignments, cgroup)?;
    let (kind, name, slice) = match &host.service {
        Some(service) => {
            warnings.extend(not_ours_to_name(spec, service));
            (UnitKind::Own { complete: service.detached }, service.unit.clone(), service.slice.clone())
        }
        None => {
            let (kind, suffix) =
                if spec.unit.detach { (UnitKind::Service, "service") } else { (UnitKind::Scope, "scope") };
            let name = spec.unit.name.clone().unwrap_or_else(|| format!("sandbox-{}-{}.{suffix}", spec.name, host.id));
            (kind, name, spec.unit.slice.clone().unwrap_or_else(|| "sandbox.slice".into()))
        }
    };
    if kind == UnitKind::Scope
        && let Some(setting) = translated.settings.iter().find(|setting| setting.is_for_services())
    {
        return Err(fault(format!("{}: a scope has no property {}=", setting.asked, setting.property))
            .hint("--detach makes a service, which has it; so has a unit file: `sandbox unit install`")
            .into());
    }
    warnings.extend(host.systemd.and_then(|version| lifted_by_a_reload(&translated.settings, version)));
    let stop_signal = relayed.map(|stop| systemd::translate(std::slice::from_ref(stop), cgroup)).transpose()?;
    let unit = UnitPlan {
        kind,
        stop_signal: stop_signal.and_then(|stop| stop.settings.first().and_then(Setting::number)),
        user,
        name,
        slice,
        description: spec.unit.description.clone().unwrap_or_else(|| description(&spec.command)),
        settings: translated.settings,
        cgroup,
        delegate: user,
        closed_devices: !user,
        own_devices: Vec::new(),
        pidfd: host.systemd.is_none_or(|version| version >= 255),
        timeout_stop_usec: TIMEOUT_STOP_USEC,
    };
    Ok((unit, translated.notes))
}

/// A systemd that reads its units anew, as each installation of a package makes it do, takes its programs off the cgroups, and puts them
/// back when it is done: seen on 247 (connections got through for as long as the daemon-reload took), not on 252.
fn lifted_by_a_reload(settings: &[Setting], version: u16) -> Option<String> {
    let is_filter = |name: &str| name.starts_with("IP") && name != "IPAccounting";
    let filter = settings.iter().find(|setting| is_filter(&setting.name))?;
    lifted(&filter.asked, version)
}

fn lifted(what: &str, version: u16) -> Option<String> {
    let line = || format!("{what}: systemd {version} lifts it for as long as a daemon-reload takes (252 does not)");
    (version < 252).then(line)
}

/// The same of devices on cgroup v2, where their policy is such a program (on 247 they could be opened meanwhile). It matters to whoever
/// asked for it, and where a payload may mount: there is no other way to a node that can be opened.
fn devices_by_a_reload(spec: &Spec, host: &Host, users: &UserPlan, unit: &UnitPlan) -> Option<String> {
    let asked = unit.settings.iter().find(|setting| setting.name == "DevicePolicy");
    let may_mount = *users == UserPlan::Host && spec.capabilities.keeps("SYS_ADMIN");
    if unit.user || unit.cgroup != CgroupMode::Unified || (asked.is_none() && !may_mount) {
        return None;
    }
    lifted(asked.map_or("DevicePolicy=closed", |setting| &setting.asked), host.systemd?)
}

/// In a service the unit and its slice are chosen already.
fn not_ours_to_name(spec: &Spec, service: &OwnService) -> Vec<String> {
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
    let name = spec.unit.name.as_ref().filter(|name| stem(name) != stem(&service.unit));
    let slice = spec.unit.slice.as_ref().filter(|slice| **slice != service.slice);
    let line = |flag: &str, asked: &String| {
        format!("{flag} {asked} is left out: this is {} in {} already", service.unit, service.slice)
    };
    name.map(|name| line("--unit", name)).into_iter().chain(slice.map(|slice| line("--slice", slice))).collect()
}

/// The command as a shell would read it, on one line.
fn description(command: &[OsString]) -> String {
    let words: Vec<String> = command.iter().map(|word| quoted(&word.to_string_lossy())).collect();
    let mut text = words.join(" ");
    if text.chars().count() > 200 {
        text = text.chars().take(199).chain(['…']).collect();
    }
    text
}

fn quoted(word: &str) -> String {
    let word: String = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod golden;
mod show;
