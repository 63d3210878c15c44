//! The archive of `docker save` and its likes: `manifest.json` lists configs, names and layers.

use serde::Deserialize;

use super::super::ingest::{Bytes, Config, Image, Layer};
use super::super::reference::Reference;
use super::files::Files;
use crate::error::{Result, fault};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images of such an archive. Its layers have no digests of their own, the config's diff IDs say what they must be.
pub(super) fn images(files: &Files, what: &str, fallback: &Reference) -> Result<Vec<Image<'static>>> {
    let bytes = files.read("manifest.json").map_err(|error| error.context(what.to_string()))?;
    let entries: Vec<Entry> = match serde_json::from_slice(&bytes) {
        Ok(entries) => entries,
        Err(error) => {
            return Err(fault(format!("{what}: its manifest.json is not a docker archive's: {error}")).into());
        }
    };
    entries
        .iter()
        .map(|entry| image(files, what, entry, fallback).map_err(|error| error.context(what.to_string())))
        .collect()
}

fn image(files: &Files, what: &str, entry: &Entry, fallback: &Reference) -> Result<Image<'static>> {
    let config = Config::Given(files.read(&entry.config)?);
    let mut layers = Vec::new();
    for name in entry.layers.iter().flatten() {
        layers.push(Layer { bytes: Bytes::Section(files.open(name)?), blob: None });
    }
    let mut names = Vec::new();
    for tag in entry.repo_tags.iter().flatten() {
        names.push(tag.parse()?);
    }
    if names.is_empty() {
        names.push(fallback.clone());
    }
    Ok(Image { what: what.to_string(), config, manifest: None, layers, names })
}
