//! Every kind of bad token file: refused by loading, kept beside the new one by rotation.

use super::*;

/// Every kind of bad file with its fault.
fn bad_files() -> Vec<(&'static str, Vec<u8>, TokenFault)> {
    let field_type = |field, expected| TokenFault::FieldType { field, expected };
    let length = |found| TokenFault::Length {
        found,
        expected: 32,
    };
    let whole = good().to_string();
    let half = whole.as_bytes()[..whole.len() / 2].to_vec();
    let repeated = whole
        .replacen('{', r#"{"token":"nimbus_at_x","#, 1)
        .into_bytes();
    let mut table = vec![
        ("empty", vec![], TokenFault::Empty),
        ("blank", b" \n\t".to_vec(), TokenFault::Empty),
        (
            "zeros",
            vec![0; 250],
            TokenFault::Syntax { line: 1, column: 1 },
        ),
        (
            "truncated",
            half.clone(),
            TokenFault::Truncated {
                line: 1,
                column: half.len(),
            },
        ),
        (
            "one brace",
            b"{".to_vec(),
            TokenFault::Truncated { line: 1, column: 1 },
        ),
        (
            "garbage",
            b"garbage".to_vec(),
            TokenFault::Syntax { line: 1, column: 1 },
        ),
        (
            "bare token",
            ZERO.as_bytes().to_vec(),
            TokenFault::Syntax { line: 1, column: 2 },
        ),
        (
            "not UTF-8",
            b"{\"token\":\"\xff\"}".to_vec(),
            TokenFault::Syntax { line: 0, column: 0 },
        ),
        (
            "trailing",
            format!("{whole}\n x").into_bytes(),
            TokenFault::Syntax { line: 2, column: 2 },
        ),
        (
            "too large",
            vec![b' '; MAX_FILE_BYTES + 1],
            TokenFault::TooLarge {
                limit: MAX_FILE_BYTES,
            },
        ),
        (
            "repeated",
            repeated,
            TokenFault::RepeatedField { field: "token" },
        ),
    ];
    for other in ["[]", "1", "null", "\"x\"", "true"] {
        table.push((other, other.as_bytes().to_vec(), TokenFault::NotAnObject));
    }
    for field in ["version", "token", "generation", "issuedAt", "scope"] {
        table.push((
            field,
            changed(field, None),
            TokenFault::MissingField { field },
        ));
    }
    let number = "a whole number";
    let text = "a string";
    let version = |found| TokenFault::Version { found, expected: 1 };
    let unknown = |field: &str| TokenFault::UnknownField {
        field: field.to_owned(),
    };
    let members: Vec<(&'static str, Value, TokenFault)> = vec![
        ("version", json!(0), version(0)),
        ("version", json!(2), version(2)),
        ("version", json!("1"), field_type("version", number)),
        ("version", json!(1.5), field_type("version", number)),
        (
            "scope",
            json!("tenant"),
            TokenFault::Scope {
                expected: "local-admin",
            },
        ),
        (
            "scope",
            json!(""),
            TokenFault::Scope {
                expected: "local-admin",
            },
        ),
        ("scope", json!(null), field_type("scope", text)),
        ("generation", json!(0), TokenFault::ZeroGeneration),
        ("generation", json!(-1), field_type("generation", number)),
        ("generation", json!(1.0), field_type("generation", number)),
        ("generation", json!("3"), field_type("generation", number)),
        ("issuedAt", json!("yesterday"), TokenFault::IssuedAt),
        ("issuedAt", json!("2026-01-02"), TokenFault::IssuedAt),
        (
            "issuedAt",
            json!(1_700_000_000),
            field_type("issuedAt", text),
        ),
        (
            "rotatedAt",
            json!(1_700_000_000),
            field_type("rotatedAt", text),
        ),
        ("extra", json!(1), unknown("extra")),
        (
            "rotated_at",
            json!("2026-01-02T03:04:05Z"),
            unknown("rotated_at"),
        ),
        (ZERO, json!(1), unknown("(a name of 53 bytes)")),
        (
            "token",
            json!(7),
            field_type("token", "a string without escapes"),
        ),
        ("token", json!(""), TokenFault::Prefix),
        ("token", json!(ZERO.to_uppercase()), TokenFault::Prefix),
        ("token", json!(&ZERO[10..]), TokenFault::Prefix),
        ("token", json!(format!(" {ZERO}")), TokenFault::Prefix),
        ("token", json!("nimbus_at_"), length(0)),
        ("token", json!("nimbus_at_AAAA"), length(3)),
        ("token", json!(format!("{}AA", &ZERO[..52])), length(33)),
        ("token", json!(&ZERO[..52]), length(31)),
        ("token", json!(&ZERO[..51]), TokenFault::Encoding),
        ("token", json!(format!("{ZERO}=")), TokenFault::Encoding),
        (
            "token",
            json!(format!("{ZERO}\n")),
            field_type("token", "a string without escapes"),
        ),
        (
            "token",
            json!(ZERO.replacen("AA", "+/", 1)),
            TokenFault::Encoding,
        ),
        // The last character carries two bits that must be zero.
        (
            "token",
            json!(format!("{}B", &ZERO[..52])),
            TokenFault::Encoding,
        ),
    ];
    table.extend(
        members
            .into_iter()
            .map(|(field, value, fault)| (field, changed(field, Some(value)), fault)),
    );
    table
}

#[test]
fn bad_files_are_refused_each_for_its_reason_and_left_alone() {
    for (name, content, expected) in bad_files() {
        let (_temp, path) = with_content(&content);
        for loaded in [TokenFile::load(&path), TokenFile::load_or_create(&path)] {
            let error = loaded.unwrap_err();
            let text = format!("{error} {error:?}");
            let TokenError::Invalid { path: named, fault } = error else {
                panic!("{name}: {text}")
            };
            assert_eq!((named, fault), (path.clone(), expected.clone()), "{name}");
            assert!(
                text.contains("Run `nimbus auth rotate-admin` to replace it"),
                "{text}"
            );
            assert!(
                !text.contains(&ZERO[10..]) && !text.contains("AAAAAA"),
                "{text}"
            );
        }
        assert_eq!(fs::read(&path).unwrap(), content, "{name}");
    }
}

#[test]
fn rotation_keeps_a_bad_file_beside_the_new_one() {
    for (name, content, expected) in bad_files() {
        let (_temp, path) = with_content(&content);
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let rotation = TokenFile::rotate_at(&path, 0, now).unwrap();
        let kept = rotation.set_aside.unwrap();
        assert_eq!(kept.fault, expected, "{name}");
        assert_eq!(
            kept.path,
            path.with_file_name("token.corrupt-20231114T221320Z")
        );
        assert_eq!(fs::read(&kept.path).unwrap(), content, "{name}");
        let stored = TokenFile::load(&path).unwrap();
        assert_eq!(
            (stored.generation(), stored.rotated_at()),
            (1, Some(now)),
            "{name}"
        );
    }
}

#[test]
fn two_bad_files_of_one_second_are_both_kept() {
    let (_temp, path) = with_content(b"one");
    let now = Timestamp::from_second(1_700_000_000).unwrap();
    TokenFile::rotate_at(&path, 0, now).unwrap();
    fs::write(&path, "two").unwrap();
    let kept = TokenFile::rotate_at(&path, 0, now)
        .unwrap()
        .set_aside
        .unwrap();
    assert_eq!(
        kept.path,
        path.with_file_name("token.corrupt-20231114T221320Z-2")
    );
    assert_eq!(fs::read(&kept.path).unwrap(), b"two");
    assert_eq!(
        fs::read(path.with_file_name("token.corrupt-20231114T221320Z")).unwrap(),
        b"one"
    );
}

#[test]
fn what_rotations_left_is_listed() {
    let (_temp, path) = with_content(b"{}");
    assert_eq!(leftovers(&path).unwrap(), Vec::<PathBuf>::new());
    let kept = TokenFile::rotate(&path).unwrap().set_aside.unwrap().path;
    let half = path.with_file_name(TEMP_NAME);
    fs::write(&half, "").unwrap();
    fs::write(path.with_file_name("token.bak"), "").unwrap();
    assert_eq!(leftovers(&path).unwrap(), [half, kept]);
    let elsewhere = path.with_file_name("nowhere").join("token");
    assert_eq!(leftovers(&elsewhere).unwrap(), Vec::<PathBuf>::new());
}
