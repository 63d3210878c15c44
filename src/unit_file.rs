//! A real unit file from a profile: `sandbox run --profile …` as a service, with the limits as directives, so that
//! `systemctl show` tells the truth about it.
//!
//! What belongs to the payload alone (its user, its environment, its limits by setrlimit(2)) stays in the profile: in the unit it
//! would hold for `sandbox` itself, too.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{Result, fault};
use crate::layer::Layer;
use crate::profile::Profile;
use crate::spec::{self, Spec};
use crate::systemd::{self, CgroupMode, Directive};

/// The first words of each file that [`UnitFile::new`] makes.
pub(crate) const MARK: &str = "# Made by `sandbox unit install`";

/// A unit file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UnitFile {
    /// Its name, with `.service`.
    pub(crate) name: String,
    /// What is in it.
    pub(crate) text: String,
}

/// What `[Service]` says where the profile says nothing.
const DEFAULTS: &[(&str, &str)] = &[
    ("NotifyAccess", "all"),
    ("Slice", "sandbox.slice"),
    ("KillMode", "mixed"),
    ("TimeoutStopSec", "10s"),
    ("OOMPolicy", "continue"),
];

/// Longer descriptions, in characters, are cut off.
const DESCRIPTION_MAX: usize = 80;

/// 128 + n of the signals that systemd calls a clean end: HUP, INT, PIPE, TERM. `sandbox` reports its payload's death so.
const CLEAN: &str = "129 130 141 143";

impl UnitFile {
    /// Makes the unit of `profile` for the system's manager, or the user's own, on a machine whose cgroups are laid out as `mode`
    /// says. `program` is the path of `sandbox`.
    ///
    /// # Errors
    /// When the profile is no complete request, or asks for something that a unit file cannot say.
    pub(crate) fn new(profile: &Profile, program: &Path, mode: CgroupMode, user: bool) -> Result<UnitFile> {
        let layer = check(profile)?;
        if layer.command.is_empty() && layer.image.is_none() {
            return Err(fault(format!(
                "{}: a unit needs a command or an image, and there is none in it",
                profile.path.display()
            ))
            .hint("command = [\"PROGRAM\", \"ARGUMENT\"]")
            .into());
        }
        let name = match &layer.unit {
            Some(name) => spec::unit_name("--unit", name.trim_end_matches(".scope"), ".service")?,
            None => format!("sandbox-{}.service", layer.name.as_deref().unwrap_or_default()),
        };
        let directives = directives(profile, &layer, mode)?;
        let command: Vec<String> = layer.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let asked = directives.iter().find(|directive| directive.name == "Description");
        let described = asked.map_or_else(|| line(&brief(&command, &layer)), |directive| directive.value.clone());
        let description = layer.description.as_deref().map_or(described, line);
        let mut text = format!("{MARK} from {}\n[Unit]\n", profile.path.display());
        writeln!(text, "Description={description}")?;
        writeln!(text, "Documentation=man:sandbox-run(1)")?;
        for directive in
            directives.iter().filter(|directive| directive.of_every_unit && directive.name != "Description")
        {
            writeln!(text, "{}={}", directive.name, directive.value)?;
        }
        let words = [program, Path::new("run"), Path::new("--profile"), &profile.path].map(word);
        writeln!(text, "\n[Service]\nType=notify\nExecStart={}", words.join(" "))?;
        for (name, value) in DEFAULTS {
            if !directives.iter().any(|directive| directive.name == *name) {
                writeln!(text, "{name}={value}")?;
            }
        }
        if !user && !directives.iter().any(|directive| directive.name == "DevicePolicy") {
            // For the truthful /proc and for pasta; the command itself has no such nodes.
            writeln!(text, "DevicePolicy=closed\nDeviceAllow=/dev/fuse rw\nDeviceAllow=/dev/net/tun rw")?;
        }
        writeln!(text, "SuccessExitStatus={CLEAN}")?;
        if user && !directives.iter().any(|directive| directive.name == "Delegate") {
            // Else no further process of this user could be put into it.
            writeln!(text, "Delegate=yes")?;
        }
        for directive in directives.iter().filter(|directive| !directive.of_every_unit) {
            writeln!(text, "{}={}", directive.name, directive.value)?;
        }
        writeln!(text, "\n[Install]\nWantedBy={}", if user { "default.target" } else { "multi-user.target" })?;
        Ok(UnitFile { name, text })
    }
}

/// Checks a profile's settings, as they are under no flags; a command may be missing, flags give one.
///
/// # Errors
/// With file, line and key.
pub(crate) fn check(profile: &Profile) -> Result<Layer> {
    let layer = profile.under(Layer::default());
    let mut request = layer.clone();
    request.property.retain(|text| !systemd::only_in_a_unit_file(text));
    if request.command.is_empty() {
        request.command.push("command".into());
    }
    Spec::from_layer(request).map_err(|error| profile.blame(error))?;
    Ok(layer)
}

fn directives(profile: &Profile, layer: &Layer, mode: CgroupMode) -> Result<Vec<Directive>> {
    let flags = spec::limits::flags(layer)?.into_iter().map(|(_, property)| property);
    let mut list = Vec::new();
    if let Some(slice) = &layer.slice {
        let slice = spec::unit_name("--slice", slice, ".slice")?;
        list.push(Directive { of_every_unit: false, name: "Slice".into(), value: slice });
    }
    for text in layer.property.iter().cloned().chain(flags) {
        let directive = Directive::of(&text, mode).map_err(|error| profile.blame(error))?;
        list.extend(directive.filter(|directive| !list.contains(directive)));
    }
    Ok(list)
}

/// What a unit runs, on one line of systemctl's list.
fn brief(command: &[String], layer: &Layer) -> String {
    let words = if command.is_empty() { layer.image.clone().unwrap_or_default() } else { command.join(" ") };
    match words.char_indices().nth(DESCRIPTION_MAX) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

/// A text as the value of a line, where systemd looks for specifiers.
fn line(text: &str) -> String {
    crate::error::plain(text).trim_end_matches('\\').replace('%', "%%")
}

/// A word of a command line, as systemd.service(5) quotes it.
fn word(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let bare = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:%".contains(c));
    if bare { text } else { format!("\"{text}\"") }
}

/// The directory of a manager's own unit files: `/etc/systemd/system`, or below the user's configuration.
///
/// # Errors
/// When the user has no home.
pub(crate) fn directory(user: bool) -> Result<PathBuf> {
    if !user {
        return Ok("/etc/systemd/system".into());
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    match config.or_else(home) {
        Some(config) => Ok(config.join("systemd/user")),
        None => Err(fault("no directory for the user's units: neither HOME nor XDG_CONFIG_HOME is set").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str, user: bool) -> Result<UnitFile> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my web.toml");
        std::fs::write(&path, text).unwrap();
        let mut profile = Profile::load(path.to_str().unwrap())?;
        profile.path = "/etc/sandbox/my web.toml".into();
        UnitFile::new(&profile, Path::new("/usr/bin/sandbox"), CgroupMode::Unified, user)
    }

    #[test]
    fn a_profile_becomes_a_unit() {
        let text = "command = [\"nginx\", \"-g\", \"daemon off;\"]\nslice = \"web\"\nmemory = \"256M\"\ncpu-shares = 512\n\
                    uid = \"www-data\"\nproperty = [\"After=network.target\", \"Restart=on-failure\", \"KillMode=process\"]";
        let unit = unit(text, false).unwrap();
        assert_eq!(unit.name, "sandbox-my-web.service");
        let want = "\
# Made by `sandbox unit install` from /etc/sandbox/my web.toml
[Unit]
Description=nginx -g daemon off;
Documentation=man:sandbox-run(1)
After=network.target

[Service]
Type=notify
ExecStart=/usr/bin/sandbox run --profile \"/etc/sandbox/my web.toml\"
NotifyAccess=all
TimeoutStopSec=10s
OOMPolicy=continue
DevicePolicy=closed
DeviceAllow=/dev/fuse rw
DeviceAllow=/dev/net/tun rw
SuccessExitStatus=129 130 141 143
Slice=web.slice
Restart=on-failure
KillMode=process
MemoryMax=256M
CPUWeight=50

[Install]
WantedBy=multi-user.target
";
        assert_eq!(unit.text, want);
    }

    #[test]
    fn a_users_unit_is_delegated_and_named_as_asked() {
        let unit = unit("command = [\"a\"]\nunit = \"toptest\"", true).unwrap();
        assert_eq!(unit.name, "toptest.service");
        for line in ["\nDelegate=yes\n", "\nWantedBy=default.target\n", "\nSlice=sandbox.slice\n"] {
            assert!(unit.text.contains(line), "{line}: {}", unit.text);
        }
    }

    #[test]
    fn what_is_no_request_makes_no_unit() {
        let table = [
            ("memory = \"1G\"", "a unit needs a command or an image"),
            ("command = [\"a\"]\nmemory = \"1X\"", "my web.toml:2: --memory 1X"),
            ("command = [\"a\"]\nproperty = [\n\"After=a\\nUser=b\"]", "control character"),
            ("command = [\"a\"]\nproperty = [\"Type=oneshot\"]", "my web.toml:2: Type=oneshot"),
            ("command = [\"a\"]\nas-pid1 = true\nshare = [\"pid\"]", "--as-pid1 needs"),
        ];
        for (text, want) in table {
            let error = unit(text, false).map(|unit| unit.text).unwrap_err();
            assert!(crate::error::line(&error).contains(want), "{text:?}: {error:#}");
        }
    }

    #[test]
    fn words_are_quoted_for_systemd() {
        assert_eq!(word(Path::new("/a/b-c_d.e")), "/a/b-c_d.e");
        assert_eq!(word(Path::new("/a b/100%/$x\"\\")), "\"/a b/100%%/$$x\\\"\\\\\"");
        assert_eq!(line("100%\n[Service]\\"), "100%% [Service]");
    }
}
