//! Results of queries, kept while nothing that they read changed, and runs that are shared
//! (convex.md 6.2).
//!
//! What was read says when a result is over, so the cache needs no clock but for results that
//! looked at it. It must not know how a query runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_core::{TenantId, Value};
use nimbus_storage::ReadWatch;
use serde::Serialize;
use tokio::sync::watch;

use super::call::Ran;
use super::identity::Identity;
use super::service::Job;

/// How long a result that looked at the clock is good (convex.md 6.2).
const OBSERVED_TIME: Duration = Duration::from_secs(17);
/// What an entry costs beside its texts and values, in bytes, roughly.
const ENTRY_BYTES: usize = 1_024;

/// A run of a query and what it depends on.
pub(super) struct QueryRun {
    pub ran: Ran,
    /// End cursor of its page, for a subscription that runs it again.
    pub journal: Option<String>,
    /// `None` for a result that is not kept.
    pub watch: Option<ReadWatch>,
    /// When it began, if it looked at the clock.
    pub observed: Option<Instant>,
    pub identity_read: bool,
}

impl QueryRun {
    /// One that did not begin.
    pub(super) fn refused(ran: Ran) -> QueryRun {
        QueryRun {
            ran,
            journal: None,
            watch: None,
            observed: None,
            identity_read: false,
        }
    }

    /// Whether a run that began now would have this result, every acknowledged write included.
    pub(super) fn is_current(&self) -> bool {
        let fresh = self.observed.is_none_or(|at| at.elapsed() < OBSERVED_TIME);
        fresh && self.watch.as_ref().is_some_and(ReadWatch::is_valid)
    }

    fn size(&self) -> usize {
        let value = self.ran.result.as_ref().map_or(0, Value::memory);
        let lines: usize = self.ran.log_lines.iter().map(|line| line.len() + 24).sum();
        value + lines + self.journal.as_ref().map_or(0, String::len)
    }
}

/// What a query is asked for, whoever the user is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    tenant: TenantId,
    path: String,
    args: String,
    journal: Option<String>,
    /// Whether internal functions may be called.
    internal: bool,
    /// Of what governs the tenant.
    authority: u64,
}

impl Key {
    pub(super) fn of(job: &Job) -> Key {
        Key {
            tenant: job.id.clone(),
            path: job.call.path.to_string(),
            args: job.call.args.to_json(),
            journal: job.journal.clone(),
            internal: job.internal,
            authority: job.authority.stamp(),
        }
    }

    fn size(&self) -> usize {
        self.path.len() + self.args.len() + self.journal.as_ref().map_or(0, String::len)
    }
}

type User = Option<Arc<Identity>>;

/// For whom a result is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reader {
    /// For everyone: the function did not ask who the user is.
    Anyone,
    This(User),
}

struct Entry {
    run: Arc<QueryRun>,
    used: u64,
    size: usize,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<(Key, Reader), Entry>,
    /// By last use.
    order: BTreeMap<u64, (Key, Reader)>,
    clock: u64,
    bytes: usize,
    counts: CacheMetrics,
}

/// Counters of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CacheMetrics {
    /// Calls that were answered without a run.
    pub query_cache_hits: u64,
    /// Calls that were not.
    pub query_cache_misses: u64,
    /// Calls that shared the run of another.
    pub query_cache_shared_runs: u64,
    pub query_cache_entries: usize,
    pub query_cache_bytes: usize,
}

type Flights = Mutex<HashMap<(Key, User), watch::Receiver<Option<Arc<QueryRun>>>>>;

/// The cache.
pub(super) struct QueryCache {
    limit: usize,
    kept: Mutex<Kept>,
    flights: Arc<Flights>,
}

/// A call's part in a run.
pub(super) enum Joined {
    /// It is to run the query.
    First(Flight),
    /// Another call runs the same.
    Other(Passenger),
}

/// A run that others may wait for. Dropped without a result, they look again.
pub(super) struct Flight {
    key: (Key, User),
    flights: Arc<Flights>,
    /// Whether others can find it.
    listed: bool,
    told: watch::Sender<Option<Arc<QueryRun>>>,
}

/// A wait for the run of another call.
pub(super) struct Passenger(watch::Receiver<Option<Arc<QueryRun>>>);

impl QueryCache {
    pub(super) fn new(limit: usize) -> QueryCache {
        QueryCache {
            limit,
            kept: Mutex::default(),
            flights: Arc::default(),
        }
    }

    /// Whether anything is kept or shared.
    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// A result that is still what a run would give.
    pub(super) fn get(&self, key: &Key, user: Option<&Arc<Identity>>) -> Option<Arc<QueryRun>> {
        let mut kept = self.lock();
        for reader in [Reader::Anyone, Reader::This(user.cloned())] {
            let slot = (key.clone(), reader);
            let Some(entry) = kept.entries.get(&slot) else {
                continue;
            };
            let run = Arc::clone(&entry.run);
            if run.is_current() {
                kept.touch(slot);
                kept.counts.query_cache_hits += 1;
                return Some(run);
            }
            kept.remove(&slot);
        }
        kept.counts.query_cache_misses += 1;
        None
    }

    /// Keeps a result, if it may be kept.
    pub(super) fn put(&self, key: &Key, user: Option<&Arc<Identity>>, run: &Arc<QueryRun>) {
        let size = ENTRY_BYTES + 2 * key.size() + run.size();
        if run.ran.result.is_err() || !run.is_current() || size > self.limit {
            return;
        }
        let reader = match run.identity_read {
            true => Reader::This(user.cloned()),
            false => Reader::Anyone,
        };
        self.lock()
            .insert((key.clone(), reader), run, size, self.limit);
    }

    /// Joins the run of this query that is in progress, or becomes the first of one.
    pub(super) fn join(&self, key: &Key, user: Option<&Arc<Identity>>) -> Joined {
        let key = (key.clone(), user.cloned());
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return Joined::Other(Passenger(flight.clone()));
        }
        let (told, landed) = watch::channel(None);
        flights.insert(key.clone(), landed);
        Joined::First(Flight {
            key,
            flights: Arc::clone(&self.flights),
            listed: true,
            told,
        })
    }

    pub(super) fn count_shared(&self) {
        self.lock().counts.query_cache_shared_runs += 1;
    }

    /// Drops what is kept of a tenant.
    pub(super) fn forget(&self, tenant: &TenantId) {
        let mut kept = self.lock();
        let slots = kept.entries.keys();
        let slots: Vec<_> = slots
            .filter(|(key, _)| key.tenant == *tenant)
            .cloned()
            .collect();
        for slot in slots {
            kept.remove(&slot);
        }
    }

    pub(super) fn metrics(&self) -> CacheMetrics {
        let kept = self.lock();
        CacheMetrics {
            query_cache_entries: kept.entries.len(),
            query_cache_bytes: kept.bytes,
            ..kept.counts
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn touch(&mut self, slot: (Key, Reader)) {
        self.clock += 1;
        let now = self.clock;
        if let Some(entry) = self.entries.get_mut(&slot) {
            let before = std::mem::replace(&mut entry.used, now);
            self.order.remove(&before);
            self.order.insert(now, slot);
        }
    }

    fn remove(&mut self, slot: &(Key, Reader)) {
        if let Some(entry) = self.entries.remove(slot) {
            self.order.remove(&entry.used);
            self.bytes -= entry.size;
        }
    }

    fn insert(&mut self, slot: (Key, Reader), run: &Arc<QueryRun>, size: usize, limit: usize) {
        self.remove(&slot);
        self.clock += 1;
        let entry = Entry {
            run: Arc::clone(run),
            used: self.clock,
            size,
        };
        self.bytes += size;
        self.order.insert(self.clock, slot.clone());
        self.entries.insert(slot, entry);
        while self.bytes > limit
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }
}

impl Flight {
    /// Gives the result to those who wait. Nobody joins it any more then: who finds the result too old would
    /// otherwise get it once again, as that of a run that began in time.
    pub(super) fn land(mut self, run: &Arc<QueryRun>) {
        self.leave();
        self.told.send_replace(Some(Arc::clone(run)));
    }

    fn leave(&mut self) {
        // Once: what is there afterwards is another's.
        if std::mem::replace(&mut self.listed, false) {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.remove(&self.key);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Passenger {
    /// The result; `None` when the run had none, or its caller left.
    pub(super) async fn landed(mut self) -> Option<Arc<QueryRun>> {
        let landed = self.0.wait_for(Option::is_some).await;
        landed.ok().and_then(|run| run.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn key(tenant: &str, args: &str) -> Key {
        Key {
            tenant: tenant.parse().unwrap(),
            path: "m:f".into(),
            args: args.into(),
            journal: None,
            internal: false,
            authority: 0,
        }
    }

    /// A result without a watch, as of a run whose read set is not kept.
    fn run(text: &str) -> Arc<QueryRun> {
        Arc::new(QueryRun {
            ran: Ran {
                result: Ok(Value::String(text.into())),
                log_lines: Vec::new(),
            },
            journal: None,
            watch: None,
            observed: None,
            identity_read: false,
        })
    }

    fn texts(kept: &Kept) -> Vec<&str> {
        let slots = kept.order.values();
        slots.map(|(key, _)| key.args.as_str()).collect()
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut kept = Kept::default();
        let slot = |args: &str| (key("demo", args), Reader::Anyone);
        for args in ["a", "b", "c"] {
            kept.insert(slot(args), &run(args), 30, 100);
        }
        kept.touch(slot("a"));
        kept.insert(slot("d"), &run("d"), 30, 100);
        assert_eq!(texts(&kept), ["c", "a", "d"]);
        assert_eq!((kept.bytes, kept.entries.len()), (90, 3));
        // The same query again takes its own place.
        kept.insert(slot("c"), &run("c2"), 40, 100);
        assert_eq!(texts(&kept), ["a", "d", "c"]);
        assert_eq!(kept.bytes, 100);
        kept.insert(slot("e"), &run("e"), 100, 100);
        assert_eq!((texts(&kept), kept.bytes), (vec!["e"], 100));
    }

    #[test]
    fn what_cannot_be_watched_is_not_kept_and_a_tenant_is_forgotten() {
        let cache = QueryCache::new(10_000);
        cache.put(&key("demo", "a"), None, &run("x"));
        assert_eq!(cache.metrics().query_cache_entries, 0);
        assert!(cache.get(&key("demo", "a"), None).is_none());
        assert_eq!(cache.metrics().query_cache_misses, 1);
        for tenant in ["demo", "other"] {
            let slot = (key(tenant, "a"), Reader::Anyone);
            cache.lock().insert(slot, &run("x"), 10, 10_000);
        }
        cache.forget(&"demo".parse().unwrap());
        assert_eq!(cache.metrics().query_cache_bytes, 10);
        // A result that is not current is dropped when it is asked for.
        assert!(cache.get(&key("other", "a"), None).is_none());
        assert_eq!(cache.metrics().query_cache_bytes, 0);
        assert!(!QueryCache::new(0).is_on());
    }

    #[tokio::test]
    async fn a_run_is_shared_by_those_who_ask_for_the_same() {
        let cache = QueryCache::new(10_000);
        let (key, other) = (key("demo", "a"), key("demo", "b"));
        let Joined::First(flight) = cache.join(&key, None) else {
            panic!("nobody was first");
        };
        assert!(matches!(cache.join(&other, None), Joined::First(_)));
        let user = Identity::from_base64("eyJ0b2tlbklkZW50aWZpZXIiOiJhfGIifQ==");
        let user = Arc::new(user.unwrap());
        assert!(matches!(cache.join(&key, Some(&user)), Joined::First(_)));
        let Joined::Other(first) = cache.join(&key, None) else {
            panic!("the run is not shared");
        };
        let Joined::Other(second) = cache.join(&key, None) else {
            panic!("the run is not shared");
        };
        flight.land(&run("x"));
        for passenger in [first, second] {
            let landed = passenger.landed().await.unwrap();
            assert_eq!(landed.ran.result, Ok(Value::String("x".into())));
        }
        // A caller who leaves takes nobody along.
        let Joined::First(flight) = cache.join(&key, None) else {
            panic!("the last run has ended");
        };
        let Joined::Other(waiting) = cache.join(&key, None) else {
            panic!("the run is not shared");
        };
        drop(flight);
        assert!(waiting.landed().await.is_none());
        assert!(matches!(cache.join(&key, None), Joined::First(_)));
    }

    /// Looks for the run that it waits for at the moment when that is told.
    struct Looking {
        cache: Arc<QueryCache>,
        found: Mutex<Option<bool>>,
    }

    impl std::task::Wake for Looking {
        fn wake(self: Arc<Looking>) {
            let joined = self.cache.join(&key("demo", "a"), None);
            *self.found.lock().unwrap() = Some(matches!(joined, Joined::Other(_)));
        }
    }

    #[test]
    fn a_run_that_has_ended_is_not_joined_again() {
        let cache = Arc::new(QueryCache::new(10_000));
        let Joined::First(flight) = cache.join(&key("demo", "a"), None) else {
            panic!("nobody was first");
        };
        let Joined::Other(passenger) = cache.join(&key("demo", "a"), None) else {
            panic!("the run is not shared");
        };
        let looking = Arc::new(Looking {
            cache: Arc::clone(&cache),
            found: Mutex::default(),
        });
        let waker = Arc::clone(&looking).into();
        let mut landed = std::pin::pin!(passenger.landed());
        let waiting = landed
            .as_mut()
            .poll(&mut std::task::Context::from_waker(&waker));
        assert!(waiting.is_pending());
        flight.land(&run("old"));
        let found_the_old = *looking.found.lock().unwrap();
        assert_eq!(found_the_old, Some(false));
    }

    #[test]
    fn a_run_that_has_ended_leaves_the_next_one_alone() {
        let cache = QueryCache::new(10_000);
        let slot = key("demo", "a");
        let Joined::First(mut ended) = cache.join(&slot, None) else {
            panic!("nobody was first");
        };
        ended.leave();
        let Joined::First(_next) = cache.join(&slot, None) else {
            panic!("the run has ended");
        };
        drop(ended);
        assert!(matches!(cache.join(&slot, None), Joined::Other(_)));
    }
}
