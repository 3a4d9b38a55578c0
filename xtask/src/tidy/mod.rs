//! The rules of the house that the compiler and clippy do not know, run by `cargo xtask tidy` and by a test.
//! Must not know how the tree is built: it reads files and `cargo metadata`.

mod crates;
mod files;
mod manifests;
mod rust;
mod source;
mod tree;

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::shell;

/// One broken rule, and where.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Finding {
    /// Path below the workspace root, with forward slashes.
    path: String,
    /// Line number from 1; 0 when the finding is about the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks the whole tree and returns what breaks a rule, in order of path and line.
///
/// # Errors
/// When a file or the workspace metadata cannot be read.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let tree = tree::read(root)?;
    let packages = crates::packages(&shell::metadata(root)?, root)?;
    let mut findings = Vec::new();

    findings.extend(crates::check(&packages));
    findings.extend(files::check(&tree));
    for file in &tree {
        if packages.iter().any(|package| package.manifest == file.path) {
            findings.extend(manifests::check(file));
        }
        if file.path.ends_with(".rs") {
            findings.extend(rust::check(file));
        }
    }
    findings.sort();
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let findings = check(&shell::root().unwrap()).unwrap();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
    }

    #[test]
    fn a_finding_reads_as_path_line_message() {
        assert_eq!(
            Finding::new("a/b.rs", 3, "bad").to_string(),
            "a/b.rs:3: bad"
        );
        assert_eq!(Finding::new("a/b.rs", 0, "bad").to_string(), "a/b.rs: bad");
    }
}
