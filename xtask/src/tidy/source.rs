//! Rust source with comments, strings and test modules blanked, so that rules can look for words in code alone.
//! Must not know any rule. Offsets and line numbers stay those of the file.

use std::ops::Range;

/// The source with every comment and the inside of every string and character replaced by
/// spaces, byte for byte. Quotes and line breaks stay.
pub(crate) fn code(source: &str) -> String {
    let mut scanner = Scanner {
        source: source.as_bytes(),
        code: Vec::with_capacity(source.len()),
    };
    while scanner.at() < source.len() {
        scanner.step();
    }
    // Only whole characters were replaced, each byte by one space.
    String::from_utf8_lossy(&scanner.code).into_owned()
}

/// Blanks every item behind `#[cfg(test)]` in what [`code`] returned; all of it when the file
/// itself is one (`#![cfg(test)]`).
pub(crate) fn without_tests(code: &str) -> String {
    if code.contains("#![cfg(test)]") {
        return blank(code, 0..code.len());
    }
    let mut rest = code.to_owned();
    while let Some(start) = rest.find("#[cfg(test)]") {
        let end = item_end(&rest, start);
        rest = blank(&rest, start..end);
    }
    rest
}

/// Offsets at which `word` stands alone, not as a part of a longer identifier.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
}

/// The line number, from 1, of an offset.
pub(crate) fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Whether a character can be part of an identifier.
pub(crate) fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The end of the item at `start`: its closing brace, or its semicolon if that comes first.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(code: &str, range: Range<usize>) -> String {
    let blanked = code.char_indices().flat_map(|(at, c)| {
        let hidden = range.contains(&at) && c != '\n';
        let (c, count) = if hidden { (' ', c.len_utf8()) } else { (c, 1) };
        std::iter::repeat_n(c, count)
    });
    blanked.collect()
}

/// Copies the source piece by piece; how far it is, is the length of the copy.
struct Scanner<'a> {
    source: &'a [u8],
    code: Vec<u8>,
}

impl Scanner<'_> {
    fn at(&self) -> usize {
        self.code.len()
    }

    fn rest(&self) -> &[u8] {
        &self.source[self.at()..]
    }

    /// Copies `count` bytes.
    fn keep(&mut self, count: usize) {
        let end = (self.at() + count).min(self.source.len());
        self.code.extend_from_slice(&self.source[self.at()..end]);
    }

    /// Writes spaces for `count` bytes, line breaks apart.
    fn hide(&mut self, count: usize) {
        let end = (self.at() + count).min(self.source.len());
        for at in self.at()..end {
            let byte = if self.source[at] == b'\n' {
                b'\n'
            } else {
                b' '
            };
            self.code.push(byte);
        }
    }

    /// Takes the next comment, literal or byte of code.
    fn step(&mut self) {
        let rest = self.rest();
        if rest.starts_with(b"//") {
            let length = rest
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap_or(rest.len());
            self.hide(length);
        } else if rest.starts_with(b"/*") {
            self.hide(block_comment(rest));
        } else if let Some(prefix) = self.raw_string_prefix() {
            self.raw_string(prefix);
        } else if rest.starts_with(b"\"") {
            self.quoted(string_length(rest));
        } else if let Some(length) = char_length(rest) {
            self.quoted(length);
        } else {
            self.keep(1);
        }
    }

    /// Copies the quotes of a literal of `length` bytes and hides what is between.
    fn quoted(&mut self, length: usize) {
        self.keep(1);
        self.hide(length.saturating_sub(2));
        self.keep(1);
    }

    /// The length of `r`, `br` or `cr` with its hashes, when a raw string starts here.
    fn raw_string_prefix(&self) -> Option<usize> {
        let inside = self
            .code
            .last()
            .is_some_and(|&byte| is_word(char::from(byte)));
        let rest = self.rest();
        let letters = [&b"r"[..], b"br", b"cr"]
            .into_iter()
            .find(|start| rest.starts_with(start))?;
        let hashes = rest[letters.len()..]
            .iter()
            .take_while(|&&byte| byte == b'#')
            .count();
        let prefix = letters.len() + hashes;
        (!inside && rest.get(prefix) == Some(&b'"')).then_some(prefix)
    }

    fn raw_string(&mut self, prefix: usize) {
        let hashes = self.rest()[..prefix]
            .iter()
            .filter(|&&byte| byte == b'#')
            .count();
        let close: Vec<u8> = [vec![b'"'], vec![b'#'; hashes]].concat();
        self.keep(prefix + 1);
        let rest = self.rest();
        let length = rest.windows(close.len()).position(|window| window == close);
        self.hide(length.unwrap_or(rest.len()));
        self.keep(close.len());
    }
}

/// The length of a block comment; they nest.
fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of a string with both its quotes.
fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal with both its quotes; `None` for a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    let [b'\'', first, ..] = rest else {
        return None;
    };
    let inner = match first {
        // Past the escaped character, which may itself be a quote.
        b'\\' => 2 + rest.get(3..)?.iter().position(|&byte| byte == b'\'')?,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xFF => 4,
        _ => 1,
    };
    (rest.get(1 + inner) == Some(&b'\'')).then_some(inner + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_in_place() {
        for (source, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x \" y", z)"#, r#"f("      ", z)"#),
            (r##"f(r#"a "b" c"#, z)"##, r##"f(r#"       "#, z)"##),
            (r#"f(b"xy", br"z\")"#, r#"f(b"  ", br"  ")"#),
            ("r#type = attr\"x\"", "r#type = attr\" \""),
            (
                "match c { '\"' => 1, '\\'' => 2 }",
                "match c { ' ' => 1, '  ' => 2 }",
            ),
            ("'\\u{1F600}' x", "'         ' x"),
            (
                "fn f<'a>(x: &'a str) -> &'a u8",
                "fn f<'a>(x: &'a str) -> &'a u8",
            ),
            ("'é' x", "'  ' x"),
            ("\"one\ntwo\" x", "\"   \n   \" x"),
        ] {
            let found = code(source);
            assert_eq!(found.trim_end(), expected.trim_end(), "{source}");
            assert_eq!(found.len(), source.len(), "{source}");
        }
    }

    #[test]
    fn source_that_ends_too_early_keeps_its_length() {
        for source in [
            "\"open",
            "\"\\",
            "/* open",
            "r#\"open",
            "r#\"open\"",
            "'",
            "'\\",
            "b'",
        ] {
            assert_eq!(code(source).len(), source.len(), "{source}");
        }
    }

    #[test]
    fn test_items_are_blanked() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { c() }\n}\nfn d() {}\n";
        let found = without_tests(&code(source));
        assert!(
            found.contains("fn a()") && found.contains("fn d()"),
            "{found}"
        );
        assert!(!found.contains("fn b()"), "{found}");
        assert_eq!(found.len(), source.len());

        let found = without_tests("#[cfg(test)]\nmod tests;\nfn d() {}\n");
        assert!(
            !found.contains("mod tests") && found.contains("fn d()"),
            "{found}"
        );
        assert_eq!(without_tests("#![cfg(test)]\nfn a() {}\n").trim(), "");
    }

    #[test]
    fn words_stand_alone() {
        let text = "Engine EngineRef my_Engine x::Engine;";
        assert_eq!(words(text, "Engine").collect::<Vec<_>>(), [0, 30]);
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(
            [line("a\nb\nc", 0), line("a\nb\nc", 2), line("a\nb\nc", 4)],
            [1, 2, 3]
        );
    }
}
