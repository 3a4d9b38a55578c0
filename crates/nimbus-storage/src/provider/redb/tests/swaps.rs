//! Tests that nothing of one tenant is taken for another's: files, manifests and pages of each two of ten,
//! exchanged.

use super::*;
use crate::provider::tamper::{Contents, contents, used};

const TENANTS: usize = 10;
/// Bytes of the two copies of page 0 and of a slot.
const FRONT: usize = 8264;
const SLOT: usize = 4124;

struct One {
    id: TenantId,
    file: Vec<u8>,
    manifest: Vec<u8>,
    state: Contents,
}

async fn made(home: &Home, provider: &RedbProvider, n: usize) -> One {
    let id = tenant(&format!("t{n}"));
    provider.create(&id).await.unwrap();
    let store = provider.open(&id).await.unwrap();
    let new = next(Head::EMPTY);
    let key = (Keyspace::Docs, b"key".to_vec());
    let writes = BTreeMap::from([(key, Some(bytes::Bytes::from(format!("of {id}"))))]);
    store
        .commit(Head::EMPTY, Batch { head: new, writes })
        .await
        .unwrap();
    let state = contents(&store).await.unwrap();
    store.close().await.unwrap();
    let read = |ending: &str| std::fs::read(home.path(&format!("{id}{ending}"))).unwrap();
    One {
        file: read(".redb"),
        manifest: read(".redb.nimbus-enc"),
        state,
        id,
    }
}

fn put(home: &Home, id: &TenantId, file: &[u8], manifest: &[u8]) {
    std::fs::write(home.path(&format!("{id}.redb")), file).unwrap();
    std::fs::write(home.path(&format!("{id}.redb.nimbus-enc")), manifest).unwrap();
}

/// Where the copies of page 0 and the slots are that were written.
fn pieces(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let copies = [0..FRONT / 2, FRONT / 2..FRONT];
    let slots = (0..(file.len() - FRONT) / SLOT).map(|n| FRONT + n * SLOT..FRONT + (n + 1) * SLOT);
    let written =
        |piece: &std::ops::Range<usize>| file[piece.clone()].iter().any(|byte| *byte != 0);
    copies.into_iter().chain(slots).filter(written).collect()
}

#[tokio::test]
async fn nothing_of_another_tenant_is_taken() {
    let home = Home::encrypted_in_memory();
    let provider = home.provider();
    let mut all = Vec::new();
    for n in 0..TENANTS {
        all.push(made(&home, &provider, n).await);
    }
    let (mut refused, mut pages) = (0, 0);
    for one in &all {
        for other in all.iter().filter(|other| other.id != one.id) {
            for (file, manifest) in [
                (&other.file, &one.manifest),
                (&one.file, &other.manifest),
                (&other.file, &other.manifest),
            ] {
                put(&home, &one.id, file, manifest);
                let opened = provider.open(&one.id).await;
                assert!(opened.is_err(), "{} with parts of {}", one.id, other.id);
                refused += 1;
            }
            for piece in pieces(&other.file) {
                let mut mixed = one.file.clone();
                mixed[piece.clone()].copy_from_slice(&other.file[piece.clone()]);
                put(&home, &one.id, &mixed, &one.manifest);
                match used(&provider, &one.id).await {
                    Ok(found) => assert!(
                        found == one.state,
                        "{piece:?} of {} in {}",
                        other.id,
                        one.id
                    ),
                    Err(ProviderError::Corrupt { .. }) => pages += 1,
                    Err(e) => panic!("{piece:?} of {} in {}: {e:?}", other.id, one.id),
                }
            }
        }
        put(&home, &one.id, &one.file, &one.manifest);
        assert!(used(&provider, &one.id).await.unwrap() == one.state);
    }
    assert_eq!(refused, 3 * TENANTS * (TENANTS - 1));
    assert!(pages > TENANTS * (TENANTS - 1), "{pages}");
}
