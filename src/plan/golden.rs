//! Golden tests: a command line and a machine in, the plan as `--dry-run` prints it out. What is expected stands in `tests/plan/`;
//! `UPDATE_GOLDEN=1 cargo test golden` writes it anew, for a person to read the difference.

use std::path::Path;

use super::Plan;
use crate::host::{Host, IdRange, Kind, parse_mountinfo, visible};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::store::Lease;
use crate::image::{Marks, ResolvedImage};
use crate::layer::Layer;
use crate::spec::Spec;
use crate::systemd::CgroupMode;

/// A server: systemd, cgroup v2, ext4, with a file system of each kind that needs a decision.
const MOUNTS: &str = "\
20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
21 20 0:20 / /proc rw - proc proc rw
22 20 0:21 / /sys rw - sysfs sysfs rw
23 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
24 20 0:5 / /dev rw - devtmpfs udev rw
25 20 0:23 / /run rw - tmpfs tmpfs rw
26 20 8:2 / /srv rw - xfs /dev/sda2 rw
27 20 0:40 / /mnt/nfs rw - nfs4 server:/export rw
28 27 8:3 / /mnt/nfs/local rw - ext4 /dev/sda3 rw
29 20 7:1 / /snap/core/1 ro - squashfs /dev/loop1 ro
30 20 8:4 / /home rw - ext4 /dev/sda4 rw
31 20 8:5 / /boot/efi rw - vfat /dev/sda5 rw
32 20 0:50 / /media/stick rw - fuse.sshfs me@there:/ rw
";

fn host() -> Host {
    Host {
        cwd: "/srv/work".into(),
        kernel: (6, 12),
        cgroup: Some(CgroupMode::Unified),
        id: "0a1b2c".into(),
        booted_by_systemd: true,
        mounts: visible(parse_mountinfo(MOUNTS.as_bytes())),
        environment: [("TERM".into(), "xterm".into()), ("LANG".into(), "C.UTF-8".into())].into(),
        view: crate::host::HostView {
            secrets: vec![("/boot".into(), true), ("/etc/shadow".into(), false), ("/var/log".into(), true)],
            hosts: "127.0.0.1 localhost\n".into(),
            ..Default::default()
        },
        ..Host::default()
    }
}

fn plain_user() -> Host {
    let mut host = host();
    (host.uid, host.gid) = (1000, 1000);
    host.subordinate_ids = Some((IdRange { first: 100_000, count: 65536 }, IdRange { first: 100_000, count: 65536 }));
    let list = |entries: &[(&str, Kind)]| entries.iter().map(|(name, kind)| ((*name).into(), kind.clone())).collect();
    host.view.entries = [
        (
            "/".into(),
            list(&[
                ("bin", Kind::Link("usr/bin".into())),
                ("boot", Kind::Directory),
                ("etc", Kind::Directory),
                ("mnt", Kind::Directory),
                ("root", Kind::Directory),
                ("srv", Kind::Directory),
                ("swapfile", Kind::File),
                ("usr", Kind::Directory),
            ]),
        ),
        ("/mnt".into(), list(&[("nfs", Kind::Directory), ("other", Kind::Directory)])),
    ]
    .into();
    host
}

fn made(words: &str, host: &Host) -> crate::error::Result<Plan> {
    let layer = parse(words);
    let layer = if layer.image.is_some() { crate::image::under(layer, &image()) } else { Ok(layer) };
    layer.and_then(Spec::from_layer).and_then(|spec| Plan::new(&spec, host))
}

fn plan(words: &str, host: &Host) -> String {
    match made(words, host) {
        Ok(plan) => plan.to_string(),
        Err(error) => crate::report_text(&error).0,
    }
}

/// An image as others make them, on directories that every machine has.
fn image() -> ResolvedImage {
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{
        "User":"mysql:adm","Env":["PATH=/opt/bin:/bin","MYSQL_MAJOR=5.7","ODD"],"Entrypoint":["docker-entrypoint.sh"],
        "Cmd":["mysqld"],"WorkingDir":"/srv/app","StopSignal":"SIGINT","ExposedPorts":{"3306/tcp":{}},"Volumes":{"/var/lib/mysql":{}}}}"#;
    ResolvedImage {
        name: "mysql:5.7".into(),
        id: Digest::of(b""),
        config: ImageConfig::parse(config.as_bytes(), "mysql:5.7").unwrap(),
        layers: ["/usr", "/etc"].map(Into::into).to_vec(),
        marks: Marks::User,
        lease: Lease::none(),
    }
}

fn parse(words: &str) -> Layer {
    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        layer: Layer,
    }
    let words = ["run"].into_iter().chain(words.split_whitespace());
    <Words as clap::Parser>::try_parse_from(words).unwrap().layer
}

fn check(name: &str, words: &str, host: &Host) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan").join(format!("{name}.txt"));
    let text = format!("$ sandbox run --dry-run {words}\n{}", plan(words, host));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn the_main_job() {
    check(
        "main-job",
        "--slice=test --unit=toptest -p CPUShares=600 -p MemoryLimit=500M -p BlockIOWeight=100 -- top -b",
        &host(),
    );
}

#[test]
fn flags_of_docker() {
    let words = "-it -m 1.5g --cpus 0.5 --cpuset-cpus 0-1 --pids-limit 100 --oom stop --name web --read-only -e LANG \
                 -e A=1 -v /usr:/data:ro --tmpfs /scratch:64m --ulimit nofile=1024 --cap-drop ALL --cap-add KILL sh -c exit";
    check("docker-flags", words, &host());
}

#[test]
fn a_root_that_cannot_be_idmapped() {
    let mut host = host();
    host.mounts[0].fstype = "overlay".into();
    check("overlay-root", "true", &host);
    host.mounts[0].fstype = "ext4".into();
    host.kernel = (5, 10);
    check("linux-5.10", "--as-pid1 true", &host);
}

#[test]
fn mounts_that_cannot_be_idmapped() {
    let mut host = host();
    let more = "40 20 0:60 / /var rw - zfs pool/var rw\n41 20 0:61 / /opt/mem rw - tmpfs tmpfs rw\n\
                42 20 0:62 / /opt/ro ro - zfs pool/ro ro\n43 20 0:63 / /tmp rw - tmpfs tmpfs rw\n";
    let data = more.replace("/var rw", "/srv/data rw");
    host.mounts = visible(parse_mountinfo([MOUNTS, &data].concat().as_bytes()));
    check("zfs-data", "true", &host);
    host.kernel = (6, 1);
    check("zfs-data-6.1", "true", &host);
    check("zfs-data-identity", "--userns identity true", &host);
    // Something is hidden in /var and in /etc, which only an overlay does.
    host.kernel = (6, 12);
    host.mounts = visible(parse_mountinfo([MOUNTS, more].concat().as_bytes()));
    check("zfs-var", "true", &host);
    let etc = "40 20 0:60 / /etc ro - overlay overlay ro\n";
    host.mounts = visible(parse_mountinfo([MOUNTS, etc].concat().as_bytes()));
    check("etc-overlay", "true", &host);
    let etc = "40 20 0:60 / /etc rw - vfat /dev/sdb1 rw\n";
    host.mounts = visible(parse_mountinfo([MOUNTS, etc].concat().as_bytes()));
    check("etc-vfat", "true", &host);
}

#[test]
fn the_capability_that_undoes_mounts() {
    for (name, words) in [
        ("sys-admin", "--cap-add SYS_ADMIN true"),
        ("sys-admin-range", "--cap-add all --rootfs /usr true"),
        ("sys-admin-identity", "--cap-add SYS_ADMIN --rootfs /usr --userns identity true"),
        ("sys-admin-host", "--cap-add ALL --layer /usr --userns host true"),
    ] {
        check(name, words, &host());
    }
}

#[test]
fn confinement() {
    let words = "--device /dev/null:/dev/mine --device /dev/full:r --cap-drop all --cap-add KILL --cap-ambient KILL --hidepid \
                 --landlock exec:/usr --landlock tcp-connect:443 --landlock-best-effort --seccomp unconfined true";
    check("confinement", words, &host());
    check("confinement-no-unit", &format!("--manager none {words}"), &host());
    for (name, words) in [
        ("cap-ambient", "--cap-ambient SYS_TIME true"),
        ("device-twice", "--device /dev/null:r --device /dev/null:rw true"),
        ("device-mode", "--device /dev/null:rx true"),
        ("landlock-port", "--landlock tcp-connect:http true"),
        ("hidepid-shared", "--hidepid --share pid true"),
        ("seccomp-missing", "--seccomp /no/such true"),
    ] {
        check(name, words, &host());
    }
}

#[test]
fn a_plain_user() {
    check("rootless", "-m 1G true", &plain_user());
    let mut host = plain_user();
    host.kernel = (6, 1);
    check("rootless-6.1", "true", &host);
    host.kernel = (5, 10);
    check("rootless-5.10", "true", &host);
}

/// Where the homes are behind a link they stay hidden; what has a mount in it is made anew, with the sandbox's own files.
#[test]
fn a_plain_user_of_another_layout() {
    let mut host = plain_user();
    let top = host.view.entries.get_mut(Path::new("/")).unwrap();
    top.push(("home".into(), Kind::Link("var/home".into())));
    top.push(("var".into(), Kind::Directory));
    let etc = ["hosts", "passwd", "shadow"].map(|name| (name.into(), Kind::File)).to_vec();
    host.view.entries.insert("/etc".into(), etc);
    check("rootless-layout", "true", &host);
}

#[test]
fn shared_namespaces() {
    check("shared", "--network host --share pid,ipc,uts,cgroup,time --userns host true", &host());
    check("no-mounts", "--share mount true", &host());
}

/// A machine with pasta, whose DNS servers are behind systemd's stub.
fn connected(mut host: Host) -> Host {
    host.resolv_conf = b"nameserver 127.0.0.53\nsearch lan\n".to_vec();
    host.network.resolv_conf = Some(b"nameserver 192.0.2.53\nsearch lan\n".to_vec());
    host.network.pasta = Some("/usr/bin/pasta".into());
    host.network.gateway = "192.0.2.1".parse().ok();
    host.network.leader = Some(4711);
    host
}

#[test]
fn networks() {
    let ports = "--network pasta --publish 8080:80 --publish 127.0.0.1:5300-5301:53-54/udp --publish 0:443 \
                 --add-host up:host-gateway --deny-ip any --allow-ip 10.0.0.0/8 true";
    check("pasta", ports, &connected(host()));
    check("pasta-rootless", "--network pasta --dns 9.9.9.9 --dns-search example.org true", &connected(plain_user()));
    check("pasta-image", "--network pasta --publish-all --image mysql:5.7", &connected(host()));
    check("join", "--network ns:/run/netns/blue true", &connected(host()));
    check("join-sandbox", "--network container:web true", &connected(plain_user()));
    check("allow-bind", "--network host --allow-bind tcp:8080 --allow-bind 9000 true", &host());
    let bullseye = Host { systemd: Some(247), ..host() };
    check("deny-ip-247", "--network host -p IPAccounting=yes --deny-ip any true", &bullseye);
    check("devices-247", "-p DevicePolicy=strict true", &bullseye);
    check("devices-of-who-mounts-247", "--userns host --cap-add SYS_ADMIN true", &bullseye);
}

#[test]
fn networks_that_cannot_be_had() {
    let mut bare = host();
    bare.network.install = Some("apt install passt".into());
    check("pasta-missing", "--network pasta true", &bare);
    check("pasta-userns-host", "--network pasta --userns host true", &connected(host()));
    for (name, words) in [
        ("publish-none", "--publish 8080:80 true"),
        ("publish-form", "--network pasta --publish 80 true"),
        ("publish-all-nothing", "--network pasta --publish-all true"),
        ("network-unknown", "--network bridge true"),
        ("gateway-none", "--add-host up:host-gateway true"),
        ("allow-ip-alone", "--allow-ip 10.0.0.0/8 true"),
        ("dns-shared-mount", "--share mount --dns 1.1.1.1 true"),
    ] {
        check(name, words, &host());
    }
}

#[test]
fn another_root() {
    check("rootfs", "--rootfs /usr --upper tmpfs:1G --uid www --gid 5 -w /srv true", &host());
    check("layers", "--layer /usr --layer /etc true", &host());
}

#[test]
fn images() {
    check("image", "--image mysql:5.7", &host());
    let over = "--image mysql:5.7 --entrypoint /bin/sh -e MYSQL_MAJOR=8 --uid 0 -w / -p KillSignal=SIGTERM -- -c id";
    check("image-flags", over, &host());
    check("image-detached", "--detach --image mysql:5.7", &host());
    check("image-rootless", "--image mysql:5.7 mysqld --verbose", &plain_user());
    let mut host = host();
    host.booted_by_systemd = false;
    check("image-no-systemd", "--image mysql:5.7", &host);
}

#[test]
fn without_systemd() {
    let mut host = host();
    host.booted_by_systemd = false;
    check("no-systemd", "true", &host);
    check("no-systemd-limit", "-m 1G true", &host);
    check("no-systemd-asked", "--manager systemd true", &host);
    check("manager-none-limit", "--manager none --slice x true", &host);
}

#[test]
fn on_cgroup_v1() {
    let mut host = host();
    host.cgroup = Some(CgroupMode::Hybrid);
    check("v1", "-p CPUShares=600 -m 1G true", &host);
    check("v1-cannot", "-p MemoryHigh=1G true", &host);
}

#[test]
fn the_view_of_proc() {
    check("procview-off", "--procview off true", &host());
    check("procview-shared", "--procview on --share mount true", &host());
    let mut host = host();
    host.no_fuse = Some("not there".into());
    check("procview-no-fuse", "true", &host);
    check("procview-no-fuse-asked", "--procview on true", &host);
}

#[test]
fn nesting() {
    check("nesting", "--nesting true", &host());
    check("nesting-rootless", "--nesting --network host true", &plain_user());
    for (name, words) in [
        ("nesting-identity", "--nesting --userns identity true"),
        ("nesting-userns-host", "--nesting --userns host true"),
        ("nesting-share-mount", "--nesting --share mount true"),
        ("nesting-share-pid", "--nesting --share pid true"),
        ("nesting-landlock", "--nesting --landlock ro:/ true"),
    ] {
        check(name, words, &host());
    }
    let mut host = host();
    host.kernel = (5, 10);
    check("nesting-5.10", "--nesting true", &host);
}

#[test]
fn contradictions() {
    for (name, words) in [
        ("twice", "--memory 1G -p MemoryMax=2G true"),
        ("cpus-and-quota", "--cpus 1 --cpu-quota 1000 true"),
        ("service-suffix", "--unit x.service true"),
        ("share-and-none", "--share net --network none true"),
        ("unknown-property", "-p MemoryMaxx=1G true"),
        ("bad-size", "-m 12Q true"),
        ("nothing", ""),
        ("root-bind", "-v /usr:/ true"),
        ("relative-tmpfs", "--tmpfs scratch true"),
        ("hostname-shared", "--share uts --hostname x true"),
        ("secrets-of-a-rootfs", "--rootfs /usr --host-secrets true"),
        ("secrets-of-no-root", "--share mount --host-secrets true"),
        ("bind-in-sys", "-v /usr:/sys/kernel/x true"),
        ("bind-in-proc", "-v /usr:/srv/../proc/x --network host true"),
        ("tmpfs-in-proc", "--tmpfs /proc/scsi true"),
        ("tmpfs-dev", "--tmpfs /dev:1M true"),
        ("pid1-shared", "--as-pid1 --share pid true"),
    ] {
        check(name, words, &host());
    }
}

#[test]
fn in_the_background() {
    let words = "-d --unit=web --slice=test -m 1G -p Restart=on-failure -p WatchdogSec=5 -- nginx";
    check("detach", words, &host());
    check("detach-refused", "-d -t --unit=web nginx", &host());
    check("restart-of-a-scope", "-p Restart=on-failure nginx", &host());
}

#[test]
fn in_a_service_already() {
    let mut host = host();
    host.service = Some(crate::part::service::OwnService {
        unit: "sandbox@web.service".into(),
        slice: "sandbox.slice".into(),
        user: false,
        detached: false,
    });
    host.journal_streams = (true, true);
    host.listen = Some(crate::part::service::Listen { count: 1, names: Some("web".into()) });
    let variables =
        [("NOTIFY_SOCKET", "/run/systemd/notify"), ("CREDENTIALS_DIRECTORY", "/run/credentials/sandbox@web.service")];
    host.environment.extend(variables.map(|(name, value)| (name.into(), value.into())));
    check("own-service", "--unit=web --slice=test -m 1G -p TimeoutStopSec=5 -- nginx", &host);
}

/// Who the payload is, is known of a root in which the accounts are certainly the host's.
#[test]
fn the_accounts_of_the_host() {
    let mut host = host();
    host.accounts_are_plain = true;
    host.passwd = "root:x:0:0::/root:/bin/sh\nweb:x:7:8::/srv:/bin/sh\n".into();
    let identity = |words: &str| made(words, &host).unwrap().process.identity;
    for words in ["true", "--uid web true", "--read-only true"] {
        assert!(identity(words).is_some(), "{words}");
    }
    let same = identity("--uid web true").map(|found| (found.uid, found.gid));
    assert_eq!(same, Some((7, 8)));
    for words in [
        "--uid nobody true",
        "--bind /usr:/etc/group true",
        "--bind /usr:/etc/ true",
        "--bind /usr:/srv/../etc true",
        "--tmpfs //etc true",
        "--bind /usr:/etc true",
        "--tmpfs /etc true",
        "--upper /srv/up true",
        "--rootfs /usr true",
        "--share mount true",
    ] {
        assert_eq!(identity(words), None, "{words}");
    } // What is mounted there is left out, so that what lies beneath is seen.
    for more in ["43 20 0:60 / /etc rw - nfs4 server:/etc rw\n", "43 20 0:60 / /etc/passwd rw - fuse.x x rw\n"] {
        let mut host = host.clone();
        host.mounts = visible(parse_mountinfo([MOUNTS, more].concat().as_bytes()));
        assert_eq!(made("true", &host).unwrap().process.identity, None, "{more}");
    }
    host.accounts_are_plain = false;
    assert_eq!(made("true", &host).unwrap().process.identity, None);
}
