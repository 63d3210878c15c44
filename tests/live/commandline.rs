//! The command line: help, dry runs, and messages that name what is wrong.

use crate::bed::{Bed, sandbox_binary};
use crate::facts::need;
use crate::{Test, test, unit};
use std::fs;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("commandline/help", needs![], help),
        test("commandline/dry_run_starts_nothing", needs![root, systemd, disk], dry_run_starts_nothing),
        test("commandline/dry_run_translation", needs![root, systemd], dry_run_translation),
        test("commandline/dry_run_json", needs![root, systemd], dry_run_json),
        test("commandline/dry_run_as_user", needs![systemd, user_manager], dry_run_as_user),
        test("commandline/unknown_flags", needs![], unknown_flags),
        test("commandline/switches", needs![root, systemd], switches),
        test("commandline/quiet", needs![root, systemd], quiet),
        test("commandline/timings", needs![root, systemd], timings),
        test("commandline/manager_none", needs![root], manager_none),
        test("commandline/manager_auto", needs![root, systemd], manager_auto),
        test("commandline/doctor", needs![], doctor),
        test("commandline/no_memory", needs![root], no_memory),
    ]
}

fn help(bed: &Bed) {
    let text = bed.sandbox(["--help"]).output().succeeded().text();
    assert!(text.contains("Usage: sandbox") && text.contains("sandbox run --slice=test"), "{text}");
    let text = bed.sandbox(["run", "--help"]).output().succeeded().text();
    for flag in [
        "--unit",
        "--slice",
        "--property",
        "--memory",
        "--bind",
        "--tmpfs",
        "--share",
        "--network",
        "--pty",
        "--dry-run",
        "--as-pid1",
    ] {
        assert!(text.contains(flag), "{flag} is not in the help");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "a line is too long for a terminal");
    assert!(bed.sandbox(["--version"]).output().succeeded().text().starts_with("sandbox "));
    let outcome = bed.sandbox([""; 0]).output();
    assert!(
        outcome.status == 125 && (outcome.errors() + &outcome.text()).contains("Usage:"),
        "{} {}",
        outcome.status,
        outcome.errors()
    );
}

fn dry_run_starts_nothing(bed: &Bed) {
    let unit = bed.unit();
    let upper = bed.disk_dir().join("upper");
    let flags = [
        "run",
        "--dry-run",
        "--unit",
        &unit,
        "-p",
        "MemoryMax=64M",
        "--upper",
        upper.to_str().unwrap(),
        "touch",
        "/srv/started",
    ];
    let text = bed.sandbox(flags).output().succeeded().text();
    for expected in [&format!("{unit}.scope"), "sandbox.slice", "MemoryMax", "touch /srv/started", "overlay"] {
        assert!(text.contains(expected), "'{expected}' is not in\n{text}");
    }
    assert_eq!(unit::property(&format!("{unit}.scope"), "LoadState"), "not-found");
    assert!(!upper.exists() && !std::path::Path::new("/srv/started").exists());
}

fn dry_run_translation(bed: &Bed) {
    let text =
        bed.sandbox(["run", "--dry-run", "-p", "CPUShares=600", "--cpus", "1.5", "true"]).output().succeeded().text();
    assert!(
        text.contains("CPUQuotaPerSecUSec=1.5s") || text.contains("CPUQuota=150%") || text.contains("1500000"),
        "{text}"
    );
    if bed.facts.cgroup2 {
        assert!(text.contains("CPUShares=600 is sent as CPUWeight=58"), "{text}");
    } else {
        let text = bed.sandbox(["run", "--dry-run", "-p", "CPUWeight=58", "true"]).output().succeeded().text();
        assert!(text.contains("CPUWeight=58 is sent as CPUShares=593"), "{text}");
    }
    // What would be refused is refused here.
    bed.sandbox(["run", "--dry-run", "--bind", "/no/such", "true"]).output().refused(125, ["/no/such"]);
    bed.sandbox(["run", "--dry-run", "-p", "CPUQuota=x", "true"]).output().refused(125, ["CPUQuota=x"]);
}

fn dry_run_json(bed: &Bed) {
    let odd = "a \"quoted\"\n\u{fc} \\ word";
    let json = bed
        .sandbox(["run", "--dry-run", "--json", "--name", "web", "-p", "MemoryMax=64M", "-E", "X=\u{1}", "echo", odd])
        .output()
        .succeeded();
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&plan["name"], &plan["unit"]["slice"]), (&"web".into(), &"sandbox.slice".into()));
    assert_eq!(plan["process"]["command"], serde_json::json!(["echo", odd]));
    assert_eq!(
        (&plan["process"]["environment"]["container"], &plan["process"]["environment"]["X"]),
        (&"sandbox".into(), &"\u{1}".into())
    );
    bed.sandbox(["run", "--json", "true"]).output().refused(125, ["--dry-run"]);
}

fn dry_run_as_user(bed: &Bed) {
    let outcome = bed.sandbox(["run", "--dry-run", "true"]).user().dir("/").output();
    if bed.facts.kernel < (5, 11) {
        outcome.refused(125, ["overlay root"]);
        return;
    }
    let text = outcome.succeeded().text();
    assert!(text.contains("user manager"), "{text}");
}

fn unknown_flags(bed: &Bed) {
    let outcome = bed.sandbox(["run", "--memoryy", "1G", "true"]).output().refused(125, ["--memoryy"]);
    assert!(outcome.hint().contains("--memory"), "{}", outcome.hint());
    bed.sandbox(["run", "--network", "bridge", "true"]).output().refused(125, ["bridge", "none, host"]);
    bed.sandbox(["run", "--share", "disk", "true"]).output().refused(125, ["disk", "pid"]);
    bed.sandbox(["run", "--userns", "keep", "true"]).output().refused(125, ["keep", "identity"]);
    bed.sandbox(["run", "--unit"]).output().refused(125, ["--unit"]);
    bed.sandbox(["rum", "true"]).output().refused(125, ["rum"]);
    bed.sandbox(["run", "--user=perhaps", "true"]).output().refused(125, ["perhaps"]);
}

fn switches(bed: &Bed) {
    // The last of two that contradict each other counts, as in every program with such switches.
    assert_eq!(bed.run(["--as-pid1", "--init"], "echo $$").output().succeeded().text(), "2");
    assert_eq!(bed.run(["--init", "--as-pid1"], "echo $$").output().succeeded().text(), "1");
    assert_eq!(bed.run(["--as-pid1=false"], "echo $$").output().succeeded().text(), "2");
    bed.run(["--user", "--system"], "true").output().succeeded();
    bed.run(["-t", "-P"], "! test -t 1").output().succeeded();
    bed.run(["--read-only=false"], "touch /x").output().succeeded();
}

fn quiet(bed: &Bed) {
    let loud = bed.sandbox(["run", "true"]).output().succeeded().errors();
    assert!(loud.is_empty() || loud.starts_with("sandbox: warning: "), "{loud}");
    assert_eq!(bed.sandbox(["run", "--quiet", "true"]).output().succeeded().errors(), "");
    bed.sandbox(["run", "--quiet", "/no/such"]).output().refused(127, ["/no/such"]);
}

fn timings(bed: &Bed) {
    let outcome = bed.sandbox(["run", "-q", "--timings", "echo", "out"]).output().succeeded();
    assert_eq!(outcome.text(), "out");
    assert!(outcome.errors().contains("payload executed") && outcome.errors().contains("ms"), "{}", outcome.errors());
}

fn manager_none(bed: &Bed) {
    let outcome = bed.run(["--manager", "none"], "cat /proc/self/cgroup; echo $$; hostname; exit 5").output().exited(5);
    assert!(outcome.text().ends_with("2\nsh"), "{}", outcome.text());
    let place = fs::read_to_string("/proc/self/cgroup").unwrap();
    let running = &mut bed.run(["--manager=none"], "echo ready; exec cat").spawn();
    running.wait_for("ready");
    let inside = unit::only_child(bed, running.pid());
    assert_eq!(fs::read_to_string(format!("/proc/{inside}/cgroup")).unwrap(), place, "it stays in the caller's cgroup");
    for flags in [["-p", "MemoryMax=1G"], ["--memory", "1G"], ["--unit", "x"], ["--slice", "x"], ["--pids-limit", "5"]]
    {
        bed.run(["--manager", "none"].iter().chain(&flags), "true").output().refused(125, ["--manager none"]);
    }
}

fn manager_auto(bed: &Bed) {
    let (running, scope) = bed.live(["--manager", "systemd"], "echo ready; exec cat");
    assert!(unit::is_active(&scope));
    running.finish().succeeded();
    bed.run(["--manager", "docker"], "true").output().refused(125, ["docker", "systemd"]);
}

fn doctor(bed: &Bed) {
    let outcome = bed.sandbox(["doctor"]).output();
    assert!([0, 1].contains(&outcome.status), "{} {}", outcome.status, outcome.errors());
    let json = bed.sandbox(["doctor", "--json"]).output();
    assert_eq!(json.status, outcome.status);
    let found: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let checks = found["checks"].as_array().expect("a list");
    let state = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no {name} in {}", json.text()))["state"].as_str().unwrap().to_owned()
    };
    for name in
        ["systemd", "controllers", "user namespaces", "time namespaces", "overlay features", "seccomp notification"]
    {
        assert_ne!(state(name), "missing", "{name}");
    }
    let has = |need| bed.facts.has(&need).is_ok();
    assert_eq!(state("idmapped mounts") == "found", has(need::idmap()), "{}", json.text());
    assert_eq!(state("FUSE") == "found", has(need::fuse()), "{}", json.text());
    assert_eq!(state("cgroup version") == "found", has(need::cgroup2()), "{}", json.text());
    if let Some(version) = bed.facts.systemd {
        assert!(outcome.text().contains(&version.to_string()), "systemd {version} is not in\n{}", outcome.text());
    }
}

/// Under each limit that is too small for it, the program says what it could not have, in one line.
fn no_memory(bed: &Bed) {
    let profile = bed.dir().join("long.toml");
    fs::write(&profile, "# of much text\n".repeat(25_000)).unwrap();
    let run = |kibibytes: usize| {
        let limit = format!("ulimit -v {kibibytes}; exec \"$0\" \"$@\"");
        let program = sandbox_binary();
        let words = ["run", "--manager=none", "--dry-run", "--profile", profile.to_str().unwrap(), "true"];
        bed.sh(&limit).arg(program).args(words).env_remove("RUST_BACKTRACE").output()
    };
    let enough = (12..24).map(|power| 1 << power).find(|limit| run(*limit).status == 0).expect("an end of its hunger");
    let step = enough / 64;
    let failed: Vec<String> = (step..enough)
        .step_by(step)
        .map(run)
        // Below what the first step takes the kernel kills it, or libc ends it in its own words.
        .skip_while(|outcome| !outcome.errors().starts_with("sandbox: "))
        .filter(|outcome| outcome.status != 0)
        .inspect(|outcome| assert_eq!(outcome.status, 125, "{}", outcome.errors()))
        .map(|outcome| outcome.errors())
        .collect();
    let size = |line: &String| {
        let why = line.strip_prefix("sandbox: allocate ")?.split_once(" bytes: ")?;
        (why.1 == "Out of memory" || why.1 == "Cannot allocate memory").then(|| why.0.parse::<usize>().ok())?
    };
    let sizes: Vec<usize> = failed.iter().map(|line| size(line).unwrap_or_else(|| panic!("{line}"))).collect();
    assert!(sizes.iter().any(|size| *size >= 128 << 10), "{failed:?}");
}
