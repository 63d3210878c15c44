//! Limits: each property on each cgroup version, as the kernel has it before the payload runs, and refused where it cannot be.

use crate::bed::Bed;
use crate::{Test, test, unit};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("limits/v1", needs![root, systemd, cgroup1], v1),
        test("limits/v1_devices", needs![root, systemd, cgroup1], v1_devices),
        test("limits/v1_refused", needs![root, systemd, cgroup1], v1_refused),
        test("limits/v1_user", needs![root, systemd, cgroup1, user_manager], v1_user),
        test("limits/v2", needs![root, systemd, cgroup2], v2),
        test("limits/v2_swap", needs![root, systemd, cgroup2], v2_swap),
        test("limits/v2_idle", needs![root, systemd, cgroup2, systemd_min(252), kernel_min(5, 15)], v2_idle),
        test("limits/v2_disk", needs![root, systemd, cgroup2], v2_disk),
        test("limits/v2_seen_inside", needs![root, systemd, cgroup2], v2_seen_inside),
        test("limits/quota_of_half_a_percent", needs![root, systemd], quota_of_half_a_percent),
        test("limits/flags", needs![root, systemd], flags),
        test("limits/share_of_the_machine", needs![root, systemd], share_of_the_machine),
        test("limits/several_at_once", needs![root, systemd], several_at_once),
        test("limits/oom_policy", needs![root, systemd, systemd_min(253)], oom_policy),
        test("limits/oom_policy_of_old", needs![root, systemd, cgroup2, systemd_max(251)], oom_policy_of_old),
        test("limits/asked_twice", needs![root, systemd], asked_twice),
        test("limits/bad_values", needs![root, systemd], bad_values),
        test("limits/unknown_property", needs![root, systemd], unknown_property),
        test("limits/drop_in_looser", needs![root, systemd], drop_in_looser),
        test("limits/drop_in_tighter", needs![root, systemd], drop_in_tighter),
        test("limits/slice_tighter", needs![root, systemd], slice_tighter),
        test("limits/nothing_runs_without", needs![root, systemd], nothing_runs_without),
    ]
}

/// Flags, and what files of which controllers hold then.
type Row<'a> = (&'a [&'a str], &'a [(&'a str, &'a str, &'a str)]);

/// Starts with the flags of each row; a file that holds something else is a failure, so is one that is not there.
#[track_caller]
fn in_force(bed: &Bed, rows: &[Row<'_>]) {
    for row in rows {
        assert_eq!(said_by(bed, row), "", "{:?} needs no warning", row.0);
    }
}

/// The same for one row; what the start said.
#[track_caller]
fn said_by(bed: &Bed, (flags, files): &Row<'_>) -> String {
    let (running, scope) = bed.live_loud(*flags, "echo ready; exec cat");
    for (controller, file, expected) in *files {
        let found = unit::cgroup_file(&scope, controller, file);
        assert_eq!(found.as_deref(), Some(*expected), "{flags:?}: {file}");
    }
    running.finish().succeeded().errors()
}

fn v1(bed: &Bed) {
    in_force(
        bed,
        &[
            (&["-p", "MemoryMax=64M"], &[("memory", "memory.limit_in_bytes", "67108864")]),
            (&["-p", "MemoryMax=1000001"], &[("memory", "memory.limit_in_bytes", "999424")]),
            (&["-p", "MemoryLimit=65M"], &[("memory", "memory.limit_in_bytes", "68157440")]),
            (&["-p", "CPUShares=600"], &[("cpu", "cpu.shares", "600")]),
            (&["-p", "CPUShares=2"], &[("cpu", "cpu.shares", "2")]),
            (&["-p", "CPUWeight=58"], &[("cpu", "cpu.shares", "593")]),
            (&["-p", "CPUQuota=20%"], &[("cpu", "cpu.cfs_quota_us", "20000"), ("cpu", "cpu.cfs_period_us", "100000")]),
            (
                &["-p", "CPUQuota=50%", "-p", "CPUQuotaPeriodSec=20ms"],
                &[("cpu", "cpu.cfs_quota_us", "10000"), ("cpu", "cpu.cfs_period_us", "20000")],
            ),
            (&["-p", "TasksMax=77"], &[("pids", "pids.max", "77")]),
            (&["-p", "TasksMax=infinity"], &[("pids", "pids.max", "max")]),
        ],
    );
}

/// A quota below a millisecond a period gets a longer period from systemd. The payload gets nowhere with it under emulation, so it
/// is not waited for.
fn quota_of_half_a_percent(bed: &Bed) {
    let unit = bed.unit();
    let running = bed.run(["--unit", &unit, "--slice", &bed.slice(), "-p", "CPUQuota=0.5%"], "exec sleep 1000").spawn();
    let scope = format!("{unit}.scope");
    bed.poll("the unit is there", || unit::is_active(&scope));
    let file = |name| unit::cgroup_file(&scope, "cpu", name);
    bed.poll("the quota is in force", || {
        file("cpu.max").is_some_and(|max| max == "1000 200000")
            || (file("cpu.cfs_quota_us").is_some_and(|quota| quota == "1000")
                && file("cpu.cfs_period_us").is_some_and(|period| period == "200000"))
    });
    bed.command("systemctl", ["kill", "-s", "KILL", &scope]).output().succeeded();
    // Ended while it was being made, or just after.
    let outcome = running.finish();
    assert!([125, 137].contains(&outcome.status), "{} {}", outcome.status, outcome.errors());
}

fn v1_devices(bed: &Bed) {
    let (running, scope) = bed.live(
        ["-p", "DevicePolicy=strict", "-p", "DeviceAllow=/dev/null rw", "-p", "BlockIOAccounting=yes"],
        "echo ready; exec cat",
    );
    let list = unit::cgroup_file(&scope, "devices", "devices.list").unwrap();
    assert!(list.lines().any(|line| line == "c 1:3 rw") && !list.contains("a *:* rwm"), "{list}");
    let file = ["blkio.bfq.weight", "blkio.weight"]
        .into_iter()
        .find(|file| unit::cgroup_dir(&scope, "blkio").join(file).exists());
    running.finish().succeeded();
    match file {
        Some(file) => {
            // BFQ counts to 10000, and systemd maps what is above 100 to a tenth and a bit.
            let (half, quarter) = if file.contains("bfq") { ("136", "113") } else { ("500", "250") };
            let rows: &[Row<'_>] = &[
                (&["-p", "BlockIOWeight=500"], &[("blkio", file, half)]),
                (&["-p", "IOWeight=50"], &[("blkio", file, quarter)]),
            ];
            in_force(bed, rows);
        }
        None => drop(
            bed.run(["-p", "BlockIOWeight=500"], "true").output().refused(125, ["BlockIOWeight=500", "not in force"]),
        ),
    }
}

/// What v1 has no means for ends the start, with the reason, before anything is started.
fn v1_refused(bed: &Bed) {
    for property in [
        "AllowedCPUs=0",
        "AllowedMemoryNodes=0",
        "MemoryHigh=64M",
        "MemoryLow=1M",
        "MemoryMin=1M",
        "MemorySwapMax=0",
        "IOReadIOPSMax=/ 100",
        "IODeviceLatencyTargetSec=/ 10ms",
        "CPUWeight=idle",
    ] {
        let outcome = bed
            .run(["-p", property, "--unit", &bed.unit()], "echo never")
            .output()
            .refused(125, [property, "cgroup v1"]);
        assert!(outcome.hint().contains("unified_cgroup_hierarchy=1"), "{}", outcome.hint());
    }
    bed.run(["--cpuset-cpus", "0"], "echo never").output().refused(125, ["--cpuset-cpus 0", "cgroup v1"]);
    assert_eq!(unit::property(&format!("{}.scope", bed.unit()), "LoadState"), "not-found");
}

/// A user manager has no controller on v1: every limit is refused, and without one it runs.
fn v1_user(bed: &Bed) {
    if bed.facts.kernel < (5, 11) {
        return;
    }
    bed.run(["--user"], "true").user().output().succeeded();
    for property in ["MemoryMax=64M", "TasksMax=50", "CPUWeight=50"] {
        bed.run(["--user", "-p", property], "echo never").user().output().refused(125, [property]);
    }
}

fn v2(bed: &Bed) {
    in_force(
        bed,
        &[
            (&["-p", "MemoryMax=64M"], &[("memory", "memory.max", "67108864")]),
            (&["-p", "MemoryMax=1000001"], &[("memory", "memory.max", "999424")]),
            (&["-p", "MemoryMax=infinity"], &[("memory", "memory.max", "max")]),
            (&["-p", "MemoryLimit=65M"], &[("memory", "memory.max", "68157440")]),
            (&["-p", "MemoryHigh=66M"], &[("memory", "memory.high", "69206016")]),
            (&["-p", "MemoryLow=8M"], &[("memory", "memory.low", "8388608")]),
            (&["-p", "MemoryMin=4M"], &[("memory", "memory.min", "4194304")]),
            (&["-p", "CPUShares=600"], &[("cpu", "cpu.weight", "58")]),
            (&["-p", "CPUShares=2"], &[("cpu", "cpu.weight", "1")]),
            (&["-p", "CPUWeight=77"], &[("cpu", "cpu.weight", "77")]),
            (&["-p", "CPUQuota=20%"], &[("cpu", "cpu.max", "20000 100000")]),
            (&["-p", "CPUQuota=150%"], &[("cpu", "cpu.max", "150000 100000")]),
            (&["-p", "CPUQuota=50%", "-p", "CPUQuotaPeriodSec=20ms"], &[("cpu", "cpu.max", "10000 20000")]),
            (&["-p", "AllowedCPUs=0"], &[("cpuset", "cpuset.cpus", "0")]),
            (&["-p", "AllowedMemoryNodes=0"], &[("cpuset", "cpuset.mems", "0")]),
            (&["-p", "TasksMax=77"], &[("pids", "pids.max", "77")]),
            (&["-p", "TasksMax=infinity"], &[("pids", "pids.max", "max")]),
        ],
    );
}

fn v2_swap(bed: &Bed) {
    // Without swap accounting (swapaccount=0) there is no such file, and the limit cannot be had.
    if Path::new("/sys/fs/cgroup/system.slice/memory.swap.max").exists() {
        in_force(
            bed,
            &[
                (&["-p", "MemorySwapMax=0"], &[("memory", "memory.swap.max", "0")]),
                (&["-p", "MemorySwapMax=16M"], &[("memory", "memory.swap.max", "16777216")]),
            ],
        );
    } else {
        bed.run(["-p", "MemorySwapMax=0"], "true").output().refused(125, ["MemorySwapMax=0"]);
    }
}

fn v2_idle(bed: &Bed) {
    in_force(bed, &[(&["-p", "CPUWeight=idle"], &[("cpu", "cpu.idle", "1")])]);
}

/// The disk that holds /.
fn disk() -> Option<(PathBuf, String)> {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata("/").unwrap().dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let link = fs::read_link(format!("/sys/dev/block/{number}")).ok()?;
    Some((Path::new("/dev").join(link.file_name()?), number))
}

fn v2_disk(bed: &Bed) {
    let (running, scope) = bed.live(["-p", "IOAccounting=yes"], "echo ready; exec cat");
    let has = |file: &str| unit::cgroup_dir(&scope, "io").join(file).exists();
    let (weight, throttle) = (has("io.weight"), has("io.max"));
    let cost = fs::read_to_string("/sys/fs/cgroup/io.cost.qos").unwrap_or_default();
    let weighs = has("io.bfq.weight") || cost.contains("enable=1");
    running.finish().succeeded();
    if weight {
        // A BlockIOWeight= of 500 would be 100, which every unit has.
        for (asked, value) in [("IOWeight=50", "default 50"), ("BlockIOWeight=1000", "default 200")] {
            let said = said_by(bed, &(&["-p", asked], &[("io", "io.weight", value)]));
            let idle =
                format!("sandbox: warning: {asked}: set, but no disk here weighs: neither bfq nor io.cost is on");
            assert_eq!(said, if weighs { "" } else { &idle });
        }
    } else {
        let outcome = bed.run(["-p", "IOWeight=50"], "echo never").output();
        assert!(outcome.status == 125 || outcome.status == 0, "{} {}", outcome.status, outcome.errors());
    }
    let Some((path, number)) = disk().filter(|(path, _)| throttle && path.exists()) else { return };
    let path = path.display();
    let flags = ["-p", &format!("IOReadBandwidthMax={path} 1M"), "-p", &format!("IOWriteIOPSMax={path} 100")];
    in_force(bed, &[(&flags, &[("io", "io.max", &format!("{number} rbps=1000000 wbps=max riops=max wiops=100"))])]);
    // A path on it stands for the device.
    in_force(
        bed,
        &[(
            &["-p", "IOWriteBandwidthMax=/ 2M"],
            &[("io", "io.max", &format!("{number} rbps=max wbps=2000000 riops=max wiops=max"))],
        )],
    );
    bed.run(["-p", "IOReadBandwidthMax=/no/such/disk 1M"], "echo never")
        .output()
        .refused(125, ["IOReadBandwidthMax", "/no/such/disk"]);
}

fn v2_seen_inside(bed: &Bed) {
    let flags = ["-p", "MemoryMax=64M", "-p", "TasksMax=50", "-p", "CPUQuota=50%", "-p", "CPUWeight=33"];
    let text =
        bed.run(flags, "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max cpu.weight").output().succeeded().text();
    assert_eq!(text, "67108864\n50\n50000 100000\n33");
}

fn flags(bed: &Bed) {
    if bed.facts.cgroup2 {
        in_force(
            bed,
            &[
                (&["--memory", "64m"], &[("memory", "memory.max", "67108864")]),
                (&["-m", "1.5G"], &[("memory", "memory.max", "1610612736")]),
                (&["--cpus", "0.5"], &[("cpu", "cpu.max", "50000 100000")]),
                (&["--cpu-shares", "512"], &[("cpu", "cpu.weight", "50")]),
                (&["--cpu-quota", "25000"], &[("cpu", "cpu.max", "25000 100000")]),
                (&["--cpu-quota", "25000", "--cpu-period", "50000"], &[("cpu", "cpu.max", "25000 50000")]),
                (&["--cpuset-cpus", "0"], &[("cpuset", "cpuset.cpus", "0")]),
                (&["--pids-limit", "20"], &[("pids", "pids.max", "20")]),
                (&["--pids-limit", "-1"], &[("pids", "pids.max", "max")]),
            ],
        );
    } else {
        in_force(
            bed,
            &[
                (&["--memory", "64m"], &[("memory", "memory.limit_in_bytes", "67108864")]),
                (&["--cpus", "0.5"], &[("cpu", "cpu.cfs_quota_us", "50000"), ("cpu", "cpu.cfs_period_us", "100000")]),
                (&["--cpu-shares", "512"], &[("cpu", "cpu.shares", "512")]),
                (
                    &["--cpu-quota", "25000", "--cpu-period", "50000"],
                    &[("cpu", "cpu.cfs_quota_us", "25000"), ("cpu", "cpu.cfs_period_us", "50000")],
                ),
                (&["--pids-limit", "20"], &[("pids", "pids.max", "20")]),
                (&["--pids-limit", "-1"], &[("pids", "pids.max", "max")]),
            ],
        );
    }
    bed.run(["--cpus", "1", "--cpu-quota", "1000"], "true").output().refused(125, ["--cpus", "--cpu-quota"]);
    bed.run(["--cpu-period", "1000"], "true").output().refused(125, ["--cpu-period 1000", "--cpu-quota"]);
}

/// A percentage is of the machine's memory, in whole pages.
fn share_of_the_machine(bed: &Bed) {
    let (running, scope) = bed.live_loud(["-p", "MemoryMax=50%"], "echo ready; exec cat");
    let file = if bed.facts.cgroup2 { "memory.max" } else { "memory.limit_in_bytes" };
    let found: u64 = unit::cgroup_file(&scope, "memory", file).unwrap().parse().unwrap();
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024;
    assert!(found.abs_diff(total / 2) <= 4096 && found.is_multiple_of(4096), "{found} of {total}");
    assert_eq!(running.finish().succeeded().errors(), "");
}

fn several_at_once(bed: &Bed) {
    let (memory, cpu) = if bed.facts.cgroup2 {
        ("memory.max", ("cpu.weight", "50"))
    } else {
        ("memory.limit_in_bytes", ("cpu.shares", "512"))
    };
    in_force(
        bed,
        &[(
            &[
                "-p",
                "MemoryMax=64M",
                "--cpu-shares",
                "512",
                "--pids-limit",
                "55",
                "-p",
                "TimeoutStopSec=3",
                "-p",
                "LimitNOFILE=100",
            ],
            &[("memory", memory, "67108864"), ("cpu", cpu.0, cpu.1), ("pids", "pids.max", "55")],
        )],
    );
}

/// A scope has none before systemd 253: asked for by name, it is not silently left out.
fn oom_policy_of_old(bed: &Bed) {
    for policy in ["continue", "stop"] {
        bed.run(["--oom", policy], "true").output().refused(125, ["OOMPolicy"]);
    }
}

fn oom_policy(bed: &Bed) {
    for policy in ["continue", "stop", "kill"] {
        let (running, scope) = bed.live(["--oom", policy], "echo ready; exec cat");
        assert_eq!(unit::property(&scope, "OOMPolicy"), policy);
        running.finish().succeeded();
    }
}

fn asked_twice(bed: &Bed) {
    bed.run(["--memory", "1G", "-p", "MemoryMax=2G"], "true").output().refused(125, ["--memory 1G", "MemoryMax=2G"]);
    bed.run(["-p", "MemoryLimit=1G", "-p", "MemoryMax=2G"], "true")
        .output()
        .refused(125, ["MemoryLimit=1G", "MemoryMax=2G"]);
    bed.run(["--cpu-shares", "512", "-p", "CPUWeight=100"], "true")
        .output()
        .refused(125, ["--cpu-shares 512", "CPUWeight=100"]);
    bed.run(["--memory", "1G", "-p", "MemoryMax=1024M", "-p", "MemoryMax=1G"], "true").output().succeeded();
}

/// The line names the property and the value, and says what is accepted; nothing was started.
fn bad_values(bed: &Bed) {
    for (flags, words) in [
        (["-p", "MemoryMax=lots"], ["MemoryMax=lots", "size"]),
        (["-p", "MemoryMax=1"], ["MemoryMax=1", "4096"]),
        (["-p", "CPUQuota=20"], ["CPUQuota=20", "%"]),
        (["-p", "CPUWeight=0"], ["CPUWeight=0", "10000"]),
        (["-p", "CPUShares=1"], ["CPUShares=1", "262144"]),
        (["-p", "TasksMax=0"], ["TasksMax=0", "1"]),
        (["-p", "TasksMax=-5"], ["TasksMax=-5", "number"]),
        (["-p", "TimeoutStopSec=soon"], ["TimeoutStopSec=soon", "min"]),
        (["-p", "KillMode=all"], ["KillMode=all", "control-group"]),
        (["-p", "AllowedCPUs=a"], ["AllowedCPUs=a", ""]),
        (["-p", "MemoryMax"], ["MemoryMax", "NAME=VALUE"]),
        (["-p", "LimitNOFILE=many"], ["LimitNOFILE=many", ""]),
        (["--memory", "12x"], ["--memory 12x", "size"]),
        (["--cpus", "none"], ["--cpus none", ""]),
        (["--pids-limit", "few"], ["--pids-limit few", ""]),
        (["--ulimit", "nofile"], ["--ulimit nofile", ""]),
        (["--ulimit", "files=1"], ["--ulimit files=1", ""]),
        (["--oom", "panic"], ["panic", "continue"]),
    ] {
        bed.run(flags, "echo never").output().refused(125, words);
    }
}

fn unknown_property(bed: &Bed) {
    let outcome = bed.run(["-p", "MemoryMaximum=1G"], "echo never").output().refused(125, ["MemoryMaximum"]);
    assert!(outcome.hint().contains("MemoryMax="), "{}", outcome.hint());
    // A property that systemd has for services, and what does it here.
    let outcome = bed.run(["-p", "PrivateNetwork=yes"], "echo never").output().refused(125, ["PrivateNetwork"]);
    assert!(outcome.hint().contains("--network none"), "{}", outcome.hint());
}

/// A drop-in of the site for this unit, gone with the value.
struct DropIn<'a>(&'a Bed, PathBuf);

impl<'a> DropIn<'a> {
    fn new(bed: &'a Bed, unit: &str, content: &str) -> (Self, PathBuf) {
        let directory = Path::new("/run/systemd/system").join(format!("{unit}.d"));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("50-site.conf");
        fs::write(&path, content).unwrap();
        bed.command("systemctl", ["daemon-reload"]).output().succeeded();
        (Self(bed, directory), path)
    }
}

impl Drop for DropIn<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.1);
        let _ = self.0.command("systemctl", ["daemon-reload"]).output();
    }
}

fn drop_in_looser(bed: &Bed) {
    let unit = format!("{}.scope", bed.unit());
    let (_site, path) = DropIn::new(bed, &unit, "[Scope]\nMemoryMax=1G\n");
    let outcome = bed.run(["--unit", &unit, "-p", "MemoryMax=64M"], "echo never").output();
    outcome.refused(125, ["MemoryMax=64M", "1073741824", path.to_str().unwrap()]);
    assert!(unit::is_gone(&unit), "{}", unit::property(&unit, "ActiveState"));
}

fn drop_in_tighter(bed: &Bed) {
    let unit = format!("{}.scope", bed.unit());
    let (_site, path) = DropIn::new(bed, &unit, "[Scope]\nMemoryMax=32M\n");
    let outcome = bed
        .sandbox(["run", "--userns", "identity", "--unit", &unit, "-p", "MemoryMax=64M", "echo", "ran"])
        .output()
        .succeeded();
    assert_eq!(outcome.text(), "ran");
    let errors = outcome.errors();
    let expected = ["sandbox: warning: ", "MemoryMax=64M", "33554432", path.to_str().unwrap()];
    assert!(errors.lines().count() == 1 && expected.iter().all(|word| errors.contains(word)), "{errors}");
}

fn slice_tighter(bed: &Bed) {
    let (_running, _) = bed.live([""; 0], "echo ready; exec cat");
    bed.command("systemctl", ["set-property", "--runtime", &bed.slice(), "MemoryMax=48M", "TasksMax=40"])
        .output()
        .succeeded();
    let flags = [
        "run",
        "--userns",
        "identity",
        "--slice",
        &bed.slice(),
        "-p",
        "MemoryMax=64M",
        "-p",
        "TasksMax=30",
        "echo",
        "ran",
    ];
    let outcome = bed.sandbox(flags).output().succeeded();
    assert_eq!(outcome.text(), "ran");
    let errors = outcome.errors();
    assert!(
        errors.lines().count() == 1 && errors.starts_with("sandbox: warning: ") && errors.contains("MemoryMax=64M"),
        "{errors}"
    );
}

/// A limit that is refused late, by systemd itself or by what the kernel shows, ends the start before the payload has run.
fn nothing_runs_without(bed: &Bed) {
    let dir = bed.disk_dir();
    let bind = format!("{}:/b", dir.display());
    let unit = format!("{}.scope", bed.unit());
    let (_site, _) = DropIn::new(bed, &unit, "[Scope]\nTasksMax=1000\n");
    bed.run(["--unit", &unit, "--bind", &bind, "-p", "TasksMax=50"], "touch /b/ran")
        .output()
        .refused(125, ["TasksMax=50"]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the payload ran");
}
