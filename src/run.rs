//! The launcher's side of a start, and the life of a sandbox as its parent sees it. The other side is [`crate::child`]; what they
//! say to each other is drawn in [`crate::sync`].

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::child;
use crate::error::{Result, fault};
use crate::exit::{self, Ended};
use crate::layer::Namespace;
use crate::part::journal::{Streams, TerminalLog};
use crate::part::network::join::{JoinPlan, Joined};
use crate::part::network::pasta::Pasta;
use crate::part::streams;
use crate::part::users::{self, Claim, UserPlan};
use crate::plan::{Plan, UnitKind, UnitPlan};
use crate::procview::{self, View};
use crate::relay::{Event, Relay};
use crate::signals::Signals;
use crate::state::StateFile;
use crate::sync::{self, ParentEnd, ToChild, ToParent};
use crate::sys::{self, Side};
use crate::systemd::{Bus, Grace};
use crate::timings::Timings;
use crate::unit::{self, Unit};

mod helper;
mod ready;
mod upper;

use helper::{Helper, Work};
use upper::lock_upper;

/// A command that has run for so long gets what was decided for it written down; one that ends sooner is looked at by nobody.
const DESCRIBED: Duration = Duration::from_millis(20);

/// What takes others some time was begun before there was a plan.
pub(crate) struct Begun {
    /// Is over when systemd has done its work.
    pub(crate) grace: Option<Grace>,
    /// A connection to the service manager.
    pub(crate) bus: Option<Bus>,
}

/// Runs a sandbox from its start to its end, which is the payload's. `leases` are locks on what it runs on: they are held as long as
/// its first process lives.
///
/// # Errors
/// When the payload never ran: with the reason of whichever side failed first.
pub(crate) fn run(plan: &Arc<Plan>, leases: &[BorrowedFd<'_>], begun: Begun, timings: &mut Timings) -> Result<Ended> {
    let signals = Signals::block()?;
    let upper = plan.root.as_ref().map(|root| lock_upper(root, &plan.users)).transpose()?.flatten();
    let claim = match &plan.users {
        UserPlan::Range { taken } => Some(users::claim(taken)?),
        UserPlan::Identity | UserPlan::Host | UserPlan::Maps { .. } => None,
    };
    let greeted =
        |unit: &UnitPlan| begun.bus.filter(|bus| bus.user == unit.user).map_or_else(|| unit::connect(unit), Ok);
    let bus = plan.unit.as_ref().map(greeted).transpose()?;
    let streams = plan.log.as_ref().map(Streams::open).transpose()?.unwrap_or_default();
    let listen = plan.service.listen.as_ref().map_or(0, |listen| listen.count);
    let joined = plan.network.join().map(JoinPlan::open).transpose()?;
    let (end, child_end) = sync::pair().context("make a socket pair")?;
    let flags = plan.namespaces.clone_flags();
    let born = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs();
    let side = match &joined {
        None => sys::clone_process(flags).map_err(explain_clone)?,
        Some(joined) => joined.clone_process(flags, &plan.users)?,
    };
    let (pid, pidfd) = match side {
        Side::Child => {
            let upper = upper.as_ref().map(|upper| upper.lock.as_fd());
            let claimed = claim.iter().map(|claim| claim.lock().as_fd());
            let locks = claimed.chain(upper).chain(leases.iter().copied()).filter(|_| !may_trace_the_stub(plan));
            let kept: Vec<_> = locks.chain(sys::listen_fds(listen)).collect();
            child::enter(plan, &child_end, &streams, &kept, born)
        }
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop((child_end, streams));
    // A connection that was handed over ends when the payload ends it, not when this process does.
    sys::close_listen_fds(listen).context("close the sockets that were handed over")?;
    timings.mark("clone3");
    let holds_locks = !leases.is_empty() || plan.root.as_ref().is_some_and(|root| root.upper.is_some());
    let mut running = Running {
        plan,
        end: ManuallyDrop::new(end),
        pid,
        pidfd,
        helper: None,
        watcher: None,
        pasta: None,
        joined,
        grace: begun.grace,
        unit: None,
        view: None,
        state: None,
        holds_locks,
        go_sent: false,
        ready: false,
        let_go: false,
        ended: false,
    };
    match running.start(claim.as_ref(), bus, &signals, timings) {
        Ok(master) => running.supervise(&signals, master, timings),
        Err(error) => Err(running.cause(error, &signals)?),
    }
}

/// With SYS_PTRACE over the machine the payload could go by the stub's descriptors to where they are on the host; then the launcher
/// alone holds the locks.
fn may_trace_the_stub(plan: &Plan) -> bool {
    plan.users == UserPlan::Host && plan.capabilities.keeps("SYS_PTRACE")
}

/// The error of a start that a signal ended.
pub(crate) fn interrupted(signal: nix::sys::signal::Signal) -> anyhow::Error {
    interrupted_as(signal, NOT_RUN)
}

const NOT_RUN: &str = "before the command ran";

fn interrupted_as(signal: nix::sys::signal::Signal, when: &str) -> anyhow::Error {
    let status = u8::try_from(128 + signal as i32).unwrap_or(exit::FAILED);
    fault(format!("interrupted by {signal} {when}")).status(status).into()
}

fn not_shown(error: &anyhow::Error) {
    log::warn!("sandbox ps will not show this one: {error:#}");
}

fn explain_clone(error: std::io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
        }
        Some(libc::EACCES) => {
            "a security module forbids it: an AppArmor profile that confines sandbox (cat /proc/self/attr/current) needs: userns,"
        }
        Some(libc::ENOSPC) => {
            "sysctl -w user.max_user_namespaces=65536, and the like for the kind that is short: sysctl user"
        }
        _ => return anyhow::Error::new(error).context("make namespaces"),
    };
    fault(format!("make namespaces: {error}")).hint(hint).into()
}

/// With `--as-pid1` there is no stub that ends with the launcher, and a payload that changes its user has lost its parent-death
/// signal: this process, outside, ends it when the launcher's end of a pipe closes.
struct Watcher {
    pid: Pid,
    pidfd: OwnedFd,
    _pipe: OwnedFd,
}

impl Watcher {
    fn start(payload: &OwnedFd) -> Result<Watcher> {
        let (watched, held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        match sys::clone_process(0).context("start the process that watches for the launcher's end")? {
            Side::Child => {
                let _ = sys::close_all_but(&[watched.as_fd(), payload.as_fd()]);
                let _ = rustix::process::setsid();
                let _ = rustix::io::read(&watched, &mut [0]);
                let _ = rustix::process::pidfd_send_signal(payload, Signal::KILL);
                sys::exit_now(0)
            }
            Side::Parent(pid, pidfd) => Ok(Watcher { pid, pidfd, _pipe: held }),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

/// A child that lives. Dropping it leaves nothing behind: the child is killed, with it its PID namespace and its unit.
struct Running<'a> {
    plan: &'a Arc<Plan>,
    /// Closed by the end of this process.
    end: ManuallyDrop<ParentEnd>,
    pid: Pid,
    pidfd: OwnedFd,
    helper: Option<Helper>,
    watcher: Option<Watcher>,
    pasta: Option<Pasta>,
    joined: Option<Joined>,
    grace: Option<Grace>,
    unit: Option<Unit<'a>>,
    view: Option<View>,
    state: Option<StateFile>,
    /// The first process has locks on what it runs on, which the next command may want: its end is waited for.
    holds_locks: bool,
    /// The payload runs as soon as the child is ready.
    go_sent: bool,
    /// The child is, or was.
    ready: bool,
    /// The start is over: the payload was let go, and the child is ready.
    let_go: bool,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        if let Some(helper) = &self.helper {
            helper.wait();
        }
        self.pasta = None;
        // A scope ends with its last process; only what shares the host's PIDs may have left others in it.
        match &mut self.unit {
            Some(unit) if !self.plan.namespaces.has(Namespace::Pid) => unit.stop(),
            Some(unit) if !self.let_go => unit.stop_empty(),
            _ => {}
        }
    }
}

impl Running<'_> {
    /// Everything up to the moment when the payload may run and the launcher is there for it. The child and the helper work while systemd
    /// does; the master of the sandbox's terminal is returned.
    fn start(
        &mut self,
        claim: Option<&Claim>,
        bus: Option<Bus>,
        signals: &Signals,
        timings: &mut Timings,
    ) -> Result<Option<OwnedFd>> {
        self.pasta = self.plan.network.pasta().map(|plan| Pasta::prepare(plan, self.pid)).transpose()?;
        let beside = self.pasta.as_ref().map(Pasta::attendant);
        if self.plan.process.as_pid1 {
            self.watcher = Some(Watcher::start(&self.pidfd)?);
        }
        // The last process of this one is made: from here on it has a second thread, which does all that the child waits for. This one
        // asks systemd, which is waited for longest of all; whoever is woken by the request may take its CPU until the answer is there.
        self.start_helper(claim)?;
        timings.mark("helper");
        if let (Some(plan), Some(bus)) = (&self.plan.unit, bus) {
            self.unit = Some(Unit::begin(plan, self.pid, beside, self.pidfd.as_fd(), bus, signals.ending())?);
            timings.mark("unit asked for");
        }
        if claim.is_some() {
            streams::let_open();
        }
        self.plan.process.apply_from_outside(self.pid)?;
        let master = self.await_ready(signals, timings)?;
        if let Some(pasta) = &mut self.pasta {
            self.unit.iter_mut().for_each(Unit::leave_bus);
            pasta.await_ready(signals.ending())?;
            timings.mark("network up");
        }
        if let (Some(helper), Some(_)) = (&self.helper, &self.plan.procview) {
            self.view = Some(helper.files((!self.go_sent).then_some(signals))?);
        }
        self.send_go(timings)?;
        self.let_go = true;
        // For these the payload need not wait.
        self.grace = None;
        self.unit.iter_mut().for_each(Unit::leave_bus);
        Ok(master)
    }

    /// Lets the payload run, once.
    fn send_go(&mut self, timings: &Timings) -> Result<()> {
        if !self.go_sent {
            let tell = self.plan.service.tells_ready() || timings.wanted;
            self.end.send(&ToChild::Go { tell }).context("tell the child")?;
            self.go_sent = true;
        }
        Ok(())
    }

    /// The helper maps the IDs, makes the root with the host's privileges and sends it to the child itself.
    fn start_helper(&mut self, claim: Option<&Claim>) -> Result<()> {
        let work = Work {
            plan: Arc::clone(self.plan),
            pid: self.pid,
            base: claim.map_or(0, |claim| claim.base),
            joined: self.joined.as_ref().map(Joined::try_clone).transpose().context("share the network")?,
            end: self.end.try_clone().context("share the socket")?,
        };
        if self.plan.root.as_ref().is_none_or(|root| root.by_child) {
            self.view = work.without_helper()?;
        } else {
            self.helper = Some(Helper::start(work)?);
        }
        Ok(())
    }

    /// Writes down what others find it by, once; called when one of the two has come that are waited for, and there is time until the other.
    fn write_state(&mut self) {
        if self.state.is_some() {
            return;
        }
        match StateFile::write(self.plan, self.pid) {
            Ok(state) => self.state = state,
            Err(error) => not_shown(&error),
        }
    }

    /// The unit stands: it can be found.
    fn publish_state(&mut self) {
        if let Some(Err(error)) = self.state.as_mut().map(StateFile::publish) {
            not_shown(&error);
        }
    }

    /// Waits for the end of the first process inside; the status it leads to.
    fn wait_for_child(&mut self) -> Result<Ended> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .context("wait for the child")?;
        self.ended = true;
        let parts = status.map(|status| (status.exit_status(), status.terminating_signal()));
        let (exited, signaled) = parts.unwrap_or_default();
        Ok(Ended::from_waitid(exited, signaled))
    }

    /// Ends the first process inside, and with it all others; not before systemd is done with it, see [`child::enter`].
    fn kill(&mut self) {
        if let Some(unit) = &mut self.unit {
            unit.settle(self.pidfd.as_fd());
        }
        // ESRCH: it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        // It may wait for an answer about /proc, which not even that ends; the closing of the device does.
        self.view = None;
    }

    /// Why the start failed of which this side saw `error`: a signal first.
    fn cause(&mut self, error: anyhow::Error, signals: &Signals) -> Result<anyhow::Error> {
        Ok(match signals.ended_by()? {
            Some(signal) => self.interrupted_by(signal),
            None => self.first_failure(error),
        })
    }

    /// When the child reported a failure, or the process that attends to pasta, that is the cause of whatever this side saw.
    fn first_failure(&mut self, error: anyhow::Error) -> anyhow::Error {
        // Asked before the child is killed, which that process would see as a failure.
        let network = self.pasta.as_ref().and_then(Pasta::failure);
        let helpers = self.helper.as_ref().and_then(Helper::failure);
        self.kill();
        while let Ok(Some(message)) = self.end.receive() {
            if let ToParent::Failed(failure) = message {
                return failure.into_error();
            }
        }
        helpers.or(network).unwrap_or(error)
    }

    /// A signal ended the start: the child, told to go as soon as it is ready, may have been that before it was killed.
    fn interrupted_by(&mut self, signal: nix::sys::signal::Signal) -> anyhow::Error {
        self.kill();
        while self.go_sent
            && !self.ready
            && let Ok(Some(message)) = self.end.receive()
        {
            self.ready = matches!(message, ToParent::Ready(_));
        }
        let began = self.go_sent && self.ready;
        interrupted_as(signal, if began { "as the command began" } else { NOT_RUN })
    }

    /// Stays until the payload has ended.
    fn supervise(mut self, signals: &Signals, master: Option<OwnedFd>, timings: &mut Timings) -> Result<Ended> {
        // Where the next command may want the same directories its mounts have to be gone, with the payload under way.
        if let Some(helper) = self.helper.take_if(|_| self.holds_locks) {
            helper.join();
        }
        let view = self.view.take();
        let mut relay = self.relay(signals, master, view)?;
        let oom_kills = || self.unit.as_ref().and_then(Unit::oom_kills).filter(|kills| *kills > 0);
        let (mut out_of_memory, mut unreachable) = (None, false);
        let reported = relay.until_end(&mut |event| match event {
            Event::Settled => self.state.iter().for_each(|state| state.describe(self.plan)),
            Event::Said(ToParent::Executed) => {
                self.plan.service.executed();
                timings.mark("payload executed");
            }
            Event::Said(ToParent::Exited(status)) => {
                // Once the stub has ended, systemd removes the cgroup that counts them, and the kernel the network.
                out_of_memory = oom_kills();
                unreachable = *status != 0 && self.plan.network.was_missed(self.pid);
                if !self.outlives_launcher() {
                    self.end.close_half();
                }
            }
            Event::Said(_) => {}
        });
        let reported = match reported {
            Ok(reported) => reported,
            Err(error) => return Err(self.first_failure(error)),
        };
        if reported.is_none() {
            out_of_memory = oom_kills();
        }
        drop(relay);
        let pasta_ended = self.pasta.as_ref().is_some_and(Pasta::has_ended);
        let end = match reported {
            Some(status) => Ended::from_wait_status(status),
            None => self.wait_for_child()?,
        };
        // With a kept upper the next sandbox may start at once, with an image the next `image gc`: this one's overlay has to be gone.
        if self.holds_locks && !self.ended {
            self.wait_for_child()?;
        }
        self.ended = true;
        if let Some(state) = &self.state {
            state.ended(end.status);
        }
        timings.mark("ended");
        if !self.plan.process.quiet {
            // What kills everything in the unit kills both.
            tell(out_of_memory, pasta_ended && end.signal != Some(Signal::KILL.as_raw()), unreachable);
        }
        Ok(end)
    }

    /// Whether the stub ends no sooner than this process, which closes its end of the socket with all else. Its namespaces take long to take
    /// down, and it would have this one's CPU for that. In a scope nobody waits for it; a service's stub should be gone when systemd looks.
    fn outlives_launcher(&self) -> bool {
        let in_scope = self.plan.unit.as_ref().is_some_and(|unit| matches!(unit.kind, UnitKind::Scope));
        in_scope && !self.holds_locks && self.plan.namespaces.has(Namespace::Pid)
    }

    /// The relay of all that passes between the caller and the payload.
    fn relay<'r>(&'r self, signals: &'r Signals, master: Option<OwnedFd>, view: Option<View>) -> Result<Relay<'r>> {
        let payload = self.plan.process.as_pid1.then_some(self.pid);
        let mut relay = Relay::new(&self.end, &self.pidfd, signals, master, payload)?;
        if let Some(mut view) = view {
            view.open(procview::Subject::new(self.plan, self.pid));
            relay.serve(view);
        }
        if self.state.is_some() {
            relay.settle_after(DESCRIBED);
        }
        relay.stop_by(self.plan.unit.as_ref().and_then(|unit| unit.stop_signal));
        if let Some(log) = self.plan.log.as_ref().filter(|log| log.terminal) {
            relay.log_to(TerminalLog::open(log)?);
        }
        Ok(relay)
    }
}

/// Says what a caller should know of the end beside the exit status.
fn tell(out_of_memory: Option<u64>, pasta_ended: bool, unreachable: bool) {
    if let Some(kills) = out_of_memory {
        log::warn!("out of memory: the kernel killed {kills} of the sandbox's processes (memory.events)");
    }
    if pasta_ended {
        log::warn!("the network ended before the sandbox did: pasta was killed or has failed");
    }
    if unreachable {
        log::warn!("something inside tried to reach a network; there is none by default: --network pasta");
    }
}

fn unexpected(message: Option<ToParent>) -> anyhow::Error {
    match message {
        Some(ToParent::Failed(failure)) => failure.into_error(),
        None => fault("the sandbox's first process ended before the payload was started").into(),
        Some(other) => fault(format!("the child sent {other:?} out of turn")).into(),
    }
}
