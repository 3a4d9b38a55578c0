//! A door for the fuzz targets to formats that are private to the engine: page cursors, query
//! digests and commit records. Compiled with the feature `fuzzing` only, which the server never
//! enables.
//!
//! It must not hold checks: those are in `fuzz/`.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use nimbus_core::InternalId;

use super::cursor::{CursorKey, Position};
use super::query::Query;
use super::record::{self, Image, Record, RecordFront, Write};
use crate::error::{CommitId, StoreResult};
use crate::provider::Keyspace;

/// What a cursor carries.
#[derive(Clone, Debug, PartialEq)]
pub struct CursorPosition {
    /// Key bytes of the order field's value, if the order has a field.
    pub order: Option<Vec<u8>>,
    /// `_creationTime` in ms.
    pub creation: f64,
    /// The document.
    pub id: InternalId,
}

/// Makes a cursor under a tenant's key, bound to a query's digest.
pub fn seal_cursor(key: [u8; 32], digest: &[u8; 32], position: &CursorPosition) -> String {
    let position = Position {
        order: position.order.clone(),
        creation: position.creation,
        id: position.id,
    };
    CursorKey(key).seal(digest, &position)
}

/// Opens a cursor.
///
/// # Errors
/// `Cursor`, whatever is wrong with it.
pub fn open_cursor(key: [u8; 32], digest: &[u8; 32], cursor: &str) -> StoreResult<CursorPosition> {
    let Position {
        order,
        creation,
        id,
    } = CursorKey(key).open(digest, cursor)?;
    Ok(CursorPosition {
        order,
        creation,
        id,
    })
}

/// A cursor with a valid signature over any bytes, to reach what lies behind the signature.
pub fn sign_cursor(key: [u8; 32], body: &[u8]) -> String {
    let tag = CursorKey(key).tag(body);
    BASE64URL_NOPAD.encode(&[body, &tag].concat())
}

/// What a cursor and a live query are bound to.
pub fn query_digest(query: &Query) -> [u8; 32] {
    query.digest()
}

/// A commit record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordParts<W> {
    /// Number of the commit.
    pub sequence: u64,
    /// Nanoseconds since 1970-01-01.
    pub timestamp: u64,
    /// Random name of the commit.
    pub commit: CommitId,
    /// Name of the execution behind it, if any.
    pub execution: Option<String>,
    /// Hash of the record before.
    pub previous: [u8; 32],
    /// Log bytes before this record.
    pub offset: u64,
    /// The writes.
    pub writes: Vec<W>,
}

/// A write that goes into a record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordWrite {
    /// The keyspace.
    pub space: Keyspace,
    /// The key.
    pub key: Vec<u8>,
    /// The value before; `None` where there was none.
    pub before: Option<Vec<u8>>,
    /// The value after; `None` where it was removed.
    pub after: Option<Vec<u8>>,
}

impl RecordWrite {
    /// Whether a record carries it.
    pub fn is_logged(&self) -> bool {
        record::logged(self.space) && (self.before.is_some() || self.after.is_some())
    }
}

/// A value in a decoded record.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordImage {
    /// No value.
    Absent,
    /// The value.
    Inline(Vec<u8>),
    /// SHA-256 and length of a value that lies in its own keyspace.
    Elsewhere([u8; 32], u64),
}

/// A write as a record gives it back: keyspace, key, value before and value after.
pub type DecodedWrite = (Keyspace, Vec<u8>, RecordImage, RecordImage);

/// The stored text of a record.
pub fn render_record(parts: &RecordParts<RecordWrite>) -> Vec<u8> {
    let image = |value: &Option<Vec<u8>>| value.as_ref().map(|v| Bytes::copy_from_slice(v));
    let writes: Vec<Write> = parts
        .writes
        .iter()
        .map(|write| Write {
            before: image(&write.before),
            after: image(&write.after),
        })
        .collect();
    let rows = parts.writes.iter().zip(&writes);
    let text = record::render_writes(rows.map(|(at, w)| (at.space, at.key.as_slice(), w)));
    let front = RecordFront {
        sequence: parts.sequence,
        timestamp: parts.timestamp,
        commit: parts.commit,
        execution: parts.execution.as_deref(),
        previous: parts.previous,
        offset: parts.offset,
    };
    record::render(&front, &text).0.into_bytes()
}

/// Reads the stored text of a record.
///
/// # Errors
/// `Corrupt`, whatever is wrong with it.
pub fn decode_record(text: &[u8]) -> StoreResult<RecordParts<DecodedWrite>> {
    let record = Record::decode(text)?;
    let writes = record.writes.into_iter();
    Ok(RecordParts {
        sequence: record.sequence,
        timestamp: record.timestamp,
        commit: record.commit,
        execution: record.execution,
        previous: record.previous,
        offset: record.offset,
        writes: writes
            .map(|w| (w.space, w.key, image(w.before), image(w.after)))
            .collect(),
    })
}

fn image(image: Image) -> RecordImage {
    match image {
        Image::Absent => RecordImage::Absent,
        Image::Inline(bytes) => RecordImage::Inline(bytes.to_vec()),
        Image::Elsewhere { hash, size } => RecordImage::Elsewhere(hash, size),
    }
}
