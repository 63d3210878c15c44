//! Properties that systemd knows for services but not for scopes, and what we make of them.
//!
//! A scope takes processes that exist already, so systemd cannot set what belongs to the start of a process. The ones
//! that one system call can set are typed here and set by the child; the others are refused with the flag that does it.

use serde::Serialize;

use crate::error::{Result, fault};
use crate::value::{CpuSet, Rlimit};

/// A `-p` setting that `sandbox run` carries out itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum OwnSetting {
    /// `Slice=`: the same as `--slice`; the name as given.
    Slice(String),
    /// `LimitNOFILE=` and its kind.
    Limit(Rlimit),
    /// `Nice=`: −20 to 19.
    Nice(i32),
    /// `OOMScoreAdjust=`: −1000 to 1000.
    OomScoreAdjust(i32),
    /// `UMask=`.
    Umask(u32),
    /// `CPUAffinity=`: the CPUs that the payload may run on, by sched_setaffinity(2).
    CpuAffinity(CpuSet),
    /// `WorkingDirectory=`: the same as `--working-directory`.
    WorkingDirectory(String),
    /// `User=`: the same as `--uid`; a name or a number.
    User(String),
    /// `Group=`: the same as `--gid`; a name or a number.
    Group(String),
    /// `Environment=`: the same as `--setenv`, several at once.
    Environment(Vec<(String, String)>),
}

/// What to do with a property of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// We set it.
    Own,
    /// Another flag of ours does it.
    Flag(&'static str),
    /// It is so for every sandbox.
    Always(&'static str),
    /// It belongs to a service: a unit file.
    Unit,
}

use Service::{Always, Flag, Own, Unit};

/// The properties of services by name.
const SERVICE: &[(&str, Service)] = &[
    ("Slice", Own),
    ("LimitAS", Own),
    ("LimitCORE", Own),
    ("LimitCPU", Own),
    ("LimitDATA", Own),
    ("LimitFSIZE", Own),
    ("LimitLOCKS", Own),
    ("LimitMEMLOCK", Own),
    ("LimitMSGQUEUE", Own),
    ("LimitNICE", Own),
    ("LimitNOFILE", Own),
    ("LimitNPROC", Own),
    ("LimitRSS", Own),
    ("LimitRTPRIO", Own),
    ("LimitRTTIME", Own),
    ("LimitSIGPENDING", Own),
    ("LimitSTACK", Own),
    ("Nice", Own),
    ("OOMScoreAdjust", Own),
    ("UMask", Own),
    ("CPUAffinity", Own),
    ("WorkingDirectory", Own),
    ("User", Own),
    ("Group", Own),
    ("Environment", Own),
    ("EnvironmentFile", Flag("--env-file FILE")),
    ("PassEnvironment", Flag("--setenv NAME")),
    ("UnsetEnvironment", Always("the payload sees only the environment that it was given")),
    ("RootDirectory", Flag("--rootfs DIR")),
    ("RootImage", Flag("--image REF")),
    ("ExtensionDirectories", Flag("--layer DIR")),
    ("BindPaths", Flag("--bind SRC:DST")),
    ("BindReadOnlyPaths", Flag("--bind SRC:DST:ro")),
    ("ReadWritePaths", Flag("--bind PATH")),
    ("ReadOnlyPaths", Flag("--bind PATH:PATH:ro")),
    ("InaccessiblePaths", Flag("--tmpfs PATH")),
    ("TemporaryFileSystem", Flag("--tmpfs PATH")),
    ("ProtectSystem", Flag("--read-only")),
    ("CapabilityBoundingSet", Flag("--cap-drop and --cap-add")),
    ("AmbientCapabilities", Flag("--cap-add")),
    ("SystemCallFilter", Flag("--seccomp FILE")),
    ("PrivateNetwork", Flag("--network none")),
    ("PrivateUsers", Flag("--userns auto")),
    ("PrivatePIDs", Flag("--share (pid is private unless named there)")),
    ("PrivateIPC", Flag("--share (ipc is private unless named there)")),
    ("StandardInput", Flag("--pipe or --pty")),
    ("StandardOutput", Flag("--pipe, --pty or --log journal")),
    ("StandardError", Flag("--pipe, --pty or --log journal")),
    ("TTYPath", Flag("--pty")),
    ("NoNewPrivileges", Always("no_new_privs is always set")),
    ("PrivateTmp", Always("/tmp and /var/tmp are always private")),
    ("PrivateDevices", Always("/dev always holds only a few harmless devices")),
    ("PrivateMounts", Always("mounts are always private")),
    ("ProtectHome", Always("/home and /root are hidden unless --bind brings them")),
    ("ProtectHostname", Always("the host name is always private")),
    ("ProtectClock", Always("the clock cannot be set from inside")),
    ("ProtectControlGroups", Always("the cgroup tree is always read-only")),
    ("ProtectKernelLogs", Always("the kernel's log is never visible")),
    ("ProtectKernelModules", Always("modules cannot be loaded from inside")),
    ("ProtectKernelTunables", Always("/sys and the settings in /proc/sys are always read-only")),
    ("ProtectProc", Always("only the sandbox's own processes are visible")),
    ("DynamicUser", Flag("--userns auto")),
    ("CPUSchedulingPolicy", Unit),
    ("CPUSchedulingPriority", Unit),
    ("CPUSchedulingResetOnFork", Unit),
    ("IOSchedulingClass", Unit),
    ("IOSchedulingPriority", Unit),
    ("NUMAPolicy", Unit),
    ("NUMAMask", Unit),
    ("TimerSlackNSec", Unit),
    ("SupplementaryGroups", Unit),
    ("PAMName", Unit),
    ("SecureBits", Unit),
    ("LoadCredential", Unit),
    ("SetCredential", Unit),
    ("RuntimeDirectory", Unit),
    ("StateDirectory", Unit),
    ("CacheDirectory", Unit),
    ("LogsDirectory", Unit),
    ("ConfigurationDirectory", Unit),
    ("LogExtraFields", Unit),
    ("LogLevelMax", Unit),
    ("Personality", Unit),
    ("RestrictAddressFamilies", Unit),
    ("RestrictNamespaces", Unit),
    ("RestrictRealtime", Unit),
    ("RestrictSUIDSGID", Unit),
    ("LockPersonality", Unit),
    ("MemoryDenyWriteExecute", Unit),
    ("Type", Unit),
    ("ExecStart", Unit),
    ("ExecStartPre", Unit),
    ("ExecStartPost", Unit),
    ("ExecStop", Unit),
    ("ExecStopPost", Unit),
    ("ExecReload", Unit),
    ("RemainAfterExit", Unit),
    ("SuccessExitStatus", Unit),
];

/// The names that [`parse`] knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SERVICE.iter().map(|(name, _)| *name)
}

/// Whether `NAME=VALUE` is of a property that belongs into a unit file, and nowhere else.
pub(crate) fn only_in_a_unit_file(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    SERVICE.iter().any(|(known, service)| *known == name && *service == Unit)
}

/// Reads a property of services; `None` when there is none of that name.
pub(super) fn parse(name: &str, value: &str) -> Option<Result<OwnSetting>> {
    let (name, service) = SERVICE.iter().find(|(known, _)| *known == name)?;
    let refused = format!("a scope has no property {name}=");
    Some(match service {
        Own => typed(name, value),
        Flag(flag) => Err(fault(refused).hint(format!("use {flag}")).into()),
        Always(why) => Err(fault(refused).hint(format!("leave it out: {why}")).into()),
        Unit => Err(fault(refused).hint("put it into a service: `sandbox unit install`").into()),
    })
}

fn typed(name: &str, text: &str) -> Result<OwnSetting> {
    if let Some(limit) = name.strip_prefix("Limit") {
        return Ok(OwnSetting::Limit(Rlimit::named(limit, text)?));
    }
    Ok(match name {
        "Slice" => OwnSetting::Slice(text.to_owned()),
        "Nice" => OwnSetting::Nice(signed(text, -20, 19)?),
        "OOMScoreAdjust" => OwnSetting::OomScoreAdjust(signed(text, -1000, 1000)?),
        "UMask" => OwnSetting::Umask(umask(text)?),
        "CPUAffinity" => OwnSetting::CpuAffinity(CpuSet::parse(text)?),
        "WorkingDirectory" => OwnSetting::WorkingDirectory(text.to_owned()),
        "User" => OwnSetting::User(text.to_owned()),
        "Group" => OwnSetting::Group(text.to_owned()),
        _ => OwnSetting::Environment(environment(text)?),
    })
}

fn signed(text: &str, least: i32, most: i32) -> Result<i32> {
    match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(fault(format!("`{text}` is not in range: accepted are whole numbers from {least} to {most}")).into()),
    }
}

fn umask(text: &str) -> Result<u32> {
    let octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    match u32::from_str_radix(text, 8) {
        Ok(mask) if octal && mask <= 0o777 => Ok(mask),
        _ => {
            Err(fault(format!("`{text}` is not a file mode mask: accepted are octal numbers from 0000 to 0777")).into())
        }
    }
}

/// `A=1 "B=two words"`, as systemd.exec(5) quotes it.
fn environment(text: &str) -> Result<Vec<(String, String)>> {
    let wrong = |word: &str| {
        fault(format!("`{word}` is not an assignment: accepted are NAME=VALUE and \"NAME=two words\"")).into()
    };
    let mut variables = Vec::new();
    for word in unquote(text).ok_or_else(|| wrong(text))? {
        match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => variables.push((name.to_owned(), value.to_owned())),
            _ => return Err(wrong(&word)),
        }
    }
    Ok(variables)
}

/// Splits at blanks outside of quotes; a backslash takes the next character as it is. `None` when a quote stays open.
fn unquote(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().push(letters.next()?),
            '"' | '\'' if quote == Some(letter) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            _ if letter.is_whitespace() && quote.is_none() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_set_is_typed() {
        let words = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let table = [
            ("Nice", "-5", OwnSetting::Nice(-5)),
            ("OOMScoreAdjust", "500", OwnSetting::OomScoreAdjust(500)),
            ("UMask", "0027", OwnSetting::Umask(0o27)),
            ("Slice", "a-b.slice", OwnSetting::Slice("a-b.slice".into())),
            ("User", "nobody", OwnSetting::User("nobody".into())),
            (
                "Environment",
                r#"A=1 "B=two words" C='x y' D="#,
                OwnSetting::Environment(words(&[("A", "1"), ("B", "two words"), ("C", "x y"), ("D", "")])),
            ),
        ];
        for (name, value, want) in table {
            assert_eq!(parse(name, value).and_then(Result::ok), Some(want), "{name}={value}");
        }
        let limit = parse("LimitNOFILE", "1024:2048").and_then(Result::ok);
        assert_eq!(limit, Some(OwnSetting::Limit(Rlimit { resource: libc::RLIMIT_NOFILE, soft: 1024, hard: 2048 })));
        assert_eq!(parse("NoSuch", "1").map(|result| result.is_ok()), None);
    }

    #[test]
    fn what_we_do_otherwise_says_how() {
        let table = [
            ("PrivateNetwork", "--network none"),
            ("NoNewPrivileges", "leave it out"),
            ("RemainAfterExit", "unit install"),
            ("RootDirectory", "--rootfs"),
        ];
        for (name, hint) in table {
            let error = parse(name, "yes").and_then(Result::err);
            let found =
                error.and_then(|error| error.downcast_ref::<crate::error::Fault>()?.hint_text().map(str::to_owned));
            assert!(found.as_deref().is_some_and(|found| found.contains(hint)), "{name}: {found:?}");
        }
        for (name, value) in [
            ("Nice", "20"),
            ("UMask", "0888"),
            ("UMask", "+7"),
            ("OOMScoreAdjust", "-1001"),
            ("Environment", "\"A=1"),
            ("Environment", "A"),
        ] {
            assert_eq!(parse(name, value).map(|result| result.is_ok()), Some(false), "{name}={value}");
        }
    }
}
