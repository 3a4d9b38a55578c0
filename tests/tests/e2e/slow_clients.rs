//! Clients that are slow, silent or gone, over a thousand at once, against the limits that
//! docs/http-api.md states: each is let go, nobody else is kept waiting, nothing stays behind.
//!
//! The limits are those of a server as it is shipped, so the test takes as long as the longest of
//! them; it waits for conditions and judges no duration. It must not know how limits are kept.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nimbus_e2e::{Client, Options, Server, process};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

/// When waiting for the server to let go is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// A byte is sent once in this time.
const TICK: Duration = Duration::from_secs(1);

/// Most that all of them together may add to the memory of the process, in KiB.
const GROWTH_KIB: u64 = 200 * 1024;

/// Descriptors that the test and the server may need.
const DESCRIPTORS: u64 = 4_096;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Connects and sends nothing.
    Silent,
    /// Sends its head byte by byte.
    HeadInBytes,
    /// Sends half a head and ends its side.
    HeadCutOff,
    /// Asks for one thing and keeps the connection.
    Idle,
    /// Sends its body byte by byte.
    BodyInBytes,
    /// Sends some of its body and no more.
    BodyStalls,
    /// As the one before, without a credential.
    StrangersBody,
    /// Never reads its answer.
    NeverReads,
}

/// How many of each.
const CROWD: [(Kind, usize); 8] = [
    (Kind::Silent, 250),
    (Kind::HeadInBytes, 400),
    (Kind::HeadCutOff, 100),
    (Kind::Idle, 100),
    (Kind::BodyInBytes, 100),
    (Kind::BodyStalls, 150),
    (Kind::StrangersBody, 50),
    (Kind::NeverReads, 6),
];

impl Kind {
    /// What is sent at once, and what then byte by byte.
    fn script(self, token: &str) -> (String, String) {
        let bearer = format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
        let post = |headers: &str| {
            format!(
                "POST /api/tenants HTTP/1.1\r\n{headers}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
            )
        };
        let bytes = "{\"id\":\"".to_owned() + &"x".repeat(900);
        match self {
            Kind::Silent => (String::new(), String::new()),
            Kind::HeadInBytes => (String::new(), post(&bearer)),
            Kind::HeadCutOff => (
                format!("GET /api/tenants HTTP/1.1\r\n{bearer}"),
                String::new(),
            ),
            Kind::Idle => (
                format!("GET /health HTTP/1.1\r\n{bearer}\r\n"),
                String::new(),
            ),
            Kind::BodyInBytes => (post(&bearer), bytes),
            Kind::BodyStalls => (post(&bearer) + "{\"id\":", String::new()),
            Kind::StrangersBody => (post("Host: localhost\r\n") + "{\"id\":", String::new()),
            Kind::NeverReads => (
                format!("GET /api/tenants/acme/documents/large HTTP/1.1\r\n{bearer}\r\n"),
                String::new(),
            ),
        }
    }

    /// Whether `got` is all that such a client may have received when it was let go.
    fn may_get(self, got: &str) -> bool {
        match self {
            Kind::Silent | Kind::HeadInBytes => got.is_empty() || got.starts_with("HTTP/1.1 408 "),
            Kind::HeadCutOff => got.is_empty() || got.starts_with("HTTP/1.1 400 "),
            Kind::Idle => got.starts_with("HTTP/1.1 200 ") && got.ends_with("{\"ok\":true}"),
            Kind::BodyInBytes | Kind::BodyStalls => {
                got.starts_with("HTTP/1.1 408 ") && got.contains("op.cancelled")
            }
            Kind::StrangersBody => {
                got.starts_with("HTTP/1.1 401 ") && got.contains("connection: close")
            }
            Kind::NeverReads => got.starts_with("HTTP/1.1 200 "),
        }
    }
}

/// One of the crowd.
struct Slow {
    kind: Kind,
    stream: TcpStream,
    /// What is left to send byte by byte.
    rest: std::vec::IntoIter<u8>,
    got: Vec<u8>,
    ended: bool,
}

impl Slow {
    fn open(kind: Kind, address: SocketAddr, token: &str) -> Slow {
        let mut stream = TcpStream::connect(address).unwrap();
        let (at_once, rest) = kind.script(token);
        stream.write_all(at_once.as_bytes()).unwrap();
        if kind == Kind::HeadCutOff {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        stream.set_nonblocking(true).unwrap();
        Slow {
            kind,
            stream,
            rest: rest.into_bytes().into_iter(),
            got: Vec::new(),
            ended: false,
        }
    }

    /// Sends the next byte, if there is one and somebody to take it.
    fn drip(&mut self) {
        if let Some(byte) = self.rest.next().filter(|_| !self.ended) {
            // A server that has closed is seen by reading.
            let _ = self.stream.write(&[byte]);
        }
    }

    /// Takes what is there and sees whether the server has ended the connection.
    fn look(&mut self) {
        let mut buffer = [0; 64 * 1024];
        while !self.ended {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => self.got.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => self.ended = true,
                Err(e) => panic!("{:?}: {e}", self.kind),
            }
        }
    }
}

/// Lets this process, and those that it starts, have enough descriptors.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < DESCRIPTORS) {
        limit.current = Some(
            limit
                .maximum
                .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS)),
        );
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

/// Fourteen documents that together are more than the sockets of both sides hold.
fn fill(client: &Client) -> usize {
    client.create_tenant("acme");
    let text = "x".repeat(900_000);
    for n in 0..14 {
        client.insert("acme", "large", &json!({"n": n, "text": text}));
    }
    client
        .get("/api/tenants/acme/documents/large")
        .expect(200)
        .body
        .len()
}

/// What a client that is not slow does meanwhile; each call has a limit of its own.
fn work(client: &Client, round: u32) {
    client.get("/health").expect(200);
    client.insert("acme", "small", &json!({"round": round}));
    client.get("/api/tenants/acme/schema").expect(200);
}

#[test]
fn a_crowd_of_slow_clients_is_let_go_and_keeps_nobody_waiting() {
    raise_descriptors();
    let server = Server::start(Options::new());
    let (pid, token) = (server.pid(), server.home().token());
    let alone = process::sockets(pid);
    let whole = fill(&server.client());
    let head = server.client().journal_head("acme");
    settle(pid, alone);
    process::forget_peak(pid);
    let resident = process::resident_kib(pid);

    let mut crowd = Vec::new();
    for (kind, count) in CROWD {
        crowd.extend((0..count).map(|_| Slow::open(kind, server.address(), &token)));
    }
    let all = crowd.len();
    assert!(all > 1_000);
    let (client, started, mut rounds) = (server.client(), Instant::now(), 0);
    let mut let_go: BTreeMap<Kind, Duration> = BTreeMap::new();
    // Those that never read would end their wait by reading, so theirs is seen at the server.
    loop {
        let tick = Instant::now();
        while tick.elapsed() < TICK {
            work(&client, rounds);
            rounds += 1;
        }
        let mut open = 0;
        for slow in crowd
            .iter_mut()
            .filter(|slow| slow.kind != Kind::NeverReads)
        {
            slow.drip();
            slow.look();
            open += usize::from(!slow.ended);
            if slow.ended {
                let_go.entry(slow.kind).or_insert_with(|| started.elapsed());
            }
        }
        // The client that works has one, too.
        let left = process::sockets(pid).saturating_sub(alone + 1);
        if open == 0 && left == 0 {
            break;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{open} clients wait and {left} sockets are open"
        );
    }
    let grown = process::peak_kib(pid).saturating_sub(resident);
    println!(
        "{all} slow clients let go in {:?}; first of each kind: {let_go:?}",
        started.elapsed()
    );
    println!(
        "{rounds} rounds of a normal client meanwhile; the server grew by {grown} KiB at most"
    );
    assert!(grown < GROWTH_KIB, "the server grew by {grown} KiB");
    for slow in &mut crowd {
        slow.look();
        let got = String::from_utf8_lossy(&slow.got);
        assert!(slow.ended, "{:?} is still connected", slow.kind);
        assert!(slow.kind.may_get(&got), "{:?} got {got:.300}", slow.kind);
        if slow.kind == Kind::NeverReads {
            assert!(
                slow.got.len() < whole,
                "all {whole} bytes fitted into the sockets"
            );
        }
    }
    drop((crowd, client));
    settle(pid, alone);
    let client = server.client();
    assert_eq!(client.journal_head("acme"), head + u64::from(rounds));
    assert_eq!(client.tenants(), ["acme"]);
    assert!(!server.log().contains("panicked"));
}

/// Waits until the server has no more sockets than when nobody was connected.
fn settle(pid: u32, alone: usize) {
    let started = Instant::now();
    while process::sockets(pid) > alone {
        let left = process::sockets(pid);
        assert!(
            started.elapsed() < PATIENCE,
            "{left} sockets stay open, {alone} at first"
        );
        std::thread::yield_now();
    }
}
