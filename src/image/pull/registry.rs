//! Speaking to one repository of a registry: authentication, redirects, errors as people can read them, and retries.

use std::io::{self, Read};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body, BodyReader};

use super::super::manifest::DOCUMENT_LIMIT;
use super::super::reference::Reference;
use super::address::{absolute, is_loopback, origin};
use super::auth::{self, Challenge, Credentials};
use super::said::said;
use super::{SILENCE, tls};
use crate::error::{Result, fault};

/// How often a request that may succeed later is made.
const ATTEMPTS: u32 = 5;
/// How many redirects are followed; content networks need one or two.
const REDIRECTS: usize = 8;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later; the registry may have said when.
    Again(anyhow::Error, Option<Duration>),
    /// It will not.
    Final(anyhow::Error),
}

/// How long to wait before trying again: half a second, then twice as long each time.
fn pause(failures: u32) -> Duration {
    Duration::from_millis(500 << failures.min(5))
}

/// A repository of a registry.
#[derive(Debug)]
pub(super) struct Registry {
    agent: Agent,
    host: String,
    repository: String,
    /// `https://registry-1.docker.io`.
    base: String,
    credentials: Option<Credentials>,
    /// The Authorization header that was last accepted.
    authorization: Mutex<Option<String>>,
    pause: fn(u32) -> Duration,
}

/// A successful answer.
pub(super) struct Reply {
    response: Response<()>,
    reader: BodyReader<'static>,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// All of a document.
    pub(super) fn bytes(mut self) -> std::result::Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match (&mut self.reader).take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > DOCUMENT_LIMIT => Err(Failure::Final(
                fault(format!("the registry sends a document of more than {DOCUMENT_LIMIT} bytes")).into(),
            )),
            Ok(_) => Ok(bytes),
            Err(error) => Err(Failure::Again(error.into(), None)),
        }
    }
}

impl Read for Reply {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Registry {
    /// For the repository of `name`; `creds` go before what this machine knows.
    pub(super) fn new(name: &Reference, creds: Option<Credentials>) -> Result<Registry> {
        let host = name.host();
        let credentials = match creds {
            Some(creds) => Some(creds),
            None => auth::find(host, name.repository())?,
        };
        let server = if host == super::super::reference::DEFAULT_HOST { "registry-1.docker.io" } else { host };
        let agent = agent(host);
        let base = if is_loopback(host) { loopback_base(&agent, host) } else { format!("https://{server}") };
        Ok(Registry {
            agent,
            host: host.into(),
            repository: name.repository().into(),
            base,
            credentials,
            authorization: Mutex::new(None),
            pause,
        })
    }

    /// Does not wait between attempts.
    #[cfg(test)]
    pub(super) fn hasty(mut self) -> Registry {
        self.pause = |_| Duration::from_millis(1);
        self
    }

    /// How long to wait after so many failures.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        (self.pause)(failures)
    }

    /// What errors call it.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// Repeats what may succeed later.
    pub(super) fn retry<T>(&self, mut request: impl FnMut() -> std::result::Result<T, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            match request() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, wait)) => {
                    failures += 1;
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    log::info!("{error:#}; trying again");
                    std::thread::sleep(wait.unwrap_or_else(|| self.pause(failures)));
                }
            }
        }
    }

    /// GET `/v2/REPOSITORY/path`, from byte `from` on. Answers a challenge once.
    pub(super) fn get(&self, path: &str, accept: &[&str], from: Option<u64>) -> std::result::Result<Reply, Failure> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let known = self.authorization().clone();
        let response = self.follow(&url, accept, from, known.as_deref())?;
        if response.status() != 401 {
            return self.check(path, response);
        }
        let authorization = self.answer(&response, path)?;
        let response = self.follow(&url, accept, from, Some(&authorization))?;
        if response.status().is_success() {
            *self.authorization() = Some(authorization);
        }
        self.check(path, response)
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One request with its redirects. Credentials go to the first server only, and nothing goes over plain http but to
    /// this machine.
    fn follow(
        &self,
        url: &str,
        accept: &[&str],
        from: Option<u64>,
        authorization: Option<&str>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        let mut authorization = authorization;
        for _ in 0..REDIRECTS {
            let mut request = self.agent.get(&url);
            for media_type in accept {
                request = request.header("accept", *media_type);
            }
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            if let Some(from) = from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.failed(&url, &error))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let target =
                response.headers().get("location").and_then(|location| location.to_str().ok()).unwrap_or_default();
            let next = absolute(&url, target).ok_or_else(|| {
                Failure::Final(
                    fault(format!("{}: redirects to {target:?}, which is no https address", self.name())).into(),
                )
            })?;
            if origin(&next) != origin(&url) {
                authorization = None;
            }
            url = next;
        }
        Err(Failure::Final(fault(format!("{}: redirects more than {REDIRECTS} times", self.name())).into()))
    }

    fn failed(&self, url: &str, error: &ureq::Error) -> Failure {
        let server = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_string)).unwrap_or_default();
        let text = format!("{}: {server}: {error}", self.name());
        match error {
            // A name that is unknown now stays unknown; a certificate does not become better either.
            ureq::Error::HostNotFound => Failure::Final(
                fault(text).hint("is the registry's name right, and does this machine reach a name server?").into(),
            ),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Failure::Final(
                fault(text)
                    .hint(format!("a private authority goes into /etc/docker/certs.d/{}/ca.crt", self.host))
                    .into(),
            ),
            ureq::Error::Io(io) if io.get_ref().is_some_and(|inner| inner.to_string().contains("certificate")) => {
                Failure::Final(
                    fault(text)
                        .hint(format!("a private authority goes into /etc/docker/certs.d/{}/ca.crt", self.host))
                        .into(),
                )
            }
            ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => Failure::Final(fault(text).into()),
            _ => Failure::Again(fault(text).into(), None),
        }
    }

    /// Success, or the registry's own words for why not (distribution-spec, "Error Codes").
    fn check(&self, path: &str, response: Response<Body>) -> std::result::Result<Reply, Failure> {
        let status = response.status().as_u16();
        if response.status().is_success() {
            let (parts, body) = response.into_parts();
            // Bodies are bounded where they are read.
            let reader = body.into_with_config().limit(u64::MAX).reader();
            return Ok(Reply { response: Response::from_parts(parts, ()), reader });
        }
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(60)));
        let said = said(response);
        let text = format!(
            "{}/{path}: {status}{}",
            self.name(),
            if said.is_empty() { String::new() } else { format!(": {said}") }
        );
        match status {
            408 | 425 | 429 | 500..=599 => Err(Failure::Again(fault(text).into(), wait)),
            401 | 403 => Err(Failure::Final(
                fault(text).hint(format!("credentials: docker login {}, or --creds USER:PASSWORD", self.host)).into(),
            )),
            404 if self.credentials.is_none() => {
                Err(Failure::Final(fault(text).hint("is the name right? Private ones need credentials").into()))
            }
            _ => Err(Failure::Final(fault(text).into())),
        }
    }

    /// The Authorization header that a challenge asks for.
    fn answer(&self, response: &Response<Body>, path: &str) -> std::result::Result<String, Failure> {
        let headers = response.headers().get_all("www-authenticate");
        let challenges: Vec<Challenge> =
            headers.iter().filter_map(|value| Challenge::parse(value.to_str().ok()?)).collect();
        let denied = |why: &str| {
            Failure::Final(
                fault(format!("{}/{path}: 401: {why}", self.name()))
                    .hint(format!("credentials: docker login {}, or --creds USER:PASSWORD", self.host))
                    .into(),
            )
        };
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match bearer.or(challenges.first()) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.token(realm, service.as_deref(), scope.as_deref())
            }
            Some(Challenge::Basic) => self
                .credentials
                .as_ref()
                .and_then(Credentials::basic)
                .ok_or_else(|| denied("the registry wants a user and a password")),
            None => Err(denied("the registry asks for an authentication that is not known here")),
        }
    }

    /// Gets a token (distribution's "Token Authentication Specification" and its OAuth2 variant).
    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> std::result::Result<String, Failure> {
        if absolute(realm, realm).is_none() {
            return Err(Failure::Final(
                fault(format!("{}: sends us for a token to {realm:?}, which is no https address", self.name())).into(),
            ));
        }
        let default = format!("repository:{}:pull", self.repository);
        let scope = scope.unwrap_or(&default);
        let answer = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "sandbox"),
                    ("service", service.unwrap_or_default()),
                    ("scope", scope),
                    ("refresh_token", token),
                ];
                self.agent.post(realm).send_form(form)
            }
            credentials => {
                let mut request = self.agent.get(realm).query("scope", scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(basic) = credentials.as_ref().and_then(Credentials::basic) {
                    request = request.header("authorization", basic);
                }
                request.call()
            }
        };
        let response = answer.map_err(|error| self.failed(realm, &error))?;
        let bytes = self.check("token", response)?.bytes()?;
        match serde_json::from_slice::<Token>(&bytes) {
            Ok(Token { token: Some(token), .. } | Token { access_token: Some(token), .. }) if !token.is_empty() => {
                Ok(format!("Bearer {token}"))
            }
            _ => Err(Failure::Final(fault(format!("{}: the server at {realm} gives no token", self.name())).into())),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

fn agent(host: &str) -> Agent {
    let mut config = Agent::config_builder()
        .user_agent(concat!("sandbox/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .tls_config(tls::config(host));
    if is_loopback(host) {
        config = config.proxy(None);
    }
    config.build().into()
}

/// A registry on this machine may speak TLS or not: it is asked.
fn loopback_base(agent: &Agent, host: &str) -> String {
    let secure = format!("https://{host}");
    match agent.get(format!("{secure}/v2/")).call() {
        Ok(_) => secure,
        // One that speaks TLS, but with a certificate that is not trusted, must not be spoken to without.
        Err(ureq::Error::Tls(_) | ureq::Error::Rustls(_)) => secure,
        Err(ureq::Error::Io(error))
            if error.get_ref().is_some_and(|inner| inner.to_string().contains("certificate")) =>
        {
            secure
        }
        Err(_) => format!("http://{host}"),
    }
}
