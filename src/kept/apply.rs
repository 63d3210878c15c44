//! What a kept view of the host changed, brought onto the host: each entry is made under a temporary name beside its place and
//! renamed into it, with owner, mode, times and attributes.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::diff::{Change, How};
use super::place::{self, Placer};
use super::{Base, Kept};
use crate::error::{Result, fault};
use crate::host::Host;
use crate::image::unpack::tree::kind;

/// A file of the host, to know it again: any change gives it a new ctime, a replacement a new inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    inode: u64,
    changed: (u64, u32),
}

impl State {
    fn of(stat: &Stat) -> State {
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        State { inode: stat.st_ino, changed: (seconds, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)) }
    }
}

/// A change that is to be applied, and what speaks against it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// The change.
    #[serde(flatten)]
    pub(crate) change: Change,
    /// Why it is not applied without force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conflict: Option<String>,
}

impl Kept {
    /// What would be applied: all, or what is at or below `paths`.
    ///
    /// # Errors
    /// When it is no view of the host, or a path has no change.
    pub(crate) fn steps(&self, paths: &[PathBuf]) -> Result<Vec<Step>> {
        if self.record.base != Base::Host {
            let hint = match &self.record.base {
                Base::Image { .. } => format!("make an image of it: sandbox commit {} NAME:TAG", self.name),
                Base::Layers(_) | Base::Host => format!("see what it changed: sandbox diff {}", self.name),
            };
            return Err(fault(format!("{}: it does not stand on the host's own files", self.name)).hint(hint).into());
        }
        let mut host = Host::read()?;
        if host.uid != 0 {
            return Err(fault("apply: a plain user's view of the host has other owners than the host")
                .hint("as root: sudo sandbox run --keep, and sudo sandbox apply")
                .into());
        }
        host.read_view()?;
        let changes = self.changes()?;
        for path in paths {
            if !changes.iter().any(|change| change.path.starts_with(path)) {
                let line = format!("{}: {} has no change", self.name, path.display());
                return Err(fault(line).hint(format!("sandbox diff {}", self.name)).into());
            }
        }
        let wanted = |change: &Change| paths.is_empty() || paths.iter().any(|path| change.path.starts_with(path));
        let below_added = |change: &Change| !paths.is_empty() && needed_above(change, paths);
        let chosen = changes.into_iter().filter(|change| wanted(change) || below_added(change));
        chosen.map(|change| Ok(Step { conflict: self.conflict(&change, &host)?, change })).collect()
    }

    /// What speaks against a change: the sandbox has not seen what it would replace.
    fn conflict(&self, change: &Change, host: &Host) -> Result<Option<String>> {
        let hides = |(hidden, _): &&(PathBuf, bool)| change.path.starts_with(hidden);
        if !self.record.host_secrets && host.view.secrets.iter().any(|secret| hides(&secret)) {
            return Ok(Some("was hidden from the sandbox".into()));
        }
        let into_directory = fs::lstat(&change.upper).is_ok_and(|stat| kind(&stat) == FileType::Directory);
        match self.newer(&change.path, change.change == How::Deleted || !into_directory)? {
            Some(path) if path == change.path => Ok(Some("changed on the host since".into())),
            Some(path) => Ok(Some(format!("{} changed on the host since", path.display()))),
            None => Ok(None),
        }
    }

    /// The first file at `path`, and if `whole` also below it, that was changed after the root was made.
    fn newer(&self, path: &Path, whole: bool) -> Result<Option<PathBuf>> {
        let named = |error: &dyn std::fmt::Display| fault(format!("{}: {error}", path.display()));
        let stat = match fs::lstat(path) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(named(&errno).into()),
        };
        let state = State::of(&stat);
        let known = self.record.applied.get(&*path.to_string_lossy());
        if known.map_or(state.changed > self.record.made, |known| *known != state) {
            return Ok(Some(path.to_owned()));
        }
        if !whole || kind(&stat) != FileType::Directory {
            return Ok(None);
        }
        for entry in std::fs::read_dir(path).map_err(|error| named(&error))? {
            let entry = entry.map_err(|error| named(&error))?;
            if let Some(newer) = self.newer(&entry.path(), true)? {
                return Ok(Some(newer));
            }
        }
        Ok(None)
    }

    /// Brings `steps` onto the host, which were found with `held` held. What is done is remembered, also when one fails.
    ///
    /// # Errors
    /// With the path that could not be brought over; those before it are done.
    pub(crate) fn apply(&mut self, steps: &[Step], held: &File) -> Result<()> {
        let done = self.apply_each(steps, Placer::new(held)?);
        self.save()?;
        done
    }

    fn apply_each(&mut self, steps: &[Step], mut placer: Placer) -> Result<()> {
        let mut directories = Vec::new();
        let mut touched = BTreeSet::new();
        for Step { change, .. } in steps {
            let path = &change.path;
            if change.change == How::Deleted {
                placer.remove(path)?;
            } else {
                let stat = fs::lstat(&change.upper).map_err(|errno| fault(format!("{}: {errno}", path.display())))?;
                placer.put(&change.upper, &stat, path)?;
                if kind(&stat) == FileType::Directory {
                    directories.push((path, stat));
                }
            }
            touched.insert(path);
        }
        // Last, since every entry changes the time of its directory.
        for (path, stat) in directories.iter().rev() {
            place::set_times(CWD, path, stat).map_err(|errno| fault(format!("{}: {errno}", path.display())))?;
        }
        for path in touched {
            let key = path.to_string_lossy().into_owned();
            match fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => drop(self.record.applied.insert(key, State::of(&stat))),
                Err(_) => drop(self.record.applied.remove(&key)),
            }
        }
        Ok(())
    }
}

/// Whether `change` makes a directory that one of `paths` is in: without it there is no place for them.
fn needed_above(change: &Change, paths: &[PathBuf]) -> bool {
    let is_directory = fs::lstat(&change.upper).is_ok_and(|stat| kind(&stat) == FileType::Directory);
    change.change == How::Added && is_directory && paths.iter().any(|path| path.starts_with(&change.path))
}
