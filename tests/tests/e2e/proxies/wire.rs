//! A connection to a proxy: any bytes out, answers in, one after the other and with no assumption
//! that there is one for each request.
//!
//! It must not know what the answers mean.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nimbus_e2e::Reply;

/// Longest silence before a test gives up.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
    closed: bool,
}

impl Wire {
    pub fn open(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&address, SILENCE).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream.set_write_timeout(Some(SILENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire {
            stream,
            unread: Vec::new(),
            closed: false,
        }
    }

    /// Sends bytes. A side that has refused and closed already is no failure; its answer tells.
    pub fn send(&mut self, bytes: &[u8]) -> &mut Wire {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(e) => panic!("cannot send: {e}"),
        }
        self
    }

    /// Ends our side of the connection.
    pub fn finish(&mut self) {
        // A connection that was reset has no side left to end.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next answer with its body; `None` when there is none before the end.
    pub fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(reply) = self.parsed() {
                return Some(reply);
            }
            if self.closed {
                assert!(self.unread.is_empty(), "half an answer: {:?}", self.rest());
                return None;
            }
            assert!(self.more() || self.closed, "no answer: {:?}", self.rest());
        }
    }

    /// The head of the next answer; what follows it stays unread.
    pub fn head(&mut self) -> Reply {
        while find(&self.unread, b"\r\n\r\n").is_none() {
            assert!(self.more(), "no answer: {:?}", self.rest());
        }
        let end = find(&self.unread, b"\r\n\r\n").unwrap() + 4;
        let head: Vec<u8> = self.unread.drain(..end).collect();
        parse_head(&head)
    }

    /// The next `count` bytes.
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.more(), "closed early: {:?}", self.rest());
        }
        self.unread.drain(..count).collect()
    }

    /// Whatever answers are there after at most `patience` without a byte.
    pub fn replies_within(&mut self, patience: Duration) -> Vec<Reply> {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        let mut replies = Vec::new();
        loop {
            while let Some(reply) = self.parsed() {
                replies.push(reply);
            }
            if self.closed {
                return replies;
            }
            let came = self.more();
            if !came && !self.closed {
                return replies;
            }
        }
    }

    /// What is left that is no whole answer.
    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Takes a whole answer from what has arrived.
    fn parsed(&mut self) -> Option<Reply> {
        let end = find(&self.unread, b"\r\n\r\n")? + 4;
        let mut reply = parse_head(&self.unread[..end]);
        let length = match reply.header("content-length") {
            Some(length) => length.parse().unwrap(),
            None if reply.status < 200 || reply.status == 204 => 0,
            None if self.closed => self.unread.len() - end,
            None => return None,
        };
        if self.unread.len() < end + length {
            return None;
        }
        reply.body = self.unread[end..end + length].to_vec();
        self.unread.drain(..end + length);
        Some(reply)
    }

    /// Reads once; false at the end or after the patience is over.
    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                return true;
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => self.closed = true,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("cannot read: {e}"),
        }
        false
    }
}

fn parse_head(head: &[u8]) -> Reply {
    let head = String::from_utf8_lossy(head).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap();
    assert!(status_line.starts_with("HTTP/1."), "{status_line}");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    });
    Reply {
        status: status_line.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.collect(),
        body: Vec::new(),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
