//! Flags that make the root, from text to types. Paths of the host are looked up here, so that a missing one ends the start
//! before anything is started.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Bind, Device, RootSource, RootSpec, Upper, absolute};
use crate::error::{Result, fault};
use crate::layer::Layer;
use crate::value;

pub(super) fn root(layer: &Layer) -> Result<RootSpec> {
    let source = match (&layer.rootfs, layer.layer.as_slice()) {
        (None, []) => RootSource::HostView,
        (Some(rootfs), _) => RootSource::Layers(vec![directory("--rootfs", rootfs)?]),
        (None, layers) => {
            RootSource::Layers(layers.iter().map(|path| directory("--layer", path)).collect::<Result<_>>()?)
        }
    };
    let binds: Vec<Bind> = layer.bind.iter().map(|text| bind(text)).collect::<Result<_>>()?;
    let tmpfs: Vec<_> = layer.tmpfs.iter().map(|text| tmpfs(text)).collect::<Result<_>>()?;
    // Either would hide the other, and with it what is written there.
    if let Some(both) = binds.iter().find(|bind| tmpfs.iter().any(|(at, _)| *at == bind.at)) {
        let (source, at) = (both.source.display(), both.at.display());
        let line = format!("--bind {source}:{at} and --tmpfs {at}: only one of them can be there");
        return Err(fault(line).hint("leave one out").into());
    }
    Ok(RootSpec {
        source,
        user_marks: layer.user_marks,
        directories: layer
            .directories
            .iter()
            .map(|path| absolute("the image's directory", path))
            .collect::<Result<_>>()?,
        upper: match &layer.keep_at {
            // The store makes it just before the start.
            Some(path) => Upper::Directory(path.clone()),
            None => layer.upper.as_deref().map_or(Ok(Upper::Memory(None)), upper)?,
        },
        read_only: layer.read_only.unwrap_or(false),
        binds,
        tmpfs,
        hide_pids: layer.hidepid.unwrap_or(false),
        devices: layer.device.iter().map(|text| device(text)).collect::<Result<_>>()?,
        host_secrets: layer.host_secrets.unwrap_or(false),
    })
}

/// An existing directory of the host, without links in its path.
fn directory(flag: &str, path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).with_context(|| format!("{flag} {}", path.display()))?;
    if real.is_dir() { Ok(real) } else { Err(fault(format!("{flag} {}: Not a directory", path.display())).into()) }
}

fn upper(text: &OsStr) -> Result<Upper> {
    let shown = text.to_string_lossy();
    if text == "tmpfs" {
        return Ok(Upper::Memory(None));
    }
    if let Some(size) = shown.strip_prefix("tmpfs:") {
        return Ok(Upper::Memory(Some(tmpfs_size("--upper", &shown, size)?)));
    }
    // The directory itself may be missing, what it is in may not.
    let path = Path::new(text);
    let name = path
        .file_name()
        .ok_or_else(|| fault(format!("--upper {shown}: accepted is tmpfs, tmpfs:SIZE or a directory")))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Upper::Directory(directory("--upper", parent)?.join(name)))
}

fn tmpfs_size(flag: &str, text: &str, size: &str) -> Result<u64> {
    let size = value::size(size).with_context(|| format!("{flag} {text}"))?;
    if size == 0 {
        // 0 means no limit to tmpfs(5), and memory without one takes the machine down.
        return Err(fault(format!("{flag} {text}: a size is at least 1 byte")).into());
    }
    Ok(size)
}

fn tmpfs(text: &OsStr) -> Result<(PathBuf, Option<u64>)> {
    let shown = text.to_string_lossy();
    let (path, size) = match shown.split_once(':') {
        Some((path, size)) => {
            // Docker writes size=64m among mount options.
            let size = size.strip_prefix("size=").unwrap_or(size);
            (PathBuf::from(path), Some(tmpfs_size("--tmpfs", &shown, size)?))
        }
        None => (PathBuf::from(text), None),
    };
    Ok((below_root("--tmpfs", &path)?, size))
}

/// An absolute path inside that is not / itself.
fn below_root(flag: &str, path: &Path) -> Result<PathBuf> {
    let path = absolute(flag, path)?;
    if path.components().count() < 2 {
        return Err(fault(format!("{flag} {}: the root itself is not mounted over", path.display())).into());
    }
    Ok(path)
}

/// `SRC[:DST][:rwm]`, as Docker has it.
pub(crate) fn device(text: &OsStr) -> Result<Device> {
    let shown = text.to_string_lossy();
    let wrong = || fault(format!("--device {shown}: accepted is /dev/NAME[:DST][:rwm]"));
    let mut parts = shown.split(':');
    let source = parts.next().filter(|path| path.starts_with("/dev/")).ok_or_else(wrong)?;
    let (mut at, mut access) = (source, "rwm");
    match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => {}
        (Some(only), None, None) if only.starts_with('/') => at = only,
        (Some(only), None, None) => access = only,
        (Some(path), Some(asked), None) => (at, access) = (path, asked),
        _ => return Err(wrong().into()),
    }
    let twice = access.char_indices().any(|(at, letter)| access[..at].contains(letter));
    if access.is_empty() || twice || !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(wrong().into());
    }
    let real = std::fs::canonicalize(source).with_context(|| format!("--device {shown}: {source}"))?;
    let kind = std::fs::metadata(&real).with_context(|| format!("--device {shown}"))?.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Err(fault(format!("--device {shown}: {} is no device", real.display()))
            .hint(format!("--bind {source} brings other files"))
            .into());
    }
    Ok(Device { source: real, at: below_root("--device", Path::new(at))?, access: access.to_owned() })
}

fn bind(text: &OsStr) -> Result<Bind> {
    let shown = text.to_string_lossy().into_owned();
    let mut parts = text.as_bytes().split(|b| *b == b':').map(|part| Path::new(OsStr::from_bytes(part)));
    let source = parts.next().filter(|p| !p.as_os_str().is_empty());
    let source = source.ok_or_else(|| fault(format!("--bind {shown}: accepted is SRC[:DST[:ro|rw]]")))?;
    let source_full = std::path::absolute(source).with_context(|| format!("--bind {shown}"))?;
    let at = parts.next().filter(|p| !p.as_os_str().is_empty()).map_or(source_full, Path::to_path_buf);
    let read_only = match parts.next().map(|p| p.as_os_str().as_bytes()) {
        None | Some(b"rw") => false,
        Some(b"ro") => true,
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(fault(format!("--bind {shown}: `{other}` is no option: accepted are ro and rw")).into());
        }
    };
    if parts.next().is_some() {
        return Err(fault(format!("--bind {shown}: accepted is SRC[:DST[:ro|rw]]")).into());
    }
    let source = std::fs::canonicalize(source).with_context(|| format!("--bind {shown}: {}", source.display()))?;
    Ok(Bind { source, at: below_root("--bind", &at)?, read_only })
}
