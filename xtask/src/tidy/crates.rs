//! Which crate may depend on which: the picture in ARCHITECTURE.md as a table (design.md section 1).
//! Must not know what a manifest looks like: it reads `cargo metadata`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;

/// Every crate of the workspace with the crates of the workspace that its code may use.
const EDGES: [(&str, &[&str]); 13] = [
    (
        "nimbus",
        &[
            "nimbus-auth",
            "nimbus-core",
            "nimbus-crypto",
            "nimbus-http",
            "nimbus-policy",
            "nimbus-runtime",
            "nimbus-storage",
        ],
    ),
    ("nimbus-auth", &["nimbus-core"]),
    // Rows about the storage engine or policies alone link them; everything else is driven from outside.
    (
        "nimbus-bench",
        &[
            "nimbus-crypto",
            "nimbus-libsql-primary",
            "nimbus-policy",
            "nimbus-storage",
        ],
    ),
    ("nimbus-core", &[]),
    ("nimbus-crypto", &[]),
    // A server for its tests, as npm and Debian have others; it is no part of Nimbus.
    ("nimbus-e2e", &["nimbus-libsql-primary"]),
    // Calls the decoders of every room through the doors that the feature `fuzzing` opens.
    (
        "nimbus-fuzz",
        &[
            "nimbus-auth",
            "nimbus-core",
            "nimbus-crypto",
            "nimbus-http",
            "nimbus-policy",
            "nimbus-storage",
        ],
    ),
    (
        "nimbus-http",
        &[
            "nimbus-auth",
            "nimbus-core",
            "nimbus-policy",
            "nimbus-runtime",
            "nimbus-storage",
        ],
    ),
    ("nimbus-libsql-primary", &[]),
    ("nimbus-policy", &["nimbus-core"]),
    ("nimbus-runtime", &["nimbus-core"]),
    ("nimbus-storage", &["nimbus-core", "nimbus-crypto"]),
    ("xtask", &[]),
];

/// Crates that drive the product from outside, so that even their tests may not link it.
const OUTSIDERS: [&str; 3] = ["nimbus-e2e", "nimbus-libsql-primary", "xtask"];

/// Third-party crates that only some rooms may know; `*` at the end stands for any ending.
const FENCES: [(&[&str], &[&str]); 6] = [
    // The baselines of nimbus-bench are bare axum and bare SQLite.
    (&["axum*", "tower*"], &["nimbus-bench", "nimbus-http"]),
    // The guard of `fetch` resolves names for the client of deno_fetch, in the client's types.
    (
        &["hyper*"],
        &[
            "nimbus-bench",
            "nimbus-http",
            "nimbus-libsql-primary",
            "nimbus-runtime",
            // Hrana over HTTP is how a libSQL primary is spoken to.
            "nimbus-storage",
        ],
    ),
    (
        &["libsql*", "redb", "rusqlite*", "sqlx*"],
        &["nimbus-bench", "nimbus-libsql-primary", "nimbus-storage"],
    ),
    (
        &["anyhow"],
        &["nimbus", "nimbus-bench", "nimbus-e2e", "xtask"],
    ),
    (
        &[
            "aws-config",
            "aws-credential-types",
            "aws-sdk-*",
            "aws-smithy-*",
        ],
        &["nimbus-crypto"],
    ),
    (&["deno_*", "v8"], &["nimbus-runtime"]),
];

/// The crate that may ask for the feature that opens private formats to it.
const FUZZING: (&str, &str) = ("fuzzing", "nimbus-fuzz");

/// One crate of the workspace.
#[derive(Debug, Default)]
pub(crate) struct Package {
    name: String,
    /// Path of its manifest below the workspace root.
    pub(crate) manifest: String,
    dependencies: Vec<Dependency>,
    /// Names of its integration-test binaries.
    test_binaries: Vec<String>,
}

#[derive(Debug)]
struct Dependency {
    name: String,
    /// Whether only tests, examples and benches see it.
    dev: bool,
    /// Whether it asks for the feature of [`FUZZING`].
    fuzzing: bool,
}

/// Reads the crates of the workspace from what `cargo metadata --no-deps` printed.
///
/// # Errors
/// When the metadata lacks a field that cargo documents.
pub(crate) fn packages(metadata: &Value, root: &Path) -> Result<Vec<Package>> {
    let list = array(metadata, "packages")?;
    list.iter().map(|package| read(package, root)).collect()
}

fn read(package: &Value, root: &Path) -> Result<Package> {
    let manifest = Path::new(text(package, "manifest_path")?);
    let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
    let mut read = Package {
        name: text(package, "name")?.to_owned(),
        manifest: manifest.to_string_lossy().replace('\\', "/"),
        ..Package::default()
    };
    for dependency in array(package, "dependencies")? {
        let name = text(dependency, "name")?.to_owned();
        read.dependencies.push(Dependency {
            name,
            dev: dependency["kind"] == "dev",
            fuzzing: dependency["features"]
                .as_array()
                .is_some_and(|all| all.iter().any(|feature| feature == FUZZING.0)),
        });
    }
    for target in array(package, "targets")? {
        if array(target, "kind")?.iter().any(|kind| kind == "test") {
            read.test_binaries.push(text(target, "name")?.to_owned());
        }
    }
    Ok(read)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key]
        .as_str()
        .with_context(|| format!("cargo metadata has no text {key}"))
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key]
        .as_array()
        .with_context(|| format!("cargo metadata has no list {key}"))
}

/// Checks the edges between crates, the fences around third-party crates, and the number of
/// integration-test binaries.
pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let report = |message: String| Finding::new(&package.manifest, 0, message);
        findings.extend(edges(package, packages).into_iter().map(report));
        findings.extend(fences(package).into_iter().map(report));
        findings.extend(fuzzing(package).into_iter().map(report));
        findings.extend(test_binaries(package).into_iter().map(report));
    }
    findings
}

fn edges(package: &Package, packages: &[Package]) -> Vec<String> {
    let name = &package.name;
    let Some((_, allowed)) = EDGES.iter().find(|(of, _)| of == name) else {
        return vec![format!(
            "crate {name} is not in the table of edges; add it to xtask/src/tidy/crates.rs and ARCHITECTURE.md"
        )];
    };
    let ours = |dependency: &&Dependency| {
        packages
            .iter()
            .any(|package| package.name == dependency.name)
            || EDGES.iter().any(|(of, _)| *of == dependency.name)
    };
    // What a test borrows does not shape the product; outsiders may not even borrow.
    let counts = |dependency: &&Dependency| !dependency.dev || OUTSIDERS.contains(&name.as_str());
    let dependencies = package.dependencies.iter().filter(ours).filter(counts);
    dependencies
        .filter(|dependency| !allowed.contains(&dependency.name.as_str()))
        .map(|dependency| {
            let other = &dependency.name;
            format!("{name} may not depend on {other}: edges point down only, see ARCHITECTURE.md")
        })
        .collect()
}

fn fences(package: &Package) -> Vec<String> {
    let mut messages = Vec::new();
    for (fenced, owners) in FENCES {
        if owners.contains(&package.name.as_str()) {
            continue;
        }
        for Dependency { name, .. } in &package.dependencies {
            if fenced.iter().any(|pattern| matches(pattern, name)) {
                let owners = owners.join(", ");
                messages.push(format!(
                    "only {owners} may depend on {name}, tests included"
                ));
            }
        }
    }
    messages
}

/// The doors of the fuzz targets stay shut in everything else, tests included.
fn fuzzing(package: &Package) -> Option<String> {
    let (feature, owner) = FUZZING;
    let asks = package.dependencies.iter().find(|other| other.fuzzing);
    asks.filter(|_| package.name != owner).map(|other| {
        format!(
            "only {owner} may ask for the feature `{feature}` of {}",
            other.name
        )
    })
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn test_binaries(package: &Package) -> Option<String> {
    let count = package.test_binaries.len();
    (count > 1).then(|| {
        let names = package.test_binaries.join(", ");
        format!(
            "{count} integration-test binaries ({names}); link one, with the others as its modules"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The messages for a workspace of these crates, each with its dependencies (kind, name).
    fn messages(crates: &[(&str, &[(&str, &str)])]) -> Vec<String> {
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<Value> = dependencies
                    .iter()
                    .map(|(kind, name)| match *kind {
                        "normal" => json!({ "name": name, "kind": null }),
                        kind => json!({ "name": name, "kind": kind }),
                    })
                    .collect();
                json!({
                    "name": name,
                    "manifest_path": format!("/checkout/{name}/Cargo.toml"),
                    "dependencies": dependencies,
                    "targets": [],
                })
            })
            .collect();
        let metadata = json!({ "packages": packages });
        let packages = super::packages(&metadata, Path::new("/checkout")).unwrap();
        check(&packages).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_allowed_picture_passes() {
        let found = messages(&[
            ("nimbus", &[("normal", "nimbus-http"), ("normal", "anyhow")]),
            (
                "nimbus-http",
                &[("normal", "nimbus-storage"), ("normal", "axum")],
            ),
            (
                "nimbus-storage",
                &[
                    ("normal", "nimbus-core"),
                    ("dev", "nimbus-auth"),
                    ("normal", "redb"),
                ],
            ),
            ("nimbus-core", &[("normal", "serde")]),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_forbidden_edge_fails() {
        for (from, kind, to) in [
            ("nimbus-core", "normal", "nimbus-auth"),
            ("nimbus-crypto", "normal", "nimbus-core"),
            ("nimbus-auth", "normal", "nimbus-storage"),
            ("nimbus-storage", "build", "nimbus-http"),
            ("nimbus-runtime", "normal", "nimbus-storage"),
            ("nimbus-e2e", "normal", "nimbus-core"),
            ("nimbus-e2e", "dev", "nimbus-core"),
            ("nimbus-libsql-primary", "dev", "nimbus-storage"),
            ("nimbus-http", "normal", "nimbus-libsql-primary"),
            ("xtask", "normal", "nimbus"),
            ("nimbus-http", "normal", "nimbus-crypto"),
        ] {
            let found = messages(&[(from, &[(kind, to)])]);
            let start = format!("{from}/Cargo.toml: {from} may not depend on {to}");
            assert!(
                found.len() == 1 && found[0].starts_with(&start),
                "{from} {kind} {to}: {found:?}"
            );
        }
    }

    #[test]
    fn a_crate_that_the_table_does_not_list_fails() {
        let found = messages(&[("nimbus-extra", &[])]);
        assert!(
            found.len() == 1 && found[0].contains("not in the table"),
            "{found:?}"
        );
        let found = messages(&[
            ("nimbus-core", &[("normal", "nimbus-extra")]),
            ("nimbus-extra", &[]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_fenced_dependency_fails_elsewhere() {
        for (owner, dependency) in [
            ("nimbus-auth", "axum"),
            ("nimbus-auth", "hyper-util"),
            ("nimbus", "tower-http"),
            ("nimbus-http", "rusqlite"),
            ("nimbus-core", "redb"),
            ("nimbus-policy", "sqlx-core"),
            ("nimbus", "libsql"),
            ("nimbus-http", "anyhow"),
            ("nimbus-http", "deno_core"),
            ("nimbus", "v8"),
        ] {
            for kind in ["normal", "build", "dev"] {
                let found = messages(&[(owner, &[(kind, dependency)])]);
                let end = format!("may depend on {dependency}, tests included");
                assert!(
                    found.len() == 1 && found[0].ends_with(&end),
                    "{owner} {dependency}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn the_door_of_the_fuzz_targets_is_theirs_alone() {
        let count = |name: &str| {
            let metadata = json!({ "packages": [{
                "name": name,
                "manifest_path": "/checkout/some/Cargo.toml",
                "dependencies": [{
                    "name": "nimbus-storage", "kind": null, "features": ["fuzzing"],
                }],
                "targets": [],
            }] });
            check(&packages(&metadata, Path::new("/checkout")).unwrap()).len()
        };
        assert_eq!(count("nimbus-fuzz"), 0);
        assert_eq!(count("nimbus"), 1);
    }

    #[test]
    fn a_second_integration_test_binary_fails() {
        let package = |tests: &[&str]| {
            let targets: Vec<Value> = tests
                .iter()
                .map(|name| json!({ "name": name, "kind": ["test"] }))
                .collect();
            json!({ "packages": [{
                "name": "nimbus-core",
                "manifest_path": "/checkout/crates/nimbus-core/Cargo.toml",
                "dependencies": [],
                "targets": targets,
            }] })
        };
        let count = |tests: &[&str]| {
            check(&packages(&package(tests), Path::new("/checkout")).unwrap()).len()
        };
        assert_eq!(count(&["all"]), 0);
        assert_eq!(count(&["all", "more"]), 1);
    }

    #[test]
    fn metadata_without_packages_is_an_error() {
        assert!(packages(&json!({}), Path::new("/checkout")).is_err());
    }
}
