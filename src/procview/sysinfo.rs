//! The system calls that tell what the files tell: sysinfo(2), and sched_getaffinity(2) where a quota leaves fewer CPUs than the mask
//! has. A filter hands them to the launcher: our own policy's, or before a filter from a profile one of its own, which lets all others
//! pass; seccomp_unotify(2).
//!
//! The answer goes into the caller's memory, which may be anything: a page of a dead server's file, or of our own virtual files. So a
//! short-lived process writes it, which the kernel ends after [`PATIENCE`], and the launcher never waits. What cannot be answered is
//! left to the kernel. Calls by 32-bit programs are not handed over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::memory::Amounts;
use super::reader::Reader;
use super::view::Child;
use crate::seccomp::{self, bpf::Instruction};
use crate::sys::{self, Side};

/// Seconds that writing an answer may take.
const PATIENCE: u32 = 2;

/// The largest mask of CPUs that is asked for: 8192 of them, as many as a kernel can have.
const MASK: usize = 1024;

/// The filter that hands them over.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Vec<Instruction>,
    /// What the policy forbids it forbids, too, so that one filter does for both.
    pub(crate) forbids: bool,
}

/// The filter that hands them over; with `affinity` both. `policy` is what else is loaded.
pub(crate) fn filter(affinity: bool, policy: &seccomp::Filter) -> Filter {
    let calls = calls(affinity);
    match policy.handing_over(calls) {
        Some(program) => Filter { program, forbids: true },
        None => Filter { program: seccomp::handing_over(calls), forbids: false },
    }
}

/// Loads that [`filter`] into this process, which has no_new_privs; the descriptor on which its calls are answered. `None`: somebody
/// outside answers them already, or the kernel cannot, and nothing is loaded.
///
/// # Errors
/// What seccomp(2) says beyond that.
pub(crate) fn listen(filter: &Filter) -> io::Result<Option<OwnedFd>> {
    // What forbids nothing needs no defence against side channels either; the policy has the kernel's own default.
    let speculation = if filter.forbids { 0 } else { libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    // Since Linux 5.19 a caller that is being answered is interrupted by nothing but its end: signals would make it ask again.
    let killable = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    for flags in [killable, 0] {
        match sys::load_notifying_filter(&filter.program, flags | speculation) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The calls that are handed over.
fn calls(affinity: bool) -> &'static [libc::c_long] {
    let all = &[libc::SYS_sysinfo, libc::SYS_sched_getaffinity];
    if affinity { all } else { &all[..1] }
}

/// Calls that are handed over, and the one that is being answered.
#[derive(Debug)]
pub(crate) struct Calls {
    listener: OwnedFd,
    writing: Option<(u64, Child)>,
}

/// What is written into the caller's memory, and what the call returns.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    at: u64,
    bytes: Vec<u8>,
    returned: i64,
}

impl Calls {
    /// On what [`listen`] gave.
    pub(super) fn new(listener: OwnedFd) -> Calls {
        Calls { listener, writing: None }
    }

    /// What is to be waited for: one call at a time.
    pub(super) fn waits_for(&self) -> BorrowedFd<'_> {
        self.writing.as_ref().map_or(self.listener.as_fd(), |(_, writer)| writer.pidfd())
    }

    /// Goes on after something was there to wait for.
    ///
    /// # Errors
    /// When there will be no more calls.
    pub(super) fn turn(&mut self, reader: &mut Reader) -> io::Result<()> {
        if let Some((id, writer)) = self.writing.take() {
            if !writer.succeeded() {
                self.leave_to_kernel(id);
            }
            return Ok(());
        }
        let call = match sys::notification(self.listener.as_fd()) {
            Ok(call) => call,
            // Whoever asked was killed meanwhile, or took a signal.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(answer) = answer(&call, reader) else {
            self.leave_to_kernel(call.id);
            return Ok(());
        };
        match sys::clone_process(0) {
            Ok(Side::Child) => {
                let status = write(self.listener.as_fd(), &call, &answer);
                sys::exit_now(u8::from(status.is_err()))
            }
            Ok(Side::Parent(pid, pidfd)) => self.writing = Some((call.id, Child::new(pid, pidfd))),
            Err(_) => self.leave_to_kernel(call.id),
        }
        Ok(())
    }

    fn leave_to_kernel(&self, id: u64) {
        // ENOENT: whoever asked is gone.
        let _ = sys::answer_notification(self.listener.as_fd(), id, None);
    }
}

/// In the process that writes: the memory is opened first, then it is certain that it is the caller's, which had not ended by then.
fn write(listener: BorrowedFd<'_>, call: &libc::seccomp_notif, answer: &Answer) -> io::Result<()> {
    sys::default_signals()?;
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    nix::unistd::alarm::set(PATIENCE);
    let memory = File::options().write(true).open(format!("/proc/{}/mem", call.pid))?;
    sys::notification_is_valid(listener, call.id)?;
    memory.write_all_at(&answer.bytes, answer.at)?;
    sys::answer_notification(listener, call.id, Some(answer.returned))
}

/// The answer; `None`: the kernel's own is right, or knows what is wrong.
fn answer(call: &libc::seccomp_notif, reader: &mut Reader) -> Option<Answer> {
    let [first, second, third, ..] = call.data.args;
    if libc::c_long::from(call.data.nr) == libc::SYS_sysinfo {
        return Some(Answer { at: first, bytes: sysinfo(&reader.numbers()), returned: 0 });
    }
    // Of itself only: another process's mask is that one's business.
    if first != 0 {
        return None;
    }
    let visible = reader.visible();
    if visible.len() >= reader.allowed().len() {
        return None;
    }
    let length = usize::try_from(second).ok()?.min(MASK);
    let mask = sys::affinity_mask(i32::try_from(call.pid).ok()?, length).ok()?;
    let bytes = narrowed(mask, &visible)?;
    Some(Answer { at: third, returned: i64::try_from(bytes.len()).ok()?, bytes })
}

/// A mask without the CPUs that are not seen; `None` when nothing would be left.
fn narrowed(mut mask: Vec<u8>, visible: &[u32]) -> Option<Vec<u8>> {
    for (index, byte) in mask.iter_mut().enumerate() {
        let seen = |bit: &u32| visible.iter().any(|cpu| *cpu as usize == index * 8 + *bit as usize);
        let bits = (0..8).filter(seen).fold(0, |bits, bit| bits | 1_u8 << bit);
        *byte &= bits;
    }
    mask.iter().any(|byte| *byte != 0).then_some(mask)
}

/// What sysinfo(2) tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Numbers {
    /// Seconds.
    pub(super) uptime: f64,
    /// Memory and swap.
    pub(super) amounts: Amounts,
    /// Load averages.
    pub(super) loads: [f64; 3],
    /// Processes and threads.
    pub(super) tasks: u64,
}

/// `struct sysinfo` of a 64-bit kernel, include/uapi/linux/sysinfo.h.
fn sysinfo(numbers: &Numbers) -> Vec<u8> {
    let amounts = &numbers.amounts;
    let mut out = Vec::with_capacity(112);
    // Load averages have 16 bits after the point.
    let loads = numbers.loads.map(|load| super::cpu::whole_number(load * 65536.0));
    let memory = [amounts.total, amounts.free, amounts.shared, 0, amounts.swap_total, amounts.swap_free];
    let words = [super::cpu::whole_number(numbers.uptime.ceil())].into_iter().chain(loads).chain(memory);
    words.for_each(|word| out.extend(word.to_ne_bytes()));
    out.extend(u16::try_from(numbers.tasks).unwrap_or(u16::MAX).to_ne_bytes());
    // Padding, no high memory, and a unit of one byte.
    out.extend([0; 6 + 16]);
    out.extend(1_u32.to_ne_bytes());
    out.resize(112, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        let amounts = Amounts {
            total: 300 << 20,
            free: 100 << 20,
            available: 0,
            cached: 0,
            shared: 7,
            swap_total: 5,
            swap_free: 3,
        };
        let bytes = sysinfo(&Numbers { uptime: 12.1, amounts, loads: [0.5, 1.0, 2.0], tasks: 70_000 });
        assert_eq!(bytes.len(), size_of::<libc::sysinfo>());
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 13);
        assert_eq!([word(8), word(16), word(24)], [32768, 65536, 131_072]);
        assert_eq!(word(std::mem::offset_of!(libc::sysinfo, totalram)), 300 << 20);
        assert_eq!(word(std::mem::offset_of!(libc::sysinfo, freeram)), 100 << 20);
        assert_eq!(word(std::mem::offset_of!(libc::sysinfo, freeswap)), 3);
        assert_eq!(bytes[80..82], u16::MAX.to_ne_bytes());
        let unit = std::mem::offset_of!(libc::sysinfo, mem_unit);
        assert_eq!(bytes[unit..unit + 4], 1_u32.to_ne_bytes());
    }

    #[test]
    fn a_mask_loses_what_is_not_seen() {
        assert_eq!(narrowed(vec![0b1111, 0b11], &[0, 9]), Some(vec![0b1, 0b10]));
        assert_eq!(narrowed(vec![0b10], &[0]), None);
    }
}
