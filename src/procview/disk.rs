//! diskstats: what the sandbox itself read and wrote.

use super::statistics::{Disk, Statistics};

/// A sector of /proc/diskstats, whatever the device's own is; Documentation/admin-guide/iostats.rst.
const SECTOR: u64 = 512;

/// /proc/diskstats: the lines of the devices that the sandbox used. Merged requests and times are counted for whole devices only
/// and are 0.
pub(super) fn diskstats(statistics: &Statistics, host: &str) -> String {
    let Some(disks) = &statistics.disks else { return host.to_owned() };
    let mut out = String::new();
    for line in host.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [major, minor, name, counters @ ..] = words.as_slice() else { continue };
        let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { continue };
        let Some(disk) = disks.get(&(major, minor)) else { continue };
        out.push_str(&format!("{major:4} {minor:7} {name}"));
        for value in fields(disk).into_iter().chain(std::iter::repeat(0)).take(counters.len()) {
            out.push_str(&format!(" {value}"));
        }
        out.push('\n');
    }
    out
}

fn fields(disk: &Disk) -> [u64; 15] {
    let mut fields = [0; 15];
    fields[0] = disk.reads;
    fields[2] = disk.read_bytes / SECTOR;
    fields[4] = disk.writes;
    fields[6] = disk.written_bytes / SECTOR;
    fields[11] = disk.discards;
    fields[13] = disk.discarded_bytes / SECTOR;
    fields
}
