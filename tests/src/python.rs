//! The Python of the tests: a virtual environment in the build directory that `cargo xtask setup` fills
//! from `tests/requirements.txt`.
//!
//! It must not know what is run with it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter that has what `tests/requirements.txt` lists: `NIMBUS_TEST_PYTHON`, or
/// `<target>/python` counted from `<target>/<profile>/deps/<this test>`.
pub fn python() -> Command {
    let named = std::env::var_os("NIMBUS_TEST_PYTHON").filter(|value| !value.is_empty());
    let path = named.map_or_else(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no Python environment at {}: `cargo xtask setup` makes it",
        path.display()
    );
    let mut command = Command::new(path);
    // Neither the user's packages nor the directory that the test happens to run in.
    command.arg("-I");
    command
}

fn beside() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().nth(3).unwrap_or(Path::new("."));
    target.join("python/bin/python")
}
