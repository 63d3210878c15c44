/* The attempts of tests/live/escape.rs that every runtime can be asked for in the same way, as one static program. Each line that it
 * prints is `ATTEMPT<tab>OUTCOME`: `refused: WHY`, `absent`, or `REACHED` with what was reached. Facts that are no attempt begin with
 * `=`. It does no harm where it succeeds: files are opened and not written, and calls that would change the machine get arguments that
 * the kernel looks at only when it has seen the rights for them, so that an error other than a refusal shows that they were there. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *attempt, int reached) {
    if (reached) printf("%s\tREACHED\n", attempt);
    else if (errno == ENOENT) printf("%s\tabsent\n", attempt);
    else if (errno == EXDEV) printf("%s\trefused: still inside\n", attempt);
    else if (errno == EBADF) printf("%s\trefused: none is there\n", attempt);
    else printf("%s\trefused: %s\n", attempt, strerrorname_np(errno));
}

static void writable(const char *path) {
    char attempt[256];
    snprintf(attempt, sizeof attempt, "write %s", path);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    say(attempt, fd >= 0);
    if (fd >= 0) close(fd);
}

static void readable(const char *path) {
    char attempt[256], byte;
    snprintf(attempt, sizeof attempt, "read %s", path);
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, &byte, 1);
    if (got == 0) printf("%s\trefused: empty\n", attempt);
    else say(attempt, got == 1);
    if (fd >= 0) close(fd);
}

static void listed(const char *path) {
    char attempt[256];
    snprintf(attempt, sizeof attempt, "list %s", path);
    DIR *dir = opendir(path);
    if (!dir) { say(attempt, 0); return; }
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
    closedir(dir);
    printf(count ? "%s\tREACHED\n" : "%s\trefused: empty\n", attempt);
}

/* A call that needs rights, with arguments that are no use: everything but a refusal comes from behind the filter and the checks for rights. */
static void called(const char *attempt, long number, long a, long b, long c, long d, long e) {
    errno = 0;
    long got = syscall(number, a, b, c, d, e, 0L);
    say(attempt, got >= 0 || (errno != EPERM && errno != ENOSYS && errno != EACCES));
}

/* In a child, as some of it cannot be taken back. */
static void tried(const char *attempt, int (*attempted)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        errno = 0;
        int reached = attempted();
        say(attempt, reached);
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) printf("%s\trefused: killed by signal %d\n", attempt, WTERMSIG(status));
}

static int node(const char *path, mode_t kind, unsigned major, unsigned minor) {
    char byte;
    if (mknod(path, kind | 0600, makedev(major, minor)) != 0) return 0;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int reached = fd >= 0 && read(fd, &byte, 1) >= 0;
    int error = errno;
    unlink(path);
    errno = error;
    return reached;
}

static int made_memory(void) { return node("/tmp/mem", S_IFCHR, 1, 1); }
static int made_disk(void) {
    /* The first block device that the kernel knows; 7:0 is the first loop device. */
    unsigned major = 7, minor = 0;
    FILE *file = fopen("/proc/partitions", "r");
    char line[128];
    while (file && fgets(line, sizeof line, file)) if (sscanf(line, " %u %u", &major, &minor) == 2) break;
    if (file) fclose(file);
    return node("/tmp/disk", S_IFBLK, major, minor);
}
static int of_layer(void) { char byte; int fd = open("/node-in-a-layer", O_RDONLY); return fd >= 0 && read(fd, &byte, 1) == 1; }
static int tmpfs(void) { return mount("none", "/tmp", "tmpfs", 0, "") == 0; }
static int proc(void) { return mount("proc", "/tmp", "proc", 0, "") == 0; }
static int cgroup1(void) { return mount("none", "/tmp", "cgroup", 0, "memory") == 0; }
static int cgroup2(void) { return mount("none", "/tmp", "cgroup2", 0, "") == 0; }
static int proc_sys(void) { return mount(0, "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0) == 0; }
static int unmask(void) { return umount2("/proc/kcore", MNT_DETACH) == 0; }
static int user_namespace(void) { return unshare(CLONE_NEWUSER) == 0; }
static int mount_namespace(void) { return unshare(CLONE_NEWNS) == 0; }
static int cloned(void) { long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); if (child == 0) _exit(0); return child > 0; }
static int cloned3(void) {
    unsigned long long arguments[11] = { CLONE_NEWUSER, 0, 0, 0, SIGCHLD };
    long child = syscall(SYS_clone3, arguments, sizeof arguments);
    if (child == 0) _exit(0);
    return child > 0;
}
static int out_of_chroot(void) {
    struct stat before, after;
    stat("/", &before);
    mkdir("/tmp/jail", 0700);
    int root = open("/", O_DIRECTORY);
    if (chroot("/tmp/jail") != 0 || fchdir(root) != 0) return 0;
    for (int up = 0; up < 100; up++) if (chdir("..") != 0) return 0;
    if (chroot(".") != 0) return 0;
    stat("/", &after);
    errno = EXDEV;   /* it is where it was */
    return before.st_dev != after.st_dev || before.st_ino != after.st_ino;
}
static int cgroup_made(void) {
    /* Of version 2, and of some controllers of version 1, where a directory without this file is none. */
    const char *trees[] = { "", "/unified", "/memory", "/pids" };
    int refused = ENOENT, reached = 0;
    for (size_t at = 0; at < sizeof trees / sizeof *trees; at++) {
        char group[64], file[96];
        snprintf(group, sizeof group, "/sys/fs/cgroup%s/probe", trees[at]);
        snprintf(file, sizeof file, "%s/cgroup.procs", group);
        if (mkdir(group, 0700) == 0) {
            reached |= access(file, F_OK) == 0;
            rmdir(group);
        } else if (errno != ENOENT) refused = errno;
    }
    errno = refused;
    return reached;
}
static int by_handle(void) {
    struct { struct file_handle handle; char space[MAX_HANDLE_SZ]; } file = { .handle.handle_bytes = MAX_HANDLE_SZ };
    int root = open("/", O_RDONLY | O_DIRECTORY), mount_id;
    return name_to_handle_at(AT_FDCWD, "/", &file.handle, &mount_id, 0) == 0 && open_by_handle_at(root, &file.handle, O_RDONLY) >= 0;
}
static int joined(void) { return setns(open("/proc/self/ns/uts", O_RDONLY), CLONE_NEWUTS) == 0; }
static int counted(void) {
    struct perf_event_attr attributes = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_CPU_CLOCK,
        .exclude_kernel = 1, .exclude_hv = 1 };
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0) >= 0;
}
static int ring(void) { unsigned parameters[30] = { 0 }; return syscall(SYS_io_uring_setup, 1, parameters) >= 0; }
static int faults(void) { return syscall(SYS_userfaultfd, 1 | O_CLOEXEC) >= 0; }
static int keyring(void) { return syscall(SYS_keyctl, 0, -3, 1) >= 0; }
static int key(void) { return syscall(SYS_add_key, "user", "probe", "x", 1, -2) >= 0; }
static int compared(void) { return syscall(SYS_kcmp, getpid(), getpid(), 1, 0, 0) >= 0; }
static int abstract(void) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *name = "sandbox-probe-of-the-host";
    memcpy(address.sun_path + 1, name, strlen(name));
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(s, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) == 0;
}
#ifdef __x86_64__
static int x32(void) { return syscall(0x40000000 | SYS_getpid) > 0; }
static int gate(void) {
    long got = 20;   /* getpid of 32-bit programs */
    __asm__ volatile("int $0x80" : "+a"(got) : : "memory", "r8", "r9", "r10", "r11");
    if (got < 0) errno = -got;
    return got > 0;
}
#endif
/* Directories that somebody else left open lead out of the root. */
static int descriptors(void) {
    int reached = 0;
    for (int fd = 3; fd < 256; fd++) reached |= fcntl(fd, F_GETFD) >= 0;
    errno = EBADF;
    return reached;
}
static int programs(void) {
    DIR *dir = opendir("/proc");
    struct stat own, other;
    stat("/proc/self/exe", &own);
    int reached = 0, refused = ENOENT;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[300];
        snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
        if (!atoi(entry->d_name) || (stat(path, &other) == 0 && own.st_dev == other.st_dev && own.st_ino == other.st_ino)) continue;
        int fd = open(path, O_WRONLY);
        if (fd >= 0 || errno == ETXTBSY) reached = 1;
        else refused = errno;
    }
    errno = refused;
    return reached;
}

static void fact(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        char *value = line + strlen(key);
        value += strspn(value, ": \t");
        value[strcspn(value, "\n")] = 0;
        if (strcmp(key, "CapBnd") == 0) printf("= capabilities\t%d\n", __builtin_popcountll(strtoull(value, 0, 16)));
        else printf("= %s\t%s\n", *key ? key : "root inside is", value);
        break;
    }
    if (file) fclose(file);
}

static void files(void) {
    const char *written[] = { "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper", "/dev/kmsg", "/dev/mem" };
    const char *read[] = { "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/kmsg", "/proc/interrupts" };
    const char *directories[] = { "/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/sys/class/thermal" };
    for (size_t at = 0; at < sizeof written / sizeof *written; at++) writable(written[at]);
    for (size_t at = 0; at < sizeof read / sizeof *read; at++) readable(read[at]);
    for (size_t at = 0; at < sizeof directories / sizeof *directories; at++) listed(directories[at]);
}

static void attempts(void) {
    tried("make and read a node of the memory", made_memory);
    tried("make and read a node of the disk", made_disk);
    tried("read a device node of a layer", of_layer);
    tried("mount a tmpfs", tmpfs);
    tried("mount a new /proc", proc);
    tried("mount cgroup v1, for release_agent", cgroup1);
    tried("mount cgroup v2", cgroup2);
    tried("make /proc/sys writable", proc_sys);
    tried("take the mask off /proc/kcore", unmask);
    tried("make a cgroup", cgroup_made);
    tried("unshare a user namespace", user_namespace);
    tried("unshare a mount namespace", mount_namespace);
    tried("clone into a user namespace", cloned);
    tried("clone3 into a user namespace", cloned3);
    tried("leave by chroot", out_of_chroot);
    tried("join a namespace", joined);
    tried("open a file by its handle", by_handle);
    tried("count events (perf_event_open)", counted);
    tried("make an io_uring", ring);
    tried("handle page faults (userfaultfd)", faults);
    tried("use the session's keyring", keyring);
    tried("add a key", key);
    tried("compare processes (kcmp)", compared);
    tried("connect to an abstract socket of the host", abstract);
    tried("open a descriptor that the caller left", descriptors);
    tried("write the runtime's program by /proc/PID/exe", programs);
#ifdef __x86_64__
    tried("call by the x32 interface", x32);
    tried("call by the gate of 32-bit programs", gate);
#endif
}

static void calls(void) {
    called("bpf", SYS_bpf, 5, 0, 0, 0, 0);
    called("init_module", SYS_init_module, 0, 0, 0, 0, 0);
    called("kexec_load", SYS_kexec_load, 0, 99, 0, -1, 0);
    called("fanotify_init", SYS_fanotify_init, -1, 0, 0, 0, 0);
    called("syslog", SYS_syslog, 10, 0, 0, 0, 0);
    called("swapon", SYS_swapon, 0, 0, 0, 0, 0);
    called("move_mount", SYS_move_mount, -1, 0, -1, 0, 0);
    called("fsopen", SYS_fsopen, 0, 0, 0, 0, 0);
}

int main(void) {
    files();
    attempts();
    calls();
    fact("/proc/self/uid_map", "");
    fact("/proc/self/status", "CapBnd");
    fact("/proc/self/status", "NoNewPrivs");
    fact("/proc/self/status", "Seccomp");
    return 0;
}
