//! What goes wrong with a statement, with a stream and with a request, and what sqld calls it.
//! It must not know how any of it is found out.

use http::StatusCode;
use rusqlite::ffi;

use crate::proto;

/// A statement failed; its stream lives on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SqlError {
    #[error("SQL string could not be parsed: {0}")]
    Parse(String),
    #[error("SQL string does not contain any statement")]
    NoStatement,
    #[error("SQL string contains more than one statement")]
    ManyStatements,
    #[error("Arguments do not match SQL parameters: {0}")]
    Args(String),
    #[error("Specifying both positional and named arguments is not supported")]
    BothArgs,
    #[error("Transaction timed-out")]
    TransactionTimeout,
    #[error("Response is too large, more than {0} bytes")]
    TooLarge(usize),
    #[error("SQLite error: {message}")]
    Sqlite { code: i32, message: String },
}

impl SqlError {
    /// With the extended names of SQLite's codes, or with the primary ones.
    pub(crate) fn wire(&self, extended: bool) -> proto::Error {
        let code = match self {
            SqlError::Parse(_) => "SQL_PARSE_ERROR",
            SqlError::NoStatement => "SQL_NO_STATEMENT",
            SqlError::ManyStatements => "SQL_MANY_STATEMENTS",
            SqlError::Args(_) => "ARGS_INVALID",
            SqlError::BothArgs => "ARGS_BOTH_POSITIONAL_AND_NAMED",
            SqlError::TransactionTimeout => "TRANSACTION_TIMEOUT",
            SqlError::TooLarge(_) => "RESPONSE_TOO_LARGE",
            SqlError::Sqlite { code, .. } if extended => name(*code),
            SqlError::Sqlite { code, .. } => name(code & 0xff),
        };
        proto::Error {
            message: self.to_string(),
            code: code.to_owned(),
        }
    }

    pub(crate) fn sqlite(code: i32, message: &str) -> SqlError {
        let message = message.to_owned();
        SqlError::Sqlite { code, message }
    }
}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> SqlError {
        use rusqlite::Error::{MultipleStatement, SqlInputError, SqliteFailure};
        match error {
            MultipleStatement => SqlError::ManyStatements,
            SqlInputError { msg, .. } if is_syntax(&msg) => SqlError::Parse(msg),
            SqlInputError { error, msg, .. } => SqlError::sqlite(error.extended_code, &msg),
            SqliteFailure(error, message) => {
                let message = message.unwrap_or_else(|| error.to_string());
                SqlError::sqlite(error.extended_code, &message)
            }
            other => SqlError::sqlite(ffi::SQLITE_ERROR, &other.to_string()),
        }
    }
}

/// sqld reads statements with a parser of its own before SQLite sees them.
fn is_syntax(message: &str) -> bool {
    ["syntax error", "incomplete input", "unrecognized token"]
        .iter()
        .any(|part| message.contains(part))
}

/// Where the extended code has no name here, the one of its primary code.
fn name(code: i32) -> &'static str {
    match code {
        ffi::SQLITE_BUSY_RECOVERY => "SQLITE_BUSY_RECOVERY",
        ffi::SQLITE_BUSY_SNAPSHOT => "SQLITE_BUSY_SNAPSHOT",
        ffi::SQLITE_CONSTRAINT_CHECK => "SQLITE_CONSTRAINT_CHECK",
        ffi::SQLITE_CONSTRAINT_DATATYPE => "SQLITE_CONSTRAINT_DATATYPE",
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "SQLITE_CONSTRAINT_FOREIGNKEY",
        ffi::SQLITE_CONSTRAINT_NOTNULL => "SQLITE_CONSTRAINT_NOTNULL",
        ffi::SQLITE_CONSTRAINT_PRIMARYKEY => "SQLITE_CONSTRAINT_PRIMARYKEY",
        ffi::SQLITE_CONSTRAINT_ROWID => "SQLITE_CONSTRAINT_ROWID",
        ffi::SQLITE_CONSTRAINT_TRIGGER => "SQLITE_CONSTRAINT_TRIGGER",
        ffi::SQLITE_CONSTRAINT_UNIQUE => "SQLITE_CONSTRAINT_UNIQUE",
        _ => primary(code & 0xff),
    }
}

fn primary(code: i32) -> &'static str {
    match code {
        ffi::SQLITE_ERROR => "SQLITE_ERROR",
        ffi::SQLITE_INTERNAL => "SQLITE_INTERNAL",
        ffi::SQLITE_PERM => "SQLITE_PERM",
        ffi::SQLITE_ABORT => "SQLITE_ABORT",
        ffi::SQLITE_BUSY => "SQLITE_BUSY",
        ffi::SQLITE_LOCKED => "SQLITE_LOCKED",
        ffi::SQLITE_NOMEM => "SQLITE_NOMEM",
        ffi::SQLITE_READONLY => "SQLITE_READONLY",
        ffi::SQLITE_INTERRUPT => "SQLITE_INTERRUPT",
        ffi::SQLITE_IOERR => "SQLITE_IOERR",
        ffi::SQLITE_CORRUPT => "SQLITE_CORRUPT",
        ffi::SQLITE_FULL => "SQLITE_FULL",
        ffi::SQLITE_CANTOPEN => "SQLITE_CANTOPEN",
        ffi::SQLITE_SCHEMA => "SQLITE_SCHEMA",
        ffi::SQLITE_TOOBIG => "SQLITE_TOOBIG",
        ffi::SQLITE_CONSTRAINT => "SQLITE_CONSTRAINT",
        ffi::SQLITE_MISMATCH => "SQLITE_MISMATCH",
        ffi::SQLITE_MISUSE => "SQLITE_MISUSE",
        ffi::SQLITE_AUTH => "SQLITE_AUTH",
        ffi::SQLITE_RANGE => "SQLITE_RANGE",
        ffi::SQLITE_NOTADB => "SQLITE_NOTADB",
        _ => "SQLITE_UNKNOWN",
    }
}

/// The client broke the protocol: 400, and the stream is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ProtocolError {
    #[error("Received an invalid baton")]
    BatonInvalid,
    #[error("Received baton has already been used")]
    BatonReused,
    #[error("The stream has expired due to inactivity")]
    StreamExpired,
    #[error("SQL text {0} not found")]
    SqlNotFound(i32),
    #[error("SQL text {0} already exists")]
    SqlExists(i32),
    #[error("exactly one of `sql` and `sql_id` is expected")]
    SqlOrId,
    #[error("A condition refers to step {0}, which does not come before its own")]
    BadStep(usize),
    #[error("{0} is supported only in protocol version 3")]
    NotInVersion2(&'static str),
    #[error("The stream was closed by an earlier request of this pipeline")]
    Closed,
}

impl ProtocolError {
    pub(crate) fn wire(&self) -> proto::Error {
        let code = match self {
            ProtocolError::BatonInvalid => "BATON_INVALID",
            ProtocolError::BatonReused => "BATON_REUSED",
            ProtocolError::StreamExpired => "STREAM_EXPIRED",
            ProtocolError::SqlNotFound(_) => "SQL_NOT_FOUND",
            ProtocolError::SqlExists(_) => "SQL_EXISTS",
            ProtocolError::SqlOrId => "SQL_OR_ID",
            ProtocolError::BadStep(_) => "BATCH_COND_BAD_STEP",
            ProtocolError::NotInVersion2(_) => "NOT_SUPPORTED",
            ProtocolError::Closed => "STREAM_CLOSED",
        };
        proto::Error {
            message: self.to_string(),
            code: code.to_owned(),
        }
    }
}

/// A request is refused as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Refusal {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("Unauthorized")]
    Unauthorized,
    #[error("Namespace `{0}` doesn't exist")]
    NoNamespace(String),
    #[error("Namespace `{0}` already exists")]
    NamespaceExists(String),
    #[error("Invalid namespace name `{0}`: 1 to 63 characters of A-Z, a-z, 0-9, _ and -")]
    BadName(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("Not found")]
    NotFound,
    #[error("Method not allowed")]
    Method,
    #[error("Expected request with `Content-Type: application/json`")]
    MediaType,
    #[error("Request body is larger than {0} bytes")]
    Body(usize),
    #[error("Too many open streams")]
    Streams,
    #[error("Internal error: {0}")]
    Internal(String),
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::Protocol(_)
            | Refusal::NamespaceExists(_)
            | Refusal::BadName(_)
            | Refusal::BadRequest(_) => StatusCode::BAD_REQUEST,
            Refusal::Unauthorized => StatusCode::UNAUTHORIZED,
            Refusal::NoNamespace(_) | Refusal::NotFound => StatusCode::NOT_FOUND,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::Body(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Streams => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Refusal {
        Refusal::Internal(error.to_string())
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Refusal {
        Refusal::Internal(error.to_string())
    }
}
