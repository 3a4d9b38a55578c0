//! Text of a policy file as it may be shown: nothing of it can act on a terminal or turn the direction of writing.
//!
//! Knows no rules about which names are good.

use std::path::Path;

use crate::source::Span;

/// Most characters of a value that an error repeats.
const ECHO: usize = 80;

/// A value for an error: printable ASCII as it is, everything else escaped, at most 80 characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(ECHO).map(escaped).collect();
    if text.chars().nth(ECHO).is_some() {
        out.push_str("...");
    }
    out
}

/// A whole text of people (reasons, descriptions): letters of any script as they are, controls escaped.
pub(crate) fn prose(text: &str) -> String {
    text.chars()
        .map(|c| {
            if acts(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// The name of a file, whole.
pub(crate) fn file_name(name: &str) -> String {
    name.chars().map(escaped).collect()
}

/// A path for an error.
pub(crate) fn shown_path(path: &Path) -> String {
    file_name(&path.to_string_lossy())
}

fn escaped(c: char) -> String {
    match c {
        ' '..='~' => c.to_string(),
        other => other.escape_default().to_string(),
    }
}

/// Whether a character does something instead of being seen: controls, marks of direction, invisible characters.
pub(crate) fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Lines of a file for an error: characters that act are made `?`, and whatever could be a secret handle `*`.
/// Every byte keeps its place, so that spans still fit. A handle that was pasted as the secret itself must not
/// get into the log of a build.
pub(crate) fn masked(text: &str, secrets: &[Span], from: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let at = from + at;
        let secret = secrets
            .iter()
            .any(|span| (span.start..span.end).contains(&at));
        match c {
            '\n' | '\t' | '\r' => out.push(c),
            _ if secret && !c.is_whitespace() => out.extend(std::iter::repeat_n('*', c.len_utf8())),
            _ if acts(c) => out.extend(std::iter::repeat_n('?', c.len_utf8())),
            _ => out.push(c),
        }
    }
    out
}

/// Where secret handles may stand, found by looking at lines alone, since this also serves files that are no YAML:
/// what follows `secrets` or `handles`, on the line and in the lines that are indented more, and words
/// that begin with `raw:`.
pub(crate) fn secret_spans(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    // The column of the key whose block this is.
    let mut block: Option<usize> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_start_matches([' ', '-', '\t']);
        let (key, at) = (
            line.len() - content.len(),
            line.len() - line.trim_start().len(),
        );
        if let Some(column) = block
            && !content.trim().is_empty()
        {
            if at > column || (at == column && key > at) {
                push(&mut spans, start + key, start + line.len(), content);
            } else {
                block = None;
            }
        }
        if block.is_none()
            && let Some((found, word)) = keyword(line)
        {
            let colon = usize::from(line[found + word.len()..].starts_with(':'));
            spans.push(Span {
                start: start + found + word.len() + colon,
                end: start + line.len(),
            });
            // Within brackets the block could end anywhere: more is masked then than need be.
            block = Some(if found == key { key } else { 0 });
        }
        for (found, _) in line.match_indices("raw:") {
            spans.push(Span {
                start: start + found,
                end: start + line.len(),
            });
        }
        start += line.len();
    }
    spans
}

/// A line inside a block of secrets: all but the key `handles`.
fn push(spans: &mut Vec<Span>, start: usize, end: usize, line: &str) {
    let skip = if line.starts_with("handles:") {
        "handles:".len()
    } else {
        0
    };
    spans.push(Span {
        start: start + skip,
        end,
    });
}

fn keyword(line: &str) -> Option<(usize, &'static str)> {
    ["secrets", "handles"]
        .into_iter()
        .filter_map(|word| Some((line.find(word)?, word)))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_is_shown() {
        assert_eq!(shown("a\u{1b}[31mb"), "a\\u{1b}[31mb");
        assert_eq!(prose("gr\u{fc}n\u{202e}"), "gr\u{fc}n\\u{202e}");
        assert_eq!(shown(&"x".repeat(81)).len(), 83);
        assert_eq!(masked("a\u{1b}b\u{202e}", &[], 0), "a?b???");
    }

    #[test]
    fn handles_are_masked_wherever_they_stand() {
        for (file, shown) in [
            ("secrets: {handles: [raw:x]}\nb: c\n", "b: c"),
            (
                "w:\n- secrets:\n    handles:\n    - sekrit\n    - \"raw:sekrit\"\n  name: x\n",
                "name: x",
            ),
            ("- secrets:\n  handles:\n  - sekrit\n  k: x\n", "k: x"),
            (
                "w: [{name: a, secrets: {handles: [sekrit,\n  sekrit]}}]\nz: 1\n",
                "z: 1",
            ),
            ("host: raw:sekrit\nq: 1\n", "q: 1"),
            ("handles: |\n  sekrit\n  sekrit\nq: 1\n", "q: 1"),
        ] {
            let out = masked(file, &secret_spans(file), 0);
            assert!(!out.contains("sekrit") && !out.contains("raw:x"), "{out}");
            assert!(out.contains(shown), "{out}");
            assert_eq!(out.len(), file.len());
        }
    }
}
