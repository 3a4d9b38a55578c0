//! Bare realms for queries, mutations and analysis: one pooled isolate, a fresh context for each call.
//!
//! The context comes from a snapshot with our scripts already run in it. What a function may do is what
//! [`super::natives`] gives it; the isolate has no file, no network and no clock.

use std::cell::RefCell;
use std::ffi::c_void;

use deno_core::v8;

use super::{memory, natives, session};
use crate::protocol::Setup;

/// A bootstrapped context as bytes, and the limits of isolates made from it.
pub(crate) struct Factory {
    snapshot: Option<&'static [u8]>,
    heap_mb: u64,
    initial_heap_mb: u64,
    /// A context made while there was nothing else to do.
    next: RefCell<Option<v8::Global<v8::Context>>>,
}

/// Globals that no function has.
const TAKEN: &[&str] = &[
    "SharedArrayBuffer",
    "Atomics",
    "Temporal",
    "Deno",
    "__bootstrap",
];
/// Those that QuickJS adds, most of them of `v8x` for itself. (`__v8xTemporalTimeZone` stays: its `Intl` calls it.)
const QUICKJS: &[&str] = match cfg!(feature = "quickjs") {
    false => &[],
    true => &[
        "ShadowRealm",
        "__v8xAtomicsCancelWaiter",
        "__v8xAtomicsNotifyWaiters",
        "__v8xAtomicsNumUnresolvedAsyncPromisesForTesting",
        "__v8xAtomicsNumWaitersForTesting",
        "__v8xAtomicsRegisterWaiter",
        "__v8xPostForegroundTask",
        "__v8x_import_source",
        "__v8x_snapshot_intrinsics",
        "gc",
    ],
};

const OWN: &str = include_str!("js/own.js");
const UNSHARE: &str = include_str!("js/unshare.js");
const QUICKJS_ONLY: &str = include_str!("js/quickjs.js");
const INSPECT: &str = include_str!("js/inspect.js");
const COMMON: &str = include_str!("js/common.js");
const BARE: &str = include_str!("js/bare.js");

impl Factory {
    /// Makes realms from `snapshot`, or without one by running our scripts each time.
    pub(crate) fn new(snapshot: Option<&'static [u8]>, setup: &Setup) -> Factory {
        Factory {
            snapshot,
            heap_mb: setup.heap_mb,
            initial_heap_mb: setup.initial_heap_mb,
            next: RefCell::new(None),
        }
    }

    /// An isolate within the limits.
    pub(crate) fn isolate(&self) -> v8::OwnedIsolate {
        let mb = |n: u64| {
            usize::try_from(n)
                .unwrap_or(usize::MAX)
                .saturating_mul(1024 * 1024)
        };
        let mut params = v8::CreateParams::default()
            .heap_limits(mb(self.initial_heap_mb), mb(self.heap_mb))
            .allow_atomics_wait(false)
            .array_buffer_allocator(memory::allocator(mb(self.heap_mb)));
        if let Some(snapshot) = self.snapshot {
            params = params
                .external_references(natives::external_references().into())
                .snapshot_blob(std::borrow::Cow::Borrowed(snapshot).into());
        }
        let mut isolate = v8::Isolate::new(params);
        isolate.set_microtasks_policy(v8::MicrotasksPolicy::Explicit);
        isolate.set_promise_reject_callback(promise_rejected);
        isolate.set_host_import_module_dynamically_callback(no_dynamic_import);
        isolate
            .add_near_heap_limit_callback(memory::near_heap_limit, std::ptr::null_mut::<c_void>());
        isolate.set_oom_error_handler(memory::out_of_memory);
        isolate
    }

    /// Makes the next context, before anyone waits for it.
    pub(crate) fn prepare(&self, isolate: &mut v8::OwnedIsolate) {
        v8::scope!(let scope, isolate);
        let context = self.make(scope);
        self.next.replace(Some(v8::Global::new(scope, context)));
    }

    /// A context with our scripts in it, which nobody used before.
    pub(crate) fn context<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_, ()>,
    ) -> v8::Local<'s, v8::Context> {
        match self.next.take() {
            Some(context) => v8::Local::new(scope, context),
            None => self.make(scope),
        }
    }

    fn make<'s>(&self, scope: &mut v8::PinScope<'s, '_, ()>) -> v8::Local<'s, v8::Context> {
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let mut entered = v8::ContextScope::new(scope, context);
        if self.snapshot.is_none() {
            bootstrap(&mut entered);
        }
        take_away(&mut entered);
        context
    }
}

/// A context with our scripts run in it, as bytes; nothing where the engine has no snapshots.
pub(crate) fn snapshot() -> Vec<u8> {
    match cfg!(feature = "quickjs") {
        true => Vec::new(),
        false => make_snapshot().unwrap_or_default(),
    }
}

fn make_snapshot() -> Option<Vec<u8>> {
    let references = natives::external_references();
    let mut creator = v8::Isolate::snapshot_creator(Some(references.into()), None);
    {
        v8::scope!(let scope, &mut creator);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        let scope = &mut v8::ContextScope::new(scope, context);
        bootstrap(scope)?;
        scope.set_default_context(context);
    }
    let blob = creator.create_blob(v8::FunctionCodeHandling::Keep)?;
    Some(blob.to_vec())
}

/// Runs our scripts in the context that is entered.
fn bootstrap(scope: &mut v8::PinScope<'_, '_>) -> Option<()> {
    let (own, host) = install_host(scope)?;
    let global = scope.get_current_context().global(scope).into();
    call(scope, "bare.js", BARE, &[global, own, host]).map(drop)
}

/// Gives the context that is entered what every realm has. Returns the builtins as our scripts use them, and the
/// natives.
pub(crate) fn install_host<'s>(
    scope: &mut v8::PinScope<'s, '_>,
) -> Option<(v8::Local<'s, v8::Value>, v8::Local<'s, v8::Value>)> {
    let host = natives::object(scope)?.into();
    let global = scope.get_current_context().global(scope).into();
    let own = evaluate(scope, "own.js", OWN)?;
    let inspect = call(scope, "inspect.js", INSPECT, &[own])?;
    call(scope, "common.js", COMMON, &[global, own, host, inspect])?;
    Some((own, host))
}

/// Takes away what would let one call see another or time itself finely, and what deno_core works with. Not in the
/// snapshots: they look for these when a context is made from one.
pub(crate) fn take_away(scope: &mut v8::PinScope<'_, '_>) {
    let global = scope.get_current_context().global(scope);
    for name in TAKEN.iter().chain(QUICKJS) {
        if let Some(key) = v8::String::new(scope, name) {
            global.delete(scope, key.into());
        }
    }
    match cfg!(feature = "quickjs") {
        // Its WebAssembly makes shared memory with the global `SharedArrayBuffer`, which is gone.
        true => evaluate(scope, "quickjs.js", QUICKJS_ONLY),
        false => evaluate(scope, "unshare.js", UNSHARE),
    };
}

fn call<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    source: &str,
    args: &[v8::Local<'s, v8::Value>],
) -> Option<v8::Local<'s, v8::Value>> {
    let function = v8::Local::<v8::Function>::try_from(evaluate(scope, name, source)?).ok()?;
    let undefined = v8::undefined(scope).into();
    function.call(scope, undefined, args)
}

/// Runs a script of ours.
pub(crate) fn evaluate<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    name: &str,
    source: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let text = v8::String::new(scope, source)?;
    let name = v8::String::new(scope, name)?;
    let origin = v8::ScriptOrigin::new(
        scope,
        name.into(),
        0,
        0,
        false,
        0,
        None,
        false,
        false,
        false,
        None,
    );
    v8::Script::compile(scope, text, Some(&origin))?.run(scope)
}

/// Remembers rejections until somebody handles them.
unsafe extern "C" fn promise_rejected(message: v8::PromiseRejectMessage<'_>) {
    v8::callback_scope!(unsafe scope, &message);
    let promise = v8::Global::new(scope, message.get_promise());
    let reason = message
        .get_value()
        .map(|value| v8::Global::new(scope, value));
    session::frame(|frame| match (message.get_event(), reason) {
        (v8::PromiseRejectEvent::PromiseRejectWithNoHandler, Some(reason)) => {
            frame.unhandled.push((promise, reason));
        }
        (v8::PromiseRejectEvent::PromiseHandlerAddedAfterReject, _) => {
            frame.unhandled.retain(|(known, _)| *known != promise);
        }
        _ => {}
    });
}

/// `import()` needs time of its own, which queries and mutations have not (convex.md 5.1).
fn no_dynamic_import<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _: v8::Local<'s, v8::Data>,
    _: v8::Local<'s, v8::Value>,
    _: v8::Local<'s, v8::String>,
    _: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    let resolver = v8::PromiseResolver::new(scope)?;
    let message = v8::String::new(scope, "dynamic module import unsupported")?;
    let error = v8::Exception::error(scope, message);
    resolver.reject(scope, error)?;
    Some(resolver.get_promise(scope))
}
