//! Budgets of tenants: queues, turns, nesting, and calls that call.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nimbus_runtime::{
    Answer, Code, Host, Invocation, JsFailure, Nesting, RunError, Runtime, SyscallError, UdfKind,
};
use tokio::sync::Semaphore;

use crate::support::{Table, call, code, ending, of, runtime_with, until};

/// A host whose syscall `call` runs another function of the bundle for the one that asks.
struct Caller {
    runtime: Runtime,
    code: Arc<Code>,
    nesting: Mutex<Option<Nesting>>,
}

impl Caller {
    fn new(runtime: &Runtime, code: &Arc<Code>) -> Caller {
        Caller {
            runtime: runtime.clone(),
            code: code.clone(),
            nesting: Mutex::new(None),
        }
    }

    async fn call(&self, args: &str) -> Result<Answer, SyscallError> {
        let asked: serde_json::Value = serde_json::from_str(args).unwrap();
        let kind = serde_json::from_value(asked["kind"].clone()).unwrap();
        let invocation = Invocation {
            args: format!("[{}]", asked["args"]),
            nesting: *self.nesting.lock().unwrap(),
            ..call(&self.code, kind, asked["name"].as_str().unwrap())
        };
        let host = Caller::new(&self.runtime, &self.code);
        match self.runtime.run(invocation, &host).await {
            Ok(outcome) => outcome
                .result
                .map(Answer::Json)
                .map_err(|failure| SyscallError::User {
                    message: failure.message,
                    data: failure.data,
                }),
            Err(error) => Err(SyscallError::user(error.to_string())),
        }
    }
}

impl Host for Caller {
    fn syscall<'a>(
        &'a self,
        op: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        Box::pin(async move {
            match op {
                "call" => self.call(args).await,
                "nimbus/env" => Ok(Answer::Json("null".into())),
                _ => Ok(Answer::Json(args.to_owned())),
            }
        })
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        result: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        let answer = result.map_err(|failure| SyscallError::user(failure.message));
        Box::pin(std::future::ready(answer))
    }

    fn nesting(&self, nesting: Nesting) {
        *self.nesting.lock().unwrap() = Some(nesting);
    }
}

#[tokio::test]
async fn with_one_instance_an_action_calls_an_action_that_calls_a_mutation() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(1);
        config.max_active_per_tenant = None;
        config.max_in_flight_per_tenant = None;
        config.max_queued_per_tenant = None;
    });
    let code = code(
        "const run = (kind, name, args) => ask('call', { kind, name, args });
export const f = action(async () => 1 + await run('action', 'inner', { n: 1 }));
export const inner = action(async ({ n }) => (await Promise.all([0, 1, 2].map((i) => run('mutation', 'last', { n: n + i })))).reduce((a, b) => a + b));
export const last = mutation(async ({ n }) => (await ask('echo', { n: 10 * n })).n);",
    );
    for _ in 0..3 {
        let host = Caller::new(&runtime, &code);
        let result = runtime.run(call(&code, UdfKind::Action, "f"), &host).await;
        assert_eq!(ending(&result), "value 61");
    }
    let metrics = runtime.metrics();
    assert_eq!(
        (metrics.active_runtime_instances, metrics.queued_invocations),
        (0, 0)
    );
    assert_eq!(metrics.nested_local_dispatches, 12);
}

#[tokio::test]
async fn calls_within_calls_end_at_the_limit() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(1);
        config.max_active_per_tenant = Some(1);
        config.max_nested_calls = 3;
    });
    let code = code(
        "export const f = action(async ({ n = 0 }) => {
    try { return await ask('call', { kind: 'action', name: 'f', args: { n: n + 1 } }); } catch (e) { return [n, e.message]; }
});",
    );
    let host = Caller::new(&runtime, &code);
    let result = runtime.run(call(&code, UdfKind::Action, "f"), &host).await;
    assert_eq!(
        ending(&result),
        r#"value [3,"functions call one another more than 3 deep"]"#
    );
    assert_eq!(runtime.metrics().active_runtime_instances, 0);
}

/// A host whose answers wait for leave.
#[derive(Default)]
struct Gate {
    asked: AtomicUsize,
    leave: Option<Arc<Semaphore>>,
}

impl Host for Gate {
    fn syscall<'a>(
        &'a self,
        _: &'a str,
        args: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if let Some(leave) = &self.leave {
                leave.acquire().await.unwrap().forget();
            }
            Ok(Answer::Json(args.to_owned()))
        })
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        _: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        Box::pin(std::future::ready(Err(SyscallError::user(
            "nothing runs another",
        ))))
    }

    fn nesting(&self, _: Nesting) {}
}

const ASKS: &str = "export const f = query(async () => { await ask('x'); return 1; });";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_queue_the_answer_is_no_and_other_tenants_are_served() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(2);
        config.max_active_per_tenant = Some(1);
        config.max_in_flight_per_tenant = Some(1);
        config.max_queued_per_tenant = Some(3);
    });
    let code = code(ASKS);
    let leave = Arc::new(Semaphore::new(0));
    let host = Arc::new(Gate {
        leave: Some(leave.clone()),
        ..Gate::default()
    });
    let start = || {
        let (runtime, code, host) = (runtime.clone(), code.clone(), host.clone());
        tokio::spawn(async move { runtime.run(call(&code, UdfKind::Query, "f"), &*host).await })
    };
    let mut running = vec![start()];
    until(|| host.asked.load(Ordering::Relaxed) == 1).await;
    for queued in 1..=3 {
        running.push(start());
        until(|| runtime.metrics().queued_invocations == queued).await;
    }
    for refused in 1..=10 {
        match runtime.run(call(&code, UdfKind::Query, "f"), &*host).await {
            Err(RunError::QueueFull { retry_after }) => assert!(retry_after > Duration::ZERO),
            other => panic!("{other:?}"),
        }
        assert_eq!(runtime.metrics().rejected_invocations, refused);
        let other = of("other", call(&code, UdfKind::Query, "f"));
        assert_eq!(
            ending(&runtime.run(other, &Gate::default()).await),
            "value 1"
        );
    }
    leave.add_permits(4);
    for task in running {
        assert_eq!(ending(&task.await.unwrap()), "value 1");
    }
    assert_eq!(host.asked.load(Ordering::Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_a_tenant_ends_its_calls_and_nobody_elses() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(4);
        config.max_active_per_tenant = Some(2);
        config.max_in_flight_per_tenant = Some(2);
    });
    let code_of = |name: &str| {
        code(&format!(
            "export const f = query(async () => {{ await ask('x'); return '{name}'; }}); export const g = query(async () => {{ await ask('x'); for (;;); }});"
        ))
    };
    let (ours, theirs) = (code_of("acme"), code_of("other"));
    let leave = Arc::new(Semaphore::new(0));
    let host = Arc::new(Gate {
        leave: Some(leave.clone()),
        ..Gate::default()
    });
    let start = |invocation: Invocation| {
        let (runtime, host) = (runtime.clone(), host.clone());
        tokio::spawn(async move { runtime.run(invocation, &*host).await })
    };
    // Two that run, and three in the queue; then two of another tenant.
    let mut stopped: Vec<_> = (0..5)
        .map(|_| start(call(&ours, UdfKind::Query, "f")))
        .collect();
    until(|| host.asked.load(Ordering::Relaxed) == 2 && runtime.metrics().queued_invocations == 3)
        .await;
    let others: Vec<_> = (0..2)
        .map(|_| start(of("other", call(&theirs, UdfKind::Query, "f"))))
        .collect();
    until(|| host.asked.load(Ordering::Relaxed) == 4).await;
    runtime.stop_tenant(&"acme".parse().unwrap());
    for task in stopped.drain(..) {
        let result = task.await.unwrap();
        assert!(matches!(result, Err(RunError::TenantStopped)), "{result:?}");
    }
    let refused = runtime
        .run(call(&ours, UdfKind::Query, "f"), &Gate::default())
        .await;
    assert!(
        matches!(refused, Err(RunError::TenantStopped)),
        "{refused:?}"
    );
    leave.add_permits(2);
    for task in others {
        assert_eq!(ending(&task.await.unwrap()), r#"value "other""#);
    }
    // The same while it computes.
    runtime.allow_tenant(&"acme".parse().unwrap());
    leave.add_permits(1);
    let looping = start(call(&ours, UdfKind::Query, "g"));
    until(|| host.asked.load(Ordering::Relaxed) == 5).await;
    runtime.stop_tenant(&"acme".parse().unwrap());
    let result = looping.await.unwrap();
    assert!(
        matches!(
            result,
            Err(RunError::TenantStopped | RunError::UserTimeout { .. })
        ),
        "{result:?}"
    );
    runtime.allow_tenant(&"acme".parse().unwrap());
    let again = runtime
        .run(call(&ours, UdfKind::Query, "f"), &Gate::default())
        .await;
    assert_eq!(ending(&again), r#"value "acme""#);
}

#[tokio::test]
async fn closing_ends_what_runs_and_refuses_more() {
    let runtime = runtime_with(|_| {});
    let code = code(ASKS);
    let host = Arc::new(Gate {
        leave: Some(Arc::new(Semaphore::new(0))),
        ..Gate::default()
    });
    let running = tokio::spawn({
        let (runtime, code, host) = (runtime.clone(), code.clone(), host.clone());
        async move { runtime.run(call(&code, UdfKind::Query, "f"), &*host).await }
    });
    until(|| host.asked.load(Ordering::Relaxed) == 1).await;
    runtime.close();
    let result = running.await.unwrap();
    assert!(matches!(result, Err(RunError::ShuttingDown)), "{result:?}");
    let refused = runtime
        .run(call(&code, UdfKind::Query, "f"), &Table::default())
        .await;
    assert!(
        matches!(refused, Err(RunError::ShuttingDown)),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_that_multiply_are_bounded() {
    let runtime = runtime_with(|config| config.max_nested_calls = 12);
    let code = code(
        "const run = () => ask('call', { kind: 'action', name: 'f', args: {} });
export const f = action(async () => {
    const all = await Promise.allSettled(Array.from({ length: 8 }, run));
    const refused = all.filter((one) => one.status === 'rejected' && one.reason.message.includes('more than 12'));
    return 1 + refused.length;
});",
    );
    let host = Caller::new(&runtime, &code);
    let outcome = runtime
        .run(call(&code, UdfKind::Action, "f"), &host)
        .await
        .unwrap();
    assert!(outcome.result.is_ok(), "{outcome:?}");
    let metrics = runtime.metrics();
    // Each call below the limit tried eight more, and the refused ones took no process.
    assert!(
        metrics.started_invocations >= 2 && metrics.lost_workers == 0,
        "{metrics:?}"
    );
    assert!(
        metrics.nested_local_dispatches > metrics.started_invocations,
        "{metrics:?}"
    );
}

#[tokio::test]
async fn the_environment_is_read_while_nested_calls_are_in_progress() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(1);
        config.max_active_per_tenant = Some(1);
    });
    let code = code(
        "export const f = action(async () => {
    const calls = Array.from({ length: 8 }, (_, n) => ask('call', { kind: 'query', name: 'g', args: { n } }));
    const seen = await new Promise((done) => setTimeout(() => done(process.env.X === undefined), 0));
    return [seen, (await Promise.all(calls)).length];
});
export const g = query(async ({ n }) => n);",
    );
    let host = Caller::new(&runtime, &code);
    let result = runtime.run(call(&code, UdfKind::Action, "f"), &host).await;
    assert_eq!(ending(&result), "value [true,8]");
}
