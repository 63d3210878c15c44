//! Directory trees: whether a sandbox changed one, and small ones to be roots.

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, listxattr, makedev, mknodat, setxattr};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Everything about every file of a tree but for access times.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    pub(crate) fn take(top: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut todo = vec![top.to_owned()];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let content = match meta.file_type() {
                kind if kind.is_file() => {
                    String::from_utf8_lossy(&fs::read(&path).expect("a readable file")).into_owned()
                }
                kind if kind.is_symlink() => fs::read_link(&path).expect("a link").display().to_string(),
                kind if kind.is_dir() => {
                    todo.extend(
                        fs::read_dir(&path).expect("a readable directory").map(|entry| entry.expect("an entry").path()),
                    );
                    String::new()
                }
                _ => format!("device {}", meta.rdev()),
            };
            let line = format!(
                "{:o} {}:{} links {} inode {} changed {}.{} attributes {:?}: {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.nlink(),
                meta.ino(),
                meta.ctime(),
                meta.ctime_nsec(),
                attributes(&path, meta.is_symlink())
            );
            found.insert(path, line);
        }
        Self(found)
    }

    /// Fails the test unless the tree is as it was.
    #[track_caller]
    pub(crate) fn unchanged(&self, top: &Path) {
        let now = Self::take(top);
        let lines = |from: &Self, other: &Self, sign: &str| -> Vec<String> {
            from.0
                .iter()
                .filter(|(path, line)| other.0.get(*path) != Some(line))
                .map(|(p, l)| format!("{sign} {} {l}", p.display()))
                .collect()
        };
        let changes = [lines(self, &now, "-"), lines(&now, self, "+")].concat();
        assert!(changes.is_empty(), "changed on the host:\n{}", changes.join("\n"));
    }
}

fn attributes(path: &Path, link: bool) -> Vec<(String, Vec<u8>)> {
    if link {
        return Vec::new();
    }
    let mut names = [0; 4096];
    let length = listxattr(path, &mut names).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &str| {
        let mut value = [0; 4096];
        let length = lgetxattr(path, name, &mut value).unwrap_or(0);
        value[..length].to_vec()
    };
    names.map(|name| String::from_utf8_lossy(name).into_owned()).map(|name| (name.clone(), value(&name))).collect()
}

/// Files with their content; directories on the way are made. A name that ends in / is an empty directory.
pub(crate) fn fill<'a>(top: &Path, files: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (name, content) in files {
        let path = top.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).unwrap();
            continue;
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
    }
}

/// A root with a shell and nothing else: busybox under all its names.
pub(crate) fn busybox(top: &Path) {
    fs::create_dir_all(top.join("bin")).unwrap();
    let source =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).expect("busybox-static");
    fs::copy(source, top.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "id", "stat", "touch", "mkdir", "rm", "mv", "sleep", "readlink", "dd", "find", "chown",
        "ln", "env", "pwd",
    ] {
        symlink("busybox", top.join("bin").join(name)).unwrap();
    }
}

/// A character device in a tree; 0, 0 is overlayfs's whiteout.
pub(crate) fn device(path: &Path, major: u32, minor: u32) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor)).unwrap();
}

/// overlayfs's mark of a directory that hides what lower layers have there.
pub(crate) fn make_opaque(path: &Path) {
    setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}
