//! The local replica of one tenant: it follows the changes on the primary, and is made anew when in doubt.
//!
//! A physical copy: it must not know what rows mean. Everything that changes it holds one lock and runs in a task of
//! its own, so a reader that gives up stops nothing.

mod build;
mod view;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};

use super::cache::CacheFile;
use super::commit::{Committed, Plan, Space};
use super::feed::{Feed, Mark};
use super::http::Fault;
use super::primary::{self, Part, State};
use super::record::Writes;
use super::{Shared, lifecycle};
use crate::provider::external::FORMAT_KEY;
use crate::provider::local::blocking;
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult,
    ReplicaFreshness, Row, Snapshot, StoreStats, TenantStore,
};

use self::view::{Path, View};

/// How long a commit waits to be applied here before it returns; later reads then wait for it instead.
const APPLY_WAIT: Duration = Duration::from_secs(1);
/// How often a replica is made anew for one refresh.
const REBUILDS: u32 = 3;

/// The replica of an open tenant.
pub(super) struct Replica {
    shared: Arc<Shared>,
    space: Arc<Space>,
    /// `None` once closed.
    file: Mutex<Option<Arc<CacheFile>>>,
    /// What reads go to; `None` while there is none.
    current: Mutex<Option<Arc<dyn TenantStore>>>,
    /// How far `current` is; `None`: it has to be made anew.
    inner: tokio::sync::Mutex<Option<Mark>>,
    view: Mutex<View>,
    closed: AtomicBool,
}

impl Replica {
    /// Opens what is there, if it can be used, and brings it up to date; this may take as long as copying all of the
    /// tenant.
    ///
    /// # Errors
    /// `Busy` when the primary does not answer; those of keys; `Full`, `Io`.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        space: &Arc<Space>,
    ) -> ProviderResult<Arc<Replica>> {
        let (cache, tenant) = (shared.cache.clone(), space.tenant.clone());
        let file = Arc::new(blocking(move || cache.prepare(&tenant)).await?);
        let replica = Arc::new(Replica {
            shared: shared.clone(),
            space: space.clone(),
            file: Mutex::new(Some(file.clone())),
            current: Mutex::default(),
            inner: tokio::sync::Mutex::default(),
            view: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let mut inner = replica.inner.lock().await;
        match replica.find(&file).await? {
            Ok((store, mark)) => {
                *replica.current() = Some(store);
                *inner = Some(mark);
                replica.view().applied(&mark);
            }
            Err(reason) => {
                tracing::info!(tenant = %space.tenant, reason, "the replica is made anew");
                replica.view().cause = Some(view::BOOTSTRAP);
            }
        }
        let opened = replica.refresh(&mut inner, view::BOOTSTRAP).await;
        drop(inner);
        if let Err(e) = opened {
            replica.close().await?;
            return Err(e);
        }
        Ok(replica)
    }

    /// The copy that is there. The inner error says why it is of no use.
    async fn find(
        &self,
        file: &Arc<CacheFile>,
    ) -> ProviderResult<Result<(Arc<dyn TenantStore>, Mark), String>> {
        let (shared, file) = (self.shared.clone(), file.clone());
        let opened = blocking(move || {
            if !file.path.exists() {
                return Ok(None);
            }
            shared.copies.open(&file.path, file.key.clone()).map(Some)
        });
        let store = match opened.await {
            Ok(Some(store)) => store,
            Ok(None) => return Ok(Err("there is none".to_owned())),
            Err(e @ ProviderError::Corrupt { .. }) => return Ok(Err(e.to_string())),
            Err(e) => return Err(e),
        };
        let mark = match self.mark_in(&*store).await {
            Ok(Ok(mark)) => return Ok(Ok((store, mark))),
            Ok(Err(reason)) => reason,
            Err(e) => e.to_string(),
        };
        store.close().await?;
        Ok(Err(mark))
    }

    async fn mark_in(&self, store: &dyn TenantStore) -> ProviderResult<Result<Mark, String>> {
        let mut snapshot = store.snapshot().await?;
        let head = snapshot.head().await?;
        let rows = snapshot.get_many(Keyspace::Meta, &[FORMAT_KEY]).await?;
        let row = rows.into_iter().flatten().next().unwrap_or_default();
        Ok(Mark::read(&row, head, self.space.life))
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<dyn TenantStore>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> ProviderResult<Arc<CacheFile>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.clone().ok_or(ProviderError::Closed)
    }

    fn check_open(&self) -> ProviderResult<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(ProviderError::Closed),
            false => Ok(()),
        }
    }

    /// The newest position of the primary that is known.
    pub(super) fn required(&self) -> i64 {
        self.view().required
    }

    /// Has later reads look at the primary first.
    pub(super) fn look_again(&self) {
        self.view().look_from = Some(Instant::now());
    }

    /// A snapshot of what was committed through this server, and of what others committed up to `max_staleness` ago.
    pub(super) async fn snapshot(self: &Arc<Self>) -> ProviderResult<Box<dyn Snapshot>> {
        // A copy that is replaced in between is closed.
        for last in [false, true] {
            self.barrier(self.shared.max_staleness, true).await?;
            let store = self.current().clone();
            let Some(store) = store else { continue };
            match store.snapshot().await {
                Err(ProviderError::Closed) if !last => {}
                taken => return self.watched(taken),
            }
        }
        self.check_open()?;
        Err(self.busy("it is being replaced"))
    }

    fn busy(&self, why: &str) -> ProviderError {
        ProviderError::Busy {
            what: format!("the replica of tenant {}: {why}", self.space.tenant),
        }
    }

    fn watched(
        self: &Arc<Self>,
        taken: ProviderResult<Box<dyn Snapshot>>,
    ) -> ProviderResult<Box<dyn Snapshot>> {
        match self.unless_damaged(taken) {
            Ok(inner) => {
                let replica = self.clone();
                Ok(Box::new(ReplicaSnapshot { inner, replica }))
            }
            Err(e) => Err(e),
        }
    }

    /// Damage in a replica is mended by making it anew, so it is no damage of the tenant.
    fn unless_damaged<T>(&self, result: ProviderResult<T>) -> ProviderResult<T> {
        result.map_err(|e| match e {
            ProviderError::Corrupt { what, reason } => {
                tracing::warn!(
                    file = what,
                    reason,
                    "the replica is damaged and is made anew"
                );
                let mut view = self.view();
                view.doubt = true;
                view.cause = Some(view::MISMATCH);
                drop(view);
                self.busy("it is damaged and is being made anew")
            }
            e => e,
        })
    }

    /// Waits until the replica is no older than asked.
    ///
    /// # Errors
    /// `NotFound` once the tenant is deleted; `Busy` when that is not so in time; `Closed`, `Full`, `Io`.
    async fn barrier(self: &Arc<Self>, stale: Duration, counts: bool) -> ProviderResult<()> {
        self.check_open()?;
        let asked = Instant::now();
        {
            let mut view = self.view();
            if view.is_fresh(asked, stale) {
                if counts {
                    view.passed(Path::Current);
                }
                return Ok(());
            }
        }
        self.apart(move |replica| async move {
            let mut inner = replica.inner.lock().await;
            let path = replica.refresh_for(&mut inner, asked, stale).await?;
            if counts {
                replica.view().passed(path);
            }
            Ok(())
        })
        .await
    }

    /// Runs work in a task of its own, and waits a bounded time for it.
    async fn apart<T, F>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Replica>) -> F,
    ) -> ProviderResult<T>
    where
        T: Send + 'static,
        F: Future<Output = ProviderResult<T>> + Send + 'static,
    {
        self.view().waiting += 1;
        let task = tokio::spawn(work(self.clone()));
        let done = tokio::time::timeout(self.shared.timing.barrier, task).await;
        self.view().waiting -= 1;
        match done {
            Ok(Ok(result)) => result,
            Ok(Err(e)) => Err(ProviderError::io("refreshing a replica", e)),
            Err(_) => Err(self.busy("whether it is up to date could not be told in time")),
        }
    }

    /// Refreshes, unless someone did since `asked`.
    async fn refresh_for(
        self: &Arc<Self>,
        inner: &mut Option<Mark>,
        asked: Instant,
        stale: Duration,
    ) -> ProviderResult<Path> {
        self.check_open()?;
        {
            let view = self.view();
            if view.is_fresh(asked, stale) {
                return Ok(Path::Waited);
            }
            if let Some(e) = view.failed_since(asked, &self.space.tenant) {
                return Err(e);
            }
        }
        self.refresh(inner, view::FOLLOW).await
    }

    /// Asks the primary, and takes in what it has.
    async fn refresh(
        self: &Arc<Self>,
        inner: &mut Option<Mark>,
        cause: &'static str,
    ) -> ProviderResult<Path> {
        let began = Instant::now();
        self.view().inflight = true;
        let result = self.follow(inner).await;
        let mut view = self.view();
        view.inflight = false;
        view.ended(began, cause, &result);
        result
    }

    async fn follow(self: &Arc<Self>, inner: &mut Option<Mark>) -> ProviderResult<Path> {
        let mut path = Path::CaughtUp;
        let mut rebuilds = 0;
        loop {
            if std::mem::take(&mut self.view().doubt) {
                *inner = None;
            }
            let reason = match *inner {
                None if rebuilds == REBUILDS => {
                    return Err(self.busy("it does not come to agree with the primary"));
                }
                None => {
                    rebuilds += 1;
                    path = Path::Rebuilt;
                    self.rebuild(inner).await?
                }
                Some(mark) => match self.catch_up(inner, mark).await? {
                    Ok(()) => return Ok(path),
                    Err(reason) => {
                        *inner = None;
                        self.view().cause = Some(view::MISMATCH);
                        Err(reason)
                    }
                },
            };
            if let Err(reason) = reason {
                self.doubt(&reason);
            }
        }
    }

    fn doubt(&self, reason: &str) {
        tracing::warn!(tenant = %self.space.tenant, reason, "the replica is made anew");
    }

    /// Takes in the changes since the mark. The inner error says why the replica is of no use any more.
    async fn catch_up(
        self: &Arc<Self>,
        inner: &mut Option<Mark>,
        mark: Mark,
    ) -> ProviderResult<Result<(), String>> {
        let mut feed = Feed::at(mark);
        loop {
            self.check_open()?;
            let asked = Instant::now();
            let (state, parts) = self.fetch(feed.cursor()).await?;
            let before = feed.mark();
            let own = self.view().own;
            let step = match feed.take(&state, parts, own) {
                Ok(step) => step,
                Err(reason) => return Ok(Err(reason)),
            };
            self.shared.reached("fetched").await;
            if let Some(step) = step {
                match self.apply(before.head, step.mark, step.writes).await? {
                    Ok(()) => *inner = Some(step.mark),
                    Err(reason) => return Ok(Err(reason)),
                }
                self.view().foreign += step.foreign;
                self.shared.reached("applied").await;
            }
            match feed.is_at(&state) {
                Ok(true) => {
                    self.view().looked = Some(asked);
                    return Ok(Ok(()));
                }
                Ok(false) => {}
                Err(reason) => return Ok(Err(reason)),
            }
        }
    }

    /// The state of the primary and the changes after a position.
    ///
    /// # Errors
    /// `NotFound` when the tenant is gone.
    async fn fetch(&self, after: i64) -> ProviderResult<(State, Vec<Part>)> {
        let (http, name) = (&self.shared.http, &self.space.name);
        let fetched = again!(self.shared.timing, primary::changes(http, name, after));
        let (state, parts) = fetched.map_err(|e| self.failed(e))?;
        self.saw(&state)?;
        Ok((state, parts))
    }

    fn saw(&self, state: &State) -> ProviderResult<()> {
        if state.life != self.space.life {
            return Err(self.failed(Fault::Gone));
        }
        self.space.fence.store(state.fence, Ordering::Release);
        self.view().require(state.position, state.head.sequence);
        Ok(())
    }

    fn failed(&self, fault: Fault) -> ProviderError {
        match fault {
            Fault::Gone => {
                self.view().gone = true;
                lifecycle::not_found(&self.space.tenant)
            }
            other => other.provider(format!("reading namespace {}", self.space.name)),
        }
    }

    /// Writes a step to the copy that reads go to. The inner error says why it is of no use any more.
    async fn apply(
        &self,
        before: Head,
        mark: Mark,
        mut writes: Writes,
    ) -> ProviderResult<Result<(), String>> {
        let store = self.current().clone();
        let Some(store) = store else {
            return Ok(Err("there is no copy".to_owned()));
        };
        let row = Bytes::from(mark.row(self.space.life));
        writes.insert((Keyspace::Meta, FORMAT_KEY.to_vec()), Some(row));
        let batch = Batch {
            head: mark.head,
            writes,
        };
        match store.commit(before, batch).await {
            Ok(()) => {
                self.view().applied(&mark);
                Ok(Ok(()))
            }
            Err(e) => written(e),
        }
    }

    /// Applies a commit of this server; in doubt, or if that takes long, it is left to the next read.
    pub(super) async fn committed(self: &Arc<Self>, plan: Plan, committed: Committed) {
        let sequence = plan.batch.head.sequence;
        let placed = match committed {
            Committed::At(placed) => placed,
            Committed::UpTo(position) => return self.view().require(position, sequence),
        };
        self.view().require(placed.position, sequence);
        let Ok(mut inner) = tokio::time::timeout(APPLY_WAIT, self.inner.lock()).await else {
            return;
        };
        let follows = |mark: &Mark| {
            mark.position == placed.position - placed.count && mark.tag == placed.previous
        };
        let done = match *inner {
            Some(mark) if mark.position >= placed.position => return,
            Some(mark) if follows(&mark) => {
                let next = Mark {
                    position: placed.position,
                    tag: plan.tag,
                    head: plan.batch.head,
                };
                let applied = self.apply(mark.head, next, plan.batch.writes).await;
                applied.map(|done| done.map(|()| *inner = Some(next)))
            }
            // Others came in between.
            _ => self.refresh(&mut inner, view::COMMIT).await.map(|_| Ok(())),
        };
        match done {
            Ok(Ok(())) => {
                let mut view = self.view();
                view.looked = view.looked.max(Some(placed.sent));
            }
            Ok(Err(reason)) => {
                self.doubt(&reason);
                self.view().doubt = true;
            }
            Err(error) => {
                tracing::warn!(tenant = %self.space.tenant, %error, "applying a commit to the replica");
            }
        }
    }

    /// Says that a commit with this tag is under way.
    pub(super) fn begins(&self, plan: &Plan) {
        self.view().own = Some(plan.tag);
    }

    /// The newest state, with its mark.
    pub(super) async fn newest(self: &Arc<Self>) -> ProviderResult<(Mark, Box<dyn Snapshot>)> {
        self.check_open()?;
        let asked = Instant::now();
        self.apart(move |replica| async move {
            let mut inner = replica.inner.lock().await;
            replica
                .refresh_for(&mut inner, asked, Duration::ZERO)
                .await?;
            // Nothing is applied while the lock is held, so the snapshot is as of the mark.
            let store = replica.current().clone();
            match (*inner, store) {
                (Some(mark), Some(store)) => {
                    let taken = store.snapshot().await;
                    Ok((mark, replica.watched(taken)?))
                }
                _ => Err(replica.busy("it is being replaced")),
            }
        })
        .await
    }

    /// Ends when others committed since this last ended; see [`TenantStore::changed`].
    pub(super) async fn changed(self: &Arc<Self>) {
        let poll = self.shared.timing.poll;
        loop {
            if self.view().take_news() {
                return;
            }
            if self.check_open().is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(poll).await;
            // Whoever reads next finds out that the tenant is gone.
            let looked = self.barrier(poll / 2, false).await;
            if matches!(looked, Err(ProviderError::NotFound { .. })) {
                return;
            }
        }
    }

    pub(super) fn freshness(&self) -> ReplicaFreshness {
        self.view().freshness(self.shared.max_staleness)
    }

    pub(super) fn stats(&self) -> StoreStats {
        let store = self.current().clone();
        store.map_or_else(StoreStats::default, |store| store.stats())
    }

    /// Closes the copy and gives its place free.
    pub(super) async fn close(&self) -> ProviderResult<()> {
        self.closed.store(true, Ordering::Release);
        // What is at work sees that within a request.
        let _inner = self.inner.lock().await;
        let store = self.current().take();
        let closed = match store {
            Some(store) => store.close().await,
            None => Ok(()),
        };
        let file = self
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(file);
        closed
    }
}

/// A failed write to a copy: of the disk, or of the copy.
fn written(e: CommitError) -> ProviderResult<Result<(), String>> {
    match e {
        CommitError::Full { what } => Err(ProviderError::Full { what }),
        CommitError::Closed => Err(ProviderError::Closed),
        other => Ok(Err(other.to_string())),
    }
}

/// A snapshot of the copy that notices damage.
struct ReplicaSnapshot {
    inner: Box<dyn Snapshot>,
    replica: Arc<Replica>,
}

impl Snapshot for ReplicaSnapshot {
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>> {
        self.inner.head()
    }

    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>> {
        async move {
            let found = self.inner.get_many(keyspace, keys).await;
            self.replica.unless_damaged(found)
        }
        .boxed()
    }

    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>> {
        async move {
            let found = self.inner.scan(keyspace, range, direction, limit).await;
            self.replica.unless_damaged(found)
        }
        .boxed()
    }
}
