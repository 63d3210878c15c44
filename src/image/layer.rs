//! What an image says about how it is run, as one layer of settings under the flags.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Marks, ResolvedImage};
use crate::error::Result;
use crate::layer::Layer;

/// What was asked for over what `image` says.
///
/// # Errors
/// When neither names a command.
pub(crate) fn under(asked: Layer, image: &ResolvedImage) -> Result<Layer> {
    let own = layer(image, &asked)?;
    // Docker's rules have made one of both.
    Ok(Layer { command: Vec::new(), ..asked }.over(own))
}

/// The settings of `image`; `asked` is what was typed, which decides about the command and about whose group it is.
fn layer(image: &ResolvedImage, asked: &Layer) -> Result<Layer> {
    let config = &image.config.config;
    let (user, group) = config.user.split_once(':').unwrap_or((&config.user, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let directory = some(&config.working_dir).map(PathBuf::from);
    Ok(Layer {
        layer: image.layers.clone(),
        user_marks: image.marks == Marks::User,
        directories: directory.iter().cloned().chain(config.volumes.iter().map(PathBuf::from)).collect(),
        uid: some(user),
        // The group belongs to the image's user, not to another one.
        gid: some(group).filter(|_| asked.uid.is_none()),
        // Without a value it would be the caller's variable.
        setenv: config.env.iter().filter(|variable| variable.contains('=')).map(OsString::from).collect(),
        working_directory: directory,
        stop_signal: some(&config.stop_signal),
        exposed: config.exposed_ports.clone(),
        command: config.argv(asked.entrypoint.as_deref(), &asked.command, &image.name)?,
        ..Layer::default()
    })
}
