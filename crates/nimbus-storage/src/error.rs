//! The one error type of the engine: what a caller of a tenant can be told.
//!
//! `Display` is the outside text and may be sent to a client. Paths, SQL and causes are
//! inside text: they are reached through [`std::error::Error::source`] and only logged. HTTP status
//! codes are not known here; [`StoreError::code`] names the error in the shared vocabulary.

use std::fmt;

use nimbus_core::{DocumentId, ErrorCode, TableName, TenantId, ValidationFailure};
use thiserror::Error;

use crate::provider::ProviderError;
use nimbus_crypto::{KeyError, KeyFileError, ManifestError};

/// Result of an engine call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Random name of a commit, by which an unknown outcome can be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitId(pub [u8; 16]);

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitId({self})")
    }
}

impl std::str::FromStr for CommitId {
    type Err = StoreError;

    fn from_str(s: &str) -> StoreResult<CommitId> {
        let bytes = data_encoding::HEXLOWER
            .decode(s.as_bytes())
            .ok()
            .and_then(|b| <[u8; 16]>::try_from(b).ok());
        bytes
            .map(CommitId)
            .ok_or_else(|| StoreError::invalid("a commit id is 32 lower-case hexadecimal digits"))
    }
}

/// One way in which a document contradicts its table's schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as a dotted path.
    pub field: String,
    /// What the schema asks for, for example `string`.
    pub expected: String,
    /// What was found: a type name, or `missing`.
    pub found: String,
}

/// Failure of an engine call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A line of an import was refused; nothing of its chunk was inserted.
    #[error("line {line}: {source}")]
    AtLine {
        /// Line in the source, from 1.
        line: u64,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The answer would pass a bound.
    #[error("the {cap} cap of {limit} was reached (observed {observed}); {advice}")]
    CapExceeded {
        /// Which bound, for example `result_documents`.
        cap: &'static str,
        /// The bound.
        limit: u64,
        /// What was seen when it was passed.
        observed: u64,
        /// What to do instead.
        advice: &'static str,
    },
    /// The tenant is being closed or deleted.
    #[error("the tenant is closing; try again")]
    Closed,
    /// The transaction kept conflicting with others.
    #[error("the transaction conflicted with concurrent writes {attempts} times; try again")]
    Conflict {
        /// Runs made.
        attempts: u32,
        /// A table whose documents were read and changed meanwhile, if it is known.
        table: Option<TableName>,
    },
    /// Stored data contradicts itself.
    #[error("stored data is damaged; run the consistency check and restore from a backup")]
    Corrupt {
        /// What contradicts what.
        inside: String,
    },
    /// A cursor that was edited, belongs to another query or to another tenant.
    #[error("the cursor does not belong to this query: {reason}; start again without `after`")]
    Cursor {
        /// Why it was refused.
        reason: &'static str,
    },
    /// No document has this id.
    #[error("no document {id} in table {table}")]
    DocumentNotFound {
        /// The table asked.
        table: TableName,
        /// The id as given.
        id: String,
    },
    /// The request contradicts a rule; the text says which.
    #[error("{message}")]
    InvalidInput {
        /// Outside text.
        message: String,
    },
    /// The request would read more than a call may without an index.
    #[error("the query would scan more than {limit} documents; declare an index on {}", fields.join(", "))]
    MissingIndex {
        /// Fields that an index should start with.
        fields: Vec<String>,
        /// Documents that a call may scan.
        limit: u64,
    },
    /// Whether the commit is durable is not known.
    #[error("the outcome of commit {commit} is unknown; look it up before trying again")]
    OutcomeUnknown {
        /// Name of the commit.
        commit: CommitId,
        /// The cause.
        inside: String,
    },
    /// A log position that was pruned, or that is not written yet.
    #[error("sequence {requested} is outside the retained log ({floor}..={head})")]
    OutOfRetention {
        /// The position asked for.
        requested: u64,
        /// Oldest position that can be read from.
        floor: u64,
        /// Newest sequence.
        head: u64,
    },
    /// A time whose state is not kept any more, or that is still to come.
    #[error("the state at {requested} ns is not kept; the newest is that of {newest} ns")]
    TimestampOutOfRetention {
        /// The time asked for, ns since 1970-01-01.
        requested: u64,
        /// Time of the newest commit.
        newest: u64,
    },
    /// Another version of the policy is current than the caller expected; nothing changed.
    #[error(
        "version {current} of the policy is current, not {expected} (0: none); read it and try again"
    )]
    PolicyVersion {
        /// What the caller expected; 0 for none.
        expected: u64,
        /// What there is; 0 for none.
        current: u64,
    },
    /// The tenant would hold more than it may; nothing was written.
    #[error(
        "the {quota} quota of {limit} is used up: there would be {observed}; nothing was written; delete documents, or have the quota raised"
    )]
    QuotaExceeded {
        /// Which one: `documents` or `storage_bytes`.
        quota: &'static str,
        /// What the tenant may hold.
        limit: u64,
        /// What it would hold after the commit.
        observed: u64,
    },
    /// Too many transactions wait for the committer.
    #[error("too many transactions wait to commit; try again")]
    QueueFull,
    /// A restore of the tenant was cut off; what there is of it cannot be used.
    #[error(
        "the restore of tenant {tenant} was not finished; run `nimbus backup restore` again, or `nimbus tenants delete {tenant}`"
    )]
    RestoreUnfinished {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// A document contradicts the schema of the deployed functions; the text is Convex's.
    #[error(
        "Failed to insert or update a document in table \"{table}\" because it does not match the schema: {failure}"
    )]
    SchemaEnforcement {
        /// The table.
        table: TableName,
        /// Why the document does not match.
        failure: Box<ValidationFailure>,
    },
    /// The table has no schema.
    #[error("table {table} has no schema")]
    SchemaNotFound {
        /// The table asked for.
        table: TableName,
    },
    /// The document contradicts the schema.
    #[error(
        "the document does not match the schema of table {table}: {}",
        describe(violations)
    )]
    SchemaViolation {
        /// The table.
        table: TableName,
        /// An existing document that contradicts a new schema; `None` for the document written.
        id: Option<DocumentId>,
        /// At least one.
        violations: Vec<Violation>,
    },
    /// The provider failed.
    #[error("storage failed; the request id leads to the cause in the server log")]
    Storage(#[source] ProviderError),
    /// No space before the commit; nothing was written.
    #[error("storage is full; nothing was written; free space and try again")]
    StorageFull {
        /// What was full.
        inside: String,
    },
    /// The table has no document and no schema, and never had.
    #[error("table {table} does not exist")]
    TableNotFound {
        /// The table asked for.
        table: TableName,
    },
    /// The tenant exists already.
    #[error("tenant {tenant} exists already")]
    TenantExists {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// The tenant is with another provider from now on.
    #[error(
        "tenant {tenant} was moved to {to}, which this server does not serve; start it with --also-tenant-provider {to}"
    )]
    TenantMoved {
        /// The tenant asked for.
        tenant: TenantId,
        /// The provider that keeps it.
        to: String,
    },
    /// What is here of the tenant is an unfinished copy.
    #[error(
        "this provider has an unfinished copy of tenant {tenant}, from a move that did not end; start the server with the \
         provider that it was being moved from, or remove the copy with `nimbus tenants delete {tenant}`"
    )]
    TenantArriving {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// Another tenant's id differs only by case and the disk ignores case.
    #[error(
        "tenant {tenant} cannot be created: tenant {existing} exists and the data directory's disk does not tell upper from lower case"
    )]
    TenantNameClash {
        /// The tenant asked for.
        tenant: TenantId,
        /// The registered one.
        existing: TenantId,
    },
    /// No such tenant.
    #[error("tenant {tenant} does not exist")]
    TenantNotFound {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// Data of that tenant lies in storage but is not registered.
    #[error(
        "data of tenant {tenant} exists but is not registered; `nimbus tenants adopt {tenant}` takes it in"
    )]
    TenantUnregistered {
        /// The tenant asked for.
        tenant: TenantId,
    },
}

fn describe(violations: &[Violation]) -> String {
    let mut out = String::new();
    for (i, v) in violations.iter().take(8).enumerate() {
        if i > 0 {
            out.push_str("; ");
        }
        out.push_str(&format!(
            "`{}` must be {}, found {}",
            v.field, v.expected, v.found
        ));
    }
    if violations.len() > 8 {
        out.push_str(&format!("; and {} more", violations.len() - 8));
    }
    out
}

impl StoreError {
    /// An [`StoreError::InvalidInput`] with an outside text.
    pub fn invalid(message: impl Into<String>) -> StoreError {
        StoreError::InvalidInput {
            message: message.into(),
        }
    }

    /// An [`StoreError::Corrupt`] with an inside text.
    pub fn corrupt(inside: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            inside: inside.into(),
        }
    }

    /// The error's name in the shared vocabulary.
    pub fn code(&self) -> ErrorCode {
        match self {
            StoreError::AtLine { source, .. } => source.code(),
            StoreError::CapExceeded { .. } => ErrorCode::OpCapExceeded,
            StoreError::Closed
            | StoreError::RestoreUnfinished { .. }
            | StoreError::TenantArriving { .. }
            | StoreError::TenantMoved { .. } => ErrorCode::ServiceUnavailable,
            StoreError::Conflict { .. } => ErrorCode::OpConflict,
            StoreError::Corrupt { .. } => ErrorCode::ServiceStorageCorruption,
            StoreError::Cursor { .. } | StoreError::InvalidInput { .. } => {
                ErrorCode::OpInvalidInput
            }
            StoreError::DocumentNotFound { .. } => ErrorCode::OpDocumentNotFound,
            StoreError::MissingIndex { .. } => ErrorCode::OpMissingIndex,
            StoreError::OutcomeUnknown { .. } => ErrorCode::ServiceStorageTransient,
            StoreError::OutOfRetention { .. } | StoreError::TimestampOutOfRetention { .. } => {
                ErrorCode::OpOutOfRetention
            }
            StoreError::PolicyVersion { .. } => ErrorCode::OpPreconditionFailed,
            StoreError::QuotaExceeded { .. } => ErrorCode::RateResourceExhausted,
            StoreError::QueueFull => ErrorCode::RateCommitterFull,
            StoreError::SchemaNotFound { .. } => ErrorCode::OpSchemaNotFound,
            StoreError::SchemaEnforcement { .. } | StoreError::SchemaViolation { .. } => {
                ErrorCode::OpSchemaValidation
            }
            StoreError::Storage(e) => match e {
                ProviderError::Busy { .. } => ErrorCode::ServiceStorageBusy,
                ProviderError::Closed | ProviderError::KeyUnavailable { .. } => {
                    ErrorCode::ServiceUnavailable
                }
                ProviderError::Corrupt { .. } => ErrorCode::ServiceStorageCorruption,
                ProviderError::Io { .. } => ErrorCode::ServiceStorageIo,
                _ => ErrorCode::ServiceStorageOther,
            },
            StoreError::StorageFull { .. } => ErrorCode::ServiceStorageFull,
            StoreError::TableNotFound { .. } => ErrorCode::OpNotFound,
            StoreError::TenantExists { .. }
            | StoreError::TenantNameClash { .. }
            | StoreError::TenantUnregistered { .. } => ErrorCode::OpAlreadyExists,
            StoreError::TenantNotFound { .. } => ErrorCode::SessionTenantNotFound,
        }
    }

    /// What the log should say beyond the outside text.
    pub fn inside(&self) -> Option<String> {
        match self {
            StoreError::AtLine { source, .. } => source.inside(),
            StoreError::Corrupt { inside }
            | StoreError::OutcomeUnknown { inside, .. }
            | StoreError::StorageFull { inside } => Some(inside.clone()),
            StoreError::Storage(e) => Some(e.to_string()),
            _ => None,
        }
    }
}

/// What an operator has to do before this tenant can have a key; `None` for other causes. Names the key
/// file and no directory.
fn no_key(e: &ManifestError) -> Option<String> {
    let ManifestError::Key(e) = e else {
        return None;
    };
    match e {
        KeyError::Subject(e) => Some(e.to_string()),
        KeyError::KeyFile(KeyFileError::Missing { path }) => {
            let name = path.file_name()?.to_string_lossy();
            Some(format!(
                "the key directory has no file {name}: put one there first"
            ))
        }
        _ => None,
    }
}

impl From<ProviderError> for StoreError {
    fn from(e: ProviderError) -> StoreError {
        match e {
            ProviderError::AlreadyExists { tenant } => StoreError::TenantExists { tenant },
            ProviderError::Closed => StoreError::Closed,
            ProviderError::Full { what } => StoreError::StorageFull { inside: what },
            ProviderError::NameClash { tenant, existing } => {
                StoreError::TenantNameClash { tenant, existing }
            }
            ProviderError::NotFound { tenant } => StoreError::TenantNotFound { tenant },
            ProviderError::Unregistered { tenant, .. } => StoreError::TenantUnregistered { tenant },
            ProviderError::Locked { ref source, .. } => match no_key(source) {
                Some(message) => StoreError::InvalidInput { message },
                None => StoreError::Storage(e),
            },
            other => StoreError::Storage(other),
        }
    }
}
