//! Standard input, output and error where they are pipes: whoever the payload is, it can open /dev/stdout.

use std::os::fd::BorrowedFd;

use rustix::fs::Mode;

/// `PIPEFS_MAGIC` of linux/magic.h: a pipe without a name, which is nobody's file.
const PIPE: u64 = 0x5049_5045;

/// Lets everybody open the unnamed pipes among the three anew, who gets at them: only by way of /proc/PID/fd, which asks for the right to
/// trace that process, proc(5). A named one or a file stays as it is. Not an owner: sandboxes that share a pipe have different ones.
pub(crate) fn let_open() {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        if is_pipe(stream) {
            // The descriptor works all the same: only opening it anew by its name needs this.
            if let Err(error) = rustix::fs::fchmod(stream, Mode::from_raw_mode(0o666)) {
                log::debug!("let everybody open a pipe: {error}");
            }
        }
    }
}

fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(stream).is_ok_and(|found| u64::try_from(found.f_type) == Ok(PIPE))
}
