//! A backend that lets redb open a file without changing it: writes stay in memory.
//!
//! redb writes whenever it opens, repairs included. Checks run on top of this one, so they leave a
//! damaged file, or one of somebody else, exactly as it was found. Must not know encryption.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// Bytes that are kept or read at once.
const BLOCK: usize = 4096;

/// Reads through, keeps what is written to itself.
pub(crate) struct Scratch<B> {
    inner: B,
    state: Mutex<Option<State>>,
}

struct State {
    len: u64,
    /// How much of the file below still shows: growing again after shrinking brings zeros.
    visible: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl<B: StorageBackend> Scratch<B> {
    /// Over a file that nobody writes to meanwhile.
    pub(crate) fn new(inner: B) -> Scratch<B> {
        Scratch {
            inner,
            state: Mutex::new(None),
        }
    }

    fn state(&self) -> io::Result<MutexGuard<'_, Option<State>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_none() {
            let len = self.inner.len()?;
            *state = Some(State {
                len,
                visible: len,
                blocks: BTreeMap::new(),
            });
        }
        Ok(state)
    }

    fn block(&self, state: &State, number: u64, out: &mut [u8; BLOCK]) -> io::Result<()> {
        if let Some(block) = state.blocks.get(&number) {
            out.copy_from_slice(&block[..]);
            return Ok(());
        }
        let at = number * BLOCK as u64;
        let there = state.visible.saturating_sub(at).min(BLOCK as u64);
        let (first, rest) = out.split_at_mut(usize::try_from(there).unwrap_or(BLOCK));
        rest.fill(0);
        if first.is_empty() {
            return Ok(());
        }
        self.inner.read(at, first)
    }
}

/// Calls `with` for each block that a stretch touches: its number, where in it, and where in the stretch.
fn blocks(
    offset: u64,
    len: usize,
    mut with: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let position = offset + done as u64;
        let at = usize::try_from(position % BLOCK as u64).unwrap_or(0);
        let some = (len - done).min(BLOCK - at);
        with(position / BLOCK as u64, at, done..done + some)?;
        done += some;
    }
    Ok(())
}

impl<B: StorageBackend> StorageBackend for Scratch<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.as_ref().map_or(0, |state| state.len))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let guard = self.state()?;
        let Some(state) = guard
            .as_ref()
            .filter(|s| offset + out.len() as u64 <= s.len)
        else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let mut block = [0; BLOCK];
        blocks(offset, out.len(), |number, at, range| {
            let len = range.len();
            // Whole blocks go where they are wanted, parts through a buffer.
            match <&mut [u8; BLOCK]>::try_from(&mut out[range.clone()]) {
                Ok(whole) => self.block(state, number, whole),
                Err(_) => {
                    self.block(state, number, &mut block)?;
                    out[range].copy_from_slice(&block[at..at + len]);
                    Ok(())
                }
            }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Some(state) = self.state()?.as_mut() {
            state
                .blocks
                .retain(|number, _| number * (BLOCK as u64) < len);
            state.visible = state.visible.min(len);
            state.len = len;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut guard = self.state()?;
        let Some(state) = guard.as_mut() else {
            return Ok(());
        };
        blocks(offset, data.len(), |number, at, range| {
            let mut block = Box::new([0; BLOCK]);
            if range.len() < BLOCK {
                self.block(state, number, &mut block)?;
            }
            block[at..at + range.len()].copy_from_slice(&data[range]);
            state.blocks.insert(number, block);
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    // Nothing is locked: the caller keeps writers away.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

impl<B: fmt::Debug> fmt::Debug for Scratch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scratch").field(&self.inner).finish()
    }
}
