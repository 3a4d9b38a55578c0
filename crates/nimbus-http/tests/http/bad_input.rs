//! The "Bad input" list of the issue, as far as it is HTTP: each item gets the envelope with the
//! right status and code, and changes nothing.

use nimbus_http::ServerConfig;
use serde_json::{Value as Json, json};

use crate::harness::{Answer, Ask, Fixture};

/// A server with tenants `a` and `b`, each with documents in `tasks` and `notes`.
struct World {
    fixture: Fixture,
    task: String,
    note: String,
    foreign: String,
    before: Json,
}

impl World {
    async fn new() -> World {
        World::with(ServerConfig::default()).await
    }

    async fn with(config: ServerConfig) -> World {
        let fixture = Fixture::start_with(config).await;
        fixture.tenant("a").await;
        fixture.tenant("b").await;
        let task = fixture
            .insert("a", "tasks", json!({"n": 1, "title": "one"}))
            .await;
        let note = fixture.insert("a", "notes", json!({"n": 2})).await;
        let foreign = fixture.insert("b", "tasks", json!({"n": 3})).await;
        let schema = json!({
            "table": "strict",
            "fields": [{"name": "title", "field_type": "string", "required": true}],
            "indexes": [],
        });
        let put = Ask::new("PUT", "/api/tenants/a/schema/strict").json(&schema);
        assert_eq!(fixture.admin(put).await.status, 204);
        let before = fixture.state().await;
        World {
            fixture,
            task,
            note,
            foreign,
            before,
        }
    }

    async fn admin(&self, ask: Ask) -> Answer {
        self.fixture.admin(ask).await
    }

    /// Sends `ask`, asserts the refusal and that nothing changed; returns the detail.
    async fn refuses(&self, ask: Ask, status: u16, code: &str) -> Json {
        let shown = format!("{ask:?}");
        let answer = self.admin(ask).await;
        assert_eq!(answer.status, status, "{shown}\n{answer:?}");
        let detail = answer.expect_error(status, code);
        assert_eq!(
            self.fixture.state().await,
            self.before,
            "{shown} changed something"
        );
        let lines = self.fixture.audit_of(answer.request_id());
        assert_eq!(lines.len(), 1, "{shown}: {lines:?}");
        assert_eq!(lines[0]["status"], status, "{shown}: {lines:?}");
        detail
    }
}

/// Every route that takes a body, with its method.
const BODIES: [(&str, &str); 6] = [
    ("POST", "/api/tenants"),
    ("POST", "/api/tenants/a/documents"),
    ("PATCH", "/api/tenants/a/documents/tasks/x"),
    ("POST", "/api/tenants/a/query"),
    ("POST", "/api/tenants/a/query/paginated"),
    ("PUT", "/api/tenants/a/schema/tasks"),
];

#[tokio::test]
async fn bodies_that_are_not_json() {
    let world = World::new().await;
    let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
    let deep_field = format!(
        r#"{{"table":"tasks","fields":{{"a":{}1{}}}}}"#,
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("white space", b"  \n".to_vec()),
        ("cut off", br#"{"table":"tasks","fields":{"#.to_vec()),
        ("single quotes", b"{'table':'tasks'}".to_vec()),
        ("trailing comma", br#"{"table":"tasks",}"#.to_vec()),
        (
            "trailing data",
            br#"{"table":"tasks","fields":{}} {}"#.to_vec(),
        ),
        ("NaN", br#"{"table":"tasks","fields":{"a":NaN}}"#.to_vec()),
        (
            "not UTF-8",
            b"{\"table\":\"ta\xff\xfesks\",\"fields\":{}}".to_vec(),
        ),
        (
            "lone surrogate",
            br#"{"table":"tasks","fields":{"a":"\ud800"}}"#.to_vec(),
        ),
        ("a list", b"[]".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("null", b"null".to_vec()),
        ("too deep", deep.into_bytes()),
        ("much too deep", deep_field.into_bytes()),
        (
            "inexact integer",
            br#"{"table":"tasks","fields":{"a":9007199254740993}}"#.to_vec(),
        ),
        ("byte order mark", b"\xef\xbb\xbf{\"id\":\"x\"}".to_vec()),
    ];
    for (method, path) in BODIES {
        for (name, body) in &bodies {
            let ask = Ask::new(method, path).body("application/json", body);
            let answer = world.admin(ask).await;
            assert_eq!(answer.status, 400, "{method} {path}, {name}: {answer:?}");
            answer.expect_error(400, "op.invalid_input");
        }
    }
    assert_eq!(world.fixture.state().await, world.before);
    let ask = Ask::post("/api/tenants").text("{\"id\":\n  nonsense}");
    let detail = world.refuses(ask, 400, "op.invalid_input").await;
    assert_eq!(detail["line"], 2, "{detail}");
    assert!(detail["column"].as_u64().unwrap() > 2, "{detail}");
}

#[tokio::test]
async fn bodies_of_the_wrong_type_or_size() {
    let mut config = ServerConfig::default();
    config.max_body_bytes = 1_000;
    let world = World::with(config).await;
    let insert = |body: &str| Ask::post("/api/tenants/a/documents").text(body);
    let small = r#"{"table":"tasks","fields":{}}"#;
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/jsonp",
    ] {
        let ask = Ask::post("/api/tenants/a/documents").body(content_type, small.as_bytes());
        world.refuses(ask, 415, "op.invalid_input").await;
    }
    let untyped = format!(
        "POST /api/tenants/a/documents HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{small}",
        world.fixture.token,
        small.len()
    );
    world
        .fixture
        .raw(untyped.as_bytes())
        .await
        .expect_error(415, "op.invalid_input");
    let gzip = insert(small).header("content-encoding", "gzip");
    world.refuses(gzip, 415, "op.invalid_input").await;

    let large = format!(
        r#"{{"table":"tasks","fields":{{"a":"{}"}}}}"#,
        "x".repeat(1_000)
    );
    let detail = world.refuses(insert(&large), 413, "op.cap_exceeded").await;
    assert_eq!(
        detail,
        json!({"cap": "body_bytes", "observed": large.len(), "limit": 1_000})
    );
    // Chunked, so that the size shows only on the way.
    let chunked = format!(
        "POST /api/tenants/a/documents HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        world.fixture.token,
        large.len()
    );
    let answer = world.fixture.raw(chunked.as_bytes()).await;
    assert_eq!(answer.expect_error(413, "op.cap_exceeded")["limit"], 1_000);
    assert_eq!(world.fixture.state().await, world.before);
}

#[tokio::test]
async fn a_body_far_beyond_the_limit_still_gets_its_answer() {
    let world = World::new().await;
    // Ten times the default limit: the client is still sending when the answer comes.
    let large = vec![b' '; 80 * 1024 * 1024];
    let ask =
        Ask::post("/api/tenants/a/documents").body("application/json", &large[..40 * 1024 * 1024]);
    world.refuses(ask, 413, "op.cap_exceeded").await;
    // The same without a credential: refused unread.
    let ask =
        Ask::post("/api/tenants/a/documents").body("application/json", &large[..40 * 1024 * 1024]);
    world
        .fixture
        .send(ask)
        .await
        .expect_error(401, "auth.unauthorized");
}

#[tokio::test]
async fn unknown_fields() {
    let world = World::new().await;
    let cases = [
        ("POST", "/api/tenants", json!({"id": "new", "x": 1})),
        (
            "POST",
            "/api/tenants/a/documents",
            json!({"table": "tasks", "fields": {}, "id": "x"}),
        ),
        (
            "PATCH",
            &format!("/api/tenants/a/documents/tasks/{}", world.task),
            json!({"patch": {}, "fields": {}}),
        ),
        (
            "POST",
            "/api/tenants/a/query",
            json!({"table": "tasks", "filters": [], "where": 1}),
        ),
        (
            "POST",
            "/api/tenants/a/query",
            json!({"table": "tasks", "filters": [{"field": "n", "op": "eq", "value": 1, "not": true}]}),
        ),
        (
            "POST",
            "/api/tenants/a/query",
            json!({"table": "tasks", "filters": [], "order": {"field": "n", "direction": "asc", "nulls": "last"}}),
        ),
        (
            "POST",
            "/api/tenants/a/query/paginated",
            json!({"query": {"table": "tasks", "filters": []}, "page_size": 1, "before": "x"}),
        ),
        (
            "PUT",
            "/api/tenants/a/schema/tasks",
            json!({"table": "tasks", "fields": [], "indexes": [], "strict": true}),
        ),
        (
            "PUT",
            "/api/tenants/a/schema/tasks",
            json!({"table": "tasks", "fields": [{"name": "a", "field_type": "any", "required": false, "default": 1}]}),
        ),
        (
            "PUT",
            "/api/tenants/a/schema/tasks",
            json!({"table": "tasks", "indexes": [{"name": "i", "fields": ["a"], "unique": true}]}),
        ),
        (
            "PUT",
            "/api/tenants/a/schema/tasks",
            json!({"table": "tasks", "access_policy": {"read": {}}}),
        ),
    ];
    for (method, path, body) in &cases {
        world
            .refuses(Ask::new(method, path).json(body), 400, "op.invalid_input")
            .await;
    }
    for (method, path) in [
        ("GET", "/api/tenants?x=1"),
        ("GET", "/api/tenants/a/journal?cursor=1"),
        ("GET", "/api/tenants/a/journal?after=1&after=1"),
        ("GET", "/api/tenants/a/journal?limit=ten"),
        ("POST", "/api/tenants/a/prune?now=1"),
    ] {
        world
            .refuses(Ask::new(method, path), 400, "op.invalid_input")
            .await;
    }
}

#[tokio::test]
async fn reserved_and_invalid_names() {
    let world = World::new().await;
    let long = "x".repeat(129);
    for id in [
        "_nimbus", "_", "_evil", "", "a b", "a/b", "a.b", "ä", "a\u{0}", "../a", &long,
    ] {
        let ask = Ask::post("/api/tenants").json(&json!({"id": id}));
        world.refuses(ask, 400, "op.invalid_input").await;
    }
    for id in ["_nimbus", "a%20b", "%C3%A4", "a.b", &long] {
        for (method, rest) in [
            ("DELETE", ""),
            ("POST", "/adopt"),
            ("GET", "/schema"),
            ("GET", "/journal"),
        ] {
            let path = format!("/api/tenants/{id}{rest}");
            world
                .refuses(Ask::new(method, &path), 400, "op.invalid_input")
                .await;
        }
    }
    for id in ["a%2fb", "a%00", "%ff", "..", "a%5cb"] {
        let path = format!("/api/tenants/{id}/schema");
        world
            .refuses(Ask::get(&path), 400, "op.invalid_input")
            .await;
    }
    let long = "x".repeat(65);
    for table in ["_tables", "", "1st", "a-b", "a.b", "ä", "a b", &long] {
        let insert =
            Ask::post("/api/tenants/a/documents").json(&json!({"table": table, "fields": {}}));
        world.refuses(insert, 400, "op.invalid_input").await;
        let query = Ask::post("/api/tenants/a/query").json(&json!({"table": table, "filters": []}));
        world.refuses(query, 400, "op.invalid_input").await;
    }
    for table in ["_tables", "1st", "a-b", "%C3%A4"] {
        for path in [
            format!("/api/tenants/a/documents/{table}"),
            format!("/api/tenants/a/schema/{table}"),
        ] {
            world
                .refuses(Ask::get(&path), 400, "op.invalid_input")
                .await;
        }
    }
    for fields in [
        json!({"_id": 1}),
        json!({"_creationTime": 1}),
        json!({"_x": 1}),
        json!({"$x": 1}),
        json!({"a": {"$x": 1}}),
        json!({"ä": 1}),
        json!({"a": [{"$b": 1}]}),
    ] {
        let insert = Ask::post("/api/tenants/a/documents")
            .json(&json!({"table": "tasks", "fields": fields}));
        world.refuses(insert, 400, "op.invalid_input").await;
        let path = format!("/api/tenants/a/documents/tasks/{}", world.task);
        let patch = Ask::new("PATCH", &path).json(&json!({"patch": fields}));
        world.refuses(patch, 400, "op.invalid_input").await;
    }
    for (name, fields) in [
        ("by_id", json!(["n"])),
        ("by_creation_time", json!(["n"])),
        ("_i", json!(["n"])),
        ("a-b", json!(["n"])),
        ("i", json!(["$n"])),
        ("i", json!(["_n"])),
        ("i", json!(["a..b"])),
        ("i", json!([])),
        ("i", json!(["n", "n"])),
    ] {
        let schema = json!({"table": "tasks", "fields": [{"name": "n", "field_type": "any"}], "indexes": [{"name": name, "fields": fields}]});
        let put = Ask::new("PUT", "/api/tenants/a/schema/tasks").json(&schema);
        world.refuses(put, 400, "op.invalid_input").await;
    }
}

#[tokio::test]
async fn ids_that_name_nothing_here() {
    let world = World::new().await;
    let mut broken = world.task.clone().into_bytes();
    // The last characters carry the checksum.
    let last = broken.len() - 1;
    broken[last] = if broken[last] == b'0' { b'1' } else { b'0' };
    let broken = String::from_utf8(broken).unwrap();
    let methods = [
        ("GET", None),
        ("PATCH", Some(json!({"patch": {"n": 9}}))),
        ("DELETE", None),
    ];
    for (method, body) in &methods {
        let ask = |id: &str| {
            let ask = Ask::new(method, &format!("/api/tenants/a/documents/tasks/{id}"));
            body.iter().fold(ask, |ask, body| ask.json(body))
        };
        for id in [&world.note, &world.foreign] {
            let detail = world.refuses(ask(id), 404, "op.document_not_found").await;
            assert_eq!(detail["documentId"], *id.as_str());
        }
        for id in [
            broken.as_str(),
            "x",
            "0",
            "k17",
            &world.task.to_uppercase(),
            &format!("{}0", world.task),
        ] {
            world.refuses(ask(id), 400, "op.invalid_input").await;
        }
        let path = format!("/api/tenants/absent/documents/tasks/{}", world.task);
        let ask = body
            .iter()
            .fold(Ask::new(method, &path), |ask, body| ask.json(body));
        let detail = world.refuses(ask, 404, "session.tenant_not_found").await;
        assert_eq!(detail, json!({"tenantId": "absent"}));
    }
}

fn page(table: &str, filters: Json, after: Option<&str>) -> Ask {
    let body =
        json!({"query": {"table": table, "filters": filters}, "page_size": 2, "after": after});
    Ask::post("/api/tenants/a/query/paginated").json(&body)
}

#[tokio::test]
async fn cursors_that_were_edited_or_belong_elsewhere() {
    let world = World::new().await;
    for tenant in ["a", "b"] {
        for n in 0..5 {
            world.fixture.insert(tenant, "tasks", json!({"n": n})).await;
        }
    }
    let before = world.fixture.state().await;
    let first = world.admin(page("tasks", json!([]), None)).await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(
        world
            .admin(page("tasks", json!([]), Some(cursor)))
            .await
            .status,
        200
    );

    let refuses = async |ask: Ask, what: &str| {
        let answer = world.admin(ask).await;
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        answer.expect_error(400, "op.invalid_input");
    };
    // Every character counts.
    for at in 0..cursor.len() {
        let mut edited = cursor.as_bytes().to_vec();
        edited[at] = if edited[at] == b'A' { b'B' } else { b'A' };
        let edited = String::from_utf8(edited).unwrap();
        refuses(
            page("tasks", json!([]), Some(&edited)),
            &format!("character {at}"),
        )
        .await;
    }
    for edited in [
        "",
        "x",
        "AAAA",
        &cursor[1..],
        &cursor[..cursor.len() - 1],
        &format!("{cursor}A"),
        &format!("{cursor}="),
    ] {
        refuses(page("tasks", json!([]), Some(edited)), edited).await;
    }
    refuses(page("notes", json!([]), Some(cursor)), "another table").await;
    refuses(
        page(
            "tasks",
            json!([{"field": "n", "op": "gt", "value": 0}]),
            Some(cursor),
        ),
        "another filter",
    )
    .await;
    let body = json!({"query": {"table": "tasks", "filters": []}, "page_size": 2, "after": cursor});
    refuses(
        Ask::post("/api/tenants/b/query/paginated").json(&body),
        "another tenant",
    )
    .await;
    let ordered = json!({"query": {"table": "tasks", "filters": [], "order": {"field": "n", "direction": "desc"}}, "page_size": 2, "after": cursor});
    refuses(
        Ask::post("/api/tenants/a/query/paginated").json(&ordered),
        "another order",
    )
    .await;
    assert_eq!(world.fixture.state().await, before);
}

#[tokio::test]
async fn unknown_operators_list_the_known_ones() {
    let world = World::new().await;
    for op in ["like", "EQ", "==", "", "in", "$gt"] {
        let query = json!({"table": "tasks", "filters": [{"field": "n", "op": op, "value": 1}]});
        let answer = world
            .admin(Ask::post("/api/tenants/a/query").json(&query))
            .await;
        answer.expect_error(400, "op.invalid_input");
        let message = answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        for known in ["eq", "neq", "gt", "gte", "lt", "lte"] {
            assert!(message.contains(known), "{message}");
        }
    }
    assert_eq!(world.fixture.state().await, world.before);
}

#[tokio::test]
async fn range_filters_never_cross_types() {
    let world = World::new().await;
    for value in [
        json!(null),
        json!(false),
        json!(5),
        json!("5"),
        json!([5]),
        json!({"a": 5}),
        json!({"$integer": "BQAAAAAAAAA="}),
    ] {
        world
            .fixture
            .insert("a", "mixed", json!({"v": value}))
            .await;
    }
    world.fixture.insert("a", "mixed", json!({})).await;
    let schema = json!({"table": "mixed", "fields": [{"name": "v", "field_type": "any"}], "indexes": [{"name": "by_v", "fields": ["v"]}]});
    for indexed in [false, true] {
        if indexed {
            let put = Ask::new("PUT", "/api/tenants/a/schema/mixed").json(&schema);
            assert_eq!(world.admin(put).await.status, 204);
        }
        for (op, value, expected) in [
            ("gt", json!(0), vec![json!(5)]),
            ("gte", json!("0"), vec![json!("5")]),
            ("lt", json!(9), vec![json!(5)]),
            ("lte", json!("9"), vec![json!("5")]),
            (
                "gt",
                json!({"$integer": "AAAAAAAAAAA="}),
                vec![json!({"$integer": "BQAAAAAAAAA="})],
            ),
        ] {
            let query =
                json!({"table": "mixed", "filters": [{"field": "v", "op": op, "value": value}]});
            let answer = world
                .admin(Ask::post("/api/tenants/a/query").json(&query))
                .await;
            assert_eq!(answer.status, 200, "{op} {value}: {answer:?}");
            let found: Vec<Json> = answer.json()["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d["v"].clone())
                .collect();
            assert_eq!(found, expected, "{op} {value}, index {indexed}");
        }
        // What has no order to range over is refused, not guessed at.
        for value in [json!(null), json!(true), json!([]), json!({})] {
            let query =
                json!({"table": "mixed", "filters": [{"field": "v", "op": "gt", "value": value}]});
            let answer = world
                .admin(Ask::post("/api/tenants/a/query").json(&query))
                .await;
            answer.expect_error(400, "op.invalid_input");
        }
    }
}

#[tokio::test]
async fn limits_of_zero_and_beyond_the_cap() {
    let world = World::new().await;
    let query = |limit: Json| {
        Ask::post("/api/tenants/a/query")
            .json(&json!({"table": "tasks", "filters": [], "limit": limit}))
    };
    let pages = |size: Json| {
        Ask::post("/api/tenants/a/query/paginated")
            .json(&json!({"query": {"table": "tasks", "filters": []}, "page_size": size}))
    };
    world
        .refuses(query(json!(0)), 400, "op.invalid_input")
        .await;
    let detail = world
        .refuses(query(json!(10_001)), 400, "op.cap_exceeded")
        .await;
    assert_eq!(
        (&detail["limit"], &detail["observed"]),
        (&json!(10_000), &json!(10_001))
    );
    assert_eq!(world.admin(query(json!(10_000))).await.status, 200);
    for bad in [json!(-1), json!(1.5), json!("1"), json!(4_294_967_296_u64)] {
        world
            .refuses(query(bad.clone()), 400, "op.invalid_input")
            .await;
        world.refuses(pages(bad), 400, "op.invalid_input").await;
    }
    world
        .refuses(pages(json!(0)), 400, "op.invalid_input")
        .await;
    let detail = world
        .refuses(pages(json!(1_001)), 400, "op.cap_exceeded")
        .await;
    assert_eq!(detail["limit"], 1_000);
    world
        .refuses(
            Ask::get("/api/tenants/a/journal?limit=0"),
            400,
            "op.invalid_input",
        )
        .await;
    let detail = world
        .refuses(
            Ask::get("/api/tenants/a/journal?limit=1001"),
            400,
            "op.cap_exceeded",
        )
        .await;
    assert_eq!(detail["limit"], 1_000);
    world
        .refuses(
            Ask::get("/api/tenants/a/journal?limit=99999999999"),
            400,
            "op.invalid_input",
        )
        .await;
    world
        .refuses(
            Ask::get("/api/tenants/a/journal?after=999999"),
            400,
            "op.invalid_input",
        )
        .await;
}

#[tokio::test]
async fn schema_violations_and_missing_schemas() {
    let mut world = World::new().await;
    let insert = |fields: Json| {
        Ask::post("/api/tenants/a/documents").json(&json!({"table": "strict", "fields": fields}))
    };
    let detail = world
        .refuses(insert(json!({})), 422, "op.schema_validation")
        .await;
    assert_eq!(detail["table"], "strict");
    assert_eq!(
        detail["violations"],
        json!([{"field": "title", "expected": "string", "found": "missing"}])
    );
    let detail = world
        .refuses(insert(json!({"title": 7})), 422, "op.schema_validation")
        .await;
    assert_eq!(detail["violations"][0]["field"], "title");
    assert_eq!(detail["violations"][0]["expected"], "string");
    // A new schema that stored documents contradict is refused, too.
    let schema = json!({"table": "tasks", "fields": [{"name": "n", "field_type": "string", "required": true}], "indexes": []});
    let put = Ask::new("PUT", "/api/tenants/a/schema/tasks").json(&schema);
    let schemas = async || world.admin(Ask::get("/api/tenants/a/schema")).await.body;
    let before = schemas().await;
    let answer = world.admin(put).await;
    let detail = answer.expect_error(422, "op.schema_validation");
    assert_eq!(detail["documentId"], world.task.as_str());
    // Schemas and documents are as before; the log tells that the check began and was given up.
    assert_eq!(schemas().await, before);
    let list = world
        .admin(Ask::get("/api/tenants/a/documents/tasks"))
        .await
        .json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    world.before = world.fixture.state().await;
    let detail = world
        .refuses(
            Ask::get("/api/tenants/a/schema/tasks"),
            404,
            "op.schema_not_found",
        )
        .await;
    assert_eq!(detail, json!({"table": "tasks"}));
    world
        .refuses(
            Ask::new("DELETE", "/api/tenants/a/schema/tasks"),
            404,
            "op.schema_not_found",
        )
        .await;
    let other = json!({"table": "other", "fields": [], "indexes": []});
    let put = Ask::new("PUT", "/api/tenants/a/schema/tasks").json(&other);
    world.refuses(put, 400, "op.invalid_input").await;
}

#[tokio::test]
async fn tenants_that_exist_or_do_not() {
    let world = World::new().await;
    let detail = world
        .refuses(
            Ask::post("/api/tenants").json(&json!({"id": "a"})),
            409,
            "op.already_exists",
        )
        .await;
    assert_eq!(detail, json!({"tenantId": "a"}));
    let absent = [
        ("DELETE", "/api/tenants/absent"),
        ("POST", "/api/tenants/absent/adopt"),
        ("POST", "/api/tenants/absent/prune"),
        ("GET", "/api/tenants/absent/documents/tasks"),
        ("GET", "/api/tenants/absent/schema"),
        ("GET", "/api/tenants/absent/journal"),
        ("GET", "/api/tenants/absent/journal/bootstrap"),
        ("GET", "/debug/tenants/absent/consistency"),
        ("GET", "/debug/tenants/absent/engine/metrics"),
    ];
    for (method, path) in absent {
        let detail = world
            .refuses(Ask::new(method, path), 404, "session.tenant_not_found")
            .await;
        assert_eq!(detail, json!({"tenantId": "absent"}), "{path}");
    }
    let query = Ask::post("/api/tenants/absent/query").json(&json!({"table": "t", "filters": []}));
    world.refuses(query, 404, "session.tenant_not_found").await;
    world
        .refuses(Ask::post("/api/tenants/a/adopt"), 409, "op.already_exists")
        .await;
    for commit in ["x", "0", &"A".repeat(32), &"0".repeat(31)] {
        let path = format!("/api/tenants/a/commits/{commit}");
        world
            .refuses(Ask::get(&path), 400, "op.invalid_input")
            .await;
    }
}

#[tokio::test]
async fn documents_beyond_the_limits() {
    let world = World::new().await;
    let insert = |fields: Json| {
        Ask::post("/api/tenants/a/documents").json(&json!({"table": "tasks", "fields": fields}))
    };
    let mut nested = json!(1);
    for _ in 0..17 {
        nested = json!([nested]);
    }
    let many: serde_json::Map<String, Json> =
        (0..1_025).map(|n| (format!("f{n}"), json!(n))).collect();
    for fields in [
        json!({"a": nested}),
        Json::Object(many),
        json!({"a": vec![0; 8_193]}),
    ] {
        let answer = world.admin(insert(fields)).await;
        answer.expect_error(400, "op.invalid_input");
    }
    let answer = world
        .admin(insert(json!({"a": "x".repeat(1024 * 1024)})))
        .await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(world.fixture.state().await, world.before);
}
