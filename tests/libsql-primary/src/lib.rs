//! A small libSQL primary for tests: Hrana over HTTP and the admin API, over SQLite files.
//!
//! libSQL's server `sqld` is in no package registry, so this speaks what it speaks and refuses what it refuses. It is a
//! model for tests, not a database server, and it must not know Nimbus. npm's `@libsql/client` is run against it.
//!
//! **Modelled on sqld**: Hrana 2 and 3 over HTTP in JSON (pipelines, cursors, stored texts, conditions); batons
//! that are random and good for one request; streams that end after 10 s without one, with their transaction; one
//! writer at a time, which after 5 s loses its transaction to whoever waits and hears `TRANSACTION_TIMEOUT` from
//! the next request, after which the stream is in autocommit; namespaces by `x-namespace` or the first label of
//! `Host`; the refusal of `ATTACH`, `DETACH`, `VACUUM`, most pragmas and extensions; no answer to a request with rows beyond
//! 10 MiB; in the admin API create, delete and config; commits that are on the disk when they are answered.
//!
//! **A client may not rely on**:
//! - the body of an error. Here it is `{"message", "code"}` where the protocol is broken and `{"error"}` elsewhere, always
//!   JSON; sqld has plain text in places. Decide by the status.
//! - the whole of a code. Here are SQLite's extended names (`SQLITE_CONSTRAINT_PRIMARYKEY`); releases of sqld send the
//!   primary name (`SQLITE_CONSTRAINT`), as here with [`Options::extended_codes`] off. Compare the beginning.
//! - `default` for a `Host` that is an address: sqld takes `127` for a namespace there. Send `x-namespace`.
//! - names: here 1 to 63 characters of A-Z, a-z, 0-9, `_` and `-`.
//!
//! **Not modelled**: protobuf (404), WebSockets, replication and its index (null), JWT (the token is compared as it
//! is), TLS, dumps, forks, schemas and limits of namespaces, libSQL's own SQL (vectors, `RANDOM ROWID`,
//! `ALTER COLUMN`), rows read from tables (`rows_read` counts rows returned, `rows_written` rows changed),
//! cursors that are sent while they are read.

mod error;
mod faults;
mod guard;
mod http;
mod namespace;
mod proto;
mod session;
mod slot;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

use crate::error::Refusal;
use crate::http::Api;
use crate::namespace::Namespaces;

pub use crate::faults::Faults;

/// How a primary behaves. The default is what sqld does, on free ports and without credentials.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port for users on 127.0.0.1; 0: a free one.
    pub port: u16,
    /// Port of the admin API on 127.0.0.1; 0: a free one.
    pub admin_port: u16,
    /// What users must send as `Authorization: Bearer …`.
    pub auth_token: Option<String>,
    /// What the admin API expects in `Authorization`, to the letter.
    pub admin_auth_header: Option<String>,
    /// A stream without a request for this long is closed.
    pub idle_timeout: Duration,
    /// A transaction that writes for longer loses the lock when another stream waits.
    pub lock_timeout: Duration,
    /// Streams in all namespaces; another one is answered with 503.
    pub max_streams: usize,
    /// Bytes of a request; more is answered with 413.
    pub max_body: usize,
    /// Bytes of rows in the answer to one request of a pipeline.
    pub max_response: usize,
    /// Whether error codes have SQLite's extended names.
    pub extended_codes: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            port: 0,
            admin_port: 0,
            auth_token: None,
            admin_auth_header: None,
            idle_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            max_streams: 128,
            max_body: 64 << 20,
            max_response: 10 << 20,
            extended_codes: true,
        }
    }
}

/// Why a primary does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A port or the directory cannot be had.
    #[error("cannot start the primary: {0}")]
    Io(#[from] io::Error),
    /// The namespace `default` cannot be made.
    #[error("cannot make the namespace `default`: {0}")]
    Default(String),
}

/// What all streams share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) faults: Faults,
    pub(crate) permits: Arc<Semaphore>,
}

/// A running primary with threads of its own; stopped when dropped. Safe to use inside of an async runtime, though
/// [`Primary::stop`] waits for running statements.
#[derive(Debug)]
pub struct Primary {
    runtime: Option<Runtime>,
    dir: PathBuf,
    world: Arc<World>,
    address: SocketAddr,
    admin_address: SocketAddr,
    gates: Mutex<Gates>,
}

/// What the tasks of a server look at; each is open while it is there.
#[derive(Debug, Default)]
struct Gates {
    listening: Option<Gate>,
    serving: Option<Serving>,
}

/// From a start to the next stop. A request of before that is still about finds its namespaces closed.
#[derive(Debug)]
struct Serving {
    connections: Gate,
    namespaces: Arc<Namespaces>,
}

impl Primary {
    /// Starts a primary on a directory, which is made if need be, with a namespace `default`.
    ///
    /// # Errors
    /// When the directory cannot be used or a port is taken.
    pub fn start(dir: impl Into<PathBuf>, options: Options) -> Result<Primary, Error> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        let listeners = (bind(options.port)?, bind(options.admin_port)?);
        let world = Arc::new(World {
            permits: Arc::new(Semaphore::new(options.max_streams)),
            faults: Faults::default(),
            options,
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let primary = Primary {
            runtime: Some(runtime),
            dir,
            world,
            address: listeners.0.local_addr()?,
            admin_address: listeners.1.local_addr()?,
            gates: Mutex::default(),
        };
        primary.listen(listeners)?;
        Ok(primary)
    }

    /// Where users find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the admin API is.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin_address)
    }

    /// Faults to ask for.
    pub fn faults(&self) -> &Faults {
        &self.world.faults
    }

    /// Ends all connections without answers, waits for the statements that run, rolls back what is open and closes
    /// the files. Nobody listens then.
    pub fn stop(&self) {
        self.refuse_connections();
        let serving = lock(&self.gates).serving.take();
        if let Some(serving) = serving {
            serving.connections.shut();
            serving.namespaces.close();
        }
    }

    /// Nobody listens until [`Primary::resume`]; connections that are open stay.
    pub fn refuse_connections(&self) {
        let listening = lock(&self.gates).listening.take();
        if let Some(gate) = listening {
            gate.shut();
        }
    }

    /// Listens again on the same ports, after [`Primary::stop`] or [`Primary::refuse_connections`].
    ///
    /// # Errors
    /// When somebody else took a port.
    pub fn resume(&self) -> Result<(), Error> {
        self.refuse_connections();
        let admin = bind(self.admin_address.port())?;
        self.listen((bind(self.address.port())?, admin))
    }

    /// Streams that are open, in use or waiting for their next request.
    pub fn open_streams(&self) -> usize {
        self.sum(namespace::Namespace::open_streams)
    }

    /// Streams that wait for the lock of another.
    pub fn waiting_writers(&self) -> usize {
        self.sum(namespace::Namespace::waiting_writers)
    }

    fn sum(&self, count: impl Fn(&namespace::Namespace) -> usize) -> usize {
        let mut sum = 0;
        if let Some(serving) = &lock(&self.gates).serving {
            let each = |namespace: &namespace::Namespace| sum += count(namespace);
            serving.namespaces.each(each);
        }
        sum
    }

    fn listen(&self, (user, admin): (StdListener, StdListener)) -> Result<(), Error> {
        let Some(runtime) = &self.runtime else {
            return Ok(());
        };
        let _inside = runtime.enter();
        let gates = &mut *lock(&self.gates);
        if gates.serving.is_none() {
            gates.serving = Some(self.serve(runtime)?);
        }
        let Some(serving) = &gates.serving else {
            return Ok(());
        };
        let listening = Gate::default();
        for (listener, admin) in [(user, false), (admin, true)] {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let api = Api {
                admin,
                world: Arc::clone(&self.world),
                namespaces: Arc::clone(&serving.namespaces),
            };
            let passes = (listening.pass(), serving.connections.pass());
            runtime.spawn(accept(listener, passes.0, passes.1, api));
        }
        gates.listening = Some(listening);
        Ok(())
    }

    fn serve(&self, runtime: &Runtime) -> Result<Serving, Error> {
        let namespaces = Arc::new(Namespaces::new(self.dir.clone(), &self.world));
        match namespaces.create("default") {
            Ok(()) | Err(Refusal::NamespaceExists(_)) => {}
            Err(other) => return Err(Error::Default(other.to_string())),
        }
        let connections = Gate::default();
        let pause = self.world.options.idle_timeout / 4;
        let pause = pause.clamp(Duration::from_millis(5), Duration::from_secs(1));
        runtime.spawn(sweep(Arc::clone(&namespaces), pause, connections.pass()));
        Ok(Serving {
            connections,
            namespaces,
        })
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.stop();
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it would panic inside of another runtime.
            runtime.shutdown_background();
        }
    }
}

fn bind(port: u16) -> io::Result<StdListener> {
    StdListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// Ends streams on time though nobody asks for them.
async fn sweep(namespaces: Arc<Namespaces>, pause: Duration, mut pass: Pass) {
    while pass.unless_shut(tokio::time::sleep(pause)).await.is_some() {
        let namespaces = Arc::clone(&namespaces);
        let expire = move || namespaces.each(namespace::Namespace::expire);
        // A panic in there shows in the streams that stay.
        let _ = tokio::task::spawn_blocking(expire).await;
    }
}

async fn accept(listener: TcpListener, mut listening: Pass, connections: Pass, api: Api) {
    while let Some(accepted) = listening.unless_shut(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(connection(
                stream,
                connections.clone(),
                api.clone(),
            ))),
            // Out of descriptors: others may leave.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    // The port is free before the gate says so.
    drop(listener);
    drop(listening);
}

async fn connection(stream: TcpStream, mut pass: Pass, api: Api) {
    // Only a matter of speed.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| api.clone().serve(request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Ended by a shut gate, by the client or by a cut: in each case there is nobody to tell.
    let _ = pass.unless_shut(connection).await;
}

/// Ends the tasks that hold a pass, and waits until they are gone.
#[derive(Debug)]
struct Gate {
    open: watch::Sender<()>,
    pass: mpsc::Sender<()>,
    gone: mpsc::Receiver<()>,
}

#[derive(Clone, Debug)]
struct Pass {
    open: watch::Receiver<()>,
    _alive: mpsc::Sender<()>,
}

impl Default for Gate {
    fn default() -> Gate {
        let (pass, gone) = mpsc::channel();
        let open = watch::Sender::new(());
        Gate { open, pass, gone }
    }
}

impl Gate {
    fn pass(&self) -> Pass {
        Pass {
            open: self.open.subscribe(),
            _alive: self.pass.clone(),
        }
    }

    fn shut(self) {
        let Gate { open, pass, gone } = self;
        drop((open, pass));
        // An error once the last pass is dropped; nothing is ever sent.
        let _ = gone.recv();
    }
}

impl Pass {
    async fn unless_shut<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::select! {
            // Nothing is ever sent, so the only change is that the gate is gone.
            _ = self.open.changed() => None,
            done = work => Some(done),
        }
    }
}

/// A panic elsewhere leaves these values whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
