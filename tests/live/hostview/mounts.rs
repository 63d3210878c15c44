//! The mounts of the host and those of the sandbox: what each sees of the other's.

use super::mounted;
use crate::bed::{Bed, patience};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// mount point → (options, type) of the mount table that a script shows.
fn table(text: &str) -> BTreeMap<String, (String, String)> {
    let row = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let fields: Vec<&str> = front.split(' ').collect();
        Some((fields[4].to_owned(), (fields[5].to_owned(), back.split(' ').next()?.to_owned())))
    };
    text.lines().filter_map(row).collect()
}

pub(super) fn mounts(bed: &Bed) {
    let dir = bed.seen_dir();
    let bind = format!("{}:/mnt/bound", dir.display());
    let text = bed
        .run(["--bind", &bind, "--tmpfs", "/mnt/mem"], "mkdir -p /mnt; cat /proc/self/mountinfo")
        .output()
        .succeeded()
        .text();
    let mounts = table(&text);
    assert_eq!(mounts["/"].1, "overlay");
    let device = |point: &str| point.starts_with("/dev/") && !["/dev/shm", "/dev/mqueue"].contains(&point);
    for (point, (options, kind)) in &mounts {
        let has = |option: &str| options.split(',').any(|o| o == option);
        let masked_by_device = kind == "devtmpfs" || kind == "tmpfs" && point.starts_with("/proc/");
        // Where the devices are nodes of its own, they are in /dev; nobody inside may make one.
        let may_hold_devices = device(point) || masked_by_device || *point == "/dev";
        assert!(may_hold_devices || has("nodev"), "{point} ({kind}) is not nodev: {options}");
        assert!(kind == "overlay" || has("nosuid"), "{point} ({kind}) is not nosuid: {options}");
    }
    for point in
        ["/mnt/bound", "/mnt/mem", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp", "/run"]
    {
        assert!(mounts.contains_key(point), "{point} is not a mount:\n{text}");
    }
    assert!(!text.contains("master:") && !text.contains("shared:"), "no mount event goes in or out:\n{text}");
}

/// Whatever a sandbox mounts, neither the host nor the launcher has it, nor anything in its place.
pub(super) fn no_mount_outside(bed: &Bed) {
    let table = |who: &str| fs::read_to_string(format!("/proc/{who}/mountinfo")).unwrap();
    let before = table("1");
    let flags = ["--tmpfs", "/mnt/mem:1M", "--bind", "/srv:/mnt/bound"];
    let (running, _) = bed.live(flags, "echo ready; exec cat");
    let launcher = running.pid().to_string();
    // systemd may be done with something of its own meanwhile; what a living sandbox has does not go away.
    let started = Instant::now();
    loop {
        let (host, own) = (table("1"), table(&launcher));
        if host == before && own == before {
            break;
        }
        let in_time = started.elapsed() < patience(Duration::from_secs(5));
        assert!(in_time, "before:\n{before}\nPID 1:\n{host}\nthe launcher:\n{own}");
        std::thread::sleep(Duration::from_millis(100));
    }
    running.finish().succeeded();
}

/// Another user's stick, say.
pub(super) fn mount_in_a_closed_directory(bed: &Bed) {
    let closed = bed.closed_dir();
    let inner = closed.join("stick");
    fs::create_dir(&inner).unwrap();
    let _mount = mounted(bed, &["-t", "tmpfs", "tmpfs"], inner.to_str().unwrap());
    let script = format!("ls -A {} && echo works", closed.display());
    assert_eq!(bed.run([""; 0], &script).user().output().succeeded().text(), "works");
}

/// /usr and /home as partitions of their own, which only what is run this way sees.
const PARTITIONS: &str = "mount --bind /usr /usr; mount -t tmpfs none /home; echo mine > /home/letter";

/// Writes to /usr, and says what became of them and of /home.
const LOOK: &str = "rm /usr/bin/env && echo new > /usr/bin/sbt && cat /usr/bin/sbt; test -e /usr/bin/env || echo removed; \
    rm -r /usr/share && ls -d /usr/share 2>/dev/null; ls -A /home; echo own > /home/own && cat /home/own; \
    awk '$5 == \"/usr\" || $5 == \"/home\" { print $5, $(NF - 2) }' /proc/self/mountinfo | sort";

/// What of it reached the host: said by the host itself, in the same mounts.
const AFTER: &str = "ls -d /usr/bin/env /usr/share; ls /usr/bin/sbt /home/own 2>/dev/null; cat /home/letter";

fn partitions(bed: &Bed, as_user: bool) -> String {
    let run = bed.run([""; 0], LOOK);
    let run = if as_user { run.user().dir("/") } else { run };
    let script = format!("\"$@\"; {AFTER}");
    bed.command("sh", ["-c", &script, "sh"]).args(run.words()).with_mounts(PARTITIONS).output().succeeded().text()
}

/// Each is an overlay of its own; without one of /usr its files would be the host's or missing.
pub(super) fn usr_and_home_mounted(bed: &Bed) {
    let host = "/usr/bin/env\n/usr/share\nmine";
    assert_eq!(partitions(bed, false), format!("new\nremoved\nown\n/home tmpfs\n/usr overlay\n{host}"));
    let dry = bed.sandbox(["run", "--dry-run", "true"]).with_mounts(PARTITIONS).output().succeeded().text();
    assert!(dry.contains("/usr: overlay of /usr") && dry.contains("/home: tmpfs"), "{dry}");
}

/// Root inside is then the user outside, whom none of these files belong to: the host's are seen, and cannot be written.
pub(super) fn usr_and_home_mounted_of_a_user(bed: &Bed) {
    assert_eq!(partitions(bed, true), "own\n/home tmpfs\n/usr overlay\n/usr/bin/env\n/usr/share\nmine");
}

/// What is secret on a mount whose owners cannot be mapped, here one that is read-only, is hidden all the same.
pub(super) fn secrets_on_an_overlay(bed: &Bed) {
    let place = bed.disk_dir();
    let place = place.display();
    let setup = format!(
        "mount --make-rprivate /; cp -a /etc {place}/etc; mkdir -p {place}/etc/wireguard {place}/empty {place}/var; \
         echo key > {place}/etc/wireguard/wg0.conf; chmod 644 {place}/etc/wireguard/wg0.conf; \
         mount -t overlay -o ro,lowerdir={place}/etc:{place}/empty etc /etc; grep -q key /etc/wireguard/wg0.conf"
    );
    let look = "cat /etc/wireguard/wg0.conf; cat /etc/hostname; test -e /etc/shadow; echo $?; echo mine > /etc/mine; cat /etc/mine";
    let run = bed.sandbox(["run", "--name", "inner", "--", "sh", "-c", look]);
    let outcome = run.with_mounts(&setup).output().succeeded();
    assert_eq!(outcome.text(), "inner\n1\nmine");
    assert!(
        outcome.errors().contains("falls back to identity") && outcome.errors().contains("/etc (overlay)"),
        "{outcome:?}"
    );
}
