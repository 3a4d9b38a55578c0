//! Functions that mean harm: each is ended or contained, the server's process lives, the slot serves again, and what
//! another tenant calls meanwhile succeeds. Times are measured and printed, and decide nothing.
//!
//! `NIMBUS_BOMB_RUNS` (3) is how often each goes off; `cargo xtask soak functions` is the long form.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nimbus_runtime::{Code, Runtime, UdfKind};

use crate::support::{Table, bundle, call, code, ending, of, per_engine, runtime_with};

/// What a bomb may end with.
#[derive(Clone, Copy)]
enum Ends {
    /// By a budget: CPU time, time on the wall or memory.
    Stopped,
    /// So, or by an error that the function is given.
    StoppedOr(&'static str),
    /// By an error that the function is given.
    Thrown(&'static str),
}

use Ends::{Stopped, StoppedOr, Thrown};

type Bomb = (&'static str, Ends, &'static str);

const ALLOCATORS: [Bomb; 18] = [
    (
        "arguments that nobody reads",
        Stopped,
        "const s = JSON.stringify('x'.repeat(1e6)); for (;;) Convex.asyncSyscall('echo', s);",
    ),
    (
        "arrays filled",
        Stopped,
        "let a = []; for (;;) a.push(new Array(1000).fill(1.5));",
    ),
    (
        "arrays joined",
        StoppedOr("Invalid string length"),
        "let a = ['x'.repeat(1000)]; for (;;) a = [a.join(a[0]), ...a];",
    ),
    (
        "text doubled",
        StoppedOr("Invalid string length"),
        "let s = 'ab'; const all = []; for (;;) { s = s + s; all.push([...s.slice(0, 1e6)]); }",
    ),
    (
        "text repeated",
        StoppedOr("Invalid string length"),
        "let n = 1e6; const all = []; for (;;) all.push('x'.repeat(n++).split('x'));",
    ),
    (
        "JSON",
        StoppedOr("Invalid string length"),
        "let o = { a: 1 }; for (;;) { o = { o, s: JSON.stringify(o) }; }",
    ),
    (
        "typed arrays",
        StoppedOr("Array buffer allocation failed"),
        "const all = []; for (;;) all.push(new Float64Array(1e5).fill(1));",
    ),
    (
        "array buffers, errors caught",
        Stopped,
        "const all = []; for (;;) try { all.push(new ArrayBuffer(1 << 20)); } catch { }",
    ),
    (
        "a buffer that grows",
        StoppedOr(per_engine("Out of memory", "array buffer is not resizable")),
        "const b = new ArrayBuffer(8, { maxByteLength: 2 ** 33 }); for (let n = 1024; ; n *= 2) b.resize(n);",
    ),
    (
        "maps",
        Stopped,
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, { i });",
    ),
    (
        "sets of text",
        Stopped,
        "const m = new Set(); for (let i = 0; ; i++) m.add('key' + i);",
    ),
    (
        "captures",
        Stopped,
        "const all = []; const t = 'ab'.repeat(1e4); for (;;) all.push([...t.matchAll(/(a)(b)/g)]);",
    ),
    (
        "spread",
        StoppedOr("Invalid array length"),
        "let a = [1, 2, 3]; for (;;) a = [...a, ...a];",
    ),
    (
        "big integers",
        StoppedOr(TOO_BIG),
        "let n = 3n; const all = []; for (;;) { n = n * n; all.push(n); }",
    ),
    (
        "closures",
        Stopped,
        "let f = () => 0; const all = []; for (;;) { const g = f, a = new Array(100); f = () => [g, a]; all.push(f); }",
    ),
    (
        "promises that wait",
        Stopped,
        "const all = []; for (;;) all.push((async () => { await new Promise(() => {}); })());",
    ),
    (
        "rejections",
        Stopped,
        "for (;;) Promise.reject(new Error('x'));",
    ),
    (
        "WASM memory",
        StoppedOr("WebAssembly.Memory"),
        "const all = []; for (;;) { const m = new WebAssembly.Memory({ initial: 256 }); new Uint8Array(m.buffer).fill(1); all.push(m); }",
    ),
];

/// What a number beyond the engine's limit is refused with.
const TOO_BIG: &str = per_engine(
    "Maximum BigInt size exceeded",
    "BigInt is too large to allocate",
);

const LOOPS: [Bomb; 16] = [
    ("a loop", Stopped, "for (;;);"),
    ("a loop after an answer", Stopped, "await ask('echo'); for (;;);"),
    ("a loop that catches", Stopped, "for (;;) try { throw new Error('x'); } catch {} finally { continue; }"),
    ("recursion", Thrown("Maximum call stack size exceeded"), "const f = () => f() + 1; return f();"),
    ("recursion that catches", Stopped, "const f = () => { for (;;) try { f(); } catch {} }; f();"),
    ("a regular expression", Stopped, "return /^(a+)+$/.test('a'.repeat(60) + 'b');"),
    ("a replacement", Stopped, "return 'a'.repeat(3e5).replace(/a*b/g, '').length;"),
    ("a sort", Stopped, "const a = Array.from({ length: 3e6 }, (_, i) => (i * 7919) % 3000017); return a.sort((x, y) => y - x).length;"),
    ("microtasks", Stopped, "const again = () => Promise.resolve().then(again); again(); await new Promise(() => {});"),
    ("queued microtasks", Stopped, "const again = () => queueMicrotask(again); again(); await new Promise(() => {});"),
    ("big powers", StoppedOr(TOO_BIG), "let n = 7n; for (;;) n = (n ** 1000n) % (2n ** 100000n) + 1n;"),
    ("a generator", Stopped, "function* g() { for (;;) yield 1; } return [...(function* () { for (const x of g()) if (x > 1) yield x; })()];"),
    ("nested JSON", StoppedOr("Maximum call stack size exceeded"), "for (;;) JSON.parse('['.repeat(1e6) + ']'.repeat(1e6));"),
    ("made code", Stopped, "new Function('for (;;);')();"),
    ("evaluated code", Stopped, "(0, eval)('for (let i = 0; ; i++) { eval(\"function f\" + i + \"() { return \" + i + \" }\"); }');"),
    // (module (func (export "f") (loop (br 0))))
    ("a WASM loop", Stopped, "const m = new WebAssembly.Module(new Uint8Array([0,97,115,109,1,0,0,0,1,4,1,96,0,0,3,2,1,0,7,5,1,1,102,0,0,10,9,1,7,0,3,64,12,0,11,11]));
        new WebAssembly.Instance(m).exports.f();"),
];

/// Code that runs while the engine of ours looks at what a function gives.
const TRAPS: [Bomb; 12] = [
    ("toJSON", Stopped, "return { toJSON() { for (;;); } };"),
    (
        "a getter of the result",
        Stopped,
        "return { get x() { for (;;); } };",
    ),
    (
        "a proxy as the result",
        Stopped,
        "return new Proxy({}, { ownKeys() { for (;;); } });",
    ),
    (
        "the stack of an error",
        Stopped,
        "const e = new Error('x'); Object.defineProperty(e, 'stack', { get() { for (;;); } }); throw e;",
    ),
    (
        "the data of an error",
        Stopped,
        "const e = new Error('x'); e.ConvexErrorSymbol = Symbol.for('ConvexError'); Object.defineProperty(e, e.ConvexErrorSymbol, { get() { for (;;); } }); throw e;",
    ),
    (
        "an error that is a proxy",
        Stopped,
        "throw new Proxy(new Error('x'), { get() { for (;;); } });",
    ),
    (
        "prepareStackTrace",
        Stopped,
        "Error.prepareStackTrace = () => { for (;;); }; throw new Error('x');",
    ),
    (
        "toString of what is thrown",
        StoppedOr("[object Object]"),
        "throw { toString() { for (;;); } };",
    ),
    (
        "a proxy on the console",
        Stopped,
        "console.log(new Proxy({}, { ownKeys() { for (;;); } }));",
    ),
    (
        "a stack on the console",
        Stopped,
        "const e = new Error('x'); Object.defineProperty(e, 'stack', { get() { for (;;); } }); console.log(e);",
    ),
    (
        "the op of a syscall",
        Stopped,
        "await Convex.asyncSyscall({ toString() { for (;;); } }, '{}');",
    ),
    (
        "then of the result",
        Stopped,
        "return { then() { for (;;); } };",
    ),
];

/// Floods of what leaves the worker.
const FLOODS: [Bomb; 10] = [
    (
        "a huge result",
        StoppedOr("Function return value is too large"),
        "return 'x'.repeat(2 ** 28);",
    ),
    (
        "a deep result",
        StoppedOr("Maximum call stack size exceeded"),
        "let o = {}; for (let i = 0; i < 1e6; i++) o = { o }; return o;",
    ),
    ("log lines", Stopped, "for (;;) console.log('x');"),
    (
        "long log lines",
        Stopped,
        "const s = 'é'.repeat(1e6); for (;;) console.log(s, [s], { s });",
    ),
    (
        "a value of many on the console",
        Stopped,
        "const o = {}; for (let i = 0; i < 1e5; i++) o['k' + i] = { i }; for (;;) console.log(o);",
    ),
    (
        "syscalls that nobody awaits",
        Stopped,
        "for (;;) ask('echo');",
    ),
    ("syscalls", Stopped, "for (;;) await ask('echo');"),
    (
        "syscalls that wait",
        Stopped,
        "for (;;) try { Convex.syscall('echo', '{}'); } catch {}",
    ),
    (
        "a huge argument",
        StoppedOr("Invalid string length"),
        "for (let s = '\"x\"'; ; s += s) Convex.asyncSyscall('echo', s), await ask('echo', s);",
    ),
    (
        "variables",
        Stopped,
        "for (let i = 0; ; i++) process.env['K' + i];",
    ),
];

/// What an action can do beside. Its only budgets are memory and the time on the wall.
const ACTIONS: [Bomb; 7] = [
    ("a loop in an action", Stopped, "for (;;);"),
    ("timers", Stopped, "for (;;) setTimeout(() => {}, 1e9);"),
    (
        "a timer that comes again",
        Stopped,
        "setInterval(() => {}, 0); await new Promise(() => {});",
    ),
    (
        "blobs",
        Stopped,
        "const all = []; for (;;) all.push(new Blob([new Uint8Array(1 << 22).fill(1)]));",
    ),
    (
        "a stream",
        Stopped,
        "let c; new ReadableStream({ start(it) { c = it; } }); for (;;) c.enqueue(new Array(1000).fill(1.5));",
    ),
    ("syscalls of an action", Stopped, "for (;;) ask('echo');"),
    (
        "rejections of an action",
        StoppedOr("x"),
        "const all = []; for (;;) all.push(Promise.reject(new Error('x')));",
    ),
];

fn runs() -> usize {
    let given = std::env::var("NIMBUS_BOMB_RUNS").ok();
    given.map_or(3, |text| text.parse().unwrap())
}

fn fine() -> Arc<Code> {
    code("export const f = query(async () => (await ask('echo', { x: 1 })).x);")
}

/// Calls of another tenant, one after the other, until told to stop: how long each took, in ms.
async fn neighbour(runtime: Runtime, code: Arc<Code>, stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let result = runtime
            .run(
                of("other", call(&code, UdfKind::Query, "f")),
                &Table::default(),
            )
            .await;
        assert_eq!(ending(&result), "value 1", "another tenant was harmed");
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        tokio::task::yield_now().await;
    }
    times
}

fn percentile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let last = times.len().saturating_sub(1);
    times
        .get((last as f64 * part) as usize)
        .copied()
        .unwrap_or(0.0)
}

fn wrapped(kind: UdfKind, body: &str) -> Arc<Code> {
    let wrapper = kind.as_str();
    code(&format!(
        "export const f = {wrapper}(async () => {{ {body} }});"
    ))
}

/// Whether a bomb ended as it may.
fn holds(ends: Ends, ended: &str) -> bool {
    let stopped = ended == "timeout" || ended == "memory";
    // The other engine has its own words for the ends of memory and stack.
    let words = [
        "out of memory",
        "too large",
        "stack",
        "length",
        "allocation",
    ];
    let other = cfg!(feature = "quickjs") && words.iter().any(|word| ended.contains(word));
    let thrown = |text| ended.starts_with("thrown") && (ended.contains(text) || other);
    match ends {
        Stopped => stopped || other,
        StoppedOr(text) => stopped || thrown(text),
        Thrown(text) => thrown(text),
    }
}

/// Sets every bomb off as often as asked, beside calls of another tenant.
async fn set_off(kind: UdfKind, bombs: &[Bomb], budget: Duration, heap_mb: u64) {
    let runtime = runtime_with(|config| {
        config.max_active_per_tenant = Some(1);
        config.heap_mb = heap_mb;
        match kind {
            UdfKind::Action => config.timeout = budget,
            _ => config.user_cpu = budget,
        }
    });
    let fine = fine();
    let mut quiet = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let result = runtime
            .run(
                of("other", call(&fine, UdfKind::Query, "f")),
                &Table::default(),
            )
            .await;
        assert_eq!(ending(&result), "value 1");
        quiet.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn(neighbour(runtime.clone(), fine.clone(), stop.clone()));
    let mut wrong = Vec::new();
    for (name, ends, body) in bombs {
        let bomb = wrapped(kind, body);
        let (mut kills, mut serves) = (Vec::new(), Vec::new());
        let mut seen = String::new();
        for _ in 0..runs() {
            let start = Instant::now();
            let result = runtime.run(call(&bomb, kind, "f"), &Table::default()).await;
            kills.push((start.elapsed().as_secs_f64() - budget.as_secs_f64()) * 1000.0);
            seen = ending(&result);
            if !holds(*ends, &seen) {
                wrong.push(format!("{name}: {seen}"));
            }
            let start = Instant::now();
            let result = runtime
                .run(call(&fine, UdfKind::Query, "f"), &Table::default())
                .await;
            serves.push(start.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(ending(&result), "value 1", "after {name}");
        }
        let seen: String = seen.chars().take(60).collect();
        println!(
            "{name}: {seen}; budget to end p50 {:.0} max {:.0} ms; serves again p50 {:.0} max {:.0} ms",
            percentile(&mut kills, 0.5),
            percentile(&mut kills, 1.0),
            percentile(&mut serves, 0.5),
            percentile(&mut serves, 1.0),
        );
    }
    stop.store(true, Ordering::Relaxed);
    let mut times = other.await.unwrap();
    assert!(!times.is_empty());
    println!(
        "another tenant: {} calls, p50 {:.1} p99 {:.1} max {:.1} ms; without bombs p50 {:.1} max {:.1} ms",
        times.len(),
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99),
        percentile(&mut times, 1.0),
        percentile(&mut quiet, 0.5),
        percentile(&mut quiet, 1.0),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(runtime.metrics().lost_workers, 0);
}

/// More for QuickJS, whose realms alone cost tens of ms.
const BUDGET: Duration = Duration::from_millis(per_engine(100, 500));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allocators_are_contained() {
    set_off(UdfKind::Query, &ALLOCATORS, BUDGET, 128).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_are_stopped() {
    set_off(UdfKind::Query, &LOOPS, BUDGET, 128).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traps_in_what_is_read_are_stopped() {
    set_off(UdfKind::Query, &TRAPS, BUDGET, 128).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_are_contained() {
    set_off(UdfKind::Mutation, &FLOODS, BUDGET, 128).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_are_contained() {
    let budget = Duration::from_millis(per_engine(1_500, 10_000));
    set_off(UdfKind::Action, &ACTIONS, budget, 64).await;
}

/// With time enough it is memory that ends an allocator, and it is said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allocators_with_time_run_out_of_memory() {
    let runtime = runtime_with(|config| {
        config.heap_mb = 32;
        config.user_cpu = Duration::from_secs(60);
        config.timeout = Duration::from_secs(120);
    });
    let mut wrong = Vec::new();
    let endless = ["array buffers, errors caught"];
    for (name, ends, body) in ALLOCATORS
        .iter()
        .filter(|(name, ..)| !endless.contains(name))
    {
        let bomb = wrapped(UdfKind::Query, body);
        let ended = ending(
            &runtime
                .run(call(&bomb, UdfKind::Query, "f"), &Table::default())
                .await,
        );
        if !holds(*ends, &ended) || ended == "timeout" {
            wrong.push(format!("{name}: {ended}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let result = runtime
        .run(call(&fine(), UdfKind::Query, "f"), &Table::default())
        .await;
    assert_eq!(ending(&result), "value 1");
}

#[tokio::test]
async fn a_bomb_in_an_import_is_stopped_and_only_where_it_is() {
    let runtime = runtime_with(|config| config.user_cpu = BUDGET);
    let code = bundle(&[
        ("main.js", "export const f = query(async () => 1);"),
        (
            "bomb.js",
            "for (;;); export const f = query(async () => 1);",
        ),
    ]);
    for _ in 0..3 {
        let mut bad = call(&code, UdfKind::Query, "f");
        bad.module = "bomb.js".into();
        assert_eq!(
            ending(&runtime.run(bad, &Table::default()).await),
            "timeout"
        );
        let good = call(&code, UdfKind::Query, "f");
        assert_eq!(
            ending(&runtime.run(good, &Table::default()).await),
            "value 1"
        );
    }
}
