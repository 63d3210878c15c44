//! Hostile archives: ways out of the root, lies about members, and bombs.
#![allow(clippy::too_many_lines, reason = "tables")]

use super::*;

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
pub(super) struct Row {
    pub(super) attack: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) error: &'static str,
}

fn row(attack: &'static str, members: &[Made], error: &'static str) -> Row {
    Row { attack, bytes: archive(members), error }
}

pub(super) fn ways_out(outside: &str) -> Vec<Row> {
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

pub(super) fn lies_and_bombs() -> Vec<Row> {
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
