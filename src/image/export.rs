//! An image on its way out: an OCI layout in a directory, or one tar that is an OCI layout and a docker archive at once
//! (what `docker save` writes since version 25), so that `docker load`, `podman load` and skopeo all take it. Blobs are
//! what came in, byte for byte, and are hashed once more on the way.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::digest::{Digest, HashingWriter};
use super::manifest::{CONTAINERD_NAME, Descriptor, Index, Manifest, OCI_INDEX, REF_NAME};
use super::progress::Progress;
use super::reference::{Reference, Version};
use super::store::{Store, Target};
use super::tar::{Kind, Member, Writer};
use crate::error::{Result, fault};

/// What `oci-layout` holds (OCI image spec, image-layout.md).
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image to export.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// The name it is to have there.
    pub(crate) name: Option<Reference>,
    /// The image and the manifest it came with.
    pub(crate) target: Target,
}

/// Writes images into a new directory as an OCI layout.
pub(crate) fn to_directory(store: &Store, images: &[Export], directory: &Path, progress: &dyn Progress) -> Result<()> {
    let named = |error: io::Error| fault(format!("{}: {error}", directory.display()));
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(fault(format!("{}: is not empty", directory.display())).hint("name a new directory").into());
    }
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(named)?;
    for digest in blobs_of(store, images)? {
        let mut file = File::create(blobs.join(digest.hex())).map_err(named)?;
        copy(store, &digest, &mut file, progress)?;
    }
    fs::write(directory.join("oci-layout"), LAYOUT).map_err(named)?;
    fs::write(directory.join("index.json"), index(store, images)?).map_err(named)?;
    Ok(())
}

/// Writes images into one tar.
pub(crate) fn to_archive(store: &Store, images: &[Export], output: impl Write, progress: &dyn Progress) -> Result<()> {
    let mut archive = Writer::new(output);
    for directory in ["blobs/", "blobs/sha256/"] {
        archive.member(&member(directory, Kind::Directory, 0))?;
    }
    for digest in blobs_of(store, images)? {
        let size = store.blob(&digest)?.length();
        archive.member(&member(&digest.blob_name(), Kind::File, size))?;
        copy(store, &digest, &mut Data(&mut archive), progress)?;
    }
    for (name, bytes) in [
        ("index.json", index(store, images)?),
        ("manifest.json", docker_manifest(store, images)?),
        ("oci-layout", LAYOUT.to_vec()),
    ] {
        archive.member(&member(name, Kind::File, bytes.len() as u64))?;
        archive.data(&bytes)?;
    }
    archive.finish()?;
    Ok(())
}

/// The data of the present member, as something to write to.
struct Data<'a, W>(&'a mut Writer<W>);

impl<W: Write> Write for Data<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.data(buffer).map(|()| buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that the images need, each once, in an order that does not change.
fn blobs_of(store: &Store, images: &[Export]) -> Result<Vec<Digest>> {
    let mut blobs = Vec::new();
    let mut add = |digest: Digest| {
        if !blobs.contains(&digest) {
            blobs.push(digest);
        }
    };
    for image in images {
        let manifest = store.manifest(&image.target.manifest)?;
        add(image.target.manifest);
        add(manifest.config.digest);
        manifest.layers.iter().for_each(|layer| add(layer.digest));
    }
    Ok(blobs)
}

fn copy(store: &Store, digest: &Digest, output: &mut impl Write, progress: &dyn Progress) -> Result<()> {
    let mut source = store.blob(digest)?;
    let meter = progress.begin(&digest.short(), "write", source.length());
    let mut output = HashingWriter::new(output);
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        let count = source.read(&mut buffer).map_err(|error| fault(format!("blob {digest}: {error}")))?;
        if count == 0 {
            break;
        }
        output.write_all(&buffer[..count]).map_err(|error| fault(format!("cannot write: {error}")))?;
        meter.advance(count as u64);
    }
    let (_, found, _) = output.finish();
    if found != *digest {
        return Err(fault(format!("blob {digest}: its contents have changed")).hint("sandbox image verify").into());
    }
    meter.done("written");
    Ok(())
}

fn index(store: &Store, images: &[Export]) -> Result<Vec<u8>> {
    let mut manifests = Vec::new();
    for image in images {
        let bytes = store.document(&image.target.manifest)?;
        let manifest = Manifest::parse(&bytes, "manifest")?;
        let annotations = image.name.as_ref().map(|name| {
            let version = match name.version() {
                Version::Tag(tag) => tag.clone(),
                Version::Digest(digest) => digest.to_string(),
            };
            [(CONTAINERD_NAME.to_string(), name.to_string()), (REF_NAME.to_string(), version)].into()
        });
        let platform = Some(store.config(&image.target.image)?.platform())
            .filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty());
        manifests.push(Descriptor {
            media_type: manifest.kind().to_string(),
            digest: image.target.manifest,
            size: bytes.len() as u64,
            platform,
            annotations,
            urls: None,
        });
    }
    Ok(serde_json::to_vec(&Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests })?)
}

/// The list that docker archives begin with, pointing to the same blobs. Names are full ones: podman would take `web:1` for
/// one of `localhost`.
fn docker_manifest(store: &Store, images: &[Export]) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for image in images {
        let manifest = store.manifest(&image.target.manifest)?;
        let tags: Vec<String> = image
            .name
            .iter()
            .filter(|name| matches!(name.version(), Version::Tag(_)))
            .map(Reference::to_string)
            .collect();
        let layers: Vec<String> = manifest.layers.iter().map(|layer| layer.digest.blob_name()).collect();
        entries.push(
            serde_json::json!({ "Config": manifest.config.digest.blob_name(), "RepoTags": tags, "Layers": layers }),
        );
    }
    Ok(serde_json::to_vec(&entries)?)
}

/// A member whose metadata says nothing, so that the same image gives the same archive.
fn member(path: &str, kind: Kind, size: u64) -> Member {
    Member { size, stored: size, ..Member::new(path.as_bytes(), kind) }
}
