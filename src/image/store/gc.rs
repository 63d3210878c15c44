//! Taking things out of the store: always under its exclusive lock, so that nobody is writing, and never what a lease or
//! a name still needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;

use super::super::digest::Digest;
use super::super::reference::Reference;
use super::write::remove_tree;
use super::{ImageRecord, Store, StoreLock, sync_directory};
use crate::error::{Result, fault};
use crate::kept;

/// What was removed.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Removed {
    /// Names.
    pub(crate) references: Vec<Reference>,
    /// Images.
    pub(crate) images: Vec<Digest>,
    /// Unpacked layers, by chain ID.
    pub(crate) layers: Vec<Digest>,
    /// Blobs.
    pub(crate) blobs: Vec<Digest>,
    /// Bytes of file contents freed, blobs and layers together.
    pub(crate) bytes: u64,
}

impl Store {
    /// Removes the images that have neither a name nor a user nor a kept root, then every layer and blob that no image needs.
    pub(crate) fn gc(&self, lock: &StoreLock) -> Result<Removed> {
        let mut named: BTreeSet<Digest> = self.references()?.into_values().map(|target| target.image).collect();
        named.extend(kept::images(&self.root)?.into_iter().map(|(_, id)| id));
        let mut removed = Removed::default();
        for id in self.images()? {
            if !named.contains(&id) && !self.in_use(&id)? {
                self.drop_image(&id)?;
                removed.images.push(id);
            }
        }
        self.sweep(lock, &mut removed)?;
        Ok(removed)
    }

    /// Takes a name away, and with its last name the image, unless a sandbox runs on it or a kept root stands on it. `Ok(None)` when the
    /// name is not there.
    pub(crate) fn remove_reference(&self, name: &Reference, lock: &StoreLock) -> Result<Option<Removed>> {
        let Some(target) = self.target(name)? else {
            return Ok(None);
        };
        self.unname(name)?;
        let mut removed = Removed { references: vec![name.clone()], ..Removed::default() };
        let named = self.references()?.into_values().any(|other| other.image == target.image);
        let still_named = named || kept::images(&self.root)?.iter().any(|(_, id)| *id == target.image);
        if !still_named && self.has_image(&target.image) && !self.in_use(&target.image)? {
            self.drop_image(&target.image)?;
            removed.images.push(target.image);
            self.sweep(lock, &mut removed)?;
        }
        Ok(Some(removed))
    }

    /// Takes an image and all its names away. One that is in use stays, and keeps its names.
    pub(crate) fn remove_image(&self, id: &Digest, lock: &StoreLock) -> Result<Removed> {
        if self.in_use(id)? {
            return Err(fault(format!("image {}: a running sandbox uses it", id.short()))
                .hint("stop the sandbox first: systemctl status sandbox.slice shows its unit")
                .into());
        }
        if let Some((name, _)) = kept::images(&self.root)?.into_iter().find(|(_, image)| image == id) {
            return Err(fault(format!("image {}: the kept root {name} stands on it", id.short()))
                .hint(format!("sandbox discard {name}"))
                .into());
        }
        let mut removed = Removed::default();
        for (name, target) in self.references()? {
            if target.image == *id {
                self.unname(&name)?;
                removed.references.push(name);
            }
        }
        self.drop_image(id)?;
        removed.images.push(*id);
        self.sweep(lock, &mut removed)?;
        Ok(removed)
    }

    fn unname(&self, name: &Reference) -> Result<()> {
        let top = self.root.join("references");
        let path = top.join(name.file());
        fs::remove_file(&path).map_err(|error| fault(format!("{}: {error}", path.display())))?;
        // Directories that are empty now, up to the top. One that is not says so itself.
        let mut directory = path.parent();
        while let Some(at) = directory.filter(|at| *at != top && fs::remove_dir(at).is_ok()) {
            directory = at.parent();
        }
        directory.map_or(Ok(()), sync_directory)
    }

    /// Removes all that no image needs, and what killed writers left.
    fn sweep(&self, _lock: &StoreLock, removed: &mut Removed) -> Result<()> {
        self.clear_leftovers(false)?;
        let mut layers = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        for id in self.images()? {
            let record = self.image(&id)?;
            layers.extend(record.chain_ids.iter().copied());
            blobs.extend(self.blobs_of(&record)?);
        }
        for chain in self.digests_in("layers")? {
            if !layers.contains(&chain) {
                removed.bytes += self.layer(&chain).map_or(0, |layer| layer.tally.bytes);
                self.move_away_and_remove(&self.layer_path(&chain))?;
                removed.layers.push(chain);
            }
        }
        for digest in self.digests_in("blobs/sha256")? {
            if !blobs.contains(&digest) {
                let path = self.blob_path(&digest);
                removed.bytes += fs::metadata(&path).map_or(0, |stat| stat.len());
                fs::remove_file(&path).map_err(|error| fault(format!("{}: {error}", path.display())))?;
                removed.blobs.push(digest);
            }
        }
        Ok(())
    }

    /// Every blob that an image needs: its config, its manifests, and the layers that they list.
    pub(super) fn blobs_of(&self, record: &ImageRecord) -> Result<BTreeSet<Digest>> {
        let mut blobs = BTreeSet::from([record.id]);
        for digest in &record.manifests {
            blobs.insert(*digest);
            blobs.extend(self.manifest(digest)?.layers.iter().map(|layer| layer.digest));
        }
        Ok(blobs)
    }

    fn drop_image(&self, id: &Digest) -> Result<()> {
        self.move_away_and_remove(&self.root.join("images").join(id.hex()))
    }

    /// A directory leaves its place in one step: half of one is never found there.
    fn move_away_and_remove(&self, path: &Path) -> Result<()> {
        let named = |error: std::io::Error| fault(format!("{}: {error}", path.display()));
        let away = tempfile::Builder::new().prefix("removed-").tempdir_in(self.root.join("tmp")).map_err(named)?.keep();
        match fs::rename(path, &away) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(named(error).into()),
        }
        remove_tree(&away).map_err(named)?;
        Ok(())
    }
}
