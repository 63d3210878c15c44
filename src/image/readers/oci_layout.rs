//! An OCI layout: `index.json` names manifests, and everything is a blob.

use super::super::digest::Digest;
use super::super::ingest::{Bytes, Config, Image, Layer};
use super::super::manifest::{CONTAINERD_NAME, Descriptor, Index, Manifest, Platform, REF_NAME};
use super::super::reference::Reference;
use super::files::Files;
use crate::error::{Result, fault};

/// How deep indexes may lie in indexes.
const NESTING: usize = 4;

/// The images of a layout: one for each name, and one for what has none.
pub(super) fn images(
    files: &Files,
    what: &str,
    fallback: &Reference,
    platform: &Platform,
) -> Result<Vec<Image<'static>>> {
    let top = Index::parse(
        &files.read("index.json").map_err(|error| error.context(what.to_string()))?,
        &format!("{what}: index.json"),
    )?;
    let mut groups: Vec<(Option<Reference>, Vec<Descriptor>)> = Vec::new();
    for entry in top.manifests {
        let name = name(&entry, fallback)?;
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, entries)) => entries.push(entry),
            None => groups.push((name, vec![entry])),
        }
    }
    let mut images: Vec<(Digest, Image<'static>)> = Vec::new();
    for (name, entries) in groups {
        let index = Index { schema_version: 2, media_type: None, manifests: entries };
        let entry = match index.manifests.as_slice() {
            [only] => only.clone(),
            _ => index.pick(platform, what)?.clone(),
        };
        let digest = resolve(files, what, entry, platform)?;
        let name = name.unwrap_or_else(|| fallback.clone());
        match images.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, image)) => image.names.push(name),
            None => images.push((digest, image(files, what, &digest, name)?)),
        }
    }
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// The name of an entry: in full as Docker and containerd note it, or what the `ref.name` annotation has, which is a full
/// name for some tools and only a tag for others.
fn name(entry: &Descriptor, fallback: &Reference) -> Result<Option<Reference>> {
    if let Some(full) = entry.annotation(CONTAINERD_NAME) {
        return full.parse().map(Some);
    }
    match entry.annotation(REF_NAME) {
        None => Ok(None),
        Some(name) if name.contains(['/', ':']) => name.parse().map(Some),
        Some(tag) => format!("{}/{}:{tag}", fallback.host(), fallback.repository()).parse().map(Some),
    }
}

/// Follows indexes down to the manifest for this platform.
fn resolve(files: &Files, what: &str, mut entry: Descriptor, platform: &Platform) -> Result<Digest> {
    for _ in 0..NESTING {
        if !entry.is_index() {
            return Ok(entry.digest);
        }
        let bytes = files.document(&entry.digest).map_err(|error| error.context(what.to_string()))?;
        entry = Index::parse(&bytes, what)?.pick(platform, what)?.clone();
    }
    Err(fault(format!("{what}: its indexes are nested more than {NESTING} deep")).into())
}

fn image(files: &Files, what: &str, digest: &Digest, name: Reference) -> Result<Image<'static>> {
    let within = |error: anyhow::Error| error.context(what.to_string());
    let bytes = files.document(digest).map_err(within)?;
    let manifest = Manifest::parse(&bytes, &format!("{what}: manifest {digest}"))?;
    let config = Config::Given(files.document(&manifest.config.digest).map_err(within)?);
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        let section = files.open(&layer.digest.blob_name()).map_err(within)?;
        if section.length() != layer.size {
            return Err(fault(format!(
                "{what}: blob {} has {} bytes, its manifest says {}",
                layer.digest,
                section.length(),
                layer.size
            ))
            .into());
        }
        layers.push(Layer { bytes: Bytes::Section(section), blob: Some(layer.digest) });
    }
    Ok(Image { what: what.to_string(), config, manifest: Some(bytes), layers, names: vec![name] })
}
