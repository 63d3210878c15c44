//! Which disk a path stands for in IO…= settings: as systemd's `lookup_block_device` finds it.

use std::io;
use std::path::Path;

use rustix::fs::{FileType, major, minor};

/// How many layers of device mapper are looked through.
const LAYERS: usize = 16;

/// The number `MAJ:MIN` of the disk behind a device node or a file; `None` where the file system does not tell (btrfs).
///
/// # Errors
/// When there is no such path, or it is a character device.
pub(super) fn number(sys: &Path, path: &Path) -> io::Result<Option<String>> {
    let stat = rustix::fs::stat(path)?;
    let device = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => stat.st_rdev,
        FileType::CharacterDevice => return Err(io::Error::other("a character device is no disk")),
        _ => stat.st_dev,
    };
    if major(device) == 0 {
        return Ok(None);
    }
    Ok(Some(disk(sys, format!("{}:{}", major(device), minor(device)))))
}

/// Goes from a partition to its disk and from a mapped device to the one below it.
fn disk(sys: &Path, device: String) -> String {
    let mut device = device;
    for _ in 0..LAYERS {
        let directory = sys.join("dev/block").join(&device);
        let below = if directory.join("partition").exists() { whole(&directory) } else { only_slave(&directory) };
        match below {
            Some(below) => device = below,
            None => break,
        }
    }
    device
}

/// The disk of a partition: its directory lies in the disk's.
fn whole(partition: &Path) -> Option<String> {
    let directory = std::fs::canonicalize(partition).ok()?;
    read_number(&directory.parent()?.join("dev"))
}

/// The one device below a mapped one; with several nobody can say which is meant.
fn only_slave(directory: &Path) -> Option<String> {
    let mut slaves = std::fs::read_dir(directory.join("slaves")).ok()?;
    let slave = slaves.next()?.ok()?;
    match slaves.next() {
        None => read_number(&slave.path().join("dev")),
        Some(_) => None,
    }
}

fn read_number(file: &Path) -> Option<String> {
    Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_its_disk_and_a_mapped_device_what_is_below() -> io::Result<()> {
        let sys = tempfile::tempdir()?;
        let root = sys.path();
        let file = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(root))?;
            std::fs::write(path, text)
        };
        file("devices/sda/dev", "8:0\n")?;
        file("devices/sda/sda1/dev", "8:1\n")?;
        file("devices/sda/sda1/partition", "1\n")?;
        file("devices/dm-0/dev", "253:0\n")?;
        std::fs::create_dir_all(root.join("devices/dm-0/slaves"))?;
        std::fs::create_dir_all(root.join("dev/block"))?;
        std::os::unix::fs::symlink("../../sda/sda1", root.join("devices/dm-0/slaves/sda1"))?;
        for (link, target) in [("8:0", "sda"), ("8:1", "sda/sda1"), ("253:0", "dm-0")] {
            std::os::unix::fs::symlink(format!("../../devices/{target}"), root.join("dev/block").join(link))?;
        }
        for (device, want) in [("8:0", "8:0"), ("8:1", "8:0"), ("253:0", "8:0"), ("9:9", "9:9")] {
            assert_eq!(disk(root, device.to_owned()), want);
        }
        assert!(number(root, Path::new("/dev/null")).is_err());
        assert!(number(root, Path::new("/nonexistent")).is_err());
        Ok(())
    }
}
