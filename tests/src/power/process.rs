//! A server that may fail to start, be watched by another program, and be killed at any moment.
//!
//! `server` is for servers that work; here a refusal to start is an answer. It must not know why.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::http::Client;

/// Longest time for a start, and for an end.
const LIMIT: Duration = Duration::from_secs(30);
/// The words before the address in the ready line (nimbus.md 1.2).
const READY: &str = "listening on http://";

/// A process that listens.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    log: String,
    address: String,
}

impl Process {
    /// Starts a command and waits until it says where it listens.
    ///
    /// # Errors
    /// What it wrote, when it ended instead or took longer than 30 s.
    pub fn start(command: &mut Command) -> Result<Process, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let pipe = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in pipe.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let mut process = Process {
            child,
            lines,
            log: String::new(),
            address: String::new(),
        };
        match process.read_until(|line| line.contains(READY)) {
            Ok(line) => {
                let (_, rest) = line.split_once(READY).unwrap();
                let end = rest.find(|c: char| c.is_whitespace() || c == '"');
                rest[..end.unwrap_or(rest.len())].clone_into(&mut process.address);
                Ok(process)
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("not ready within {LIMIT:?}:\n{}", process.log))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = process.child.wait().unwrap();
                Err(format!("it ended ({status}):\n{}", process.log))
            }
        }
    }

    /// A client with this token.
    pub fn client(&self, token: &str) -> Client {
        Client::new(format!("http://{}", self.address), Some(token.to_owned()))
    }

    /// Asks it to stop and waits until it has, as [`Process::wait`] does.
    pub fn terminate(self) -> (String, Option<ExitStatus>) {
        // Fails only when it has ended already.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.wait()
    }

    /// Waits for an end that something else brings about. Its log, and how it ended: `None` for a
    /// process that had to be killed because it took more than 30 s.
    pub fn wait(mut self) -> (String, Option<ExitStatus>) {
        let ended = self.read_until(|_| false);
        if ended == Err(RecvTimeoutError::Timeout) {
            return (self.kill(), None);
        }
        let status = self.child.wait().unwrap();
        (std::mem::take(&mut self.log), Some(status))
    }

    /// Kills it; its log.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        let _ = self.read_until(|_| false);
        self.child.wait().unwrap();
        std::mem::take(&mut self.log)
    }

    fn read_until(&mut self, wanted: impl Fn(&str) -> bool) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left)?;
            self.log.push_str(&line);
            self.log.push('\n');
            if wanted(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
