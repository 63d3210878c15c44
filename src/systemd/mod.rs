//! The only place that speaks D-Bus: properties of units, and their translation for this machine's cgroups.

mod bus;
mod cgroup;
mod own;
mod property;
mod reach;
mod scope;
mod show;
mod translate;
mod verify;
mod wire;

pub(crate) use bus::Bus;
pub(crate) use cgroup::CgroupMode;
pub(crate) use own::OwnSetting;
pub(crate) use property::{Asked, Assignment, Setting};
pub(crate) use reach::Socket;
pub(crate) use scope::{PendingScope, ScopeRequest};
pub(crate) use translate::translate;
pub(crate) use verify::{Report, Subject, verify};
