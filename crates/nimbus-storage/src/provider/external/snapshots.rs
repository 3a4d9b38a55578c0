//! The snapshots of one store that are open: how many, and how old.
//!
//! Must not know what a snapshot is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Snapshots that are open.
#[derive(Default)]
pub(crate) struct OpenSnapshots(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    /// By number, so the first is the oldest.
    since: BTreeMap<u64, Instant>,
}

/// An open snapshot, until it is dropped.
pub(crate) struct Entered(Arc<OpenSnapshots>, u64);

impl OpenSnapshots {
    /// One more.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.since.insert(number, Instant::now());
        drop(open);
        Entered(self.clone(), number)
    }

    /// How many there are, and milliseconds since the oldest was taken.
    pub(crate) fn count(&self) -> (u64, u64) {
        let open = self.open();
        let oldest = open.since.first_key_value().map(|(_, at)| at.elapsed());
        let age = oldest.unwrap_or_default().as_millis();
        (
            open.since.len() as u64,
            u64::try_from(age).unwrap_or(u64::MAX),
        )
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.open().since.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_counted() {
        let open = Arc::<OpenSnapshots>::default();
        assert_eq!(open.count(), (0, 0));
        let (first, second) = (open.enter(), open.enter());
        assert_eq!(open.count().0, 2);
        drop(first);
        assert_eq!(open.count().0, 1);
        drop(second);
        assert_eq!(open.count(), (0, 0));
    }
}
