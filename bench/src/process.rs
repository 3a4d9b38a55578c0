//! Servers that are measured: started, watched until they listen, and ended by handle.
//!
//! Only processes that were started here are ever ended. It must not know what is measured.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::http::{self, Connection};
use crate::machine;

/// Longest time from start to listening, and from SIGTERM to the end.
const LIMIT: Duration = Duration::from_secs(60);

/// The words before the address in the line that says that a server listens (nimbus.md 1.2).
const READY: &str = "listening on http://";

/// The home and the data of one server.
#[derive(Debug)]
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// A new one below `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Site> {
        let dir = tempfile::Builder::new()
            .prefix("nimbus-bench-")
            .tempdir_in(parent)?;
        for name in ["home", "run"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        Ok(Site { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn token(&self) -> Result<String> {
        let path = self.path().join("xdg-data/nimbus/auth/token");
        let text =
            std::fs::read(&path).with_context(|| format!("no token at {}", path.display()))?;
        let token: Value = serde_json::from_slice(&text)?;
        let token = token["token"]
            .as_str()
            .context("the token file has no token")?;
        Ok(token.to_owned())
    }

    /// `program` with an environment of this site alone.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let dir = self.path();
        let mut command = Command::new(program);
        command
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir.join("home"))
            .env("XDG_DATA_HOME", dir.join("xdg-data"))
            .env("XDG_STATE_HOME", dir.join("xdg-state"))
            .env("XDG_CONFIG_HOME", dir.join("xdg-config"))
            .env("XDG_RUNTIME_DIR", dir.join("run"))
            .env("LANG", "C.UTF-8");
        command
    }
}

/// How a Nimbus server is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    /// CPU that it is tied to; any when absent.
    pub(crate) cpu: Option<usize>,
    /// `--durability relaxed`.
    pub(crate) relaxed: bool,
    /// File of the master key that everything is encrypted with; plain text when absent.
    pub(crate) key: Option<PathBuf>,
    /// Syncs that take longer than the disk's.
    pub(crate) slow_sync: Option<SlowSync>,
    /// Arguments that choose what keeps the tenants; SQLite when there are none.
    pub(crate) storage: Vec<String>,
    /// More arguments.
    pub(crate) more: &'static [&'static str],
}

/// Arguments of flags that have a value each.
pub(crate) fn flags<const N: usize>(flags: [(&str, &str); N]) -> Vec<String> {
    let each = flags.into_iter().flat_map(|(flag, value)| [flag, value]);
    each.map(str::to_owned).collect()
}

/// A running Nimbus server.
#[derive(Debug)]
pub(crate) struct Nimbus {
    process: Process,
    token: String,
}

impl Nimbus {
    /// Starts `binary` in a site and waits until it listens.
    pub(crate) fn start(binary: &Path, site: &Site, start: &Start) -> Result<Nimbus> {
        let mut command = site.command(binary);
        if let Some(slow) = &start.slow_sync {
            slow.apply(&mut command);
        }
        command
            .args(["start", "--port", "0", "--data-dir"])
            .arg(site.data());
        if start.relaxed {
            command.args(["--durability", "relaxed"]);
        }
        if let Some(key) = &start.key {
            command
                .args(["--encryption-key-provider", "master-key-file"])
                .arg("--encryption-master-key-file")
                .arg(key);
        }
        command.args(&start.storage);
        command.args(start.more);
        let process = Process::start(command, start.cpu)?;
        let token = site.token()?;
        Ok(Nimbus { process, token })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Time from the start of the process to the line that says that it listens.
    pub(crate) fn start_time(&self) -> Duration {
        self.process.start_time
    }

    /// One call on a connection of its own; the status must be `status`.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Result<Value> {
        let body = body.map(Value::to_string);
        let text = self.text(&self.token, method, path, body.as_deref(), status)?;
        Ok(if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text)?
        })
    }

    /// The same with another credential than the admin token.
    pub(crate) fn call_with(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: &Value,
        status: u16,
    ) -> Result<Value> {
        let text = self.text(key, method, path, Some(&body.to_string()), status)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Reads a streamed answer to its end and returns how many lines it has.
    pub(crate) fn lines(&self, path: &str) -> Result<u64> {
        let url = format!("http://{}{path}", self.address());
        let bearer = format!("Bearer {}", self.token);
        let mut answer = ureq::get(url).header("authorization", bearer).call()?;
        let mut body = answer.body_mut().as_reader();
        let (mut lines, mut part) = (0, vec![0; 256 * 1024]);
        loop {
            match body.read(&mut part)? {
                0 => return Ok(lines),
                count => lines += part[..count].iter().filter(|b| **b == b'\n').count() as u64,
            }
        }
    }

    fn text(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&str>,
        status: u16,
    ) -> Result<String> {
        let mut request = Vec::new();
        http::request(
            &mut request,
            method,
            path,
            Some(token),
            body.map(str::as_bytes),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut connection = Connection::open(self.address()).await?;
            let answer = connection.call(&request).await?;
            let text = String::from_utf8_lossy(answer.body).into_owned();
            if answer.status != status {
                bail!(
                    "{method} {path}: status {} instead of {status}: {text}",
                    answer.status
                );
            }
            Ok(text)
        })
    }

    /// Durable commits and the syncs that they waited for, so far.
    pub(crate) fn commits_and_syncs(&self) -> Result<(f64, f64)> {
        let text = self.text(&self.token, "GET", "/metrics", None, 200)?;
        let counter = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().parse::<f64>().ok())
                .with_context(|| format!("/metrics has no {name}"))
        };
        Ok((
            counter("nimbus_commits_total ")?,
            counter("nimbus_commit_syncs_total ")?,
        ))
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn stop(self) -> Result<()> {
        self.process.stop()
    }
}

/// Syncs that take longer than the disk's own, made by a library that is loaded into a program.
#[derive(Clone, Debug)]
pub(crate) struct SlowSync {
    library: PathBuf,
    delay: Duration,
}

impl SlowSync {
    /// Builds the library in `dir` with the C compiler that the server is built with.
    pub(crate) fn build(dir: &Path, delay: Duration) -> Result<SlowSync> {
        let (source, library) = (dir.join("slow_sync.c"), dir.join("slow_sync.so"));
        std::fs::write(&source, include_str!("slow_sync.c"))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-shared", "-fPIC", "-o"]);
        let output = compiler.arg(&library).arg(&source).output();
        let output = output.context("cannot start cc, which makes syncs slow")?;
        if !output.status.success() {
            bail!("cc failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(SlowSync { library, delay })
    }

    pub(crate) fn apply(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("BENCH_SYNC_DELAY_US", self.delay.as_micros().to_string());
    }
}

/// This program itself, to be run as a baseline.
pub(crate) fn own_program() -> Result<Command> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(Command::new(own))
}

/// The axum server that answers one text.
#[derive(Debug)]
pub(crate) struct Hello(Process);

impl Hello {
    pub(crate) fn start(cpu: Option<usize>) -> Result<Hello> {
        let mut command = own_program()?;
        command.arg("hello");
        Ok(Hello(Process::start(command, cpu)?))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.child.id()
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.0.stop()
    }
}

/// A child whose standard error is read by a thread.
#[derive(Debug)]
struct Process {
    child: Child,
    address: SocketAddr,
    start_time: Duration,
    /// Gets a message when standard error is closed, which a program does by ending.
    closed: Receiver<()>,
    log: Arc<Mutex<String>>,
}

impl Process {
    fn start(mut command: Command, cpu: Option<usize>) -> Result<Process> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = spawn(command, cpu)?;
        let (ready_sender, ready) = mpsc::channel();
        let (closed_sender, closed) = mpsc::channel();
        let log = Arc::new(Mutex::new(String::new()));
        let pipe = child.stderr.take().context("no pipe")?;
        let copy = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if let Some(address) = address(&line) {
                    // Nobody listens when the time to start has run out.
                    let _ = ready_sender.send((address, started.elapsed()));
                }
                let mut log = copy.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
            let _ = closed_sender.send(());
        });
        let ready = ready.recv_timeout(LIMIT);
        let mut process = Process {
            child,
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            start_time: Duration::ZERO,
            closed,
            log,
        };
        match ready {
            Ok((address, start_time)) => {
                (process.address, process.start_time) = (address, start_time);
                Ok(process)
            }
            Err(_) => bail!("a server did not start:\n{}", process.log()),
        }
    }

    fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        if self.closed.recv_timeout(LIMIT).is_err() {
            bail!("a server did not stop within {LIMIT:?}:\n{}", self.log());
        }
        let status = self.child.wait()?;
        // The axum server has no handler, so the signal itself ends it.
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
        if !status.success() && by_signal != Some(Signal::TERM.as_raw()) {
            bail!("a server ended with {status}:\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child inherits the affinity of the thread that starts it.
pub(crate) fn spawn(mut command: Command, cpu: Option<usize>) -> Result<Child> {
    let spawned = std::thread::scope(|scope| {
        let start = || {
            if let Some(cpu) = cpu {
                machine::pin(cpu)?;
            }
            let program = command.get_program().to_owned();
            let child = command.spawn();
            child.with_context(|| format!("cannot start {}", program.display()))
        };
        scope.spawn(start).join()
    });
    spawned.unwrap_or_else(|_| bail!("the thread that starts a server panicked"))
}

fn address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(READY)?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && !matches!(c, '.' | ':' | '[' | ']'));
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_a_log_line() {
        for (line, expected) in [
            (
                "INFO nimbus: listening on http://127.0.0.1:8080",
                Some("127.0.0.1:8080"),
            ),
            ("listening on http://[::1]:9 (pid 3)", Some("[::1]:9")),
            ("starting", None),
        ] {
            assert_eq!(
                address(line),
                expected.map(|text| text.parse().unwrap()),
                "{line}"
            );
        }
    }

    #[test]
    fn a_program_that_ends_at_once_is_an_error_with_its_text() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such flag >&2; exit 2"]);
        let error = Process::start(command, None).unwrap_err().to_string();
        assert!(error.contains("no such flag"), "{error}");
    }
}
