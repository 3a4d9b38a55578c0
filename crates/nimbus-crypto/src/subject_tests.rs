//! Tests of subjects: the vectors, the bounds of key-file names, and what parsing must refuse.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/subjects.json")).unwrap()
}

fn failure(error: &SubjectError) -> &'static str {
    match error {
        SubjectError::Tenant { .. } => "tenant",
        SubjectError::CacheFile { .. } => "cache_file",
        SubjectError::Form => "form",
        SubjectError::File { .. } => "file",
        SubjectError::KeyFileName { .. } => "key_file_name",
    }
}

#[test]
fn valid_vectors_parse_to_what_they_say() {
    let vectors = vectors();
    let valid = vectors["valid"].as_array().unwrap();
    assert_eq!(valid.len(), 5);
    for vector in valid {
        let text = vector["descriptor"].as_str().unwrap();
        let subject: Subject = text.parse().unwrap();
        assert_eq!(subject.descriptor(), text);
        assert_eq!(subject.to_string(), text);
        assert_eq!(subject.tenant(), vector["tenant"].as_str());
        assert_eq!(subject.file(), vector["file"]);
        assert_eq!(subject.cipher().name(), vector["cipher"]);
        assert_eq!(subject.key_file_name().unwrap(), vector["key_file"]);
    }
}

#[test]
fn invalid_vectors_are_refused_for_their_reason() {
    let vectors = vectors();
    let invalid = vectors["invalid"].as_array().unwrap();
    assert_eq!(invalid.len(), 32);
    for vector in invalid {
        let text = vector["descriptor"].as_str().unwrap();
        let error = text.parse::<Subject>().unwrap_err();
        assert_eq!(failure(&error), vector["failure"], "{text:?}: {error}");
    }
}

#[test]
fn constructors_and_parser_agree() {
    for subject in [
        Subject::sqlite_tenant("demo").unwrap(),
        Subject::redb_tenant("demo").unwrap(),
        Subject::control(),
        Subject::libsql_cache("demo", "tenant.sqlite3").unwrap(),
        Subject::backup(),
    ] {
        assert_eq!(subject.descriptor().parse::<Subject>().unwrap(), subject);
        assert_eq!(
            subject.kind(),
            subject.descriptor().parse::<Subject>().unwrap().kind()
        );
    }
}

#[test]
fn a_tenant_id_has_at_most_128_characters() {
    assert!(Subject::sqlite_tenant(&"a".repeat(128)).is_ok());
    for make in [Subject::sqlite_tenant, Subject::redb_tenant] {
        assert_eq!(
            make(&"a".repeat(129)).unwrap_err(),
            SubjectError::Tenant { length: 129 }
        );
    }
}

type Make = fn(&str) -> Result<Subject, SubjectError>;

#[test]
fn key_file_names_end_at_255_bytes_and_the_error_has_the_number() {
    let cases: [(Make, usize); 2] = [(Subject::sqlite_tenant, 49), (Subject::redb_tenant, 52)];
    for (make, limit) in cases {
        let name = make(&"a".repeat(limit)).unwrap().key_file_name().unwrap();
        assert!(name.len() <= MAX_FILE_NAME, "{}", name.len());
        for length in [limit + 1, MAX_TENANT_ID] {
            let error = make(&"a".repeat(length))
                .unwrap()
                .key_file_name()
                .unwrap_err();
            let SubjectError::KeyFileName {
                length: bytes,
                tenant_length,
                tenant_limit,
                ..
            } = &error
            else {
                panic!("{error}");
            };
            assert!(*bytes > MAX_FILE_NAME);
            assert_eq!(
                (*tenant_length, *tenant_limit),
                (length, Some(limit)),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(&format!("at most {limit} characters")),
                "{text}"
            );
        }
    }
}

#[test]
fn a_long_cache_name_is_refused_without_a_tenant_limit() {
    let subject = Subject::libsql_cache(&"a".repeat(120), "tenant.sqlite3").unwrap();
    let error = subject.key_file_name().unwrap_err();
    assert!(
        matches!(
            error,
            SubjectError::KeyFileName {
                tenant_limit: None,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_remedy_is_a_command_for_each_kind() {
    let remedy = |subject: Subject| subject.remedy(Path::new("/data/x"));
    assert_eq!(
        remedy(Subject::sqlite_tenant("demo").unwrap()),
        "nimbus encryption migrate --source /data/x --provider sqlite --tenant-id demo --replace"
    );
    assert_eq!(
        remedy(Subject::redb_tenant("demo").unwrap()),
        "nimbus encryption migrate --source /data/x --provider redb --tenant-id demo --replace"
    );
    assert_eq!(
        remedy(Subject::control()),
        "nimbus encryption migrate --source /data/x --provider redb --replace"
    );
    assert_eq!(
        remedy(Subject::libsql_cache("demo", "tenant.sqlite3").unwrap()),
        "rm -f -- /data/x /data/x-wal /data/x-shm"
    );
    assert_eq!(remedy(Subject::backup()), "nimbus backup create");
}

/// A shell takes the quoted path for one word, and runs nothing in it.
#[test]
fn the_remedy_quotes_what_a_shell_would_take_apart() {
    for path in [
        "/data/with space/x",
        "/data/$(touch pwned)/x",
        "/data/it's/x",
        "/data/a;b&c|d/x",
        "/data/\"*?[]{}~#!\\/x",
        "/data/new\nline/x",
        "-rf",
    ] {
        let subject = Subject::sqlite_tenant("demo").unwrap();
        let words = shell_words::split(&subject.remedy(Path::new(path))).unwrap();
        assert_eq!((words.len(), words[4].as_str()), (10, path), "{words:?}");
        let script = format!("printf '%s\\0' {}", subject.remedy(Path::new(path)));
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let printed = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(printed.split('\0').nth(4), Some(path));
        let cache = Subject::libsql_cache("demo", "x.sqlite3").unwrap();
        let words = shell_words::split(&cache.remedy(Path::new(path))).unwrap();
        let expected = ["", "-wal", "-shm"].map(|ending| format!("{path}{ending}"));
        assert_eq!(words[..3], ["rm", "-f", "--"]);
        assert_eq!(words[3..], expected);
    }
}

proptest! {
    #[test]
    fn every_tenant_round_trips_and_no_two_share_a_key_file(
        a in "[A-Za-z0-9-][A-Za-z0-9_-]{0,48}",
        b in "[A-Za-z0-9-][A-Za-z0-9_-]{0,48}",
    ) {
        let of = |tenant: &str| {
            [Subject::sqlite_tenant(tenant).unwrap(), Subject::redb_tenant(tenant).unwrap()]
        };
        for subject in of(&a) {
            prop_assert_eq!(&subject.descriptor().parse::<Subject>().unwrap(), &subject);
            for other in of(&b) {
                let same = subject.key_file_name().unwrap() == other.key_file_name().unwrap();
                prop_assert_eq!(same, subject == other);
            }
        }
    }

    #[test]
    fn what_parses_is_canonical(text in "db:(sqlite|redb|libsql):(tenant|cache):[a-c_:.]{0,6}:[a-c_:.]{0,6}(\\.sqlite3|\\.redb)?") {
        if let Ok(subject) = text.parse::<Subject>() {
            prop_assert_eq!(subject.descriptor(), text);
        }
    }
}
