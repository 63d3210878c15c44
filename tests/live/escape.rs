//! The escape table: known ways out of a container, one test each, with the outcome that means safe. Each is tried as root inside, in
//! every user namespace that there is: a range of its own, each ID itself, the host's.

use crate::bed::{self, Bed};
use crate::facts::TESTER;
use crate::seccomp::{calls, number};
use crate::tree;
use crate::{Test, alone, test};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("escape/working_directory_by_descriptor", needs![root, systemd], working_directory_by_descriptor),
        test("escape/working_directory_of_an_upper", needs![root, systemd, disk], working_directory_of_an_upper),
        test("escape/own_program_overwritten", needs![root, systemd], own_program_overwritten),
        test("escape/own_program_of_a_user", needs![root, systemd, user_manager], own_program_of_a_user),
        alone("escape/helpers_of_the_kernel", needs![root, systemd], helpers_of_the_kernel),
        test("escape/masks_of_a_false_null", needs![root, systemd], masks_of_a_false_null),
        test("escape/false_terminal", needs![root, systemd], false_terminal),
        test("escape/false_proc", needs![root, systemd], false_proc),
        test("escape/exchanged_bind_target", needs![root, systemd], exchanged_bind_target),
        test("escape/device_nodes", needs![root, systemd], device_nodes),
        test("escape/block_device_of_the_host", needs![root, systemd], block_device_of_the_host),
        test("escape/typing_on_the_terminal", needs![root, systemd], typing_on_the_terminal),
        test("escape/processes_outside", needs![root, systemd], processes_outside),
        test("escape/abstract_sockets", needs![root, systemd], abstract_sockets),
        test("escape/roots_of_others", needs![root, systemd], roots_of_others),
        test("escape/keyrings", needs![root, systemd], keyrings),
        test("escape/more_namespaces", needs![root, systemd], more_namespaces),
        test("escape/kernel_memory", needs![root, systemd], kernel_memory),
        test("escape/chroot", needs![root, systemd], chroot),
        test("escape/around_the_filter", needs![root, systemd], around_the_filter),
        test("escape/setuid_on_a_bind", needs![root, systemd], setuid_on_a_bind),
        test("escape/cgroups", needs![root, systemd], cgroups),
        test("escape/symlink_bomb", needs![root, systemd], symlink_bomb),
    ]
}

const USERNS: [&str; 3] = ["auto", "identity", "host"];

/// A small root with what the attempts need.
fn busybox(root: &Path) {
    tree::busybox(root);
    for name in ["wc", "grep", "mknod", "tty", "head"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

/// Each line of shell fails in every user namespace.
fn all_fail(bed: &Bed, flags: &[&str], attempts: &[&str]) {
    for userns in USERNS {
        let script: Vec<String> = attempts
            .iter()
            .map(|attempt| format!("if ({attempt}) >/dev/null 2>&1; then echo '{attempt}'; fi"))
            .collect();
        let flags = ["--userns", userns].into_iter().chain(flags.iter().copied());
        let worked = bed.run(flags, &script.join("\n")).output().succeeded().text();
        assert_eq!(worked, "", "worked with --userns {userns}");
    }
}

/// CVE-2024-21626: a directory of the host that somebody left open, as the working directory.
fn working_directory_by_descriptor(bed: &Bed) {
    by_descriptor(bed, "--userns identity");
    by_descriptor(bed, "--userns host");
    let (program, (running, unit)) = (bed::sandbox_binary(), bed.live([""; 0], "echo ready; exec sleep 1000"));
    for descriptor in 3..24 {
        let script = format!(
            "exec 7</sys/fs/cgroup 8</; exec {} exec -w /proc/self/fd/{descriptor} {unit} pwd",
            program.display()
        );
        bed.command("bash", ["-c", &script]).output().refused(125, ["working directory /proc/self/fd/"]);
    }
    drop(running);
}

/// The same with the directory that keeps the writes, which is locked by a descriptor of ours.
fn working_directory_of_an_upper(bed: &Bed) {
    let dir = bed.disk_dir();
    let upper = dir.join("upper");
    by_descriptor(bed, &format!("--userns identity --upper {}", upper.display()));
    // Nor is a program found there.
    fs::copy("/bin/true", dir.join("outside")).unwrap();
    for more in ["--init", "--as-pid1"] {
        for descriptor in 3..24 {
            let program = format!("/proc/self/fd/{descriptor}/../outside");
            let flags = ["run", "-q", "--userns", "identity", "--upper", upper.to_str().unwrap(), more, &program];
            bed.sandbox(flags).output().refused(127, ["run /proc/self/fd/"]);
        }
    }
}

fn by_descriptor(bed: &Bed, flags: &str) {
    let program = bed::sandbox_binary();
    for descriptor in 3..24 {
        let script = format!(
            "exec 7</sys/fs/cgroup 8</ 9</proc; exec {} run -q {flags} -w /proc/self/fd/{descriptor} cat ../../../../proc/version",
            program.display()
        );
        bed.command("bash", ["-c", &script]).output().refused(125, ["working directory /proc/self/fd/"]);
    }
}

/// CVE-2019-5736: our own program, reached by /proc/PID/exe and by a command that is /proc/self/exe, opened for writing.
fn own_program_overwritten(bed: &Bed) {
    let dir = bed.seen_dir();
    // A copy, so that success harms nothing but the test.
    let program = dir.join("sandbox");
    fs::copy(bed::sandbox_binary(), &program).unwrap();
    let before = fs::read(&program).unwrap();
    for userns in USERNS {
        let script = "printf '#!/proc/self/exe\\n' > /tmp/evil; chmod 755 /tmp/evil; echo ready; \
                      while :; do for p in /proc/[0-9]*; do \
                      case $(readlink $p/exe) in */sandbox*|*memfd*) (exec 9<$p/exe; echo seen; sleep 0.3; echo x >>/proc/self/fd/9) 2>/dev/null; \
                      (echo x >>$p/exe) 2>/dev/null && echo written;; esac; done; done";
        let unit = bed.unit();
        let flags =
            ["run", "-q", "--userns", userns, "--cap-add", "SYS_PTRACE", &format!("--unit={unit}"), "sh", "-c", script];
        let mut running = bed.command(&program, flags).spawn();
        running.wait_for("ready");
        for command in ["/tmp/evil", "/proc/self/exe"] {
            for _ in 0..10 {
                bed.command(&program, ["exec", &unit, command]).output();
            }
        }
        let text = running.stdout_so_far();
        assert!(!text.contains("written"), "--userns {userns}: {text}");
        // Not only because it runs: Linux 6.11 and 6.12 let running programs be written.
        if userns != "auto" {
            let opened = fs::File::options().write(true).truncate(true).open(format!("/proc/{}/exe", running.pid()));
            assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EROFS), "--userns {userns}");
        }
        drop(running);
        bed.poll("the unit is gone", || {
            bed.command("systemctl", ["is-active", &format!("{unit}.scope")]).output().status != 0
        });
        assert!(fs::read(&program).unwrap() == before, "--userns {userns}: the program was changed");
    }
}

/// The same where the program is the caller's own: what runs is a copy in memory that nothing can write.
fn own_program_of_a_user(bed: &Bed) {
    let program = bed.user_dir().join("sandbox");
    fs::copy(bed::sandbox_binary(), &program).unwrap();
    std::os::unix::fs::chown(&program, Some(TESTER), Some(TESTER)).unwrap();
    let flags = ["run", "-q", "sh", "-c", "echo ready; exec sleep 1000"];
    let mut running = bed.command(&program, flags).user().spawn();
    running.wait_for("ready");
    let own = format!("/proc/{}/exe", running.pid());
    assert!(fs::read_link(&own).unwrap().to_str().unwrap().starts_with("/memfd:sandbox"));
    let seals = rustix::fs::fcntl_get_seals(fs::File::open(&own).unwrap()).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL));
    drop(running);
}

/// CVE-2022-0492 and its kind: programs that the kernel starts on the host, named by a file.
fn helpers_of_the_kernel(bed: &Bed) {
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

/// CVE-2025-31133: an image whose /dev/null leads elsewhere, so that what is masked would be that instead.
fn masks_of_a_false_null(bed: &Bed) {
    let root = bed.disk_dir();
    busybox(&root);
    fs::create_dir_all(root.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
    let script = "ls -l /dev/null; cat /proc/kcore /proc/keys /proc/timer_list /proc/kallsyms /proc/interrupts 2>/dev/null | wc -c; \
                  ls /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap 2>/dev/null | grep -v ':$' | wc -w";
    let text = bed.run(["--rootfs", root.to_str().unwrap()], script).output().succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with('c') && lines[0].contains("1,"), "{text}");
    assert_eq!(lines[1..].iter().map(|line| line.trim()).collect::<Vec<_>>(), ["0", "0"], "{text}");
}

/// CVE-2025-52565: an image whose terminal files lead elsewhere.
fn false_terminal(bed: &Bed) {
    let root = bed.disk_dir();
    busybox(&root);
    fs::create_dir_all(root.join("dev")).unwrap();
    for name in ["console", "ptmx", "pts", "tty", "mqueue", "shm"] {
        symlink("/proc/sys/kernel", root.join("dev").join(name)).unwrap();
    }
    let script = "tty; test -c /dev/ptmx && test -c /dev/tty && ! test -e /dev/console && ls -d /dev/pts/0 && \
                  ! (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo whole";
    let text = bed.run(["-t", "--rootfs", root.to_str().unwrap()], script).pty(24, 80).output().succeeded().text();
    assert!(text.contains("/dev/pts/0") && text.contains("whole"), "{text}");
}

/// CVE-2025-52881: an image whose /proc and /sys lead elsewhere, so that what is written there would go elsewhere.
fn false_proc(bed: &Bed) {
    for target in ["/etc", "../../../../etc", "/dev", "/proc/1/root/proc"] {
        let root = bed.disk_dir();
        busybox(&root);
        for name in ["proc", "sys"] {
            let _ = fs::remove_dir(root.join(name));
        }
        symlink(target, root.join("proc")).unwrap();
        symlink("etc", root.join("sys")).unwrap();
        let outcome = bed
            .run(
                ["--rootfs", root.to_str().unwrap()],
                "cat /proc/kcore /proc/keys | wc -c; echo x > /proc/sys/kernel/core_pattern; id -u",
            )
            .output();
        let text = outcome.text();
        // Either it is refused, or everything that counts is masked all the same.
        let masked = text.trim_start().starts_with('0') && outcome.errors().matches("Read-only").count() == 1;
        assert!(outcome.status == 125 || masked, "{target}: {text}{}", outcome.errors());
    }
}

/// CVE-2019-16884 and its kind: the place of a bind is exchanged with a link out of the root, again and again.
fn exchanged_bind_target(bed: &Bed) {
    let (shared, victim, source) = (bed.disk_dir(), bed.disk_dir(), bed.disk_dir());
    fs::create_dir(shared.join("a")).unwrap();
    symlink(&victim, shared.join("b")).unwrap();
    let (stop, exchanges) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, shared.join("a"), CWD, shared.join("b"), RenameFlags::EXCHANGE).unwrap();
                exchanges.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let flags =
            ["--bind", &format!("{}:/s", shared.display()), "--bind", &format!("{}:/s/a/made/here", source.display())];
        let mut starts = 0;
        while starts < 20 || exchanges.load(Ordering::Relaxed) < 2000 {
            // It may work or be refused, by what it finds.
            bed.run(flags, "true").output();
            starts += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "something was made outside of the root");
}

fn device_nodes(bed: &Bed) {
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

fn block_device_of_the_host(bed: &Bed) {
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

/// Input put into the terminal that the caller types on would be run by the caller's shell.
fn typing_on_the_terminal(bed: &Bed) {
    let script = "for my $request (0x5412, 0x541c) { for my $fd (*STDIN, *STDOUT) { my $c = \"\\x02x\"; \
                  print ioctl($fd, $request, $c) ? 'typed' : 'refused ' . ($! + 0), ' '; } }";
    for flags in [&["-P"][..], &["-t"], &["-P", "--userns", "host"], &["-t", "--userns", "host", "--as-pid1"]] {
        let run = bed.sandbox(["run", "-q"]).args(flags).args(["perl", "-e", script]);
        let text = run.pty(24, 80).output().succeeded().text();
        assert_eq!(text.matches("refused 1").count(), 4, "{flags:?}: {text}");
    }
}

fn processes_outside(bed: &Bed) {
    let mut victim = bed.command("sleep", ["1000"]).spawn();
    let (pid, ptrace) = (victim.pid(), libc::SYS_ptrace);
    let script = format!(
        "$! = 0; syscall({ptrace}, 16, {pid}, 0, 0) == -1 or print 'traced'; kill(9, {pid}) and print 'killed'; print -e '/proc/{pid}' ? 'seen' : 'unseen'"
    );
    for userns in USERNS {
        let text = bed.sandbox(["run", "-q", "--userns", userns, "perl", "-e", &script]).output().succeeded().text();
        assert_eq!(text, "unseen", "--userns {userns}");
    }
    // Asked to share PIDs it sees them, and may not look into them.
    let script = format!(
        "$! = 0; syscall({ptrace}, 16, {pid}, 0, 0) == -1 or print 'traced'; print open(my $f, '<', '/proc/{pid}/environ') && <$f> ? 'read' : 'kept'"
    );
    for userns in ["auto", "identity"] {
        let run = bed.sandbox(["run", "-q", "--share", "pid", "--userns", userns, "perl", "-e", &script]);
        assert_eq!(run.output().succeeded().text(), "kept", "--userns {userns}");
    }
    assert!(!victim.is_over());
}

fn abstract_sockets(bed: &Bed) {
    use std::os::linux::net::SocketAddrExt;
    let name = bed.id().to_owned();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let script = format!(
        "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0); print connect($s, pack('Sa*', AF_UNIX, \"\\0{name}\")) ? 'reached' : 'refused'"
    );
    for userns in USERNS {
        let text = bed.sandbox(["run", "-q", "--userns", userns, "perl", "-e", &script]).output().succeeded().text();
        assert_eq!(text, "refused", "--userns {userns}");
    }
    // The attempt is one that works where it may.
    assert_eq!(bed.command("perl", ["-e", &script]).output().succeeded().text(), "reached");
}

/// Root, working directory and descriptors of every process that is seen: none of them has the host's files.
fn roots_of_others(bed: &Bed) {
    let secret = bed.disk_dir().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let path = secret.display();
    let script = format!(
        "for p in /proc/[0-9]*; do for l in root cwd task/*/root; do cat $p/$l{path} 2>/dev/null; done; \
         for f in $p/fd/*; do cat $f{path} $f/../../../../../..{path} 2>/dev/null; done; done; echo looked"
    );
    for userns in USERNS {
        for more in ["--cap-drop=NET_RAW", "--cap-add=SYS_PTRACE", "--as-pid1"] {
            let text = bed.run(["--userns", userns, more], &script).output().succeeded().text();
            assert_eq!(text, "looked", "--userns {userns} {more}");
        }
    }
}

fn keyrings(bed: &Bed) {
    let all = [libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key].map(number);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for userns in USERNS {
        assert_eq!(calls(bed, &["--userns", userns], &all), [libc::EPERM; 3]);
        let text = bed.run(["--userns", userns], "cat /proc/keys /proc/key-users 2>/dev/null | wc -l").output().text();
        assert_eq!(text, "0");
    }
}

fn more_namespaces(bed: &Bed) {
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

fn kernel_memory(bed: &Bed) {
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

/// The old way: a root below the working directory, and then up.
fn chroot(bed: &Bed) {
    let script = "mkdir '/tmp/x'; opendir(my $d, '/'); chroot('/tmp/x') or die; chdir($d); chdir('..') for 1..100; chroot('.') or die; \
                  print join ' ', (stat('/'))[0, 1]";
    let secret = bed.disk_dir().join("secret");
    fs::write(&secret, "of the host").unwrap();
    for userns in USERNS {
        let script = format!(
            "my $before = join ' ', (stat('/'))[0, 1]; {script}; print ' ', -e '{}' ? 'out' : 'in', ' ', $before",
            secret.display()
        );
        let text = bed.sandbox(["run", "-q", "--userns", userns, "perl", "-e", &script]).output().succeeded().text();
        let (after, before) = text.split_once(" in ").unwrap_or_else(|| panic!("--userns {userns}: {text}"));
        assert_eq!(after, before, "--userns {userns}");
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
fn around_the_filter(bed: &Bed) {
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

fn setuid_on_a_bind(bed: &Bed) {
    let dir = bed.seen_dir();
    let program = dir.join("id");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let bind = format!("{}:/b", dir.display());
    for userns in USERNS {
        for path in ["/b/id".to_owned(), program.display().to_string()] {
            let text =
                bed.sandbox(["run", "-q", "--userns", userns, "--uid", "33", "--bind", &bind, &path, "-u"]).output();
            assert_eq!(text.succeeded().text(), "33", "--userns {userns}: {path}");
        }
    }
}

fn cgroups(bed: &Bed) {
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

/// Links that grow with each step, and a ring: they end a start, they do not hang it, and nothing is made outside.
fn symlink_bomb(bed: &Bed) {
    let root = bed.disk_dir();
    busybox(&root);
    for step in 0..60 {
        let next = format!("/bomb{0}/../bomb{0}", step + 1);
        symlink(next, root.join(format!("bomb{step}"))).unwrap();
    }
    symlink("ring", root.join("ring")).unwrap();
    for bad in ["/bomb0/x", "/ring/x"] {
        let flags = ["--rootfs", root.to_str().unwrap(), "--tmpfs", bad];
        bed.run(flags, "true").output().refused(125, ["Too many levels of symbolic links"]);
    }
    for name in ["passwd", "group"] {
        let file = root.join("etc").join(name);
        let _ = fs::remove_file(&file);
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("/bomb0", file).unwrap();
    }
    let text = bed.run(["--rootfs", root.to_str().unwrap()], "echo fine").output().succeeded().text();
    assert_eq!(text, "fine");
    assert!(!Path::new("/bomb60").exists());
}
