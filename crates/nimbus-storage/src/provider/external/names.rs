//! The namespace of a tenant on a shared database: prefix, readable part of the id, hash of the id.
//!
//! Must not know whether a namespace is a schema or a database, nor whether it exists. The hash alone
//! tells ids apart, so a database that ignores the case of names changes nothing.

use nimbus_core::TenantId;
use sha2::{Digest, Sha256};

use crate::provider::{ProviderError, ProviderResult};

/// Bytes of a name that every database takes (Postgres 63, MySQL 64).
pub(crate) const MAX_NAME: usize = 63;
/// Hexadecimal digits of the hash: 128 bits, so nobody can look for two ids with one name.
const HASH_DIGITS: usize = 32;
/// What is left for the prefix beside `_` and the hash.
const MAX_PREFIX: usize = MAX_NAME - 1 - HASH_DIGITS;

/// The names of namespaces with one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    /// `setting` names the option that the prefix was given by.
    ///
    /// # Errors
    /// `Settings` when it has other characters than `a-z`, `0-9` and `_`, begins with a digit, is
    /// empty, or leaves no room for the hash.
    pub(crate) fn new(setting: &str, prefix: &str) -> ProviderResult<Names> {
        check_characters(setting, prefix)?;
        if prefix.len() > MAX_PREFIX {
            let reason = format!(
                "{setting} is {} bytes long and at most {MAX_PREFIX} fit: a name has {MAX_NAME} bytes, \
                 of which the hash of the tenant id takes {}",
                prefix.len(),
                HASH_DIGITS + 1
            );
            return Err(ProviderError::Settings { reason });
        }
        Ok(Names {
            prefix: prefix.to_owned(),
        })
    }

    /// What every namespace begins with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The namespace of a tenant: at most [`MAX_NAME`] bytes of `a-z`, `0-9` and `_`, another one for
    /// every id.
    pub(crate) fn namespace(&self, tenant: &TenantId) -> String {
        let room = MAX_PREFIX - self.prefix.len();
        let readable = tenant.as_str().chars().take(room).map(|c| match c {
            '-' => '_',
            c => c.to_ascii_lowercase(),
        });
        let digest = Sha256::digest(tenant.as_str());
        let hash = data_encoding::HEXLOWER.encode(&digest[..HASH_DIGITS / 2]);
        let readable: String = readable.collect();
        format!("{}{readable}_{hash}", self.prefix)
    }

    /// Whether a name has the form of a namespace with this prefix.
    pub(crate) fn looks_like_one(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(self.prefix.as_str()) else {
            return false;
        };
        let hash = rest.rsplit('_').next().unwrap_or_default();
        rest.len() > hash.len()
            && hash.len() == HASH_DIGITS
            && hash.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// Refuses a name for the metadata that a tenant's namespace could have or that begins as one.
    ///
    /// # Errors
    /// `Settings`; as [`check_name`] as well.
    pub(crate) fn check_metadata(&self, setting: &str, name: &str) -> ProviderResult<()> {
        check_name(setting, name)?;
        if name.starts_with(self.prefix.as_str()) {
            let prefix = &self.prefix;
            let reason = format!(
                "{setting} is {name}, which begins with the prefix {prefix} of tenants; choose another"
            );
            return Err(ProviderError::Settings { reason });
        }
        Ok(())
    }
}

/// Checks the name of a namespace that is given whole.
///
/// # Errors
/// `Settings` when it is empty, too long, or has characters that are not the same everywhere.
pub(crate) fn check_name(setting: &str, name: &str) -> ProviderResult<()> {
    check_characters(setting, name)?;
    if name.len() > MAX_NAME {
        let reason = format!(
            "{setting} is {} bytes long and at most {MAX_NAME} fit",
            name.len()
        );
        return Err(ProviderError::Settings { reason });
    }
    Ok(())
}

fn check_characters(setting: &str, name: &str) -> ProviderResult<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let begins_well = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if begins_well && name.bytes().all(allowed) {
        return Ok(());
    }
    let reason = format!(
        "{setting} is {name:?}, expected letters a-z, digits and _, not beginning with a digit"
    );
    Err(ProviderError::Settings { reason })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn names(prefix: &str) -> Names {
        Names::new("the prefix", prefix).unwrap()
    }

    fn namespace(prefix: &str, tenant: &str) -> String {
        names(prefix).namespace(&tenant.parse().unwrap())
    }

    /// Names are stored in databases: they never change. The hash is `printf ID | sha256sum | cut -c1-32`.
    #[test]
    fn vectors() {
        let long = "x".repeat(128);
        let cases = [
            ("tenant_", "acme", "tenant_acme_"),
            ("tenant_", "a-b", "tenant_a_b_"),
            ("tenant_", "a_b", "tenant_a_b_"),
            ("tenant_", "A-B", "tenant_a_b_"),
            ("tenant_", "0", "tenant_0_"),
            ("tenant_", "x--Y_", "tenant_x__y__"),
            ("tenant_", &long, "tenant_xxxxxxxxxxxxxxxxxxxxxxx_"),
            (
                "a23456789_123456789_123456789_",
                "acme",
                "a23456789_123456789_123456789__",
            ),
        ];
        let hashes = VECTOR_HASHES;
        for ((prefix, tenant, begins), hash) in cases.into_iter().zip(hashes) {
            assert_eq!(namespace(prefix, tenant), format!("{begins}{hash}"));
        }
    }

    const VECTOR_HASHES: [&str; 8] = [
        "822b33ad87c148a0a20a5ba7cd5ebcaa",
        "d44362d67d921091c7b9674d752e9e23",
        "648fa9b31bc7ff7eb914e7a7180f07e0",
        "77101aaa54e63e737872b09d35a29cec",
        "5feceb66ffc86f38d952786c6d696c79",
        "ea1a05f81b8c89669a22a337db36afc3",
        "24da1b81d0b16df6428eee73c69fcb2a",
        "822b33ad87c148a0a20a5ba7cd5ebcaa",
    ];

    #[test]
    fn bad_prefixes_are_refused_with_a_reason() {
        let refused = |prefix: &str| match Names::new("--p", prefix) {
            Err(ProviderError::Settings { reason }) => reason,
            other => panic!("{prefix:?}: {other:?}"),
        };
        for prefix in [
            "", "Tenant_", "a-", "a\"b", "tenänt", "1a", "a b", "a\0", "a.",
        ] {
            assert!(
                refused(prefix).contains("expected letters a-z"),
                "{prefix:?}"
            );
        }
        let long = "a".repeat(31);
        assert_eq!(
            refused(&long),
            "--p is 31 bytes long and at most 30 fit: a name has 63 bytes, of which the hash of the \
             tenant id takes 33"
        );
        assert!(Names::new("--p", &long[1..]).is_ok());
    }

    #[test]
    fn the_metadata_cannot_be_taken_for_a_tenant() {
        let names = names("tenant_");
        for name in ["tenant_meta", "tenant_"] {
            let refused = names.check_metadata("--m", name);
            assert!(
                matches!(refused, Err(ProviderError::Settings { .. })),
                "{name}"
            );
        }
        assert!(names.check_metadata("--m", "nimbus_provider").is_ok());
        assert!(names.check_metadata("--m", &"m".repeat(64)).is_err());
    }

    #[test]
    fn namespaces_are_told_from_other_names() {
        let names = names("tenant_");
        assert!(names.looks_like_one(&namespace("tenant_", "acme")));
        for other in [
            "tenant_",
            "tenant_acme",
            "tenant_acme_0123",
            "nimbus_provider",
            "public",
        ] {
            assert!(!names.looks_like_one(other), "{other}");
        }
    }

    fn tenant() -> impl Strategy<Value = String> {
        // Few characters, so that ids are often alike.
        "[aAbB][aAbB_-]{0,5}|[a-zA-Z0-9][a-zA-Z0-9_-]{0,127}"
    }

    proptest! {
        #[test]
        fn other_ids_have_other_names(ids in prop::collection::btree_set(tenant(), 2..20), prefix in "[a-z_][a-z0-9_]{0,29}") {
            let names = names(&prefix);
            let mut seen = BTreeSet::new();
            for id in &ids {
                let name = names.namespace(&id.parse().unwrap());
                prop_assert!(name.len() <= MAX_NAME);
                prop_assert!(name.starts_with(&prefix));
                prop_assert!(check_name("it", &name).is_ok());
                prop_assert!(names.looks_like_one(&name));
                prop_assert!(seen.insert(name));
            }
        }
    }
}
