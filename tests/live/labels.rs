//! What a security module of the kernel makes of the payload: an AppArmor profile, an SELinux label.

use crate::bed::{self, Bed};
use crate::facts::Need;
use crate::services::detached;
use crate::{Test, alone, test};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("labels/without_their_module", needs![root, systemd], without_their_module),
        test("labels/doctor", needs![root, systemd], doctor),
        test("labels/apparmor", needs![root, systemd, apparmor], apparmor),
        test("labels/apparmor_exec", needs![root, systemd, apparmor], apparmor_exec),
        test("labels/apparmor_detach", needs![root, systemd, apparmor], apparmor_detach),
        test(
            "labels/apparmor_of_a_user",
            needs![root, systemd, apparmor, user_manager, kernel_min(5, 11)],
            apparmor_of_a_user,
        ),
        test("labels/apparmor_stays", needs![root, systemd, apparmor], apparmor_stays),
        test("labels/apparmor_unknown", needs![root, systemd, apparmor], apparmor_unknown),
        test("labels/apparmor_confined_caller", needs![root, systemd, apparmor], apparmor_confined_caller),
        alone("labels/apparmor_of_the_package", needs![root, systemd, apparmor4], apparmor_of_the_package),
        test("labels/selinux", needs![root, systemd, selinux], selinux),
        test("labels/selinux_exec", needs![root, systemd, selinux], selinux_exec),
        test("labels/selinux_detach", needs![root, systemd, selinux], selinux_detach),
        test("labels/selinux_refused", needs![root, systemd, selinux], selinux_refused),
    ]
}

const CURRENT: &str = "tr -d '\\0' < /proc/self/attr/current";

fn without_their_module(bed: &Bed) {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if !enabled.starts_with(b"Y") {
        bed.run(["--apparmor", "some-profile"], "true").output().refused(125, ["AppArmor is not in force"]);
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let label = "system_u:system_r:container_t:s0";
        bed.run(["--selinux-label", label], "true").output().refused(125, ["SELinux is not in force"]);
    }
}

fn doctor(bed: &Bed) {
    let text = bed.sandbox(["doctor"]).output().text();
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    // The second word of a line is the first of what was looked at.
    let rows = [("AppArmor", enabled), ("SELinux", selinux), ("security", !enabled && !selinux)];
    for (row, there) in rows {
        let is = |line: &str| line.split_whitespace().nth(1) == Some(row) && line.contains("in force");
        assert_eq!(text.lines().any(is), there, "{row}: {text}");
    }
}

/// A profile that is loaded until this is dropped.
struct Profile {
    name: String,
    text: String,
}

impl Profile {
    /// All but writing /tmp/forbidden and running base64, for who asks for it by name.
    fn load(bed: &Bed, more: &str) -> Profile {
        let name = format!("{}-{}", bed.id(), more.len());
        // What versions before 4 neither know nor decide about.
        let userns = if Path::new("/etc/apparmor.d/abi/4.0").exists() { "userns," } else { "" };
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{\n file, capability, network, signal, ptrace, unix, mount,\n \
             deny /tmp/forbidden w,\n deny /{{,usr/}}bin/base64 x,\n {userns} {more}\n}}\n"
        );
        Profile::of(bed, name, text)
    }

    fn of(bed: &Bed, name: String, text: String) -> Profile {
        let parser = bed.command("apparmor_parser", ["--replace", "--skip-cache"]);
        parser.stdin(text.clone()).output().succeeded();
        let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
        assert!(loaded.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} is not in {loaded}");
        Profile { name, text }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let parser =
            Command::new("apparmor_parser").arg("--remove").stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
        // Nothing rests on it: names are those of one test.
        let _ = parser.and_then(|mut parser| {
            parser.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(self.text.as_bytes()))?;
            parser.wait()
        });
    }
}

/// What a payload under [`Profile::load`] sees, on one line each.
const TRIES: &str = "tr -d '\\0' < /proc/self/attr/current; echo; cd /tmp; echo x > allowed && cat allowed; \
     (echo x > forbidden) 2>&1; echo x | base64 2>&1; echo $?";

fn assert_confined(text: &str, name: &str, flags: &[&str]) {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 5, "{flags:?}: {text}");
    assert_eq!((lines[0], lines[1]), (format!("{name} (enforce)").as_str(), "x"), "{flags:?}: {text}");
    assert!(lines[2].contains("forbidden: Permission denied"), "{flags:?}: {text}");
    assert!(lines[3].contains("base64: Permission denied"), "{flags:?}: {text}");
    assert_eq!(lines[4], "126", "{flags:?}: {text}");
}

fn apparmor(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let name = profile.name.as_str();
    let ways: [&[&str]; 9] = [
        &[],
        &["--userns", "host"],
        &["--userns", "identity"],
        &["--as-pid1"],
        &["--uid", "33"],
        &["--share", "pid"],
        &["--hidepid"],
        &["--procview", "off"],
        &["--manager", "none"],
    ];
    for flags in ways {
        let run = bed.run(["--apparmor", name].iter().chain(flags), TRIES);
        assert_confined(&run.output().succeeded().text(), name, flags);
    }
    let run = bed.run(["--apparmor", name, "-t"], TRIES).pty(24, 80);
    assert_confined(&run.output().succeeded().text(), name, &["-t"]);
    // Nobody asked: what confines the caller, which is nothing.
    assert_eq!(bed.run([""; 0], CURRENT).output().succeeded().text(), "unconfined");
    // The program itself may be what is forbidden: that ends the start, or the kernel kills what it cannot load.
    let root = bed.disk_dir();
    crate::tree::busybox(&root);
    let busybox = |applet: &str| {
        let run = bed.sandbox(["run", "-q", "--apparmor", name, "--rootfs"]).arg(&root);
        run.args(["--", "/bin/busybox", "sh", "-c", &format!("cat /proc/self/attr/current; {applet}")]).output()
    };
    assert_eq!(busybox("true").succeeded().text(), format!("{name} (enforce)"));
}

fn apparmor_exec(bed: &Bed) {
    let profile = Profile::load(bed, "");
    for flags in [&[][..], &["--userns", "host"], &["--as-pid1"]] {
        let (_running, scope) =
            bed.live(["--apparmor", &profile.name].iter().chain(flags), "cd /tmp; echo ready; exec cat");
        let entered = bed.sandbox(["exec", &scope, "sh", "-c", TRIES]).output().succeeded();
        assert_confined(&entered.text(), &profile.name, flags);
        let inspected = bed.sandbox(["inspect", &scope]).output().succeeded().text();
        assert!(inspected.lines().any(|line| line.contains("apparmor") && line.contains(&profile.name)), "{inspected}");
    }
    // One that was taken away meanwhile: no process gets in without it.
    let (_running, scope) = bed.live(["--apparmor", &profile.name], "echo ready; exec cat");
    drop(profile);
    let refused = bed.sandbox(["exec", &scope, "true"]).output().refused(125, ["no profile of this name is loaded"]);
    assert!(refused.hint().contains("apparmor_parser"), "{}", refused.hint());
}

fn apparmor_detach(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let unit = detached(bed, "a", &["--apparmor", &profile.name], "exec sleep 1000");
    let entered = bed.sandbox(["exec", &unit, "sh", "-c", TRIES]).output().succeeded();
    assert_confined(&entered.text(), &profile.name, &["--detach"]);
    let payload = bed.sandbox(["exec", &unit, "sh", "-c", "tr -d '\\0' < /proc/2/attr/current"]).output().succeeded();
    assert_eq!(payload.text(), format!("{} (enforce)", profile.name));
    let unknown = bed.run(["--detach", "--apparmor", "no-such-profile"], "true").output();
    assert!(unknown.status == 125 && unknown.errors().contains("no profile of this name"), "{}", unknown.errors());
}

fn apparmor_of_a_user(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let run = bed.run(["--apparmor", &profile.name], TRIES).user();
    assert_confined(&run.output().succeeded().text(), &profile.name, &["of a user"]);
}

/// The payload cannot change or leave it, nor load another.
fn apparmor_stays(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let other = Profile::load(bed, "deny /x r,");
    let script = format!(
        "for to in unconfined {} no-such; do for file in current exec; do
           [ $file = current ] && word=changeprofile || word=exec
           (echo $word $to > /proc/self/attr/$file) 2> /dev/null && echo $to $file; done; done
         ls /sys/kernel/security; {CURRENT}",
        other.name
    );
    for flags in [&[][..], &["--userns", "host"], &["--cap-add", "SYS_ADMIN"]] {
        let text = bed.run(["--apparmor", &profile.name].iter().chain(flags), &script).output().succeeded().text();
        assert_eq!(text, format!("{} (enforce)", profile.name), "{flags:?}");
    }
}

fn apparmor_unknown(bed: &Bed) {
    let mark = bed.seen_dir().join("ran");
    let ways: [&[&str]; 5] = [&[], &["--userns", "host"], &["--as-pid1"], &["--manager", "none"], &["-t"]];
    for flags in ways {
        let bind = format!("--bind={}", mark.parent().unwrap().display());
        let flags = ["--apparmor", "no-such-profile", &bind].into_iter().chain(flags.iter().copied());
        let refused = bed
            .run(flags, &format!("touch {}", mark.display()))
            .output()
            .refused(125, ["--apparmor no-such-profile: no profile of this name is loaded"]);
        assert!(refused.hint().contains("apparmor_parser --replace"), "{}", refused.hint());
        assert!(!mark.exists(), "the command ran");
    }
}

/// From a profile that confines there is no way into another one after no_new_privs: the start ends, and says so.
fn apparmor_confined_caller(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let caller = Profile::load(bed, "pivot_root, umount,");
    let program = bed::sandbox_binary();
    let run = |to: &str| {
        let words = ["-p", &caller.name, "--", program.to_str().unwrap(), "run", "-q", "--manager", "none"];
        bed.command("aa-exec", words).args(["--apparmor", to, "--", "true"]).output()
    };
    let refused = run(&profile.name).refused(125, ["--apparmor", &profile.name]);
    assert!(refused.hint().contains(&format!("change_profile -> {},", profile.name)), "{}", refused.hint());
    if bed.facts.has(&Need::Apparmor4).is_ok() {
        let _without = Profile::of(bed, caller.name.clone(), caller.text.replace("userns,", ""));
        let refused = run(&profile.name).refused(125, ["make namespaces: Permission denied"]);
        assert!(refused.hint().ends_with("userns,"), "{}", refused.hint());
    }
}

/// The profile that the package brings changes nothing but what it is called.
fn apparmor_of_the_package(bed: &Bed) {
    let profile = Profile::load(bed, "");
    let program = bed::sandbox_binary();
    let text = include_str!("../../packaging/apparmor/sandbox").replace("/usr/bin/sandbox", program.to_str().unwrap());
    let _own = Profile::of(bed, "sandbox".to_owned(), text);
    assert_eq!(bed.run([""; 0], CURRENT).output().succeeded().text(), "sandbox (unconfined)");
    bed.run(["-m", "64M", "--userns", "identity"], "true").output().succeeded();
    let run = bed.run(["--apparmor", &profile.name], TRIES);
    assert_confined(&run.output().succeeded().text(), &profile.name, &["from the package's profile"]);
    let run = bed.run(["--apparmor", &profile.name], TRIES).user();
    assert_confined(&run.output().succeeded().text(), &profile.name, &["of a user, from the package's profile"]);
}

const BOX: &str = "system_u:system_r:box_t:s0:c1";

/// What tests/vm/selinux.cil denies box_t, beside what it does not.
const SELINUX_TRIES: &str = "tr -d '\\0' < /proc/self/attr/current; echo; \
     perl -MSocket -e 'print socket(my $s, AF_INET, SOCK_STREAM, 0) ? \"socket\" : $!, \"\\n\"'; \
     perl -MSocket -e 'print socket(my $s, AF_INET, SOCK_DGRAM, 0) ? \"socket\" : $!, \"\\n\"'";

fn assert_labelled(text: &str, flags: &[&str]) {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines, [BOX, "Permission denied", "socket"], "{flags:?}");
}

fn selinux(bed: &Bed) {
    let ways: [&[&str]; 8] = [
        &[],
        &["--userns", "host"],
        &["--userns", "identity"],
        &["--as-pid1"],
        &["--uid", "33"],
        &["--hidepid"],
        &["--procview", "off"],
        &["--manager", "none"],
    ];
    for flags in ways {
        let run = bed.run(["--selinux-label", BOX].iter().chain(flags), SELINUX_TRIES);
        assert_labelled(&run.output().succeeded().text(), flags);
    }
    let run = bed.run(["--selinux-label", BOX, "-t"], SELINUX_TRIES).pty(24, 80);
    assert_labelled(&run.output().succeeded().text(), &["-t"]);
    let run = bed.run(["--selinux-label", BOX], SELINUX_TRIES).user();
    assert_labelled(&run.output().succeeded().text(), &["of a user"]);
    let text = bed.run([""; 0], SELINUX_TRIES).output().succeeded().text();
    assert!(text.contains(":host_t:") && !text.contains("denied"), "{text}");
    // A file that the policy seals is so through a bind, too.
    let sealed = bed.seen_dir().join("sealed");
    std::fs::write(&sealed, "old\n").unwrap();
    bed.command("chcon", ["system_u:object_r:sealed_t:s0"]).arg(&sealed).output().succeeded();
    let bind = format!("--bind={}", sealed.display());
    let script = format!("cat {0}; (echo new > {0}) 2>&1", sealed.display());
    let text = bed.run(["--userns", "host", "--selinux-label", BOX, &bind], &script).output().text();
    assert!(text.starts_with("old\n") && text.ends_with("Permission denied"), "{text}");
    bed.run(["--userns", "host", &bind], &script).output().succeeded();
    assert_eq!(std::fs::read_to_string(&sealed).unwrap(), "new\n");
}

fn selinux_exec(bed: &Bed) {
    for flags in [&[][..], &["--userns", "host"], &["--as-pid1"]] {
        let (_running, scope) = bed.live(["--selinux-label", BOX].iter().chain(flags), "echo ready; exec cat");
        let entered = bed.sandbox(["exec", &scope, "sh", "-c", SELINUX_TRIES]).output().succeeded();
        assert_labelled(&entered.text(), flags);
        let inspected = bed.sandbox(["inspect", &scope]).output().succeeded().text();
        assert!(inspected.lines().any(|line| line.contains("selinux-label") && line.contains(BOX)), "{inspected}");
    }
}

fn selinux_detach(bed: &Bed) {
    let unit = detached(bed, "a", &["--selinux-label", BOX], "exec sleep 1000");
    let payload = bed.sandbox(["exec", &unit, "sh", "-c", "tr -d '\\0' < /proc/2/attr/current"]).output().succeeded();
    assert_eq!(payload.text(), BOX);
}

fn selinux_refused(bed: &Bed) {
    for label in
        ["system_u:system_r:no_such_t:s0", "no_such_u:system_r:box_t:s0", "box_t", "system_u:system_r:box_t:s9"]
    {
        for flags in [&[][..], &["--as-pid1"]] {
            let flags = ["--selinux-label", label].into_iter().chain(flags.iter().copied());
            let refused =
                bed.run(flags, "true").output().refused(125, [label, "the policy that is loaded knows no such"]);
            assert!(refused.hint().contains("USER:ROLE:TYPE:LEVEL"), "{}", refused.hint());
        }
    }
    // Known, but nothing may become it.
    let label = "system_u:system_r:locked_t:s0";
    let refused = bed.run(["--selinux-label", label], "true").output().refused(126, ["sh: Permission denied"]);
    assert!(refused.hint().contains("process:transition"), "{}", refused.hint());
    // A caller that may not choose.
    let program = bed::sandbox_binary();
    let words = [BOX, program.to_str().unwrap(), "run", "-q", "--manager", "none", "--network", "host"];
    let refused = bed.command("runcon", words).args(["--selinux-label", BOX, "--", "true"]).output();
    assert!(refused.refused(125, ["Permission denied"]).hint().contains("process:setexec"));
}
