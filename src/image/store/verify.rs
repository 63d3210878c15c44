//! Looking whether a store is what it says it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;

use serde::Serialize;

use super::super::digest::{Digest, Hasher, chain_ids};
use super::super::progress::{Meter, Progress};
use super::super::stream::{self, Keep};
use super::super::tar::Archive;
use super::super::unpack;
use super::{ImageRecord, Store, StoreLock};
use crate::error::{Result, fault};

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Images looked at.
    pub(crate) images: usize,
    /// Unpacked layers compared with their archives.
    pub(crate) layers: usize,
    /// Blobs hashed.
    pub(crate) blobs: usize,
    /// What is wrong, one line each; none is good.
    pub(crate) problems: Vec<String>,
}

impl Store {
    /// Hashes every blob, follows every name and record, and compares every unpacked layer, member by member, with the
    /// archive that it came from. Reads all, changes nothing.
    pub(crate) fn verify(&self, _lock: &StoreLock, progress: &dyn Progress) -> Result<Report> {
        let mut report = Report::default();
        let good = self.verify_blobs(&mut report, progress)?;
        let records = self.verify_images(&mut report, &good)?;
        self.verify_references(&mut report, &records)?;
        self.verify_layers(&mut report, &records, &good, progress)?;
        Ok(report)
    }

    /// Gives the blobs whose contents are what their names say.
    fn verify_blobs(&self, report: &mut Report, progress: &dyn Progress) -> Result<BTreeSet<Digest>> {
        let mut good = BTreeSet::new();
        for digest in self.digests_in("blobs/sha256")? {
            report.blobs += 1;
            let path = self.blob_path(&digest);
            let size = std::fs::metadata(&path).map_or(0, |stat| stat.len());
            let meter = progress.begin(&digest.short(), "hash", size);
            match File::open(&path).and_then(|file| hash(file, &*meter)) {
                Ok(found) if found == digest => {
                    good.insert(digest);
                    meter.done("right");
                }
                Ok(found) => {
                    report.problems.push(format!("blob {digest}: its contents have the digest {found}"));
                    meter.done("WRONG");
                }
                Err(error) => {
                    report.problems.push(format!("blob {digest}: {error}"));
                    meter.done("UNREADABLE");
                }
            }
        }
        Ok(good)
    }

    /// Gives the records that can be read.
    fn verify_images(&self, report: &mut Report, good: &BTreeSet<Digest>) -> Result<BTreeMap<Digest, ImageRecord>> {
        let mut records = BTreeMap::new();
        for id in self.images()? {
            report.images += 1;
            match self.verify_image(&id, good) {
                Ok((record, problems)) => {
                    report.problems.extend(problems);
                    records.insert(id, record);
                }
                Err(error) => report.problems.push(format!("image {}: {error:#}", id.short())),
            }
        }
        Ok(records)
    }

    fn verify_image(&self, id: &Digest, good: &BTreeSet<Digest>) -> Result<(ImageRecord, Vec<String>)> {
        let record = self.image(id)?;
        let mut problems = Vec::new();
        let mut wrong = |what: String| problems.push(format!("image {}: {what}", id.short()));
        if record.id != *id {
            wrong(format!("its record speaks of {}", record.id));
        }
        if good.contains(id) {
            let config = self.config(id)?;
            if config.rootfs.diff_ids != record.diff_ids || chain_ids(&record.diff_ids) != record.chain_ids {
                wrong("its record lists other layers than its config".into());
            }
        } else {
            wrong("its config is missing or damaged".into());
        }
        for digest in &record.manifests {
            if !good.contains(digest) {
                wrong(format!("its manifest {digest} is missing or damaged"));
                continue;
            }
            let manifest = self.manifest(digest)?;
            if manifest.config.digest != *id || manifest.layers.len() != record.diff_ids.len() {
                wrong(format!("its manifest {digest} is another image's"));
            }
            for layer in manifest.layers.iter().filter(|layer| !good.contains(&layer.digest)) {
                wrong(format!("its blob {} is missing or damaged", layer.digest));
            }
        }
        for chain in record.chain_ids.iter().filter(|chain| !self.has_layer(chain)) {
            wrong(format!("its layer {chain} is missing"));
        }
        Ok((record, problems))
    }

    fn verify_references(&self, report: &mut Report, records: &BTreeMap<Digest, ImageRecord>) -> Result<()> {
        for (name, target) in self.references()? {
            match records.get(&target.image) {
                None => report.problems.push(format!(
                    "{}: names the image {}, which is not there",
                    name.familiar(),
                    target.image.short()
                )),
                Some(record) if !record.manifests.contains(&target.manifest) => {
                    report.problems.push(format!(
                        "{}: names the manifest {}, which its image does not have",
                        name.familiar(),
                        target.manifest
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn verify_layers(
        &self,
        report: &mut Report,
        records: &BTreeMap<Digest, ImageRecord>,
        good: &BTreeSet<Digest>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let blobs = self.layer_blobs(records, good);
        let needed: BTreeSet<Digest> = records.values().flat_map(|record| record.diff_ids.iter().copied()).collect();
        for chain in self.digests_in("layers")? {
            report.layers += 1;
            match self.verify_layer(&chain, &blobs, &needed, progress) {
                Ok(lines) => {
                    report.problems.extend(lines.into_iter().map(|line| format!("layer {}: {line}", chain.short())))
                }
                Err(error) => report.problems.push(format!("layer {}: {error:#}", chain.short())),
            }
        }
        Ok(())
    }

    /// A good blob for each diff ID.
    fn layer_blobs(
        &self,
        records: &BTreeMap<Digest, ImageRecord>,
        good: &BTreeSet<Digest>,
    ) -> BTreeMap<Digest, Digest> {
        let mut blobs = BTreeMap::new();
        for record in records.values() {
            for manifest in record.manifests.iter().filter_map(|digest| self.manifest(digest).ok()) {
                let layers =
                    record.diff_ids.iter().zip(&manifest.layers).filter(|(_, layer)| good.contains(&layer.digest));
                blobs.extend(layers.map(|(diff, layer)| (*diff, layer.digest)));
            }
        }
        blobs
    }

    fn verify_layer(
        &self,
        chain: &Digest,
        blobs: &BTreeMap<Digest, Digest>,
        needed: &BTreeSet<Digest>,
        progress: &dyn Progress,
    ) -> Result<Vec<String>> {
        let record = self.layer(chain)?;
        let expected = match &record.parent {
            None => record.diff_id,
            Some(parent) => Digest::of(format!("{parent} {}", record.diff_id).as_bytes()),
        };
        if expected != *chain {
            return Err(fault("its record gives it another chain ID").into());
        }
        let Some(blob) = blobs.get(&record.diff_id) else {
            if !needed.contains(&record.diff_id) {
                // An import was killed after this layer, before its image: nobody runs it, and gc takes it away.
                return Ok(Vec::new());
            }
            return Err(fault("there is no archive to compare it with").into());
        };
        let source = self.blob(blob)?;
        let meter = progress.begin(&chain.short(), "compare", source.length());
        let diff = self.layer_path(chain).join("diff");
        let (mut lines, seen) = stream::run(source, Keep::Nothing, &*meter, |chunks| {
            unpack::compare(&mut Archive::new(chunks), &diff, record.marks, &record.tally)
        })?;
        if seen.diff_id != record.diff_id {
            lines.push(format!("its archive has the diff ID {}, not {}", seen.diff_id, record.diff_id));
        }
        meter.done(if lines.is_empty() { "right" } else { "DIFFERS" });
        Ok(lines)
    }
}

fn hash(mut file: File, meter: &dyn Meter) -> std::io::Result<Digest> {
    let mut buffer = vec![0u8; 256 << 10];
    let mut hasher = Hasher::default();
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish().0);
        }
        hasher.update(&buffer[..count]);
        meter.advance(count as u64);
    }
}
