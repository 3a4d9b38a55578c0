//! Commits: one request with one conditional batch, and finding out what became of it when the answer was lost.
//!
//! Must not know what a batch means. Nothing is ever guessed, and no lock outlives a request. A commit succeeds only if
//! the head, the life of the tenant and the fence are what it expects; one whose answer was lost is looked for by its
//! tag in the same transaction that raises the fence, so if it is not there then, it never will be.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use nimbus_core::TenantId;

use super::hrana::{Condition, Outcome, Script, Value};
use super::http::{Fault, Http};
use super::primary::{Row, State, Tag, state_in};
use super::record::{self, Writes};
use super::{PAUSE, Timing, sql};
use crate::control::RandomId;
use crate::provider::external::FORMAT_KEY;
use crate::provider::{Batch, CommitError, HEAD_KEY, Head, Keyspace};

/// Rows of one statement, and their bytes, at most.
const ROWS: usize = 128;
const BYTES: usize = 1 << 20;
/// Bytes of changes after which old ones are pruned, whatever the number of commits.
const PRUNE_AFTER: u64 = 1 << 20;

/// One tenant's namespace as it was opened.
pub(super) struct Space {
    pub(super) tenant: TenantId,
    pub(super) name: String,
    pub(super) life: RandomId,
    /// The fence as it was last seen.
    pub(super) fence: AtomicI64,
    pub(super) pruning: Pruning,
}

/// When to prune next.
#[derive(Default)]
pub(super) struct Pruning {
    commits: AtomicU64,
    bytes: AtomicU64,
}

impl Pruning {
    /// Counts a commit of so many bytes; whether it is to prune.
    fn is_due(&self, bytes: u64, every: u64) -> bool {
        let commits = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = commits.is_multiple_of(every) || bytes >= PRUNE_AFTER;
        if due {
            self.bytes.store(0, Ordering::Relaxed);
        }
        due
    }
}

/// A batch on its way.
pub(super) struct Plan {
    space: Arc<Space>,
    expected: Head,
    /// What a turn saw, after which nothing may have come, and its name.
    turn: Option<(i64, Tag)>,
    pub(super) tag: Tag,
    parts: Vec<Vec<u8>>,
    pub(super) batch: Batch,
    /// The newest position that was known before: the batch comes after it.
    after: i64,
}

/// Where a commit is.
pub(super) struct Placed {
    /// Of its last part.
    pub(super) position: i64,
    /// Parts.
    pub(super) count: i64,
    /// Tag of the change before it.
    pub(super) previous: Tag,
    /// When it was sent: nothing that was committed before then is newer.
    pub(super) sent: Instant,
}

/// What a commit that is done means for the replica.
pub(super) enum Committed {
    At(Placed),
    /// At most here: it was looked up.
    UpTo(i64),
}

impl Plan {
    /// `turn`: the position that it saw and its name; `after`: a position that the primary has reached.
    ///
    /// # Errors
    /// `Refused` for a batch that writes rows of the provider or is too large.
    pub(super) fn new(
        space: &Arc<Space>,
        (expected, batch): (Head, Batch),
        turn: Option<(i64, Tag)>,
        after: i64,
    ) -> Result<Plan, CommitError> {
        let refused = |reason: String| CommitError::Refused { reason };
        for own in [HEAD_KEY, FORMAT_KEY] {
            if batch.writes.contains_key(&(Keyspace::Meta, own.to_vec())) {
                let name = String::from_utf8_lossy(own);
                return Err(refused(format!(
                    "the row {name} of meta belongs to the provider"
                )));
            }
        }
        let parts = record::encode(&batch.head, &batch.writes);
        let parts = parts.ok_or_else(|| refused("the batch is too large".to_owned()))?;
        let tag = random().map_err(|reason| CommitError::Transient { reason })?;
        Ok(Plan {
            space: space.clone(),
            expected,
            turn,
            tag,
            parts,
            batch,
            after,
        })
    }

    fn position(&self) -> Option<i64> {
        self.turn.map(|(position, _)| position)
    }

    /// Who has the turn, if this is its commit.
    fn holder(&self) -> &[u8] {
        self.turn.as_ref().map_or(&[], |(_, id)| id)
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

/// The steps of a script that its answer is judged by.
struct Steps {
    guard: usize,
    position: usize,
    commit: usize,
    state: usize,
}

fn script(plan: &Plan, prune: bool, timing: &Timing) -> (Script, Steps) {
    let number = |n: usize| Value::from(i64::try_from(n).unwrap_or(i64::MAX));
    let (new, expected) = (plan.batch.head.encode(), plan.expected.encode());
    let mut script = Script::default();
    let begun = script.begin();
    script.then(sql::swap_head(), vec![new[..].into(), expected[..].into()]);
    let position = plan.position().map_or(Value::Null, Value::from);
    let bytes = i64::try_from(plan.bytes()).unwrap_or(i64::MAX);
    let guard = script.then(
        sql::guard(),
        vec![
            plan.space.life.to_string().as_str().into(),
            plan.space.fence.load(Ordering::Acquire).into(),
            position,
            plan.holder().into(),
            number(plan.parts.len()),
            bytes.into(),
        ],
    );
    add_rows(&mut script, &plan.batch.writes);
    for (number_, part) in plan.parts.iter().enumerate() {
        let left = number(plan.parts.len() - 1 - number_);
        let args = vec![left, plan.tag[..].into(), part.as_slice().into()];
        script.then(sql::append(), args);
    }
    let position = script.then(sql::POSITION, Vec::new());
    script.then(sql::SET_TAG, vec![plan.tag[..].into()]);
    if prune {
        let keep = vec![timing.keep_bytes.into(), timing.keep_seconds.into()];
        script.then(sql::prune(), keep);
    }
    let commit = script.commit(begun);
    let not_done = Condition::Ok { step: commit }.not();
    let state = script.step(sql::state(), Vec::new(), Some(not_done));
    let steps = Steps {
        guard,
        position,
        commit,
        state,
    };
    (script, steps)
}

/// Adds statements for the rows, many rows to each.
fn add_rows(script: &mut Script, writes: &Writes) {
    for keyspace in Keyspace::ALL {
        let rows = || {
            let all = writes.iter().filter(|((k, _), _)| *k == keyspace);
            all.map(|((_, key), value)| (key, value))
        };
        let mut args = Vec::new();
        let mut bytes = 0;
        for (key, value) in rows().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            if args.len() >= 2 * ROWS || bytes > 0 && bytes + value.len() > BYTES {
                let full = std::mem::take(&mut args);
                script.then(sql::put(keyspace, full.len() / 2), full);
                bytes = 0;
            }
            bytes += key.len() + value.len();
            args.push(key.as_slice().into());
            args.push(value[..].into());
        }
        if !args.is_empty() {
            script.then(sql::put(keyspace, args.len() / 2), args);
        }
        let gone = rows().filter(|(_, value)| value.is_none());
        let gone: Vec<Value> = gone.map(|(key, _)| key.as_slice().into()).collect();
        for keys in gone.chunks(ROWS) {
            script.then(sql::delete(keyspace, keys.len()), keys.to_vec());
        }
    }
}

/// What one try came to.
enum Try {
    Done(Committed),
    /// It may work now, as it stands.
    Again(&'static str),
}

/// Commits a batch; see [`crate::provider::TenantStore::commit`].
pub(super) async fn commit(
    http: &Http,
    timing: &Timing,
    plan: &Plan,
) -> Result<Committed, CommitError> {
    let until = Instant::now() + timing.turn_wait;
    loop {
        let reason = match attempt(http, timing, plan).await? {
            Try::Done(committed) => return Ok(committed),
            Try::Again(reason) => reason,
        };
        if Instant::now() >= until {
            let reason = format!("committing to {}: {reason}", plan.space.name);
            return Err(CommitError::Transient { reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(http: &Http, timing: &Timing, plan: &Plan) -> Result<Try, CommitError> {
    let space = &plan.space;
    let prune = space.pruning.is_due(plan.bytes(), timing.prune_every);
    let (script, steps) = script(plan, prune, timing);
    let sent = Instant::now();
    let mut outcomes = match http.run(&space.name, &script).await {
        Ok(outcomes) => outcomes,
        Err(Fault::Lost(why)) => return settle(http, timing, plan, &why).await.map(Try::Done),
        Err(fault) => return Err(failed(&space.name, &fault)),
    };
    if outcomes[steps.commit].is_done() {
        return match placed(&mut outcomes[steps.position], plan, sent) {
            Some(placed) => Ok(Try::Done(Committed::At(placed))),
            None => Err(CommitError::OutcomeUnknown {
                reason: format!("{} committed without telling where", space.name),
            }),
        };
    }
    let failure = outcomes.iter().enumerate().find_map(|(step, o)| match o {
        Outcome::Failed(fault) => Some((step, fault.clone())),
        _ => None,
    });
    let Some((step, fault)) = failure else {
        return settle(http, timing, plan, "steps were skipped")
            .await
            .map(Try::Done);
    };
    if step == steps.guard && fault.is(&["SQLITE_CONSTRAINT"]) {
        let rows = match std::mem::replace(&mut outcomes[steps.state], Outcome::Skipped) {
            Outcome::Done(rows) => rows,
            _ => return Ok(Try::Again("its state could not be read")),
        };
        let state = state_in(&space.name, rows).map_err(|e| failed(&space.name, &e))?;
        return judge(plan, &state).map(Try::Again);
    }
    let kind = Fault::of(&fault);
    let is_clear = matches!(kind, Fault::Busy(_) | Fault::Full(_) | Fault::Gone);
    if step >= steps.commit && !is_clear {
        let why = fault.to_string();
        return settle(http, timing, plan, &why).await.map(Try::Done);
    }
    Err(failed(&space.name, &kind))
}

fn placed(outcome: &mut Outcome, plan: &Plan, sent: Instant) -> Option<Placed> {
    let Outcome::Done(rows) = std::mem::replace(outcome, Outcome::Skipped) else {
        return None;
    };
    let mut row = Row::new(rows.into_iter().next()?);
    let position = row.integer().ok()?;
    let previous = row.bytes().ok()??;
    Some(Placed {
        position,
        count: i64::try_from(plan.parts.len()).ok()?,
        previous: Tag::try_from(previous).ok()?,
        sent,
    })
}

/// Why a commit was not taken, from the state right after it; the text if it may be now.
fn judge(plan: &Plan, state: &State) -> Result<&'static str, CommitError> {
    let space = &plan.space;
    if state.life != space.life {
        return Err(CommitError::Closed);
    }
    let fence = space.fence.swap(state.fence, Ordering::AcqRel);
    if state.head != plan.expected {
        return Err(CommitError::HeadMoved { actual: state.head });
    }
    if plan
        .position()
        .is_some_and(|position| position != state.position)
    {
        let reason = format!("another commit to {} came first", space.name);
        return Err(CommitError::Transient { reason });
    }
    let other = state.holder.as_deref().is_some_and(|h| h != plan.holder());
    Ok(match (other, fence != state.fence) {
        (true, _) => "another server has the turn",
        (false, true) => "another server looked for a lost answer",
        (false, false) => "another server was in the way",
    })
}

/// Finds out what became of a batch whose answer was lost, for `why`.
async fn settle(
    http: &Http,
    timing: &Timing,
    plan: &Plan,
    why: &str,
) -> Result<Committed, CommitError> {
    let name = &plan.space.name;
    tracing::warn!(namespace = %name, error = why, "lost the answer to a commit; looking for its outcome");
    let until = Instant::now() + timing.settle;
    loop {
        let lost = match look(http, plan).await {
            Ok(known) => return known,
            Err(lost) => lost,
        };
        if Instant::now() >= until {
            let reason = format!("{why}; and its outcome in {name} could not be looked up: {lost}");
            return Err(CommitError::OutcomeUnknown { reason });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One look. The error says why nothing was found out.
async fn look(http: &Http, plan: &Plan) -> Result<Result<Committed, CommitError>, Fault> {
    let space = &plan.space;
    let mut script = Script::default();
    let begun = script.begin();
    let find = script.then(sql::FIND_TAG, vec![plan.tag[..].into(), plan.after.into()]);
    script.then(sql::RAISE_FENCE, Vec::new());
    let state = script.then(sql::state(), Vec::new());
    let commit = script.commit(begun);
    let mut outcomes = match http.run(&space.name, &script).await {
        Ok(outcomes) => outcomes,
        Err(Fault::Gone) => return Ok(Err(CommitError::Closed)),
        Err(fault) => return Err(fault),
    };
    if !outcomes[commit].is_done() {
        for outcome in &outcomes {
            if let Outcome::Failed(fault) = outcome {
                return match Fault::of(fault) {
                    Fault::Gone => Ok(Err(CommitError::Closed)),
                    fault => Err(fault),
                };
            }
        }
        return Err(Fault::Lost("steps were skipped".to_owned()));
    }
    let mut rows = |step: usize| match std::mem::replace(&mut outcomes[step], Outcome::Skipped) {
        Outcome::Done(rows) => rows,
        _ => Vec::new(),
    };
    let mut found = Row::new(rows(find).into_iter().next().unwrap_or_default());
    let state = state_in(&space.name, rows(state))?;
    let found_at = found.integer().ok();
    let first = found.integer().ok();
    let (newest, after) = (state.position, plan.after);
    if state.life == space.life && found_at.is_some() {
        space.fence.store(state.fence, Ordering::Release);
        return Ok(Ok(Committed::UpTo(newest)));
    }
    // Without the changes from then on nothing follows from not finding it.
    let is_told = newest == after || first.is_some_and(|first| first <= after + 1);
    if state.life == space.life && !is_told {
        if state.head == plan.batch.head && plan.expected != plan.batch.head {
            return Ok(Ok(Committed::UpTo(newest)));
        }
        let reason = format!("the changes of {} that would tell are pruned", space.name);
        return Ok(Err(CommitError::OutcomeUnknown { reason }));
    }
    Ok(Err(match judge(plan, &state) {
        Ok(_) => CommitError::Transient {
            reason: format!("a commit to {} was lost on the way", space.name),
        },
        Err(e) => e,
    }))
}

/// A failure of which the primary said, or which means, that nothing was written.
pub(super) fn failed(namespace: &str, fault: &Fault) -> CommitError {
    let reason = format!("committing to {namespace}: {fault}");
    match fault {
        Fault::Full(_) => CommitError::Full { what: reason },
        Fault::Gone => CommitError::Closed,
        Fault::TooLarge | Fault::Refused(_) => CommitError::Refused { reason },
        Fault::NotSent(_) | Fault::Lost(_) | Fault::Busy(_) | Fault::Denied { .. } => {
            CommitError::Transient { reason }
        }
    }
}

/// Random bytes for a tag.
pub(super) fn random() -> Result<Tag, String> {
    let mut bytes = Tag::default();
    getrandom::fill(&mut bytes).map_err(|e| format!("reading random bytes: {e}"))?;
    Ok(bytes)
}
