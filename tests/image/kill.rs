//! An import killed at any instant leaves a store that verifies.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{image, run, shell};

/// A docker archive of three layers, some megabytes each.
const ARCHIVE: &str = r#"
mkdir -p a b c out
for layer in a b c; do
    for n in $(seq 200); do head -c 8000 /dev/urandom > $layer/file-$layer-$n; done
    tar -C $layer --format=posix -cf out/$layer.tar .
done
digests=$(for layer in a b c; do printf '"sha256:%s",' "$(sha256sum < out/$layer.tar | cut -d' ' -f1)"; done)
printf '{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%s]}}' "${digests%,}" > out/config.json
echo '[{"Config":"config.json","RepoTags":["killed:1"],"Layers":["a.tar","b.tar","c.tar"]}]' > out/manifest.json
tar -C out -cf archive.tar config.json a.tar b.tar c.tar manifest.json
"#;

fn verified(store: &Path) {
    run(image(store).args(["verify", "--quiet"]));
}

#[test]
fn killed_at_fifty_instants() {
    let base = tempfile::tempdir().unwrap();
    shell(base.path(), ARCHIVE);
    let archive = base.path().join("archive.tar");
    let start = Instant::now();
    run(image(&base.path().join("whole")).arg("import").arg(&archive));
    let whole = start.elapsed();
    let mut unfinished = 0;
    for round in 0..50u32 {
        // One store for all rounds of a run of five, so that left-overs meet later imports too.
        let store = base.path().join(format!("store-{}", round / 5));
        let mut child =
            image(&store).arg("import").arg(&archive).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * (round % 25 + 1) / 24 + Duration::from_micros(u64::from(round) * 97));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            unfinished += 1;
        }
        verified(&store);
    }
    assert!(unfinished > 5, "only {unfinished} imports were killed before their end");
    for run_of_five in 0..10 {
        let store = base.path().join(format!("store-{run_of_five}"));
        run(image(&store).arg("import").arg(&archive));
        verified(&store);
        let left = std::fs::read_dir(store.join("tmp")).unwrap().count();
        assert_eq!(left, 0, "left-overs of killed imports are still there");
    }
}
