//! The provider conformance suite: what every storage backend must do, as named cases.
//!
//! Public, so that an embedder can run it against a provider of their own. It must not know
//! any particular provider: it sees the traits of [`crate::provider`] and a [`Fixture`].
//!
//! ```ignore
//! struct Mine { /* a temporary directory, a database of its own, ... */ }
//! impl nimbus_storage::conformance::Fixture for Mine { /* ... */ }
//! nimbus_storage::conformance_tests!(Mine::start);
//! ```
//!
//! Not covered, because a backend cannot be made to do it from outside: failing syncs, lost
//! connections, full disks and crashes.

mod atomicity;
mod cases;
mod isolation;
mod kit;
mod namespaces;
mod rows;
mod wakes;

use std::sync::Arc;

use futures_util::future::BoxFuture;

#[cfg(test)]
pub(crate) use self::wakes::keeps_wake_times;
use crate::provider::{CommitError, Provider, ProviderError};

/// Storage of its own for one case.
pub trait Fixture: Send + Sync + 'static {
    /// The provider over this storage.
    fn provider(&self) -> Arc<dyn Provider>;

    /// Lets go of the provider and makes another over the same storage, as a restart of the
    /// process would. The case has dropped every store and provider it held, and may not have
    /// closed the stores.
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>>;
}

/// Why a case failed: which step, and what was found instead of what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }
}

impl From<ProviderError> for Failure {
    fn from(e: ProviderError) -> Failure {
        Failure(format!("unexpected provider error: {e} ({e:?})"))
    }
}

impl From<CommitError> for Failure {
    fn from(e: CommitError) -> Failure {
        Failure(format!("unexpected commit error: {e} ({e:?})"))
    }
}

/// Result of a case.
pub type CaseResult = Result<(), Failure>;

/// One thing that every provider must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// Name, the same on every provider.
    pub name: &'static str,
    /// Runs it on storage that nobody else uses.
    pub run: fn(Arc<dyn Fixture>) -> BoxFuture<'static, CaseResult>,
}

/// Every case, in the order of [`conformance_tests!`](crate::conformance_tests).
pub fn cases() -> &'static [Case] {
    cases::CASES
}

/// Runs every case, each on storage of its own that `make` provides; the names and reasons of
/// those that failed.
pub async fn run_all<F: Fixture>(make: impl AsyncFn() -> F) -> Vec<(&'static str, Failure)> {
    let mut failed = Vec::new();
    for case in cases() {
        let fixture = Arc::new(make().await);
        if let Err(e) = (case.run)(fixture).await {
            failed.push((case.name, e));
        }
    }
    failed
}

/// Runs one case on a runtime of its own with two worker threads.
///
/// # Errors
/// What the case found, or that there is no case of that name.
pub fn run_case<F: Fixture>(name: &str, make: impl AsyncFnOnce() -> F) -> CaseResult {
    let case = cases().iter().find(|c| c.name == name);
    let case = case.ok_or_else(|| Failure(format!("there is no case {name}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure(format!("no runtime: {e}")))?;
    runtime.block_on(async { (case.run)(Arc::new(make().await)).await })
}

/// Expands to one `#[test]` per case of the conformance suite. The argument is an async
/// function or closure without parameters that makes a [`Fixture`](crate::conformance::Fixture).
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::__conformance_cases!(__conformance_test, $make);
    };
}

/// One test; a part of [`conformance_tests!`](crate::conformance_tests).
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    ($make:expr, $($name:ident)*) => {
        $(
            #[test]
            #[allow(clippy::panic)]
            fn $name() {
                if let Err(e) = $crate::conformance::run_case(stringify!($name), $make) {
                    ::std::panic!("{}: {e}", stringify!($name));
                }
            }
        )*
    };
}
