//! Who may write to a namespace: one stream at a time, and no longer than the lock timeout when another wants to.
//! It must not know SQL; a stream asks before it writes and says afterwards whether it still holds a transaction.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rusqlite::ffi;

use crate::error::SqlError;
use crate::lock;
use crate::session::Session;

/// How long a waiter looks away from a holder whose time is up but who is within a statement.
const GLANCE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Slot {
    state: Mutex<State>,
    freed: Condvar,
    limit: Duration,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    waiting: usize,
}

#[derive(Debug)]
struct Holder {
    id: u64,
    since: Instant,
    session: Weak<Mutex<Session>>,
    /// Somebody waits and the time is up.
    wanted: bool,
}

impl Slot {
    pub(crate) fn new(limit: Duration) -> Slot {
        Slot {
            state: Mutex::default(),
            freed: Condvar::new(),
            limit,
        }
    }

    /// Waits until stream `id` may write. `SQLITE_BUSY` after four times the lock timeout.
    pub(crate) fn acquire(&self, id: u64, session: &Weak<Mutex<Session>>) -> Result<(), SqlError> {
        let start = Instant::now();
        let mut state = lock(&self.state);
        state.waiting += 1;
        while let Some(holder) = state.holder.as_mut().filter(|holder| holder.id != id) {
            let left = self.limit.saturating_sub(holder.since.elapsed());
            if start.elapsed() >= self.limit.saturating_mul(4).max(Duration::from_secs(1)) {
                state.waiting -= 1;
                return Err(SqlError::sqlite(ffi::SQLITE_BUSY, "database is locked"));
            }
            if left.is_zero() {
                holder.wanted = true;
                let victim = holder.session.clone();
                drop(state);
                steal(&victim);
                state = lock(&self.state);
                if state.holder.as_ref().is_none_or(|holder| !holder.wanted) {
                    continue;
                }
            }
            state = self.wait(state, if left.is_zero() { GLANCE } else { left });
        }
        state.waiting -= 1;
        state.holder.get_or_insert_with(|| Holder {
            id,
            since: Instant::now(),
            session: session.clone(),
            wanted: false,
        });
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let woken = self.freed.wait_timeout(state, time);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether stream `id` holds the slot while somebody waits who may take it.
    pub(crate) fn is_wanted(&self, id: u64) -> bool {
        let state = lock(&self.state);
        state
            .holder
            .as_ref()
            .is_some_and(|h| h.id == id && h.wanted)
    }

    pub(crate) fn release(&self, id: u64) {
        let mut state = lock(&self.state);
        if state.holder.as_ref().is_some_and(|holder| holder.id == id) {
            state.holder = None;
            self.freed.notify_all();
        }
    }

    /// Streams that wait for the slot.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting
    }
}

/// Takes the lock from a stream that is between two requests; one within a request gives it up itself.
fn steal(victim: &Weak<Mutex<Session>>) {
    let victim = victim.upgrade();
    if let Some(session) = victim.as_ref().and_then(|victim| victim.try_lock().ok()) {
        session.yield_lock();
    }
}
