//! A query in progress: documents in order, through the query's operators.

use nimbus_core::Object;

use super::bounds::Span;
use super::query::{FunctionQuery, Operator};
use super::reader::Reader;
use super::{FunctionResult, TransactionUsage};
use crate::engine::Document;
use crate::engine::exec::{Hit, parse};
use crate::engine::txn::{Transaction, lookup};
use crate::engine::view::{Scan, View};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Documents that a count looks at before it asks whether it may go on.
const COUNT_STEP: usize = 256;

/// A query in progress; see [`Transaction::open_query`].
pub struct QueryStream {
    /// `None` for a table that does not exist.
    reader: Option<Reader>,
    pipeline: Pipeline,
}

/// The operators with what they let through so far.
pub(super) struct Pipeline {
    operators: Vec<(Operator, u64)>,
    /// Not every document that is looked at passes.
    pub(super) filters: bool,
    /// Operations on a document that passes everything.
    pub(super) nodes: usize,
}

impl Pipeline {
    pub(super) fn new(query: &FunctionQuery) -> Pipeline {
        let filters = |o: &Operator| matches!(o, Operator::Filter(_));
        Pipeline {
            filters: query.operators.iter().any(filters),
            nodes: query.nodes,
            operators: query.operators.iter().map(|o| (o.clone(), 0)).collect(),
        }
    }

    /// How many more documents can be looked at, at most. At 0 the query is at its end.
    pub(super) fn most(&self) -> usize {
        let mut most = u64::MAX;
        let mut filtered = false;
        for (operator, passed) in &self.operators {
            match operator {
                Operator::Filter(_) => filtered = true,
                Operator::Limit(limit) => match limit - passed {
                    0 => return 0,
                    left if !filtered => most = most.min(left),
                    _ => {}
                },
            }
        }
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Whether the document passes every operator.
    pub(super) fn admits(&mut self, hit: &Hit) -> FunctionResult<bool> {
        let document: Object = match self.filters {
            true => parse(&hit.body)?,
            false => Object::new(),
        };
        for (operator, passed) in &mut self.operators {
            match operator {
                Operator::Filter(expr) => {
                    if !expr.holds(&document)? {
                        return Ok(false);
                    }
                }
                Operator::Limit(_) => *passed += 1,
            }
        }
        Ok(true)
    }
}

/// The span of a query, or `None` if its table does not exist. Either is recorded as read.
pub(super) fn span_of(view: &mut View, query: &FunctionQuery) -> FunctionResult<Option<Span>> {
    let def = query.table.as_ref().and_then(|table| lookup(view, table));
    match def {
        Some(def) => Span::of(&def, query).map(Some),
        None => Span::of_nothing(query).map(|()| None),
    }
}

impl Transaction {
    /// Begins a query. It shows what the transaction wrote, also what it writes while the query runs and
    /// the query has not passed yet. A table that does not exist is empty.
    ///
    /// # Errors
    /// `User` for an index that cannot be queried or a range that it does not have, with the texts of
    /// convex.md 5.6; too many queries in the transaction.
    pub fn open_query(&mut self, query: &FunctionQuery) -> FunctionResult<QueryStream> {
        self.usage.count_query()?;
        let span = span_of(&mut self.view, query)?;
        let reader = span.map(|span| Reader::new(&self.view, span, query.direction));
        Ok(QueryStream {
            reader,
            pipeline: Pipeline::new(query),
        })
    }

    /// The next document of a query that this transaction began; `None` at the end. Only what was looked
    /// at up to here counts as read.
    ///
    /// # Errors
    /// `User` with `EvalError` from a filter, or when the transaction read too much.
    pub async fn next(&mut self, stream: &mut QueryStream) -> FunctionResult<Option<Document>> {
        let Some(reader) = &mut stream.reader else {
            return Ok(None);
        };
        loop {
            let most = stream.pipeline.most();
            if most == 0 {
                return Ok(None);
            }
            let taken = reader.next(&mut self.view, &mut self.usage, most).await?;
            let Some(taken) = taken else {
                return Ok(None);
            };
            taken.count(&mut self.usage)?;
            let hit = taken.hit;
            self.view.pace(stream.pipeline.nodes, hit.body.len()).await;
            if stream.pipeline.admits(&hit)? {
                return Ok(Some(Document::from(hit)));
            }
        }
    }

    /// What the transaction read and wrote for functions so far.
    pub fn usage(&self) -> TransactionUsage {
        self.usage
    }
}

/// Counts the documents of a span, all of it read.
pub(super) async fn count(
    view: &mut View,
    usage: &mut TransactionUsage,
    span: Span,
) -> FunctionResult<u64> {
    let range = KeyRange {
        start: span.lower,
        end: Some(span.upper),
    };
    let mut scan = Scan::new(Keyspace::Docs, range, Direction::Forward);
    let mut found = 0;
    while !scan.done {
        let before = found;
        for (_, body) in view.scan_next(&mut scan, COUNT_STEP).await? {
            found += 1;
            view.pace(0, body.len()).await;
        }
        usage.count_scanned(before, found)?;
    }
    Ok(found)
}
