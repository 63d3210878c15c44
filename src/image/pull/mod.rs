//! `image pull`: from a registry into the store, by the OCI distribution API (distribution-spec, "Pulling").

mod address;
mod auth;
mod registry;
mod said;
mod tls;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use super::digest::{Digest, Hasher};
use super::ingest::{self, Arrived, Bytes, Config, Fetch, Image, Layer};
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Index, Manifest, OCI_INDEX, OCI_MANIFEST, Platform};
use super::progress::{Meter, Progress};
use super::reference::{Reference, Version};
use super::store::{Store, Writer};
use crate::error::{Result, fault};

pub(crate) use auth::Credentials;
use registry::{Failure, Registry, Reply};

/// Layers that are fetched at once.
const LAYERS_AT_ONCE: usize = 4;
/// How deep indexes may lie in indexes.
const NESTING: usize = 4;
/// How often a download may fail in a row without bringing a byte.
const ATTEMPTS: u32 = 6;

/// Pulls `name`, the variant for `platform`, and gives it that name in the store.
pub(crate) fn pull(
    store: &Store,
    name: &Reference,
    platform: &Platform,
    creds: Option<Credentials>,
    progress: &dyn Progress,
) -> Result<Arrived> {
    let registry = Registry::new(name, creds)?;
    pull_from(&registry, store, name, platform, progress)
}

fn pull_from(
    registry: &Registry,
    store: &Store,
    name: &Reference,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Arrived> {
    let what = name.familiar();
    let (bytes, manifest) = find_manifest(registry, name, platform)?;
    let writer = store.writer()?;
    let config = match store.document(&manifest.config.digest) {
        Ok(bytes) => bytes,
        Err(_) => {
            document(registry, &format!("blobs/{}", manifest.config.digest), &[], Some(&manifest.config.digest))?.0
        }
    };
    let layers = manifest
        .layers
        .iter()
        .map(|layer| Layer { bytes: Bytes::Remote(fetch(registry, layer), layer.size), blob: Some(layer.digest) })
        .collect();
    let image = Image { what, config: Config::Given(config), manifest: Some(bytes), layers, names: vec![name.clone()] };
    ingest::ingest(&writer, &image, LAYERS_AT_ONCE, progress)
}

/// Follows a name through indexes to one image's manifest.
fn find_manifest(registry: &Registry, name: &Reference, platform: &Platform) -> Result<(Vec<u8>, Manifest)> {
    let what = name.familiar();
    let mut digest = match name.version() {
        Version::Tag(_) => None,
        Version::Digest(digest) => Some(*digest),
    };
    for _ in 0..NESTING {
        let version = match (&digest, name.version()) {
            (Some(digest), _) => digest.to_string(),
            (None, Version::Tag(tag)) => tag.clone(),
            (None, Version::Digest(digest)) => digest.to_string(),
        };
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        let (bytes, media_type) = document(registry, &format!("manifests/{version}"), &accept, digest.as_ref())?;
        match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => digest = Some(Index::parse(&bytes, &what)?.pick(platform, &what)?.digest),
            OCI_MANIFEST | DOCKER_MANIFEST => {
                return Manifest::parse(&bytes, &what).map(|manifest| (bytes, manifest));
            }
            other => {
                return Err(fault(format!(
                    "{what}: the registry has it as {other:?} only, which is no image of layers"
                ))
                .hint("manifests of Docker's first schema are no longer supported: push it again with a newer docker")
                .into());
            }
        }
    }
    Err(fault(format!("{what}: its indexes are nested more than {NESTING} deep")).into())
}

/// A manifest or config with its media type, checked against its digest where one is known.
fn document(registry: &Registry, path: &str, accept: &[&str], digest: Option<&Digest>) -> Result<(Vec<u8>, String)> {
    registry.retry(|| {
        let reply = registry.get(path, accept, None)?;
        let announced = reply.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let media_type =
            reply.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim().to_string();
        let bytes = reply.bytes()?;
        let found = Digest::of(&bytes);
        for expected in digest.copied().into_iter().chain(announced.filter(|_| !accept.is_empty())) {
            if found != expected {
                return Err(Failure::Final(
                    fault(format!("{}/{path}: its bytes have the digest {found}, not {expected}", registry.name()))
                        .into(),
                ));
            }
        }
        // The document's own word counts where it has one: some registries announce everything as plain JSON.
        let own = serde_json::from_slice::<Announced>(&bytes).ok().and_then(|document| document.media_type);
        Ok((bytes, own.unwrap_or(media_type)))
    })
}

#[derive(serde::Deserialize)]
struct Announced {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
}

/// What brings one layer into the store.
fn fetch<'a>(registry: &'a Registry, layer: &Descriptor) -> Fetch<'a> {
    let (digest, size) = (layer.digest, layer.size);
    Box::new(move |writer, meter| download(registry, writer, &digest, size, meter))
}

/// Downloads a blob, going on where an earlier download stopped, and commits it when its digest is right.
fn download(registry: &Registry, writer: &Writer, digest: &Digest, size: u64, meter: &dyn Meter) -> Result<()> {
    let path = writer.partial_path(digest);
    let Some(mut partial) = Partial::open(&path, || writer.store().has_blob(digest))? else {
        return Ok(());
    };
    partial.load(size, meter)?;
    let mut failures = 0;
    while partial.have < size {
        let before = partial.have;
        let step = partial.more(registry, digest, size, meter);
        if meter.cancelled() {
            return Err(fault("stopped, as another layer failed").into());
        }
        match step {
            Ok(()) => {}
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Again(error, wait)) => {
                failures = if partial.have > before { 0 } else { failures + 1 };
                if failures >= ATTEMPTS {
                    return Err(error);
                }
                log::info!("blob {digest}: {error:#}; going on at byte {}", partial.have);
                std::thread::sleep(wait.unwrap_or_else(|| registry.pause(failures)));
            }
        }
    }
    let (found, _) = std::mem::take(&mut partial.hasher).finish();
    if found != *digest {
        // Nothing of it is worth keeping.
        std::fs::remove_file(&path)?;
        return Err(fault(format!("blob {digest}: {} sent bytes with the digest {found}", registry.name())).into());
    }
    writer.commit_partial(digest)
}

/// The file of a download.
#[derive(Debug)]
struct Partial {
    file: File,
    have: u64,
    hasher: Hasher,
}

impl Partial {
    /// Opens and locks it: two pulls of one blob take turns, and the second finds the work done (`None`).
    fn open(path: &Path, done: impl Fn() -> bool) -> Result<Option<Partial>> {
        let named = |error: std::io::Error| fault(format!("{}: {error}", path.display()));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(named)?;
            file.lock().map_err(named)?;
            // While we waited, it may have been moved away and another one made.
            let same =
                std::fs::metadata(path).is_ok_and(|stat| file.metadata().is_ok_and(|own| own.ino() == stat.ino()));
            if done() {
                // Made by this very call, perhaps.
                if same {
                    std::fs::remove_file(path).map_err(named)?;
                }
                return Ok(None);
            }
            if same {
                return Ok(Some(Partial { file, have: 0, hasher: Hasher::default() }));
            }
        }
    }

    /// Takes in what is there already.
    fn load(&mut self, size: u64, meter: &dyn Meter) -> Result<()> {
        if self.file.metadata()?.len() > size {
            self.restart()?;
        }
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            self.hasher.update(&buffer[..count]);
            self.have += count as u64;
            meter.advance(count as u64);
        }
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.have, self.hasher) = (0, Hasher::default());
        Ok(())
    }

    /// One request for what is missing.
    fn more(
        &mut self,
        registry: &Registry,
        digest: &Digest,
        size: u64,
        meter: &dyn Meter,
    ) -> std::result::Result<(), Failure> {
        let local =
            |error: std::io::Error| Failure::Final(fault(format!("blob {digest}: cannot write: {error}")).into());
        let mut reply = registry.get(&format!("blobs/{digest}"), &[], Some(self.have).filter(|have| *have > 0))?;
        if self.have > 0 && !starts_at(&reply, self.have) {
            // It does not know ranges, or not this one.
            self.restart().map_err(local)?;
        }
        let mut buffer = vec![0u8; 256 << 10];
        while self.have < size && !meter.cancelled() {
            let count = match reply.read(&mut buffer) {
                Ok(0) => {
                    return Err(Failure::Again(
                        fault(format!("blob {digest}: {} ended it at byte {} of {size}", registry.name(), self.have))
                            .into(),
                        None,
                    ));
                }
                Ok(count) => count,
                Err(error) => {
                    return Err(Failure::Again(
                        fault(format!("blob {digest}: {}: {error}", registry.name())).into(),
                        None,
                    ));
                }
            };
            if count as u64 > size - self.have {
                return Err(Failure::Final(
                    fault(format!(
                        "blob {digest}: {} sends more than the {size} bytes of its manifest",
                        registry.name()
                    ))
                    .into(),
                ));
            }
            self.file.write_all(&buffer[..count]).map_err(local)?;
            self.hasher.update(&buffer[..count]);
            self.have += count as u64;
            meter.advance(count as u64);
        }
        Ok(())
    }
}

/// Whether a reply is the part of the blob from `have` on.
fn starts_at(reply: &Reply, have: u64) -> bool {
    reply.status() == 206
        && reply.header("content-range").is_some_and(|range| {
            range.strip_prefix("bytes ").is_some_and(|range| range.split('-').next() == Some(&have.to_string()))
        })
}

/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
