//! Looking at the directories of a stack of layers without mounting it: the same that overlayfs would show.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::unpack::Marks;
use super::unpack::tree::{self, is_whiteout, kind, look};
use crate::error::{Result, fault};

/// A directory as the stack shows it: its parts, uppermost first.
pub(crate) type Directory = Rc<Vec<OwnedFd>>;

/// What a name in a directory is.
pub(crate) enum Entry {
    /// A directory.
    Directory(Directory),
    /// Anything else: the directory of the layer that has it, where it is called the same, and what it is.
    Other(OwnedFd, Box<Stat>),
}

/// A stack of layers.
#[derive(Debug)]
pub(crate) struct Merged {
    root: Directory,
    marks: Marks,
}

impl Merged {
    /// Opens the layers, lowest first.
    pub(crate) fn open(layers: &[PathBuf], marks: Marks) -> Result<Merged> {
        let open = |path: &PathBuf| {
            fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| fault(format!("layer {}: {errno}", path.display())).into())
        };
        let root = layers.iter().rev().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Merged { root: Rc::new(root), marks })
    }

    /// The directory that shows at a clean path, no link followed; `None` when something else or nothing is there.
    pub(super) fn directory(&self, path: &[u8]) -> std::result::Result<Option<OwnedFd>, Errno> {
        let mut here = Rc::clone(&self.root);
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            match self.entry(&here, part)? {
                Some(Entry::Directory(directory)) => here = directory,
                Some(Entry::Other(..)) | None => return Ok(None),
            }
        }
        let Some(top) = here.first() else {
            return Ok(None);
        };
        fs::openat(top, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Some)
    }

    /// The root of the stack.
    pub(crate) fn root(&self) -> Directory {
        Rc::clone(&self.root)
    }

    /// The names that show in a directory, sorted.
    pub(crate) fn names(&self, directory: &Directory) -> std::result::Result<Vec<Vec<u8>>, Errno> {
        let mut names = BTreeSet::new();
        for part in directory.iter() {
            names.extend(tree::names(part)?);
        }
        let mut seen = Vec::new();
        for name in names {
            if self.entry(directory, &name)?.is_some() {
                seen.push(name);
            }
        }
        Ok(seen)
    }

    /// Merges one name: the uppermost entry decides what it is; directories go on below until one is opaque or something else.
    pub(crate) fn entry(&self, directory: &Directory, name: &[u8]) -> std::result::Result<Option<Entry>, Errno> {
        let mut merged = Vec::new();
        for part in directory.iter() {
            let Some(stat) = look(part.as_fd(), name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                break;
            }
            if kind(&stat) != FileType::Directory {
                if merged.is_empty() {
                    let holder = fs::openat(part, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                    return Ok(Some(Entry::Other(holder, Box::new(stat))));
                }
                break;
            }
            let opened = fs::openat(
                part,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let opaque = fs::fgetxattr(&opened, self.marks.opaque_name(), &mut [0u8; 1]) == Ok(1);
            merged.push(opened);
            if opaque {
                break;
            }
        }
        Ok((!merged.is_empty()).then(|| Entry::Directory(Rc::new(merged))))
    }
}

/// Whether `path` is a single normal part: what a foreign store's metadata may name.
pub(super) fn is_single_part(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None) if part.as_bytes() == path.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::unpack::mark_opaque_for_tests;
    use super::*;

    #[test]
    fn directories_are_merged_as_overlayfs_shows_them() {
        let base = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..3).map(|at| base.path().join(format!("{at}"))).collect();
        let make = |layer: usize, path: &str, mode: u32| {
            let path = layers[layer].join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        make(0, "etc", 0o700);
        make(0, "etc/low", 0o711);
        make(0, "hidden/below", 0o755);
        make(0, "gone/below", 0o755);
        make(0, "swap/below", 0o755);
        make(1, "hidden", 0o750);
        make(2, "etc", 0o705);
        std::fs::write(layers[1].join("gone"), "").unwrap();
        let marks = mark_opaque_for_tests(&layers[1].join("hidden"));
        symlink("etc", layers[2].join("swap")).unwrap();
        let merged = Merged::open(&layers, marks).unwrap();
        for (path, mode) in [
            ("etc", Some(0o705)),
            ("/etc//low", Some(0o711)),
            ("hidden", Some(0o750)),
            ("hidden/below", None),
            ("gone", None),
            ("gone/below", None),
            ("swap", None),
            ("swap/low", None),
            ("nowhere", None),
        ] {
            let found = merged.directory(path.as_bytes()).unwrap();
            let found = found.map(|directory| fs::fstat(directory).unwrap().st_mode & 0o777);
            assert_eq!(found, mode, "{path}");
        }
        std::fs::write(layers[0].join("etc/file"), "").unwrap();
        let names = |directory: &Directory| -> Vec<String> {
            merged.names(directory).unwrap().into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
        };
        assert_eq!(names(&merged.root()), ["etc", "gone", "hidden", "swap"]);
        let Some(Entry::Directory(etc)) = merged.entry(&merged.root(), b"etc").unwrap() else { panic!("no directory") };
        assert_eq!(names(&etc), ["file", "low"]);
    }

    #[test]
    fn single_parts() {
        assert!(is_single_part("abc-1"));
        for bad in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(!is_single_part(bad), "{bad}");
        }
    }
}
