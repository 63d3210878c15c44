//! Every property that systemd takes for a scope in StartTransientUnit, and those for services that `run --detach` needs, as data.
//!
//! Gathered from systemd 247 to 262: dbus-cgroup.c, dbus-kill.c, dbus-scope.c and dbus-unit.c say what is accepted,
//! bus-unit-util.c how `systemd-run -p` spells it.

/// How the text of a property is read and what it becomes on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A boolean.
    Bool,
    /// Words, separated by blanks.
    Words,
    /// A size, a percentage (sent as `…Scale`) or `infinity`, at least so many bytes; empty is the default.
    Memory { least: u64, default: u64 },
    /// A number of tasks, a percentage (sent as `…Scale`) or `infinity`.
    Tasks,
    /// A number within bounds; `idle` is taken where it says so and sent as 0.
    Weight { least: u64, most: u64, idle: bool },
    /// A percentage of one CPU, sent as microseconds a second.
    Quota,
    /// A time span; the name ends in `Sec` and becomes `…USec`.
    Time,
    /// CPU or memory node numbers.
    Cpus,
    /// A device node or pattern and `r`, `w`, `m`.
    DeviceAccess,
    /// A device (or a path on it) and a size with base 1000, or `infinity`.
    DeviceRate,
    /// A device (or a path on it) and a weight within bounds.
    DeviceWeight { least: u64, most: u64 },
    /// A device (or a path on it) and a time span; renamed like [`Kind::Time`].
    DeviceTime,
    /// IP addresses with an optional prefix, and systemd's words for some.
    Addresses,
    /// One absolute path.
    Path,
    /// A BPF attach type and a path.
    Program,
    /// An address family, a protocol and ports.
    Ports,
    /// Network interfaces, after `~` those not allowed.
    Interfaces,
    /// nftables sets.
    NftSets,
    /// A boolean, or the names of controllers (sent as `DelegateControllers`).
    Delegate,
    /// A signal.
    Signal,
    /// A share of 0 to 100 percent, sent scaled.
    Share,
    /// An exit status, empty for none.
    ExitStatus,
    /// A whole number of 32 bits.
    Number,
    /// A condition or an assertion.
    Condition,
}

/// What it takes to put a property in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// systemd itself acts on it; the kernel knows nothing of it.
    Unit,
    /// Any cgroup version, the old one under the same or an older name.
    Any,
    /// cgroup v2 only.
    V2,
    /// A BPF program on a cgroup of the unified hierarchy: v2, and hybrid too.
    Bpf,
    /// systemd itself, for services only: it starts their processes.
    Service,
}

/// One row of [`PROPERTIES`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Property {
    /// As in systemd's manual.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) reach: Reach,
    /// The first systemd version that took it for a scope; 0 when that was long ago.
    pub(super) since: u16,
}

impl Property {
    /// Finds a property by the name that users write; the case matters, as it does for systemd.
    pub(super) fn named(name: &str) -> Option<&'static Property> {
        PROPERTIES.iter().find(|property| property.name == name)
    }

    /// Whether a unit file has it in `[Unit]`, and not in the section of the unit's type.
    pub(super) fn of_every_unit(&self) -> bool {
        let first = PROPERTIES.iter().position(|property| property.name == FIRST_OF_EVERY_UNIT);
        PROPERTIES.iter().position(|property| property == self) >= first
    }

    /// The name on the bus where the kind does not decide otherwise.
    pub(super) fn bus_name(&self) -> String {
        match self.kind {
            Kind::Time | Kind::DeviceTime => match self.name.strip_suffix("Sec") {
                Some(stem) => format!("{stem}USec"),
                None => self.name.to_owned(),
            },
            Kind::Quota => format!("{}PerSecUSec", self.name),
            Kind::Condition => if self.name.starts_with("Assert") { "Asserts" } else { "Conditions" }.to_owned(),
            _ => self.name.to_owned(),
        }
    }
}

const fn row(name: &'static str, kind: Kind, reach: Reach, since: u16) -> Property {
    Property { name, kind, reach, since }
}

const fn any(name: &'static str, kind: Kind) -> Property {
    row(name, kind, Reach::Any, 0)
}

const fn v2(name: &'static str, kind: Kind, since: u16) -> Property {
    row(name, kind, Reach::V2, since)
}

const fn bpf(name: &'static str, kind: Kind, since: u16) -> Property {
    row(name, kind, Reach::Bpf, since)
}

const fn unit(name: &'static str, kind: Kind, since: u16) -> Property {
    row(name, kind, Reach::Unit, since)
}

const fn service(name: &'static str, kind: Kind, since: u16) -> Property {
    row(name, kind, Reach::Service, since)
}

/// One page: a lower limit could not hold a single task's stack.
const PAGE: u64 = 4096;
const WEIGHT: Kind = Kind::Weight { least: 1, most: 10_000, idle: false };
const CPU_WEIGHT: Kind = Kind::Weight { least: 1, most: 10_000, idle: true };
const CPU_SHARES: Kind = Kind::Weight { least: 2, most: 262_144, idle: false };
const BLOCK_WEIGHT: Kind = Kind::Weight { least: 10, most: 1_000, idle: false };
/// Protection: 0 is none, and the default.
const PROTECTION: Kind = Kind::Memory { least: 0, default: 0 };
/// A limit that may be 0.
const LIMIT: Kind = Kind::Memory { least: 0, default: u64::MAX };
/// A limit that ends everything when it is 0.
const CEILING: Kind = Kind::Memory { least: PAGE, default: u64::MAX };
const EMERGENCY: Kind = Kind::Choice(&[
    "none",
    "reboot",
    "reboot-force",
    "reboot-immediate",
    "poweroff",
    "poweroff-force",
    "poweroff-immediate",
    "exit",
    "exit-force",
    "soft-reboot",
    "soft-reboot-force",
    "kexec",
    "kexec-force",
    "halt",
    "halt-force",
    "halt-immediate",
]);
const JOB_MODE: Kind = Kind::Choice(&[
    "fail",
    "replace",
    "replace-irreversibly",
    "isolate",
    "flush",
    "ignore-dependencies",
    "ignore-requirements",
    "triggering",
    "restart-dependencies",
]);
const RESTART: Kind =
    Kind::Choice(&["no", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog", "always"]);
const OOMD: Kind = Kind::Choice(&["auto", "kill"]);
const PRESSURE: Kind = Kind::Choice(&["auto", "on", "off", "skip", "yes", "no"]);

/// In [`PROPERTIES`] the settings of systemd.unit(5) begin here.
const FIRST_OF_EVERY_UNIT: &str = "Description";

/// The table.
pub(super) const PROPERTIES: &[Property] = &[
    // CPU
    any("CPUAccounting", Kind::Bool),
    any("CPUWeight", CPU_WEIGHT),
    any("StartupCPUWeight", CPU_WEIGHT),
    any("CPUShares", CPU_SHARES),
    any("StartupCPUShares", CPU_SHARES),
    any("CPUQuota", Kind::Quota),
    any("CPUQuotaPeriodSec", Kind::Time),
    v2("AllowedCPUs", Kind::Cpus, 244),
    v2("StartupAllowedCPUs", Kind::Cpus, 250),
    v2("CPUSetPartition", Kind::Choice(&["member", "root", "isolated"]), 261),
    v2("CPUPressureWatch", PRESSURE, 261),
    v2("CPUPressureThresholdSec", Kind::Time, 261),
    v2("AllowedMemoryNodes", Kind::Cpus, 244),
    v2("StartupAllowedMemoryNodes", Kind::Cpus, 250),
    // Memory
    any("MemoryAccounting", Kind::Bool),
    any("MemoryMax", CEILING),
    any("MemoryLimit", CEILING),
    v2("MemoryHigh", CEILING, 231),
    v2("MemoryLow", PROTECTION, 231),
    v2("MemoryMin", PROTECTION, 240),
    v2("MemorySwapMax", LIMIT, 232),
    v2("MemoryZSwapMax", LIMIT, 253),
    v2("MemoryZSwapWriteback", Kind::Bool, 256),
    v2("DefaultMemoryLow", PROTECTION, 243),
    v2("DefaultMemoryMin", PROTECTION, 243),
    v2("StartupMemoryLow", PROTECTION, 254),
    v2("DefaultStartupMemoryLow", PROTECTION, 254),
    v2("StartupMemoryHigh", CEILING, 254),
    v2("StartupMemoryMax", CEILING, 254),
    v2("StartupMemorySwapMax", LIMIT, 254),
    v2("StartupMemoryZSwapMax", LIMIT, 254),
    v2("MemoryPressureWatch", PRESSURE, 254),
    v2("MemoryPressureThresholdSec", Kind::Time, 254),
    v2("ManagedOOMSwap", OOMD, 247),
    v2("ManagedOOMMemoryPressure", OOMD, 247),
    v2("ManagedOOMMemoryPressureLimit", Kind::Share, 248),
    v2("ManagedOOMMemoryPressureDurationSec", Kind::Time, 257),
    v2("OOMRules", Kind::Words, 261),
    v2("ManagedOOMPreference", Kind::Choice(&["none", "avoid", "omit"]), 248),
    // Tasks
    any("TasksAccounting", Kind::Bool),
    any("TasksMax", Kind::Tasks),
    // Disks
    any("IOAccounting", Kind::Bool),
    any("IOWeight", WEIGHT),
    any("StartupIOWeight", WEIGHT),
    any("IODeviceWeight", Kind::DeviceWeight { least: 1, most: 10_000 }),
    any("IOReadBandwidthMax", Kind::DeviceRate),
    any("IOWriteBandwidthMax", Kind::DeviceRate),
    v2("IOReadIOPSMax", Kind::DeviceRate, 230),
    v2("IOWriteIOPSMax", Kind::DeviceRate, 230),
    v2("IODeviceLatencyTargetSec", Kind::DeviceTime, 240),
    v2("IOPressureWatch", PRESSURE, 261),
    v2("IOPressureThresholdSec", Kind::Time, 261),
    any("BlockIOAccounting", Kind::Bool),
    any("BlockIOWeight", BLOCK_WEIGHT),
    any("StartupBlockIOWeight", BLOCK_WEIGHT),
    any("BlockIODeviceWeight", Kind::DeviceWeight { least: 10, most: 1_000 }),
    any("BlockIOReadBandwidth", Kind::DeviceRate),
    any("BlockIOWriteBandwidth", Kind::DeviceRate),
    // Devices
    any("DevicePolicy", Kind::Choice(&["auto", "closed", "strict"])),
    any("DeviceAllow", Kind::DeviceAccess),
    // Network
    bpf("IPAccounting", Kind::Bool, 235),
    bpf("IPAddressAllow", Kind::Addresses, 235),
    bpf("IPAddressDeny", Kind::Addresses, 235),
    bpf("IPIngressFilterPath", Kind::Path, 243),
    bpf("IPEgressFilterPath", Kind::Path, 243),
    bpf("BPFProgram", Kind::Program, 249),
    bpf("SocketBindAllow", Kind::Ports, 249),
    bpf("SocketBindDeny", Kind::Ports, 249),
    bpf("RestrictNetworkInterfaces", Kind::Interfaces, 250),
    bpf("BindNetworkInterface", Kind::Text, 260),
    unit("NFTSet", Kind::NftSets, 255),
    // The cgroup itself
    unit("Delegate", Kind::Delegate, 0),
    unit("DelegateSubgroup", Kind::Text, 254),
    v2("DisableControllers", Kind::Words, 240),
    unit("CoredumpReceive", Kind::Bool, 255),
    // Stopping
    unit("KillMode", Kind::Choice(&["control-group", "mixed", "process", "none"]), 0),
    unit("KillSignal", Kind::Signal, 0),
    unit("RestartKillSignal", Kind::Signal, 244),
    unit("FinalKillSignal", Kind::Signal, 0),
    unit("WatchdogSignal", Kind::Signal, 240),
    unit("SendSIGHUP", Kind::Bool, 0),
    unit("SendSIGKILL", Kind::Bool, 0),
    unit("TimeoutStopSec", Kind::Time, 0),
    unit("RuntimeMaxSec", Kind::Time, 244),
    unit("RuntimeRandomizedExtraSec", Kind::Time, 250),
    unit("OOMPolicy", Kind::Choice(&["continue", "stop", "kill"]), 253),
    // Services: what their start and end do
    service("Restart", RESTART, 0),
    service("RestartSec", Kind::Time, 0),
    service("RestartSteps", Kind::Number, 254),
    service("RestartMaxDelaySec", Kind::Time, 254),
    service("TimeoutStartSec", Kind::Time, 0),
    service("TimeoutAbortSec", Kind::Time, 0),
    service("WatchdogSec", Kind::Time, 0),
    service("NotifyAccess", Kind::Choice(&["none", "main", "exec", "all"]), 0),
    service("SyslogIdentifier", Kind::Text, 0),
    service("LogNamespace", Kind::Text, 245),
    // The unit
    unit("Description", Kind::Text, 0),
    unit("Documentation", Kind::Words, 0),
    unit("SourcePath", Kind::Path, 0),
    unit("CollectMode", Kind::Choice(&["inactive", "inactive-or-failed"]), 0),
    unit("StopWhenUnneeded", Kind::Bool, 0),
    unit("RefuseManualStart", Kind::Bool, 0),
    unit("RefuseManualStop", Kind::Bool, 0),
    unit("AllowIsolate", Kind::Bool, 0),
    unit("IgnoreOnIsolate", Kind::Bool, 0),
    unit("SurviveFinalKillSignal", Kind::Bool, 255),
    unit("DefaultDependencies", Kind::Bool, 0),
    unit("OnSuccessJobMode", JOB_MODE, 249),
    unit("OnFailureJobMode", JOB_MODE, 0),
    // 252 and 257 answer that they do not know this one (a slip in dbus-unit.c), 262 takes it.
    unit("JobTimeoutSec", Kind::Time, 262),
    unit("JobRunningTimeoutSec", Kind::Time, 0),
    unit("JobTimeoutAction", EMERGENCY, 0),
    unit("JobTimeoutRebootArgument", Kind::Text, 0),
    unit("StartLimitIntervalSec", Kind::Time, 0),
    unit("StartLimitBurst", Kind::Number, 0),
    unit("StartLimitAction", EMERGENCY, 0),
    unit("SuccessAction", EMERGENCY, 0),
    unit("FailureAction", EMERGENCY, 0),
    unit("SuccessActionExitStatus", Kind::ExitStatus, 0),
    unit("FailureActionExitStatus", Kind::ExitStatus, 0),
    unit("RebootArgument", Kind::Text, 0),
    // Dependencies
    unit("Requires", Kind::Words, 0),
    unit("Requisite", Kind::Words, 0),
    unit("Wants", Kind::Words, 0),
    unit("BindsTo", Kind::Words, 0),
    unit("PartOf", Kind::Words, 0),
    unit("Upholds", Kind::Words, 249),
    unit("Conflicts", Kind::Words, 0),
    unit("Before", Kind::Words, 0),
    unit("After", Kind::Words, 0),
    unit("OnSuccess", Kind::Words, 249),
    unit("OnFailure", Kind::Words, 0),
    unit("PropagatesReloadTo", Kind::Words, 0),
    unit("ReloadPropagatedFrom", Kind::Words, 0),
    unit("PropagatesStopTo", Kind::Words, 249),
    unit("StopPropagatedFrom", Kind::Words, 249),
    unit("JoinsNamespaceOf", Kind::Words, 0),
    unit("RequiresMountsFor", Kind::Words, 0),
    unit("WantsMountsFor", Kind::Words, 256),
    // Conditions that are decided on the host when the scope starts
    unit("ConditionArchitecture", Kind::Condition, 0),
    unit("ConditionVirtualization", Kind::Condition, 0),
    unit("ConditionHost", Kind::Condition, 0),
    unit("ConditionKernelCommandLine", Kind::Condition, 0),
    unit("ConditionKernelVersion", Kind::Condition, 0),
    unit("ConditionSecurity", Kind::Condition, 0),
    unit("ConditionCapability", Kind::Condition, 0),
    unit("ConditionACPower", Kind::Condition, 0),
    unit("ConditionFirstBoot", Kind::Condition, 0),
    unit("ConditionPathExists", Kind::Condition, 0),
    unit("ConditionPathExistsGlob", Kind::Condition, 0),
    unit("ConditionPathIsDirectory", Kind::Condition, 0),
    unit("ConditionPathIsSymbolicLink", Kind::Condition, 0),
    unit("ConditionPathIsMountPoint", Kind::Condition, 0),
    unit("ConditionPathIsReadWrite", Kind::Condition, 0),
    unit("ConditionDirectoryNotEmpty", Kind::Condition, 0),
    unit("ConditionFileNotEmpty", Kind::Condition, 0),
    unit("ConditionFileIsExecutable", Kind::Condition, 0),
    unit("ConditionUser", Kind::Condition, 0),
    unit("ConditionGroup", Kind::Condition, 0),
    unit("ConditionControlGroupController", Kind::Condition, 0),
    unit("ConditionMemory", Kind::Condition, 0),
    unit("ConditionCPUs", Kind::Condition, 0),
    unit("AssertPathExists", Kind::Condition, 0),
    unit("AssertPathIsDirectory", Kind::Condition, 0),
    unit("AssertPathIsMountPoint", Kind::Condition, 0),
    unit("AssertFileNotEmpty", Kind::Condition, 0),
    unit("AssertHost", Kind::Condition, 0),
    unit("AssertUser", Kind::Condition, 0),
    unit("AssertGroup", Kind::Condition, 0),
    unit("AssertControlGroupController", Kind::Condition, 0),
];
