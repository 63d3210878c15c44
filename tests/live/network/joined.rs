//! Networks that are there already: a namespace with a name, and another sandbox's.

use super::{ECHO, python, reached};
use crate::bed::Bed;
use std::fs;

pub(super) fn joined(bed: &Bed) {
    let name = bed.id().to_owned();
    bed.sh(&format!("ip netns add {name} && ip -n {name} link add sbtv0 type veth peer name sbtv1"))
        .output()
        .succeeded();
    let network = format!("ns:/run/netns/{name}");
    let look = "ls /sys/class/net; ls -l /proc/self/ns/net | grep -o '[0-9]*\\]'";
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(format!("/run/netns/{name}")).unwrap());
    for more in [&[][..], &["--userns", "identity"], &["--userns", "host"], &["--as-pid1"]] {
        let text = bed.run(["--network", &network].iter().chain(more), look).output().succeeded().text();
        assert_eq!(text, format!("lo\nsbtv0\nsbtv1\n{inode}]"), "{more:?}");
    }
    let outcome = bed.run(["--network", &network], "true").user().output();
    outcome.refused(125, ["plain user"]);
    bed.sh(&format!("ip netns del {name}")).output().succeeded();
    bed.run(["--network", &network], "true").output().refused(125, [name.as_str(), "No such file"]);
}

const WHICH: &str = "readlink /proc/self/ns/net";

pub(super) fn joined_sandbox(bed: &Bed) {
    let (_first, unit) = bed.live([""; 0], "readlink /proc/self/ns/net > /dev/shm/x; echo ready; read line");
    let name = unit.trim_end_matches(".scope");
    let network = format!("container:{name}");
    let namespace = bed.sandbox(["exec", name, "cat", "/dev/shm/x"]).output().succeeded().text();
    assert_eq!(bed.run(["--network", &network], WHICH).output().succeeded().text(), namespace);
    // What is executed in one that joined is there, too.
    let (_second, second) = bed.live(["--network", &network], "echo ready; read line");
    let text = bed.sandbox(["exec", &second]).args(["sh", "-c", WHICH]).output().succeeded().text();
    assert_eq!(text, namespace);
    // One has what the other listens on.
    // Low ports are for the one whose network it is.
    let (_server, _) = bed.live(["--network", &network], &python(&ECHO.replace("(\"::\", 7)", "(\"::\", 7007)")));
    assert_eq!(reached(bed, &["--network", &network], &["127.0.0.1"], 7007), "127.0.0.1");
    bed.run(["--network", "container:no-such"], "true").output().refused(125, ["no-such"]);
}

pub(super) fn joined_sandbox_of_user(bed: &Bed) {
    let unit = bed.unit();
    let mut first = bed.run(["--unit", &unit], &format!("{WHICH} > /dev/shm/x; echo ready; read line")).user().spawn();
    first.wait_for("ready");
    let namespace = bed.sandbox(["exec", &unit, "cat", "/dev/shm/x"]).user().output().succeeded().text();
    let network = format!("container:{unit}");
    let line = format!("{WHICH}; id -u; echo x > /root/x && cat /root/x");
    let text = bed.run(["--network", &network], &line).user().output().succeeded().text();
    assert_eq!(text, format!("{namespace}\n0\nx"));
    // Root may join a user's.
    assert_eq!(bed.run(["--network", &network], WHICH).output().succeeded().text(), namespace);
}
