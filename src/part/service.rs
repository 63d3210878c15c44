//! Being the main process of a service: what the service manager gave to this process reaches the payload, and what becomes of the
//! start is told to the service manager; systemd.exec(5), sd_notify(3), sd_listen_fds(3).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType};
use serde::Serialize;

use crate::error::{Fault, Result, line};
use crate::host::Host;
use crate::layer::Notify;
use crate::part::rootfs::{BindPlan, Operation};
use crate::spec::Spec;
use crate::systemd::{Bus, HINT, UnitOfProcess};

/// In the environment of a service that `run --detach` asked for: the name of its unit.
pub(crate) const DETACHED: &str = "SANDBOX_UNIT";

/// Where the service manager's socket and credentials are inside, <https://systemd.io/CONTAINER_INTERFACE/>.
const NOTIFY_INSIDE: &str = "/run/host/notify";
const CREDENTIALS_INSIDE: &str = "/run/host/credentials";

/// The service whose main process this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnService {
    /// With its suffix.
    pub(crate) unit: String,
    /// The slice it is in.
    pub(crate) slice: String,
    /// It belongs to a user's service manager.
    pub(crate) user: bool,
    /// `run --detach` asked for it, with every property that was asked for.
    pub(crate) detached: bool,
}

impl OwnService {
    /// What the environment and the cgroup say; a process that a service's main process started has the same environment, but is
    /// not who it speaks of. Without systemd's own word for it (before 248) the parent is
    /// what tells: a service manager.
    ///
    /// # Errors
    /// When the cgroup cannot be read of a process that systemd has started.
    pub(crate) fn read(environment: &BTreeMap<OsString, OsString>) -> std::io::Result<Option<OwnService>> {
        let get = |name: &str| environment.get(OsStr::new(name)).and_then(|value| value.to_str());
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let is_main = get("SYSTEMD_EXEC_PID").map(|main| main.parse() == Ok(pid));
        if get("INVOCATION_ID").is_none() || is_main == Some(false) {
            return Ok(None);
        }
        let found = UnitOfProcess::of_this_process()?.filter(|found| found.unit.ends_with(".service"));
        let Some(found) = found else { return Ok(None) };
        let is_main = match is_main {
            Some(is_main) => is_main,
            None => rustix::process::getppid()
                .and_then(|parent| UnitOfProcess::read(&parent.as_raw_nonzero().to_string()))
                .is_some_and(|parent| parent.unit == "init.scope"),
        };
        let detached = get(DETACHED) == Some(&found.unit);
        let own = OwnService { detached, unit: found.unit, slice: found.slice, user: found.user.is_some() };
        Ok(is_main.then_some(own))
    }

    /// Asks systemd whether this is the service's main process: one of ExecStartPre= looks the same from here.
    ///
    /// # Errors
    /// When systemd cannot be reached.
    pub(crate) fn is_confirmed(&self) -> Result<bool> {
        let mut bus = if self.user { Bus::user()? } else { Bus::system()? };
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Ok(bus.main_pid(&self.unit)?.is_some_and(|main| i64::from(main) == i64::from(pid)))
    }
}

/// Sockets that the service manager listens on for us: descriptors from 3 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Listen {
    /// How many.
    pub(crate) count: i32,
    /// Their names, as given.
    pub(crate) names: Option<String>,
}

impl Listen {
    /// What is meant for this process and no other.
    pub(crate) fn read(environment: &BTreeMap<OsString, OsString>) -> Option<Listen> {
        let get = |name: &str| environment.get(OsStr::new(name)).and_then(|value| value.to_str());
        let pid: i32 = get("LISTEN_PID")?.parse().ok()?;
        let count = get("LISTEN_FDS")?.parse().ok().filter(|count| (1..1024).contains(count))?;
        let ours = pid == rustix::process::getpid().as_raw_nonzero().get();
        ours.then(|| Listen { count, names: get("LISTEN_FDNAMES").map(str::to_owned) })
    }
}

/// What passes between the service manager and the payload, decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ServicePlan {
    /// The service manager's socket for notifications.
    pub(crate) notify: Option<PathBuf>,
    /// The launcher says that the service is ready, when the payload has been executed.
    pub(crate) ready: bool,
    /// Where that socket is inside.
    pub(crate) notify_inside: Option<PathBuf>,
    /// The time between two signs of life that the service manager wants, in µs.
    pub(crate) watchdog_usec: Option<u64>,
    /// The directory of credentials.
    pub(crate) credentials: Option<PathBuf>,
    /// Where the credentials are inside.
    pub(crate) credentials_inside: Option<PathBuf>,
    /// Sockets.
    pub(crate) listen: Option<Listen>,
}

/// Decides what passes.
pub(crate) fn plan(spec: &Spec, host: &Host, own_root: bool, warnings: &mut Vec<String>) -> ServicePlan {
    let mut plan = ServicePlan { listen: host.listen.clone(), ..ServicePlan::default() };
    if host.service.is_none() {
        return plan;
    }
    let get = |name: &str| host.environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    plan.notify = get("NOTIFY_SOCKET").map(PathBuf::from);
    plan.ready = spec.unit.notify == Notify::Exec;
    plan.watchdog_usec = get("WATCHDOG_USEC").and_then(|value| value.to_str()?.parse().ok());
    plan.credentials = get("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let covered = |path: &str| {
        spec.root.binds.iter().any(|bind| Path::new(path).starts_with(&bind.at) && bind.at != Path::new("/"))
    };
    let mut inside = |outside: &Option<PathBuf>, path: &str, what: &str| match outside {
        Some(outside) if !own_root => Some(outside.clone()),
        // An abstract address is in the host's network namespace.
        Some(outside) if !outside.is_absolute() => None,
        Some(_) if covered(path) => {
            warnings.push(format!("{what} not passed on: a bind covers {path}"));
            None
        }
        Some(_) => Some(path.into()),
        None => None,
    };
    plan.notify_inside = inside(&plan.notify, NOTIFY_INSIDE, "NOTIFY_SOCKET is");
    plan.credentials_inside = inside(&plan.credentials, CREDENTIALS_INSIDE, "CREDENTIALS_DIRECTORY is");
    plan
}

impl ServicePlan {
    /// The variables that tell the payload of it. Those with its PID in them come later.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut list = Vec::new();
        if let Some(path) = &self.notify_inside {
            list.push(("NOTIFY_SOCKET".into(), path.clone().into_os_string()));
            // Without WATCHDOG_PID it is meant for whoever reads it, sd_watchdog_enabled(3).
            list.extend(self.watchdog_usec.map(|usec| ("WATCHDOG_USEC".into(), usec.to_string().into())));
        }
        list.extend(self.credentials_inside.iter().map(|path| ("CREDENTIALS_DIRECTORY".into(), path.clone().into())));
        list
    }

    /// What brings it into the root.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        let socket = self.notify.iter().zip(&self.notify_inside).map(|(source, at)| {
            Operation::Bind(BindPlan {
                source: source.clone(),
                at: at.clone(),
                read_only: true,
                recursive: false,
                device: false,
                idmap: false,
                optional: false,
            })
        });
        let credentials = self.credentials.iter().zip(&self.credentials_inside);
        let credentials = credentials.map(|(source, at)| Operation::Copy { source: source.clone(), at: at.clone() });
        socket.chain(credentials).collect()
    }

    /// Whether the service manager is to hear when the payload runs.
    pub(crate) fn tells_ready(&self) -> bool {
        self.ready && self.notify.is_some()
    }

    /// Tells the service manager that the payload runs.
    pub(crate) fn executed(&self) {
        if let Some(socket) = self.notify.as_deref().filter(|_| self.ready) {
            tell(socket, "READY=1", None);
        }
    }
}

/// Tells the service manager why the start failed: whoever waits for the service reads it there. It is sure that this was read when
/// this returns, so the process may end.
pub(crate) fn failed(error: &anyhow::Error) {
    let environment = std::env::vars_os().collect();
    let Some(socket) =
        std::env::var_os("NOTIFY_SOCKET").filter(|_| matches!(OwnService::read(&environment), Ok(Some(_))))
    else {
        return;
    };
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<Fault>()).and_then(Fault::hint_text);
    let hint = hint.map_or_else(String::new, |hint| format!("{HINT}{})", crate::error::plain(hint)));
    let Ok((reader, writer)) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC) else { return };
    tell(Path::new(&socket), &format!("STATUS={}{hint}", line(error)), None);
    tell(Path::new(&socket), "BARRIER=1", Some(&writer));
    drop(writer);
    // The service manager closes its copy when it has come to it.
    let mut end = [rustix::event::PollFd::new(&reader, rustix::event::PollFlags::HUP)];
    let patience = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    let _ = rustix::event::poll(&mut end, Some(&patience));
}

/// Sends a notification; without a reader there is nobody to tell.
fn tell(socket: &Path, text: &str, fd: Option<&OwnedFd>) {
    if let Err(error) = try_tell(socket, text, fd) {
        log::debug!("notify {}: {error}", socket.display());
    }
}

fn try_tell(path: &Path, text: &str, fd: Option<&OwnedFd>) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let address = match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(path)?,
    };
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [std::io::IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg_addr(&socket, &address, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<OsString, OsString> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn sockets_for_another_process_are_not_ours() {
        let pid = rustix::process::getpid().as_raw_nonzero().to_string();
        let ours = environment(&[("LISTEN_PID", &pid), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b")]);
        assert_eq!(Listen::read(&ours), Some(Listen { count: 2, names: Some("a:b".into()) }));
        for other in [("1", "2"), (pid.as_str(), "0"), (pid.as_str(), "-1"), ("", "1")] {
            assert_eq!(Listen::read(&environment(&[("LISTEN_PID", other.0), ("LISTEN_FDS", other.1)])), None);
        }
    }

    #[test]
    fn a_child_of_a_service_is_not_its_main_process() {
        let read = |pairs: &[(&str, &str)]| OwnService::read(&environment(pairs)).unwrap();
        assert_eq!(read(&[("INVOCATION_ID", "x"), ("SYSTEMD_EXEC_PID", "1")]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn notifications_arrive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let plan = ServicePlan { notify: Some(path), ready: true, ..ServicePlan::default() };
        plan.executed();
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");
    }
}
