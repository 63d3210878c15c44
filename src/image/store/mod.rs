//! The image store on disk. Its layout is described at the top of [`super`].

mod gc;
mod record;
mod verify;
mod write;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::{DOCUMENT_LIMIT, Manifest};
use super::stream::Section;
use super::unpack::{Marks, Tally};
use crate::error::{Result, fault};

pub(crate) use gc::Removed;
pub(crate) use record::{ImageRecord, Lease, Target};
pub(crate) use verify::Report;
pub(crate) use write::{NewLayer, Writer};

/// What the file `version` holds.
const VERSION: &str = "1\n";

/// An opened store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// What is known of an unpacked layer, in its `layer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the layer's tar.
    pub(crate) diff_id: Digest,
    /// The layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Digest>,
    /// How its deletions are written.
    pub(crate) marks: Marks,
    /// What is in it.
    #[serde(flatten)]
    pub(crate) tally: Tally,
}

/// A lock on the whole store, let go when dropped.
#[derive(Debug)]
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// Where a store is when nobody says: `/var/lib/sandbox` for root, `$XDG_DATA_HOME/sandbox` (or
    /// `~/.local/share/sandbox`) for others.
    fn default_path() -> Result<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/sandbox".into());
        }
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(data) = absolute("XDG_DATA_HOME") {
            return Ok(data.join("sandbox"));
        }
        match absolute("HOME") {
            Some(home) => Ok(home.join(".local/share/sandbox")),
            None => Err(fault("the image store has no place: neither XDG_DATA_HOME nor HOME is set")
                .hint("say where with --store DIR")
                .into()),
        }
    }

    /// Where the store is: as asked, or where it is when nobody says.
    pub(crate) fn path(asked: Option<PathBuf>) -> Result<PathBuf> {
        asked.map_or_else(Store::default_path, Ok)
    }

    /// Opens the store at `root`; makes it where there is none yet. An existing directory that is no store is refused
    /// unless it is empty.
    pub(crate) fn open(root: &Path) -> Result<Store> {
        let named = |error: &dyn std::fmt::Display| fault(format!("image store {}: {error}", root.display()));
        let denied = |error: &dyn std::fmt::Display| {
            named(error).hint("root's store is root's: use sudo, or --store DIR for another")
        };
        match fs::read_to_string(root.join("version")) {
            Ok(version) if version == VERSION => {}
            Ok(version) => {
                return Err(named(&format_args!(
                    "has layout version {:?}, this program knows version 1",
                    version.trim()
                ))
                .into());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(root).map_err(|error| match error.downcast_ref::<std::io::Error>() {
                    Some(io) if io.kind() == ErrorKind::PermissionDenied => denied(io),
                    _ => named(&error),
                })?;
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(denied(&error).into());
            }
            Err(error) => return Err(named(&error).into()),
        }
        // Layers are named to others, who may be elsewhere.
        let root = std::path::absolute(root).map_err(|error| named(&error))?;
        let store = Store { root };
        store.close_to_others().map_err(|error| named(&error))?;
        Ok(store)
    }

    /// It holds set-uid files of strangers: nobody else may reach them.
    fn close_to_others(&self) -> std::io::Result<()> {
        let stat = fs::metadata(&self.root)?;
        if stat.mode() & 0o077 != 0 && stat.uid() == rustix::process::geteuid().as_raw() {
            log::warn!("image store {}: its mode was {:o}, now it is 700", self.root.display(), stat.mode() & 0o777);
            fs::set_permissions(&self.root, PermissionsExt::from_mode(0o700))?;
        }
        Ok(())
    }

    /// The directory of the store.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until nobody removes anything, and keeps it so. Many may hold this at once.
    pub(crate) fn lock_shared(&self) -> Result<StoreLock> {
        let file = self.lock_file()?;
        file.lock_shared().map_err(|error| self.named("lock", &error))?;
        Ok(StoreLock { _file: file })
    }

    /// Waits until nobody else works in the store. `waiting` is called when that takes time.
    pub(crate) fn lock_exclusive(&self, waiting: impl FnOnce()) -> Result<StoreLock> {
        if let Some(lock) = self.try_lock_exclusive()? {
            return Ok(lock);
        }
        waiting();
        let file = self.lock_file()?;
        file.lock().map_err(|error| self.named("lock", &error))?;
        Ok(StoreLock { _file: file })
    }

    fn try_lock_exclusive(&self) -> Result<Option<StoreLock>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(StoreLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(self.named("lock", &error)),
        }
    }

    /// Opened for reading only, so that images of a read-only file system can be run.
    fn lock_file(&self) -> Result<File> {
        let path = self.root.join("lock");
        File::open(&path).map_err(|error| fault(format!("{}: {error}", path.display())).into())
    }

    fn named(&self, what: &str, error: &dyn std::fmt::Display) -> anyhow::Error {
        fault(format!("image store {}: cannot {what}: {error}", self.root.display())).into()
    }

    /// The file of a blob, which may not be there.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.blob_name())
    }

    /// Whether a blob is there.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// A blob to be read in parts.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Section> {
        let path = self.blob_path(digest);
        let open = || Section::whole(Arc::new(File::open(&path)?));
        open().map_err(|error| {
            fault(format!("blob {digest}: {error}")).hint("find what else is missing with: sandbox image verify").into()
        })
    }

    /// A small blob, a document, checked against its digest as it is read.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.blob(digest)?
            .take(DOCUMENT_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(|error| fault(format!("blob {digest}: {error}")))?;
        if Digest::of(&bytes) != *digest {
            return Err(fault(format!("blob {digest}: its contents have changed")).hint("sandbox image verify").into());
        }
        Ok(bytes)
    }

    /// The manifest with this digest.
    pub(crate) fn manifest(&self, digest: &Digest) -> Result<Manifest> {
        Manifest::parse(&self.document(digest)?, &format!("manifest {digest}"))
    }

    /// The directory of an unpacked layer: `diff` in it is the tree, `layer.json` what is known of it.
    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    /// Whether a layer is unpacked.
    pub(crate) fn has_layer(&self, chain: &Digest) -> bool {
        self.layer_path(chain).is_dir()
    }

    /// What is known of a layer.
    pub(crate) fn layer(&self, chain: &Digest) -> Result<LayerRecord> {
        read_json(&self.layer_path(chain).join("layer.json"))
    }

    /// Bytes that the store's file system has to give.
    pub(crate) fn room(&self) -> u64 {
        rustix::fs::statvfs(&self.root).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The digests that name the entries of one of the store's directories.
    fn digests_in(&self, directory: &str) -> Result<Vec<Digest>> {
        let mut found = Vec::new();
        for entry in self.entries(directory)? {
            let name = entry.file_name();
            match name.to_str().and_then(Digest::from_hex) {
                Some(digest) => found.push(digest),
                None => log::warn!("{}: not a part of the store", entry.path().display()),
            }
        }
        found.sort();
        Ok(found)
    }

    fn entries(&self, directory: &str) -> Result<Vec<fs::DirEntry>> {
        let path = self.root.join(directory);
        let named = |error| fault(format!("{}: {error}", path.display()));
        let entries = fs::read_dir(&path).map_err(named)?;
        entries.map(|entry| entry.map_err(|error| named(error).into())).collect()
    }
}

/// Makes an empty store. The version file comes last: without it there is no store.
fn make(root: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700).recursive(true);
    let known = ["blobs", "images", "kept", "layers", "references", "tmp", "lock", "version"];
    match fs::read_dir(root) {
        Ok(entries) => {
            for entry in entries {
                let name = entry?.file_name();
                // Half a store: another process is making it, or was killed while it did.
                if !name.to_str().is_some_and(|name| known.contains(&name)) {
                    return Err(fault(format!("is no image store, and has {} in it", name.display()))
                        .hint("give an empty or new directory")
                        .into());
                }
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => builder.create(root)?,
        Err(error) => return Err(error.into()),
    }
    for directory in ["blobs/sha256", "images", "layers", "references", "tmp"] {
        builder.create(root.join(directory))?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).open(root.join("lock"))?;
    let mut version = tempfile::NamedTempFile::new_in(root.join("tmp"))?;
    std::io::Write::write_all(&mut version, VERSION.as_bytes())?;
    version.as_file().sync_all()?;
    version.persist(root.join("version"))?;
    sync_directory(root)?;
    Ok(())
}

/// Makes a directory's entries survive a power cut.
fn sync_directory(path: &Path) -> Result<()> {
    let directory = File::open(path)?;
    rustix::fs::fsync(directory.as_fd()).map_err(|errno| fault(format!("{}: cannot sync: {errno}", path.display())))?;
    Ok(())
}

/// Reads a small JSON file of the store.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|error| fault(format!("{}: {error}", path.display())))?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        Err(error) => Err(fault(format!("{}: {error}", path.display())).hint("sandbox image verify").into()),
    }
}

#[cfg(test)]
mod tests;
