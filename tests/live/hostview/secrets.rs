//! What of the host's is hidden, and shown where that is asked for.

use super::mounted;
use crate::bed::Bed;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub(super) fn secrets(bed: &Bed) {
    assert!(Path::new("/etc/shadow").exists() && Path::new("/var/log").is_dir(), "the bed has something to hide");
    let script = "for f in /etc/shadow /etc/gshadow /etc/shadow- /etc/sudoers; do test ! -e $f || echo $f is there; done; \
        for d in /var/log /boot /etc/ssl/private /var/backups /var/lib/private /var/spool; do test ! -e $d || ls -A $d; done";
    assert_eq!(bed.run([""; 0], script).output().succeeded().text(), "");
    // What is hidden has the owner and mode of what it hides, so that a daemon can write its log.
    let stat = "stat -c '%a %u:%g' /var/log";
    assert_eq!(bed.run([""; 0], stat).output().succeeded().text(), bed.sh(stat).output().text());
    bed.run([""; 0], "echo x > /var/log/own && echo y > /etc/shadow").output().succeeded();
    assert!(!Path::new("/var/log/own").exists());
    let root = bed.run(["--host-secrets"], "grep ^root: /etc/shadow; ls /var/log | wc -l").output().succeeded().text();
    assert!(root.starts_with("root:"), "{root}");
    let dry = bed.sandbox(["run", "--dry-run", "true"]).output().succeeded().text();
    assert!(dry.contains("hidden:") && dry.contains("etc/shadow"), "{dry}");
}

/// Directories that appear empty: keys, credentials, the stores of containers, ours too, and what services and users left.
const DIRECTORIES: &[&str] = &[
    "/boot",
    "/efi",
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/etc/docker",
    "/etc/ipsec.d/private",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/NetworkManager/system-connections",
    "/etc/openvpn",
    "/etc/pki/tls/private",
    "/etc/ppp",
    "/etc/rancher",
    "/etc/ssl/private",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/usr/lib/credstore",
    "/usr/lib/credstore.encrypted",
    "/var/backups",
    "/var/lib/NetworkManager",
    "/var/lib/cloud",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/libvirt",
    "/var/lib/lxc",
    "/var/lib/machines",
    "/var/lib/private",
    "/var/lib/sandbox",
    "/var/lib/sss",
    "/var/lib/systemd/coredump",
    "/var/log",
    "/var/mail",
    "/var/spool",
];

/// Files that are absent.
const FILES: &[&str] = &[
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ipsec.secrets",
    "/etc/krb5.keytab",
    "/etc/postfix/sasl_passwd",
    "/etc/postfix/sasl_passwd.db",
    "/etc/security/opasswd",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_other_key",
    "/etc/sudoers",
    "/var/cache/debconf/passwords.dat",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
];

/// Beside them, and nobody's secret.
const OPEN: &[&str] = &["/etc/ssh/ssh_host_other_key.pub", "/etc/ssl/sbt-open", "/var/lib/sbt-open"];

/// What was put onto the host, the outermost first; the last that came is the first that goes.
#[derive(Default)]
struct Planted(Vec<PathBuf>);

impl Planted {
    fn directory(&mut self, path: &Path) {
        if !path.exists() {
            self.directory(path.parent().unwrap());
            DirBuilder::new().mode(0o755).create(path).unwrap();
            self.0.push(path.to_owned());
        }
    }

    /// Unless it is there: then it is the host's.
    fn file(&mut self, path: &Path) {
        self.directory(path.parent().unwrap());
        if !path.exists() {
            fs::write(path, "planted\n").unwrap();
            self.0.push(path.to_owned());
        }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// Whatever the machine has of the list or not: for the test it has all.
pub(super) fn every_secret(bed: &Bed) {
    let mut planted = Planted::default();
    let inner: Vec<String> = DIRECTORIES.iter().map(|directory| format!("{directory}/sbt-secret")).collect();
    let secret: Vec<&str> = FILES.iter().copied().chain(inner.iter().map(String::as_str)).collect();
    for path in secret.iter().chain(OPEN) {
        planted.file(Path::new(path));
    }
    // One a line, as it was asked for, if it can be read.
    let script = "for f; do head -c 1 \"$f\" > /dev/null 2>&1 && echo \"$f\"; done; true";
    let seen = |flags: &[&str]| {
        let run = bed.run(flags, script).arg("sh").args(&secret).args(OPEN).output().succeeded().text();
        run.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(seen(&[]), OPEN, "secrets are seen");
    assert_eq!(seen(&["--host-secrets"]), [&secret[..], OPEN].concat(), "not all is shown");
    let script = "for d; do test -d \"$d\" || echo no $d; ls -A \"$d\"; done";
    let listed = bed.run([""; 0], script).arg("sh").args(DIRECTORIES).output().succeeded();
    assert_eq!(listed.text(), "", "each is there, and empty");
    let has = |need| bed.facts.has(&need).is_ok();
    if has(crate::facts::need::user_manager()) && has(crate::facts::need::kernel_min(5, 11)) {
        let run = bed.run([""; 0], "for f; do test ! -e \"$f\" || echo \"$f\"; done").arg("sh").args(&secret);
        assert_eq!(run.args(OPEN).user().dir("/").output().succeeded().text(), OPEN.join("\n"));
    }
}

/// What is hidden, and what every sandbox has of its own, is so also where something is mounted at that very place.
pub(super) fn mounted_secrets(bed: &Bed) {
    let dir = bed.dir();
    fs::write(dir.join("file"), "mounted\n").unwrap();
    let file = dir.join("file");
    let bind = ["--bind", file.to_str().unwrap()];
    let _mounts = [
        mounted(bed, &bind, "/etc/shadow"),
        mounted(bed, &bind, "/etc/hostname"),
        mounted(bed, &["-t", "tmpfs", "tmpfs"], "/var/log"),
    ];
    let script = "ls /etc/shadow /var/log 2>&1; cat /etc/hostname; grep -c there /etc/hosts";
    let flags = ["--name", "inner", "--add-host", "there:192.0.2.1"];
    let text = bed.run(flags, script).output().succeeded().text();
    assert_eq!(text, "ls: cannot access '/etc/shadow': No such file or directory\n/var/log:\ninner\n1");
    let has = |need| bed.facts.has(&need).is_ok();
    if has(crate::facts::need::user_manager()) && has(crate::facts::need::kernel_min(5, 11)) {
        let script = "cat /etc/hostname; grep -c there /etc/hosts";
        assert_eq!(bed.run(flags, script).user().output().succeeded().text(), "inner\n1");
    }
}
