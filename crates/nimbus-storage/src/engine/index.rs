//! Index entries: how a document's indexed fields become a key, and back to its id.
//!
//! Key = index number (u32 big-endian), each field encoded by the order of convex.md 2.5
//! (`01` when missing), the creation time, the internal id. A key over 2,048 bytes is cut
//! (design section 2) and its value then carries the internal id, since the key no longer does.

use bytes::Bytes;
use nimbus_core::{DocumentId, InternalId, Object, TableNumber, Value, key, value};

use super::catalog::IndexDef;
use crate::error::{StoreError, StoreResult};

/// Bytes of the index number in front of every key.
pub(crate) const INDEX_PREFIX: usize = 4;

/// An entry as stored, with the key that it stands for.
pub(crate) struct Entry {
    pub(crate) stored: Vec<u8>,
    pub(crate) value: Bytes,
    pub(crate) full: Vec<u8>,
}

/// The entry of `document` in `index`.
pub(crate) fn entry(index: &IndexDef, id: InternalId, document: &Object) -> Entry {
    let full = full_key(index, id, document);
    let stored = key::cut(&full).into_owned();
    let value = if stored.len() == full.len() && stored == full {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(id.as_bytes())
    };
    Entry {
        stored,
        value,
        full,
    }
}

/// The whole key of `document` in `index`, however long.
pub(crate) fn full_key(index: &IndexDef, id: InternalId, document: &Object) -> Vec<u8> {
    let mut full = index.id.to_be_bytes().to_vec();
    for field in &index.fields {
        key::encode(value::object_get(document, field), &mut full);
    }
    key::encode_f64(creation_time(document), &mut full);
    full.extend_from_slice(id.as_bytes());
    full
}

/// `_creationTime` of a stored document in ms; 0 if absent, which no stored document is.
pub(crate) fn creation_time(document: &Object) -> f64 {
    match document.get("_creationTime") {
        Some(Value::Float64(ms)) => *ms,
        _ => 0.0,
    }
}

/// Whether the stored entry was cut; its value then carries the id.
pub(crate) fn is_cut(value: &[u8]) -> bool {
    !value.is_empty()
}

/// The document that a stored entry points to.
pub(crate) fn target(table: TableNumber, stored: &[u8], value: &[u8]) -> StoreResult<DocumentId> {
    let tail = if is_cut(value) {
        <[u8; InternalId::LEN]>::try_from(value).ok()
    } else {
        stored
            .get(INDEX_PREFIX..)
            .and_then(|rest| rest.last_chunk::<{ InternalId::LEN }>())
            .copied()
    };
    let internal = tail.ok_or_else(|| StoreError::corrupt("index entry carries no document id"))?;
    Ok(DocumentId {
        table,
        internal: InternalId::from_bytes(internal),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::engine::catalog::IndexState;

    fn index(fields: &[&str]) -> IndexDef {
        IndexDef {
            id: 7,
            name: "by_x".parse().unwrap(),
            fields: fields.iter().map(|f| f.parse().unwrap()).collect(),
            state: IndexState::Enabled,
            push: None,
        }
    }

    fn document(text: &str) -> Object {
        let mut object = Object::new();
        object.insert("s".into(), Value::String(text.into()));
        object.insert("_creationTime".into(), Value::Float64(1.0));
        object
    }

    #[test]
    fn a_short_entry_is_the_key_itself() {
        let id = InternalId::from_bytes([5; 16]);
        let e = entry(&index(&["s", "missing"]), id, &document("a"));
        let mut expected = vec![
            0, 0, 0, 7, 0x10, b'a', 0, 0x01, 0x0d, 0xbf, 0xf0, 0, 0, 0, 0, 0, 0,
        ];
        expected.extend([5; 16]);
        assert_eq!(e.stored, expected);
        assert!(e.value.is_empty());
        let table = TableNumber::FIRST_USER;
        assert_eq!(
            target(table, &e.stored, &e.value).unwrap(),
            DocumentId {
                table,
                internal: id
            }
        );
    }

    #[test]
    fn a_long_entry_is_cut_and_still_finds_its_document() {
        let id = InternalId::from_bytes([6; 16]);
        let e = entry(&index(&["s"]), id, &document(&"y".repeat(5_000)));
        assert!(e.stored.len() <= key::MAX_STORED_KEY);
        assert!(is_cut(&e.value));
        let table = TableNumber::FIRST_USER;
        assert_eq!(target(table, &e.stored, &e.value).unwrap().internal, id);
        assert_eq!(e.stored[..key::CUT_PREFIX], e.full[..key::CUT_PREFIX]);
    }
}
