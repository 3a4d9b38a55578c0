//! A proxy before an HTTP service that can be told to misbehave: slow, broken, refusing.
//!
//! It must not know the service. One request for each connection, since it answers with
//! `Connection: close`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What happens to requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: they are passed on.
    None,
    /// They get no answer, and the connection stays open.
    Hang,
    /// The connection is closed without an answer.
    Close,
    /// They are passed on, and half of the answer comes back.
    Half,
    /// They get this status and body, and are not passed on.
    Answer(u16, String),
    /// As [`Fault::Answer`] for so many requests, then nothing.
    AnswerTimes(usize, u16, String),
}

/// A request that came by.
#[derive(Clone, Debug)]
pub struct Request {
    /// Request line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    requests: Vec<Request>,
    /// Connections that hang, kept open.
    held: Vec<TcpStream>,
}

/// The proxy. It runs until the test ends.
#[derive(Clone, Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FaultProxy {
    /// Listens on a free port, before the service at `upstream`.
    pub fn before(upstream: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = FaultProxy {
            address: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State {
                fault: Fault::None,
                requests: Vec::new(),
                held: Vec::new(),
            })),
        };
        let served = proxy.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let proxy = served.clone();
                // A client that goes away is what some tests are about.
                thread::spawn(move || proxy.serve(client, upstream).unwrap_or_default());
            }
        });
        proxy
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what happens to requests; those that hang are let go.
    pub fn set(&self, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.fault = fault;
        state.held.clear();
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    fn next_fault(&self, request: &Request) -> Fault {
        let mut state = self.state.lock().unwrap();
        state.requests.push(request.clone());
        let fault = state.fault.clone();
        if let Fault::AnswerTimes(left, status, body) = &mut state.fault {
            let answer = Fault::Answer(*status, body.clone());
            *left -= 1;
            if *left == 0 {
                state.fault = Fault::None;
            }
            return answer;
        }
        fault
    }

    fn serve(&self, mut client: TcpStream, upstream: SocketAddr) -> std::io::Result<()> {
        let request = read_request(&mut client)?;
        match self.next_fault(&request) {
            Fault::Hang => self.state.lock().unwrap().held.push(client),
            Fault::Close => {}
            Fault::Answer(status, body) | Fault::AnswerTimes(_, status, body) => {
                let length = body.len();
                write!(
                    client,
                    "HTTP/1.1 {status} x\r\ncontent-type: application/x-amz-json-1.1\r\n\
                     content-length: {length}\r\nconnection: close\r\n\r\n{body}"
                )?;
            }
            fault => {
                let answer = pass_on(&request, upstream)?;
                let sent = match fault {
                    Fault::Half => answer.len() - 20,
                    _ => answer.len(),
                };
                client.write_all(&answer[..sent])?;
            }
        }
        Ok(())
    }
}

fn pass_on(request: &Request, upstream: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut service = TcpStream::connect(upstream)?;
    let head = request.head.trim_end();
    write!(
        service,
        "{head}\r\nconnection: close\r\n\r\n{}",
        request.body
    )?;
    let mut answer = Vec::new();
    service.read_to_end(&mut answer)?;
    Ok(answer)
}

fn read_request(client: &mut TcpStream) -> std::io::Result<Request> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= content_length(head)
        {
            return Ok(Request {
                head: head.to_owned(),
                body: body.to_owned(),
            });
        }
        match client.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

fn content_length(head: &str) -> usize {
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let found = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    found.map_or(0, |(_, value)| value.trim().parse().unwrap())
}
