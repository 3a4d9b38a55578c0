//! Key bytes (`nimbus_core::key`): the order of the bytes is the order of the values, for single
//! values and for several in a row, and the bytes give the values back.

use std::cmp::Ordering;

use arbitrary::{Result, Unstructured};
use nimbus_core::{Value, key};

use crate::make;

/// Tags and ends.
pub const WORDS: &[&str] = &[
    "\u{1}",
    "\u{3}",
    "\0",
    "\u{10}a\0",
    "\u{12}",
    "\u{15}",
    "\r",
];

/// Checks the bytes as a key, and as the recipe of two rows of values.
pub fn check(data: &[u8]) {
    decode(data);
    // Nothing to compare when the recipe ends too early.
    let _ = compare(&mut Unstructured::new(data));
}

/// Whatever is taken for a key is exactly what its value is written as.
fn decode(data: &[u8]) {
    if let Ok((value, rest)) = key::decode(data) {
        let mut again = Vec::new();
        key::encode(value.as_ref(), &mut again);
        assert_eq!(again, data[..data.len() - rest.len()], "{value:?}");
    }
}

type Row = Vec<Option<Value>>;

fn compare(u: &mut Unstructured<'_>) -> Result<()> {
    let width = u.int_in_range(1..=3)?;
    let mut one = row(u, width)?;
    let mut other = row(u, width)?;
    // Rows that begin alike are where orders go wrong.
    let common = u.int_in_range(0..=width)?;
    other[..common].clone_from_slice(&one[..common]);
    if let (true, Some(Some(Value::String(text)))) = (u.arbitrary()?, one.last_mut()) {
        text.push('\0');
    }
    let (left, right) = (encoded(&one), encoded(&other));
    assert_eq!(left.cmp(&right), one.cmp(&other), "{one:?} and {other:?}");
    assert_eq!(decoded(&left), one);

    // A range over the values of the first field holds the rows with those values and no other.
    let (start, first) = (encoded(&one[..1]), &one[..1]);
    let end = key::equal_range_end(&start);
    let within = right >= start && right < end;
    assert_eq!(within, &other[..1] == first, "{one:?} and {other:?}");

    cut(&left, &right);
    let long = |bytes: &[u8]| [&[b'x'; key::MAX_STORED_KEY], bytes].concat();
    cut(&long(&left), &long(&right));
    successor(&left, &right);
    Ok(())
}

fn row(u: &mut Unstructured<'_>, width: usize) -> Result<Row> {
    let one = |u: &mut Unstructured<'_>| {
        let present = !u.ratio(1, 8)?;
        present.then(|| make::value(u)).transpose()
    };
    (0..width).map(|_| one(u)).collect()
}

fn encoded(row: &[Option<Value>]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in row {
        key::encode(value.as_ref(), &mut out);
    }
    out
}

fn decoded(mut bytes: &[u8]) -> Row {
    let mut row = Row::new();
    while !bytes.is_empty() {
        let (value, rest) = key::decode(bytes).expect("a key that was written");
        row.push(value);
        bytes = rest;
    }
    row
}

/// Stored keys are bounded, and equal exactly where the whole ones are.
fn cut(left: &[u8], right: &[u8]) {
    let (short, other) = (key::cut(left), key::cut(right));
    assert!(short.len() <= key::MAX_STORED_KEY);
    assert_eq!(short == other, left == right);
    if left.len() <= key::MAX_STORED_KEY && right.len() <= key::MAX_STORED_KEY {
        assert_eq!(short.cmp(&other), left.cmp(right));
    }
}

/// Between a prefix and its successor lie the byte strings that start with it and no other.
fn successor(prefix: &[u8], other: &[u8]) {
    let below = match key::prefix_successor(prefix) {
        Some(end) => other.cmp(&end) == Ordering::Less,
        None => true,
    };
    assert_eq!(other >= prefix && below, other.starts_with(prefix));
}
