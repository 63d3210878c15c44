//! Making the members of a layer, one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::super::tar::{Archive, Input, Kind, Member, Time, show, split};
use super::finish::Finish;
use super::rights::{Birth, Call, Rights, dress, failed, group, owner, xattr};
use super::tree::{Blocked, Tree, is_whiteout, kind, look, timestamps};
use super::{Limits, Marks, Tally, refuse};
use crate::error::Result;

/// A tree in the making.
#[derive(Debug)]
pub(super) struct Placer {
    tree: Tree,
    rights: Rights,
    birth: Birth,
    limits: Limits,
    /// By path, so that backwards is from the leaves to the root.
    directories: BTreeMap<Vec<u8>, Finish>,
    skipped_devices: u64,
    skipped_xattrs: u64,
}

impl Placer {
    pub(super) fn new(tree: Tree, marks: Marks, limits: &Limits) -> Placer {
        Placer {
            birth: Birth::into(&tree),
            tree,
            rights: Rights::of_caller(marks),
            limits: *limits,
            directories: BTreeMap::new(),
            skipped_devices: 0,
            skipped_xattrs: 0,
        }
    }

    /// The root's own entry.
    pub(super) fn root(&mut self, member: &Member) -> Result<()> {
        self.finish_later(b"", member);
        Ok(())
    }

    /// A directory whose lower contents are gone.
    pub(super) fn opaque(&mut self, member: &Member, directory: &[u8]) -> Result<()> {
        if self.is_hidden(directory) {
            return Ok(());
        }
        self.parent(member, directory)?;
        self.mark_opaque(directory, member);
        Ok(())
    }

    /// A name that is gone. What the same layer has put there stays: a whiteout speaks of the layers below only.
    pub(super) fn whiteout(&mut self, member: &Member, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        if self.is_hidden(parent) {
            return Ok(());
        }
        let base = self.parent(member, parent)?;
        match fs::mknodat(base, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let there = look(base, name).map_err(|errno| failed(&member.path, "stat", errno))?;
                if there.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                    self.mark_opaque(path, member);
                }
                Ok(())
            }
            Err(errno) => Err(failed(&member.path, "make the whiteout", errno)),
        }
    }

    /// Whether this layer has a file or link where `directory` is to be. That hides whatever lower layers have there, so a
    /// deletion below it says nothing more. umoci writes such when a directory was replaced by something else.
    fn is_hidden(&mut self, directory: &[u8]) -> bool {
        let ends =
            directory.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([directory.len()]);
        for end in ends {
            let (parent, name) = split(&directory[..end]);
            let there = self.tree.directory(parent).ok().and_then(|base| look(base, name).ok().flatten());
            match there {
                Some(stat) if kind(&stat) == FileType::Directory => {}
                Some(stat) => return !is_whiteout(&stat),
                None => return false,
            }
        }
        false
    }

    /// Anything else.
    pub(super) fn place<R: Input>(&mut self, member: &Member, path: &[u8], archive: &mut Archive<R>) -> Result<()> {
        let (parent, name) = split(path);
        self.parent(member, parent)?;
        if member.kind == Kind::Directory {
            return self.directory(member, path, parent, name);
        }
        match self.create(member, parent, name, archive)? {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                self.clear_whiteout(member, parent, name)?;
                self.create(member, parent, name, archive)?.map_err(|errno| failed(&member.path, "create", errno))
            }
            Err(errno) => Err(failed(&member.path, "create", errno)),
        }
    }

    /// Creates what is no directory. The inner error is that of the creating call, so that the caller may clear the way.
    fn create<R: Input>(
        &mut self,
        member: &Member,
        parent: &[u8],
        name: &[u8],
        archive: &mut Archive<R>,
    ) -> Result<Call> {
        let rights = self.rights;
        if member.kind == Kind::Hardlink {
            return self.hardlink(member, parent, name);
        }
        let base = base_of(&mut self.tree, member, parent)?;
        let made = match member.kind {
            Kind::File => return self.file(member, parent, name, archive),
            Kind::Symlink => fs::symlinkat(member.link.as_slice(), base, name),
            Kind::Fifo => fs::mknodat(base, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0),
            _ => {
                if member.device == (0, 0) && member.kind == Kind::Character {
                    return Err(refuse(
                        &member.path,
                        "a character device 0:0 would delete what lower layers have here; a whiteout is written .wh.NAME",
                    ));
                }
                let kind = if member.kind == Kind::Block { FileType::BlockDevice } else { FileType::CharacterDevice };
                fs::mknodat(base, name, kind, Mode::from_raw_mode(0o600), fs::makedev(member.device.0, member.device.1))
            }
        };
        match made {
            // A device is of no use to a user anyway: every mount of the tree is nodev.
            Err(Errno::PERM)
                if matches!(member.kind, Kind::Character | Kind::Block)
                    && (!rights.owners || rights.marks == Marks::User) =>
            {
                self.skipped_devices += 1;
                return Ok(Ok(()));
            }
            Err(errno) => return Ok(Err(errno)),
            Ok(()) => {}
        }
        let skipped = dress(member, base, name, rights)?;
        self.skipped_xattrs += skipped;
        Ok(Ok(()))
    }

    fn file<R: Input>(
        &mut self,
        member: &Member,
        parent: &[u8],
        name: &[u8],
        archive: &mut Archive<R>,
    ) -> Result<Call> {
        let rights = self.rights;
        let base = base_of(&mut self.tree, member, parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = rights.mode(member);
        let (right_mode, right_owner) = (self.birth.gives_mode(mode), self.birth.gives_owner(member));
        let first = Mode::from_raw_mode(if right_mode { mode } else { 0o600 });
        let file = match fs::openat(base, name, flags, first) {
            Ok(file) => File::from(file),
            Err(errno) => return Ok(Err(errno)),
        };
        archive.data(|offset, piece| {
            file.write_all_at(piece, offset)
                .map_err(|error| refuse(&member.path, format_args!("cannot write: {error}")))
        })?;
        if member.runs.is_some() {
            file.set_len(member.size)
                .map_err(|error| refuse(&member.path, format_args!("cannot set its length: {error}")))?;
        }
        // Owner first: giving a file away takes its set-id bits and capabilities.
        if rights.owners && !right_owner {
            fs::fchown(&file, owner(member.uid), group(member.gid))
                .map_err(|errno| failed(&member.path, "chown", errno))?;
        }
        if !right_mode {
            fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|errno| failed(&member.path, "chmod", errno))?;
        }
        for (key, value) in &member.xattrs {
            let set = |name: &[u8]| fs::fsetxattr(&file, name, value, XattrFlags::empty());
            self.skipped_xattrs += u64::from(!xattr(&member.path, key, rights, set)?);
        }
        fs::futimens(&file, &timestamps(member.mtime)).map_err(|errno| failed(&member.path, "set the times", errno))?;
        Ok(Ok(()))
    }

    /// A second name. Its first must be in this layer, and is reached as every other path is.
    fn hardlink(&mut self, member: &Member, parent: &[u8], name: &[u8]) -> Result<Call> {
        let target = super::clean(&member.link, &self.limits)
            .map_err(|error| refuse(&member.path, format_args!("is a hard link to {error}")))?;
        let (target_parent, target_name) = split(&target);
        let outside = |why: &dyn std::fmt::Display| {
            refuse(&member.path, format_args!("is a hard link to {}, {why}", show(&member.link)))
        };
        let from = self.tree.directory(target_parent).map_err(|blocked| outside(&blocked_text(&blocked)))?;
        let from = from.try_clone_to_owned().map_err(|error| outside(&error))?;
        match look(from.as_fd(), target_name) {
            Ok(Some(stat)) if kind(&stat) == FileType::Directory => {
                return Err(outside(&"which is a directory"));
            }
            Ok(Some(stat)) if !is_whiteout(&stat) => {}
            Ok(_) if self.skipped_devices > 0 => return Ok(Ok(())),
            Ok(_) => return Err(outside(&"which this layer does not have")),
            Err(errno) => return Err(outside(&errno)),
        }
        let base = base_of(&mut self.tree, member, parent)?;
        Ok(fs::linkat(&from, target_name, base, name, AtFlags::empty()))
    }

    fn directory(&mut self, member: &Member, path: &[u8], parent: &[u8], name: &[u8]) -> Result<()> {
        let base = base_of(&mut self.tree, member, parent)?;
        match fs::mkdirat(base, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = look(base, name).map_err(|errno| failed(&member.path, "stat", errno))?;
                if there.is_none_or(|stat| kind(&stat) != FileType::Directory) {
                    self.clear_whiteout(member, parent, name)?;
                    let base = base_of(&mut self.tree, member, parent)?;
                    fs::mkdirat(base, name, Mode::RWXU).map_err(|errno| failed(&member.path, "mkdir", errno))?;
                    self.mark_opaque(path, member);
                }
            }
            Err(errno) => return Err(failed(&member.path, "mkdir", errno)),
        }
        self.finish_later(path, member);
        Ok(())
    }

    /// Removes a whiteout that this layer made at a name which it now fills. Anything else there is a second member of
    /// that name.
    fn clear_whiteout(&mut self, member: &Member, parent: &[u8], name: &[u8]) -> Result<()> {
        let base = base_of(&mut self.tree, member, parent)?;
        match look(base, name).map_err(|errno| failed(&member.path, "stat", errno))? {
            Some(stat) if is_whiteout(&stat) => {
                fs::unlinkat(base, name, AtFlags::empty())
                    .map_err(|errno| failed(&member.path, "replace the whiteout", errno))?;
                self.tree.forget();
                Ok(())
            }
            Some(stat) if kind(&stat) == FileType::Directory => {
                Err(refuse(&member.path, "a directory of that name came before it"))
            }
            _ => Err(refuse(&member.path, "another member of that name came before it")),
        }
    }

    /// The directory `path`, made with its parents where an archive has no entries for them.
    fn parent(&mut self, member: &Member, path: &[u8]) -> Result<BorrowedFd<'_>> {
        match self.tree.directory(path) {
            Ok(_) => {}
            Err(Blocked::Missing | Blocked::NotDirectory) => self.make_parents(member, path)?,
            Err(blocked) => return Err(blocked_error(member, path, &blocked)),
        }
        base_of(&mut self.tree, member, path)
    }

    fn make_parents(&mut self, member: &Member, path: &[u8]) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let (parent, name) = split(&path[..end]);
            let base = base_of(&mut self.tree, member, parent)?;
            match fs::mkdirat(base, name, Mode::RWXU) {
                Ok(()) => {
                    self.directories.insert(path[..end].to_vec(), Finish::implied(member.mtime, false));
                }
                Err(Errno::EXIST) => {
                    let there = look(base, name).map_err(|errno| failed(&member.path, "stat", errno))?;
                    if there.is_some_and(|stat| is_whiteout(&stat)) {
                        let implied = Member {
                            path: path[..end].to_vec(),
                            kind: Kind::Directory,
                            mode: 0o755,
                            uid: 0,
                            gid: 0,
                            xattrs: Vec::new(),
                            link: Vec::new(),
                            runs: None,
                            ..member.clone()
                        };
                        let parent = parent.to_vec();
                        self.directory(&implied, &path[..end], &parent, name)?;
                    }
                }
                Err(errno) => return Err(failed(&member.path, "make its directory", errno)),
            }
        }
        Ok(())
    }

    fn finish_later(&mut self, path: &[u8], member: &Member) {
        let opaque = self.directories.get(path).is_some_and(|known| known.opaque);
        let finish = Finish::of(member, self.rights, opaque);
        self.directories.insert(path.to_vec(), finish);
    }

    fn mark_opaque(&mut self, path: &[u8], member: &Member) {
        self.directories.entry(path.to_vec()).or_insert_with(|| Finish::implied(member.mtime, true)).opaque = true;
    }

    /// Gives every directory what it was promised, leaves first: a mode may close the way to what is below. Gives back the
    /// directories that no member speaks of.
    pub(super) fn finish(mut self, tally: &mut Tally) -> Result<Vec<Vec<u8>>> {
        self.directories.entry(Vec::new()).or_insert_with(|| Finish::implied(Time::default(), false));
        let mut implied = Vec::new();
        for (path, finish) in std::mem::take(&mut self.directories).into_iter().rev() {
            let label = if path.is_empty() { b"." } else { path.as_slice() };
            let directory = self.tree.open_directory(&path).map_err(|blocked| refuse(label, blocked_text(&blocked)))?;
            self.skipped_xattrs += finish.apply(&directory, label, self.rights)?;
            if finish.implied {
                implied.push(path);
            }
        }
        tally.skipped_devices = self.skipped_devices;
        tally.skipped_xattrs = self.skipped_xattrs;
        Ok(implied)
    }
}

pub(super) fn blocked_text(blocked: &Blocked) -> String {
    match blocked {
        Blocked::Missing => "which this layer does not have".into(),
        Blocked::Symlink => "which leads through a symbolic link".into(),
        Blocked::NotDirectory => "which leads through something that is no directory".into(),
        Blocked::Error(errno) => errno.to_string(),
    }
}

/// The directory that a member goes into.
fn base_of<'a>(tree: &'a mut Tree, member: &Member, path: &[u8]) -> Result<BorrowedFd<'a>> {
    tree.directory(path).map_err(|blocked| blocked_error(member, path, &blocked))
}

fn blocked_error(member: &Member, path: &[u8], blocked: &Blocked) -> anyhow::Error {
    refuse(&member.path, format_args!("goes into {}, {}", show(path), blocked_text(blocked)))
}
