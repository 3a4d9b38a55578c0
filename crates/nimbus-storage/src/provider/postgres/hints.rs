//! Notifications: what was committed here goes out to other servers, and what they committed comes in.
//!
//! Must not be relied on: a notification is a hint, sent after the commit on a connection of its own. Where
//! none arrive (a connection pooler, a database without LISTEN), every open store is told to look twice a second.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::Notify;

use super::connect::Pool;
use super::error;
use crate::control::RandomId;
use crate::provider::external::hints::HintBus;

/// How long a lost connection is left alone.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long the notification that a new listener waits for may take.
const ARRIVES_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks where no notifications arrive.
const POLL: Duration = Duration::from_millis(500);
/// How long it is polled before notifications are tried again.
const POLL_FOR: Duration = Duration::from_secs(60);
/// Between two rounds of looking after the pool.
const TEND: Duration = Duration::from_secs(30);
/// Sent to find out whether notifications arrive.
const PROBE: &str = "probe";

/// Namespaces that were committed to and that others were not told of yet.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<BTreeSet<String>>,
    wake: Notify,
    /// The server process that sends, whose notifications are our own.
    sender: AtomicU32,
}

impl Outbox {
    /// Has others told.
    pub(super) fn committed(&self, namespace: &str) {
        self.add(namespace);
    }

    fn add(&self, payload: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.contains(payload) {
            waiting.insert(payload.to_owned());
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_iter().collect()
    }
}

/// The channel of an installation.
pub(super) fn channel(installation: RandomId) -> String {
    format!("nimbus_{installation}")
}

/// Sends what the outbox holds, many at a time, for ever.
pub(super) async fn send(options: PgConnectOptions, channel: String, outbox: Arc<Outbox>) {
    let mut conn = None;
    loop {
        outbox.wake.notified().await;
        let payloads = outbox.take();
        if payloads.is_empty() {
            continue;
        }
        if let Err(e) = send_once(&mut conn, &options, &channel, &outbox, &payloads).await {
            tracing::warn!(error = error::text(&e), "telling other servers of commits");
            conn = None;
            payloads.iter().for_each(|payload| outbox.add(payload));
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

async fn send_once(
    conn: &mut Option<PgConnection>,
    options: &PgConnectOptions,
    channel: &str,
    outbox: &Outbox,
    payloads: &[String],
) -> Result<(), sqlx::Error> {
    let conn = match conn {
        Some(conn) => conn,
        None => {
            let mut new = options.connect().await?;
            let (pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()")
                .fetch_one(&mut new)
                .await?;
            outbox.sender.store(pid.cast_unsigned(), Ordering::Relaxed);
            conn.insert(new)
        }
    };
    sqlx::query("SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload")
        .bind(channel)
        .bind(payloads)
        .execute(conn)
        .await
        .map(drop)
}

/// Wakes the stores that others committed to, for ever.
pub(super) async fn listen(
    options: PgConnectOptions,
    channel: String,
    outbox: Arc<Outbox>,
    bus: Arc<HintBus>,
) {
    loop {
        match listen_once(&options, &channel, &outbox, &bus).await {
            Ended::Lost(e) => {
                tracing::info!(error = e, "lost the connection for notifications");
                bus.wake_all();
                tokio::time::sleep(RECONNECT).await;
            }
            Ended::Silent(why) => {
                tracing::warn!(why, "no notifications arrive; polling");
                let until = tokio::time::Instant::now() + POLL_FOR;
                while tokio::time::Instant::now() < until {
                    bus.wake_all();
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        // What came in between was missed.
        bus.wake_all();
    }
}

enum Ended {
    Lost(String),
    Silent(String),
}

async fn listen_once(
    options: &PgConnectOptions,
    channel: &str,
    outbox: &Outbox,
    bus: &HintBus,
) -> Ended {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options.clone());
    let mut listener = match PgListener::connect_with(&pool).await {
        Ok(listener) => listener,
        Err(e) => return Ended::Lost(error::text(&e)),
    };
    listener.eager_reconnect(false);
    if let Err(e) = listener.listen(channel).await {
        return match error::kind(&e) {
            error::Kind::Lost => Ended::Lost(error::text(&e)),
            _ => Ended::Silent(error::text(&e)),
        };
    }
    outbox.add(PROBE);
    // Commits from before it listened were missed.
    bus.wake_all();
    let mut arrived = false;
    loop {
        let next = listener.try_recv();
        let next = match arrived {
            true => next.await,
            false => match tokio::time::timeout(ARRIVES_WITHIN, next).await {
                Ok(next) => next,
                Err(_) => return Ended::Silent("a notification did not arrive".to_owned()),
            },
        };
        match next {
            Ok(Some(notification)) => {
                arrived = true;
                let own = notification.process_id() == outbox.sender.load(Ordering::Relaxed);
                if !own && notification.payload() != PROBE {
                    bus.wake(notification.payload());
                }
            }
            Ok(None) => return Ended::Lost("the server ended it".to_owned()),
            Err(e) => return Ended::Lost(error::text(&e)),
        }
    }
}

/// Looks after the pool, for ever.
pub(super) async fn tend(pool: Arc<Pool>) {
    loop {
        pool.tend().await;
        tokio::time::sleep(TEND).await;
    }
}
