//! The reader: from bytes to members.

use std::io::{self, BufRead};

use super::header::{self, Header, Layout, malformed};
use super::pax::{self, Records};
use super::sparse::{self, MapReader, RUN_LIMIT};
use super::{BLOCK, Kind, Member, Run, show};
use crate::error::{Result, fault};

/// The longest name or PAX header that is read, in bytes. An extended attribute has at most 64 KiB.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// What an archive is read from.
pub(crate) trait Input: BufRead {
    /// Passes over `count` bytes; fewer left is an error of kind `UnexpectedEof`.
    fn skip(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let here = self.fill_buf()?.len();
            if here == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(count).map_or(here, |count| count.min(here));
            self.consume(step);
            count -= step as u64;
        }
        Ok(())
    }
}

impl Input for &[u8] {}

impl<T: Input + ?Sized> Input for &mut T {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        (**self).skip(count)
    }
}

/// An archive being read, member by member.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    input: R,
    /// Bytes read so far.
    position: u64,
    /// Data of the present member that is still to come.
    left: u64,
    /// Padding behind that data.
    padding: u64,
    /// The present member's name and runs.
    name: Vec<u8>,
    runs: Option<Vec<Run>>,
    global: Records,
    ended: bool,
}

impl<R: Input> Archive<R> {
    /// Starts at the first header.
    pub(crate) fn new(input: R) -> Archive<R> {
        Archive {
            input,
            position: 0,
            left: 0,
            padding: 0,
            name: Vec::new(),
            runs: None,
            global: Records::default(),
            ended: false,
        }
    }

    /// The next member, or `None` behind the last. What was not read of the one before is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.left + self.padding;
        self.skip(rest)?;
        (self.left, self.padding) = (0, 0);
        let mut records = self.global.clone();
        let mut gnu_name = None;
        let mut gnu_link = None;
        loop {
            let at = self.position;
            let Some(block) = self.header_block()? else {
                self.ended = true;
                return Ok(None);
            };
            let header =
                Header::parse(&block).map_err(|error| fault(format!("at byte {at} of the archive: {error}")))?;
            match header.kind() {
                b'g' => {
                    let data = self.extension(&header)?;
                    self.global.read(&data).map_err(|error| self.about(error))?;
                    records = self.global.clone();
                }
                b'x' | b'X' => {
                    let data = self.extension(&header)?;
                    records.read(&data).map_err(|error| self.about(error))?;
                }
                b'L' => gnu_name = Some(until_nul(self.extension(&header)?)),
                b'K' => gnu_link = Some(until_nul(self.extension(&header)?)),
                b'V' => {
                    self.extension(&header)?;
                }
                _ => return self.member(&header, records, gnu_name, gnu_link).map(Some),
            }
        }
    }

    /// Where in the archive the next byte of data is.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Hands the present member's data to `sink` piece by piece, each with its offset in the file.
    pub(crate) fn data(&mut self, mut sink: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let runs = self.runs.take().unwrap_or_else(|| vec![Run { offset: 0, length: self.left }]);
        for run in runs {
            let mut offset = run.offset;
            let mut left = run.length;
            while left > 0 {
                let name = &self.name;
                let piece = match self.input.fill_buf() {
                    Ok(piece) => piece,
                    Err(error) => return Err(about(name, error)),
                };
                if piece.is_empty() {
                    return Err(about(name, io::ErrorKind::UnexpectedEof.into()));
                }
                let step = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                sink(offset, &piece[..step])?;
                self.input.consume(step);
                let step = step as u64;
                (offset, left, self.left, self.position) =
                    (offset + step, left - step, self.left - step, self.position + step);
            }
        }
        Ok(())
    }

    /// Reads on to the end of the input, past the end mark: what hashes the input must see all of it.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let count = self.input.fill_buf().map_err(|error| about(&self.name, error))?.len();
            if count == 0 {
                return Ok(());
            }
            self.input.consume(count);
        }
    }

    /// An error about the member that was read last.
    fn about(&self, error: io::Error) -> anyhow::Error {
        about(&self.name, error)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.input.skip(count).map_err(|error| self.about(error))?;
        self.position += count;
        Ok(())
    }

    /// One block, or `None` at a clean end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        if self.input.fill_buf().map_err(|error| about(&self.name, error))?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(&mut block).map_err(|error| about(&self.name, error))?;
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    /// The next header, or `None` at the end: two blocks of zeros, or, as many writers leave it, one or none.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK] => Ok(None),
            // Readers differ in what they make of this; a scanner and we must not see different trees.
            Some(_) => Err(fault(format!(
                "at byte {} of the archive: members behind an end mark",
                self.position - BLOCK as u64
            ))
            .into()),
        }
    }

    /// The data of an extension header.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        let size = header.size().map_err(|error| about(&self.name, error))?;
        if size > EXTENSION_LIMIT {
            return Err(fault(format!(
                "behind {}: an extended header claims {size} bytes, more than {EXTENSION_LIMIT}",
                show(&self.name)
            ))
            .into());
        }
        let length = usize::try_from(size)?;
        let mut data = vec![0u8; length.next_multiple_of(BLOCK)];
        self.input.read_exact(&mut data).map_err(|error| about(&self.name, error))?;
        self.position += data.len() as u64;
        data.truncate(length);
        Ok(data)
    }

    /// Puts a member together from its header block and what came before it.
    fn member(
        &mut self,
        header: &Header<'_>,
        records: Records,
        gnu_name: Option<Vec<u8>>,
        gnu_link: Option<Vec<u8>>,
    ) -> Result<Member> {
        let sparse_name = records.sparse.name.clone();
        self.name = sparse_name.or_else(|| records.path.clone()).or(gnu_name).unwrap_or_else(|| header.path());
        let mut member =
            describe(header, &records, std::mem::take(&mut self.name)).map_err(|(name, error)| about(&name, error))?;
        self.name.clone_from(&member.path);
        if let Some(link) = records.link.or(gnu_link) {
            member.link = link;
        }
        if !matches!(member.kind, Kind::Hardlink | Kind::Symlink) {
            member.link.clear();
        }
        (self.left, self.padding) = (member.stored, member.stored.next_multiple_of(BLOCK as u64) - member.stored);
        self.sparse(header, &records.sparse, &mut member)?;
        self.runs.clone_from(&member.runs);
        Ok(member)
    }

    /// Reads the map of a sparse member, whichever of the four ways it is written.
    fn sparse(&mut self, header: &Header<'_>, said: &pax::Sparse, member: &mut Member) -> Result<()> {
        let runs = if header.kind() == b'S' {
            self.gnu_sparse(header, member)?
        } else if said.major == Some(1) && said.minor == Some(0) {
            member.size =
                said.real_size.ok_or_else(|| about(&member.path, malformed("a sparse file without its real size")))?;
            self.map_in_data(member)?
        } else if let (false, Some(real_size)) = (said.map.is_empty(), said.real_size) {
            member.size = real_size;
            sparse::pairs(&said.map).map_err(|error| about(&member.path, error))?
        } else {
            return Ok(());
        };
        sparse::check(&runs, member.size, member.stored).map_err(|error| about(&member.path, error))?;
        member.runs = Some(runs);
        Ok(())
    }

    /// The old GNU form: four runs in the header, 21 in each block behind it.
    fn gnu_sparse(&mut self, header: &Header<'_>, member: &mut Member) -> Result<Vec<Run>> {
        let (real_size, mut runs, mut more) = header.gnu_sparse().map_err(|error| about(&member.path, error))?;
        member.size = real_size;
        while more {
            let block = self.block()?.ok_or_else(|| about(&member.path, io::ErrorKind::UnexpectedEof.into()))?;
            runs.extend(header::gnu_runs(&block[..504]).map_err(|error| about(&member.path, error))?);
            if runs.len() > RUN_LIMIT {
                return Err(about(&member.path, malformed("its sparse map is too long")));
            }
            more = block[504] != 0;
        }
        Ok(runs)
    }

    fn map_in_data(&mut self, member: &mut Member) -> Result<Vec<Run>> {
        let mut reader = MapReader::default();
        let mut complete = false;
        while !complete {
            if self.left < BLOCK as u64 {
                return Err(about(&member.path, malformed("its sparse map does not end")));
            }
            let block = self.block()?.ok_or_else(|| about(&member.path, io::ErrorKind::UnexpectedEof.into()))?;
            self.left -= BLOCK as u64;
            complete = reader.feed(&block).map_err(|error| about(&member.path, error))?;
        }
        member.stored = self.left;
        reader.finish().map_err(|error| about(&member.path, error))
    }
}

/// Everything of a member but its link and its sparse map. Takes the name and gives it back with an error.
fn describe(
    header: &Header<'_>,
    records: &Records,
    path: Vec<u8>,
) -> std::result::Result<Member, (Vec<u8>, io::Error)> {
    let read = || -> io::Result<Member> {
        let kind = kind(header, &path)?;
        let size = records.size.map_or_else(|| header.size(), Ok)?;
        let stored = match kind {
            Kind::File => size,
            // Some writers repeat the size of the file that a hard link names; no data follows it (GNU tar reads it so too).
            Kind::Hardlink => 0,
            // GNU's incremental backups list a directory's names behind it.
            Kind::Directory if header.kind() == b'D' => size,
            _ if size == 0 => 0,
            _ => {
                return Err(malformed(format!("claims {size} bytes of data, but is no file")));
            }
        };
        Ok(Member {
            path: Vec::new(),
            kind,
            mode: header.mode()?,
            uid: records.uid.map_or_else(|| header.uid(), |uid| header::id(uid, "owner"))?,
            gid: records.gid.map_or_else(|| header.gid(), |gid| header::id(gid, "group"))?,
            mtime: records.mtime.map_or_else(|| header.mtime(), Ok)?,
            size: if kind == Kind::File { size } else { 0 },
            stored,
            link: header.link(),
            device: if matches!(kind, Kind::Character | Kind::Block) { header.device()? } else { (0, 0) },
            xattrs: records.xattrs.clone(),
            runs: None,
        })
    };
    match read() {
        Ok(mut member) => {
            member.path = path;
            Ok(member)
        }
        Err(error) => Err((path, error)),
    }
}

fn kind(header: &Header<'_>, path: &[u8]) -> io::Result<Kind> {
    Ok(match header.kind() {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 | b'0' if path.ends_with(b"/") && header.layout != Layout::Star => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'M' => return Err(malformed("is the second part of a file of another volume")),
        other => {
            return Err(malformed(format!("is of unknown type {:?}", char::from(other))));
        }
    })
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}

/// An error with the member's name in it.
fn about(name: &[u8], error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return match name {
            b"" => fault(format!("the archive ends too early: {error}")).into(),
            name => fault(format!("{}: the archive ends in the middle of it or right behind it ({error})", show(name)))
                .into(),
        };
    }
    match name {
        b"" => fault(error.to_string()).into(),
        name => fault(format!("{}: {error}", show(name))).into(),
    }
}
