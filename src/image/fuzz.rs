//! Any bytes as what an image is made of.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::config::{ImageConfig, RunConfig};
use super::manifest::{Index, Manifest, Platform};
use super::reference::Reference;
use super::tar::{Archive, BLOCK, Member, Writer};
use super::unpack::{self as unpacking, Limits, Marks};

/// A document that is read is, written again, the same document; nothing else is asked of it than what is in it.
pub(crate) fn documents(bytes: &[u8]) {
    if let Ok(index) = Index::parse(bytes, "x") {
        let text = written(&index);
        let again = Index::parse(&text, "x").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(written(&again), text);
        match index.pick(&Platform::this_machine(), "x") {
            Ok(picked) => assert!(index.manifests.iter().any(|entry| entry.digest == picked.digest)),
            Err(error) => assert!(error.to_string().starts_with("x: ")),
        }
    }
    if let Ok(manifest) = Manifest::parse(bytes, "x") {
        let text = written(&manifest);
        let again = Manifest::parse(&text, "x").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(written(&again), text);
    }
    let Ok(config) = ImageConfig::parse(bytes, "x") else { return };
    let again: RunConfig = serde_json::from_slice(&written(&config.config)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again, config.config);
    match config.config.argv(None, &[], "x") {
        Ok(words) => assert_eq!(words.len(), config.config.entrypoint.len() + config.config.cmd.len()),
        Err(_) => assert!(config.config.entrypoint.is_empty() && config.config.cmd.is_empty()),
    }
    let platform = config.platform().to_string();
    assert!(Platform::parse(&platform).map_or(true, |again| again.os == config.os || config.os.contains('/')));
}

fn written(document: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_else(|error| panic!("{error}"))
}

/// A name that is read is, written in full or as Docker shows it, the same name; its file stays below the directory of names.
pub(crate) fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let of_file = Reference::from_file_name(text);
    for name in text.parse::<Reference>().into_iter().chain([of_file]) {
        for form in [name.to_string(), name.familiar()] {
            let again = form.parse::<Reference>();
            assert!(again.as_ref().is_ok_and(|again| *again == name), "{text:?} as {form:?}: {again:?}");
        }
        let file = name.file();
        assert!(file.components().all(|part| matches!(part, Component::Normal(_))), "{file:?}");
        assert!(file.components().all(|part| part.as_os_str().len() <= 255), "{file:?}");
    }
}

/// Members of an archive with their data: each piece and where it is in the file.
type Members = Vec<(Member, Vec<(u64, Vec<u8>)>)>;

fn members(bytes: &[u8]) -> crate::error::Result<Members> {
    let mut archive = Archive::new(bytes);
    let mut members = Members::new();
    while let Some(member) = archive.next()? {
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut count = 0;
        archive.data(|offset, piece| {
            count += piece.len() as u64;
            pieces.push((offset, piece.to_vec()));
            Ok(())
        })?;
        assert_eq!(count, member.stored, "{member:?}");
        assert!(archive.position() <= bytes.len() as u64);
        members.push((member, pieces));
    }
    Ok(members)
}

/// An archive that is read to its end is, written again, the same members with the same data.
pub(crate) fn tar(bytes: &[u8]) {
    let Ok(read) = members(&mended(bytes)) else { return };
    let mut writer = Writer::new(Vec::new());
    for (member, pieces) in &read {
        let written = writer.member(member);
        let written = pieces.iter().fold(written, |written, (_, piece)| written.and_then(|()| writer.data(piece)));
        written.unwrap_or_else(|error| panic!("{member:?}: {error}"));
    }
    let written = writer.finish().unwrap_or_else(|error| panic!("{error}"));
    let again = members(&written).unwrap_or_else(|error| panic!("{error}: {read:?}"));
    assert_eq!(format!("{again:?}"), format!("{read:?}"));
}

/// The bytes, with a right checksum in each block that says it is a header: else nothing but checksums would be found to be wrong.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block[257..].starts_with(b"ustar") {
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// An archive becomes a tree that compares equal to it, or an error; nothing beside the tree changes.
pub(crate) fn unpack(bytes: &[u8]) {
    let bytes = mended(bytes);
    let base = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let root = base.path().join("root");
    let made = std::fs::create_dir(&root).and_then(|()| std::fs::write(base.path().join("beside"), "x"));
    made.unwrap_or_else(|error| panic!("{error}"));
    let limits = Limits { members: 64, devices: 4, bytes: 1 << 16, file: 1 << 20, ..Limits::default() };
    let marks = std::fs::File::open(&root).map(|root| Marks::possible(std::os::fd::AsFd::as_fd(&root)));
    let marks = marks.unwrap_or_else(|error| panic!("{error}"));
    if let Ok(unpacked) = unpacking::unpack(&mut Archive::new(bytes.as_slice()), &root, marks, &limits) {
        let found = unpacking::compare(&mut Archive::new(bytes.as_slice()), &root, marks, &unpacked.tally);
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        assert!(found.is_empty(), "{found:?}");
    }
    beside_is_untouched(base.path());
}

fn beside_is_untouched(base: &Path) {
    let entries = std::fs::read_dir(base).unwrap_or_else(|error| panic!("{error}"));
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().as_bytes().to_vec()).collect();
    names.sort();
    assert_eq!(names, [b"beside".to_vec(), b"root".to_vec()]);
    assert!(std::fs::read(base.join("beside")).is_ok_and(|text| text == b"x"));
}
