//! What of the host is shown in a root, opened before anything is mounted over where it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::mount::OpenTreeFlags;

use super::assemble::Ids;
use super::{BindPlan, Operation};
use crate::error::{Result, fault};
use crate::part::mounts;
use crate::sys;

/// The mounts that an operation shows, detached and, where asked, idmapped; with the directory's own owner and mode on disk.
pub(super) struct Source {
    pub(super) mount: OwnedFd,
    pub(super) stat: Stat,
    /// The mount has the attributes that it is to have.
    pub(super) is_restricted: bool,
}

pub(super) fn sources(operation: &Operation, ids: &Ids<'_>) -> Result<Vec<Source>> {
    match operation {
        Operation::Overlay(overlay) => {
            overlay.layers.iter().map(|layer| Wanted::new(layer, "layer").idmapped(overlay.idmap).open(ids)).collect()
        }
        Operation::Bind(bind) if bind.is_own_node() => Ok(Vec::new()),
        Operation::Bind(bind) => match Wanted::of(bind).open(ids) {
            Err(error) if bind.optional => {
                log::info!("left out: {error:#}");
                Ok(Vec::new())
            }
            source => source.map(|source| vec![source]),
        },
        Operation::Sysfs => {
            let mount = mounts::new_sysfs().context("mount sysfs")?;
            let stat = rustix::fs::fstat(&mount).context("look at sysfs")?;
            Ok(vec![Source { mount, stat, is_restricted: false }])
        }
        Operation::Tmpfs(_)
        | Operation::Node(_)
        | Operation::Directory(_)
        | Operation::Link { .. }
        | Operation::File { .. } => Ok(Vec::new()),
        Operation::Copy { source, .. } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let context = || format!("open {}", source.display());
            let mount = rustix::fs::openat(CWD, source, flags, Mode::empty()).with_context(context)?;
            let stat = rustix::fs::fstat(&mount).with_context(context)?;
            Ok(vec![Source { mount, stat, is_restricted: false }])
        }
    }
}

/// A mount of the host that is to be shown.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    path: &'a Path,
    what: &'a str,
    recursive: bool,
    idmap: bool,
    /// [`sys::attr`].
    attributes: u64,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(path: &'a Path, what: &'a str) -> Wanted<'a> {
        Wanted { path, what, recursive: false, idmap: false, attributes: 0 }
    }

    pub(super) fn of(bind: &'a BindPlan) -> Wanted<'a> {
        let attributes = bind.attributes();
        Wanted { recursive: bind.recursive, attributes, ..Wanted::new(&bind.source, "bind").idmapped(bind.idmap) }
    }

    pub(super) fn idmapped(self, idmap: bool) -> Wanted<'a> {
        Wanted { idmap, ..self }
    }

    /// Opens it, detached. Where something could spread from the original, which may be shared with the whole host, or owners are mapped,
    /// it is set apart, and with that its attributes are set.
    ///
    /// # Errors
    /// With the path and the kernel's reason.
    pub(super) fn open(self, ids: &Ids<'_>) -> Result<Source> {
        let Wanted { path, what, recursive, .. } = self;
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let mount = rustix::mount::open_tree(CWD, path, flags).with_context(|| format!("{what} {}", path.display()))?;
        let stat = rustix::fs::fstat(&mount).with_context(|| format!("{what} {}", path.display()))?;
        let is_apart = ids.inside.is_some() || self.idmap;
        if is_apart {
            self.set_apart(mount.as_fd(), ids.userns.filter(|_| self.idmap))?;
        }
        Ok(Source { mount, stat, is_restricted: is_apart && self.attributes != 0 })
    }

    fn set_apart(self, mount: BorrowedFd<'_>, userns: Option<BorrowedFd<'_>>) -> Result<()> {
        let flags = if self.recursive { sys::attr::RECURSIVE } else { 0 };
        let path = self.path.display();
        sys::set_mount_apart(mount, flags, self.attributes, userns).map_err(|error| match userns {
            Some(_) => fault(format!("map the owners of {} {path}: {error}", self.what))
                .hint("--userns identity shares IDs with the host")
                .into(),
            None => anyhow::Error::new(error).context(format!("set {} {path} apart from the host's", self.what)),
        })
    }
}
