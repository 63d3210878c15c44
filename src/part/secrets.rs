//! What the host view hides unless `--host-secrets` asks for it: the list is data, what of it exists is a fact of the host.

use std::path::{Path, PathBuf};

use crate::host::{Host, is_kernel};

/// Directories that appear empty.
const DIRECTORIES: &[&str] = &[
    "/boot",
    "/efi",
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/etc/letsencrypt",
    "/etc/NetworkManager/system-connections",
    "/etc/openvpn",
    "/etc/ssl/private",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/etc/pki/tls/private",
    "/usr/lib/credstore",
    "/usr/lib/credstore.encrypted",
    "/var/backups",
    "/var/lib/NetworkManager",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
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
    "/etc/krb5.keytab",
    "/etc/security/opasswd",
    "/etc/shadow",
    "/etc/shadow-",
    "/var/cache/debconf/passwords.dat",
    "/etc/sudoers",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
];

/// Files in /etc/ssh whose names begin and end like this are absent.
const SSH_HOST_KEYS: (&str, &str) = ("ssh_host_", "_key");

/// The listed paths that exist on this host, each with whether it is a directory. Nothing on a network, FUSE or automount
/// file system is looked at, nor anything behind a symbolic link.
pub(crate) fn existing(host: &Host) -> Vec<(PathBuf, bool)> {
    let local = |path: &Path| host.is_local(path) && host.mount_of(path).is_some_and(|m| !is_kernel(&m.fstype));
    let exists = |path: &Path, directory: bool| {
        local(path)
            && std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() == directory && !meta.is_symlink())
    };
    let mut found = Vec::new();
    found.extend(DIRECTORIES.iter().map(PathBuf::from).filter(|p| exists(p, true)).map(|p| (p, true)));
    found.extend(FILES.iter().map(PathBuf::from).filter(|p| exists(p, false)).map(|p| (p, false)));
    let ssh = Path::new("/etc/ssh");
    if exists(ssh, true) {
        let names = std::fs::read_dir(ssh).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let keys = names.filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with(SSH_HOST_KEYS.0) && name.ends_with(SSH_HOST_KEYS.1)
        });
        found.extend(keys.map(|name| (ssh.join(name), false)));
    }
    found.sort();
    found
}
