//! Terminals: the sandbox's own pseudo-terminal, opened from its own /dev/pts so that ttyname(3) works inside.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;

use crate::error::Result;
use crate::sys;

/// Opens a new terminal: its master, for the launcher, and the terminal itself.
///
/// # Errors
/// When /dev/pts is missing or the kernel has no more terminals.
pub(crate) fn open() -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()) {
        // With the host's mounts that one may be closed to everybody.
        Err(rustix::io::Errno::ACCESS) => rustix::fs::openat(CWD, "/dev/ptmx", flags, Mode::empty()),
        opened => opened,
    };
    let master = master.context("open /dev/pts/ptmx")?;
    rustix::pty::unlockpt(&master).context("unlock the terminal")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, peer).context("open the terminal")?;
    Ok((master, terminal))
}

/// Makes `terminal` standard input, output and error of this session, and its controlling terminal.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn take(terminal: &OwnedFd, owner: u32) -> Result<()> {
    if owner != 0 {
        // The group stays: tty, as pts(4) has it.
        rustix::fs::fchown(terminal, Some(Uid::from_raw(owner)), None).context("own the terminal")?;
    }
    sys::set_controlling_terminal(terminal.as_fd()).context("take the terminal")?;
    rustix::stdio::dup2_stdin(terminal).context("use the terminal as standard input")?;
    rustix::stdio::dup2_stdout(terminal).context("use the terminal as standard output")?;
    rustix::stdio::dup2_stderr(terminal).context("use the terminal as standard error")
}
