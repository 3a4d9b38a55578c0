//! Ids and names (`nimbus_core::id`, `nimbus_core::name`): each has one text, and no text that is
//! taken can lead outside a directory or end a line.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use nimbus_core::{DocumentId, FieldPath, IndexName, InternalId, TableName, TableNumber, TenantId};

/// Pieces of ids, names and of what must not be one.
pub const WORDS: &[&str] = &[
    "j57038g17fdmr8w8erkzsffrsd8jp98h",
    "_id",
    "_creationTime",
    "by_id",
    "..",
    "/",
    "\0",
    "\u{e9}",
    "a.b",
    "0",
    "z",
];

/// Checks the bytes as the text of every id and name, and as the bytes of a document id.
pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        parse(text);
    }
    binary(data);
}

fn parse(text: &str) {
    if let Some(id) = one_text::<DocumentId>(text) {
        edits(text, id);
        let json = serde_json::to_string(&id).expect("ids are serialised");
        assert_eq!(serde_json::from_str::<DocumentId>(&json).ok(), Some(id));
    }
    if let Some(tenant) = one_text::<TenantId>(text) {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        assert!(tenant.as_str().bytes().all(word), "{tenant}");
        assert!(tenant.as_str().len() <= 128 && !tenant.as_str().starts_with('_'));
    }
    for name in [
        one_text::<TableName>(text).map(|name| name.to_string()),
        one_text::<IndexName>(text).map(|name| name.to_string()),
    ] {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        assert!(name.is_none_or(|n| n.bytes().all(word) && n.len() <= 64));
    }
    if let Some(path) = one_text::<FieldPath>(text) {
        let segments: Vec<&str> = path.segments().collect();
        assert_eq!(segments.join("."), text);
        assert!(
            segments
                .iter()
                .all(|s| !s.is_empty() && !s.starts_with('$'))
        );
    }
}

/// The parsed text, if it is one; it prints as it was read, and its error is short.
fn one_text<T: FromStr<Err: Display> + Display + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(parsed) => {
            assert_eq!(parsed.to_string(), text);
            Some(parsed)
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 512, "{message}");
            None
        }
    }
}

/// No edit of one character gives the same id; most give none.
fn edits(text: &str, id: DocumentId) {
    for at in 0..text.len() {
        for other in ["0", "z", "A", " "] {
            let mut edited = text.to_owned();
            edited.replace_range(at..=at, other);
            if edited != text {
                let parsed = edited.parse::<DocumentId>();
                assert_ne!(parsed, Ok(id), "{edited} and {text} are one id");
            }
        }
    }
}

fn binary(data: &[u8]) {
    if let Ok(id) = DocumentId::from_key(data) {
        assert_eq!(id.key(), data);
    }
    let Some((table, rest)) = data.split_first_chunk::<4>() else {
        return;
    };
    let Some((internal, _)) = rest.split_first_chunk::<16>() else {
        return;
    };
    let Some(table) = TableNumber::new(u32::from_be_bytes(*table)) else {
        return;
    };
    let internal = InternalId::from_bytes(*internal);
    let id = DocumentId { table, internal };
    assert_eq!(DocumentId::from_key(&id.key()), Ok(id));
    let text = id.to_string();
    assert_eq!(text.parse::<DocumentId>(), Ok(id), "{text}");
    edits(&text, id);
    let again = InternalId::generate(internal.ticks(), u64::MAX);
    assert_eq!(again.ticks(), internal.ticks());
}
