use super::super::Report;
use super::super::distribution::Distribution;
use super::super::facts::{Calls, Cgroups, Modules, Person, Switches, Trials};
use super::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn failure(message: &str) -> Failure {
    Failure { status: 125, message: message.to_owned(), hint: String::new() }
}

/// Root on a Debian machine where nothing is amiss.
fn good() -> Facts {
    Facts {
        uid: 0,
        person: Person::default(),
        kernel: (6, 12),
        distribution: Distribution::Debian,
        booted: true,
        system_bus: Ok("257.9-1~deb13u1".into()),
        private_socket: Some(Ok("257.9-1~deb13u1".into())),
        user_manager: None,
        cgroups: Cgroups {
            mode: Some(CgroupMode::Unified),
            controllers: texts(&["cpuset", "cpu", "io", "memory", "hugetlb", "pids"]),
            user_controllers: None,
            favordynmods: true,
        },
        switches: Switches { max_user_namespaces: Some(62_000), ..Switches::default() },
        namespaces: texts(NAMESPACES),
        trials: Trials {
            user_namespace: Ok(()),
            proc: Ok(()),
            sysfs: Ok(()),
            time: Ok(()),
            root: Ok(2),
            owners: Owners::Range,
        },
        covered: Vec::new(),
        calls: Calls { seccomp_notify: true, openat2: true, fuse: None, pasta: Some("/usr/bin/pasta".into()) },
        modules: Modules { apparmor: true, selinux: None },
    }
}

/// A plain user of that machine.
fn plain() -> Facts {
    let good = good();
    Facts {
        uid: 1000,
        person: Person { uid: 1000, name: "me".into(), subordinate_ids: true, map_tools: true, manager_runs: true },
        private_socket: None,
        user_manager: Some(Ok("257.9-1~deb13u1".into())),
        cgroups: Cgroups { user_controllers: Some(texts(CONTROLLERS)), ..good.cgroups.clone() },
        trials: Trials { owners: Owners::Maps(2), ..good.trials.clone() },
        ..good
    }
}

fn check(facts: &Facts, name: &str) -> Check {
    let found = checks(facts).into_iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn on_a_good_machine_everything_is_found_and_nothing_is_to_do() {
    for facts in [good(), plain()] {
        for check in checks(&facts) {
            assert_eq!(check.state, Found, "{check:?}");
            assert_eq!((&check.advice, &check.command), (&None, &None), "{check:?}");
        }
        assert!(Report::new(&facts).ok);
    }
}

#[test]
fn without_systemd_it_says_what_is_left() {
    let no_socket = "/run/dbus/system_bus_socket: No such file or directory";
    let facts = Facts {
        booted: false,
        system_bus: Err(no_socket.into()),
        private_socket: Some(Err("/run/systemd/private: No such file or directory".into())),
        ..good()
    };
    let systemd = check(&facts, "systemd");
    assert_eq!((systemd.state, systemd.needed), (Missing, true));
    assert!(systemd.advice.unwrap().contains("--manager none"));
    // One cause, one row that counts; and nothing that would start a bus for a systemd that is not there.
    let bus = check(&facts, "system bus");
    assert_eq!((bus.state, bus.needed, bus.command), (Missing, false, None));
    assert!(!Report::new(&facts).ok);
}

#[test]
fn a_dead_bus_is_enough_for_root_as_long_as_the_private_socket_answers() {
    let mut facts = Facts { system_bus: Err("no answer within 3 s".into()), ..good() };
    let bus = check(&facts, "system bus");
    assert_eq!(bus.state, Limited);
    assert_eq!(bus.command.as_deref(), Some("apt install dbus && systemctl start dbus.socket"));
    assert_eq!(check(&facts, "systemd").found, "systemd 257.9-1~deb13u1");
    assert!(Report::new(&facts).ok);
    facts.private_socket = Some(Err("Connection refused".into()));
    assert!(!Report::new(&facts).ok);
}

#[test]
fn a_plain_user_needs_a_manager_of_their_own_and_sudo_for_what_mends_it() {
    let facts = Facts { user_manager: Some(Err("/run/user/1000/bus: No such file or directory".into())), ..plain() };
    let manager = check(&facts, "user manager");
    assert_eq!((manager.state, manager.needed), (Missing, true));
    assert_eq!(manager.command.as_deref(), Some("sudo loginctl enable-linger me"));
}

#[test]
fn controllers_that_a_user_was_not_given_are_named_with_the_drop_in_that_gives_them() {
    let mut facts = plain();
    facts.cgroups.user_controllers = Some(texts(&["cpu", "memory", "pids"]));
    let row = check(&facts, "user controllers");
    assert_eq!(row.state, Limited);
    assert!(row.advice.unwrap().contains("cpuset, io"));
    let command = row.command.unwrap();
    assert!(command.contains("| sudo install -D -m 644 /dev/stdin /etc/systemd/system/user@.service.d/"), "{command}");
    assert!(command.ends_with("&& sudo systemctl daemon-reload"), "{command}");
    assert!(Report::new(&facts).ok);
}

#[test]
fn the_switch_that_is_closed_is_the_one_that_is_named() {
    let table = [
        (Some(0), None, None, Some("user.max_user_namespaces=65536")),
        (Some(9), Some(0), None, Some("kernel.unprivileged_userns_clone=1")),
        (Some(9), Some(1), Some(1), Some("kernel.apparmor_restrict_unprivileged_userns=0")),
        (Some(9), Some(1), Some(0), None),
        (None, None, None, None),
    ];
    for (max_user_namespaces, clone, apparmor, want) in table {
        let mut facts = good();
        facts.switches = Switches {
            unprivileged_userns_clone: clone,
            apparmor_restrict_unprivileged_userns: apparmor,
            max_user_namespaces,
        };
        let row = check(&facts, "user namespaces of plain users");
        let command = row.command.unwrap_or_default();
        assert_eq!(want.is_none(), row.state == Found, "{want:?}");
        assert!(command.ends_with(want.unwrap_or_default()), "{command}");
    }
}

#[test]
fn without_user_namespaces_the_rest_is_not_blamed() {
    for mut facts in [plain(), good()] {
        let denied = failure("make namespaces: Operation not permitted");
        let trials = &mut facts.trials;
        for trial in [&mut trials.user_namespace, &mut trials.proc, &mut trials.sysfs, &mut trials.time] {
            *trial = Err(denied.clone());
        }
        trials.root = Err(denied);
        facts.switches.max_user_namespaces = Some(0);
        let checks = Report::new(&facts).checks;
        let blamed = checks.iter().filter(|check| check.needed && check.state == Missing);
        assert_eq!(blamed.map(|check| check.name).collect::<Vec<_>>(), ["user namespaces"]);
        let command = check(&facts, "user namespaces").command.unwrap();
        assert!(command.ends_with("sysctl -w user.max_user_namespaces=65536"), "{command}");
    }
}

#[test]
fn in_a_container_what_covers_proc_is_named() {
    let mut facts = good();
    facts.trials.proc = Err(failure("Operation not permitted"));
    facts.covered = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(Into::into).to_vec();
    let row = check(&facts, "new /proc");
    assert_eq!((row.state, row.needed), (Missing, true));
    assert_eq!(row.found, "Operation not permitted: mounted over it are /proc/kcore /proc/keys");
    assert_eq!(check(&facts, "new /sys").state, Found);
}

#[test]
fn cgroup_versions_and_fallbacks_are_limits_not_failures() {
    let mut facts = good();
    facts.cgroups.mode = Some(CgroupMode::Hybrid);
    facts.trials.owners = Owners::Identity("the owners of files on / (overlay) cannot be mapped".into());
    facts.calls.openat2 = false;
    for name in ["cgroup version", "idmapped mounts", "openat2"] {
        assert_eq!(check(&facts, name).state, Limited, "{name}");
    }
    assert!(Report::new(&facts).ok);
    let advice = |facts: &Facts| check(facts, "idmapped mounts").advice.unwrap();
    assert!(advice(&facts).contains("--rootfs"));
    facts.kernel = (5, 10);
    assert!(!advice(&facts).contains("--rootfs"), "no file system helps there");
    facts.cgroups.mode = None;
    assert!(!Report::new(&facts).ok);
}

#[test]
fn a_faster_start_is_offered_where_the_kernel_has_it_and_is_never_needed() {
    let mut facts = good();
    facts.cgroups.favordynmods = false;
    let row = check(&facts, "favordynmods");
    assert_eq!((row.state, row.needed), (Missing, false));
    assert!(row.command.unwrap().starts_with("mount -o remount,favordynmods "));
    facts.kernel = (5, 10);
    assert!(checks(&facts).iter().all(|check| check.name != "favordynmods"));
}

#[test]
fn what_a_sandbox_does_without_is_never_needed() {
    let mut facts = good();
    facts.calls = Calls { openat2: true, fuse: Some("not there".into()), ..Calls::default() };
    for (name, advice) in [
        ("seccomp notification", "sysinfo(2) inside tells the machine's memory and uptime"),
        ("FUSE", "/proc inside tells the machine's memory and CPUs"),
        ("pasta", "no --network pasta, and with it no published ports"),
    ] {
        let row = check(&facts, name);
        assert_eq!((row.state, row.needed), (Missing, false), "{name}");
        assert_eq!(row.advice.as_deref(), Some(advice));
    }
    assert_eq!(check(&facts, "FUSE").command.as_deref(), Some("modprobe fuse"));
    assert!(Report::new(&facts).ok);
}

#[test]
fn subordinate_ids_take_a_program_and_a_range() {
    let mut facts = plain();
    facts.trials.owners = Owners::Maps(1);
    facts.person.subordinate_ids = false;
    let command = check(&facts, "subordinate IDs").command.unwrap();
    assert!(command.starts_with("sudo usermod --add-subuids ") && command.ends_with(" me"));
    facts.person.map_tools = false;
    assert_eq!(check(&facts, "subordinate IDs").command.as_deref(), Some("sudo apt install uidmap"));
    assert_eq!(check(&facts, "IDs inside").state, Limited);
}

#[test]
fn the_json_shape_is_the_documented_one() {
    let value = serde_json::to_value(Report::new(&good())).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&value), ["checks", "ok", "uid", "version"]);
    assert_eq!(keys(&value["checks"][0]), ["advice", "command", "found", "name", "needed", "state"]);
    assert_eq!(value["checks"][0]["state"], "found");
}

#[test]
fn a_security_module_is_named_where_one_is_in_force_and_none_is_needed() {
    let with = |apparmor, selinux| Facts { modules: Modules { apparmor, selinux }, ..good() };
    assert!(check(&with(true, None), "AppArmor").found.contains("--apparmor"));
    assert_eq!(check(&with(false, Some(true)), "SELinux").state, Found);
    let permissive = check(&with(false, Some(false)), "SELinux");
    assert_eq!((permissive.state, permissive.command.as_deref()), (Limited, Some("setenforce 1")));
    let none = check(&with(false, None), "security modules");
    assert_eq!((none.state, none.needed), (Missing, false));
    assert!(Report::new(&with(false, None)).ok);
}
