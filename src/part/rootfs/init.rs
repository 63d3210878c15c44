//! The init layer: between the layers and the upper, with the files that every sandbox has of its own, and with marks that hide
//! what the host view hides. It is never part of a diff or a commit.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode, Stat, XattrFlags};

use super::assemble::{Assembly, own};
use super::{InitEntry, InitKind};
use crate::error::Result;
use crate::image::unpack::tree::is_whiteout;

impl Assembly<'_> {
    /// Fills the init layer. Directories on the way get the owner and mode that the layers have there.
    pub(super) fn init_layer(&self, init: &Path, entries: &[InitEntry], lowers: &[PathBuf], top: &Stat) -> Result<()> {
        self.scratch.make_directory(init)?;
        self.own(init, top)?;
        for entry in entries {
            let parent = entry.path.parent().unwrap_or(Path::new(""));
            if !self.parents(init, parent, lowers)? {
                continue;
            }
            let at = init.join(&entry.path);
            self.init_entry(&at, entry, lowers).with_context(|| format!("init layer: {}", entry.path.display()))?;
        }
        Ok(())
    }

    /// Makes the directories of `path` in the init layer; false when the layers have something there that is no directory (a
    /// link, say): then what is behind it stays as it is.
    fn parents(&self, init: &Path, path: &Path, lowers: &[PathBuf]) -> Result<bool> {
        let mut done = PathBuf::new();
        for name in path.components() {
            done.push(name);
            let in_layer = find(lowers, &done);
            if in_layer.as_ref().is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory) {
                return Ok(false);
            }
            let at = init.join(&done);
            if rustix::fs::lstat(&at).is_ok() {
                continue;
            }
            self.scratch.make_directory(&at)?;
            match in_layer {
                Some(stat) => self.own_as_seen(&at, &stat)?,
                None => self.own_by_root(&at)?,
            }
        }
        Ok(true)
    }

    fn init_entry(&self, at: &Path, entry: &InitEntry, lowers: &[PathBuf]) -> Result<()> {
        match &entry.what {
            InitKind::File(content) => {
                std::fs::write(at, content)?;
                self.own_by_root(at)
            }
            InitKind::Directory if find(lowers, &entry.path).is_some() => Ok(()),
            InitKind::Directory => {
                self.scratch.make_directory(at)?;
                self.own_by_root(at)
            }
            InitKind::Absent => {
                rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::empty(), 0)?;
                Ok(())
            }
            InitKind::Empty => {
                self.scratch.make_directory(at)?;
                let prefix = if self.plan.userxattr { "user" } else { "trusted" };
                rustix::fs::setxattr(at, format!("{prefix}.overlay.opaque"), b"y", XattrFlags::empty())?;
                find(lowers, &entry.path).map_or(Ok(()), |stat| self.own_as_seen(at, &stat))
            }
        }
    }

    /// Gives `path` the owner and mode of something seen through a layer, which is idmapped already.
    fn own_as_seen(&self, path: &Path, stat: &Stat) -> Result<()> {
        own(path, stat.st_uid, stat.st_gid, stat.st_mode)
    }

    fn own_by_root(&self, path: &Path) -> Result<()> {
        let (uid, gid) = self.ids.root();
        Ok(rustix::fs::chown(path, Some(uid), Some(gid))?)
    }
}

/// What the topmost layer that has `path` has there; `None` also where that is a whiteout.
fn find(lowers: &[PathBuf], path: &Path) -> Option<Stat> {
    let stat = lowers.iter().rev().find_map(|lower| rustix::fs::lstat(lower.join(path)).ok())?;
    (!is_whiteout(&stat)).then_some(stat)
}
