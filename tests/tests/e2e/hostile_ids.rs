//! Hostile strings in every place that takes an id, while the kernel's view of the files is kept:
//! whatever is asked for, nothing outside the server's own directories is touched.
//!
//! It must not know how names are checked.

mod strings;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_e2e::raw::Connection;
use nimbus_e2e::{Home, Options, Reply, Server, files};
use serde_json::{Value as Json, json};

use strings::{TABLE, TENANT, hostile};

const SEED: u64 = 19;
const STRINGS: usize = 5_000;

/// Calls that name a file (path_resolution(7)), those that look only left out.
const CALLS: &str = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,chown,fchownat,mknod,mknodat";

/// Where an id is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    TenantInPath,
    TenantInBody,
    TableInPath,
    TableInBody,
    Document,
    Index,
    Cursor,
    Commit,
    Import,
}

const SLOTS: [Slot; 9] = [
    Slot::TenantInPath,
    Slot::TenantInBody,
    Slot::TableInPath,
    Slot::TableInBody,
    Slot::Document,
    Slot::Index,
    Slot::Cursor,
    Slot::Commit,
    Slot::Import,
];

/// The method, path and body that put `text` into `slot`; `turn` chooses among several routes.
fn place(slot: Slot, text: &[u8], turn: usize) -> (&'static str, Vec<u8>, Option<Vec<u8>>) {
    let acme = format!("/api/tenants/{TENANT}");
    let path = |before: &str, after: &str| {
        [before.as_bytes(), &in_path(text, turn), after.as_bytes()].concat()
    };
    let body = |before: &str, after: &str| {
        Some([before.as_bytes(), &in_json(text, turn), after.as_bytes()].concat())
    };
    match slot {
        Slot::TenantInPath => {
            let (method, after) = [
                ("GET", "/schema"),
                ("POST", "/adopt"),
                ("DELETE", ""),
                ("POST", "/prune"),
            ][turn % 4];
            (method, path("/api/tenants/", after), None)
        }
        Slot::TenantInBody => ("POST", b"/api/tenants".to_vec(), body("{\"id\":", "}")),
        Slot::TableInPath => {
            let (method, kind) = [
                ("GET", "documents"),
                ("GET", "schema"),
                ("DELETE", "schema"),
            ][turn % 3];
            (method, path(&format!("{acme}/{kind}/"), ""), None)
        }
        Slot::TableInBody if turn.is_multiple_of(2) => (
            "POST",
            format!("{acme}/documents").into_bytes(),
            body("{\"fields\":{},\"table\":", "}"),
        ),
        Slot::TableInBody => (
            "POST",
            format!("{acme}/query").into_bytes(),
            body("{\"filters\":[],\"table\":", "}"),
        ),
        Slot::Document => {
            let method = ["GET", "DELETE"][turn % 2];
            (
                method,
                path(&format!("{acme}/documents/{TABLE}/"), ""),
                None,
            )
        }
        Slot::Index => {
            let before = "{\"table\":\"indexed\",\"fields\":[{\"name\":\"n\",\"field_type\":\"any\",\"required\":false}],\"indexes\":[{\"fields\":[\"n\"],\"name\":";
            (
                "PUT",
                format!("{acme}/schema/indexed").into_bytes(),
                body(before, "}]}"),
            )
        }
        Slot::Cursor => {
            let before = format!(
                "{{\"query\":{{\"table\":\"{TABLE}\",\"filters\":[]}},\"page_size\":1,\"after\":"
            );
            (
                "POST",
                format!("{acme}/query/paginated").into_bytes(),
                body(&before, "}"),
            )
        }
        Slot::Commit => ("GET", path(&format!("{acme}/commits/"), ""), None),
        Slot::Import => {
            let method = ["GET", "DELETE"][turn % 2];
            (method, path(&format!("{acme}/import/{TABLE}/"), ""), None)
        }
    }
}

/// The string as it is, where a request line can hold it and every other time; else escaped.
fn in_path(text: &[u8], turn: usize) -> Vec<u8> {
    let plain = |b: &u8| *b > b' ' && *b != 0x7f && !b"?#".contains(b);
    if turn.is_multiple_of(2) && text.iter().all(plain) {
        return text.to_vec();
    }
    let escape = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => vec![*byte],
        _ => format!("%{byte:02X}").into_bytes(),
    };
    text.iter().flat_map(escape).collect()
}

/// The string as JSON, its bytes as they are every other time.
fn in_json(text: &[u8], turn: usize) -> Vec<u8> {
    let plain = |b: &u8| *b >= b' ' && !b"\"\\".contains(b);
    if turn.is_multiple_of(2) && text.iter().all(plain) {
        return [b"\"", text, b"\""].concat();
    }
    Json::from(String::from_utf8_lossy(text))
        .to_string()
        .into_bytes()
}

/// A client that keeps its connection while the server does.
struct Sender {
    server: Server,
    token: String,
    connection: Option<Connection>,
}

impl Sender {
    fn send(&mut self, method: &str, path: &[u8], body: Option<&[u8]>) -> Reply {
        let mut head = [method.as_bytes(), b" ", path, b" HTTP/1.1\r\n"].concat();
        let mut fields = format!(
            "Host: localhost\r\nAuthorization: Bearer {}\r\n",
            self.token
        );
        if let Some(body) = body {
            fields.push_str("Content-Type: application/json\r\n");
            fields.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.extend_from_slice(fields.as_bytes());
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(body.unwrap_or_default());
        let address = self.server.address();
        let connection = self
            .connection
            .get_or_insert_with(|| Connection::open(address));
        let reply = connection.send(&head).reply();
        let shown = String::from_utf8_lossy(&head).into_owned();
        let reply = reply.unwrap_or_else(|| panic!("no answer to {shown:?}"));
        if reply.header("connection") == Some("close") {
            self.connection = None;
        }
        reply
    }
}

/// Puts links that lead out of the data directory into it, as somebody who can write there might.
/// Returns what they lead to.
fn plant_links(home: &Home) -> PathBuf {
    let outside = home.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(home.data_dir()).unwrap();
    files::set_mode(&home.data_dir(), 0o700);
    // A tenant's file, so that it would be taken if it were found.
    let mut donor = Server::start(Options::new());
    donor.client().create_tenant("victim");
    donor
        .client()
        .insert("victim", "notes", &json!({"kept": true}));
    assert!(donor.terminate().success());
    let victim = outside.join("victim.sqlite3");
    fs::copy(donor.data_dir().join("victim.sqlite3"), &victim).unwrap();
    let link = |to: &Path, name: &str| symlink(to, home.data_dir().join(name)).unwrap();
    link(&victim, "linked.sqlite3");
    link(&outside.join("new.sqlite3"), "dangling.sqlite3");
    link(&outside, "linkeddir");
    link(&outside, "linkeddir.sqlite3");
    outside
}

/// Whether the running server may touch `path`.
fn allowed(home: &Home, pid: u32, path: &Path) -> bool {
    let own = [
        home.data_dir(),
        home.token_file().parent().unwrap().to_owned(),
        home.audit_log().parent().unwrap().to_owned(),
        // What the process asks about itself for its metrics.
        PathBuf::from("/proc/self"),
        PathBuf::from(format!("/proc/{pid}")),
    ];
    // Opened when SQLCipher starts with the first tenant, and by glibc for threads and memory.
    const SYSTEM: [&str; 4] = [
        "/dev/urandom",
        "/usr/local/ssl/openssl.cnf",
        "/sys/devices/system/cpu/online",
        "/proc/sys/vm/overcommit_memory",
    ];
    // The way down to a private directory is opened step by step, so that no link is followed.
    let on_the_way = own.iter().any(|own| own.starts_with(path)) && path.starts_with(home.path());
    let known = SYSTEM.iter().any(|known| path == Path::new(known));
    on_the_way || known || own.iter().any(|own| path.starts_with(own))
}

/// Every path that was touched since the first mention of `mark`, with its lines counted.
fn touched(trace: &str, mark: &str) -> BTreeMap<PathBuf, usize> {
    let mut found = BTreeMap::new();
    let lines = trace.lines().skip_while(|line| !line.contains(mark));
    for path in lines.flat_map(trace::paths) {
        *found.entry(path).or_default() += 1;
    }
    found
}

#[test]
fn no_id_leads_out_of_the_data_directory() {
    let home = Arc::new(Home::new());
    let outside = plant_links(&home);
    let contents = |dir: &Path| {
        let all = files::all_below(dir).into_iter();
        all.map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    let kept = contents(&outside);
    let server = Server::start(Options::new().home(&home).traced(CALLS));
    let (pid, client) = (server.pid(), server.client());
    client.create_tenant("mark");
    client.create_tenant(TENANT);
    client.insert(TENANT, TABLE, &json!({"text": "kept"}));
    let before = files::names(home.path());

    let token = home.token();
    let mut sender = Sender {
        server,
        token,
        connection: None,
    };
    for name in ["linked", "dangling", "linkeddir"] {
        for (method, path) in [
            ("POST", "/adopt"),
            ("GET", "/schema"),
            ("DELETE", ""),
            ("POST", "/prune"),
        ] {
            let path = format!("/api/tenants/{name}{path}");
            let reply = sender.send(method, path.as_bytes(), None);
            assert!(reply.status >= 400, "{method} {path}: {}", reply.text());
        }
        let body = json!({"id": name}).to_string();
        let reply = sender.send("POST", b"/api/tenants", Some(body.as_bytes()));
        assert!(reply.status >= 400, "{name}: {}", reply.text());
    }

    let mut statuses: BTreeMap<Slot, BTreeMap<u16, usize>> = BTreeMap::new();
    let mut created = BTreeSet::new();
    for (turn, text) in hostile(SEED, STRINGS).iter().enumerate() {
        for slot in SLOTS {
            let tenant = matches!(slot, Slot::TenantInPath | Slot::TenantInBody);
            if tenant && [TENANT.as_bytes(), b"mark"].contains(&text.as_slice()) {
                continue;
            }
            let (method, path, body) = place(slot, text, turn);
            let reply = sender.send(method, &path, body.as_deref());
            let what = format!("{slot:?} {:?}", String::from_utf8_lossy(text));
            assert!(reply.status < 500, "{what}: {}", reply.text());
            *statuses
                .entry(slot)
                .or_default()
                .entry(reply.status)
                .or_default() += 1;
            if slot == Slot::TenantInBody && reply.status == 201 {
                created.insert(reply.json()["id"].as_str().unwrap().to_owned());
            }
        }
    }
    for (slot, statuses) in &statuses {
        println!(
            "{slot:?}: {} requests, {statuses:?}",
            statuses.values().sum::<usize>()
        );
    }

    // What is in force is what was there, and each tenant has the file of its name.
    let client = sender.server.client();
    let documents = client.documents(TENANT, TABLE);
    assert_eq!(
        documents.len(),
        1 + documents.iter().filter(|d| d.get("text").is_none()).count()
    );
    assert!(!sender.server.log().contains("panicked"));
    for tenant in client.tenants() {
        assert!(
            home.data_dir().join(format!("{tenant}.sqlite3")).is_file(),
            "{tenant}"
        );
        client.check_consistency(&tenant);
    }
    assert!(sender.server.terminate().success());
    assert_eq!(files::names(home.path()), before);
    assert_eq!(
        contents(&outside),
        kept,
        "what the links lead to was changed"
    );

    let trace = sender.server.trace();
    let touched = touched(&trace, "mark.sqlite3");
    let (inside, other): (Vec<_>, Vec<_>) = touched
        .iter()
        .partition(|(path, _)| allowed(&home, pid, path));
    println!(
        "{} tenants came of it; {} calls on {} files inside, {} outside",
        created.len(),
        inside.iter().map(|(_, count)| *count).sum::<usize>(),
        inside.len(),
        other.len()
    );
    assert!(other.is_empty(), "touched outside: {other:#?}");
    // The trace does show files: those of every tenant that came of a string.
    for tenant in &created {
        let file = home.data_dir().join(format!("{tenant}.sqlite3"));
        assert!(touched.contains_key(&file), "{tenant} is not in the trace");
    }
    assert!(created.len() > 20, "{created:?}");
}
