//! The JSON documents between a name and its layers: indexes and manifests.
//!
//! Field names and media types are those of the OCI image spec (descriptor.md, image-index.md, manifest.md) and of
//! Docker's schema 2, which has the same shape. They are read leniently and kept byte for byte; only the documents that
//! an archive lacks are written here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::digest::Digest;
use crate::error::{Result, fault};

/// Manifest of one image.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// List of manifests, one a platform.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest of one image.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The image config.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is a plain tar; `+gzip` and `+zstd` are put behind.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The annotation that names an image inside an OCI layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which Docker and containerd give an image's full name inside an OCI layout.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The largest manifest, index or config that is read, in bytes. Registries refuse more than 4 MiB.
pub(crate) const DOCUMENT_LIMIT: u64 = 8 << 20;

/// A pointer to a blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// In an index: the machine that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    /// Free text; names are kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Places outside the registry (foreign layers): refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) urls: Option<Vec<String>>,
}

impl Descriptor {
    /// One annotation.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it points to a list of manifests.
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

/// Operating system and processor, with Go's names for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    /// `amd64`, `arm64` …
    #[serde(default)]
    pub(crate) architecture: String,
    /// `linux`.
    #[serde(default)]
    pub(crate) os: String,
    /// `v8` of arm64, `v7` of arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub(crate) fn this_machine() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: variant.map(str::to_string) }
    }

    /// Reads `linux/arm64/v8` or `linux/amd64`.
    pub(crate) fn parse(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => {
                Ok(Platform { architecture: (*architecture).into(), os: (*os).into(), variant: None })
            }
            [os, architecture, variant] if !os.is_empty() && !architecture.is_empty() => Ok(Platform {
                architecture: (*architecture).into(),
                os: (*os).into(),
                variant: Some((*variant).into()),
            }),
            _ => Err(fault(format!("platform {text:?}: not of the form OS/ARCHITECTURE[/VARIANT]"))
                .hint("for example linux/amd64 or linux/arm64/v8")
                .into()),
        }
    }

    /// How well `offered` serves this one: `None` not at all, else larger is better.
    fn fit(&self, offered: &Platform) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        match (&self.variant, &offered.variant) {
            (wanted, offered) if wanted == offered => Some(3),
            (_, None) => Some(2),
            (None, Some(_)) => Some(1),
            // An arm machine runs what was made for an older one: v5 on v7. Never the reverse.
            (Some(wanted), Some(offered)) => (offered < wanted).then_some(1),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A list of manifests.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    /// Always 2.
    pub(crate) schema_version: u8,
    /// [`OCI_INDEX`] or [`DOCKER_LIST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    /// One a platform (or, in an OCI layout, one a name).
    pub(crate) manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads an index.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Index> {
        serde_json::from_slice(bytes).map_err(|error| fault(format!("{what}: not an image index: {error}")).into())
    }

    /// The best manifest for `platform`; one without a platform serves only when it is alone.
    pub(crate) fn pick(&self, platform: &Platform, what: &str) -> Result<&Descriptor> {
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let offered = || self.manifests.iter().filter_map(|entry| Some((entry, entry.platform.as_ref()?)));
        let best = offered().filter_map(|(entry, has)| Some((platform.fit(has)?, entry))).max_by(|a, b| {
            // The first of equals is the one that its maker put in front.
            a.0.cmp(&b.0).then(std::cmp::Ordering::Greater)
        });
        match best {
            Some((_, entry)) => Ok(entry),
            None => {
                let mut list: Vec<String> =
                    offered().map(|(_, has)| has.to_string()).filter(|name| name != "unknown/unknown").collect();
                list.sort();
                list.dedup();
                Err(fault(format!("{what}: has no image for {platform}"))
                    .hint(format!("it offers {}; choose one with --platform", list.join(", ")))
                    .into())
            }
        }
    }
}

/// The manifest of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// Always 2.
    pub(crate) schema_version: u8,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    /// The image config; its digest is the image ID.
    pub(crate) config: Descriptor,
    /// The layers, lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads a manifest and refuses what is no image of layers.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Manifest> {
        let manifest: Manifest = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                return Err(fault(format!("{what}: not an image manifest: {error}")).into());
            }
        };
        for layer in &manifest.layers {
            let name = layer.media_type.as_str();
            if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty())
                || name.contains("nondistributable")
                || name.contains("foreign")
            {
                return Err(fault(format!(
                    "{what}: layer {} is a foreign one, kept outside the registry, and is refused",
                    layer.digest
                ))
                .into());
            }
            if !layer_type_is_known(name) {
                return Err(fault(format!(
                    "{what}: layer {} is of type {name:?}, not a tar, tar+gzip or tar+zstd",
                    layer.digest
                ))
                .into());
            }
        }
        Ok(manifest)
    }

    /// The media type to announce it with.
    pub(crate) fn kind(&self) -> &str {
        self.media_type.as_deref().unwrap_or(OCI_MANIFEST)
    }
}

/// How a layer is compressed is read from its bytes (archives often carry a wrong type); here only its being a tar counts.
fn layer_type_is_known(media_type: &str) -> bool {
    let plain = media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd")).unwrap_or(media_type);
    matches!(
        plain,
        OCI_LAYER
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        let platform =
            Platform { architecture: architecture.into(), os: os.into(), variant: variant.map(str::to_string) };
        let name = format!("{platform}");
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(name.as_bytes()),
            size: 1,
            platform: Some(platform),
            annotations: None,
            urls: None,
        }
    }

    #[test]
    fn the_best_platform_is_picked() {
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![
                entry("unknown", "unknown", None),
                entry("linux", "arm", Some("v5")),
                entry("linux", "arm", Some("v7")),
                entry("linux", "amd64", None),
                entry("linux", "arm64", Some("v8")),
            ],
        };
        for (wanted, got) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v5"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64/v8"),
        ] {
            let picked = index.pick(&Platform::parse(wanted).unwrap(), "x").unwrap();
            assert_eq!(picked.platform.as_ref().unwrap().to_string(), got);
        }
        let error = index.pick(&Platform::parse("linux/s390x").unwrap(), "busybox").unwrap_err();
        assert_eq!(error.to_string(), "busybox: has no image for linux/s390x");
    }

    #[test]
    fn foreign_layers_and_strange_types_are_refused() {
        let digest = Digest::of(b"");
        for (media_type, urls, word) in [
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "[]", "foreign"),
            (OCI_LAYER, r#"["https://x"]"#, "foreign"),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", "[]", "of type"),
            ("application/wasm", "[]", "of type"),
        ] {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":0}},"layers":[{{"mediaType":"{media_type}","digest":"{digest}","size":0,"urls":{urls}}}]}}"#
            );
            let error = Manifest::parse(text.as_bytes(), "x").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(&digest.to_string()), "{error}");
        }
    }
}
