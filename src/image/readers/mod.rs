//! What a file or directory on this machine has to offer: which format it is in, and the images in it.
//!
//! The format is found by looking, never by the file's name:
//! - a directory with `oci-layout` in it is an OCI layout (OCI image spec, image-layout.md), any other a root file system;
//! - a tar with `oci-layout` is the same in a tar (what `docker save` writes since version 25), one with `manifest.json` a
//!   docker archive (what it wrote before, and what podman and skopeo write), any other a root file system;
//! - around each of these may be gzip, zstd or xz.

mod docker_archive;
mod files;
mod oci_layout;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::clock;
use super::ingest::{Bytes, Config, Image, Layer};
use super::manifest::Platform;
use super::progress::Progress;
use super::reference::Reference;
use super::store::Writer;
use super::stream::{Compression, Section};
use crate::error::{Result, fault};
use files::{Files, Looked};

/// What the caller wants of a source.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The name to give, instead of those that the source brings.
    pub(crate) tag: Option<Reference>,
    /// The machine that an image with several variants is to be for.
    pub(crate) platform: Platform,
}

/// The images at `path` (`-` is standard input).
pub(crate) fn open(
    path: &Path,
    wanted: &Wanted,
    writer: &Writer,
    progress: &dyn Progress,
) -> Result<Vec<Image<'static>>> {
    let named = |error: io::Error| fault(format!("{}: {error}", path.display()));
    let source = Source { path, wanted };
    if path.as_os_str() == "-" {
        progress.note("reading standard input");
        let file = spool(io::stdin().lock(), writer).map_err(named)?;
        return source.file(Section::whole(Arc::new(file)).map_err(named)?, SystemTime::now(), writer);
    }
    let file = File::open(path).map_err(named)?;
    let stat = file.metadata().map_err(named)?;
    let changed = stat.modified().map_err(named)?;
    if stat.is_dir() {
        return source.directory(changed);
    }
    if !stat.is_file() {
        // A pipe, a process substitution: read once, so that it can be read again.
        let file = spool(file, writer).map_err(named)?;
        return source.file(Section::whole(Arc::new(file)).map_err(named)?, SystemTime::now(), writer);
    }
    source.file(Section::whole(Arc::new(file)).map_err(named)?, changed, writer)
}

struct Source<'a> {
    path: &'a Path,
    wanted: &'a Wanted,
}

impl Source<'_> {
    fn what(&self) -> String {
        self.path.display().to_string()
    }

    /// The name for what brings none.
    fn fallback(&self) -> Reference {
        match self.path.file_name().and_then(|name| name.to_str()) {
            Some(name) => Reference::from_file_name(name),
            None => Reference::from_file_name("image"),
        }
    }

    fn directory(&self, changed: SystemTime) -> Result<Vec<Image<'static>>> {
        if self.path.join("oci-layout").is_file() {
            return self.check(oci_layout::images(
                &Files::directory(self.path),
                &self.what(),
                &self.fallback(),
                &self.wanted.platform,
            )?);
        }
        let layer = Layer { bytes: Bytes::Pack(self.path.to_path_buf()), blob: None };
        self.check(vec![self.root_file_system(layer, changed)])
    }

    fn file(&self, section: Section, changed: SystemTime, writer: &Writer) -> Result<Vec<Image<'static>>> {
        let named = |error: io::Error| fault(format!("{}: {error}", self.what()));
        let compression = Compression::detect(&section.peek(8).map_err(named)?);
        let plain = if compression == Compression::None {
            section.clone()
        } else {
            let decoder = || compression.decoder(BufReader::with_capacity(256 << 10, section.clone())).map_err(named);
            let looked =
                files::look(files::Streamed::new(decoder()?), true).map_err(|error| error.context(self.what()))?;
            if matches!(looked, Looked::RootFileSystem) {
                return self
                    .check(vec![self.root_file_system(Layer { bytes: Bytes::Section(section), blob: None }, changed)]);
            }
            let file = spool(decoder()?, writer).map_err(named)?;
            Section::whole(Arc::new(file)).map_err(named)?
        };
        let looked = files::look(BufReader::with_capacity(4096, plain.clone()), false)
            .map_err(|error| error.context(self.what()))?;
        match looked {
            Looked::OciLayout(index) => self.check(oci_layout::images(
                &Files::archive(plain, index),
                &self.what(),
                &self.fallback(),
                &self.wanted.platform,
            )?),
            Looked::DockerArchive(index) => {
                self.check(docker_archive::images(&Files::archive(plain, index), &self.what(), &self.fallback())?)
            }
            Looked::RootFileSystem | Looked::Undecided => {
                self.check(vec![self.root_file_system(Layer { bytes: Bytes::Section(section), blob: None }, changed)])
            }
        }
    }

    /// A tree without any description. Its dates are the source's, so that the same file gives the same image.
    fn root_file_system(&self, layer: Layer<'static>, changed: SystemTime) -> Image<'static> {
        let name = self.path.file_name().map_or_else(|| "-".into(), |name| name.to_string_lossy().into_owned());
        let config =
            Config::Made { created: clock::rfc3339(changed), created_by: format!("sandbox image import {name}") };
        Image { what: self.what(), config, manifest: None, layers: vec![layer], names: vec![self.fallback()] }
    }

    /// Gives the images the name that the caller wants.
    fn check(&self, mut images: Vec<Image<'static>>) -> Result<Vec<Image<'static>>> {
        if images.is_empty() {
            return Err(fault(format!("{}: has no image in it", self.what())).into());
        }
        if let Some(tag) = &self.wanted.tag {
            if images.len() > 1 {
                return Err(fault(format!(
                    "{}: has {} images in it, one --tag does not name them",
                    self.what(),
                    images.len()
                ))
                .hint("import it without --tag, then: sandbox image tag")
                .into());
            }
            images[0].names = vec![tag.clone()];
        }
        Ok(images)
    }
}

/// Copies what can be read only once into a nameless file of the store.
fn spool(mut source: impl Read, writer: &Writer) -> io::Result<File> {
    let mut file = writer.scratch().map_err(io::Error::other)?;
    io::copy(&mut source, &mut file)?;
    Ok(file)
}
