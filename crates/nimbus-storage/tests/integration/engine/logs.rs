//! The commit log: the journal's pages, the hash chain as stored, large bodies and large records,
//! retention, pins, and timestamps that never go back.

use std::time::Duration;

use nimbus_storage::core::{DocumentId, Object, TableName, Value};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{CommitId, EngineOptions, JournalRecord, StoreError, Tenant};
use sha2::{Digest, Sha256};

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

fn n(value: f64) -> Object {
    object([("n", num(value))])
}

async fn all_records(tenant: &Tenant, from: u64, limit: u32) -> Vec<JournalRecord> {
    let (mut records, mut after) = (Vec::new(), from);
    loop {
        let page = tenant.journal(after, limit).await.unwrap();
        assert!(page.records.len() <= limit as usize);
        assert_eq!(page.has_more, page.next_cursor < page.latest_sequence);
        records.extend(page.records);
        after = page.next_cursor;
        if !page.has_more {
            return records;
        }
    }
}

/// The stored records: parts put together, by sequence.
fn stored(world: &World) -> Vec<(u64, Vec<u8>, usize)> {
    let mut records: Vec<(u64, Vec<u8>, usize)> = Vec::new();
    for (key, part) in raw_rows(&world.raw("t"), Keyspace::Log) {
        assert_eq!(key.len(), 10, "sequence and part");
        assert!(
            part.len() <= 4 * 1024 * 1024,
            "a part of {} bytes",
            part.len()
        );
        let sequence = u64::from_be_bytes(key[..8].try_into().unwrap());
        let number = usize::from(u16::from_be_bytes(key[8..].try_into().unwrap()));
        match records.last_mut() {
            Some((s, text, parts)) if *s == sequence => {
                assert_eq!(number, *parts);
                text.extend(part);
                *parts += 1;
            }
            _ => {
                assert_eq!(number, 0);
                records.push((sequence, part, 1));
            }
        }
    }
    records
}

/// The chain as an auditor verifies it: from the stored bytes alone, then against the journal.
async fn verify_chain(world: &World, tenant: &Tenant, floor: u64) {
    let journal = all_records(tenant, floor, 1_000).await;
    let stored = stored(world);
    assert_eq!(journal.len(), stored.len());
    let (mut previous, mut sequence, mut timestamp) = (None, floor, 0);
    for (record, (at, text, _)) in journal.iter().zip(&stored) {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(text));
        let parsed: serde_json::Value = serde_json::from_slice(text).unwrap();
        assert_eq!((record.sequence, *at), (sequence + 1, sequence + 1));
        assert_eq!(record.integrity_sha256, hash);
        if let Some(previous) = previous {
            assert_eq!(parsed["previous"], serde_json::Value::String(previous));
        }
        assert_eq!(parsed["commit"].as_str(), Some(record.commit_id.as_str()));
        assert!(record.timestamp > timestamp, "time goes on");
        (previous, sequence, timestamp) = (Some(hash), record.sequence, record.timestamp);
    }
}

#[tokio::test]
async fn the_journal_tells_every_commit_once() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    let mut ids: Vec<DocumentId> = Vec::new();
    for i in 0..12 {
        ids.push(tenant.insert(&table(), n(f64::from(i))).await.unwrap());
    }
    tenant
        .patch(&table(), &ids[3].to_string(), n(30.0))
        .await
        .unwrap();
    tenant.delete(&table(), &ids[4].to_string()).await.unwrap();
    let whole = all_records(&tenant, 0, 1_000).await;
    assert_eq!(whole.len(), 14);
    for limit in [1, 5, 14] {
        let paged = all_records(&tenant, 0, limit).await;
        let same = |a: &JournalRecord, b: &JournalRecord| a.integrity_sha256 == b.integrity_sha256;
        assert!(
            paged.iter().zip(&whole).all(|(a, b)| same(a, b)),
            "pages of {limit}"
        );
        assert_eq!(paged.len(), whole.len());
    }
    assert_eq!(all_records(&tenant, 12, 10).await[0].sequence, 13);
    let kinds = |record: &JournalRecord| -> Vec<(String, &'static str, String)> {
        let writes = record.writes.iter();
        writes
            .map(|w| (w.table.clone(), w.op_type, w.doc_id.clone()))
            .collect()
    };
    // The first insert made the table.
    let first = kinds(&whole[0]);
    assert!(
        first.contains(&("_tables".into(), "insert", TABLE.into())),
        "{first:?}"
    );
    assert!(
        first.contains(&(TABLE.into(), "insert", ids[0].to_string())),
        "{first:?}"
    );
    assert_eq!(
        kinds(&whole[1]),
        [(TABLE.into(), "insert", ids[1].to_string())]
    );
    let update = &whole[12].writes[0];
    let images = [&update.previous, &update.current].map(|image| {
        let fields: Object = serde_json::from_str(image.as_ref().unwrap().get()).unwrap();
        fields["n"].clone()
    });
    assert_eq!((update.op_type, images), ("update", [num(3.0), num(30.0)]));
    let delete = &whole[13].writes[0];
    assert_eq!(delete.op_type, "delete");
    assert!(delete.previous.is_some() && delete.current.is_none());
    let beyond = tenant.journal(15, 1).await.map(drop);
    assert!(
        matches!(beyond, Err(StoreError::InvalidInput { .. })),
        "{beyond:?}"
    );
    let end = tenant.journal(14, 1).await.unwrap();
    assert!(end.records.is_empty() && !end.has_more);
    assert_eq!((end.next_cursor, end.cursor_floor), (14, 0));

    verify_chain(&world, &tenant, 0).await;
    drop(tenant);
    for _ in 0..3 {
        world.reopen().await;
        let tenant = world.tenant("t").await;
        tenant.insert(&table(), n(0.0)).await.unwrap();
        verify_chain(&world, &tenant, 0).await;
        assert_consistent(&tenant).await;
    }
}

/// Sequence by name, for every commit and for none.
#[tokio::test]
async fn a_commit_is_found_by_its_id() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    for i in 0..300 {
        tenant.insert(&table(), n(f64::from(i))).await.unwrap();
    }
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let records = all_records(&tenant, 0, 1_000).await;
    for record in records.iter().step_by(37) {
        let commit: CommitId = record.commit_id.parse().unwrap();
        let found = tenant.commit_status(commit).await.unwrap();
        assert_eq!(found, Some(record.sequence));
    }
    let unknown = tenant.commit_status(CommitId([7; 16])).await.unwrap();
    assert_eq!(unknown, None);
    // A document that names a commit is not that commit.
    let bait = format!("\"commit\":\"{}\"", CommitId([8; 16]));
    tenant
        .insert(&table(), object([("s", text(&bait))]))
        .await
        .unwrap();
    assert_eq!(tenant.commit_status(CommitId([8; 16])).await.unwrap(), None);
}

fn body(fill: &str, bytes: usize) -> Object {
    object([("s", text(&fill.repeat(bytes)))])
}

fn shows(image: Option<&serde_json::value::RawValue>, fill: &str, bytes: usize) -> bool {
    let fields: Object = serde_json::from_str(image.unwrap().get()).unwrap();
    fields["s"] == text(&fill.repeat(bytes))
}

#[tokio::test]
async fn a_large_body_is_stored_once_and_stays_readable() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    let id = tenant.insert(&table(), body("a", 100_000)).await.unwrap();
    let text = id.to_string();
    assert!(
        stored(&world)[0].1.len() < 5_000,
        "the record repeats the body"
    );
    for (fill, step) in [("b", 2), ("c", 3)] {
        tenant
            .patch(&table(), &text, body(fill, 100_000))
            .await
            .unwrap();
        let record = &stored(&world)[step - 1].1;
        assert!(
            (100_000..110_000).contains(&record.len()),
            "the replaced body, once"
        );
    }
    let expected = [
        ("insert", None, Some("a")),
        ("update", Some("a"), Some("b")),
        ("update", Some("b"), Some("c")),
    ];
    let check = async |tenant: &Tenant| {
        let records = all_records(tenant, 0, 10).await;
        for (record, (op, before, after)) in records.iter().zip(expected) {
            let write = record.writes.iter().find(|w| w.table == TABLE).unwrap();
            assert_eq!(write.op_type, op);
            for (image, fill) in [(&write.previous, before), (&write.current, after)] {
                match fill {
                    Some(fill) => assert!(shows(image.as_deref(), fill, 100_000)),
                    None => assert!(image.is_none()),
                }
            }
        }
    };
    check(&tenant).await;
    tenant.delete(&table(), &text).await.unwrap();
    check(&tenant).await;
    assert_consistent(&tenant).await;
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    check(&tenant).await;
    verify_chain(&world, &tenant, 0).await;
}

#[tokio::test]
async fn a_record_over_the_part_limit_is_stored_in_parts() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(tenant.insert(&table(), body("x", 1_000_000)).await.unwrap());
    }
    tenant
        .transact(|tx| {
            let ids = ids.clone();
            Box::pin(async move {
                for id in ids {
                    tx.delete(&table(), id).await?;
                }
                Ok(())
            })
        })
        .await
        .unwrap();
    let records = stored(&world);
    let (_, text, parts) = records.last().unwrap();
    assert!(
        text.len() > 10_000_000 && *parts == 3,
        "{} bytes, {parts} parts",
        text.len()
    );
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let last = all_records(&tenant, 10, 1).await.remove(0);
    assert_eq!(last.writes.len(), 10);
    for write in &last.writes {
        assert!(shows(write.previous.as_deref(), "x", 1_000_000));
    }
    tenant.insert(&table(), n(1.0)).await.unwrap();
    verify_chain(&world, &tenant, 0).await;
    assert_consistent(&tenant).await;
    // Every part goes when the record goes.
    assert_eq!(tenant.prune_log().await.unwrap(), 12);
    assert!(stored(&world).is_empty());
}

fn retaining(age: Duration, bytes: u64) -> Settings {
    let mut options = EngineOptions::default();
    options.log_retention = age;
    options.log_retention_bytes = bytes;
    Settings {
        options,
        ..Settings::default()
    }
}

/// Gives background work a reason to look.
async fn nudge(tenant: &Tenant) {
    tenant
        .put_schema(schema("other", &["a"], &[]))
        .await
        .unwrap();
}

async fn floor(tenant: &Tenant) -> u64 {
    tenant.metrics().mutation_journal.cursor_floor
}

#[tokio::test]
async fn records_past_their_age_are_dropped() {
    let world = World::with(retaining(Duration::ZERO, u64::MAX)).await;
    let tenant = world.create("t").await;
    for i in 0..20 {
        tenant.insert(&table(), n(f64::from(i))).await.unwrap();
    }
    nudge(&tenant).await;
    until("the log is pruned", || async { floor(&tenant).await >= 20 }).await;
    let gone = tenant.journal(3, 10).await.map(drop);
    let Err(StoreError::OutOfRetention {
        requested: 3,
        floor,
        head,
    }) = gone
    else {
        panic!("{gone:?}");
    };
    assert!(floor >= 20 && head >= floor);
    assert!(tenant.journal(floor, 10).await.is_ok());
    let start = tenant.journal_start(10).await.unwrap();
    assert!(start.cursor_floor >= floor && start.next_cursor >= floor);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn records_beyond_the_byte_limit_are_dropped_without_being_asked() {
    const KEPT: u64 = 100_000;
    let mut world = World::with(retaining(Duration::from_secs(3_600), KEPT)).await;
    let tenant = world.create("t").await;
    // A look is taken every 256 batches.
    for i in 0..300 {
        let mut row = body("y", 1_000);
        row.insert("i".to_owned(), int(i));
        tenant.insert(&table(), row).await.unwrap();
    }
    until("the log is pruned", || async { floor(&tenant).await > 0 }).await;
    nudge(&tenant).await;
    until("the log is within its limit", || async {
        tenant.metrics().mutation_journal.retained_bytes <= KEPT
    })
    .await;
    let dropped = floor(&tenant).await;
    assert!(dropped < 300, "the newest stay");
    let kept = all_records(&tenant, dropped, 1_000).await;
    let bytes: usize = stored(&world).iter().map(|(_, text, _)| text.len()).sum();
    assert!(bytes as u64 <= KEPT && bytes > 50_000, "{bytes} bytes");
    let newest: CommitId = kept.last().unwrap().commit_id.parse().unwrap();
    assert!(tenant.commit_status(newest).await.unwrap().is_some());
    verify_chain(&world, &tenant, dropped).await;
    assert_consistent(&tenant).await;
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert_eq!(floor(&tenant).await, dropped);
    tenant.insert(&table(), n(1.0)).await.unwrap();
    verify_chain(&world, &tenant, dropped).await;
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn pruning_drops_all_but_what_is_pinned() {
    let mut world = World::new().await;
    let tenant = world.create("t").await;
    for i in 0..30 {
        tenant.insert(&table(), n(f64::from(i))).await.unwrap();
    }
    let old = all_records(&tenant, 4, 1).await.remove(0);
    let late = tenant.pin_log(20);
    let early = tenant.pin_log(10);
    assert_eq!(tenant.prune_log().await.unwrap(), 10);
    assert_eq!(floor(&tenant).await, 10);
    assert_eq!(all_records(&tenant, 10, 100).await.len(), 20);
    let gone = tenant.journal(9, 1).await.map(drop);
    assert!(
        matches!(gone, Err(StoreError::OutOfRetention { floor: 10, .. })),
        "{gone:?}"
    );
    let commit: CommitId = old.commit_id.parse().unwrap();
    assert_eq!(tenant.commit_status(commit).await.unwrap(), None, "pruned");
    drop(early);
    assert_eq!(tenant.prune_log().await.unwrap(), 10);
    drop(late);
    assert_eq!(tenant.prune_log().await.unwrap(), 10);
    assert_eq!(tenant.prune_log().await.unwrap(), 0);
    assert!(stored(&world).is_empty());
    assert_consistent(&tenant).await;
    drop(tenant);
    // The chain and time go on from the recorded anchor.
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert_consistent(&tenant).await;
    tenant.insert(&table(), n(1.0)).await.unwrap();
    let next = all_records(&tenant, 30, 10).await;
    assert_eq!((next.len(), next[0].sequence), (1, 31));
    assert!(next[0].timestamp > old.timestamp);
    verify_chain(&world, &tenant, 30).await;
    assert_consistent(&tenant).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_beside_writers_keeps_the_chain() {
    let world = World::with(retaining(Duration::ZERO, 10_000)).await;
    let tenant = world.create("t").await;
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let tenant = tenant.clone();
            tokio::spawn(async move {
                for i in 0..60 {
                    tenant
                        .insert(&table(), n(f64::from(w * 100 + i)))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut dropped = 0;
    for _ in 0..15 {
        dropped += tenant.prune_log().await.unwrap();
        assert_consistent(&tenant).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    dropped += tenant.prune_log().await.unwrap();
    // Background work may have taken its share.
    assert!(dropped <= 240 && floor(&tenant).await == 240, "{dropped}");
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn bytes_and_text_survive_the_log() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let odd = object([
        ("s", text("\u{0}\"\\\u{7f}\u{2028}\u{1F600}")),
        ("b", Value::Bytes((0..=255).collect())),
        ("i", int(i64::MIN)),
        ("f", num(-0.0)),
    ]);
    let id = tenant.insert(&table(), odd.clone()).await.unwrap();
    tenant.delete(&table(), &id.to_string()).await.unwrap();
    for (record, current) in all_records(&tenant, 0, 2).await.iter().zip([true, false]) {
        let write = record.writes.iter().find(|w| w.table == TABLE).unwrap();
        let image = if current {
            &write.current
        } else {
            &write.previous
        };
        let fields: Object = serde_json::from_str(image.as_ref().unwrap().get()).unwrap();
        for (field, value) in &odd {
            assert_eq!(fields.get(field), Some(value));
        }
    }
    verify_chain(&world, &tenant, 0).await;
}
