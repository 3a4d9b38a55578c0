//! Streams the documents of a span, and records as read only what was taken.
//!
//! Rows are fetched ahead in batches that grow, since the read set must not: an interval ends at the last
//! document taken. Filters and cursors are not known here.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use nimbus_core::{DocumentId, key};

use super::bounds::{PREFIX, Span};
use super::{FunctionResult, TransactionUsage};
use crate::engine::catalog::IndexDef;
use crate::engine::exec::{Hit, load_ahead, parse};
use crate::engine::index;
use crate::engine::view::{Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, KeyRange, Keyspace};

/// Rows of the first batch, unless less is known to suffice.
const FIRST_BATCH: usize = 16;
/// Rows of one batch, at most.
const MAX_BATCH: usize = 256;
/// Bytes of a batch from which on batches shrink: 1 MiB.
const LARGE_BATCH: usize = 1024 * 1024;

/// See the module documentation.
pub(super) struct Reader {
    /// What was not taken yet.
    span: Span,
    direction: Direction,
    /// Ahead of what was taken, if anything was fetched.
    scan: Option<Scan>,
    /// Fetched entries whose documents were not.
    entries: VecDeque<(Vec<u8>, Bytes)>,
    rows: VecDeque<Row>,
    /// The run of long keys to which all of `rows` belong.
    run: Option<Run>,
    batch: usize,
    /// The state of the transaction's writes when `rows` were fetched.
    version: u64,
    done: bool,
}

struct Row {
    full: Vec<u8>,
    id: DocumentId,
    /// `None` until it is asked for, in a run.
    body: Option<Bytes>,
}

/// A run of stored keys that begin alike and of which some are cut: their order says nothing.
struct Run {
    prefix: Vec<u8>,
    /// The full keys of the entries whose documents were loaded, by stored key.
    known: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the transaction itself wrote in here when the run was loaded.
    own: Vec<(Bytes, bool)>,
}

impl Run {
    fn range(&self) -> KeyRange {
        KeyRange {
            start: self.prefix.clone(),
            end: key::prefix_successor(&self.prefix),
        }
    }

    fn is_current(&self, view: &View) -> bool {
        view.own_writes(Keyspace::Index, &self.range()) == self.own
    }
}

/// A document that was taken.
pub(super) struct Taken {
    pub(super) hit: Hit,
    /// It was counted as read before, when its run was put in order.
    counted: bool,
}

impl Taken {
    /// Counts the document as read.
    pub(super) fn count(&self, usage: &mut TransactionUsage) -> FunctionResult<()> {
        match self.counted {
            true => Ok(()),
            false => usage.count_read(self.hit.body.len()),
        }
    }
}

impl Reader {
    pub(super) fn new(view: &View, span: Span, direction: Direction) -> Reader {
        Reader {
            span,
            direction,
            scan: None,
            entries: VecDeque::new(),
            rows: VecDeque::new(),
            run: None,
            batch: FIRST_BATCH,
            version: view.write_version,
            done: false,
        }
    }

    /// Bytes of the next document by which it will be counted; nothing is taken.
    ///
    /// # Errors
    /// When a run of long keys is more than the transaction may read.
    pub(super) async fn peek(
        &mut self,
        view: &mut View,
        usage: &mut TransactionUsage,
        most: usize,
    ) -> FunctionResult<Option<usize>> {
        self.fill(view, usage, most).await?;
        let in_run = self.run.is_some();
        let body = |row: &Row| row.body.as_ref().filter(|_| !in_run).map_or(0, Bytes::len);
        Ok(self.rows.front().map(body))
    }

    /// Records the next document as read, which [`Reader::peek`] saw, and leaves it there.
    pub(super) fn note_peeked(&self, view: &mut View) {
        if let Some(row) = self.rows.front() {
            self.note(view, row);
        }
    }

    /// Takes the next document. `most`: as many will be asked for at most.
    ///
    /// # Errors
    /// As [`Reader::peek`].
    pub(super) async fn next(
        &mut self,
        view: &mut View,
        usage: &mut TransactionUsage,
        most: usize,
    ) -> FunctionResult<Option<Taken>> {
        if self.done {
            return Ok(None);
        }
        self.fill(view, usage, most).await?;
        let Some(row) = self.rows.pop_front() else {
            view.note_range(self.span.space(), &stored(&self.span));
            self.done = true;
            return Ok(None);
        };
        self.note(view, &row);
        let counted = self.run.is_some();
        let hit = match row.body {
            Some(body) => Hit { id: row.id, body },
            None => load_one(view, row.id).await?,
        };
        match self.direction {
            Direction::Forward => self.span.lower = [&row.full[..], &[0]].concat(),
            Direction::Backward => self.span.upper = row.full,
        }
        Ok(Some(Taken { hit, counted }))
    }

    /// Records what is read by taking the row: everything up to it, and a run whole, since what comes
    /// first in it by its full key may lie anywhere in it.
    fn note(&self, view: &mut View, row: &Row) {
        let mut covered = stored(&self.span);
        let whole = self.run.as_ref().map(Run::range);
        match (self.direction, whole) {
            (Direction::Forward, None) => covered.end = Some([&row.full[..], &[0]].concat()),
            (Direction::Forward, Some(run)) => {
                covered.end = match (covered.end, run.end) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            (Direction::Backward, None) => covered.start = row.full.clone(),
            (Direction::Backward, Some(run)) => covered.start = covered.start.max(run.start),
        }
        view.note_range(self.span.space(), &covered);
        if self.span.index.is_some() {
            view.note_point(Keyspace::Docs, &row.id.key());
        }
    }

    /// What stands after the number in the key of the last document taken; there must be one.
    pub(super) fn position(&self) -> Vec<u8> {
        match self.direction {
            // Without the zero byte that was appended.
            Direction::Forward => self.span.lower[PREFIX..self.span.lower.len() - 1].to_vec(),
            Direction::Backward => self.span.upper[PREFIX..].to_vec(),
        }
    }

    /// The transaction wrote meanwhile: what was fetched ahead may be of the past.
    fn refresh(&mut self, view: &View) {
        self.version = view.write_version;
        self.entries.clear();
        self.batch = 1;
        self.scan = None;
        match &self.run {
            Some(run) if run.is_current(view) => {
                let mut rest = stored(&self.span);
                match self.direction {
                    Direction::Forward => rest.start = run.range().end.unwrap_or(rest.start),
                    Direction::Backward => rest.end = Some(run.prefix.clone()),
                }
                self.scan = Some(Scan::new(Keyspace::Index, rest, self.direction));
            }
            _ => self.rows.clear(),
        }
    }

    /// Fetches until there is a row or the end is reached.
    async fn fill(
        &mut self,
        view: &mut View,
        usage: &mut TransactionUsage,
        most: usize,
    ) -> FunctionResult<()> {
        if self.version != view.write_version {
            self.refresh(view);
        }
        while self.rows.is_empty() {
            let scan = self.scan.get_or_insert_with(|| {
                Scan::new(self.span.space(), stored(&self.span), self.direction)
            });
            if scan.done && self.entries.is_empty() {
                return Ok(());
            }
            let limit = self.batch.min(most.max(1));
            if self.entries.is_empty() {
                self.entries.extend(view.scan_ahead(scan, limit).await?.0);
            }
            match self.span.index.clone() {
                Some(index) => self.load_entries(view, usage, &index).await?,
                None => self.take_documents()?,
            }
            let bodies = self.rows.iter().filter_map(|row| row.body.as_ref());
            self.batch = match bodies.map(Bytes::len).sum::<usize>() {
                ..LARGE_BATCH => (self.batch * 2).min(MAX_BATCH),
                _ => (self.batch / 2).max(1),
            };
        }
        Ok(())
    }

    fn take_documents(&mut self) -> StoreResult<()> {
        for (key, body) in self.entries.drain(..) {
            let id = DocumentId::from_key(&key)
                .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
            self.rows.push_back(Row {
                full: key,
                id,
                body: Some(body),
            });
        }
        Ok(())
    }

    /// Loads the documents of the entries up to a run of long keys, or puts that run in order.
    async fn load_entries(
        &mut self,
        view: &mut View,
        usage: &mut TransactionUsage,
        index: &IndexDef,
    ) -> FunctionResult<()> {
        let (mut keys, mut ids) = (Vec::new(), Vec::new());
        while let Some((key, value)) = self.entries.front() {
            if key.len() >= key::CUT_PREFIX {
                if keys.is_empty() {
                    return self.load_run(view, usage, index).await;
                }
                break;
            }
            let id = index::target(self.span.table, key, value)?;
            if let Some((key, _)) = self.entries.pop_front()
                && holds(&self.span, &key)
            {
                keys.push(key);
                ids.push(id);
            }
        }
        let hits = load_ahead(view, ids).await?;
        self.run = None;
        self.rows
            .extend(keys.into_iter().zip(hits).map(|(full, hit)| Row {
                full,
                id: hit.id,
                body: Some(hit.body),
            }));
        Ok(())
    }

    /// Stored keys over 2,048 bytes are cut, so a run of stored keys with one 2,000-byte prefix says
    /// nothing about order: it is ordered by the full keys, for which all of its documents are read.
    async fn load_run(
        &mut self,
        view: &mut View,
        usage: &mut TransactionUsage,
        index: &IndexDef,
    ) -> FunctionResult<()> {
        let Some((first, _)) = self.entries.front() else {
            return Ok(());
        };
        let prefix = first[..key::CUT_PREFIX].to_vec();
        let before = self.run.take().filter(|run| run.prefix == prefix);
        let mut run = Run {
            known: before.map(|run| run.known).unwrap_or_default(),
            prefix,
            own: Vec::new(),
        };
        run.own = view.own_writes(Keyspace::Index, &run.range());
        let mut rows = Vec::new();
        loop {
            let mut part = Vec::new();
            while part.len() < FIRST_BATCH
                && let Some((key, value)) = self.entries.front()
                && key.starts_with(&run.prefix)
            {
                let id = index::target(self.span.table, key, value)?;
                part.extend(self.entries.pop_front().map(|(key, _)| (key, id)));
            }
            if !part.is_empty() {
                self.learn(view, usage, index, (&mut run, &part)).await?;
                for (stored, id) in part {
                    let full = run.known.get(&stored).cloned();
                    rows.extend(full.map(|full| Row {
                        full,
                        id,
                        body: None,
                    }));
                }
                continue;
            }
            match &mut self.scan {
                Some(scan) if !scan.done && self.entries.is_empty() => {
                    self.entries
                        .extend(view.scan_ahead(scan, MAX_BATCH).await?.0);
                }
                _ => break,
            }
        }
        rows.retain(|row| holds(&self.span, &row.full));
        rows.sort_by(|a, b| a.full.cmp(&b.full));
        if self.direction == Direction::Backward {
            rows.reverse();
        }
        self.rows.extend(rows);
        self.run = Some(run);
        Ok(())
    }

    /// Finds the full keys of entries in a run, and counts the documents that this reads.
    async fn learn(
        &self,
        view: &mut View,
        usage: &mut TransactionUsage,
        index: &IndexDef,
        (run, part): (&mut Run, &[(Vec<u8>, DocumentId)]),
    ) -> FunctionResult<()> {
        let new = part.iter().filter(|(key, _)| !run.known.contains_key(key));
        let (keys, ids): (Vec<_>, Vec<_>) = new.cloned().unzip();
        for (stored, hit) in keys.into_iter().zip(load_ahead(view, ids).await?) {
            usage.count_read(hit.body.len())?;
            view.pace(1, hit.body.len()).await;
            let full = index::full_key(index, hit.id.internal, &parse(&hit.body)?);
            run.known.insert(stored, full);
        }
        Ok(())
    }
}

async fn load_one(view: &mut View, id: DocumentId) -> StoreResult<Hit> {
    let hit = load_ahead(view, vec![id]).await?.pop();
    hit.ok_or_else(|| StoreError::corrupt(format!("{id} was not loaded")))
}

fn holds(span: &Span, full: &[u8]) -> bool {
    full >= span.lower.as_slice() && full < span.upper.as_slice()
}

/// The range of stored keys in which a span's entries lie.
fn stored(span: &Span) -> KeyRange {
    let cut = |bound: &[u8]| bound[..bound.len().min(key::CUT_PREFIX)].to_vec();
    let end = match span.upper.len() > key::CUT_PREFIX {
        true => key::prefix_successor(&cut(&span.upper)),
        false => Some(span.upper.clone()),
    };
    KeyRange {
        start: cut(&span.lower),
        end,
    }
}
