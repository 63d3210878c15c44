//! Where a profile is looked for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::error::{Result, fault};
use crate::nearest::nearest;

/// Written by nobody but its owner and group.
const OTHERS_WRITE: u32 = 0o002;

/// The file of the profile that is asked for, without links in its path.
pub(super) fn find(asked: &str) -> Result<PathBuf> {
    if asked.contains('/') || asked.ends_with(".toml") {
        return std::fs::canonicalize(asked).with_context(|| format!("profile {asked}"));
    }
    let places = places();
    for place in &places {
        let path = place.join(format!("{asked}.toml"));
        if !path.is_file() {
            continue;
        }
        if place == Path::new(".") {
            check_owner(asked, &path)?;
        }
        return std::fs::canonicalize(&path).with_context(|| format!("profile {}", path.display()));
    }
    let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let missing = fault(format!("profile {asked}: there is no {asked}.toml in {}", shown.join(", ")));
    let known: Vec<String> = places.iter().flat_map(|place| names_in(place)).collect();
    Err(match nearest(asked, known.iter().map(String::as_str)) {
        Some(near) => missing.hint(format!("did you mean {near}?")),
        None => missing.hint("a path has a / in it: --profile ./NAME.toml"),
    }
    .into())
}

/// The places, first come first served.
fn places() -> Vec<PathBuf> {
    let own = match (std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME")) {
        (Some(config), _) if Path::new(&config).is_absolute() => Some(PathBuf::from(config)),
        (_, Some(home)) if Path::new(&home).is_absolute() => Some(PathBuf::from(home).join(".config")),
        _ => None,
    };
    let own = own.map(|config| config.join("sandbox"));
    let others = ["/etc/sandbox", "/usr/share/sandbox"].map(PathBuf::from);
    [PathBuf::from(".")].into_iter().chain(own).chain(others).collect()
}

fn names_in(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect()
}

/// In a directory that others write to, a bare name must not pick up what one of them left there.
fn check_owner(asked: &str, path: &Path) -> Result<()> {
    let file = std::fs::metadata(path).with_context(|| format!("profile {}", path.display()))?;
    let by_sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    let owners = [Some(rustix::process::geteuid().as_raw()), Some(0), by_sudo];
    let whose = if !owners.contains(&Some(file.uid())) {
        format!("it belongs to user {}", file.uid())
    } else if file.mode() & OTHERS_WRITE != 0 {
        "everybody can write to it".to_owned()
    } else {
        return Ok(());
    };
    Err(fault(format!("profile ./{asked}.toml is not taken by its bare name: {whose}"))
        .hint(format!("--profile ./{asked}.toml if that one is meant"))
        .into())
}
