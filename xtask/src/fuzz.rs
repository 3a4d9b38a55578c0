//! `cargo xtask fuzz`: runs the fuzz targets under libFuzzer for a while.
//! Must not know what a target checks: it lists the files in `fuzz/fuzz_targets`.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell::{self, Checkout};

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// A target of fuzz/fuzz_targets; all of them, one after the other, unless given
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the targets and stops at the first that finds something.
///
/// # Errors
/// When cargo-fuzz is missing, a build fails, or an input breaks a promise; cargo-fuzz then says
/// where the input is.
pub(crate) fn run(checkout: &Checkout, args: &Fuzz) -> Result<()> {
    if !shell::holds("command -v cargo-fuzz") {
        bail!("cargo-fuzz is missing; run `cargo install cargo-fuzz --locked`");
    }
    let all = targets(checkout)?;
    let chosen = match &args.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("{target} is no target; there are {}", all.join(", ")),
    };
    let build = checkout.target.join("fuzz");
    for target in chosen {
        println!("== {target}");
        // What it finds goes beside the build; what is worth keeping is put into fuzz/corpus by hand.
        let found = build.join("corpus").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
        let seeds = checkout.root.join("fuzz/corpus").join(&target);
        let mut command = checkout.cargo(&["fuzz", "run", "--features", "libfuzzer"]);
        // The instrumentation is a flag that only nightly compilers take without this.
        command.env("RUSTC_BOOTSTRAP", "1");
        // Linking each target with LTO would take longer than fuzzing it.
        command.env("CARGO_PROFILE_RELEASE_LTO", "off");
        command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        command.arg("--target-dir").arg(&build);
        command.arg(&target).arg(found).arg(seeds);
        command.args([
            "--",
            "-timeout=10",
            "-max_len=16384",
            "-print_final_stats=1",
        ]);
        command.arg(format!("-max_total_time={}", args.seconds));
        shell::run(&mut command)?;
    }
    Ok(())
}

fn targets(checkout: &Checkout) -> Result<Vec<String>> {
    let dir = checkout.root.join("fuzz/fuzz_targets");
    let listing = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in listing {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_and_have_a_corpus() {
        let checkout = Checkout::new(shell::root().unwrap(), "/build");
        let found = targets(&checkout).unwrap();
        assert!(found.contains(&"commit_record".to_owned()), "{found:?}");
        for target in found {
            let corpus = checkout.root.join("fuzz/corpus").join(target);
            assert!(corpus.is_dir(), "{}", corpus.display());
        }
    }
}
