//! The conversation between the server and the worker during one invocation.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use nimbus_core::TenantId;
use std::collections::VecDeque;
use tokio::sync::watch as signal;

use super::console::Console;
use super::watch::Watch;
use crate::admission::{ActiveSlot, Admission};
use crate::call::{Answer, Code, Host, JsFailure, Nesting, SyscallError};
use crate::error::RunError;
use crate::process::{Worker, WorkerError};
use crate::protocol::{Done, FromWorker, Reply, ToWorker, WireAnalyzeError, WireModule};

/// Syscalls that a worker may have sent and that nobody answers yet.
const MAX_WAITING: usize = 4_096;
/// Bytes of their arguments: sixteen at once of a transaction, each with a document, or one with 16 MiB.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of answers that a worker may leave unread before it is asked for no more.
const MAX_UNSENT: usize = 8 * 1024 * 1024;

/// Why a conversation ended early.
pub(crate) enum Stop {
    UserTime { limit: Duration },
    WallTime { limit: Duration },
    Worker(WorkerError),
    Host(Box<dyn std::error::Error + Send + Sync>),
    TenantStopped,
    Closing,
    Admission(RunError),
}

impl From<WorkerError> for Stop {
    fn from(error: WorkerError) -> Stop {
        Stop::Worker(error)
    }
}

/// One invocation in progress.
pub(crate) struct Conversation<'a> {
    pub admission: &'a Admission,
    pub tenant: &'a TenantId,
    pub slot: Option<ActiveSlot>,
    pub code: &'a Arc<Code>,
    pub host: &'a dyn Host,
    /// Syscalls that the host is given at once.
    pub at_once: usize,
    pub stopped: signal::Receiver<bool>,
    pub closing: signal::Receiver<bool>,
    pub watch: Watch,
    pub console: Console,
}

type Answered = (u32, Result<Reply, SyscallError>);

enum Asked {
    Syscall {
        op: String,
        args: String,
        urgent: bool,
    },
    Finished {
        token: u64,
        result: Result<String, JsFailure>,
    },
}

impl Asked {
    fn is_urgent(&self) -> bool {
        matches!(self, Asked::Syscall { urgent: true, .. })
    }

    fn size(&self) -> usize {
        match self {
            Asked::Syscall { op, args, .. } => op.len() + args.len(),
            Asked::Finished { result, .. } => result.as_ref().map_or(0, String::len),
        }
    }
}

/// What a message leads to.
enum Next {
    Ask(u32, Asked),
    Resume,
    Done(Done),
    Analyzed(Result<String, WireAnalyzeError>),
    Nothing,
}

/// How a conversation ends well.
enum End {
    Done(Done),
    Analyzed(Result<String, WireAnalyzeError>),
}

impl Conversation<'_> {
    /// Runs a function.
    pub(crate) async fn run(
        &mut self,
        worker: &mut Worker,
        start: &ToWorker,
    ) -> Result<Done, Stop> {
        match self.converse(worker, start).await? {
            End::Done(done) => Ok(done),
            End::Analyzed(_) => Err(WorkerError::Unexpected.into()),
        }
    }

    /// Analyses a bundle.
    pub(crate) async fn analyze(
        &mut self,
        worker: &mut Worker,
        start: &ToWorker,
    ) -> Result<Result<String, WireAnalyzeError>, Stop> {
        match self.converse(worker, start).await? {
            End::Analyzed(result) => Ok(result),
            End::Done(_) => Err(WorkerError::Unexpected.into()),
        }
    }

    async fn converse(&mut self, worker: &mut Worker, start: &ToWorker) -> Result<End, Stop> {
        worker.send(start)?;
        let host = self.host;
        let mut running: FuturesUnordered<BoxFuture<'_, Answered>> = FuturesUnordered::new();
        let mut waiting: VecDeque<(u32, Asked)> = VecDeque::new();
        let mut waiting_bytes = 0;
        // A slot that is asked for. Not awaited apart: whoever holds it may be a call among `running`.
        let (admission, tenant) = (self.admission, self.tenant);
        let mut resuming: FuturesUnordered<BoxFuture<'_, Result<ActiveSlot, RunError>>> =
            FuturesUnordered::new();
        loop {
            // No more is begun than the worker takes the answers of.
            while running.len() < self.at_once
                && worker.unsent() < MAX_UNSENT
                && let Some((call, asked)) = waiting.pop_front()
            {
                waiting_bytes -= asked.size();
                running.push(Box::pin(ask(host, call, asked)));
            }
            let message = tokio::select! {
                biased;
                () = told(&mut self.stopped) => return Err(Stop::TenantStopped),
                () = told(&mut self.closing) => return Err(Stop::Closing),
                Some((call, answer)) = running.next() => {
                    let reply = reply(answer).map_err(Stop::Host)?;
                    worker.send(&ToWorker::Reply { call, reply })?;
                    continue;
                }
                Some(slot) = resuming.next() => {
                    self.slot = Some(slot.map_err(Stop::Admission)?);
                    worker.send(&ToWorker::Go)?;
                    continue;
                }
                // Before the worker, so that one which never falls silent is measured too.
                () = self.watch.due() => {
                    self.watch.check()?;
                    continue;
                }
                message = worker.receive() => message?,
            };
            match self.take(worker, message)? {
                // JavaScript stands still for it, or nobody waits for its answer.
                Next::Ask(call, asked) if asked.is_urgent() => {
                    running.push(Box::pin(ask(host, call, asked)));
                }
                Next::Ask(call, asked) => {
                    waiting_bytes += asked.size();
                    if waiting.len() >= MAX_WAITING || waiting_bytes > MAX_WAITING_BYTES {
                        return Err(WorkerError::Unexpected.into());
                    }
                    waiting.push_back((call, asked));
                }
                Next::Resume if self.slot.is_some() => worker.send(&ToWorker::Go)?,
                Next::Resume => resuming.push(Box::pin(admission.resume(tenant))),
                Next::Done(done) => return Ok(End::Done(done)),
                Next::Analyzed(result) => return Ok(End::Analyzed(result)),
                Next::Nothing => {}
            }
        }
    }

    fn take(&mut self, worker: &mut Worker, message: FromWorker) -> Result<Next, Stop> {
        Ok(match message {
            FromWorker::Syscall {
                call,
                op,
                args,
                urgent,
            } => Next::Ask(call, Asked::Syscall { op, args, urgent }),
            FromWorker::UdfFinished {
                call,
                token,
                result,
            } => Next::Ask(call, Asked::Finished { token, result }),
            FromWorker::Module(path) => {
                let module = self.code.modules.get(&path).map(|module| WireModule {
                    source: module.source.to_string(),
                    source_map: module.source_map.as_ref().map(|map| map.to_string()),
                });
                worker.send(&ToWorker::Module(module))?;
                Next::Nothing
            }
            FromWorker::Log(line) => {
                self.console.add(line);
                Next::Nothing
            }
            FromWorker::Park => {
                self.slot = None;
                Next::Nothing
            }
            FromWorker::Resume => Next::Resume,
            FromWorker::Done(done) => Next::Done(done),
            FromWorker::Analyzed(result) => Next::Analyzed(result),
            FromWorker::Ready { .. } | FromWorker::Snapshot(_) => {
                return Err(WorkerError::Unexpected.into());
            }
        })
    }
}

/// Waits until the signal is given.
async fn told(signal: &mut signal::Receiver<bool>) {
    if signal.wait_for(|given| *given).await.is_err() {
        // Nobody is left who could give it.
        std::future::pending::<()>().await;
    }
}

async fn ask(host: &dyn Host, call: u32, asked: Asked) -> Answered {
    let answer = match asked {
        Asked::Syscall { op, args, .. } => host.syscall(&op, &args).await,
        Asked::Finished { token, result } => {
            host.udf_finished(token, result).await.map(Answer::Json)
        }
    };
    let reply = answer.map(|answer| match answer {
        Answer::Json(text) => Reply::Json(text),
        Answer::Run(call) => Reply::Run(call),
    });
    (call, reply)
}

fn reply(
    answer: Result<Reply, SyscallError>,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    match answer {
        Ok(reply) => Ok(reply),
        Err(SyscallError::User { message, data }) => Ok(Reply::Error { message, data }),
        Err(SyscallError::System(error)) => Err(error),
    }
}

/// The host of an analysis: modules have nothing to ask while they are imported.
pub(crate) struct NoHost;

impl Host for NoHost {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        let text = format!("`{op}` cannot be used while modules are imported");
        Box::pin(std::future::ready(Err(SyscallError::user(text))))
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        _: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        let text = "functions cannot be called while modules are imported";
        Box::pin(std::future::ready(Err(SyscallError::user(text))))
    }

    fn nesting(&self, _: Nesting) {}
}
