//! What every request can reach: the store behind its door, the credentials, the settings.
//!
//! Holds and hands out; it must not decide anything about a request.

use std::path::PathBuf;
use std::sync::Arc;

use nimbus_auth::{AdminVerifier, Authenticator};
use tokio::sync::watch;

use crate::config::ServerConfig;
use crate::edge::attempts::FailedTokens;
use crate::edge::client::TrustedProxies;
use crate::edge::exchange::AuditTrail;
use crate::edge::gate::Gate;
use crate::edge::origin::{Hosts, Origins};
use crate::encryption::EncryptionReport;
use crate::functions::FunctionService;
use crate::metrics::Metrics;
use crate::store::Store;

/// State shared by all requests.
pub(crate) struct App {
    pub store: Store,
    pub authenticator: Authenticator,
    pub verifier: Arc<AdminVerifier>,
    pub token_path: PathBuf,
    pub trail: Arc<AuditTrail>,
    pub encryption: EncryptionReport,
    pub functions: FunctionService,
    pub config: ServerConfig,
    pub attempts: FailedTokens,
    pub proxies: TrustedProxies,
    pub origins: Origins,
    pub hosts: Hosts,
    pub metrics: Metrics,
    /// Becomes true when a caller asks the server to stop.
    pub stop: watch::Sender<bool>,
    /// Work that a shutdown waits for.
    pub drain: Drain,
}

impl App {
    /// What credentials are checked with.
    pub(crate) fn gate(&self) -> Gate<'_> {
        Gate {
            authenticator: &self.authenticator,
            attempts: &self.attempts,
            keys: &self.store,
        }
    }
}

/// Counts work in progress, so that a shutdown can wait for its end.
#[derive(Clone, Debug)]
pub(crate) struct Drain {
    count: Arc<watch::Sender<usize>>,
}

/// One piece of work in progress; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InProgress {
    drain: Drain,
}

impl Drain {
    pub(crate) fn new() -> Drain {
        Drain {
            count: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Begins a piece of work.
    pub(crate) fn enter(&self) -> InProgress {
        self.count.send_modify(|count| *count += 1);
        InProgress {
            drain: self.clone(),
        }
    }

    /// Pieces of work in progress now.
    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until nothing is in progress.
    pub(crate) async fn finished(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.drain
            .count
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finished_waits_for_the_last_piece() {
        let drain = Drain::new();
        drain.finished().await;
        let (first, second) = (drain.enter(), drain.enter());
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finished().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        assert_eq!(drain.count(), 0);
    }
}
