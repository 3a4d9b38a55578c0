//! Request smuggling: do a proxy and the server behind it agree on where a request ends?
//!
//! Every answer of Nimbus has a request id of its own, and every request under `/api` leaves one
//! audit line with that id. A request is smuggled when the server saw one whose answer did not go
//! to the client that the proxy thought it came from: its line is there and its answer is not.
//! So for each case the ids of the answers must be the ids of the lines. This room must not know
//! how a proxy is configured.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nimbus_e2e::{Options, Reply, Server};
use serde_json::Value as Json;

use super::audit_lines;
use super::front::{Front, HOST, Kind, Setting};
use super::wire::Wire;

/// A path of the admin surface, so that every request that arrives is in the audit log.
const PREFIX: &str = "/api/tenants/";

/// Silence after which a connection is taken to wait for more from us.
const IDLE: Duration = Duration::from_millis(250);
/// How long answers and lines may differ, since an answer may still be on its way.
const SETTLE: Duration = Duration::from_secs(15);

/// Bytes for one connection.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub name: String,
    /// In every path of the case.
    pub marker: String,
    pub bytes: Vec<u8>,
}

mod cases;

/// What came of a case.
#[derive(Debug)]
struct Seen {
    replies: Vec<Reply>,
    /// Bytes that are no answer.
    rest: String,
    closed: bool,
}

impl Seen {
    fn ids(&self) -> Vec<&str> {
        let ids = self.replies.iter().map(|reply| reply.header("x-request-id"));
        ids.flatten().collect()
    }
}

/// The ids of the audit lines of each marker, in the order of the log.
fn lines_by_marker(server: &Server) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in audit_lines(server) {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let path = text("path");
        let marker = path.split('/').find(|part| part.starts_with("mark-"));
        let marker = marker.unwrap_or_else(|| panic!("a request from nowhere: {line}"));
        found
            .entry(marker.to_owned())
            .or_default()
            .push(text("requestId"));
    }
    found
}

/// Sends a case and waits until answers and lines agree, or time is over.
fn run(server: &Server, address: SocketAddr, case: &Case) -> Result<Seen, String> {
    let mut wire = Wire::open(address);
    wire.send(&case.bytes);
    let deadline = Instant::now() + SETTLE;
    let mut seen = Seen {
        replies: Vec::new(),
        rest: String::new(),
        closed: false,
    };
    loop {
        seen.replies.extend(wire.replies_within(IDLE));
        seen.rest = wire.rest();
        seen.closed = wire.closed;
        let lines = lines_by_marker(server).remove(&case.marker);
        let (lines, ids) = (lines.unwrap_or_default(), seen.ids());
        if lines == ids {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            let statuses: Vec<u16> = seen.replies.iter().map(|reply| reply.status).collect();
            return Err(format!(
                "{}: the server saw {lines:?}, the client got {ids:?} {statuses:?}, rest {:?}, sent\n{}",
                case.name,
                seen.rest,
                String::from_utf8_lossy(&case.bytes).escape_debug()
            ));
        }
    }
}

/// Runs all cases against one address, eight connections at a time, and returns what was seen and
/// what went wrong.
fn run_all(server: &Server, address: SocketAddr, cases: &[Case]) -> (Vec<(String, Seen)>, Vec<String>) {
    let next = AtomicUsize::new(0);
    let (seen, wrong) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(server, address, case) {
                        Ok(found) => seen.lock().unwrap().push((case.name.clone(), found)),
                        Err(text) => wrong.lock().unwrap().push(text),
                    }
                }
            });
        }
    });
    (seen.into_inner().unwrap(), wrong.into_inner().unwrap())
}
