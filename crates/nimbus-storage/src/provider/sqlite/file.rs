//! A tenant file, and the key that every connection to it is given first.
//!
//! Must not know what the file holds. Whether a file has to be encrypted follows from the keyring: with
//! one, every file has a manifest; without one, none has.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use nimbus_core::TenantId;
use nimbus_crypto::{Dek, Subject};
use rusqlite::Connection;
use zeroize::Zeroizing;

use super::convert::fitting;
use super::error::{classify, corrupt};
use crate::encryption::{Keyring, is_plain, key_of, plain_with_manifest};
use crate::provider::{ProviderError, ProviderResult};

/// Where a tenant's data is, and what unlocks it. Dereferences to its path.
#[derive(Clone)]
pub(super) struct TenantFile {
    path: PathBuf,
    key: Option<Arc<Dek>>,
}

impl Deref for TenantFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

/// What a tenant's file is called by keys and manifests.
pub(super) fn subject(tenant: &TenantId) -> ProviderResult<Subject> {
    // Ids obey the same rule in both crates.
    Subject::sqlite_tenant(tenant.as_str()).map_err(|e| ProviderError::io("naming a key", e))
}

impl TenantFile {
    /// A file in plain text.
    #[cfg(test)]
    pub(super) fn plain(path: PathBuf) -> TenantFile {
        TenantFile { path, key: None }
    }

    /// The file with a key that is known to be the right one.
    pub(super) fn with_key(path: PathBuf, key: Option<Arc<Dek>>) -> TenantFile {
        TenantFile { path, key }
    }

    /// A file that is there, unlocked. Blocks.
    pub(super) fn locate(
        path: PathBuf,
        tenant: &TenantId,
        keyring: Option<&Arc<Keyring>>,
    ) -> ProviderResult<TenantFile> {
        let keys = key_of(keyring, &path, &subject(tenant)?)?;
        let key = keys.map(|keys| fitting(&path, &keys)).transpose()?;
        Ok(TenantFile { path, key })
    }

    /// Whether its pages have to be decrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.key.is_some()
    }

    /// Gives a new connection its key. Nothing may have been read through it before.
    pub(super) fn unlock(&self, conn: &Connection) -> ProviderResult<()> {
        match &self.key {
            Some(key) => give_key(conn, key).map_err(|e| classify("unlocking", &self.path, e)),
            None => Ok(()),
        }
    }

    /// Whether everything that was read through this connection authenticated. To be asked after every
    /// read of an encrypted file: SQLCipher gives a page that does not authenticate as zeros, and zeros
    /// in the middle of a long value are no error to SQLite.
    ///
    /// # Errors
    /// `Corrupt`; the connection is of no use any more.
    pub(super) fn authentic(&self, conn: &Connection) -> ProviderResult<()> {
        match self.key {
            Some(_) => authentic(conn, &self.path),
            None => Ok(()),
        }
    }

    /// What a file that SQLite takes for no database is: with a key, often one in plain text.
    pub(super) fn explain(&self, e: ProviderError) -> ProviderError {
        explain(&self.path, self.key.is_some(), e)
    }
}

/// The same for a file that was opened with a key or without one.
pub(super) fn explain(path: &Path, keyed: bool, e: ProviderError) -> ProviderError {
    let ProviderError::Corrupt { what, reason } = e else {
        return e;
    };
    if !keyed {
        return ProviderError::Corrupt { what, reason };
    }
    if is_plain(path).unwrap_or(false) {
        return plain_with_manifest(path);
    }
    let reason = format!(
        "{reason}; it was damaged or changed, or file and manifest do not belong together: restore both from one backup"
    );
    ProviderError::Corrupt { what, reason }
}

/// The same for a connection to an encrypted file that may be written: SQLCipher marks it read-only
/// when a page fails, which is the one trace of that which can be seen at any time and for nothing.
pub(super) fn authentic(conn: &Connection, path: &Path) -> ProviderResult<()> {
    match conn.is_readonly("main") {
        Ok(false) => Ok(()),
        Ok(true) => Err(corrupt(
            path,
            "a page does not authenticate: the file was damaged or changed; restore it from a backup"
                .to_owned(),
        )),
        Err(e) => Err(classify("reading", path, e)),
    }
}

/// SQLCipher's raw key. The statement is wiped; what SQLite copies of it while it is parsed is not.
pub(super) fn give_key(conn: &Connection, key: &Dek) -> rusqlite::Result<()> {
    let hex = Zeroizing::new(HEXLOWER.encode(key.expose_secret()));
    // SQLCipher would print to standard error what our errors say.
    let sql = Zeroizing::new(format!(
        "PRAGMA cipher_log_level = NONE; PRAGMA key = \"x'{}'\"",
        *hex
    ));
    conn.execute_batch(&sql)
}
