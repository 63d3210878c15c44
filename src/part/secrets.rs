//! What the host view hides unless `--host-secrets` asks for it: the list is data, what of it exists is a fact of the host.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::host::{Host, Kind, is_absent, is_kernel, is_remote, read_of_kernel, unescape};

/// Directories that appear empty.
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
    "/etc/ppp",
    "/etc/rancher",
    "/etc/ssl/private",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/etc/pki/tls/private",
    "/usr/lib/credstore",
    "/usr/lib/credstore.encrypted",
    "/var/backups",
    "/var/lib/cloud",
    "/var/lib/NetworkManager",
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
    "/var/cache/debconf/passwords.dat",
    "/etc/sudoers",
    "/var/lib/systemd/credential.secret",
    "/var/lib/systemd/random-seed",
];

/// Files in /etc/ssh whose names begin and end like this are absent.
const SSH_HOST_KEYS: (&str, &str) = ("ssh_host_", "_key");

/// What is hidden on this host, without links in the paths, each with whether it is a directory: the listed paths that exist or
/// cannot be looked at, and the swap files in use, which hold what was in memory. Where a link leads elsewhere it is the target that
/// is hidden. Nothing on a network, FUSE or automount file system is looked at.
pub(crate) fn existing(host: &Host) -> Vec<(PathBuf, bool)> {
    let mut look = Look::new(host);
    let mut paths: Vec<PathBuf> = DIRECTORIES.iter().chain(FILES).map(PathBuf::from).collect();
    paths.extend(swap_files(&read_of_kernel("/proc/swaps").unwrap_or_default()));
    if let Some((ssh, true)) = look.resolve(Path::new("/etc/ssh")) {
        // Whole, where nobody can say what is in it.
        paths.extend(ssh_host_keys(&ssh).unwrap_or_else(|_| vec![ssh]));
    }
    // What cannot be looked at is not shown; what lies beneath such a mount would be.
    let beneath = |path: &PathBuf| (path.clone(), DIRECTORIES.iter().any(|name| path == Path::new(name)));
    let has_remote = host.mounts.iter().any(|mount| is_remote(&mount.fstype));
    let unseen = paths.iter().filter(|path| has_remote && !host.is_local(path)).map(beneath);
    // A list that leads to the root itself would leave nothing.
    let found = paths.iter().filter_map(|path| look.resolve(path)).filter(|(path, _)| path != Path::new("/"));
    outermost(found.chain(unseen).collect())
}

fn ssh_host_keys(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut keys = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with(SSH_HOST_KEYS.0) && text.ends_with(SSH_HOST_KEYS.1) {
            keys.push(directory.join(&name));
        }
    }
    Ok(keys)
}

/// Without what is in a directory of the list: that one is empty already.
fn outermost(mut found: Vec<(PathBuf, bool)>) -> Vec<(PathBuf, bool)> {
    found.sort();
    let mut kept: Vec<(PathBuf, bool)> = Vec::with_capacity(found.len());
    for (path, directory) in found {
        if !kept.last().is_some_and(|(outer, _)| path.starts_with(outer)) {
            kept.push((path, directory));
        }
    }
    kept
}

/// The files among the swap areas that /proc/swaps lists, proc_swaps(5).
fn swap_files(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|b| *b == b'\n').skip(1);
    lines
        .filter_map(|line| {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            let name = fields.next()?;
            (fields.next()? == b"file").then(|| unescape(name))
        })
        .collect()
}

/// Links in one path before it is taken for a circle, as the kernel counts them; path_resolution(7).
const LINKS: u32 = 40;

/// The directories in which most of the list would be, and most of it is not: there a name alone is asked for.
const CROWDED: [&str; 2] = ["etc", "var/lib"];

/// Follows paths a component at a time, so that no mount is touched that may hang, and each place is looked at once.
struct Look<'a> {
    host: &'a Host,
    /// `/`, where it is a local file system.
    root: Option<OwnedFd>,
    /// The directories in which most of the list would be, [`CROWDED`].
    crowded: Vec<(&'static str, OwnedFd)>,
    /// By the text of the path: to compare paths takes longer than to look at the place.
    seen: BTreeMap<OsString, Option<Kind>>,
}

impl<'a> Look<'a> {
    fn new(host: &'a Host) -> Look<'a> {
        let root = Path::new("/");
        let local = host.is_local(root) && host.mount_of(root).is_some_and(|m| !is_kernel(&m.fstype));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = local.then(|| rustix::fs::open(root, flags, Mode::empty()).ok()).flatten();
        let mut look = Look { host, root, crowded: Vec::new(), seen: BTreeMap::new() };
        let open = |name| Some((name, look.open(Path::new(name), OFlags::DIRECTORY).ok()?));
        look.crowded = CROWDED.into_iter().filter_map(open).collect();
        look
    }

    /// Where `path` really is, and whether that is a directory; nothing when it is missing or not on a local file system.
    fn resolve(&mut self, path: &Path) -> Option<(PathBuf, bool)> {
        match self.plain(path) {
            Ok(directory) => directory.map(|directory| (path.to_owned(), directory)),
            Err(_) => self.follow(path),
        }
    }

    /// The same in one step for a path without links to what is on the root's own file system, as nearly all are: whether that is a
    /// directory, if it is there.
    ///
    /// # Errors
    /// When the path is not so, or the kernel has no such step.
    fn plain(&self, path: &Path) -> std::result::Result<Option<bool>, Errno> {
        let below = path.as_os_str().as_bytes().strip_prefix(b"/").ok_or(Errno::INVAL)?;
        let below = Path::new(OsStr::from_bytes(below));
        if self.is_missing(path, below) {
            return Ok(None);
        }
        match self.open(below, OFlags::NOFOLLOW) {
            Ok(found) => {
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
                if kind == FileType::Symlink { Err(Errno::LOOP) } else { Ok(Some(kind == FileType::Directory)) }
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens what is on the root's own file system, on a path without links.
    fn open(&self, below: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let root = self.root.as_ref().ok_or(Errno::XDEV)?;
        let stay = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
        rustix::fs::openat2(root, below, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), stay)
    }

    /// Whether a name is not in a crowded directory. It is asked as a link, which starts no automount; what is mounted may hang.
    fn is_missing(&self, path: &Path, below: &Path) -> bool {
        // As text: to take paths apart, for each name and each mount, takes longer than what is asked here saves.
        let text = below.as_os_str().as_bytes();
        let Some(slash) = text.iter().rposition(|b| *b == b'/') else { return false };
        let (parent, name) = (&text[..slash], &text[slash + 1..]);
        if name.is_empty() {
            return false;
        }
        let Some((_, directory)) = self.crowded.iter().find(|(path, _)| path.as_bytes() == parent) else {
            return false;
        };
        if self.host.mounts.iter().any(|mount| mount.point.as_os_str() == path.as_os_str()) {
            return false;
        }
        let mut target = [MaybeUninit::uninit(); 1];
        rustix::fs::readlinkat_raw(directory, name, &mut target).is_err_and(|errno| errno == Errno::NOENT)
    }

    fn follow(&mut self, path: &Path) -> Option<(PathBuf, bool)> {
        let mut todo: Vec<OsString> = names(path);
        let (mut real, mut directory, mut links) = (PathBuf::from("/"), true, 0);
        while let Some(name) = todo.pop() {
            if !directory {
                return None;
            }
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(name);
            let Ok(kind) = self.kind(&next) else {
                // It cannot be looked at: hidden, whatever it is.
                return Some((next, false));
            };
            match kind? {
                Kind::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        real = "/".into();
                    }
                    todo.extend(names(&target));
                }
                kind => (real, directory) = (next, kind == Kind::Directory),
            }
        }
        Some((real, directory))
    }

    fn kind(&mut self, path: &Path) -> std::io::Result<Option<Kind>> {
        if let Some(kind) = self.seen.get(path.as_os_str()) {
            return Ok(kind.clone());
        }
        let local = self.host.is_local(path) && self.host.mount_of(path).is_some_and(|m| !is_kernel(&m.fstype));
        let kind = if local { kind_of(path)? } else { None };
        self.seen.insert(path.as_os_str().to_owned(), kind.clone());
        Ok(kind)
    }
}

/// The names in a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.rev().collect()
}

/// `None` where nothing is, or nothing that this user could reach.
fn kind_of(path: &Path) -> std::io::Result<Option<Kind>> {
    let file_type = match std::fs::symlink_metadata(path) {
        Err(error) if is_absent(&error) => return Ok(None),
        meta => meta?.file_type(),
    };
    Ok(Some(match () {
        () if file_type.is_dir() => Kind::Directory,
        () if file_type.is_symlink() => Kind::Link(std::fs::read_link(path)?),
        () if file_type.is_file() => Kind::File,
        () => Kind::Special,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(more: &str) -> Host {
        let text = format!("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n{more}");
        Host { mounts: crate::host::parse_mountinfo(text.as_bytes()), ..Host::default() }
    }

    #[test]
    fn a_link_is_followed_to_what_it_hides() {
        let dir = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(top.join("real/deep")).unwrap();
        std::fs::write(top.join("real/key"), "").unwrap();
        for (target, name) in
            [("real", "link"), ("../link/key", "real/again"), ("/no/such", "gone"), ("circle", "circle")]
        {
            std::os::unix::fs::symlink(target, top.join(name)).unwrap();
        }
        let here = host("");
        let mut look = Look::new(&here);
        let mut at = |name: &str| look.resolve(&top.join(name));
        assert_eq!(at("link"), Some((top.join("real"), true)));
        assert_eq!(at("link/deep"), Some((top.join("real/deep"), true)));
        assert_eq!(at("link/again"), Some((top.join("real/key"), false)));
        assert_eq!((at("gone"), at("circle"), at("real/key/x"), at("missing")), (None, None, None, None));
        // The same, and what the link leads to is on a server.
        let remote = host(&format!("21 20 0:9 / {} rw - nfs4 s:/ rw\n", top.join("real").display()));
        let mut look = Look::new(&remote);
        assert_eq!(look.resolve(&top.join("link/key")), None);
        assert!(!look.seen.contains_key(top.join("real/key").as_os_str()), "not even looked at");
    }

    #[test]
    fn swap_files_are_told_from_partitions() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/swap\\040file                             file\t\t4194300\t\t0\t\t-2\n\
                     /dev/sda2                               partition\t1\t\t0\t\t-3\n";
        assert_eq!(swap_files(text), [PathBuf::from("/swap file")]);
    }

    #[test]
    fn what_is_in_a_hidden_directory_is_not_listed() {
        let list = |names: &[&str]| names.iter().map(|name| (PathBuf::from(name), true)).collect::<Vec<_>>();
        let found = outermost(list(&["/var/spool/mail", "/var/spool", "/var/spool", "/var/spoolx"]));
        assert_eq!(found, list(&["/var/spool", "/var/spoolx"]));
    }
}
