//! Kept roots: a run that goes on, what it changed, an image of it, and its changes brought onto the host.

use crate::bed::Bed;
use crate::command::Outcome;
use crate::images::{image, open_dir, root_dir, store_of, text};
use crate::tree::{self, Tree};
use crate::{Test, test};
use rustix::fs::{XattrFlags, lgetxattr, setxattr};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("kept/goes_on", needs![root, systemd, disk], goes_on),
        test("kept/diff_and_commit", needs![root, systemd, disk], diff_and_commit),
        test("kept/in_use", needs![root, systemd, disk], in_use),
        test("kept/stands_on_one_thing", needs![root, systemd, disk], stands_on_one_thing),
        test("kept/mount_points", needs![root, systemd, disk], mount_points),
        test("kept/plain_user", needs![root, systemd, user_manager, disk, kernel_min(5, 11)], plain_user),
        test("kept/apply", needs![root, systemd, disk], apply),
        test("kept/apply_refused", needs![root, systemd, disk], apply_refused),
    ]
}

struct Root<'a> {
    bed: &'a Bed,
    store: PathBuf,
    name: String,
}

impl Root<'_> {
    fn run(&self, flags: &[&str], script: &str) -> Outcome {
        let own = ["--store", text(&self.store), "--name", &self.name];
        self.bed.run(own.iter().chain(flags), script).output()
    }

    /// `sandbox COMMAND NAME WORDS`.
    fn does(&self, command: &str, words: &[&str]) -> Outcome {
        self.bed.sandbox([command, "--store", text(&self.store), &self.name]).args(words).output()
    }
}

impl Root<'_> {
    /// An apply that shows what it would do, and does not do it.
    fn refuses(&self, words: &[&str], why: &str) -> String {
        let outcome = self.does("apply", words).exited(125);
        let said = outcome.errors();
        assert!(said.contains(why) && !outcome.text().is_empty(), "{said}");
        said
    }
}

fn root<'a>(bed: &'a Bed, store: PathBuf) -> Root<'a> {
    Root { bed, store, name: format!("{}k", bed.id()) }
}

fn goes_on(bed: &Bed) {
    let kept = root(bed, store_of(bed, &[root_dir(bed)], "{}", "web:1"));
    let script = "echo one >> /log; chown 33:34 /log; rm /bin/find; mkdir -m 700 /d; touch /d/x";
    kept.run(&["--image", "web:1", "--keep"], script).succeeded();
    let second = kept.run(&[], "cat /log; stat -c %u:%g /log; ls /bin/find /d 2>&1; echo two >> /log; hostname");
    assert_eq!(second.text(), format!("one\n33:34\nls: /bin/find: No such file or directory\n/d:\nx\n{}", kept.name));
    assert_eq!(kept.run(&["--keep"], "cat /log").succeeded().text(), "one\ntwo");
    assert_eq!(
        kept.run(&["--keep=false", "--image", "web:1"], "cat /log 2>&1").status,
        1,
        "without it nothing is there"
    );
    let data = kept.store.join("kept").join(&kept.name).join("data");
    let log = fs::metadata(data.join("-/upper/log")).unwrap();
    assert_eq!((log.uid(), log.gid()), (33, 34), "on disk owners are those inside");
    // The image stays while a kept root stands on it, without any name.
    image(bed, &kept.store, ["rm", "web:1"]).output().succeeded();
    image(bed, &kept.store, ["gc"]).output().succeeded();
    assert_eq!(kept.run(&[], "cat /log").succeeded().text(), "one\ntwo");
    kept.does("discard", &[]).succeeded();
    assert_eq!(fs::read_dir(kept.store.join("kept")).unwrap().count(), 0);
    image(bed, &kept.store, ["gc"]).output().succeeded();
    assert_eq!(fs::read_dir(kept.store.join("layers")).unwrap().count(), 0);
    kept.does("diff", &[]).refused(125, ["no kept root"]);
}

fn diff_and_commit(bed: &Bed) {
    let low = root_dir(bed);
    tree::fill(
        &low,
        [
            ("srv/f", "old\n"),
            ("srv/same", "same\n"),
            ("srv/gone", ""),
            ("srv/tree/a", ""),
            ("srv/new/old", ""),
            ("etc/hosts", "low\n"),
        ],
    );
    let kept = root(bed, store_of(bed, &[low], r#"{"Env":["A=1"],"Cmd":["/bin/old"]}"#, "web:1"));
    let script = "cd /srv; echo new > f; exec 3>> same; exec 3>&-; rm gone; rm -r tree; rm -r new; mkdir new; echo y > new/y; \
        ln -s f link; chmod 700 /bin; echo mine >> /etc/hosts; echo x > /added; chown 5:6 /added; chmod 4755 /added";
    kept.run(&["--image", "web:1", "--keep"], script).succeeded();
    let wanted = "A /added\nC /bin\nC /srv/f\nD /srv/gone\nA /srv/link\nD /srv/new/old\nA /srv/new/y\nD /srv/tree";
    assert_eq!(kept.does("diff", &[]).succeeded().text(), wanted);
    let json = kept.does("diff", &["--json"]).succeeded().text();
    assert!(json.contains("\"change\": \"D\"") && json.contains("\"path\": \"/srv/tree\""), "{json}");
    let change = [r#"--change=CMD ["/bin/cat", "/srv/f"]"#, "--change=ENV B=2", "-m", "a message"];
    let id = kept.does("commit", &[["web:2"].as_slice(), &change].concat()).succeeded().text();
    image(bed, &kept.store, ["verify", "-q"]).output().succeeded();
    let run = |words: &[&str]| {
        let flags = ["run", "-q", "--store", text(&kept.store), "--image", "web:2", "--"];
        bed.sandbox(flags).args(words).output().succeeded().text()
    };
    assert_eq!(run(&[]), "new");
    let look = "echo $A $B; cd /srv; find . | sort; stat -c '%u:%g %a' /added /bin; grep mine /etc/hosts";
    let outcome = bed.run(["--store", text(&kept.store), "--image", "web:2"], look).output();
    let wanted = "1 2\n.\n./f\n./link\n./new\n./new/y\n./same\n5:6 4755\n0:0 700";
    assert_eq!(outcome.text(), wanted, "the init layer's files are not part of it");
    let details = image(bed, &kept.store, ["inspect", "--json", "web:2"]).output().succeeded().text();
    assert!(details.contains(&id) && details.contains("a message"), "{details}");
    // The kept root goes on as before, on what it stood on.
    assert_eq!(kept.run(&[], "cat /srv/f").succeeded().text(), "new");
    kept.does("commit", &["web:3", "--change=RUN x"]).refused(125, ["RUN x", "CMD"]);
}

/// Where something is mounted is no change of what is below.
fn mount_points(bed: &Bed) {
    let low = root_dir(bed);
    tree::fill(&low, [("etc/there", "")]);
    let kept = root(bed, store_of(bed, &[low], "{}", "web:1"));
    let dir = bed.dir();
    let source = bed.dir().join("f");
    fs::write(&source, "bound").unwrap();
    let binds = [
        format!("{}:/data/in", dir.display()),
        format!("{}:/new/file", source.display()),
        format!("{}:/etc/there", source.display()),
    ];
    let flags = ["--image", "web:1", "--keep", "--tmpfs", "/tt", "-v", &binds[0], "-v", &binds[1], "-v", &binds[2]];
    let text =
        kept.run(&flags, "cat /new/file /etc/there; touch /tt/x /data/in/y; echo z > /data/z").succeeded().text();
    assert_eq!(text, "boundbound");
    assert_eq!(kept.does("diff", &[]).succeeded().text(), "A /data\nA /data/z");
    assert!(dir.join("y").exists());
    assert_eq!(kept.run(&[], "ls / /data").succeeded().text().matches("tt\n").count(), 0, "the next run goes without");
}

fn in_use(bed: &Bed) {
    let kept = root(bed, store_of(bed, &[root_dir(bed)], "{}", "web:1"));
    let flags = ["--store", text(&kept.store), "--image", "web:1", "--name", &kept.name, "--keep"];
    let (mut running, _) = bed.live(flags, "echo x > /x; echo ready; read x");
    kept.run(&[], "true").refused(125, [&kept.name, "in use"]);
    kept.does("commit", &["web:2"]).refused(125, ["in use"]);
    kept.does("discard", &[]).refused(125, ["in use"]);
    assert_eq!(kept.does("diff", &[]).succeeded().text(), "A /x");
    running.send("go\n");
    running.finish().succeeded();
    assert_eq!(kept.run(&[], "echo again").succeeded().text(), "again");
}

fn stands_on_one_thing(bed: &Bed) {
    let (one, other) = (root_dir(bed), root_dir(bed));
    tree::fill(&other, [("other", "")]);
    let kept = root(bed, store_of(bed, std::slice::from_ref(&one), "{}", "web:1"));
    image(bed, &kept.store, ["import", "-q", "--tag", "web:2", text(&other)]).output().succeeded();
    kept.run(&["--image", "web:1", "--keep"], "echo x > /x").succeeded();
    kept.run(&["--image", "web:2"], "true").refused(125, ["stands on image"]);
    kept.run(&["--rootfs", text(&one)], "true").refused(125, ["--rootfs"]);
    kept.run(&["--userns", "identity"], "true").refused(125, ["--userns"]);
    // A name that has gone to another image does not lead astray.
    image(bed, &kept.store, ["tag", "web:2", "web:1"]).output().succeeded();
    assert_eq!(kept.run(&[], "cat /x; ls /other 2>/dev/null; true").succeeded().text(), "x");
    let host = Root { bed, store: kept.store.clone(), name: format!("{}d", bed.id()) };
    host.run(&["--rootfs", text(&one), "--keep"], "echo d > /d").succeeded();
    assert_eq!(host.run(&[], "cat /d").succeeded().text(), "d");
    assert_eq!(host.does("diff", &[]).succeeded().text(), "A /d");
    host.does("commit", &["d:1"]).refused(125, ["directories"]);
    host.does("apply", &["--yes"]).refused(125, ["host's own files"]);
}

/// Files of other IDs inside are of subordinate ones on disk: they are looked at from within the map.
fn plain_user(bed: &Bed) {
    let place = bed.user_dir();
    let source = place.join("archive.tar");
    fs::copy(crate::images::archive(bed, &[root_dir(bed)], "{}", "web:1"), &source).unwrap();
    let store = place.join("store");
    image(bed, &store, ["import", "-q", text(&source)]).user().output().succeeded();
    let name = format!("{}u", bed.id());
    let flags = ["--user", "--store", text(&store), "--name", &name];
    let run = |more: &[&str], script: &str| bed.run(flags.iter().chain(more), script).user().output();
    run(
        &["--image", "web:1", "--keep"],
        "mkdir /d; echo x > /d/x; rm /bin/find; chmod 600 /d/x; chown 5:6 /d/x || true",
    )
    .succeeded();
    assert_eq!(run(&[], "cat /d/x; ls /bin/find 2>/dev/null; true").succeeded().text(), "x");
    let does = |words: &[&str]| bed.sandbox(words.iter().copied()).args(["--store", text(&store)]).user().output();
    assert_eq!(does(&["diff", &name]).succeeded().text(), "D /bin/find\nA /d\nA /d/x");
    does(&["commit", &name, "web:2", "-q"]).succeeded();
    let again =
        bed.run(["--user", "--store", text(&store), "--image", "web:2"], "cat /d/x; ls /bin/find 2>/dev/null; true");
    assert_eq!(again.user().output().succeeded().text(), "x");
    image(bed, &store, ["verify", "-q"]).user().output().succeeded();
    does(&["apply", &name, "--yes"]).refused(125, ["host's own files"]);
    does(&["discard", &name]).succeeded();
    assert_eq!(fs::read_dir(store.join("kept")).unwrap().count(), 0);
    // The host's own files, a directory among them that only the machine's root may list, as lost+found is.
    let closed = bed.closed_dir();
    assert_eq!(run(&["--keep"], "echo x > /etc/new; ls -d /sbt-*").succeeded().text(), text(&closed));
    assert_eq!(does(&["diff", &name]).succeeded().text(), "A /etc/new");
    does(&["discard", &name]).succeeded();
}

fn value(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 100];
    let length = lgetxattr(path, name, &mut value).unwrap_or(0);
    value[..length].to_vec()
}

/// A place that the host view shows, with one of each thing that a sandbox will change.
fn seen(bed: &Bed) -> PathBuf {
    let dir = bed.seen_dir();
    tree::fill(
        &dir,
        [
            ("file", "old\n"),
            ("gone", ""),
            ("tree/a/b", ""),
            ("keep/x", "x\n"),
            ("swap/inner", ""),
            ("flat", ""),
            ("other", "old\n"),
            ("replaced/old", ""),
        ],
    );
    dir
}

fn apply(bed: &Bed) {
    let dir = seen(bed);
    let kept = root(bed, open_dir(bed).join("store"));
    let script = format!(
        "cd {}; echo new > file; chmod 640 file; rm gone; rm -r tree; rm -r swap; ln -s file swap; rm flat; mkdir flat; echo i > flat/i; \
         mkdir -m 2750 made; echo m > made/m; chown 33:34 made/m; chmod 4711 made/m; ln made/m made/again; echo o > other; \
         rm -r replaced; mkdir replaced; echo n > replaced/new; mkfifo pipe; touch -d @1000000000 made/m",
        dir.display()
    );
    kept.run(&["--keep"], &script).succeeded();
    let upper = kept.store.join("kept").join(&kept.name).join("data/-/upper");
    let in_upper = upper.join(dir.strip_prefix("/").unwrap());
    setxattr(in_upper.join("made/m"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    let before = Tree::take(&dir);
    kept.refuses(&[], "nobody can be asked");
    let shown = kept.does("apply", &["--dry-run"]).succeeded().text();
    before.unchanged(&dir);
    let at = dir.display();
    let wanted = format!(
        "C {at}/file\nC {at}/flat\nA {at}/flat/i\nD {at}/gone\nA {at}/made\nA {at}/made/again\nA {at}/made/m\nC {at}/other\nA {at}/pipe\n\
         A {at}/replaced/new\nD {at}/replaced/old\nC {at}/swap\nD {at}/tree"
    );
    assert_eq!(shown.replace("C /srv\n", ""), wanted);
    // First one path only, and only when the answer is yes.
    let ask = |answer: &str| {
        let words = ["apply", "--store", text(&kept.store), &kept.name, &format!("{at}/other")];
        bed.sandbox(words).pty(24, 80).stdin(answer).output()
    };
    assert!(ask("n\n").exited(125).text().contains("Apply 1 change to this machine? [y/N]"));
    before.unchanged(&dir);
    ask("y\n").succeeded();
    assert_eq!(
        (fs::read_to_string(dir.join("other")).unwrap(), fs::read_to_string(dir.join("file")).unwrap()),
        ("o\n".into(), "old\n".into())
    );
    kept.does("apply", &["--yes"]).succeeded();
    let line = |name: &str| {
        let meta = fs::symlink_metadata(dir.join(name)).unwrap();
        format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.nlink())
    };
    assert_eq!(line("file"), "100640 0:0 1");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "new\n");
    assert_eq!(line("made"), "42750 0:0 2");
    assert_eq!(line("made/m"), "104711 33:34 2");
    assert_eq!(fs::metadata(dir.join("made/m")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::metadata(dir.join("made/m")).unwrap().ino(), fs::metadata(dir.join("made/again")).unwrap().ino());
    assert_eq!(value(&dir.join("made/m"), "user.note"), b"kept");
    assert_eq!(fs::read_link(dir.join("swap")).unwrap(), Path::new("file"));
    let mut names: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["file", "flat", "keep", "made", "other", "pipe", "replaced", "swap"], "and nothing temporary");
    assert!(dir.join("flat/i").is_file() && dir.join("replaced/new").is_file() && !dir.join("replaced/old").exists());
    // The next round starts from there.
    kept.run(&[], &format!("cat {at}/file {at}/made/m; echo newer > {at}/file")).succeeded();
    kept.does("apply", &["--yes", &format!("{at}/file")]).succeeded();
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "newer\n");
}

fn apply_refused(bed: &Bed) {
    let dir = seen(bed);
    let at = dir.display();
    let kept = root(bed, open_dir(bed).join("store"));
    kept.run(
        &["--keep"],
        &format!("cd {at}; echo new > file; echo new > other; rm -r tree; echo 'root:x' > /etc/shadow"),
    )
    .succeeded();
    fs::write(dir.join("file"), "the host's\n").unwrap();
    fs::write(dir.join("tree/a/b"), "the host's\n").unwrap();
    let before = Tree::take(&dir);
    let shadow = fs::read("/etc/shadow").unwrap();
    for (path, why) in [
        (format!("{at}/file"), "changed on the host"),
        (format!("{at}/tree"), "tree/a/b changed"),
        ("/etc/shadow".into(), "hidden"),
    ] {
        let said = kept.refuses(&["--yes", &path], why);
        assert!(said.contains(&path), "{said}");
    }
    kept.refuses(&["--yes"], "nothing was applied");
    kept.does("apply", &["--yes", "/usr"]).refused(125, ["/usr", "no change"]);
    before.unchanged(&dir);
    assert_eq!(fs::read("/etc/shadow").unwrap(), shadow);
    kept.does("apply", &["--yes", &format!("{at}/other")]).succeeded();
    // The answer counts for what was shown, and for nothing that came while it was waited for.
    kept.run(&[], &format!("echo newer > {at}/other")).succeeded();
    let words = ["apply", "--store", text(&kept.store), &kept.name, &format!("{at}/other")];
    let mut asked = bed.sandbox(words).pty(24, 80).spawn();
    asked.wait_for("[y/N]");
    kept.run(&[], "echo unseen > /srv/unseen").refused(125, [&kept.name, "in use"]);
    kept.does("discard", &[]).refused(125, [&kept.name, "in use"]);
    fs::write(dir.join("other"), "an administrator's\n").unwrap();
    asked.send("y\n");
    assert!(asked.finish().exited(125).text().contains("nothing was applied"));
    assert_eq!(fs::read_to_string(dir.join("other")).unwrap(), "an administrator's\n");
    kept.does("apply", &["--yes", "--force", &format!("{at}/file"), &format!("{at}/tree")]).succeeded();
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "new\n");
    assert!(!dir.join("tree").exists());
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
}
