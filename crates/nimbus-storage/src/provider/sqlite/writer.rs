//! The thread that owns a tenant's write connection: one commit after the other, none
//! cancelled half-way, and none after one whose outcome is unknown.
//!
//! Must not know readers. It runs no checkpoint but the last one, when it stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::checkpoint::{self, Wal};
use super::error::{self, Phase};
use super::file::TenantFile;
use super::schema::{self, Stored};
use super::{Durability, connection};
use crate::provider::local::{FORMAT_KEY, Job};
use crate::provider::{
    Batch, CommitError, HEAD_KEY, Head, Keyspace, ProviderError, ProviderResult,
};

/// What the thread shows of itself.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
    /// Set by a commit of unknown outcome: this store commits no more.
    pub(super) failed: AtomicBool,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// All there is of a tenant.
    Tenant,
    /// A copy, whose format row says what it is a copy of and is written with every batch.
    Copy,
}

struct Writer {
    role: Role,
    conn: Connection,
    path: TenantFile,
    durability: Durability,
    counters: Arc<Counters>,
    wal: Arc<Wal>,
}

/// Opens the write connection, checks the file and starts the thread. Blocks.
pub(super) fn start(
    (path, role): (TenantFile, Role),
    durability: Durability,
    counters: Arc<Counters>,
    wal: Arc<Wal>,
) -> ProviderResult<mpsc::Sender<Job>> {
    checkpoint::secure_log(&path)?;
    let mut conn = connection::writer(&path, durability).map_err(|e| path.explain(e))?;
    schema::check(&conn, &path)?;
    schema::read_head(&conn, &path)?;
    path.authentic(&conn)?;
    checkpoint::after_crash(&conn, &path);
    let frames = wal.clone();
    conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, n| {
        frames.committed(u64::try_from(n).unwrap_or(0));
        Ok(())
    }))
    .map_err(|e| error::classify("opening", &path, e))?;
    let (sender, jobs) = mpsc::channel();
    let writer = Writer {
        role,
        conn,
        path,
        durability,
        counters,
        wal,
    };
    let what = format!("starting the writer of {}", writer.path.display());
    std::thread::Builder::new()
        .name("nimbus-commit".to_owned())
        .spawn(move || writer.run(&jobs))
        .map_err(|e| ProviderError::io(what, e))?;
    Ok(sender)
}

impl Writer {
    fn run(self, jobs: &mpsc::Receiver<Job>) {
        let mut stopped = None;
        // Ends without `Stop` when the store is dropped without being closed.
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Commit {
                    expected,
                    batch,
                    reply,
                } => {
                    let result = self.commit_once(expected, &batch);
                    // Nobody waits any more if the caller dropped its future: the commit stands.
                    let _ = reply.send(result);
                }
                Job::Stop { reply } => {
                    stopped = Some(reply);
                    break;
                }
            }
        }
        let failed = self.counters.failed.load(Ordering::Acquire);
        if failed || !checkpoint::last(&self.conn, &self.path, &self.wal) {
            self.keep_log();
        }
        drop(self.conn);
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    /// Closing leaves the log as it is; the next open makes it durable and finds out what it holds.
    /// With a commit of unknown outcome at its end, removing it would not do: a power cut could
    /// bring it back, and with it a commit that had been shown as not made.
    fn keep_log(&self) {
        let keep = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(e) = self.conn.set_db_config(keep, true) {
            tracing::warn!(path = %self.path.display(), error = %e, "the log may be removed");
        }
    }

    fn commit_once(&self, expected: Head, batch: &Batch) -> Result<(), CommitError> {
        if self.durability == Durability::Relaxed && self.wal.unsound() {
            self.counters.failed.store(true, Ordering::Release);
        }
        if self.counters.failed.load(Ordering::Acquire) {
            return Err(CommitError::Closed);
        }
        let run = catch_unwind(AssertUnwindSafe(|| self.commit(expected, batch)));
        let result = run.unwrap_or_else(|_| {
            let reason = format!("the writer of {} panicked", self.path.display());
            Err(CommitError::OutcomeUnknown { reason })
        });
        self.wal.changed();
        match &result {
            Ok(()) => {
                self.counters.commits.fetch_add(1, Ordering::Relaxed);
                if self.durability == Durability::Full {
                    self.counters.syncs.fetch_add(1, Ordering::Relaxed);
                }
                self.wal.request_checkpoint();
            }
            Err(CommitError::OutcomeUnknown { reason }) => {
                self.counters.failed.store(true, Ordering::Release);
                tracing::error!(path = %self.path.display(), %reason, "commit of unknown outcome; the store takes no more commits");
            }
            Err(_) => {}
        }
        result
    }

    fn commit(&self, expected: Head, batch: &Batch) -> Result<(), CommitError> {
        #[cfg(test)]
        super::tests::panic_if_asked(batch);
        refuse_own_keys(self.role, batch)?;
        let begin = self.statement("BEGIN IMMEDIATE");
        begin.map_err(|e| error::commit(&self.path, Phase::Before, e))?;
        let applied = self.check_head(expected).and_then(|()| {
            self.apply(batch)
                .map_err(|e| error::commit(&self.path, Phase::Before, e))?;
            self.statement("COMMIT")
                .map_err(|e| error::commit(&self.path, Phase::Commit, e))
        });
        match applied {
            Ok(()) => Ok(()),
            Err(e) => Err(self.roll_back(e)),
        }
    }

    fn check_head(&self, expected: Head) -> Result<(), CommitError> {
        let actual =
            schema::read_head(&self.conn, &self.path).map_err(|e| CommitError::OutcomeUnknown {
                reason: e.to_string(),
            })?;
        if actual == expected {
            Ok(())
        } else {
            Err(CommitError::HeadMoved { actual })
        }
    }

    fn apply(&self, batch: &Batch) -> rusqlite::Result<()> {
        for ((keyspace, key), value) in &batch.writes {
            let sql = schema::sql(*keyspace);
            match value {
                Some(value) => {
                    let mut put = self.conn.prepare_cached(sql.put)?;
                    put.execute((key.as_slice(), Stored(*keyspace, value)))?;
                }
                None => {
                    self.conn
                        .prepare_cached(sql.delete)?
                        .execute((key.as_slice(),))?;
                }
            }
        }
        schema::write_head(&self.conn, &batch.head)
    }

    /// Ends the transaction; if that fails, whatever `e` was, the connection is not to be used.
    fn roll_back(&self, e: CommitError) -> CommitError {
        // SQLite rolls back by itself after some errors.
        if self.conn.is_autocommit() {
            return e;
        }
        match self.statement("ROLLBACK") {
            Ok(()) => e,
            Err(second) => {
                let reason = format!("{e}; rolling back failed: {second}");
                CommitError::OutcomeUnknown { reason }
            }
        }
    }

    fn statement(&self, sql: &str) -> rusqlite::Result<()> {
        self.conn.prepare_cached(sql)?.execute(()).map(drop)
    }
}

/// The rows that only the provider writes.
fn refuse_own_keys(role: Role, batch: &Batch) -> Result<(), CommitError> {
    for own in [HEAD_KEY, FORMAT_KEY] {
        if role == Role::Copy && own == FORMAT_KEY {
            continue;
        }
        if batch.writes.contains_key(&(Keyspace::Meta, own.to_vec())) {
            let name = String::from_utf8_lossy(own);
            let reason = format!("the batch writes the provider's own row `{name}`");
            return Err(CommitError::Refused { reason });
        }
    }
    Ok(())
}
