//! Which JavaScript engine a build has, where V8's archive is, and what a build with QuickJS needs.
//! Must not know what is built: the tasks do.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::shell::Checkout;

/// Names the archive for the build script of the crate `v8`.
const ARCHIVE: &str = "RUSTY_V8_ARCHIVE";
/// Where Debian's libsimde-dev puts its headers; the WebAssembly part of QuickJS would fetch them otherwise.
const TOOLCHAIN: &str = "set(FETCHCONTENT_SOURCE_DIR_SIMDE /usr/include/simde CACHE PATH \"\")\n";
/// The crates whose features choose the engine. The others do not link it.
const CHOOSERS: [&str; 2] = ["nimbus", "nimbus-runtime"];

/// A JavaScript engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Engine {
    /// The product's engine, a prebuilt archive
    V8,
    /// Portable, slower, compiled from crates.io alone
    Quickjs,
}

/// The option of the tasks that build JavaScript.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Choice {
    /// The JavaScript engine; unless given, V8 where its archive is at hand, else QuickJS
    #[arg(long, value_enum)]
    pub(crate) engine: Option<Engine>,
}

/// The engine of a build, decided.
#[derive(Debug, Eq, PartialEq)]
enum Decision {
    /// V8 from this archive; without one the crate `v8` downloads it.
    V8(Option<OsString>),
    Quickjs,
    /// QuickJS, since nothing says where V8 is.
    Fallback,
}

/// Decides by what was asked for, what [`ARCHIVE`] says, and the archive beside the checkout if there is one.
fn decide(
    asked: Option<Engine>,
    told: Option<OsString>,
    shared: Option<PathBuf>,
) -> Result<Decision> {
    if asked == Some(Engine::Quickjs) {
        return Ok(Decision::Quickjs);
    }
    if let Some(told) = told.filter(|told| !told.is_empty()) {
        return Ok(Decision::V8(Some(named(told)?)));
    }
    Ok(match (asked, shared) {
        (_, Some(shared)) => Decision::V8(Some(shared.into())),
        (Some(Engine::V8), None) => Decision::V8(None),
        _ => Decision::Fallback,
    })
}

/// The archive that the environment names, as the build script finds it from wherever it runs.
fn named(told: OsString) -> Result<OsString> {
    let text = told.to_string_lossy();
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(told);
    }
    match fs::canonicalize(&told) {
        Ok(path) if path.is_file() => Ok(path.into()),
        _ => bail!("{ARCHIVE} names {text}, which is no file"),
    }
}

/// The archive for this machine in `../shared/v8`.
fn shared(root: &Path) -> Option<PathBuf> {
    let name = format!(
        "librusty_v8_simdutf_release_{}-unknown-linux-gnu.a.gz",
        env::consts::ARCH
    );
    let path = root.parent()?.join("shared/v8").join(name);
    (cfg!(target_os = "linux") && path.is_file()).then_some(path)
}

/// The checkout with its engine; says so when it is not the product's.
///
/// # Errors
/// When the environment names an archive that is not there, or the build directory cannot be written.
pub(crate) fn choose(checkout: Checkout, choice: Choice) -> Result<Checkout> {
    let decision = decide(choice.engine, env::var_os(ARCHIVE), shared(&checkout.root))?;
    match decision {
        Decision::V8(archive) => {
            let environment = archive.map(|archive| (ARCHIVE, archive));
            Ok(Checkout {
                environment: environment.into_iter().collect(),
                ..checkout
            })
        }
        Decision::Quickjs => quickjs(checkout),
        Decision::Fallback => {
            println!(
                "engine: QuickJS, since {ARCHIVE} names no archive of V8 and ../shared/v8 has none; `--engine v8` downloads it"
            );
            quickjs(checkout)
        }
    }
}

/// A build directory of its own: the features differ, so each build would undo the other.
fn quickjs(checkout: Checkout) -> Result<Checkout> {
    let target = checkout.target.join("quickjs");
    let toolchain = target.join("simde.cmake");
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    if fs::read_to_string(&toolchain).ok().as_deref() != Some(TOOLCHAIN) {
        fs::write(&toolchain, TOOLCHAIN)
            .with_context(|| format!("writing {}", toolchain.display()))?;
    }
    Ok(Checkout {
        root: checkout.root,
        target,
        engine: Engine::Quickjs,
        environment: vec![("CMAKE_TOOLCHAIN_FILE", toolchain.into())],
    })
}

impl Engine {
    /// What cargo is to be told for a build of these packages; of the whole workspace if there are none.
    pub(crate) fn features(self, packages: &[String]) -> &'static [&'static str] {
        let chooses = packages.is_empty()
            || packages
                .iter()
                .any(|package| CHOOSERS.contains(&package.as_str()));
        match self {
            Engine::Quickjs if chooses => &["--no-default-features", "--features", "quickjs"],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    #[test]
    fn the_engine_is_v8_where_its_archive_is_known() {
        let file = root().join("Cargo.toml");
        let shared = || Some(PathBuf::from("/shared/v8.a.gz"));
        let told = |text: &str| Some(OsString::from(text));
        let v8 = |path: &str| Decision::V8(Some(path.into()));
        let (asked_v8, asked_quickjs) = (Some(Engine::V8), Some(Engine::Quickjs));
        let named = file.to_str().unwrap();
        for (asked, told, shared, expected) in [
            (None, told(named), shared(), v8(named)),
            (
                None,
                told("https://x/v8.a.gz"),
                None,
                v8("https://x/v8.a.gz"),
            ),
            (None, None, shared(), v8("/shared/v8.a.gz")),
            (None, told(""), shared(), v8("/shared/v8.a.gz")),
            (None, None, None, Decision::Fallback),
            (asked_v8, None, None, Decision::V8(None)),
            (asked_v8, None, shared(), v8("/shared/v8.a.gz")),
            (asked_quickjs, told(named), shared(), Decision::Quickjs),
            (asked_quickjs, told("/nowhere"), None, Decision::Quickjs),
        ] {
            let case = format!("{asked:?} {told:?} {shared:?}");
            assert_eq!(decide(asked, told, shared).unwrap(), expected, "{case}");
        }
    }

    #[test]
    fn an_archive_that_is_not_there_is_an_error_and_no_fallback() {
        for asked in [None, Some(Engine::V8)] {
            let shared = Some(PathBuf::from("/shared/v8.a.gz"));
            let error = decide(asked, Some("/nowhere/v8.a.gz".into()), shared).unwrap_err();
            assert_eq!(
                error.to_string(),
                "RUSTY_V8_ARCHIVE names /nowhere/v8.a.gz, which is no file"
            );
        }
    }

    #[test]
    fn only_builds_with_a_worker_choose_an_engine() {
        let packages = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        for (names, chooses) in [
            (&[][..], true),
            (&["nimbus"], true),
            (&["nimbus-core", "nimbus-runtime"], true),
            (&["nimbus-core"], false),
            (&["nimbus-e2e"], false),
        ] {
            let features = Engine::Quickjs.features(&packages(names));
            assert_eq!(!features.is_empty(), chooses, "{names:?}");
            assert!(Engine::V8.features(&packages(names)).is_empty());
        }
    }

    #[test]
    fn quickjs_is_built_in_a_directory_of_its_own_without_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let checkout = Checkout::new("/checkout", dir.path());
        let choice = Choice {
            engine: Some(Engine::Quickjs),
        };
        let chosen = choose(checkout, choice).unwrap();
        assert_eq!(chosen.engine, Engine::Quickjs);
        assert_eq!(chosen.target, dir.path().join("quickjs"));
        let command = chosen.cargo(&["build"]);
        let toolchain = command
            .get_envs()
            .find(|(name, _)| *name == "CMAKE_TOOLCHAIN_FILE")
            .and_then(|(_, value)| value)
            .unwrap();
        let text = fs::read_to_string(toolchain).unwrap();
        assert!(text.contains("FETCHCONTENT_SOURCE_DIR_SIMDE /usr/include/simde"));
    }

    #[test]
    fn the_choosers_have_the_features() {
        for package in CHOOSERS {
            let dir = if package == "nimbus" {
                "bins"
            } else {
                "crates"
            };
            let path = root().join(dir).join(package).join("Cargo.toml");
            let manifest = fs::read_to_string(path).unwrap();
            for line in ["default = [\"v8\"]", "\nv8 = [", "\nquickjs = ["] {
                assert!(manifest.contains(line), "{package} lacks {line}");
            }
        }
    }

    fn root() -> PathBuf {
        shell::root().unwrap()
    }
}
