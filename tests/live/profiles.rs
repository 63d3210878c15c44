//! Profiles, the examples, and the units that are made of them.

use crate::bed::Bed;
use crate::{Test, alone, test, unit};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("profiles/flags_override", needs![root, systemd], flags_override),
        test("profiles/places", needs![root], places),
        test("profiles/a_strangers_file_is_not_taken", needs![root], a_strangers_file_is_not_taken),
        test("profiles/check_needs_no_root", needs![user_manager], check_needs_no_root),
        test("profiles/unit_install", needs![root, systemd], unit_install),
        test("profiles/unit_install_taken", needs![root, systemd], unit_install_taken),
        test("profiles/unit_install_for_a_user", needs![user_manager], unit_install_for_a_user),
        test("profiles/example_top", needs![root, systemd], example_top),
        alone("profiles/example_database", needs![root, systemd, disk], example_database),
        test("profiles/example_web", needs![root, systemd], example_web),
        test("profiles/example_build", needs![root, systemd], example_build),
        test("profiles/example_untrusted", needs![root, systemd], example_untrusted),
        test("profiles/example_rootless", needs![user_manager, disk, kernel_min(5, 11)], example_rootless),
    ]
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn flags_override(bed: &Bed) {
    let dir = bed.dir();
    write(&dir, "base.toml", "memory = \"64M\"\npids-limit = 20\ncommand = [\"echo\", \"base\"]\n");
    let path = write(&dir, "web.toml", "include = [\"base.toml\"]\nsetenv = [\"A=profile\"]\npids-limit = 30\n");
    let path = path.to_str().unwrap();
    let (unit, slice) = (bed.unit(), bed.slice());
    let flags = ["run", "--profile", path, "--unit", &unit, "--slice", &slice];
    assert_eq!(bed.sandbox(flags).output().succeeded().text(), "base");
    let plan = bed.sandbox(flags).arg("--dry-run").arg("-p").arg("MemoryMax=32M").output().succeeded().text();
    assert!(plan.contains("MemoryMax=33554432") && plan.contains("TasksMax=30"), "{plan}");
    // Another unit: systemd may not have forgotten the first yet.
    let unit = format!("{unit}2");
    let flags = ["run", "--profile", path, "--unit", &unit, "--slice", &slice];
    let line = "echo $A; hostname";
    let outcome = bed.sandbox(flags).arg("-EA=flag").arg("--").arg("sh").arg("-c").arg(line).output().succeeded();
    assert_eq!(outcome.text(), "flag\nweb");
    let wrong = write(&dir, "wrong.toml", "\nmemroy = 1\n");
    let outcome = bed.sandbox(["run", "--profile", wrong.to_str().unwrap(), "true"]).output();
    let outcome = outcome.refused(125, ["wrong.toml:2: `memroy`"]);
    assert_eq!(outcome.hint(), "did you mean `memory`?");
}

fn places(bed: &Bed) {
    let (here, home) = (bed.dir(), bed.dir());
    fs::create_dir_all(home.join(".config/sandbox")).unwrap();
    let ours = write(&home.join(".config/sandbox"), "web.toml", "command = [\"true\"]\n");
    let check = || bed.sandbox(["unit", "check", "web"]).dir(&here).env("HOME", &home).output();
    assert!(check().succeeded().text().starts_with(&format!("{}: no errors", ours.display())));
    let nearer = write(&here, "web.toml", "command = [\"true\"]\n");
    assert!(check().succeeded().text().starts_with(&format!("{}: no errors", nearer.display())));
    let outcome = bed.sandbox(["unit", "check", "wbe"]).dir(&here).env("HOME", &home).output();
    let outcome = outcome.refused(125, ["there is no wbe.toml in ., ", "/etc/sandbox, /usr/share/sandbox"]);
    assert_eq!(outcome.hint(), "did you mean web?");
}

fn a_strangers_file_is_not_taken(bed: &Bed) {
    let dir = bed.dir();
    let path = write(&dir, "web.toml", "command = [\"true\"]\n");
    chown(&path, Some(65534), Some(65534)).unwrap();
    let outcome = bed.sandbox(["run", "--manager=none", "--profile", "web"]).dir(&dir).output();
    let outcome = outcome.refused(125, ["web.toml is not taken by its bare name: it belongs to user 65534"]);
    assert_eq!(outcome.hint(), "--profile ./web.toml if that one is meant");
    bed.sandbox(["unit", "check", "./web.toml"]).dir(&dir).output().succeeded();
}

fn check_needs_no_root(bed: &Bed) {
    let dir = bed.user_dir();
    let path = write(&dir, "web.toml", "command = [\"true\"]\nmemory = \"1G\"\n[property]\nRestart = \"on-failure\"\n");
    let outcome = bed.sandbox(["unit", "check", "--json", path.to_str().unwrap()]).user().output().succeeded();
    let shown: serde_json::Value = serde_json::from_str(&outcome.text()).unwrap();
    assert_eq!(shown["profile"], path.to_str().unwrap());
    assert_eq!(shown["settings"][1]["key"], "memory");
    assert_eq!(
        (&shown["settings"][2]["value"], &shown["settings"][2]["line"]),
        (&"Restart=on-failure".into(), &4.into())
    );
}

/// systemd-analyze finds nothing to say about a unit file.
fn verified(bed: &Bed, path: &Path) {
    let outcome = bed.command("systemd-analyze", ["verify", "--man=no", path.to_str().unwrap()]).output();
    let text = outcome.errors() + &outcome.text();
    // What it says of other units of the machine is not about ours.
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(outcome.status == 0 && !text.contains(name), "{} {text}", outcome.status);
}

fn unit_install(bed: &Bed) {
    let dir = bed.dir();
    let name = bed.unit();
    let text = format!(
        "command = [\"sleep\", \"infinity\"]\nunit = \"{name}\"\nslice = \"{}\"\nmemory = \"64M\"\ncpus = 0.5\n\
         [property]\nTasksMax = 20\nRestart = \"on-failure\"\nAfter = \"network.target\"\nDescription = \"100% of it\"\n",
        bed.slice()
    );
    let profile = write(&dir, "web.toml", &text);
    let profile = profile.to_str().unwrap();
    let service = format!("{name}.service");
    let path = Path::new("/etc/systemd/system").join(&service);
    let outcome = bed.sandbox(["unit", "install", profile, "--enable"]).output().succeeded();
    assert_eq!(outcome.text(), path.to_str().unwrap());
    let shown = bed.sandbox(["unit", "cat", profile]).output().succeeded().stdout;
    assert_eq!(fs::read(&path).unwrap(), shown);
    verified(bed, &path);
    let properties = [
        ("MemoryMax", "67108864".to_owned()),
        ("TasksMax", "20".into()),
        ("CPUQuotaPerSecUSec", "500ms".into()),
        ("Restart", "on-failure".into()),
        ("Slice", bed.slice()),
        ("Description", "100% of it".into()),
        ("UnitFileState", "enabled".into()),
        ("Type", "notify".into()),
    ];
    for (name, value) in properties {
        assert_eq!(unit::property(&service, name), value, "{name}");
    }
    // Again: it is ours, so it is replaced, and no half-written file stays beside it.
    bed.sandbox(["unit", "install", profile]).output().succeeded();
    bed.command("systemctl", ["disable", &service]).output().succeeded();
    fs::write(&path, "[Service]\nExecStart=/bin/true\n").unwrap();
    let outcome = bed.sandbox(["unit", "install", profile]).output();
    outcome.refused(125, ["did not make it", "unit"]);
    fs::remove_file(&path).unwrap();
    let left = fs::read_dir("/etc/systemd/system").unwrap().flatten();
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(&name)));
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
}

/// A name that is a package's, or that of something that runs.
fn unit_install_taken(bed: &Bed) {
    let dir = bed.dir();
    let name = bed.unit();
    bed.command("systemd-run", ["-q", "--unit", &name, "sleep", "1000"]).output().succeeded();
    let pid = unit::property(&format!("{name}.service"), "MainPID");
    for taken in [&name, "systemd-journald"] {
        let text = format!("command = [\"sleep\", \"infinity\"]\nunit = \"{taken}\"\n");
        let profile = write(&dir, "taken.toml", &text);
        let outcome = bed.sandbox(["unit", "install", profile.to_str().unwrap(), "--now"]).output();
        outcome.refused(125, [taken, "already"]);
        assert!(!Path::new("/etc/systemd/system").join(format!("{taken}.service")).exists());
    }
    assert_eq!(unit::property(&format!("{name}.service"), "MainPID"), pid);
    bed.command("systemctl", ["stop", &format!("{name}.service")]).output().succeeded();
}

fn unit_install_for_a_user(bed: &Bed) {
    let dir = bed.user_dir();
    let profile = write(&dir, "mine.toml", "command = [\"sleep\", \"5\"]\n");
    let config = dir.join("config");
    let outcome =
        bed.sandbox(["unit", "install", profile.to_str().unwrap()]).user().env("XDG_CONFIG_HOME", &config).output();
    let path = config.join("systemd/user/sandbox-mine.service");
    assert_eq!(outcome.succeeded().text(), path.to_str().unwrap());
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains("\nDelegate=yes\n") && text.contains("\nWantedBy=default.target\n"), "{text}");
}

fn example_top(bed: &Bed) {
    let path = write(&bed.dir(), "top.toml", include_str!("../../examples/top.toml"));
    let (name, slice) = (bed.unit(), bed.slice());
    let scope = format!("{name}.scope");
    let flags = ["run", "--profile", path.to_str().unwrap(), "--unit", &name, "--slice", &slice];
    let mut running = bed.sandbox(flags).spawn();
    running.wait_for("load average");
    assert_eq!(unit::property(&scope, "MemoryMax"), (500 << 20).to_string());
    assert_eq!(unit::property(&scope, "Slice"), slice);
    let shares =
        unit::cgroup_file(&scope, "cpu", "cpu.shares").or_else(|| unit::cgroup_file(&scope, "cpu", "cpu.weight"));
    assert!(matches!(shares.as_deref(), Some("600" | "58")), "{shares:?}");
    bed.command("systemctl", ["stop", &scope]).output().succeeded();
    let outcome = running.finish();
    assert!(matches!(outcome.status, 0 | 143), "{} {}", outcome.status, outcome.errors());
}

fn example_database(bed: &Bed) {
    let path = write(&bed.dir(), "database.toml", include_str!("../../examples/database.toml"));
    let home = Path::new("/srv/database");
    fs::create_dir_all(home.join("data")).unwrap();
    fs::create_dir_all(home.join("root")).unwrap();
    let start = || {
        let line = "echo one >> /data/rows; echo two >> /etc/kept; cat /data/rows /etc/kept";
        bed.sandbox(["run", "--profile", path.to_str().unwrap(), "--", "sh", "-c", line]).output()
    };
    let (first, second) = (start(), start());
    fs::remove_dir_all(home).unwrap();
    assert_eq!(first.succeeded().text(), "one\ntwo");
    assert_eq!(second.succeeded().text(), "one\none\ntwo\ntwo");
}

/// systemd listens, the first connection starts the service, and the server inside takes it from the socket that was passed on.
fn example_web(bed: &Bed) {
    let dir = bed.seen_dir();
    let name = bed.unit();
    let profile = format!("unit = \"{name}\"\n{}", include_str!("../../examples/web.toml"));
    let path = write(&dir, "web.toml", &profile);
    fs::create_dir(dir.join("www")).unwrap();
    write(&dir.join("www"), "index.html", "hello\n");
    bed.sandbox(["unit", "install", path.to_str().unwrap()]).output().succeeded();
    // A port that is free here: the example's is another's business.
    let listening = dir.join("socket");
    let text = include_str!("../../examples/web.socket").replace("8080", listening.to_str().unwrap());
    let units = Path::new("/etc/systemd/system");
    let socket = write(units, &format!("{name}.socket"), &text);
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
    bed.command("systemctl", ["start", &format!("{name}.socket")]).output().succeeded();
    let page = || {
        let mut stream = UnixStream::connect(&listening).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    let pages = [page(), page()];
    let memory = unit::property(&format!("{name}.service"), "MemoryMax");
    bed.command("systemctl", ["stop", &format!("{name}.socket"), &format!("{name}.service")]).output().succeeded();
    fs::remove_file(socket).unwrap();
    fs::remove_file(units.join(format!("{name}.service"))).unwrap();
    bed.command("systemctl", ["daemon-reload"]).output().succeeded();
    assert_eq!(memory, (128 << 20).to_string());
    for page in pages {
        assert!(page.starts_with("HTTP/1.0 200 OK") && page.ends_with("\r\n\r\nhello\n"), "{page}");
    }
}

fn example_build(bed: &Bed) {
    let dir = bed.seen_dir();
    write(&dir, "build.toml", include_str!("../../examples/build.toml"));
    let line = "echo $LANG; pwd; echo built > out; echo gone > /usr/bin/out; ls -A /root";
    let outcome =
        bed.sandbox(["run", "-q", "--profile", "build", "--", "sh", "-c", line]).dir(&dir).output().succeeded();
    assert_eq!(outcome.text(), format!("C.UTF-8\n{}", dir.display()));
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "built\n");
    assert!(!Path::new("/usr/bin/out").exists());
}

fn example_untrusted(bed: &Bed) {
    let path = write(&bed.dir(), "untrusted.toml", include_str!("../../examples/untrusted.toml"));
    let line = "id -u; pwd; ulimit -n; grep CapBnd /proc/self/status; echo 1 > here && cat here; echo 2> /dev/null > /srv/no || echo read-only; \
                ls /sys/class/net";
    let flags = ["run", "-q", "--profile", path.to_str().unwrap(), "--", "sh", "-c", line];
    let text = bed.sandbox(flags).output().succeeded().text();
    assert_eq!(text, "65534\n/scratch\n256\nCapBnd:\t0000000000000000\n1\nread-only\nlo");
}

fn example_rootless(bed: &Bed) {
    let path = write(&bed.user_dir(), "rootless.toml", include_str!("../../examples/rootless.toml"));
    let flags = ["run", "-q", "--profile", path.to_str().unwrap()];
    let outcome = bed.sandbox(flags).user().stdin("pwd; echo kept > x && cat x; id -u\n").output();
    assert_eq!(outcome.succeeded().text(), "/scratch\nkept\n0");
}
