//! Validators: the types that functions and schemas declare for values (convex.md 6.9), read from
//! the JSON that the `convex` package exports. The rooms below it read that JSON, check values and
//! render both for error messages. Validators know no tables but through [`TableNames`], no storage
//! and no schemas.

mod check;
mod parse;
mod render;

use std::collections::BTreeMap;

pub use check::{TableNames, ValidationFailure};
pub use parse::{MAX_VALIDATOR_DEPTH, MAX_VALIDATOR_NODES, ValidatorError};

use crate::Value;

/// What a value may be. Objects are strict: a field that is not named is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator(Kind);

/// One field of an object validator.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    validator: Validator,
    optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Null,
    Number,
    Bigint,
    Boolean,
    String,
    Bytes,
    Any,
    CommitTs,
    /// A boolean, number, bigint or string.
    Literal(Value),
    /// A string that is the id of a document of this table.
    Id(String),
    Array(Box<Validator>),
    Record {
        keys: Box<Validator>,
        values: Box<Validator>,
    },
    Object(BTreeMap<String, Field>),
    Union(Vec<Validator>),
}

impl Validator {
    /// The validator that accepts every value.
    #[must_use]
    pub fn any() -> Validator {
        Validator(Kind::Any)
    }

    /// Whether every value is accepted as it is.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == Kind::Any
    }

    /// Whether this is an object validator, which is what arguments ask for if not anything.
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self.0, Kind::Object(_))
    }

    /// Whether a document, which is an object, can match: an object, anything, a record, or a
    /// union that has only such members.
    #[must_use]
    pub fn is_for_documents(&self) -> bool {
        match &self.0 {
            Kind::Any | Kind::Object(_) | Kind::Record { .. } => true,
            Kind::Union(members) => members.iter().all(Validator::is_for_documents),
            _ => false,
        }
    }

    /// How many validators it consists of, itself included.
    fn nodes(&self) -> usize {
        1 + match &self.0 {
            Kind::Array(items) => items.nodes(),
            Kind::Record { keys, values } => keys.nodes() + values.nodes(),
            Kind::Object(fields) => fields.values().map(|f| f.validator.nodes()).sum(),
            Kind::Union(members) => members.iter().map(Validator::nodes).sum(),
            _ => 0,
        }
    }

    /// Names of fields that an object validator, or one in a union, has at the top.
    pub fn top_fields(&self) -> impl Iterator<Item = &str> {
        let mut names = Vec::new();
        self.collect_top_fields(&mut names);
        names.into_iter()
    }

    fn collect_top_fields<'a>(&'a self, names: &mut Vec<&'a str>) {
        match &self.0 {
            Kind::Object(fields) => names.extend(fields.keys().map(String::as_str)),
            Kind::Union(members) => members.iter().for_each(|m| m.collect_top_fields(names)),
            _ => {}
        }
    }

    /// Names of the tables that ids in here point to, each once for each place.
    pub fn referenced_tables(&self) -> impl Iterator<Item = &str> {
        let mut names = Vec::new();
        self.collect_tables(&mut names);
        names.into_iter()
    }

    fn collect_tables<'a>(&'a self, names: &mut Vec<&'a str>) {
        match &self.0 {
            Kind::Id(table) => names.push(table),
            Kind::Array(items) => items.collect_tables(names),
            Kind::Record { keys, values } => {
                keys.collect_tables(names);
                values.collect_tables(names);
            }
            Kind::Object(fields) => fields
                .values()
                .for_each(|f| f.validator.collect_tables(names)),
            Kind::Union(members) => members.iter().for_each(|m| m.collect_tables(names)),
            _ => {}
        }
    }

    /// Whether surely every value that `other` accepts is accepted by this one too. `false` may be
    /// wrong: the values then have to be looked at.
    #[must_use]
    pub fn is_superset_of(&self, other: &Validator) -> bool {
        match (&self.0, &other.0) {
            (Kind::Any, _) => true,
            (_, Kind::Union(members)) => members.iter().all(|m| self.is_superset_of(m)),
            (Kind::Union(members), _) => members.iter().any(|m| m.is_superset_of(other)),
            (Kind::String, Kind::Id(_) | Kind::Literal(Value::String(_)))
            | (Kind::Number, Kind::Literal(Value::Float64(_)))
            | (Kind::Bigint | Kind::CommitTs, Kind::Literal(Value::Int64(_)))
            | (Kind::Bigint, Kind::CommitTs)
            | (Kind::CommitTs, Kind::Bigint)
            | (Kind::Boolean, Kind::Literal(Value::Bool(_))) => true,
            (Kind::Array(mine), Kind::Array(theirs)) => mine.is_superset_of(theirs),
            (
                Kind::Record { keys, values },
                Kind::Record {
                    keys: their_keys,
                    values: their_values,
                },
            ) => keys.is_superset_of(their_keys) && values.is_superset_of(their_values),
            (Kind::Object(mine), Kind::Object(theirs)) => is_wider(mine, theirs),
            (mine, theirs) => mine == theirs,
        }
    }
}

/// [`Validator::is_superset_of`] for the fields of two objects.
fn is_wider(mine: &BTreeMap<String, Field>, theirs: &BTreeMap<String, Field>) -> bool {
    let covered = theirs.iter().all(|(name, theirs)| {
        mine.get(name).is_some_and(|mine| {
            (mine.optional || !theirs.optional) && mine.validator.is_superset_of(&theirs.validator)
        })
    });
    covered
        && mine
            .iter()
            .all(|(name, field)| field.optional || theirs.contains_key(name))
}

#[cfg(test)]
mod tests;
