//! Memory of the server while a large table is read page by page: it must not grow with the table.
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

    // Started again, so that what the load has left behind does not hide what the scan takes.
    let server = Nimbus::start(&plan.binary, &site, &Start::default())?;
    server.call("GET", &format!("/api/tenants/{TENANT}/schema"), None, 200)?;
    machine::forget_peak(server.pid())?;
    let before = machine::memory(server.pid())?.rss;
    let started = Instant::now();
    let pages = scan(&server, count)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = machine::peak_rss(server.pid())?;
    let after = machine::memory(server.pid())?.rss;
    server.stop()?;

    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let table = mebibytes(plan.scan_bytes);
    let facts = json!({
        "table_mib": table,
        "documents": count,
        "pages": pages,
        "seconds": seconds,
        "mib_per_second": table / seconds,
        "rss_before_mib": mebibytes(before),
        "rss_after_mib": mebibytes(after),
        "peak_rss_while_filled_mib": mebibytes(peak_of_load),
    });
    Ok(vec![
        Line::new(
            ROW,
            format!(
                "peak memory of the server while {table} MiB are read in pages of up to 16 MiB"
            ),
            Unit::Mebibytes,
            Spread::new([mebibytes(peak)]),
        )
        .goal(Bound::AtMost(128.0))
        .facts(facts, false),
    ])
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
