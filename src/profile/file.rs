//! One file: TOML → [`Layer`], and where each setting is.

use std::borrow::Cow;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::Origin;
use crate::error::{Result, fault};
use crate::layer::Layer;
use crate::nearest::nearest;

/// The key that is no setting.
const INCLUDE: &str = "include";

/// The name of the command as a key.
const COMMAND: &str = "command";

/// Keys whose list may be written as a table, since each item is `NAME=VALUE`.
const TABLES: &[&str] = &["property", "setenv", "ulimit"];

/// What one file says.
pub(super) struct File {
    pub(super) layer: Layer,
    /// Other files, as written, and the line.
    pub(super) includes: Vec<(PathBuf, usize)>,
    pub(super) origins: Vec<Origin>,
}

impl File {
    /// Reads `text`, which is that of the file `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<File> {
        let source = Source { text, path };
        let mut table = DeTable::parse(text).map_err(|error| source.wrong(&error, None))?;
        check_keys(table.get_ref(), &source)?;
        let entries = table.get_mut();
        let include = entries.remove(INCLUDE);
        for (key, value) in entries.iter_mut() {
            plain(key.get_ref(), value, &source)?;
        }
        let origins = origins(entries, &source);
        let places: Vec<(String, Range<usize>)> =
            entries.iter().map(|(key, value)| (key.get_ref().to_string(), value.span())).collect();
        let mut layer = Layer::deserialize(Deserializer::from(table)).map_err(|error| {
            let at = error.span().unwrap_or_default().start;
            let key = places.iter().find(|(_, span)| span.contains(&at)).map(|(key, _)| key.as_str());
            source.wrong(&error, key)
        })?;
        anchor(&mut layer, path.parent().unwrap_or(Path::new("/")));
        Ok(File { layer, includes: include.map_or(Ok(Vec::new()), |value| includes(&value, &source))?, origins })
    }
}

/// A file's text, for messages.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    /// The line of a place in the text, from 1.
    fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or_default().matches('\n').count() + 1
    }

    fn at(&self, place: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(place))
    }

    /// An error of the TOML reader as one line.
    fn wrong(&self, error: &toml::de::Error, key: Option<&str>) -> anyhow::Error {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
        let line = fault(format!("{}: {key}{message}", self.at(error.span().unwrap_or_default().start)));
        if message.contains("expected a sequence") {
            return line.hint("a list is written in brackets, even of one: [\"…\"]").into();
        }
        line.into()
    }
}

/// Every key: the flags of `run`, and the other names that a flag has.
pub(super) fn keys() -> Vec<(String, Vec<String>)> {
    let command = Layer::augment_args(clap::Command::new("run"));
    let key = |flag: &clap::Arg| {
        let name = flag.get_long().unwrap_or(COMMAND).to_owned();
        let others = flag.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned);
        (name, others.collect())
    };
    command.get_arguments().map(key).collect()
}

/// Refuses a key that is not one, and says which was likely meant.
fn check_keys(table: &DeTable<'_>, source: &Source<'_>) -> Result<()> {
    let known = keys();
    for key in table.keys() {
        let name = key.get_ref().as_ref();
        if name == INCLUDE || known.iter().any(|(known, _)| known == name) {
            continue;
        }
        let unknown = fault(format!("{}: `{name}` is not a key of a profile", source.at(key.span().start)));
        let alias = known.iter().find(|(_, others)| others.iter().any(|other| other == name));
        let near = alias.map(|(known, _)| known.as_str());
        let near = near.or_else(|| nearest(name, known.iter().map(|(known, _)| known.as_str()).chain([INCLUDE])));
        return Err(match near {
            Some(near) => unknown.hint(format!("did you mean `{near}`?")),
            None => unknown.hint("keys are the long flags of `sandbox run --help`, without the dashes"),
        }
        .into());
    }
    Ok(())
}

/// Brings a value into the form in which the flags are: text instead of numbers, a list instead of a table of names.
fn plain(key: &str, value: &mut Spanned<DeValue<'_>>, source: &Source<'_>) -> Result<()> {
    let at = value.span().start;
    let refused = |what: &str| Err(fault(format!("{}: {key}: {what}", source.at(at))).into());
    match value.get_mut() {
        DeValue::Integer(number) if number.radix() == 10 => {
            *value.get_mut() = DeValue::String(Cow::Owned(number.as_str().to_owned()));
        }
        DeValue::Float(number) => *value.get_mut() = DeValue::String(Cow::Owned(number.as_str().to_owned())),
        DeValue::String(text) if text.contains('\0') => return refused("a text cannot have a NUL character in it"),
        DeValue::Array(list) => {
            for item in list.iter_mut() {
                plain(key, item, source)?;
            }
        }
        DeValue::Table(table) if TABLES.contains(&key) => {
            let mut list = toml::de::DeArray::new();
            for (name, value) in std::mem::take(table) {
                let (name, span) = (name.into_inner(), value.span());
                for text in assigned(&value, &|| format!("{}: {key}.{name}", source.at(span.start)))? {
                    list.push(Spanned::new(span.clone(), DeValue::String(Cow::Owned(format!("{name}={text}")))));
                }
            }
            *value.get_mut() = DeValue::Array(list);
            return plain(key, value, source);
        }
        _ => {}
    }
    Ok(())
}

/// The texts that a name in a table is set to: several for a property that is given often.
fn assigned(value: &Spanned<DeValue<'_>>, at: &dyn Fn() -> String) -> Result<Vec<String>> {
    Ok(match value.get_ref() {
        DeValue::String(text) => vec![text.to_string()],
        DeValue::Integer(number) if number.radix() == 10 => vec![number.as_str().to_owned()],
        DeValue::Float(number) => vec![number.as_str().to_owned()],
        DeValue::Boolean(yes) => vec![yes.to_string()],
        DeValue::Array(list) => {
            let lists = list.iter().map(|item| match item.get_ref() {
                DeValue::Array(_) => Err(fault(format!("{}: a list in a list", at())).into()),
                _ => assigned(item, at),
            });
            lists.collect::<Result<Vec<_>>>()?.concat()
        }
        DeValue::Table(_) | DeValue::Datetime(_) | DeValue::Integer(_) => {
            return Err(
                fault(format!("{}: accepted are a text, a number, true and false, and lists of them", at())).into()
            );
        }
    })
}

fn includes(value: &Spanned<DeValue<'_>>, source: &Source<'_>) -> Result<Vec<(PathBuf, usize)>> {
    let wrong = || fault(format!("{}: include: accepted is a list of files", source.at(value.span().start)));
    let DeValue::Array(list) = value.get_ref() else {
        return Err(wrong().hint("include = [\"base.toml\"]").into());
    };
    let file = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::String(text) if !text.contains('\0') => {
            Ok((PathBuf::from(text.as_ref()), source.line(item.span().start)))
        }
        _ => Err(wrong().into()),
    };
    list.iter().map(file).collect()
}

/// Where each setting is; each item of a list on its own, but the command as a whole.
fn origins(table: &DeTable<'_>, source: &Source<'_>) -> Vec<Origin> {
    let mut origins = Vec::new();
    for (key, value) in table {
        let key = key.get_ref().to_string();
        let mut add = |value: String, at: usize| {
            let (key, file) = (key.clone(), source.path.to_owned());
            origins.push(Origin { key, value, file, line: source.line(at) });
        };
        match value.get_ref() {
            DeValue::Array(list) if key == COMMAND => {
                add(list.iter().map(|item| shown(item.get_ref())).collect::<Vec<_>>().join(" "), value.span().start);
            }
            DeValue::Array(list) => list.iter().for_each(|item| add(shown(item.get_ref()), item.span().start)),
            other => add(shown(other), value.span().start),
        }
    }
    origins.sort_by_key(|origin| origin.line);
    origins
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(yes) => yes.to_string(),
        _ => String::new(),
    }
}

/// Paths of the host in a file are relative to the file, wherever `sandbox` is called.
fn anchor(layer: &mut Layer, directory: &Path) {
    let single = [&mut layer.rootfs, &mut layer.store, &mut layer.docker_root];
    for path in single.into_iter().flatten().chain(&mut layer.layer) {
        *path = directory.join(&*path);
    }
    if let Some(upper) = &mut layer.upper
        && upper.to_str().is_none_or(|text| text != "tmpfs" && !text.starts_with("tmpfs:"))
    {
        *upper = directory.join(&*upper).into_os_string();
    }
    if let Some(seccomp) = &mut layer.seccomp
        && !matches!(seccomp.to_str(), Some("default" | "unconfined"))
    {
        *seccomp = directory.join(&*seccomp).into_os_string();
    }
    for bind in &mut layer.bind {
        if !bind.is_empty() && !bind.to_string_lossy().starts_with(['/', ':']) {
            let mut full: OsString = directory.join("").into_os_string();
            full.push(bind.to_string_lossy().trim_start_matches("./"));
            *bind = full;
        }
    }
}
