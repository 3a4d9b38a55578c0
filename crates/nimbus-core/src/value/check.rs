//! The limits of convex.md 2.2, as checks on values that already exist. The rules for names of
//! tables and paths live in `name`; bodies too large to read at all are refused before this room.

use super::{Object, Value, object_nesting, object_size};
use crate::echo;
use crate::name::MAX_FIELD_NAME;

/// Largest arguments or result of a function and so the largest value taken in: 16 MiB, counted
/// by [`Value::size`].
pub const MAX_ARGS_SIZE: usize = 16 * 1024 * 1024;
/// Most memory that a value which goes in or out of a function may need, counted by [`Value::memory`]: a text of
/// 16 MiB could need ninety times that.
pub const MAX_VALUE_MEMORY: usize = 4 * MAX_ARGS_SIZE;
/// Largest document, system fields included: 1 MiB, counted by [`Value::size`].
pub const MAX_DOCUMENT_SIZE: usize = 1024 * 1024;
/// Deepest value, counted by [`Value::nesting`].
pub const MAX_NESTING: usize = 64;
/// Deepest document, the document itself being level 1.
pub const MAX_DOCUMENT_NESTING: usize = 16;
/// Most elements of an array.
pub const MAX_ARRAY_LEN: usize = 8192;
/// Most fields of an object; a document counts its system fields.
pub const MAX_OBJECT_FIELDS: usize = 1024;

/// Which limit or rule a value breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The value or document is too large.
    #[error("the value has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Size found, counted by [`Value::size`].
        size: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// Arrays and objects lie too deep within each other.
    #[error("the value is nested {nesting} levels deep, at most {limit} are allowed")]
    TooNested {
        /// Levels found, counted by [`Value::nesting`].
        nesting: usize,
        /// The most allowed.
        limit: usize,
    },
    /// An array is too long.
    #[error("an array has {length} elements, at most {limit} are allowed")]
    ArrayTooLong {
        /// Elements found.
        length: usize,
        /// The most allowed.
        limit: usize,
    },
    /// An object has too many fields.
    #[error("an object has {count} fields, at most {limit} are allowed")]
    TooManyFields {
        /// Fields found.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A field name breaks a rule at any depth.
    #[error("the field name {name:?} is not allowed: {reason}")]
    FieldName {
        /// The name, at most 80 characters of it.
        name: String,
        /// The rule, as a clause.
        reason: &'static str,
    },
    /// A top-level field name belongs to the system.
    #[error("the field name {name:?} is reserved: names that start with `_` belong to the system")]
    ReservedField {
        /// The name, at most 80 characters of it.
        name: String,
    },
}

/// Checks the limits that hold for every value: size (16 MiB), nesting, lengths and field names.
///
/// # Errors
/// The first rule broken: nesting, then size, then lengths and names from the outside in.
pub fn check_value(value: &Value) -> Result<(), ValueError> {
    check_bounds(value.nesting(), MAX_NESTING, || value.size(), MAX_ARGS_SIZE)?;
    check_parts(value)
}

/// Checks the fields a caller may insert or patch: the limits of a document, and no top-level
/// name that starts with `_`. A `$` first in a name is refused at every depth.
///
/// # Errors
/// The first rule broken, see [`ValueError`].
pub fn check_user_fields(fields: &Object) -> Result<(), ValueError> {
    check_document_parts(fields, |_| false)
}

/// Checks a whole document: 1 MiB with its system fields, 16 levels, and no system field but
/// `_id` and `_creationTime`. Whether these two hold an id and a time is the engine's to know.
///
/// # Errors
/// The first rule broken, see [`ValueError`].
pub fn check_document(document: &Object) -> Result<(), ValueError> {
    check_document_parts(document, |name| matches!(name, "_id" | "_creationTime"))
}

fn check_document_parts(
    fields: &Object,
    is_system: impl Fn(&str) -> bool,
) -> Result<(), ValueError> {
    let size = || object_size(fields);
    check_bounds(
        object_nesting(fields),
        MAX_DOCUMENT_NESTING,
        size,
        MAX_DOCUMENT_SIZE,
    )?;
    if let Some(name) = fields
        .keys()
        .find(|name| name.starts_with('_') && !is_system(name))
    {
        return Err(ValueError::ReservedField { name: echo(name) });
    }
    check_fields(fields)
}

fn check_bounds(
    nesting: usize,
    nesting_limit: usize,
    size: impl FnOnce() -> usize,
    size_limit: usize,
) -> Result<(), ValueError> {
    if nesting > nesting_limit {
        return Err(ValueError::TooNested {
            nesting,
            limit: nesting_limit,
        });
    }
    let size = size();
    if size > size_limit {
        return Err(ValueError::TooLarge {
            size,
            limit: size_limit,
        });
    }
    Ok(())
}

/// Lengths and names within a value whose depth is already known to be bounded.
fn check_parts(value: &Value) -> Result<(), ValueError> {
    match value {
        Value::Array(items) if items.len() > MAX_ARRAY_LEN => Err(ValueError::ArrayTooLong {
            length: items.len(),
            limit: MAX_ARRAY_LEN,
        }),
        Value::Array(items) => items.iter().try_for_each(check_parts),
        Value::Object(fields) => check_fields(fields),
        _ => Ok(()),
    }
}

fn check_fields(fields: &Object) -> Result<(), ValueError> {
    if fields.len() > MAX_OBJECT_FIELDS {
        return Err(ValueError::TooManyFields {
            count: fields.len(),
            limit: MAX_OBJECT_FIELDS,
        });
    }
    for (name, value) in fields {
        check_field_name(name)?;
        check_parts(value)?;
    }
    Ok(())
}

/// The empty name is legal (convex.md 2.2).
fn check_field_name(name: &str) -> Result<(), ValueError> {
    let reason = if name.starts_with('$') {
        "it starts with `$`"
    } else if !name.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        "it has a character outside printable ASCII"
    } else if name.len() > MAX_FIELD_NAME {
        "it is longer than 1,024 characters"
    } else {
        return Ok(());
    };
    Err(ValueError::FieldName {
        name: echo(name),
        reason,
    })
}
