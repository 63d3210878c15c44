//! Trees of every kind, for the property tests.
#![allow(clippy::type_complexity, reason = "what a strategy gives")]

use super::*;

/// A node of a tree for the property test.
#[derive(Clone, Debug)]
pub(super) enum Node {
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
pub(super) struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    time: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) fn a_name() -> impl Strategy<Value = Vec<u8>> {
    let any_byte = prop::collection::vec((1u8..=255).prop_filter("no slash", |byte| *byte != b'/'), 1..12);
    let long = (100usize..255, b'a'..=b'z').prop_map(|(length, letter)| vec![letter; length]);
    prop_oneof![4 => "[a-z]{1,8}".prop_map(String::into_bytes), 2 => any_byte, 1 => long]
        .prop_filter("a name of its own", |name| name != b"." && name != b".." && !name.starts_with(b".wh."))
}

pub(super) fn a_meta() -> impl Strategy<Value = Meta> {
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

pub(super) fn a_node() -> impl Strategy<Value = Node> {
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
pub(super) fn build(path: &Path, node: &Node, meta: &Meta, first_file: &mut Option<PathBuf>) {
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

pub(super) fn gnu_tar(source: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-c").args(options).arg("-C").arg(source).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
