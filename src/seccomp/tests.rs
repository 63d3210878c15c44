use std::collections::BTreeMap;

use super::rule::{Condition, Test};
use super::*;

const ALL: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

fn capabilities(added: &[&str]) -> Capabilities {
    Capabilities::parse(&added.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &[], &[]).unwrap()
}

fn around(capabilities: &Capabilities) -> Circumstances<'_> {
    Circumstances { capabilities, shares_pids: false, nesting: false, kernel: (6, 12) }
}

fn number(arch: Arch, name: &str) -> u32 {
    arch.calls().into_iter().find(|(_, other)| *other == name).unwrap().0
}

/// What the default policy says to a call, as an error number; 0 is allowed.
fn default_says(arch: Arch, around: Circumstances<'_>, name: &str, arguments: [u64; 6]) -> u32 {
    let program = bpf::compile(&[default_table(arch, around)], DENIED);
    errno(bpf::run(&program, arch.audit(), number(arch, name), arguments))
}

fn errno(returned: u32) -> u32 {
    match returned & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => 0,
        libc::SECCOMP_RET_ERRNO => returned & libc::SECCOMP_RET_DATA,
        other => panic!("{other:#x}"),
    }
}

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;

#[test]
fn every_call_of_the_tables_has_one_place() {
    let gated = policy::WITH_CAPABILITY.iter().flat_map(|(_, names)| names.iter());
    let conditional = policy::denied_arguments().into_iter().chain(policy::allowed_arguments()).map(|(name, _)| name);
    let mut placed: Vec<&str> = [policy::ALLOWED, policy::DENIED, policy::GONE, policy::OTHER_PROCESSES]
        .into_iter()
        .flatten()
        .chain(gated)
        .copied()
        .chain(conditional)
        .chain(["clone3"])
        .collect();
    placed.sort_unstable();
    let once =
        placed.clone().windows(2).filter(|two| two[0] == two[1]).map(|two| two[0].to_owned()).collect::<Vec<_>>();
    assert!(once.is_empty(), "in two places: {once:?}");
    // The arm64 table has the numbers of 32-bit machines for 64-bit times, too, which no 64-bit kernel has.
    let tables = ALL.into_iter().flat_map(Arch::calls).map(|(_, name)| name);
    let tables: BTreeSet<&str> = tables.filter(|name| !name.ends_with("time64") && !name.ends_with("me64")).collect();
    let missing: Vec<_> = tables.iter().filter(|name| !placed.contains(name) && !name.ends_with("64")).collect();
    assert!(missing.is_empty(), "in no place: {missing:?}");
    let every = every_name();
    let wrong: Vec<_> = placed.iter().filter(|name| !every.contains(**name)).collect();
    assert!(wrong.is_empty(), "in no table: {wrong:?}");
}

#[rustfmt::skip]
const LEAD_OUT: &[&str] = &[
    "unshare", "setns", "mount", "umount2", "pivot_root", "fsopen", "fsmount", "fsconfig", "fspick", "move_mount",
    "open_tree", "open_tree_attr", "mount_setattr", "add_key", "keyctl", "request_key", "bpf", "perf_event_open",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "kexec_load", "kexec_file_load", "init_module",
    "finit_module", "delete_module", "open_by_handle_at", "syslog", "reboot", "swapon", "swapoff", "acct", "quotactl",
    "settimeofday", "clock_settime", "sethostname", "kcmp", "pidfd_getfd", "fanotify_init",
];

#[test]
fn the_default_denies_what_leads_out() {
    let none = capabilities(&[]);
    for arch in ALL {
        for name in LEAD_OUT {
            assert_eq!(default_says(arch, around(&none), name, [0; 6]), EPERM, "{name} on {arch:?}");
        }
        let allowed = [
            "read", "openat", "execve", "wait4", "futex", "ptrace", "chroot", "socket", "ioctl", "clone", "mknodat",
            "statx",
        ];
        for name in allowed {
            assert_eq!(default_says(arch, around(&none), name, [0; 6]), 0, "{name} on {arch:?}");
        }
        assert_eq!(default_says(arch, around(&none), "clone3", [0; 6]), ENOSYS);
        let program = bpf::compile(&[default_table(arch, around(&none))], DENIED);
        for unknown in [470, 500, 1000, 0x3fff_ffff] {
            assert_eq!(errno(bpf::run(&program, arch.audit(), unknown, [0; 6])), ENOSYS, "{unknown} on {arch:?}");
        }
    }
}

#[test]
fn other_ways_into_the_kernel_are_shut() {
    let none = capabilities(&[]);
    for arch in ALL {
        let program = bpf::compile(&[default_table(arch, around(&none))], DENIED);
        for other in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm].into_iter().filter(|other| *other != arch) {
            for call in 0..600 {
                assert_eq!(
                    errno(bpf::run(&program, other.audit(), call, [0; 6])),
                    EPERM,
                    "{call} of {other:?} on {arch:?}"
                );
            }
        }
    }
    let program = bpf::compile(&[default_table(Arch::X86_64, around(&none))], DENIED);
    for call in 0..600 {
        let number = call | 0x4000_0000;
        assert_eq!(errno(bpf::run(&program, Arch::X86_64.audit(), number, [0; 6])), EPERM, "x32 {call}");
    }
    assert_eq!(errno(bpf::run(&program, Arch::X86_64.audit(), u32::MAX, [0; 6])), EPERM);
}

#[test]
fn arguments_are_looked_at_as_the_kernel_does() {
    let none = capabilities(&[]);
    let high = 0xdead_beef_0000_0000;
    for arch in ALL {
        let says = |name: &str, arguments: [u64; 6]| default_says(arch, around(&none), name, arguments);
        for request in [0x5412, 0x541c, high | 0x5412, high | 0x541c] {
            assert_eq!(says("ioctl", [0, request, 0, 0, 0, 0]), EPERM, "{request:#x}");
        }
        assert_eq!(says("ioctl", [0x5412, 0x5413, 0x5412, 0, 0, 0]), 0);
        for (family, expected) in [(1, 0), (2, 0), (10, 0), (16, 0), (38, EPERM), (40, EPERM), (high | 40, EPERM)] {
            assert_eq!(says("socket", [family, 0, 0, 0, 0, 0]), expected, "family {family:#x}");
        }
        for flag in [
            libc::CLONE_NEWNS,
            libc::CLONE_NEWCGROUP,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWNET,
        ] {
            let flags = u64::from((flag | libc::SIGCHLD).cast_unsigned());
            assert_eq!(says("clone", [flags, 0, 0, 0, 0, 0]), EPERM, "{flag:#x}");
            assert_eq!(says("clone", [flags | high, 0, 0, 0, 0, 0]), EPERM, "{flag:#x}");
        }
        // As a C library starts a thread, and as it forks.
        assert_eq!(says("clone", [0x3d_0f00, 0, 0, 0, 0, 0]), 0);
        assert_eq!(says("clone", [0x0120_0011, 0, 0, 0, 0, 0]), 0);
        for (asked, expected) in
            [(0, 0), (8, 0), (0xffff_ffff, 0), (u64::MAX, 0), (0x4_0000, EPERM), (0x40_0000, EPERM)]
        {
            assert_eq!(says("personality", [asked, 0, 0, 0, 0, 0]), expected, "{asked:#x}");
        }
    }
}

#[test]
fn capabilities_open_what_they_are_for() {
    let rows: &[(&str, &[&str])] = &[
        ("SYS_ADMIN", &["mount", "unshare", "setns", "clone3", "bpf", "perf_event_open", "syslog", "pivot_root"]),
        ("SYS_PTRACE", &["kcmp", "pidfd_getfd"]),
        ("SYS_MODULE", &["finit_module"]),
        ("SYS_TIME", &["clock_settime", "settimeofday"]),
        ("BPF", &["bpf"]),
        ("PERFMON", &["perf_event_open"]),
        ("SYS_BOOT", &["reboot"]),
        ("DAC_READ_SEARCH", &["open_by_handle_at"]),
        ("SYS_NICE", &["mbind", "set_mempolicy"]),
        ("SYSLOG", &["syslog"]),
    ];
    for (capability, names) in rows {
        let given = capabilities(&[capability]);
        for name in *names {
            assert_eq!(default_says(Arch::X86_64, around(&given), name, [0; 6]), 0, "{name} with {capability}");
        }
        for name in ["keyctl", "kexec_load", "io_uring_setup", "userfaultfd", "swapon"] {
            assert_eq!(default_says(Arch::X86_64, around(&given), name, [0; 6]), EPERM, "{name} with {capability}");
        }
    }
    let admin = capabilities(&["SYS_ADMIN"]);
    let new_user = [u64::from(libc::CLONE_NEWUSER.cast_unsigned()), 0, 0, 0, 0, 0];
    assert_eq!(default_says(Arch::X86_64, around(&admin), "clone", new_user), 0);
    let dropped = Capabilities::parse(&[], &["SYS_CHROOT".to_owned()], &[]).unwrap();
    assert_eq!(default_says(Arch::X86_64, around(&dropped), "chroot", [0; 6]), EPERM);
}

#[test]
fn nesting_opens_namespaces_and_nothing_else() {
    let (none, dropped) = (capabilities(&[]), Capabilities::parse(&[], &["ALL".to_owned()], &[]).unwrap());
    let new_user = [u64::from(libc::CLONE_NEWUSER.cast_unsigned()), 0, 0, 0, 0, 0];
    for arch in ALL {
        for given in [&none, &dropped] {
            let nesting = Circumstances { nesting: true, ..around(given) };
            for name in policy::NESTING {
                assert_eq!(default_says(arch, nesting, name, new_user), 0, "{name} on {arch:?}");
                // Each is closed without it, or is for who was given a capability.
                let closed = default_says(arch, around(&dropped), name, new_user);
                assert!(matches!(closed, EPERM | ENOSYS), "{name} on {arch:?}");
            }
            for name in [
                "bpf",
                "fanotify_init",
                "init_module",
                "keyctl",
                "open_by_handle_at",
                "perf_event_open",
                "quotactl",
                "syslog",
            ] {
                assert_eq!(default_says(arch, nesting, name, [0; 6]), EPERM, "{name} on {arch:?}");
            }
        }
    }
}

#[test]
fn the_hosts_processes_are_not_traced() {
    for (added, expected) in [(&[][..], EPERM), (&["SYS_PTRACE"], 0)] {
        let given = capabilities(added);
        let shared = Circumstances { shares_pids: true, ..around(&given) };
        for name in ["ptrace", "process_vm_readv", "process_vm_writev"] {
            assert_eq!(default_says(Arch::X86_64, shared, name, [0; 6]), expected, "{name}");
        }
    }
}

/// Any set of verdicts: the program says for every number and arguments what the verdicts say.
#[test]
fn a_program_says_what_its_table_says() {
    let tests = |value: u64| {
        [
            Test::Equal(value),
            Test::NotEqual(value),
            Test::Less(value),
            Test::LessOrEqual(value),
            Test::Greater(value),
            Test::GreaterOrEqual(value),
            Test::MaskedEqual { mask: 0xff00_0000_ff00_0000, value: value & 0xff00_0000_ff00_0000 },
            Test::MaskedEqual { mask: 0xffff_ffff, value: value & 0xffff_ffff },
            Test::MaskedEqual { mask: 0, value: 0 },
        ]
    };
    let edges = [0, 1, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x8000_0000_0000_0000, u64::MAX];
    let mut calls = BTreeMap::new();
    for (at, test) in edges.into_iter().flat_map(tests).enumerate() {
        let one = Condition { argument: u8::try_from(at % 6).unwrap(), test };
        let two = Condition { argument: u8::try_from((at + 1) % 6).unwrap(), test: Test::NotEqual(7) };
        let rules = vec![Rule { conditions: vec![one, two], action: Action::error(9) }];
        calls.insert(u32::try_from(at).unwrap() * 3, Verdict { rules, otherwise: Action::ALLOW });
    }
    let table = Table { arch: Arch::X86_64, calls, otherwise: DENIED, last: 400, newer: UNKNOWN };
    let program = bpf::compile(std::slice::from_ref(&table), DENIED);
    for is in edges.into_iter().flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)]) {
        for number in 0..420 {
            let expected = match table.calls.get(&number) {
                None if number <= table.last => EPERM,
                None => ENOSYS,
                Some(verdict) => {
                    let rule = &verdict.rules[0];
                    if is != 7 && rule.conditions[0].test.holds(is) { 9 } else { 0 }
                }
            };
            let got = errno(bpf::run(&program, Arch::X86_64.audit(), number, [is; 6]));
            assert_eq!(got, expected, "{number} {is:#x} {:?}", table.calls.get(&number));
        }
    }
}

/// Decisions share returns, and where those are further away than a comparison can jump, each has one near it.
#[test]
fn returns_are_shared() {
    let action = |number: u32| Action::error(i32::try_from(1 + number % 7).unwrap());
    let calls: BTreeMap<_, _> = (0..1500).map(|number| (number, Verdict::always(action(number)))).collect();
    let table = Table { arch: Arch::X86_64, calls, otherwise: DENIED, last: 1500, newer: UNKNOWN };
    let program = bpf::compile(&[table], DENIED);
    for number in 0..1500 {
        let got = bpf::run(&program, Arch::X86_64.audit(), number, [0; 6]);
        assert_eq!(got, action(number).0, "{number}");
    }
    assert!(program.len() < 1700, "{} instructions for 1500 calls", program.len());
}

#[test]
fn the_default_program_is_short() {
    let none = capabilities(&[]);
    let mut warnings = Vec::new();
    let filter = Filter::plan(&Asked::Default, around(&none), &mut warnings).unwrap();
    assert!(filter.program.len() < 150, "{} instructions", filter.program.len());
    // No call takes more than a dozen instructions before it is decided by its number.
    assert!(warnings.is_empty());
}

fn profile_says(text: &str, arch: Arch, around: Circumstances<'_>, name: &str, arguments: [u64; 6]) -> u32 {
    let decided = Profile::parse(text).unwrap().decide(arch, around);
    let program = bpf::compile(&decided.tables, decided.foreign);
    errno(bpf::run(&program, arch.audit(), number(arch, name), arguments))
}

const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
    ],
    "syscalls": [
        {"names": ["read", "write", "mseal", "newfstatat", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": null},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
         "args": [{"index": 1, "value": 3, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 4, "op": "SCMP_CMP_EQ"}]},
        {"names": ["lseek"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["sync"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}}
    ]
}"#;

#[test]
fn dockers_format_is_read_with_what_it_depends_on() {
    let (none, admin) = (capabilities(&[]), capabilities(&["SYS_ADMIN"]));
    let plain = |name: &str, argument: u64| profile_says(PROFILE, Arch::X86_64, around(&none), name, [argument; 6]);
    assert_eq!(
        ["read", "write", "mseal", "newfstatat", "ptrace", "arch_prctl", "sync"].map(|name| plain(name, 1)),
        [0; 7]
    );
    assert_eq!(["open", "mount", "bpf", "kcmp"].map(|name| plain(name, 0)), [13; 4]);
    assert_eq!([0, 8, 9, 1 << 32].map(|value| plain("personality", value)), [0, 0, 13, 13]);
    assert_eq!([3, 4, 5].map(|value| plain("lseek", value)), [5, 5, 0]);
    assert_eq!(plain("clone3", 0), ENOSYS);
    let given = |name: &str| profile_says(PROFILE, Arch::X86_64, around(&admin), name, [0; 6]);
    assert_eq!((given("mount"), given("clone3")), (0, 0));
    let arm = |name: &str| profile_says(PROFILE, Arch::Aarch64, around(&none), name, [0; 6]);
    assert_eq!((arm("read"), arm("fstatat"), arm("sync")), (0, 0, 13));
    // Newer than all that it names.
    assert_eq!(plain("file_setattr", 0), ENOSYS);
}

#[test]
fn a_profile_covers_the_32_bit_calls_it_asks_for() {
    let none = capabilities(&[]);
    let run = |text: &str, arch: Arch, name: &str| {
        let decided = Profile::parse(text).unwrap().decide(Arch::X86_64, around(&none));
        bpf::run(&bpf::compile(&decided.tables, decided.foreign), arch.audit(), number(arch, name), [0; 6])
    };
    if Arch::NATIVE == Arch::X86_64 {
        assert_eq!(run(PROFILE, Arch::X86, "read"), libc::SECCOMP_RET_ALLOW);
        assert_eq!(errno(run(PROFILE, Arch::X86, "open")), 13);
    }
    let oci = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                  "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    assert_eq!(run(oci, Arch::X86, "read"), libc::SECCOMP_RET_KILL_PROCESS, "an architecture that it does not name");
    assert_eq!(run(oci, Arch::X86_64, "mkdir"), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(run(oci, Arch::X86_64, "file_setattr"), libc::SECCOMP_RET_ALLOW);
    let whole = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"seccomp": {oci}}}}}"#);
    assert_eq!(run(&whole, Arch::X86_64, "mkdir"), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn what_a_profile_gets_wrong_is_said() {
    let says = |text: &str| crate::error::line(&Profile::parse(text).unwrap_err());
    let one =
        |entry: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["read"], {entry}}}]}}"#);
    assert!(says("{").starts_with("no JSON: "));
    assert!(says("{}").contains("missing field `defaultAction`"));
    assert!(
        says(r#"{"defaultAction": "ALLOW"}"#).starts_with("defaultAction: action ALLOW: accepted is SCMP_ACT_ALLOW")
    );
    assert_eq!(
        says(&one(r#""action": "SCMP_ACT_NOTIFY""#)),
        "syscalls[0]: SCMP_ACT_NOTIFY: nothing here answers such calls"
    );
    assert!(says(&one(r#""action": "SCMP_ACT_ERRNO", "errno": "EWHAT""#)).contains("errno EWHAT"));
    assert!(says(&one(r#""action": "SCMP_ACT_ERRNO", "incldues": {}"#)).contains("unknown field `incldues`"));
    let argument = |text: &str| one(&format!(r#""action": "SCMP_ACT_ERRNO", "args": [{text}]"#));
    assert!(says(&argument(r#"{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}"#)).contains("args index 6"));
    assert!(says(&argument(r#"{"index": 0, "value": 0, "op": "=="}"#)).contains("args op =="));
    assert!(says(&one(r#""action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}"#)).contains("minKernel new"));
    // A name that nothing has is said where it would have denied something.
    let typo = |default: &str, action: &str| {
        let text =
            format!(r#"{{"defaultAction": "{default}", "syscalls": [{{"name": "ptraec", "action": "{action}"}}]}}"#);
        Profile::parse(&text).unwrap().decide(Arch::X86_64, around(&capabilities(&[]))).unknown
    };
    assert_eq!(typo("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"), ["ptraec"]);
    assert!(typo("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW").is_empty());
}

#[test]
fn what_is_handed_over() {
    let run = |calls: &[libc::c_long], arch: Arch, call: libc::c_long| {
        let call = u32::try_from(call).unwrap();
        bpf::run(&handing_over(calls), arch.audit(), call, [0; 6]) == libc::SECCOMP_RET_USER_NOTIF
    };
    let (one, both) = ([libc::SYS_sysinfo], [libc::SYS_sysinfo, libc::SYS_sched_getaffinity]);
    assert!(run(&one, Arch::NATIVE, libc::SYS_sysinfo) && run(&both, Arch::NATIVE, libc::SYS_sysinfo));
    assert!(run(&both, Arch::NATIVE, libc::SYS_sched_getaffinity));
    assert!(!run(&one, Arch::NATIVE, libc::SYS_sched_getaffinity));
    assert!(
        !run(&both, Arch::NATIVE, libc::SYS_read) && !run(&both, Arch::X86, libc::SYS_sysinfo),
        "other calls and architectures pass"
    );
}

#[test]
fn our_own_policy_hands_over_by_the_same_filter() {
    let calls = [libc::SYS_sysinfo, libc::SYS_sched_getaffinity];
    let plan = |asked: &Asked| Filter::plan(asked, around(&capabilities(&[])), &mut Vec::new()).unwrap();
    let own = plan(&Asked::Default);
    let joined = own.handing_over(&calls).unwrap();
    for call in 0..600 {
        for arch in [Arch::X86_64, Arch::X86] {
            let [alone, with] = [&own.program, &joined].map(|program| bpf::run(program, arch.audit(), call, [0; 6]));
            if arch == Arch::NATIVE && calls.contains(&libc::c_long::from(call)) {
                assert_eq!((alone, with), (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF), "{call}");
            } else {
                assert_eq!(alone, with, "{call}");
            }
        }
    }
    // What the payload's process does with it loaded, up to its end or execve's.
    let calls_then = [libc::SYS_sendmsg, libc::SYS_close, libc::SYS_rt_sigprocmask, libc::SYS_execve, libc::SYS_write];
    for call in calls_then.into_iter().chain([libc::SYS_exit_group]) {
        let verdict = bpf::run(&joined, Arch::NATIVE.audit(), u32::try_from(call).unwrap(), [0; 6]);
        assert_eq!(verdict, libc::SECCOMP_RET_ALLOW, "{call}");
    }
    let profile = Profile::parse(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let (profile, none) = (plan(&Asked::Profile("./default".into(), Box::new(profile))), plan(&Asked::Unconfined));
    assert!(profile.handing_over(&calls).is_none() && none.handing_over(&calls).is_none());
    let signals = [&own, &none, &profile].map(Filter::lets_signals_be_unblocked);
    assert_eq!(signals, [true, true, false]);
}

#[test]
fn the_compiled_program_is_the_policys() {
    let usual = capabilities(&[]);
    assert!(around(&usual).are_usual());
    let program = bpf::compile(&[default_table(Arch::X86_64, around(&usual))], DENIED);
    let program: Vec<u64> = program.into_iter().map(Into::into).collect();
    let lines: Vec<String> = program
        .chunks(6)
        .map(|six| six.iter().map(|one| format!(" {one:#018x},")).collect::<String>())
        .map(|line| format!("   {line}\n"))
        .collect();
    assert!(compiled::USUAL == program, "compiled.rs has to be:\n{}", lines.concat());
    // Whatever the policy looks at makes them other ones.
    let gated = policy::WITH_CAPABILITY.iter().flat_map(|(names, _)| *names).chain(&["SYS_PTRACE"]);
    for name in gated.filter(|name| !usual.keeps(name)) {
        let more = capabilities(&[*name]);
        let differs = bpf::compile(&[default_table(Arch::X86_64, around(&more))], DENIED)
            != compiled::USUAL.iter().copied().map(Into::into).collect::<Vec<_>>();
        assert!(!differs || !around(&more).are_usual(), "{name}");
    }
    let without = Capabilities::parse(&[], &["ALL".into()], &[]).unwrap();
    let base = around(&usual);
    for other in
        [Circumstances { nesting: true, ..base }, Circumstances { shares_pids: true, ..base }, around(&without)]
    {
        assert!(!other.are_usual());
    }
}
