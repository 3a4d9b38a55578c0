//! Actions: concurrency, web APIs, `fetch` and the door that it leaves through.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nimbus_runtime::{
    Answer, Code, EGRESS, EGRESS_DENIED, EgressGrants, EgressLeave, EgressRefusal, EgressRequest,
    Host, JsFailure, Nesting, Outcome, RunError, SyscallError, UdfKind,
};
use serde_json::json;

use crate::support::{Table, bundle, call, code, ending, per_engine, runtime, runtime_with};

async fn run(code: &Arc<Code>, host: &dyn Host) -> Outcome {
    runtime()
        .run(call(code, UdfKind::Action, "f"), host)
        .await
        .unwrap()
}

async fn value(main: &str) -> serde_json::Value {
    let outcome = run(&code(main), &Table::default()).await;
    match outcome.result {
        Ok(json) => serde_json::from_str(&json).unwrap(),
        Err(failure) => panic!("{failure}"),
    }
}

async fn thrown(main: &str) -> String {
    run(&code(main), &Table::default())
        .await
        .result
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn an_action_does_many_things_at_once() {
    let main = "export const f = action(async () => {
        const order = [];
        const later = new Promise((done) => setTimeout(() => done('timer'), 5));
        const asked = await Promise.all(Array.from({ length: 30 }, async (_, i) => (await ask('echo', { i })).i));
        order.push(asked.length, asked[29]);
        order.push(await later);
        try { await ask('nothing'); } catch (e) { order.push(e.message); }
        console.log('done', order.length);
        return order;
    });";
    let outcome = run(&code(main), &Table::default()).await;
    assert_eq!(
        outcome.result.as_deref(),
        Ok(r#"[30,29,"timer","Unknown async operation nothing"]"#)
    );
    assert_eq!(outcome.log_lines, ["[LOG] 'done' 4"]);
}

#[tokio::test]
async fn the_web_apis_of_actions_are_there() {
    let main = r#"
export const f = action(async () => {
    const names = ["URL", "URLSearchParams", "TextEncoder", "TextDecoder", "TextEncoderStream", "TextDecoderStream", "atob", "btoa",
        "structuredClone", "Event", "EventTarget", "CustomEvent", "AbortController", "AbortSignal", "DOMException", "setTimeout", "setInterval",
        "clearTimeout", "clearInterval", "queueMicrotask", "Blob", "File", "FormData", "Headers", "Request", "Response", "fetch", "ReadableStream",
        "WritableStream", "TransformStream", "crypto", "CryptoKey", "performance", "WebAssembly", "Intl", "self", "global", "process", "console"];
    const absent = ["Deno", "__bootstrap", "require", "Buffer", "window", "document", "WebSocket", "Worker", "XMLHttpRequest", "localStorage", "SharedArrayBuffer", "Atomics"];
    const out = { missing: names.filter((n) => !(n in globalThis)), extra: absent.filter((n) => n in globalThis) };
    const key = await crypto.subtle.importKey("raw", new TextEncoder().encode("key"), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const mac = new Uint8Array(await crypto.subtle.sign("HMAC", key, new TextEncoder().encode("text")));
    out.mac = Array.from(mac.slice(0, 4), (b) => b.toString(16).padStart(2, "0")).join("");
    out.digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new Uint8Array())).length;
    out.random = crypto.getRandomValues(new Uint8Array(4)).length + crypto.randomUUID().length;
    out.response = await new Response(JSON.stringify({ a: 1 })).json();
    out.request = [new Request("https://x.org/a?b", { method: "POST", body: "x" }).method, await new Blob(["a", "b"]).text()];
    const form = new FormData();
    form.append("k", "v");
    out.form = form.get("k");
    const stream = new ReadableStream({ start(c) { c.enqueue("one"); c.enqueue("two"); c.close(); } });
    out.stream = [];
    for await (const part of stream) out.stream.push(part);
    out.now = Date.now() > 1.7e12 && Math.random() !== Math.random() && performance.now() >= 0;
    out.clone = structuredClone(new Map([[1, new Date(3)]])).get(1).getTime();
    out.wasm = WebAssembly.validate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 1);
    await new Promise((done) => controller.signal.addEventListener("abort", done));
    out.aborted = controller.signal.aborted;
    await new Promise((done) => queueMicrotask(done));
    return out;
});"#;
    assert_eq!(
        value(main).await,
        json!({
            "missing": [], "extra": [], "mac": "6afa9046", "digest": 32, "random": 40, "response": { "a": 1 }, "request": ["POST", "ab"],
            "form": "v", "stream": ["one", "two"], "now": true, "clone": 3, "wasm": true, "aborted": true,
        })
    );
}

#[tokio::test]
async fn errors_of_actions_look_like_those_of_queries() {
    let main = "function inner() { throw new TypeError('boom'); }\nexport const f = action(async () => { await 1; inner(); });";
    let text = thrown(main).await;
    let start = "Uncaught TypeError: boom\n    at inner (../convex/main.js:2:26)\n";
    assert!(text.starts_with(start), "{text}");
    let left = "export const f = action(async () => { Promise.reject(new Error('left')); await new Promise((d) => setTimeout(d, 50)); });";
    assert!(
        thrown(left).await.starts_with("Uncaught Error: left"),
        "{}",
        thrown(left).await
    );
    let never = thrown("export const f = action(() => new Promise(() => {}));").await;
    assert_eq!(never, "Uncaught Error: Returned promise will never resolve");
    let timer = thrown("export const f = action(async () => { setTimeout(() => { throw new Error('in timer'); }, 1); await new Promise((d) => setTimeout(d, 500)); });").await;
    assert!(timer.contains("in timer"), "{timer}");
}

/// Nobody handles it, and it has no text, or one that throws: the call fails, and the worker goes on.
#[tokio::test]
async fn what_is_thrown_need_not_have_a_text() {
    let values = [
        ("Symbol()", "Symbol()"),
        ("Symbol('a')", "Symbol(a)"),
        ("Object.create(null)", "[object Object]"),
        ("{ toString() { throw 1; } }", "[object Object]"),
        ("{ toString: 1, valueOf: 1 }", "[object Object]"),
        ("proxy", per_engine("null", "[object Object]")),
        ("undefined", "undefined"),
        ("1n", "1"),
        ("'text'", "text"),
    ];
    let ways = [
        "Promise.reject(thrown)",
        "setTimeout(() => { throw thrown; }, 0)",
        "queueMicrotask(() => { throw thrown; })",
        "throw thrown",
    ];
    let fine = code("export const f = action(async () => (await ask('echo', { x: 1 })).x);");
    let runtime = runtime();
    let mut wrong = Vec::new();
    for way in ways {
        for (value, message) in values {
            let main = format!(
                "export const f = action(async () => {{ const {{ proxy, revoke }} = Proxy.revocable({{}}, {{}}); revoke(); const thrown = ({value}); {way}; await new Promise((done) => setTimeout(done, 60_000)); }});"
            );
            let result = runtime
                .run(call(&code(&main), UdfKind::Action, "f"), &Table::default())
                .await;
            let ended = ending(&result);
            if ended != format!("thrown Uncaught {message}") {
                wrong.push(format!("{way} of {value}: {ended}"));
            }
        }
        let result = runtime
            .run(call(&fine, UdfKind::Action, "f"), &Table::default())
            .await;
        assert_eq!(ending(&result), "value 1", "after {way}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(runtime.metrics().lost_workers, 0);
}

#[tokio::test]
async fn call_sites_of_actions_show_no_function() {
    let main = "export const f = action(async () => {
        const found = [];
        const had = Object.getOwnPropertyDescriptor(Error, 'prepareStackTrace');
        const sloppy = new Function('g', 'return g()');
        Error.prepareStackTrace = (_, sites) => { for (const site of sites) found.push(site.getFunction() === undefined && site.getThis() === undefined); return ''; };
        sloppy(() => new Error().stack);
        return [had === undefined ? 'absent' : 'get' in had ? 'accessor' : 'value', found.length > 2, found.every((it) => it)];
    });";
    let had = per_engine("absent", "accessor");
    assert_eq!(value(main).await, json!([had, true, true]));
}

#[tokio::test]
async fn deployed_modules_can_be_imported_when_needed() {
    let code = bundle(&[
        ("main.js", "export const f = action(async () => {
            const out = [(await import('./dir/late.js')).word, (await import('./dir/late.js')).word];
            for (const bad of ['node:fs', 'ext:core/mod.js', 'data:text/javascript,1', 'file:///etc/passwd', './none.js', 'https://x.org/a.js']) {
                try { await import(bad); out.push('imported ' + bad); } catch (e) { out.push(e instanceof TypeError); }
            }
            return out;
        });"),
        ("dir/late.js", "export const word = 'late';"),
    ]);
    let outcome = run(&code, &Table::default()).await;
    assert_eq!(
        outcome.result.as_deref(),
        Ok(r#"["late","late",true,true,true,true,true,true]"#)
    );
}

#[tokio::test]
async fn an_action_that_waits_gives_its_slot_away() {
    let runtime = runtime_with(|config| {
        config.max_instances = Some(1);
        config.max_active_per_tenant = Some(1);
    });
    let waiting =
        code("export const f = action(async () => { await ask('slow'); return 'waited'; });");
    let quick = code("export const f = query(async () => 'quick');");
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let host = Slow {
        held: tokio::sync::Mutex::new(Some(held)),
        asked: tokio::sync::Notify::new(),
    };
    // Its failure must end the test, which would otherwise wait for a question that never comes.
    let first = async {
        let outcome = runtime
            .run(call(&waiting, UdfKind::Action, "f"), &host)
            .await;
        outcome.unwrap().result.unwrap()
    };
    let second = async {
        host.asked.notified().await;
        let outcome = runtime
            .run(call(&quick, UdfKind::Query, "f"), &Table::default())
            .await;
        release.send(()).unwrap();
        outcome
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(second.unwrap().result.as_deref(), Ok("\"quick\""));
    assert_eq!(first, "\"waited\"");
}

/// Answers `slow` when it is let go.
struct Slow {
    held: tokio::sync::Mutex<Option<tokio::sync::oneshot::Receiver<()>>>,
    asked: tokio::sync::Notify,
}

impl Host for Slow {
    fn syscall<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> futures_util::future::BoxFuture<
        'a,
        Result<nimbus_runtime::Answer, nimbus_runtime::SyscallError>,
    > {
        Box::pin(async move {
            self.asked.notify_one();
            self.held.lock().await.take().unwrap().await.unwrap();
            Ok(nimbus_runtime::Answer::Json("null".into()))
        })
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        _: Result<String, nimbus_runtime::JsFailure>,
    ) -> futures_util::future::BoxFuture<'a, Result<String, nimbus_runtime::SyscallError>> {
        unreachable!("actions run no functions in their realm")
    }

    fn nesting(&self, _: nimbus_runtime::Nesting) {}
}

/// Answers each connection with what `answer` makes of its request.
fn server(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().take(20) {
            let mut socket = socket.unwrap();
            let mut request = Vec::new();
            let mut chunk = [0; 1024];
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match socket.read(&mut chunk) {
                    Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                    _ => break,
                }
            }
            let text = answer(&String::from_utf8_lossy(&request));
            drop(socket.write_all(text.as_bytes()));
        }
    });
    port
}

fn plain(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A host that grants what a flag would.
fn granting(grant: &str) -> Table {
    let hosts = vec![grant.parse().unwrap()];
    Table {
        egress: EgressGrants { hosts },
        ..Table::default()
    }
}

async fn fetching(url: &str, host: &Table) -> Result<Outcome, RunError> {
    let main = format!(
        "export const f = action(async () => {{ try {{ const r = await fetch({url:?}); return [r.status, await r.text()]; }} catch (e) {{ return [e.name, e.message, String(e.cause ?? '')]; }} }});"
    );
    runtime()
        .run(call(&code(&main), UdfKind::Action, "f"), host)
        .await
}

/// What was asked before it was sent, and what turned out to lead inside.
fn told(host: &Table) -> (Vec<EgressRequest>, Vec<EgressRefusal>) {
    let asked = host.asked.lock().unwrap();
    let (mut requests, mut refused) = (Vec::new(), Vec::new());
    for (op, args) in asked.iter() {
        match op.as_str() {
            EGRESS => requests.push(serde_json::from_str(args).unwrap()),
            EGRESS_DENIED => refused.push(serde_json::from_str(args).unwrap()),
            _ => {}
        }
    }
    (requests, refused)
}

#[tokio::test]
async fn fetch_reaches_what_was_granted() {
    let port = server(|request| plain(request.lines().next().unwrap_or_default()));
    for grant in [format!("127.0.0.1:{port}"), "127.0.0.1".to_owned()] {
        let host = granting(&grant);
        let outcome = fetching(&format!("http://127.0.0.1:{port}/x?q=1"), &host)
            .await
            .unwrap();
        assert_eq!(
            outcome.result.as_deref(),
            Ok(r#"[200,"GET /x?q=1 HTTP/1.1"]"#),
            "{grant}"
        );
        let request = EgressRequest {
            scheme: "http".into(),
            host: "127.0.0.1".into(),
            port,
            method: "GET".into(),
            path: "/x".into(),
        };
        assert_eq!(told(&host), (vec![request], vec![]));
    }
    let host = granting("localhost");
    let outcome = fetching(&format!("http://LOCALHOST:{port}/x"), &host)
        .await
        .unwrap();
    assert_eq!(outcome.result.as_deref(), Ok(r#"[200,"GET /x HTTP/1.1"]"#));
}

#[tokio::test]
async fn fetch_is_refused_everywhere_else_and_the_server_is_told() {
    let port = server(|_| plain("must not be read"));
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
    ] {
        let host = Table::default();
        let outcome = fetching(&url, &host).await.unwrap();
        let text = outcome.result.unwrap();
        assert!(
            text.contains("is refused") || text.contains("error sending request"),
            "{url}: {text}"
        );
        assert!(!text.contains("must not be read"), "{url}: {text}");
        // A name is granted as far as it leads to public addresses, and then it does not.
        let (asked, refused) = told(&host);
        assert_eq!(asked.len(), 1, "{url}");
        let name = url.contains("localhost");
        assert_eq!(refused.len(), usize::from(name), "{url}: {refused:?}");
    }
    // A grant for one port is none for another, by address and by name.
    for (grant, url) in [
        ("127.0.0.1:1", format!("http://127.0.0.1:{port}/")),
        ("localhost:1", format!("http://localhost:{port}/")),
    ] {
        let text = fetching(&url, &granting(grant))
            .await
            .unwrap()
            .result
            .unwrap();
        assert!(!text.contains("must not be read"), "{url}: {text}");
    }
    let text = fetching("file:///etc/passwd", &Table::default())
        .await
        .unwrap()
        .result
        .unwrap();
    assert!(text.starts_with("[\"TypeError\""), "{text}");
}

#[tokio::test]
async fn a_redirect_is_checked_like_a_request() {
    let inner = server(|_| plain("must not be read"));
    let outer = server(move |_| {
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    });
    let host = granting(&format!("127.0.0.1:{outer}"));
    let outcome = fetching(&format!("http://127.0.0.1:{outer}/"), &host)
        .await
        .unwrap();
    let text = outcome.result.unwrap();
    assert!(text.contains("is refused"), "{text}");
    let ports: Vec<u16> = told(&host).0.iter().map(|request| request.port).collect();
    assert_eq!(ports, [outer, inner]);
}

#[tokio::test]
async fn a_host_is_internal_for_all_requests_of_a_call_or_for_none() {
    /// Grants internal addresses to one path alone.
    struct Differs;
    impl Host for Differs {
        fn syscall<'a>(
            &'a self,
            op: &'a str,
            args: &'a str,
        ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
            assert_eq!(op, EGRESS);
            let request: EgressRequest = serde_json::from_str(args).unwrap();
            let leave = EgressLeave::Granted {
                internal: request.path == "/inside",
                advice: String::new(),
            };
            let answer = Answer::Json(serde_json::to_string(&leave).unwrap());
            Box::pin(std::future::ready(Ok(answer)))
        }
        fn udf_finished<'a>(
            &'a self,
            _: u64,
            _: Result<String, JsFailure>,
        ) -> BoxFuture<'a, Result<String, SyscallError>> {
            unreachable!("an action has none")
        }
        fn nesting(&self, _: Nesting) {}
    }
    let port = server(|_| plain("inside"));
    let main = format!(
        "export const f = action(async () => {{ const r = await fetch('http://localhost:{port}/inside'); await r.text(); try {{ return [(await fetch('http://localhost:{port}/other')).status]; }} catch (e) {{ return [r.status, e.message]; }} }});"
    );
    let outcome = runtime()
        .run(call(&code(&main), UdfKind::Action, "f"), &Differs)
        .await
        .unwrap();
    let text = outcome.result.unwrap();
    assert!(
        text.starts_with("[200,") && text.contains("differ in whether"),
        "{text}"
    );
}

#[tokio::test]
async fn nothing_of_an_action_stays_for_the_next_call() {
    let code = code("
globalThis.count = (globalThis.count ?? 0) + 1;
export const f = action(async () => {
    const seen = [globalThis.count, Object.prototype.left === undefined, typeof Headers.prototype.get];
    Object.prototype.left = 1;
    Headers.prototype.get = 1;
    setInterval(() => { globalThis.count++; }, 1);
    new Promise(() => {});
    return seen;
});
export const q = query(async () => [globalThis.count, Object.prototype.left === undefined]);");
    let runtime = runtime();
    for _ in 0..5 {
        let outcome = runtime
            .run(call(&code, UdfKind::Action, "f"), &Table::default())
            .await
            .unwrap();
        assert_eq!(outcome.result.as_deref(), Ok(r#"[1,true,"function"]"#));
        let outcome = runtime
            .run(call(&code, UdfKind::Query, "q"), &Table::default())
            .await
            .unwrap();
        assert_eq!(outcome.result.as_deref(), Ok("[1,true]"));
    }
}
