//! What lists and inspections of images show: the same data for people and for `--json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::config::{History, RunConfig};
use super::digest::Digest;
use super::reference::Reference;
use super::resolve::ResolvedImage;
use super::store::{ImageRecord, Store, StoreLock};
use crate::error::Result;

/// A line of `image ls`.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Its name; none for an image that has lost it.
    pub(crate) name: Option<Reference>,
    /// Image ID.
    pub(crate) id: Digest,
    /// Manifest that it came with under this name.
    pub(crate) manifest: Option<Digest>,
    /// Number of layers.
    pub(crate) layers: usize,
    /// Bytes of file contents in its layers.
    pub(crate) size: u64,
    /// Bytes of those in layers that other images have too.
    pub(crate) shared_size: u64,
    /// When it was made, RFC 3339, as its config says.
    pub(crate) created: Option<String>,
    /// Whether a sandbox runs on it now.
    pub(crate) in_use: bool,
}

/// A layer of `image inspect`.
#[derive(Debug, Serialize)]
pub(crate) struct LayerView {
    /// Digest of its tar.
    pub(crate) diff_id: Digest,
    /// Digest of the stack that it tops.
    pub(crate) chain_id: Digest,
    /// Bytes of file contents, where it is known.
    pub(crate) size: Option<u64>,
    /// Where its files are.
    pub(crate) directory: String,
}

/// What `image inspect` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Details {
    /// What was asked for.
    pub(crate) name: String,
    /// All names that stand for it.
    pub(crate) names: Vec<Reference>,
    /// Image ID.
    pub(crate) id: Digest,
    /// Manifests it came with.
    pub(crate) manifests: Vec<Digest>,
    /// `linux/amd64`.
    pub(crate) platform: String,
    /// When it was made.
    pub(crate) created: Option<String>,
    /// When it came into the store.
    pub(crate) imported: Option<String>,
    /// How it is run.
    pub(crate) config: RunConfig,
    /// Its layers, lowest first.
    pub(crate) layers: Vec<LayerView>,
    /// How it came to be.
    pub(crate) history: Vec<History>,
}

/// The lines of `image ls`: names in order, then images without one.
pub(crate) fn list(store: &Store, _lock: &StoreLock) -> Result<Vec<Row>> {
    let mut records = BTreeMap::new();
    let mut users: BTreeMap<Digest, BTreeSet<Digest>> = BTreeMap::new();
    for id in store.images()? {
        let record = store.image(&id)?;
        for chain in &record.chain_ids {
            users.entry(*chain).or_default().insert(id);
        }
        records.insert(id, record);
    }
    let mut sizes = BTreeMap::new();
    for chain in users.keys() {
        sizes.insert(*chain, store.layer(chain).map_or(0, |layer| layer.tally.bytes));
    }
    let row = |name: Option<Reference>, manifest: Option<Digest>, record: &ImageRecord| -> Result<Row> {
        let size = |chain: &&Digest| sizes.get(chain).copied().unwrap_or(0);
        let shared = |chain: &&Digest| users.get(chain).is_some_and(|users| users.len() > 1);
        Ok(Row {
            name,
            id: record.id,
            manifest,
            layers: record.chain_ids.len(),
            size: record.chain_ids.iter().map(|chain| size(&chain)).sum(),
            shared_size: record.chain_ids.iter().filter(shared).map(|chain| size(&chain)).sum(),
            created: store.config(&record.id)?.created,
            in_use: store.in_use(&record.id)?,
        })
    };
    let mut rows = Vec::new();
    let mut named = BTreeSet::new();
    for (name, target) in store.references()? {
        named.insert(target.image);
        if let Some(record) = records.get(&target.image) {
            rows.push(row(Some(name), Some(target.manifest), record)?);
        }
    }
    for record in records.values().filter(|record| !named.contains(&record.id)) {
        rows.push(row(None, None, record)?);
    }
    Ok(rows)
}

/// All about one image. `store` is ours when it is an image of ours.
pub(crate) fn details(image: &ResolvedImage, store: Option<&Store>) -> Result<Details> {
    let mut names = Vec::new();
    let mut record = None;
    if let Some(store) = store {
        names = store
            .references()?
            .into_iter()
            .filter(|(_, target)| target.image == image.id)
            .map(|(name, _)| name)
            .collect();
        record = Some(store.image(&image.id)?);
    }
    let diff_ids = &image.config.rootfs.diff_ids;
    let chains = super::digest::chain_ids(diff_ids);
    // A store that keeps whole stacks has one directory for all layers.
    let directory = |at: usize| {
        if image.layers.len() == chains.len() { image.layers.get(at) } else { image.layers.last() }
    };
    let layers = diff_ids.iter().zip(&chains).enumerate().map(|(at, (diff_id, chain_id))| LayerView {
        diff_id: *diff_id,
        chain_id: *chain_id,
        size: store.and_then(|store| store.layer(chain_id).ok()).map(|layer| layer.tally.bytes),
        directory: directory(at).map_or_else(String::new, |path| path.display().to_string()),
    });
    Ok(Details {
        name: image.name.clone(),
        names,
        id: image.id,
        manifests: record.as_ref().map(|record| record.manifests.clone()).unwrap_or_default(),
        platform: image.config.platform().to_string(),
        created: image.config.created.clone(),
        imported: record.map(|record| record.imported),
        config: image.config.config.clone(),
        layers: layers.collect(),
        history: image.config.history.clone(),
    })
}
