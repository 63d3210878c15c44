//! What a security module of the kernel calls the payload, from execve on: an AppArmor profile or an SELinux label.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Result, fault};

/// A name that the module knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Label {
    /// A profile that is loaded.
    Apparmor(String),
    /// `USER:ROLE:TYPE:LEVEL`.
    Selinux(String),
}

/// What `/proc` is to the kernel, statfs(2).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

impl Label {
    /// What was asked, on a machine where that module is in force.
    ///
    /// # Errors
    /// When it is not, or the name cannot be one.
    pub(crate) fn of(apparmor: Option<String>, selinux: Option<String>) -> Result<Option<Label>> {
        let (label, in_force) = match (apparmor, selinux) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(fault("--apparmor and --selinux-label are of different modules").into()),
            (Some(profile), None) => {
                let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
                (Label::Apparmor(profile), enabled.starts_with(b"Y"))
            }
            (None, Some(context)) => (Label::Selinux(context), Path::new("/sys/fs/selinux/enforce").exists()),
        };
        let (flag, module) = label.names();
        if label.text().is_empty() || label.text().contains(char::is_control) {
            return Err(fault(format!("{flag} `{}`: this is no name", crate::error::plain(label.text()))).into());
        }
        if !in_force {
            return Err(fault(format!("{flag} {}: {module} is not in force on this machine", label.text()))
                .hint(format!("leave {flag} out, or boot with {module}"))
                .into());
        }
        Ok(Some(label))
    }

    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Label::Apparmor(_) => ("--apparmor", "AppArmor"),
            Label::Selinux(_) => ("--selinux-label", "SELinux"),
        }
    }

    fn text(&self) -> &str {
        let (Label::Apparmor(text) | Label::Selinux(text)) = self;
        text
    }

    /// Has the kernel give it to this process at its execve.
    ///
    /// # Errors
    /// When the module does not know the name, or does not let this process have it.
    pub(crate) fn set(&self) -> Result<()> {
        let (flag, _) = self.names();
        let (files, text): (&[&str], _) = match self {
            // The second is where it is before Linux 5.8.
            Label::Apparmor(profile) => (&["apparmor/exec", "exec"], format!("exec {profile}")),
            Label::Selinux(context) => (&["exec"], context.clone()),
        };
        let context = || format!("{flag} {}", self.text());
        let file = open_attribute(files).with_context(context)?;
        let written = rustix::io::write(&file, text.as_bytes()).with_context(context)?;
        if written == text.len() { Ok(()) } else { Err(fault(format!("{}: cut off", context())).into()) }
    }
}

/// The first of the files in this thread's /proc/…/attr that exists; it is the kernel's own, or nothing is written: CVE-2019-16884,
/// CVE-2025-52881.
fn open_attribute(files: &[&str]) -> Result<OwnedFd> {
    let mut last = None;
    for file in files {
        let path = format!("/proc/thread-self/attr/{file}");
        match rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) if rustix::fs::fstatfs(&file)?.f_type == PROC_SUPER_MAGIC => return Ok(file),
            Ok(_) => return Err(fault(format!("{path} is not the kernel's")).into()),
            Err(error) => last = Some((path, error)),
        }
    }
    let Some((path, error)) = last else { return Err(fault("no such attribute").into()) };
    Err(error).with_context(|| format!("open {path}"))
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, module) = self.names();
        write!(f, "{} ({module})", self.text())
    }
}
