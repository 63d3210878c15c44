//! PAX extended headers (POSIX pax, "pax Extended Header"): `LENGTH KEY=VALUE NEWLINE` records.

use std::io;

use super::Time;
use super::header::malformed;

/// What a member's extended headers say; what they do not say stays with the header block.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU's three ways to describe a sparse file in PAX records.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The real name: the member's own is a made-up one.
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.x).
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn (0.0: one record each, 0.1: one list).
    pub(super) map: Vec<u64>,
}

/// The most numbers a sparse map in records may have: as many as fit the largest header.
const MAP_LIMIT: usize = 1 << 18;

impl Records {
    /// Takes in the records of one extended header; later ones win.
    pub(super) fn read(&mut self, mut data: &[u8]) -> io::Result<()> {
        // Some writers pad the header's data with NULs.
        while data.first().is_some_and(|byte| *byte != 0) {
            let space = data
                .iter()
                .take(20)
                .position(|byte| *byte == b' ')
                .ok_or_else(|| malformed("a PAX record has no length"))?;
            let length = decimal(&data[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length > space + 2 && *length <= data.len());
            let length = length.ok_or_else(|| malformed("a PAX record lies about its length"))?;
            let record = &data[space + 1..length - 1];
            if data[length - 1] != b'\n' {
                return Err(malformed("a PAX record does not end with a newline"));
            }
            let equals =
                record.iter().position(|byte| *byte == b'=').ok_or_else(|| malformed("a PAX record has no ="))?;
            self.take(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number =
            || decimal(value).ok_or_else(|| malformed(format!("PAX record {} is not a number", super::show(key))));
        // An empty value takes an earlier one (of a global header, say) back.
        let some = !value.is_empty();
        match key {
            b"path" => self.path = some.then(|| name(key, value)).transpose()?,
            b"linkpath" => self.link = some.then(|| name(key, value)).transpose()?,
            b"size" => self.size = some.then(number).transpose()?,
            b"uid" => self.uid = some.then(|| signed(key, value)).transpose()?,
            b"gid" => self.gid = some.then(|| signed(key, value)).transpose()?,
            b"mtime" => self.mtime = some.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(name(key, value)?),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.map_entry(number()?)?,
            b"GNU.sparse.map" => {
                self.sparse.map.clear();
                for part in value.split(|byte| *byte == b',') {
                    self.map_entry(
                        decimal(part).ok_or_else(|| malformed("PAX record GNU.sparse.map is not a list of numbers"))?,
                    )?;
                }
            }
            _ => self.take_xattr(key, value),
        }
        Ok(())
    }

    fn map_entry(&mut self, value: u64) -> io::Result<()> {
        if self.sparse.map.len() >= MAP_LIMIT {
            return Err(malformed("its sparse map is too long"));
        }
        self.sparse.map.push(value);
        Ok(())
    }

    fn take_xattr(&mut self, key: &[u8], value: &[u8]) {
        let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") else {
            return;
        };
        self.xattrs.retain(|(known, _)| known != attribute);
        self.xattrs.push((attribute.to_vec(), value.to_vec()));
    }
}

/// A name: what the kernel could never take is refused here, once.
fn name(key: &[u8], value: &[u8]) -> io::Result<Vec<u8>> {
    if value.contains(&0) {
        return Err(malformed(format!("PAX record {} has a NUL byte in it", super::show(key))));
    }
    Ok(value.to_vec())
}

/// Plain decimal digits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn signed(key: &[u8], value: &[u8]) -> io::Result<i64> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed(format!("PAX record {} is not a number", super::show(key))))
}

/// `SECONDS[.FRACTION]`, to the nanosecond; `-1.5` is half a second before -1.
fn time(value: &[u8]) -> io::Result<Time> {
    let bad = || malformed("PAX record mtime is not a time");
    let (negative, digits) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole =
        decimal(parts.next().unwrap_or_default()).and_then(|whole| i64::try_from(whole).ok()).ok_or_else(bad)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let mut nanoseconds: u32 = 0;
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
    }
    if !negative {
        return Ok(Time { seconds: whole, nanoseconds });
    }
    if nanoseconds == 0 {
        return Ok(Time { seconds: -whole, nanoseconds });
    }
    Ok(Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(data: &[u8]) -> io::Result<Records> {
        let mut records = Records::default();
        records.read(data).map(|()| records)
    }

    #[test]
    fn records_of_every_kind() {
        let read = records(b"12 path=a\nb\n9 size=5\n27 SCHILY.xattr.user.x=\0=\n\n14 mtime=1.25\n").unwrap();
        assert_eq!(read.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(read.size, Some(5));
        assert_eq!(read.xattrs, [(b"user.x".to_vec(), b"\0=\n".to_vec())]);
        assert_eq!(read.mtime, Some(Time { seconds: 1, nanoseconds: 250_000_000 }));
    }

    #[test]
    fn times_before_and_after_1970() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1.000000001", 1, 1),
            ("1.0000000019", 1, 1),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("7.", 7, 0),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), Time { seconds, nanoseconds }, "{text}");
        }
        for bad in ["", "-", "1.x", "x", "99999999999999999999"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn lies_are_found() {
        for bad in [
            &b"path=x\n"[..],
            b"99999999999999999999 path=x\n",
            b"100 path=x\n",
            b"8 path=x\n",
            b"3 \n",
            b"0 \n",
            b"8 pathx\n",
            b"12 path=a\0b\n",
            b"9 size=x\n",
        ] {
            assert!(records(bad).is_err(), "{bad:?}");
        }
    }
}
