//! The privileged helper of a start: it makes the root, and answers for the files of /proc until the launcher can. A thread of the
//! launcher, in the sandbox's mount namespace or in one of its own: its root, working directory, umask and file system user are its own
//! too, and unlike a process it costs no copy of the launcher's memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::process::Pid;

use crate::error::{Result, fault};
use crate::part::network::join::Joined;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::part::users;
use crate::plan::Plan;
use crate::procview::{self, Served, Server};
use crate::sync::{Failure, ParentEnd, ToChild};
use crate::sys;

/// Longest wait for a helper that is no longer needed: one that is stuck, on a source of a bind that died, say, goes with this process.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the helper needs of the launcher.
pub(super) struct Work {
    /// Has a root.
    pub(super) plan: Arc<Plan>,
    /// What 0 inside is outside.
    pub(super) base: u32,
    /// Of the sandbox.
    pub(super) namespaces: Namespaces,
    /// The network that the sandbox joins.
    pub(super) joined: Option<Joined>,
    /// To the child, which gets what is made from the helper itself.
    pub(super) end: ParentEnd,
    /// The view's files.
    pub(super) files: Option<Files>,
}

/// What the helper needs of the sandbox's namespaces.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Where layers are idmapped.
    user: Option<OwnedFd>,
    /// Where the root is put together in it.
    mount: Option<OwnedFd>,
}

impl Namespaces {
    /// Opens those of the first process, which has to have the caller's user still.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn open(plan: &Plan, pid: Pid, is_mapped: bool) -> Result<Namespaces> {
        let open = |kind: &str, wanted: bool| {
            wanted.then(|| users::open_namespace(pid, kind)).transpose().map(|file| file.map(OwnedFd::from))
        };
        let helped = plan.root.as_ref().filter(|root| !root.by_child);
        let mount = open("mnt", helped.is_some_and(|root| !root.own_namespace))?;
        Ok(Namespaces { user: open("user", is_mapped && helped.is_some())?, mount })
    }
}

/// What the launcher and its helper share of the view's files.
pub(super) struct Files {
    /// Answers.
    pub(super) server: Server,
    /// Says that the device has its mount: before, nobody can answer on it (EPERM).
    pub(super) mounted: Receiver<()>,
}

/// How the helper learns that it is no longer needed.
struct Stop {
    /// Held while requests are answered: once this is set none is taken any more.
    asked: Mutex<bool>,
    /// Readable then, and when there is a failure.
    wake: OwnedFd,
    /// Why readers of /proc get no answer any more. The child may be one of them, and hear nothing.
    failure: Mutex<Option<anyhow::Error>>,
}

/// A helper at work. Dropping it waits for nothing.
pub(super) struct Helper {
    thread: JoinHandle<()>,
    stop: Arc<Stop>,
}

impl Helper {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(work: Work) -> Result<Helper> {
        let what = "start the helper that makes the root";
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).context(what)?;
        let stop = Arc::new(Stop { asked: Mutex::new(false), wake, failure: Mutex::new(None) });
        let seen = Arc::clone(&stop);
        sys::share_heap();
        let thread = std::thread::Builder::new().spawn(move || work.run(&seen)).context(what)?;
        Ok(Helper { thread, stop })
    }

    /// Lets it end: from here on it answers nothing.
    pub(super) fn dismiss(&self) {
        *self.stop.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // Fails for a counter that is full only.
        let _ = rustix::io::write(&self.stop.wake, &1_u64.to_ne_bytes());
    }

    /// Readable when [`Helper::failure`] has something to say.
    pub(super) fn trouble(&self) -> BorrowedFd<'_> {
        self.stop.wake.as_fd()
    }

    /// Why it answers nobody any more.
    pub(super) fn failure(&self) -> Option<anyhow::Error> {
        self.stop.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until it has ended and its mounts are gone, if it does not take too long.
    pub(super) fn wait(&self) {
        self.dismiss();
        let deadline = Instant::now() + PATIENCE;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Work {
    /// The whole of it. What fails is told to the child, which fails with it; if that one is gone the launcher knows why.
    fn run(mut self, stop: &Stop) {
        if let Err(error) = self.help(stop) {
            drop(self.end.send(&ToChild::Failed(Failure::from_error(&error))));
        }
    }

    fn help(&mut self, stop: &Stop) -> Result<()> {
        let Some(root) = &self.plan.root else { return Ok(()) };
        // Back there at the end, whoever waits for this thread finds its mounts gone.
        let host = std::fs::File::open("/proc/thread-self/ns/mnt").context("open the host's mount namespace")?;
        let inside = self.namespaces.mount.as_ref().map(AsFd::as_fd);
        match inside {
            Some(_) => sys::unshare(libc::CLONE_FS).context("have a root directory of its own")?,
            None => sys::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?,
        }
        // What is made for the root is for everybody in it, whatever the caller's mask.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        // What of /sys is made here shows the network.
        self.joined.as_ref().map_or(Ok(()), Joined::enter)?;
        let ids = Ids { base: self.base, userns: self.namespaces.user.as_ref().map(AsFd::as_fd), inside };
        self.end.send(&ToChild::Tree(assemble(root, &ids)?)).context("tell the child")?;
        if inside.is_some() {
            // Nothing ends with that, and the sandbox's namespace is to end with the sandbox.
            let _ = sys::setns(host.as_fd(), libc::CLONE_NEWNS);
        }
        if let Some(Err(error)) = self.files.as_mut().map(|files| files.answer(stop)) {
            *stop.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            let _ = rustix::io::write(&stop.wake, &1_u64.to_ne_bytes());
        }
        // Where it may not, the mount namespace ends a moment later, with the thread.
        let _ = sys::setns(host.as_fd(), libc::CLONE_NEWNS);
        Ok(())
    }
}

impl Files {
    /// Answers until the launcher can: that waits for systemd, and the child wants every file bound meanwhile.
    fn answer(&mut self, stop: &Stop) -> Result<()> {
        self.mounted.recv().map_err(|_| fault("the launcher has no mount of the view"))?;
        loop {
            {
                let asked = stop.asked.lock().unwrap_or_else(PoisonError::into_inner);
                if *asked || self.server.serve(None).context("answer readers of /proc")? == Served::Ended {
                    return Ok(());
                }
            }
            let mut fds = [
                PollFd::from_borrowed_fd(self.server.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.wake.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for readers of /proc"),
            }
        }
    }
}

/// The view's files for the helper, with what tells it of the mount, and the same for the launcher.
///
/// # Errors
/// When the device cannot be opened.
pub(super) fn files() -> std::io::Result<(Files, std::sync::mpsc::SyncSender<()>, Server)> {
    let device = procview::mount::open()?;
    let (tell, mounted) = std::sync::mpsc::sync_channel(1);
    let own = Server::new(device.try_clone()?);
    Ok((Files { server: Server::new(device), mounted }, tell, own))
}
