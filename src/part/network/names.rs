//! /etc/resolv.conf and the lines of --add-host, as they work inside.

use std::net::IpAddr;

use crate::host::Host;
use crate::spec::network::{Network, NetworkSpec};

/// Content of /etc/resolv.conf inside, resolv.conf(5).
pub(crate) fn resolv_conf(asked: &NetworkSpec, host: &Host) -> String {
    let own = String::from_utf8_lossy(&host.resolv_conf);
    let base = match &asked.kind {
        // With the loopback interface alone, or with the host's, the host's file is as good as it can be.
        Network::None | Network::Host => own.into_owned(),
        Network::Namespace(_) | Network::Container(_) | Network::Pasta => {
            let found = host.network.resolv_conf.as_ref().map(|text| String::from_utf8_lossy(text).into_owned());
            lines(&found.unwrap_or(own.into_owned()), |line| server(line).is_none_or(|address| !address.is_loopback()))
        }
    };
    let mut text = lines(&base, |line| {
        let replaced = (server(line).is_some() && !asked.dns.is_empty())
            || (matches!(keyword(line), "search" | "domain") && !asked.search.is_empty());
        !replaced
    });
    if !asked.search.is_empty() {
        text.push_str(&format!("search {}\n", asked.search.join(" ")));
    }
    asked.dns.iter().for_each(|address| text.push_str(&format!("nameserver {address}\n")));
    text
}

/// The warning for a sandbox that has a way out and no DNS server to ask.
pub(crate) fn without_server(asked: &NetworkSpec, host: &Host) -> Option<String> {
    let has_server = resolv_conf(asked, host).lines().any(|line| server(line).is_some());
    (asked.kind == Network::Pasta && !has_server).then(|| {
        "no names can be looked up inside: the host has no DNS server but on its own loopback interface (--dns ADDR names one)".into()
    })
}

/// Every server of a resolv.conf is on the host's own loopback interface: a stub, which is somebody else's or nobody inside.
pub(crate) fn is_stub(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut servers = text.lines().filter_map(server).peekable();
    servers.peek().is_some() && servers.all(|address| address.is_loopback())
}

/// Lines of /etc/hosts for --add-host.
pub(crate) fn hosts(asked: &NetworkSpec, host: &Host) -> String {
    let gateway = gateway(asked, host);
    let line = |(name, address): (&str, IpAddr)| format!("{address}\t{name}\n");
    asked.hosts.iter().filter_map(|line| Some((line.name.as_str(), line.address.or(gateway)?))).map(line).collect()
}

/// The address that reaches the host, where there is one.
pub(crate) fn gateway(asked: &NetworkSpec, host: &Host) -> Option<IpAddr> {
    match asked.kind {
        Network::Host => Some(IpAddr::from([127, 0, 0, 1])),
        Network::Pasta => host.network.gateway,
        Network::None | Network::Namespace(_) | Network::Container(_) => None,
    }
}

fn keyword(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
    // An IPv6 address may name its interface.
    address.split('%').next()?.parse().ok()
}

fn lines(text: &str, keep: impl Fn(&str) -> bool) -> String {
    text.lines().filter(|line| keep(line)).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::network::HostLine;

    fn asked(kind: Network) -> NetworkSpec {
        NetworkSpec { kind, publish: Vec::new(), dns: Vec::new(), search: Vec::new(), hosts: Vec::new() }
    }

    fn host(own: &str, real: Option<&str>) -> Host {
        let mut host = Host { resolv_conf: own.into(), ..Host::default() };
        host.network.resolv_conf = real.map(Into::into);
        host.network.gateway = "192.0.2.1".parse().ok();
        host
    }

    const STUB: &str = "# by systemd\nnameserver 127.0.0.53\noptions edns0\nsearch lan\n";

    #[test]
    fn the_real_servers_where_the_stub_cannot_be_reached() {
        let host = host(STUB, Some("nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch lan\n"));
        for kind in [Network::None, Network::Host] {
            assert_eq!(resolv_conf(&asked(kind), &host), STUB);
        }
        assert_eq!(
            resolv_conf(&asked(Network::Pasta), &host),
            "nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch lan\n"
        );
        assert_eq!(without_server(&asked(Network::Pasta), &host), None);
    }

    #[test]
    fn a_loopback_server_alone_is_none() {
        let host = host("nameserver 127.0.0.1\nnameserver ::1\noptions ndots:2\n", None);
        assert_eq!(resolv_conf(&asked(Network::Pasta), &host), "options ndots:2\n");
        assert!(without_server(&asked(Network::Pasta), &host).is_some());
        assert!(is_stub(&host.resolv_conf) && is_stub(STUB.as_bytes()));
        assert!(!is_stub(b"") && !is_stub(b"nameserver 127.0.0.53\nnameserver 10.0.0.1\n"));
    }

    #[test]
    fn what_is_asked_replaces_what_is_found() {
        let host = host(STUB, None);
        let mut asked = asked(Network::None);
        asked.dns = vec![IpAddr::from([9, 9, 9, 9])];
        assert_eq!(resolv_conf(&asked, &host), "# by systemd\noptions edns0\nsearch lan\nnameserver 9.9.9.9\n");
        asked.search = vec!["example.org".into(), "b".into()];
        assert_eq!(
            resolv_conf(&asked, &host),
            "# by systemd\noptions edns0\nsearch example.org b\nnameserver 9.9.9.9\n"
        );
    }

    #[test]
    fn hosts_by_kind_of_network() {
        let host = host("", None);
        let with = |kind| {
            let named = |name: &str, address: Option<&str>| HostLine {
                name: name.into(),
                address: address.map(|address| address.parse().unwrap()),
            };
            let lines = vec![named("db", Some("2001:db8::1")), named("up", None)];
            hosts(&NetworkSpec { hosts: lines, ..asked(kind) }, &host)
        };
        assert_eq!(with(Network::Pasta), "2001:db8::1\tdb\n192.0.2.1\tup\n");
        assert_eq!(with(Network::Host), "2001:db8::1\tdb\n127.0.0.1\tup\n");
        assert_eq!(with(Network::None), "2001:db8::1\tdb\n");
    }
}
