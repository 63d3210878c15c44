//! Networks: out through pasta, in through published ports, namespaces that are joined, names, and what a unit lets through.

mod ends;
mod joined;
mod names;
mod outbound;
mod policy;
mod published;

use crate::bed::Bed;
use crate::command::Running;
use crate::outside;
use crate::{Test, alone, test};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("network/out", needs![root, systemd, pasta], outbound::out),
        // Two pastas do not tell echo requests of one identifier apart, and that is ping's PID inside, which is the same everywhere.
        alone("network/out_as_user", needs![user_manager, pasta, kernel_min(5, 11)], outbound::out_as_user),
        test("network/nothing_else_is_reached", needs![root, systemd, pasta], outbound::nothing_else_is_reached),
        test("network/host_gateway", needs![root, systemd, pasta], outbound::host_gateway),
        test("network/published", needs![root, systemd, pasta], published::published),
        test("network/published_as_user", needs![user_manager, pasta, kernel_min(5, 11)], published::published_as_user),
        test("network/published_to_one_address", needs![root, systemd, pasta], published::published_to_one_address),
        test("network/a_hundred_connections", needs![root, systemd, pasta], published::a_hundred_connections),
        test("network/every_byte", needs![root, systemd, pasta], published::every_byte),
        test("network/a_pause", needs![root, systemd, pasta], published::a_pause),
        test("network/a_port_in_use", needs![root, systemd, pasta], published::a_port_in_use),
        test("network/twenty_at_once", needs![root, systemd, pasta], published::twenty_at_once),
        test("network/killed_launcher", needs![root, systemd, pasta], ends::killed_launcher),
        test(
            "network/killed_launcher_of_a_user",
            needs![user_manager, pasta, kernel_min(5, 11)],
            ends::killed_launcher_of_user,
        ),
        test("network/free_after_stop", needs![root, systemd, pasta], ends::free_after_stop),
        test("network/up_until_the_end", needs![root, systemd, pasta], ends::up_until_the_end),
        test("network/detached", needs![root, systemd, pasta], ends::detached),
        test("network/killed_pasta", needs![root, systemd, pasta], ends::killed_pasta),
        test("network/no_route", needs![root, systemd, pasta], outbound::no_route),
        test("network/what_was_missed", needs![root, systemd], outbound::what_was_missed),
        test("network/joined", needs![root, systemd], joined::joined),
        test("network/joined_sandbox", needs![root, systemd], joined::joined_sandbox),
        test(
            "network/joined_sandbox_of_a_user",
            needs![user_manager, kernel_min(5, 11)],
            joined::joined_sandbox_of_user,
        ),
        test("network/names", needs![root, systemd, disk], names::names),
        alone("network/behind_a_stub", needs![root, systemd, pasta], names::behind_a_stub),
        test("network/exposed_by_an_image", needs![root, systemd, disk, pasta], published::exposed_by_an_image),
        // A test that makes systemd reload lifts the filter, before systemd 252.
        alone("network/denied", needs![root, systemd], policy::denied),
    ]
}

/// A server inside that sends back what it gets, over TCP and UDP, IPv4 and IPv6, on port 7.
const ECHO: &str = r#"
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for s in (tcp, udp):
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", 7))
tcp.listen(200)
if os.fork() == 0:
    while True:
        data, sender = udp.recvfrom(65536)
        udp.sendto(data, sender)
sys.stdout.write("ready\n"); sys.stdout.flush()
while True:
    connection, _ = tcp.accept()
    if os.fork() == 0:
        while True:
            data = connection.recv(1 << 20)
            if not data:
                os._exit(0)
            connection.sendall(data)
    connection.close()
"#;

/// `python3 -c SCRIPT`, in quotes for a shell.
fn python(script: &str) -> String {
    format!("exec python3 -c '{script}'")
}

/// A sandbox with the server, and the ports of the host that were picked for it, in the order asked.
#[track_caller]
fn echo(bed: &Bed, flags: &[&str]) -> (Running, String, Vec<u16>) {
    outside::is_there();
    let flags: Vec<&str> = ["--network", "pasta"].iter().chain(flags).copied().collect();
    let (running, unit) = bed.live(&flags, &python(ECHO));
    let ports = picked(&running.stderr_so_far());
    (running, unit, ports)
}

/// The ports of the lines that say which were picked.
fn picked(errors: &str) -> Vec<u16> {
    let number =
        |line: &str| line.strip_prefix("sandbox: published ")?.split_once("->")?.0.rsplit(':').next()?.parse().ok();
    errors.lines().filter_map(number).collect()
}

/// Which of the addresses can be connected to from inside.
fn reached(bed: &Bed, flags: &[&str], addresses: &[&str], port: u16) -> String {
    let script = format!(
        r#"
import socket
for address in "{}".split():
    try:
        socket.create_connection((address, {port}), 5).close()
        print(address)
    except OSError:
        pass
"#,
        addresses.join(" ")
    );
    bed.run(flags, &python(&script)).output().succeeded().text()
}
