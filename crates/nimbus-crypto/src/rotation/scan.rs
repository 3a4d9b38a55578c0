//! Finding manifests: in a directory and one level below, without following links.
//!
//! Must not read them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{RotationError, RotationFailure, failure};
use crate::manifest::{ENDING, ManifestError, TEMP_ENDING};

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Files that have a manifest beside them, or had: the file itself is not looked for.
    pub(super) files: Vec<PathBuf>,
    /// Temporary files of an interrupted run.
    pub(super) leftovers: Vec<PathBuf>,
    /// What has a manifest's name and is no regular file.
    pub(super) odd: Vec<RotationFailure>,
}

/// Looks into `dir` and its directories, in the order of names.
pub(super) fn scan(dir: &Path) -> Result<Found, RotationError> {
    let mut found = Found::default();
    for below in look_into(dir, &mut found)? {
        look_into(&below, &mut found)?;
    }
    found.files.sort();
    Ok(found)
}

/// Gives the directories in it.
fn look_into(dir: &Path, found: &mut Found) -> Result<Vec<PathBuf>, RotationError> {
    let refuse = |source| RotationError::Directory {
        path: dir.to_path_buf(),
        source,
    };
    let mut directories = Vec::new();
    for entry in fs::read_dir(dir).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        // Of the entry itself, not of what a link points at.
        let kind = entry.file_type().map_err(refuse)?;
        let path = entry.path();
        if kind.is_dir() {
            directories.push(path.clone());
        }
        let name = entry.file_name();
        if let Some(name) = without(&name, TEMP_ENDING) {
            if kind.is_file() && without(name, ENDING).is_some() {
                found.leftovers.push(path);
            }
        } else if let Some(name) = without(&name, ENDING) {
            let file = dir.join(name);
            if kind.is_file() {
                found.files.push(file);
            } else {
                found
                    .odd
                    .push(failure(&file, ManifestError::NotRegular { path }));
            }
        }
    }
    Ok(directories)
}

/// The name before an ending; `None` when nothing is before it.
fn without<'a>(name: &'a OsStr, ending: &str) -> Option<&'a OsStr> {
    let rest = name.as_bytes().strip_suffix(ending.as_bytes())?;
    (!rest.is_empty()).then(|| OsStr::from_bytes(rest))
}
