//! A backup (`nimbus-storage`, `backup/format.rs`): reading any bytes ends with an answer, a changed
//! backup is refused, and rows that pass the digests are still checked.

use nimbus_storage::backup::fuzzing::{assemble, read};

/// Pieces of preambles, frames and rows.
pub const WORDS: &[&str] = &[
    "NIMBUSBK\0\u{1}\0\0\0\0\0\0",
    "\u{1}\0\0\0\u{2}{}",
    "\u{2}\0\0\0",
    "\u{3}\0\0\0\u{5}",
    "\u{6}\0\0\0\u{28}",
    "{\"createdAtMs\":",
    ",\"tenants\":[\"t\"]}",
    "table/t",
    "counters",
    "head",
];

/// Bytes of an input that say what to change: where, and how much is taken away.
const RECIPE: usize = 4;
/// Bytes of an input that say what a row is: keyspace, length of the key and of the value.
const ROW: usize = 3;

/// Checks the bytes as a backup, as a change of a good one, and as rows.
pub fn check(data: &[u8]) {
    if let Ok(found) = read(data) {
        assert_eq!(data[..8], *b"NIMBUSBK", "{found:?}");
    }
    as_change(data);
    as_rows(data);
}

fn as_change(data: &[u8]) {
    let Some((recipe, fresh)) = data.split_first_chunk::<RECIPE>() else {
        return;
    };
    let rows = [
        (0, b"cursor_key".to_vec(), vec![7; 32]),
        (4, vec![1, 2], Vec::new()),
    ];
    let good = assemble(&rows).expect("short rows");
    assert_eq!(read(&good).expect("a good backup").tenants[0].rows, 2);
    let [a, b, c, d] = *recipe;
    let from = usize::from(u16::from_be_bytes([a, b])) % (good.len() + 1);
    let taken = usize::from(u16::from_be_bytes([c, d])) % (good.len() - from + 1);
    let mut changed = good.clone();
    changed.splice(from..from + taken, fresh.iter().copied());
    assert_eq!(read(&changed).is_ok(), changed == good, "{from} {taken}");
}

/// Rows with right digests: whatever they are, they are read or refused; and read only in order.
fn as_rows(mut data: &[u8]) {
    let mut rows = Vec::new();
    while let Some((&[space, key, value], rest)) = data.split_first_chunk::<ROW>() {
        let (key, rest) = rest.split_at(rest.len().min(usize::from(key)));
        let (value, rest) = rest.split_at(rest.len().min(usize::from(value)));
        rows.push((space, key.to_vec(), value.to_vec()));
        data = rest;
    }
    let Ok(found) = read(&assemble(&rows).expect("short rows")) else {
        return;
    };
    assert_eq!(found.tenants[0].rows, rows.len() as u64);
    // Index entries and log records are in no backup of a tenant without commits.
    let spaces = rows.iter().map(|(space, ..)| space % 7);
    assert!(spaces.clone().all(|space| space != 2 && space != 3));
    assert!(found.tenants[0].documents == spaces.filter(|space| *space == 1).count() as u64);
}
