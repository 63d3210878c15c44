//! Docker's store, walked as the seed of this project walks it:
//!
//! ```text
//! image/overlay2/repositories.json                     name      ─▶ image ID
//! image/overlay2/imagedb/content/sha256/IMAGE-ID       the config: diff IDs   ─▶ chain IDs, by the OCI rule
//! image/overlay2/layerdb/sha256/CHAIN-ID/cache-id      chain ID  ─▶ directory
//! overlay2/CACHE-ID/diff                               the layer
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::config::ImageConfig;
use super::super::digest::{Digest, by_prefix, chain_ids};
use super::super::lookup::is_single_part;
use super::super::reference::Reference;
use super::super::resolve::ResolvedImage;
use super::super::store::Lease;
use super::{check_directory, marks, read_json, unreadable};
use crate::error::{Result, fault};

/// Where Docker keeps its data for this user.
pub(crate) fn default_root() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/share/docker"),
        _ => "/var/lib/docker".into(),
    }
}

/// How a storage driver lays its directories out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// A directory a layer.
    Stacked(&'static str),
    /// A directory for the whole stack up to a layer.
    Whole,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Repositories {
    repositories: BTreeMap<String, BTreeMap<String, Digest>>,
}

/// Finds an image of Docker's by name or ID.
pub(crate) fn resolve(typed: &str, root: &Path) -> Result<ResolvedImage> {
    let (directory, driver) = driver(root)?;
    let (id, name) = find(typed, root, &directory)?;
    let path = directory.join("imagedb/content/sha256").join(id.hex());
    let bytes = fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    if Digest::of(&bytes) != id {
        return Err(fault(format!("{}: its contents have changed", path.display())).into());
    }
    let config = ImageConfig::parse(&bytes, typed)?;
    let chains = chain_ids(&config.rootfs.diff_ids);
    let used = match driver {
        Driver::Stacked(_) => chains.as_slice(),
        Driver::Whole => chains.last().map_or(&[][..], std::slice::from_ref),
    };
    let mut layers = Vec::with_capacity(used.len());
    for chain in used {
        layers.push(layer(root, &directory, driver, chain)?);
    }
    Ok(ResolvedImage { name: format!("docker:{name}"), id, config, layers, marks: marks(root), lease: Lease::none() })
}

/// The directory of a layer.
fn layer(root: &Path, directory: &Path, driver: Driver, chain: &Digest) -> Result<PathBuf> {
    let path = directory.join("layerdb/sha256").join(chain.hex()).join("cache-id");
    let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
    let cache_id = text.trim();
    if !is_single_part(cache_id) {
        return Err(fault(format!("{}: {cache_id:?} is no directory name", path.display())).into());
    }
    let layer = match driver {
        Driver::Stacked(name) => root.join(name).join(cache_id).join("diff"),
        Driver::Whole => root.join("vfs/dir").join(cache_id),
    };
    check_directory(&layer)?;
    Ok(layer)
}

/// The metadata directory of the storage driver that is in use.
fn driver(root: &Path) -> Result<(PathBuf, Driver)> {
    let image = root.join("image");
    for (name, driver) in [
        ("overlay2", Driver::Stacked("overlay2")),
        ("fuse-overlayfs", Driver::Stacked("fuse-overlayfs")),
        ("vfs", Driver::Whole),
    ] {
        let directory = image.join(name);
        if directory.join("repositories.json").is_file() {
            return Ok((directory, driver));
        }
    }
    let entries = match fs::read_dir(&image) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(fault(format!("{}: has no image store of Docker's", root.display()))
                .hint("another place: --docker-root DIR; where Docker keeps its images in containerd: docker save NAME | sandbox image import -")
                .into());
        }
        Err(error) => return Err(unreadable(&image, &error)),
    };
    let found: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    Err(fault(format!(
        "{}: Docker's storage driver here ({}) does not keep layers as directories",
        root.display(),
        found.join(", ")
    ))
    .hint("docker save NAME | sandbox image import -")
    .into())
}

/// The ID behind a name or the front of an ID, and what to call it.
fn find(typed: &str, root: &Path, directory: &Path) -> Result<(Digest, String)> {
    let path = directory.join("repositories.json");
    let known: Repositories = read_json(&path)?.ok_or_else(|| fault(format!("{}: is not there", path.display())))?;
    if let Ok(name) = typed.parse::<Reference>() {
        let id = known.repositories.get(&name.familiar_repository()).and_then(|tags| tags.get(&name.familiar()));
        if let Some(id) = id {
            return Ok((*id, name.familiar()));
        }
    }
    let ids = || {
        let content = directory.join("imagedb/content/sha256");
        let entries = fs::read_dir(&content).map_err(|error| unreadable(&content, &error))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(Digest::from_hex)).collect())
    };
    if let Some(id) = by_prefix(&format!("docker:{typed}"), typed, ids)? {
        return Ok((id, id.short()));
    }
    let names: Vec<&str> = known
        .repositories
        .values()
        .flat_map(|tags| tags.keys())
        .map(String::as_str)
        .filter(|name| !name.contains('@'))
        .take(8)
        .collect();
    Err(fault(format!("image docker:{typed}: not in {}", root.display()))
        .hint(format!("Docker has {}", if names.is_empty() { "no images".into() } else { names.join(", ") }))
        .into())
}
