//! The page cipher: logical pages of 4,096 bytes in slots of 4,124, each under AES-256-GCM-SIV.
//!
//! Page 0, which its user overwrites in place, is kept in two copies of 4,132 bytes instead of a slot:
//! a write counter in clear comes first, and counter and copy are bound as well. Pure functions over
//! one page. Must not know files, caches or redb. Not detected: an older version of the whole file,
//! or an older version of one slot put back into its own place.

mod aead;

use crate::context::{FILE_ID_BYTES, FileId};
use crate::key::{Dek, Entropy, random};
use crate::seal::{NONCE_BYTES, TAG_BYTES};
use aead::PageAead;

/// Length of a page in bytes, as its user sees it.
pub const PAGE_BYTES: usize = 4096;
/// Length of an encrypted page in bytes: nonce, ciphertext, tag.
pub const SLOT_BYTES: usize = NONCE_BYTES + PAGE_BYTES + TAG_BYTES;
/// Length of a copy of page 0 in bytes: its write counter (u64, big-endian, in clear), then a slot.
pub const COPY_BYTES: usize = COUNTER_BYTES + SLOT_BYTES;
/// The version of this format, bound to every page.
pub const PAGE_FORMAT_VERSION: u32 = 1;

const AAD_BYTES: usize = 4 + FILE_ID_BYTES + 8;
const COUNTER_BYTES: usize = 8;
/// What tells a copy of page 0 from a slot. The associated data is longer, too.
const COPY_LABEL: &[u8; 11] = b"page-0 copy";
const COPY_AAD_BYTES: usize = AAD_BYTES + COPY_LABEL.len() + 1 + COUNTER_BYTES;

/// Why a page was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The slot is not one that was written for this page of this file under this key: changed,
    /// moved, never written, or of another file.
    #[error(
        "page {page} does not authenticate: the file was changed or damaged, or has another key"
    )]
    Unauthentic {
        /// The number of the page.
        page: u64,
    },
    /// No random bytes for the nonce.
    #[error(transparent)]
    Entropy(#[from] Entropy),
}

/// Encrypts and decrypts the pages of one file.
///
/// ```
/// use nimbus_crypto::{Dek, FileId, PAGE_BYTES, PageCipher, SLOT_BYTES};
///
/// let cipher = PageCipher::new(&Dek::generate()?, FileId::generate()?);
/// let mut slot = [0; SLOT_BYTES];
/// cipher.seal(7, &[42; PAGE_BYTES], &mut slot)?;
/// let mut page = [0; PAGE_BYTES];
/// cipher.open(7, &slot, &mut page)?;
/// assert_eq!(page, [42; PAGE_BYTES]);
/// assert!(cipher.open(8, &slot, &mut page).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PageCipher {
    aead: PageAead,
    file_id: FileId,
}

impl std::fmt::Debug for PageCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageCipher({}, redacted)", self.file_id)
    }
}

impl PageCipher {
    /// The cipher of the file that has this key and id.
    #[must_use]
    pub fn new(dek: &Dek, file_id: FileId) -> Self {
        Self {
            aead: PageAead::new(dek),
            file_id,
        }
    }

    /// Encrypts a page into a slot, under a fresh random nonce.
    ///
    /// # Errors
    /// [`PageError::Entropy`]; the slot is then as it was.
    pub fn seal(
        &self,
        page: u64,
        plain: &[u8; PAGE_BYTES],
        slot: &mut [u8; SLOT_BYTES],
    ) -> Result<(), PageError> {
        self.seal_with(random()?, page, plain, slot)
    }

    fn seal_with(
        &self,
        nonce: [u8; NONCE_BYTES],
        page: u64,
        plain: &[u8; PAGE_BYTES],
        slot: &mut [u8; SLOT_BYTES],
    ) -> Result<(), PageError> {
        self.seal_slot(nonce, &self.aad(page), page, plain, slot)
    }

    fn seal_slot(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        page: u64,
        plain: &[u8; PAGE_BYTES],
        slot: &mut [u8; SLOT_BYTES],
    ) -> Result<(), PageError> {
        let (start, rest) = slot.split_at_mut(NONCE_BYTES);
        let (body, end) = rest.split_at_mut(PAGE_BYTES);
        start.copy_from_slice(&nonce);
        body.copy_from_slice(plain);
        let tag = self.aead.seal(nonce, aad, body);
        end.copy_from_slice(&tag.map_err(|_| PageError::Unauthentic { page })?);
        Ok(())
    }

    /// Decrypts a slot into a page.
    ///
    /// # Errors
    /// [`PageError::Unauthentic`]; `plain` is then all zeros.
    pub fn open(
        &self,
        page: u64,
        slot: &[u8; SLOT_BYTES],
        plain: &mut [u8; PAGE_BYTES],
    ) -> Result<(), PageError> {
        self.open_slot(&self.aad(page), page, slot, plain)
    }

    fn open_slot(
        &self,
        aad: &[u8],
        page: u64,
        slot: &[u8; SLOT_BYTES],
        plain: &mut [u8; PAGE_BYTES],
    ) -> Result<(), PageError> {
        let mut nonce = [0; NONCE_BYTES];
        let mut tag = [0; TAG_BYTES];
        nonce.copy_from_slice(&slot[..NONCE_BYTES]);
        tag.copy_from_slice(&slot[NONCE_BYTES + PAGE_BYTES..]);
        let sealed = (&slot[NONCE_BYTES..NONCE_BYTES + PAGE_BYTES], tag);
        let opened = self.aead.open(nonce, aad, sealed, plain);
        opened.map_err(|_| PageError::Unauthentic { page })
    }

    /// Encrypts page 0 into one of its two copies, which are numbered 0 and 1, under a fresh random
    /// nonce. Of two copies that are authentic, the one with the higher counter is the newer one.
    ///
    /// # Errors
    /// [`PageError::Entropy`]; the copy is then as it was.
    pub fn seal_copy(
        &self,
        copy: u8,
        counter: u64,
        plain: &[u8; PAGE_BYTES],
        out: &mut [u8; COPY_BYTES],
    ) -> Result<(), PageError> {
        self.seal_copy_with(random()?, copy, counter, plain, out)
    }

    fn seal_copy_with(
        &self,
        nonce: [u8; NONCE_BYTES],
        copy: u8,
        counter: u64,
        plain: &[u8; PAGE_BYTES],
        out: &mut [u8; COPY_BYTES],
    ) -> Result<(), PageError> {
        let mut slot = [0; SLOT_BYTES];
        let aad = self.copy_aad(copy, counter);
        self.seal_slot(nonce, &aad, 0, plain, &mut slot)?;
        out[..COUNTER_BYTES].copy_from_slice(&counter.to_be_bytes());
        out[COUNTER_BYTES..].copy_from_slice(&slot);
        Ok(())
    }

    /// Decrypts a copy of page 0 and gives its write counter.
    ///
    /// # Errors
    /// [`PageError::Unauthentic`]; `plain` is then all zeros.
    pub fn open_copy(
        &self,
        copy: u8,
        bytes: &[u8; COPY_BYTES],
        plain: &mut [u8; PAGE_BYTES],
    ) -> Result<u64, PageError> {
        let mut counter = [0; COUNTER_BYTES];
        let mut slot = [0; SLOT_BYTES];
        counter.copy_from_slice(&bytes[..COUNTER_BYTES]);
        slot.copy_from_slice(&bytes[COUNTER_BYTES..]);
        let counter = u64::from_be_bytes(counter);
        self.open_slot(&self.copy_aad(copy, counter), 0, &slot, plain)?;
        Ok(counter)
    }

    /// As of page 0, then the label, the number of the copy u8, the counter u64.
    fn copy_aad(&self, copy: u8, counter: u64) -> [u8; COPY_AAD_BYTES] {
        let mut aad = [0; COPY_AAD_BYTES];
        aad[..AAD_BYTES].copy_from_slice(&self.aad(0));
        aad[AAD_BYTES..AAD_BYTES + COPY_LABEL.len()].copy_from_slice(COPY_LABEL);
        aad[AAD_BYTES + COPY_LABEL.len()] = copy;
        aad[COPY_AAD_BYTES - COUNTER_BYTES..].copy_from_slice(&counter.to_be_bytes());
        aad
    }

    /// Format version u32, file id, page number u64; big-endian, all of fixed width.
    fn aad(&self, page: u64) -> [u8; AAD_BYTES] {
        let mut aad = [0; AAD_BYTES];
        aad[..4].copy_from_slice(&PAGE_FORMAT_VERSION.to_be_bytes());
        aad[4..4 + FILE_ID_BYTES].copy_from_slice(self.file_id.as_bytes());
        aad[4 + FILE_ID_BYTES..].copy_from_slice(&page.to_be_bytes());
        aad
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
