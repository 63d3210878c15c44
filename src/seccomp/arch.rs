//! Architectures: the kernel's own and the 32-bit one beside it, with their tables of system calls.

/// An architecture that a filter can tell; `AUDIT_ARCH_*` of linux/audit.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arch {
    X86_64,
    X86,
    Aarch64,
    Arm,
}

impl Arch {
    /// That of this program, and so of the kernel.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const NATIVE: Arch = Arch::X86_64;
    /// That of this program, and so of the kernel.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const NATIVE: Arch = Arch::Aarch64;

    /// The number that a filter sees.
    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// The names of it in profiles: libseccomp's `SCMP_ARCH_*`, and Go's, which Docker's `includes` has.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Arch::X86_64 => ("SCMP_ARCH_X86_64", "amd64"),
            Arch::X86 => ("SCMP_ARCH_X86", "x86"),
            Arch::Aarch64 => ("SCMP_ARCH_AARCH64", "arm64"),
            Arch::Arm => ("SCMP_ARCH_ARM", "arm"),
        }
    }

    /// That of a profile's name for it, where this kernel may meet it.
    pub(super) fn of_profile(name: &str, native: Arch) -> Option<Arch> {
        let known = match native {
            Arch::X86_64 | Arch::X86 => [Arch::X86_64, Arch::X86],
            Arch::Aarch64 | Arch::Arm => [Arch::Aarch64, Arch::Arm],
        };
        known.into_iter().find(|arch| arch.names().0 == name)
    }

    /// Every system call of it: number and name.
    pub(super) fn calls(self) -> Vec<(u32, &'static str)> {
        macro_rules! table {
            ($arch:ident) => {
                // iter() ends before the last one (syscalls 0.8.1).
                syscalls::$arch::Sysno::iter()
                    .chain([syscalls::$arch::Sysno::last()])
                    .map(|call| (call.id().cast_unsigned(), call.name()))
                    .collect()
            };
        }
        match self {
            Arch::X86_64 => table!(x86_64),
            Arch::X86 => table!(x86),
            Arch::Aarch64 => table!(aarch64),
            Arch::Arm => table!(arm),
        }
    }

    /// The name in [`Arch::calls`] of what a profile calls `name`.
    pub(super) fn alias(self, name: &str) -> &str {
        // The table of arm64 has the name of 32-bit machines for it, which the kernel's headers do not use there.
        match (self, name) {
            (Arch::Aarch64, "newfstatat") => "fstatat",
            _ => name,
        }
    }
}
