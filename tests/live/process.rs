//! The payload as a process: environment, directory, user, limits of its own, and what else it starts with.

use crate::bed::{self, Bed};
use crate::{Test, test, unit};
use std::fs;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("process/environment", needs![root, systemd], environment),
        test("process/setenv", needs![root, systemd], setenv),
        test("process/home_and_user", needs![root, systemd], home_and_user),
        test("process/working_directory", needs![root, systemd], working_directory),
        test("process/users_and_groups", needs![root, systemd], users_and_groups),
        test("process/umask", needs![root, systemd], umask),
        test("process/rlimits", needs![root, systemd], rlimits),
        test("process/nice_and_oom_score", needs![root, systemd], nice_and_oom_score),
        test("process/affinity", needs![root, systemd], affinity),
        test("process/callers_affinity", needs![root, systemd, kernel_min(6, 2)], callers_affinity),
        test("process/cpus_are_added", needs![root, systemd, cgroup2], cpus_are_added),
        test("process/arguments", needs![root, systemd], arguments),
        test("process/own_settings_twice", needs![root, systemd], own_settings_twice),
    ]
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn environment(bed: &Bed) {
    let run = |flags: &[&str]| {
        let command = bed.sandbox(["run", "-q"]).args(flags).arg("env");
        command
            .env("TERM", "vt100")
            .env("SECRET", "no")
            .env("LANG", "C.UTF-8")
            .env("LD_PRELOAD", "")
            .output()
            .succeeded()
            .text()
    };
    assert_eq!(lines(&run(&[])), ["HOME=/root", PATH, "TERM=vt100", "USER=root", "container=sandbox"]);
    assert_eq!(lines(&run(&["--as-pid1"])), ["HOME=/root", PATH, "TERM=vt100", "USER=root", "container=sandbox"]);
    let without = bed.sandbox(["run", "-q", "env"]).env_remove("TERM").output().succeeded().text();
    assert_eq!(lines(&without), ["HOME=/root", PATH, "USER=root", "container=sandbox"]);
}

fn setenv(bed: &Bed) {
    let flags = [
        "-E",
        "A=1",
        "-e",
        "B=x y=z",
        "-E",
        "FROM_CALLER",
        "-E",
        "NOT_SET",
        "--setenv",
        "A=2",
        "--env",
        "EMPTY=",
        "-E",
        "PATH=/usr/bin",
        "-E",
        "HOME=/h",
    ];
    let text = bed
        .sandbox(["run", "-q"])
        .args(flags)
        .arg("env")
        .env("FROM_CALLER", "caller's")
        .env_remove("TERM")
        .output()
        .succeeded()
        .text();
    assert_eq!(
        lines(&text),
        [
            "A=2",
            "B=x y=z",
            "EMPTY=",
            "FROM_CALLER=caller's",
            "HOME=/h",
            "PATH=/usr/bin",
            "USER=root",
            "container=sandbox"
        ]
    );
    let text = bed.run(["-p", "Environment=X=1 'Y=2 3'"], "echo $X-$Y").output().succeeded().text();
    assert_eq!(text, "1-2 3");
    for bad in ["1X=y", "A B=c", "=x", "A-B=1"] {
        bed.run(["-E", bad], "true").output().refused(125, ["--setenv", bad]);
    }
}

fn home_and_user(bed: &Bed) {
    let show = "echo $HOME $USER";
    assert_eq!(bed.run(["--uid", "www-data"], show).output().succeeded().text(), "/var/www www-data");
    assert_eq!(bed.run(["--uid", "4321"], show).output().succeeded().text(), "/ 4321");
    assert_eq!(bed.run(["--uid", "www-data", "-E", "USER=other"], show).output().succeeded().text(), "/var/www other");
}

fn working_directory(bed: &Bed) {
    let pwd = |flags: &[&str], from: &str| bed.run(flags, "pwd; pwd -P").dir(from).output().succeeded().text();
    // The caller's where it can be seen inside, else /.
    assert_eq!(pwd(&[], "/usr/share"), "/usr/share\n/usr/share");
    let hidden = bed.disk_dir();
    assert_eq!(pwd(&[], hidden.to_str().unwrap()), "/\n/");
    let bind = hidden.to_str().unwrap();
    assert_eq!(pwd(&["--bind", bind], bind), format!("{bind}\n{bind}"));
    assert_eq!(pwd(&["-w", "/etc"], "/usr"), "/etc\n/etc");
    assert_eq!(pwd(&["-p", "WorkingDirectory=/var/lib"], "/usr"), "/var/lib\n/var/lib");
    let outcome =
        bed.run(["--working-directory", "/no/such"], "true").output().refused(125, ["/no/such", "No such file"]);
    assert!(outcome.hint().contains("--bind /no/such"), "{}", outcome.hint());
    bed.run(["--working-directory", "relative"], "true").output().refused(125, ["--working-directory", "relative"]);
    bed.run(["--working-directory", "/etc/passwd"], "true").output().refused(125, ["/etc/passwd", "Not a directory"]);
    // As the user, who may not be allowed into it.
    bed.run(["--uid", "33", "-w", "/root"], "true").output().refused(125, ["/root", "Permission denied"]);
    // A directory that is gone.
    let program = bed::sandbox_binary();
    let script = format!(
        "mkdir {0}/gone && cd {0}/gone && rmdir {0}/gone && exec {1} run -q -w / true",
        hidden.display(),
        program.display()
    );
    let outcome = bed.sh(&script).output();
    assert!(
        outcome.status == 0 || outcome.errors().contains("working directory"),
        "{} {}",
        outcome.status,
        outcome.errors()
    );
}

fn users_and_groups(bed: &Bed) {
    let show = "id -u; id -g; id -G; grep -E '^(Uid|Gid)' /proc/self/status | tr -s '\\t' ' '";
    let run = |flags: &[&str]| bed.run(flags, show).output().succeeded().text();
    assert_eq!(run(&[]), "0\n0\n0\nUid: 0 0 0 0\nGid: 0 0 0 0");
    assert_eq!(run(&["--uid", "www-data"]), "33\n33\n33\nUid: 33 33 33 33\nGid: 33 33 33 33");
    assert_eq!(run(&["--uid", "33", "--gid", "4"]), "33\n4\n4\nUid: 33 33 33 33\nGid: 4 4 4 4");
    assert_eq!(run(&["--uid", "4321", "--gid", "tty"]), "4321\n5\n5\nUid: 4321 4321 4321 4321\nGid: 5 5 5 5");
    assert_eq!(run(&["-p", "User=33", "-p", "Group=adm"]), "33\n4\n4\nUid: 33 33 33 33\nGid: 4 4 4 4");
    // The caller's own groups do not come along.
    let flags = ["--groups", "4,5,33", "--", bed::sandbox_binary().to_str().unwrap(), "run", "-q", "id", "-G"]
        .map(str::to_owned);
    assert_eq!(bed.command("setpriv", &flags).output().succeeded().text(), "0");
    bed.run(["--uid", "no-such-user"], "true").output().refused(125, ["--uid no-such-user"]);
    bed.run(["--gid", "no-such-group"], "true").output().refused(125, ["--gid no-such-group"]);
    // What is not in the sandbox's range of IDs.
    let outcome = bed.run(["--uid", "3000000000"], "true").output();
    assert!(outcome.status == 0 || outcome.status == 125, "{} {}", outcome.status, outcome.errors());
    // It owns what it makes and nothing else.
    bed.run(
        ["--uid", "33"],
        "touch /tmp/x && test -O /tmp/x && ! touch /etc/x 2>/dev/null && ! cat /etc/shadow 2>/dev/null",
    )
    .output()
    .succeeded();
}

fn umask(bed: &Bed) {
    let show = "umask; touch /tmp/f; mkdir /tmp/d; stat -c %a /tmp/f /tmp/d";
    let from = |mask: &str, flags: &str| {
        let script = format!("umask {mask}; exec {} run -q {flags} sh -c '{show}'", bed::sandbox_binary().display());
        bed.sh(&script).output().succeeded().text()
    };
    assert_eq!(from("077", ""), "0022\n644\n755", "not the caller's");
    assert_eq!(from("022", "-p UMask=0077"), "0077\n600\n700");
    assert_eq!(from("077", "-p UMask=2"), "0002\n664\n775");
    bed.run(["-p", "UMask=9"], "true").output().refused(125, ["UMask=9"]);
}

/// Some beds run on machines whose root lacks CAP_SYS_RESOURCE.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() & 1 << 24 != 0
}

fn rlimits(bed: &Bed) {
    let show = "ulimit -Sn; ulimit -Hn";
    assert_eq!(bed.run(["--ulimit", "nofile=100:200"], show).output().succeeded().text(), "100\n200");
    assert_eq!(bed.run(["--ulimit", "nofile=150"], show).output().succeeded().text(), "150\n150");
    assert_eq!(bed.run(["-p", "LimitNOFILE=300:400"], show).output().succeeded().text(), "300\n400");
    assert_eq!(
        bed.run(["-p", "LimitCORE=0", "--ulimit", "fsize=4096:8192"], "ulimit -c; ulimit -Sf; ulimit -Hf")
            .output()
            .succeeded()
            .text(),
        "0\n8\n16"
    );
    bed.run(["--ulimit", "nofile=20:10"], "true").output().refused(125, ["--ulimit nofile=20:10"]);
    bed.run(["--ulimit", "nofile=10", "-p", "LimitNOFILE=20"], "true").output().refused(125, ["NOFILE", "twice"]);
    // More than the launcher's own hard limit: root may, where it has the capability.
    if !has_sys_resource() {
        let program = bed::sandbox_binary();
        let script = format!("ulimit -n 500; exec {} run -q --ulimit nofile=600 true", program.display());
        bed.sh(&script).output().refused(125, ["NOFILE", "500", "600"]);
        return;
    }
    assert_eq!(bed.run(["-p", "LimitMEMLOCK=infinity"], "ulimit -l").output().succeeded().text(), "unlimited");
    let script = format!(
        "ulimit -Hn 500; ulimit -Sn 400; exec {} run -q --ulimit nofile=450:100000 --uid 33 sh -c '{show}'",
        bed::sandbox_binary().display()
    );
    assert_eq!(bed.sh(&script).output().succeeded().text(), "450\n100000");
}

fn nice_and_oom_score(bed: &Bed) {
    assert_eq!(bed.run(["-p", "Nice=5"], "nice").output().succeeded().text(), "5");
    assert_eq!(bed.run(["-p", "Nice=-5"], "nice").output().succeeded().text(), "-5");
    assert_eq!(
        bed.run(["-p", "Nice=-5", "--uid", "33"], "nice; nice -n -1 nice 2>/dev/null").output().text(),
        "-5\n-5"
    );
    let outside = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let show = "cat /proc/self/oom_score_adj";
    assert_eq!(bed.run([""; 0], show).output().succeeded().text(), outside.trim_end());
    assert_eq!(bed.run(["-p", "OOMScoreAdjust=500"], show).output().succeeded().text(), "500");
    let lower = bed.run(["-p", "OOMScoreAdjust=-500", "--uid", "33"], show).output();
    if has_sys_resource() {
        assert_eq!(lower.succeeded().text(), "-500");
    } else {
        lower.refused(125, ["OOMScoreAdjust=-500"]);
    }
    for (property, word) in [("Nice=20", "19"), ("Nice=high", "-20"), ("OOMScoreAdjust=1001", "1000")] {
        bed.run(["-p", property], "true").output().refused(125, [property, word]);
    }
}

fn affinity(bed: &Bed) {
    let show = "grep Cpus_allowed_list /proc/self/status | cut -f2";
    assert_eq!(bed.run(["-p", "CPUAffinity=0"], show).output().succeeded().text(), "0");
    let all = bed.sh(show).output().text();
    assert_eq!(bed.run([""; 0], show).output().succeeded().text(), all);
    let outcome = bed.run(["-p", "CPUAffinity=900"], "true").output();
    outcome.refused(125, ["CPUAffinity"]);
}

/// The caller's affinity is the payload's. Before Linux 6.2 the kernel forgets it when systemd moves a process and any unit beside has CPUs
/// of its own; `systemd-run --scope` loses it as well then.
fn callers_affinity(bed: &Bed) {
    let show = "grep Cpus_allowed_list /proc/self/status | cut -f2";
    let called = format!("taskset -c 0 {} run -q -- sh -c '{show}'", bed::sandbox_binary().display());
    assert_eq!(bed.sh(&called).output().succeeded().text(), "0");
}

/// CPUs that a unit gets later are its processes' as well: nothing of a start leaves them an affinity, sched_setaffinity(2).
fn cpus_are_added(bed: &Bed) {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let (_running, scope) = bed.live(["-p", "AllowedCPUs=0"], "echo ready; exec cat");
    let allowed = || {
        let pids = unit::cgroup_file(&scope, "cpuset", "cgroup.procs").unwrap();
        let allowed_of = |pid: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
            line.trim().to_owned()
        };
        pids.lines().map(allowed_of).collect::<Vec<_>>()
    };
    assert_eq!(allowed(), ["0", "0"], "the stub and its payload");
    bed.sandbox(["set-property", &scope, &format!("AllowedCPUs={}", online.trim())]).output().succeeded();
    assert_eq!(allowed(), [online.trim(); 2]);
}

fn arguments(bed: &Bed) {
    let odd = ["", " ", "a b", "'\"", "--unit=x", "-h", "*", "$HOME", "\n", "ü", "\\"];
    let outcome = bed.sandbox(["run", "-q", "printf", "<%s>"]).args(odd).output().succeeded();
    let expected: String = odd.iter().map(|arg| format!("<{arg}>")).collect();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), expected);
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    use std::os::unix::ffi::OsStrExt;
    let outcome = bed.sandbox(["run", "-q", "printf", "%s"]).arg(bytes).output().succeeded();
    assert_eq!(outcome.stdout, b"\xff\xfe");
    // As much as the kernel takes.
    let long = "x".repeat(100_000);
    assert_eq!(bed.sandbox(["run", "-q", "printf", "%s"]).arg(&long).output().succeeded().stdout.len(), 100_000);
}

fn own_settings_twice(bed: &Bed) {
    bed.run(["--uid", "1", "-p", "User=2"], "true").output().refused(125, ["User", "--uid"]);
    bed.run(["-w", "/etc", "-p", "WorkingDirectory=/usr"], "true")
        .output()
        .refused(125, ["WorkingDirectory", "--working-directory"]);
    bed.run(["-w", "/etc", "-p", "WorkingDirectory=/etc"], "test $(pwd) = /etc").output().succeeded();
}
