//! User and group IDs: which range a sandbox has, and the maps of its user namespace.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::process::{Pid, WaitOptions};
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::{Host, IdRange};
use crate::layer::Userns;
use crate::part::rootfs::{Owners, idmap_obstacle};
use crate::spec::Spec;
use crate::sys::{self, Side};

/// IDs in the range of one sandbox: 16 bits, as every distribution's own accounts need.
pub(crate) const RANGE: u32 = 65536;

/// The container range of systemd, <https://systemd.io/UIDS-GIDS/>: first ID of the first range and of the last one.
const FIRST: u32 = 524_288;
const LAST: u32 = 1_878_982_656;

/// Where systemd-nspawn locks the ranges it uses: one file a range, named by its first ID. Using the same locks keeps both apart.
const LOCKS: &str = "/run/systemd/nspawn-uid";

/// One line of a map, user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct MapLine {
    /// First ID inside.
    pub(crate) inside: u32,
    /// First ID outside.
    pub(crate) outside: u32,
    /// How many.
    pub(crate) count: u32,
}

/// How IDs relate, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum UserPlan {
    /// A range of [`RANGE`] IDs that is picked and locked at the start, not overlapping what is taken.
    Range {
        /// Ranges that somebody else owns.
        #[serde(skip)]
        taken: Vec<IdRange>,
    },
    /// Every ID is itself.
    Identity,
    /// No user namespace.
    Host,
    /// A plain user's map.
    Maps {
        /// Lines of uid_map.
        uid: Vec<MapLine>,
        /// Lines of gid_map.
        gid: Vec<MapLine>,
    },
}

impl UserPlan {
    /// Whether the IDs inside are nobody else's.
    pub(crate) fn own_range(&self) -> bool {
        matches!(self, UserPlan::Range { .. })
    }

    /// Whether layers have to be shown through the map.
    pub(crate) fn owners(&self) -> Owners {
        if matches!(self, UserPlan::Range { .. }) { Owners::Mapped } else { Owners::Same }
    }

    /// Whether group 5 exists inside.
    pub(crate) fn maps_tty_group(&self) -> bool {
        self.groups().iter().any(|range| range.contains(5))
    }

    /// Group IDs that exist inside.
    pub(crate) fn groups(&self) -> Vec<IdRange> {
        match self {
            UserPlan::Range { .. } => vec![IdRange { first: 0, count: RANGE }],
            UserPlan::Identity | UserPlan::Host => vec![IdRange { first: 0, count: u32::MAX }],
            UserPlan::Maps { gid, .. } => gid.iter().map(|l| IdRange { first: l.inside, count: l.count }).collect(),
        }
    }

    /// The user and the group inside, where the map has no root but these.
    pub(crate) fn only_ids(&self) -> Option<(u32, u32)> {
        match self {
            UserPlan::Maps { uid, gid } if !self.has_root() => Some((uid.first()?.inside, gid.first()?.inside)),
            UserPlan::Range { .. } | UserPlan::Identity | UserPlan::Host | UserPlan::Maps { .. } => None,
        }
    }

    /// Whether user and group 0 exist inside.
    fn has_root(&self) -> bool {
        match self {
            UserPlan::Maps { uid, gid } => [uid, gid].iter().all(|lines| lines.iter().any(|l| l.inside == 0)),
            UserPlan::Range { .. } | UserPlan::Identity | UserPlan::Host => true,
        }
    }

    /// What helps who asks for an ID that does not exist inside.
    pub(crate) fn missing_id_hint(&self) -> Option<&'static str> {
        match self {
            UserPlan::Range { .. } => Some("IDs inside are 0 to 65535; --userns identity has them all"),
            UserPlan::Identity | UserPlan::Host => None,
            UserPlan::Maps { .. } if !self.has_root() => {
                Some("--userns identity maps a plain user's own ID only; without it there are more")
            }
            UserPlan::Maps { .. } => Some(
                "a plain user needs ranges in /etc/subuid and /etc/subgid: sudo usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 $USER",
            ),
        }
    }

    /// Whether setgroups(2) works inside: not in a plain user's single-ID map.
    pub(crate) fn can_set_groups(&self) -> bool {
        !matches!(self, UserPlan::Maps { gid, .. } if gid.len() == 1)
    }
}

impl fmt::Display for UserPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = |lines: &[MapLine]| {
            let texts: Vec<String> = lines.iter().map(|l| format!("{}→{} ×{}", l.inside, l.outside, l.count)).collect();
            texts.join(", ")
        };
        match self {
            UserPlan::Range { .. } => {
                write!(
                    f,
                    "a range of {RANGE} IDs of its own in {FIRST}…{}, layers idmapped",
                    u64::from(LAST) + u64::from(RANGE) - 1
                )
            }
            UserPlan::Identity => f.write_str("a user namespace in which each ID is itself"),
            UserPlan::Host => f.write_str("the host's user namespace"),
            UserPlan::Maps { uid, gid } => write!(f, "uid {}; gid {}", lines(uid), lines(gid)),
        }
    }
}

/// Decides the map; the second value is the warning that a fallback owes.
///
/// # Errors
/// When a plain user asks for what only root can have.
pub(crate) fn plan(spec: &Spec, host: &Host) -> Result<(UserPlan, Option<String>)> {
    if host.uid != 0 {
        return plan_rootless(spec.userns, host).map(|plan| (plan, None));
    }
    Ok(match spec.userns {
        Userns::Host => (UserPlan::Host, None),
        Userns::Identity => (UserPlan::Identity, None),
        Userns::Auto => match idmap_obstacle(spec, host) {
            None => (UserPlan::Range { taken: host.taken_ids.clone() }, None),
            Some(reason) => {
                let warning =
                    format!("user namespace falls back to identity (root inside has the host's IDs): {reason}");
                (UserPlan::Identity, Some(warning))
            }
        },
    })
}

fn plan_rootless(userns: Userns, host: &Host) -> Result<UserPlan> {
    let own = |inside, outside| MapLine { inside, outside, count: 1 };
    match (userns, host.subordinate_ids) {
        (Userns::Host, _) => {
            Err(fault("--userns host, or --share user: a plain user has no other namespaces without a user namespace")
                .hint("run as root: sudo sandbox run …")
                .into())
        }
        (Userns::Identity, _) => {
            Ok(UserPlan::Maps { uid: vec![own(host.uid, host.uid)], gid: vec![own(host.gid, host.gid)] })
        }
        (Userns::Auto, None) => Ok(UserPlan::Maps { uid: vec![own(0, host.uid)], gid: vec![own(0, host.gid)] }),
        (Userns::Auto, Some((uids, gids))) => {
            let sub = |range: IdRange| MapLine { inside: 1, outside: range.first, count: range.count };
            Ok(UserPlan::Maps { uid: vec![own(0, host.uid), sub(uids)], gid: vec![own(0, host.gid), sub(gids)] })
        }
    }
}

/// The map with which a kept root is looked at from outside: that of its owner's sandboxes, or none for root, whose kept files
/// have the IDs that they have inside.
///
/// # Errors
/// When there is no such map.
pub(crate) fn plan_outside(userns: Userns, host: &Host) -> Result<UserPlan> {
    if host.uid == 0 { Ok(UserPlan::Host) } else { plan_rootless(userns, host) }
}

/// Does `work` as root of a user namespace with the map of `plan`, in a process of its own; the exit status is that of `work`. An
/// error is reported where it happens.
///
/// # Errors
/// When the namespace cannot be made.
pub(crate) fn inside_map(plan: &UserPlan, work: impl FnOnce() -> Result<u8>) -> Result<u8> {
    let Some((uid, gid)) = map_lines(plan, 0) else { return work() };
    let (wake, waiting) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match sys::clone_process(libc::CLONE_NEWUSER).context("make a user namespace")? {
        Side::Child => {
            drop(waiting);
            // The other end closes when the maps are written.
            let _ = rustix::io::read(&wake, &mut [0]);
            let status = become_root(plan).and_then(|()| work()).unwrap_or_else(|error| crate::report(&error));
            let flushed = std::io::Write::flush(&mut std::io::stdout()).is_ok();
            sys::exit_now(if flushed { status } else { crate::exit::FAILED })
        }
        Side::Parent(pid, _) => {
            write_maps(pid, &uid, &gid, false)?;
            drop((wake, waiting));
            let status = rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            let code = status.and_then(|(_, status)| status.exit_status());
            Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::exit::FAILED))
        }
    }
}

/// A claimed range. It is free again when the last process that holds the descriptor is gone.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The first ID of the range.
    pub(crate) base: u32,
    lock: File,
    path: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While the lock is held, so nobody else can have locked the name meanwhile.
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("remove {}: {error}", self.path.display());
        }
    }
}

impl Claim {
    /// The lock's descriptor, for the child to keep: the range stays claimed as long as the sandbox lives.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }
}

/// Picks a free range and locks it.
///
/// # Errors
/// When no lock can be made, or 1000 picks were all taken.
pub(crate) fn claim(taken: &[IdRange]) -> Result<Claim> {
    std::fs::create_dir_all(LOCKS).with_context(|| format!("make {LOCKS}"))?;
    sweep();
    for _ in 0..1000 {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let ranges = (LAST - FIRST) / RANGE + 1;
        let base = FIRST + (u32::from_ne_bytes(random) % ranges) * RANGE;
        let range = IdRange { first: base, count: RANGE };
        if !taken.iter().any(|other| range.overlaps(*other))
            && let Some(claim) = try_claim(base)?
        {
            return Ok(claim);
        }
    }
    Err(fault(format!("no free range of user IDs after 1000 tries; locks are in {LOCKS}"))
        .hint("sandbox ps and machinectl list those that hold one; --userns identity takes none")
        .into())
}

/// Names of locks looked at by one start, so that a thousand living sandboxes cost it nothing.
const SWEPT: usize = 8;

/// Removes names that nobody holds a lock on: launchers that were killed left them. Read with little room, since the kernel fills it.
fn sweep() {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(locks) = rustix::fs::open(LOCKS, flags, Mode::empty()) else { return };
    let mut room = [MaybeUninit::uninit(); 512];
    let mut entries = RawDir::new(locks, &mut room);
    let names = std::iter::from_fn(|| entries.next()?.ok().map(|entry| entry.file_name().to_str().map(str::parse)));
    for base in names.filter_map(|name| name.ok()?.ok()).take(SWEPT) {
        // Dropping a claim removes its name.
        drop(try_claim(base));
    }
}

/// `F_WRLCK` and `SEEK_SET` in the type that struct flock has them in.
const WHOLE_FILE_LOCK: (libc::c_short, libc::c_short) = (1, 0);

fn try_claim(base: u32) -> Result<Option<Claim>> {
    let path = PathBuf::from(LOCKS).join(base.to_string());
    let lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let whole_file =
        libc::flock { l_type: WHOLE_FILE_LOCK.0, l_whence: WHOLE_FILE_LOCK.1, l_start: 0, l_len: 0, l_pid: 0 };
    // An open-file-description lock, as systemd takes it, F_OFD_SETLK in fcntl_locking(2).
    if nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole_file)).is_err() {
        return Ok(None);
    }
    Ok(super::is_still_at(&path, &lock)?.then_some(Claim { base, lock, path }))
}

/// The lines of both maps for a range that starts at `base`, or for identity.
pub(crate) fn map_lines(plan: &UserPlan, base: u32) -> Option<(Vec<MapLine>, Vec<MapLine>)> {
    let line = |outside, count| vec![MapLine { inside: 0, outside, count }];
    match plan {
        UserPlan::Range { .. } => Some((line(base, RANGE), line(base, RANGE))),
        UserPlan::Identity => Some((line(0, u32::MAX), line(0, u32::MAX))),
        UserPlan::Host => None,
        UserPlan::Maps { uid, gid } => Some((uid.clone(), gid.clone())),
    }
}

/// Writes the maps of process `pid`'s new user namespace.
///
/// # Errors
/// When the kernel or newuidmap(1) refuses them.
pub(crate) fn write_maps(pid: Pid, uid: &[MapLine], gid: &[MapLine], is_root: bool) -> Result<()> {
    let pid = pid.as_raw_nonzero();
    if !is_root && uid.len().max(gid.len()) > 1 {
        run_map_tool("newuidmap", pid.get(), uid)?;
        return run_map_tool("newgidmap", pid.get(), gid);
    }
    if !is_root {
        // Without it a plain user could drop a group to gain access, user_namespaces(7).
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny").context("deny setgroups in the user namespace")?;
    }
    for (name, lines) in [("uid_map", uid), ("gid_map", gid)] {
        let text: Vec<String> = lines.iter().map(|l| format!("{} {} {}", l.inside, l.outside, l.count)).collect();
        std::fs::write(format!("/proc/{pid}/{name}"), text.join("\n"))
            .with_context(|| format!("write {name} `{}`", text.join(", ")))?;
    }
    Ok(())
}

fn run_map_tool(tool: &str, pid: i32, lines: &[MapLine]) -> Result<()> {
    let numbers = lines.iter().flat_map(|l| [l.inside, l.outside, l.count]).map(|n| n.to_string());
    let output = Command::new(tool).arg(pid.to_string()).args(numbers).output().map_err(|error| {
        fault(format!("run {tool}: {error}"))
            .hint("apt install uidmap, or --userns identity for a map of your own ID only")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(fault(format!("{tool}: {said}")).hint("compare /etc/subuid and /etc/subgid with subuid(5)").into())
}

/// A descriptor of process `pid`'s namespace of this kind, as in /proc: `user` for idmapped mounts, `mnt` to enter. To be had without
/// SYS_PTRACE as long as the process has not changed its user, ptrace(2).
///
/// # Errors
/// When the process is gone.
pub(crate) fn open_namespace(pid: Pid, kind: &str) -> Result<File> {
    File::open(format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero()))
        .with_context(|| format!("open the child's {kind} namespace"))
}

/// Becomes root of the user namespace that this process is in. Where its map has no root nothing is to be done: the first process
/// in a user namespace has every capability in it, whoever it is, user_namespaces(7).
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn become_root(plan: &UserPlan) -> Result<()> {
    if !plan.has_root() {
        return Ok(());
    }
    let root = nix::unistd::Gid::from_raw(0);
    if plan.can_set_groups() {
        nix::unistd::setgroups(&[]).context("drop supplementary groups")?;
    }
    nix::unistd::setresgid(root, root, root).context("become group 0 of the user namespace")?;
    let root = nix::unistd::Uid::from_raw(0);
    nix::unistd::setresuid(root, root, root).context("become user 0 of the user namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_in_systemds_container_range() {
        assert_eq!(FIRST % RANGE, 0);
        assert_eq!(u64::from(LAST) + u64::from(RANGE) - 1, 1_879_048_191);
    }

    #[test]
    fn a_plain_user_gets_subordinate_ids_or_one() {
        let mut host = Host { uid: 1000, gid: 100, ..Host::default() };
        let single = plan_rootless(Userns::Auto, &host).unwrap();
        assert!(!single.can_set_groups() && !single.maps_tty_group());
        let range = IdRange { first: 100_000, count: RANGE };
        host.subordinate_ids = Some((range, range));
        let many = plan_rootless(Userns::Auto, &host).unwrap();
        assert!(many.can_set_groups() && many.maps_tty_group());
        let (uid, gid) = map_lines(&many, 0).unwrap();
        assert_eq!(uid[0], MapLine { inside: 0, outside: 1000, count: 1 });
        assert_eq!(gid[1], MapLine { inside: 1, outside: 100_000, count: RANGE });
        assert!(plan_rootless(Userns::Host, &host).is_err());
        assert_eq!(many.only_ids(), None);
    }

    #[test]
    fn a_plain_users_identity_is_themselves() {
        let host = Host { uid: 1000, gid: 100, ..Host::default() };
        let same = plan_rootless(Userns::Identity, &host).unwrap();
        assert_eq!(same.only_ids(), Some((1000, 100)));
        assert!(!same.has_root() && !same.can_set_groups() && !same.maps_tty_group());
        become_root(&same).unwrap();
    }
}
