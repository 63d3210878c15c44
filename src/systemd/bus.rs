//! Connections to systemd: where its sockets are, which of them is tried when, and what its errors mean to a user.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::net::SocketAddrUnix;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::{DynamicType, Type};

use crate::error::{Fault, Result, fault};

use super::property;
use super::start::Pending;
use super::wire::{Call, Deadline, Exchange, Failure, Wire};

/// The longest that one operation may take, all its steps together.
pub(super) const WAIT: Duration = Duration::from_secs(30);

/// The longest that another user's service manager is waited for where it is one of several that are asked: they may have stopped it.
const OTHERS_WAIT: Duration = Duration::from_secs(3);

/// How long a bus daemon may take to greet when there is another socket to try: a stopped one still accepts connections.
const GREETING_WAIT: Duration = Duration::from_secs(5);

/// systemd's name on a bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";

/// One socket behind which systemd may be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// What errors call it.
    pub(super) path: PathBuf,
    /// Whether a bus daemon is there; else it is systemd itself, which wants no `Hello` and no match.
    pub(super) daemon: bool,
}

impl Place {
    pub(super) fn new(path: impl Into<PathBuf>, daemon: bool) -> Place {
        let path = path.into();
        Place { path, daemon }
    }

    fn address(&self) -> Exchange<SocketAddrUnix> {
        match self.path.as_os_str().as_bytes().strip_prefix(b"@") {
            Some(name) => Ok(SocketAddrUnix::new_abstract_name(name)?),
            None => Ok(SocketAddrUnix::new(&self.path)?),
        }
    }
}

/// A connection to a service manager: the system's or the caller's own. No thread lives behind it.
///
/// Drop it when the start is done and connect anew for a stop: dbus-daemon takes 256 connections of one user, root
/// included, so sandboxes that keep theirs would lock everybody out of the bus.
#[derive(Debug)]
pub(crate) struct Bus {
    pub(super) wire: Wire,
    pub(super) daemon: bool,
    /// The caller's own manager is behind it, not the system's.
    pub(crate) user: bool,
    /// The unit whose jobs the daemon tells us of, so that a second try does not ask for it again.
    pub(super) watched: Option<String>,
    /// What is tried when this socket turns out to have no systemd behind it.
    others: Vec<Place>,
    /// The longest that the answer to a call is waited for.
    patience: Duration,
    /// A start of which nobody knows what came: not systemd's answer ended the wait for it, but that it could not be heard.
    pub(super) unanswered: Option<Pending>,
}

impl Bus {
    /// Connects to the system's service manager; where the bus daemon is down, root talks to systemd's private socket.
    /// Sends the greeting and waits for nothing: the first call does.
    pub(crate) fn system() -> Result<Bus> {
        let address = std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS");
        let bus =
            address.and_then(|address| unix_path(&address)).unwrap_or_else(|| "/run/dbus/system_bus_socket".into());
        let mut places = vec![Place { path: bus, daemon: true }];
        if rustix::process::geteuid().is_root() {
            places.push(Place { path: "/run/systemd/private".into(), daemon: false });
        }
        Bus::connect(places, false).map_err(|why| {
            fault(format!("systemd cannot be reached: {why}"))
                .hint("sandbox doctor; or `--manager=none` for no unit and no limits")
                .into()
        })
    }

    /// Connects to the caller's own service manager. Never answers with the system's.
    pub(crate) fn user() -> Result<Bus> {
        let uid = rustix::process::getuid().as_raw();
        let session = std::env::var_os("DBUS_SESSION_BUS_ADDRESS");
        Bus::connect(user_places(session, &runtime_directory(uid)), true).map_err(|why| {
            let linger =
                format!("`loginctl enable-linger {uid}` starts a service manager for user {uid} without a login");
            fault(format!("your own service manager cannot be reached: {why}")).hint(linger).into()
        })
    }

    /// Connects to another user's service manager, for root: systemd's own socket takes root, a user's bus does not.
    pub(crate) fn user_of(uid: u32) -> Result<Bus> {
        let place = Place { path: format!("/run/user/{uid}/systemd/private").into(), daemon: false };
        Bus::connect(vec![place], true)
            .map_err(|why| fault(format!("the service manager of user {uid} cannot be reached: {why}")).into())
    }

    /// Takes the first place that can be connected to; the error lists what was tried.
    pub(super) fn connect(mut places: Vec<Place>, user: bool) -> std::result::Result<Bus, String> {
        let mut tried = Vec::new();
        while !places.is_empty() {
            let place = places.remove(0);
            match place.address().and_then(|address| Wire::connect(&address, place.daemon)) {
                Ok(wire) => {
                    let daemon = place.daemon;
                    let (watched, unanswered) = (None, None);
                    return Ok(Bus { wire, daemon, user, watched, others: places, patience: WAIT, unanswered });
                }
                Err(failure) => tried.push(format!("{}: {}", place.path.display(), text(&failure))),
            }
        }
        Err(tried.join("; "))
    }

    /// Readable when an answer, or a signal, has come.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.wire.socket()
    }

    /// From now on it is waited for as long as one of several is.
    pub(crate) fn hurry(&mut self) {
        self.patience = OTHERS_WAIT;
    }

    /// The number of a process means another one, or none, to a service manager in another PID namespace: it would put a stranger
    /// into the unit. A descriptor is right everywhere.
    ///
    /// # Errors
    /// When the manager is in one that this process does not see; `what` is what the number was for.
    pub(super) fn check_numbers(&self, what: &str) -> Result<()> {
        if self.wire.is_in_sight().with_context(|| format!("{what}: ask who listens on systemd's socket"))? {
            return Ok(());
        }
        Err(fault(format!("{what}: systemd is in another PID namespace, and a process here has another number there"))
            .hint("run it where systemd's own processes are seen: not in unshare --pid, not in a container")
            .into())
    }

    /// From now on a wait ends with an error when `fd` becomes readable.
    pub(crate) fn interrupt_by(&mut self, fd: BorrowedFd<'_>) {
        self.wire.interrupt = fd.try_clone_to_owned().ok();
    }

    /// Waits for the answer to the greeting; a bus daemon that is stuck is left for the next place.
    pub(super) fn greeted(&mut self, deadline: Deadline) -> Exchange<()> {
        loop {
            let patience = if self.others.is_empty() { deadline } else { Deadline::after(GREETING_WAIT) };
            match self.wire.greeted(patience) {
                Ok(()) => return Ok(()),
                Err(failure) => self.next_place(failure)?,
            }
        }
    }

    /// Connects to the next place, or hands back the failure that led here when there is none.
    pub(super) fn next_place(&mut self, failure: Failure) -> Exchange<()> {
        match Bus::connect(std::mem::take(&mut self.others), self.user) {
            Ok(mut bus) => {
                bus.wire.interrupt = self.wire.interrupt.take();
                bus.patience = self.patience;
                log::debug!("systemd's bus failed ({}), another socket is used", text(&failure));
                *self = bus;
                Ok(())
            }
            Err(_) => Err(failure),
        }
    }

    /// Calls a method of the manager object and waits for the answer.
    pub(super) fn manager<B, R>(&mut self, member: &str, body: &B) -> Exchange<R>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call(&manager_call(member), body)
    }

    /// Calls any method of systemd and waits for the answer, [`WAIT`] at the longest or what [`Bus::hurry`] says.
    pub(super) fn call<B, R>(&mut self, call: &Call<'_>, body: &B) -> Exchange<R>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let deadline = Deadline::after(self.patience);
        loop {
            self.greeted(deadline)?;
            match self.wire.call(call, body, deadline) {
                Err(failure) if self.is_elsewhere(&failure) => self.next_place(failure)?,
                other => return other,
            }
        }
    }

    /// Says whether a failure means that no systemd listens here and nothing was done: it has no name on this bus, or the
    /// daemon takes no more connections (dbus-daemon: 256 a user, root included).
    pub(super) fn is_elsewhere(&self, failure: &Failure) -> bool {
        let absences = ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"];
        let absent = matches!(failure, Failure::Remote { name, .. } if absences.contains(&name.as_str()));
        absent || self.wire.was_refused(failure)
    }

    /// Makes the error that a user reads of a failure to do `what` (`start toptest.scope`).
    pub(super) fn explain(&self, what: &str, failure: Failure) -> anyhow::Error {
        explain(what, failure, self.user).into()
    }
}

/// A call to the manager object.
pub(super) fn manager_call(member: &str) -> Call<'_> {
    let interface = "org.freedesktop.systemd1.Manager";
    Call { destination: SYSTEMD, path: "/org/freedesktop/systemd1", interface, member }
}

/// A call to the object at `path`.
pub(super) fn object_call<'a>(path: &'a str, interface: &'a str, member: &'a str) -> Call<'a> {
    Call { destination: SYSTEMD, path, interface, member }
}

/// The last part of the name of the interface that has the properties of this kind of unit.
pub(super) fn interface(unit: &str) -> &'static str {
    if unit.ends_with(".scope") { "Scope" } else { "Service" }
}

/// The object path of a unit (`sd_bus_path_encode`): every byte that is no letter or digit becomes `_` and its hex code,
/// a leading digit too.
pub(super) fn unit_path(unit: &str) -> String {
    let escape = |(at, byte): (usize, u8)| match byte {
        b'0'..=b'9' if at > 0 => char::from(byte).to_string(),
        b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("_{byte:02x}"),
    };
    let name: String = unit.bytes().enumerate().map(escape).collect();
    format!("/org/freedesktop/systemd1/unit/{name}")
}

/// Where the user's service manager may be, best first: the session bus as the environment names it, the bus of
/// systemd's user session, systemd's own socket.
pub(super) fn user_places(session: Option<OsString>, runtime: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    places.extend(session.and_then(|address| unix_path(&address)).map(|path| Place { path, daemon: true }));
    let bus = Place { path: runtime.join("bus"), daemon: true };
    if !places.contains(&bus) {
        places.push(bus);
    }
    places.push(Place { path: runtime.join("systemd/private"), daemon: false });
    places
}

/// The socket of the first `unix:` address in a list (D-Bus specification, "Server Addresses"); an abstract one gets a
/// leading `@`.
fn unix_path(addresses: &OsString) -> Option<PathBuf> {
    let mut addresses = addresses.as_bytes().split(|byte| *byte == b';').filter_map(|one| one.strip_prefix(b"unix:"));
    addresses.find_map(|address| {
        address.split(|byte| *byte == b',').find_map(|pair| {
            let (prefix, value) = match pair.strip_prefix(b"path=") {
                Some(path) => (&b""[..], path),
                None => (&b"@"[..], pair.strip_prefix(b"abstract=")?),
            };
            let bytes = [prefix, &unescape(value)?].concat();
            Some(PathBuf::from(OsString::from_vec(bytes)))
        })
    })
}

/// Where the service manager of user `uid`, the caller, has its files.
fn runtime_directory(uid: u32) -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|path| !path.is_empty())
        .map_or_else(|| format!("/run/user/{uid}").into(), PathBuf::from)
}

/// The error of a transient unit that systemd does not find right after it was asked to make it: it could not write the unit's
/// file, which it does not say. `None` where there is room for one.
pub(super) fn no_room_for(unit: &str, user: bool) -> Option<Fault> {
    // A unit with its drop-ins takes a page each; tmpfs gives whole pages.
    const NEEDED_BYTES: u64 = 64 << 10;
    const NEEDED_FILES: u64 = 16;
    let directory = if user { runtime_directory(rustix::process::getuid().as_raw()) } else { "/run".into() };
    let room = rustix::fs::statvfs(&directory).ok()?;
    // A file system without a limit of files says 0 of 0.
    let has_files = room.f_files == 0 || room.f_favail >= NEEDED_FILES;
    if has_files && room.f_bavail.saturating_mul(room.f_frsize) >= NEEDED_BYTES {
        return None;
    }
    let directory = directory.display();
    let line = fault(format!("systemd cannot start {unit}: it writes units to {directory}, which is full"));
    Some(line.hint(format!("df {directory}; df -i {directory}")))
}

/// Undoes the `%20` escapes of an address.
fn unescape(value: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (hex, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    Some(bytes)
}

pub(super) fn text(failure: &Failure) -> String {
    match failure {
        Failure::Remote { message, .. } => message.trim_end_matches('.').to_owned(),
        Failure::Timeout(time) => format!("no answer within {} s", time.as_secs()),
        Failure::Broken(why) => why.clone(),
    }
}

fn explain(what: &str, failure: Failure, user: bool) -> Fault {
    let line = fault(format!("systemd cannot {what}: {}", text(&failure)));
    let Failure::Remote { name, message } = failure else { return line.hint("sandbox doctor") };
    match name.rsplit('.').next().unwrap_or_default() {
        "AccessDenied" | "InteractiveAuthorizationRequired" if !user => {
            line.hint("run it with sudo, or with --user under your own service manager")
        }
        "ServiceUnknown" | "NameHasNoOwner" | "NoReply" | "Disconnected" => line.hint("sandbox doctor"),
        "NoSuchUnit" => line.hint("sandbox ps -a"),
        "UnknownProperty" | "PropertyReadOnly" => match unknown_property(&message).and_then(property::since) {
            Some(version) => {
                line.hint(format!("that property came with systemd {version}; `systemctl --version` tells yours"))
            }
            None => line,
        },
        _ => line,
    }
}

/// The property in systemd's "Cannot set property X, or unknown property."
pub(super) fn unknown_property(message: &str) -> Option<&str> {
    message.strip_prefix("Cannot set property ")?.split(',').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_buses() {
        let table = [
            ("unix:path=/run/user/1000/bus", Some("/run/user/1000/bus")),
            ("unix:path=/run/a%20b,guid=12", Some("/run/a b")),
            ("unix:guid=12,path=/x", Some("/x")),
            ("tcp:host=a;unix:path=/x", Some("/x")),
            ("unix:abstract=/tmp/dbus-X", Some("@/tmp/dbus-X")),
            ("autolaunch:", None),
            ("unix:path=/%2", None),
            ("", None),
        ];
        for (address, want) in table {
            assert_eq!(unix_path(&address.into()).as_deref(), want.map(Path::new), "{address}");
        }
    }

    #[test]
    fn the_user_manager_is_looked_for_in_order_and_never_on_the_system_bus() {
        let paths = |session: Option<&str>| {
            let places = user_places(session.map(Into::into), Path::new("/run/user/7"));
            places.iter().map(|place| place.path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        let own = "/run/user/7/bus /run/user/7/systemd/private";
        assert_eq!(paths(None), own);
        assert_eq!(paths(Some("unix:path=/run/user/7/bus")), own);
        assert_eq!(paths(Some("unix:path=/tmp/s")), format!("/tmp/s {own}"));
        assert_eq!(paths(Some("autolaunch:")), own);
    }

    #[test]
    fn unit_paths() {
        let table = [("a.scope", "a_2escope"), ("1-b.scope", "_31_2db_2escope"), ("a1@x.service", "a1_40x_2eservice")];
        for (unit, want) in table {
            assert_eq!(unit_path(unit), format!("/org/freedesktop/systemd1/unit/{want}"));
        }
    }

    #[test]
    fn errors_say_what_mends_them() {
        let remote = |name: &str, message: &str| Failure::Remote { name: name.to_owned(), message: message.to_owned() };
        let table = [
            (remote("org.freedesktop.DBus.Error.AccessDenied", "Permission denied"), false, Some("sudo")),
            (remote("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "x."), false, Some("--user")),
            (remote("org.freedesktop.DBus.Error.AccessDenied", "x"), true, None),
            (
                remote(
                    "org.freedesktop.DBus.Error.PropertyReadOnly",
                    "Cannot set property MemoryZSwapMax, or unknown property.",
                ),
                false,
                Some("systemd 253"),
            ),
            (remote("org.freedesktop.DBus.Error.InvalidArgs", "Invalid unit name 'a b'"), false, None),
            (Failure::Timeout(WAIT), false, Some("sandbox doctor")),
        ];
        for (failure, user, want) in table {
            let fault = explain("start a.scope", failure, user);
            assert!(fault.to_string().starts_with("systemd cannot start a.scope: "), "{fault}");
            let hint = fault.hint_text();
            assert!(
                want.map_or(hint.is_none(), |want| hint.is_some_and(|hint| hint.contains(want))),
                "{fault}: {hint:?}"
            );
        }
    }

    #[test]
    fn nothing_there_is_an_error_that_lists_what_was_tried() {
        let places = user_places(None, Path::new("/nonexistent"));
        let error = Bus::connect(places, true).err().unwrap_or_default();
        assert!(error.contains("/nonexistent/bus: ") && error.contains("/nonexistent/systemd/private: "), "{error}");
    }
}
