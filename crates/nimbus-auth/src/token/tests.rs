//! Tests of the token file: first boot, strict loading, rotation, refusals, crashes, the gate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::*;

mod bad_files;
mod crashes;
#[cfg(unix)]
mod unix;

/// A token text with a value that is easy to recognise: 32 bytes of zero.
const ZERO: &str = "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn fixture() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("share/nimbus/auth/token");
    (temp, path)
}

/// A token file with this content, 0600 in 0700.
fn with_content(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let (temp, path) = fixture();
    let dir = PrivateDir::create(path.parent().unwrap()).unwrap();
    dir.replace(OsStr::new("token"), OsStr::new(TEMP_NAME), content)
        .unwrap();
    (temp, path)
}

fn good() -> Value {
    json!({
        "version": 1, "token": ZERO, "generation": 3, "issuedAt": "2026-01-02T03:04:05Z",
        "scope": "local-admin", "rotatedAt": "2026-01-02T03:04:05Z",
    })
}

/// The good file with one member changed, added, or (`None`) removed.
fn changed(field: &str, value: Option<Value>) -> Vec<u8> {
    let mut file = good();
    match value {
        Some(value) => file[field] = value,
        None => drop(file.as_object_mut().unwrap().remove(field)),
    }
    file.to_string().into_bytes()
}

fn names(path: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn the_first_boot_mints_generation_one_never_rotated() {
    let (_temp, path) = fixture();
    let before = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    assert!(
        matches!(TokenFile::load(&path), Err(TokenError::Missing { path: named }) if named == path)
    );
    assert!(!path.parent().unwrap().exists(), "loading makes nothing");
    let minted = TokenFile::load_or_create(&path).unwrap();
    assert_eq!((minted.generation(), minted.rotated_at()), (1, None));
    assert!(minted.issued_at() >= before && minted.issued_at() <= Timestamp::now());
    assert_eq!(minted.path(), path);
    assert!(!minted.stamps_in_future());

    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("{\n  \"version\": 1,\n  \"token\": \"nimbus_at_"),
        "{text}"
    );
    let stored: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "version": 1, "token": minted.token().expose_secret(), "generation": 1,
        "issuedAt": minted.issued_at().to_string(), "scope": "local-admin",
    });
    assert_eq!(stored, expected);
    assert_eq!(minted.token().expose_secret().len(), TOKEN_TEXT_LEN);

    for again in [
        TokenFile::load(&path).unwrap(),
        TokenFile::load_or_create(&path).unwrap(),
    ] {
        assert_eq!(
            again.token().expose_secret(),
            minted.token().expose_secret()
        );
        assert_eq!((again.generation(), again.rotated_at()), (1, None));
        assert_eq!(again.issued_at(), minted.issued_at());
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn rotation_counts_up_and_is_stamped() {
    let (_temp, path) = fixture();
    let first = TokenFile::load_or_create(&path).unwrap();
    let now: Timestamp = "2026-03-04T05:06:07.9Z".parse().unwrap();
    let rotation = TokenFile::rotate_at(&path, 0, now).unwrap();
    assert_eq!(rotation.set_aside, None);
    let second = TokenFile::load(&path).unwrap();
    assert_eq!(second.generation(), 2);
    assert_eq!(
        second.rotated_at(),
        Some("2026-03-04T05:06:07Z".parse().unwrap())
    );
    assert_eq!(second.issued_at(), second.rotated_at().unwrap());
    assert_eq!(
        second.token().expose_secret(),
        rotation.file.token().expose_secret()
    );
    assert_ne!(
        second.token().expose_secret(),
        first.token().expose_secret()
    );
    assert_eq!(
        names(&path),
        BTreeSet::from(["token".into(), LOCK_NAME.into()])
    );
}

#[test]
fn rotation_without_a_file_counts_as_explicit() {
    let (_temp, path) = fixture();
    let rotation = TokenFile::rotate(&path).unwrap();
    assert_eq!((rotation.file.generation(), rotation.set_aside), (1, None));
    let stored = TokenFile::load(&path).unwrap();
    assert!(stored.rotated_at().is_some());
    assert_eq!(
        stored.fresh_for_network(Timestamp::now(), MAX_ROTATION_AGE),
        Ok(())
    );
}

#[test]
fn windows_names_work_too() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("nimbus/auth/token.json");
    TokenFile::load_or_create(&path).unwrap();
    fs::write(&path, "x").unwrap();
    let kept = TokenFile::rotate(&path).unwrap().set_aside.unwrap();
    assert!(
        kept.path.to_str().unwrap().contains("token.json.corrupt-"),
        "{:?}",
        kept.path
    );
}

#[test]
fn the_good_file_loads() {
    let (_temp, path) = with_content(good().to_string().as_bytes());
    let found = TokenFile::load(&path).unwrap();
    assert_eq!(found.generation(), 3);
    assert_eq!(found.token().expose_secret(), ZERO);
    assert_eq!(
        found.rotated_at(),
        Some("2026-01-02T03:04:05Z".parse().unwrap())
    );
}

#[test]
fn the_last_generation_is_not_wrapped() {
    let (_temp, path) = with_content(&changed("generation", Some(json!(u64::MAX))));
    assert_eq!(TokenFile::load(&path).unwrap().generation(), u64::MAX);
    let error = TokenFile::rotate(&path).unwrap_err();
    assert!(
        matches!(error, TokenError::GenerationExhausted { .. }),
        "{error}"
    );
    assert_eq!(TokenFile::load(&path).unwrap().generation(), u64::MAX);
}

#[test]
fn a_rotation_time_that_cannot_be_read_counts_as_none() {
    let table = [
        (json!(null), None),
        (json!(""), None),
        (json!("never"), None),
        (json!("2026-13-01T00:00:00Z"), None),
        (json!("2026-01-02T03:04:05"), None),
        (json!("2026-01-02 03:04:05Z"), None),
        (json!("20260102T030405Z"), None),
        (json!("2026-01-02T03:04:05Z[UTC]"), None),
        (json!("2026-01-02T03:04:05Z"), Some(1_767_323_045)),
        (json!("2026-01-02t03:04:05.999z"), Some(1_767_323_045)),
        (json!("2026-01-02T05:04:05+02:00"), Some(1_767_323_045)),
    ];
    for (value, expected) in table {
        let (_temp, path) = with_content(&changed("rotatedAt", Some(value.clone())));
        let found = TokenFile::load(&path).unwrap();
        assert_eq!(
            found.rotated_at().map(Timestamp::as_second),
            expected,
            "{value}"
        );
        let gate = found.fresh_for_network(Timestamp::now(), MAX_ROTATION_AGE);
        assert_eq!(
            gate == Err(StaleToken::NeverRotated),
            expected.is_none(),
            "{value}"
        );
    }
}

#[test]
fn the_gate_knows_its_boundaries() {
    let now: Timestamp = "2026-06-10T12:00:00Z".parse().unwrap();
    let day = 24 * 60 * 60;
    let ago = |seconds: i64| Some(now - SignedDuration::from_secs(seconds));
    let nearly = Some(now - SignedDuration::from_secs(30 * day) + SignedDuration::from_nanos(1));
    let over = Some(now + SignedDuration::from_secs(60) + SignedDuration::from_nanos(1));
    // (rotatedAt, issuedAt, outcome by name)
    let table = [
        (None, ago(0), "never"),
        (None, ago(-3600), "never"),
        (ago(0), ago(0), "fresh"),
        (ago(29 * day), ago(29 * day), "fresh"),
        (ago(30 * day - 1), ago(30 * day - 1), "fresh"),
        (nearly, ago(0), "fresh"),
        (ago(30 * day), ago(0), "old"),
        (ago(30 * day + 1), ago(0), "old"),
        (ago(4000 * day), ago(0), "old"),
        (ago(-60), ago(0), "fresh"),
        (over, ago(0), "rotatedAt"),
        (ago(-61), ago(0), "rotatedAt"),
        (ago(-400 * day), ago(0), "rotatedAt"),
        (ago(0), ago(-60), "fresh"),
        (ago(0), over, "issuedAt"),
        (ago(31 * day), ago(-3600), "issuedAt"),
    ];
    for (rotated_at, issued_at, expected) in table {
        let issued_at = issued_at.unwrap();
        let token = AdminToken::mint().unwrap();
        let path = PathBuf::new();
        let file = TokenFile {
            path,
            token,
            generation: 1,
            issued_at,
            rotated_at,
            stamps_in_future: false,
        };
        let found = file.fresh_for_network(now, MAX_ROTATION_AGE);
        let name = match &found {
            Ok(()) => "fresh",
            Err(StaleToken::NeverRotated) => "never",
            Err(StaleToken::TooOld { .. }) => "old",
            Err(StaleToken::FutureStamp { field, .. }) => field,
        };
        assert_eq!(name, expected, "{rotated_at:?} {issued_at}");
        if let Err(stale) = found {
            let text = stale.to_string();
            assert!(text.contains("run `nimbus auth rotate-admin`"), "{text}");
            assert!(text.ends_with("then restart the server"), "{text}");
        }
    }
}

#[test]
fn an_old_rotation_is_described_in_days() {
    let (_temp, path) = with_content(good().to_string().as_bytes());
    let file = TokenFile::load(&path).unwrap();
    let now = "2026-02-16T03:04:04Z".parse().unwrap();
    let text = file
        .fresh_for_network(now, MAX_ROTATION_AGE)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("at 2026-01-02T03:04:05Z, 44 days ago, and the limit is 30 days"),
        "{text}"
    );
    assert_eq!(file.fresh_for_network(now, Duration::MAX), Ok(()));
}

#[test]
fn a_stamp_in_the_future_loads_with_a_flag() {
    for field in ["issuedAt", "rotatedAt"] {
        let (_temp, path) = with_content(&changed(field, Some(json!("9000-01-01T00:00:00Z"))));
        let file = TokenFile::load(&path).unwrap();
        assert!(file.stamps_in_future());
        let gate = file.fresh_for_network(Timestamp::now(), MAX_ROTATION_AGE);
        let Err(StaleToken::FutureStamp { field: named, .. }) = gate else {
            panic!("{gate:?}")
        };
        assert_eq!(named, field);
        assert!(!TokenFile::rotate(&path).unwrap().file.stamps_in_future());
        assert!(!TokenFile::load(&path).unwrap().stamps_in_future());
    }
}

#[test]
fn no_debug_text_shows_the_token() {
    let (_temp, path) = fixture();
    let file = TokenFile::load_or_create(&path).unwrap();
    let old = file.token().expose_secret()[10..].to_owned();
    let shown = format!("{file:?} {:?}", file.token());
    let rotation = TokenFile::rotate(&path).unwrap();
    let shown = format!("{shown} {rotation:?} {rotation:#?}");
    for secret in [&old, &rotation.file.token().expose_secret()[10..]] {
        assert!(!shown.contains(&secret[..8]), "{shown}");
        assert!(!shown.contains(&secret[secret.len() - 8..]), "{shown}");
    }
    assert!(shown.contains("AdminToken(redacted)"));
}
