//! Connections to a shared database: a bounded number, some of which only commits may use.
//!
//! Must not know a database: what a connection is and how one is made is a [`Dial`]. A connection comes back by
//! [`Lease::give_back`] alone, so a future that is dropped in the middle of something leaves none in an unknown
//! state. Unlike `sqlx::Pool` it sends nothing when a connection comes back, and tells readers from commits.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PoolSize;
use crate::provider::{ProviderError, ProviderResult};

/// How long a connection that nobody uses is kept.
const IDLE_FOR: Duration = Duration::from_secs(300);
/// How long making a connection may take.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// Makes connections.
pub(crate) trait Dial: Send + Sync + 'static {
    /// A connection. Dropping it closes it.
    type Conn: Send + 'static;

    /// A new connection, with everything set for its use.
    fn dial(&self) -> BoxFuture<'_, ProviderResult<Self::Conn>>;

    /// Ends a connection politely.
    fn hang_up(conn: Self::Conn) -> BoxFuture<'static, ()>;
}

/// Who asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A read, which may have to wait for others.
    Read,
    /// A commit, or work on the registry.
    Commit,
}

/// The connections of one provider.
pub(crate) struct Pool<D: Dial> {
    dial: D,
    size: PoolSize,
    wait: Duration,
    /// Fair: first come, first served.
    all: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    /// The newest is last and is used first.
    idle: Mutex<Vec<(D::Conn, Instant)>>,
    made: AtomicU32,
    closed: AtomicBool,
}

/// A connection in use. Dropping it closes the connection.
pub(crate) struct Lease<D: Dial> {
    // Declared first: the permits go back after the connection.
    conn: Option<D::Conn>,
    /// Whether the connection was made just now, so that nothing can have happened to it.
    pub(crate) fresh: bool,
    pool: Arc<Pool<D>>,
    _permits: (Option<OwnedSemaphorePermit>, OwnedSemaphorePermit),
}

impl<D: Dial> Pool<D> {
    /// An empty pool; `wait` bounds every wait for a connection. The sizes were checked.
    pub(crate) fn new(dial: D, size: PoolSize, wait: Duration) -> Arc<Pool<D>> {
        Arc::new(Pool {
            dial,
            size,
            wait,
            all: Arc::new(Semaphore::new(size.pooled() as usize)),
            readers: Arc::new(Semaphore::new(size.readers() as usize)),
            idle: Mutex::default(),
            made: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// What makes the connections.
    pub(crate) fn dial(&self) -> &D {
        &self.dial
    }

    /// A connection, from those that nobody uses or a new one.
    ///
    /// # Errors
    /// `Busy` when none was free in time, `Closed`, or what the dial says.
    pub(crate) async fn get(self: &Arc<Self>, r#use: Use) -> ProviderResult<Lease<D>> {
        let permits = self.within(self.permits(r#use)).await??;
        let (conn, fresh) = match self.pop() {
            Some(conn) => (conn, false),
            None => (self.dial_within().await?, true),
        };
        Ok(Lease {
            conn: Some(conn),
            fresh,
            pool: self.clone(),
            _permits: permits,
        })
    }

    async fn permits(
        &self,
        r#use: Use,
    ) -> ProviderResult<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit)> {
        let closed = |_| ProviderError::Closed;
        let reader = match r#use {
            Use::Read => Some(self.readers.clone().acquire_owned().await.map_err(closed)?),
            Use::Commit => None,
        };
        let any = self.all.clone().acquire_owned().await.map_err(closed)?;
        Ok((reader, any))
    }

    async fn within<T>(&self, waiting: impl Future<Output = T>) -> ProviderResult<T> {
        tokio::time::timeout(self.wait, waiting).await.map_err(|_| {
            let (size, seconds) = (self.size.pooled(), self.wait.as_secs_f64());
            let what = format!("all {size} connections stayed in use for {seconds} s");
            ProviderError::Busy { what }
        })
    }

    async fn dial_within(&self) -> ProviderResult<D::Conn> {
        let dialed = tokio::time::timeout(DIAL_WITHIN, self.dial.dial()).await;
        let conn = dialed.unwrap_or_else(|_| {
            let seconds = DIAL_WITHIN.as_secs();
            let why = format!("no answer within {seconds} s");
            Err(ProviderError::io("connecting to the database", why))
        })?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(conn)
    }

    fn pop(&self) -> Option<D::Conn> {
        self.idle().pop().map(|(conn, _)| conn)
    }

    /// Closes the connections that nobody uses: one of them turned out to be dead.
    pub(crate) fn forget_idle(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    /// Ends connections that nobody used for a while, and makes the ones that are to be kept.
    pub(crate) async fn tend(&self) {
        let old: Vec<D::Conn> = {
            let mut idle = self.idle();
            let spare = idle.len().saturating_sub(self.size.min as usize);
            let is_old = |(_, since): &&(D::Conn, Instant)| since.elapsed() > IDLE_FOR;
            let old = idle.iter().take(spare).take_while(is_old).count();
            idle.drain(..old).map(|(conn, _)| conn).collect()
        };
        for conn in old {
            D::hang_up(conn).await;
        }
        while self.open() < self.size.min as usize {
            let Ok(_permit) = self.all.clone().try_acquire_owned() else {
                return;
            };
            match self.dial_within().await {
                Ok(conn) => self.put(conn),
                Err(error) => {
                    tracing::warn!(%error, "making a connection ahead");
                    return;
                }
            }
        }
    }

    /// Connections in use and kept.
    fn open(&self) -> usize {
        let used = self.size.pooled() as usize - self.all.available_permits();
        used + self.idle().len()
    }

    /// Connections made since the start.
    #[cfg(test)]
    pub(crate) fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }

    fn put(&self, conn: D::Conn) {
        let mut idle = self.idle();
        // Under the lock, so that closing misses none.
        if !self.closed.load(Ordering::Relaxed) {
            idle.push((conn, Instant::now()));
        }
    }

    /// Refuses further use and ends the connections that nobody uses. Those in use end when they come back.
    pub(crate) async fn close(&self) {
        let idle = {
            let mut idle = self.idle();
            self.closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *idle)
        };
        self.all.close();
        self.readers.close();
        for (conn, _) in idle {
            D::hang_up(conn).await;
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(D::Conn, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Dial> Lease<D> {
    /// The connection.
    ///
    /// # Errors
    /// `Closed`, which cannot happen before [`Lease::give_back`].
    pub(crate) fn conn(&mut self) -> ProviderResult<&mut D::Conn> {
        self.conn.as_mut().ok_or(ProviderError::Closed)
    }

    /// Keeps the connection for others. It is in no transaction, and nothing is under way on it.
    pub(crate) fn give_back(mut self) {
        if let Some(conn) = self.conn.take() {
            self.pool.put(conn);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    struct Numbers(AtomicU32);

    impl Dial for Numbers {
        type Conn = u32;

        fn dial(&self) -> BoxFuture<'_, ProviderResult<u32>> {
            std::future::ready(Ok(self.0.fetch_add(1, Ordering::Relaxed))).boxed()
        }

        fn hang_up(_: u32) -> BoxFuture<'static, ()> {
            std::future::ready(()).boxed()
        }
    }

    fn pool(min: u32, max: u32) -> Arc<Pool<Numbers>> {
        let size = PoolSize { min, max };
        Pool::new(Numbers(AtomicU32::new(0)), size, Duration::from_millis(20))
    }

    #[tokio::test]
    async fn readers_leave_room_for_commits() {
        let pool = pool(0, 6);
        let _first = pool.get(Use::Read).await.unwrap();
        let second = pool.get(Use::Read).await.unwrap();
        let refused = pool.get(Use::Read).await.err().unwrap();
        assert!(matches!(refused, ProviderError::Busy { .. }), "{refused}");
        let _third = pool.get(Use::Commit).await.unwrap();
        let _fourth = pool.get(Use::Commit).await.unwrap();
        assert!(matches!(
            pool.get(Use::Commit).await,
            Err(ProviderError::Busy { .. })
        ));
        second.give_back();
        let again = pool.get(Use::Read).await.unwrap();
        assert!(
            !again.fresh && pool.made() == 4,
            "one that came back is used again"
        );
    }

    #[tokio::test]
    async fn only_what_is_given_back_is_used_again() {
        let pool = pool(0, 6);
        drop(pool.get(Use::Read).await.unwrap());
        let mut lease = pool.get(Use::Read).await.unwrap();
        assert_eq!(*lease.conn().unwrap(), 1);
        lease.give_back();
        pool.forget_idle();
        assert!(pool.get(Use::Read).await.unwrap().fresh);
    }

    #[tokio::test]
    async fn a_minimum_is_kept_and_closing_ends_all() {
        let pool = pool(2, 6);
        pool.tend().await;
        pool.tend().await;
        assert_eq!((pool.made(), pool.idle().len()), (2, 2));
        let lease = pool.get(Use::Commit).await.unwrap();
        pool.close().await;
        lease.give_back();
        assert!(pool.idle().is_empty());
        assert!(matches!(
            pool.get(Use::Commit).await,
            Err(ProviderError::Closed)
        ));
    }
}
