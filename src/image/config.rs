//! The image config: what an image says about how it wants to be run (OCI image spec, config.md).

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::manifest::Platform;
use crate::error::{Result, fault};

/// A parsed image config. The bytes that it came from stay in the store; this is for reading only.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ImageConfig {
    /// The processor it is for, in Go's words.
    #[serde(default)]
    pub(crate) architecture: String,
    /// The operating system it is for.
    #[serde(default)]
    pub(crate) os: String,
    /// The processor's variant.
    #[serde(default)]
    pub(crate) variant: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub(crate) created: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) config: RunConfig,
    /// Its layers.
    pub(crate) rootfs: Rootfs,
    /// What made each layer, lowest first, and what changed the config only.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) history: Vec<History>,
}

/// The `config` object: defaults for a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    /// User to run as: `name`, `uid`, `name:group`, `uid:gid` …; empty is root.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    /// Ports that the image says it listens on: shown, nothing is opened.
    #[serde(deserialize_with = "keys", skip_serializing_if = "Vec::is_empty")]
    pub(crate) exposed_ports: Vec<String>,
    /// `NAME=value` pairs.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) env: Vec<String>,
    /// The front of the command line.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub(crate) entrypoint: Vec<String>,
    /// The rest of it, or all of it without an entrypoint.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub(crate) cmd: Vec<String>,
    /// Directories that want to live outside the image's root.
    #[serde(deserialize_with = "keys", skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<String>,
    /// Where to start; empty is `/`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub(crate) working_dir: String,
    /// Free text.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// The signal that asks it to stop: `SIGTERM`, `TERM` or a number; empty is the default.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub(crate) stop_signal: String,
}

/// The layers' identities.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Digest of each uncompressed layer tar, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// One step of how an image came to be.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    /// By which command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

/// Docker writes `null` for what is empty.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    source: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::<T>::deserialize(source)?.unwrap_or_default())
}

/// A set is written as an object with empty values (Go's `map[string]struct{}`).
fn keys<'de, D: Deserializer<'de>>(source: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Set {
        Object(BTreeMap<String, serde::de::IgnoredAny>),
        List(Vec<String>),
    }
    Ok(match Option::<Set>::deserialize(source)? {
        None => Vec::new(),
        Some(Set::Object(map)) => map.into_keys().collect(),
        // Our own output, read back.
        Some(Set::List(list)) => list,
    })
}

/// A command line; builders before 2015 wrote a single string for one word.
fn words<'de, D: Deserializer<'de>>(source: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(source)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

impl ImageConfig {
    /// Reads a config; `what` names the image in errors.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<ImageConfig> {
        let config: ImageConfig = match serde_json::from_slice(bytes) {
            Ok(config) => config,
            Err(error) => return Err(fault(format!("{what}: not an image config: {error}")).into()),
        };
        if config.rootfs.kind != "layers" {
            return Err(fault(format!("{what}: rootfs type {:?} is not layers", config.rootfs.kind)).into());
        }
        Ok(config)
    }

    /// The machine it is for.
    pub(crate) fn platform(&self) -> Platform {
        Platform { architecture: self.architecture.clone(), os: self.os.clone(), variant: self.variant.clone() }
    }
}

impl RunConfig {
    /// The command line of a run, by Docker's rules: `--entrypoint` replaces Entrypoint *and* takes the image's Cmd
    /// away (it was written for the other program); words on the command line replace Cmd.
    ///
    /// An empty `--entrypoint` clears it. `what` names the image in the error of an image that names no command.
    pub(crate) fn argv(&self, entrypoint: Option<&str>, words: &[OsString], what: &str) -> Result<Vec<OsString>> {
        let own = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut argv = match entrypoint {
            None => own(&self.entrypoint),
            Some("") => Vec::new(),
            Some(program) => vec![program.into()],
        };
        if !words.is_empty() {
            argv.extend_from_slice(words);
        } else if entrypoint.is_none() {
            argv.extend(own(&self.cmd));
        }
        if argv.is_empty() {
            return Err(fault(format!("{what}: the image names no command"))
                .hint("put one behind the image: sandbox run --image NAME -- COMMAND")
                .into());
        }
        Ok(argv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(config: &RunConfig, entrypoint: Option<&str>, words: &[&str]) -> Vec<OsString> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        config.argv(entrypoint, &words, "x").unwrap()
    }

    #[test]
    fn command_line_by_docker_rules() {
        let config =
            RunConfig { entrypoint: vec!["e".into(), "f".into()], cmd: vec!["c".into()], ..RunConfig::default() };
        assert_eq!(argv(&config, None, &[]), ["e", "f", "c"]);
        assert_eq!(argv(&config, None, &["a", "b"]), ["e", "f", "a", "b"]);
        assert_eq!(argv(&config, Some("x"), &[]), ["x"]);
        assert_eq!(argv(&config, Some("x"), &["a"]), ["x", "a"]);
        assert_eq!(argv(&config, Some(""), &["a"]), ["a"]);
        assert!(RunConfig::default().argv(None, &[], "busybox").unwrap_err().to_string().starts_with("busybox: "));
    }

    #[test]
    fn docker_nulls_and_old_shapes_are_read() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":"sh","Entrypoint":null,"Volumes":{"/data":{}},
            "ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Labels":null,"OnBuild":null,"Healthcheck":{"Test":["CMD"]}},"history":null,"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ImageConfig::parse(text.as_bytes(), "x").unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.volumes, ["/data"]);
        assert_eq!(config.config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert!(config.rootfs.diff_ids.is_empty());
        let none = r#"{"config":null,"rootfs":{"type":"layers"}}"#;
        assert!(ImageConfig::parse(none.as_bytes(), "x").unwrap().config.env.is_empty());
    }
}
