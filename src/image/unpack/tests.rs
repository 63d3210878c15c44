#![allow(clippy::too_many_lines, clippy::type_complexity)] // tables

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::super::tar::{Run, Time};
use super::super::testing::{archive, bare, file, link, member, snapshot};
use super::*;

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

/// A header with a field overwritten and its checksum made right again.
fn forge(mut bytes: Vec<u8>, at: usize, field: &[u8]) -> Vec<u8> {
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn device(path: &str, kind: Kind, numbers: (u32, u32)) -> Made {
    let mut made = member(path, kind);
    made.device = numbers;
    (made, Vec::new())
}

fn owned(mut made: Made, uid: u32) -> Made {
    made.0.uid = uid;
    made
}

/// One hostile archive: what it tries, its bytes, and what the error must say (the member's name among it).
struct Row {
    attack: &'static str,
    bytes: Vec<u8>,
    error: &'static str,
}

fn row(attack: &'static str, members: &[Made], error: &'static str) -> Row {
    Row { attack, bytes: archive(members), error }
}

fn ways_out(outside: &str) -> Vec<Row> {
    let symlink = || link("l", Kind::Symlink, outside);
    let directory = |path: &str| bare(path, Kind::Directory);
    vec![
        row("parent", &[file("../evil", "x")], "../evil: has .. in its name"),
        row("parent in the middle", &[directory("a/"), file("a/../../evil", "x")], "a/../../evil: has .. in its name"),
        row("parent as a directory", &[directory("a/..")], "a/..: has .. in its name"),
        row("absolute", &[file("/tmp/evil", "x")], "/tmp/evil: an absolute name"),
        row("absolute, doubled", &[file("//tmp/evil", "x")], "//tmp/evil: an absolute name"),
        row(
            "write through a symlink",
            &[symlink(), file("l/evil", "x")],
            "l/evil: goes into l, which leads through a symbolic link",
        ),
        row(
            "write deep through a symlink",
            &[symlink(), file("l/dir/evil", "x")],
            "l/dir/evil: goes into l/dir, which leads through a symbolic link",
        ),
        row(
            "write onto a symlink",
            &[link("l", Kind::Symlink, &format!("{outside}/secret")), file("l", "x")],
            "l: another member of that name",
        ),
        row(
            "directory on a symlink",
            &[symlink(), directory("l/"), file("l/evil", "x")],
            "l/: another member of that name",
        ),
        row(
            "symlink to the root",
            &[link("l", Kind::Symlink, "/"), file("l/tmp/evil", "x")],
            "l/tmp/evil: goes into l/tmp, which leads through",
        ),
        row(
            "relative symlink",
            &[link("l", Kind::Symlink, "../outside"), file("l/evil", "x")],
            "l/evil: goes into l, which leads through",
        ),
        row(
            "device through a symlink",
            &[symlink(), bare("l/evil", Kind::Fifo)],
            "l/evil: goes into l, which leads through",
        ),
        row(
            "hard link outside",
            &[link("h", Kind::Hardlink, "../outside/secret")],
            "h: is a hard link to ../outside/secret: has .. in its name",
        ),
        row("absolute hard link", &[link("h", Kind::Hardlink, &format!("{outside}/secret"))], "h: is a hard link to"),
        row(
            "hard link through a symlink",
            &[symlink(), link("h", Kind::Hardlink, "l/secret")],
            "h: is a hard link to l/secret, which leads through a symbolic link",
        ),
        row(
            "hard link to a directory",
            &[directory("d/"), link("h", Kind::Hardlink, "d")],
            "h: is a hard link to d, which is a directory",
        ),
        row(
            "hard link to nothing",
            &[link("h", Kind::Hardlink, "gone")],
            "h: is a hard link to gone, which this layer does not have",
        ),
        row(
            "hard link to a whiteout",
            &[file(".wh.x", ""), link("h", Kind::Hardlink, "x")],
            "h: is a hard link to x, which this layer does not have",
        ),
        row(
            "directory becomes a symlink",
            &[directory("d/"), file("d/a", "x"), link("d", Kind::Symlink, outside), file("d/evil", "x")],
            "d: a directory of that name came before",
        ),
        row(
            "empty directory becomes a symlink",
            &[directory("d/"), link("d", Kind::Symlink, outside), file("d/evil", "x")],
            "d: a directory of that name came before",
        ),
        row("whiteout of the parent", &[file("a/.wh...", "")], "a/.wh...: is a whiteout of no valid name"),
        row("whiteout of itself", &[file(".wh..", "")], ".wh..: is a whiteout of no valid name"),
        row("whiteout of nothing", &[file(".wh.", "")], ".wh.: is a whiteout of no valid name"),
        row("inside a whiteout", &[file(".wh.a/b", "")], ".wh.a/b: is inside a whiteout"),
    ]
}

fn lies_and_bombs() -> Vec<Row> {
    let sparse = |runs: Vec<Run>, size| {
        let mut made = file("holes", "12345").0;
        (made.runs, made.size) = (Some(runs), size);
        (made, b"12345".to_vec())
    };
    let run = |offset, length| Run { offset, length };
    let whole = archive(&[file("f", &"x".repeat(2000))]);
    let terabytes = forge(archive(&[file("huge", "x")]), 124, b"\x80\0\0\0\0\0\x0a\0\0\0\0\0");
    let negative = forge(archive(&[file("minus", "x")]), 124, &[0xff; 12]);
    let long_header = forge(forge(archive(&[bare("L", Kind::File)]), 124, b"77777777777\0"), 156, b"L");
    let many: Vec<Made> = (0..2000).map(|at| bare(&format!("n{at}"), Kind::Fifo)).collect();
    let devices: Vec<Made> = (0..100).map(|at| device(&format!("dev{at}"), Kind::Block, (8, at))).collect();
    vec![
        Row { attack: "a 10 TB header", bytes: terabytes, error: "huge: claims a length of 10995116277760 bytes" },
        Row { attack: "a negative size", bytes: negative, error: "minus: its size is negative" },
        Row {
            attack: "a long-name header of 8 GiB",
            bytes: long_header,
            error: "an extended header claims 8589934591 bytes",
        },
        Row {
            attack: "cut off in the data",
            bytes: whole[..1500].to_vec(),
            error: "f: the archive ends in the middle of it",
        },
        Row { attack: "cut off in a header", bytes: whole[..300].to_vec(), error: "the archive ends too early" },
        Row {
            attack: "a size beyond the archive",
            bytes: forge(archive(&[file("liar", "x")]), 124, b"00000100000\0"),
            error: "liar: the archive ends in the middle of it",
        },
        Row {
            attack: "a size that hides members",
            bytes: forge(archive(&[link("s", Kind::Symlink, "t"), file("b", "x")]), 124, b"00000001000\0"),
            error: "s: claims 512 bytes of data, but is no file",
        },
        Row {
            attack: "members behind the end",
            bytes: [&whole[..2560], &[0; 512], &whole[..]].concat(),
            error: "members behind an end mark",
        },
        Row { attack: "garbage", bytes: b"garbage ".repeat(512), error: "at byte 0 of the archive: not a tar header" },
        Row {
            attack: "an unknown type",
            bytes: forge(archive(&[file("odd", "")]), 156, b"Q"),
            error: "odd: is of unknown type 'Q'",
        },
        row(
            "more than there is room for",
            &[file("a", &"x".repeat(60_000)), file("b", &"x".repeat(60_000))],
            "b: with its 60000 bytes the layer is larger",
        ),
        row("too many members", &many, "n1000: the layer has more than 1000 members"),
        row("too many devices", &devices, "dev50: the layer has more than 50 device nodes"),
        row("too deep", &[file(&"d/".repeat(200), "")], "200 directories deep"),
        row("a name too long for any file system", &[file(&"n".repeat(300), "")], "cannot create: "),
        row("a path too long", &[file(&"long/".repeat(4000), "")], "a name of 20000 bytes"),
        row("a duplicate file", &[file("a", "one"), file("a", "two")], "a: another member of that name came before it"),
        row(
            "a duplicate by another spelling",
            &[file("a", "one"), file("./a", "two")],
            "./a: another member of that name came before it",
        ),
        row(
            "a file becomes a directory",
            &[file("a", "one"), bare("a/", Kind::Directory)],
            "a/: another member of that name came before it",
        ),
        row(
            "a file with things below it",
            &[file("a", "one"), file("a/b", "two")],
            "a/b: goes into a, which leads through something that is no directory",
        ),
        row(
            "overlay's own whiteout",
            &[device("w", Kind::Character, (0, 0))],
            "w: a character device 0:0 would delete",
        ),
        row("the owner that means none", &[owned(file("a", ""), u32::MAX)], "a: owner 4294967295:0 is outside"),
        row(
            "a sparse map out of its file",
            &[sparse(vec![run(100, 5)], 50)],
            "holes: its sparse map goes beyond its size",
        ),
        row(
            "a sparse map going back",
            &[sparse(vec![run(50, 3), run(10, 2)], 100)],
            "holes: its sparse map goes backwards",
        ),
        row(
            "a sparse map larger than its data",
            &[sparse(vec![run(0, 50)], 100)],
            "holes: its sparse map speaks of 50 bytes",
        ),
        row(
            "a sparse file of exabytes",
            &[sparse(vec![run(0, 5)], 1 << 60)],
            "holes: claims a length of 1152921504606846976 bytes",
        ),
        row("the root as a file", &[file(".", "")], ".: names the root of the layer"),
        row("a symlink to nowhere at all", &[link("s", Kind::Symlink, "")], "s: cannot create: "),
        row(
            "an attribute too large",
            &[with_xattr("x", "user.big", &[b'x'; 70_000])],
            "x: cannot set the attribute user.big",
        ),
        row("an attribute of no namespace", &[with_xattr("x", "nonsense", b"x")], ""),
    ]
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

/// A node of a tree for the property test.
#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    Sparse(Vec<(u32, u8)>),
    Directory(Vec<(Vec<u8>, Node, Meta)>),
    Symlink(Vec<u8>),
    Fifo,
    Device(bool, u32, u32),
    /// A hard link to the first file made before it, if any.
    Hardlink,
}

#[derive(Clone, Debug)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    time: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn a_name() -> impl Strategy<Value = Vec<u8>> {
    let any_byte = prop::collection::vec((1u8..=255).prop_filter("no slash", |byte| *byte != b'/'), 1..12);
    let long = (100usize..255, b'a'..=b'z').prop_map(|(length, letter)| vec![letter; length]);
    prop_oneof![4 => "[a-z]{1,8}".prop_map(String::into_bytes), 2 => any_byte, 1 => long]
        .prop_filter("a name of its own", |name| name != b"." && name != b".." && !name.starts_with(b".wh."))
}

fn a_meta() -> impl Strategy<Value = Meta> {
    let id = || prop_oneof![Just(0u32), 1u32..70_000, Just(3_000_000u32), Just(u32::MAX - 1)];
    let xattr = ("user\\.[a-z]{1,10}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..60));
    let time =
        (0i64..4_000_000_000, 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
    (
        0u32..0o10000,
        id(),
        id(),
        time,
        prop::collection::btree_map(xattr.clone().prop_map(|(key, _)| key), xattr.prop_map(|(_, value)| value), 0..3),
    )
        .prop_map(|(mode, uid, gid, time, xattrs)| Meta {
            mode,
            uid,
            gid,
            time,
            xattrs: xattrs.into_iter().collect(),
        })
}

fn a_node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..3000).prop_map(Node::File),
        1 => prop::collection::vec((0u32..20, any::<u8>()), 0..10).prop_map(Node::Sparse),
        2 => prop_oneof![a_name(), Just(b"../../x".to_vec()), Just(b"/etc/passwd".to_vec()), Just(vec![b'y'; 900])].prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        1 => (any::<bool>(), 1u32..300, 1u32..70_000).prop_map(|(block, major, minor)| Node::Device(block, major, minor)),
        1 => Just(Node::Hardlink),
    ];
    leaf.prop_recursive(5, 40, 8, |inner| {
        prop::collection::btree_map(a_name(), (inner, a_meta()), 0..8)
            .prop_map(|map| Node::Directory(map.into_iter().map(|(name, (node, meta))| (name, node, meta)).collect()))
    })
}

/// Makes a node at `path`, which the node itself names.
fn build(path: &Path, node: &Node, meta: &Meta, first_file: &mut Option<PathBuf>) {
    use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};
    match node {
        Node::File(data) => std::fs::write(path, data).unwrap(),
        Node::Sparse(pieces) => {
            let made = std::fs::File::create(path).unwrap();
            for (block, byte) in pieces {
                std::os::unix::fs::FileExt::write_all_at(&made, &[*byte; 4096], u64::from(*block) * 8192).unwrap();
            }
            made.set_len(20 * 8192 + 77).unwrap();
        }
        Node::Directory(entries) => {
            std::fs::create_dir(path).unwrap();
            for (name, node, meta) in entries {
                build(&path.join(std::ffi::OsStr::from_bytes(name)), node, meta, first_file);
            }
        }
        Node::Symlink(target) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), path).unwrap(),
        Node::Fifo => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::empty(), 0).unwrap(),
        Node::Device(block, major, minor) => {
            let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
            rustix::fs::mknodat(CWD, path, kind, Mode::empty(), rustix::fs::makedev(*major, *minor)).unwrap();
        }
        Node::Hardlink => {
            if let Some(first) = first_file {
                std::fs::hard_link(first, path).unwrap();
            }
            return;
        }
    }
    rustix::fs::chownat(
        CWD,
        path,
        Some(Uid::from_raw(meta.uid)),
        Some(Gid::from_raw(meta.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    if !matches!(node, Node::Symlink(_)) {
        rustix::fs::chmod(path, Mode::from_raw_mode(meta.mode)).unwrap();
    }
    if matches!(node, Node::File(_) | Node::Directory(_)) {
        for (key, value) in &meta.xattrs {
            rustix::fs::lsetxattr(path, key.as_slice(), value, XattrFlags::empty()).unwrap();
        }
    }
    if matches!(node, Node::File(_)) && first_file.is_none() {
        *first_file = Some(path.to_path_buf());
    }
    rustix::fs::utimensat(CWD, path, &tree::timestamps(meta.time), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn gnu_tar(source: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-c").args(options).arg("-C").arg(source).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
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
