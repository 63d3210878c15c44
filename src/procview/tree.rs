//! /sys/devices/system/cpu and node as directories of ours: the kernel's own trees, with the directories of the seen CPUs, and the
//! links to them, only.
//!
//! Programs count CPUs by listing them (htop, the C library before 2.34). A directory of ours costs a start less than the bind mounts of
//! single files in it that it replaces, and follows a quota that changes. Everything else in it is passed on, but for the files that the
//! table has: nodes stand for paths, their modes are the kernel's own, which the kernel checks against the caller, and reading is the
//! launcher's, who is outside. What a mask covers of each CPU is left out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::fuse::Entry;
use crate::part::mounts::MASKED_OF_A_CPU;

/// No file in there is longer, in bytes.
const LONGEST: u64 = 1 << 16;

/// Where the directories are.
pub(super) const BASE: &str = "/sys/devices/system";

/// Those that are served, below [`BASE`]: the directory of CPUs, and that of memory nodes.
pub(super) const TOPS: [&str; 2] = ["cpu", "node"];

/// A path that the kernel knows by a number.
#[derive(Debug)]
struct Node {
    /// Below the base.
    path: PathBuf,
    /// How often the kernel was told of it, less how often it forgot it.
    known: u64,
}

/// The nodes that the kernel knows; as many as there are files, at the most.
#[derive(Debug)]
pub(super) struct Tree {
    base: PathBuf,
    /// The node of the first top.
    first: u64,
    next: u64,
    nodes: BTreeMap<u64, Node>,
    numbers: BTreeMap<PathBuf, u64>,
}

impl Tree {
    /// With `first` as the node of the first of [`TOPS`]; all nodes from that number on are this tree's.
    pub(super) fn new(first: u64) -> Tree {
        let next = first + TOPS.len() as u64;
        Tree { base: BASE.into(), first, next, nodes: BTreeMap::new(), numbers: BTreeMap::new() }
    }

    /// Whether a node is a top or below one.
    pub(super) fn has(&self, node: u64) -> bool {
        node >= self.first
    }

    /// Where a node is, on the host as inside.
    pub(super) fn place(&self, node: u64) -> Result<PathBuf, Errno> {
        Ok(self.base.join(self.path(node)?))
    }

    fn path(&self, node: u64) -> Result<&Path, Errno> {
        let top = node.checked_sub(self.first).and_then(|index| TOPS.get(usize::try_from(index).ok()?));
        match top {
            Some(top) => Ok(Path::new(top)),
            None => self.nodes.get(&node).map(|node| node.path.as_path()).ok_or(Errno::STALE),
        }
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, Errno> {
        std::fs::symlink_metadata(self.base.join(path)).map_err(errno)
    }

    /// Type and permission bits.
    pub(super) fn mode(&self, node: u64) -> Result<u32, Errno> {
        self.metadata(self.path(node)?).map(|metadata| metadata.mode())
    }

    /// The entry `name` of a directory, when only the CPUs `visible` are to be seen. The kernel knows it from then on.
    pub(super) fn look_up(&mut self, parent: u64, name: &[u8], visible: &[u32]) -> Result<Entry, Errno> {
        let path = self.path(parent)?.join(OsStr::from_bytes(name));
        if is_hidden(&path, visible) {
            return Err(Errno::NOENT);
        }
        let mode = self.metadata(&path)?.mode();
        // A quota that changes shows other CPUs.
        let lasting = cpu_of_a_list(&path).is_none();
        let node = *self.numbers.entry(path.clone()).or_insert(self.next);
        self.next = self.next.max(node + 1);
        self.nodes.entry(node).or_insert(Node { path, known: 0 }).known += 1;
        Ok(Entry { node, mode, lasting })
    }

    /// The names in a directory, in an order that stays.
    pub(super) fn names(&self, node: u64, visible: &[u32]) -> Result<Vec<String>, Errno> {
        let path = self.path(node)?;
        let entries = std::fs::read_dir(self.base.join(path)).map_err(errno)?;
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.retain(|name| !is_hidden(&path.join(name), visible));
        names.sort_unstable();
        Ok(names)
    }

    /// What a file says now.
    pub(super) fn text(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::with_capacity(4096);
        let file = File::open(self.place(node)?).map_err(errno)?;
        file.take(LONGEST).read_to_end(&mut text).map_err(errno)?;
        Ok(text)
    }

    /// Where a link points to; the same place inside.
    pub(super) fn target(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let target = std::fs::read_link(self.place(node)?).map_err(errno)?;
        Ok(target.as_os_str().as_bytes().to_vec())
    }

    /// The kernel forgets that it was told `times` times of a node.
    pub(super) fn forget(&mut self, node: u64, times: u64) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.known = known.known.saturating_sub(times);
        if known.known == 0
            && let Some(gone) = self.nodes.remove(&node)
        {
            self.numbers.remove(&gone.path);
        }
    }
}

/// The number of the CPU that is called so.
fn cpu(name: &OsStr) -> Option<u32> {
    name.to_str()?.strip_prefix("cpu")?.parse().ok()
}

/// The number of the CPU whose directory, or the link to it in that of a memory node, a path is.
fn cpu_of_a_list(path: &Path) -> Option<u32> {
    let parent = path.parent()?;
    let lists = parent == Path::new("cpu") || parent.parent() == Some(Path::new("node"));
    path.file_name().filter(|_| lists).and_then(cpu)
}

fn is_hidden(path: &Path, visible: &[u32]) -> bool {
    let masked = path.ends_with(MASKED_OF_A_CPU) && path.parent().is_some_and(|parent| cpu_of_a_list(parent).is_some());
    masked || cpu_of_a_list(path).is_some_and(|number| !visible.contains(&number))
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(base: &Path) -> Tree {
        for path in [
            "cpu/cpu0/topology",
            "cpu/cpu0/thermal_throttle",
            "cpu/cpu1",
            "cpu/cpu12",
            "cpu/cpufreq",
            "node/node0/hugepages",
        ] {
            std::fs::create_dir_all(base.join(path)).unwrap();
        }
        std::fs::write(base.join("cpu/cpu0/topology/core_id"), "0\n").unwrap();
        std::fs::write(base.join("cpu/kernel_max"), "8191\n").unwrap();
        let link = |target, at| std::os::unix::fs::symlink(target, base.join(at)).unwrap();
        link("../../../../bus/cpu", "cpu/cpu0/subsystem");
        link("../../cpu/cpu0", "node/node0/cpu0");
        link("../../cpu/cpu12", "node/node0/cpu12");
        link("../../node/node0", "cpu/cpu0/node0");
        Tree { base: base.into(), ..Tree::new(20) }
    }

    #[test]
    fn only_seen_cpus_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = tree(directory.path());
        assert_eq!(tree.names(20, &[0]).unwrap(), ["cpu0", "cpufreq", "kernel_max"]);
        assert_eq!(tree.names(20, &[1, 12]).unwrap(), ["cpu1", "cpu12", "cpufreq", "kernel_max"]);
        assert_eq!(tree.look_up(20, b"cpu1", &[0]).unwrap_err(), Errno::NOENT);
        let cpu0 = tree.look_up(20, b"cpu0", &[0]).unwrap();
        assert!(!cpu0.lasting && tree.has(cpu0.node) && !tree.has(19));
        assert_eq!(tree.names(cpu0.node, &[0]).unwrap(), ["node0", "subsystem", "topology"]);
        assert_eq!(tree.look_up(cpu0.node, b"thermal_throttle", &[0]).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_memory_node_has_links_to_the_seen_cpus() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = tree(directory.path());
        assert_eq!(tree.names(21, &[0]).unwrap(), ["node0"]);
        let node0 = tree.look_up(21, b"node0", &[0]).unwrap();
        assert!(node0.lasting);
        assert_eq!(tree.place(node0.node).unwrap(), directory.path().join("node/node0"));
        assert_eq!(tree.names(node0.node, &[0]).unwrap(), ["cpu0", "hugepages"]);
        assert_eq!(tree.names(node0.node, &[1, 12]).unwrap(), ["cpu12", "hugepages"]);
        let cpu0 = tree.look_up(node0.node, b"cpu0", &[0]).unwrap();
        assert!(!cpu0.lasting);
        assert_eq!(tree.target(cpu0.node).unwrap(), b"../../cpu/cpu0");
        assert_eq!(tree.look_up(node0.node, b"cpu12", &[0]).unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn what_is_in_them_is_the_kernels() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = tree(directory.path());
        let cpu0 = tree.look_up(20, b"cpu0", &[0]).unwrap().node;
        let topology = tree.look_up(cpu0, b"topology", &[0]).unwrap();
        assert!(topology.lasting && topology.mode & 0o170_000 == 0o040_000);
        let core = tree.look_up(topology.node, b"core_id", &[0]).unwrap();
        assert_eq!((tree.mode(core.node), tree.text(core.node)), (Ok(core.mode), Ok(b"0\n".to_vec())));
        let link = tree.look_up(cpu0, b"subsystem", &[0]).unwrap();
        assert_eq!(tree.target(link.node).unwrap(), b"../../../../bus/cpu");
        assert_eq!(tree.text(20).unwrap_err(), Errno::ISDIR);
    }

    #[test]
    fn what_the_kernel_forgot_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = tree(directory.path());
        let first = tree.look_up(20, b"cpufreq", &[0]).unwrap().node;
        assert_eq!(tree.look_up(20, b"cpufreq", &[0]).unwrap().node, first);
        tree.forget(first, 1);
        assert!(tree.mode(first).is_ok());
        tree.forget(first, 1);
        assert_eq!(tree.mode(first), Err(Errno::STALE));
        assert_ne!(tree.look_up(20, b"cpufreq", &[0]).unwrap().node, first);
        tree.forget(77, 1);
    }
}
