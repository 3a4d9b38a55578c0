//! The JSON Schemas that the repository publishes in `docs/schemas`: they are those of the types, and what commands print
//! obeys them. SARIF obeys the schema of OASIS.

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use nimbus_policy::command::{Command, Format, Outcome, run};
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
    sarif: Validator,
}

/// The schema of SARIF 2.1.0, with the formats (of URIs and the like) that it asks for.
fn sarif() -> Validator {
    let mut schema: Value =
        serde_json::from_str(include_str!("vendored/sarif-schema-2.1.0.json")).unwrap();
    // This one pattern of OASIS has a bracket too many and is none. Logs here name no language.
    for of in ["run", "toolComponent"] {
        let path = format!("/definitions/{of}/properties/language");
        let language = schema.pointer_mut(&path).unwrap().as_object_mut().unwrap();
        language.remove("pattern").unwrap();
    }
    jsonschema::draft7::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap()
}

/// Everything that is wrong with a value.
fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    let each = validator.iter_errors(value);
    each.map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
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
            sarif: sarif(),
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
        let errors = faults(validator, &value);
        assert!(errors.is_empty(), "{typed}: {errors:?}");
    }

    /// Checks a log by the schema of OASIS.
    pub(crate) fn check_sarif(&self, typed: &str, log: &Value) {
        let errors = faults(&self.sarif, log);
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

#[test]
fn the_schema_of_sarif_refuses_what_it_should() {
    let log = |uri: &str, level: &str, line: u64| {
        let place = serde_json::json!({
            "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": line}},
        });
        serde_json::json!({"version": "2.1.0", "runs": [{
            "tool": {"driver": {"name": "t"}},
            "results": [{"message": {"text": "m"}, "level": level, "locations": [place]}],
        }]})
    };
    let sarif = sarif();
    assert!(sarif.is_valid(&log("a/b%20c.yaml", "error", 1)));
    for (uri, level, line) in [
        ("a b.yaml", "error", 1),
        ("a.yaml", "high", 1),
        ("a.yaml", "error", 0),
    ] {
        assert!(
            !sarif.is_valid(&log(uri, level, line)),
            "{uri} {level} {line}"
        );
    }
}

#[test]
fn the_log_of_a_file_with_an_odd_name_is_sarif() {
    let published = Published::load();
    let name = "odd: 100% \u{fc}\u{1b}<#?>\\.yaml";
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("{}-{name}", std::process::id()));
    fs::copy("tests/policy/files/prove-broad-egress.yaml", &path).unwrap();
    let command = Command::Prove {
        file: path.clone(),
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let outcome = run(&command, Format::Sarif, false);
    fs::remove_file(&path).unwrap();
    let log: Value = serde_json::from_str(&outcome.stdout).unwrap();
    published.check_sarif("prove", &log);
    let location = &log["runs"][0]["results"][0]["locations"][0]["physicalLocation"];
    let uri = location["artifactLocation"]["uri"].as_str().unwrap();
    assert!(
        uri.ends_with("-odd%3A%20100%25%20%C3%BC%1B%3C%23%3F%3E%5C.yaml"),
        "{uri}"
    );
}
