//! The default policy, as data: what each system call of the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl and
//! scripts/syscall.tbl, Linux 6.18) is to us. Written from those tables, the manual pages, and the public documentation of what Docker
//! denies by default; it allows nothing that Docker's default denies.
//!
//! What is in none of these lists is unknown and gets ENOSYS, as from a kernel that does not have it yet: a C library then falls
//! back to what it did before. A test holds the lists against the tables, so nothing that the tables have is forgotten.

use super::rule::{Condition, Test};

/// May be called by everybody: it acts on the caller, on what it has open, or on what permissions and namespaces guard.
#[rustfmt::skip]
pub(super) const ALLOWED: &[&str] = &[
    // Files by path and by descriptor.
    "access", "cachestat", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
    "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fcntl",
    "fdatasync", "fgetxattr", "file_getattr", "file_setattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstatat",
    "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat", "lchown", "lgetxattr",
    "link", "linkat", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "mkdir", "mkdirat",
    "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64",
    "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "removexattrat", "rename", "renameat",
    "renameat2", "rmdir", "sendfile", "setxattr", "setxattrat", "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync",
    "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vmsplice", "write",
    "writev",
    // What is mounted where the caller can see it.
    "listmount", "statmount",
    // Waiting for and hearing of events.
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "fanotify_mark",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "pause", "poll", "ppoll", "pselect6", "select",
    // Asynchronous reads and writes of the old kind.
    "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit",
    // Memory.
    "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap",
    "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
    "remap_file_pages",
    // Processes and threads. set_thread_area and arch_prctl set the caller's own segment bases.
    "arch_prctl", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake",
    "get_robust_list", "get_thread_area", "getcpu", "kill", "pidfd_open", "pidfd_send_signal", "prctl", "process_mrelease",
    "restart_syscall", "rseq", "set_robust_list", "set_thread_area", "set_tid_address", "tgkill", "tkill", "vfork", "wait4", "waitid",
    // uretprobe and uprobe are made by what the kernel puts into a traced program, and refuse everybody else.
    "uprobe", "uretprobe",
    // Signals.
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_tgsigqueueinfo", "sigaltstack", "signalfd", "signalfd4",
    // Who the caller is; capabilities guard the change.
    "capget", "capset", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getresgid", "getresuid",
    "getsid", "gettid", "getuid", "setfsgid", "setfsuid", "setgid", "setgroups", "setpgid", "setregid", "setresgid", "setresuid",
    "setreuid", "setsid", "setuid",
    // Giving up more: filters and rules that only ever take away.
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lsm_get_self_attr", "lsm_list_modules", "seccomp",
    // Limits, scheduling, accounting.
    "getpriority", "getrlimit", "getrusage", "ioprio_get", "ioprio_set", "prlimit64", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity",
    "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "setpriority", "setrlimit", "sysinfo", "times", "uname",
    // Clocks and timers. adjtimex reads for everybody; to set it takes CAP_SYS_TIME over the host.
    "adjtimex", "alarm", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer", "gettimeofday", "nanosleep", "setitimer", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime",
    // Sockets, pipes, System V and POSIX IPC, each in its namespace.
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "mq_getsetattr", "mq_notify", "mq_open",
    "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "pipe", "pipe2", "recvfrom", "recvmmsg",
    "recvmsg", "semctl", "semget", "semop", "semtimedop", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shmat", "shmctl", "shmdt",
    "shmget", "shutdown", "socketpair",
    // Randomness.
    "getrandom",
];

/// May be called by who was given one of these capabilities (`--cap-add`), and gets EPERM from everybody else.
#[rustfmt::skip]
pub(super) const WITH_CAPABILITY: &[(&[&str], &[&str])] = &[
    (&["SYS_ADMIN"], &[
        // Namespaces and mounts. open_tree copies mounts, fanotify_init can watch a whole file system.
        "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree", "open_tree_attr",
        "pivot_root", "setns", "umount2", "unshare",
        "quotactl", "quotactl_fd", "setdomainname", "sethostname",
    ]),
    (&["BPF", "SYS_ADMIN"], &["bpf"]),
    (&["PERFMON", "SYS_ADMIN"], &["perf_event_open"]),
    (&["SYSLOG", "SYS_ADMIN"], &["syslog"]),
    (&["SYS_BOOT"], &["reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (&["SYS_NICE"], &["get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise"]),
    (&["SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["SYS_TIME"], &["clock_adjtime", "clock_settime", "settimeofday"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
];

/// Make namespaces and, in those, mounts. SYS_ADMIN is for them as well, but in a user namespace of its own everybody has it: what
/// `--nesting` opens is this, and whatever takes a capability in the sandbox's own namespaces stays refused by the kernel.
#[rustfmt::skip]
pub(super) const NESTING: &[&str] = &[
    "chroot", "clone", "clone3", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
    "open_tree_attr", "pivot_root", "setdomainname", "sethostname", "setns", "umount2", "unshare",
];

/// Reach into other processes. With a PID namespace of its own the sandbox has only processes of its own to name, and debuggers work as
/// under Docker; with the host's (`--share pid`) they are for who was given SYS_PTRACE.
pub(super) const OTHER_PROCESSES: &[&str] = &["process_vm_readv", "process_vm_writev", "ptrace"];

/// Get EPERM from everybody.
#[rustfmt::skip]
pub(super) const DENIED: &[&str] = &[
    // Key rings are not namespaced by more than the user; what they hold is the host's.
    "add_key", "keyctl", "request_key",
    // A second way to make nearly every call, past this filter.
    "io_uring_enter", "io_uring_register", "io_uring_setup",
    // Another kernel.
    "kexec_file_load", "kexec_load",
    // Stops the kernel in the middle of a copy, for as long as one likes: the helper of many an exploit.
    "userfaultfd",
    // The machine's memory and the security module's labels.
    "lsm_set_self_attr", "swapoff", "swapon",
    // 16-bit code segments; what few old programs need them are 32-bit ones.
    "modify_ldt",
    // Obsolete, for profilers and file system lists of long ago.
    "lookup_dcookie", "sysfs", "uselib", "ustat",
];

/// In the kernel's tables as names, but in no kernel that we run on: ENOSYS is the truth.
#[cfg(test)]
#[rustfmt::skip]
pub(super) const GONE: &[&str] = &[
    "_sysctl", "afs_syscall", "create_module", "epoll_ctl_old", "epoll_wait_old", "get_kernel_syms", "getpmsg", "nfsservctl", "putpmsg",
    "query_module", "security", "tuxcall", "vserver",
];

/// `CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`, clone(2). NEWTIME is a bit of the exit signal
/// there, and no signal has it.
const NEW_NAMESPACES: u64 = 0x7e02_0080;
/// Only the low half of these arguments reaches the kernel: what is in the high half must not change what is seen here.
const LOW: u64 = 0xffff_ffff;
/// `TIOCSTI` and `TIOCLINUX` put input into a terminal as if it were typed, tty_ioctl(4).
const TYPING: [u64; 2] = [0x5412, 0x541c];
/// `AF_ALG` and `AF_VSOCK`: the kernel's ciphers, and a machine's line to its hypervisor, which no network namespace cuts.
const FAMILIES: [u64; 2] = [38, 40];
/// What personality(2) may be asked for: PER_LINUX and PER_LINUX32, each with or without UNAME26, and what is set now.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, LOW];

/// Allowed, as long as the arguments say nothing of this; EPERM otherwise.
pub(super) fn denied_arguments() -> Vec<(&'static str, Vec<Condition>)> {
    let low = |value: u64| Condition { argument: 0, test: Test::MaskedEqual { mask: LOW, value } };
    let request = |value: u64| Condition { argument: 1, ..low(value) };
    vec![("ioctl", TYPING.map(request).to_vec()), ("socket", FAMILIES.map(low).to_vec())]
}

/// Allowed where an argument says one of these; EPERM otherwise.
pub(super) fn allowed_arguments() -> Vec<(&'static str, Vec<Condition>)> {
    let low = |value: u64| Condition { argument: 0, test: Test::MaskedEqual { mask: LOW, value } };
    let no_namespace = Condition { argument: 0, test: Test::MaskedEqual { mask: NEW_NAMESPACES, value: 0 } };
    vec![("personality", PERSONALITIES.map(low).to_vec()), ("clone", vec![no_namespace])]
}
