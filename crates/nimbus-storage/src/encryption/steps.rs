//! Single steps of changes to whole files: each is durable when it returns.
//!
//! Must not know what the files are.

use std::path::Path;

use crate::provider::ProviderResult;
pub(super) use crate::provider::files::appended;
use crate::provider::files::{self, Entry};

/// What is appended to the name of a file until it is whole.
pub(super) const PARTIAL: &str = ".partial";

/// What has the name, without following a link.
pub(super) fn look(path: &Path) -> ProviderResult<Entry> {
    files::inspect(path).map_err(|e| files::error("looking at", path, e))
}

/// Whether anything has the name.
pub(super) fn present(path: &Path) -> ProviderResult<bool> {
    Ok(look(path)? != Entry::Absent)
}

/// Removes a name if it is there; true if it was. Durable with the next sync of the directory.
pub(super) fn remove(path: &Path) -> ProviderResult<bool> {
    files::remove_if_exists(path).map_err(|e| files::error("removing", path, e))
}

/// Renames, over what has the new name.
pub(super) fn rename(from: &Path, to: &Path) -> ProviderResult<()> {
    std::fs::rename(from, to).map_err(|e| files::error("renaming to", to, e))?;
    sync_dir_of(to)
}

/// Makes changes of names beside `path` durable.
pub(super) fn sync_dir_of(path: &Path) -> ProviderResult<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    files::sync_dir(dir).map_err(|e| files::error("syncing", dir, e))
}
