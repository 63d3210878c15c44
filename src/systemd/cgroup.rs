//! Which cgroup version this machine runs, and where the cgroup of a process is in each hierarchy.
//!
//! systemd mounts the hierarchies at fixed places below /sys/fs/cgroup (file-hierarchy(7), cgroup-util.c); this module
//! relies on the same places.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context;
use serde::Serialize;

use crate::error::{Result, fault};
use crate::host::{is_absent, read_of_kernel};

/// How the cgroup hierarchies are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum CgroupMode {
    /// Only cgroup v2, at /sys/fs/cgroup.
    Unified,
    /// Controllers on v1; beside them a v2 tree without controllers at /sys/fs/cgroup/unified. systemd ≤ 257.
    Hybrid,
    /// v1 only. systemd ≤ 257.
    Legacy,
}

/// `CGROUP2_SUPER_MAGIC` and `TMPFS_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
const TMPFS_MAGIC: i64 = 0x0102_1994;

impl CgroupMode {
    /// Asks the kernel with two statfs(2); much cheaper than reading a long mount table. `None` where no cgroups are mounted.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn find() -> Result<Option<CgroupMode>> {
        let kind = |path: &str| match rustix::fs::statfs(path) {
            Ok(stat) => Ok(Some(stat.f_type)),
            Err(error) if is_absent(&error.into()) => Ok(None),
            Err(error) => Err(error).with_context(|| path.to_owned()),
        };
        Ok(CgroupMode::of_file_systems(kind("/sys/fs/cgroup")?, kind("/sys/fs/cgroup/unified")?))
    }

    /// The same, where there have to be some.
    pub(crate) fn read() -> Result<CgroupMode> {
        let mode = CgroupMode::find()?;
        mode.ok_or_else(|| fault("/sys/fs/cgroup: no cgroups are mounted here").hint("sandbox doctor").into())
    }

    /// Decides by the types of the file systems at /sys/fs/cgroup and at `unified` below it, as systemd does
    /// (`cg_unified_cached`).
    fn of_file_systems(root: Option<i64>, unified: Option<i64>) -> Option<CgroupMode> {
        match (root, unified) {
            (Some(CGROUP2_MAGIC), _) => Some(CgroupMode::Unified),
            (Some(TMPFS_MAGIC), Some(CGROUP2_MAGIC)) => Some(CgroupMode::Hybrid),
            (Some(TMPFS_MAGIC), _) => Some(CgroupMode::Legacy),
            _ => None,
        }
    }

    /// The directory below /sys/fs/cgroup that holds the hierarchy of `controller` (v1 name on v1: `blkio`);
    /// `None` is the hierarchy of systemd itself where BPF programs go.
    pub(crate) fn hierarchy(self, controller: Option<&str>) -> PathBuf {
        match (self, controller) {
            (CgroupMode::Unified, _) => PathBuf::new(),
            (_, Some(controller)) => PathBuf::from(controller),
            (CgroupMode::Hybrid, None) => PathBuf::from("unified"),
            (CgroupMode::Legacy, None) => PathBuf::from("systemd"),
        }
    }
}

/// The hierarchies of v1 that systemd moves processes in (`CGROUP_MASK_V1`), and those that it tracks them by.
const OF_SYSTEMD: [&str; 8] = ["", "name=systemd", "cpu", "cpuacct", "blkio", "memory", "devices", "pids"];

/// The paths of one process in all hierarchies: /proc/PID/cgroup, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPaths(Vec<(String, String)>);

impl CgroupPaths {
    /// Parses the lines `ID:CONTROLLERS:PATH` (cgroups(7)).
    pub(crate) fn parse(text: &str) -> CgroupPaths {
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        };
        CgroupPaths(text.lines().filter_map(line).collect())
    }

    /// Those of a process in this cgroup of v2, below its mount.
    pub(super) fn of_v2(cgroup: &Path) -> CgroupPaths {
        CgroupPaths(vec![(String::new(), cgroup.to_string_lossy().into_owned())])
    }

    /// The path in the hierarchy of `controller`, without a leading slash; `None` asks for systemd's own hierarchy.
    pub(crate) fn path(&self, mode: CgroupMode, controller: Option<&str>) -> Option<&Path> {
        let fits = |controllers: &str| match (mode, controller) {
            (CgroupMode::Unified, _) | (CgroupMode::Hybrid, None) => controllers.is_empty(),
            (CgroupMode::Legacy, None) => controllers == "name=systemd",
            (_, Some(controller)) => controllers.split(',').any(|word| word == controller),
        };
        let (_, path) = self.0.iter().find(|(controllers, _)| fits(controllers))?;
        Some(Path::new(path.strip_prefix('/').unwrap_or(path)))
    }

    /// Those of this process when it began: while others move it nobody may read them again, see [`super::grace`].
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(super) fn of_this_process() -> std::io::Result<&'static CgroupPaths> {
        static OWN: OnceLock<CgroupPaths> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let own = CgroupPaths::of("self")?;
        Ok(OWN.get_or_init(|| own))
    }

    /// Reads those of a process, by number or `self`.
    ///
    /// # Errors
    /// When it is gone, or cannot be looked at.
    pub(super) fn of(process: &str) -> std::io::Result<CgroupPaths> {
        let text = read_of_kernel(format!("/proc/{process}/cgroup"))?;
        Ok(CgroupPaths::parse(&String::from_utf8_lossy(&text)))
    }

    /// Whether systemd has moved the process into this unit of a user's service manager, or of the system's, everywhere. On v1 it moves it in
    /// one hierarchy after the other, and has made the unit's directories before; where it made none, the process goes into the innermost
    /// cgroup around it that there is (`unit_attach_pids_to_cgroup`).
    pub(super) fn has_entered(&self, unit: &str, user: Option<u32>) -> bool {
        self.has_entered_below(Path::new("/sys/fs/cgroup"), unit, user)
    }

    fn has_entered_below(&self, mounts: &Path, unit: &str, user: Option<u32>) -> bool {
        let Some((_, own)) = self.of_systemd() else { return false };
        let own = Path::new(own);
        let is_in_it = UnitOfProcess::of_path(own).is_some_and(|place| place.unit == unit && place.user == user);
        let entered = |controllers: &str, path: &Path| {
            let Some(known) = controllers.split(',').find(|word| OF_SYSTEMD.contains(word)) else { return true };
            let mount = mounts.join(match known {
                "" => "unified",
                "name=systemd" => "systemd",
                controller => controller,
            });
            let innermost = || own.ancestors().find(|part| mount.join(part).is_dir());
            path == own || innermost().is_none_or(|innermost| innermost == path)
        };
        is_in_it && self.0.iter().all(|(controllers, path)| entered(controllers, Path::new(path.trim_matches('/'))))
    }

    /// Where systemd keeps track of the process: the directory of that hierarchy below /sys/fs/cgroup (v1: with a slash behind it), and
    /// the path in it, without slashes at its ends.
    pub(crate) fn of_systemd(&self) -> Option<(&'static str, &str)> {
        let path = |wanted: &str| {
            let (_, path) = self.0.iter().find(|(controllers, _)| controllers == wanted)?;
            Some(path.trim_matches('/'))
        };
        path("name=systemd").map(|path| ("systemd/", path)).or_else(|| Some(("", path("")?)))
    }
}

/// The unit that a process is in, as its cgroup tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitOfProcess {
    /// With its suffix.
    pub(crate) unit: String,
    /// The slice it is in; `-.slice` at the top.
    pub(crate) slice: String,
    /// The user whose service manager it belongs to; `None`: the system's.
    pub(crate) user: Option<u32>,
    /// Its cgroup below the mount of systemd's own hierarchy, without a leading slash.
    pub(crate) path: PathBuf,
}

/// The name of the unit that has a directory of this name: systemd puts `_` before those that the kernel could take for files of
/// its own (`memory.scope`), and before one that begins with `_` (`cg_escape`).
fn unescaped(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// Whether the cgroup at `path` is that of the unit.
pub(super) fn is_of_unit(path: &Path, unit: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| unescaped(name) == unit)
}

impl UnitOfProcess {
    /// Reads it; `None` where the process is gone or in no unit.
    pub(crate) fn read(process: &str) -> Option<UnitOfProcess> {
        UnitOfProcess::try_read(process).ok().flatten()
    }

    /// The same; `None` where it is in no unit.
    ///
    /// # Errors
    /// When it is gone, or cannot be looked at.
    pub(crate) fn try_read(process: &str) -> std::io::Result<Option<UnitOfProcess>> {
        Ok(UnitOfProcess::of_paths(&CgroupPaths::of(process)?))
    }

    /// That of this process when it began; `None` where it is in none.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(crate) fn of_this_process() -> std::io::Result<Option<UnitOfProcess>> {
        Ok(UnitOfProcess::of_paths(CgroupPaths::of_this_process()?))
    }

    fn of_paths(paths: &CgroupPaths) -> Option<UnitOfProcess> {
        paths.of_systemd().and_then(|(_, path)| UnitOfProcess::of_path(Path::new(path)))
    }

    fn of_path(path: &Path) -> Option<UnitOfProcess> {
        let names: Vec<&str> = path.iter().filter_map(|name| name.to_str().map(unescaped)).collect();
        let manager = |name: &str| name.strip_prefix("user@")?.strip_suffix(".service")?.parse::<u32>().ok();
        let start = names.iter().rposition(|name| manager(name).is_some());
        let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
        let at = names.iter().position(|name| is_unit(name) && manager(name).is_none())?;
        let slice = at.checked_sub(1).and_then(|before| names.get(before)).filter(|name| name.ends_with(".slice"));
        Some(UnitOfProcess {
            unit: (*names.get(at)?).to_owned(),
            slice: slice.map_or("-.slice", |name| *name).to_owned(),
            user: start.filter(|start| *start < at).and_then(|start| manager(names.get(start)?)),
            path: path.iter().take(at + 1).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let table = [
            ((Some(CGROUP2_MAGIC), None), Some(CgroupMode::Unified)),
            ((Some(TMPFS_MAGIC), Some(CGROUP2_MAGIC)), Some(CgroupMode::Hybrid)),
            ((Some(TMPFS_MAGIC), None), Some(CgroupMode::Legacy)),
            ((Some(TMPFS_MAGIC), Some(TMPFS_MAGIC)), Some(CgroupMode::Legacy)),
            ((None, None), None),
        ];
        for ((root, unified), want) in table {
            assert_eq!(CgroupMode::of_file_systems(root, unified), want, "{root:?} {unified:?}");
        }
    }

    #[test]
    fn units_of_processes() {
        let table = [
            ("test.slice/a.scope", Some(("a.scope", "test.slice", None, "test.slice/a.scope"))),
            ("_a.slice/_memory.scope", Some(("memory.scope", "a.slice", None, "_a.slice/_memory.scope"))),
            ("__x.scope", Some(("_x.scope", "-.slice", None, "__x.scope"))),
            ("a.service/below/it", Some(("a.service", "-.slice", None, "a.service"))),
            (
                "user.slice/user-7.slice/user@7.service/app.slice/b.service",
                Some(("b.service", "app.slice", Some(7), "user.slice/user-7.slice/user@7.service/app.slice/b.service")),
            ),
            (
                "user.slice/user-7.slice/session-1.scope",
                Some(("session-1.scope", "user-7.slice", None, "user.slice/user-7.slice/session-1.scope")),
            ),
            (
                "user.slice/user-7.slice/user@7.service/init.scope",
                Some(("init.scope", "-.slice", Some(7), "user.slice/user-7.slice/user@7.service/init.scope")),
            ),
            ("", None),
            ("user.slice", None),
        ];
        for (path, want) in table {
            let found = UnitOfProcess::of_path(Path::new(path));
            let found = found.as_ref().map(|f| (f.unit.as_str(), f.slice.as_str(), f.user, f.path.to_str().unwrap()));
            assert_eq!(found, want, "{path}");
        }
    }

    #[test]
    fn entering_a_unit() {
        let mounts = tempfile::tempdir().unwrap();
        for directory in
            ["memory/x.slice/t.scope", "cpu/x.slice/t.scope", "pids/x.slice", "blkio", "unified", "systemd"]
        {
            std::fs::create_dir_all(mounts.path().join(directory)).unwrap();
        }
        let v1 = |memory: &str, pids: &str, blkio: &str, other: &str| {
            let own = "/x.slice/t.scope";
            format!(
                "5:cpu,cpuacct:{own}\n4:memory:{memory}\n3:pids:{pids}\n2:blkio:{blkio}\n6:freezer:{other}\n7:devices:{other}\n1:name=systemd:{own}\n0::{own}\n"
            )
        };
        let user = "0::/user.slice/user-7.slice/user@7.service/app.slice/t.scope\n".to_owned();
        let table = [
            ("0::/x.slice/t.scope\n".to_owned(), None, true),
            ("0::/x.slice/t.scope\n".to_owned(), Some(7), false),
            ("0::/x.slice/other.scope\n".to_owned(), None, false),
            ("0::/\n".to_owned(), None, false),
            (user.clone(), Some(7), true),
            (user.clone(), Some(8), false),
            (user, None, false),
            // The unit has no directory of these two, and nothing is mounted for the last.
            (v1("/x.slice/t.scope", "/x.slice", "/", "/elsewhere"), None, true),
            (v1("/", "/x.slice", "/", "/"), None, false),
            (v1("/x.slice", "/x.slice", "/", "/"), None, false),
            (v1("/x.slice/t.scope", "/", "/", "/"), None, false),
            (v1("/x.slice/t.scope", "/x.slice", "/elsewhere", "/"), None, false),
        ];
        for (text, user, want) in table {
            assert_eq!(CgroupPaths::parse(&text).has_entered_below(mounts.path(), "t.scope", user), want, "{text}");
        }
    }

    #[test]
    fn paths_by_hierarchy() {
        let v1 = "5:cpu,cpuacct:/test.slice/t.scope\n4:memory:/test.slice/t.scope\n2:cpuset:/\n1:name=systemd:/test.slice/t.scope\n0::/a/t.scope\n";
        let paths = CgroupPaths::parse(v1);
        let table = [
            (CgroupMode::Hybrid, Some("cpu"), Some("test.slice/t.scope")),
            (CgroupMode::Hybrid, Some("cpuacct"), Some("test.slice/t.scope")),
            (CgroupMode::Hybrid, Some("cpuset"), Some("")),
            (CgroupMode::Hybrid, Some("pids"), None),
            (CgroupMode::Hybrid, None, Some("a/t.scope")),
            (CgroupMode::Legacy, None, Some("test.slice/t.scope")),
            (CgroupMode::Unified, Some("memory"), Some("a/t.scope")),
        ];
        for (mode, controller, want) in table {
            assert_eq!(paths.path(mode, controller), want.map(Path::new), "{mode:?} {controller:?}");
        }
        assert_eq!(CgroupMode::Hybrid.hierarchy(None), PathBuf::from("unified"));
        assert_eq!(CgroupMode::Unified.hierarchy(Some("memory")), PathBuf::new());
    }
}
