//! The Nth call to the disk fails: with an I/O error, for lack of space, interrupted, cut short;
//! once or for ever; on an empty directory and on one that a crash left.
//!
//! Whatever was answered must hold: what was acknowledged is there after a restart without
//! faults, what was refused is not, what a reader was shown stays so; a failed sync followed by a
//! power cut is no excuse. It must not know which call serves which purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nimbus_e2e::power::disk::Deaf;
use nimbus_e2e::power::{Disk, Event, Fault, Image, Process, Recorder, Survival, log};
use nimbus_e2e::{Client, Home, Reply, Rng};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{check_names, consistent, documents, in_parallel, scratch, setting, tenants};

const SEED: u64 = 0x6e69_6d62_7573_0302;
const TABLE: &str = "notes";
/// Failures after which a run stops.
const MOST_FAILURES: usize = 10;

/// What a document may be: the number of the write that made it, or absent.
type State = Option<u64>;

/// What must or may be on the disk, by all that was answered.
#[derive(Clone, Debug, Default)]
struct Ledger {
    tenants: BTreeMap<String, Tenant>,
    /// Commits of unknown outcome: tenant, commit id, number of the write.
    unknown: Vec<(String, String, u64)>,
    writes: u64,
}

#[derive(Clone, Debug, Default)]
struct Tenant {
    /// Whether it may exist, and whether it may not.
    may: BTreeSet<bool>,
    /// Its deletion got no good answer: it may still be carried out at the next start.
    doomed: bool,
    documents: BTreeMap<String, Document>,
}

#[derive(Clone, Debug)]
struct Document {
    /// Unknown when its insert got no good answer.
    id: Option<String>,
    may: BTreeSet<State>,
    /// All that it was ever asked to be.
    ever: BTreeSet<State>,
}

/// What an answer promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Refused,
    Unknown,
}

impl Verdict {
    fn of(answer: &Result<Reply, String>) -> Verdict {
        match answer {
            Ok(reply) if reply.status < 300 => Verdict::Done,
            // No space, or nothing wrong with the disk: it was not carried out.
            Ok(reply) if reply.status == 507 || reply.status < 500 => Verdict::Refused,
            _ => Verdict::Unknown,
        }
    }

    /// What may hold afterwards, of what may have held before.
    fn after<T: Ord + Clone>(self, before: &BTreeSet<T>, new: T) -> BTreeSet<T> {
        let mut may = match self {
            Verdict::Done => BTreeSet::new(),
            Verdict::Refused | Verdict::Unknown => before.clone(),
        };
        if self != Verdict::Refused {
            may.insert(new);
        }
        may
    }
}

impl Ledger {
    /// The same when the newest commits may be gone: any state that a document has had. That they
    /// go together is for the consistency check to find.
    fn without_newest(mut self) -> Ledger {
        let tenants = self.tenants.values_mut();
        for document in tenants.flat_map(|tenant| tenant.documents.values_mut()) {
            document.may.clone_from(&document.ever);
        }
        self.unknown.clear();
        self
    }
}

/// A client that keeps the ledger.
struct Session<'a> {
    client: &'a Client,
    ledger: &'a mut Ledger,
    /// Statuses of what was not done, and how often.
    failures: BTreeMap<String, usize>,
    /// Answers that cannot be true.
    wrong: Vec<String>,
}

impl Session<'_> {
    fn send(&mut self, method: &str, path: &str, body: Option<&Json>) -> (Verdict, Option<Json>) {
        let answer = self.client.send(method, path, body);
        let verdict = Verdict::of(&answer);
        if verdict != Verdict::Done {
            let text = match &answer {
                Ok(reply) => format!("{} {}", reply.status, reply.error()["code"]),
                Err(error) => error.clone(),
            };
            self.note_denial(path, &text);
            *self.failures.entry(text).or_default() += 1;
        }
        let json = answer.ok().filter(|reply| !reply.body.is_empty());
        (verdict, json.map(|reply| reply.json()))
    }

    /// What certainly is there must not be called missing because the disk fails.
    fn note_denial(&mut self, path: &str, text: &str) {
        let tenant = path.split('/').nth(3).unwrap_or_default();
        let known = self.ledger.tenants.get(tenant);
        let certain = known.is_some_and(|known| known.may == BTreeSet::from([true]));
        if certain && text.contains("session.tenant_not_found") {
            self.wrong.push(format!("{path}: {text}"));
        }
    }

    fn create(&mut self, tenant: &str) {
        let body = json!({"id": tenant});
        let (verdict, _) = self.send("POST", "/api/tenants", Some(&body));
        let entry = self.ledger.tenants.entry(tenant.to_owned()).or_default();
        let before = BTreeSet::from([false]);
        entry.may = verdict.after(&before, true);
    }

    fn delete_tenant(&mut self, tenant: &str) {
        let (verdict, _) = self.send("DELETE", &format!("/api/tenants/{tenant}"), None);
        // A deletion that has begun is finished at the next start, whatever came in between.
        let verdict = match verdict {
            Verdict::Refused => Verdict::Unknown,
            other => other,
        };
        let entry = self.ledger.tenants.get_mut(tenant).unwrap();
        entry.doomed = verdict == Verdict::Unknown;
        entry.may = verdict.after(&entry.may, false);
    }

    /// The schema itself is not followed; the consistency check looks at its indexes.
    fn declare(&mut self, tenant: &str, field: &str) {
        let schema = json!({
            "table": TABLE,
            "fields": [{"name": field, "field_type": "string", "required": true}],
            "indexes": [{"name": format!("by_{field}"), "fields": [field]}],
        });
        let path = format!("/api/tenants/{tenant}/schema/{TABLE}");
        self.send("PUT", &path, Some(&schema));
    }

    fn fields(&mut self, key: &str, len: usize) -> (u64, Json) {
        self.ledger.writes += 1;
        let number = self.ledger.writes;
        let text = "fault".repeat(len / 5);
        (
            number,
            json!({"op": number, "key": key, "owner": "w", "text": text}),
        )
    }

    fn insert(&mut self, tenant: &str, key: &str, len: usize) {
        let (number, fields) = self.fields(key, len);
        let body = json!({"table": TABLE, "fields": fields});
        let path = format!("/api/tenants/{tenant}/documents");
        let (verdict, answer) = self.send("POST", &path, Some(&body));
        self.note_unknown(tenant, number, verdict, answer.as_ref());
        let id = answer.and_then(|json| json["id"].as_str().map(str::to_owned));
        let before = BTreeSet::from([None]);
        let document = Document {
            id: id.filter(|_| verdict == Verdict::Done),
            may: verdict.after(&before, Some(number)),
            ever: BTreeSet::from([None, Some(number)]),
        };
        let entry = self.ledger.tenants.get_mut(tenant).unwrap();
        entry.documents.insert(key.to_owned(), document);
    }

    /// Changes a document, or deletes it when there is no new length.
    fn change(&mut self, tenant: &str, key: &str, len: Option<usize>) {
        let document = &self.ledger.tenants[tenant].documents[key];
        let Some(id) = document.id.clone() else {
            return;
        };
        let path = format!("/api/tenants/{tenant}/documents/{TABLE}/{id}");
        let (new, (verdict, answer)) = match len {
            Some(len) => {
                let (number, fields) = self.fields(key, len);
                let body = json!({"patch": fields});
                (Some(number), self.send("PATCH", &path, Some(&body)))
            }
            None => (None, self.send("DELETE", &path, None)),
        };
        if let Some(number) = new {
            self.note_unknown(tenant, number, verdict, answer.as_ref());
        }
        let entry = self.ledger.tenants.get_mut(tenant).unwrap();
        let document = entry.documents.get_mut(key).unwrap();
        document.may = verdict.after(&document.may, new);
        document.ever.insert(new);
    }

    /// A commit of unknown outcome can be asked for later.
    fn note_unknown(&mut self, tenant: &str, number: u64, verdict: Verdict, answer: Option<&Json>) {
        let commit = answer.and_then(|json| json["error"]["detail"]["commitId"].as_str());
        if let (Verdict::Unknown, Some(commit)) = (verdict, commit) {
            let entry = (tenant.to_owned(), commit.to_owned(), number);
            self.ledger.unknown.push(entry);
        }
    }

    /// Reads everything that can be read: it may be as the ledger says, and must stay so.
    fn look(&mut self) -> Result<(), String> {
        let mut denied = Vec::new();
        for (tenant, known) in &mut self.ledger.tenants {
            match documents(self.client, tenant, TABLE) {
                Ok(found) => known.check_and_fix(tenant, &found)?,
                Err(text) => denied.push((format!("/api/tenants/{tenant}/"), text)),
            }
        }
        for (path, text) in denied {
            self.note_denial(&path, &text);
        }
        match self.wrong.first() {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        }
    }

    /// A little of everything. The second round goes on where a first was interrupted.
    fn work(&mut self, round: usize) -> Result<(), String> {
        let passing = ["b", "c"][round];
        if round == 0 {
            self.create("a");
        }
        self.declare("a", "owner");
        let key = |n: usize| format!("{round}-{n}");
        for (n, len) in [10, 2_000, 30_000, 0, 500, 9_000, 100, 4_000]
            .into_iter()
            .enumerate()
        {
            self.insert("a", &key(n), len);
        }
        self.look()?;
        self.change("a", &key(1), Some(10));
        self.change("a", &key(2), Some(20_000));
        self.change("a", &key(0), Some(6_000));
        self.change("a", &key(3), None);
        self.create(passing);
        self.insert(passing, "p", 700);
        self.declare("a", "key");
        // Not `a`: a pruned log no longer knows the outcome of its commits.
        self.send("POST", &format!("/api/tenants/{passing}/prune"), None);
        self.look()?;
        self.delete_tenant(passing);
        for n in 10..13 {
            self.insert("a", &key(n), 1_000);
        }
        self.change("a", &key(10), None);
        self.insert("a", &key(14), 50);
        self.look()
    }
}

impl Tenant {
    fn check_and_fix(&mut self, tenant: &str, found: &[Json]) -> Result<(), String> {
        if !self.may.contains(&true) {
            return Err(format!("{tenant} was deleted or refused, and is there"));
        }
        let mut states: BTreeMap<&str, State> = BTreeMap::new();
        for document in found {
            let key = document["key"].as_str().unwrap_or_default();
            let number = document["op"].as_f64().map(|op| op as u64);
            if states.insert(key, number).is_some() || !self.documents.contains_key(key) {
                return Err(format!("{tenant}: {key} comes from nowhere: {document}"));
            }
        }
        for (key, document) in &mut self.documents {
            let state = states.get(key.as_str()).copied().flatten();
            if !document.may.contains(&state) {
                let may = &document.may;
                return Err(format!("{tenant}: {key} is {state:?} and may be {may:?}"));
            }
            document.may = BTreeSet::from([state]);
        }
        if !self.doomed {
            self.may = BTreeSet::from([true]);
        }
        Ok(())
    }
}

/// Starts a server on `root`, with a recorder or none.
fn start(
    home: &Home,
    root: &Path,
    durability: &str,
    recorder: Option<&Recorder>,
) -> Result<Process, String> {
    let mut command = home.command(["start", "--port", "0", "--durability", durability]);
    command.arg("--data-dir").arg(root.join("data"));
    if let Some(recorder) = recorder {
        command.envs(recorder.environment());
    }
    Process::start(&mut command)
}

fn no_panic(log: &str) -> Result<(), String> {
    match log.contains("panicked") {
        true => Err(format!("a panic:\n{log}")),
        false => Ok(()),
    }
}

/// A directory to begin with.
struct Base {
    image: Image,
    ledger: Ledger,
    /// Calls of a run without faults, by kind.
    calls: BTreeMap<String, u64>,
    round: usize,
    durability: &'static str,
}

impl Base {
    /// An empty directory, one that a kill left after the first round, and both with relaxed
    /// durability.
    fn all() -> Vec<Base> {
        let mut bases = Vec::new();
        for durability in ["full", "relaxed"] {
            let mut empty = Base {
                image: Image::default(),
                ledger: Ledger::default(),
                calls: BTreeMap::new(),
                round: 0,
                durability,
            };
            let (_, ledger, image) = empty.run_well(true);
            let mut crashed = Base {
                image,
                ledger,
                calls: BTreeMap::new(),
                round: 1,
                durability,
            };
            empty.calls = empty.run_well(false).0;
            crashed.calls = crashed.run_well(false).0;
            bases.extend([empty, crashed]);
        }
        bases
    }

    /// Runs without faults: the calls it takes, and what it leaves when it is killed.
    fn run_well(&self, killed: bool) -> (BTreeMap<String, u64>, Ledger, Image) {
        let dir = scratch();
        let root = dir.path().join("disk");
        self.image.write(&root);
        let home = Home::within(dir.path());
        let recorder = Recorder::new(&root, &dir.path().join("log"));
        let server = start(&home, &root, self.durability, Some(&recorder)).unwrap();
        let client = server.client(&home.token());
        let mut ledger = self.ledger.clone();
        let mut session = Session {
            client: &client,
            ledger: &mut ledger,
            failures: BTreeMap::new(),
            wrong: Vec::new(),
        };
        session.work(self.round).unwrap();
        assert_eq!(session.failures, BTreeMap::new());
        if killed {
            server.kill();
            return (BTreeMap::new(), ledger, Image::read(&root));
        }
        let (text, status) = server.terminate();
        assert!(status.is_some_and(|s| s.success()), "{text}");
        let bytes = recorder.read();
        let counts = log::parse(&bytes).into_iter().find_map(|r| match r.event {
            Event::Counts(text) => Some(text.to_owned()),
            _ => None,
        });
        let counts = counts.expect("the recorder counts at a regular exit");
        let pairs = counts.split(' ').filter_map(|pair| pair.split_once('='));
        let calls = pairs.map(|(kind, n)| (kind.to_owned(), n.parse().unwrap()));
        (calls.collect(), ledger, Image::read(&root))
    }

    /// Every fault that this base can meet.
    fn faults(&self) -> Vec<Fault> {
        const KINDS: [(&str, &[&str]); 6] = [
            ("read", &["EIO", "EINTR", "SHORT"]),
            ("write", &["EIO", "ENOSPC", "EINTR", "SHORT"]),
            ("truncate", &["EIO", "ENOSPC", "EINTR"]),
            ("sync", &["EIO", "ENOSPC", "EINTR"]),
            ("name", &["EIO", "ENOSPC"]),
            ("open", &["EIO", "ENOSPC", "EINTR"]),
        ];
        let mut faults = Vec::new();
        for (calls, errors) in KINDS {
            for error in errors {
                for nth in 1..=self.calls[calls] {
                    faults.extend([1, 0].map(|times| Fault {
                        calls,
                        nth,
                        error,
                        times,
                    }));
                }
            }
        }
        faults
    }
}

/// What came of one fault.
#[derive(Debug, Default)]
struct Outcome {
    /// How many calls failed.
    fired: usize,
    /// Whether the server refused to start because of it.
    refused_start: bool,
    failures: BTreeMap<String, usize>,
}

fn try_fault(base: &Base, fault: Fault, seed: u64) -> Result<Outcome, String> {
    let dir = scratch();
    let root = dir.path().join("disk");
    base.image.write(&root);
    let home = Home::within(dir.path());
    let recorder = Recorder::new(&root, &dir.path().join("log")).with_fault(fault);
    let mut ledger = base.ledger.clone();
    let mut outcome = Outcome::default();
    let mut faulty = String::new();
    match start(&home, &root, base.durability, Some(&recorder)) {
        Err(text) => {
            no_panic(&text)?;
            if !text.contains("error: ") || text.contains("not ready") {
                return Err(format!("it did not start and did not say why: {text}"));
            }
            outcome.refused_start = true;
        }
        Ok(server) => {
            let client = server.client(&home.token());
            let mut session = Session {
                client: &client,
                ledger: &mut ledger,
                failures: BTreeMap::new(),
                wrong: Vec::new(),
            };
            let worked = session.work(base.round);
            outcome.failures = session.failures;
            let (text, status) = server.terminate();
            no_panic(&text)?;
            worked.map_err(|e| format!("{e}\nlog:\n{text}"))?;
            if status.is_none() {
                return Err(format!("it did not end:\n{text}"));
            }
            faulty = text;
        }
    }
    let bytes = recorder.read();
    let records = log::parse(&bytes);
    let fired = |r: &&log::Record<'_>| matches!(r.event, Event::Fault(_));
    outcome.fired = records.iter().filter(fired).count();
    let explain = |e: String| format!("{e}\nlog of the server with the fault:\n{faulty}");
    check_after(&home, &root, ledger.clone()).map_err(explain)?;
    // The power goes at the end of it all, or right after the faulty server has gone.
    let mut rng = Rng::new(seed);
    let mut disk = Disk::new(&base.image, Deaf::Never, seed);
    for record in &records {
        disk.follow(record);
    }
    if base.durability == "relaxed" {
        ledger = ledger.without_newest();
    }
    for survival in [Survival::Nothing, Survival::Sectors] {
        let (dir, home) = (scratch(), Home::within(dir.path()));
        let root = dir.path().join("disk");
        let image = disk.cut(survival, &mut rng);
        image.write(&root);
        check_after(&home, &root, ledger.clone()).map_err(|e| {
            let kept = TempDir::with_prefix("nimbus-power-failed-").unwrap().keep();
            image.write(&kept.join("disk"));
            fs::write(kept.join("log"), &bytes).unwrap();
            let kept = kept.display();
            explain(format!(
                "after a power cut ({survival:?}): {e}\nimage in {kept}"
            ))
        })?;
    }
    Ok(outcome)
}

/// A server without faults shows what the ledger says, and works.
fn check_after(home: &Home, root: &Path, mut ledger: Ledger) -> Result<(), String> {
    let server = start(home, root, "full", None)?;
    let client = server.client(&home.token());
    let found = compare(&client, &root.join("data"), &mut ledger);
    let text = server.kill();
    no_panic(&text)?;
    found.map_err(|e| format!("after a restart: {e}\nlog:\n{text}"))
}

fn compare(client: &Client, data: &Path, ledger: &mut Ledger) -> Result<(), String> {
    let there: BTreeSet<String> = tenants(client)?.into_iter().collect();
    check_names(data, &there)?;
    for (tenant, known) in &mut ledger.tenants {
        if there.contains(tenant) {
            known.check_and_fix(tenant, &documents(client, tenant, TABLE)?)?;
            consistent(client, tenant)?;
        } else if !known.may.contains(&false) {
            return Err(format!("{tenant} is gone"));
        } else {
            known.documents.clear();
        }
    }
    let unknown = there.iter().find(|t| !ledger.tenants.contains_key(*t));
    if let Some(tenant) = unknown {
        return Err(format!("{tenant} comes from nowhere"));
    }
    check_outcomes(client, &there, ledger)?;
    for tenant in &there {
        let fields = json!({"op": 0, "key": "after", "owner": "after"});
        let body = json!({"table": TABLE, "fields": fields});
        let path = format!("/api/tenants/{tenant}/documents");
        let reply = client.send("POST", &path, Some(&body))?;
        if reply.status != 201 {
            return Err(format!("{tenant} takes no writes: {}", reply.text()));
        }
    }
    Ok(())
}

/// A commit that is said not to have happened left nothing.
fn check_outcomes(
    client: &Client,
    there: &BTreeSet<String>,
    ledger: &Ledger,
) -> Result<(), String> {
    for (tenant, commit, number) in &ledger.unknown {
        let asked = there.contains(tenant) && tenant == "a";
        if !asked {
            continue;
        }
        let answer = super::read(client, &format!("/api/tenants/{tenant}/commits/{commit}"))?;
        let state = BTreeSet::from([Some(*number)]);
        let visible = ledger.tenants[tenant].documents.values();
        let visible = visible.filter(|document| document.may == state).count();
        if answer["committed"] == false && visible > 0 {
            return Err(format!("{tenant}: write {number} is there, and {answer}"));
        }
    }
    Ok(())
}

/// A seeded choice of faults, each kind of call in its turn; all of them when `count` is 0.
fn choose(bases: &[Base], count: usize, rng: &mut Rng) -> Vec<(usize, Fault)> {
    const TURNS: [&str; 10] = [
        "write", "sync", "write", "truncate", "sync", "name", "write", "open", "sync", "read",
    ];
    let all: Vec<(usize, Fault)> = bases
        .iter()
        .enumerate()
        .flat_map(|(n, base)| base.faults().into_iter().map(move |fault| (n, fault)))
        .collect();
    if count == 0 {
        return all;
    }
    let mut chosen = Vec::new();
    for kind in TURNS.into_iter().cycle().take(count) {
        let of_kind: Vec<_> = all.iter().filter(|(_, f)| f.calls == kind).collect();
        let at = rng.between(0, of_kind.len() as u64 - 1);
        chosen.push(*of_kind[usize::try_from(at).unwrap()]);
    }
    chosen
}

#[test]
fn a_failing_call_is_an_error_and_never_a_wrong_answer() {
    let seed = setting("NIMBUS_POWER_SEED", SEED);
    let count = usize::try_from(setting("NIMBUS_POWER_FAULTS", 150)).unwrap();
    let bases = Base::all();
    let mut rng = Rng::new(seed);
    let faults = choose(&bases, count, &mut rng);
    let total = faults.len();
    let failed = AtomicUsize::new(0);
    let results = in_parallel(faults.into_iter(), |n, (base, fault)| {
        if failed.load(Ordering::Relaxed) >= MOST_FAILURES {
            return Ok((fault, Outcome::default()));
        }
        let outcome = try_fault(&bases[base], fault, seed ^ n as u64);
        outcome.map(|outcome| (fault, outcome)).map_err(|e| {
            failed.fetch_add(1, Ordering::Relaxed);
            format!("seed {seed:#x}, base {base}, fault {fault}: {e}")
        })
    });
    let wrong: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong
            .iter()
            .map(|e| e.as_str())
            .collect::<Vec<_>>()
            .join("\n----\n")
    );
    let (mut fired, mut refused) = (0, 0);
    let mut answers: BTreeMap<(&str, &str, String), usize> = BTreeMap::new();
    for result in results {
        let (fault, outcome) = result.unwrap();
        fired += usize::from(outcome.fired > 0);
        refused += usize::from(outcome.refused_start);
        for (text, n) in outcome.failures {
            *answers.entry((fault.calls, fault.error, text)).or_default() += n;
        }
    }
    println!(
        "seed {seed:#x}: {total} faults, {fired} of them met, {refused} refused starts; no panic, \
         no wrong answer, also not after a power cut on top. Answers:"
    );
    for ((calls, error, text), n) in &answers {
        println!("  {calls} {error}: {n} x {text}");
    }
    assert!(fired * 10 >= total * 8, "{fired} of {total}");
}
