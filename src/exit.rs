//! Exit statuses: the only place that knows 125, 126, 127 and 128+n.

/// `sandbox` itself failed; the payload never ran.
pub(crate) const FAILED: u8 = 125;
/// The payload was found but cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The payload was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// The exit status that stands for a status of wait(2): the payload's own, or 128 + n when signal n ended it.
pub(crate) fn from_wait_status(status: i32) -> u8 {
    let number = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    u8::try_from(number).unwrap_or(FAILED)
}

/// The same for the two halves that waitid(2) tells: an exit status or a signal.
pub(crate) fn from_waitid(exited: Option<i32>, signaled: Option<i32>) -> u8 {
    let number = exited.or(signaled.map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(FAILED)
}

/// How a payload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit status that stands for it.
    pub(crate) status: u8,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

impl Ended {
    /// Reads a status of wait(2).
    pub(crate) fn from_wait_status(status: i32) -> Ended {
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        Ended { status: from_wait_status(status), signal }
    }

    /// The same for the two halves that waitid(2) tells.
    pub(crate) fn from_waitid(exited: Option<i32>, signaled: Option<i32>) -> Ended {
        Ended { status: from_waitid(exited, signaled), signal: signaled.filter(|_| exited.is_none()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_shells() {
        for (wait, status) in [(0, 0), (1 << 8, 1), (255 << 8, 255), (9, 137), (15, 143), (6 | 0x80, 134)] {
            assert_eq!(from_wait_status(wait), status, "{wait:#x}");
        }
        assert_eq!((from_waitid(Some(3), None), from_waitid(None, Some(9)), from_waitid(None, None)), (3, 137, 125));
    }
}
