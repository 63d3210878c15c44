//! A registry made of a few lines, so that it can misbehave at will.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::super::progress::Silent;
use super::super::testing::{archive, file, gzip};
use super::*;

/// The header of `j:ajga`. The fake lower-cases headers, and this one has no capitals.
const BASIC: &str = "basic ajphamdh";

/// How the registry misbehaves.
#[derive(Clone, Copy, Default)]
struct Ways {
    /// Wants a token.
    bearer: bool,
    /// Wants a user and a password.
    basic: bool,
    /// Cuts every reply of a layer after so many bytes.
    cut: Option<usize>,
    /// Knows no ranges.
    no_ranges: bool,
    /// Answers 503 so often first.
    busy: usize,
    /// Sends one wrong byte in layers.
    wrong: bool,
    /// Sends more than it should.
    longer: bool,
    /// Redirects blobs to another port, which must see no credentials.
    redirect: bool,
}

#[derive(Default)]
struct State {
    requests: Vec<String>,
    busy: usize,
}

struct Fake {
    address: String,
    state: Arc<Mutex<State>>,
    manifest: Digest,
}

struct Content {
    blobs: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    index: Vec<u8>,
}

fn content() -> Content {
    let noise: String = (0..60_000u32)
        .map(|n| char::from(b'a' + u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap() % 26))
        .collect();
    let tars = [archive(&[file("one", &noise)]), archive(&[file("two", "2")])];
    let layers: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
    let diffs: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let config = serde_json::to_vec(
        &serde_json::json!({"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":diffs}}),
    )
    .unwrap();
    let describe = |bytes: &[u8], media_type: &str| serde_json::json!({"mediaType":media_type,"digest":Digest::of(bytes),"size":bytes.len()});
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = serde_json::to_vec(&serde_json::json!({"schemaVersion":2,"mediaType":OCI_MANIFEST,"config":describe(&config, "application/vnd.oci.image.config.v1+json"),
        "layers":[describe(&layers[0], layer_type), describe(&layers[1], layer_type)]}))
    .unwrap();
    let mut entry = describe(&manifest, OCI_MANIFEST);
    entry["platform"] = serde_json::to_value(Platform::this_machine()).unwrap();
    let other = serde_json::json!({"mediaType":OCI_MANIFEST,"digest":Digest::of(b"other"),"size":1,"platform":{"os":"linux","architecture":"s390x"}});
    let index =
        serde_json::to_vec(&serde_json::json!({"schemaVersion":2,"mediaType":OCI_INDEX,"manifests":[other, entry]}))
            .unwrap();
    let blobs = layers.into_iter().chain([config]).map(|bytes| (Digest::of(&bytes).to_string(), bytes)).collect();
    Content { blobs, manifest, index }
}

fn fake(ways: Ways) -> Fake {
    let content = Arc::new(content());
    let manifest = Digest::of(&content.manifest);
    let state = Arc::new(Mutex::new(State { busy: ways.busy, ..State::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = elsewhere.local_addr().unwrap().to_string();
    for (listener, own) in [(listener, address.clone()), (elsewhere, other.clone())] {
        let (content, state, other) = (Arc::clone(&content), Arc::clone(&state), other.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (content, state, own, other) =
                    (Arc::clone(&content), Arc::clone(&state), own.clone(), other.clone());
                std::thread::spawn(move || serve(stream.unwrap(), ways, &content, &state, &own, &other));
            }
        });
    }
    Fake { address, state, manifest }
}

fn serve(mut stream: TcpStream, ways: Ways, content: &Content, state: &Mutex<State>, own: &str, other: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let headers: Vec<String> = lines
        .map_while(std::result::Result::ok)
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_lowercase())
        .collect();
    let header =
        |name: &str| headers.iter().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_string));
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    state.lock().unwrap().requests.push(format!(
        "{own} {path} auth={:?} range={:?}",
        header("authorization"),
        header("range")
    ));
    let (status, extra, body) = answer(&path, ways, content, state, own, other, &header);
    let body = if ways.longer && path.contains("/blobs/") && body.len() > 10_000 {
        [body.as_slice(), b"more"].concat()
    } else {
        body
    };
    let cut = ways.cut.filter(|cut| path.contains("/blobs/") && body.len() > *cut);
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n", body.len());
    // The other side may have hung up.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..cut.unwrap_or(body.len())]);
}

type Answer = (u16, String, Vec<u8>);

fn answer(
    path: &str,
    ways: Ways,
    content: &Content,
    state: &Mutex<State>,
    own: &str,
    other: &str,
    header: &dyn Fn(&str) -> Option<String>,
) -> Answer {
    let authorization = header("authorization");
    if path.starts_with("/token") {
        return (200, String::new(), br#"{"token":"good"}"#.to_vec());
    }
    if own != other {
        let realm = format!(
            "WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"s\",scope=\"repository:x/y:pull\"\r\n"
        );
        if ways.bearer && authorization.as_deref() != Some("bearer good") {
            return (401, realm, Vec::new());
        }
        if ways.basic && authorization.as_deref() != Some(BASIC) {
            return (
                401,
                "WWW-Authenticate: Basic realm=\"r\"\r\n".into(),
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#.to_vec(),
            );
        }
    } else {
        assert_eq!(authorization, None, "credentials went to another server");
    }
    {
        let mut state = state.lock().unwrap();
        if state.busy > 0 {
            state.busy -= 1;
            return (503, String::new(), Vec::new());
        }
    }
    if let Some(digest) = path.strip_prefix("/v2/x/y/blobs/") {
        let Some(blob) = content.blobs.get(digest) else {
            return (404, String::new(), Vec::new());
        };
        if ways.redirect && own != other {
            return (307, format!("Location: http://{other}{path}\r\n"), Vec::new());
        }
        let mut blob = blob.clone();
        if ways.wrong && blob.len() > 10_000 {
            blob[5000] ^= 1;
        }
        let from =
            header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        return match from.filter(|_| !ways.no_ranges) {
            Some(from) => (
                206,
                format!("Content-Range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len()),
                blob[from..].to_vec(),
            ),
            None => (200, String::new(), blob),
        };
    }
    match path.strip_prefix("/v2/x/y/manifests/") {
        Some("latest") => (200, format!("Content-Type: {OCI_INDEX}\r\n"), content.index.clone()),
        Some(version) if version == Digest::of(&content.manifest).to_string() => {
            (200, format!("Content-Type: {OCI_MANIFEST}\r\n"), content.manifest.clone())
        }
        _ => (404, String::new(), br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec()),
    }
}

fn try_pull(fake: &Fake, creds: Option<Credentials>, version: &str) -> (Result<Arrived>, Store, tempfile::TempDir) {
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(&base.path().join("store")).unwrap();
    let name: Reference = format!("{}/x/y{version}", fake.address).parse().unwrap();
    let registry = Registry::new(&name, creds).unwrap().hasty();
    let result = pull_from(&registry, &store, &name, &Platform::this_machine(), &Silent);
    (result, store, base)
}

fn good(ways: Ways, creds: Option<Credentials>) -> Vec<String> {
    let fake = fake(ways);
    let (result, store, _base) = try_pull(&fake, creds, ":latest");
    let arrived = result.unwrap();
    assert_eq!((arrived.layers, arrived.manifest), (2, fake.manifest));
    let report = store.verify(&store.lock_shared().unwrap(), &Silent).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    fake.state.lock().unwrap().requests.clone()
}

fn bad(ways: Ways, creds: Option<Credentials>, version: &str, expected: &str) {
    let (result, store, _base) = try_pull(&fake(ways), creds, version);
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains(expected), "{error}");
    assert!(store.images().unwrap().is_empty() && store.references().unwrap().is_empty());
}

fn password(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password(user.into(), password.into()))
}

#[test]
fn the_ways_of_registries() {
    good(Ways::default(), None);
    let requests = good(Ways { bearer: true, ..Ways::default() }, None);
    assert_eq!(requests.iter().filter(|request| request.contains("/token")).count(), 1, "{requests:#?}");
    assert!(requests.iter().any(|request| request.contains("scope=repository")), "{requests:#?}");
    good(Ways { bearer: true, ..Ways::default() }, Some(Credentials::Identity("tok".into())));
    good(Ways { basic: true, ..Ways::default() }, password("j", "ajga"));
    good(Ways { busy: 3, ..Ways::default() }, None);
    good(Ways { redirect: true, bearer: true, ..Ways::default() }, None);
}

#[test]
fn interrupted_downloads_go_on() {
    let requests = good(Ways { cut: Some(9000), ..Ways::default() }, None);
    assert!(requests.iter().any(|request| request.contains("range=Some(\"bytes=9000-\")")), "{requests:#?}");
    // Without ranges and always cut, it never gets there.
    bad(Ways { cut: Some(9000), no_ranges: true, ..Ways::default() }, None, ":latest", "layer 1 of 2: blob sha256:");
}

#[test]
fn a_killed_pull_is_taken_up_again() {
    let fake = fake(Ways::default());
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(&base.path().join("store")).unwrap();
    let content = content();
    let (digest, blob) = content.blobs.iter().find(|(_, blob)| blob.len() > 10_000).unwrap();
    let partial = store.root().join(format!("tmp/partial-{}", &digest[7..]));
    std::fs::write(&partial, &blob[..7777]).unwrap();
    let name: Reference = format!("{}/x/y", fake.address).parse().unwrap();
    let registry = Registry::new(&name, None).unwrap().hasty();
    pull_from(&registry, &store, &name, &Platform::this_machine(), &Silent).unwrap();
    assert!(!partial.exists());
    let requests = fake.state.lock().unwrap().requests.clone();
    assert!(requests.iter().any(|request| request.contains("range=Some(\"bytes=7777-\")")), "{requests:#?}");
}

#[test]
fn what_registries_do_wrong() {
    bad(Ways { wrong: true, ..Ways::default() }, None, ":latest", "sent bytes with the digest sha256:");
    bad(Ways { longer: true, ..Ways::default() }, None, ":latest", "sends more than the");
    bad(Ways { basic: true, ..Ways::default() }, None, ":latest", "401");
    bad(Ways { basic: true, ..Ways::default() }, password("u", "p"), ":latest", "who are you");
    bad(Ways::default(), None, ":gone", "404: manifest unknown");
    bad(Ways { busy: 1000, ..Ways::default() }, None, ":latest", "503");
    let other = format!("@{}", Digest::of(b"not there"));
    bad(Ways::default(), None, &other, "404");
}
