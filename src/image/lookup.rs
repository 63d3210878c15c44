//! Reading a file of a stack of layers without mounting it: the same file that overlayfs would show.
//!
//! Paths are resolved part by part through all layers at once, so that a link in one may lead into another, and never
//! out: `..` of the root is the root, an absolute target starts at the root again, as in a chroot.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::unpack::Marks;
use super::unpack::tree::{is_whiteout, kind, look};
use crate::error::{Result, fault};

/// As many links as the kernel follows in one path.
const LINKS: usize = 40;

/// A directory as the stack shows it: its parts, uppermost first.
type Directory = Rc<Vec<OwnedFd>>;

/// A stack of layers.
#[derive(Debug)]
pub(super) struct Merged {
    root: Directory,
    marks: Marks,
}

/// What a name in a directory is.
enum Found {
    Nothing,
    Directory(Directory),
    /// A link's target.
    Link(Vec<u8>),
    File(File),
    Other,
}

impl Merged {
    /// Opens the layers, lowest first.
    pub(super) fn open(layers: &[PathBuf], marks: Marks) -> Result<Merged> {
        let open = |path: &PathBuf| {
            fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|errno| fault(format!("layer {}: {errno}", path.display())).into())
        };
        let root = layers.iter().rev().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Merged {
            root: Rc::new(root),
            marks,
        })
    }

    /// The contents of a regular file of at most `limit` bytes; `None` when there is none at that path.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self
            .find(path)
            .map_err(|errno| fault(format!("{path} in the image: {errno}")))?
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fault(format!("{path} in the image: {error}")))?;
        if bytes.len() as u64 > limit {
            return Err(fault(format!("{path} in the image: has more than {limit} bytes")).into());
        }
        Ok(Some(bytes))
    }

    /// The directory that shows at a clean path, no link followed; `None` when something else or nothing is there.
    pub(super) fn directory(&self, path: &[u8]) -> std::result::Result<Option<OwnedFd>, Errno> {
        let mut here = Rc::clone(&self.root);
        for part in path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            match self.entry(&here, part)? {
                Found::Directory(directory) => here = directory,
                _ => return Ok(None),
            }
        }
        let Some(top) = here.first() else {
            return Ok(None);
        };
        fs::openat(
            top,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Some)
    }

    fn find(&self, path: &str) -> std::result::Result<Option<File>, Errno> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .filter(|part| !part.is_empty() && *part != b".")
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        // A stack of what is still to be walked, the next on top.
        let mut left = parts(path.as_bytes());
        let mut above: Vec<Directory> = vec![Rc::clone(&self.root)];
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == b".." {
                if above.len() > 1 {
                    above.pop();
                }
                continue;
            }
            let Some(here) = above.last() else {
                return Ok(None);
            };
            match self.entry(here, &part)? {
                Found::Directory(directory) => above.push(directory),
                Found::File(file) if left.is_empty() => return Ok(Some(file)),
                Found::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    left.extend(parts(&target));
                }
                Found::File(_) | Found::Other | Found::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Merges one name: the uppermost decides; directories go on below it until one is opaque or something else.
    fn entry(&self, directory: &Directory, name: &[u8]) -> std::result::Result<Found, Errno> {
        let mut merged = Vec::new();
        for part in directory.iter() {
            let Some(stat) = look(part.as_fd(), name)? else {
                continue;
            };
            let is_directory = kind(&stat) == FileType::Directory;
            if is_whiteout(&stat) || (!is_directory && !merged.is_empty()) {
                break;
            }
            if !is_directory {
                return Ok(match kind(&stat) {
                    FileType::Symlink => {
                        Found::Link(fs::readlinkat(part, name, Vec::new())?.into_bytes())
                    }
                    FileType::RegularFile => Found::File(File::from(fs::openat(
                        part,
                        name,
                        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?)),
                    _ => Found::Other,
                });
            }
            let opened = fs::openat(
                part,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let opaque = fs::fgetxattr(&opened, self.marks.opaque_name(), &mut [0u8; 1]) == Ok(1);
            merged.push(opened);
            if opaque {
                break;
            }
        }
        Ok(if merged.is_empty() {
            Found::Nothing
        } else {
            Found::Directory(Rc::new(merged))
        })
    }
}

/// Whether `path` is a single normal part: what a foreign store's metadata may name.
pub(super) fn is_single_part(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None) if part.as_bytes() == path.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::unpack::mark_opaque_for_tests;
    use super::*;

    #[test]
    fn layers_are_read_as_overlayfs_shows_them() {
        let base = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..3).map(|at| base.path().join(format!("{at}"))).collect();
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        let put = |layer: usize, path: &str, text: &str| {
            let path = layers[layer].join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(0, "etc/passwd", "low");
        put(2, "etc/passwd", "high");
        put(0, "etc/group", "group");
        put(0, "etc/gone", "x");
        put(0, "hidden/file", "x");
        put(1, "usr/lib/real", "real");
        put(0, "swap/file", "x");
        put(2, "swap", "a file now");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            layers[1].join("etc/gone"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        std::fs::create_dir(layers[1].join("hidden")).unwrap();
        let marks = mark_opaque_for_tests(&layers[1].join("hidden"));
        symlink("/usr/lib/real", layers[2].join("etc/absolute")).unwrap();
        symlink(
            "../../../../usr/lib/../lib/real",
            layers[2].join("etc/relative"),
        )
        .unwrap();
        symlink("loop", layers[0].join("etc/loop")).unwrap();
        symlink("/proc/self/root/etc/passwd", layers[0].join("etc/out")).unwrap();
        let merged = Merged::open(&layers, marks).unwrap();
        for (path, text) in [
            ("etc/passwd", Some("high")),
            ("/etc//group", Some("group")),
            ("etc/gone", None),
            ("hidden/file", None),
            ("etc/absolute", Some("real")),
            ("etc/relative", Some("real")),
            ("swap/file", None),
            ("swap", Some("a file now")),
            ("etc", None),
            ("etc/out", None),
            ("../../etc/passwd", Some("high")),
        ] {
            let found = merged
                .read(path, 100)
                .unwrap()
                .map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(found.as_deref(), text, "{path}");
        }
        assert!(merged.read("etc/loop", 100).is_err());
        assert!(merged.read("etc/passwd", 2).is_err());
    }

    #[test]
    fn single_parts() {
        assert!(is_single_part("abc-1"));
        for bad in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(!is_single_part(bad), "{bad}");
        }
    }
}
