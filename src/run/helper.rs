//! The privileged helper of a start: it makes the root, and answers for the files of /proc until the launcher can.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};

use crate::error::{Result, fault};
use crate::part::rootfs::RootPlan;
use crate::part::rootfs::assemble::{Ids, assemble};
use crate::procview::{self, Served, Server};
use crate::sync::{ParentEnd, ToChild};

/// What the launcher and its helper share of the view's files.
pub(super) struct Files {
    /// Answers.
    pub(super) server: Server,
    /// Who ends the helper.
    pub(super) launcher: Pid,
    /// Readable when the device has its mount: before, nobody can answer on it (EPERM).
    pub(super) mounted: OwnedFd,
}

impl Files {
    /// Opens the device.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open() -> std::io::Result<Files> {
        let mounted = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Files { server: Server::new(procview::mount::open()?), launcher: rustix::process::getpid(), mounted })
    }
}

/// The helper's work: what it makes goes to the child, which then needs somebody to answer for the files of the view. That is this
/// process until the launcher ends it: the launcher itself waits for systemd meanwhile.
///
/// # Errors
/// When the root cannot be made, or nobody can be answered.
pub(super) fn help(root: &RootPlan, ids: &Ids<'_>, end: &ParentEnd, files: Option<&mut Files>) -> Result<()> {
    end.send(&ToChild::Tree(assemble(root, ids)?)).context("tell the child")?;
    let Some(Files { server, launcher, mounted }) = files else { return Ok(()) };
    // Writing as another owner has cleared it, prctl(2); and a launcher that is gone already sends no signal.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tie the helper to its launcher")?;
    if rustix::process::getppid() != Some(*launcher) {
        return Err(fault("the launcher is gone").into());
    }
    rustix::io::read(mounted, &mut [0; 8]).context("wait for the launcher")?;
    while server.serve(None).context("answer readers of /proc")? == Served::All {
        let mut fds = [PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for readers of /proc"),
        }
    }
    Ok(())
}
