//! Reading validators from the JSON of the `convex` package and writing it (convex.md 6.9). Every
//! key that is not known is refused, so that a rule is never dropped in silence.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value as Json, json};

use super::{Field, Kind, Validator};
use crate::json::{self, JsonError};
use crate::name::MAX_FIELD_NAME;
use crate::{Value, echo};

/// Most levels of validators within each other, a union counting as one.
pub const MAX_VALIDATOR_DEPTH: usize = 64;

/// Most validators that one consists of, itself included: a check may try each of them for each part
/// of a value.
pub const MAX_VALIDATOR_NODES: usize = 10_000;

/// Why a text is not a validator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValidatorError {
    /// The text is not JSON.
    #[error("the validator is not valid JSON: {0}")]
    Json(#[from] JsonError),
    /// A part of it breaks a rule.
    #[error("the validator{} is not valid: {reason}", at(path))]
    Invalid {
        /// Where, as a path from the top such as `.a[]`; empty at the top. At most 80 characters.
        path: String,
        /// The rule, with what was found.
        reason: String,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(" at {path}")
    }
}

impl Validator {
    /// Reads a validator.
    ///
    /// # Errors
    /// [`ValidatorError::Invalid`] with the place and the rule that is broken.
    pub fn parse(json: &Json) -> Result<Validator, ValidatorError> {
        let parsed = parse(json, &Place::Top, 1)?;
        let nodes = parsed.nodes();
        if nodes > MAX_VALIDATOR_NODES {
            return Err(Place::Top.error(format!(
                "it consists of {nodes} validators, counted with those inside them, at most {MAX_VALIDATOR_NODES} are allowed"
            )));
        }
        Ok(parsed)
    }

    /// Reads a validator from JSON text.
    ///
    /// # Errors
    /// As [`Validator::parse`]; [`ValidatorError::Json`] for a text that is not strict JSON.
    pub fn from_json_text(text: &str) -> Result<Validator, ValidatorError> {
        Validator::parse(&json::from_slice(text.as_bytes())?)
    }

    /// The JSON that [`Validator::parse`] reads as the same validator.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let simple = |name: &str| json!({ "type": name });
        match &self.0 {
            Kind::Null => simple("null"),
            Kind::Number => simple("number"),
            Kind::Bigint => simple("bigint"),
            Kind::Boolean => simple("boolean"),
            Kind::String => simple("string"),
            Kind::Bytes => simple("bytes"),
            Kind::Any => simple("any"),
            Kind::CommitTs => simple("commitTs"),
            Kind::Literal(value) => json!({ "type": "literal", "value": literal_json(value) }),
            Kind::Id(table) => json!({ "type": "id", "tableName": table }),
            Kind::Array(items) => json!({ "type": "array", "value": items.to_json() }),
            Kind::Record { keys, values } => json!({
                "type": "record",
                "keys": keys.to_json(),
                "values": { "fieldType": values.to_json(), "optional": false },
            }),
            Kind::Object(fields) => {
                let fields: Map<String, Json> = fields
                    .iter()
                    .map(|(name, field)| {
                        let json = json!({ "fieldType": field.validator.to_json(), "optional": field.optional });
                        (name.clone(), json)
                    })
                    .collect();
                json!({ "type": "object", "value": fields })
            }
            Kind::Union(members) => {
                let members: Vec<Json> = members.iter().map(Validator::to_json).collect();
                json!({ "type": "union", "value": members })
            }
        }
    }
}

impl Serialize for Validator {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Validator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Validator, D::Error> {
        let json = Json::deserialize(deserializer)?;
        Validator::parse(&json).map_err(de::Error::custom)
    }
}

fn literal_json(value: &Value) -> Json {
    // A literal is a scalar, which always has a JSON form.
    serde_json::to_value(value).unwrap_or(Json::Null)
}

/// Where in the validator the reader is; rendered only for an error.
enum Place<'a> {
    Top,
    Field(&'a Place<'a>, &'a str),
    Items(&'a Place<'a>),
    Keys(&'a Place<'a>),
    Member(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn render(&self) -> String {
        match self {
            Place::Top => String::new(),
            Place::Field(outer, name) => format!("{}.{name}", outer.render()),
            Place::Items(outer) => format!("{}[]", outer.render()),
            Place::Keys(outer) => format!("{}<keys>", outer.render()),
            Place::Member(outer, index) => format!("{}<{index}>", outer.render()),
        }
    }

    fn error(&self, reason: impl Into<String>) -> ValidatorError {
        ValidatorError::Invalid {
            path: echo(&self.render()),
            reason: reason.into(),
        }
    }
}

type Parsed = Result<Validator, ValidatorError>;

fn parse(json: &Json, place: &Place<'_>, depth: usize) -> Parsed {
    if depth > MAX_VALIDATOR_DEPTH {
        return Err(place.error(format!(
            "validators lie more than {MAX_VALIDATOR_DEPTH} levels deep within each other"
        )));
    }
    let Json::Object(map) = json else {
        return Err(place.error("it is not an object with a `type`"));
    };
    let Some(Json::String(kind)) = map.get("type") else {
        return Err(place.error("it has no `type` that is a string"));
    };
    let simple = |kind: Kind| {
        only(map, &["type"], place)?;
        Ok(Validator(kind))
    };
    match kind.as_str() {
        "null" => simple(Kind::Null),
        "number" => simple(Kind::Number),
        "bigint" => simple(Kind::Bigint),
        "boolean" => simple(Kind::Boolean),
        "string" => simple(Kind::String),
        "bytes" => simple(Kind::Bytes),
        "any" => simple(Kind::Any),
        "commitTs" => simple(Kind::CommitTs),
        "literal" => literal(map, place),
        "id" => id(map, place),
        "array" => {
            only(map, &["type", "value"], place)?;
            let items = parse(
                member(map, "value", place)?,
                &Place::Items(place),
                depth + 1,
            )?;
            Ok(Validator(Kind::Array(Box::new(items))))
        }
        "record" => record(map, place, depth),
        "object" => object(map, place, depth),
        "union" => union(map, place, depth),
        other => Err(place.error(format!("type {:?} is not known", echo(other)))),
    }
}

fn only(map: &Map<String, Json>, known: &[&str], place: &Place<'_>) -> Result<(), ValidatorError> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(place.error(format!("key {:?} is not known there", echo(key)))),
        None => Ok(()),
    }
}

fn member<'a>(
    map: &'a Map<String, Json>,
    name: &str,
    place: &Place<'_>,
) -> Result<&'a Json, ValidatorError> {
    map.get(name)
        .ok_or_else(|| place.error(format!("`{name}` is missing")))
}

fn literal(map: &Map<String, Json>, place: &Place<'_>) -> Parsed {
    only(map, &["type", "value"], place)?;
    let value: Value = serde_json::from_value(member(map, "value", place)?.clone())
        .map_err(|e| place.error(format!("the literal is not a value: {e}")))?;
    match value {
        Value::Bool(_) | Value::Int64(_) | Value::Float64(_) | Value::String(_) => {
            Ok(Validator(Kind::Literal(value)))
        }
        other => Err(place.error(format!(
            "a literal is a boolean, number, bigint or string, not {}",
            other.type_name()
        ))),
    }
}

fn id(map: &Map<String, Json>, place: &Place<'_>) -> Parsed {
    only(map, &["type", "tableName"], place)?;
    let Json::String(table) = member(map, "tableName", place)? else {
        return Err(place.error("`tableName` is not a string"));
    };
    // System tables have ids as well, so a leading `_` is allowed here.
    if !is_identifier(table) || table.len() > crate::name::MAX_IDENTIFIER {
        return Err(place.error(format!("{:?} is not a table name", echo(table))));
    }
    Ok(Validator(Kind::Id(table.clone())))
}

fn record(map: &Map<String, Json>, place: &Place<'_>, depth: usize) -> Parsed {
    only(map, &["type", "keys", "values"], place)?;
    let keys = parse(member(map, "keys", place)?, &Place::Keys(place), depth + 1)?;
    if !is_for_keys(&keys) {
        return Err(Place::Keys(place).error("the keys of a record are strings or ids"));
    }
    let values = field(member(map, "values", place)?, &Place::Items(place), depth)?;
    if values.optional {
        return Err(Place::Items(place).error("the values of a record cannot be optional"));
    }
    Ok(Validator(Kind::Record {
        keys: Box::new(keys),
        values: Box::new(values.validator),
    }))
}

fn is_for_keys(keys: &Validator) -> bool {
    match &keys.0 {
        Kind::String | Kind::Id(_) | Kind::Literal(Value::String(_)) => true,
        Kind::Union(members) => members.iter().all(is_for_keys),
        _ => false,
    }
}

fn object(map: &Map<String, Json>, place: &Place<'_>, depth: usize) -> Parsed {
    only(map, &["type", "value"], place)?;
    let Json::Object(declared) = member(map, "value", place)? else {
        return Err(place.error("`value` is not an object of fields"));
    };
    if declared.len() > crate::value::MAX_OBJECT_FIELDS {
        return Err(place.error(format!(
            "{} fields are more than an object may have ({})",
            declared.len(),
            crate::value::MAX_OBJECT_FIELDS
        )));
    }
    let mut fields = BTreeMap::new();
    for (name, json) in declared {
        if !is_identifier(name) || name.len() > MAX_FIELD_NAME {
            return Err(place.error(format!(
                "field name {:?} is not an identifier (ASCII letters, digits and `_`, not a digit first)",
                echo(name)
            )));
        }
        fields.insert(
            name.clone(),
            field(json, &Place::Field(place, name), depth)?,
        );
    }
    Ok(Validator(Kind::Object(fields)))
}

fn field(json: &Json, place: &Place<'_>, depth: usize) -> Result<Field, ValidatorError> {
    let Json::Object(map) = json else {
        return Err(place.error("it is not an object with `fieldType` and `optional`"));
    };
    only(map, &["fieldType", "optional"], place)?;
    let Json::Bool(optional) = member(map, "optional", place)? else {
        return Err(place.error("`optional` is not a boolean"));
    };
    let validator = parse(member(map, "fieldType", place)?, place, depth + 1)?;
    Ok(Field {
        validator,
        optional: *optional,
    })
}

fn union(map: &Map<String, Json>, place: &Place<'_>, depth: usize) -> Parsed {
    only(map, &["type", "value"], place)?;
    let Json::Array(declared) = member(map, "value", place)? else {
        return Err(place.error("`value` is not an array of validators"));
    };
    let mut members = Vec::with_capacity(declared.len());
    for (index, json) in declared.iter().enumerate() {
        members.push(parse(json, &Place::Member(place, index), depth + 1)?);
    }
    Ok(Validator(Kind::Union(members)))
}

/// Whether JavaScript would print the name without quotes.
pub(super) fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
