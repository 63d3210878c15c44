//! The root made of the host's own files: what is seen of them, and that nothing done inside reaches them.

mod mounts;
mod overlay;
mod secrets;

use crate::bed::Bed;
use crate::tree::{self, Tree};
use crate::{Test, alone, test};
use rustix::fs::{XattrFlags, setxattr};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("hostview/writes", needs![root, systemd], writes),
        test("hostview/removals", needs![root, systemd], removals),
        test("hostview/moves", needs![root, systemd], moves),
        test("hostview/links_and_owners", needs![root, systemd], links_and_owners),
        test("hostview/opaque_directory", needs![root, systemd], opaque_directory),
        test("hostview/system_files", needs![root, systemd], system_files),
        test("hostview/owners_as_on_the_host", needs![root, systemd], owners_as_on_the_host),
        test("hostview/empty_directories", needs![root, systemd], empty_directories),
        test("hostview/secrets", needs![root, systemd], secrets::secrets),
        test("hostview/read_only", needs![root, systemd], read_only),
        test(
            "hostview/read_only_of_a_user",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            read_only_of_a_user,
        ),
        test("hostview/mounts", needs![root, systemd], mounts::mounts),
        alone("hostview/no_mount_outside", needs![root, systemd], mounts::no_mount_outside),
        test("hostview/usr_and_home_mounted", needs![root, systemd], mounts::usr_and_home_mounted),
        test("hostview/secrets_on_an_overlay", needs![root, systemd, idmap], mounts::secrets_on_an_overlay),
        test(
            "hostview/usr_and_home_mounted_of_a_user",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            mounts::usr_and_home_mounted_of_a_user,
        ),
        test("hostview/overlay_root", needs![root, systemd, overlay_root], overlay::root),
        test("hostview/overlay_root_secrets", needs![root, systemd, overlay_root], overlay::root_secrets),
        test("hostview/dev", needs![root, systemd], dev),
        test("hostview/proc", needs![root, systemd], proc),
        test("hostview/sys", needs![root, systemd], sys),
        test("hostview/size_of_upper", needs![root, systemd], size_of_upper),
        alone("hostview/every_secret", needs![root, systemd], secrets::every_secret),
        alone("hostview/mounted_secrets", needs![root, systemd], secrets::mounted_secrets),
        alone(
            "hostview/mount_in_a_closed_directory",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            mounts::mount_in_a_closed_directory,
        ),
        alone("hostview/resolv_conf_behind_a_link", needs![root, systemd], resolv_conf_behind_a_link),
    ]
}

/// A directory that the sandbox sees, full of things to be damaged.
fn victim(bed: &Bed) -> std::path::PathBuf {
    let dir = bed.seen_dir();
    tree::fill(
        &dir,
        [
            ("file", "original\n"),
            ("d/x", "x\n"),
            ("d/deep/y", "y\n"),
            ("gone/a", "a\n"),
            ("gone/b/c", "c\n"),
            ("empty/", ""),
        ],
    );
    symlink("file", dir.join("link")).unwrap();
    fs::hard_link(dir.join("file"), dir.join("hard")).unwrap();
    fs::write(dir.join("big"), vec![b'b'; 300_000]).unwrap();
    fs::set_permissions(dir.join("d/x"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(dir.join("d/x"), Some(33), Some(34)).unwrap();
    setxattr(dir.join("file"), "user.mark", b"host", XattrFlags::empty()).unwrap();
    dir
}

/// Runs a script in the victim's directory; what it prints. The victim must be as it was.
#[track_caller]
fn damage(bed: &Bed, script: &str) -> String {
    let dir = victim(bed);
    let before = Tree::take(&dir);
    let outcome = bed.run([""; 0], &format!("set -e; cd {}; {script}", dir.display())).output().succeeded();
    before.unchanged(&dir);
    outcome.text()
}

fn writes(bed: &Bed) {
    let text = damage(
        bed,
        "cat file; echo changed > file; cat hard file; echo more >> big; wc -c < big; echo new > new; cat new; > d/x; wc -c < d/x",
    );
    // A copy-up breaks hard links, as overlayfs without an index does.
    assert_eq!(text, "original\noriginal\nchanged\n300005\nnew\n0");
    damage(bed, "truncate -s 5 big; dd if=/dev/zero of=big bs=1 seek=100 count=1 conv=notrunc 2> /dev/null; : > link");
}

fn removals(bed: &Bed) {
    let text =
        damage(bed, "rm file link; rm -r gone; rmdir empty; ls; ls -d gone 2>&1 || true; echo again > file; cat file");
    assert_eq!(text, "big\nd\nhard\nls: cannot access 'gone': No such file or directory\nagain");
    assert_eq!(damage(bed, "rm -rf -- * ; ls -A | wc -l"), "0");
}

fn moves(bed: &Bed) {
    let text = damage(
        bed,
        "mv file renamed; cat renamed; mv d moved; cat moved/x moved/deep/y; stat -c '%a %u:%g' moved/x; test ! -e d; mv gone /gone; cat /gone/b/c; mkdir d; ls d; test ! -e gone",
    );
    assert_eq!(text, "original\nx\ny\n640 33:34\nc");
    // rename(2) of a lower directory is EXDEV, as under Docker; mv copies then. A new one can be renamed.
    let rename = "import os, errno\ntry: os.rename('d', 'e')\nexcept OSError as e: print(errno.errorcode[e.errno])\nos.mkdir('n'); os.rename('n', 'm'); print(os.listdir('m'))";
    assert_eq!(damage(bed, &format!("python3 -c \"{rename}\"")), "EXDEV\n[]");
}

fn links_and_owners(bed: &Bed) {
    let text = damage(
        bed,
        "ln file second; echo two > second; cat file; ln -s /etc s; chown 5:6 big d; chmod 4711 big; stat -c '%u:%g %a' big d; \
         touch -d @1 d/x; stat -c %Y d/x; chown -h 7 link; stat -c %u link",
    );
    assert_eq!(text, "two\n5:6 4711\n5:6 755\n1\n7");
    // A tmpfs, where the writes go, has user.* attributes since 6.6.
    if bed.facts.kernel < (6, 6) {
        return;
    }
    let xattr = "import os; print(os.getxattr('file','user.mark').decode()); os.setxattr('file','user.mark',b'in'); \
        os.setxattr('d','user.other',b'1'); os.removexattr('file','user.mark'); print(os.listxattr('file'), os.listxattr('d'))";
    assert_eq!(damage(bed, &format!("python3 -c \"{xattr}\"")), "host\n[] ['user.other']");
}

fn opaque_directory(bed: &Bed) {
    let text = damage(
        bed,
        "rm -r d; mkdir d; ls -A d; echo mine > d/x; cat d/x; ls -R d; rm -r d; echo file > d; cat d; rm file; mkdir file; ls -A file",
    );
    assert_eq!(text, "mine\nd:\nx\nfile");
    assert_eq!(damage(bed, "rm -r gone d; mv empty gone; ls -A gone; mkfifo pipe; test -p pipe && echo fifo"), "fifo");
}

/// The host's own system, thoroughly: what would be the end of it.
fn system_files(bed: &Bed) {
    let before = (Tree::take(Path::new("/etc")), Tree::take(Path::new("/usr/bin")));
    let script = "echo x > /etc/passwd; rm -rf /etc/systemd /usr/bin/* /usr/lib/systemd /usr/share /var/lib/dpkg; echo still; mkdir /usr/bin/ls";
    assert_eq!(bed.run([""; 0], script.replace("mkdir", "test ! -e").as_str()).output().succeeded().text(), "still");
    before.0.unchanged(Path::new("/etc"));
    before.1.unchanged(Path::new("/usr/bin"));
    assert!(Path::new("/var/lib/dpkg/status").exists());
}

/// The same owners, modes and types on both sides.
fn owners_as_on_the_host(bed: &Bed) {
    let list = "stat -c '%n %u:%g %a %F' / /etc /etc/passwd /usr /bin/su /usr/bin/env /var /var/lib /bin /srv";
    let outside = bed.sh(list).output().succeeded().text();
    assert_eq!(bed.run([""; 0], list).output().succeeded().text(), outside);
    let dir = victim(bed);
    let list = format!("cd {}; find . -printf '%p %U:%G %m %y %l %s\\n' | sort", dir.display());
    assert_eq!(bed.run([""; 0], &list).output().succeeded().text(), bed.sh(&list).output().succeeded().text());
}

fn empty_directories(bed: &Bed) {
    let _there =
        (tempfile::tempdir_in("/home").unwrap(), tempfile::tempdir_in("/root").unwrap(), bed.dir(), bed.disk_dir());
    let script = "for d in /home /root /run /tmp /var/tmp; do stat -c '%n %a %u:%g' $d; ls -A $d; done; touch /home/a /root/a /run/a /tmp/a /var/tmp/a";
    let expected = "/home 755 0:0\n/root 700 0:0\n/run 755 0:0\n/tmp 1777 0:0\n/var/tmp 1777 0:0";
    assert_eq!(bed.run([""; 0], script).output().succeeded().text(), expected);
    for directory in ["/home", "/root", "/run", "/tmp", "/var/tmp"] {
        assert!(!Path::new(directory).join("a").exists(), "{directory}/a is on the host");
    }
    // Another user can use /tmp, too.
    bed.run(["--uid", "33"], "touch /tmp/mine && ! touch /home/x 2>/dev/null").output().succeeded();
}

fn read_only(bed: &Bed) {
    let script =
        "for d in / /etc /usr /srv; do touch $d/x 2>&1; done; touch /tmp/x /run/x /dev/shm/x /home/x && echo writable";
    let text = bed.run(["--read-only"], script).output().succeeded().text();
    assert_eq!(text.matches("Read-only file system").count(), 4, "{text}");
    assert!(text.ends_with("writable"), "{text}");
    bed.run(["--read-only"], "! mount -o remount,rw / 2>/dev/null && ! touch /x 2>/dev/null").output().succeeded();
}

/// A mount that ends with the test.
struct Mounted<'a>(&'a Bed, String);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.0.command("umount", ["--lazy", &self.1]).output();
    }
}

fn mounted<'a>(bed: &'a Bed, flags: &[&str], at: &str) -> Mounted<'a> {
    bed.command("mount", flags.iter().copied().chain([at])).output().succeeded();
    Mounted(bed, at.to_owned())
}

/// A plain user's view has a / that is none of the host's directories.
fn read_only_of_a_user(bed: &Bed) {
    let script = "touch /x 2>&1; mkdir /d 2>&1; rm -r /etc 2>&1 | head -n1; ls -d /etc; touch /tmp/x /dev/shm/x && echo writable";
    let text = bed.run(["--read-only"], script).user().output().succeeded().text();
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
    assert!(text.ends_with("/etc\nwritable"), "{text}");
    assert_eq!(bed.run([""; 0], "touch /x && echo written").user().output().succeeded().text(), "written");
}

fn dev(bed: &Bed) {
    let text = bed
        .run(
            [""; 0],
            "ls -A /dev; stat -c '%n %t:%T %a %F' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty",
        )
        .output()
        .succeeded()
        .text();
    let expected = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\
        /dev/null 1:3 666 character special file\n/dev/zero 1:5 666 character special file\n/dev/full 1:7 666 character special file\n\
        /dev/random 1:8 666 character special file\n/dev/urandom 1:9 666 character special file\n/dev/tty 5:0 666 character special file";
    assert_eq!(text, expected);
    let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c; echo x 2>/dev/null > /dev/full || echo full; \
        echo in | cat /dev/stdin; ls /dev/fd/ | head -n 3; test -c /dev/ptmx && readlink /dev/ptmx; stat -c %a /dev/shm; touch /dev/shm/x";
    let text = bed.run([""; 0], script).output().succeeded().text();
    assert_eq!(text, "4\n4\nfull\nin\n0\n1\n2\npts/ptmx\n1777");
    // For another user, too.
    bed.run(["--uid", "33"], "echo x > /dev/null; head -c 1 /dev/zero > /dev/shm/y").output().succeeded();
    // No device can be made, not even with the capability, which counts inside only.
    for (flags, place) in [(vec![], "/tmp"), (vec![], "/dev"), (vec!["--cap-add", "MKNOD"], "/dev")] {
        let outcome = bed.run(flags, &format!("mknod {place}/made c 1 3")).output();
        assert!(outcome.status != 0 && outcome.errors().contains("not permitted"), "{}", outcome.errors());
    }
    // What is done to one is done to it alone.
    let before = fs::metadata("/dev/null").unwrap();
    bed.run([""; 0], "chmod 600 /dev/null; chown 33 /dev/null; mv /dev/null /dev/zero; rm /dev/full; :")
        .output()
        .succeeded();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid(), after.ino()), (before.mode(), before.uid(), before.ino()));
    assert!(fs::metadata("/dev/full").is_ok() && fs::metadata("/dev/zero").unwrap().rdev() == 0x105);
}

fn proc(bed: &Bed) {
    // A masked file is /dev/null, a masked directory is empty.
    let masked = "for f in kcore keys key-users timer_list kallsyms interrupts latency_stats sched_debug; do \
        test ! -e /proc/$f || echo $f $(stat -c %t:%T /proc/$f); done; for d in acpi scsi asound; do test ! -e /proc/$d || ls -A /proc/$d; done";
    let text = bed.run([""; 0], masked).output().succeeded().text();
    assert!(text.lines().count() >= 4 && text.lines().all(|line| line.ends_with(" 1:3")), "{text}");
    let writes = "for f in sys/kernel/hostname sys/vm/swappiness sys/kernel/core_pattern sysrq-trigger irq/default_smp_affinity; do \
        test ! -e /proc/$f || { (echo 1 > /proc/$f) 2>&1; }; done";
    let text = bed.run(["--share", "uts"], writes).output().text();
    assert!(text.lines().count() >= 3 && text.lines().all(|l| l.contains("Read-only file system")), "{text}");
    // Uncovering them takes a capability that is not there.
    let outcome = bed.run([""; 0], "umount /proc/kcore || umount /proc/sys").output();
    assert_ne!(outcome.status, 0);
    let text =
        bed.run([""; 0], "ls -d /proc/self/ns /proc/meminfo /proc/cpuinfo /proc/loadavg").output().succeeded().text();
    assert_eq!(text.lines().count(), 4);
}

fn sys(bed: &Bed) {
    let script = "grep ' /sys ' /proc/self/mounts; mkdir /sys/x 2>&1; (echo 1 > /sys/kernel/mm/ksm/run) 2>&1; ls -A /sys/firmware /sys/kernel/debug /sys/kernel/security 2>/dev/null";
    let outcome = bed.run([""; 0], script).output();
    let text = outcome.text();
    let mut lines = text.lines();
    let options = lines.next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
    let rest: Vec<&str> = lines.collect();
    assert!(
        rest.iter().filter(|line| line.contains("Read-only") || line.contains("not permitted")).count() >= 1,
        "{text}"
    );
    assert!(
        rest.iter().all(|l| l.contains("Read-only")
            || l.contains("not permitted")
            || l.contains("nonexistent")
            || l.ends_with(':')
            || l.is_empty()),
        "{text}"
    );
}

fn size_of_upper(bed: &Bed) {
    let script = "head -c 8000000 /dev/zero > /srv/big";
    bed.run(["--upper", "tmpfs:16M"], script).output().succeeded();
    for place in ["/srv/big", "/tmp/big", "/run/big"] {
        let outcome = bed.run(["--upper", "tmpfs:4M"], &format!("head -c 8000000 /dev/zero > {place}")).output();
        assert!(
            outcome.status != 0 && outcome.errors().contains("No space left"),
            "{place}: {} {}",
            outcome.status,
            outcome.errors()
        );
    }
    bed.run(["--upper", "tmpfs:0"], "true").output().refused(125, ["--upper", "tmpfs:0"]);
    bed.run(["--upper", "tmpfs:many"], "true").output().refused(125, ["--upper", "many"]);
}

/// As systemd-resolved has it: a link into /run, which is empty inside.
fn resolv_conf_behind_a_link(bed: &Bed) {
    let real = bed.dir().join("resolv.conf");
    fs::write(&real, "nameserver 192.0.2.53\n").unwrap();
    let path = Path::new("/etc/resolv.conf");
    let before = fs::symlink_metadata(path)
        .ok()
        .map(|meta| (meta.is_symlink(), fs::read(path).unwrap_or_default(), fs::read_link(path).ok()));
    let _ = fs::remove_file(path);
    symlink(&real, path).unwrap();
    let outcome = bed.run([""; 0], "cat /etc/resolv.conf; echo changed > /etc/resolv.conf").output();
    fs::remove_file(path).unwrap();
    match before {
        Some((true, _, Some(target))) => symlink(target, path).unwrap(),
        Some((_, content, _)) => fs::write(path, content).unwrap(),
        None => {}
    }
    assert_eq!(outcome.succeeded().text(), "nameserver 192.0.2.53");
    assert_eq!(fs::read_to_string(&real).unwrap(), "nameserver 192.0.2.53\n");
}
