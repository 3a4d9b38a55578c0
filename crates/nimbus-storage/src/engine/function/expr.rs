//! Filter expressions of a query (convex.md 5.6): parsing and evaluating.
//!
//! Comparisons use the total order, in which a missing field is less than anything else. Where the
//! documents come from is not known here.

use std::borrow::Cow;

use nimbus_core::{FieldPath, Object, Value, key, value};
use serde::Deserialize;
use serde_json::Value as Json;

use super::{FunctionError, FunctionResult};

/// Deepest expression.
const MAX_DEPTH: usize = 64;
/// Expressions that the filters of one query may have, one inside another or side by side: each is
/// evaluated for each document.
pub(super) const MAX_NODES: usize = 1_024;
/// Characters of a value that an error shows.
const SHOWN: usize = 80;

/// Two operands in, a boolean out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}

/// Two operands of one numeric type in, the same type out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
}

/// An expression over the fields of a document.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Field(FieldPath),
    /// `None` is undefined.
    Literal(Option<Value>),
    Compare(Comparison, Box<(Expr, Expr)>),
    Calculate(Arithmetic, Box<(Expr, Expr)>),
    Neg(Box<Expr>),
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

/// A query that does not parse.
pub(super) fn invalid(why: impl std::fmt::Display) -> FunctionError {
    FunctionError::user("InvalidQuery", format!("The query is not valid: {why}"))
}

/// A value, or `None` for `{"$undefined": null}`.
pub(super) fn parse_operand(json: &Json) -> FunctionResult<Option<Value>> {
    if let Some(map) = json.as_object()
        && map.len() == 1
        && map.get("$undefined").is_some_and(Json::is_null)
    {
        return Ok(None);
    }
    let parsed = Value::deserialize(json).map_err(invalid)?;
    value::check_value(&parsed).map_err(invalid)?;
    Ok(Some(parsed))
}

pub(super) fn parse_field(json: &Json) -> FunctionResult<FieldPath> {
    let text = json
        .as_str()
        .ok_or_else(|| invalid("a field path is a string"))?;
    text.parse().map_err(invalid)
}

impl Expr {
    /// Takes its nodes off `room`, of which a query has [`MAX_NODES`].
    pub(super) fn parse(json: &Json, room: &mut usize) -> FunctionResult<Expr> {
        Expr::parse_at(json, room, 0)
    }

    fn parse_at(json: &Json, room: &mut usize, depth: usize) -> FunctionResult<Expr> {
        *room = room.checked_sub(1).ok_or_else(|| {
            invalid(format!(
                "its filters have more than {MAX_NODES} expressions, counted with those inside them"
            ))
        })?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!(
                "expressions nest more than {MAX_DEPTH} levels deep"
            )));
        }
        let single = json.as_object().filter(|map| map.len() == 1);
        let Some((name, argument)) = single.and_then(|map| map.iter().next()) else {
            return Err(invalid("an expression is an object with one key"));
        };
        let mut pair = || parse_pair(name, argument, room, depth);
        match name.as_str() {
            "$field" => Ok(Expr::Field(parse_field(argument)?)),
            "$literal" => Ok(Expr::Literal(parse_operand(argument)?)),
            "$eq" => Ok(Expr::Compare(Comparison::Eq, pair()?)),
            "$neq" => Ok(Expr::Compare(Comparison::Neq, pair()?)),
            "$lt" => Ok(Expr::Compare(Comparison::Lt, pair()?)),
            "$lte" => Ok(Expr::Compare(Comparison::Lte, pair()?)),
            "$gt" => Ok(Expr::Compare(Comparison::Gt, pair()?)),
            "$gte" => Ok(Expr::Compare(Comparison::Gte, pair()?)),
            "$add" => Ok(Expr::Calculate(Arithmetic::Add, pair()?)),
            "$sub" => Ok(Expr::Calculate(Arithmetic::Sub, pair()?)),
            "$mul" => Ok(Expr::Calculate(Arithmetic::Mul, pair()?)),
            "$div" => Ok(Expr::Calculate(Arithmetic::Div, pair()?)),
            "$mod" => Ok(Expr::Calculate(Arithmetic::Mod, pair()?)),
            "$neg" => Ok(Expr::Neg(Box::new(Expr::parse_at(
                argument,
                room,
                depth + 1,
            )?))),
            "$not" => Ok(Expr::Not(Box::new(Expr::parse_at(
                argument,
                room,
                depth + 1,
            )?))),
            "$and" => Ok(Expr::And(parse_list(name, argument, room, depth)?)),
            "$or" => Ok(Expr::Or(parse_list(name, argument, room, depth)?)),
            other => Err(invalid(format!("unknown operator {:?}", shorten(other)))),
        }
    }

    /// Whether the document passes; the value must be a boolean.
    pub(super) fn holds(&self, document: &Object) -> FunctionResult<bool> {
        match self.evaluate(document)?.as_deref() {
            Some(Value::Bool(value)) => Ok(*value),
            other => Err(eval_error(format!(
                "Cannot use {} as a Boolean",
                show(other)
            ))),
        }
    }

    fn evaluate<'a>(&'a self, document: &'a Object) -> FunctionResult<Option<Cow<'a, Value>>> {
        let bool = |value| Ok(Some(Cow::Owned(Value::Bool(value))));
        match self {
            Expr::Field(path) => Ok(value::object_get(document, path).map(Cow::Borrowed)),
            Expr::Literal(value) => Ok(value.as_ref().map(Cow::Borrowed)),
            Expr::Compare(op, pair) => {
                let (a, b) = (pair.0.evaluate(document)?, pair.1.evaluate(document)?);
                bool(match op {
                    Comparison::Eq => a == b,
                    Comparison::Neq => a != b,
                    Comparison::Lt => a < b,
                    Comparison::Lte => a <= b,
                    Comparison::Gt => a > b,
                    Comparison::Gte => a >= b,
                })
            }
            Expr::Calculate(op, pair) => {
                let (a, b) = (pair.0.evaluate(document)?, pair.1.evaluate(document)?);
                let result = calculate(*op, a.as_deref(), b.as_deref())?;
                Ok(Some(Cow::Owned(result)))
            }
            Expr::Neg(inner) => {
                let result = negate(inner.evaluate(document)?.as_deref())?;
                Ok(Some(Cow::Owned(result)))
            }
            Expr::Not(inner) => bool(!inner.holds(document)?),
            Expr::And(list) => {
                for inner in list {
                    if !inner.holds(document)? {
                        return bool(false);
                    }
                }
                bool(true)
            }
            Expr::Or(list) => {
                for inner in list {
                    if inner.holds(document)? {
                        return bool(true);
                    }
                }
                bool(false)
            }
        }
    }

    /// Appends bytes that differ for different expressions.
    pub(super) fn fingerprint(&self, out: &mut Vec<u8>) {
        match self {
            Expr::Field(path) => {
                out.push(b'f');
                key::encode(Some(&Value::String(path.to_string())), out);
            }
            Expr::Literal(value) => {
                out.push(b'l');
                key::encode(value.as_ref(), out);
            }
            Expr::Compare(op, pair) => pair_fingerprint(*op as u8 + b'0', pair, out),
            Expr::Calculate(op, pair) => pair_fingerprint(*op as u8 + b'A', pair, out),
            Expr::Neg(inner) => {
                out.push(b'-');
                inner.fingerprint(out);
            }
            Expr::Not(inner) => {
                out.push(b'!');
                inner.fingerprint(out);
            }
            Expr::And(list) | Expr::Or(list) => {
                out.push(if matches!(self, Expr::And(_)) {
                    b'&'
                } else {
                    b'|'
                });
                out.extend_from_slice(&(list.len() as u64).to_be_bytes());
                list.iter().for_each(|inner| inner.fingerprint(out));
            }
        }
    }
}

fn pair_fingerprint(op: u8, pair: &(Expr, Expr), out: &mut Vec<u8>) {
    out.push(op);
    pair.0.fingerprint(out);
    pair.1.fingerprint(out);
}

fn parse_list(
    name: &str,
    json: &Json,
    room: &mut usize,
    depth: usize,
) -> FunctionResult<Vec<Expr>> {
    let list = json
        .as_array()
        .ok_or_else(|| invalid(format!("`{name}` takes a list of expressions")))?;
    list.iter()
        .map(|inner| Expr::parse_at(inner, room, depth + 1))
        .collect()
}

fn parse_pair(
    name: &str,
    json: &Json,
    room: &mut usize,
    depth: usize,
) -> FunctionResult<Box<(Expr, Expr)>> {
    let list = parse_list(name, json, room, depth)?;
    match <[Expr; 2]>::try_from(list) {
        Ok([a, b]) => Ok(Box::new((a, b))),
        Err(list) => {
            let found = list.len();
            Err(invalid(format!(
                "`{name}` takes two operands, found {found}"
            )))
        }
    }
}

fn calculate(op: Arithmetic, a: Option<&Value>, b: Option<&Value>) -> FunctionResult<Value> {
    match (a, b) {
        (Some(Value::Int64(x)), Some(Value::Int64(y))) => {
            let result = match op {
                Arithmetic::Add => x.checked_add(*y),
                Arithmetic::Sub => x.checked_sub(*y),
                Arithmetic::Mul => x.checked_mul(*y),
                Arithmetic::Div => x.checked_div(*y),
                Arithmetic::Mod => x.checked_rem(*y),
            };
            let why = if *y == 0 {
                "Division by zero"
            } else {
                "Integer overflow"
            };
            result.map(Value::Int64).ok_or_else(|| {
                let (verb, joint) = words(op);
                eval_error(format!(
                    "{why}: cannot {verb} {} {joint} {}",
                    show(a),
                    show(b)
                ))
            })
        }
        (Some(Value::Float64(x)), Some(Value::Float64(y))) => Ok(Value::Float64(match op {
            Arithmetic::Add => x + y,
            Arithmetic::Sub => x - y,
            Arithmetic::Mul => x * y,
            Arithmetic::Div => x / y,
            Arithmetic::Mod => x % y,
        })),
        _ => {
            let (verb, joint) = words(op);
            Err(eval_error(format!(
                "Cannot {verb} {} {joint} {}",
                show(a),
                show(b)
            )))
        }
    }
}

fn words(op: Arithmetic) -> (&'static str, &'static str) {
    match op {
        Arithmetic::Add => ("add", "and"),
        Arithmetic::Sub => ("subtract", "and"),
        Arithmetic::Mul => ("multiply", "by"),
        Arithmetic::Div => ("divide", "by"),
        Arithmetic::Mod => ("take the remainder of", "by"),
    }
}

fn negate(value: Option<&Value>) -> FunctionResult<Value> {
    match value {
        Some(Value::Float64(x)) => Ok(Value::Float64(-x)),
        Some(Value::Int64(x)) => x
            .checked_neg()
            .map(Value::Int64)
            .ok_or_else(|| eval_error(format!("Integer overflow: cannot negate {}", show(value)))),
        other => Err(eval_error(format!("Cannot negate {}", show(other)))),
    }
}

fn eval_error(message: String) -> FunctionError {
    FunctionError::user("EvalError", message)
}

/// `value 1 (type float64)`.
fn show(value: Option<&Value>) -> String {
    match value {
        None => "value undefined (type undefined)".into(),
        Some(value) => format!(
            "value {} (type {})",
            shorten(&value.to_json()),
            value.type_name()
        ),
    }
}

fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
