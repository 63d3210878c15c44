//! The documents of an image whose source has none.

use super::digest::Digest;
use super::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform};
use super::stream::Seen;
use crate::error::Result;

/// The pointer to a layer whose bytes have passed.
pub(super) fn describe(seen: &Seen) -> Descriptor {
    let media_type = format!("{OCI_LAYER}{}", seen.compression.suffix());
    Descriptor { media_type, digest: seen.blob, size: seen.blob_size, platform: None, annotations: None, urls: None }
}

/// The config of what came without one.
pub(super) fn make_config(diff_ids: &[Digest], created: &str, created_by: &str) -> Result<Vec<u8>> {
    let platform = Platform::this_machine();
    let config = serde_json::json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "created": created, "created_by": created_by }],
    });
    Ok(serde_json::to_vec(&config)?)
}

/// The manifest of what came without one.
pub(super) fn make_manifest(config: Digest, size: u64, layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let config = Descriptor {
        media_type: OCI_CONFIG.into(),
        digest: config,
        size,
        platform: None,
        annotations: None,
        urls: None,
    };
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
    Ok(serde_json::to_vec(&manifest)?)
}
