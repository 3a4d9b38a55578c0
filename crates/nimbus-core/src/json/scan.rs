//! One pass over a JSON text, without recursion and without keeping anything: depth, lengths, keys
//! of the library's own, and integers that a double cannot hold. It does not judge whether the text
//! is JSON.

use super::{JsonError, MAX_DEPTH, MAX_EXACT};
use crate::echo;
use crate::value::{MAX_ARRAY_LEN, MAX_OBJECT_FIELDS};

/// What lies open at a place in a text: for each level how many parts may still begin. A text of
/// 8 MiB has room for a million members, which would cost thirty times its size once read.
struct Levels {
    left: [usize; MAX_DEPTH],
    is_object: [bool; MAX_DEPTH],
    depth: usize,
}

impl Levels {
    const fn new() -> Levels {
        Levels {
            left: [0; MAX_DEPTH],
            is_object: [false; MAX_DEPTH],
            depth: 0,
        }
    }

    fn open(&mut self, is_object: bool) -> Result<(), JsonError> {
        let limits = [MAX_ARRAY_LEN, MAX_OBJECT_FIELDS];
        let levels = self.left.get_mut(self.depth);
        let (Some(left), Some(kind)) = (levels, self.is_object.get_mut(self.depth)) else {
            return Err(JsonError::TooDeep { limit: MAX_DEPTH });
        };
        (*left, *kind) = (limits[usize::from(is_object)], is_object);
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// A comma: one more part begins after it.
    fn next(&mut self) -> Result<(), JsonError> {
        let Some(level) = self.depth.checked_sub(1) else {
            return Ok(());
        };
        self.left[level] -= 1;
        match (self.left[level], self.is_object[level]) {
            (1.., _) => Ok(()),
            (0, false) => Err(JsonError::TooMany {
                what: "an array",
                parts: "elements",
                limit: MAX_ARRAY_LEN,
            }),
            (0, true) => Err(JsonError::TooMany {
                what: "an object",
                parts: "members",
                limit: MAX_OBJECT_FIELDS,
            }),
        }
    }
}

/// One pass over the tokens, without recursion. What is not JSON is left for the parser to name.
pub(super) fn scan(text: &str, accepts: fn(&str, f64) -> bool) -> Result<(), JsonError> {
    let bytes = text.as_bytes();
    let (mut index, mut levels) = (0, Levels::new());
    while let Some(byte) = bytes.get(index) {
        match byte {
            b'"' => {
                let end = string_end(bytes, index);
                check_key(text, index, end)?;
                index = end;
                continue;
            }
            b'{' | b'[' => levels.open(*byte == b'{')?,
            b'}' | b']' => levels.close(),
            b',' => levels.next()?,
            b'-' | b'0'..=b'9' => {
                let end = number_end(bytes, index);
                check_number(&text[index..end], accepts)?;
                index = end;
                continue;
            }
            _ => {}
        }
        index += 1;
    }
    Ok(())
}

/// The index after the closing quote of the string that opens at `start`, or the end of the text.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut index = start + 1;
    while let Some(byte) = bytes.get(index) {
        match byte {
            b'"' => return index + 1,
            b'\\' => index += 2,
            _ => index += 1,
        }
    }
    bytes.len()
}

fn number_end(bytes: &[u8], start: usize) -> usize {
    let part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    bytes[start..]
        .iter()
        .position(|byte| !part(byte))
        .map_or(bytes.len(), |length| start + length)
}

/// Refuses an integer token that changes when it becomes a double.
fn check_number(token: &str, accepts: fn(&str, f64) -> bool) -> Result<(), JsonError> {
    let digits = token.strip_prefix('-').unwrap_or(token);
    // 2^53 has 16 digits; anything shorter is exact.
    if digits.len() < 16 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(());
    }
    if digits
        .parse::<u64>()
        .is_ok_and(|magnitude| magnitude <= MAX_EXACT)
    {
        return Ok(());
    }
    // The largest double has 309 digits; longer text is not worth converting.
    let exact = digits.len() <= 309 && token.parse().is_ok_and(|double| accepts(token, double));
    if exact {
        Ok(())
    } else {
        Err(JsonError::InexactInteger { text: echo(token) })
    }
}

/// The JSON library gives keys with this prefix a meaning of its own: it would read the string
/// beside one as JSON text that this scan has not seen.
pub(super) const LIBRARY_PREFIX: &str = "$serde_json::private::";

fn check_key(text: &str, start: usize, end: usize) -> Result<(), JsonError> {
    let bytes = text.as_bytes();
    if !matches!(bytes.get(start + 1), Some(b'$' | b'\\')) {
        return Ok(());
    }
    let is_key = bytes[end..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
    let decoded = || serde_json::from_str::<String>(&text[start..end]);
    if is_key && decoded().is_ok_and(|key| key.starts_with(LIBRARY_PREFIX)) {
        return Err(JsonError::ReservedKey {
            prefix: LIBRARY_PREFIX,
        });
    }
    Ok(())
}
