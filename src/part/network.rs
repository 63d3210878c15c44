//! The network: a namespace of its own with the loopback interface up, the host's, one that is there already, or one of its own
//! whose traffic a pasta process carries.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::Host;
use crate::part::users::UserPlan;
use crate::spec::Spec;
use crate::spec::network::Network;
use crate::sys;

pub(crate) mod join;
pub(crate) mod names;
pub(crate) mod pasta;
pub(crate) mod publish;

use join::JoinPlan;
use publish::{Publish, Reserved};

/// The network, decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum NetworkPlan {
    /// A namespace of its own with the loopback interface.
    None,
    /// The host's.
    Host,
    /// One that is there already.
    Join(JoinPlan),
    /// A namespace of its own, and pasta.
    Pasta(PastaPlan),
}

/// The pasta process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PastaPlan {
    /// Its program.
    pub(crate) program: PathBuf,
    /// Ports that are reached from outside.
    pub(crate) publish: Vec<Publish>,
    /// The gateway's address leads to the host.
    pub(crate) reach_host: bool,
    /// Only root's may open low ports of the host.
    pub(crate) root: bool,
}

/// Decides the network; `warnings` gets a line for what will not work inside.
///
/// # Errors
/// When it cannot be had here.
pub(crate) fn plan(spec: &Spec, host: &Host, users: &UserPlan, warnings: &mut Vec<String>) -> Result<NetworkPlan> {
    let asked = &spec.network;
    warnings.extend(names::without_server(asked, host));
    let reach_host = asked.hosts.iter().find(|line| line.address.is_none());
    if let Some(line) = reach_host.filter(|_| names::gateway(asked, host).is_none()) {
        let fault = fault(format!("--add-host {}:host-gateway: there is no address that reaches the host", line.name));
        return Err(match asked.kind {
            Network::Pasta => fault.hint("the host has no gateway whose address could stand for it: ip route"),
            _ => fault.hint("--network pasta, or --network host"),
        }
        .into());
    }
    let join = |asked, path| Ok(NetworkPlan::Join(JoinPlan { asked, path, root: host.uid == 0 }));
    match &asked.kind {
        Network::None => Ok(NetworkPlan::None),
        Network::Host => Ok(NetworkPlan::Host),
        Network::Namespace(path) => join(format!("ns:{}", path.display()), path.clone()),
        Network::Container(name) => {
            let leader = host.network.leader.unwrap_or_default();
            join(format!("container:{name}"), format!("/proc/{leader}/ns/net").into())
        }
        Network::Pasta => {
            if matches!(users, UserPlan::Host) {
                return Err(fault("--network pasta needs a user namespace: pasta would keep rights over the host")
                    .hint("leave --userns host out")
                    .into());
            }
            let program = host.network.pasta.clone().ok_or_else(|| {
                let install = host.network.install.clone();
                fault("--network pasta: the program pasta is not installed")
                    .hint(install.unwrap_or_else(|| "install passt, https://passt.top".into()))
            })?;
            let (publish, reach_host) = (asked.publish.clone(), reach_host.is_some());
            Ok(NetworkPlan::Pasta(PastaPlan { program, publish, reach_host, root: host.uid == 0 }))
        }
    }
}

impl NetworkPlan {
    /// The pasta process, where there is one.
    pub(crate) fn pasta(&self) -> Option<&PastaPlan> {
        match self {
            NetworkPlan::Pasta(pasta) => Some(pasta),
            NetworkPlan::None | NetworkPlan::Host | NetworkPlan::Join(_) => None,
        }
    }

    /// Whether something in a sandbox without a network has tried to reach one, as the kernel counts it in the namespace of `pid`: no
    /// route, or nobody at the DNS server that the host has on its own loopback interface.
    pub(crate) fn was_missed(&self, pid: Pid) -> bool {
        if *self != NetworkPlan::None {
            return false;
        }
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/{}/net/{name}", pid.as_raw_nonzero())).unwrap_or_default()
        };
        let (v4, v6) = (read("snmp"), read("snmp6"));
        let asked_a_stub = || {
            counted(&v4, "Udp:", "NoPorts") > 0
                && std::fs::read("/etc/resolv.conf").is_ok_and(|text| names::is_stub(&text))
        };
        counted(&v4, "Ip:", "OutNoRoutes") > 0 || counted_v6(&v6, "Ip6OutNoRoutes") > 0 || asked_a_stub()
    }

    /// The namespace that is joined, where one is.
    pub(crate) fn join(&self) -> Option<&JoinPlan> {
        match self {
            NetworkPlan::Join(join) => Some(join),
            NetworkPlan::None | NetworkPlan::Host | NetworkPlan::Pasta(_) => None,
        }
    }

    /// Ports that are reached from outside.
    pub(crate) fn published(&self) -> &[Publish] {
        self.pasta().map_or(&[], |pasta| &pasta.publish)
    }

    /// Sees that every port to publish is free, and picks those that may be any: the plan has them then.
    ///
    /// # Errors
    /// When one is in use, or may not be used.
    pub(crate) fn reserve(&mut self) -> Result<Reserved> {
        match self {
            NetworkPlan::Pasta(pasta) => publish::reserve(&mut pasta.publish),
            NetworkPlan::None | NetworkPlan::Host | NetworkPlan::Join(_) => Ok(Reserved::default()),
        }
    }
}

impl fmt::Display for NetworkPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkPlan::None => f.write_str("a loopback interface"),
            NetworkPlan::Host => f.write_str("the host's"),
            NetworkPlan::Join(join) => write!(f, "{}, by {}", join.asked, join.path.display()),
            NetworkPlan::Pasta(pasta) => {
                write!(f, "out through {}", pasta.program.display())?;
                if pasta.reach_host { f.write_str(", the host at its gateway's address") } else { Ok(()) }
            }
        }
    }
}

/// A number of /proc/net/snmp: a line of names, then one of numbers, proc_pid_net(5).
fn counted(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(group));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
    pairs.find(|(found, _)| *found == name).and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

/// The same of /proc/net/snmp6: a name and a number in each line.
fn counted_v6(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Makes a network namespace and brings its loopback interface up.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unshare() -> Result<()> {
    sys::unshare(libc::CLONE_NEWNET).context("unshare the network namespace")?;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("make a socket to set lo up")?;
    sys::interface_up(socket.as_fd(), "lo").context("set lo up")
}

/// Settings of a network namespace with pasta, ip-sysctl. Nobody else is on that link, so whether another one has the address need not
/// be waited for; a server that does not run as root may listen on port 80, as with Docker; and a connection has at most 256 KiB under
/// way to pasta. What pasta cannot hand on at once it drops without a word (seen with those of 2023, 2025 and 2026), the sender learns
/// of it by a timer that doubles, and with the kernel's 4 MiB a download out of a sandbox stood still for up to a minute.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/tcp_wmem", "4096 16384 262144"),
];

/// This process's own network namespace, for pasta.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn own_namespace() -> Result<OwnedFd> {
    for (setting, value) in SETTINGS {
        if let Err(error) = std::fs::write(format!("/proc/sys/net/{setting}"), value) {
            log::debug!("net/{setting} stays as it is: {error}");
        }
    }
    Ok(File::open("/proc/self/ns/net").context("open the network namespace")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        let text = "Ip: Forwarding OutNoRoutes\nIp: 1 3\nUdp: InDatagrams NoPorts\nUdp: 7 5\n";
        assert_eq!((counted(text, "Ip:", "OutNoRoutes"), counted(text, "Udp:", "NoPorts")), (3, 5));
        assert_eq!((counted(text, "Tcp:", "NoPorts"), counted("", "Ip:", "x")), (0, 0));
        let text = "Ip6InReceives                   \t9\nIp6OutNoRoutes                  \t4\n";
        assert_eq!((counted_v6(text, "Ip6OutNoRoutes"), counted_v6(text, "Ip6Out")), (4, 0));
    }
}
