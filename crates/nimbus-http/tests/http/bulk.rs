//! Streaming import and export: what is refused and with which line, what is done by then, what a
//! client that stops or leaves costs.
//!
//! It must not know how the store keeps progress or a table's past state.

use std::collections::BTreeSet;

use nimbus_http::ServerConfig;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Answer, Ask, Fixture};

const IMPORT: &str = "/api/tenants/demo/import/rows/first";
const EXPORT: &str = "/api/tenants/demo/export/rows";
const LINES: &str = "application/x-ndjson";

async fn fixture() -> Fixture {
    // Smaller than every stream here: its bound does not hold for them.
    let mut config = ServerConfig::default();
    config.max_body_bytes = 4 * 1024 * 1024;
    let fixture = Fixture::start_with(config).await;
    fixture.tenant("demo").await;
    fixture
}

async fn import(fixture: &Fixture, path: &str, body: impl AsRef<[u8]>) -> Answer {
    fixture
        .admin(Ask::post(path).body(LINES, body.as_ref()))
        .await
}

fn numbered(lines: std::ops::RangeInclusive<u64>) -> String {
    lines.map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

/// The values of `n` in the table, in the order of the export.
async fn numbers(fixture: &Fixture) -> Vec<u64> {
    let answer = fixture.admin(Ask::get(EXPORT)).await;
    if answer.status == 404 {
        answer.expect_error(404, "op.not_found");
        return Vec::new();
    }
    assert!(answer.status == 200 && !answer.cut, "{answer:?}");
    let rows = answer
        .body
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap());
    rows.map(|row| row["n"].as_u64().unwrap()).collect()
}

async fn progress(fixture: &Fixture) -> u64 {
    let answer = fixture.admin(Ask::get(IMPORT)).await;
    answer.json()["lines"].as_u64().unwrap()
}

#[tokio::test]
async fn what_comes_in_as_lines_goes_out_as_lines() {
    let fixture = fixture().await;
    let mut body = String::new();
    for n in 1..=2_500 {
        let text = format!("row {n}\n\u{fc}\u{1f600} {}", "x".repeat(2_000));
        body.push_str(&json!({"n": n, "text": text}).to_string());
        body.push_str(if n % 2 == 0 { "\n" } else { "\r\n\n" });
    }
    assert!(body.len() > 5_000_000);
    // The last line needs no end.
    let answer = import(&fixture, IMPORT, body.trim_end()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!({"inserted": 2_500, "lines": 3_750, "resumed_after": 0});
    assert_eq!(answer.json(), expected);
    let line = &fixture.audit_of(answer.request_id())[0];
    assert_eq!(
        (&line["status"], &line["success"]),
        (&json!(200), &json!(true))
    );

    let answer = fixture.admin(Ask::get(EXPORT)).await;
    assert_eq!(answer.header("content-type"), Some(LINES));
    assert!(answer.status == 200 && !answer.cut);
    let audit = fixture.audit_of(answer.request_id());
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert_eq!(audit[0]["path"], EXPORT);
    let without_system = |line: &str| {
        let mut row: Json = serde_json::from_str(line).unwrap();
        let row_fields = row.as_object_mut().unwrap();
        assert!(row_fields.remove("_id").is_some() && row_fields.remove("_creationTime").is_some());
        row.to_string()
    };
    let found: Vec<String> = answer.body.lines().map(without_system).collect();
    let sent: Vec<String> = body
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str::<Json>(line).unwrap().to_string())
        .collect();
    assert!(found == sent);
    // An export is a source for an import: documents get new ids.
    let again = "/api/tenants/demo/import/copies/first";
    let copied = import(&fixture, again, &answer.body).await;
    assert_eq!(copied.json()["inserted"], 2_500);
    let head = fixture.admin(Ask::new("HEAD", EXPORT)).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn exports_of_what_is_not_there_are_refused() {
    let fixture = fixture().await;
    fixture.insert("demo", "rows", json!({"n": 1})).await;
    let get = async |path: &str| fixture.admin(Ask::get(path)).await;
    let missing = get("/api/tenants/demo/export/absent").await;
    let detail = missing.expect_error(404, "op.not_found");
    assert_eq!(detail, json!({"table": "absent"}));
    let missing = get("/api/tenants/nobody/export/rows").await;
    missing.expect_error(404, "session.tenant_not_found");
    for path in [
        "/api/tenants/demo/export/_rows",
        "/api/tenants/demo/export/a%20b",
    ] {
        get(path).await.expect_error(400, "op.invalid_input");
    }
    for query in ["format=xml", "format=", "limit=1", "format=csv&format=csv"] {
        let answer = get(&format!("{EXPORT}?{query}")).await;
        answer.expect_error(400, "op.invalid_input");
    }
    // Without chunks an export that was cut off would look whole.
    let bearer = format!("authorization: Bearer {}", fixture.token);
    let old = fixture
        .raw(format!("GET {EXPORT} HTTP/1.0\r\n{bearer}\r\n\r\n").as_bytes())
        .await;
    old.expect_error(400, "op.invalid_input");
    assert!(old.body.contains("HTTP/1.1"), "{old:?}");
    // A table whose documents are gone is empty, and whole.
    let id = fixture.insert("demo", "gone", json!({})).await;
    let path = format!("/api/tenants/demo/documents/gone/{id}");
    fixture.admin(Ask::new("DELETE", &path)).await;
    let empty = get("/api/tenants/demo/export/gone").await;
    assert_eq!(
        (empty.status, empty.body.as_str(), empty.cut),
        (200, "", false)
    );
}

#[tokio::test]
async fn comma_separated_values_have_the_columns_asked_for_or_declared() {
    let fixture = fixture().await;
    let id = fixture
        .insert(
            "demo",
            "rows",
            json!({"n": 1.5, "s": "a, \"b\"\nc", "list": [1, "x"]}),
        )
        .await;
    fixture
        .insert("demo", "rows", json!({"b": true, "s": null}))
        .await;
    let get = async |query: &str| fixture.admin(Ask::get(&format!("{EXPORT}?{query}"))).await;
    let found = get("format=csv&columns=n,b,list,s").await;
    assert_eq!((found.status, found.cut), (200, false));
    assert_eq!(found.header("content-type"), Some("text/csv"));
    let expected = "n,b,list,s\n1.5,,\"[1,\"\"x\"\"]\",\"a, \"\"b\"\"\nc\"\n,true,,\n";
    assert_eq!(found.body, expected);
    for (query, part) in [
        ("format=csv", "has no schema"),
        ("format=csv&columns=a,,b", "empty name"),
        ("format=csv&columns=a,b,a", "`a` twice"),
        ("format=csv&columns=", "is empty"),
        ("columns=a", "goes with"),
        ("format=tsv", "must be one of: jsonl, csv"),
    ] {
        let answer = get(query).await;
        answer.expect_error(400, "op.invalid_input");
        assert!(answer.body.contains(part), "{query}: {answer:?}");
    }
    let field = json!({"name": "n", "field_type": "number", "required": false});
    let schema = json!({"table": "rows", "indexes": [], "fields": [field]});
    let put = Ask::new("PUT", "/api/tenants/demo/schema/rows").json(&schema);
    assert_eq!(fixture.admin(put).await.status, 204);
    let found = get("format=csv").await;
    let front = format!("_id,_creationTime,n\n{id},");
    assert!(found.body.starts_with(&front), "{found:?}");
    let lines = get("format=jsonl").await;
    assert_eq!(lines.header("content-type"), Some(LINES));
    assert_eq!(lines.body.lines().count(), 2);
    // A table without documents has its header all the same.
    let put = Ask::new("PUT", "/api/tenants/demo/schema/none")
        .json(&json!({"table": "none", "indexes": [], "fields": []}));
    assert_eq!(fixture.admin(put).await.status, 204);
    let none = fixture
        .admin(Ask::get("/api/tenants/demo/export/none?format=csv"))
        .await;
    assert_eq!(none.body, "_id,_creationTime\n");
}

#[tokio::test]
async fn a_refused_line_is_named_with_what_was_done_before() {
    let fixture = fixture().await;
    let schema = json!({"table": "rows", "indexes": [],
        "fields": [{"name": "n", "field_type": "number", "required": true}]});
    let put = Ask::new("PUT", "/api/tenants/demo/schema/rows").json(&schema);
    assert_eq!(fixture.admin(put).await.status, 204);
    let long = format!("{{\"n\":1,\"s\":\"{}\"}}\n", "x".repeat(9 << 20));
    let cases: [(&[u8], u16, &str, &str); 9] = [
        (b"{\"n\":\n", 400, "op.invalid_input", "line 1003: "),
        (
            b"[1]\n",
            400,
            "op.invalid_input",
            "expected a JSON object, found array",
        ),
        (b"{\"n\":1} {}\n", 400, "op.invalid_input", "line 1003: "),
        (
            b"{\"n\":\"many\"}\n",
            422,
            "op.schema_validation",
            "`n` must be number",
        ),
        (b"{}\n", 422, "op.schema_validation", "missing"),
        (
            b"{\"n\":1,\"_x\":1}\n",
            400,
            "op.invalid_input",
            "line 1003: ",
        ),
        (
            b"{\"n\":9007199254740993}\n",
            400,
            "op.invalid_input",
            "line 1003: ",
        ),
        (
            b"{\"n\":1,\"s\":\"\xff\"}\n",
            400,
            "op.invalid_input",
            "UTF-8",
        ),
        (
            long.as_bytes(),
            400,
            "op.cap_exceeded",
            "longer than 8388608 bytes",
        ),
    ];
    let mut inserted = 1_000;
    for (bad, status, code, part) in cases {
        let mut body = numbered(1..=1_002).into_bytes();
        body.extend_from_slice(bad);
        body.extend_from_slice(numbered(1_004..=1_500).as_bytes());
        let answer = import(&fixture, IMPORT, &body).await;
        let detail = answer.expect_error(status, code);
        let message = answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            message.starts_with("line 1003: ") && message.contains(part),
            "{message}"
        );
        assert_eq!(detail["line"], 1_003, "{detail}");
        // The chunk before the one at fault is in, by the first of these requests.
        assert_eq!(
            (&detail["lines"], &detail["inserted"]),
            (&json!(1_000), &json!(inserted))
        );
        inserted = 0;
        assert_eq!(progress(&fixture).await, 1_000);
        assert_eq!(numbers(&fixture).await, (1..=1_000).collect::<Vec<_>>());
    }
    // The rest alone, or everything again: each line once.
    let rest = format!("{IMPORT}?first_line=1001");
    let answer = import(&fixture, &rest, numbered(1_001..=1_500)).await;
    let expected = json!({"inserted": 500, "lines": 1_500, "resumed_after": 1_000});
    assert_eq!(answer.json(), expected);
    let answer = import(&fixture, IMPORT, numbered(1..=1_500)).await;
    let expected = json!({"inserted": 0, "lines": 1_500, "resumed_after": 1_500});
    assert_eq!(answer.json(), expected);
    assert_eq!(numbers(&fixture).await, (1..=1_500).collect::<Vec<_>>());
    // Once it is forgotten, the name is free.
    assert_eq!(fixture.admin(Ask::new("DELETE", IMPORT)).await.status, 204);
    assert_eq!(
        import(&fixture, IMPORT, numbered(1..=1)).await.json()["inserted"],
        1
    );
}

#[tokio::test]
async fn requests_that_cannot_be_followed_insert_nothing() {
    let fixture = fixture().await;
    let before = fixture.state().await;
    for query in [
        "first_line=0",
        "first_line=-1",
        "first_line=x",
        "first_line=",
        "from=1",
    ] {
        let answer = import(&fixture, &format!("{IMPORT}?{query}"), "{}\n").await;
        answer.expect_error(400, "op.invalid_input");
    }
    let gap = import(&fixture, &format!("{IMPORT}?first_line=2"), "{}\n").await;
    let detail = gap.expect_error(412, "op.precondition_failed");
    assert_eq!(detail, json!({"lines": 0}));
    for name in ["a%20b", "a%2fb", &"x".repeat(129)] {
        let path = format!("/api/tenants/demo/import/rows/{name}");
        let answer = import(&fixture, &path, "{}\n").await;
        answer.expect_error(400, "op.invalid_input");
    }
    let nobody = import(&fixture, "/api/tenants/nobody/import/rows/a", "{}\n").await;
    nobody.expect_error(404, "session.tenant_not_found");
    for media in [
        "application/json",
        "text/csv",
        "application/x-ndjson; charset=latin1",
    ] {
        let answer = fixture.admin(Ask::post(IMPORT).body(media, b"{}\n")).await;
        answer.expect_error(415, "op.invalid_input");
    }
    let packed = Ask::post(IMPORT).header("content-encoding", "gzip");
    let answer = fixture.admin(packed.body(LINES, b"{}\n")).await;
    answer.expect_error(415, "op.invalid_input");
    assert_eq!(import(&fixture, IMPORT, "").await.json()["lines"], 0);
    assert_eq!(fixture.state().await, before);
}

#[tokio::test]
async fn a_body_that_is_cut_leaves_whole_chunks_and_says_so() {
    let fixture = fixture().await;
    let body = numbered(1..=1_700);
    let body = &body[..body.len() - 4];
    let head = format!(
        "POST {IMPORT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: {LINES}\r\ncontent-length: {}\r\n\r\n{body}",
        fixture.token,
        body.len() + 10,
    );
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // Half-closed: the server may still answer, and need not.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    while progress(&fixture).await < 1_000 {
        tokio::task::yield_now().await;
    }
    // The audit line is written when the import is over.
    let over = |fixture: &Fixture| {
        let lines = fixture.audit();
        let line = lines
            .into_iter()
            .find(|line| line["method"] == "POST" && line["path"] == IMPORT);
        line.map(|line| line["status"].clone())
    };
    let status = loop {
        match over(&fixture) {
            Some(status) => break status,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(status == 400 || status == 499, "{status}");
    assert_eq!(progress(&fixture).await, 1_000);
    assert_eq!(numbers(&fixture).await, (1..=1_000).collect::<Vec<_>>());
    let answer = import(&fixture, IMPORT, numbered(1..=1_700)).await;
    assert_eq!(answer.json()["inserted"], 700);
    let distinct: BTreeSet<u64> = numbers(&fixture).await.into_iter().collect();
    assert_eq!(distinct.len(), 1_700);
}

#[tokio::test]
async fn a_server_that_stops_ends_an_import_between_two_commits() {
    let mut fixture = fixture().await;
    let head = format!(
        "POST {IMPORT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: {LINES}\r\ncontent-length: 1000000\r\n\r\n",
        fixture.token,
    );
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let first = numbered(1..=1_000);
    stream.write_all(first.as_bytes()).await.unwrap();
    while progress(&fixture).await < 1_000 {
        tokio::task::yield_now().await;
    }
    fixture.tell_to_stop();
    while TcpStream::connect(fixture.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // A client that is silent, or slow, does not keep the server from stopping.
    let answer = Answer::read(&mut stream, false).await;
    let detail = answer.expect_error(503, "service.unavailable");
    assert_eq!(detail, json!({"lines": 1_000, "inserted": 1_000}));
    assert_eq!(answer.json()["error"]["retryable"], true);
    drop(stream);
    fixture.ended().await;
}

/// A table that fits into no socket buffer.
async fn big_table(fixture: &Fixture) {
    let text = "x".repeat(900_000);
    let body: String = (0..40)
        .map(|n| json!({"n": n, "s": text}).to_string() + "\n")
        .collect();
    let answer = import(fixture, IMPORT, body).await;
    assert_eq!(answer.json()["inserted"], 40, "{answer:?}");
}

/// Begins an export and reads its head and a little more.
async fn begin_export(fixture: &Fixture) -> TcpStream {
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let ask = Ask::get(EXPORT).bearer(&fixture.token);
    stream.write_all(&ask.bytes()).await.unwrap();
    let mut front = vec![0; 1_000];
    stream.read_exact(&mut front).await.unwrap();
    assert!(front.starts_with(b"HTTP/1.1 200"));
    stream
}

/// Prunes the log, and says how much of it is left.
async fn log_left(fixture: &Fixture) -> u64 {
    let prune = Ask::post("/api/tenants/demo/prune");
    assert_eq!(fixture.admin(prune).await.status, 200);
    // The table came with a commit, so the log no longer begins at 0.
    let journal = fixture
        .admin(Ask::get("/api/tenants/demo/journal?after=0"))
        .await;
    let detail = journal.expect_error(409, "op.out_of_retention");
    detail["head"].as_u64().unwrap() - detail["floor"].as_u64().unwrap()
}

#[tokio::test]
async fn a_client_that_leaves_lets_go_of_what_its_export_held() {
    let fixture = fixture().await;
    big_table(&fixture).await;
    let stream = begin_export(&fixture).await;
    // What is written once the buffers between are full is needed to show the table as it was.
    let mut inserted = 0;
    loop {
        fixture.insert("demo", "rows", json!({"n": 99})).await;
        inserted += 1;
        if log_left(&fixture).await > 0 {
            break;
        }
    }
    drop(stream);
    while log_left(&fixture).await > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(numbers(&fixture).await.len(), 40 + inserted);
}

#[tokio::test]
async fn an_export_that_cannot_go_on_is_cut_off_for_all_to_see() {
    let fixture = fixture().await;
    big_table(&fixture).await;
    let mut stream = begin_export(&fixture).await;
    let delete = Ask::new("DELETE", "/api/tenants/demo");
    assert_eq!(fixture.admin(delete).await.status, 204);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "it ended as if it were whole"
    );
    assert!(rest.len() < 36_000_000, "{}", rest.len());
}
