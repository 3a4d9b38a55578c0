//! Which files this process has open: a store that was dropped without being closed lets go of its file a
//! little later, and opening it again waits for that.
//!
//! Must not know what is done with them. Other processes are kept away by redb's lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::provider::{ProviderError, ProviderResult};

/// How long to wait for a file.
const PATIENCE: Duration = Duration::from_secs(2);

static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
static LET_GO: Condvar = Condvar::new();

/// The right to open a file, until dropped.
pub(super) struct Held(PathBuf);

impl Held {
    /// Waits until nobody else in this process has the file. Blocks.
    pub(super) fn take(path: &Path) -> ProviderResult<Held> {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = LET_GO.wait_timeout_while(held, PATIENCE, |held| held.contains(path));
        let (mut held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !held.insert(path.to_owned()) {
            let what = format!("this process has {} open", path.display());
            return Err(ProviderError::Busy { what });
        }
        Ok(Held(path.to_owned()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.0);
        drop(held);
        LET_GO.notify_all();
    }
}
