//! One function from its import to its result, in a realm of its own.
//!
//! The realm runs until it has nothing to do; then the syscalls that its promises wait for are carried out in
//! order and their answers delivered in order, so that a run depends on nothing but its inputs. A function called
//! within the transaction (`runUdf`) runs to its end in a realm on top of the caller's, which stands still.

use deno_core::v8;

use super::modules::{self, ImportError};
use super::realm::Factory;
use super::session::{self, Frame, Pending, Times};
use super::{failure, guard};
use crate::call::{JsFailure, SubCall, UdfKind};
use crate::protocol::{FromWorker, Import, Reply, Start};

/// Syscalls that are sent before their answers are awaited (convex.md 5.7).
const BATCH: usize = 16;
/// Longest result, as JSON, that is sent to the server; what a value may have is counted there.
const MAX_RESULT: usize = 64 * 1024 * 1024;

/// What an action passes on in its syscalls; there is one action in a process.
const REQUEST_ID: &str = "0";

/// Which function, with what.
pub(crate) struct Call<'a> {
    pub kind: UdfKind,
    pub module: &'a str,
    pub export: &'a str,
    pub args: &'a str,
    pub seed: [u8; 32],
    pub now_ms: f64,
    pub import: Import,
}

impl<'a> Call<'a> {
    pub(crate) fn of(start: &'a Start) -> Call<'a> {
        Call {
            kind: start.kind,
            module: &start.module,
            export: &start.export,
            args: &start.args,
            seed: start.seed,
            now_ms: start.now_ms,
            import: start.import,
        }
    }
}

/// Runs a query or a mutation.
pub(crate) fn run(
    factory: &Factory,
    isolate: &mut v8::OwnedIsolate,
    call: &Call<'_>,
) -> Result<String, JsFailure> {
    v8::scope!(let scope, isolate);
    run_in(factory, scope, call)
}

fn run_in(
    factory: &Factory,
    scope: &mut v8::PinScope<'_, '_, ()>,
    call: &Call<'_>,
) -> Result<String, JsFailure> {
    v8::scope!(let scope, scope);
    let context = factory.context(scope);
    let scope = &mut v8::ContextScope::new(scope, context);
    session::with(|session| session.frames.push(Frame::new(&call.import)));
    let result = function(factory, scope, call);
    modules::keep_compiled(scope);
    // What the function left to be done is done now, where nothing may be asked: it must not run in the next
    // call, nor in the caller's transaction.
    session::frame(|frame| frame.importing = true);
    scope.perform_microtask_checkpoint();
    session::with(|session| session.frames.pop());
    result
}

fn function(
    factory: &Factory,
    scope: &mut v8::PinScope<'_, '_>,
    call: &Call<'_>,
) -> Result<String, JsFailure> {
    v8::tc_scope!(let scope, scope);
    let namespace = match modules::import(scope, call.module) {
        Ok(namespace) => namespace,
        Err(ImportError::Refused(message)) => {
            return Err(failure::plain(format!("Uncaught Error: {message}")));
        }
        Err(ImportError::Thrown) => return Err(thrown(scope)),
    };
    session::frame(|frame| frame.begin(Times::new(&call.seed, call.now_ms)));
    let Some(promise) = begin(scope, namespace, call) else {
        return Err(thrown(scope));
    };
    let promise = match promise {
        Ok(promise) => promise,
        Err(message) => return Err(failure::plain(message)),
    };
    settle(factory, scope, promise, call)
}

/// What a `TryCatch` holds.
pub(crate) fn thrown(
    scope: &mut v8::PinnedRef<'_, v8::TryCatch<'_, '_, v8::HandleScope<'_>>>,
) -> JsFailure {
    match scope.exception() {
        Some(exception) => {
            scope.reset();
            failure::of(scope, exception)
        }
        None => failure::plain("Uncaught Error: the function ended without a reason"),
    }
}

/// Calls the invoker. `None`: it threw.
pub(crate) fn begin<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    namespace: v8::Local<'s, v8::Object>,
    call: &Call<'_>,
) -> Option<Result<v8::Local<'s, v8::Promise>, String>> {
    let no_function = || {
        let shown = call.module.trim_end_matches(".js");
        Some(Err(format!(
            "Couldn't find `{}` in `{shown}` as a {}",
            call.export,
            call.kind.as_str()
        )))
    };
    let key = v8::String::new(scope, call.export)?;
    let Ok(export) = v8::Local::<v8::Object>::try_from(namespace.get(scope, key.into())?) else {
        return no_function();
    };
    let invoker = match call.kind {
        UdfKind::Query => "invokeQuery",
        UdfKind::Mutation => "invokeMutation",
        UdfKind::Action | UdfKind::HttpAction => "invokeAction",
    };
    let key = v8::String::new(scope, invoker)?;
    let Ok(invoke) = v8::Local::<v8::Function>::try_from(export.get(scope, key.into())?) else {
        return no_function();
    };
    let args = v8::String::new(scope, call.args)?.into();
    let value = if call.kind.is_transactional() {
        invoke.call(scope, export.into(), &[args])?
    } else {
        let request = v8::String::new(scope, REQUEST_ID)?.into();
        invoke.call(scope, export.into(), &[request, args])?
    };
    match v8::Local::<v8::Promise>::try_from(value) {
        Ok(promise) => Some(Ok(promise)),
        Err(_) => Some(Err(format!("`{invoker}` gave no promise"))),
    }
}

/// Lets the realm run, and answers its syscalls, until the promise is settled.
fn settle(
    factory: &Factory,
    scope: &mut v8::PinScope<'_, '_>,
    promise: v8::Local<'_, v8::Promise>,
    call: &Call<'_>,
) -> Result<String, JsFailure> {
    // Its rejection is looked for here, so nobody else has to handle it.
    promise.mark_as_handled();
    loop {
        scope.perform_microtask_checkpoint();
        match promise.state() {
            v8::PromiseState::Fulfilled => {
                if let Some(failure) = unhandled(scope) {
                    return Err(failure);
                }
                let value = promise.result(scope);
                return result(scope, value);
            }
            v8::PromiseState::Rejected => {
                let reason = promise.result(scope);
                return Err(failure::of(scope, reason));
            }
            v8::PromiseState::Pending => {}
        }
        if let Some(failure) = unhandled(scope) {
            return Err(failure);
        }
        let batch = session::frame(next_batch).unwrap_or_default();
        if batch.is_empty() {
            return Err(failure::plain(
                "Uncaught Error: Returned promise will never resolve",
            ));
        }
        answer(factory, scope, batch, call);
    }
}

pub(crate) fn result(
    scope: &mut v8::PinScope<'_, '_>,
    value: v8::Local<'_, v8::Value>,
) -> Result<String, JsFailure> {
    if !value.is_string() {
        return Err(failure::plain(
            "Uncaught Error: the function's invoker gave no text",
        ));
    }
    let text = value.to_rust_string_lossy(scope);
    if text.len() > MAX_RESULT {
        return Err(failure::plain(
            "Uncaught Error: Function return value is too large (maximum size: 16 MiB)",
        ));
    }
    Ok(text)
}

/// The first promise that was rejected and that nobody handled.
pub(crate) fn unhandled(scope: &mut v8::PinScope<'_, '_>) -> Option<JsFailure> {
    let (_, reason) = session::frame(|frame| frame.unhandled.first().cloned())??;
    let reason = v8::Local::new(scope, reason);
    Some(failure::of(scope, reason))
}

/// The next syscalls in order; a call of another function goes alone.
fn next_batch(frame: &mut Frame) -> Vec<Pending> {
    let alone = |pending: &Pending| pending.op == "1.0/runUdf";
    let together = frame
        .pending
        .iter()
        .take(BATCH)
        .take_while(|pending| !alone(pending))
        .count();
    let take = together.max(1).min(frame.pending.len());
    frame.pending.drain(..take).collect()
}

/// Carries out syscalls and settles their promises, both in order.
fn answer(
    factory: &Factory,
    scope: &mut v8::PinScope<'_, '_>,
    batch: Vec<Pending>,
    call: &Call<'_>,
) {
    let calls: Vec<u32> = session::with(|session| {
        let calls = batch.iter().map(|pending| {
            let call = session.call();
            session.link.put(&FromWorker::Syscall {
                call,
                op: pending.op.clone(),
                args: pending.args.clone(),
                urgent: false,
            });
            call
        });
        let calls = calls.collect();
        session.link.flush();
        calls
    });
    for (pending, number) in batch.into_iter().zip(calls) {
        let reply = match session::with(|session| session.reply(number)) {
            Reply::Run(sub) => nested(factory, scope, &sub, call),
            reply => reply,
        };
        deliver(scope, &pending, reply);
    }
}

/// Runs a function within the same transaction, and gives what the host makes of its result.
fn nested(
    factory: &Factory,
    scope: &mut v8::PinScope<'_, '_>,
    sub: &SubCall,
    outer: &Call<'_>,
) -> Reply {
    let seed = session::frame(|frame| {
        let mut seed = outer.seed;
        seed[..8].copy_from_slice(&frame.random().to_bits().to_le_bytes());
        seed
    });
    let call = Call {
        kind: sub.kind,
        module: &sub.module,
        export: &sub.export,
        args: &sub.args,
        seed: seed.unwrap_or(outer.seed),
        now_ms: outer.now_ms,
        import: outer.import,
    };
    let result = run_in(factory, scope, &call);
    session::with(|session| {
        let call = session.call();
        session.link.send(&FromWorker::UdfFinished {
            call,
            token: sub.token,
            result,
        });
        session.reply(call)
    })
}

pub(crate) fn deliver(scope: &mut v8::PinScope<'_, '_>, pending: &Pending, reply: Reply) {
    let undefined: v8::Local<'_, v8::Value> = v8::undefined(scope).into();
    let text = |scope: &mut v8::PinScope<'_, '_>, text: &str| {
        v8::String::new(scope, text).map(|text| v8::Global::new(scope, text))
    };
    match reply {
        Reply::Json(answer) => {
            let Some(answer) = text(scope, &answer) else {
                return;
            };
            let resolve = v8::Local::new(scope, &pending.resolve);
            let answer = v8::Local::new(scope, answer);
            resolve.call(scope, undefined, &[answer.into()]);
        }
        Reply::Error { message, data } => {
            let Some(message) = text(scope, &message) else {
                return;
            };
            let data = data.and_then(|data| text(scope, &data));
            let reject = v8::Local::new(scope, &pending.reject);
            let message = v8::Local::new(scope, message);
            let data = data.map_or(undefined, |data| v8::Local::new(scope, data).into());
            reject.call(scope, undefined, &[message.into(), data]);
        }
        Reply::Run(_) => guard::end(),
    }
}
