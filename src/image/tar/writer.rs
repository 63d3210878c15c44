//! The writer: members to PAX, with records only for what a plain ustar header cannot say.

use std::io::{self, Write};

use super::{BLOCK, Kind, Member, Run, Time};

/// The largest number that eleven octal digits hold: 8 GiB - 1.
const OCTAL_11: u64 = 0o77_777_777_777;
/// The largest number that seven octal digits hold.
const OCTAL_7: u64 = 0o7_777_777;

/// An archive being written.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    output: W,
    /// Bytes of the present member still owed.
    owed: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub(crate) fn new(output: W) -> Writer<W> {
        Writer { output, owed: 0, padding: 0 }
    }

    /// Writes a member's headers. For a file `member.stored` bytes must follow through [`Writer::data`].
    pub(crate) fn member(&mut self, member: &Member) -> io::Result<()> {
        self.close_member()?;
        let map = member.runs.as_deref().map(map_text);
        let stored = member.stored + map.as_ref().map_or(0, |map| map.len() as u64);
        let records = records(member, stored);
        if !records.is_empty() {
            let mut header = Block::new(b"PaxHeader", b'x');
            header.number(124, 12, records.len() as u64);
            self.output.write_all(&header.finish())?;
            self.output.write_all(&records)?;
            self.pad(records.len())?;
        }
        self.output.write_all(&header(member, stored))?;
        if let Some(map) = map {
            self.output.write_all(&map)?;
        }
        self.owed = member.stored;
        // The map is whole blocks, so only the data needs padding.
        self.padding = usize::try_from(stored.next_multiple_of(BLOCK as u64) - stored).map_err(io::Error::other)?;
        Ok(())
    }

    /// Writes some of the present member's data.
    pub(crate) fn data(&mut self, piece: &[u8]) -> io::Result<()> {
        self.owed = self
            .owed
            .checked_sub(piece.len() as u64)
            .ok_or_else(|| io::Error::other("more data than its header says"))?;
        self.output.write_all(piece)
    }

    /// Ends the archive and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.close_member()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn close_member(&mut self) -> io::Result<()> {
        if self.owed != 0 {
            return Err(io::Error::other("less data than its header says"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.output.write_all(&[0; BLOCK][..padding])
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.output.write_all(&[0; BLOCK][..length.next_multiple_of(BLOCK) - length])
    }
}

/// A header block in the making.
struct Block([u8; BLOCK]);

impl Block {
    fn new(name: &[u8], kind: u8) -> Block {
        let mut block = Block([0; BLOCK]);
        block.text(0, 100, name);
        block.number(100, 8, 0o644);
        block.number(108, 8, 0);
        block.number(116, 8, 0);
        block.number(124, 12, 0);
        block.number(136, 12, 0);
        block.0[156] = kind;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block.number(329, 8, 0);
        block.number(337, 8, 0);
        block
    }

    /// Puts a text in; what is too long is cut, and said in full by a record.
    fn text(&mut self, at: usize, length: usize, text: &[u8]) {
        let count = text.len().min(length);
        self.0[at..at + count].copy_from_slice(&text[..count]);
    }

    /// Puts octal digits and a NUL in; what is too large becomes 0, and is said in full by a record.
    fn number(&mut self, at: usize, length: usize, value: u64) {
        let digits = length - 1;
        let text = format!("{value:0digits$o}");
        let text = if text.len() > digits { "0".repeat(digits) } else { text };
        self.text(at, digits, text.as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.text(148, 7, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

fn header(member: &Member, stored: u64) -> [u8; BLOCK] {
    let kind = match member.kind {
        Kind::File => b'0',
        Kind::Hardlink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let mut block = Block::new(&member.path, kind);
    block.number(100, 8, u64::from(member.mode));
    block.number(108, 8, u64::from(member.uid));
    block.number(116, 8, u64::from(member.gid));
    block.number(124, 12, stored);
    block.number(136, 12, u64::try_from(member.mtime.seconds).unwrap_or(0));
    block.text(157, 100, &member.link);
    block.number(329, 8, u64::from(member.device.0));
    block.number(337, 8, u64::from(member.device.1));
    block.finish()
}

fn records(member: &Member, stored: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if member.runs.is_some() {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", &member.path);
        record(&mut records, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
    }
    // A trailing slash at the cut would make a file a directory for readers of old headers, so cutting needs a record.
    if member.path.len() > 100 || !member.path.is_ascii() {
        record(&mut records, b"path", &member.path);
    }
    if member.link.len() > 100 || !member.link.is_ascii() {
        record(&mut records, b"linkpath", &member.link);
    }
    if stored > OCTAL_11 {
        record(&mut records, b"size", stored.to_string().as_bytes());
    }
    for (key, value) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
        if u64::from(value) > OCTAL_7 {
            record(&mut records, key, value.to_string().as_bytes());
        }
    }
    let Time { seconds, nanoseconds } = member.mtime;
    if nanoseconds != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > OCTAL_11) {
        record(&mut records, b"mtime", time_text(member.mtime).as_bytes());
    }
    for (name, value) in &member.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `LENGTH KEY=VALUE NEWLINE`, the length counting its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

fn time_text(time: Time) -> String {
    if time.nanoseconds == 0 {
        return time.seconds.to_string();
    }
    if time.seconds >= 0 {
        return format!("{}.{:09}", time.seconds, time.nanoseconds);
    }
    // Nanoseconds count forward, the text counts from zero: -2 s + 0.5 s is -1.5.
    format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - time.nanoseconds)
}

/// The map of a sparse file as PAX 1.0 puts it in front of the data: whole blocks.
fn map_text(runs: &[Run]) -> Vec<u8> {
    let mut text = format!("{}\n", runs.len());
    for run in runs {
        text.push_str(&format!("{}\n{}\n", run.offset, run.length));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::*;

    fn member(path: &[u8], kind: Kind) -> Member {
        let (uid, gid) = (u32::MAX, 3_000_000);
        let mtime = Time { seconds: -2, nanoseconds: 500_000_000 };
        Member { mode: 0o4755, uid, gid, mtime, ..Member::new(path, kind) }
    }

    /// What is written is read back the same.
    #[test]
    fn round_trip() {
        let mut file = member(&[&b"d/"[..], &b"\xff long\n".repeat(40)].concat(), Kind::File);
        (file.size, file.stored) = (5, 5);
        file.xattrs = vec![(b"user.x".to_vec(), b"\0\n=".to_vec())];
        let mut sparse = member(b"sparse", Kind::File);
        sparse.runs = Some(vec![
            Run { offset: 4096, length: 3 },
            Run { offset: 1 << 40, length: 2 },
            Run { offset: 1 << 41, length: 0 },
        ]);
        (sparse.size, sparse.stored) = (1 << 41, 5);
        let mut link = member(b"link", Kind::Symlink);
        link.link = b"x/".repeat(200);
        let mut device = member(b"null", Kind::Character);
        device.device = (1, 3);
        let mut writer = Writer::new(Vec::new());
        for (member, data) in [(&file, &b"hello"[..]), (&sparse, b"abcde"), (&link, b""), (&device, b"")] {
            writer.member(member).unwrap();
            writer.data(data).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut archive = Archive::new(bytes.as_slice());
        let mut pieces = Vec::new();
        for expected in [&file, &sparse, &link, &device] {
            let read = archive.next().unwrap().unwrap();
            assert_eq!(format!("{read:?}"), format!("{expected:?}"));
            archive
                .data(|offset, piece| {
                    pieces.push((offset, piece.to_vec()));
                    Ok(())
                })
                .unwrap();
        }
        assert!(archive.next().unwrap().is_none());
        assert_eq!(pieces, [(0, b"hello".to_vec()), (4096, b"abc".to_vec()), (1 << 40, b"de".to_vec())]);
    }

    #[test]
    fn data_must_be_what_the_header_says() {
        let mut file = member(b"f", Kind::File);
        (file.size, file.stored) = (3, 3);
        let mut writer = Writer::new(Vec::new());
        writer.member(&file).unwrap();
        assert!(writer.data(b"four").is_err());
        writer.member(&file).unwrap_err();
    }

    #[test]
    fn times_as_text() {
        for (seconds, nanoseconds, text) in [
            (1, 0, "1"),
            (1, 5, "1.000000005"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 1, "-0.999999999"),
            (-3, 0, "-3"),
        ] {
            assert_eq!(time_text(Time { seconds, nanoseconds }), text);
        }
    }
}
