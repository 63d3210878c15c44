//! As whom the files that make a root are made.

use std::cell::Cell;

use anyhow::Context;

use super::assemble::Ids;
use crate::error::Result;

/// Whose files this process makes: its own user's, or those of the mapped root, by fsuid and fsgid with the capabilities kept;
/// capabilities(7). Switching costs two system calls, so it is left as it is until somebody needs the other one. Dropping it gives
/// this process its own user back.
pub(super) struct Actor {
    /// What root inside is here; 0: the same as outside, or there is but one user.
    base: u32,
    is_owner: Cell<bool>,
}

impl Actor {
    /// Begins as this process's own user.
    pub(super) fn new(ids: &Ids<'_>) -> Result<Actor> {
        if ids.base != 0 {
            let bits = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
            rustix::thread::set_capabilities_secure_bits(bits)
                .context("keep capabilities while acting as the mapped root")?;
        }
        Ok(Actor { base: ids.base, is_owner: Cell::new(false) })
    }

    /// From here on files are the mapped root's. Where an idmapped upper or bind is written, the host's root has no owner to write as
    /// (EOVERFLOW).
    pub(super) fn as_owner(&self) {
        if self.base != 0 && !self.is_owner.replace(true) {
            nix::unistd::setfsuid(self.base.into());
            nix::unistd::setfsgid(self.base.into());
        }
    }

    /// From here on files are this process's own user's.
    pub(super) fn as_self(&self) {
        if self.is_owner.replace(false) {
            nix::unistd::setfsuid(nix::unistd::geteuid());
            nix::unistd::setfsgid(nix::unistd::getegid());
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.as_self();
    }
}
