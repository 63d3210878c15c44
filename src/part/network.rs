//! The network: a namespace of its own with the loopback interface up, or the host's.

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::AsFd;

use crate::error::Result;
use crate::sys;

/// Makes a network namespace and brings its loopback interface up.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unshare() -> Result<()> {
    sys::unshare(libc::CLONE_NEWNET).context("unshare the network namespace")?;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("make a socket to set lo up")?;
    sys::interface_up(socket.as_fd(), "lo").context("set lo up")
}
