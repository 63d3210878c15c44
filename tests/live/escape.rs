//! The escape table: known ways out of a container, one test each, with the outcome that means safe. Each is tried as root inside, in
//! every user namespace that there is: a range of its own, each ID itself, the host's.

mod files;
mod kernel;
mod processes;

use crate::bed::Bed;
use crate::{Test, alone, test, tree};
use std::os::unix::fs::symlink;
use std::path::Path;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("escape/working_directory_by_descriptor", needs![root, systemd], files::working_directory_by_descriptor),
        test("escape/working_directory_of_an_upper", needs![root, systemd, disk], files::working_directory_of_an_upper),
        test("escape/own_program_overwritten", needs![root, systemd], files::own_program_overwritten),
        test(
            "escape/own_program_of_a_user",
            needs![root, systemd, user_manager, kernel_min(5, 11)],
            files::own_program_of_a_user,
        ),
        alone("escape/helpers_of_the_kernel", needs![root, systemd], kernel::helpers_of_the_kernel),
        test("escape/masks_of_a_false_null", needs![root, systemd], files::masks_of_a_false_null),
        test("escape/false_terminal", needs![root, systemd], files::false_terminal),
        test("escape/false_proc", needs![root, systemd], files::false_proc),
        test("escape/moving_proc", needs![root, systemd], files::moving_proc),
        test("escape/exchanged_bind_target", needs![root, systemd], files::exchanged_bind_target),
        test("escape/device_nodes", needs![root, systemd], kernel::device_nodes),
        test("escape/block_device_of_the_host", needs![root, systemd], kernel::block_device_of_the_host),
        test("escape/typing_on_the_terminal", needs![root, systemd], processes::typing_on_the_terminal),
        test("escape/processes_outside", needs![root, systemd], processes::processes_outside),
        test("escape/abstract_sockets", needs![root, systemd], processes::abstract_sockets),
        test("escape/roots_of_others", needs![root, systemd], files::roots_of_others),
        test("escape/keyrings", needs![root, systemd], kernel::keyrings),
        test("escape/more_namespaces", needs![root, systemd], kernel::more_namespaces),
        test("escape/kernel_memory", needs![root, systemd], kernel::kernel_memory),
        test("escape/chroot", needs![root, systemd], files::chroot),
        test("escape/around_the_filter", needs![root, systemd], kernel::around_the_filter),
        test("escape/setuid_on_a_bind", needs![root, systemd], files::setuid_on_a_bind),
        test("escape/cgroups", needs![root, systemd], kernel::cgroups),
        test("escape/descriptors_of_the_stub", needs![root, systemd, disk], files::descriptors_of_the_stub),
        test("escape/symlink_bomb", needs![root, systemd], files::symlink_bomb),
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
