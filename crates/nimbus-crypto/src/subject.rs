//! Subjects: which file a key belongs to, its canonical descriptor, and the name of its key file.
//!
//! Must not know keys or disks: a subject is a name, checked once, that everything else is bound to.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use data_encoding::HEXLOWER;

use crate::cipher::Cipher;

/// Longest tenant id in characters. The rule is that of nimbus-core, repeated here because this
/// crate stands alone.
pub const MAX_TENANT_ID: usize = 128;
/// Longest file name in bytes that common file systems take.
pub const MAX_FILE_NAME: usize = 255;
/// Name of the control database.
pub const CONTROL_FILE: &str = "nimbus-control.db";
/// Ending of the files in a key directory.
pub const KEY_FILE_ENDING: &str = ".key";

const SQLITE_ENDING: &str = ".sqlite3";
const REDB_ENDING: &str = ".redb";
const SQLITE_PREFIX: &str = "db:sqlite:tenant:";
const REDB_PREFIX: &str = "db:redb:tenant:";
const CONTROL_DESCRIPTOR: &str = "db:redb:control:nimbus-control.db";
/// Stands where others have a file name.
const BACKUP_FILE: &str = "backup";
const BACKUP_DESCRIPTOR: &str = "artifact:backup";
const LIBSQL_PREFIX: &str = "db:libsql:cache:";

/// What is wrong with a subject, a descriptor or the key-file name that would follow from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// Not a tenant id.
    #[error(
        "a tenant id has 1 to {MAX_TENANT_ID} of A-Z a-z 0-9 _ - and does not start with _; this one has {length} characters{}",
        if *.length <= MAX_TENANT_ID { " and breaks that rule" } else { "" }
    )]
    Tenant {
        /// Its length in characters.
        length: usize,
    },
    /// Not the name of a libSQL cache file.
    #[error(
        "the name of a libSQL cache file is 1 to {MAX_TENANT_ID} of A-Z a-z 0-9 _ - followed by {SQLITE_ENDING}; this one has {length} characters"
    )]
    CacheFile {
        /// Its length in characters.
        length: usize,
    },
    /// A descriptor of no known form.
    #[error(
        "not a subject descriptor; one looks like db:sqlite:tenant:demo:demo.sqlite3, db:redb:tenant:demo:demo.redb, {CONTROL_DESCRIPTOR}, db:libsql:cache:demo:tenant.sqlite3 or {BACKUP_DESCRIPTOR}"
    )]
    Form,
    /// The file named in the descriptor is not the canonical one of its tenant.
    #[error("the descriptor names another file than the one of its tenant, which is {expected}")]
    File {
        /// The canonical file name.
        expected: String,
    },
    /// The key file of the subject would have a name that file systems refuse.
    #[error(
        "the key file of {subject} would have a name of {length} bytes, and a file name has at most {MAX_FILE_NAME}{}; use a shorter tenant id, or another key provider than key-dir",
        .tenant_limit.map(|limit| format!(": with key-dir such a tenant id has at most {limit} characters, and this one has {}", .tenant_length)).unwrap_or_default()
    )]
    KeyFileName {
        /// The descriptor of the subject.
        subject: String,
        /// Bytes that the name would have.
        length: usize,
        /// Characters of the tenant id.
        tenant_length: usize,
        /// Most characters that a tenant id may have for this kind of subject: 49 on sqlite, 52 on
        /// redb; `None` where the name does not follow from the tenant id alone.
        tenant_limit: Option<usize>,
    },
}

/// One protected file, by its role and not by its present path: a copy that is moved into place
/// keeps its subject.
///
/// ```
/// use nimbus_crypto::Subject;
///
/// let subject = Subject::sqlite_tenant("demo")?;
/// assert_eq!(subject.descriptor(), "db:sqlite:tenant:demo:demo.sqlite3");
/// assert_eq!("db:sqlite:tenant:demo:demo.sqlite3".parse::<Subject>()?, subject);
/// # Ok::<(), nimbus_crypto::SubjectError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    kind: SubjectKind,
    tenant: String,
    file: String,
    descriptor: String,
}

/// The kinds of protected files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SubjectKind {
    /// The SQLite file of a tenant.
    SqliteTenant,
    /// The redb file of a tenant.
    RedbTenant,
    /// The control database.
    Control,
    /// A local cache of a tenant whose primary is a libSQL server.
    LibsqlCache,
    /// A backup, which is one sealed stream.
    Backup,
}

impl Subject {
    /// The SQLite file of a tenant, `<tenant>.sqlite3`.
    ///
    /// # Errors
    /// [`SubjectError::Tenant`].
    pub fn sqlite_tenant(tenant: &str) -> Result<Self, SubjectError> {
        let file = format!("{tenant}{SQLITE_ENDING}");
        Self::of_tenant(SubjectKind::SqliteTenant, SQLITE_PREFIX, tenant, file)
    }

    /// The redb file of a tenant, `<tenant>.redb`.
    ///
    /// # Errors
    /// [`SubjectError::Tenant`].
    pub fn redb_tenant(tenant: &str) -> Result<Self, SubjectError> {
        let file = format!("{tenant}{REDB_ENDING}");
        Self::of_tenant(SubjectKind::RedbTenant, REDB_PREFIX, tenant, file)
    }

    /// The control database, [`CONTROL_FILE`].
    #[must_use]
    pub fn control() -> Self {
        Self {
            kind: SubjectKind::Control,
            tenant: String::new(),
            file: CONTROL_FILE.to_owned(),
            descriptor: CONTROL_DESCRIPTOR.to_owned(),
        }
    }

    /// A backup. All have this one subject, since a backup may be called anything and lie anywhere;
    /// their file ids tell them apart. In a key directory they share a key file.
    #[must_use]
    pub fn backup() -> Self {
        Self {
            kind: SubjectKind::Backup,
            tenant: String::new(),
            file: BACKUP_FILE.to_owned(),
            descriptor: BACKUP_DESCRIPTOR.to_owned(),
        }
    }

    /// The file `file` of a tenant's libSQL cache, such as `tenant.sqlite3`.
    ///
    /// # Errors
    /// [`SubjectError::Tenant`], [`SubjectError::CacheFile`].
    pub fn libsql_cache(tenant: &str, file: &str) -> Result<Self, SubjectError> {
        let stem = file.strip_suffix(SQLITE_ENDING).unwrap_or_default();
        if stem.is_empty() || stem.len() > MAX_TENANT_ID || !stem.bytes().all(is_word) {
            return Err(SubjectError::CacheFile {
                length: file.chars().count(),
            });
        }
        Self::of_tenant(
            SubjectKind::LibsqlCache,
            LIBSQL_PREFIX,
            tenant,
            file.to_owned(),
        )
    }

    fn of_tenant(
        kind: SubjectKind,
        prefix: &str,
        tenant: &str,
        file: String,
    ) -> Result<Self, SubjectError> {
        let odd = tenant.is_empty()
            || tenant.len() > MAX_TENANT_ID
            || tenant.starts_with('_')
            || !tenant.bytes().all(is_word);
        if odd {
            return Err(SubjectError::Tenant {
                length: tenant.chars().count(),
            });
        }
        Ok(Self {
            kind,
            tenant: tenant.to_owned(),
            descriptor: format!("{prefix}{tenant}:{file}"),
            file,
        })
    }

    /// The kind of file.
    #[must_use]
    pub fn kind(&self) -> SubjectKind {
        self.kind
    }

    /// The tenant that owns the file; `None` for the control database and for backups.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        (!self.tenant.is_empty()).then_some(&*self.tenant)
    }

    /// The canonical name of the file, without a directory; a backup has none and says `backup`.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The canonical text, which keys and manifests are bound to.
    #[must_use]
    pub fn descriptor(&self) -> &str {
        &self.descriptor
    }

    /// The cipher that files of this kind are encrypted with.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        match self.kind {
            SubjectKind::SqliteTenant | SubjectKind::LibsqlCache => Cipher::SqlCipher4,
            SubjectKind::RedbTenant | SubjectKind::Control => Cipher::Aes256GcmSivPages,
            SubjectKind::Backup => Cipher::XChaCha20Poly1305Stream,
        }
    }

    /// The name of the subject's file in a key directory: lower-case hexadecimal of the descriptor
    /// and [`KEY_FILE_ENDING`].
    ///
    /// # Errors
    /// [`SubjectError::KeyFileName`] when that is longer than [`MAX_FILE_NAME`], which with the
    /// canonical names means a tenant id of over 49 characters on sqlite and 52 on redb.
    pub fn key_file_name(&self) -> Result<String, SubjectError> {
        let name = format!(
            "{}{KEY_FILE_ENDING}",
            HEXLOWER.encode(self.descriptor.as_bytes())
        );
        if name.len() <= MAX_FILE_NAME {
            return Ok(name);
        }
        Err(SubjectError::KeyFileName {
            subject: self.descriptor.clone(),
            length: name.len(),
            tenant_length: self.tenant.len(),
            tenant_limit: self.tenant_limit(),
        })
    }

    /// The tenant id stands in the descriptor twice, and each of its characters takes two digits.
    fn tenant_limit(&self) -> Option<usize> {
        if !matches!(
            self.kind,
            SubjectKind::SqliteTenant | SubjectKind::RedbTenant
        ) {
            return None;
        }
        let room = (MAX_FILE_NAME - KEY_FILE_ENDING.len()) / 2;
        let fixed = self.descriptor.len() - 2 * self.tenant.len();
        Some(room.saturating_sub(fixed) / 2)
    }

    /// The command that an operator runs when the file at `file` is there in plain text and
    /// encryption is on; its path is quoted for a shell where that is needed.
    #[must_use]
    pub fn remedy(&self, file: &Path) -> String {
        let shown = file.to_string_lossy();
        let quoted = |ending: &str| shell_words::quote(&format!("{shown}{ending}")).into_owned();
        let migrate = |provider: &str, tenant: &str| {
            let source = quoted("");
            format!(
                "nimbus encryption migrate --source {source} --provider {provider}{tenant} --replace"
            )
        };
        let tenant = format!(" --tenant-id {}", self.tenant);
        match self.kind {
            SubjectKind::SqliteTenant => migrate("sqlite", &tenant),
            SubjectKind::RedbTenant => migrate("redb", &tenant),
            SubjectKind::Control => migrate("redb", ""),
            // A cache is not migrated; it is rebuilt from its primary (seed 003). What SQLite
            // keeps beside it is in plain text too.
            SubjectKind::LibsqlCache => {
                let [file, wal, shm] = ["", "-wal", "-shm"].map(quoted);
                format!("rm -f -- {file} {wal} {shm}")
            }
            // Nor is a backup: a new one is sealed.
            SubjectKind::Backup => "nimbus backup create".to_owned(),
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

impl FromStr for Subject {
    type Err = SubjectError;

    /// Takes the canonical text only.
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if text == CONTROL_DESCRIPTOR {
            return Ok(Self::control());
        }
        if text == BACKUP_DESCRIPTOR {
            return Ok(Self::backup());
        }
        let parts = |prefix| text.strip_prefix(prefix).and_then(|s| s.split_once(':'));
        let (subject, file) = if let Some((tenant, file)) = parts(SQLITE_PREFIX) {
            (Self::sqlite_tenant(tenant)?, file)
        } else if let Some((tenant, file)) = parts(REDB_PREFIX) {
            (Self::redb_tenant(tenant)?, file)
        } else if let Some((tenant, file)) = parts(LIBSQL_PREFIX) {
            (Self::libsql_cache(tenant, file)?, file)
        } else {
            return Err(SubjectError::Form);
        };
        if subject.file != file {
            return Err(SubjectError::File {
                expected: subject.file,
            });
        }
        Ok(subject)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.descriptor)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({})", self.descriptor)
    }
}

#[cfg(test)]
#[path = "subject_tests.rs"]
mod tests;
