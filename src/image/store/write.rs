//! Bringing things into the store. All that is new is made under `tmp` and renamed into its place when it is complete and
//! on the disk; what a killed writer leaves in `tmp` is removed by the next one that finds itself alone.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;
use tempfile::{NamedTempFile, TempPath};

use super::super::digest::Digest;
use super::super::manifest::DOCUMENT_LIMIT;
use super::super::reference::Reference;
use super::super::unpack::Marks;
use super::{ImageRecord, LayerRecord, Store, StoreLock, Target, sync_directory};
use crate::error::{Result, fault};
use crate::part::scratch;

/// The name of an unfinished download starts with this.
const PARTIAL: &str = "partial-";

/// The right to add to a store: while it lives, nothing is removed.
#[derive(Debug)]
pub(crate) struct Writer {
    store: Store,
    _lock: StoreLock,
}

/// A layer being unpacked: a directory under `tmp`, removed when it is dropped before it is committed.
#[derive(Debug)]
pub(crate) struct NewLayer {
    place: PathBuf,
    committed: bool,
}

impl NewLayer {
    /// The directory to unpack into.
    pub(crate) fn diff(&self) -> PathBuf {
        self.place.join("diff")
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = remove_tree(&self.place)
        {
            log::warn!("{}: cannot remove it: {error}", self.place.display());
        }
    }
}

impl Store {
    /// Starts to write; waits while something is being removed.
    pub(crate) fn writer(&self) -> Result<Writer> {
        if let Some(_alone) = self.try_lock_exclusive()? {
            self.clear_leftovers(true)?;
        }
        Ok(Writer { store: self.clone(), _lock: self.lock_shared()? })
    }

    /// Removes what killed writers left, on request but for unfinished downloads. Only for who has the store alone.
    pub(super) fn clear_leftovers(&self, keep_downloads: bool) -> Result<()> {
        for entry in self.entries("tmp")? {
            if keep_downloads && entry.file_name().as_encoded_bytes().starts_with(PARTIAL.as_bytes()) {
                continue;
            }
            let path = entry.path();
            remove_tree(&path)
                .map_err(|error| fault(format!("{}: cannot remove what was left here: {error}", path.display())))?;
        }
        Ok(())
    }
}

impl Writer {
    /// The store that is written to.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// An empty file under `tmp`, gone when it is dropped.
    pub(crate) fn new_file(&self) -> Result<NamedTempFile> {
        let tmp = self.store.root.join("tmp");
        tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&tmp)
            .map_err(|error| fault(format!("{}: {error}", tmp.display())).into())
    }

    /// A nameless file in the store's file system, for what is read again at once.
    pub(crate) fn scratch(&self) -> Result<File> {
        let tmp = self.store.root.join("tmp");
        tempfile::tempfile_in(&tmp).map_err(|error| fault(format!("{}: {error}", tmp.display())).into())
    }

    /// The file of an unfinished download. It outlives a killed pull, so that the next goes on where it stopped.
    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.store.root.join("tmp").join(format!("{PARTIAL}{}", digest.hex()))
    }

    /// Makes a file under `tmp` the blob `digest`. The caller has hashed it, has called [`Writer::sync`] since, and calls
    /// [`Writer::settle`] when it has committed all.
    pub(crate) fn commit_blob(&self, file: TempPath, digest: &Digest) -> Result<()> {
        file.persist(self.store.blob_path(digest))
            .map_err(|error| fault(format!("blob {digest}: {}", error.error)).into())
    }

    /// Makes a complete and hashed download the blob `digest`.
    pub(crate) fn commit_partial(&self, digest: &Digest) -> Result<()> {
        let named = |error: std::io::Error| fault(format!("blob {digest}: {error}"));
        let path = self.partial_path(digest);
        File::open(&path).and_then(|file| file.sync_data()).map_err(named)?;
        fs::rename(&path, self.store.blob_path(digest)).map_err(named)?;
        Ok(())
    }

    /// Makes what was committed survive a power cut: before anything refers to it.
    pub(crate) fn settle(&self) -> Result<()> {
        sync_directory(&self.store.root.join("blobs/sha256"))?;
        sync_directory(&self.store.root.join("layers"))
    }

    /// Stores a document.
    pub(crate) fn put_document(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(
                fault(format!("document {digest}: has {} bytes, more than {DOCUMENT_LIMIT}", bytes.len())).into()
            );
        }
        if !self.store.has_blob(&digest) {
            let mut file = self.new_file()?;
            let write = |file: &mut NamedTempFile| file.write_all(bytes).and_then(|()| file.as_file().sync_data());
            write(&mut file).map_err(|error| fault(format!("blob {digest}: {error}")))?;
            self.commit_blob(file.into_temp_path(), &digest)?;
        }
        Ok(digest)
    }

    /// A new directory to unpack a layer into.
    pub(crate) fn new_layer(&self) -> Result<NewLayer> {
        let tmp = self.store.root.join("tmp");
        let named = |error: std::io::Error| fault(format!("{}: {error}", tmp.display()));
        let place = tempfile::Builder::new().prefix("layer-").tempdir_in(&tmp).map_err(named)?.keep();
        let layer = NewLayer { place, committed: false };
        DirBuilder::new().mode(0o755).create(layer.diff()).map_err(named)?;
        // A default ACL that the store's directory has from above would be handed on to every file of the image.
        for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
            match rustix::fs::removexattr(layer.diff(), acl) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(named(errno.into()).into()),
            }
        }
        Ok(layer)
    }

    /// How deletions are to be marked in the layers of this store.
    pub(crate) fn marks(&self) -> Result<Marks> {
        let directory = File::open(self.store.root.join("layers"))?;
        Ok(Marks::possible(directory.as_fd()))
    }

    /// Puts all that was unpacked onto the disk: one call for any number of files.
    pub(crate) fn sync(&self) -> Result<()> {
        let directory = File::open(&self.store.root)?;
        rustix::fs::syncfs(directory.as_fd()).map_err(|errno| self.store.named("write to disk", &errno))
    }

    /// Makes an unpacked layer the one with this chain ID. Where there is one already, that stays; `true` when there was none.
    /// The caller has called [`Writer::sync`] since the layer was unpacked and calls [`Writer::settle`] after it.
    pub(crate) fn commit_layer(&self, mut layer: NewLayer, chain: &Digest, record: &LayerRecord) -> Result<bool> {
        write_json(&layer.place.join("layer.json"), record)?;
        let target = self.store.layer_path(chain);
        match fs::rename(&layer.place, &target) {
            Ok(()) => layer.committed = true,
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(fault(format!("{}: {error}", target.display())).into()),
        }
        Ok(layer.committed)
    }

    /// Adds an image, or to one that is there the manifest that it came with this time. Its blobs and layers are there.
    pub(crate) fn put_image(&self, record: &ImageRecord) -> Result<()> {
        let target = self.store.image_path(&record.id);
        let named = |error: std::io::Error| fault(format!("{}: {error}", target.display()));
        if !target.is_dir() {
            let tmp = self.store.root.join("tmp");
            let place = tempfile::Builder::new().prefix("image-").tempdir_in(&tmp).map_err(named)?;
            File::create(place.path().join("in-use")).map_err(named)?;
            write_json(&place.path().join("image.json"), record)?;
            sync_directory(place.path())?;
            match fs::rename(place.path(), &target) {
                Ok(()) => return sync_directory(&self.store.root.join("images")),
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                Err(error) => return Err(named(error).into()),
            }
        }
        // Its own lock, not the lease's file: a running sandbox must not stop the same image from coming in again.
        let directory = File::open(&target).map_err(named)?;
        directory.lock().map_err(named)?;
        let mut known = self.store.image(&record.id)?;
        let mut changed = false;
        for manifest in &record.manifests {
            if !known.manifests.contains(manifest) {
                known.manifests.push(*manifest);
                changed = true;
            }
        }
        if changed {
            self.replace_json(&target.join("image.json"), &known)?;
        }
        Ok(())
    }

    /// Gives an image a name, which may have been another's.
    pub(crate) fn put_reference(&self, name: &Reference, target: &Target) -> Result<()> {
        let path = self.store.root.join("references").join(name.file());
        let parent = path.parent().unwrap_or(&self.store.root);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(parent)
            .map_err(|error| fault(format!("{}: {error}", parent.display())))?;
        self.replace_json(&path, target)
    }

    fn replace_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let named = |error: &dyn std::fmt::Display| fault(format!("{}: {error}", path.display()));
        let mut file = self.new_file()?;
        file.write_all(&json(value)?).map_err(|error| named(&error))?;
        file.as_file().sync_data().map_err(|error| named(&error))?;
        file.persist(path).map_err(|error| named(&error.error))?;
        path.parent().map_or(Ok(()), sync_directory)
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes a JSON file whose directory is not in its place yet.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let write = |bytes: &[u8]| -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_data()
    };
    write(&json(value)?).map_err(|error| fault(format!("{}: {error}", path.display())).into())
}

/// Removes a file or a tree. An ordinary user's layers may have directories that even their owner cannot enter.
pub(super) fn remove_tree(path: &Path) -> std::io::Result<()> {
    let stat = match fs::symlink_metadata(path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !stat.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            scratch::open_up(path);
            fs::remove_dir_all(path)
        }
        other => other,
    }
}
