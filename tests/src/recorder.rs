//! A proxy before a server that keeps what passes in both directions.
//!
//! It must not know what the bytes mean.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The proxy. It runs until the test ends.
#[derive(Clone, Debug)]
pub struct Recorder {
    port: u16,
    passed: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// Listens on a free port of 127.0.0.1, before the server at `upstream`.
    pub fn before(upstream: SocketAddr) -> Recorder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let recorder = Recorder {
            port: listener.local_addr().unwrap().port(),
            passed: Arc::default(),
        };
        let passed = Arc::clone(&recorder.passed);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(upstream) else {
                    continue;
                };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, to) in [(client, server), back] {
                    let passed = Arc::clone(&passed);
                    thread::spawn(move || carry(from, to, &passed));
                }
            }
        });
        recorder
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether these bytes passed, in either direction.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        let passed = self.passed.lock().unwrap();
        passed.windows(bytes.len()).any(|window| window == bytes)
    }

    /// How many bytes passed.
    pub fn len(&self) -> usize {
        self.passed.lock().unwrap().len()
    }

    /// Whether none passed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Carries until either side ends, which is all that the other gets to know.
fn carry(mut from: TcpStream, mut to: TcpStream, passed: &Mutex<Vec<u8>>) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        passed.lock().unwrap().extend_from_slice(&piece[..count]);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
