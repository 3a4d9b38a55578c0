//! The JSON Schemas that the repository publishes in `docs/schemas`: they are those of the types, and what commands print
//! obeys them.

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use nimbus_policy::command::Outcome;
use nimbus_policy::{policy_schema, report_schemas};
use serde_json::Value;

fn dir() -> PathBuf {
    Path::new("../../docs/schemas").to_owned()
}

fn path(name: &str) -> PathBuf {
    dir().join(format!("{name}.schema.json"))
}

/// The published schemas, ready to check answers.
pub(crate) struct Published {
    validators: Vec<(&'static str, Validator)>,
}

impl Published {
    pub(crate) fn load() -> Published {
        let load = |(name, _): (&'static str, Value)| {
            let text = fs::read_to_string(path(name)).unwrap_or_else(|_| "false".to_owned());
            let schema: Value = serde_json::from_str(&text).unwrap();
            (name, jsonschema::validator_for(&schema).unwrap())
        };
        Published {
            validators: report_schemas().into_iter().map(load).collect(),
        }
    }

    /// Checks the JSON of a command by the schema that is for it.
    pub(crate) fn check(&self, typed: &str, outcome: &Outcome) {
        let name = match typed.split(' ').next().unwrap() {
            _ if outcome.exit.code() == 3 => "policy-errors",
            "prove" => "policy-prove",
            "diff" => "policy-diff",
            "suggest" => "policy-suggest",
            _ => "policy-explain",
        };
        let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let (_, validator) = self
            .validators
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{typed}: {errors:?}");
    }
}

#[test]
fn published_schemas_are_those_of_the_types() {
    let all = report_schemas()
        .into_iter()
        .chain([("policy", policy_schema())]);
    for (name, schema) in all {
        let text = format!("{schema:#}\n");
        if std::env::var_os("NIMBUS_UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(dir()).unwrap();
            fs::write(path(name), &text).unwrap();
        }
        let published = fs::read_to_string(path(name)).unwrap_or_default();
        assert!(
            published == text,
            "{} is not current: NIMBUS_UPDATE_GOLDEN=1 writes it anew",
            path(name).display()
        );
        jsonschema::meta::validate(&schema).unwrap();
    }
}

#[test]
fn schemas_refuse_what_they_should() {
    let published = Published::load();
    for (name, validator) in &published.validators {
        assert!(!validator.is_valid(&serde_json::json!({})), "{name}");
    }
}
