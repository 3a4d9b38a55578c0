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

/// How long we keep our side open for an answer.
const HALF_OPEN: Duration = Duration::from_secs(2);

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
    /// The answers that the client got.
    replies: Vec<Reply>,
    /// Their statuses.
    statuses: Vec<u16>,
    /// Last segments of the paths that the server saw.
    paths: Vec<String>,
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

/// Whether the answers of a connection are those to what arrived with its marker.
fn compare(
    case: &Case,
    replies: Vec<Reply>,
    all: &BTreeMap<String, Vec<Arrived>>,
) -> Result<Seen, String> {
    let known: BTreeSet<&str> = all.values().flatten().map(|a| a.id.as_str()).collect();
    let mine: Vec<&Arrived> = all.get(&case.marker).into_iter().flatten().collect();
    // Answers to what is not under the prefix have an id and no line.
    let ids = replies.iter().filter_map(|r| r.header("x-request-id"));
    let ids: Vec<&str> = ids.filter(|id| known.contains(id)).collect();
    // A proxy that streams bodies may give up in the middle of one: it then answers 502 for the one
    // request that has arrived, and the server's answer goes nowhere.
    let mut given_up = replies.iter().filter(|r| r.status == 502).count();
    let lines = mine.iter().filter(|a| {
        let excused = given_up > 0 && a.last != "inner" && !ids.contains(&a.id.as_str());
        given_up -= usize::from(excused);
        !excused
    });
    let lines: Vec<&str> = lines.map(|a| a.id.as_str()).collect();
    let statuses: Vec<u16> = replies.iter().map(|r| r.status).collect();
    let paths: Vec<String> = mine.iter().map(|a| a.last.clone()).collect();
    if ids == lines {
        return Ok(Seen {
            replies,
            statuses,
            paths,
        });
    }
    Err(format!(
        "{}: {} requests arrived {paths:?}, {} answers came {statuses:?}; sent {}",
        case.name,
        lines.len(),
        ids.len(),
        String::from_utf8_lossy(&case.bytes).escape_debug()
    ))
}

/// Sends a case and waits until answers and arrivals agree, or time is over.
fn run(home: &Home, address: SocketAddr, case: &Case) -> Result<Seen, String> {
    let mut wire = Wire::open(address);
    wire.send(&case.bytes);
    let started = Instant::now();
    let mut replies = Vec::new();
    loop {
        replies.extend(wire.replies_within(IDLE));
        let outcome = compare(case, replies.clone(), &arrived(home));
        if outcome.is_ok() || started.elapsed() > SETTLE {
            return outcome;
        }
        if started.elapsed() > HALF_OPEN {
            // An answer may be held back until the body is whole, which this one may never be.
            wire.finish();
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
    // A request that was left behind in a connection has arrived by now, and its line is no
    // longer missing.
    server.terminate();
    let all = arrived(server.home());
    let total: usize = all.values().map(Vec::len).sum();
    let again = |case: &Case| compare(case, seen[&case.name].replies.clone(), &all);
    let late: Vec<String> = cases.iter().filter_map(|case| again(case).err()).collect();
    assert!(late.is_empty(), "{what}: {}", late.join("\n"));
    println!("{what}: {} cases, {total} requests arrived", cases.len());
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    for Seen {
        statuses, paths, ..
    } in seen.values()
    {
        *shapes.entry(format!("{statuses:?} {paths:?}")).or_default() += 1;
    }
    for (shape, count) in shapes {
        println!("  {count:4} x {shape}");
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
    let plain = &seen[r"GET {p} HTTP/1.1\r\n without a body"];
    assert_eq!(plain.paths, ["outer", "end"]);
    assert_eq!(plain.statuses, [401, 401]);
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

/// The cases whose hidden request is a request in the reading of RFC 9112: after a header that is
/// not about framing, or after the trailers of a chunked body.
const READ_AS_A_REQUEST: [&str; 7] = [
    r"GET Content_Length: N\r\n",
    r"HTTP/1.1 chunks 0\r\nContent-Length: 5\r\n\r\nI",
    r"HTTP/1.1 chunks 0\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\nI",
    r"HTTP/1.1 chunks 0\r\nX: y\r\n\r\nI",
    r"POST Content_Length: N\r\n",
    r"TE: chunked\r\n after a shorter length",
    r"Transfer_Encoding: chunked\r\n after a shorter length",
];

#[test]
fn without_a_proxy_a_hidden_request_is_read_only_where_the_standard_reads_one() {
    let server = Server::start(Options::new());
    let address = server.address();
    let seen = agree(server, address, "direct");
    let plain = &seen[r"GET {p} HTTP/1.1\r\n without a body"];
    assert_eq!(plain.paths, ["outer", "end"]);
    let read: Vec<&str> = seen
        .iter()
        .filter(|(_, seen)| seen.paths.iter().any(|path| path == "inner"))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(read, READ_AS_A_REQUEST);
    // A length beside `Transfer-Encoding` ends the connection, whichever of them was obeyed
    // (RFC 9112 6.1).
    for order in ["in a longer length", "after a shorter length"] {
        let both = &seen[&format!(r"Transfer-Encoding: chunked\r\n {order}")];
        assert!(both.paths.len() <= 1, "{order}: {both:?}");
    }
}

/// The check above finds a proxy that gets lengths wrong.
#[test]
fn a_proxy_that_reads_lengths_of_its_own_is_found_out() {
    let server = Server::start(Options::new());
    let liar = Liar::start(server.address());
    let marker = "mark-0-";
    let inner = format!("GET {PREFIX}{marker}/inner HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let case = Case {
        name: "a body that only the proxy sees".to_owned(),
        marker: marker.to_owned(),
        bytes: format!(
            "GET {PREFIX}{marker}/outer HTTP/1.1\r\nhost: {HOST}\r\nx-length: {}\r\n\r\n{inner}",
            inner.len()
        )
        .into_bytes(),
    };
    let mut wire = Wire::open(liar.address);
    let reply = wire.send(&case.bytes).reply().unwrap();
    let deadline = Instant::now() + SETTLE;
    let both = loop {
        let all = arrived(server.home());
        if all.get(marker).is_some_and(|lines| lines.len() == 2) || Instant::now() > deadline {
            break all;
        }
        std::thread::yield_now();
    };
    let wrong = compare(&case, vec![reply], &both).unwrap_err();
    assert!(
        wrong.contains("2 requests arrived") && wrong.contains("1 answers came"),
        "{wrong}"
    );
}
