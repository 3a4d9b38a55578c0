//! Pages of a query (convex.md 6.3): cursors, limits, and where a page may be split.
//!
//! A cursor is a position in the order of the query's index, sealed so that it shows nothing of the
//! indexed values and is refused by another query or tenant. The same position always gives the same
//! cursor. How a page becomes JSON is not known here.

use serde_json::json;

use super::bounds::Span;
use super::query::FunctionQuery;
use super::reader::Reader;
use super::stream::{Pipeline, span_of};
use super::usage::{MAX_FUNCTION_BYTES_READ, MAX_FUNCTION_DOCUMENTS_READ};
use super::{FunctionError, FunctionResult};
use crate::engine::Document;
use crate::engine::cursor::CursorKey;
use crate::engine::txn::Transaction;
use crate::provider::Direction;

/// Rows of a page from which on, at three quarters, it should be split.
const PAGE_ROWS: u64 = 8_192;

/// Which page is asked for.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    /// Where the page before ended; `None` for the first.
    pub cursor: Option<String>,
    /// Where this page ends, whatever `page_size` is.
    pub end_cursor: Option<String>,
    /// Documents wanted.
    pub page_size: u64,
    /// Documents that may be looked at; at least one is.
    pub max_rows: Option<u64>,
    /// Bytes of documents after which the page ends.
    pub max_bytes: Option<u64>,
}

/// Whether a page is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageStatus {
    /// It looked at more than three quarters of what it may.
    SplitRecommended,
    /// A limit ended it early.
    SplitRequired,
}

impl PageStatus {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            PageStatus::SplitRecommended => "SplitRecommended",
            PageStatus::SplitRequired => "SplitRequired",
        }
    }
}

/// One page.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionPage {
    /// Its documents.
    pub page: Vec<Document>,
    /// Whether the query is at its end.
    pub is_done: bool,
    /// Where the next page begins.
    pub continue_cursor: String,
    /// The middle of what was looked at, if that was more than one document.
    pub split_cursor: Option<String>,
    /// Whether it is too large.
    pub page_status: Option<PageStatus>,
}

/// A place in a query's result.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Start,
    /// Behind the document with this after the number in its key.
    After(Vec<u8>),
    End,
}

impl Place {
    fn seal(&self, key: &CursorKey, fingerprint: &[u8; 32]) -> FunctionResult<String> {
        let (kind, rest) = match self {
            Place::Start => (0, &[][..]),
            Place::After(suffix) => (1, suffix.as_slice()),
            Place::End => (2, &[][..]),
        };
        Ok(key.seal_place(fingerprint, &[&[kind], rest].concat())?)
    }

    fn open(key: &CursorKey, fingerprint: &[u8; 32], cursor: &str) -> FunctionResult<Place> {
        let bytes = key.open_place(fingerprint, cursor);
        let place = bytes.and_then(|bytes| match bytes.split_first()? {
            (0, []) => Some(Place::Start),
            (1, suffix) => Some(Place::After(suffix.to_vec())),
            (2, []) => Some(Place::End),
            _ => None,
        });
        place.ok_or_else(|| FunctionError::User {
            code: "InvalidCursor",
            message: "InvalidCursor: Tried to run a query starting from a cursor, but it looks \
                      like this cursor is from a different query."
                .into(),
            data: Some(json!({"isConvexSystemError": true, "paginationError": "InvalidCursor"})),
        })
    }
}

/// Cuts off what lies before `start` and behind `end`.
fn narrow(span: &mut Span, direction: Direction, start: &Place, end: Option<&Place>) {
    let forward = direction == Direction::Forward;
    let behind = |key: Vec<u8>| [&key[..], &[0]].concat();
    match start {
        Place::Start => {}
        Place::End => span.upper.clone_from(&span.lower),
        Place::After(suffix) if forward => {
            span.lower = behind(span.key(suffix)).max(std::mem::take(&mut span.lower));
        }
        Place::After(suffix) => {
            span.upper = span.key(suffix).min(std::mem::take(&mut span.upper));
        }
    }
    match end {
        None | Some(Place::End) => {}
        Some(Place::Start) => span.upper.clone_from(&span.lower),
        Some(Place::After(suffix)) if forward => {
            span.upper = behind(span.key(suffix)).min(std::mem::take(&mut span.upper));
        }
        Some(Place::After(suffix)) => {
            span.lower = span.key(suffix).max(std::mem::take(&mut span.lower));
        }
    }
}

/// What a page holds, before it is sealed.
struct Filled {
    documents: Vec<Document>,
    /// Behind each document that was looked at.
    looked_at: Vec<Vec<u8>>,
    bytes: u64,
    stopped: Stopped,
}

#[derive(PartialEq, Eq)]
enum Stopped {
    /// It has as many documents as were asked for.
    Full,
    /// A limit was reached.
    Limit,
    /// There is nothing more.
    End,
}

impl Transaction {
    /// One page of a query. The reads end at the page's last document, at its end cursor, or at the first
    /// document for which a limit leaves no room.
    ///
    /// # Errors
    /// `User` with `InvalidCursor` (convex.md 6.3) for a cursor of another query or tenant; else as
    /// [`Transaction::open_query`] and [`Transaction::next`].
    pub async fn fn_page(
        &mut self,
        query: &FunctionQuery,
        request: &PageRequest,
    ) -> FunctionResult<FunctionPage> {
        self.usage.count_query()?;
        let key = self.tenant.cursor_key.clone();
        let span = span_of(&mut self.view, query)?;
        let fields = span.as_ref().and_then(|s| s.index.as_ref());
        let fingerprint = query.fingerprint(fields.map_or(&[][..], |index| &index.fields[..]));
        let open = |cursor: &String| Place::open(&key, &fingerprint, cursor);
        let start = request.cursor.as_ref().map_or(Ok(Place::Start), open)?;
        let end = request.end_cursor.as_ref().map(open).transpose()?;
        let filled = match span {
            Some(mut span) => {
                narrow(&mut span, query.direction, &start, end.as_ref());
                self.fill_page(query, span, request).await?
            }
            None => Filled {
                documents: Vec::new(),
                looked_at: Vec::new(),
                bytes: 0,
                stopped: Stopped::End,
            },
        };
        let status = filled.status();
        let split = match filled.looked_at.len() {
            ..2 => None,
            rows => Some(Place::After(filled.looked_at[rows / 2 - 1].clone())),
        };
        let last = match filled.stopped {
            Stopped::End => end.unwrap_or(Place::End),
            _ => filled
                .looked_at
                .last()
                .map_or(start, |last| Place::After(last.clone())),
        };
        let seal = |place: &Place| place.seal(&key, &fingerprint);
        Ok(FunctionPage {
            page: filled.documents,
            is_done: last == Place::End,
            continue_cursor: seal(&last)?,
            split_cursor: split.as_ref().map(seal).transpose()?,
            page_status: status,
        })
    }

    async fn fill_page(
        &mut self,
        query: &FunctionQuery,
        span: Span,
        request: &PageRequest,
    ) -> FunctionResult<Filled> {
        let mut reader = Reader::new(&self.view, span, query.direction);
        let mut pipeline = Pipeline::new(query);
        let mut filled = Filled {
            documents: Vec::new(),
            looked_at: Vec::new(),
            bytes: 0,
            stopped: Stopped::End,
        };
        let wanted = match request.end_cursor {
            Some(_) => u64::MAX,
            None => request.page_size,
        };
        loop {
            let left = wanted.saturating_sub(filled.documents.len() as u64);
            if left == 0 {
                filled.stopped = Stopped::Full;
                break;
            }
            let mut most = pipeline.most();
            if most == 0 {
                break;
            }
            if !pipeline.filters {
                most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            }
            let next = reader.peek(&mut self.view, &mut self.usage, most).await?;
            if filled.looked_at.is_empty() {
                // At least one document is looked at, or an error says that none can be.
            } else if let Some(bytes) = next
                && (filled.has_enough(request) || !self.usage.has_room_for(bytes))
            {
                // That there is more is part of the answer.
                reader.note_peeked(&mut self.view);
                filled.stopped = Stopped::Limit;
                break;
            }
            let taken = reader.next(&mut self.view, &mut self.usage, most).await?;
            let Some(taken) = taken else {
                break;
            };
            taken.count(&mut self.usage)?;
            let hit = taken.hit;
            self.view.pace(pipeline.nodes, hit.body.len()).await;
            filled.looked_at.push(reader.position());
            filled.bytes += hit.body.len() as u64;
            if pipeline.admits(&hit)? {
                filled.documents.push(Document::from(hit));
            }
        }
        Ok(filled)
    }
}

impl Filled {
    fn has_enough(&self, request: &PageRequest) -> bool {
        let rows = self.looked_at.len() as u64;
        request.max_rows.is_some_and(|most| rows >= most)
            || request.max_bytes.is_some_and(|most| self.bytes >= most)
    }

    fn status(&self) -> Option<PageStatus> {
        let most_of = |limit: u64| limit / 4 * 3;
        let rows = self.looked_at.len() as u64;
        if self.stopped == Stopped::Limit {
            return Some(PageStatus::SplitRequired);
        }
        let large = rows > most_of(PAGE_ROWS.min(MAX_FUNCTION_DOCUMENTS_READ))
            || self.bytes > most_of(MAX_FUNCTION_BYTES_READ);
        large.then_some(PageStatus::SplitRecommended)
    }
}
