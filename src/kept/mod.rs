//! Kept roots: what `run --name NAME --keep` writes stays in the store, and the next `run --name NAME` goes on with it.
//!
//! ```text
//! STORE/kept/NAME/root.json      what it stands on (an image, directories, or the host's own files) and since when
//! STORE/kept/NAME/data/          locked (flock) while a sandbox runs on it, or something is done with it
//! STORE/kept/NAME/data/-/upper   what was written below /; another mount of the host has a directory of its own, `/srv` is `srv`
//! ```
//!
//! Owners on disk are those inside: root's uppers are shown to the sandbox through an ID map. Only a plain user's have the IDs of
//! that user's map, so they are looked at from within it, see [`users::inside_map`].

pub(crate) mod apply;
mod change;
pub(crate) mod commit;
pub(crate) mod diff;
mod differ;
mod place;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::error::{Result, fault};
use crate::host::Host;
use crate::image::digest::Digest;
use crate::image::store::Store;
use crate::image::{self, ResolvedImage, Roots};
use crate::layer::{Layer, Namespace, Userns};
use crate::part;
use crate::part::scratch;
use crate::part::users::{self, UserPlan};

/// What a kept root stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Base {
    /// An image: how it is found again, and its ID.
    Image { typed: String, id: Digest },
    /// Directories, lowest first.
    Layers(Vec<PathBuf>),
    /// The host's own files.
    Host,
}

/// What is known of a kept root, in its `root.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    base: Base,
    userns: Userns,
    host_secrets: bool,
    /// Where Docker's own images are, if not where they usually are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    docker_root: Option<PathBuf>,
    /// When it was made: seconds and nanoseconds since 1970. What of the host was changed later was not seen as it is now.
    made: (u64, u32),
    /// Files that `apply` has brought onto the host, as they were then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    applied: BTreeMap<String, apply::State>,
}

/// A kept root.
#[derive(Debug)]
pub(crate) struct Kept {
    name: String,
    store: Store,
    record: Record,
    is_new: bool,
}

/// What a run is to use, when the kept root, the image and the flags have been put together.
#[derive(Debug)]
pub(crate) struct Choice {
    /// The settings.
    pub(crate) layer: Layer,
    /// The image, whose lease must live as long as the sandbox does.
    pub(crate) image: Option<ResolvedImage>,
    /// The kept root.
    pub(crate) kept: Option<Kept>,
}

/// Finds the kept root of that name and the image that were asked for. Nothing is made yet.
///
/// # Errors
/// When there is no such image, or the kept root stands on something else than what is asked for.
pub(crate) fn choose(layer: Layer) -> Result<Choice> {
    let kept = Kept::of_run(&layer)?;
    let mut layer = match &kept {
        Some(kept) => kept.go_on(layer)?,
        None => layer,
    };
    let image = layer.image.as_deref().map(|typed| {
        let roots = Roots::new(layer.store.clone(), layer.docker_root.clone())?;
        image::resolve(typed, &roots)
    });
    let image = image.transpose()?;
    let kept = match (kept, layer.keep, &layer.name) {
        (Some(kept), ..) => {
            kept.check_image(image.as_ref())?;
            Some(kept)
        }
        (None, Some(true), Some(name)) => Some(Kept::new(name, &layer, image.as_ref())?),
        _ => None,
    };
    layer.keep_at = kept.as_ref().map(Kept::data);
    let layer = match &image {
        Some(image) => image::under(layer, image)?,
        None => layer,
    };
    Ok(Choice { layer, image, kept })
}

impl Kept {
    /// The kept root that a run goes on with, because it has its name.
    fn of_run(layer: &Layer) -> Result<Option<Kept>> {
        let Some(name) = layer.name.as_deref().filter(|name| is_name(name)) else { return Ok(None) };
        if layer.upper.is_some() || layer.keep == Some(false) || layer.share.contains(&Namespace::Mount) {
            return Ok(None);
        }
        let root = Store::path(layer.store.clone())?;
        match fs::symlink_metadata(directory_of(&root, name)) {
            Ok(_) => Kept::open(&root, name).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Opens the kept root `name` of the store at `root`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open(root: &Path, name: &str) -> Result<Kept> {
        let file = directory_of(root, name).join("root.json");
        if !is_name(name) || !file.try_exists().with_context(|| file.display().to_string())? {
            let mut names = names(root);
            names.sort();
            let hint = if names.is_empty() {
                "sandbox run --name NAME --keep makes one".to_owned()
            } else {
                format!("there are: {}", names.join(" "))
            };
            return Err(fault(format!("{name}: no kept root in {}", root.display())).hint(hint).into());
        }
        let record = read_record(root, name)?;
        Ok(Kept { name: name.to_owned(), store: open_store(root)?, record, is_new: false })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn new(name: &str, layer: &Layer, image: Option<&ResolvedImage>) -> Result<Kept> {
        if !is_name(name) {
            let line =
                format!("--name {name:?}: a kept root's name is letters, digits, -, . and _, and begins with no dot");
            return Err(fault(line).into());
        }
        let root = Store::path(layer.store.clone())?;
        let base = match (image, &layer.image) {
            (Some(image), Some(typed)) => Base::Image { typed: by_id(typed, &image.id), id: image.id },
            _ => directories(layer)?.map_or(Base::Host, Base::Layers),
        };
        let record = Record {
            base,
            userns: layer.userns.unwrap_or(Userns::Auto),
            host_secrets: layer.host_secrets.unwrap_or(false),
            docker_root: layer.docker_root.clone(),
            made: now(),
            applied: BTreeMap::new(),
        };
        Ok(Kept { name: name.to_owned(), store: open_store(&root)?, record, is_new: true })
    }

    /// The flags of a run that goes on, completed by what the root was made with.
    fn go_on(&self, mut layer: Layer) -> Result<Layer> {
        let other = |asked: &str| {
            fault(format!(
                "--name {}: there is a kept root of that name, and {asked} is not what it was made with",
                self.name
            ))
            .hint(format!("leave {asked} out; or another name; or throw it away: sandbox discard {}", self.name))
        };
        match (&self.record.base, directories(&layer)?) {
            (Base::Layers(paths), Some(asked)) if *paths != asked => return Err(other("--layer or --rootfs").into()),
            (Base::Image { .. } | Base::Host, Some(_)) => return Err(other("--layer or --rootfs").into()),
            (Base::Layers(_) | Base::Host, None) if layer.image.is_some() => return Err(other("--image").into()),
            (Base::Layers(paths), _) => (layer.rootfs, layer.layer) = (None, paths.clone()),
            (Base::Image { typed, .. }, None) => {
                layer.image.get_or_insert_with(|| typed.clone());
            }
            (Base::Host, None) => {}
        }
        if layer.userns.is_some_and(|asked| asked != self.record.userns) {
            return Err(other("--userns").into());
        }
        if layer.host_secrets.is_some_and(|asked| asked != self.record.host_secrets) {
            return Err(other("--host-secrets").into());
        }
        layer.userns = Some(self.record.userns).filter(|_| !layer.share.contains(&Namespace::User));
        layer.host_secrets = Some(self.record.host_secrets);
        layer.docker_root = layer.docker_root.or(self.record.docker_root.clone());
        Ok(layer)
    }

    /// An image may have got a new layer under its old name, and the writes were made on the old one.
    fn check_image(&self, image: Option<&ResolvedImage>) -> Result<()> {
        let (Base::Image { id, .. }, Some(image)) = (&self.record.base, image) else { return Ok(()) };
        if image.id == *id {
            return Ok(());
        }
        let line = format!(
            "--name {}: the kept root stands on image {}, {} is {}",
            self.name,
            id.short(),
            image.name,
            image.id.short()
        );
        Err(fault(line)
            .hint(format!("leave --image out to go on with it; or throw it away: sandbox discard {}", self.name))
            .into())
    }

    fn directory(&self) -> PathBuf {
        directory_of(self.store.root(), &self.name)
    }

    fn data(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// Makes a new one just before its first start; of one that is there, says when it is in use.
    ///
    /// # Errors
    /// When a sandbox runs on it, or it cannot be made.
    pub(crate) fn begin(&self) -> Result<()> {
        if !self.is_new {
            let _lock = self.lock()?;
            if read_record(self.store.root(), &self.name)?.made != self.record.made {
                return Err(fault(format!("{}: this kept root was made anew just now", self.name))
                    .hint("again")
                    .into());
            }
            return Ok(());
        }
        let _writer = self.store.lock_shared()?;
        let kept = self.store.root().join("kept");
        let mut builder = DirBuilder::new();
        builder.mode(0o700).recursive(true).create(&kept).with_context(|| format!("make {}", kept.display()))?;
        let place = tempfile::Builder::new().prefix("kept-").tempdir_in(self.store.root().join("tmp"))?;
        let data = place.path().join("data");
        builder.create(&data).with_context(|| format!("make {}", data.display()))?;
        write_record(&place.path().join("root.json"), &self.record)?;
        File::open(place.path())?.sync_all()?;
        match fs::rename(place.path(), self.directory()) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                return Err(
                    fault(format!("--name {}: another run has just made a kept root of that name", self.name)).into()
                );
            }
            Err(error) => return Err(error).with_context(|| format!("make {}", self.directory().display())),
        }
        Ok(File::open(&kept)?.sync_all()?)
    }

    /// Keeps all others off it, and reads its record, which nobody else changes from here on.
    ///
    /// # Errors
    /// As for [`Kept::lock`].
    pub(crate) fn hold(&mut self) -> Result<File> {
        let lock = self.lock()?;
        self.record = read_record(self.store.root(), &self.name)?;
        Ok(lock)
    }

    /// Keeps sandboxes off it.
    fn lock(&self) -> Result<File> {
        let path = self.data();
        let directory = File::open(&path).with_context(|| path.display().to_string())?;
        match directory.try_lock() {
            // It may have been thrown away in the meantime, and another made.
            Ok(()) if !part::is_still_at(&path, &directory)? => {
                Err(fault(format!("{}: this kept root was thrown away just now", self.name)).into())
            }
            Ok(()) => Ok(directory),
            Err(TryLockError::WouldBlock) => {
                Err(fault(format!("{}: this kept root is in use by a sandbox or another command", self.name))
                    .hint("wait for its end, or end it: systemctl status sandbox.slice shows its unit")
                    .into())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The uppers, each with the place inside where its overlay is, the root first.
    fn uppers(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut uppers = Vec::new();
        for entry in fs::read_dir(self.data()).with_context(|| self.data().display().to_string())? {
            let entry = entry?;
            let at = crate::part::rootfs::assemble::unescape(&entry.file_name().to_string_lossy());
            uppers.push((at, entry.path().join("upper")));
        }
        uppers.sort();
        Ok(uppers)
    }

    /// The map from within which its files are looked at.
    ///
    /// # Errors
    /// When the host cannot be read, or has no such map.
    pub(crate) fn map(&self) -> Result<UserPlan> {
        users::plan_outside(self.record.userns, &Host::read()?)
    }

    /// Throws it away.
    ///
    /// # Errors
    /// When a sandbox runs on it, or not all of it can be removed.
    pub(crate) fn discard(&self) -> Result<()> {
        let _lock = self.lock()?;
        let kept = self.store.root().join("kept");
        // What an earlier one was killed at.
        for entry in fs::read_dir(&kept)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".removed-")
                && let Err(error) = scratch::try_remove(&entry.path(), &self.map()?)
            {
                // Another may be at it.
                log::debug!("{error:#}");
            }
        }
        let away = tempfile::Builder::new().prefix(".removed-").tempdir_in(&kept)?.keep();
        fs::rename(self.directory(), &away).with_context(|| format!("remove {}", self.directory().display()))?;
        scratch::try_remove(&away, &self.map()?)
    }

    fn save(&self) -> Result<()> {
        // Keeps off who clears tmp.
        let _writer = self.store.lock_shared()?;
        let path = self.directory().join("root.json");
        let place = tempfile::Builder::new().prefix("kept-").tempdir_in(self.store.root().join("tmp"))?;
        let new = place.path().join("root.json");
        write_record(&new, &self.record)?;
        fs::rename(&new, &path).with_context(|| path.display().to_string())?;
        Ok(File::open(self.directory())?.sync_all()?)
    }
}

/// Images of the store at `root` that kept roots stand on: they are as good as named.
///
/// # Errors
/// When a record cannot be read: then nobody knows what may be removed.
pub(crate) fn images(root: &Path) -> Result<Vec<(String, Digest)>> {
    let mut images = Vec::new();
    for name in names(root) {
        if let Base::Image { id, .. } = read_record(root, &name)?.base {
            images.push((name, id));
        }
    }
    Ok(images)
}

fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("kept")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_name(name)).collect()
}

/// A name that is one part of a path and not hidden; [`crate::spec`] checks the rest.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

/// Overlays and ID maps are decided by what is mounted where, so the path is the real one.
fn open_store(root: &Path) -> Result<Store> {
    Store::open(root)?;
    Store::open(&fs::canonicalize(root).with_context(|| root.display().to_string())?)
}

/// How an image is found again when its name has gone to another.
fn by_id(typed: &str, id: &Digest) -> String {
    match typed.split_once(':') {
        Some((store @ ("docker" | "podman"), _)) => format!("{store}:{}", id.hex()),
        _ => id.to_string(),
    }
}

fn directories(layer: &Layer) -> Result<Option<Vec<PathBuf>>> {
    let asked: Vec<&PathBuf> = layer.rootfs.iter().chain(&layer.layer).collect();
    let real = |path: &PathBuf| fs::canonicalize(path).with_context(|| path.display().to_string());
    if asked.is_empty() { Ok(None) } else { asked.into_iter().map(real).collect::<Result<_>>().map(Some) }
}

fn now() -> (u64, u32) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}

/// The directory of the kept root `name` in the store at `root`.
fn directory_of(root: &Path, name: &str) -> PathBuf {
    root.join("kept").join(name)
}

fn read_record(root: &Path, name: &str) -> Result<Record> {
    let path = directory_of(root, name).join("root.json");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}

fn write_record(path: &Path, record: &Record) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}
