//! On which CPUs a thread runs.

use std::io;

use super::check;

/// As many CPUs as a kernel can have, one bit each.
type Mask = [u64; 8192 / 64];

/// Keeps this thread on the CPU that it is on, and what it starts: [`let_roam`] ends that, in each. A process that is waited for runs sooner
/// there than on another CPU, which has to be woken (by a virtual machine's host even) and has none of its memory at hand.
///
/// # Errors
/// What getcpu(2) and sched_setaffinity(2) say.
pub(crate) fn stay() -> io::Result<()> {
    let mut cpu: libc::c_uint = 0;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the kernel writes one unsigned int, which lives across the call, and nothing where it gets no pointer.
    check(unsafe { libc::syscall(libc::SYS_getcpu, &raw mut cpu, none, none) })?;
    let mut mask: Mask = [0; _];
    let cpu = cpu as usize;
    *mask.get_mut(cpu / 64).ok_or(io::ErrorKind::Unsupported)? = 1 << (cpu % 64);
    set_affinity(&mask)
}

/// Lets this thread run on every CPU of its cpuset, those too that are added to that later: as if nobody had set an affinity.
///
/// # Errors
/// What sched_setaffinity(2) says.
pub(crate) fn let_roam() -> io::Result<()> {
    set_affinity(&[u64::MAX; _])
}

fn set_affinity(mask: &Mask) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it has CPUs for, and no more than the size given, which mask has.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}
