//! What can be asked of a table, and how it is answered: filters, order and the planner.
//!
//! The planner turns a query into one range of one index, or of the documents themselves,
//! plus the filters that remain to be checked. It reads no data.

use nimbus_core::{FieldPath, Object, TableName, Value, key, value};
use sha2::{Digest, Sha256};

use super::catalog::{IndexDef, TableDef};
use crate::error::{StoreError, StoreResult};
use crate::provider::Direction;

/// Documents that one answer may hold (design section 7).
pub const MAX_RESULT_DOCUMENTS: u32 = 10_000;
/// Bytes of documents that one answer may hold: 16 MiB (design section 7).
pub const MAX_RESULT_BYTES: usize = 16 * 1024 * 1024;
/// Documents that one page may hold.
pub const MAX_PAGE_SIZE: u32 = 1_000;
/// Filters that one query may have.
pub const MAX_FILTERS: usize = 64;

/// Comparison of a field with a value.
///
/// A missing field never matches, not even `Neq`. The four ordered comparisons match only
/// values of the same type as the filter's (int64 and float64 are two types).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterOp {
    /// Equal in the total order: NaN equals NaN, -0 is not 0, 1n is not 1.
    Eq,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
    /// Present and not equal.
    Neq,
}

impl FilterOp {
    /// The operator with this name (`eq`, `neq`, `gt`, `gte`, `lt`, `lte`).
    pub fn parse(name: &str) -> Option<FilterOp> {
        Some(match name {
            "eq" => FilterOp::Eq,
            "gt" => FilterOp::Gt,
            "gte" => FilterOp::Gte,
            "lt" => FilterOp::Lt,
            "lte" => FilterOp::Lte,
            "neq" => FilterOp::Neq,
            _ => return None,
        })
    }

    /// The operator's name.
    pub const fn name(self) -> &'static str {
        match self {
            FilterOp::Eq => "eq",
            FilterOp::Gt => "gt",
            FilterOp::Gte => "gte",
            FilterOp::Lt => "lt",
            FilterOp::Lte => "lte",
            FilterOp::Neq => "neq",
        }
    }

    fn is_range(self) -> bool {
        !matches!(self, FilterOp::Eq | FilterOp::Neq)
    }
}

/// One condition; a query's filters must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// The field compared.
    pub field: FieldPath,
    /// How.
    pub op: FilterOp,
    /// With what.
    pub value: Value,
}

impl Filter {
    /// Whether `document` meets the condition.
    pub fn matches(&self, document: &Object) -> bool {
        let Some(found) = value::object_get(document, &self.field) else {
            return false;
        };
        match self.op {
            FilterOp::Eq => found == &self.value,
            FilterOp::Neq => found != &self.value,
            _ if !same_type(found, &self.value) => false,
            FilterOp::Gt => found > &self.value,
            FilterOp::Gte => found >= &self.value,
            FilterOp::Lt => found < &self.value,
            FilterOp::Lte => found <= &self.value,
        }
    }
}

fn same_type(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// The field by which documents are ordered; ties are broken by id.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The field. Documents without it come first in ascending order.
    pub field: FieldPath,
    /// Ascending or descending.
    pub direction: Direction,
}

/// A query over one table. Without an order, documents come by id, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The table; one that does not exist is empty.
    pub table: TableName,
    /// Conditions that must all hold.
    pub filters: Vec<Filter>,
    /// Order of the result.
    pub order: Option<Order>,
    /// Most documents wanted, 1 to [`MAX_RESULT_DOCUMENTS`].
    pub limit: Option<u32>,
}

impl Query {
    /// All documents of a table.
    pub fn table(table: TableName) -> Query {
        Query {
            table,
            filters: Vec::new(),
            order: None,
            limit: None,
        }
    }

    /// Checks the bounds and the types that ordered comparisons take.
    ///
    /// # Errors
    /// [`StoreError::InvalidInput`], or [`StoreError::CapExceeded`] for a limit beyond the cap.
    pub fn check(&self) -> StoreResult<()> {
        check_count("limit", self.limit, MAX_RESULT_DOCUMENTS)?;
        if self.filters.len() > MAX_FILTERS {
            return Err(StoreError::invalid(format!(
                "{} filters are more than the limit of {MAX_FILTERS}",
                self.filters.len()
            )));
        }
        for filter in &self.filters {
            value::check_value(&filter.value).map_err(|e| StoreError::invalid(e.to_string()))?;
            let ordered = matches!(
                filter.value,
                Value::Float64(_) | Value::Int64(_) | Value::String(_) | Value::Bytes(_)
            );
            if filter.op.is_range() && !ordered {
                return Err(StoreError::invalid(format!(
                    "filter `{}` on `{}` compares numbers, strings or bytes, not {}",
                    filter.op.name(),
                    filter.field,
                    filter.value.type_name()
                )));
            }
        }
        Ok(())
    }

    /// The direction of the result.
    pub(crate) fn direction(&self) -> Direction {
        self.order
            .as_ref()
            .map_or(Direction::Forward, |o| o.direction)
    }

    /// The field that decides the order before creation time and id do.
    pub(crate) fn order_field(&self) -> Option<&FieldPath> {
        let field = &self.order.as_ref()?.field;
        (!field.is_id() && !field.is_creation_time()).then_some(field)
    }

    /// SHA-256 of everything but the limit: what a cursor and a live query are bound to.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.table.as_ref().as_bytes());
        part(&(self.filters.len() as u64).to_be_bytes());
        for f in &self.filters {
            part(f.field.to_string().as_bytes());
            part(f.op.name().as_bytes());
            let mut encoded = Vec::new();
            key::encode(Some(&f.value), &mut encoded);
            part(&encoded);
        }
        if let Some(order) = &self.order {
            part(order.field.to_string().as_bytes());
            part(match order.direction {
                Direction::Forward => b"asc",
                Direction::Backward => b"desc",
            });
        }
        hash.finalize().into()
    }

    /// Fields that an index for this query would start with, for the error that asks for one.
    pub(crate) fn index_advice(&self) -> Vec<String> {
        let mut fields: Vec<String> = Vec::new();
        let equal = self
            .filters
            .iter()
            .filter(|f| f.op == FilterOp::Eq)
            .map(|f| &f.field);
        let range = self
            .filters
            .iter()
            .filter(|f| f.op.is_range())
            .map(|f| &f.field)
            .take(1);
        for field in equal.chain(self.order_field()).chain(range) {
            let name = field.to_string();
            if !name.starts_with('_') && !fields.contains(&name) {
                fields.push(name);
            }
        }
        fields
    }
}

/// Refuses 0 and anything beyond the cap.
pub(crate) fn check_count(name: &'static str, count: Option<u32>, limit: u32) -> StoreResult<()> {
    match count {
        Some(0) => Err(StoreError::invalid(format!("{name} must be at least 1"))),
        Some(n) if n > limit => Err(StoreError::CapExceeded {
            cap: name,
            limit: u64::from(limit),
            observed: u64::from(n),
            advice: "ask for less, or read page by page",
        }),
        _ => Ok(()),
    }
}

/// Where a plan finds its documents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// Nothing can match.
    Empty,
    /// One document by id.
    ById(nimbus_core::DocumentId),
    /// The table's documents in order of creation, within ticks (inclusive).
    Documents {
        from_ticks: Option<u64>,
        to_ticks: Option<u64>,
    },
    /// A range of full index keys.
    Index {
        index: IndexDef,
        equal: Vec<u8>,
        lower: Vec<u8>,
        upper: Vec<u8>,
    },
}

/// How a query is answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    /// Whether the source yields the query's order by itself.
    pub(crate) ordered: bool,
    /// Filters that the source does not already guarantee.
    pub(crate) residual: Vec<Filter>,
}

/// Chooses the index that binds the most fields by equality, then one with a range, then one
/// that yields the order.
pub(crate) fn plan(table: &TableDef, query: &Query) -> Plan {
    if let Some(plan) = plan_by_id(table, query) {
        return plan;
    }
    let mut best: Option<((usize, bool, bool), Plan)> = None;
    for index in table.usable() {
        let Some((score, plan)) = plan_index(index, query) else {
            continue;
        };
        if best.as_ref().is_none_or(|(s, _)| score > *s) {
            best = Some((score, plan));
        }
    }
    match best {
        Some((_, plan)) => plan,
        None => plan_documents(query),
    }
}

fn plan_by_id(table: &TableDef, query: &Query) -> Option<Plan> {
    let filter = query
        .filters
        .iter()
        .find(|f| f.field.is_id() && f.op == FilterOp::Eq)?;
    let id = match &filter.value {
        Value::String(text) => text.parse::<nimbus_core::DocumentId>().ok(),
        _ => None,
    };
    let source = match id {
        Some(id) if id.table == table.number => Source::ById(id),
        _ => Source::Empty,
    };
    Some(Plan {
        source,
        ordered: true,
        residual: query.filters.clone(),
    })
}

fn plan_documents(query: &Query) -> Plan {
    let mut from_ticks = None;
    let mut to_ticks = None;
    for f in query.filters.iter().filter(|f| f.field.is_creation_time()) {
        let Value::Float64(ms) = f.value else {
            continue;
        };
        // A NaN is no bound in ticks: it lies above or below every time, by its sign.
        if ms.is_nan() {
            continue;
        }
        // Saturating: negatives become 0, the least time there is.
        let ticks = (ms * nimbus_core::id::TICKS_PER_MS as f64).floor() as u64;
        match f.op {
            FilterOp::Eq | FilterOp::Gt | FilterOp::Gte => {
                from_ticks = from_ticks.max(Some(ticks));
            }
            FilterOp::Lt | FilterOp::Lte => {
                to_ticks = Some(to_ticks.map_or(ticks, |t: u64| t.min(ticks)));
            }
            FilterOp::Neq => {}
        }
    }
    Plan {
        source: Source::Documents {
            from_ticks,
            to_ticks,
        },
        ordered: query.order_field().is_none(),
        residual: query.filters.clone(),
    }
}

/// A plan over one index with its score, or `None` if the index is of no use.
fn plan_index(index: &IndexDef, query: &Query) -> Option<((usize, bool, bool), Plan)> {
    let mut covered = vec![false; query.filters.len()];
    let mut equal = index.id.to_be_bytes().to_vec();
    let mut bound = 0;
    for field in &index.fields {
        let found = query
            .filters
            .iter()
            .position(|f| f.op == FilterOp::Eq && &f.field == field);
        let Some(at) = found else { break };
        covered[at] = true;
        key::encode(Some(&query.filters[at].value), &mut equal);
        bound += 1;
    }
    let mut bounds = Bounds::after_prefix(&equal);
    let mut ranged = false;
    if let Some(field) = index.fields.get(bound) {
        for (at, filter) in query.filters.iter().enumerate() {
            if filter.op.is_range() && &filter.field == field {
                bounds.narrow(&equal, filter);
                covered[at] = true;
                ranged = true;
            }
        }
    }
    let rest = &index.fields[bound..];
    let ordered = match query.order_field() {
        None => rest.is_empty(),
        Some(field) => rest.len() == 1 && &rest[0] == field,
    };
    if bound == 0 && !ranged && !ordered {
        return None;
    }
    let residual = query
        .filters
        .iter()
        .zip(&covered)
        .filter(|(_, covered)| !**covered)
        .map(|(f, _)| f.clone())
        .collect();
    let source = if bounds.lower >= bounds.upper {
        Source::Empty
    } else {
        Source::Index {
            index: index.clone(),
            equal,
            lower: bounds.lower,
            upper: bounds.upper,
        }
    };
    Some((
        (bound, ranged, ordered),
        Plan {
            source,
            ordered,
            residual,
        },
    ))
}

/// Half-open range of full index keys.
struct Bounds {
    lower: Vec<u8>,
    upper: Vec<u8>,
}

/// Greater than any byte that can follow a complete encoded value: type tags end at `15`.
/// (`00 ff` inside a string continues it, so a string is a byte prefix of longer ones; the
/// byte `ff` right after a complete value is therefore never the start of a next component.)
const AFTER_VALUE: u8 = 0xff;

impl Bounds {
    fn after_prefix(prefix: &[u8]) -> Bounds {
        let mut upper = prefix.to_vec();
        // Behind the last equality value comes a tag; behind the bare index number as well.
        upper.push(AFTER_VALUE);
        Bounds {
            lower: prefix.to_vec(),
            upper,
        }
    }

    fn narrow(&mut self, prefix: &[u8], filter: &Filter) {
        let mut exact = prefix.to_vec();
        key::encode(Some(&filter.value), &mut exact);
        let mut beyond = exact.clone();
        beyond.push(AFTER_VALUE);
        let (first_tag, end_tag) = tags(&filter.value);
        self.raise(&[prefix, &[first_tag]].concat());
        self.cut_off(&[prefix, &[end_tag]].concat());
        match filter.op {
            FilterOp::Gt => self.raise(&beyond),
            FilterOp::Gte => self.raise(&exact),
            FilterOp::Lt => self.cut_off(&exact),
            FilterOp::Lte => self.cut_off(&beyond),
            FilterOp::Eq | FilterOp::Neq => {}
        }
    }

    fn raise(&mut self, bound: &[u8]) {
        if bound > self.lower.as_slice() {
            self.lower = bound.to_vec();
        }
    }

    fn cut_off(&mut self, bound: &[u8]) {
        if bound < self.upper.as_slice() {
            self.upper = bound.to_vec();
        }
    }
}

/// First tag of a value's type, and the first tag after it (convex.md 2.5).
fn tags(value: &Value) -> (u8, u8) {
    match value {
        Value::Int64(_) => (0x04, 0x0d),
        Value::Float64(_) => (0x0d, 0x0e),
        Value::String(_) => (0x10, 0x11),
        Value::Bytes(_) => (0x11, 0x12),
        _ => (0x00, AFTER_VALUE),
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
