//! Published ports: how they are written, and whether the host has them free.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use crate::error::{Fault, Result, fault};

/// What carries the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports of the host that lead to ports inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publish {
    /// The host's address; `None`: all of them, IPv4 and IPv6.
    pub(crate) address: Option<IpAddr>,
    /// The first port of the host; 0: one that is free.
    pub(crate) host_port: u16,
    /// The first port inside.
    pub(crate) port: u16,
    /// How many ports there are from these on.
    pub(crate) count: u16,
    /// What carries the data.
    pub(crate) protocol: Protocol,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        let range = |first: u16| match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", first.saturating_add(count - 1)),
        };
        let host = if self.host_port == 0 { "any".to_owned() } else { range(self.host_port) };
        write!(f, "{host}->{}/{}", range(self.port), self.protocol)
    }
}

/// Reads what `--publish` is given.
///
/// # Errors
/// With what is accepted.
pub(crate) fn parse(text: &str) -> Result<Vec<Publish>> {
    let wrong = || fault(format!("--publish {text}: it is [ADDR:]HOSTPORT:PORT[/tcp|udp]"));
    let (rest, protocol) = protocol(text).ok_or_else(wrong)?;
    let Some((front, inside)) = rest.rsplit_once(':') else {
        return Err(wrong().hint(format!("--publish 0:{text} picks a free port of the host")).into());
    };
    let (address, host) = match front.rsplit_once(':') {
        None => (None, front),
        Some((address, host)) => (Some(address), host),
    };
    let address = match address {
        None => None,
        Some(address) => {
            let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
            let address = match bare {
                Some(bare) => bare.parse().map(IpAddr::V6).ok(),
                None => address.parse().map(IpAddr::V4).ok(),
            };
            Some(address.ok_or_else(|| wrong().hint("an IPv6 address is written in brackets: [::1]:8080:80"))?)
        }
    };
    let (port, count) = range(inside).filter(|(port, _)| *port != 0).ok_or_else(wrong)?;
    let (host_port, host_count) = range(host).ok_or_else(wrong)?;
    if host_port == 0 && host_count == 1 {
        return Ok(picked(address, port, count, protocol));
    }
    if host_port == 0 || host_count != count {
        return Err(fault(format!("--publish {text}: {host_count} ports of the host for {count} inside"))
            .hint("ranges have one length; host port 0 picks one for each port inside")
            .into());
    }
    Ok(vec![Publish { address, host_port, port, count, protocol }])
}

/// Reads a port of an image's EXPOSE: `80`, `53/udp`, `8000-8010/tcp`; each gets a free port of the host.
///
/// # Errors
/// When it is none.
pub(crate) fn parse_exposed(text: &str) -> Result<Vec<Publish>> {
    let wrong = || fault(format!("--publish-all: the image exposes {text:?}, which is no PORT[/tcp|udp]"));
    let (ports, protocol) = protocol(text).ok_or_else(wrong)?;
    let (port, count) = range(ports).filter(|(port, _)| *port != 0).ok_or_else(wrong)?;
    Ok(picked(None, port, count, protocol))
}

fn picked(address: Option<IpAddr>, first: u16, count: u16, protocol: Protocol) -> Vec<Publish> {
    let one = |port| Publish { address, host_port: 0, port, count: 1, protocol };
    (first..=first.saturating_add(count - 1)).map(one).collect()
}

fn protocol(text: &str) -> Option<(&str, Protocol)> {
    match text.split_once('/') {
        None | Some((_, "tcp")) => Some((text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp)),
        Some((ports, "udp")) => Some((ports, Protocol::Udp)),
        Some(_) => None,
    }
}

/// The first port and how many there are.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    match text.split_once('-') {
        None => Some((number(text)?, 1)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            Some((first, last.checked_sub(first)?.checked_add(1)?))
        }
    }
}

/// No port of the host can lead to two places.
///
/// # Errors
/// When one does.
pub(crate) fn check(list: &[Publish]) -> Result<()> {
    for (at, one) in list.iter().enumerate() {
        let overlaps = |other: &&Publish| {
            let ends = |p: &Publish| (u32::from(p.host_port), u32::from(p.host_port) + u32::from(p.count));
            let ((a, b), (c, d)) = (ends(one), ends(other));
            let addresses = one.address.is_none() || other.address.is_none() || one.address == other.address;
            one.host_port != 0 && other.host_port != 0 && one.protocol == other.protocol && addresses && a < d && c < b
        };
        if let Some(other) = list.iter().skip(at + 1).find(overlaps) {
            return Err(fault(format!("--publish: {one} and {other} are the same port of the host")).into());
        }
    }
    Ok(())
}

/// Ports that were picked; nobody else gets them as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Reserved(#[expect(dead_code, reason = "held, never used")] Vec<OwnedFd>);

/// Sees that every port is free, and picks those that may be any.
///
/// # Errors
/// When one is not, with its number.
pub(crate) fn reserve(list: &mut [Publish]) -> Result<Reserved> {
    let mut held = Vec::new();
    for publish in list {
        if publish.host_port == 0 {
            let (port, socket) = pick(publish).map_err(|error| refused(publish, 0, error))?;
            publish.host_port = port;
            // A UDP port that is held could not be bound by anybody else, pasta included.
            held.extend((publish.protocol == Protocol::Tcp).then_some(socket));
            continue;
        }
        for port in (publish.host_port..).take(publish.count.into()) {
            try_out(publish, port).map_err(|error| refused(publish, port, error))?;
        }
    }
    Ok(Reserved(held))
}

fn refused(publish: &Publish, port: u16, error: Errno) -> Fault {
    let what = format!("--publish {publish}: port {port}/{}", publish.protocol);
    match error {
        Errno::ADDRINUSE => fault(format!("{what} is in use on this host")).hint(format!(
            "ss -ln{} sport = :{port} shows it; host port 0 picks a free one",
            match publish.protocol {
                Protocol::Tcp => "tp",
                Protocol::Udp => "up",
            }
        )),
        Errno::ACCESS => fault(format!("{what}: a plain user may not listen there"))
            .hint("a port from 1024 on; or for the whole host: sysctl net.ipv4.ip_unprivileged_port_start=80"),
        Errno::ADDRNOTAVAIL => fault(format!("{what}: this host has no such address")).hint("ip address"),
        error => fault(format!("{what}: {error}")),
    }
}

/// Binds a socket for `publish` at `port`, as pasta will.
fn bound(publish: &Publish, port: u16) -> rustix::io::Result<OwnedFd> {
    let kind = match publish.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let bind = |address: IpAddr| {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        // A connection that has just ended does not keep a port; for UDP this would mean to share it.
        sockopt::set_socket_reuseaddr(&socket, publish.protocol == Protocol::Tcp)?;
        if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            sockopt::set_ipv6_v6only(&socket, publish.address.is_some())?;
        }
        rustix::net::bind(&socket, &SocketAddr::new(address, port))?;
        Ok(socket)
    };
    match publish.address {
        Some(address) => bind(address),
        None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
            // A host without IPv6.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => bind(Ipv4Addr::UNSPECIFIED.into()),
            result => result,
        },
    }
}

fn try_out(publish: &Publish, port: u16) -> rustix::io::Result<()> {
    let socket = bound(publish, port)?;
    match publish.protocol {
        Protocol::Tcp => rustix::net::listen(&socket, 1),
        Protocol::Udp => Ok(()),
    }
}

fn pick(publish: &Publish) -> rustix::io::Result<(u16, OwnedFd)> {
    let socket = bound(publish, 0)?;
    let address: SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
    Ok((address.port(), socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let table = [
            ("8080:80", "8080->80/tcp"),
            ("8080:80/tcp", "8080->80/tcp"),
            ("53:53/udp", "53->53/udp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080->80/udp"),
            ("8000-8009:80-89", "8000-8009->80-89/tcp"),
            ("0:80", "any->80/tcp"),
            ("0:80-81", "any->80/tcp any->81/tcp"),
            ("65535:65535", "65535->65535/tcp"),
        ];
        for (text, want) in table {
            let list: Vec<String> = parse(text).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(list.join(" "), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        let wrong = [
            "80",
            "",
            ":",
            "a:80",
            "80:",
            "80:0",
            "8080:80/sctp",
            "::1:8080:80",
            "8000-8009:80",
            "0-3:80-83",
            "9-8:9-8",
            "1.2.3:1:1",
            "65536:1",
            "+1:1",
            "1:2:3:4",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_port_twice() {
        let list = |texts: &[&str]| {
            let ports: Vec<Publish> = texts.iter().flat_map(|text| parse(text).unwrap()).collect();
            check(&ports).is_ok()
        };
        assert!(list(&["80:80", "81:80", "80:80/udp", "0:1", "0:1"]));
        assert!(list(&["127.0.0.1:80:80", "127.0.0.2:80:80"]));
        assert!(!list(&["80:80", "80:81"]));
        assert!(!list(&["80-90:80-90", "127.0.0.1:85:1"]));
    }

    #[test]
    fn a_port_in_use_is_refused_and_a_picked_one_is_held() {
        // An address that no other program of this machine connects from: such a connection might get the port that is given up below.
        let taken = std::net::TcpListener::bind("127.83.19.7:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut list = parse(&format!("127.83.19.7:{port}:80")).unwrap();
        let line = reserve(&mut list).unwrap_err().to_string();
        assert_eq!(line, format!("--publish 127.83.19.7:{port}->80/tcp: port {port}/tcp is in use on this host"));
        drop(taken);
        reserve(&mut list).unwrap();
        let mut picked = [parse("0:80-99").unwrap(), parse("0:53/udp").unwrap()].concat();
        let _held = reserve(&mut picked).unwrap();
        let mut ports: Vec<u16> = picked.iter().filter(|p| p.protocol == Protocol::Tcp).map(|p| p.host_port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
        // Whoever does as pasta does gets it, whoever does not does not.
        let port = ports[0];
        assert!(std::net::UdpSocket::bind(("0.0.0.0", picked[20].host_port)).is_ok());
        try_out(&parse(&format!("{port}:80")).unwrap()[0], port).unwrap();
    }
}
