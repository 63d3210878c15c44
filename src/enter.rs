//! `exec`: one more process in a sandbox that lives.
//!
//! The attendant, a child of ours, is put into the unit; then it enters most namespaces and forks the process, which enters the rest
//! and becomes a payload with the same last steps as the first one. Nothing inside is needed for it: no shell, no
//! library, no service. What they say to each other is what launcher and stub say, drawn in [`crate::sync`].

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::child::{self, Origin, Payload};
use crate::error::{Result, fault};
use crate::exit;
use crate::layer::Namespace;
use crate::living::Sandbox;
use crate::part::caps::Capabilities;
use crate::part::namespaces::TIME;
use crate::part::process::ProcessPlan;
use crate::part::terminal;
use crate::pid1;
use crate::relay::Relay;
use crate::signals::Signals;
use crate::state::{Entry, Found, Process, Record};
use crate::sync::{self, ChildEnd, Failure, ParentEnd, ToChild, ToParent};
use crate::sys::{self, Rlimit, Side};
use crate::systemd::{CgroupMode, UnitOfProcess, join_cgroups};

/// How long a start may take whose payload is waited for.
const START: Duration = Duration::from_secs(30);

/// Runs a process in a sandbox until its end; the exit status is its own.
///
/// # Errors
/// When it never ran.
pub(crate) fn enter(sandbox: &Sandbox, process: &ProcessPlan) -> Result<u8> {
    let record = &sandbox.found.record;
    let capabilities = Capabilities::parse(&record.entry.capabilities, &["ALL".to_owned()], &record.entry.ambient)?;
    let signals = Signals::block()?;
    await_start(record)?;
    let target = Target::open(&sandbox.found)?;
    let (end, child_end) = sync::pair().context("make a socket pair")?;
    let (pid, pidfd) = match sys::clone_process(0).context("start the process that enters")? {
        Side::Child => {
            drop(end);
            attendant(
                &target,
                Payload {
                    process,
                    capabilities: &capabilities,
                    landlock: &record.entry.landlock,
                    label: record.entry.label.as_ref(),
                    seccomp: &record.entry.seccomp,
                    answered: None,
                },
                &child_end,
            )
        }
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop((child_end, target));
    let mut entered = Entered { end, pidfd, ended: false };
    let let_go = || {
        join_unit(sandbox, pid)?;
        // Another user's file is no reason to give a process of root's more than it has.
        if sandbox.found.ours {
            process.apply_from_outside(pid)?;
        }
        entered.end.send(&ToChild::Go { tell: false }).context("tell the child")
    };
    // One that has ended is in no unit, and hears nothing; it has said why.
    let_go().map_err(|error| entered.failure().unwrap_or(error))?;
    let master = match entered.end.receive()? {
        Some(ToParent::Ready(master)) => master,
        Some(ToParent::Failed(failure)) => return Err(failure.into_error()),
        Some(_) | None => return Err(fault(format!("{} ended before the command ran", record.name)).into()),
    };
    let reported = Relay::new(&entered.end, &entered.pidfd, &signals, master, None)?.until_end(&mut |_| {})?;
    match reported {
        Some(status) => {
            entered.ended = true;
            Ok(exit::from_wait_status(status))
        }
        None => entered.wait(),
    }
}

/// The attendant; it ends with this.
struct Entered {
    end: ParentEnd,
    pidfd: OwnedFd,
    ended: bool,
}

impl Entered {
    /// What it failed of, if it has said so already.
    fn failure(&self) -> Option<anyhow::Error> {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        let spoke = rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        match spoke.then(|| self.end.receive()) {
            Some(Ok(Some(ToParent::Failed(failure)))) => Some(failure.into_error()),
            _ => None,
        }
    }

    fn wait(&mut self) -> Result<u8> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .context("wait for the child")?;
        self.ended = true;
        let parts = status.map(|status| (status.exit_status(), status.terminating_signal()));
        Ok(parts.map_or(exit::FAILED, |(exited, signaled)| exit::from_waitid(exited, signaled)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.ended {
            // ESRCH: it has ended by itself.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// Whose namespaces are entered.
#[derive(Debug)]
struct Target {
    pidfd: OwnedFd,
    /// The time namespace, that of the stub's children: a stub of an older program is not in it itself.
    time: Option<File>,
    /// The mount namespace: once in the user namespace, this process has no right to look into the stub any more.
    mount: Option<File>,
    namespaces: Vec<Namespace>,
}

impl Target {
    fn open(found: &Found) -> Result<Target> {
        let record = &found.record;
        let gone = || unseen(record);
        // The stub is hidden from plain users, whose the payload is.
        let is_root = rustix::process::geteuid().is_root();
        let source = if is_root { record.leader } else { payload(record).ok_or_else(gone)? };
        let pid = source.pid().ok_or_else(gone)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        if !source.lives() || !record.leader.lives() {
            return Err(gone());
        }
        check_is_apart(found, source)?;
        let namespaces = record.entry.namespaces.clone();
        let open = |namespace, name: &str| {
            let open =
                || File::open(format!("/proc/{}/ns/{name}", source.pid)).context("open the sandbox's namespaces");
            namespaces.contains(&namespace).then(open).transpose()
        };
        let (time, mount) = (open(Namespace::Time, "time_for_children")?, open(Namespace::Mount, "mnt")?);
        Ok(Target { pidfd, time, mount, namespaces })
    }

    /// All but what a fork has to come before: the PID namespace is that of children only, and in the mount namespace /proc does not
    /// know this process.
    fn enter_first(&self) -> Result<()> {
        let rows = [
            (Namespace::User, libc::CLONE_NEWUSER),
            (Namespace::Pid, libc::CLONE_NEWPID),
            (Namespace::Uts, libc::CLONE_NEWUTS),
            (Namespace::Ipc, libc::CLONE_NEWIPC),
            (Namespace::Net, libc::CLONE_NEWNET),
            (Namespace::Cgroup, libc::CLONE_NEWCGROUP),
        ];
        let ours = rows.iter().filter(|(namespace, _)| self.namespaces.contains(namespace));
        let flags = ours.fold(0, |flags, (_, flag)| flags | flag);
        if flags == 0 {
            return Ok(());
        }
        sys::setns(self.pidfd.as_fd(), flags).context("enter the sandbox's namespaces")
    }

    fn enter_rest(&self) -> Result<()> {
        if let Some(time) = &self.time {
            sys::setns(time.as_fd(), TIME).context("enter the sandbox's time namespace")?;
        }
        if let Some(mount) = &self.mount {
            sys::setns(mount.as_fd(), libc::CLONE_NEWNS).context("enter the sandbox's mount namespace")?;
        }
        Ok(())
    }
}

/// Another user's word is not enough for root to enter: what says that it has a user namespace must have one.
fn check_is_apart(found: &Found, source: Process) -> Result<()> {
    let record = &found.record;
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
    let apart = record.entry.namespaces.contains(&Namespace::User)
        && namespace(&source.pid.to_string()).is_some_and(|theirs| Some(theirs) != namespace("self"));
    if !found.ours && !apart {
        return Err(fault(format!("{}: its processes are not in a user namespace of their own", record.name)).into());
    }
    Ok(())
}

/// Why a process of a sandbox that was found is not.
pub(crate) fn unseen(record: &Record) -> anyhow::Error {
    match record.leader.refusal() {
        None => fault(format!("{} has just ended", record.name)).into(),
        // Not EACCES, which is the word of a security module: a mount option does not mend that.
        Some(Errno::PERM | Errno::NOENT) => {
            fault(format!("{}: /proc does not show its processes to you (hidepid=)", record.name))
                .hint("do it as root; or let /proc show them to a group of yours: mount -o remount,gid=GROUP /proc")
                .into()
        }
        Some(errno) => {
            anyhow::Error::from(errno).context(format!("{}: look at its process {}", record.name, record.leader.pid))
        }
    }
}

/// The payload: the stub's first child.
pub(crate) fn payload(record: &Record) -> Option<Process> {
    if record.as_pid1 {
        return Some(record.leader);
    }
    let leader = record.leader.pid;
    let children = std::fs::read_to_string(format!("/proc/{leader}/task/{leader}/children")).ok()?;
    let mut children = children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    Process::read(children.next()?)
}

/// The same of a sandbox that starts, which has it only a moment later; `None` when it has ended.
pub(crate) fn await_payload(record: &Record) -> Option<Process> {
    await_in(record, || payload(record))
}

/// Waits until the payload runs. Before that the first process is on its way from the host's mounts to its own, and whoever joins its
/// namespaces could be anywhere.
///
/// # Errors
/// When it takes longer than [`START`], or the sandbox ends.
pub(crate) fn await_start(record: &Record) -> Result<()> {
    // Without a stub the first process executes the payload; else the stub has no child before.
    let runs = || payload(record).filter(|_| !record.as_pid1 || has_executed(record));
    if await_in(record, runs).is_some() {
        return Ok(());
    }
    if record.leader.lives() {
        return Err(fault(format!("{} is still starting", record.name)).into());
    }
    Err(unseen(record))
}

/// What `look` finds, waited for as long as the sandbox lives and [`START`] at the longest.
fn await_in<T>(record: &Record, look: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + START;
    loop {
        let found = look();
        if found.is_some() || !record.leader.lives() || Instant::now() > deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The first process is no more what made it.
fn has_executed(record: &Record) -> bool {
    let program = |pid: i32| std::fs::metadata(format!("/proc/{pid}/exe")).map(|meta| (meta.dev(), meta.ino())).ok();
    program(record.leader.pid).is_some_and(|payload| Some(payload) != program(record.launcher.pid))
}

/// Puts the attendant into the unit, and sees that it is there.
fn join_unit(sandbox: &Sandbox, pid: Pid) -> Result<()> {
    let (record, number) = (&sandbox.found.record, pid.as_raw_nonzero().get());
    if sandbox.is_paused() {
        return Err(fault(format!("{} is paused", record.name)).hint(format!("sandbox resume {}", record.name)).into());
    }
    if rustix::process::geteuid().is_root() {
        join_cgroups(number, record.leader.pid, CgroupMode::read()?)?;
    } else {
        sandbox.manager()?.attach(&record.unit, number)?;
    }
    let place = UnitOfProcess::try_read(&number.to_string()).context("look where the process is")?;
    if place.as_ref().is_none_or(|place| place.unit != record.unit) {
        let place = place.map_or_else(|| "in no unit".to_owned(), |place| format!("in {}", place.unit));
        return Err(fault(format!("systemd did not put the process into {}: it is {place}", record.unit)).into());
    }
    Ok(())
}

/// The attendant's side, to its end; what fails is reported, the caller prints it.
fn attendant(target: &Target, payload: Payload<'_>, end: &ChildEnd) -> ! {
    let status = attend(target, payload, end).unwrap_or_else(|error| {
        // If the caller is gone there is nobody to tell.
        drop(end.send(&ToParent::Failed(Failure::from_error(&error))));
        exit::FAILED
    });
    sys::exit_now(status)
}

fn attend(target: &Target, payload: Payload<'_>, end: &ChildEnd) -> Result<u8> {
    let files = target.time.iter().chain(&target.mount).map(AsFd::as_fd);
    let keep: Vec<_> = [end.as_fd(), target.pidfd.as_fd()].into_iter().chain(files).collect();
    sys::close_all_but(&keep).context("close inherited descriptors")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tie the child to its parent")?;
    rustix::process::setsid().context("make a session")?;
    child::leave_keyring()?;
    match end.receive()? {
        Some(ToChild::Go { .. }) => {}
        _ => return Err(fault("the caller is gone").into()),
    }
    // Processes inside are not to look into this one or its child while they have the caller's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("hide the child's memory")?;
    if rustix::process::geteuid().is_root() && !payload.process.can_set_groups {
        // In a plain user's map root's own groups would stay.
        nix::unistd::setgroups(&[]).context("leave the caller's groups")?;
    }
    target.enter_first()?;
    pid1::attend(end, |report| match become_it(target, payload, end, report) {
        Ok(never) => match never {},
        Err(error) => error,
    })
}

/// In the process that becomes the command.
fn become_it(
    target: &Target,
    payload: Payload<'_>,
    end: &ChildEnd,
    report: BorrowedFd<'_>,
) -> Result<std::convert::Infallible> {
    target.enter_rest()?;
    if target.namespaces.contains(&Namespace::User) {
        become_root()?;
    }
    let terminal = payload.process.terminal.then(terminal::open).transpose()?;
    let prepared = payload.process.prepare()?;
    let (master, terminal) = terminal.map_or((None, None), |(master, terminal)| (Some(master), Some(terminal)));
    end.send(&ToParent::Ready(master)).context("tell the caller")?;
    Err(payload.become_it(&prepared, terminal.as_ref(), Origin::Fork(report)))
}

/// Root inside, where there is one; a plain user's map may have the caller alone.
fn become_root() -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    let become_it = || {
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)
    };
    match become_it() {
        Ok(()) | Err(nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(error).context("become root of the sandbox"),
    }
}

/// How the process starts: as the payload did, but for what is asked.
pub(crate) fn process(entry: &Entry, asked: &Asked) -> ProcessPlan {
    let mut environment: Vec<_> = entry
        .environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect::<Vec<(std::ffi::OsString, _)>>();
    for (name, value) in &asked.environment {
        environment.retain(|(other, _)| other != name);
        environment.push((name.clone(), value.clone()));
    }
    ProcessPlan {
        command: asked.command.clone(),
        environment,
        identity: None,
        user: asked.user.clone().unwrap_or_else(|| entry.user.clone()),
        group: if asked.user.is_some() {
            asked.group.clone()
        } else {
            asked.group.clone().or_else(|| entry.group.clone())
        },
        directories: asked.directory.clone().map_or_else(|| entry.directories.clone(), |directory| vec![directory]),
        as_pid1: false,
        terminal: asked.terminal,
        rlimits: entry
            .rlimits
            .iter()
            .map(|(resource, soft, hard)| (*resource, Rlimit { soft: *soft, hard: *hard }))
            .collect(),
        nice: entry.nice,
        oom_score_adjust: entry.oom_score_adjust,
        umask: entry.umask,
        affinity: entry.affinity.clone(),
        can_set_groups: entry.can_set_groups,
        group_ids: entry
            .group_ids
            .iter()
            .map(|(first, count)| crate::host::IdRange { first: *first, count: *count })
            .collect(),
        missing_id_hint: None,
        listen: None,
        quiet: false,
        host_view: entry.host_view,
    }
}

/// What is asked of a process of `exec`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// The command and its arguments.
    pub(crate) command: Vec<std::ffi::OsString>,
    /// More variables.
    pub(crate) environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// User, by name or number.
    pub(crate) user: Option<String>,
    /// Group, by name or number.
    pub(crate) group: Option<String>,
    /// Where it starts.
    pub(crate) directory: Option<std::path::PathBuf>,
    /// It has a terminal of its own.
    pub(crate) terminal: bool,
}
