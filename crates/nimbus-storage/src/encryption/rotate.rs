//! A new data-encryption key for one file, and what a start or the next command does about a rotation
//! or a replacement that was interrupted.
//!
//! The caller holds the lock of the directory. While a file changes from one key to the other its
//! manifest has both, so that whatever a crash leaves can be opened; then the manifest is brought in
//! line with the file, never the other way round.

use std::path::{Path, PathBuf};

use nimbus_crypto::{Cipher, Dek, Manifest, Subject, SubjectKind, manifest_path};

use super::admin::{
    AdminError, AdminResult, finish_take_place, present, remove, rename, replacing, summed,
    sync_dir_of,
};
use super::{Keyring, Progress, is_plain, protected, redb};
use crate::provider::sqlite::convert as sqlite;
use crate::provider::{ProviderError, ProviderResult, files};

/// What is appended to the names of copies that are kept until a rotation has succeeded (seed 003).
const BACKUP_ENDING: &str = ".bak";

/// Gives a file a new key and encrypts all of it again. Blocks. With `backup`, copies of file and
/// manifest are kept beside them until it has succeeded, and put back if it fails and neither key opens
/// the file.
///
/// # Errors
/// [`AdminError::Exists`] when a `.bak` of someone else is in the way; `Locked`, `KeyUnavailable`,
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
    let manifest = read(path, subject)?;
    copies.refuse_foreign(&manifest, subject)?;
    let keys = keyring.unlock(path, subject)?;
    if backup {
        sqlite::settle_file(path, keys.current())?;
        copies.make(path)?;
    }
    let (old, new) = begin(path, subject, keyring)?;
    match sqlite::rekey(path, &old, &new) {
        Ok(()) => settle(path, subject, keyring, &copies)?,
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
        .try_for_each(|path| remove(path))?;
    sync_dir_of(path)?;
    remove(&manifest_path(path))?;
    sync_dir_of(path)?;
    keyring.create(path, subject).map(drop)
}

/// Writes a manifest with a pending key beside the current one; both keys.
fn begin(path: &Path, subject: &Subject, keyring: &Keyring) -> ProviderResult<(Dek, Dek)> {
    let manifest = read(path, subject)?;
    let wanted = subject.clone();
    let (next, keys) = keyring.ask(path, move |provider| {
        Box::pin(async move { manifest.begin_rotation(&*provider, &wanted).await })
    })?;
    replace(&next, path)?;
    let pending = keys.pending.ok_or_else(|| {
        ProviderError::io(
            format!("rotating the key of {}", path.display()),
            "no new key",
        )
    })?;
    Ok((keys.current, pending))
}

/// The last steps, when the whole file has the pending key.
fn settle(
    path: &Path,
    subject: &Subject,
    keyring: &Keyring,
    copies: &Copies,
) -> ProviderResult<()> {
    let manifest = read(path, subject)?;
    let wanted = subject.clone();
    let next = keyring.ask(path, move |provider| {
        Box::pin(async move { manifest.finish_rotation(&*provider, &wanted).await })
    })?;
    replace(&next, path)?;
    copies.remove()
}

/// The way back, when the file has the current key still.
fn undo(path: &Path, subject: &Subject, keyring: &Keyring, copies: &Copies) -> ProviderResult<()> {
    let manifest = read(path, subject)?;
    let wanted = subject.clone();
    let next = keyring.ask(path, move |provider| {
        Box::pin(async move { manifest.abandon_rotation(&*provider, &wanted).await })
    })?;
    replace(&next, path)?;
    copies.remove()
}

fn read(path: &Path, subject: &Subject) -> ProviderResult<Manifest> {
    Manifest::read(path, subject).map_err(|e| ProviderError::locked(path, e))
}

fn replace(manifest: &Manifest, path: &Path) -> ProviderResult<()> {
    manifest
        .replace(path)
        .map_err(|e| ProviderError::locked(path, e))
}

/// What [`recover`] did about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovered {
    /// A rotation had changed the file: it was finished.
    Finished(PathBuf),
    /// A rotation had not changed the file: it was undone.
    Undone(PathBuf),
    /// A rotation of a redb file was finished or undone, or what it left was removed.
    Settled(PathBuf),
    /// Neither key opened the file: it and its manifest were restored from the copies.
    Restored(PathBuf),
    /// An encrypted file took the place of the one in plain text.
    Replaced(PathBuf),
}

/// Finishes or undoes every rotation and replacement that was interrupted in these directories. Blocks.
///
/// # Errors
/// `Locked`, `KeyUnavailable`, `Corrupt` when a file opens with no key and has no copy; `Io`, `Full`.
pub fn recover(
    data_dir: &Path,
    control_dir: &Path,
    keyring: &Keyring,
) -> ProviderResult<Vec<Recovered>> {
    let mut done = Vec::new();
    for (path, subject) in protected(data_dir, control_dir)? {
        done.extend(recover_one(&path, &subject, keyring)?);
    }
    Ok(done)
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
        if copies.present()? && copies.ours(&manifest, subject) {
            keyring.unlock(path, subject)?;
            copies.remove()?;
        }
        return Ok(None);
    }
    let keys = keyring.unlock(path, subject)?;
    let Some(pending) = keys.pending() else {
        return Ok(None);
    };
    let place = path.to_owned();
    match (
        sqlite::fits(path, keys.current()),
        sqlite::fits(path, pending),
    ) {
        (Ok(()), _) => {
            undo(path, subject, keyring, &copies)?;
            Ok(Some(Recovered::Undone(place)))
        }
        (_, Ok(())) => {
            settle(path, subject, keyring, &copies)?;
            Ok(Some(Recovered::Finished(place)))
        }
        (Err(ProviderError::Corrupt { .. }), Err(ProviderError::Corrupt { .. }))
            if copies.present()? && copies.ours(&manifest, subject) =>
        {
            copies.restore(path)?;
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

/// The copies of a file and its manifest.
struct Copies {
    file: PathBuf,
}

impl Copies {
    fn of(path: &Path) -> Copies {
        let mut name = path.as_os_str().to_owned();
        name.push(BACKUP_ENDING);
        Copies { file: name.into() }
    }

    fn present(&self) -> ProviderResult<bool> {
        Ok(present(&self.file)? || present(&manifest_path(&self.file))?)
    }

    /// Whether they were made of this very file by an earlier rotation.
    fn ours(&self, manifest: &Manifest, subject: &Subject) -> bool {
        Manifest::read(&self.file, subject).is_ok_and(|copy| {
            copy.subject() == manifest.subject() && copy.file_id() == manifest.file_id()
        })
    }

    fn refuse_foreign(&self, manifest: &Manifest, subject: &Subject) -> AdminResult<()> {
        if self.present()? && !self.ours(manifest, subject) {
            let path = self.file.clone();
            return Err(AdminError::Exists { path });
        }
        Ok(())
    }

    /// The manifest last: only with it is the copy one of ours.
    fn make(&self, path: &Path) -> ProviderResult<()> {
        self.remove()?;
        copy_durably(path, &self.file)?;
        copy_durably(&manifest_path(path), &manifest_path(&self.file))
    }

    /// The manifest, which has both keys, last.
    fn restore(&self, path: &Path) -> ProviderResult<()> {
        sqlite::sidecars(path)
            .iter()
            .try_for_each(|path| remove(path))?;
        rename(&self.file, path)?;
        rename(&manifest_path(&self.file), &manifest_path(path))
    }

    /// The manifest last, so that an interruption leaves copies that are known as ours.
    fn remove(&self) -> ProviderResult<()> {
        remove(&self.file)?;
        remove(&manifest_path(&self.file))?;
        sync_dir_of(&self.file)
    }
}

/// Copies a file under a temporary name, syncs it and renames it.
fn copy_durably(from: &Path, to: &Path) -> ProviderResult<()> {
    let mut temp = to.as_os_str().to_owned();
    temp.push(".tmp");
    let temp = PathBuf::from(temp);
    remove(&temp)?;
    let copied = files::open_read_only(from).and_then(|mut from| {
        let mut file = files::create_new(&temp)?;
        std::io::copy(&mut from, &mut file)?;
        file.sync_all()
    });
    copied.map_err(|e| files::error("copying to", to, e))?;
    rename(&temp, to)
}
