//! Parser bombs: small or endless input that is meant to cost memory, stack or time.
//!
//! Each is sent to every route that takes JSON, as the running server lists them, and is refused
//! with the envelope while the process hardly grows. Memory is no timing, so it may decide. This
//! room must not know how the server parses.

mod world;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nimbus_e2e::{Reply, raw};

use world::{GROWTH_KIB, World};

/// Keys that 8 MiB of body cannot hold, and keys that they can.
const MILLION: usize = 1_000_000;
const MANY_KEYS: usize = 600_000;

/// Longest silence of the server while it is fed.
const SILENCE: Duration = Duration::from_secs(30);

/// 128 MiB of zeros in 4 KiB: a zstd frame (RFC 8878) of 1,024 blocks that repeat one byte.
fn zstd_bomb() -> Vec<u8> {
    // Magic, no options, a window of 128 KiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for block in 1..=1024_u32 {
        let header = ((128 * 1024) << 3) | (1 << 1) | u32::from(block == 1024);
        bomb.extend_from_slice(&header.to_le_bytes()[..3]);
        bomb.push(0);
    }
    bomb
}

/// 64 MiB of zeros as gzip makes them.
fn gzip_bomb() -> Vec<u8> {
    let script = "head -c 67108864 /dev/zero | gzip -9";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(output.stdout.len() < 100_000);
    output.stdout
}

#[test]
fn compressed_bodies_are_refused_unread() {
    let mut world = World::new();
    let gzip = gzip_bomb();
    let plain = br#"{"id":"other"}"#.to_vec();
    let cases: [(&str, &[u8]); 14] = [
        ("gzip", &gzip),
        ("x-gzip", &gzip),
        ("GZIP", &gzip),
        ("deflate", &gzip),
        ("compress", &plain),
        ("br", &[0xcb, 0xff, 0xff, 0x3f, 0x00, 0x80]),
        ("zstd", &zstd_bomb()),
        ("gzip, gzip", &gzip),
        ("identity, gzip", &gzip),
        ("gzip", &plain),
        ("identity, identity", &plain),
        ("*", &plain),
        ("", &plain),
        ("chunked", &plain),
    ];
    for (coding, body) in cases {
        let header = format!("Content-Encoding: {coding}\r\n");
        world.everywhere(&header, &header, body, 415, "op.invalid_input");
    }
    let twice = "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n";
    world.everywhere("two codings", twice, &gzip, 415, "op.invalid_input");
    // As a transfer coding it is not framing that we know (RFC 9112 6.1): the connection ends.
    for coding in ["gzip, chunked", "gzip", "zstd, chunked"] {
        let (method, path) = world.routes[0].clone();
        let reply = world.explode(coding, |world| {
            let head = world.head(&method, &path, "");
            let bytes = format!("{head}Transfer-Encoding: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
            raw::exchange(world.server.address(), bytes.as_bytes()).unwrap()
        });
        assert_eq!(reply.status, 400, "{coding}: {}", reply.text());
    }
    world.check("compressed bodies");
}

#[test]
fn json_that_is_deep_wide_or_wild_is_refused() {
    let mut world = World::new();
    let nested = |open: &str, inner: &str, close: &str| {
        [
            open.repeat(MILLION),
            inner.to_owned(),
            close.repeat(MILLION),
        ]
        .concat()
    };
    let keys = |count: usize, prefix: &str| {
        let mut text = String::from("{");
        for n in 0..count {
            let _ = write!(text, "\"{prefix}{n:x}\":0,");
        }
        text.pop();
        text + "}"
    };
    let insert = |fields: &str| format!(r#"{{"table":"notes","fields":{fields}}}"#);
    let invalid = "op.invalid_input";
    let bombs: Vec<(&str, String, u16, &str)> = vec![
        ("a million lists", nested("[", "", "]"), 400, invalid),
        (
            "a million lists that never close",
            "[".repeat(MILLION),
            400,
            invalid,
        ),
        (
            "a million objects",
            nested("{\"a\":", "0", "}"),
            400,
            invalid,
        ),
        (
            "a million lists in a document",
            insert(&format!("{{\"a\":{}}}", nested("[", "", "]"))),
            400,
            invalid,
        ),
        (
            "a million objects in a document",
            insert(&nested("{\"a\":", "0", "}")),
            400,
            invalid,
        ),
        ("a million keys", keys(MILLION, ""), 413, "op.cap_exceeded"),
        ("many keys", keys(MANY_KEYS, ""), 400, invalid),
        (
            "many keys in a document",
            insert(&keys(MANY_KEYS, "k")),
            400,
            invalid,
        ),
        (
            "a list of a million",
            insert(&format!("{{\"a\":[0{}]}}", ",0".repeat(MILLION))),
            400,
            invalid,
        ),
        (
            "a million empty lists",
            insert(&format!("{{\"a\":[[]{}]}}", ",[]".repeat(MILLION))),
            400,
            invalid,
        ),
        ("1e309", insert("{\"a\":1e309}"), 400, invalid),
        ("-1e309", insert("{\"a\":-1e309}"), 400, invalid),
        (
            "a large exponent",
            insert("{\"a\":1e999999999999}"),
            400,
            invalid,
        ),
        (
            "a million digits",
            insert(&format!("{{\"a\":{}}}", "9".repeat(MILLION))),
            400,
            invalid,
        ),
        (
            "a million zeros in an exponent",
            insert(&format!("{{\"a\":1e{}}}", "9".repeat(MILLION))),
            400,
            invalid,
        ),
        (
            "one key many times",
            insert(&format!("{{\"a\":0{}}}", ",\"a\":0".repeat(MILLION))),
            400,
            invalid,
        ),
        (
            "one member many times",
            format!("{{\"table\":0{}}}", ",\"table\":0".repeat(500_000)),
            400,
            invalid,
        ),
        (
            "half a surrogate",
            insert("{\"a\":\"\\ud800\"}"),
            400,
            invalid,
        ),
        (
            "the other half",
            insert("{\"a\":\"\\udc00\"}"),
            400,
            invalid,
        ),
        (
            "halves the wrong way round",
            insert("{\"a\":\"\\udc00\\ud800\"}"),
            400,
            invalid,
        ),
        (
            "a million halves",
            insert(&format!("{{\"a\":\"{}\"}}", "\\ud800".repeat(MILLION))),
            400,
            invalid,
        ),
        (
            "half a surrogate as a key",
            insert("{\"\\ud800\":0}"),
            400,
            invalid,
        ),
        (
            "a string that never ends",
            insert(&format!("{{\"a\":\"{}", "x".repeat(8_000_000))),
            400,
            invalid,
        ),
        (
            "a string with every byte escaped",
            insert(&format!("{{\"a\":\"{}\"}}", "\\u0041".repeat(1_300_000))),
            400,
            invalid,
        ),
        ("white space", " ".repeat(8 << 20), 400, invalid),
    ];
    for (name, body, status, code) in &bombs {
        world.everywhere(name, "", body.as_bytes(), *status, code);
    }
    // Within every limit but that of the whole, so they are read until they are larger than a
    // document may be, which costs what such a document costs.
    world.most = 2 * GROWTH_KIB;
    let thousand = keys(1_000, "k");
    let lists = format!("[0{}]", ",0".repeat(8_000));
    for (name, part) in [("objects", &thousand), ("lists", &lists)] {
        let many = vec![part.as_str(); (8 << 20) / part.len() - 1].join(",");
        let (name, body) = (
            format!("{name} in a document"),
            insert(&format!("{{\"a\":[{many}]}}")),
        );
        world.everywhere(&name, "", body.as_bytes(), 400, invalid);
    }
    world.check("JSON");
}

/// Sends `head` and then `part` until the server stops reading or `most` bytes are sent, and
/// returns its answer and what was sent.
fn feed(world: &World, head: &str, part: &[u8], most: usize) -> (Reply, usize) {
    let mut stream = TcpStream::connect(world.server.address()).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    stream.set_write_timeout(Some(SILENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    while sent < most && stream.write_all(part).is_ok() {
        sent += part.len();
    }
    // Read after the end of the connection, too: the answer came before it.
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text}"));
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let reply = Reply {
        status,
        headers: headers.collect(),
        body: body.as_bytes().to_vec(),
    };
    (reply, sent)
}

#[test]
fn bodies_without_an_end_are_cut_off() {
    const HUNDRED_MB: usize = 100_000_000;
    const ENDLESS: usize = 1 << 40;
    let mut world = World::new();
    let string = vec![b'x'; 64 * 1024];
    let chunk = [&b"10000\r\n"[..], &vec![b'x'; 0x10000], b"\r\n"].concat();
    let small = [&b"40\r\n"[..], &[b'x'; 0x40], b"\r\n"]
        .concat()
        .repeat(1024);
    let chunked = "Transfer-Encoding: chunked\r\n\r\n".to_owned();
    let opened = format!("{chunked}7\r\n{{\"id\":\"\r\n");
    let declared = format!("Content-Length: {HUNDRED_MB}\r\n\r\n{{\"id\":\"");
    let huge = format!("Content-Length: {}\r\n\r\n{{\"id\":\"", u64::MAX / 2);
    let cases: Vec<(&str, &str, &[u8], usize, u16)> = vec![
        ("a string of 100 MB", &declared, &string, HUNDRED_MB, 413),
        ("a body of half of 2^64", &huge, &string, ENDLESS, 413),
        ("chunks without end", &opened, &chunk, ENDLESS, 413),
        ("small chunks without end", &opened, &small, ENDLESS, 413),
        (
            "a chunk extension without end",
            &chunked,
            b"5;a=\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ENDLESS,
            400,
        ),
        (
            "a chunk size without end",
            &chunked,
            &[b'0'; 64 * 1024],
            ENDLESS,
            408,
        ),
        (
            "a chunk size beyond 2^64",
            &chunked,
            b"ffffffffffffffffff\r\n",
            ENDLESS,
            400,
        ),
    ];
    let (method, path) = ("POST", "/api/tenants");
    for (name, rest, part, most, status) in cases {
        let mut sent = 0;
        let reply = world.explode(name, |world| {
            let head = world.head(method, path, rest);
            let (reply, count) = feed(world, &head, part, most);
            sent = count;
            reply
        });
        println!("{name}: {} after {sent} bytes", reply.status);
        assert_eq!(reply.status, status, "{name}: {}", reply.text());
        assert!(sent < ENDLESS, "{name}: the server took {sent} bytes");
        assert_eq!(reply.header("connection"), Some("close"), "{name}");
        let code = match status {
            413 => "op.cap_exceeded",
            // Zeros are a size so far, so it is the rate of the body that ends them.
            408 => "op.cancelled",
            _ => "op.invalid_input",
        };
        reply.refused(status, code);
    }
    // Trailers without end, and without the credential: the gate answers before any of it.
    let trailers = "{\"id\":\"x\"}\r\n0\r\n".to_owned();
    let head = world.head(method, path, &format!("{chunked}a\r\n{trailers}"));
    let reply = world.explode("trailers without end", |world| {
        feed(
            world,
            &head,
            b"X-Trailer: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n",
            ENDLESS,
        )
        .0
    });
    assert_eq!(reply.status, 400, "{}", reply.text());
    reply.refused(400, "op.invalid_input");
    for (name, rest, part) in [
        ("a stranger's chunks without end", &opened, &chunk),
        (
            "a stranger's chunk size without end",
            &chunked,
            &vec![b'0'; 64 * 1024],
        ),
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{rest}");
        let reply = world.explode(name, |world| feed(world, &head, part, ENDLESS).0);
        assert_eq!(reply.header("connection"), Some("close"));
        reply.refused(401, "auth.unauthorized");
    }
    world.check("bodies without an end");
}
