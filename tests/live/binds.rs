//! What is brought into a root: `--bind`, `--tmpfs`, and mounts of the host beside its root.

use crate::bed::Bed;
use crate::tree::{self, Tree};
use crate::{Test, alone, test};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("binds/read_write", needs![root, systemd], read_write),
        test("binds/read_only", needs![root, systemd], read_only),
        test("binds/owner_outside", needs![root, systemd], owner_outside),
        test("binds/file", needs![root, systemd], file),
        test("binds/places", needs![root, systemd], places),
        test("binds/into_hidden", needs![root, systemd], into_hidden),
        test("binds/nested", needs![root, systemd], nested),
        test("binds/made_in_a_bind", needs![root, systemd], made_in_a_bind),
        test("binds/submounts", needs![root, systemd], submounts),
        test("binds/device_and_setuid", needs![root, systemd], device_and_setuid),
        test("binds/links", needs![root, systemd], links),
        test("binds/cannot_be_made_writable", needs![root, systemd], cannot_be_made_writable),
        test("binds/refused", needs![root, systemd], refused),
        test("binds/tmpfs", needs![root, systemd], tmpfs),
        test("binds/tmpfs_refused", needs![root, systemd], tmpfs_refused),
        alone("binds/mount_of_its_own", needs![root, systemd], mount_of_its_own),
        alone("binds/unbindable_mount_of_the_host", needs![root, systemd], unbindable_mount_of_the_host),
        alone("binds/read_only_mount_of_the_host", needs![root, systemd], read_only_mount_of_the_host),
        alone("binds/dead_server", needs![root, systemd, fuse], dead_server),
    ]
}

fn flag(source: &Path, rest: &str) -> String {
    format!("{}{rest}", source.display())
}

fn read_write(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("f", "outside\n"), ("d/", "")]);
    let (mut running, _) = bed.live(
        ["--bind", &flag(&dir, ":/mnt/b")],
        "cat /mnt/b/f; echo inside > /mnt/b/f; mkdir /mnt/b/new; rmdir /mnt/b/d; echo ready; read x; cat /mnt/b/late",
    );
    assert!(running.stdout_so_far().starts_with("outside\n"));
    assert_eq!(fs::read_to_string(dir.join("f")).unwrap(), "inside\n");
    assert!(dir.join("new").is_dir() && !dir.join("d").exists());
    fs::write(dir.join("late"), "seen\n").unwrap();
    running.send("\n");
    running.wait_for("seen");
    running.finish().succeeded();
}

fn read_only(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("f", "x\n"), ("d/g", "y\n")]);
    let before = Tree::take(&dir);
    let script = "cat /b/f /b/d/g; for c in 'touch /b/new' 'rm /b/f' 'mv /b/f /b/h' 'chmod 1 /b/f' 'ln /b/f /b/l' 'chown 1 /b/f'; do $c 2>&1 && echo done: $c; done; true";
    let shown = bed.run(["-v", &flag(&dir, ":/b:ro")], script).output().succeeded().text();
    assert!(shown.starts_with("x\ny\n") && shown.matches("Read-only file system").count() == 6, "{shown}");
    before.unchanged(&dir);
    bed.run(["-v", &flag(&dir, ":/b:rw")], "touch /b/new").output().succeeded();
    assert!(dir.join("new").exists());
}

/// Who writes as root inside writes as root outside, whatever the map; user 33 stays 33.
fn owner_outside(bed: &Bed) {
    let dir = bed.disk_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    bed.run(["--bind", &flag(&dir, ":/b")], "echo x > /b/root; mkdir /b/d; chown 5:6 /b/d").output().succeeded();
    bed.run(
        ["--bind", &flag(&dir, ":/b"), "--uid", "33", "--gid", "34"],
        "echo x > /b/other; stat -c %u:%g /b/root /b/other",
    )
    .output()
    .succeeded();
    let owner = |name: &str| fs::metadata(dir.join(name)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!((owner("root"), owner("d"), owner("other")), ((0, 0), (5, 6), (33, 34)));
}

fn file(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("one", "1\n"), ("two", "2\n")]);
    let flags =
        ["--bind", &flag(&dir.join("one"), ":/etc/one.conf"), "--bind", &flag(&dir.join("two"), ":/etc/hosts:ro")];
    let shown = bed.run(flags, "cat /etc/one.conf /etc/hosts; echo new > /etc/one.conf; ! (echo x > /etc/hosts) 2>/dev/null; rm /etc/one.conf 2>/dev/null || echo busy").output();
    assert_eq!(shown.succeeded().text(), "1\n2\nbusy");
    assert_eq!(fs::read_to_string(dir.join("one")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(dir.join("two")).unwrap(), "2\n");
    assert!(!Path::new("/etc/one.conf").exists(), "the mount point was made inside only");
}

fn places(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("f", "x\n")]);
    let path = dir.to_str().unwrap();
    // Without DST it is at the same path; a place that does not exist is made; over one that does, it hides it.
    assert_eq!(bed.run(["--bind", path], &format!("cat {path}/f")).output().succeeded().text(), "x");
    assert_eq!(
        bed.run(["--bind", &flag(&dir, ":/a/b/c/d")], "cat /a/b/c/d/f; stat -c '%a %u' /a /a/b")
            .output()
            .succeeded()
            .text(),
        "x\n755 0\n755 0"
    );
    assert_eq!(bed.run(["--bind", &flag(&dir, ":/usr/share")], "ls /usr/share").output().succeeded().text(), "f");
    assert_eq!(bed.run(["--bind", ".:/here"], "ls /here").dir(&dir).output().succeeded().text(), "f");
    assert!(
        !Path::new("/a").exists() && Path::new("/usr/share/zoneinfo").exists() | Path::new("/usr/share/dpkg").exists()
    );
    let spaced = dir.join("with space,comma");
    fs::create_dir(&spaced).unwrap();
    assert_eq!(
        bed.run(["--bind", &flag(&spaced, ":/mnt/a b,c")], "ls -d '/mnt/a b,c'").output().succeeded().text(),
        "/mnt/a b,c"
    );
}

fn into_hidden(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("f", "x\n")]);
    for place in
        ["/home/me/work", "/root/.cache", "/run/some", "/tmp/deep/er", "/var/tmp/x", "/dev/shm/x", "/var/log/mine"]
    {
        let shown =
            bed.run(["--bind", &flag(&dir, &format!(":{place}"))], &format!("cat {place}/f")).output().succeeded();
        assert_eq!(shown.text(), "x", "{place}");
    }
    // Its parents are root's, and whoever is root inside may go there.
    bed.run(["--bind", &flag(&dir, ":/home/me/work")], "touch /home/me/beside && stat -c %u /home/me")
        .output()
        .succeeded();
}

fn nested(bed: &Bed) {
    let (outer, inner) = (bed.disk_dir(), bed.disk_dir());
    tree::fill(&outer, [("sub/hidden", ""), ("f", "")]);
    tree::fill(&inner, [("deep", "")]);
    // In whatever order they are given.
    let (first, second) = (flag(&outer, ":/b"), flag(&inner, ":/b/sub:ro"));
    for flags in [["--bind", &first, "--bind", &second], ["--bind", &second, "--bind", &first]] {
        let shown =
            bed.run(flags, "ls /b /b/sub; touch /b/ok; ! touch /b/sub/no 2>/dev/null").output().succeeded().text();
        assert_eq!(shown, "/b:\nf\nsub\n\n/b/sub:\ndeep", "{flags:?}");
        fs::remove_file(outer.join("ok")).unwrap();
    }
    let shown = bed.run(["--bind", &first, "--tmpfs", "/b/sub"], "ls /b/sub; touch /b/sub/x").output().succeeded();
    assert_eq!(shown.text(), "");
    assert!(outer.join("sub/hidden").exists() && !outer.join("sub/x").exists());
}

/// A place that is missing in a bind is made in it, as root's.
fn made_in_a_bind(bed: &Bed) {
    let dir = bed.disk_dir();
    let flags = ["--bind", &flag(&dir, ":/b"), "--tmpfs", "/b/new/er", "--bind", "/etc/passwd:/b/one"];
    bed.run(flags, "touch /b/new/er/x && test -s /b/one").output().succeeded();
    for name in ["new", "new/er", "one"] {
        let meta = fs::metadata(dir.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{name}");
    }
    assert!(!dir.join("new/er/x").exists() && fs::read(dir.join("one")).unwrap().is_empty());
    // A read-only one is not written to for that.
    let flags = ["--bind", &flag(&bed.disk_dir(), ":/b:ro"), "--tmpfs", "/b/new"];
    bed.run(flags, "true").output().refused(125, ["/b/new"]);
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, flags: MountFlags) -> Self {
        fs::create_dir_all(at).unwrap();
        mount("tmpfs", at, "tmpfs", flags, c"mode=0755").unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Below kernel 6.3 a tmpfs cannot be idmapped, so with a range of its own the sandbox cannot have it.
fn tmpfs_can_be_mapped(bed: &Bed) -> bool {
    bed.facts.kernel >= (6, 3) || bed.facts.has(&crate::facts::Need::Idmap).is_err()
}

fn submounts(bed: &Bed) {
    let dir = bed.disk_dir();
    let below = Mounted::tmpfs(&dir.join("mem"), MountFlags::empty());
    tree::fill(&below.0, [("f", "deep\n")]);
    let flags = ["--bind", &flag(&dir, ":/b")];
    let outcome = bed.run(flags, "cat /b/mem/f; touch /b/mem/new").output();
    if tmpfs_can_be_mapped(bed) {
        assert_eq!(outcome.succeeded().text(), "deep");
        assert!(below.0.join("new").exists());
        bed.run(["--bind", &flag(&dir, ":/b:ro")], "! touch /b/mem/more 2>/dev/null").output().succeeded();
    } else {
        outcome.refused(125, ["map the owners of bind"]);
    }
}

fn device_and_setuid(bed: &Bed) {
    let dir = bed.disk_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    tree::device(&dir.join("null"), 1, 3);
    fs::copy("/usr/bin/id", dir.join("id")).unwrap();
    fs::set_permissions(dir.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let bind = flag(&dir, ":/b");
    for userns in ["auto", "host"] {
        let flags = ["--userns", userns, "--bind", &bind, "--uid", "1234"];
        let outcome = bed.run(flags, "/b/id -u; cat /b/null").output();
        assert!(
            outcome.text() == "1234" && outcome.errors().contains("Permission denied"),
            "{userns}: {} {}",
            outcome.text(),
            outcome.errors()
        );
    }
}

/// A source is taken where its links lead on the host; a place is resolved inside.
fn links(bed: &Bed) {
    let dir = bed.disk_dir();
    tree::fill(&dir, [("real/f", "x\n")]);
    symlink("real", dir.join("link")).unwrap();
    assert_eq!(bed.run(["--bind", &flag(&dir.join("link"), ":/b")], "cat /b/f").output().succeeded().text(), "x");
    let root = bed.disk_dir();
    tree::busybox(&root);
    symlink("/inside", root.join("out")).unwrap();
    let flags = ["--rootfs", root.to_str().unwrap(), "--bind", &flag(&dir.join("real"), ":/out/b")];
    assert_eq!(bed.run(flags, "cat /inside/b/f").output().succeeded().text(), "x");
    assert!(!Path::new("/inside").exists() && !root.join("inside").exists());
}

fn cannot_be_made_writable(bed: &Bed) {
    let dir = bed.disk_dir();
    let script = "mount -o remount,rw,bind /b 2>&1; umount /b 2>&1; touch /b/x 2>&1; unshare -Ur mount -o remount,rw,bind /b 2>&1; unshare -Urm sh -c 'mount -o remount,bind,rw /b; touch /b/x' 2>&1; true";
    for flags in [&["--userns", "auto"][..], &["--cap-add", "SYS_ADMIN"]] {
        bed.run(flags.iter().copied().chain(["--bind", flag(&dir, ":/b:ro").as_str()]), script).output().succeeded();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "{flags:?}");
    }
}

fn refused(bed: &Bed) {
    for (bind, [first, second]) in [
        ("/no/such", ["/no/such", "No such file"]),
        ("/srv:relative", ["relative", "begins with /"]),
        ("/srv:/b:rx", ["rx", "ro and rw"]),
        ("/srv:/b:ro:x", ["/srv:/b:ro:x", "SRC[:DST[:ro|rw]]"]),
        ("/srv:/", ["/", "the root itself"]),
        (":/b", [":/b", "SRC"]),
    ] {
        bed.run(["--bind", bind], "true").output().refused(125, ["--bind", first, second]);
    }
}

fn tmpfs(bed: &Bed) {
    let shown = bed.run(["--tmpfs", "/srv:1M", "--tmpfs", "/a/b"], "stat -c '%a %u' /srv /a/b; ls -A /srv; head -c 900000 /dev/zero > /srv/x && echo fits; head -c 2000000 /dev/zero > /srv/y").output();
    assert!(shown.status != 0 && shown.errors().contains("No space left"), "{}", shown.errors());
    assert_eq!(shown.text(), "1777 0\n1777 0\nfits");
    // As Docker writes it.
    let shown = bed.run(["--tmpfs", "/srv:size=1m"], "head -c 2000000 /dev/zero > /srv/y").output();
    assert!(shown.errors().contains("No space left"), "{}", shown.errors());
    bed.run(["--tmpfs", "/srv:1M", "--uid", "33"], "touch /srv/mine").output().succeeded();
    assert!(!Path::new("/srv/mine").exists());
}

fn tmpfs_refused(bed: &Bed) {
    let both = ["--bind", "/etc/passwd:/there", "--tmpfs", "/there"];
    bed.run(both, "true").output().refused(125, ["--bind /etc/passwd:/there", "--tmpfs /there"]);
    for (value, word) in
        [("relative", "begins with /"), ("/", "root"), ("/a:much", "much"), ("/a:0", "at least"), ("/a:-1", "-1")]
    {
        bed.run(["--tmpfs", value], "true").output().refused(125, ["--tmpfs", word]);
    }
}

/// A file system of its own on the host is seen, with a writable layer of its own.
fn mount_of_its_own(bed: &Bed) {
    let dir = bed.seen_dir();
    let mounted = Mounted::tmpfs(&dir.join("data"), MountFlags::empty());
    tree::fill(&mounted.0, [("f", "old\n"), ("d/x", "x\n")]);
    let before = Tree::take(&mounted.0);
    let at = mounted.0.display();
    let shown =
        bed.run([""; 0], &format!("cd {at}; cat f d/x; echo new > f && cat f; rm -r d; touch more; ls")).output();
    if tmpfs_can_be_mapped(bed) {
        assert_eq!(shown.succeeded().text(), "old\nx\nnew\nf\nmore");
    } else {
        assert!(shown.text().starts_with("old\nx"), "seen, if not to be written: {} {}", shown.text(), shown.errors());
    }
    before.unchanged(&mounted.0);
    // A file that is a mount.
    let one = dir.join("one");
    fs::write(&one, "below\n").unwrap();
    mount(mounted.0.join("f"), &one, "", MountFlags::BIND, None).unwrap();
    let file = Mounted(one.clone());
    assert_eq!(bed.run([""; 0], &format!("cat {}", one.display())).output().succeeded().text(), "old");
    drop(file);
}

/// It cannot be bound elsewhere, and is skipped without a word where what it is in is bound with all below it: then what it covers would
/// be seen.
fn unbindable_mount_of_the_host(bed: &Bed) {
    let dir = bed.seen_dir();
    tree::fill(&dir, [("from/f", "the mount's\n"), ("at/f", "covered\n")]);
    let at = dir.join("at");
    mount(dir.join("from"), &at, "", MountFlags::BIND, None).unwrap();
    let mounted = Mounted(at);
    rustix::mount::mount_change(&mounted.0, MountPropagationFlags::UNBINDABLE).unwrap();
    let shown = bed.run([""; 0], &format!("cat {}/f", mounted.0.display())).output().succeeded();
    assert_eq!(shown.text(), "the mount's");
    let bind = format!("{}:/mnt", dir.display());
    assert_eq!(bed.run(["--bind", &bind], "cat /mnt/at/f").output().succeeded().text(), "the mount's");
}

fn read_only_mount_of_the_host(bed: &Bed) {
    let dir = bed.seen_dir();
    let mounted = Mounted::tmpfs(&dir.join("iso"), MountFlags::empty());
    tree::fill(&mounted.0, [("f", "x\n")]);
    rustix::mount::mount_remount(&mounted.0, MountFlags::RDONLY, "").unwrap();
    let at = mounted.0.display();
    let shown =
        bed.run([""; 0], &format!("cat {at}/f; touch {at}/new 2>/dev/null || echo read-only")).output().succeeded();
    assert_eq!(shown.text(), "x\nread-only");
}

/// A mount whose server does not answer: whoever looks at it hangs. A start must not.
fn dead_server(bed: &Bed) {
    let dir = bed.seen_dir();
    let at = dir.join("net");
    fs::create_dir(&at).unwrap();
    let server = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    mount("dead", &at, "fuse.sshfs", MountFlags::empty(), options.as_c_str())
        .or_else(|_| mount("dead", &at, "fuse", MountFlags::empty(), options.as_c_str()))
        .unwrap();
    let mounted = Mounted(at.clone());
    // It does hang:
    let mut stuck = bed.command("stat", [at.join("x")]).spawn();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!stuck.is_over(), "the server is not dead enough: {}", stuck.stderr_so_far());
    let outcome = bed
        .run([""; 0], &format!("ls -A {}; touch {}/beside; echo in", at.display(), dir.display()))
        .timeout(Duration::from_secs(20))
        .output();
    assert_eq!(outcome.succeeded().text(), "in", "the place is there and empty");
    let flags = ["--read-only", "--tmpfs", "/mnt/x", "--bind", "/usr:/mnt/y"];
    bed.run(flags, "true").timeout(Duration::from_secs(20)).output().succeeded();
    bed.sandbox(["run", "--dry-run", "true"]).timeout(Duration::from_secs(20)).output().succeeded();
    drop(server);
    drop(mounted);
    drop(stuck);
}
