//! Which addresses may be spoken to, and how.

use ureq::http::Uri;

/// Whether `host` (with or without a port) is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address that `target` means at `base`; `None` unless it is https, or http on this machine.
pub(super) fn absolute(base: &str, target: &str) -> Option<String> {
    let joined = if target.starts_with('/') && !target.starts_with("//") {
        format!("{}{target}", origin(base)?)
    } else {
        target.to_string()
    };
    let uri: Uri = joined.parse().ok()?;
    match uri.scheme_str()? {
        "https" => Some(joined),
        "http" if is_loopback(uri.host()?) => Some(joined),
        _ => None,
    }
}

/// Scheme, host and port.
pub(super) fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:5000", "[::1]:5000", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.org", "128.0.0.1", "docker.io", "[::2]:5000", "localhost@evil.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn only_safe_addresses_are_followed() {
        let base = "https://r.example.org:5000/v2/x/blobs/y";
        assert_eq!(absolute(base, "/z?q=1").as_deref(), Some("https://r.example.org:5000/z?q=1"));
        assert_eq!(absolute(base, "https://cdn.example.org/a").as_deref(), Some("https://cdn.example.org/a"));
        assert_eq!(absolute(base, "http://127.0.0.1:1/a").as_deref(), Some("http://127.0.0.1:1/a"));
        for bad in [
            "http://cdn.example.org/a",
            "file:///etc/passwd",
            "",
            "//evil.org/x",
            "relative",
            "http://127.0.0.1.evil.org/",
        ] {
            assert_eq!(absolute(base, bad), None, "{bad}");
        }
        assert_ne!(origin("https://a:1/x"), origin("https://a:2/x"));
        assert_ne!(origin("https://a/x"), origin("http://a/x"));
    }
}
