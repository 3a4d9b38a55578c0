//! The worker's end of its socket. It blocks, and when the server is gone the process ends: there is nobody
//! left to tell. This room must not know what the messages mean.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::protocol::{self, FromWorker, ToWorker};

/// The socket with what was read ahead.
pub(crate) struct Link {
    socket: UnixStream,
    incoming: Vec<u8>,
    consumed: usize,
    outgoing: Vec<u8>,
}

impl Link {
    pub(crate) fn new(socket: UnixStream) -> Link {
        Link {
            socket,
            incoming: Vec::new(),
            consumed: 0,
            outgoing: Vec::new(),
        }
    }

    /// Puts a message into the buffer that the next [`Link::flush`] sends.
    pub(crate) fn put(&mut self, message: &FromWorker) {
        if protocol::encode(message, &mut self.outgoing).is_err() {
            // Longer than any frame: the server could only refuse it.
            std::process::exit(protocol::EXIT_OUT_OF_MEMORY);
        }
    }

    /// Sends what was put.
    pub(crate) fn flush(&mut self) {
        if self.socket.write_all(&self.outgoing).is_err() {
            std::process::exit(0);
        }
        self.outgoing.clear();
    }

    /// Sends one message now.
    pub(crate) fn send(&mut self, message: &FromWorker) {
        self.put(message);
        self.flush();
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> ToWorker {
        loop {
            if let Some(message) = self.buffered() {
                return message;
            }
            let mut chunk = [0; 16 * 1024];
            match self.socket.read(&mut chunk) {
                Ok(0) => std::process::exit(0),
                Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => std::process::exit(0),
            }
        }
    }

    /// A message that was read already.
    pub(crate) fn buffered(&mut self) -> Option<ToWorker> {
        let found = protocol::decode(&self.incoming[self.consumed..]);
        match found {
            Ok(Some((message, used))) => {
                self.consumed += used;
                Some(message)
            }
            Ok(None) => {
                self.incoming.drain(..self.consumed);
                self.consumed = 0;
                None
            }
            Err(_) => std::process::exit(0),
        }
    }

    /// Reads what is there without waiting. `false` when there was nothing.
    pub(crate) fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match rustix::net::recv(&self.socket, &mut chunk, rustix::net::RecvFlags::DONTWAIT) {
            Ok((_, 0)) => std::process::exit(0),
            Ok((_, n)) => {
                self.incoming.extend_from_slice(&chunk[..n]);
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(_) => std::process::exit(0),
        }
    }

    /// The socket, for an event loop.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }
}
