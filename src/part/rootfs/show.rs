//! The plan of a root in words.

use std::fmt;
use std::path::PathBuf;

use super::{InitEntry, InitKind, Operation, RootPlan};

impl Operation {
    /// The files of the sandbox's own that it makes: path inside, and content.
    pub(crate) fn files(&self) -> impl Iterator<Item = (PathBuf, &str)> {
        let (overlay, own) = match self {
            Operation::Overlay(overlay) => (Some(overlay), None),
            Operation::File { at, content } => (None, Some((at.clone(), content.as_str()))),
            _ => (None, None),
        };
        let of_overlay = overlay.into_iter().flat_map(|overlay| {
            overlay.init.iter().filter_map(|entry| match &entry.what {
                InitKind::File(content) => Some((overlay.at.join(&entry.path), content.as_str())),
                _ => None,
            })
        });
        of_overlay.chain(own)
    }
}

impl RootPlan {
    /// Where the writes of the payload go, and what becomes of them.
    pub(crate) fn writes(&self) -> String {
        match (&self.upper, self.memory) {
            _ if self.read_only => "nowhere but to what is mounted writable: the root is read-only".to_owned(),
            (Some(upper), _) if self.temporary => format!("to {}, removed at the end", upper.display()),
            (Some(upper), _) => format!("to {}, and stay there", upper.display()),
            (None, Some(size)) => format!("to memory, {size} bytes at most, gone at the end"),
            (None, None) => "to memory, half of the machine's at most, gone at the end".to_owned(),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at().display();
        match self {
            Operation::Overlay(overlay) => {
                let layers: Vec<String> = overlay.layers.iter().map(|l| l.display().to_string()).collect();
                write!(f, "{at}: overlay of {}{}", layers.join(", "), if overlay.idmap { ", idmapped" } else { "" })?;
                let hidden = |entry: &&InitEntry| matches!(entry.what, InitKind::Absent | InitKind::Empty);
                let hidden: Vec<String> =
                    overlay.init.iter().filter(hidden).map(|e| e.path.display().to_string()).collect();
                if hidden.is_empty() { Ok(()) } else { write!(f, "; hidden: {}", hidden.join(" ")) }
            }
            Operation::Bind(bind) => {
                let mode = if bind.read_only { "read-only" } else { "writable" };
                write!(
                    f,
                    "{at}: bind of {}, {mode}{}",
                    bind.source.display(),
                    if bind.idmap { ", idmapped" } else { "" }
                )
            }
            Operation::Tmpfs(tmpfs) => match tmpfs.size {
                Some(size) => write!(f, "{at}: tmpfs of {size} bytes"),
                None => write!(f, "{at}: tmpfs"),
            },
            Operation::Node(_) => write!(f, "{at}: node of its own"),
            Operation::Directory(_) => write!(f, "{at}: directory"),
            Operation::Sysfs => write!(f, "{at}: of the network that is joined, read-only"),
            Operation::File { .. } => write!(f, "{at}: the sandbox's own file"),
            Operation::Link { target, .. } => write!(f, "{at}: link to {}", target.display()),
            Operation::Copy { source, .. } => write!(f, "{at}: copies of the files in {}, read-only", source.display()),
        }
    }
}
