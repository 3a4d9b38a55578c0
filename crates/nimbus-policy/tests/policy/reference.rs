//! `docs/policy-reference.md`: every key of a policy file, made from the JSON Schema and therefore from the types.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nimbus_policy::policy_schema;
use serde_json::{Map, Value};

const HEAD: &str = "# Keys of a policy file\n\nGenerated from the types that read the file (`NIMBUS_UPDATE_GOLDEN=1 cargo nextest run --cargo-profile ci -p \
                    nimbus-policy reference`);\n[policies.md](policies.md) is the guide. Keys in bold must be there.\n";

struct Reference<'a> {
    definitions: &'a Map<String, Value>,
    seen: BTreeSet<String>,
    out: String,
}

impl Reference<'_> {
    /// A mapping as a table, then those within it.
    fn mapping(&mut self, path: &str, schema: &Value) {
        let title = if path.is_empty() { "The file" } else { path };
        let _ = write!(self.out, "\n## {title}\n\n{}\n\n", text(schema));
        self.out
            .push_str("| key | value | meaning |\n|---|---|---|\n");
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        let mut nested = Vec::new();
        for (key, value) in properties {
            let name = if required.contains(&Value::from(key.as_str())) {
                format!("**`{key}`**")
            } else {
                format!("`{key}`")
            };
            let resolved = self.resolved(value);
            let kind = self.kind(value);
            let meaning = value
                .get("description")
                .map_or_else(|| text(&resolved), |_| text(value));
            let _ = writeln!(
                self.out,
                "| {name} | {kind} | {} |",
                meaning.replace('|', "\\|")
            );
            let item = resolved.get("items").map(|items| self.resolved(items));
            let inner = item.clone().unwrap_or(resolved);
            if inner.get("properties").is_some() {
                let list = if item.is_some() { "[]" } else { "" };
                let dot = if path.is_empty() { "" } else { "." };
                nested.push((format!("{path}{dot}{key}{list}"), inner));
            }
        }
        for (path, schema) in nested {
            if self.seen.insert(path.clone()) {
                self.mapping(&path, &schema);
            }
        }
    }

    fn resolved(&self, schema: &Value) -> Value {
        let name = schema["$ref"]
            .as_str()
            .and_then(|name| name.rsplit('/').next());
        name.map_or_else(|| schema.clone(), |name| self.definitions[name].clone())
    }

    fn kind(&self, schema: &Value) -> String {
        let resolved = self.resolved(schema);
        if let Some(value) = schema.get("const").or(resolved.get("const")) {
            return format!("`{value}`");
        }
        if let Some(words) = words(&resolved) {
            return words.join(", ");
        }
        match resolved["type"].as_str() {
            Some("array") => format!("list: {}", self.kind(&resolved["items"])),
            Some("object") => "mapping".to_owned(),
            Some("string") => "text".to_owned(),
            Some("integer") => "whole number".to_owned(),
            Some("boolean") => "`true` or `false`".to_owned(),
            other => panic!("a type that the reference does not know: {other:?} in {resolved}"),
        }
    }
}

/// The values of a choice.
fn words(schema: &Value) -> Option<Vec<String>> {
    let one_of = schema["oneOf"].as_array().or(schema["enum"].as_array())?;
    let word = |choice: &Value| match choice {
        Value::String(word) => vec![word.clone()],
        other => {
            let list = other["enum"].as_array().cloned().unwrap_or_default();
            let all = other.get("const").cloned().into_iter().chain(list);
            all.filter_map(|word| word.as_str().map(str::to_owned))
                .collect()
        }
    };
    let words = one_of.iter().flat_map(word);
    Some(words.map(|word| format!("`{word}`")).collect())
}

fn text(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_published_reference_is_current() {
    let schema = policy_schema();
    let mut reference = Reference {
        definitions: schema["$defs"].as_object().unwrap(),
        seen: BTreeSet::new(),
        out: HEAD.to_owned(),
    };
    reference.mapping("", &schema);
    let path = Path::new("../../docs/policy-reference.md");
    if std::env::var_os("NIMBUS_UPDATE_GOLDEN").is_some() {
        fs::write(path, &reference.out).unwrap();
    }
    let published = fs::read_to_string(path).unwrap_or_default();
    assert!(
        published == reference.out,
        "{} is not current",
        path.display()
    );
}
