//! How functions name other functions in syscalls: a path, or a handle that they were given.

use nimbus_core::Value;
use serde::Deserialize;

use super::call::FunctionCall;
use super::path::FunctionPath;

/// What every handle begins with (convex.md 5.5). Only root functions have handles, so what
/// stands for the component says so.
const HANDLE: &str = "function://root#";

/// The members of a syscall that name a function.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    function_handle: Option<String>,
    #[serde(default)]
    reference: Option<String>,
}

/// A function and what it is called with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CallBody {
    /// As what it is run, where that is not in the name of the syscall.
    #[serde(default)]
    pub udf_type: Option<String>,
    #[serde(deserialize_with = "nimbus_core::value::deserialize_within_memory")]
    args: Value,
    // Not flattened: serde would keep every member that is not known.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    function_handle: Option<String>,
    #[serde(default)]
    reference: Option<String>,
}

impl CallBody {
    /// The path of the function and its one object of arguments.
    ///
    /// # Errors
    /// The text for the function that asked.
    pub(super) fn call(self) -> Result<FunctionCall, String> {
        let reference = Reference {
            name: self.name,
            function_handle: self.function_handle,
            reference: self.reference,
        };
        let path = reference.path()?;
        match self.args {
            args @ Value::Object(_) => Ok(FunctionCall { path, args }),
            _ => Err("the arguments of a function are an object".to_owned()),
        }
    }
}

impl Reference {
    /// The path of the function.
    ///
    /// # Errors
    /// The text for the function that asked.
    pub(super) fn path(&self) -> Result<FunctionPath, String> {
        let text = match (&self.name, &self.function_handle, &self.reference) {
            (Some(name), None, None) => name.as_str(),
            (None, Some(handle), None) => handle.strip_prefix(HANDLE).ok_or_else(|| {
                let shown: String = handle.chars().take(80).collect();
                format!("`{shown}` is no function handle of this deployment")
            })?,
            (None, None, Some(_)) => {
                return Err("references into components are not supported".to_owned());
            }
            _ => {
                return Err("a function is named by one of name, reference, functionHandle".into());
            }
        };
        text.parse()
            .map_err(|error: super::path::FunctionPathError| error.to_string())
    }
}

/// The handle of a function.
pub(super) fn handle(path: &FunctionPath) -> String {
    format!("{HANDLE}{path}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn path(json: &str) -> Result<String, String> {
        let reference: Reference = serde_json::from_str(json).unwrap();
        reference.path().map(|path| path.to_string())
    }

    #[test]
    fn names_and_handles_lead_to_one_path() {
        assert_eq!(path(r#"{"name":"d/m:f","args":{}}"#).unwrap(), "d/m:f");
        let handle = handle(&"d/m:f".parse().unwrap());
        assert!(handle.starts_with("function://"));
        let json = format!(r#"{{"functionHandle":"{handle}"}}"#);
        assert_eq!(path(&json).unwrap(), "d/m:f");
        for bad in [
            "{}",
            r#"{"name":"m-x:f"}"#,
            r#"{"name":"m:f","functionHandle":"function://root#m:f"}"#,
            r#"{"functionHandle":"function://other#m:f"}"#,
            r#"{"reference":"_reference/childComponent/a"}"#,
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
