//! Checks of files that are not open: what an interrupted creation left, and files that are taken in.
//!
//! Must not remove anything: it says what is there.

use std::path::Path;
use std::sync::Arc;

use nimbus_core::TenantId;

use super::error::{classify, corrupt};
use super::file::TenantFile;
use super::{connection, schema};
use crate::encryption::Keyring;
use crate::provider::files::appended;
use crate::provider::{Head, ProviderError, ProviderResult, files};

/// Bytes that an empty tenant can have on disk; it has about 64 KiB.
const MAX_UNBORN: u64 = 256 << 10;

/// Whether there is nothing that a tenant was ever told of: no commit, and a small file, torn or not.
pub(super) fn is_unborn(
    keyring: Option<&Arc<Keyring>>,
    tenant: &TenantId,
    path: &Path,
) -> ProviderResult<bool> {
    let mut total = 0;
    for path in [path.to_owned(), appended(path, "-wal")] {
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
    let file = match TenantFile::locate(path.to_owned(), tenant, keyring) {
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
