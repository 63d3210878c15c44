//! `sandbox`: a command in a container that systemd owns.

mod error;
mod systemd;
mod value;

fn main() {}
