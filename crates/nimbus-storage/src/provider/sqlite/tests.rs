//! Tests of what only the SQLite provider has, by subject; here is what they share.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::*;
use crate::control::{Distinct, TenantState};
use crate::provider::files::small_disk::SmallDisk;
use crate::provider::local::FORMAT_KEY;
use crate::provider::testing::{batch, next, put, tenant};
use crate::provider::{
    Batch, CommitError, Direction, HEAD_KEY, Head, KeyRange, Keyspace, Provider, ProviderError,
    Row, StoreStats,
};

mod encrypted;
mod format;
mod lifecycle;
mod store;
mod tamper;

static PAGE_LIMITS: Mutex<Option<HashMap<PathBuf, u32>>> = Mutex::new(None);

/// Applies to a write connection what [`set_page_limit`] asked for its file.
pub(super) fn limit_pages(conn: &Connection, path: &Path) {
    let limits = PAGE_LIMITS.lock().unwrap();
    if let Some(pages) = limits.as_ref().and_then(|l| l.get(path)) {
        conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .unwrap();
    }
}

fn set_page_limit(path: &Path, pages: u32) {
    PAGE_LIMITS
        .lock()
        .unwrap()
        .get_or_insert_default()
        .insert(path.to_owned(), pages);
}

/// Panics in the writer's thread for a batch that writes this key.
pub(super) fn panic_if_asked(batch: &Batch) {
    let asked = (Keyspace::Docs, PANIC_KEY.to_vec());
    assert!(!batch.writes.contains_key(&asked), "asked to panic");
}

const PANIC_KEY: &[u8] = b"panic in the writer";

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn control(&self) -> ControlDb {
        ControlDb::open(self.dir.path()).unwrap()
    }

    fn provider(&self) -> SqliteProvider {
        self.with(|_| ())
    }

    fn with(&self, change: impl FnOnce(&mut SqliteOptions)) -> SqliteProvider {
        let mut options = SqliteOptions::new(self.dir.path());
        change(&mut options);
        SqliteProvider::open(options, Arc::new(self.control())).unwrap()
    }

    /// Names in the directory, without the control database.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|n| !n.starts_with("nimbus-control"));
        names.sort();
        names
    }
}

async fn rows(store: &Arc<dyn TenantStore>) -> Vec<Row> {
    let mut snapshot = store.snapshot().await.unwrap();
    let all = KeyRange::all();
    snapshot
        .scan(Keyspace::Docs, &all, Direction::Forward, 100)
        .await
        .unwrap()
}

/// Waits until the counters are as asked; fails the test after ten seconds.
async fn until(store: &Arc<dyn TenantStore>, what: &str, ready: impl Fn(&StoreStats) -> bool) {
    let begin = Instant::now();
    while !ready(&store.stats()) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{what}: {:?}",
            store.stats()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

fn is_corrupt<T>(result: &ProviderResult<T>) -> bool {
    matches!(result, Err(ProviderError::Corrupt { .. }))
}
