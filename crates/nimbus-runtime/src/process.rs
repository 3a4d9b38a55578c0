//! One worker process: starting it, talking to it, measuring it, and ending it for certain.
//!
//! A worker is this binary with nothing of the server's: no environment, no arguments beyond its name, no
//! descriptors but its socket. It is killed, not asked: whatever its isolate is doing, SIGKILL ends it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::config::WorkerCommand;
use crate::protocol::{self, FrameError, FromWorker, Setup, ToWorker};

/// How long a new worker may take to say that its engine is up.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Read buffers longer than this are given back between invocations.
const BUFFER: usize = 64 * 1024;
/// Bytes of its standard error that are logged when a worker is lost.
const LAST_WORDS: u64 = 2_048;

/// The words of Rust's standard library before it aborts for want of memory.
const NO_MEMORY: &str = "memory allocation of ";

/// What ends a conversation with a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WorkerError {
    #[error("the worker's socket: {0}")]
    Io(#[from] io::Error),
    #[error("the worker's message: {0}")]
    Frame(#[from] FrameError),
    #[error("the worker closed its socket")]
    Closed,
    #[error("the worker ended before it began: {said}")]
    Stillborn { said: String },
    #[error("the worker did not start within {} s", START_LIMIT.as_secs())]
    Slow,
    #[error("the worker sent what was not its turn to send")]
    Unexpected,
}

/// A worker process. Dropping it kills it.
pub(crate) struct Worker {
    child: Child,
    pid: u32,
    socket: UnixStream,
    incoming: Vec<u8>,
    consumed: usize,
    outgoing: Vec<u8>,
    /// How much of `outgoing` was sent.
    sent: usize,
    /// Whether the system keeps it from files (Landlock).
    pub(crate) confined: bool,
    /// Invocations that it ran.
    pub(crate) runs: u64,
}

impl Worker {
    /// Starts a process and waits until its engine is up.
    pub(crate) async fn start(
        command: &WorkerCommand,
        setup: Setup,
        snapshot: Option<&OwnedFd>,
    ) -> Result<Worker, WorkerError> {
        let mut worker = Worker::spawn(command, setup, snapshot).await?;
        match worker.first().await? {
            FromWorker::Ready { confined } => {
                worker.confined = confined;
                Ok(worker)
            }
            _ => Err(WorkerError::Unexpected),
        }
    }

    /// Has a process make the snapshot of the web APIs.
    pub(crate) async fn snapshot(
        command: &WorkerCommand,
        setup: Setup,
    ) -> Result<Vec<u8>, WorkerError> {
        let mut worker = Worker::spawn(command, setup, None).await?;
        match worker.first().await? {
            FromWorker::Snapshot(bytes) => Ok(bytes),
            _ => Err(WorkerError::Unexpected),
        }
    }

    async fn first(&mut self) -> Result<FromWorker, WorkerError> {
        match tokio::time::timeout(START_LIMIT, self.receive()).await {
            Ok(Err(WorkerError::Closed)) => Err(WorkerError::Stillborn {
                said: self.last_words().await,
            }),
            Ok(message) => message,
            Err(_) => Err(WorkerError::Slow),
        }
    }

    async fn spawn(
        command: &WorkerCommand,
        setup: Setup,
        snapshot: Option<&OwnedFd>,
    ) -> Result<Worker, WorkerError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&command.program)
            .arg0("nimbus")
            .args(&command.args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(match snapshot {
                Some(snapshot) => Stdio::from(snapshot.try_clone()?),
                None => Stdio::null(),
            })
            .stderr(Stdio::piped())
            // The zone and language of functions do not follow the machine's.
            .env("TZ", "UTC")
            .env("LC_ALL", "en_US.UTF-8")
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or(WorkerError::Closed)?;
        let mut worker = Worker {
            child,
            pid,
            socket: UnixStream::from_std(ours)?,
            incoming: Vec::new(),
            consumed: 0,
            outgoing: Vec::new(),
            sent: 0,
            confined: false,
            runs: 0,
        };
        worker.send(&ToWorker::Setup(setup))?;
        Ok(worker)
    }

    /// Queues one message. It is sent while messages are received, never waited for apart: a worker that does not
    /// read could otherwise hold the server for ever.
    ///
    /// # Errors
    /// When it is longer than a frame may be.
    pub(crate) fn send(&mut self, message: &ToWorker) -> Result<(), WorkerError> {
        if self.sent > 0 {
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
        Ok(protocol::encode(message, &mut self.outgoing)?)
    }

    /// Bytes that the worker did not take yet.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// The next message; what is queued is sent meanwhile. Safe to cancel: what was read stays in the buffer.
    pub(crate) async fn receive(&mut self) -> Result<FromWorker, WorkerError> {
        loop {
            self.write()?;
            if let Some((message, used)) = protocol::decode(&self.incoming[self.consumed..])? {
                self.consumed += used;
                return Ok(message);
            }
            self.incoming.drain(..self.consumed);
            self.consumed = 0;
            let interest = match self.unsent() {
                0 => Interest::READABLE,
                _ => Interest::READABLE | Interest::WRITABLE,
            };
            if self.socket.ready(interest).await?.is_readable() {
                self.read()?;
            }
        }
    }

    /// Sends as much as the socket takes now.
    fn write(&mut self) -> Result<(), WorkerError> {
        while self.unsent() > 0 {
            match self.socket.try_write(&self.outgoing[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what the socket has now.
    fn read(&mut self) -> Result<(), WorkerError> {
        match self.socket.try_read_buf(&mut self.incoming) {
            Ok(0) => Err(WorkerError::Closed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes it ready to be kept: nothing unread, no large buffers. `false` if it said too much.
    pub(crate) fn rest(&mut self) -> bool {
        let quiet = self.consumed == self.incoming.len() && self.unsent() == 0;
        self.incoming.clear();
        self.consumed = 0;
        self.incoming.shrink_to(BUFFER);
        self.outgoing.clear();
        self.outgoing.shrink_to(BUFFER);
        quiet
    }

    /// Whether the process has not ended, which nobody notices while it has no work.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The number of the process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The beginning of what the engine said when it failed; for the log.
    pub(crate) async fn last_words(&mut self) -> String {
        let Some(stderr) = self.child.stderr.take() else {
            return String::new();
        };
        let mut said = Vec::new();
        let mut stderr = stderr.take(LAST_WORDS);
        let read = stderr.read_to_end(&mut said);
        // A process that lives on holds the pipe open.
        drop(tokio::time::timeout(Duration::from_millis(100), read).await);
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    /// Kills the process and says how it had ended, if it ended by itself. `said` is what it said last.
    pub(crate) async fn end(mut self, said: &str) -> Ended {
        let by_itself = tokio::time::timeout(Duration::from_millis(100), self.child.wait()).await;
        let Ok(Ok(status)) = by_itself else {
            drop(self.child.start_kill());
            drop(self.child.wait().await);
            return Ended::Killed;
        };
        match (status.code(), status.signal()) {
            (Some(protocol::EXIT_OUT_OF_MEMORY), _) => Ended::OutOfMemory,
            (Some(code), _) => Ended::Exited(code),
            // What Rust says when the process may have no more memory than its limit.
            (None, Some(libc::SIGABRT)) if said.contains(NO_MEMORY) => Ended::OutOfMemory,
            (None, signal) => Ended::Signalled(signal.unwrap_or_default()),
        }
    }

    /// Kills the process now.
    pub(crate) async fn kill(mut self) {
        drop(self.child.kill().await);
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Killed,
    /// Its heap or array buffers reached the limit.
    OutOfMemory,
    Exited(i32),
    Signalled(i32),
}

/// CPU time that another process used so far (clock_getcpuclockid(3)); `None` where the system does not say.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "two calls of libc that fill in a value of ours")]
pub(crate) fn process_cpu(pid: u32) -> Option<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls only write to the place that they are given, which is ours.
    let known = unsafe {
        libc::clock_getcpuclockid(libc::pid_t::try_from(pid).ok()?, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    known.then(|| Duration::new(seconds, nanos))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn process_cpu(_: u32) -> Option<Duration> {
    None
}
