//! The heap: one for all threads, whose first part is there before it is touched.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

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

/// From this size on, in bytes, libc's serves: it maps each of these by itself, moves them without a copy and gives them back.
const LARGE: usize = 128 << 10;

/// Memory of the program, but for libc's own. glibc's heap takes a page fault for each page and two system calls for each step in which
/// it grows, and a second thread gets one of its own: a twentieth of a start.
struct Heap(Mutex<Dlmalloc<Memory>>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(Dlmalloc::new_with_allocator(Memory { is_untouched: AtomicBool::new(true) })));

impl Heap {
    /// A process that another thread of this one makes would find it locked for ever: see [`super::clone_process`].
    fn lock(&self) -> MutexGuard<'_, Dlmalloc<Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether who has it will never give it back: a process with the same memory was killed in it, or found it broken. Whoever
/// allocates then waits for ever.
pub(crate) fn is_stuck() -> bool {
    (0..100).all(|_| {
        let is_held = matches!(HEAP.0.try_lock(), Err(TryLockError::WouldBlock));
        if is_held {
            std::thread::sleep(Duration::from_millis(1));
        }
        is_held
    })
}

// Not inlined: a program that has it at each of its thousands of calls is a fifteenth larger.
//
// SAFETY: both allocators' memory is aligned as asked, is given out once until it is freed, and stays where it is. Which one a piece is
// of follows from its size, which the caller tells again. Dlmalloc is used with the lock held. Neither allocates by the other, nor
// does the lock; that Dlmalloc panics, it does for a heap that is broken, is seen by [`is_stuck`].
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            // SAFETY: GlobalAlloc's contract is handed on.
            return unsafe { System.alloc(layout) };
        }
        // SAFETY: GlobalAlloc's contract: the size is not 0, the alignment a power of two.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            // SAFETY: GlobalAlloc's contract is handed on.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as for `alloc`.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if layout.size() >= LARGE {
            // SAFETY: GlobalAlloc's contract is handed on: of this size it came from there.
            return unsafe { System.dealloc(start, layout) };
        }
        // SAFETY: GlobalAlloc's contract: it was given out with this layout and is not used any more.
        unsafe { self.lock().free(start, layout.size(), layout.align()) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match (layout.size() >= LARGE, size >= LARGE) {
            // SAFETY: GlobalAlloc's contract is handed on: of this size it came from there, and so would the new one.
            (true, true) => unsafe { System.realloc(start, layout, size) },
            // SAFETY: as for `dealloc`, and the new size is not 0.
            (false, false) => unsafe { self.lock().realloc(start, layout.size(), layout.align(), size) },
            // SAFETY: the new size is valid for this alignment by GlobalAlloc's contract; both pieces are at least as long as what is
            // copied, and are two.
            _ => unsafe {
                let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                if !new.is_null() {
                    std::ptr::copy_nonoverlapping(start, new, layout.size().min(size));
                    self.dealloc(start, layout);
                }
                new
            },
        }
    }
}
