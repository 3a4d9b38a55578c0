//! A disk in memory that records what was done to it, and makes what a power loss would leave.
//!
//! A sector of 512 bytes holds any of its versions since the last sync. Whatever is in it then is what the
//! system's cache held at some time, so neighbours in one sector keep their bytes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

pub(crate) const SECTOR: usize = 512;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}

#[derive(Clone)]
enum Step {
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    SetLen(usize),
    Sync,
    /// Reported as failed: what was not written by then will not be, though it can still be read.
    FailedSync,
}

#[derive(Default)]
struct Inner {
    begin: Vec<u8>,
    now: Vec<u8>,
    steps: Vec<Step>,
    syncs: usize,
    /// The sync with this number fails.
    fail: Option<usize>,
    /// The write after so many more fails.
    fail_write: Option<usize>,
    /// The disk after so many steps, to go on from for a later image.
    replayed: Option<(usize, Disk)>,
}

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tape")
    }
}

impl Tape {
    /// A disk with a file that is durable.
    pub(crate) fn holding(bytes: Vec<u8>) -> Tape {
        let tape = Tape::default();
        {
            let mut inner = tape.0.lock().unwrap();
            inner.begin.clone_from(&bytes);
            inner.now = bytes;
        }
        tape
    }

    /// What reading gives now.
    pub(crate) fn now(&self) -> Vec<u8> {
        self.0.lock().unwrap().now.clone()
    }

    /// Changes a byte behind everyone's back.
    pub(crate) fn flip(&self, at: usize, mask: u8) {
        self.0.lock().unwrap().now[at] ^= mask;
    }

    /// How many steps were done.
    pub(crate) fn steps(&self) -> usize {
        self.0.lock().unwrap().steps.len()
    }

    pub(crate) fn syncs(&self) -> usize {
        self.0.lock().unwrap().syncs
    }

    /// Lets the sync after `more` others fail.
    pub(crate) fn fail_sync_after(&self, more: usize) {
        let mut inner = self.0.lock().unwrap();
        inner.fail = Some(inner.syncs + more);
    }

    pub(crate) fn fail_write_after(&self, more: usize) {
        self.0.lock().unwrap().fail_write = Some(more);
    }

    /// From now on nothing fails.
    pub(crate) fn mend(&self) {
        self.0.lock().unwrap().fail_write = None;
    }

    /// What is on disk when the power fails after so many steps. `keep` of 0 drops what was not synced,
    /// 2 keeps it all, 1 leaves it to chance.
    pub(crate) fn image(&self, steps: usize, random: &mut Random, keep: usize) -> Vec<u8> {
        let mut inner = self.0.lock().unwrap();
        let failed = inner.fail.is_some();
        let (done, mut disk) = match inner.replayed.take() {
            // What a failed sync left is drawn anew for each image.
            Some((done, disk)) if done <= steps && !failed => (done, disk),
            _ => (0, Disk::new(inner.begin.clone())),
        };
        for step in &inner.steps[done..steps] {
            match step {
                Step::Write { at, bytes } => disk.write(*at, bytes),
                Step::SetLen(len) => disk.set_len(*len),
                Step::Sync => disk.flush(random, 2),
                Step::FailedSync => disk.flush_data(random, 1),
            }
        }
        inner.replayed = Some((steps, disk.clone()));
        disk.flush(random, keep);
        disk.durable.resize(disk.durable_len, 0);
        disk.durable
    }
}

/// What is on disk and what is in the system's cache.
#[derive(Clone)]
struct Disk {
    durable: Vec<u8>,
    durable_len: usize,
    lens: Vec<usize>,
    cache: Vec<u8>,
    /// Versions of each sector since the last sync.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

impl Disk {
    fn new(bytes: Vec<u8>) -> Disk {
        Disk {
            durable_len: bytes.len(),
            durable: bytes.clone(),
            lens: Vec::new(),
            cache: bytes,
            dirty: BTreeMap::new(),
        }
    }

    fn touch(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let begin = sector * SECTOR;
            let end = (begin + SECTOR).min(self.cache.len());
            let mut version = [0; SECTOR];
            version[..end - begin].copy_from_slice(&self.cache[begin..end]);
            self.dirty.entry(sector).or_default().push(version);
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
        self.touch(at, at + bytes.len());
    }

    fn set_len(&mut self, len: usize) {
        let old = self.cache.len();
        self.cache.resize(len, 0);
        self.lens.push(len);
        // Zeros where bytes may have been before.
        if len > old && len.min(self.durable.len()) > old {
            self.touch(old, len.min(self.durable.len()));
        }
    }

    fn flush(&mut self, random: &mut Random, keep: usize) {
        match chosen(random, keep, self.lens.len()) {
            0 => {}
            n => self.durable_len = self.lens[n - 1],
        }
        self.lens.clear();
        self.flush_data(random, keep);
    }

    /// A length that was set stays in the file system's journal if data cannot be written.
    fn flush_data(&mut self, random: &mut Random, keep: usize) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let n = chosen(random, keep, versions.len());
            if n == 0 {
                continue;
            }
            let end = (sector + 1) * SECTOR;
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[sector * SECTOR..end].copy_from_slice(&versions[n - 1]);
        }
    }
}

/// How many of some versions were written: none, all, or left to chance.
fn chosen(random: &mut Random, keep: usize, versions: usize) -> usize {
    match keep {
        0 => 0,
        2 => versions,
        _ => random.below(versions + 1),
    }
}

impl StorageBackend for Tape {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let found = inner.now.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        inner.now.resize(len, 0);
        inner.steps.push(Step::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let fails = inner.fail == Some(inner.syncs);
        inner.syncs += 1;
        let step = if fails { Step::FailedSync } else { Step::Sync };
        inner.steps.push(step);
        match fails {
            true => Err(io::Error::other("this sync fails")),
            false => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        assert!(at + data.len() <= inner.now.len(), "a write past the end");
        match &mut inner.fail_write {
            Some(0) => return Err(io::ErrorKind::StorageFull.into()),
            Some(more) => *more -= 1,
            None => {}
        }
        inner.now[at..at + data.len()].copy_from_slice(data);
        let bytes = data.to_vec();
        inner.steps.push(Step::Write { at, bytes });
        Ok(())
    }
}
