//! The payload as a process: who it is, where it starts, its environment, its limits, and its execve.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::Pid;
use serde::{Serialize, Serializer};

use crate::error::{Result, fault};
use crate::host::{Host, IdRange};
use crate::part::account;
use crate::part::rootfs::RootPlan;
use crate::part::service::{Listen, ServicePlan};
use crate::part::users::UserPlan;
use crate::spec::{RootSource, Spec};
use crate::sys::{self, Rlimit};
use crate::value;

mod execution;

use execution::Execution;

/// Where programs are looked for when nothing else is said.
/// The file mode creation mask where nothing was asked.
const UMASK: u32 = 0o022;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// How the payload starts, decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ProcessPlan {
    /// The command and its arguments.
    #[serde(serialize_with = "texts")]
    pub(crate) command: Vec<OsString>,
    /// Its environment; HOME and USER are added from the account inside where they are not set.
    #[serde(serialize_with = "variables")]
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// User, by name or number.
    pub(crate) user: String,
    /// Group, by name or number; `None`: the user's.
    pub(crate) group: Option<String>,
    /// Who that is, where it is known before the root is made: it has the host's own accounts.
    #[serde(skip)]
    pub(crate) identity: Option<Identity>,
    /// Where it starts: the first that exists inside.
    pub(crate) directories: Vec<PathBuf>,
    /// It is PID 1 itself.
    pub(crate) as_pid1: bool,
    /// It has a terminal of its own.
    pub(crate) terminal: bool,
    /// Resource limits, by number of getrlimit(2).
    #[serde(serialize_with = "limits")]
    pub(crate) rlimits: Vec<(u32, Rlimit)>,
    /// Nice value.
    pub(crate) nice: Option<i32>,
    /// OOM score adjustment.
    pub(crate) oom_score_adjust: Option<i32>,
    /// File mode creation mask.
    pub(crate) umask: u32,
    /// CPUs by sched_setaffinity(2).
    pub(crate) affinity: Option<Vec<u32>>,
    /// setgroups(2) works.
    pub(crate) can_set_groups: bool,
    /// Group IDs that exist inside: others cannot be had, and are left out of the supplementary ones.
    #[serde(skip)]
    pub(crate) group_ids: Vec<IdRange>,
    /// What helps who asks for an ID that does not exist inside.
    #[serde(skip)]
    pub(crate) missing_id_hint: Option<&'static str>,
    /// Sockets that it is to serve.
    pub(crate) listen: Option<Listen>,
    /// Nothing but errors is printed.
    #[serde(skip)]
    pub(crate) quiet: bool,
    /// It sees the host's files, so a hint about hidden directories may help.
    #[serde(skip)]
    pub(crate) host_view: bool,
}

fn texts<S: Serializer>(list: &[OsString], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|text| text.to_string_lossy()))
}

fn variables<S: Serializer>(list: &[(OsString, OsString)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(list.iter().map(|(name, value)| (name.to_string_lossy(), value.to_string_lossy())))
}

fn limits<S: Serializer>(list: &[(u32, Rlimit)], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(limit))
}

/// As systemd writes it.
fn limit((resource, limit): &(u32, Rlimit)) -> String {
    value::Rlimit { resource: *resource, soft: limit.soft, hard: limit.hard }.to_string()
}

/// Decides how the payload starts.
pub(crate) fn plan(
    spec: &Spec,
    host: &Host,
    users: &UserPlan,
    service: &ServicePlan,
    root: Option<&RootPlan>,
) -> ProcessPlan {
    let process = &spec.process;
    // A map without root has one user and one group, which need not be the group that the account has inside.
    let only = users.only_ids();
    let host_view = spec.root.source == RootSource::HostView;
    let is_bound = || spec.root.binds.iter().any(|bind| bind.source == bind.at && host.cwd.starts_with(&bind.at));
    let directories = match &process.directory {
        Some(asked) => vec![asked.clone()],
        None if host_view || is_bound() => vec![host.cwd.clone(), "/".into()],
        None => vec!["/".into()],
    };
    let rlimits = process.rlimits.iter().map(|l| (l.resource, Rlimit { soft: l.soft, hard: l.hard })).collect();
    let mut plan = ProcessPlan {
        command: spec.command.clone(),
        environment: environment(spec, host, service),
        listen: service.listen.clone(),
        user: process.user.clone().unwrap_or_else(|| only.map_or(0, |(uid, _)| uid).to_string()),
        group: process.group.clone().or_else(|| only.map(|(_, gid)| gid.to_string())),
        directories,
        as_pid1: process.as_pid1,
        terminal: process.terminal.unwrap_or(host.terminal && !spec.unit.detach),
        rlimits,
        nice: process.nice,
        oom_score_adjust: process.oom_score_adjust,
        umask: process.umask.unwrap_or(UMASK),
        affinity: process.affinity.as_ref().map(|set| set.numbers().to_vec()),
        can_set_groups: users.can_set_groups(),
        group_ids: users.groups(),
        missing_id_hint: users.missing_id_hint(),
        host_view,
        quiet: process.quiet,
        identity: None,
    };
    // What was asked for may be anywhere, by way of a link or of dots.
    let asked = &spec.root;
    let is_default =
        asked.binds.is_empty() && asked.tmpfs.is_empty() && asked.devices.is_empty() && asked.directories.is_empty();
    let has_accounts = |root: &RootPlan| [PASSWD, GROUP].iter().all(|path| root.has_the_hosts(Path::new(path), host));
    if is_default && host.accounts_are_plain && root.is_some_and(has_accounts) {
        // What is wrong with it is said by who looks inside.
        plan.identity = Identity::find(&plan, &host.passwd, &host.group).ok();
    }
    plan
}

/// PATH, TERM and container, then what was asked; a later value replaces an earlier one.
fn environment(spec: &Spec, host: &Host, service: &ServicePlan) -> Vec<(OsString, OsString)> {
    let mut list: Vec<(OsString, OsString)> = vec![("PATH".into(), PATH.into())];
    if let Some(term) = host.environment.get(OsStr::new("TERM")).filter(|_| !spec.unit.detach) {
        list.push(("TERM".into(), term.clone()));
    }
    list.push(("container".into(), "sandbox".into()));
    list.extend(service.environment());
    for (name, value) in &spec.process.environment {
        let Some(value) = value.as_ref().or_else(|| host.environment.get(name)) else {
            continue;
        };
        list.retain(|(other, _)| other != name);
        list.push((name.clone(), value.clone()));
    }
    list
}

/// What the payload's own process has not to look for.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Who it is.
    pub(crate) identity: Identity,
    /// What it becomes.
    pub(crate) execution: Execution,
}

/// Who the payload is, looked up inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User ID inside.
    pub(crate) uid: u32,
    /// Group ID inside.
    pub(crate) gid: u32,
    /// Supplementary groups.
    groups: Vec<u32>,
    home: String,
    name: String,
}

impl Identity {
    /// Looks the user and group up in the /etc/passwd and /etc/group texts of the root.
    ///
    /// # Errors
    /// When there is no such name.
    fn find(plan: &ProcessPlan, passwd: &str, group: &str) -> Result<Identity> {
        let wanted = plan.user.as_str();
        let account = match wanted.parse::<u32>() {
            Ok(uid) => account::by_uid(passwd, uid),
            Err(_) => Some(account::by_name(passwd, wanted).ok_or_else(|| {
                fault(format!("--uid {wanted}: no such user in the sandbox's /etc/passwd"))
                    .hint("a number works for any user")
            })?),
        };
        let uid = account.as_ref().map_or_else(|| wanted.parse().unwrap_or(0), |a| a.uid);
        let gid = match plan.group.as_deref() {
            None => account.as_ref().map_or(0, |a| a.gid),
            Some(wanted) => match wanted.parse() {
                Ok(gid) => gid,
                Err(_) => account::group_id(group, wanted).ok_or_else(|| {
                    fault(format!("--gid {wanted}: no such group in the sandbox's /etc/group"))
                        .hint("a number works for any group")
                })?,
            },
        };
        // To setresuid(2) and setresgid(2) it means that nothing changes: the payload would stay root.
        let of_group = plan.group.as_deref().map_or(("--uid", wanted), |group| ("--gid", group));
        for ((flag, wanted), id) in [(("--uid", wanted), uid), (of_group, gid)] {
            if id == u32::MAX {
                let line = format!("{flag} {wanted}: {id} is no ID, to the kernel it means none");
                return Err(fault(line).hint(format!("IDs are 0 to {}", u32::MAX - 1)).into());
            }
        }
        // setgroups(2) takes all or none, so one that does not exist inside would end every start.
        let exists = |id: &u32| plan.group_ids.iter().any(|range| range.contains(*id));
        let groups = account.as_ref().map_or_else(Vec::new, |a| account::member_of(group, &a.name));
        let groups = groups.into_iter().filter(exists).collect();
        let (name, home) = account.map_or_else(|| (uid.to_string(), "/".to_owned()), |a| (a.name, a.home));
        let home = if uid == 0 && home == "/" { "/root".to_owned() } else { home };
        Ok(Identity { uid, gid, groups, home, name })
    }

    /// Becomes this user. Capabilities of a user other than root are gone with it.
    fn become_user(&self, plan: &ProcessPlan) -> Result<()> {
        let context = || format!("become user {} and group {}", self.uid, self.gid);
        let explain = |error: nix::Error| -> anyhow::Error {
            if error == nix::Error::EINVAL {
                let line = fault(format!("{}: not in this user namespace's map", context()));
                return match plan.missing_id_hint {
                    Some(hint) => line.hint(hint).into(),
                    None => line.into(),
                };
            }
            anyhow::Error::new(error).context(context())
        };
        if plan.can_set_groups {
            let groups: Vec<_> = self.groups.iter().map(|id| nix::unistd::Gid::from_raw(*id)).collect();
            nix::unistd::setgroups(&groups).map_err(explain)?;
        }
        let (uid, gid) = (nix::unistd::Uid::from_raw(self.uid), nix::unistd::Gid::from_raw(self.gid));
        nix::unistd::setresgid(gid, gid, gid).map_err(explain)?;
        nix::unistd::setresuid(uid, uid, uid).map_err(explain)
    }
}

impl ProcessPlan {
    /// How it starts, a row each: what it is about, and what was decided.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let group = self.group.as_ref().map_or_else(String::new, |group| format!(", group {group}"));
        let mut rows = vec![("user", format!("{}{group}", self.user))];
        let directories: Vec<_> = self.directories.iter().map(|directory| directory.display().to_string()).collect();
        rows.push(("directory", directories.join(", else ")));
        if self.terminal {
            rows.push(("terminal", "one of its own".to_owned()));
        }
        rows.extend(self.rlimits.iter().map(|entry| ("limit", limit(entry))));
        rows.extend(self.nice.map(|nice| ("nice", nice.to_string())));
        rows.extend(self.oom_score_adjust.map(|score| ("OOM score", format!("{score:+}"))));
        if self.umask != UMASK {
            rows.push(("umask", format!("{:04o}", self.umask)));
        }
        let cpus = |list: &Vec<u32>| list.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        rows.extend(self.affinity.as_ref().map(|list| ("affinity", format!("CPUs {}", cpus(list)))));
        rows
    }

    /// What only the launcher may do for process `pid`: raise hard limits, lower the nice value and the OOM score.
    ///
    /// # Errors
    /// With the setting and the kernel's reason.
    pub(crate) fn apply_from_outside(&self, pid: Pid) -> Result<()> {
        let pid = pid.as_raw_nonzero().get();
        for (resource, wanted) in &self.rlimits {
            let name = rlimit_name(*resource);
            let now = sys::prlimit(pid, *resource, None).with_context(|| format!("read limit {name}"))?;
            if wanted.hard > now.hard {
                let raised = Rlimit { soft: now.soft, hard: wanted.hard };
                sys::prlimit(pid, *resource, Some(raised)).map_err(|error| {
                    fault(format!("limit {name}: raise the hard limit from {} to {}: {error}", now.hard, wanted.hard))
                        .hint("only root with CAP_SYS_RESOURCE may raise a hard limit; ask for at most the present one")
                })?;
            }
        }
        if let Some(score) = self.oom_score_adjust {
            std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
                .with_context(|| format!("OOMScoreAdjust={score}"))?;
        }
        if let Some(nice) = self.nice {
            sys::set_nice(pid, nice).with_context(|| format!("Nice={nice}"))?;
        }
        Ok(())
    }

    /// Looks the user and the command up inside, before the payload's own process exists.
    ///
    /// # Errors
    /// When there is no such user or group.
    pub(crate) fn prepare(&self) -> Result<Prepared> {
        let found = || Identity::find(self, &read_accounts(PASSWD), &read_accounts(GROUP));
        let identity = self.identity.clone().map_or_else(found, Ok)?;
        let execution = self.execution(&identity);
        Ok(Prepared { identity, execution })
    }

    /// Sets what does not need a privilege and becomes the user.
    ///
    /// # Errors
    /// With the setting and the kernel's reason.
    pub(crate) fn apply(&self, identity: &Identity) -> Result<()> {
        for (resource, wanted) in &self.rlimits {
            sys::prlimit(0, *resource, Some(*wanted))
                .with_context(|| format!("set limit {}", rlimit_name(*resource)))?;
        }
        if let Some(cpus) = &self.affinity {
            let mut set = rustix::thread::CpuSet::new();
            cpus.iter().filter(|cpu| **cpu < 1024).for_each(|cpu| set.set(*cpu as usize));
            rustix::thread::sched_setaffinity(None, &set).context("CPUAffinity=")?;
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        identity.become_user(self)?;
        // As the user, who may not be allowed into it.
        self.enter_directory()
    }

    fn enter_directory(&self) -> Result<()> {
        let mut last = None;
        for directory in &self.directories {
            match rustix::process::chdir(directory) {
                Ok(()) => return inside(directory),
                Err(error) => last = Some((directory, error)),
            }
        }
        let Some((directory, error)) = last else {
            return Ok(());
        };
        let fault = fault(format!("working directory {}: {}", directory.display(), std::io::Error::from(error)));
        Err(if self.host_view { fault.hint(format!("--bind {} brings it", directory.display())) } else { fault }.into())
    }
}

/// A directory can be named by way of a descriptor that this process has open (/proc/self/fd/N) and then lie outside of the root,
/// with the whole host around it: CVE-2024-21626.
fn inside(directory: &Path) -> Result<()> {
    let reason = match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => return Ok(()),
        Ok(_) => "not in the root".to_owned(),
        Err(error) => std::io::Error::from(error).to_string(),
    };
    Err(fault(format!("working directory {}: {reason}", directory.display())).into())
}

/// A file of accounts in a root that is not ours to trust: a fifo there, or a link to a device, must neither hang nor fill memory.
fn read_accounts(path: &str) -> String {
    use std::io::Read;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(file) = std::fs::File::options().read(true).custom_flags(flags).open(path) else { return String::new() };
    let Some(meta) = file.metadata().ok().filter(std::fs::Metadata::is_file) else { return String::new() };
    const MOST: u64 = 4 << 20;
    // Room for all of it at once: else it is read in pieces of some bytes.
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(MOST)).unwrap_or(0) + 64);
    if file.take(MOST).read_to_end(&mut bytes).is_ok() {
        String::from_utf8_lossy(&bytes).into_owned()
    } else {
        String::new()
    }
}

fn rlimit_name(resource: u32) -> &'static str {
    crate::value::Rlimit { resource, soft: 0, hard: 0 }.name()
}

#[cfg(test)]
mod tests;
