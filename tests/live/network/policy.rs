//! What a unit lets through, whatever the network.

use super::python;
use crate::bed::Bed;
use crate::command::Cmd;
use crate::outside::{self, THERE};

fn connecting(address: &str, port: u16) -> String {
    format!("echo hi | busybox nc -w 10 {address} {port}")
}

/// A limit that is not in force ends the start, as on a host with cgroup v1 alone, or with a systemd that cannot (Debian 12's).
fn is_refused(bed: &Bed, flags: &[&str]) -> bool {
    let outcome = bed.run(flags, "true").output();
    if outcome.status == 0 {
        return false;
    }
    let built = bed.command("systemctl", ["--version"]).output().succeeded().text();
    let lacks = flags[0] == "--allow-bind" && built.contains("-BPF_FRAMEWORK");
    assert!(!bed.facts.cgroup2 || lacks, "{}", outcome.errors());
    if lacks && bed.facts.cgroup2 {
        assert!(outcome.errors().contains("built without the BPF framework"), "{}", outcome.errors());
    }
    outcome.refused(125, [flags[0]]);
    true
}

pub(super) fn denied(bed: &Bed) {
    let port = outside::echo_server();
    let try_it = |flags: &[&str], address: &str| -> String {
        let flags = ["--network", "host"].iter().chain(flags);
        bed.run(flags, &format!("{} || true", connecting(address, port))).output().succeeded().text()
    };
    assert_eq!(try_it(&[], THERE[0]), "hi");
    if !is_refused(bed, &["--deny-ip", "any"]) {
        assert_eq!(try_it(&["--deny-ip", "any"], THERE[0]), "");
        assert_eq!(try_it(&["--deny-ip", "any", "--allow-ip", "10.99.0.0/24"], THERE[0]), "hi");
        assert_eq!(try_it(&["--deny-ip", "10.99.0.0/24"], THERE[0]), "");
    }
    if bed.facts.systemd.is_some_and(|version| version >= 249) && !is_refused(bed, &["--allow-bind", "1-2"]) {
        let bind = |flags: &[&str], port: u16| -> Cmd {
            let listen =
                format!("import socket; s = socket.socket(); s.bind((\"127.0.0.1\", {port})); print(\"bound\")");
            bed.run(flags, &python(&listen))
        };
        assert_eq!(bind(&["--allow-bind", "tcp:8080"], 8080).output().succeeded().text(), "bound");
        let outcome = bind(&["--allow-bind", "tcp:8080"], 8081).output();
        assert!(outcome.status == 1 && outcome.errors().contains("not permitted"), "{}", outcome.errors());
    }
}
