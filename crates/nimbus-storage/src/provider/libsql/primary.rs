//! Questions about one tenant's namespace: its state, what was committed after a position, rows in order of their keys.
//!
//! Must not write anything. Every answer is checked for its form; what does not fit is damage, never a default.

use bytes::Bytes;

use super::hrana::{Script, Value};
use super::http::{Fault, Http};
use super::sql;
use crate::control::RandomId;
use crate::provider::external::decode_head;
use crate::provider::{Head, Keyspace};

/// Bytes of values in one answer. In base64 that is half of what sqld gives at most.
const ANSWER: i64 = 4 << 20;
/// Rows in one answer.
const ROWS: i64 = 2_000;
/// Bytes of one value in one answer.
const PIECE: usize = 3 << 20;

/// Random bytes that name a change.
pub(super) type Tag = [u8; 16];

/// The state of a tenant on the primary, at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) head: Head,
    pub(super) life: RandomId,
    /// Of the newest change.
    pub(super) position: i64,
    pub(super) tag: Tag,
    /// What a commit has to know: it is raised to have commits fail whose answers were lost.
    pub(super) fence: i64,
    /// Who has the turn.
    pub(super) holder: Option<Vec<u8>>,
}

/// A row of the table `changes`.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) position: i64,
    pub(super) previous: Tag,
    pub(super) tag: Tag,
    pub(super) data: Vec<u8>,
}

/// Rows of a keyspace.
pub(super) struct Copied {
    pub(super) rows: Vec<(Vec<u8>, Bytes)>,
    /// Where to go on; `None` at the end.
    pub(super) next: Option<Vec<u8>>,
}

/// One row's values, taken one after the other.
pub(super) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(super) fn new(values: Vec<Value>) -> Row {
        Row(values.into_iter())
    }

    pub(super) fn integer(&mut self) -> Result<i64, Fault> {
        match self.0.next() {
            Some(Value::Integer(number)) => Ok(number),
            other => Err(unexpected("an integer", other.as_ref())),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Fault> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(text),
            other => Err(unexpected("a text", other.as_ref())),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        match self.0.next() {
            Some(Value::Blob(bytes)) => Ok(Some(bytes)),
            Some(Value::Null) => Ok(None),
            other => Err(unexpected("bytes", other.as_ref())),
        }
    }

    fn some_bytes(&mut self) -> Result<Vec<u8>, Fault> {
        self.bytes()?.ok_or_else(|| unexpected("bytes", None))
    }

    fn tag(&mut self) -> Result<Tag, Fault> {
        let bytes = self.some_bytes()?;
        Tag::try_from(bytes).map_err(|_| unexpected("16 bytes", None))
    }
}

fn unexpected(expected: &str, found: Option<&Value>) -> Fault {
    let found = match found {
        Some(Value::Null) | None => "nothing",
        Some(Value::Integer(_)) => "an integer",
        Some(Value::Text(_)) => "a text",
        Some(Value::Blob(_)) => "bytes",
        Some(Value::Other) => "a float",
    };
    Fault::Refused(format!("a row holds {found}, expected {expected}"))
}

/// The state in the rows of [`sql::state`].
///
/// # Errors
/// `Gone` without a row; `Refused` for a layout that is not known.
pub(super) fn state_in(namespace: &str, rows: Vec<Vec<Value>>) -> Result<State, Fault> {
    let row = rows.into_iter().next().ok_or(Fault::Gone)?;
    let mut row = Row::new(row);
    let head = row.bytes()?;
    let head =
        decode_head(namespace, head.as_deref()).map_err(|e| Fault::Refused(e.to_string()))?;
    let life = row.text()?;
    let life = RandomId::try_from(life).map_err(|e| Fault::Refused(format!("its life: {e}")))?;
    let state = State {
        head,
        life,
        position: row.integer()?,
        tag: row.tag()?,
        fence: row.integer()?,
        holder: row.bytes()?,
    };
    match row.integer()? {
        sql::FEED_VERSION => Ok(state),
        other => Err(Fault::Refused(format!(
            "the feed of {namespace} has version {other} and this server reads {}; use the version of Nimbus that \
             wrote it",
            sql::FEED_VERSION
        ))),
    }
}

/// The state now.
pub(super) async fn state(http: &Http, namespace: &str) -> Result<State, Fault> {
    let script = Script::query(sql::state(), Vec::new());
    let mut answers = http.rows(namespace, &script).await?.into_iter();
    state_in(namespace, answers.next().unwrap_or_default())
}

/// The state, and then the changes after a position, of which there may be more than come at once.
pub(super) async fn changes(
    http: &Http,
    namespace: &str,
    after: i64,
) -> Result<(State, Vec<Part>), Fault> {
    let mut script = Script::query(sql::state(), Vec::new());
    let bounds = vec![after.into(), ROWS.into(), ANSWER.into()];
    script.then(sql::CHANGES, bounds);
    let mut answers = http.rows(namespace, &script).await?.into_iter();
    let state = state_in(namespace, answers.next().unwrap_or_default())?;
    let parts = answers.next().unwrap_or_default().into_iter().map(|row| {
        let mut row = Row::new(row);
        Ok(Part {
            position: row.integer()?,
            previous: row.tag()?,
            tag: row.tag()?,
            data: row.some_bytes()?,
        })
    });
    let parts = parts.collect::<Result<_, Fault>>()?;
    Ok((state, parts))
}

/// The next rows of a keyspace from a key on. Other rows may be of other times.
pub(super) async fn copy(
    http: &Http,
    namespace: &str,
    keyspace: Keyspace,
    from: &[u8],
) -> Result<Copied, Fault> {
    let piece = i64::try_from(PIECE).unwrap_or(i64::MAX);
    let bounds = vec![from.into(), ROWS.into(), ANSWER.into(), piece.into()];
    let script = Script::query(sql::copy(keyspace), bounds);
    let mut answers = http.rows(namespace, &script).await?.into_iter();
    let mut copied = Copied {
        rows: Vec::new(),
        next: None,
    };
    for row in answers.next().unwrap_or_default() {
        let mut row = Row::new(row);
        let (key, len, value) = (row.some_bytes()?, row.integer()?, row.some_bytes()?);
        let len = usize::try_from(len).unwrap_or_default();
        copied.next = Some([key.as_slice(), &[0]].concat());
        let value = match value.len() < len {
            true => rest(http, namespace, (keyspace, &key), (value, len)).await?,
            false => Some(value),
        };
        // One that was changed meanwhile comes again with the changes.
        if let Some(value) = value {
            copied.rows.push((key, value.into()));
        }
    }
    Ok(copied)
}

/// A value that did not come whole; `None` if it is not the same any more.
async fn rest(
    http: &Http,
    namespace: &str,
    (keyspace, key): (Keyspace, &[u8]),
    (mut value, len): (Vec<u8>, usize),
) -> Result<Option<Vec<u8>>, Fault> {
    while value.len() < len {
        let (at, piece) = (value.len() + 1, PIECE.min(len - value.len()));
        let number = |n: usize| Value::from(i64::try_from(n).unwrap_or(i64::MAX));
        let args = vec![key.into(), number(at), number(piece)];
        let script = Script::query(sql::piece(keyspace), args);
        let mut answers = http.rows(namespace, &script).await?.into_iter();
        let row = answers.next().unwrap_or_default().into_iter().next();
        let more = match row {
            Some(row) => Row::new(row).bytes()?,
            None => None,
        };
        match more {
            Some(more) if !more.is_empty() => value.extend(more),
            _ => return Ok(None),
        }
    }
    Ok(Some(value))
}
