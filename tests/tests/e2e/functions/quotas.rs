//! What the policy of a tenant lets it take up: each quota is reached and answered with a code that says so.
//!
//! It must not know how quotas are counted.

use nimbus_e2e::{Reply, wait};
use serde_json::json;

use super::policies::{app, policy};
use super::{World, call};

/// A tenant that is governed by this policy.
fn governed(quotas: &str, more: &str) -> World {
    let world = World::with(app());
    world.app.deployed(&world.server, "demo");
    let defaults = format!("defaults: {{tenant_quotas: {{{quotas}}}}}\n");
    let text = format!("{defaults}{}", policy(more));
    let body = json!({ "policy": text });
    world
        .client()
        .put("/api/tenants/demo/policy", &body)
        .expect(200);
    world
}

fn add(world: &World, text: &str) -> Reply {
    world.call("mutation", "main:add", &json!({ "text": text }))
}

#[test]
fn documents_and_bytes_are_bounded_for_every_way_in() {
    let world = governed("documents: 3", "");
    let client = world.client();
    let native = |text: &str| {
        client.post(
            "/api/tenants/demo/documents",
            &json!({"table": "notes", "fields": {"text": text}}),
        )
    };
    let first = add(&world, "one").expect(200).json()["value"].clone();
    native("two").expect(201);
    add(&world, "three").expect(200);
    // As the function's client sees it, and as the native API says it.
    assert_eq!(
        add(&world, "four").convex_refusal(507),
        "service.storage_full"
    );
    let refused = native("four").refused(507, "service.storage_full");
    assert_eq!(
        refused.error()["detail"],
        json!({"quota": "documents", "limit": 3, "observed": 4})
    );
    assert_eq!(refused.error()["retryable"], false);
    assert_eq!(world.value("query", "main:count", &json!({})), 3.0);
    let usage = client.get("/api/tenants/demo/policy").expect(200).json()["usage"].clone();
    assert_eq!(usage["documents"], 3);
    // What makes room goes through, and then there is room.
    world.value("mutation", "main:remove", &json!({ "id": first }));
    add(&world, "four").expect(200);
    assert_eq!(add(&world, "five").status, 507);

    let bytes = usage["bytes"].as_u64().unwrap();
    let text = format!(
        "defaults: {{tenant_quotas: {{storage_bytes: {}}}}}\n{}",
        bytes + 5_000,
        policy("")
    );
    client
        .put("/api/tenants/demo/policy", &json!({ "policy": text }))
        .expect(200);
    let long = "x".repeat(4_000);
    let large = add(&world, &long).expect(200).json()["value"].clone();
    assert_eq!(
        add(&world, &long).convex_refusal(507),
        "service.storage_full"
    );
    assert_eq!(
        native(&long).refused(507, "service.storage_full").error()["detail"]["quota"],
        "storage_bytes"
    );
    world.value("mutation", "main:cut", &json!({ "id": large }));
    add(&world, &long).expect(200);
    // Counted again after a restart, it is the same.
    let mut world = world;
    let before = world
        .client()
        .get("/api/tenants/demo/policy")
        .expect(200)
        .json()["usage"]
        .clone();
    world.server.terminate();
    world.server.restart();
    assert_eq!(add(&world, &long).status, 507);
    let after = world
        .client()
        .get("/api/tenants/demo/policy")
        .expect(200)
        .json()["usage"]
        .clone();
    assert_eq!(before, after);
}

#[test]
fn requests_have_a_rate_and_operators_none() {
    let world = governed("requests_per_second: 5", "");
    let client = world.client();
    client.create_tenant("other");
    let mut refused = None;
    // A burst of ten is saved up; with the time that passes meanwhile some more.
    for _ in 0..2_000 {
        let reply = world.call("query", "main:count", &json!({}));
        if reply.status != 200 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("a loop of requests is faster than five in a second");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.convex_refusal(429), "rate.limited");
    for _ in 0..50 {
        client.get("/api/tenants/demo/documents/notes").expect(200);
    }
    assert!(client.metric("nimbus_policy_refusals_rate_total") >= 1);
    wait::until("a request is taken again", || {
        world.call("query", "main:count", &json!({})).status == 200
    });
}

#[test]
fn functions_run_within_their_bounds() {
    let call = "function_call: {timeout_ms: 300, user_cpu_ms: 100, log_bytes: 250}";
    let bounded = |name: &str| {
        format!("- {{kind: runtime_function, name: 'main:{name}', quotas: {{{call}}}}}\n")
    };
    let workloads = bounded("spin")
        + &bounded("talk")
        + &bounded("wait")
        + "- {kind: runtime_function, name: 'main:count', runtime: {tier: microvm_service}}";
    let world = governed("active_functions: 1", &workloads);
    let failure = world.failure("query", "main:spin", &json!({}));
    assert!(failure.contains("maximum duration: 100ms"), "{failure}");
    let failure = world.failure("action", "main:wait", &json!({"ms": 60_000}));
    assert!(failure.contains("maximum duration: 300ms"), "{failure}");
    let talk = world
        .call("query", "main:talk", &json!({}))
        .expect(200)
        .json();
    let lines: Vec<&str> = talk["logLines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    assert_eq!((lines.len(), talk["value"].as_str()), (3, Some("said")));
    assert!(lines[2].contains("maximum 250 bytes"), "{lines:?}");
    // Operators are told why, others only that it is so.
    let body = json!({"path": "main:count", "args": {}});
    let told = world.client().post("/convex/demo/api/query", &body);
    assert!(
        told.text().contains("belongs to microvm_service"),
        "{}",
        told.text()
    );
    let refused = world.call("query", "main:count", &json!({}));
    assert!(!refused.text().contains("microvm"), "{}", refused.text());
    assert_eq!(refused.convex_refusal(403), "Forbidden");
}

#[test]
fn a_tenant_runs_as_many_functions_as_its_policy_allows() {
    let world = governed("active_functions: 1", "");
    let client = world.client();
    let counters = || client.get("/debug/runtime/metrics").expect(200).json()["metrics"].clone();
    let started = |least: u64| {
        wait::until("functions run", || {
            counters()["started_invocations"].as_u64() >= Some(least)
        });
    };
    let base = counters()["started_invocations"].as_u64().unwrap();
    let anybody = world.server.anonymous();
    let waiting = |ms: u64| call(&anybody, "action", "main:wait", &json!({ "ms": ms }));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| waiting(3_000));
        started(base + 1);
        // The first waits for its timer, and still is the one function that may run: the others queue, and those
        // that do not fit are refused.
        let many: Vec<_> = (0..12).map(|_| scope.spawn(|| waiting(1).status)).collect();
        let statuses: Vec<u16> = many.into_iter().map(|call| call.join().unwrap()).collect();
        let of = |status: u16| statuses.iter().filter(|found| **found == status).count();
        assert_eq!(of(200) + of(429), 12, "{statuses:?}");
        assert!(of(429) >= 1 && of(200) >= 1, "{statuses:?}");
        let first = first.join().unwrap().expect(200).json();
        assert_eq!(first["value"], "waited");
    });
}
