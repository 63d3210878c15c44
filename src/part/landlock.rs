//! Landlock: of what the root holds, and of the ports that the network reaches, the payload may use what is named and nothing else;
//! landlock(7).

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr,
};
use serde::{Deserialize, Serialize};

use crate::error::{Result, fault};

/// What may be done below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Use {
    /// Read files and list directories.
    Ro,
    /// And write, make and remove.
    Rw,
    /// Read and execute.
    Exec,
}

/// What the payload is restricted to; empty: it is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restrictions {
    /// Paths inside. None: files are not restricted.
    paths: Vec<(Use, PathBuf)>,
    /// TCP ports to connect to. None: connections are not restricted.
    tcp_connect: Vec<u16>,
    /// What this kernel cannot do is left out.
    best_effort: bool,
}

/// What files are guarded by at the least: since Linux 6.2 truncation is, without which a file can be emptied that cannot be written.
const FILES: ABI = ABI::V3;
/// What else is guarded where the kernel can: ioctl of devices, Linux 6.10.
const NEWEST: ABI = ABI::V5;
/// Connections are guarded since Linux 6.7.
const NETWORK: ABI = ABI::V4;

impl Restrictions {
    /// Reads `ro:PATH`, `rw:PATH`, `exec:PATH` and `tcp-connect:PORT`.
    ///
    /// # Errors
    /// For anything else, and for a path that is not absolute.
    pub(crate) fn parse(texts: &[OsString], best_effort: bool) -> Result<Restrictions> {
        let mut restrictions = Restrictions { best_effort, ..Restrictions::default() };
        for text in texts {
            let shown = text.to_string_lossy();
            let wrong =
                || fault(format!("--landlock {shown}: accepted is ro:PATH, rw:PATH, exec:PATH, tcp-connect:PORT"));
            let bytes = text.as_bytes();
            let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
            let value = OsString::from_vec(bytes.get(colon + 1..).unwrap_or_default().to_vec());
            let how = match bytes.get(..colon).unwrap_or_default() {
                b"ro" => Use::Ro,
                b"rw" => Use::Rw,
                b"exec" => Use::Exec,
                b"tcp-connect" => {
                    let port = value.to_str().and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
                    restrictions.tcp_connect.push(port);
                    continue;
                }
                _ => return Err(wrong().into()),
            };
            if !Path::new(&value).is_absolute() {
                return Err(fault(format!("--landlock {shown}: a path inside begins with /")).into());
            }
            restrictions.paths.push((how, value.into()));
        }
        Ok(restrictions)
    }

    /// Whether nothing is restricted.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.tcp_connect.is_empty()
    }

    /// Whether files are restricted; mounts are forbidden then, landlock(7).
    pub(crate) fn restricts_files(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Restricts this process for good, and what it executes. Paths are those of its root.
    ///
    /// # Errors
    /// When a path does not exist, and when the kernel cannot do all of it and the best effort is not enough.
    pub(crate) fn apply(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let level = if self.best_effort { CompatLevel::BestEffort } else { CompatLevel::HardRequirement };
        let cannot = |error: landlock::RulesetError| {
            let line = fault(format!("--landlock: this kernel cannot do all of it: {error}"));
            line.hint("files take Linux 6.2, ports 6.7, and lsm=landlock,…; --landlock-best-effort goes without what is missing")
        };
        let mut ruleset = Ruleset::default().set_compatibility(level);
        if !self.paths.is_empty() {
            ruleset = ruleset.handle_access(AccessFs::from_all(FILES)).map_err(cannot)?;
            let more = AccessFs::from_all(NEWEST);
            ruleset = ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(more).map_err(cannot)?;
            ruleset = ruleset.set_compatibility(level);
        }
        if !self.tcp_connect.is_empty() {
            ruleset = ruleset.handle_access(AccessNet::from_all(NETWORK) & AccessNet::ConnectTcp).map_err(cannot)?;
        }
        // What is not handled above is not missed below.
        let mut created = ruleset.create().map_err(cannot)?.set_compatibility(CompatLevel::BestEffort);
        for (how, path) in &self.paths {
            let opened = PathFd::new(path).map_err(|error| fault(format!("--landlock {}: {error}", path.display())))?;
            let is_directory = std::fs::metadata(path).is_ok_and(|meta| meta.is_dir());
            let access = how.access() & if is_directory { BitFlags::all() } else { AccessFs::from_file(NEWEST) };
            created = created.add_rule(PathBeneath::new(opened, access)).map_err(cannot)?;
        }
        for port in &self.tcp_connect {
            created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp)).map_err(cannot)?;
        }
        created.restrict_self().map_err(cannot)?;
        Ok(())
    }
}

impl Use {
    fn access(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Use::Ro => read,
            Use::Rw => read | AccessFs::from_write(NEWEST),
            Use::Exec => read | AccessFs::Execute,
        }
    }
}

impl fmt::Display for Restrictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |how: Use| match how {
            Use::Ro => "ro",
            Use::Rw => "rw",
            Use::Exec => "exec",
        };
        let paths = self.paths.iter().map(|(how, path)| format!("{}:{}", of(*how), path.display()));
        let ports = self.tcp_connect.iter().map(|port| format!("tcp-connect:{port}"));
        let effort = self.best_effort.then(|| "(as far as this kernel can)".to_owned());
        f.write_str(&paths.chain(ports).chain(effort).collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_shown() {
        let parse = |words: &[&str]| Restrictions::parse(&words.iter().map(OsString::from).collect::<Vec<_>>(), false);
        let words = ["ro:/etc", "rw:/tmp/a b", "exec:/usr", "tcp-connect:443"];
        assert_eq!(parse(&words).unwrap().to_string(), words.join(" "));
        assert!(parse(&[]).unwrap().is_empty());
        for wrong in ["/etc", "ro:etc", "wo:/etc", "tcp-connect:http", "tcp-connect:70000", "ro:"] {
            let line = crate::error::line(&parse(&[wrong]).unwrap_err());
            assert!(line.starts_with(&format!("--landlock {wrong}: ")), "{line}");
        }
    }
}
