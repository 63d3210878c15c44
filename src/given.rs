//! Where each setting of a run came from: the command line, a line of a profile, an image's config, the root that it goes on with.

use std::ffi::OsString;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::layer::Layer;
use crate::profile::{Origin, Profile};

/// One setting that was given to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Given {
    /// The long name of a flag, which is the key in a profile, or `command`.
    pub(crate) key: String,
    /// The value, one of several where the key takes a list.
    pub(crate) value: String,
    /// `command line`, `FILE:LINE`, or `image NAME` and `kept root NAME`.
    pub(crate) from: String,
}

/// All settings of a run with their sources. The list is made when it is written down, which is while systemd works.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Provenance {
    /// The flags alone.
    flags: Layer,
    /// The lines of the profile.
    origins: Vec<Origin>,
    /// All sources together.
    whole: Layer,
    /// What is below the flags and the profile.
    under: String,
}

impl Provenance {
    /// Takes note of the flags and the profile before they are put together.
    pub(crate) fn new(flags: &Layer, profile: Option<&Profile>) -> Provenance {
        let origins = profile.map_or_else(Vec::new, |profile| profile.origins.clone());
        Provenance { flags: flags.clone(), origins, ..Provenance::default() }
    }

    /// Takes note of what they and, below them, what `under` names became.
    pub(crate) fn of(self, whole: &Layer, under: String) -> Provenance {
        Provenance { whole: whole.clone(), under, ..self }
    }

    /// The image that was asked for.
    pub(crate) fn image(&self) -> Option<&str> {
        self.whole.image.as_deref()
    }

    /// Each setting.
    fn list(&self) -> Vec<Given> {
        let sources = Sources { flags: settings(&self.flags), origins: &self.origins, under: &self.under };
        let mut list = Vec::new();
        for (key, value) in settings(&self.whole) {
            match value {
                Value::Array(items) if key == "command" => {
                    let words: Vec<String> = items.iter().map(text).collect();
                    list.push(sources.scalar(key, words.join(" ")));
                }
                Value::Array(items) => sources.items(&key, &items, &mut list),
                value => list.push(sources.scalar(key, text(&value))),
            }
        }
        list
    }
}

impl Serialize for Provenance {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.list().serialize(to)
    }
}

/// The sources of a run's settings, the one that counts most first.
struct Sources<'a> {
    flags: Vec<(String, Value)>,
    origins: &'a [Origin],
    under: &'a str,
}

impl Sources<'_> {
    fn flag(&self, key: &str) -> Option<&Value> {
        self.flags.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn scalar(&self, key: String, value: String) -> Given {
        let from = match (self.flag(&key), self.origins.iter().rev().find(|origin| origin.key == key)) {
            (Some(_), _) => COMMAND_LINE.to_owned(),
            (None, Some(origin)) => place(origin),
            (None, None) => self.under.to_owned(),
        };
        Given { key, value, from }
    }

    /// Lists are appended: the lowest source's items come first, the flags' last.
    fn items(&self, key: &str, items: &[Value], list: &mut Vec<Given>) {
        let flags = self.flag(key).and_then(Value::as_array).map_or(0, Vec::len);
        let below = items.len().saturating_sub(flags);
        let origins: Vec<&Origin> = self.origins.iter().filter(|origin| origin.key == key).collect();
        let first_of_profile = below.saturating_sub(origins.len());
        for (index, item) in items.iter().enumerate() {
            let value = text(item);
            // A path is anchored at the profile's directory, and an item that a flag overrides is gone: so the value is looked for first.
            let same = origins.iter().find(|origin| value.ends_with(origin.value.trim_start_matches("./")));
            let nth = index.checked_sub(first_of_profile).and_then(|nth| origins.get(nth));
            let from = if index >= below {
                COMMAND_LINE.to_owned()
            } else {
                same.or(nth).map_or_else(|| self.under.to_owned(), |origin| place(origin))
            };
            list.push(Given { key: key.to_owned(), value, from });
        }
    }
}

const COMMAND_LINE: &str = "command line";

fn place(origin: &Origin) -> String {
    format!("{}:{}", origin.file.display(), origin.line)
}

/// What is set in a layer.
fn settings(layer: &Layer) -> Vec<(String, Value)> {
    let Ok(Value::Object(map)) = serde_json::to_value(layer) else { return Vec::new() };
    let is_set = |value: &Value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty());
    map.into_iter().filter(|(_, value)| is_set(value)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Writes a text that may be a path and need not be UTF-8.
pub(crate) fn shown_text<S: Serializer>(text: &Option<OsString>, to: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| text.to_string_lossy()).serialize(to)
}

/// Writes a list of such texts.
pub(crate) fn shown_texts<S: Serializer>(texts: &[OsString], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(texts.iter().map(|text| text.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(key: &str, value: &str, line: usize) -> Origin {
        Origin { key: key.into(), value: value.into(), file: "/etc/sandbox/web.toml".into(), line }
    }

    #[test]
    fn each_setting_has_its_source() {
        let flags = Layer { memory: Some("1G".into()), property: vec!["CPUWeight=50".into()], ..Layer::default() };
        let origins = vec![
            origin("memory", "500M", 2),
            origin("slice", "test", 3),
            origin("bind", "./site:/srv", 4),
            origin("property", "TasksMax=9", 5),
        ];
        let whole = Layer {
            memory: Some("1G".into()),
            slice: Some("test".into()),
            property: vec!["TasksMax=9".into(), "CPUWeight=50".into()],
            bind: vec!["/etc/sandbox/site:/srv".into()],
            setenv: vec!["PATH=/bin".into()],
            read_only: Some(true),
            command: vec!["nginx".into(), "-g".into()],
            ..Layer::default()
        };
        let given = Provenance { flags, origins, whole, under: "image web".into() }.list();
        let from = |key: &str, value: &str| {
            given.iter().find(|given| given.key == key && given.value == value).map(|given| given.from.as_str())
        };
        assert_eq!(from("memory", "1G"), Some("command line"));
        assert_eq!(from("slice", "test"), Some("/etc/sandbox/web.toml:3"));
        assert_eq!(from("bind", "/etc/sandbox/site:/srv"), Some("/etc/sandbox/web.toml:4"));
        assert_eq!(from("property", "TasksMax=9"), Some("/etc/sandbox/web.toml:5"));
        assert_eq!(from("property", "CPUWeight=50"), Some("command line"));
        assert_eq!(from("setenv", "PATH=/bin"), Some("image web"));
        assert_eq!(from("command", "nginx -g"), Some("image web"));
        assert_eq!(from("read-only", "true"), Some("image web"));
        assert_eq!(given.len(), 8, "{given:?}");
    }
}
