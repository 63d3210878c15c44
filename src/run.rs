//! The launcher's side of a start, and the life of a sandbox as its parent sees it. The other side is [`crate::child`]; what they
//! say to each other is drawn in [`crate::sync`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::child;
use crate::error::{Result, fault};
use crate::exit;
use crate::layer::Namespace;
use crate::part::rootfs::RootPlan;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::part::scratch;
use crate::part::streams;
use crate::part::users::{self, Claim, UserPlan};
use crate::plan::Plan;
use crate::relay::Relay;
use crate::signals::Signals;
use crate::sync::{self, Failure, ParentEnd, ToChild, ToParent};
use crate::sys::{self, Side};
use crate::timings::Timings;
use crate::unit::Unit;

/// Runs a sandbox from its start to its end; the exit status is the payload's.
///
/// # Errors
/// When the payload never ran: with the reason of whichever side failed first.
pub(crate) fn run(plan: &Plan, timings: &mut Timings) -> Result<u8> {
    let signals = Signals::block()?;
    let _kept = plan.root.as_ref().map(|root| lock_upper(root, &plan.users)).transpose()?;
    let claim = match &plan.users {
        UserPlan::Range { taken } => Some(users::claim(taken)?),
        UserPlan::Identity | UserPlan::Host | UserPlan::Maps { .. } => None,
    };
    let (end, child_end) = sync::pair().context("make a socket pair")?;
    let (pid, pidfd) = match sys::clone_process(plan.namespaces.clone_flags()).map_err(explain_clone)? {
        Side::Child => child::enter(plan, &child_end, claim.as_ref()),
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(child_end);
    timings.mark("clone3");
    let mut running = Running { plan, end, pid, pidfd, helper: None, unit: None, ended: false };
    match running.start(claim.as_ref(), timings) {
        Ok(master) => running.supervise(&signals, master, timings),
        Err(error) => Err(running.first_failure(error)),
    }
}

fn explain_clone(error: std::io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
        }
        Some(libc::ENOSPC) => {
            "sysctl -w user.max_user_namespaces=65536, and the like for the kind that is short: sysctl user"
        }
        _ => return anyhow::Error::new(error).context("make namespaces"),
    };
    fault(format!("make namespaces: {error}")).hint(hint).into()
}

/// The directory that takes the writes, locked: two sandboxes at a time would damage each other's overlay.
struct LockedUpper<'a> {
    _lock: File,
    /// It goes with the sandbox.
    temporary: Option<(&'a Path, &'a UserPlan)>,
}

impl Drop for LockedUpper<'_> {
    fn drop(&mut self) {
        if let Some((path, users)) = self.temporary {
            scratch::remove(path, users);
        }
    }
}

fn lock_upper<'a>(root: &'a RootPlan, users: &'a UserPlan) -> Result<Option<LockedUpper<'a>>> {
    let Some(path) = &root.upper else { return Ok(None) };
    if root.temporary {
        scratch::sweep(users);
        scratch::make(path)?;
    } else {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make --upper {}", path.display()));
            }
            _ => {}
        }
    }
    let only_a_directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
    let directory = only_a_directory.with_context(|| format!("open --upper {}", path.display()))?;
    match directory.try_lock() {
        Ok(()) => {
            let temporary = root.temporary.then_some((path.as_path(), users));
            Ok(Some(LockedUpper { _lock: directory, temporary }))
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(fault(format!("--upper {}: another sandbox uses it", path.display())).into())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock --upper {}", path.display()))
        }
    }
}

/// A child that lives. Dropping it leaves nothing behind: the child is killed, with it its PID namespace and its unit.
struct Running<'a> {
    plan: &'a Plan,
    end: ParentEnd,
    pid: Pid,
    pidfd: OwnedFd,
    helper: Option<Pid>,
    unit: Option<Unit<'a>>,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        self.reap_helper();
        // A scope ends with its last process; only what shares the host's PIDs may have left others in it.
        if let Some(unit) = &mut self.unit
            && !self.plan.namespaces.has(Namespace::Pid)
        {
            unit.stop();
        }
    }
}

impl Running<'_> {
    /// Everything up to Go. The child and the helper work while systemd does; the master of the sandbox's terminal is returned.
    fn start(&mut self, claim: Option<&Claim>, timings: &mut Timings) -> Result<Option<OwnedFd>> {
        if let Some(plan) = &self.plan.unit {
            self.unit = Some(Unit::begin(plan, self.pid, self.pidfd.as_fd())?);
            timings.mark("unit asked for");
        }
        self.map_ids(claim)?;
        if let Some(claim) = claim {
            streams::give(claim.base, claim.base);
        }
        self.start_helper(claim)?;
        self.plan.process.apply_from_outside(self.pid)?;
        timings.mark("id maps, helper");
        if let Some(unit) = &mut self.unit {
            unit.finish(self.pidfd.as_fd())?;
            timings.mark("unit started");
        }
        let master = match self.end.receive()? {
            Some(ToParent::Ready(master)) => master,
            other => return Err(unexpected(other)),
        };
        timings.mark("child ready");
        if let Some(unit) = &mut self.unit {
            let report = unit.verify()?;
            if !self.plan.process.quiet {
                report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
            }
            timings.mark("limits verified");
        }
        self.end.send(&ToChild::Go).context("tell the child")?;
        Ok(master)
    }

    fn map_ids(&self, claim: Option<&Claim>) -> Result<()> {
        let base = claim.map_or(0, |claim| claim.base);
        let Some((uid, gid)) = users::map_lines(&self.plan.users, base) else {
            return Ok(());
        };
        users::write_maps(self.pid, &uid, &gid, rustix::process::geteuid().is_root())?;
        self.end.send(&ToChild::Mapped).context("tell the child")
    }

    /// The helper makes the root with the host's privileges, in a mount namespace of its own, and sends it to the child itself.
    fn start_helper(&mut self, claim: Option<&Claim>) -> Result<()> {
        let Some(root) = self.plan.root.as_ref().filter(|root| !root.by_child) else {
            return Ok(());
        };
        let userns = claim.map(|_| users::open_userns(self.pid)).transpose()?;
        match sys::clone_process(libc::CLONE_NEWNS).context("start the helper that makes the root")? {
            Side::Child => {
                // It holds the launcher's end of the socket, so the child would wait for a helper that is stuck.
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                let ids = Ids { base: claim.map_or(0, |claim| claim.base), userns: userns.as_ref().map(AsFd::as_fd) };
                let message = match assemble(root, &ids) {
                    Ok(tree) => ToChild::Tree(tree),
                    Err(error) => ToChild::Failed(Failure::from_error(&error)),
                };
                // If the child is gone the launcher knows why.
                drop(self.end.send(&message));
                sys::exit_now(0)
            }
            Side::Parent(pid, _) => self.helper = Some(pid),
        }
        Ok(())
    }

    fn reap_helper(&mut self) {
        if let Some(helper) = self.helper.take() {
            let _ = rustix::process::waitpid(Some(helper), rustix::process::WaitOptions::empty());
        }
    }

    /// Waits for the end of the first process inside; the status it leads to.
    fn wait_for_child(&mut self) -> Result<u8> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .context("wait for the child")?;
        self.ended = true;
        let parts = status.map(|status| (status.exit_status(), status.terminating_signal()));
        Ok(parts.map_or(exit::FAILED, |(exited, signaled)| exit::from_waitid(exited, signaled)))
    }

    /// Ends the first process inside, and with it all others; not before systemd is done with it, see [`child::enter`].
    fn kill(&mut self) {
        if let Some(unit) = &mut self.unit {
            unit.settle(self.pidfd.as_fd());
        }
        // ESRCH: it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// When the child reported a failure, that is the cause of whatever this side saw.
    fn first_failure(&mut self, error: anyhow::Error) -> anyhow::Error {
        self.kill();
        while let Ok(Some(message)) = self.end.receive() {
            if let ToParent::Failed(failure) = message {
                return failure.into_error();
            }
        }
        error
    }

    /// Stays until the payload has ended.
    fn supervise(mut self, signals: &Signals, master: Option<OwnedFd>, timings: &mut Timings) -> Result<u8> {
        self.reap_helper();
        let mut relay = Relay::new(&self.end, &self.pidfd, signals, master, self.plan.process.as_pid1)?;
        let reported = relay.until_end(&mut |event| {
            if matches!(event, ToParent::Executed) {
                timings.mark("payload executed");
            }
        });
        let reported = match reported {
            Ok(reported) => reported,
            Err(error) => return Err(self.first_failure(error)),
        };
        let out_of_memory = self.unit.as_ref().and_then(Unit::oom_kills).filter(|kills| *kills > 0);
        drop(relay);
        let status = match reported {
            Some(status) => exit::from_wait_status(status),
            None => self.wait_for_child()?,
        };
        // With a kept upper the next sandbox may start at once: this one's overlay has to be gone.
        if self.plan.root.as_ref().is_some_and(|root| root.upper.is_some()) && !self.ended {
            self.wait_for_child()?;
        }
        self.ended = true;
        timings.mark("ended");
        if let Some(kills) = out_of_memory.filter(|_| !self.plan.process.quiet) {
            log::warn!("out of memory: the kernel killed {kills} of the sandbox's processes (memory.events)");
        }
        Ok(status)
    }
}

fn unexpected(message: Option<ToParent>) -> anyhow::Error {
    match message {
        Some(ToParent::Failed(failure)) => failure.into_error(),
        None => fault("the sandbox's first process ended before the payload was started").into(),
        Some(other) => fault(format!("the child sent {other:?} out of turn")).into(),
    }
}
