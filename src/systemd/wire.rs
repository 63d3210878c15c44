//! A blocking D-Bus connection: one socket, no threads, no runtime. zbus makes the messages and reads them.
//!
//! Why not zbus's own connection: it cannot speak to systemd's private socket (messages there come from
//! `org.freedesktop.systemd1`, which it refuses as no unique name), it leaves a thread behind for a while (the launcher
//! forks), and it waits for each step of the greeting. Here the greeting goes out with the connect and its answers are
//! read when the first call needs them, by then they have arrived.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::message::{Flags, Message};
use zbus::wire::serialized::{Context, Data};
use zbus::wire::{BE, LE};
use zbus::{DynamicType, Signature, Type, Variant};

use super::job::Order;
use crate::host::read_of_kernel;

/// The longest message that is believed; the bus itself allows 128 MiB, nothing that we ask for comes near this.
const MESSAGE_MAX: usize = 16 << 20;

/// Why an exchange failed, for the callers to tell apart.
#[derive(Debug)]
pub(super) enum Failure {
    /// The other side answered with an error.
    Remote { name: String, message: String },
    /// Nothing came in this time.
    Timeout(Duration),
    /// The socket failed, or the other side closed it or spoke nonsense.
    Broken(String),
}

/// How long an answer is waited for once nobody wants it any more.
const HURRY: Duration = Duration::from_secs(5);

/// What comes of talking to the other side.
pub(super) type Exchange<T> = Result<T, Failure>;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let text = error.to_string();
        // Users have no use for the number.
        Failure::Broken(text.split(" (os error").next().unwrap_or(&text).to_owned())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Failure {
        io::Error::from(errno).into()
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Failure {
        Failure::Broken(error.to_string())
    }
}

/// The moment when waiting ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    /// How long that was from the beginning.
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Deadline {
        Deadline { end: Instant::now() + whole, whole }
    }

    pub(super) fn remaining(self) -> Exchange<Timespec> {
        let left = self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        left.and_then(|left| Timespec::try_from(left).ok()).ok_or(Failure::Timeout(self.whole))
    }
}

/// A message that came in, with what the callers look at.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// 1 call, 2 reply, 3 error, 4 signal.
    kind: u8,
    /// The number of the call that this answers, else 0.
    reply_to: u32,
    error: Option<String>,
    member: Option<String>,
    signature: Option<Signature>,
    big_endian: bool,
    body: Vec<u8>,
}

impl Incoming {
    /// Says whether this is the signal of that name.
    pub(super) fn is_signal(&self, member: &str) -> bool {
        self.kind == 4 && self.member.as_deref() == Some(member)
    }

    /// Says whether this answers the call of that number, well or not.
    pub(super) fn answers(&self, serial: u32) -> bool {
        self.reply_to == serial && matches!(self.kind, 2 | 3)
    }

    /// Reads the body; an error message becomes [`Failure::Remote`].
    pub(super) fn body<T: DeserializeOwned + Type>(&self) -> Exchange<T> {
        if self.kind == 3 {
            let name = self.error.clone().unwrap_or_default();
            let message = self.read::<(String,)>().map(|(text,)| text).unwrap_or_default();
            return Err(Failure::Remote { name, message });
        }
        self.read()
    }

    fn read<T: DeserializeOwned + Type>(&self) -> Exchange<T> {
        let found = self.signature.as_ref().unwrap_or(&Signature::Unit);
        if found.to_string_no_parens() != T::SIGNATURE.to_string_no_parens() {
            return Err(Failure::Broken(format!("a message has the signature {found}, expected was {}", T::SIGNATURE)));
        }
        let endian = if self.big_endian { BE } else { LE };
        let data = Data::new(self.body.as_slice(), Context::new(endian, 0));
        Ok(data.deserialize::<T>()?.0)
    }
}

/// How far the greeting has got.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Greeting {
    /// Sent, not yet answered.
    Sent,
    /// Answered; messages may flow.
    Done,
}

/// What a client says first (D-Bus specification, "Authentication Protocol"): the kernel tells who we are, so nothing
/// is said of it; file descriptors are wanted. systemd's own client greets the same way, in one piece.
pub(super) const GREETING: &[u8] = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    /// What was received and not yet used.
    buffer: Vec<u8>,
    /// What goes out together with the next call.
    outgoing: Vec<u8>,
    /// What goes out behind the next call.
    behind: Vec<u8>,
    greeting: Greeting,
    serial: u32,
    /// The number of the `Hello` that is not answered yet.
    hello: Option<u32>,
    /// Whether any message has come in, so that the other side has taken us.
    heard: bool,
    /// Readable when nobody wants the answer any more. What was asked for is still waited for, so that it can be undone, but not
    /// for long.
    pub(super) interrupt: Option<OwnedFd>,
    /// When that patience ends.
    hurry: Option<Deadline>,
}

impl Wire {
    /// Connects and sends the greeting, and with it `Hello` where a bus daemon is at the other end; waits for nothing.
    pub(super) fn connect(address: &SocketAddrUnix, bus_daemon: bool) -> Exchange<Wire> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Also bounds connect(2), which blocks while the queue of a stopped daemon is full.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(super::bus::WAIT))?;
        rustix::net::connect(&socket, address)?;
        let mut wire = Wire {
            socket,
            buffer: Vec::new(),
            outgoing: Vec::new(),
            behind: Vec::new(),
            greeting: Greeting::Sent,
            serial: 0,
            hello: None,
            heard: false,
            interrupt: None,
            hurry: None,
        };
        wire.outgoing.extend_from_slice(GREETING);
        if bus_daemon {
            let hello = wire.message(&Call::daemon("Hello"), Flags::empty(), &())?;
            wire.outgoing.extend_from_slice(hello.data().bytes());
            wire.hello = Some(wire.serial);
        }
        wire.flush()?;
        Ok(wire)
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the process that listens at the other end has a number in our PID namespace: unix(7), SO_PEERCRED.
    pub(super) fn is_in_sight(&self) -> nix::Result<bool> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let peer = getsockopt(&self.socket, PeerCredentials)?.pid();
        if peer == 1 {
            // The first process of our namespace has no number in one below it.
            return Ok(true);
        }
        // One in a namespace below ours has a number here and another one there, proc_pid_status(5). Not everybody may look.
        let status = read_of_kernel(format!("/proc/{peer}/status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        Ok(peer != 0 && numbers.is_none_or(|numbers| numbers.split_ascii_whitespace().count() == 1))
    }

    /// Waits for the answers to the greeting. A daemon takes descriptors only from then on.
    pub(super) fn greeted(&mut self, deadline: Deadline) -> Exchange<()> {
        while self.greeting == Greeting::Sent {
            let lines = self.buffer.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\r\n"));
            // DATA, OK, AGREE_UNIX_FD (or ERROR, when the other side passes no descriptors).
            let lines: Vec<_> = lines.take(3).collect();
            if let Some(refusal) = lines.iter().find(|line| line.starts_with(b"REJECTED")) {
                return Err(Failure::Broken(format!("refused us: {}", String::from_utf8_lossy(refusal).trim_end())));
            }
            if lines.len() < 3 {
                self.receive_more(None, deadline)?;
                continue;
            }
            let length: usize = lines.iter().map(|line| line.len()).sum();
            self.buffer.drain(..length);
            self.greeting = Greeting::Done;
        }
        Ok(())
    }

    /// Sends a call without waiting; returns its number. Descriptors in the body need [`Wire::greeted`] before.
    pub(super) fn send<B: Serialize + DynamicType>(&mut self, call: &Call<'_>, body: &B) -> Exchange<u32> {
        let message = self.message(call, Flags::empty(), body)?;
        let data = message.data();
        let fds: Vec<BorrowedFd<'_>> = data.fds().iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() {
            // Descriptors belong to the first byte of what they are sent with, so that must be their message.
            self.flush()?;
        }
        self.outgoing.extend_from_slice(data.bytes());
        self.outgoing.append(&mut self.behind);
        self.send_outgoing(&fds)?;
        Ok(self.serial)
    }

    /// Sends a call that wants no answer with the next one.
    pub(super) fn send_along<B: Serialize + DynamicType>(
        &mut self,
        call: &Call<'_>,
        body: &B,
        order: Order,
    ) -> Exchange<()> {
        let message = self.message(call, Flags::NO_REPLY_EXPECTED, body)?;
        let place = if order == Order::Before { &mut self.outgoing } else { &mut self.behind };
        place.extend_from_slice(message.data().bytes());
        Ok(())
    }

    fn flush(&mut self) -> Exchange<()> {
        self.send_outgoing(&[])
    }

    /// Calls and waits for the answer; what else comes meanwhile is dropped.
    pub(super) fn call<B, R>(&mut self, call: &Call<'_>, body: &B, deadline: Deadline) -> Exchange<R>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let serial = self.send(call, body)?;
        loop {
            let incoming = self.receive(deadline)?;
            if incoming.answers(serial) {
                return incoming.body();
            }
        }
    }

    /// Says whether a failure means that the other side never took us, so that nothing of what was sent was done.
    pub(super) fn was_refused(&self, failure: &Failure) -> bool {
        matches!(failure, Failure::Broken(_)) && !self.heard
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self, deadline: Deadline) -> Exchange<Incoming> {
        loop {
            if let Some(incoming) = self.receive_within(None, deadline)? {
                return Ok(incoming);
            }
        }
    }

    /// The same; `None` when none came within `pause`.
    pub(super) fn receive_within(&mut self, pause: Option<Duration>, deadline: Deadline) -> Exchange<Option<Incoming>> {
        self.greeted(deadline)?;
        loop {
            if let Some((incoming, length)) = parse(&self.buffer)? {
                self.buffer.drain(..length);
                if self.hello.take_if(|hello| incoming.answers(*hello)).is_some() {
                    refusal(&incoming)?;
                }
                self.heard = true;
                return Ok(Some(incoming));
            }
            if !self.receive_more(pause, deadline)? {
                return Ok(None);
            }
        }
    }

    fn message<B: Serialize + DynamicType>(&mut self, call: &Call<'_>, flags: Flags, body: &B) -> Exchange<Message> {
        self.serial += 1;
        let serial = NonZeroU32::new(self.serial).ok_or(Failure::Broken("too many calls".to_owned()))?;
        let builder = Message::method_call(call.path, call.member).interface(call.interface).with_flags(flags);
        Ok(builder.destination(call.destination).serial(serial).build(body)?)
    }

    fn send_outgoing(&mut self, fds: &[BorrowedFd<'_>]) -> Exchange<()> {
        let bytes = std::mem::take(&mut self.outgoing);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Failure::Broken("too many descriptors for one message".to_owned()));
        }
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    sent += n;
                    control.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(Failure::Timeout(super::bus::WAIT)),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Whether some bytes came, within `pause` where there is one.
    fn receive_more(&mut self, pause: Option<Duration>, deadline: Deadline) -> Exchange<bool> {
        let mut chunk = [0u8; 4096];
        loop {
            let interrupt = self.interrupt.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
            let mut waiting: Vec<_> = [PollFd::new(&self.socket, PollFlags::IN)].into_iter().chain(interrupt).collect();
            let remaining = self.hurry.unwrap_or(deadline).remaining().inspect_err(|_| self.hurry = None)?;
            let patience =
                pause.and_then(|pause| Timespec::try_from(pause).ok()).map_or(remaining, |pause| remaining.min(pause));
            match rustix::event::poll(&mut waiting, Some(&patience)) {
                Ok(0) if pause.is_some() => return Ok(false),
                Ok(0) => continue,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if waiting.first().is_some_and(|socket| socket.revents().is_empty()) {
                self.interrupt = None;
                self.hurry = Some(Deadline::after(HURRY));
                continue;
            }
            let (bytes, _) = rustix::net::recv(&self.socket, &mut chunk, RecvFlags::DONTWAIT)?;
            if bytes == 0 {
                return Err(Failure::Broken("the other side closed the connection".to_owned()));
            }
            self.buffer.extend(chunk.iter().take(bytes));
            return Ok(true);
        }
    }
}

/// The answer to `Hello`: an error, when the daemon takes no more connections.
fn refusal(incoming: &Incoming) -> Exchange<()> {
    match incoming.body::<String>() {
        Err(Failure::Remote { message, .. }) => Err(Failure::Broken(message)),
        _ => Ok(()),
    }
}

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

impl<'a> Call<'a> {
    /// A call to the bus daemon itself.
    pub(super) fn daemon(member: &'a str) -> Call<'a> {
        let interface = "org.freedesktop.DBus";
        Call { destination: interface, path: "/org/freedesktop/DBus", interface, member }
    }
}

/// The fixed start of a message and its fields (D-Bus specification, "Message Format").
type Head<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Variant<'a>)>);

/// Reads one message off the front of `bytes`, with its length; `None` when it is not all there.
fn parse(bytes: &[u8]) -> Exchange<Option<(Incoming, usize)>> {
    let Some(start) = bytes.first_chunk::<16>() else { return Ok(None) };
    let big_endian = match start[0] {
        b'l' => false,
        b'B' => true,
        other => return Err(Failure::Broken(format!("a message starts with byte {other}"))),
    };
    let word = |at: usize| {
        let word = [start[at], start[at + 1], start[at + 2], start[at + 3]];
        let word = if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) };
        usize::try_from(word).unwrap_or(usize::MAX)
    };
    let (body, fields) = (word(4), word(12));
    if body > MESSAGE_MAX || fields > MESSAGE_MAX {
        return Err(Failure::Broken("a message is far too long".to_owned()));
    }
    let head = (16 + fields).next_multiple_of(8);
    let Some(message) = bytes.get(..head + body) else { return Ok(None) };
    let endian = if big_endian { BE } else { LE };
    let data = Data::new(message, Context::new(endian, 0));
    let ((_, kind, _, _, _, _, fields), _) = data.deserialize::<Head<'_>>()?;
    let mut incoming = Incoming { kind, big_endian, body: message.split_at(head).1.to_vec(), ..Incoming::default() };
    for (code, value) in fields {
        match (code, value) {
            (3, Variant::Str(member)) => incoming.member = Some(member.as_str().to_owned()),
            (4, Variant::Str(error)) => incoming.error = Some(error.as_str().to_owned()),
            (5, Variant::U32(serial)) => incoming.reply_to = serial,
            (8, Variant::Signature(signature)) => incoming.signature = Some(signature),
            _ => {}
        }
    }
    Ok(Some((incoming, head + body)))
}

#[cfg(test)]
pub(super) mod tests;
