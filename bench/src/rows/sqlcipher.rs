//! An encrypted server beside one in plain text, over HTTP: gets by id and durable inserts on SQLite.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::{inserts, reads};
use crate::machine;
use crate::plan::{CLIENTS, Plan};
use crate::process::{Site, Start};
use crate::report::{Bound, Line, Unit};
use crate::rounds;

const ROW: &str = "sqlcipher";

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let mut lines = gets(plan)?;
    lines.extend(durable_inserts(plan)?);
    Ok(lines)
}

/// A key file of the form that `openssl rand` makes.
fn key(site: &Site) -> Result<PathBuf> {
    let path = site.path().join("master.key");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&path)?;
    file.write_all(&[0x6b; 32])?;
    Ok(path)
}

fn gets(plan: &Plan) -> Result<Vec<Line>> {
    let (plain_site, sealed_site) = (Site::new(&plan.dir)?, Site::new(&plan.dir)?);
    let plain = Start {
        cpu: (machine::cpus() > 1).then_some(0),
        ..Start::default()
    };
    let sealed = Start {
        key: Some(key(&sealed_site)?),
        ..plain.clone()
    };
    let places = [(&plain_site, &plain), (&sealed_site, &sealed)];
    let both = reads::side_by_side(plan, "sqlcipher gets", places)?;
    let what = format!(
        "get by id over HTTP, 64 clients, {} documents, SQLCipher",
        both.documents
    );
    let [plain, sealed] = both.per_cpu_second;
    Ok(vec![
        Line::new(ROW, what, Unit::PerCpuSecond, sealed)
            .against("plain SQLite", Unit::PerCpuSecond, plain)
            .ratio_goal(Bound::AtLeast(0.9))
            .facts(json!({ "noise": both.noise }), both.noisy),
    ])
}

fn durable_inserts(plan: &Plan) -> Result<Vec<Line>> {
    let (plain_site, sealed_site) = (Site::new(&plan.dir)?, Site::new(&plan.dir)?);
    let plain = inserts::start(plan, &plain_site, &Start::default())?;
    let how = Start {
        key: Some(key(&sealed_site)?),
        ..Start::default()
    };
    let sealed = inserts::start(plan, &sealed_site, &how)?;
    let pids = [plain.pid(), sealed.pid()];
    let leg = |round: u64, at: usize| {
        let server = if at == 0 { &plain } else { &sealed };
        inserts::inserts(plan, server, CLIENTS, round)
    };
    let rounds = rounds::run(plan, "sqlcipher inserts", &pids, 2, leg, |legs| legs)?;
    plain.stop()?;
    sealed.stop()?;
    let rate = |at: usize| rounds.each(|legs: &Vec<inserts::Inserts>| legs[at].per_second);
    let syncs = |at: usize| rounds.each(|legs| legs[at].syncs_per_commit).samples;
    Ok(vec![
        Line::new(
            ROW,
            "durable inserts over HTTP, 64 clients, SQLCipher",
            Unit::PerSecond,
            rate(1),
        )
        .against("plain SQLite", Unit::PerSecond, rate(0))
        .ratio_goal(Bound::AtLeast(0.75))
        .facts(
            json!({
                "syncs_per_commit": syncs(1),
                "plain_syncs_per_commit": syncs(0),
                "noise": rounds.noise(),
            }),
            rounds.noisy(),
        ),
    ])
}
