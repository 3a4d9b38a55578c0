//! A failure in the registry or in the life of a tenant, with what was being done.
//!
//! Must not decide whether to try again.

use super::error::{self, Kind};
use crate::provider::ProviderError;

/// What went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server, or the way to it.
    Sql(String, sqlx::Error),
    /// Anything else.
    Known(ProviderError),
}

/// Result of a step.
pub(super) type Step<T> = Result<T, Trouble>;

impl Trouble {
    /// With what was being done.
    pub(super) fn sql(doing: impl Into<String>) -> impl FnOnce(sqlx::Error) -> Trouble {
        let doing = doing.into();
        move |e| Trouble::Sql(doing, e)
    }

    /// `None` for what no server said.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self {
            Trouble::Sql(_, e) => Some(error::kind(e)),
            Trouble::Known(_) => None,
        }
    }

    /// Whether it was a wait for a lock, which took long enough.
    pub(super) fn is_lock_timeout(&self) -> bool {
        matches!(self, Trouble::Sql(_, e) if error::is_number(e, error::LOCK_TIMEOUT))
    }

    /// For the caller of the provider.
    pub(super) fn into_provider(self) -> ProviderError {
        match self {
            Trouble::Sql(doing, e) => {
                let hint = match error::kind(&e) {
                    Kind::Denied => {
                        " (the user needs SELECT, INSERT, UPDATE, DELETE, CREATE and DROP on it)"
                    }
                    _ => "",
                };
                error::provider(format!("{doing}{hint}"), e)
            }
            Trouble::Known(e) => e,
        }
    }
}

impl From<ProviderError> for Trouble {
    fn from(e: ProviderError) -> Trouble {
        Trouble::Known(e)
    }
}
