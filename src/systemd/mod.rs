//! The only place that speaks D-Bus: what a unit may be given, how it is started, and what the kernel makes of it.
//!
//! ```text
//! "CPUShares=600" ─ Asked::parse ─▶ Assignment ─ translate(…, CgroupMode) ─▶ Setting (what is sent; plain data of the plan)
//!                        └───────▶ OwnSetting: LimitNOFILE=, Nice= …, which a scope has not: the child sets them
//! Bus::system | Bus::user ─ begin_scope ─▶ Pending ─ turn_scope, finish_scope ─▶ the process is in the unit
//!                                (other work here)            └─ verify ─▶ Report: each limit as the kernel shows it
//! ```
//!
//! [`Bus`] is one blocking socket without a thread behind it ([`wire`] says why it is not zbus's own); connecting and
//! beginning wait for nothing, so that the launcher's other work happens while the daemon and systemd do theirs. It is
//! not for keeping: see there.

mod bus;
mod cgroup;
mod directive;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod grace;
mod job;
mod look;
mod own;
mod property;
mod reach;
mod scope;
mod service;
mod show;
mod start;
mod translate;
mod variant;
mod verify;
mod wire;

pub(crate) use bus::Bus;
pub(crate) use cgroup::{CgroupMode, CgroupPaths, UnitOfProcess};
pub(crate) use directive::Directive;
pub(crate) use grace::Grace;
pub(crate) use look::{DownService, ListedUnit, Usage, join_cgroups};
pub(crate) use own::{OwnSetting, only_in_a_unit_file};
pub(crate) use property::{Asked, Assignment, KeptSetting, Setting, subject};
pub(crate) use reach::Socket;
pub(crate) use scope::ScopeRequest;
pub(crate) use service::{HINT, ServiceRequest};
pub(crate) use start::{Pending, Progress};
pub(crate) use translate::translate;
pub(crate) use verify::{Changes, Limit, Report, Subject, verify};
