//! Where the token file, the audit log and the state live on each platform (nimbus.md 1.13).
//!
//! The environment is passed in, so all three platforms are tested on one. This room must not
//! open, make or check anything.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

/// The naming conventions that decide the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Linux and other Unix systems: the XDG base directories.
    Linux,
    /// macOS: `~/Library`.
    MacOs,
    /// Windows: `%LOCALAPPDATA%`.
    Windows,
}

impl Platform {
    /// The platform that this binary was built for.
    pub const fn current() -> Self {
        if cfg!(windows) {
            Self::Windows
        } else if cfg!(target_os = "macos") {
            Self::MacOs
        } else {
            Self::Linux
        }
    }
}

/// Why no path can be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The variable that names the user's directory is unset or empty.
    #[error("{variable} is not set: set {variable} to {meaning}")]
    Missing {
        /// `HOME` or `LOCALAPPDATA`.
        variable: &'static str,
        /// What it should name.
        meaning: &'static str,
    },
    /// That variable holds a relative path, which would depend on the working directory.
    #[error("{variable} is {value:?}, which is not an absolute path: set {variable} to {meaning}")]
    Relative {
        /// `HOME` or `LOCALAPPDATA`.
        variable: &'static str,
        /// The value found.
        value: OsString,
        /// What it should name.
        meaning: &'static str,
    },
}

type Lookup<'a> = dyn Fn(&str) -> Option<OsString> + Send + Sync + 'a;

/// A platform and a way to look up environment variables.
pub struct Environment<'a> {
    platform: Platform,
    lookup: Box<Lookup<'a>>,
}

impl fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

impl Environment<'static> {
    /// The platform and the variables of this process.
    pub fn system() -> Self {
        Self::new(Platform::current(), |name: &str| std::env::var_os(name))
    }
}

impl<'a> Environment<'a> {
    /// A platform with the given lookup; an empty value counts as unset.
    pub fn new(
        platform: Platform,
        lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'a,
    ) -> Self {
        Self {
            platform,
            lookup: Box::new(lookup),
        }
    }

    /// The admin token file.
    ///
    /// # Errors
    /// [`PathError`] when the user's directory is not named.
    pub fn token_path(&self) -> Result<PathBuf, PathError> {
        let (root, file) = match self.platform {
            Platform::Linux => (self.xdg("XDG_DATA_HOME", &[".local", "share"])?, "token"),
            Platform::MacOs => (self.home(&["Library", "Application Support"])?, "token"),
            Platform::Windows => (self.local_app_data()?, "token.json"),
        };
        Ok(join(root, &["nimbus", "auth", file]))
    }

    /// The audit log.
    ///
    /// # Errors
    /// [`PathError`] when the user's directory is not named.
    pub fn audit_path(&self) -> Result<PathBuf, PathError> {
        match self.platform {
            Platform::Linux | Platform::Windows => {
                Ok(join(self.state_dir()?, &["logs", "access.jsonl"]))
            }
            Platform::MacOs => self.home(&["Library", "Logs", "nimbus", "access.jsonl"]),
        }
    }

    /// The directory for state that outlives a restart but is not the operator's data.
    ///
    /// # Errors
    /// [`PathError`] when the user's directory is not named.
    pub fn state_dir(&self) -> Result<PathBuf, PathError> {
        let root = match self.platform {
            Platform::Linux => self.xdg("XDG_STATE_HOME", &[".local", "state"])?,
            Platform::MacOs => self.home(&["Library", "Application Support"])?,
            Platform::Windows => self.local_app_data()?,
        };
        Ok(join(root, &["nimbus"]))
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// An XDG base directory. The XDG specification has relative values ignored.
    fn xdg(&self, name: &str, fallback: &[&str]) -> Result<PathBuf, PathError> {
        match self.variable(name) {
            Some(value) if self.is_absolute(&value) => Ok(PathBuf::from(value)),
            Some(value) => {
                tracing::warn!(variable = name, ?value, "ignored: not an absolute path");
                self.home(fallback)
            }
            None => self.home(fallback),
        }
    }

    fn home(&self, below: &[&str]) -> Result<PathBuf, PathError> {
        Ok(join(
            self.required("HOME", "the home directory of the user who runs nimbus")?,
            below,
        ))
    }

    fn local_app_data(&self) -> Result<PathBuf, PathError> {
        self.required(
            "LOCALAPPDATA",
            r"the user's local data directory, as in C:\Users\me\AppData\Local",
        )
    }

    fn required(
        &self,
        variable: &'static str,
        meaning: &'static str,
    ) -> Result<PathBuf, PathError> {
        let value = self
            .variable(variable)
            .ok_or(PathError::Missing { variable, meaning })?;
        if !self.is_absolute(&value) {
            return Err(PathError::Relative {
                variable,
                value,
                meaning,
            });
        }
        Ok(PathBuf::from(value))
    }

    /// `Path::is_absolute` follows the host; this follows the platform asked about.
    fn is_absolute(&self, value: &OsStr) -> bool {
        let bytes = value.as_encoded_bytes();
        match self.platform {
            Platform::Linux | Platform::MacOs => bytes.starts_with(b"/"),
            Platform::Windows => match bytes {
                [b'\\', b'\\', ..] => true,
                [drive, b':', b'\\' | b'/', ..] => drive.is_ascii_alphabetic(),
                _ => false,
            },
        }
    }
}

fn join(mut root: PathBuf, below: &[&str]) -> PathBuf {
    root.extend(below);
    root
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    type Variables = &'static [(&'static str, &'static str)];

    fn environment(platform: Platform, variables: Variables) -> Environment<'static> {
        Environment::new(platform, move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    /// Paths as text with one separator, since the host joins with its own.
    fn text(path: Result<PathBuf, PathError>) -> String {
        path.unwrap().to_str().unwrap().replace('\\', "/")
    }

    #[test]
    fn each_platform_has_its_paths() {
        use Platform::{Linux, MacOs, Windows};
        let table: &[(Platform, Variables, [&str; 3])] = &[
            (
                Linux,
                &[("HOME", "/home/n")],
                [
                    "/home/n/.local/share/nimbus/auth/token",
                    "/home/n/.local/state/nimbus/logs/access.jsonl",
                    "/home/n/.local/state/nimbus",
                ],
            ),
            (
                Linux,
                &[
                    ("HOME", "/home/n"),
                    ("XDG_DATA_HOME", "/data"),
                    ("XDG_STATE_HOME", "/state"),
                ],
                [
                    "/data/nimbus/auth/token",
                    "/state/nimbus/logs/access.jsonl",
                    "/state/nimbus",
                ],
            ),
            // With both XDG variables HOME is not needed.
            (
                Linux,
                &[("XDG_DATA_HOME", "/data"), ("XDG_STATE_HOME", "/state")],
                [
                    "/data/nimbus/auth/token",
                    "/state/nimbus/logs/access.jsonl",
                    "/state/nimbus",
                ],
            ),
            // Empty counts as unset, relative is ignored.
            (
                Linux,
                &[
                    ("HOME", "/home/n"),
                    ("XDG_DATA_HOME", ""),
                    ("XDG_STATE_HOME", "state"),
                ],
                [
                    "/home/n/.local/share/nimbus/auth/token",
                    "/home/n/.local/state/nimbus/logs/access.jsonl",
                    "/home/n/.local/state/nimbus",
                ],
            ),
            // XDG variables mean nothing on the other platforms.
            (
                MacOs,
                &[
                    ("HOME", "/Users/n"),
                    ("XDG_DATA_HOME", "/data"),
                    ("XDG_STATE_HOME", "/state"),
                ],
                [
                    "/Users/n/Library/Application Support/nimbus/auth/token",
                    "/Users/n/Library/Logs/nimbus/access.jsonl",
                    "/Users/n/Library/Application Support/nimbus",
                ],
            ),
            (
                Windows,
                &[
                    ("LOCALAPPDATA", r"C:\Users\n\AppData\Local"),
                    ("HOME", "/home/n"),
                ],
                [
                    "C:/Users/n/AppData/Local/nimbus/auth/token.json",
                    "C:/Users/n/AppData/Local/nimbus/logs/access.jsonl",
                    "C:/Users/n/AppData/Local/nimbus",
                ],
            ),
            (
                Windows,
                &[("LOCALAPPDATA", r"\\server\share")],
                [
                    "//server/share/nimbus/auth/token.json",
                    "//server/share/nimbus/logs/access.jsonl",
                    "//server/share/nimbus",
                ],
            ),
        ];
        for (platform, variables, [token, audit, state]) in table {
            let found = environment(*platform, variables);
            assert_eq!(
                text(found.token_path()),
                *token,
                "{platform:?} {variables:?}"
            );
            assert_eq!(
                text(found.audit_path()),
                *audit,
                "{platform:?} {variables:?}"
            );
            assert_eq!(
                text(found.state_dir()),
                *state,
                "{platform:?} {variables:?}"
            );
        }
    }

    #[test]
    fn a_missing_or_relative_directory_says_what_to_set() {
        use Platform::{Linux, MacOs, Windows};
        let table: &[(Platform, Variables, &str)] = &[
            (Linux, &[], "HOME is not set: set HOME to"),
            (Linux, &[("HOME", "")], "HOME is not set: set HOME to"),
            (
                Linux,
                &[("HOME", "home")],
                "HOME is \"home\", which is not an absolute path: set HOME",
            ),
            (
                Linux,
                &[("XDG_DATA_HOME", "x"), ("XDG_STATE_HOME", "x")],
                "HOME is not set",
            ),
            (
                MacOs,
                &[("XDG_DATA_HOME", "/x"), ("XDG_STATE_HOME", "/x")],
                "HOME is not set",
            ),
            (
                Windows,
                &[("HOME", "/x")],
                "LOCALAPPDATA is not set: set LOCALAPPDATA to",
            ),
            (
                Windows,
                &[("LOCALAPPDATA", r"C:x")],
                "LOCALAPPDATA is \"C:x\"",
            ),
            (Windows, &[("LOCALAPPDATA", r"\x")], "LOCALAPPDATA is"),
            (Windows, &[("LOCALAPPDATA", "/x")], "LOCALAPPDATA is"),
        ];
        for (platform, variables, start) in table {
            let found = environment(*platform, variables);
            for path in [found.token_path(), found.audit_path(), found.state_dir()] {
                let error = path.unwrap_err().to_string();
                assert!(
                    error.starts_with(start),
                    "{platform:?} {variables:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn the_system_lookup_reads_this_process() {
        let environment = Environment::system();
        assert_eq!(environment.variable("PATH"), std::env::var_os("PATH"));
        assert_eq!(environment.variable("NIMBUS_SURELY_UNSET_VARIABLE"), None);
    }
}
