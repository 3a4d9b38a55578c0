//! Namespaces: one SQLite file each, with the streams that are open on it.
//! It must not know HTTP or SQL beyond the settings of a connection.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{ProtocolError, Refusal};
use crate::session::Session;
use crate::slot::Slot;
use crate::{World, lock};

/// How many expired streams are told from those that never were.
const REMEMBERED: usize = 1_024;

/// All namespaces of a directory.
#[derive(Debug)]
pub(crate) struct Namespaces {
    dir: PathBuf,
    world: Arc<World>,
    /// Those that are in use; None once the server was stopped.
    open: Mutex<Option<HashMap<String, Arc<Namespace>>>>,
}

#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    path: PathBuf,
    world: Arc<World>,
    slot: Arc<Slot>,
    streams: Mutex<Streams>,
}

#[derive(Debug)]
struct Streams {
    /// Kept open so that the last stream to leave does not copy and remove the log; None: the namespace is gone.
    keeper: Option<Connection>,
    live: HashMap<u64, Stream>,
    expired: VecDeque<u64>,
}

#[derive(Debug)]
struct Stream {
    session: Arc<Mutex<Session>>,
    state: State,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum State {
    /// A request is at it.
    Busy,
    /// The one baton that continues it, and since when it waits.
    Idle { secret: [u8; 16], since: Instant },
}

impl Namespaces {
    pub(crate) fn new(dir: PathBuf, world: &Arc<World>) -> Namespaces {
        Namespaces {
            dir,
            world: Arc::clone(world),
            open: Mutex::new(Some(HashMap::new())),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sqlite3"))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Namespace>, Refusal> {
        let mut open = lock(&self.open);
        let open = open.as_mut().ok_or_else(stopped)?;
        if let Some(found) = open.get(name) {
            return Ok(Arc::clone(found));
        }
        let path = self.path(name);
        if !is_name(name) || !path.is_file() {
            return Err(Refusal::NoNamespace(name.to_owned()));
        }
        let found = Arc::new(Namespace::open(name, path, &self.world)?);
        open.insert(name.to_owned(), Arc::clone(&found));
        Ok(found)
    }

    pub(crate) fn create(&self, name: &str) -> Result<(), Refusal> {
        if !is_name(name) {
            return Err(Refusal::BadName(name.to_owned()));
        }
        let open = lock(&self.open);
        open.as_ref().ok_or_else(stopped)?;
        let path = self.path(name);
        if path.exists() {
            return Err(Refusal::NamespaceExists(name.to_owned()));
        }
        drop(connect(&path, OpenFlags::SQLITE_OPEN_CREATE)?);
        File::open(&self.dir)?.sync_all()?;
        Ok(())
    }

    /// Waits for the statements that run in it; then its streams and its files are gone.
    pub(crate) fn delete(&self, name: &str) -> Result<(), Refusal> {
        let mut open = lock(&self.open);
        let open = open.as_mut().ok_or_else(stopped)?;
        let path = self.path(name);
        if !is_name(name) || !path.is_file() {
            return Err(Refusal::NoNamespace(name.to_owned()));
        }
        if let Some(namespace) = open.remove(name) {
            namespace.close();
        }
        fs::remove_file(&path)?;
        for end in ["-wal", "-shm"] {
            let mut beside = path.clone().into_os_string();
            beside.push(end);
            // The last connection removes both, unless the server was stopped while one was at work.
            let _ = fs::remove_file(beside);
        }
        File::open(&self.dir)?.sync_all()?;
        Ok(())
    }

    /// Closes every stream and every file, for good.
    pub(crate) fn close(&self) {
        let all = lock(&self.open).take();
        for namespace in all.unwrap_or_default().into_values() {
            namespace.close();
        }
    }

    pub(crate) fn each(&self, mut see: impl FnMut(&Namespace)) {
        let open = lock(&self.open);
        let all: Vec<_> = open.iter().flat_map(HashMap::values).cloned().collect();
        drop(open);
        for namespace in all {
            see(&namespace);
        }
    }
}

impl Namespace {
    fn open(name: &str, path: PathBuf, world: &Arc<World>) -> Result<Namespace, Refusal> {
        let keeper = connect(&path, OpenFlags::empty())?;
        Ok(Namespace {
            name: name.to_owned(),
            path,
            world: Arc::clone(world),
            slot: Arc::new(Slot::new(world.options.lock_timeout)),
            streams: Mutex::new(Streams {
                keeper: Some(keeper),
                live: HashMap::new(),
                expired: VecDeque::new(),
            }),
        })
    }

    /// The stream of a baton, or a new one.
    pub(crate) fn stream(self: &Arc<Self>, baton: Option<&str>) -> Result<Lease, Refusal> {
        match baton {
            Some(baton) => Ok(self.resume(baton)?),
            None => self.begin(),
        }
    }

    fn begin(self: &Arc<Self>) -> Result<Lease, Refusal> {
        let permits = Arc::clone(&self.world.permits);
        let permit = permits.try_acquire_owned().map_err(|_| Refusal::Streams)?;
        let id = u64::from_be_bytes(random()?);
        let mut streams = lock(&self.streams);
        if streams.keeper.is_none() {
            return Err(Refusal::NoNamespace(self.name.clone()));
        }
        let conn = connect(&self.path, OpenFlags::empty())?;
        let session = Session::new(id, conn, &self.world, &self.slot)?;
        let stream = Stream {
            session: Arc::clone(&session),
            state: State::Busy,
            _permit: permit,
        };
        streams.live.insert(id, stream);
        Ok(self.lease(id, session))
    }

    fn resume(self: &Arc<Self>, baton: &str) -> Result<Lease, ProtocolError> {
        let (id, secret) = decode(baton).ok_or(ProtocolError::BatonInvalid)?;
        self.expire();
        let mut streams = lock(&self.streams);
        if streams.expired.contains(&id) {
            return Err(ProtocolError::StreamExpired);
        }
        let stream = streams.live.get_mut(&id);
        let stream = stream.ok_or(ProtocolError::BatonInvalid)?;
        match &stream.state {
            State::Idle { secret: right, .. } if *right == secret => {}
            _ => return Err(ProtocolError::BatonReused),
        }
        stream.state = State::Busy;
        Ok(self.lease(id, Arc::clone(&stream.session)))
    }

    fn lease(self: &Arc<Self>, id: u64, session: Arc<Mutex<Session>>) -> Lease {
        Lease {
            namespace: Arc::clone(self),
            id,
            session,
        }
    }

    /// Ends the streams that nobody has used for the idle timeout.
    pub(crate) fn expire(&self) {
        let limit = self.world.options.idle_timeout;
        let over =
            |state: &State| matches!(state, State::Idle { since, .. } if since.elapsed() >= limit);
        let mut streams = lock(&self.streams);
        let ended = streams.live.extract_if(|_, stream| over(&stream.state));
        let ended: Vec<_> = ended.collect();
        for (id, _) in &ended {
            streams.expired.push_back(*id);
        }
        while streams.expired.len() > REMEMBERED {
            streams.expired.pop_front();
        }
        // Rolling back may take a while.
        drop(streams);
        drop(ended);
    }

    fn close(&self) {
        let mut streams = lock(&self.streams);
        let keeper = streams.keeper.take();
        let live: Vec<_> = streams.live.drain().collect();
        drop(streams);
        // First those between two requests: others may wait within one for a lock that these hold.
        for (_, stream) in &live {
            if let Ok(mut session) = stream.session.try_lock() {
                session.close();
            }
        }
        for (_, stream) in &live {
            lock(&stream.session).close();
        }
        drop(keeper);
    }

    pub(crate) fn open_streams(&self) -> usize {
        lock(&self.streams).live.len()
    }

    pub(crate) fn waiting_writers(&self) -> usize {
        self.slot.waiting()
    }
}

/// A stream that one request has for itself. Dropped, it closes the stream.
#[derive(Debug)]
pub(crate) struct Lease {
    namespace: Arc<Namespace>,
    id: u64,
    pub(crate) session: Arc<Mutex<Session>>,
}

impl Lease {
    /// Keeps the stream for whoever has the new baton.
    pub(crate) fn keep(self) -> Result<String, Refusal> {
        let secret = random()?;
        let mut streams = lock(&self.namespace.streams);
        if let Some(stream) = streams.live.get_mut(&self.id) {
            let since = Instant::now();
            stream.state = State::Idle { secret, since };
        }
        Ok(encode(self.id, secret))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut streams = lock(&self.namespace.streams);
        let busy = |stream: &mut Stream| matches!(stream.state, State::Busy);
        let ended = match streams.live.get_mut(&self.id).is_some_and(busy) {
            true => streams.live.remove(&self.id),
            false => None,
        };
        drop(streams);
        drop(ended);
    }
}

fn stopped() -> Refusal {
    Refusal::Internal("the server was stopped".to_owned())
}

/// 1 to 63 of A-Z, a-z, 0-9, `_` and `-`. sqld takes more; these are what every host name and file system takes.
fn is_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed)
}

fn connect(path: &Path, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags | more)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    Ok(conn)
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(bytes)
}

fn encode(id: u64, secret: [u8; 16]) -> String {
    BASE64URL_NOPAD.encode(&[&id.to_be_bytes()[..], &secret].concat())
}

fn decode(baton: &str) -> Option<(u64, [u8; 16])> {
    let bytes = BASE64URL_NOPAD.decode(baton.as_bytes()).ok()?;
    let (id, secret) = bytes.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(id.try_into().ok()?),
        secret.try_into().ok()?,
    ))
}
