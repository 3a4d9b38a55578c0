//! Cases about commits: durable, whole, and on top of the expected head or not at all.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::kit::{
    Random, check, check_eq, check_matches, commit, contents, fresh, get, head, id, next, writes,
};
use super::{CaseResult, Failure, Fixture};
use crate::provider::{Batch, CommitError, HEAD_KEY, Head, Keyspace, TenantStore};

pub(super) async fn commit_is_visible_and_durable(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "durable").await?;
    let at = commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"k", Some(b"{}"))]),
    )
    .await?;
    check_eq!(head(&store).await?, at, "head after the commit");
    let found = get(&store, Keyspace::Docs, b"k").await?;
    check_eq!(found.as_deref(), Some(&b"{}"[..]), "row after the commit");
    store.close().await?;
    drop(store);
    fixture.restart().await?;
    let store = fixture.provider().open(&id("durable")?).await?;
    check_eq!(head(&store).await?, at, "head after a restart");
    let found = get(&store, Keyspace::Docs, b"k").await?;
    check_eq!(found.as_deref(), Some(&b"{}"[..]), "row after a restart");
    store.close().await?;
    Ok(())
}

pub(super) async fn commit_survives_restart_without_close(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "crash").await?;
    let mut at = Head::EMPTY;
    for n in 0..20_u8 {
        at = commit(&store, at, writes(&[(Keyspace::Index, &[n], Some(b""))])).await?;
    }
    drop(store);
    fixture.restart().await?;
    let store = fixture.provider().open(&id("crash")?).await?;
    check_eq!(head(&store).await?, at, "head");
    let rows = contents(&mut *store.snapshot().await?).await?;
    check_eq!(rows.len(), 20, "rows");
    // And it goes on from there.
    commit(&store, at, writes(&[(Keyspace::Index, b"more", Some(b""))])).await?;
    store.close().await?;
    Ok(())
}

pub(super) async fn stale_head_is_refused(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "stale").await?;
    let first = commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"a", Some(b"1"))]),
    )
    .await?;
    let wrong = [
        Head::EMPTY,
        Head {
            sequence: first.sequence + 1,
            ..first
        },
        Head {
            timestamp: first.timestamp + 1,
            ..first
        },
        Head {
            hash: [0xee; 32],
            ..first
        },
    ];
    for expected in wrong {
        let rows = writes(&[
            (Keyspace::Docs, b"a", Some(b"2")),
            (Keyspace::Docs, b"b", Some(b"2")),
        ]);
        let batch = Batch {
            head: next(expected, 77),
            writes: rows,
        };
        match store.commit(expected, batch).await {
            Err(CommitError::HeadMoved { actual }) => check_eq!(actual, first, "the actual head"),
            other => return Err(Failure::new(format!("on {expected:?}: found {other:?}"))),
        }
    }
    check_eq!(head(&store).await?, first, "head after refused commits");
    let rows = contents(&mut *store.snapshot().await?).await?;
    check_eq!(rows.len(), 1, "rows after refused commits");
    check_eq!(
        get(&store, Keyspace::Docs, b"a").await?.as_deref(),
        Some(&b"1"[..]),
        "the row"
    );
    store.close().await?;
    Ok(())
}

pub(super) async fn racing_commits_have_one_winner(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "race").await?;
    let mut at = Head::EMPTY;
    for _ in 0..5 {
        let tries = (0..8_u8).map(|n| {
            let rows = writes(&[(Keyspace::Docs, b"winner", Some(&[n]))]);
            store.commit(
                at,
                Batch {
                    head: next(at, n + 1),
                    writes: rows,
                },
            )
        });
        let results = futures_util::future::join_all(tries).await;
        let won: Vec<_> = (0..8_u8)
            .zip(&results)
            .filter(|(_, r)| r.is_ok())
            .map(|(n, _)| n)
            .collect();
        check_eq!(won.len(), 1, "winners of eight commits on one head");
        let lost =
            |r: &Result<(), CommitError>| matches!(r, Ok(()) | Err(CommitError::HeadMoved { .. }));
        check!(
            results.iter().all(lost),
            "losers are told that the head moved: {results:?}"
        );
        let row = get(&store, Keyspace::Docs, b"winner").await?;
        check_eq!(row.as_deref(), Some(&[won[0]][..]), "the winner's row");
        at = head(&store).await?;
        check_eq!(at.hash, [won[0] + 1; 32], "the winner's head");
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn commit_spans_all_keyspaces(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "atomic").await?;
    let every = |value: &'static [u8]| {
        Keyspace::ALL
            .map(|k| ((k, b"t/x".to_vec()), Some(value.into())))
            .into()
    };
    let at = commit(&store, Head::EMPTY, every(b"1")).await?;
    commit(&store, at, every(b"2")).await?;
    let rows = contents(&mut *store.snapshot().await?).await?;
    check_eq!(rows.len(), Keyspace::ALL.len(), "rows");
    check!(
        rows.values().all(|v| &v[..] == b"2"),
        "an old value is left: {rows:?}"
    );
    store.close().await?;
    Ok(())
}

pub(super) async fn refused_commit_writes_nothing(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "refused").await?;
    // The head row belongs to the provider. The other rows sort before and after it.
    let mut rows = writes(&[
        (Keyspace::Meta, b"t/x", Some(b"1")),
        (Keyspace::Meta, HEAD_KEY, Some(b"forged")),
        (Keyspace::Docs, b"x", Some(b"1")),
    ]);
    let batch = Batch {
        head: next(Head::EMPTY, 1),
        writes: rows.clone(),
    };
    let refused = store.commit(Head::EMPTY, batch).await;
    check_matches!(
        refused,
        Err(CommitError::Refused { .. }),
        "a batch that writes the head row"
    );
    check_eq!(head(&store).await?, Head::EMPTY, "head");
    let found = contents(&mut *store.snapshot().await?).await?;
    check!(found.is_empty(), "rows of a refused commit: {found:?}");
    // The store is as good as before.
    rows.remove(&(Keyspace::Meta, HEAD_KEY.to_vec()));
    commit(&store, Head::EMPTY, rows).await?;
    store.close().await?;
    Ok(())
}

/// Polls a commit once and drops it; true if it was still going on.
fn abandon(store: &Arc<dyn TenantStore>, expected: Head, batch: Batch) -> bool {
    let mut future = store.commit(expected, batch);
    matches!(
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop())),
        Poll::Pending
    )
}

pub(super) async fn dropped_commit_is_whole_or_absent(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "dropped").await?;
    let mut random = Random::new(4);
    let mut at = Head::EMPTY;
    for round in 0..20_u8 {
        let wanted = next(at, round + 1);
        let big = vec![round; 1 + random.below(300_000)];
        let rows = Keyspace::ALL.map(|k| ((k, b"t/x".to_vec()), Some(big.clone().into())));
        abandon(
            &store,
            at,
            Batch {
                head: wanted,
                writes: rows.into(),
            },
        );
        // Commits are serialised, so this one finds the first either done or never to happen.
        let after = next(wanted, 200);
        let empty = Batch {
            head: after,
            writes: writes(&[]),
        };
        let happened = match store.commit(at, empty).await {
            Ok(()) => false,
            Err(CommitError::HeadMoved { actual }) => {
                check_eq!(actual, wanted, "head after an abandoned commit");
                true
            }
            Err(e) => return Err(e.into()),
        };
        let rows = contents(&mut *store.snapshot().await?).await?;
        let new = rows.values().filter(|v| ***v == big).count();
        check_eq!(
            new,
            if happened { Keyspace::ALL.len() } else { 0 },
            "rows of an abandoned commit"
        );
        at = head(&store).await?;
        check_eq!(at, if happened { wanted } else { after }, "head");
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn overwrites_and_deletes(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "overwrite").await?;
    for keyspace in Keyspace::ALL {
        let key: &[u8] = b"t/key";
        let mut at = head(&store).await?;
        let states: [Option<&[u8]>; 7] = [
            Some(b"1"),
            Some(b"a longer value"),
            Some(b""),
            None,
            None,
            Some(b"back"),
            None,
        ];
        for value in states {
            at = commit(&store, at, writes(&[(keyspace, key, value)])).await?;
            let found = get(&store, keyspace, key).await?;
            check_eq!(found.as_deref(), value, "{} after writing", keyspace.name());
        }
    }
    let rows = contents(&mut *store.snapshot().await?).await?;
    check!(rows.is_empty(), "rows after deleting all: {rows:?}");
    store.close().await?;
    Ok(())
}

pub(super) async fn empty_batch_moves_the_head(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "empty").await?;
    let at = commit(&store, Head::EMPTY, writes(&[])).await?;
    check_eq!(head(&store).await?, at, "head");
    // Every field of the head is kept in full.
    let extreme = Head {
        sequence: u64::MAX,
        timestamp: u64::MAX,
        hash: [0xff; 32],
    };
    store
        .commit(
            at,
            Batch {
                head: extreme,
                writes: writes(&[]),
            },
        )
        .await?;
    check_eq!(head(&store).await?, extreme, "head");
    store.close().await?;
    Ok(())
}
