//! What a function may not reach: the host's natives, another realm, files, time, and what comes after it.

use serde_json::json;

use crate::support::{Table, failure, per_engine, query, value};

/// Walks everything that can be reached from the global object.
const WALK: &str = r#"
const REACHED = new Set();
function walk(root) {
    const waiting = [root];
    while (waiting.length > 0) {
        const it = waiting.pop();
        if (it === null || (typeof it !== "object" && typeof it !== "function") || REACHED.has(it)) continue;
        REACHED.add(it);
        waiting.push(Object.getPrototypeOf(it));
        for (const key of Reflect.ownKeys(it)) {
            const found = Object.getOwnPropertyDescriptor(it, key);
            if (found !== undefined) waiting.push(found.value, found.get, found.set);
        }
    }
}
// Natives of ours have no name; of the language's own only this one has none.
const isOurs = (f) => typeof f === "function" && f !== Function.prototype && f.name === "" && /^function \(\) \{\s*\[native code\]\s*\}$/.test(String(f)) && !("prototype" in f);
"#;

#[tokio::test]
async fn no_native_of_ours_can_be_reached() {
    let main = format!(
        "{WALK}
export const f = query(async () => {{
    walk(globalThis);
    try {{ Convex.syscall('nothing', '{{}}'); }} catch (e) {{ walk(e); }}
    try {{ await Convex.asyncSyscall('nothing', '{{}}'); }} catch (e) {{ walk(e); }}
    walk(console.log()); walk(new URL('http://x')); walk(new TextEncoder().encode('x')); walk(new AbortController());
    // The engines' own, which have no name either: of V8 the first, of QuickJS the others.
    const theirs = [[new Error(), 'stack'], [Function.prototype, 'caller'], [Iterator.prototype, 'constructor']].flatMap(([holder, name]) => {{
        const {{ get, set }} = Object.getOwnPropertyDescriptor(holder, name);
        return [get, set];
    }});
    const ours = [...REACHED].filter((it) => isOurs(it) && !theirs.includes(it)).length;
    return [ours, REACHED.size > 500];
}});"
    );
    assert_eq!(value(&main).await, json!([0, true]));
}

#[tokio::test]
async fn the_global_object_has_what_it_should_and_no_more() {
    let main = "export const f = query(async () => Object.getOwnPropertyNames(globalThis).sort());";
    let all: Vec<String> = serde_json::from_value(value(main).await).unwrap();
    let ecma = "AggregateError Array ArrayBuffer AsyncDisposableStack BigInt BigInt64Array BigUint64Array Boolean DataView Date DisposableStack Error EvalError FinalizationRegistry Float16Array Float32Array Float64Array Function Infinity Int16Array Int32Array Int8Array Intl Iterator JSON Map Math NaN Number Object Promise Proxy RangeError ReferenceError Reflect RegExp Set String SuppressedError Symbol SyntaxError TypeError URIError Uint16Array Uint32Array Uint8Array Uint8ClampedArray WeakMap WeakRef WeakSet WebAssembly decodeURI decodeURIComponent encodeURI encodeURIComponent escape eval globalThis isFinite isNaN parseFloat parseInt undefined unescape";
    let web = "AbortController AbortSignal CustomEvent DOMException Event EventTarget TextDecoder TextEncoder URL URLSearchParams atob btoa clearInterval clearTimeout console crypto fetch global performance process queueMicrotask self setImmediate setInterval setTimeout structuredClone Convex";
    let engine = per_engine("", "InternalError __v8xTemporalTimeZone");
    let known: Vec<&str> = [ecma, web, engine]
        .iter()
        .flat_map(|names| names.split(' '))
        .collect();
    let more: Vec<&String> = all
        .iter()
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test]
async fn made_code_stays_in_its_realm() {
    let main = r#"export const f = query(async () => {
    const makers = [
        Function, (async () => {}).constructor, (function* () {}).constructor, (async function* () {}).constructor,
        Convex.syscall.constructor, console.log.constructor, fetch.constructor, Date.constructor, URL.constructor, structuredClone.constructor,
    ];
    const out = [];
    for (const make of makers.slice(0, 1).concat(makers.slice(4))) out.push(make("return this")() === globalThis);
    out.push((await makers[1]("return globalThis")()) === globalThis, makers[2]("yield globalThis")().next().value === globalThis);
    out.push((0, eval)("this") === globalThis, typeof (0, eval)("typeof host") === "string" && (0, eval)("typeof host") === "undefined");
    try { Convex.syscall("nothing", "{}"); } catch (e) { out.push(e.constructor.constructor("return this")() === globalThis, Object.getPrototypeOf(e) === Error.prototype); }
    try { await Convex.asyncSyscall("nothing", "{}"); } catch (e) { out.push(Object.getPrototypeOf(e) === Error.prototype); }
    try { fetch("x"); } catch (e) { out.push(e.constructor === Error); }
    try { null.x; } catch (e) { out.push(e.constructor === TypeError); }
    try { await import("./main.js"); } catch (e) { out.push(e.constructor === Error); }
    return out;
});"#;
    let all: Vec<bool> = serde_json::from_value(value(main).await).unwrap();
    assert_eq!(all, vec![true; 17], "one is not of this realm");
}

#[tokio::test]
async fn natives_syntax_shadow_realms_and_debuggers_are_absent() {
    for (source, part) in [
        ("eval('%DebugPrint(1)')", "SyntaxError"),
        ("new ShadowRealm()", "ShadowRealm is not defined"),
        ("gc()", "gc is not defined"),
        ("require('fs')", "require is not defined"),
        (
            "Deno.readTextFileSync('/etc/passwd')",
            "Deno is not defined",
        ),
        ("process.binding('fs')", "process.binding is not a function"),
        ("process.exit(1)", "process.exit is not a function"),
        ("new Worker('data:,1')", "Worker is not defined"),
        (
            "new SharedArrayBuffer(8)",
            "SharedArrayBuffer is not defined",
        ),
        ("Atomics.wait()", "Atomics is not defined"),
        ("importScripts('x')", "importScripts is not defined"),
        (
            "await import('node:fs')",
            "dynamic module import unsupported",
        ),
        (
            "await import('data:text/javascript,1')",
            "dynamic module import unsupported",
        ),
        (
            "await import('file:///etc/passwd')",
            "dynamic module import unsupported",
        ),
        (
            "Convex.jsSyscall('constructor', {})",
            "Unknown js operation constructor",
        ),
        (
            "Object.prototype.jsSyscalls = { x: () => 1 }; return Convex.jsSyscall('x', {})",
            "Unknown js operation x",
        ),
        ("Convex.syscall = 1", "Cannot assign to read only property"),
        ("arguments.callee", "arguments is not defined"),
    ] {
        let main = format!("export const f = query(async () => {{ {source} }});");
        let thrown = failure(&main, &Table::default()).await;
        assert!(thrown.message.contains(part), "{source}: {thrown}");
    }
    let main = "export const f = query(async () => [Object.keys(import.meta), 'prepareStackTrace' in Error]);";
    assert_eq!(value(main).await, json!([[], per_engine(false, true)]));
}

#[tokio::test]
async fn memory_that_is_shared_cannot_be_had_from_wasm() {
    let main = "export const f = query(async () => {
        try { return new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }).buffer.constructor.name; } catch (e) { return e.constructor === TypeError || e.name; }
    });";
    assert_eq!(value(main).await, json!(true));
}

#[tokio::test]
async fn stack_frames_show_no_function_of_ours() {
    let main = r#"export const f = query(async () => {
    const found = [];
    let seen = 0;
    const note = () => {
        Error.prepareStackTrace = (_, sites) => {
            for (const site of sites) {
                seen++;
                found.push([site.getFunction(), site.getThis()].some((it) => it !== undefined && it !== globalThis && it !== null));
            }
            return "";
        };
        new Error().stack;
        Error.prepareStackTrace = undefined;
        return "x";
    };
    console.log({ get [Symbol.toStringTag]() { return note(); } }, new Proxy({}, { ownKeys() { note(); return []; } }));
    try { await Convex.asyncSyscall({ toString: note }, "{}"); } catch {}
    btoa({ toString: note });
    new URL({ toString: () => { note(); return "http://x"; } });
    structuredClone({ get x() { note(); return 1; } });
    new EventTarget().addEventListener({ toString: note }, note);
    return [seen > 10, found.filter((x) => x).length, (() => { try { return note.caller === null; } catch { return true; } })()];
});"#;
    assert_eq!(value(main).await, json!([true, 0, true]));
}

#[tokio::test]
async fn no_clock_runs_while_a_function_does() {
    let main = r#"export const f = query(async () => {
    const fished = [];
    const real = Reflect.construct;
    Reflect.construct = (target, ...rest) => { fished.push(target); return real(target, ...rest); };
    Function.prototype.call = new Proxy(Function.prototype.call, { apply(target, self, args) { fished.push(self); return Reflect.apply(target, self, args); } });
    Function.prototype.apply = new Proxy(Function.prototype.apply, { apply(target, self, args) { fished.push(self); return Reflect.apply(target, self, args); } });
    Function.prototype.bind = new Proxy(Function.prototype.bind, { apply(target, self, args) { fished.push(self); return Reflect.apply(target, self, args); } });
    const format = new Intl.DateTimeFormat("en", { fractionalSecondDigits: 3, second: "numeric", minute: "numeric" });
    class Sub extends Date {}
    const watches = {
        date: () => Date.now(), made: () => new Date().getTime(), sub: () => new Sub().getTime(), text: () => Date(),
        maker: () => new (new Date(0).constructor)().getTime(), reflect: () => real(Date, [], Sub).getTime(), clone: () => structuredClone(new Date()).getTime(),
        performance: () => performance.now(), origin: () => performance.timeOrigin, event: () => new Event("x").timeStamp,
        format: () => format.format(), parts: () => JSON.stringify(format.formatToParts()), none: () => format.format(undefined),
        locale: () => new Date().toLocaleString("en", { fractionalSecondDigits: 3 }), stopwatch: () => { console.time("a"); console.timeLog("a"); return 1; },
    };
    const read = () => Object.keys(watches).map((name) => watches[name]());
    const first = read();
    let n = 0;
    for (let i = 0; i < ROUNDS; i++) n += i;
    const second = read();
    const moved = Object.keys(watches).filter((_, at) => first[at] !== second[at]);
    for (const it of fished) {
        try { if (typeof it === "function" && it !== Date && it !== Sub && /\bDate\(\) \{ \[native/.test(String(it))) moved.push("fished " + String(it)); } catch {}
    }
    return [moved, new Intl.DateTimeFormat("en").format() === new Intl.DateTimeFormat("en").format(Date.now()), "Temporal" in globalThis];
});"#;
    // Some 30 ms of either engine: a clock that runs would show it, and the CPU time of a query is not used up.
    let main = main.replace("ROUNDS", per_engine("3e7", "1e6"));
    assert_eq!(value(&main).await, json!([[], true, false]));
}

/// Replaces every builtin that can be replaced, and lists those that run while our scripts do.
#[tokio::test]
async fn our_scripts_use_no_builtin_that_a_function_replaced() {
    let main = r#"
const { ownKeys, getOwnPropertyDescriptor, defineProperty, getPrototypeOf, apply, construct } = Reflect;
const SetAdd = Set.prototype.add, SetHas = Set.prototype.has, call = Function.prototype.call, join = Array.prototype.join, TrueProxy = Proxy, ArrayPrototype = Array.prototype, ObjectPrototype = Object.prototype;
const sayings = Object.setPrototypeOf([], null);
let armed = false, count = 0;
const done = new Set();
function spy(original, path) {
    return new TrueProxy(original, {
        __proto__: null,
        apply(target, self, args) { if (armed) sayings[count++] = path; return apply(target, self, args); },
        construct(target, args, to) { if (armed) sayings[count++] = "new " + path; return construct(target, args, to); },
    });
}
function replace(holder, path) {
    if (holder === null || (typeof holder !== "object" && typeof holder !== "function") || apply(SetHas, done, [holder])) return;
    apply(SetAdd, done, [holder]);
    const keys = ownKeys(holder);
    const inner = [];
    let n = 0;
    for (let at = 0; at < keys.length; at++) {
        const found = getOwnPropertyDescriptor(holder, keys[at]);
        const name = path + "." + (typeof keys[at] === "symbol" ? keys[at].description : keys[at]);
        if (name === ".Convex" || name === ".console" || name === ".process" || name === ".globalThis" || name === ".self" || name === ".global") continue;
        if ("value" in found) inner[n++] = [found.value, name];
        if ("value" in found ? typeof found.value !== "function" || !(found.configurable || found.writable) : !found.configurable) continue;
        if ("value" in found) found.value = spy(found.value, name);
        else {
            if (found.get) found.get = spy(found.get, "get " + name);
            if (found.set) found.set = spy(found.set, "set " + name);
        }
        try { defineProperty(holder, keys[at], found); } catch {}
    }
    for (let at = 0; at < n; at++) replace(inner[at][0], inner[at][1]);
    replace(getPrototypeOf(holder), path + ".[[prototype]]");
}
class Point { constructor() { this.x = 1; } }
export const f = query(async () => {
    const values = [1, -0, 2n, "it's\n\u0001", Symbol("s"), null, undefined, [1, , "a", { deep: { er: { est: 1 } } }], { a: 1, get b() { return 1; }, "odd key": [] }, new Map([[1, { a: 1 }]]),
        new Set(["x"]), new Date(0), /x/g, new Error("e", { cause: new TypeError("c") }), new Uint8Array([1, 2]), new ArrayBuffer(3), () => 1, class A {}, new Point(), Object.create(null),
        new Number(1), Object("s"), Object(1n), Object(Symbol("b")), new Promise(() => {}), new WeakMap(), new DataView(new ArrayBuffer(1)), new Array(200).fill(1), "x".repeat(20000)];
    values[7].self = values[7];
    const { log, info, warn, error, debug, table, dir, assert, count: counted, time, timeEnd, timeLog, trace, group } = console;
    const { syscall, asyncSyscall } = Convex;
    const env = process.env;
    const DateNow = Date, random = Math.random, Encoder = TextEncoder, b64 = btoa, unb64 = atob, later = queueMicrotask;
    const format = new Intl.DateTimeFormat("en");
    const encoder = new Encoder(), target = new Uint8Array(9), now = Date.now, encode = encoder.encode, encodeInto = encoder.encodeInto;
    replace(globalThis, "");
    // A setter where an element of a usual array, or a descriptor's part, would be written to one.
    for (const index of ["0", "1", "2", "value", "get", "set", "data", "writable", "enumerable", "jsSyscalls"]) {
        for (const prototype of [ArrayPrototype, ObjectPrototype]) {
            defineProperty(prototype, index, {
                __proto__: null, configurable: true,
                get() { if (armed) sayings[count++] = "read " + index; return undefined; },
                set(v) { if (armed) sayings[count++] = "write " + index; defineProperty(this, index, { __proto__: null, value: v, writable: true, enumerable: true, configurable: true }); },
            });
        }
    }
    const asked = [];
    armed = true;
    for (let at = 0; at < values.length; at++) log(values[at]);
    info("a", 1); warn("b"); error("c"); debug("d"); table(1); dir({}); assert(false, "e"); counted("n"); counted("n"); time("t"); timeLog("t", 1); timeEnd("t"); timeEnd("t"); trace("f"); group("g");
    try { syscall("nothing", "{}"); } catch (e) { asked.length = 0; }
    const promise = asyncSyscall("echo", "{\"x\":1}");
    const seen = [env.KEY, env.NONE === undefined, "KEY" in env, new DateNow(0) instanceof DateNow, typeof DateNow(), random() < 1, now() > 0];
    const bytes = apply(encode, encoder, ["é"]), into = apply(encodeInto, encoder, ["a😀b", target]);
    const coded = b64("hi"), plain = unb64(coded);
    later(() => {});
    armed = false;
    const text = await promise;
    return [count === 0 ? "" : apply(join, sayings, [", "]), text, seen[0], seen[1], seen[2], seen[3], seen[4], seen[5], seen[6], bytes[0], into.written, coded, plain];
});"#;
    let host = Table {
        environment: [("KEY".to_owned(), "v".to_owned())].into(),
        ..Table::default()
    };
    let outcome = query(main, &host).await.unwrap();
    let found: serde_json::Value = serde_json::from_str(&outcome.result.unwrap()).unwrap();
    // QuickJS itself asks a buffer of ours for its kind so; the function that replaced them learns the bytes, its own.
    let replaced = per_engine(
        "",
        ".Object.prototype.toString, get .ArrayBuffer.prototype.resizable",
    );
    assert_eq!(
        found,
        json!([
            replaced,
            "{\"x\":1}",
            "v",
            true,
            true,
            true,
            "string",
            true,
            true,
            195,
            6,
            "aGk=",
            "hi"
        ])
    );
    assert_eq!(outcome.log_lines.len(), 29 + 14, "{:?}", outcome.log_lines);
    assert!(
        outcome
            .log_lines
            .iter()
            .all(|line| !line.contains("Uninspectable")),
        "{:?}",
        outcome.log_lines
    );
}

#[tokio::test]
async fn a_function_that_breaks_every_builtin_still_ends_with_an_answer() {
    let main = r#"export const f = query(async () => {
    const { ownKeys } = Reflect, Text = String, Wrong = TypeError;
    const names = Object.getOwnPropertyNames(globalThis);
    for (let at = 0; at < names.length; at++) {
        const it = globalThis[names[at]];
        if (typeof it !== "function") continue;
        for (let which = 0; which < 2; which++) {
            const holder = which === 0 ? it.prototype : it;
            if (holder === undefined || holder === null) continue;
            const keys = ownKeys(holder);
            for (let n = 0; n < keys.length; n++) {
                const key = keys[n];
                if (key === "then" || key === "constructor") continue;
                try { holder[key] = () => { throw new Wrong("broken " + Text(key)); }; } catch {}
            }
        }
    }
    console.log("still", { a: [1] });
    return await ask("echo", { x: 1 });
});"#;
    let outcome = query(main, &Table::default()).await.unwrap();
    assert_eq!(outcome.result.as_deref(), Ok(r#"{"x":1}"#));
    assert_eq!(outcome.log_lines, ["[LOG] 'still' { a: [ 1 ] }"]);
}
