//! What goes between server and worker: amounts that fill the socket, workers that do not read, and what a call
//! leaves behind.

use std::time::Duration;

use futures_util::future::BoxFuture;
use nimbus_runtime::{Answer, Host, JsFailure, Nesting, RunError, SubCall, SyscallError, UdfKind};

use crate::support::{Table, bundle, call, code, ending, runtime, runtime_with};

/// A host whose answers to `big` are `bytes` long.
struct Big {
    bytes: usize,
}

impl Host for Big {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        let answer = match op {
            "big" => format!("\"{}\"", "x".repeat(self.bytes)),
            _ => args.to_owned(),
        };
        Box::pin(std::future::ready(Ok(Answer::Json(answer))))
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        _: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        unreachable!("no function runs another here")
    }

    fn nesting(&self, _: Nesting) {}
}

#[tokio::test]
async fn questions_and_answers_that_fill_the_socket_both_ways_pass() {
    let main = "
const body = 'y'.repeat(300_000);
const all = async () => (await Promise.all(Array.from({ length: 40 }, (_, i) => ask('big', { i, body })))).reduce((n, s) => n + s.length, 0);
export const m = mutation(all);
export const a = action(all);";
    let code = code(main);
    for (kind, name) in [(UdfKind::Mutation, "m"), (UdfKind::Action, "a")] {
        let host = Big { bytes: 500_000 };
        let result = runtime().run(call(&code, kind, name), &host).await;
        assert_eq!(ending(&result), "value 20000000", "{name}");
    }
}

#[tokio::test]
async fn a_worker_that_stops_reading_is_killed_like_any_other() {
    let code = code(
        "export const f = action(async () => { ask('big'); await new Promise((d) => setTimeout(d, 1)); for (;;); });",
    );
    let runtime = runtime_with(|config| config.timeout = Duration::from_secs(2));
    let host = Big { bytes: 10_000_000 };
    let result = runtime.run(call(&code, UdfKind::Action, "f"), &host).await;
    assert!(
        matches!(result, Err(RunError::WallTimeout { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn what_a_call_leaves_to_be_done_does_not_run_in_the_next() {
    let code = code("
export const f = query(async () => 1);
f.invokeQuery = () => {
    const again = () => Promise.resolve().then(() => { console.log('from before'); Promise.reject(new Error('left')); ask('echo').catch((e) => console.log(e.message)); });
    again();
    Promise.resolve().then(again);
    throw new Error('first');
};
export const g = query(async () => { await ask('echo'); return 'second'; });");
    let runtime = runtime_with(|config| config.worker_threads = Some(1));
    for _ in 0..5 {
        let first = runtime
            .run(call(&code, UdfKind::Query, "f"), &Table::default())
            .await;
        assert!(
            ending(&first).starts_with("thrown Uncaught Error: first"),
            "{first:?}"
        );
        let second = runtime
            .run(call(&code, UdfKind::Query, "g"), &Table::default())
            .await
            .unwrap();
        assert_eq!(second.result.as_deref(), Ok("\"second\""));
        assert!(second.log_lines.is_empty(), "{:?}", second.log_lines);
    }
    assert!(runtime.metrics().runtime_pool_hits >= 8);
}

#[tokio::test]
async fn what_an_inner_function_leaves_does_not_run_in_the_outer_ones_transaction() {
    let inner = SubCall {
        token: 1,
        kind: UdfKind::Query,
        module: "inner.js".into(),
        export: "f".into(),
        args: "[{}]".into(),
    };
    let code = bundle(&[
        (
            "main.js",
            "export const f = mutation(async () => { const r = []; try { await ask('1.0/runUdf'); } catch (e) { r.push(e.message); } await ask('echo', { mine: 1 }); return r; });",
        ),
        (
            "inner.js",
            "export const f = query(async () => 1); f.invokeQuery = () => { Promise.resolve().then(() => ask('1.0/insert', { theirs: 1 })); throw new Error('inner'); };",
        ),
    ]);
    let host = Table::running(inner);
    let result = runtime()
        .run(call(&code, UdfKind::Mutation, "f"), &host)
        .await;
    assert_eq!(ending(&result), "value [\"Uncaught Error: inner\"]");
    let asked: Vec<String> = host
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|(op, _)| op.clone())
        .collect();
    assert_eq!(asked, ["1.0/runUdf", "echo"]);
}
