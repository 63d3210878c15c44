//! A layer over another where the two say the same thing in different words.

use crate::layer::{Layer, Namespace};
use crate::systemd;

/// `over` on top of `under`: what it says counts, in whatever words (`--memory 1G` over `MemoryMax=2G`, `--init` over `as-pid1`).
pub(super) fn over(over: Layer, under: Layer) -> Layer {
    let under = without(under, &over);
    over.over(under)
}

/// What is left of `under` when `over` has spoken.
fn without(mut under: Layer, over: &Layer) -> Layer {
    pair(over.system, over.user, [&mut under.system, &mut under.user]);
    pair(over.init, over.as_pid1, [&mut under.init, &mut under.as_pid1]);
    pair(over.pty, over.pipe, [&mut under.pty, &mut under.pipe]);
    root(over, &mut under);
    if over.network.as_deref().is_some_and(|network| network != "host") {
        under.share.retain(|namespace| *namespace != Namespace::Net);
    }
    if over.network.as_deref().is_some_and(|network| network != "pasta") {
        under.publish.clear();
        under.publish_all = None;
    }
    let said = said(over);
    let is_said = |subject: &str| said.iter().any(|other| other == subject);
    under.property.retain(|text| systemd::subject(text).is_none_or(|subject| !is_said(subject)));
    under.ulimit.retain(|text| !is_said(&limit(text)));
    for (subject, setting) in flags(&mut under) {
        if is_said(subject) {
            *setting = None;
        }
    }
    if is_said("CPUQuota") {
        (under.cpus, under.cpu_quota, under.cpu_period) = (None, None, None);
    }
    under
}

/// A root is made of one thing, and has one place for its writes.
fn root(over: &Layer, under: &mut Layer) {
    if over.rootfs.is_some() || over.image.is_some() {
        under.layer.clear();
    }
    if !over.layer.is_empty() || over.image.is_some() {
        under.rootfs = None;
    }
    if !over.layer.is_empty() || over.rootfs.is_some() {
        (under.image, under.entrypoint) = (None, None);
    }
    if over.upper.is_some() {
        under.keep = None;
    }
    if over.keep == Some(true) {
        under.upper = None;
    }
}

/// Of two switches that are opposites, the upper layer's is the one that counts.
fn pair(one: Option<bool>, other: Option<bool>, under: [&mut Option<bool>; 2]) {
    if one.or(other).is_some() {
        under.into_iter().for_each(|switch| *switch = None);
    }
}

/// The flags that stand for one property, with its name on cgroup v2.
fn flags(layer: &mut Layer) -> [(&'static str, &mut Option<String>); 8] {
    [
        ("MemoryMax", &mut layer.memory),
        ("CPUWeight", &mut layer.cpu_shares),
        ("AllowedCPUs", &mut layer.cpuset_cpus),
        ("TasksMax", &mut layer.pids_limit),
        ("Slice", &mut layer.slice),
        ("Description", &mut layer.description),
        ("User", &mut layer.uid),
        ("Group", &mut layer.gid),
    ]
}

/// Everything that a layer says of properties, by [`systemd::subject`].
fn said(layer: &Layer) -> Vec<String> {
    let mut layer = layer.clone();
    let mut said: Vec<String> =
        layer.property.iter().filter_map(|text| systemd::subject(text)).map(str::to_owned).collect();
    said.extend(layer.ulimit.iter().map(|text| limit(text)));
    said.extend(
        flags(&mut layer).into_iter().filter(|(_, setting)| setting.is_some()).map(|(name, _)| name.to_owned()),
    );
    if layer.cpus.is_some() || layer.cpu_quota.is_some() {
        said.push("CPUQuota".into());
    }
    if layer.oom.is_some() {
        said.push("OOMPolicy".into());
    }
    if layer.working_directory.is_some() {
        said.push("WorkingDirectory".into());
    }
    said
}

/// `nofile=1024` is LimitNOFILE=.
fn limit(text: &str) -> String {
    format!("Limit{}", text.split('=').next().unwrap_or_default().to_ascii_uppercase())
}
