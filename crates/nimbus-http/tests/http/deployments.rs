//! Deployments and variables, as far as no code has to run: there is no worker here.

use serde_json::{Value as Json, json};

use crate::harness::{Answer, Ask, Fixture};

const PATH: &str = "/api/tenants/demo/deployments";
const ENVIRONMENT: &str = "/api/tenants/demo/environment";

/// Deploys an application without modules, with more members in the body.
pub async fn deploy(fixture: &Fixture, tenant: &str, more: &Json) -> Answer {
    let app = json!({"schema": null, "changedModules": [], "udfServerVersion": "1.48.0"});
    let mut body = json!({"appDefinition": app});
    for (name, value) in more.as_object().unwrap() {
        match name.as_str() {
            "dryRun" | "message" | "componentDefinitions" => body[name] = value.clone(),
            _ => body["appDefinition"][name] = value.clone(),
        }
    }
    let path = format!("/api/tenants/{tenant}/deployments");
    fixture.admin(Ask::post(&path).json(&body)).await
}

fn module(path: &str, environment: &str) -> Json {
    json!({"path": path, "source": "export const x = 1;", "environment": environment})
}

async fn generations(fixture: &Fixture) -> Vec<u64> {
    let listed = fixture.admin(Ask::get(PATH)).await.json();
    let all = listed["deployments"].as_array().unwrap().iter();
    all.map(|one| one["generation"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn deployments_are_listed_newest_first_and_can_come_back() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let dry = deploy(&fixture, "demo", &json!({"dryRun": true})).await;
    assert_eq!(dry.status, 200, "{dry:?}");
    assert_eq!(
        (&dry.json()["dryRun"], &dry.json()["deployment"]),
        (&json!(true), &Json::Null)
    );
    assert_eq!(generations(&fixture).await, [0_u64; 0]);

    let first = deploy(&fixture, "demo", &json!({"message": "the first"}))
        .await
        .json();
    assert_eq!(first["previousGeneration"], Json::Null);
    let second = deploy(&fixture, "demo", &json!({})).await.json();
    assert_eq!(second["previousGeneration"], 1);
    let id = first["deployment"]["id"].as_str().unwrap();
    let back = fixture
        .admin(Ask::post(&format!("{PATH}/{id}/rollback")))
        .await;
    assert_eq!(back.status, 200, "{back:?}");
    assert_eq!(back.json()["deployment"]["generation"], 3);
    assert_eq!(generations(&fixture).await, [3, 2, 1]);
    let listed = fixture.admin(Ask::get(PATH)).await.json();
    assert_eq!(listed["deployments"][2]["message"], "the first");
    assert_eq!(listed["deployments"][2]["id"], id);

    let reasons: Vec<Json> = fixture
        .audit()
        .iter()
        .map(|line| line["reason"].clone())
        .collect();
    let new = back.json()["deployment"]["id"].as_str().unwrap().to_owned();
    assert!(
        reasons.contains(&json!(format!("deployment.created {id}"))),
        "{reasons:?}"
    );
    assert!(
        reasons.contains(&json!(format!("deployment.rolled_back {id} {new}"))),
        "{reasons:?}"
    );

    let unknown = format!("{PATH}/{}/rollback", "0".repeat(32));
    fixture
        .admin(Ask::post(&unknown))
        .await
        .expect_error(404, "op.not_found");
    for id in ["x", &"0".repeat(31), &"G".repeat(32)] {
        let path = format!("{PATH}/{id}/rollback");
        fixture
            .admin(Ask::post(&path))
            .await
            .expect_error(400, "op.invalid_input");
    }
    deploy(&fixture, "nobody", &json!({}))
        .await
        .expect_error(404, "session.tenant_not_found");
}

#[tokio::test]
async fn what_cannot_be_deployed_is_refused_with_a_word_for_it() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    for (more, word) in [
        (
            json!({"changedModules": [module("a-b.js", "isolate")]}),
            "InvalidModulePath",
        ),
        (
            json!({"changedModules": [module("../a.js", "isolate")]}),
            "InvalidModulePath",
        ),
        (
            json!({"changedModules": [module("a.js", "node")]}),
            "NodeNotSupported",
        ),
        (
            json!({"changedModules": [module("a.js", "isolate"), module("a.js", "isolate")]}),
            "InvalidModules",
        ),
        (
            json!({"schema": module("other.js", "isolate")}),
            "InvalidModules",
        ),
        (
            json!({"componentDefinitions": [{}]}),
            "ComponentsNotSupported",
        ),
        (json!({"message": "m".repeat(1_025)}), "InvalidModules"),
    ] {
        let answer = deploy(&fixture, "demo", &more).await;
        answer.expect_error(400, "op.invalid_input");
        assert_eq!(answer.json()["error"]["detail"]["pushCode"], word, "{more}");
    }
    for body in [
        json!({}),
        json!([]),
        json!({"appDefinition": {}}),
        json!({"appDefinition": 1}),
    ] {
        fixture
            .admin(Ask::post(PATH).json(&body))
            .await
            .expect_error(400, "op.invalid_input");
    }
    assert_eq!(generations(&fixture).await, [0_u64; 0]);
}

#[tokio::test]
async fn a_deployment_may_be_longer_than_other_bodies() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let mut definition = module("convex.config.js", "isolate");
    definition["source"] = json!("/".repeat(9 << 20));
    let answer = deploy(&fixture, "demo", &json!({"definition": definition})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn variables_change_together_or_not_at_all() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let change = async |changes: Json| {
        let body = json!({"changes": changes});
        fixture.admin(Ask::post(ENVIRONMENT).json(&body)).await
    };
    let all = async || fixture.admin(Ask::get(ENVIRONMENT)).await.json()["variables"].clone();
    assert_eq!(all().await, json!([]));
    let set = json!([{"name": "B", "value": "canary"}, {"name": "A", "value": ""}]);
    assert_eq!(change(set).await.status, 204);
    let both = json!([{"name": "A", "value": ""}, {"name": "B", "value": "canary"}]);
    assert_eq!(all().await, both);
    let many: Vec<Json> = (0..513)
        .map(|i| json!({"name": format!("V{i}"), "value": ""}))
        .collect();
    for bad in [
        json!([{"name": "C", "value": "1"}, {"name": "1C", "value": "1"}]),
        json!([{"name": "C", "value": "1"}, {"name": "CONVEX_SITE_URL", "value": "1"}]),
        json!([{"name": "", "value": "1"}]),
        json!([{"name": "C", "value": "x".repeat(8_193)}]),
        json!([{"name": "C", "value": 1}]),
        json!([{"name": "C", "value": "1", "more": 1}]),
        json!([{"value": "1"}]),
        json!({}),
        json!(many),
    ] {
        change(bad.clone())
            .await
            .expect_error(400, "op.invalid_input");
        assert_eq!(all().await, both, "{bad}");
    }
    assert_eq!(
        change(json!([{"name": "A"}, {"name": "B", "value": null}]))
            .await
            .status,
        204
    );
    assert_eq!(all().await, json!([]));
    let log = std::fs::read_to_string(&fixture.audit_path).unwrap();
    assert!(
        log.contains("environment.changed B,A") && !log.contains("canary"),
        "{log}"
    );
}
