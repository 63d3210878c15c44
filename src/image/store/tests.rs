#![allow(clippy::type_complexity)] // tables

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::export::{self, Export};
use super::super::manifest::Platform;
use super::super::progress::Silent;
use super::super::testing::{archive, bare, docker_archive, file, gzip, link, plain, snapshot};
use super::super::{Arrived, Wanted, import};
use super::*;
use crate::image::tar::Kind;

struct Bed {
    base: tempfile::TempDir,
    store: Store,
}

fn bed() -> Bed {
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(&base.path().join("store")).unwrap();
    Bed { base, store }
}

impl Bed {
    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.base.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn import(&self, bytes: &[u8]) -> Result<Vec<Arrived>> {
        let path = self.put("source", bytes);
        import(&self.store, &path, &wanted(None), &Silent)
    }

    fn problems(&self) -> Vec<String> {
        self.store.verify(&self.store.lock_shared().unwrap(), &Silent).unwrap().problems
    }

    fn gc(&self) -> Removed {
        self.store.gc(&self.store.lock_exclusive(|| {}).unwrap()).unwrap()
    }

    fn leftovers(&self) -> usize {
        fs::read_dir(self.store.root().join("tmp")).unwrap().count()
    }
}

fn wanted(tag: Option<&str>) -> Wanted {
    Wanted { tag: tag.map(|tag| tag.parse().unwrap()), platform: Platform::parse("linux/amd64").unwrap() }
}

fn passwd_layer() -> Vec<u8> {
    archive(&[
        bare("etc/", Kind::Directory),
        file("etc/passwd", "root:x:0:0::/root:/bin/sh\nme:x:7:8::/home/me:/bin/sh\n"),
        file("etc/group", "g:x:9:me\n"),
        file("etc/gone", "x"),
    ])
}

fn upper_layer() -> Vec<u8> {
    archive(&[file("etc/.wh.gone", ""), file("top", "2"), link("l", Kind::Symlink, "top")])
}

#[test]
fn a_store_is_made_once_and_closed_to_others() {
    let bed = bed();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(bed.store.root()), 0o700);
    fs::set_permissions(bed.store.root(), PermissionsExt::from_mode(0o755)).unwrap();
    Store::open(bed.store.root()).unwrap();
    assert_eq!(mode(bed.store.root()), 0o700);
    let other = bed.base.path().join("other");
    fs::create_dir(&other).unwrap();
    bed.put("other/file", b"");
    let error = Store::open(&other).unwrap_err().to_string();
    assert!(error.contains("other") && error.contains("is no image store"), "{error}");
    fs::write(bed.store.root().join("version"), "2\n").unwrap();
    assert!(Store::open(bed.store.root()).unwrap_err().to_string().contains("layout version \"2\""));
}

#[test]
fn an_archive_comes_in_and_can_be_walked() {
    let bed = bed();
    let layers = [passwd_layer(), upper_layer()];
    let arrived = bed.import(&docker_archive("ctg/mysql:5.7.29", &plain(&layers))).unwrap();
    assert_eq!((arrived[0].layers, arrived[0].unpacked), (2, 2));
    let image = bed.store.resolve("ctg/mysql:5.7.29").unwrap();
    assert_eq!(image.id, arrived[0].id);
    let chain = super::super::digest::chain_ids(&image.config.rootfs.diff_ids);
    for (directory, chain) in image.layers.iter().zip(&chain) {
        assert_eq!(*directory, bed.store.root().join("layers").join(chain.hex()).join("diff"));
    }
    assert_eq!(fs::read(image.layers[1].join("top")).unwrap(), b"2");
    assert_eq!(image.config.config.argv(None, &[], "x").unwrap(), ["/bin/top", "-b"]);
    for typed in [
        &image.id.hex()[..12],
        &image.id.to_string(),
        "docker.io/ctg/mysql:5.7.29",
        &format!("ctg/mysql@{}", arrived[0].manifest),
    ] {
        assert_eq!(bed.store.resolve(typed).unwrap().id, image.id, "{typed}");
    }
    for bad in ["ctg/mysql", "mysql:5.7.29", "0000000", "UPPER", "a b"] {
        let error = format!("{:#}", bed.store.resolve(bad).unwrap_err());
        assert!(error.contains(bad), "{error}");
    }
    assert_eq!(bed.problems(), Vec::<String>::new());
    assert_eq!(bed.leftovers(), 0);
    // Again, and the same image in other compressions: nothing is unpacked anew.
    assert_eq!(bed.import(&docker_archive("again", &plain(&layers))).unwrap()[0].unpacked, 0);
    let packed = [
        (layers[0].clone(), gzip(&layers[0])),
        (layers[1].clone(), zstd::encode_all(layers[1].as_slice(), 3).unwrap()),
    ];
    let other = bed.import(&docker_archive("packed", &packed)).unwrap();
    assert_eq!((other[0].unpacked, other[0].id), (0, image.id));
    assert_eq!(bed.store.image(&image.id).unwrap().manifests.len(), 2);
    assert_eq!(bed.problems(), Vec::<String>::new());
}

/// Whatever goes wrong, the store is as it was.
#[test]
fn a_failed_import_leaves_no_trace() {
    let bed = bed();
    let good = passwd_layer();
    bed.import(&docker_archive("good:1", &plain(std::slice::from_ref(&good)))).unwrap();
    let evil = archive(&[file("fine", "x"), file("../evil", "x")]);
    let big = archive(&[file("big", &"noise ".repeat(50_000))]);
    let cut = gzip(&big);
    let cut = cut[..cut.len() - 20].to_vec();
    let lying_plain = vec![(good.clone(), upper_layer())];
    let config_lies = {
        // A config that speaks of one layer, an archive with none.
        let text = String::from_utf8_lossy(&docker_archive("x", &plain(std::slice::from_ref(&good))))
            .replace(&format!("{}0/layer.tar", &Digest::of(&good).hex()[..63]), "missing");
        text.into_bytes()
    };
    let rows: [(&str, Vec<u8>, &str); 7] = [
        (
            "a hostile member",
            docker_archive("evil:1", &plain(&[good.clone(), evil])),
            "layer 2 of 2: ../evil: has .. in its name",
        ),
        ("a layer cut off", docker_archive("cut:1", &[(big.clone(), cut)]), "layer 1 of 1: big: "),
        (
            "another tar than the config says",
            docker_archive("other:1", &lying_plain),
            "layer 1 of 1: its tar has the digest",
        ),
        ("a missing layer", config_lies, ""),
        ("nothing", Vec::new(), "there is nothing in it"),
        ("garbage", b"garbage ".repeat(1000), "not a tar header"),
        ("a truncated archive", docker_archive("t:1", &plain(std::slice::from_ref(&good)))[..2000].to_vec(), ""),
    ];
    for (what, bytes, expected) in rows {
        let before = snapshot(bed.store.root(), false);
        let error = format!("{:#}", bed.import(&bytes).err().unwrap_or_else(|| panic!("{what}: was accepted")));
        assert!(error.contains(expected), "{what}: {error}");
        let ignore_times = |tree: std::collections::BTreeMap<Vec<u8>, String>| {
            tree.into_iter().filter(|(path, _)| path != b"tmp").collect::<Vec<_>>()
        };
        assert_eq!(ignore_times(snapshot(bed.store.root(), false)), ignore_times(before), "{what}");
        assert_eq!(bed.leftovers(), 0, "{what}");
    }
    assert_eq!(bed.problems(), Vec::<String>::new());
}

/// A manifest that pairs a known layer with a known, but other, blob does not get past.
#[test]
fn a_blob_is_not_believed_to_be_a_layer_it_is_not() {
    let bed = bed();
    let (one, two) = (passwd_layer(), upper_layer());
    bed.import(&docker_archive("a", &plain(std::slice::from_ref(&one)))).unwrap();
    bed.import(&docker_archive("b", &plain(std::slice::from_ref(&two)))).unwrap();
    let image = bed.store.resolve("a").unwrap();
    let manifest = bed.store.manifest(&bed.store.find("a").unwrap().1.manifest).unwrap();
    let mut lie = manifest.clone();
    lie.layers[0].digest = Digest::of(&two);
    lie.layers[0].size = two.len() as u64;
    let layout = bed.base.path().join("layout");
    export::to_directory(
        &bed.store,
        &[Export { name: None, target: bed.store.find("a").unwrap().1 }],
        &layout,
        &Silent,
    )
    .unwrap();
    let bytes = serde_json::to_vec(&lie).unwrap();
    fs::write(layout.join("blobs/sha256").join(Digest::of(&bytes).hex()), &bytes).unwrap();
    fs::write(layout.join("blobs/sha256").join(Digest::of(&two).hex()), &two).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        lie.kind(),
        Digest::of(&bytes),
        bytes.len()
    );
    fs::write(layout.join("index.json"), index).unwrap();
    let error = format!("{:#}", import(&bed.store, &layout, &wanted(None), &Silent).unwrap_err());
    assert!(error.contains("its tar has the digest"), "{error}");
    drop(image);
    assert_eq!(bed.problems(), Vec::<String>::new());
}

#[test]
fn what_is_used_stays() {
    let bed = bed();
    bed.import(&docker_archive("one:1", &plain(&[passwd_layer(), upper_layer()]))).unwrap();
    bed.import(&docker_archive("two:1", &plain(&[passwd_layer()]))).unwrap();
    let running = bed.store.resolve("one:1").unwrap();
    let remove = |name: &str| {
        bed.store.remove_reference(&name.parse().unwrap(), &bed.store.lock_exclusive(|| {}).unwrap()).unwrap().unwrap()
    };
    let removed = remove("one:1");
    assert!(removed.images.is_empty() && removed.layers.is_empty());
    assert!(bed.gc().images.is_empty());
    assert!(
        bed.store
            .remove_image(&running.id, &bed.store.lock_exclusive(|| {}).unwrap())
            .unwrap_err()
            .to_string()
            .contains("running sandbox")
    );
    assert!(running.layers.iter().all(|layer| layer.is_dir()));
    let top = running.layers[1].clone();
    let id = running.id;
    drop(running);
    let removed = bed.gc();
    assert_eq!((removed.images.as_slice(), removed.layers.len()), (&[id][..], 1));
    assert!(!top.exists());
    assert_eq!(bed.problems(), Vec::<String>::new());
    assert_eq!(remove("two:1").layers.len(), 1);
    for directory in ["blobs/sha256", "images", "layers", "references", "tmp"] {
        assert_eq!(fs::read_dir(bed.store.root().join(directory)).unwrap().count(), 0, "{directory}");
    }
    assert!(
        bed.store
            .remove_reference(&"two:1".parse().unwrap(), &bed.store.lock_exclusive(|| {}).unwrap())
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_name_moves_and_the_old_image_can_go() {
    let bed = bed();
    let first = bed.import(&docker_archive("web:1", &plain(&[passwd_layer()]))).unwrap()[0].id;
    let second = bed.import(&docker_archive("web:1", &plain(&[upper_layer()]))).unwrap()[0].id;
    assert_eq!(bed.store.resolve("web:1").unwrap().id, second);
    assert_eq!(bed.gc().images, [first]);
    assert_eq!(bed.problems(), Vec::<String>::new());
}

#[test]
fn leftovers_go_when_nobody_writes() {
    let bed = bed();
    let tmp = bed.store.root().join("tmp");
    let leave = || {
        fs::create_dir_all(tmp.join("layer-x/diff/deep")).unwrap();
        fs::write(tmp.join("blob-y"), "half").unwrap();
        fs::write(tmp.join("partial-z"), "half").unwrap();
    };
    leave();
    let writer = bed.store.writer().unwrap();
    assert_eq!(bed.leftovers(), 1, "an unfinished download is kept");
    leave();
    let second = bed.store.writer().unwrap();
    assert_eq!(bed.leftovers(), 3, "another writer's work was touched");
    drop((writer, second));
    bed.gc();
    assert_eq!(bed.leftovers(), 0);
}

#[test]
fn many_at_once() {
    let bed = bed();
    let shared = passwd_layer();
    std::thread::scope(|scope| {
        for at in 0..8 {
            let (bed, shared) = (&bed, shared.clone());
            scope.spawn(move || {
                let own = archive(&[file("own", &format!("{}", at % 4))]);
                let path =
                    bed.put(&format!("source-{at}"), &docker_archive(&format!("image:{at}"), &plain(&[shared, own])));
                for _ in 0..3 {
                    import(&bed.store, &path, &wanted(None), &Silent).unwrap();
                    let image = bed.store.resolve(&format!("image:{at}")).unwrap();
                    assert_eq!(fs::read_to_string(image.layers[1].join("own")).unwrap(), format!("{}", at % 4));
                    bed.gc();
                    assert!(image.layers.iter().all(|layer| layer.is_dir()));
                }
            });
        }
    });
    assert_eq!(bed.problems(), Vec::<String>::new());
    assert_eq!(bed.store.images().unwrap().len(), 4);
    assert_eq!(bed.store.references().unwrap().len(), 8);
}

#[test]
fn verify_names_what_is_wrong() {
    let changes: [(&str, &dyn Fn(&Bed)); 6] = [
        (": its contents have the digest", &|bed| {
            let (_, target) = bed.store.find("x").unwrap();
            let layer = bed.store.manifest(&target.manifest).unwrap().layers[0].digest;
            let mut bytes = fs::read(bed.store.blob_path(&layer)).unwrap();
            bytes[700] ^= 1;
            fs::write(bed.store.blob_path(&layer), bytes).unwrap();
        }),
        ("its config is missing or damaged", &|bed| {
            fs::remove_file(bed.store.blob_path(&bed.store.find("x").unwrap().1.image)).unwrap()
        }),
        ("is missing", &|bed| fs::remove_dir_all(bed.store.resolve("x").unwrap().layers[0].parent().unwrap()).unwrap()),
        ("etc/passwd: ", &|bed| {
            fs::write(bed.store.resolve("x").unwrap().layers[0].join("etc/passwd"), "root").unwrap()
        }),
        ("new: is not in the archive", &|bed| {
            fs::write(bed.store.resolve("x").unwrap().layers[0].join("new"), "").unwrap()
        }),
        ("x:latest: names the image", &|bed| {
            fs::remove_dir_all(bed.store.root().join("images").join(bed.store.find("x").unwrap().1.image.hex()))
                .unwrap()
        }),
    ];
    for (expected, change) in changes {
        let bed = bed();
        bed.import(&docker_archive("x", &plain(&[passwd_layer(), upper_layer()]))).unwrap();
        change(&bed);
        let problems = bed.problems();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
    }
}

/// Out and in again: the same image, manifest and blobs.
#[test]
fn exports_come_in_again_unchanged() {
    let bed = bed();
    let layers = [passwd_layer(), upper_layer()];
    bed.import(&docker_archive(
        "ctg/mysql:5.7",
        &[(layers[0].clone(), gzip(&layers[0])), (layers[1].clone(), layers[1].clone())],
    ))
    .unwrap();
    let (name, target) = bed.store.find("ctg/mysql:5.7").unwrap();
    let exports = [Export { name, target }];
    let tar = bed.base.path().join("out.tar");
    export::to_archive(&bed.store, &exports, File::create(&tar).unwrap(), &Silent).unwrap();
    let directory = bed.base.path().join("out");
    export::to_directory(&bed.store, &exports, &directory, &Silent).unwrap();
    assert!(
        export::to_directory(&bed.store, &exports, &directory, &Silent)
            .unwrap_err()
            .to_string()
            .contains("is not empty")
    );
    // A reader that knows docker archives only sees the same image.
    let plain_tar = fs::read(&tar).unwrap();
    let docker_only = bed.put("docker-only.tar", &String::from_utf8_lossy(b"").into_owned().into_bytes());
    fs::write(&docker_only, without_oci(&plain_tar)).unwrap();
    for source in [&tar, &directory, &docker_only] {
        let other = Store::open(&bed.base.path().join("other")).unwrap();
        let arrived = import(&other, source, &wanted(None), &Silent).unwrap();
        assert_eq!((arrived[0].id, arrived[0].names[0].familiar().as_str()), (target.image, "ctg/mysql:5.7"));
        if source != &docker_only {
            assert_eq!(arrived[0].manifest, target.manifest);
        }
        assert_eq!(
            snapshot(&other.root().join("layers"), true).len(),
            snapshot(&bed.store.root().join("layers"), true).len()
        );
        assert!(other.verify(&other.lock_shared().unwrap(), &Silent).unwrap().problems.is_empty());
        fs::remove_dir_all(other.root()).unwrap();
    }
}

/// The same archive without what makes it an OCI layout.
fn without_oci(bytes: &[u8]) -> Vec<u8> {
    let mut source = crate::image::tar::Archive::new(bytes);
    let mut writer = crate::image::tar::Writer::new(Vec::new());
    while let Some(member) = source.next().unwrap() {
        if member.path == b"oci-layout" || member.path == b"index.json" {
            continue;
        }
        writer.member(&member).unwrap();
        source.data(|_, piece| Ok(writer.data(piece)?)).unwrap();
    }
    writer.finish().unwrap()
}

/// A directory packed, kept as a blob and unpacked again is the same tree; and every wrapping of a root file system is
/// the same image but for its blob.
#[test]
fn root_file_systems_in_every_wrapping() {
    let bed = bed();
    let root = bed.base.path().join("My Root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/sh"), "#!").unwrap();
    fs::set_permissions(root.join("bin/sh"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/sh"), root.join("bin/bash")).unwrap();
    std::os::unix::fs::symlink("bin/sh", root.join("link")).unwrap();
    let arrived = import(&bed.store, &root, &wanted(None), &Silent).unwrap();
    assert_eq!(arrived[0].names[0].familiar(), "my-root:latest");
    let image = bed.store.resolve("my-root").unwrap();
    assert_eq!(snapshot(&image.layers[0], true), snapshot(&root, true));
    assert_eq!(image.config.config.cmd, ["/bin/sh"]);
    assert_eq!(
        import(&bed.store, &root, &wanted(None), &Silent).unwrap()[0].id,
        arrived[0].id,
        "the same directory gave another image"
    );
    let mut tar = Vec::new();
    super::super::pack::pack(&root, &[], &mut tar).unwrap();
    for (name, bytes) in
        [("a.tar", tar.clone()), ("b.tar.gz", gzip(&tar)), ("c.tzst", zstd::encode_all(tar.as_slice(), 1).unwrap())]
    {
        let path = bed.put(name, &bytes);
        let arrived = import(&bed.store, &path, &wanted(Some("tagged:1")), &Silent).unwrap();
        assert_eq!((arrived[0].unpacked, arrived[0].names[0].familiar().as_str()), (0, "tagged:1"), "{name}");
    }
    assert_eq!(bed.problems(), Vec::<String>::new());
}
