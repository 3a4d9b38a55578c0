//! Reading values from JSON (convex.md 2.1), as a serde visitor: the `$` escapes, and precise
//! refusals of everything else. Depth and UTF-8 are the business of `json::from_slice`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{CANONICAL_NAN, MAX_DOCUMENT_SIZE, MAX_VALUE_MEMORY, Object, Value, field_memory};
use crate::{echo, json};

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        Reader::new(&Budget::new(Unit::Size, usize::MAX)).deserialize(deserializer)
    }
}

/// Reads an object with the rules of [`Value`]: repeated keys and `$` keys are errors, and it may need
/// [`MAX_VALUE_MEMORY`]. For `#[serde(deserialize_with = "nimbus_core::value::deserialize_object")]`.
///
/// # Errors
/// Those of the deserializer, any value that is not a plain object, and one at the place where the
/// object needs too much memory.
pub fn deserialize_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
    let budget = Budget::new(Unit::Memory, MAX_VALUE_MEMORY);
    deserializer.deserialize_map(ObjectVisitor(&budget))
}

/// Reads a value that goes in or out of a function. It may need [`MAX_VALUE_MEMORY`], whatever its text is:
/// seven bytes of text, `{"":0},`, are an object of more than 600. For
/// `#[serde(deserialize_with = "nimbus_core::value::deserialize_within_memory")]`.
///
/// # Errors
/// Those of [`Value`], and one at the place where the value needs too much memory.
pub fn deserialize_within_memory<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Value, D::Error> {
    Reader::new(&Budget::new(Unit::Memory, MAX_VALUE_MEMORY)).deserialize(deserializer)
}

/// Reads the fields of a patch, within [`MAX_VALUE_MEMORY`]; `None` is `{"$undefined":null}`, which takes a
/// field away (convex.md 2.1). For
/// `#[serde(deserialize_with = "nimbus_core::value::deserialize_patch")]`.
///
/// # Errors
/// As [`deserialize_object`].
pub fn deserialize_patch<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Option<Value>>, D::Error> {
    let budget = Budget::new(Unit::Memory, MAX_VALUE_MEMORY);
    deserializer.deserialize_map(PatchVisitor(&budget))
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
    Reader::new(&Budget::new(Unit::Size, MAX_DOCUMENT_SIZE)).deserialize(deserializer)
}

/// What a budget counts.
#[derive(Clone, Copy)]
enum Unit {
    /// As [`Value::size`] does.
    Size,
    /// As [`Value::memory`] does.
    Memory,
}

/// What may still be taken in.
struct Budget {
    unit: Unit,
    limit: usize,
    left: Cell<usize>,
    /// Whether the value that was just read was `{"$undefined":null}`.
    undefined: Cell<bool>,
}

impl Budget {
    fn new(unit: Unit, limit: usize) -> Budget {
        Budget {
            unit,
            limit,
            left: Cell::new(limit),
            undefined: Cell::new(false),
        }
    }

    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes).ok_or_else(|| {
            let (limit, unit) = (self.limit, self.unit);
            match unit {
                Unit::Size => E::custom(format_args!(
                    "the value has more than {limit} bytes, which is the most that is allowed"
                )),
                Unit::Memory => E::custom(format_args!(
                    "the value needs more than {limit} bytes of memory, which is the most that is allowed"
                )),
            }
        })?;
        self.left.set(left);
        Ok(())
    }

    /// Pays for a value without parts, or for an array before its elements.
    fn take_value<E: Error>(&self, value: &Value) -> Result<(), E> {
        self.take(match self.unit {
            Unit::Size => value.size(),
            Unit::Memory => value.memory(),
        })
    }

    /// Pays for one more field of an object that has `count` of them, but not for its value.
    fn take_field<E: Error>(&self, name: &str, count: usize) -> Result<(), E> {
        self.take(match self.unit {
            Unit::Size => name.len() + 1,
            Unit::Memory => field_memory(name, count),
        })
    }
}

/// Reads one value within a budget.
#[derive(Clone, Copy)]
struct Reader<'a> {
    budget: &'a Budget,
    /// Whether it may be undefined, which the budget is then told.
    may_be_undefined: bool,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Reader<'a> {
    fn new(budget: &'a Budget) -> Reader<'a> {
        Reader {
            budget,
            may_be_undefined: false,
        }
    }

    /// The same value, once it is paid for.
    fn sized<E: Error>(self, value: Value) -> Result<Value, E> {
        self.budget.take_value(&value)?;
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
        self.budget.take_value(&Value::Array(Vec::new()))?;
        while let Some(item) = seq.next_element_seed(Reader::new(self.budget))? {
            items.push(item);
        }
        // Room for elements that did not come is not paid for.
        items.shrink_to_fit();
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match map.next_key::<String>()? {
            Some(key) if self.may_be_undefined && key == "$undefined" => {
                map.next_value::<()>()?;
                if map.next_key::<String>()?.is_some() {
                    return Err(unknown_escape("$undefined"));
                }
                self.budget.undefined.set(true);
                Ok(Value::Null)
            }
            Some(key) if key.starts_with('$') => {
                let value = escape(&key, &mut map)?;
                match map.next_key::<String>()? {
                    None => self.sized(value),
                    Some(_) => Err(unknown_escape(&key)),
                }
            }
            first => plain_object(first, map, self.budget).map(Value::Object),
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

struct ObjectVisitor<'a>(&'a Budget);

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let first = map.next_key::<String>()?;
        plain_object(first, map, self.0)
    }
}

struct PatchVisitor<'a>(&'a Budget);

impl<'de> Visitor<'de> for PatchVisitor<'_> {
    type Value = BTreeMap<String, Option<Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        let field = Reader {
            budget: self.0,
            may_be_undefined: true,
        };
        while let Some(key) = map.next_key::<String>()? {
            let key = new_key(key, &fields, self.0)?;
            let value = map.next_value_seed(field)?;
            let value = (!self.0.undefined.take()).then_some(value);
            fields.insert(key, value);
        }
        Ok(fields)
    }
}

/// A key that an object may have and has not yet, once it is paid for.
fn new_key<T, E: Error>(
    key: String,
    fields: &BTreeMap<String, T>,
    budget: &Budget,
) -> Result<String, E> {
    if key.starts_with('$') {
        return Err(unknown_escape(&key));
    }
    budget.take_field(&key, fields.len())?;
    if fields.contains_key(&key) {
        return Err(Error::custom("an object has the same key twice"));
    }
    Ok(key)
}

/// Reads an object whose first key has been taken already.
fn plain_object<'de, A: MapAccess<'de>>(
    first: Option<String>,
    mut map: A,
    budget: &Budget,
) -> Result<Object, A::Error> {
    let mut fields = Object::new();
    budget.take_value(&Value::Object(Object::new()))?;
    let mut next = first;
    while let Some(key) = next {
        let key = new_key(key, &fields, budget)?;
        let value = map.next_value_seed(Reader::new(budget))?;
        fields.insert(key, value);
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
