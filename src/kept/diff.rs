//! What a kept root changed: its uppers beside what they lie on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use serde::{Serialize, Serializer};

use super::differ::Differ;
use super::{Base, Kept};
use crate::error::{Result, fault};
use crate::image::lookup::Merged;
use crate::image::unpack::tree;
use crate::image::{self, Marks, ResolvedImage, Roots};
use crate::part::rootfs::INIT_FILES;

/// How something is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum How {
    /// Added.
    #[serde(rename = "A")]
    Added,
    /// Changed: contents, kind, owner, mode or attributes.
    #[serde(rename = "C")]
    Changed,
    /// Deleted, with everything below it.
    #[serde(rename = "D")]
    Deleted,
}

impl How {
    /// As `docker diff` writes it.
    pub(crate) fn letter(self) -> char {
        match self {
            How::Added => 'A',
            How::Changed => 'C',
            How::Deleted => 'D',
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// How.
    pub(crate) change: How,
    /// Path inside.
    #[serde(serialize_with = "lossy")]
    pub(crate) path: PathBuf,
    /// Where the new one is on this machine.
    #[serde(skip)]
    pub(super) upper: PathBuf,
}

fn lossy<S: Serializer>(path: &Path, out: S) -> std::result::Result<S::Ok, S::Error> {
    out.serialize_str(&path.to_string_lossy())
}

impl Kept {
    /// Every change, sorted by path. A directory in which others changed is not one itself.
    ///
    /// # Errors
    /// When something cannot be looked at; for a plain user's, when this is not done within their map.
    pub(crate) fn changes(&self) -> Result<Vec<Change>> {
        raise_file_limit();
        let image = self.image()?;
        let mut changes = Vec::new();
        for (at, upper) in self.uppers()? {
            let lowers = match (&self.record.base, &image) {
                (Base::Layers(paths), _) => paths.clone(),
                (Base::Image { .. }, Some(image)) => image.layers.clone(),
                (Base::Image { .. } | Base::Host, _) => vec![at.clone()],
            };
            let marks = image.as_ref().map_or(Marks::Trusted, |image| image.marks);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = match fs::open(&upper, flags, Mode::empty()) {
                Ok(root) => root,
                // Killed before the first overlay was made.
                Err(rustix::io::Errno::NOENT) => continue,
                Err(errno) => return Err(fault(format!("{}: {errno}", upper.display())).into()),
            };
            // A plain user's sandbox has an overlay for each directory of /, also for one that it may not even list.
            let closed =
                |path: &PathBuf| matches!(fs::open(path, flags, Mode::empty()), Err(rustix::io::Errno::ACCESS));
            let nothing =
                tree::names(&root).map_err(|errno| fault(format!("{}: {errno}", upper.display())))?.is_empty();
            if nothing && lowers.iter().any(closed) {
                continue;
            }
            let left_out = INIT_FILES.map(|file| format!("/{file}").into_bytes());
            let mut differ =
                Differ { lower: Merged::open(&lowers, marks)?, at: &at, upper: &upper, left_out, found: Vec::new() };
            differ.root(&root)?;
            changes.extend(differ.found);
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// The image that it stands on.
    pub(super) fn image(&self) -> Result<Option<ResolvedImage>> {
        let Base::Image { typed, id } = &self.record.base else { return Ok(None) };
        let roots = Roots::new(Some(self.store.root().to_owned()), self.record.docker_root.clone())?;
        let image = image::resolve(typed, &roots)?;
        if image.id != *id {
            return Err(fault(format!("{typed}: is image {}, not {}", image.id.short(), id.short())).into());
        }
        Ok(Some(image))
    }
}

/// A walk down a stack has every layer's directory open on every level: more than the 1024 files that a process usually may have.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::debug!("raise the number of open files: {errno}");
    }
}

/// `name` in the directory `parent`.
pub(super) fn child(parent: &Path, name: &[u8]) -> PathBuf {
    parent.join(OsStr::from_bytes(name))
}
