//! Facts about this machine's network, read only for a sandbox that is connected to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::doctor::{Distribution, Package};
use crate::enter;
use crate::error::Result;
use crate::living;
use crate::part::network::names;
use crate::spec::network::{Network, NetworkSpec};

/// What was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkFacts {
    /// The program pasta.
    pub(crate) pasta: Option<PathBuf>,
    /// The command that installs it, where that is known.
    pub(crate) install: Option<String>,
    /// A resolv.conf that fits better inside than the host's own.
    pub(crate) resolv_conf: Option<Vec<u8>>,
    /// The gateway of the default route.
    pub(crate) gateway: Option<IpAddr>,
    /// The first process of the sandbox whose network is joined.
    pub(crate) leader: Option<i32>,
}

/// Where systemd-resolved lists the servers that its stub asks, systemd-resolved.service(8).
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

impl NetworkFacts {
    /// Reads what `asked` needs; `own` is the host's resolv.conf.
    ///
    /// # Errors
    /// When the sandbox that is named is not there.
    pub(super) fn read(asked: &NetworkSpec, own: &[u8]) -> Result<NetworkFacts> {
        let mut facts = NetworkFacts::default();
        match &asked.kind {
            Network::None | Network::Host => return Ok(facts),
            Network::Pasta => {
                facts.pasta = program("pasta");
                if facts.pasta.is_none() {
                    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
                    facts.install = Distribution::parse(&release).install(Package::Passt);
                }
                facts.gateway = gateway();
            }
            Network::Namespace(path) => facts.resolv_conf = of_namespace(path),
            Network::Container(name) => {
                let record = living::find(name)?.found.record;
                enter::await_start(&record)?;
                // The stub is hidden from plain users, whose the payload is.
                let is_root = rustix::process::geteuid().is_root();
                let process = if is_root { Some(record.leader) } else { enter::payload(&record) };
                facts.leader = process.map(|process| process.pid);
            }
        }
        if facts.resolv_conf.is_none() && names::is_stub(own) {
            facts.resolv_conf = std::fs::read(UPSTREAM).ok();
        }
        Ok(facts)
    }
}

/// What `ip netns exec` shows as /etc/resolv.conf in a named namespace, ip-netns(8).
fn of_namespace(path: &Path) -> Option<Vec<u8>> {
    let name = path.strip_prefix("/run/netns").or_else(|_| path.strip_prefix("/var/run/netns")).ok()?;
    std::fs::read(Path::new("/etc/netns").join(name).join("resolv.conf")).ok()
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|directory| directory.join(name)).find(|place| place.is_file())
}

fn gateway() -> Option<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = gateway_v4(&read("/proc/net/route")).map(IpAddr::V4);
    v4.or_else(|| gateway_v6(&read("/proc/net/ipv6_route")).map(IpAddr::V6))
}

/// The gateway of the default route of least metric in the text of /proc/net/route.
fn gateway_v4(text: &str) -> Option<Ipv4Addr> {
    let default = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, destination, gateway, _, _, _, metric, mask, ..] = fields.as_slice() else { return None };
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        let is_default = *destination == "00000000" && *mask == "00000000";
        // The bytes are in the order of the wire, printed as one number of this machine.
        is_default.then_some((metric.parse::<u32>().ok()?, Ipv4Addr::from(gateway.to_ne_bytes())))
    };
    text.lines().filter_map(default).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

/// The same for /proc/net/ipv6_route.
fn gateway_v6(text: &str) -> Option<Ipv6Addr> {
    let default = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, bits, _, _, gateway, metric, ..] = fields.as_slice() else { return None };
        let gateway = u128::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        let is_default = *bits == "00" && destination.bytes().all(|b| b == b'0');
        is_default.then_some((u32::from_str_radix(metric, 16).ok()?, Ipv6Addr::from(gateway)))
    };
    text.lines().filter_map(default).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                    eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n\
                    eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(gateway_v4(text), Some(Ipv4Addr::new(192, 168, 1, 1)));
        }
        assert_eq!(gateway_v4("Iface\n"), None);
        let zeros = "0".repeat(32);
        let text = format!(
            "20010db8{0} 40 {zeros} 00 {zeros} 00000100 1 0 1 eth0\n{zeros} 00 {zeros} 00 fe80{1}1 00000400 1 0 3 eth0\n",
            "0".repeat(24),
            "0".repeat(27)
        );
        assert_eq!(gateway_v6(&text), "fe80::1".parse().ok());
    }
}
