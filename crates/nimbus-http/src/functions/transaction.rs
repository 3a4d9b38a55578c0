//! What a query or a mutation asks for while it runs, answered within its transaction.
//!
//! Each syscall is in [`super::syscalls`]; here is which one it is, what runs within what, and what
//! was found out about the run on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use nimbus_core::{Validator, Value};
use nimbus_runtime::{Answer, Host, JsFailure, Nesting, SubCall, SyscallError, UdfKind};
use nimbus_storage::{FunctionError, Transaction, TransactionSavepoint};

use super::call;
use super::deployed::Deployed;
use super::error::CallError;
use super::path::FunctionPath;
use super::service::Job;
use super::syscalls::{Streams, Sub};

/// How deep functions may run one another within a transaction (convex.md 5.9).
const MAX_DEPTH: usize = 8;

/// The host of one run of a query or mutation.
pub(super) struct TransactionHost<'t> {
    pub(super) job: &'t Job,
    state: tokio::sync::Mutex<State<'t>>,
    facts: Facts,
}

/// What was found out about a run.
#[derive(Default)]
pub(super) struct Facts {
    /// Whether it asked who the user is.
    pub identity: AtomicBool,
    /// Whether its result depends on more than its read set.
    pub beyond_reads: AtomicBool,
    /// End cursor of the page that it took.
    pub journal: Mutex<Option<String>>,
}

/// What changes from one syscall to the next.
pub(super) struct State<'t> {
    pub txn: &'t mut Transaction,
    pub streams: Streams,
    deployed: Arc<Deployed>,
    /// The state at the beginning, for those who may not see what was written.
    begin: Option<TransactionSavepoint>,
    /// The functions that run within one another, the outermost first.
    frames: Vec<Frame>,
    next_token: u64,
}

/// A function that runs.
struct Frame {
    token: u64,
    path: FunctionPath,
    kind: UdfKind,
    returns: Option<Validator>,
    paginated: bool,
    /// What its end goes back to: for a function that fails, its beginning; for one that read the
    /// state at the beginning of the transaction, what was written before it.
    undo: Option<Undo>,
}

enum Undo {
    OnFailure(TransactionSavepoint),
    Always(TransactionSavepoint),
}

impl<'t> TransactionHost<'t> {
    pub(super) fn new(
        job: &'t Job,
        txn: &'t mut Transaction,
        deployed: Arc<Deployed>,
        kind: UdfKind,
    ) -> TransactionHost<'t> {
        let outermost = Frame {
            token: 0,
            path: job.call.path.clone(),
            kind,
            returns: None,
            paginated: false,
            undo: None,
        };
        let begin = (kind == UdfKind::Mutation).then(|| txn.savepoint());
        TransactionHost {
            job,
            state: tokio::sync::Mutex::new(State {
                txn,
                streams: Streams::default(),
                deployed,
                begin,
                frames: vec![outermost],
                next_token: 1,
            }),
            facts: Facts::default(),
        }
    }

    /// The transaction, and what was found out.
    pub(super) fn into_parts(self) -> (&'t mut Transaction, Facts) {
        (self.state.into_inner().txn, self.facts)
    }

    async fn answer(&self, op: &str, args: &str) -> Result<Answer, SyscallError> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let writes = state.kind() == UdfKind::Mutation;
        let text = match op {
            "1.0/queryStream" => state.query_stream(args)?,
            "1.0/queryCleanup" => state.query_cleanup(args)?,
            "1.0/db/normalizeId" => state.normalize_id(args)?,
            "1.0/componentArgument" => "{}".to_owned(),
            "1.0/getSnapshotTs" => {
                self.facts.beyond_reads.store(true, Ordering::Relaxed);
                let at = i64::try_from(state.txn.timestamp()).unwrap_or(i64::MAX);
                Value::Int64(at).to_json()
            }
            "1.0/get" => state.get(args).await?,
            "1.0/queryStreamNext" => state.query_next(args).await?,
            "1.0/queryPage" => state.query_page(args, self).await?,
            "1.0/count" => state.count(args).await?,
            "1.0/insert" if writes => state.insert(args).await?,
            "1.0/shallowMerge" if writes => state.merge(args).await?,
            "1.0/replace" if writes => state.replace(args).await?,
            "1.0/remove" if writes => state.remove(args).await?,
            "1.0/runUdf" => return state.run_udf(args, self.job).map(Answer::Run),
            "1.0/getUserIdentity" => {
                self.facts.identity.store(true, Ordering::Relaxed);
                self.job.identity_json()
            }
            "1.0/getTransactionMetrics" => {
                self.facts.beyond_reads.store(true, Ordering::Relaxed);
                state.metrics()
            }
            "1.0/getFunctionMetadata" => self.job.function_metadata(state.path()),
            "1.0/getRequestMetadata" if writes => self.job.request_metadata(),
            "nimbus/env" => state.env(args, self.job).await?,
            other => return self.job.common(other, args).map(Answer::Json),
        };
        Ok(Answer::Json(text))
    }

    async fn finished(
        &self,
        token: u64,
        result: Result<String, JsFailure>,
    ) -> Result<String, SyscallError> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let known = state.frames.len() > 1 && state.frames.last().is_some_and(|f| f.token == token);
        let Some(frame) = state.frames.pop().filter(|_| known) else {
            let text = format!("the worker ended call {token}, which does not run");
            return Err(system(CallError::Damaged(text)));
        };
        let checked = match result {
            Ok(text) => {
                let tables = state.txn.table_names();
                call::read_result(&frame.path, frame.returns.as_ref(), &text, &tables)
            }
            Err(failure) => Err(failure.into()),
        };
        match frame.undo {
            Some(Undo::OnFailure(savepoint)) if checked.is_err() => {
                state.txn.roll_back(savepoint);
            }
            Some(Undo::Always(savepoint)) => state.txn.roll_back(savepoint),
            _ => {}
        }
        match checked {
            Ok(value) => Ok(value.to_json()),
            Err(error) => Err(SyscallError::User {
                message: error.message,
                data: error.data.map(|data| data.to_json()),
            }),
        }
    }
}

impl Host for TransactionHost<'_> {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        Box::pin(self.answer(op, args))
    }

    fn udf_finished<'a>(
        &'a self,
        token: u64,
        result: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        Box::pin(self.finished(token, result))
    }

    fn nesting(&self, _: Nesting) {
        // A transaction calls nothing outside of itself.
    }
}

impl State<'_> {
    /// The kind of the function that runs now.
    fn kind(&self) -> UdfKind {
        self.frames
            .last()
            .map_or(UdfKind::Query, |frame| frame.kind)
    }

    /// The function that runs now.
    pub(super) fn path(&self) -> Option<&FunctionPath> {
        self.frames.last().map(|frame| &frame.path)
    }

    /// Whether the function that runs now is the one that was called from outside.
    pub(super) fn is_outermost(&self) -> bool {
        self.frames.len() == 1
    }

    /// Notes that the function takes a page; it may take one (convex.md 6.3).
    pub(super) fn begin_page(&mut self) -> Result<(), SyscallError> {
        let taken = self
            .frames
            .last_mut()
            .is_some_and(|frame| std::mem::replace(&mut frame.paginated, true));
        if taken {
            let text = "This query or mutation function ran multiple paginated queries. Convex only supports a single paginated query in each function.";
            return Err(SyscallError::user(text));
        }
        Ok(())
    }

    /// Starts a function within this transaction (convex.md 5.5, `runUdf`).
    fn run_udf(&mut self, args: &str, job: &Job) -> Result<SubCall, SyscallError> {
        let Sub {
            kind,
            at_beginning,
            call,
        } = Sub::parse(args)?;
        if self.kind() != UdfKind::Mutation && (kind == UdfKind::Mutation || at_beginning) {
            return Err(SyscallError::user(
                "a query may run queries, not mutations or snapshot queries",
            ));
        }
        if self.frames.len() > MAX_DEPTH {
            return Err(SyscallError::user(format!(
                "functions run one another more than {MAX_DEPTH} deep within a transaction"
            )));
        }
        let function = call::find(Some(&self.deployed), &call.path, kind, true)
            .map_err(|error| SyscallError::user(error.message))?;
        job.admissible(&call.path).map_err(system)?;
        let returns = function.returns.clone();
        let checked = call::check_args(function, &call.args, &self.txn.table_names());
        checked.map_err(|error| SyscallError::user(error.message))?;
        let undo = self.undo(kind, at_beginning);
        let token = self.next_token;
        self.next_token += 1;
        let sub = SubCall {
            token,
            kind,
            module: call.path.module().to_owned(),
            export: call.path.name().to_owned(),
            args: call.args_text(),
        };
        self.frames.push(Frame {
            token,
            path: call.path,
            kind,
            returns,
            paginated: false,
            undo,
        });
        Ok(sub)
    }

    fn undo(&mut self, kind: UdfKind, at_beginning: bool) -> Option<Undo> {
        if at_beginning {
            let now = self.txn.savepoint();
            if let Some(begin) = self.begin.take() {
                self.txn.roll_back(begin);
                self.begin = Some(self.txn.savepoint());
            }
            return Some(Undo::Always(now));
        }
        (kind == UdfKind::Mutation).then(|| Undo::OnFailure(self.txn.savepoint()))
    }
}

impl Facts {
    /// The end cursor of the page that was taken.
    pub(super) fn set_journal(&self, cursor: &str) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        *journal = Some(cursor.to_owned());
    }
}

impl TransactionHost<'_> {
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// An error that the function may not catch.
pub(super) fn system(error: CallError) -> SyscallError {
    SyscallError::System(Box::new(error))
}

/// The error of a read or write as the function gets it.
pub(super) fn refused(error: FunctionError) -> SyscallError {
    match error {
        FunctionError::User { message, data, .. } => SyscallError::User {
            message,
            data: data.map(|data| data.to_string()),
        },
        FunctionError::Store(error) => system(CallError::Store(error)),
        other => SyscallError::user(other.to_string()),
    }
}
