//! Images.
// The parts of this module that only `run --image` calls wait for it.
#![allow(dead_code)]

pub(crate) mod config;
pub(crate) mod digest;
pub(crate) mod manifest;
pub(crate) mod progress;
pub(crate) mod reference;
mod stream;
mod tar;
