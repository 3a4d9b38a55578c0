//! A runtime with workers, bundles written against the ABI by hand, and a host that answers from a table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use nimbus_core::TenantId;
use nimbus_runtime::{
    Answer, CallBounds, Code, EGRESS, EgressGrants, Host, Invocation, JsFailure, Module, Nesting,
    Outcome, RunError, Runtime, RuntimeConfig, SubCall, SyscallError, UdfKind, WorkerCommand,
};

/// What `convex/server` wraps functions with, in short.
const LIBRARY: &str = r#"
const text = (value) => JSON.stringify(value === undefined ? null : value);
const wrap = (flag, invoker) => (handler) => {
    const f = () => {};
    f[flag] = true;
    f.isPublic = true;
    f._handler = handler;
    f[invoker] = invoker === "invokeAction"
        ? async (id, args) => text(await handler(...JSON.parse(args)))
        : async (args) => text(await handler(...JSON.parse(args)));
    f.exportArgs = () => '{"type":"any"}';
    f.exportReturns = () => "null";
    return f;
};
export const query = wrap("isQuery", "invokeQuery");
export const mutation = wrap("isMutation", "invokeMutation");
export const action = wrap("isAction", "invokeAction");
export const ask = async (op, args = {}) => JSON.parse(await Convex.asyncSyscall(op, JSON.stringify(args)));
"#;

/// What each engine gives, where they differ; docs/runtime.md, "Engines", lists it.
pub const fn per_engine<T: Copy>(v8: T, quickjs: T) -> T {
    match cfg!(feature = "quickjs") {
        true => quickjs,
        false => v8,
    }
}

/// The command of the worker that was built beside the tests.
pub fn worker() -> WorkerCommand {
    WorkerCommand {
        program: option_env!("CARGO_BIN_EXE_nimbus-runtime-worker")
            .unwrap_or("")
            .into(),
        args: Vec::new(),
    }
}

/// A runtime with room for the machine's tests.
pub fn runtime() -> Runtime {
    runtime_with(|_| {})
}

pub fn runtime_with(change: impl FnOnce(&mut RuntimeConfig)) -> Runtime {
    let mut config = RuntimeConfig::new(worker());
    config.max_instances = Some(2);
    config.max_active_per_tenant = Some(2);
    config.max_in_flight_per_tenant = Some(8);
    config.max_queued_per_tenant = Some(64);
    change(&mut config);
    Runtime::new(config)
}

/// A bundle of `main.js`, which imports everything from the library.
pub fn code(main: &str) -> Arc<Code> {
    bundle(&[("main.js", main)])
}

/// A bundle of these files; each begins with the import of the library.
pub fn bundle(files: &[(&str, &str)]) -> Arc<Code> {
    let file = |source: &str| Module {
        source: source.into(),
        source_map: None,
    };
    let mut modules = BTreeMap::from([("_deps/lib.js".to_owned(), file(LIBRARY))]);
    for (path, source) in files {
        let up = "../".repeat(path.matches('/').count());
        let from = if up.is_empty() { "./" } else { &up };
        let head =
            format!("import {{ query, mutation, action, ask }} from \"{from}_deps/lib.js\";\n");
        modules.insert((*path).to_owned(), file(&format!("{head}{source}")));
    }
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Arc::new(Code {
        id: format!("bundle-{number}").into(),
        modules,
        import_seed: [7; 32],
        import_time_ms: 1_700_000_000_000.0,
    })
}

/// A host that answers `get` with its argument, and whatever it was taught.
#[derive(Default)]
pub struct Table {
    pub answers: BTreeMap<String, Result<Answer, (String, Option<String>)>>,
    pub asked: Mutex<Vec<(String, String)>>,
    pub finished: Mutex<Vec<Result<String, JsFailure>>>,
    pub environment: BTreeMap<String, String>,
    pub egress: EgressGrants,
}

impl Table {
    pub fn answering(op: &str, json: &str) -> Table {
        let answer = Ok(Answer::Json(json.to_owned()));
        Table {
            answers: BTreeMap::from([(op.to_owned(), answer)]),
            ..Table::default()
        }
    }

    pub fn failing(op: &str, message: &str, data: Option<&str>) -> Table {
        let answer = Err((message.to_owned(), data.map(str::to_owned)));
        Table {
            answers: BTreeMap::from([(op.to_owned(), answer)]),
            ..Table::default()
        }
    }

    pub fn running(call: SubCall) -> Table {
        Table {
            answers: BTreeMap::from([("1.0/runUdf".to_owned(), Ok(Answer::Run(call)))]),
            ..Table::default()
        }
    }
}

impl Host for Table {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        self.asked
            .lock()
            .unwrap()
            .push((op.to_owned(), args.to_owned()));
        let answer = match (self.answers.get(op), op) {
            (Some(Ok(answer)), _) => Ok(answer.clone()),
            (Some(Err((message, data))), _) => Err(SyscallError::User {
                message: message.clone(),
                data: data.clone(),
            }),
            (None, "nimbus/env") => {
                let name: BTreeMap<String, String> = serde_json::from_str(args).unwrap();
                let value = self.environment.get(&name["name"]);
                Ok(Answer::Json(serde_json::to_string(&value).unwrap()))
            }
            (None, EGRESS) => {
                let leave = self.egress.leave(&serde_json::from_str(args).unwrap());
                Ok(Answer::Json(serde_json::to_string(&leave).unwrap()))
            }
            (None, "echo") => Ok(Answer::Json(args.to_owned())),
            (None, "system") => Err(SyscallError::System("the disk is gone".into())),
            (None, _) => Err(SyscallError::user(format!("Unknown async operation {op}"))),
        };
        Box::pin(std::future::ready(answer))
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        result: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        self.finished.lock().unwrap().push(result.clone());
        let answer = result.map_err(|failure| SyscallError::User {
            message: failure.message,
            data: failure.data,
        });
        Box::pin(std::future::ready(answer))
    }

    fn nesting(&self, _: Nesting) {}
}

pub fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

/// An invocation of `main.js:export` without arguments.
pub fn call(code: &Arc<Code>, kind: UdfKind, export: &str) -> Invocation {
    Invocation {
        tenant: tenant(),
        code: code.clone(),
        kind,
        module: "main.js".into(),
        export: export.into(),
        args: "[{}]".into(),
        nesting: None,
        bounds: CallBounds::default(),
    }
}

/// Runs a query of a bundle whose main file is `main`, with its own runtime.
pub async fn query(main: &str, host: &dyn Host) -> Result<Outcome, RunError> {
    let code = code(main);
    runtime().run(call(&code, UdfKind::Query, "f"), host).await
}

/// The value of a query.
pub async fn value(main: &str) -> serde_json::Value {
    let outcome = query(main, &Table::default()).await.unwrap();
    match outcome.result {
        Ok(json) => serde_json::from_str(&json).unwrap(),
        Err(failure) => panic!("{failure}"),
    }
}

/// What a query threw.
pub async fn failure(main: &str, host: &dyn Host) -> JsFailure {
    query(main, host).await.unwrap().result.unwrap_err()
}

/// The same invocation for another tenant.
pub fn of(name: &str, invocation: Invocation) -> Invocation {
    Invocation {
        tenant: name.parse().unwrap(),
        ..invocation
    }
}

/// How an invocation ended, in a word or two: `value 1`, `thrown …`, `timeout`, `memory`, or what else there is.
pub fn ending(result: &Result<Outcome, RunError>) -> String {
    match result {
        Ok(outcome) => match &outcome.result {
            Ok(json) => format!("value {}", json.chars().take(200).collect::<String>()),
            Err(failure) => format!("thrown {}", failure.message),
        },
        Err(RunError::UserTimeout { .. } | RunError::WallTimeout { .. }) => "timeout".to_owned(),
        Err(RunError::OutOfMemory { .. }) => "memory".to_owned(),
        Err(other) => format!("{other:?}"),
    }
}

/// Processes whose parent is `parent`, that have not ended.
pub fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap();
    let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| state(*pid).is_some_and(|(state, of)| of == parent && !"ZX".contains(state)))
        .collect()
}

/// A process's state letter and its parent (proc(5)); `None` when there is no such process.
pub fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((state, words.next()?.parse().ok()?))
}

/// All of a process has ended: its first thread can be a zombie while others still hold the sockets.
pub fn is_dead(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state(pid).is_none_or(|(state, _)| state == 'Z' && threads <= 1)
}

/// Waits until `holds`; a test's own time limit is the only one.
pub async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
