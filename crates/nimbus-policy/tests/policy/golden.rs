//! Transcripts: every file in `files/` through every command that it is for, as text and as JSON, compared with `golden/`.
//!
//! `NIMBUS_UPDATE_GOLDEN=1` writes them anew; what changed is then seen in the diff of the commit. A file's name says what
//! it is for: `ok-`, `prove-`, `bad-`, pairs `diff-*.before` and `diff-*.after`, and `suggest-` with a log `.jsonl` beside it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nimbus_policy::command::{Command, Format, run};

use crate::schemas::Published;

/// The clock of all transcripts.
const NOW: &str = "2026-12-01T00:00:00Z";

fn dir(name: &str) -> PathBuf {
    Path::new("tests/policy").join(name)
}

/// Names of the files for a purpose, without ending.
fn named(prefix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir("files")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| {
            let name = name.strip_suffix(".yaml")?;
            let name = name
                .strip_suffix(".before")
                .or(name.strip_suffix(".after"))
                .unwrap_or(name);
            name.starts_with(prefix).then(|| name.to_owned())
        })
        .collect()
}

fn file(name: &str) -> PathBuf {
    dir("files").join(format!("{name}.yaml"))
}

/// One command as it would be typed, and what it says.
fn say(out: &mut String, typed: &str, command: &Command, format: Format, published: &Published) {
    let outcome = run(command, format, false);
    let flag = match format {
        Format::Text => "",
        Format::Json => " -f json",
        Format::Sarif => " -f sarif",
    };
    out.push_str(&format!("$ nimbus policy {typed}{flag}\n"));
    out.push_str(&outcome.stdout);
    out.push_str(&outcome.stderr);
    out.push_str(&format!("exit code {}\n\n", outcome.exit.code()));
    for text in [&outcome.stdout, &outcome.stderr] {
        let acts = |c: char| c.is_control() && c != '\n';
        assert!(
            !text.contains(acts) && !text.contains('\u{202e}'),
            "{typed}: {text:?}"
        );
        assert!(
            !text.contains("hunter2"),
            "{typed}: a secret is shown: {text}"
        );
    }
    match format {
        Format::Text => {}
        Format::Json => published.check(typed, &outcome),
        Format::Sarif => {
            let log = serde_json::from_str(&outcome.stdout).unwrap();
            published.check_sarif(typed, &log);
            rules_fit(&log);
        }
    }
}

/// Each result points at its rule, which no schema can say.
fn rules_fit(log: &serde_json::Value) {
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    for result in run["results"].as_array().unwrap() {
        let rule = &rules[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
        assert_eq!(rule["id"], result["ruleId"]);
    }
}

fn compare(name: &str, transcript: &str) {
    // The path from the repository is of no interest.
    let transcript = transcript.replace("tests/policy/files/", "");
    let path = dir("golden").join(format!("{name}.txt"));
    if std::env::var_os("NIMBUS_UPDATE_GOLDEN").is_some() {
        fs::write(&path, &transcript).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == transcript,
        "{} differs (NIMBUS_UPDATE_GOLDEN=1 writes it anew); found:\n{transcript}",
        path.display()
    );
}

fn single(prefix: &str, proves: bool) {
    let published = Published::load();
    let now: Timestamp = NOW.parse().unwrap();
    for name in named(prefix) {
        let mut out = String::new();
        let file = file(&name);
        for format in [Format::Text, Format::Json] {
            let command = Command::Validate { file: file.clone() };
            say(
                &mut out,
                &format!("validate --file {name}.yaml"),
                &command,
                format,
                &published,
            );
        }
        let explain = Command::Explain { file: file.clone() };
        // JSON of explain is that of validate.
        if prefix != "bad-" {
            let typed = format!("explain --file {name}.yaml");
            say(&mut out, &typed, &explain, Format::Text, &published);
        }
        if proves {
            let command = Command::Prove {
                file: file.clone(),
                now,
            };
            let typed = format!("prove --file {name}.yaml");
            for format in [Format::Text, Format::Json, Format::Sarif] {
                say(&mut out, &typed, &command, format, &published);
            }
        }
        compare(&name, &out);
    }
}

#[test]
fn valid_files() {
    single("ok-", true);
}

#[test]
fn advisories() {
    single("prove-", true);
}

#[test]
fn invalid_files() {
    single("bad-", false);
}

#[test]
fn changes() {
    let published = Published::load();
    for name in named("diff-") {
        let mut out = String::new();
        let (from, to) = (
            file(&format!("{name}.before")),
            file(&format!("{name}.after")),
        );
        let typed = format!("diff --from {name}.before.yaml --to {name}.after.yaml");
        let command = |deny_widening| Command::Diff {
            from: from.clone(),
            to: to.clone(),
            deny_widening,
        };
        say(
            &mut out,
            &format!("{typed} --deny-widening"),
            &command(true),
            Format::Text,
            &published,
        );
        say(&mut out, &typed, &command(false), Format::Json, &published);
        compare(&name, &out);
    }
}

#[test]
fn suggestions() {
    let published = Published::load();
    for name in named("suggest-") {
        let mut out = String::new();
        let command = Command::Suggest {
            file: file(&name),
            audit: dir("files").join(format!("{name}.jsonl")),
        };
        let typed = format!("suggest --file {name}.yaml --audit {name}.jsonl");
        for format in [Format::Text, Format::Json] {
            say(&mut out, &typed, &command, format, &published);
        }
        compare(&name, &out);
    }
}

#[test]
fn every_transcript_has_its_files_and_there_are_enough() {
    let names: BTreeSet<String> = ["ok-", "prove-", "bad-", "diff-", "suggest-"]
        .into_iter()
        .flat_map(named)
        .collect();
    let entries = fs::read_dir(dir("golden")).unwrap();
    let golden: BTreeSet<String> = entries
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(golden, names);
    assert!(fs::read_dir(dir("files")).unwrap().count() >= 40);
}
