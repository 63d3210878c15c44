//! The file system: a flat directory with one file for each row of the table, and the directories of CPUs and of memory nodes, in which
//! the rows are that are there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::fuse::{self, Channel, Entry, Question, ROOT, Received, Request};
use super::reader::Reader;
use super::table::{self, Row, TABLE};
use super::tree::Tree;
use super::{directories, flat_name, is_in_a_directory};

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
    texts: VecDeque<(u64, Vec<u8>)>,
    handles: u64,
    tree: Tree,
    /// Who listed a directory has closed it.
    was_listed: bool,
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
        Server {
            channel: Channel::new(device),
            texts: VecDeque::new(),
            handles: 0,
            tree: Tree::new(top()),
            was_listed: false,
        }
    }

    /// Answers what is asked now and returns. Without a reader only names can be looked up: that is all a start needs, and what is asked
    /// after that waits for who has one.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn serve(&mut self, mut reader: Option<&mut Reader>) -> io::Result<Served> {
        for _ in 0..IN_A_ROW {
            if reader.is_none() && self.was_listed {
                break;
            }
            match self.channel.receive()? {
                Received::Nothing => break,
                Received::Gone => return Ok(Served::Ended),
                Received::Request(length) => self.turn(length, reader.as_deref_mut())?,
            }
        }
        Ok(Served::All)
    }

    /// Answers the child of a start until it has found all that it binds, see [`super::mount::look_up_all`], or has ended.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn serve_names(&mut self) -> io::Result<()> {
        while !self.was_listed {
            match rustix::event::poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match self.serve(None) {
                Ok(Served::All) => {}
                Ok(Served::Ended) => break,
                // The child sees that, too, and says what it was at.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the child of a start has found all that it binds.
    pub(super) fn was_listed(&self) -> bool {
        self.was_listed
    }

    fn turn(&mut self, length: usize, reader: Option<&mut Reader>) -> io::Result<()> {
        let Some(Request { unique, node, question }) = self.channel.request(length) else { return Ok(()) };
        let answer = match question {
            Question::Told => return Ok(()),
            Question::Forget(times) => {
                self.tree.forget(node, times);
                return Ok(());
            }
            Question::ForgetMany(body) => {
                fuse::forgotten(body).for_each(|(node, times)| self.tree.forget(node, times));
                return Ok(());
            }
            Question::Init => Ok(fuse::agreed()),
            Question::Lookup(name) => look_up(&mut self.tree, node, name, &seen(reader.as_deref())).map(fuse::entry),
            Question::Attributes => mode(&self.tree, node).map(|mode| fuse::attributes_of(node, mode)),
            Question::Target => self.tree.target(node),
            Question::Space => Ok(fuse::space()),
            Question::Open => {
                self.handles += 1;
                Ok(fuse::opened(self.handles))
            }
            Question::Read { handle, offset, size } => self.read(node, handle, (offset, size), reader),
            Question::OpenDirectory => Ok(fuse::opened(0)),
            Question::ReleaseDirectory => {
                self.was_listed = true;
                Ok(Vec::new())
            }
            Question::List { told, size } => list(&mut self.tree, node, (told, size), &seen(reader.as_deref())),
            Question::Release(handle) => {
                self.texts.retain(|(other, _)| *other != handle);
                Ok(Vec::new())
            }
            Question::Unknown => Err(Errno::NOSYS),
        };
        self.channel.answer(unique, answer.as_deref().map_err(|error| *error))
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
        if offset == 0 {
            self.texts.retain(|(other, _)| *other != handle);
        }
        if !self.texts.iter().any(|(other, _)| *other == handle) {
            let text = self.text(node, reader)?;
            if self.texts.len() >= KEPT {
                self.texts.pop_front();
            }
            self.texts.push_back((handle, text));
        }
        let text = self.texts.iter().find(|(other, _)| *other == handle).map_or(&[][..], |(_, text)| text);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(text.len());
        Ok(text.get(start..end).unwrap_or_default().to_vec())
    }

    fn text(&self, node: u64, reader: Option<&mut Reader>) -> Result<Vec<u8>, Errno> {
        let (row, place) = if self.tree.has(node) {
            let place = self.tree.place(node)?;
            match table::row_of(&place) {
                Some(row) => (row, place),
                None => return self.tree.text(node),
            }
        } else {
            let row = row(node)?;
            (row, row.path.into())
        };
        let text = reader.ok_or(Errno::AGAIN)?.text(row, &place);
        Ok(text.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?.into_bytes())
    }
}

/// Node 2 is the first row of the table.
fn row(node: u64) -> Result<&'static Row, Errno> {
    let index = node.checked_sub(ROOT + 1).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| TABLE.get(index)).ok_or(if node == ROOT { Errno::ISDIR } else { Errno::STALE })
}

/// The node of the first directory, the first one that is no row.
fn top() -> u64 {
    ROOT + 1 + TABLE.len() as u64
}

fn mode(tree: &Tree, node: u64) -> Result<u32, Errno> {
    match node {
        ROOT => Ok(DIRECTORY),
        _ if tree.has(node) => tree.mode(node),
        _ => row(node).map(|row| FILE | row.mode),
    }
}

/// The CPUs that are seen. While there is no reader nobody is answered who asks for them.
fn seen(reader: Option<&Reader>) -> Vec<u32> {
    reader.map(Reader::visible).unwrap_or_default()
}

/// What the flat directory has, by name.
fn flat() -> impl Iterator<Item = (String, Entry)> {
    let entry = |node, mode| Entry { node, mode, lasting: true };
    let rows = TABLE.iter().enumerate().filter(|(_, row)| !is_in_a_directory(row));
    let rows = rows.map(move |(index, row)| (flat_name(row.path), entry(ROOT + 1 + index as u64, FILE | row.mode)));
    let trees = directories().enumerate();
    rows.chain(
        trees.map(move |(index, path)| (flat_name(&path.to_string_lossy()), entry(top() + index as u64, DIRECTORY))),
    )
}

fn look_up(tree: &mut Tree, node: u64, name: &[u8], seen: &[u32]) -> Result<Entry, Errno> {
    match node {
        ROOT => flat().find(|(other, _)| other.as_bytes() == name).map(|(_, entry)| entry).ok_or(Errno::NOENT),
        _ if tree.has(node) => tree.look_up(node, name, seen),
        _ => Err(Errno::NOTDIR),
    }
}

/// The names of a directory after the first `told` ones, as many as there is room for. Each counts as looked up.
fn list(tree: &mut Tree, node: u64, part: (u64, u32), seen: &[u32]) -> Result<Vec<u8>, Errno> {
    let (told, size) = (usize::try_from(part.0).unwrap_or(usize::MAX), usize::try_from(part.1).unwrap_or(0));
    let names = match node {
        ROOT => flat().map(|(name, _)| name).collect(),
        _ if tree.has(node) => tree.names(node, seen)?,
        _ => return Err(Errno::NOTDIR),
    };
    let mut out = Vec::new();
    for (index, name) in names.iter().enumerate().skip(told) {
        if out.len() + fuse::listed_size(name) > size {
            break;
        }
        // Gone meanwhile.
        let Ok(entry) = look_up(tree, node, name.as_bytes(), seen) else { continue };
        out.extend(fuse::listed(entry, name, index as u64 + 1));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn every_name_is_listed_once_in_any_room() {
        for size in [200, 400, 4096] {
            let (mut told, mut names, mut tree) = (0, 0, Tree::new(top()));
            loop {
                let part = list(&mut tree, ROOT, (told, size), &[]).unwrap();
                assert!(part.len() <= size as usize);
                let mut at = 0;
                while at < part.len() {
                    let number = |at: usize| u64::from_ne_bytes(part[at..at + 8].try_into().unwrap());
                    let length = u32::from_ne_bytes(part[at + 144..at + 148].try_into().unwrap()) as usize;
                    let name = &part[at + 152..at + 152 + length];
                    assert_eq!(look_up(&mut tree, ROOT, name, &[]).unwrap().node, number(at));
                    told = number(at + 136);
                    names += 1;
                    at += (152 + length).next_multiple_of(8);
                }
                if part.is_empty() {
                    break;
                }
            }
            assert_eq!(names, super::super::bound().count(), "{size}");
        }
    }

    fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(40 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(opcode.to_ne_bytes());
        [unique, node, 0, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(body);
        bytes
    }

    #[test]
    fn what_is_asked_after_the_start_waits_for_a_reader() {
        let (kernel, device) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        let mut server = Server::new(device);
        rustix::io::write(&kernel, &request(29, 7, ROOT, &[0; 24])).unwrap();
        rustix::io::write(&kernel, &request(15, 8, ROOT + 1, &[0; 24])).unwrap();
        assert_eq!(server.serve(None).unwrap(), Served::All);
        server.serve_names().unwrap();
        assert!(server.was_listed());
        let mut answer = [0; 64];
        assert_eq!(rustix::io::read(&kernel, &mut answer), Ok(16));
        assert_eq!(answer.get(8..16), Some(&7_u64.to_ne_bytes()[..]));
        assert_eq!(rustix::io::read(&kernel, &mut answer), Err(Errno::AGAIN), "the second was answered, too");
        // Still there for who has a reader.
        assert!(matches!(server.channel.receive(), Ok(Received::Request(64))));
    }
}
