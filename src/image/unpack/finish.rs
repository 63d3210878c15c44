//! What a directory gets when all is in it.

use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, XattrFlags};

use super::super::tar::{Member, Time};
use super::rights::{Call, Rights, failed, group, owner, xattr};
use super::tree::timestamps;
use crate::error::Result;

/// Metadata that waits for its directory to be full.
#[derive(Debug)]
pub(super) struct Finish {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether it hides what lower layers have in it.
    pub(super) opaque: bool,
    /// Whether no member of its own says what it is.
    pub(super) implied: bool,
}

impl Finish {
    /// As a member says.
    pub(super) fn of(member: &Member, rights: Rights, opaque: bool) -> Finish {
        Finish {
            uid: member.uid,
            gid: member.gid,
            mode: rights.mode(member),
            mtime: member.mtime,
            xattrs: member.xattrs.clone(),
            opaque,
            implied: false,
        }
    }

    /// For a directory that has no member of its own.
    pub(super) fn implied(mtime: Time, opaque: bool) -> Finish {
        Finish { uid: 0, gid: 0, mode: 0o755, mtime, xattrs: Vec::new(), opaque, implied: true }
    }

    /// Gives it to `directory`, called `label` in errors. Gives back how many attributes were left out.
    pub(super) fn apply(&self, directory: &OwnedFd, label: &[u8], rights: Rights) -> Result<u64> {
        let check = |what: &str, done: Call| done.map_err(|errno| failed(label, what, errno));
        if rights.owners {
            check("chown", fs::fchown(directory, owner(self.uid), group(self.gid)))?;
        }
        if self.opaque {
            let mark = fs::fsetxattr(directory, rights.marks.opaque_name(), b"y", XattrFlags::empty());
            check("mark it opaque", mark)?;
        }
        let mut skipped = 0;
        for (key, value) in &self.xattrs {
            let set = |name: &[u8]| fs::fsetxattr(directory, name, value, XattrFlags::empty());
            skipped += u64::from(!xattr(label, key, rights, set)?);
        }
        check("chmod", fs::fchmod(directory, Mode::from_raw_mode(self.mode)))?;
        check("set the times", fs::futimens(directory, &timestamps(self.mtime)))?;
        Ok(skipped)
    }
}
