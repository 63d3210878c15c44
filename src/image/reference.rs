//! Image names as people type them, and the one full form that each stands for.
//!
//! The grammar is that of the distribution project's `reference` package, as Docker users know it:
//! `mysql` is `docker.io/library/mysql:latest`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::error::{Result, fault};

/// The registry that a name without one belongs to.
pub(crate) const DEFAULT_HOST: &str = "docker.io";

/// A full image name: registry, repository, and a tag or a manifest digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Reference {
    host: String,
    path: String,
    version: Version,
}

/// What of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Version {
    /// A name that may move to another image.
    Tag(String),
    /// The digest of one manifest.
    Digest(Digest),
}

impl Reference {
    /// The registry, with its port where it has one: `docker.io`, `localhost:5000`.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The repository inside the registry: `library/mysql`.
    pub(crate) fn repository(&self) -> &str {
        &self.path
    }

    /// Tag or digest.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// The file under the store's `references/` that holds this name. It cannot leave that directory: no part of a
    /// valid name starts with a dot, and only the last one has a tag or digest.
    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// The short form that Docker shows: `mysql:5.7` for `docker.io/library/mysql:5.7`. The long one where the short one would be read
    /// as another name, as with a path on docker.io that begins like a host.
    pub(crate) fn familiar(&self) -> String {
        let full = self.to_string();
        let rest = full.strip_prefix("docker.io/").unwrap_or(&full);
        let short = rest.strip_prefix("library/").unwrap_or(rest);
        if short.parse::<Reference>().is_ok_and(|read| read == *self) { short.to_owned() } else { full }
    }

    /// The familiar name without tag or digest, as the key that Docker's repositories.json has.
    pub(crate) fn familiar_repository(&self) -> String {
        if self.host != DEFAULT_HOST {
            return format!("{}/{}", self.host, self.path);
        }
        self.path.strip_prefix("library/").unwrap_or(&self.path).to_string()
    }

    /// A valid name made from a file name: `Debian Root.tar.gz` gives `debian-root:latest`.
    pub(crate) fn from_file_name(name: &str) -> Reference {
        let mut stem = name.to_lowercase();
        for suffix in [".gz", ".xz", ".zst", ".tgz", ".txz", ".tzst", ".tar", ".oci", ".docker"] {
            if let Some(shorter) = stem.strip_suffix(suffix) {
                stem = shorter.to_string();
            }
        }
        let mut path = String::new();
        for part in stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
            if !path.is_empty() {
                path.push('-');
            }
            path.push_str(part);
        }
        if path.is_empty() {
            path.push_str("image");
        }
        let path: String = path.chars().take(128).collect();
        let path = format!("library/{}", path.trim_end_matches('-'));
        Reference { host: DEFAULT_HOST.into(), path, version: Version::Tag("latest".into()) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.path),
        }
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Reference> {
        let bad = |why: &str| {
            fault(format!("image name {text:?}: {why}"))
                .hint("a name looks like mysql:5.7, ghcr.io/owner/name:tag or name@sha256:…")
        };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(name);
        let (host, path) = split_host(name);
        if !host_is_valid(&host) {
            return Err(bad("the registry in it is no host name").into());
        }
        if path.is_empty() || path.len() > 255 || !path.split('/').all(component_is_valid) {
            return Err(bad("lower-case letters, digits and single . _ - between them, in parts divided by /").into());
        }
        if tag.is_some_and(|tag| !tag_is_valid(tag)) {
            return Err(bad(
                "a tag has up to 128 letters, digits, dots, dashes and underscores, not starting with . or -",
            )
            .into());
        }
        // Where both are given the digest says all, and the tag may have moved since.
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_string()),
        };
        let reference = Reference { host, path, version };
        if reference.file().iter().any(|part| part.len() > 255) {
            return Err(bad("the part after the last /, with the tag, has more than 255 letters").into());
        }
        Ok(reference)
    }
}

impl TryFrom<String> for Reference {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Reference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

/// Splits a tag off; the colon of `localhost:5000/name` is a port's.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((front, tag)) if !tag.contains('/') => (front, Some(tag)),
        _ => (name, None),
    }
}

/// The first part is a registry when it has a dot, a port or is `localhost`; else Docker's own is meant.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    if host == DEFAULT_HOST && !path.contains('/') {
        return (host.to_string(), format!("library/{path}"));
    }
    (host.to_string(), path.to_string())
}

fn host_is_valid(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return false;
    }
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// `alpha-numeric *( separator alpha-numeric )`, the separator being `.`, `_`, `__` or any number of `-`.
fn component_is_valid(component: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !lower(*first) || !lower(*last) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn tag_is_valid(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128 && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_full_forms() {
        let hex = "a".repeat(64);
        for (typed, full, shown) in [
            ("mysql", "docker.io/library/mysql:latest", "mysql:latest"),
            ("ctg/mysql:5.7.29", "docker.io/ctg/mysql:5.7.29", "ctg/mysql:5.7.29"),
            ("index.docker.io/library/top:1", "docker.io/library/top:1", "top:1"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/a/b__c:V1", "localhost:5000/a/b__c:V1", "localhost:5000/a/b__c:V1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("ghcr.io/o/n", "ghcr.io/o/n:latest", "ghcr.io/o/n:latest"),
        ] {
            let reference: Reference = typed.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.familiar().as_str()), (full, shown));
        }
        let pinned: Reference = format!("mysql:5@sha256:{hex}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/mysql@sha256:{hex}"));
    }

    #[test]
    fn names_that_are_none() {
        for bad in [
            "",
            ":1",
            "A",
            "a//b",
            "../x",
            "a/../b",
            "x:",
            "x:-y",
            "x:.y",
            "a/.b",
            "-a.b/c",
            "host:99999/x",
            "a_-b",
            "x@sha256:12",
            "x@md5:00",
            "a b",
            "/x",
            "x/",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_file_name_becomes_a_name() {
        for (file, name) in [
            ("Debian Root.tar.gz", "debian-root:latest"),
            ("..", "image:latest"),
            ("x.tzst", "x:latest"),
            ("bookworm_12.5.tar", "bookworm-12-5:latest"),
        ] {
            let made = Reference::from_file_name(file);
            assert_eq!(made.familiar(), name);
            assert_eq!(made.to_string().parse::<Reference>().unwrap(), made);
        }
    }
}
