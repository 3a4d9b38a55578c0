//! Lists the JavaScript of Deno's extensions for `engine/sources.rs`, which puts it into the binary.
//!
//! deno_core remembers where those files were when it was compiled, and reads them when a realm is made without a
//! snapshot: on the machine that built the server, and there only. Must not know what the files do.

#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Crates whose extensions a realm of actions has.
const CRATES: [&str; 4] = ["deno_webidl", "deno_web", "deno_fetch", "deno_crypto"];

/// Where our own scripts are.
const OWN: &str = "src/engine/js";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // The versions of the crates are pinned in the workspace's manifest.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../../Cargo.toml");
    println!("cargo:rerun-if-changed={OWN}");
    if env::var_os("CARGO_FEATURE_ENGINE").is_none() {
        return Ok(());
    }
    let mut table = String::from("&[\n");
    for dir in crate_dirs(&root)? {
        for path in scripts(&dir)? {
            writeln!(table, "({path:?}, ascii_str_include!({path:?})),")?;
        }
    }
    // Our own are named from this checkout: another one that shares the build directory takes the table as it is.
    for path in scripts(&root.join(OWN))? {
        let name = path.file_name().unwrap_or_default().display();
        let path = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{OWN}/{name}\")");
        writeln!(table, "({path}, ascii_str_include!({path})),")?;
    }
    table.push(']');
    fs::write(Path::new(&env::var("OUT_DIR")?).join("sources.rs"), table)?;
    Ok(())
}

/// Where cargo keeps the crates.
fn crate_dirs(root: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    // This build has what it needs, but cargo asks for the crates of the whole workspace, and a fresh machine may
    // not have those yet.
    let output = match metadata(root, &["--offline"])? {
        output if output.status.success() => output,
        _ => metadata(root, &[])?,
    };
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let dir = |name: &str| {
        let package = packages.iter().find(|package| package["name"] == name)?;
        Path::new(package["manifest_path"].as_str()?).parent()
    };
    CRATES
        .iter()
        .map(|name| Ok(dir(name).ok_or_else(|| format!("no crate {name}"))?.into()))
        .collect()
}

fn metadata(root: &Path, more: &[&str]) -> Result<Output, Box<dyn Error>> {
    let mut command = Command::new(env::var("CARGO")?);
    command.args(["metadata", "--format-version", "1", "--locked"]);
    command.args(["--filter-platform", &env::var("TARGET")?]);
    command.args(more);
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    Ok(command.output()?)
}

/// The scripts of a directory that deno_core can take, in order of their names.
fn scripts(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "js") && fs::read(&path)?.is_ascii() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
