//! Images: where they come from, how they are kept, and what a run needs of them.
//!
//! # The store
//!
//! A plain directory, `/var/lib/sandbox` for root, that can be walked with `ls` and `cat`. It is the walk from a name to
//! directories, each step one file:
//!
//! ```text
//! version                                   "1": the layout described here
//! references/HOST/REPOSITORY:TAG            {"image": config digest, "manifest": manifest digest}
//! images/IMAGE-ID/image.json                its manifests, diff IDs and chain IDs, lowest layer first
//! images/IMAGE-ID/in-use                    locked (flock, shared) by whoever runs on the image
//! blobs/sha256/DIGEST                       configs, manifests and compressed layers, byte for byte as they came in
//! layers/CHAIN-ID/diff/                     an unpacked layer, ready to be a lower directory of overlayfs
//! layers/CHAIN-ID/layer.json                its diff ID, the layer below it, what is in it
//! kept/NAME/                                what sandboxes have written and keep, see [`crate::kept`]
//! lock                                      locked (flock): shared by who adds or looks, exclusive by who removes
//! tmp/                                      what is being made; left-overs of killed writers
//! ```
//!
//! An image's ID is the digest of its config, as Docker has it. A layer is unpacked once for each chain ID, the digest of
//! the stack that it tops (OCI image spec, config.md). The store is mode 700: it has set-uid files of strangers in it.
//!
//! Everything new is made under `tmp`, put onto the disk and then renamed into place, contents before what refers to
//! them: a writer that is killed leaves a valid store, and its left-overs are removed by the next writer that finds
//! itself alone, or by `gc`. Removal needs the exclusive lock, so nothing goes away under a writer, and spares what has a
//! name or a lease.
//!
//! A new source of layers (a commit of what a sandbox changed, say) packs a directory with [`pack`], hands it to
//! [`ingest`] as one more layer above those of an image, and gets the rest from there.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod digest;
mod documents;
pub(crate) mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub(crate) mod ingest;
pub(crate) mod inplace;
mod layer;
pub(crate) mod lookup;
pub(crate) mod manifest;
pub(crate) mod pack;
pub(crate) mod progress;
pub(crate) mod pull;
mod readers;
pub(crate) mod reference;
mod resolve;
pub(crate) mod store;
pub(crate) mod stream;
mod tar;
#[cfg(test)]
mod testing;
pub(crate) mod unpack;
pub(crate) mod view;

use std::path::Path;

use crate::error::Result;

pub(crate) use ingest::Arrived;
pub(crate) use layer::under;
pub(crate) use readers::Wanted;
pub(crate) use resolve::{ResolvedImage, Roots, is_foreign, resolve};
pub(crate) use unpack::Marks;

/// Brings the images that a file or directory has into the store.
pub(crate) fn import(
    store: &store::Store,
    source: &Path,
    wanted: &Wanted,
    progress: &dyn progress::Progress,
) -> Result<Vec<Arrived>> {
    let writer = store.writer()?;
    let images = readers::open(source, wanted, &writer, progress)?;
    images.iter().map(|image| ingest::ingest(&writer, image, ingest::unpackers(), progress)).collect()
}
