//! Paths of functions: `dir/messages:list` (convex.md 1.4).
//!
//! Syntax only; this room must not know which functions exist.

use std::fmt;
use std::str::FromStr;

/// Most characters of one part of a path.
const MAX_PART: usize = 64;

/// The path of a function, in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FunctionPath {
    /// Module with `.js`.
    module: String,
    name: String,
}

/// A text that is no path of a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is not a path to a function: {reason}")]
pub(crate) struct FunctionPathError {
    /// The text, at most 80 characters of it.
    path: String,
    reason: &'static str,
}

impl FunctionPath {
    /// The module as it is deployed: `dir/messages.js`.
    pub(crate) fn module(&self) -> &str {
        &self.module
    }

    /// The name of the export.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it lies where system functions are.
    pub(crate) fn is_system(&self) -> bool {
        self.module.starts_with("_system/")
    }

    /// Whether it is part of the bundle's shared code, which nobody calls.
    pub(crate) fn is_shared_code(&self) -> bool {
        self.module.starts_with("_deps/")
    }

    /// The path of `/api/run/a/b/fn`: the segments before the last are the module.
    ///
    /// # Errors
    /// `None` for less than two segments; [`FunctionPathError`].
    pub(crate) fn from_segments(path: &str) -> Option<Result<FunctionPath, FunctionPathError>> {
        let (module, name) = path.trim_matches('/').rsplit_once('/')?;
        // A colon would be read as another separator.
        let joined = format!("{module}:{name}");
        Some(match joined.matches(':').count() {
            1 => joined.parse(),
            _ => Err(FunctionPathError::new(path, "it has a colon")),
        })
    }
}

impl FunctionPathError {
    fn new(path: &str, reason: &'static str) -> FunctionPathError {
        FunctionPathError {
            path: path.chars().take(80).collect(),
            reason,
        }
    }
}

impl FromStr for FunctionPath {
    type Err = FunctionPathError;

    fn from_str(text: &str) -> Result<FunctionPath, FunctionPathError> {
        let refuse = |reason| Err(FunctionPathError::new(text, reason));
        let (module, name) = text.split_once(':').unwrap_or((text, "default"));
        let module = module.strip_suffix(".js").unwrap_or(module);
        if module.is_empty() {
            return refuse("it names no module");
        }
        for part in module.split('/') {
            if part.is_empty() || part.len() > MAX_PART {
                return refuse("a part of the module's path is empty or longer than 64 characters");
            }
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
            if !part.bytes().all(allowed) {
                return refuse("a part of the module's path has only A-Z, a-z, 0-9, `_` and `.`");
            }
            if !part.bytes().any(|b| b.is_ascii_alphanumeric()) {
                return refuse("a part of the module's path has no letter or digit");
            }
        }
        if !is_identifier(name) {
            return refuse("the name of the function is no identifier");
        }
        Ok(FunctionPath {
            module: format!("{module}.js"),
            name: name.to_owned(),
        })
    }
}

/// Whether `name` is an identifier (convex.md 2.2).
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.len() <= MAX_PART
        && bytes.next().is_some_and(first)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().any(|b| b != b'_')
}

/// As users read it: without `.js`.
impl fmt::Display for FunctionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = self.module.strip_suffix(".js").unwrap_or(&self.module);
        write!(f, "{module}:{}", self.name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_canonical_form() {
        let table = [
            ("messages:list", "messages.js", "list", "messages:list"),
            ("messages.js:list", "messages.js", "list", "messages:list"),
            ("messages", "messages.js", "default", "messages:default"),
            ("a/b_c/d.e:f1", "a/b_c/d.e.js", "f1", "a/b_c/d.e:f1"),
            ("_system/x:y", "_system/x.js", "y", "_system/x:y"),
        ];
        for (text, module, name, shown) in table {
            let path: FunctionPath = text.parse().unwrap();
            assert_eq!((path.module(), path.name()), (module, name));
            assert_eq!(path.to_string(), shown);
            assert_eq!(path.to_string().parse::<FunctionPath>().unwrap(), path);
        }
        assert!("_system/x:y".parse::<FunctionPath>().unwrap().is_system());
        assert!(
            "_deps/x:y"
                .parse::<FunctionPath>()
                .unwrap()
                .is_shared_code()
        );
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = format!("{}:f", "a".repeat(65));
        for text in [
            "", ":", ":f", "a:", "a:b:c", "a-b:f", "a//b:f", "/a:f", "a/:f", "..:f", "a/../b:f",
            "a b:f", "a:1f", "a:__", "a:f-g", "\u{e9}:f", "a%2fb:f", ".js:f", "a:f\0", &long,
        ] {
            let error = text.parse::<FunctionPath>().unwrap_err();
            assert!(error.to_string().len() < 300, "{text}");
        }
    }

    #[test]
    fn segments_need_a_module_and_a_name() {
        let from = |path| FunctionPath::from_segments(path).map(|path| path.map(|p| p.to_string()));
        assert_eq!(from("a/b/fn").unwrap().unwrap(), "a/b:fn");
        assert_eq!(from("a/fn").unwrap().unwrap(), "a:fn");
        assert_eq!(from("fn"), None);
        assert_eq!(from(""), None);
        assert!(from("a:b/fn").unwrap().is_err());
        assert!(from("a//fn").unwrap().is_err());
    }
}
