//! By the kernel: its helpers, devices, key rings, namespaces, memory and cgroups, and around the filter of system calls.

use super::{USERNS, all_fail, busybox};
use crate::bed::Bed;
use crate::seccomp::{calls, number};
use crate::tree;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// CVE-2022-0492 and its kind: programs that the kernel starts on the host, named by a file.
pub(super) fn helpers_of_the_kernel(bed: &Bed) {
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/sys/kernel/uevent_helper",
    ];
    let read = || files.map(|file| fs::read(file).ok());
    let before = read();
    all_fail(
        bed,
        &[],
        &[
            "echo '|/tmp/x' > /proc/sys/kernel/core_pattern",
            "echo /tmp/x > /proc/sys/kernel/modprobe",
            "echo /tmp/x > /sys/kernel/uevent_helper",
            "mkdir /tmp/cg && mount -t cgroup -o memory cgroup /tmp/cg",
            "mkdir /tmp/cg2 && mount -t cgroup2 cgroup /tmp/cg2",
            "unshare -UrmC sh -c 'mount -t cgroup -o memory cgroup /tmp/cg'",
            "find /sys/fs/cgroup -name release_agent -o -name notify_on_release | grep .",
            "mount -t binfmt_misc none /tmp/cg",
            "mount -o remount,rw /proc/sys",
            "umount /proc/sys",
            "echo c > /proc/sysrq-trigger",
        ],
    );
    assert_eq!(read(), before);
}

pub(super) fn device_nodes(bed: &Bed) {
    let root = bed.disk_dir();
    busybox(&root);
    for (name, minor) in [("zero", 5), ("mem", 1)] {
        tree::device(&root.join(name), 1, minor);
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let attempts = [
        "dd if=/zero bs=1 count=1",
        "dd if=/mem bs=1 count=1",
        "dd if=/b/zero bs=1 count=1",
        "mknod /n c 1 5 && dd if=/n bs=1 count=1",
    ];
    let path = root.to_str().unwrap();
    all_fail(bed, &["--rootfs", path, "--bind", &format!("{path}:/b")], &attempts);
    // A pipe is no device.
    bed.run(["--rootfs", path], "mknod /tmp-pipe p").output().succeeded();
}

pub(super) fn block_device_of_the_host(bed: &Bed) {
    let line = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let number = line.lines().map(|line| line.split(' ').nth(2).unwrap().to_owned()).find(|n| !n.starts_with("0:"));
    let (major, minor) = number.as_deref().unwrap_or("7:0").split_once(':').unwrap();
    let attempts = [
        format!("mknod /tmp/d b {major} {minor} && dd if=/tmp/d bs=1 count=1"),
        format!("mknod /tmp/e b {major} {minor} && mount /tmp/e /mnt"),
    ];
    let attempts: Vec<&str> = attempts.iter().map(String::as_str).collect();
    all_fail(bed, &[], &attempts);
    // The unit says so, too, where a node can be made.
    all_fail(bed, &["--cap-add", "MKNOD"], &[attempts[0]]);
}

pub(super) fn keyrings(bed: &Bed) {
    let all = [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key].map(number);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for userns in USERNS {
        assert_eq!(calls(bed, &["--userns", userns], &all), [libc::EPERM; 3]);
        let text = bed.run(["--userns", userns], "cat /proc/keys /proc/key-users 2>/dev/null | wc -l").output().text();
        assert_eq!(text, "0");
    }
}

pub(super) fn more_namespaces(bed: &Bed) {
    all_fail(
        bed,
        &[],
        &[
            "unshare -U true",
            "unshare -Ur true",
            "unshare -m true",
            "unshare -n true",
            "unshare -p -f true",
            "nsenter -t 1 -m true",
        ],
    );
    let clone = format!("{:#x},0x10000011", libc::SYS_clone);
    for userns in USERNS {
        assert_eq!(calls(bed, &["--userns", userns], &[&clone]), [libc::EPERM]);
    }
}

pub(super) fn kernel_memory(bed: &Bed) {
    let script = "cat /proc/kcore 2>/dev/null | head -c 10 | wc -c; ls /dev/mem /dev/kmem /dev/port /dev/kmsg 2>/dev/null | wc -l; \
                  grep -c . /proc/kallsyms";
    for userns in USERNS {
        let text = bed.run(["--userns", userns, "--cap-add", "SYS_RAWIO,SYSLOG"], script).output().text();
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"], "--userns {userns}");
        let all = [libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_kexec_load, libc::SYS_init_module].map(number);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(calls(bed, &["--userns", userns], &all), [libc::EPERM; 4]);
    }
}

/// A program that makes one call by the gate of 32-bit programs, and ends with the error number it got (0 is none).
fn gate_program(call: u8) -> Vec<u8> {
    let code: &[u8] = &[
        0x31, 0xdb, // xor ebx, ebx
        0xb8, call, 0, 0, 0, // mov eax, call
        0xcd, 0x80, // int 0x80
        0x31, 0xff, // xor edi, edi
        0x85, 0xc0, // test eax, eax
        0x79, 0x04, // jns +4
        0xf7, 0xd8, // neg eax
        0x89, 0xc7, // mov edi, eax
        0xb8, 60, 0, 0, 0, // mov eax, exit
        0x0f, 0x05, // syscall
    ];
    let base: u64 = 0x40_0000;
    let size = u64::try_from(0x78 + code.len()).unwrap();
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Type, machine, version, entry, program headers, section headers, flags, sizes and counts: elf(5).
    file.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    file.extend((base + 0x78).to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [0, base, base, size, size, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

/// Calls of other interfaces, and numbers with bits that the kernel drops.
pub(super) fn around_the_filter(bed: &Bed) {
    let keyctl = libc::SYS_keyctl;
    let ways = [number(libc::SYS_clone3), format!("{:#x}", keyctl | 1 << 32), number(keyctl)];
    let ways: Vec<&str> = ways.iter().map(String::as_str).collect();
    let said = calls(bed, &[], &ways);
    assert_eq!(said, [libc::ENOSYS, libc::EPERM, libc::EPERM]);
    if cfg!(target_arch = "x86_64") {
        // The x32 interface: the same call, and one that would be allowed.
        assert_eq!(calls(bed, &[], &[&format!("{:#x}", keyctl | 0x4000_0000), "0x40000027"]), [libc::EPERM; 2]);
        let file = bed.seen_dir().join("gate");
        fs::write(&file, gate_program(20)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let path = file.to_str().unwrap();
        let unconfined = bed.sandbox(["run", "-q", "--seccomp", "unconfined", path]).output().status;
        if unconfined != 0 {
            // A kernel without 32-bit programs has no gate.
            assert!(unconfined >= 128 || unconfined == libc::ENOSYS, "{unconfined}");
        }
        for userns in USERNS {
            assert_eq!(bed.sandbox(["run", "-q", "--userns", userns, path]).output().status, libc::EPERM);
        }
    }
}

pub(super) fn cgroups(bed: &Bed) {
    for more in [&[][..], &["--network", "host"]] {
        all_fail(
            bed,
            more,
            &[
                "mkdir /sys/fs/cgroup/x",
                "echo 0 > /sys/fs/cgroup/cgroup.procs",
                "echo max > /sys/fs/cgroup/memory.max",
                "find /sys/fs/cgroup -writable -type f | grep .",
                "grep -v ':/$' /proc/self/cgroup",
                // The host's tree has units in it.
                "find /sys/fs/cgroup | grep -E 'system.slice|sandbox.slice|init.scope'",
            ],
        );
    }
}
