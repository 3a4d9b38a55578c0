//! Order-preserving key bytes (convex.md 2.5): comparing two keys as bytes gives the order of the
//! values. Also how a stored key is cut (design.md 2). This room knows values and nothing of
//! indexes: which fields form a key, and what follows them, is the engine's.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::json::MAX_DEPTH;
use crate::value::{Object, Value};

/// Longest key a provider stores, in bytes (design.md 2).
pub const MAX_STORED_KEY: usize = 2048;
/// Bytes of a longer key that are kept before the marker and the hash.
pub const CUT_PREFIX: usize = 2000;
/// Stands between the kept bytes and the hash.
const CUT_MARKER: u8 = 0xff;

const UNDEFINED: u8 = 0x01;
const NULL: u8 = 0x03;
/// Tag of the integer 0; other integers add or subtract the class of their width, 1 to 4.
const INT_ZERO: u8 = 0x08;
const FLOAT: u8 = 0x0d;
const FALSE: u8 = 0x0e;
const TRUE: u8 = 0x0f;
const STRING: u8 = 0x10;
const BYTES: u8 = 0x11;
const ARRAY: u8 = 0x12;
const OBJECT: u8 = 0x15;
/// Ends strings, bytes, arrays, objects and names.
const END: u8 = 0x00;
/// Follows a 00 that is content, and the end of an empty name.
const ESCAPE: u8 = 0xff;

/// Why bytes are not the key of a value. Offsets are zero-based.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The bytes end within a value.
    #[error("the key ends within a value")]
    Truncated,
    /// No value starts with this byte here.
    #[error("the key has the unknown tag {tag:#04x} at byte {offset}")]
    Tag {
        /// The byte found.
        tag: u8,
        /// Where it stands.
        offset: usize,
    },
    /// An integer is written wider than it needs to be.
    #[error("the key has an integer in too wide a form at byte {offset}")]
    WideInteger {
        /// Where its tag stands.
        offset: usize,
    },
    /// A string or name is not UTF-8.
    #[error("the key has text that is not UTF-8 at byte {offset}")]
    Utf8 {
        /// Where the text starts.
        offset: usize,
    },
    /// The names of an object do not rise.
    #[error("the key has object fields out of order at byte {offset}")]
    FieldOrder {
        /// Where the second name starts.
        offset: usize,
    },
    /// Arrays and objects lie too deep within each other.
    #[error("the key nests more than {limit} levels deep")]
    TooDeep {
        /// The most levels allowed.
        limit: usize,
    },
}

/// Appends the key of `value`; `None` is undefined, a missing field, which sorts first.
///
/// Keys may be put one after the other, and then compare field by field, if what follows the last
/// does not start with `ff`. Names must obey the field-name rule (`value::check_value`): one that
/// starts with U+0000 would read as an empty name.
pub fn encode(value: Option<&Value>, out: &mut Vec<u8>) {
    match value {
        None => out.push(UNDEFINED),
        Some(value) => encode_value(value, out),
    }
}

/// Appends the key of a float: tag `0d`, then the bits, big-endian, all flipped for a negative
/// number and with the sign bit set for a positive one. Orders every bit pattern as
/// [`f64::total_cmp`] does.
pub fn encode_f64(value: f64, out: &mut Vec<u8>) {
    let bits = value.to_bits();
    let sortable = if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    };
    out.push(FLOAT);
    out.extend_from_slice(&sortable.to_be_bytes());
}

/// Reads one key and gives back its value and the bytes after it. Every value has one key, so
/// anything that [`encode`] would not write is refused.
///
/// # Errors
/// [`KeyError`], with the place.
pub fn decode(bytes: &[u8]) -> Result<(Option<Value>, &[u8]), KeyError> {
    let mut reader = Reader { bytes, at: 0 };
    let value = if bytes.first() == Some(&UNDEFINED) {
        reader.at = 1;
        None
    } else {
        Some(reader.value(0)?)
    };
    Ok((value, &bytes[reader.at..]))
}

/// The stored form of a key: itself up to [`MAX_STORED_KEY`] bytes; of a longer one the first
/// [`CUT_PREFIX`] bytes, the marker `ff` and the SHA-256 of the whole, 2,033 bytes (design.md 2).
/// Equal keys stay equal and different ones different; among keys with the same first 2,000
/// bytes of which one is cut, the order is lost.
#[must_use]
pub fn cut(full: &[u8]) -> Cow<'_, [u8]> {
    if full.len() <= MAX_STORED_KEY {
        return Cow::Borrowed(full);
    }
    let mut stored = full[..CUT_PREFIX].to_vec();
    stored.push(CUT_MARKER);
    stored.extend_from_slice(&Sha256::digest(full));
    Cow::Owned(stored)
}

/// The smallest byte string greater than every one that starts with `prefix`; `None` if there is
/// none, that is, if `prefix` is empty or all `ff`. For bytes of a fixed layout, such as an index
/// id; the keys of equal values end at [`equal_range_end`].
#[must_use]
pub fn prefix_successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut successor = prefix[..=last].to_vec();
    successor[last] += 1;
    Some(successor)
}

/// The exclusive end of the range of keys whose first values are those encoded in `values`; the
/// start is `values` itself.
///
/// The key of one value may be a prefix of another's: `"a"` is `10 61 00` and `"a\0"` is
/// `10 61 00 ff 00`. So [`prefix_successor`] would reach too far; this end relies on what follows
/// a whole value never starting with `ff`.
#[must_use]
pub fn equal_range_end(values: &[u8]) -> Vec<u8> {
    let mut end = Vec::with_capacity(values.len() + 1);
    end.extend_from_slice(values);
    end.push(ESCAPE);
    end
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NULL),
        Value::Int64(number) => encode_int(*number, out),
        Value::Float64(number) => encode_f64(*number, out),
        Value::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Value::String(text) => {
            out.push(STRING);
            encode_escaped(text.as_bytes(), out);
        }
        Value::Bytes(bytes) => {
            out.push(BYTES);
            encode_escaped(bytes, out);
        }
        Value::Array(items) => {
            out.push(ARRAY);
            items.iter().for_each(|item| encode_value(item, out));
            out.push(END);
        }
        Value::Object(fields) => encode_object(fields, out),
    }
}

fn encode_object(fields: &Object, out: &mut Vec<u8>) {
    out.push(OBJECT);
    for (name, value) in fields {
        encode_escaped(name.as_bytes(), out);
        if name.is_empty() {
            // Without it the end of the name would read as the end of the object.
            out.push(ESCAPE);
        }
        encode_value(value, out);
    }
    out.push(END);
}

/// Width class (0 to 4) of an integer; its payload has 0, 1, 2, 4 or 8 bytes.
fn width_class(number: i64) -> u8 {
    if number == 0 {
        0
    } else if i8::try_from(number).is_ok() {
        1
    } else if i16::try_from(number).is_ok() {
        2
    } else if i32::try_from(number).is_ok() {
        3
    } else {
        4
    }
}

fn payload_len(class: u8) -> usize {
    if class == 0 { 0 } else { 1 << (class - 1) }
}

fn encode_int(number: i64, out: &mut Vec<u8>) {
    let class = width_class(number);
    out.push(if number < 0 {
        INT_ZERO - class
    } else {
        INT_ZERO + class
    });
    out.extend_from_slice(&number.to_be_bytes()[8 - payload_len(class)..]);
}

fn encode_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    for (index, run) in bytes.split(|byte| *byte == END).enumerate() {
        if index > 0 {
            out.extend_from_slice(&[END, ESCAPE]);
        }
        out.extend_from_slice(run);
    }
    out.push(END);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Result<u8, KeyError> {
        self.bytes.get(self.at).copied().ok_or(KeyError::Truncated)
    }

    fn value(&mut self, depth: usize) -> Result<Value, KeyError> {
        let offset = self.at;
        let tag = self.peek()?;
        self.at += 1;
        match tag {
            NULL => Ok(Value::Null),
            0x04..=0x0c => self.int(tag, offset).map(Value::Int64),
            FLOAT => self.float().map(Value::Float64),
            FALSE => Ok(Value::Bool(false)),
            TRUE => Ok(Value::Bool(true)),
            STRING => self.text().map(Value::String),
            BYTES => self.escaped().map(Value::Bytes),
            ARRAY | OBJECT if depth == MAX_DEPTH => Err(KeyError::TooDeep { limit: MAX_DEPTH }),
            ARRAY => self.array(depth + 1).map(Value::Array),
            OBJECT => self.object(depth + 1).map(Value::Object),
            _ => Err(KeyError::Tag { tag, offset }),
        }
    }

    fn int(&mut self, tag: u8, offset: usize) -> Result<i64, KeyError> {
        let class = tag.abs_diff(INT_ZERO);
        let negative = tag < INT_ZERO;
        let payload = self.take(payload_len(class))?;
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[8 - payload.len()..].copy_from_slice(payload);
        let number = i64::from_be_bytes(wide);
        // Catches a wider form than needed and a sign that contradicts the tag.
        if width_class(number) != class || (number < 0) != negative {
            return Err(KeyError::WideInteger { offset });
        }
        Ok(number)
    }

    fn float(&mut self) -> Result<f64, KeyError> {
        let payload = self.take(8)?;
        let sortable = payload
            .iter()
            .fold(0_u64, |acc, byte| (acc << 8) | u64::from(*byte));
        let bits = if sortable >> 63 == 1 {
            sortable ^ 1 << 63
        } else {
            !sortable
        };
        Ok(f64::from_bits(bits))
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value>, KeyError> {
        let mut items = Vec::new();
        while self.peek()? != END {
            items.push(self.value(depth)?);
        }
        self.at += 1;
        Ok(items)
    }

    fn object(&mut self, depth: usize) -> Result<Object, KeyError> {
        let mut fields = Object::new();
        loop {
            let offset = self.at;
            let name = if self.peek()? != END {
                self.text()?
            } else if self.bytes.get(self.at + 1) == Some(&ESCAPE) {
                self.at += 2;
                String::new()
            } else {
                self.at += 1;
                return Ok(fields);
            };
            if fields
                .last_key_value()
                .is_some_and(|(last, _)| *last >= name)
            {
                return Err(KeyError::FieldOrder { offset });
            }
            let value = self.value(depth)?;
            fields.insert(name, value);
        }
    }

    fn text(&mut self) -> Result<String, KeyError> {
        let offset = self.at;
        String::from_utf8(self.escaped()?).map_err(|_| KeyError::Utf8 { offset })
    }

    /// Content up to its end mark, with each `00 ff` as `00`.
    fn escaped(&mut self) -> Result<Vec<u8>, KeyError> {
        let mut content = Vec::new();
        loop {
            let byte = self.peek()?;
            self.at += 1;
            if byte == END {
                if self.bytes.get(self.at) != Some(&ESCAPE) {
                    return Ok(content);
                }
                self.at += 1;
            }
            content.push(byte);
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], KeyError> {
        let end = self.at + length;
        let taken = self.bytes.get(self.at..end).ok_or(KeyError::Truncated)?;
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::value::tests::any_value;

    #[derive(Deserialize)]
    struct Vectors {
        ascending: Vec<Valid>,
        invalid: Vec<Invalid>,
    }

    #[derive(Deserialize)]
    struct Valid {
        json: String,
        key: String,
    }

    #[derive(Deserialize)]
    struct Invalid {
        key: String,
        error: String,
        why: String,
    }

    fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../vectors/keys.json")).unwrap()
    }

    fn key(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        encode(Some(value), &mut out);
        out
    }

    #[test]
    fn vectors_encode_decode_and_ascend() {
        let mut last: Option<(Value, Vec<u8>)> = None;
        for vector in vectors().ascending {
            let value: Value = crate::json::from_slice(vector.json.as_bytes()).unwrap();
            let bytes = key(&value);
            assert_eq!(HEXLOWER.encode(&bytes), vector.key, "{}", vector.json);
            assert_eq!(
                decode(&bytes),
                Ok((Some(value.clone()), &[][..])),
                "{}",
                vector.json
            );
            if let Some((smaller, smaller_bytes)) = last {
                assert!(smaller < value && smaller_bytes < bytes, "{}", vector.json);
            }
            last = Some((value, bytes));
        }
    }

    #[test]
    fn invalid_vectors_fail_for_the_stated_reason() {
        for vector in vectors().invalid {
            let bytes = HEXLOWER.decode(vector.key.as_bytes()).unwrap();
            let error = decode(&bytes).expect_err(&vector.why);
            let kind = format!("{error:?}");
            assert_eq!(
                kind.split([' ', '{']).next().unwrap(),
                vector.error,
                "{}",
                vector.why
            );
        }
    }

    #[test]
    fn undefined_sorts_first_and_reads_back() {
        let mut bytes = Vec::new();
        encode(None, &mut bytes);
        assert_eq!(bytes, [1]);
        assert!(bytes < key(&Value::Null));
        bytes.push(7);
        assert_eq!(decode(&bytes), Ok((None, &[7][..])));
    }

    #[test]
    fn nesting_that_json_can_carry_decodes() {
        let nest = |levels| (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert_eq!(
            decode(&key(&nest(MAX_DEPTH))),
            Ok((Some(nest(MAX_DEPTH)), &[][..]))
        );
        let deep = Err(KeyError::TooDeep { limit: MAX_DEPTH });
        assert_eq!(decode(&key(&nest(MAX_DEPTH + 1))), deep);
        assert_eq!(decode(&vec![ARRAY; 1_000_000]), deep);
    }

    #[test]
    fn cut_keys_fit_and_tell_apart() {
        let longest = vec![7; MAX_STORED_KEY];
        assert!(matches!(cut(&longest), Cow::Borrowed(same) if same == longest));
        assert!(matches!(cut(&[]), Cow::Borrowed(&[])));
        let long = vec![7; MAX_STORED_KEY + 1];
        let stored = cut(&long);
        assert_eq!(stored.len(), 2033);
        assert_eq!(stored[..CUT_PREFIX], long[..CUT_PREFIX]);
        assert_eq!(stored[CUT_PREFIX], 0xff);
        assert_eq!(stored[CUT_PREFIX + 1..], Sha256::digest(&long)[..]);
        let mut other = long.clone();
        other[MAX_STORED_KEY] = 8;
        assert_ne!(cut(&other), stored);
    }

    #[test]
    fn equal_range_ends_before_longer_strings() {
        let text = |text: &str| key(&Value::String(text.to_owned()));
        let (short, long) = (text("a"), text("a\0"));
        assert!(long.starts_with(&short));
        assert_eq!(equal_range_end(&short), [0x10, b'a', 0, 0xff]);
        assert!(long >= equal_range_end(&short));
        assert!(long < prefix_successor(&short).unwrap());
        assert!(
            [short.clone(), key(&Value::Object(Object::new()))].concat() < equal_range_end(&short)
        );
    }

    #[test]
    fn prefix_successor_is_the_least_upper_bound() {
        for (prefix, successor) in [
            (&[][..], None),
            (&[0xff], None),
            (&[0xff, 0xff], None),
            (&[0], Some(vec![1])),
            (&[1, 0xfe], Some(vec![1, 0xff])),
            (&[1, 0xff], Some(vec![2])),
            (&[1, 0xff, 0xff], Some(vec![2])),
            (&[0xff, 0, 0xff], Some(vec![0xff, 1])),
        ] {
            assert_eq!(prefix_successor(prefix), successor, "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_order_as_values(a in any_value(), b in any_value()) {
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        }

        #[test]
        fn joined_keys_order_as_tuples(a: [u8; 2], b: [u8; 2], x in any_value(), y in any_value()) {
            let text = |bytes: [u8; 2]| Value::Bytes(bytes.to_vec());
            let join = |bytes, value: &Value| [key(&text(bytes)), key(value)].concat();
            let tuples = (text(a), &x).cmp(&(text(b), &y));
            prop_assert_eq!(join(a, &x).cmp(&join(b, &y)), tuples);
            let objects = [key(&x), key(&y)].concat().cmp(&[key(&y), key(&x)].concat());
            prop_assert_eq!(objects, (&x, &y).cmp(&(&y, &x)));
        }

        #[test]
        fn equal_range_holds_the_equal_and_no_other(a in any_value(), b in any_value(), next in prop::option::of(any_value())) {
            let start = key(&a);
            let end = equal_range_end(&start);
            for (value, equal) in [(&a, true), (&b, a == b)] {
                let mut found = key(value);
                prop_assert_eq!(start <= found && found < end, equal);
                encode(next.as_ref(), &mut found);
                prop_assert_eq!(start <= found && found < end, equal);
            }
        }

        #[test]
        fn keys_read_back_and_leave_the_rest(value in any_value(), rest in "[a-z]{0,4}") {
            let mut bytes = key(&value);
            bytes.extend_from_slice(rest.as_bytes());
            prop_assert_eq!(decode(&bytes), Ok((Some(value), rest.as_bytes())));
        }

        #[test]
        fn every_bit_pattern_of_a_float_orders_and_reads_back(a: u64, b: u64) {
            let (a, b) = (Value::Float64(f64::from_bits(a)), Value::Float64(f64::from_bits(b)));
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            let bytes = key(&a);
            prop_assert_eq!(decode(&bytes), Ok((Some(a), &[][..])));
        }

        #[test]
        fn integers_order(a: i64, b: i64, shift in 0_u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert_eq!(key(&Value::Int64(a)).cmp(&key(&Value::Int64(b))), a.cmp(&b));
        }

        #[test]
        fn what_decodes_encodes_the_same(bytes in prop::collection::vec(prop_oneof![0_u8..0x18, Just(0xff_u8), Just(b'a'), any::<u8>()], 0..24)) {
            if let Ok((value, rest)) = decode(&bytes) {
                let mut again = Vec::new();
                encode(value.as_ref(), &mut again);
                prop_assert_eq!(&again[..], &bytes[..bytes.len() - rest.len()]);
            }
        }

        #[test]
        fn successor_bounds_its_prefix(prefix in prop::collection::vec(prop_oneof![Just(0xff_u8), any::<u8>()], 0..6), other in prop::collection::vec(prop_oneof![Just(0xff_u8), any::<u8>()], 0..8)) {
            if let Some(successor) = prefix_successor(&prefix) {
                prop_assert!(prefix < successor);
                prop_assert!(!successor.starts_with(&prefix));
                let above = other >= prefix && other < successor;
                prop_assert_eq!(above, other.starts_with(&prefix));
            }
        }
    }
}
