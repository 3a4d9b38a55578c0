//! Calls as the server sees them: what is kept of queries and until when, what a transaction shows to those
//! who run within it, who the user is, and that no tenant meets another.
//!
//! The functions are in `bare.js`, which is deployed without a bundler and without the package.

use std::collections::BTreeSet;
use std::thread;

use nimbus_e2e::{Client, Options, Server};
use serde_json::{Value as Json, json};

const SOURCE: &str = include_str!("bare.js");

fn server(tenants: &[&str]) -> Server {
    let server = Server::start(Options::new());
    for tenant in tenants {
        server.client().create_tenant(tenant);
        deploy(&server.client(), tenant, SOURCE);
    }
    server
}

fn deploy(client: &Client, tenant: &str, source: &str) {
    let module = json!({"path": "bare.js", "source": source, "environment": "isolate"});
    let body = json!({"appDefinition": {"changedModules": [module],
        "unchangedModuleHashes": [], "udfServerVersion": "1.48.0"}});
    let path = format!("/api/tenants/{tenant}/deployments");
    client.post(&path, &body).expect(200);
}

/// The value of a function of `tenant`, as anybody gets it.
fn value(server: &Server, tenant: &str, kind: &str, name: &str, args: Json) -> Json {
    value_for(&server.anonymous(), tenant, kind, name, args)
}

fn value_for(client: &Client, tenant: &str, kind: &str, name: &str, args: Json) -> Json {
    let body = json!({"path": format!("bare:{name}"), "args": args, "format": "json"});
    let path = format!("/convex/{tenant}/api/{kind}");
    let outcome = client.post(&path, &body).expect(200).json();
    assert_eq!(outcome["status"], "success", "{name}: {outcome}");
    outcome["value"].clone()
}

fn counter(server: &Server, name: &str) -> u64 {
    let report = server.client().get("/debug/runtime/metrics").expect(200);
    report.json()["metrics"][name].as_u64().unwrap()
}

#[test]
fn a_query_is_kept_until_something_that_it_read_changes() {
    let server = server(&["demo"]);
    let query = |name: &str| value(&server, "demo", "query", name, json!({}));
    let hits = || counter(&server, "query_cache_hits");
    let before = hits();
    for _ in 0..3 {
        assert_eq!(query("list"), json!([]));
    }
    assert_eq!(hits() - before, 2);
    // Chance does not keep a result from being kept, so only a run shows another number.
    assert_eq!(query("chance"), query("chance"));
    let chance = query("chance");
    value(&server, "demo", "mutation", "add", json!({"text": "a"}));
    assert_eq!(query("list"), json!(["a"]), "an acknowledged write is seen");
    assert_eq!(query("chance"), chance, "it read nothing that changed");
    let set = |value: Json| {
        let changes = json!({"changes": [{"name": "NAME", "value": value}]});
        let path = "/api/tenants/demo/environment";
        assert!(server.client().post(path, &changes).status < 300);
    };
    assert_eq!(query("variable"), "unset");
    set(json!("x"));
    assert_eq!(query("variable"), "x");
    assert_eq!(
        (query("version"), query("list")),
        (json!("first"), json!(["a"]))
    );
    deploy(
        &server.client(),
        "demo",
        &SOURCE.replace("\"first\"", "\"second\""),
    );
    assert_eq!(query("version"), "second");
    assert_ne!(query("chance"), chance, "it is other code now");
}

#[test]
fn the_same_query_at_the_same_time_runs_once() {
    let server = server(&["demo"]);
    let before = counter(&server, "started_invocations");
    let results: BTreeSet<String> = thread::scope(|scope| {
        let client = server.anonymous();
        let call = move || value_for(&client, "demo", "query", "slow", json!({})).to_string();
        let all: Vec<_> = (0..8).map(|_| scope.spawn(call.clone())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(results.len(), 1);
    assert_eq!(counter(&server, "started_invocations") - before, 1);
}

#[test]
fn without_a_cache_every_query_runs() {
    let options = Options::new().args(&["--runtime-query-cache-mb", "0"]);
    let server = Server::start(options);
    server.client().create_tenant("demo");
    deploy(&server.client(), "demo", SOURCE);
    let chance = || value(&server, "demo", "query", "chance", json!({})).to_string();
    assert_ne!(chance(), chance());
    assert_eq!(counter(&server, "query_cache_hits"), 0);
}

#[test]
fn a_child_that_fails_is_undone_alone_and_a_snapshot_shows_the_beginning() {
    let server = server(&["demo"]);
    value(&server, "demo", "mutation", "add", json!({"text": "old"}));
    let mixed = value(&server, "demo", "mutation", "mixed", json!({}));
    assert_eq!(mixed["caught"], "Uncaught Error: no");
    assert_eq!(mixed["before"], json!(["old"]));
    assert_eq!(mixed["now"], json!(["old", "own"]));
    let list = || value(&server, "demo", "query", "list", json!({}));
    assert_eq!(list(), json!(["old", "own", "child"]));
    let body = json!({"path": "bare:fail", "args": {}});
    let failed = server.anonymous().post("/convex/demo/api/mutation", &body);
    assert_eq!(failed.expect(200).json()["status"], "error");
    assert_eq!(list(), json!(["old", "own", "child"]));
    assert_eq!(
        value(&server, "demo", "mutation", "deep", json!({"left": 7})),
        0
    );
    let body = json!({"path": "bare:deep", "args": {"left": 9}});
    let deep = server.anonymous().post("/convex/demo/api/mutation", &body);
    let text = deep.expect(200).json()["errorMessage"].to_string();
    assert!(text.contains("more than 8 deep"), "{text}");
    assert_eq!(
        value(&server, "demo", "query", "unknown", json!({})),
        json!([
            "Unknown async operation 1.0/nothing",
            "Unknown async operation 1.0/insert",
            "Unknown async operation 1.0/schedule",
        ])
    );
}

#[test]
fn a_user_is_whom_a_deploy_key_acts_as_down_to_the_last_call() {
    let server = server(&["demo"]);
    let key = |scope: &str| {
        let body = json!({"scope": scope});
        let made = server.client().post("/api/tenants/demo/keys", &body);
        made.expect(201).json()["key"].as_str().unwrap().to_owned()
    };
    let ask = |user: &str, name: &str| {
        // {"issuer":"https://id.example","subject":"ann"} and the same of bob.
        let user = match user {
            "ann" => ":eyJpc3N1ZXIiOiJodHRwczovL2lkLmV4YW1wbGUiLCJzdWJqZWN0IjoiYW5uIn0=",
            "bob" => ":eyJpc3N1ZXIiOiJodHRwczovL2lkLmV4YW1wbGUiLCJzdWJqZWN0IjoiYm9iIn0=",
            _ => "",
        };
        let kind = if name == "chain" { "action" } else { "query" };
        let body = json!({"path": format!("bare:{name}"), "args": {"left": 2}});
        let credential = format!("Convex {}{user}", key("deploy"));
        let path = format!("/convex/demo/api/{kind}");
        let headers = [("authorization", credential.as_str())];
        let anybody = server.anonymous();
        let reply = anybody.send_with("POST", &path, &headers, Some(&body));
        reply.unwrap().expect(200).json()["value"].clone()
    };
    // Kept for each user apart.
    for _ in 0..2 {
        assert_eq!(ask("ann", "who"), "ann");
        assert_eq!(ask("bob", "who"), "bob");
        assert_eq!(ask("", "who"), "nobody");
    }
    assert_eq!(ask("", "secret"), "inside");
    assert_eq!(
        ask("ann", "chain"),
        json!(["inside ann", "inside ann", "inside ann"])
    );
}

#[test]
fn tenants_with_the_same_code_never_meet() {
    let server = server(&["demo", "other"]);
    thread::scope(|scope| {
        for tenant in ["demo", "other"] {
            let client = server.anonymous();
            scope.spawn(move || {
                for at in 0..25 {
                    let text = format!("{tenant} {at}");
                    call_until_taken(&client, tenant, "add", &json!({"text": text}));
                    let listed = call_until_taken(&client, tenant, "list", &json!({}));
                    let listed = listed.as_array().unwrap();
                    assert_eq!(listed.len(), at + 1);
                    let own = |text: &Json| text.as_str().unwrap().starts_with(tenant);
                    assert!(listed.iter().all(own), "{tenant}: {listed:?}");
                }
            });
        }
    });
}

/// A call that may have to wait for its tenant's turn.
fn call_until_taken(client: &Client, tenant: &str, name: &str, args: &Json) -> Json {
    let kind = if name == "add" { "mutation" } else { "query" };
    let body = json!({"path": format!("bare:{name}"), "args": args});
    loop {
        let path = format!("/convex/{tenant}/api/{kind}");
        let reply = client.post(&path, &body);
        if reply.status != 429 {
            let outcome = reply.expect(200).json();
            assert_eq!(outcome["status"], "success", "{outcome}");
            return outcome["value"].clone();
        }
    }
}
