//! Images: brought in from what a test makes itself, run by root and by a plain user, kept, committed, and never removed in use.

use crate::bed::Bed;
use crate::command::Cmd;
use crate::tree::{self, Tree};
use crate::{Test, test};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("images/every_wrapping", needs![root, systemd, disk], every_wrapping),
        test("images/config", needs![root, systemd, disk], config),
        test("images/stop_signal", needs![root, systemd, disk], stop_signal),
        test("images/deletions", needs![root, systemd, disk], deletions),
        test("images/owners", needs![root, systemd, disk], owners),
        test("images/128_and_400_layers", needs![root, systemd, disk], many_layers),
        test("images/without_mount_points", needs![root, systemd, disk], without_mount_points),
        test("images/of_docker_in_place", needs![root, systemd, disk], of_docker_in_place),
        test("images/plain_user", needs![root, systemd, user_manager, disk, kernel_min(5, 11)], plain_user),
        test("images/kept_by_a_lease", needs![root, systemd, disk], kept_by_a_lease),
        test("images/killed_imports", needs![root, disk], killed_imports),
        test("images/refused", needs![root, systemd, disk], refused),
    ]
}

/// Turns the directories into layers of a docker archive called `name`, `config` being its config object.
pub(crate) fn archive(bed: &Bed, layers: &[PathBuf], config: &str, name: &str) -> PathBuf {
    let place = bed.disk_dir();
    let script = r#"
        cd "$1"; config=$2; name=$3; shift 3
        digests= files= n=0
        for layer; do
            n=$((n + 1)); tar -C "$layer" --numeric-owner -cf $n.tar .
            digests="$digests,\"sha256:$(sha256sum < $n.tar | cut -d' ' -f1)\"" files="$files,\"$n.tar\""
        done
        printf '{"os":"linux","architecture":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
            "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')" "$config" "${digests#,}" > config.json
        printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":[%s]}]' "$name" "${files#,}" > manifest.json
        tar -cf archive.tar config.json manifest.json *.tar; rm -f [0-9]*.tar"#;
    let command = bed.command("sh", ["-euc", script, "sh"]).arg(&place).arg(config).arg(name);
    command.args(layers).output().succeeded();
    place.join("archive.tar")
}

/// The same as an OCI layout, of one layer.
fn layout(bed: &Bed, layer: &Path, config: &str) -> PathBuf {
    let place = bed.disk_dir();
    let script = r#"
        cd "$1"; mkdir -p blobs/sha256
        put() { d=$(sha256sum < "$1" | cut -d' ' -f1); s=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$d"; }
        tar -C "$2" --numeric-owner -cf layer .; diff=$(sha256sum < layer | cut -d' ' -f1); gzip layer; put layer.gz
        layer="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$d\",\"size\":$s}"
        printf '{"os":"linux","architecture":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
            "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')" "$3" "$diff" > config; put config
        printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"%s","digest":"sha256:%s","size":%s},"layers":[%s]}' \
            application/vnd.oci.image.config.v1+json "$d" "$s" "$layer" > manifest; put manifest
        printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}' "$d" "$s" > index.json
        echo '{"imageLayoutVersion":"1.0.0"}' > oci-layout"#;
    bed.command("sh", ["-euc", script, "sh"]).arg(&place).arg(layer).arg(config).output().succeeded();
    place
}

pub(crate) fn open_dir(bed: &Bed) -> PathBuf {
    let root = bed.disk_dir();
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    root
}

/// A root with busybox.
pub(crate) fn root_dir(bed: &Bed) -> PathBuf {
    let root = open_dir(bed);
    tree::busybox(&root);
    root
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn image<'a>(bed: &Bed, store: &Path, words: impl IntoIterator<Item = &'a str>) -> Cmd {
    bed.sandbox(["image", "--store", text(store)]).args(words)
}

/// A store with one image, of `layers`.
pub(crate) fn store_of(bed: &Bed, layers: &[PathBuf], config: &str, name: &str) -> PathBuf {
    let store = bed.disk_dir().join("store");
    image(bed, &store, ["import", "-q", text(&archive(bed, layers, config, name))]).output().succeeded();
    store
}

fn every_wrapping(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("srv/here", "yes\n")]);
    let tar = bed.disk_dir().join("root.tar");
    bed.sh(&format!("tar -C {} -cf {t} . && gzip -k {t}", root.display(), t = tar.display())).output().succeeded();
    let with = |end: &str| PathBuf::from(format!("{}{end}", tar.display()));
    let sources =
        [archive(bed, std::slice::from_ref(&root), "{}", "x:1"), layout(bed, &root, "{}"), with(""), with(".gz"), root];
    let store = bed.disk_dir().join("store");
    for source in sources {
        image(bed, &store, ["import", "-q", "--tag", "it:1", text(&source)]).output().succeeded();
        let flags = ["--store", text(&store), "--image", "it:1"];
        let outcome = bed.run(flags, "cat /srv/here; rm /srv/here; echo x > /bin/new; ls /srv").output().succeeded();
        assert_eq!(outcome.text(), "yes", "{}", source.display());
    }
    image(bed, &store, ["verify", "-q"]).output().succeeded();
}

fn config(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(
        &root,
        [
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nsvc:x:4711:4712::/srv/svc:/bin/sh\n"),
            ("etc/group", "svc:x:4712:\nextra:x:4713:svc\n"),
        ],
    );
    let config = r#"{"Entrypoint":["/bin/sh","-c"],"Cmd":["echo $(id -u) $(id -g) $(id -G) $A $PWD; ls -d /data"],"User":"svc",
        "Env":["A=of the image","PATH=/bin"],"WorkingDir":"/srv/made","StopSignal":"SIGINT","Volumes":{"/data":{}}}"#;
    let store = store_of(bed, &[root], config, "conf:1");
    let run = |flags: &[&str], words: &[&str]| {
        let command = bed.sandbox(["run", "-q", "--store", text(&store), "--image", "conf:1"]);
        command.args(flags).arg("--").args(words).output().succeeded().text()
    };
    assert_eq!(run(&[], &[]), "4711 4712 4712 4713 of the image /srv/made\n/data");
    assert_eq!(run(&["--uid", "0", "-e", "A=mine", "-w", "/"], &["echo $(id -u) $(id -g) $A $PWD"]), "0 0 mine /");
    assert_eq!(run(&["--entrypoint", "/bin/id"], &["-u"]), "4711");
    assert_eq!(run(&["--entrypoint", ""], &["/bin/id", "-g"]), "4712");
    let words = ["--store", text(&store), "--image", "conf:1", "--dry-run", "--entrypoint", "true"];
    assert!(bed.sandbox(["run"]).args(words).output().succeeded().text().contains("KillSignal=2\n"));
    let inspected = image(bed, &store, ["inspect", "conf:1"]).output().succeeded().text();
    for said in ["SIGINT", "/data", "svc", "/srv/made", "CHAIN ID"] {
        assert!(inspected.contains(said), "{said}: {inspected}");
    }
}

/// Whoever stops the service of an image stops its command by the image's own signal, a real-time one too.
fn stop_signal(bed: &Bed) {
    for (signal, trap) in [("SIGQUIT", "QUIT"), ("SIGRTMIN+3", "37")] {
        let root = root_dir(bed);
        let config = format!(r#"{{"StopSignal":"{signal}","Env":["PATH=/bin"]}}"#);
        let store = store_of(bed, &[root], &config, "stop:1");
        let unit = format!("{}-{trap}", bed.id());
        let script = format!(
            "trap 'echo by its own; exit 3' {trap}; trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done"
        );
        let words = ["--store", text(&store), "--image", "stop:1", "--", "sh", "-c", &script];
        bed.sandbox(["run", "--detach", "--unit", &unit]).args(words).output().succeeded();
        let said = || bed.sh(&format!("journalctl --sync; journalctl -b -u {unit} -o cat")).output().succeeded().text();
        bed.poll("the traps", || said().contains("ready"));
        bed.sandbox(["stop", &unit]).output().succeeded();
        assert!(said().contains("by its own"), "{signal}: {}", said());
        drop(bed.sandbox(["rm", &unit]).output());
    }
}

/// Whiteouts and an opaque directory of a tar become overlayfs' own.
fn deletions(bed: &Bed) {
    let (low, high) = (root_dir(bed), open_dir(bed));
    tree::fill(
        &low,
        [("srv/gone", ""), ("srv/stays", ""), ("srv/tree/a", ""), ("srv/new/old", ""), ("srv/swap/x", "")],
    );
    tree::fill(
        &high,
        [
            ("srv/.wh.gone", ""),
            ("srv/.wh.tree", ""),
            ("srv/new/.wh..wh..opq", ""),
            ("srv/new/fresh", ""),
            ("srv/swap", ""),
        ],
    );
    let store = store_of(bed, &[low, high], "{}", "del:1");
    let flags = ["--store", text(&store), "--image", "del:1"];
    let script = "cd /srv; find . | sort; mkdir tree; ls -A tree; rm -r new; mkdir new; ls -A new";
    assert_eq!(bed.run(flags, script).output().succeeded().text(), ".\n./new\n./new/fresh\n./stays\n./swap");
}

/// Nothing is chowned: the layer on disk has the image's owners, and inside they are the same.
fn owners(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("srv/f", ""), ("srv/s", "")]);
    std::os::unix::fs::chown(root.join("srv/f"), Some(33), Some(34)).unwrap();
    fs::set_permissions(root.join("srv/s"), Permissions::from_mode(0o4755)).unwrap();
    let store = store_of(bed, &[root], "{}", "own:1");
    let layers = store.join("layers");
    let before = Tree::take(&layers);
    let script = "stat -c '%u:%g %a' /srv/f /srv/s /bin; chown 0:0 /srv/f; stat -c %u /srv/f; echo x > /srv/f";
    let seen = bed.run(["--store", text(&store), "--image", "own:1"], script).output().succeeded().text();
    assert_eq!(seen, "33:34 644\n0:0 4755\n0:0 755\n0");
    before.unchanged(&layers);
}

fn many_layers(bed: &Bed) {
    for count in [128, 400] {
        let mut layers = vec![root_dir(bed)];
        for n in 1..count {
            let layer = open_dir(bed);
            tree::fill(&layer, [("srv/last", format!("{n}\n").as_str()), (format!("srv/{n}").as_str(), "")]);
            layers.push(layer);
        }
        let store = store_of(bed, &layers, "{}", "many:1");
        let flags = ["--store", text(&store), "--image", "many:1"];
        let seen = bed.run(flags, "cat /srv/last; ls /srv | wc -l; echo x > /srv/1 && echo ok").output().succeeded();
        assert_eq!(seen.text(), format!("{}\n{count}\nok", count - 1));
    }
}

/// An image that is one program, and not even has the directories that everybody has.
fn without_mount_points(bed: &Bed) {
    let root = open_dir(bed);
    let source = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(source, root.join("busybox")).unwrap();
    let store = store_of(bed, &[root], r#"{"Entrypoint":["/busybox"]}"#, "less:1");
    let name = format!("{}-less", bed.id());
    let run = |words: &[&str]| {
        let flags = ["run", "-q", "--store", text(&store), "--image", "less:1", "--name", &name, "--keep", "--"];
        bed.sandbox(flags).args(words).output().succeeded().text()
    };
    assert_eq!(run(&["ls", "/"]), "busybox\ndev\netc\nproc\nsys");
    assert_eq!(
        run(&["cat", "/proc/1/comm", "/sys/class/net/lo/ifindex", "/etc/hostname"]),
        format!("sandbox\n1\n{name}")
    );
    let diff = bed.sandbox(["diff", "--store", text(&store), &name]).output().succeeded().text();
    assert_eq!(diff, "", "what we put there is no change of the sandbox's");
}

/// A store as dockerd keeps it, made by hand: no dockerd is there, and nothing is copied.
fn of_docker_in_place(bed: &Bed) {
    let docker = bed.disk_dir();
    let diff = |id: &str| docker.join("overlay2").join(id).join("diff");
    for id in ["low", "high"] {
        fs::create_dir_all(diff(id)).unwrap();
        fs::set_permissions(diff(id), Permissions::from_mode(0o755)).unwrap();
    }
    tree::busybox(&diff("low"));
    tree::fill(&diff("low"), [("srv/gone", ""), ("srv/d/below", ""), ("srv/stays", "")]);
    tree::fill(&diff("high"), [("srv/d/new", "")]);
    tree::device(&diff("high").join("srv/gone"), 0, 0);
    tree::make_opaque(&diff("high").join("srv/d"));
    let before = Tree::take(&docker.join("overlay2"));
    let script = r#"
        cd "$1"; sum() { sha256sum | cut -d' ' -f1; }
        a=$(echo a | sum) b=$(echo b | sum); chain=$(printf 'sha256:%s sha256:%s' $a $b | sum)
        mkdir -p image/overlay2/imagedb/content/sha256 image/overlay2/layerdb/sha256/$a image/overlay2/layerdb/sha256/$chain
        printf low > image/overlay2/layerdb/sha256/$a/cache-id; printf high > image/overlay2/layerdb/sha256/$chain/cache-id
        printf 'sha256:%s' $a > image/overlay2/layerdb/sha256/$a/diff; printf 'sha256:%s' $b > image/overlay2/layerdb/sha256/$chain/diff
        printf 'sha256:%s' $a > image/overlay2/layerdb/sha256/$chain/parent
        printf '{"os":"linux","architecture":"amd64","config":{"Env":["A=docker"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' $a $b > c
        id=$(sum < c); mv c image/overlay2/imagedb/content/sha256/$id
        printf '{"Repositories":{"web":{"web:1":"sha256:%s"}}}' $id > image/overlay2/repositories.json"#;
    bed.command("sh", ["-euc", script, "sh"]).arg(&docker).output().succeeded();
    let flags = ["--docker-root", text(&docker), "--image", "docker:web:1"];
    let seen = bed.run(flags, "echo $A; cd /srv; find . | sort; rm stays; echo x > d/more").output().succeeded().text();
    assert_eq!(seen, "docker\n.\n./d\n./d/new\n./stays");
    before.unchanged(&docker.join("overlay2"));
}

fn plain_user(bed: &Bed) {
    let (low, high) = (root_dir(bed), open_dir(bed));
    tree::fill(&low, [("srv/gone", ""), ("srv/new/old", ""), ("srv/f", "low\n")]);
    tree::fill(&high, [("srv/.wh.gone", ""), ("srv/new/.wh..wh..opq", ""), ("srv/new/fresh", ""), ("srv/f", "high\n")]);
    let place = bed.user_dir();
    let source = place.join("archive.tar");
    fs::copy(archive(bed, &[low, high], r#"{"Env":["A=image"]}"#, "web:1"), &source).unwrap();
    let store = place.join("store");
    image(bed, &store, ["import", "-q", text(&source)]).user().output().succeeded();
    let script = "echo $A $(id -u); cat /srv/f; cd /srv; find . | sort; echo x > f; rm -r new; cat f";
    let flags = ["--user", "--store", text(&store), "--image", "web:1"];
    let seen = bed.run(flags, script).user().output().succeeded().text();
    assert_eq!(seen, "image 0\nhigh\n.\n./f\n./new\n./new/fresh\nx");
    image(bed, &store, ["verify", "-q"]).user().output().succeeded();
}

/// While a sandbox runs on it an image stays, whatever becomes of its name.
fn kept_by_a_lease(bed: &Bed) {
    let store = store_of(bed, &[root_dir(bed)], "{}", "used:1");
    let id = image(bed, &store, ["inspect", "-q", "used:1"]).output().succeeded().text();
    let (mut running, _) =
        bed.live(["--store", text(&store), "--image", "used:1"], "echo ready; read x; ls /bin/busybox");
    image(bed, &store, ["rm", &id]).output().refused(125, ["running sandbox"]);
    image(bed, &store, ["rm", "used:1"]).output().succeeded();
    image(bed, &store, ["gc"]).output().succeeded();
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 1, "the layer is in use");
    running.send("go\n");
    assert!(running.finish().succeeded().text().ends_with("/bin/busybox"));
    image(bed, &store, ["gc"]).output().succeeded();
    for directory in ["layers", "images", "blobs/sha256", "tmp"] {
        assert_eq!(fs::read_dir(store.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

fn killed_imports(bed: &Bed) {
    let mut layers = Vec::new();
    for n in 0..4 {
        let layer = open_dir(bed);
        for file in 0..100 {
            fs::write(layer.join(format!("{n}-{file}")), vec![u8::try_from(file).unwrap(); 20_000]).unwrap();
        }
        layers.push(layer);
    }
    let source = archive(bed, &layers, "{}", "killed:1");
    let store = bed.disk_dir().join("store");
    let start = std::time::Instant::now();
    image(bed, &bed.disk_dir().join("whole"), ["import", "-q", text(&source)]).output().succeeded();
    let whole = start.elapsed();
    for round in 1..=20 {
        let running = image(bed, &store, ["import", "-q", text(&source)]).spawn();
        std::thread::sleep(whole * round / 20);
        drop(running);
        if store.join("version").exists() {
            image(bed, &store, ["verify", "-q"]).output().succeeded();
        }
    }
    image(bed, &store, ["import", "-q", text(&source)]).output().succeeded();
    image(bed, &store, ["verify", "-q"]).output().succeeded();
    assert_eq!(fs::read_dir(store.join("tmp")).unwrap().count(), 0, "left-overs of killed imports");
}

fn refused(bed: &Bed) {
    let store = store_of(bed, &[root_dir(bed)], "{}", "x:1");
    // Quiet: on 5.10 a warning about identity would stand before the error.
    let run = |flags: &[&str]| bed.sandbox(["run", "-q", "--store", text(&store)]).args(flags).output();
    run(&["--image", "none:1", "true"]).refused(125, ["none:1", "not in the store"]);
    run(&["--image", "x:1"]).refused(125, ["names no command"]);
    run(&["--image", "x:1", "--rootfs", "/", "true"]).refused(125, ["--rootfs"]);
    run(&["--image", "docker:none", "--docker-root", text(&bed.disk_dir()), "true"])
        .refused(125, ["no image store of Docker's"]);
    run(&["--keep", "--image", "x:1", "true"]).refused(125, ["--name"]);
    run(&["--image", "x:1", "--uid", "nobody-here", "true"]).refused(125, ["nobody-here"]);
}
