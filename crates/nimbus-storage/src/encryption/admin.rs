//! What `nimbus encryption migrate`, `export` and `rotate-dek` do to one file: the order in which
//! copies, manifests and names change, so that a crash at any point loses nothing.
//!
//! The caller holds the lock of the directory. Must not know how a file is converted: SQLite and redb
//! have rooms of their own.

use std::path::{Path, PathBuf};

use nimbus_crypto::{Cipher, Subject, SubjectKind, manifest_path};

use super::rotate::recover_one;
use super::steps::{PARTIAL, appended, look, present, remove, rename, sync_dir_of};
use super::{Keyring, Progress, is_plain, redb};
use crate::provider::files::Entry;
use crate::provider::sqlite::convert as sqlite;
use crate::provider::{ProviderError, ProviderResult};

/// What is appended to the name of a source by default (seed 003).
const ENCRYPTED_ENDING: &str = ".encrypted";
/// What is appended to the name of a file that is to be replaced.
const REPLACING_ENDING: &str = ".replacing";

/// Why a file was not converted. Nothing was changed then, unless it is said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is something at the target's name, or at its manifest's.
    #[error("{} exists already; name another target, or move it away", .path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },
    /// There is no source.
    #[error("there is no file {}", .path.display())]
    NoSource {
        /// The source.
        path: PathBuf,
    },
    /// The source is encrypted already.
    #[error("{} is not in plain text{}", .path.display(), if *.manifest { ": it has a manifest" } else { " and has no manifest; is it a file of the provider that was named?" })]
    NotPlain {
        /// The source.
        path: PathBuf,
        /// Whether there is a manifest.
        manifest: bool,
    },
    /// The file is not the one that the tenant's data is in.
    #[error("{} is not the file of that tenant, which is called {expected}: name the tenant that owns it, or leave --replace out", .path.display())]
    WrongName {
        /// The source.
        path: PathBuf,
        /// The canonical name.
        expected: String,
    },
    /// Source and target are one file.
    #[error("source and target are one file: {}", .path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// A libSQL cache is neither migrated nor exported (seed 003).
    #[error(
        "a libSQL replica cache is not {action}: it is rebuilt from the remote primary when the server starts with the new settings"
    )]
    Cache {
        /// `migrated` or `exported`.
        action: &'static str,
    },
    /// Storage or the key failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Result of a conversion.
pub type AdminResult<T> = Result<T, AdminError>;

/// What [`migrate`] is to do.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The file in plain text.
    pub source: PathBuf,
    /// Where the encrypted one goes; the source's name and `.encrypted` (seed 003) unless given. Not used with `replace`.
    pub target: Option<PathBuf>,
    /// Which file it is, in its place.
    pub subject: Subject,
    /// Compare both when the copy is made.
    pub validate: bool,
    /// Delete the source and what SQLite keeps beside it, at the end.
    pub retire_source: bool,
    /// Put the encrypted file into the place of the source.
    pub replace: bool,
}

/// The source's name and [`ENCRYPTED_ENDING`].
fn default_target(source: &Path) -> PathBuf {
    appended(source, ENCRYPTED_ENDING)
}

/// Where the encrypted version of a file is until it takes its place.
pub(super) fn replacing(place: &Path) -> PathBuf {
    appended(place, REPLACING_ENDING)
}

/// Converts a file in plain text into an encrypted one with a manifest. Blocks. `progress` is given
/// bytes written.
///
/// # Errors
/// [`AdminError`]; the source is as it was, but for its write-ahead log, which was moved into it.
pub fn migrate(job: &Migration, keyring: &Keyring, progress: Progress<'_>) -> AdminResult<PathBuf> {
    check_family(&job.subject, "migrated")?;
    check_source(&job.source)?;
    if job.replace && job.source.file_name() != Some(job.subject.file().as_ref()) {
        return Err(AdminError::WrongName {
            path: job.source.clone(),
            expected: job.subject.file().to_owned(),
        });
    }
    recover_one(&job.source, &job.subject, keyring)?;
    let target = match (&job.target, job.replace) {
        (_, true) => replacing(&job.source),
        (Some(target), _) => target.clone(),
        (None, _) => default_target(&job.source),
    };
    if !is_plain(&job.source)? {
        let manifest = present(&manifest_path(&job.source))?;
        let path = job.source.clone();
        return Err(AdminError::NotPlain { path, manifest });
    }
    if job.replace {
        // The name is ours alone: what has it was left by an interrupted run.
        clear(&target)?;
    }
    // It may be all that is left to open an encrypted file that was moved away.
    let manifest = manifest_path(&job.source);
    if present(&manifest)? {
        return Err(AdminError::Exists { path: manifest });
    }
    check_target(&job.source, &target)?;
    let partial = appended(&target, PARTIAL);
    clear(&partial)?;
    let made = make_encrypted(job, keyring, &partial, progress);
    made.inspect_err(|_| discard(&partial))?;
    // The manifest first: a file without one would be taken for lost.
    rename(&manifest_path(&partial), &manifest_path(&target))?;
    rename(&partial, &target)?;
    if job.replace {
        take_place(&target, &job.source)?;
        return Ok(job.source.clone());
    }
    if job.retire_source {
        retire(&job.source, &job.subject)?;
    }
    Ok(target)
}

fn make_encrypted(
    job: &Migration,
    keyring: &Keyring,
    partial: &Path,
    progress: Progress<'_>,
) -> AdminResult<()> {
    let key = keyring.create(partial, &job.subject)?;
    let dek = key.current();
    match job.subject.cipher() {
        Cipher::SqlCipher4 => {
            sqlite::copy(&job.source, None, partial, Some(dek), progress)?;
            if job.validate {
                sqlite::compare((&job.source, None), (partial, Some(dek)))?;
            }
        }
        _ => {
            redb::encrypt_redb(&job.source, partial, &key, &mut summed(progress))?;
            if job.validate {
                redb::verify_redb(&job.source, partial, &key, &mut |_| ())?;
            }
        }
    }
    Ok(())
}

/// From what was done since the last call to what is done in all.
pub(super) fn summed(progress: Progress<'_>) -> impl FnMut(u64) {
    let mut done = 0;
    move |more| {
        done += more;
        progress(done);
    }
}

/// Puts an encrypted file and its manifest into the place of one in plain text. The manifest goes
/// first: a start that finds the file in plain text beside it, and the encrypted file without one,
/// knows that only the last step is missing (see [`super::recover`]).
fn take_place(encrypted: &Path, place: &Path) -> AdminResult<()> {
    rename(&manifest_path(encrypted), &manifest_path(place))?;
    Ok(finish_take_place(encrypted, place)?)
}

/// The last step of it.
pub(super) fn finish_take_place(encrypted: &Path, place: &Path) -> ProviderResult<()> {
    // What lies in a log of the file in plain text was moved into it before it was copied.
    remove_sidecars(place)?;
    rename(encrypted, place)
}

/// Deletes a file in plain text that was migrated, with what SQLite keeps beside it.
fn retire(source: &Path, subject: &Subject) -> AdminResult<()> {
    remove(source)?;
    if subject.cipher() == Cipher::SqlCipher4 {
        remove_sidecars(source)?;
    }
    Ok(sync_dir_of(source)?)
}

/// What [`export`] is to do.
#[derive(Clone, Debug)]
pub struct PlainExport {
    /// The encrypted file.
    pub source: PathBuf,
    /// Where the one in plain text goes.
    pub target: PathBuf,
    /// Which file it is.
    pub subject: Subject,
}

/// Converts an encrypted file into one in plain text. Blocks. `progress` is given bytes written.
///
/// # Errors
/// [`AdminError`]; the source is as it was, but for its write-ahead log, which was moved into it.
pub fn export(job: &PlainExport, keyring: &Keyring, progress: Progress<'_>) -> AdminResult<()> {
    check_family(&job.subject, "exported")?;
    check_source(&job.source)?;
    let key = keyring.unlock(&job.source, &job.subject)?;
    check_target(&job.source, &job.target)?;
    let partial = appended(&job.target, PARTIAL);
    clear(&partial)?;
    let made = match job.subject.cipher() {
        Cipher::SqlCipher4 => sqlite::fitting(&job.source, &key).and_then(|dek| {
            sqlite::copy(&job.source, Some(&dek), &partial, None, progress)?;
            sqlite::compare((&job.source, Some(&dek)), (&partial, None))
        }),
        _ => redb::decrypt_redb(&job.source, &key, &partial, &mut summed(progress)),
    };
    made.inspect_err(|_| discard(&partial))?;
    Ok(rename(&partial, &job.target)?)
}

/// Whether files of this kind are converted at all; `action` is `migrated` or `exported`.
///
/// # Errors
/// [`AdminError::Cache`].
fn check_family(subject: &Subject, action: &'static str) -> AdminResult<()> {
    match subject.kind() {
        SubjectKind::LibsqlCache => Err(AdminError::Cache { action }),
        _ => Ok(()),
    }
}

fn check_source(source: &Path) -> AdminResult<()> {
    match look(source)? {
        Entry::Regular { .. } => Ok(()),
        Entry::Absent => Err(AdminError::NoSource {
            path: source.to_owned(),
        }),
        Entry::Other => Err(AdminError::Provider(ProviderError::Corrupt {
            what: source.display().to_string(),
            reason: "it is not a regular file; links are not followed".to_owned(),
        })),
    }
}

/// Neither the target nor anything that would be taken for a part of it is there.
fn check_target(source: &Path, target: &Path) -> AdminResult<()> {
    if source == target {
        return Err(AdminError::SameFile {
            path: source.to_owned(),
        });
    }
    // A manifest whose file was still being made is that of an interrupted run.
    let partial = appended(target, PARTIAL);
    if !present(target)? && present(&partial)? && !present(&manifest_path(&partial))? {
        remove(&manifest_path(target))?;
    }
    let beside = sqlite::sidecars(target);
    let all = [target.to_owned(), manifest_path(target)];
    for path in all.into_iter().chain(beside) {
        if present(&path)? {
            return Err(AdminError::Exists { path });
        }
    }
    Ok(())
}

/// Removes what an interrupted run left.
fn clear(partial: &Path) -> ProviderResult<()> {
    remove(partial)?;
    remove_sidecars(partial)?;
    remove(&manifest_path(partial)).map(drop)
}

fn discard(partial: &Path) {
    if let Err(error) = clear(partial) {
        tracing::warn!(path = %partial.display(), %error, "an unfinished copy was left; the next run removes it");
    }
}

pub(super) fn remove_sidecars(path: &Path) -> ProviderResult<()> {
    sqlite::sidecars(path)
        .iter()
        .try_for_each(|path| remove(path).map(drop))
}
