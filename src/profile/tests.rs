use std::fs;

use clap::Args;

use super::*;

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::canonicalize(path).unwrap()
}

fn load(path: &Path) -> Profile {
    Profile::load(path.to_str().unwrap()).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The error line without the directory, and the hint.
fn refused(text: &str) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "web.toml", text);
    let error = Profile::load(path.to_str().unwrap()).unwrap_err();
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<crate::error::Fault>()).and_then(|f| f.hint_text());
    let line = crate::error::line(&error).replace(&format!("{}/", path.parent().unwrap().display()), "");
    (line, hint.unwrap_or_default().to_owned())
}

/// Flags of `run` that say how it is called, not what the sandbox is.
const NOT_SETTINGS: &[&str] = &["dry-run", "help", "json", "profile", "timings"];

/// The long names of all flags of `run`, and `command`.
fn flags() -> Vec<String> {
    let mut program = crate::cli::command();
    program.build();
    let run = program.find_subcommand("run").unwrap().clone();
    let names = run.get_arguments().map(|flag| flag.get_long().unwrap_or("command").to_owned());
    let mut names: Vec<String> = names.filter(|name| !NOT_SETTINGS.contains(&name.as_str())).collect();
    names.sort();
    names
}

#[test]
fn every_flag_has_a_key_and_every_key_a_flag() {
    let error = toml::from_str::<Layer>("no-such-key = 1").unwrap_err().to_string();
    let listed = error.split_once("expected one of ").unwrap().1;
    let mut keys: Vec<String> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, flags());
    let mut known: Vec<String> = file::keys().into_iter().map(|(name, _)| name).collect();
    known.sort();
    assert_eq!(known, keys);
}

/// What a flag is given here: text, or the words that it knows.
fn sample(flag: &clap::Arg) -> String {
    let words = flag.get_possible_values();
    words.first().map_or("./7".into(), |word| word.get_name().to_owned())
}

#[test]
fn a_key_and_its_flag_are_the_same_setting() {
    let directory = tempfile::tempdir().unwrap();
    let command = Layer::augment_args(clap::Command::new("run"));
    for flag in command.get_arguments() {
        let key = flag.get_long().unwrap_or("command");
        let value = sample(flag);
        let words = match key {
            "command" => vec!["run".to_owned(), value.clone()],
            // The sandbox's name is what a kept root is found by.
            "keep" => vec!["run".to_owned(), "--name=x".into(), format!("--{key}={value}")],
            _ => vec!["run".to_owned(), format!("--{key}={value}")],
        };
        let before = if key == "keep" { "name = \"x\"\n" } else { "" };
        let matches = command.clone().try_get_matches_from(words).unwrap();
        let from_flag = <Layer as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        let written = match (flag.get_action(), flag.get_num_args().is_some_and(|n| n.max_values() > 1)) {
            (clap::ArgAction::Append, _) | (_, true) => format!("[\"{value}\"]"),
            _ if matches!(value.as_str(), "true" | "false") => value.clone(),
            _ => format!("\"{value}\""),
        };
        let path = write(directory.path(), "x.toml", &format!("{before}{key} = {written}\n"));
        let from_file = load(&path).layer;
        // Paths in a file are relative to it.
        let anchored = format!("{}/", path.parent().unwrap().display());
        let shown = format!("{from_file:?}").replace(&format!("{anchored}./"), "./").replace(&anchored, "./");
        assert_eq!(shown, format!("{from_flag:?}"), "{key} = {written}");
    }
}

#[test]
fn a_profile_is_what_the_flags_are() {
    let directory = tempfile::tempdir().unwrap();
    let text = r#"
command = ["sleep", 5]
cpus = 1.5
pids-limit = 64
read-only = true
share = ["net"]
bind = ["./site:/srv/www:ro", "/var/lib/x"]
upper = "tmpfs:64M"
rootfs = "tree"
[property]
CPUWeight = 50
DeviceAllow = ["/dev/null rw", "/dev/zero r"]
[setenv]
A = "b c"
[ulimit]
nofile = "1024:2048"
"#;
    let path = write(directory.path(), "web.toml", text);
    let profile = load(&path);
    let home = path.parent().unwrap().display().to_string();
    let layer = &profile.layer;
    assert_eq!(layer.command, ["sleep", "5"]);
    assert_eq!((layer.cpus.as_deref(), layer.pids_limit.as_deref()), (Some("1.5"), Some("64")));
    assert_eq!(layer.bind, [format!("{home}/site:/srv/www:ro").as_str(), "/var/lib/x"]);
    assert_eq!(layer.upper.as_deref(), Some("tmpfs:64M".as_ref()));
    assert_eq!(layer.rootfs, Some(format!("{home}/tree").into()));
    assert_eq!(layer.property, ["CPUWeight=50", "DeviceAllow=/dev/null rw", "DeviceAllow=/dev/zero r"]);
    assert_eq!((layer.setenv[0].to_str(), layer.ulimit[0].as_str()), (Some("A=b c"), "nofile=1024:2048"));
    assert_eq!(profile.name(), "web");
    let found = profile.origins.iter().find(|origin| origin.key == "pids-limit").unwrap();
    assert_eq!((found.line, found.value.as_str(), &found.file), (4, "64", &path));
}

#[test]
fn errors_name_file_line_and_key() {
    let table = [
        (
            "memory = \"1G\"\nmemroy = \"1G\"\n",
            "web.toml:2: `memroy` is not a key of a profile",
            "did you mean `memory`?",
        ),
        ("cpu_shares = 5", "web.toml:1: `cpu_shares` is not a key of a profile", "did you mean `cpu-shares`?"),
        ("volume = []", "web.toml:1: `volume` is not a key of a profile", "did you mean `bind`?"),
        ("profile = \"x\"", "web.toml:1: `profile` is not a key of a profile", ""),
        ("user = true\n\nread-only = \"yes\"", "web.toml:3: read-only: invalid type: string \"yes\", expected", ""),
        ("bind = \"/srv\"", "web.toml:1: bind: invalid type: string \"/srv\", expected a sequence", "brackets"),
        ("log = \"jurnal\"", "web.toml:1: log: unknown variant `jurnal`, expected `caller` or `journal`", ""),
        ("memory = 1\nmemory = 2", "web.toml:2: duplicate key", ""),
        ("memory = ", "web.toml:1: ", ""),
        ("command = [\"a\\u0000b\"]", "web.toml:1: command: a text cannot have a NUL", ""),
        ("[property]\nX = {}", "web.toml:2: property.X: accepted are", ""),
        ("[property]\nX = [[1]]", "web.toml:2: property.X: a list in a list", ""),
        ("include = \"x\"", "web.toml:1: include: accepted is a list", "include = ["),
        ("memory = []", "web.toml:1: memory: invalid type: sequence", ""),
        ("[memory]\nx = 1", "web.toml:1: memory: invalid type: map", ""),
    ];
    for (text, line, hint) in table {
        let (found, found_hint) = refused(text);
        assert!(found.starts_with(line), "{text:?}: {found}");
        assert!(found_hint.contains(hint), "{text:?}: {found_hint}");
    }
}

#[test]
fn includes_lie_under_the_file_that_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    write(home, "a/base.toml", "memory = \"1G\"\ncpus = 1\nbind = [\"./data\"]\ncommand = [\"base\"]");
    write(home, "net.toml", "include = [\"a/base.toml\"]\nnetwork = \"host\"\ncpus = 2");
    let top = write(home, "top.toml", "include = [\"a/base.toml\", \"net.toml\"]\nmemory = \"2G\"\nbind = [\"/srv\"]");
    let profile = load(&top);
    let layer = profile.under(Layer { memory: Some("3G".into()), ..Layer::default() });
    assert_eq!((layer.memory.as_deref(), layer.cpus.as_deref()), (Some("3G"), Some("2")));
    let data = top.parent().unwrap().join("a/data");
    // What is included twice counts once.
    assert_eq!(layer.bind, [data.as_os_str(), "/srv".as_ref()]);
    assert_eq!(layer.command, ["base"]);
    let memory: Vec<_> = profile.origins.iter().filter(|origin| origin.key == "memory").collect();
    assert!(memory.last().unwrap().file == top && memory.len() == 2, "{memory:?}");
}

#[test]
fn an_include_that_comes_back_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "b.toml", "\ninclude = [\"a.toml\"]");
    let path = write(directory.path(), "a.toml", "include = [\"./b.toml\"]");
    let error = Profile::load(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("b.toml:2: include a.toml: a profile cannot include itself"), "{error}");
    let path = write(directory.path(), "c.toml", "include = [\"c.toml\"]");
    assert!(Profile::load(path.to_str().unwrap()).is_err());
    let path = write(directory.path(), "d.toml", "include = [\"missing.toml\"]");
    let error = crate::error::line(&Profile::load(path.to_str().unwrap()).unwrap_err());
    assert!(error.ends_with("d.toml:1: include missing.toml: No such file or directory"), "{error}");
}

#[test]
fn flags_override_in_whatever_words() {
    let directory = tempfile::tempdir().unwrap();
    let over = |profile: &str, flags: Layer| -> String {
        let mut layer = load(&write(directory.path(), "p.toml", profile)).under(flags);
        assert_eq!((layer.name.take().as_deref(), layer.keep.take()), (Some("p"), Some(false)));
        let default = format!("{:?}", Layer::default());
        let shown = format!("{layer:?}");
        let fields = shown.split(", ").zip(default.split(", "));
        fields.filter(|(a, b)| a != b).map(|(a, _)| a.replace("Layer { ", "")).collect::<Vec<_>>().join("; ")
    };
    let text = |text: &str| Some(text.to_owned());
    let property = |text: &str| Layer { property: vec![text.to_owned()], ..Layer::default() };
    let table = [
        ("as-pid1 = true", Layer { init: Some(true), ..Layer::default() }, "init: Some(true)"),
        ("user = true", Layer { system: Some(true), ..Layer::default() }, "system: Some(true)"),
        ("pty = true", Layer { pipe: Some(true), ..Layer::default() }, "pipe: Some(true)"),
        ("memory = 1", property("MemoryMax=2G"), "property: [\"MemoryMax=2G\"]"),
        ("property = [\"MemoryLimit=1G\"]", Layer { memory: text("2G"), ..Layer::default() }, "memory: Some(\"2G\")"),
        ("property = [\"CPUShares=5\"]", property("CPUWeight=6"), "property: [\"CPUWeight=6\"]"),
        ("property = [\"After=a\"]", property("After=b"), "property: [\"After=a\"; \"After=b\"]"),
        ("cpu-quota = 5000\ncpu-period = 9000", Layer { cpus: text("2"), ..Layer::default() }, "cpus: Some(\"2\")"),
        (
            "ulimit = [\"nofile=5\", \"core=0\"]",
            property("LimitNOFILE=6"),
            "property: [\"LimitNOFILE=6\"]; ulimit: [\"core=0\"]",
        ),
        (
            "image = \"a\"\nentrypoint = \"b\"",
            Layer { rootfs: Some("/x".into()), ..Layer::default() },
            "rootfs: Some(\"/x\")",
        ),
        ("rootfs = \"/\"", Layer { image: text("a"), ..Layer::default() }, "image: Some(\"a\")"),
        ("rootfs = \"/\"", Layer { layer: vec!["/x".into()], ..Layer::default() }, "layer: [\"/x\"]"),
        (
            "share = [\"net\", \"ipc\"]",
            Layer { network: Some("none".into()), ..Layer::default() },
            "share: [Ipc]; network: Some(\"none\")",
        ),
        ("uid = 5", property("User=6"), "property: [\"User=6\"]"),
    ];
    for (profile, flags, want) in table {
        let found = over(profile, flags);
        let same = |a: &str| a.replace(", ", "; ");
        assert!(same(&found).starts_with(want) || found == want, "{profile}: {found}, not {want}");
    }
}

#[test]
fn an_error_of_a_value_is_where_the_value_is() {
    let directory = tempfile::tempdir().unwrap();
    let table = [
        ("command = [\"x\"]\nmemory = \"5X\"", "p.toml:2: --memory 5X"),
        ("command = [\"x\"]\n\nproperty = [\n\"CPUWeight=5\",\n\"MemoryMux=5\"]", "p.toml:5: `MemoryMux`"),
        ("command = [\"x\"]\nbind = [\"/etc\", \"./gone\"]", "p.toml:2: --bind "),
        ("command = [\"x\"]\nnetwork = \"hots\"", "p.toml:2: --network hots: it is none, host"),
        ("command = [\"x\"]\nnetwork = \"pasta\"\npublish = [\"1:1\", \"80\"]", "p.toml:3: --publish 80: it is"),
        ("command = [\"x\"]\n\nupper = \"gone/root\"", "p.toml:3: --upper "),
        ("command = [\"x\"]\n[property]\nTasksMax = \"x\"", "p.toml:3: TasksMax=x"),
    ];
    for (text, want) in table {
        let profile = load(&write(directory.path(), "p.toml", text));
        let error = crate::spec::Spec::from_layer(profile.layer.clone()).unwrap_err();
        let line = crate::error::line(&profile.blame(error));
        assert!(line.contains(want), "{text:?}: {line}");
    }
}
