//! How this distribution installs a program.

/// Distributions by their package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Distribution {
    /// Debian, Ubuntu and kin.
    Debian,
    /// Fedora, RHEL and kin.
    Fedora,
    /// openSUSE, SLES.
    Suse,
    /// Arch and kin.
    Arch,
    /// Any other.
    #[default]
    Other,
}

/// Programs that may have to be installed: by what is in them, then the package in each distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Package {
    /// The bus daemon.
    Dbus,
    /// newuidmap and newgidmap.
    Uidmap,
    /// pasta.
    Passt,
}

impl Distribution {
    /// Reads it off the text of /etc/os-release, os-release(5).
    pub(crate) fn parse(os_release: &str) -> Distribution {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim_matches(['"', '\''])
        };
        let ids = [value("ID="), value("ID_LIKE=")].join(" ");
        let known = |id: &str| match id {
            "debian" | "ubuntu" => Some(Distribution::Debian),
            "fedora" | "rhel" | "centos" => Some(Distribution::Fedora),
            "suse" | "opensuse" | "sles" => Some(Distribution::Suse),
            "arch" => Some(Distribution::Arch),
            _ => None,
        };
        ids.split_whitespace().find_map(known).unwrap_or_default()
    }

    /// The command, for root, that installs `package`; `None` where it is not known.
    pub(crate) fn install(self, package: Package) -> Option<String> {
        let (manager, index) = match self {
            Distribution::Debian => ("apt install", 0),
            Distribution::Fedora => ("dnf install", 1),
            Distribution::Suse => ("zypper install", 2),
            Distribution::Arch => ("pacman -S", 3),
            Distribution::Other => return None,
        };
        let names = match package {
            Package::Dbus => ["dbus", "dbus-broker", "dbus-1", "dbus"],
            Package::Uidmap => ["uidmap", "shadow-utils", "shadow", "shadow"],
            Package::Passt => ["passt"; 4],
        };
        names.get(index).map(|name| format!("{manager} {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_known_by_their_kin() {
        let table = [
            ("ID=debian\nVERSION_ID=\"12\"\n", Some("apt install uidmap")),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some("apt install uidmap")),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Some("dnf install shadow-utils")),
            ("ID=arch\n", Some("pacman -S shadow")),
            ("ID=opensuse-leap\nID_LIKE=\"suse opensuse\"\n", Some("zypper install shadow")),
            ("ID=nixos\n", None),
            ("", None),
        ];
        for (text, want) in table {
            let found = Distribution::parse(text).install(Package::Uidmap);
            assert_eq!(found.as_deref(), want, "{text}");
        }
    }
}
