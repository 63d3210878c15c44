//! Whom a registry's certificate may come from: what this machine trusts, and what its administrator has put beside
//! Docker's or podman's configuration for this one registry.

use std::fs;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Where distributions keep the bundle of authorities.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The TLS settings for `host`.
pub(super) fn config(host: &str) -> TlsConfig {
    let mut certificates = Vec::new();
    match std::env::var_os("SSL_CERT_FILE") {
        Some(file) => certificates.extend(read(Path::new(&file))),
        None => {
            if let Some(bundle) = BUNDLES.iter().map(Path::new).find(|path| path.is_file()) {
                certificates.extend(read(bundle));
            }
        }
    }
    let system = !certificates.is_empty();
    for directory in ["/etc/docker/certs.d", "/etc/containers/certs.d"] {
        for file in authorities(&Path::new(directory).join(host)) {
            certificates.extend(read(&file));
        }
    }
    let roots = if system { RootCerts::new_with_certs(&certificates) } else { RootCerts::WebPki };
    TlsConfig::builder().root_certs(roots).build()
}

fn authorities(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .collect()
}

fn read(path: &Path) -> Vec<Certificate<'static>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            log::warn!("{}: {error}", path.display());
            return Vec::new();
        }
    };
    parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}
