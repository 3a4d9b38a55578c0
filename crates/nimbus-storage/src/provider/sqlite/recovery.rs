//! What a start does before it serves: find out about the disk, undo and finish what a crash
//! interrupted; and the check of a file that is taken in.
//!
//! Must not touch a file of a tenant that is ready.

use std::path::Path;

use nimbus_core::TenantId;

use super::error::{classify, corrupt};
use super::file::TenantFile;
use super::{Inner, NAME, connection, schema, sidecar};
use crate::control::TenantState;
use crate::provider::{Head, ProviderError, ProviderResult, files};

/// Start of the name of the file that tells whether the disk ignores case. The rest differs each
/// time: what the system still remembers of an earlier probe must not answer for the disk, as it
/// does for a second through FUSE.
pub(super) const PROBE: &str = ".Nimbus-Case-Probe-";
/// Bytes that an empty tenant can have on disk; it has about 64 KiB.
const MAX_UNBORN: u64 = 256 << 10;

/// Whether names in `dir` that differ by case are one file.
pub(in crate::provider) fn ignores_case(dir: &Path) -> ProviderResult<bool> {
    remove_probes(dir).map_err(|e| files::error("cleaning up", dir, e))?;
    let mut unique = [0; 8];
    getrandom::fill(&mut unique)
        .map_err(|e| ProviderError::io("reading random bytes", e.to_string()))?;
    let name = format!("{PROBE}{}", data_encoding::HEXLOWER.encode(&unique));
    let path = dir.join(&name);
    let other = dir.join(name.to_ascii_lowercase());
    let fail = |e| files::error("probing", &path, e);
    files::create_new(&path).map_err(fail)?;
    let seen = files::inspect(&other);
    files::remove_if_exists(&path).map_err(fail)?;
    Ok(seen.map_err(fail)? != files::Entry::Absent)
}

/// Removes the probes that crashes left.
fn remove_probes(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PROBE) {
            files::remove_if_exists(&entry.path())?;
        }
    }
    Ok(())
}

/// Undoes creations and finishes deletions.
pub(super) fn finish(inner: &Inner) -> ProviderResult<()> {
    for (tenant, entry) in inner.control.entries() {
        if entry.provider != NAME {
            continue;
        }
        match entry.state {
            TenantState::Ready => {}
            TenantState::Creating => undo_creation(inner, &tenant)?,
            TenantState::Deleting => {
                inner.remove_files(&tenant)?;
                inner.control.remove(&tenant)?;
                tracing::info!(%tenant, "finished an interrupted deletion");
            }
        }
    }
    Ok(())
}

/// A tenant that was never acknowledged has no commit and a small file, torn or not. Anything
/// else under its name was put there by someone else since, and is left to be adopted.
fn undo_creation(inner: &Inner, tenant: &TenantId) -> ProviderResult<()> {
    let path = inner.path(tenant);
    if unborn(inner, tenant)? {
        inner.remove_files(tenant)?;
        tracing::info!(%tenant, "undid an interrupted creation");
    } else {
        let path = path.display();
        tracing::warn!(%tenant, %path, "an interrupted creation left a file with data, which is kept");
    }
    inner.control.remove(tenant).map(drop)
}

fn unborn(inner: &Inner, tenant: &TenantId) -> ProviderResult<bool> {
    let path = inner.path(tenant);
    let mut total = 0;
    for path in [path.clone(), sidecar(&path, "-wal")] {
        match files::inspect(&path).map_err(|e| files::error("looking at", &path, e))? {
            files::Entry::Absent => {}
            files::Entry::Regular { len } => total += len,
            files::Entry::Other => return Ok(false),
        }
    }
    if total == 0 {
        return Ok(true);
    }
    if total > MAX_UNBORN {
        return Ok(false);
    }
    let file = match TenantFile::locate(path, tenant, inner.keyring.as_deref()) {
        Ok(file) => file,
        // Whether it holds data is not to be seen now, and so it is not for us to remove.
        Err(e @ ProviderError::KeyUnavailable { .. }) => return Err(e),
        Err(_) => return Ok(false),
    };
    let head = connection::inspector(&file).and_then(|conn| schema::read_head(&conn, &file));
    Ok(!matches!(head, Ok(head) if head != Head::EMPTY))
}

/// Opens a file that is not registered and checks its format, tables and pages.
pub(super) fn quick_check(path: &TenantFile) -> ProviderResult<()> {
    let conn = connection::inspector(path)?;
    connection::touch(&conn, path).map_err(|e| path.explain(e))?;
    schema::check(&conn, path)?;
    schema::read_head(&conn, path)?;
    let fail = |e| classify("checking", path, e);
    let found: String = conn
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(fail)?;
    if found != "ok" {
        return Err(corrupt(path, found));
    }
    path.authentic(&conn)?;
    conn.close().map_err(|(_, e)| fail(e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_agrees_with_the_disk_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("X");
        std::fs::write(&upper, "").unwrap();
        let expected = dir.path().join("x").exists();
        std::fs::remove_file(&upper).unwrap();
        assert_eq!(ignores_case(dir.path()).unwrap(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Those that crashes left go.
        for left in ["", "0", "0123456789abcdef"] {
            std::fs::write(dir.path().join(format!("{PROBE}{left}")), "").unwrap();
        }
        assert_eq!(ignores_case(dir.path()).unwrap(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let e = ignores_case(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
    }
}
