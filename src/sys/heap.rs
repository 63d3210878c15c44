//! The heap: one for all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use dlmalloc::Dlmalloc;

/// By how much it grows, in bytes: once, in a start with default settings.
const STEP: usize = 256 << 10;

/// From this size on, in bytes, libc's serves: it maps each of these by itself, moves them without a copy and gives them back.
const LARGE: usize = 128 << 10;

/// Memory of the program, but for libc's own. glibc's heap grows and shrinks by some pages again and again, a second thread gets one of
/// its own, and its bookkeeping takes longer: a twentieth of a start.
struct Heap(Mutex<Dlmalloc>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new({
    let mut heap = Dlmalloc::new();
    assert!(heap.set_granularity(STEP));
    heap
}));

impl Heap {
    /// A process that another thread of this one makes would find it locked for ever: see [`super::clone_process`].
    fn lock(&self) -> MutexGuard<'_, Dlmalloc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From this size on, in bytes, who asks is told that there is nothing: that much is asked for by a wrong size only, of a file that
/// has a name to be told.
const ABSURD: usize = 1 << 30;

/// What was given out; where there is nothing to give this process ends with one line, for which no memory is needed. The standard
/// library would print two, and a backtrace, and abort.
fn given(start: *mut u8, size: usize) -> *mut u8 {
    if start.is_null() && size < ABSURD {
        let why = nix::errno::Errno::last().desc();
        let mut line = [0; 128];
        let mut rest = line.as_mut_slice();
        let _ = writeln!(rest, "sandbox: allocate {size} bytes: {why}");
        let free = rest.len();
        let _ = rustix::io::write(rustix::stdio::stderr(), line.get(..line.len() - free).unwrap_or_default());
        super::exit_now(crate::exit::FAILED);
    }
    start
}

/// Gets libc's own heap, from which the standard library has a few small pieces of each thread: so it is here that this process ends where
/// there is nothing to give, with one line.
pub(crate) fn begin() {
    // SAFETY: the layout is not of size 0. It is never given back, or the rest of its page would go with it.
    let piece = unsafe { System.alloc(Layout::new::<[usize; 6]>()) };
    // What is not used is not allocated.
    given(std::hint::black_box(piece), size_of::<[usize; 6]>());
}

/// So much of the heap, and of the stack, a start takes in any case, in bytes.
const TOUCHED: (usize, usize) = (204 << 10, 72 << 10);

/// Gets the pages that a start writes to, all at once: one by one, at the first write to each, they take three times as long.
pub(crate) fn touch() {
    let first = Box::new([0_u8; 64]);
    let heap = std::hint::black_box(first.as_ptr()).addr();
    let here = 0_u8;
    let stack = std::hint::black_box(&raw const here).addr();
    // libc's, which has it from the start; rustix would ask the kernel.
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let Some(page) = page.and_then(|page| usize::try_from(page).ok()) else { return };
    for (start, length) in [(heap, TOUCHED.0), (stack.saturating_sub(TOUCHED.1), TOUCHED.1)] {
        let start = start & !(page - 1);
        // SAFETY: madvise(2): MADV_POPULATE_WRITE changes no content, and what of the range is not mapped is an error. So it is before Linux
        // 5.14; then each page comes when it is written to.
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_POPULATE_WRITE) };
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
            return given(unsafe { System.alloc(layout) }, layout.size());
        }
        // SAFETY: GlobalAlloc's contract: the size is not 0, the alignment a power of two.
        given(unsafe { self.lock().malloc(layout.size(), layout.align()) }, layout.size())
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            // SAFETY: GlobalAlloc's contract is handed on.
            return given(unsafe { System.alloc_zeroed(layout) }, layout.size());
        }
        // SAFETY: as for `alloc`.
        given(unsafe { self.lock().calloc(layout.size(), layout.align()) }, layout.size())
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
            (true, true) => given(unsafe { System.realloc(start, layout, size) }, size),
            // SAFETY: as for `dealloc`, and the new size is not 0.
            (false, false) => given(unsafe { self.lock().realloc(start, layout.size(), layout.align(), size) }, size),
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
