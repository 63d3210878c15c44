//! One 512-byte header block, field by field.

use std::io;

use super::{BLOCK, Run, Time};

/// Which of the historical layouts a block has beyond the first 257 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Nothing there.
    V7,
    /// POSIX 1003.1-1988: a name prefix of 155 bytes.
    Ustar,
    /// Schilling's: a prefix of 131 bytes, then times.
    Star,
    /// GNU's: times and a sparse map, no prefix.
    Gnu,
}

/// A header block with a right checksum.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    /// Its layout.
    pub(super) layout: Layout,
}

/// An error about the bytes of an archive.
pub(super) fn malformed(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<'a> Header<'a> {
    /// Checks the checksum and finds the layout.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> io::Result<Header<'a>> {
        let said = octal(&block[148..156]).ok_or_else(|| malformed("not a tar header (its checksum is no number)"))?;
        let mut unsigned: i64 = 0;
        // Some old systems summed signed bytes; readers accept both (POSIX pax, "Rationale").
        let mut signed: i64 = 0;
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if i64::try_from(said).ok().is_none_or(|said| said != unsigned && said != signed) {
            return Err(malformed("not a tar header (its checksum is wrong)"));
        }
        let layout = match &block[257..265] {
            b"ustar  \0" => Layout::Gnu,
            magic if magic.starts_with(b"ustar") && &block[508..512] == b"tar\0" => Layout::Star,
            magic if magic.starts_with(b"ustar") => Layout::Ustar,
            _ => Layout::V7,
        };
        Ok(Header { block, layout })
    }

    /// The type letter.
    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// The name, with its prefix where the layout has one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.layout {
            Layout::Ustar => text(&self.block[345..500]),
            Layout::Star => text(&self.block[345..476]),
            Layout::V7 | Layout::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// The link target.
    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    /// Permission bits.
    pub(super) fn mode(&self) -> io::Result<u32> {
        // The high bits repeat the file type in some archives; the type letter decides that.
        let mode = number(&self.block[100..108], "mode")? & 0o7777;
        u32::try_from(mode).map_err(|_| malformed("mode out of range"))
    }

    /// Owner.
    pub(super) fn uid(&self) -> io::Result<u32> {
        id(number(&self.block[108..116], "owner")?, "owner")
    }

    /// Group.
    pub(super) fn gid(&self) -> io::Result<u32> {
        id(number(&self.block[116..124], "group")?, "group")
    }

    /// How many bytes of data follow.
    pub(super) fn size(&self) -> io::Result<u64> {
        u64::try_from(number(&self.block[124..136], "size")?).map_err(|_| malformed("its size is negative"))
    }

    /// Time of last change, in whole seconds.
    pub(super) fn mtime(&self) -> io::Result<Time> {
        Ok(Time { seconds: number(&self.block[136..148], "time")?, nanoseconds: 0 })
    }

    /// Device numbers.
    pub(super) fn device(&self) -> io::Result<(u32, u32)> {
        if self.layout == Layout::V7 {
            return Ok((0, 0));
        }
        let part = |field: &[u8]| id(number(field, "device number")?, "device number");
        Ok((part(&self.block[329..337])?, part(&self.block[337..345])?))
    }

    /// An old GNU sparse file: its real size, the first four runs, and whether a block with more follows.
    pub(super) fn gnu_sparse(&self) -> io::Result<(u64, Vec<Run>, bool)> {
        let real = u64::try_from(number(&self.block[483..495], "real size")?)
            .map_err(|_| malformed("its real size is negative"))?;
        Ok((real, gnu_runs(&self.block[386..482])?, self.block[482] != 0))
    }
}

/// The runs of a GNU sparse map: pairs of 12-byte numbers, ended by an empty one.
pub(super) fn gnu_runs(field: &[u8]) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let part = |field: &[u8]| {
            u64::try_from(number(field, "sparse map")?).map_err(|_| malformed("its sparse map is negative"))
        };
        runs.push(Run { offset: part(&pair[..12])?, length: part(&pair[12..])? });
    }
    Ok(runs)
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An id or device number: 32 bits.
pub(super) fn id(value: i64, what: &str) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| malformed(format!("{what} {value} is out of range")))
}

/// A number: octal digits between blanks and NULs, or, with the top bit set, big-endian two's complement (GNU).
fn number(field: &[u8], what: &str) -> io::Result<i64> {
    let bad = || malformed(format!("its {what} is not a number"));
    if field[0] & 0x80 == 0 {
        let value = octal(field).ok_or_else(bad)?;
        return i64::try_from(value).map_err(|_| bad());
    }
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value: i64 = i64::from(first.cast_signed());
    for byte in &field[1..] {
        value = value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*byte))).ok_or_else(bad)?;
    }
    Ok(value)
}

/// Octal digits with blanks before and blanks or NULs behind; nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let padding = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let end = field[start..].iter().position(padding).map_or(field.len(), |length| start + length);
    if !field[end..].iter().all(padding) {
        return None;
    }
    field[start..end].iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_notation() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644     ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\0\0\x07", Some(7)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"12 4    ", None),
            (b"8       ", None),
            (b"-1      ", None),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field, "x").ok(), value, "{field:?}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_no_header() {
        let mut block = [0u8; BLOCK];
        block[0] = b'a';
        block[148..156].copy_from_slice(b"000541\0 ");
        assert!(Header::parse(&block).is_ok());
        block[1] = b'b';
        assert!(Header::parse(&block).is_err());
    }
}
