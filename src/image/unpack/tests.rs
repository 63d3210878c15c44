#![allow(clippy::type_complexity, reason = "tables")]

mod hostile;
mod trees;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::super::tar::{Run, Time};
use super::super::testing::{archive, bare, file, link, member, snapshot};
use super::*;
use hostile::{lies_and_bombs, ways_out};
use trees::{Node, a_meta, a_name, a_node, build, gnu_tar};

type Made = (Member, Vec<u8>);

/// A place to unpack into, and something beside it that must stay as it is.
struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let base = tempfile::tempdir().unwrap();
        for name in ["root", "outside"] {
            std::fs::create_dir(base.path().join(name)).unwrap();
        }
        std::fs::write(base.path().join("outside/secret"), "secret").unwrap();
        std::fs::create_dir(base.path().join("outside/dir")).unwrap();
        Place { base }
    }

    fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    fn outside(&self) -> String {
        self.base.path().join("outside").to_str().unwrap().to_string()
    }

    /// All but the root that is unpacked into.
    fn others(&self) -> Vec<(Vec<u8>, String)> {
        let all = snapshot(self.base.path(), true).into_iter();
        all.filter(|(path, _)| !path.starts_with(b"root") && !path.is_empty()).collect()
    }

    fn unpack(&self, bytes: &[u8], limits: &Limits, openat2: bool) -> Result<Tally> {
        self.unpack_all(bytes, limits, openat2).map(|unpacked| unpacked.tally)
    }

    fn unpack_all(&self, bytes: &[u8], limits: &Limits, openat2: bool) -> Result<Unpacked> {
        let tree = Tree::open(&self.root()).unwrap();
        let tree = if openat2 { tree } else { tree.without_openat2() };
        unpack_into(&mut Archive::new(bytes), tree, marks(&self.root()), limits)
    }
}

fn marks(root: &Path) -> Marks {
    Marks::possible(std::os::fd::AsFd::as_fd(&std::fs::File::open(root).unwrap()))
}

fn with_xattr(path: &str, key: &str, value: &[u8]) -> Made {
    let mut made = file(path, "");
    made.0.xattrs = vec![(key.as_bytes().to_vec(), value.to_vec())];
    made
}

#[test]
fn hostile_archives() {
    let limits = Limits { members: 1000, devices: 50, depth: 100, path: 10_000, bytes: 100_000, ..Limits::default() };
    for openat2 in [true, false] {
        let outside = Place::new();
        for row in ways_out(&outside.outside()).into_iter().chain(lies_and_bombs()) {
            let place = Place::new();
            let before = (place.others(), outside.others());
            let result = place.unpack(&row.bytes, &limits, openat2);
            assert_eq!((place.others(), outside.others()), before, "{}: something outside changed", row.attack);
            if row.error.is_empty() {
                assert!(result.is_ok(), "{}: {result:?}", row.attack);
                continue;
            }
            let error = result.err().unwrap_or_else(|| panic!("{}: was accepted", row.attack)).to_string();
            assert!(error.contains(row.error), "{}: {error}", row.attack);
            assert!(!error.contains('\n') && error.len() < 400, "{}: {error}", row.attack);
        }
    }
}

/// A link's own mode, owner and times are its own: its target keeps what it has.
#[test]
fn a_link_out_is_only_a_link() {
    let place = Place::new();
    let mut made = link("l", Kind::Symlink, &format!("{}/secret", place.outside()));
    (made.0.mode, made.0.uid) = (0o4777, 1234);
    made.0.xattrs = vec![(b"trusted.x".to_vec(), b"y".to_vec()), (b"user.x".to_vec(), b"y".to_vec())];
    let before = place.others();
    place.unpack(&archive(&[made]), &Limits::default(), true).unwrap();
    assert_eq!(place.others(), before);
}

#[test]
fn whiteouts_become_overlays_own() {
    let place = Place::new();
    let members = [
        bare("keep/", Kind::Directory),
        file("keep/.wh.gone", ""),
        file(".wh.file", ""),
        file("hidden/.wh..wh..opq", ""),
        // aufs order: the whiteout of a directory, then the directory made anew.
        file(".wh.again", ""),
        bare("again/", Kind::Directory),
        file("again/new", "n"),
        // The other order, a file in place of a file, and a directory that only its child shows.
        bare("late/", Kind::Directory),
        file(".wh.late", ""),
        file(".wh.swap", ""),
        file("swap", "s"),
        file(".wh.deep", ""),
        file("deep/er/file", "d"),
        file(".wh..wh.aufs", ""),
        bare(".wh..wh.plnk/", Kind::Directory),
        file(".wh..wh.plnk/1.2", ""),
    ];
    let bytes = archive(&members);
    place.unpack(&bytes, &Limits::default(), true).unwrap();
    let root = place.root();
    let whiteout = |path: &str| is_whiteout_at(&root.join(path));
    assert!(whiteout("keep/gone") && whiteout("file"));
    let mark = marks(&root).opaque_name();
    let opaque = |path: &str| rustix::fs::lgetxattr(root.join(path), mark, &mut [0u8; 4]) == Ok(1);
    assert!(opaque("hidden") && opaque("again") && opaque("late") && opaque("deep"));
    assert!(!opaque("keep") && !opaque("deep/er") && !opaque(""));
    assert_eq!(std::fs::read(root.join("swap")).unwrap(), b"s");
    let names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.as_bytes().starts_with(b".wh")), "{names:?}");
    let differences = compare(&mut Archive::new(bytes.as_slice()), &root, marks(&root), &Tally::default()).unwrap();
    assert_eq!(differences, Vec::<String>::new());
}

/// A deletion below what is no directory any more, as umoci writes it, says nothing, and does nothing behind a link.
#[test]
fn deletions_below_a_link_do_nothing() {
    let place = Place::new();
    let bytes = archive(&[
        link("l", Kind::Symlink, &place.outside()),
        file("l/.wh.secret", ""),
        file("l/dir/.wh.x", ""),
        file("l/.wh..wh..opq", ""),
        file("f", ""),
        file("f/.wh.x", ""),
    ]);
    let before = place.others();
    let tally = place.unpack(&bytes, &Limits::default(), true).unwrap();
    assert_eq!(place.others(), before);
    assert_eq!(snapshot(&place.root(), false).len(), 3);
    let root = place.root();
    let differences = compare(&mut Archive::new(bytes.as_slice()), &root, marks(&root), &tally).unwrap();
    assert_eq!(differences, Vec::<String>::new());
}

fn is_whiteout_at(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    std::fs::symlink_metadata(path).is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
}

/// A directory that an upper layer only implies stays what it is below; one that is new there is an ordinary one.
#[test]
fn implied_directories_are_like_those_below() {
    let (low, high) = (Place::new(), Place::new());
    let mut private = member("private/", Kind::Directory);
    (private.mode, private.uid, private.gid) = (0o2750, 1000, 2000);
    private.mtime = Time { seconds: 5, nanoseconds: 7 };
    private.xattrs = vec![(b"user.note".to_vec(), b"n".to_vec())];
    let gone = member("gone/", Kind::Directory);
    let mut root = member("./", Kind::Directory);
    root.mode = 0o555;
    low.unpack(&archive(&[(root, Vec::new()), (private, Vec::new()), (gone, Vec::new())]), &Limits::default(), true)
        .unwrap();
    let bytes =
        archive(&[file("private/.wh.x", ""), file("private/new/f", ""), file(".wh.gone", ""), file("gone/f", "")]);
    let unpacked = high.unpack_all(&bytes, &Limits::default(), true).unwrap();
    let marks = marks(&high.root());
    inherit(&high.root(), &unpacked.implied, &[low.root()], marks).unwrap();
    let (below, above) = (snapshot(&low.root(), true), snapshot(&high.root(), true));
    assert_eq!(above[&b"private"[..]], below[&b"private"[..]]);
    assert_eq!(above[&b""[..]], below[&b""[..]]);
    assert!(above[&b"private/new"[..]].starts_with("40755 0:0 1600000000"));
    assert!(above[&b"gone"[..]].starts_with("40755 0:0 1600000000"));
    let differences = compare(&mut Archive::new(bytes.as_slice()), &high.root(), marks, &unpacked.tally).unwrap();
    assert_eq!(differences, Vec::<String>::new());
}

/// Attributes that overlayfs gives meaning to never come out of an archive.
#[test]
fn overlay_attributes_are_dropped() {
    let place = Place::new();
    let members = [
        with_xattr("a", "trusted.overlay.redirect", b"/etc/shadow"),
        with_xattr("b", "user.overlay.metacopy", b""),
        with_xattr("c", "user.fine", b"1"),
    ];
    let tally = place.unpack(&archive(&members), &Limits::default(), true).unwrap();
    let seen: String = snapshot(&place.root(), false).into_values().collect();
    assert!(seen.contains("user.fine") && !seen.contains("overlay"), "{seen}");
    assert_eq!(tally.skipped_xattrs, 2);
}

/// Every difference that can be made by hand is found.
#[test]
fn compare_finds_what_was_changed() {
    let bytes = archive(&[
        bare("d/", Kind::Directory),
        file("d/f", "hello"),
        link("d/h", Kind::Hardlink, "d/f"),
        link("s", Kind::Symlink, "t"),
        file(".wh.w", ""),
        with_xattr("x", "user.a", b"1"),
    ]);
    let changes: [(&str, &dyn Fn(&Path)); 9] = [
        ("d/f: contents differ", &|root| std::fs::write(root.join("d/f"), "jello").unwrap()),
        ("d/f: 6 bytes, not 5", &|root| std::fs::write(root.join("d/f"), "hello!").unwrap()),
        ("d: mode 700, not 755", &|root| {
            std::fs::set_permissions(root.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap()
        }),
        ("d/h: is missing", &|root| std::fs::remove_file(root.join("d/h")).unwrap()),
        ("d/new: is not in the archive", &|root| std::fs::write(root.join("d/new"), "").unwrap()),
        ("s: link target differs", &|root| {
            std::fs::remove_file(root.join("s")).unwrap();
            std::os::unix::fs::symlink("u", root.join("s")).unwrap();
        }),
        ("w: should be deleted here", &|root| std::fs::remove_file(root.join("w")).unwrap()),
        ("x: attribute user.a differs", &|root| {
            rustix::fs::setxattr(root.join("x"), "user.a", b"2", rustix::fs::XattrFlags::empty()).unwrap()
        }),
        ("x: attribute user.b is not in", &|root| {
            rustix::fs::setxattr(root.join("x"), "user.b", b"2", rustix::fs::XattrFlags::empty()).unwrap()
        }),
    ];
    for (expected, change) in changes {
        let place = Place::new();
        let tally = place.unpack(&bytes, &Limits::default(), true).unwrap();
        change(&place.root());
        let lines = compare(&mut Archive::new(bytes.as_slice()), &place.root(), marks(&place.root()), &tally).unwrap();
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}: {lines:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any legal tree, tarred by GNU tar in each of its formats and unpacked here, is the same tree.
    #[test]
    fn a_tree_through_gnu_tar_is_the_same_tree(entries in prop::collection::btree_map(a_name(), (a_node(), a_meta()), 1..8), meta in a_meta()) {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let source = tempfile::tempdir().unwrap();
        let tree = source.path().join("t");
        let node = Node::Directory(entries.into_iter().map(|(name, (node, meta))| (name, node, meta)).collect());
        build(&tree, &node, &meta, &mut None);
        let pax = ["--format=posix", "--xattrs", "--xattrs-include=*"];
        for (exact, options) in [(true, [&pax[..], &["--sparse", "--sparse-version=1.0"]].concat()), (true, [&pax[..], &["--sparse", "--sparse-version=0.1"]].concat()),
            (true, [&pax[..], &["--sparse", "--sparse-version=0.0"]].concat()), (true, pax.to_vec()), (false, vec!["--format=gnu", "--sparse"]), (false, vec!["--format=oldgnu"])] {
            let bytes = gnu_tar(&tree, &options);
            let place = Place::new();
            let tally = place.unpack(&bytes, &Limits::default(), true).unwrap();
            let (mut wanted, got) = (snapshot(&tree, exact), snapshot(&place.root(), exact));
            if !exact {
                // GNU's own formats have no room for attributes.
                wanted.values_mut().for_each(|line| line.truncate(line.find(" user.").unwrap_or(line.len())));
            }
            prop_assert_eq!(wanted, got, "{:?}", options);
            let differences = compare(&mut Archive::new(bytes.as_slice()), &place.root(), marks(&place.root()), &tally).unwrap();
            prop_assert_eq!(differences, Vec::<String>::new());
        }
    }

    /// Whatever bytes come in, the answer is a tree inside or an error, never a panic.
    #[test]
    fn mangled_archives_do_no_harm(flips in prop::collection::vec((0usize..4096, any::<u8>()), 0..12), cut in 0usize..5000) {
        let mut bytes = archive(&[bare("d/", Kind::Directory), file("d/f", "hello"), link("s", Kind::Symlink, "d"), with_xattr("x", "user.a", b"1"), link("d/h", Kind::Hardlink, "d/f")]);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().min(cut.max(512)));
        let place = Place::new();
        let before = place.others();
        let _ = place.unpack(&bytes, &Limits { bytes: 1 << 20, file: 1 << 30, ..Limits::default() }, true);
        prop_assert_eq!(place.others(), before);
    }
}
