//! Tests of what only the redb provider has, by subject; here is what they share.

use crate::provider::{Batch, Keyspace};

/// Panics in the writer's thread for a batch that writes this key.
pub(super) fn panic_if_asked(batch: &Batch) {
    let asked = (Keyspace::Docs, PANIC_KEY.to_vec());
    assert!(!batch.writes.contains_key(&asked), "asked to panic");
}

const PANIC_KEY: &[u8] = b"panic in the writer";
