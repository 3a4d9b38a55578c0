//! Tests of the providers: what they wrap they unwrap, for exactly one context and one key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::cipher::Cipher;
use crate::context::{FileId, KeyRole};
use crate::key::WrappingKey;
use crate::key_file::KeyFileError;
use crate::subject::SubjectError;

fn context() -> KeyContext {
    KeyContext {
        subject: Subject::sqlite_tenant("demo").unwrap(),
        file_id: FileId::from_bytes([3; 16]),
        cipher: Cipher::SqlCipher4,
        created_at: 1_790_000_000,
        role: KeyRole::Current,
    }
}

/// `context` with one field changed, for each field.
fn neighbours() -> Vec<KeyContext> {
    let changed = |change: fn(&mut KeyContext)| {
        let mut context = context();
        change(&mut context);
        context
    };
    vec![
        changed(|c| c.subject = Subject::sqlite_tenant("demo2").unwrap()),
        changed(|c| c.subject = Subject::redb_tenant("demo").unwrap()),
        changed(|c| c.file_id = FileId::from_bytes([4; 16])),
        changed(|c| c.cipher = Cipher::Aes256GcmSivPages),
        changed(|c| c.created_at += 1),
        changed(|c| c.role = KeyRole::Pending),
    ]
}

fn put(dir: &Path, name: &str, byte: u8) {
    let path = dir.join(name);
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
}

/// A key directory in which every subject of the tests has the same key, so that only the binding
/// can tell them apart.
fn key_dir(byte: u8) -> (tempfile::TempDir, KeyDir) {
    let dir = tempfile::tempdir().unwrap();
    for context in neighbours().iter().chain([&context()]) {
        let name = context.subject.key_file_name().unwrap();
        if !dir.path().join(&name).exists() {
            put(dir.path(), &name, byte);
        }
    }
    let provider = KeyDir::open(dir.path()).unwrap();
    (dir, provider)
}

fn master(byte: u8) -> MasterKeyFile {
    MasterKeyFile::new(WrappingKey::from_bytes(&[byte; 32]))
}

/// Runs `check` with a provider and a second one of the same kind with another key.
async fn each<F: AsyncFn(&dyn KeyProvider, &dyn KeyProvider)>(check: F) {
    check(&master(1), &master(2)).await;
    let (_one, first) = key_dir(1);
    let (_two, second) = key_dir(2);
    check(&first, &second).await;
}

#[tokio::test]
async fn what_is_wrapped_unwraps_to_the_same_key() {
    each(async |provider, _| {
        let (dek, wrapped) = provider.generate_key(&context()).await.unwrap();
        assert_eq!(wrapped.provider, provider.name());
        assert_eq!(wrapped.bytes.len(), WRAPPED_BYTES);
        assert!(provider.unwrap_key(&context(), &wrapped).await.unwrap() == dek);
        let again = provider.wrap_key(&context(), &dek).await.unwrap();
        assert_ne!(again.bytes, wrapped.bytes, "a fresh nonce each time");
        assert!(provider.unwrap_key(&context(), &again).await.unwrap() == dek);
    })
    .await;
}

#[tokio::test]
async fn every_field_of_the_context_is_bound() {
    each(async |provider, _| {
        let (_, wrapped) = provider.generate_key(&context()).await.unwrap();
        let neighbours = neighbours();
        assert_eq!(neighbours.len(), 6);
        for other in neighbours {
            let error = provider.unwrap_key(&other, &wrapped).await.unwrap_err();
            assert!(
                matches!(error, KeyError::Tampered { .. }),
                "{other:?}: {error}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn every_bit_of_the_wrapped_key_counts() {
    each(async |provider, _| {
        let (_, wrapped) = provider.generate_key(&context()).await.unwrap();
        for bit in 0..WRAPPED_BYTES * 8 {
            let mut changed = wrapped.clone();
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            let error = provider.unwrap_key(&context(), &changed).await.unwrap_err();
            assert!(matches!(error, KeyError::Tampered { .. }), "{bit}: {error}");
        }
    })
    .await;
}

#[tokio::test]
async fn another_key_is_told_by_its_fingerprint_and_cannot_be_renamed() {
    each(async |provider, other| {
        let (_, mut wrapped) = provider.generate_key(&context()).await.unwrap();
        let (_, foreign) = other.generate_key(&context()).await.unwrap();
        let error = other.unwrap_key(&context(), &wrapped).await.unwrap_err();
        assert!(
            matches!(&error, KeyError::WrongKey { expected, found, .. }
                if *expected == foreign.key_id && *found == wrapped.key_id),
            "{error}"
        );
        wrapped.key_id = foreign.key_id;
        let error = other.unwrap_key(&context(), &wrapped).await.unwrap_err();
        assert!(matches!(error, KeyError::Tampered { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn provider_algorithm_and_length_have_errors_of_their_own() {
    each(async |provider, _| {
        let (_, wrapped) = provider.generate_key(&context()).await.unwrap();
        let mut other = wrapped.clone();
        other.provider = "aws-kms".to_owned();
        let error = provider.unwrap_key(&context(), &other).await.unwrap_err();
        assert!(matches!(&error, KeyError::OtherProvider { found, .. } if found == "aws-kms"));
        let mut other = wrapped.clone();
        other.algorithm = "none".to_owned();
        let error = provider.unwrap_key(&context(), &other).await.unwrap_err();
        assert!(matches!(&error, KeyError::Algorithm { found, .. } if found == "none"));
        for size in [0, 11, 12, 28, WRAPPED_BYTES - 1, WRAPPED_BYTES + 1] {
            let mut other = wrapped.clone();
            other.bytes.resize(size, 0);
            let error = provider.unwrap_key(&context(), &other).await.unwrap_err();
            assert!(
                matches!(error, KeyError::WrappedSize { found, .. } if found == size),
                "{error}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn the_master_key_wraps_each_subject_under_a_key_of_its_own() {
    let (dek, wrapped) = master(1).generate_key(&context()).await.unwrap();
    // Wrapped under the master key itself, with the same associated data, it would open.
    let direct = WrappingKey::from_bytes(&[1; 32]);
    let id = direct.fingerprint();
    let opened = wrap::unwrap(&direct, MasterKeyFile::NAME, &id, &context(), &wrapped);
    assert!(matches!(opened.unwrap_err(), KeyError::Tampered { .. }));
    let derived = direct.for_subject(&context().subject);
    let opened = wrap::unwrap(&derived, MasterKeyFile::NAME, &id, &context(), &wrapped);
    assert!(opened.unwrap() == dek);
}

#[tokio::test]
async fn a_subject_without_a_usable_key_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let provider = KeyDir::open(dir.path()).unwrap();
    let error = provider.generate_key(&context()).await.unwrap_err();
    assert!(
        matches!(error, KeyError::KeyFile(KeyFileError::Missing { .. })),
        "{error}"
    );
    let mut long = context();
    long.subject = Subject::sqlite_tenant(&"a".repeat(50)).unwrap();
    let error = provider.generate_key(&long).await.unwrap_err();
    assert!(
        matches!(
            error,
            KeyError::Subject(SubjectError::KeyFileName {
                tenant_limit: Some(49),
                ..
            })
        ),
        "{error}"
    );
    assert!(master(1).generate_key(&long).await.is_ok());
}

#[test]
fn a_key_directory_is_checked_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fault = |path: &Path| match KeyDir::open(path).unwrap_err() {
        KeyError::Directory { fault, .. } => fault,
        error => panic!("{error}"),
    };
    assert!(matches!(
        fault(&dir.path().join("absent")),
        DirectoryFault::Missing
    ));
    put(dir.path(), "file", 1);
    assert!(matches!(
        fault(&dir.path().join("file")),
        DirectoryFault::NotDirectory
    ));
    for mode in [0o720, 0o702] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(
            matches!(fault(dir.path()), DirectoryFault::Loose { mode: found } if found == mode)
        );
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(KeyDir::open(dir.path()).is_ok());
}

#[test]
fn a_master_key_file_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "key", 1);
    let path = dir.path().join("key");
    let provider = MasterKeyFile::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(provider.key == WrappingKey::from_bytes(&[1; 32]));
    assert!(matches!(
        MasterKeyFile::open(&path).unwrap_err(),
        KeyFileError::Missing { .. }
    ));
    assert!(!format!("{provider:?}").contains('1'));
}
