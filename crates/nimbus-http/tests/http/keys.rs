//! Keys of tenants from their making to their end, and what they show of other tenants: nothing.

use std::num::NonZeroU32;

use nimbus_http::{FailedTokenLimits, RouteClass, ServerConfig, route_table};
use serde_json::{Value as Json, json};

use crate::harness::{Answer, Ask, Fixture};
use crate::routes::fill;

fn keyed(ask: Ask, key: &str) -> Ask {
    ask.header("authorization", &format!("Convex {key}"))
}

#[tokio::test]
async fn a_key_lives_from_its_making_to_its_revocation() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let body = json!({"scope": "write", "name": "ci", "expiresInMs": 3_600_000});
    let path = "/api/tenants/demo/keys";
    let made = fixture.admin(Ask::post(path).json(&body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let made = made.json();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(
        key.starts_with("demo|nimbus_tk_") && !key.contains(':'),
        "{key}"
    );
    let (created, expires) = (made["createdMs"].as_u64(), made["expiresMs"].as_u64());
    assert_eq!(created.unwrap() + 3_600_000, expires.unwrap());
    assert_eq!(
        (&made["scope"], &made["name"]),
        (&json!("write"), &json!("ci"))
    );

    let insert = json!({"table": "notes", "fields": {"a": 1}});
    let insert = Ask::post("/api/tenants/demo/documents").json(&insert);
    assert_eq!(fixture.send(keyed(insert.clone(), key)).await.status, 201);
    let schema = Ask::new("DELETE", "/api/tenants/demo/schema/notes");
    let denied = fixture.send(keyed(schema, key)).await;
    denied.expect_error(403, "auth.permission_denied");

    let (_, other) = fixture.key("demo", "read").await;
    let listed = fixture.admin(Ask::get(path)).await;
    assert!(!listed.body.contains("nimbus_tk_") && !listed.body.contains("digest"));
    let listed = listed.json();
    let ids: Vec<&str> = listed["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [id, other.as_str()]);
    assert_eq!(listed["keys"][1]["expiresMs"], Json::Null);

    let revoke = format!("{path}/{id}");
    assert_eq!(fixture.admin(Ask::new("DELETE", &revoke)).await.status, 204);
    let dead = fixture.send(keyed(insert, key)).await;
    dead.expect_error(401, "auth.unauthorized");
    let again = fixture.admin(Ask::new("DELETE", &revoke)).await;
    again.expect_error(404, "op.not_found");
    let secret = key.split_once('|').unwrap().1;
    let log = std::fs::read_to_string(&fixture.audit_path).unwrap();
    assert!(!log.contains(&secret[..20]), "the log shows the secret");
}

#[tokio::test]
async fn an_admin_key_makes_keys_and_a_deleted_tenant_takes_them_along() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let (admin, _) = fixture.key("demo", "admin").await;
    let path = "/api/tenants/demo/keys";
    let ask = Ask::post(path).json(&json!({"scope": "read"}));
    let made = fixture.send(keyed(ask, &admin)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let expired = fixture.expired_key("demo", "admin").await;
    let list = |key: &str| keyed(Ask::get(path), key);
    fixture
        .send(list(&expired))
        .await
        .expect_error(401, "auth.unauthorized");
    let delete = Ask::new("DELETE", "/api/tenants/demo");
    let denied = fixture.send(keyed(delete.clone(), &admin)).await;
    denied.expect_error(403, "auth.permission_denied");
    assert_eq!(fixture.admin(delete).await.status, 204);
    fixture
        .send(list(&admin))
        .await
        .expect_error(401, "auth.unauthorized");
    // A new tenant of the same name has none of the old one's keys.
    fixture.tenant("demo").await;
    fixture
        .send(list(&admin))
        .await
        .expect_error(401, "auth.unauthorized");
}

#[tokio::test]
async fn bad_keys_are_not_made() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let path = "/api/tenants/demo/keys";
    let long = "x".repeat(129);
    for body in [
        json!({}),
        json!({"scope": "root"}),
        json!({"scope": "Read"}),
        json!({"scope": null}),
        json!({"scope": "read", "name": long}),
        json!({"scope": "read", "name": "a\nb"}),
        json!({"scope": "read", "name": 1}),
        json!({"scope": "read", "expiresInMs": 0}),
        json!({"scope": "read", "expiresInMs": -1}),
        json!({"scope": "read", "expiresInMs": 1.5}),
        json!({"scope": "read", "expires": 1}),
        json!([]),
    ] {
        let answer = fixture.admin(Ask::post(path).json(&body)).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        answer.expect_error(400, "op.invalid_input");
    }
    let huge = r#"{"scope":"read","expiresInMs":18446744073709551615}"#;
    let huge = fixture.admin(Ask::post(path).text(huge)).await;
    assert_eq!(huge.status, 400, "{huge:?}");
    let listed = fixture.admin(Ask::get(path)).await.json();
    assert_eq!(listed, json!({"keys": []}));
    for id in ["x", "0123456789ABCDEF", "0123456789abcdef0", "%00"] {
        let path = format!("{path}/{id}");
        let answer = fixture.admin(Ask::new("DELETE", &path)).await;
        answer.expect_error(400, "op.invalid_input");
    }
}

/// An answer with what differs from one request to the next taken out, and the tenant's name.
fn comparable(answer: &Answer, tenant: &str) -> String {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| name != "x-request-id" && name != "date");
    let mut body = answer.body.clone();
    if let Ok(mut json) = serde_json::from_str::<Json>(&body)
        && json["error"].is_object()
    {
        json["error"]["requestId"] = Json::Null;
        json["error"]["timestamp"] = Json::Null;
        body = json.to_string();
    }
    format!("{} {headers:?} {body}", answer.status).replace(tenant, "TENANT")
}

/// Every route below a tenant, asked with a key of another one: whether the tenant is there makes no
/// difference, and the answer is the one that the operator gets for a tenant that is not there.
#[tokio::test]
async fn a_key_finds_no_other_tenant() {
    let fixture = Fixture::start().await;
    for tenant in ["demo", "present"] {
        fixture.tenant(tenant).await;
    }
    let canary = "canary-7d1f0c";
    fixture
        .insert("present", "tasks", json!({"secret": canary}))
        .await;
    let (key, _) = fixture.key("demo", "admin").await;
    let missing = fixture.admin(Ask::get("/api/tenants/missing/schema")).await;
    missing.expect_error(404, "session.tenant_not_found");
    let expected = comparable(&missing, "missing");
    let before = fixture.state().await;
    let mut driven = 0;
    for route in route_table() {
        if !route.path.starts_with("/api/tenants/{tenant}") {
            continue;
        }
        for tenant in ["present", "missing"] {
            let path =
                fill(route.path, "k1", &"0".repeat(32)).replace("/demo", &format!("/{tenant}"));
            let mut ask = Ask::new(route.method.as_str(), &path);
            if let Some((example, media)) = route.example.zip(route.media) {
                ask = ask.body(media, example.as_bytes());
            }
            for form in ["Convex", "Bearer"] {
                let ask = ask
                    .clone()
                    .header("authorization", &format!("{form} {key}"));
                let answer = fixture.send(ask).await;
                assert!(!answer.body.contains(canary));
                assert_eq!(
                    comparable(&answer, tenant),
                    expected,
                    "{} {path}",
                    route.method
                );
                driven += 1;
            }
        }
    }
    assert!(driven > 100, "{driven}");
    assert_eq!(fixture.state().await, before);
}

/// The same on the Convex surface, where the answer names no tenant and so is equal as it is.
#[tokio::test]
async fn a_key_calls_no_function_of_another_tenant() {
    let fixture = Fixture::start().await;
    for tenant in ["demo", "present"] {
        fixture.tenant(tenant).await;
    }
    let (key, _) = fixture.key("demo", "admin").await;
    let mut answers = std::collections::BTreeSet::new();
    for route in route_table() {
        if route.class != RouteClass::Convex {
            continue;
        }
        for tenant in ["present", "missing", "_nimbus", "a%20b"] {
            let path = fill(route.path, "k1", "").replace("/demo", &format!("/{tenant}"));
            let ask = Ask::new(route.method.as_str(), &path);
            let ask = ask.json(&json!({"path": "m:f", "args": {}}));
            let answer = fixture.send(keyed(ask.clone(), &key)).await;
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            assert_eq!(answer.json()["code"], "TenantNotFound", "{path}");
            answers.insert(comparable(&answer, "TENANT"));
            if tenant != "present" {
                let anyone = fixture.send(ask).await;
                answers.insert(comparable(&anyone, "TENANT"));
            }
        }
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn failed_keys_are_slowed_down_and_right_ones_are_not() {
    let mut config = ServerConfig::default();
    let mut limits = FailedTokenLimits::default();
    limits.client_burst = NonZeroU32::new(2).unwrap();
    // Nobody may wait, so whoever is too much is told so at once.
    limits.waiting = 0;
    config.failed_tokens = limits;
    let fixture = Fixture::start_with(config).await;
    fixture.tenant("demo").await;
    let (key, _) = fixture.key("demo", "read").await;
    let ask = |key: &str| keyed(Ask::get("/api/tenants/demo/schema"), key);
    let mut last = fixture.send(ask("demo|nimbus_tk_x")).await.status;
    for _ in 0..2 {
        let call = Ask::post("/convex/demo/api/query").json(&json!({"path": "m:f", "args": {}}));
        last = fixture.send(keyed(call, "demo|nimbus_tk_x")).await.status;
    }
    assert_eq!(last, 429);
    let many = fixture.send(ask(&format!("{key}x"))).await;
    many.expect_error(429, "rate.resource_exhausted");
    for _ in 0..5 {
        assert_eq!(fixture.send(ask(&key)).await.status, 200);
    }
}
