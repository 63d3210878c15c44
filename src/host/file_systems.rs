//! Kinds of file systems, by their names in mountinfo.

/// File systems whose server may be dead or elsewhere: touching one can hang for ever, so nothing below one is ever looked at.
pub(crate) fn is_remote(fstype: &str) -> bool {
    const REMOTE: &[&str] = &[
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "afs",
        "9p",
        "gfs2",
        "ocfs2",
        "glusterfs",
        "lustre",
        "autofs",
        "ncpfs",
        "coda",
        "orangefs",
        "virtiofs",
        "fuse",
        "fuseblk",
        "beegfs",
        "gpfs",
    ];
    fstype.starts_with("fuse.") || REMOTE.contains(&fstype)
}

/// File systems that are no files: the kernel's own views.
pub(crate) fn is_kernel(fstype: &str) -> bool {
    const KERNEL: &[&str] = &[
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "mqueue",
        "hugetlbfs",
        "debugfs",
        "tracefs",
        "securityfs",
        "pstore",
        "bpf",
        "efivarfs",
        "configfs",
        "fusectl",
        "selinuxfs",
        "binfmt_misc",
        "nsfs",
        "rpc_pipefs",
        "smackfs",
        "nfsd",
    ];
    KERNEL.contains(&fstype)
}
