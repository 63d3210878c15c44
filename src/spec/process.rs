//! How the payload starts: flags, and the properties that we carry out ourselves.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;

use super::{ProcessSpec, absolute};
use crate::error::{Result, fault};
use crate::layer::Layer;
use crate::systemd::OwnSetting;
use crate::value::Rlimit;

pub(super) fn process(layer: &Layer, own: Vec<OwnSetting>) -> Result<ProcessSpec> {
    let mut process = ProcessSpec {
        user: layer.uid.clone(),
        group: layer.gid.clone(),
        environment: layer.setenv.iter().map(|text| variable(text)).collect::<Result<_>>()?,
        directory: layer.working_directory.as_deref().map(|d| absolute("--working-directory", d)).transpose()?,
        as_pid1: layer.init != Some(true) && layer.as_pid1.unwrap_or(layer.init == Some(false)),
        terminal: terminal(layer),
        rlimits: Vec::new(),
        nice: None,
        oom_score_adjust: None,
        umask: None,
        affinity: None,
        quiet: layer.quiet.unwrap_or(false),
    };
    for text in &layer.ulimit {
        process.rlimits.push(Rlimit::parse(text).with_context(|| format!("--ulimit {text}"))?);
    }
    for setting in own {
        apply(&mut process, layer, setting)?;
    }
    check_rlimits(&process.rlimits)?;
    Ok(process)
}

/// A limit given twice has to be the same; a soft limit is at most the hard one.
fn check_rlimits(rlimits: &[Rlimit]) -> Result<()> {
    for (index, limit) in rlimits.iter().enumerate() {
        let twice = rlimits.iter().skip(index + 1).any(|other| other.resource == limit.resource && other != limit);
        if twice {
            return Err(fault(format!("limit {} is asked twice and differently", limit.name())).into());
        }
    }
    Ok(())
}

fn apply(process: &mut ProcessSpec, layer: &Layer, setting: OwnSetting) -> Result<()> {
    let twice = |property: &str, flag: &str| -> anyhow::Error {
        fault(format!("-p {property}= and {flag} ask for different things")).hint("give only one of them").into()
    };
    match setting {
        OwnSetting::Slice(name) => {
            if layer.slice.as_ref().is_none_or(|slice| *slice != name) {
                return Err(fault(format!("-p Slice={name}: the slice is given by --slice"))
                    .hint(format!("--slice={name}"))
                    .into());
            }
        }
        OwnSetting::Limit(limit) => process.rlimits.push(limit),
        OwnSetting::Nice(nice) => process.nice = Some(nice),
        OwnSetting::OomScoreAdjust(score) => process.oom_score_adjust = Some(score),
        OwnSetting::Umask(mask) => process.umask = Some(mask),
        OwnSetting::CpuAffinity(cpus) => process.affinity = Some(cpus),
        OwnSetting::WorkingDirectory(path) => {
            let path = absolute("-p WorkingDirectory=", Path::new(&path))?;
            if process.directory.replace(path.clone()).is_some_and(|old| old != path) {
                return Err(twice("WorkingDirectory", "--working-directory"));
            }
        }
        OwnSetting::User(name) => {
            if process.user.replace(name.clone()).is_some_and(|old| old != name) {
                return Err(twice("User", "--uid"));
            }
        }
        OwnSetting::Group(name) => {
            if process.group.replace(name.clone()).is_some_and(|old| old != name) {
                return Err(twice("Group", "--gid"));
            }
        }
        OwnSetting::Environment(list) => {
            process.environment.extend(list.into_iter().map(|(name, value)| (name.into(), Some(value.into()))));
        }
    }
    Ok(())
}

fn terminal(layer: &Layer) -> Option<bool> {
    match (layer.pty, layer.pipe) {
        (Some(pty), _) => Some(pty),
        (None, Some(pipe)) => Some(!pipe),
        (None, None) => None,
    }
}

/// Reads `NAME=VALUE`, or `NAME` for the caller's value.
///
/// # Errors
/// When it is no name of a variable.
pub(crate) fn variable(text: &OsStr) -> Result<(OsString, Option<OsString>)> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => (bytes, None),
    };
    let valid =
        name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') && !name.first().is_none_or(u8::is_ascii_digit);
    if !valid {
        return Err(fault(format!(
            "--setenv {}: accepted is NAME=VALUE or NAME, letters, digits and _",
            text.to_string_lossy()
        ))
        .into());
    }
    Ok((OsStr::from_bytes(name).to_owned(), value))
}
