//! A small HTTP/1.1 client with keep-alive that costs as little as it can, since it runs on the
//! same two cores as the server that it measures.
//!
//! It reads answers that announce their length and must not know what they mean.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Writes a request into `out`, which it empties first.
pub(crate) fn request(
    out: &mut Vec<u8>,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&[u8]>,
) {
    out.clear();
    // Writing into a vector does not fail.
    let _ = write!(out, "{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
    if let Some(token) = token {
        let _ = write!(out, "authorization: Bearer {token}\r\n");
    }
    match body {
        Some(body) => {
            let length = body.len();
            let _ = write!(
                out,
                "content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            out.extend_from_slice(body);
        }
        None => out.extend_from_slice(b"\r\n"),
    }
}

/// One answer; the body is borrowed from its connection.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            input: Vec::with_capacity(64 * 1024),
        })
    }

    /// Sends one request and reads its answer whole.
    pub(crate) async fn call(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.input.clear();
        let (head, end) = loop {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("the server closed the connection before it answered");
            }
            if let Some(head) = parse(&self.input)? {
                break (head, head.start + head.length);
            }
        };
        while self.input.len() < end {
            if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("the server closed the connection within an answer");
            }
        }
        if self.input.len() > end {
            bail!("the server sent more than one answer");
        }
        Ok(Answer {
            status: head.status,
            body: &self.input[head.start..end],
        })
    }
}

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Head {
    status: u16,
    /// Where the body starts.
    start: usize,
    /// Bytes of body.
    length: usize,
}

/// The head at the start of `input`; `None` while it is not whole.
fn parse(input: &[u8]) -> Result<Option<Head>> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&input[..end]).context("the head of an answer is no text")?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .with_context(|| format!("no answer of HTTP/1.1: {text}"))?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let found = name.eq_ignore_ascii_case("content-length");
        found.then(|| value.trim().parse().ok())?
    });
    let length = match (length, status) {
        (Some(length), _) => length,
        (None, 204) => 0,
        (None, _) => bail!("an answer without a length: {text}"),
    };
    Ok(Some(Head {
        status,
        start: end + 4,
        length,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_once_whole() {
        let whole = b"HTTP/1.1 201 Created\r\nx: y\r\nContent-Length: 2\r\n\r\nab";
        for end in 0..whole.len() - 2 {
            assert_eq!(parse(&whole[..end]).unwrap(), None, "{end}");
        }
        let head = parse(whole).unwrap().unwrap();
        assert_eq!((head.status, head.length), (201, 2));
        assert_eq!(&whole[head.start..], b"ab");
    }

    #[test]
    fn a_body_must_announce_its_length_unless_there_is_none() {
        let head = parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.status, head.length), (204, 0));
        assert!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse(b"SMTP ready\r\n\r\n").is_err());
    }

    #[test]
    fn requests_carry_what_they_are_given() {
        let mut out = b"old".to_vec();
        request(&mut out, "GET", "/a", None, None);
        assert_eq!(out, b"GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n");
        request(&mut out, "POST", "/a", Some("t"), Some(b"{}"));
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("authorization: Bearer t\r\n"));
        assert!(text.ends_with("content-length: 2\r\n\r\n{}"));
    }
}
