//! An open tenant: the handle that callers hold, and the state behind it.
//!
//! The handle offers one-call operations; each is a transaction or a read of the newest
//! durable state. Files and connections are the provider's business.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use nimbus_core::{DocumentId, Object, TableName, TenantId};
use tokio::sync::{Notify, watch};

use super::catalog::{Catalog, TableSchema};
use super::commit::Conflicted;
use super::cursor::CursorKey;
use super::function::{CommitStamp, Ran};
use super::live::Live;
use super::metrics::{Counters, TenantMetrics};
use super::query::Query;
use super::readset::{ReadSet, SpaceKey};
use super::state::State;
use super::txn::{self, Transaction};
use super::view::View;
use super::{Document, EngineShared, Page, overlay::Overlay};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Head, ProviderError, Snapshot, TenantStore};

/// Transactions that may wait for room in the batch before more are refused.
const MAX_WAITING: usize = 4_096;

/// Snapshots that showed a commit of another server each, after which the next one is kept while that is
/// taken in: others could commit faster than this looks.
const KEPT_SNAPSHOT: u32 = 16;

/// See the module documentation.
pub(crate) struct TenantInner {
    pub(crate) id: TenantId,
    pub(crate) store: Arc<dyn TenantStore>,
    pub(crate) shared: Arc<EngineShared>,
    pub(crate) cursor_key: CursorKey,
    state: Mutex<State>,
    /// Tells the committer that the batch is not empty, or that the tenant closes.
    pub(crate) work: Notify,
    /// Tells waiting submitters that the batch was taken.
    pub(crate) room: Notify,
    pub(crate) waiting: AtomicUsize,
    /// Durable sequence and epoch, for those who wait to answer.
    pub(crate) durable: watch::Sender<(u64, u64)>,
    /// Held by a transaction that conflicted repeatedly, so that it takes its turn.
    pub(crate) turn: tokio::sync::Mutex<()>,
    ticks: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) live: Live,
    /// Asks the committer to look what other servers committed.
    pub(crate) follow_wanted: AtomicBool,
    /// How often it looked.
    pub(crate) followed: watch::Sender<u64>,
    /// One schema change at a time.
    pub(crate) schema_lock: tokio::sync::Mutex<()>,
    /// Handles, subscriptions and background work that keep the tenant open.
    pub(crate) leases: AtomicUsize,
    pub(crate) last_used: AtomicU64,
    /// Set when a commit's outcome is unknown: the tenant must be opened again.
    pub(crate) failed: AtomicBool,
    pub(crate) background: Notify,
    pub(crate) log: super::log::LogControl,
    pub(crate) app: super::app::AppControl,
    pub(crate) counting: super::quota::Counting,
    pub(crate) lowering: super::wake::Lowering,
}

/// A tenant that is open for work. Cheap to clone; keeps the tenant from being closed as idle.
pub struct Tenant {
    pub(crate) inner: Arc<TenantInner>,
}

impl Clone for Tenant {
    fn clone(&self) -> Tenant {
        Tenant::lease(self.inner.clone())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.inner.leases.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Nanoseconds since 1970-01-01; 0 if the clock stands before that.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl TenantInner {
    pub(crate) fn new(
        id: TenantId,
        store: Arc<dyn TenantStore>,
        shared: Arc<EngineShared>,
        cursor_key: CursorKey,
        state: State,
        log_floor: super::log::Floor,
    ) -> TenantInner {
        let head = state.head;
        TenantInner {
            id,
            store,
            shared,
            cursor_key,
            state: Mutex::new(state),
            work: Notify::new(),
            room: Notify::new(),
            waiting: AtomicUsize::new(0),
            durable: watch::Sender::new((head.sequence, 0)),
            turn: tokio::sync::Mutex::new(()),
            // Ids never go back over a restart, even if the clock did.
            ticks: AtomicU64::new(ticks_of(head.timestamp)),
            counters: Counters::default(),
            live: Live::new(CommitStamp::of(head)),
            follow_wanted: AtomicBool::new(false),
            followed: watch::Sender::new(0),
            schema_lock: tokio::sync::Mutex::new(()),
            leases: AtomicUsize::new(0),
            last_used: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            background: Notify::new(),
            log: super::log::LogControl::new(log_floor),
            app: super::app::AppControl::default(),
            counting: super::quota::Counting::default(),
            lowering: super::wake::Lowering::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // The state's methods leave it consistent at every step that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next creation tick, unique in this tenant and increasing.
    pub(crate) fn next_ticks(&self) -> u64 {
        let now = ticks_of(now_ns());
        let previous = self
            .ticks
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
                Some(now.max(last + 1))
            });
        match previous {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// A snapshot of the provider. Once another server deleted the tenant, it is closed here too.
    pub(super) async fn snapshot(&self) -> StoreResult<Box<dyn Snapshot>> {
        let taken = self.store.snapshot().await;
        if let Err(ProviderError::NotFound { .. }) = taken {
            super::commit::give_up(self);
        }
        Ok(taken?)
    }

    /// Asks the committer to look what other servers committed.
    pub(crate) fn want_follow(&self) {
        self.follow_wanted.store(true, Ordering::Release);
        self.work.notify_one();
    }

    /// From now on somebody wants to be told what other servers commit.
    pub(crate) fn begin_to_follow(&self) {
        if self.store.is_shared() {
            self.want_follow();
        }
    }

    /// Waits until a commit that a snapshot shows is known here: it can be another server's.
    async fn reach(&self, sequence: u64) -> StoreResult<()> {
        if !self.store.is_shared() {
            return Ok(());
        }
        let mut durable = self.durable.subscribe();
        let mut followed = self.followed.subscribe();
        // A look that began before the commit need not show it: the second one does.
        for _ in 0..2 {
            if self.state().durable.sequence >= sequence {
                return Ok(());
            }
            followed.mark_unchanged();
            if self.state().closed {
                return Err(StoreError::Closed);
            }
            self.want_follow();
            tokio::select! {
                reached = durable.wait_for(|(at, _)| *at >= sequence) => {
                    return reached.map(drop).map_err(|_| StoreError::Closed);
                }
                _ = followed.changed() => {}
            }
        }
        if self.state().closed {
            return Err(StoreError::Closed);
        }
        if self.state().durable.sequence >= sequence {
            return Ok(());
        }
        let what = format!("the commits of other servers up to {sequence} cannot be read");
        Err(StoreError::Storage(ProviderError::Busy { what }))
    }

    /// A snapshot with its head, up to which every commit is known here.
    async fn known_snapshot(&self) -> StoreResult<(Box<dyn Snapshot>, Head)> {
        let mut tries = 0;
        loop {
            let known = self.state().durable;
            let mut snapshot = self.snapshot().await?;
            let head = self.at_least(known, snapshot.head().await?)?;
            self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
            tries += 1;
            if self.knows(head) {
                return Ok((snapshot, head));
            }
            if tries >= KEPT_SNAPSHOT {
                self.reach(head.sequence).await?;
                return Ok((snapshot, head));
            }
            // Not while it keeps one of the snapshots that can be open at once: the committer needs one to look.
            drop(snapshot);
            self.reach(head.sequence).await?;
        }
    }

    fn knows(&self, head: Head) -> bool {
        !self.store.is_shared() || self.state().durable.sequence >= head.sequence
    }

    /// A view of the newest durable state, for reads that write nothing.
    pub(crate) async fn durable_view(&self, track: bool) -> StoreResult<View> {
        loop {
            let (snapshot, head) = self.known_snapshot().await?;
            let (catalog, epoch) = {
                let state = self.state();
                (state.catalog_at(head.sequence), state.epoch)
            };
            // `None`: the view is older than the catalogs kept, since many batches became
            // durable in between; take a newer one.
            if let Some(catalog) = catalog {
                let mut view = View::new(
                    snapshot,
                    Overlay::default(),
                    catalog,
                    (head.sequence, head.sequence),
                    epoch,
                    track,
                );
                view.timestamp = head.timestamp;
                view.durable_timestamp = head.timestamp;
                return Ok(view);
            }
        }
    }

    /// A view that includes what is validated but not durable, for transactions.
    pub(crate) async fn newest_view(&self) -> StoreResult<View> {
        loop {
            let (overlay, start, epoch) = {
                let state = self.state();
                (state.overlay.clone(), state.head, state.epoch)
            };
            let (snapshot, durable) = self.known_snapshot().await?;
            // Everything in the overlay is in a snapshot that is at least as new.
            let (overlay, newest) = if durable.sequence >= start.sequence {
                (Overlay::default(), durable)
            } else {
                (overlay, start)
            };
            let read_sequence = newest.sequence;
            let (catalog, unchanged) = {
                let state = self.state();
                (state.catalog_at(read_sequence), state.epoch == epoch)
            };
            if let (Some(catalog), true) = (catalog, unchanged) {
                let mut view = View::new(
                    snapshot,
                    overlay,
                    catalog,
                    (durable.sequence, read_sequence),
                    epoch,
                    true,
                );
                view.timestamp = newest.timestamp;
                view.durable_timestamp = durable.timestamp;
                return Ok(view);
            }
        }
    }

    /// As [`TenantInner::newest_view`], without a snapshot until it is needed where servers share the store:
    /// there it takes two round trips to the database.
    pub(crate) async fn untaken_view(self: &Arc<Self>) -> StoreResult<View> {
        if self.store.is_shared() {
            let state = self.state();
            // A closed one may have been deleted by another server, as the snapshot tells.
            if !state.closed {
                return Ok(View::untaken(self.clone(), &state));
            }
        }
        self.newest_view().await
    }

    /// The newest view for a transaction that relied on `reads` as they were after a commit of an epoch; if
    /// they are not so any more, the key that changed, if it is known which.
    pub(super) async fn view_after(
        &self,
        reads: &ReadSet,
        relied_on: (u64, u64),
    ) -> StoreResult<Result<View, Option<SpaceKey>>> {
        loop {
            let view = self.newest_view().await?;
            let state = self.state();
            // Else some of what it shows was thrown away meanwhile, and is not there to be compared.
            if state.epoch == view.epoch {
                let unchanged = state.unchanged(reads, relied_on, view.read_sequence);
                return Ok(unchanged.map(|()| view));
            }
        }
    }

    /// Why a transaction found the tenant closed: another server may have deleted it.
    pub(super) async fn why_closed(&self) -> StoreError {
        if !self.store.is_shared() {
            return StoreError::Closed;
        }
        match self.store.snapshot().await {
            Err(gone @ ProviderError::NotFound { .. }) => gone.into(),
            _ => StoreError::Closed,
        }
    }

    /// The head of a snapshot, which has what was durable before it was taken.
    fn at_least(&self, known: Head, found: Head) -> StoreResult<Head> {
        if found.sequence >= known.sequence {
            return Ok(found);
        }
        if self.store.is_shared() {
            // Another server deleted the tenant and made it again.
            super::commit::give_up(self);
            return Err(StoreError::Closed);
        }
        Err(StoreError::corrupt(format!(
            "the stored head {found:?} went back behind {known:?}"
        )))
    }

    /// Waits until everything that `view` saw is durable. `false`: it never will be.
    pub(crate) async fn wait_durable(&self, sequence: u64, epoch: u64) -> bool {
        let mut durable = self.durable.subscribe();
        let reached = durable
            .wait_for(|(d, e)| *e != epoch || *d >= sequence)
            .await;
        reached.is_ok_and(|at| at.1 == epoch)
    }
}

/// Ticks are 1/4096 ms.
fn ticks_of(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(nimbus_core::id::TICKS_PER_MS) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

impl Tenant {
    /// Keeps the tenant open without counting as a use of it.
    pub(crate) fn hold(inner: Arc<TenantInner>) -> Tenant {
        inner.leases.fetch_add(1, Ordering::AcqRel);
        Tenant { inner }
    }

    pub(crate) fn lease(inner: Arc<TenantInner>) -> Tenant {
        inner.last_used.store(
            inner.shared.clock.fetch_add(1, Ordering::Relaxed),
            Ordering::Relaxed,
        );
        Tenant::hold(inner)
    }

    /// The tenant's id.
    pub fn id(&self) -> &TenantId {
        &self.inner.id
    }

    /// Starts a transaction. [`Tenant::transact`] is the convenient form: it runs again on conflict.
    ///
    /// # Errors
    /// `Closed`, or the provider's failure.
    pub async fn begin(&self) -> StoreResult<Transaction> {
        Ok(Transaction::new(
            self.inner.clone(),
            self.inner.newest_view().await?,
        ))
    }

    /// Commits a transaction; returns its sequence when it is durable. That of a transaction that
    /// wrote nothing is a commit after which everything was as it read it.
    ///
    /// # Errors
    /// `Conflict` if something it read was written since, or if the tenant was closed and opened
    /// since; `InvalidInput` for a transaction of another tenant. Then nothing was written.
    pub async fn commit(&self, transaction: Transaction) -> StoreResult<u64> {
        let begun_on = &transaction.tenant;
        if begun_on.id != self.inner.id {
            return Err(StoreError::invalid(format!(
                "the transaction was begun on tenant {}, not on {}",
                begun_on.id, self.inner.id
            )));
        }
        if !Arc::ptr_eq(begun_on, &self.inner) {
            return Err(Conflicted::default().error(self, 1));
        }
        match super::commit::commit(&self.inner, transaction).await? {
            Ok(stamp) => Ok(stamp.sequence),
            Err(conflicted) => Err(conflicted.error(self, 1)),
        }
    }

    /// Runs `body` in a transaction and commits it, again from the start when it conflicted
    /// (at once, then in turn, then with 5-50 ms between runs). Returns when durable.
    ///
    /// `body` may run several times and must have no other effect than through its argument.
    ///
    /// # Errors
    /// The body's error, `Conflict` after 24 runs, `StorageFull`, `OutcomeUnknown`, `QueueFull`.
    pub async fn transact<T, F>(&self, body: F) -> StoreResult<T>
    where
        F: for<'t> Fn(&'t mut Transaction) -> BoxFuture<'t, StoreResult<T>>,
    {
        let run = self.run_until_committed(|transaction, _| body(transaction), Ran::Commit);
        run.await.map(|(value, _)| value)
    }

    /// Inserts a document.
    ///
    /// # Errors
    /// As [`Transaction::insert`] and [`Tenant::transact`].
    pub async fn insert(&self, table: &TableName, fields: Object) -> StoreResult<DocumentId> {
        self.transact(move |tx| {
            let (table, fields) = (table.clone(), fields.clone());
            Box::pin(async move { tx.insert(&table, fields).await })
        })
        .await
    }

    /// The document with the id that a caller sent.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed id; `DocumentNotFound` for one of another table or no document.
    pub async fn get(&self, table: &TableName, id: &str) -> StoreResult<Document> {
        let mut view = self.inner.durable_view(false).await?;
        let id = txn::parse_id(&mut view, table, id)?;
        let body = view.get(crate::provider::Keyspace::Docs, &id.key()).await?;
        self.note_reads(&view);
        match body {
            Some(json) => Ok(Document { id, json }),
            None => Err(StoreError::DocumentNotFound {
                table: table.clone(),
                id: id.to_string(),
            }),
        }
    }

    /// Shallow merge into a document.
    ///
    /// # Errors
    /// As [`Tenant::get`] and [`Transaction::patch`].
    pub async fn patch(
        &self,
        table: &TableName,
        id: &str,
        patch: Object,
    ) -> StoreResult<DocumentId> {
        self.transact(move |tx| {
            let (table, patch, id) = (table.clone(), patch.clone(), id.to_owned());
            Box::pin(async move {
                let id = txn::parse_id(&mut tx.view, &table, &id)?;
                tx.patch(&table, id, patch).await?;
                Ok(id)
            })
        })
        .await
    }

    /// Deletes a document.
    ///
    /// # Errors
    /// As [`Tenant::get`] and [`Transaction::delete`].
    pub async fn delete(&self, table: &TableName, id: &str) -> StoreResult<()> {
        self.transact(move |tx| {
            let (table, id) = (table.clone(), id.to_owned());
            Box::pin(async move {
                let id = txn::parse_id(&mut tx.view, &table, &id)?;
                tx.delete(&table, id).await
            })
        })
        .await
    }

    /// Takes in what other servers committed up to now, so that watches and [`Tenant::latest_timestamp`] know
    /// of it. Returns at once where nobody else can commit.
    ///
    /// # Errors
    /// `Closed`, or the provider's failure.
    pub async fn catch_up(&self) -> StoreResult<()> {
        if !self.inner.store.is_shared() {
            return Ok(());
        }
        let mut snapshot = self.inner.snapshot().await?;
        let head = snapshot.head().await?;
        drop(snapshot);
        self.inner.reach(head.sequence).await
    }

    /// All documents that match, from the newest durable state.
    ///
    /// # Errors
    /// As [`Transaction::query`].
    pub async fn query(&self, query: &Query) -> StoreResult<Vec<Document>> {
        query.check()?;
        let mut view = self.inner.durable_view(false).await?;
        let found = txn::query_all(&mut view, query).await;
        self.note_reads(&view);
        found
    }

    /// One page of a query, from the newest durable state.
    ///
    /// # Errors
    /// As [`Transaction::page`].
    pub async fn page(
        &self,
        query: &Query,
        page_size: u32,
        after: Option<&str>,
    ) -> StoreResult<Page> {
        query.check()?;
        let mut view = self.inner.durable_view(false).await?;
        let page = txn::query_page(&self.inner, &mut view, query, page_size, after).await;
        self.note_reads(&view);
        page
    }

    pub(crate) fn note_reads(&self, view: &View) {
        self.inner
            .counters
            .documents_read
            .fetch_add(view.documents_read, Ordering::Relaxed);
    }

    /// The catalog of the newest durable state.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        let state = self.inner.state();
        state.catalog_at(state.durable.sequence).unwrap_or_default()
    }

    /// Every table that has a native schema; that of the functions is in [`Tenant::deployment`].
    ///
    /// # Errors
    /// None today.
    pub async fn schema(&self) -> StoreResult<BTreeMap<TableName, TableSchema>> {
        let catalog = self.catalog();
        Ok(catalog
            .tables()
            .filter_map(|t| Some((t.name.clone(), t.schema()?)))
            .collect())
    }

    /// A table's schema.
    ///
    /// # Errors
    /// `SchemaNotFound`.
    pub async fn table_schema(&self, table: &TableName) -> StoreResult<TableSchema> {
        self.catalog()
            .table(table)
            .and_then(|t| t.schema())
            .ok_or_else(|| StoreError::SchemaNotFound {
                table: table.clone(),
            })
    }

    /// Diagnostics of this tenant since it was opened (nimbus.md 2.10).
    pub fn metrics(&self) -> TenantMetrics {
        TenantMetrics::of(&self.inner)
    }

    /// Turns validation off, so that a history checker's own test can see it fail.
    #[doc(hidden)]
    pub fn without_validation_for_tests(&self) {
        self.inner.state().validate = false;
    }
}

/// Refuses when too many already wait; counts this one until dropped.
pub(crate) struct WaitTicket<'a>(&'a AtomicUsize);

impl<'a> WaitTicket<'a> {
    pub(crate) fn take(waiting: &'a AtomicUsize) -> StoreResult<WaitTicket<'a>> {
        let ticket = WaitTicket(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING {
            return Err(StoreError::QueueFull);
        }
        Ok(ticket)
    }
}

impl Drop for WaitTicket<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
