//! One overlay: its layers attached, its init layer filled, its upper and work directories, and the mount itself.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, Mode, Stat};
use rustix::mount::{FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::Overlay;
use super::assemble::{Assembly, create, escape, own};
use super::source::Source;
use crate::error::{Result, fault};
use crate::part::inside::Make;

impl Assembly<'_> {
    pub(super) fn overlay(&mut self, overlay: &Overlay, layers: Vec<Source>) -> Result<OwnedFd> {
        let number = self.overlays.len().to_string();
        let below = layers_of(&number);
        self.scratch.make_directory(&below)?;
        let top = layers.last().map(|layer| layer.stat).ok_or_else(|| fault("an overlay needs a layer"))?;
        let mut lowers = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let place = below.join(index.to_string());
            self.scratch.make_directory(&place)?;
            rustix::mount::move_mount(&layer.mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            lowers.push(place);
        }
        let init = PathBuf::from(format!("init-{number}"));
        let mount_points = self.mount_points_in(overlay, &lowers);
        self.init_layer(&init, overlay.init.iter().chain(&mount_points), &lowers, &top)?;
        lowers.push(init);
        let (upper, work) = self.upper_and_work(overlay, &number, &top)?;
        let mount = self.mount_overlay(&number, &lowers, &upper, &work)?;
        self.attach(&mount, &overlay.at, Make::Directory)?;
        Ok(mount)
    }

    /// The upper and work directories of an overlay; the upper's own owner and mode are what the root of the overlay shows.
    fn upper_and_work(&self, overlay: &Overlay, number: &str, top: &Stat) -> Result<(PathBuf, PathBuf)> {
        if !self.scratch.kept {
            let (upper, work) = (PathBuf::from(format!("upper-{number}")), PathBuf::from(format!("work-{number}")));
            self.make_directory(&upper, self.owner(top), top.st_mode)?;
            self.scratch.make_directory(&work)?;
            return Ok((upper, work));
        }
        let kept = Path::new("kept").join(escape(&overlay.at));
        let (upper, work) = (kept.join("upper"), kept.join("work"));
        self.actor.as_owner();
        // Root inside is owner 0 on disk: a set-user-ID file of the sandbox's must be out of every other user's reach.
        for (directory, mode) in [(&kept, 0o700), (&upper, 0o755), (&work, 0o700)] {
            match rustix::fs::mkdirat(CWD, directory, Mode::from_raw_mode(mode)) {
                Ok(()) if directory == &upper => {
                    let (uid, gid) = self.owner(top);
                    own(&upper, uid, gid, top.st_mode)?;
                }
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("make {}", directory.display()));
                }
            }
        }
        Ok((upper, work))
    }

    fn mount_overlay(&self, number: &str, lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<OwnedFd> {
        // The kernel mounts an overlay read-only if its work directory cannot be written by the one who mounts: with an idmapped
        // upper only a user of the map can. And it opens the files below as that one: a file's owner is not asked for capabilities.
        self.actor.as_owner();
        // userxattr means redirect_dir=nofollow and metacopy=off by itself, and refuses to hear of redirect_dir=off.
        let off: &[&str] =
            if self.plan.userxattr { &["index", "xino"] } else { &["redirect_dir", "index", "metacopy", "xino"] };
        let mut options: Vec<(&str, String)> = off.iter().map(|key| (*key, "off".to_owned())).collect();
        options.push(("upperdir", display(upper)));
        options.push(("workdir", display(work)));
        if self.plan.many_layers {
            return self.mount_overlay_by_key(lowers, &options);
        }
        self.mount_overlay_by_string(number, lowers, &options)
    }

    fn mount_overlay_by_key(&self, lowers: &[PathBuf], options: &[(&str, String)]) -> Result<OwnedFd> {
        let file_system = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&file_system, "source", "overlay")?;
        // The topmost comes first, kernel's Documentation/filesystems/overlayfs.rst.
        for lower in lowers.iter().rev() {
            rustix::mount::fsconfig_set_string(&file_system, "lowerdir+", lower)?;
        }
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(&file_system, *key, value.as_str())?;
        }
        if self.plan.userxattr {
            rustix::mount::fsconfig_set_flag(&file_system, "userxattr")?;
        }
        create(&file_system, MountAttrFlags::MOUNT_ATTR_NODEV)
    }

    /// Before 6.5: mount(2) takes one page of options, an fsconfig value only 255 bytes. From within the directory of the layers
    /// their names are numbers, so some 800 fit.
    fn mount_overlay_by_string(&self, number: &str, lowers: &[PathBuf], options: &[(&str, String)]) -> Result<OwnedFd> {
        let below = layers_of(number);
        let name = |lower: &PathBuf| match lower.strip_prefix(&below) {
            Ok(name) => display(name),
            Err(_) => from_below(&display(lower)),
        };
        let lowers: Vec<String> = lowers.iter().rev().map(name).collect();
        let mut text = format!("lowerdir={}", lowers.join(":"));
        for (key, value) in options {
            let value = if key.ends_with("dir") && value != "off" { from_below(value) } else { value.clone() };
            text.push_str(&format!(",{key}={value}"));
        }
        if self.plan.userxattr {
            text.push_str(",userxattr");
        }
        let text = std::ffi::CString::new(text)?;
        rustix::process::chdir(&below)?;
        let target = from_below("overlay");
        rustix::mount::mount("overlay", target.as_str(), "overlay", MountFlags::NODEV, text.as_c_str())?;
        rustix::process::fchdir(&self.scratch.directory)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, "overlay", flags)?;
        rustix::mount::unmount("overlay", UnmountFlags::DETACH)?;
        Ok(mount)
    }
}

/// Where the layers of an overlay are attached.
fn layers_of(number: &str) -> PathBuf {
    PathBuf::from(format!("layers-{number}"))
}

/// A path of the scratch directory as seen from [`layers_of`] an overlay.
fn from_below(path: &str) -> String {
    format!("../{path}")
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
