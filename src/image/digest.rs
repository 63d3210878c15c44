//! Content digests and the chain IDs made from them.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Result, fault};

/// A sha256 digest, written `sha256:` and 64 lower-case hex digits (OCI image spec, descriptor.md, "Digests").
///
/// Other algorithms are refused: all that a store holds is checked with one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits, as file names in the store have them.
    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first twelve hex digits: what tables and progress lines show.
    pub(crate) fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }

    /// Where a blob is in an OCI layout (OCI image spec, image-layout.md), and in the store.
    pub(crate) fn blob_name(&self) -> String {
        format!("blobs/sha256/{}", self.hex())
    }

    /// Reads 64 hex digits, a file name of the store.
    pub(crate) fn from_hex(hex: &str) -> Option<Digest> {
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(bytes))
    }
}

/// The one of `ids` that begins with the four or more hex digits `typed`; `None` when there is none, or these are no digits. `what`
/// is what errors call it.
///
/// # Errors
/// When it may be one of several.
pub(crate) fn by_prefix(what: &str, typed: &str, ids: impl FnOnce() -> Result<Vec<Digest>>) -> Result<Option<Digest>> {
    let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
    if hex.len() < 4 || hex.len() > 64 || !hex.bytes().all(|digit| nibble(digit).is_some()) {
        return Ok(None);
    }
    let mut matching: Vec<Digest> = ids()?.into_iter().filter(|id| id.hex().starts_with(hex)).collect();
    matching.sort();
    match matching.as_slice() {
        [] => Ok(None),
        [id] => Ok(Some(*id)),
        [one, other, ..] => Err(fault(format!("image {what}: stands for {} and {}", one.short(), other.short()))
            .hint("give more digits")
            .into()),
    }
}

/// The value of one lower-case hex digit. Upper case is not a digest: two names for one blob would follow.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Digest> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(fault(format!("digest {text:?}: not of the form sha256:HEX")).into());
        };
        if algorithm != "sha256" {
            return Err(fault(format!("digest {text:?}: only sha256 digests are accepted")).into());
        }
        match Digest::from_hex(hex) {
            Some(digest) => Ok(digest),
            None => Err(fault(format!("digest {text:?}: sha256 needs 64 lower-case hex digits")).into()),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Digest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// The chain IDs of a stack of layers, lowest first (OCI image spec, config.md, "Layer ChainID"):
/// the lowest layer's is its diff ID; each other one is the digest of `CHAIN-BELOW SPACE DIFF-ID`.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let id = match chain.last() {
            None => *diff,
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

/// A running sha256 that also counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher {
    state: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Takes in more bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The digest of all that came in, and how many bytes that was.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.state.finalize().into()), self.bytes)
    }
}

/// A writer that hashes what passes through it.
#[derive(Debug)]
pub(crate) struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner`.
    pub(crate) fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, hasher: Hasher::default() }
    }

    /// Gives back the writer with the digest and the number of bytes written.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        let (digest, bytes) = self.hasher.finish();
        (self.inner, digest, bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        text.parse().unwrap()
    }

    /// The two diff IDs and the result as the seed's own `echo -n … | sha256sum` shows them.
    #[test]
    fn chain_id_of_the_seed() {
        let layers = [
            digest("sha256:f2cb0ecef392f2a630fa1205b874ab2e2aedf96de04d0b8838e4e728e28142da"),
            digest("sha256:a9f6b7c7101b86ffaa53dc29638e577dabf5b24150577a59199d8554d7ce2921"),
        ];
        let chain = chain_ids(&layers);
        assert_eq!(chain[0], layers[0]);
        assert_eq!(chain[1].hex(), "bbb9cccab59a16cb6da78f8879e9d07a19e3a8d49010ab9c98a2c348fa116c87");
    }

    #[test]
    fn only_canonical_sha256_is_a_digest() {
        let hex = "f2cb0ecef392f2a630fa1205b874ab2e2aedf96de04d0b8838e4e728e28142da";
        assert_eq!(digest(&format!("sha256:{hex}")).to_string(), format!("sha256:{hex}"));
        for bad in [
            hex.to_string(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[1..]),
            format!("sha512:{hex}{hex}"),
            format!("sha256:{hex}/.."),
        ] {
            let error = bad.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(&bad), "{error}");
        }
    }

    #[test]
    fn hashing_writer_counts_and_hashes() {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"abc").unwrap();
        let (bytes, digest, count) = writer.finish();
        assert_eq!((bytes.as_slice(), count), (&b"abc"[..], 3));
        assert_eq!(digest, Digest::of(b"abc"));
    }
}
