//! A backup of one provider is restored into any other, plain or encrypted, and is the same there.

use std::io::Cursor;
use std::sync::Arc;

use nimbus_crypto::{MasterKeyFile, WrappingKey};
use nimbus_storage::backup::{Backup, Source, restore, verify};
use nimbus_storage::control::ControlDb;
use nimbus_storage::core::{Object, TableName, TenantId, Value};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::{
    Engine, EngineOptions, FieldSchema, FieldType, IndexSchema, Provider, TableSchema,
};

fn keyring() -> Arc<Keyring> {
    let key = WrappingKey::generate().unwrap();
    Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap()
}

fn engine(dir: &tempfile::TempDir, redb: bool, keyring: Option<Arc<Keyring>>) -> Engine {
    let control = Arc::new(ControlDb::open(dir.path()).unwrap());
    let provider: Arc<dyn Provider> = if redb {
        let mut options = RedbOptions::new(dir.path());
        options.keyring = keyring;
        Arc::new(RedbProvider::open(options, control).unwrap())
    } else {
        let mut options = SqliteOptions::new(dir.path());
        options.keyring = keyring;
        Arc::new(SqliteProvider::open(options, control).unwrap())
    };
    Engine::new(provider, EngineOptions::default())
}

async fn bytes_of(engine: &Engine, keyring: Option<Arc<Keyring>>) -> Vec<u8> {
    let mut backup = Backup::begin(engine, &[], keyring).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

fn open(bytes: &[u8], keyring: Option<Arc<Keyring>>) -> Source {
    let input = Cursor::new(bytes.to_vec());
    // Not within an asynchronous task, which the key provider must not block.
    let opened = std::thread::spawn(move || Source::open(input, keyring.as_deref()));
    opened.join().unwrap().unwrap()
}

/// What stays the same from one plain backup to the next of the same tenants: all but the header.
fn content(bytes: &[u8]) -> Vec<u8> {
    let front = b"{\"tenant\":\"a";
    let start = bytes.windows(front.len()).position(|w| w == front);
    let end = bytes.len() - 45;
    bytes[start.unwrap()..end].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_each_provider_into_each() {
    let kinds = [(false, false), (true, false), (false, true), (true, true)];
    let dir = tempfile::tempdir().unwrap();
    let mut from = engine(&dir, false, None);
    let (id, table): (TenantId, TableName) = ("a".parse().unwrap(), "notes".parse().unwrap());
    from.create_tenant(&id).await.unwrap();
    let tenant = from.tenant(&id).await.unwrap();
    let field = |name: &str| FieldSchema {
        name: name.into(),
        field_type: FieldType::Any,
        required: false,
    };
    tenant
        .put_schema(TableSchema {
            table: table.clone(),
            fields: vec![field("n"), field("s")],
            indexes: vec![IndexSchema {
                name: "by_s".parse().unwrap(),
                fields: vec!["s".parse().unwrap()],
                id: None,
                state: None,
            }],
        })
        .await
        .unwrap();
    for n in 0..40 {
        let s = Value::String("canary ".repeat(n * 100 + 1));
        let fields = Object::from([
            ("n".to_owned(), Value::Float64(n as f64)),
            ("s".to_owned(), s),
        ]);
        tenant.insert(&table, fields).await.unwrap();
    }
    drop(tenant);
    let plain = bytes_of(&from, None).await;
    let mut dirs = vec![dir];
    // Every ordered pair of kinds once.
    for to in [0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 2, 2, 3, 3, 0].map(|n: usize| kinds[n]) {
        let key = keyring();
        let sealed = bytes_of(&from, Some(key.clone())).await;
        assert!(!sealed.windows(6).any(|w| w == b"canary"));
        assert_eq!(
            verify(open(&sealed, Some(key.clone()))).unwrap().tenants[0].documents,
            40
        );
        let dir = tempfile::tempdir().unwrap();
        let next = engine(&dir, to.0, to.1.then(keyring));
        restore(&next, open(&sealed, Some(key)), &[]).await.unwrap();
        from.close().await.unwrap();
        let tenant = next.tenant(&id).await.unwrap();
        assert!(tenant.consistency().await.unwrap().ok);
        drop(tenant);
        let again = bytes_of(&next, None).await;
        assert!(content(&again) == content(&plain), "{to:?}");
        from = next;
        dirs.push(dir);
    }
}
