//! Every fuzz target, bounded: the inputs in `corpus/`, then seeded mutations of them.
//!
//! `NIMBUS_FUZZ_RUNS` sets how many mutations each target gets and `NIMBUS_FUZZ_SEED` where they
//! begin. An input that breaks a promise is printed and kept; it belongs into the corpus once the
//! fault is mended. This room must not know what a target checks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::fs;
use std::path::{Path, PathBuf};

use nimbus_fuzz::mutate;
use nimbus_fuzz::targets::{ALL, Target};

/// Mutations of each target in an ordinary test run.
const RUNS: u64 = 10_000;
/// Where they begin; fixed, so that a run fails because of a change and not by chance.
const SEED: u64 = 0x6e69_6d62_7573;

/// Shows and keeps the input when the check panics.
struct Shown<'a> {
    target: &'a str,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let input = self.input.escape_ascii();
        println!(
            "target {}, {} bytes: b\"{input}\"",
            self.target,
            self.input.len()
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.crash", self.target));
        if fs::write(&path, self.input).is_ok() {
            println!("kept as {}", path.display());
        }
    }
}

fn run(target: &Target, input: &[u8]) {
    let _shown = Shown {
        target: target.name,
        input,
    };
    (target.check)(input);
}

fn figure(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        Err(_) => default,
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    // The order of the directory differs between file systems.
    files.sort();
    assert!(files.len() >= 3, "{} has too few inputs", dir.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn bounded(name: &str) {
    let target = ALL.iter().find(|target| target.name == name).unwrap();
    let inputs = corpus(name);
    for input in &inputs {
        run(target, input);
    }
    let (runs, seed) = (
        figure("NIMBUS_FUZZ_RUNS", RUNS),
        figure("NIMBUS_FUZZ_SEED", SEED),
    );
    println!(
        "{name}: {} inputs and {runs} mutations, NIMBUS_FUZZ_SEED={seed}",
        inputs.len()
    );
    let mut rng = fastrand::Rng::with_seed(seed);
    for turn in 0..runs {
        // Every fourth input is bytes alone, which makes better recipes than text does.
        let input = if turn % 4 == 0 {
            let length = rng.usize(0..512);
            std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
        } else {
            mutate::next(&mut rng, &inputs, target.words)
        };
        run(target, &input);
    }
}

macro_rules! targets {
    ($($name:ident),+) => {
        $(#[test]
        fn $name() {
            bounded(stringify!($name));
        })+

        #[test]
        fn every_target_is_tested_and_has_a_binary() {
            let tested = [$(stringify!($name)),+];
            assert_eq!(ALL.map(|target| target.name), tested);
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let mut binaries: Vec<String> = fs::read_dir(root.join("fuzz_targets"))
                .unwrap()
                .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            binaries.sort();
            assert_eq!(binaries, tested);
        }
    };
}

targets!(
    audit_line,
    audit_segment,
    backup_stream,
    commit_record,
    cursor,
    id,
    json_value,
    key,
    manifest,
    policy,
    query,
    sealed_stream,
    subject,
    token_file,
    validator
);
