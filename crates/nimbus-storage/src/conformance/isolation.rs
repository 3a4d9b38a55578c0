//! Cases about snapshots: each sees one state, whole, for as long as it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::kit::{all, check, check_eq, commit, contents, fresh, head, one, visible, writes};
use super::{CaseResult, Failure, Fixture};
use crate::provider::{Direction, Head, Keyspace, TenantStore};

pub(super) async fn snapshot_is_isolated_from_later_commits(
    fixture: Arc<dyn Fixture>,
) -> CaseResult {
    let store = fresh(&fixture, "isolated").await?;
    let mut at = Head::EMPTY;
    for n in 0..100_u8 {
        at = commit(&store, at, writes(&[(Keyspace::Docs, &[n], Some(b"old"))])).await?;
    }
    // Taken, but not read from before the commits.
    let mut late = store.snapshot().await?;
    let mut snapshot = store.snapshot().await?;
    let before = contents(&mut *snapshot).await?;
    let then = at;
    for n in 0..100_u8 {
        let rows = [(
            Keyspace::Docs,
            &[n][..],
            if n % 2 == 0 { None } else { Some(&b"new"[..]) },
        )];
        at = commit(&store, at, writes(&rows)).await?;
        at = commit(
            &store,
            at,
            writes(&[(Keyspace::Docs, &[n, 0], Some(b"more"))]),
        )
        .await?;
    }
    for snapshot in [&mut snapshot, &mut late] {
        check_eq!(snapshot.head().await?, then, "head of the old snapshot");
        check_eq!(
            contents(&mut **snapshot).await?,
            before,
            "rows of the old snapshot"
        );
    }
    check_eq!(head(&store).await?, at, "head of a new snapshot");
    drop((snapshot, late));
    store.close().await?;
    Ok(())
}

pub(super) async fn snapshots_of_two_times_differ(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "two").await?;
    let first = commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"k", Some(b"1"))]),
    )
    .await?;
    let mut old = store.snapshot().await?;
    let second = commit(&store, first, writes(&[(Keyspace::Docs, b"k", Some(b"2"))])).await?;
    let mut new = store.snapshot().await?;
    for _ in 0..2 {
        check_eq!(old.head().await?, first, "head of the old one");
        check_eq!(new.head().await?, second, "head of the new one");
        let (o, n) = (
            one(&mut *old, Keyspace::Docs, b"k").await?,
            one(&mut *new, Keyspace::Docs, b"k").await?,
        );
        check_eq!(o.as_deref(), Some(&b"1"[..]), "row of the old one");
        check_eq!(n.as_deref(), Some(&b"2"[..]), "row of the new one");
    }
    drop((old, new));
    store.close().await?;
    Ok(())
}

/// Each commit writes its sequence to one key in every keyspace; any snapshot must find all
/// of them equal to its head.
pub(super) async fn snapshots_see_whole_commits_only(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "whole").await?;
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..6)
        .map(|_| tokio::spawn(read_until(store.clone(), done.clone(), seen.clone())))
        .collect();
    let mut at = Head::EMPTY;
    while at.sequence < 150 || (seen.load(Ordering::Relaxed) < 50 && at.sequence < 5_000) {
        let value = Bytes::from((at.sequence + 1).to_string());
        let rows = Keyspace::ALL.map(|k| ((k, b"t/n".to_vec()), Some(value.clone())));
        at = commit(&store, at, rows.into()).await?;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader
            .await
            .map_err(|e| Failure::new(format!("a reader ended: {e}")))??;
    }
    check!(
        seen.load(Ordering::Relaxed) >= 50,
        "only {seen:?} snapshots beside {at:?}"
    );
    store.close().await?;
    Ok(())
}

async fn read_until(
    store: Arc<dyn TenantStore>,
    done: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
) -> CaseResult {
    let mut newest = 0;
    while !done.load(Ordering::Relaxed) {
        let mut snapshot = store.snapshot().await?;
        let sequence = snapshot.head().await?.sequence;
        check!(
            sequence >= newest,
            "a later snapshot went back from {newest} to {sequence}"
        );
        newest = sequence;
        let expected = if sequence == 0 {
            None
        } else {
            Some(sequence.to_string())
        };
        for keyspace in Keyspace::ALL {
            let found = one(&mut *snapshot, keyspace, b"t/n").await?;
            let expected = expected.as_ref().map(|s| s.as_bytes());
            check_eq!(
                found.as_deref(),
                expected,
                "{} at {sequence}",
                keyspace.name()
            );
        }
        seen.fetch_add(1, Ordering::Relaxed);
        drop(snapshot);
        tokio::task::yield_now().await;
    }
    Ok(())
}

pub(super) async fn more_snapshots_than_readers_take_turns(
    fixture: Arc<dyn Fixture>,
) -> CaseResult {
    let store = fresh(&fixture, "turns").await?;
    let mut at = Head::EMPTY;
    for n in 0..20_u8 {
        at = commit(&store, at, writes(&[(Keyspace::Index, &[n], Some(b""))])).await?;
    }
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut snapshot = store.snapshot().await?;
                let range = visible(Keyspace::Index);
                let rows = all(&mut *snapshot, Keyspace::Index, &range, Direction::Forward).await?;
                tokio::task::yield_now().await;
                check_eq!(rows.len(), 20, "rows");
                Ok::<(), Failure>(())
            })
        })
        .collect();
    for task in tasks {
        task.await
            .map_err(|e| Failure::new(format!("a reader ended: {e}")))??;
    }
    // Commits need no reader.
    let snapshot = store.snapshot().await?;
    commit(&store, at, writes(&[(Keyspace::Index, b"x", Some(b""))])).await?;
    drop(snapshot);
    check_eq!(store.stats().open_snapshots, 0, "snapshots left open");
    store.close().await?;
    Ok(())
}
