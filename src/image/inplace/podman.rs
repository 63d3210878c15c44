//! The store of podman, buildah, CRI-O and skopeo (containers/storage):
//!
//! ```text
//! DRIVER-images/images.json             name       ─▶ image ID and uppermost layer
//! DRIVER-images/IMAGE-ID/manifest       the manifest; beside it the config, under the base64 of its digest
//! DRIVER-layers/layers.json             layer      ─▶ the layer below it
//! overlay/LAYER-ID/diff, vfs/dir/ID     the layer
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use super::super::config::ImageConfig;
use super::super::digest::Digest;
use super::super::lookup::is_single_part;
use super::super::manifest::Manifest;
use super::super::reference::Reference;
use super::super::resolve::ResolvedImage;
use super::super::store::Lease;
use super::{check_directory, marks, read_json, unreadable};
use crate::error::{Result, fault};

/// More layers than any image has: a chain of parents that is longer goes round in a circle.
const LAYERS: usize = 4096;

/// Where containers/storage keeps its data for this user: the graphroot of storage.conf (containers-storage.conf(5); another
/// file with `CONTAINERS_STORAGE_CONF`), else its default.
pub(crate) fn default_root() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = variable("HOME").unwrap_or_else(|| "/".into());
    let (config, default) = if rustix::process::geteuid().is_root() {
        (PathBuf::from("/etc/containers/storage.conf"), PathBuf::from("/var/lib/containers/storage"))
    } else {
        let data = variable("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share"));
        (home.join(".config/containers/storage.conf"), data.join("containers/storage"))
    };
    let config = variable("CONTAINERS_STORAGE_CONF").unwrap_or(config);
    configured(&config).unwrap_or(default)
}

fn configured(config: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(config).ok()?;
    let table: toml::Table = text.parse().ok()?;
    let path = table.get("storage")?.get("graphroot")?.as_str()?;
    (!path.is_empty()).then(|| path.into())
}

#[derive(Deserialize)]
struct Image {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: Option<String>,
}

#[derive(Deserialize)]
struct Layer {
    id: String,
    #[serde(default)]
    parent: Option<String>,
}

/// Finds an image of podman's by name or ID.
pub(crate) fn resolve(typed: &str, root: &Path) -> Result<ResolvedImage> {
    let mut drivers = 0;
    let mut all_names = Vec::new();
    for (driver, whole) in [("overlay", false), ("vfs", true)] {
        let Some(images) = read_json::<Vec<Image>>(&root.join(format!("{driver}-images/images.json")))? else {
            continue;
        };
        drivers += 1;
        if let Some((image, name)) = find(typed, &images)? {
            return open(root, driver, whole, image, name);
        }
        all_names.extend(images.into_iter().flat_map(|image| image.names.unwrap_or_default()).take(8));
    }
    if drivers == 0 {
        return Err(fault(format!(
            "{}: has no image store of podman's with the overlay or vfs driver",
            root.display()
        ))
        .hint("podman info --format '{{.Store.GraphRoot}}' says where it is")
        .into());
    }
    Err(fault(format!("image podman:{typed}: not in {}", root.display()))
        .hint(format!("podman has {}", if all_names.is_empty() { "no images".into() } else { all_names.join(", ") }))
        .into())
}

/// The image of that name or ID, and what to call it. A short name may be one that was built here (`localhost/…`).
fn find<'a>(typed: &str, images: &'a [Image]) -> Result<Option<(&'a Image, String)>> {
    if let Ok(name) = typed.parse::<Reference>() {
        let local = format!("localhost/{}", name.familiar());
        for wanted in [name.to_string(), local] {
            let named = |image: &&Image| image.names.iter().flatten().any(|known| *known == wanted);
            if let Some(image) = images.iter().find(named) {
                return Ok(Some((image, name.familiar())));
            }
        }
    }
    let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
    if hex.len() < 4 {
        return Ok(None);
    }
    let matching: Vec<&Image> = images.iter().filter(|image| image.id.starts_with(hex)).collect();
    match matching.as_slice() {
        [] => Ok(None),
        [image] => Ok(Some((image, image.id.chars().take(12).collect()))),
        _ => Err(fault(format!("image podman:{typed}: stands for {} images", matching.len()))
            .hint("give more digits")
            .into()),
    }
}

fn open(root: &Path, driver: &str, whole: bool, image: &Image, name: String) -> Result<ResolvedImage> {
    let (config, id) = config(&root.join(format!("{driver}-images")), image)?;
    let path = root.join(format!("{driver}-layers/layers.json"));
    let mut known: Vec<Layer> = read_json(&path)?.ok_or_else(|| fault(format!("{}: is not there", path.display())))?;
    // Layers of images that are loaded for one boot only have a list of their own.
    known.extend(
        read_json::<Vec<Layer>>(&root.join(format!("{driver}-layers/volatile-layers.json")))?.unwrap_or_default(),
    );
    let parents: HashMap<&str, Option<&str>> =
        known.iter().map(|layer| (layer.id.as_str(), layer.parent.as_deref())).collect();
    let mut layers = Vec::new();
    let mut next = image.layer.as_deref().filter(|layer| !layer.is_empty());
    while let Some(layer) = next {
        let Some(parent) = parents.get(layer).filter(|_| is_single_part(layer) && layers.len() < LAYERS) else {
            return Err(fault(format!("{}: does not lead from layer {layer} to a lowest one", path.display())).into());
        };
        let directory =
            if whole { root.join("vfs/dir").join(layer) } else { root.join("overlay").join(layer).join("diff") };
        check_directory(&directory)?;
        layers.push(directory);
        // With vfs every directory holds all that is below it as well.
        next = parent.filter(|parent| !whole && !parent.is_empty());
    }
    layers.reverse();
    Ok(ResolvedImage { name: format!("podman:{name}"), id, config, layers, marks: marks(root), lease: Lease::none() })
}

/// The config, found through the manifest: its digest is the image's ID, but for images in Docker's oldest format.
fn config(images: &Path, image: &Image) -> Result<(ImageConfig, Digest)> {
    if !is_single_part(&image.id) {
        return Err(fault(format!("{}: {:?} is no image ID", images.display(), image.id)).into());
    }
    let directory = images.join(&image.id);
    let path = directory.join("manifest");
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    let manifest = Manifest::parse(&bytes, &path.display().to_string())?;
    let digest = manifest.config.digest;
    let path = directory.join(format!("={}", base64::engine::general_purpose::STANDARD.encode(digest.to_string())));
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    if Digest::of(&bytes) != digest {
        return Err(fault(format!("{}: its contents have changed", path.display())).into());
    }
    Ok((ImageConfig::parse(&bytes, &path.display().to_string())?, digest))
}
