//! Stores as Docker and podman lay them out, made by hand: the walk is the seed's.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;

use super::super::digest::{Digest, chain_ids};
use super::super::manifest::OCI_MANIFEST;
use super::{docker, podman};

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn config(diff_ids: &[Digest]) -> String {
    serde_json::json!({"os":"linux","architecture":"amd64","config":{"Cmd":["top"]},"rootfs":{"type":"layers","diff_ids":diff_ids}}).to_string()
}

fn seeds_layers() -> Vec<Digest> {
    [
        "f2cb0ecef392f2a630fa1205b874ab2e2aedf96de04d0b8838e4e728e28142da",
        "a9f6b7c7101b86ffaa53dc29638e577dabf5b24150577a59199d8554d7ce2921",
    ]
    .iter()
    .map(|hex| Digest::from_hex(hex).unwrap())
    .collect()
}

fn docker_store(root: &Path, driver: &str, cache_id: &str) -> Digest {
    let diff_ids = seeds_layers();
    let config = config(&diff_ids);
    let id = Digest::of(config.as_bytes());
    let image = root.join("image").join(driver);
    write(
        image.join("repositories.json"),
        &format!(r#"{{"Repositories":{{"ctg/mysql":{{"ctg/mysql:5.7.29":"{id}"}},"top":{{"top:latest":"{id}"}}}}}}"#),
    );
    write(image.join("imagedb/content/sha256").join(id.hex()), &config);
    for (at, chain) in chain_ids(&diff_ids).iter().enumerate() {
        write(image.join("layerdb/sha256").join(chain.hex()).join("cache-id"), &format!("{cache_id}{at}"));
        let directory = if driver == "vfs" {
            root.join("vfs/dir").join(format!("{cache_id}{at}"))
        } else {
            root.join(driver).join(format!("{cache_id}{at}/diff"))
        };
        fs::create_dir_all(directory).unwrap();
    }
    id
}

#[test]
fn dockers_store_is_walked_as_the_seed_does() {
    let base = tempfile::tempdir().unwrap();
    let id = docker_store(base.path(), "overlay2", "2996b249");
    for typed in ["ctg/mysql:5.7.29", "docker.io/ctg/mysql:5.7.29", "top", &id.hex()[..12], &id.to_string()] {
        let image = docker::resolve(typed, base.path()).unwrap();
        assert_eq!(image.id, id);
        assert_eq!(
            image.layers,
            [base.path().join("overlay2/2996b2490/diff"), base.path().join("overlay2/2996b2491/diff")]
        );
        assert_eq!(image.config.config.cmd, ["top"]);
    }
    let error = docker::resolve("nothing", base.path()).unwrap_err().to_string();
    assert!(error.contains("docker:nothing"), "{error}");
    fs::remove_dir_all(base.path().join("overlay2/2996b2490")).unwrap();
    assert!(docker::resolve("top", base.path()).unwrap_err().to_string().contains("2996b2490"));
}

#[test]
fn dockers_store_in_other_drivers() {
    let base = tempfile::tempdir().unwrap();
    docker_store(base.path(), "vfs", "x");
    assert_eq!(docker::resolve("top", base.path()).unwrap().layers, [base.path().join("vfs/dir/x1")]);
    let zfs = tempfile::tempdir().unwrap();
    docker_store(zfs.path(), "zfs", "x");
    assert!(docker::resolve("top", zfs.path()).unwrap_err().to_string().contains("(zfs)"));
    assert!(docker::resolve("top", Path::new("/nonexistent")).is_err());
    let evil = tempfile::tempdir().unwrap();
    docker_store(evil.path(), "overlay2", "../../../etc/x");
    assert!(docker::resolve("top", evil.path()).unwrap_err().to_string().contains("no directory name"));
}

fn podman_store(root: &Path, driver: &str) -> Digest {
    let config = config(&seeds_layers());
    let id = Digest::of(config.as_bytes());
    let manifest = serde_json::json!({"schemaVersion":2,"mediaType":OCI_MANIFEST,"config":{"mediaType":"x","digest":id,"size":config.len()},"layers":[]}).to_string();
    let images = root.join(format!("{driver}-images"));
    write(
        images.join("images.json"),
        &format!(
            r#"[{{"id":"{}","names":["docker.io/library/top:latest","localhost/web:1"],"layer":"bb"}}]"#,
            id.hex()
        ),
    );
    write(images.join(id.hex()).join("manifest"), &manifest);
    write(
        images.join(id.hex()).join(format!("={}", base64::engine::general_purpose::STANDARD.encode(id.to_string()))),
        &config,
    );
    write(root.join(format!("{driver}-layers/layers.json")), r#"[{"id":"aa"},{"id":"bb","parent":"aa"}]"#);
    for layer in ["aa", "bb"] {
        fs::create_dir_all(if driver == "vfs" {
            root.join("vfs/dir").join(layer)
        } else {
            root.join("overlay").join(layer).join("diff")
        })
        .unwrap();
    }
    id
}

#[test]
fn podmans_store_is_walked() {
    let base = tempfile::tempdir().unwrap();
    let id = podman_store(base.path(), "overlay");
    for typed in ["top", "docker.io/library/top:latest", "web:1", "localhost/web:1", &id.hex()[..8]] {
        let image = podman::resolve(typed, base.path()).unwrap();
        assert_eq!(image.id, id);
        assert_eq!(image.layers, [base.path().join("overlay/aa/diff"), base.path().join("overlay/bb/diff")]);
    }
    assert!(podman::resolve("gone", base.path()).unwrap_err().to_string().contains("podman:gone"));
    // A circle, and a layer that is a way out.
    for (layers, bad) in [
        (r#"[{"id":"aa","parent":"bb"},{"id":"bb","parent":"aa"}]"#, "bb"),
        (r#"[{"id":"../../x"},{"id":"bb","parent":"../../x"}]"#, "../../x"),
        (r#"[{"id":"bb","parent":"gone"}]"#, "gone"),
    ] {
        write(base.path().join("overlay-layers/layers.json"), layers);
        let error = podman::resolve("top", base.path()).unwrap_err().to_string();
        assert!(error.contains(bad), "{error}");
    }
    let vfs = tempfile::tempdir().unwrap();
    podman_store(vfs.path(), "vfs");
    assert_eq!(podman::resolve("top", vfs.path()).unwrap().layers, [vfs.path().join("vfs/dir/bb")]);
}
