//! What is called, by whom, and what became of it. Plain data.

use std::sync::Arc;

use nimbus_auth::FunctionContext;
use nimbus_core::value::{ValueError, check_value};
use nimbus_core::{TableNames, Validator, Value};
use nimbus_runtime::{JsFailure, UdfKind};
use serde::Deserialize;

use super::deployed::{Deployed, Function};
use super::identity::Identity;
use super::path::FunctionPath;

/// Longest JSON text of a value that goes in or out of a function, in bytes: 16 MiB of numbers or of int64 need
/// as much. Only text that is all escapes would need more.
pub(super) const MAX_JSON: usize = 48 * 1024 * 1024;

/// A value of a caller or of a function, which may need as much memory as [`nimbus_core::value::MAX_VALUE_MEMORY`].
#[derive(Debug, Deserialize)]
pub(crate) struct Bounded(
    #[serde(deserialize_with = "nimbus_core::value::deserialize_within_memory")] pub Value,
);

/// Who calls a function, and which user the function sees.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The leave to call.
    pub context: FunctionContext,
    /// The user, if one is known.
    pub identity: Option<Arc<Identity>>,
}

/// A function to call.
#[derive(Clone, Debug)]
pub(crate) struct FunctionCall {
    pub path: FunctionPath,
    /// The one object that functions take.
    pub args: Value,
}

impl FunctionCall {
    /// JSON text of the array of arguments.
    pub(crate) fn args_text(&self) -> String {
        let mut out = String::from("[");
        self.args.write_json(&mut out);
        out.push(']');
        out
    }
}

/// What the caller takes the function for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    Mutation,
    Action,
    /// Whatever kind it is.
    Any,
    /// Whatever kind it is; for those alone who may call internal functions.
    Named,
}

/// What became of a call.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub result: Result<Value, UdfError>,
    /// Console lines, `[LOG] 'text' 42`.
    pub log_lines: Vec<String>,
}

/// What a function threw, or what stopped it, as its developer reads it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UdfError {
    /// The message and the lines of the stack.
    pub message: String,
    /// Data of a `ConvexError`.
    pub data: Option<Value>,
}

impl UdfError {
    pub(crate) fn new(message: impl Into<String>) -> UdfError {
        UdfError {
            message: message.into(),
            data: None,
        }
    }
}

impl From<JsFailure> for UdfError {
    fn from(failure: JsFailure) -> UdfError {
        let data = failure.data.as_deref();
        UdfError {
            // What is no value was not made by the package; the message says what was thrown.
            data: data.and_then(|data| read_value(data).ok()),
            message: failure.to_string(),
        }
    }
}

impl From<UdfError> for Ran {
    fn from(error: UdfError) -> Ran {
        Ran {
            result: Err(error),
            log_lines: Vec::new(),
        }
    }
}

/// The function of `path`, to be run as `kind`. To the public, an internal function is as good as
/// missing (convex.md 1.5).
///
/// # Errors
/// The texts of convex.md 1.5.
pub(super) fn find<'d>(
    deployed: Option<&'d Deployed>,
    path: &FunctionPath,
    kind: UdfKind,
    internal: bool,
) -> Result<&'d Function, UdfError> {
    let function = find_any(deployed, path, internal)?;
    if function.kind != kind {
        return Err(wrong_kind(path, function.kind, kind));
    }
    Ok(function)
}

/// The function of `path`, whatever its kind.
///
/// # Errors
/// As [`find`].
pub(super) fn find_any<'d>(
    deployed: Option<&'d Deployed>,
    path: &FunctionPath,
    internal: bool,
) -> Result<&'d Function, UdfError> {
    let found = deployed.and_then(|deployed| deployed.find(path));
    match found.filter(|function| internal || function.is_public) {
        Some(function) => Ok(function),
        None if internal => Err(UdfError::new(format!(
            "Could not find function for '{path}'. Did you forget to run `npx convex dev`?"
        ))),
        None => Err(UdfError::new(format!(
            "Could not find public function for '{path}'."
        ))),
    }
}

/// The error of a function that is run as what it is not.
pub(super) fn wrong_kind(path: &FunctionPath, is: UdfKind, run_as: UdfKind) -> UdfError {
    let article = |kind: UdfKind| match kind {
        UdfKind::Query | UdfKind::Mutation => "a",
        UdfKind::Action | UdfKind::HttpAction => "an",
    };
    UdfError::new(format!(
        "Function {path} is registered as {} {} but is being run as {} {}.",
        article(is),
        is.as_str(),
        article(run_as),
        run_as.as_str()
    ))
}

/// Checks arguments: those of every function (16 MiB, depth, names), and what this one declares. Whichever way a
/// function is called, its arguments come by here.
pub(super) fn check_args(
    function: &Function,
    args: &Value,
    tables: &dyn TableNames,
) -> Result<(), UdfError> {
    check_limits(args)?;
    check(
        "ArgumentValidationError",
        function.args.as_ref(),
        args,
        tables,
    )
}

/// The limits that arguments of every function keep.
pub(super) fn check_limits(args: &Value) -> Result<(), UdfError> {
    check_value(args).map_err(|error| {
        UdfError::new(match error {
            ValueError::TooLarge { .. } => {
                "Function arguments are too large (maximum size: 16 MiB)".to_owned()
            }
            other => format!("Function arguments are refused: {other}"),
        })
    })
}

fn read_value(text: &str) -> Result<Value, String> {
    if text.len() > MAX_JSON {
        let limit = MAX_JSON >> 20;
        return Err(format!("it has more than {limit} MiB of JSON"));
    }
    let read = nimbus_core::json::from_javascript::<Bounded>(text.as_bytes());
    read.map(|bounded| bounded.0)
        .map_err(|error| error.to_string())
}

/// Reads the result of a function and checks it against what the function declares.
pub(super) fn read_result(
    path: &FunctionPath,
    returns: Option<&Validator>,
    text: &str,
    tables: &dyn TableNames,
) -> Result<Value, UdfError> {
    let value = read_any_result(path, text)?;
    check("ReturnsValidationError", returns, &value, tables)?;
    Ok(value)
}

/// Reads the result of a function that declares nothing of it.
pub(super) fn read_any_result(path: &FunctionPath, text: &str) -> Result<Value, UdfError> {
    let refuse = |why: &dyn std::fmt::Display| {
        UdfError::new(format!("Function {path} returned what is no value: {why}"))
    };
    let value = read_value(text).map_err(|error| refuse(&error))?;
    check_value(&value).map_err(|error| match error {
        ValueError::TooLarge { .. } => UdfError::new(format!(
            "Function {path} returned too large a value (maximum size: 16 MiB)"
        )),
        other => refuse(&other),
    })?;
    Ok(value)
}

fn check(
    name: &str,
    validator: Option<&Validator>,
    value: &Value,
    tables: &dyn TableNames,
) -> Result<(), UdfError> {
    let Some(validator) = validator else {
        return Ok(());
    };
    validator
        .check(value, tables)
        .map_err(|failure| UdfError::new(format!("{name}: {failure}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn result(text: &str) -> String {
        let path = "m:f".parse().unwrap();
        read_any_result(&path, text).unwrap_err().message
    }

    #[test]
    fn results_are_bounded_in_text_memory_and_size() {
        let list = format!("[{}]", vec![r#"{"":0}"#; 8_000].join(","));
        let small = format!("[{}]", vec![list; 100].join(","));
        assert!(
            result(&small).contains("bytes of memory"),
            "{}",
            result(&small)
        );
        let zeros = format!("[{}]", vec!["0"; 8_192].join(","));
        let large = format!("[{}]", vec![zeros; 228].join(","));
        assert_eq!(
            result(&large),
            "Function m:f returned too large a value (maximum size: 16 MiB)"
        );
        let long = " ".repeat(MAX_JSON + 1);
        assert!(result(&long).contains("more than 48 MiB of JSON"));
        let error = JsFailure {
            message: "thrown".into(),
            stack: String::new(),
            data: Some(small),
        };
        assert_eq!(UdfError::from(error).data, None);
    }
}
