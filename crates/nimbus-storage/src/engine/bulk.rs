//! Bulk import: many documents in one commit, with the progress of the whole import beside them.
//!
//! An import is a sequence of numbered lines under a name. Each chunk commits its documents
//! and the number of lines done together, so an import that was cut off goes on where it
//! was, and a chunk that is sent twice is inserted once. File formats are not known here.

use bytes::Bytes;
use nimbus_core::{Object, TableName};
use serde::{Deserialize, Serialize};

use super::tenant::Tenant;
use super::txn::Transaction;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Documents that one chunk may hold.
pub const MAX_IMPORT_CHUNK: usize = 2_000;
/// Longest name of an import, in characters of `[A-Za-z0-9._-]`.
pub const MAX_IMPORT_NAME: usize = 128;

/// One document of an import, with the line that it came from.
#[derive(Clone, Debug)]
pub struct ImportRow {
    /// Line in the source, from 1; increasing within an import.
    pub line: u64,
    /// The document's fields.
    pub fields: Object,
}

#[derive(Serialize, Deserialize)]
struct Progress {
    lines: u64,
}

impl Tenant {
    /// Inserts the rows that are beyond the import's progress and moves it to `last_line`,
    /// in one commit. Returns the documents inserted.
    ///
    /// # Errors
    /// [`StoreError::AtLine`] with the line and the reason if a row is refused: nothing of the
    /// chunk is then inserted. `InvalidInput` for a bad name, too many rows or lines out of order.
    pub async fn import_chunk(
        &self,
        table: &TableName,
        import: &str,
        rows: Vec<ImportRow>,
        last_line: u64,
    ) -> StoreResult<u64> {
        let key = progress_key(table, import)?;
        check_rows(&rows, last_line)?;
        self.transact(move |tx| {
            let (table, key, rows) = (table.clone(), key.clone(), rows.clone());
            Box::pin(async move { insert(tx, &table, &key, rows, last_line).await })
        })
        .await
    }

    /// Lines of an import that are done: 0 for one that has not begun.
    ///
    /// # Errors
    /// `InvalidInput` for a bad name.
    pub async fn import_progress(&self, table: &TableName, import: &str) -> StoreResult<u64> {
        let key = progress_key(table, import)?;
        let mut view = self.inner.durable_view(false).await?;
        decode(view.get(Keyspace::Jobs, &key).await?)
    }

    /// Forgets an import's progress once it is complete.
    ///
    /// # Errors
    /// `InvalidInput` for a bad name.
    pub async fn finish_import(&self, table: &TableName, import: &str) -> StoreResult<()> {
        let key = progress_key(table, import)?;
        self.transact(move |tx| {
            let key = key.clone();
            Box::pin(async move {
                let before = tx.view.get(Keyspace::Jobs, &key).await?;
                match before {
                    Some(_) => tx.view.put(Keyspace::Jobs, &key, before, None),
                    None => Ok(()),
                }
            })
        })
        .await
    }
}

async fn insert(
    tx: &mut Transaction,
    table: &TableName,
    key: &[u8],
    rows: Vec<ImportRow>,
    last_line: u64,
) -> StoreResult<u64> {
    let before = tx.view.get(Keyspace::Jobs, key).await?;
    let done = decode(before.clone())?;
    if last_line <= done {
        return Ok(0);
    }
    let mut inserted = 0;
    for row in rows.into_iter().filter(|row| row.line > done) {
        let line = row.line;
        tx.insert(table, row.fields)
            .await
            .map_err(|source| StoreError::AtLine {
                line,
                source: Box::new(source),
            })?;
        inserted += 1;
    }
    let after = serde_json::to_vec(&Progress { lines: last_line })
        .map_err(|e| StoreError::corrupt(e.to_string()))?;
    tx.view
        .put(Keyspace::Jobs, key, before, Some(Bytes::from(after)))?;
    Ok(inserted)
}

fn check_rows(rows: &[ImportRow], last_line: u64) -> StoreResult<()> {
    if rows.len() > MAX_IMPORT_CHUNK {
        return Err(StoreError::CapExceeded {
            cap: "import_rows",
            limit: MAX_IMPORT_CHUNK as u64,
            observed: rows.len() as u64,
            advice: "send smaller chunks",
        });
    }
    let ordered = rows.windows(2).all(|pair| pair[0].line < pair[1].line);
    let inside = rows
        .iter()
        .all(|row| row.line >= 1 && row.line <= last_line);
    if ordered && inside {
        return Ok(());
    }
    Err(StoreError::invalid(
        "import lines must increase from 1 to `last_line`",
    ))
}

fn progress_key(table: &TableName, import: &str) -> StoreResult<Vec<u8>> {
    let fits = !import.is_empty()
        && import.len() <= MAX_IMPORT_NAME
        && import
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !fits {
        return Err(StoreError::invalid(format!(
            "an import's name is 1 to {MAX_IMPORT_NAME} letters, digits, `.`, `_` or `-`"
        )));
    }
    Ok(format!("import/{table}/{import}").into_bytes())
}

fn decode(stored: Option<Bytes>) -> StoreResult<u64> {
    let Some(stored) = stored else { return Ok(0) };
    let progress: Progress = serde_json::from_slice(&stored)
        .map_err(|e| StoreError::corrupt(format!("import progress: {e}")))?;
    Ok(progress.lines)
}
