//! The privileged helper of a start: it maps the IDs, and makes the root and the sandbox's own /proc files. A thread of the launcher, in the
//! sandbox's mount namespace or in one of its own: its root, working directory, umask and file system user are its own too, and unlike a
//! process it costs no copy of the launcher's memory.
//!
//! The child waits for nobody but this thread. The launcher's first one may get no CPU from the request to systemd until that has answered.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Pid;

use crate::error::{Result, fault};
use crate::part::mounts::{self, Root};
use crate::part::network::join::Joined;
use crate::part::rootfs::RootPlan;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::part::users;
use crate::plan::Plan;
use crate::procview::{self, Server, View};
use crate::signals::Signals;
use crate::sync::{Failure, ParentEnd, ToChild};
use crate::sys;

/// Longest wait for a helper that is no longer needed: one that is stuck, on a source of a bind that died, say, goes with this process.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it is waited for when it has nothing left to do but to hand over: long enough for a machine on which hundreds start at once.
const HAND_OVER: Duration = Duration::from_secs(30);

/// Of the helper's stack, in bytes: several times what it takes. With the usual 2 MiB, beside the heap, there is room for a huge page, which
/// the kernel then makes for it (transparent_hugepage=always, as on Debian): 2 MiB to clear in a start, and for as long as the sandbox lives.
const STACK: usize = 1 << 20;

/// What a first process is waited on with.
pub(super) struct Work {
    pub(super) plan: Arc<Plan>,
    /// The first process.
    pub(super) pid: Pid,
    /// What 0 inside is outside.
    pub(super) base: u32,
    /// The network that the sandbox joins.
    pub(super) joined: Option<Joined>,
    /// To the child, which gets what is made from the helper itself.
    pub(super) end: ParentEnd,
}

/// The sandbox's own /proc files and who answers for them, or why there is nobody.
type Files = Result<View>;

/// What the helper needs of the sandbox's namespaces.
#[derive(Debug)]
struct Namespaces {
    /// Where layers are idmapped.
    user: Option<OwnedFd>,
    /// Where the root is put together in it.
    mount: Option<OwnedFd>,
    /// The way to the sandbox's own /proc files.
    view: Option<View>,
}

impl Namespaces {
    /// Opens those of the first process, which has to have the caller's user still.
    ///
    /// # Errors
    /// When the process is gone.
    fn open(plan: &Plan, pid: Pid) -> Result<Namespaces> {
        let view = plan.procview.as_ref().map(|_| View::new(pid, plan.process.quiet)).transpose()?;
        let open = |kind: &str, wanted: bool| {
            wanted.then(|| users::open_namespace(pid, kind)).transpose().map(|file| file.map(OwnedFd::from))
        };
        let helped = plan.root.as_ref().filter(|root| !root.by_child);
        let mount = match (helped.filter(|root| !root.own_namespace), &view) {
            (Some(_), Some(view)) => Some(view.mount_namespace().context("share the mount namespace")?),
            (needed, _) => open("mnt", needed.is_some())?,
        };
        Ok(Namespaces { user: open("user", plan.users.own_range() && helped.is_some())?, mount, view })
    }
}

/// A helper at work. Dropping it waits for nothing, and gives nothing back: mostly this process ends next.
pub(super) struct Helper {
    thread: ManuallyDrop<JoinHandle<()>>,
    files: Receiver<Files>,
}

impl Helper {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(work: Work) -> Result<Helper> {
        sys::share_heap();
        let (to, files) = channel();
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || work.run(&to));
        Ok(Helper { thread: ManuallyDrop::new(thread.context("start the helper that makes the root")?), files })
    }

    /// The sandbox's own /proc files; asked for when the child is ready, since from then on the helper answers nothing. A payload that
    /// runs already waits with what it asks.
    ///
    /// # Errors
    /// When the helper could not answer the child, or one of `signals` ends the start.
    pub(super) fn files(&self, signals: Option<&Signals>) -> Result<View> {
        let deadline = Instant::now() + HAND_OVER;
        loop {
            match self.files.recv_timeout(Duration::from_millis(5)) {
                Ok(files) => return files,
                Err(RecvTimeoutError::Timeout)
                    if Instant::now() < deadline && !signals.map_or(Ok(false), Signals::has_ending)? => {}
                Err(_) => return Err(fault("the helper did not hand over the sandbox's own /proc files").into()),
            }
        }
    }

    /// What it failed of that it could not tell the child, which waited for its answer.
    pub(super) fn failure(&self) -> Option<anyhow::Error> {
        self.files.try_recv().ok()?.err()
    }

    /// Waits until it has ended and its mounts are gone, if it does not take too long.
    pub(super) fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The same, for a launcher that goes on: the helper's stack is given back.
    pub(super) fn join(self) {
        self.wait();
        if self.thread.is_finished() {
            // It has told the child what went wrong.
            let _ = ManuallyDrop::into_inner(self.thread).join();
        }
    }
}

impl Work {
    /// The whole of it. What fails is told to the child, which fails with it.
    fn run(self, to: &Sender<Files>) {
        self.help(to).unwrap_or_else(|error| self.tell_failure(&error));
    }

    /// What the child waits for first: its IDs. The namespaces are opened in time.
    ///
    /// # Errors
    /// When the kernel refuses a map, or the process is gone.
    fn map_ids(&self) -> Result<Namespaces> {
        // As soon as it can, the child makes its network and becomes another user. Then it takes SYS_PTRACE to look into it, and without
        // that it has to wait a little.
        let open = || Namespaces::open(&self.plan, self.pid);
        let early = if may_look_into_others() { None } else { Some(open()?) };
        if let Some((uid, gid)) = users::map_lines(&self.plan.users, self.base) {
            if !self.joined.as_ref().is_some_and(Joined::writes_maps) {
                users::write_maps(self.pid, &uid, &gid, rustix::process::geteuid().is_root())?;
            }
            self.end.send(&ToChild::Mapped).context("tell the child")?;
        }
        early.map_or_else(open, Ok)
    }

    /// All that is to be done where the child makes its root itself, or has none.
    ///
    /// # Errors
    /// As it says.
    pub(super) fn without_helper(&self) -> Result<Option<View>> {
        Ok(self.map_ids()?.view)
    }

    fn help(&self, to: &Sender<Files>) -> Result<()> {
        let Some(root) = &self.plan.root else { return Ok(()) };
        let namespaces = self.map_ids()?;
        // Back there at the end, whoever waits for this thread finds its mounts gone.
        let host = std::fs::File::open("/proc/self/ns/mnt").context("open the host's mount namespace")?;
        let inside = namespaces.mount.as_ref().map(AsFd::as_fd);
        match inside {
            Some(_) => sys::unshare(libc::CLONE_FS).context("have a root directory of its own")?,
            None => sys::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?,
        }
        // First, so that the child can ask for their names as soon as the root is made.
        let mut server = namespaces.view.as_ref().map(|_| self.mount_files()).transpose()?;
        let told = self
            .make_root(root, &namespaces, &mut server)
            .and_then(|root| self.end.send(&ToChild::Root(root)).context("tell the child"))
            // Not to be returned: the child hears of it when its questions have been answered.
            .inspect_err(|error| self.tell_failure(error));
        // Whoever answers there would wait for itself, if it looked at what these files cover. Where it may not go back, it has not been
        // there, and its own mount namespace ends with the thread.
        let _ = sys::setns(host.as_fd(), libc::CLONE_NEWNS);
        match (namespaces.view, server) {
            (Some(view), Some(server)) if told.is_ok() => hand_over(view, server, to),
            // How that ends is a consequence.
            (_, Some(mut server)) => drop(server.serve_names()),
            (_, None) => {}
        }
        Ok(())
    }

    /// If the child is gone the launcher knows why.
    fn tell_failure(&self, error: &anyhow::Error) {
        drop(self.end.send(&ToChild::Failed(Failure::from_error(error))));
    }

    /// Makes the root. The child, which waits for that, may ask for names of the /proc files before.
    fn make_root(&self, root: &RootPlan, namespaces: &Namespaces, server: &mut Option<Server>) -> Result<Root> {
        // What is made for the root is for everybody in it, whatever the caller's mask.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        // What of /sys is made here shows the network.
        self.joined.as_ref().map_or(Ok(()), Joined::enter)?;
        let inside = namespaces.mount.as_ref().map(AsFd::as_fd);
        let ids = Ids { base: self.base, userns: namespaces.user.as_ref().map(AsFd::as_fd), inside };
        // A server that is gone the child sees as a failure, and says what it was at.
        let answer = || {
            if server.as_mut().is_some_and(|server| server.serve(None).is_err()) {
                *server = None;
            }
        };
        let (tree, is_attached) = assemble(root, &ids, answer)?;
        // Not under a child that may still have to open its network in the host's /proc.
        // Nor into a directory that is for the sandbox's own root alone, and this process has no right to pass that over.
        let is_ours = is_attached && self.plan.network.pasta().is_none() && rustix::process::fchdir(&tree).is_ok();
        if is_ours {
            mounts::pivot()?;
        }
        Ok(Root { tree, is_ours })
    }

    /// Mounts the sandbox's own /proc files, and sends them to the child.
    fn mount_files(&self) -> Result<Server> {
        let device = procview::mount::open().context("open /dev/fuse")?;
        let mount = procview::mount::make(device.as_fd())?;
        self.end.send(&ToChild::View(mount)).context("tell the child")?;
        Ok(Server::new(device))
    }
}

/// Answers the child as long as it is not ready, and leaves the rest to the launcher.
fn hand_over(mut view: View, mut server: Server, to: &Sender<Files>) {
    // A launcher that does not listen any more has another reason to fail.
    let _ = match server.serve_names().context("answer readers of /proc") {
        Ok(()) => {
            view.serve(server);
            to.send(Ok(view))
        }
        // Said before the device is closed, which the child sees as a failure.
        Err(error) => to.send(Err(error)),
    };
}

/// Whether this process may look into one of another user; else only as long as that is still its own. A plain user's child stays theirs.
fn may_look_into_others() -> bool {
    let has = |sets: rustix::thread::CapabilitySets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_PTRACE);
    !rustix::process::geteuid().is_root() || rustix::thread::capabilities(None).is_ok_and(has)
}
