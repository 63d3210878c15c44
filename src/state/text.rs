//! The text of state files, read with care: who has written one need not be the caller.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The longest that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// Opens what its owner, who may be another, has put there: no link is followed, and nothing waited for.
pub(super) fn open_file(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    File::options().read(true).custom_flags(flags).open(path)
}

/// The whole of one, and its owner; `None` for what is no such file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(file: &File) -> std::io::Result<Option<(Vec<u8>, u32)>> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Ok(None);
    }
    let mut text = vec![0; usize::try_from(meta.len()).unwrap_or_default()];
    file.read_exact_at(&mut text, 0)?;
    Ok(Some((text, meta.uid())))
}

/// Whether `file` is what is at `path`.
pub(super) fn is_same(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (std::fs::symlink_metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}
