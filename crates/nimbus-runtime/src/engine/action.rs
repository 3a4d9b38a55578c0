//! Actions: a `JsRuntime` with the web APIs of Deno's extensions for each call, and an event loop.
//!
//! The realm gets the same natives and scripts as a bare one; what differs is that syscalls run while the function
//! does other things. While nothing can run, the invocation is parked and gives its slot back to the server.

use std::collections::HashMap;
use std::future::poll_fn;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use deno_core::{JsRuntime, JsRuntimeForSnapshot, PollEventLoopOptions, RuntimeOptions, v8};
use tokio::io::unix::AsyncFd;

use super::invoke::{self, Call};
use super::modules::{self, ImportError};
use super::session::{self, Frame, Pending, Times};
use super::{egress, failure, memory, realm, sources};
use crate::call::JsFailure;
use crate::protocol::{FromWorker, Reply, Setup};

// Under the name that deno_fetch looks for.
deno_core::extension!(
    deno_net,
    lazy_loaded_js = [dir "src/engine/js", "02_tls.js"],
);

deno_core::extension!(
    nimbus_web,
    deps = [deno_webidl, deno_web, deno_fetch, deno_crypto],
    esm_entry_point = "ext:nimbus_web/web.js",
    esm = [dir "src/engine/js", "web.js"],
);

/// Syscalls of an action that run at once (convex.md 5.9).
const AT_ONCE: usize = 8;

/// What actions of this process are made from.
pub(crate) struct Actions {
    snapshot: Option<&'static [u8]>,
    heap_mb: u64,
    initial_heap_mb: u64,
    /// Made while there was nothing else to do.
    next: Option<Prepared>,
}

/// A realm that nobody used, and the event loop that it belongs to. The realm goes first.
struct Prepared {
    runtime: JsRuntime,
    tokio: tokio::runtime::Runtime,
}

/// As deno_core knows them. A snapshot has what their files say.
fn declared() -> [deno_core::Extension; 6] {
    let blobs: Arc<dyn deno_web::BlobStoreTrait> = Arc::new(deno_web::BlobStore::default());
    [
        deno_webidl::deno_webidl::init(),
        deno_net::init(),
        deno_web::deno_web::init(blobs, None, false, Default::default()),
        deno_fetch::deno_fetch::init(deno_fetch::Options {
            user_agent: "Nimbus".to_owned(),
            request_builder_hook: Some(egress::check_request),
            resolver: deno_fetch::dns::Resolver::custom(Arc::new(egress::GuardedResolver)),
            ..Default::default()
        }),
        deno_crypto::deno_crypto::init(None),
        nimbus_web::init(),
    ]
}

/// With their files, for a realm that is not made from a snapshot.
fn extensions() -> Vec<deno_core::Extension> {
    declared().map(sources::embedded).into()
}

/// The web APIs as a snapshot, for [`Actions::new`]; nothing where the engine has none.
pub(crate) fn snapshot() -> Vec<u8> {
    if cfg!(feature = "quickjs") {
        return Vec::new();
    }
    let options = RuntimeOptions {
        extensions: extensions(),
        ..Default::default()
    };
    // V8 posts delayed tasks to the event loop that is entered.
    let Ok(tokio) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return Vec::new();
    };
    let _entered = tokio.enter();
    JsRuntimeForSnapshot::new(options).snapshot().into_vec()
}

impl Actions {
    pub(crate) fn new(snapshot: Option<&'static [u8]>, setup: &Setup) -> Actions {
        Actions {
            snapshot,
            heap_mb: setup.heap_mb,
            initial_heap_mb: setup.initial_heap_mb,
            next: None,
        }
    }

    /// Makes the next realm, before anyone waits for it.
    pub(crate) fn prepare(&mut self) {
        // What fails here fails again, and is told, when the realm is needed.
        self.next = self.make().ok();
    }

    fn make(&self) -> std::io::Result<Prepared> {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = tokio.enter();
        let runtime = self.runtime();
        drop(entered);
        Ok(Prepared { runtime, tokio })
    }

    fn runtime(&self) -> JsRuntime {
        let mb = |n: u64| {
            usize::try_from(n)
                .unwrap_or(usize::MAX)
                .saturating_mul(1024 * 1024)
        };
        let params = v8::CreateParams::default()
            .heap_limits(mb(self.initial_heap_mb), mb(self.heap_mb))
            .allow_atomics_wait(false)
            .array_buffer_allocator(memory::allocator(mb(self.heap_mb)));
        let mut runtime = JsRuntime::new(RuntimeOptions {
            extensions: match self.snapshot {
                Some(_) => declared().into(),
                None => extensions(),
            },
            startup_snapshot: self.snapshot,
            create_params: Some(params),
            ..Default::default()
        });
        runtime.op_state().borrow_mut().put(egress::permissions());
        let isolate = runtime.v8_isolate();
        isolate.add_near_heap_limit_callback(memory::near_heap_limit, std::ptr::null_mut());
        isolate.set_oom_error_handler(memory::out_of_memory);
        isolate.set_host_import_module_dynamically_callback(dynamic_import);
        isolate.set_host_import_module_with_phase_dynamically_callback(phased_import);
        if cfg!(feature = "quickjs") {
            deno_core::scope!(scope, &mut runtime);
            give_texts(scope);
        }
        runtime
    }

    /// Runs an action.
    pub(crate) fn run(&mut self, call: &Call<'_>) -> Result<String, JsFailure> {
        let next = match self.next.take() {
            Some(next) => Ok(next),
            None => self.make(),
        };
        let Prepared { mut runtime, tokio } = next
            .map_err(|error| failure::plain(format!("Uncaught Error: no event loop: {error}")))?;
        egress::forget();
        session::with(|session| session.frames.push(Frame::new(&call.import)));
        let result = tokio.block_on(async {
            let result = run_in(&mut runtime, call).await;
            // What the frame holds of the isolate goes before it.
            session::with(|session| session.frames.pop());
            drop(runtime);
            result
        });
        // A lookup of a name that takes for ever is not waited for.
        tokio.shutdown_background();
        result
    }
}

async fn run_in(runtime: &mut JsRuntime, call: &Call<'_>) -> Result<String, JsFailure> {
    let promise = begin(runtime, call)?;
    let socket = session::with(|session| session.link.socket().as_fd().try_clone_to_owned());
    let no_loop = |error: &dyn std::fmt::Display| {
        failure::plain(format!("Uncaught Error: no event loop: {error}"))
    };
    let socket = socket.map_err(|error| no_loop(&error))?;
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped, and `AsyncFd` owns it.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(|error| no_loop(&error))?;
    let mut turn = Turn {
        runtime,
        promise,
        socket,
        waiting: HashMap::new(),
        parked: false,
    };
    poll_fn(|cx| turn.poll(cx)).await
}

/// Imports the module and calls the function.
fn begin(runtime: &mut JsRuntime, call: &Call<'_>) -> Result<v8::Global<v8::Promise>, JsFailure> {
    deno_core::scope!(scope, runtime);
    v8::tc_scope!(let scope, scope);
    realm::take_away(scope);
    if realm::install_host(scope).is_none() {
        return Err(invoke::thrown(scope));
    }
    let namespace = match modules::import(scope, call.module) {
        Ok(namespace) => namespace,
        Err(ImportError::Refused(message)) => {
            return Err(failure::plain(format!("Uncaught Error: {message}")));
        }
        Err(ImportError::Thrown) => return Err(invoke::thrown(scope)),
    };
    session::frame(|frame| frame.begin(Times::new(&call.seed, call.now_ms)));
    match invoke::begin(scope, namespace, call) {
        Some(Ok(promise)) => {
            promise.mark_as_handled();
            Ok(v8::Global::new(scope, promise))
        }
        Some(Err(message)) => Err(failure::plain(message)),
        None => Err(invoke::thrown(scope)),
    }
}

/// The state of a running action.
struct Turn<'a> {
    runtime: &'a mut JsRuntime,
    promise: v8::Global<v8::Promise>,
    socket: AsyncFd<OwnedFd>,
    /// Syscalls that were sent.
    waiting: HashMap<u32, Pending>,
    parked: bool,
}

impl Turn<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<String, JsFailure>> {
        if std::mem::take(&mut self.parked) {
            session::with(|session| session.resume());
        }
        loop {
            let heard = self.deliver(cx);
            let idle = match self
                .runtime
                .poll_event_loop(cx, PollEventLoopOptions::default())
            {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(self.failed(error)),
                Poll::Pending => false,
            };
            let asked = self.ask();
            if let Some(result) = self.settled() {
                return Poll::Ready(result);
            }
            if heard || asked {
                continue;
            }
            if idle && self.waiting.is_empty() {
                let text = "Uncaught Error: Returned promise will never resolve";
                return Poll::Ready(Err(failure::plain(text)));
            }
            session::with(|session| session.link.send(&FromWorker::Park));
            self.parked = true;
            return Poll::Pending;
        }
    }

    /// Takes the answers that came. `true` if there were any.
    fn deliver(&mut self, cx: &mut Context<'_>) -> bool {
        while let Poll::Ready(Ok(mut ready)) = self.socket.poll_read_ready(cx) {
            if !session::with(|session| session.link.fill()) {
                ready.clear_ready();
            }
        }
        let replies = session::with(|session| session.take_replies());
        let any = !replies.is_empty();
        for (call, reply) in replies {
            if let Some(pending) = self.waiting.remove(&call) {
                deno_core::scope!(scope, self.runtime);
                let reply = match reply {
                    Reply::Run(_) => unknown(&pending.op),
                    reply => reply,
                };
                invoke::deliver(scope, &pending, reply);
                scope.perform_microtask_checkpoint();
            }
        }
        any
    }

    /// Sends syscalls that wait, as many as may run at once. `true` if there were any.
    fn ask(&mut self) -> bool {
        let mut any = false;
        while self.waiting.len() < AT_ONCE
            && let Some(Some(pending)) = session::frame(|frame| frame.pending.pop_front())
        {
            let call = session::with(|session| {
                let call = session.call();
                session.link.send(&FromWorker::Syscall {
                    call,
                    op: pending.op.clone(),
                    args: pending.args.clone(),
                    urgent: false,
                });
                call
            });
            self.waiting.insert(call, pending);
            any = true;
        }
        any
    }

    fn settled(&mut self) -> Option<Result<String, JsFailure>> {
        deno_core::scope!(scope, self.runtime);
        let promise = v8::Local::new(scope, &self.promise);
        match promise.state() {
            v8::PromiseState::Pending => None,
            v8::PromiseState::Fulfilled => {
                let value = promise.result(scope);
                Some(invoke::result(scope, value))
            }
            v8::PromiseState::Rejected => {
                let reason = promise.result(scope);
                Some(Err(failure::of(scope, reason)))
            }
        }
    }

    /// What the event loop failed with: a rejection that nobody handled.
    fn failed(&mut self, error: deno_core::error::CoreError) -> Result<String, JsFailure> {
        if let Some(result) = self.settled() {
            return result;
        }
        let deno_core::error::CoreErrorKind::Js(js) = error.as_kind() else {
            return Err(failure::plain(format!("Uncaught Error: {error}")));
        };
        let stack = js.stack.clone().unwrap_or_default();
        let mut message = js
            .exception_message
            .replacen("Uncaught (in promise)", "Uncaught", 1);
        failure::clip(&mut message);
        Err(JsFailure {
            message,
            stack: session::with(|session| session.maps.stack(&stack)),
            data: None,
        })
    }
}

/// Lets deno_core have our texts for what is thrown and is no error. Of what has none (a symbol, an object without a
/// prototype) QuickJS makes no message, and deno_core would end the process looking for one.
fn give_texts(scope: &mut v8::PinScope<'_, '_>) -> Option<()> {
    let source = "(text) => Deno.core.ops.op_set_format_exception_callback(text)";
    let set = realm::evaluate(scope, "texts.js", source)?;
    let set = v8::Local::<v8::Function>::try_from(set).ok()?;
    let text = v8::Function::new(scope, failure::text)?;
    let undefined = v8::undefined(scope).into();
    set.call(scope, undefined, &[text.into()]).map(drop)
}

fn unknown(op: &str) -> Reply {
    Reply::Error {
        message: format!("Unknown async operation {op}"),
        data: None,
    }
}

/// `import()` of a deployed module (convex.md 5.1).
fn dynamic_import<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _: v8::Local<'s, v8::Data>,
    referrer: v8::Local<'s, v8::Value>,
    specifier: v8::Local<'s, v8::String>,
    _: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    let resolver = v8::PromiseResolver::new(scope)?;
    let referrer = referrer.to_rust_string_lossy(scope);
    let specifier = specifier.to_rust_string_lossy(scope);
    v8::tc_scope!(let scope, scope);
    match modules::import_from(scope, &specifier, &referrer) {
        Ok(namespace) => resolver.resolve(scope, namespace.into())?,
        Err(ImportError::Thrown) => {
            let exception = scope.exception()?;
            scope.reset();
            resolver.reject(scope, exception)?
        }
        Err(ImportError::Refused(message)) => {
            let message = v8::String::new(scope, &message)?;
            let error = v8::Exception::type_error(scope, message);
            resolver.reject(scope, error)?
        }
    };
    Some(resolver.get_promise(scope))
}

/// The same; V8 asks here when the import has a phase, or always.
fn phased_import<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    options: v8::Local<'s, v8::Data>,
    referrer: v8::Local<'s, v8::Value>,
    specifier: v8::Local<'s, v8::String>,
    _: v8::ModuleImportPhase,
    attributes: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    dynamic_import(scope, options, referrer, specifier, attributes)
}

#[cfg(test)]
mod tests {
    use super::extensions;

    #[test]
    fn the_binary_needs_no_file_of_the_machine_that_built_it() {
        let extensions = extensions();
        let files = extensions.iter().flat_map(|extension| {
            let eager = extension.js_files.iter().chain(&*extension.esm_files);
            let lazy = extension.lazy_loaded_js_files.iter();
            eager.chain(lazy.chain(&*extension.lazy_loaded_esm_files))
        });
        let files: Vec<_> = files.collect();
        assert!(files.len() > 30, "{}", files.len());
        let outside: Vec<_> = files
            .iter()
            .filter(|file| !file.is_runtime_loadable())
            .collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
}
