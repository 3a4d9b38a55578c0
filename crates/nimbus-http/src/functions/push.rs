//! What a deployment sends, read and checked as far as no code has to run: paths, kinds, numbers, sizes.
//!
//! The shape is that of the official command line (convex.md 4.3), so members that are not known are
//! passed over. This room must not know how modules are run or kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use nimbus_runtime::Module;
use nimbus_storage::MAX_MODULE_BYTES;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::extract::JsonBody;

/// Modules of one deployment at most (convex.md 4.5).
pub(crate) const MAX_MODULES: usize = 4_096;
/// Bytes of the message of a deployment at most.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1_024;
/// Bytes of a component of a module path at most (convex.md 1.4).
const MAX_COMPONENT_BYTES: usize = 64;
/// Bytes of a module path at most.
const MAX_PATH_BYTES: usize = 512;

/// Why a deployment was refused. The code is one that Convex tools know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct PushError {
    /// Such as `InvalidCron`.
    pub code: String,
    /// For whoever deploys.
    pub message: String,
}

impl PushError {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> PushError {
        PushError {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

/// Body of `POST deployments`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PushBody {
    /// Whether everything is checked and nothing changed.
    #[serde(default)]
    pub dry_run: bool,
    /// A note for the list of deployments; at most 1,024 bytes.
    #[serde(default)]
    pub message: Option<String>,
    /// The bundled application.
    pub app_definition: AppDefinition,
    /// Must be empty: components cannot be deployed.
    #[serde(default)]
    pub component_definitions: Vec<serde_json::Value>,
}

/// A bundled application.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppDefinition {
    /// `convex.config.js`, which may not use components.
    #[serde(default)]
    pub definition: Option<ModuleBody>,
    /// Must be empty: components cannot be deployed.
    #[serde(default)]
    pub dependencies: Vec<String>,
    /// `schema.js`; without one, no table is checked and no index stays.
    #[serde(default)]
    pub schema: Option<ModuleBody>,
    /// Every module of the application, shared chunks below `_deps/` included.
    pub changed_modules: Vec<ModuleBody>,
    /// Must be empty: every module is sent.
    #[serde(default)]
    pub unchanged_module_hashes: Vec<serde_json::Value>,
    /// Version of the package `convex` that is bundled.
    pub udf_server_version: String,
}

/// One bundled file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleBody {
    /// Such as `dir/messages.js`.
    pub path: String,
    /// The JavaScript.
    pub source: String,
    /// Its source map, JSON text.
    #[serde(default)]
    pub source_map: Option<String>,
    /// Must be `isolate`.
    pub environment: String,
}

impl JsonBody for PushBody {
    const EXAMPLE: &'static str = r#"{"dryRun":true,"appDefinition":{"schema":null,"changedModules":[],"udfServerVersion":"1.48.0"}}"#;
}

/// A deployment whose form is right.
pub(crate) struct Push {
    pub dry_run: bool,
    pub message: Option<String>,
    /// By path; the schema is not among them.
    pub modules: BTreeMap<String, Module>,
    pub schema: Option<Module>,
}

impl PushBody {
    /// Checks everything that the text alone shows.
    pub(crate) fn check(self) -> Result<Push, PushError> {
        let app = self.app_definition;
        if !self.component_definitions.is_empty() || !app.dependencies.is_empty() {
            let text =
                "components cannot be deployed here yet: remove `app.use(…)` from convex.config";
            return Err(PushError::new("ComponentsNotSupported", text));
        }
        if !app.unchanged_module_hashes.is_empty() {
            let text = "every module has to be sent; modules that are unchanged are found out here";
            return Err(PushError::new("InvalidModules", text));
        }
        if app.changed_modules.len() > MAX_MODULES {
            let text = format!(
                "a deployment has at most {MAX_MODULES} modules, and this one has {}",
                app.changed_modules.len()
            );
            return Err(PushError::new("TooManyModules", text));
        }
        check_text(
            "the message",
            self.message.as_deref().unwrap_or_default(),
            MAX_MESSAGE_BYTES,
        )?;
        check_text(
            "udfServerVersion",
            &app.udf_server_version,
            MAX_COMPONENT_BYTES,
        )?;
        if let Some(definition) = app.definition {
            alone(definition, "convex.config.js")?;
        }
        let schema = app
            .schema
            .map(|schema| alone(schema, "schema.js"))
            .transpose()?;
        let mut modules = BTreeMap::new();
        for module in app.changed_modules {
            check_module_path(&module.path)?;
            let (path, module) = taken(module)?;
            if modules.insert(path.clone(), module).is_some() {
                return Err(PushError::new(
                    "InvalidModules",
                    format!("the module {path} is there twice"),
                ));
            }
        }
        Ok(Push {
            dry_run: self.dry_run,
            message: self.message.filter(|text| !text.is_empty()),
            modules,
            schema,
        })
    }
}

/// A module that is sent apart and has one name only.
fn alone(module: ModuleBody, name: &str) -> Result<Module, PushError> {
    if module.path != name {
        let text = format!("the path must be {name}, and is `{}`", shown(&module.path));
        return Err(PushError::new("InvalidModules", text));
    }
    Ok(taken(module)?.1)
}

fn taken(module: ModuleBody) -> Result<(String, Module), PushError> {
    match module.environment.as_str() {
        "isolate" => {}
        "node" => {
            let text = format!(
                "{} is to run in Node.js (\"use node\"), which is not supported: remove the directive, or the file",
                module.path
            );
            return Err(PushError::new("NodeNotSupported", text));
        }
        other => {
            let text = format!(
                "{}: `{}` is no environment of modules",
                module.path,
                shown(other)
            );
            return Err(PushError::new("InvalidModules", text));
        }
    }
    let size = module.source.len() + module.source_map.as_ref().map_or(0, String::len);
    if size > MAX_MODULE_BYTES {
        let text = format!(
            "{} has {size} bytes with its source map, and a module has at most {MAX_MODULE_BYTES}",
            module.path
        );
        return Err(PushError::new("InvalidModules", text));
    }
    let code = Module {
        source: Arc::from(module.source),
        source_map: module.source_map.map(Arc::from),
    };
    Ok((module.path, code))
}

/// The rule of convex.md 1.4, with the shared chunks; `schema.js` and `convex.config.js` are no modules.
fn check_module_path(path: &str) -> Result<(), PushError> {
    let wrong = |why: &str| {
        let text = format!("`{}` is no path of a module: {why}", shown(path));
        Err(PushError::new("InvalidModulePath", text))
    };
    let Some(stem) = path.strip_suffix(".js") else {
        return wrong("it does not end with .js");
    };
    if path.len() > MAX_PATH_BYTES {
        return wrong("it is too long");
    }
    if matches!(path, "schema.js" | "convex.config.js") {
        return wrong("it is sent apart");
    }
    for (i, component) in stem.split('/').enumerate() {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        let within = component.len() <= MAX_COMPONENT_BYTES && component.bytes().all(allowed);
        if !within || !component.bytes().any(|b| b.is_ascii_alphanumeric()) {
            return wrong(
                "each part has 1 to 64 letters, digits, `_` and `.`, and not only the last two",
            );
        }
        if i == 0 && component == "_system" {
            return wrong("`_system` is the server's own");
        }
    }
    Ok(())
}

fn check_text(what: &str, text: &str, most: usize) -> Result<(), PushError> {
    if text.len() > most || text.chars().any(char::is_control) {
        let why = format!("{what} has more than {most} bytes, or control characters in it");
        return Err(PushError::new("InvalidModules", why));
    }
    Ok(())
}

/// The beginning of a text that is refused.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn module(path: &str) -> Json {
        json!({"path": path, "source": "export const x = 1;", "sourceMap": "{}", "environment": "isolate"})
    }

    fn check(app: Json) -> Result<Push, PushError> {
        let mut definition =
            json!({"schema": null, "changedModules": [], "udfServerVersion": "1.48.0"});
        for (name, value) in app.as_object().unwrap() {
            definition[name] = value.clone();
        }
        let body: PushBody = serde_json::from_value(json!({"appDefinition": definition})).unwrap();
        body.check()
    }

    #[test]
    fn a_push_of_the_official_command_line_is_read() {
        let push = check(json!({
            "definition": module("convex.config.js"),
            "dependencies": [],
            "schema": module("schema.js"),
            "changedModules": [module("a/b_1/c.d.js"), module("_deps/ABC.js"), module("auth.config.js")],
            "unchangedModuleHashes": [],
            "somethingNew": {"of": "a later version"},
        }))
        .unwrap();
        let paths: Vec<_> = push.modules.keys().map(String::as_str).collect();
        assert_eq!(paths, ["_deps/ABC.js", "a/b_1/c.d.js", "auth.config.js"]);
        assert!(push.schema.is_some() && !push.dry_run);
    }

    #[test]
    fn paths_that_no_function_could_be_called_by_are_refused() {
        let long = format!("{}.js", "a".repeat(65));
        let deep = format!("{}a.js", "abcdefgh/".repeat(60));
        for path in [
            "",
            ".js",
            "a.ts",
            "a",
            "/a.js",
            "a//b.js",
            "../a.js",
            "a/../b.js",
            "a/./b.js",
            "my-file.js",
            "a b.js",
            "é.js",
            "_.js",
            "a/..js",
            "_system/a.js",
            "schema.js",
            "convex.config.js",
            "a\\b.js",
            "a\0.js",
            &long,
            &deep,
        ] {
            let error = check(json!({"changedModules": [module(path)]}))
                .err()
                .unwrap_or_else(|| panic!("{path}"));
            assert_eq!(error.code, "InvalidModulePath", "{path}");
        }
    }

    #[test]
    fn each_fault_has_its_code() {
        let node = json!({"path": "a.js", "source": "", "environment": "node"});
        let other = json!({"path": "a.js", "source": "", "environment": "moon"});
        let many: Vec<Json> = (0..=MAX_MODULES)
            .map(|i| module(&format!("m{i}.js")))
            .collect();
        for (app, code) in [
            (json!({"changedModules": [node]}), "NodeNotSupported"),
            (json!({"changedModules": [other]}), "InvalidModules"),
            (
                json!({"changedModules": [module("a.js"), module("a.js")]}),
                "InvalidModules",
            ),
            (json!({"changedModules": many}), "TooManyModules"),
            (json!({"schema": module("other.js")}), "InvalidModules"),
            (json!({"definition": module("other.js")}), "InvalidModules"),
            (
                json!({"dependencies": ["../node_modules/x"]}),
                "ComponentsNotSupported",
            ),
            (json!({"unchangedModuleHashes": [{}]}), "InvalidModules"),
            (
                json!({"udfServerVersion": "x".repeat(65)}),
                "InvalidModules",
            ),
            (json!({"udfServerVersion": "1\n2"}), "InvalidModules"),
        ] {
            assert_eq!(
                check(app).err().map(|error| error.code).as_deref(),
                Some(code)
            );
        }
        let sized = |bytes: usize| {
            let source = "x".repeat(bytes - 2);
            json!({"path": "a.js", "source": source, "sourceMap": "{}", "environment": "isolate"})
        };
        assert!(check(json!({"changedModules": [sized(MAX_MODULE_BYTES)]})).is_ok());
        let error = check(json!({"changedModules": [sized(MAX_MODULE_BYTES + 1)]}));
        let error = error.err().unwrap();
        assert_eq!(error.code, "InvalidModules");
        assert!(error.message.contains("at most 15728640"), "{error}");
        let body = json!({"message": "m".repeat(1_025), "appDefinition": {"changedModules": [], "udfServerVersion": ""}});
        let body: PushBody = serde_json::from_value(body).unwrap();
        assert!(body.check().is_err());
    }
}
