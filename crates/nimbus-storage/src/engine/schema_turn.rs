//! One change of tables and code at a time, among all servers that share a tenant.
//!
//! In one server a mutex is enough. Where others may commit too, a meta row says which server has the turn
//! and until when; the server writes it again while it works. The row keeps servers from undoing each other's unfinished
//! work. It is no proof: a server that stood still may go on after its turn, so every change also checks in its last
//! commit that what it began is still there. What is changed is not known here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;
use tokio::task::JoinHandle;

use super::tenant::{Tenant, now_ns};
use super::txn::Transaction;
use crate::error::{StoreError, StoreResult};
use crate::provider::{Keyspace, ProviderError};

const KEY: &[u8] = b"schema_turn";
/// How long a turn lasts that is not renewed. A server that died is replaced after that.
const LEASE: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);
/// How long others are waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// The row.
#[derive(Serialize, Deserialize)]
struct Held {
    /// The server that has the turn.
    server: String,
    /// Milliseconds since 1970-01-01, by that server's clock.
    until: u64,
}

/// The turn, while it lives.
pub(crate) struct SchemaTurn<'a> {
    _local: MutexGuard<'a, ()>,
    _shared: Option<Renewal>,
}

/// Keeps the row; takes it away when dropped.
struct Renewal {
    tenant: Tenant,
    task: JoinHandle<()>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
        let tenant = self.tenant.clone();
        tokio::spawn(async move {
            if let Err(error) = tenant.put_schema_turn(None).await {
                tracing::debug!(tenant = %tenant.id(), %error, "the turn to change tables ends by itself");
            }
        });
    }
}

impl Tenant {
    /// Waits for the turn to change tables or code.
    ///
    /// # Errors
    /// `Storage` (busy) when another server has it for too long; as a commit.
    pub(crate) async fn schema_turn(&self) -> StoreResult<SchemaTurn<'_>> {
        let local = self.inner.schema_lock.lock().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.take_schema_turn().await? {
            if tokio::time::Instant::now() >= deadline {
                let what = "another server is changing tables or deploying; try again later".into();
                return Err(StoreError::Storage(ProviderError::Busy { what }));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.have_turn(local))
    }

    /// The turn, unless somebody has it.
    ///
    /// # Errors
    /// As a commit.
    pub(crate) async fn try_schema_turn(&self) -> StoreResult<Option<SchemaTurn<'_>>> {
        let Ok(local) = self.inner.schema_lock.try_lock() else {
            return Ok(None);
        };
        let taken = self.take_schema_turn().await?;
        Ok(taken.then(|| self.have_turn(local)))
    }

    fn have_turn<'a>(&'a self, local: MutexGuard<'a, ()>) -> SchemaTurn<'a> {
        let shared = self.inner.store.is_shared().then(|| Renewal {
            tenant: self.clone(),
            task: tokio::spawn(renew(self.clone())),
        });
        SchemaTurn {
            _local: local,
            _shared: shared,
        }
    }

    async fn take_schema_turn(&self) -> StoreResult<bool> {
        if !self.inner.store.is_shared() {
            return Ok(true);
        }
        self.put_schema_turn(Some(LEASE)).await
    }

    /// Takes or gives back the row; whether it was free or this server's own.
    async fn put_schema_turn(&self, lease: Option<Duration>) -> StoreResult<bool> {
        let server: Arc<str> = self.inner.shared.server.clone();
        self.transact(move |tx| {
            let server = server.clone();
            Box::pin(async move { put(tx, &server, lease).await })
        })
        .await
    }
}

async fn put(tx: &mut Transaction, server: &str, lease: Option<Duration>) -> StoreResult<bool> {
    let stored = tx.view.get(Keyspace::Meta, KEY).await?;
    let now = now_ns() / 1_000_000;
    if let Some(stored) = &stored {
        let held: Held = serde_json::from_slice(stored)
            .map_err(|e| StoreError::corrupt(format!("schema turn: {e}")))?;
        if held.server != server && held.until > now {
            return Ok(false);
        }
        if held.server != server && lease.is_none() {
            return Ok(true);
        }
    }
    let after = lease
        .map(|lease| {
            let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            let held = Held {
                server: server.to_owned(),
                until: now.saturating_add(lease),
            };
            serde_json::to_vec(&held).map(Bytes::from)
        })
        .transpose()
        .map_err(|e| StoreError::corrupt(format!("schema turn does not encode: {e}")))?;
    if stored.is_some() || after.is_some() {
        tx.view.put(Keyspace::Meta, KEY, stored, after)?;
    }
    Ok(true)
}

async fn renew(tenant: Tenant) {
    loop {
        tokio::time::sleep(RENEW).await;
        match tenant.put_schema_turn(Some(LEASE)).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(tenant = %tenant.id(), "another server took the turn to change tables");
                return;
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(tenant = %tenant.id(), %error, "the turn to change tables is not renewed");
            }
        }
    }
}
