//! The network that is asked for.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::{Result, fault};
use crate::layer::{Layer, Namespace};
use crate::part::network::publish::{self, Publish};

use super::absolute;

/// Where packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// A namespace of its own with the loopback interface.
    None,
    /// The host's.
    Host,
    /// One that is there, by the path of a file that stands for it.
    Namespace(PathBuf),
    /// That of another sandbox, by its name.
    Container(String),
    /// A namespace of its own, and a pasta process that carries its traffic.
    Pasta,
}

/// Everything about the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkSpec {
    /// Where packets go.
    pub(crate) kind: Network,
    /// Ports that are reached from outside.
    pub(crate) publish: Vec<Publish>,
    /// DNS servers; none: the host's.
    pub(crate) dns: Vec<IpAddr>,
    /// Domains that short names are looked up in; none: the host's.
    pub(crate) search: Vec<String>,
    /// Lines more in /etc/hosts.
    pub(crate) hosts: Vec<HostLine>,
}

impl NetworkSpec {
    /// Whether it is a namespace that is there already, other than the host's.
    pub(crate) fn is_joined(&self) -> bool {
        matches!(self.kind, Network::Namespace(_) | Network::Container(_))
    }
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostLine {
    /// The name.
    pub(crate) name: String,
    /// Its address; `None`: one that reaches the host.
    pub(crate) address: Option<IpAddr>,
}

/// Reads the flags; `share` is what `--share` says.
pub(super) fn network(layer: &Layer, share: &[Namespace]) -> Result<NetworkSpec> {
    let shared = share.contains(&Namespace::Net);
    let kind = match layer.network.as_deref() {
        None if shared => Network::Host,
        None => Network::None,
        Some(asked) => kind(asked)?,
    };
    if shared && kind != Network::Host {
        let asked = layer.network.as_deref().unwrap_or_default();
        let line = format!("--network {asked} and --share net ask for different things");
        return Err(fault(line).hint("give only one of them").into());
    }
    let mut ports = layer.publish.iter().map(|text| publish::parse(text)).collect::<Result<Vec<_>>>()?.concat();
    if layer.publish_all == Some(true) {
        ports.extend(exposed(layer)?);
    }
    publish::check(&ports)?;
    if kind != Network::Pasta && !ports.is_empty() {
        let flag = if layer.publish.is_empty() { "--publish-all" } else { "--publish" };
        let hint = match kind {
            Network::Host => "with --network host what listens inside is reached as it is",
            _ => "--network pasta",
        };
        return Err(fault(format!("{flag} needs --network pasta")).hint(hint).into());
    }
    if kind == Network::Pasta
        && let Some(allowed) = layer.allow_bind.first()
    {
        let line =
            format!("--allow-bind {allowed} would hold for pasta as well, which could open no connection any more");
        return Err(fault(line).hint("what was not published is not reached from outside: leave it out").into());
    }
    Ok(NetworkSpec {
        kind,
        publish: ports,
        dns: layer.dns.iter().map(|text| dns(text)).collect::<Result<_>>()?,
        search: layer.dns_search.iter().map(|text| domain(text)).collect::<Result<_>>()?,
        hosts: layer.add_host.iter().map(|text| host_line(text)).collect::<Result<_>>()?,
    })
}

fn kind(asked: &str) -> Result<Network> {
    let known = "it is none, host, pasta, ns:/run/netns/NAME or container:NAME";
    match (asked, asked.split_once(':')) {
        ("none", _) => Ok(Network::None),
        ("host", _) => Ok(Network::Host),
        ("pasta", _) => Ok(Network::Pasta),
        (_, Some(("ns", path))) if !path.is_empty() => {
            absolute("--network ns:", path.as_ref()).map(Network::Namespace).map_err(|_| {
                fault(format!("--network {asked}: a network namespace is named by a path that begins with /"))
                    .hint(format!("--network ns:/run/netns/{path}"))
                    .into()
            })
        }
        (_, Some(("container", name))) if !name.is_empty() => Ok(Network::Container(name.to_owned())),
        _ => Err(fault(format!("--network {asked}: {known}")).into()),
    }
}

fn exposed(layer: &Layer) -> Result<Vec<Publish>> {
    if layer.exposed.is_empty() {
        return Err(fault("--publish-all: there is no image that exposes a port")
            .hint("--publish HOSTPORT:PORT names one; `sandbox image inspect NAME` shows what an image exposes")
            .into());
    }
    Ok(layer.exposed.iter().map(|text| publish::parse_exposed(text)).collect::<Result<Vec<_>>>()?.concat())
}

fn dns(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| fault(format!("--dns {text}: it is an IPv4 or IPv6 address")).into())
}

/// A name as DNS and /etc/hosts have it: letters, digits, dashes and underscores in parts with dots between.
fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) && part.len() < 64
    };
    text.len() < 254 && text.split('.').all(part)
}

fn domain(text: &str) -> Result<String> {
    // A lone dot is resolv.conf(5)'s word for no domain at all.
    if text == "." || is_name(text.trim_end_matches('.')) {
        return Ok(text.to_owned());
    }
    Err(fault(format!("--dns-search {text}: it is a domain name, or . for none")).into())
}

fn host_line(text: &str) -> Result<HostLine> {
    let wrong = || fault(format!("--add-host {text}: it is NAME:ADDR, with an IP address or the word host-gateway"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    if !is_name(name) {
        return Err(wrong().into());
    }
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    let address = match bare {
        "host-gateway" => None,
        address => Some(address.parse().map_err(|_| wrong())?),
    };
    Ok(HostLine { name: name.to_owned(), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(layer: Layer, share: &[Namespace]) -> std::result::Result<NetworkSpec, String> {
        network(&layer, share).map_err(|error| error.to_string())
    }

    fn named(text: &str) -> Layer {
        Layer { network: Some(text.into()), ..Layer::default() }
    }

    #[test]
    fn kinds() {
        let table = [
            ("none", Some(Network::None)),
            ("host", Some(Network::Host)),
            ("pasta", Some(Network::Pasta)),
            ("ns:/run/netns/a", Some(Network::Namespace("/run/netns/a".into()))),
            ("container:web", Some(Network::Container("web".into()))),
            ("ns:a", None),
            ("ns:", None),
            ("container:", None),
            ("bridge", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(read(named(text), &[]).ok().map(|spec| spec.kind), want, "{text}");
        }
        assert_eq!(read(Layer::default(), &[]).unwrap().kind, Network::None);
        assert_eq!(read(Layer::default(), &[Namespace::Net]).unwrap().kind, Network::Host);
        assert!(read(named("pasta"), &[Namespace::Net]).unwrap_err().contains("--share net"));
    }

    #[test]
    fn ports_need_pasta() {
        let ports = |network: &str| {
            read(Layer { publish: vec!["8080:80".into()], ..named(network) }, &[]).map(|spec| spec.publish.len())
        };
        assert_eq!(ports("pasta"), Ok(1));
        assert_eq!(ports("none").unwrap_err(), "--publish needs --network pasta");
        assert_eq!(ports("host").unwrap_err(), "--publish needs --network pasta");
        let all = |exposed: &[&str]| {
            let exposed = exposed.iter().map(|text| (*text).to_owned()).collect();
            read(Layer { publish_all: Some(true), exposed, ..named("pasta") }, &[]).map(|spec| spec.publish.len())
        };
        assert_eq!(all(&["80/tcp", "53/udp", "8000-8002"]), Ok(5));
        assert!(all(&[]).is_err());
    }

    #[test]
    fn pasta_is_bound_by_what_is_said_of_binding() {
        let bind = |network: &str| read(Layer { allow_bind: vec!["80".into()], ..named(network) }, &[]);
        assert!(bind("pasta").is_err() && bind("host").is_ok() && bind("none").is_ok());
    }

    #[test]
    fn names_and_addresses() {
        let lines = ["db:10.0.0.1", "v6:2001:db8::1", "v6:[::1]", "a.b-c=10.0.0.1", "host:host-gateway"];
        for line in lines {
            assert!(host_line(line).is_ok(), "{line}");
        }
        for line in ["db", "db:", ":10.0.0.1", "a b:10.0.0.1", "a\n1.1.1.1 b:10.0.0.1", "db:there"] {
            assert!(host_line(line).is_err(), "{line}");
        }
        assert!(domain("example.org").is_ok() && domain(".").is_ok());
        for text in ["", "a b", "a\nnameserver 1.1.1.1"] {
            assert!(domain(text).is_err(), "{text}");
        }
        assert!(dns("::1").is_ok() && dns("1.1.1").is_err());
    }
}
