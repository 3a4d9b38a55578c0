//! Requests byte by byte over TCP, for those that no client library would send.
//!
//! It must not know what the bytes mean beyond the framing of an HTTP/1.1 answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::http::Reply;

/// Longest silence of the server before the test gives up.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect_timeout(&address, SILENCE).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream.set_write_timeout(Some(SILENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection {
            stream,
            unread: Vec::new(),
        }
    }

    /// Sends bytes. A server that already refused and closed is no failure; its answer tells.
    pub fn send(&mut self, bytes: &[u8]) -> &mut Connection {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(e) => panic!("cannot send: {e}"),
        }
        self
    }

    /// Ends our side of the connection.
    pub fn finish(&mut self) -> &mut Connection {
        // A reset connection has no side left to end.
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// The next answer; `None` when the server closed without one.
    pub fn reply(&mut self) -> Option<Reply> {
        let head_end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more() {
                assert!(
                    self.unread.is_empty(),
                    "half an answer: {}",
                    String::from_utf8_lossy(&self.unread)
                );
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..head_end).collect()).unwrap();
        let mut reply = parse_head(&head);
        if reply.status == 100 {
            return self.reply();
        }
        let length = reply.header("content-length").map(|n| n.parse().unwrap());
        assert_eq!(
            reply.header("transfer-encoding"),
            None,
            "this reader expects a length"
        );
        match length {
            Some(length) => {
                while self.unread.len() < length {
                    assert!(self.more(), "the body of the answer ends early");
                }
                reply.body = self.unread.drain(..length).collect();
            }
            None if reply.status == 204 => {}
            None => {
                while self.more() {}
                reply.body = std::mem::take(&mut self.unread);
            }
        }
        Some(reply)
    }

    /// Waits until the server ends the connection, and returns what it still sent.
    pub fn until_closed(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.unread)
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => self.more(),
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                true
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => false,
            Err(e) => panic!("no answer: {e}"),
        }
    }
}

/// Sends one request on a connection of its own and returns the answer; `None` when the server
/// closed without one.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Option<Reply> {
    Connection::open(address).send(request).reply()
}

fn parse_head(head: &str) -> Reply {
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap();
    let mut words = status_line.split(' ');
    assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line}");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Reply {
        status: words.next().unwrap().parse().unwrap(),
        headers: headers.collect(),
        body: Vec::new(),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
