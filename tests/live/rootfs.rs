//! Roots from directories: `--rootfs`, `--layer`, kept uppers, and layers that mean harm.

use crate::bed::Bed;
use crate::tree::{self, Tree};
use crate::{Test, test};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("rootfs/busybox", needs![root, systemd], busybox),
        test("rootfs/own_accounts", needs![root, systemd], own_accounts),
        test("rootfs/init_layer", needs![root, systemd], init_layer),
        test("rootfs/layer_order", needs![root, systemd], layer_order),
        test("rootfs/whiteouts", needs![root, systemd, disk], whiteouts),
        test("rootfs/owners", needs![root, systemd], owners),
        test("rootfs/128_layers", needs![root, systemd], hundred_layers),
        test("rootfs/400_layers", needs![root, systemd], many_layers),
        test("rootfs/device_in_a_layer", needs![root, systemd], device_in_a_layer),
        test("rootfs/setuid_in_a_layer", needs![root, systemd], setuid_in_a_layer),
        test("rootfs/links_that_lead_out", needs![root, systemd], links_that_lead_out),
        test("rootfs/one_root", needs![root, systemd], one_root),
        test("rootfs/parts_that_are_files", needs![root, systemd], parts_that_are_files),
        test("rootfs/read_only", needs![root, systemd], read_only),
        test("rootfs/upper_is_kept", needs![root, systemd, disk], upper_is_kept),
        test("rootfs/upper_owners", needs![root, systemd, disk], upper_owners),
        test("rootfs/upper_of_host_view", needs![root, systemd], upper_of_host_view),
        test("rootfs/upper_is_locked", needs![root, systemd, disk], upper_is_locked),
        test("rootfs/upper_refused", needs![root, systemd, disk], upper_refused),
        test("rootfs/refused", needs![root, systemd], refused),
    ]
}

fn root_dir(bed: &Bed) -> PathBuf {
    let root = bed.disk_dir();
    fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    tree::busybox(&root);
    root
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn busybox(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("etc/", ""), ("srv/here", "yes\n")]);
    let before = Tree::take(&root);
    let script = "cat /srv/here; ls /; ls /proc/self/ns > /dev/null && ls /sys/class/net; echo $$ $HOME; pwd; \
        rm /srv/here; mkdir /new; echo x > /bin/x; mv /srv /moved; chown 5 /bin/cat; ls /moved";
    let outcome = bed.run(["--rootfs", text(&root)], script).output().succeeded();
    assert_eq!(outcome.text(), "yes\nbin\ndev\netc\nproc\nsrv\nsys\nlo\n2 /root\n/");
    before.unchanged(&root);
    // A relative path and a link to it are as good.
    let link = bed.dir().join("link");
    symlink(&root, &link).unwrap();
    bed.run(["--rootfs", "link"], "cat /srv/here").dir(link.parent().unwrap()).output().succeeded();
}

/// Users and groups are those of the root, not of the host.
fn own_accounts(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(
        &root,
        [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsvc:x:4711:4712:a service:/srv/svc:/bin/sh\n"),
            ("etc/group", "root:x:0:\nsvc:x:4712:\nextra:x:4713:other,svc\nother:x:4714:\n"),
            ("srv/svc/", ""),
        ],
    );
    let run = |flags: &[&str]| {
        let flags = ["--rootfs", text(&root)].into_iter().chain(flags.iter().copied());
        bed.run(flags, "echo $(id -u) $(id -g) $(id -G) $USER $HOME").output().succeeded().text()
    };
    assert_eq!(run(&[]), "0 0 0 root /root");
    assert_eq!(run(&["--uid", "svc"]), "4711 4712 4712 4713 svc /srv/svc");
    assert_eq!(run(&["--uid", "4711"]), "4711 4712 4712 4713 svc /srv/svc");
    assert_eq!(run(&["--uid", "svc", "--gid", "other"]), "4711 4714 4714 4713 svc /srv/svc");
    assert_eq!(run(&["-p", "User=svc", "-p", "Group=4715"]), "4711 4715 4715 4713 svc /srv/svc");
    assert_eq!(run(&["--uid", "12345"]), "12345 0 0 12345 /");
    let tester = bed.run(["--rootfs", text(&root), "--uid", "tester"], "true").output();
    tester.refused(125, ["--uid tester", "no such user"]);
    bed.run(["--rootfs", text(&root), "--gid", "tester"], "true")
        .output()
        .refused(125, ["--gid tester", "no such group"]);
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf are there, whatever the layer has, and never in the layer.
fn init_layer(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("etc/hostname", "image\n"), ("etc/other", "kept\n")]);
    symlink("/run/nowhere/resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let before = Tree::take(&root);
    let script = "cat /etc/hostname /etc/other; cat /etc/hosts; test -f /etc/resolv.conf && ! test -L /etc/resolv.conf; echo x > /etc/hosts";
    let shown = bed.run(["--rootfs", text(&root), "--hostname", "web"], script).output().succeeded().text();
    assert!(shown.starts_with("web\nkept\n127.0.0.1\tlocalhost") && shown.contains("127.0.1.1\tweb"), "{shown}");
    before.unchanged(&root);
    // Without /etc they are there, too.
    let bare = root_dir(bed);
    assert_eq!(
        bed.run(["--rootfs", text(&bare), "--hostname", "b"], "cat /etc/hostname").output().succeeded().text(),
        "b"
    );
}

fn flags_of(layers: &[PathBuf]) -> Vec<String> {
    layers.iter().flat_map(|layer| ["--layer".to_owned(), layer.display().to_string()]).collect()
}

fn layer_order(bed: &Bed) {
    let layers = [root_dir(bed), bed.disk_dir(), bed.disk_dir()];
    tree::fill(&layers[0], [("f", "1"), ("g", "1"), ("d/one", ""), ("h", "1")]);
    tree::fill(&layers[1], [("f", "2"), ("g", "2"), ("d/two", "")]);
    tree::fill(&layers[2], [("f", "3"), ("d/three", ""), ("h/", "")]);
    let before = layers.each_ref().map(|layer| Tree::take(layer));
    let shown = bed
        .run(flags_of(&layers), "cat /f /g; ls /d /h; rm -r /d; mkdir /d; ls /d; echo x > /f")
        .output()
        .succeeded()
        .text();
    assert_eq!(shown, "32/d:\none\nthree\ntwo\n\n/h:");
    before.iter().zip(&layers).for_each(|(tree, layer)| tree.unchanged(layer));
    let conflict = bed.run(["--rootfs", "/srv", "--layer", "/srv"], "true").output();
    conflict.refused(125, ["--rootfs", "--layer"]);
}

/// A layer's marks as overlayfs keeps them, and as Docker's store has them.
fn whiteouts(bed: &Bed) {
    let layers = [root_dir(bed), bed.disk_dir(), bed.disk_dir()];
    tree::fill(&layers[0], [("gone", "1"), ("d/below", "1"), ("dir/x", "1"), ("back", "1")]);
    tree::fill(&layers[1], [("d/above", "2")]);
    tree::device(&layers[1].join("gone"), 0, 0);
    tree::device(&layers[1].join("dir"), 0, 0);
    tree::device(&layers[1].join("back"), 0, 0);
    tree::make_opaque(&layers[1].join("d"));
    tree::fill(&layers[2], [("back", "3")]);
    let script =
        "test ! -e /gone && test ! -e /dir && ls /d && cat /back; mkdir /dir && ls /dir && rm /d/above && ls /d";
    assert_eq!(bed.run(flags_of(&layers), script).output().succeeded().text(), "above\n3");
}

/// Nothing is chowned, and inside all belongs to whom it belonged.
fn owners(bed: &Bed) {
    let layers = [root_dir(bed), bed.disk_dir()];
    tree::fill(&layers[1], [("data/f", "x")]);
    for (path, owner) in [("data", 100), ("data/f", 65_533)] {
        std::os::unix::fs::chown(layers[1].join(path), Some(owner), Some(owner + 1)).unwrap();
    }
    let before = Tree::take(&layers[1]);
    let script = "stat -c '%u:%g' /data /data/f /bin/busybox; touch /data/new && stat -c '%u:%g' /data/new; chown 7:8 /data/f && stat -c '%u:%g' /data/f";
    assert_eq!(bed.run(flags_of(&layers), script).output().succeeded().text(), "100:101\n65533:65534\n0:0\n0:0\n7:8");
    before.unchanged(&layers[1]);
}

fn stack(bed: &Bed, count: usize) {
    let base = root_dir(bed);
    let top = bed.disk_dir();
    let mut layers = vec![base];
    for number in 1..count {
        let layer = top.join(number.to_string());
        tree::fill(&layer, [("last", number.to_string().as_str()), (format!("only-{number}").as_str(), "")]);
        layers.push(layer);
    }
    let shown = bed.run(flags_of(&layers), "cat /last; set -- /only-*; echo; echo $#; echo x > /only-1").output();
    assert_eq!(shown.succeeded().text(), format!("{}\n{}", count - 1, count - 1));
}

fn hundred_layers(bed: &Bed) {
    stack(bed, 128);
}

fn many_layers(bed: &Bed) {
    stack(bed, 400);
}

fn device_in_a_layer(bed: &Bed) {
    let root = root_dir(bed);
    tree::device(&root.join("null"), 1, 3);
    tree::device(&root.join("mem"), 1, 1);
    for userns in ["auto", "identity", "host"] {
        let outcome = bed
            .run(["--userns", userns, "--rootfs", text(&root)], "for d in /null /mem; do cat $d; done; echo x > /null")
            .output();
        assert_eq!(outcome.errors().matches("Permission denied").count(), 3, "--userns {userns}: {}", outcome.errors());
        assert_ne!(outcome.status, 0);
    }
}

fn setuid_in_a_layer(bed: &Bed) {
    let root = root_dir(bed);
    fs::create_dir(root.join("suid")).unwrap();
    fs::copy(root.join("bin/busybox"), root.join("suid/id")).unwrap();
    fs::set_permissions(root.join("suid/id"), std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    let script = "stat -c %a /suid/id; /suid/id -u";
    for userns in ["auto", "host"] {
        let flags = ["--userns", userns, "--rootfs", text(&root), "--uid", "1234"];
        assert_eq!(bed.run(flags, script).output().succeeded().text(), "4755\n1234");
    }
}

/// The ways to a root: who makes it, and who takes the old one away.
const MODES: &[&[&str]] = &[
    &[],
    &["--userns", "host"],
    &["--userns", "identity"],
    &["--share", "pid"],
    &["--network", "host"],
    &["--share", "pid", "--network", "host", "--userns", "host"],
];

/// Whatever made it, there is one root, and nothing is above it.
fn one_root(bed: &Bed) {
    let script = "awk '$5 == \"/\"' /proc/self/mountinfo | wc -l; [ \"$(stat -c %d:%i /)\" = \"$(stat -c %d:%i /..)\" ] && echo same";
    for mode in MODES.iter().chain(&[&["--read-only"][..], &["--as-pid1"], &["--cap-add", "SYS_CHROOT"]]) {
        assert_eq!(bed.run(*mode, script).output().succeeded().text(), "1\nsame", "{mode:?}");
    }
}

/// Each place that we mount on or write to, as a link that leads to something outside.
fn links_that_lead_out(bed: &Bed) {
    let victim = bed.seen_dir();
    tree::fill(
        &victim,
        [("proc/", ""), ("dev/null", "file\n"), ("etc/hosts", "old\n"), ("sys/", ""), ("tmp/", ""), ("mnt/f", "f\n")],
    );
    let before = Tree::take(&victim);
    let up = format!("../../../../../../..{}", victim.display());
    let targets = [victim.display().to_string(), up];
    let modes = MODES.iter().flat_map(|mode| targets.iter().map(move |target| (mode, target)));
    for (mode, target) in modes {
        for name in ["proc", "dev", "etc", "sys", "mnt"] {
            let root = root_dir(bed);
            symlink(format!("{target}/{name}"), root.join(name)).unwrap();
            let own = ["--rootfs", text(&root), "--tmpfs", "/mnt/t", "--bind", "/usr:/mnt/usr"];
            let flags: Vec<&str> = mode.iter().copied().chain(own).collect();
            let outcome = bed
                .run(
                    flags,
                    "echo ran; echo x > /etc/hosts; echo y > /dev/null; ls /proc/self > /dev/null; touch /mnt/x",
                )
                .output();
            let said = format!("{mode:?} {target} {name}: {} {}", outcome.status, outcome.errors());
            assert!(outcome.status == 0 || outcome.status == 125, "{said}");
            before.unchanged(&victim);
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains(text(&victim)), "{said}: a mount came out");
        }
    }
    // Nothing is stacked on the root.
    for target in ["/", ".."] {
        let root = root_dir(bed);
        let _ = fs::remove_dir(root.join("mnt"));
        symlink(target, root.join("mnt")).unwrap();
        bed.run(["--rootfs", text(&root), "--bind", "/usr:/mnt"], "true")
            .output()
            .refused(125, ["/mnt", "the root itself"]);
    }
    // Loops end with an error.
    let root = root_dir(bed);
    symlink("dev", root.join("dev")).unwrap();
    bed.run(["--rootfs", text(&root)], "true").output().refused(125, ["/dev"]);
}

fn parts_that_are_files(bed: &Bed) {
    for name in ["proc", "dev", "sys"] {
        let root = root_dir(bed);
        tree::fill(&root, [(name, "a file\n")]);
        bed.run(["--rootfs", text(&root)], "true").output().refused(125, [name]);
        assert_eq!(fs::read_to_string(root.join(name)).unwrap(), "a file\n");
    }
}

fn read_only(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("srv/f", "")]);
    let before = Tree::take(&root);
    let flags = ["--rootfs", text(&root), "--read-only", "--tmpfs", "/tmp", "--bind", "/usr/share:/mnt/deep/er"];
    let script = "for f in /x /srv/f /etc/hosts /bin/y; do (echo x > $f) 2>/dev/null && echo wrote $f; done; \
        echo x > /tmp/x && echo x > /dev/shm/x && ls /mnt/deep/er > /dev/null && echo tmp";
    assert_eq!(bed.run(flags, script).output().succeeded().text(), "tmp");
    before.unchanged(&root);
}

fn upper_is_kept(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("srv/f", "old\n"), ("srv/gone", ""), ("srv/d/x", "")]);
    let before = Tree::take(&root);
    let upper = bed.disk_dir().join("upper");
    let flags = ["--rootfs", text(&root), "--upper", text(&upper)];
    let first = "echo first >> /srv/f; rm /srv/gone; rm -r /srv/d; mkdir /srv/d; echo s > /srv/d/new; mkdir /made; chown 33:34 /made";
    bed.run(flags, first).output().succeeded();
    let second = "cat /srv/f; ls /srv /srv/d; stat -c %u:%g /made; echo second >> /srv/f; rmdir /made";
    assert_eq!(bed.run(flags, second).output().succeeded().text(), "old\nfirst\n/srv:\nd\nf\n\n/srv/d:\nnew\n33:34");
    let link = bed.disk_dir().join("link");
    std::os::unix::fs::symlink(&upper, &link).unwrap();
    let flags = ["--rootfs", text(&root), "--upper", text(&link)];
    assert_eq!(bed.run(flags, "cat /srv/f; ls -d /made 2>/dev/null").output().text(), "old\nfirst\nsecond");
    before.unchanged(&root);
    assert_eq!(
        bed.run(["--rootfs", text(&root)], "cat /srv/f").output().succeeded().text(),
        "old",
        "without --upper nothing of it is there"
    );
}

/// Root inside is owner 0 on disk: no number of a range that the next sandbox does not have.
fn upper_owners(bed: &Bed) {
    let root = root_dir(bed);
    tree::fill(&root, [("srv/f", "")]);
    let upper = bed.disk_dir().join("upper");
    let script = "echo x >> /srv/f; mkdir /dir; echo y > /dir/y; echo z > /dir/z; chown 33:34 /dir/z; rm /bin/find";
    bed.run(["--rootfs", text(&root), "--upper", text(&upper)], script).output().succeeded();
    let mut owners: Vec<(String, u32, u32)> = Vec::new();
    let mut todo = vec![upper.clone()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        owners.push((path.display().to_string(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    for (path, uid, gid) in &owners {
        let expected = if path.ends_with("/dir/z") { (33, 34) } else { (0, 0) };
        assert_eq!((*uid, *gid), expected, "{path}");
    }
    assert!(owners.iter().any(|(path, ..)| path.ends_with("/dir/z")), "{owners:?}");
    assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o777, 0o700, "nobody else looks into it");
    // In a directory that others may enter, what is made in it keeps them out: a set-user-ID file of root's would be one outside.
    let open = bed.disk_dir();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bed.run(["--rootfs", text(&root), "--upper", text(&open)], "echo x > /suid; chmod 4755 /suid").output().succeeded();
    let look = format!("find {} -name suid", open.display());
    assert_ne!(bed.sh(&look).output().text(), "");
    assert_eq!(bed.sh(&look).user().output().text(), "", "a plain user of the host finds it");
}

fn upper_of_host_view(bed: &Bed) {
    if bed.facts.root_fs == "overlay" {
        let upper = bed.disk_dir().join("upper");
        bed.run(["--upper", text(&upper)], "true").output().refused(125, ["--upper", text(&upper), "overlay"]);
        return;
    }
    let dir = bed.seen_dir();
    tree::fill(&dir, [("f", "old\n")]);
    let before = Tree::take(&dir);
    let upper = bed.disk_dir().join("upper");
    let flags = ["--upper", text(&upper)];
    let first =
        format!("echo new > {}/f; rm /etc/hosts /etc/passwd; echo x > /etc/added; mkdir /newtop", dir.display());
    bed.run(flags, &first).output().succeeded();
    let second = format!(
        "cat {}/f /etc/added; test ! -e /etc/hosts -a ! -e /etc/passwd -a -d /newtop && echo gone",
        dir.display()
    );
    assert_eq!(bed.run(flags, &second).output().succeeded().text(), "new\nx\ngone");
    before.unchanged(&dir);
    assert!(Path::new("/etc/passwd").exists() && !Path::new("/etc/added").exists());
}

fn upper_is_locked(bed: &Bed) {
    let root = root_dir(bed);
    let upper = bed.disk_dir().join("upper");
    let flags = ["--rootfs", text(&root), "--upper", text(&upper)];
    let (running, _) = bed.live(flags, "echo ready; exec cat");
    bed.run(flags, "echo never").output().refused(125, ["--upper", text(&upper), "another sandbox uses it"]);
    running.finish().succeeded();
    // At once: the launcher has ended when its overlay is gone.
    for _ in 0..5 {
        bed.run(flags, "echo x >> /f").output().succeeded();
    }
    assert_eq!(bed.run(flags, "set -- $(cat /f); echo $#").output().succeeded().text(), "5");
    // Killed, it holds no lock either.
    let (running, scope) = bed.live(flags, "echo ready; exec cat");
    running.signal(rustix::process::Signal::KILL);
    assert_eq!(running.finish().status, 137);
    bed.poll("all gone", || crate::unit::is_gone(&scope));
    bed.poll("the lock is free", || bed.run(flags, "true").output().status == 0);
}

fn upper_refused(bed: &Bed) {
    bed.run(["--upper", "/no/such/parent/dir"], "true").output().refused(125, ["--upper", "/no/such/parent"]);
    let file = bed.disk_dir().join("file");
    fs::write(&file, "").unwrap();
    bed.run(["--upper", text(&file)], "true").output().refused(125, ["--upper", text(&file), "Not a directory"]);
    assert_eq!(fs::read(&file).unwrap(), b"");
}

fn refused(bed: &Bed) {
    bed.run(["--rootfs", "/etc/passwd"], "true").output().refused(125, ["--rootfs", "/etc/passwd", "Not a directory"]);
    bed.run(["--layer", "/no/such"], "true").output().refused(125, ["--layer", "/no/such", "No such file"]);
    let empty = bed.disk_dir();
    bed.run(["--rootfs", text(&empty)], "true").output().refused(127, ["sh", "not found in PATH"]);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "nothing was made in it");
}
