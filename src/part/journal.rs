//! The journal: streams for the payload's output, and lines of what its terminal shows; systemd-journald.service(8).
//!
//! journald looks up the unit of whoever writes, at each write. A writer that is gone by then has none any more: the header of the
//! stream names the unit for that case, which journald believes root only.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::net::sockopt;
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::Host;
use crate::layer::Log;
use crate::spec::Spec;

/// Priorities of syslog(3): what is written to standard output, and to standard error.
const INFO: u8 = 6;
const ERROR: u8 = 3;

/// What the kernel may hold back for a journald that is busy; sd_journal_stream_fd(3) takes as much.
const SEND_BUFFER: usize = 8 << 20;

/// What goes to the journal, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogPlan {
    /// What the journal calls the sender.
    pub(crate) identifier: String,
    /// The unit that it belongs to.
    pub(crate) unit: String,
    /// That unit belongs to a user's service manager.
    pub(crate) user: bool,
    /// Standard output goes there.
    pub(crate) output: bool,
    /// Standard error goes there.
    pub(crate) error: bool,
    /// What the sandbox's terminal shows goes there, too.
    pub(crate) terminal: bool,
    /// The directory of journald's sockets.
    pub(crate) sockets: PathBuf,
}

/// Decides what goes to the journal: what was asked, and in a service what goes there anyway, so that output and errors differ.
///
/// # Errors
/// When it was asked and there is no unit.
pub(crate) fn plan(spec: &Spec, host: &Host, unit: Option<(&str, bool)>, terminal: bool) -> Result<Option<LogPlan>> {
    let asked = spec.unit.log == Some(Log::Journal);
    let inherited = host.service.is_some() && spec.unit.log.is_none();
    let streams = match (asked, inherited) {
        (true, _) => (true, true),
        (false, true) => host.journal_streams,
        (false, false) => (false, false),
    };
    let Some((unit, user)) = unit else {
        return if asked { Err(without_unit()) } else { Ok(None) };
    };
    if streams == (false, false) {
        return Ok(None);
    }
    let namespace = host.environment.get(std::ffi::OsStr::new("LOG_NAMESPACE")).filter(|_| host.service.is_some());
    let sockets = match namespace.and_then(|name| name.to_str()) {
        Some(name) => format!("/run/systemd/journal.{name}"),
        None => "/run/systemd/journal".to_owned(),
    };
    Ok(Some(LogPlan {
        identifier: spec.name.clone(),
        unit: unit.to_owned(),
        user,
        output: streams.0 && !terminal,
        error: streams.1 && !terminal,
        terminal: terminal && asked,
        sockets: sockets.into(),
    }))
}

fn without_unit() -> anyhow::Error {
    fault("--log journal writes under the unit's name, and there is no unit")
        .hint("leave --log out; what starts it can log: systemd-cat sandbox run …")
        .into()
}

impl std::fmt::Display for LogPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [(self.output, "output"), (self.error, "errors"), (self.terminal, "what the terminal shows")];
        let parts: Vec<&str> = parts.into_iter().filter(|(goes, _)| *goes).map(|(_, what)| what).collect();
        write!(f, "{} to the journal as {}, under {}", parts.join(" and "), self.identifier, self.unit)
    }
}

/// Open streams for the payload.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

impl Streams {
    /// Connects them.
    ///
    /// # Errors
    /// When journald cannot be reached.
    pub(crate) fn open(plan: &LogPlan) -> Result<Streams> {
        let open = |wanted: bool, priority| wanted.then(|| stream(plan, priority)).transpose();
        Ok(Streams { output: open(plan.output, INFO)?, error: open(plan.error, ERROR)? })
    }

    /// Makes them standard output and error of this process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn take(&self) -> Result<()> {
        if let Some(output) = &self.output {
            rustix::stdio::dup2_stdout(output).context("write to the journal")?;
        }
        if let Some(error) = &self.error {
            rustix::stdio::dup2_stderr(error).context("write to the journal")?;
        }
        Ok(())
    }
}

fn stream(plan: &LogPlan, priority: u8) -> Result<OwnedFd> {
    let path = plan.sockets.join("stdout");
    let connect = || -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&path)?;
        stream.shutdown(std::net::Shutdown::Read)?;
        // Less is taken where it is too much.
        let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        stream.write_all(header(plan, priority).as_bytes())?;
        Ok(stream)
    };
    connect().map(OwnedFd::from).with_context(|| format!("log to the journal: {}", path.display()))
}

/// Identifier, unit, priority, whether lines may begin with `<N>` for another one; then three ways to forward, none.
fn header(plan: &LogPlan, priority: u8) -> String {
    let unit = if plan.user { "" } else { &plan.unit };
    format!("{}\n{unit}\n{priority}\n1\n0\n0\n0\n", plan.identifier)
}

/// Turns what a terminal shows into lines of the journal. It is written by the launcher, which is not in the unit: each line names
/// the unit that it is about, as the system's own services do.
#[derive(Debug)]
pub(crate) struct TerminalLog {
    socket: UnixDatagram,
    path: PathBuf,
    fields: String,
    line: Vec<u8>,
    escape: Escape,
}

/// Where in an escape sequence of ECMA-48 the last byte was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    Outside,
    Begun,
    Control,
    Text,
}

impl TerminalLog {
    /// Prepares it; a journald that cannot be reached later loses lines, not the terminal.
    ///
    /// # Errors
    /// When no socket can be had.
    pub(crate) fn open(plan: &LogPlan) -> Result<TerminalLog> {
        let socket = UnixDatagram::unbound().context("log to the journal")?;
        let object = if plan.user { "OBJECT_SYSTEMD_USER_UNIT" } else { "OBJECT_SYSTEMD_UNIT" };
        let fields = format!("PRIORITY={INFO}\nSYSLOG_IDENTIFIER={}\n{object}={}\n", plan.identifier, plan.unit);
        let path = plan.sockets.join("socket");
        Ok(TerminalLog { socket, path, fields, line: Vec::new(), escape: Escape::Outside })
    }

    /// Takes what was shown.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::Outside, 0x1b) => Escape::Begun,
                (Escape::Begun, b'[') => Escape::Control,
                (Escape::Begun, b']' | b'P' | b'^' | b'_') => Escape::Text,
                (Escape::Control, 0x20..=0x3f) | (Escape::Begun, 0x20..=0x2f) => self.escape,
                (Escape::Text, 0x1b) => Escape::Begun,
                (Escape::Text, byte) if *byte != 7 => Escape::Text,
                (Escape::Outside, b'\n') => {
                    self.flush();
                    Escape::Outside
                }
                (Escape::Outside, byte) if *byte >= 0x20 && *byte != 0x7f || *byte == b'\t' => {
                    self.line.push(*byte);
                    Escape::Outside
                }
                _ => Escape::Outside,
            };
            if self.line.len() >= 48 << 10 {
                self.flush();
            }
        }
    }

    /// Sends the line that is not ended yet.
    pub(crate) fn flush(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let message = [self.fields.as_bytes(), b"MESSAGE=", &self.line, b"\n"].concat();
        self.line.clear();
        if let Err(error) = self.socket.send_to(&message, Path::new(&self.path)) {
            log::debug!("log to the journal: {error}");
        }
    }
}

impl Drop for TerminalLog {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(sockets: &Path) -> LogPlan {
        LogPlan {
            identifier: "web".into(),
            unit: "web.scope".into(),
            user: false,
            output: true,
            error: true,
            terminal: true,
            sockets: sockets.to_owned(),
        }
    }

    #[test]
    fn the_header_names_the_unit_for_root_only() {
        let mut plan = plan(Path::new("/"));
        assert_eq!(header(&plan, 3), "web\nweb.scope\n3\n1\n0\n0\n0\n");
        plan.user = true;
        assert_eq!(header(&plan, 6), "web\n\n6\n1\n0\n0\n0\n");
    }

    #[test]
    fn what_a_terminal_shows_becomes_lines_without_its_controls() {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        let mut log = TerminalLog::open(&plan(directory.path())).unwrap();
        log.write(b"\x1b[1;31mre");
        log.write(b"d\x1b[0m\r\n\n\x1b]0;title\x07a\tb\x1b(B");
        drop(log);
        let fields = "PRIORITY=6\nSYSLOG_IDENTIFIER=web\nOBJECT_SYSTEMD_UNIT=web.scope\nMESSAGE=";
        for line in ["red", "a\tb"] {
            let mut bytes = [0; 256];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(String::from_utf8_lossy(&bytes[..length]), format!("{fields}{line}\n"));
        }
    }
}
