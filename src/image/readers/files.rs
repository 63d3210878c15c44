//! The files of a layout, in a directory or in a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::digest::Digest;
use super::super::manifest::DOCUMENT_LIMIT;
use super::super::stream::Section;
use super::super::tar::{Archive, Input, Kind, Member, show};
use crate::error::{Result, fault};

/// The most files that a layout in a tar may have.
const FILE_LIMIT: usize = 1 << 20;

/// Where a tar has its files.
pub(super) type Index = HashMap<Vec<u8>, Place>;

/// One file of a tar.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// At an offset, with a length.
    Data(u64, u64),
    /// At another name: older `docker save` writes a layer once and links to it.
    Link(Vec<u8>),
}

/// What a tar turned out to be.
#[derive(Debug)]
pub(super) enum Looked {
    /// An OCI layout.
    OciLayout(Index),
    /// A docker archive.
    DockerArchive(Index),
    /// Neither.
    RootFileSystem,
    /// Not to be told from its beginning.
    Undecided,
}

/// Looks at the members of a tar. `beginning` is for streams that cannot skip: it stops at the first member that is not
/// clearly a root file system's.
pub(super) fn look(input: impl Input, beginning: bool) -> Result<Looked> {
    let mut archive = Archive::new(input);
    let mut index = Index::new();
    while let Some(member) = archive.next()? {
        let Some(name) = clean(&member.path) else {
            continue;
        };
        if !may_be_a_layouts(&name, &member) {
            return Ok(Looked::RootFileSystem);
        }
        if beginning {
            return Ok(Looked::Undecided);
        }
        let place = match member.kind {
            Kind::File if member.runs.is_none() => Place::Data(archive.position(), member.stored),
            Kind::Symlink => Place::Link(relative(&name, &member.link)),
            Kind::Hardlink => Place::Link(clean(&member.link).unwrap_or_default()),
            _ => continue,
        };
        index.insert(name, place);
        if index.len() > FILE_LIMIT {
            return Err(fault(format!("has more than {FILE_LIMIT} files, which no image archive has")).into());
        }
    }
    Ok(if index.contains_key(&b"oci-layout"[..]) && index.contains_key(&b"index.json"[..]) {
        Looked::OciLayout(index)
    } else if index.contains_key(&b"manifest.json"[..]) {
        Looked::DockerArchive(index)
    } else if index.contains_key(&b"repositories"[..]) && index.keys().any(|name| name.ends_with(b"/layer.tar")) {
        return Err(fault("a docker archive from before version 1.10, without manifest.json")
            .hint("load it into a newer docker and save it again")
            .into());
    } else {
        Looked::RootFileSystem
    })
}

/// Layouts have plain files at the top, and directories named `blobs` or by a digest.
fn may_be_a_layouts(name: &[u8], member: &Member) -> bool {
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let digest = first.len() == 64 && first.iter().all(u8::is_ascii_hexdigit);
    first == b"blobs"
        || digest
        || (first.len() == name.len()
            && !matches!(member.kind, Kind::Directory | Kind::Symlink | Kind::Character | Kind::Block | Kind::Fifo))
}

/// A name without `./`; `None` for the root itself.
fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

/// Where a relative link at `name` leads. It is only ever looked up in the index, so it cannot leave it.
fn relative(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    parts.pop();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A stream that passes over data by reading it.
pub(super) struct Streamed<R>(BufReader<R>);

impl<R: Read> Streamed<R> {
    pub(super) fn new(inner: R) -> Streamed<R> {
        Streamed(BufReader::with_capacity(64 << 10, inner))
    }
}

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> BufRead for Streamed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

impl<R: Read> Input for Streamed<R> {}

/// The files of a layout.
#[derive(Debug)]
pub(super) enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// In an uncompressed tar.
    Archive(Section, Index),
}

impl Files {
    pub(super) fn directory(path: &Path) -> Files {
        Files::Directory(path.to_path_buf())
    }

    pub(super) fn archive(section: Section, index: Index) -> Files {
        Files::Archive(section, index)
    }

    /// One file. `name` comes from a document of the layout: it is taken as a name, never as a path out.
    pub(super) fn open(&self, name: &str) -> Result<Section> {
        match self {
            Files::Directory(root) => {
                let inside = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if !inside {
                    return Err(fault(format!("{name:?}: not a name inside the layout")).into());
                }
                let path = root.join(name);
                let open = || Section::whole(Arc::new(File::open(&path)?));
                open().map_err(|error| fault(format!("{}: {error}", path.display())).into())
            }
            Files::Archive(section, index) => {
                let mut wanted = clean(name.as_bytes()).unwrap_or_default();
                for _ in 0..8 {
                    match index.get(&wanted) {
                        Some(Place::Data(offset, length)) => {
                            return section
                                .part(*offset, *length)
                                .map_err(|error| fault(format!("{name:?}: {error}")).into());
                        }
                        Some(Place::Link(target)) => wanted.clone_from(target),
                        None => {
                            return Err(fault(format!("{}: is not in the archive", show(&wanted))).into());
                        }
                    }
                }
                Err(fault(format!("{name:?}: its links go round in a circle")).into())
            }
        }
    }

    /// A small file, whole.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let section = self.open(name)?;
        if section.length() > DOCUMENT_LIMIT {
            return Err(fault(format!("{name:?}: has {} bytes, more than {DOCUMENT_LIMIT}", section.length())).into());
        }
        let mut bytes = Vec::new();
        let mut section = section;
        section.read_to_end(&mut bytes).map_err(|error| fault(format!("{name:?}: {error}")))?;
        Ok(bytes)
    }

    /// A document by its digest, which is checked.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.read(&digest.blob_name())?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(fault(format!("blob {digest}: its bytes have the digest {found}")).into());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{archive, bare, file, link};
    use super::*;

    fn looked(members: &[(Member, Vec<u8>)], beginning: bool) -> String {
        let bytes = archive(members);
        let looked = look(bytes.as_slice(), beginning).unwrap();
        format!("{looked:?}").split(['(', ' ']).next().unwrap().to_string()
    }

    #[test]
    fn formats_are_told_apart() {
        let hex = "0123456789abcdef".repeat(4);
        let oci = [
            file("oci-layout", "{}"),
            bare("blobs/", Kind::Directory),
            file("blobs/sha256/x", ""),
            file("index.json", "{}"),
            file("manifest.json", "[]"),
        ];
        let docker = [bare(&hex, Kind::Directory), file(&format!("{hex}/layer.tar"), ""), file("manifest.json", "[]")];
        let root = [bare("./", Kind::Directory), bare("./bin", Kind::Directory), file("./bin/sh", "")];
        let odd = [file("hello", "x"), file("manifest.txt", "")];
        let nested = [bare("usr/", Kind::Directory), file("usr/manifest.json", "[]")];
        for (members, whole, start) in [
            (&oci[..], "OciLayout", "Undecided"),
            (&docker, "DockerArchive", "Undecided"),
            (&root, "RootFileSystem", "RootFileSystem"),
            (&odd, "RootFileSystem", "Undecided"),
            (&nested, "RootFileSystem", "RootFileSystem"),
        ] {
            assert_eq!((looked(members, false).as_str(), looked(members, true).as_str()), (whole, start));
        }
    }

    #[test]
    fn links_stay_inside() {
        let bytes = archive(&[
            file("a", "data"),
            link("x", Kind::Hardlink, "./a"),
            link("loop", Kind::Hardlink, "loop"),
            file("manifest.json", "[]"),
        ]);
        let Looked::DockerArchive(mut index) = look(bytes.as_slice(), false).unwrap() else { panic!("not seen") };
        index.insert(b"d/up".to_vec(), Place::Link(relative(b"d/up", b"../../../a")));
        index.insert(b"d/out".to_vec(), Place::Link(relative(b"d/out", b"/etc/passwd")));
        let mut spooled = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut spooled, &bytes).unwrap();
        let files = Files::archive(Section::whole(Arc::new(spooled)).unwrap(), index);
        for name in ["a", "x", "d/up", "./a"] {
            assert_eq!(files.read(name).unwrap(), b"data", "{name}");
        }
        assert!(files.read("loop").unwrap_err().to_string().contains("circle"));
        assert!(files.read("d/out").is_err() && files.read("../a").is_err());
        assert!(Files::directory(Path::new("/")).open("../etc/passwd").is_err());
        assert!(Files::directory(Path::new("/tmp")).open("/etc/passwd").is_err());
    }
}
