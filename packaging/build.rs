//! Lets the linker put the functions side by side that a start executes, where speed is asked for.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=packaging/start.ld");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    if !is("PROFILE", "release") || !is("CARGO_CFG_TARGET_OS", "linux") {
        return;
    }
    if let Ok(directory) = var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-arg-bins=-T{directory}/packaging/start.ld");
    }
}
