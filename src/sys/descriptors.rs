//! Which descriptors a process keeps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::close_range;

/// Closes every descriptor above 2 that is not in `keep`.
///
/// # Errors
/// What close_range(2) says; ENOSYS before Linux 5.9.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}
