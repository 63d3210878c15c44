//! One concern a file, each with a pure half that decides (`plan`) and a half with effects (`apply`).

pub(crate) mod account;
pub(crate) mod caps;
pub(crate) mod inside;
pub(crate) mod journal;
pub(crate) mod label;
pub(crate) mod landlock;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod rootfs;
pub(crate) mod scratch;
pub(crate) mod secrets;
pub(crate) mod service;
pub(crate) mod streams;
pub(crate) mod terminal;
pub(crate) mod users;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use crate::error::Result;

/// Whether what was locked is still what is at `path`: whoever held the lock before may have removed it between open and lock.
///
/// # Errors
/// When that cannot be seen.
pub(crate) fn is_still_at(path: &Path, locked: &File) -> Result<bool> {
    let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let locked = || Ok(id(locked.metadata()?));
    let result = match std::fs::metadata(path) {
        Ok(there) => locked().map(|locked| locked == id(there)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    result.with_context(|| path.display().to_string())
}
