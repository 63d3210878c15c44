//! The text of state files, read with care: who has written one need not be the caller.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The longest that is read, in bytes.
pub(super) const LONGEST: u64 = 16 << 20;

/// Opens what its owner, who may be another, has put there: no link is followed, and nothing waited for.
pub(super) fn open_file(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    File::options().read(true).custom_flags(flags).open(path)
}

/// The whole of one.
pub(super) fn read(file: &File) -> Option<String> {
    let meta = file.metadata().ok().filter(|meta| meta.is_file() && meta.len() <= LONGEST)?;
    let mut bytes = vec![0; usize::try_from(meta.len()).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether `file` is what is at `path`.
pub(super) fn is_same(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (std::fs::symlink_metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}
