//! What a process may do only while it has one thread.

use std::io;
use std::time::{Duration, Instant};

/// How long a thread that ends is waited for.
const THREAD_WAIT: Duration = Duration::from_secs(1);

/// Waits until this process has one thread: a helper that has done its work takes its mounts down.
///
/// # Errors
/// EINVAL when there is a second one after [`THREAD_WAIT`], and when /proc cannot be read.
pub(super) fn await_the_only_one() -> io::Result<()> {
    let start = Instant::now();
    while !is_single_threaded()? {
        if start.elapsed() > THREAD_WAIT {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// By what unshare(2) says of CLONE_THREAD: it changes nothing, and is refused to one of several threads. Where a filter around us hides it,
/// the directory of this process's threads has a link for each beside its own two (proc_task_getattr() in the kernel's fs/proc/base.c).
fn is_single_threaded() -> io::Result<bool> {
    match super::unshare(libc::CLONE_THREAD) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(_) => Ok(rustix::fs::stat("/proc/self/task")?.st_nlink == 3),
    }
}
