//! Values and validators as error messages show them: values close to JavaScript (`1n`, `{a: 1.0}`),
//! validators as the source that declares them (`v.object({a: v.optional(v.string())})`).
//!
//! Text is cut at a bound, since a document may have a megabyte and an error is logged and sent.

use std::fmt::{self, Write};

use data_encoding::BASE64;

use super::parse::is_identifier;
use super::{Field, Kind, Validator};
use crate::Value;

/// Bytes of one rendered value or validator; what is cut off is shown as `…`.
pub(super) const RENDER_LIMIT: usize = 16 * 1024;

/// A writer that stops at a bound.
pub(super) struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.full {
            return Err(fmt::Error);
        }
        let room = RENDER_LIMIT.saturating_sub(self.text.len());
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let end = more.floor_char_boundary(room);
        self.text.push_str(&more[..end]);
        self.text.push('…');
        self.full = true;
        Err(fmt::Error)
    }
}

/// What `write` writes, as far as there is room.
pub(super) fn bounded(write: impl FnOnce(&mut Bounded) -> fmt::Result) -> String {
    let mut out = Bounded {
        text: String::new(),
        full: false,
    };
    // The one error is that the text is full, which it then shows itself.
    let _ = write(&mut out);
    out.text
}

pub(super) fn value(value: &Value, out: &mut impl Write) -> fmt::Result {
    match value {
        Value::Null => out.write_str("null"),
        Value::Bool(value) => write!(out, "{value}"),
        Value::Int64(number) => write!(out, "{number}n"),
        Value::Float64(number) => write!(out, "{number:?}"),
        Value::String(text) => string(text, out),
        Value::Bytes(bytes) => {
            // No more of it than can be shown is encoded.
            let shown = &bytes[..bytes.len().min(RENDER_LIMIT)];
            write!(out, "b\"{}\"", BASE64.encode(shown))
        }
        Value::Array(items) => {
            out.write_char('[')?;
            for (index, item) in items.iter().enumerate() {
                separate(index, out)?;
                self::value(item, out)?;
            }
            out.write_char(']')
        }
        Value::Object(fields) => object(fields.iter(), out),
    }
}

pub(super) fn object<'a>(
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
    out: &mut impl Write,
) -> fmt::Result {
    out.write_char('{')?;
    for (index, (name, field)) in fields.enumerate() {
        separate(index, out)?;
        key(name, out)?;
        out.write_str(": ")?;
        value(field, out)?;
    }
    out.write_char('}')
}

fn separate(index: usize, out: &mut impl Write) -> fmt::Result {
    if index > 0 {
        out.write_str(", ")
    } else {
        Ok(())
    }
}

fn key(name: &str, out: &mut impl Write) -> fmt::Result {
    if is_identifier(name) {
        out.write_str(name)
    } else {
        string(name, out)
    }
}

pub(super) fn string(text: &str, out: &mut impl Write) -> fmt::Result {
    write!(out, "{text:?}")
}

impl fmt::Display for Validator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        validator(self, f)
    }
}

pub(super) fn validator(of: &Validator, out: &mut impl Write) -> fmt::Result {
    match &of.0 {
        Kind::Null => out.write_str("v.null()"),
        Kind::Number => out.write_str("v.float64()"),
        Kind::Bigint => out.write_str("v.int64()"),
        Kind::Boolean => out.write_str("v.boolean()"),
        Kind::String => out.write_str("v.string()"),
        Kind::Bytes => out.write_str("v.bytes()"),
        Kind::Any => out.write_str("v.any()"),
        Kind::CommitTs => out.write_str("v.commitTs()"),
        Kind::Literal(literal) => {
            out.write_str("v.literal(")?;
            value(literal, out)?;
            out.write_char(')')
        }
        Kind::Id(table) => write!(out, "v.id(\"{table}\")"),
        Kind::Array(items) => {
            out.write_str("v.array(")?;
            validator(items, out)?;
            out.write_char(')')
        }
        Kind::Record { keys, values } => {
            out.write_str("v.record(")?;
            validator(keys, out)?;
            out.write_str(", ")?;
            validator(values, out)?;
            out.write_char(')')
        }
        Kind::Object(fields) => {
            out.write_str("v.object({")?;
            for (index, (name, declared)) in fields.iter().enumerate() {
                separate(index, out)?;
                write!(out, "{name}: ")?;
                field(declared, out)?;
            }
            out.write_str("})")
        }
        Kind::Union(members) => {
            out.write_str("v.union(")?;
            for (index, member) in members.iter().enumerate() {
                separate(index, out)?;
                validator(member, out)?;
            }
            out.write_char(')')
        }
    }
}

fn field(declared: &Field, out: &mut impl Write) -> fmt::Result {
    if !declared.optional {
        return validator(&declared.validator, out);
    }
    out.write_str("v.optional(")?;
    validator(&declared.validator, out)?;
    out.write_char(')')
}
