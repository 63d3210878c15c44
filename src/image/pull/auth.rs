//! Credentials for a registry, and the challenges that ask for them.

use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

use super::super::lookup::is_single_part;
use crate::error::{Result, fault};

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// A user and a password.
    Password(String, String),
    /// A token that is exchanged for short-lived ones (`docker login` against some registries).
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    /// Never shows what must not be seen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Password(..) => "Password(…)",
            Credentials::Identity(_) => "Identity(…)",
        })
    }
}

impl Credentials {
    /// Reads `USER:PASSWORD`, or with `-` one such line from standard input.
    pub(crate) fn from_argument(text: &str) -> Result<Credentials> {
        if text != "-" {
            return Credentials::from_pair(text);
        }
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        Credentials::from_pair(line.trim_end_matches(['\n', '\r']))
    }

    fn from_pair(pair: &str) -> Result<Credentials> {
        match pair.split_once(':') {
            Some((user, password)) if !user.is_empty() => Ok(Credentials::Password(user.into(), password.into())),
            _ => Err(fault("--creds: not of the form USER:PASSWORD")
                .hint("or --creds - with that line on standard input")
                .into()),
        }
    }

    /// The header that carries them, where a header can.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password(user, password) => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Identity(_) => None,
        }
    }
}

/// docker's config.json and podman's auth.json.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(…)")
    }
}

/// What a credential helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What is known on this machine for `repository` of `host`.
pub(super) fn find(host: &str, repository: &str) -> Result<Option<Credentials>> {
    for path in files() {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) =>
            {
                continue;
            }
            Err(error) => return Err(fault(format!("{}: {error}", path.display())).into()),
        };
        if let Some(found) = find_in(&text, host, repository, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where to look, in this order.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut files = Vec::new();
    files.extend(variable("REGISTRY_AUTH_FILE"));
    match (variable("DOCKER_CONFIG"), variable("HOME")) {
        (Some(directory), _) => files.push(directory.join("config.json")),
        (None, Some(home)) => files.push(home.join(".docker/config.json")),
        (None, None) => {}
    }
    files.extend(variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")));
    files.extend(variable("HOME").map(|home| home.join(".config/containers/auth.json")));
    files
}

fn find_in(text: &str, host: &str, repository: &str, path: &Path) -> Result<Option<Credentials>> {
    let file: AuthFile = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(error) => return Err(fault(format!("{}: {error}", path.display())).into()),
    };
    let aliases: &[&str] =
        if host == "docker.io" { &["docker.io", "index.docker.io", "registry-1.docker.io"] } else { &[host] };
    let helper = file
        .cred_helpers
        .iter()
        .find(|(key, _)| aliases.contains(&bare(key)))
        .map(|(key, helper)| (key.as_str(), helper.as_str()));
    if let Some((key, helper)) = helper {
        return help(helper, key);
    }
    // Podman allows an entry for a part of a registry; the longest wins.
    let mut scopes: Vec<String> = Vec::new();
    let mut inside = repository;
    loop {
        scopes.extend(aliases.iter().map(|alias| format!("{alias}/{inside}")));
        match inside.rsplit_once('/') {
            Some((front, _)) => inside = front,
            None => break,
        }
    }
    scopes.extend(aliases.iter().map(|alias| (*alias).to_string()));
    for scope in scopes {
        let found = file.auths.iter().find(|(key, _)| **key == scope || bare(key) == scope);
        if let Some((key, entry)) = found {
            if let Some(credentials) = entry.credentials(path)? {
                return Ok(Some(credentials));
            }
            if let Some(store) = &file.creds_store {
                return help(store, key);
            }
        }
    }
    match &file.creds_store {
        Some(store) => help(store, if host == "docker.io" { "https://index.docker.io/v1/" } else { host }),
        None => Ok(None),
    }
}

/// The host of keys such as `https://index.docker.io/v1/`.
fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.strip_suffix("/v1/").or_else(|| key.strip_suffix("/v2/")).unwrap_or(key).trim_end_matches('/')
}

impl Entry {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credentials::Password(user.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let pair = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match pair.as_deref().and_then(|pair| pair.trim_end_matches('\0').split_once(':')) {
            Some((user, password)) => Ok(Some(Credentials::Password(user.into(), password.into()))),
            None => {
                Err(fault(format!("{}: an \"auth\" in it is not the base64 of USER:PASSWORD", path.display())).into())
            }
        }
    }
}

/// Asks `docker-credential-HELPER`, which has the secrets in a keyring or a cloud.
fn help(helper: &str, key: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    if !is_single_part(&program) {
        return Err(fault(format!("credential helper {helper:?}: not a program name")).into());
    }
    let ask = || -> std::io::Result<std::process::Output> {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(key.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = ask().map_err(|error| fault(format!("{program}: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        // The helpers' way to say that they know nothing.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fault(format!("{program} get: {}", said.lines().next().unwrap_or("failed"))).into());
    }
    match serde_json::from_slice::<Helped>(&output.stdout) {
        Ok(helped) if helped.username == "<token>" => Ok(Some(Credentials::Identity(helped.secret))),
        Ok(helped) => Ok(Some(Credentials::Password(helped.username, helped.secret))),
        Err(error) => Err(fault(format!("{program} get: {error}")).into()),
    }
}

/// What a registry asks for with status 401.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For which service.
        service: Option<String>,
        /// For what; a repository and the right to pull from it.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads a WWW-Authenticate header (RFC 9110, 11.6.1) of one challenge.
    pub(super) fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `key="value",key=value` with backslashes inside quotes.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        let key: String = std::iter::from_fn(|| chars.next_if(|c| *c != '=')).collect();
        if chars.next().is_none() {
            return found;
        }
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(c) = chars.next().filter(|c| *c != '"') {
                value.extend(if c == '\\' { chars.next() } else { Some(c) });
            }
            // Up to the comma, which is all that may follow.
            while chars.next_if(|c| *c != ',').is_some() {}
        } else {
            value.extend(std::iter::from_fn(|| chars.next_if(|c| *c != ',')));
        }
        chars.next();
        found.insert(key.trim().to_ascii_lowercase(), value.trim().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/x:pull,push".into())
            })
        );
        assert_eq!(
            Challenge::parse(r#"bearer realm=https://x , service="a\"b""#),
            Some(Challenge::Bearer { realm: "https://x".into(), service: Some("a\"b".into()), scope: None })
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        for none in ["Negotiate", "Bearer", "Bearer service=x", "", "Bearer realm"] {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
    }

    #[test]
    fn credentials_of_config_files() {
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"ghcr.io":{{"identitytoken":"tok"}},
                "quay.io/team":{{"username":"t","password":"p:w"}},"quay.io":{{"auth":"{}"}},"bad.io":{{"auth":"!!"}},"empty.io":{{}}}},"HttpHeaders":{{}}}}"#,
            STANDARD.encode("me:secret"),
            STANDARD.encode("all:pw")
        );
        let find = |host: &str, repository: &str| find_in(&text, host, repository, Path::new("config.json"));
        let password = |user: &str, password: &str| Some(Credentials::Password(user.into(), password.into()));
        assert_eq!(find("docker.io", "library/x").unwrap(), password("me", "secret"));
        assert_eq!(find("ghcr.io", "o/n").unwrap(), Some(Credentials::Identity("tok".into())));
        assert_eq!(find("quay.io", "team/n").unwrap(), password("t", "p:w"));
        assert_eq!(find("quay.io", "other/n").unwrap(), password("all", "pw"));
        assert_eq!(find("example.org", "n").unwrap(), None);
        assert_eq!(find("empty.io", "n").unwrap(), None);
        assert!(find("bad.io", "n").unwrap_err().to_string().starts_with("config.json: "));
        let evil = r#"{"credsStore":"../../bin/sh"}"#;
        assert!(find_in(evil, "x.io", "n", Path::new("c")).is_err());
        assert_eq!(format!("{:?}", Credentials::Password("a".into(), "b".into())), "Password(…)");
    }

    #[test]
    fn the_argument() {
        assert_eq!(Credentials::from_argument("u:p:w").unwrap(), Credentials::Password("u".into(), "p:w".into()));
        assert!(Credentials::from_argument("u").is_err() && Credentials::from_argument(":p").is_err());
    }
}
