//! What a security module of the kernel calls the payload, from execve on: an AppArmor profile or an SELinux label.

use std::fmt;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Fault, Result, fault};
use crate::part::mounts::PROC;

/// A name that the module knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Label {
    /// A profile that is loaded.
    Apparmor(String),
    /// `USER:ROLE:TYPE:LEVEL`.
    Selinux(String),
}

/// AppArmor decides on this machine.
pub(crate) fn apparmor_is_on() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|enabled| enabled.starts_with(b"Y"))
}

/// SELinux has a policy on this machine: `true` if it enforces it, `false` if it only writes down what it would deny.
pub(crate) fn selinux_enforces() -> Option<bool> {
    let enforce = std::fs::read("/sys/fs/selinux/enforce").ok()?;
    // What every process is called as long as no policy was loaded.
    let own = std::fs::read("/proc/self/attr/current").ok()?;
    (own.trim_ascii_end() != b"kernel" && own != b"kernel\0").then(|| enforce.starts_with(b"1"))
}

impl Label {
    /// What was asked, on a machine where that module is in force.
    ///
    /// # Errors
    /// When it is not, or the name cannot be one.
    pub(crate) fn of(apparmor: Option<String>, selinux: Option<String>) -> Result<Option<Label>> {
        let (label, in_force) = match (apparmor, selinux) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(fault("--apparmor and --selinux-label are of different modules").into()),
            (Some(profile), None) => (Label::Apparmor(profile), apparmor_is_on()),
            (None, Some(context)) => (Label::Selinux(context), selinux_enforces().is_some()),
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
        match rustix::io::write(&file, text.as_bytes()) {
            Ok(written) if written == text.len() => Ok(()),
            Ok(_) => Err(fault(format!("{}: cut off", context())).into()),
            Err(error) => Err(self.refused(error).into()),
        }
    }

    /// What the module's answer means.
    fn refused(&self, error: Errno) -> Fault {
        let (flag, _) = self.names();
        let shown = format!("{flag} {}", self.text());
        match (self, error) {
            (Label::Apparmor(_), Errno::NOENT) => fault(format!("{shown}: no profile of this name is loaded"))
                .hint("apparmor_parser --replace FILE loads one, aa-status lists those that are loaded"),
            (Label::Apparmor(profile), Errno::ACCESS | Errno::PERM) => fault(format!("{shown}: {error}"))
                .hint(format!("the profile that confines sandbox itself needs: change_profile -> {profile},")),
            (Label::Selinux(_), Errno::INVAL) => {
                fault(format!("{shown}: the policy that is loaded knows no such label"))
                    .hint("it is USER:ROLE:TYPE:LEVEL, without the level where the policy has none; id -Z shows one")
            }
            (Label::Selinux(_), Errno::ACCESS | Errno::PERM) => fault(format!("{shown}: {error}"))
                .hint("the policy lets the caller choose no label: the type that id -Z shows needs process:setexec"),
            _ => fault(format!("{shown}: {error}")),
        }
    }

    /// For a command that could not be executed: what the module asks for then.
    pub(crate) fn hint_at_execve(&self) -> String {
        match self {
            Label::Apparmor(profile) => {
                format!("the AppArmor profile {profile} may forbid it: journalctl -k --grep apparmor")
            }
            Label::Selinux(_) => "the policy may forbid it: it needs process:transition, process2:nnp_transition (and \
                nosuid_transition) from the caller's type to this one, and file:entrypoint for the program"
                .to_owned(),
        }
    }
}

/// The first of the files in this thread's /proc/…/attr that exists; it is the kernel's own, or nothing is written: CVE-2019-16884,
/// CVE-2025-52881.
fn open_attribute(files: &[&str]) -> Result<OwnedFd> {
    let mut last = None;
    for file in files {
        let path = format!("/proc/thread-self/attr/{file}");
        match rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) if rustix::fs::fstatfs(&file)?.f_type == PROC => return Ok(file),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn what_is_no_name_and_what_is_of_two_modules_is_refused() {
        for (apparmor, selinux) in [(Some(""), None), (Some("a\nb"), None), (None, Some("")), (Some("a"), Some("b"))] {
            let (apparmor, selinux) = (apparmor.map(str::to_owned), selinux.map(str::to_owned));
            let refused = Label::of(apparmor.clone(), selinux.clone());
            let text = error::line(&refused.expect_err("it should have been refused"));
            assert!(text.contains("this is no name") || text.contains("different modules"), "{text}");
        }
        assert!(matches!(Label::of(None, None), Ok(None)));
    }

    #[test]
    fn every_answer_of_the_module_is_one_line_with_what_was_asked() {
        let (apparmor, selinux) = (Label::Apparmor("web".into()), Label::Selinux("a:b:c".into()));
        let table = [
            (
                &apparmor,
                Errno::NOENT,
                "--apparmor web: no profile of this name is loaded",
                Some("apparmor_parser --replace"),
            ),
            (&apparmor, Errno::PERM, "--apparmor web: Operation not permitted", Some("change_profile -> web,")),
            (
                &selinux,
                Errno::INVAL,
                "--selinux-label a:b:c: the policy that is loaded knows no such label",
                Some("id -Z"),
            ),
            (&selinux, Errno::ACCESS, "--selinux-label a:b:c: Permission denied", Some("process:setexec")),
            (&selinux, Errno::NOSPC, "--selinux-label a:b:c: No space left on device", None),
        ];
        for (label, answer, message, hint) in table {
            let refused = label.refused(answer);
            let hints = refused.hint_text().map(str::to_owned);
            assert!(hint.is_none() && hints.is_none() || hints.is_some_and(|text| text.contains(hint.unwrap_or("?"))));
            assert_eq!(error::line(&refused.into()), message);
        }
    }
}
