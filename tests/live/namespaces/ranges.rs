//! The range of IDs that a sandbox has: nobody else's, whoever says so.

use super::{check_range, map};
use crate::bed::Bed;
use std::fs::{self, File};
use std::path::PathBuf;

/// systemd's container range, and how many IDs a sandbox gets.
const FIRST: u64 = 524_288;
const END: u64 = 1_879_048_192;
const RANGE: u64 = 65536;

/// Ranges that are left over when all others are taken: so few that a pick which looks at nothing hits one in 57, so many that all of
/// the thousand picks miss them once in 40 million starts.
const LEFT: u64 = 500;
const LEFT_FROM: u64 = FIRST + 7000 * RANGE;
const LEFT_END: u64 = LEFT_FROM + LEFT * RANGE;

/// Where systemd-nspawn, and everybody who asks, locks ranges.
const LOCKS: &str = "/run/systemd/nspawn-uid";

/// systemd-nspawn looks for these names, and finds a living sandbox's range locked.
pub(super) fn is_locked_for_nspawn(bed: &Bed) {
    let (running, _) = bed.live([""; 0], "cat /proc/self/uid_map; echo ready; exec cat");
    let base = check_range(&map(running.stdout_so_far().lines().next().unwrap()));
    let path = format!("{LOCKS}/{base}");
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    assert!(
        locks.lines().any(|line| line.contains("WRITE") && line.contains(&format!(":{inode} "))),
        "{path} is not locked:\n{locks}"
    );
    running.finish().succeeded();
    bed.poll("the lock's name is gone", || !fs::exists(&path).unwrap());
}

/// `/etc/subuid`, or a file like it, in which somebody owns all ranges but those that are left.
fn crowded(bed: &Bed, file: &str) -> String {
    let path = bed.disk_dir().join("crowded");
    let (below, above) = (LEFT_FROM - FIRST, END - LEFT_END);
    let own = fs::read_to_string(file).unwrap_or_default();
    fs::write(&path, format!("{own}\nsomebody:{FIRST}:{below}\nelse:{LEFT_END}:{above}\n")).unwrap();
    format!("touch {file}; mount --bind {} {file}", path.display())
}

pub(super) fn avoids_accounts(bed: &Bed) {
    for file in ["/etc/subuid", "/etc/subgid"] {
        let setup = crowded(bed, file);
        for _ in 0..3 {
            let text = bed.run([""; 0], "cat /proc/self/uid_map").with_mounts(&setup).output().succeeded().text();
            let base = check_range(&map(&text));
            assert!((LEFT_FROM..LEFT_END).contains(&base), "{base} is somebody's, says {file}");
        }
    }
    // Where nothing is left at all, nothing is taken.
    let all = bed.disk_dir().join("all");
    fs::write(&all, format!("somebody:{FIRST}:{}\n", END - FIRST)).unwrap();
    let setup = format!("touch /etc/subuid; mount --bind {} /etc/subuid", all.display());
    bed.run([""; 0], "echo never").with_mounts(&setup).output().refused(125, ["no free range"]);
}

/// Ranges that are locked until this is dropped.
struct Locked(Vec<(PathBuf, File)>);

impl Locked {
    fn all_that_are_left() -> Self {
        fs::create_dir_all(LOCKS).unwrap();
        let lock = |number: u64| {
            let path = PathBuf::from(format!("{LOCKS}/{}", LEFT_FROM + number * RANGE));
            let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
            rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
            (path, file)
        };
        Self((0..LEFT).map(lock).collect())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        for (path, _file) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// A container of systemd-nspawn has its range only by such a lock.
pub(super) fn avoids_locks(bed: &Bed) {
    let setup = crowded(bed, "/etc/subuid");
    let start = || bed.run([""; 0], "cat /proc/self/uid_map").with_mounts(&setup).output();
    let locked = Locked::all_that_are_left();
    let outcome = start().refused(125, ["no free range", LOCKS]);
    assert!(outcome.hint().contains("sandbox ps and machinectl"), "{}", outcome.hint());
    assert_eq!(locked.0.iter().filter(|(path, _)| path.exists()).count(), locked.0.len(), "the names stay");
    drop(locked);
    assert!((LEFT_FROM..LEFT_END).contains(&check_range(&map(&start().succeeded().text()))));
}
