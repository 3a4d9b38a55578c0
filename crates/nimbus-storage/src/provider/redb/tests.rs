//! Tests of what only the redb provider has, by subject; here is what they share.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};

use nimbus_crypto::{MasterKeyFile, WrappingKey, manifest_path};

use super::*;
use crate::control::{Distinct, TenantState};
use crate::provider::files::{self, small_disk::SmallDisk};
use crate::provider::local::FORMAT_KEY;
use crate::provider::testing::{batch, next, put, tenant};
use crate::provider::{
    Batch, CommitError, Direction, HEAD_KEY, Head, KeyRange, Keyspace, Provider, ProviderError,
    Row, StoreStats,
};

mod damage;
mod lifecycle;
mod store;
mod swaps;

/// Panics in the writer's thread for a batch that writes this key.
pub(super) fn panic_if_asked(batch: &Batch) {
    let asked = (Keyspace::Docs, PANIC_KEY.to_vec());
    assert!(!batch.writes.contains_key(&asked), "asked to panic");
}

static TRUSTING: std::sync::Mutex<Vec<PathBuf>> = std::sync::Mutex::new(Vec::new());

/// Whether commits to this file are to find out by themselves that the disk is full.
pub(super) fn trusts_the_disk(path: &Path) -> bool {
    TRUSTING.lock().unwrap().iter().any(|p| p == path)
}

const PANIC_KEY: &[u8] = b"panic in the writer";

fn keyring() -> Arc<Keyring> {
    let key = WrappingKey::generate().unwrap();
    Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap()
}

struct Home {
    dir: tempfile::TempDir,
    keyring: Option<Arc<Keyring>>,
}

impl Home {
    fn plain() -> Home {
        Home {
            dir: tempfile::tempdir().unwrap(),
            keyring: None,
        }
    }

    fn encrypted() -> Home {
        Home {
            keyring: Some(keyring()),
            ..Home::plain()
        }
    }

    /// Where syncs cost nothing, if there is such a place.
    fn encrypted_in_memory() -> Home {
        let dir = match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => dir,
            Err(_) => tempfile::tempdir().unwrap(),
        };
        Home {
            dir,
            keyring: Some(keyring()),
        }
    }

    fn both() -> [Home; 2] {
        [Home::plain(), Home::encrypted()]
    }

    /// Another directory under the same key.
    fn sibling(&self) -> Home {
        Home {
            keyring: self.keyring.clone(),
            ..Home::plain()
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn control(&self) -> ControlDb {
        ControlDb::open(self.dir.path()).unwrap()
    }

    fn provider(&self) -> RedbProvider {
        self.with(|_| ())
    }

    fn with(&self, change: impl FnOnce(&mut RedbOptions)) -> RedbProvider {
        let mut options = RedbOptions::new(self.dir.path());
        options.keyring.clone_from(&self.keyring);
        change(&mut options);
        RedbProvider::open(options, Arc::new(self.control())).unwrap()
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

    /// The names of these tenants' files.
    fn files_of(&self, tenants: &[&str]) -> Vec<String> {
        let endings = match self.keyring {
            Some(_) => &[".redb", ".redb.nimbus-enc"][..],
            None => &[".redb"],
        };
        let names = tenants
            .iter()
            .flat_map(|t| endings.iter().map(move |e| format!("{t}{e}")));
        names.collect()
    }

    /// Copies a tenant's files from another directory, under another name if asked.
    fn take(&self, from: &Home, name: &str, to: &str) {
        for ending in [".redb", ".redb.nimbus-enc"] {
            let source = from.path(&format!("{name}{ending}"));
            if source.exists() {
                std::fs::copy(source, self.path(&format!("{to}{ending}"))).unwrap();
            }
        }
    }
}

async fn made(provider: &RedbProvider, id: &str) -> Arc<dyn TenantStore> {
    provider.create(&tenant(id)).await.unwrap();
    provider.open(&tenant(id)).await.unwrap()
}

async fn head(store: &Arc<dyn TenantStore>) -> Head {
    store.snapshot().await.unwrap().head().await.unwrap()
}

async fn rows(store: &Arc<dyn TenantStore>) -> Vec<Row> {
    let mut snapshot = store.snapshot().await.unwrap();
    let all = KeyRange::all();
    let scanned = snapshot.scan(Keyspace::Docs, &all, Direction::Forward, 1000);
    scanned.await.unwrap()
}

/// Waits until the counters are as asked; fails the test after ten seconds.
async fn until(store: &Arc<dyn TenantStore>, what: &str, ready: impl Fn(&StoreStats) -> bool) {
    let begin = std::time::Instant::now();
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
    let metadata = std::fs::symlink_metadata(path).unwrap();
    metadata.permissions().mode() & 0o7777
}

fn is_corrupt<T>(result: &ProviderResult<T>) -> bool {
    matches!(result, Err(ProviderError::Corrupt { .. }))
}
