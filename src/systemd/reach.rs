//! Whether a service manager answers at one certain socket, for `sandbox doctor`: [`Bus`] itself goes on to the next one.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use zbus::Variant;
use zbus::wire::OwnedVariant;

use crate::error::line;

use super::bus::{Bus, Place, manager_call, object_call, text, user_places};
use super::wire::{Deadline, Exchange, Failure};

/// How long one socket may take: a stopped bus daemon still accepts connections.
const PATIENCE: Duration = Duration::from_secs(3);

/// The sockets behind which a service manager may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Socket {
    /// The system bus, by way of dbus-daemon or dbus-broker.
    SystemBus,
    /// systemd's own, for root only.
    Private,
    /// The first of the caller's own: session bus, user bus, the user manager's own socket.
    User {
        /// The address in `DBUS_SESSION_BUS_ADDRESS`.
        session: Option<OsString>,
        /// The directory in `XDG_RUNTIME_DIR`.
        runtime: OsString,
    },
}

impl Socket {
    fn places(&self) -> Vec<Place> {
        match self {
            Socket::SystemBus => vec![Place::new("/run/dbus/system_bus_socket", true)],
            Socket::Private => vec![Place::new("/run/systemd/private", false)],
            Socket::User { session, runtime } => user_places(session.clone(), Path::new(runtime)),
        }
    }

    /// Asks the manager behind it for its version (`252.39-1~deb12u2`); else says in one line why there is no answer.
    pub(crate) fn version(&self) -> Result<String, String> {
        let user = matches!(self, Socket::User { .. });
        let answer =
            Bus::connect(self.places(), user).and_then(|mut bus| ask(&mut bus).map_err(|failure| text(&failure)));
        answer.map_err(|why| line(&anyhow::Error::msg(why)))
    }
}

fn ask(bus: &mut Bus) -> Exchange<String> {
    let deadline = Deadline::after(PATIENCE);
    bus.greeted(deadline)?;
    let path = manager_call("Get").path;
    let call = object_call(path, "org.freedesktop.DBus.Properties", "Get");
    let question = ("org.freedesktop.systemd1.Manager", "Version");
    let found: OwnedVariant = bus.wire.call(&call, &question, deadline)?;
    match &*found {
        Variant::Str(version) => Ok(version.as_str().to_owned()),
        other => Err(Failure::Broken(format!("its version is of type {}", other.value_signature()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_said_with_the_sockets_that_were_tried() {
        let socket = Socket::User { session: None, runtime: "/nonexistent".into() };
        let why = socket.version().unwrap_err();
        assert!(why.contains("/nonexistent/bus: ") && why.contains("/nonexistent/systemd/private: "), "{why}");
    }
}
