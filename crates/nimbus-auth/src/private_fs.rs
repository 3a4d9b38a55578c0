//! Files and directories that only their owner may touch: the token file, its lock, the audit log.
//!
//! This room knows modes, owners and links. It must not know what the files hold.
//! Rules (seed 000, design section 1): files 0600, directories 0700, no symbolic link followed at
//! our own names, and a replaced file is temp + fsync + rename + directory fsync.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

// The plain variant is compiled on Unix for its tests too, so that it cannot rot unseen.
#[cfg(any(not(unix), test))]
#[cfg_attr(unix, allow(dead_code))]
mod portable;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(crate) use portable::{PrivateDir, allocate, rewrite, same_file};
#[cfg(unix)]
pub(crate) use unix::{PrivateDir, allocate, rewrite, same_file};

/// Name of the directory that Nimbus makes below the platform's data, state or log directory.
/// A directory of this name above the private one is ours too, so no link is followed there.
const OWN_DIRECTORY: &str = "nimbus";

/// Why a private file or directory was refused. Each message ends with what the operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateFileError {
    /// A symbolic link stands where our own file or directory is expected.
    #[error(
        "{} is a symbolic link, which is never followed here: remove it, or name the real path",
        .path.display()
    )]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// A directory that others may enter, or whose entries they may replace.
    #[error(
        "other users have access to the directory {} (mode {mode:04o}): run `chmod {} {}`",
        .path.display(), .repair, ShellWord(.path)
    )]
    LooseDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The argument of `chmod` that repairs it: `700` or `go-w`.
        repair: &'static str,
    },
    /// A file with a permission bit for the group or for others.
    #[error(
        "other users have access to {} (mode {mode:04o}): run `chmod 600 {}`",
        .path.display(), ShellWord(.path)
    )]
    LooseFile {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The owner is neither the user of this process nor root.
    #[error(
        "{} belongs to user id {owner}, and this process runs as user id {user}: run the command as the owner (for example with `sudo -u`), or correct the owner",
        .path.display()
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Effective user id of this process.
        user: u32,
    },
    /// A device, pipe, socket or directory where a regular file is expected.
    #[error("{} is not a regular file: move it away", .path.display())]
    NotRegular {
        /// What stands there.
        path: PathBuf,
    },
    /// Something else where a directory is expected.
    #[error("{} is not a directory: move it away", .path.display())]
    NotDirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// The path has no file name, so it cannot name a file.
    #[error("the path {} names no file: give the full path of a file", .path.display())]
    NoFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason given by the system.
        #[source]
        source: io::Error,
    },
}

impl PrivateFileError {
    /// For `map_err`: an I/O error with the attempt and the path.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        }
    }
}

/// How a private file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read an existing file.
    Read,
    /// Read and write at any place; made empty with mode 0600 when absent.
    Update,
}

/// Splits a file path into the directory (`.` when none is written) and the file name.
pub(crate) fn split(path: &Path) -> Result<(&Path, &OsStr), PrivateFileError> {
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Err(PrivateFileError::NoFileName {
            path: path.to_path_buf(),
        });
    };
    Ok((or_current(parent), name))
}

/// The directories of ours that end `dir`, outermost first, and the directory that they stand in.
/// Links are followed up to that directory (a home may be a link) and never below it.
fn guarded(dir: &Path) -> (&Path, Vec<&Path>) {
    let Some(above) = dir.file_name().and_then(|_| dir.parent()) else {
        return (dir, Vec::new());
    };
    match above.parent() {
        Some(base) if above.file_name() == Some(OsStr::new(OWN_DIRECTORY)) => {
            (or_current(base), vec![above, dir])
        }
        _ => (or_current(above), vec![dir]),
    }
}

/// `Path::parent` of a bare name is empty, which the system calls do not take.
fn or_current(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

/// Shows a path so that it can be pasted into a shell.
struct ShellWord<'a>(&'a Path);

impl fmt::Display for ShellWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            f.write_str(&text)
        } else {
            write!(f, "'{}'", text.replace('\'', r"'\''"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_directories_are_guarded() {
        let table: &[(&str, &str, &[&str])] = &[
            (
                "/h/share/nimbus/auth",
                "/h/share",
                &["/h/share/nimbus", "/h/share/nimbus/auth"],
            ),
            (
                "/h/Library/Logs/nimbus",
                "/h/Library/Logs",
                &["/h/Library/Logs/nimbus"],
            ),
            ("/tmp/x", "/tmp", &["/tmp/x"]),
            ("nimbus/auth", ".", &["nimbus", "nimbus/auth"]),
            ("auth", ".", &["auth"]),
            (".", ".", &[]),
            ("/", "/", &[]),
        ];
        for (dir, base, names) in table {
            let (found_base, found) = guarded(Path::new(dir));
            assert_eq!(found_base, Path::new(base), "{dir}");
            assert_eq!(
                found,
                names.iter().map(Path::new).collect::<Vec<_>>(),
                "{dir}"
            );
        }
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        for path in ["/", "", "a/.."] {
            assert!(
                matches!(
                    split(Path::new(path)),
                    Err(PrivateFileError::NoFileName { .. })
                ),
                "{path:?}"
            );
        }
        assert!(matches!(split(Path::new("token")), Ok((dir, _)) if dir == Path::new(".")));
    }

    #[test]
    fn repair_commands_are_quoted_for_a_shell() {
        let error = PrivateFileError::LooseFile {
            path: PathBuf::from("/Users/o'neil/Application Support/token"),
            mode: 0o644,
        };
        let text = error.to_string();
        assert!(text.contains("mode 0644"), "{text}");
        assert!(
            text.ends_with(r"`chmod 600 '/Users/o'\''neil/Application Support/token'`"),
            "{text}"
        );
    }
}
