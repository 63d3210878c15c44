//! The file system: a flat directory with one file for each row of the table.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::fuse::{self, Channel, Question, ROOT, Received, Request};
use super::reader::Reader;
use super::table::{Row, TABLE};

/// So many texts are kept for readers that come back for the rest. Who holds more files open and reads them in pieces gets pieces of
/// different moments: what a sandbox opens must not fill its launcher's memory.
const KEPT: usize = 32;

/// So many requests in a row before others have a turn: signals, the terminal.
const IN_A_ROW: usize = 32;

const DIRECTORY: u32 = 0o040_555;
const FILE: u32 = 0o100_000;

/// Serves one sandbox.
#[derive(Debug)]
pub(crate) struct Server {
    channel: Channel,
    /// Texts of open files, the oldest first.
    texts: VecDeque<(u64, String)>,
    handles: u64,
}

/// Whether there will be more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// Yes.
    All,
    /// No: no mount of it is left.
    Ended,
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Server {
    /// On an open /dev/fuse, see [`super::mount::open`].
    pub(crate) fn new(device: OwnedFd) -> Server {
        Server { channel: Channel::new(device), texts: VecDeque::new(), handles: 0 }
    }

    /// Answers what is asked now and returns. Without a reader only names can be looked up: that is all a start needs.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn serve(&mut self, mut reader: Option<&mut Reader>) -> io::Result<Served> {
        for _ in 0..IN_A_ROW {
            match self.channel.receive()? {
                Received::Nothing => break,
                Received::Gone => return Ok(Served::Ended),
                Received::Request(length) => self.turn(length, reader.as_deref_mut()),
            }
        }
        Ok(Served::All)
    }

    fn turn(&mut self, length: usize, reader: Option<&mut Reader>) {
        let Some(Request { unique, node, question }) = self.channel.request(length) else { return };
        let answer = match question {
            Question::Told => return,
            Question::Init => Ok(fuse::agreed()),
            Question::Lookup(name) => lookup(node, name),
            Question::Attributes => mode(node).map(|mode| fuse::attributes_of(node, mode)),
            Question::Open => self.open(node),
            Question::Read { handle, offset, size } => self.read(node, handle, (offset, size), reader),
            Question::OpenDirectory => Ok(fuse::opened(0)),
            Question::ReleaseDirectory => Ok(Vec::new()),
            Question::List { told, size } => Ok(list(told, size)),
            Question::Release(handle) => {
                self.texts.retain(|(other, _)| *other != handle);
                Ok(Vec::new())
            }
            Question::Unknown => Err(Errno::NOSYS),
        };
        self.channel.answer(unique, answer.as_deref().map_err(|error| *error));
    }

    fn open(&mut self, node: u64) -> Result<Vec<u8>, Errno> {
        row(node)?;
        self.handles += 1;
        Ok(fuse::opened(self.handles))
    }

    /// From the start a file says what is true now; what follows is the rest of the same text.
    fn read(
        &mut self,
        node: u64,
        handle: u64,
        part: (u64, u32),
        reader: Option<&mut Reader>,
    ) -> Result<Vec<u8>, Errno> {
        let (offset, size) = part;
        let row = row(node)?;
        if offset == 0 {
            self.texts.retain(|(other, _)| *other != handle);
        }
        if !self.texts.iter().any(|(other, _)| *other == handle) {
            let reader = reader.ok_or(Errno::AGAIN)?;
            let text = reader.text(row).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if self.texts.len() >= KEPT {
                self.texts.pop_front();
            }
            self.texts.push_back((handle, text));
        }
        let text = self.texts.iter().find(|(other, _)| *other == handle).map_or("", |(_, text)| text);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(text.len());
        Ok(text.as_bytes().get(start..end).unwrap_or_default().to_vec())
    }
}

/// Node 2 is the first row of the table.
fn row(node: u64) -> Result<&'static Row, Errno> {
    let index = node.checked_sub(ROOT + 1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| TABLE.get(index)).ok_or(if node == ROOT { Errno::ISDIR } else { Errno::STALE })
}

fn mode(node: u64) -> Result<u32, Errno> {
    if node == ROOT { Ok(DIRECTORY) } else { row(node).map(|row| FILE | row.mode) }
}

fn lookup(node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
    if node != ROOT {
        return Err(Errno::NOTDIR);
    }
    let index = TABLE.iter().position(|row| super::file_name(row).as_bytes() == name).ok_or(Errno::NOENT)?;
    let node = ROOT + 1 + index as u64;
    Ok(fuse::entry(node, mode(node)?))
}

/// The names after the first `told` ones, as many as there is room for.
fn list(told: u64, size: u32) -> Vec<u8> {
    let (told, size) = (usize::try_from(told).unwrap_or(usize::MAX), usize::try_from(size).unwrap_or(0));
    let mut out = Vec::new();
    for (index, row) in TABLE.iter().enumerate().skip(told) {
        let index = index as u64;
        let one = fuse::listed(ROOT + 1 + index, FILE | row.mode, &super::file_name(row), index + 1);
        if out.len() + one.len() > size {
            break;
        }
        out.extend(one);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_listed_once_in_any_room() {
        for size in [200, 400, 4096] {
            let (mut told, mut names) = (0, 0);
            loop {
                let part = list(told, size);
                assert!(part.len() <= size as usize);
                let mut at = 0;
                while at < part.len() {
                    let number = |at: usize| u64::from_ne_bytes(part[at..at + 8].try_into().unwrap());
                    let length = u32::from_ne_bytes(part[at + 144..at + 148].try_into().unwrap()) as usize;
                    let name = &part[at + 152..at + 152 + length];
                    assert_eq!(lookup(ROOT, name).unwrap()[..8], number(at).to_ne_bytes());
                    told = number(at + 136);
                    names += 1;
                    at += (152 + length).next_multiple_of(8);
                }
                if part.is_empty() {
                    break;
                }
            }
            assert_eq!(names, TABLE.len(), "{size}");
        }
    }
}
