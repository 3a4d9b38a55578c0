//! Values, names and queries made from a fuzzer's bytes, weighted towards the edges of their types.
//!
//! It must not check anything; the targets do.

use arbitrary::{Result, Unstructured};
use nimbus_core::{FieldPath, InternalId, Object, TableName, Value};
use nimbus_storage::{Direction, Filter, FilterOp, Order, Query};

/// Deepest value that is made.
const DEPTH: usize = 4;
/// Most elements or fields of a container that is made.
const BREADTH: usize = 6;

const INTEGERS: [i64; 14] = [
    0,
    1,
    -1,
    127,
    128,
    -128,
    -129,
    32_767,
    32_768,
    -32_769,
    2_147_483_648,
    -2_147_483_649,
    i64::MAX,
    i64::MIN,
];
const FLOATS: [f64; 12] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::MIN_POSITIVE,
    5e-324,
    f64::MAX,
    9_007_199_254_740_992.0,
    9_007_199_254_740_991.0,
];
const TEXTS: [&str; 12] = [
    "",
    "a",
    "a\0",
    "\0",
    "\0\u{1}",
    "ab",
    "\u{7f}",
    "\u{ff}",
    "\u{e9}\u{1f600}",
    "\u{10ffff}",
    "\"\\/\u{2028}",
    "$integer",
];
const FIELDS: [&str; 8] = ["", "a", "b", "a b", "_x", "aa", "~", "field"];

/// Any value that obeys the rules for field names; NaN with any payload.
///
/// # Errors
/// When the bytes run out.
pub fn value(u: &mut Unstructured<'_>) -> Result<Value> {
    nested(u, DEPTH)
}

fn nested(u: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    let kinds = if depth == 0 { 5 } else { 7 };
    Ok(match u.int_in_range(0..=kinds)? {
        0 => Value::Null,
        1 => Value::Bool(u.arbitrary()?),
        2 => Value::Int64(edge_or(u, &INTEGERS)?),
        3 => Value::Float64(edge_or(u, &FLOATS)?),
        4 => Value::String(text(u)?),
        5 => Value::Bytes(bytes(u)?),
        6 => Value::Array(many(u, |u| nested(u, depth - 1))?),
        _ => Value::Object(fields(u, depth - 1)?),
    })
}

/// An object of values, as a document's own fields.
///
/// # Errors
/// When the bytes run out.
pub fn object(u: &mut Unstructured<'_>) -> Result<Object> {
    fields(u, DEPTH)
}

fn fields(u: &mut Unstructured<'_>, depth: usize) -> Result<Object> {
    let pairs = many(u, |u| Ok((*u.choose(&FIELDS)?, nested(u, depth)?)))?;
    Ok(pairs.into_iter().map(|(n, v)| (n.to_owned(), v)).collect())
}

fn edge_or<'a, T: Copy + arbitrary::Arbitrary<'a>>(
    u: &mut Unstructured<'a>,
    edges: &[T],
) -> Result<T> {
    if u.ratio(1, 2)? {
        Ok(*u.choose(edges)?)
    } else {
        u.arbitrary()
    }
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 2)? {
        return Ok((*u.choose(&TEXTS)?).to_owned());
    }
    let length = u.int_in_range(0..=24)?;
    let raw = u.bytes(length.min(u.len()))?;
    Ok(String::from_utf8_lossy(raw).into_owned())
}

/// A short byte string.
///
/// # Errors
/// When the bytes run out.
pub fn bytes(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = u.int_in_range(0..=24)?;
    Ok(u.bytes(length.min(u.len()))?.to_vec())
}

/// A list of up to `BREADTH` things.
///
/// # Errors
/// When the bytes run out.
pub fn many<T>(
    u: &mut Unstructured<'_>,
    mut one: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = u.int_in_range(0..=BREADTH)?;
    (0..count).map(|_| one(u)).collect()
}

/// Any sixteen bytes as an id.
///
/// # Errors
/// When the bytes run out.
pub fn internal_id(u: &mut Unstructured<'_>) -> Result<InternalId> {
    Ok(InternalId::from_bytes(u.arbitrary()?))
}

/// A query that a request could ask for; its filters need not fit together.
///
/// # Errors
/// When the bytes run out.
pub fn query(u: &mut Unstructured<'_>) -> Result<Query> {
    let table: TableName = pick(u, &["t", "tasks", "T_9"])?;
    let filters = many(u, |u| {
        Ok(Filter {
            field: field(u)?,
            op: *u.choose(&OPERATORS)?,
            value: value(u)?,
        })
    })?;
    let order = if u.arbitrary()? {
        Some(Order {
            field: field(u)?,
            direction: *u.choose(&[Direction::Forward, Direction::Backward])?,
        })
    } else {
        None
    };
    Ok(Query {
        table,
        filters,
        order,
        limit: u.arbitrary()?,
    })
}

const OPERATORS: [FilterOp; 6] = [
    FilterOp::Eq,
    FilterOp::Gt,
    FilterOp::Gte,
    FilterOp::Lt,
    FilterOp::Lte,
    FilterOp::Neq,
];

fn field(u: &mut Unstructured<'_>) -> Result<FieldPath> {
    pick(u, &["a", "b", "a.b", "_id", "_creationTime", "x y.~"])
}

fn pick<T: std::str::FromStr<Err: std::fmt::Debug>>(
    u: &mut Unstructured<'_>,
    names: &[&str],
) -> Result<T> {
    Ok(u.choose(names)?.parse().expect("the names are valid"))
}
