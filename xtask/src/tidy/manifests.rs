//! Rules about the manifests of member crates: lints and versions come from the workspace.
//! Must not know which crate may use which. Reads as much TOML as manifests use, line by line.

use std::collections::BTreeMap;

use super::Finding;
use super::tree::File;

/// Fields of `[package]` that have one value for the whole workspace.
const SHARED_FIELDS: [&str; 4] = ["edition", "license", "rust-version", "version"];

/// One `key = value` of a manifest.
#[derive(Debug, Eq, PartialEq)]
struct Entry {
    /// Section and key, joined by a dot: `dependencies.serde.workspace`.
    key: String,
    /// The value without spaces; a value over several lines is joined.
    value: String,
    line: usize,
}

/// Checks the manifest of one member crate.
pub(crate) fn check(manifest: &File) -> Vec<Finding> {
    let entries = entries(&manifest.text);
    let inherits = |key: &str| {
        entries
            .iter()
            .any(|entry| entry.key == key && entry.value == "true")
    };
    let mut findings = Vec::new();
    if !inherits("lints.workspace") {
        let message = "lacks `[lints] workspace = true`";
        findings.push(Finding::new(&manifest.path, 0, message));
    }
    for field in SHARED_FIELDS {
        if !inherits(&format!("package.{field}.workspace")) {
            let message = format!("[package] lacks `{field}.workspace = true`");
            findings.push(Finding::new(&manifest.path, 0, message));
        }
    }
    for (name, (line, inherits)) in dependencies(&entries) {
        if !inherits {
            let message = format!(
                "{name} does not come from the workspace; name its version in the root Cargo.toml and write `workspace = true` here"
            );
            findings.push(Finding::new(&manifest.path, line, message));
        }
    }
    findings
}

/// Each dependency (`dev-dependencies.proptest`) with its first line and whether it is inherited.
fn dependencies(entries: &[Entry]) -> BTreeMap<String, (usize, bool)> {
    let mut found = BTreeMap::new();
    for entry in entries {
        let Some(at) = entry.key.find("dependencies.") else {
            continue;
        };
        let (section, rest) = entry.key.split_at(at + "dependencies.".len());
        let (name, field) = rest.split_once('.').unwrap_or((rest, ""));
        let inherits = match field {
            "" => entry.value.starts_with('{') && entry.value.contains("workspace=true"),
            field => field == "workspace" && entry.value == "true",
        };
        let dependency = found
            .entry(format!("{section}{name}"))
            .or_insert((entry.line, false));
        dependency.1 |= inherits;
    }
    found
}

fn entries(text: &str) -> Vec<Entry> {
    let mut section = String::new();
    let mut found: Vec<Entry> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let line = without_comment(line).trim();
        if let (true, Some(entry)) = (open, found.last_mut()) {
            entry.value.push_str(&without_spaces(line));
            open = is_open(&entry.value);
        } else if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']).trim());
        } else if let Some((key, value)) = line.split_once('=') {
            let key = format!("{section}{}", without_spaces(key));
            let value = without_spaces(value);
            open = is_open(&value);
            found.push(Entry {
                key,
                value,
                line: index + 1,
            });
        }
    }
    found
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

/// The line up to a `#` that is outside a string.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (at, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..at],
            _ => {}
        }
    }
    line
}

/// Whether a list or table goes on in the next line.
fn is_open(value: &str) -> bool {
    let count = |set: [char; 2]| value.chars().filter(|c| set.contains(c)).count();
    count(['[', '{']) > count([']', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[package]
name = "nimbus-core"
version.workspace = true # a comment
edition.workspace = true
rust-version.workspace = true
license.workspace = true

[lints]
workspace = true

[dependencies]
serde.workspace = true
tokio = { workspace = true, features = [
    "fs",
    "rt",
] }

[target.'cfg(unix)'.dependencies]
rustix = { workspace = true }

[dev-dependencies.proptest]
workspace = true
features = ["std"]
"#;

    fn findings(text: &str) -> Vec<String> {
        let file = File {
            path: "Cargo.toml".to_owned(),
            text: text.to_owned(),
        };
        check(&file).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_manifest_that_inherits_passes() {
        assert_eq!(findings(GOOD), [""; 0]);
    }

    #[test]
    fn a_manifest_without_the_lints_of_the_workspace_fails() {
        for bad in [
            GOOD.replace("[lints]\nworkspace = true", ""),
            GOOD.replacen("= true\n\n[dep", "= false\n\n[dep", 1),
        ] {
            let found = findings(&bad);
            assert!(
                found.len() == 1 && found[0].contains("[lints]"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_field_of_its_own_fails() {
        let found = findings(&GOOD.replace("version.workspace = true #", "version = \"0.2.0\" #"));
        assert!(
            found.len() == 1 && found[0].contains("`version.workspace = true`"),
            "{found:?}"
        );
    }

    #[test]
    fn a_pinned_dependency_fails() {
        for (good, bad, line) in [
            ("serde.workspace = true", "serde = \"1\"", 12),
            ("serde.workspace = true", "serde.version = \"1\"", 12),
            (
                "serde.workspace = true",
                "nimbus-core = { path = \"../nimbus-core\" }",
                12,
            ),
            (
                "tokio = { workspace = true,",
                "tokio = { version = \"1\",",
                13,
            ),
            (
                "rustix = { workspace = true }",
                "rustix = { version = \"1\" }",
                19,
            ),
            (
                "workspace = true\nfeatures",
                "version = \"1\"\nfeatures",
                22,
            ),
        ] {
            let found = findings(&GOOD.replace(good, bad));
            let start = format!("Cargo.toml:{line}: ");
            assert!(
                found.len() == 1 && found[0].starts_with(&start),
                "{bad}: {found:?}"
            );
        }
    }
}
