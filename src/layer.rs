//! A [`Layer`]: one source of settings, every field optional. The same type is what the flags of `run` are parsed into, so a
//! flag, its help text and its key have one definition; layers are put over each other by [`Layer::over`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

/// Who makes the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Manager {
    /// systemd where it is PID 1; elsewhere none, with a warning, unless a limit, slice or unit was asked for
    Auto,
    /// systemd, or an error
    Systemd,
    /// no unit, no limits
    None,
}

/// How IDs inside relate to IDs outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Userns {
    /// a range of 65536 IDs that nobody else uses; identity where the kernel or a file system cannot (it says so)
    Auto,
    /// a user namespace in which each ID is itself: root inside owns the host's files, without power over the host
    Identity,
    /// no user namespace
    Host,
}

/// A namespace that can be shared with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Namespace {
    /// mount points
    Mount,
    /// process IDs
    Pid,
    /// hostname
    Uts,
    /// System V IPC and POSIX message queues
    Ipc,
    /// network
    Net,
    /// cgroup root
    Cgroup,
    /// boot-time clock
    Time,
    /// user and group IDs
    User,
}

/// Whether /proc tells the sandbox's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Procview {
    /// its own memory, CPUs, load and uptime, or an error
    On,
    /// the machine's
    Off,
}

/// What happens to the whole sandbox when the kernel kills a process in it for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OomPolicy {
    /// the other processes go on
    Continue,
    /// systemd stops them all
    Stop,
    /// the kernel kills them all
    Kill,
}

/// Where what the payload writes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Log {
    /// to where the caller's standard output and error go
    Caller,
    /// to the journal, under the sandbox's unit; with --pty to both
    Journal,
}

/// When a service counts as started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Notify {
    /// when the command has been executed
    Exec,
    /// when the command says so, as sd_notify(3) does it
    Payload,
}

// One source of settings. Its keys in a profile are the long names of the flags.
#[derive(Debug, Clone, Default, PartialEq, Args, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Layer {
    /// Name of the unit, to the letter: NAME gives NAME.scope [default: sandbox-NAME-ID.scope]
    #[arg(long, short = 'u', value_name = "NAME", help_heading = "Unit")]
    pub(crate) unit: Option<String>,
    /// Name of the sandbox, and its hostname [default: the command's name]
    #[arg(long, value_name = "NAME", help_heading = "Unit")]
    pub(crate) name: Option<String>,
    /// Slice that the unit goes into [default: sandbox.slice]
    ///
    /// It is made where it does not exist; a-b.slice is inside a.slice. Limits set on a slice hold for all in it together.
    #[arg(long, value_name = "SLICE", help_heading = "Unit")]
    pub(crate) slice: Option<String>,
    /// What systemctl status shows as the description [default: the command]
    #[arg(long, value_name = "TEXT", help_heading = "Unit")]
    pub(crate) description: Option<String>,
    /// Property of the unit, such as MemoryMax=500M; repeatable
    ///
    /// Any setting of systemd.resource-control(5) and systemd.kill(5), and of systemd.exec(5) LimitNOFILE= and its kind, Nice=,
    /// OOMScoreAdjust=, UMask=, CPUAffinity=. Old names are translated on cgroup v2: CPUShares=, MemoryLimit=, BlockIOWeight=.
    /// Each limit is read back from the kernel before the command may run; one that is not in force ends the start with 125.
    #[arg(long = "property", short = 'p', value_name = "K=V", help_heading = "Unit")]
    pub(crate) property: Vec<String>,
    /// The system's service manager makes the unit [default for root]
    #[arg(long, overrides_with = "user", help_heading = "Unit", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) system: Option<bool>,
    /// Your own service manager makes the unit [default for everyone else]
    #[arg(long, overrides_with = "system", help_heading = "Unit", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) user: Option<bool>,
    /// Who makes the unit [default: auto]
    #[arg(long, value_name = "WHO", value_enum, help_heading = "Unit")]
    pub(crate) manager: Option<Manager>,

    /// Run in the background, as a service, and print the unit's name
    ///
    /// It returns when the command has been executed. The unit is NAME.service; its output is in the journal (sandbox logs NAME).
    /// Properties of services can be set with it: -p Restart=on-failure, WatchdogSec=, TimeoutStartSec= and the like.
    #[arg(long, short = 'd', help_heading = "Unit", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) detach: Option<bool>,
    /// Where output goes [default: caller; for a service its own journal streams]
    #[arg(long, value_name = "WHERE", value_enum, help_heading = "Unit")]
    pub(crate) log: Option<Log>,
    /// When a service counts as started [default: exec]
    #[arg(long, value_name = "WHO", value_enum, help_heading = "Unit")]
    pub(crate) notify: Option<Notify>,

    /// Memory limit: bytes, or with K, M, G, T (MemoryMax=)
    #[arg(long, short = 'm', value_name = "SIZE", help_heading = "Limits")]
    pub(crate) memory: Option<String>,
    /// CPU time limit, in CPUs: 1.5 is CPUQuota=150%
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) cpus: Option<String>,
    /// CPU weight as Docker counts it, 1024 is normal (CPUWeight=)
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) cpu_shares: Option<String>,
    /// Period of --cpu-quota in microseconds [default: 100000]
    #[arg(long, value_name = "US", help_heading = "Limits")]
    pub(crate) cpu_period: Option<String>,
    /// CPU time in each period, in microseconds (CPUQuota=)
    #[arg(long, allow_negative_numbers = true, value_name = "US", help_heading = "Limits")]
    pub(crate) cpu_quota: Option<String>,
    /// CPUs to run on, such as 0-3,5 (AllowedCPUs=)
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Limit of processes and threads (TasksMax=)
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Limits")]
    pub(crate) pids_limit: Option<String>,
    /// Limit of each process, as in setrlimit(2): nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Limits")]
    pub(crate) ulimit: Vec<String>,
    /// What happens to the rest when the kernel kills a process for lack of memory [default: continue]
    #[arg(long, value_name = "WHAT", value_enum, help_heading = "Limits")]
    pub(crate) oom: Option<OomPolicy>,

    /// An image as the root: NAME[:TAG] or an ID of our store, or docker:NAME or podman:NAME in theirs
    #[arg(long, value_name = "REF", conflicts_with_all = ["rootfs", "layer"], help_heading = "Root")]
    pub(crate) image: Option<String>,
    /// The image store, instead of /var/lib/sandbox (root) or $XDG_DATA_HOME/sandbox
    #[arg(long, value_name = "DIR", help_heading = "Root")]
    pub(crate) store: Option<PathBuf>,
    /// Docker's directory for --image docker:NAME [default: /var/lib/docker]
    #[arg(long, value_name = "DIR", help_heading = "Root")]
    pub(crate) docker_root: Option<PathBuf>,
    /// Run this program of the image instead of its entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Root")]
    pub(crate) entrypoint: Option<String>,
    /// Keep what --name NAME writes: the next run --name NAME goes on with it
    ///
    /// See `sandbox diff`, `commit`, `apply` and `discard`. What is in memory only (--tmpfs, and /tmp, /run, /home and /root of the
    /// view of the host) is not kept.
    #[arg(long, requires = "name", conflicts_with = "upper", help_heading = "Root", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) keep: Option<bool>,
    /// A directory as the root, instead of a view of the host's own files
    ///
    /// It is the lowerdir of an overlay: writes go to the upper, never into it.
    #[arg(long, value_name = "DIR", conflicts_with = "layer", help_heading = "Root")]
    pub(crate) rootfs: Option<PathBuf>,
    /// A read-only layer of the root; repeat it for more, lowest first
    #[arg(long, value_name = "DIR", help_heading = "Root")]
    pub(crate) layer: Vec<PathBuf>,
    /// A file or directory of the host, as it is: writes reach the host unless it is ro
    #[arg(long, short = 'v', visible_alias = "volume", value_name = "SRC[:DST[:ro]]", help_heading = "Root")]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) bind: Vec<OsString>,
    /// An empty directory in memory
    #[arg(long, value_name = "DST[:SIZE]", help_heading = "Root")]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) tmpfs: Vec<OsString>,
    /// Nothing of the root can be written; binds and what is in memory can
    ///
    /// In memory are /tmp, /var/tmp, /run, /dev/shm, of the view of the host also /home and /root, and each --tmpfs.
    #[arg(long, help_heading = "Root", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) read_only: Option<bool>,
    /// Where writes to the root go: memory, gone at the end, or a directory that keeps them [default: tmpfs]
    ///
    /// Memory is at most half of the machine's, and counts against the unit's limit.
    #[arg(long, value_name = "tmpfs[:SIZE]|DIR", help_heading = "Root")]
    #[serde(deserialize_with = "crate::profile::text", serialize_with = "crate::given::shown_text")]
    pub(crate) upper: Option<OsString>,
    /// Show what the view of the host hides
    ///
    /// Password hashes, private and host keys, credential stores, /boot, /var/log, the stores of docker, podman and others. /home,
    /// /root, /run, /tmp and /var/tmp stay empty: --bind brings what is wanted of them.
    #[arg(long, help_heading = "Root", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) host_secrets: Option<bool>,

    /// Namespaces to share with the host, comma-separated [default: none, all are its own]
    #[arg(long, value_name = "NS,…", value_enum, value_delimiter = ',', help_heading = "Isolation")]
    pub(crate) share: Vec<Namespace>,
    /// How IDs inside relate to IDs outside; a plain user's has with identity that user's own ID alone [default: auto]
    #[arg(long, value_name = "HOW", value_enum, help_heading = "Isolation")]
    pub(crate) userns: Option<Userns>,
    /// Hostname inside [default: the sandbox's name]
    #[arg(long, value_name = "NAME", help_heading = "Isolation")]
    pub(crate) hostname: Option<String>,
    /// Whether /proc and sysinfo(2) inside tell the sandbox's limits, or the machine's [default: on where /dev/fuse is]
    ///
    /// /proc/{cpuinfo,diskstats,loadavg,meminfo,pressure,stat,swaps,uptime,vmstat} and the CPUs in /sys/devices/system/cpu.
    #[arg(long, value_name = "BOOL", value_enum, help_heading = "Isolation")]
    pub(crate) procview: Option<Procview>,
    /// Keep a capability that is taken away by default, such as NET_ADMIN; or ALL
    ///
    /// It counts for what is the sandbox's own. Those over the whole machine (SYS_NICE, SYS_TIME …) have an effect with --userns host only.
    #[arg(long, value_name = "CAP", value_delimiter = ',', help_heading = "Isolation")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability away; or ALL
    #[arg(long, value_name = "CAP", value_delimiter = ',', help_heading = "Isolation")]
    pub(crate) cap_drop: Vec<String>,

    /// Keep a capability for a user other than root, too: its programs have it from the start
    #[arg(long, value_name = "CAP", value_delimiter = ',', help_heading = "Isolation")]
    pub(crate) cap_ambient: Vec<String>,
    /// A device of the host, with read, write and mknod access or a part of it
    ///
    /// The node keeps its mode, and its owner where that has an ID inside. The unit allows it (DeviceAllow=), and no other device but
    /// null, zero, full, random, urandom, tty and terminals.
    #[arg(long, value_name = "SRC[:DST][:rwm]", help_heading = "Isolation")]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) device: Vec<OsString>,
    /// In /proc each user sees the processes of that user only, proc(5)
    #[arg(long, help_heading = "Isolation", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) hidepid: Option<bool>,
    /// Let what runs inside make namespaces and mounts of its own, for bwrap, unshare or another sandbox in it
    ///
    /// Everybody inside, root or not, can then mount a /proc and a read-only /sys in namespaces of their own, as unshare -Urpf
    /// --mount-proc and bwrap --proc do. There nothing is masked, read-only or made truthful: they tell about the whole machine what the
    /// sandbox's own hide, except what is for the machine's root only, and the settings of a network made there can be written. More of
    /// the kernel can be reached. No capability is added: the sandbox's own mounts stay as they are, and covered below its /proc are the
    /// bare ones that the kernel asks for. It needs a range of user IDs, which is the default, or a plain user's sandbox.
    #[arg(long, help_heading = "Isolation", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) nesting: Option<bool>,
    /// Only what is named may be used: files below PATH (read, read and write, or read and execute), and TCP connections to PORT
    ///
    /// Repeatable. Rules for files leave the network alone, and the other way round. A program needs exec for itself and for the
    /// dynamic loader and libraries that it is linked with: --landlock exec:/usr --landlock ro:/etc --landlock rw:/dev.
    #[arg(long, value_name = "ro:PATH|rw:PATH|exec:PATH|tcp-connect:PORT", help_heading = "Isolation")]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) landlock: Vec<OsString>,
    /// Go without what of --landlock this kernel cannot do
    #[arg(long, help_heading = "Isolation", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) landlock_best_effort: Option<bool>,
    /// AppArmor profile of the command; it must be loaded
    ///
    /// Its paths are those inside.
    #[arg(long, value_name = "PROFILE", help_heading = "Isolation")]
    pub(crate) apparmor: Option<String>,
    /// SELinux label of the command: USER:ROLE:TYPE:LEVEL
    ///
    /// Files keep their own labels. The policy must allow process2:nnp_transition, since no_new_privs is set.
    #[arg(long, value_name = "LABEL", conflicts_with = "apparmor", help_heading = "Isolation")]
    pub(crate) selinux_label: Option<String>,
    /// Filter of system calls: our own, none, or a profile in the JSON format of Docker and OCI [default: default]
    ///
    /// Our own allows what Docker's does at most: no namespaces, mounts, key rings, io_uring, BPF, kernel modules, nor calls of another
    /// architecture. --cap-add opens what the capability is for. A call that it does not know fails as on a kernel without it.
    #[arg(long, value_name = "default|unconfined|FILE", help_heading = "Isolation")]
    #[serde(deserialize_with = "crate::profile::text", serialize_with = "crate::given::shown_text")]
    pub(crate) seccomp: Option<OsString>,
    /// Network: none, host, pasta, ns:PATH or container:NAME [default: none]
    ///
    /// none: a loopback interface and nothing else. host: the host's. pasta: one of its own that reaches out through a pasta process
    /// in the unit, and whose ports --publish opens. ns:/run/netns/NAME: one that is there already. container:NAME: another sandbox's.
    #[arg(long, visible_alias = "net", value_name = "WHICH", help_heading = "Network")]
    pub(crate) network: Option<String>,
    /// Reach a port inside from outside, with --network pasta
    ///
    /// On all addresses of the host where none is given, over IPv4 and IPv6. Both ports may be ranges of one length (8000-8009:80-89).
    /// Host port 0 is one that is free, printed at the start and shown by `sandbox ps`.
    #[arg(long, value_name = "[ADDR:]HOSTPORT:PORT[/tcp|udp]", help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Publish every port that the image exposes, each on a free port of the host
    #[arg(long, help_heading = "Network", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) publish_all: Option<bool>,
    /// DNS server inside, instead of the host's
    #[arg(long, value_name = "ADDR", help_heading = "Network")]
    pub(crate) dns: Vec<String>,
    /// Domain that short names are looked up in, instead of the host's
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    pub(crate) dns_search: Vec<String>,
    /// A line more in /etc/hosts; the address host-gateway is one that reaches the host
    ///
    /// With --network pasta host-gateway opens what listens on the host's loopback interface, too.
    #[arg(long, value_name = "NAME:ADDR", help_heading = "Network")]
    pub(crate) add_host: Vec<String>,
    /// Addresses that are an exception of --deny-ip (IPAddressAllow=)
    #[arg(long, value_name = "ADDR[/BITS]|WORD", help_heading = "Network")]
    pub(crate) allow_ip: Vec<String>,
    /// Addresses that nothing inside can send to or receive from: any, localhost, 10.0.0.0/8 (IPAddressDeny=)
    #[arg(long, value_name = "ADDR[/BITS]|WORD", help_heading = "Network")]
    pub(crate) deny_ip: Vec<String>,
    /// The only ports that can be bound: 8080, tcp:80, udp:5000-5010 (SocketBindAllow=)
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) allow_bind: Vec<String>,

    /// Set a variable; without =VALUE it is the caller's
    ///
    /// Without this the command gets PATH, TERM, HOME, USER and container=sandbox, and nothing of the caller's.
    #[arg(
        long,
        short = 'E',
        visible_short_alias = 'e',
        visible_alias = "env",
        value_name = "NAME[=VALUE]",
        help_heading = "Process"
    )]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) setenv: Vec<OsString>,
    /// Working directory [default: the caller's where it can be seen inside, else /]
    #[arg(long, short = 'w', visible_alias = "workdir", value_name = "DIR", help_heading = "Process")]
    pub(crate) working_directory: Option<PathBuf>,
    /// User inside, by name or number [default: 0]
    #[arg(long, value_name = "USER", help_heading = "Process")]
    pub(crate) uid: Option<String>,
    /// Group inside, by name or number [default: the user's]
    #[arg(long, value_name = "GROUP", help_heading = "Process")]
    pub(crate) gid: Option<String>,
    /// PID 1 is a small init that reaps and relays signals [default]
    #[arg(long, overrides_with = "as_pid1", help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) init: Option<bool>,
    /// PID 1 is the command: it has to reap, and signals that it does not handle do nothing
    #[arg(long, overrides_with = "init", help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) as_pid1: Option<bool>,
    /// A terminal of its own [default where standard input and output are both terminals]
    #[arg(long, short = 't', visible_alias = "tty", overrides_with = "pipe", help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) pty: Option<bool>,
    /// Standard input, output and error as they are [default elsewhere]
    #[arg(long, short = 'P', overrides_with = "pty", help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) pipe: Option<bool>,
    /// Nothing: for those who type Docker's -it; standard input is always connected
    #[arg(long, short = 'i', help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) interactive: Option<bool>,
    /// No warnings
    #[arg(long, short = 'q', help_heading = "Process", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, action = ArgAction::Set)]
    pub(crate) quiet: Option<bool>,

    /// Directories of the root that are made where they are missing; an image asks for them.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) directories: Vec<PathBuf>,
    /// Ports that an image exposes: `80/tcp`.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) exposed: Vec<String>,
    /// The signal that an image wants to be stopped with, where a unit is there to send it.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) stop_signal: Option<String>,
    /// Where the kept root has its writes.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) keep_at: Option<PathBuf>,
    /// The layers have overlayfs' marks in user.overlay.* attributes, as a plain user's store has.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) user_marks: bool,

    /// The command and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    #[serde(deserialize_with = "crate::profile::texts", serialize_with = "crate::given::shown_texts")]
    pub(crate) command: Vec<OsString>,
}

impl Layer {
    /// This layer over another: what this one says counts, lists go on where the other's end. The command is one whole.
    #[expect(clippy::too_many_lines, reason = "one line for each setting")]
    pub(crate) fn over(mut self, mut under: Layer) -> Layer {
        self.take_network(&mut under);
        Layer {
            unit: self.unit.or(under.unit),
            name: self.name.or(under.name),
            slice: self.slice.or(under.slice),
            description: self.description.or(under.description),
            property: append(under.property, self.property),
            system: self.system.or(under.system),
            user: self.user.or(under.user),
            manager: self.manager.or(under.manager),
            memory: self.memory.or(under.memory),
            cpus: self.cpus.or(under.cpus),
            cpu_shares: self.cpu_shares.or(under.cpu_shares),
            cpu_period: self.cpu_period.or(under.cpu_period),
            cpu_quota: self.cpu_quota.or(under.cpu_quota),
            cpuset_cpus: self.cpuset_cpus.or(under.cpuset_cpus),
            pids_limit: self.pids_limit.or(under.pids_limit),
            ulimit: append(under.ulimit, self.ulimit),
            oom: self.oom.or(under.oom),
            image: self.image.or(under.image),
            store: self.store.or(under.store),
            docker_root: self.docker_root.or(under.docker_root),
            entrypoint: self.entrypoint.or(under.entrypoint),
            keep: self.keep.or(under.keep),
            rootfs: self.rootfs.or(under.rootfs),
            layer: append(under.layer, self.layer),
            bind: append(under.bind, self.bind),
            tmpfs: append(under.tmpfs, self.tmpfs),
            read_only: self.read_only.or(under.read_only),
            upper: self.upper.or(under.upper),
            host_secrets: self.host_secrets.or(under.host_secrets),
            share: append(under.share, self.share),
            userns: self.userns.or(under.userns),
            hostname: self.hostname.or(under.hostname),
            procview: self.procview.or(under.procview),
            cap_add: append(under.cap_add, self.cap_add),
            cap_drop: append(under.cap_drop, self.cap_drop),
            cap_ambient: append(under.cap_ambient, self.cap_ambient),
            device: append(under.device, self.device),
            hidepid: self.hidepid.or(under.hidepid),
            nesting: self.nesting.or(under.nesting),
            landlock: append(under.landlock, self.landlock),
            landlock_best_effort: self.landlock_best_effort.or(under.landlock_best_effort),
            apparmor: self.apparmor.or(under.apparmor),
            selinux_label: self.selinux_label.or(under.selinux_label),
            seccomp: self.seccomp.or(under.seccomp),
            setenv: append(under.setenv, self.setenv),
            working_directory: self.working_directory.or(under.working_directory),
            uid: self.uid.or(under.uid),
            gid: self.gid.or(under.gid),
            init: self.init.or(under.init),
            as_pid1: self.as_pid1.or(under.as_pid1),
            pty: self.pty.or(under.pty),
            pipe: self.pipe.or(under.pipe),
            interactive: self.interactive.or(under.interactive),
            detach: self.detach.or(under.detach),
            log: self.log.or(under.log),
            notify: self.notify.or(under.notify),
            quiet: self.quiet.or(under.quiet),
            directories: append(under.directories, self.directories),
            keep_at: self.keep_at.or(under.keep_at),
            stop_signal: self.stop_signal.or(under.stop_signal),
            user_marks: self.user_marks || under.user_marks,
            command: if self.command.is_empty() { under.command } else { self.command },
            ..self
        }
    }

    /// The same for what is said of the network.
    fn take_network(&mut self, under: &mut Layer) {
        self.network = self.network.take().or(under.network.take());
        self.publish_all = self.publish_all.or(under.publish_all);
        for (over, under) in [
            (&mut self.publish, &mut under.publish),
            (&mut self.dns, &mut under.dns),
            (&mut self.dns_search, &mut under.dns_search),
            (&mut self.add_host, &mut under.add_host),
            (&mut self.allow_ip, &mut under.allow_ip),
            (&mut self.deny_ip, &mut under.deny_ip),
            (&mut self.allow_bind, &mut under.allow_bind),
            (&mut self.exposed, &mut under.exposed),
        ] {
            *over = append(std::mem::take(under), std::mem::take(over));
        }
    }
}

fn append<T>(under: Vec<T>, over: Vec<T>) -> Vec<T> {
    under.into_iter().chain(over).collect()
}
