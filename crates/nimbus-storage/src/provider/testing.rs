//! What the tests of all embedded providers say again and again: a tenant, the next head, a batch, a commit.
//!
//! It must not know a provider.

use std::collections::BTreeMap;
use std::sync::Arc;

use nimbus_core::TenantId;

use super::{Batch, Head, Keyspace, TenantStore};

pub(crate) fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

pub(crate) fn next(head: Head) -> Head {
    Head {
        sequence: head.sequence + 1,
        timestamp: head.timestamp + 1,
        hash: [7; 32],
    }
}

pub(crate) fn batch(head: Head, rows: &[(Keyspace, &[u8], &[u8])]) -> Batch {
    let row = |(keyspace, key, value): &(Keyspace, &[u8], &[u8])| {
        (
            (*keyspace, key.to_vec()),
            Some(bytes::Bytes::copy_from_slice(value)),
        )
    };
    Batch {
        head,
        writes: rows.iter().map(row).collect::<BTreeMap<_, _>>(),
    }
}

pub(crate) async fn put(
    store: &Arc<dyn TenantStore>,
    head: Head,
    key: &[u8],
    value: &[u8],
) -> Head {
    let new = next(head);
    store
        .commit(head, batch(new, &[(Keyspace::Docs, key, value)]))
        .await
        .unwrap();
    new
}
