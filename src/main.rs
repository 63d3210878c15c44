//! `sandbox`: a command in a container that systemd owns.

mod error;
mod image;

fn main() {}
