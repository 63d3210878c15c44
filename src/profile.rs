//! Profiles: the flags of `run` in a file.
//!
//! A profile is TOML. Each key is the long name of a flag, `command` is the command, and `include` names other profiles that this
//! one lies over. So a file becomes a [`Layer`] as the flags do, and flags lie over the profile they name.
//!
//! ```toml
//! include = ["base.toml"]             # relative to this file
//! command = ["nginx", "-g", "daemon off;"]
//! memory = "256M"
//! pids-limit = 64                     # a number may be written as one
//! bind = ["./site:/srv/www:ro"]       # a path of the host is relative to this file
//! [property]                          # or property = ["CPUWeight=50"]; setenv and ulimit, too
//! CPUWeight = 50
//! ```

mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod precedence;
mod search;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Result, fault};
use crate::layer::Layer;

/// A profile with all that it includes.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    /// Its settings.
    pub(crate) layer: Layer,
    /// The file, without links in its path.
    pub(crate) path: PathBuf,
    /// Where each setting was found: that of an included file before that of the file over it.
    pub(crate) origins: Vec<Origin>,
}

/// Where a setting of a profile was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Origin {
    /// The key: the long name of a flag, or `command`.
    pub(crate) key: String,
    /// The value, one of several where the key takes a list.
    pub(crate) value: String,
    /// The file.
    pub(crate) file: PathBuf,
    /// Its line, from 1.
    pub(crate) line: usize,
}

impl Profile {
    /// Finds and reads the profile that `asked` names: a path where it has a `/` or ends in `.toml`, else a name that is looked up
    /// as `NAME.toml` in `./`, `~/.config/sandbox`, `/etc/sandbox` and `/usr/share/sandbox`.
    ///
    /// # Errors
    /// With file, line and key, and the nearest key where there is one that was likely meant.
    pub(crate) fn load(asked: &str) -> Result<Profile> {
        let path = search::find(asked)?;
        let mut reader = Reader { open: Vec::new(), read: Vec::new(), origins: Vec::new() };
        let layer = reader.read(&path)?;
        Ok(Profile { layer, path, origins: reader.origins })
    }

    /// Its name: that of the file, without `.toml`.
    pub(crate) fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The profile under the flags: what they say counts. Where nobody names the sandbox it is called as the profile is; a kept root
    /// of that name is gone on with only where `keep` asks for it.
    pub(crate) fn under(&self, flags: Layer) -> Layer {
        let mut layer = precedence::over(flags, self.layer.clone());
        if layer.name.is_none() {
            layer.name = Some(crate::spec::name_of(self.name().as_ref()));
            layer.keep.get_or_insert(false);
        }
        layer
    }

    /// Puts file and line in front of an error that a setting of this profile led to.
    pub(crate) fn blame(&self, error: anyhow::Error) -> anyhow::Error {
        let text = crate::error::line(&error);
        let flag = |origin: &&Origin| text.contains(&format!("--{} ", origin.key));
        let said = |origin: &&Origin| {
            let value = origin.value.trim_start_matches("./");
            !value.is_empty() && text.contains(value)
        };
        let unknown = |origin: &&Origin| {
            origin.value.split_once('=').is_some_and(|(name, _)| text.contains(&format!("`{name}`")))
        };
        let property = |origin: &&Origin| origin.key == "property" && (said(origin) || unknown(origin));
        let newest_first = || self.origins.iter().rev();
        let mut of_flag = newest_first().filter(flag);
        let only = of_flag.next().filter(|_| of_flag.next().is_none());
        let found = newest_first().filter(flag).find(said).or(only).or_else(|| newest_first().find(property));
        match found {
            Some(origin) => error.context(format!("{}:{}", origin.file.display(), origin.line)),
            None => error,
        }
    }
}

/// A profile is written by hand: what is larger is something else.
const SIZE_MAX: u64 = 1 << 20;

/// Reads a file and all that it includes.
struct Reader {
    /// The files that are being read, each included by the one before it.
    open: Vec<PathBuf>,
    /// The files that were read: one that is included twice counts once.
    read: Vec<PathBuf>,
    origins: Vec<Origin>,
}

impl Reader {
    fn read(&mut self, path: &Path) -> Result<Layer> {
        let file = file::File::parse(&text_of(path)?, path)?;
        self.open.push(path.to_owned());
        let mut under = Layer::default();
        for (include, line) in &file.includes {
            let at = format!("{}:{line}: include {}", path.display(), include.display());
            let real = std::fs::canonicalize(path.parent().unwrap_or(Path::new("/")).join(include))
                .map_err(|error| anyhow::Error::from(error).context(at.clone()))?;
            if self.open.contains(&real) {
                let chain: Vec<_> = self.open.iter().chain([&real]).map(|path| path.display().to_string()).collect();
                return Err(fault(format!("{at}: a profile cannot include itself: {}", chain.join(" → "))).into());
            }
            if !self.read.contains(&real) {
                under = precedence::over(self.read(&real)?, under);
            }
        }
        self.open.pop();
        self.read.push(path.to_owned());
        self.origins.extend(file.origins);
        Ok(precedence::over(file.layer, under))
    }
}

fn text_of(path: &Path) -> Result<String> {
    use anyhow::Context;
    let shown = || format!("read profile {}", path.display());
    let kind = std::fs::metadata(path).with_context(shown)?;
    if !kind.is_file() || kind.len() > SIZE_MAX {
        return Err(fault(format!("{}: a profile is a regular file of at most 1 MiB", path.display())).into());
    }
    std::fs::read_to_string(path).with_context(shown)
}

/// Reads a text that may be a path, which [`OsString`] itself does not take from a file.
pub(crate) fn text<'de, D: Deserializer<'de>>(source: D) -> std::result::Result<Option<OsString>, D::Error> {
    Ok(Option::<String>::deserialize(source)?.map(OsString::from))
}

/// Reads a list of such texts.
pub(crate) fn texts<'de, D: Deserializer<'de>>(source: D) -> std::result::Result<Vec<OsString>, D::Error> {
    Ok(Vec::<String>::deserialize(source)?.into_iter().map(OsString::from).collect())
}

#[cfg(test)]
mod tests;
