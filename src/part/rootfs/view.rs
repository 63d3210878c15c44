//! The host view: the host's own files as the lowest layer, decided per mount by the type of its file system, never by touching
//! it. What is on the network or behind FUSE or automount stays out: a dead server would hang whoever looks.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{
    BindPlan, INIT_FILES, InitEntry, InitKind, Operation, Overlay, Owners, RootPlan, Tmpfs, can_idmap, init_files,
};
use crate::host::{Host, Kind, Mount, is_below, is_kernel};
use crate::spec::Spec;

/// Directories that are always new: (path, mode).
const FRESH: &[(&str, u32)] =
    &[("/home", 0o755), ("/root", 0o700), ("/run", 0o755), ("/tmp", 0o1777), ("/var/tmp", 0o1777)];

/// Directories that other parts make.
const OTHERS: &[&str] = &["/dev", "/proc", "/sys"];

/// File systems that serve as a layer.
const LAYERS: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay", "tmpfs", "ramfs", "rootfs",
    "squashfs", "erofs", "iso9660",
];

/// What is shown of the host, and how.
pub(super) struct View<'a> {
    spec: &'a Spec,
    host: &'a Host,
    owners: Owners,
    /// What of the host's secrets would be seen.
    secrets: Vec<&'a (PathBuf, bool)>,
    /// Mounts of which nothing is to be seen: at a secret, where the sandbox has a file of its own, and the unhidable ones.
    covered: Vec<&'a Path>,
    /// Mounts on which something is secret, and which cannot be the layer of an overlay.
    unhidable: Vec<&'a Path>,
    /// What the init layer puts into each overlay, by the place of that.
    init: HashMap<PathBuf, Vec<InitEntry>>,
}

impl<'a> View<'a> {
    pub(super) fn new(spec: &'a Spec, host: &'a Host, owners: Owners) -> View<'a> {
        // What a link leads to may be where nothing of the host is seen anyway.
        let seen = |(path, _): &&(PathBuf, bool)| !spec.root.host_secrets && !is_elsewhere(path);
        let secrets = host.view.secrets.iter().filter(seen).collect();
        let (covered, unhidable, init) = (Vec::new(), Vec::new(), HashMap::new());
        let mut view = View { spec, host, owners, secrets, covered, unhidable, init };
        let points = host.mounts.iter().map(|mount| mount.point.as_path());
        view.covered = points.filter(|point| view.is_hidden(point) || is_init_file(point)).collect();
        view.init = view.init_by_overlay();
        let unhidable = host.mounts.iter().filter(|mount| view.cannot_hide(mount));
        view.unhidable = unhidable.map(|mount| mount.point.as_path()).collect();
        if !view.unhidable.is_empty() {
            // What is secret there is hidden where it shows then: beneath.
            view.covered.extend(&view.unhidable);
            view.init = view.init_by_overlay();
        }
        view
    }

    /// What makes it.
    pub(super) fn operations(&self) -> Vec<Operation> {
        let mut operations = if self.host.uid == 0 { self.by_mount() } else { self.by_entry() };
        operations.extend(FRESH.iter().map(|(at, mode)| Operation::Tmpfs(Tmpfs::new(*at, *mode, None))));
        operations
    }

    /// One line for each mount of the host that could be written if its owners could be mapped, and for each that is not shown since
    /// nothing can be hidden on it.
    pub(super) fn degraded(&self) -> Vec<String> {
        let line = |mount: &Mount| {
            let (point, fstype) = (mount.point.display(), &mount.fstype);
            if self.unhidable.contains(&mount.point.as_path()) {
                return Some(format!("{point} ({fstype}): left out, what is secret on it cannot be hidden"));
            }
            (self.is_layer(mount) && !self.is_usable(mount) && !is_root(mount) && !self.left_out(mount)).then(|| {
                format!(
                    "{point} ({fstype}): read-only, its owners cannot be mapped; --userns identity makes it writable"
                )
            })
        };
        self.host.mounts.iter().filter(|_| self.host.uid == 0).filter_map(line).collect()
    }

    /// The first mount whose owners cannot be mapped and that has to be an overlay all the same: the root and /usr, without whose files
    /// nothing runs, and wherever the overlay hides something or has a file of the sandbox's own.
    pub(super) fn obstacle(spec: &'a Spec, host: &'a Host) -> Option<&'a Mount> {
        let is_base = |mount: &Mount| is_root(mount) || mount.point == Path::new("/usr");
        let is_unmapped =
            |mount: &&Mount| !can_idmap(mount, host.kernel) && (is_base(mount) || can_be_layer(mount, host));
        let unmapped: Vec<&Mount> = host.mounts.iter().filter(is_unmapped).collect();
        if unmapped.is_empty() {
            return None;
        }
        let view = View::new(spec, host, Owners::Mapped);
        let is_needed = |mount: &&Mount| is_base(mount) || (!view.left_out(mount) && view.hides(mount));
        unmapped.into_iter().find(is_needed)
    }

    /// One overlay, or read-only bind, for each mount of the host.
    fn by_mount(&self) -> Vec<Operation> {
        self.host.mounts.iter().filter(|mount| !self.left_out(mount)).map(|mount| self.mount(mount)).collect()
    }

    fn left_out(&self, mount: &Mount) -> bool {
        self.covered.contains(&mount.point.as_path())
            || is_elsewhere(&mount.point)
            || !self.host.is_local(&mount.point)
            || is_kernel(&mount.fstype)
    }

    /// Whether something of it is to be hidden that would be seen, since it cannot be the layer of an overlay. Closed, not open.
    fn cannot_hide(&self, mount: &Mount) -> bool {
        !is_root(mount) && !can_be_layer(mount, self.host) && self.hides(mount) && !self.left_out(mount)
    }

    /// It is the overlay that hides, also on what is read-only.
    fn hides(&self, mount: &Mount) -> bool {
        self.init.contains_key(&mount.point)
    }

    fn mount(&self, mount: &Mount) -> Operation {
        let idmap = self.owners == Owners::Mapped && can_idmap(mount, self.host.kernel);
        let is_layer = self.is_layer(mount) || (can_be_layer(mount, self.host) && self.hides(mount));
        if is_root(mount) || (is_layer && self.is_usable(mount)) {
            return self.overlay(&mount.point, idmap);
        }
        Operation::Bind(BindPlan {
            source: mount.point.clone(),
            at: mount.point.clone(),
            read_only: true,
            recursive: false,
            device: false,
            idmap,
            optional: true,
        })
    }

    fn is_layer(&self, mount: &Mount) -> bool {
        can_be_layer(mount, self.host) && !mount.read_only
    }

    /// Without the map root inside would be nobody on it: then a layer that can be written makes no sense.
    fn is_usable(&self, mount: &Mount) -> bool {
        self.owners == Owners::Same || can_idmap(mount, self.host.kernel)
    }

    fn overlay(&self, at: &Path, idmap: bool) -> Operation {
        let init = self.init.get(at).cloned().unwrap_or_default();
        Operation::Overlay(Overlay { at: at.into(), layers: vec![at.into()], init, idmap })
    }

    /// What the init layer puts into each overlay: what is below it and below no other one.
    fn init_by_overlay(&self) -> HashMap<PathBuf, Vec<InitEntry>> {
        let files =
            init_files(self.spec, self.host).into_iter().map(|entry| (Path::new("/").join(&entry.path), entry.what));
        let hidden = self
            .secrets
            .iter()
            .map(|(path, directory)| (path.clone(), if *directory { InitKind::Empty } else { InitKind::Absent }));
        let mut all: HashMap<PathBuf, Vec<InitEntry>> = HashMap::new();
        for (path, what) in files.chain(hidden) {
            let overlay = self.overlay_of(&path);
            let below = path.strip_prefix(&overlay).ok().filter(|below| !below.as_os_str().is_empty());
            if let Some(path) = below.map(Path::to_path_buf) {
                all.entry(overlay).or_default().push(InitEntry { path, what });
            }
        }
        all
    }

    /// Where the overlay is that shows `path`.
    fn overlay_of(&self, path: &Path) -> PathBuf {
        if self.host.uid == 0 {
            let mut path = path;
            while let Some(mount) = self.host.mount_of(path) {
                match mount.point.parent().filter(|_| self.left_out(mount)) {
                    Some(above) => path = above,
                    None => return mount.point.clone(),
                }
            }
            return "/".into();
        }
        let composed = |ancestor: &&Path| ancestor.parent().is_some_and(|p| self.host.view.entries.contains_key(p));
        path.ancestors().find(composed).map_or_else(|| "/".into(), Path::to_path_buf)
    }

    /// A plain user's overlay cannot have a layer with mounts below it (they are locked, and the kernel refuses to show what is
    /// under them), so directories with mounts are made anew and what they hold is brought one by one.
    fn by_entry(&self) -> Vec<Operation> {
        let mut operations = vec![Operation::Tmpfs(Tmpfs::new("/", 0o755, None))];
        for (directory, entries) in &self.host.view.entries {
            if is_elsewhere(directory) || self.is_hidden(directory) {
                continue;
            }
            for (name, kind) in entries {
                let at = directory.join(name);
                // What a link leads to is made anew then.
                let is_link = matches!(kind, Kind::Link(_)) && FRESH.iter().any(|(fresh, _)| at == Path::new(fresh));
                if is_link || !is_elsewhere(&at) {
                    operations.extend(self.entry(at, kind));
                }
            }
        }
        operations.sort_by_key(|operation| operation.at().components().count());
        operations.extend(self.own_files());
        operations
    }

    /// The sandbox's own files that are in no overlay, because something of the host's is mounted beside them.
    fn own_files(&self) -> Vec<Operation> {
        let file = |entry: InitEntry| match entry.what {
            InitKind::File(content) => Some((Path::new("/").join(entry.path), content)),
            _ => None,
        };
        let files = init_files(self.spec, self.host).into_iter().filter_map(file);
        files
            .filter(|(at, _)| self.overlay_of(at) == *at)
            .map(|(at, content)| Operation::File { at, content })
            .collect()
    }

    fn is_hidden(&self, path: &Path) -> bool {
        let is_at = |secret: &Path| path.as_os_str() == secret.as_os_str();
        self.secrets.iter().any(|(secret, directory)| if *directory { is_below(path, secret) } else { is_at(secret) })
    }

    fn entry(&self, at: PathBuf, kind: &Kind) -> Option<Operation> {
        let mount = self.host.mount_of(&at)?;
        if is_init_file(&at) {
            return None;
        }
        if !self.host.is_local(&at) || is_kernel(&mount.fstype) {
            return Some(Operation::Directory(at));
        }
        match kind {
            Kind::Link(target) => Some(Operation::Link { at, target: target.clone() }),
            Kind::Directory if self.is_hidden(&at) => Some(Operation::Directory(at)),
            Kind::Directory if self.host.view.entries.contains_key(&at) => Some(Operation::Directory(at)),
            Kind::Directory => Some(self.overlay(&at, false)),
            Kind::File if !self.is_hidden(&at) => Some(Operation::Bind(BindPlan {
                source: at.clone(),
                at,
                read_only: true,
                recursive: false,
                device: false,
                idmap: false,
                optional: true,
            })),
            Kind::File | Kind::Special => None,
        }
    }
}

fn is_root(mount: &Mount) -> bool {
    mount.point.as_os_str() == "/"
}

fn can_be_layer(mount: &Mount, host: &Host) -> bool {
    LAYERS.contains(&mount.fstype.as_str()) && !host.view.file_mounts.contains(&mount.point)
}

fn is_init_file(path: &Path) -> bool {
    let below = path.as_os_str().as_bytes().strip_prefix(b"/");
    below.is_some_and(|below| INIT_FILES.iter().any(|file| below == file.as_bytes()))
}

/// Whether something at `path` would be under a directory that is made anew.
fn is_elsewhere(path: &Path) -> bool {
    OTHERS.iter().chain(FRESH.iter().map(|(fresh, _)| fresh)).any(|other| is_below(path, Path::new(other)))
}

impl RootPlan {
    /// Whether the file `path` inside, to which no link leads, is certainly the host's of that name: nothing else is laid over it, it is on
    /// the mount that is the layer, and nobody has written before. All operations have to be at plain paths.
    pub(crate) fn has_the_hosts(&self, path: &Path, host: &Host) -> bool {
        let around = self.operations.iter().filter(|operation| is_below(path, operation.at()));
        match around.max_by_key(|operation| operation.at().as_os_str().len()) {
            Some(Operation::Overlay(overlay)) if self.upper.is_none() => {
                let is_own = |entry: &InitEntry| is_below(path, &overlay.at.join(&entry.path));
                let is_on_layer = host.mount_of(path).is_some_and(|mount| mount.point == overlay.at);
                is_on_layer && overlay.layers == [overlay.at.as_path()] && !overlay.init.iter().any(is_own)
            }
            _ => false,
        }
    }
}
