//! From the text of a property to its value on the bus: one function a kind, as `systemd-run -p` does it.

use std::net::IpAddr;

use crate::error::{Result, fault};
use crate::value::{self, CpuSet, SizeOrPercent};

use super::Value;
use super::table::{Kind, Property};

fn wrong(text: &str, accepted: &str) -> anyhow::Error {
    fault(format!("`{text}` is not accepted: give {accepted}")).into()
}

/// Reads `text` as a value of `property`: its name on the bus and its value there.
pub(super) fn convert(property: &Property, text: &str) -> Result<(String, Value)> {
    let name = property.bus_name();
    let value = match property.kind {
        Kind::Memory { least, default } => return memory(property.name, text, least, default),
        Kind::Tasks => return tasks(property.name, text),
        Kind::Delegate => return delegate(text),
        Kind::Text => Value::Text(text.to_owned()),
        Kind::Choice(words) => choice(text, words)?,
        Kind::Bool => Value::Bool(value::boolean(text)?),
        Kind::Words => Value::Texts(words(text)),
        Kind::Weight { least, most, idle } => weight(text, least, most, idle)?,
        Kind::Quota if text.is_empty() => Value::U64(value::INFINITY),
        Kind::Quota => Value::U64(value::cpu_quota(text)?),
        Kind::Time => Value::U64(value::time_span(text)?),
        Kind::Cpus => Value::Bytes(if text.is_empty() { Vec::new() } else { CpuSet::parse(text)?.mask() }),
        Kind::DeviceAccess => device_access(text)?,
        Kind::DeviceRate => devices(text, rate)?,
        Kind::DeviceWeight { least, most } => devices(text, |text| value::number_in(text, least, most))?,
        Kind::DeviceTime => devices(text, value::time_span)?,
        Kind::Addresses => addresses(text)?,
        Kind::Path => path(property.name, text)?,
        Kind::Program => program(text)?,
        Kind::Ports => ports(text)?,
        Kind::Interfaces => interfaces(text)?,
        Kind::NftSets => Value::NftSets(words(text).iter().map(|word| nft_set(word)).collect::<Result<_>>()?),
        Kind::Signal => Value::I32(value::signal(text)?),
        Kind::Share => Value::U32(value::scale(value::permyriad(text)?)),
        Kind::ExitStatus if text.is_empty() => Value::I32(-1),
        Kind::ExitStatus => Value::I32(i32::try_from(value::number_in(text, 0, 255)?)?),
        Kind::Number => Value::U32(u32::try_from(value::number_in(text, 0, u64::from(u32::MAX))?)?),
        Kind::Condition => condition(property.name, text),
    };
    Ok((name, value))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn choice(text: &str, words: &[&str]) -> Result<Value> {
    if words.contains(&text) {
        Ok(Value::Text(text.to_owned()))
    } else {
        Err(wrong(text, &format!("one of {}", words.join(", "))))
    }
}

fn weight(text: &str, least: u64, most: u64, idle: bool) -> Result<Value> {
    match text {
        "idle" if idle => Ok(Value::U64(0)),
        // systemd's CGROUP_WEIGHT_INVALID: back to the default.
        "" => Ok(Value::U64(u64::MAX)),
        _ => Ok(Value::U64(value::number_in(text, least, most)?)),
    }
}

/// A percentage goes out under another name, since only systemd knows what memory it may give away.
fn memory(name: &str, text: &str, least: u64, default: u64) -> Result<(String, Value)> {
    if text.is_empty() {
        return Ok((name.to_owned(), Value::U64(default)));
    }
    match SizeOrPercent::parse(text, value::size)? {
        SizeOrPercent::Absolute(bytes) if bytes < least => {
            Err(wrong(text, &format!("at least {least} bytes, one page")))
        }
        SizeOrPercent::Absolute(bytes) => Ok((name.to_owned(), Value::U64(bytes))),
        SizeOrPercent::Permyriad(_) if name.starts_with("Startup") => Err(wrong(text, "bytes or `infinity`")),
        SizeOrPercent::Permyriad(0) if least > 0 => Err(wrong(text, "a percentage above 0")),
        SizeOrPercent::Permyriad(share) => Ok((format!("{name}Scale"), Value::U32(value::scale(share)))),
    }
}

fn tasks(name: &str, text: &str) -> Result<(String, Value)> {
    if text.is_empty() {
        return Ok((name.to_owned(), Value::U64(value::INFINITY)));
    }
    match SizeOrPercent::parse(text, |text| value::number_in(text, 1, u64::from(u32::MAX)))? {
        SizeOrPercent::Absolute(tasks) => Ok((name.to_owned(), Value::U64(tasks))),
        SizeOrPercent::Permyriad(0) => Err(wrong(text, "a percentage above 0")),
        SizeOrPercent::Permyriad(share) => Ok((format!("{name}Scale"), Value::U32(value::scale(share)))),
    }
}

fn delegate(text: &str) -> Result<(String, Value)> {
    const CONTROLLERS: &[&str] = &["cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"];
    if let Ok(yes) = value::boolean(text) {
        return Ok(("Delegate".to_owned(), Value::Bool(yes)));
    }
    let controllers = words(text);
    match controllers.iter().find(|word| !CONTROLLERS.contains(&word.as_str()) && !word.starts_with("bpf-")) {
        Some(word) => Err(wrong(word, &format!("yes, no, or some of {}", CONTROLLERS.join(", ")))),
        None => Ok(("DelegateControllers".to_owned(), Value::Texts(controllers))),
    }
}

fn device_access(text: &str) -> Result<Value> {
    if text.is_empty() {
        return Ok(Value::Pairs(Vec::new()));
    }
    let (node, access) = text.split_once(' ').unwrap_or((text, "rwm"));
    let known =
        ["/dev/", "/run/systemd/inaccessible/", "block-", "char-"].iter().any(|prefix| node.starts_with(prefix));
    if !known {
        return Err(wrong(node, "a node below /dev/, or a group of devices (char-pts, block-*)"));
    }
    let access = access.trim();
    if access.is_empty() || !access.bytes().all(|letter| b"rwm".contains(&letter)) {
        return Err(wrong(access, "some of r, w and m"));
    }
    Ok(Value::Pairs(vec![(node.to_owned(), access.to_owned())]))
}

/// Bandwidths count with base 1000, and so do operations a second.
fn rate(text: &str) -> Result<u64> {
    if value::is_infinity(text) {
        return Ok(value::INFINITY);
    }
    match value::size_decimal(text)? {
        0 => Err(wrong(text, "a rate above 0")),
        rate => Ok(rate),
    }
}

fn devices(text: &str, amount: impl Fn(&str) -> Result<u64>) -> Result<Value> {
    if text.is_empty() {
        return Ok(Value::Devices(Vec::new()));
    }
    match text.rsplit_once(' ') {
        Some((path, number)) if path.starts_with('/') => {
            Ok(Value::Devices(vec![(path.trim_end().to_owned(), amount(number)?)]))
        }
        _ => Err(wrong(text, "a device or a path on it and a number, as in `PATH 10M`")),
    }
}

/// systemd's words for address ranges (systemd.resource-control(5), IPAddressAllow=).
const RANGES: &[(&str, &[&str])] = &[
    ("any", &["0.0.0.0/0", "::/0"]),
    ("localhost", &["127.0.0.0/8", "::1/128"]),
    ("link-local", &["169.254.0.0/16", "fe80::/64"]),
    ("multicast", &["224.0.0.0/4", "ff00::/8"]),
];

fn addresses(text: &str) -> Result<Value> {
    let mut addresses = Vec::new();
    for word in text.split_whitespace() {
        match RANGES.iter().find(|(name, _)| *name == word) {
            Some((_, ranges)) => addresses.extend(ranges.iter().filter_map(|range| address(range))),
            None => addresses.push(address(word).ok_or_else(|| {
                wrong(word, "addresses in CIDR form (10.0.0.0/8, ::1), any, localhost, link-local or multicast")
            })?),
        }
    }
    Ok(Value::Addresses(addresses))
}

/// One address as the bus takes it; bits behind the prefix are cleared, since systemd's trie would keep them.
fn address(text: &str) -> Option<(i32, Vec<u8>, u32)> {
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let (family, mut bytes) = match ip.parse().ok()? {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let bits = u32::try_from(bytes.len()).ok()? * 8;
    let prefix = prefix.map_or(Some(bits), |prefix| u32::try_from(value::number(prefix).ok()?).ok())?;
    if prefix > bits {
        return None;
    }
    for (first_bit, byte) in (0..bits).step_by(8).zip(bytes.iter_mut()) {
        let kept = prefix.saturating_sub(first_bit).min(8);
        *byte &= u8::MAX.checked_shl(8 - kept).unwrap_or(0);
    }
    Some((family, bytes, prefix))
}

fn path(name: &str, text: &str) -> Result<Value> {
    if !text.starts_with('/') {
        return Err(wrong(text, "an absolute path"));
    }
    let list = name.ends_with("FilterPath");
    Ok(if list { Value::Texts(vec![text.to_owned()]) } else { Value::Text(text.to_owned()) })
}

/// The attach types of `BPFProgram=` by systemd's names, and the kernel's numbers for them (`enum bpf_attach_type`).
pub(crate) const ATTACH_TYPES: &[(&str, u32)] = &[
    ("ingress", 0),
    ("egress", 1),
    ("sock_create", 2),
    ("sock_ops", 3),
    ("device", 6),
    ("bind4", 8),
    ("bind6", 9),
    ("connect4", 10),
    ("connect6", 11),
    ("post_bind4", 12),
    ("post_bind6", 13),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("sysctl", 18),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getsockopt", 21),
    ("setsockopt", 22),
];

fn program(text: &str) -> Result<Value> {
    match text.split_once(':') {
        Some((kind, path)) if path.starts_with('/') && ATTACH_TYPES.iter().any(|(name, _)| *name == kind) => {
            Ok(Value::Pairs(vec![(kind.to_owned(), path.to_owned())]))
        }
        _ => {
            let kinds = ATTACH_TYPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            Err(wrong(text, &format!("TYPE:/sys/fs/bpf/PATH, TYPE one of {kinds}")))
        }
    }
}

/// `[ipv4:|ipv6:][tcp:|udp:]PORT[-PORT]`, where `any` stands for all ports.
fn ports(text: &str) -> Result<Value> {
    if text.is_empty() {
        return Ok(Value::Ports(Vec::new()));
    }
    let mut rest = text;
    let mut token = |words: &[(&str, i32)]| {
        for (word, number) in words {
            let after = rest.strip_prefix(word).filter(|after| after.is_empty() || after.starts_with(':'));
            if let Some(after) = after {
                rest = after.strip_prefix(':').unwrap_or(after);
                return *number;
            }
        }
        0
    };
    let family = token(&[("ipv4", libc::AF_INET), ("ipv6", libc::AF_INET6)]);
    let protocol = token(&[("tcp", libc::IPPROTO_TCP), ("udp", libc::IPPROTO_UDP)]);
    let range = match rest {
        "any" => Some((0, 0)),
        "" if rest.len() < text.len() && !text.ends_with(':') => Some((0, 0)),
        _ => port_range(rest),
    };
    let Some((count, first)) = range else {
        return Err(wrong(text, "[ipv4:|ipv6:][tcp:|udp:] and a port from 1 to 65535, a range of ports or `any`"));
    };
    Ok(Value::Ports(vec![(family, protocol, count, first)]))
}

/// A port or a range as number of ports and first port.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let port = |text| value::number_in(text, 1, 65_535).ok().and_then(|port| u16::try_from(port).ok());
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    Some((last.checked_sub(first)?.checked_add(1)?, first))
}

fn interfaces(text: &str) -> Result<Value> {
    let (allowed, names) = text.strip_prefix('~').map_or((true, text), |rest| (false, rest));
    let names = words(names);
    match names.iter().find(|name| name.len() > 15 || name.contains('/')) {
        Some(name) => Err(wrong(name, "names of network interfaces")),
        None => Ok(Value::Interfaces((allowed, names))),
    }
}

/// `SOURCE:FAMILY:TABLE:SET`, numbered as systemd's `NFTSetSource` and the kernel's `NFPROTO_…`.
fn nft_set(text: &str) -> Result<(i32, i32, String, String)> {
    const SOURCES: &[(&str, i32)] = &[("cgroup", 3), ("user", 4), ("group", 5)];
    const FAMILIES: &[(&str, i32)] = &[("inet", 1), ("ip", 2), ("arp", 3), ("netdev", 5), ("bridge", 7), ("ip6", 10)];
    let number = |table: &[(&str, i32)], word: &str| table.iter().find(|(name, _)| *name == word).map(|(_, n)| *n);
    let parts: Vec<_> = text.split(':').collect();
    if let [source, family, table, set] = parts[..]
        && let (Some(source), Some(family)) = (number(SOURCES, source), number(FAMILIES, family))
        && !set.is_empty()
    {
        return Ok((source, family, table.to_owned(), set.to_owned()));
    }
    Err(wrong(text, "cgroup:FAMILY:TABLE:SET, FAMILY one of inet, ip, ip6, arp, bridge, netdev"))
}

/// A leading `|` makes it one of several triggers, a `!` negates it (systemd.unit(5)).
fn condition(name: &str, text: &str) -> Value {
    if text.is_empty() {
        return Value::Conditions(Vec::new());
    }
    let (trigger, rest) = text.strip_prefix('|').map_or((false, text), |rest| (true, rest));
    let (negate, rest) = rest.strip_prefix('!').map_or((false, rest), |rest| (true, rest));
    Value::Conditions(vec![(name.to_owned(), trigger, negate, rest.to_owned())])
}
