//! The part of the FUSE protocol that directories of read-only files need; include/uapi/linux/fuse.h, fuse(4).
//!
//! No library: those that exist bring a thread and 16 MiB of buffer for each session, and the launcher answers from its own poll loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// The smallest buffer that the kernel hands a request to (`FUSE_MIN_READ_BUFFER`).
const BUFFER: usize = 8192;

/// The version of the protocol that the answers are in: 7.31 is Linux 5.4.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// `FUSE_ABORT_ERROR`: a connection that somebody aborted reads otherwise than one whose mounts are gone.
const ABORT_ERROR: u32 = 1 << 21;

/// `FUSE_DO_READDIRPLUS`: who lists the directory has every name looked up at once.
const DO_READDIRPLUS: u32 = 1 << 13;

/// `FOPEN_DIRECT_IO`: each read(2) asks anew, whatever the size of the file, which is 0 as everywhere in /proc.
const DIRECT_IO: u32 = 1;

/// A year in seconds: names and attributes never change, so the kernel need not ask again.
const VALID: u64 = 365 * 86_400;

/// The node of the directory.
pub(super) const ROOT: u64 = 1;

/// What the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question<'a> {
    /// Agree on a version.
    Init,
    /// The node of this name in a directory.
    Lookup(&'a [u8]),
    /// Mode and size of the node.
    Attributes,
    /// Open the node.
    Open,
    /// Read from an open file.
    Read {
        /// What [`opened`] said.
        handle: u64,
        /// From where.
        offset: u64,
        /// At most so many bytes.
        size: u32,
    },
    /// Open a directory.
    OpenDirectory,
    /// Every name from the one with this number on, in at most so many bytes.
    List {
        /// How many names were told.
        told: u64,
        /// At most so many bytes.
        size: u32,
    },
    /// The last user of an open file has closed it.
    Release(u64),
    /// The same of the directory.
    ReleaseDirectory,
    /// Where the link points to.
    Target,
    /// How large the file system is, and how full.
    Space,
    /// The kernel forgets the node, of which it was told so many times.
    Forget(u64),
    /// The same of several, see [`forgotten`].
    ForgetMany(&'a [u8]),
    /// A statement that wants no answer.
    Told,
    /// Anything else.
    Unknown,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    /// Which one an answer is for.
    pub(super) unique: u64,
    /// The node that it is about.
    pub(super) node: u64,
    /// What is asked.
    pub(super) question: Question<'a>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Request<'_> {
    /// Reads a request; `None` for what is too short to be one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Request<'_>> {
        let body = bytes.get(40..)?;
        let question = match u32_at(bytes, 4)? {
            26 => Question::Init,
            1 => Question::Lookup(body.split(|byte| *byte == 0).next()?),
            3 => Question::Attributes,
            14 => Question::Open,
            15 => Question::Read { handle: u64_at(body, 0)?, offset: u64_at(body, 8)?, size: u32_at(body, 16)? },
            18 => Question::Release(u64_at(body, 0)?),
            27 => Question::OpenDirectory,
            44 => Question::List { told: u64_at(body, 8)?, size: u32_at(body, 16)? },
            29 => Question::ReleaseDirectory,
            5 => Question::Target,
            17 => Question::Space,
            2 => Question::Forget(u64_at(body, 0)?),
            42 => Question::ForgetMany(body),
            // INTERRUPT: every answer is on its way at once.
            36 => Question::Told,
            _ => Question::Unknown,
        };
        Some(Request { unique: u64_at(bytes, 8)?, node: u64_at(bytes, 16)?, question })
    }
}

/// The answer to [`Question::Init`].
pub(super) fn agreed() -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    [MAJOR, MINOR, 0, ABORT_ERROR | DO_READDIRPLUS].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    // max_background and congestion_threshold, then max_write.
    [16_u16, 12].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    out.extend(4096_u32.to_ne_bytes());
    out.resize(64, 0);
    out
}

/// The attributes of a node (`struct fuse_attr`).
fn attributes(node: u64, mode: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(88);
    // ino, size, blocks, times
    [node, 0, 0, 0, 0, 0].iter().for_each(|word: &u64| out.extend(word.to_ne_bytes()));
    // fractions of the times, mode, nlink, uid, gid, rdev, blksize, flags
    [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].iter().for_each(|word: &u32| out.extend(word.to_ne_bytes()));
    out
}

/// Each node and how often it is forgotten, of [`Question::ForgetMany`].
pub(super) fn forgotten(body: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let count = u32_at(body, 0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let all = body.get(8..).unwrap_or_default().chunks_exact(16).take(count);
    all.filter_map(|one| Some((u64_at(one, 0)?, u64_at(one, 8)?)))
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its node.
    pub(super) node: u64,
    /// Type and permission bits.
    pub(super) mode: u32,
    /// The kernel need not ask again whether the name is there.
    pub(super) lasting: bool,
}

/// The answer to [`Question::Lookup`].
pub(super) fn entry(entry: Entry) -> Vec<u8> {
    let Entry { node, mode, lasting } = entry;
    let mut out = Vec::with_capacity(128);
    // nodeid, generation, how long name and attributes hold, with fractions
    [node, 0, if lasting { VALID } else { 0 }, VALID, 0].iter().for_each(|word: &u64| out.extend(word.to_ne_bytes()));
    out.extend(attributes(node, mode));
    out
}

/// The answer to [`Question::Attributes`].
pub(super) fn attributes_of(node: u64, mode: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    [VALID, 0].iter().for_each(|word: &u64| out.extend(word.to_ne_bytes()));
    out.extend(attributes(node, mode));
    out
}

/// The answer to [`Question::Open`].
pub(super) fn opened(handle: u64) -> Vec<u8> {
    let mut out = handle.to_ne_bytes().to_vec();
    [DIRECT_IO, 0].iter().for_each(|word: &u32| out.extend(word.to_ne_bytes()));
    out
}

/// The answer to [`Question::Space`]: of no size, as /proc is, which keeps df(1) from showing it.
pub(super) fn space() -> Vec<u8> {
    let mut out = Vec::with_capacity(80);
    // blocks, and inodes: all, free; of blocks those for plain users, too
    [0; 5].iter().for_each(|word: &u64| out.extend(word.to_ne_bytes()));
    // size of a block, longest name, size of a fragment
    [4096, 255, 4096].iter().for_each(|word: &u32| out.extend(word.to_ne_bytes()));
    out.resize(80, 0);
    out
}

/// One name of the answer to [`Question::List`]; `next` is how many names are told with this one.
pub(super) fn listed(one: Entry, name: &str, next: u64) -> Vec<u8> {
    let mut out = entry(one);
    [one.node, next].iter().for_each(|word| out.extend(word.to_ne_bytes()));
    out.extend(u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
    // The type, as in the upper bits of a mode.
    out.extend((one.mode >> 12).to_ne_bytes());
    out.extend(name.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// How many bytes [`listed`] takes for a name.
pub(super) fn listed_size(name: &str) -> usize {
    (128 + 24 + name.len()).next_multiple_of(8)
}

/// What became of waiting for a request.
#[derive(Debug)]
pub(super) enum Received {
    /// So many bytes of one are in the buffer.
    Request(usize),
    /// There is none now.
    Nothing,
    /// No mount of it is left: the sandbox has ended.
    Gone,
}

/// The open /dev/fuse of one file system.
#[derive(Debug)]
pub(super) struct Channel {
    device: OwnedFd,
    buffer: Vec<u8>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Channel {
    /// On a descriptor that does not block.
    pub(super) fn new(device: OwnedFd) -> Channel {
        Channel { device, buffer: vec![0; BUFFER] }
    }

    /// The next request, without waiting.
    ///
    /// # Errors
    /// ECONNABORTED when somebody aborted the connection (/sys/fs/fuse/connections), and what read(2) says.
    pub(super) fn receive(&mut self) -> io::Result<Received> {
        loop {
            return match rustix::io::read(&self.device, &mut self.buffer[..]) {
                Ok(length) => Ok(Received::Request(length)),
                // ENOENT: whoever asked was killed meanwhile.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(Errno::AGAIN) => Ok(Received::Nothing),
                Err(Errno::NODEV) => Ok(Received::Gone),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// The request of which `length` bytes were received.
    pub(super) fn request(&self, length: usize) -> Option<Request<'_>> {
        Request::parse(self.buffer.get(..length)?)
    }

    /// Answers.
    ///
    /// # Errors
    /// What write(2) says. Whoever asked waits until the device is closed then, and cannot be killed.
    pub(super) fn answer(&self, unique: u64, answer: Result<&[u8], Errno>) -> io::Result<()> {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), &[][..]),
        };
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend(u32::try_from(16 + body.len()).unwrap_or(16).to_ne_bytes());
        out.extend(error.to_ne_bytes());
        out.extend(unique.to_ne_bytes());
        out.extend(body);
        loop {
            return match rustix::io::write(&self.device, &out) {
                Err(Errno::INTR) => continue,
                // ENOENT: whoever asked does not wait any more.
                Ok(_) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_forgotten_at_once() {
        let words = [7_u64, 1, 9, 2, 11, 3];
        let body: Vec<u8> = [2_u64].iter().chain(&words).flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(forgotten(&body).collect::<Vec<_>>(), [(7, 1), (9, 2)]);
        assert_eq!(forgotten(&body[..30]).collect::<Vec<_>>(), [(7, 1)]);
        assert_eq!(forgotten(&[]).count(), 0);
    }

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(40 + body.len()).unwrap().to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        [7_u64, node, 0, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(body);
        bytes
    }

    #[test]
    fn requests_are_read() {
        let mut read = Vec::new();
        [3_u64, 100].iter().for_each(|word| read.extend(word.to_ne_bytes()));
        read.extend(4096_u32.to_ne_bytes());
        let cases = [
            (request(26, 0, &[0; 16]), Question::Init),
            (request(1, 1, b"proc-stat\0"), Question::Lookup(b"proc-stat")),
            (request(3, 2, &[0; 16]), Question::Attributes),
            (request(14, 2, &[0; 8]), Question::Open),
            (request(15, 2, &read), Question::Read { handle: 3, offset: 100, size: 4096 }),
            (request(18, 2, &9_u64.to_ne_bytes()), Question::Release(9)),
            (request(27, 1, &[0; 8]), Question::OpenDirectory),
            (request(44, 1, &read), Question::List { told: 100, size: 4096 }),
            (request(29, 1, &[0; 24]), Question::ReleaseDirectory),
            (request(5, 2, &[]), Question::Target),
            (request(17, 1, &[]), Question::Space),
            (request(2, 2, &3_u64.to_ne_bytes()), Question::Forget(3)),
            (request(42, 0, &[1; 24]), Question::ForgetMany(&[1; 24])),
            (request(36, 2, &[0; 8]), Question::Told),
            (request(99, 2, &[]), Question::Unknown),
        ];
        for (bytes, question) in cases {
            let request = Request::parse(&bytes).unwrap();
            assert_eq!((request.unique, request.question), (7, question));
        }
        for length in 0..40 {
            assert_eq!(Request::parse(&request(26, 0, &[])[..length]), None);
        }
        assert_eq!(Request::parse(&request(15, 2, &[0; 19])), None);
    }

    #[test]
    fn answers_are_as_long_as_the_kernel_says() {
        let mode = 0o100_444;
        let one = Entry { node: 2, mode, lasting: true };
        assert_eq!(
            (agreed().len(), entry(one).len(), attributes_of(2, mode).len(), opened(1).len()),
            (64, 128, 104, 16)
        );
        assert_eq!(space().len(), 80);
        assert_eq!(listed(one, "proc-stat", 1).len(), 128 + 24 + 16);
        assert_eq!(listed_size("proc-stat"), 128 + 24 + 16);
    }
}
