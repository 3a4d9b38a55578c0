//! Statements: values, arguments, errors, batches, and what is refused.

use serde_json::{Value as Json, json};

use super::{World, code, execute, rows, world};

#[test]
fn values_of_every_type_come_back_as_they_went() {
    let world = world(|_| {});
    let args = json!([
        { "type": "null" },
        { "type": "integer", "value": "-9223372036854775808" },
        { "type": "float", "value": 0.5 },
        { "type": "text", "value": "ü\u{0}x" },
        { "type": "blob", "base64": "AP8=" },
        { "type": "blob", "base64": "AP8" },
    ]);
    let outcome = world.one(json!({ "sql": "SELECT ?, ?, ?, ?, ?, ?", "args": args }));
    let result = &outcome["response"]["result"];
    let mut expected = args;
    expected[4]["base64"] = json!("AP8");
    assert_eq!(result["rows"], json!([expected]));
    assert_eq!(result["replication_index"], Json::Null);
    for bad in [
        json!({ "type": "integer", "value": 1 }),
        json!({ "type": "blob", "base64": "A" }),
    ] {
        let stmt = json!({ "sql": "SELECT ?", "args": [bad] });
        let (status, answer) =
            world.post("/v2/pipeline", &[], &json!({ "requests": [execute(stmt)] }));
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"].is_string());
    }
}

#[test]
fn arguments_fit_the_parameters() {
    let world = world(|_| {});
    let one = json!({ "type": "integer", "value": "1" });
    let named = |name: &str| json!([{ "name": name, "value": one }]);
    for name in ["a", ":a"] {
        let found = world.one(json!({ "sql": "SELECT :a, :a", "named_args": named(name) }));
        assert_eq!(rows(&found), json!([["1", "1"]]));
    }
    for (stmt, expected) in [
        (json!({ "sql": "SELECT ?" }), "ARGS_INVALID"),
        (json!({ "sql": "SELECT 1", "args": [one] }), "ARGS_INVALID"),
        (
            json!({ "sql": "SELECT :b", "named_args": named("a") }),
            "ARGS_INVALID",
        ),
        (
            json!({ "sql": "SELECT ?", "args": [one], "named_args": named("a") }),
            "ARGS_BOTH_POSITIONAL_AND_NAMED",
        ),
    ] {
        assert_eq!(code(&world.one(stmt)), expected);
    }
}

#[test]
fn a_result_tells_what_changed() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)");
    let result = |sql: &str| world.one(json!(sql))["response"]["result"].clone();
    let inserted = result("/* in */ INSERT INTO t VALUES (7, 'a'), (8, 'b')");
    assert_eq!(inserted["affected_row_count"], 2);
    assert_eq!(inserted["last_insert_rowid"], "8");
    let read = result("SELECT k AS n, v FROM t");
    assert_eq!(read["affected_row_count"], 0);
    assert_eq!(read["last_insert_rowid"], Json::Null);
    assert_eq!(read["cols"][1], json!({ "name": "v", "decltype": "TEXT" }));
    let unread = world.one(json!({ "sql": "SELECT k FROM t", "want_rows": false }));
    assert_eq!(rows(&unread), json!([]));
}

#[test]
fn errors_have_the_names_of_their_codes() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k TEXT PRIMARY KEY, v INT NOT NULL CHECK (v > 0))");
    world.rows("INSERT INTO t VALUES ('a', 1)");
    for (sql, expected) in [
        (
            "INSERT INTO t VALUES ('a', 1)",
            "SQLITE_CONSTRAINT_PRIMARYKEY",
        ),
        (
            "INSERT INTO t VALUES ('b', NULL)",
            "SQLITE_CONSTRAINT_NOTNULL",
        ),
        ("INSERT INTO t VALUES ('b', 0)", "SQLITE_CONSTRAINT_CHECK"),
        ("SELECT * FROM nowhere", "SQLITE_ERROR"),
        ("SELEC 1", "SQL_PARSE_ERROR"),
        ("-- nothing", "SQL_NO_STATEMENT"),
        ("SELECT 1; SELECT 2", "SQL_MANY_STATEMENTS"),
        ("COMMIT", "SQLITE_ERROR"),
    ] {
        assert_eq!(world.code(sql), expected, "{sql}");
    }
    assert_eq!(world.rows("SELECT 1; -- and nothing more"), json!([["1"]]));
    let world = super::world(|options| options.extended_codes = false);
    world.rows("CREATE TABLE t (k TEXT PRIMARY KEY)");
    world.rows("INSERT INTO t VALUES ('a')");
    assert_eq!(
        world.code("INSERT INTO t VALUES ('a')"),
        "SQLITE_CONSTRAINT"
    );
}

#[test]
fn what_leaves_the_database_is_refused() {
    let world = world(|_| {});
    for sql in [
        "ATTACH ':memory:' AS x",
        "ATTACH 'x' || 'y' AS x",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO 'copy'",
        "SELECT load_extension('x')",
        "PRAGMA key = 'x'",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA synchronous = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA wal_checkpoint",
    ] {
        let outcome = world.one(json!(sql));
        assert_eq!(code(&outcome), "SQL_PARSE_ERROR", "{sql}");
        let message = outcome["error"]["message"].as_str().unwrap();
        assert!(message.contains("unsupported statement"), "{message}");
        let (_, results) = world.pipe(None, json!([{ "type": "sequence", "sql": sql }]));
        assert_eq!(code(&results[0]), "SQL_PARSE_ERROR", "{sql}");
    }
    assert_eq!(world.rows("PRAGMA journal_mode"), json!([["wal"]]));
    assert_eq!(world.rows("PRAGMA synchronous"), json!([["2"]]));
    world.rows("PRAGMA foreign_keys = ON");
    world.rows("SELECT name FROM pragma_table_info('t')");
    let files = std::fs::read_dir(world.dir.path()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert!(
        names
            .into_iter()
            .all(|name| name.starts_with("default.sqlite3"))
    );
}

#[test]
fn batches_run_by_their_conditions() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k INTEGER PRIMARY KEY)");
    let step = |sql: &str, condition: Json| match condition {
        Json::Null => json!({ "stmt": { "sql": sql } }),
        condition => json!({ "stmt": { "sql": sql }, "condition": condition }),
    };
    let (ok, error) = (
        |at| json!({ "type": "ok", "step": at }),
        |at| json!({ "type": "error", "step": at }),
    );
    let steps = json!([
        step("INSERT INTO t VALUES (1)", Json::Null),
        step("INSERT INTO t VALUES (1)", ok(0)),
        step("INSERT INTO t VALUES (2)", ok(1)),
        step("INSERT INTO t VALUES (3)", error(1)),
        step(
            "INSERT INTO t VALUES (4)",
            json!({ "type": "not", "cond": error(1) })
        ),
        step(
            "INSERT INTO t VALUES (5)",
            json!({ "type": "and", "conds": [ok(0), ok(1)] })
        ),
        step(
            "INSERT INTO t VALUES (6)",
            json!({ "type": "or", "conds": [ok(0), ok(1)] })
        ),
        step("BEGIN", json!({ "type": "is_autocommit" })),
        step(
            "INSERT INTO t VALUES (7)",
            json!({ "type": "is_autocommit" })
        ),
    ]);
    let (_, results) = world.pipe(
        None,
        json!([{ "type": "batch", "batch": { "steps": steps } }]),
    );
    let result = &results[0]["response"]["result"];
    assert_eq!(
        result["step_errors"][1]["code"],
        "SQLITE_CONSTRAINT_PRIMARYKEY"
    );
    let ran: Vec<bool> = (0..9)
        .map(|at| result["step_results"][at].is_object())
        .collect();
    assert_eq!(
        ran,
        [true, false, false, true, false, false, true, true, false]
    );
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"], ["3"], ["6"]]));
    let ahead = json!([{ "type": "batch", "batch": { "steps": [step("SELECT 1", ok(0))] } }]);
    let (baton, _) = world.pipe(None, json!([]));
    assert_eq!(
        world.refused(&baton.unwrap(), ahead),
        (400, "BATCH_COND_BAD_STEP".into())
    );
}

#[test]
fn a_cursor_sends_lines() {
    let world = world(|_| {});
    let steps = json!([
        { "stmt": { "sql": "SELECT 1 AS a UNION SELECT 2" } },
        { "stmt": { "sql": "SELECT * FROM nowhere" } },
        { "stmt": { "sql": "SELECT 3" }, "condition": { "type": "ok", "step": 1 } },
    ]);
    let call = format!("POST {}/v3/cursor", world.primary.url());
    let body = json!({ "batch": { "steps": steps } }).to_string();
    let (status, text) = world.send(&call, &[], body.as_bytes()).unwrap();
    assert_eq!(status, 200);
    let lines: Vec<Json> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<_> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap_or("head"))
        .collect();
    assert_eq!(
        kinds,
        ["head", "step_begin", "row", "row", "step_end", "step_error"]
    );
    assert_eq!(
        lines[2]["row"][0],
        json!({ "type": "integer", "value": "1" })
    );
    assert_eq!(lines[5]["error"]["code"], "SQLITE_ERROR");
    let (_, results) = world.pipe(
        lines[0]["baton"].as_str(),
        json!([{ "type": "get_autocommit" }]),
    );
    assert_eq!(results[0]["response"]["is_autocommit"], true);
}

#[test]
fn stored_texts_sequences_and_descriptions() {
    let world = world(|_| {});
    let (baton, results) = world.pipe(None, json!([
        { "type": "store_sql", "sql_id": 1, "sql": "SELECT :x AS a" },
        { "type": "describe", "sql_id": 1 },
        { "type": "sequence", "sql": "CREATE TABLE t (k INT); INSERT INTO t VALUES (1); INSERT INTO n VALUES (1); DROP TABLE t" },
        { "type": "close_sql", "sql_id": 1 },
    ]));
    let described = &results[1]["response"]["result"];
    assert_eq!(described["params"], json!([{ "name": ":x" }]));
    assert_eq!(described["cols"][0]["name"], "a");
    assert_eq!(
        (&described["is_readonly"], &described["is_explain"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(code(&results[2]), "SQLITE_ERROR");
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"]]));
    let gone = json!([execute(json!({ "sql_id": 1 }))]);
    assert_eq!(
        world.refused(&baton.unwrap(), gone),
        (400, "SQL_NOT_FOUND".into())
    );
    assert_eq!(world.primary.open_streams(), 0);
    let store = json!({ "type": "store_sql", "sql_id": 1, "sql": "SELECT 1" });
    for (requests, expected) in [
        (json!([store, store]), "SQL_EXISTS"),
        (
            json!([store, execute(json!({ "sql": "SELECT 1", "sql_id": 1 }))]),
            "SQL_OR_ID",
        ),
        (json!([execute(json!({}))]), "SQL_OR_ID"),
    ] {
        let (baton, _) = world.pipe(None, json!([]));
        let refused = world.refused(&baton.unwrap(), requests);
        assert_eq!(refused, (400, expected.to_owned()));
    }
}

#[test]
fn version_2_has_nothing_of_version_3() {
    let world = world(|_| {});
    let condition = json!({ "type": "is_autocommit" });
    let steps = json!([{ "stmt": { "sql": "SELECT 1" }, "condition": condition }]);
    for request in [
        json!({ "type": "get_autocommit" }),
        json!({ "type": "batch", "batch": { "steps": steps } }),
    ] {
        let body = json!({ "requests": [request] });
        let (status, answer) = world.post("/v2/pipeline", &[], &body);
        assert_eq!((status, &answer["code"]), (400, &json!("NOT_SUPPORTED")));
        assert_eq!(world.post("/v3/pipeline", &[], &body).0, 200);
    }
}

#[test]
fn an_answer_has_a_bound() {
    let world = world(|options| options.max_response = 1_000);
    let many = |count: usize| format!("SELECT hex(zeroblob({count}))");
    assert_eq!(world.code(&many(500)), "RESPONSE_TOO_LARGE");
    fits(&world, &many(450));
}

fn fits(world: &World, sql: &str) {
    assert_eq!(world.rows(sql)[0][0].as_str().unwrap().len(), 900);
}
