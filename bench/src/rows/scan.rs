//! Memory of the server while a large table is read page by page, and while it is exported in one
//! stream: it must not grow with the table.
//!
//! Pages of the largest size are asked for, so each answer is as large as one may be.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::http;
use crate::load::{self, Load};
use crate::machine;
use crate::plan::Plan;
use crate::process::{Nimbus, Site, Start};
use crate::random::Rng;
use crate::report::{Bound, Line, Unit};
use crate::stats::Spread;

const ROW: &str = "scan";
const TENANT: &str = "bench";
const TABLE: &str = "blobs";
/// Bytes of text in each document.
const DOCUMENT: u64 = 32 * 1024;
/// Clients that fill the table.
const WRITERS: usize = 16;
/// Documents in a page at most (docs/http-api.md); 16 MiB cut it first.
const PAGE: u64 = 1_000;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let site = Site::new(&plan.dir)?;
    let count = plan.scan_bytes / DOCUMENT;
    let server = Nimbus::start(&plan.binary, &site, &Start::default())?;
    server.call("POST", "/api/tenants", Some(&json!({ "id": TENANT })), 201)?;
    fill(&server, count)?;
    let peak_of_load = machine::peak_rss(server.pid())?;
    server.stop()?;

    let table = mebibytes(plan.scan_bytes);
    let line = |how: &str, reading: Reading| {
        let facts = json!({
            "table_mib": table,
            "documents": count,
            "answers": reading.answers,
            "seconds": reading.seconds,
            "mib_per_second": table / reading.seconds,
            "rss_before_mib": reading.before,
            "rss_after_mib": reading.after,
            "peak_rss_while_filled_mib": mebibytes(peak_of_load),
        });
        let job = format!("peak memory of the server while {table} MiB are {how}");
        Line::new(ROW, job, Unit::Mebibytes, Spread::new([reading.peak]))
            .goal(Bound::AtMost(128.0))
            .facts(facts, false)
    };
    let pages = reading(plan, &site, |server| scan(server, count))?;
    let stream = reading(plan, &site, |server| export(server, count))?;
    Ok(vec![
        line("read in pages of up to 16 MiB", pages),
        line("exported in one stream", stream),
    ])
}

/// What reading the whole table took.
struct Reading {
    answers: u64,
    seconds: f64,
    /// Resident memory in MiB: before, at most, and after.
    before: f64,
    peak: f64,
    after: f64,
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Reads on a server of its own, so that what went before does not hide what the reading takes.
fn reading(plan: &Plan, site: &Site, read: impl FnOnce(&Nimbus) -> Result<u64>) -> Result<Reading> {
    let server = Nimbus::start(&plan.binary, site, &Start::default())?;
    server.call("GET", &format!("/api/tenants/{TENANT}/schema"), None, 200)?;
    machine::forget_peak(server.pid())?;
    let before = machine::memory(server.pid())?.rss;
    let started = Instant::now();
    let answers = read(&server)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = machine::peak_rss(server.pid())?;
    let after = machine::memory(server.pid())?.rss;
    server.stop()?;
    Ok(Reading {
        answers,
        seconds,
        before: mebibytes(before),
        peak: mebibytes(peak),
        after: mebibytes(after),
    })
}

fn fill(server: &Nimbus, count: u64) -> Result<()> {
    let load = Load {
        address: server.address(),
        clients: WRITERS,
        status: 201,
        pid: None,
        cpu: None,
        spin: false,
    };
    let token = server.token().to_owned();
    let path = format!("/api/tenants/{TENANT}/documents");
    let started = Instant::now();
    let make = move |rng: &mut Rng, number: u64, out: &mut Vec<u8>| {
        let text: String = std::iter::repeat_with(|| char::from(b'a' + (rng.next() % 26) as u8))
            .take(64)
            .collect::<String>()
            .repeat(DOCUMENT as usize / 64);
        let body = json!({ "table": TABLE, "fields": { "number": number, "text": text } });
        http::request(
            out,
            "POST",
            &path,
            Some(&token),
            Some(body.to_string().as_bytes()),
        );
    };
    load::counted(&load, count, make, |_, _| Ok(()))?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{ROW}: {} MiB in {seconds:.1} s", (count * DOCUMENT) >> 20);
    Ok(())
}

/// Exports the table in one answer.
fn export(server: &Nimbus, expected: u64) -> Result<u64> {
    let documents = server.lines(&format!("/api/tenants/{TENANT}/export/{TABLE}"))?;
    ensure!(
        documents == expected,
        "{documents} documents exported instead of {expected}"
    );
    Ok(1)
}

/// Reads every page and returns how many there were.
fn scan(server: &Nimbus, expected: u64) -> Result<u64> {
    let path = format!("/api/tenants/{TENANT}/query/paginated");
    let (mut pages, mut documents, mut after) = (0, 0, Value::Null);
    loop {
        let body = json!({
            "query": { "table": TABLE, "filters": [] }, "page_size": PAGE, "after": after,
        });
        let page = server.call("POST", &path, Some(&body), 200)?;
        pages += 1;
        documents += page["data"]
            .as_array()
            .context("a page without data")?
            .len() as u64;
        if page["has_more"] != true {
            break;
        }
        after = page["next_cursor"].clone();
    }
    ensure!(
        documents == expected,
        "{documents} documents instead of {expected}"
    );
    Ok(pages)
}
