//! What a bundle declares: every module is imported once, in a realm of its own, with nothing to ask.

use std::collections::HashMap;

use deno_core::v8;
use serde::Deserialize;

use super::modules::{self, ImportError};
use super::realm::{self, Factory};
use super::session::{self, Frame};
use super::{invoke, strings};
use crate::analysis::{Analysis, ModuleAnalysis};
use crate::protocol::{Analyze, WireAnalyzeError};

const SCRIPT: &str = include_str!("js/analyze.js");
/// The schema, which is no module of functions.
const SCHEMA: &str = "schema.js";
/// Who may log in.
const AUTH: &str = "auth.config.js";
/// What components a bundle has; the server looks at it.
const APP: &str = "convex.config.js";

/// What the script gives.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Ok(Declared),
    Error { code: String, message: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Declared {
    Schema(String),
    Auth(String),
    Module(ModuleAnalysis),
}

/// Analyses every module of the bundle that is not only imported by others.
pub(crate) fn run(
    factory: &Factory,
    isolate: &mut v8::OwnedIsolate,
    asked: &Analyze,
) -> Result<Analysis, WireAnalyzeError> {
    let mut analysis = Analysis::default();
    let paths = asked
        .paths
        .iter()
        .filter(|path| !path.starts_with("_deps/") && *path != APP);
    for path in paths {
        match module(factory, isolate, asked, path)? {
            Declared::Schema(schema) => analysis.schema = Some(schema),
            Declared::Auth(auth) => analysis.auth = Some(auth),
            Declared::Module(module) => {
                analysis.modules.insert(path.clone(), module);
            }
        }
    }
    Ok(analysis)
}

fn module(
    factory: &Factory,
    isolate: &mut v8::OwnedIsolate,
    asked: &Analyze,
    path: &str,
) -> Result<Declared, WireAnalyzeError> {
    let mut frame = Frame::new(&asked.import);
    frame.environment = Some(asked.environment.iter().cloned().collect::<HashMap<_, _>>());
    frame.strict_environment = path == AUTH;
    session::with(|session| session.frames.push(frame));
    let found = in_realm(factory, isolate, path);
    let frame = session::with(|session| session.frames.pop());
    let wrong = |code: Option<String>, message: String| WireAnalyzeError {
        path: path.to_owned(),
        code,
        message,
    };
    if let Some(name) = frame.and_then(|frame| frame.missing_variable) {
        return Err(wrong(
            Some("AuthConfigMissingEnvironmentVariable".into()),
            format!(
                "Environment variable {name} is used in auth config file but its value was not set"
            ),
        ));
    }
    match found {
        Ok(Found::Ok(declared)) => Ok(declared),
        Ok(Found::Error { code, message }) => Err(wrong(Some(code), message)),
        Err(message) => {
            let schema = (path == SCHEMA).then(|| "InvalidSchema".to_owned());
            Err(wrong(schema, message))
        }
    }
}

fn in_realm(
    factory: &Factory,
    isolate: &mut v8::OwnedIsolate,
    path: &str,
) -> Result<Found, String> {
    v8::scope!(let scope, isolate);
    let context = factory.context(scope);
    let scope = &mut v8::ContextScope::new(scope, context);
    v8::tc_scope!(let scope, scope);
    let namespace = match modules::import(scope, path) {
        Ok(namespace) => namespace,
        Err(ImportError::Refused(message)) => return Err(message),
        Err(ImportError::Thrown) => return Err(invoke::thrown(scope).to_string()),
    };
    if let Some(failure) = invoke::unhandled(scope) {
        return Err(failure.to_string());
    }
    match describe(scope, namespace, path) {
        Some(text) => serde_json::from_str(&text).map_err(|e| format!("its declaration: {e}")),
        None => Err(invoke::thrown(scope).to_string()),
    }
}

fn describe(
    scope: &mut v8::PinScope<'_, '_>,
    namespace: v8::Local<'_, v8::Object>,
    path: &str,
) -> Option<String> {
    let script = realm::evaluate(scope, "analyze.js", SCRIPT)?;
    let script = v8::Local::<v8::Function>::try_from(script).ok()?;
    let path = v8::String::new(scope, path)?;
    let undefined = v8::undefined(scope).into();
    let namespace = v8::Local::new(scope, namespace);
    let found = script.call(scope, undefined, &[namespace.into(), path.into()])?;
    Some(strings::text(scope, found))
}
