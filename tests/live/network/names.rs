//! Names: /etc/resolv.conf and /etc/hosts inside.

use crate::bed::Bed;
use crate::outside::{self, FAR, THERE};
use std::fs;

/// What is written for the network is in nobody's changes.
pub(super) fn names(bed: &Bed) {
    let name = bed.id().to_owned();
    let flags =
        ["--dns", "192.0.2.53", "--dns", "2001:db8::53", "--dns-search", "a.example", "--add-host", "db:192.0.2.9"];
    let kept = ["--name", &name, "--keep"];
    let look = "cat /etc/resolv.conf; getent hosts db; touch /srv/changed";
    let text = bed.run(flags.iter().chain(&kept), look).output().succeeded().text();
    for line in ["nameserver 192.0.2.53", "nameserver 2001:db8::53", "search a.example"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert_eq!(text.matches("nameserver").count(), 2, "{text}");
    assert!(text.contains("192.0.2.9"), "{text}");
    let changes = bed.sandbox(["diff", &name]).output().succeeded().text();
    assert!(changes.contains("/srv/changed") && !changes.contains("/etc/"), "{changes}");
    // The next start has what it asks for itself.
    let text = bed.run(kept, "grep -c 192.0.2.9 /etc/hosts; ls /srv/changed").output().succeeded().text();
    assert_eq!(text, "0\n/srv/changed");
    bed.sandbox(["discard", &name]).output().succeeded();
}

pub(super) fn behind_a_stub(bed: &Bed) {
    outside::dns_server();
    let _stub = outside::OtherResolver::stub(&format!("nameserver {}\nsearch real.example\n", THERE[0]));
    let look = "cat /etc/resolv.conf; getent ahostsv4 anything.example | head -n1 | cut -d' ' -f1";
    let text = bed.run(["--network", "pasta"], look).output().succeeded().text();
    assert_eq!(text, format!("nameserver {}\nsearch real.example\n{FAR}", THERE[0]));
    // With the host's network the stub is there.
    let text = bed.run(["--network", "host"], "cat /etc/resolv.conf").output().succeeded().text();
    assert!(text.starts_with("nameserver 127.0.0.53\n"), "{text}");
    fs::remove_file("/run/systemd/resolve/resolv.conf").unwrap();
    let outcome = bed.sandbox(["run", "--network", "pasta", "--", "cat", "/etc/resolv.conf"]).output().succeeded();
    assert!(!outcome.text().contains("nameserver") && outcome.errors().contains("--dns"), "{}", outcome.errors());
}
