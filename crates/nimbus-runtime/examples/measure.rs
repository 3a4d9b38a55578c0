//! The measurement that chose the isolate model (ARCHITECTURE.md, "Functions").
//!
//! It compares a fresh `JsRuntime` from a snapshot for each call with a bare `v8::Context` in a pooled
//! isolate, in this process and in a worker process, and tries twelve kinds of allocation bomb at
//! 128 MB under sets of V8 flags. `measure calls [CALLS]` and `measure bombs [FLAGS]`; a bomb runs in
//! a child of this process, so that one that aborts is counted and not suffered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    unsafe_code,
    reason = "a measurement for developers: a failure is a panic"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deno_core::v8;

const FUNCTION: &str = "
export function run(text) {
    const args = JSON.parse(text);
    const rows = [];
    for (let i = 0; i < 20; i++) rows.push({ id: i, name: 'row ' + i + args[0].x });
    return JSON.stringify(rows);
}
";

/// Each runs for ever on a heap without a limit.
const BOMBS: [(&str, &str); 12] = [
    (
        "Array.fill",
        "let a = []; for (;;) a.push(new Array(1000).fill(1.5))",
    ),
    (
        "join",
        "let a = ['x'.repeat(1000)]; for (;;) { a.push(a.join('-') + a.length); }",
    ),
    (
        "repeat",
        "let a = []; for (let i = 0;; i++) a.push(('' + i).repeat(100000).split(''))",
    ),
    (
        "JSON",
        "let o = {a: [1.5, 'x']}; let s = []; for (;;) { s.push(JSON.parse(JSON.stringify({o, s: s.length, b: new Array(100).fill(o)}))); }",
    ),
    (
        "typed arrays",
        "let a = []; for (;;) a.push(new Float64Array(100000).fill(1))",
    ),
    (
        "Map",
        "let m = new Map(); for (let i = 0;; i++) m.set('k' + i, {i})",
    ),
    (
        "regexp captures",
        "let a = []; for (;;) a.push(/(.*?)(b+)(c*)/.exec('a'.repeat(1000) + 'bbbccc'))",
    ),
    (
        "spread",
        "let a = [1, 2, 3]; let all = []; for (;;) { a = [...a, ...a].slice(0, 5000); all.push([...a]); }",
    ),
    (
        "BigInt",
        "let b = []; let x = 1n << 4000n; for (;;) { x = x + 1n; b.push(x); }",
    ),
    (
        "closures",
        "let f = []; for (;;) { let big = new Array(100).fill(f.length); f.push(() => big); }",
    ),
    (
        "strings",
        "let s = []; for (let i = 0;; i++) s.push('abcdefghij' + i + Math.random())",
    ),
    (
        "async",
        "let p = []; (async () => { for (;;) { p.push((async () => { const x = new Array(50).fill(1); await null; return x; })()); if (p.length % 1000 === 0) await null; } })()",
    ),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let flags = args.get(2).cloned().unwrap_or_default();
    match args.get(1).map(String::as_str) {
        Some("calls") => calls(args.get(2).map_or(2000, |n| n.parse().unwrap())),
        Some("bombs") => bombs(&flags),
        Some("bomb") => bomb(&flags, args[3].parse().unwrap()),
        Some("echo") => echo(),
        _ => println!("measure calls [CALLS] | measure bombs [V8 FLAGS]"),
    }
}

fn platform(flags: &str) {
    v8::V8::set_flags_from_string(flags);
    deno_core::JsRuntime::init_platform(None);
}

fn report(name: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |q: f64| took[((took.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:<58} p50 {:>7.3} ms  p99 {:>7.3} ms",
        at(0.5),
        at(0.99)
    );
}

fn calls(count: usize) {
    platform("--no-concurrent-osr");
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = tokio.enter();

    let snapshot: &'static [u8] = Box::leak(
        deno_core::JsRuntimeForSnapshot::new(deno_core::RuntimeOptions::default()).snapshot(),
    );
    let took = (0..count.min(500)).map(|i| {
        let start = Instant::now();
        let mut runtime = deno_core::JsRuntime::new(deno_core::RuntimeOptions {
            startup_snapshot: Some(snapshot),
            ..Default::default()
        });
        let source = FUNCTION.replace("export function run", "globalThis.run = function");
        runtime
            .execute_script("call.js", format!("{source}; run('[{{\"x\":{i}}}]')"))
            .unwrap();
        drop(runtime);
        start.elapsed()
    });
    report(
        "(a) JsRuntime from a snapshot without extensions, per call",
        took.collect(),
    );

    let mut isolate = v8::Isolate::new(v8::CreateParams::default());
    let took = (0..count).map(|i| {
        let start = Instant::now();
        bare_call(&mut isolate, i);
        start.elapsed()
    });
    report(
        "(b) bare context in a pooled isolate, per call",
        took.collect(),
    );
    drop(isolate);

    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("echo")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let mut reply = [0; 8];
    let mut ask = |kind: u64| {
        ours.write_all(&kind.to_le_bytes()).unwrap();
        ours.read_exact(&mut reply).unwrap();
    };
    ask(1);
    let took = (0..count).map(|_| {
        let start = Instant::now();
        ask(1);
        start.elapsed()
    });
    report("(c) the same as (b) in a worker process", took.collect());
    let took = (0..count).map(|_| {
        let start = Instant::now();
        ask(0);
        start.elapsed()
    });
    report(
        "    a round trip to the worker process alone",
        took.collect(),
    );
    drop(ours);
    child.wait().unwrap();
}

/// Answers on descriptor 0: a call for each 1, nothing for each 0.
fn echo() {
    platform("--no-concurrent-osr");
    let fd = std::os::fd::AsFd::as_fd(&std::io::stdin())
        .try_clone_to_owned()
        .unwrap();
    let mut socket = UnixStream::from(fd);
    let mut isolate = v8::Isolate::new(v8::CreateParams::default());
    let mut asked = [0; 8];
    let mut calls = 0;
    while socket.read_exact(&mut asked).is_ok() {
        if asked[0] == 1 {
            calls += 1;
            bare_call(&mut isolate, calls);
        }
        socket.write_all(&asked).unwrap();
    }
}

fn bare_call(isolate: &mut v8::OwnedIsolate, i: usize) {
    v8::scope!(let scope, isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    let scope = &mut v8::ContextScope::new(scope, context);
    let text = v8::String::new(scope, FUNCTION).unwrap();
    let name = v8::String::new(scope, "convex:/call.js").unwrap();
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
        true,
        None,
    );
    let mut source = v8::script_compiler::Source::new(text, Some(&origin));
    let module = v8::script_compiler::compile_module(scope, &mut source).unwrap();
    module.instantiate_module(scope, |_, _, _, _| None).unwrap();
    module.evaluate(scope).unwrap();
    let namespace = v8::Local::<v8::Object>::try_from(module.get_module_namespace()).unwrap();
    let key = v8::String::new(scope, "run").unwrap();
    let run = namespace.get(scope, key.into()).unwrap();
    let run = v8::Local::<v8::Function>::try_from(run).unwrap();
    let args = v8::String::new(scope, &format!("[{{\"x\":{i}}}]")).unwrap();
    let undefined = v8::undefined(scope);
    let result = run.call(scope, undefined.into(), &[args.into()]).unwrap();
    assert!(result.to_rust_string_lossy(scope).len() > 400);
}

fn bombs(flags: &str) {
    println!("flags: {flags:?}");
    for (number, (name, _)) in BOMBS.iter().enumerate() {
        let start = Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["bomb", flags, &number.to_string()])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let end = match (output.status.code(), output.status.signal()) {
            (Some(0), _) => said,
            (Some(code), _) => format!("exit status {code}"),
            (_, signal) => format!("killed by signal {signal:?}"),
        };
        println!(
            "{name:<18} {end} after {:.2} s",
            start.elapsed().as_secs_f64()
        );
    }
}

static TERMINATED: AtomicBool = AtomicBool::new(false);

extern "C" fn near_limit(data: *mut std::ffi::c_void, current: usize, _: usize) -> usize {
    TERMINATED.store(true, Ordering::SeqCst);
    // The handle lives as long as the isolate: see `bomb`.
    let handle = unsafe { &*data.cast::<v8::IsolateHandle>() };
    handle.terminate_execution();
    current + 64 * 1024 * 1024
}

fn bomb(flags: &str, number: usize) {
    // A bomb that nothing stops must not take the machine down.
    let limit = libc::rlimit {
        rlim_cur: 4 << 30,
        rlim_max: 4 << 30,
    };
    unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) };
    platform(flags);
    let params = v8::CreateParams::default().heap_limits(0, 128 * 1024 * 1024);
    let mut isolate = v8::Isolate::new(params);
    let handle = Box::leak(Box::new(isolate.thread_safe_handle()));
    isolate.add_near_heap_limit_callback(near_limit, std::ptr::from_mut(handle).cast());
    let watchdog = isolate.thread_safe_handle();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        watchdog.terminate_execution();
        std::thread::sleep(Duration::from_secs(10));
        println!("NOT STOPPED");
        std::process::exit(0);
    });
    v8::scope!(let scope, &mut isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    let scope = &mut v8::ContextScope::new(scope, context);
    let source = v8::String::new(scope, BOMBS[number].1).unwrap();
    let script = v8::Script::compile(scope, source, None).unwrap();
    script.run(scope);
    scope.perform_microtask_checkpoint();
    let why = if TERMINATED.load(Ordering::SeqCst) {
        "heap limit"
    } else {
        "3 s"
    };
    println!("stopped by {why}");
}
