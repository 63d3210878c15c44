//! Out through pasta: what is reached, what is not, and what is said where nothing is.

use super::{echo, python, reached};
use crate::bed::Bed;
use crate::outside::{self, FAR, HERE, THERE};
use std::net::TcpListener;

/// Says hello to an echo server from inside: TCP, UDP, a name, an echo request.
fn hellos(port: u16) -> String {
    let [v4, v6] = THERE;
    let script = format!(
        r#"
import socket
for family, address in ((socket.AF_INET, "{v4}"), (socket.AF_INET6, "{v6}"), (socket.AF_INET, "far.example")):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(60)
    s.connect((address, {port}))
    s.sendall(b"tcp " + address.encode())
    print(s.recv(100).decode())
for family, address in ((socket.AF_INET, "{v4}"), (socket.AF_INET6, "{v6}")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(60)
    s.sendto(b"udp " + address.encode(), (address, {port}))
    print(s.recv(100).decode())
print(socket.gethostbyname("far.example"))
"#
    );
    format!(
        "{} && busybox ping -c 1 -W 20 {v4} | grep -o '1 packets received'",
        python(&script).replacen("exec ", "", 1)
    )
}

fn said() -> String {
    let [v4, v6] = THERE;
    format!("tcp {v4}\ntcp {v6}\ntcp far.example\nudp {v4}\nudp {v6}\n{FAR}\n1 packets received")
}

pub(super) fn out(bed: &Bed) {
    outside::dns_server();
    let port = outside::echo_server();
    for more in [&[][..], &["--userns", "identity"], &["--as-pid1"], &["-t"]] {
        let flags = ["--network", "pasta", "--dns", THERE[0]].iter().chain(more);
        let text = bed.run(flags, &hellos(port)).output().succeeded().text();
        assert_eq!(text.replace('\r', ""), said(), "{more:?}");
    }
}

pub(super) fn out_as_user(bed: &Bed) {
    outside::dns_server();
    let port = outside::echo_server();
    let flags = ["--network", "pasta", "--dns", THERE[1]];
    assert_eq!(bed.run(flags, &hellos(port)).user().output().succeeded().text(), said());
    let identity = bed.run(flags.iter().chain(&["--userns", "identity"]), "ls /sys/class/net | wc -l").user().output();
    assert_eq!(identity.succeeded().text(), "2");
}

/// What listens on the host's loopback interface is not for those inside: not by that address, nor by the host's own or its gateway's.
pub(super) fn nothing_else_is_reached(bed: &Bed) {
    outside::is_there();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses = ["127.0.0.1", HERE[0], THERE[0]];
    assert_eq!(reached(bed, &["--network", "pasta"], &addresses, port), "");
    assert_eq!(reached(bed, &["--network", "host"], &["127.0.0.1"], port), "127.0.0.1");
    // Nor is what listens inside for those outside, unless it was published.
    let (_running, _, _) = echo(bed, &[]);
    for address in ["127.0.0.1", HERE[0]] {
        assert!(outside::try_connect(address, 7).is_err(), "{address}");
    }
}

pub(super) fn host_gateway(bed: &Bed) {
    outside::is_there();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let flags = ["--network", "pasta", "--add-host", "up:host-gateway"];
    assert_eq!(reached(bed, &flags, &["up"], port), "up");
    let flags = ["--network", "host", "--add-host", "up:host-gateway"];
    assert_eq!(reached(bed, &flags, &["up"], port), "up");
}

/// Without a way out there is a line that says so, and nothing is started.
pub(super) fn no_route(bed: &Bed) {
    let inside = crate::bed::sandbox_binary();
    let flags = ["--net", "--", inside.to_str().unwrap(), "run", "--network", "pasta", "true"];
    let outcome = bed.command("unshare", flags).output();
    // Newer ones go on with link-local addresses.
    if outcome.status != 0 {
        outcome.refused(125, ["pasta"]);
    }
}

/// A command that fails because there is no network is told how to get one; no other is.
pub(super) fn what_was_missed(bed: &Bed) {
    let line = |flags: &[&str], script: &str| {
        let outcome = bed.sandbox(["run"]).args(flags).args(["--", "sh", "-c", script]).output();
        (outcome.status, outcome.errors().contains("--network pasta"))
    };
    let connect = "busybox nc -w 5 192.0.2.1 80 2> /dev/null";
    let connect_v6 = format!("{connect} || {}", connect.replace("192.0.2.1", "2001:db8::1"));
    assert_eq!(line(&[], connect), (1, true));
    assert_eq!(line(&[], connect_v6.replacen("192.0.2.1", "127.0.0.1", 1).as_str()), (1, true));
    assert_eq!(line(&["-q"], connect), (1, false));
    assert_eq!(line(&[], &format!("{connect}; true")), (0, false));
    assert_eq!(line(&[], "busybox nc -w 5 127.0.0.1 80 2> /dev/null; exit 3"), (3, false));
}
