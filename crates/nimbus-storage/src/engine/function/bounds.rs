//! Where a query's documents lie: the range of an index, or of the documents themselves, as keys.
//!
//! Documents lie in the order of their ids, which is the order of creation, so `by_id` and
//! `by_creation_time` are the documents themselves. Nothing is read here.

use nimbus_core::{DocumentId, FieldPath, InternalId, TableNumber, Value, id, key};

use super::query::{BY_CREATION_TIME, BY_ID, FunctionQuery, RangeOp, RangeTerm, index_not_found};
use super::{FunctionError, FunctionResult};
use crate::engine::catalog::{IndexDef, IndexState, TableDef};
use crate::provider::Keyspace;

/// Bytes of a table's or an index's number, with which every key begins.
pub(super) const PREFIX: usize = 4;

/// A half-open range of keys, each of which stands for one document.
pub(super) struct Span {
    pub(super) table: TableNumber,
    /// `None` for the documents themselves.
    pub(super) index: Option<IndexDef>,
    /// Full keys, which may be longer than they are stored.
    pub(super) lower: Vec<u8>,
    pub(super) upper: Vec<u8>,
}

impl Span {
    /// What the query asks of a table that exists.
    pub(super) fn of(table: &TableDef, query: &FunctionQuery) -> FunctionResult<Span> {
        let built_in = |field: &str| -> FunctionResult<FieldPath> {
            field.parse().map_err(super::expr::invalid)
        };
        match query.index.as_str() {
            BY_ID => {
                let ordered = Ordered::of(query, &[built_in("_id")?])?;
                Ok(documents(table.number, &ordered, at_text))
            }
            BY_CREATION_TIME => {
                let ordered = Ordered::of(query, &[built_in("_creationTime")?])?;
                Ok(documents(table.number, &ordered, at_time))
            }
            _ => {
                let index = usable(table, query)?;
                let mut fields = index.fields.clone();
                fields.push(built_in("_creationTime")?);
                let ordered = Ordered::of(query, &fields)?;
                Ok(entries(table.number, index, &ordered))
            }
        }
    }

    /// Checks a query of a table that does not exist, and so has no index but the built-in ones.
    pub(super) fn of_nothing(query: &FunctionQuery) -> FunctionResult<()> {
        match query.index.as_str() {
            BY_ID | BY_CREATION_TIME => Ok(()),
            _ => Err(index_not_found(&query.index_text())),
        }
    }

    pub(super) fn space(&self) -> Keyspace {
        match self.index {
            Some(_) => Keyspace::Index,
            None => Keyspace::Docs,
        }
    }

    /// The full key that has this after the number.
    pub(super) fn key(&self, suffix: &[u8]) -> Vec<u8> {
        let number = match &self.index {
            Some(index) => index.id,
            None => self.table.get(),
        };
        [&number.to_be_bytes()[..], suffix].concat()
    }
}

fn usable<'t>(table: &'t TableDef, query: &FunctionQuery) -> FunctionResult<&'t IndexDef> {
    let named = || {
        let indexes = table.indexes.iter();
        indexes.filter(|index| index.name.as_str() == query.index)
    };
    if let Some(index) = named().find(|index| index.state == IndexState::Enabled) {
        return Ok(index);
    }
    let name = query.index_text();
    // What a push prepares is not there yet for anybody.
    if named().any(|index| index.state == IndexState::Backfilling && index.push.is_none()) {
        let message =
            format!("Index {name} is currently backfilling and not available to query yet.");
        return Err(FunctionError::user("IndexBackfillingError", message));
    }
    let mut staged = table.deployed.iter().flat_map(|deployed| &deployed.staged);
    if staged.any(|index| index.as_str() == query.index) {
        let message =
            format!("Index {name} is staged and not available to query until it is enabled.");
        return Err(FunctionError::user("IndexStagedError", message));
    }
    Err(index_not_found(&name))
}

type Bound<'q> = Option<(Option<&'q Value>, Inclusive)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inclusive {
    Yes,
    No,
}

/// A range expression that obeys the rules: equalities in the order of the index's fields, then at most
/// one lower and one upper bound on the next field.
struct Ordered<'q> {
    equal: Vec<Option<&'q Value>>,
    lower: Bound<'q>,
    upper: Bound<'q>,
    /// The field that `lower` and `upper` compare is a creation time.
    bounds_time: bool,
}

impl<'q> Ordered<'q> {
    fn of(query: &'q FunctionQuery, fields: &[FieldPath]) -> FunctionResult<Ordered<'q>> {
        let range = &query.range;
        let mut ordered = Ordered {
            equal: Vec::new(),
            lower: None,
            upper: None,
            bounds_time: false,
        };
        for term in range {
            if !fields.contains(&term.field) {
                return Err(not_in_index(query, fields, term));
            }
        }
        for term in range {
            let bounded = ordered.lower.is_some() || ordered.upper.is_some();
            let at = ordered.equal.len();
            if fields.get(at) != Some(&term.field) || (term.op == RangeOp::Eq && bounded) {
                return Err(out_of_order(query, fields, term, at));
            }
            let value = term.value.as_ref();
            let (slot, inclusive) = match term.op {
                RangeOp::Eq => {
                    ordered.equal.push(value);
                    continue;
                }
                RangeOp::Gt => (&mut ordered.lower, Inclusive::No),
                RangeOp::Gte => (&mut ordered.lower, Inclusive::Yes),
                RangeOp::Lt => (&mut ordered.upper, Inclusive::No),
                RangeOp::Lte => (&mut ordered.upper, Inclusive::Yes),
            };
            if slot.replace((value, inclusive)).is_some() {
                return Err(already_bound(query, term));
            }
        }
        let last = fields.get(ordered.equal.len());
        ordered.bounds_time = last.is_some_and(FieldPath::is_creation_time);
        Ok(ordered)
    }
}

fn list(fields: &[FieldPath]) -> String {
    let names: Vec<String> = fields.iter().map(|f| format!("{:?}", f.as_str())).collect();
    format!("[{}]", names.join(", "))
}

fn not_in_index(query: &FunctionQuery, fields: &[FieldPath], term: &RangeTerm) -> FunctionError {
    let message = format!(
        "The index range included a comparison with {:?}, but index {} with fields {} doesn't index this field.",
        term.field.as_str(),
        query.index_text(),
        list(fields)
    );
    FunctionError::user("FieldNotInIndex", message)
}

fn out_of_order(
    query: &FunctionQuery,
    fields: &[FieldPath],
    term: &RangeTerm,
    at: usize,
) -> FunctionError {
    if fields[..at].contains(&term.field) {
        return already_bound(query, term);
    }
    let asked: Vec<FieldPath> = query.range.iter().map(|t| t.field.clone()).collect();
    let message = format!(
        "Tried to query index {} but the query didn't use the index fields in order.\nIndex fields: {}\nQuery fields: {}\nFirst incorrect field: {:?}",
        query.index_text(),
        list(fields),
        list(&asked),
        term.field.as_str()
    );
    FunctionError::user("InvalidIndexRange", message)
}

fn already_bound(query: &FunctionQuery, term: &RangeTerm) -> FunctionError {
    let message = format!(
        "The index range on index {} bounds the field {:?} more than once.",
        query.index_text(),
        term.field.as_str()
    );
    FunctionError::user("AlreadyDefinedBound", message)
}

/// The range of an index's entries.
fn entries(table: TableNumber, index: &IndexDef, ordered: &Ordered<'_>) -> Span {
    let mut prefix = index.id.to_be_bytes().to_vec();
    for value in &ordered.equal {
        key::encode(*value, &mut prefix);
    }
    // Behind a creation time comes an id, which may begin with any byte, but a time has a fixed
    // length. Behind other values comes a tag.
    let after = |exact: &[u8], time: bool| match time {
        true => key::prefix_successor(exact).unwrap_or_else(|| key::equal_range_end(exact)),
        false => key::equal_range_end(exact),
    };
    let exact = |value: Option<&Value>| {
        let mut exact = prefix.clone();
        key::encode(value, &mut exact);
        exact
    };
    let lower = match ordered.lower {
        None => prefix.clone(),
        Some((value, Inclusive::Yes)) => exact(value),
        Some((value, Inclusive::No)) => after(&exact(value), ordered.bounds_time),
    };
    let upper = match ordered.upper {
        None => after(&prefix, ordered.equal.len() > index.fields.len()),
        Some((value, Inclusive::Yes)) => after(&exact(value), ordered.bounds_time),
        Some((value, Inclusive::No)) => exact(value),
    };
    Span {
        table,
        index: Some(index.clone()),
        lower,
        upper,
    }
}

/// A range of documents. `at` finds the first key whose field is not less than a value, or greater.
fn documents(
    table: TableNumber,
    ordered: &Ordered<'_>,
    at: fn(TableNumber, Option<&Value>, Inclusive) -> Vec<u8>,
) -> Span {
    let (lower, upper) = match ordered.equal.first() {
        Some(value) => (
            Some((*value, Inclusive::Yes)),
            Some((*value, Inclusive::Yes)),
        ),
        None => (ordered.lower, ordered.upper),
    };
    let lower = match lower {
        Some((value, inclusive)) => at(table, value, inclusive),
        None => table.get().to_be_bytes().to_vec(),
    };
    let upper = match upper {
        Some((value, Inclusive::Yes)) => at(table, value, Inclusive::No),
        Some((value, Inclusive::No)) => at(table, value, Inclusive::Yes),
        None => end_of(table),
    };
    Span {
        table,
        index: None,
        lower,
        upper,
    }
}

/// Behind every document of the table.
fn end_of(table: TableNumber) -> Vec<u8> {
    [&table.get().to_be_bytes()[..], &[0xff; InternalId::LEN + 1]].concat()
}

/// The first key whose `_id` is at least `value`, or greater. The order of ids as text is that of their
/// bytes, so any text has its place among them.
fn at_text(table: TableNumber, value: Option<&Value>, inclusive: Inclusive) -> Vec<u8> {
    let first = first(128, |internal| {
        let id = DocumentId {
            table,
            internal: InternalId::from_bytes(internal.to_be_bytes()),
        };
        reaches(Value::String(id.to_string()), value, inclusive)
    });
    match first {
        Some(internal) => [&table.get().to_be_bytes()[..], &internal.to_be_bytes()].concat(),
        None => end_of(table),
    }
}

/// The first key whose `_creationTime` is at least `value`, or greater.
fn at_time(table: TableNumber, value: Option<&Value>, inclusive: Inclusive) -> Vec<u8> {
    let first = first(60, |ticks| {
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        reaches(
            Value::Float64(id::creation_time_ms(ticks)),
            value,
            inclusive,
        )
    });
    match first {
        // The ticks are the first 60 bits of an id.
        Some(ticks) => [
            &table.get().to_be_bytes()[..],
            &(ticks << (128 - 60)).to_be_bytes(),
        ]
        .concat(),
        None => end_of(table),
    }
}

fn reaches(found: Value, bound: Option<&Value>, inclusive: Inclusive) -> bool {
    match inclusive {
        Inclusive::Yes => Some(&found) >= bound,
        Inclusive::No => Some(&found) > bound,
    }
}

/// The least number of so many bits for which `reached` holds, which then holds for all above it.
fn first(bits: u32, reached: impl Fn(u128) -> bool) -> Option<u128> {
    let greatest = u128::MAX >> (128 - bits);
    if !reached(greatest) {
        return None;
    }
    let (mut low, mut high) = (0, greatest);
    while low < high {
        let middle = low + (high - low) / 2;
        if reached(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(high)
}
