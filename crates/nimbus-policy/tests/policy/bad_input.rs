//! Files that nobody meant as a policy: too large, bombs, every kind of bytes. Each is a precise error, soon.

use nimbus_policy::{Code, MAX_FILE_BYTES, Source, compile};

fn codes(bytes: impl Into<Vec<u8>>) -> Vec<Code> {
    compile(&Source::new("f.yaml", bytes.into()))
        .unwrap_err()
        .codes()
}

#[test]
fn a_file_of_10_mib_is_too_large() {
    assert_eq!(codes(vec![b'a'; 10 * 1024 * 1024]), [Code::TooLarge]);
    assert_eq!(codes(vec![b'['; MAX_FILE_BYTES + 1]), [Code::TooLarge]);
}

#[test]
fn reading_stops_soon_after_the_limit() {
    let source = Source::read(std::path::Path::new("/dev/zero")).unwrap();
    assert_eq!(compile(&source).unwrap_err().codes(), [Code::TooLarge]);
}

#[test]
fn what_is_large_in_another_way_is_told() {
    let most = MAX_FILE_BYTES - 100;
    // The parser has a bound of its own for brackets and reaches it first, since it looks ahead.
    assert_eq!(codes(vec![b'['; most]), [Code::Syntax]);
    assert_eq!(codes("- ".repeat(most / 2)), [Code::TooDeep]);
    assert_eq!(codes("x,".repeat(10).into_bytes()).len(), 1);
    let many = format!("workloads: [{}]", "1,".repeat(500_000));
    assert_eq!(codes(many), [Code::TooMany]);
    let keys: String = (0..1000).map(|key| format!("k{key}: 1\n")).collect();
    assert_eq!(codes(keys), [Code::TooMany]);
    let long = format!(
        "schema_version: 1\ntenant: {}\nworkloads: []\n",
        "a".repeat(100_000)
    );
    assert_eq!(codes(long), [Code::BadText]);
}

#[test]
fn ten_thousand_faults_are_told_in_a_bounded_text() {
    let workloads = "- {kind: nothing, name: a, \"\u{202e}\": 1}\n".repeat(10_000);
    let file = format!("schema_version: 1\ntenant: a\nworkloads:\n{workloads}");
    let invalid = compile(&Source::new("f.yaml", file.into())).unwrap_err();
    assert_eq!(invalid.codes().len(), 20_000);
    let text = invalid.render(false);
    assert!(text.len() < 64 * 1024, "{} bytes", text.len());
    assert!(text.contains("and 19950 more") && !text.contains('\u{202e}'));
    let report = serde_json::to_value(invalid.report()).unwrap();
    assert_eq!(report["error_count"], 20_000);
    assert_eq!(report["errors"].as_array().unwrap().len(), 50);
}

#[test]
fn byte_order_marks_and_other_line_ends_change_nothing() {
    let file = "schema_version: 1\ntenant: acme\nworkloads:\n- kind: runtime_function\n  name: a\n";
    let plain = compile(&Source::new("f", file.into())).unwrap();
    for other in [
        format!("\u{feff}{file}"),
        file.replace('\n', "\r\n"),
        format!("---\n{file}...\n"),
    ] {
        let policy = compile(&Source::new("f", other.into())).unwrap();
        assert_eq!(policy.decisions()[0].id(), plain.decisions()[0].id());
    }
    let fault = format!("\u{feff}{}", file.replace("kind", "kidn"));
    let text = compile(&Source::new("f", fault.into()))
        .unwrap_err()
        .to_string();
    assert!(text.starts_with("f:4:"), "{text}");
}

#[test]
fn a_file_that_is_not_there_could_not_be_read() {
    use nimbus_policy::command::{Command, Exit, Format, run};
    let file = std::path::PathBuf::from("no\u{1b}where.yaml");
    let outcome = run(&Command::Validate { file }, Format::Json, false);
    assert_eq!(outcome.exit, Exit::CouldNotRun);
    assert!(
        outcome
            .stderr
            .starts_with("error: reading no\\u{1b}where.yaml: "),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_long_file_name_is_told_whole() {
    let name = format!("{}policy.yaml", "directory/".repeat(30));
    let invalid = compile(&Source::new(&name, Vec::new())).unwrap_err();
    assert!(invalid.render(false).contains(&name));
    let report = serde_json::to_value(invalid.report()).unwrap();
    assert_eq!(report["errors"][0]["file"], name);
}
