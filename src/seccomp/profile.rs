//! Profiles in the JSON format that Docker, podman and the OCI runtime specification share: `linux.seccomp` of a config.json, and the
//! same with `archMap`, `includes` and `excludes`, which say what it depends on.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::arch::Arch;
use super::bpf::Table;
use super::rule::{Action, Condition, Rule, Test, Verdict};
use super::{Circumstances, every_name};
use crate::error::{Result, fault};

/// A profile is some 20 KiB.
const SIZE_MAX: u64 = 4 << 20;

/// A profile, checked but not yet decided for a machine.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    default: Action,
    architectures: Vec<String>,
    groups: Vec<Group>,
    flags: u32,
}

/// Rules for some names, under some circumstances.
#[derive(Debug, Clone)]
struct Group {
    names: Vec<String>,
    includes: Needs,
    excludes: Needs,
    rules: Vec<Rule>,
}

/// What a profile is for one machine and one set of capabilities.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) tables: Vec<Table>,
    pub(super) foreign: Action,
    pub(super) flags: u32,
    /// Names that are denied and that no kernel knows: very likely written wrongly.
    pub(super) unknown: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    // Only for SCMP_ACT_NOTIFY, which is refused.
    #[serde(default, rename = "listenerPath")]
    _listener_path: Option<String>,
    #[serde(default, rename = "listenerMetadata")]
    _listener_metadata: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    errno: Option<String>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Needs>,
    #[serde(default)]
    excludes: Option<Needs>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Circumstances that a group asks for, or that rule it out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Needs {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile; of a whole config.json its `linux.seccomp`.
    ///
    /// # Errors
    /// With the place in the file, and what is accepted there.
    pub(super) fn load(path: &Path) -> Result<Profile> {
        use std::io::Read;
        let file = std::fs::File::open(path).map_err(|error| {
            let line = fault(format!("{error}"));
            if error.kind() == std::io::ErrorKind::NotFound {
                return line
                    .hint("accepted is default, unconfined or the file of a profile in Docker's or OCI's format");
            }
            line
        })?;
        let mut text = String::new();
        file.take(SIZE_MAX).read_to_string(&mut text)?;
        Profile::parse(&text)
    }

    /// Reads the text of one.
    ///
    /// # Errors
    /// As [`Profile::load`].
    pub(super) fn parse(text: &str) -> Result<Profile> {
        let value: serde_json::Value = serde_json::from_str(text).context("no JSON")?;
        // Parsed from the text where it is the whole of it: then an error says where.
        let document: Document = match value.pointer("/linux/seccomp") {
            Some(part) => Document::deserialize(part)?,
            None => serde_json::from_str(text)?,
        };
        let default = action(&document.default_action, document.default_errno_ret, document.default_errno.as_deref())
            .context("defaultAction")?;
        let groups = document.syscalls.unwrap_or_default().into_iter().enumerate();
        let groups = groups.map(|(at, entry)| group(entry).with_context(|| format!("syscalls[{at}]")));
        let mut flags = 0;
        for flag in document.flags.unwrap_or_default() {
            flags |= flag_bit(&flag)?;
        }
        Ok(Profile {
            default,
            architectures: architectures(document.architectures, document.arch_map),
            groups: groups.collect::<Result<_>>()?,
            flags,
        })
    }

    /// Decides it for a machine. The kernel's own architecture is always in it, as libseccomp has it.
    pub(super) fn decide(&self, native: Arch, around: Circumstances<'_>) -> Decided {
        let named = self.architectures.iter().filter_map(|name| Arch::of_profile(name, native));
        let mut arches: Vec<Arch> = named.filter(|arch| *arch != native).collect();
        arches.dedup();
        arches.insert(0, native);
        let groups: Vec<&Group> = self.groups.iter().filter(|group| group.applies(native, around)).collect();
        let every = every_name();
        let denying = groups.iter().filter(|group| group.rules.iter().any(|rule| !rule.action.lets_through()));
        let unknown = denying.flat_map(|group| &group.names).filter(|name| !every.contains(name.as_str()));
        let mut unknown: Vec<String> = unknown.cloned().collect();
        if !self.default.lets_through() {
            // Denied anyhow.
            unknown.clear();
        }
        let tables = arches.into_iter().map(|arch| self.table(arch, &groups)).collect();
        let foreign = Action(libc::SECCOMP_RET_KILL_PROCESS);
        Decided { tables, foreign, flags: self.flags, unknown }
    }

    fn table(&self, arch: Arch, groups: &[&Group]) -> Table {
        let numbers: BTreeMap<&str, u32> = arch.calls().into_iter().map(|(number, name)| (name, number)).collect();
        let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for group in groups {
            for number in group.names.iter().filter_map(|name| numbers.get(arch.alias(name))) {
                rules.entry(*number).or_default().extend(group.rules.iter().cloned());
            }
        }
        let last = rules.keys().next_back().copied().unwrap_or(0);
        let calls = rules.into_iter().map(|(number, rules)| (number, self.verdict(rules))).collect();
        // What is newer than the profile is to look as on an older kernel, as under runc: then programs fall back. An error number of
        // the profile's own for everything that it does not name would be taken for a refusal.
        let fails = self.default.0 & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO;
        let newer = if fails { super::UNKNOWN } else { self.default };
        Table { arch, calls, otherwise: self.default, last, newer }
    }

    /// The rules that look at arguments in their order, then the one that does not; of several such the strictest.
    fn verdict(&self, rules: Vec<Rule>) -> Verdict {
        let (conditional, plain): (Vec<Rule>, Vec<Rule>) =
            rules.into_iter().partition(|rule| !rule.conditions.is_empty());
        let otherwise = plain.into_iter().map(|rule| rule.action).reduce(Action::stricter).unwrap_or(self.default);
        Verdict { rules: conditional, otherwise }
    }
}

impl Group {
    fn applies(&self, native: Arch, around: Circumstances<'_>) -> bool {
        let keeps = |cap: &String| around.capabilities.keeps(cap.strip_prefix("CAP_").unwrap_or(cap));
        let is_native = |arch: &String| *arch == native.names().1 || *arch == native.names().0;
        let new_enough = |version: &String| kernel(version).is_some_and(|least| around.kernel >= least);
        let Needs { caps, arches, min_kernel } = &self.excludes;
        let excluded = caps.iter().flatten().any(keeps)
            || arches.iter().flatten().any(is_native)
            || min_kernel.as_ref().is_some_and(new_enough);
        let Needs { caps, arches, min_kernel } = &self.includes;
        let arches = arches.as_ref().filter(|arches| !arches.is_empty());
        !excluded
            && caps.iter().flatten().all(keeps)
            && arches.is_none_or(|arches| arches.iter().any(is_native))
            && min_kernel.as_ref().is_none_or(new_enough)
    }
}

/// `MAJOR.MINOR`, as in `minKernel`.
fn kernel(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn architectures(list: Option<Vec<String>>, map: Option<Vec<ArchMap>>) -> Vec<String> {
    let native = Arch::NATIVE.names().0;
    let of_map = map.into_iter().flatten().filter(|entry| entry.architecture == native);
    list.into_iter().flatten().chain(of_map.flat_map(|entry| entry.sub_architectures.unwrap_or_default())).collect()
}

fn group(entry: Entry) -> Result<Group> {
    let names: Vec<String> = entry.name.into_iter().chain(entry.names.into_iter().flatten()).collect();
    if names.is_empty() {
        return Err(fault("neither name nor names").into());
    }
    let action = action(&entry.action, entry.errno_ret, entry.errno.as_deref())?;
    let (includes, excludes) = (entry.includes.unwrap_or_default(), entry.excludes.unwrap_or_default());
    for version in [&includes, &excludes].into_iter().filter_map(|needs| needs.min_kernel.as_ref()) {
        kernel(version).ok_or_else(|| fault(format!("minKernel {version}: accepted is MAJOR.MINOR")))?;
    }
    let arguments = entry.args.unwrap_or_default();
    let twice =
        arguments.iter().enumerate().any(|(at, one)| arguments.iter().skip(at + 1).any(|o| o.index == one.index));
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let rules = match conditions.is_empty() {
        true => vec![Rule { conditions, action }],
        // All must hold. Where one argument is tested twice any may hold: so runc reads it, and so profiles mean it.
        false if twice => conditions.into_iter().map(|one| Rule { conditions: vec![one], action }).collect(),
        false => vec![Rule { conditions, action }],
    };
    Ok(Group { names, includes, excludes, rules })
}

fn condition(argument: &Argument) -> Result<Condition> {
    let Argument { index, value, value_two, op } = argument;
    if *index > 5 {
        return Err(fault(format!("args index {index}: a system call has the arguments 0 to 5")).into());
    }
    let test = match op.as_str() {
        "SCMP_CMP_NE" => Test::NotEqual(*value),
        "SCMP_CMP_LT" => Test::Less(*value),
        "SCMP_CMP_LE" => Test::LessOrEqual(*value),
        "SCMP_CMP_EQ" => Test::Equal(*value),
        "SCMP_CMP_GE" => Test::GreaterOrEqual(*value),
        "SCMP_CMP_GT" => Test::Greater(*value),
        "SCMP_CMP_MASKED_EQ" => Test::MaskedEqual { mask: *value, value: *value_two },
        other => {
            return Err(
                fault(format!("args op {other}: accepted is SCMP_CMP_NE, LT, LE, EQ, GE, GT, MASKED_EQ")).into()
            );
        }
    };
    Ok(Condition { argument: *index, test })
}

fn action(name: &str, number: Option<u16>, named: Option<&str>) -> Result<Action> {
    let number = match (number, named) {
        (Some(number), _) => i32::from(number),
        (None, Some(name)) => error_number(name)?,
        (None, None) => libc::EPERM,
    };
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action(libc::SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Action(libc::SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_TRAP" => Action(libc::SECCOMP_RET_TRAP),
        "SCMP_ACT_ERRNO" => Action::error(number),
        "SCMP_ACT_TRACE" => Action(libc::SECCOMP_RET_TRACE | number.cast_unsigned() & libc::SECCOMP_RET_DATA),
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_LOG" => Action(libc::SECCOMP_RET_LOG),
        "SCMP_ACT_NOTIFY" => return Err(fault("SCMP_ACT_NOTIFY: nothing here answers such calls").into()),
        other => {
            let accepted = "SCMP_ACT_ALLOW, ERRNO, KILL, KILL_PROCESS, KILL_THREAD, LOG, TRACE, TRAP";
            return Err(fault(format!("action {other}: accepted is {accepted}")).into());
        }
    })
}

/// The error numbers that profiles write as names (podman's `errno`).
fn error_number(name: &str) -> Result<i32> {
    let known = [
        ("EPERM", libc::EPERM),
        ("ENOSYS", libc::ENOSYS),
        ("EACCES", libc::EACCES),
        ("EINVAL", libc::EINVAL),
        ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
        ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ];
    let found = known.into_iter().find(|(known, _)| *known == name).map(|(_, number)| number);
    found.ok_or_else(|| fault(format!("errno {name}: accepted is EPERM, ENOSYS, …, or its number as errnoRet")).into())
}

fn flag_bit(name: &str) -> Result<u32> {
    let bits = match name {
        // One thread, and nobody who answers: nothing to do for these two.
        "SECCOMP_FILTER_FLAG_TSYNC" | "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
        "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        other => return Err(fault(format!("flag {other}: accepted is SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW")).into()),
    };
    u32::try_from(bits).context("flags")
}
