//! The consistency check: nothing on good data, and each planted damage by name. Damage is done
//! behind the engine's back, through a second handle on the tenant's file.

use nimbus_storage::core::{DocumentId, Object, TableName};
use nimbus_storage::provider::{HEAD_KEY, Head, Keyspace};
use nimbus_storage::{StoreError, Tenant};
use rusqlite::Connection;

use super::support::*;

const TABLE: &str = "d";

fn table() -> TableName {
    name(TABLE)
}

fn row(k: usize) -> Object {
    object([("k", num(k as f64)), ("s", text(&format!("text {k}")))])
}

/// Twenty documents with two indexes, one of them over long strings; some history.
async fn prepared() -> (World, Tenant, Vec<DocumentId>) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_k", &["k"]), ("by_s", &["s"])];
    let declared = schema(TABLE, &["k", "s"], indexes);
    tenant.put_schema(declared).await.unwrap();
    let mut ids = Vec::new();
    for k in 0..20 {
        let mut row = row(k);
        if k == 19 {
            row.insert("s".into(), text(&"long".repeat(1_000)));
        }
        ids.push(tenant.insert(&table(), row).await.unwrap());
    }
    tenant
        .patch(&table(), &ids[3].to_string(), row(33))
        .await
        .unwrap();
    tenant.delete(&table(), &ids[4].to_string()).await.unwrap();
    ids.remove(4);
    (world, tenant, ids)
}

fn put(raw: &Connection, keyspace: Keyspace, key: &[u8], value: &[u8]) {
    let sql = format!(
        "INSERT OR REPLACE INTO \"{}\" VALUES (?1, ?2)",
        keyspace.name()
    );
    assert_eq!(raw.execute(&sql, (key, value)).unwrap(), 1);
}

fn delete(raw: &Connection, keyspace: Keyspace, key: &[u8]) {
    let sql = format!("DELETE FROM \"{}\" WHERE key = ?1", keyspace.name());
    assert_eq!(
        raw.execute(&sql, (key,)).unwrap(),
        1,
        "nothing there to delete"
    );
}

fn value(raw: &Connection, keyspace: Keyspace, key: &[u8]) -> Vec<u8> {
    let rows = raw_rows(raw, keyspace);
    rows.into_iter().find(|(k, _)| k == key).unwrap().1
}

/// Replaces text within a stored value.
fn edit(raw: &Connection, keyspace: Keyspace, key: &[u8], from: &str, to: &str) {
    let old = String::from_utf8(value(raw, keyspace, key)).unwrap();
    assert!(old.contains(from), "{old}");
    put(raw, keyspace, key, old.replace(from, to).as_bytes());
}

fn nth_key(raw: &Connection, keyspace: Keyspace, n: usize) -> Vec<u8> {
    raw_rows(raw, keyspace)[n].0.clone()
}

fn log_key(sequence: u64) -> Vec<u8> {
    [&sequence.to_be_bytes()[..], &[0, 0]].concat()
}

fn set_head(raw: &Connection, change: impl Fn(&mut Head)) {
    let stored = value(raw, Keyspace::Meta, HEAD_KEY);
    let mut head = Head::decode(&stored).unwrap();
    change(&mut head);
    put(raw, Keyspace::Meta, HEAD_KEY, &head.encode());
}

type Plant = fn(&Connection, &[DocumentId]);

/// Damage, and a rule that the report must name.
const DAMAGE: [(&str, &str, Plant); 27] = [
    (
        "a document deleted",
        "index_entry_has_document",
        |raw, ids| {
            delete(raw, Keyspace::Docs, &ids[0].key());
        },
    ),
    (
        "a document deleted, seen by the log",
        "log_agrees_with_data",
        |raw, ids| {
            delete(raw, Keyspace::Docs, &ids[0].key());
        },
    ),
    ("a document changed", "log_agrees_with_data", |raw, ids| {
        edit(raw, Keyspace::Docs, &ids[5].key(), "text 6", "text 7");
    }),
    (
        "a document changed, seen by an index",
        "document_has_index_entry",
        |raw, ids| {
            edit(raw, Keyspace::Docs, &ids[5].key(), "text 6", "text 7");
        },
    ),
    (
        "a document that is not canonical",
        "document_is_canonical",
        |raw, ids| {
            edit(raw, Keyspace::Docs, &ids[5].key(), "\"k\":6", "\"k\": 6");
        },
    ),
    (
        "a document of another id",
        "document_is_canonical",
        |raw, ids| {
            edit(
                raw,
                Keyspace::Docs,
                &ids[5].key(),
                &ids[5].to_string(),
                &ids[6].to_string(),
            );
        },
    ),
    (
        "a document that is no JSON",
        "document_decodes",
        |raw, ids| {
            put(raw, Keyspace::Docs, &ids[5].key(), b"{");
        },
    ),
    (
        "a document of no table",
        "document_has_table",
        |raw, ids| {
            let mut key = ids[5].key();
            key[..4].copy_from_slice(&20_000u32.to_be_bytes());
            put(raw, Keyspace::Docs, &key, b"{}");
        },
    ),
    (
        "a document under no id",
        "document_key_is_an_id",
        |raw, _| {
            put(raw, Keyspace::Docs, &[0xff; 3], b"{}");
        },
    ),
    (
        "an extra document",
        "document_has_index_entry",
        |raw, ids| {
            let mut key = ids[5].key();
            key[19] ^= 1;
            let extra = DocumentId::from_key(&key).unwrap();
            let body = String::from_utf8(value(raw, Keyspace::Docs, &ids[5].key())).unwrap();
            let body = body.replace(&ids[5].to_string(), &extra.to_string());
            put(raw, Keyspace::Docs, &key, body.as_bytes());
        },
    ),
    (
        "an index entry deleted",
        "document_has_index_entry",
        |raw, _| {
            let key = nth_key(raw, Keyspace::Index, 2);
            delete(raw, Keyspace::Index, &key);
        },
    ),
    (
        "a long index entry deleted",
        "document_has_index_entry",
        |raw, _| {
            let rows = raw_rows(raw, Keyspace::Index);
            let long = rows.iter().find(|(_, v)| !v.is_empty()).unwrap();
            delete(raw, Keyspace::Index, &long.0);
        },
    ),
    (
        "a long index entry that names another",
        "index_entry_has_document",
        |raw, ids| {
            let rows = raw_rows(raw, Keyspace::Index);
            let long = rows.iter().find(|(_, v)| !v.is_empty()).unwrap();
            put(raw, Keyspace::Index, &long.0, ids[1].internal.as_bytes());
        },
    ),
    (
        "an index entry for no document",
        "index_entry_has_document",
        |raw, _| {
            let mut key = nth_key(raw, Keyspace::Index, 2);
            *key.last_mut().unwrap() ^= 1;
            put(raw, Keyspace::Index, &key, b"");
        },
    ),
    (
        "an index entry of another value",
        "index_entry_has_document",
        |raw, _| {
            let mut key = nth_key(raw, Keyspace::Index, 2);
            key[7] ^= 1;
            put(raw, Keyspace::Index, &key, b"");
        },
    ),
    (
        "an index entry of no index",
        "index_entry_has_index",
        |raw, _| {
            let mut key = nth_key(raw, Keyspace::Index, 2);
            key[..4].copy_from_slice(&99u32.to_be_bytes());
            put(raw, Keyspace::Index, &key, b"");
        },
    ),
    (
        "an index entry too short for an id",
        "index_entry_has_document",
        |raw, _| {
            let key = nth_key(raw, Keyspace::Index, 2);
            put(raw, Keyspace::Index, &key[..9], b"");
        },
    ),
    (
        "an index entry with an odd value",
        "index_entry_has_document",
        |raw, _| {
            let key = nth_key(raw, Keyspace::Index, 2);
            put(raw, Keyspace::Index, &key, b"odd");
        },
    ),
    ("a log record changed", "log_is_chained", |raw, _| {
        edit(
            raw,
            Keyspace::Log,
            &log_key(9),
            "\"timestamp\":1",
            "\"timestamp\":2",
        );
    }),
    ("a log record deleted", "log_is_chained", |raw, _| {
        delete(raw, Keyspace::Log, &log_key(9));
    }),
    (
        "the newest log record deleted",
        "head_is_newest_record",
        |raw, _| {
            let last = raw_rows(raw, Keyspace::Log).pop().unwrap().0;
            delete(raw, Keyspace::Log, &last);
        },
    ),
    (
        "the oldest log record deleted",
        "log_is_chained",
        |raw, _| {
            delete(raw, Keyspace::Log, &log_key(1));
        },
    ),
    (
        "a log record that is no JSON",
        "log_record_decodes",
        |raw, _| {
            put(raw, Keyspace::Log, &log_key(9), b"{");
        },
    ),
    (
        "a part of a log record that is none",
        "log_record_decodes",
        |raw, _| {
            let key = [&9u64.to_be_bytes()[..], &[0, 5]].concat();
            put(raw, Keyspace::Log, &key, b"{}");
        },
    ),
    (
        "a head ahead of the log",
        "head_is_newest_record",
        |raw, _| {
            set_head(raw, |head| head.sequence += 1);
        },
    ),
    (
        "a head with another hash",
        "head_is_newest_record",
        |raw, _| {
            set_head(raw, |head| head.hash[0] ^= 1);
        },
    ),
    (
        "a table's definition changed",
        "log_agrees_with_data",
        |raw, _| {
            edit(raw, Keyspace::Meta, b"table/d", "by_k", "by_x");
        },
    ),
];

#[tokio::test]
async fn every_planted_damage_is_found() {
    for (about, rule, plant) in DAMAGE {
        let (world, tenant, ids) = prepared().await;
        assert_consistent(&tenant).await;
        plant(&world.raw("t"), &ids);
        let report = soon(about, tenant.consistency()).await;
        let report = report.unwrap_or_else(|e| panic!("{about}: {e} {:?}", e.inside()));
        assert!(!report.ok, "{about} was not found");
        let rules: Vec<_> = report.mismatches.iter().map(|m| m.invariant).collect();
        assert!(rules.contains(&rule), "{about}: found only {rules:?}");
        let index_damage = matches!(
            rule,
            "document_has_index_entry" | "index_entry_has_document"
        );
        if index_damage && !about.contains("odd") && !about.contains("names another") {
            let digests = (&report.authoritative.digest, &report.shadow.digest);
            assert_ne!(digests.0, digests.1, "{about}");
        }
    }
}

/// What opening a tenant relies on is checked on opening already.
#[tokio::test]
async fn a_damaged_end_of_the_log_is_refused_on_opening() {
    let plants: [(&str, Plant); 4] = [
        ("a head ahead", |raw, _| {
            set_head(raw, |head| head.sequence += 1)
        }),
        ("a head behind", |raw, _| {
            set_head(raw, |head| head.sequence -= 1)
        }),
        ("another hash", |raw, _| {
            set_head(raw, |head| head.hash[0] ^= 1)
        }),
        ("no newest record", |raw, _| {
            let last = raw_rows(raw, Keyspace::Log).pop().unwrap().0;
            delete(raw, Keyspace::Log, &last);
        }),
    ];
    for (about, plant) in plants {
        let (mut world, tenant, ids) = prepared().await;
        drop(tenant);
        world.engine().close().await.unwrap();
        plant(&world.raw("t"), &ids);
        world.reopen().await;
        let opened = world.engine().tenant(&name("t")).await.map(drop);
        assert!(
            matches!(opened, Err(StoreError::Corrupt { .. })),
            "{about}: {opened:?}"
        );
    }
}

/// A file that was exchanged for an older one under a running engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_went_back_is_an_error_and_not_a_hang() {
    for back_to_the_start in [true, false] {
        let (world, tenant, ids) = prepared().await;
        set_head(&world.raw("t"), |head| {
            head.sequence = if back_to_the_start {
                0
            } else {
                head.sequence - 2
            };
        });
        let asking = {
            let (tenant, id) = (tenant.clone(), ids[0].to_string());
            tokio::spawn(async move {
                let read = tenant.get(&table(), &id).await;
                assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
                let checked = tenant.consistency().await.map(|report| report.ok);
                assert!(
                    matches!(checked, Err(StoreError::Corrupt { .. })),
                    "{checked:?}"
                );
                let written = tenant.insert(&table(), row(1)).await;
                assert!(
                    matches!(written, Err(StoreError::Corrupt { .. })),
                    "{written:?}"
                );
            })
        };
        soon("the answers", asking).await.unwrap();
    }
}

#[tokio::test]
async fn the_report_counts_what_is_there() {
    let (_world, tenant, ids) = prepared().await;
    let report = tenant.consistency().await.unwrap();
    assert!(report.ok && report.mismatches.is_empty());
    let head = tenant.metrics().mutation_journal.durable_head;
    for scope in [&report.authoritative, &report.shadow] {
        assert_eq!(scope.document_count, ids.len() as u64);
        assert_eq!(scope.index_entry_count, 2 * ids.len() as u64);
        assert_eq!((scope.applied_sequence, scope.durable_head), (head, head));
        assert_eq!(scope.schema_table_count, 1);
    }
    assert_eq!(report.bootstrap.bootstrap_cut_sequence, head);
    let bootstrap = tenant.journal_bootstrap().await.unwrap();
    assert_eq!(bootstrap.snapshot.documents[TABLE].len(), ids.len());
    assert_eq!(bootstrap.resume_after_sequence, head);
}
