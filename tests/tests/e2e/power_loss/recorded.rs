//! One recorded run of the real binary: writers, tenants that come and go, schema changes, a
//! restart in the middle; with everything that is needed to tell what must be there afterwards.
//!
//! The journal, read at the end, gives every commit its place. So what a tenant must hold after
//! a power cut is known exactly: the state after *some* commit, at or after the last acknowledged
//! one. It must not know where the power is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nimbus_e2e::power::disk::Deaf;
use nimbus_e2e::power::{Disk, Image, Process, Recorder, log};
use nimbus_e2e::{Client, Home, Rng};
use serde_json::{Value as Json, json};

use super::{ANSWERED, ASKED, Kind, read, scratch};

/// Two tenants that the writers share, and one whose log is made to start over.
pub(super) const TENANTS: [&str; 3] = ["left", "right", "heavy"];
/// The table they write to.
pub(super) const TABLE: &str = "notes";
/// The indexes of the declarations that follow each other, per declaration.
const DECLARATIONS: [&[&str]; 4] = [&["owner"], &["owner", "key"], &["key"], &["key", "owner"]];
/// Microseconds by which a sync takes longer, so that commits meet as on a disk.
const SYNC: u32 = 700;
const WRITERS: u64 = 8;
/// Frames of a log after which the server checkpoints it (4 MiB).
const CHECKPOINT: u32 = 1024;
/// The server is stopped and started between the parts, which have so many fifths of the work.
const PARTS: [u64; 2] = [1, 4];

/// A request, and whether it was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) request: Request,
    pub(super) acknowledged: bool,
}

/// What was asked for. The number of an attempt is in the `op` field of what it wrote.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    /// Declares a table's schema, by its place in the order of declarations.
    Declare(usize),
    /// Deletes a document.
    Delete(String),
    /// Creates a tenant.
    CreateTenant(String),
    /// Deletes a tenant.
    DeleteTenant(String),
    /// Inserts the only document of a tenant that comes and goes.
    Fill(String),
    /// Inserts or patches a document.
    Write,
}

/// A commit of the journal, as far as documents go: each document's new content.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) sequence: u64,
    /// Of the stored record, which names the hash of the one before.
    pub(super) hash: String,
    pub(super) changes: Vec<(String, Option<Json>)>,
}

/// Everything known about a run.
#[derive(Debug)]
pub(super) struct Run {
    /// The recorder's log.
    pub(super) log: Vec<u8>,
    /// By number.
    pub(super) attempts: Vec<Attempt>,
    /// The commits of each of [`TENANTS`].
    pub(super) journals: BTreeMap<&'static str, Vec<Commit>>,
    /// Tenant and commit of each document that was written, by the number of the attempt.
    pub(super) committed: BTreeMap<usize, (&'static str, u64)>,
}

impl Run {
    /// The documents of a tenant after its commit `sequence`, by id.
    pub(super) fn documents(&self, tenant: &str, sequence: u64) -> BTreeMap<&str, &Json> {
        let mut documents = BTreeMap::new();
        let commits = self.journals[tenant].iter();
        for commit in commits.take_while(|commit| commit.sequence <= sequence) {
            for (id, content) in &commit.changes {
                match content {
                    Some(content) => documents.insert(id.as_str(), content),
                    None => documents.remove(id.as_str()),
                };
            }
        }
        documents
    }

    /// The attempts that were acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.attempts.iter().filter(|a| a.acknowledged).count()
    }
}

/// The names of the indexes of a declaration.
pub(super) fn index_names(declaration: usize) -> BTreeSet<String> {
    let fields = DECLARATIONS[declaration % DECLARATIONS.len()].iter();
    fields
        .map(|field| format!("by_{field}_{declaration}"))
        .collect()
}

fn declaration(number: usize) -> Json {
    let fields = DECLARATIONS[number % DECLARATIONS.len()].iter();
    let indexes =
        fields.map(|field| json!({"name": format!("by_{field}_{number}"), "fields": [field]}));
    json!({
        "table": TABLE,
        "fields": [
            {"name": "owner", "field_type": "string", "required": true},
            {"name": "key", "field_type": "string", "required": true},
        ],
        "indexes": indexes.collect::<Vec<Json>>(),
    })
}

/// Where a run happens.
#[derive(Debug)]
struct Place {
    home: Home,
    recorder: Recorder,
    disk: PathBuf,
    kind: Kind,
}

impl Place {
    fn start(&self) -> Process {
        let mut command = self.kind.command(&self.home, &self.disk.join("data"));
        command.envs(self.recorder.environment());
        Process::start(&mut command).unwrap_or_else(|e| panic!("the server does not start: {e}"))
    }
}

/// Runs about `transactions` transactions.
pub(super) fn run(kind: Kind, transactions: u64, seed: u64) -> Run {
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let place = Place {
        home: Home::within(dir.path()),
        recorder: Recorder::new(&disk, &dir.path().join("log")).with_slow_syncs(SYNC),
        disk,
        kind,
    };
    let actors = Actors {
        recorder: &place.recorder,
        heavy: (kind.provider == "sqlite").then(|| place.disk.join("data/heavy.sqlite3-shm")),
        attempts: Mutex::default(),
        next: AtomicUsize::new(0),
    };
    let mut writers: Vec<Writer> = (0..WRITERS).map(|n| Writer::new(n, seed)).collect();
    let mut journals = BTreeMap::new();
    for (part, fifths) in PARTS.into_iter().enumerate() {
        let server = place.start();
        let client = server.client(&place.home.token());
        let share = transactions * fifths / 5 / WRITERS;
        actors.part(part, &client, &mut writers, share);
        if part + 1 == PARTS.len() {
            for tenant in TENANTS {
                journals.insert(tenant, journal(&client, tenant).unwrap());
                // The heavy one is empty again.
                let known = writers.iter().filter(|w| w.tenant == tenant);
                check_end(&client, tenant, known.flat_map(|w| &w.documents).collect());
            }
        }
        let (log, status) = server.terminate();
        assert!(status.is_some_and(|s| s.success()), "{status:?}:\n{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
    let attempts = actors.finish();
    let bytes = place.recorder.read();
    check_model(&bytes, &place.disk);
    let committed = places(&journals);
    for (number, attempt) in attempts.iter().enumerate() {
        let known = match &attempt.request {
            Request::Write => committed.contains_key(&number),
            _ => true,
        };
        assert!(known || !attempt.acknowledged, "{number}: {attempt:?}");
    }
    Run {
        log: bytes,
        committed: with_deletions(committed, &attempts, &journals),
        attempts,
        journals,
    }
}

/// The model must end where the disk ended, or the recorder missed something.
fn check_model(log: &[u8], root: &Path) {
    let mut disk = Disk::new(&Image::default(), Deaf::Never, 0);
    for record in log::parse(log) {
        disk.follow(&record);
    }
    let difference = disk.visible_image().difference(&Image::read(root));
    assert_eq!(difference, None, "something escaped the recorder");
}

/// The writers know what is in the end, and so does the server.
fn check_end(client: &Client, tenant: &'static str, known: BTreeMap<&String, &usize>) {
    let mut found = BTreeMap::new();
    for document in client.documents(tenant, TABLE) {
        let id = document["_id"].as_str().unwrap().to_owned();
        found.insert(id, number_of(&document));
    }
    let known: BTreeMap<String, usize> =
        known.into_iter().map(|(id, n)| (id.clone(), *n)).collect();
    assert_eq!(found, known, "{tenant}");
    client.check_consistency(tenant);
}

fn number_of(document: &Json) -> usize {
    let number = document["op"].as_f64().unwrap();
    // Written by us, as a small whole number.
    number as usize
}

/// Reads the journal of a tenant from its start.
pub(super) fn journal(client: &Client, tenant: &str) -> Result<Vec<Commit>, String> {
    let mut commits = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/api/tenants/{tenant}/journal?after={after}&limit=1000");
        let page = read(client, &path)?;
        for record in page["records"].as_array().unwrap() {
            let sequence = record["sequence"].as_u64().unwrap();
            assert_eq!(sequence, commits.len() as u64 + 1, "a gap in the journal");
            let writes = record["writes"].as_array().unwrap().iter();
            let changes = writes.filter(|write| write["table"] == TABLE).map(|write| {
                let content = Some(write["current"].clone()).filter(|json| !json.is_null());
                (write["doc_id"].as_str().unwrap().to_owned(), content)
            });
            commits.push(Commit {
                sequence,
                hash: record["integrity_sha256"].as_str().unwrap().to_owned(),
                changes: changes.collect(),
            });
        }
        if page["has_more"] == false {
            return Ok(commits);
        }
        after = page["next_cursor"].as_u64().unwrap();
    }
}

/// The commit of each insert and patch.
fn places(journals: &BTreeMap<&'static str, Vec<Commit>>) -> BTreeMap<usize, (&'static str, u64)> {
    let mut places = BTreeMap::new();
    for (tenant, commits) in journals {
        for commit in commits {
            for (_, content) in &commit.changes {
                if let Some(content) = content {
                    places.insert(number_of(content), (*tenant, commit.sequence));
                }
            }
        }
    }
    places
}

/// The same with the commit of each deletion.
fn with_deletions(
    mut places: BTreeMap<usize, (&'static str, u64)>,
    attempts: &[Attempt],
    journals: &BTreeMap<&'static str, Vec<Commit>>,
) -> BTreeMap<usize, (&'static str, u64)> {
    let mut deletions = BTreeMap::new();
    for (tenant, commits) in journals {
        for commit in commits {
            for (id, content) in &commit.changes {
                if content.is_none() {
                    deletions.insert(id.as_str(), (*tenant, commit.sequence));
                }
            }
        }
    }
    for (number, attempt) in attempts.iter().enumerate() {
        if let Request::Delete(id) = &attempt.request {
            let place = deletions.get(id.as_str());
            assert!(place.is_some() || !attempt.acknowledged, "{attempt:?}");
            if let Some(place) = place {
                places.insert(number, *place);
            }
        }
    }
    places
}

/// What all actors share.
struct Actors<'a> {
    recorder: &'a Recorder,
    heavy: Option<PathBuf>,
    attempts: Mutex<BTreeMap<usize, Attempt>>,
    next: AtomicUsize,
}

impl Actors<'_> {
    /// Lets everybody do their share of one part.
    fn part(&self, part: usize, client: &Client, writers: &mut [Writer], share: u64) {
        if part == 0 {
            for tenant in TENANTS {
                self.create(client, tenant);
            }
            self.declare(client, 0);
        }
        std::thread::scope(|scope| {
            for writer in writers {
                scope.spawn(move || {
                    let client = client.apart();
                    for _ in 0..share {
                        writer.step(self, &client);
                    }
                });
            }
            scope.spawn(move || self.come_and_go(part, &client.apart()));
            scope.spawn(move || self.press(&client.apart()));
            scope.spawn(move || {
                let client = client.apart();
                for n in 1..=4 {
                    self.declare(&client, part * 4 + n);
                }
            });
        });
    }

    /// Marks, sends, marks; the answer's `id` if it has one. Anything but the status is a failure.
    fn attempt(
        &self,
        request: Request,
        status: u16,
        send: impl FnOnce(usize) -> nimbus_e2e::Reply,
    ) -> (usize, Option<String>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.recorder.mark(ASKED, number as u64);
        let reply = send(number);
        let acknowledged = reply.status == status;
        if acknowledged {
            self.recorder.mark(ANSWERED, number as u64);
        }
        let attempt = Attempt {
            request,
            acknowledged,
        };
        assert!(
            acknowledged,
            "{attempt:?}: {} {}",
            reply.status,
            reply.text()
        );
        let id = (!reply.body.is_empty()).then(|| reply.json()["id"].clone());
        self.attempts.lock().unwrap().insert(number, attempt);
        (number, id.and_then(|id| id.as_str().map(str::to_owned)))
    }

    fn create(&self, client: &Client, tenant: &str) {
        self.attempt(Request::CreateTenant(tenant.to_owned()), 201, |_| {
            client.post("/api/tenants", &json!({"id": tenant}))
        });
    }

    fn declare(&self, client: &Client, number: usize) {
        let path = format!("/api/tenants/{}/schema/{TABLE}", TENANTS[0]);
        self.attempt(Request::Declare(number), 204, |_| {
            client.put(&path, &declaration(number))
        });
    }

    /// Creates tenants with a document each; every second one is pruned and deleted.
    fn come_and_go(&self, part: usize, client: &Client) {
        for n in 0..6 {
            let tenant = format!("passing-{part}-{n}");
            self.create(client, &tenant);
            let path = format!("/api/tenants/{tenant}");
            self.attempt(Request::Fill(tenant.clone()), 201, |number| {
                let body = json!({"table": TABLE, "fields": {"op": number, "owner": tenant}});
                client.post(&format!("{path}/documents"), &body)
            });
            if n % 2 == 0 {
                client.post_empty(&format!("{path}/prune")).expect(200);
                self.attempt(Request::DeleteTenant(tenant), 204, |_| client.delete(&path));
            }
        }
    }

    /// Writes until the log is checkpointed, waits until that is done, writes so that the log
    /// starts over, and deletes everything again.
    fn press(&self, client: &Client) {
        let path = format!("/api/tenants/{}/documents", TENANTS[2]);
        let insert = |len: usize| {
            let (_, id) = self.attempt(Request::Write, 201, |number| {
                let text = "heavy ".repeat(len / 6);
                let fields = json!({"op": number, "owner": "heavy", "key": "k", "text": text});
                client.post(&path, &json!({"table": TABLE, "fields": fields}))
            });
            id.unwrap()
        };
        let mut ids = vec![insert(60_000)];
        match &self.heavy {
            Some(shared) => self.checkpoint(shared, || ids.push(insert(60_000))),
            // There is no log to be copied.
            None => ids.extend((0..20).map(|_| insert(60_000))),
        }
        ids.push(insert(100));
        for id in ids {
            let path = format!("{path}/{TABLE}/{id}");
            self.attempt(Request::Delete(id), 204, |_| client.delete(&path));
        }
    }

    /// Writes until the log is checkpointed, and waits until that is done.
    fn checkpoint(&self, shared: &Path, mut write: impl FnMut()) {
        while log_frames(shared).0 < CHECKPOINT {
            write();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (frames, copied) = log_frames(shared);
            if frames == copied {
                break;
            }
            assert!(Instant::now() < deadline, "{copied} of {frames} frames");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn finish(self) -> Vec<Attempt> {
        let attempts = self.attempts.into_inner().unwrap();
        assert!(attempts.keys().copied().eq(0..attempts.len()));
        attempts.into_values().collect()
    }
}

/// The frames in a write-ahead log and those that a checkpoint has copied, from the shared memory
/// of the connections (sqlite.org/walformat.html, section 2; native byte order).
fn log_frames(shared: &Path) -> (u32, u32) {
    let bytes = fs::read(shared).unwrap();
    let number = |at: usize| {
        let bytes: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
        if cfg!(target_endian = "big") {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    (number(16), number(96))
}

/// A writer of one tenant, and its documents with the number of the attempt that wrote them last.
struct Writer {
    name: String,
    tenant: &'static str,
    rng: Rng,
    documents: BTreeMap<String, usize>,
}

impl Writer {
    fn new(number: u64, seed: u64) -> Writer {
        Writer {
            name: format!("w{number}"),
            tenant: TENANTS[usize::try_from(number).unwrap() % 2],
            rng: Rng::new(seed ^ (number << 32)),
            documents: BTreeMap::new(),
        }
    }

    /// Four in seven insert, two patch, one deletes.
    fn step(&mut self, actors: &Actors<'_>, client: &Client) {
        let path = format!("/api/tenants/{}/documents", self.tenant);
        let kind = self.rng.between(0, 6);
        let long = if self.rng.between(0, 9) == 0 {
            40_000
        } else {
            2_500
        };
        let text = self.rng.between(0, long);
        let text = self.rng.letters(usize::try_from(text).unwrap());
        let key = self.rng.letters(6);
        let fields =
            |number: usize| json!({"op": number, "owner": self.name, "key": key, "text": text});
        if self.documents.is_empty() || kind < 4 {
            let (number, id) = actors.attempt(Request::Write, 201, |number| {
                client.post(&path, &json!({"table": TABLE, "fields": fields(number)}))
            });
            self.documents.insert(id.unwrap(), number);
            return;
        }
        let at = self.rng.between(0, self.documents.len() as u64 - 1);
        let at = usize::try_from(at).unwrap();
        let id = self.documents.keys().nth(at).unwrap().clone();
        let path = format!("{path}/{TABLE}/{id}");
        if kind < 6 {
            let (number, _) = actors.attempt(Request::Write, 200, |number| {
                client.patch(&path, &json!({"patch": fields(number)}))
            });
            self.documents.insert(id, number);
        } else {
            self.documents.remove(&id);
            actors.attempt(Request::Delete(id), 204, |_| client.delete(&path));
        }
    }
}
