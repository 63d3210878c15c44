//! The filter of system calls that the payload gets last: our own policy, or one from a profile in the format of Docker and OCI.
//!
//! The policy is data ([`policy`]), a profile is read into the same form ([`profile`]); both become verdicts for the numbers of each
//! architecture ([`arch`]), and those a program ([`bpf`]) while the plan is made, so that the child has only to load it.

pub(crate) mod arch;
pub(crate) mod bpf;
#[rustfmt::skip]
mod compiled;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod policy;
pub(crate) mod profile;
mod rule;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Result, fault};
use crate::layer::Namespace;
use crate::part::caps::Capabilities;
use crate::spec::Spec;
use crate::sys;
use arch::Arch;
use bpf::{Instruction, Table};
use profile::Profile;
use rule::{Action, Rule, Verdict};

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// Our own policy.
    Default,
    /// No filter.
    Unconfined,
    /// The policy in this file.
    Profile(PathBuf, Box<Profile>),
}

impl Asked {
    /// Reads `default`, `unconfined` or a file.
    ///
    /// # Errors
    /// When the file cannot be read, or is no profile.
    pub(crate) fn parse(text: &OsStr) -> Result<Asked> {
        match text.to_str() {
            Some(DEFAULT) => Ok(Asked::Default),
            Some("unconfined") => Ok(Asked::Unconfined),
            _ => {
                let path = Path::new(text);
                let profile = Profile::load(path).with_context(|| format!("--seccomp {}", path.display()))?;
                Ok(Asked::Profile(path.to_owned(), Box::new(profile)))
            }
        }
    }
}

/// What a policy may depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// The capabilities that the payload's bounding set keeps.
    pub(crate) capabilities: &'a Capabilities,
    /// It sees the host's processes.
    pub(crate) shares_pids: bool,
    /// It may make namespaces of its own.
    pub(crate) nesting: bool,
    /// Major and minor version of the kernel.
    pub(crate) kernel: (u32, u32),
}

impl<'a> Circumstances<'a> {
    /// Those of a request on a kernel.
    pub(crate) fn new(spec: &'a Spec, kernel: (u32, u32)) -> Circumstances<'a> {
        let shares_pids = spec.shares(Namespace::Pid);
        Circumstances { capabilities: &spec.capabilities, shares_pids, nesting: spec.nesting, kernel }
    }

    /// Whether [`compiled::USUAL`] is our own policy's program for them: on x86-64, and none of what the policy looks at was asked for.
    fn are_usual(self) -> bool {
        let gated = policy::WITH_CAPABILITY.iter().flat_map(|(capabilities, _)| *capabilities);
        let mut opens = gated.filter(|name| **name != "SYS_CHROOT");
        let keeps = |name: &str| self.capabilities.keeps(name);
        Arch::NATIVE == Arch::X86_64
            && !self.shares_pids
            && !self.nesting
            && keeps("SYS_CHROOT")
            && !opens.any(|name| keeps(name))
    }
}

/// What our own policy is called; a file of this name is given with a `/` in it.
const DEFAULT: &str = "default";

/// The filter, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// Where it comes from: `default`, `unconfined` or a file.
    pub(crate) source: String,
    /// The program; empty: none is loaded.
    pub(crate) program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` for loading it.
    pub(crate) flags: u32,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Filter {
    /// For a person's eyes: where it comes from, and how long its program is.
    ///
    /// # Errors
    /// Those of the serializer.
    pub(crate) fn summary<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut summary = serializer.serialize_struct("Filter", 2)?;
        summary.serialize_field("source", &self.source)?;
        summary.serialize_field("instructions", &self.program.len())?;
        summary.end()
    }

    /// Decides the filter; `warnings` gets a line for what of a profile has no effect.
    ///
    /// # Errors
    /// When a profile's program is longer than the kernel takes.
    pub(crate) fn plan(asked: &Asked, around: Circumstances<'_>, warnings: &mut Vec<String>) -> Result<Filter> {
        let (source, (tables, foreign, flags)) = match asked {
            Asked::Unconfined => {
                return Ok(Filter { source: "unconfined".into(), program: Vec::new(), flags: 0 });
            }
            Asked::Default if around.are_usual() => {
                let program = compiled::USUAL.iter().copied().map(Instruction::from).collect();
                return Ok(Filter { source: DEFAULT.into(), program, flags: 0 });
            }
            Asked::Default => (DEFAULT.into(), (vec![default_table(Arch::NATIVE, around)], DENIED, 0)),
            Asked::Profile(path, profile) => {
                let decided = profile.decide(Arch::NATIVE, around);
                let source = path.display().to_string();
                warnings.extend(decided.unknown.iter().map(|name| {
                    format!("--seccomp {source}: no system call is called {name}, so nothing is denied by that line")
                }));
                (source, (decided.tables, decided.foreign, decided.flags))
            }
        };
        let program = bpf::compile(&tables, foreign);
        if program.len() > bpf::LONGEST {
            return Err(fault(format!(
                "--seccomp {source}: its program has {} instructions, the kernel takes {}",
                program.len(),
                bpf::LONGEST
            ))
            .into());
        }
        Ok(Filter { source, program, flags })
    }

    /// The program that does the same, but hands these calls over to whoever listens. `None` where that may be more than the filter
    /// allows: what is not our own policy may deny them, or what is done between loading it and execve.
    pub(crate) fn handing_over(&self, calls: &[libc::c_long]) -> Option<Vec<Instruction>> {
        self.is_our_own().then(|| bpf::handing_over(Arch::NATIVE, calls, &self.program))
    }

    /// Whether it is our own policy, of which is known what it allows.
    fn is_our_own(&self) -> bool {
        self.source == DEFAULT
    }

    /// Whether sigprocmask(2) works under it for sure.
    pub(crate) fn lets_signals_be_unblocked(&self) -> bool {
        self.program.is_empty() || self.is_our_own()
    }

    /// Loads it into this process, for good; its children and what it executes keep it.
    ///
    /// # Errors
    /// EACCES without no_new_privs; EINVAL where the kernel has no such filters.
    pub(crate) fn load(&self) -> Result<()> {
        if self.program.is_empty() {
            return Ok(());
        }
        sys::load_filter(&self.program, self.flags).map_err(|error| {
            let line = fault(format!("load the system call filter ({}): {error}", self.source));
            match error.raw_os_error() {
                Some(libc::EINVAL | libc::ENOSYS) => line
                    .hint("this kernel may be without CONFIG_SECCOMP_FILTER; --seccomp unconfined loads none")
                    .into(),
                _ => anyhow::Error::from(line),
            }
        })
    }
}

/// What a denied call gets, and one of another architecture.
const DENIED: Action = Action::error(libc::EPERM);
/// What an unknown one gets, as from a kernel that lacks it.
const UNKNOWN: Action = Action::error(libc::ENOSYS);

/// The program that hands these calls over to whoever listens and lets all others through, those of other architectures too.
pub(crate) fn handing_over(calls: &[libc::c_long]) -> Vec<Instruction> {
    bpf::handing_over(Arch::NATIVE, calls, &[bpf::give(Action::ALLOW)])
}

/// Our own policy for one architecture.
fn default_table(arch: Arch, around: Circumstances<'_>) -> Table {
    let by_name = default_verdicts(around);
    let mut last = 0;
    let numbered = arch.calls().into_iter().inspect(|(number, _)| last = last.max(*number));
    let calls = numbered.filter_map(|(number, name)| Some((number, by_name.get(name)?.clone()))).collect();
    Table { arch, calls, otherwise: UNKNOWN, last, newer: UNKNOWN }
}

fn default_verdicts(around: Circumstances<'_>) -> HashMap<&'static str, Verdict> {
    // Of what is said of a name twice the last holds.
    let mut verdicts = Vec::with_capacity(512);
    let mut say = |names: &[&'static str], action: Action| {
        verdicts.extend(names.iter().map(|name| (*name, Verdict::always(action))));
    };
    say(policy::ALLOWED, Action::ALLOW);
    say(policy::DENIED, DENIED);
    let given = |allowed: bool| if allowed { Action::ALLOW } else { DENIED };
    for (capabilities, names) in policy::WITH_CAPABILITY {
        say(names, given(capabilities.iter().any(|name| around.capabilities.keeps(name))));
    }
    say(policy::OTHER_PROCESSES, given(!around.shares_pids || around.capabilities.keeps("SYS_PTRACE")));
    let when = |conditions: Vec<rule::Condition>, action: Action, otherwise: Action| {
        let rules = conditions.into_iter().map(|condition| Rule { conditions: vec![condition], action }).collect();
        Verdict { rules, otherwise }
    };
    for (name, conditions) in policy::denied_arguments() {
        verdicts.push((name, when(conditions, DENIED, Action::ALLOW)));
    }
    for (name, conditions) in policy::allowed_arguments() {
        verdicts.push((name, when(conditions, Action::ALLOW, DENIED)));
    }
    // Its flags are in memory, where no filter can look. ENOSYS, so that a C library goes on with clone.
    verdicts.push(("clone3", Verdict::always(UNKNOWN)));
    if around.capabilities.keeps("SYS_ADMIN") {
        verdicts.extend(["clone", "clone3"].map(|name| (name, Verdict::always(Action::ALLOW))));
    }
    if around.nesting {
        verdicts.extend(policy::NESTING.iter().map(|name| (*name, Verdict::always(Action::ALLOW))));
    }
    verdicts.into_iter().collect()
}

/// The names that some architecture's table has.
fn every_name() -> BTreeSet<&'static str> {
    let all = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm];
    all.into_iter().flat_map(Arch::calls).map(|(_, name)| name).chain(["newfstatat"]).collect()
}

#[cfg(test)]
mod tests;
