//! Hints that another server committed: from notifications or polls to the open stores that wait.
//!
//! Must not know where hints come from. A hint says that looking is worth it; it is never the truth about a
//! commit, and may come for nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

/// The open stores of one provider, by namespace.
#[derive(Default)]
pub(crate) struct HintBus {
    waiting: Mutex<HashMap<String, Vec<Weak<Line>>>>,
    /// Someone began to wait.
    asked: Arc<Notify>,
}

/// The way to one open store.
#[derive(Default)]
struct Line {
    hint: Notify,
    /// How many wait now.
    waits: AtomicU32,
}

/// The hints for one open store.
pub(crate) struct Hints {
    line: Arc<Line>,
    asked: Arc<Notify>,
}

impl Hints {
    /// Ends at the next hint, or at once if one came since this last ended. Dropping the future loses none.
    /// For one waiter at a time.
    pub(crate) async fn next(&self) {
        let _waits = Waits::new(&self.line);
        self.asked.notify_one();
        self.line.hint.notified().await;
    }
}

struct Waits<'a>(&'a Line);

impl Waits<'_> {
    fn new(line: &Line) -> Waits<'_> {
        line.waits.fetch_add(1, Ordering::Relaxed);
        Waits(line)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::Relaxed);
    }
}

impl HintBus {
    /// Hints about a namespace from now on.
    pub(crate) fn subscribe(&self, namespace: &str) -> Hints {
        let line = Arc::<Line>::default();
        let mut waiting = self.waiting();
        let list = waiting.entry(namespace.to_owned()).or_default();
        list.retain(|known| known.strong_count() > 0);
        list.push(Arc::downgrade(&line));
        let asked = self.asked.clone();
        Hints { line, asked }
    }

    /// Wakes whoever waits for a namespace.
    pub(crate) fn wake(&self, namespace: &str) {
        if let Some(list) = self.waiting().get(namespace) {
            list.iter()
                .filter_map(Weak::upgrade)
                .for_each(|line| line.hint.notify_one());
        }
    }

    /// Wakes everyone: hints may have been lost.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) fn wake_all(&self) {
        self.waiting().retain(|_, list| {
            list.retain(|known| known.strong_count() > 0);
            list.iter()
                .filter_map(Weak::upgrade)
                .for_each(|line| line.hint.notify_one());
            !list.is_empty()
        });
    }

    /// The namespaces that are open, for a poll. Not every provider polls.
    #[allow(dead_code)]
    pub(crate) fn open(&self) -> Vec<String> {
        let waiting = self.waiting();
        let open = waiting
            .iter()
            .filter(|(_, list)| list.iter().any(|w| w.strong_count() > 0));
        open.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// The namespaces that someone waits for now.
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    pub(crate) fn waited_for(&self) -> Vec<String> {
        let waits = |line: &Weak<Line>| {
            let line = line.upgrade();
            line.is_some_and(|line| line.waits.load(Ordering::Relaxed) > 0)
        };
        let waiting = self.waiting();
        let waited = waiting.iter().filter(|(_, list)| list.iter().any(waits));
        waited.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Ends when someone began to wait since this last ended.
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<Line>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_hint_reaches_its_namespace_once_and_is_not_lost() {
        let bus = HintBus::default();
        let (a, b) = (bus.subscribe("a"), bus.subscribe("b"));
        let ended = |hints: &Hints| hints.next().now_or_never().is_some();
        assert!(!ended(&a), "no hint came");
        bus.wake("a");
        bus.wake("a");
        bus.wake("nobody");
        assert!(!ended(&b), "it was for another");
        assert!(ended(&a), "a hint that came before the wait");
        assert!(!ended(&a), "two hints stand for one");

        // A future that is dropped after it was woken gives the hint back.
        let mut dropped = Box::pin(a.next());
        assert!((&mut dropped).now_or_never().is_none());
        bus.wake("a");
        drop(dropped);
        assert!(ended(&a), "the hint was lost");
    }

    #[test]
    fn it_is_known_who_waits() {
        let bus = HintBus::default();
        let (a, _b) = (bus.subscribe("a"), bus.subscribe("b"));
        assert!(bus.waited_for().is_empty() && bus.asked().now_or_never().is_none());
        let mut waits = Box::pin(a.next());
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(bus.waited_for(), ["a"]);
        assert!(bus.asked().now_or_never().is_some());
        drop(waits);
        assert!(bus.waited_for().is_empty());
    }

    #[test]
    fn waking_all_reaches_all_that_are_open() {
        let bus = HintBus::default();
        let (first, second) = (bus.subscribe("a"), bus.subscribe("a"));
        drop(bus.subscribe("gone"));
        bus.wake_all();
        assert!(first.next().now_or_never().is_some() && second.next().now_or_never().is_some());
        assert_eq!(bus.open(), ["a"]);
    }
}
