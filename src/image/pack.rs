//! A directory made a layer: the reverse of [`super::unpack`]. Overlay's marks become whiteouts again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use anyhow::Context;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::tar::{Kind, Member, Run, Time, Writer, join, show, split};
use super::unpack::tree::{self, Attributes, is_whiteout};
use super::unpack::{Marks, is_overlays_own};
use crate::error::{Result, fault};

/// The most runs that are written of a sparse file; beyond that it is written whole.
const RUN_LIMIT: usize = 4096;

/// Packs `directory` in a thread and hands the archive to `consume` as it is made.
pub(crate) fn stream<T>(directory: &Path, consume: impl FnOnce(io::PipeReader) -> Result<T>) -> Result<T> {
    let (reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        let work = move || pack(directory, &[], BufWriter::with_capacity(256 << 10, writer));
        let packing = thread::Builder::new().spawn_scoped(scope, work).context("start the packing thread")?;
        let consumed = consume(reader);
        let packed = packing.join().map_err(|_| fault("the packing thread panicked"))?;
        match (packed, consumed) {
            // The reader gave up first; why is in its own error.
            (Err(error), Err(consumer)) if is_broken_pipe(&error) => Err(consumer),
            (Err(error), _) => Err(error),
            (Ok(()), consumed) => consumed,
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes the tree at `directory` as a layer: names sorted, so that the same tree gives the same bytes. What is at the paths
/// `left_out` is no part of it.
pub(crate) fn pack(directory: &Path, left_out: &[&[u8]], output: impl Write) -> Result<()> {
    let named = |errno: Errno| fault(format!("{}: {errno}", directory.display()));
    let root =
        fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
    let stat = fs::fstat(&root).map_err(named)?;
    let mut packer = Packer { writer: Writer::new(output), left_out, first_names: HashMap::new(), device: stat.st_dev };
    let mut member = describe(b"./", Kind::Directory, &stat);
    member.xattrs = xattrs(root.as_fd(), b"./")?.0;
    packer.write(&member)?;
    packer.directory(&root, b"")?;
    packer.writer.finish()?;
    Ok(())
}

struct Packer<'a, W> {
    writer: Writer<W>,
    left_out: &'a [&'a [u8]],
    /// The first name of each file that has several.
    first_names: HashMap<u64, Vec<u8>>,
    /// What is mounted below is not part of the tree.
    device: u64,
}

impl<W: Write> Packer<'_, W> {
    fn write(&mut self, member: &Member) -> Result<()> {
        Ok(self.writer.member(member)?)
    }

    fn directory(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<()> {
        let named = |errno: Errno| fault(format!("{}: {errno}", show(path)));
        for name in tree::names(directory).map_err(named)? {
            let path = join(path, &name);
            if !self.left_out.contains(&path.as_slice()) {
                self.entry(directory.as_fd(), &name, &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, base: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let named = |errno: Errno| -> anyhow::Error { fault(format!("{}: {errno}", show(path))).into() };
        if name.starts_with(b".wh.") {
            return Err(fault(format!(
                "{}: a name that starts with .wh. means a deletion in a layer, so it cannot be in one",
                show(path)
            ))
            .into());
        }
        let stat = fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW).map_err(named)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            _ if is_whiteout(&stat) => return self.whiteout(path, &stat),
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            // Sockets are no part of a tar: they live as long as who made them. GNU tar leaves them out too.
            _ => return Ok(()),
        };
        let mut member = describe(path, kind, &stat);
        if kind != Kind::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.first_names.get(&stat.st_ino) {
                member.kind = Kind::Hardlink;
                (member.size, member.stored) = (0, 0);
                member.link.clone_from(first);
                return self.write(&member);
            }
            self.first_names.insert(stat.st_ino, path.to_vec());
        }
        match kind {
            Kind::Directory => self.subdirectory(base, name, member, &stat),
            Kind::File => self.file(base, name, member),
            Kind::Symlink => {
                member.link = fs::readlinkat(base, name, Vec::new()).map_err(named)?.into_bytes();
                self.write(&member)
            }
            _ => {
                member.device = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
                self.write(&member)
            }
        }
    }

    fn whiteout(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let (parent, name) = split(path);
        let mut member = describe(&join(parent, &[b".wh.", name].concat()), Kind::File, stat);
        (member.mode, member.size, member.stored) = (0o600, 0, 0);
        self.write(&member)
    }

    fn subdirectory(&mut self, base: BorrowedFd<'_>, name: &[u8], mut member: Member, stat: &Stat) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = member.path.clone();
        let open =
            || fs::openat(base, name, flags, Mode::empty()).map_err(|errno| fault(format!("{}: {errno}", show(&path))));
        if stat.st_dev != self.device {
            member.path.push(b'/');
            return self.write(&member);
        }
        let directory = open()?;
        let (attributes, opaque) = xattrs(directory.as_fd(), &path)?;
        member.xattrs = attributes;
        member.path.push(b'/');
        self.write(&member)?;
        if opaque {
            let mut mark = describe(&join(&path, b".wh..wh..opq"), Kind::File, stat);
            (mark.mode, mark.size, mark.stored) = (0o600, 0, 0);
            self.write(&mark)?;
        }
        self.directory(&directory, &path)
    }

    fn file(&mut self, base: BorrowedFd<'_>, name: &[u8], mut member: Member) -> Result<()> {
        let path = member.path.clone();
        let named = |error: &dyn std::fmt::Display| fault(format!("{}: {error}", show(&path)));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(fs::openat(base, name, flags, Mode::empty()).map_err(|errno| named(&errno))?);
        member.xattrs = xattrs(file.as_fd(), &path)?.0;
        let runs = runs(&file, member.size).map_err(|errno| named(&errno))?;
        let whole = [Run { offset: 0, length: member.size }];
        if let Some(runs) = &runs {
            member.stored = runs.iter().map(|run| run.length).sum();
            member.runs = Some(runs.clone());
        }
        self.write(&member)?;
        let mut buffer = vec![0u8; 256 << 10];
        for run in runs.as_deref().unwrap_or(&whole) {
            let (mut offset, end) = (run.offset, run.offset + run.length);
            while offset < end {
                let want = usize::try_from(end - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
                let count = file.read_at(&mut buffer[..want], offset).map_err(|error| named(&error))?;
                if count == 0 {
                    return Err(named(&"became shorter while it was read").into());
                }
                self.writer.data(&buffer[..count])?;
                offset += count as u64;
            }
        }
        Ok(())
    }
}

/// The runs of a file with holes; `None` when it has none worth the map.
fn runs(file: &File, size: u64) -> std::result::Result<Option<Vec<Run>>, Errno> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A file system that does not know holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let end = fs::seek(file, SeekFrom::Hole(start))?.min(size);
        runs.push(Run { offset: start, length: end - start });
        if runs.len() > RUN_LIMIT {
            return Ok(None);
        }
        at = end;
    }
    if let [Run { offset: 0, length }] = runs.as_slice()
        && *length == size
    {
        return Ok(None);
    }
    if size == 0 {
        return Ok(None);
    }
    // A file that ends in a hole has an empty run at its end, as GNU tar writes it.
    if at < size || runs.last().is_none_or(|last| last.offset + last.length < size) {
        runs.push(Run { offset: size, length: 0 });
    }
    Ok(Some(runs))
}

fn describe(path: &[u8], kind: Kind, stat: &Stat) -> Member {
    let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Member {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { seconds: stat.st_mtime, nanoseconds },
        size,
        stored: size,
        ..Member::new(path, kind)
    }
}

/// Reads the attributes that belong into a layer: not overlayfs' own, and not a security module's label, which is the
/// host's; and whether overlayfs' mark it opaque. What is no file or directory can have only `trusted` and `security` ones; those are the host's too.
fn xattrs(file: BorrowedFd<'_>, path: &[u8]) -> Result<(Attributes, bool)> {
    let wanted = |key: &[u8]| {
        key != b"security.selinux"
            && (!key.starts_with(b"system.") || key == b"system.posix_acl_access" || key == b"system.posix_acl_default")
    };
    let list = |keys: &mut [u8]| fs::flistxattr(file, keys);
    let get = |key: &[u8], value: &mut [u8]| fs::fgetxattr(file, key, value);
    let all = tree::attributes(list, get, wanted)
        .map_err(|errno| fault(format!("{}: cannot read its attributes: {errno}", show(path))))?;
    let (overlays, attributes): (Attributes, Attributes) = all.into_iter().partition(|(key, _)| is_overlays_own(key));
    let opaque = overlays.iter().any(|(key, value)| {
        [Marks::Trusted, Marks::User].iter().any(|marks| marks.opaque_name().to_bytes() == key) && value == b"y"
    });
    Ok((attributes, opaque))
}
