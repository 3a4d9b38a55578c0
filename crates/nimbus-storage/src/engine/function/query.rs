//! A query of a function as JSON (convex.md 5.6), parsed whole. What exists is not known here.

use nimbus_core::{FieldPath, TableName, Value, key};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::expr::{Expr, MAX_NODES, invalid, parse_field, parse_operand};
use super::{FunctionError, FunctionResult};
use crate::provider::Direction;

/// Operators that one query may have (convex.md 5.6).
const MAX_OPERATORS: usize = 256;
/// Tables of the system that functions know. None of them holds anything yet.
const SYSTEM_TABLES: [&str; 2] = ["_storage", "_scheduled_functions"];

/// The names of the indexes that every table has.
pub(super) const BY_ID: &str = "by_id";
pub(super) const BY_CREATION_TIME: &str = "by_creation_time";

/// How a bound of an index range compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeOp {
    Eq,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// One bound of an index range.
#[derive(Clone, Debug)]
pub(super) struct RangeTerm {
    pub(super) op: RangeOp,
    pub(super) field: FieldPath,
    /// `None` is undefined.
    pub(super) value: Option<Value>,
}

/// What happens to each document, in the order given.
#[derive(Clone, Debug)]
pub(super) enum Operator {
    Filter(Expr),
    Limit(u64),
}

/// A query of a function.
#[derive(Clone, Debug)]
pub struct FunctionQuery {
    /// `None` for a table of the system, which is empty.
    pub(super) table: Option<TableName>,
    /// The table's name as it was given.
    pub(super) table_text: String,
    /// The index's name without the table.
    pub(super) index: String,
    pub(super) range: Vec<RangeTerm>,
    pub(super) direction: Direction,
    pub(super) operators: Vec<Operator>,
    /// Nodes of all expressions.
    pub(super) nodes: usize,
}

impl FunctionQuery {
    /// Parses the JSON of convex.md 5.6.
    ///
    /// # Errors
    /// [`FunctionError::User`] where it breaks a rule; `IndexNotFoundError` for a search.
    pub fn parse(json: &Json) -> FunctionResult<FunctionQuery> {
        let source = json
            .get("source")
            .ok_or_else(|| invalid("it has no `source`"))?;
        let operators = match json.get("operators") {
            None => &[][..],
            Some(list) => list
                .as_array()
                .ok_or_else(|| invalid("`operators` is a list"))?
                .as_slice(),
        };
        if operators.len() > MAX_OPERATORS {
            let found = operators.len();
            return Err(invalid(format!(
                "it has {found} operators, at most {MAX_OPERATORS} are allowed"
            )));
        }
        let mut room = MAX_NODES;
        let operators = operators
            .iter()
            .map(|operator| parse_operator(operator, &mut room))
            .collect::<Result<_, _>>()?;
        let (table, index) = match text(source, "type")? {
            "FullTableScan" => (text(source, "tableName")?, BY_CREATION_TIME),
            "IndexRange" => split_index(text(source, "indexName")?)?,
            "Search" => return Err(index_not_found(text(source, "indexName")?)),
            _ => return Err(invalid("`source.type` is not known")),
        };
        Ok(FunctionQuery {
            table: parse_table(table)?,
            table_text: table.to_owned(),
            index: index.to_owned(),
            range: parse_range(source)?,
            direction: parse_order(source)?,
            operators,
            nodes: MAX_NODES - room,
        })
    }

    /// Every document of a table, oldest first.
    pub(super) fn whole_table(table: &str) -> FunctionResult<FunctionQuery> {
        Ok(FunctionQuery {
            table: parse_table(table)?,
            table_text: table.to_owned(),
            index: BY_CREATION_TIME.to_owned(),
            range: Vec::new(),
            direction: Direction::Forward,
            operators: Vec::new(),
            nodes: 0,
        })
    }

    /// SHA-256 of everything that decides which documents come in which order: what a cursor is bound to.
    /// `fields` are those of a declared index, which another one of its name may not have.
    pub(super) fn fingerprint(&self, fields: &[FieldPath]) -> [u8; 32] {
        let mut bytes = (fields.len() as u64).to_be_bytes().to_vec();
        for field in fields {
            key::encode(Some(&Value::String(field.to_string())), &mut bytes);
        }
        for name in [&self.table_text, &self.index] {
            key::encode(Some(&Value::String(name.clone())), &mut bytes);
        }
        bytes.push(match self.direction {
            Direction::Forward => b'a',
            Direction::Backward => b'd',
        });
        bytes.extend_from_slice(&(self.range.len() as u64).to_be_bytes());
        for term in &self.range {
            bytes.push(term.op as u8);
            key::encode(Some(&Value::String(term.field.to_string())), &mut bytes);
            key::encode(term.value.as_ref(), &mut bytes);
        }
        for operator in &self.operators {
            match operator {
                Operator::Filter(expr) => {
                    bytes.push(b'?');
                    expr.fingerprint(&mut bytes);
                }
                Operator::Limit(limit) => {
                    bytes.push(b'#');
                    bytes.extend_from_slice(&limit.to_be_bytes());
                }
            }
        }
        Sha256::digest(&bytes).into()
    }

    /// `table.index`, as errors name it.
    pub(super) fn index_text(&self) -> String {
        format!("{}.{}", self.table_text, self.index)
    }
}

/// The index does not exist, or is not for this kind of query.
pub(super) fn index_not_found(name: &str) -> FunctionError {
    FunctionError::user("IndexNotFoundError", format!("Index {name} not found."))
}

fn text<'a>(json: &'a Json, name: &str) -> FunctionResult<&'a str> {
    json.get(name)
        .and_then(Json::as_str)
        .ok_or_else(|| invalid(format!("`{name}` is a string")))
}

fn split_index(name: &str) -> FunctionResult<(&str, &str)> {
    name.split_once('.')
        .ok_or_else(|| invalid("`indexName` is a table, a dot and an index"))
}

fn parse_table(name: &str) -> FunctionResult<Option<TableName>> {
    if SYSTEM_TABLES.contains(&name) {
        return Ok(None);
    }
    name.parse().map(Some).map_err(invalid)
}

fn parse_order(source: &Json) -> FunctionResult<Direction> {
    match source.get("order") {
        None | Some(Json::Null) => Ok(Direction::Forward),
        Some(Json::String(order)) if order == "asc" => Ok(Direction::Forward),
        Some(Json::String(order)) if order == "desc" => Ok(Direction::Backward),
        Some(_) => Err(invalid("`order` is \"asc\", \"desc\" or null")),
    }
}

fn parse_range(source: &Json) -> FunctionResult<Vec<RangeTerm>> {
    let Some(range) = source.get("range") else {
        return Ok(Vec::new());
    };
    let list = range
        .as_array()
        .ok_or_else(|| invalid("`range` is a list"))?;
    list.iter()
        .map(|term| {
            let op = match text(term, "type")? {
                "Eq" => RangeOp::Eq,
                "Gt" => RangeOp::Gt,
                "Gte" => RangeOp::Gte,
                "Lt" => RangeOp::Lt,
                "Lte" => RangeOp::Lte,
                _ => return Err(invalid("a bound's `type` is Eq, Gt, Gte, Lt or Lte")),
            };
            let field = term.get("fieldPath").unwrap_or(&Json::Null);
            let value = term
                .get("value")
                .ok_or_else(|| invalid("a bound has no `value`"))?;
            Ok(RangeTerm {
                op,
                field: parse_field(field)?,
                value: parse_operand(value)?,
            })
        })
        .collect()
}

fn parse_operator(json: &Json, room: &mut usize) -> FunctionResult<Operator> {
    let single = json.as_object().filter(|map| map.len() == 1);
    match single.and_then(|map| map.iter().next()) {
        Some((name, expr)) if name == "filter" => Expr::parse(expr, room).map(Operator::Filter),
        Some((name, limit)) if name == "limit" => whole(limit).map(Operator::Limit),
        _ => Err(invalid("an operator is `filter` or `limit`")),
    }
}

/// A count. JavaScript writes every number as a double.
fn whole(json: &Json) -> FunctionResult<u64> {
    let double = json.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0);
    double
        .map(|n| n as u64)
        .ok_or_else(|| invalid("`limit` is a whole number, not below 0"))
}
