//! From what a person types behind `--image` to what a run needs.

use std::path::PathBuf;

use super::config::ImageConfig;
use super::digest::Digest;
use super::inplace::{docker, podman};
use super::store::{Lease, Store};
use super::unpack::Marks;
use crate::error::Result;

/// An image ready to be run.
#[derive(Debug)]
pub(crate) struct ResolvedImage {
    /// What errors and lists call it: its short name, or the front of its ID.
    pub(crate) name: String,
    /// Its ID.
    pub(crate) id: Digest,
    /// How it wants to be run.
    pub(crate) config: ImageConfig,
    /// Its layers' directories, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// Where the layers have overlayfs' marks: with [`Marks::User`] the overlay needs the option `userxattr`.
    pub(crate) marks: Marks,
    /// Keeps the image in the store. It must live as long as the sandbox does.
    pub(crate) lease: Lease,
}

/// Where images are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    /// Our own store.
    pub(crate) store: PathBuf,
    /// Docker's, for `docker:NAME`.
    pub(crate) docker: PathBuf,
}

impl Roots {
    /// Where they are on this machine for this user, unless `store` or `docker` say otherwise.
    pub(crate) fn new(store: Option<PathBuf>, docker: Option<PathBuf>) -> Result<Roots> {
        Ok(Roots { store: Store::path(store)?, docker: docker.unwrap_or_else(docker::default_root) })
    }
}

/// Finds an image: `docker:NAME` in Docker's store, `podman:NAME` in podman's, anything else (a name, `name@sha256:…`, an
/// image ID or its first digits) in ours.
///
/// An image that is itself called `docker` is written `library/docker:TAG`.
pub(crate) fn resolve(typed: &str, roots: &Roots) -> Result<ResolvedImage> {
    if let Some(name) = typed.strip_prefix("docker:") {
        return docker::resolve(name, &roots.docker);
    }
    if let Some(name) = typed.strip_prefix("podman:") {
        return podman::resolve(name, &podman::default_root());
    }
    Store::open(&roots.store)?.resolve(typed)
}

/// Whether what was typed is an image in somebody else's store, which nothing can be added to.
pub(crate) fn is_foreign(typed: &str) -> bool {
    typed.starts_with("docker:") || typed.starts_with("podman:")
}

impl Store {
    /// Finds an image of this store and keeps it from being removed.
    pub(crate) fn resolve(&self, typed: &str) -> Result<ResolvedImage> {
        let lock = self.lock_shared()?;
        let (name, target) = self.find(typed)?;
        let lease = self.lease(&target.image, &lock)?;
        let record = self.image(&target.image)?;
        let marks = match record.chain_ids.last() {
            Some(chain) => self.layer(chain)?.marks,
            None => Marks::Trusted,
        };
        Ok(ResolvedImage {
            name: name.map_or_else(|| target.image.short(), |name| name.familiar()),
            id: target.image,
            config: self.config(&target.image)?,
            layers: record.chain_ids.iter().map(|chain| self.layer_path(chain).join("diff")).collect(),
            marks,
            lease,
        })
    }
}
