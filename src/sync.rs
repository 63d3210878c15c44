//! The protocol between the launcher and the child, on one SOCK_SEQPACKET pair.
//!
//! ```text
//! launcher (or its helper)                         child, later the stub
//!   Mapped            ── id maps are written ──▶     becomes root of its user namespace
//!   View + fd         ── the /proc files' mount ▶    lists it, for which the helper answers, and binds from it later
//!                     ◀── View + fd ────────────     a plain user's: the device to answer on
//!   Root + fd         ── the assembled root ───▶     attaches it and pivots, if that is not done; mounts proc and sysfs
//!   Failed            ── the helper's failure ─▶     hands it back as its own: one path for errors
//!                     ◀── Network + fd ─────────     only for pasta, which starts when the unit stands
//!                     ◀── Ready (+ pty) ────────     everything that does not need the unit is done
//!   Go                ── limits are in force ──▶     cgroup and time namespace, payload; where nothing else is waited for it may come
//!                                                    at any time before Ready, and is for when this has been said
//!                     ◀── Calls + fd ───────────     the system calls that the launcher answers
//!                     ◀── Executed ─────────────     the payload's execve succeeded, where Go asked for that
//!   Signal n | Stop   ── relayed ──────────────▶
//!                     ◀── Exited status ────────     the payload ended
//!   (closes its half) ── nothing more is said ─▶     the stub ends, and with it the unit; in a scope the launcher just ends
//!                     ◀── Failed ───────────────     at any time: the payload never runs
//! ```
//! An end that closes early is seen on the other side: the launcher dying ends the child, the child dying ends
//! the wait of the launcher.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use rustix::process::Pid;

use crate::error::{Fault, fault};
use crate::part::mounts::Root;

/// Longest message in bytes; a failure's text is cut to fit.
const MAX: usize = 4096;

/// What the launcher tells the child.
#[derive(Debug)]
pub(crate) enum ToChild {
    /// The id maps of the user namespace are written.
    Mapped,
    /// The assembled root.
    Root(Root),
    /// The mount of the sandbox's own /proc files, detached.
    View(OwnedFd),
    /// The network namespace that pasta is for; to the process that attends to it.
    Network(OwnedFd),
    /// The payload may run as soon as the child is ready, and when it does that is to be told.
    Go { tell: bool },
    /// Send this signal to the payload.
    Signal(i32),
    /// Send this signal to the payload's process group (it came from the terminal).
    SignalGroup(i32),
    /// The helper failed.
    Failed(Failure),
}

/// What the child tells the launcher.
#[derive(Debug)]
pub(crate) enum ToParent {
    /// Everything that does not need the unit is done; with the master of the sandbox's terminal, if it has one.
    Ready(Option<OwnedFd>),
    /// The device that the sandbox's own /proc files are to be answered on.
    View(OwnedFd),
    /// System calls of the payload that are to be answered on this descriptor.
    Calls(OwnedFd),
    /// The sandbox's first process, from the one that made it in the network that is joined.
    Child(Pid, OwnedFd),
    /// The network namespace is made; with it, where pasta waits for it.
    Network(OwnedFd),
    /// The payload runs.
    Executed,
    /// The payload ended with this status, encoded as by wait(2).
    Exited(i32),
    /// The payload will never run.
    Failed(Failure),
}

/// Why a start failed on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit status it leads to: 125, 126 or 127.
    pub(crate) status: u8,
    /// One line, with the object in it.
    pub(crate) message: String,
    /// What mends it; may be empty.
    pub(crate) hint: String,
}

impl Failure {
    /// Makes the failure that the other side prints from an error of this side.
    pub(crate) fn from_error(error: &anyhow::Error) -> Failure {
        let fault = error.chain().find_map(|cause| cause.downcast_ref::<Fault>());
        Failure {
            status: fault.map_or(125, Fault::exit_status),
            message: crate::error::line(error),
            hint: fault.and_then(Fault::hint_text).unwrap_or_default().to_owned(),
        }
    }

    /// The error of this side that says what failed on the other.
    pub(crate) fn into_error(self) -> anyhow::Error {
        let fault = fault(self.message).status(self.status);
        if self.hint.is_empty() { fault.into() } else { fault.hint(self.hint).into() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![b'F', self.status];
        bytes.extend_from_slice(self.message.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.hint.as_bytes());
        bytes.truncate(MAX);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Failure> {
        let (status, text) = bytes.split_first()?;
        let mut parts = text.splitn(2, |b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        Some(Failure { status: *status, message: parts.next()?, hint: parts.next().unwrap_or_default() })
    }
}

/// Makes the two ends.
///
/// # Errors
/// When no socket can be had.
pub(crate) fn pair() -> io::Result<(ParentEnd, ChildEnd)> {
    let (parent, child) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((ParentEnd(parent), ChildEnd(child)))
}

/// The launcher's end: sends [`ToChild`], receives [`ToParent`].
#[derive(Debug)]
pub(crate) struct ParentEnd(OwnedFd);

/// The child's end: sends [`ToParent`], receives [`ToChild`].
#[derive(Debug)]
pub(crate) struct ChildEnd(OwnedFd);

impl AsFd for ParentEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ParentEnd {
    /// The same end once more, for another thread; the child sees the end when both are gone.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<ParentEnd> {
        self.0.try_clone().map(ParentEnd)
    }

    /// Nothing more will be sent: what the child receives next is the end.
    pub(crate) fn close_half(&self) {
        // ENOTCONN: the child is gone already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }

    /// Tells the child.
    ///
    /// # Errors
    /// EPIPE when the child is gone.
    pub(crate) fn send(&self, message: &ToChild) -> io::Result<()> {
        match message {
            ToChild::Mapped => send(&self.0, b"M", None),
            ToChild::Root(Root { tree, is_ours }) => {
                send(&self.0, if *is_ours { b"TO" } else { b"T" }, Some(tree.as_fd()))
            }
            ToChild::View(mount) => send(&self.0, b"V", Some(mount.as_fd())),
            ToChild::Network(namespace) => send(&self.0, b"N", Some(namespace.as_fd())),
            ToChild::Go { tell } => send(&self.0, if *tell { b"GX" } else { b"G" }, None),
            ToChild::Signal(number) => send(&self.0, &number_message(b'S', *number), None),
            ToChild::SignalGroup(number) => send(&self.0, &number_message(b'P', *number), None),
            ToChild::Failed(failure) => send(&self.0, &failure.encode(), None),
        }
    }

    /// Waits for the child's next message; `None` when the child's end is closed.
    ///
    /// # Errors
    /// EBADMSG for a message that is no message of this protocol.
    pub(crate) fn receive(&self) -> io::Result<Option<ToParent>> {
        let Some((bytes, fd)) = receive(&self.0)? else {
            return Ok(None);
        };
        let message = match (bytes.split_first(), fd) {
            (Some((b'R', _)), pty) => ToParent::Ready(pty),
            (Some((b'V', _)), Some(device)) => ToParent::View(device),
            (Some((b'A', _)), Some(listener)) => ToParent::Calls(listener),
            (Some((b'N', _)), Some(namespace)) => ToParent::Network(namespace),
            (Some((b'C', pid)), Some(pidfd)) => {
                let number = Some(decode_number(pid)?).filter(|number| *number > 0);
                ToParent::Child(number.and_then(Pid::from_raw).ok_or_else(bad_message)?, pidfd)
            }
            (Some((b'X', _)), None) => ToParent::Executed,
            (Some((b'E', number)), None) => ToParent::Exited(decode_number(number)?),
            (Some((b'F', failure)), None) => ToParent::Failed(Failure::decode(failure).ok_or_else(bad_message)?),
            _ => return Err(bad_message()),
        };
        Ok(Some(message))
    }
}

impl ChildEnd {
    /// Tells the launcher.
    ///
    /// # Errors
    /// EPIPE when the launcher is gone.
    pub(crate) fn send(&self, message: &ToParent) -> io::Result<()> {
        match message {
            ToParent::Ready(pty) => send(&self.0, b"R", pty.as_ref().map(AsFd::as_fd)),
            ToParent::View(device) => send(&self.0, b"V", Some(device.as_fd())),
            ToParent::Calls(listener) => send(&self.0, b"A", Some(listener.as_fd())),
            ToParent::Network(namespace) => send(&self.0, b"N", Some(namespace.as_fd())),
            ToParent::Child(pid, pidfd) => {
                send(&self.0, &number_message(b'C', pid.as_raw_nonzero().get()), Some(pidfd.as_fd()))
            }
            ToParent::Executed => send(&self.0, b"X", None),
            ToParent::Exited(status) => send(&self.0, &number_message(b'E', *status), None),
            ToParent::Failed(failure) => send(&self.0, &failure.encode(), None),
        }
    }

    /// Whether the launcher is gone, without waiting for a message.
    pub(crate) fn launcher_is_gone(&self) -> bool {
        is_gone(self.0.as_fd())
    }

    /// Waits for the launcher's next message; `None` when the launcher is gone.
    ///
    /// # Errors
    /// EBADMSG for a message that is no message of this protocol.
    pub(crate) fn receive(&self) -> io::Result<Option<ToChild>> {
        let Some((bytes, fd)) = receive(&self.0)? else {
            return Ok(None);
        };
        let message = match (bytes.split_first(), fd) {
            (Some((b'M', _)), None) => ToChild::Mapped,
            (Some((b'T', ours)), Some(tree)) => ToChild::Root(Root { tree, is_ours: !ours.is_empty() }),
            (Some((b'V', _)), Some(mount)) => ToChild::View(mount),
            (Some((b'N', _)), Some(namespace)) => ToChild::Network(namespace),
            (Some((b'G', tell)), None) => ToChild::Go { tell: !tell.is_empty() },
            (Some((b'S', number)), None) => ToChild::Signal(decode_number(number)?),
            (Some((b'P', number)), None) => ToChild::SignalGroup(decode_number(number)?),
            (Some((b'F', failure)), None) => ToChild::Failed(Failure::decode(failure).ok_or_else(bad_message)?),
            _ => return Err(bad_message()),
        };
        Ok(Some(message))
    }
}

/// Whether nobody has the other end of this socket or pipe any more, without waiting.
pub(crate) fn is_gone(end: BorrowedFd<'_>) -> bool {
    let mut ends = [PollFd::from_borrowed_fd(end, PollFlags::empty())];
    let polled = rustix::event::poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

fn bad_message() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADMSG)
}

fn number_message(tag: u8, number: i32) -> [u8; 5] {
    let [a, b, c, d] = number.to_ne_bytes();
    [tag, a, b, c, d]
}

fn decode_number(bytes: &[u8]) -> io::Result<i32> {
    bytes.try_into().map(i32::from_ne_bytes).map_err(|_| bad_message())
}

fn send(socket: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// One message and the descriptor in it; `None` at the end of the stream.
fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut slice = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // Longer than any of ours: its beginning is no message.
            Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => return Err(bad_message()),
            Ok(message) => break message.bytes,
            // The other end closed with messages from here unread: told once, before what it had sent itself; unix(7).
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Some((bytes, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let (parent, child) = pair().unwrap();
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let failure = Failure { status: 127, message: "run x: not found".into(), hint: String::new() };
        parent.send(&ToChild::Mapped).unwrap();
        parent.send(&ToChild::Root(Root { tree: file(), is_ours: true })).unwrap();
        parent.send(&ToChild::Root(Root { tree: file(), is_ours: false })).unwrap();
        parent.send(&ToChild::View(file())).unwrap();
        parent.send(&ToChild::Go { tell: false }).unwrap();
        parent.send(&ToChild::Go { tell: true }).unwrap();
        parent.send(&ToChild::Signal(15)).unwrap();
        parent.send(&ToChild::SignalGroup(2)).unwrap();
        parent.send(&ToChild::Failed(failure.clone())).unwrap();
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Mapped)));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Root(Root { is_ours: true, .. }))));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Root(Root { is_ours: false, .. }))));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::View(_))));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Go { tell: false })));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Go { tell: true })));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Signal(15))));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::SignalGroup(2))));
        assert!(matches!(child.receive().unwrap(), Some(ToChild::Failed(f)) if f == failure));
        child.send(&ToParent::Ready(Some(file()))).unwrap();
        child.send(&ToParent::Ready(None)).unwrap();
        child.send(&ToParent::View(file())).unwrap();
        child.send(&ToParent::Calls(file())).unwrap();
        child.send(&ToParent::Executed).unwrap();
        child.send(&ToParent::Exited(-7)).unwrap();
        child.send(&ToParent::Failed(failure.clone())).unwrap();
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Ready(Some(_)))));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Ready(None))));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::View(_))));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Calls(_))));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Executed)));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Exited(-7))));
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Failed(f)) if f == failure));
    }

    #[test]
    fn a_closed_end_is_seen_and_a_long_failure_is_cut() {
        let (parent, child) = pair().unwrap();
        let failure = Failure { status: 125, message: "x".repeat(10_000), hint: "y".into() };
        child.send(&ToParent::Failed(failure)).unwrap();
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Failed(f)) if f.message.len() == MAX - 2));
        parent.send(&ToChild::Mapped).unwrap();
        child.send(&ToParent::Exited(0)).unwrap();
        drop(child);
        assert!(matches!(parent.receive().unwrap(), Some(ToParent::Exited(0))));
        assert!(parent.receive().unwrap().is_none());
        assert!(parent.send(&ToChild::Go { tell: false }).is_err());
    }

    #[test]
    fn a_foreign_message_is_refused() {
        let (parent, child) = pair().unwrap();
        for bytes in [&b"Z"[..], b"E12", b"T"] {
            send(&parent.0, bytes, None).unwrap();
            assert!(child.receive().is_err(), "{bytes:?}");
        }
    }
}
