//! An image on its way into the store, from whichever source: its layers are unpacked side by side, every digest that the
//! source claims is checked, and only when all is right and on the disk does the store get any of it.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use serde::Serialize;
use tempfile::TempPath;

use super::clock;
use super::config::ImageConfig;
use super::digest::{Digest, chain_ids};
use super::documents::{describe, make_config, make_manifest};
use super::manifest::Descriptor;
use super::pack;
use super::progress::{Joined, Meter, Progress};
use super::reference::Reference;
use super::store::{ImageRecord, LayerRecord, NewLayer, Store, Target, Writer};
use super::stream::{self, Chunks, Compression, Keep, Section, Seen};
use super::tar::Archive;
use super::unpack::{self, Limits, Marks, Unpacked};
use crate::error::{Result, fault};

/// Brings a blob into the store.
pub(crate) type Fetch<'a> = Box<dyn Fn(&Writer, &dyn Meter) -> Result<()> + Send + Sync + 'a>;

/// Where a layer's bytes are.
pub(crate) enum Bytes<'a> {
    /// In a file or a part of one.
    Section(Section),
    /// Nowhere yet: they are made by packing a directory.
    Pack(PathBuf),
    /// In a registry, `u64` of them.
    Remote(Fetch<'a>, u64),
}

/// A layer that is to come in.
pub(crate) struct Layer<'a> {
    /// Its bytes.
    pub(crate) bytes: Bytes<'a>,
    /// Their digest, as a manifest claims it.
    pub(crate) blob: Option<Digest>,
}

/// The config of an image that is to come in.
pub(crate) enum Config {
    /// As its source has it.
    Given(Vec<u8>),
    /// To be written, as its source has none: when it was made, RFC 3339, and from what.
    Made {
        /// For `created`.
        created: String,
        /// For the history.
        created_by: String,
    },
}

/// An image that is to come in.
pub(crate) struct Image<'a> {
    /// What errors call it.
    pub(crate) what: String,
    /// Its config.
    pub(crate) config: Config,
    /// The bytes of its manifest, where it has one.
    pub(crate) manifest: Option<Vec<u8>>,
    /// Its layers, lowest first.
    pub(crate) layers: Vec<Layer<'a>>,
    /// Its names.
    pub(crate) names: Vec<Reference>,
}

/// An image that came in.
#[derive(Debug, Serialize)]
pub(crate) struct Arrived {
    /// Its ID.
    pub(crate) id: Digest,
    /// Its manifest's digest.
    pub(crate) manifest: Digest,
    /// The names that stand for it now.
    pub(crate) names: Vec<Reference>,
    /// Its layers, lowest first.
    pub(crate) layers: usize,
    /// Layers among them that were unpacked now.
    pub(crate) unpacked: usize,
    /// Device nodes and attributes left out for want of privilege.
    pub(crate) skipped: u64,
}

/// A layer whose bytes have passed.
struct Passed {
    seen: Seen,
    file: Option<TempPath>,
    tree: Option<(NewLayer, Unpacked)>,
}

/// What the workers share.
struct Work<'a> {
    writer: &'a Writer,
    image: &'a Image<'a>,
    diff_ids: Option<Vec<Digest>>,
    chains: Option<Vec<Digest>>,
    known: std::collections::BTreeSet<(Digest, Digest)>,
    marks: Marks,
    limits: Limits,
    failed: AtomicBool,
    progress: &'a dyn Progress,
}

/// Brings `image` into the store that `writer` has open. `workers` layers are worked on at once.
pub(crate) fn ingest(writer: &Writer, image: &Image<'_>, workers: usize, progress: &dyn Progress) -> Result<Arrived> {
    let config = match &image.config {
        Config::Given(bytes) => Some(ImageConfig::parse(bytes, &image.what)?),
        Config::Made { .. } => None,
    };
    let diff_ids = config.map(|config| config.rootfs.diff_ids);
    if let Some(diff_ids) = &diff_ids
        && diff_ids.len() != image.layers.len()
    {
        return Err(fault(format!(
            "{}: its config speaks of {} layers, there are {}",
            image.what,
            diff_ids.len(),
            image.layers.len()
        ))
        .into());
    }
    let limits = Limits { bytes: writer.store().room(), ..Limits::default() };
    let chains = diff_ids.as_deref().map(chain_ids);
    let work = Work {
        writer,
        image,
        diff_ids,
        chains,
        known: writer.store().known_layers()?,
        marks: writer.marks()?,
        limits,
        failed: AtomicBool::new(false),
        progress,
    };
    let passed = work.all(workers)?;
    work.commit(passed)
}

/// How many layers to unpack at once: each has a thread that decompresses and one that writes.
pub(crate) fn unpackers() -> usize {
    thread::available_parallelism().map_or(2, usize::from).max(2)
}

impl Work<'_> {
    /// Runs every layer past, several at once, each thread taking the next that nobody has. The first error wins and
    /// stops the others.
    fn all(&self, workers: usize) -> Result<Vec<Passed>> {
        let count = self.image.layers.len();
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Passed>>> = Mutex::new((0..count).map(|_| None).collect());
        let first_error: Mutex<Option<anyhow::Error>> = Mutex::new(None);
        let fail = |error| {
            // Those that stop because of this one have an error too, later.
            lock(&first_error).get_or_insert(error);
            self.failed.store(true, Ordering::Relaxed);
        };
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count || self.failed.load(Ordering::Relaxed) {
                    return;
                }
                match self.one(at) {
                    Ok(passed) => lock(&results)[at] = Some(passed),
                    Err(error) => return fail(error),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..workers.min(count) {
                if let Err(error) = thread::Builder::new().spawn_scoped(scope, work) {
                    return fail(anyhow::Error::new(error).context("start a layer's thread"));
                }
            }
        });
        if let Some(error) = first_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results
            .into_iter()
            .map(|passed| passed.ok_or_else(|| fault(format!("{}: a layer's thread was lost", self.image.what)).into()))
            .collect()
    }

    /// Runs one layer past.
    fn one(&self, at: usize) -> Result<Passed> {
        let layer = &self.image.layers[at];
        let diff = self.diff_ids.as_ref().map(|ids| ids[at]);
        let chain = self.chains.as_ref().map(|chains| chains[at]);
        let store = self.writer.store();
        let have_tree = chain.is_some_and(|chain| store.has_layer(&chain));
        let label = layer.blob.or(diff).map_or_else(|| "layer".to_string(), |digest| digest.short());
        if let (Some(blob), Some(diff_id), true) = (layer.blob, diff, have_tree)
            && store.has_blob(&blob)
            && self.known.contains(&(diff_id, blob))
        {
            let section = store.blob(&blob)?;
            self.progress.begin(&label, "unpack", 0).done("already there");
            let compression = Compression::detect(&section.peek(8)?);
            return Ok(Passed {
                seen: Seen { blob, blob_size: section.length(), compression, diff_id },
                file: None,
                tree: None,
            });
        }
        let name = format!("{}: layer {} of {}", self.image.what, at + 1, self.image.layers.len());
        let passed = self.pass(layer, &label, have_tree, store).map_err(|error| context(&name, error))?;
        for (expected, found, what) in
            [(layer.blob, passed.seen.blob, "bytes have"), (diff, passed.seen.diff_id, "tar has")]
        {
            if expected.is_some_and(|expected| expected != found) {
                let expected = expected.map_or_else(String::new, |digest| digest.to_string());
                return Err(fault(format!("{name}: its {what} the digest {found}, not {expected}")).into());
            }
        }
        Ok(passed)
    }

    fn pass(&self, layer: &Layer<'_>, label: &str, have_tree: bool, store: &Store) -> Result<Passed> {
        if let Bytes::Remote(fetch, size) = &layer.bytes
            && layer.blob.is_none_or(|blob| !store.has_blob(&blob))
        {
            let meter = Joined::new(self.progress.begin(label, "download", *size), &self.failed);
            fetch(self.writer, &meter)?;
            meter.done("downloaded");
        }
        match (&layer.bytes, &layer.blob) {
            (Bytes::Pack(directory), _) => {
                let meter = Joined::new(self.progress.begin(label, "pack", 0), &self.failed);
                pack::stream(directory, |source| self.stream(source, true, false, have_tree, &meter))
            }
            (_, Some(blob)) if store.has_blob(blob) => self.section(store.blob(blob)?, label, true, have_tree),
            (Bytes::Section(section), _) => self.section(section.clone(), label, false, have_tree),
            (Bytes::Remote(..), _) => Err(fault("was not downloaded").into()),
        }
    }

    fn section(&self, section: Section, label: &str, have_blob: bool, have_tree: bool) -> Result<Passed> {
        let meter = Joined::new(
            self.progress.begin(label, if have_tree { "check" } else { "unpack" }, section.length()),
            &self.failed,
        );
        // No layer's media type knows xz.
        let repack = Compression::detect(&section.peek(8)?) == Compression::Xz;
        self.stream(section, repack, have_blob, have_tree, &meter)
    }

    fn stream(
        &self,
        source: impl Read + Send,
        repack: bool,
        have_blob: bool,
        have_tree: bool,
        meter: &dyn Meter,
    ) -> Result<Passed> {
        let (keep, file) = if have_blob {
            (Keep::Nothing, None)
        } else {
            let file = self.writer.new_file()?;
            let copy = file.as_file().try_clone()?;
            (if repack { Keep::Repack(copy) } else { Keep::Copy(copy) }, Some(file.into_temp_path()))
        };
        let (tree, seen) =
            stream::run(
                source,
                keep,
                meter,
                |chunks| {
                    if have_tree { Ok(None) } else { self.unpack(chunks).map(Some) }
                },
            )?;
        meter.done(&tree.as_ref().map_or_else(
            || "already unpacked".to_string(),
            |(_, unpacked)| format!("unpacked, {} members", unpacked.tally.members),
        ));
        Ok(Passed { seen, file, tree })
    }

    fn unpack(&self, chunks: &mut Chunks) -> Result<(NewLayer, Unpacked)> {
        let layer = self.writer.new_layer()?;
        let unpacked = unpack::unpack(&mut Archive::new(chunks), &layer.diff(), self.marks, &self.limits)?;
        // What a failed command left in a pipe, most likely. A layer of an image with a config may well be empty.
        if unpacked.tally.members == 0 && matches!(self.image.config, Config::Made { .. }) {
            return Err(fault("there is nothing in it").into());
        }
        Ok((layer, unpacked))
    }

    /// Lets directories that a layer only implies be what they are in the layers below, which are all there now.
    fn inherit(&self, passed: &[Passed], chains: &[Digest]) -> Result<()> {
        let mut below: Vec<PathBuf> = Vec::with_capacity(passed.len());
        for (at, layer) in passed.iter().enumerate() {
            let Some((tree, unpacked)) = &layer.tree else {
                below.push(self.writer.store().layer_path(&chains[at]).join("diff"));
                continue;
            };
            let name = || format!("{}: layer {} of {}", self.image.what, at + 1, passed.len());
            unpack::inherit(&tree.diff(), &unpacked.implied, &below, self.marks)
                .map_err(|error| error.context(name()))?;
            below.push(tree.diff());
        }
        Ok(())
    }

    /// Gives everything its place: contents first, then what refers to them.
    fn commit(&self, passed: Vec<Passed>) -> Result<Arrived> {
        let writer = self.writer;
        let diff_ids: Vec<Digest> = passed.iter().map(|layer| layer.seen.diff_id).collect();
        let chains = chain_ids(&diff_ids);
        self.inherit(&passed, &chains)?;
        writer.sync()?;
        let descriptors: Vec<Descriptor> = passed.iter().map(|layer| describe(&layer.seen)).collect();
        let mut arrived = Arrived {
            id: Digest::of(b""),
            manifest: Digest::of(b""),
            names: self.image.names.clone(),
            layers: passed.len(),
            unpacked: 0,
            skipped: 0,
        };
        for (at, layer) in passed.into_iter().enumerate() {
            if let Some(file) = layer.file {
                writer.commit_blob(file, &layer.seen.blob)?;
            }
            if let Some((tree, unpacked)) = layer.tree {
                let tally = unpacked.tally;
                arrived.skipped += tally.skipped_devices + tally.skipped_xattrs;
                let parent = at.checked_sub(1).map(|below| chains[below]);
                let new = writer.commit_layer(
                    tree,
                    &chains[at],
                    &LayerRecord { diff_id: diff_ids[at], parent, marks: self.marks, tally },
                )?;
                arrived.unpacked += usize::from(new);
            }
        }
        writer.settle()?;
        let config = match &self.image.config {
            Config::Given(bytes) => bytes.clone(),
            Config::Made { created, created_by } => make_config(&diff_ids, created, created_by)?,
        };
        arrived.id = writer.put_document(&config)?;
        let manifest = match &self.image.manifest {
            Some(bytes) => bytes.clone(),
            None => make_manifest(arrived.id, config.len() as u64, descriptors)?,
        };
        arrived.manifest = writer.put_document(&manifest)?;
        let parsed = ImageConfig::parse(&config, &self.image.what)?;
        writer.settle()?;
        writer.put_image(&ImageRecord::new(
            arrived.id,
            &parsed,
            arrived.manifest,
            clock::rfc3339(SystemTime::now()),
        ))?;
        for name in &self.image.names {
            writer.put_reference(name, &Target { image: arrived.id, manifest: arrived.manifest })?;
        }
        Ok(arrived)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Puts a name in front of an error, keeping its hint.
fn context(name: &str, error: anyhow::Error) -> anyhow::Error {
    error.context(name.to_string())
}
