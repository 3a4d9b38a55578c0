//! What an action asks for while it runs: other functions, each with a transaction of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use nimbus_core::Value;
use nimbus_runtime::{
    Answer, EGRESS, EGRESS_DENIED, EgressRefusal, EgressRequest, Host, JsFailure, Nesting,
    SyscallError, UdfKind,
};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::call::Ran;
use super::error::CallError;
use super::reference::CallBody;
use super::service::{Job, nested_failure};
use super::syscalls::read;
use super::transaction::system;
use crate::edge::egress::DeniedFetch;
use crate::policy::Refusal;
use crate::policy::authority::Authority;

/// Refused fetches of one call that the audit log may hear of.
const MAX_DENIED: usize = 100;

/// The host of one run of an action.
pub(super) struct ActionHost<'j> {
    job: &'j Job,
    nesting: Mutex<Option<Nesting>>,
    /// Fetches that were refused.
    denied: AtomicUsize,
}

#[derive(Deserialize)]
struct NameBody {
    name: String,
}

impl<'j> ActionHost<'j> {
    pub(super) fn new(job: &'j Job) -> ActionHost<'j> {
        ActionHost {
            job,
            nesting: Mutex::new(None),
            denied: AtomicUsize::new(0),
        }
    }

    async fn answer(&self, op: &str, args: &str) -> Result<String, SyscallError> {
        match op {
            "1.0/actions/query" => self.call("runQuery", UdfKind::Query, args).await,
            "1.0/actions/mutation" => self.call("runMutation", UdfKind::Mutation, args).await,
            "1.0/actions/action" => self.call("runAction", UdfKind::Action, args).await,
            "1.0/componentArgument" => Ok("{}".to_owned()),
            "1.0/getUserIdentity" => Ok(self.job.identity_json()),
            "1.0/getFunctionMetadata" => Ok(self.job.function_metadata(None)),
            "1.0/getRequestMetadata" => Ok(self.job.request_metadata()),
            "nimbus/env" => self.env(args).await,
            EGRESS => self.egress(args).await,
            EGRESS_DENIED => self.egress_denied(args),
            other => self.job.common(other, args),
        }
    }

    /// What governs the tenant now: an action may run for long, and what is taken back meanwhile is.
    async fn authority(&self) -> Result<Authority, SyscallError> {
        let authority = self.job.service.authority(&self.job.id, &self.job.tenant);
        authority.await.map_err(system)
    }

    /// Whether a request may be sent.
    async fn egress(&self, args: &str) -> Result<String, SyscallError> {
        let request: EgressRequest = read("fetch", args)?;
        let authority = self.authority().await?;
        let flags = self.job.service.runtime().egress();
        let (leave, refused) = authority.leave(&self.job.call.path, &request, flags);
        if let Some(reason) = refused {
            self.note_refusal(&request, reason);
        }
        serde_json::to_string(&leave).map_err(|error| {
            system(CallError::Damaged(format!(
                "the answer to a fetch: {error}"
            )))
        })
    }

    /// Told of a name that led where it must not.
    fn egress_denied(&self, args: &str) -> Result<String, SyscallError> {
        let refusal: EgressRefusal = read("fetch", args)?;
        // What a worker says is other people's text; the reason is ours.
        self.note_refusal(&refusal.request, "leads_to_internal_address");
        Ok("null".to_owned())
    }

    /// Notes that a fetch was refused. The first ones of a call are enough to know what it is after.
    fn note_refusal(&self, request: &EgressRequest, reason: &'static str) {
        self.job.service.policies().count(Refusal::Egress);
        if self.denied.fetch_add(1, Ordering::Relaxed) < MAX_DENIED {
            let denied = DeniedFetch {
                function: &self.job.call.path,
                request,
                reason,
            };
            let id = self.job.request_id.as_ref();
            self.job
                .service
                .trail()
                .egress_denied(&self.job.id, id, &denied);
        }
    }

    /// Calls another function. Its identity is the caller's, and internal functions are in reach.
    async fn call(&self, name: &str, kind: UdfKind, args: &str) -> Result<String, SyscallError> {
        let body: CallBody = read(name, args)?;
        let call = body.call().map_err(SyscallError::user)?;
        let nesting = *self.nesting.lock().unwrap_or_else(PoisonError::into_inner);
        let job = Job {
            authority: self.authority().await?,
            ..self.job.nested(call, nesting)
        };
        let ran = apart(job, kind).await.map_err(nested_failure)?;
        match ran.result {
            Ok(value) => Ok(value.to_json()),
            Err(error) => Err(SyscallError::User {
                message: error.message,
                data: error.data.map(|data| data.to_json()),
            }),
        }
    }

    async fn env(&self, args: &str) -> Result<String, SyscallError> {
        let body: NameBody = read("process.env", args)?;
        if let Some(known) = self.job.system_env(&body.name) {
            return Ok(Value::String(known).to_json());
        }
        let failed = |error| system(CallError::Store(error));
        let mut txn = self.job.tenant.begin_read(None).await.map_err(failed)?;
        let value = txn.env(&body.name).await.map_err(failed)?;
        let (authority, path) = (self.authority().await?, &self.job.call.path);
        let value = self.job.shown(&authority, path, &body.name, value);
        Ok(value.map_or(Value::Null, Value::String).to_json())
    }
}

/// Runs a nested call in a task of its own: polled within its caller's, a chain of calls would take the
/// stack of one thread. It ends with its caller.
async fn apart(job: Job, kind: UdfKind) -> Result<Ran, CallError> {
    // Dropping a set ends its tasks.
    let mut task = JoinSet::new();
    task.spawn(async move { job.run(kind).await });
    match task.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(CallError::Damaged(format!("a nested call: {error}"))),
        None => Err(CallError::Damaged("a nested call has no task".to_owned())),
    }
}

impl Host for ActionHost<'_> {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        Box::pin(async move { self.answer(op, args).await.map(Answer::Json) })
    }

    fn udf_finished<'a>(
        &'a self,
        token: u64,
        _: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        Box::pin(async move {
            let text = format!("the worker ended call {token} of an action, which has none");
            Err(system(CallError::Damaged(text)))
        })
    }

    fn nesting(&self, nesting: Nesting) {
        *self.nesting.lock().unwrap_or_else(PoisonError::into_inner) = Some(nesting);
    }
}
