//! Lets the linker put the functions side by side that a start executes, where speed is asked for. Not every linker takes such a script
//! (mold does not): `SANDBOX_LINK_ORDER=no` leaves it out.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=packaging/start.ld");
    println!("cargo:rerun-if-env-changed=SANDBOX_LINK_ORDER");
    let is = |name: &str, value: &str| var(name).is_ok_and(|found| found == value);
    if !is("PROFILE", "release") || !is("CARGO_CFG_TARGET_OS", "linux") || is("SANDBOX_LINK_ORDER", "no") {
        return;
    }
    if let Ok(directory) = var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-arg-bins=-T{directory}/packaging/start.ld");
    }
}
