//! A new data-encryption key for one file, and what a start or the next command does about a rotation
//! or a replacement that was interrupted.
//!
//! The caller holds the lock of the directory. While a file changes from one key to the other its
//! manifest has both, so that whatever a crash leaves can be opened; then the manifest is brought in
//! line with the file, never the other way round.

use std::path::{Path, PathBuf};

use nimbus_crypto::{Cipher, Manifest, Subject, SubjectKind, manifest_path};

use super::admin::{
    AdminError, AdminResult, finish_take_place, remove_sidecars, replacing, summed,
};
use super::copies::Copies;
use super::pending::{self, Keep};
use super::scan::each;
use super::steps::{present, remove, sync_dir_of};
use super::{Keyring, Progress, is_plain, protected, redb};
use crate::provider::sqlite::convert as sqlite;
use crate::provider::{ProviderError, ProviderResult};

/// Gives a file a new key and encrypts all of it again. Blocks. With `backup`, copies of file and
/// manifest are kept beside them until it has succeeded, and put back if it fails and neither key opens
/// the file.
///
/// # Errors
/// `Io` when a `.bak` of someone else is in the way; `Locked`, `KeyUnavailable`,
/// `Full`, `Io`. The file can be opened afterwards, with the one key or the other.
pub fn rotate_dek(
    path: &Path,
    subject: &Subject,
    backup: bool,
    keyring: &Keyring,
    progress: Progress<'_>,
) -> AdminResult<()> {
    if subject.kind() == SubjectKind::LibsqlCache {
        return Ok(rotate_cache(path, subject, keyring)?);
    }
    if !present(path)? {
        let path = path.to_owned();
        return Err(AdminError::NoSource { path });
    }
    if subject.cipher() != Cipher::SqlCipher4 {
        let mut progress = summed(progress);
        return Ok(redb::rotate_dek_redb(
            path,
            subject,
            keyring,
            !backup,
            &mut progress,
            &mut |_| Ok(()),
        )?);
    }
    recover_one(path, subject, keyring)?;
    let copies = Copies::of(path);
    let manifest = pending::read(path, subject)?;
    let keys = keyring.unlock(path, subject)?;
    if backup {
        copies.refuse_foreign(manifest.file_id())?;
        sqlite::settle_file(path, keys.current())?;
        copies.make(manifest.file_id())?;
    }
    let (old, new) = pending::begin(path, subject, keyring)?;
    match sqlite::rekey(path, old.current(), new.current()) {
        Ok(()) => settle(path, subject, keyring, (Keep::Pending, &copies))?,
        Err(error) => {
            // The file's own state decides, as after a crash.
            if let Err(second) = recover_one(path, subject, keyring) {
                tracing::error!(path = %path.display(), error = %second, "undoing a failed rotation");
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// A cache is not worth re-encrypting: its manifest gets a new key, its files go, and the next start
/// builds it again from the primary (seed 003).
fn rotate_cache(path: &Path, subject: &Subject, keyring: &Keyring) -> ProviderResult<()> {
    keyring.unlock(path, subject)?;
    remove(path)?;
    sqlite::sidecars(path)
        .iter()
        .try_for_each(|path| remove(path).map(drop))?;
    sync_dir_of(path)?;
    remove(&manifest_path(path))?;
    sync_dir_of(path)?;
    keyring.create(path, subject).map(drop)
}

/// The last step, when the whole file has the one key or the other.
fn settle(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
    (keep, copies): (Keep, &Copies),
) -> ProviderResult<()> {
    let manifest = pending::end(path, subject, keyring, keep)?;
    copies.remove(manifest.file_id()).map(drop)
}

/// What [`recover`] did about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovered {
    /// A rotation had changed the file: it was finished.
    Finished(PathBuf),
    /// A rotation had not changed the file: it was undone.
    Undone(PathBuf),
    /// A rotation of a redb file was finished or undone; or what one of any file left was removed.
    Settled(PathBuf),
    /// Neither key opened the file: it and its manifest were restored from the copies.
    Restored(PathBuf),
    /// An encrypted file took the place of the one in plain text.
    Replaced(PathBuf),
}

/// Finishes or undoes every rotation and replacement that was interrupted in these directories: what was
/// done, and one error for each file that could not be put in order. Blocks.
///
/// # Errors
/// `Io` when a directory cannot be listed.
pub fn recover(
    data_dir: &Path,
    control_dir: &Path,
    keyring: &Keyring,
) -> ProviderResult<(Vec<Recovered>, Vec<ProviderError>)> {
    let files = protected(data_dir, control_dir)?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for outcome in each(&files, |path, subject| recover_one(path, subject, keyring)) {
        match outcome {
            Ok(recovered) => done.extend(recovered),
            Err(e) => failed.push(e),
        }
    }
    Ok((done, failed))
}

/// The same for one file.
pub(super) fn recover_one(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
) -> ProviderResult<Option<Recovered>> {
    // Without a manifest nothing was begun; the scan says what else is wrong.
    let Ok(manifest) = Manifest::read(path, subject) else {
        return Ok(None);
    };
    if !present(path)? {
        return Ok(None);
    }
    if is_plain(path)? {
        return replacement(path, subject, keyring);
    }
    if subject.cipher() != Cipher::SqlCipher4 {
        let found = redb::recover_redb(path, subject, keyring)?;
        return Ok(found.then(|| Recovered::Settled(path.to_owned())));
    }
    let copies = Copies::of(path);
    if manifest.pending().is_none() {
        let left = copies.remove(manifest.file_id())?;
        return Ok(left.then(|| Recovered::Settled(path.to_owned())));
    }
    let keys = keyring.unlock(path, subject)?;
    let Some(new) = keys.pending() else {
        return Ok(None);
    };
    let place = path.to_owned();
    match (sqlite::fits(path, keys.current()), sqlite::fits(path, new)) {
        (Ok(()), _) => {
            settle(path, subject, keyring, (Keep::Current, &copies))?;
            Ok(Some(Recovered::Undone(place)))
        }
        (_, Ok(())) => {
            settle(path, subject, keyring, (Keep::Pending, &copies))?;
            Ok(Some(Recovered::Finished(place)))
        }
        (Err(ProviderError::Corrupt { .. }), Err(ProviderError::Corrupt { .. }))
            if copies.whole()? && copies.ours(manifest.file_id())? =>
        {
            remove_sidecars(path)?;
            copies.restore()?;
            Ok(Some(Recovered::Restored(place)))
        }
        (Err(e), _) => Err(e),
    }
}

/// A file in plain text that has a manifest: the last step of `migrate --replace` is missing if the
/// encrypted file is there without one.
fn replacement(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
) -> ProviderResult<Option<Recovered>> {
    let encrypted = replacing(path);
    if !present(&encrypted)? || present(&manifest_path(&encrypted))? {
        return Ok(None);
    }
    let keys = keyring.unlock(path, subject)?;
    match subject.cipher() {
        Cipher::SqlCipher4 => sqlite::fits(&encrypted, keys.current())?,
        _ => redb::check_redb(&encrypted, Some(&keys))?,
    }
    finish_take_place(&encrypted, path)?;
    Ok(Some(Recovered::Replaced(path.to_owned())))
}
