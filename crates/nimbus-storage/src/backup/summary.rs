//! What a backup turned out to hold. It must not know how it was read.

use nimbus_core::TenantId;
use serde::Serialize;

/// What a backup holds, once all of it was read and found whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Summary {
    /// When it was begun, in milliseconds since 1970-01-01.
    pub created_at_ms: u64,
    /// The version of Nimbus that made it.
    pub nimbus: String,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Its tenants, or those of them that were asked for.
    pub tenants: Vec<TenantSummary>,
    /// Tenants that were deleted while it was made, and are not in it.
    pub deleted: Vec<TenantId>,
}

/// One tenant of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TenantSummary {
    /// Its id.
    pub tenant: TenantId,
    /// The commit after which it was as the backup has it.
    pub sequence: u64,
    /// Time of that commit, in nanoseconds since 1970-01-01.
    pub timestamp: u64,
    /// Documents.
    pub documents: u64,
    /// Rows, documents included.
    pub rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}
