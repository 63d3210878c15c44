//! The privileged helper of a start: it makes the root. A thread of the launcher, in the sandbox's mount namespace or in one of its own:
//! its root, working directory, umask and file system user are its own too, and unlike a process it costs no copy of the launcher's
//! memory.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Pid;

use crate::error::Result;
use crate::part::mounts::{self, Root};
use crate::part::network::join::Joined;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::part::users;
use crate::plan::Plan;
use crate::procview::View;
use crate::sync::{Failure, ParentEnd, ToChild};
use crate::sys;

/// Longest wait for a helper that is no longer needed: one that is stuck, on a source of a bind that died, say, goes with this process.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of the helper's stack, in bytes: several times what it takes. With the usual 2 MiB, beside the heap, there is room for a huge page, which
/// the kernel then makes for it (transparent_hugepage=always, as on Debian): 2 MiB to clear in a start, and for as long as the sandbox lives.
const STACK: usize = 1 << 20;

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
    /// Opens those of the first process, which has to have the caller's user still; `view` has one of them open already.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn open(plan: &Plan, pid: Pid, is_mapped: bool, view: Option<&View>) -> Result<Namespaces> {
        let open = |kind: &str, wanted: bool| {
            wanted.then(|| users::open_namespace(pid, kind)).transpose().map(|file| file.map(OwnedFd::from))
        };
        let helped = plan.root.as_ref().filter(|root| !root.by_child);
        let mount = match (helped.filter(|root| !root.own_namespace), view) {
            (Some(_), Some(view)) => Some(view.mount_namespace().context("share the mount namespace")?),
            (needed, _) => open("mnt", needed.is_some())?,
        };
        Ok(Namespaces { user: open("user", is_mapped && helped.is_some())?, mount })
    }
}

/// A helper at work. Dropping it waits for nothing, and gives nothing back: mostly this process ends next.
pub(super) struct Helper {
    thread: ManuallyDrop<JoinHandle<()>>,
}

impl Helper {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(work: Work) -> Result<Helper> {
        sys::share_heap();
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || work.run());
        Ok(Helper { thread: ManuallyDrop::new(thread.context("start the helper that makes the root")?) })
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
    /// The whole of it. What fails is told to the child, which fails with it; if that one is gone the launcher knows why.
    fn run(self) {
        if let Err(error) = self.help() {
            drop(self.end.send(&ToChild::Failed(Failure::from_error(&error))));
        }
    }

    fn help(&self) -> Result<()> {
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
        let (tree, is_attached) = assemble(root, &ids)?;
        // Not under a child that may still have to open its network in the host's /proc.
        // Nor into a directory that is for the sandbox's own root alone, and this process has no right to pass that over.
        let is_ours = is_attached && self.plan.network.pasta().is_none() && rustix::process::fchdir(&tree).is_ok();
        if is_ours {
            mounts::pivot()?;
        }
        self.end.send(&ToChild::Root(Root { tree, is_ours })).context("tell the child")?;
        // Where it may not, the mount namespace ends a moment later, with the thread.
        let _ = sys::setns(host.as_fd(), libc::CLONE_NEWNS);
        Ok(())
    }
}
