//! Tar, as far as container layers use it: a reader for every header format that the tools in the field write
//! (v7, ustar, star, GNU with long names and sparse maps, PAX with sparse maps 0.0, 0.1 and 1.0), and a writer of PAX.
//!
//! Our own, for three reasons: what is read here comes from strangers, so each length that a header claims is bounded
//! before memory is taken for it; an error names the member that it is about; and a file's bytes go from the
//! decompressor's buffer to the disk without being copied on the way.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

pub(crate) use reader::{Archive, Input};
pub(crate) use writer::Writer;

/// The unit of a tar archive, in bytes.
pub(crate) const BLOCK: usize = 512;

/// A point in time: seconds since 1970 and nanoseconds behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Seconds, negative before 1970.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999, counted forward also before 1970.
    pub(crate) nanoseconds: u32,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// Another name of a member that came before.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A run of bytes that a sparse file has; what lies between runs is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where in the file.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) length: u64,
}

/// One member, all of its headers put together.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its name as the archive has it: any bytes but NUL.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits with set-id and sticky bits: 0o7777 at most.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Time of last change.
    pub(crate) mtime: Time,
    /// Length of the file in bytes, holes included.
    pub(crate) size: u64,
    /// Bytes of it that the archive carries.
    pub(crate) stored: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The runs of a sparse file, ascending.
    pub(crate) runs: Option<Vec<Run>>,
}

impl Member {
    /// A member without data: root's, with the usual mode of its kind, from 1970.
    pub(crate) fn new(path: &[u8], kind: Kind) -> Member {
        Member {
            path: path.to_vec(),
            kind,
            mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            stored: 0,
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
            runs: None,
        }
    }
}

/// Parent and last part of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The reverse of [`split`].
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// A member's name for an error: readable, on one line, not longer than a line should be.
pub(crate) fn show(path: &[u8]) -> String {
    const LONGEST: usize = 160;
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
        if text.len() > LONGEST {
            let mut end = LONGEST;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
            return text;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::show;

    #[test]
    fn names_are_shown_on_one_short_line() {
        assert_eq!(show(b"a/b\xff\n\x1b[31m"), "a/b\\xff\\n\\u{1b}[31m");
        assert_eq!(show("ä/日本".as_bytes()), "ä/日本");
        let long = show(&[b'x'; 100_000]);
        assert!(long.len() < 200 && long.ends_with('…'));
    }
}
