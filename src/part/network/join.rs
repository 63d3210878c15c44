//! A network namespace that is there already: the sandbox's first process is born in it.
//!
//! To enter one takes rights over it, which that process, in a user namespace of its own, has not. So a process of ours that has them
//! enters it and makes the first process there, as the launcher's child. For root that is all. A plain user has rights over those of
//! the user's own sandboxes, in their user namespaces only: the new user namespace is made below that one then, with the same IDs.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use serde::Serialize;

use crate::error::{Fault, Result, fault};
use crate::part::users::{self, MapLine, UserPlan};
use crate::sync::{self, ChildEnd, Failure, ToParent};
use crate::sys::{self, Side};

/// Which one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct JoinPlan {
    /// As it was asked for.
    pub(crate) asked: String,
    /// A file that stands for it.
    pub(crate) path: PathBuf,
    /// The caller has rights over all of them.
    pub(crate) root: bool,
}

/// A namespace that is held.
#[derive(Debug)]
pub(crate) struct Joined {
    network: OwnedFd,
    /// The user namespace in which a plain user has rights over it.
    users: Option<OwnedFd>,
}

impl JoinPlan {
    /// Opens it.
    ///
    /// # Errors
    /// When there is none, or the caller has no rights over it.
    pub(crate) fn open(&self) -> Result<Joined> {
        let network = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| self.refused(error))?;
        if !sys::namespace_type(network.as_fd()).is_ok_and(|kind| kind == libc::CLONE_NEWNET) {
            let line = format!("--network {}: {} is no network namespace", self.asked, self.path.display());
            return Err(fault(line).hint("ip netns list").into());
        }
        let users = if self.root { None } else { Some(self.owner(&network)?) };
        Ok(Joined { network, users })
    }

    fn refused(&self, error: Errno) -> Fault {
        let fault = fault(format!("--network {}: open {}: {error}", self.asked, self.path.display()));
        match error {
            Errno::NOENT => fault.hint("ip netns list; ip netns add NAME makes one"),
            Errno::ACCESS | Errno::PERM => fault.hint("run as root: sudo sandbox run …"),
            _ => fault,
        }
    }

    /// The user namespace that owns it, of those that a plain user has made.
    fn owner(&self, network: &OwnedFd) -> Result<OwnedFd> {
        let foreign = || {
            fault(format!(
                "--network {}: a plain user can join the network of one of their own sandboxes only",
                self.asked
            ))
            .hint("run as root: sudo sandbox run …")
        };
        let owner = sys::namespace_owner(network.as_fd()).map_err(|_| foreign())?;
        let own = std::fs::metadata("/proc/self/ns/user").context("look at the user namespace")?;
        let found = rustix::fs::fstat(&owner).context("look at the user namespace")?;
        if (found.st_dev, found.st_ino) == (own.dev(), own.ino()) {
            return Err(foreign().into());
        }
        Ok(owner)
    }
}

impl Joined {
    /// The same, for another thread.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub(crate) fn try_clone(&self) -> std::io::Result<Joined> {
        let users = self.users.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Joined { network: self.network.try_clone()?, users })
    }

    /// Enters the network namespace; the caller keeps its rights elsewhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn enter(&self) -> Result<()> {
        sys::setns(self.network.as_fd(), libc::CLONE_NEWNET).context("enter the network namespace")
    }

    /// The ID maps are written by whoever makes the first process.
    pub(crate) fn writes_maps(&self) -> bool {
        self.users.is_some()
    }

    /// Makes the first process, in new namespaces as `flags` say and in this network namespace; it is a child of the caller.
    ///
    /// # Errors
    /// When the kernel refuses, or the IDs of `plan` do not exist in the user namespace that is joined.
    pub(crate) fn clone_process(&self, flags: libc::c_int, plan: &UserPlan) -> Result<Side> {
        let (end, child_end) = sync::pair().context("make a socket pair")?;
        match sys::clone_process(0).context("start the process that joins the network")? {
            Side::Child => {
                drop(end);
                match self.make_sibling(flags, plan) {
                    // The sandbox's first process.
                    Ok(Side::Child) => Ok(Side::Child),
                    Ok(Side::Parent(pid, pidfd)) => sys::exit_now(u8::from(tell(&child_end, pid, pidfd).is_err())),
                    Err(error) => {
                        drop(child_end.send(&ToParent::Failed(Failure::from_error(&error))));
                        sys::exit_now(1)
                    }
                }
            }
            Side::Parent(joiner, _) => {
                drop(child_end);
                let said = end.receive();
                let _ = rustix::process::waitpid(Some(joiner), WaitOptions::empty());
                match said? {
                    Some(ToParent::Child(pid, pidfd)) => Ok(Side::Parent(pid, pidfd)),
                    Some(ToParent::Failed(failure)) => Err(failure.into_error()),
                    Some(_) | None => Err(fault("the process that joins the network was killed").into()),
                }
            }
        }
    }

    fn make_sibling(&self, flags: libc::c_int, plan: &UserPlan) -> Result<Side> {
        if let Some(users) = &self.users {
            sys::setns(users.as_fd(), libc::CLONE_NEWUSER)
                .context("enter the user namespace of the network's owner")?;
            // Else the files in /proc that the maps are written to would not be this process's.
            rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).context("own /proc/self")?;
        }
        self.enter()?;
        let side = sys::clone_sibling(flags).context("make namespaces")?;
        if let (Side::Parent(pid, pidfd), Some(_)) = (&side, &self.users)
            && let Err(error) = write_maps(*pid, plan)
        {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            return Err(error);
        }
        Ok(side)
    }
}

fn tell(end: &ChildEnd, pid: Pid, pidfd: OwnedFd) -> std::io::Result<()> {
    end.send(&ToParent::Child(pid, pidfd))
}

fn write_maps(pid: Pid, plan: &UserPlan) -> Result<()> {
    let Some((uid, gid)) = users::map_lines(plan, 0) else { return Ok(()) };
    let through = |name: &str, lines: &[MapLine]| {
        let text = std::fs::read_to_string(format!("/proc/self/{name}")).with_context(|| format!("read {name}"))?;
        through(lines, &parse(&text)).ok_or_else(|| {
            anyhow::Error::from(
                fault(format!(
                    "the sandbox whose network is joined has other IDs: its {name} lacks some of this one's"
                ))
                .hint("--userns is to be the same for both"),
            )
        })
    };
    let (uid, gid) = (through("uid_map", &uid)?, through("gid_map", &gid)?);
    users::write_maps(pid, &uid, &gid, true)
}

/// Reads the text of /proc/PID/uid_map.
fn parse(text: &str) -> Vec<MapLine> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map_while(|number| number.parse().ok());
        Some(MapLine { inside: numbers.next()?, outside: numbers.next()?, count: numbers.next()? })
    };
    text.lines().filter_map(line).collect()
}

/// The same map for a namespace below the one whose map `outer` is; `None` where that lacks an ID.
fn through(lines: &[MapLine], outer: &[MapLine]) -> Option<Vec<MapLine>> {
    let line = |line: &MapLine| {
        let first = u64::from(line.outside);
        let covers = |other: &&MapLine| {
            let start = u64::from(other.outside);
            start <= first && first + u64::from(line.count) <= start + u64::from(other.count)
        };
        let found = outer.iter().find(covers)?;
        Some(MapLine { outside: found.inside + (line.outside - found.outside), ..*line })
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_below_maps() {
        let outer = parse("         0       1000          1\n         1     100000      65536\n");
        let map = |lines: &[[u32; 3]]| {
            let lines = lines.iter().map(|[inside, outside, count]| MapLine {
                inside: *inside,
                outside: *outside,
                count: *count,
            });
            through(&lines.collect::<Vec<_>>(), &outer)
        };
        let same = map(&[[0, 1000, 1], [1, 100_000, 65536]]).unwrap();
        assert_eq!(same.iter().map(|l| (l.inside, l.outside, l.count)).collect::<Vec<_>>(), [(0, 0, 1), (1, 1, 65536)]);
        assert_eq!(map(&[[1000, 1000, 1]]).unwrap()[0].outside, 0);
        assert_eq!(map(&[[5, 100_010, 10]]).unwrap()[0].outside, 11);
        assert_eq!(map(&[[0, 1001, 1]]), None);
        assert_eq!(map(&[[1, 100_000, 65537]]), None);
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        let open = |path: &str| JoinPlan { asked: format!("ns:{path}"), path: path.into(), root: true }.open();
        for (path, words) in [
            ("/dev/null", "no network namespace"),
            ("/proc/self/ns/uts", "no network namespace"),
            ("/no", "No such file"),
        ] {
            assert!(open(path).unwrap_err().to_string().contains(words), "{path}");
        }
        open("/proc/self/ns/net").unwrap();
    }
}
