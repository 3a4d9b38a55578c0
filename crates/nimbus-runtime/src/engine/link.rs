//! The worker's end of its socket. It blocks, and when the server is gone the process ends: there is nobody
//! left to tell. This room must not know what the messages mean.

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{guard, memory};
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
            memory::end();
        }
    }

    /// Sends what was put. What the server sends meanwhile is taken: if both sides only wrote, both would wait
    /// for ever once the socket is full.
    pub(crate) fn flush(&mut self) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut sent = 0;
        while sent < self.outgoing.len() {
            match rustix::net::send(&self.socket, &self.outgoing[sent..], flags) {
                Ok(n) => sent += n,
                Err(Errno::AGAIN) => self.wait(),
                Err(Errno::INTR) => {}
                Err(_) => guard::end(),
            }
        }
        self.outgoing.clear();
    }

    /// Waits until the socket takes something, and takes what comes.
    fn wait(&mut self) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::OUT)];
        // An interruption is as good as an event: the caller tries again.
        let woken = poll(&mut fds, None).is_ok();
        if woken && fds[0].revents().contains(PollFlags::IN) {
            self.fill();
        }
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
                Ok(0) => guard::end(),
                Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => guard::end(),
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
            Err(_) => guard::end(),
        }
    }

    /// Reads what is there without waiting. `false` when there was nothing.
    pub(crate) fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match rustix::net::recv(&self.socket, &mut chunk, rustix::net::RecvFlags::DONTWAIT) {
            Ok((_, 0)) => guard::end(),
            Ok((_, n)) => {
                self.incoming.extend_from_slice(&chunk[..n]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => guard::end(),
        }
    }

    /// The socket, for an event loop.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }
}
