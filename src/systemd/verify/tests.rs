use super::super::property::Assignment;
use super::super::translate::translate;
use super::*;
use crate::error::Fault;

const PID: i32 = 42;
const UNIT: &str = "t.scope";

/// A systemd with these drop-ins.
struct Answers(Vec<PathBuf>);

impl Manager for Answers {
    fn drop_ins(&mut self, unit: &str) -> Vec<PathBuf> {
        assert_eq!(unit, UNIT);
        self.0.clone()
    }

    fn features(&mut self) -> String {
        "+PAM -BPF_FRAMEWORK +X".to_owned()
    }
}

/// A /proc and a /sys/fs/cgroup in a temporary directory.
struct Fixture {
    root: tempfile::TempDir,
    mode: CgroupMode,
}

impl Fixture {
    fn new(mode: CgroupMode, cgroup: &str, files: &[(&str, &str)]) -> io::Result<Fixture> {
        let fixture = Fixture { root: tempfile::tempdir()?, mode };
        fixture.write(&format!("proc/{PID}/cgroup"), cgroup)?;
        for (path, text) in files {
            fixture.write(&format!("cgroup/{path}"), text)?;
        }
        Ok(fixture)
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        std::fs::write(path, text)
    }

    /// The report as text, or the error and its hint.
    fn verify(&self, texts: &[&str], user: bool, drop_ins: &[&str]) -> String {
        let path = |name: &str| self.root.path().join(name);
        let machine = Machine { page: 4096, memory: 8 << 30, tasks: 1000 };
        // A directory called bpf stands for programs.
        let programs = |cgroup: &Path, _: u32| Ok(u32::from(cgroup.join("bpf").exists()));
        let kernel = Kernel { proc: path("proc"), cgroup: path("cgroup"), sys: path("sys"), machine, programs };
        let assignments: Vec<_> = texts.iter().filter_map(|text| Assignment::parse(text).ok()).collect();
        let settings = translate(&assignments, self.mode).map(|t| t.settings).unwrap_or_default();
        assert_eq!(settings.len(), texts.len());
        let pid = Pid::from_raw(PID).unwrap_or(Pid::INIT);
        let subject = Subject { pid, unit: UNIT, settings: &settings, mode: self.mode, user, changes: Changes::Differ };
        let mut manager = Answers(drop_ins.iter().map(|name| path(name)).collect());
        let result = kernel.verify(&subject, &mut manager);
        let text = match result {
            Ok(report) => {
                let limits = report.limits.iter().map(|limit| format!("{} {}", limit.file, limit.in_force));
                let warnings = report.warnings.iter().map(|warning| format!("warning: {warning}"));
                limits.chain(warnings).collect::<Vec<_>>().join("; ")
            }
            Err(error) => {
                let hint = error.downcast_ref::<Fault>().and_then(Fault::hint_text).unwrap_or_default();
                format!("{error:#} | {hint}")
            }
        };
        text.replace(&self.root.path().display().to_string(), "")
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, one row a limit and what may be wrong with it")]
fn limits_on_v2() -> io::Result<()> {
    let files = [
        ("test.slice/memory.max", "max\n"),
        ("test.slice/pids.max", "50\n"),
        ("test.slice/t.scope/cgroup.controllers", "cpu io memory pids\n"),
        ("test.slice/t.scope/memory.max", "999424\n"),
        ("test.slice/t.scope/memory.high", "max\n"),
        ("test.slice/t.scope/memory.swap.max", "4096\n"),
        ("test.slice/t.scope/pids.max", "100\n"),
        ("test.slice/t.scope/cpu.max", "1000 200000\n"),
        ("test.slice/t.scope/cpu.weight", "58\n"),
        ("test.slice/t.scope/io.weight", "default 50\n"),
        ("test.slice/t.scope/io.max", "8:0 rbps=1000000 wbps=max riops=max wiops=max\n"),
        ("drop-in.conf", "[Scope]\nMemorySwapMax=4K\n"),
        ("other.conf", "[Scope]\nTasksMax=1\n"),
    ];
    let fixture = Fixture::new(CgroupMode::Unified, "0::/test.slice/t.scope\n", &files)?;
    let (drop_in, other) = ("cgroup/drop-in.conf", "cgroup/other.conf");
    let table: &[(&[&str], &[&str], &str)] = &[
        (
            &["MemoryMax=1000001", "CPUShares=600", "CPUQuota=0.5%"],
            &[],
            "memory.max 999424; cpu.weight 58; cpu.max 1000 200000",
        ),
        (
            &["TasksMax=100"],
            &[],
            "pids.max 100; warning: TasksMax=100: a cgroup further up is tighter, 50 of test.slice holds",
        ),
        (
            &["TasksMax=40"],
            &[],
            "TasksMax=40 is not in force: asked 40, found 100 in pids.max: systemd did not set it or the kernel did not take it | journalctl -b -u t.scope",
        ),
        (
            &["MemoryHigh=1M"],
            &[other, drop_in],
            "MemoryHigh=1M is not in force: asked 1048576, found max in memory.high: a drop-in says otherwise: /cgroup/other.conf, /cgroup/drop-in.conf | systemctl cat t.scope",
        ),
        (
            &["MemorySwapMax=0"],
            &[other, drop_in],
            "MemorySwapMax=0 is not in force: asked 0, found 4096 in memory.swap.max: a drop-in says otherwise: /cgroup/drop-in.conf | systemctl cat t.scope",
        ),
        (
            &["MemorySwapMax=1M"],
            &[drop_in],
            "memory.swap.max 4096; warning: MemorySwapMax=1M: memory.swap.max has 4096, by /cgroup/drop-in.conf",
        ),
        (
            &["IOWeight=50"],
            &[],
            "io.weight 50; warning: IOWeight=50: set, but no disk here weighs: neither bfq nor io.cost is on",
        ),
        (
            &["AllowedCPUs=0"],
            &[],
            "AllowedCPUs=0 is not in force: asked 0, cpuset.cpus is not there: the controller cpuset is not enabled for t.scope | cat /sys/fs/cgroup/cgroup.controllers; the kernel may have been booted with cgroup_disable=cpuset",
        ),
        (
            &["MemoryZSwapMax=1M"],
            &[],
            "MemoryZSwapMax=1M is not in force: asked 1048576, memory.zswap.max is not there: this kernel does not have it | ",
        ),
        (
            &["IPAddressDeny=any"],
            &[],
            "IPAddressDeny=any is not in force: asked a BPF program, found no BPF program on its cgroup: systemd did not set it or the kernel did not take it | journalctl -b -u t.scope",
        ),
        (
            &["IOReadBandwidthMax=/nonexistent 1M"],
            &[],
            "IOReadBandwidthMax=/nonexistent 1M is not in force: /nonexistent: No such file or directory | lsblk lists the disks of this machine",
        ),
        (&["KillMode=mixed", "Delegate=yes"], &[], ""),
    ];
    for (texts, drop_ins, want) in table {
        assert_eq!(fixture.verify(texts, false, drop_ins), *want, "{texts:?}");
    }
    let user = fixture.verify(&["AllowedCPUs=0"], true, &[]);
    assert!(user.contains("is not delegated to your service manager") && user.contains("delegate.conf"), "{user}");
    let user = fixture.verify(&["SocketBindDeny=any"], true, &[]);
    assert!(user.contains("may not load BPF programs"), "{user}");
    let found = fixture.verify(&["SocketBindDeny=any"], false, &[]);
    assert!(found.contains("built without the BPF framework"), "{found}");
    let found = fixture.verify(&["IOReadBandwidthMax=/proc 2M"], false, &[]);
    assert!(found.contains("no single disk is known behind /proc"), "{found}");
    fixture.write("cgroup/test.slice/t.scope/bpf", "")?;
    assert_eq!(fixture.verify(&["DevicePolicy=closed"], false, &[]), " a BPF program");
    Ok(())
}

#[test]
fn a_process_that_is_elsewhere() -> io::Result<()> {
    let fixture = Fixture::new(CgroupMode::Unified, "0::/user.slice/other.scope\n", &[])?;
    let found = fixture.verify(&["MemoryMax=1M"], false, &[]);
    let want = "systemd did not put the process into t.scope: it is in /user.slice/other.scope";
    assert!(found.starts_with(want), "{found}");
    assert!(fixture.verify(&[], false, &[]).starts_with(want), "also without any limit");
    // A cgroup below the unit's own is fine.
    let files = [("t.scope/memory.max", "1048576\n")];
    let fixture = Fixture::new(CgroupMode::Unified, "0::/t.scope/payload\n", &files)?;
    assert_eq!(fixture.verify(&["MemoryMax=1M"], false, &[]), "memory.max 1048576");
    Ok(())
}

#[test]
fn limits_on_hybrid_v1() -> io::Result<()> {
    let cgroup = "9:name=systemd:/x.slice/t.scope\n8:pids:/x.slice/t.scope\n7:blkio:/\n5:devices:/x.slice/t.scope\n\
                  4:memory:/x.slice/t.scope\n2:cpuacct:/\n1:cpu:/x.slice/t.scope\n0::/x.slice/t.scope\n";
    let files = [
        ("memory/x.slice/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/x.slice/t.scope/memory.limit_in_bytes", "524288000\n"),
        ("cpu/x.slice/t.scope/cpu.shares", "600\n"),
        ("cpu/x.slice/t.scope/cpu.cfs_quota_us", "20000\n"),
        ("cpu/x.slice/t.scope/cpu.cfs_period_us", "100000\n"),
        ("pids/x.slice/t.scope/pids.max", "7\n"),
        ("devices/x.slice/t.scope/devices.list", "c 1:3 rwm\n"),
        ("unified/x.slice/t.scope/bpf", ""),
    ];
    let fixture = Fixture::new(CgroupMode::Hybrid, cgroup, &files)?;
    let table: &[(&[&str], &str)] = &[
        (
            &["MemoryMax=500M", "CPUShares=600", "TasksMax=7"],
            "memory.limit_in_bytes 524288000; cpu.shares 600; pids.max 7",
        ),
        (&["CPUQuota=20%"], "cpu.cfs_quota_us 20000 100000"),
        (&["DevicePolicy=closed"], "devices.list a list of devices"),
        (&["IPAddressDeny=any"], " a BPF program"),
        (
            &["BlockIOWeight=50"],
            "BlockIOWeight=50 is not in force: for the blkio controller the process is in /, not in t.scope | journalctl -b -u t.scope",
        ),
    ];
    for (texts, want) in table {
        assert_eq!(fixture.verify(texts, false, &[]), *want, "{texts:?}");
    }
    fixture.write("cgroup/cpu/x.slice/t.scope/cpu.cfs_quota_us", "-1\n")?;
    fixture.write("cgroup/cpu/x.slice/cpu.cfs_quota_us", "50000\n")?;
    fixture.write("cgroup/cpu/x.slice/cpu.cfs_period_us", "100000\n")?;
    let found = fixture.verify(&["CPUQuota=80%"], false, &[]);
    let want = "cpu.cfs_quota_us -1 100000; warning: CPUQuota=80%: a cgroup further up is tighter, 50000 100000 of x.slice holds";
    assert_eq!(found, want);
    let found = fixture.verify(&["CPUQuota=20%"], false, &[]);
    assert!(found.starts_with("CPUQuota=20% is not in force: asked 20000 100000, found -1 100000"), "{found}");
    let user = fixture.verify(&["BlockIOWeight=50"], true, &[]);
    assert!(user.contains("on cgroup v1 a user's service manager has no blkio controller"), "{user}");
    Ok(())
}

#[test]
fn cpus_that_cannot_be_used() -> io::Result<()> {
    let files = [("t.scope/cpuset.cpus", "0-3\n"), ("t.scope/cpuset.cpus.effective", "0-1\n")];
    let fixture = Fixture::new(CgroupMode::Unified, "0::/t.scope\n", &files)?;
    let found = fixture.verify(&["AllowedCPUs=0-3"], false, &[]);
    assert_eq!(found, "cpuset.cpus 0-3; warning: AllowedCPUs=0-3: not all of these can be used, 0-1 holds");
    fixture.write("cgroup/t.scope/cpuset.cpus", "5\n")?;
    let found = fixture.verify(&["AllowedCPUs=5"], false, &[]);
    assert!(found.starts_with("AllowedCPUs=5 is not in force: asked 5, found 0-1 in cpuset.cpus.effective"), "{found}");
    Ok(())
}
