//! Fuzz targets: each takes any bytes for what comes from outside, and panics where the answer is wrong.
//!
//! What a target expects stands beside the reader that it tests, in a `fuzz.rs` of the same module. They run twice: in a few seconds
//! in every `cargo test`, over the seeds in tests/fuzz/TARGET and what they become when they are mangled; and for as long as
//! `tests/run.sh --fuzz SECONDS` says, driven by libFuzzer, which the feature `fuzzing` puts in place of the program.

/// A target: its name, which is that of its directory in tests/fuzz, and what it does with an input.
type Target = (&'static str, fn(&[u8]));

/// Every target.
const TARGETS: &[Target] = &[
    ("profile", crate::profile::fuzz::profile),
    ("documents", crate::image::fuzz::documents),
    ("reference", crate::image::fuzz::reference),
    ("tar", crate::image::fuzz::tar),
    ("unpack", crate::image::fuzz::unpack),
    ("sync", crate::sync::fuzz::messages),
    ("seccomp", crate::seccomp::fuzz::profile),
    ("property", crate::systemd::fuzz::property),
    ("value", crate::value::fuzz::values),
];

#[cfg(all(feature = "fuzzing", not(test)))]
mod driver {
    use std::sync::OnceLock;

    use super::TARGETS;

    /// The program itself, so that the compiler sees all of it used.
    const _: fn() -> std::process::ExitCode = crate::main;

    /// The target that SANDBOX_FUZZ names.
    fn chosen() -> fn(&[u8]) {
        static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var("SANDBOX_FUZZ").unwrap_or_default();
            let found = TARGETS.iter().find(|(known, _)| *known == name);
            found.unwrap_or_else(|| panic!("SANDBOX_FUZZ={name}: no such target")).1
        })
    }

    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chosen()(bytes));
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::TARGETS;

    fn directory() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(directory().join(target)).unwrap();
        let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    #[test]
    fn every_target_has_seeds_and_every_directory_is_a_targets() {
        let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        let files = std::fs::read_dir(directory()).unwrap();
        let mut directories: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        directories.sort();
        assert_eq!(directories, names);
        assert!(names.iter().all(|name| !seeds(name).is_empty()));
    }

    /// The seeds as they are.
    #[test]
    fn seeds_are_answered_rightly() {
        for (name, target) in TARGETS {
            for seed in seeds(name) {
                target(&seed);
            }
        }
    }

    /// The seeds with some bytes changed, a piece taken from one put into the other, and an end cut off.
    #[test]
    fn mangled_seeds_are_answered_rightly() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            let flips = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
            let piece = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..64);
            let any_input =
                (0..seeds.len(), 0..seeds.len(), flips, piece, proptest::option::of(any::<prop::sample::Index>()));
            let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
            let outcome = runner.run(&any_input, |(one, other, flips, (from, to, length), cut)| {
                let (mut input, other) = (seeds[one].clone(), &seeds[other]);
                if !other.is_empty() {
                    let from = from.index(other.len());
                    let piece = &other[from..other.len().min(from + length)];
                    let to = to.index(input.len() + 1);
                    input.splice(to..to, piece.iter().copied());
                }
                if let Some(cut) = cut {
                    input.truncate(cut.index(input.len() + 1));
                }
                let length = input.len();
                for (at, byte) in flips.into_iter().filter(|_| length > 0) {
                    input[at.index(length)] = byte;
                }
                target(&input);
                Ok(())
            });
            assert!(outcome.is_ok(), "{name}: {outcome:?}");
        }
    }
}
