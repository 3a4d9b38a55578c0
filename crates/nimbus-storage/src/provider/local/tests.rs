//! Tests of what files of every kind have in common.

use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_crypto::{
    Dek, KeyContext, KeyError, KeyFuture, KeyProvider, MasterKeyFile, WrappedKey, WrappingKey,
};

use super::*;
use crate::provider::redb::{RedbOptions, RedbProvider};
use crate::provider::sqlite::{SqliteOptions, SqliteProvider};
use crate::provider::{Keyspace, Provider};

/// A master key whose service does not answer while it is away.
#[derive(Debug)]
struct Service {
    key: MasterKeyFile,
    away: AtomicBool,
}

impl Service {
    fn new() -> Arc<Service> {
        Arc::new(Service {
            key: MasterKeyFile::new(WrappingKey::generate().unwrap()),
            away: AtomicBool::new(false),
        })
    }
}

impl KeyProvider for Service {
    fn name(&self) -> &str {
        self.key.name()
    }

    fn key_id<'a>(&'a self, subject: &'a Subject) -> KeyFuture<'a, String> {
        self.key.key_id(subject)
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        self.key.wrap_key(context, dek)
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        if self.away.load(Ordering::Relaxed) {
            let error = KeyError::Service {
                provider: self.name().to_owned(),
                subject: context.subject.to_string(),
                source: "away".into(),
            };
            return Box::pin(async { Err(error) });
        }
        self.key.unwrap_key(context, wrapped)
    }
}

/// A directory with files of one kind.
struct Home {
    dir: tempfile::TempDir,
    name: &'static str,
    keyring: Option<Arc<Keyring>>,
}

impl Home {
    fn new(name: &'static str, service: Option<&Arc<Service>>) -> Home {
        let service = service.map(|service| Arc::clone(service) as Arc<dyn KeyProvider>);
        Home {
            dir: tempfile::tempdir().unwrap(),
            name,
            keyring: service.map(|service| Keyring::new(service).unwrap()),
        }
    }

    fn control(&self) -> Arc<ControlDb> {
        Arc::new(ControlDb::open(self.dir.path()).unwrap())
    }

    fn provider(&self, control: Arc<ControlDb>) -> Arc<dyn Provider> {
        if self.name == "redb" {
            let mut options = RedbOptions::new(self.dir.path());
            options.keyring.clone_from(&self.keyring);
            return Arc::new(RedbProvider::open(options, control).unwrap());
        }
        let mut options = SqliteOptions::new(self.dir.path());
        options.keyring.clone_from(&self.keyring);
        Arc::new(SqliteProvider::open(options, control).unwrap())
    }

    /// Names in the directory, without the control database.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| !name.starts_with("nimbus-control"));
        names.sort();
        names
    }
}

fn tenant() -> TenantId {
    "t".parse().unwrap()
}

/// Whether a file without its key holds data is not to be seen, so it stays, and so does its entry.
#[tokio::test]
async fn an_interrupted_creation_waits_for_its_key() {
    for name in ["sqlite", "redb"] {
        let service = Service::new();
        let home = Home::new(name, Some(&service));
        let control = home.control();
        let provider = home.provider(Arc::clone(&control));
        provider.create(&tenant()).await.unwrap();
        drop(provider);
        control
            .put_state(&tenant(), name, TenantState::Creating)
            .unwrap();
        let before = home.names();
        assert_eq!(before.len(), 2, "{before:?}");

        service.away.store(true, Ordering::Relaxed);
        drop(home.provider(Arc::clone(&control)));
        assert_eq!(home.names(), before);
        assert_eq!(control.entries().len(), 1);

        service.away.store(false, Ordering::Relaxed);
        drop(home.provider(Arc::clone(&control)));
        assert_eq!(home.names(), [] as [&str; 0]);
        assert_eq!(control.entries(), []);
    }
}

#[tokio::test]
async fn a_creation_without_its_key_leaves_nothing() {
    for name in ["sqlite", "redb"] {
        let service = Service::new();
        let home = Home::new(name, Some(&service));
        let control = home.control();
        let provider = home.provider(Arc::clone(&control));
        // Made and marked, but the mark needs the key again.
        service.away.store(true, Ordering::Relaxed);
        let e = provider.create_marked(&tenant(), b"mark").await;
        let e = e.unwrap_err();
        assert!(matches!(e, ProviderError::KeyUnavailable { .. }), "{e:?}");
        assert_eq!(home.names(), [] as [&str; 0]);
        assert_eq!(control.entries(), []);
    }
}

/// The mark is there before the tenant is, and a crash in between leaves neither.
#[tokio::test]
async fn a_marked_tenant_has_its_mark_from_the_beginning() {
    for name in ["sqlite", "redb"] {
        let home = Home::new(name, None);
        let control = home.control();
        let provider = home.provider(Arc::clone(&control));
        provider.create_marked(&tenant(), b"mark").await.unwrap();
        let store = provider.open(&tenant()).await.unwrap();
        let mut snapshot = store.snapshot().await.unwrap();
        let found = snapshot.get_many(Keyspace::Meta, &[b"mark"]).await.unwrap();
        assert_eq!(found[0].as_deref(), Some(&b"{}"[..]));
        drop(snapshot);
        store.close().await.unwrap();
        drop(provider);

        control
            .put_state(&tenant(), name, TenantState::Creating)
            .unwrap();
        drop(home.provider(Arc::clone(&control)));
        assert_eq!(home.names(), [] as [&str; 0], "{name}");
        assert_eq!(control.entries(), []);
    }
}

/// A name that someone else took since it was found free is theirs.
#[test]
fn what_someone_else_made_meanwhile_is_not_ours() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("t.sqlite3");
    let keyring = Keyring::new(Service::new()).unwrap();
    let subject = Subject::sqlite_tenant("t").unwrap();
    let (id, mut ours) = (tenant(), Vec::new());
    std::fs::write(&path, "theirs").unwrap();
    let e = claim(&id, &path, &mut ours).unwrap_err();
    assert!(matches!(e, ProviderError::Unregistered { .. }), "{e:?}");
    std::fs::write(manifest_path(&path), "theirs").unwrap();
    let made = new_key(Some(&*keyring), (&id, &subject), &path, &mut ours);
    let e = made.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Unregistered { .. }), "{e:?}");
    assert_eq!(ours, [] as [PathBuf; 0]);
}
