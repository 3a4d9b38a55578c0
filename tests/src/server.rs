//! A server under test: started, watched through its log, and ended by handle.
//!
//! Nothing here sleeps: readiness and the end of the process are both seen on its standard error.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::databases::Database;
use crate::home::{Finished, Home, binary};
use crate::http::Client;

/// Longest time from the start of the process to its ready line, and from a request to stop to
/// its end.
const LIMIT: Duration = Duration::from_secs(30);

/// The words before the address in the ready line (nimbus.md 1.2).
const READY: &str = "listening on http://";

/// Where `strace` writes down syncs, within the home.
const SYNC_LOG: &str = "syncs.log";

/// Where `strace` writes down what [`Options::traced`] names, within the home.
const TRACE: &str = "trace.log";

/// How a server is started. `--port 0` is always given unless `args` name a port.
#[derive(Clone, Debug, Default)]
pub struct Options {
    home: Option<Arc<Home>>,
    data_dir: Option<PathBuf>,
    no_data_dir: bool,
    args: Vec<String>,
    env: Vec<(String, String)>,
    sync_takes: Option<Duration>,
    traced: Option<&'static str>,
    names: Option<(String, IpAddr)>,
    /// Chosen here, since nobody chose; cleared with the last server that has it.
    database: Option<Arc<Database>>,
}

impl Options {
    /// A new home, its data directory, a free port.
    pub fn new() -> Options {
        Options::default()
    }

    /// The home of another server or of the test.
    pub fn home(mut self, home: &Arc<Home>) -> Options {
        self.home = Some(Arc::clone(home));
        self
    }

    /// Another data directory than the home's.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Options {
        self.data_dir = Some(dir.into());
        self
    }

    /// Leaves `--data-dir` out.
    pub fn without_data_dir(mut self) -> Options {
        self.no_data_dir = true;
        self
    }

    /// More arguments.
    pub fn args(mut self, args: &[&str]) -> Options {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Tenants in this database.
    pub fn on(mut self, database: &Database) -> Options {
        self.args.extend(database.flags());
        self
    }

    /// The same with a provider: where none is named, what the run of the tests asks for.
    fn placed(self) -> Options {
        if self.args.iter().any(|arg| arg == "--tenant-provider") {
            return self;
        }
        match Database::asked_for() {
            Some(database) => {
                let mut options = self.on(&database);
                options.database = Some(Arc::new(database));
                options
            }
            None => self,
        }
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Options {
        let value = value.as_ref().to_str().unwrap().to_owned();
        self.env.push((name.to_owned(), value));
        self
    }

    /// Makes every sync of the disk take this much longer, as slower disks do. Needs `strace`.
    pub fn sync_takes(mut self, delay: Duration) -> Options {
        self.sync_takes = Some(delay);
        self
    }

    /// Host names as `hosts` says in the form of `/etc/hosts`, and beside them as the name server at this address
    /// does. Needs leave to mount.
    pub fn names(mut self, hosts: &str, name_server: IpAddr) -> Options {
        self.names = Some((hosts.to_owned(), name_server));
        self
    }

    /// Writes down these system calls (names with commas between), descriptors with their paths.
    /// Needs `strace`.
    pub fn traced(mut self, calls: &'static str) -> Options {
        self.traced = Some(calls);
        self
    }
}

/// A running server, or one that was ended and can be started again.
pub struct Server {
    // First, since it is ended before what it uses is removed.
    process: Option<Process>,
    home: Arc<Home>,
    options: Options,
    address: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(options: Options) -> Server {
        let options = options.placed();
        let home = options.home.clone().unwrap_or_default();
        let (process, address) = launch(&home, &options);
        let Some(address) = address else {
            let finished = process.finished();
            panic!(
                "the server did not start ({:?}):\n{}",
                finished.code, finished.stderr
            );
        };
        Server {
            home,
            options,
            process: Some(process),
            address,
        }
    }

    /// Starts a server that must refuse to start, and returns how it ended.
    pub fn refused(options: Options) -> Finished {
        let options = options.placed();
        let home = options.home.clone().unwrap_or_default();
        let (process, address) = launch(&home, &options);
        if let Some(address) = address {
            let log = process.log();
            panic!("the server started on {address}, which it must not:\n{log}");
        }
        process.finished()
    }

    /// The home it runs in.
    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        let named = self.options.data_dir.clone();
        named.unwrap_or_else(|| self.home.data_dir())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().child.id()
    }

    /// The most memory that it had resident at once since it was started, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.unwrap().trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().unwrap() * 1_024
    }

    /// A client with the token that the file has now.
    pub fn client(&self) -> Client {
        Client::new(self.base(), Some(self.home.token()))
    }

    /// A client without a credential.
    pub fn anonymous(&self) -> Client {
        Client::new(self.base(), None)
    }

    /// What it wrote to standard error since it was started last.
    pub fn log(&self) -> String {
        self.process().log()
    }

    /// Waits until a line of the log contains `text`, and returns the line.
    pub fn wait_for_log(&self, text: &str) -> String {
        let log = &self.process().lines;
        let found = next_line(log, Instant::now() + LIMIT, |line| line.contains(text));
        found.unwrap_or_else(|| panic!("{text:?} is not in the log:\n{}", self.log()))
    }

    /// Syncs of files whose path contains `name`, as the kernel saw them. For servers started with
    /// [`Options::sync_takes`], once they have ended.
    pub fn syncs_of(&self, name: &str) -> u64 {
        assert!(self.process.is_none(), "the server still runs");
        let log = std::fs::read_to_string(self.home.path().join(SYNC_LOG)).unwrap();
        let of_name = |line: &&str| line.contains("sync(") && line.contains(name);
        u64::try_from(log.lines().filter(of_name).count()).unwrap()
    }

    /// The calls that [`Options::traced`] asked for, one a line, once the server has ended.
    pub fn trace(&self) -> String {
        assert!(self.process.is_none(), "the server still runs");
        let bytes = std::fs::read(self.home.path().join(TRACE)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends SIGTERM and returns at once.
    pub fn ask_to_stop(&self) {
        let pid = Pid::from_child(&self.process().child);
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Waits for the process to end, which something else must bring about.
    pub fn wait(&mut self) -> ExitStatus {
        let process = self.process.take().expect("the server runs");
        process.wait()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.wait()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.child.kill().unwrap();
        process.wait();
    }

    /// Starts it again with the same options, on another free port.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the server still runs");
        let fresh = Server::start(Options {
            home: Some(Arc::clone(&self.home)),
            ..self.options.clone()
        });
        *self = fresh;
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &self.process
            && std::thread::panicking()
        {
            eprintln!("--- log of the server ---\n{}---", process.log());
        }
    }
}

/// A child process whose standard error is read by a thread.
struct Process {
    child: Child,
    /// Lines of standard error; closed when the process closed it, which it does by ending.
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
    stdout: PathBuf,
}

impl Process {
    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn wait(mut self) -> ExitStatus {
        next_line(&self.lines, Instant::now() + LIMIT, |_| false);
        if !self.stderr_closed() {
            let log = self.log();
            panic!("the server did not end within {LIMIT:?}:\n{log}");
        }
        self.child.wait().unwrap()
    }

    fn stderr_closed(&self) -> bool {
        matches!(self.lines.try_recv(), Err(mpsc::TryRecvError::Disconnected))
    }

    fn finished(self) -> Finished {
        let (log, stdout) = (Arc::clone(&self.log), self.stdout.clone());
        let status = self.wait();
        let stderr = log.lock().unwrap().clone();
        Finished {
            code: status.code(),
            stdout: std::fs::read_to_string(stdout).unwrap(),
            stderr,
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

/// Starts `nimbus start`; the address is `None` when the process ended without listening.
fn launch(home: &Home, options: &Options) -> (Process, Option<SocketAddr>) {
    let mut command = match (options.sync_takes, options.traced, &options.names) {
        (Some(delay), _, _) => home.program("strace", slow_syncs(delay, home)),
        (None, Some(calls), _) => home.program("strace", tracing(calls, home)),
        (None, None, Some((hosts, server))) => {
            home.program("unshare", own_names(hosts, *server, home))
        }
        (None, None, None) => home.program(binary(), [""; 0]),
    };
    command.arg("start");
    if !options.args.iter().any(|arg| arg.starts_with("--port")) {
        command.args(["--port", "0"]);
    }
    if !options.no_data_dir {
        let dir = options.data_dir.clone();
        command
            .arg("--data-dir")
            .arg(dir.unwrap_or_else(|| home.data_dir()));
    }
    command.args(&options.args);
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    let stdout = home.path().join("stdout.log");
    command.stdout(File::create(&stdout).unwrap());
    command.stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let log = Arc::new(Mutex::new(String::new()));
    let pipe = BufReader::new(child.stderr.take().unwrap());
    let copy = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in pipe.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            copy.lock().unwrap().push_str(&format!("{line}\n"));
            // Nobody listens any more when the server is being dropped.
            let _ = sender.send(line);
        }
    });
    let process = Process {
        child,
        lines,
        log,
        stdout,
    };
    let ready = next_line(&process.lines, Instant::now() + LIMIT, |line| {
        line.contains(READY)
    });
    if ready.is_none() && !process.stderr_closed() {
        let log = process.log();
        panic!("the server was not ready within {LIMIT:?}:\n{log}");
    }
    (process, ready.map(|line| address(&line)))
}

/// Arguments of `strace`: it runs the binary as our own child (`-D`), stops it at syncs only, and
/// delays those.
fn slow_syncs(delay: Duration, home: &Home) -> Vec<OsString> {
    let inject = format!("inject=fsync,fdatasync:delay_exit={}", delay.as_micros());
    let mut args: Vec<OsString> = ["-D", "-f", "-y", "-qqq", "--seccomp-bpf", "-e"]
        .map(OsString::from)
        .to_vec();
    args.extend(["trace=fsync,fdatasync".into(), "-e".into(), inject.into()]);
    args.extend(["-o".into(), home.path().join(SYNC_LOG).into()]);
    args.push(binary());
    args
}

/// Arguments of `unshare`: the binary sees other files of names than the machine has, and nobody else does.
fn own_names(hosts: &str, server: IpAddr, home: &Home) -> Vec<OsString> {
    let (names, resolver) = (home.path().join("hosts"), home.path().join("resolv.conf"));
    std::fs::write(&names, hosts).unwrap();
    let options = "options timeout:1 attempts:1";
    std::fs::write(&resolver, format!("nameserver {server}\n{options}\n")).unwrap();
    let script = "mount --bind \"$0\" /etc/hosts && mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let mut args: Vec<OsString> = ["--mount", "sh", "-c", script].map(OsString::from).to_vec();
    args.extend([names.into(), resolver.into(), binary()]);
    args
}

/// Arguments of `strace` that only watch; see [`slow_syncs`].
fn tracing(calls: &str, home: &Home) -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "-D",
        "-f",
        "-y",
        "-qqq",
        "--seccomp-bpf",
        "-e",
        "signal=none",
    ]
    .map(OsString::from)
    .to_vec();
    args.extend(["-e".into(), format!("trace={calls}").into()]);
    args.extend(["-o".into(), home.path().join(TRACE).into(), binary()]);
    args
}

/// The next line that `wanted` holds for; `None` when the time is over or no more lines come.
fn next_line(
    lines: &Receiver<String>,
    deadline: Instant,
    wanted: impl Fn(&str) -> bool,
) -> Option<String> {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if wanted(&line) => return Some(line),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}

fn address(line: &str) -> SocketAddr {
    let (_, rest) = line.split_once(READY).unwrap();
    let text: String = rest
        .chars()
        .take_while(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '[' | ']'))
        .collect();
    text.parse()
        .unwrap_or_else(|e| panic!("no address in {line:?}: {e}"))
}
