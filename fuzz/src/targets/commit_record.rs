//! Commit records (`nimbus-storage`, `engine/record.rs`): what was written is read back, and bytes
//! from a damaged disk are refused as damage, never by a panic.

use arbitrary::{Result, Unstructured};
use nimbus_core::value::write_object_json;
use nimbus_storage::fuzzing::{
    RecordImage, RecordParts, RecordWrite, decode_record, render_record,
};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{CommitId, StoreError};

use crate::make;

/// Largest value after a write that a record repeats, bytes (ARCHITECTURE.md).
const INLINE: usize = 64 * 1024;

/// Members of a record and of its images.
pub const WORDS: &[&str] = &[
    "\"version\":1,",
    "\"writes\":[",
    "\"space\":\"docs\"",
    "\"before\":null",
    "{\"$ref\":\"",
    "{\"$bytes\":\"",
    "\"size\":",
    "18446744073709551616",
    "\\u0030",
    "null",
    "{}",
];

/// Checks the bytes as a stored record, and as the recipe of one.
pub fn check(data: &[u8]) {
    match decode_record(data) {
        Ok(_) | Err(StoreError::Corrupt { .. }) => {}
        Err(other) => panic!("not told as damage: {other:?}"),
    }
    let _ = round_trip(&mut Unstructured::new(data));
}

fn round_trip(u: &mut Unstructured<'_>) -> Result<()> {
    let parts = RecordParts {
        sequence: u.arbitrary()?,
        timestamp: u.arbitrary()?,
        commit: CommitId(u.arbitrary()?),
        execution: u.arbitrary()?,
        previous: u.arbitrary()?,
        offset: u.arbitrary()?,
        writes: make::many(u, write)?,
    };
    let text = render_record(&parts);
    assert!(std::str::from_utf8(&text).is_ok(), "a record is text");
    let read = decode_record(&text)
        .unwrap_or_else(|e| panic!("{:?}: {}", e.inside(), String::from_utf8_lossy(&text)));
    assert_eq!(
        (read.sequence, read.timestamp, read.commit, read.offset),
        (parts.sequence, parts.timestamp, parts.commit, parts.offset)
    );
    assert_eq!(read.execution, parts.execution);
    assert_eq!(read.previous, parts.previous);
    let logged = parts.writes.iter().filter(|write| write.is_logged());
    let expected: Vec<_> = logged
        .map(|w| {
            let (before, after) = (w.before.as_deref(), w.after.as_deref());
            (
                w.space,
                w.key.clone(),
                image(before, usize::MAX),
                image(after, INLINE),
            )
        })
        .collect();
    let lengths = |writes: &[(Keyspace, Vec<u8>, RecordImage, RecordImage)]| {
        let reference = |image: &RecordImage| match image {
            // The hash is compared by the tests of the record itself.
            RecordImage::Elsewhere(_, size) => RecordImage::Elsewhere([0; 32], *size),
            other => other.clone(),
        };
        let one = |(space, key, before, after): &(Keyspace, Vec<u8>, RecordImage, RecordImage)| {
            (*space, key.clone(), reference(before), reference(after))
        };
        writes.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&read.writes), expected);
    Ok(())
}

fn image(value: Option<&[u8]>, limit: usize) -> RecordImage {
    match value {
        None => RecordImage::Absent,
        Some(value) if value.len() > limit => {
            RecordImage::Elsewhere([0; 32], u64::try_from(value.len()).unwrap_or(u64::MAX))
        }
        Some(value) => RecordImage::Inline(value.to_vec()),
    }
}

fn write(u: &mut Unstructured<'_>) -> Result<RecordWrite> {
    let space = *u.choose(&Keyspace::ALL)?;
    Ok(RecordWrite {
        space,
        key: make::bytes(u)?,
        before: body(u, space)?,
        after: body(u, space)?,
    })
}

/// A value as the engine stores it: rows that may stand in a record as they are begin with `{`
/// only if they are JSON.
fn body(u: &mut Unstructured<'_>, space: Keyspace) -> Result<Option<Vec<u8>>> {
    Ok(match u.int_in_range(0..=39)? {
        0..=3 => None,
        4 => {
            // Around the length from which a value is not repeated.
            let fill = INLINE - 16 + u.int_in_range(0..=16)?;
            Some(format!("{{\"s\":\"{}\"}}", "x".repeat(fill)).into_bytes())
        }
        5 => Some(b"{\"$ref\":\"not one\"}".to_vec()),
        6..=13 => {
            let mut bytes = make::bytes(u)?;
            let text = matches!(space, Keyspace::Docs | Keyspace::Meta | Keyspace::Jobs);
            if text && bytes.first() == Some(&b'{') {
                bytes[0] = 0xff;
            }
            Some(bytes)
        }
        _ => {
            let mut text = String::new();
            write_object_json(&make::object(u)?, &mut text);
            Some(text.into_bytes())
        }
    })
}
