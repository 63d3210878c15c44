//! What this bed is, read once, and what a test may ask of it.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// The uid of `tester`, for whom the beds run a user manager.
pub(crate) const TESTER: u32 = 1000;

/// What a test needs of the bed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need {
    Root,
    Systemd,
    Cgroup1,
    JointCpuacct,
    Cgroup2,
    Idmap,
    Disk,
    OverlayRoot,
    UserManager,
    Fuse,
    Pasta,
    Apparmor,
    Apparmor4,
    Selinux,
    SystemdMin(u32),
    SystemdMax(u32),
    KernelMin(u32, u32),
}

/// The names that `needs!` takes.
#[allow(dead_code, reason = "a need that no test has today is still part of the framework")]
pub(crate) mod need {
    use super::Need;
    pub(crate) fn root() -> Need {
        Need::Root
    }
    pub(crate) fn systemd() -> Need {
        Need::Systemd
    }
    pub(crate) fn cgroup1() -> Need {
        Need::Cgroup1
    }
    pub(crate) fn joint_cpuacct() -> Need {
        Need::JointCpuacct
    }
    pub(crate) fn cgroup2() -> Need {
        Need::Cgroup2
    }
    pub(crate) fn idmap() -> Need {
        Need::Idmap
    }
    pub(crate) fn disk() -> Need {
        Need::Disk
    }
    pub(crate) fn overlay_root() -> Need {
        Need::OverlayRoot
    }
    pub(crate) fn user_manager() -> Need {
        Need::UserManager
    }
    pub(crate) fn fuse() -> Need {
        Need::Fuse
    }
    pub(crate) fn pasta() -> Need {
        Need::Pasta
    }
    pub(crate) fn apparmor() -> Need {
        Need::Apparmor
    }
    pub(crate) fn apparmor4() -> Need {
        Need::Apparmor4
    }
    pub(crate) fn selinux() -> Need {
        Need::Selinux
    }
    pub(crate) fn systemd_min(version: u32) -> Need {
        Need::SystemdMin(version)
    }
    pub(crate) fn systemd_max(version: u32) -> Need {
        Need::SystemdMax(version)
    }
    pub(crate) fn kernel_min(major: u32, minor: u32) -> Need {
        Need::KernelMin(major, minor)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(f, "root"),
            Self::Systemd => write!(f, "systemd"),
            Self::Cgroup1 => write!(f, "cgroup1"),
            Self::JointCpuacct => write!(f, "joint_cpuacct"),
            Self::Cgroup2 => write!(f, "cgroup2"),
            Self::Idmap => write!(f, "idmap"),
            Self::Disk => write!(f, "disk"),
            Self::OverlayRoot => write!(f, "overlay_root"),
            Self::UserManager => write!(f, "user_manager"),
            Self::Fuse => write!(f, "fuse"),
            Self::Pasta => write!(f, "pasta"),
            Self::Apparmor => write!(f, "apparmor"),
            Self::Apparmor4 => write!(f, "apparmor4"),
            Self::Selinux => write!(f, "selinux"),
            Self::SystemdMin(version) => write!(f, "systemd_min({version})"),
            Self::SystemdMax(version) => write!(f, "systemd_max({version})"),
            Self::KernelMin(major, minor) => write!(f, "kernel_min({major}, {minor})"),
        }
    }
}

/// This machine, as far as tests care.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) root: bool,
    /// The version of the systemd that runs this machine, if one does.
    pub(crate) systemd: Option<u32>,
    /// Pure cgroup v2; otherwise v1, with or without the hybrid v2 hierarchy.
    pub(crate) cgroup2: bool,
    pub(crate) kernel: (u32, u32),
    pub(crate) root_fs: String,
    pub(crate) user_manager: bool,
    pub(crate) fuse: bool,
    pub(crate) promises: Vec<String>,
    pub(crate) must_run: bool,
}

impl Facts {
    pub(crate) fn read() -> Self {
        let promises = std::env::var("SANDBOX_TEST_PROMISES").unwrap_or_default();
        let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
        Self {
            root,
            systemd: systemd_version(),
            cgroup2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            kernel: kernel_version(),
            root_fs: root_file_system(),
            user_manager: root && user_manager_answers(),
            fuse: fs::metadata("/dev/fuse").is_ok_and(|meta| meta.file_type().is_char_device())
                && fs::File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            promises: promises.split_whitespace().map(str::to_owned).collect(),
            must_run: std::env::var("SANDBOX_TEST_MUST_RUN").is_ok_and(|value| value == "1"),
        }
    }

    /// Whether a need is met; if not, why not.
    pub(crate) fn has(&self, need: &Need) -> Result<(), String> {
        let systemd = self.systemd;
        let kernel = self.kernel;
        let (met, found) = match *need {
            Need::Root => (self.root, "not uid 0".to_owned()),
            Need::Systemd => (systemd.is_some(), "no systemd answers here".to_owned()),
            Need::Cgroup1 => {
                (!self.cgroup2 && Path::new("/sys/fs/cgroup/memory").exists(), "no cgroup v1 hierarchies".to_owned())
            }
            // With a hierarchy of its own systemd has no unit in it.
            Need::JointCpuacct => (
                fs::read_to_string("/proc/self/cgroup").is_ok_and(|groups| groups.contains(":cpu,cpuacct:")),
                "no cgroup v1 hierarchy of cpu with cpuacct".to_owned(),
            ),
            Need::Cgroup2 => (self.cgroup2, "not pure cgroup v2".to_owned()),
            Need::Idmap => (
                self.root && kernel >= (5, 19) && self.idmappable_root(),
                format!("kernel {kernel:?}, / is {}", self.root_fs),
            ),
            // An overlay can neither be another one's upper nor hold its marks.
            Need::Disk => (self.root_fs != "overlay", format!("/ is {}", self.root_fs)),
            Need::OverlayRoot => (self.root_fs == "overlay", format!("/ is {}", self.root_fs)),
            Need::UserManager => (self.user_manager, format!("no user manager of uid {TESTER} answers")),
            Need::Pasta => (Path::new("/usr/bin/pasta").exists(), "pasta is not installed".to_owned()),
            Need::Apparmor => (apparmor(), "AppArmor, or apparmor_parser, is not there".to_owned()),
            Need::Apparmor4 => (
                apparmor() && Path::new("/etc/apparmor.d/abi/4.0").exists(),
                "AppArmor, or version 4 of its files, is not there".to_owned(),
            ),
            // The names that the tests use are those of this policy.
            Need::Selinux => (
                fs::read("/sys/fs/selinux/enforce").is_ok_and(|enforce| enforce == b"1")
                    && Path::new("/etc/selinux/bed").exists(),
                "SELinux does not enforce the policy of tests/vm/selinux.cil".to_owned(),
            ),
            Need::Fuse => (self.fuse, "/dev/fuse cannot be opened".to_owned()),
            Need::SystemdMin(min) => (systemd.is_some_and(|version| version >= min), format!("found {systemd:?}")),
            Need::SystemdMax(max) => (systemd.is_some_and(|version| version <= max), format!("found {systemd:?}")),
            Need::KernelMin(major, minor) => (kernel >= (major, minor), format!("found {kernel:?}")),
        };
        if met { Ok(()) } else { Err(found) }
    }

    /// Whether the bed that started us said that it has this, and that what it has must be tested.
    pub(crate) fn promised(&self, need: &Need) -> bool {
        self.must_run && self.promises.contains(&need.to_string())
    }

    /// File systems that kernels since 5.19 can idmap as a lower layer; an overlay cannot be.
    fn idmappable_root(&self) -> bool {
        matches!(self.root_fs.as_str(), "ext4" | "xfs" | "btrfs" | "f2fs" | "erofs")
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.kernel;
        let systemd = self.systemd.map_or("no systemd".to_owned(), |version| format!("systemd {version}"));
        let cgroup = if self.cgroup2 { "cgroup v2" } else { "cgroup v1 or hybrid" };
        write!(
            f,
            "bed: kernel {major}.{minor}, {systemd}, {cgroup}, / is {}, promises: {}",
            self.root_fs,
            self.promises.join(" ")
        )
    }
}

fn apparmor() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|enabled| enabled.starts_with(b"Y"))
        && Path::new("/sbin/apparmor_parser").exists()
}

/// "systemd 252 (252.39-1~deb12u2)"; none where it is merely installed.
fn systemd_version() -> Option<u32> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let output = Command::new("systemctl").args(["show", "-p", "Version", "--value"]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?.parse().ok()
}

fn kernel_version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The type of what is mounted on / last.
fn root_file_system() -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = table.lines().rev().find(|line| line.split(' ').nth(4) == Some("/"));
    root.and_then(|line| line.split(" - ").nth(1)?.split(' ').next()).unwrap_or("unknown").to_owned()
}

fn user_manager_answers() -> bool {
    let id = TESTER.to_string();
    Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "systemctl", "--user", "show", "-p", "Version"])
        .env("XDG_RUNTIME_DIR", format!("/run/user/{TESTER}"))
        .output()
        .is_ok_and(|output| output.status.success())
}
