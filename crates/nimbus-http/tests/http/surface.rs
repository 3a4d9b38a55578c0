//! What the routes answer when all is well: shapes of nimbus.md 2 and the drill of seed 002.

use serde_json::json;

use crate::harness::{Ask, Fixture};

#[tokio::test]
async fn the_verification_drill_of_seed_002() {
    let fixture = Fixture::start().await;
    for tenant in ["tenant-a", "tenant-b"] {
        let answer = fixture
            .admin(Ask::post("/api/tenants").json(&json!({"id": tenant})))
            .await;
        assert_eq!((answer.status, answer.json()), (201, json!({"id": tenant})));
    }
    fixture
        .insert("tenant-a", "secrets", json!({"value": "tenant-a only"}))
        .await;
    let query = json!({"table": "secrets", "filters": []});
    let answer = fixture
        .admin(Ask::post("/api/tenants/tenant-b/query").json(&query))
        .await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, r#"{"data":[]}"#)
    );
    let answer = fixture
        .admin(Ask::post("/api/tenants/tenant-a/query").json(&query))
        .await;
    assert_eq!(answer.json()["data"][0]["value"], "tenant-a only");
    let evil = Ask::post("/api/tenants").json(&json!({"id": "_evil"}));
    assert_eq!(fixture.admin(evil).await.status, 400);
    assert_eq!(fixture.send(Ask::get("/api/tenants")).await.status, 401);
    for tenant in ["tenant-a", "tenant-b"] {
        let path = format!("/debug/tenants/{tenant}/consistency");
        let report = fixture.admin(Ask::get(&path)).await.json();
        assert_eq!(report["ok"], true, "{report}");
        assert_eq!(report["tenant_id"], tenant);
        assert_eq!(report["mismatches"], json!([]));
    }
    let answer = fixture.admin(Ask::get("/api/tenants")).await;
    assert_eq!(answer.body, r#"{"tenants":["tenant-a","tenant-b"]}"#);
    let answer = fixture
        .admin(Ask::new("DELETE", "/api/tenants/tenant-a"))
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    let files = std::fs::read_dir(fixture.dir.path().join("data")).unwrap();
    let names: Vec<String> = files
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.iter().any(|name| name.starts_with("tenant-a")),
        "{names:?}"
    );
    assert_eq!(
        fixture.admin(Ask::get("/api/tenants")).await.body,
        r#"{"tenants":["tenant-b"]}"#
    );
}

#[tokio::test]
async fn documents_live_their_life() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let fields = json!({"title": "a", "n": 1.5, "big": {"$integer": "AQAAAAAAAAA="}, "raw": {"$bytes": "AQI="}, "list": [null, true], "text": "\u{2028}\"\\"});
    let id = fixture.insert("demo", "tasks", fields.clone()).await;
    let path = format!("/api/tenants/demo/documents/tasks/{id}");
    let document = fixture.admin(Ask::get(&path)).await.json()["document"].clone();
    assert_eq!(document["_id"], id.as_str());
    assert!(document["_creationTime"].as_f64().unwrap() > 1.7e12);
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(document[name], *value, "{name}");
    }
    assert_eq!(
        document.as_object().unwrap().len(),
        fields.as_object().unwrap().len() + 2
    );

    let patch = json!({"patch": {"title": "b", "extra": {"deep": 1}}});
    let answer = fixture.admin(Ask::new("PATCH", &path).json(&patch)).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"id": id})));
    let patched = fixture.admin(Ask::get(&path)).await.json()["document"].clone();
    assert_eq!(
        (&patched["title"], &patched["extra"], &patched["n"]),
        (&json!("b"), &json!({"deep": 1}), &json!(1.5))
    );

    let second = fixture.insert("demo", "tasks", json!({"title": "c"})).await;
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [id.as_str(), second.as_str()]);
    assert_eq!(
        fixture
            .admin(Ask::get("/api/tenants/demo/documents/nothing"))
            .await
            .body,
        r#"{"data":[]}"#
    );

    let answer = fixture.admin(Ask::new("DELETE", &path)).await;
    assert_eq!(
        (
            answer.status,
            answer.body.as_str(),
            answer.header("content-type")
        ),
        (204, "", None)
    );
    let detail = fixture
        .admin(Ask::get(&path))
        .await
        .expect_error(404, "op.document_not_found");
    assert_eq!(detail["documentId"], id.as_str());
}

#[tokio::test]
async fn queries_filter_order_limit_and_page() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    for n in [3, 1, 4, 1, 5] {
        fixture
            .insert("demo", "digits", json!({"n": n, "odd": n % 2 == 1}))
            .await;
    }
    let query = async |body: serde_json::Value| {
        let answer = fixture
            .admin(Ask::post("/api/tenants/demo/query").json(&body))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let data = answer.json()["data"].clone();
        data.as_array()
            .unwrap()
            .iter()
            .map(|d| d["n"].as_f64().unwrap())
            .collect::<Vec<f64>>()
    };
    assert_eq!(
        query(json!({"table": "digits", "filters": []})).await,
        [3.0, 1.0, 4.0, 1.0, 5.0]
    );
    let odd = json!([{"field": "odd", "op": "eq", "value": true}, {"field": "n", "op": "gt", "value": 1}]);
    assert_eq!(
        query(json!({"table": "digits", "filters": odd})).await,
        [3.0, 5.0]
    );
    let ordered = json!({"table": "digits", "filters": [], "order": {"field": "n", "direction": "desc"}, "limit": 2});
    assert_eq!(query(ordered).await, [5.0, 4.0]);

    let (mut after, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
    loop {
        let body = json!({"query": {"table": "digits", "filters": [], "order": {"field": "n", "direction": "asc"}}, "page_size": 2, "after": after});
        let answer = fixture
            .admin(Ask::post("/api/tenants/demo/query/paginated").json(&body))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        assert_eq!(page.as_object().unwrap().len(), 3, "{page}");
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d["n"].as_f64().unwrap()),
        );
        pages += 1;
        after = page["next_cursor"].as_str().map(str::to_owned);
        assert_eq!(page["has_more"], after.is_some(), "{page}");
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (vec![1.0, 1.0, 3.0, 4.0, 5.0], 3));
}

#[tokio::test]
async fn schemas_are_put_read_and_removed() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let path = "/api/tenants/demo/schema/tasks";
    assert_eq!(
        fixture
            .admin(Ask::get("/api/tenants/demo/schema"))
            .await
            .body,
        r#"{"tables":{}}"#
    );
    let schema = json!({
        "table": "tasks",
        "fields": [
            {"name": "title", "field_type": "string", "required": true},
            {"name": "n", "field_type": "number", "required": false},
        ],
        "indexes": [{"name": "by_n", "fields": ["n", "title"]}],
    });
    let answer = fixture.admin(Ask::new("PUT", path).json(&schema)).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    let read = fixture.admin(Ask::get(path)).await.json();
    assert_eq!(
        (&read["table"], &read["fields"]),
        (&schema["table"], &schema["fields"])
    );
    assert_eq!(read["indexes"][0]["name"], "by_n");
    assert_eq!(read["indexes"][0]["fields"], json!(["n", "title"]));
    assert!(read["indexes"][0]["state"].is_string(), "{read}");
    let all = fixture
        .admin(Ask::get("/api/tenants/demo/schema"))
        .await
        .json();
    assert_eq!(all["tables"]["tasks"]["table"], "tasks");
    // What was read can be sent back.
    assert_eq!(
        fixture
            .admin(Ask::new("PUT", path).json(&read))
            .await
            .status,
        204
    );
    assert_eq!(fixture.admin(Ask::new("DELETE", path)).await.status, 204);
    fixture
        .admin(Ask::get(path))
        .await
        .expect_error(404, "op.schema_not_found");
}

#[tokio::test]
async fn the_journal_tells_every_commit_and_prune_drops_it() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(fixture.insert("demo", "tasks", json!({"n": n})).await);
    }
    let page = fixture
        .admin(Ask::get("/api/tenants/demo/journal"))
        .await
        .json();
    let writes: Vec<&str> = page["records"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|record| record["writes"].as_array().unwrap())
        .filter(|write| write["table"] == "tasks")
        .map(|write| {
            assert_eq!(
                (&write["op_type"], &write["previous"]),
                (&json!("insert"), &json!(null))
            );
            write["doc_id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(writes, ids);
    assert_eq!(page["has_more"], false);
    let record = page["records"][0].clone();
    assert_eq!(record["integrity_sha256"].as_str().unwrap().len(), 64);

    let commit = record["commit_id"].as_str().unwrap();
    let path = format!("/api/tenants/demo/commits/{commit}");
    let answer = fixture.admin(Ask::get(&path)).await.json();
    assert_eq!(
        answer,
        json!({"committed": true, "sequence": record["sequence"]})
    );
    let path = format!("/api/tenants/demo/commits/{}", "0".repeat(32));
    let answer = fixture.admin(Ask::get(&path)).await.json();
    assert_eq!(answer, json!({"committed": false, "sequence": null}));

    let one = fixture
        .admin(Ask::get("/api/tenants/demo/journal?limit=1&after=1"))
        .await
        .json();
    assert_eq!(one["records"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&one["records"][0]["sequence"], &one["next_cursor"]),
        (&json!(2), &json!(2))
    );

    let bootstrap = fixture
        .admin(Ask::get("/api/tenants/demo/journal/bootstrap"))
        .await
        .json();
    assert_eq!(
        bootstrap["resume_after_sequence"], page["latest_sequence"],
        "{bootstrap}"
    );

    let answer = fixture.admin(Ask::post("/api/tenants/demo/prune")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["pruned"].as_u64().unwrap() >= 3, "{answer:?}");
    fixture
        .admin(Ask::get("/api/tenants/demo/journal?after=0"))
        .await
        .expect_error(409, "op.out_of_retention");
    // Who names no position gets what there is.
    let start = fixture.admin(Ask::get("/api/tenants/demo/journal")).await;
    assert_eq!(start.status, 200, "{start:?}");
    let floor = start.json()["cursor_floor"].as_u64().unwrap();
    assert!(floor >= 3, "{start:?}");
    assert_eq!(start.json()["records"], json!([]), "{start:?}");
    fixture.insert("demo", "tasks", json!({"n": 3})).await;
    let next = fixture
        .admin(Ask::get("/api/tenants/demo/journal"))
        .await
        .json();
    assert_eq!(next["records"][0]["sequence"], floor + 1, "{next}");
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    assert_eq!(list["data"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn reports_have_their_documented_shapes() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    fixture.insert("demo", "tasks", json!({})).await;
    let report = async |path: &str| fixture.admin(Ask::get(path)).await.json();
    assert_eq!(
        report("/debug/encryption/status").await,
        json!({"enabled": false, "encrypted_families": [], "descriptor": {"status": "disabled"}})
    );
    let runtime = report("/debug/runtime/metrics").await;
    assert_eq!(runtime["limits"]["max_heap_mb"], 128, "{runtime}");
    assert_eq!(
        runtime["limits"]["execution_timeout_ms"], 30_000,
        "{runtime}"
    );
    for counter in [
        "started_invocations",
        "queued_invocations",
        "query_cache_hits",
    ] {
        assert_eq!(runtime["metrics"][counter], 0, "{runtime}");
    }
    assert!(runtime["reset_capabilities"].is_null());
    assert_eq!(runtime["lanes"], json!([]));
    let license = report("/debug/license/status").await;
    assert_eq!(
        (&license["kind"], &license["status"]),
        (&json!("community"), &json!("community"))
    );
    assert_eq!(license["entitlements"].as_object().unwrap().len(), 8);
    assert!(license["usage"]["month_start_unix_ms"].as_i64().unwrap() > 1_700_000_000_000);
    let metrics = report("/debug/tenants/demo/engine/metrics").await;
    assert_eq!(metrics["tenant_id"], "demo");
    for part in [
        "mutation_admission",
        "mutation_journal",
        "subscription_delivery",
        "query_planning",
    ] {
        assert!(
            metrics["diagnostics"][part].is_object(),
            "{part}: {metrics}"
        );
    }
    let version = report("/api/system/version-info").await;
    assert_eq!(version["current"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&version["checkStatus"], &version["available"]),
        (&json!("disabled"), &json!(false))
    );
    assert!(version["publishedAt"].is_null() && version["upgrade"].is_null());

    let text = fixture.admin(Ask::get("/metrics")).await;
    assert!(
        text.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    for part in [
        "nimbus_http_requests_total{family=\"native_api\",status=\"201\"} 2",
        "nimbus_open_tenants 1",
        "nimbus_commit_syncs_total",
        "process_resident_memory_bytes",
        "# EOF",
    ] {
        assert!(text.body.contains(part), "{part} is not in {}", text.body);
    }
    assert!(!text.body.contains("demo"), "metrics name a tenant");
}
