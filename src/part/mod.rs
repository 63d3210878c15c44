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

/// Whether what was locked is still what is at `path`: whoever held the lock before may have removed it between open and lock.
pub(crate) fn is_still_at(path: &std::path::Path, locked: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: std::io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
    id(std::fs::metadata(path)).is_some_and(|there| id(locked.metadata()) == Some(there))
}
