//! Encrypted pages below redb: a storage backend of logical pages of 4,096 bytes over another one.
//!
//! Physically: two copies of page 0 ([`zero`]), then a slot for each further page. Everything that is
//! read is authenticated. Must not know what redb keeps in its pages, nor where keys come from. It relies on
//! a sector of 512 bytes that is being written when the power fails holding its old or its new bytes,
//! since slots share sectors.

pub(crate) mod error;
mod file;
mod scratch;
mod zero;

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nimbus_crypto::{COPY_BYTES, PAGE_BYTES, PageCipher, PageError, SLOT_BYTES};
use redb::{BackendError, StorageBackend};

use crate::encryption::FileKey;
pub(crate) use file::{Pages, Stop, Stoppable, checked, open_file, open_file_to_read, pages_of};
pub(crate) use scratch::Scratch;
use zero::Zero;

const PAGE: u64 = PAGE_BYTES as u64;
const SLOT: u64 = SLOT_BYTES as u64;
/// Where the slot of page 1 begins.
const SLOTS_BEGIN: u64 = 2 * COPY_BYTES as u64;
/// Most pages that are encrypted or decrypted with one call of the system (4 MiB).
const MAX_RUN: usize = 1024;
/// How a file of redb in plain text begins.
pub(crate) const REDB_MAGIC: &[u8; 9] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// The encrypted pages of one file.
pub(crate) struct EncryptedPages<B> {
    inner: B,
    /// The current key's, and the pending one's of a rotation that was interrupted.
    ciphers: Vec<PageCipher>,
    /// Which of them page 0 authenticates under.
    chosen: OnceLock<usize>,
    zero: Mutex<Option<Zero>>,
    /// Whether the newest page 0 that was found is known to be durable.
    settled: AtomicBool,
    /// Set by a failed sync: what is on disk is not known any more.
    failed: AtomicBool,
}

impl<B: StorageBackend> EncryptedPages<B> {
    /// Over a file that is there or empty. Nothing is read yet: redb locks the file first.
    pub(crate) fn new(inner: B, key: &FileKey) -> EncryptedPages<B> {
        let deks = std::iter::once(key.current()).chain(key.pending());
        let ciphers = deks.map(|dek| PageCipher::new(dek, key.file_id()));
        EncryptedPages::with(inner, ciphers.collect())
    }

    /// As [`EncryptedPages::new`], with these ciphers: the first one is for a file that is empty.
    pub(crate) fn with(inner: B, ciphers: Vec<PageCipher>) -> EncryptedPages<B> {
        EncryptedPages {
            inner,
            ciphers,
            chosen: OnceLock::new(),
            zero: Mutex::new(None),
            settled: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// Which of the ciphers fits the file: 0 for the current key, 1 for the pending one.
    pub(crate) fn fits(&self) -> io::Result<usize> {
        drop(self.loaded()?);
        self.chosen.get().copied().ok_or_else(no_cipher)
    }

    /// Whether a page other than page 0 was never written: its slot is all zeros.
    pub(crate) fn is_hole(&self, page: u64) -> io::Result<bool> {
        let mut slot = [0; SLOT_BYTES];
        self.inner.read(slot_at(page), &mut slot)?;
        Ok(slot.iter().all(|byte| *byte == 0))
    }

    /// Page 0 and its copies, read from the file at first.
    fn loaded(&self) -> io::Result<MutexGuard<'_, Option<Zero>>> {
        let mut guard = self.zero.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            let (zero, cipher) = match self.inner.len()? {
                0 => (Zero::new(), 0),
                _ => Zero::read(&self.inner, &self.ciphers)?,
            };
            self.settled.store(zero.is_settled(), Ordering::Release);
            // Loading happens once, under the lock.
            let _ = self.chosen.set(cipher);
            *guard = Some(zero);
        }
        Ok(guard)
    }

    fn cipher(&self) -> io::Result<&PageCipher> {
        if self.chosen.get().is_none() {
            drop(self.loaded()?);
        }
        let chosen = self.chosen.get();
        chosen
            .and_then(|at| self.ciphers.get(*at))
            .ok_or_else(no_cipher)
    }

    /// Before anything is changed: makes the page 0 that was found durable. Everything that is
    /// written from here on assumes that no crash brings back the one before.
    fn prepare_write(&self) -> io::Result<()> {
        self.check_failed()?;
        if self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut guard = self.loaded()?;
        if let Some(zero) = guard.as_mut() {
            let settled = zero.settle(&self.inner);
            settled.inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        }
        self.settled.store(true, Ordering::Release);
        Ok(())
    }

    fn check_failed(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        Ok(())
    }

    fn read_zero(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        let guard = self.loaded()?;
        let zero = guard.as_ref().ok_or_else(no_cipher)?;
        let page = zero.page().ok_or_else(past_the_end)?;
        out.copy_from_slice(&page[at..at + out.len()]);
        Ok(())
    }

    fn write_zero(&self, at: usize, data: &[u8]) -> io::Result<()> {
        let cipher = self.cipher()?;
        let mut guard = self.loaded()?;
        let zero = guard.as_mut().ok_or_else(no_cipher)?;
        zero.write(&self.inner, cipher, at, data)
    }

    /// Whole pages from `first` (not 0) on.
    fn read_run(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let cipher = self.cipher()?;
        let mut page = first;
        let mut slots = Vec::new();
        for part in out.chunks_mut(MAX_RUN * PAGE_BYTES) {
            slots.resize(part.len() / PAGE_BYTES * SLOT_BYTES, 0);
            self.inner.read(slot_at(page), &mut slots)?;
            let pairs = slots.as_chunks().0.iter().zip(part.as_chunks_mut().0);
            for (slot, plain) in pairs {
                cipher.open(page, slot, plain).map_err(refused)?;
                page += 1;
            }
        }
        Ok(())
    }

    /// Whole pages from `first` (not 0) on.
    fn write_run(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let cipher = self.cipher()?;
        let mut page = first;
        let mut slots = Vec::new();
        for part in data.chunks(MAX_RUN * PAGE_BYTES) {
            let begin = page;
            slots.resize(part.len() / PAGE_BYTES * SLOT_BYTES, 0);
            let pairs = part.as_chunks().0.iter().zip(slots.as_chunks_mut().0);
            for (plain, slot) in pairs {
                cipher.seal(page, plain, slot).map_err(refused)?;
                page += 1;
            }
            self.inner.write(slot_at(begin), &slots)?;
        }
        Ok(())
    }

    fn one(&self, page: u64) -> io::Result<[u8; PAGE_BYTES]> {
        let mut plain = [0; PAGE_BYTES];
        self.read_run(page, &mut plain)?;
        Ok(plain)
    }

    /// That `offset..offset + len` lies inside.
    fn check_inside(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len()? => Ok(()),
            _ => Err(past_the_end()),
        }
    }
}

/// A stretch of bytes, cut where pages begin: inside one page, or whole pages.
enum Piece {
    Part { page: u64, at: usize, len: usize },
    Run { page: u64, len: usize },
}

/// Cuts a stretch. Page 0 always is a piece of its own.
fn pieces(mut offset: u64, mut len: usize) -> impl Iterator<Item = Piece> {
    std::iter::from_fn(move || {
        if len == 0 {
            return None;
        }
        let page = offset / PAGE;
        // Below the size of a page.
        let at = usize::try_from(offset % PAGE).unwrap_or(0);
        let piece = if at != 0 || len < PAGE_BYTES || page == 0 {
            let len = len.min(PAGE_BYTES - at);
            Piece::Part { page, at, len }
        } else {
            let len = len / PAGE_BYTES * PAGE_BYTES;
            Piece::Run { page, len }
        };
        let (Piece::Part { len: taken, .. } | Piece::Run { len: taken, .. }) = piece;
        offset += taken as u64;
        len -= taken;
        Some(piece)
    })
}

impl<B: StorageBackend> StorageBackend for EncryptedPages<B> {
    fn len(&self) -> io::Result<u64> {
        logical_len(self.inner.len()?)
    }

    /// Past the end, the backend below refuses.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut rest = out;
        for piece in pieces(offset, rest.len()) {
            let (Piece::Part { len, .. } | Piece::Run { len, .. }) = piece;
            let (out, after) = rest.split_at_mut(len);
            rest = after;
            match piece {
                Piece::Part { page: 0, at, .. } => self.read_zero(at, out)?,
                Piece::Part { page, at, len } => {
                    out.copy_from_slice(&self.one(page)?[at..at + len]);
                }
                Piece::Run { page, .. } => self.read_run(page, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.prepare_write()?;
        if !len.is_multiple_of(PAGE) || len == 0 {
            let text = format!("{len} bytes are no whole pages");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.inner.set_len(slot_at(len / PAGE))
    }

    /// The copy of page 0 that was not written gets its content only now that the other is durable.
    fn sync_data(&self) -> io::Result<()> {
        self.check_failed()?;
        let cipher = self.cipher()?;
        let mut guard = self.loaded()?;
        let synced = self.inner.sync_data().and_then(|()| match guard.as_mut() {
            Some(zero) => zero.synced(&self.inner, cipher),
            None => Ok(()),
        });
        synced.inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.prepare_write()?;
        self.check_inside(offset, data.len())?;
        let mut rest = data;
        for piece in pieces(offset, data.len()) {
            let (Piece::Part { len, .. } | Piece::Run { len, .. }) = piece;
            let (data, after) = rest.split_at(len);
            rest = after;
            match piece {
                Piece::Part { page: 0, at, .. } => self.write_zero(at, data)?,
                Piece::Part { page, at, len } => {
                    let mut plain = self.one(page)?;
                    plain[at..at + len].copy_from_slice(data);
                    self.write_run(page, &plain)?;
                }
                Piece::Run { page, .. } => self.write_run(page, data)?,
            }
        }
        Ok(())
    }

    /// Makes both copies of page 0 durable first.
    fn close(&self) -> io::Result<()> {
        let guard = self.zero.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = guard.as_ref().is_some_and(Zero::has_unsynced_copy);
        drop(guard);
        let synced = match self.check_failed() {
            Ok(()) if pending => self.inner.sync_data(),
            _ => Ok(()),
        };
        let closed = self.inner.close();
        synced.and(closed)
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

impl<B: fmt::Debug> fmt::Debug for EncryptedPages<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptedPages")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// Where the slot of a page other than page 0 begins; also how long a file of so many pages is.
fn slot_at(page: u64) -> u64 {
    SLOTS_BEGIN.saturating_add(page.saturating_sub(1).saturating_mul(SLOT))
}

fn logical_len(physical: u64) -> io::Result<u64> {
    if physical == 0 {
        return Ok(0);
    }
    match physical.checked_sub(SLOTS_BEGIN) {
        Some(slots) if slots.is_multiple_of(SLOT) => Ok((slots / SLOT + 1) * PAGE),
        _ => Err(damaged(format!(
            "an encrypted file cannot have {physical} bytes: it was cut short, or it is not encrypted"
        ))),
    }
}

/// Damage, as redb's own files report it.
fn damaged(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn refused(e: PageError) -> io::Error {
    match e {
        PageError::Entropy(e) => io::Error::other(e),
        e => io::Error::new(io::ErrorKind::InvalidData, e),
    }
}

fn past_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the file")
}

fn no_cipher() -> io::Error {
    io::Error::other("the file has no key")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod tests;
