//! Reads over HTTP: one document by id against an axum hello-world, and a page by an index.
//!
//! The server is tied to one CPU and the clients to the other where there are two, so that a
//! CPU-second means the same on both sides (perf.md 8, items 2 and 3).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::documents::{self, RANKS, TABLE};
use crate::http;
use crate::load::{self, Load, Make, Measured};
use crate::machine;
use crate::plan::{CLIENTS, Plan};
use crate::process::{Hello, Nimbus, Site, Start};
use crate::report::{Bound, Line, Unit};
use crate::rounds;
use crate::stats::Spread;

const ROW: &str = "reads";
const TENANT: &str = "bench";
const PAGE: u64 = 100;
/// Longest wait for the indexes of an empty table.
const INDEXES: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let site = Site::new(&plan.dir)?;
    let ids: Arc<[String]> = fill(plan, &site, &Start::default())?.into();
    // Started again, so that the load is measured on a server of one CPU with cold caches of its
    // own; the warm-up fills them.
    let cpu = (machine::cpus() > 1).then_some(0);
    let start = Start {
        cpu,
        ..Start::default()
    };
    let server = Nimbus::start(&plan.binary, &site, &start)?;
    let hello = Hello::start(cpu)?;
    let pids = [server.pid(), hello.pid()];
    let leg = |round: u64, at| {
        let clients = if at < 2 { CLIENTS } else { 1 };
        let run =
            |address, pid, make: Box<dyn Make>| measure(plan, address, pid, clients, round, make);
        let (ours, theirs) = (
            (server.address(), server.pid()),
            (hello.address(), hello.pid()),
        );
        match at {
            0 | 2 => run(ours.0, ours.1, Box::new(gets(server.token(), &ids))),
            1 | 3 => run(theirs.0, theirs.1, Box::new(hellos())),
            _ => run(ours.0, ours.1, Box::new(pages(server.token()))),
        }
    };
    let rounds = rounds::run(plan, ROW, &pids, 5, leg, |legs| legs)?;
    server.stop()?;
    hello.stop()?;

    let (noise, noisy) = (rounds.noise(), rounds.noisy());
    let rate = |at: usize| rounds.each(|legs: &Vec<Leg>| legs[at].per_cpu_second);
    let p50 = |at: usize| rounds.each(|legs: &Vec<Leg>| legs[at].p50_ms);
    let facts = |at: usize| -> Value {
        json!({
            "per_second": rounds.each(|legs| legs[at].per_second).samples,
            "server_cpus": rounds.each(|legs| legs[at].cpus).samples,
            "server_user_us_each": rounds.each(|legs| legs[at].user_us).samples,
            "server_system_us_each": rounds.each(|legs| legs[at].system_us).samples,
            "p50_ms": p50(at).samples,
            "p99_ms": rounds.each(|legs| legs[at].p99_ms).samples,
            "noise": noise,
        })
    };
    let documents = plan.documents;
    Ok(vec![
        Line::new(
            ROW,
            format!("get by id over HTTP, 64 clients, {documents} documents"),
            Unit::PerCpuSecond,
            rate(0),
        )
        .against("axum hello-world", Unit::PerCpuSecond, rate(1))
        .ratio_goal(Bound::AtLeast(0.4))
        .facts(json!({ "ours": facts(0), "hello": facts(1) }), noisy),
        Line::new(
            ROW,
            "get by id over HTTP, one client, p50",
            Unit::Milliseconds,
            p50(2),
        )
        .against("axum hello-world", Unit::Milliseconds, p50(3))
        .goal(Bound::AtMost(0.5))
        .facts(json!({ "ours": facts(2), "hello": facts(3) }), noisy),
        Line::new(
            ROW,
            format!("page of {PAGE} from {documents} documents by index, p50"),
            Unit::Milliseconds,
            p50(4),
        )
        .goal(Bound::AtMost(1.0))
        .facts(facts(4), noisy),
    ])
}

/// One measurement.
pub(super) struct Leg {
    pub(super) per_cpu_second: f64,
    pub(super) per_second: f64,
    pub(super) cpus: f64,
    user_us: f64,
    system_us: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl From<Measured> for Leg {
    fn from(mut measured: Measured) -> Leg {
        let answers = measured.latencies.len() as f64;
        Leg {
            per_cpu_second: measured.per_cpu_second(),
            per_second: measured.per_second(),
            cpus: measured.cpus_used(),
            user_us: measured.server_cpu.user / answers * 1e6,
            system_us: measured.server_cpu.system / answers * 1e6,
            p50_ms: measured.latencies.percentile_ms(0.5),
            p99_ms: measured.latencies.percentile_ms(0.99),
        }
    }
}

/// Two servers that are asked in turn.
pub(super) struct SideBySide {
    /// Documents in each.
    pub(super) documents: u64,
    pub(super) per_cpu_second: [Spread; 2],
    pub(super) p50_ms: [Spread; 2],
    pub(super) noise: Value,
    pub(super) noisy: bool,
}

/// Gets by id of 64 clients from two servers that hold the same, one after the other in each round.
pub(super) fn side_by_side(
    plan: &Plan,
    label: &str,
    places: [(&Site, &Start); 2],
) -> Result<SideBySide> {
    let mut servers = Vec::new();
    for (site, start) in places {
        let filling = Start {
            cpu: None,
            ..start.clone()
        };
        let ids: Arc<[String]> = fill(plan, site, &filling)?.into();
        servers.push((Nimbus::start(&plan.binary, site, start)?, ids));
    }
    let pids: Vec<u32> = servers.iter().map(|(server, _)| server.pid()).collect();
    let leg = |round: u64, at: usize| {
        let (server, ids) = &servers[at];
        let make = gets(server.token(), ids);
        measure(plan, server.address(), server.pid(), CLIENTS, round, make)
    };
    let rounds = rounds::run(plan, label, &pids, 2, leg, |legs| legs)?;
    for (server, _) in servers {
        server.stop()?;
    }
    let of = |figure: fn(&Leg) -> f64| [0, 1].map(|at| rounds.each(|legs| figure(&legs[at])));
    Ok(SideBySide {
        documents: plan.documents,
        per_cpu_second: of(|leg| leg.per_cpu_second),
        p50_ms: of(|leg| leg.p50_ms),
        noise: rounds.noise(),
        noisy: rounds.noisy(),
    })
}

pub(super) fn measure(
    plan: &Plan,
    address: std::net::SocketAddr,
    pid: u32,
    clients: usize,
    round: u64,
    make: impl Make,
) -> Result<Leg> {
    let load = Load {
        address,
        clients,
        status: 200,
        pid: Some(pid),
        cpu: (machine::cpus() > 1).then_some(1),
        spin: clients > 1 && machine::cpus() > 1 && std::env::var_os("NOSPIN").is_none(),
    };
    let time = if clients == 1 {
        plan.time_alone
    } else {
        plan.time
    };
    load::timed(&load, plan.warm, time, round, make).map(Leg::from)
}

/// Fills a table with three indexes and returns the ids of its documents.
fn fill(plan: &Plan, site: &Site, start: &Start) -> Result<Vec<String>> {
    let server = Nimbus::start(&plan.binary, site, start)?;
    server.call("POST", "/api/tenants", Some(&json!({ "id": TENANT })), 201)?;
    let schema = format!("/api/tenants/{TENANT}/schema/{TABLE}");
    server.call("PUT", &schema, Some(&documents::schema()), 204)?;
    wait_for_indexes(&server, &schema)?;
    let load = Load {
        address: server.address(),
        clients: CLIENTS,
        status: 201,
        pid: None,
        cpu: None,
        spin: false,
    };
    let ids: Arc<Mutex<Vec<String>>> = Arc::default();
    let taken = Arc::clone(&ids);
    let started = Instant::now();
    load::counted(
        &load,
        plan.documents,
        documents::inserts(server.token(), TENANT),
        move |_, body| {
            let answer: Value = serde_json::from_slice(body)?;
            let id = answer["id"].as_str().context("an insert without an id")?;
            let mut ids = taken.lock().unwrap_or_else(PoisonError::into_inner);
            ids.push(id.to_owned());
            Ok(())
        },
    )?;
    eprintln!(
        "{ROW}: {} documents with three index entries each in {:.1} s",
        plan.documents,
        started.elapsed().as_secs_f64()
    );
    server.stop()?;
    let ids = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(ids)
}

fn wait_for_indexes(server: &Nimbus, schema: &str) -> Result<()> {
    let deadline = Instant::now() + INDEXES;
    loop {
        let answer = server.call("GET", schema, None, 200)?;
        let indexes = answer["indexes"]
            .as_array()
            .context("a schema without indexes")?;
        if indexes.iter().all(|index| index["state"] == "enabled") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the indexes were not usable within {INDEXES:?}: {answer}");
        }
    }
}

fn gets(token: &str, ids: &Arc<[String]>) -> impl Make {
    let (token, ids) = (token.to_owned(), Arc::clone(ids));
    move |rng: &mut crate::random::Rng, _, out: &mut Vec<u8>| {
        let id = &ids[rng.below(ids.len() as u64) as usize];
        let path = format!("/api/tenants/{TENANT}/documents/{TABLE}/{id}");
        http::request(out, "GET", &path, Some(&token), None);
    }
}

fn hellos() -> impl Make {
    |_: &mut crate::random::Rng, _, out: &mut Vec<u8>| http::request(out, "GET", "/", None, None)
}

/// Pages that start anywhere in the order of `rank`, which is not the order of insertion.
fn pages(token: &str) -> impl Make {
    let token = token.to_owned();
    move |rng: &mut crate::random::Rng, _, out: &mut Vec<u8>| {
        // The last tenth is left out, so that every page is full.
        let from = rng.below(RANKS * 9 / 10);
        let body = json!({
            "query": {
                "table": TABLE,
                "filters": [{ "field": "rank", "op": "gte", "value": from }],
                "order": { "field": "rank", "direction": "asc" },
            },
            "page_size": PAGE,
        });
        let path = format!("/api/tenants/{TENANT}/query/paginated");
        http::request(
            out,
            "POST",
            &path,
            Some(&token),
            Some(body.to_string().as_bytes()),
        );
    }
}
