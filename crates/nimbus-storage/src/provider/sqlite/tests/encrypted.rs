//! Tests of encrypted tenant files: names, keys and manifests that do not belong together, and what
//! becomes of the manifest when a tenant is created and deleted.

use nimbus_crypto::{Manifest, ManifestError, MasterKeyFile, WrappingKey};

use super::*;

fn keyring() -> Arc<Keyring> {
    let key = WrappingKey::generate().unwrap();
    Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap()
}

impl Home {
    fn encrypted(&self, keyring: &Arc<Keyring>) -> SqliteProvider {
        self.with(|options| options.keyring = Some(Arc::clone(keyring)))
    }
}

/// A tenant with one document, and its store closed.
async fn filled(provider: &SqliteProvider, id: &str) {
    provider.create(&tenant(id)).await.unwrap();
    let store = provider.open(&tenant(id)).await.unwrap();
    put(
        &store,
        Head::EMPTY,
        b"key-canary-7261",
        b"value-canary-7261",
    )
    .await;
    store.close().await.unwrap();
}

async fn refusal(provider: &SqliteProvider, id: &str) -> ProviderError {
    provider.open(&tenant(id)).await.err().unwrap()
}

#[tokio::test]
async fn a_tenant_has_a_manifest_from_its_creation_to_its_deletion() {
    let home = Home::new();
    let provider = home.encrypted(&keyring());
    filled(&provider, "demo").await;
    assert_eq!(home.names(), ["demo.sqlite3", "demo.sqlite3.nimbus-enc"]);
    for name in home.names() {
        assert_eq!(mode(&home.path(&name)), 0o600, "{name}");
    }
    assert_eq!(provider.owned(&tenant("demo")).len(), 2);
    provider.delete(&tenant("demo")).await.unwrap();
    assert_eq!(home.names(), [] as [&str; 0]);
}

#[tokio::test]
async fn nothing_of_the_data_is_in_the_files() {
    let home = Home::new();
    let provider = home.encrypted(&keyring());
    provider.create(&tenant("demo")).await.unwrap();
    let store = provider.open(&tenant("demo")).await.unwrap();
    put(
        &store,
        Head::EMPTY,
        b"key-canary-7261",
        b"value-canary-7261",
    )
    .await;
    // The log is there while the store is open.
    assert!(home.names().contains(&"demo.sqlite3-wal".to_owned()));
    for name in home.names() {
        let bytes = std::fs::read(home.path(&name)).unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!has(b"canary"), "{name}");
        assert!(!has(b"SQLite format"), "{name}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_file_in_plain_text_is_refused_with_the_command_that_encrypts_it() {
    let home = Home::new();
    filled(&home.provider(), "demo").await;
    let e = refusal(&home.encrypted(&keyring()), "demo").await;
    let text = e.to_string();
    assert!(text.contains("sidecar manifest is missing"), "{text}");
    assert!(
        text.contains("nimbus encryption migrate --source"),
        "{text}"
    );
    assert!(
        text.contains("--provider sqlite --tenant-id demo"),
        "{text}"
    );
}

#[tokio::test]
async fn an_encrypted_file_is_refused_while_encryption_is_off() {
    let home = Home::new();
    filled(&home.encrypted(&keyring()), "demo").await;
    let e = refusal(&home.provider(), "demo").await;
    assert!(matches!(e, ProviderError::Encrypted { .. }), "{e:?}");
    assert!(e.to_string().contains("--encryption-key-provider"), "{e}");
}

#[tokio::test]
async fn keys_files_and_manifests_that_do_not_belong_together_are_refused() {
    let home = Home::new();
    let right = keyring();
    let provider = home.encrypted(&right);
    filled(&provider, "one").await;
    filled(&provider, "two").await;
    drop(provider);

    let e = refusal(&home.encrypted(&keyring()), "one").await;
    assert!(e.to_string().contains("wrong key"), "{e}");

    let provider = home.encrypted(&right);
    let swap = |one: &str, other: &str| {
        let (one, other, spare) = (home.path(one), home.path(other), home.path("spare"));
        std::fs::rename(&one, &spare).unwrap();
        std::fs::rename(&other, &one).unwrap();
        std::fs::rename(&spare, &other).unwrap();
    };
    swap("one.sqlite3.nimbus-enc", "two.sqlite3.nimbus-enc");
    let e = refusal(&provider, "one").await;
    let ProviderError::Locked { source, .. } = e else {
        panic!("{e:?}");
    };
    assert!(matches!(*source, ManifestError::Foreign { .. }), "{source}");
    swap("one.sqlite3.nimbus-enc", "two.sqlite3.nimbus-enc");

    swap("one.sqlite3", "two.sqlite3");
    let e = refusal(&provider, "two").await;
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    assert!(e.to_string().contains("do not belong together"), "{e}");
    swap("one.sqlite3", "two.sqlite3");
    drop(provider.open(&tenant("one")).await.unwrap());

    // A manifest beside a file in plain text.
    let plain = Home::new();
    filled(&plain.provider(), "two").await;
    std::fs::copy(plain.path("two.sqlite3"), home.path("two.sqlite3")).unwrap();
    let e = refusal(&provider, "two").await;
    assert!(e.to_string().contains("in plain text although"), "{e}");
}

#[tokio::test]
async fn a_manifest_without_a_file_is_not_overwritten() {
    let home = Home::new();
    let provider = home.encrypted(&keyring());
    std::fs::write(home.path("demo.sqlite3.nimbus-enc"), "of someone").unwrap();
    let e = provider.create(&tenant("demo")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Unregistered { .. }), "{e:?}");
    assert_eq!(home.names(), ["demo.sqlite3.nimbus-enc"]);
}

#[tokio::test]
async fn an_interrupted_creation_leaves_no_manifest() {
    let home = Home::new();
    let keys = keyring();
    home.control()
        .register(
            &tenant("demo"),
            NAME,
            Distinct::Exactly,
            TenantState::Creating,
        )
        .unwrap();
    let subject = file::subject(&tenant("demo")).unwrap();
    keys.create(&home.path("demo.sqlite3"), &subject).unwrap();
    drop(home.encrypted(&keys));
    assert_eq!(home.names(), [] as [&str; 0]);
}

#[tokio::test]
async fn after_an_interrupted_rotation_the_key_that_fits_is_taken() {
    let home = Home::new();
    let master = Arc::new(MasterKeyFile::new(WrappingKey::generate().unwrap()));
    let keys = Keyring::new(master.clone()).unwrap();
    let provider = home.encrypted(&keys);
    filled(&provider, "demo").await;
    let path = home.path("demo.sqlite3");
    let subject = file::subject(&tenant("demo")).unwrap();
    let manifest = Manifest::read(&path, &subject).unwrap();
    let (pending, unlocked) = manifest.begin_rotation(&*master, &subject).await.unwrap();
    pending.replace(&path).unwrap();
    // The file has the current key still.
    provider
        .open(&tenant("demo"))
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    let conn = Connection::open(&path).unwrap();
    file::give_key(&conn, &unlocked.current).unwrap();
    let key = data_encoding::HEXLOWER.encode(unlocked.pending.unwrap().expose_secret());
    conn.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    conn.execute_batch(&format!("PRAGMA rekey = \"x'{key}'\""))
        .unwrap();
    drop(conn);
    // And now the pending one.
    let store = provider.open(&tenant("demo")).await.unwrap();
    assert_eq!(
        store
            .snapshot()
            .await
            .unwrap()
            .head()
            .await
            .unwrap()
            .sequence,
        1
    );
    store.close().await.unwrap();
    pending
        .finish_rotation(&*master, &subject)
        .await
        .unwrap()
        .replace(&path)
        .unwrap();
    provider
        .open(&tenant("demo"))
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
}
