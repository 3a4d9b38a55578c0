//! Commits that other servers made to a shared tenant: reading them from the log, and committing in turn
//! with those servers.
//!
//! The committer alone calls this, between its batches, so a batch is never being written while the newest
//! commit changes under it. What the commits mean for queries and transactions is known in `rebase` and
//! `live`.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use nimbus_core::DocumentId;

use super::Loaded;
use super::catalog::{Catalog, IndexDef};
use super::commit;
use super::exec::parse;
use super::function::CommitStamp;
use super::index;
use super::log::{self, RecordReader};
use super::overlay::Overlay;
use super::readset::SpaceKey;
use super::rebase::Foreign;
use super::record::{Image, LoggedWrite, Record};
use super::state::{Committed, Member, Outcome, TakenBatch};
use super::tally::Change;
use super::tenant::{TenantInner, now_ns};
use super::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::{CommitError, Head, Keyspace, Turn};

/// Commits that are taken in at once.
const STEP: usize = 1_024;
/// Turns that a batch waits for when each is lost again.
const TURN_TRIES: u32 = 5;

/// Takes in what others committed up to the newest durable state. What fails is tried again with the next
/// read or hint.
pub(crate) async fn follow(tenant: &TenantInner) {
    if let Err(error) = catch_up(tenant, &mut Vec::new()).await {
        note_failure(tenant, &error);
    }
    // Whoever waits for a commit of others learns that this is all that could be had.
    tenant.followed.send_modify(|times| *times += 1);
}

fn note_failure(tenant: &TenantInner, error: &StoreError) {
    tracing::warn!(tenant = %tenant.id, %error, inside = error.inside(), "reading what other servers committed");
    let gone = matches!(
        error,
        StoreError::Corrupt { .. } | StoreError::TenantNotFound { .. }
    );
    if gone {
        commit::give_up(tenant);
    }
}

/// Writes a batch that others came before: waits for this server's turn, takes in what they did, and
/// commits what still stands with nobody in between.
pub(crate) async fn commit_in_turn(tenant: &TenantInner, taken: TakenBatch) {
    let mut members = taken.members;
    for left in (0..TURN_TRIES).rev() {
        let failed = match one_turn(tenant, &mut members).await {
            // Nothing of it stands any more.
            Ok(None) => return,
            Ok(Some((taken, Err(CommitError::Transient { reason })))) if left > 0 => {
                members = taken.members;
                reason
            }
            Ok(Some((taken, result))) => return commit::conclude(tenant, taken, result),
            Err(CommitError::Transient { reason }) if left > 0 => reason,
            Err(error) => {
                let taken = TakenBatch::of(tenant.state().durable, members);
                return commit::conclude(tenant, taken, Err(error));
            }
        };
        tracing::warn!(tenant = %tenant.id, reason = failed, "a turn to commit is taken again");
    }
}

/// One try of [`commit_in_turn`]; `None` if nothing is left to write. On an error the members are where
/// they were, or in the batch being built.
async fn one_turn(
    tenant: &TenantInner,
    members: &mut Vec<Member>,
) -> Result<Option<(TakenBatch, Result<(), CommitError>)>, CommitError> {
    let transient = |reason: String| CommitError::Transient { reason };
    let mut turn: Box<dyn Turn> = tenant.store.turn().await?;
    let locked = turn.head().await.map_err(|e| transient(e.to_string()))?;
    if let Err(error) = catch_up(tenant, members).await {
        note_failure(tenant, &error);
        let closed = tenant.failed.load(Ordering::Acquire);
        return Err(match closed {
            true => CommitError::Closed,
            false => transient(error.to_string()),
        });
    }
    let batch = {
        let mut state = tenant.state();
        if state.durable != locked {
            let seen = state.durable;
            return Err(transient(format!(
                "the log shows {seen:?}, the head is {locked:?}"
            )));
        }
        state.take_batch()
    };
    let Some(taken) = batch else {
        return Ok(None);
    };
    tenant.room.notify_waiters();
    let result = turn.commit(taken.batch.clone()).await;
    Ok(Some((taken, result)))
}

/// Takes in everything that is durable, and the members with it: see [`super::state::State::adopt`].
///
/// # Errors
/// `Corrupt` if the stored history is not the one that this server saw; the provider's failure.
async fn catch_up(tenant: &TenantInner, members: &mut Vec<Member>) -> StoreResult<()> {
    loop {
        let (durable, catalog) = {
            let state = tenant.state();
            let at = state.durable;
            (at, state.catalog_at(at.sequence).unwrap_or_default())
        };
        let mut snapshot = tenant.snapshot().await?;
        let head = snapshot.head().await?;
        if head == durable {
            if !members.is_empty() {
                take_in(tenant, &[], std::mem::take(members));
            }
            return Ok(());
        }
        if head.sequence <= durable.sequence {
            return Err(StoreError::corrupt(format!(
                "the stored head {head:?} does not follow {durable:?}: another history is there now"
            )));
        }
        let at = (head.sequence, head.sequence);
        let mut view = View::new(snapshot, Overlay::default(), catalog, at, 0, false).unbounded();
        let commits = read_commits(&mut view, durable).await?;
        drop(view);
        match commits {
            Some(commits) => take_in(tenant, &commits, std::mem::take(members)),
            None => begin_anew(tenant, members).await?,
        }
    }
}

/// Goes on from what is stored now, since the log does not tell any more what happened in between: everything
/// that is validated runs again, and every watched query too.
async fn begin_anew(tenant: &TenantInner, members: &mut Vec<Member>) -> StoreResult<()> {
    let mut snapshot = tenant.snapshot().await?;
    let loaded = Loaded::read(&mut *snapshot).await?;
    drop(snapshot);
    // A tenant that was made again has another one.
    let same = loaded
        .cursor_key
        .as_ref()
        .map(|key| key.is(&tenant.cursor_key));
    if same != Some(true) {
        return Err(StoreError::corrupt("another tenant is there now"));
    }
    tracing::warn!(tenant = %tenant.id, head = ?loaded.head, "the log of what other servers did is pruned; everything is read anew");
    let head = loaded.head;
    let (waiting, epoch) = {
        let mut state = tenant.state();
        let waiting = state.begin_anew(head, loaded.catalog, loaded.log_offset);
        (waiting, state.epoch)
    };
    tenant.log.set_floor(loaded.floor);
    tenant.live.invalidate_all(CommitStamp::of(head));
    tenant.durable.send_replace((head.sequence, epoch));
    for member in std::mem::take(members).into_iter().chain(waiting) {
        let _ = member.reply.send(Outcome::Rerun);
    }
    tenant.room.notify_waiters();
    Ok(())
}

fn take_in(tenant: &TenantInner, commits: &[Foreign], members: Vec<Member>) {
    let (rerun, durable, epoch) = {
        let mut state = tenant.state();
        let rerun = state.adopt(commits, members, now_ns());
        (rerun, state.durable, state.epoch)
    };
    let committed: Vec<Committed> = commits
        .iter()
        .map(|commit| Committed {
            sequence: commit.head.sequence,
            keys: commit.keys.clone(),
        })
        .collect();
    // As for commits of this server: before anyone can answer from the new state.
    tenant.live.invalidate(&committed, CommitStamp::of(durable));
    tenant.durable.send_replace((durable.sequence, epoch));
    tenant
        .counters
        .followed
        .fetch_add(commits.len() as u64, Ordering::Relaxed);
    for member in rerun {
        let _ = member.reply.send(Outcome::Rerun);
    }
    tenant.room.notify_waiters();
    tenant.work.notify_one();
}

/// The next commits after `durable`, at least one and at most [`STEP`]; `None` if the log has them no more.
///
/// # Errors
/// `Corrupt` if the next commit does not follow `durable`.
async fn read_commits(view: &mut View, durable: Head) -> StoreResult<Option<Vec<Foreign>>> {
    let mut commits: Vec<Foreign> = Vec::new();
    let mut last = durable;
    let mut reader = RecordReader::after(durable.sequence);
    while commits.len() < STEP
        && let Some((record, _)) = reader.next(view).await?
    {
        if commits.is_empty() && record.sequence > last.sequence + 1 {
            return Ok(None);
        }
        if record.sequence != last.sequence + 1 || record.previous != last.hash {
            return Err(StoreError::corrupt(format!(
                "commit {} does not follow {last:?}: another history is there now",
                record.sequence
            )));
        }
        last = Head {
            sequence: record.sequence,
            timestamp: record.timestamp,
            hash: record.hash,
        };
        commits.push(foreign(view, last, record).await?);
    }
    Ok((!commits.is_empty()).then_some(commits))
}

/// One commit as validation needs it. The view's catalog goes on to that after the commit.
async fn foreign(view: &mut View, head: Head, record: Record) -> StoreResult<Foreign> {
    let before = view.catalog.clone();
    let changed = log::changed_catalog(view, &before, &record).await?;
    if let Some(after) = &changed {
        view.catalog = after.clone();
    }
    let mut keys: Vec<SpaceKey> = Vec::with_capacity(record.writes.len());
    for write in &record.writes {
        keys.push((write.space, Bytes::copy_from_slice(&write.key)));
        if write.space == Keyspace::Docs {
            add_entries(view, &before, record.sequence, write, &mut keys).await?;
        }
    }
    Ok(Foreign {
        head,
        keys: keys.into(),
        catalog: changed,
        size: record.size,
        change: Change::of_record(&record.writes),
    })
}

/// Adds the keys of the index entries that a write of a document removed and added.
async fn add_entries(
    view: &mut View,
    before: &Catalog,
    sequence: u64,
    write: &LoggedWrite,
    keys: &mut Vec<SpaceKey>,
) -> StoreResult<()> {
    let id = DocumentId::from_key(&write.key)
        .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
    let mut indexes: Vec<IndexDef> = Vec::new();
    for catalog in [before, &*view.catalog.clone()] {
        let table = catalog.by_number(id.table);
        for index in table.into_iter().flat_map(|table| table.maintained()) {
            if !indexes.iter().any(|known| known.id == index.id) {
                indexes.push(index.clone());
            }
        }
    }
    if indexes.is_empty() {
        return Ok(());
    }
    for image in [&write.before, &write.after] {
        if *image == Image::Absent {
            continue;
        }
        let Some(body) = log::resolve(view, sequence, write, image).await? else {
            continue;
        };
        let document = parse(&body)?;
        for index in &indexes {
            let entry = index::entry(index, id.internal, &document);
            keys.push((Keyspace::Index, Bytes::from(entry.stored)));
        }
    }
    Ok(())
}
