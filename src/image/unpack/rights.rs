//! What the one who unpacks may give to files, and giving it.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, AtFlags, Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::tar::{Kind, Member, show};
use super::refuse;
use super::tree::{Tree, through_proc, timestamps};
use crate::error::Result;

/// The outcome of one system call, where the caller looks at the error itself.
pub(super) type Call = std::result::Result<(), Errno>;

/// Which extended attributes overlayfs reads its marks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Marks {
    /// `trusted.overlay.*`: what root writes and a mount by root reads. All else is exact too.
    Trusted,
    /// `user.overlay.*`: what anybody may write, read by a mount with `userxattr`. Every file belongs to the caller, who
    /// is root inside.
    User,
}

impl Marks {
    /// What the caller is able to write into `directory`, found by trying.
    pub(crate) fn possible(directory: BorrowedFd<'_>) -> Marks {
        let name = c"trusted.overlay.sandbox-probe";
        match fs::fsetxattr(directory, name, b"y", XattrFlags::empty()) {
            Ok(()) => {
                // Left behind it would do no harm.
                let _ = fs::fremovexattr(directory, name);
                Marks::Trusted
            }
            Err(_) => Marks::User,
        }
    }

    pub(crate) fn opaque_name(self) -> &'static std::ffi::CStr {
        match self {
            Marks::Trusted => c"trusted.overlay.opaque",
            Marks::User => c"user.overlay.opaque",
        }
    }
}

/// What the one who unpacks may give to files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    /// Which marks can be written; with `Trusted` everything can.
    pub(super) marks: Marks,
    /// Whether owners can be given away: not when an ordinary user unpacks.
    pub(super) owners: bool,
}

impl Rights {
    /// Those of this process.
    pub(super) fn of_caller(marks: Marks) -> Rights {
        Rights { marks, owners: rustix::process::geteuid().is_root() }
    }

    /// Permission bits as they can be given. A file of somebody else that an ordinary user unpacks becomes the caller's,
    /// who is root inside: its set-id bits would lend a right that the image never gave.
    pub(super) fn mode(self, member: &Member) -> u32 {
        let mut bits = member.mode;
        if !self.owners && member.uid != 0 {
            bits &= !0o4000;
        }
        if !self.owners && member.gid != 0 {
            bits &= !0o2000;
        }
        bits
    }
}

/// What a file has from the moment it is created. Most files of an image belong to root and have a plain mode: for them
/// two system calls in six are saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    owner: Option<(u32, u32)>,
    umask: u32,
}

impl Birth {
    /// For files of `tree`. Its directories keep the root's group until they are finished, so a file gets the same group
    /// whether the file system takes it from the process or from the directory.
    pub(super) fn into(tree: &Tree) -> Birth {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let plain = |stat: &fs::Stat| stat.st_gid == gid && stat.st_mode & 0o2000 == 0;
        let owner = fs::fstat(tree.root()).is_ok_and(|stat| plain(&stat)).then_some((uid, gid));
        // Asked of the kernel's own text: the call that tells the umask also changes it, for all threads.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
        Birth { owner, umask: umask.unwrap_or(0o777) }
    }

    /// Whether a file created with `mode` has exactly that. Set-id bits would not outlive the writing of its contents.
    pub(super) fn gives_mode(self, mode: u32) -> bool {
        mode & (0o7000 | self.umask) == 0
    }

    /// Whether a file belongs to whom `member` says from the start.
    pub(super) fn gives_owner(self, member: &Member) -> bool {
        self.owner == Some((member.uid, member.gid))
    }
}

/// Owner, mode, attributes and times of what is neither file nor directory. Gives the number of attributes left out.
pub(super) fn dress(member: &Member, base: BorrowedFd<'_>, name: &[u8], rights: Rights) -> Result<u64> {
    if rights.owners {
        fs::chownat(base, name, owner(member.uid), group(member.gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(&member.path, "chown", errno))?;
    }
    if member.kind != Kind::Symlink {
        // It was created a moment ago as no link, in a tree that nobody else can enter, so there is none to follow.
        fs::chmodat(base, name, Mode::from_raw_mode(rights.mode(member)), AtFlags::empty())
            .map_err(|errno| failed(&member.path, "chmod", errno))?;
    }
    let mut skipped = 0;
    for (key, value) in &member.xattrs {
        let set = |attribute: &[u8]| fs::lsetxattr(through_proc(base, name), attribute, value, XattrFlags::empty());
        skipped += u64::from(!xattr(&member.path, key, rights, set)?);
    }
    fs::utimensat(base, name, &timestamps(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed(&member.path, "set the times", errno))?;
    Ok(skipped)
}

/// Sets one attribute; `false` when it had to be left out.
pub(super) fn xattr(path: &[u8], key: &[u8], rights: Rights, set: impl FnOnce(&[u8]) -> Call) -> Result<bool> {
    if is_overlays_own(key) {
        return Ok(false);
    }
    match set(key) {
        Ok(()) => Ok(true),
        // A program without its capabilities is another program; root must get it exact. The rest is said in the tally.
        Err(errno @ (Errno::OPNOTSUPP | Errno::PERM))
            if key == b"security.capability" && rights.owners && rights.marks == Marks::Trusted =>
        {
            Err(refuse(path, format_args!("cannot set its capabilities: {errno}")))
        }
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(errno) => Err(refuse(path, format_args!("cannot set the attribute {}: {errno}", show(key)))),
    }
}

/// Attributes that overlayfs itself gives meaning to: never taken from an archive.
pub(crate) fn is_overlays_own(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.")
}

pub(super) fn owner(uid: u32) -> Option<Uid> {
    Some(Uid::from_raw(uid))
}

pub(super) fn group(gid: u32) -> Option<Gid> {
    Some(Gid::from_raw(gid))
}

pub(super) fn failed(path: &[u8], what: &str, errno: Errno) -> anyhow::Error {
    refuse(path, format_args!("cannot {what}: {errno}"))
}
