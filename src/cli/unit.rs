//! `sandbox unit`: a real unit file from a profile.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::error::{Result, fault};
use crate::profile::Profile;
use crate::systemd::{Bus, CgroupMode};
use crate::unit_file::{self, MARK, UnitFile};

const AFTER_HELP: &str = "\
A profile is a TOML file. Its keys are the long flags of `sandbox run`, a flag
that may be repeated takes a list, and `command` is the command:

  include = [\"base.toml\"]           # other profiles, which this one lies over
  command = [\"nginx\", \"-g\", \"daemon off;\"]
  memory = \"256M\"
  read-only = true
  bind = [\"./site:/srv/www:ro\"]    # relative to this file, like include
  [property]                        # or property = [\"CPUWeight=50\"]
  CPUWeight = 50
  Restart = \"on-failure\"            # of services: for `sandbox unit install`

`sandbox run --profile web` looks for web.toml in ./, ~/.config/sandbox,
/etc/sandbox and /usr/share/sandbox, and flags override what is in it. The
packaged unit sandbox@web.service runs the same profile at boot.

Examples:
  sandbox unit check web
  sandbox unit install web --enable --now
      Then: systemctl status sandbox-web.service";

// Flags of `sandbox unit`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum What {
    /// Check a profile, and show each setting with the file and line it comes from
    ///
    /// Nothing is started and nothing written, and it needs no root.
    Check {
        /// A profile, as for `sandbox run --profile`
        #[arg(value_name = "NAME|PATH")]
        profile: String,
        /// Print JSON: the file, and key, value, file and line of each setting
        #[arg(long)]
        json: bool,
    },
    /// Print the unit that `install` writes
    Cat(Which),
    /// Write a unit that runs a profile as a service
    ///
    /// The limits are in it as directives of systemd, and `sandbox run` checks that they are in force. It is called as the profile's
    /// key `unit` says, else sandbox-NAME.service. A unit of that name that was not made so is left alone.
    Install {
        #[command(flatten)]
        which: Which,
        /// Start it at boot: systemctl enable
        #[arg(long)]
        enable: bool,
        /// Start it now, or again: systemctl restart
        #[arg(long)]
        now: bool,
    },
}

// A profile, and for whom.
#[derive(Debug, Args)]
struct Which {
    /// A profile, as for `sandbox run --profile`
    #[arg(value_name = "NAME|PATH")]
    profile: String,
    /// For your own service manager [default for everyone but root]
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// For the system's service manager [default for root]
    #[arg(long)]
    system: bool,
}

/// Where packages have units; man 5 systemd.unit.
const FILES: [&str; 3] = ["/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Runs it.
pub(super) fn main(arguments: &Arguments) -> Result<u8> {
    match &arguments.what {
        What::Check { profile, json } => check(profile, *json)?,
        What::Cat(which) => std::io::stdout().write_all(which.unit()?.0.text.as_bytes())?,
        What::Install { which, enable, now } => {
            let (unit, user) = which.unit()?;
            install(&unit, user, *enable, *now)?;
        }
    }
    Ok(0)
}

impl Which {
    /// The unit, and whether it is for the user's own manager.
    fn unit(&self) -> Result<(UnitFile, bool)> {
        let profile = Profile::load(&self.profile)?;
        let asked = match (self.user, self.system) {
            (false, false) => profile.layer.user.or(profile.layer.system.map(|system| !system)),
            (user, _) => Some(user),
        };
        let user = asked.unwrap_or(!rustix::process::geteuid().is_root());
        let program = std::env::current_exe().context("find the path of sandbox itself")?;
        Ok((UnitFile::new(&profile, &program, CgroupMode::read()?, user)?, user))
    }
}

fn check(name: &str, json: bool) -> Result<()> {
    let profile = Profile::load(name)?;
    unit_file::check(&profile)?;
    let mut out = std::io::stdout().lock();
    if json {
        let shown = serde_json::json!({ "profile": profile.path, "settings": profile.origins });
        writeln!(out, "{shown:#}")?;
        return Ok(());
    }
    writeln!(out, "{}: no errors", profile.path.display())?;
    let setting = |origin: &crate::profile::Origin| crate::error::plain(&format!("{} = {}", origin.key, origin.value));
    let width = profile.origins.iter().map(|origin| setting(origin).chars().count()).max().unwrap_or(0).min(60);
    for origin in &profile.origins {
        writeln!(out, "  {:width$}  {}:{}", setting(origin), origin.file.display(), origin.line)?;
    }
    Ok(())
}

fn install(unit: &UnitFile, user: bool, enable: bool, now: bool) -> Result<()> {
    let directory = unit_file::directory(user)?;
    if user {
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let path = directory.join(&unit.name);
    check_ours(&path)?;
    check_free(&unit.name, user)?;
    replace(&directory, &unit.name, unit.text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    if Path::new("/run/systemd/system").exists() {
        systemctl(user, &["daemon-reload"])?;
    }
    if enable {
        systemctl(user, &["enable", &unit.name])?;
    }
    if now {
        systemctl(user, &["restart", &unit.name])?;
    }
    Ok(())
}

/// A unit that somebody wrote by hand is not ours to replace.
fn check_ours(path: &Path) -> Result<()> {
    let free = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound && !path.is_symlink();
    if is_ours(path).unwrap_or_else(|error| free(&error)) {
        return Ok(());
    }
    Err(fault(format!("{}: it is there already, and `sandbox unit install` did not make it", path.display()))
        .hint(format!("another name: the profile's key `unit`; or remove it: rm {}", path.display()))
        .into())
}

/// Nor is the unit of a package, which a file of ours would hide, nor one that runs without a file of its administrator's. An instance of a
/// template may have a file of its own: that is what it is for.
fn check_free(name: &str, user: bool) -> Result<()> {
    let bus = if user { Bus::user() } else { Bus::system() };
    let there = match bus.and_then(|mut bus| bus.unit_file(name)) {
        Ok(file) => file,
        Err(_) if user => None,
        // Without an answer only packages can have one.
        Err(_) => FILES.iter().map(|directory| Path::new(directory).join(name)).find(|file| file.exists()),
    };
    let is_template = |file: &Path| file.file_stem().is_some_and(|stem| stem.as_bytes().ends_with(b"@"));
    match there.filter(|there| !is_ours(there).unwrap_or(false) && !is_template(there)) {
        None => Ok(()),
        Some(there) => Err(fault(format!("{name}: there is a unit of that name already, {}", there.display()))
            .hint("another name: the profile's key `unit`")
            .into()),
    }
}

/// Whether `sandbox unit install` made this file.
fn is_ours(file: &Path) -> std::io::Result<bool> {
    std::fs::read_to_string(file).map(|text| text.starts_with(MARK))
}

/// The file is there as a whole or not at all, after a power failure too.
fn replace(directory: &Path, name: &str, text: &[u8]) -> Result<()> {
    let new = directory.join(format!(".{name}.new-{}", std::process::id()));
    let written = (|| -> Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, directory.join(name))?;
        File::open(directory)?.sync_all()?;
        Ok(())
    })();
    if written.is_err() {
        // Where it was never made there is nothing to remove.
        drop(std::fs::remove_file(&new));
    }
    written
}

/// systemctl says itself, on stderr, what went wrong.
fn systemctl(user: bool, words: &[&str]) -> Result<()> {
    let manager: &[&str] = if user { &["--user"] } else { &[] };
    let status = Command::new("systemctl").args(manager).args(words).status().context("run systemctl")?;
    if status.success() {
        return Ok(());
    }
    let command = [&["systemctl"], manager, words].concat().join(" ");
    Err(fault(format!("{command}: it ended with {}", status.code().unwrap_or(-1)))
        .hint(format!("systemctl {}status {}", if user { "--user " } else { "" }, words.last().unwrap_or(&"")))
        .into())
}
