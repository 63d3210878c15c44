//! `--nesting`: namespaces and mounts inside, what they can see, and what stays as it is.

use crate::bed::{self, Bed};
use crate::{Test, test};
use std::path::Path;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("nesting/not_without", needs![root, systemd], not_without),
        test("nesting/as_root_and_as_a_user", needs![root, systemd, idmap], as_root_and_as_a_user),
        test("nesting/plain_user", needs![root, systemd, user_manager, kernel_min(5, 11)], plain_user),
        test("nesting/exec", needs![root, systemd, idmap], exec),
        test("nesting/a_sandbox_inside", needs![root, systemd, idmap, kernel_min(6, 1)], a_sandbox_inside),
        test("nesting/a_sysfs_is_read_only", needs![root, systemd, idmap], a_sysfs_is_read_only),
        test("nesting/the_sandbox_stays_as_it_is", needs![root, systemd, idmap], the_sandbox_stays_as_it_is),
        test("nesting/nothing_of_the_machine_can_be_written", needs![root, systemd, idmap], nothing_of_the_machine),
        test("nesting/needs_a_range", needs![root, systemd], needs_a_range),
    ]
}

/// The first and only process that a new /proc knows, and the kernel's own text in it: a line for each way to make one.
fn ways() -> String {
    let own = "sh -c 'echo $$ $(ls -d /proc/[0-9]* | wc -l) $(grep -c fuse.sandbox /proc/mounts)'";
    let mut script = format!("unshare -Urmpf --mount-proc {own} && unshare -Uripmfn --mount-proc {own}");
    if Path::new("/usr/bin/bwrap").exists() {
        script += " && bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev readlink /proc/self \
                   && bwrap --unshare-all --proc /proc --dev /dev --ro-bind / / true && echo bwrap";
    }
    script
}

#[track_caller]
fn check_ways(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[..2] {
        // sh, ls and wc at the most; the mounts that the sandbox has are still there, below the new one.
        let mut words = line.split(' ').map(|word| word.parse::<u32>().unwrap());
        let (shell, processes) = (words.next().unwrap(), words.next().unwrap());
        assert!(shell == 1 && (1..=4).contains(&processes), "{text}");
    }
    let bwrap = if Path::new("/usr/bin/bwrap").exists() { &["2", "bwrap"][..] } else { &[] };
    assert_eq!(lines[2..], *bwrap, "{text}");
}

/// The filter refuses; where it does not, the kernel does, since there is no whole /proc to be seen.
fn not_without(bed: &Bed) {
    let unshare = "unshare -Urmpf --mount-proc true";
    let refused = bed.run([""; 0], unshare).output().exited(1);
    assert!(refused.errors().contains("unshare failed: Operation not permitted"), "{}", refused.errors());
    let open = ["--seccomp", "unconfined"];
    bed.run(open, "unshare -Urmpf true").output().succeeded();
    let refused = bed.run(open, unshare).output().exited(1);
    assert!(refused.errors().contains("/proc failed: Operation not permitted"), "{}", refused.errors());
    bed.run(open, "unshare -Urmpfn sh -c 'mount -t sysfs -o ro none /mnt'").output().exited(32);
}

fn as_root_and_as_a_user(bed: &Bed) {
    for flags in
        [&[][..], &["--uid=33"], &["--uid=33", "--cap-drop=ALL"], &["--hidepid"], &["--procview=off"], &["--as-pid1"]]
    {
        let flags = flags.iter().copied().chain(["--nesting"]);
        check_ways(&bed.run(flags, &ways()).output().succeeded().text());
    }
}

fn plain_user(bed: &Bed) {
    check_ways(&bed.run(["--nesting"], &ways()).user().output().succeeded().text());
    check_ways(&bed.run(["--nesting", "--userns=identity"], &ways()).user().output().succeeded().text());
}

fn exec(bed: &Bed) {
    let (mut running, scope) = bed.live(["--nesting"], "echo ready; exec cat");
    let text = bed.sandbox(["exec", &scope, "sh", "-c", &ways()]).output().succeeded().text();
    check_ways(&text);
    assert!(bed.sandbox(["inspect", &scope]).output().succeeded().text().contains("nesting"));
    running.close_stdin();
    running.finish().succeeded();
}

/// A plain user of a sandbox has sandboxes as on any machine, without a unit: the set-user-ID programs that map more IDs than the
/// user's own have no effect inside.
fn a_sandbox_inside(bed: &Bed) {
    let program = bed.seen_dir().join("sandbox");
    std::fs::copy(bed::sandbox_binary(), &program).unwrap();
    for (flag, id) in [("--userns=auto", "0"), ("--userns=identity", "1000")] {
        let script = format!(
            "HOME=/tmp {} run -q --manager none {flag} -- sh -c 'id -u; readlink /proc/self | tr -dc 0-9 | wc -c'",
            program.display()
        );
        let text = bed.run(["--nesting", "--uid=1000"], &script).output().succeeded().text();
        assert_eq!(text, format!("{id}\n1"));
        bed.run(["--uid=1000"], &script).output().exited(125);
    }
}

fn a_sysfs_is_read_only(bed: &Bed) {
    // By mount(2): libmount 2.39 and later makes a mount first and has it read-only then, and the kernel refuses the first.
    let script = "unshare -Urmpfn env LIBMOUNT_FORCE_MOUNT2=always sh -c 'mount -t sysfs -o ro none /mnt && ls /mnt/class/net; \
                  mount -t sysfs none /mnt 2> /dev/null || echo refused; mount -o remount,rw /mnt 2> /dev/null || echo refused'";
    assert_eq!(bed.run(["--nesting"], script).output().succeeded().text(), "lo\nrefused\nrefused");
}

/// The masks and the sandbox's own numbers cannot be undone, nor what is below them be reached, by root of the sandbox or of a
/// namespace in it; and the bare file systems are nowhere.
fn the_sandbox_stays_as_it_is(bed: &Bed) {
    let script = "echo reached $(for p in /proc/proc /proc/sys/self /proc/sys/kernel/../../proc; do ls -d $p; done 2> /dev/null | wc -l)\n\
                  umount /proc 2> /dev/null || umount /proc/kcore 2> /dev/null || echo covered\n\
                  mount -t tmpfs none /mnt 2> /dev/null || echo no-mounts\n\
                  mount -t proc proc /mnt 2> /dev/null || echo no-proc\n\
                  head -c 9 /proc/kcore | wc -c\n\
                  (echo x > /proc/sys/kernel/core_pattern) 2> /dev/null || echo read-only\n";
    let nested = format!("unshare -Urm sh -c \"{}\"", script.replace('$', "\\$").replace("echo no-mounts", "true"));
    let more = "unshare -Urm sh -c 'umount -l /proc; mount --bind / /mnt; mount --rbind / /mnt && ls /mnt/proc/proc; \
                mount -o remount,bind,rw /proc/sys' 2> /dev/null; echo $(free -m | awk '/^Mem/ { print $2 }')";
    let want = "reached 0\ncovered\nno-mounts\nno-proc\n0\nread-only\n";
    let text = bed.run(["--nesting"], script).output().succeeded().text();
    assert_eq!(text, want.trim_end());
    let text = bed.run(["--nesting"], &nested).output().succeeded().text();
    assert_eq!(text, want.replace("no-mounts\n", "").trim_end());
    let text = bed.run(["--nesting", "--memory=300M"], more).output().succeeded().text();
    assert!(matches!(text.as_str(), "300") || !bed.facts.fuse, "{text}");
}

/// A /proc that is mounted inside has no part that is read-only: that what it has is the machine's root's is what protects it.
fn nothing_of_the_machine(bed: &Bed) {
    let files = [
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/sysrq",
        "vm/drop_caches",
        "../sysrq-trigger",
        "../irq/default_smp_affinity",
        "../kcore",
        "../kmsg",
    ];
    let script = format!(
        "for file in {}; do (: > /proc/sys/$file) 2> /dev/null && echo $file; done; \
         cat /proc/sys/kernel/core_pattern > /dev/null && echo whole; cat /proc/kcore /proc/kmsg 2> /dev/null | head -c 1 | wc -c",
        files.join(" ")
    );
    for map in ["-Ur", "-U"] {
        let script = format!("unshare {map}mpf --mount-proc sh -c '{script}'");
        assert_eq!(bed.run(["--nesting"], &script).output().succeeded().text(), "whole\n0", "{map}");
    }
}

fn needs_a_range(bed: &Bed) {
    for (flags, word) in
        [("--userns=identity", "user IDs"), ("--userns=host", "--userns host"), ("--share=pid", "--share pid")]
    {
        bed.run(["--nesting", flags], "true").output().refused(125, ["--nesting", word]);
    }
}
