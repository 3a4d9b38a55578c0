//! What a bundle declares, as found by importing its modules (convex.md 4.5).
//!
//! Plain data that a deployment keeps as JSON. This room must not know how it is found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::UdfKind;

/// What a whole bundle declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analysis {
    /// By module path, `_deps/` left out.
    pub modules: BTreeMap<String, ModuleAnalysis>,
    /// What the schema's `export()` gave, JSON text.
    pub schema: Option<String>,
    /// The default export of `auth.config.js`, JSON text.
    pub auth: Option<String>,
}

/// What one module declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleAnalysis {
    /// Its functions, by name.
    pub functions: Vec<FunctionSpec>,
    /// The routes of `http.js`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_routes: Option<Vec<HttpRoute>>,
    /// What `crons.js` exports, JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crons: Option<String>,
}

/// One exported function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// Name of the export.
    pub name: String,
    /// What it is.
    pub kind: UdfKind,
    /// Who may call it; old bundles do not say, and mean the public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Validator of its arguments, JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    /// Validator of its result, JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns: Option<String>,
    /// Line and column of its handler in the source file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<(u32, u32)>,
}

/// Who may call a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Any client.
    Public,
    /// Other functions and operators.
    Internal,
}

/// One route of the HTTP router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// The path; a prefix ends with `*`.
    pub path: String,
    /// The method.
    pub method: String,
}
