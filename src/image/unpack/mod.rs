//! Unpacking a layer: a tar from anybody, made a directory tree exactly as it says, or not at all.
//!
//! - A member's name is taken apart before it is used: absolute names, `..` and what the kernel cannot take are refused,
//!   and no name is resolved through a symbolic link ([`Tree`]).
//! - Deletions (OCI image spec, layer.md, "Whiteouts") become what overlayfs reads: `.wh.NAME` a character device 0:0,
//!   `.wh..wh..opq` the `overlay.opaque` attribute. Attributes of overlayfs' own that an archive brings are dropped: they
//!   could make a file appear to have another's contents.
//! - Two members of one name are an error unless both are directories: readers disagree about what they mean.
//! - A directory without a member of its own gets what the layers below have there, as it hides theirs.
//! - A directory gets its owner, mode, attributes and times at the end, when nothing is written into it any more.

mod compare;
mod finish;
mod inherit;
mod place;
mod rights;
pub(crate) mod tree;

pub(crate) use compare::compare;
pub(crate) use inherit::inherit;
pub(crate) use rights::{Marks, is_overlays_own};

use serde::{Deserialize, Serialize};

use super::tar::{Archive, Input, Kind, Member, show};
use crate::error::{Result, fault};
use place::Placer;
use tree::Tree;

/// What a layer may ask for before it is refused. A real one is far below each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Members.
    pub(crate) members: u64,
    /// Device nodes.
    pub(crate) devices: u64,
    /// Parts of one path.
    pub(crate) depth: usize,
    /// Bytes of one path.
    pub(crate) path: usize,
    /// Bytes written, all members together.
    pub(crate) bytes: u64,
    /// Length of one file, holes included.
    pub(crate) file: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { members: 8 << 20, devices: 4096, depth: 2048, path: 64 << 10, bytes: 1 << 40, file: 1 << 42 }
    }
}

/// What was unpacked, kept beside the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Members of the archive.
    pub(crate) members: u64,
    /// Bytes of file contents.
    pub(crate) bytes: u64,
    /// Device nodes left out, as only root can make them.
    #[serde(default)]
    pub(crate) skipped_devices: u64,
    /// Extended attributes left out, as the file system or a missing privilege forbids them.
    #[serde(default)]
    pub(crate) skipped_xattrs: u64,
}

/// An unpacked layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// What is in it.
    pub(crate) tally: Tally,
    /// Directories that are there only because something is in them: [`inherit`] gives them what they are below.
    pub(crate) implied: Vec<Vec<u8>>,
}

/// Unpacks `archive` into the empty directory `root`, to its last byte.
pub(crate) fn unpack<R: Input>(
    archive: &mut Archive<R>,
    root: &std::path::Path,
    marks: Marks,
    limits: &Limits,
) -> Result<Unpacked> {
    let tree = Tree::open(root).map_err(|error| fault(format!("{}: {error}", root.display())))?;
    unpack_into(archive, tree, marks, limits)
}

fn unpack_into<R: Input>(archive: &mut Archive<R>, tree: Tree, marks: Marks, limits: &Limits) -> Result<Unpacked> {
    let mut placer = Placer::new(tree, marks, limits);
    let mut budget = Budget { limits, devices: 0, tally: Tally::default() };
    while let Some(member) = archive.next()? {
        budget.charge(&member)?;
        match step(&member, limits)? {
            Step::Skip => {}
            Step::Root => placer.root(&member)?,
            Step::Opaque(directory) => placer.opaque(&member, &directory)?,
            Step::Whiteout(path) => placer.whiteout(&member, &path)?,
            Step::Place(path) => placer.place(&member, &path, archive)?,
        }
    }
    archive.drain()?;
    let implied = placer.finish(&mut budget.tally)?;
    Ok(Unpacked { tally: budget.tally, implied })
}

/// What a member asks for.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: a note that aufs left for itself.
    Skip,
    /// Metadata of the root directory.
    Root,
    /// All that lower layers have in this directory is gone.
    Opaque(Vec<u8>),
    /// What lower layers have at this path is gone.
    Whiteout(Vec<u8>),
    /// Something at this path.
    Place(Vec<u8>),
}

/// Reads a member's name.
fn step(member: &Member, limits: &Limits) -> Result<Step> {
    let path = clean(&member.path, limits)?;
    let Some(name) = path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty()) else {
        if member.kind == Kind::Directory {
            return Ok(Step::Root);
        }
        return Err(refuse(&member.path, "names the root of the layer, but is no directory"));
    };
    let parent = &path[..path.len() - name.len()];
    if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(b".wh.")) {
        // aufs kept its own bookkeeping in such directories.
        return if parent.starts_with(b".wh..wh.") {
            Ok(Step::Skip)
        } else {
            Err(refuse(&member.path, "is inside a whiteout"))
        };
    }
    let Some(hidden) = name.strip_prefix(b".wh.") else {
        return Ok(Step::Place(path));
    };
    match hidden {
        b".wh..opq" => Ok(Step::Opaque(parent.strip_suffix(b"/").unwrap_or(parent).to_vec())),
        _ if hidden.starts_with(b".wh.") => Ok(Step::Skip),
        b"" | b"." | b".." => Err(refuse(&member.path, "is a whiteout of no valid name")),
        _ => Ok(Step::Whiteout([parent, hidden].concat())),
    }
}

/// The path without `.` parts and double slashes; refused when it could mean anything outside.
fn clean(path: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    if path.is_empty() {
        return Err(fault("a member without a name").into());
    }
    // "/" alone is how some builders write the root's own entry.
    if path.starts_with(b"/") && path.iter().any(|byte| *byte != b'/') {
        return Err(refuse(path, "an absolute name"));
    }
    if path.len() > limits.path {
        return Err(refuse(path, format_args!("a name of {} bytes, more than {}", path.len(), limits.path)));
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(refuse(path, "has .. in its name")),
            _ if part.contains(&0) => return Err(refuse(path, "has a NUL byte in its name")),
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
        depth += 1;
    }
    if depth > limits.depth {
        return Err(refuse(path, format_args!("{depth} directories deep, more than {}", limits.depth)));
    }
    Ok(clean)
}

/// An error about one member: its name, and what is wrong with it.
fn refuse(path: &[u8], why: impl std::fmt::Display) -> anyhow::Error {
    fault(format!("{}: {why}", show(path))).into()
}

/// What has been used of the limits.
struct Budget<'a> {
    limits: &'a Limits,
    devices: u64,
    tally: Tally,
}

impl Budget<'_> {
    /// Counts a member before anything is done for it: a header that claims terabytes is refused unread.
    fn charge(&mut self, member: &Member) -> Result<()> {
        self.tally.members += 1;
        if self.tally.members > self.limits.members {
            return Err(refuse(&member.path, format_args!("the layer has more than {} members", self.limits.members)));
        }
        if matches!(member.kind, Kind::Character | Kind::Block) {
            self.devices += 1;
            if self.devices > self.limits.devices {
                return Err(refuse(
                    &member.path,
                    format_args!("the layer has more than {} device nodes", self.limits.devices),
                ));
            }
        }
        // chown takes this number for "leave it as it is".
        if member.uid == u32::MAX || member.gid == u32::MAX {
            return Err(refuse(
                &member.path,
                format_args!("owner {}:{} is outside the range of ids", member.uid, member.gid),
            ));
        }
        if member.size > self.limits.file {
            return Err(refuse(
                &member.path,
                format_args!(
                    "claims a length of {} bytes, more than a file of a layer may have ({})",
                    member.size, self.limits.file
                ),
            ));
        }
        self.tally.bytes = self.tally.bytes.saturating_add(member.stored);
        if self.tally.bytes > self.limits.bytes {
            let what = format_args!(
                "with its {} bytes the layer is larger than the {} that there is room for",
                member.stored, self.limits.bytes
            );
            return Err(refuse(&member.path, what));
        }
        Ok(())
    }
}

/// Marks a directory opaque in the way that is possible here.
#[cfg(test)]
pub(crate) fn mark_opaque_for_tests(directory: &std::path::Path) -> Marks {
    let file = std::fs::File::open(directory).unwrap();
    let marks = Marks::possible(std::os::fd::AsFd::as_fd(&file));
    rustix::fs::fsetxattr(&file, marks.opaque_name(), b"y", rustix::fs::XattrFlags::empty()).unwrap();
    marks
}

#[cfg(test)]
mod tests;
