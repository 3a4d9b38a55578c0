//! Durable one-document inserts over HTTP, against a bare SQLite loop and against our own
//! relaxed durability; on this disk, and on one whose syncs take 4 ms longer.
//!
//! Group commit is what is measured here, so syncs per commit stand beside every rate.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bare::{self, Commits};
use crate::documents;
use crate::load::{self, Load};
use crate::plan::{CLIENTS, Plan};
use crate::process::{Nimbus, Site, SlowSync, Start};
use crate::report::{Bound, Line, Unit};
use crate::rounds::{self, Rounds};

const ROW: &str = "inserts";
const TENANT: &str = "bench";

/// Up to this rate of the bare loop its syncs are what counts, and group commit must beat it.
const SLOW_DISK: f64 = 400.0;
/// The sync of the machine that the budget was made on (perf.md 0, item 1).
const SLOW_SYNC: Duration = Duration::from_millis(4);

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let mut lines = this_disk(plan)?;
    lines.extend(slow_disk(plan)?);
    Ok(lines)
}

/// One measurement of our inserts.
#[derive(Clone, Debug)]
pub(super) struct Inserts {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) syncs_per_commit: f64,
    cpus: f64,
}

/// What one leg of a round gives.
enum Leg {
    Bare(Commits),
    Ours(Inserts),
}

/// One round on this disk.
struct Round {
    bare: Commits,
    many: Inserts,
    one: Inserts,
    relaxed: Option<Inserts>,
}

/// Legs in their order: many, bare, one, then relaxed where there is such a server.
fn gather(legs: Vec<Leg>) -> Option<Round> {
    let mut legs = legs.into_iter();
    let mut ours = Vec::new();
    let mut bare = None;
    for leg in legs.by_ref() {
        match leg {
            Leg::Bare(commits) => bare = Some(commits),
            Leg::Ours(inserts) => ours.push(inserts),
        }
    }
    let mut ours = ours.into_iter();
    Some(Round {
        bare: bare?,
        many: ours.next()?,
        one: ours.next()?,
        relaxed: ours.next(),
    })
}

fn this_disk(plan: &Plan) -> Result<Vec<Line>> {
    let (full, relaxed) = (Site::new(&plan.dir)?, Site::new(&plan.dir)?);
    let full_server = start(plan, &full, &Start::default())?;
    let how = Start {
        relaxed: true,
        ..Start::default()
    };
    let relaxed_server = start(plan, &relaxed, &how)?;
    let pids = [full_server.pid(), relaxed_server.pid()];
    let leg = |round: u64, at| {
        Ok(match at {
            0 => Leg::Ours(inserts(plan, &full_server, CLIENTS, round)?),
            1 => Leg::Bare(bare::run(full.path(), plan.warm, plan.time, None)?),
            2 => Leg::Ours(inserts(plan, &full_server, 1, round)?),
            _ => Leg::Ours(inserts(plan, &relaxed_server, CLIENTS, round)?),
        })
    };
    let rounds = flatten(rounds::run(plan, ROW, &pids, 4, leg, gather)?);
    full_server.stop()?;
    relaxed_server.stop()?;
    Ok(lines(&rounds, ""))
}

fn slow_disk(plan: &Plan) -> Result<Vec<Line>> {
    let site = Site::new(&plan.dir)?;
    let slow = SlowSync::build(site.path(), SLOW_SYNC)?;
    let how = Start {
        slow_sync: Some(slow.clone()),
        ..Start::default()
    };
    let server = start(plan, &site, &how)?;
    let (pids, name) = ([server.pid()], "inserts, slow syncs");
    let leg = |round: u64, at| {
        let bare = || bare::run(site.path(), plan.warm, plan.time, Some(&slow));
        Ok(match at {
            0 => Leg::Ours(inserts(plan, &server, CLIENTS, round)?),
            1 => Leg::Bare(bare()?),
            _ => Leg::Ours(inserts(plan, &server, 1, round)?),
        })
    };
    let rounds = flatten(rounds::run(plan, name, &pids, 3, leg, gather)?);
    server.stop()?;
    Ok(lines(&rounds, ", each sync 4 ms slower"))
}

/// A round without one of its legs cannot be, since a failed leg ends the run.
fn flatten(rounds: Rounds<Option<Round>>) -> Rounds<Round> {
    rounds.filter_map(|round| round)
}

pub(super) fn start(plan: &Plan, site: &Site, how: &Start) -> Result<Nimbus> {
    let server = Nimbus::start(&plan.binary, site, how)?;
    server.call("POST", "/api/tenants", Some(&json!({ "id": TENANT })), 201)?;
    Ok(server)
}

pub(super) fn inserts(plan: &Plan, server: &Nimbus, clients: usize, round: u64) -> Result<Inserts> {
    let load = Load {
        address: server.address(),
        clients,
        status: 201,
        pid: Some(server.pid()),
        cpu: None,
        spin: false,
    };
    let time = if clients == 1 {
        plan.time_alone
    } else {
        plan.time
    };
    let before = server.commits_and_syncs()?;
    let make = documents::inserts(server.token(), TENANT);
    let mut measured = load::timed(&load, plan.warm, time, round, make)?;
    let after = server.commits_and_syncs()?;
    Ok(Inserts {
        per_second: measured.per_second(),
        p50_ms: measured.latencies.percentile_ms(0.5),
        p99_ms: measured.latencies.percentile_ms(0.99),
        syncs_per_commit: (after.1 - before.1) / (after.0 - before.0),
        cpus: measured.cpus_used(),
    })
}

fn lines(rounds: &Rounds<Round>, disk: &str) -> Vec<Line> {
    let bare = rounds.each(|round| round.bare.per_second);
    let slow = bare.median() <= SLOW_DISK;
    let noisy = rounds.noisy();
    let facts = |of: fn(&Round) -> &Inserts| -> Value {
        json!({
            "p50_ms": rounds.each(|round| of(round).p50_ms).samples,
            "p99_ms": rounds.each(|round| of(round).p99_ms).samples,
            "syncs_per_commit": rounds.each(|round| of(round).syncs_per_commit).samples,
            "server_cpus": rounds.each(|round| of(round).cpus).samples,
            "noise": rounds.noise(),
        })
    };
    let many = rounds.each(|round| round.many.per_second);
    let syncs = rounds.each(|round| round.many.syncs_per_commit).median();
    let job = format!("durable inserts over HTTP, 64 clients, {syncs:.3} syncs per commit{disk}");
    let mut lines = Vec::new();
    let against_bare = Line::new(ROW, &job, Unit::PerSecond, many.clone())
        .against("bare SQLite loop", Unit::PerSecond, bare)
        .facts(facts(|round| &round.many), noisy);
    lines.push(match slow {
        true => against_bare.ratio_goal(Bound::AtLeast(30.0)),
        false => against_bare,
    });
    if rounds.kept.iter().all(|round| round.relaxed.is_some()) {
        let of = |round: &Round| round.relaxed.as_ref().map_or(f64::NAN, |r| r.per_second);
        let against_relaxed = Line::new(ROW, &job, Unit::PerSecond, many)
            .against("ours, relaxed", Unit::PerSecond, rounds.each(of))
            .facts(facts(|round| &round.many), noisy);
        lines.push(match slow {
            true => against_relaxed,
            false => against_relaxed.ratio_goal(Bound::AtLeast(0.5)),
        });
    }
    let one = rounds.each(|round| round.one.p50_ms);
    let bare_p50 = rounds.each(|round| round.bare.p50_ms);
    lines.push(
        Line::new(
            ROW,
            format!("durable insert over HTTP, one client, p50{disk}"),
            Unit::Milliseconds,
            one,
        )
        .against("bare SQLite commit", Unit::Milliseconds, bare_p50)
        .ratio_goal(Bound::AtMost(1.3))
        .facts(facts(|round| &round.one), noisy),
    );
    lines
}
