//! Streams the documents of a span, and records as read only what was taken.
//!
//! Rows are fetched ahead in batches that grow, since the read set must not: an interval ends at the last
//! document taken. Filters and cursors are not known here.

use std::collections::VecDeque;

use bytes::Bytes;
use nimbus_core::{DocumentId, key};

use super::bounds::{PREFIX, Span};
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
    batch: usize,
    /// The state of the transaction's writes when `rows` were fetched.
    version: u64,
    done: bool,
}

struct Row {
    full: Vec<u8>,
    /// Whoever takes the row has read up to this stored key.
    covers: Vec<u8>,
    hit: Hit,
}

impl Reader {
    pub(super) fn new(view: &View, span: Span, direction: Direction) -> Reader {
        Reader {
            span,
            direction,
            scan: None,
            entries: VecDeque::new(),
            rows: VecDeque::new(),
            batch: FIRST_BATCH,
            version: view.write_version,
            done: false,
        }
    }

    /// Bytes of the next document; nothing is taken.
    pub(super) async fn peek(
        &mut self,
        view: &mut View,
        most: usize,
    ) -> StoreResult<Option<usize>> {
        self.fill(view, most).await?;
        Ok(self.rows.front().map(|row| row.hit.body.len()))
    }

    /// Takes the next document. `most`: as many will be asked for at most.
    pub(super) async fn next(&mut self, view: &mut View, most: usize) -> StoreResult<Option<Hit>> {
        if self.done {
            return Ok(None);
        }
        self.fill(view, most).await?;
        let Some(row) = self.rows.pop_front() else {
            view.note_range(self.span.space(), &stored(&self.span));
            self.done = true;
            return Ok(None);
        };
        let mut covered = stored(&self.span);
        match self.direction {
            Direction::Forward => {
                covered.end = Some([&row.covers[..], &[0]].concat());
                self.span.lower = [&row.full[..], &[0]].concat();
            }
            Direction::Backward => {
                covered.start = row.covers;
                self.span.upper = row.full;
            }
        }
        view.note_range(self.span.space(), &covered);
        if self.span.index.is_some() {
            view.note_point(Keyspace::Docs, &row.hit.id.key());
        }
        Ok(Some(row.hit))
    }

    /// What stands after the number in the key of the last document taken; there must be one.
    pub(super) fn position(&self) -> Vec<u8> {
        match self.direction {
            // Without the zero byte that was appended.
            Direction::Forward => self.span.lower[PREFIX..self.span.lower.len() - 1].to_vec(),
            Direction::Backward => self.span.upper[PREFIX..].to_vec(),
        }
    }

    /// Fetches until there is a row or the end is reached.
    async fn fill(&mut self, view: &mut View, most: usize) -> StoreResult<()> {
        if self.version != view.write_version {
            // The transaction wrote meanwhile: what was fetched ahead may be of the past.
            self.version = view.write_version;
            self.scan = None;
            self.entries.clear();
            self.rows.clear();
            self.batch = 1;
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
                Some(index) => self.load_entries(view, &index).await?,
                None => self.take_documents()?,
            }
            let bytes: usize = self.rows.iter().map(|row| row.hit.body.len()).sum();
            self.batch = match bytes {
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
                full: key.clone(),
                covers: key,
                hit: Hit { id, body },
            });
        }
        Ok(())
    }

    /// Loads the documents of the entries up to a run of long keys, or of that run.
    async fn load_entries(&mut self, view: &mut View, index: &IndexDef) -> StoreResult<()> {
        let (mut keys, mut ids) = (Vec::new(), Vec::new());
        while let Some((key, value)) = self.entries.front() {
            if key.len() >= key::CUT_PREFIX {
                if keys.is_empty() {
                    return self.load_run(view, index).await;
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
        self.rows
            .extend(keys.into_iter().zip(hits).map(|(key, hit)| Row {
                full: key.clone(),
                covers: key,
                hit,
            }));
        Ok(())
    }

    /// Stored keys over 2,048 bytes are cut, so a run of stored keys with one 2,000-byte prefix says
    /// nothing about order: it is loaded whole, ordered by the full keys, and read whole by whoever takes
    /// anything of it.
    async fn load_run(&mut self, view: &mut View, index: &IndexDef) -> StoreResult<()> {
        let Some((first, _)) = self.entries.front() else {
            return Ok(());
        };
        let prefix = first[..key::CUT_PREFIX].to_vec();
        let mut run = Vec::new();
        loop {
            while let Some((key, value)) = self.entries.front() {
                if !key.starts_with(&prefix) {
                    return self.order_run(view, index, run).await;
                }
                let id = index::target(self.span.table, key, value)?;
                run.extend(self.entries.pop_front().map(|(key, _)| (key, id)));
            }
            match &mut self.scan {
                Some(scan) if !scan.done => {
                    self.entries
                        .extend(view.scan_ahead(scan, MAX_BATCH).await?.0);
                }
                _ => return self.order_run(view, index, run).await,
            }
        }
    }

    async fn order_run(
        &mut self,
        view: &mut View,
        index: &IndexDef,
        run: Vec<(Vec<u8>, DocumentId)>,
    ) -> StoreResult<()> {
        let Some((covers, _)) = run.last().cloned() else {
            return Ok(());
        };
        let mut rows = Vec::with_capacity(run.len());
        for chunk in run.chunks(FIRST_BATCH) {
            let ids = chunk.iter().map(|(_, id)| *id).collect();
            for hit in load_ahead(view, ids).await? {
                let full = index::full_key(index, hit.id.internal, &parse(&hit.body)?);
                if holds(&self.span, &full) {
                    let covers = covers.clone();
                    rows.push(Row { full, covers, hit });
                }
            }
        }
        rows.sort_by(|a, b| a.full.cmp(&b.full));
        if self.direction == Direction::Backward {
            rows.reverse();
        }
        self.rows.extend(rows);
        Ok(())
    }
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
