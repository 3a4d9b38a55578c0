//! What a database reports, told apart as far as its provider acts on it.
//!
//! Must not know any database's numbers, nor statements: the caller says what it was doing.

use std::time::Duration;

use crate::provider::{CommitError, ProviderError};

/// What became of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection is gone; whether the statement was done is not known.
    Lost,
    /// Someone was in the way; the same may work in a moment.
    Passing,
    /// No space.
    Full,
    /// A table or namespace is not there.
    Gone,
    /// The server has no connection left for this user or at all.
    NoConnection,
    /// The head was not the expected one, where a statement fails for that.
    Moved,
    /// The user lacks a right.
    Denied,
    /// Anything else: the server refused and did nothing.
    Refused,
}

/// A failure of anything but a commit, of which the server said `text`. `Gone` is for the caller, who knows the tenant.
pub(crate) fn provider(what: impl Into<String>, kind: Kind, text: &str) -> ProviderError {
    let what = what.into();
    match kind {
        Kind::Full => ProviderError::Full {
            what: format!("{what}: {text}"),
        },
        Kind::Passing | Kind::NoConnection => ProviderError::Busy {
            what: format!("{what}: {text}"),
        },
        Kind::Lost | Kind::Gone | Kind::Moved | Kind::Denied | Kind::Refused => {
            ProviderError::io(what, text)
        }
    }
}

/// A failure of a commit that did nothing, as the server said.
pub(crate) fn commit(namespace: &str, kind: Kind, text: &str) -> CommitError {
    let reason = format!("committing to {namespace}: {text}");
    match kind {
        Kind::Full => CommitError::Full { what: reason },
        Kind::Gone => CommitError::Closed,
        Kind::Refused | Kind::Denied => CommitError::Refused { reason },
        Kind::Lost | Kind::Passing | Kind::NoConnection | Kind::Moved => {
            CommitError::Transient { reason }
        }
    }
}

/// A head that could not be read, before anything was written.
pub(crate) fn unread(e: ProviderError) -> CommitError {
    match e {
        ProviderError::NotFound { .. } | ProviderError::Closed => CommitError::Closed,
        other => CommitError::Refused {
            reason: other.to_string(),
        },
    }
}

/// A statement, bounded in time. One that took too long counts as a lost connection.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let why = format!("no answer from the database within {seconds} s");
            let kind = std::io::ErrorKind::TimedOut;
            Err(sqlx::Error::Io(std::io::Error::new(kind, why)))
        }
    }
}
