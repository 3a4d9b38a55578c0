//! Request smuggling: do a proxy and the server behind it agree on where a request ends?
//!
//! Every answer of Nimbus has a request id of its own, and every request under `/api` leaves one
//! audit line with that id. A request is smuggled when the server saw one whose answer did not go
//! to the client that the proxy thought it came from: its line is there and its answer is not. So
//! for each case the ids of the answers must be the ids of the lines, in the same order. This room
//! must not know how a proxy is configured.

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nimbus_e2e::{Home, Options, Reply, Server};

use super::audit_lines;
use super::front::{Front, HOST, Kind, Setting};
use super::upstream::Liar;
use super::wire::Wire;

/// A path of the admin surface, so that every request that arrives is in the audit log.
const PREFIX: &str = "/api/tenants/";

/// Silence after which a connection is taken to wait for more from us.
const IDLE: Duration = Duration::from_millis(250);
/// How long answers and lines may differ, since an answer may still be on its way.
const SETTLE: Duration = Duration::from_secs(15);

/// Bytes for one connection.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    /// In every path of the case.
    marker: String,
    bytes: Vec<u8>,
}

/// What came of a case.
#[derive(Debug)]
struct Seen {
    replies: Vec<Reply>,
    /// Last segments of the paths that the server saw.
    paths: Vec<String>,
    /// Whether the other side ended the connection.
    closed: bool,
}

impl Seen {
    fn statuses(&self) -> Vec<u16> {
        self.replies.iter().map(|reply| reply.status).collect()
    }
}

/// A request that arrived at the server.
struct Arrived {
    id: String,
    last: String,
}

/// What arrived, by marker and in the order of the log.
fn arrived(home: &Home) -> BTreeMap<String, Vec<Arrived>> {
    let mut found: BTreeMap<String, Vec<Arrived>> = BTreeMap::new();
    for line in audit_lines(home) {
        let path = line["path"].as_str().unwrap();
        let mut parts = path
            .split('/')
            .skip_while(|part| !part.starts_with("mark-"));
        let Some(marker) = parts.next() else {
            panic!("a request that no case made: {line}");
        };
        found.entry(marker.to_owned()).or_default().push(Arrived {
            id: line["requestId"].as_str().unwrap().to_owned(),
            last: parts.collect::<Vec<_>>().join("/"),
        });
    }
    found
}

/// Sends a case and waits until answers and arrivals agree, or time is over.
fn run(home: &Home, address: SocketAddr, case: &Case) -> Result<Seen, String> {
    let mut wire = Wire::open(address);
    wire.send(&case.bytes);
    let deadline = Instant::now() + SETTLE;
    let mut replies = Vec::new();
    loop {
        replies.extend(wire.replies_within(IDLE));
        let mut all = arrived(home);
        let known: BTreeSet<String> = all.values().flatten().map(|a| a.id.clone()).collect();
        let mine = all.remove(&case.marker).unwrap_or_default();
        // Answers to what is not under the prefix have an id and no line.
        let ids = replies
            .iter()
            .filter_map(|reply| reply.header("x-request-id"));
        let ids: Vec<&str> = ids.filter(|id| known.contains(*id)).collect();
        let lines: Vec<&str> = mine.iter().map(|a| a.id.as_str()).collect();
        if ids == lines {
            return Ok(Seen {
                replies,
                paths: mine.into_iter().map(|a| a.last).collect(),
                closed: wire.closed,
            });
        }
        if Instant::now() > deadline {
            let paths: Vec<&str> = mine.iter().map(|a| a.last.as_str()).collect();
            let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            return Err(format!(
                "{}: {} requests arrived {paths:?}, {} answers came {statuses:?}, rest {:?}; sent {}",
                case.name,
                lines.len(),
                ids.len(),
                wire.rest(),
                String::from_utf8_lossy(&case.bytes).escape_debug()
            ));
        }
    }
}

/// Runs all cases, eight connections at a time: what was seen by name, and what went wrong.
fn run_all(
    home: &Home,
    address: SocketAddr,
    cases: &[Case],
) -> (BTreeMap<String, Seen>, Vec<String>) {
    let next = AtomicUsize::new(0);
    let (seen, wrong) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(home, address, case) {
                        Ok(found) => {
                            seen.lock().unwrap().insert(case.name.clone(), found);
                        }
                        Err(text) => wrong.lock().unwrap().push(text),
                    }
                }
            });
        }
    });
    (seen.into_inner().unwrap(), wrong.into_inner().unwrap())
}

/// Runs all cases against `address` and asserts that both sides counted the same.
fn agree(mut server: Server, address: SocketAddr, what: &str) -> BTreeMap<String, Seen> {
    let cases = cases::all();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let (seen, wrong) = run_all(server.home(), address, &cases);
    assert!(
        wrong.is_empty(),
        "{what}: {} of {} cases differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(seen.len(), cases.len(), "a name is there twice");
    // A request that was left behind in a connection is answered by the end at the latest.
    server.terminate();
    let total: usize = arrived(server.home()).values().map(Vec::len).sum();
    let counted: usize = seen.values().map(|seen| seen.paths.len()).sum();
    assert_eq!(total, counted, "{what}: requests arrived after their case");
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    for seen in seen.values() {
        let shape = format!(
            "{:?} {:?} closed {}",
            seen.statuses(),
            seen.paths,
            seen.closed
        );
        *shapes.entry(shape).or_default() += 1;
    }
    println!("{what}: {} cases, {total} requests arrived", cases.len());
    for (shape, count) in shapes {
        println!("  {count:4} x {shape}");
    }
    if std::env::var_os("NIMBUS_TEST_SHOW").is_some() {
        for (name, seen) in &seen {
            println!("  {name}: {:?} {:?}", seen.statuses(), seen.paths);
        }
    }
    seen
}

fn through(kind: Kind) {
    let server = Server::start(Options::new());
    let setting = Setting {
        prefix: PREFIX,
        ..Setting::plain(server.address())
    };
    let front = Front::start(kind, &setting);
    let seen = agree(server, front.address, &format!("{kind:?}"));
    // The proxy does forward: a case without a trick arrives whole.
    let plain = &seen[r"GET P HTTP/1.1\r\n without a body"];
    assert_eq!(plain.paths, ["outer", "end"]);
    assert_eq!(plain.statuses(), [401, 401]);
}

#[test]
fn nginx_and_the_server_count_the_same_requests() {
    through(Kind::Nginx);
}

#[test]
fn haproxy_and_the_server_count_the_same_requests() {
    through(Kind::HaProxy);
}

#[test]
fn caddy_and_the_server_count_the_same_requests() {
    through(Kind::Caddy);
}

#[test]
fn without_a_proxy_every_request_has_one_answer_and_none_is_read_two_ways() {
    let server = Server::start(Options::new());
    let address = server.address();
    let seen = agree(server, address, "direct");
    let plain = &seen[r"GET P HTTP/1.1\r\n without a body"];
    assert_eq!(plain.paths, ["outer", "end"]);
    assert_eq!(HOST.len(), 18);
}

/// The check above finds a proxy that gets lengths wrong.
#[test]
fn a_proxy_that_reads_lengths_of_its_own_is_found_out() {
    let server = Server::start(Options::new());
    let liar = Liar::start(server.address());
    let inner = format!("GET {PREFIX}mark-0-/inner HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let case = Case {
        name: "a body that only the proxy sees".to_owned(),
        marker: "mark-0-".to_owned(),
        bytes: format!(
            "GET {PREFIX}mark-0-/outer HTTP/1.1\r\nhost: {HOST}\r\nx-length: {}\r\n\r\n{inner}",
            inner.len()
        )
        .into_bytes(),
    };
    let wrong = run(server.home(), liar.address, &case).unwrap_err();
    assert!(
        wrong.contains("2 requests arrived") && wrong.contains("1 answers came"),
        "{wrong}"
    );
}
