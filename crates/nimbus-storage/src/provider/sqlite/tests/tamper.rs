//! Tests of encrypted files that were changed: a bit of the file or of its manifest is refused or changes
//! nothing, a bit of the log ends it at an earlier commit at most, and pages and files of one tenant are
//! none of another's.

use nimbus_crypto::{MasterKeyFile, WrappingKey};

use super::*;
use crate::provider::tamper::{Contents, contents, fill, flip_each, flips, used};

/// Bytes of a page of SQLite.
const PAGE: usize = 4096;

struct Sealed {
    home: Home,
    provider: SqliteProvider,
}

impl Sealed {
    fn new() -> Sealed {
        let master = MasterKeyFile::new(WrappingKey::generate().unwrap());
        let keyring = Keyring::new(Arc::new(master)).unwrap();
        let home = Home::new();
        let provider = home.with(|options| options.keyring = Some(keyring));
        Sealed { home, provider }
    }

    /// What a tenant holds after each commit; its file and log as a kill leaves them, and closed.
    async fn filled(&self, id: &str) -> (Vec<Contents>, [Vec<u8>; 2], Vec<u8>) {
        self.provider.create(&tenant(id)).await.unwrap();
        let store = self.provider.open(&tenant(id)).await.unwrap();
        let states = fill(&store).await;
        let read =
            |ending: &str| std::fs::read(self.home.path(&format!("{id}.sqlite3{ending}"))).unwrap();
        // Reading the file drops the store's locks, and nobody else is here.
        let killed = [read(""), read("-wal")];
        store.close().await.unwrap();
        (states, killed, read(""))
    }

    /// Puts a file and a log in place, and removes the index of an earlier log.
    fn put(&self, id: &str, file: &[u8], log: Option<&[u8]>) {
        let path = |ending: &str| self.home.path(&format!("{id}.sqlite3{ending}"));
        std::fs::write(path(""), file).unwrap();
        for ending in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(path(ending));
        }
        if let Some(log) = log {
            std::fs::write(path("-wal"), log).unwrap();
        }
    }
}

#[tokio::test]
async fn a_changed_bit_of_the_file_is_refused_or_irrelevant() {
    let sealed = Sealed::new();
    let (states, _, file) = sealed.filled("t").await;
    assert!(file.len() > 900_000, "{}", file.len());
    let tenant = tenant("t");
    let met = flip_each(
        (&sealed.provider, &tenant),
        || sealed.put("t", &file, None),
        (&sealed.home.path("t.sqlite3"), &file),
        &flips(5_000, file.len()),
        (&states, false),
    )
    .await;
    // Every page in use is read; those that are free are not.
    assert!(met.refused > met.equal && met.earlier == 0, "{met:?}");
}

#[tokio::test]
async fn a_changed_bit_of_the_log_ends_it_at_an_earlier_commit_at_most() {
    let sealed = Sealed::new();
    let (states, [file, log], _) = sealed.filled("t").await;
    assert!(log.len() > 900_000, "{}", log.len());
    let tenant = tenant("t");
    let met = flip_each(
        (&sealed.provider, &tenant),
        || sealed.put("t", &file, None),
        (&sealed.home.path("t.sqlite3-wal"), &log),
        &flips(1_000, log.len()),
        (&states, true),
    )
    .await;
    assert!(met.earlier > 0, "{met:?}");
}

#[tokio::test]
async fn every_changed_bit_of_a_manifest_is_refused() {
    let sealed = Sealed::new();
    sealed.provider.create(&tenant("t")).await.unwrap();
    let path = sealed.home.path("t.sqlite3.nimbus-enc");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        let e = sealed.provider.open(&tenant("t")).await.err().unwrap();
        assert!(
            matches!(e, ProviderError::Locked { .. }),
            "byte {at}: {e:?}"
        );
    }
    std::fs::write(&path, &good).unwrap();
    used(&sealed.provider, &tenant("t")).await.unwrap();
}

/// Ten tenants; files, manifests and pages of each pair exchanged.
#[tokio::test]
async fn nothing_of_another_tenant_is_taken() {
    const TENANTS: usize = 10;
    let sealed = Sealed::new();
    let mut all = Vec::new();
    for n in 0..TENANTS {
        let id = format!("t{n}");
        sealed.provider.create(&tenant(&id)).await.unwrap();
        let store = sealed.provider.open(&tenant(&id)).await.unwrap();
        put(&store, Head::EMPTY, b"key", id.as_bytes()).await;
        let state = contents(&store).await.unwrap();
        store.close().await.unwrap();
        let file = std::fs::read(sealed.home.path(&format!("{id}.sqlite3"))).unwrap();
        let manifest =
            std::fs::read(sealed.home.path(&format!("{id}.sqlite3.nimbus-enc"))).unwrap();
        all.push((id, file, manifest, state));
    }
    let mut refused = 0;
    for (id, file, manifest, state) in &all {
        let path = sealed.home.path(&format!("{id}.sqlite3.nimbus-enc"));
        for (other, other_file, other_manifest, _) in all.iter().filter(|other| other.0 != *id) {
            for (file, manifest) in [
                (other_file, manifest),
                (file, other_manifest),
                (other_file, other_manifest),
            ] {
                sealed.put(id, file, None);
                std::fs::write(&path, manifest).unwrap();
                let e = sealed.provider.open(&tenant(id)).await.err();
                assert!(e.is_some(), "{id} with parts of {other}");
                refused += 1;
            }
            std::fs::write(&path, manifest).unwrap();
            for page in 0..file.len().min(other_file.len()) / PAGE {
                let mut mixed = file.clone();
                let bytes = page * PAGE..(page + 1) * PAGE;
                mixed[bytes.clone()].copy_from_slice(&other_file[bytes]);
                sealed.put(id, &mixed, None);
                match used(&sealed.provider, &tenant(id)).await {
                    Ok(found) => assert!(found == *state, "page {page} of {other} in {id}"),
                    Err(ProviderError::Corrupt { .. }) => refused += 1,
                    Err(e) => panic!("page {page} of {other} in {id}: {e:?}"),
                }
            }
        }
        sealed.put(id, file, None);
        used(&sealed.provider, &tenant(id)).await.unwrap();
    }
    assert!(refused > 3 * TENANTS * (TENANTS - 1), "{refused}");
}
