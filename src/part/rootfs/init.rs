//! The init layer: between the layers and the upper, with the files that every sandbox has of its own, and with marks that hide
//! what the host view hides. It is never part of a diff or a commit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode, Stat, XattrFlags};

use super::assemble::Assembly;
use super::{InitEntry, InitKind, Overlay};
use crate::error::Result;
use crate::image::unpack::tree::is_whiteout;

impl Assembly<'_> {
    /// Fills the init layer. Directories on the way get the owner and mode that the layers have there.
    pub(super) fn init_layer<'e>(
        &self,
        init: &Path,
        entries: impl Iterator<Item = &'e InitEntry>,
        lowers: &[PathBuf],
        top: &Stat,
    ) -> Result<()> {
        self.make_directory(init, self.owner(top), top.st_mode)?;
        let mut made = HashMap::new();
        for entry in entries {
            let parent = entry.path.parent().unwrap_or(Path::new(""));
            if !self.parents(init, parent, lowers, &mut made)? {
                continue;
            }
            let at = init.join(&entry.path);
            let context = || format!("init layer: {}", entry.path.display());
            if self.init_entry(&at, entry, lowers).with_context(context)? {
                // Others may be in it.
                made.insert(entry.path.clone(), true);
            }
        }
        Ok(())
    }

    /// Makes the directories of `path` in the init layer; false when the layers have something there that is no directory (a
    /// link, say): then what is behind it stays as it is. `known` is what was found before.
    fn parents(
        &self,
        init: &Path,
        path: &Path,
        lowers: &[PathBuf],
        known: &mut HashMap<PathBuf, bool>,
    ) -> Result<bool> {
        if path.as_os_str().is_empty() {
            return Ok(true);
        }
        if let Some(usable) = known.get(path) {
            return Ok(*usable);
        }
        let above = path.parent().unwrap_or(Path::new(""));
        let usable = self.parents(init, above, lowers, known)? && self.parent(&init.join(path), path, lowers)?;
        known.insert(path.to_owned(), usable);
        Ok(usable)
    }

    fn parent(&self, at: &Path, path: &Path, lowers: &[PathBuf]) -> Result<bool> {
        let in_layer = find(lowers, path);
        if in_layer.as_ref().is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory) {
            return Ok(false);
        }
        self.make_as_seen(at, in_layer.as_ref())?;
        Ok(true)
    }

    /// Makes it; whether that has made a directory.
    fn init_entry(&self, at: &Path, entry: &InitEntry, lowers: &[PathBuf]) -> Result<bool> {
        match &entry.what {
            InitKind::File(content) => {
                self.actor.as_owner();
                std::fs::write(at, content)?;
                Ok(false)
            }
            InitKind::Directory if find(lowers, &entry.path).is_some() => Ok(false),
            InitKind::Directory => self.make_as_seen(at, None).map(|()| true),
            InitKind::Absent => {
                rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::empty(), 0)?;
                Ok(false)
            }
            InitKind::Empty => {
                self.make_as_seen(at, find(lowers, &entry.path).as_ref())?;
                let prefix = if self.plan.userxattr { "user" } else { "trusted" };
                rustix::fs::setxattr(at, format!("{prefix}.overlay.opaque"), b"y", XattrFlags::empty())?;
                Ok(true)
            }
        }
    }

    /// The places in an overlay where something will be mounted and nothing is yet: they are no change of the sandbox's.
    pub(super) fn mount_points_in(&self, overlay: &Overlay, lowers: &[PathBuf]) -> Vec<InitEntry> {
        let at = overlay.at.as_path();
        let is_there =
            |path: &Path| overlay.init.iter().any(|entry| entry.path == path) || find(lowers, path).is_some();
        let nearest = |point: &Path| {
            let above = point.parent().into_iter().flat_map(Path::ancestors);
            above.into_iter().find(|above| self.mount_points.iter().any(|(other, _)| other == above)) == Some(at)
        };
        let entry = |(point, directory): &(&Path, bool)| {
            let path = point.strip_prefix(at).ok()?.to_path_buf();
            let what = if *directory { InitKind::Directory } else { InitKind::File(String::new()) };
            (!path.as_os_str().is_empty() && !is_there(&path)).then_some(InitEntry { path, what })
        };
        self.mount_points.iter().filter(|(point, _)| nearest(point)).filter_map(entry).collect()
    }

    /// Makes a directory with the owner and mode of one seen through a layer, which is idmapped already; else it is root's.
    fn make_as_seen(&self, at: &Path, seen: Option<&Stat>) -> Result<()> {
        let root = (self.ids.base, self.ids.base);
        let (owner, mode) = seen.map_or((root, 0o755), |stat| ((stat.st_uid, stat.st_gid), stat.st_mode));
        self.make_directory(at, owner, mode)
    }
}

/// What the topmost layer that has `path` has there; `None` also where that is a whiteout.
fn find(lowers: &[PathBuf], path: &Path) -> Option<Stat> {
    let stat = lowers.iter().rev().find_map(|lower| rustix::fs::lstat(lower.join(path)).ok())?;
    (!is_whiteout(&stat)).then_some(stat)
}
