//! Stand-ins: an upstream that shows what a proxy sends on and answers an upgrade with 101 and an
//! echo, and a proxy with a fault that must be found.
//!
//! It must not know the real proxies.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Key and answer of the example in RFC 6455 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What the upstream says first on an upgraded connection.
pub const GREETING: &[u8] = b"first word of the server";

/// A listener whose connections each have a thread; they end with the test's process.
#[derive(Debug)]
pub struct Upstream {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    pub fn start() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                // A proxy that closes its side ends the thread with an error, as it should.
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        Upstream { address, heads }
    }

    /// The heads of all requests since the last call, header names in lower case.
    pub fn take(&self) -> Vec<Head> {
        let heads = std::mem::take(&mut *self.heads.lock().unwrap());
        heads.iter().map(|head| Head::parse(head)).collect()
    }
}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Head {
    pub line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Head {
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Head {
            line,
            headers: headers.collect(),
        }
    }

    /// All values of a header, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !more(&mut stream, &mut unread)? {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&unread[..end]).into_owned();
        unread.drain(..end);
        let upgrade = Head::parse(&head).values("upgrade").concat();
        let upgrade = upgrade.eq_ignore_ascii_case("websocket");
        seen.lock().unwrap().push(head);
        if upgrade {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {ACCEPT}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes())?;
            stream.write_all(GREETING)?;
            loop {
                stream.write_all(&unread)?;
                unread.clear();
                if !more(&mut stream, &mut unread)? {
                    return Ok(());
                }
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    }
}

fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    unread.extend_from_slice(&buffer[..count]);
    Ok(count > 0)
}

/// A proxy with a fault: it takes `x-length` for the length of a body, which the server does not.
#[derive(Debug)]
pub struct Liar {
    pub address: SocketAddr,
}

impl Liar {
    /// Forwards to `upstream`, one answer for each request that it believes in.
    pub fn start(upstream: SocketAddr) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || forward(client, upstream));
            }
        });
        Liar { address }
    }
}

fn forward(mut client: TcpStream, upstream: SocketAddr) -> std::io::Result<()> {
    let (mut unread, mut answers) = (Vec::new(), Vec::new());
    let mut server = TcpStream::connect(upstream)?;
    loop {
        let request = whole(&mut client, &mut unread, "x-length")?;
        server.write_all(&request)?;
        let answer = whole(&mut server, &mut answers, "content-length")?;
        client.write_all(&answer)?;
    }
}

/// One message whose body is as long as `length` says.
fn whole(stream: &mut TcpStream, unread: &mut Vec<u8>, length: &str) -> std::io::Result<Vec<u8>> {
    loop {
        if let Some(at) = unread.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = Head::parse(&String::from_utf8_lossy(&unread[..at]));
            let body = head
                .values(length)
                .first()
                .map_or(0, |n| n.parse().unwrap());
            if unread.len() >= at + 4 + body {
                return Ok(unread.drain(..at + 4 + body).collect());
            }
        }
        if !more(stream, unread)? {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
