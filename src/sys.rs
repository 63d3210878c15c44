//! Every `unsafe` block of the program: system calls that neither nix nor rustix offers, the few of theirs that are
//! unsafe to call, and the heap. Signatures are safe; what a caller has to guarantee is checked here where it can be.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::Pid;

use crate::seccomp::bpf::Instruction;

pub(crate) mod attr;
mod descriptors;
pub(crate) mod heap;
mod rlimit;
mod shared;
mod threads;

pub(crate) use descriptors::close_all_but;
pub(crate) use rlimit::Rlimit;
pub(crate) use shared::{Writer, vfork};

/// Turns the -1 of a system call into the error it set.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What [`clone_process`] returned: on which side of it the caller now is.
#[derive(Debug)]
pub(crate) enum Side {
    /// The process that called, with the new process's id and a pidfd for it.
    Parent(Pid, OwnedFd),
    /// The new process.
    Child,
}

/// Lets what libc itself allocates in threads that are made from here on come from the heap of the first one; mallopt(3). A heap of
/// their own takes 128 MiB of addresses.
pub(crate) fn share_heap() {
    // musl has one heap anyway.
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes integers and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Makes a new process like fork(2), in new namespaces as `flags` (`CLONE_NEW*`) say; see clone3(2).
///
/// The new process is a copy, so its allocator and standard library are usable only if no other thread of the caller could
/// have held their locks: with a second thread that does not end soon this is an error.
///
/// # Errors
/// EINVAL with several threads, and what clone3(2) says.
pub(crate) fn clone_process(flags: libc::c_int) -> io::Result<Side> {
    clone(flags, libc::SIGCHLD)
}

/// The same, but the new process is a child of this one's parent.
///
/// # Errors
/// As for [`clone_process`].
pub(crate) fn clone_sibling(flags: libc::c_int) -> io::Result<Side> {
    // The signal is that of this process then.
    clone(flags | libc::CLONE_PARENT, 0)
}

fn clone(flags: libc::c_int, exit_signal: libc::c_int) -> io::Result<Side> {
    threads::await_the_only_one()?;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which all zeroes is valid (clone3(2): unused fields must be zero).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from((flags | libc::CLONE_PIDFD).cast_unsigned());
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(exit_signal.cast_unsigned());
    // SAFETY: args and the pidfd it points to live across the call; without CLONE_VM the child has its own copy of the
    // stack, and the caller is single-threaded (checked above), so the child may go on as after fork(2).
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    match Pid::from_raw(i32::try_from(pid).unwrap_or(0)) {
        None => Ok(Side::Child),
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so pidfd is an open descriptor that nobody else owns.
        Some(pid) => Ok(Side::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// Changes the mount that `mount` is the root of: sets `attributes` (`attr::*`); see mount_setattr(2).
///
/// # Errors
/// ENOSYS before Linux 5.12.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, flags: libc::c_uint, attributes: u64) -> io::Result<()> {
    change_mount(mount, flags, libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Lets the device nodes on the mount that `mount` is the root of be opened (not `nodev`).
///
/// # Errors
/// ENOSYS before Linux 5.12; EPERM where whoever made the mount had more rights.
pub(crate) fn let_devices_be_opened(mount: BorrowedFd<'_>) -> io::Result<()> {
    change_mount(mount, 0, libc::mount_attr { attr_set: 0, attr_clr: attr::NODEV, propagation: 0, userns_fd: 0 })
}

/// Lets a copy of a mount be one that nothing spreads from or to (`MS_PRIVATE`), adds `attributes` ([`attr`]), and with `userns` maps its
/// owners through that user namespace.
///
/// # Errors
/// ENOSYS before Linux 5.12; EINVAL where the file system cannot be idmapped or is attached already.
pub(crate) fn set_mount_apart(
    mount: BorrowedFd<'_>,
    flags: libc::c_uint,
    attributes: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    if let Some(userns) = userns {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = u64::from(userns.as_raw_fd().cast_unsigned());
    }
    change_mount(mount, flags, attr)
}

fn change_mount(mount: BorrowedFd<'_>, flags: libc::c_uint, attr: libc::mount_attr) -> io::Result<()> {
    let flags = flags | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the path is a NUL-terminated literal, attr a valid mount_attr whose size is passed along; the descriptor is borrowed, so it
    // is open across the call. A wrong one in attr is an error.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    check(result).map(drop)
}

/// Closes the `count` descriptors from 3 on, which were inherited and are nobody's in this process; sd_listen_fds(3).
///
/// # Errors
/// What close_range(2) says.
pub(crate) fn close_listen_fds(count: RawFd) -> io::Result<()> {
    if count > 0 { close_range(3, 2 + count) } else { Ok(()) }
}

/// The same descriptors, borrowed for as long as nobody calls [`close_listen_fds`].
pub(crate) fn listen_fds<'a>(count: RawFd) -> Vec<BorrowedFd<'a>> {
    // SAFETY: they were open when this process started, since LISTEN_FDS was meant for it, and Rust gave their numbers to nothing
    // else; the child, which alone asks for them, closes them only by its execve.
    (3..3 + count).map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect()
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: closing is memory-safe; that no owned descriptor of this process is used afterwards is what the child relies
    // on by calling this as its first step, before it owns anything but the descriptors it keeps, or as a step to execve, when it
    // ends by that or by _exit and drops nothing else.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// `IFF_UP | IFF_RUNNING` in the type that ifreq has them in.
const UP: libc::c_short = 0x41;

/// Sets the interface flags of `name` to up; needs CAP_NET_ADMIN in the owner of this network namespace; netdevice(7).
///
/// # Errors
/// What ioctl(SIOCSIFFLAGS) says.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    /// `SIOCSIFFLAGS` of linux/sockios.h, in the type of this libc.
    const SET_FLAGS: libc::Ioctl = 0x8914;
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = UP;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SET_FLAGS, &raw const request) } as libc::c_long).map(drop)
}

/// Makes `terminal` the controlling terminal of this session, which must have none; tty_ioctl(4).
///
/// # Errors
/// EPERM when this process is no session leader or has a terminal already.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer, no pointer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) } as libc::c_long).map(drop)
}

/// Leaves the namespaces in `flags` (`CLONE_NEW*`) for new ones; unshare(2). Not for the launcher's first thread. With a mount
/// namespace, or with `CLONE_FS`, the calling thread gets a root, a working directory and an umask of its own.
///
/// # Errors
/// EINVAL for a user namespace with several threads, and what unshare(2) says.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no flag that is passed here (namespaces, CLONE_FS, and CLONE_THREAD, which only asks; never CLONE_FILES or CLONE_VM) shares or
    // unshares memory.
    check(unsafe { libc::unshare(flags) } as libc::c_long).map(drop)
}

/// Enters the namespaces in `flags` (`CLONE_NEW*`) of the process behind a pidfd, or the one namespace behind a descriptor of
/// /proc/PID/ns; setns(2). Never used by the launcher's first thread. The mount namespace brings the root and working directory of its top.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the target's namespaces, for a mount namespace without CAP_SYS_CHROOT, and for a pidfd of a process
/// that may not be traced; EINVAL for a user namespace with several threads, and for a pidfd before
/// Linux 5.8.
pub(crate) fn setns(target: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: integers only; no flag that exists shares or unshares memory or descriptors.
    check(unsafe { libc::setns(target.as_raw_fd(), flags) } as libc::c_long).map(drop)
}

/// The user namespace that owns the namespace behind a descriptor of /proc/PID/ns; ioctl_ns(2).
///
/// # Errors
/// EPERM where it is outside of the caller's own user namespace.
pub(crate) fn namespace_owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `NS_GET_USERNS` of linux/nsfs.h.
    const GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this ioctl takes no argument; other files answer ENOTTY.
    let found = check(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_USERNS) } as libc::c_long)?;
    let found = RawFd::try_from(found).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

/// Of which kind (`CLONE_NEW*`) the namespace behind a descriptor is; ioctl_ns(2).
///
/// # Errors
/// ENOTTY for what is no namespace.
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    /// `NS_GET_NSTYPE` of linux/nsfs.h.
    const GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this ioctl takes no argument; other files answer ENOTTY.
    let found = check(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_NSTYPE) } as libc::c_long)?;
    libc::c_int::try_from(found).map_err(io::Error::other)
}

/// Reads a limit of process `pid` (0: this one) and, with `new`, sets it; prlimit(2).
///
/// # Errors
/// EPERM when the hard limit would rise without CAP_SYS_RESOURCE in the initial user namespace.
pub(crate) fn prlimit(pid: i32, resource: u32, new: Option<Rlimit>) -> io::Result<Rlimit> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = new.map(|l| libc::rlimit64 { rlim_cur: l.soft, rlim_max: l.hard });
    let new_pointer = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both pointers are null or point to a rlimit64 that lives across the call.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new_pointer, &raw mut old) })?;
    Ok(Rlimit { soft: old.rlim_cur, hard: old.rlim_max })
}

/// Sets the nice value (-20 first … 19 last) of process `pid`; setpriority(2).
///
/// # Errors
/// EACCES when it would fall without CAP_SYS_NICE.
pub(crate) fn set_nice(pid: i32, nice: i32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), nice) } as libc::c_long).map(drop)
}

/// Replaces this process by the program at `path`, which with `unblock` starts with no signal blocked, whatever is blocked here; returns
/// only when that failed; execve(2).
pub(crate) fn exec(path: &OsStr, argv: &[CString], envp: &[CString], unblock: bool) -> io::Error {
    let Ok(path) = CString::new(path.as_bytes()) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    let blocked = unblock.then(|| SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK));
    // SAFETY: path is NUL-terminated; both arrays end in a null pointer and their strings live until execve returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    let error = io::Error::last_os_error();
    if let Some(Ok(blocked)) = blocked {
        let _ = blocked.thread_set_mask();
    }
    error
}

/// Leaves the caller's session keyring for a new, empty one: what is in the caller's (Kerberos, fscrypt and cifs keys) would be
/// readable inside whatever the user namespace; keyctl_join_session_keyring(3).
///
/// # Errors
/// What keyctl(2) says.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, which may be null for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none) }).map(drop)
}

/// Loads a filter of system calls that hands some of them over, into this process for good; the descriptor on which they are answered.
/// `flags` is added to `SECCOMP_FILTER_FLAG_NEW_LISTENER`; seccomp(2).
///
/// # Errors
/// EBUSY where a filter of this process has a listener already, EINVAL for flags that the kernel does not know, EACCES without
/// no_new_privs.
pub(crate) fn load_notifying_filter(program: &[Instruction], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let fd = set_filter(program, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: with NEW_LISTENER a success is an open descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next call that a filter handed over; only called when poll(2) says that there is one, else it waits; seccomp_unotify(2).
///
/// # Errors
/// ENOENT when whoever called was killed meanwhile.
pub(crate) fn notification(listener: BorrowedFd<'_>) -> io::Result<libc::seccomp_notif> {
    // SAFETY: seccomp_notif is plain integers; the kernel wants it zeroed.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: NOTIF_RECV writes one seccomp_notif, whose size is part of the request's number.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } as libc::c_long)?;
    Ok(call)
}

/// Whether the call is still waited for: its process has not ended, so its number is still its own.
///
/// # Errors
/// ENOENT when it has.
pub(crate) fn notification_is_valid(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    // SAFETY: NOTIF_ID_VALID reads one u64.
    check(
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) } as libc::c_long
    )
    .map(drop)
}

/// Lets a call return a value, or with `None` go on in the kernel.
///
/// # Errors
/// ENOENT when nobody waits for it any more.
pub(crate) fn answer_notification(listener: BorrowedFd<'_>, id: u64, returned: Option<i64>) -> io::Result<()> {
    let flags = if returned.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE } else { 0 };
    let flags = u32::try_from(flags).map_err(io::Error::other)?;
    let answer = libc::seccomp_notif_resp { id, val: returned.unwrap_or(0), error: 0, flags };
    // SAFETY: NOTIF_SEND reads one seccomp_notif_resp.
    check(
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) } as libc::c_long
    )
    .map(drop)
}

/// The CPUs that a thread may run on, one bit each, as the kernel writes them for who asks for `length` bytes;
/// sched_getaffinity(2).
///
/// # Errors
/// EINVAL when that is too few, ESRCH when it has ended.
pub(crate) fn affinity_mask(pid: i32, length: usize) -> io::Result<Vec<u8>> {
    let mut mask = vec![0; length];
    // SAFETY: the kernel writes at most length bytes, which mask has.
    let written = check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, length, mask.as_mut_ptr()) })?;
    mask.truncate(usize::try_from(written).map_err(io::Error::other)?);
    Ok(mask)
}

/// Whether `signal` is ignored by this process; sigaction(2).
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain data for which all zeroes is valid.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one to `now`, which lives across it.
    let read = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    read == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// The real-time signals as the kernel has them, and whoever names one; libc keeps the first of them for itself: signal(7).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Gives every signal its default action, as a program expects to start: Rust's runtime ignores SIGPIPE; signal(7). Those, too, that libc
/// keeps for itself: the program may have another one.
pub(crate) fn default_actions() {
    // The kernel's struct sigaction: SIG_DFL, no flags, no mask.
    let default = [0_u64; 4];
    for signal in 1..=*REAL_TIME.end() {
        // SAFETY: no architecture has a larger struct sigaction than default, all zeroes is one, the old one is not asked for, and a set of
        // signals is 8 bytes. SIGKILL and SIGSTOP give EINVAL and stay.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<libc::c_void>(), 8_usize)
        };
    }
}

/// Blocks every signal, those that libc keeps for itself, too.
///
/// # Errors
/// What sigprocmask(2) says.
pub(crate) fn block_all_signals() -> io::Result<()> {
    let all = u64::MAX;
    // SAFETY: all is a set of signals, of 8 bytes, and the old one is not asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            std::ptr::null::<libc::c_void>(),
            size_of_val(&all),
        )
    })
    .map(drop)
}

/// [`default_actions`], and blocks none: the mask, too, would be inherited through execve.
///
/// # Errors
/// What sigprocmask(2) says.
pub(crate) fn default_signals() -> io::Result<()> {
    default_actions();
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Ends this process by a signal, without a dump of its memory; returns only for a signal that does not end.
pub(crate) fn die_by(signal: i32) {
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if default_signals().is_ok() {
        // SAFETY: kill takes integers; the signal's action is the default one.
        unsafe { libc::kill(libc::getpid(), signal) };
    }
}

/// Ends this process at once, without running exit handlers or flushing what it inherited from its parent; _exit(2).
pub(crate) fn exit_now(status: u8) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(i32::from(status)) }
}

/// The number of BPF programs of one attach type (`enum bpf_attach_type`) on a cgroup itself, those of its parents not
/// counted; see bpf(2), `BPF_PROG_QUERY`.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN and CAP_BPF, EINVAL where the kernel was built without BPF for cgroups.
pub(crate) fn bpf_prog_query(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<u32> {
    /// `BPF_PROG_QUERY` of `enum bpf_cmd`.
    const QUERY: libc::c_int = 16;
    /// The member `query` of `union bpf_attr`.
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
    }
    let target_fd = u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let mut query =
        Query { target_fd, attach_type, query_flags: 0, attach_flags: 0, prog_ids: 0, prog_cnt: 0, padding: 0 };
    // SAFETY: query lives across the call and is as long as said; the kernel takes any length of bpf_attr and treats what is
    // missing as zero. With prog_ids null and prog_cnt 0 it writes nothing but attach_flags and prog_cnt into it.
    check(unsafe { libc::syscall(libc::SYS_bpf, QUERY, &raw mut query, size_of::<Query>()) })?;
    Ok(query.prog_cnt)
}

/// Loads a filter of system calls into this process, for good; seccomp(2), `SECCOMP_SET_MODE_FILTER`. `flags` is of
/// `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// EACCES without no_new_privs, EINVAL for a program that the kernel does not take, or a kernel without filters.
pub(crate) fn load_filter(program: &[Instruction], flags: u32) -> io::Result<()> {
    set_filter(program, flags.into()).map(drop)
}

fn set_filter(program: &[Instruction], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: Instruction is laid out as struct sock_filter (repr(C), the same four fields), length of them are behind the pointer,
    // and the kernel copies them and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) })
}

/// A signal by its number, named or real-time; `None` where the number is none, or one that libc keeps for itself.
pub(crate) fn signal(number: i32) -> Option<rustix::process::Signal> {
    rustix::process::Signal::from_named_raw(number).or_else(|| {
        // SAFETY: from_raw_unchecked wants a number that sigaction(2) takes, and that libc does not use in this process: it is only sent to
        // others.
        REAL_TIME.contains(&number).then(|| unsafe { rustix::process::Signal::from_raw_unchecked(number) })
    })
}
