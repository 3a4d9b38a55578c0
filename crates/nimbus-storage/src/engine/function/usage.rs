//! What one transaction of a function read and wrote, and the limits of convex.md 5.9.
//!
//! A document's bytes are those of its stored JSON text. A read is counted when the function gets the
//! document or a filter looks at it, not when it is fetched ahead; in a run of index keys that are cut
//! (design section 2), when the run is put in order.

use super::{FunctionError, FunctionResult};
use crate::engine::view::MAX_WRITES;
use crate::error::{StoreError, StoreResult};

/// Documents that one transaction may read.
pub const MAX_FUNCTION_DOCUMENTS_READ: u64 = 32_000;
/// Bytes of documents that one transaction may read: 16 MiB.
pub const MAX_FUNCTION_BYTES_READ: u64 = 16 * 1024 * 1024;
/// Index ranges and single documents that one transaction may ask for.
pub const MAX_FUNCTION_QUERIES: u64 = 4_096;
/// Documents that one transaction may write, each time it writes one.
pub const MAX_FUNCTION_DOCUMENTS_WRITTEN: u64 = 16_000;
/// Bytes of documents that one transaction may write: 16 MiB.
pub const MAX_FUNCTION_BYTES_WRITTEN: u64 = 16 * 1024 * 1024;

/// Documents that a count looks at for one query.
const SCANNED_PER_QUERY: u64 = 1_000;

const LESS: &str = "Consider using smaller limits in your queries, paginating your queries, or \
                    using indexed queries with a selective index range expressions.";

/// What a transaction used so far; see [`crate::Transaction::usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionUsage {
    /// Index ranges and single documents asked for.
    pub database_queries: u64,
    /// Documents read.
    pub documents_read: u64,
    /// Bytes of these.
    pub bytes_read: u64,
    /// Documents inserted, changed or deleted, each time.
    pub documents_written: u64,
    /// Bytes of these, as they are afterwards.
    pub bytes_written: u64,
}

impl TransactionUsage {
    pub(super) fn count_query(&mut self) -> FunctionResult<()> {
        self.database_queries += 1;
        if self.database_queries <= MAX_FUNCTION_QUERIES {
            return Ok(());
        }
        let limit = format!(
            "Too many reads in a single function execution (limit: {MAX_FUNCTION_QUERIES}). {LESS}"
        );
        Err(FunctionError::user("TooManyReads", limit))
    }

    /// Counts a scan of so many documents that the function does not get: each 1,000 as a query, the
    /// first of which was counted.
    pub(super) fn count_scanned(&mut self, before: u64, after: u64) -> FunctionResult<()> {
        (before / SCANNED_PER_QUERY..after / SCANNED_PER_QUERY).try_for_each(|_| self.count_query())
    }

    /// Whether a document of this many bytes can still be read.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.documents_read < MAX_FUNCTION_DOCUMENTS_READ
            && self.bytes_read + bytes as u64 <= MAX_FUNCTION_BYTES_READ
    }

    pub(super) fn count_read(&mut self, bytes: usize) -> FunctionResult<()> {
        self.documents_read += 1;
        self.bytes_read += bytes as u64;
        if self.documents_read > MAX_FUNCTION_DOCUMENTS_READ {
            return Err(FunctionError::user(
                "TooManyDocumentsRead",
                format!(
                    "Too many documents read in a single function execution (limit: {MAX_FUNCTION_DOCUMENTS_READ}). {LESS}"
                ),
            ));
        }
        if self.bytes_read > MAX_FUNCTION_BYTES_READ {
            return Err(FunctionError::user(
                "TooManyBytesRead",
                format!(
                    "Too many bytes read in a single function execution (limit: {MAX_FUNCTION_BYTES_READ} bytes). {LESS}"
                ),
            ));
        }
        Ok(())
    }

    /// Counts a write that is about to be made.
    pub(crate) fn count_write(&mut self, bytes: usize) -> StoreResult<()> {
        self.documents_written += 1;
        self.bytes_written += bytes as u64;
        let over = |cap, limit, observed| {
            Err(StoreError::CapExceeded {
                cap,
                limit,
                observed,
                advice: "write less in one function",
            })
        };
        if self.documents_written > MAX_FUNCTION_DOCUMENTS_WRITTEN {
            let limit = MAX_FUNCTION_DOCUMENTS_WRITTEN;
            return over(DOCUMENTS_WRITTEN, limit, self.documents_written);
        }
        if self.bytes_written > MAX_FUNCTION_BYTES_WRITTEN {
            let limit = MAX_FUNCTION_BYTES_WRITTEN;
            return over(BYTES_WRITTEN, limit, self.bytes_written);
        }
        Ok(())
    }
}

/// Names of the bounds on writes, which are checked where the writes of all callers are made.
const DOCUMENTS_WRITTEN: &str = "function_documents_written";
const BYTES_WRITTEN: &str = "function_bytes_written";

/// The error of a function for a bound that the engine found passed.
pub(super) fn over(cap: &str, text: String) -> FunctionError {
    match cap {
        DOCUMENTS_WRITTEN => FunctionError::user(
            "TooManyWrites",
            format!(
                "Too many writes in a single function execution (limit: {MAX_FUNCTION_DOCUMENTS_WRITTEN})"
            ),
        ),
        // The engine's own bound on a transaction counts what the system adds as well.
        BYTES_WRITTEN | "transaction_writes" => FunctionError::user(
            "TooManyBytesWritten",
            format!(
                "Too many bytes written in a single function execution (limit: {MAX_FUNCTION_BYTES_WRITTEN} bytes)"
            ),
        ),
        "transaction_keys" => FunctionError::user(
            "TooManyWrites",
            format!(
                "Too many keys written in a single function execution, index entries included (limit: {MAX_WRITES})"
            ),
        ),
        _ => FunctionError::user("LimitExceeded", text),
    }
}
