//! Cases about rows: order, bounds, limits, extreme keys and values.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::kit::{
    META_PREFIX, Random, Writes, all, check, check_eq, commit, contents, fresh, get, head, visible,
    writes,
};
use super::{CaseResult, Failure, Fixture};
use crate::provider::{Direction, Head, KeyRange, Keyspace, Row, Snapshot};

fn keys(rows: &[Row]) -> Vec<&[u8]> {
    rows.iter().map(|(key, _)| key.as_slice()).collect()
}

fn range(start: &[u8], end: Option<&[u8]>) -> KeyRange {
    KeyRange {
        start: start.to_vec(),
        end: end.map(<[u8]>::to_vec),
    }
}

pub(super) async fn scans_both_ways_with_bounds_and_limits(
    fixture: Arc<dyn Fixture>,
) -> CaseResult {
    use Direction::{Backward, Forward};
    let store = fresh(&fixture, "scans").await?;
    for keyspace in [
        Keyspace::Docs,
        Keyspace::Index,
        Keyspace::Log,
        Keyspace::Jobs,
    ] {
        let rows = [b"a", b"b", b"c", b"d"].map(|k| (keyspace, &k[..], Some(&k[..])));
        let at = head(&store).await?;
        commit(&store, at, writes(&rows)).await?;
        let mut snapshot = store.snapshot().await?;
        type Expected<'a> = &'a [&'a [u8]];
        let cases: [(KeyRange, Direction, usize, Expected<'_>); 15] = [
            (range(b"", None), Forward, 100, &[b"a", b"b", b"c", b"d"]),
            (range(b"", None), Backward, 100, &[b"d", b"c", b"b", b"a"]),
            (range(b"b", None), Forward, 100, &[b"b", b"c", b"d"]),
            (range(b"b", None), Backward, 100, &[b"d", b"c", b"b"]),
            (range(b"b", Some(b"d")), Forward, 100, &[b"b", b"c"]),
            (range(b"b", Some(b"d")), Backward, 100, &[b"c", b"b"]),
            (range(b"b", Some(b"d")), Forward, 1, &[b"b"]),
            (range(b"b", Some(b"d")), Backward, 1, &[b"c"]),
            (range(b"", Some(b"b")), Forward, 100, &[b"a"]),
            (range(b"aa", Some(b"cc")), Backward, 100, &[b"c", b"b"]),
            (range(b"a\0", Some(b"c\0")), Forward, 100, &[b"b", b"c"]),
            (range(b"", None), Forward, 2, &[b"a", b"b"]),
            (range(b"", None), Backward, 2, &[b"d", b"c"]),
            (range(b"", None), Forward, 0, &[]),
            (
                range(b"", None),
                Forward,
                usize::MAX,
                &[b"a", b"b", b"c", b"d"],
            ),
        ];
        for (range, direction, limit, expected) in cases {
            let rows = snapshot.scan(keyspace, &range, direction, limit).await?;
            check_eq!(
                keys(&rows),
                expected,
                "{} {range:?} {direction:?} {limit}",
                keyspace.name()
            );
            check!(
                rows.iter().all(|(k, v)| **k == **v),
                "values beside their keys: {rows:?}"
            );
        }
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn scan_of_nothing(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "nothing").await?;
    commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"k", Some(b"v"))]),
    )
    .await?;
    let mut snapshot = store.snapshot().await?;
    let empty = [
        (Keyspace::Index, KeyRange::all()),
        (Keyspace::Docs, range(b"k", Some(b"k"))),
        (Keyspace::Docs, range(b"z", Some(b"a"))),
        (Keyspace::Docs, range(b"", Some(b""))),
        (Keyspace::Docs, range(b"k\0", None)),
        (Keyspace::Docs, range(b"", Some(b"k"))),
    ];
    for (keyspace, range) in empty {
        for direction in [Direction::Forward, Direction::Backward] {
            let rows = snapshot.scan(keyspace, &range, direction, 10).await?;
            check!(rows.is_empty(), "{range:?} {direction:?}: {rows:?}");
        }
    }
    check_eq!(
        snapshot.get_many(Keyspace::Docs, &[]).await?.len(),
        0,
        "values of no keys"
    );
    drop(snapshot);
    store.close().await?;
    Ok(())
}

pub(super) async fn extreme_keys(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "keys").await?;
    let long = nimbus_core::key::MAX_STORED_KEY;
    let mut expected: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 0xff],
        b"'; DROP TABLE docs; --".to_vec(),
        b"KEY".to_vec(),
        b"key".to_vec(),
        b"key ".to_vec(),
        "k\u{e9}y".as_bytes().to_vec(),
        vec![0x7f; 10],
        vec![0x80],
        [vec![0xfe; long - 1], vec![0xfd]].concat(),
        vec![0xfe; long],
        vec![0xff],
        vec![0xff, 0xff],
        vec![0xff; long - 1],
        vec![0xff; long],
    ];
    expected.sort();
    for keyspace in Keyspace::ALL {
        if keyspace == Keyspace::Meta {
            continue;
        }
        let at = head(&store).await?;
        let row = |k: &Vec<u8>| {
            (
                (keyspace, k.clone()),
                Some(Bytes::from(k.len().to_string())),
            )
        };
        commit(&store, at, expected.iter().map(row).collect()).await?;
        let mut snapshot = store.snapshot().await?;
        let forward = all(
            &mut *snapshot,
            keyspace,
            &KeyRange::all(),
            Direction::Forward,
        )
        .await?;
        let found: Vec<_> = forward.iter().map(|(k, _)| k.clone()).collect();
        check_eq!(found, expected, "keys in {}", keyspace.name());
        for (key, value) in &forward {
            check_eq!(value[..], *key.len().to_string().as_bytes(), "a value");
        }
        let top = KeyRange::prefix(&[0xff]);
        check_eq!(top.end, None, "the end of the last prefix");
        let rows = all(&mut *snapshot, keyspace, &top, Direction::Backward).await?;
        check_eq!(rows.len(), 4, "keys that start with FF");
        let asked: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        let found = snapshot.get_many(keyspace, &asked).await?;
        check!(
            found.iter().all(Option::is_some),
            "a key is not found by itself"
        );
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn extreme_values(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "values").await?;
    let mut random = Random::new(5);
    let mut big = || -> Bytes {
        (0..5 << 17)
            .flat_map(|_| random.next().to_be_bytes())
            .collect()
    };
    let every_byte: Vec<u8> = (0..=255).collect();
    let values: BTreeMap<Vec<u8>, Bytes> = [
        (&b"t/big-1"[..], big()),
        (b"t/big-2", big()),
        (b"t/big-text", Bytes::from("\u{20ac}uro ".repeat(1 << 20))),
        (b"t/bytes", Bytes::from(every_byte)),
        (b"t/empty", Bytes::new()),
        (b"t/nul", Bytes::from_static(b"{\"a\":\"x\0y\"}\0")),
        (b"t/number", Bytes::from_static(b"00123")),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_vec(), v))
    .collect();
    for keyspace in Keyspace::ALL {
        let at = head(&store).await?;
        let row = |(k, v): (&Vec<u8>, &Bytes)| ((keyspace, k.clone()), Some(v.clone()));
        commit(&store, at, values.iter().map(row).collect()).await?;
        let mut snapshot = store.snapshot().await?;
        for direction in [Direction::Forward, Direction::Backward] {
            let rows = all(&mut *snapshot, keyspace, &visible(keyspace), direction).await?;
            check_eq!(
                rows.len(),
                values.len(),
                "rows in {} {direction:?}",
                keyspace.name()
            );
            for (key, value) in rows {
                let name = String::from_utf8_lossy(&key);
                check!(
                    values.get(&key) == Some(&value),
                    "{} {name}: another value",
                    keyspace.name()
                );
            }
        }
        for (key, value) in &values {
            let found = snapshot.get_many(keyspace, &[key]).await?;
            check!(
                found[0].as_ref() == Some(value),
                "{} {key:?}: another value",
                keyspace.name()
            );
        }
        drop(snapshot);
        let at = head(&store).await?;
        let gone = |k: &Vec<u8>| ((keyspace, k.clone()), None);
        commit(&store, at, values.keys().map(gone).collect()).await?;
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn get_many_keeps_order_and_reports_missing(
    fixture: Arc<dyn Fixture>,
) -> CaseResult {
    let store = fresh(&fixture, "many").await?;
    let rows: Writes = (0..1000_u32)
        .map(|n| {
            (
                (Keyspace::Docs, n.to_be_bytes().to_vec()),
                Some(n.to_string().into()),
            )
        })
        .collect();
    commit(&store, Head::EMPTY, rows).await?;
    let mut random = Random::new(6);
    let asked: Vec<u32> = (0..500)
        .map(|_| u32::try_from(random.below(1500)).unwrap_or(0))
        .collect();
    let encoded: Vec<[u8; 4]> = asked.iter().map(|n| n.to_be_bytes()).collect();
    let keys: Vec<&[u8]> = encoded.iter().map(|k| &k[..]).collect();
    let found = store
        .snapshot()
        .await?
        .get_many(Keyspace::Docs, &keys)
        .await?;
    check_eq!(found.len(), asked.len(), "answers");
    for (n, value) in asked.iter().zip(found) {
        let expected = (*n < 1000).then(|| n.to_string());
        check_eq!(
            value.as_deref(),
            expected.as_ref().map(|s| s.as_bytes()),
            "value of {n}"
        );
    }
    // The same key twice gets two answers.
    let twice = store
        .snapshot()
        .await?
        .get_many(Keyspace::Docs, &[keys[0], keys[0]])
        .await?;
    check_eq!(twice.len(), 2, "answers for one key asked twice");
    check_eq!(twice[0], twice[1], "answers for one key asked twice");
    store.close().await?;
    Ok(())
}

pub(super) async fn keyspaces_are_separate(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "spaces").await?;
    let rows = Keyspace::ALL.map(|k| ((k, b"t/same".to_vec()), Some(k.name().into())));
    let at = commit(&store, Head::EMPTY, rows.into()).await?;
    commit(&store, at, writes(&[(Keyspace::Docs, b"t/same", None)])).await?;
    for keyspace in Keyspace::ALL {
        let found = get(&store, keyspace, b"t/same").await?;
        let expected = (keyspace != Keyspace::Docs).then(|| keyspace.name().as_bytes());
        check_eq!(found.as_deref(), expected, "{}", keyspace.name());
    }
    store.close().await?;
    Ok(())
}

type Model = BTreeMap<(Keyspace, Vec<u8>), Bytes>;

/// Random commits, each followed by random scans that must equal those of a sorted map.
pub(super) async fn scans_agree_with_a_model(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "model").await?;
    let mut random = Random::new(7);
    let (mut model, mut at) = (Model::new(), Head::EMPTY);
    for round in 0..60 {
        let mut rows = Writes::new();
        for _ in 0..random.below(40) {
            let keyspace = Keyspace::ALL[random.below(Keyspace::ALL.len())];
            let value = (random.below(3) > 0).then(|| random.value());
            rows.insert((keyspace, random.key(keyspace)), value);
        }
        for (key, value) in &rows {
            match value {
                Some(value) => drop(model.insert(key.clone(), value.clone())),
                None => drop(model.remove(key)),
            }
        }
        at = commit(&store, at, rows).await?;
        let mut snapshot = store.snapshot().await?;
        check!(
            contents(&mut *snapshot).await? == model,
            "round {round}: the rows differ"
        );
        for _ in 0..20 {
            scan_like(&mut *snapshot, &model, &mut random).await?;
        }
    }
    store.close().await?;
    Ok(())
}

async fn scan_like(
    snapshot: &mut dyn Snapshot,
    model: &Model,
    random: &mut Random,
) -> Result<(), Failure> {
    let keyspace = Keyspace::ALL[random.below(Keyspace::ALL.len())];
    let (start, mut end) = (
        random.key(keyspace),
        (random.below(3) > 0).then(|| random.key(keyspace)),
    );
    if keyspace == Keyspace::Meta && end.is_none() {
        end = KeyRange::prefix(META_PREFIX).end;
    }
    let range = KeyRange { start, end };
    let limit = random.below(12);
    let inside = |(key, value): (&(Keyspace, Vec<u8>), &Bytes)| {
        (key.0 == keyspace && range.contains(&key.1)).then(|| (key.1.clone(), value.clone()))
    };
    let mut expected: Vec<Row> = model.iter().filter_map(inside).collect();
    let direction = [Direction::Forward, Direction::Backward][random.below(2)];
    if direction == Direction::Backward {
        expected.reverse();
    }
    expected.truncate(limit);
    let found = snapshot.scan(keyspace, &range, direction, limit).await?;
    check_eq!(
        found,
        expected,
        "{} {range:?} {direction:?} {limit}",
        keyspace.name()
    );
    Ok(())
}
