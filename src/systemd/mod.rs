//! The only place that speaks D-Bus: properties of units, and their translation for this machine's cgroups.

mod cgroup;
mod own;
mod property;
mod show;
mod translate;

pub(crate) use cgroup::CgroupMode;
pub(crate) use own::{OwnSetting, exec_setting};
pub(crate) use property::{Asked, Assignment, Setting, Value, since};
pub(crate) use translate::{Translated, translate};
