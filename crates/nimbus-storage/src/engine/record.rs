//! The commit record: what one commit wrote, chained to the record before it.
//!
//! Format version 1 is JSON text, so that an operator can read it in any SQL shell; document
//! bodies lie in it as they are. The record's hash is SHA-256 over the stored text, which
//! names the hash of the record before. A value over [`INLINE_LIMIT`] that is still current
//! is stored once, in its own keyspace: the record then carries its hash and size.

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::{CommitId, StoreError, StoreResult};
use crate::provider::Keyspace;

/// Format version of the records written.
pub(crate) const RECORD_VERSION: u32 = 1;
/// Largest after-image that a record repeats; a larger one lives in its keyspace only.
pub(crate) const INLINE_LIMIT: usize = 64 * 1024;
/// Largest part of a record under one key of the log keyspace.
pub(crate) const PART_LIMIT: usize = 4 * 1024 * 1024;

/// A write with both images, as the engine holds it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) before: Option<Bytes>,
    pub(crate) after: Option<Bytes>,
}

impl Write {
    /// A write of a key whose value before is not logged.
    pub(crate) fn to(after: Option<Bytes>) -> Write {
        Write {
            before: None,
            after,
        }
    }

    /// Whether anything is different after it: what one transaction inserts and deletes is not.
    fn is_change(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }
}

/// A stored image of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// The key had or has no value.
    Absent,
    /// The value itself.
    Inline(Bytes),
    /// The value is over [`INLINE_LIMIT`]; SHA-256 and bytes.
    Elsewhere { hash: [u8; 32], size: u64 },
}

/// A decoded write.
#[derive(Clone, Debug)]
pub(crate) struct LoggedWrite {
    pub(crate) space: Keyspace,
    pub(crate) key: Vec<u8>,
    pub(crate) before: Image,
    pub(crate) after: Image,
}

/// A decoded record.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) timestamp: u64,
    pub(crate) commit: CommitId,
    pub(crate) execution: Option<String>,
    pub(crate) previous: [u8; 32],
    /// Log bytes written before this record since the tenant was created.
    pub(crate) offset: u64,
    pub(crate) writes: Vec<LoggedWrite>,
    /// SHA-256 of the stored text.
    pub(crate) hash: [u8; 32],
    /// Length of the stored text.
    pub(crate) size: u64,
}

/// The variable front part of a record; the writes are rendered before the commit is numbered.
pub(crate) struct RecordFront<'a> {
    pub(crate) sequence: u64,
    pub(crate) timestamp: u64,
    pub(crate) commit: CommitId,
    pub(crate) execution: Option<&'a str>,
    pub(crate) previous: [u8; 32],
    pub(crate) offset: u64,
}

/// Renders the `writes` array. Index entries follow from documents and are left out, as is what
/// came and went within the transaction.
pub(crate) fn render_writes<'a>(
    writes: impl Iterator<Item = (Keyspace, &'a [u8], &'a Write)>,
) -> String {
    let mut out = String::from("[");
    for (space, key, write) in writes.filter(|(s, _, w)| logged(*s) && w.is_change()) {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str("{\"space\":\"");
        out.push_str(space.name());
        out.push_str("\",\"key\":\"");
        HEXLOWER.encode_append(key, &mut out);
        out.push_str("\",\"before\":");
        push_image(space, write.before.as_ref(), usize::MAX, &mut out);
        out.push_str(",\"after\":");
        push_image(space, write.after.as_ref(), INLINE_LIMIT, &mut out);
        out.push('}');
    }
    out.push(']');
    out
}

/// Whether commit records carry writes of this keyspace.
pub(crate) fn logged(space: Keyspace) -> bool {
    !matches!(space, Keyspace::Index | Keyspace::Log)
}

fn push_image(space: Keyspace, value: Option<&Bytes>, limit: usize, out: &mut String) {
    let Some(value) = value else {
        out.push_str("null");
        return;
    };
    if value.len() > limit {
        out.push_str("{\"$ref\":\"");
        HEXLOWER.encode_append(&Sha256::digest(value), out);
        out.push_str(&format!("\",\"size\":{}}}", value.len()));
        return;
    }
    // Documents, meta and job rows are JSON objects already; anything else is wrapped.
    let text = matches!(space, Keyspace::Docs | Keyspace::Meta | Keyspace::Jobs)
        .then(|| std::str::from_utf8(value).ok())
        .flatten()
        .filter(|t| t.starts_with('{') && !t.starts_with("{\"$"));
    match text {
        Some(text) => out.push_str(text),
        None => {
            out.push_str("{\"$bytes\":\"");
            BASE64.encode_append(value, out);
            out.push_str("\"}");
        }
    }
}

/// The stored text of a record and its hash.
pub(crate) fn render(front: &RecordFront<'_>, writes: &str) -> (String, [u8; 32]) {
    let mut out = String::with_capacity(writes.len() + 256);
    out.push_str(&format!(
        "{{\"version\":{RECORD_VERSION},\"sequence\":{},\"timestamp\":{},\"commit\":\"{}\",\"execution\":",
        front.sequence, front.timestamp, front.commit
    ));
    match front.execution {
        Some(id) => out.push_str(&serde_json::Value::from(id).to_string()),
        None => out.push_str("null"),
    }
    out.push_str(",\"previous\":\"");
    HEXLOWER.encode_append(&front.previous, &mut out);
    out.push_str(&format!("\",\"offset\":{},\"writes\":", front.offset));
    out.push_str(writes);
    out.push('}');
    let hash = Sha256::digest(out.as_bytes()).into();
    (out, hash)
}

/// The time in the first part of a stored record, which stands in its front.
pub(crate) fn timestamp_of(part: &[u8]) -> StoreResult<u64> {
    // Nothing that a user wrote comes before it.
    let front = String::from_utf8_lossy(&part[..part.len().min(200)]);
    let digits = front.split_once("\"timestamp\":").map(|(_, rest)| {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        &rest[..end.unwrap_or(0)]
    });
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| StoreError::corrupt("commit record: no time in its front"))
}

/// The rows under which the text of a record is stored.
pub(crate) fn parts(sequence: u64, text: &[u8]) -> impl Iterator<Item = (Vec<u8>, Bytes)> {
    text.chunks(PART_LIMIT)
        .enumerate()
        .map(move |(part, chunk)| {
            let part = u16::try_from(part).unwrap_or(u16::MAX);
            (part_key(sequence, part), Bytes::copy_from_slice(chunk))
        })
}

/// Log key of one part of a record.
pub(crate) fn part_key(sequence: u64, part: u16) -> Vec<u8> {
    [&sequence.to_be_bytes()[..], &part.to_be_bytes()].concat()
}

/// First log key after every part of `sequence`.
pub(crate) fn key_after(sequence: u64) -> Vec<u8> {
    sequence.saturating_add(1).to_be_bytes().to_vec()
}

/// Sequence and part in a log key.
pub(crate) fn parse_key(key: &[u8]) -> StoreResult<(u64, u16)> {
    let parsed = key.split_first_chunk::<8>().and_then(|(seq, rest)| {
        Some((
            u64::from_be_bytes(*seq),
            u16::from_be_bytes(rest.try_into().ok()?),
        ))
    });
    parsed.ok_or_else(|| StoreError::corrupt("log key is not 10 bytes"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRecord<'a> {
    version: u32,
    sequence: u64,
    timestamp: u64,
    #[serde(borrow)]
    commit: &'a str,
    execution: Option<String>,
    #[serde(borrow)]
    previous: &'a str,
    offset: u64,
    #[serde(borrow)]
    writes: Vec<WireWrite<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireWrite<'a> {
    #[serde(borrow)]
    space: &'a str,
    #[serde(borrow)]
    key: &'a str,
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRef {
    #[serde(rename = "$ref")]
    hash: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireBytes {
    #[serde(rename = "$bytes")]
    bytes: String,
}

impl Record {
    /// Decodes a stored record.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the text does not follow the format.
    pub(crate) fn decode(text: &[u8]) -> StoreResult<Record> {
        let damaged = |reason: String| StoreError::corrupt(format!("commit record: {reason}"));
        let wire: WireRecord<'_> =
            serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if wire.version != RECORD_VERSION {
            return Err(damaged(format!(
                "version {} is not known, expected {RECORD_VERSION}",
                wire.version
            )));
        }
        let mut writes = Vec::with_capacity(wire.writes.len());
        for w in &wire.writes {
            writes.push(LoggedWrite {
                space: Keyspace::from_name(w.space)
                    .ok_or_else(|| damaged(format!("unknown keyspace {}", w.space)))?,
                key: HEXLOWER
                    .decode(w.key.as_bytes())
                    .map_err(|e| damaged(e.to_string()))?,
                before: decode_image(w.before)?,
                after: decode_image(w.after)?,
            });
        }
        Ok(Record {
            sequence: wire.sequence,
            timestamp: wire.timestamp,
            commit: wire
                .commit
                .parse()
                .map_err(|e: StoreError| damaged(e.to_string()))?,
            execution: wire.execution,
            previous: decode_hash(wire.previous)?,
            offset: wire.offset,
            writes,
            hash: Sha256::digest(text).into(),
            size: text.len() as u64,
        })
    }
}

fn decode_hash(text: &str) -> StoreResult<[u8; 32]> {
    HEXLOWER
        .decode(text.as_bytes())
        .ok()
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| StoreError::corrupt("commit record: a hash is not 64 hexadecimal digits"))
}

fn decode_image(raw: Option<&RawValue>) -> StoreResult<Image> {
    let Some(raw) = raw else {
        return Ok(Image::Absent);
    };
    let text = raw.get();
    let damaged = |e: String| StoreError::corrupt(format!("commit record image: {e}"));
    if text.starts_with("{\"$ref\"") {
        let r: WireRef = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        return Ok(Image::Elsewhere {
            hash: decode_hash(&r.hash)?,
            size: r.size,
        });
    }
    if text.starts_with("{\"$bytes\"") {
        let b: WireBytes = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        let bytes = BASE64
            .decode(b.bytes.as_bytes())
            .map_err(|e| damaged(e.to_string()))?;
        return Ok(Image::Inline(Bytes::from(bytes)));
    }
    Ok(Image::Inline(Bytes::copy_from_slice(text.as_bytes())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn sample() -> Vec<(Keyspace, Vec<u8>, Write)> {
        let big = Bytes::from(format!("{{\"s\":\"{}\"}}", "x".repeat(INLINE_LIMIT)));
        vec![
            (
                Keyspace::Docs,
                vec![1, 2],
                Write {
                    before: None,
                    after: Some(Bytes::from_static(b"{\"a\":1}")),
                },
            ),
            (
                Keyspace::Docs,
                vec![1, 3],
                Write {
                    before: Some(big.clone()),
                    after: Some(big),
                },
            ),
            (
                Keyspace::Code,
                vec![9],
                Write {
                    before: None,
                    after: Some(Bytes::from_static(b"\xff\x00")),
                },
            ),
            (
                Keyspace::Index,
                vec![7],
                Write {
                    before: None,
                    after: Some(Bytes::new()),
                },
            ),
        ]
    }

    #[test]
    fn round_trip_keeps_images_and_leaves_index_entries_out() {
        let sample = sample();
        let writes = render_writes(sample.iter().map(|(s, k, w)| (*s, k.as_slice(), w)));
        let front = RecordFront {
            sequence: 7,
            timestamp: 1_790_000_000_000_000_001,
            commit: CommitId([3; 16]),
            execution: Some("job \"1\""),
            previous: [9; 32],
            offset: 12,
        };
        let (text, hash) = render(&front, &writes);
        let record = Record::decode(text.as_bytes()).unwrap();
        assert_eq!(
            (record.sequence, record.timestamp, record.offset),
            (7, 1_790_000_000_000_000_001, 12)
        );
        assert_eq!(record.hash, hash);
        assert_eq!(record.previous, [9; 32]);
        assert_eq!(record.execution.as_deref(), Some("job \"1\""));
        assert_eq!(record.writes.len(), 3, "index entries are not logged");
        assert_eq!(
            record.writes[0].after,
            Image::Inline(Bytes::from_static(b"{\"a\":1}"))
        );
        assert!(
            matches!(record.writes[1].before, Image::Inline(_)),
            "a value replaced is kept whole"
        );
        assert!(
            matches!(record.writes[1].after, Image::Elsewhere { size, .. } if size > INLINE_LIMIT as u64)
        );
        assert_eq!(
            record.writes[2].after,
            Image::Inline(Bytes::from_static(b"\xff\x00"))
        );
    }

    /// The stored text of format version 1: if this changes, records of earlier releases
    /// no longer verify.
    #[test]
    fn format_vector() {
        let write = Write {
            before: None,
            after: Some(Bytes::from_static(b"{\"a\":1}")),
        };
        let writes = render_writes([(Keyspace::Docs, &[0xab][..], &write)].into_iter());
        let front = RecordFront {
            sequence: 1,
            timestamp: 2,
            commit: CommitId([0x11; 16]),
            execution: None,
            previous: [0; 32],
            offset: 0,
        };
        let (text, hash) = render(&front, &writes);
        assert_eq!(
            text,
            "{\"version\":1,\"sequence\":1,\"timestamp\":2,\"commit\":\"11111111111111111111111111111111\",\
             \"execution\":null,\"previous\":\"0000000000000000000000000000000000000000000000000000000000000000\",\
             \"offset\":0,\"writes\":[{\"space\":\"docs\",\"key\":\"ab\",\"before\":null,\"after\":{\"a\":1}}]}"
        );
        assert_eq!(timestamp_of(text.as_bytes()).unwrap(), 2);
        assert_eq!(
            HEXLOWER.encode(&hash),
            HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        let commit = br#"{"version":1,"sequence":1,"timestamp":2,"commit":"xyz","execution":null,"previous":"","offset":0,"writes":[]}"#;
        let bad: [&[u8]; 6] = [b"", b"{}", b"{\"version\":2}", b"\xff", b"[]", commit];
        for text in bad {
            assert!(
                matches!(Record::decode(text), Err(StoreError::Corrupt { .. })),
                "{text:?}"
            );
        }
    }
}
