//! The bytes that programs read differently: framing, chunks, request lines, hosts, header shapes.
//!
//! Each case hides a request for `.../inner` where one reading has a body, and ends with a plain
//! request for `.../end`. Which reading is right is not this room's business, only that all have the same.

use super::{Case, HOST, PREFIX};

/// A case under construction.
struct Text {
    path: String,
    inner: String,
    host: String,
}

#[derive(Default)]
struct Maker {
    cases: Vec<Case>,
}

impl Maker {
    fn add(&mut self, name: String, write: impl FnOnce(&Text) -> String) {
        let marker = format!("mark-{}-", self.cases.len());
        let path = format!("{PREFIX}{marker}");
        let host = format!("Host: {HOST}\r\n");
        let text = Text {
            inner: format!("GET {path}/inner HTTP/1.1\r\n{host}\r\n"),
            path: format!("{path}/outer"),
            host,
        };
        let mut bytes = write(&text);
        bytes += &format!(
            "GET {path}/end HTTP/1.1\r\n{}Connection: close\r\n\r\n",
            text.host
        );
        self.cases.push(Case {
            name,
            marker,
            bytes: bytes.into_bytes(),
        });
    }
}

/// All cases, in a fixed order.
pub(super) fn all() -> Vec<Case> {
    let mut maker = Maker::default();
    transfer_encodings(&mut maker);
    content_lengths(&mut maker);
    chunks(&mut maker);
    request_lines(&mut maker);
    hosts(&mut maker);
    header_shapes(&mut maker);
    maker.cases
}

/// One chunk with `data`, and the last one.
fn chunked(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n0\r\n\r\n", data.len())
}

/// Spellings of `Transfer-Encoding`, alone and against a length that says otherwise.
fn transfer_encodings(maker: &mut Maker) {
    const SPELLINGS: [&str; 40] = [
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding: CHUNKED\r\n",
        "Transfer-Encoding:chunked\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Transfer-Encoding:  chunked \t \r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "\tTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding:\r\n\tchunked\r\n",
        "Transfer-Encoding:\n chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\r\n\rTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
        "Transfer-Encoding: chunked\r\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunk\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: 'chunked'\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: \0chunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "TE: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    ];
    for spelling in SPELLINGS {
        let shown = spelling.escape_debug();
        maker.add(format!("{shown} alone"), |t| {
            let body = chunked(&t.inner);
            format!("POST {} HTTP/1.1\r\n{}{spelling}\r\n{body}", t.path, t.host)
        });
        maker.add(format!("{shown} in a longer length"), |t| {
            let body = format!("0\r\n\r\n{}", t.inner);
            let length = body.len();
            format!(
                "POST {} HTTP/1.1\r\n{}{spelling}Content-Length: {length}\r\n\r\n{body}",
                t.path, t.host
            )
        });
        maker.add(format!("{shown} after a shorter length"), |t| {
            let body = chunked(&t.inner);
            let length = body.find('\n').map_or(0, |at| at + 1);
            format!(
                "POST {} HTTP/1.1\r\n{}Content-Length: {length}\r\n{spelling}\r\n{body}",
                t.path, t.host
            )
        });
    }
}

/// Spellings of `Content-Length`; `N` is the length of the hidden request.
fn content_lengths(maker: &mut Maker) {
    const SPELLINGS: [&str; 29] = [
        "Content-Length: N\r\n",
        "Content-Length: N\r\nContent-Length: N\r\n",
        "Content-Length: N\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: N\r\n",
        "Content-Length: N, N\r\n",
        "Content-Length: N, 0\r\n",
        "Content-Length: 0, N\r\n",
        "Content-Length: 0,N\r\n",
        "Content-Length: +N\r\n",
        "Content-Length: -0\r\n",
        "Content-Length: -N\r\n",
        "Content-Length: 0xN\r\n",
        "Content-Length: N.0\r\n",
        "Content-Length: Ne0\r\n",
        "Content-Length: 00000000000000000000N\r\n",
        "Content-Length: N 0\r\n",
        "Content-Length: 0 N\r\n",
        "Content-Length: N;x\r\n",
        "Content-Length: \"N\"\r\n",
        "Content-Length:\r\n",
        "Content-Length:\r\n N\r\n",
        "Content-Length: 0\r\n N\r\n",
        "Content-Length : N\r\n",
        " Content-Length: N\r\n",
        "Content_Length: N\r\n",
        "Content-Length: N\n",
        "Content-Length: \x0bN\r\n",
        "Content-Length: N\0\r\n",
        "Content-Length: 18446744073709551616\r\n",
    ];
    for spelling in SPELLINGS {
        for method in ["POST", "GET"] {
            maker.add(format!("{method} {}", spelling.escape_debug()), |t| {
                let spelled = spelling.replace('N', &t.inner.len().to_string());
                format!(
                    "{method} {} HTTP/1.1\r\n{}{spelled}\r\n{}",
                    t.path, t.host, t.inner
                )
            });
        }
    }
}

/// Spellings of a chunked body. `S` is the size of the hidden request in hexadecimal, `I` the
/// request.
fn chunks(maker: &mut Maker) {
    const BODIES: [&str; 44] = [
        "S\r\nI\r\n0\r\n\r\n",
        "S;x\r\nI\r\n0\r\n\r\n",
        "S;x=y\r\nI\r\n0\r\n\r\n",
        "S;x=\"y\"\r\nI\r\n0\r\n\r\n",
        "S;x=\"\r\nI\r\n0\r\n\r\n",
        "S; x = y\r\nI\r\n0\r\n\r\n",
        "S;\r\nI\r\n0\r\n\r\n",
        "S ;x\r\nI\r\n0\r\n\r\n",
        "S;x\nI\r\n0\r\n\r\n",
        "S;x\n\r\nI\r\n0\r\n\r\n",
        "S;x\rI\r\n0\r\n\r\n",
        "2;\nxx\r\nS\r\n0\r\n\r\nI\r\n0\r\n\r\n",
        "2;\rxx\r\nS\r\n0\r\n\r\nI\r\n0\r\n\r\n",
        "2;x=\"\nxx\r\nS\r\n0\r\n\r\nI\r\n0\r\n\r\n",
        "S\nI\r\n0\r\n\r\n",
        "S\rI\r\n0\r\n\r\n",
        "S\r\nI\n0\r\n\r\n",
        "S\r\nI0\r\n\r\n",
        "S\r\nIxx0\r\n\r\n",
        "S\r\nI\r\n0\n\n",
        "S\r\nI\r\n0\r\n\n",
        "S\r\nI\r\n0\n\r\n",
        "S\r\nI\r\n0\r\r",
        "0S\r\nI\r\n0\r\n\r\n",
        "00000000000000000000S\r\nI\r\n0\r\n\r\n",
        "0xS\r\nI\r\n0\r\n\r\n",
        "+S\r\nI\r\n0\r\n\r\n",
        "-S\r\nI\r\n0\r\n\r\n",
        " S\r\nI\r\n0\r\n\r\n",
        "S \r\nI\r\n0\r\n\r\n",
        "S\t\r\nI\r\n0\r\n\r\n",
        "S\0\r\nI\r\n0\r\n\r\n",
        "S,S\r\nI\r\n0\r\n\r\n",
        "\r\nS\r\nI\r\n0\r\n\r\n",
        "10000000000000000\r\nI\r\n0\r\n\r\n",
        "1000000000000000S\r\nI\r\n0\r\n\r\n",
        "100000000S\r\nI\r\n0\r\n\r\n",
        "g\r\nI\r\n0\r\n\r\n",
        "0\r\nI",
        "0\r\nX: y\r\n\r\nI",
        "0\r\nContent-Length: 5\r\n\r\nI",
        "0\r\nTransfer-Encoding: chunked\r\nHost: x\r\n\r\nI",
        "0\r\nX: y\r\n z\r\n\r\nI",
        "0\r\n X\r\n\r\nI",
    ];
    for body in BODIES {
        for version in ["1.1", "1.0"] {
            maker.add(
                format!("HTTP/{version} chunks {}", body.escape_debug()),
                |t| {
                    let size = format!("{:x}", t.inner.len());
                    let body = body.replace('S', &size).replace('I', &t.inner);
                    format!(
                        "POST {} HTTP/{version}\r\n{}Transfer-Encoding: chunked\r\n\r\n{body}",
                        t.path, t.host
                    )
                },
            );
        }
    }
}

/// Request lines; `{p}` is the path and `{h}` the host.
fn request_lines(maker: &mut Maker) {
    const LINES: [&str; 37] = [
        "GET {p} HTTP/1.1\r\n",
        "GET http://{h}{p} HTTP/1.1\r\n",
        "GET https://{h}{p} HTTP/1.1\r\n",
        "GET HTTP://{h}{p} HTTP/1.1\r\n",
        "GET http://evil.example{p} HTTP/1.1\r\n",
        "GET http://{h}:80{p} HTTP/1.1\r\n",
        "GET http://user@{h}{p} HTTP/1.1\r\n",
        "GET http://evil.example@{h}{p} HTTP/1.1\r\n",
        "GET http://{p} HTTP/1.1\r\n",
        "GET ftp://{h}{p} HTTP/1.1\r\n",
        "GET //{h}{p} HTTP/1.1\r\n",
        "GET {h}{p} HTTP/1.1\r\n",
        "GET @{h}{p} HTTP/1.1\r\n",
        "GET * HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT {h}:80 HTTP/1.1\r\n",
        "CONNECT {p} HTTP/1.1\r\n",
        "GET  {p} HTTP/1.1\r\n",
        "GET {p}  HTTP/1.1\r\n",
        "GET\t{p}\tHTTP/1.1\r\n",
        " GET {p} HTTP/1.1\r\n",
        "\r\nGET {p} HTTP/1.1\r\n",
        "\r\n\r\n\r\nGET {p} HTTP/1.1\r\n",
        "\nGET {p} HTTP/1.1\r\n",
        "GET {p} HTTP/1.1\n",
        "GET {p} HTTP/1.1\r",
        "GET {p} HTTP/1.1 \r\n",
        "GET {p}\r\n",
        "GET {p} HTTP/0.9\r\n",
        "GET {p} HTTP/1.2\r\n",
        "GET {p} HTTP/2.0\r\n",
        "GET {p} http/1.1\r\n",
        "GET {p} HTTP/1.1/HTTP/1.1\r\n",
        "GET {p} x HTTP/1.1\r\n",
        "GET {p}#f HTTP/1.1\r\n",
        "GET {p}\0 HTTP/1.1\r\n",
        "G\u{e9}T {p}\u{e9} HTTP/1.1\r\n",
    ];
    for line in LINES {
        for length in [false, true] {
            let kind = if length { "with" } else { "without" };
            maker.add(format!("{} {kind} a body", line.escape_debug()), |t| {
                let line = line.replace("{p}", &t.path).replace("{h}", HOST);
                let body = if length {
                    format!("Content-Length: {}\r\n\r\n{}", t.inner.len(), t.inner)
                } else {
                    "\r\n".to_owned()
                };
                format!("{line}{}{body}", t.host)
            });
        }
    }
}

/// `Host` headers; `{h}` is the host.
fn hosts(maker: &mut Maker) {
    const HOSTS: [&str; 19] = [
        "",
        "Host:\r\n",
        "Host: {h}\r\nHost: {h}\r\n",
        "Host: {h}\r\nHost: evil.example\r\n",
        "Host: evil.example\r\nHost: {h}\r\n",
        "Host: {h}, evil.example\r\n",
        "Host: {h} evil.example\r\n",
        "Host: evil.example\r\n",
        "Host : {h}\r\n",
        " Host: {h}\r\n",
        "Host:\r\n {h}\r\n",
        "Host: {h}\r\n evil.example\r\n",
        "Host: {h}/api\r\n",
        "Host: {h}:80\r\n",
        "Host: {h}:x\r\n",
        "Host: {h}#@evil.example\r\n",
        "Host: user@{h}\r\n",
        "Host: {h}\0\r\n",
        "host: {h}\r\nX-Forwarded-Host: evil.example\r\n",
    ];
    for host in HOSTS {
        for version in ["1.1", "1.0"] {
            maker.add(format!("HTTP/{version} {:?}", host), |t| {
                let host = host.replace("{h}", HOST);
                format!(
                    "POST {} HTTP/{version}\r\n{host}Content-Length: {}\r\n\r\n{}",
                    t.path,
                    t.inner.len(),
                    t.inner
                )
            });
        }
    }
}

/// Header lines with a body of the right length behind them.
fn header_shapes(maker: &mut Maker) {
    const HEADERS: [&str; 30] = [
        "X: y\r\n z\r\n",
        "X: y\r\n\tz\r\n",
        "X : y\r\n",
        "X\t: y\r\n",
        ": y\r\n",
        "X\r\n",
        "X: y\n",
        "X: y\rZ: z\r\n",
        "X: y\r\r\n",
        "X: \0\r\n",
        "X: \x01\x7f\r\n",
        "X\x01: y\r\n",
        "X(): y\r\n",
        "X: \u{e9}\r\n",
        "\u{e9}: y\r\n",
        "Connection: Content-Length\r\n",
        "Connection: Host\r\n",
        "Connection: close, Content-Length\r\n",
        "Connection: keep-alive\r\nConnection: close\r\n",
        "Proxy-Connection: close\r\n",
        "Keep-Alive: timeout=1\r\n",
        "Expect: 100-continue\r\n",
        "Expect: 100-Continue, x\r\n",
        "Expect: nonsense\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n",
        "Trailer: Content-Length\r\n",
        "X-HTTP-Method-Override: DELETE\r\n",
        "Content-Encoding: gzip\r\n",
    ];
    for header in HEADERS {
        maker.add(header.escape_debug().to_string(), |t| {
            format!(
                "POST {} HTTP/1.1\r\n{}{header}Content-Length: {}\r\n\r\n{}",
                t.path,
                t.host,
                t.inner.len(),
                t.inner
            )
        });
    }
}
