//! The two traits that a storage backend implements, and the vocabulary they share.
//!
//! A provider keeps ordered byte keys in seven keyspaces per tenant and commits batches
//! atomically and durably. It must not know documents, indexes, schemas or queries: those
//! are engine code, written once above these traits. Run [`crate::conformance`] against
//! an implementation before trusting it.

pub mod combined;
mod error;
#[cfg(any(feature = "libsql", feature = "mysql", feature = "postgres"))]
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres")),
    allow(dead_code, reason = "libSQL uses a part of it")
)]
pub mod external;
pub(crate) mod files;
mod freshness;
#[cfg(feature = "libsql")]
pub mod libsql;
pub(crate) mod local;
pub mod lock;
pub mod memory;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod redb;
pub mod sqlite;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod tamper;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(crate) mod testing;
pub(crate) mod wakes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nimbus_core::TenantId;

pub use error::{CommitError, ProviderError};
pub use freshness::ReplicaFreshness;
pub use wakes::{Wake, WakeStore};

/// What a commit of an embedded provider waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged means on disk: one sync per commit with SQLite (`synchronous=FULL`), two with redb.
    #[default]
    Full,
    /// No sync, and never a loss of order or consistency. SQLite (`synchronous=NORMAL`): a power cut
    /// may take the newest commits. redb: a crash or a power cut takes at most those of the last half
    /// second, or the last 4 MiB of them.
    Relaxed,
}

/// The seven parts of a tenant's data (design section 2).
///
/// A SQL provider keeps one table per keyspace under [`Keyspace::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Keyspace {
    /// Tables, indexes, schema, environment, format version and head.
    Meta = 0,
    /// Document bodies as canonical JSON text.
    Docs = 1,
    /// Index entries; the key carries the document id.
    Index = 2,
    /// Commit records, in parts of at most 4 MiB.
    Log = 3,
    /// Module sources and source maps by content hash.
    Code = 4,
    /// Scheduled functions, crons and session records.
    Jobs = 5,
    /// File metadata, and chunks on external providers.
    Files = 6,
}

impl Keyspace {
    /// Every keyspace, in key order.
    pub const ALL: [Keyspace; 7] = [
        Keyspace::Meta,
        Keyspace::Docs,
        Keyspace::Index,
        Keyspace::Log,
        Keyspace::Code,
        Keyspace::Jobs,
        Keyspace::Files,
    ];

    /// The lower-case name, which SQL providers use for their tables.
    pub const fn name(self) -> &'static str {
        match self {
            Keyspace::Meta => "meta",
            Keyspace::Docs => "docs",
            Keyspace::Index => "index",
            Keyspace::Log => "log",
            Keyspace::Code => "code",
            Keyspace::Jobs => "jobs",
            Keyspace::Files => "files",
        }
    }

    /// The keyspace with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Keyspace> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// The key in [`Keyspace::Meta`] under which a provider stores the encoded [`Head`].
pub const HEAD_KEY: &[u8] = b"head";

/// The newest commit of a tenant: what the next commit builds on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number of the newest commit; 0 before the first.
    pub sequence: u64,
    /// Commit time in nanoseconds since 1970-01-01, strictly increasing per tenant.
    pub timestamp: u64,
    /// SHA-256 of the newest commit record, which chains to the record before it.
    pub hash: [u8; 32],
}

impl Head {
    /// The head of a tenant that has no commit yet.
    pub const EMPTY: Head = Head {
        sequence: 0,
        timestamp: 0,
        hash: [0; 32],
    };
    /// Bytes of an encoded head.
    pub const ENCODED_LEN: usize = 48;

    /// Sequence, timestamp and hash, integers big-endian.
    pub fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut out = [0; Self::ENCODED_LEN];
        out[..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..16].copy_from_slice(&self.timestamp.to_be_bytes());
        out[16..].copy_from_slice(&self.hash);
        out
    }

    /// The head in `bytes`, or `None` if the length is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let bytes: &[u8; Self::ENCODED_LEN] = bytes.try_into().ok()?;
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let (timestamp, rest) = rest.split_first_chunk::<8>()?;
        Some(Head {
            sequence: u64::from_be_bytes(*sequence),
            timestamp: u64::from_be_bytes(*timestamp),
            hash: rest.try_into().ok()?,
        })
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Head({} @{} {:02x}{:02x}..)",
            self.sequence, self.timestamp, self.hash[0], self.hash[1]
        )
    }
}

/// A scan may stop before `limit` once the keys and values it returned reach this many
/// bytes (4 MiB); it never stops earlier while the range holds more rows.
pub const SCAN_BYTES: usize = 4 * 1024 * 1024;

/// What one durable commit writes: everything, or nothing.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The head after this batch; the provider stores it under [`HEAD_KEY`].
    pub head: Head,
    /// Final value of every key touched; `None` deletes. Never names [`HEAD_KEY`].
    pub writes: BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>,
}

/// Half-open range of keys, compared bytewise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key inside the range.
    pub start: Vec<u8>,
    /// First key after the range; `None` means to the end of the keyspace.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// The whole keyspace.
    pub fn all() -> KeyRange {
        KeyRange {
            start: Vec::new(),
            end: None,
        }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: &[u8]) -> KeyRange {
        KeyRange {
            start: prefix.to_vec(),
            end: nimbus_core::key::prefix_successor(prefix),
        }
    }

    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_slice() && self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }

    /// Whether no key can lie inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

/// Order of a range scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Greatest key first.
    Backward,
}

/// A key and its value as a scan returns them.
pub type Row = (Vec<u8>, Bytes);

/// Result of a provider call.
pub type ProviderResult<T> = Result<T, ProviderError>;

/// A storage backend: creates, opens, lists and deletes tenant namespaces.
///
/// All methods are cancel-safe in the sense that a dropped future leaves a namespace either
/// as it was or for the next start to finish (creating and deleting are crash-safe).
pub trait Provider: Send + Sync + 'static {
    /// The name used by `--tenant-provider`, for example `sqlite`.
    fn name(&self) -> &'static str;

    /// Creates an empty namespace and registers it, durably.
    ///
    /// # Errors
    /// `AlreadyExists` if registered, `Unregistered` if files of that name exist without a
    /// registry entry (they are never overwritten), `NameClash` on a case-insensitive disk,
    /// `Full`, `Io`.
    fn create<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>>;

    /// As [`Provider::create`], with a row of [`Keyspace::Meta`] (the value is `{}`) that is there
    /// from the beginning.
    ///
    /// A crash must leave no namespace without the row. This default commits it to one that is
    /// registered already and cannot promise that: providers do better where they can.
    ///
    /// # Errors
    /// As [`Provider::create`].
    fn create_marked<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        Box::pin(async move {
            self.create(tenant).await?;
            let marked = match self.open(tenant).await {
                Ok(store) => write_mark(&*store, mark).await,
                Err(e) => Err(e),
            };
            if marked.is_err()
                && let Err(error) = self.delete(tenant).await
            {
                tracing::warn!(%tenant, %error, "undoing a failed creation");
            }
            marked
        })
    }

    /// As [`Provider::create_marked`], for a tenant that is moved here and is still registered with the provider
    /// that it comes from, which may keep its registry in the same place.
    ///
    /// # Errors
    /// As [`Provider::create`].
    fn create_arriving<'a>(
        &'a self,
        tenant: &'a TenantId,
        mark: &'static [u8],
    ) -> BoxFuture<'a, ProviderResult<()>> {
        self.create_marked(tenant, mark)
    }

    /// The providers that this one is put together from; `None` for one that keeps tenants itself.
    fn combined(&self) -> Option<&combined::CombinedProvider> {
        None
    }

    /// Where the wake times of its tenants are kept, if the servers that share them are to find them there; else each
    /// engine keeps its own.
    fn wakes(&self) -> Option<Arc<dyn WakeStore>> {
        None
    }

    /// Opens a registered namespace.
    ///
    /// # Errors
    /// `NotFound` if not registered, `Corrupt` if the data is not a Nimbus namespace of a
    /// known format, `Io`.
    fn open<'a>(
        &'a self,
        tenant: &'a TenantId,
    ) -> BoxFuture<'a, ProviderResult<Arc<dyn TenantStore>>>;

    /// Removes a namespace and everything it owns. The caller closed its store first.
    ///
    /// # Errors
    /// `NotFound` if not registered, `Io`; after an error the deletion is finished at the next start.
    fn delete<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>>;

    /// Every registered tenant, sorted.
    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>>;

    /// Whether the tenant is registered and ready. Cheap: no disk access on embedded providers.
    fn contains<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<bool>>;

    /// What the provider owns for a tenant, for operators: paths, or qualified names.
    fn owned(&self, tenant: &TenantId) -> Vec<String>;

    /// Tenant data found without a registry entry (reported at start, never overwritten).
    fn unregistered(&self) -> BoxFuture<'_, ProviderResult<Vec<TenantId>>>;

    /// Takes unregistered tenant data into the registry after checking that it opens.
    ///
    /// # Errors
    /// `AlreadyExists` if registered, `NotFound` if there is no data, `Corrupt`, `Io`.
    fn adopt<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<()>>;

    /// Whether the backend can serve now.
    fn health(&self) -> BoxFuture<'_, ProviderResult<()>>;
}

/// Commits the row of [`Provider::create_marked`] to an empty namespace, and closes its store.
pub(crate) async fn write_mark(store: &dyn TenantStore, mark: &[u8]) -> ProviderResult<()> {
    let row = (Keyspace::Meta, mark.to_vec());
    let batch = Batch {
        head: Head::EMPTY,
        writes: BTreeMap::from([(row, Some(Bytes::from_static(b"{}")))]),
    };
    let committed = store.commit(Head::EMPTY, batch).await;
    store.close().await?;
    committed.map_err(|e| match e {
        CommitError::Full { what } => ProviderError::Full { what },
        other => ProviderError::io("marking a new tenant", other),
    })
}

/// One tenant's open namespace.
pub trait TenantStore: Send + Sync + 'static {
    /// A consistent, ordered, read-only view of the newest durable state.
    ///
    /// Waits when all readers are in use. A snapshot should live at most 30 s.
    fn snapshot(&self) -> BoxFuture<'_, ProviderResult<Box<dyn Snapshot>>>;

    /// Forgets what is kept of earlier reads, so that the next snapshot sees what others did to the
    /// data behind this store's back. Commits through this store are seen in any case.
    fn look_again(&self);

    /// Applies `batch` atomically and durably if the stored head still equals `expected`.
    ///
    /// # Errors
    /// See [`CommitError`]: only `OutcomeUnknown` leaves open whether the batch is there.
    /// A caller that drops the future does not cancel the commit.
    fn commit(&self, expected: Head, batch: Batch) -> BoxFuture<'_, Result<(), CommitError>>;

    /// Whether other processes may commit to this namespace while it is open here. Their commits show in
    /// later snapshots, and a commit here that does not know of them fails with `HeadMoved`.
    ///
    /// Once another process deletes the tenant, `snapshot` fails with [`ProviderError::NotFound`] and
    /// `commit` with [`CommitError::Closed`].
    fn is_shared(&self) -> bool {
        false
    }

    /// Ends when another process may have committed since the last call ended, within the provider's
    /// bound (a notification, or a poll). A hint: it may come for nothing, and one may stand for many.
    /// Never ends where the namespace is not shared. Dropping the future loses no hint.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Locks the head of a shared namespace, so that no other process commits until the turn ends.
    /// Waits for the turns of others, in whatever order the backend gives them.
    ///
    /// # Errors
    /// `Transient` when the lock was not had in the provider's waiting time; `Closed`;
    /// `Refused` where the namespace is not shared, which has no turns.
    fn turn(&self) -> BoxFuture<'_, Result<Box<dyn Turn>, CommitError>> {
        let reason = "this storage is not shared and has no turns".to_owned();
        Box::pin(std::future::ready(Err(CommitError::Refused { reason })))
    }

    /// Finishes background work (checkpoint) and releases files and connections.
    /// Later calls fail with `Closed`.
    fn close(&self) -> BoxFuture<'_, ProviderResult<()>>;

    /// Counters since open.
    fn stats(&self) -> StoreStats;

    /// How far a local replica follows its primary; `None` where there is no replica.
    fn freshness(&self) -> Option<ReplicaFreshness> {
        None
    }
}

/// A consistent view; see [`TenantStore::snapshot`].
pub trait Snapshot: Send {
    /// The head that this view was taken at.
    fn head(&mut self) -> BoxFuture<'_, ProviderResult<Head>>;

    /// The value of each key, in the order asked.
    fn get_many<'a>(
        &'a mut self,
        keyspace: Keyspace,
        keys: &'a [&'a [u8]],
    ) -> BoxFuture<'a, ProviderResult<Vec<Option<Bytes>>>>;

    /// At most `limit` rows of `range` in `direction`.
    ///
    /// A provider may return fewer rows than both `limit` and the range hold only once the
    /// rows returned reach [`SCAN_BYTES`]; fewer rows and fewer bytes mean the end of the range.
    fn scan<'a>(
        &'a mut self,
        keyspace: Keyspace,
        range: &'a KeyRange,
        direction: Direction,
        limit: usize,
    ) -> BoxFuture<'a, ProviderResult<Vec<Row>>>;
}

/// The newest state of a shared namespace while nobody else can commit; see [`TenantStore::turn`].
///
/// Dropping it gives the turn up. A backend ends the turn of a process that stopped within 10 s; its
/// commit then fails and nothing of it is written.
pub trait Turn: Snapshot {
    /// Applies `batch` atomically and durably, and ends the turn. The batch builds on
    /// [`Snapshot::head`], which cannot have moved.
    ///
    /// # Errors
    /// As [`TenantStore::commit`], but for `HeadMoved`.
    fn commit(self: Box<Self>, batch: Batch) -> BoxFuture<'static, Result<(), CommitError>>;
}

/// Counters of one open store since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Batches committed.
    pub commits: u64,
    /// Syncs that commits waited for. With full durability one per batch, or two where the backend
    /// commits in two phases.
    pub commit_syncs: u64,
    /// Bytes in the write-ahead log now; 0 where there is none.
    pub wal_bytes: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Read snapshots open now.
    pub open_snapshots: u64,
    /// Age of the oldest open snapshot in milliseconds; 0 when none.
    pub oldest_snapshot_ms: u64,
}
