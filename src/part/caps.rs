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
pub(crate) struct Capabilities(Vec<&'static str>);

impl Capabilities {
    /// The default set with `add` and without `drop`, as Docker reads them: names with or without CAP_, or ALL.
    ///
    /// # Errors
    /// When a name is not one of a capability.
    pub(crate) fn parse(add: &[String], drop: &[String]) -> Result<Capabilities> {
        let added = sets("--cap-add", add)?;
        let dropped = sets("--cap-drop", drop)?;
        // `--cap-drop ALL --cap-add X` keeps X: what is named alone is meant more than ALL.
        let named = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("all"));
        let kept = if named(drop) { added } else { DEFAULT.union(added).difference(dropped) };
        Ok(Capabilities(all().filter(|(_, c)| kept.contains(*c)).map(|(name, _)| name).collect()))
    }

    /// The names of all that are kept, without CAP_.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }

    /// Whether the capability of this name, without CAP_, is kept.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    fn set(&self) -> CapabilitySet {
        self.0
            .iter()
            .filter_map(|name| CapabilitySet::from_name(name))
            .fold(CapabilitySet::empty(), CapabilitySet::union)
    }

    /// Takes every other capability from this process for good. The payload's user may change afterwards: root keeps these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn apply(&self) -> Result<()> {
        let keep = self.set();
        for (name, capability) in all().filter(|(_, capability)| !keep.contains(*capability)) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // An older kernel does not know the newest ones.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("drop CAP_{name} from the bounding set"));
                }
            }
        }
        Ok(())
    }

    /// Sets what this process may do now: the kept ones that it has, nothing to hand on by inheritance. After the user switch.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn limit(&self) -> Result<()> {
        let now = rustix::thread::capabilities(None).context("read capabilities")?;
        let keep = self.set();
        let sets = CapabilitySets {
            effective: now.effective.intersection(keep),
            permitted: now.permitted.intersection(keep),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).context("set capabilities")
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("none") } else { f.write_str(&self.0.join(" ").to_lowercase()) }
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
        Capabilities::parse(&own(add), &own(drop)).unwrap().0
    }

    #[test]
    fn add_and_drop_read_as_dockers() {
        assert_eq!(names(&[], &[]).len(), 12);
        assert!(names(&["cap_sys_nice"], &[]).contains(&"SYS_NICE"));
        assert!(!names(&[], &["NET_RAW"]).contains(&"NET_RAW"));
        assert_eq!(names(&["KILL"], &["ALL"]), ["KILL"]);
        assert_eq!(names(&["all"], &[]).len(), 41);
        assert!(!names(&["ALL"], &["SYS_ADMIN"]).contains(&"SYS_ADMIN"));
        assert!(Capabilities::parse(&["FLY".into()], &[]).is_err());
    }
}
