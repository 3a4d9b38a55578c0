//! Faults that a test asks for. It must not know where they are felt.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::lock;

/// What is to go wrong. Every count begins when it is set; 0 stands for never.
#[derive(Debug, Default)]
pub struct Faults {
    delay: Mutex<Duration>,
    cut: AtomicU64,
    full: AtomicU64,
    commits: AtomicU64,
}

impl Faults {
    /// Every answer is made at once and sent this much later.
    pub fn delay_answers(&self, by: Duration) {
        *lock(&self.delay) = by;
    }

    /// The request that makes the `nth` commit from now on is done and durable, and its connection is closed
    /// instead of an answer. Only that one.
    pub fn cut_after_commit(&self, nth: u64) {
        self.cut.store(nth, SeqCst);
    }

    /// The next `count` writes (statements that change something, and commits of such) fail with `SQLITE_FULL`, which rolls
    /// their transaction back as SQLite does when the disk is full.
    pub fn fail_writes(&self, count: u64) {
        self.full.store(count, SeqCst);
    }

    /// Commits since the start, of every namespace.
    pub fn commits(&self) -> u64 {
        self.commits.load(SeqCst)
    }

    pub(crate) fn delay(&self) -> Duration {
        *lock(&self.delay)
    }

    pub(crate) fn take_full(&self) -> bool {
        let less = |count: u64| count.checked_sub(1);
        self.full.fetch_update(SeqCst, SeqCst, less).is_ok()
    }

    /// Counts a commit; whether its answer is to be cut.
    pub(crate) fn committed(&self) -> bool {
        self.commits.fetch_add(1, SeqCst);
        let less = |count: u64| count.checked_sub(1);
        self.cut.fetch_update(SeqCst, SeqCst, less) == Ok(1)
    }
}
