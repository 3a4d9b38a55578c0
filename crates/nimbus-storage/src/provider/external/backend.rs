//! What a database that servers share has to offer, so that its tenants are opened, read and committed to alike.
//!
//! Must not know any database. The stores of Postgres and MySQL are [`super::store::Store`] over their own kind of this.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nimbus_core::TenantId;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::error::Kind;
use super::hints::HintBus;
use super::pool::{Dial, Pool};
use crate::provider::{
    Batch, CommitError, Direction, Head, KeyRange, Keyspace, ProviderError, ProviderResult, Row,
};

/// How long things may take. Shorter in tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// A wait for a connection.
    pub(crate) wait: Duration,
    /// A wait for the head's lock. MySQL has whole seconds.
    pub(crate) lock: Duration,
    /// How long a turn may do nothing before the server ends it. MySQL has whole seconds.
    pub(crate) turn_idle: Duration,
    /// An answer to a statement; longer counts as a lost connection. More than `lock`.
    pub(crate) statement: Duration,
    /// Finding out what became of a commit.
    pub(crate) settle: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            wait: Duration::from_secs(5),
            lock: Duration::from_secs(10),
            turn_idle: Duration::from_secs(5),
            statement: Duration::from_secs(30),
            settle: Duration::from_secs(10),
        }
    }
}

/// Tasks that end with the provider.
pub(crate) struct Tasks(pub(crate) Vec<AbortHandle>);

impl Tasks {
    pub(crate) fn end(&self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the stores of one provider share.
pub(crate) struct Base<D: Dial> {
    pub(crate) pool: Arc<Pool<D>>,
    pub(crate) bus: Arc<HintBus>,
    /// Turns at once: each holds a connection while it waits for other servers.
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) timing: Timing,
    /// For ends of transactions whose owners are gone.
    pub(crate) runtime: Handle,
}

/// A tenant's part of the database, as it was opened.
pub(crate) trait Namespace: Send + Sync + 'static {
    fn tenant(&self) -> &TenantId;

    /// The schema or the database.
    fn name(&self) -> &str;

    fn not_found(&self) -> ProviderError {
        ProviderError::NotFound {
            tenant: self.tenant().clone(),
        }
    }
}

/// What a commit is to change about the head, and how it is recognised.
pub(crate) struct Goal {
    pub(crate) expected: Head,
    pub(crate) new: Head,
    /// A row of the log that this batch alone writes.
    pub(crate) log: Option<(Vec<u8>, Bytes)>,
}

impl Goal {
    /// Whether the head stays as it is, so that it cannot tell whether the batch was committed.
    pub(crate) fn keeps_head(&self) -> bool {
        self.expected == self.new
    }
}

/// What became of a batch that was sent.
pub(crate) enum Sent {
    Committed,
    /// The head was another one; nothing was written.
    Moved,
    /// `at_end`: it may have been committed, unless the server's answer says that it was not.
    Failed {
        error: sqlx::Error,
        at_end: bool,
    },
}

/// Rows of a range that are wanted at once.
pub(crate) struct Wanted<'a> {
    pub(crate) keyspace: Keyspace,
    pub(crate) range: &'a KeyRange,
    pub(crate) direction: Direction,
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// A connection of a backend.
pub(crate) type Conn<B> = <<B as Backend>::Dial as Dial>::Conn;
/// What comes of statements: they fail as the database says, or what they read makes no sense.
pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, sqlx::Error>>;

/// A database, as its stores use it.
pub(crate) trait Backend: Send + Sync + Sized + 'static {
    type Dial: Dial;
    type Space: Namespace;
    /// A batch as the database takes it.
    type Plan: Send + Sync + 'static;

    fn base(&self) -> &Base<Self::Dial>;

    fn kind(error: &sqlx::Error) -> Kind;

    /// Whether a lock was not had in time: that wait took long enough.
    fn is_lock_timeout(error: &sqlx::Error) -> bool;

    /// What the server said.
    fn text(error: &sqlx::Error) -> String;

    /// Begins a transaction that sees one state of the namespace; the head in it.
    fn begin_read<'a>(
        conn: &'a mut Conn<Self>,
        space: &'a Self::Space,
    ) -> Answer<'a, ProviderResult<Head>>;

    /// Begins a transaction that sees the newest state, once it has locked the head, for which it waits at most `lock`.
    fn begin_turn<'a>(
        &'a self,
        conn: &'a mut Conn<Self>,
        space: &'a Self::Space,
        lock: Duration,
    ) -> Answer<'a, ProviderResult<Head>>;

    /// Ends a transaction without effect.
    fn end(conn: &mut Conn<Self>) -> Answer<'_, ()>;

    /// Ends a transaction if there is one, without effect, and reads the head.
    fn end_and_look<'a>(
        conn: &'a mut Conn<Self>,
        space: &'a Self::Space,
    ) -> Answer<'a, ProviderResult<Head>>;

    /// The values of some keys, in their order.
    fn get_many<'a>(
        conn: &'a mut Conn<Self>,
        space: &'a Self::Space,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> Answer<'a, Vec<Option<Bytes>>>;

    /// The first rows of a range, and whether there may be more of it that were wanted.
    fn scan<'a>(
        conn: &'a mut Conn<Self>,
        space: &'a Self::Space,
        wanted: Wanted<'a>,
    ) -> Answer<'a, (Vec<Row>, bool)>;

    /// # Errors
    /// `Refused` for a batch that the database does not take.
    fn plan(
        &self,
        space: &Arc<Self::Space>,
        expected: Head,
        batch: Batch,
    ) -> Result<Self::Plan, CommitError>;

    fn goal(plan: &Self::Plan) -> &Goal;

    fn space(plan: &Self::Plan) -> &Arc<Self::Space>;

    /// Commits a batch on a connection that is in no transaction. A batch that leaves the head as it is locks it first:
    /// it could otherwise be done a second time by a packet that was still on its way.
    fn commit<'a>(&'a self, conn: &'a mut Conn<Self>, plan: &'a Self::Plan) -> BoxFuture<'a, Sent>;

    /// Commits a batch in the transaction of a turn.
    fn commit_turn<'a>(
        &'a self,
        conn: &'a mut Conn<Self>,
        plan: &'a Self::Plan,
    ) -> BoxFuture<'a, Sent>;

    /// A batch was committed.
    fn committed(&self, space: &Self::Space, head: Head);
}
