//! The heap: one for all threads, whose first part is there before it is touched.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};

/// What a start with default settings needs, in bytes. Asked for as one piece it costs a fifth of a page fault for each of its pages.
const FIRST_PART: usize = 256 << 10;

/// Where the heap gets its memory: from the kernel.
struct Memory {
    is_untouched: AtomicBool,
}

// SAFETY: what is handed out is memory that the kernel has just mapped for this process, as large as is said, and it is changed and
// unmapped only when its owner asks.
unsafe impl Allocator for Memory {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let is_first = self.is_untouched.swap(false, Ordering::Relaxed);
        let (size, populate) = if is_first { (size.max(FIRST_PART), libc::MAP_POPULATE) } else { (size, 0) };
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | populate);
        // SAFETY: without MAP_FIXED mmap(2) touches nothing that there is.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED { (std::ptr::null_mut(), 0, 0) } else { (start.cast(), size, 0) }
    }

    fn remap(&self, start: *mut u8, old: usize, new: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: Allocator's contract: it came from `alloc`, and the caller goes on with what is returned.
        let start = unsafe { libc::mremap(start.cast(), old, new, flags) };
        if start == libc::MAP_FAILED { std::ptr::null_mut() } else { start.cast() }
    }

    fn free_part(&self, start: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: Allocator's contract: it came from `alloc`, and nothing in it from `new` on is used any more.
        unsafe { libc::munmap(start.add(new).cast(), old - new) == 0 }
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        // SAFETY: Allocator's contract: it came from `alloc`, and nothing in it is used any more.
        unsafe { libc::munmap(start.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        // SAFETY: sysconf(3) only reads a number that is there. rustix's page_size may allocate, which comes back to here.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }
}

/// The program's allocator. glibc's takes a page fault for each page and two system calls for each step in which it grows, and a second
/// thread gets a heap of its own: a twentieth of a start.
pub(crate) struct Heap(Mutex<Dlmalloc<Memory>>);

impl Heap {
    /// Empty.
    pub(crate) const fn new() -> Heap {
        let memory = Memory { is_untouched: AtomicBool::new(true) };
        Heap(Mutex::new(Dlmalloc::new_with_allocator(memory)))
    }

    /// A process that another thread of this one makes would find it locked for ever: see [`super::clone_process`].
    fn lock(&self) -> MutexGuard<'_, Dlmalloc<Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: Dlmalloc's memory is aligned as asked, is given out once until it is freed, and stays where it is; the lock is held whenever
// it is used. It does not panic, and neither it nor the lock allocates.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: GlobalAlloc's contract: the size is not 0, the alignment a power of two.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: GlobalAlloc's contract: it was given out with this layout and is not used any more.
        unsafe { self.lock().free(start, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above, and the new size is not 0.
        unsafe { self.lock().realloc(start, layout.size(), layout.align(), size) }
    }
}
