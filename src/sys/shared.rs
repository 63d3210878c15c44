//! Processes that run in this one's memory, each on a stack of its own.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::Pid;

use super::{check, exit_now};

/// Memory for a stack, which grows down to a page that nobody may touch: what needs more ends there and does not write elsewhere. Only
/// what is used takes memory.
struct Stack {
    start: *mut libc::c_void,
    length: usize,
}

impl Stack {
    /// One of `length` bytes, a multiple of the page size that includes the untouchable page.
    ///
    /// # Errors
    /// What mmap(2) and mprotect(2) say.
    fn new(length: usize) -> io::Result<Stack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: without MAP_FIXED new memory takes the place of none.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Stack { start, length };
        // Not rustix's: that one reads the auxiliary vector when it is first asked, where Linux before 6.4 may have no file of it to read.
        // SAFETY: sysconf takes an integer and may be called at any time.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        // SAFETY: this page is of the memory just made, which nobody uses yet.
        check(unsafe { libc::mprotect(start, page, libc::PROT_NONE) }.into())?;
        Ok(stack)
    }

    /// Where it begins to grow down from.
    fn top(&self) -> *mut libc::c_void {
        self.start.wrapping_byte_add(self.length)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the memory is this value's own, and whoever ran on it has executed a program or ended. It fails for no such range.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// Starts a process that does `work`, on a stack of its own but in this one's memory, while this thread waits until it has executed a
/// program or ended; the result of `work` is its exit status; vfork(2). A copy of the memory would take longer to make, to fault in page
/// by page, and to take down. Signals should stay blocked until its execve: one that ends it earlier leaves the heap as it then was, and
/// where SIGKILL ended it amid an allocation this process ends too: there will be no other one.
///
/// # Errors
/// What clone(2) says; EINVAL before Linux 6.1 where processes to come are in another time namespace.
pub(crate) fn vfork<W: FnMut() -> u8>(mut work: W) -> io::Result<Pid> {
    extern "C" fn begin<W: FnMut() -> u8>(work: *mut libc::c_void) -> libc::c_int {
        // SAFETY: this is `work` of the call below, which waits as long as this process is in its memory.
        let work = unsafe { &mut *work.cast::<W>() };
        exit_now(work())
    }
    let stack = Stack::new(256 << 10)?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack ends at the end of a page, so it is aligned, and belongs to nobody else. It, `work` and all that `work` borrows
    // live across the call, during which this thread does nothing: it is as if `work` ran here. It has no way out but execve and _exit,
    // so nothing is dropped twice; descriptors that it closes are closed in its own table.
    let pid = check(unsafe { libc::clone(begin::<W>, stack.top(), flags, (&raw mut work).cast()) }.into())?;
    if super::heap::is_stuck() {
        exit_now(crate::exit::FAILED);
    }
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A process that does nothing but one write, which may take long, beside its parent and in its memory: so it costs no copy of that.
/// Dropping it waits for its end.
pub(crate) struct Writer {
    pid: nix::unistd::Pid,
    /// What the process runs on and reads, kept until it has ended.
    _state: Box<WriterState>,
}

#[repr(C, align(16))]
struct WriterState {
    /// Grows down from what follows it.
    stack: [u8; 8 << 10],
    file: OwnedFd,
    text: &'static [u8],
}

impl Writer {
    /// Starts it; whether the write succeeds is not told.
    ///
    /// # Errors
    /// What clone(2) says.
    pub(crate) fn start(file: OwnedFd, text: &'static [u8]) -> io::Result<Writer> {
        extern "C" fn write(state: *mut libc::c_void) -> libc::c_int {
            // SAFETY: this is the state that `start` gave, which lives until this process has been waited for, and which nobody writes.
            let state = unsafe { &*state.cast_const().cast::<WriterState>() };
            // Not libc's: that one's errno is the parent's.
            let _ = rustix::io::write(&state.file, state.text);
            0
        }
        let mut state = Box::new(WriterState { stack: [0; _], file, text });
        let top = state.stack.as_mut_ptr_range().end.cast::<libc::c_void>();
        let argument = (&raw mut *state).cast::<libc::c_void>();
        // SAFETY: the stack is 16-byte aligned at its end (its size is a multiple of 16 in a type aligned so), is used by nobody else
        // and lives, as the rest of the state does, until Drop has waited. With CLONE_VM and without CLONE_SETTLS the new process
        // shares this one's memory and thread-local storage: it touches neither, only its stack and the state, and ends by _exit.
        let pid = unsafe { libc::clone(write, top, libc::CLONE_VM, argument) };
        check(pid.into())?;
        Ok(Writer { pid: nix::unistd::Pid::from_raw(pid), _state: state })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Without a signal at its end only __WALL finds it.
        let wall = nix::sys::wait::WaitPidFlag::__WALL;
        while nix::sys::wait::waitpid(self.pid, Some(wall)) == Err(nix::errno::Errno::EINTR) {}
    }
}
