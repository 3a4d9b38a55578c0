//! The bytes of a policy file and the places in them.
//!
//! Knows no YAML and no rules. It reads at most a little more than a file may have, whatever is behind the path.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Most bytes of a policy file: 4 MiB, some 5,000 workloads.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}: {source}", crate::text::shown_path(path))]
pub struct ReadError {
    /// The path as it was given.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A policy file in memory.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    fault: Option<SourceFault>,
}

/// What makes bytes no text that could be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceFault {
    /// More than [`MAX_FILE_BYTES`].
    TooLarge,
    /// Not UTF-8 from this byte on.
    NotUtf8(usize),
}

impl Source {
    /// Reads a file; `-` is standard input.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read. Too many bytes, or none of a text, are faults of the
    /// file that compiling tells.
    pub fn read(path: &Path) -> Result<Source, ReadError> {
        let fail = |source| ReadError {
            path: path.to_owned(),
            source,
        };
        let limit = u64::try_from(MAX_FILE_BYTES + 1).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            let mut input = io::stdin().lock().take(limit);
            input.read_to_end(&mut bytes).map_err(fail)?;
            return Ok(Source::new("<stdin>", bytes));
        }
        let mut input = File::open(path).map_err(fail)?.take(limit);
        input.read_to_end(&mut bytes).map_err(fail)?;
        Ok(Source::new(&path.to_string_lossy(), bytes))
    }

    /// Takes bytes; `name` is what errors call them.
    #[must_use]
    pub fn new(name: &str, bytes: Vec<u8>) -> Source {
        let (text, fault) = if bytes.len() > MAX_FILE_BYTES {
            (String::new(), Some(SourceFault::TooLarge))
        } else {
            match String::from_utf8(bytes) {
                Ok(text) => (text, None),
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                    (text, Some(SourceFault::NotUtf8(at)))
                }
            }
        };
        Source {
            name: name.to_owned(),
            text,
            fault,
        }
    }

    /// What errors call the file; it may have any character.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text; empty of a file that is too large.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text, without a copy.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    pub(crate) fn fault(&self) -> Option<SourceFault> {
        self.fault
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    pub(crate) fn place(&self, at: usize) -> Place {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before[start..].chars().count() + 1;
        Place { line, column }
    }

    /// The first and the byte after the last of the whole lines that hold `span`, with `around` lines on each side.
    pub(crate) fn lines(&self, span: Span, around: usize) -> Range<usize> {
        let bytes = self.text.as_bytes();
        let mut start = span.start.min(bytes.len());
        for turn in 0..=around {
            let end = if turn == 0 {
                start
            } else {
                start.saturating_sub(1)
            };
            let newline = bytes[..end].iter().rposition(|byte| *byte == b'\n');
            start = newline.map_or(0, |newline| newline + 1);
        }
        let mut end = span.end.clamp(start, bytes.len());
        for _ in 0..=around {
            let newline = bytes[end..].iter().position(|byte| *byte == b'\n');
            end = newline.map_or(bytes.len(), |newline| end + newline + 1);
        }
        start..end
    }
}

/// A range of bytes in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Where something stands in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_from_one_and_in_characters() {
        let source = Source::new("f", "a\n\u{fc}b\n\nc".into());
        assert_eq!(source.place(0), Place { line: 1, column: 1 });
        assert_eq!(source.place(4), Place { line: 2, column: 2 });
        assert_eq!(source.place(99), Place { line: 4, column: 2 });
    }

    #[test]
    fn lines_around_a_span_are_whole() {
        let source = Source::new("f", "one\ntwo\nthree\nfour\n".into());
        let span = Span { start: 9, end: 10 };
        assert_eq!(&source.text()[source.lines(span, 0)], "three\n");
        assert_eq!(&source.text()[source.lines(span, 1)], "two\nthree\nfour\n");
        assert_eq!(&source.text()[source.lines(span, 9)], source.text());
    }
}
