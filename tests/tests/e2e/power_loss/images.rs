//! The power is cut at seeded points of a recorded run; the binary starts on what may be left.
//!
//! It must not know how the run came about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nimbus_e2e::power::disk::Deaf;
use nimbus_e2e::power::{Disk, Event, Image, Process, Record, Recorder, Survival, log};
use nimbus_e2e::{Client, Home, Rng};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::recorded::{self, Request, Run, TABLE, TENANTS, index_names};
use super::{
    ANSWERED, ASKED, Kind, PLAIN, check_names, consistent, documents, in_parallel, scratch,
    setting, tenants,
};

const SEED: u64 = 0x6e69_6d62_7573_0300;
const TRANSACTIONS: u64 = 500;
/// Cuts per kind of dishonest disk.
const DEAF_CUTS: usize = 24;
/// Mark after a recovered server showed what it has.
const SHOWN: u64 = 3;
/// One image in so many is recovered under the recorder, and the power cut again meanwhile.
const TWICE: usize = 20;
/// How often.
const SECOND_CUTS: usize = 3;

/// What had happened when the power was cut.
#[derive(Clone, Debug)]
struct Past {
    /// By number of the attempt.
    asked: Vec<bool>,
    answered: Vec<bool>,
    /// What a server had already shown: the newest commit of each tenant.
    shown: Option<BTreeMap<&'static str, u64>>,
}

/// What a recovered server showed.
#[derive(Debug, Default)]
struct Shown {
    /// The newest commit of each tenant that is there.
    heads: BTreeMap<&'static str, u64>,
    /// Acknowledged document writes that are gone; with full durability that is a failure.
    lost: usize,
}

/// One cut.
struct Cut {
    image: Image,
    past: Past,
    /// For messages: the place in the log, and how the image was chosen.
    what: String,
}

/// How a run is judged.
#[derive(Clone, Copy)]
struct Judge<'r> {
    run: &'r Run,
    kind: Kind,
    /// Whether acknowledged commits may be gone from the end (`--durability relaxed`).
    suffix_may_go: bool,
}

impl Judge<'_> {
    /// Starts a server on the image and compares. The recorder sees it when one is given.
    fn look(&self, dir: &Path, past: &Past, recorder: Option<&Recorder>) -> Result<Shown, String> {
        let home = Home::within(dir.parent().unwrap());
        let mut command = self.kind.command(&home, &dir.join("data"));
        if let Some(recorder) = recorder {
            command.envs(recorder.environment());
        }
        let server = Process::start(&mut command)?;
        let client = server.client(&home.token());
        let shown = self.compare(&client, &dir.join("data"), past);
        if let Some(recorder) = recorder {
            recorder.mark(SHOWN, 0);
        } else if shown.is_ok() {
            takes_writes(&client)?;
        }
        let log = server.kill();
        if log.contains("panicked") || log.contains("nimbus tenants adopt") {
            return Err(format!("the log says:\n{log}"));
        }
        shown.map_err(|e| format!("{e}\nlog:\n{log}"))
    }

    fn compare(&self, client: &Client, data: &Path, past: &Past) -> Result<Shown, String> {
        let tenants: BTreeSet<String> = tenants(client)?.into_iter().collect();
        self.check_tenants(&tenants, past)?;
        check_names(data, &tenants)?;
        let mut shown = Shown::default();
        for tenant in TENANTS.into_iter().filter(|t| tenants.contains(*t)) {
            let head = self.common_head(client, tenant)?;
            self.check_documents(client, tenant, head)?;
            shown.lost += self.check_head(tenant, head, past)?;
            shown.heads.insert(tenant, head);
            consistent(client, tenant)?;
        }
        for tenant in tenants.iter().filter(|t| t.starts_with("passing")) {
            self.check_passing(client, tenant, past)?;
        }
        if !self.suffix_may_go && tenants.contains(TENANTS[0]) {
            self.check_declaration(client, past)?;
        }
        Ok(shown)
    }

    /// The newest commit that the run made too. A recovered server may add commits of its own at
    /// once, when it goes on with a schema change that was interrupted; they touch no document.
    fn common_head(&self, client: &Client, tenant: &str) -> Result<u64, String> {
        let (ran, found) = (
            &self.run.journals[tenant],
            recorded::journal(client, tenant)?,
        );
        let common = ran.iter().zip(&found);
        let common = common.take_while(|(a, b)| a.hash == b.hash).count();
        match found[common..].iter().find(|own| !own.changes.is_empty()) {
            Some(own) => Err(format!(
                "{tenant}: commit {} is not the one that was made: {:?}",
                own.sequence, own.changes
            )),
            None => Ok(common as u64),
        }
    }

    /// Acknowledged tenants exist, acknowledged deletions hold, nothing comes from nowhere.
    fn check_tenants(&self, found: &BTreeSet<String>, past: &Past) -> Result<(), String> {
        let mut must: BTreeSet<&str> = BTreeSet::new();
        let mut may: BTreeSet<&str> = BTreeSet::new();
        for (number, attempt) in self.run.attempts.iter().enumerate() {
            if !past.asked[number] {
                continue;
            }
            let done = past.answered[number];
            match &attempt.request {
                Request::CreateTenant(tenant) => {
                    may.insert(tenant);
                    if done {
                        must.insert(tenant);
                    }
                }
                Request::DeleteTenant(tenant) => {
                    must.remove(tenant.as_str());
                    if done {
                        may.remove(tenant.as_str());
                    }
                }
                _ => {}
            }
        }
        for tenant in must {
            if !found.contains(tenant) {
                return Err(format!("tenant {tenant} was acknowledged and is gone"));
            }
        }
        for tenant in found {
            if !may.contains(tenant.as_str()) {
                return Err(format!("tenant {tenant} was deleted or never asked for"));
            }
        }
        Ok(())
    }

    /// The documents are those after the commit `head`, byte for byte: nothing half, no gap.
    fn check_documents(&self, client: &Client, tenant: &str, head: u64) -> Result<(), String> {
        let found = documents(client, tenant, TABLE)?;
        let found: BTreeMap<&str, &Json> = found
            .iter()
            .map(|document| (document["_id"].as_str().unwrap(), document))
            .collect();
        let expected = self.run.documents(tenant, head);
        for (id, document) in &expected {
            match found.get(id) {
                Some(same) if same == document => {}
                other => {
                    let text = format!("{tenant} at commit {head}: {id} should be {document}");
                    return Err(format!("{text} and is {other:?}"));
                }
            }
        }
        let extra = found.keys().find(|id| !expected.contains_key(*id));
        match extra {
            Some(id) => Err(format!("{tenant} at commit {head}: {id} should not be")),
            None => Ok(()),
        }
    }

    /// Every acknowledged commit is there, and none that was not asked for. The number of
    /// acknowledged ones that are gone, where that is allowed.
    fn check_head(&self, tenant: &str, head: u64, past: &Past) -> Result<usize, String> {
        let mut lost = 0;
        for (number, (of, sequence)) in &self.run.committed {
            if *of != tenant {
                continue;
            }
            if *sequence <= head && !past.asked[*number] {
                return Err(format!(
                    "{tenant} has commit {head}, but {sequence} was not yet asked for"
                ));
            }
            if *sequence > head && past.answered[*number] {
                lost += 1;
                if !self.suffix_may_go {
                    return Err(format!(
                        "{tenant} is back at commit {head}, and {sequence} was acknowledged"
                    ));
                }
            }
        }
        let shown = past.shown.as_ref().and_then(|heads| heads.get(tenant));
        match shown {
            Some(shown) if *shown > head => Err(format!(
                "{tenant} is back at commit {head}, and {shown} was shown after the first cut"
            )),
            _ => Ok(lost),
        }
    }

    /// The one document of a tenant that comes and goes.
    fn check_passing(&self, client: &Client, tenant: &str, past: &Past) -> Result<(), String> {
        let fill = Request::Fill(tenant.to_owned());
        let number = self.run.attempts.iter().position(|a| a.request == fill);
        let number = number.ok_or_else(|| format!("{tenant} was never filled"))?;
        let found = documents(client, tenant, TABLE)?;
        let right = found.iter().all(|document| document["op"] == number as f64);
        let due = past.answered[number] && !self.suffix_may_go;
        if !right || found.len() > 1 || (due && found.is_empty()) {
            return Err(format!("{tenant} holds {found:?}"));
        }
        consistent(client, tenant)
    }

    /// The newest acknowledged declaration holds, or the one that was under way.
    fn check_declaration(&self, client: &Client, past: &Past) -> Result<(), String> {
        let (mut done, mut under_way) = (None, None);
        for (number, attempt) in self.run.attempts.iter().enumerate() {
            let Request::Declare(declaration) = attempt.request else {
                continue;
            };
            if past.answered[number] {
                (done, under_way) = (Some(declaration), None);
            } else if past.asked[number] {
                under_way = Some(declaration);
            }
        }
        let path = format!("/api/tenants/{}/schema/{TABLE}", TENANTS[0]);
        let reply = client.send("GET", &path, None)?;
        let found: Option<BTreeSet<String>> = (reply.status == 200).then(|| {
            let json = reply.json();
            let indexes = json["indexes"].as_array().unwrap().iter();
            let there = indexes.filter(|index| index["state"] != "deleting");
            there
                .map(|index| index["name"].as_str().unwrap().to_owned())
                .collect()
        });
        let as_done = found == done.map(index_names);
        let as_under_way = under_way.is_some() && found == under_way.map(index_names);
        if as_done || as_under_way {
            return Ok(());
        }
        let text = format!("declaration {done:?} was acknowledged, {under_way:?} under way");
        Err(format!("{text}; there is {}", reply.text()))
    }
}

/// A recovered server is a working server.
fn takes_writes(client: &Client) -> Result<(), String> {
    for tenant in tenants(client)? {
        let fields = json!({"op": -1, "owner": "after", "key": "after"});
        let body = json!({"table": TABLE, "fields": fields});
        let path = format!("/api/tenants/{tenant}/documents");
        let reply = client.send("POST", &path, Some(&body))?;
        if reply.status != 201 {
            return Err(format!("{tenant} takes no writes: {}", reply.text()));
        }
    }
    Ok(())
}

/// The cuts of a log, in its order.
struct Cuts<'r> {
    records: Vec<Record<'r>>,
    disk: Disk<'r>,
    points: Vec<usize>,
    at: usize,
    past: Past,
    rng: Rng,
}

impl<'r> Cuts<'r> {
    fn new(
        disk: Disk<'r>,
        records: Vec<Record<'r>>,
        points: Vec<usize>,
        past: Past,
        rng: Rng,
    ) -> Self {
        let mut points = points;
        points.sort_unstable();
        points.reverse();
        Cuts {
            records,
            disk,
            points,
            at: 0,
            past,
            rng,
        }
    }
}

impl Iterator for Cuts<'_> {
    type Item = Cut;

    fn next(&mut self) -> Option<Cut> {
        let point = self.points.pop()?;
        for record in &self.records[self.at..point] {
            match record.event {
                Event::Mark { kind, number } => {
                    let number = usize::try_from(number).unwrap();
                    match kind {
                        ASKED => self.past.asked[number] = true,
                        ANSWERED => self.past.answered[number] = true,
                        _ => {}
                    }
                }
                _ => self.disk.follow(record),
            }
        }
        self.at = point;
        let survival = Survival::pick(&mut self.rng);
        Some(Cut {
            image: self.disk.cut(survival, &mut self.rng),
            past: self.past.clone(),
            what: format!("record {point} of {}, {survival:?}", self.records.len()),
        })
    }
}

/// Seeded places in a log: before and after syncs, right after acknowledgements, anywhere. When
/// there are enough, each sync and each acknowledgement is among them.
fn points(records: &[Record<'_>], count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut special = Vec::new();
    for (n, record) in records.iter().enumerate() {
        match record.event {
            Event::Sync { .. } | Event::SyncDir { .. } => special.extend([n, n + 1]),
            Event::Mark { kind: ANSWERED, .. } => special.push(n + 1),
            _ => {}
        }
    }
    if count > 2 * special.len() {
        let rest = count - special.len();
        special.extend((0..rest).map(|_| pick(rng, records.len() + 1)));
        return special;
    }
    (0..count)
        .map(|n| match n % 3 {
            0 => pick(rng, records.len() + 1),
            _ => special[pick(rng, special.len())],
        })
        .collect()
}

fn pick(rng: &mut Rng, below: usize) -> usize {
    usize::try_from(rng.between(0, below as u64 - 1)).unwrap()
}

fn nothing(run: &Run) -> Past {
    Past {
        asked: vec![false; run.attempts.len()],
        answered: vec![false; run.attempts.len()],
        shown: None,
    }
}

/// Figures of a series of cuts.
#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    second_cuts: usize,
    /// Cuts after which acknowledged writes were gone from the end, and how many at most.
    shorter: usize,
    most_lost: usize,
}

/// Cuts the power at `count` points; the first failure is returned, with its image kept.
fn cut_all(judge: Judge<'_>, count: usize, seed: u64) -> Result<Tally, String> {
    let records = log::parse(&judge.run.log);
    let mut rng = Rng::new(seed);
    let points = points(&records, count, &mut rng);
    let disk = Disk::new(&Image::default(), Deaf::Never, seed);
    let cuts = Cuts::new(disk, records, points, nothing(judge.run), rng);
    let (second, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let one = |n: usize, cut: &Cut| {
        let shown = check(judge, cut)?;
        if n.is_multiple_of(TWICE) {
            let done = cut_again(judge, cut, seed ^ n as u64)?;
            second.fetch_add(done, Ordering::Relaxed);
        }
        Ok(shown.lost)
    };
    let results = in_parallel(cuts, |n, cut| {
        // One failure is enough; each keeps an image.
        if failed.load(Ordering::Relaxed) {
            return Ok(0);
        }
        one(n, &cut).inspect_err(|_| failed.store(true, Ordering::Relaxed))
    });
    let mut tally = Tally {
        second_cuts: second.into_inner(),
        ..Tally::default()
    };
    for result in results {
        let lost: usize = result.map_err(|e: String| format!("seed {seed:#x}, {e}"))?;
        tally.cuts += 1;
        tally.shorter += usize::from(lost > 0);
        tally.most_lost = tally.most_lost.max(lost);
    }
    Ok(tally)
}

fn check(judge: Judge<'_>, cut: &Cut) -> Result<Shown, String> {
    let dir = scratch();
    cut.image.write(&dir.path().join("disk"));
    let shown = judge.look(&dir.path().join("disk"), &cut.past, None);
    shown.map_err(|e| kept(cut, &e))
}

/// Recovers an image under the recorder and cuts the power while it does, and after it has shown
/// what it has. The number of cuts.
fn cut_again(judge: Judge<'_>, cut: &Cut, seed: u64) -> Result<usize, String> {
    let dir = scratch();
    let (root, path) = (dir.path().join("disk"), dir.path().join("log"));
    cut.image.write(&root);
    let recorder = Recorder::new(&root, &path);
    let shown = judge.look(&root, &cut.past, Some(&recorder));
    let shown = shown.map_err(|e| kept(cut, &e))?;
    let log = recorder.read();
    let records = log::parse(&log);
    let mut rng = Rng::new(seed);
    let end = records.len();
    let after = records
        .iter()
        .position(|r| matches!(r.event, Event::Mark { kind: SHOWN, .. }));
    let after = after.expect("the mark was made") + 1;
    let mut points = points(&records, SECOND_CUTS - 1, &mut rng);
    points.push(end);
    let disk = Disk::new(&cut.image, Deaf::Never, seed);
    let mut count = 0;
    for mut second in Cuts::new(disk, records, points.clone(), cut.past.clone(), rng) {
        points.sort_unstable();
        if points[count] >= after {
            second.past.shown = Some(shown.heads.clone());
        }
        second.what = format!("{}, then {}", cut.what, second.what);
        check(judge, &second)?;
        count += 1;
    }
    Ok(count)
}

/// The message of a failed cut, after its image was put where it stays.
fn kept(cut: &Cut, error: &str) -> String {
    let dir = TempDir::with_prefix("nimbus-power-failed-").unwrap().keep();
    cut.image.write(&dir.join("disk"));
    format!("{}: {error}\nthe image is in {}", cut.what, dir.display())
}

#[test]
fn no_power_cut_loses_an_acknowledged_write() {
    let seed = setting("NIMBUS_POWER_SEED", SEED);
    let points = usize::try_from(setting("NIMBUS_POWER_POINTS", 200)).unwrap();
    let mut last = None;
    for (seed, count) in batches(seed, points) {
        let run = recorded::run(PLAIN, TRANSACTIONS, seed);
        let judge = Judge {
            run: &run,
            kind: PLAIN,
            suffix_may_go: false,
        };
        let tally = cut_all(judge, count, seed).unwrap_or_else(|e| panic!("{e}"));
        println!(
            "seed {seed:#x}: {} acknowledged requests of 8 writers, a log of {} MiB; {} power \
             cuts, {} more during recovery: nothing lost, nothing half, every start consistent",
            run.acknowledged(),
            run.log.len() >> 20,
            tally.cuts,
            tally.second_cuts
        );
        assert_eq!(tally.shorter, 0);
        last = Some((run, seed));
    }
    let (run, seed) = last.expect("there was a run");
    dishonest_disks_lose(&run, seed);
}

/// Seeds and numbers of points of the runs that make up `points`. A server prunes what is older
/// than ten minutes from its log, and then it could not be compared any more.
fn batches(seed: u64, points: usize) -> impl Iterator<Item = (u64, usize)> {
    const MOST: usize = 500;
    let count = points.div_ceil(MOST);
    (0..count).map(move |n| {
        let share = points / count + usize::from(n < points % count);
        (seed.wrapping_add(2 * n as u64), share)
    })
}

/// The suite can fail: on disks that break their word it does.
fn dishonest_disks_lose(run: &Run, seed: u64) {
    let judge = Judge {
        run,
        kind: PLAIN,
        suffix_may_go: false,
    };
    let traffic = Traffic::of(&run.log);
    println!("  {traffic:?}");
    // Or the run did not come by the places where it is easy to lose something.
    assert!(
        traffic.log_restarts > 0 && traffic.syncs > 200,
        "{traffic:?}"
    );
    for deaf in [
        Deaf::ToAll,
        // What `synchronous=OFF` would be.
        Deaf::ToFiles(".sqlite3"),
        Deaf::ToFiles(".sqlite3-wal"),
        Deaf::ToFiles("nimbus-control.db"),
        Deaf::ToDirectories,
    ] {
        let (losses, first) = losses(judge, deaf, seed);
        println!("  {deaf:?}: {losses} of {DEAF_CUTS} cuts lose something, for example: {first}");
        assert!(losses > 0, "{deaf:?} loses nothing");
    }
}

/// How many cuts on a dishonest disk lose something, and the first such loss.
fn losses(judge: Judge<'_>, deaf: Deaf, seed: u64) -> (usize, String) {
    let records = log::parse(&judge.run.log);
    let mut rng = Rng::new(seed);
    let points = points(&records, DEAF_CUTS, &mut rng);
    let disk = Disk::new(&Image::default(), deaf, seed);
    let cuts = Cuts::new(disk, records, points, nothing(judge.run), rng);
    let results = in_parallel(cuts, |_, cut| {
        let dir = scratch();
        cut.image.write(&dir.path().join("disk"));
        let shown = judge.look(&dir.path().join("disk"), &cut.past, None);
        shown.err()
    });
    let found: Vec<String> = results.into_iter().flatten().collect();
    let first = found.first().map(String::as_str).unwrap_or_default();
    (found.len(), first.chars().take(200).collect())
}

/// What a run asked of the disk.
#[derive(Debug, Default)]
struct Traffic {
    writes: usize,
    syncs: usize,
    directory_syncs: usize,
    /// Write-ahead logs that started over after a checkpoint.
    log_restarts: usize,
}

impl Traffic {
    fn of(log: &[u8]) -> Traffic {
        let mut traffic = Traffic::default();
        let mut begun = BTreeMap::new();
        for record in log::parse(log) {
            match record.event {
                Event::Create { file, path } | Event::Open { file, path }
                    if path.ends_with("-wal") =>
                {
                    begun.insert(file, false);
                }
                Event::Write { file, at, .. } => {
                    traffic.writes += 1;
                    if let Some(begun) = begun.get_mut(&file)
                        && at == 0
                    {
                        traffic.log_restarts += usize::from(*begun);
                        *begun = true;
                    }
                }
                Event::Sync { .. } => traffic.syncs += 1,
                Event::SyncDir { .. } => traffic.directory_syncs += 1,
                _ => {}
            }
        }
        traffic
    }
}

#[test]
fn no_power_cut_loses_an_acknowledged_write_on_encrypted_sqlite() {
    nothing_is_lost("sqlite", true);
}

#[test]
fn no_power_cut_loses_an_acknowledged_write_on_redb() {
    nothing_is_lost("redb", false);
}

#[test]
fn no_power_cut_loses_an_acknowledged_write_on_encrypted_redb() {
    nothing_is_lost("redb", true);
}

/// The same for the other kinds of files, at a third of the points each.
fn nothing_is_lost(provider: &'static str, encrypted: bool) {
    let kind = Kind {
        provider,
        encrypted,
        ..PLAIN
    };
    let seed = setting("NIMBUS_POWER_SEED", SEED) ^ 2;
    let points = usize::try_from(setting("NIMBUS_POWER_POINTS", 200)).unwrap();
    for (seed, count) in batches(seed, points / 3) {
        let run = recorded::run(kind, TRANSACTIONS, seed);
        let judge = Judge {
            run: &run,
            kind,
            suffix_may_go: false,
        };
        let tally = cut_all(judge, count, seed).unwrap_or_else(|e| panic!("{e}"));
        println!(
            "seed {seed:#x}: {kind:?}: {} acknowledged requests; {} power cuts, {} more during recovery: nothing lost",
            run.acknowledged(),
            tally.cuts,
            tally.second_cuts
        );
        assert_eq!(tally.shorter, 0);
    }
}

#[test]
fn relaxed_durability_loses_a_suffix_at_most() {
    let seed = setting("NIMBUS_POWER_SEED", SEED) ^ 1;
    let points = usize::try_from(setting("NIMBUS_POWER_POINTS", 200)).unwrap();
    for (seed, count) in batches(seed, points / 4) {
        let kind = Kind {
            durability: "relaxed",
            ..PLAIN
        };
        let run = recorded::run(kind, TRANSACTIONS, seed);
        let judge = Judge {
            run: &run,
            kind,
            suffix_may_go: true,
        };
        let tally = cut_all(judge, count, seed).unwrap_or_else(|e| panic!("{e}"));
        println!(
            "seed {seed:#x}: relaxed: {} power cuts and {} more: after {} the newest writes were \
             missing, {} at most; never a gap",
            tally.cuts, tally.second_cuts, tally.shorter, tally.most_lost
        );
        // Or the run had nothing to lose, and shows nothing.
        assert!(tally.shorter > 0, "{tally:?}");
    }
}
