//! Networks: out through pasta, in through published ports, namespaces that are joined, names, and what a unit lets through.

use crate::bed::{Bed, patience};
use crate::command::{Cmd, Running};
use crate::outside::{self, FAR, HERE, THERE, outside};
use crate::{Test, alone, images, test, unit};
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("network/out", needs![root, systemd, pasta], out),
        // Two pastas do not tell echo requests of one identifier apart, and that is ping's PID inside, which is the same everywhere.
        alone("network/out_as_user", needs![user_manager, pasta, kernel_min(5, 11)], out_as_user),
        test("network/nothing_else_is_reached", needs![root, systemd, pasta], nothing_else_is_reached),
        test("network/host_gateway", needs![root, systemd, pasta], host_gateway),
        test("network/published", needs![root, systemd, pasta], published),
        test("network/published_as_user", needs![user_manager, pasta, kernel_min(5, 11)], published_as_user),
        test("network/published_to_one_address", needs![root, systemd, pasta], published_to_one_address),
        test("network/a_hundred_connections", needs![root, systemd, pasta], a_hundred_connections),
        test("network/every_byte", needs![root, systemd, pasta], every_byte),
        test("network/a_port_in_use", needs![root, systemd, pasta], a_port_in_use),
        test("network/twenty_at_once", needs![root, systemd, pasta], twenty_at_once),
        test("network/killed_launcher", needs![root, systemd, pasta], killed_launcher),
        test(
            "network/killed_launcher_of_a_user",
            needs![user_manager, pasta, kernel_min(5, 11)],
            killed_launcher_of_user,
        ),
        test("network/free_after_stop", needs![root, systemd, pasta], free_after_stop),
        test("network/up_until_the_end", needs![root, systemd, pasta], up_until_the_end),
        test("network/detached", needs![root, systemd, pasta], detached),
        test("network/killed_pasta", needs![root, systemd, pasta], killed_pasta),
        test("network/no_route", needs![root, systemd, pasta], no_route),
        test("network/what_was_missed", needs![root, systemd], what_was_missed),
        test("network/joined", needs![root, systemd], joined),
        test("network/joined_sandbox", needs![root, systemd], joined_sandbox),
        test("network/joined_sandbox_of_a_user", needs![user_manager, kernel_min(5, 11)], joined_sandbox_of_user),
        test("network/names", needs![root, systemd, disk], names),
        alone("network/behind_a_stub", needs![root, systemd, pasta], behind_a_stub),
        test("network/exposed_by_an_image", needs![root, systemd, disk, pasta], exposed_by_an_image),
        test("network/denied", needs![root, systemd], denied),
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

fn out(bed: &Bed) {
    outside::dns_server();
    let port = outside::echo_server();
    for more in [&[][..], &["--userns", "identity"], &["--as-pid1"], &["-t"]] {
        let flags = ["--network", "pasta", "--dns", THERE[0]].iter().chain(more);
        let text = bed.run(flags, &hellos(port)).output().succeeded().text();
        assert_eq!(text.replace('\r', ""), said(), "{more:?}");
    }
}

fn out_as_user(bed: &Bed) {
    outside::dns_server();
    let port = outside::echo_server();
    let flags = ["--network", "pasta", "--dns", THERE[1]];
    assert_eq!(bed.run(flags, &hellos(port)).user().output().succeeded().text(), said());
    let identity = bed.run(flags.iter().chain(&["--userns", "identity"]), "ls /sys/class/net | wc -l").user().output();
    assert_eq!(identity.succeeded().text(), "2");
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

/// What listens on the host's loopback interface is not for those inside: not by that address, nor by the host's own or its gateway's.
fn nothing_else_is_reached(bed: &Bed) {
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

fn host_gateway(bed: &Bed) {
    outside::is_there();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let flags = ["--network", "pasta", "--add-host", "up:host-gateway"];
    assert_eq!(reached(bed, &flags, &["up"], port), "up");
    let flags = ["--network", "host", "--add-host", "up:host-gateway"];
    assert_eq!(reached(bed, &flags, &["up"], port), "up");
}

fn published(bed: &Bed) {
    let (_running, unit, ports) = echo(
        bed,
        &["--publish", "0:7", "--publish", "0:7/udp", "--publish", "127.0.0.1:0:7", "--publish", "[::1]:0:7"],
    );
    let [tcp, udp, v4, v6] = *ports else { panic!("{ports:?}") };
    for address in ["127.0.0.1", "::1", HERE[0], HERE[1]] {
        assert_eq!(outside::over_tcp(address, tcp, "from here"), "from here", "{address}");
    }
    for address in HERE {
        assert_eq!(outside(|| outside::over_tcp(address, tcp, "from there")), "from there", "{address}");
        assert_eq!(outside(|| outside::over_udp(address, udp, "packet")), "packet", "{address}");
    }
    // That of Debian 12 answers from the port inside, which a client on the host itself does not take for the same.
    if outside::pasta_year() >= 2024 {
        assert_eq!(outside::over_udp("127.0.0.1", udp, "packet"), "packet");
    }
    assert_eq!(outside::over_tcp("127.0.0.1", v4, "x"), "x");
    assert_eq!(outside::over_tcp("::1", v6, "x"), "x");
    let name = unit.trim_end_matches(".scope");
    let list = bed.sandbox(["ps"]).output().succeeded().text();
    assert!(list.contains(&format!("{tcp}->7/tcp,{udp}->7/udp,127.0.0.1:{v4}->7/tcp,[::1]:{v6}->7/tcp")), "{list}");
    let json = bed.sandbox(["inspect", "--json", name]).output().succeeded().text();
    assert!(json.contains(&format!("\"host_port\": {udp}")), "{json}");
    // pasta is in the unit, its limits and its end are the sandbox's.
    let commands =
        unit::processes(&unit).into_iter().map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    assert_eq!(commands.filter(|line| line.starts_with(b"/usr/bin/pasta")).count(), 1);
}

fn published_as_user(bed: &Bed) {
    outside::is_there();
    let flags = ["--network", "pasta", "--publish", "0:7", "--publish", "0:7/udp"];
    let mut running = bed.run(flags, &python(ECHO)).user().spawn();
    running.wait_for("ready");
    let [tcp, udp] = *picked(&running.stderr_so_far()) else { panic!("{}", running.stderr_so_far()) };
    assert_eq!(outside::over_tcp("127.0.0.1", tcp, "x"), "x");
    for address in HERE {
        assert_eq!(outside(|| outside::over_tcp(address, tcp, "from there")), "from there");
        assert_eq!(outside(|| outside::over_udp(address, udp, "packet")), "packet");
    }
    let list = bed.sandbox(["ps"]).user().output().succeeded().text();
    assert!(list.contains(&format!("{tcp}->7/tcp,{udp}->7/udp")), "{list}");
    let outcome = bed.run(["--network", "pasta", "--publish", "80:7"], "true").user().output();
    outcome.refused(125, ["80/tcp", "plain user"]);
}

fn published_to_one_address(bed: &Bed) {
    let (_running, _, ports) = echo(bed, &["--publish", "127.0.0.1:0:7"]);
    let [port] = *ports else { panic!("{ports:?}") };
    assert_eq!(outside::over_tcp("127.0.0.1", port, "x"), "x");
    assert!(outside(|| outside::try_connect(HERE[0], port)).is_err());
    assert!(outside::try_connect(HERE[0], port).is_err());
}

fn a_hundred_connections(bed: &Bed) {
    let (_running, _, ports) = echo(bed, &["--publish", "0:7"]);
    let [port] = *ports else { panic!("{ports:?}") };
    let all = || {
        let mut list: Vec<_> = (0..100).map(|_| outside::connect(HERE[0], port)).collect();
        for (number, stream) in list.iter_mut().enumerate() {
            write!(stream, "number {number:3}").expect("send");
        }
        list.iter_mut()
            .enumerate()
            .filter(|(number, stream)| {
                let mut back = [0; 10];
                let mut stream: &std::net::TcpStream = stream;
                stream.read_exact(&mut back).is_ok() && back == *format!("number {number:3}").as_bytes()
            })
            .count()
    };
    assert_eq!(outside(all), 100);
}

/// A server inside that gives many blocks or takes them, as the first byte says: `g` or `t`, then how many.
const BLOCKS: &str = r#"
import os, socket
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
tcp.bind(("::", 7))
tcp.listen(5)
print("ready", flush=True)
block = bytes(i * i // 255 % 256 for i in range(1 << 20))
while True:
    connection, _ = tcp.accept()
    order = connection.recv(5)
    for number in range(int(order[1:])):
        ours = number.to_bytes(4, "big") + block[4:]
        if order[:1] == b"g":
            connection.sendall(ours)
        else:
            theirs = b""
            while len(theirs) < len(ours):
                theirs += connection.recv(len(ours) - len(theirs))
            if theirs != ours:
                connection.sendall(b"block %d differs" % number)
    connection.sendall(b"end")
    connection.close()
"#;

/// 1 GiB, half of it out and half of it in, each byte as it was.
fn every_byte(bed: &Bed) {
    outside::is_there();
    let mut running = bed.run(["--network", "pasta", "--publish", "0:7"], &python(BLOCKS)).spawn();
    running.wait_for("ready");
    let [port] = *picked(&running.stderr_so_far()) else { panic!("{}", running.stderr_so_far()) };
    let emulated = patience(Duration::from_secs(1)) > Duration::from_secs(4);
    // 1 GiB in all.
    let blocks: u32 = if emulated { 8 } else { 512 };
    // pasta may lose packets when it has more than it can send, and TCP waits longer each time.
    let connect = |address: &str| {
        let stream = outside::connect(address, port);
        stream.set_read_timeout(Some(patience(Duration::from_secs(120)))).unwrap();
        stream
    };
    outside(|| {
        let mut stream = connect(HERE[0]);
        write!(stream, "g{blocks:04}").unwrap();
        let mut found = vec![0; 1 << 20];
        for number in 0..blocks {
            stream.read_exact(&mut found).expect("receive");
            assert!(found == block(number), "block {number} differs");
        }
        let mut end = [0; 3];
        stream.read_exact(&mut end).expect("the end");
        assert_eq!(&end, b"end");
        let mut stream = connect(HERE[1]);
        write!(stream, "t{blocks:04}").unwrap();
        (0..blocks).for_each(|number| stream.write_all(&block(number)).expect("send"));
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("the end");
        assert_eq!(said, "end");
    });
}

/// 1 MiB with its number in front, as [`BLOCKS`] has it.
fn block(number: u32) -> Vec<u8> {
    static REST: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..1_u64 << 20).map(|i| u8::try_from(i * i / 255 % 256).unwrap_or_default()).collect());
    let mut block = REST.clone();
    block[..4].copy_from_slice(&number.to_be_bytes());
    block
}

fn a_port_in_use(bed: &Bed) {
    outside::is_there();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let unit = bed.unit();
    let publish = format!("{port}:80");
    let flags = ["--network", "pasta", "--unit", &unit, "--publish", &publish];
    bed.run(flags, "true").output().refused(125, [&format!("port {port}/tcp is in use")]);
    assert!(unit::is_gone(&format!("{unit}.scope")));
    drop(listener);
    bed.run(flags, "true").output().succeeded();
    let (_running, _, ports) = echo(bed, &["--publish", "0:7/udp"]);
    let publish = format!("{}:7/udp", ports[0]);
    bed.run(["--network", "pasta", "--publish", &publish], "true").output().refused(125, ["in use"]);
}

fn twenty_at_once(bed: &Bed) {
    outside::is_there();
    let start = |number: u32| {
        let script = ECHO.replace("connection.sendall(data)", &format!("connection.sendall(b\"{number}:\" + data)"));
        let (unit, slice) = (format!("{}-{number}", bed.unit()), bed.slice());
        let flags = ["--network", "pasta", "--publish", "0:7", "--unit", &unit, "--slice", &slice];
        bed.run(flags, &python(&script)).spawn()
    };
    let mut list: Vec<Running> = (0..20).map(start).collect();
    let mut ports = Vec::new();
    for (number, running) in list.iter_mut().enumerate() {
        running.wait_for("ready");
        let [port] = *picked(&running.stderr_so_far()) else { panic!("{}", running.stderr_so_far()) };
        assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "hello")), format!("{number}:hello"));
        ports.push(port);
    }
    let launchers: Vec<_> = list.iter().map(Running::pid).collect();
    for running in &list {
        running.signal(Signal::TERM);
    }
    for running in list {
        running.finish();
    }
    assert!(ports.iter().all(|port| outside::is_free(*port)), "{ports:?} of {launchers:?}");
}

/// The processes of the machine that mention a port, as pasta does.
fn mentioning(port: u16) -> usize {
    let words = format!("{port}:7");
    let commands =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|line| line.split(|b| *b == 0).any(|word| word == words.as_bytes())).count()
}

fn dies_with_its_launcher(bed: &Bed, running: &Running, port: u16) {
    assert!(mentioning(port) > 0);
    let mut stream = outside(|| outside::connect(HERE[0], port));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    running.signal(Signal::KILL);
    // Whether it ends or is reset, it does not hang.
    let end = stream.read(&mut [0]);
    assert!(!matches!(&end, Ok(1..)) && !end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    bed.poll("no process is left", || mentioning(port) == 0);
    bed.poll("the port is free", || outside::is_free(port));
}

fn killed_launcher(bed: &Bed) {
    let (running, unit, ports) = echo(bed, &["--publish", "0:7"]);
    dies_with_its_launcher(bed, &running, ports[0]);
    bed.poll("the unit is gone", || unit::is_gone(&unit));
}

fn killed_launcher_of_user(bed: &Bed) {
    outside::is_there();
    let mut running = bed.run(["--network", "pasta", "--publish", "0:7"], &python(ECHO)).user().spawn();
    running.wait_for("ready");
    let ports = picked(&running.stderr_so_far());
    dies_with_its_launcher(bed, &running, ports[0]);
}

fn free_after_stop(bed: &Bed) {
    let (running, unit, ports) = echo(bed, &["--publish", "0:7"]);
    let port = ports[0];
    // A connection that the server's side ends leaves TIME_WAIT behind, which is to keep nobody.
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "x")), "x");
    bed.sandbox(["stop", &unit]).output().succeeded();
    let publish = format!("{port}:7");
    let (_again, _, _) = echo(bed, &["--publish", &publish]);
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "again")), "again");
    running.finish();
}

/// What the payload does when it is asked to end needs the network, too.
fn up_until_the_end(bed: &Bed) {
    let port = outside::echo_server();
    let script = format!(
        r#"
import os, signal, socket
def end(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    s = socket.create_connection(("{}", {port}), 60)
    s.sendall(b"bye")
    print(s.recv(100).decode(), flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    signal.pause()
"#,
        THERE[0]
    );
    let (running, unit) = bed.live(["--network", "pasta"], &python(&script));
    bed.command("systemctl", ["stop", &unit]).output().succeeded();
    let outcome = running.finish();
    assert_eq!(outcome.text(), "ready\nbye", "{}", outcome.errors());
}

fn detached(bed: &Bed) {
    outside::is_there();
    let (unit, slice) = (bed.unit(), bed.slice());
    let flags = ["run", "--detach", "--network", "pasta", "--publish", "0:7", "--unit", &unit, "--slice", &slice];
    bed.sandbox(flags).arg("--").args(["python3", "-c", ECHO]).output().succeeded();
    let list = bed.sandbox(["ps"]).output().succeeded().text();
    let line = list.lines().find(|line| line.contains(&format!("{unit}.service"))).unwrap_or_else(|| panic!("{list}"));
    let port: u16 = line.split("->7/tcp").next().and_then(|front| front.rsplit(' ').next()?.parse().ok()).unwrap();
    bed.poll("it answers", || outside::try_over_tcp("127.0.0.1", port, "x").is_ok_and(|back| back == "x"));
    assert_eq!(outside(|| outside::over_tcp(HERE[0], port, "x")), "x");
    bed.sandbox(["stop", &unit]).output().succeeded();
    assert!(outside::is_free(port));
}

/// Its death is said at the end, and ends nothing else.
fn killed_pasta(bed: &Bed) {
    outside::is_there();
    let (unit, slice) = (bed.unit(), bed.slice());
    let flags = ["run", "--network", "pasta", "--unit", &unit, "--slice", &slice, "--", "sh", "-c"];
    let mut running = bed.sandbox(flags).arg("echo ready; read line; echo $line").spawn();
    running.wait_for("ready");
    let is_pasta =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"/usr/bin/pasta"));
    let pasta = unit::processes(&format!("{unit}.scope")).into_iter().find(is_pasta).unwrap();
    bed.command("kill", ["-9", &pasta.to_string()]).output().succeeded();
    bed.poll("it is gone", || !Path::new(&format!("/proc/{pasta}")).exists());
    running.send("on\n");
    let outcome = running.finish().succeeded();
    assert_eq!(outcome.text(), "ready\non");
    assert!(outcome.errors().contains("the network ended before the sandbox did"), "{}", outcome.errors());
}

/// Without a way out there is a line that says so, and nothing is started.
fn no_route(bed: &Bed) {
    let inside = crate::bed::sandbox_binary();
    let flags = ["--net", "--", inside.to_str().unwrap(), "run", "--network", "pasta", "true"];
    let outcome = bed.command("unshare", flags).output();
    // Newer ones go on with link-local addresses.
    if outcome.status != 0 {
        outcome.refused(125, ["pasta"]);
    }
}

/// A command that fails because there is no network is told how to get one; no other is.
fn what_was_missed(bed: &Bed) {
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

fn joined(bed: &Bed) {
    let name = bed.id().to_owned();
    bed.sh(&format!("ip netns add {name} && ip -n {name} link add sbtv0 type veth peer name sbtv1"))
        .output()
        .succeeded();
    let network = format!("ns:/run/netns/{name}");
    let look = "ls /sys/class/net; ls -l /proc/self/ns/net | grep -o '[0-9]*\\]'";
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(format!("/run/netns/{name}")).unwrap());
    for more in [&[][..], &["--userns", "identity"], &["--userns", "host"], &["--as-pid1"]] {
        let text = bed.run(["--network", &network].iter().chain(more), look).output().succeeded().text();
        assert_eq!(text, format!("lo\nsbtv0\nsbtv1\n{inode}]"), "{more:?}");
    }
    let outcome = bed.run(["--network", &network], "true").user().output();
    outcome.refused(125, ["plain user"]);
    bed.sh(&format!("ip netns del {name}")).output().succeeded();
    bed.run(["--network", &network], "true").output().refused(125, [name.as_str(), "No such file"]);
}

const WHICH: &str = "readlink /proc/self/ns/net";

fn joined_sandbox(bed: &Bed) {
    let (_first, unit) = bed.live([""; 0], "readlink /proc/self/ns/net > /dev/shm/x; echo ready; read line");
    let name = unit.trim_end_matches(".scope");
    let network = format!("container:{name}");
    let namespace = bed.sandbox(["exec", name, "cat", "/dev/shm/x"]).output().succeeded().text();
    assert_eq!(bed.run(["--network", &network], WHICH).output().succeeded().text(), namespace);
    // What is executed in one that joined is there, too.
    let (_second, second) = bed.live(["--network", &network], "echo ready; read line");
    let text = bed.sandbox(["exec", &second]).args(["sh", "-c", WHICH]).output().succeeded().text();
    assert_eq!(text, namespace);
    // One has what the other listens on.
    // Low ports are for the one whose network it is.
    let (_server, _) = bed.live(["--network", &network], &python(&ECHO.replace("(\"::\", 7)", "(\"::\", 7007)")));
    assert_eq!(reached(bed, &["--network", &network], &["127.0.0.1"], 7007), "127.0.0.1");
    bed.run(["--network", "container:no-such"], "true").output().refused(125, ["no-such"]);
}

fn joined_sandbox_of_user(bed: &Bed) {
    let unit = bed.unit();
    let mut first = bed.run(["--unit", &unit], &format!("{WHICH} > /dev/shm/x; echo ready; read line")).user().spawn();
    first.wait_for("ready");
    let namespace = bed.sandbox(["exec", &unit, "cat", "/dev/shm/x"]).user().output().succeeded().text();
    let network = format!("container:{unit}");
    let line = format!("{WHICH}; id -u; echo x > /root/x && cat /root/x");
    let text = bed.run(["--network", &network], &line).user().output().succeeded().text();
    assert_eq!(text, format!("{namespace}\n0\nx"));
    // Root may join a user's.
    assert_eq!(bed.run(["--network", &network], WHICH).output().succeeded().text(), namespace);
}

/// What is written for the network is in nobody's changes.
fn names(bed: &Bed) {
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

fn behind_a_stub(bed: &Bed) {
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

/// The example of a web server: its image is one of ours by the same name.
fn exposed_by_an_image(bed: &Bed) {
    outside::is_there();
    let root = images::root_dir(bed);
    fs::create_dir_all(root.join("www")).unwrap();
    fs::write(root.join("www/index.html"), "welcome\n").unwrap();
    let config =
        r#"{"Cmd":["/bin/busybox","httpd","-f","-p","80","-h","/www"],"ExposedPorts":{"80/tcp":{},"443/tcp":{}}}"#;
    let store = images::store_of(bed, &[root], config, "nginx:latest");
    let profile = bed.dir().join("site.toml");
    fs::write(&profile, include_str!("../../examples/site.toml")).unwrap();
    let flags = ["run", "--profile", profile.to_str().unwrap(), "--store", store.to_str().unwrap()];
    let (unit, slice) = (bed.unit(), bed.slice());
    let running = bed.sandbox(flags).args(["--unit", &unit, "--slice", &slice, "--publish-all"]).spawn();
    bed.poll("two ports were picked", || picked(&running.stderr_so_far()).len() == 2);
    let port = picked(&running.stderr_so_far())[1];
    let get = |address: &str, port: u16| -> String {
        // Not before it has started.
        let Ok(mut stream) = outside::try_connect(address, port) else { return String::new() };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = Vec::new();
        // Its end may be a reset.
        let _ = stream.read_to_end(&mut page);
        String::from_utf8_lossy(&page).lines().last().unwrap_or_default().to_owned()
    };
    bed.poll("it answers", || get("::1", 8080) == "welcome");
    assert_eq!(outside(|| get(HERE[0], 8080)), "welcome");
    let list = bed.sandbox(["ps"]).output().succeeded().text();
    assert!(list.contains("8080->80/tcp") && list.contains(&format!("{port}->")), "{list}");
    bed.sandbox(["stop", &unit]).output().succeeded();
    running.finish();
    assert!(outside::is_free(8080));
}

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

fn denied(bed: &Bed) {
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
