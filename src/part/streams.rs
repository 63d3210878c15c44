//! Standard input, output and error where they are pipes: they belong to the payload's user, so that /dev/stdout can be opened.

use std::os::fd::BorrowedFd;

use rustix::fs::{Gid, Uid};

/// `PIPEFS_MAGIC` of linux/magic.h: a pipe without a name, which is nobody's file.
const PIPE: u64 = 0x5049_5045;

/// Gives the unnamed pipes among the three to a user. A named one or a file stays whose it is.
pub(crate) fn give(uid: u32, gid: u32) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if is_pipe(stream) {
            // The descriptor works all the same: only opening it anew by its name needs this.
            if let Err(error) = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                log::debug!("give a pipe to user {uid}: {error}");
            }
        }
    }
}

fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(stream).is_ok_and(|found| u64::try_from(found.f_type) == Ok(PIPE))
}
