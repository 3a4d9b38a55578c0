//! Making a tenant again from the rows of an archive.
//!
//! A tenant that is being restored carries a mark with which it refuses to open, until it was
//! written, indexed and checked as a whole: whatever interrupts that leaves no half tenant that
//! could be taken for a whole one. Rows go in with commits of bounded size. Where the rows come from
//! is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::{DocumentId, TenantId};
use tokio::sync::OwnedMutexGuard;

use super::check::ConsistencyReport;
use super::exec::parse;
use super::log::{FLOOR_KEY, Floor};
use super::rowcheck::RowCheck;
use super::tenant::Tenant;
use super::{Engine, EngineShared, RESTORING_KEY, Unfinished, index, load};
use crate::error::{StoreError, StoreResult};
use crate::provider::{
    Batch, CommitError, Head, Keyspace, Provider, ProviderError, SCAN_BYTES, TenantStore,
};

/// Rows of one commit, index entries included.
const BATCH_ROWS: usize = if cfg!(test) { 8 } else { 4_096 };

/// A tenant that is being restored. Dropped before its end, it stays marked.
pub(crate) struct Restore {
    provider: Arc<dyn Provider>,
    shared: Arc<EngineShared>,
    tenant: TenantId,
    store: Arc<dyn TenantStore>,
    /// Nobody else opens, deletes or creates the tenant meanwhile.
    _gate: Option<OwnedMutexGuard<()>>,
    head: Head,
    check: RowCheck,
    writes: BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>,
    bytes: usize,
}

impl Engine {
    /// Creates a tenant that is to have the head and log floor of an archive.
    ///
    /// # Errors
    /// As [`Engine::create_tenant`].
    pub(crate) async fn begin_restore(
        &self,
        tenant: &TenantId,
        head: Head,
        floor: Floor,
    ) -> StoreResult<Restore> {
        self.refuse_when_closing()?;
        let gate = self.gate(tenant).lock_owned().await;
        let provider = self.provider().clone();
        provider.create_marked(tenant, RESTORING_KEY).await?;
        let shared = self.inner.shared.clone();
        let mut restore = Restore::begin(provider, shared, tenant, (head, floor)).await?;
        restore._gate = Some(gate);
        Ok(restore)
    }

    /// Whether a restore of the tenant was begun and not finished.
    ///
    /// # Errors
    /// The provider's failure.
    pub(crate) async fn is_restoring(&self, tenant: &TenantId) -> StoreResult<bool> {
        let gate = self.gate(tenant);
        let _held = gate.lock().await;
        if super::lock(&self.inner.open).contains_key(tenant) {
            return Ok(false);
        }
        let store = self.provider().open(tenant).await?;
        let found = async {
            let mut snapshot = store.snapshot().await?;
            snapshot.get_many(Keyspace::Meta, &[RESTORING_KEY]).await
        };
        let found = found.await;
        store.close().await?;
        Ok(found?.iter().flatten().next().is_some())
    }

    /// Makes a restored tenant one like others.
    ///
    /// # Errors
    /// The provider's failure; it stays marked then.
    pub(crate) async fn end_restore(&self, tenant: &TenantId) -> StoreResult<()> {
        let gate = self.gate(tenant);
        let _held = gate.lock().await;
        let store = self.provider().open(tenant).await?;
        let ended = async {
            let head = store.snapshot().await?.head().await?;
            let mark = (Keyspace::Meta, RESTORING_KEY.to_vec());
            write(&*store, head, head, BTreeMap::from([(mark, None)])).await
        };
        let ended = ended.await;
        store.close().await?;
        ended
    }
}

impl Restore {
    /// Begins to fill a tenant that was created with a mark, or removes it again.
    ///
    /// # Errors
    /// The provider's failure.
    pub(crate) async fn begin(
        provider: Arc<dyn Provider>,
        shared: Arc<EngineShared>,
        tenant: &TenantId,
        (head, floor): (Head, Floor),
    ) -> StoreResult<Restore> {
        let begun = async {
            let store = provider.open(tenant).await?;
            let floor_row = (Keyspace::Meta, FLOOR_KEY.to_vec());
            if floor != Floor::default() {
                let writes = BTreeMap::from([(floor_row, Some(floor.encode()?))]);
                write(&*store, Head::EMPTY, Head::EMPTY, writes).await?;
            }
            Ok(store)
        };
        match begun.await {
            Ok(store) => Ok(Restore {
                provider,
                shared,
                tenant: tenant.clone(),
                store,
                _gate: None,
                head,
                check: RowCheck::new(head, floor),
                writes: BTreeMap::new(),
                bytes: 0,
            }),
            Err(error) => {
                if let Err(left) = provider.delete(tenant).await {
                    tracing::warn!(%tenant, error = %left, "what a failed restore made is left");
                }
                Err(error)
            }
        }
    }

    /// Takes the next row of the archive.
    ///
    /// # Errors
    /// `Corrupt` with what is wrong with it; the provider's failure.
    pub(crate) async fn row(
        &mut self,
        space: Keyspace,
        key: Vec<u8>,
        value: Bytes,
    ) -> StoreResult<()> {
        self.check.row(space, &key, &value)?;
        if space == Keyspace::Docs {
            self.index(&key, &value)?;
        }
        self.put(space, key, value);
        if self.writes.len() >= BATCH_ROWS || self.bytes >= SCAN_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Entries of complete indexes. Those that were being filled or removed are left to the
    /// tenant's background work, as after a crash.
    fn index(&mut self, key: &[u8], body: &[u8]) -> StoreResult<()> {
        let id = DocumentId::from_key(key)
            .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
        let Some(table) = self.check.catalog().by_number(id.table).cloned() else {
            return Ok(());
        };
        let document = parse(body)?;
        for def in table.usable() {
            let entry = index::entry(def, id.internal, &document);
            self.put(Keyspace::Index, entry.stored, entry.value);
        }
        Ok(())
    }

    fn put(&mut self, space: Keyspace, key: Vec<u8>, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.writes.insert((space, key), Some(value));
    }

    async fn flush(&mut self) -> StoreResult<()> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes);
        if writes.is_empty() {
            return Ok(());
        }
        write(&*self.store, Head::EMPTY, Head::EMPTY, writes).await
    }

    /// Writes what is left and the head, and checks the whole tenant. It stays marked until
    /// [`Engine::end_restore`].
    ///
    /// # Errors
    /// `Corrupt` with the first contradiction; the provider's failure.
    pub(crate) async fn finish(&mut self) -> StoreResult<ConsistencyReport> {
        self.check.end()?;
        self.flush().await?;
        write(&*self.store, Head::EMPTY, self.head, BTreeMap::new()).await?;
        let (store, shared) = (self.store.clone(), self.shared.clone());
        let inner = load(&self.tenant, store, shared, Unfinished::Allowed).await?;
        let report = Tenant::hold(Arc::new(inner)).consistency().await?;
        if let Some(found) = report.mismatches.first() {
            return Err(StoreError::corrupt(format!(
                "{} at {}: {}, but {}",
                found.invariant, found.path, found.left_description, found.right_description
            )));
        }
        self.store.close().await?;
        Ok(report)
    }

    /// Removes what there is of the tenant.
    ///
    /// # Errors
    /// The provider's failure; it stays marked then.
    pub(crate) async fn abandon(self) -> StoreResult<()> {
        if let Err(error) = self.store.close().await {
            tracing::warn!(tenant = %self.tenant, %error, "closing what a failed restore made");
        }
        Ok(self.provider.delete(&self.tenant).await?)
    }
}

pub(super) async fn write(
    store: &dyn TenantStore,
    expected: Head,
    head: Head,
    writes: BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>,
) -> StoreResult<()> {
    match store.commit(expected, Batch { head, writes }).await {
        Ok(()) => Ok(()),
        Err(CommitError::Closed) => Err(StoreError::Closed),
        Err(CommitError::Full { what }) => Err(StoreError::StorageFull { inside: what }),
        Err(other) => Err(StoreError::Storage(ProviderError::io(
            "writing a restored tenant",
            other.to_string(),
        ))),
    }
}
