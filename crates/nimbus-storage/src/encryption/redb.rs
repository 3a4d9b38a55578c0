//! Files of redb changed as a whole, while nobody has them open: encrypted, decrypted, compared,
//! and given a new key.
//!
//! Page by page, below redb, so tenants and the control database are the same here. Must not know what the
//! pages say: redb checks the result. Everything is written under another name, synced, and
//! renamed.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;

use nimbus_crypto::{PAGE_BYTES, Subject};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::copies::Copies;
use super::pending::{self, Keep};
use super::steps::{PARTIAL, appended, remove, rename, sync_dir_of};
use super::{FileKey, Keyring};
use crate::pages::error::{corrupt, error};
use crate::pages::{Pages, REDB_MAGIC, checked, open_file_to_read, pages_of};
use crate::provider::{ProviderError, ProviderResult, files};

/// Told how many bytes of the database were done since the last call.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64);
/// Told each step of a rotation before it is made; an error stops there, as a crash would.
pub(crate) type Step<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

const PAGE: u64 = PAGE_BYTES as u64;
/// Pages that are copied or compared at once (1 MiB).
const RUN: usize = 256;
/// What is appended to a file for its re-encrypted version (seed 003: the staged file).
const ROTATING: &str = ".rotating";

/// Writes an encrypted copy of a file in plain text. `target` must not exist; its manifest, from which
/// `key` comes, does already. Blocks; durable when it returns.
///
/// # Errors
/// `Corrupt` if the source is no file of redb in plain text, `Busy` if it is open, `Full`, `Io`. There is
/// no target then.
pub(crate) fn encrypt_redb(
    source: &Path,
    target: &Path,
    key: &FileKey,
    progress: Progress<'_>,
) -> ProviderResult<()> {
    let from = Source::plain(source)?;
    publish_new(target, |file, partial| {
        let to = pages_of(partial, file, Some(key))?;
        copy(&from, &to, (source, partial), progress)
    })
}

/// Writes a copy in plain text of an encrypted file. `target` must not exist. The copy is checked
/// as redb checks a database, every page that it uses. Blocks; durable when it returns.
///
/// # Errors
/// As [`encrypt_redb`]; `Corrupt` too if a page does not authenticate.
pub(crate) fn decrypt_redb(
    source: &Path,
    key: &FileKey,
    target: &Path,
    progress: Progress<'_>,
) -> ProviderResult<()> {
    let from = Source::encrypted(source, key)?;
    publish_new(target, |file, partial| {
        let to = pages_of(partial, file, None)?;
        copy(&from, &to, (source, partial), progress)?;
        // A page that was never written is zeros here, and no longer an error: so redb looks.
        check_redb(partial, None)
    })
}

/// Compares a file in plain text with its encrypted copy, every page, and checks the copy as redb
/// checks a database. Neither is changed. Blocks.
///
/// # Errors
/// `Corrupt`, naming the copy, if they differ or the copy is damaged; `Busy`, `Io`.
pub(crate) fn verify_redb(
    plain: &Path,
    encrypted: &Path,
    key: &FileKey,
    progress: Progress<'_>,
) -> ProviderResult<()> {
    let one = Source::plain(plain)?;
    let two = Source::encrypted(encrypted, key)?;
    if one.len != two.len {
        let text = format!("it has {} bytes, and the source has {}", two.len, one.len);
        return Err(corrupt(encrypted, text));
    }
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for first in (0..one.pages()).step_by(RUN) {
        one.read_run(first, &mut expected)
            .map_err(|e| failed("reading", plain, e))?;
        two.read_run(first, &mut found)
            .map_err(|e| failed("reading", encrypted, e))?;
        if let Some(at) = expected.iter().zip(&found).position(|(a, b)| a != b) {
            let text = format!("byte {} differs from the source", first * PAGE + at as u64);
            return Err(corrupt(encrypted, text));
        }
        progress(expected.len() as u64);
    }
    check_redb(encrypted, Some(key))
}

/// Opens a database with every check that redb has, without changing it. Blocks.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(crate) fn check_redb(path: &Path, key: Option<&FileKey>) -> ProviderResult<()> {
    checked(path, key, |_| Ok(()))
}

/// Gives a file a new data-encryption key: every page is written anew, under fresh nonces, into a
/// staged file `<file>.rotating` that then takes the place of the database. Unless `skip_backup`, the
/// database and its manifest are kept as `<file>.bak` and `<file>.nimbus-enc.bak` until that succeeded.
/// Interrupted anywhere, the file opens under the old or the new key, and [`recover_redb`] or the next rotation
/// cleans up. An earlier one that was interrupted is recovered first. Blocks.
///
/// # Errors
/// `Locked`, `KeyUnavailable`, `Corrupt`, `Busy` if the file is open, `Full`, `Io`. What was begun is undone
/// or finished then; where that fails too, [`recover_redb`] does it later, and the file opens meanwhile.
pub(crate) fn rotate_dek_redb(
    file: &Path,
    subject: &Subject,
    keyring: &Keyring,
    skip_backup: bool,
    progress: Progress<'_>,
    step: Step<'_>,
) -> ProviderResult<()> {
    recover_redb(file, subject, keyring)?;
    let rotation = Rotation {
        file,
        subject,
        keyring,
    };
    match rotation.run(skip_backup, progress, step) {
        Ok(()) => Ok(()),
        Err(Halt::Stopped(e)) => Err(e),
        Err(Halt::Failed(e)) => {
            if let Err(second) = recover_redb(file, subject, keyring) {
                let path = file.display();
                tracing::warn!(%path, error = %second, "undoing a failed rotation is left to the next one, or to the next start");
            }
            Err(e)
        }
    }
}

/// Finishes or undoes a rotation that was interrupted; true if there was one. Blocks.
///
/// # Errors
/// As [`rotate_dek_redb`].
pub(crate) fn recover_redb(
    file: &Path,
    subject: &Subject,
    keyring: &Keyring,
) -> ProviderResult<bool> {
    let rotation = Rotation {
        file,
        subject,
        keyring,
    };
    let manifest = pending::read(file, subject)?;
    let interrupted = manifest.pending().is_some();
    if interrupted {
        rotation.settle()?;
    }
    let staged = remove(&appended(file, ROTATING))?;
    let copies = Copies::of(file).remove(manifest.file_id())?;
    Ok(interrupted | staged | copies)
}

/// A rotation of one file.
struct Rotation<'a> {
    file: &'a Path,
    subject: &'a Subject,
    keyring: &'a Keyring,
}

/// Why a rotation ended early.
enum Halt {
    /// By whoever watches the steps.
    Stopped(ProviderError),
    Failed(ProviderError),
}

impl From<ProviderError> for Halt {
    fn from(e: ProviderError) -> Halt {
        Halt::Failed(e)
    }
}

impl Rotation<'_> {
    fn run(&self, skip_backup: bool, progress: Progress<'_>, step: Step<'_>) -> Result<(), Halt> {
        let mut step = |name: &str| {
            let what = || format!("rotation of {} stopped before {name}", self.file.display());
            step(name).map_err(|e| Halt::Stopped(ProviderError::io(what(), e)))
        };
        let key = self.keyring.unlock(self.file, self.subject)?;
        let from = Source::encrypted(self.file, &key)?;
        let copies = Copies::of(self.file);
        if !skip_backup {
            step("the backup")?;
            copies.refuse_foreign(key.file_id())?;
            copies.make(key.file_id())?;
        }
        step("the pending key")?;
        let (_, new) = pending::begin(self.file, self.subject, self.keyring)?;
        step("the staged file")?;
        let staged = appended(self.file, ROTATING);
        let to = pages_of(&staged, created(&staged)?, Some(&new))?;
        copy(&from, &to, (self.file, &staged), progress)?;
        drop(to);
        step("the check of the staged file")?;
        check_redb(&staged, Some(&new))?;
        step("the new database")?;
        drop(from);
        rename(&staged, self.file)?;
        step("the end of the rotation")?;
        self.settle()?;
        step("the removal of the backup")?;
        copies.remove(key.file_id())?;
        Ok(())
    }

    /// Leaves the manifest with the one key that the file has.
    fn settle(&self) -> ProviderResult<()> {
        let key = self.keyring.unlock(self.file, self.subject)?;
        let fits = Source::encrypted(self.file, &key)?.fits(self.file)?;
        // The name must be durable before the manifest says so.
        sync_dir_of(self.file)?;
        let keep = match fits {
            0 => Keep::Current,
            _ => Keep::Pending,
        };
        pending::end(self.file, self.subject, self.keyring, keep).map(drop)
    }
}

/// A file to read all pages of. Locked against redb.
struct Source {
    pages: Pages<FileBackend>,
    len: u64,
}

impl Source {
    fn plain(path: &Path) -> ProviderResult<Source> {
        let source = Source::open(path, None)?;
        let mut magic = [0; REDB_MAGIC.len()];
        source
            .pages
            .read(0, &mut magic)
            .map_err(|e| failed("reading", path, e))?;
        if magic != *REDB_MAGIC || !source.len.is_multiple_of(PAGE) {
            return Err(corrupt(path, "it is no redb file in plain text"));
        }
        Ok(source)
    }

    fn encrypted(path: &Path, key: &FileKey) -> ProviderResult<Source> {
        let source = Source::open(path, Some(key))?;
        source.fits(path)?;
        Ok(source)
    }

    fn open(path: &Path, key: Option<&FileKey>) -> ProviderResult<Source> {
        let pages = pages_of(path, open_file_to_read(path)?, key)?;
        if let Ok(false) = pages.try_lock_shared_range(Bound::Unbounded, Bound::Unbounded) {
            let what = format!("another process has {} open", path.display());
            return Err(ProviderError::Busy { what });
        }
        let len = pages.len().map_err(|e| failed("reading", path, e))?;
        Ok(Source { pages, len })
    }

    /// 0 for the current key, 1 for the pending one.
    fn fits(&self, path: &Path) -> ProviderResult<usize> {
        match &self.pages {
            Pages::Plain(_) => Ok(0),
            Pages::Encrypted(pages) => pages.fits().map_err(|e| failed("reading", path, e)),
        }
    }

    fn pages(&self) -> u64 {
        self.len / PAGE
    }

    /// Reads up to [`RUN`] pages; those never written are zeros.
    fn read_run(&self, first: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let count = (RUN as u64).min(self.pages() - first);
        out.clear();
        out.resize(usize::try_from(count * PAGE).unwrap_or(0), 0);
        if self.pages.read(first * PAGE, out).is_ok() {
            return Ok(());
        }
        for (page, out) in (first..).zip(out.chunks_exact_mut(PAGE_BYTES)) {
            if self.is_hole(page)? {
                out.fill(0);
            } else {
                self.pages.read(page * PAGE, out)?;
            }
        }
        Ok(())
    }

    fn is_hole(&self, page: u64) -> io::Result<bool> {
        match &self.pages {
            Pages::Encrypted(pages) if page > 0 => pages.is_hole(page),
            _ => Ok(false),
        }
    }
}

/// Copies every page, and makes them durable. Pages never written stay so.
fn copy(
    from: &Source,
    to: &Pages<FileBackend>,
    (source, target): (&Path, &Path),
    progress: Progress<'_>,
) -> ProviderResult<()> {
    let writing = |e| failed("writing", target, e);
    to.set_len(from.len).map_err(writing)?;
    let mut run = Vec::new();
    for first in (0..from.pages()).step_by(RUN) {
        from.read_run(first, &mut run)
            .map_err(|e| failed("reading", source, e))?;
        if run.chunks_exact(PAGE_BYTES).all(is_written) {
            to.write(first * PAGE, &run).map_err(writing)?;
        } else {
            for (page, plain) in (first..).zip(run.chunks_exact(PAGE_BYTES)) {
                if is_written(plain)
                    || !from
                        .is_hole(page)
                        .map_err(|e| failed("reading", source, e))?
                {
                    to.write(page * PAGE, plain).map_err(writing)?;
                }
            }
        }
        progress(run.len() as u64);
    }
    to.sync_data().and_then(|()| to.close()).map_err(writing)
}

/// That it is not all zeros, as a page never written is read.
fn is_written(page: &[u8]) -> bool {
    page.iter().any(|byte| *byte != 0)
}

/// Makes a file under another name, and gives it its own once it is whole and durable.
fn publish_new(
    target: &Path,
    fill: impl FnOnce(File, &Path) -> ProviderResult<()>,
) -> ProviderResult<()> {
    let there = files::inspect(target).map_err(|e| files::error("looking at", target, e))?;
    if there != files::Entry::Absent {
        let what = format!("writing {}", target.display());
        return Err(ProviderError::io(what, "it exists already"));
    }
    let partial = appended(target, PARTIAL);
    let made = created(&partial)
        .and_then(|file| {
            let kept = file
                .try_clone()
                .map_err(|e| files::error("creating", &partial, e))?;
            fill(file, &partial)?;
            kept.sync_all()
                .map_err(|e| files::error("syncing", &partial, e))
        })
        .and_then(|()| rename(&partial, target));
    if made.is_err() {
        let _ = files::remove_if_exists(&partial);
    }
    made
}

/// A new file, in the place of one that was left over.
fn created(path: &Path) -> ProviderResult<File> {
    remove(path)?;
    files::create_new(path).map_err(|e| files::error("creating", path, e))
}

fn failed(doing: &str, path: &Path, e: io::Error) -> ProviderError {
    error(doing, path, redb::Error::Io(e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "redb_tests.rs"]
mod tests;
