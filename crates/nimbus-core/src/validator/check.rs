//! Checking values against validators, with the failure texts of convex.md 1.5. The first failure
//! ends the check; it is put into words only when it is the answer, since a union tries many.

use std::collections::BTreeMap;

use super::parse::is_identifier;
use super::render::{self, bounded};
use super::{Field, Kind, Validator};
use crate::{DocumentId, Object, TableNumber, Value};

/// Fields that every document has and no validator names.
const SYSTEM_FIELDS: [&str; 2] = ["_id", "_creationTime"];

/// Which table has which number, as `v.id` needs to know.
pub trait TableNames {
    /// The number of a table, if there is such a table.
    fn number(&self, name: &str) -> Option<TableNumber>;
    /// The name of the table of a number, if there is one.
    fn name(&self, number: TableNumber) -> Option<String>;
}

/// Why a value does not match. `Display` is the text of convex.md 1.5: what is wrong, then where,
/// with what value, and which validator said so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n{path}\n{label}: {found}\nValidator: {validator}", path = path_line(path), label = if *is_object { "Object" } else { "Value" })]
pub struct ValidationFailure {
    /// What is wrong.
    message: String,
    /// Where, such as `.a.b[0]`; empty at the top.
    path: String,
    /// Whether the failure is about an object's set of fields.
    is_object: bool,
    /// The value there.
    found: String,
    /// The validator there.
    validator: String,
}

impl ValidationFailure {
    /// What is wrong, without the lines that say where.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where, such as `.a.b[0]`; empty at the top.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// At the top the line is left empty, as Convex leaves it.
fn path_line(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("Path: {path}")
    }
}

/// What a failure is about.
#[derive(Clone, Copy)]
enum Found<'a> {
    Value(&'a Value),
    Object(&'a Object),
    /// An object whose system fields do not count.
    Document(&'a Object),
    /// A key of a record.
    Key(&'a str),
}

enum Problem<'a> {
    Missing(&'a str),
    Extra(&'a str),
    Mismatch,
    Literal,
    /// The table of the id, or `None` for a system table.
    OtherTable(Option<String>),
}

enum Segment<'a> {
    Field(&'a str),
    Index(usize),
}

/// A failure that is not yet put into words.
struct Mismatch<'a> {
    problem: Problem<'a>,
    found: Found<'a>,
    validator: &'a Validator,
    /// From the inside out.
    path: Vec<Segment<'a>>,
}

impl<'a> Mismatch<'a> {
    fn new(problem: Problem<'a>, found: Found<'a>, validator: &'a Validator) -> Mismatch<'a> {
        Mismatch {
            problem,
            found,
            validator,
            path: Vec::new(),
        }
    }

    fn within(mut self, segment: Segment<'a>) -> Mismatch<'a> {
        self.path.push(segment);
        self
    }

    fn into_failure(self) -> ValidationFailure {
        let mut path = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Field(name) if is_identifier(name) => path.push_str(&format!(".{name}")),
                Segment::Field(name) => path.push_str(&format!("[{name:?}]")),
                Segment::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        let found = bounded(|out| match self.found {
            Found::Value(value) => render::value(value, out),
            Found::Object(object) => render::object(object.iter(), out),
            Found::Document(object) => render::object(object.iter().filter(is_own), out),
            Found::Key(key) => render::string(key, out),
        });
        let validator = bounded(|out| render::validator(self.validator, out));
        let message = match self.problem {
            Problem::Missing(field) => format!(
                "Object is missing the required field `{field}`. Consider wrapping the field validator in `v.optional(...)` if this is expected."
            ),
            Problem::Extra(field) => {
                format!("Object contains extra field `{field}` that is not in the validator.")
            }
            Problem::Mismatch => "Value does not match validator.".to_owned(),
            Problem::Literal => {
                format!("`{found}` does not match literal validator `{validator}`.")
            }
            Problem::OtherTable(Some(ref table)) => format!(
                "Found ID {found} from table `{table}`, which does not match the table name in validator `{validator}`."
            ),
            Problem::OtherTable(None) => format!(
                "Found ID {found} from a system table, which does not match the table name in validator `{validator}`."
            ),
        };
        ValidationFailure {
            message,
            path,
            is_object: matches!(self.problem, Problem::Missing(_) | Problem::Extra(_)),
            found,
            validator,
        }
    }
}

type Checked<'a> = Result<(), Mismatch<'a>>;

impl Validator {
    /// Checks a value.
    ///
    /// # Errors
    /// The first way in which it does not match.
    pub fn check(&self, value: &Value, tables: &dyn TableNames) -> Result<(), ValidationFailure> {
        self.against(Found::Value(value), tables)
            .map_err(Mismatch::into_failure)
    }

    /// Checks an object, such as a function's arguments.
    ///
    /// # Errors
    /// As [`Validator::check`].
    pub fn check_object(
        &self,
        object: &Object,
        tables: &dyn TableNames,
    ) -> Result<(), ValidationFailure> {
        self.against(Found::Object(object), tables)
            .map_err(Mismatch::into_failure)
    }

    /// Checks a document: `_id` and `_creationTime` are allowed and not looked at.
    ///
    /// # Errors
    /// As [`Validator::check`].
    pub fn check_document(
        &self,
        document: &Object,
        tables: &dyn TableNames,
    ) -> Result<(), ValidationFailure> {
        self.against(Found::Document(document), tables)
            .map_err(Mismatch::into_failure)
    }

    fn against<'a>(&'a self, found: Found<'a>, tables: &dyn TableNames) -> Checked<'a> {
        let matches = match (&self.0, found) {
            (Kind::Any, _) => true,
            (Kind::Null, Found::Value(Value::Null))
            | (Kind::Number, Found::Value(Value::Float64(_)))
            | (Kind::Bigint | Kind::CommitTs, Found::Value(Value::Int64(_)))
            | (Kind::Boolean, Found::Value(Value::Bool(_)))
            | (Kind::String, Found::Value(Value::String(_)) | Found::Key(_))
            | (Kind::Bytes, Found::Value(Value::Bytes(_))) => true,
            (Kind::Literal(literal), found) => return self.literal(literal, found),
            (Kind::Id(table), Found::Value(Value::String(text))) => {
                return self.id(table, text, found, tables);
            }
            (Kind::Id(table), Found::Key(text)) => return self.id(table, text, found, tables),
            (Kind::Array(items), Found::Value(Value::Array(values))) => {
                return elements(items, values, tables);
            }
            (
                Kind::Record { keys, values },
                Found::Value(Value::Object(object))
                | Found::Object(object)
                | Found::Document(object),
            ) => return record((keys, values), (object, found), tables),
            (
                Kind::Object(fields),
                Found::Value(Value::Object(object))
                | Found::Object(object)
                | Found::Document(object),
            ) => return self.fields(fields, (object, found), tables),
            (Kind::Union(members), _) => members.iter().any(|m| m.against(found, tables).is_ok()),
            _ => false,
        };
        if matches {
            Ok(())
        } else {
            Err(Mismatch::new(Problem::Mismatch, found, self))
        }
    }

    fn literal<'a>(&'a self, literal: &Value, found: Found<'a>) -> Checked<'a> {
        let equal = match (literal, found) {
            // JavaScript's literals know one zero.
            (Value::Float64(a), Found::Value(Value::Float64(b))) => a == b,
            (literal, Found::Value(value)) => literal == value,
            (Value::String(text), Found::Key(key)) => text == key,
            _ => false,
        };
        if equal {
            Ok(())
        } else {
            Err(Mismatch::new(Problem::Literal, found, self))
        }
    }

    fn id<'a>(
        &'a self,
        table: &str,
        text: &str,
        found: Found<'a>,
        tables: &dyn TableNames,
    ) -> Checked<'a> {
        let Ok(id) = text.parse::<DocumentId>() else {
            return Err(Mismatch::new(Problem::Mismatch, found, self));
        };
        if tables.number(table) == Some(id.table) {
            return Ok(());
        }
        let problem = if id.table < TableNumber::FIRST_USER {
            Problem::OtherTable(None)
        } else {
            match tables.name(id.table) {
                Some(name) => Problem::OtherTable(Some(name)),
                None => Problem::Mismatch,
            }
        };
        Err(Mismatch::new(problem, found, self))
    }

    fn fields<'a>(
        &'a self,
        fields: &'a BTreeMap<String, Field>,
        (object, found): (&'a Object, Found<'a>),
        tables: &dyn TableNames,
    ) -> Checked<'a> {
        let found = match found {
            Found::Document(_) => found,
            _ => Found::Object(object),
        };
        for (name, field) in fields {
            match object.get(name) {
                Some(value) => field
                    .validator
                    .against(Found::Value(value), tables)
                    .map_err(|m| m.within(Segment::Field(name)))?,
                None if field.optional => {}
                None => {
                    return Err(Mismatch::new(Problem::Missing(name), found, self));
                }
            }
        }
        let extra = object
            .iter()
            .filter(|field| counts(found, field))
            .find(|(name, _)| !fields.contains_key(*name));
        match extra {
            Some((extra, _)) => Err(Mismatch::new(Problem::Extra(extra), found, self)),
            None => Ok(()),
        }
    }
}

/// Whether a field of a document is its user's.
fn is_own((name, _): &(&String, &Value)) -> bool {
    !SYSTEM_FIELDS.contains(&name.as_str())
}

/// Whether a field of what was found is looked at.
fn counts(found: Found<'_>, field: &(&String, &Value)) -> bool {
    !matches!(found, Found::Document(_)) || is_own(field)
}

fn elements<'a>(items: &'a Validator, values: &'a [Value], tables: &dyn TableNames) -> Checked<'a> {
    for (index, value) in values.iter().enumerate() {
        items
            .against(Found::Value(value), tables)
            .map_err(|m| m.within(Segment::Index(index)))?;
    }
    Ok(())
}

fn record<'a>(
    (keys, values): (&'a Validator, &'a Validator),
    (object, found): (&'a Object, Found<'a>),
    tables: &dyn TableNames,
) -> Checked<'a> {
    for (name, value) in object.iter().filter(|field| counts(found, field)) {
        keys.against(Found::Key(name), tables)?;
        values
            .against(Found::Value(value), tables)
            .map_err(|m| m.within(Segment::Field(name)))?;
    }
    Ok(())
}
