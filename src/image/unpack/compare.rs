//! Checking an unpacked layer against the archive that it came from, member by member.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::super::tar::{Archive, Input, Kind, Member, join, show, split};
use super::place::blocked_text;
use super::rights::{Marks, Rights, is_overlays_own};
use super::tree::{Blocked, Tree, is_whiteout, kind, look, names, through_proc};
use super::{Limits, Step, Tally, step};
use crate::error::{Result, fault};

/// Differences that are told one by one; more are counted.
const TOLD: usize = 20;

/// Compares the tree at `root` with `archive`, from which it was unpacked with `tally` as the result. Gives one line a
/// difference; none means that they are the same.
pub(crate) fn compare<R: Input>(
    archive: &mut Archive<R>,
    root: &Path,
    marks: Marks,
    tally: &Tally,
) -> Result<Vec<String>> {
    let tree = Tree::open(root).map_err(|error| fault(format!("{}: {error}", root.display())))?;
    let mut check = Check {
        tree,
        rights: Rights::of_caller(marks),
        tally: tally.clone(),
        known: BTreeSet::new(),
        directories: BTreeMap::new(),
        whiteouts: Vec::new(),
        opaque: BTreeSet::new(),
        found: Found::default(),
    };
    let limits = Limits::default();
    while let Some(member) = archive.next()? {
        match step(&member, &limits)? {
            Step::Skip => {}
            Step::Root => check.expect_directory(Vec::new(), member),
            Step::Opaque(path) => {
                // Where the layer has something else than a directory, all below is hidden as it is.
                if !matches!(check.tree.directory(&path), Err(Blocked::Symlink | Blocked::NotDirectory)) {
                    check.know(&path);
                    check.opaque.insert(path);
                }
            }
            Step::Whiteout(path) => check.whiteouts.push(path),
            Step::Place(path) => check.member(&member, path, archive)?,
        }
    }
    archive.drain()?;
    check.whiteouts();
    check.directories();
    check.extras(b"")?;
    Ok(check.found.lines())
}

/// The differences.
#[derive(Default)]
struct Found {
    lines: Vec<String>,
    more: u64,
}

impl Found {
    fn tell(&mut self, path: &[u8], what: impl std::fmt::Display) {
        if self.lines.len() < TOLD {
            self.lines.push(format!("{}: {what}", show(if path.is_empty() { b"." } else { path })));
        } else {
            self.more += 1;
        }
    }

    fn lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines
    }
}

struct Check {
    tree: Tree,
    rights: Rights,
    tally: Tally,
    /// Every path that the archive accounts for.
    known: BTreeSet<Vec<u8>>,
    /// The last member of each directory, which is the one that counts.
    directories: BTreeMap<Vec<u8>, Member>,
    whiteouts: Vec<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    found: Found,
}

impl Check {
    fn know(&mut self, path: &[u8]) {
        let mut path = path;
        while !path.is_empty() && self.known.insert(path.to_vec()) {
            path = split(path).0;
        }
    }

    fn expect_directory(&mut self, path: Vec<u8>, member: Member) {
        self.know(&path);
        self.directories.insert(path, member);
    }

    fn member<R: Input>(&mut self, member: &Member, path: Vec<u8>, archive: &mut Archive<R>) -> Result<()> {
        if member.kind == Kind::Directory {
            self.expect_directory(path, member.clone());
            return Ok(());
        }
        self.know(&path);
        let (parent, name) = split(&path);
        let Ok(base) = self.tree.directory(parent) else {
            self.found.tell(&path, "its directory is missing");
            return Ok(());
        };
        let base = base.try_clone_to_owned()?;
        let stat = match look(base.as_fd(), name) {
            Ok(Some(stat)) => stat,
            // Left out on purpose when it was unpacked.
            Ok(None)
                if self.tally.skipped_devices > 0
                    && !matches!(member.kind, Kind::File | Kind::Symlink | Kind::Fifo) =>
            {
                return Ok(());
            }
            Ok(None) => {
                self.found.tell(&path, "is missing");
                return Ok(());
            }
            Err(errno) => return Err(fault(format!("{}: {errno}", show(&path))).into()),
        };
        match member.kind {
            Kind::Hardlink => self.hardlink(member, &path, &stat),
            _ => {
                self.attributes(member, &path, base.as_fd(), name, &stat);
                if member.kind == Kind::File && kind(&stat) == FileType::RegularFile {
                    self.contents(member, &path, base.as_fd(), name, archive)?;
                }
            }
        }
        Ok(())
    }

    fn hardlink(&mut self, member: &Member, path: &[u8], stat: &Stat) {
        let target = super::clean(&member.link, &Limits::default()).unwrap_or_default();
        let (parent, name) = split(&target);
        let first = self.tree.directory(parent).ok().and_then(|base| look(base, name).ok().flatten());
        if first.is_none_or(|first| (first.st_dev, first.st_ino) != (stat.st_dev, stat.st_ino)) {
            self.found.tell(path, format_args!("is no hard link to {}", show(&target)));
        }
    }

    /// Type, owner, mode, time, size, device numbers, link target, extended attributes.
    fn attributes(&mut self, member: &Member, path: &[u8], base: BorrowedFd<'_>, name: &[u8], stat: &Stat) {
        let expected = match member.kind {
            Kind::File | Kind::Hardlink => FileType::RegularFile,
            Kind::Symlink => FileType::Symlink,
            Kind::Character => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Directory => FileType::Directory,
            Kind::Fifo => FileType::Fifo,
        };
        if kind(stat) != expected {
            self.found.tell(path, format_args!("is {:?}, not {expected:?}", kind(stat)));
            return;
        }
        let mode = self.rights.mode(member);
        if member.kind != Kind::Symlink && stat.st_mode & 0o7777 != mode {
            self.found.tell(path, format_args!("mode {:o}, not {mode:o}", stat.st_mode & 0o7777));
        }
        if self.rights.owners && (stat.st_uid, stat.st_gid) != (member.uid, member.gid) {
            self.found
                .tell(path, format_args!("owner {}:{}, not {}:{}", stat.st_uid, stat.st_gid, member.uid, member.gid));
        }
        let time = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(-1));
        if time != (member.mtime.seconds, i64::from(member.mtime.nanoseconds)) {
            self.found.tell(path, "time of change differs");
        }
        if member.kind == Kind::File && u64::try_from(stat.st_size).ok() != Some(member.size) {
            self.found.tell(path, format_args!("{} bytes, not {}", stat.st_size, member.size));
        }
        if matches!(member.kind, Kind::Character | Kind::Block)
            && stat.st_rdev != fs::makedev(member.device.0, member.device.1)
        {
            self.found.tell(path, "device numbers differ");
        }
        if member.kind == Kind::Symlink
            && fs::readlinkat(base, name, Vec::new()).map(|link| link.into_bytes()).ok().as_ref() != Some(&member.link)
        {
            self.found.tell(path, "link target differs");
        }
        self.xattrs(member, path, base, name);
    }

    fn xattrs(&mut self, member: &Member, path: &[u8], base: BorrowedFd<'_>, name: &[u8]) {
        let file = through_proc(base, if name.is_empty() { b"." } else { name });
        let mut buffer = vec![0u8; 64 << 10];
        for (key, value) in member.xattrs.iter().filter(|(key, _)| !is_overlays_own(key)) {
            let same = fs::lgetxattr(&*file, key.as_slice(), buffer.as_mut_slice())
                .is_ok_and(|length| buffer[..length] == **value);
            if !same && self.tally.skipped_xattrs == 0 {
                self.found.tell(path, format_args!("attribute {} differs", show(key)));
            }
        }
        let length = fs::llistxattr(&*file, buffer.as_mut_slice()).unwrap_or(0);
        for key in buffer[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
            let opaque = key == self.rights.marks.opaque_name().to_bytes() && member.kind == Kind::Directory;
            // A security module labels every file by itself.
            if !opaque && key != b"security.selinux" && !member.xattrs.iter().any(|(known, _)| known == key) {
                self.found.tell(path, format_args!("attribute {} is not in the archive", show(key)));
            }
        }
    }

    fn contents<R: Input>(
        &mut self,
        member: &Member,
        path: &[u8],
        base: BorrowedFd<'_>,
        name: &[u8],
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let file =
            File::from(fs::openat(base, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
        let mut have = Vec::new();
        let mut same = true;
        let mut end = 0;
        archive.data(|offset, piece| {
            same = same && is_zero(&file, end, offset, &mut have)?;
            have.resize(piece.len(), 0);
            same = same && read_fully(&file, &mut have, offset)? == piece.len() && have == piece;
            end = offset + piece.len() as u64;
            Ok(())
        })?;
        same = same && is_zero(&file, end, member.size, &mut have)?;
        if !same {
            self.found.tell(path, "contents differ");
        }
        Ok(())
    }

    fn whiteouts(&mut self) {
        for path in std::mem::take(&mut self.whiteouts) {
            // The layer fills the name itself; a directory then hides what is below.
            if self.known.contains(&path) {
                let (parent, name) = split(&path);
                let there = self.tree.directory(parent).ok().and_then(|base| look(base, name).ok().flatten());
                if there.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                    self.opaque.insert(path);
                }
                continue;
            }
            let (parent, name) = split(&path);
            let base = match self.tree.directory(parent) {
                Ok(base) => Some(base),
                // The layer has something else there, which hides all below.
                Err(Blocked::Symlink | Blocked::NotDirectory) => continue,
                Err(_) => None,
            };
            let there = base.and_then(|base| look(base, name).ok().flatten());
            if !there.is_some_and(|stat| is_whiteout(&stat)) {
                self.found.tell(&path, "should be deleted here, and is not marked so");
            }
            self.know(&path);
        }
    }

    fn directories(&mut self) {
        for (path, member) in std::mem::take(&mut self.directories) {
            let Ok(directory) = self.tree.open_directory(&path) else {
                self.found.tell(&path, "is missing or no directory");
                continue;
            };
            match fs::fstat(&directory) {
                Ok(stat) => self.attributes(&member, &path, directory.as_fd(), b"", &stat),
                Err(errno) => self.found.tell(&path, errno),
            }
        }
        for path in std::mem::take(&mut self.opaque) {
            let marked = self.tree.open_directory(&path).is_ok_and(|directory| {
                let mut value = [0u8; 1];
                fs::fgetxattr(&directory, self.rights.marks.opaque_name(), &mut value) == Ok(1) && value == *b"y"
            });
            if !marked {
                self.found.tell(&path, "should hide all below, and is not marked so");
            }
        }
    }

    /// Whatever is in the tree and not in the archive. Holds one directory open at a time, however deep it goes.
    fn extras(&mut self, path: &[u8]) -> Result<()> {
        let directory = match self.tree.open_directory(path) {
            Ok(directory) => directory,
            Err(blocked) => {
                self.found.tell(path, blocked_text(&blocked));
                return Ok(());
            }
        };
        let mut below = Vec::new();
        for name in names(&directory)? {
            let full = join(path, &name);
            if !self.known.contains(&full) {
                self.found.tell(&full, "is not in the archive");
            } else if look(directory.as_fd(), &name)?.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                below.push(full);
            }
        }
        drop(directory);
        for path in below {
            self.extras(&path)?;
        }
        Ok(())
    }
}

/// Whether `file` has nothing but zeros from `from` up to `to`.
fn is_zero(file: &File, mut from: u64, to: u64, buffer: &mut Vec<u8>) -> Result<bool> {
    while from < to {
        // A hole of terabytes is passed over, not read.
        from = match fs::seek(file, fs::SeekFrom::Data(from)) {
            Ok(data) => data,
            Err(_) => return Ok(true),
        };
        if from >= to {
            break;
        }
        let count = usize::try_from(to - from).map_or(1 << 16, |left| left.min(1 << 16));
        buffer.resize(count, 0);
        if read_fully(file, buffer, from)? != count || buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        from += count as u64;
    }
    Ok(true)
}

fn read_fully(file: &File, buffer: &mut [u8], mut offset: u64) -> Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset)? {
            0 => break,
            count => {
                have += count;
                offset += count as u64;
            }
        }
    }
    Ok(have)
}
