//! Facts of this machine, read once before anything is decided. Tests make their own [`Host`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

mod entries;
mod file_systems;
pub(crate) mod network;

use crate::error::Result;
use crate::part::account;
use crate::part::service::{Listen, OwnService};
use crate::spec::network::NetworkSpec;
use crate::systemd::CgroupMode;
pub(crate) use entries::Kind;
use entries::entries;
pub(crate) use file_systems::{is_kernel, is_remote};
use network::NetworkFacts;

/// What was read of this machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Effective user ID of the launcher.
    pub(crate) uid: u32,
    /// Effective group ID of the launcher.
    pub(crate) gid: u32,
    /// The caller's working directory; / where it is gone.
    pub(crate) cwd: PathBuf,
    /// The kernel's version, major and minor.
    pub(crate) kernel: (u32, u32),
    /// Layout of the cgroup hierarchies, where there are any.
    pub(crate) cgroup: Option<CgroupMode>,
    /// Six hex digits, drawn for this start.
    pub(crate) id: String,
    /// systemd is this machine's PID 1 (sd_booted(3)).
    pub(crate) booted_by_systemd: bool,
    /// The version of systemd that is installed, where its library tells: a hint, since the running one may be older or newer.
    pub(crate) systemd: Option<u16>,
    /// The mounts that a path can reach, sorted by where they are; see [`visible`].
    pub(crate) mounts: Vec<Mount>,
    /// Standard input and output are both terminals, which this process may read.
    pub(crate) terminal: bool,
    /// The caller's environment.
    pub(crate) environment: BTreeMap<OsString, OsString>,
    /// Subordinate user and group IDs of the caller (subuid(5)), where newuidmap(1) and newgidmap(1) can map them.
    pub(crate) subordinate_ids: Option<(IdRange, IdRange)>,
    /// IDs that somebody owns already: of /etc/subuid, /etc/subgid, /etc/passwd and /etc/group.
    pub(crate) taken_ids: Vec<IdRange>,
    /// Why /dev/fuse cannot be used, where it cannot.
    pub(crate) no_fuse: Option<String>,
    /// Content of /etc/resolv.conf, wherever it really is.
    pub(crate) resolv_conf: Vec<u8>,
    /// What is known of the network; read only for a sandbox that is connected to it.
    pub(crate) network: NetworkFacts,
    /// Text of /etc/passwd.
    pub(crate) passwd: String,
    /// Text of /etc/group.
    pub(crate) group: String,
    /// No link leads to these two.
    pub(crate) accounts_are_plain: bool,
    /// What the host view needs to know; read only when it is the root.
    pub(crate) view: HostView,
    /// The service whose main process the launcher is.
    pub(crate) service: Option<OwnService>,
    /// Sockets that were passed to the launcher.
    pub(crate) listen: Option<Listen>,
    /// Standard output, and standard error, are the stream to the journal that systemd made.
    pub(crate) journal_streams: (bool, bool),
}

/// A contiguous range of user or group IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct IdRange {
    /// The first ID.
    pub(crate) first: u32,
    /// How many there are.
    pub(crate) count: u32,
}

impl IdRange {
    /// Whether `id` is in it.
    pub(crate) fn contains(self, id: u32) -> bool {
        self.overlaps(IdRange { first: id, count: 1 })
    }

    /// Whether the two have an ID in common.
    pub(crate) fn overlaps(self, other: IdRange) -> bool {
        u64::from(self.first) < u64::from(other.first) + u64::from(other.count)
            && u64::from(other.first) < u64::from(self.first) + u64::from(self.count)
    }
}

/// One line of /proc/PID/mountinfo, proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// ID of the mount.
    pub(crate) id: u32,
    /// ID of the mount that it is on.
    pub(crate) parent: u32,
    /// The directory (or file) of the file system that is the root of this mount.
    pub(crate) root: PathBuf,
    /// Where it is.
    pub(crate) point: PathBuf,
    /// The mount or its file system is read-only.
    pub(crate) read_only: bool,
    /// It cannot be bound elsewhere, mount_namespaces(7).
    pub(crate) unbindable: bool,
    /// Type of the file system (`ext4`, `fuse.sshfs`).
    pub(crate) fstype: String,
    /// Mount options of the file system, comma-separated.
    pub(crate) super_options: String,
}

/// Files and directories of the host that its view as a root is made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostView {
    /// What [`crate::part::secrets`] hides here, with whether each is a directory.
    pub(crate) secrets: Vec<(PathBuf, bool)>,
    /// Entries of / and of every directory below which something is mounted.
    pub(crate) entries: BTreeMap<PathBuf, Vec<(OsString, Kind)>>,
    /// Content of /etc/hosts.
    pub(crate) hosts: String,
    /// Mount points that are files, not directories.
    pub(crate) file_mounts: Vec<PathBuf>,
}

impl Host {
    /// Reads the facts that every start needs.
    ///
    /// # Errors
    /// When /proc is missing or unreadable.
    pub(crate) fn read() -> Result<Host> {
        let mounts = read_of_kernel("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let uid = rustix::process::geteuid().as_raw();
        // Ranges of IDs that others have are in them: what cannot be read is not nothing.
        let [passwd, group] = [text_of("/etc/passwd")?, text_of("/etc/group")?];
        let user = account::by_uid(&passwd, uid).map_or_else(|| uid.to_string(), |entry| entry.name);
        let [subuid, subgid] = [text_of("/etc/subuid")?, text_of("/etc/subgid")?];
        let environment = std::env::vars_os().collect();
        let own = |text: &str| subordinate_ranges(text).into_iter().find(|(owner, _)| *owner == user).map(|(_, r)| r);
        Ok(Host {
            uid,
            gid: rustix::process::getegid().as_raw(),
            cwd: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            kernel: parse_kernel(rustix::system::uname().release().to_string_lossy().as_ref()),
            cgroup: CgroupMode::find()?,
            id: random_id()?,
            systemd: installed_systemd(),
            booted_by_systemd: is_booted_by_systemd().context("look at /run/systemd/system")?,
            mounts: visible(parse_mountinfo(&mounts)),
            terminal: std::io::stdin().is_terminal()
                && std::io::stdout().is_terminal()
                && crate::relay::is_in_foreground(),
            service: OwnService::read(&environment).context("read /proc/self/cgroup")?,
            listen: Listen::read(&environment),
            journal_streams: journal_streams(environment.get(OsStr::new("JOURNAL_STREAM"))),
            environment,
            subordinate_ids: own(&subuid).zip(own(&subgid)).filter(|_| uid != 0 && may_use_map_tools()),
            taken_ids: taken_ids(&[&subuid, &subgid], &[&passwd, &group]),
            no_fuse: crate::procview::mount::obstacle(),
            resolv_conf: std::fs::read("/etc/resolv.conf").unwrap_or_default(),
            network: NetworkFacts::default(),
            passwd,
            group,
            accounts_are_plain: are_plain_accounts(),
            view: HostView::default(),
        })
    }

    /// Reads what the network of a sandbox needs.
    ///
    /// # Errors
    /// When the sandbox whose network is joined is not there.
    pub(crate) fn read_network(&mut self, asked: &NetworkSpec) -> Result<()> {
        self.network = NetworkFacts::read(asked, &self.resolv_conf)?;
        Ok(())
    }

    /// Reads what the host view needs: what of it exists, and the files that every sandbox gets a copy of.
    ///
    /// # Errors
    /// When a local directory that holds a mount cannot be listed for another reason than permission.
    pub(crate) fn read_view(&mut self) -> Result<()> {
        self.view.hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        self.view.secrets = crate::part::secrets::existing(self);
        self.view.file_mounts = self
            .mounts
            .iter()
            .filter(|mount| mount.root != Path::new("/") && self.is_local(&mount.point))
            .filter(|mount| std::fs::symlink_metadata(&mount.point).is_ok_and(|meta| !meta.is_dir()))
            .map(|mount| mount.point.clone())
            .collect();
        if self.uid != 0 {
            self.view.entries = self.entries_above_mounts();
        }
        Ok(())
    }

    /// The mount that `path` is on; the path is taken as it is, no link in it is followed.
    pub(crate) fn mount_of(&self, path: &Path) -> Option<&Mount> {
        let path = plain(path);
        self.mounts.iter().filter(|m| is_below(&path, &m.point)).max_by_key(|m| m.point.as_os_str().len())
    }

    /// Whether `path` can be looked at without asking a server: nothing at it or above it is on the network, FUSE or automount.
    pub(crate) fn is_local(&self, path: &Path) -> bool {
        let path = plain(path);
        !self.mounts.iter().any(|m| is_below(&path, &m.point) && is_remote(&m.fstype))
    }

    /// An overlay in a user namespace cannot be made of a directory with mounts below it, so the plain user's view is made of
    /// what those directories hold.
    fn entries_above_mounts(&self) -> BTreeMap<PathBuf, Vec<(OsString, Kind)>> {
        let mut directories = std::collections::BTreeSet::from([PathBuf::from("/")]);
        for mount in &self.mounts {
            directories.extend(mount.point.ancestors().skip(1).map(Path::to_path_buf));
        }
        let files = |path: &Path| self.is_local(path) && self.mount_of(path).is_some_and(|m| !is_kernel(&m.fstype));
        // One that this user may not list is empty inside: with mounts below it could not be shown at all.
        directories
            .into_iter()
            .filter(|d| files(d))
            .map(|d| {
                let list = entries(&d).unwrap_or_default();
                (d, list)
            })
            .collect()
    }
}

/// Whether systemd is this machine's PID 1, sd_booted(3).
///
/// # Errors
/// When that cannot be seen.
pub(crate) fn is_booted_by_systemd() -> std::io::Result<bool> {
    match std::fs::symlink_metadata("/run/systemd/system") {
        Ok(meta) => Ok(meta.is_dir()),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether nothing is at a path, or nothing that this user could reach; any other error says nothing of what is there.
pub(crate) fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES))
}

fn are_plain_accounts() -> bool {
    let is_link = |path| std::fs::symlink_metadata(path).is_ok_and(|meta: std::fs::Metadata| meta.is_symlink());
    !["/etc", "/etc/passwd", "/etc/group"].into_iter().any(is_link)
}

/// The text of a file; none where there is no such file.
fn text_of(path: &str) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => {
            Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

/// Reads a file of /proc or the like whole, in as few calls as it takes. Such a file says that it is empty, so [`std::fs::read`] would
/// begin with 32 bytes and ask again and again.
///
/// # Errors
/// What open(2) and read(2) say.
pub(crate) fn read_of_kernel(path: impl AsRef<Path>) -> std::io::Result<Vec<u8>> {
    const PIECE: usize = 8192;
    let file = rustix::fs::open(path.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::with_capacity(PIECE);
    while retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut text)))? > 0 {
        // Less room than a page would be for less than the kernel has ready.
        if text.capacity() - text.len() < PIECE / 2 {
            text.reserve(PIECE);
        }
    }
    Ok(text)
}

/// `path` without `.` and empty names, as mount points are.
fn plain(path: &Path) -> Cow<'_, Path> {
    let odd = path.as_os_str().as_bytes().windows(2).any(|pair| pair == b"//" || pair == b"/.");
    if odd { Cow::Owned(path.components().collect()) } else { Cow::Borrowed(path) }
}

/// `Path::starts_with` for two plain paths. A start asks this some thousand times, and going through the components was a third of
/// all that it computes.
pub(crate) fn is_below(path: &Path, point: &Path) -> bool {
    let (path, point) = (path.as_os_str().as_bytes(), point.as_os_str().as_bytes());
    path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || point == b"/")
}

/// The mounts that a path can reach, sorted by where they are: at each place the topmost, whose own parents are reachable.
pub(crate) fn visible(mut mounts: Vec<Mount>) -> Vec<Mount> {
    // Several mounts on / are stacked, each on the one before: only the last is seen.
    let mut todo: Vec<usize> = mounts.iter().rposition(|m| m.point.as_os_str() == "/").into_iter().collect();
    let mut is_visible = vec![false; mounts.len()];
    while let Some(index) = todo.pop() {
        let mount = &mounts[index];
        let is_child = |other: &&(usize, &Mount)| other.1.parent == mount.id && other.1.id != mount.id;
        let children: Vec<(usize, &Mount)> = mounts.iter().enumerate().filter(|other| is_child(&other)).collect();
        if let Some((cover, _)) = children.iter().rfind(|(_, child)| child.point.as_os_str() == mount.point.as_os_str())
        {
            todo.push(*cover);
            continue;
        }
        let is_covered = |place: usize, child: &Mount| {
            let mut after = children.iter().skip(place + 1);
            after.any(|(_, later)| later.id > child.id && is_below(&child.point, &later.point))
        };
        todo.extend(
            children.iter().enumerate().filter(|(place, (_, child))| !is_covered(*place, child)).map(|(_, c)| c.0),
        );
        is_visible[index] = true;
    }
    let mut is_visible = is_visible.into_iter();
    mounts.retain(|_| is_visible.next() == Some(true));
    // As bytes: a mount comes before those below it all the same.
    mounts.sort_by(|a, b| a.point.as_os_str().cmp(b.point.as_os_str()));
    mounts
}

/// Whether newuidmap(1) and newgidmap(1) are there and can be more than their caller: with no_new_privs, as in a sandbox, they cannot.
fn may_use_map_tools() -> bool {
    !rustix::thread::no_new_privs().unwrap_or(false) && has_map_tools()
}

fn has_map_tools() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["newuidmap", "newgidmap"]
        .iter()
        .all(|tool| std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()))
}

/// Whether standard error is the stream to the journal that systemd made: there a line may begin with its priority.
pub(crate) fn logs_to_journal() -> bool {
    journal_streams(std::env::var_os("JOURNAL_STREAM").as_ref()).1
}

/// `JOURNAL_STREAM` is the device and inode of a stream, systemd.exec(5).
fn journal_streams(stream: Option<&OsString>) -> (bool, bool) {
    let stream = stream.and_then(|text| text.to_str()).and_then(|text| text.split_once(':'));
    let Some((device, inode)) = stream.and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?))) else {
        return (false, false);
    };
    let is_it =
        |found: rustix::io::Result<rustix::fs::Stat>| found.is_ok_and(|s| (s.st_dev, s.st_ino) == (device, inode));
    (is_it(rustix::fs::fstat(rustix::stdio::stdout())), is_it(rustix::fs::fstat(rustix::stdio::stderr())))
}

/// systemd names its internal library by its version: `libsystemd-shared-252.so`, on some distributions with their own after it.
fn installed_systemd() -> Option<u16> {
    let places = [format!("/usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH), "/usr/lib/systemd".to_owned()];
    places.iter().find_map(|place| {
        let names = std::fs::read_dir(place).into_iter().flatten().flatten();
        names.filter_map(|entry| systemd_version(entry.file_name().to_str()?)).max()
    })
}

fn systemd_version(name: &str) -> Option<u16> {
    name.strip_prefix("libsystemd-shared-")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn random_id() -> Result<String> {
    let mut bytes = [0; 3];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("draw a random number")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Parses a release such as `6.1.0-56-cloud-amd64`.
fn parse_kernel(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Parses the text of /proc/PID/mountinfo; lines that are none are passed over.
pub(crate) fn parse_mountinfo(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n').filter_map(parse_mountinfo_line).collect()
}

fn parse_mountinfo_line(line: &[u8]) -> Option<Mount> {
    // Before the dash: ID, parent, device, root, point, options, and optional fields; after it: type, source, options.
    let mut fields = line.split(|b| *b == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let (root, point, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
    let optional = fields.by_ref().take_while(|field| *field != b"-");
    let unbindable = optional.filter(|field| *field == b"unbindable").count() > 0;
    let fstype = fields.next()?;
    let super_options = fields.nth(1)?;
    let read_only = [options, super_options].iter().any(|list| list.split(|b| *b == b',').any(|o| o == b"ro"));
    let text = |field| String::from_utf8_lossy(field).into_owned();
    Some(Mount {
        id,
        parent,
        root: unescape(root),
        point: unescape(point),
        read_only,
        unbindable,
        fstype: text(fstype),
        super_options: text(super_options),
    })
}

/// Undoes the octal escapes of mountinfo (`\040` is a space).
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    if !field.contains(&b'\\') {
        return PathBuf::from(OsStr::from_bytes(field));
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Parses /etc/subuid or /etc/subgid: owner and range of each line, subuid(5).
fn subordinate_ranges(text: &str) -> Vec<(&str, IdRange)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let first = fields.next()?.parse().ok()?;
            let count = fields.next()?.parse().ok()?;
            Some((owner, IdRange { first, count }))
        })
        .collect()
}

fn taken_ids(subordinate: &[&str], accounts: &[&str]) -> Vec<IdRange> {
    let ranges = subordinate.iter().flat_map(|text| subordinate_ranges(text)).map(|(_, range)| range);
    // As bytes: to look for characters takes four times as long, in files that may have thousands of lines.
    let id_of = |line: &[u8]| {
        let field = line.split(|b| *b == b':').nth(2)?;
        std::str::from_utf8(field).ok()?.parse().ok()
    };
    let lines = accounts.iter().flat_map(|text| text.as_bytes().split(|b| *b == b'\n'));
    let single = lines.filter_map(id_of).map(|first| IdRange { first, count: 1 });
    ranges.chain(single).collect()
}

#[cfg(test)]
mod tests;
