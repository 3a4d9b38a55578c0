//! Scoped keys as a tenant stores them: a digest, never the secret. What a scope allows, and how a
//! secret becomes a digest, is not known here.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::module::parse_hash;
use super::{now_ms, put_row, rows_under};
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::engine::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Keys that a tenant may have, expired ones not counted.
pub const MAX_KEYS: usize = 1_024;

const PREFIX: &[u8] = b"key/";
/// Longest id.
const MAX_ID: usize = 64;
/// Longest name and longest scope, in bytes.
const MAX_TEXT: usize = 256;

/// A scoped key. Its digest proves a secret and tells nothing about it, but is not shown either.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Names it: 1 to 64 of `[A-Za-z0-9_-]`.
    pub id: String,
    /// What people call it; at most 256 bytes.
    pub name: String,
    /// What it allows; not looked at here. At most 256 bytes.
    pub scope: String,
    /// Digest of the secret.
    pub digest: [u8; 32],
    /// When it was made: ms since 1970-01-01.
    pub created_ms: u64,
    /// From when on it is not valid: ms since 1970-01-01.
    pub expires_ms: Option<u64>,
}

impl std::fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredKey({}, {})", self.id, self.scope)
    }
}

impl StoredKey {
    /// Whether it is not valid any more at `now_ms` (ms since 1970-01-01).
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }

    fn check(&self) -> StoreResult<()> {
        check_id(&self.id)?;
        for (what, text) in [("name", &self.name), ("scope", &self.scope)] {
            if text.len() > MAX_TEXT {
                return Err(StoreError::invalid(format!(
                    "the {what} of a key has {} bytes, at most {MAX_TEXT} are allowed",
                    text.len()
                )));
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    scope: String,
    digest: String,
    created_ms: u64,
    expires_ms: Option<u64>,
}

fn check_id(id: &str) -> StoreResult<()> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(word) {
        return Ok(());
    }
    Err(StoreError::invalid(format!(
        "a key's id is 1 to {MAX_ID} letters, digits, `_` or `-`"
    )))
}

fn row_key(id: &str) -> Vec<u8> {
    [PREFIX, id.as_bytes()].concat()
}

fn encode(key: &StoredKey) -> StoreResult<Bytes> {
    let row = Row {
        name: key.name.clone(),
        scope: key.scope.clone(),
        digest: HEXLOWER.encode(&key.digest),
        created_ms: key.created_ms,
        expires_ms: key.expires_ms,
    };
    let text = serde_json::to_vec(&row);
    text.map(Bytes::from)
        .map_err(|e| StoreError::corrupt(e.to_string()))
}

fn decode(row_key: &[u8], stored: &[u8]) -> StoreResult<StoredKey> {
    let damaged = || StoreError::corrupt("the row of a scoped key");
    let id = std::str::from_utf8(&row_key[PREFIX.len()..]).map_err(|_| damaged())?;
    let row: Row = serde_json::from_slice(stored).map_err(|_| damaged())?;
    Ok(StoredKey {
        id: id.to_owned(),
        name: row.name,
        scope: row.scope,
        digest: parse_hash(&row.digest).ok_or_else(damaged)?,
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
    })
}

async fn read(view: &mut View) -> StoreResult<Vec<StoredKey>> {
    let rows = rows_under(view, PREFIX).await?;
    rows.iter().map(|(key, value)| decode(key, value)).collect()
}

impl Tenant {
    /// Every key, expired ones included, by id.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn keys(&self) -> StoreResult<Vec<StoredKey>> {
        read(&mut self.inner.durable_view(false).await?).await
    }

    /// The key of an id.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn key(&self, id: &str) -> StoreResult<Option<StoredKey>> {
        if check_id(id).is_err() {
            return Ok(None);
        }
        let mut view = self.inner.durable_view(false).await?;
        let row_key = row_key(id);
        let stored = view.get(Keyspace::Meta, &row_key).await?;
        stored.map(|stored| decode(&row_key, &stored)).transpose()
    }

    /// Adds a key, and drops those that have expired.
    ///
    /// # Errors
    /// `InvalidInput` for an id that is taken or malformed, or a text that is too long;
    /// `CapExceeded` beyond [`MAX_KEYS`]. Then nothing changed.
    pub async fn put_key(&self, key: StoredKey) -> StoreResult<()> {
        key.check()?;
        self.transact(move |tx| {
            let key = key.clone();
            Box::pin(async move { put(tx, &key).await })
        })
        .await
    }

    /// Removes a key. Returns whether there was one.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn remove_key(&self, id: &str) -> StoreResult<bool> {
        if check_id(id).is_err() {
            return Ok(false);
        }
        let row_key = row_key(id);
        self.transact(move |tx| {
            let row_key = row_key.clone();
            Box::pin(async move {
                let before = tx.view.get(Keyspace::Meta, &row_key).await?;
                let found = before.is_some();
                if found {
                    tx.view.put(Keyspace::Meta, &row_key, before, None)?;
                }
                Ok(found)
            })
        })
        .await
    }
}

async fn put(tx: &mut Transaction, key: &StoredKey) -> StoreResult<()> {
    let now = now_ms();
    let (expired, valid): (Vec<_>, Vec<_>) = read(&mut tx.view)
        .await?
        .into_iter()
        .partition(|known| known.is_expired(now));
    if valid.iter().any(|known| known.id == key.id) {
        return Err(StoreError::invalid(format!("key {} exists", key.id)));
    }
    if valid.len() >= MAX_KEYS {
        return Err(StoreError::CapExceeded {
            cap: "keys",
            limit: MAX_KEYS as u64,
            observed: MAX_KEYS as u64 + 1,
            advice: "revoke keys that are not used",
        });
    }
    for old in expired.iter().filter(|old| old.id != key.id) {
        put_row(tx, Keyspace::Meta, &row_key(&old.id), None).await?;
    }
    put_row(tx, Keyspace::Meta, &row_key(&key.id), Some(encode(key)?)).await
}
