//! Page 0, which redb overwrites in place, in two copies written in turn.
//!
//! Of the two, one is the *anchor*: durable, with the newest page 0 that a sync covered. Writes go to
//! the other copy, so that a torn one leaves the anchor. Once a sync covered a write, the copies
//! change roles, and the new page 0 is written over the old anchor as well: from then on both have it, and damage
//! to either is no step back. Must not know what page 0 says.

use std::io;

use nimbus_crypto::{COPY_BYTES, PAGE_BYTES, PageCipher};
use redb::StorageBackend;

use super::{REDB_MAGIC, damaged, refused};

const COPY: u64 = COPY_BYTES as u64;

/// What is known of page 0.
pub(super) struct Zero {
    /// Its newest content; `None` before the first write.
    page: Option<Box<[u8; PAGE_BYTES]>>,
    /// The write counter of that content. It is odd where copy 1 was written first, so that a file
    /// whose copies are equal tells which of them is durable.
    counter: u64,
    /// The copy that must not be written.
    anchor: usize,
    /// The bytes of the anchor, as long as nothing proves that they are on disk.
    unproven: Option<Box<[u8; COPY_BYTES]>>,
    /// Written since the last sync.
    dirty: bool,
    /// The copy that is not the anchor has the newest content, and no sync covered that yet.
    mirrored: bool,
}

impl Zero {
    /// That of an empty file.
    pub(super) fn new() -> Zero {
        Zero {
            page: None,
            counter: 0,
            anchor: 0,
            unproven: None,
            dirty: false,
            mirrored: false,
        }
    }

    /// Reads both copies and takes the newer of those that are authentic, under the first cipher
    /// that fits any; and which cipher that is.
    pub(super) fn read(
        file: &impl StorageBackend,
        ciphers: &[PageCipher],
    ) -> io::Result<(Zero, usize)> {
        if file.len()? < 2 * COPY {
            return Err(damaged("it is too short for page 0"));
        }
        let mut copies = [[0; COPY_BYTES]; 2];
        file.read(0, &mut copies[0])?;
        file.read(COPY, &mut copies[1])?;
        for (number, cipher) in ciphers.iter().enumerate() {
            if let Some(zero) = Zero::newest(cipher, &copies) {
                return Ok((zero, number));
            }
        }
        if copies[0].starts_with(REDB_MAGIC) {
            return Err(damaged("it is in plain text, although it has a manifest"));
        }
        Err(damaged(
            "page 0 does not authenticate: the file was damaged, or it is not the file of its \
             manifest; restore both from one backup",
        ))
    }

    fn newest(cipher: &PageCipher, copies: &[[u8; COPY_BYTES]; 2]) -> Option<Zero> {
        let mut pages = [const { [0; PAGE_BYTES] }; 2];
        let [first, second] = &mut pages;
        let counters = [
            cipher.open_copy(0, &copies[0], first).ok(),
            cipher.open_copy(1, &copies[1], second).ok(),
        ];
        // `None` is less than any counter.
        let newest = match counters {
            [None, None] => return None,
            // The other one was written only when this one was durable.
            [Some(one), Some(two)] if one == two => usize::from(one % 2 == 1),
            [one, two] => usize::from(two > one),
        };
        let equal = counters[0] == counters[1];
        Some(Zero {
            page: Some(Box::new(pages[newest])),
            counter: counters[newest]?,
            anchor: newest,
            unproven: (!equal).then(|| Box::new(copies[newest])),
            dirty: false,
            mirrored: false,
        })
    }

    pub(super) fn page(&self) -> Option<&[u8; PAGE_BYTES]> {
        self.page.as_deref()
    }

    /// Whether the anchor is known to be durable.
    pub(super) fn is_settled(&self) -> bool {
        self.unproven.is_none()
    }

    /// Whether a copy waits for a sync that nothing depends on.
    pub(super) fn has_unsynced_copy(&self) -> bool {
        self.mirrored
    }

    /// Makes the anchor durable. It may be in the system's cache only, from a process that was
    /// killed, or whose sync failed: then no sync alone would write it. Its very bytes are written
    /// again, so tearing them changes nothing where they are on disk already.
    pub(super) fn settle(&mut self, file: &impl StorageBackend) -> io::Result<()> {
        if let Some(bytes) = &self.unproven {
            file.write(place(self.anchor), &bytes[..])?;
            file.sync_data()?;
            self.unproven = None;
        }
        Ok(())
    }

    /// Overwrites a part of page 0.
    pub(super) fn write(
        &mut self,
        file: &impl StorageBackend,
        cipher: &PageCipher,
        at: usize,
        data: &[u8],
    ) -> io::Result<()> {
        let mut page = match &self.page {
            Some(page) => page.clone(),
            None => Box::new([0; PAGE_BYTES]),
        };
        page[at..at + data.len()].copy_from_slice(data);
        let target = 1 - self.anchor;
        let mut counter = self.counter + 1;
        if counter % 2 != target as u64 {
            counter += 1;
        }
        // Whatever becomes of the write, the copy may have changed.
        (self.dirty, self.mirrored) = (true, false);
        // Never used again, even if the write fails.
        self.counter = counter;
        put(file, cipher, target, counter, &page)?;
        self.page = Some(page);
        Ok(())
    }

    /// After a sync that succeeded.
    pub(super) fn synced(
        &mut self,
        file: &impl StorageBackend,
        cipher: &PageCipher,
    ) -> io::Result<()> {
        self.mirrored = false;
        let (true, Some(page)) = (self.dirty, &self.page) else {
            return Ok(());
        };
        self.anchor = 1 - self.anchor;
        self.dirty = false;
        put(file, cipher, 1 - self.anchor, self.counter, page)?;
        self.mirrored = true;
        Ok(())
    }
}

fn put(
    file: &impl StorageBackend,
    cipher: &PageCipher,
    copy: usize,
    counter: u64,
    page: &[u8; PAGE_BYTES],
) -> io::Result<()> {
    let mut bytes = [0; COPY_BYTES];
    let number = u8::from(copy == 1);
    cipher
        .seal_copy(number, counter, page, &mut bytes)
        .map_err(refused)?;
    file.write(place(copy), &bytes)
}

/// Where a copy begins.
fn place(copy: usize) -> u64 {
    if copy == 0 { 0 } else { COPY }
}
