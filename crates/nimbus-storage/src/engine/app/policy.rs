//! Versions of the policy that an operator gives a tenant: texts under numbers, the newest of which is in force.
//!
//! One small row lists the versions that are kept. It is part of the catalog, so which version is in force is known
//! without a read; the texts lie in rows of their own. What a policy says is not known here, nor who may change it.

use std::fmt;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{AppControl, now_ms, put_row};
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::engine::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Versions that are kept, the current one included.
pub const KEPT_POLICIES: usize = 20;
/// Longest text of a policy: 1 MiB.
pub const MAX_POLICY_BYTES: usize = 1024 * 1024;

/// Meta row with the versions that are kept.
pub(crate) const POLICY_KEY: &[u8] = b"policy/current";
/// Prefix of the meta rows with their texts.
const TEXT_PREFIX: &[u8] = b"policy/version/";
/// Version of the format of the rows.
const FORMAT: u32 = 1;

/// One version of a tenant's policy.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    /// Its number: from 1, and never used again as long as the tenant lives.
    pub version: u64,
    /// When it was put: ms since 1970-01-01.
    pub created_ms: u64,
    /// The version whose text it brought back, if it did.
    pub restored_from: Option<u64>,
    /// The policy; not looked at here.
    pub text: Arc<str>,
}

impl fmt::Debug for StoredPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "StoredPolicy({}, {} bytes)",
            self.version,
            self.text.len()
        )
    }
}

/// A version as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// See [`StoredPolicy::version`].
    pub version: u64,
    /// When it was put: ms since 1970-01-01.
    pub created_ms: u64,
    /// The version whose text it brought back, if it did.
    pub restored_from: Option<u64>,
    /// Length of its text in bytes.
    pub bytes: u64,
}

impl PolicyVersion {
    fn with(&self, text: Arc<str>) -> StoredPolicy {
        StoredPolicy {
            version: self.version,
            created_ms: self.created_ms,
            restored_from: self.restored_from,
            text,
        }
    }
}

/// The row [`POLICY_KEY`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policies {
    format: u32,
    /// Newest first; the first is the current one.
    versions: Vec<PolicyVersion>,
}

impl Policies {
    /// Reads a stored row.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn decode(stored: &[u8]) -> StoreResult<Policies> {
        let damaged = |e: String| StoreError::corrupt(format!("versions of the policy: {e}"));
        let found: Policies = serde_json::from_slice(stored).map_err(|e| damaged(e.to_string()))?;
        if found.format != FORMAT {
            let format = found.format;
            return Err(damaged(format!(
                "format {format} is not known, expected {FORMAT}"
            )));
        }
        let mut pairs = found.versions.windows(2);
        match found.versions.is_empty() || pairs.any(|p| p[0].version <= p[1].version) {
            true => Err(damaged("they are out of order".into())),
            false => Ok(found),
        }
    }

    fn current(&self) -> Option<&PolicyVersion> {
        self.versions.first()
    }

    fn find(&self, version: u64) -> Option<&PolicyVersion> {
        self.versions.iter().find(|known| known.version == version)
    }
}

/// A row with a text.
#[derive(Serialize, Deserialize)]
struct TextRow {
    format: u32,
    version: u64,
    text: String,
}

fn encode(row: &impl Serialize) -> StoreResult<Bytes> {
    let text = serde_json::to_vec(row);
    text.map(Bytes::from)
        .map_err(|e| StoreError::corrupt(format!("a policy row does not encode: {e}")))
}

fn text_key(version: u64) -> Vec<u8> {
    [TEXT_PREFIX, &version.to_be_bytes()].concat()
}

/// A version that a view has, with its text.
async fn read(view: &mut View, listed: &PolicyVersion) -> StoreResult<StoredPolicy> {
    let version = listed.version;
    let damaged = |e: &str| StoreError::corrupt(format!("version {version} of the policy: {e}"));
    let stored = view.get(Keyspace::Meta, &text_key(version)).await?;
    let stored = stored.ok_or_else(|| damaged("its text is missing"))?;
    // The error of serde_json names a place and not the text.
    let row: TextRow = serde_json::from_slice(&stored).map_err(|e| damaged(&e.to_string()))?;
    let fits =
        row.format == FORMAT && row.version == version && row.text.len() as u64 == listed.bytes;
    match fits {
        true => Ok(listed.with(row.text.into())),
        false => Err(damaged("its text is another one")),
    }
}

impl AppControl {
    fn cached_policy(&self, version: u64) -> Option<Arc<StoredPolicy>> {
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        policy.as_ref().filter(|p| p.version == version).cloned()
    }

    fn remember_policy(&self, read: &Arc<StoredPolicy>) {
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        if policy.as_ref().is_none_or(|p| p.version <= read.version) {
            *policy = Some(read.clone());
        }
    }
}

impl Tenant {
    /// The current policy as far as this server knows: where servers share the tenant, a change that another one made
    /// is known once anything was read from the tenant after it, or [`Tenant::catch_up`] returned. Costs no read but
    /// the first after a change, and none if there is no policy.
    ///
    /// # Errors
    /// `Corrupt` if its text is missing or another one; the provider's failure.
    pub async fn policy(&self) -> StoreResult<Option<Arc<StoredPolicy>>> {
        let catalog = self.catalog();
        let Some(current) = catalog.policies().and_then(Policies::current) else {
            return Ok(None);
        };
        if let Some(known) = self.inner.app.cached_policy(current.version) {
            return Ok(Some(known));
        }
        let mut view = self.inner.durable_view(false).await?;
        let catalog = view.catalog.clone();
        let Some(current) = catalog.policies().and_then(Policies::current) else {
            return Ok(None);
        };
        let found = Arc::new(read(&mut view, current).await?);
        self.inner.app.remember_policy(&found);
        Ok(Some(found))
    }

    /// The versions that are kept, newest first: at most [`KEPT_POLICIES`].
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn policies(&self) -> StoreResult<Vec<PolicyVersion>> {
        let view = self.inner.durable_view(false).await?;
        let kept = view.catalog.policies();
        Ok(kept.map_or_else(Vec::new, |kept| kept.versions.clone()))
    }

    /// A version of the policy; `None` if there never was one of this number or it is not kept any more.
    ///
    /// # Errors
    /// As [`Tenant::policy`].
    pub async fn policy_of(&self, version: u64) -> StoreResult<Option<StoredPolicy>> {
        let mut view = self.inner.durable_view(false).await?;
        let catalog = view.catalog.clone();
        match catalog.policies().and_then(|kept| kept.find(version)) {
            Some(listed) => read(&mut view, listed).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes a text the current policy, as a new version, and drops the oldest beyond [`KEPT_POLICIES`].
    /// `restored_from` says whose text it is, if it was another version's. `expected` is the version that must be the
    /// current one, 0 for none; without it any may be.
    ///
    /// # Errors
    /// `PolicyVersion` if another version than `expected` is current; `CapExceeded` for a text over
    /// [`MAX_POLICY_BYTES`]; `InvalidInput` if there never was a version `restored_from`; as a commit. Then nothing
    /// changed.
    pub async fn put_policy(
        &self,
        text: Arc<str>,
        restored_from: Option<u64>,
        expected: Option<u64>,
    ) -> StoreResult<StoredPolicy> {
        if text.len() > MAX_POLICY_BYTES {
            return Err(StoreError::CapExceeded {
                cap: "policy_bytes",
                limit: MAX_POLICY_BYTES as u64,
                observed: text.len() as u64,
                advice: "write a shorter policy",
            });
        }
        let put = self.transact(move |tx| {
            let text = text.clone();
            Box::pin(async move { put(tx, text, restored_from, expected).await })
        });
        let stored = put.await?;
        self.inner.app.remember_policy(&Arc::new(stored.clone()));
        Ok(stored)
    }
}

async fn put(
    tx: &mut Transaction,
    text: Arc<str>,
    restored_from: Option<u64>,
    expected: Option<u64>,
) -> StoreResult<StoredPolicy> {
    tx.view.rely_on(Keyspace::Meta, POLICY_KEY);
    let catalog = tx.view.catalog.clone();
    let mut versions = catalog
        .policies()
        .map_or_else(Vec::new, |kept| kept.versions.clone());
    let current = versions.first().map_or(0, |newest| newest.version);
    if let Some(expected) = expected.filter(|expected| *expected != current) {
        return Err(StoreError::PolicyVersion { expected, current });
    }
    if let Some(from) = restored_from.filter(|from| !(1..=current).contains(from)) {
        return Err(StoreError::invalid(format!(
            "there never was a version {from} of the policy; the newest is {current}"
        )));
    }
    let listed = PolicyVersion {
        version: current + 1,
        created_ms: now_ms(),
        restored_from,
        bytes: text.len() as u64,
    };
    let row = TextRow {
        format: FORMAT,
        version: listed.version,
        text: text.as_ref().to_owned(),
    };
    let key = text_key(listed.version);
    put_row(tx, Keyspace::Meta, &key, Some(encode(&row)?)).await?;
    let stored = listed.with(text);
    versions.insert(0, listed);
    let dropped = versions.split_off(versions.len().min(KEPT_POLICIES));
    for old in dropped {
        put_row(tx, Keyspace::Meta, &text_key(old.version), None).await?;
    }
    let kept = Policies {
        format: FORMAT,
        versions,
    };
    tx.put_meta(POLICY_KEY, encode(&kept)?).await?;
    Ok(stored)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// The stored text of format version 1: if this changes, policies of earlier releases are lost.
    #[test]
    fn format_vector() {
        let text = r#"{"format":1,"versions":[{"version":3,"created_ms":7,"restored_from":1,"bytes":2},{"version":2,"created_ms":6,"restored_from":null,"bytes":0}]}"#;
        let kept = Policies::decode(text.as_bytes()).unwrap();
        assert_eq!(kept.current().unwrap().restored_from, Some(1));
        assert_eq!(kept.find(2).unwrap().bytes, 0);
        assert_eq!(kept.find(1), None);
        assert_eq!(encode(&kept).unwrap(), text.as_bytes());
        let row = TextRow {
            format: 1,
            version: 3,
            text: "a\n\"".into(),
        };
        let expected = r#"{"format":1,"version":3,"text":"a\n\""}"#;
        assert_eq!(encode(&row).unwrap(), expected.as_bytes());
        assert_eq!(text_key(3), b"policy/version/\0\0\0\0\0\0\0\x03");
    }

    #[test]
    fn damage_is_refused() {
        let one = r#"{"version":1,"created_ms":0,"restored_from":null,"bytes":0}"#;
        let rows = [
            String::new(),
            "{}".into(),
            r#"{"format":1,"versions":[]}"#.into(),
            format!(r#"{{"format":2,"versions":[{one}]}}"#),
            format!(r#"{{"format":1,"versions":[{one},{one}]}}"#),
        ];
        for row in rows {
            let refused = Policies::decode(row.as_bytes());
            assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{row}");
        }
        let good = format!(r#"{{"format":1,"versions":[{one}]}}"#);
        assert!(Policies::decode(good.as_bytes()).is_ok());
    }
}
