//! Unit properties as users write them (`CPUQuota=20%`), typed, and as systemd's bus takes them (`CPUQuotaPerSecUSec` t).
//!
//! What systemd accepts is data: [`table`]. How a value is read is one function a kind: [`convert`].

mod convert;
mod table;

use serde::{Deserialize, Serialize};

use crate::error::{Result, fault};
use crate::nearest::nearest;

use super::own::{self, OwnSetting};
use super::translate;
use table::Property;

/// The value of a property as the bus carries it; the comment gives its D-Bus signature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `a(st)`: a device or a path on it, and a number.
    Devices(Vec<(String, u64)>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
    /// `a(iayu)`: address family, address in network order, length of the prefix.
    Addresses(Vec<(i32, Vec<u8>, u32)>),
    /// `a(iiqq)`: address family, IP protocol, number of ports, first port; 0 is any.
    Ports(Vec<(i32, i32, u16, u16)>),
    /// `(bas)`: whether the interfaces are those allowed, and their names.
    Interfaces((bool, Vec<String>)),
    /// `a(iiss)`: source, nft family, table, set.
    NftSets(Vec<(i32, i32, String, String)>),
    /// `a(sbbs)`: condition, trigger, negate, parameter.
    Conditions(Vec<(String, bool, bool, String)>),
}

impl Value {
    /// Whether what a unit has (systemd adds to a list, of its own accord, too) has what was asked.
    pub(crate) fn has(&self, asked: &Value) -> bool {
        match (self, asked) {
            (Value::Texts(found), Value::Texts(asked)) => asked.iter().all(|text| found.contains(text)),
            (Value::Conditions(found), Value::Conditions(asked)) => asked.iter().all(|row| found.contains(row)),
            (found, asked) => found == asked,
        }
    }

    /// Says whether systemd appends such a value to what was given before, so that a property may be given often.
    pub(super) fn is_list(&self) -> bool {
        !matches!(
            self,
            Value::Bool(_) | Value::I32(_) | Value::U32(_) | Value::U64(_) | Value::Text(_) | Value::Bytes(_)
        )
    }
}

/// One property of a unit as it is sent. Plain data: the plan keeps it and `--dry-run` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Setting {
    /// What the user wrote, for messages: `MemoryMax=500M`, or the flag that stands for it: `--memory 500M`.
    pub(crate) asked: String,
    /// The property as in systemd.resource-control(5): `CPUQuota`.
    pub(crate) property: &'static str,
    /// Its name on the bus: `CPUQuotaPerSecUSec`.
    pub(crate) name: String,
    /// Its value on the bus.
    pub(crate) value: Value,
}

/// A setting as it is written down and read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptSetting {
    asked: String,
    property: String,
    name: String,
    value: Value,
}

impl From<&Setting> for KeptSetting {
    fn from(setting: &Setting) -> KeptSetting {
        let Setting { asked, property, name, value } = setting.clone();
        KeptSetting { asked, property: property.to_owned(), name, value }
    }
}

impl KeptSetting {
    /// The setting; `None` where another version of this program knew a property that this one does not.
    pub(crate) fn setting(&self) -> Option<Setting> {
        let KeptSetting { asked, property, name, value } = self.clone();
        Some(Setting { asked, property: Property::named(&property)?.name, name, value })
    }
}

impl Setting {
    /// Whether only services have it.
    pub(crate) fn is_for_services(&self) -> bool {
        reach(self.property) == Reach::Service
    }

    /// Whether `name` is its name, in a unit file or on the bus.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.property == name || self.name == name
    }

    /// Its value where that is a signed number: of a signal, say.
    pub(crate) fn number(&self) -> Option<i32> {
        match self.value {
            Value::I32(number) => Some(number),
            _ => None,
        }
    }

    /// Whether systemd changes it in a unit that lives.
    pub(crate) fn is_live(&self) -> bool {
        !matches!(reach(self.property), Reach::Service | Reach::Unit)
    }
}

/// A property that the user asked for, checked and typed, not yet translated for the cgroup version of this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Assignment(pub(super) Setting);

impl Assignment {
    /// Parses `NAME=VALUE` as `-p` takes it. An unknown name is answered with the nearest known one.
    pub(crate) fn parse(text: &str) -> Result<Assignment> {
        match Asked::parse(text)? {
            Asked::Unit(assignment) => Ok(assignment),
            Asked::Own(_) => {
                Err(fault(format!("{text}: a scope has no such property, `sandbox run` sets it itself")).into())
            }
        }
    }

    /// The property, as in systemd.resource-control(5).
    pub(crate) fn property(&self) -> &'static str {
        self.0.property
    }

    /// Names the flag that stands for this property, so that errors speak of what the user typed: `--memory 1G`.
    pub(crate) fn asked_as(mut self, flag: impl Into<String>) -> Assignment {
        self.0.asked = flag.into();
        self
    }
}

/// What a `-p NAME=VALUE` asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum Asked {
    /// A property of the unit: systemd does it.
    Unit(Assignment),
    /// A property that only services have (`LimitNOFILE=`, `Nice=` …): we do it ourselves.
    Own(OwnSetting),
}

impl Asked {
    /// Parses `NAME=VALUE`; each error names the property and says what is accepted.
    pub(crate) fn parse(text: &str) -> Result<Asked> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(fault(format!("`{text}` is not a property: accepted is NAME=VALUE"))
                .hint("-p MemoryMax=500M")
                .into());
        };
        if let Some(property) = Property::named(name) {
            let (bus_name, value) =
                convert::convert(property, value).map_err(|error| error.context(text.to_owned()))?;
            let asked = text.to_owned();
            return Ok(Asked::Unit(Assignment(Setting { asked, property: property.name, name: bus_name, value })));
        }
        match own::parse(name, value) {
            Some(setting) => Ok(Asked::Own(setting.map_err(|error| error.context(text.to_owned()))?)),
            None => Err(unknown(name)),
        }
    }
}

/// The systemd version that first took the bus property `name`, where it is not in every version that we support (247).
pub(crate) fn since(name: &str) -> Option<u16> {
    table::PROPERTIES
        .iter()
        .find(|known| known.name == name || known.bus_name() == name)
        .map(|known| known.since)
        .filter(|v| *v > 247)
}

/// What a `-p NAME=VALUE` sets, the same for a property's old name and its new one (`MemoryLimit`, `MemoryMax`), so that a layer of
/// settings can take the place of another; `None` for a list, which goes on where the other ends.
pub(crate) fn subject(text: &str) -> Option<&str> {
    let name = match Asked::parse(text).ok()? {
        Asked::Unit(Assignment(setting)) if setting.value.is_list() => return None,
        Asked::Own(OwnSetting::Environment(_)) => return None,
        Asked::Unit(_) | Asked::Own(_) => text.split_once('=')?.0,
    };
    Some(translate::modern(name))
}

/// Whether a unit file has a property in `[Unit]`.
pub(super) fn of_every_unit(property: &str) -> bool {
    Property::named(property).is_some_and(Property::of_every_unit)
}

/// Which kind of cgroup can enforce a property.
pub(super) fn reach(property: &str) -> table::Reach {
    Property::named(property).map_or(table::Reach::Unit, |known| known.reach)
}
pub(super) use convert::ATTACH_TYPES;
pub(super) use table::Reach;

fn unknown(name: &str) -> anyhow::Error {
    let names = table::PROPERTIES.iter().map(|known| known.name).chain(own::names());
    let message = format!("`{name}` is not a property that a sandbox takes");
    match nearest(name, names) {
        Some(near) => fault(message).hint(format!("did you mean {near}=?")).into(),
        None => fault(format!(
            "{message}: accepted are those of systemd.resource-control(5), systemd.kill(5) and systemd.scope(5), and of \
             systemd.exec(5) limits and their like"
        ))
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str) -> Option<(String, Value)> {
        Assignment::parse(text).ok().map(|assignment| (assignment.0.name, assignment.0.value))
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table, one row a kind of value")]
    fn properties_become_what_the_bus_takes() {
        let t = Value::U64;
        let table: Vec<(&str, &str, Value)> = vec![
            ("CPUShares=600", "CPUShares", t(600)),
            ("CPUWeight=idle", "CPUWeight", t(0)),
            ("CPUQuota=20%", "CPUQuotaPerSecUSec", t(200_000)),
            ("CPUQuotaPeriodSec=50ms", "CPUQuotaPeriodUSec", t(50_000)),
            ("AllowedCPUs=0-1,8", "AllowedCPUs", Value::Bytes(vec![3, 1])),
            ("MemoryMax=500M", "MemoryMax", t(524_288_000)),
            ("MemoryMax=50%", "MemoryMaxScale", Value::U32(2_147_483_648)),
            ("MemoryMax=infinity", "MemoryMax", t(u64::MAX)),
            ("MemoryLow=", "MemoryLow", t(0)),
            ("TasksMax=64", "TasksMax", t(64)),
            ("TasksMax=10%", "TasksMaxScale", Value::U32(429_496_730)),
            ("IOWeight=50", "IOWeight", t(50)),
            (
                "IOReadBandwidthMax=/dev/vda 1M",
                "IOReadBandwidthMax",
                Value::Devices(vec![("/dev/vda".into(), 1_000_000)]),
            ),
            ("IODeviceWeight=/dev/vda 10", "IODeviceWeight", Value::Devices(vec![("/dev/vda".into(), 10)])),
            (
                "IODeviceLatencyTargetSec=/dev/vda 25ms",
                "IODeviceLatencyTargetUSec",
                Value::Devices(vec![("/dev/vda".into(), 25_000)]),
            ),
            ("DeviceAllow=/dev/null rw", "DeviceAllow", Value::Pairs(vec![("/dev/null".into(), "rw".into())])),
            ("DeviceAllow=char-pts", "DeviceAllow", Value::Pairs(vec![("char-pts".into(), "rwm".into())])),
            ("DeviceAllow=", "DeviceAllow", Value::Pairs(vec![])),
            ("DevicePolicy=closed", "DevicePolicy", Value::Text("closed".into())),
            ("IPAddressDeny=10.0.0.0/8", "IPAddressDeny", Value::Addresses(vec![(2, vec![10, 0, 0, 0], 8)])),
            (
                "IPAddressAllow=localhost",
                "IPAddressAllow",
                Value::Addresses(vec![(2, vec![127, 0, 0, 0], 8), (10, [0; 15].into_iter().chain([1]).collect(), 128)]),
            ),
            ("SocketBindDeny=any", "SocketBindDeny", Value::Ports(vec![(0, 0, 0, 0)])),
            ("SocketBindAllow=ipv4:tcp:8000-8009", "SocketBindAllow", Value::Ports(vec![(2, 6, 10, 8000)])),
            ("Delegate=yes", "Delegate", Value::Bool(true)),
            ("Delegate=cpu memory", "DelegateControllers", Value::Texts(vec!["cpu".into(), "memory".into()])),
            ("TimeoutStopSec=1min 30s", "TimeoutStopUSec", t(90_000_000)),
            ("RuntimeMaxSec=infinity", "RuntimeMaxUSec", t(u64::MAX)),
            ("KillSignal=SIGINT", "KillSignal", Value::I32(2)),
            ("SendSIGHUP=yes", "SendSIGHUP", Value::Bool(true)),
            ("After=a.service b.target", "After", Value::Texts(vec!["a.service".into(), "b.target".into()])),
            ("Description=x = y", "Description", Value::Text("x = y".into())),
            ("ManagedOOMMemoryPressureLimit=80%", "ManagedOOMMemoryPressureLimit", Value::U32(3_435_973_836)),
            (
                "RestrictNetworkInterfaces=~eth0",
                "RestrictNetworkInterfaces",
                Value::Interfaces((false, vec!["eth0".into()])),
            ),
            (
                "BPFProgram=egress:/sys/fs/bpf/x",
                "BPFProgram",
                Value::Pairs(vec![("egress".into(), "/sys/fs/bpf/x".into())]),
            ),
            (
                "ConditionPathExists=|!/x",
                "Conditions",
                Value::Conditions(vec![("ConditionPathExists".into(), true, true, "/x".into())]),
            ),
            ("NFTSet=cgroup:inet:filter:set", "NFTSet", Value::NftSets(vec![(3, 1, "filter".into(), "set".into())])),
        ];
        for (text, name, value) in table {
            assert_eq!(sent(text), Some((name.to_owned(), value)), "{text}");
        }
    }

    #[test]
    fn bad_values_name_the_property_and_what_is_accepted() {
        let table = [
            ("MemoryMax=500Q", "K, M, G"),
            ("MemoryMax=1", "4096"),
            ("MemoryMax=-1", "K, M, G"),
            ("CPUShares=1", "from 2 to 262144"),
            ("CPUWeight=0", "from 1 to 10000"),
            ("CPUQuota=x", "percentages"),
            ("AllowedCPUs=a", "ranges"),
            ("DevicePolicy=open", "auto, closed, strict"),
            ("DeviceAllow=null rw", "/dev/"),
            ("DeviceAllow=/dev/null rx", "r, w and m"),
            ("IOReadBandwidthMax=/dev/vda", "PATH"),
            ("IPAddressDeny=10.0.0.0/33", "CIDR"),
            ("SocketBindDeny=99999", "port"),
            ("KillMode=x", "control-group"),
            ("TimeoutStopSec=x", "min"),
            ("TasksMax=0", "from 1"),
            ("MemoryMax", "NAME=VALUE"),
        ];
        for (text, accepted) in table {
            let error = Assignment::parse(text).map_err(|error| format!("{error:#}")).err().unwrap_or_default();
            assert!(error.contains(text) && error.contains(accepted), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let hint = |text: &str| {
            let error = Asked::parse(text).err()?;
            error.downcast_ref::<crate::error::Fault>()?.hint_text().map(str::to_owned)
        };
        let table = [
            ("MemoryMaximum=1G", Some("did you mean MemoryMax=?")),
            ("memorymax=1G", Some("did you mean MemoryMax=?")),
            ("CPUShare=1", Some("did you mean CPUShares=?")),
            ("LimitNOFILES=1", Some("did you mean LimitNOFILE=?")),
            ("Quetzalcoatl=1", None),
        ];
        for (text, want) in table {
            assert_eq!(hint(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn names_in_the_table_are_unique() {
        let mut names: Vec<_> = table::PROPERTIES.iter().map(|property| property.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
