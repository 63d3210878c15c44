//! Making the members of a layer, one by one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::tar::{Archive, Input, Kind, Member, Time, show};
use super::tree::{Blocked, Tree, is_whiteout, kind, look, through_proc, timestamps};
use super::{Tally, refuse};
use crate::error::{Result, fault};

/// Which extended attributes overlayfs reads its marks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Marks {
    /// `trusted.overlay.*`: what root writes and a mount by root reads. All else is exact too.
    Trusted,
    /// `user.overlay.*`: what anybody may write, read by a mount with `userxattr`. Every file belongs to the caller, who
    /// is root inside.
    User,
}

impl Marks {
    /// What the caller is able to write into `directory`, found by trying.
    pub(crate) fn possible(directory: BorrowedFd<'_>) -> Marks {
        let name = c"trusted.overlay.sandbox-probe";
        match fs::fsetxattr(directory, name, b"y", XattrFlags::empty()) {
            Ok(()) => {
                // Left behind it would do no harm.
                let _ = fs::fremovexattr(directory, name);
                Marks::Trusted
            }
            Err(_) => Marks::User,
        }
    }

    fn opaque(self) -> &'static std::ffi::CStr {
        match self {
            Marks::Trusted => c"trusted.overlay.opaque",
            Marks::User => c"user.overlay.opaque",
        }
    }
}

/// What a directory gets when all is in it.
#[derive(Debug)]
struct Finish {
    member: Option<Member>,
    mtime: Time,
    opaque: bool,
}

/// A tree in the making.
#[derive(Debug)]
pub(super) struct Placer {
    tree: Tree,
    marks: Marks,
    /// Whether owners can be given away: not when an ordinary user unpacks.
    owners: bool,
    /// By path, so that backwards is from the leaves to the root.
    directories: BTreeMap<Vec<u8>, Finish>,
    skipped_devices: u64,
    skipped_xattrs: u64,
}

impl Placer {
    pub(super) fn new(tree: Tree, marks: Marks) -> Placer {
        let owners = rustix::process::geteuid().is_root();
        Placer { tree, marks, owners, directories: BTreeMap::new(), skipped_devices: 0, skipped_xattrs: 0 }
    }

    /// The root's own entry.
    pub(super) fn root(&mut self, member: &Member) -> Result<()> {
        self.finish_later(b"", member);
        Ok(())
    }

    /// A directory whose lower contents are gone.
    pub(super) fn opaque(&mut self, member: &Member, directory: &[u8]) -> Result<()> {
        self.parent(member, directory)?;
        self.mark_opaque(directory, member);
        Ok(())
    }

    /// A name that is gone. What the same layer has put there stays: a whiteout speaks of the layers below only.
    pub(super) fn whiteout(&mut self, member: &Member, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        let base = self.parent(member, parent)?;
        match fs::mknodat(base, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let there = look(base, name).map_err(|errno| failed(member, "stat", errno))?;
                if there.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                    self.mark_opaque(path, member);
                }
                Ok(())
            }
            Err(errno) => Err(failed(member, "make the whiteout", errno)),
        }
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
                self.create(member, parent, name, archive)?.map_err(|errno| failed(member, "create", errno))
            }
            Err(errno) => Err(failed(member, "create", errno)),
        }
    }

    /// Creates what is no directory. The inner error is that of the creating call, so that the caller may clear the way.
    fn create<R: Input>(&mut self, member: &Member, parent: &[u8], name: &[u8], archive: &mut Archive<R>) -> Result<Result2> {
        let (owners, marks) = (self.owners, self.marks);
        if member.kind == Kind::Hardlink {
            return self.hardlink(member, parent, name);
        }
        let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
        let made = match member.kind {
            Kind::File => return self.file(member, parent, name, archive),
            Kind::Symlink => fs::symlinkat(member.link.as_slice(), base, name),
            Kind::Fifo => fs::mknodat(base, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0),
            _ => {
                if member.device == (0, 0) && member.kind == Kind::Character {
                    return Err(refuse(member, "a character device 0:0 would delete what lower layers have here; a whiteout is written .wh.NAME"));
                }
                let kind = if member.kind == Kind::Block { FileType::BlockDevice } else { FileType::CharacterDevice };
                fs::mknodat(base, name, kind, Mode::from_raw_mode(0o600), fs::makedev(member.device.0, member.device.1))
            }
        };
        match made {
            // A device is of no use to a user anyway: every mount of the tree is nodev.
            Err(Errno::PERM) if matches!(member.kind, Kind::Character | Kind::Block) && (!owners || marks == Marks::User) => {
                self.skipped_devices += 1;
                return Ok(Ok(()));
            }
            Err(errno) => return Ok(Err(errno)),
            Ok(()) => {}
        }
        let skipped = dress(member, base, name, owners, marks)?;
        self.skipped_xattrs += skipped;
        Ok(Ok(()))
    }

    fn file<R: Input>(&mut self, member: &Member, parent: &[u8], name: &[u8], archive: &mut Archive<R>) -> Result<Result2> {
        let (owners, marks) = (self.owners, self.marks);
        let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match fs::openat(base, name, flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => File::from(file),
            Err(errno) => return Ok(Err(errno)),
        };
        archive.data(|offset, piece| file.write_all_at(piece, offset).map_err(|error| refuse(member, format_args!("cannot write: {error}"))))?;
        if member.runs.is_some() {
            file.set_len(member.size).map_err(|error| refuse(member, format_args!("cannot set its length: {error}")))?;
        }
        // Owner first: giving a file away takes its set-id bits and capabilities.
        if owners {
            fs::fchown(&file, owner(member.uid), group(member.gid)).map_err(|errno| failed(member, "chown", errno))?;
        }
        fs::fchmod(&file, mode(member, owners)).map_err(|errno| failed(member, "chmod", errno))?;
        for (key, value) in &member.xattrs {
            let set = |name: &[u8]| fs::fsetxattr(&file, name, value, XattrFlags::empty());
            self.skipped_xattrs += u64::from(!xattr(member, key, owners, marks, set)?);
        }
        fs::futimens(&file, &timestamps(member.mtime)).map_err(|errno| failed(member, "set the times", errno))?;
        Ok(Ok(()))
    }

    /// A second name. Its first must be in this layer, and is reached as every other path is.
    fn hardlink(&mut self, member: &Member, parent: &[u8], name: &[u8]) -> Result<Result2> {
        let limits = super::Limits::default();
        let target = super::clean(&member.link, &limits).map_err(|error| refuse(member, format_args!("is a hard link to {error}")))?;
        let (target_parent, target_name) = split(&target);
        let outside = |why: &dyn std::fmt::Display| refuse(member, format_args!("is a hard link to {}, {why}", show(&member.link)));
        let from = self.tree.directory(target_parent).map_err(|blocked| outside(&blocked_text(&blocked)))?;
        let from = from.try_clone_to_owned().map_err(|error| outside(&error))?;
        match look(from.as_fd(), target_name) {
            Ok(Some(stat)) if kind(&stat) == FileType::Directory => return Err(outside(&"which is a directory")),
            Ok(Some(stat)) if !is_whiteout(&stat) => {}
            Ok(_) if self.skipped_devices > 0 => return Ok(Ok(())),
            Ok(_) => return Err(outside(&"which this layer does not have")),
            Err(errno) => return Err(outside(&errno)),
        }
        let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
        Ok(fs::linkat(&from, target_name, base, name, AtFlags::empty()))
    }

    fn directory(&mut self, member: &Member, path: &[u8], parent: &[u8], name: &[u8]) -> Result<()> {
        let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
        match fs::mkdirat(base, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = look(base, name).map_err(|errno| failed(member, "stat", errno))?;
                if there.is_none_or(|stat| kind(&stat) != FileType::Directory) {
                    self.clear_whiteout(member, parent, name)?;
                    let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
                    fs::mkdirat(base, name, Mode::RWXU).map_err(|errno| failed(member, "mkdir", errno))?;
                    self.mark_opaque(path, member);
                }
            }
            Err(errno) => return Err(failed(member, "mkdir", errno)),
        }
        self.finish_later(path, member);
        Ok(())
    }

    /// Removes a whiteout that this layer made at a name which it now fills. Anything else there is a second member of
    /// that name.
    fn clear_whiteout(&mut self, member: &Member, parent: &[u8], name: &[u8]) -> Result<()> {
        let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
        match look(base, name).map_err(|errno| failed(member, "stat", errno))? {
            Some(stat) if is_whiteout(&stat) => {
                fs::unlinkat(base, name, AtFlags::empty()).map_err(|errno| failed(member, "replace the whiteout", errno))?;
                self.tree.forget();
                Ok(())
            }
            Some(stat) if kind(&stat) == FileType::Directory => Err(refuse(member, "a directory of that name came before it")),
            _ => Err(refuse(member, "another member of that name came before it")),
        }
    }

    /// The directory `path`, made with its parents where an archive has no entries for them.
    fn parent(&mut self, member: &Member, path: &[u8]) -> Result<BorrowedFd<'_>> {
        match self.tree.directory(path) {
            Ok(_) => {}
            Err(Blocked::Missing | Blocked::NotDirectory) => self.make_parents(member, path)?,
            Err(blocked) => return Err(blocked_error(member, path, &blocked)),
        }
        self.tree.directory(path).map_err(|blocked| blocked_error(member, path, &blocked))
    }

    fn make_parents(&mut self, member: &Member, path: &[u8]) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let (parent, name) = split(&path[..end]);
            let base = self.tree.directory(parent).map_err(|blocked| blocked_error(member, parent, &blocked))?;
            match fs::mkdirat(base, name, Mode::RWXU) {
                Ok(()) => {
                    self.directories.insert(path[..end].to_vec(), Finish { member: None, mtime: member.mtime, opaque: false });
                }
                Err(Errno::EXIST) => {
                    let there = look(base, name).map_err(|errno| failed(member, "stat", errno))?;
                    if there.is_some_and(|stat| is_whiteout(&stat)) {
                        let implied = Member { path: path[..end].to_vec(), kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), link: Vec::new(), runs: None, ..member.clone() };
                        let parent = parent.to_vec();
                        self.directory(&implied, &path[..end], &parent, name)?;
                    }
                }
                Err(errno) => return Err(failed(member, "make its directory", errno)),
            }
        }
        Ok(())
    }

    fn finish_later(&mut self, path: &[u8], member: &Member) {
        let opaque = self.directories.get(path).is_some_and(|known| known.opaque);
        self.directories.insert(path.to_vec(), Finish { member: Some(member.clone()), mtime: member.mtime, opaque });
    }

    fn mark_opaque(&mut self, path: &[u8], member: &Member) {
        self.directories.entry(path.to_vec()).or_insert_with(|| Finish { member: None, mtime: member.mtime, opaque: true }).opaque = true;
    }

    /// Gives every directory what it was promised, leaves first: a mode may close the way to what is below.
    pub(super) fn finish(mut self, tally: &mut Tally) -> Result<()> {
        let (owners, marks) = (self.owners, self.marks);
        for (path, finish) in std::mem::take(&mut self.directories).into_iter().rev() {
            let named = |why: String| -> anyhow::Error { fault(format!("{}: {why}", show(if path.is_empty() { b"." } else { &path }))).into() };
            let directory = self.tree.open_directory(&path).map_err(|blocked| named(blocked_text(&blocked)))?;
            let check = |what: &str, done: Result2| done.map_err(|errno| named(format!("cannot {what}: {errno}")));
            let (uid, gid, bits) = finish.member.as_ref().map_or((0, 0, Mode::from_raw_mode(0o755)), |member| (member.uid, member.gid, mode(member, owners)));
            if owners {
                check("chown", fs::fchown(&directory, owner(uid), group(gid)))?;
            }
            if finish.opaque {
                check("mark it opaque", fs::fsetxattr(&directory, marks.opaque(), b"y", XattrFlags::empty()))?;
            }
            for (key, value) in finish.member.iter().flat_map(|member| &member.xattrs) {
                let Some(member) = &finish.member else { continue };
                let set = |name: &[u8]| fs::fsetxattr(&directory, name, value, XattrFlags::empty());
                self.skipped_xattrs += u64::from(!xattr(member, key, owners, marks, set)?);
            }
            check("chmod", fs::fchmod(&directory, bits))?;
            check("set the times", fs::futimens(&directory, &timestamps(finish.mtime)))?;
        }
        tally.skipped_devices = self.skipped_devices;
        tally.skipped_xattrs = self.skipped_xattrs;
        Ok(())
    }
}

/// The outcome of one system call.
type Result2 = std::result::Result<(), Errno>;

/// Owner, mode, attributes and times of what is neither file nor directory. Gives the number of attributes left out.
fn dress(member: &Member, base: BorrowedFd<'_>, name: &[u8], owners: bool, marks: Marks) -> Result<u64> {
    if owners {
        fs::chownat(base, name, owner(member.uid), group(member.gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed(member, "chown", errno))?;
    }
    if member.kind != Kind::Symlink {
        // It was created a moment ago as no link, in a tree that nobody else can enter, so there is none to follow.
        fs::chmodat(base, name, mode(member, owners), AtFlags::empty()).map_err(|errno| failed(member, "chmod", errno))?;
    }
    let mut skipped = 0;
    for (key, value) in &member.xattrs {
        let set = |attribute: &[u8]| fs::lsetxattr(through_proc(base, name), attribute, value, XattrFlags::empty());
        skipped += u64::from(!xattr(member, key, owners, marks, set)?);
    }
    fs::utimensat(base, name, &timestamps(member.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed(member, "set the times", errno))?;
    Ok(skipped)
}

/// Sets one attribute; `false` when it had to be left out.
fn xattr(member: &Member, key: &[u8], owners: bool, marks: Marks, set: impl FnOnce(&[u8]) -> Result2) -> Result<bool> {
    if is_overlays_own(key) {
        return Ok(false);
    }
    match set(key) {
        Ok(()) => Ok(true),
        // A program without its capabilities is another program; root must get it exact. The rest is said in the tally.
        Err(errno @ (Errno::OPNOTSUPP | Errno::PERM)) if key == b"security.capability" && owners && marks == Marks::Trusted => {
            Err(refuse(member, format_args!("cannot set its capabilities: {errno}")))
        }
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(errno) => Err(refuse(member, format_args!("cannot set the attribute {}: {errno}", show(key)))),
    }
}

/// Attributes that overlayfs itself gives meaning to: never taken from an archive.
pub(super) fn is_overlays_own(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.")
}

/// Permission bits. A file of somebody else that an ordinary user unpacks becomes the caller's, who is root inside: its
/// set-id bits would lend a right that the image never gave.
fn mode(member: &Member, owners: bool) -> Mode {
    let mut bits = member.mode;
    if !owners && member.uid != 0 {
        bits &= !0o4000;
    }
    if !owners && member.gid != 0 {
        bits &= !0o2000;
    }
    Mode::from_raw_mode(bits)
}

/// The all-ones id means "leave as it is" to chown; a layer that asks for it gets exactly that refused by the kernel's
/// own rule, so it is passed as none.
fn owner(uid: u32) -> Option<Uid> {
    (uid != u32::MAX).then(|| Uid::from_raw(uid))
}

fn group(gid: u32) -> Option<Gid> {
    (gid != u32::MAX).then(|| Gid::from_raw(gid))
}

/// Parent and last part of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn failed(member: &Member, what: &str, errno: Errno) -> anyhow::Error {
    refuse(member, format_args!("cannot {what}: {errno}"))
}

fn blocked_text(blocked: &Blocked) -> String {
    match blocked {
        Blocked::Missing => "which this layer does not have".into(),
        Blocked::Symlink => "which leads through a symbolic link".into(),
        Blocked::NotDirectory => "which leads through something that is no directory".into(),
        Blocked::Error(errno) => errno.to_string(),
    }
}

fn blocked_error(member: &Member, path: &[u8], blocked: &Blocked) -> anyhow::Error {
    refuse(member, format_args!("goes into {}, {}", show(path), blocked_text(blocked)))
}
