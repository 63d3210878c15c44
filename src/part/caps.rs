//! Capabilities: what the payload's bounding set keeps, capabilities(7).

use anyhow::Context;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::Serialize;

use crate::error::{Result, fault};

/// What Docker keeps by default, less MKNOD and AUDIT_WRITE, which a user namespace makes pointless.
const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT);

/// Every capability that has a name.
fn all() -> impl Iterator<Item = (&'static str, CapabilitySet)> {
    CapabilitySet::all().iter_names()
}

/// A set of capabilities, by name and sorted as the kernel numbers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Capabilities {
    /// The bounding set.
    kept: Vec<&'static str>,
    /// Those of them that a user other than root has, too, and hands on by execve.
    #[serde(skip)]
    ambient: Vec<&'static str>,
}

impl Capabilities {
    /// The default set with `add` and without `drop`, as Docker reads them: names with or without CAP_, or ALL. `ambient` are those of
    /// them that a user other than root keeps.
    ///
    /// # Errors
    /// When a name is not one of a capability, or one of `ambient` is not kept.
    pub(crate) fn parse(add: &[String], drop: &[String], ambient: &[String]) -> Result<Capabilities> {
        let added = sets("--cap-add", add)?;
        let dropped = sets("--cap-drop", drop)?;
        // `--cap-drop ALL --cap-add X` keeps X: what is named alone is meant more than ALL.
        let named = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("all"));
        let kept = if named(drop) { added } else { DEFAULT.union(added).difference(dropped) };
        let ambient = sets("--cap-ambient", ambient)?;
        let names = |set: CapabilitySet| all().filter(move |(_, c)| set.contains(*c)).map(|(name, _)| name);
        if let Some(name) = names(ambient.difference(kept)).next() {
            return Err(fault(format!("--cap-ambient {name}: it is taken away by default, or by --cap-drop"))
                .hint(format!("--cap-add {name} keeps it"))
                .into());
        }
        Ok(Capabilities { kept: names(kept).collect(), ambient: names(ambient).collect() })
    }

    /// The names of all that are kept, without CAP_.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.kept.iter().copied()
    }

    /// The names of those that a user other than root has, without CAP_.
    pub(crate) fn ambient_names(&self) -> impl Iterator<Item = &'static str> {
        self.ambient.iter().copied()
    }

    /// Whether the capability of this name, without CAP_, is kept.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        self.kept.contains(&name)
    }

    /// Takes every other capability from this process for good. The payload's user may change afterwards: root keeps these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn apply(&self) -> Result<()> {
        let keep = union(&self.kept);
        for (name, capability) in all().filter(|(_, capability)| !keep.contains(*capability)) {
            // What the parent has dropped already: asking costs nothing, dropping a copy of all credentials.
            if rustix::thread::capability_is_in_bounding_set(capability) == Ok(false) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // An older kernel does not know the newest ones.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("drop CAP_{name} from the bounding set"));
                }
            }
        }
        if !self.ambient.is_empty() {
            // Else the switch to another user takes them all, capabilities(7).
            rustix::thread::set_keep_capabilities(true).context("keep capabilities for another user")?;
        }
        Ok(())
    }

    /// Sets what this process may do now: of the kept ones root has what it has, another user the ambient ones, and nothing else is
    /// handed on by inheritance. After the user switch.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn limit(&self) -> Result<()> {
        let now = rustix::thread::capabilities(None).context("read capabilities")?;
        let ambient = union(&self.ambient);
        let keep = if rustix::process::geteuid().is_root() || ambient.is_empty() { union(&self.kept) } else { ambient };
        let permitted = now.permitted.intersection(keep);
        let effective = if ambient.is_empty() { now.effective.intersection(keep) } else { permitted };
        let sets = CapabilitySets { effective, permitted, inheritable: ambient.intersection(permitted) };
        rustix::thread::set_capabilities(None, sets).context("set capabilities")?;
        for (name, capability) in all().filter(|(_, capability)| ambient.contains(*capability)) {
            rustix::thread::configure_capability_in_ambient_set(capability, true)
                .with_context(|| format!("--cap-ambient {name}"))?;
        }
        Ok(())
    }
}

fn union(names: &[&'static str]) -> CapabilitySet {
    names.iter().filter_map(|name| CapabilitySet::from_name(name)).fold(CapabilitySet::empty(), CapabilitySet::union)
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&if self.kept.is_empty() { "none".to_owned() } else { self.kept.join(" ").to_lowercase() })?;
        if self.ambient.is_empty() { Ok(()) } else { write!(f, "; ambient: {}", self.ambient.join(" ").to_lowercase()) }
    }
}

/// What the stub needs: to signal a payload that became another user, and nothing else.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn limit_stub() -> Result<()> {
    let now = rustix::thread::capabilities(None).context("read capabilities")?;
    let keep = now.permitted.intersection(CapabilitySet::KILL);
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).context("set the stub's capabilities")
}

fn sets(flag: &str, names: &[String]) -> Result<CapabilitySet> {
    let mut union = CapabilitySet::empty();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let set = if bare == "ALL" { Some(CapabilitySet::all()) } else { CapabilitySet::from_name(bare) };
        union |= set.ok_or_else(|| {
            fault(format!("{flag} {name}: no such capability"))
                .hint("names are those of capabilities(7), with or without CAP_: NET_ADMIN, SYS_PTRACE, …, or ALL")
        })?;
    }
    Ok(union)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Capabilities::parse(&own(add), &own(drop), &[]).unwrap().kept
    }

    #[test]
    fn add_and_drop_read_as_dockers() {
        assert_eq!(names(&[], &[]).len(), 12);
        assert!(names(&["cap_sys_nice"], &[]).contains(&"SYS_NICE"));
        assert!(!names(&[], &["NET_RAW"]).contains(&"NET_RAW"));
        assert_eq!(names(&["KILL"], &["ALL"]), ["KILL"]);
        assert_eq!(names(&["all"], &[]).len(), 41);
        assert!(!names(&["ALL"], &["SYS_ADMIN"]).contains(&"SYS_ADMIN"));
        assert!(Capabilities::parse(&["FLY".into()], &[], &[]).is_err());
        let ambient = |name: &str| Capabilities::parse(&[], &["KILL".into()], &[name.to_owned()]);
        assert_eq!(ambient("net_raw").unwrap().ambient, ["NET_RAW"]);
        assert_eq!(
            crate::error::line(&ambient("KILL").unwrap_err()),
            "--cap-ambient KILL: it is taken away by default, or by --cap-drop"
        );
    }
}
