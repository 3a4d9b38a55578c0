//! The files of the checkout, read once into memory so that the rules are plain functions over text.
//! Must not know any rule.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One file of the checkout.
#[derive(Debug)]
pub(crate) struct File {
    /// Path below the workspace root, with forward slashes.
    pub(crate) path: String,
    /// What it holds; empty for a kind of file whose text no rule reads.
    pub(crate) text: String,
}

/// Kinds of file whose text is read.
const TEXT: [&str; 4] = [".md", ".rs", ".sh", ".toml"];

/// Directories that hold what programs wrote. Hidden ones are left out as well.
const GENERATED: [&str; 2] = ["node_modules", "target"];

/// Reads every file below `root`, in order of path; symbolic links are not followed.
///
/// # Errors
/// When a directory or a text file cannot be read, or there is no Rust file at all, which
/// would let every rule pass.
pub(crate) fn read(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for path in entries(&dir)? {
            let kind = fs::symlink_metadata(&path)?.file_type();
            if kind.is_dir() && !is_skipped(root, &path) {
                pending.push(path);
            } else if kind.is_file() {
                files.push(file(root, &path)?);
            }
        }
    }
    if !files.iter().any(|file| file.path.ends_with(".rs")) {
        bail!("no Rust file below {}", root.display());
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listing = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    listing.map(|entry| Ok(entry?.path())).collect()
}

fn is_skipped(root: &Path, dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // `data` at the top is where `nimbus start` keeps its files unless told otherwise.
    name.starts_with('.') || GENERATED.contains(&&*name) || dir == root.join("data")
}

fn file(root: &Path, path: &Path) -> Result<File> {
    let below = path
        .strip_prefix(root)?
        .to_string_lossy()
        .replace('\\', "/");
    let text = if TEXT.iter().any(|end| below.ends_with(end)) {
        fs::read_to_string(path).with_context(|| format!("cannot read {below} as UTF-8 text"))?
    } else {
        String::new()
    };
    Ok(File { path: below, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    #[test]
    fn reads_sources_and_skips_what_is_generated() {
        let tree = read(&shell::root().unwrap()).unwrap();
        let this = tree
            .iter()
            .find(|file| file.path == "xtask/src/tidy/tree.rs")
            .unwrap();
        assert!(
            this.text
                .contains("reads_sources_and_skips_what_is_generated")
        );
        assert!(
            tree.iter()
                .any(|file| file.path == "LICENSE" && file.text.is_empty())
        );
        assert!(!tree.iter().any(|file| file.path.starts_with(".git/")));
    }

    #[test]
    fn skips_by_name_and_place() {
        let root = Path::new("/checkout");
        for (dir, expected) in [
            ("target", true),
            ("fuzz/target", true),
            (".git", true),
            ("data", true),
            ("crates/nimbus-core/src/data", false),
            ("crates", false),
        ] {
            assert_eq!(is_skipped(root, &root.join(dir)), expected, "{dir}");
        }
    }

    #[test]
    fn a_tree_without_rust_is_an_error() {
        let hooks = shell::root().unwrap().join(".config");
        assert!(read(&hooks).is_err());
    }
}
