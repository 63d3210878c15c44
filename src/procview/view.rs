//! The view of one sandbox while it lives: its parts in the launcher's poll loop, and its end when something of it fails.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::reader::{Reader, Subject};
use super::server::{Served, Server};
use super::sysinfo::Calls;
use crate::error::Result;
use crate::sys::{self, Side};

/// What of a view the launcher waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Requests for files.
    Files,
    /// System calls.
    Calls,
}

/// The way into a sandbox's mount namespace, opened before its first process hides itself.
#[derive(Debug)]
struct Door {
    /// Entered first where this process is not root.
    user: Option<File>,
    mount: File,
}

/// The files of one sandbox, and who answers for them.
#[derive(Debug)]
pub(crate) struct View {
    door: Door,
    /// Nothing is said when it breaks.
    quiet: bool,
    files: Option<Server>,
    calls: Option<Calls>,
    reader: Option<Reader>,
    /// A process that takes the mounts away.
    _detacher: Option<Child>,
}

/// A child that is ended and waited for with its owner.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    pub(super) fn new(pid: Pid, pidfd: OwnedFd) -> Child {
        Child { pid, pidfd }
    }

    /// Readable when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it did what it was for; called when it has ended.
    pub(super) fn succeeded(&self) -> bool {
        let flags = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), flags);
        matches!(status, Ok(Some(status)) if status.exit_status() == Some(0))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // ESRCH: it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

impl View {
    /// Of the sandbox whose first process is `pid`; called before that one makes itself unreadable to a plain user.
    ///
    /// # Errors
    /// When its namespaces cannot be opened.
    pub(crate) fn new(pid: Pid, quiet: bool) -> Result<View> {
        let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).context("open the sandbox's namespaces");
        let user = if rustix::process::geteuid().is_root() { None } else { Some(open("user")?) };
        Ok(View {
            door: Door { user, mount: open("mnt")? },
            quiet,
            files: None,
            calls: None,
            reader: None,
            _detacher: None,
        })
    }

    /// The sandbox's mount namespace once more.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub(crate) fn mount_namespace(&self) -> std::io::Result<OwnedFd> {
        self.door.mount.try_clone().map(OwnedFd::from)
    }

    /// Takes the device over that the mount was made on.
    pub(crate) fn serve(&mut self, server: Server) {
        self.files = Some(server);
    }

    /// From now on files can be read; the sandbox's first process is in its unit.
    pub(crate) fn open(&mut self, subject: Subject) {
        self.reader = Some(Reader::new(subject));
    }

    /// Answers system calls, too.
    pub(crate) fn answer(&mut self, listener: OwnedFd) {
        self.calls = Some(Calls::new(listener));
    }

    /// What is to be waited for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (Part, BorrowedFd<'_>)> {
        let files = self.files.iter().map(|server| (Part::Files, server.as_fd()));
        let calls = self.calls.iter().map(|calls| (Part::Calls, calls.waits_for()));
        files.chain(calls)
    }

    /// The files alone, to be polled.
    pub(crate) fn files(&self) -> Option<PollFd<'_>> {
        self.files.as_ref().map(|server| PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN))
    }

    /// The same as long as the child of a start looks up names: what is asked after that is for [`View::turn`].
    pub(crate) fn names(&self) -> Option<PollFd<'_>> {
        self.files.as_ref().filter(|server| !server.was_listed()).and_then(|_| self.files())
    }

    /// Answers the child, which looks up the names that it binds.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn answer_names(&mut self) -> Result<()> {
        let Some(server) = &mut self.files else { return Ok(()) };
        if server.serve(None).context("answer readers of /proc")? == Served::Ended {
            self.files = None;
        }
        Ok(())
    }

    /// Answers what is asked of `part`, of which poll(2) said `flags`.
    pub(crate) fn turn(&mut self, part: Part, flags: PollFlags) {
        match part {
            Part::Files => self.turn_files(),
            Part::Calls if flags.contains(PollFlags::IN) => self.turn_calls(),
            // Nobody is left who could call. To ask for a call all the same would be to wait for one.
            Part::Calls => self.calls = None,
        }
    }

    fn turn_calls(&mut self) {
        let (Some(calls), Some(reader)) = (&mut self.calls, &mut self.reader) else { return };
        if calls.turn(reader).is_err() {
            self.calls = None;
        }
    }

    fn turn_files(&mut self) {
        let Some(server) = &mut self.files else { return };
        match server.serve(self.reader.as_mut()) {
            Ok(Served::All) => {}
            Ok(Served::Ended) => self.files = None,
            Err(error) => {
                if !self.quiet {
                    log::warn!("/proc inside shows this machine's memory and CPUs from now on: /dev/fuse: {error}");
                }
                // Closed first: whoever waits for an answer gets an error, instead of what the detaching is to end.
                self.files = None;
                self.detach();
            }
        }
    }

    /// Lets the kernel's own files show through, by a process of its own: this one never leaves its namespaces.
    fn detach(&mut self) {
        match sys::clone_process(0) {
            Ok(Side::Child) => {
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
                let status = self.door.enter().map(|()| unmount_all());
                sys::exit_now(u8::from(status.is_err()))
            }
            Ok(Side::Parent(pid, pidfd)) => self._detacher = Some(Child::new(pid, pidfd)),
            Err(error) => log::warn!("take the mounts over /proc away: {error}"),
        }
    }
}

impl Door {
    fn enter(&self) -> std::io::Result<()> {
        if let Some(user) = &self.user {
            sys::setns(user.as_fd(), libc::CLONE_NEWUSER)?;
        }
        sys::setns(self.mount.as_fd(), libc::CLONE_NEWNS)
    }
}

fn unmount_all() {
    for (_, path) in super::bound() {
        // EINVAL: this kernel has no such file, nothing was mounted there.
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}
