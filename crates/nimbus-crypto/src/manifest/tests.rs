//! Tests of the manifest: rotation, every kind of change, the vectors, and the file on disk.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;

use serde_json::Value;

use super::*;
use crate::key::WrappingKey;
use crate::provider::{KeyFuture, MasterKeyFile};

const CREATED: u64 = 1_790_000_000;

fn master(byte: u8) -> MasterKeyFile {
    MasterKeyFile::new(WrappingKey::from_bytes(&[byte; 32]))
}

fn subject() -> Subject {
    Subject::sqlite_tenant("demo").unwrap()
}

async fn made() -> (Manifest, Dek) {
    Manifest::create(&master(1), subject(), CREATED)
        .await
        .unwrap()
}

/// The name of a failure in the vectors.
fn kind(error: &ManifestError) -> &'static str {
    match error {
        ManifestError::Foreign { .. } => "foreign",
        ManifestError::Tampered { .. } => "tag",
        ManifestError::Key(KeyError::Tampered { .. }) => "wrapped_key",
        ManifestError::Key(KeyError::WrongKey { .. }) => "wrong_key",
        ManifestError::Key(KeyError::OtherProvider { .. }) => "other_provider",
        ManifestError::Key(KeyError::Algorithm { .. }) => "algorithm",
        ManifestError::Key(KeyError::WrappedSize { .. }) => "wrapped_size",
        _ => "another",
    }
}

fn fault(fault: &ManifestFault) -> &'static str {
    match fault {
        ManifestFault::TooLarge => "too_large",
        ManifestFault::Empty => "empty",
        ManifestFault::Format => "format",
        ManifestFault::Version { .. } => "version",
        ManifestFault::Subject(_) => "subject",
        ManifestFault::Cipher { .. } => "cipher",
        ManifestFault::Encoding { .. } => "encoding",
        ManifestFault::NotCanonical => "not_canonical",
        ManifestFault::Json(error) => {
            let text = error.to_string();
            let known = [
                ("unknown field", "unknown_field"),
                ("duplicate field", "repeated_field"),
                ("missing field", "missing_field"),
                ("invalid type", "type"),
                ("invalid value", "type"),
            ];
            let found = known.iter().find(|(start, _)| text.starts_with(start));
            found.map_or("json", |(_, name)| name)
        }
    }
}

/// What decoding and unlocking gives, as the vectors name it.
async fn outcome(text: &[u8], provider: &MasterKeyFile, subject: &Subject) -> &'static str {
    match Manifest::decode(text) {
        Err(error) => fault(&error),
        Ok(manifest) => match manifest.unlock(provider, subject).await {
            Err(error) => kind(&error),
            Ok(_) => "none",
        },
    }
}

#[tokio::test]
async fn a_manifest_gives_its_key_back() {
    let (manifest, dek) = made().await;
    let text = manifest.encode().unwrap();
    let read = Manifest::decode(&text).unwrap();
    assert_eq!(read, manifest);
    assert_eq!((read.created_at(), read.subject()), (CREATED, &subject()));
    let keys = read.unlock(&master(1), &subject()).await.unwrap();
    assert!(keys.current == dek && keys.pending.is_none());
    let (other, other_dek) = made().await;
    assert!(other.file_id() != manifest.file_id() && other_dek != dek);
}

#[tokio::test]
async fn rotation_keeps_both_keys_until_it_is_finished_or_abandoned() {
    let (manifest, old) = made().await;
    let provider = master(1);
    let (both, keys) = manifest
        .begin_rotation(&provider, &subject())
        .await
        .unwrap();
    let new = keys.pending.unwrap();
    assert!(keys.current == old && new != old);
    let both = Manifest::decode(&both.encode().unwrap()).unwrap();
    let keys = both.unlock(&provider, &subject()).await.unwrap();
    assert!(keys.current == old && keys.pending.unwrap() == new);

    let again = both.begin_rotation(&provider, &subject()).await;
    assert!(matches!(
        again.unwrap_err(),
        ManifestError::RotationPending { .. }
    ));

    let done = both.finish_rotation(&provider, &subject()).await.unwrap();
    let keys = done.unlock(&provider, &subject()).await.unwrap();
    assert!(keys.current == new && keys.pending.is_none());
    assert_eq!(done.file_id(), manifest.file_id());
    let left = both.abandon_rotation(&provider, &subject()).await.unwrap();
    assert_eq!(left, manifest);

    for none in [&done, &left] {
        let finish = none.finish_rotation(&provider, &subject()).await;
        assert!(matches!(
            finish.unwrap_err(),
            ManifestError::NoRotation { .. }
        ));
        let abandon = none.abandon_rotation(&provider, &subject()).await;
        assert!(matches!(
            abandon.unwrap_err(),
            ManifestError::NoRotation { .. }
        ));
    }
}

#[tokio::test]
async fn a_changed_byte_anywhere_never_unlocks() {
    let provider = master(1);
    let (manifest, _) = made().await;
    let (both, _) = manifest
        .begin_rotation(&provider, &subject())
        .await
        .unwrap();
    for manifest in [manifest, both] {
        let text = manifest.encode().unwrap();
        assert_eq!(outcome(&text, &provider, &subject()).await, "none");
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let found = outcome(&changed, &provider, &subject()).await;
            assert_ne!(found, "none", "bit {bit}");
        }
        for length in 0..text.len() {
            assert_ne!(
                outcome(&text[..length], &provider, &subject()).await,
                "none"
            );
        }
        for more in [" ", "\n", "{}", "\0"] {
            let longer = [&text, more.as_bytes()].concat();
            assert_ne!(outcome(&longer, &provider, &subject()).await, "none");
        }
    }
}

#[tokio::test]
async fn parts_of_other_manifests_do_not_fit() {
    let provider = master(1);
    let (one, _) = made().await;
    let (two, _) = made().await;
    let (rotating, _) = one.begin_rotation(&provider, &subject()).await.unwrap();
    let (rotating_again, _) = one.begin_rotation(&provider, &subject()).await.unwrap();
    let with = |base: &Manifest, change: &dyn Fn(&mut Manifest)| {
        let mut changed = base.clone();
        change(&mut changed);
        changed
    };
    let pending = || rotating.pending.clone();
    let cases = [
        (
            with(&one, &|m| m.current = two.current.clone()),
            "wrapped_key",
        ),
        (with(&one, &|m| m.file_id = two.file_id), "wrapped_key"),
        (with(&one, &|m| m.created_at += 1), "wrapped_key"),
        (with(&one, &|m| m.tag = two.tag), "tag"),
        // A pending key taken away, put in, exchanged for one of another rotation, or promoted.
        (with(&rotating, &|m| m.pending = None), "tag"),
        (with(&one, &|m| m.pending = pending()), "tag"),
        (with(&rotating_again, &|m| m.pending = pending()), "tag"),
        (
            with(&rotating, &|m| {
                m.current = m.pending.take().unwrap();
            }),
            "wrapped_key",
        ),
    ];
    for (index, (changed, expected)) in cases.into_iter().enumerate() {
        let error = changed.unlock(&provider, &subject()).await.unwrap_err();
        assert_eq!(kind(&error), expected, "case {index}: {error}");
    }
}

#[tokio::test]
async fn twenty_tenants_cannot_use_each_others_manifests() {
    let provider = master(1);
    let mut all = Vec::new();
    for number in 0..20 {
        let subject = Subject::sqlite_tenant(&format!("tenant-{number}")).unwrap();
        let (manifest, _) = Manifest::create(&provider, subject, CREATED).await.unwrap();
        all.push(manifest);
    }
    let mut refused = 0;
    for (a, one) in all.iter().enumerate() {
        for (b, two) in all.iter().enumerate().filter(|(b, _)| *b != a) {
            let error = two.unlock(&provider, one.subject()).await.unwrap_err();
            assert_eq!(kind(&error), "foreign", "{a} {b}");
            let mut renamed = two.clone();
            renamed.subject = one.subject.clone();
            let error = renamed.unlock(&provider, one.subject()).await.unwrap_err();
            assert_eq!(kind(&error), "wrapped_key", "{a} {b}");
            refused += 2;
        }
    }
    assert_eq!(refused, 760);
}

#[tokio::test]
async fn vectors_unlock_or_fail_for_their_reason() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/manifests.json")).unwrap();
    let provider = master(1);
    let subject: Subject = vectors["subject"].as_str().unwrap().parse().unwrap();
    let text = vectors["manifest"].as_str().unwrap();
    let manifest = Manifest::decode(text.as_bytes()).unwrap();
    let keys = manifest.unlock(&provider, &subject).await.unwrap();
    let hex = |dek: &Dek| data_encoding::HEXLOWER.encode(dek.expose_secret());
    assert_eq!(hex(&keys.current), vectors["current"]);
    assert_eq!(hex(&keys.pending.unwrap()), vectors["pending"]);

    let invalid = vectors["invalid"].as_array().unwrap();
    assert!(invalid.len() >= 30, "{}", invalid.len());
    for vector in invalid {
        let name = vector["name"].as_str().unwrap();
        let (from, to) = (
            vector["from"].as_str().unwrap(),
            vector["to"].as_str().unwrap(),
        );
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{name}");
        let found = outcome(changed.as_bytes(), &provider, &subject).await;
        assert_eq!(found, vector["failure"], "{name}");
    }
    let other = outcome(text.as_bytes(), &master(2), &subject).await;
    assert_eq!(other, "wrong_key");
    let long = vec![b' '; MAX_MANIFEST_BYTES + 1];
    assert_eq!(outcome(&long, &provider, &subject).await, "too_large");
    assert_eq!(outcome(b"", &provider, &subject).await, "empty");
}

#[tokio::test]
async fn the_file_is_private_and_never_overwritten_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.sqlite3");
    let path = dir.path().join("demo.sqlite3.nimbus-enc");
    assert_eq!(manifest_path(&file), path);
    let (one, _) = made().await;
    let (two, _) = made().await;
    assert!(matches!(
        one.replace(&file).unwrap_err(),
        ManifestError::Io { .. }
    ));
    // What a crash in the middle of an earlier attempt leaves, here as a link that must not be followed.
    let victim = dir.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, dir.path().join("demo.sqlite3.nimbus-enc.tmp")).unwrap();
    one.write_new(&file).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(Manifest::read(&file, &subject()).unwrap(), one);
    assert!(matches!(
        two.write_new(&file).unwrap_err(),
        ManifestError::Exists { .. }
    ));
    assert_eq!(Manifest::read(&file, &subject()).unwrap(), one);
    two.replace(&file).unwrap();
    assert_eq!(Manifest::read(&file, &subject()).unwrap(), two);
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "the manifest and the victim, no leftover");
}

#[test]
fn the_name_is_taken_only_while_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.sqlite3");
    let path = manifest_path(&file);
    for write in file::unchecked_writes(&file) {
        write(b"first").unwrap();
        // As if another process had been between the look and the rename.
        let error = write(b"second").unwrap_err();
        assert!(matches!(error, ManifestError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn links_and_odd_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, _) = made().await;
    let real = dir.path().join("real");
    manifest.write_new(&real).unwrap();
    let before = fs::read(manifest_path(&real)).unwrap();
    let (other, _) = made().await;
    let file = dir.path().join("linked");
    symlink(manifest_path(&real), manifest_path(&file)).unwrap();
    let odd = dir.path().join("odd");
    fs::create_dir(manifest_path(&odd)).unwrap();
    for file in [&file, &odd] {
        assert!(matches!(
            Manifest::read(file, &subject()).unwrap_err(),
            ManifestError::NotRegular { .. }
        ));
        assert!(matches!(
            other.replace(file).unwrap_err(),
            ManifestError::NotRegular { .. }
        ));
        assert!(matches!(
            other.write_new(file).unwrap_err(),
            ManifestError::Exists { .. }
        ));
    }
    assert_eq!(fs::read(manifest_path(&real)).unwrap(), before);
}

#[test]
fn a_missing_manifest_names_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.sqlite3");
    let error = Manifest::read(&file, &subject()).unwrap_err();
    assert!(matches!(error, ManifestError::Missing { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("sidecar manifest is missing"), "{text}");
    let command = format!(
        "nimbus encryption migrate --source {} --provider sqlite --tenant-id demo",
        file.display()
    );
    assert!(text.contains(&command), "{text}");
}

#[test]
fn a_file_that_is_no_manifest_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.sqlite3");
    for (bytes, expected) in [
        (vec![], "empty"),
        (vec![b' '; MAX_MANIFEST_BYTES + 1], "too_large"),
        (vec![0xff; 10], "json"),
        (
            b"{\"format\":\"nimbus-enc\",\"version\":2}".to_vec(),
            "version",
        ),
    ] {
        fs::write(manifest_path(&file), bytes).unwrap();
        match Manifest::read(&file, &subject()).unwrap_err() {
            ManifestError::Invalid { path, fault: found } => {
                assert_eq!(
                    (path.as_path(), fault(&found)),
                    (Path::new(&manifest_path(&file)), expected)
                );
            }
            error => panic!("{error}"),
        }
    }
}

/// Stands for a key service: it makes keys itself, answers later, and binds only what never changes.
#[derive(Debug, Default)]
struct Service {
    keys: Mutex<HashMap<Vec<u8>, (String, FileId, Dek)>>,
}

impl KeyProvider for Service {
    fn name(&self) -> &str {
        "service"
    }

    fn key_id<'a>(&'a self, _subject: &'a Subject) -> KeyFuture<'a, String> {
        Box::pin(async { Ok("arn:aws:kms:us-east-1:1:key/1".to_owned()) })
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut keys = self.keys.lock().unwrap();
            let bytes = keys.len().to_string().into_bytes();
            let copy = Dek::from_bytes(dek.expose_secret());
            let bound = (context.subject.to_string(), context.file_id, copy);
            keys.insert(bytes.clone(), bound);
            Ok(WrappedKey {
                provider: self.name().to_owned(),
                key_id: "arn:aws:kms:us-east-1:1:key/1".to_owned(),
                algorithm: "service".to_owned(),
                bytes,
            })
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let keys = self.keys.lock().unwrap();
            match keys.get(&wrapped.bytes) {
                Some((subject, file_id, dek))
                    if *subject == context.subject.to_string() && *file_id == context.file_id =>
                {
                    Ok(Dek::from_bytes(dek.expose_secret()))
                }
                _ => Err(KeyError::Service {
                    provider: self.name().to_owned(),
                    subject: context.subject.to_string(),
                    source: "InvalidCiphertextException".into(),
                }),
            }
        })
    }
}

#[tokio::test]
async fn a_key_service_fits_and_the_tag_covers_what_it_does_not_bind() {
    let service = Service::default();
    let (manifest, old) = Manifest::create(&service, subject(), CREATED)
        .await
        .unwrap();
    let (both, keys) = manifest.begin_rotation(&service, &subject()).await.unwrap();
    let new = keys.pending.unwrap();
    let both = Manifest::decode(&both.encode().unwrap()).unwrap();
    assert!(both.unlock(&service, &subject()).await.unwrap().current == old);
    let done = both.finish_rotation(&service, &subject()).await.unwrap();
    assert!(done.unlock(&service, &subject()).await.unwrap().current == new);

    let changes: [fn(&mut Manifest); 6] = [
        |m| m.created_at += 1,
        |m| m.current.key_id.push('2'),
        |m| m.current.algorithm.push('2'),
        |m| m.current.provider.push('2'),
        |m| m.pending = None,
        // The service takes the pending key for the current one; the tag does not.
        |m| std::mem::swap(&mut m.current, m.pending.as_mut().unwrap()),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut changed = both.clone();
        change(&mut changed);
        let error = changed.unlock(&service, &subject()).await.unwrap_err();
        assert_eq!(kind(&error), "tag", "change {index}: {error}");
    }
    let mut changed = both.clone();
    changed.file_id = FileId::from_bytes([0; 16]);
    let error = changed.unlock(&service, &subject()).await.unwrap_err();
    assert!(
        matches!(&error, ManifestError::Key(KeyError::Service { .. })),
        "{error}"
    );
}

#[test]
fn what_an_error_repeats_of_a_file_is_short_and_has_no_control_characters() {
    let name = "x\u{1b}[2J\\n".repeat(1000);
    let text = format!("{{\"format\":\"nimbus-enc\",\"version\":1,{name:?}:1}}");
    let text = text.replace("\\u{1b}", "\\u001b");
    let error = Manifest::decode(text.as_bytes()).unwrap_err();
    assert_eq!(fault(&error), "unknown_field");
    let shown = error.to_string();
    assert!(
        shown.len() < 600 && !shown.contains(char::is_control),
        "{shown:?}"
    );
}
