//! A layer's bytes on their way from the blob to the disk: read, hashed, decompressed, hashed again, and handed on,
//! each in a thread of its own, in buffers that go round and round. Memory is flat whatever the layer's size.
//!
//! ```text
//! blob ─▶ [hash, copy] ─▶ decompress ─┬─▶ consumer (tar reader, extractor)   the caller's thread
//!                 decoder thread      └─▶ diff ID (and, where asked, zstd)   hash thread
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use anyhow::Context;

use super::digest::{Digest, Hasher, HashingWriter};
use super::progress::Meter;
use super::tar::Input;
use crate::error::{Result, fault};

/// Size of a buffer, in bytes. Larger ones cost more than they save: copies from and to the page cache then miss the
/// second-level cache (measured: 128 KiB and up take a fifth more system time).
const CHUNK: usize = 64 << 10;
/// Buffers that may wait between two threads: enough that none waits while the scheduler runs another, 4 MiB a layer.
const DEPTH: usize = 64;
/// The most memory that a zstd frame may ask for its window: 2^27, what the `zstd` tool takes without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How bytes are compressed, seen from their first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz format. No layer media type has it, so such a layer is packed anew.
    Xz,
    /// bzip2, recognised to be refused by name.
    Bzip2,
}

impl Compression {
    /// What `start` begins with.
    pub(crate) fn detect(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a skippable one in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, ..] => Compression::Bzip2,
            _ => Compression::None,
        }
    }

    /// The suffix of the layer's media type.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
            Compression::None | Compression::Xz | Compression::Bzip2 => "",
        }
    }

    /// Wraps a reader in the decompressor.
    pub(crate) fn decoder<'a, R: BufRead + Send + 'a>(self, input: R) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::None => Box::new(input),
            // Parallel compressors write many members behind each other.
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Compression::Xz => Box::new(lzma_rust2::XzReader::new(input, true)),
            Compression::Bzip2 => {
                return Err(io::Error::other("bzip2 is not a compression of layers; unpack it first: bunzip2 FILE"));
            }
        })
    }
}

/// A part of a file, read by offset: many threads may read one file at once.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Section {
    /// `length` bytes of `file` from `offset` on.
    pub(crate) fn new(file: Arc<File>, offset: u64, length: u64) -> Section {
        Section { file, position: offset, end: offset.saturating_add(length) }
    }

    /// All of `file`.
    pub(crate) fn whole(file: Arc<File>) -> io::Result<Section> {
        let length = file.metadata()?.len();
        Ok(Section::new(file, 0, length))
    }

    /// A part of this one, which must lie inside it.
    pub(crate) fn part(&self, offset: u64, length: u64) -> io::Result<Section> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length() => {
                Ok(Section::new(Arc::clone(&self.file), self.position + offset, length))
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Bytes left.
    pub(crate) fn length(&self) -> u64 {
        self.end - self.position
    }

    /// The first bytes, without moving on.
    pub(crate) fn peek(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut start = vec![0; count];
        let mut copy = self.clone();
        let mut have = 0;
        while have < count {
            match copy.read(&mut start[have..])? {
                0 => break,
                more => have += more,
            }
        }
        start.truncate(have);
        Ok(start)
    }

    /// Moves on without reading.
    pub(crate) fn advance(&mut self, count: u64) -> io::Result<()> {
        if count > self.length() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count;
        Ok(())
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.length()).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..want], self.position)?;
        if count == 0 && want > 0 {
            // Shorter than it was said to be: cut off while we read, or a lie in the archive around it.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// A buffered [`Section`] that passes over data by moving its offset.
impl Input for BufReader<Section> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let buffered = self.buffer().len();
        match usize::try_from(count) {
            Ok(small) if small <= buffered => self.consume(small),
            _ => {
                self.consume(buffered);
                self.get_mut().advance(count - buffered as u64)?;
            }
        }
        Ok(())
    }
}

/// What becomes of a layer's bytes besides being unpacked.
#[derive(Debug)]
pub(crate) enum Keep {
    /// Nothing: they are in the store already.
    Nothing,
    /// They are copied as they came.
    Copy(File),
    /// They are packed anew, with zstd: for sources that come in no layer's format.
    Repack(File),
}

/// What was learnt of a layer's bytes while they passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Digest and size of what was kept, or of what was read when nothing was kept.
    pub(crate) blob: Digest,
    /// Size of the same.
    pub(crate) blob_size: u64,
    /// Compression of the same.
    pub(crate) compression: Compression,
    /// Digest of the tar inside.
    pub(crate) diff_id: Digest,
}

/// Runs a layer's bytes past `consume`, which gets the decompressed ones. What it leaves unread is read all the same, so
/// that both digests are of the whole.
pub(crate) fn run<T>(
    source: impl Read + Send,
    keep: Keep,
    meter: &dyn Meter,
    consume: impl FnOnce(&mut Chunks) -> Result<T>,
) -> Result<(T, Seen)> {
    let (copy, repack) = match keep {
        Keep::Nothing => (None, None),
        Keep::Copy(file) => (Some(file), None),
        Keep::Repack(file) => (None, Some(file)),
    };
    let (to_consumer, from_decoder) = sync_channel::<io::Result<Arc<Vec<u8>>>>(DEPTH);
    let (to_hasher, for_hasher) = sync_channel::<Arc<Vec<u8>>>(DEPTH);
    let (give_back, returned) = channel::<Vec<u8>>();
    thread::scope(|scope| {
        let back = give_back.clone();
        let work = move || hash(&for_hasher, &back, repack);
        let hasher = thread::Builder::new().spawn_scoped(scope, work).context("start the hasher's thread")?;
        let outlets = Outlets { to_consumer, to_hasher, returned };
        let work = move || decode(source, copy, meter, outlets);
        let decoder = thread::Builder::new().spawn_scoped(scope, work).context("start the decompressor's thread")?;
        let mut chunks = Chunks { from: from_decoder, back: give_back, now: None, at: 0, ended: false };
        let result = consume(&mut chunks).and_then(|value| chunks.drain().map(|()| value));
        // Closing the channel ends the decoder when the consumer gave up.
        drop(chunks);
        let read = decoder.join().map_err(|_| fault("the decompressor's thread panicked"))?;
        let hashed = hasher.join().map_err(|_| fault("the hasher's thread panicked"))?;
        let value = result?;
        let (compression, raw) = read?;
        let (diff_id, diff_size, repacked) = hashed?;
        let (compression, (blob, blob_size)) = match (repacked, raw) {
            (Some(packed), _) => (Compression::Zstd, packed),
            (None, Some(raw)) => (compression, raw),
            (None, None) => (Compression::None, (diff_id, diff_size)),
        };
        Ok((value, Seen { blob, blob_size, compression, diff_id }))
    })
}

/// Where the decoder's chunks go and where empty buffers come from.
struct Outlets {
    to_consumer: SyncSender<io::Result<Arc<Vec<u8>>>>,
    to_hasher: SyncSender<Arc<Vec<u8>>>,
    returned: Receiver<Vec<u8>>,
}

/// Digest and size of the bytes as they came in; none for a plain tar, where the hasher's is the same.
type Raw = Option<(Digest, u64)>;

/// The decoder thread. Errors of reading and of the compressed data go to the consumer, who knows which member they hit.
fn decode(
    source: impl Read + Send,
    copy: Option<File>,
    meter: &dyn Meter,
    outlets: Outlets,
) -> io::Result<(Compression, Raw)> {
    let mut input = BufReader::with_capacity(CHUNK, Incoming { source, copy, hasher: None, meter });
    let compression = match input.fill_buf() {
        Ok(start) => Compression::detect(start),
        Err(error) => {
            let copy = io::Error::new(error.kind(), error.to_string());
            // A closed channel means the consumer has an error of its own, which is the one to report.
            let _ = outlets.to_consumer.send(Err(error));
            return Err(copy);
        }
    };
    if compression != Compression::None {
        // The first bytes are in the buffer already.
        let mut hasher = Hasher::default();
        hasher.update(input.buffer());
        input.get_mut().hasher = Some(hasher);
    }
    let pumped = compression.decoder(&mut input).and_then(|mut decoder| pump(&mut decoder, &outlets));
    if let Err(error) = pumped {
        let copy = io::Error::new(error.kind(), error.to_string());
        let _ = outlets.to_consumer.send(Err(error));
        return Err(copy);
    }
    drop(outlets);
    // Bytes behind the compressed data belong to the blob and so to its digest.
    io::copy(&mut input, &mut io::sink())?;
    let incoming = input.into_inner();
    Ok((compression, incoming.hasher.map(Hasher::finish)))
}

fn pump(decoder: &mut dyn Read, outlets: &Outlets) -> io::Result<()> {
    loop {
        let mut chunk = outlets.returned.try_recv().unwrap_or_default();
        // A buffer that comes back has its full length already, unless it was the last one.
        chunk.resize(CHUNK, 0);
        let mut have = 0;
        while have < CHUNK {
            match decoder.read(&mut chunk[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if have == 0 {
            return Ok(());
        }
        chunk.truncate(have);
        let chunk = Arc::new(chunk);
        // Either end closes only when it failed; its own error is reported by whoever runs it.
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        outlets.to_hasher.send(Arc::clone(&chunk)).map_err(closed)?;
        outlets.to_consumer.send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
}

/// Digest and size of the tar, and of its repacked form where there is one.
type Hashed = (Digest, u64, Option<(Digest, u64)>);

/// The hash thread.
fn hash(from: &Receiver<Arc<Vec<u8>>>, back: &Sender<Vec<u8>>, repack: Option<File>) -> io::Result<Hashed> {
    let mut hasher = Hasher::default();
    let mut packer = match repack {
        None => None,
        Some(file) => {
            Some(zstd::stream::write::Encoder::new(HashingWriter::new(BufWriter::with_capacity(CHUNK, file)), 3)?)
        }
    };
    for chunk in from {
        hasher.update(&chunk);
        if let Some(packer) = &mut packer {
            packer.write_all(&chunk)?;
        }
        recycle(chunk, back);
    }
    let packed = match packer {
        None => None,
        Some(packer) => {
            let (mut file, digest, size) = packer.finish()?.finish();
            file.flush()?;
            Some((digest, size))
        }
    };
    let (digest, size) = hasher.finish();
    Ok((digest, size, packed))
}

/// Gives a buffer back when this was its last user.
fn recycle(chunk: Arc<Vec<u8>>, back: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(chunk) {
        // The decoder may have ended.
        let _ = back.send(buffer);
    }
}

/// The blob as it comes in: counted, copied and hashed on the way.
struct Incoming<'a, R> {
    source: R,
    copy: Option<File>,
    hasher: Option<Hasher>,
    meter: &'a dyn Meter,
}

impl<R: Read> Read for Incoming<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.cancelled() {
            return Err(io::Error::other("stopped, as another layer failed"));
        }
        let count = self.source.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.meter.advance(count as u64);
        Ok(count)
    }
}

/// The consumer's end: decompressed bytes, without a copy.
#[derive(Debug)]
pub(crate) struct Chunks {
    from: Receiver<io::Result<Arc<Vec<u8>>>>,
    back: Sender<Vec<u8>>,
    now: Option<Arc<Vec<u8>>>,
    at: usize,
    ended: bool,
}

impl Chunks {
    fn drain(&mut self) -> Result<()> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count);
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let here = self.fill_buf()?;
        let count = here.len().min(buffer.len());
        buffer[..count].copy_from_slice(&here[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.now.as_ref().is_none_or(|chunk| self.at == chunk.len()) && !self.ended {
            if let Some(spent) = self.now.take() {
                recycle(spent, &self.back);
            }
            self.at = 0;
            match self.from.recv() {
                Ok(Ok(chunk)) => self.now = Some(chunk),
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(self.now.as_ref().map_or(&[], |chunk| &chunk[self.at..]))
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Input for Chunks {}

#[cfg(test)]
mod tests;
