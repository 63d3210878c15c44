//! A kept root made an image: the image that it stands on, with one more layer of what was written.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::json;

pub(crate) use super::change::Instruction;
use super::{Base, Kept, change::change};
use crate::error::{Result, fault};
use crate::image::digest::HashingWriter;
use crate::image::ingest::{self, Bytes, Config, Image, Layer};
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::store::Writer;
use crate::image::stream::Section;
use crate::image::{self, Arrived, clock, pack};
use crate::part::rootfs::INIT_FILES;
use crate::part::users;

/// What a commit is told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Names of the new image.
    pub(crate) names: Vec<Reference>,
    /// Changes of its config.
    pub(crate) changes: Vec<Instruction>,
    /// For its history.
    pub(crate) message: Option<String>,
    /// For its history.
    pub(crate) author: Option<String>,
}

impl Kept {
    /// Makes the image. The kept root stays, on the image that it stands on.
    ///
    /// # Errors
    /// When it stands on no image of this store, or a sandbox runs on it.
    pub(crate) fn commit(&self, told: Told, progress: &dyn Progress) -> Result<Arrived> {
        let refused = |why: &str, hint: String| fault(format!("{}: {why}", self.name)).hint(hint);
        let id = match &self.record.base {
            Base::Image { id, typed } if !image::is_foreign(typed) => id,
            Base::Image { .. } => {
                return Err(refused(
                    "it stands on an image in another store, to which nothing can be added",
                    "bring the image into ours first: docker save NAME | sandbox image import -".into(),
                )
                .into());
            }
            Base::Layers(_) => {
                let hint = "a directory becomes one with: sandbox image import DIR".into();
                return Err(refused("it stands on directories, not on an image", hint).into());
            }
            Base::Host => {
                let hint = format!("bring its changes onto the host with: sandbox apply {}", self.name);
                return Err(refused("it stands on the host's own files, not on an image", hint).into());
            }
        };
        let _lock = self.lock()?;
        // Nobody may take the image away meanwhile.
        let _image = self.image()?;
        let writer = self.store.writer()?;
        let (layer, diff_id) = self.pack(&writer)?;
        let config = self.config(id, diff_id, &told)?;
        let record = self.store.image(id)?;
        let manifest =
            record.manifests.first().ok_or_else(|| fault(format!("image {}: has no manifest", id.short())))?;
        let mut layers = Vec::new();
        for below in self.store.manifest(manifest)?.layers {
            layers.push(Layer { bytes: Bytes::Section(self.store.blob(&below.digest)?), blob: Some(below.digest) });
        }
        layers.push(Layer { bytes: Bytes::Section(Section::whole(Arc::new(layer))?), blob: None });
        let what = format!("commit of {}", self.name);
        let image = Image { what, config: Config::Given(config), manifest: None, layers, names: told.names };
        ingest::ingest(&writer, &image, ingest::unpackers(), progress)
    }

    /// The layer as a tar in a nameless file, and its digest.
    fn pack(&self, writer: &Writer) -> Result<(File, crate::image::digest::Digest)> {
        let file = writer.scratch()?;
        let upper = self.data().join("-/upper");
        if !upper.is_dir() && !self.data().join("-").is_dir() {
            return Err(fault(format!("{}: nothing has run on it yet", self.name)).into());
        }
        let status = users::inside_map(&self.map()?, || {
            pack::pack(&upper, &INIT_FILES.map(str::as_bytes), std::io::BufWriter::with_capacity(256 << 10, &file))
                .map(|()| 0)
        })?;
        if status != 0 {
            return Err(fault(format!("{}: what it changed could not be read", self.name)).into());
        }
        rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Start(0))?;
        let mut hashing = HashingWriter::new(std::io::sink());
        std::io::copy(&mut &file, &mut hashing)?;
        let (_, diff_id, _) = hashing.finish();
        Ok((file, diff_id))
    }

    /// The config of the image below, with one more layer and one more line of history.
    fn config(
        &self,
        below: &crate::image::digest::Digest,
        diff_id: crate::image::digest::Digest,
        told: &Told,
    ) -> Result<Vec<u8>> {
        let mut config: serde_json::Value = serde_json::from_slice(&self.store.document(below)?)?;
        let created = clock::rfc3339(SystemTime::now());
        change(&mut config, &told.changes);
        let mut history = json!({ "created": created, "created_by": format!("sandbox commit {}", self.name) });
        for (key, value) in [("comment", &told.message), ("author", &told.author)] {
            if let Some(value) = value {
                history[key] = json!(value);
            }
        }
        for (list, item) in [("/rootfs/diff_ids", json!(diff_id)), ("/history", history)] {
            match config.pointer_mut(list).and_then(serde_json::Value::as_array_mut) {
                Some(list) => list.push(item),
                // An image without a history is none the worse.
                None if list == "/history" => config["history"] = json!([item]),
                None => config["rootfs"] = json!({ "type": "layers", "diff_ids": [item] }),
            }
        }
        config["created"] = json!(created);
        Ok(serde_json::to_vec(&config)?)
    }
}
