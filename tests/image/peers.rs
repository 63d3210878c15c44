//! The same images through other tools: trees are compared entry by entry.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{can_run, image, run, said, shell};

/// A layout of two layers, made by umoci: set-uid, capabilities, hard and symbolic links, device, fifo, odd names, owners,
/// old times; then deletions, a directory replaced by another, and (in `odd`) one replaced by a link.
const MAKE: &str = r#"
umoci init --layout l; umoci new --image l:1
umoci unpack --image l:1 b
r=b/rootfs
mkdir -p $r/etc $r/bin $r/data/old $r/swap $r/private
echo 'root:x:0:0::/root:/bin/sh' > $r/etc/passwd
cp /bin/true $r/bin/t; chmod 4755 $r/bin/t; cp /bin/true $r/bin/cap; setcap cap_net_raw+ep $r/bin/cap
echo a > $r/data/old/f; echo b > $r/gone; ln $r/bin/t $r/bin/t2; ln -s ../etc/passwd $r/data/link
mkfifo $r/fifo; mknod $r/null c 1 3; echo x > $r/swap/inner; chown 1000:2000 $r/data/old/f
echo p > $r/private/key; chown -R 1000:2000 $r/private; chmod 700 $r/private
printf x > "$r/$(printf 'n\xffon \n')"; printf x > $r/$(printf '%0250d' 7)
touch -d '2001-02-03 04:05:06' $r/etc/passwd
umoci repack --image l:1 b; rm -rf b; umoci unpack --image l:1 b
rm $r/gone $r/private/key; rm -rf $r/data/old; mkdir $r/data/old; echo new > $r/data/old/g
umoci repack --image l:1 b
umoci config --image l:1 --config.cmd /bin/t --config.user 1000 --config.env A=b --config.stopsignal SIGINT
rm -rf b; umoci unpack --image l:1 b
"#;

/// One line an entry of `root`: type, mode, owner, group, size, time, target; then capabilities and contents.
fn show(root: &Path) -> String {
    let script = r"find . -mindepth 1 -type d -printf '%P %y %m %U %G %T@\n' -o -mindepth 1 -printf '%P %y %m %U %G %s %T@ %n %l\n' | LC_ALL=C sort
        getcap -r . | sort; find . -type f -exec sha256sum {} + | sort";
    shell(root, script)
}

/// The layers' directories of an image, uppermost first, as overlay wants them.
fn layers(mut command: Command, name: &str) -> String {
    let text = run(command.args(["inspect", "--json", name]));
    let details: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut directories: Vec<&str> =
        details[0]["layers"].as_array().unwrap().iter().map(|layer| layer["directory"].as_str().unwrap()).collect();
    directories.dedup();
    directories.reverse();
    directories.join(":")
}

/// What overlayfs makes of these layers.
fn merged(base: &Path, layers: &str) -> String {
    if !layers.contains(':') {
        return show(Path::new(layers));
    }
    let at = base.join("merged");
    std::fs::create_dir_all(&at).unwrap();
    run(Command::new("mount").args(["-t", "overlay", "test", "-o"]).arg(format!("ro,lowerdir={layers}")).arg(&at));
    let seen = show(&at);
    run(Command::new("umount").arg(&at));
    seen
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not come up");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn made() -> tempfile::TempDir {
    let base = tempfile::tempdir_in("/var/tmp").unwrap();
    shell(base.path(), MAKE);
    base
}

#[test]
fn layouts_and_archives_of_umoci_and_skopeo() {
    if !can_run(&["umoci", "skopeo", "setcap"]) {
        return;
    }
    let base = made();
    let path = base.path();
    shell(
        path,
        "skopeo copy -q oci:l:1 docker-archive:da.tar:web:1; skopeo copy -q oci:l:1 oci-archive:oa.tar:web:2
        skopeo copy -q --dest-compress-format zstd oci:l:1 oci:lz:1; gzip -k da.tar; tar -C b/rootfs --xattrs --xattrs-include='*' -cf root.tar .; xz -k -0 root.tar",
    );
    let wanted = show(&path.join("b/rootfs"));
    for (source, name) in [
        ("l", "l:1"),
        ("da.tar", "web:1"),
        ("oa.tar", "web:2"),
        ("lz", "lz:1"),
        ("da.tar.gz", "web:1"),
        ("root.tar", "root"),
        ("root.tar.xz", "root"),
        ("b/rootfs", "rootfs"),
    ] {
        let store = path.join("store");
        run(image(&store).arg("import").arg(path.join(source)));
        assert_eq!(merged(path, &layers(image(&store), name)), wanted, "{source}");
        run(image(&store).args(["verify", "--quiet"]));
        std::fs::remove_dir_all(&store).unwrap();
    }
}

/// umoci writes deletions below the link that replaced a directory.
#[test]
fn a_directory_replaced_by_a_link() {
    if !can_run(&["umoci", "setcap"]) {
        return;
    }
    let base = made();
    let path = base.path();
    shell(
        path,
        "rm -rf b/rootfs/swap; ln -s etc b/rootfs/swap; umoci repack --image l:2 b; rm -rf b; umoci unpack --image l:2 b",
    );
    let store = path.join("store");
    run(image(&store).arg("import").arg(path.join("l")));
    assert_eq!(merged(path, &layers(image(&store), "l:2")), show(&path.join("b/rootfs")));
}

/// The store with the layout as `web:1`, and that exported as `out.tar`.
fn exported(path: &Path) -> PathBuf {
    let store = path.join("store");
    run(image(&store).args(["import", "--tag", "web:1"]).arg(path.join("l")));
    run(image(&store).args(["export", "web:1", "--output"]).arg(path.join("out.tar")));
    store
}

#[test]
fn exports_are_taken_by_others() {
    if !can_run(&["umoci", "skopeo", "podman", "setcap"]) {
        return;
    }
    let base = made();
    let path = base.path();
    let store = exported(path);
    run(image(&store).args(["export", "web:1", "--format=oci-dir", "--output"]).arg(path.join("od")));
    // Every blob of the layout, byte for byte.
    shell(path, "for b in $(ls od/blobs/sha256); do cmp od/blobs/sha256/$b l/blobs/sha256/$b; done");
    shell(
        path,
        "skopeo copy -q oci-archive:out.tar:1 oci:back:1; skopeo copy -q docker-archive:out.tar:docker.io/library/web:1 dir:dd; rm -rf b; umoci unpack --image od:1 b",
    );
    let podman = "podman --root $PWD/pv --runroot $PWD/pvr --storage-driver vfs";
    shell(path, &format!("{podman} load -qi out.tar; {podman} image exists docker.io/library/web:1"));
    // And podman's store, where it lies.
    std::fs::write(
        path.join("storage.conf"),
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{}/pv\"\nrunroot = \"/x\"\n", path.display()),
    )
    .unwrap();
    let mut command = image(&store);
    command.env("CONTAINERS_STORAGE_CONF", path.join("storage.conf"));
    let vfs = layers(command, "podman:web:1");
    let ours = merged(path, &layers(image(&store), "web:1"));
    // vfs copies: it breaks hard links and forgets times of directories.
    let loose = |seen: &str| -> Vec<String> {
        seen.lines().map(|line| line.split(' ').take(5).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(loose(&merged(path, &vfs)), loose(&ours));
}

fn docker(path: &Path, arguments: &str) -> String {
    shell(path, &format!("docker -H unix://$PWD/docker.sock {arguments}"))
}

/// A dockerd of our own, that runs no containers: its store is what is wanted.
fn dockerd(path: &Path) -> Server {
    let flags = ["--storage-driver=overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"];
    let log = std::fs::File::create(path.join("dockerd.log")).unwrap();
    let at = |name: &str| path.join(name).display().to_string();
    let child = Command::new("dockerd")
        .args(flags)
        .args([
            "--data-root",
            &at("docker"),
            "--exec-root",
            &at("docker-run"),
            "--pidfile",
            &at("docker.pid"),
            "-H",
            &format!("unix://{}", at("docker.sock")),
        ])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let server = Server(child);
    until("dockerd", || {
        Command::new("docker")
            .args(["-H", &format!("unix://{}", at("docker.sock")), "version"])
            .output()
            .is_ok_and(|output| output.status.success())
    });
    server
}

#[test]
fn dockers_own_store_and_archives() {
    if !can_run(&["dockerd", "docker", "umoci", "setcap"]) {
        return;
    }
    let base = made();
    let path = base.path();
    let store = exported(path);
    let server = dockerd(path);
    docker(path, "load -qi out.tar");
    docker(path, "save -o saved.tar web:1");
    drop(server);
    let inspected =
        run(image(&store).args(["inspect", "--json", "docker:web:1", "--docker-root"]).arg(path.join("docker")));
    let details: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let mut directories: Vec<&str> =
        details[0]["layers"].as_array().unwrap().iter().map(|layer| layer["directory"].as_str().unwrap()).collect();
    directories.reverse();
    let ours = merged(path, &layers(image(&store), "web:1"));
    // Docker gives directories that a layer only implies times and modes of its own making; they are ours to do better.
    let files = |seen: &str| -> Vec<String> {
        seen.lines().filter(|line| line.split(' ').nth(1) != Some("d")).map(str::to_string).collect()
    };
    assert_eq!(files(&merged(path, &directories.join(":"))), files(&ours));
    let other = path.join("other");
    run(image(&other).arg("import").arg(path.join("saved.tar")));
    let id = |store: &PathBuf| run(image(store).args(["inspect", "--quiet", "web:1"]));
    assert_eq!(id(&other), id(&store));
    run(image(&other).args(["verify", "--quiet"]));
}

/// Debian's registry on this machine, first open, then with TLS and a password.
#[test]
fn pulls_from_a_registry() {
    if !can_run(&["docker-registry", "umoci", "skopeo", "openssl", "htpasswd", "setcap"]) {
        return;
    }
    let base = made();
    let path = base.path();
    let (open, closed) = (free_port(), free_port());
    shell(
        path,
        r"openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3 -subj /CN=test 2>/dev/null
        openssl req -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost 2>/dev/null
        openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3 -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) -out s.crt 2>/dev/null
        htpasswd -Bbn me secret > ht; mkdir config",
    );
    // The base64 of me:secret.
    let config = format!(r#"{{"auths":{{"localhost:{closed}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#);
    std::fs::write(path.join("config/config.json"), config).unwrap();
    let data = format!("version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}/registry}}}}\n", path.display());
    let first = registry(path, "open.yml", &format!("{data}http: {{addr: 127.0.0.1:{open}}}\n"), open);
    shell(
        path,
        &format!(
            "skopeo copy -q --dest-tls-verify=false oci:l:1 docker://127.0.0.1:{open}/team/web:1; skopeo copy -q --dest-tls-verify=false --format v2s2 oci:l:1 docker://127.0.0.1:{open}/team/old:1"
        ),
    );
    let store = path.join("store");
    for name in ["web", "old"] {
        run(image(&store).arg("pull").arg(format!("127.0.0.1:{open}/team/{name}:1")));
        assert_eq!(
            merged(path, &layers(image(&store), &format!("127.0.0.1:{open}/team/{name}:1"))),
            show(&path.join("b/rootfs"))
        );
    }
    let gone = image(&store).arg("pull").arg(format!("127.0.0.1:{open}/team/web:gone")).output().unwrap();
    assert!(said(&gone).contains("404: manifest unknown") && gone.status.code() == Some(125), "{}", said(&gone));
    drop(first);
    let tls = format!(
        "{data}auth: {{htpasswd: {{realm: r, path: {0}/ht}}}}\nhttp: {{addr: \"127.0.0.1:{closed}\", tls: {{certificate: {0}/s.crt, key: {0}/s.key}}}}\n",
        path.display()
    );
    let _second = registry(path, "closed.yml", &tls, closed);
    let pull = |creds: Option<&str>, authority: bool, config: bool| {
        let _ = std::fs::remove_dir_all(path.join("store"));
        let mut command = image(&store);
        command
            .arg("pull")
            .arg(format!("localhost:{closed}/team/web:1"))
            .args(creds.map(|creds| format!("--creds={creds}")));
        command.env("DOCKER_CONFIG", if config { path.join("config") } else { path.join("none") });
        if authority {
            command.env("SSL_CERT_FILE", path.join("ca.crt"));
        }
        said(&command.output().unwrap())
    };
    assert!(pull(None, false, false).contains("certificate"));
    assert!(pull(None, true, false).contains("wants a user and a password"));
    assert!(pull(Some("me:wrong"), true, false).contains("401"));
    assert!(pull(Some("me:secret"), true, false).contains("2 of them new"));
    assert!(pull(None, true, true).contains("2 of them new"));
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn registry(path: &Path, file: &str, config: &str, port: u16) -> Server {
    std::fs::write(path.join(file), config).unwrap();
    let log = std::fs::File::create(path.join(format!("{file}.log"))).unwrap();
    let server = Server(
        Command::new("docker-registry")
            .args(["serve", file])
            .current_dir(path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    until("docker-registry", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    server
}
