//! Noticing commits of other servers, which MySQL tells nobody of: the heads of the tenants that someone waits
//! for are read, many at a time, on a connection of their own.
//!
//! Must not decide anything by what it reads: it wakes. Nothing is read while nobody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::MySqlConnection;

use super::connect::{Pool, rows};
use super::error::{self, Kind, column};
use super::sql;
use crate::provider::Head;
use crate::provider::external::hints::HintBus;
use crate::provider::external::pool::Dial as _;

/// How often heads are read while somebody waits.
const EVERY: Duration = Duration::from_millis(250);
/// After a failure.
const RECONNECT: Duration = Duration::from_secs(1);
/// Heads that one statement reads.
const AT_ONCE: usize = 100;
/// An answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks after the pool.
const TEND: Duration = Duration::from_secs(10);

/// The newest heads that this server knows.
#[derive(Default)]
pub(super) struct Seen(Mutex<HashMap<String, Known>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// `None` once the tenant is gone.
    head: Option<Head>,
    /// Grows with every commit of this server's own, so that an older read tells nothing.
    changes: u64,
}

impl Seen {
    /// A head that this server read when it opened the tenant, or committed itself, which is no news to it.
    pub(super) fn saw(&self, namespace: &str, head: Head) {
        let mut seen = self.seen();
        let changes = seen.get(namespace).map_or(0, |known| known.changes + 1);
        let head = Some(head);
        seen.insert(namespace.to_owned(), Known { head, changes });
    }

    fn now(&self, namespace: &str) -> Option<Known> {
        self.seen().get(namespace).copied()
    }

    /// Whether a head that was read after `before` was known is news.
    fn is_news(&self, namespace: &str, before: Option<Known>, head: Option<Head>) -> bool {
        let mut seen = self.seen();
        let known = seen.get(namespace).copied();
        if known != before || known.is_some_and(|k| k.head == head) {
            return false;
        }
        let changes = known.map_or(0, |k| k.changes);
        seen.insert(namespace.to_owned(), Known { head, changes });
        true
    }

    fn forget_others(&self, open: &[String]) {
        self.seen().retain(|namespace, _| open.contains(namespace));
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the stores that others committed to, for ever.
pub(super) async fn poll(pool: Arc<Pool>, bus: Arc<HintBus>, seen: Arc<Seen>) {
    let (mut conn, mut failing) = (None, false);
    loop {
        let waited_for = bus.waited_for();
        if waited_for.is_empty() {
            bus.asked().await;
            continue;
        }
        let pause = match poll_once(&mut conn, &pool, &bus, &seen, &waited_for).await {
            Ok(()) => {
                failing = false;
                EVERY
            }
            Err(error) => {
                // Once, and not every second that the server is away.
                if !failing {
                    tracing::warn!(error, "reading the heads of tenants");
                }
                (conn, failing) = (None, true);
                RECONNECT
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn poll_once(
    conn: &mut Option<MySqlConnection>,
    pool: &Pool,
    bus: &HintBus,
    seen: &Seen,
    waited_for: &[String],
) -> Result<(), String> {
    let conn = match conn {
        Some(conn) => conn,
        None => {
            let dialed = tokio::time::timeout(LIMIT, pool.dial().dial()).await;
            let dialed = dialed.map_err(|_| "no connection in time".to_owned())?;
            conn.insert(dialed.map_err(|e| e.to_string())?)
        }
    };
    for some in waited_for.chunks(AT_ONCE) {
        let before: Vec<_> = some.iter().map(|namespace| seen.now(namespace)).collect();
        let heads = heads(conn, some).await.map_err(|e| error::text(&e))?;
        for ((namespace, before), head) in some.iter().zip(before).zip(heads) {
            if seen.is_news(namespace, before, head) {
                bus.wake(namespace);
            }
        }
    }
    Ok(())
}

/// The head of each database; `None` for one that is gone.
async fn heads(
    conn: &mut MySqlConnection,
    namespaces: &[String],
) -> Result<Vec<Option<Head>>, sqlx::Error> {
    match heads_at_once(conn, namespaces).await {
        // One of them spoils it for all.
        Err(e) if error::kind(&e) == Kind::Gone => {}
        known => return known,
    }
    let mut heads = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        let one = heads_at_once(conn, std::slice::from_ref(namespace)).await;
        match one {
            Ok(one) => heads.extend(one),
            Err(e) if error::kind(&e) == Kind::Gone => heads.push(None),
            Err(e) => return Err(e),
        }
    }
    Ok(heads)
}

async fn heads_at_once(
    conn: &mut MySqlConnection,
    namespaces: &[String],
) -> Result<Vec<Option<Head>>, sqlx::Error> {
    let mut heads = vec![None; namespaces.len()];
    for row in rows(conn, LIMIT, sql::heads(namespaces)).await? {
        let number: i64 = column(&row, 0)?;
        let value: &[u8] = column(&row, 1)?;
        let slot = usize::try_from(number).ok().and_then(|n| heads.get_mut(n));
        if let Some(slot) = slot {
            *slot = Head::decode(value);
        }
    }
    Ok(heads)
}

/// Looks after the pool, for ever.
pub(super) async fn tend(pool: Arc<Pool>, bus: Arc<HintBus>, seen: Arc<Seen>) {
    loop {
        pool.tend().await;
        seen.forget_others(&bus.open());
        tokio::time::sleep(TEND).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_did_is_news() {
        let head = |sequence| Head {
            sequence,
            ..Head::EMPTY
        };
        let seen = Seen::default();
        seen.saw("t", Head::EMPTY);
        let before = seen.now("t");
        assert!(!seen.is_news("t", before, Some(Head::EMPTY)));
        assert!(seen.is_news("t", before, Some(head(1))));
        let before = seen.now("t");
        assert!(!seen.is_news("t", before, Some(head(1))), "known by now");
        seen.saw("t", head(2));
        assert!(
            !seen.is_news("t", before, Some(head(1))),
            "read before our own commit"
        );
        let before = seen.now("t");
        assert!(!seen.is_news("t", before, Some(head(2))), "our own");
        assert!(seen.is_news("t", before, None), "deleted");
        let before = seen.now("t");
        assert!(!seen.is_news("t", before, None), "once");
        seen.forget_others(&[]);
        assert_eq!(seen.now("t"), None);
    }
}
