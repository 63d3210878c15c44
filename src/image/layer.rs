//! What an image says about how it is run, as one layer of settings under the flags.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Marks, ResolvedImage};
use crate::error::Result;
use crate::layer::Layer;

/// The settings of `image`; `asked` is what was typed, which decides about the command (Docker's rules) and keeps a stop
/// signal of its own.
///
/// # Errors
/// When neither names a command.
pub(crate) fn layer(image: &ResolvedImage, asked: &Layer) -> Result<Layer> {
    let config = &image.config.config;
    let (user, group) = match config.user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (config.user.as_str(), ""),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let directory = some(&config.working_dir).map(PathBuf::from);
    let stops = asked.property.iter().any(|property| property.starts_with("KillSignal="));
    let stop_signal = some(&config.stop_signal).filter(|_| !stops);
    Ok(Layer {
        layer: image.layers.clone(),
        user_marks: image.marks == Marks::User,
        directories: directory.iter().cloned().chain(config.volumes.iter().map(PathBuf::from)).collect(),
        uid: some(user),
        gid: some(group),
        setenv: config.env.iter().map(OsString::from).collect(),
        working_directory: directory,
        property: stop_signal.map(|signal| format!("KillSignal={signal}")).into_iter().collect(),
        command: config.argv(asked.entrypoint.as_deref(), &asked.command, &image.name)?,
        ..Layer::default()
    })
}
