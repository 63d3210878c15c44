//! Images and their names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::config::ImageConfig;
use super::super::digest::{self, Digest, chain_ids};
use super::super::reference::{Reference, Version};
use super::{Store, StoreLock, read_json};
use crate::error::{Result, fault};

/// What is known of an image, in its `image.json`: the walk from image ID to layers, written out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Digest of its config.
    pub(crate) id: Digest,
    /// Manifests that have this config, as they came in: the same image may arrive in several compressions.
    pub(crate) manifests: Vec<Digest>,
    /// Digest of each layer's tar, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    /// The layers' chain IDs: the names of their directories.
    pub(crate) chain_ids: Vec<Digest>,
    /// When it came into the store, RFC 3339.
    pub(crate) imported: String,
}

impl ImageRecord {
    /// The record of an image with this config.
    pub(crate) fn new(id: Digest, config: &ImageConfig, manifest: Digest, imported: String) -> ImageRecord {
        let diff_ids = config.rootfs.diff_ids.clone();
        let chain_ids = chain_ids(&diff_ids);
        ImageRecord { id, manifests: vec![manifest], diff_ids, chain_ids, imported }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The image.
    pub(crate) image: Digest,
    /// The manifest that it came with under this name.
    pub(crate) manifest: Digest,
}

/// Keeps an image from being removed while it is used: a shared lock on its `in-use` file. It is let go when the last
/// copy of its descriptor is closed, so also when the process is killed.
#[derive(Debug)]
pub(crate) struct Lease {
    file: Option<File>,
}

impl Lease {
    /// The lock's descriptor, for the sandbox's first process to keep: the image stays also when the launcher is killed.
    pub(crate) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// For images that lie in somebody else's store.
    pub(crate) fn none() -> Lease {
        Lease { file: None }
    }
}

impl Store {
    pub(super) fn image_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    /// The record of an image.
    pub(crate) fn image(&self, id: &Digest) -> Result<ImageRecord> {
        read_json(&self.image_path(id).join("image.json"))
    }

    /// Whether the image is there.
    pub(crate) fn has_image(&self, id: &Digest) -> bool {
        self.image_path(id).is_dir()
    }

    /// The IDs of all images.
    pub(crate) fn images(&self) -> Result<Vec<Digest>> {
        self.digests_in("images")
    }

    /// The config of an image.
    pub(crate) fn config(&self, id: &Digest) -> Result<ImageConfig> {
        ImageConfig::parse(&self.document(id)?, &format!("image {}", id.short()))
    }

    /// All names, sorted.
    pub(crate) fn references(&self) -> Result<BTreeMap<Reference, Target>> {
        let mut found = BTreeMap::new();
        let top = self.root.join("references");
        self.visit_references(&top, &top, &mut found)?;
        Ok(found)
    }

    fn visit_references(&self, top: &Path, at: &Path, found: &mut BTreeMap<Reference, Target>) -> Result<()> {
        let named = |error| fault(format!("{}: {error}", at.display()));
        for entry in fs::read_dir(at).map_err(named)? {
            let entry = entry.map_err(named)?;
            let path = entry.path();
            if entry.file_type().map_err(named)?.is_dir() {
                self.visit_references(top, &path, found)?;
                continue;
            }
            let name =
                path.strip_prefix(top).ok().and_then(Path::to_str).and_then(|name| name.parse::<Reference>().ok());
            match name {
                Some(name) => {
                    found.insert(name, read_json(&path)?);
                }
                None => log::warn!("{}: not a part of the store", path.display()),
            }
        }
        Ok(())
    }

    /// What a name stands for.
    pub(crate) fn target(&self, name: &Reference) -> Result<Option<Target>> {
        let path = self.root.join("references").join(name.file());
        match fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_file() => read_json(&path).map(Some),
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(fault(format!("{}: {error}", path.display())).into()),
        }
    }

    /// Finds what a person may type for an image: a name, a name with a manifest's digest, an image ID, or the first
    /// four or more digits of one. Gives the name too where it was one.
    pub(crate) fn find(&self, typed: &str) -> Result<(Option<Reference>, Target)> {
        let name = typed.parse::<Reference>();
        if let Ok(name) = &name {
            if let Some(target) = self.target(name)? {
                return Ok((Some(name.clone()), target));
            }
            if let Some(target) = self.find_by_manifest(name)? {
                return Ok((Some(name.clone()), target));
            }
        }
        if let Some(target) = self.find_by_id(typed)? {
            return Ok((None, target));
        }
        // A digest is no name, but nothing is wrong with it either.
        if !typed.starts_with("sha256:") {
            name?;
        }
        Err(fault(format!("image {typed:?}: not in the store {}", self.root.display()))
            .hint(format!("what is there: sandbox image ls; from a registry: sandbox image pull {typed}; from a file: sandbox image import FILE"))
            .into())
    }

    /// `name@sha256:…` of a manifest that came in under a tag of the same repository.
    fn find_by_manifest(&self, name: &Reference) -> Result<Option<Target>> {
        let Version::Digest(digest) = name.version() else {
            return Ok(None);
        };
        let same = |other: &Reference| other.host() == name.host() && other.repository() == name.repository();
        let found = self.references()?.into_iter().find(|(other, target)| same(other) && target.manifest == *digest);
        Ok(found.map(|(_, target)| target))
    }

    fn find_by_id(&self, typed: &str) -> Result<Option<Target>> {
        let Some(id) = digest::by_prefix(&format!("{typed:?}"), typed, || self.images())? else {
            return Ok(None);
        };
        let record = self.image(&id)?;
        match record.manifests.last() {
            Some(manifest) => Ok(Some(Target { image: id, manifest: *manifest })),
            None => Err(fault(format!("image {}: its record names no manifest", id.short()))
                .hint("sandbox image verify")
                .into()),
        }
    }

    /// Which blob holds which layer, as far as images of this store show it: pairs of diff ID and blob. Each was checked
    /// when its image came in.
    pub(crate) fn known_layers(&self) -> Result<BTreeSet<(Digest, Digest)>> {
        let mut pairs = BTreeSet::new();
        for id in self.images()? {
            let record = self.image(&id)?;
            for digest in &record.manifests {
                let manifest = self.manifest(digest)?;
                pairs.extend(record.diff_ids.iter().copied().zip(manifest.layers.iter().map(|layer| layer.digest)));
            }
        }
        Ok(pairs)
    }

    /// Takes a lease on an image. The caller holds the store's lock, shared is enough, so that nobody removes the image
    /// between its being found and this.
    pub(crate) fn lease(&self, id: &Digest, _lock: &StoreLock) -> Result<Lease> {
        let path = self.image_path(id).join("in-use");
        let named = |error: std::io::Error| fault(format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(named)?;
        file.lock_shared().map_err(named)?;
        Ok(Lease { file: Some(file) })
    }

    /// Whether somebody holds a lease on an image.
    pub(crate) fn in_use(&self, id: &Digest) -> Result<bool> {
        let path = self.image_path(id).join("in-use");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(fault(format!("{}: {error}", path.display())).into()),
        };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(fault(format!("{}: {error}", path.display())).into()),
        }
    }
}
