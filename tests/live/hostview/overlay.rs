//! A machine whose / is an overlay itself, as in a live system or another container: owners cannot be mapped there.

use crate::bed::Bed;
use crate::tree::Tree;
use std::fs;
use std::path::Path;

/// One line says what is less than usual and why, and the plan says it, too; writes still go nowhere but into memory.
pub(super) fn root(bed: &Bed) {
    let dir = bed.seen_dir();
    fs::write(dir.join("file"), "original\n").unwrap();
    let before = (Tree::take(&dir), Tree::take(Path::new("/etc")));
    let script = format!(
        "cd {}; echo changed > file; cat file; echo x > new; rm -r /etc/systemd /usr/share; echo x > /etc/passwd; \
         cat /proc/self/uid_map; grep -c ' / / .* - overlay ' /proc/self/mountinfo",
        dir.display()
    );
    let outcome = bed.sandbox(["run", "sh", "-c", &script]).output().succeeded();
    let text = outcome.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["changed", "0", "0", "4294967295", "1"]);
    let errors = outcome.errors();
    let expected = "sandbox: warning: user namespace falls back to identity (root inside has the host's IDs): ";
    assert!(errors.starts_with(expected) && errors.contains("/ (overlay)"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    before.0.unchanged(&dir);
    before.1.unchanged(Path::new("/etc"));
    assert!(Path::new("/usr/share").is_dir());
    let dry = bed.sandbox(["run", "--dry-run", "true"]).output().succeeded().text();
    assert!(dry.contains("\nusers         a user namespace in which each ID is itself\n"), "{dry}");
    assert!(dry.contains("falls back to identity"), "{dry}");
    // Who asks for it by name knows.
    let asked = bed.sandbox(["run", "--userns", "identity", "true"]).output().succeeded();
    assert_eq!(asked.errors(), "");
}

/// It is the overlay of ours that hides, on one of the host's as well.
pub(super) fn root_secrets(bed: &Bed) {
    let log = tempfile::tempdir_in("/var/log").unwrap();
    fs::write(log.path().join("line"), "secret\n").unwrap();
    assert!(Path::new("/etc/shadow").exists());
    let script = format!("ls /etc/shadow 2>&1; ls -A /var/log; cat {}/line 2>&1; true", log.path().display());
    let text = bed.run([""; 0], &script).output().succeeded().text();
    let gone = "No such file or directory";
    let line = format!("cat: {}/line: {gone}", log.path().display());
    assert_eq!(text, format!("ls: cannot access '/etc/shadow': {gone}\n{line}"));
    let shown = bed.run(["--host-secrets"], &script).output().succeeded().text();
    assert!(shown.starts_with("/etc/shadow\n") && shown.ends_with("\nsecret"), "{shown}");
}
