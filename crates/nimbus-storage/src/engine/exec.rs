//! Runs a plan over a view: streams candidates in key order, checks what the plan left over,
//! sorts in bounded memory where no index yields the order.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use bytes::Bytes;
use nimbus_core::{DocumentId, InternalId, Object, TableNumber, key};

use super::catalog::{IndexDef, TableDef};
use super::cursor::Position;
use super::index;
use super::query::{Filter, MAX_RESULT_BYTES, Plan, Query, Source, plan};
use super::view::{MAX_READ_DOCUMENTS, Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Rows asked of the provider at once, at most.
const CHUNK: usize = 256;

/// A document that matched.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) id: DocumentId,
    pub(crate) body: Bytes,
}

/// What stops a run besides the end of the data.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    /// Documents wanted.
    pub(crate) documents: usize,
    /// Whether the byte bound ends the result early (a page) or is an error (a list).
    pub(crate) short_is_fine: bool,
}

/// Result of [`run`].
pub(crate) struct Found {
    pub(crate) hits: Vec<Hit>,
    /// The byte bound ended the result before `Want::documents` was reached.
    pub(crate) cut_by_bytes: bool,
}

/// Answers `query` from `view`, continuing behind `after`.
pub(crate) async fn run(
    view: &mut View,
    table: &TableDef,
    query: &Query,
    after: Option<&Position>,
    want: Want,
) -> StoreResult<Found> {
    let plan = plan(table, query);
    let mut source = Candidates::new(table, &plan, query.direction(), after);
    if plan.ordered {
        take_ordered(view, query, &plan, &mut source, want, after).await
    } else {
        take_sorted(view, query, &plan, &mut source, want, after).await
    }
}

async fn take_ordered(
    view: &mut View,
    query: &Query,
    plan: &Plan,
    source: &mut Candidates<'_>,
    want: Want,
    after: Option<&Position>,
) -> StoreResult<Found> {
    let mut found = Found {
        hits: Vec::new(),
        cut_by_bytes: false,
    };
    let mut bytes = 0;
    // A cursor can stand on the very document that `_id` names.
    let check_after = matches!(plan.source, Source::ById(_))
        .then_some(after)
        .flatten();
    while !source.done && found.hits.len() < want.documents {
        let left = want.documents - found.hits.len();
        let chunk = if plan.residual.is_empty() {
            left.min(CHUNK)
        } else {
            CHUNK
        };
        for hit in source.next(view, chunk).await? {
            if !matches(&plan.residual, &hit.body)? {
                continue;
            }
            if check_after.is_some_and(|a| a.id >= hit.id.internal) {
                continue;
            }
            if bytes + hit.body.len() > MAX_RESULT_BYTES
                && (!want.short_is_fine || !found.hits.is_empty())
            {
                if want.short_is_fine {
                    found.cut_by_bytes = true;
                    return Ok(found);
                }
                return Err(result_bytes(bytes + hit.body.len()));
            }
            bytes += hit.body.len();
            found.hits.push(hit);
            if found.hits.len() == want.documents {
                break;
            }
        }
        check_scanned(view, query)?;
    }
    Ok(found)
}

/// Keeps the best `want` positions of all matches in a heap, then fetches their documents.
async fn take_sorted(
    view: &mut View,
    query: &Query,
    plan: &Plan,
    source: &mut Candidates<'_>,
    want: Want,
    after: Option<&Position>,
) -> StoreResult<Found> {
    let direction = query.direction();
    let mut best: BinaryHeap<Ranked> = BinaryHeap::new();
    while !source.done {
        for hit in source.next(view, CHUNK).await? {
            let document = parse(&hit.body)?;
            if !plan.residual.iter().all(|f| f.matches(&document)) {
                continue;
            }
            let position = Position::of(&document, hit.id.internal, query.order_field());
            let ranked = Ranked {
                position,
                direction,
            };
            if after.is_some_and(|a| ranked.against(a) != Ordering::Greater) {
                continue;
            }
            best.push(ranked);
            if best.len() > want.documents {
                best.pop();
            }
        }
        check_scanned(view, query)?;
    }
    fetch(view, source.table, best.into_sorted_vec(), want).await
}

async fn fetch(
    view: &mut View,
    table: TableNumber,
    ranked: Vec<Ranked>,
    want: Want,
) -> StoreResult<Found> {
    let mut found = Found {
        hits: Vec::new(),
        cut_by_bytes: false,
    };
    let mut bytes = 0;
    for chunk in ranked.chunks(CHUNK) {
        let ids = chunk
            .iter()
            .map(|r| DocumentId {
                table,
                internal: r.position.id,
            })
            .collect();
        for hit in load(view, ids).await? {
            bytes += hit.body.len();
            if bytes > MAX_RESULT_BYTES && (!want.short_is_fine || !found.hits.is_empty()) {
                if want.short_is_fine {
                    found.cut_by_bytes = true;
                    return Ok(found);
                }
                return Err(result_bytes(bytes));
            }
            found.hits.push(hit);
        }
    }
    Ok(found)
}

fn result_bytes(observed: usize) -> StoreError {
    StoreError::CapExceeded {
        cap: "result_bytes",
        limit: MAX_RESULT_BYTES as u64,
        observed: observed as u64,
        advice: "read page by page with query/paginated",
    }
}

fn check_scanned(view: &View, query: &Query) -> StoreResult<()> {
    if view.documents_read <= MAX_READ_DOCUMENTS {
        return Ok(());
    }
    let fields = query.index_advice();
    if fields.is_empty() {
        return Err(StoreError::CapExceeded {
            cap: "read_documents",
            limit: MAX_READ_DOCUMENTS,
            observed: view.documents_read,
            advice: "read page by page with query/paginated",
        });
    }
    Err(StoreError::MissingIndex {
        fields,
        limit: MAX_READ_DOCUMENTS,
    })
}

fn matches(residual: &[Filter], body: &[u8]) -> StoreResult<bool> {
    if residual.is_empty() {
        return Ok(true);
    }
    let document = parse(body)?;
    Ok(residual.iter().all(|f| f.matches(&document)))
}

/// A stored document body.
pub(crate) fn parse(body: &[u8]) -> StoreResult<Object> {
    serde_json::from_slice(body)
        .map_err(|e| StoreError::corrupt(format!("a stored document does not parse: {e}")))
}

/// Fetches documents that index entries point to; a missing one contradicts the index.
async fn load(view: &mut View, ids: Vec<DocumentId>) -> StoreResult<Vec<Hit>> {
    for id in &ids {
        view.note_point(Keyspace::Docs, &id.key());
    }
    load_ahead(view, ids).await
}

/// As [`load`], for a reader that records what it uses of this by itself.
pub(crate) async fn load_ahead(view: &mut View, ids: Vec<DocumentId>) -> StoreResult<Vec<Hit>> {
    let keys: Vec<_> = ids.iter().map(DocumentId::key).collect();
    let refs: Vec<&[u8]> = keys
        .iter()
        .map(<[u8; DocumentId::KEY_LEN]>::as_slice)
        .collect();
    let bodies = view.get_ahead(Keyspace::Docs, &refs).await?;
    ids.into_iter()
        .zip(bodies)
        .map(|(id, body)| match body {
            Some(body) => Ok(Hit { id, body }),
            None => Err(StoreError::corrupt(format!(
                "an index names {id}, which does not exist"
            ))),
        })
        .collect()
}

/// Orders a heap so that its greatest element is the one to drop first.
struct Ranked {
    position: Position,
    direction: Direction,
}

impl Ranked {
    fn against(&self, other: &Position) -> Ordering {
        match self.direction {
            Direction::Forward => self.position.compare(other),
            Direction::Backward => other.compare(&self.position),
        }
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Ranked) -> Ordering {
        self.against(&other.position)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Ranked) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Ranked) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Streams a source's documents in key order.
struct Candidates<'p> {
    table: TableNumber,
    direction: Direction,
    kind: Kind<'p>,
    done: bool,
}

enum Kind<'p> {
    Empty,
    One(DocumentId),
    Documents(Scan),
    Index(IndexRange<'p>),
}

impl<'p> Candidates<'p> {
    fn new(
        table: &TableDef,
        plan: &'p Plan,
        direction: Direction,
        after: Option<&Position>,
    ) -> Candidates<'p> {
        let resume = after.filter(|_| plan.ordered);
        let kind = match &plan.source {
            Source::Empty => Kind::Empty,
            Source::ById(id) => Kind::One(*id),
            Source::Documents {
                from_ticks,
                to_ticks,
            } => {
                let range = document_range(table.number, *from_ticks, *to_ticks);
                Kind::Documents(Scan::new(
                    Keyspace::Docs,
                    resume_documents(range, table.number, direction, resume),
                    direction,
                ))
            }
            Source::Index {
                index,
                equal,
                lower,
                upper,
            } => {
                let mut bounds = (lower.clone(), upper.clone());
                if let Some(position) = resume {
                    let at = [equal.as_slice(), &position.key_suffix()].concat();
                    match direction {
                        // The id ends the key, so nothing lies between it and it plus a byte.
                        Direction::Forward => bounds.0 = bounds.0.max([at, vec![0]].concat()),
                        Direction::Backward => bounds.1 = bounds.1.min(at),
                    }
                }
                Kind::Index(IndexRange::new(
                    table.number,
                    index,
                    bounds.0,
                    bounds.1,
                    direction,
                ))
            }
        };
        let done = matches!(kind, Kind::Empty);
        Candidates {
            table: table.number,
            direction,
            kind,
            done,
        }
    }

    /// The next documents, about `limit`; an empty answer does not mean the end.
    async fn next(&mut self, view: &mut View, limit: usize) -> StoreResult<Vec<Hit>> {
        match &mut self.kind {
            Kind::Empty => Ok(Vec::new()),
            Kind::One(id) => {
                self.done = true;
                let body = view.get(Keyspace::Docs, &id.key()).await?;
                Ok(body.map(|body| Hit { id: *id, body }).into_iter().collect())
            }
            Kind::Documents(scan) => {
                let rows = view.scan_next(scan, limit).await?;
                self.done = scan.done;
                rows.into_iter()
                    .map(|(key, body)| {
                        let id = DocumentId::from_key(&key)
                            .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
                        Ok(Hit { id, body })
                    })
                    .collect()
            }
            Kind::Index(range) => {
                let hits = range.next(view, limit, self.direction).await?;
                self.done = range.done();
                Ok(hits)
            }
        }
    }
}

/// Keys of a table's documents created between two ticks, inclusive.
fn document_range(table: TableNumber, from: Option<u64>, to: Option<u64>) -> KeyRange {
    let prefix = table.get().to_be_bytes();
    let mut range = KeyRange::prefix(&prefix);
    // The first eight bytes of an id are its ticks and four random bits.
    let at = |ticks: u64| [&prefix[..], &InternalId::generate(ticks, 0).as_bytes()[..8]].concat();
    if let Some(from) = from {
        range.start = at(from.min(MAX_TICKS));
    }
    if let Some(to) = to {
        range.end = Some(at(to.min(MAX_TICKS) + 1));
    }
    range
}

/// Ticks have 60 bits; the last value is left out so that one can be added.
const MAX_TICKS: u64 = (1 << 60) - 2;

fn resume_documents(
    mut range: KeyRange,
    table: TableNumber,
    direction: Direction,
    after: Option<&Position>,
) -> KeyRange {
    let Some(position) = after else { return range };
    let key = DocumentId {
        table,
        internal: position.id,
    }
    .key()
    .to_vec();
    match direction {
        Direction::Forward => range.start = range.start.max([key, vec![0]].concat()),
        Direction::Backward => {
            range.end = Some(match range.end {
                Some(end) => end.min(key),
                None => key,
            });
        }
    }
    range
}

/// A range of one index by full keys.
///
/// Stored keys over 2,048 bytes are cut, so a run of stored keys with one 2,000-byte prefix
/// says nothing about order; such a run is ordered by the full keys of its documents.
struct IndexRange<'p> {
    table: TableNumber,
    index: &'p IndexDef,
    lower: Vec<u8>,
    upper: Vec<u8>,
    scan: Scan,
    rows: VecDeque<(Vec<u8>, Bytes)>,
}

impl<'p> IndexRange<'p> {
    fn new(
        table: TableNumber,
        index: &'p IndexDef,
        lower: Vec<u8>,
        upper: Vec<u8>,
        direction: Direction,
    ) -> IndexRange<'p> {
        let start = lower[..lower.len().min(key::CUT_PREFIX)].to_vec();
        let end = if upper.len() > key::CUT_PREFIX {
            key::prefix_successor(&upper[..key::CUT_PREFIX])
        } else {
            Some(upper.clone())
        };
        let scan = Scan::new(Keyspace::Index, KeyRange { start, end }, direction);
        IndexRange {
            table,
            index,
            lower,
            upper,
            scan,
            rows: VecDeque::new(),
        }
    }

    fn done(&self) -> bool {
        self.scan.done && self.rows.is_empty()
    }

    fn holds(&self, full: &[u8]) -> bool {
        full >= self.lower.as_slice() && full < self.upper.as_slice()
    }

    async fn next(
        &mut self,
        view: &mut View,
        limit: usize,
        direction: Direction,
    ) -> StoreResult<Vec<Hit>> {
        if self.rows.is_empty() {
            self.rows
                .extend(view.scan_next(&mut self.scan, limit).await?);
        }
        let mut ids = Vec::new();
        while let Some((stored, value)) = self.rows.front() {
            if stored.len() >= key::CUT_PREFIX {
                if ids.is_empty() {
                    return self.next_run(view, direction).await;
                }
                break;
            }
            if self.holds(stored) {
                ids.push(index::target(self.table, stored, value)?);
            }
            self.rows.pop_front();
        }
        load(view, ids).await
    }

    /// Takes every row with the front row's 2,000-byte prefix and orders them by full key.
    async fn next_run(&mut self, view: &mut View, direction: Direction) -> StoreResult<Vec<Hit>> {
        let Some((first, _)) = self.rows.front() else {
            return Ok(Vec::new());
        };
        let prefix = first[..key::CUT_PREFIX].to_vec();
        let mut run = Vec::new();
        loop {
            while let Some((stored, _)) = self.rows.front() {
                if !stored.starts_with(&prefix) {
                    return self.order_run(view, run, direction).await;
                }
                run.extend(self.rows.pop_front());
            }
            if self.scan.done {
                return self.order_run(view, run, direction).await;
            }
            self.rows
                .extend(view.scan_next(&mut self.scan, CHUNK).await?);
        }
    }

    async fn order_run(
        &self,
        view: &mut View,
        run: Vec<(Vec<u8>, Bytes)>,
        direction: Direction,
    ) -> StoreResult<Vec<Hit>> {
        let mut keyed = Vec::with_capacity(run.len());
        for chunk in run.chunks(CHUNK) {
            let ids = chunk
                .iter()
                .map(|(stored, value)| index::target(self.table, stored, value))
                .collect::<StoreResult<Vec<_>>>()?;
            for hit in load(view, ids).await? {
                let full = index::full_key(self.index, hit.id.internal, &parse(&hit.body)?);
                if self.holds(&full) {
                    keyed.push((full, hit));
                }
            }
        }
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        if direction == Direction::Backward {
            keyed.reverse();
        }
        Ok(keyed.into_iter().map(|(_, hit)| hit).collect())
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
