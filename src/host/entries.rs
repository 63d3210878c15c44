//! What a directory of the host holds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What an entry of a directory is, without following a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Link(PathBuf),
    /// A regular file.
    File,
    /// A device, fifo or socket.
    Special,
}

/// Lists a directory, by name; `None` where it cannot be read.
pub(super) fn entries(directory: &Path) -> Option<Vec<(OsString, Kind)>> {
    let mut list = Vec::new();
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        let Ok(file_type) = entry.file_type() else {
            continue;
        };
        let kind = if file_type.is_dir() {
            Kind::Directory
        } else if file_type.is_symlink() {
            match std::fs::read_link(entry.path()) {
                Ok(target) => Kind::Link(target),
                Err(_) => continue,
            }
        } else if file_type.is_file() {
            Kind::File
        } else {
            Kind::Special
        };
        list.push((entry.file_name(), kind));
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Some(list)
}
