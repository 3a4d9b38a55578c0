//! Rules about files of any kind: their names, their white space, and which ones must exist.
//! Must not know Rust.

use super::Finding;
use super::tree::File;

/// Documents that every reader of the repository looks for.
const REQUIRED: [&str; 5] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
];

/// Checks the names and the white space of every file.
pub(crate) fn check(tree: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for required in REQUIRED {
        if !tree.iter().any(|file| file.path == required) {
            findings.push(Finding::new(required, 0, "is missing from the repository"));
        }
    }
    for file in tree {
        findings.extend(name(&file.path));
        findings.extend(white_space(file));
    }
    findings
}

fn name(path: &str) -> Option<Finding> {
    let (_, source) = path.strip_prefix("crates/")?.split_once("/src/")?;
    let odd = |c: char| c.is_whitespace() || c.is_uppercase();
    source.contains(odd).then(|| {
        Finding::new(
            path,
            0,
            "source file names have no spaces and no capital letters",
        )
    })
}

fn white_space(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in file.text.split('\n').enumerate() {
        if line.ends_with(char::is_whitespace) {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "white space at the end of the line",
            ));
        }
        if file.path.ends_with(".rs") && line.contains('\t') {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "a tab; indent with spaces, write \\t in strings",
            ));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        findings.push(Finding::new(
            &file.path,
            0,
            "the last line does not end with a newline",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_missing_document_fails() {
        let mut tree: Vec<File> = REQUIRED.iter().map(|path| file(path, "")).collect();
        assert!(check(&tree).is_empty());
        tree.retain(|file| file.path != "CHANGELOG.md");
        let found = check(&tree);
        assert!(
            found.len() == 1 && found[0].path == "CHANGELOG.md",
            "{found:?}"
        );
    }

    #[test]
    fn odd_names_fail_in_crate_sources_only() {
        for (path, bad) in [
            ("crates/nimbus-core/src/value.rs", false),
            ("crates/nimbus-core/src/Value.rs", true),
            ("crates/nimbus-core/src/two words.rs", true),
            ("crates/nimbus-core/src/Key/mod.rs", true),
            ("docs/HTTP.md", false),
        ] {
            assert_eq!(name(path).is_some(), bad, "{path}");
        }
    }

    #[test]
    fn stray_white_space_fails() {
        for (path, text, expected) in [
            ("a.rs", "fn a() {}\n", vec![]),
            ("a.rs", "", vec![]),
            ("a.rs", "fn a() {} \n", vec![1]),
            ("a.rs", "fn a() {}\r\n", vec![1]),
            ("a.rs", "fn a() {\n\ta();\n}\n", vec![2]),
            ("a.rs", "fn a() {}", vec![0]),
            ("a.toml", "a = 1\nb = 2  \n", vec![2]),
            ("Makefile.md", "\tcode\n", vec![]),
        ] {
            let found: Vec<usize> = white_space(&file(path, text))
                .iter()
                .map(|finding| finding.line)
                .collect();
            assert_eq!(found, expected, "{path} {text:?}");
        }
    }
}
