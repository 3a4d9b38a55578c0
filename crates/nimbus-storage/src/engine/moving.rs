//! Moving a tenant from one provider to another while it is used.
//!
//! It is copied as it was at one commit, read back and compared, and then follows the log of the original. Once little is
//! missing the tenant is closed, the rest is repeated, and a mark in the original decides that the copy is the tenant
//! from now on. Until then everything stays as it was, whatever fails; after that whoever opens the tenant finishes what
//! is left ([`crate::provider::combined`]). Who asked for it is not known here.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nimbus_core::TenantId;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::archive::{Archive, ORDER, is_left_out};
use super::overlay::Overlay;
use super::replay::Replay;
use super::restore::Restore;
use super::view::View;
use super::wake::DueTenant;
use super::{Engine, Tenant, lock, to_its_end};
use crate::error::{StoreError, StoreResult};
use crate::provider::combined::{self, ARRIVING_KEY, CombinedProvider};
use crate::provider::{
    CommitError, Direction, Head, KeyRange, Keyspace, Provider, ProviderError, Snapshot,
    TenantStore,
};

/// Commits that may be missing when the tenant is closed.
const CLOSE: u64 = 256;
/// Rounds after which it is closed anyway, and what may be missing then: some seconds of repeating.
const ROUNDS: u32 = 20;
const FAR: u64 = 20_000;
/// How long calls that have begun may go on before the tenant is closed under them.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);
/// Rows that are read back at once.
const READ_BACK: usize = 512;

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MovePhase {
    /// Rows are being copied.
    Copying,
    /// The copy is read back and compared.
    Verifying,
    /// The copy repeats what was committed meanwhile.
    CatchingUp,
    /// The tenant is closed for a moment.
    Switching,
    /// The tenant is with the other provider.
    Done,
    /// The tenant is where it was.
    Failed,
}

impl MovePhase {
    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, MovePhase::Done | MovePhase::Failed)
    }
}

/// What is known of the newest move of a tenant.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MoveStatus {
    /// How far it is.
    pub phase: MovePhase,
    /// The provider that the tenant was with.
    pub from: String,
    /// The provider that it was to be with.
    pub to: String,
    /// Rows copied, index entries not counted.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Commits repeated since.
    pub commits: u64,
    /// Milliseconds in which no new call was let in.
    pub pause_ms: u64,
    /// Milliseconds since it began, or that it took.
    pub elapsed_ms: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// The cause for operators at the machine, which may name paths; not sent to callers.
    #[serde(skip)]
    pub inside: Option<String>,
}

/// The newest move of each tenant, as long as the engine lives.
#[derive(Default)]
pub(super) struct Moves(Mutex<HashMap<TenantId, Progress>>);

/// One move, as it is told.
#[derive(Clone)]
struct Progress {
    status: Arc<watch::Sender<MoveStatus>>,
    begun: Instant,
    /// Why nobody wants it any more; the first reason stays.
    unwanted: Arc<OnceLock<&'static str>>,
}

impl Progress {
    fn new(from: &str, to: &str) -> Progress {
        let status = MoveStatus {
            phase: MovePhase::Copying,
            from: from.to_owned(),
            to: to.to_owned(),
            rows: 0,
            bytes: 0,
            commits: 0,
            pause_ms: 0,
            elapsed_ms: 0,
            error: None,
            inside: None,
        };
        Progress {
            status: Arc::new(watch::Sender::new(status)),
            begun: Instant::now(),
            unwanted: Arc::default(),
        }
    }

    /// Fails once nobody wants the move any more.
    fn go_on(&self) -> StoreResult<()> {
        match self.unwanted.get() {
            Some(_) => Err(StoreError::Closed),
            None => Ok(()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut MoveStatus)) {
        self.status.send_modify(|status| {
            change(status);
            status.elapsed_ms = ms(self.begun.elapsed());
        });
    }

    fn phase(&self, phase: MovePhase) {
        self.change(|status| status.phase = phase);
    }

    async fn ended(&self) -> Option<MoveStatus> {
        let mut status = self.status.subscribe();
        let over = status.wait_for(|status| status.phase.is_over()).await;
        over.map(|status| status.clone()).ok()
    }

    fn now(&self) -> MoveStatus {
        let mut status = self.status.borrow().clone();
        if !status.phase.is_over() {
            status.elapsed_ms = ms(self.begun.elapsed());
        }
        status
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What all parts of one move need.
#[derive(Clone)]
struct Job {
    engine: Engine,
    tenant: TenantId,
    source: Arc<dyn Provider>,
    target: Arc<dyn Provider>,
    progress: Progress,
}

/// Why the copy did not become the tenant.
struct Undecided {
    error: StoreError,
    /// It may have: the next who opens the tenant finds out.
    unknown: bool,
}

impl<E: Into<StoreError>> From<E> for Undecided {
    fn from(error: E) -> Undecided {
        Undecided {
            error: error.into(),
            unknown: false,
        }
    }
}

impl Engine {
    /// Begins to move a tenant to the provider of this name. It goes on by itself: see [`Engine::move_status`].
    ///
    /// # Errors
    /// `InvalidInput` if the engine has no such provider, if the tenant is with it already, or if it is being moved;
    /// `TenantNotFound`; the provider's failure.
    pub async fn begin_move(&self, tenant: &TenantId, to: &str) -> StoreResult<()> {
        let provider = self.provider().clone();
        let combined = combined_of(&*provider)?;
        let target = combined.named(to).cloned().ok_or_else(|| {
            let names = combined.names().join(", ");
            StoreError::invalid(format!(
                "this server does not serve the provider {to}; it serves {names}"
            ))
        })?;
        // Opened at least once, it is known where it is.
        drop(self.tenant(tenant).await?);
        let source = combined
            .serving(tenant)
            .ok_or_else(|| StoreError::TenantNotFound {
                tenant: tenant.clone(),
            })?;
        if source.name() == to {
            return Err(StoreError::invalid(format!(
                "tenant {tenant} is with {to} already"
            )));
        }
        let progress = Progress::new(source.name(), to);
        {
            let mut moves = lock(&self.inner.moves.0);
            let running = moves.get(tenant).is_some_and(|m| !m.now().phase.is_over());
            if running {
                return Err(StoreError::invalid(format!(
                    "tenant {tenant} is being moved already"
                )));
            }
            moves.insert(tenant.clone(), progress.clone());
        }
        let job = Job {
            engine: self.clone(),
            tenant: tenant.clone(),
            source,
            target,
            progress,
        };
        let work = tokio::spawn(job.clone().run());
        tokio::spawn(async move {
            let done = work.await.unwrap_or_else(|error| {
                let what = "a move ended badly".to_owned();
                Err(ProviderError::io(what, error).into())
            });
            job.tell(done);
        });
        Ok(())
    }

    /// The newest move of a tenant since the engine was made.
    pub fn move_status(&self, tenant: &TenantId) -> Option<MoveStatus> {
        let moves = lock(&self.inner.moves.0);
        moves.get(tenant).map(Progress::now)
    }

    /// Ends a move that is not decided yet, and waits until it is over either way: the tenant is where it was, or was
    /// moved before this came.
    ///
    /// # Errors
    /// `InvalidInput` if the tenant is not being moved.
    pub async fn cancel_move(&self, tenant: &TenantId) -> StoreResult<MoveStatus> {
        let ended = self.end_move(tenant, "the move was cancelled").await;
        ended.ok_or_else(|| StoreError::invalid(format!("tenant {tenant} is not being moved")))
    }

    /// As [`Engine::cancel_move`], for `why`; `None` if there is none.
    pub(super) async fn end_move(
        &self,
        tenant: &TenantId,
        why: &'static str,
    ) -> Option<MoveStatus> {
        let running = lock(&self.inner.moves.0).get(tenant).cloned();
        let running = running.filter(|m| !m.now().phase.is_over())?;
        running.unwanted.get_or_init(|| why);
        running.ended().await
    }

    /// Waits until the newest move of a tenant is over.
    pub async fn move_ended(&self, tenant: &TenantId) -> Option<MoveStatus> {
        let progress = lock(&self.inner.moves.0).get(tenant).cloned()?;
        progress.ended().await
    }
}

fn combined_of(provider: &dyn Provider) -> StoreResult<&CombinedProvider> {
    provider.combined().ok_or_else(|| {
        let only = provider.name();
        StoreError::invalid(format!(
            "this server serves the provider {only} alone; start it with --also-tenant-provider and the one to move to"
        ))
    })
}

impl Job {
    fn tell(&self, done: StoreResult<()>) {
        if let Err(error) = &done {
            let inside = error.inside();
            tracing::warn!(tenant = %self.tenant, %error, inside, "a tenant was not moved");
        }
        self.progress.change(|status| match &done {
            Ok(()) => status.phase = MovePhase::Done,
            Err(error) => {
                status.phase = MovePhase::Failed;
                status.error = Some(match (self.progress.unwanted.get(), error) {
                    (Some(why), _) => (*why).to_owned(),
                    (None, StoreError::Storage(_)) => {
                        "storage failed; the server's log says why".to_owned()
                    }
                    (None, other) => other.to_string(),
                });
                status.inside = error.inside();
            }
        });
    }

    async fn run(self) -> StoreResult<()> {
        let provider = self.engine.provider().clone();
        let combined = combined_of(&*provider)?;
        combined.drop_copies(&self.tenant, &*self.source).await?;
        let arriving = self.target.create_arriving(&self.tenant, ARRIVING_KEY);
        arriving.await?;
        let switched = match self.copy_and_follow().await {
            Ok(replay) => self.switch(replay).await,
            Err(error) => Err(error.into()),
        };
        let Err(Undecided { error, unknown }) = switched else {
            return Ok(());
        };
        if !unknown && let Err(left) = self.target.delete(&self.tenant).await {
            match left {
                ProviderError::NotFound { .. } => {}
                left => {
                    tracing::warn!(tenant = %self.tenant, error = %left, "an unfinished copy is left to the next move");
                }
            }
        }
        Err(error)
    }

    /// Makes a copy that is nearly as new as the original.
    async fn copy_and_follow(&self) -> StoreResult<Replay> {
        let original = self.engine.tenant(&self.tenant).await?;
        // Entries of an index that is being made are in no log.
        let _turn = original.schema_turn().await?;
        let archive = original.archive().await?;
        let pin = original.pin_log(archive.head().sequence);
        self.copy(archive).await?;
        let store = self.target.open(&self.tenant).await?;
        let followed = async {
            let mut replay = Replay::open(store.clone()).await?;
            self.follow(&original, &mut replay, &pin).await?;
            Ok(replay)
        };
        let followed = followed.await;
        if followed.is_err()
            && let Err(error) = store.close().await
        {
            tracing::warn!(tenant = %self.tenant, %error, "closing an unfinished copy");
        }
        followed
    }

    /// Copies all rows, has the copy checked as a whole, and compares what can be read there with what was written.
    async fn copy(&self, mut archive: Archive) -> StoreResult<()> {
        let shared = self.engine.inner.shared.clone();
        let at = (archive.head(), archive.floor());
        let target = self.target.clone();
        let mut restore = Restore::begin(target, shared, &self.tenant, at).await?;
        let written = match self.fill(&mut archive, &mut restore).await {
            Ok(written) => written,
            Err(error) => {
                restore.abandon().await?;
                return Err(error);
            }
        };
        drop(restore);
        drop(archive);
        let store = self.target.open(&self.tenant).await?;
        let found = read_back(&*store).await;
        store.close().await?;
        if found? == written {
            return Ok(());
        }
        Err(StoreError::corrupt(format!(
            "what {} has of tenant {} is not what was written there",
            self.target.name(),
            self.tenant
        )))
    }

    async fn fill(&self, archive: &mut Archive, restore: &mut Restore) -> StoreResult<[u8; 32]> {
        let mut print = Fingerprint::default();
        while let Some((space, rows)) = archive.next().await? {
            self.progress.go_on()?;
            let count = rows.len() as u64;
            let mut bytes = 0;
            for (key, value) in rows {
                print.row(space, &key, &value);
                bytes += (key.len() + value.len()) as u64;
                restore.row(space, key, value).await?;
            }
            self.progress.change(|status| {
                status.rows += count;
                status.bytes += bytes;
            });
        }
        self.progress.phase(MovePhase::Verifying);
        restore.finish().await?;
        Ok(print.end())
    }

    /// Repeats what was committed meanwhile until little is missing.
    async fn follow(
        &self,
        original: &Tenant,
        replay: &mut Replay,
        pin: &super::LogPin,
    ) -> StoreResult<()> {
        self.progress.phase(MovePhase::CatchingUp);
        let mut missing = 0;
        for _ in 0..ROUNDS {
            let goal = original.inner.durable_view(false).await?.read_sequence;
            missing = goal.saturating_sub(replay.head().sequence);
            if missing <= CLOSE {
                return Ok(());
            }
            while replay.head().sequence < goal {
                let mut view = original.inner.durable_view(false).await?.unbounded();
                self.step(replay, &mut view).await?;
                pin.move_to(replay.head().sequence);
            }
        }
        if missing <= FAR {
            return Ok(());
        }
        Err(StoreError::invalid(format!(
            "the tenant is written to faster than the copy follows: {missing} commits are missing; move it at a quieter time"
        )))
    }

    async fn step(&self, replay: &mut Replay, view: &mut View) -> StoreResult<()> {
        self.progress.go_on()?;
        let commits = replay.step(view).await? as u64;
        self.progress.change(|status| status.commits += commits);
        if commits > 0 {
            return Ok(());
        }
        Err(StoreError::corrupt(format!(
            "the log ends at {:?}, before the newest commit",
            replay.head()
        )))
    }

    /// Closes the tenant, repeats the rest and decides. Calls that come meanwhile wait.
    async fn switch(&self, replay: Replay) -> Result<(), Undecided> {
        let job = self.clone();
        // Whoever waits for it: it is not to be cut off between its steps.
        let done = to_its_end(async move { Ok(job.switch_in_turn(replay).await) });
        done.await?
    }

    async fn switch_in_turn(&self, mut replay: Replay) -> Result<(), Undecided> {
        let gate = self.engine.gate(&self.tenant);
        let _held = gate.lock().await;
        let begun = Instant::now();
        self.progress.phase(MovePhase::Switching);
        if let Err(error) = self.progress.go_on() {
            replay.close().await?;
            return Err(error.into());
        }
        self.engine.put_out(&self.tenant).await;
        let decided = self.decide(&mut replay).await;
        let closed = replay.close().await;
        let finished = match (decided, closed) {
            (Err(undecided), _) => Err(undecided),
            (Ok(left), closed) => self.finish(closed, left).await.map_err(|error| Undecided {
                error,
                unknown: true,
            }),
        };
        let pause = ms(begun.elapsed());
        self.progress.change(|status| status.pause_ms = pause);
        finished
    }

    async fn finish(&self, closed: StoreResult<()>, left: Vec<DueTenant>) -> StoreResult<()> {
        closed?;
        combined::finish(&self.tenant, &*self.source, &*self.target).await?;
        self.engine.inner.shared.wakes.clear(&left).await;
        Ok(())
    }

    /// The wake times that the tenant leaves behind.
    async fn decide(&self, replay: &mut Replay) -> Result<Vec<DueTenant>, Undecided> {
        let store = self.source.open(&self.tenant).await?;
        let decided = self.decide_on(&*store, replay).await;
        if let Err(error) = store.close().await {
            tracing::warn!(tenant = %self.tenant, %error, "closing what a tenant is moved from");
        }
        decided
    }

    async fn decide_on(
        &self,
        store: &dyn TenantStore,
        replay: &mut Replay,
    ) -> Result<Vec<DueTenant>, Undecided> {
        let mut turn = None;
        let head = if store.is_shared() {
            let locked = turn.insert(store.turn().await.map_err(not_decided)?);
            locked.head().await?
        } else {
            store.snapshot().await?.head().await?
        };
        while replay.head() != head {
            let snapshot = snapshot_at(store, head).await?;
            let at = (head.sequence, head.sequence);
            let view = View::new(snapshot, Overlay::default(), Arc::default(), at, 0, false);
            self.step(replay, &mut view.unbounded()).await?;
        }
        // What is committed now was announced before, on whichever server.
        let wakes = &self.engine.inner.shared.wakes;
        let both = (&*self.source, &*self.target);
        let left = wakes.carry(&self.tenant, both).await?;
        let decided = combined::decide(store, turn, head, self.target.name()).await;
        decided.map(|()| left).map_err(|error| Undecided {
            unknown: matches!(error, CommitError::OutcomeUnknown { .. }),
            ..not_decided(error)
        })
    }
}

fn not_decided(error: CommitError) -> Undecided {
    let known = match error {
        CommitError::Closed => StoreError::Closed,
        CommitError::Full { what } => StoreError::StorageFull { inside: what },
        other => ProviderError::io("giving a tenant up", other.to_string()).into(),
    };
    known.into()
}

/// A snapshot of a namespace to which nobody commits, which a replica may show late.
async fn snapshot_at(store: &dyn TenantStore, head: Head) -> StoreResult<Box<dyn Snapshot>> {
    let begun = Instant::now();
    loop {
        let mut snapshot = store.snapshot().await?;
        let found = snapshot.head().await?;
        if found == head {
            return Ok(snapshot);
        }
        drop(snapshot);
        if begun.elapsed() > GRACE {
            let what = format!("the replica shows {found:?}, the primary has {head:?}");
            return Err(ProviderError::Busy { what }.into());
        }
        store.look_again();
        tokio::time::sleep(LOOK).await;
    }
}

/// All that a namespace holds of a tenant, read row by row.
async fn read_back(store: &dyn TenantStore) -> StoreResult<[u8; 32]> {
    let mut print = Fingerprint::default();
    for space in ORDER {
        let mut range = KeyRange::all();
        loop {
            let mut snapshot = store.snapshot().await?;
            let rows = snapshot
                .scan(space, &range, Direction::Forward, READ_BACK)
                .await?;
            let Some((last, _)) = rows.last() else { break };
            range.start = [last.as_slice(), &[0]].concat();
            for (key, value) in rows.iter().filter(|(key, _)| !is_left_out(space, key)) {
                print.row(space, key, value);
            }
        }
    }
    Ok(print.end())
}

/// SHA-256 over rows in the order of an archive.
#[derive(Default)]
struct Fingerprint(Sha256);

impl Fingerprint {
    fn row(&mut self, space: Keyspace, key: &[u8], value: &[u8]) {
        self.0.update([space as u8]);
        for part in [key, value] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
    }

    fn end(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl Engine {
    /// Closes a tenant that is open, once the calls that have begun are over or have had their time. The caller
    /// holds its gate, at which new ones wait.
    async fn put_out(&self, tenant: &TenantId) {
        let Some(open) = lock(&self.inner.open).remove(tenant) else {
            return;
        };
        // They would stay for ever.
        open.inner.live.close();
        let begun = Instant::now();
        while open.inner.leases.load(Ordering::Acquire) > 0 && begun.elapsed() < GRACE {
            tokio::time::sleep(LOOK).await;
        }
        self.shut(open).await;
    }
}
