//! Images where others keep them: nothing is copied, nothing is written, and neither daemon needs to run.
//!
//! What lies there may be removed by its owner at any time; a sandbox that runs on it then loses what it has not opened.

pub(crate) mod docker;
pub(crate) mod podman;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::unpack::Marks;
use crate::error::{Result, fault};

/// Reads a JSON file of a foreign store; `None` when there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(fault(format!("{}: {error}", path.display())).into()),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let fault = fault(format!("{}: {error}", path.display()));
    if error.kind() == ErrorKind::PermissionDenied {
        fault.hint("this store is root's: use sudo").into()
    } else {
        fault.into()
    }
}

/// Root's stores have overlayfs' marks in `trusted`, those of users in `user` attributes.
fn marks(root: &Path) -> Marks {
    match std::fs::metadata(root) {
        Ok(stat) if stat.uid() != 0 => Marks::User,
        _ => Marks::Trusted,
    }
}

/// A layer's directory must be there: a store that is being changed, or one that we misread, is better named here than by
/// a failing mount.
fn check_directory(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(stat) if stat.is_dir() => Ok(()),
        Ok(_) => Err(fault(format!("{}: not a directory", path.display())).into()),
        Err(error) => Err(unreadable(path, &error)),
    }
}

#[cfg(test)]
mod tests;
