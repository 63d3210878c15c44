//! The truthful /proc: what programs inside print is the sandbox's, and nothing of it can hang or break a sandbox.

use crate::bed::{Bed, patience};
use crate::command::Running;
use crate::facts::TESTER;
use crate::{Test, test, unit};
use rustix::process::{Pid, Signal};
use std::fs;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("procview/programs_see_the_limits", needs![root, systemd, fuse], programs_see_the_limits),
        test("procview/programs_without_limits", needs![root, systemd, fuse], programs_without_limits),
        test("procview/a_slice_that_is_tighter", needs![root, systemd, fuse], a_slice_that_is_tighter),
        test("procview/cpuset", needs![root, systemd, fuse, cgroup2], cpuset),
        test("procview/set_property", needs![root, systemd, fuse], set_property),
        test("procview/directories_of_cpus", needs![root, systemd, fuse], directories_of_cpus),
        test("procview/memory_nodes", needs![root, systemd, fuse], memory_nodes),
        test("procview/ps_tells_percent_and_start", needs![root, systemd, fuse], ps_tells_percent_and_start),
        test("procview/time", needs![root, systemd, fuse], time),
        test("procview/work_is_seen", needs![root, systemd, fuse], work_is_seen),
        test(
            "procview/accounting_comes_and_goes",
            needs![root, systemd, fuse, joint_cpuacct],
            accounting_comes_and_goes,
        ),
        test("procview/same_form_as_the_kernels", needs![root, systemd, fuse], same_form_as_the_kernels),
        test("procview/ways_to_start", needs![root, systemd, fuse], ways_to_start),
        test("procview/plain_user", needs![root, systemd, user_manager, fuse, kernel_min(6, 1)], plain_user),
        test("procview/detached_and_exec", needs![root, systemd, fuse], detached_and_exec),
        test("procview/off", needs![root, systemd], off),
        test("procview/disk_space", needs![root, systemd, fuse], disk_space),
        test("procview/the_kernels_own_stay", needs![root, systemd, fuse], the_kernels_own_stay),
        test("procview/fails_open", needs![root, systemd, fuse], fails_open),
        test("procview/a_thousand_readers", needs![root, systemd, fuse], a_thousand_readers),
        test("procview/a_stopped_launcher", needs![root, systemd, fuse], a_stopped_launcher),
        test("procview/costs", needs![root, systemd, fuse], costs),
    ]
}

/// A line `NAME VALUE` for each program.
const PROGRAMS: &str = "\
    echo free $(free -b | awk '/^Mem/ { print $2 }')\n\
    echo busybox-free $(busybox free -b | awk '/^Mem/ { print $2 }')\n\
    echo top $(top -b -n1 | awk '/ Mem *:/ { print int($4 + 0.5) }')\n\
    echo busybox-top $(busybox top -b -n1 | awk '/^Mem/ { print int((substr($2, 1, length($2) - 1) + substr($4, 1, length($4) - 1)) / 1024 + 0.5) }')\n\
    echo nproc $(nproc)\n\
    echo busybox-nproc $(busybox nproc)\n\
    echo getconf $(getconf _NPROCESSORS_ONLN)\n\
    echo lscpu $(lscpu -p=cpu | grep -vc '#')\n\
    echo cpuinfo $(grep -c ^processor /proc/cpuinfo)\n\
    echo directories $(find /sys/devices/system/cpu/ -maxdepth 1 -name 'cpu[0-9]*' -type d | wc -l)\n\
    echo stat $(grep -c '^cpu[0-9]' /proc/stat)\n\
    echo python $(python3 -c 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))')\n\
    echo vmstat $(vmstat -s | awk '/total memory/ { print $1 }')\n\
    echo uptime $(cut -d. -f1 /proc/uptime)\n\
    uptime > /dev/null && busybox uptime > /dev/null && echo uptime-works yes\n\
    ps aux > /dev/null && echo ps-works yes\n";

fn value(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).trim().to_owned()
}

fn host_cpus() -> usize {
    fs::read_to_string("/proc/cpuinfo").unwrap().lines().filter(|line| line.starts_with("processor")).count()
}

fn host_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[track_caller]
fn programs_say(text: &str, memory: u64, cpus: usize) {
    let (cpus, mib) = (cpus.to_string(), (memory >> 20).to_string());
    for name in ["free", "busybox-free"] {
        assert_eq!(value(text, name), memory.to_string(), "{name} in\n{text}");
    }
    for name in ["top", "busybox-top"] {
        let said: i64 = value(text, name).parse().unwrap();
        assert!((said - mib.parse::<i64>().unwrap()).abs() <= 1, "{name} in\n{text}");
    }
    for name in ["nproc", "busybox-nproc", "getconf", "lscpu", "cpuinfo", "directories", "stat"] {
        assert_eq!(value(text, name), cpus, "{name} in\n{text}");
    }
    assert_eq!(value(text, "python"), format!("{cpus} {cpus}"), "{text}");
    assert_eq!(value(text, "vmstat"), (memory / 1024).to_string(), "{text}");
    for name in ["uptime-works", "ps-works"] {
        assert_eq!(value(text, name), "yes", "{text}");
    }
}

fn programs_see_the_limits(bed: &Bed) {
    for (quota, cpus) in [("150%", 2), ("40%", 1)] {
        let flags = ["-p", "MemoryMax=300M", "-p", &format!("CPUQuota={quota}")].map(str::to_owned);
        let text = bed.run(flags, PROGRAMS).output().succeeded().text();
        programs_say(&text, 300 << 20, cpus.min(host_cpus()));
    }
    // The mask of the process is what tells it on cgroup v1, too, where systemd has no cpuset.
    let flags = ["-p", "MemoryMax=300M", "-p", "CPUQuota=150%", "-p", "CPUAffinity=0"];
    programs_say(&bed.run(flags, PROGRAMS).output().succeeded().text(), 300 << 20, 1);
}

fn programs_without_limits(bed: &Bed) {
    let text = bed.run([""; 0], PROGRAMS).output().succeeded().text();
    programs_say(&text, host_memory(), host_cpus());
}

fn a_slice_that_is_tighter(bed: &Bed) {
    let slice = bed.slice();
    let mut first = bed.run([format!("--slice={slice}")], "echo ready; exec cat").spawn();
    first.wait_for("ready");
    bed.command("systemctl", ["set-property", "--runtime", &slice, "MemoryMax=200M", "CPUQuota=30%"])
        .output()
        .succeeded();
    let flags = [format!("--slice={slice}"), "--memory=1G".into(), "--cpus=2".into()];
    let text = bed.run(flags, PROGRAMS).output().succeeded().text();
    programs_say(&text, 200 << 20, 1);
    first.close_stdin();
    first.finish().succeeded();
}

fn cpuset(bed: &Bed) {
    let last = host_cpus() - 1;
    let flags = [format!("--cpuset-cpus={last}"), "--memory=300M".into(), "--cpus=2".into()];
    let text = bed.run(flags, PROGRAMS).output().succeeded().text();
    programs_say(&text, 300 << 20, 1);
    let online = format!("--cpuset-cpus={last}");
    let text = bed.run([online], "cat /sys/devices/system/cpu/online; grep ^processor /proc/cpuinfo").output().text();
    assert_eq!(text, format!("{last}\nprocessor\t: {last}"));
}

/// A script that says what it sees each time that it gets a line.
const WATCH: &str = "echo ready; while read line; do \
    echo $line $(awk '/^MemTotal/ { print $2 }' /proc/meminfo) $(busybox free -k | awk '/^Mem/ { print $2 }') \
    $(grep -c ^processor /proc/cpuinfo) $(nproc) $(getconf _NPROCESSORS_ONLN) \
    $(ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l); done";

fn set_property(bed: &Bed) {
    let (mut running, scope) = bed.live(["-p", "MemoryMax=300M", "-p", "CPUQuota=200%"], WATCH);
    let mut ask = |word: &str, want: String| {
        running.send(format!("{word}\n"));
        running.wait_for(&format!("{word} {want}"));
    };
    let all = host_cpus().min(2);
    ask("first", format!("307200 307200 {all} {all} {all} {all}"));
    bed.sandbox(["set-property", &scope, "MemoryMax=100M", "CPUQuota=50%"]).output().succeeded();
    ask("second", "102400 102400 1 1 1 1".to_owned());
    bed.command("systemctl", ["set-property", "--runtime", &scope, "MemoryMax=200M", "CPUQuota=150%"])
        .output()
        .succeeded();
    ask("third", format!("204800 204800 {all} {all} {all} {all}"));
    running.close_stdin();
    running.finish().succeeded();
}

/// But for what a mask covers everything in the directory is the kernel's: names, kinds, modes, links, contents.
fn directories_of_cpus(bed: &Bed) {
    let script = "cd /sys/devices/system/cpu && find . -mindepth 1 -name thermal_throttle -prune -o -printf '%P %y %m %l\\n' | sort; \
                  cat kernel_max possible cpu0/topology/core_id cpu0/topology/physical_package_id; stat -c %F cpu0/subsystem/; ls missing 2>&1";
    let inside = bed.run([""; 0], script).output().text();
    let outside = bed.sh(script).output().text();
    assert!(inside.lines().count() > 20, "{inside}");
    assert_eq!(inside, outside);
    let one = bed
        .run(["-p", "CPUQuota=50%"], "cd /sys/devices/system/cpu; echo cpu[0-9]*; ls -d cpu1; cat cpu1/uevent")
        .output();
    assert_eq!(one.text(), "cpu0");
    let off = bed.run(["-p", "CPUQuota=50%", "--procview=off"], "ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l");
    assert_eq!(off.output().succeeded().text(), host_cpus().to_string());
}

/// What the nodes of memory tell is the sandbox's, and all together as much as /proc does.
fn memory_nodes(bed: &Bed) {
    let script = "cd /sys/devices/system/node; echo cpulist $(cat node*/cpulist)\n\
                  echo cpumap $(cat node*/cpumap | tr -d '0,\\n')\n\
                  echo links $(ls -d node*/cpu[0-9]* | wc -l)\n\
                  echo nodes $(cat online has_cpu has_memory | sort -u | wc -l)\n\
                  echo total $(cat node*/meminfo | awk '/ MemTotal:/ { sum += $4 } END { print sum }')\n\
                  echo used $(cat node*/meminfo | awk '/ MemUsed:/ { sum += $4 } END { print sum }')\n\
                  echo lscpu $(lscpu | sed -n 's/^NUMA node[0-9]* CPU.*: *//p')\n\
                  echo free $(awk '$1 == \"nr_free_pages\" { print $2 }' node0/vmstat)\n\
                  echo back $(cat cpu0/node0/cpulist ../cpu/cpu0/node*/cpulist 2> /dev/null)\n";
    let text = bed.run(["--memory=300M", "-p", "CPUQuota=50%"], script).output().succeeded().text();
    let number = |name: &str| value(&text, name).parse::<u64>().unwrap();
    for (name, want) in [("cpulist", "0"), ("cpumap", "1"), ("links", "1"), ("lscpu", "0"), ("nodes", "1")] {
        assert_eq!(value(&text, name), want, "{name} in\n{text}");
    }
    assert!(number("total").abs_diff(307_200) <= 4 && number("used") <= 307_200 && number("free") <= 76_800, "{text}");
    assert_eq!(value(&text, "back"), "0", "{text}");
    let all = "cd /sys/devices/system/node && find . -mindepth 1 -printf '%P %y %m %l\\n' | sort; cat online possible node0/cpulist \
               node0/cpumap node0/distance; lscpu | grep NUMA; grep MemTotal node0/meminfo";
    let (inside, outside) = (bed.run([""; 0], all).output().text(), bed.sh(all).output().text());
    assert!(inside.lines().count() > 20, "{inside}");
    assert_eq!(inside, outside);
    let off =
        bed.run(["-p", "CPUQuota=50%", "--procview=off"], "ls -d /sys/devices/system/node/node*/cpu[0-9]* | wc -l");
    assert_eq!(off.output().succeeded().text(), host_cpus().to_string());
}

fn ps_tells_percent_and_start(bed: &Bed) {
    let script = "python3 -c 'import os, subprocess; x = bytearray(120 << 20); \
                  subprocess.run([\"ps\", \"-o\", \"pmem=\", \"-p\", str(os.getpid())])' | sed 's/^/percent /'\n\
                  echo started $(date -d \"$(ps -o lstart= -p $$)\" +%s)\necho now $(date +%s)\n\
                  echo vmstat $(vmstat | awk 'NR == 3 { print $4 }')\n";
    let text = bed.run(["--memory=300M"], script).output().succeeded().text();
    let number = |name: &str| value(&text, name).parse::<f64>().unwrap();
    // 120 MiB and the interpreter, of 300 MiB.
    assert!((40.0..50.0).contains(&number("percent")), "{text}");
    // Before 5.11 the kernel's own /proc/PID/stat counts from the host's boot while its /proc/uptime counts from the namespace's.
    if bed.facts.kernel >= (5, 11) {
        assert!((-1.0..60.0).contains(&(number("now") - number("started"))), "{text}");
    }
    assert!((1.0..=307_200.0).contains(&number("vmstat")), "{text}");
}

fn time(bed: &Bed) {
    // Started an hour ago: the machine has been up for longer than the sandbox, and everything agrees about which is meant.
    // However long the commands take: what is read between two other readings lies between them.
    let script = "before=$(date +%s); up=$(cut -d. -f1 /proc/uptime); boot=$(awk '/^btime/ { print $2 }' /proc/stat); after=$(date +%s)\n\
                  echo least $((before - boot - up))\n\
                  echo most $((after - boot - up))\n\
                  echo up $up\n\
                  echo age $(ps -o etimes= -p 1)\n\
                  echo later $(cut -d. -f1 /proc/uptime)\n\
                  echo busybox $(busybox uptime | grep -c 'up 0 min')\n";
    let text = bed.run([""; 0], script).output().succeeded().text();
    let number = |name: &str| value(&text, name).parse::<i64>().unwrap();
    assert!(number("least") <= 1 && number("most") >= -1, "{text}");
    // Before 5.11 the kernel tells the start of a process by the host's clock, so ps calls each as old as nothing.
    if bed.facts.kernel >= (5, 11) {
        assert!((number("up") - 2..=number("later") + 2).contains(&number("age")), "{text}");
    }
    let host: f64 = fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((number("up") as f64) < host, "{text}");
    assert_eq!(number("busybox"), 1, "{text}");
    // Where the clock is the host's, so is what is computed with it: ps subtracts one from the other.
    let shared =
        bed.run(["--share", "time"], script.rsplit_once("echo busybox").unwrap().0).output().succeeded().text();
    let number = |name: &str| value(&shared, name).parse::<i64>().unwrap();
    assert!(
        (number("up") as f64) >= host.floor()
            && number("least") <= 1
            && number("most") >= -1
            && number("age") < number("up"),
        "{shared}"
    );
}

/// On cgroup v1 systemd gives a unit a directory that counts its CPU time while one beside it wants that, and then takes it away again.
fn accounting_comes_and_goes(bed: &Bed) {
    let (_beside, wants_it) = bed.live(["--cpu-shares=600"], "echo ready; exec sleep 1000");
    let used = "used $(awk '/^cpu / { print $2 + $4 }' /proc/stat)";
    let script = format!("echo ready; echo first {used}; read -r go; echo then {used}");
    let (mut running, scope) = bed.live(["--memory=300M"], &script);
    running.wait_for("first used");
    let first = unit::processes(&scope)[0];
    let has_one = || unit::cgroup_of(first, "cpuacct").is_some_and(|path| path.ends_with(&scope));
    assert!(has_one(), "{:?}", unit::cgroup_of(first, "cpuacct"));
    bed.sandbox(["stop", &wants_it]).output().succeeded();
    bed.poll("the directory is gone", || !has_one());
    running.send("go\n");
    let text = running.finish().succeeded().text();
    let number = |name: &str| value(&text, name).parse::<f64>().unwrap();
    // In hundredths of a second; the machine's are as many as it has worked since it booted.
    assert!((number("first used")..number("first used") + 500.0).contains(&number("then used")), "{text}");
}

fn work_is_seen(bed: &Bed) {
    // Until it has used a second of CPU time.
    let script = "while [ $(awk '/^cpu / { print int(($2 + $4) / 100) }' /proc/stat) -lt 1 ]; do \
                  i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; done\n\
                  echo used $(awk '/^cpu / { print $2 + $4 }' /proc/stat)\n\
                  echo idle $(awk '/^cpu / { print $5 }' /proc/stat)\n\
                  echo load $(cut -d' ' -f1 /proc/loadavg)\n\
                  echo tasks $(cut -d' ' -f4 /proc/loadavg | cut -d/ -f2)\n\
                  dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2> /dev/null\n\
                  echo shmem $(awk '/^Shmem:/ { print $2 }' /proc/meminfo)\n\
                  echo busybox-shared $(busybox free -k | awk '/^Mem/ { print $5 }')\n\
                  echo free $(awk '/^MemFree/ { print $2 }' /proc/meminfo)\n";
    let text = bed.run(["--memory=300M"], script).output().succeeded().text();
    let number = |name: &str| value(&text, name).parse::<f64>().unwrap();
    assert!(number("used") >= 100.0 && number("load") > 0.0, "{text}");
    assert!((1.0..50.0).contains(&number("tasks")), "{text}");
    // The kernel adds a cgroup's pages up in batches for each CPU: some of the 20,480 may not be counted yet.
    for name in ["shmem", "busybox-shared"] {
        assert!((19_456.0..60_000.0).contains(&number(name)), "{text}");
    }
    assert!(number("free") < 307_200.0 - 19_456.0, "{text}");
}

/// Line by line the same names, in the same order, as in the kernel's own files.
fn same_form_as_the_kernels(bed: &Bed) {
    let names = "for file in meminfo vmstat; do sed 's/[: ].*//' /proc/$file; done; \
                 sed 's/ .*//' /proc/stat | grep -v '^cpu[0-9]'; head -n1 /proc/swaps; wc -w < /proc/loadavg; wc -w < /proc/uptime; \
                 ls /proc/pressure 2> /dev/null; awk '/^cpu0/ { print NF }' /proc/stat; awk '{ print NF }' /proc/diskstats | sort -u | head -n1";
    let inside = bed.run([""; 0], names).output().succeeded().text();
    let outside = bed.sh(names).output().succeeded().text();
    let short =
        |text: &str| text.lines().filter(|line| line.parse::<u32>().is_err()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(short(&inside), short(&outside));
}

fn ways_to_start(bed: &Bed) {
    let script = "free -b | awk '/^Mem/ { print $2 }'; busybox free -b | awk '/^Mem/ { print $2 }'; grep fuse.sandbox /proc/mounts | grep -vc ' /proc/fs '";
    let plain = bed.run(["--memory=300M"], script).output().succeeded().text();
    assert!(plain.starts_with("314572800\n314572800\n"), "{plain}");
    for flags in [
        &["--as-pid1"][..],
        &["--userns=identity"],
        &["--userns=host"],
        &["--share=pid", "--network=host"],
        &["--share=cgroup,ipc,uts,time"],
        &["--read-only"],
        &["--uid=65534"],
        &["--pty"],
    ] {
        let flags = flags.iter().copied().chain(["--memory=300M", "--procview=on"]);
        assert_eq!(bed.run(flags, script).output().succeeded().text().replace('\r', ""), plain);
    }
    let no_unit = bed.run(["--manager=none"], script).output().succeeded().text();
    assert_eq!(no_unit.lines().last(), plain.lines().last());
}

fn plain_user(bed: &Bed) {
    let script = "free -b | awk '/^Mem/ { print $2 }'; busybox free -b | awk '/^Mem/ { print $2 }'; \
                  cut -d. -f1 /proc/uptime; grep -c fuse.sandbox /proc/mounts";
    fs::set_permissions("/dev/fuse", std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let text = bed.run(["--procview=on"], script).user().output().succeeded().text();
    let lines: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines[..2], [host_memory(); 2], "{text}");
    assert!(lines[2] < 60 && lines[3] > 8, "{text}");
    assert_eq!(TESTER, 1000);
}

fn detached_and_exec(bed: &Bed) {
    let name = bed.unit();
    let flags =
        ["run", "-q", "-d", "--memory=300M", &format!("--unit={name}"), "--", "sleep", "1000"].map(str::to_owned);
    bed.sandbox(flags).output().succeeded();
    let seen =
        bed.sandbox(["exec", &name, "sh", "-c", "free -b | awk '/^Mem/ { print $2 }'; cut -d. -f1 /proc/uptime"]);
    let text = seen.output().succeeded().text();
    assert!(text.starts_with("314572800\n"), "{text}");
    bed.sandbox(["stop", &name]).output().succeeded();
}

fn off(bed: &Bed) {
    let script = "free -b | awk '/^Mem/ { print $2 }'; busybox free -b | awk '/^Mem/ { print $2 }'; grep -c fuse.sandbox /proc/mounts; true";
    let text = bed.run(["--memory=300M", "--procview=off"], script).output().succeeded().text();
    assert_eq!(text, format!("{0}\n{0}\n0", host_memory()));
    bed.run(["--procview=on", "--share=mount"], "true").output().refused(125, ["--procview on", "--share mount"]);
}

fn the_kernels_own_stay(bed: &Bed) {
    let script = "stat -f -c %T /proc/sys/kernel/hostname /proc/self/status /proc/version; cat /proc/sys/kernel/hostname; \
                  mount -t proc proc /mnt 2> /dev/null || echo refused; echo x 2> /dev/null > /proc/meminfo || echo read-only";
    let text = bed.run(["--name=own"], script).output().succeeded().text();
    assert_eq!(text, "proc\nproc\nproc\nown\nrefused\nread-only");
}

fn disk_space(bed: &Bed) {
    let script = "df > /tmp/shown; echo $?; grep -c -e /proc -e /sys /tmp/shown; stat -f -c '%b %t' /proc/meminfo";
    let output = bed.run([""; 0], script).output().succeeded();
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("0\n0\n0 65735546", ""));
}

/// The number of our file system's connection, as /sys/fs/fuse/connections has it: its device.
fn connection(running: &Running) -> String {
    let text = running.stdout_so_far();
    value(&text, "device")
}

fn fails_open(bed: &Bed) {
    let script = "echo device $(stat -c %d /proc/meminfo); echo ready; while read line; do \
                  echo $line $(awk '/^MemTotal/ { print $2 }' /proc/meminfo 2> /dev/null); done";
    let (mut running, _) = bed.live(["--memory=300M"], script);
    running.send("before\n");
    running.wait_for("before 307200");
    let control = bed.dir();
    bed.command("mount", ["-t", "fusectl", "none"]).arg(&control).output().succeeded();
    let abort = fs::write(control.join(connection(&running)).join("abort"), "1");
    bed.command("umount", [&control]).output().succeeded();
    abort.unwrap();
    let host = host_memory() / 1024;
    let mut turn = 0;
    bed.poll("the kernel's own file shows through", || {
        turn += 1;
        running.send(format!("turn{turn}\n"));
        running.wait_for(&format!("turn{turn}"));
        running.stdout_so_far().contains(&format!("turn{turn} {host}"))
    });
    assert!(!running.stdout_so_far().contains(&format!("turn{turn} 307200")), "it came back");
    running.close_stdin();
    running.finish().succeeded();
}

fn a_thousand_readers(bed: &Bed) {
    // /proc/stat tells how many tasks run: each read of it looks at all of them.
    let emulated = patience(Duration::from_secs(1)) > Duration::from_secs(4);
    let readers = if emulated { 200 } else { 1000 };
    let script = format!(
        "i=0; while [ $i -lt {readers} ]; do busybox cat /proc/meminfo /proc/stat > /dev/null & i=$((i + 1)); done; wait; \
         exec 3< /proc/meminfo; i=0; while [ $i -lt {readers} ]; do read line < /proc/meminfo; i=$((i + 1)); done; echo $line; \
         cat <&3 | head -n1"
    );
    let text = bed.run(["--memory=300M"], &script).timeout(Duration::from_secs(120)).output().succeeded().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, ["MemTotal: 307200 kB", "MemTotal:         307200 kB"]);
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn process_named(unit: &str, name: &str) -> Option<u32> {
    let is_it = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    unit::processes(unit).into_iter().find(is_it)
}

/// Readers wait while it is stopped, and can be killed meanwhile.
fn a_stopped_launcher(bed: &Bed) {
    let (mut running, scope) =
        bed.live(["--memory=300M"], "echo ready; read line; cat /proc/meminfo; echo killed $?; exec cat");
    running.signal(Signal::STOP);
    bed.poll("the launcher is stopped", || state(running.pid()) == Some('T'));
    running.send("go\n");
    bed.poll("somebody reads", || process_named(&scope, "cat").is_some());
    let reader = process_named(&scope, "cat").unwrap();
    let pid = Pid::from_raw(i32::try_from(reader).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    running.wait_for("killed 137");
    running.signal(Signal::CONT);
    bed.command("systemctl", ["kill", "--signal=KILL", &scope]).output().succeeded();
    assert_eq!(running.finish().status, 137);
}

/// Private memory of a process in KiB.
fn private_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn switches(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().filter(|line| line.contains("ctxt_switches")).collect()
}

/// What it takes: a MiB at the most, and nothing at all while nobody reads.
fn costs(bed: &Bed) {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do cat /proc/meminfo /proc/stat /proc/vmstat /proc/loadavg /proc/cpuinfo > /dev/null; \
                  busybox free > /dev/null; done; echo ready; exec cat";
    let (with, _) = bed.live(["--procview=on"], script);
    let (without, _) = bed.live(["--procview=off"], script);
    let (more, less) = (private_memory(with.pid()), private_memory(without.pid()));
    assert!(more <= less + 1024, "{more} KiB with, {less} KiB without");
    let before = switches(with.pid());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(with.pid()), before, "it woke up while nobody read");
    for mut running in [with, without] {
        running.close_stdin();
        running.finish().succeeded();
    }
}
