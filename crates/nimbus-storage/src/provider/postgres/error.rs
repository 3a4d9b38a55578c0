//! What Postgres reports, told apart as far as the provider acts on it.
//!
//! Must not know statements: the caller says what it was doing.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::provider::{ProviderError, external};

pub(super) use crate::provider::external::error::Kind;

/// The kind of an error; see [`Kind`].
pub(super) fn kind(error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Database(e) => match e.try_downcast_ref::<PgDatabaseError>() {
            Some(e) => kind_of(e),
            None => Kind::Refused,
        },
        sqlx::Error::Encode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            Kind::Refused
        }
        // Io, Tls, Protocol and what may come: nothing is known.
        _ => Kind::Lost,
    }
}

fn kind_of(error: &PgDatabaseError) -> Kind {
    match error.code() {
        "53300" => Kind::NoConnection,
        // The server ends the session, perhaps after it committed.
        _ if matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic) => Kind::Lost,
        "40001" | "40P01" | "55P03" | "57014" | "53200" | "55006" | "25006" => Kind::Passing,
        "53100" => Kind::Full,
        "42P01" | "3F000" => Kind::Gone,
        code if code.starts_with("08") || code.starts_with("57P") => Kind::Lost,
        _ => Kind::Refused,
    }
}

/// Whether the server reported this SQLSTATE.
pub(super) fn is_state(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(|e| e.code()).as_deref() == Some(code)
}

/// What the server said, with its SQLSTATE and hint.
pub(super) fn text(error: &sqlx::Error) -> String {
    let Some(e) = error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<PgDatabaseError>())
    else {
        return error.to_string();
    };
    let mut text = format!("{} (SQLSTATE {})", e.message(), e.code());
    for more in [e.detail(), e.hint()].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(more);
    }
    text
}

/// A failure of anything but a commit. `Gone` is for the caller, who knows the tenant.
pub(super) fn provider(what: impl Into<String>, error: sqlx::Error) -> ProviderError {
    external::error::provider(what, kind(&error), &text(&error))
}
