//! Keys of a tenant: `{tenant}|{secret}` with a scope and perhaps an end.
//!
//! A key is kept by its tenant, as a digest. This room makes keys, reads what a caller presents and
//! compares; it must not know where records are kept or which routes a key opens.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use nimbus_core::TenantId;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use zeroize::Zeroizing;

use crate::context::{AuthFailure, AuthMethod, Authenticated, MalformedCredential, Principal};

/// What the secret of every key begins with.
pub const KEY_PREFIX: &str = "nimbus_tk_";
/// Random bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Length of a secret in bytes: the prefix and 43 characters of base64url.
pub const SECRET_TEXT_LEN: usize = KEY_PREFIX.len() + 43;
/// Random bytes of a key's id.
const ID_BYTES: usize = 8;
/// Deployment types that Convex tools write before the name (convex.md 4.8).
const TYPES: [&str; 3] = ["prod:", "dev:", "preview:"];

/// What a key may do in its tenant; each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyScope {
    /// Read documents and run queries.
    Read,
    /// And write documents, run mutations and actions.
    Write,
    /// And change schemas, deployments and the environment, and call internal functions.
    Deploy,
    /// And make and revoke keys.
    Admin,
}

/// A text that is no [`KeyScope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scope is one of read, write, deploy, admin")]
#[non_exhaustive]
pub struct KeyScopeError;

impl KeyScope {
    /// Every scope, from the least to the most.
    pub const ALL: [KeyScope; 4] = [Self::Read, Self::Write, Self::Deploy, Self::Admin];

    /// The word on the command line, on the wire and in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyScope {
    type Err = KeyScopeError;

    fn from_str(text: &str) -> Result<Self, KeyScopeError> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or(KeyScopeError)
    }
}

/// Name of a key: 16 lower-case hexadecimal digits. It is no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(Arc<str>);

/// A text that is no [`KeyId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key has 16 hexadecimal digits in lower case")]
#[non_exhaustive]
pub struct KeyIdError;

impl KeyId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 2 * ID_BYTES || !text.bytes().all(hex) {
            return Err(KeyIdError);
        }
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key that was just made. The credential is shown once and kept nowhere.
pub struct NewKey {
    /// Its name.
    pub id: KeyId,
    /// What its tenant keeps of the secret.
    pub digest: [u8; 32],
    credential: Zeroizing<String>,
}

impl NewKey {
    /// Makes a key of `tenant` from random bytes of the operating system.
    ///
    /// # Errors
    /// [`getrandom::Error`] when there are none.
    pub fn mint(tenant: &TenantId) -> Result<Self, getrandom::Error> {
        let mut id = [0_u8; ID_BYTES];
        getrandom::fill(&mut id)?;
        let mut secret = Zeroizing::new([0_u8; SECRET_BYTES]);
        getrandom::fill(secret.as_mut())?;
        // Reserved in full: growing would leave a copy behind that is not wiped.
        let length = tenant.as_str().len() + 1 + SECRET_TEXT_LEN;
        let mut credential = Zeroizing::new(String::with_capacity(length));
        credential.push_str(tenant.as_str());
        credential.push('|');
        credential.push_str(KEY_PREFIX);
        BASE64URL_NOPAD.encode_append(secret.as_ref(), &mut credential);
        let text = credential.split_once('|').map_or("", |(_, text)| text);
        Ok(Self {
            id: KeyId(Arc::from(HEXLOWER.encode(&id))),
            digest: digest(text),
            credential,
        })
    }

    /// The text that a client presents: `{tenant}|{secret}`.
    pub fn expose_credential(&self) -> &str {
        &self.credential
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What a tenant knows of one of its keys.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// Its name.
    pub id: KeyId,
    /// What it may do.
    pub scope: KeyScope,
    /// SHA-256 of the secret.
    pub digest: [u8; 32],
    /// From when it is no longer accepted, in ms since 1970.
    pub expires_ms: Option<u64>,
}

/// A credential in the form of a key, not compared yet.
pub struct KeyClaim {
    tenant: TenantId,
    digest: [u8; 32],
}

impl fmt::Debug for KeyClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyClaim")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl KeyClaim {
    /// Reads `{tenant}|{secret}`, perhaps with the type of a deployment before it.
    ///
    /// # Errors
    /// [`AuthFailure::Malformed`] for a text that cannot be one.
    pub fn parse(text: &str) -> Result<Self, AuthFailure> {
        let method = AuthMethod::TenantKey;
        let malformed = |fault| AuthFailure::Malformed { method, fault };
        let text = TYPES
            .iter()
            .find_map(|kind| text.strip_prefix(kind))
            .unwrap_or(text);
        let (tenant, secret) = text
            .split_once('|')
            .ok_or(malformed(MalformedCredential::Characters))?;
        let tenant = tenant
            .parse()
            .map_err(|_| malformed(MalformedCredential::Characters))?;
        if secret.is_empty() {
            return Err(malformed(MalformedCredential::Empty));
        }
        if secret.contains([':', '|']) {
            return Err(malformed(MalformedCredential::Characters));
        }
        Ok(Self {
            tenant,
            digest: digest(secret),
        })
    }

    /// The tenant that the key names, unverified.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Compares with the keys of the tenant at `now_ms`. Every record is compared, in constant
    /// time, so that the time taken tells the number of keys and nothing else.
    ///
    /// # Errors
    /// [`AuthFailure::Wrong`] when no key matches, [`AuthFailure::Expired`] when one did once.
    pub fn verify(self, keys: &[KeyRecord], now_ms: u64) -> Result<Authenticated, AuthFailure> {
        let method = AuthMethod::TenantKey;
        let mut found = 0_u64;
        let mut matched = Choice::from(0);
        for (at, key) in (0_u64..).zip(keys) {
            let equal = key.digest.ct_eq(&self.digest);
            found.conditional_assign(&at, equal);
            matched |= equal;
        }
        let index = usize::try_from(found).unwrap_or(usize::MAX);
        let key = keys.get(index).filter(|_| bool::from(matched));
        let key = key.ok_or(AuthFailure::Wrong { method })?;
        if key.expires_ms.is_some_and(|end| end <= now_ms) {
            return Err(AuthFailure::Expired { method });
        }
        let principal = Principal::TenantKey {
            tenant: self.tenant,
            key: key.id.clone(),
            scope: key.scope,
        };
        Ok(Authenticated::proved(principal, method))
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::context::Permission;

    fn tenant(text: &str) -> TenantId {
        text.parse().unwrap()
    }

    fn record(key: &NewKey, scope: KeyScope, expires_ms: Option<u64>) -> KeyRecord {
        KeyRecord {
            id: key.id.clone(),
            scope,
            digest: key.digest,
            expires_ms,
        }
    }

    #[test]
    fn a_new_key_has_the_documented_form_and_opens_its_tenant() {
        let key = NewKey::mint(&tenant("demo")).unwrap();
        let text = key.expose_credential();
        let secret = text.strip_prefix("demo|nimbus_tk_").unwrap();
        assert_eq!(secret.len(), 43);
        assert!(!text.contains(':'));
        assert_eq!(key.id.to_string().parse::<KeyId>().unwrap(), key.id);
        let other = NewKey::mint(&tenant("demo")).unwrap();
        assert!(other.expose_credential() != text && other.id != key.id);
        let records = [
            record(&other, KeyScope::Admin, None),
            record(&key, KeyScope::Write, Some(10)),
        ];
        for form in ["", "prod:", "dev:", "preview:"] {
            let claim = KeyClaim::parse(&format!("{form}{text}")).unwrap();
            assert_eq!(claim.tenant(), &tenant("demo"));
            let caller = claim.verify(&records, 9).unwrap();
            let expected = Principal::TenantKey {
                tenant: tenant("demo"),
                key: key.id.clone(),
                scope: KeyScope::Write,
            };
            assert_eq!(*caller.principal(), expected);
            assert_eq!(caller.method(), AuthMethod::TenantKey);
        }
    }

    #[test]
    fn what_is_not_exactly_a_key_is_refused() {
        let method = AuthMethod::TenantKey;
        let key = NewKey::mint(&tenant("demo")).unwrap();
        let records = [record(&key, KeyScope::Admin, Some(1_000))];
        let text = key.expose_credential();
        let wrong = [
            format!("{text}x"),
            text[..text.len() - 1].to_owned(),
            text.to_uppercase().replacen("DEMO", "demo", 1),
            "demo|nimbus_tk_".to_owned(),
        ];
        for text in wrong {
            let outcome = KeyClaim::parse(&text).unwrap().verify(&records, 0);
            assert_eq!(
                outcome.unwrap_err(),
                AuthFailure::Wrong { method },
                "{text}"
            );
        }
        let claim = |text: &str| KeyClaim::parse(text).unwrap();
        let none = claim(text).verify(&[], 0);
        assert_eq!(none.unwrap_err(), AuthFailure::Wrong { method });
        let late = claim(text).verify(&records, 1_000);
        assert_eq!(late.unwrap_err(), AuthFailure::Expired { method });
        assert!(claim(text).verify(&records, 999).is_ok());
        for text in [
            "",
            "demo",
            "|x",
            "demo|",
            "_demo|x",
            "de mo|x",
            "a:demo|x",
            "demo|x|y",
            "demo|x:eyJ9",
            "prod:dev:demo|x",
        ] {
            assert!(
                matches!(KeyClaim::parse(text), Err(AuthFailure::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_scope_gives_what_the_one_before_gives_and_its_own() {
        use Permission::{
            Deploy, Inspect, ManageKeys, ManageSchema, ManageSystem, ManageTenants, ReadData,
            WriteData,
        };
        let table: [(KeyScope, &[Permission]); 4] = [
            (KeyScope::Read, &[ReadData]),
            (KeyScope::Write, &[ReadData, WriteData]),
            (
                KeyScope::Deploy,
                &[ReadData, WriteData, ManageSchema, Deploy],
            ),
            (
                KeyScope::Admin,
                &[ReadData, WriteData, ManageSchema, Deploy, ManageKeys],
            ),
        ];
        let key = NewKey::mint(&tenant("demo")).unwrap();
        for (scope, allowed) in table {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            let claim = KeyClaim::parse(key.expose_credential()).unwrap();
            let caller = claim.verify(&[record(&key, scope, None)], 0).unwrap();
            for permission in [
                ReadData,
                WriteData,
                ManageSchema,
                Deploy,
                ManageKeys,
                ManageTenants,
                Inspect,
                ManageSystem,
            ] {
                let own = caller.tenant_context(tenant("demo"), permission);
                let expected = allowed.contains(&permission);
                assert_eq!(own.is_ok(), expected, "{scope} {permission}");
                // Not even which permission is missing shows on another tenant.
                let method = AuthMethod::TenantKey;
                let other = caller.tenant_context(tenant("demo2"), permission);
                assert_eq!(other.unwrap_err(), AuthFailure::Foreign { method });
                assert!(caller.server_context(permission).is_err());
            }
        }
        assert_eq!("Read".parse::<KeyScope>(), Err(KeyScopeError));
        for text in [
            "",
            "0123456789abcde",
            "0123456789abcdeF",
            "0123456789abcdef0",
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(KeyIdError), "{text}");
        }
    }

    #[test]
    fn no_debug_text_shows_a_secret() {
        let key = NewKey::mint(&tenant("demo")).unwrap();
        let claim = KeyClaim::parse(key.expose_credential()).unwrap();
        let shown = format!("{key:?} {claim:?}");
        assert!(!shown.contains("nimbus_tk_"), "{shown}");
        let digest = format!("{:?}", key.digest);
        assert!(!shown.contains(&digest), "{shown}");
    }
}
