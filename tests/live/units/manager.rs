//! Who makes the unit: not this systemd, where it runs another machine or the caller may not ask it.

use crate::bed::Bed;
use crate::unit;
use std::fs;

/// As in a container: systemd is installed, and its bus may even be there, but sd_booted(3) says no.
const NO_SYSTEMD: &str = "mount -t tmpfs none /run/systemd";

/// Said, and started as a child of the launcher in the launcher's own unit.
pub(super) fn without_systemd(bed: &Bed) {
    for manager in [&[][..], &["--manager", "auto"]] {
        let run = bed.sandbox(["run", "--userns", "identity"]).args(manager).args(["sh", "-c", "echo ready; exec cat"]);
        let mut running = run.with_mounts(NO_SYSTEMD).spawn();
        running.wait_for("ready");
        let inside = unit::only_child(bed, running.pid());
        assert_eq!(unit::cgroup_of(inside, ""), unit::cgroup_of(std::process::id(), ""), "a unit of its own");
        let outcome = running.finish().succeeded();
        let errors = outcome.errors();
        let expected = "sandbox: warning: no unit and no limits: systemd is not running this machine";
        assert!(errors.starts_with(expected) && errors.lines().count() == 1, "{errors}");
    }
    let quiet = bed.run(["--manager", "none"], "echo works").with_mounts(NO_SYSTEMD).output().succeeded();
    assert_eq!((quiet.text().as_str(), quiet.errors().as_str()), ("works", ""));
}

/// Whoever asked for what only a unit can give does not get less.
pub(super) fn without_systemd_refused(bed: &Bed) {
    let unit = bed.unit();
    for (flags, word) in [
        (&["-m", "64M"][..], "--memory 64M"),
        (&["-p", "TasksMax=50"], "TasksMax=50"),
        (&["--unit", &unit], "--unit"),
        (&["--slice", &bed.slice()], "--slice"),
        (&["--manager", "systemd"], "--manager systemd"),
    ] {
        let outcome = bed.run(flags, "echo never").with_mounts(NO_SYSTEMD).output();
        let outcome = outcome.refused(125, [word, "systemd is not running this machine"]);
        assert!(outcome.hint().contains("boot with systemd"), "{}", outcome.hint());
    }
}

/// Without a unit nobody would be there to run it once the launcher is gone.
pub(super) fn without_systemd_detached(bed: &Bed) {
    let outcome = bed.run(["--detach"], "echo never").with_mounts(NO_SYSTEMD).output();
    outcome.refused(125, ["--detach", "systemd is not running this machine"]);
}

/// Where the numbers of processes are not systemd's, the one that is named to it must not be somebody else's.
pub(super) fn from_another_pid_namespace(bed: &Bed) {
    let bystander = bed.sh("exec sleep 1000").spawn();
    let cgroup = || fs::read_to_string(format!("/proc/{}/cgroup", bystander.pid())).unwrap();
    let before = cgroup();
    // One of these gives the sandbox the number that the bystander has outside.
    let script = "for i in $(seq 8); do echo $(($0 - i)) > /proc/sys/kernel/ns_last_pid; \"$@\" || echo $?; done";
    let run = bed.run(["--slice", &bed.slice(), "--userns", "identity"], "true");
    let namespace = ["--pid", "--fork", "--mount-proc", "sh", "-e", "-c", script, &bystander.pid().to_string()];
    let outcome = bed.command("unshare", namespace).args(run.words()).output().succeeded();
    assert_eq!(cgroup(), before, "a process of the machine's was moved: {}", outcome.errors());
    // A descriptor, which systemd takes since 255, is right in every namespace.
    let (statuses, refusals) =
        if bed.facts.systemd.is_some_and(|version| version >= 255) { ("", 0) } else { ("125\n", 8) };
    assert_eq!(outcome.text(), statuses.repeat(8).trim_end(), "{}", outcome.errors());
    assert_eq!(
        outcome.errors().matches("systemd is in another PID namespace").count(),
        refusals,
        "{}",
        outcome.errors()
    );
}

/// The system's manager does not start a scope for everybody, and the error says what does.
pub(super) fn system_as_a_user(bed: &Bed) {
    let unit = bed.unit();
    let outcome = bed.run(["--system", "--unit", &unit], "echo never").user().dir("/").output();
    let outcome = outcome.refused(125, [&unit]);
    let hint = outcome.hint();
    assert!(hint.contains("sudo") && hint.contains("--user"), "{hint}");
    assert_eq!(unit::property(&format!("{unit}.scope"), "LoadState"), "not-found");
}
