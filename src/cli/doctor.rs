//! `sandbox doctor`.

use clap::Args;

use crate::error::Result;

/// Flags of `sandbox doctor`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn main(_arguments: &Arguments) -> Result<u8> {
    Ok(0)
}
