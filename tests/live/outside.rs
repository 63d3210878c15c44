//! The outside world: a second network namespace, joined to this machine's by a pair of virtual interfaces. The test itself listens and
//! connects there, on a thread that enters it.

use rustix::thread::LinkNameSpaceType;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

/// Addresses of this machine on the link.
pub(crate) const HERE: [&str; 2] = ["10.99.0.2", "fd99::2"];
/// Addresses of the outside; the first is the machine's default route where it had none.
pub(crate) const THERE: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// Only there: what a name is said to be by the DNS server outside.
pub(crate) const FAR: &str = "203.0.113.7";

const NAME: &str = "sbtoutside";

static WORLD: LazyLock<()> = LazyLock::new(make);

fn make() {
    let script = format!(
        "set -e
         test ! -e /run/netns/{NAME} || exit 0
         ip netns add {NAME}
         ip link add sbt0 type veth peer name sbt1
         ip link set sbt1 netns {NAME}
         ip link set lo up
         ip addr add 10.99.0.2/24 dev sbt0; ip addr add fd99::2/64 dev sbt0 nodad; ip link set sbt0 up
         ip -n {NAME} link set lo up
         ip -n {NAME} addr add 10.99.0.1/24 dev sbt1; ip -n {NAME} addr add fd99::1/64 dev sbt1 nodad
         ip -n {NAME} addr add {FAR}/32 dev lo
         ip -n {NAME} link set sbt1 up
         ip route show default | grep -q . || ip route add default via 10.99.0.1
         ip -6 route show default | grep -q . || ip -6 route add default via fd99::1
         ip route show {FAR} | grep -q . || ip route add {FAR} via 10.99.0.1
         echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert!(output.status.success(), "no outside world: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes sure that it is there.
pub(crate) fn is_there() {
    LazyLock::force(&WORLD);
}

/// Does something there.
pub(crate) fn outside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    is_there();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{NAME}")).expect("the outside's namespace");
            rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter it");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How long a packet may take.
fn patience() -> Duration {
    crate::bed::patience(Duration::from_secs(10))
}

/// A server out there that sends back what it gets over TCP and UDP; its port is the same for both. It runs until the tests end.
pub(crate) fn echo_server() -> u16 {
    static PORT: LazyLock<u16> = LazyLock::new(|| {
        let (tcp, udp) = outside(|| {
            let tcp = TcpListener::bind("[::]:0").expect("listen");
            let udp = UdpSocket::bind(("::", tcp.local_addr().expect("address").port())).expect("bind");
            (tcp, udp)
        });
        let port = tcp.local_addr().expect("address").port();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || echo(stream));
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok((length, from)) = udp.recv_from(&mut bytes) {
                let _ = udp.send_to(&bytes[..length], from);
            }
        });
        port
    });
    *PORT
}

fn echo(mut stream: TcpStream) {
    let mut bytes = vec![0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// A DNS server out there, on port 53: every name has one IPv4 address, [`FAR`].
pub(crate) fn dns_server() {
    static SERVER: LazyLock<()> = LazyLock::new(|| {
        let socket = outside(|| UdpSocket::bind("[::]:53").expect("port 53 outside"));
        std::thread::spawn(move || {
            let mut bytes = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                if let Some(answer) = answer(&bytes[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
    });
    LazyLock::force(&SERVER);
}

/// The answer to a question of one name, RFC 1035 section 4.1.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    end += 5;
    let is_a = question.get(end - 4..end)? == [0, 1, 0, 1];
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(&question[12..end]);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        let IpAddr::V4(address) = FAR.parse().ok()? else { return None };
        answer.extend(address.octets());
    }
    Some(answer)
}

/// Connects, with patience.
#[track_caller]
pub(crate) fn connect(address: &str, port: u16) -> TcpStream {
    try_connect(address, port).unwrap_or_else(|error| panic!("connect to {address} port {port}: {error}"))
}

/// The same, and what came of it.
pub(crate) fn try_connect(address: &str, port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let stream = TcpStream::connect_timeout(&address, patience())?;
    stream.set_read_timeout(Some(patience()))?;
    Ok(stream)
}

/// What is sent back over TCP, up to where it ends as what was sent does.
#[track_caller]
pub(crate) fn over_tcp(address: &str, port: u16, text: &str) -> String {
    try_over_tcp(address, port, text).unwrap_or_else(|error| panic!("{address} port {port}: {error}"))
}

/// The same, and what came of it: pasta takes a connection before it knows that nobody listens inside yet, and resets it then.
pub(crate) fn try_over_tcp(address: &str, port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = try_connect(address, port)?;
    stream.write_all(text.as_bytes())?;
    let (mut back, mut bytes) = (String::new(), [0; 1500]);
    while !back.ends_with(text) {
        match stream.read(&mut bytes)? {
            0 => break,
            length => back.push_str(&String::from_utf8_lossy(&bytes[..length])),
        }
    }
    Ok(back)
}

/// What is sent back over UDP; a lost packet is sent again.
pub(crate) fn over_udp(address: &str, port: u16, text: &str) -> String {
    let socket = UdpSocket::bind(if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).expect("bind");
    socket.set_read_timeout(Some(patience() / 10)).expect("time limit");
    let mut bytes = [0; 1500];
    for _ in 0..10 {
        socket.send_to(text.as_bytes(), (address, port)).expect("send");
        if let Ok(length) = socket.recv(&mut bytes) {
            return String::from_utf8_lossy(&bytes[..length]).into_owned();
        }
    }
    String::new()
}

/// The year of the pasta that is installed, as its program has it in its version; 0 where it has none (Debian 12). It is not asked: into
/// a pipe Debian 13's prints nothing, it ends before it writes out what it has buffered.
pub(crate) fn pasta_year() -> u32 {
    let program = fs::read("/usr/bin/pasta").expect("pasta");
    let year = |bytes: &[u8]| {
        let digits = bytes.strip_prefix(b"0.0~git")?.get(..4)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    program.windows(11).find_map(year).unwrap_or(0)
}

/// Whether nobody listens on a TCP port of this machine, any address.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(("::", port)).is_ok()
}

/// Makes the machine's resolv.conf another one, until this is dropped.
#[derive(Debug)]
pub(crate) struct OtherResolver(Vec<u8>);

impl OtherResolver {
    pub(crate) fn stub(real: &str) -> OtherResolver {
        let own = fs::read("/etc/resolv.conf").expect("resolv.conf");
        fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch stub.example\n")
            .expect("write");
        fs::create_dir_all("/run/systemd/resolve").expect("make a directory");
        fs::write("/run/systemd/resolve/resolv.conf", real).expect("write");
        OtherResolver(own)
    }
}

impl Drop for OtherResolver {
    fn drop(&mut self) {
        let _ = fs::write("/etc/resolv.conf", &self.0);
        let _ = fs::remove_dir_all("/run/systemd/resolve");
    }
}
