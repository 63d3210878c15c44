//! The pasta process of a sandbox, <https://passt.top>, and the process of ours beside it, the attendant.
//!
//! Both are in the sandbox's unit and outside of its namespaces. The attendant is made before the unit, which takes it in; when the
//! child has a network namespace it starts pasta and says when that is ready. It lives as long as pasta does, and ends it when the
//! launcher's end of their socket closes, however the launcher ended: pasta itself would not notice.
//!
//! pasta runs as nobody (as a plain user: as that user), and enters the sandbox's user namespace, so that it has no capability
//! elsewhere. To bind ports of the host below 1024 takes one of the host's, which newer versions need after that step: with such a
//! port it stays outside. In either case it ends up in an empty directory behind its own system call filter.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal as Number};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::PastaPlan;
use super::publish::{Protocol, Publish};
use crate::child::leave_streams;
use crate::error::{Result, fault};
use crate::part::rootfs::assemble::new_file_system;
use crate::sync::{self, ChildEnd, Failure, ParentEnd, ToChild, ToParent};
use crate::sys::{self, Side};

/// The user and group that everybody knows as nobody, and the kernel too (`overflowuid`).
const NOBODY: u32 = 65534;

/// Signals that end pasta, and that systemd sends to everything in a unit which it stops: what the payload does until it has ended
/// may need the network.
const NOT_FOR_IT: &[Number] = &[Number::SIGTERM, Number::SIGINT, Number::SIGHUP, Number::SIGQUIT];

/// Where pasta finds the pipe that it writes its number into when it is ready; in its own mount namespace.
const READY: &str = "/tmp/ready";

/// The launcher's side: the attendant, and through it pasta. Dropped, both are ended.
#[derive(Debug)]
pub(crate) struct Pasta {
    end: Option<ParentEnd>,
    attendant: Pid,
    pidfd: OwnedFd,
    /// Where pasta is to go, until it was told.
    namespace: Option<OwnedFd>,
    process: Option<OwnedFd>,
}

impl Pasta {
    /// Makes the attendant, which waits; `child` is the first process of the sandbox.
    ///
    /// # Errors
    /// When there is no process or descriptor left.
    pub(crate) fn prepare(plan: &PastaPlan, child: Pid) -> Result<Pasta> {
        let (end, attendant_end) = sync::pair().context("make a socket pair")?;
        match sys::clone_process(0).context("start the process that attends to pasta")? {
            Side::Child => {
                drop(end);
                let status = attend(plan, child, &attendant_end).unwrap_or_else(|error| {
                    // If the launcher is gone there is nobody to tell.
                    drop(attendant_end.send(&ToParent::Failed(Failure::from_error(&error))));
                    1
                });
                sys::exit_now(status)
            }
            Side::Parent(attendant, pidfd) => {
                Ok(Pasta { end: Some(end), attendant, pidfd, namespace: None, process: None })
            }
        }
    }

    /// The attendant.
    pub(crate) fn attendant(&self) -> Pid {
        self.attendant
    }

    /// Keeps the network namespace for [`Pasta::begin`].
    pub(crate) fn keep(&mut self, namespace: OwnedFd) {
        self.namespace = Some(namespace);
    }

    /// Hands over the network namespace, when there is one: pasta starts. Not before the attendant is in the unit, since systemd moves
    /// no process that it was not given.
    ///
    /// # Errors
    /// When the attendant is gone.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let Some(namespace) = self.namespace.take() else { return Ok(()) };
        let end = self.end.as_ref().context("the process that attends to pasta is gone")?;
        end.send(&ToChild::Network(namespace)).context("tell the process that attends to pasta")
    }

    /// Waits until the network is up, or `interrupt` is readable.
    ///
    /// # Errors
    /// With pasta's own words when it could not.
    pub(crate) fn await_ready(&mut self, interrupt: BorrowedFd<'_>) -> Result<()> {
        let end = self.end.as_ref().context("the process that attends to pasta is gone")?;
        wait_for(&[end.as_fd(), interrupt])?;
        if is_readable(interrupt) {
            return Err(fault("interrupted by a signal").into());
        }
        match end.receive()? {
            Some(ToParent::Ready(process)) => self.process = process,
            Some(ToParent::Failed(failure)) => return Err(failure.into_error()),
            Some(_) | None => return Err(fault("the process that attends to pasta ended before it was ready").into()),
        }
        Ok(())
    }

    /// What it failed with, if it has said so by now.
    pub(crate) fn failure(&self) -> Option<anyhow::Error> {
        let end = self.end.as_ref().filter(|end| is_readable(end.as_fd()))?;
        match end.receive() {
            Ok(Some(ToParent::Failed(failure))) => Some(failure.into_error()),
            _ => None,
        }
    }

    /// Whether pasta has ended, which it does not by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(|process| is_readable(process.as_fd()))
    }
}

impl Drop for Pasta {
    /// The ports are free again when this returns.
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            // ESRCH: it has ended.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
            let _ = wait_for(&[process.as_fd()]);
        } else {
            // It may be about to make pasta: it ends that, too.
            self.end = None;
            let _ = wait_for(&[self.pidfd.as_fd()]);
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.attendant), WaitOptions::empty());
    }
}

fn wait_for(fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).context("wait for pasta")?;
    Ok(())
}

/// Whether there is something to read, or nothing to be waited for any more.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The attendant's side, to its end.
fn attend(plan: &PastaPlan, child: Pid, end: &ChildEnd) -> Result<u8> {
    sys::close_all_but(&[end.as_fd()]).context("close inherited descriptors")?;
    leave_streams(end);
    rustix::process::setsid().context("make a session")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let namespace = match end.receive()? {
        Some(ToChild::Network(namespace)) => namespace,
        Some(_) | None => return Ok(1),
    };
    let place = Place::make(plan, child, &namespace)?;
    let (errors, said) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
    let (pid, pidfd) = match sys::clone_process(0).context("start pasta")? {
        Side::Child => {
            let error = become_pasta(plan, &place, &said);
            let _ = rustix::io::write(&said, format!("{error:#}\n").as_bytes());
            sys::exit_now(1)
        }
        Side::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(said);
    wait_for(&[place.ready.as_fd(), pidfd.as_fd(), end.as_fd()])?;
    // It opens the pipe long before it writes its number.
    if !matches!(rustix::io::read(&place.ready, &mut [0; 32]), Ok(1..)) {
        finish(pid, &pidfd);
        return Err(explain(&errors, plan));
    }
    end.send(&ToParent::Ready(Some(pidfd.try_clone().context("duplicate a descriptor")?)))
        .context("tell the launcher")?;
    // What pasta says from now on nobody reads.
    drop((errors, place));
    wait_for(&[pidfd.as_fd(), end.as_fd()])?;
    finish(pid, &pidfd);
    Ok(0)
}

fn finish(pid: Pid, pidfd: &OwnedFd) {
    // ESRCH: it has ended by itself.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
}

/// The error with pasta's last words, or those of the process that should have become it.
fn explain(errors: &OwnedFd, plan: &PastaPlan) -> anyhow::Error {
    let mut text = String::new();
    if let Ok(errors) = errors.try_clone() {
        // Whoever wrote into it has ended.
        drop(File::from(errors).take(16 << 10).read_to_string(&mut text));
    }
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    let fault = fault(format!("{}: {last}", plan.program.display()));
    if last.contains("nterface not usable") || last.contains("outable interface") {
        return fault.hint("this host has no default route, so nothing could be reached: ip route").into();
    }
    if last.contains("bind") || last.contains("in use") {
        return fault.hint("somebody else has just taken a port: ss -lntup").into();
    }
    fault.into()
}

/// What pasta finds under names of its own: the attendant's mount namespace is private.
struct Place {
    /// The directory with the namespaces, as /proc has them of the sandbox's first process.
    namespaces: PathBuf,
    /// Readable when pasta is ready.
    ready: OwnedFd,
}

impl Place {
    fn make(plan: &PastaPlan, child: Pid, namespace: &OwnedFd) -> Result<Place> {
        let users = sys::namespace_owner(namespace.as_fd()).context("find the sandbox's user namespace")?;
        if !plan.root {
            sys::setns(users.as_fd(), libc::CLONE_NEWUSER).context("enter the sandbox's user namespace")?;
        }
        sys::unshare(libc::CLONE_NEWNS).context("unshare the mount namespace")?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("make / private")?;
        cover(Path::new("/tmp"))?;
        rustix::fs::mknodat(CWD, READY, FileType::Fifo, Mode::from_raw_mode(0o600), 0).context("make a named pipe")?;
        if plan.root {
            let (uid, gid) = (Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)));
            rustix::fs::chown(READY, uid, gid).context("give the named pipe away")?;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let ready = rustix::fs::open(READY, flags, Mode::empty()).context("open the named pipe")?;
        // By the names that the namespaces have: nothing of the process itself can be opened by pasta's user, and what confines
        // pasta (AppArmor) knows these names.
        let process = PathBuf::from(format!("/proc/{}", child.as_raw_nonzero()));
        cover(&process).context("the sandbox's first process has ended")?;
        let namespaces = process.join("ns");
        rustix::fs::mkdir(&namespaces, Mode::from_raw_mode(0o755)).context("make a directory for namespaces")?;
        show(&users, &namespaces.join("user"))?;
        show(namespace, &namespaces.join("net"))?;
        Ok(Place { namespaces, ready })
    }
}

/// An empty directory in memory over what is there.
fn cover(place: &Path) -> Result<()> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("mode", "0755".to_owned()), ("size", "64k".to_owned())];
    let mount = new_file_system("tmpfs", &options, attributes).context("make a tmpfs")?;
    rustix::mount::move_mount(&mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mount a tmpfs on {}", place.display()))
}

fn show(namespace: &OwnedFd, at: &Path) -> Result<()> {
    let shown = || format!("show a namespace as {}", at.display());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::open(at, flags, Mode::from_raw_mode(0o444)).with_context(shown)?);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(namespace, "", flags).with_context(shown)?;
    rustix::mount::move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).with_context(shown)
}

/// In the process that becomes pasta; returns only why it could not.
fn become_pasta(plan: &PastaPlan, place: &Place, errors: &OwnedFd) -> anyhow::Error {
    match prepare(plan, errors) {
        Ok(()) => {
            let words = arguments(plan, &place.namespaces);
            let words: Vec<CString> = words.into_iter().filter_map(|word| CString::new(word.into_vec()).ok()).collect();
            sys::exec(plan.program.as_os_str(), &words, &[c"PATH=/usr/bin:/bin".to_owned()], false).into()
        }
        Err(error) => error,
    }
}

fn prepare(plan: &PastaPlan, errors: &OwnedFd) -> Result<()> {
    let null =
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("take /dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("take /dev/null")?;
    rustix::stdio::dup2_stderr(errors).context("take a pipe")?;
    sys::default_signals().context("reset signals")?;
    NOT_FOR_IT.iter().copied().collect::<SigSet>().thread_set_mask().context("block signals")?;
    let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE;
    if plan.root {
        rustix::thread::set_keep_capabilities(true).context("keep capabilities")?;
        nix::unistd::setgroups(&[]).context("leave all groups")?;
        let (uid, gid) = (nix::unistd::Uid::from_raw(NOBODY), nix::unistd::Gid::from_raw(NOBODY));
        nix::unistd::setresgid(gid, gid, gid).context("become nobody")?;
        nix::unistd::setresuid(uid, uid, uid).context("become nobody")?;
    }
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })
        .context("limit capabilities")?;
    for capability in kept.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).context("keep capabilities")?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tie pasta to its parent")
}

/// The command line. What is not said here pasta would do by itself: publish every port that is bound inside, and let what is inside
/// reach what listens on the host's loopback interface.
fn arguments(plan: &PastaPlan, namespaces: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![plan.program.clone().into()];
    let mut add = |more: &[&str]| words.extend(more.iter().map(OsString::from));
    add(&["--foreground", "--quiet", "--config-net", "--no-netns-quit", "--pid", READY]);
    add(&["--no-dhcp", "--no-dhcpv6", "--no-ra", "--tcp-ns", "none", "--udp-ns", "none"]);
    if !plan.reach_host {
        add(&["--no-map-gw"]);
    }
    for (flag, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
        let ports: Vec<String> = plan.publish.iter().filter(|p| p.protocol == protocol).map(port).collect();
        if ports.is_empty() {
            add(&[flag, "none"]);
        }
        ports.iter().for_each(|ports| add(&[flag, ports]));
    }
    add(&["--netns"]);
    words.push(namespaces.join("net").into());
    if plan.root && !plan.has_low_port() {
        words.extend(["--userns".into(), namespaces.join("user").into()]);
    } else {
        words.push("--netns-only".into());
    }
    words
}

impl PastaPlan {
    /// A port of the host is one that only root may bind. What a host says otherwise (`ip_unprivileged_port_start`) is not asked.
    fn has_low_port(&self) -> bool {
        self.publish.iter().any(|publish| publish.host_port < 1024)
    }
}

/// A port as pasta's options have it.
fn port(publish: &Publish) -> String {
    let range = |first: u16| match publish.count {
        1 => first.to_string(),
        count => format!("{first}-{}", first.saturating_add(count - 1)),
    };
    let ports = format!("{}:{}", range(publish.host_port), range(publish.port));
    publish.address.map_or(ports.clone(), |address| format!("{address}/{ports}"))
}

#[cfg(test)]
mod tests {
    use super::super::publish;
    use super::*;

    fn line(ports: &[&str], reach_host: bool, root: bool) -> String {
        let publish = ports.iter().flat_map(|text| publish::parse(text).unwrap()).collect();
        let plan = PastaPlan { program: "/usr/bin/pasta".into(), publish, reach_host, root };
        let words = arguments(&plan, Path::new("/proc/7/ns"));
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn nothing_is_open_that_was_not_asked_for() {
        let text = line(&[], false, true);
        for words in [
            "--tcp-ports none",
            "--udp-ports none",
            "--tcp-ns none",
            "--udp-ns none",
            "--no-map-gw",
            "--userns /proc/7/ns/user",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        // Port 80 can be bound with the host's rights only.
        assert!(line(&["80:80"], false, true).ends_with("--netns /proc/7/ns/net --netns-only"));
        let text = line(&[], true, false);
        assert!(!text.contains("--no-map-gw") && text.ends_with("--netns /proc/7/ns/net --netns-only"), "{text}");
    }

    #[test]
    fn ports_are_written_as_pasta_reads_them() {
        let text = line(&["8080:80", "127.0.0.1:8000-8001:90-91", "[::1]:53:53/udp"], false, true);
        assert!(
            text.contains("--tcp-ports 8080:80 --tcp-ports 127.0.0.1/8000-8001:90-91 --udp-ports ::1/53:53"),
            "{text}"
        );
    }
}
