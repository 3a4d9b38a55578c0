//! Calls, syscalls, realms and what they may see.

use nimbus_runtime::{RunError, SubCall, UdfKind};
use serde_json::json;

use crate::support::{Table, bundle, call, code, failure, per_engine, query, runtime, value};

#[tokio::test]
async fn a_function_gets_arguments_and_gives_a_value() {
    let code = code("export const f = query(async ({ a, b }) => ({ sum: a + b, at: undefined }));");
    let mut call = call(&code, UdfKind::Query, "f");
    call.args = r#"[{"a":1,"b":2}]"#.into();
    let outcome = runtime().run(call, &Table::default()).await.unwrap();
    assert_eq!(outcome.result.as_deref(), Ok(r#"{"sum":3}"#));
    assert!(!outcome.observed_time);
    assert!(outcome.log_lines.is_empty());
}

#[tokio::test]
async fn syscalls_are_answered_in_order_and_errors_can_be_caught() {
    let all = "export const f = query(async () => {
        const order = [];
        await Promise.all(Array.from({ length: 40 }, async (_, i) => order.push((await ask('echo', { i })).i)));
        try { await ask('nothing'); } catch (e) { order.push(e.message, e instanceof Error); }
        return order;
    });";
    let mut expected: Vec<serde_json::Value> = (0..40).map(|i| json!(i)).collect();
    expected.extend([json!("Unknown async operation nothing"), json!(true)]);
    assert_eq!(value(all).await, json!(expected));
}

#[tokio::test]
async fn the_data_of_a_nested_error_reaches_the_function_parsed() {
    let host = Table::failing("x", "Uncaught ConvexError: no", Some(r#"{"why":"no"}"#));
    let main = "export const f = query(async () => { try { await ask('x'); } catch (e) { return [e.message, e.data.why]; } });";
    let outcome = query(main, &host).await.unwrap();
    assert_eq!(
        outcome.result.as_deref(),
        Ok(r#"["Uncaught ConvexError: no","no"]"#)
    );
}

#[tokio::test]
async fn a_host_that_cannot_go_on_ends_the_function_whatever_it_catches() {
    let main =
        "export const f = query(async () => { try { await ask('system'); } catch { return 1; } });";
    match query(main, &Table::default()).await {
        Err(RunError::Host(error)) => assert_eq!(error.to_string(), "the disk is gone"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_thrown_comes_with_message_stack_and_data() {
    let thrown = failure(
        "function inner() { throw new TypeError('boom'); }\nexport const f = query(async () => inner());",
        &Table::default(),
    )
    .await;
    assert_eq!(thrown.message, "Uncaught TypeError: boom");
    let lines: Vec<&str> = thrown.stack.lines().collect();
    let column = per_engine(26, 30);
    assert_eq!(
        lines[0],
        format!("    at inner (../convex/main.js:2:{column})")
    );
    assert!(lines[1].contains("(../convex/main.js:3:"), "{lines:?}");
    assert_eq!(thrown.data, None);

    let main = "export const f = query(async () => {
        const e = new Error('told');
        e.name = 'ConvexError';
        e.data = JSON.stringify({ code: 7 });
        e.ConvexErrorSymbol = Symbol.for('ConvexError');
        e[e.ConvexErrorSymbol] = true;
        throw e;
    });";
    let thrown = failure(main, &Table::default()).await;
    assert_eq!(thrown.message, "Uncaught ConvexError: told");
    assert_eq!(thrown.data.as_deref(), Some(r#"{"code":7}"#));
    for (source, message) in [
        ("throw 'text'", "Uncaught text"),
        ("throw null", "Uncaught null"),
        ("throw Symbol('s')", "Uncaught Symbol(s)"),
        ("throw Object.create(null)", "Uncaught [object Object]"),
        (
            "Promise.reject(new RangeError('left')); return 1",
            "Uncaught RangeError: left",
        ),
        (
            "await new Promise(() => {})",
            "Uncaught Error: Returned promise will never resolve",
        ),
        (
            "throw { get message() { throw 1 }, toString() { throw 2 } }",
            "Uncaught [object Object]",
        ),
    ] {
        let main = format!("export const f = query(async () => {{ {source} }});");
        let thrown = failure(&main, &Table::default()).await;
        assert_eq!(thrown.message, message, "{source}");
    }
}

#[tokio::test]
async fn a_module_that_cannot_be_imported_says_why() {
    for (main, part) in [
        ("export const f = ;", "SyntaxError"),
        ("throw new Error('at import');", "Uncaught Error: at import"),
        (
            "import './missing.js';",
            "the bundle has no module `missing.js`",
        ),
        ("import 'node:fs';", "cannot import `node:fs`"),
        (
            "await 1; export const f = query(() => 1);",
            "top-level await",
        ),
        ("await new Promise(() => {});", "top-level await"),
        (
            "export const g = 1;",
            "Couldn't find `f` in `main` as a query",
        ),
        (
            "export const f = mutation(async () => 1);",
            "Couldn't find `f` in `main` as a query",
        ),
        (
            "Convex.asyncSyscall('1.0/get', '{}'); export const f = query(async () => 1);",
            "at import time",
        ),
    ] {
        let thrown = failure(main, &Table::default()).await;
        assert!(thrown.message.contains(part), "{main}: {thrown}");
    }
}

#[tokio::test]
async fn console_lines_look_like_those_of_node() {
    let main = r#"
class Point { constructor() { this.x = 1; } }
export const f = query(async () => {
    console.log("hello", 42, { a: 1, b: [1, "two", { c: { d: {} } }] }, null, undefined, true);
    console.warn(10n, -0, Symbol("s"), [1, , 3], new Map([["k", { v: 1 }]]), new Set([1]), new Point(), Object.create(null));
    console.error(function named() {}, class A {}, new Date(0), /x/g, new Uint8Array(2), "it's");
    console.debug({ get x() { throw 1 }, "odd key": 1 });
    const round = {}; round.self = round;
    console.info(round, new Error("e").message);
    console.log({ long: "x".repeat(40), other: "y".repeat(40) });
    console.log();
});"#;
    let lines = query(main, &Table::default()).await.unwrap().log_lines;
    assert_eq!(
        lines,
        [
            "[LOG] 'hello' 42 { a: 1, b: [ 1, 'two', { c: [Object] } ] } null undefined true",
            "[WARN] 10n -0 Symbol(s) [ 1, <1 empty item>, 3 ] Map(1) { 'k' => { v: 1 } } Set(1) { 1 } Point { x: 1 } [Object: null prototype] {}",
            "[ERROR] [Function: named] [class A] 1970-01-01T00:00:00.000Z /x/g Uint8Array(2) [ 0, 0 ] \"it's\"",
            "[DEBUG] { x: [Getter], 'odd key': 1 }",
            "[INFO] { self: [Circular *1] } 'e'",
            &format!(
                "[LOG] {{\n  long: '{}',\n  other: '{}'\n}}",
                "x".repeat(40),
                "y".repeat(40)
            ),
            "[LOG]",
        ]
    );
}

#[tokio::test]
async fn nothing_stays_from_one_call_to_the_next() {
    let code = code("
globalThis.count = (globalThis.count ?? 0) + 1;
let local = 0;
export const f = query(async () => {
    local++;
    const seen = [globalThis.count, local, Object.prototype.left, [].left, String(Array.prototype.map).includes('native')];
    Object.prototype.left = 1;
    Array.prototype.map = () => 'changed';
    Array.prototype.left = 2;
    JSON.parse = () => 'changed';
    try { Convex.asyncSyscall = undefined; } catch {}
    globalThis.Promise = undefined;
    return seen.map === 'x' ? 0 : seen;
});");
    let runtime = runtime();
    for _ in 0..20 {
        let outcome = runtime
            .run(call(&code, UdfKind::Query, "f"), &Table::default())
            .await;
        assert_eq!(
            outcome.unwrap().result.as_deref(),
            Ok("[1,1,null,null,true]")
        );
    }
    assert!(runtime.metrics().runtime_pool_hits >= 19);
}

#[tokio::test]
async fn chance_and_the_clock_are_those_of_the_call() {
    let main = "const imported = [Date.now(), Math.random()];
export const f = query(async () => {
    const start = Date.now();
    const first = [Math.random(), Math.random()];
    for (let i = 0; i < 1e6; i++);
    return { imported, same: start === Date.now() && start === new Date().getTime(), first,
        years: [new Date(0).getFullYear(), new Date(2020, 1).getMonth(), typeof Date()], is: new Date() instanceof Date,
        zone: new Date(0).getTimezoneOffset(), perf: performance.now() };
});";
    let code = code(main);
    let runtime = runtime();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let outcome = runtime
            .run(call(&code, UdfKind::Query, "f"), &Table::default())
            .await
            .unwrap();
        assert!(outcome.observed_time);
        let value: serde_json::Value = serde_json::from_str(&outcome.result.unwrap()).unwrap();
        assert_eq!(value["same"], true);
        assert_eq!(value["is"], true);
        assert_eq!(value["zone"], 0);
        assert_eq!(value["years"], json!([1970, 1, "string"]));
        assert_eq!(value["imported"][0], 1_700_000_000_000.0);
        seen.push(value);
    }
    assert_eq!(seen[0]["imported"], seen[1]["imported"]);
    assert_ne!(seen[0]["first"], seen[1]["first"]);
}

#[tokio::test]
async fn queries_have_no_authority_and_say_what_to_do() {
    for (source, part) in [
        (
            "fetch('http://x')",
            "Can't use fetch() in queries and mutations. Please consider using an action.",
        ),
        (
            "setTimeout(() => {}, 1)",
            "Can't use setTimeout() in queries and mutations.",
        ),
        (
            "setInterval(() => {}, 1)",
            "Can't use setInterval() in queries and mutations.",
        ),
        (
            "crypto.getRandomValues(new Uint8Array(1))",
            "Can't use crypto.getRandomValues() in queries",
        ),
        (
            "crypto.randomUUID()",
            "Can't use crypto.randomUUID() in queries",
        ),
        ("process.env.X = 1", "`process.env` is read-only"),
    ] {
        let main = format!("export const f = query(async () => {{ {source} }});");
        let thrown = failure(&main, &Table::default()).await;
        assert!(thrown.message.contains(part), "{source}: {thrown}");
    }
    let main = "export const f = query(async () => ['Deno', 'require', 'window', 'document', 'Buffer', 'Worker', 'WebSocket', 'localStorage', 'SharedArrayBuffer', 'host', '__bootstrap'].filter((name) => name in globalThis).concat(Object.keys(process)));";
    assert_eq!(value(main).await, json!(["env"]));
    let main = "export const f = query(async () => { try { await import('./main.js'); } catch (e) { return e.message; } });";
    let text = value(main).await;
    assert!(
        text.as_str()
            .unwrap()
            .contains("dynamic module import unsupported"),
        "{text}"
    );
}

#[tokio::test]
async fn the_environment_is_asked_of_the_host() {
    let host = Table {
        environment: [("KEY".to_owned(), "va\"lue".to_owned())].into(),
        ..Table::default()
    };
    let main = "const early = process.env.KEY;
export const f = query(async () => [early, process.env.KEY, process.env.NONE === undefined, 'KEY' in process.env, 'NONE' in process.env]);";
    let outcome = query(main, &host).await.unwrap();
    assert_eq!(
        outcome.result.as_deref(),
        Ok(r#"["va\"lue","va\"lue",true,true,false]"#)
    );
}

#[tokio::test]
async fn a_function_runs_another_in_a_realm_of_its_own() {
    let sub = SubCall {
        token: 9,
        kind: UdfKind::Mutation,
        module: "dir/other.js".into(),
        export: "inner".into(),
        args: r#"[{"n":20}]"#.into(),
    };
    let code = bundle(&[
        (
            "main.js",
            "globalThis.mark = 1;
export const f = mutation(async () => {
    const [a, b] = await Promise.all([ask('1.0/runUdf', {}), ask('echo', { x: 1 })]);
    return [a, b.x, globalThis.mark];
});",
        ),
        (
            "dir/other.js",
            "export const inner = mutation(async ({ n }) => {
    console.log('inside', globalThis.mark);
    globalThis.mark = 2;
    if ((await ask('echo', { n })).n !== n) throw new Error('lost');
    return n + 1;
});",
        ),
    ]);
    let host = Table::running(sub);
    let outcome = runtime()
        .run(call(&code, UdfKind::Mutation, "f"), &host)
        .await
        .unwrap();
    assert_eq!(outcome.result.as_deref(), Ok("[21,1,1]"));
    assert_eq!(outcome.log_lines, ["[LOG] 'inside' undefined"]);
    let asked: Vec<String> = host
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|(op, _)| op.clone())
        .collect();
    assert_eq!(asked, ["1.0/runUdf", "echo", "echo"]);
}

#[tokio::test]
async fn the_web_apis_of_queries_work() {
    let main = r#"
export const f = query(async () => {
    const url = new URL("../b?x=1&y=%20z#h", "https://user@Example.org:8080/a/c");
    url.searchParams.append("n", "ü&");
    url.port = "443";
    const out = { href: url.href, host: url.host, y: url.searchParams.get("y"), bad: URL.canParse("nope") };
    out.params = `${new URLSearchParams({ a: "1 2", b: "=" })}`;
    out.text = new TextDecoder().decode(new TextEncoder().encode("grüße 😀"));
    const decoder = new TextDecoder();
    out.stream = decoder.decode(new Uint8Array([0xf0, 0x9f]), { stream: true }) + decoder.decode(new Uint8Array([0x98, 0x80]));
    try { new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array([255])); } catch (e) { out.fatal = e.name; }
    out.base64 = [btoa("hi\u00ff"), atob("aGk="), atob(" aG k ")];
    try { atob("a"); } catch (e) { out.atob = [e.name, e.code, e instanceof DOMException]; }
    const round = { when: new Date(5), map: new Map([[1, { a: [1] }]]), bytes: new Uint8Array([1, 2]) };
    round.self = round;
    const copy = structuredClone(round);
    out.clone = [copy !== round, copy.self === copy, copy.when.getTime(), copy.map.get(1).a[0], copy.bytes[1]];
    try { structuredClone(() => 1); } catch (e) { out.unclonable = e.name; }
    const controller = new AbortController();
    let events = 0;
    controller.signal.addEventListener("abort", (e) => { events += e.type === "abort" ? 1 : 0; });
    controller.abort();
    controller.abort();
    out.abort = [events, controller.signal.aborted, controller.signal.reason.name];
    await new Promise((done) => queueMicrotask(done));
    return out;
});"#;
    assert_eq!(
        value(main).await,
        json!({
            "href": "https://user@example.org/b?x=1&y=+z&n=%C3%BC%26#h", "host": "example.org", "y": " z", "bad": false,
            "params": "a=1+2&b=%3D", "text": "grüße 😀", "stream": "😀", "fatal": "TypeError",
            "base64": ["aGn/", "hi", "hi"], "atob": ["InvalidCharacterError", 5, true],
            "clone": [true, true, 5, 1, 2], "unclonable": "DataCloneError", "abort": [1, true, "AbortError"],
        })
    );
}
