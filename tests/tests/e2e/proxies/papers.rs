//! The papers beside the code: do they name what is there?
//!
//! It must not judge what they say beyond names, paths and figures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nimbus_e2e::{Home, files};

use super::front::shipped;
use super::unit::EXPOSURE;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between back ticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_papers_name_exists() {
    let sources: Vec<(String, String)> = ["bins", "crates", "tests"]
        .iter()
        .flat_map(|dir| files::all_below(&root().join(dir)))
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.to_str().unwrap().to_owned(), text)
        })
        .collect();
    let (mut named, mut missing) = (BTreeSet::new(), Vec::new());
    for paper in ["SECURITY.md", "docs/hardening.md", "docs/reverse-proxy.md"] {
        let text = read(paper);
        for name in quoted(&text) {
            let Some((file, test)) = name.split_once(".rs::") else {
                continue;
            };
            named.insert(name.to_owned());
            let (file, test) = (format!("/{file}.rs"), format!("fn {test}("));
            let found = sources.iter().filter(|(path, _)| path.ends_with(&file));
            if !found.into_iter().any(|(_, text)| text.contains(&test)) {
                missing.push(format!("{paper}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "not there: {missing:#?}");
    assert!(named.len() > 50, "{} tests are named", named.len());
}

#[test]
fn links_between_the_papers_lead_somewhere() {
    for paper in ["SECURITY.md", "docs/hardening.md", "docs/reverse-proxy.md"] {
        let dir = root().join(paper);
        let dir = dir.parent().unwrap();
        let text = read(paper);
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root().join(paper)
            } else {
                dir.join(file)
            };
            assert!(target.is_file(), "{paper} links to {link}");
            let anchors = fs::read_to_string(target).unwrap();
            let anchors = anchors.lines().filter(|line| line.starts_with('#'));
            let mut anchors = anchors.map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                title.replace(' ', "-")
            });
            assert!(
                heading.is_empty() || anchors.any(|anchor| anchor == heading),
                "{paper} links to the heading {link}"
            );
        }
    }
}

#[test]
fn the_guide_tells_the_exposure_that_is_tested() {
    let told = format!("Overall exposure level for nimbus.service: {EXPOSURE:.1} ");
    assert!(read("docs/hardening.md").contains(&told), "{told}");
}

/// The words of the instructions of one kind, continued lines joined.
fn instructions<'a>(dockerfile: &'a str, kind: &str) -> Vec<&'a str> {
    let lines = dockerfile.lines().filter_map(|line| line.split_once(' '));
    let found = lines.filter(|(found, _)| *found == kind);
    found.map(|(_, rest)| rest).collect()
}

#[test]
fn the_image_copies_the_workspace_and_starts_what_exists() {
    let dockerfile = fs::read_to_string(shipped("docker/Dockerfile")).unwrap();
    let ignore = fs::read_to_string(shipped("docker/Dockerfile.dockerignore")).unwrap();
    let sent: BTreeSet<&str> = ignore
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let mut copied = BTreeSet::new();
    for copy in instructions(&dockerfile, "COPY") {
        let mut words: Vec<&str> = copy.split_whitespace().collect();
        if words[0].starts_with("--") {
            continue;
        }
        words.pop();
        copied.extend(words);
    }
    assert_eq!(copied, sent, "what is copied and what is sent to the build");
    for name in &copied {
        assert!(root().join(name).exists(), "{name} is copied");
    }
    // Cargo loads no workspace of which a member is missing.
    let manifest = read("Cargo.toml");
    let members = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = "))
        .unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let top = member.split('/').next().unwrap();
        assert!(copied.contains(top), "the member {member} is not copied");
    }
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.split('"').nth(1).unwrap();
    assert!(dockerfile.contains(&format!("rust:{channel}-")));
    assert_eq!(instructions(&dockerfile, "USER"), ["65532:65532"]);
    assert!(!dockerfile.contains("nimbus_at_"), "a token in the image");

    // The command of the image is one that the server has.
    let home = Home::new();
    let help = home.run(["start", "--help"]).expect(0).stdout;
    let unit = fs::read_to_string(shipped("systemd/nimbus.service")).unwrap();
    let commands = instructions(&dockerfile, "CMD").concat() + &unit;
    let flags: BTreeSet<&str> = commands
        .split(|c: char| c.is_whitespace() || matches!(c, '"' | ','))
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(flags.len() >= 4, "{flags:?}");
    for flag in flags.iter().filter(|flag| **flag != "--") {
        assert!(help.contains(&format!("{flag} ")), "{flag} is no flag");
    }
}
