//! Judging: [`Facts`] in, [`Check`]s out, in the order in which they are shown. Nothing here looks at the machine.

use crate::part::rootfs;
use crate::sync::Failure;
use crate::systemd::CgroupMode;

use super::distribution::Package;
use super::facts::{Facts, Modules, Owners};
use super::{Check, State};

use State::{Found, Limited, Missing};

/// The oldest kernel and systemd that the tests run on.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
const OLDEST_SYSTEMD: u32 = 247;

/// The first kernel whose overlays take idmapped layers.
const IDMAPPED_LAYERS: (u32, u32) = (5, 19);

/// The first kernel with the mount option `favordynmods`.
const FAVORDYNMODS: (u32, u32) = (6, 0);

/// Controllers that limits need, by their v2 names.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

/// The namespaces of a default sandbox, as /proc/self/ns calls them.
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// What a unit is told so that its user's manager hands every controller on.
const DELEGATE: &str = r"printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | install -D -m 644 /dev/stdin /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload";

/// Judges everything.
pub(crate) fn checks(facts: &Facts) -> Vec<Check> {
    let lists = [
        vec![kernel(facts)],
        managers(facts),
        cgroups(facts),
        namespaces(facts),
        kernel_file_systems(facts),
        vec![root(facts), owners(facts), subordinate_ids(facts)],
        calls(facts),
        security_modules(facts.modules),
    ];
    let checks = lists.into_iter().flatten();
    checks.map(|check| with_sudo(check, facts.uid)).collect()
}

/// Commands are written for root; a plain user needs sudo(8) before each part.
fn with_sudo(check: Check, uid: u32) -> Check {
    let command = check.command.map(|command| match uid {
        0 => command,
        _ => command
            .split(" && ")
            .map(|part| match part.split_once(" | ") {
                Some((from, to)) => format!("{from} | sudo {to}"),
                None => format!("sudo {part}"),
            })
            .collect::<Vec<_>>()
            .join(" && "),
    });
    Check { command, ..check }
}

fn kernel(facts: &Facts) -> Check {
    let (major, minor) = facts.kernel;
    let found = format!("Linux {major}.{minor}");
    if facts.kernel >= OLDEST_KERNEL {
        return Check::new("kernel", Found, found);
    }
    let (major, minor) = OLDEST_KERNEL;
    Check::new("kernel", Limited, found).advice(format!("the oldest kernel that is tested is {major}.{minor}"))
}

fn managers(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![systemd(facts), system_bus(facts)];
    checks.extend(private_socket(facts));
    checks.push(user_manager(facts));
    checks
}

fn systemd(facts: &Facts) -> Check {
    if !facts.booted {
        return Check::new("systemd", Missing, "it is not PID 1 of this machine")
            .needed(true)
            .advice("boot with systemd; without it there are only sandboxes without unit and limits: sandbox run --manager none");
    }
    let answers = [Some(&facts.system_bus), facts.private_socket.as_ref(), facts.user_manager.as_ref()];
    let version = answers.into_iter().flatten().find_map(|answer| answer.as_ref().ok());
    let Some(version) = version else {
        return Check::new("systemd", Missing, "it is PID 1, but answers on no socket").needed(true);
    };
    let check = Check::new("systemd", Found, format!("systemd {version}"));
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    let number: Option<u32> = digits.and_then(|digits| digits.parse().ok());
    if number.is_some_and(|number| number < OLDEST_SYSTEMD) {
        let state = Limited;
        return Check { state, ..check }.advice(format!("the oldest systemd that is tested is {OLDEST_SYSTEMD}"));
    }
    check.needed(true)
}

fn system_bus(facts: &Facts) -> Check {
    let name = "system bus";
    let why = match &facts.system_bus {
        Ok(_) => return Check::new(name, Found, "answers").needed(facts.uid == 0),
        Err(why) => why.clone(),
    };
    let private = matches!(facts.private_socket, Some(Ok(_)));
    let state = if private { Limited } else { Missing };
    let check = Check::new(name, state, why).needed(facts.uid == 0 && facts.booted);
    let check = if private { check.advice("root uses systemd's private socket instead") } else { check };
    match facts.distribution.install(Package::Dbus) {
        Some(install) if facts.booted => check.command(format!("{install} && systemctl start dbus.socket")),
        _ => check,
    }
}

/// Root's second way to systemd.
fn private_socket(facts: &Facts) -> Option<Check> {
    let name = "private socket";
    Some(match facts.private_socket.as_ref()? {
        Ok(_) => Check::new(name, Found, "answers"),
        Err(why) => Check::new(name, Missing, why.clone()),
    })
}

fn user_manager(facts: &Facts) -> Check {
    let name = "user manager";
    let person = &facts.person;
    let linger = format!("loginctl enable-linger {}", person.name);
    match &facts.user_manager {
        Some(Ok(_)) => Check::new(name, Found, format!("answers {}", person.name)).needed(true),
        Some(Err(why)) => {
            let check = Check::new(name, Missing, why.clone()).needed(true);
            if facts.booted { check.command(linger) } else { check }
        }
        None if person.uid == 0 => Check::new(name, Found, "root has no need of one, and uses the system's"),
        None if person.manager_runs => Check::new(name, Found, format!("runs for {}", person.name)),
        None => {
            let check = Check::new(name, Missing, format!("none runs for {}", person.name));
            if facts.booted { check.command(linger) } else { check }
        }
    }
}

fn cgroups(facts: &Facts) -> Vec<Check> {
    let cgroups = &facts.cgroups;
    let unified = cgroups.mode == Some(CgroupMode::Unified);
    let mut checks = vec![cgroup_version(cgroups.mode), controllers(facts)];
    if unified && (facts.uid != 0 || facts.person.uid != 0) {
        checks.push(user_controllers(facts));
    }
    if unified && facts.kernel >= FAVORDYNMODS {
        checks.push(favordynmods(cgroups.favordynmods));
    }
    checks
}

fn cgroup_version(mode: Option<CgroupMode>) -> Check {
    let name = "cgroup version";
    let older = |found: &str| {
        Check::new(name, Limited, found)
            .needed(true)
            .advice("in force here: CPUShares, CPUQuota, MemoryMax, TasksMax, BlockIO…, DevicePolicy; every other limit, and any with --user, ends a start with 125. Boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line for all of them")
    };
    match mode {
        Some(CgroupMode::Unified) => Check::new(name, Found, "v2").needed(true),
        Some(CgroupMode::Hybrid) => older("v1, with a v2 tree without controllers (hybrid)"),
        Some(CgroupMode::Legacy) => older("v1"),
        None => Check::new(name, Missing, "nothing is mounted on /sys/fs/cgroup")
            .needed(true)
            .command("mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    }
}

fn lacking(have: &[String]) -> Vec<&'static str> {
    let lacks = |name: &&&str| !have.iter().any(|have| have == **name);
    CONTROLLERS.iter().filter(lacks).copied().collect()
}

fn controllers(facts: &Facts) -> Check {
    let name = "controllers";
    let have = &facts.cgroups.controllers;
    let lacking = lacking(have);
    let found = if have.is_empty() { "none".to_owned() } else { have.join(" ") };
    if lacking.is_empty() {
        return Check::new(name, Found, found);
    }
    let state = if have.is_empty() { Missing } else { Limited };
    let what = lacking.join(", ");
    Check::new(name, state, found).advice(format!(
        "limits that need {what} cannot be had; look for cgroup_disable= on the kernel's command line (cgroup_enable=memory on a Raspberry Pi)"
    ))
}

fn user_controllers(facts: &Facts) -> Check {
    let name = "user controllers";
    let person = &facts.person;
    let Some(have) = &facts.cgroups.user_controllers else {
        return Check::new(name, Missing, format!("no user@{}.service", person.uid))
            .advice("what limits --user can have shows when the user manager runs");
    };
    let lacking = lacking(have);
    let found = format!("{} for {}", have.join(" "), person.name);
    if lacking.is_empty() {
        return Check::new(name, Found, found);
    }
    let what = lacking.join(", ");
    Check::new(name, Limited, found)
        .advice(format!(
            "no limits that need {what} under --user, until they are delegated and the user has logged in anew:"
        ))
        .command(DELEGATE)
}

/// Without it each start after an idle moment waits about 8 ms for an RCU grace period in the kernel.
fn favordynmods(on: bool) -> Check {
    let name = "favordynmods";
    if on {
        return Check::new(name, Found, "on");
    }
    Check::new(name, Missing, "off")
        .advice("with it a start after an idle moment is some 8 ms faster, and each fork and exit of any process a little slower")
        .command("mount -o remount,favordynmods /sys/fs/cgroup")
}

fn namespaces(facts: &Facts) -> Vec<Check> {
    let has = |name: &str| facts.namespaces.iter().any(|have| have == name);
    let lacking: Vec<&str> = NAMESPACES.iter().copied().filter(|n| !has(n)).collect();
    let kinds = if lacking.is_empty() {
        Check::new("namespaces", Found, NAMESPACES.join(" ")).needed(true)
    } else {
        let found = format!("this kernel is built without: {}", lacking.join(" "));
        Check::new("namespaces", Missing, found).needed(true)
    };
    let mut checks = vec![kinds, user_namespaces(facts)];
    if facts.uid == 0 {
        checks.push(plain_users(facts));
    }
    checks.push(time_namespaces(facts));
    checks
}

/// The switch that keeps plain users from user namespaces, as the command that turns it.
fn closed_switch(facts: &Facts) -> Option<&'static str> {
    let switches = &facts.switches;
    if switches.max_user_namespaces == Some(0) {
        return Some("sysctl -w user.max_user_namespaces=65536");
    }
    if switches.unprivileged_userns_clone == Some(0) {
        return Some("sysctl -w kernel.unprivileged_userns_clone=1");
    }
    if switches.apparmor_restrict_unprivileged_userns == Some(1) {
        return Some("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
    }
    None
}

fn failed(name: &'static str, failure: &Failure) -> Check {
    let check = Check::new(name, Missing, failure.message.clone()).needed(true);
    if failure.hint.is_empty() { check } else { check.advice(failure.hint.clone()) }
}

fn user_namespaces(facts: &Facts) -> Check {
    let name = "user namespaces";
    let failure = match &facts.trials.user_namespace {
        Ok(()) => return Check::new(name, Found, "one was made").needed(true),
        Err(failure) => failure,
    };
    let check = failed(name, failure);
    match closed_switch(facts) {
        Some(command) => check.command(command),
        None => check,
    }
}

fn plain_users(facts: &Facts) -> Check {
    let name = "user namespaces of plain users";
    match closed_switch(facts) {
        None => Check::new(name, Found, "allowed"),
        Some(command) => Check::new(name, Missing, "a kernel setting forbids them").command(command),
    }
}

fn time_namespaces(facts: &Facts) -> Check {
    let name = "time namespaces";
    match &facts.trials.time {
        Ok(()) => Check::new(name, Found, "one was made").needed(true),
        Err(_) if facts.trials.user_namespace.is_err() => untried(name),
        Err(failure) => failed(name, failure).advice("sandbox run --share time does without (Linux 5.6 has them)"),
    }
}

/// For trials that need a user namespace where none can be had: that row says why.
fn untried(name: &'static str) -> Check {
    Check::new(name, Missing, "not tried: no user namespaces")
}

fn kernel_file_systems(facts: &Facts) -> Vec<Check> {
    let trials = &facts.trials;
    let rows =
        [("new /proc", &trials.proc, "/proc", "--share pid"), ("new /sys", &trials.sysfs, "/sys", "--network host")];
    rows.map(|(name, trial, top, instead)| match trial {
        Ok(()) => Check::new(name, Found, "can be mounted").needed(true),
        Err(_) if trials.user_namespace.is_err() => untried(name),
        Err(failure) => {
            let covers = facts.covered.iter().filter(|path| path.starts_with(top));
            let covers: Vec<String> = covers.map(|path| path.display().to_string()).collect();
            let why = if covers.is_empty() {
                failure.message.clone()
            } else {
                format!("{}: mounted over it are {}", failure.message, covers.join(" "))
            };
            Check::new(name, Missing, why).needed(true).advice(format!(
                "the kernel refuses a new one to whoever sees only a part of it, as in a container; {instead} shows the one of this machine"
            ))
        }
    })
    .into()
}

fn root(facts: &Facts) -> Check {
    let name = "overlay features";
    match &facts.trials.root {
        Ok(overlays) => {
            let plural = if *overlays == 1 { "overlay" } else { "overlays" };
            let marks = if facts.uid == 0 { "trusted" } else { "user" };
            let layers = if facts.kernel < rootfs::LAYER_BY_LAYER { "in one string" } else { "one by one" };
            let found =
                format!("one was made, of {overlays} {plural}: marks in {marks}.overlay.*, layers given {layers}");
            Check::new(name, Found, found).needed(true)
        }
        Err(_) if facts.trials.user_namespace.is_err() => untried(name),
        Err(failure) => failed(name, failure),
    }
}

fn owners(facts: &Facts) -> Check {
    let name = if matches!(facts.trials.owners, Owners::Maps(_)) { "IDs inside" } else { "idmapped mounts" };
    match &facts.trials.owners {
        Owners::Range => match &facts.trials.root {
            Ok(_) => Check::new(name, Found, "layers are idmapped: a range of 65536 IDs for each sandbox"),
            Err(_) if facts.trials.user_namespace.is_err() => untried(name),
            Err(_) => {
                Check::new(name, Missing, "not tried: no root").advice("--userns identity shares IDs with the host")
            }
        },
        Owners::Identity(reason) => {
            let elsewhere = if facts.kernel < IDMAPPED_LAYERS {
                ""
            } else {
                "; --rootfs DIR on ext4, xfs or btrfs can have a range"
            };
            Check::new(name, Limited, reason.clone()).advice(format!(
                "root inside keeps the host's IDs, in a user namespace without power over the host{elsewhere}"
            ))
        }
        Owners::Maps(1) => Check::new(name, Limited, "your own ID only")
            .advice("inside there is root and nobody else; see subordinate IDs"),
        Owners::Maps(_) => Check::new(name, Found, "your own ID and your subordinate IDs"),
    }
}

fn subordinate_ids(facts: &Facts) -> Check {
    let name = "subordinate IDs";
    let person = &facts.person;
    if person.uid == 0 {
        return Check::new(name, Found, "root has no need of them");
    }
    if !person.map_tools {
        let check = Check::new(name, Missing, "no newuidmap and newgidmap in the PATH");
        return match facts.distribution.install(Package::Uidmap) {
            Some(install) => check.command(install),
            None => check.advice("install the package with newuidmap(1), of the shadow project"),
        };
    }
    if !person.subordinate_ids {
        let found = format!("none for {} in /etc/subuid and /etc/subgid", person.name);
        return Check::new(name, Missing, found)
            .command(format!("usermod --add-subuids 231072-296607 --add-subgids 231072-296607 {}", person.name));
    }
    Check::new(name, Found, format!("{} has some, and newuidmap", person.name))
}

fn calls(facts: &Facts) -> Vec<Check> {
    let calls = &facts.calls;
    let notify = if calls.seccomp_notify {
        Check::new("seccomp notification", Found, "known to the kernel")
    } else {
        Check::new("seccomp notification", Missing, "not known to the kernel (Linux 5.0 has it)")
    };
    let openat2 = if calls.openat2 {
        Check::new("openat2", Found, "works")
    } else {
        Check::new("openat2", Limited, "hidden by a system call filter; paths are walked one by one")
            .advice("leave RestrictSUIDSGID= out of the unit that runs this")
    };
    let fuse = match &calls.fuse {
        None => Check::new("FUSE", Found, "/dev/fuse can be opened"),
        Some(why) => {
            let check = Check::new("FUSE", Missing, format!("/dev/fuse: {why}"));
            if why == "not there" { check.command("modprobe fuse") } else { check }
        }
    };
    let pasta = match (&calls.pasta, facts.distribution.install(Package::Passt)) {
        (Some(path), _) => Check::new("pasta", Found, path.display().to_string()),
        (None, Some(install)) => Check::new("pasta", Missing, "not in the PATH").command(install),
        (None, None) => Check::new("pasta", Missing, "not in the PATH"),
    };
    let without = |check: Check, advice: &str| if check.state == Found { check } else { check.advice(advice) };
    vec![
        openat2,
        without(notify, "sysinfo(2) inside tells the machine's memory and uptime"),
        without(fuse, "/proc inside tells the machine's memory and CPUs"),
        without(pasta, "no --network pasta, and with it no published ports"),
    ]
}

/// A machine has one of the two, as its distribution has it; the other is no lack.
fn security_modules(modules: Modules) -> Vec<Check> {
    let apparmor = modules.apparmor.then(|| Check::new("AppArmor", Found, "in force: --apparmor can be had"));
    let selinux = modules.selinux.map(|enforces| match enforces {
        true => Check::new("SELinux", Found, "in force: --selinux-label can be had"),
        false => Check::new("SELinux", Limited, "permissive")
            .advice("--selinux-label is set, and what the policy denies is only written down")
            .command("setenforce 1"),
    });
    let none = || {
        Check::new("security modules", Missing, "neither AppArmor nor SELinux is in force")
            .advice("--apparmor and --selinux-label are refused; what a sandbox is by default needs neither")
    };
    let found: Vec<Check> = apparmor.into_iter().chain(selinux).collect();
    if found.is_empty() { vec![none()] } else { found }
}

#[cfg(test)]
mod tests;
