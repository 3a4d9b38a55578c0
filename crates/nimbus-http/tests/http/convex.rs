//! The Convex surface over HTTP: headers, bodies, limits, error shapes, and calls as far as they go
//! without an engine. Functions that run are tested end to end.

use std::collections::BTreeMap;

use nimbus_storage::{DeployPlan, NewModule};
use serde_json::{Value as Json, json};

use crate::harness::{Answer, Ask, Fixture};

const QUERY: &str = "/convex/demo/api/query";

async fn fixture() -> Fixture {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    fixture
}

/// Deploys functions without code: enough for all that is decided before code runs.
async fn deploy(fixture: &Fixture) {
    let function = |name: &str, kind: &str, visibility: &str, args: Json| json!({"name": name, "kind": kind, "visibility": visibility, "args": args.to_string()});
    let text = json!({"type": "object", "value": {"text":
        {"fieldType": {"type": "string"}, "optional": false}}});
    let any = json!({"type": "any"});
    let analysis = json!({"modules": {"messages.js": {"functions": [
        function("list", "query", "public", text.clone()),
        function("send", "mutation", "public", text.clone()),
        function("call", "action", "public", text),
        function("hidden", "query", "internal", any.clone()),
        function("plain", "query", "public", any),
    ]}}, "schema": null, "auth": null});
    let config = json!({"importSeed": "00".repeat(32), "importTimeMs": 0.0});
    let plan = DeployPlan {
        modules: vec![NewModule {
            path: "messages.js".into(),
            environment: "isolate".into(),
            source: "export {}".into(),
            source_map: None,
        }],
        analysis: analysis.to_string().into(),
        udf_config: config.to_string().into(),
        ..DeployPlan::default()
    };
    let tenant = fixture.engine().tenant(&"demo".parse().unwrap()).await;
    tenant.unwrap().deploy(plan).await.unwrap();
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> String {
    answer.expect_convex(status, code)
}

fn call(path: &str, args: Json) -> Json {
    json!({"path": path, "args": args})
}

#[tokio::test]
async fn plain_endpoints_answer_in_plain_text() {
    let fixture = fixture().await;
    for (path, text) in [
        ("/convex/demo/instance_name", "demo"),
        ("/convex/demo/version", env!("CARGO_PKG_VERSION")),
        ("/convex/demo/instance_version", env!("CARGO_PKG_VERSION")),
    ] {
        let answer = fixture.send(Ask::get(path)).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, text), "{path}");
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
    }
    for path in ["/convex/demo", "/convex/demo/"] {
        let answer = fixture.send(Ask::get(path)).await;
        assert!(answer.body.contains("running"), "{answer:?}");
    }
    let echo = Ask::post("/convex/demo/echo").body("x/y", b"\x01body");
    let answer = fixture.send(echo).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "\u{1}body"));
    assert_eq!(answer.header("content-type"), Some("x/y"));
    let missing = fixture.send(Ask::get("/convex/absent/version")).await;
    refused(&missing, 404, "TenantNotFound");
    for path in ["/convex/demo/query", "/convex/demo/api/nothing", "/convex"] {
        refused(&fixture.send(Ask::get(path)).await, 404, "NotFound");
    }
}

#[tokio::test]
async fn headers_are_checked_before_bodies() {
    let fixture = fixture().await;
    let ask = |name: &str, value: &str| Ask::post(QUERY).text("{").header(name, value);
    let jwt = "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.";
    let table = [
        ("convex-client", "npm", 400, "InvalidClientVersion"),
        (
            "convex-client",
            "npm-0.19.1",
            400,
            "ClientVersionUnsupported",
        ),
        ("convex-client", "npm-1.48.0", 400, "BadJsonBody"),
        ("authorization", "", 400, "InvalidHeaderFailure"),
        ("authorization", "Bearer", 400, "InvalidHeaderFailure"),
        ("authorization", "Basic eDp5", 400, "InvalidHeaderFailure"),
        ("authorization", jwt, 401, "NoAuthProvider"),
        ("authorization", "Convex demo|x", 401, "BadDeployKey"),
        ("authorization", "Convex nothing", 401, "BadDeployKey"),
        ("authorization", "Convex demo|x:e30=", 401, "BadDeployKey"),
        ("x-nimbus-admin-token", "wrong", 401, "BadDeployKey"),
    ];
    for (name, value, status, code) in table {
        let answer = fixture.send(ask(name, value)).await;
        refused(&answer, status, code);
    }
    let key = format!("{QUERY}?adminKey=demo%7Cx");
    refused(
        &fixture.send(Ask::post(&key).text("{")).await,
        401,
        "BadDeployKey",
    );
    let twice = format!("{QUERY}?adminKey=a&adminKey=b");
    refused(
        &fixture.send(Ask::post(&twice).text("{")).await,
        400,
        "BadRequest",
    );
}

#[tokio::test]
async fn the_admin_token_and_deploy_keys_open_what_is_internal() {
    let fixture = fixture().await;
    deploy(&fixture).await;
    let (deploy_key, _) = fixture.key("demo", "deploy").await;
    let (read, _) = fixture.key("demo", "read").await;
    let function = "/convex/demo/api/function";
    let body = call("messages:nothing", json!({}));
    for credential in [
        format!("Convex {}", fixture.token),
        format!("Bearer {}", fixture.token),
        format!("Convex {deploy_key}"),
        format!("Convex prod:{deploy_key}"),
        format!("Bearer {deploy_key}"),
        format!("Convex {deploy_key}:eyJ0b2tlbklkZW50aWZpZXIiOiJhfGIifQ=="),
    ] {
        let ask = Ask::post(function)
            .json(&body)
            .header("authorization", &credential);
        let answer = fixture.send(ask).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let text = answer.json()["errorMessage"].as_str().unwrap().to_owned();
        assert!(
            text.contains("Could not find function for 'messages:nothing'. Did you forget"),
            "{text}"
        );
    }
    for path in ["mutation", "action", "function"] {
        let path = format!("/convex/demo/api/{path}");
        let ask = Ask::post(&path).json(&call("messages:send", json!({})));
        let ask = ask.header("authorization", &format!("Convex {read}"));
        let answer = fixture.send(ask).await;
        refused(&answer, 403, "Forbidden");
    }
    let acting = |key: &str, user: &str| {
        let value = format!("Convex {key}:{user}");
        Ask::post(QUERY)
            .json(&call("m:f", json!({})))
            .header("authorization", &value)
    };
    let answer = fixture
        .send(acting(&read, "eyJ0b2tlbklkZW50aWZpZXIiOiJhfGIifQ=="))
        .await;
    refused(&answer, 403, "Forbidden");
    for user in ["", "%%%", "e30=", "W10="] {
        let answer = fixture.send(acting(&deploy_key, user)).await;
        refused(&answer, 400, "InvalidActingAs");
    }
}

#[tokio::test]
async fn what_is_wrong_before_code_runs_is_an_error_of_the_function() {
    let fixture = fixture().await;
    let error = async |path: &str, body: Json| {
        let answer = fixture.send(Ask::post(path).json(&body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        assert_eq!(body["status"], "error", "{answer:?}");
        assert_eq!(body.as_object().unwrap().len(), 2, "{answer:?}");
        let text = body["errorMessage"].as_str().unwrap().to_owned();
        let (head, text) = text.split_once('\n').unwrap();
        let id = head.strip_prefix("[Request ID: ").unwrap();
        let id = id.strip_suffix("] Server Error").unwrap();
        assert!(
            id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        text.to_owned()
    };
    let good = || json!({"text": "x"});
    let unknown = "Could not find public function for 'messages:list'.";
    assert_eq!(error(QUERY, call("messages:list", good())).await, unknown);
    deploy(&fixture).await;
    let hidden = error(QUERY, call("messages:hidden", json!({}))).await;
    assert_eq!(
        hidden,
        "Could not find public function for 'messages:hidden'."
    );
    let absent = error(QUERY, call("messages:absent", json!({}))).await;
    assert_eq!(absent, hidden.replace("hidden", "absent"));
    assert_eq!(
        error(QUERY, call("messages.js:send", good())).await,
        "Function messages:send is registered as a mutation but is being run as a query."
    );
    assert_eq!(
        error("/convex/demo/api/mutation", call("messages:list", good())).await,
        "Function messages:list is registered as a query but is being run as a mutation."
    );
    for (path, name) in [
        (QUERY, "list"),
        ("/convex/demo/api/mutation", "send"),
        ("/convex/demo/api/action", "call"),
    ] {
        let text = error(
            path,
            call(&format!("messages:{name}"), json!([{"text": 1}])),
        )
        .await;
        assert!(
            text.starts_with("ArgumentValidationError: Value does not match validator."),
            "{text}"
        );
        assert!(text.contains("Path: .text"), "{text}");
        let run = format!("/convex/demo/api/run/messages/{name}");
        let text = error(&run, json!({"args": {}})).await;
        assert!(text.contains("missing the required field `text`"), "{text}");
    }
    let deep = (0..65).fold(json!(1), |inner, _| json!({"a": inner}));
    let zeros = json!(vec![vec![0; 8_192]; 228]);
    for (args, says) in [
        (
            json!({"zeros": zeros}),
            "Function arguments are too large (maximum size: 16 MiB)",
        ),
        (deep, "nested 65 levels deep"),
        (json!({"\u{e9}": 1}), "the field name"),
    ] {
        // With a validator and without one.
        for (path, name) in [
            (QUERY, "list"),
            (QUERY, "plain"),
            ("/convex/demo/api/mutation", "send"),
            ("/convex/demo/api/action", "call"),
        ] {
            let text = error(path, call(&format!("messages:{name}"), args.clone())).await;
            assert!(text.contains(says), "{name}: {text}");
        }
    }
    let batch =
        json!({"queries": [call("messages:hidden", json!({})), call("messages:send", json!({}))]});
    let answer = fixture
        .send(Ask::post("/convex/demo/api/query_batch").json(&batch))
        .await;
    let results = answer.json()["results"].as_array().unwrap().len();
    assert_eq!((answer.status, results), (200, 2), "{answer:?}");
}

#[tokio::test]
async fn a_function_that_cannot_run_is_the_servers_affair() {
    let fixture = fixture().await;
    deploy(&fixture).await;
    let ask = Ask::post(QUERY).json(&call("messages:plain", json!({"a": 1})));
    let answer = fixture.send(ask).await;
    let text = refused(&answer, 500, "InternalServerError");
    assert_eq!(text, "Your request couldn't be completed. Try again later.");
    let metrics = fixture
        .admin(Ask::get("/debug/runtime/metrics"))
        .await
        .json();
    assert_eq!(
        metrics["limits"]["runtime_language"], "javascript",
        "{metrics}"
    );
    assert_eq!(metrics["metrics"]["query_cache_misses"], 1, "{metrics}");
    assert_eq!(metrics["metrics"]["query_cache_entries"], 0, "{metrics}");
}

#[tokio::test]
async fn bodies_are_bounded_and_typed() {
    let fixture = fixture().await;
    let plain = Ask::post(QUERY).body("text/plain", b"{}");
    assert_eq!(fixture.send(plain).await.status, 415);
    let announced = format!(
        "POST {QUERY} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        16 * 1024 * 1024 + 2_001
    );
    let answer = fixture.raw(announced.as_bytes()).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    let text = "x".repeat(9 * 1024 * 1024);
    let large = call("m:f", json!({"text": text}));
    let answer = fixture.send(Ask::post(QUERY).json(&large)).await;
    assert_eq!(answer.status, 200, "a body above the native limit is read");
    let short = fixture
        .send(Ask::post("/convex/demo/api/run/fn").json(&json!({"args": {}})))
        .await;
    refused(&short, 400, "MissingIdentifier");
}

#[tokio::test]
async fn timestamps_are_those_of_commits() {
    let fixture = fixture().await;
    let latest = async || {
        let answer = fixture.send(Ask::post("/convex/demo/api/query_ts")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["ts"].as_str().unwrap().to_owned()
    };
    let at = async |ts: &str| {
        let mut body = call("m:f", json!({}));
        body["ts"] = ts.into();
        fixture
            .send(Ask::post("/convex/demo/api/query_at_ts").json(&body))
            .await
    };
    fixture.insert("demo", "tasks", json!({"a": 1})).await;
    let first = latest().await;
    fixture.insert("demo", "tasks", json!({"a": 2})).await;
    let second = latest().await;
    assert_ne!(first, second);
    for ts in [&first, &second] {
        assert_eq!(at(ts).await.status, 200);
    }
    // Still to come.
    refused(&at("//////////8=").await, 503, "OutOfRetention");
    refused(&at("x").await, 400, "BadTimestamp");
}

#[tokio::test]
async fn browsers_of_approved_origins_may_call() {
    let fixture = fixture().await;
    let preflight = |origin: &str| {
        Ask::new("OPTIONS", QUERY)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type,convex-client",
            )
    };
    let answer = fixture.send(preflight("http://localhost:3000")).await;
    assert_eq!(answer.status, 200);
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("convex-client"), "{allowed}");
    let ask = Ask::post(QUERY).json(&call("m:f", json!({})));
    let near = fixture
        .send(ask.clone().header("origin", "http://localhost:3000"))
        .await;
    let origin = near.header("access-control-allow-origin");
    assert_eq!((near.status, origin), (200, Some("http://localhost:3000")));
    // It carries no ambient credential: the call is answered, the page may not read it.
    let far = fixture
        .send(ask.header("origin", "https://evil.example"))
        .await;
    assert_eq!(
        (far.status, far.header("access-control-allow-origin")),
        (200, None)
    );
}

#[tokio::test]
async fn calls_of_anyone_leave_no_line_and_credentials_leave_one() {
    let fixture = fixture().await;
    let (key, _) = fixture.key("demo", "deploy").await;
    let ask = || Ask::post(QUERY).json(&call("m:f", json!({})));
    let anyone = fixture.send(ask()).await;
    assert!(fixture.audit_of(anyone.request_id()).is_empty());
    let mut seen: BTreeMap<&str, Json> = BTreeMap::new();
    for (name, credential) in [("right", key.as_str()), ("wrong", "demo|nimbus_tk_x")] {
        let ask = ask().header("authorization", &format!("Convex {credential}"));
        let answer = fixture.send(ask).await;
        let lines = fixture.audit_of(answer.request_id());
        assert_eq!(lines.len(), 1, "{name}");
        seen.insert(name, lines[0].clone());
    }
    assert_eq!(seen["right"]["success"], true);
    assert_eq!(seen["wrong"]["success"], false);
    assert_eq!(seen["wrong"]["reason"], "auth.credential_wrong");
    assert_eq!(seen["wrong"]["routeFamily"], "convex_http");
    assert_eq!(seen["wrong"]["path"], QUERY);
}
