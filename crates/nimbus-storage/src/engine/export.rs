//! Export of a table: every document as it was at one commit, however long the reading takes.
//!
//! How that state is kept together is the business of `asof`. File formats are not known here.

use nimbus_core::{DocumentId, TableName};

use super::Document;
use super::asof::{AsOf, Keep};
use super::tenant::Tenant;
use crate::error::{StoreError, StoreResult};
use crate::provider::{KeyRange, Keyspace, Row};

const KEEP: Keep = Keep {
    values: true,
    cap: "export_changes",
    advice: "too much of the table was written while it was exported; export it again, \
             with a faster reader or at a quieter time",
};

/// A table as it was at one commit, read step by step. Keeps the tenant open and the part of the
/// commit log that it has not read yet.
pub struct Export {
    sequence: u64,
    rows: AsOf,
}

impl Tenant {
    /// Begins to read all documents of a table as they are now, oldest first.
    ///
    /// # Errors
    /// `TableNotFound`, or the provider's failure.
    pub async fn export(&self, table: &TableName) -> StoreResult<Export> {
        // Pinned first: what is pruned meanwhile is older than the view.
        let pin = self.pin_log(self.inner.state().durable.sequence);
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let Some(def) = view.catalog.table(table) else {
            return Err(StoreError::TableNotFound {
                table: table.clone(),
            });
        };
        let documents = KeyRange::prefix(&def.number.get().to_be_bytes());
        let ranges = [(Keyspace::Docs, documents)];
        let rows = AsOf::begin(self, &mut view, pin, ranges, KEEP).await?;
        Ok(Export {
            sequence: view.read_sequence,
            rows,
        })
    }
}

impl Export {
    /// The commit after which the table was as it is read.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next documents; none at the end.
    ///
    /// # Errors
    /// `CapExceeded` when too many documents that are still to come were changed;
    /// `OutOfRetention` or `Closed` when the tenant was taken away; the provider's failure. The
    /// export cannot go on then.
    pub async fn next(&mut self) -> StoreResult<Vec<Document>> {
        while let Some((_, rows)) = self.rows.next().await? {
            if !rows.is_empty() {
                return rows.into_iter().map(document).collect();
            }
        }
        Ok(Vec::new())
    }
}

fn document((key, json): Row) -> StoreResult<Document> {
    let id = DocumentId::from_key(&key)
        .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
    Ok(Document { id, json })
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
