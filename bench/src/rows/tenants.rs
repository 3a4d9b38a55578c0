//! Ten thousand tenants: what a closed one costs in memory, how long the start takes, how long
//! opening one takes, and what an open and idle one holds.
//!
//! Tenants are created over HTTP by the server itself, which is then started again.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::http;
use crate::load::{self, Load};
use crate::machine::{self, Memory, Watch};
use crate::plan::Plan;
use crate::process::{Nimbus, Site, Start};
use crate::random::Rng;
use crate::report::{Bound, Line, Unit};
use crate::stats::Spread;

const ROW: &str = "tenants";
/// Starts that are timed.
const STARTS: usize = 5;
/// Clients that create tenants at once.
const CREATORS: usize = 8;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let (empty_site, site) = (Site::new(&plan.dir)?, Site::new(&plan.dir)?);
    create(plan, &site)?;
    let watch = Watch::start(&[])?;
    let (empty_start, empty) = starts(plan, &empty_site)?;
    let (start, closed) = starts(plan, &site)?;
    let opened = open(plan, &site)?;
    let foreign = watch.foreign()?;

    let (count, open) = (plan.tenants, plan.open_tenants);
    let kibibytes = |after: &Memory, before: &Memory, tenants: usize| {
        let each =
            |after: u64, before: u64| (after as f64 - before as f64) / tenants as f64 / 1024.0;
        (each(after.pss, before.pss), each(after.rss, before.rss))
    };
    let closed_each: Vec<(f64, f64)> = closed
        .iter()
        .zip(&empty)
        .map(|(full, empty)| kibibytes(full, empty, count))
        .collect();
    let open_each = kibibytes(&opened.after, &opened.before, open);
    let mut first_calls = opened.first_calls;
    let facts = json!({
        "tenants": count,
        "start_without_tenants_s": empty_start.samples,
        "closed_rss_kib_each": closed_each.iter().map(|(_, rss)| rss).collect::<Vec<_>>(),
        "opened": open,
        "open_rss_kib_each": open_each.1,
        "open_on_demand_p99_ms": first_calls.percentile_ms(0.99),
        "threads_with_open_tenants": opened.threads,
        "foreign_cpus": foreign,
    });
    let line =
        |job: String, unit, figure| Line::new(ROW, job, unit, figure).facts(facts.clone(), false);
    let pss = Spread::new(closed_each.iter().map(|(pss, _)| *pss));
    let p50 = Spread::new([first_calls.percentile_ms(0.5)]);
    Ok(vec![
        line(
            format!("{count} closed tenants, memory each (Pss)"),
            Unit::KibibytesEach,
            pss,
        )
        .goal(Bound::AtMost(1.0)),
        line(
            format!("start with {count} tenants until it listens"),
            Unit::Seconds,
            start,
        )
        .goal(Bound::AtMost(1.0)),
        line(
            format!("{open} open and idle tenants, memory each (Pss)"),
            Unit::KibibytesEach,
            Spread::new([open_each.0]),
        )
        .goal(Bound::AtMost(512.0)),
        line(
            "first call to a closed tenant over HTTP, p50".to_owned(),
            Unit::Milliseconds,
            p50,
        )
        .goal(Bound::AtMost(3.0)),
    ])
}

fn create(plan: &Plan, site: &Site) -> Result<()> {
    let server = Nimbus::start(&plan.binary, site, &Start::default())?;
    let load = Load {
        address: server.address(),
        clients: CREATORS,
        status: 201,
        pid: None,
        cpu: None,
        spin: false,
    };
    let token = server.token().to_owned();
    let started = Instant::now();
    let make = move |_: &mut Rng, number, out: &mut Vec<u8>| {
        let body = json!({ "id": name(number) }).to_string();
        http::request(
            out,
            "POST",
            "/api/tenants",
            Some(&token),
            Some(body.as_bytes()),
        );
    };
    load::counted(&load, plan.tenants as u64, make, |_, _| Ok(()))?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{ROW}: {} created in {seconds:.1} s", plan.tenants);
    server.stop()
}

fn name(number: u64) -> String {
    format!("tenant-{number:05}")
}

/// Times of some starts, and the memory of each server once it listens and has answered.
fn starts(plan: &Plan, site: &Site) -> Result<(Spread, Vec<Memory>)> {
    let (mut seconds, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..if plan.quick { 1 } else { STARTS } {
        let server = Nimbus::start(&plan.binary, site, &Start::default())?;
        seconds.push(server.start_time().as_secs_f64());
        server.call("GET", "/health", None, 200)?;
        memory.push(machine::memory(server.pid())?);
        server.stop()?;
    }
    Ok((Spread::new(seconds), memory))
}

/// What opening tenants on demand showed.
struct Opened {
    first_calls: crate::stats::Latencies,
    before: Memory,
    after: Memory,
    threads: usize,
}

/// Calls closed tenants, each once, one after the other.
fn open(plan: &Plan, site: &Site) -> Result<Opened> {
    let server = Nimbus::start(&plan.binary, site, &Start::default())?;
    let mut numbers: Vec<u64> = (0..plan.tenants as u64).collect();
    Rng::new(1).shuffle(&mut numbers);
    numbers.truncate(plan.open_tenants + 1);
    let load = Load {
        address: server.address(),
        clients: 1,
        status: 200,
        pid: None,
        cpu: None,
        spin: false,
    };
    let path = |number| format!("/api/tenants/{}/documents/notes", name(number));
    // The first one pays for what is loaded once, whatever is opened.
    let first = numbers.pop().unwrap_or_default();
    server.call("GET", &path(first), None, 200)?;
    let before = machine::memory(server.pid())?;
    let token = server.token().to_owned();
    let count = numbers.len() as u64;
    let make = move |_: &mut Rng, at: u64, out: &mut Vec<u8>| {
        let number = numbers[at as usize];
        http::request(out, "GET", &path(number), Some(&token), None);
    };
    let first_calls = load::counted_timed(&load, count, make)?;
    let after = machine::memory(server.pid())?;
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid()))?.count();
    server.stop()?;
    Ok(Opened {
        first_calls,
        before,
        after,
        threads,
    })
}
