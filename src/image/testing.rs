//! What the tests of images share: trees seen as text, and members put together by hand.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::digest::Digest;
use super::tar::{Kind, Member, Time, Writer};

/// A member with usual metadata.
pub(crate) fn member(path: &str, kind: Kind) -> Member {
    let mtime = Time { seconds: 1_600_000_000, nanoseconds: 0 };
    Member { mtime, ..Member::new(path.as_bytes(), kind) }
}

/// A file.
pub(crate) fn file(path: &str, data: &str) -> (Member, Vec<u8>) {
    let mut made = member(path, Kind::File);
    made.size = data.len() as u64;
    made.stored = made.size;
    (made, data.as_bytes().to_vec())
}

/// A member without data.
pub(crate) fn bare(path: &str, kind: Kind) -> (Member, Vec<u8>) {
    (member(path, kind), Vec::new())
}

/// A link of either kind.
pub(crate) fn link(path: &str, kind: Kind, target: &str) -> (Member, Vec<u8>) {
    let mut made = member(path, kind);
    made.link = target.as_bytes().to_vec();
    (made, Vec::new())
}

/// An archive of such members.
pub(crate) fn archive(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (member, data) in members {
        writer.member(member).unwrap();
        writer.data(data).unwrap();
    }
    writer.finish().unwrap()
}

/// `data` as gzip.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Everything below `root` that a tar can carry, one line a path; whole seconds unless `nanoseconds`.
pub(crate) fn snapshot(root: &Path, nanoseconds: bool) -> BTreeMap<Vec<u8>, String> {
    let mut seen = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    visit(root, root, nanoseconds, &mut seen, &mut first_names);
    seen
}

fn visit(
    root: &Path,
    at: &Path,
    nanoseconds: bool,
    seen: &mut BTreeMap<Vec<u8>, String>,
    first_names: &mut BTreeMap<u64, Vec<u8>>,
) {
    let name = at.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
    let stat = fs::symlink_metadata(at).unwrap();
    let kind = stat.file_type();
    let mut line = format!("{:o} {}:{} {}", stat.mode(), stat.uid(), stat.gid(), stat.mtime());
    if nanoseconds {
        line.push_str(&format!(".{:09}", stat.mtime_nsec()));
    }
    if kind.is_file() {
        let mut data = Vec::new();
        File::open(at).unwrap().read_to_end(&mut data).unwrap();
        let first = first_names.entry(stat.ino()).or_insert_with(|| name.clone());
        line.push_str(&format!(" {} {} first={:?}", stat.size(), Digest::of(&data), super::tar::show(first)));
    } else if kind.is_symlink() {
        line.push_str(&format!(" -> {:?}", fs::read_link(at).unwrap()));
    } else if kind.is_char_device() || kind.is_block_device() {
        line.push_str(&format!(" {:x}", stat.rdev()));
    }
    let mut buffer = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(at, buffer.as_mut_slice()).unwrap_or(0);
    let mut keys: Vec<Vec<u8>> =
        buffer[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()).map(<[u8]>::to_vec).collect();
    keys.sort();
    for key in keys {
        let length = rustix::fs::lgetxattr(at, key.as_slice(), buffer.as_mut_slice()).unwrap();
        line.push_str(&format!(" {}={:02x?}", super::tar::show(&key), &buffer[..length]));
    }
    seen.insert(name, line);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        for below in names {
            visit(root, &below, nanoseconds, seen, first_names);
        }
    }
}

/// A docker archive of one image whose layers are these blobs: what is inside each, and how it is packed.
pub(crate) fn docker_archive(tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
    let config = serde_json::json!({"os":"linux","architecture":"amd64","created":"2020-06-03T12:00:00Z","config":{"Cmd":["/bin/top","-b"],"User":"me"},"rootfs":{"type":"layers","diff_ids":diff_ids}});
    let config = serde_json::to_string(&config).unwrap();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let paths: Vec<String> =
        diff_ids.iter().enumerate().map(|(at, diff)| format!("{}{at}/layer.tar", &diff.hex()[..63])).collect();
    let manifest = serde_json::json!([{"Config":name,"RepoTags":[tag],"Layers":paths}]).to_string();
    let mut members = vec![file(&name, &config)];
    for (path, (_, blob)) in paths.iter().zip(layers) {
        let mut made = member(path, Kind::File);
        (made.size, made.stored) = (blob.len() as u64, blob.len() as u64);
        members.push((made, blob.clone()));
    }
    members.push(file("manifest.json", &manifest));
    archive(&members)
}

/// Layers as they are: plain tars.
pub(crate) fn plain(tars: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    tars.iter().map(|tar| (tar.clone(), tar.clone())).collect()
}
