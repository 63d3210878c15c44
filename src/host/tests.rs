use super::*;

fn mount(id: u32, parent: u32, point: &str, fstype: &str) -> Mount {
    Mount {
        id,
        parent,
        root: "/".into(),
        point: point.into(),
        read_only: false,
        unbindable: false,
        fstype: fstype.into(),
        super_options: String::new(),
    }
}

#[test]
fn a_mountinfo_line_is_read_with_its_escapes_and_optional_fields() {
    let text =
        b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=continue\ngarbage\n";
    let mounts = parse_mountinfo(text);
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].point, PathBuf::from("/mnt 2"));
    assert_eq!((mounts[0].id, mounts[0].parent), (36, 35));
    assert_eq!(mounts[0].fstype, "ext3");
    assert!(mounts[0].read_only && !mounts[0].unbindable);
    let text = b"36 35 98:0 / /mnt rw shared:2 unbindable - ext3 /dev/root rw\n37 35 98:0 / /unbindable rw - ext3 unbindable rw\n";
    let unbindable: Vec<_> =
        parse_mountinfo(text).iter().map(|mount| (mount.unbindable, mount.fstype.clone())).collect();
    assert_eq!(unbindable, [(true, "ext3".to_owned()), (false, "ext3".to_owned())]);
}

#[test]
fn covered_mounts_are_not_visible() {
    let host = Host {
        mounts: visible(vec![
            mount(1, 0, "/", "rootfs"),
            mount(2, 1, "/", "ext4"),
            mount(3, 2, "/srv/data", "xfs"),
            mount(4, 2, "/srv", "ext4"),
            mount(5, 2, "/usr", "ext4"),
            mount(6, 5, "/usr", "squashfs"),
            mount(7, 6, "/usr/local", "ext4"),
            mount(8, 2, "/mnt", "nfs4"),
            mount(9, 8, "/mnt/disk", "ext4"),
        ]),
        ..Host::default()
    };
    let points: Vec<_> = host.mounts.iter().map(|m| (m.id, m.point.to_str().unwrap())).collect();
    assert_eq!(points, [(2, "/"), (8, "/mnt"), (9, "/mnt/disk"), (4, "/srv"), (6, "/usr"), (7, "/usr/local")]);
    assert!(host.is_local(Path::new("/usr/local/x")) && !host.is_local(Path::new("/mnt/disk/x")));
    assert_eq!(host.mount_of(Path::new("/usr/local/bin")).unwrap().id, 7);
    assert_eq!(host.mount_of(Path::new("/usrx")).unwrap().id, 2);
    assert_eq!(host.mount_of(Path::new("/./usr//local/")).unwrap().id, 7);
}

#[test]
fn ranges_that_touch_do_not_overlap() {
    let range = |first, count| IdRange { first, count };
    assert!(!range(0, 10).overlaps(range(10, 10)));
    assert!(range(0, 11).overlaps(range(10, 10)));
    assert!(range(u32::MAX, 1).overlaps(range(u32::MAX - 5, 6)));
}

#[test]
fn taken_ids_come_from_all_files_and_bad_lines_are_passed_over() {
    let taken = taken_ids(&["me:100000:65536\nbad\n:x:y\n"], &["root:x:0:0::/:/bin/sh\nx\n"]);
    assert_eq!(taken, [IdRange { first: 100_000, count: 65536 }, IdRange { first: 0, count: 1 }]);
}

#[test]
fn the_version_of_systemd_is_in_the_name_of_its_library() {
    assert_eq!(systemd_version("libsystemd-shared-252.so"), Some(252));
    assert_eq!(systemd_version("libsystemd-shared-257.6-1.fc42.so"), Some(257));
    assert_eq!(systemd_version("libsystemd-core-252.so"), None);
}

#[test]
fn kernel_releases_are_read() {
    assert_eq!(parse_kernel("6.1.0-56-cloud-amd64"), (6, 1));
    assert_eq!(parse_kernel("7.2.13"), (7, 2));
    assert_eq!(parse_kernel("odd"), (0, 0));
}
