//! The value type, its total order and its size (convex.md 2.1, 2.2, 2.5). The rooms below it read
//! and write JSON and check limits. Values know nothing of documents' storage or of schemas.

mod check;
mod de;
mod ser;

use std::cmp::Ordering;
use std::collections::BTreeMap;

pub use check::{
    MAX_ARGS_SIZE, MAX_ARRAY_LEN, MAX_DOCUMENT_NESTING, MAX_DOCUMENT_SIZE, MAX_NESTING,
    MAX_OBJECT_FIELDS, MAX_VALUE_MEMORY, ValueError, check_document, check_user_fields,
    check_value,
};
pub use de::{
    deserialize_object, deserialize_patch, deserialize_within_document, deserialize_within_memory,
};

use crate::name::FieldPath;

/// Fields by name, in the order of the names' UTF-8 bytes.
///
/// As a field of a type that derives `Deserialize`, use [`deserialize_object`]: the map's own
/// implementation would let a repeated key pass.
pub type Object = BTreeMap<String, Value>;

/// The one NaN that JSON can carry: `{"$float":"AAAAAAAA+H8="}`.
pub(crate) const CANONICAL_NAN: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

/// A value as Convex defines it (convex.md 2).
///
/// Equality and order are the total order of convex.md 2.5, which is also the order of the key
/// bytes (`key::encode`): null < int64 < float64 < false < true < string < bytes < array < object;
/// int64 and float64 do not interleave; floats by IEEE 754 totalOrder, so a NaN equals itself and
/// -0 is below 0; strings by UTF-8 bytes.
#[derive(Clone, Debug)]
pub enum Value {
    /// JSON `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A 64-bit integer: a bigint in JavaScript, `{"$integer": ..}` in JSON.
    Int64(i64),
    /// A double: a number in JavaScript and in JSON.
    Float64(f64),
    /// Unicode text.
    String(String),
    /// Bytes: an `ArrayBuffer` in JavaScript, `{"$bytes": ..}` in JSON.
    Bytes(Vec<u8>),
    /// A list.
    Array(Vec<Value>),
    /// Named fields.
    Object(Object),
}

impl Value {
    /// Canonical lossless JSON, see [`Value::write_json`].
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }

    /// Appends canonical lossless JSON (convex.md 2.1): keys sorted, no white space, a float with
    /// an integral value below 2^53 as an integer, any other finite one in its shortest form that
    /// reads back the same; -0, infinities and NaN (whatever its payload) as `$float`.
    pub fn write_json(&self, out: &mut String) {
        ser::write(self, out);
    }

    /// The name of the type as users read it in messages.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Int64(_) => "int64",
            Value::Float64(_) => "float64",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// Size in bytes as the limits count it (convex.md 2.2), not the size in memory or on disk:
    /// null and booleans 1, numbers 9, strings and bytes 2 + length, arrays 2 + the elements,
    /// objects 2 + for each field the length of its name + 1 + its value.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) => 1,
            Value::Int64(_) | Value::Float64(_) => 9,
            Value::String(text) => 2 + text.len(),
            Value::Bytes(bytes) => 2 + bytes.len(),
            Value::Array(items) => 2 + items.iter().map(Value::size).sum::<usize>(),
            Value::Object(fields) => object_size(fields),
        }
    }

    /// What the value needs in memory in bytes, within about a tenth: itself, what it points to, and what the
    /// allocator adds.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Value>()
            + match self {
                Value::Null | Value::Bool(_) | Value::Int64(_) | Value::Float64(_) => 0,
                Value::String(text) => allocation(text.len()),
                Value::Bytes(bytes) => allocation(bytes.len()),
                Value::Array(items) => 16 + items.iter().map(Value::memory).sum::<usize>(),
                Value::Object(fields) => {
                    let fields = fields.iter().enumerate();
                    let field = |(at, (name, value)): (usize, (&String, &Value))| {
                        field_memory(name, at) + value.memory()
                    };
                    fields.map(field).sum()
                }
            }
    }

    /// Levels of containers: 0 for a scalar; for an array or object 1 more than its deepest
    /// element, so `[]` is 1 and `[[1]]` is 2. A document counts as its object.
    #[must_use]
    pub fn nesting(&self) -> usize {
        match self {
            Value::Array(items) => 1 + items.iter().map(Value::nesting).max().unwrap_or(0),
            Value::Object(fields) => object_nesting(fields),
            _ => 0,
        }
    }

    /// The value at `path`, descending through objects; `None` where a field is missing or a
    /// value on the way is not an object.
    #[must_use]
    pub fn get(&self, path: &FieldPath) -> Option<&Value> {
        match self {
            Value::Object(fields) => object_get(fields, path),
            _ => None,
        }
    }

    /// Rank of the type in the total order; the two booleans are told apart by their value.
    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Int64(_) => 1,
            Value::Float64(_) => 2,
            Value::Bool(_) => 3,
            Value::String(_) => 4,
            Value::Bytes(_) => 5,
            Value::Array(_) => 6,
            Value::Object(_) => 7,
        }
    }
}

/// Fields that the first node of an object has room for, whether or not they are there.
const NODE_FIELDS: usize = 11;
/// What one more field needs in a node, the field's value and name apart.
const FIELD_SLOT: usize = size_of::<String>() + size_of::<Value>();

/// What an object needs for its field number `at`, counted from 0, without the field's value.
fn field_memory(name: &str, at: usize) -> usize {
    // The first node is made with the first field; later ones are about half full, and the place of the
    // value in them is counted with the value.
    allocation(name.len())
        + match at {
            0 => NODE_FIELDS * FIELD_SLOT + 32 - size_of::<Value>(),
            1..NODE_FIELDS => 0,
            _ => 2 * FIELD_SLOT - size_of::<Value>(),
        }
}

/// What the allocator gives for a text or bytes.
fn allocation(length: usize) -> usize {
    if length == 0 { 0 } else { length.max(16) + 16 }
}

/// [`Value::size`] of an object.
#[must_use]
pub fn object_size(object: &Object) -> usize {
    2 + object
        .iter()
        .map(|(name, value)| name.len() + 1 + value.size())
        .sum::<usize>()
}

/// [`Value::nesting`] of an object.
#[must_use]
pub fn object_nesting(object: &Object) -> usize {
    1 + object.values().map(Value::nesting).max().unwrap_or(0)
}

/// [`Value::get`] on the fields of an object.
#[must_use]
pub fn object_get<'a>(object: &'a Object, path: &FieldPath) -> Option<&'a Value> {
    let mut segments = path.segments();
    let mut found = object.get(segments.next()?)?;
    for segment in segments {
        match found {
            Value::Object(fields) => found = fields.get(segment)?,
            _ => return None,
        }
    }
    Some(found)
}

/// Canonical JSON of an object, as [`Value::write_json`] writes it.
pub fn write_object_json(object: &Object, out: &mut String) {
    ser::write_object(object, out);
}

impl Ord for Value {
    fn cmp(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int64(a), Value::Int64(b)) => a.cmp(b),
            (Value::Float64(a), Value::Float64(b)) => a.total_cmp(b),
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Array(a), Value::Array(b)) => a.cmp(b),
            (Value::Object(a), Value::Object(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

#[cfg(test)]
pub(crate) mod tests;
