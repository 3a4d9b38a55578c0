//! Reading values from JSON (convex.md 2.1), as a serde visitor: the `$` escapes, and precise
//! refusals of everything else. Depth and UTF-8 are the business of `json::from_slice`.

use std::cell::Cell;
use std::collections::btree_map::Entry;
use std::fmt;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{CANONICAL_NAN, MAX_DOCUMENT_SIZE, Object, Value, object_size};
use crate::{echo, json};

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        Reader(&Budget::new(usize::MAX)).deserialize(deserializer)
    }
}

/// Reads an object with the rules of [`Value`]: repeated keys and `$` keys are errors. For
/// `#[serde(deserialize_with = "nimbus_core::value::deserialize_object")]`.
///
/// # Errors
/// Those of the deserializer, and any value that is not a plain object.
pub fn deserialize_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
    deserializer.deserialize_map(ObjectVisitor)
}

/// Reads a value that is to be a document, or to be compared with a part of one: it stops at
/// [`MAX_DOCUMENT_SIZE`] instead of holding all of a larger one, which may need thirty times its
/// text. For `#[serde(deserialize_with = "nimbus_core::value::deserialize_within_document")]`.
///
/// # Errors
/// Those of [`Value`], and one at the place where the value is too large.
pub fn deserialize_within_document<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Value, D::Error> {
    Reader(&Budget::new(MAX_DOCUMENT_SIZE)).deserialize(deserializer)
}

/// What may still be taken in, counted as [`Value::size`] counts.
struct Budget {
    limit: usize,
    left: Cell<usize>,
}

impl Budget {
    fn new(limit: usize) -> Budget {
        Budget {
            limit,
            left: Cell::new(limit),
        }
    }

    fn take<E: Error>(&self, size: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(size).ok_or_else(|| {
            let limit = self.limit;
            E::custom(format_args!(
                "the value has more than {limit} bytes, which is the most that is allowed"
            ))
        })?;
        self.left.set(left);
        Ok(())
    }
}

/// Reads one value within a budget.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Reader<'_> {
    /// The same value, once its own size is paid for.
    fn sized<E: Error>(self, value: Value) -> Result<Value, E> {
        self.0.take(value.size())?;
        Ok(value)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.sized(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.sized(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.sized(integer(value as f64, value.unsigned_abs(), value)?)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.sized(integer(value as f64, value, value)?)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.sized(Value::Float64(if value.is_nan() {
            CANONICAL_NAN
        } else {
            value
        }))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        self.sized(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        self.0.take(Value::Array(Vec::new()).size())?;
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match map.next_key::<String>()? {
            Some(key) if key.starts_with('$') => {
                let value = escape(&key, &mut map)?;
                match map.next_key::<String>()? {
                    None => self.sized(value),
                    Some(_) => Err(unknown_escape(&key)),
                }
            }
            first => plain_object(first, map, self.0).map(Value::Object),
        }
    }
}

/// A JSON integer is a double; one that is not is refused even where the text came in another way
/// than `json::from_slice`.
fn integer<E: Error>(double: f64, magnitude: u64, value: impl ToString) -> Result<Value, E> {
    if magnitude > json::MAX_EXACT {
        let text = value.to_string();
        if !json::is_javascript_integer(&text, double) {
            return Err(E::custom(json::JsonError::InexactInteger { text }));
        }
    }
    Ok(Value::Float64(double))
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let first = map.next_key::<String>()?;
        plain_object(first, map, &Budget::new(usize::MAX))
    }
}

/// Reads an object whose first key has been taken already.
fn plain_object<'de, A: MapAccess<'de>>(
    first: Option<String>,
    mut map: A,
    budget: &Budget,
) -> Result<Object, A::Error> {
    let mut fields = Object::new();
    budget.take(object_size(&fields))?;
    let mut next = first;
    while let Some(key) = next {
        if key.starts_with('$') {
            return Err(unknown_escape(&key));
        }
        budget.take(key.len() + 1)?;
        let Entry::Vacant(slot) = fields.entry(key) else {
            return Err(Error::custom("an object has the same key twice"));
        };
        slot.insert(map.next_value_seed(Reader(budget))?);
        next = map.next_key()?;
    }
    Ok(fields)
}

/// The value that an object with the single key `key` stands for.
fn escape<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Value, A::Error> {
    match key {
        "$integer" => {
            let bytes = map.next_value_seed(Base64("$integer"))?;
            Ok(Value::Int64(i64::from_le_bytes(eight(&bytes)?)))
        }
        "$float" => {
            let bytes = map.next_value_seed(Base64("$float"))?;
            special_float(f64::from_le_bytes(eight(&bytes)?)).map(Value::Float64)
        }
        "$bytes" => map.next_value_seed(Base64("$bytes")).map(Value::Bytes),
        other => Err(unknown_escape(other)),
    }
}

fn unknown_escape<E: Error>(key: &str) -> E {
    match key {
        "$integer" | "$float" | "$bytes" => {
            E::custom(format_args!("`{key}` must be the only key of its object"))
        }
        "$undefined" => E::custom(
            "`$undefined` is not a value; it is allowed only in filters, index ranges and \
             top-level patch fields",
        ),
        "$commitTs" => E::custom("`$commitTs` is allowed only in values that a mutation writes"),
        "$set" => E::custom("a Set is not a value; use an array"),
        "$map" => E::custom("a Map is not a value; use an object or an array of pairs"),
        other => E::custom(format_args!(
            "the key {:?} starts with `$`, which is reserved",
            echo(other)
        )),
    }
}

/// Only what a JSON number cannot say may be escaped, so that each float has one form.
fn special_float<E: Error>(value: f64) -> Result<f64, E> {
    if value.is_nan() {
        return Ok(CANONICAL_NAN);
    }
    if value.is_infinite() || (value == 0.0 && value.is_sign_negative()) {
        return Ok(value);
    }
    Err(E::custom(
        "`$float` holds an ordinary number; write it as a JSON number",
    ))
}

fn eight<E: Error>(bytes: &[u8]) -> Result<[u8; 8], E> {
    bytes
        .try_into()
        .map_err(|_| E::invalid_length(bytes.len(), &"8 bytes"))
}

/// Reads a base64 string (standard alphabet, padded, no stray bits) for the escape named.
struct Base64(&'static str);

impl<'de> DeserializeSeed<'de> for Base64 {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Base64 {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a base64 string in `{}`", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        BASE64
            .decode(text.as_bytes())
            .map_err(|error| E::custom(format_args!("`{}` is not base64: {error}", self.0)))
    }
}
