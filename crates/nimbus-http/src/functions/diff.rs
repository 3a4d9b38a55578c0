//! What a deployment changes, in words that a user knows.
//!
//! Pure: it compares two deployments. It must not know how they are made or kept.

use std::collections::{BTreeMap, BTreeSet};

use nimbus_runtime::Analysis;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;

use super::checks::identifier;

/// Names that appeared, changed and went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Changes {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are declared in another way.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

/// What differs from the deployment before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeploymentDiff {
    /// Functions (`messages:list`); changed are those with another kind, visibility or validator.
    pub functions: Changes,
    /// Routes of `http.js`, such as `GET /path`.
    pub http_routes: Changes,
    /// Crons by name.
    pub crons: Changes,
    /// Modules by path, shared chunks included; changed are those with another source.
    pub modules: Changes,
    /// Indexes (`table.index`).
    pub indexes: Changes,
    /// Whether the schema differs, indexes included.
    pub schema_changed: bool,
    /// Whether `auth.config` differs.
    pub auth_changed: bool,
}

/// One side of a comparison.
#[derive(Default)]
pub(crate) struct Side {
    pub analysis: Analysis,
    /// Hashes of modules by path.
    pub modules: BTreeMap<String, String>,
}

/// Compares; indexes and schema are for the store to tell.
pub(crate) fn between(old: &Side, new: &Side) -> DeploymentDiff {
    DeploymentDiff {
        functions: changes(&functions(&old.analysis), &functions(&new.analysis)),
        http_routes: changes(&routes(&old.analysis), &routes(&new.analysis)),
        crons: changes(&crons(&old.analysis), &crons(&new.analysis)),
        modules: changes(&old.modules, &new.modules),
        auth_changed: old.analysis.auth != new.analysis.auth,
        ..DeploymentDiff::default()
    }
}

fn changes<V: PartialEq>(old: &BTreeMap<String, V>, new: &BTreeMap<String, V>) -> Changes {
    let names = |these: &BTreeMap<String, V>, keep: &dyn Fn(&str, &V) -> bool| {
        let kept = these.iter().filter(|(name, value)| keep(name, value));
        kept.map(|(name, _)| name.clone()).collect()
    };
    Changes {
        added: names(new, &|name, _| !old.contains_key(name)),
        changed: names(new, &|name, value| {
            old.get(name).is_some_and(|before| before != value)
        }),
        removed: names(old, &|name, _| !new.contains_key(name)),
    }
}

/// How each function is declared, its place in the file left out.
fn functions(analysis: &Analysis) -> BTreeMap<String, impl PartialEq + use<>> {
    let mut all = BTreeMap::new();
    for (path, module) in &analysis.modules {
        for function in &module.functions {
            let mut declared = function.clone();
            declared.position = None;
            all.insert(identifier(path, &function.name), declared);
        }
    }
    all
}

fn routes(analysis: &Analysis) -> BTreeMap<String, ()> {
    let modules = analysis.modules.values();
    let routes: BTreeSet<String> = modules
        .flat_map(|module| module.http_routes.iter().flatten())
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    routes.into_iter().map(|route| (route, ())).collect()
}

fn crons(analysis: &Analysis) -> BTreeMap<String, Json> {
    let texts = analysis
        .modules
        .values()
        .filter_map(|module| module.crons.as_deref());
    // What is deployed was checked, so nothing is lost here.
    let parsed = texts.filter_map(|text| serde_json::from_str::<BTreeMap<String, Json>>(text).ok());
    parsed.flatten().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_runtime::{FunctionSpec, HttpRoute, ModuleAnalysis, UdfKind};

    use super::*;

    fn side(functions: &[(&str, UdfKind)], route: &str, cron: &str, hash: &str) -> Side {
        let functions = functions.iter().map(|(name, kind)| FunctionSpec {
            name: (*name).into(),
            kind: *kind,
            visibility: None,
            args: None,
            returns: None,
            position: Some((u32::try_from(hash.len()).unwrap(), 1)),
        });
        let module = ModuleAnalysis {
            functions: functions.collect(),
            http_routes: Some(vec![HttpRoute {
                path: route.into(),
                method: "GET".into(),
            }]),
            crons: Some(cron.into()),
        };
        let mut side = Side::default();
        side.analysis.modules.insert("d/m.js".into(), module);
        side.modules.insert("d/m.js".into(), hash.into());
        side
    }

    #[test]
    fn names_are_told_apart_by_what_they_declare() {
        use UdfKind::{Mutation, Query};
        let old = side(
            &[("a", Query), ("b", Query), ("c", Query)],
            "/x",
            r#"{"one":1,"two":2}"#,
            "aa",
        );
        let mut new = side(
            &[("a", Query), ("b", Mutation), ("d", Query)],
            "/y",
            r#"{"two":3,"three":3}"#,
            "bbb",
        );
        new.analysis.auth = Some("{}".into());
        let diff = between(&old, &new);
        let these = |added: &[&str], changed: &[&str], removed: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Changes {
                added: own(added),
                changed: own(changed),
                removed: own(removed),
            }
        };
        assert_eq!(diff.functions, these(&["d/m:d"], &["d/m:b"], &["d/m:c"]));
        assert_eq!(diff.http_routes, these(&["GET /y"], &[], &["GET /x"]));
        assert_eq!(diff.crons, these(&["three"], &["two"], &["one"]));
        assert_eq!(diff.modules, these(&[], &["d/m.js"], &[]));
        assert!(diff.auth_changed);
        assert_eq!(between(&new, &new), DeploymentDiff::default());
    }
}
