use super::*;

/// The payload's plan for a command line, on a machine where user 1000 or root calls.
fn planned(words: &[&str], caller: u32) -> ProcessPlan {
    let word = |at: usize| words.get(at).map(|word| (*word).to_owned());
    let layer = crate::layer::Layer {
        command: vec!["true".into()],
        uid: word(0),
        gid: word(1),
        userns: (caller != 0).then_some(crate::layer::Userns::Identity),
        ..Default::default()
    };
    let mounts = crate::host::parse_mountinfo(b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
    let host = Host { uid: caller, gid: caller, kernel: (6, 12), mounts, ..Host::default() };
    let spec = Spec::from_layer(layer).unwrap();
    let (users, _) = crate::part::users::plan(&spec, &host).unwrap();
    plan(&spec, &host, &users, &ServicePlan::default(), None)
}

#[test]
fn a_map_of_one_id_has_one_user() {
    let found = Identity::find(&planned(&[], 1000), "me:x:1000:50::/home/me:/bin/sh\n", "").unwrap();
    assert_eq!((found.uid, found.gid, found.home.as_str()), (1000, 1000, "/home/me"));
    let found = Identity::find(&planned(&[], 1000), "", "").unwrap();
    assert_eq!((found.uid, found.gid), (1000, 1000));
    let found = Identity::find(&planned(&[], 0), "", "").unwrap();
    assert_eq!((found.uid, found.gid), (0, 0));
}

#[test]
fn groups_outside_of_the_map_are_left_out() {
    let (passwd, group) = ("root:x:0:0::/root:/bin/sh\n", "big:x:70000:root\nadm:x:4:root\nnone:x:4294967295:root\n");
    let found = Identity::find(&planned(&[], 0), passwd, group).unwrap();
    assert_eq!(found.groups, [4]);
}

#[test]
fn the_id_that_means_none_is_refused() {
    let passwd = "nobody:x:4294967295:0::/:/bin/sh\nodd:x:5:4294967295::/:/bin/sh\n";
    let line =
        |words: &[&str]| Identity::find(&planned(words, 0), passwd, "none:x:4294967295:\n").unwrap_err().to_string();
    let no_id = "4294967295 is no ID, to the kernel it means none";
    assert_eq!(line(&["4294967295"]), format!("--uid 4294967295: {no_id}"));
    assert_eq!(line(&["nobody"]), format!("--uid nobody: {no_id}"));
    assert_eq!(line(&["odd"]), format!("--uid odd: {no_id}"));
    assert_eq!(line(&["0", "4294967295"]), format!("--gid 4294967295: {no_id}"));
    assert_eq!(line(&["0", "none"]), format!("--gid none: {no_id}"));
    assert!(Identity::find(&planned(&["4294967294"], 0), passwd, "").is_ok());
}
