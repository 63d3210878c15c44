//! By files: descriptors, links, binds and trees that are not what they seem.

use super::{USERNS, busybox};
use crate::bed::{self, Bed};
use crate::facts::TESTER;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// CVE-2024-21626: a directory of the host that somebody left open, as the working directory.
pub(super) fn working_directory_by_descriptor(bed: &Bed) {
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
pub(super) fn working_directory_of_an_upper(bed: &Bed) {
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

/// Who may trace the stub could go by its descriptors, one of which may be of a directory of the host.
pub(super) fn descriptors_of_the_stub(bed: &Bed) {
    let dir = bed.disk_dir();
    fs::write(dir.join("secret"), "secret").unwrap();
    let script =
        "for fd in $(seq 3 40); do cat /proc/1/fd/$fd/../secret /proc/1/cwd/../secret 2>/dev/null; done; echo seen";
    for userns in USERNS {
        let upper = dir.join(userns);
        let flags = ["--userns", userns, "--cap-add", "SYS_PTRACE", "--upper", upper.to_str().unwrap()];
        assert_eq!(bed.run(flags, script).output().succeeded().text(), "seen", "--userns {userns}");
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
pub(super) fn own_program_overwritten(bed: &Bed) {
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
pub(super) fn own_program_of_a_user(bed: &Bed) {
    let program = bed.user_dir().join("sandbox");
    fs::copy(bed::sandbox_binary(), &program).unwrap();
    std::os::unix::fs::chown(&program, Some(TESTER), Some(TESTER)).unwrap();
    let flags = ["run", "-q", "sh", "-c", "echo ready; exec sleep 1000"];
    let mut running = bed.command(&program, flags).user().spawn();
    running.wait_for("ready");
    is_sealed_copy(&format!("/proc/{}/exe", running.pid()));
    drop(running);
}

fn is_sealed_copy(program: &str) {
    assert!(fs::read_link(program).unwrap().to_str().unwrap().starts_with("/memfd:sandbox"));
    let seals = rustix::fs::fcntl_get_seals(fs::File::open(program).unwrap()).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL));
}

/// CVE-2025-31133: an image whose /dev/null leads elsewhere, so that what is masked would be that instead.
pub(super) fn masks_of_a_false_null(bed: &Bed) {
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
pub(super) fn false_terminal(bed: &Bed) {
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
pub(super) fn false_proc(bed: &Bed) {
    // The host's own /proc where the PIDs are shared: on another place than that it would be without its masks.
    let shared: &[&str] = &["--share", "pid", "--userns", "host"];
    let targets = ["/etc", "../../../../etc", "../tmp", "/dev", "/proc/1/root/proc"];
    for (flags, target) in [&[][..], shared].into_iter().flat_map(|flags| targets.map(|target| (flags, target))) {
        let root = bed.disk_dir();
        busybox(&root);
        for name in ["proc", "sys"] {
            let _ = fs::remove_dir(root.join(name));
        }
        symlink(target, root.join("proc")).unwrap();
        symlink("etc", root.join("sys")).unwrap();
        let outcome = bed
            .run(
                flags.iter().copied().chain(["--rootfs", root.to_str().unwrap()]).collect::<Vec<_>>(),
                "cat /proc/kcore /proc/keys | wc -c; echo x > /proc/sys/kernel/core_pattern; id -u",
            )
            .output();
        let text = outcome.text();
        // Either it is refused, or everything that counts is masked all the same.
        let masked = text.trim_start().starts_with('0') && outcome.errors().matches("Read-only").count() == 1;
        assert!(outcome.status == 125 || masked, "{flags:?} {target}: {text}{}", outcome.errors());
    }
}

/// A link that leads somewhere else once /dev is new: the host's /proc would be where the masks do not look.
pub(super) fn moving_proc(bed: &Bed) {
    for users in ["auto", "identity", "host"] {
        for top in ["proc", "sys"] {
            let root = bed.disk_dir();
            busybox(&root);
            for directory in ["a/b/c", "a/q", "q", "dev", "proc", "sys"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            fs::remove_dir(root.join(top)).unwrap();
            symlink("dev/shm/../../q", root.join(top)).unwrap();
            symlink("/a/b/c", root.join("dev/shm")).unwrap();
            symlink("/a/q/self", root.join("q/self")).unwrap();
            let flags = ["--share", "pid", "--network", "host", "--userns", users, "--rootfs", root.to_str().unwrap()];
            bed.run(flags, "ls /a/q").output().refused(125, [&*format!("/{top} in the root")]);
        }
    }
}

/// CVE-2019-16884 and its kind: the place of a bind is exchanged with a link out of the root, again and again.
pub(super) fn exchanged_bind_target(bed: &Bed) {
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

/// Root, working directory and descriptors of every process that is seen: none of them has the host's files.
pub(super) fn roots_of_others(bed: &Bed) {
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

/// The old way: a root below the working directory, and then up.
pub(super) fn chroot(bed: &Bed) {
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

pub(super) fn setuid_on_a_bind(bed: &Bed) {
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

/// Links that grow with each step, and a ring: they end a start, they do not hang it, and nothing is made outside.
pub(super) fn symlink_bomb(bed: &Bed) {
    let root = bed.disk_dir();
    busybox(&root);
    for step in 0..60 {
        let next = format!("/bomb{0}/../bomb{0}", step + 1);
        symlink(next, root.join(format!("bomb{step}"))).unwrap();
    }
    symlink("ring", root.join("ring")).unwrap();
    for bad in ["/bomb0/x", "/ring/x"] {
        let flags = ["--rootfs", root.to_str().unwrap(), "--tmpfs", bad];
        let said = bed.run(flags, "true").output().refused(125, []).errors();
        // As glibc and musl say it.
        let is_loop =
            ["Too many levels of symbolic links", "Symbolic link loop"].iter().any(|text| said.contains(text));
        assert!(is_loop, "{said}");
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
