//! The child's side of a start: one flat list of steps. It becomes the stub, PID 1 inside, or with `--as-pid1` the payload.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{DumpableBehavior, Signal};

use crate::error::{Result, fault};
use crate::exit;
use crate::layer::Namespace;
use crate::part::caps::{self, Capabilities};
use crate::part::journal::Streams;
use crate::part::label::Label;
use crate::part::landlock::Restrictions;
use crate::part::mounts::{self, Root};
use crate::part::network;
use crate::part::process::{Identity, Prepared, ProcessPlan};
use crate::part::rootfs::RootPlan;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::part::streams;
use crate::part::terminal;
use crate::part::users::{self, UserPlan};
use crate::pid1;
use crate::plan::Plan;
use crate::procview;
use crate::seccomp::Filter;
use crate::sync::{self, ChildEnd, Failure, ToChild, ToParent};
use crate::sys;

/// Runs the child to its end; `born` is a second of the boot-time clock just before it began. What fails is reported to the launcher, which
/// prints it; nothing is printed here.
pub(crate) fn enter(plan: &Plan, end: &ChildEnd, streams: &Streams, kept: &[BorrowedFd<'_>], born: u64) -> ! {
    let status = steps(plan, end, streams, kept, born).unwrap_or_else(|error| {
        // If the launcher is gone there is nobody to tell.
        drop(end.send(&ToParent::Failed(Failure::from_error(&error))));
        // The launcher ends this process when systemd has it in its unit: a dead one that systemd puts there never leaves it, and
        // the unit would stay for ever (the kernel does not move what exits, and says nothing).
        while matches!(end.receive(), Ok(Some(_))) {}
        await_unit(plan, end);
        exit::FAILED
    });
    sys::exit_now(status)
}

fn steps(plan: &Plan, end: &ChildEnd, streams: &Streams, kept: &[BorrowedFd<'_>], born: u64) -> Result<u8> {
    let mut told = Told { end, go: None };
    streams.take()?;
    // Locks stay: the range of IDs and a kept upper are in use as long as this process lives, also when its launcher is killed.
    let keep: Vec<_> = [end.as_fd()].into_iter().chain(kept.iter().copied()).collect();
    sys::close_all_but(&keep).context("close inherited descriptors")?;
    // A session of its own: no terminal of the caller can be pushed input (TIOCSTI), and its ^C, or whoever kills a whole process
    // group, reaches the launcher alone.
    rustix::process::setsid().context("make a session")?;
    leave_keyring()?;
    // What is made for the root is for everybody in it, whatever the caller's mask; the payload gets its own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if !matches!(plan.users, UserPlan::Host) {
        told.wait_for_maps()?;
        users::become_root(&plan.users)?;
    }
    if plan.namespaces.has(Namespace::Uts) {
        nix::unistd::sethostname(&plan.hostname).context("set the hostname")?;
    }
    // Before sysfs is mounted, which shows the network namespace of whoever mounts it.
    if plan.namespaces.has(Namespace::Net) {
        network::unshare()?;
        if plan.network.pasta().is_some() {
            end.send(&ToParent::Network(network::own_namespace()?)).context("tell the launcher")?;
        }
    }
    let mut listed = None;
    if let Some(root) = &plan.root {
        let made = mounts::make(&plan.kernel_mounts)?;
        let wants_view = plan.procview.is_some();
        let (root, view) =
            if root.by_child { own_root(root, end, wants_view)? } else { told.wait_for_root(wants_view)? };
        mounts::enter(&plan.kernel_mounts, &made, &root, view.as_ref().map(|view| &view.mount))?;
        listed = view.map(|view| view.listed);
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).context("own /proc/self")?;
    plan.namespaces.enter_time(born)?;
    let terminal = plan.process.terminal.then(terminal::open).transpose()?;
    let prepared = plan.process.prepare()?;
    let answered = plan.procview.as_ref().map(|view| procview::filter(view.affinity, &plan.seccomp));
    let payload = plan.payload(answered.as_ref().map(|filter| (filter, end)));
    // For all processes from here on, while systemd works; what this one may do now stays, until the payload is on its own.
    plan.capabilities.apply()?;
    let (master, terminal) = terminal.map_or((None, None), |(master, terminal)| (Some(master), Some(terminal)));
    drop(listed);
    end.send(&ToParent::Ready(master)).context("tell the launcher")?;
    let tell = told.wait_for_go()?;
    tie_to_launcher(end)?;
    // The process is in its unit now: its cgroup becomes the root of what it sees.
    plan.namespaces.enter_cgroup()?;
    if plan.kernel_mounts.cgroup {
        mounts::mount_cgroup()?;
    }
    if plan.process.as_pid1 {
        leave_descriptors(plan, &[end.as_fd()], terminal.as_ref())?;
        return Err(payload.become_it(&prepared, terminal.as_ref(), Origin::First(end)));
    }
    pid1::supervise(plan, end, payload, &prepared, terminal, tell)
}

/// Closes, in the process that becomes the payload, what it does not need for that: by way of /proc/self/fd its working directory or its
/// program would be found below a directory of the host that keeps the writes, or where a lock is.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_descriptors(plan: &Plan, kept: &[BorrowedFd<'_>], terminal: Option<&OwnedFd>) -> Result<()> {
    let listen = plan.service.listen.as_ref().map_or(0, |listen| listen.count);
    let terminal = terminal.map(AsFd::as_fd);
    let kept: Vec<_> = kept.iter().copied().chain(terminal).chain(sys::listen_fds(listen)).collect();
    sys::close_all_but(&kept).context("close descriptors")
}

/// Leaves the caller's keys behind.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_keyring() -> Result<()> {
    match sys::new_session_keyring() {
        // A kernel without keyrings, or a filter around us that hides them: then nobody inside reaches one either.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        result => result.context("leave the caller's session keyring"),
    }
}

fn unexpected(message: Option<ToChild>) -> anyhow::Error {
    match message {
        Some(ToChild::Failed(failure)) => failure.into_error(),
        None => fault("the launcher is gone").into(),
        Some(other) => fault(format!("the launcher sent {other:?} out of turn")).into(),
    }
}

/// The sandbox's own /proc files.
struct OwnFiles {
    mount: OwnedFd,
    /// See [`procview::mount::look_up_all`].
    listed: OwnedFd,
}

/// The mount of the sandbox's own /proc files, made by a plain user: a device works in the user namespace that opened it, so it is
/// opened here, and goes to the launcher, who answers on it.
fn own_files(end: &ChildEnd) -> Result<OwnFiles> {
    let device = procview::mount::open().with_context(|| format!("open {}", procview::mount::DEVICE))?;
    let mount = procview::mount::make(device.as_fd())?;
    end.send(&ToParent::View(device)).context("tell the launcher")?;
    Ok(OwnFiles { listed: procview::mount::look_up_all(&mount)?, mount })
}

/// The root that a plain user makes, and where wanted the mount of the /proc files.
fn own_root(root: &RootPlan, end: &ChildEnd, wants_view: bool) -> Result<(Root, Option<OwnFiles>)> {
    let view = wants_view.then(|| own_files(end)).transpose()?;
    let (tree, _) = assemble(root, &Ids { base: 0, userns: None, inside: None }, || {})?;
    Ok((Root { tree, is_ours: false }, view))
}

/// What comes from the launcher. It may let the payload go when all is well with the unit, before this process has what it waits for of
/// the helper.
struct Told<'a> {
    end: &'a ChildEnd,
    /// What [`ToChild::Go`] said.
    go: Option<bool>,
}

impl Told<'_> {
    /// The next message that is no Go.
    fn next(&mut self) -> Result<Option<ToChild>> {
        loop {
            match self.end.receive()? {
                Some(ToChild::Go { tell }) if self.go.is_none() => self.go = Some(tell),
                other => return Ok(other),
            }
        }
    }

    fn wait_for_maps(&mut self) -> Result<()> {
        match self.next()? {
            Some(ToChild::Mapped) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// What the helper makes: where wanted the mount of the /proc files, and the root.
    fn wait_for_root(&mut self, wants_view: bool) -> Result<(Root, Option<OwnFiles>)> {
        let (mut root, mut view) = (None, None);
        loop {
            match self.next()? {
                Some(ToChild::Root(made)) => root = Some(made),
                Some(ToChild::View(mount)) => {
                    // While the helper is at work.
                    view = Some(OwnFiles { listed: procview::mount::look_up_all(&mount)?, mount });
                }
                other => return Err(unexpected(other)),
            }
            if view.is_some() == wants_view
                && let Some(root) = root.take()
            {
                return Ok((root, view));
            }
        }
    }

    /// Whether the launcher wants to hear when the payload runs.
    fn wait_for_go(&mut self) -> Result<bool> {
        if let Some(tell) = self.go {
            return Ok(tell);
        }
        match self.end.receive()? {
            Some(ToChild::Go { tell }) => Ok(tell),
            other => Err(unexpected(other)),
        }
    }
}

/// Until here a launcher that died is seen as the end of the socket; one that had said Go long before may have died since.
fn tie_to_launcher(end: &ChildEnd) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tie the child to its launcher")?;
    if end.launcher_is_gone() { Err(unexpected(None)) } else { Ok(()) }
}

/// How long systemd is waited for, which may put the child into its unit, once nobody hears from it: by a child without a launcher, and by a
/// launcher that has lost the connection.
pub(crate) const UNIT_WAIT: Duration = Duration::from_secs(3);

/// How long it stays from the moment that it sees itself there: several times what the slowest of systemd's moves takes (8 ms).
const MOVE_WAIT: Duration = Duration::from_millis(100);

/// A launcher that was killed may have asked for the unit already; see [`enter`].
fn await_unit(plan: &Plan, end: &ChildEnd) {
    let Some(unit) = &plan.unit else { return };
    leave_streams(end);
    let name = format!("/{}", unit.name);
    let start = Instant::now();
    let proc = mounts::proc_of_this();
    let is_in_unit = || {
        let groups = proc.as_ref().and_then(|proc| mounts::read_at(proc, "self/cgroup").ok());
        groups.is_some_and(|groups| groups.contains(&name))
    };
    while !is_in_unit() && start.elapsed() < UNIT_WAIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    // On cgroup v1 systemd moves a process from hierarchy to hierarchy: gone between two of them, it would be the dead one again.
    std::thread::sleep(MOVE_WAIT);
}

/// Gives the streams up: who reads what comes out of the sandbox is not to wait for this process. The socket takes their places,
/// since the numbers must not become those of something else.
pub(crate) fn leave_streams(end: &ChildEnd) {
    let _ = rustix::stdio::dup2_stdin(end);
    let _ = rustix::stdio::dup2_stdout(end);
    let _ = rustix::stdio::dup2_stderr(end);
}

/// How the process that becomes a payload came to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// The sandbox's first process, with its end to the launcher, which is its parent.
    First(&'a ChildEnd),
    /// A copy of the one that attends to it, with its end of the pipe that this one reads.
    Fork(BorrowedFd<'a>),
    /// In the memory of the stub, which waits for its execve, with the same pipe; every signal is blocked until then.
    Vfork(BorrowedFd<'a>),
}

impl Origin<'_> {
    fn parent_is_gone(self) -> bool {
        match self {
            Origin::First(end) => end.launcher_is_gone(),
            Origin::Fork(report) | Origin::Vfork(report) => sync::is_gone(report),
        }
    }
}

/// What a process needs to know to become a payload: the sandbox's own, or a further one of `exec`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// The process.
    pub(crate) process: &'a ProcessPlan,
    /// Capabilities that remain.
    pub(crate) capabilities: &'a Capabilities,
    /// What it may use of files and network.
    pub(crate) landlock: &'a Restrictions,
    /// What a security module of the kernel calls it.
    pub(crate) label: Option<&'a Label>,
    /// The filter of system calls.
    pub(crate) seccomp: &'a Filter,
    /// The filter that hands system calls over, and where the launcher is, who answers them.
    pub(crate) answered: Option<(&'a procview::Filter, &'a ChildEnd)>,
}

impl Plan {
    /// The payload of this plan.
    pub(crate) fn payload<'a>(&'a self, answered: Option<(&'a procview::Filter, &'a ChildEnd)>) -> Payload<'a> {
        Payload {
            process: &self.process,
            capabilities: &self.capabilities,
            landlock: &self.landlock,
            label: self.label.as_ref(),
            seccomp: &self.seccomp,
            answered,
        }
    }
}

impl Payload<'_> {
    /// Whether it may begin in the stub's memory. Not where it may trace the stub, which has to be without its rights before the payload
    /// runs; not under a filter that may keep signals from being unblocked at the end.
    pub(crate) fn may_share_memory(&self) -> bool {
        !self.capabilities.keeps("SYS_PTRACE") && self.seccomp.lets_signals_be_unblocked()
    }

    /// The last steps, in the process that becomes the payload; returns only why it could not.
    pub(crate) fn become_it(
        &self,
        prepared: &Prepared,
        terminal: Option<&OwnedFd>,
        origin: Origin<'_>,
    ) -> anyhow::Error {
        match self.prepare(&prepared.identity, terminal, origin) {
            Ok(()) => {
                let fault = self.process.exec(&prepared.execution, matches!(origin, Origin::Vfork(_)));
                match self.hint_at_execve() {
                    Some(hint) if fault.exit_status() == exit::NOT_EXECUTABLE => fault.hint(hint).into(),
                    _ => fault.into(),
                }
            }
            Err(error) => error,
        }
    }

    /// What of the confinement can keep a program from being executed.
    fn hint_at_execve(&self) -> Option<String> {
        if !self.landlock.is_empty() {
            return Some("the program, its loader and its libraries need to be named: --landlock exec:/usr".to_owned());
        }
        self.label.map(Label::hint_at_execve)
    }

    fn prepare(&self, identity: &Identity, terminal: Option<&OwnedFd>, origin: Origin<'_>) -> Result<()> {
        // One apart from the stub's; without a stub it has its own already.
        if !matches!(origin, Origin::First(_)) {
            rustix::process::setsid().context("make a session")?;
        }
        if let Some(terminal) = terminal {
            terminal::take(terminal, identity.uid)?;
        } else if identity.uid != 0 {
            streams::let_open();
        }
        match origin {
            Origin::Vfork(_) => sys::default_actions(),
            Origin::First(_) | Origin::Fork(_) => sys::default_signals().context("reset signals")?,
        }
        // The bounding set while this is still root of its user namespace, the sets in force after the user switch has shrunk them.
        self.capabilities.apply()?;
        self.process.apply(identity)?;
        self.capabilities.limit()?;
        // Cleared by the user switch, so here; the stub, or with --as-pid1 the launcher, is the parent.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .context("tie the payload to its parent")?;
        // A parent that died before is not told of, and without a PID namespace of its own nothing else ends this process with it.
        if origin.parent_is_gone() {
            return Err(fault("the parent is gone").into());
        }
        // execve gives no new privileges, set-user-ID bits have no effect; without this the kernel takes no filter from the unprivileged.
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
        // By files of /proc that rules of the next step may hide; it is in force from execve on.
        if let Some(label) = self.label {
            label.set()?;
        }
        // Before the filter, which need not let these calls through.
        self.landlock.apply()?;
        let forbids = self.hand_over_calls()?;
        // Last, since it may forbid any of the steps before; all that comes after it is execve and the report of why that failed.
        if forbids { Ok(()) } else { self.seccomp.load() }
    }

    /// Before the filter that forbids: that one may forbid seccomp(2). Whether that one is loaded with it.
    fn hand_over_calls(&self) -> Result<bool> {
        let Some((filter, end)) = self.answered else { return Ok(false) };
        match procview::listen(filter).context("load the filter that hands sysinfo(2) over")? {
            Some(listener) => {
                end.send(&ToParent::Calls(listener)).context("tell the launcher")?;
                Ok(filter.forbids)
            }
            None => Ok(false),
        }
    }
}

/// Gives up what the stub does not need once the payload is its own process. Who may trace inside (SYS_PTRACE) can make the stub do
/// anything: it gets no more by that than the payload has.
pub(crate) fn shrink_stub(plan: &Plan, end: &ChildEnd) -> Result<()> {
    leave_streams(end);
    let listen = plan.service.listen.as_ref().map_or(0, |listen| listen.count);
    sys::close_listen_fds(listen).context("close the payload's sockets")?;
    caps::limit_stub()?;
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    plan.stub_seccomp.load()
}
