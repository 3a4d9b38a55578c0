//! Functions over HTTP: warm queries and cold ones against workerd, mutations against native inserts, and transfers
//! that conflict. CPU time is that of the server with its worker processes.
//!
//! Both run the same function. Ours gets fresh globals for every call, and `workerd` keeps them.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::reads::{self, Leg};
use super::{contention, inserts};
use crate::http;
use crate::load::{self, Load};
use crate::machine;
use crate::plan::{CLIENTS, Plan};
use crate::process::{Nimbus, Site, Start};
use crate::random::{Rng, Zipf};
use crate::report::{Bound, Line, Unit};
use crate::rounds;
use crate::stats::{Latencies, Spread};
use crate::workerd::Workerd;

const ROW: &str = "functions";
const TENANT: &str = "bench";
const AGAINST: &str = "workerd";
const SERVER: &str = "workerd, fresh globals for no call";

/// Room for 64 clients of one tenant, and no answer from memory.
const UNCACHED: &[&str] = &[
    "--runtime-max-queued-per-tenant=256",
    "--runtime-query-cache-mb=0",
];
const CACHED: &[&str] = &["--runtime-max-queued-per-tenant=256"];

/// What is computed, of two arguments that differ per call; the same text for both sides.
const WORK: &str = r#"
function work({ n, text }) {
    const words = text.split(" ").map((word, at) => word + ((n + at) % 10));
    const counts = {};
    for (const word of words) counts[word] = (counts[word] ?? 0) + 1;
    return { n: n + 1, words: words.length, first: words.sort()[0], counts };
}
"#;

/// A bundle as the official bundler makes it, without the library's other parts.
const FUNCTIONS: &str = r#"
const text = (value) => JSON.stringify(value === undefined ? null : value);
const wrap = (flag, invoker) => (handler) => {
    const f = () => {};
    f[flag] = true;
    f.isPublic = true;
    f[invoker] = async (args) => text(await handler(...JSON.parse(args)));
    f.exportArgs = () => '{"type":"any"}';
    f.exportReturns = () => '{"type":"any"}';
    return f;
};
const ask = async (op, args) => JSON.parse(await Convex.asyncSyscall(op, JSON.stringify({ version: "1.48.0", ...args })));
const query = wrap("isQuery", "invokeQuery"), mutation = wrap("isMutation", "invokeMutation");
export const compute = query(async (args) => work(args));
export const insert = mutation(async (value) => (await ask("1.0/insert", { table: "people", value }))._id);
export const open = mutation(async ({ count }) => {
    const ids = [];
    for (let i = 0; i < count; i++) ids.push((await ask("1.0/insert", { table: "accounts", value: { balance: 1000000 } }))._id);
    return ids;
});
export const transfer = mutation(async ({ from, to, amount }) => {
    const [left, right] = await Promise.all([from, to].map((id) => ask("1.0/get", { id })));
    await Promise.all([[from, left.balance - amount], [to, right.balance + amount]].map(([id, balance]) => ask("1.0/shallowMerge", { id, value: { balance } })));
    return null;
});
export const total = query(async ({ ids }) => (await Promise.all(ids.map((id) => ask("1.0/get", { id })))).reduce((sum, it) => sum + it.balance, 0));
"#;

/// The same function as a worker of workerd.
const WORKER: &str = r#"
export default {
    async fetch(request) {
        const { args } = await request.json();
        return Response.json({ status: "success", value: work(args), logLines: [] });
    },
};
"#;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let mut lines = all(plan)?;
    if let Some(quickjs) = &plan.quickjs {
        let plan = Plan {
            binary: quickjs.clone(),
            ..plan.clone()
        };
        lines.extend(all(&plan)?.into_iter().map(|line| line.of("QuickJS")));
    }
    Ok(lines)
}

fn all(plan: &Plan) -> Result<Vec<Line>> {
    let mut lines = queries(plan)?;
    lines.extend(mutations(plan)?);
    lines.extend(transfers(plan)?);
    lines.extend(cold(plan)?);
    Ok(lines)
}

/// A server with a tenant that has the bundle, and a key for it.
struct Deployed {
    server: Nimbus,
    key: String,
}

fn deployed(
    plan: &Plan,
    site: &Site,
    more: &'static [&'static str],
    cpu: Option<usize>,
) -> Result<Deployed> {
    let start = Start {
        cpu,
        more,
        ..Start::default()
    };
    let server = Nimbus::start(&plan.binary, site, &start)?;
    let key = deploy(&server, TENANT)?;
    Ok(Deployed { server, key })
}

/// Makes a tenant with the bundle and returns a key for it.
fn deploy(server: &Nimbus, tenant: &str) -> Result<String> {
    server.call("POST", "/api/tenants", Some(&json!({ "id": tenant })), 201)?;
    let source = format!("// {tenant}\n{WORK}{FUNCTIONS}");
    let module = json!({ "path": "main.js", "source": source, "environment": "isolate" });
    let body = json!({
        "appDefinition": {
            "definition": null, "schema": null, "changedModules": [module], "unchangedModuleHashes": [], "udfServerVersion": "1.48.0",
        },
    });
    server.call(
        "POST",
        &format!("/api/tenants/{tenant}/deployments"),
        Some(&body),
        200,
    )?;
    let body = json!({ "scope": "admin" });
    let made = server.call(
        "POST",
        &format!("/api/tenants/{tenant}/keys"),
        Some(&body),
        201,
    )?;
    let key = made["key"].as_str().context("a key without its secret")?;
    Ok(key.to_owned())
}

/// Writes the request of a call.
fn request(out: &mut Vec<u8>, tenant: &str, key: &str, kind: &str, name: &str, args: &str) {
    let path = format!("/convex/{tenant}/api/{kind}");
    let body = format!("{{\"path\":\"main:{name}\",\"args\":{args},\"format\":\"json\"}}");
    http::request(out, "POST", &path, Some(key), Some(body.as_bytes()));
}

/// Arguments that no other call has, or the same for all.
fn arguments(rng: &mut Rng, differ: bool) -> String {
    let n = if differ { rng.below(1 << 40) } else { 7 };
    format!(
        "{{\"n\":{n},\"text\":\"a function is called with a line of words and counts them a few times\"}}"
    )
}

fn computes(key: &str, differ: bool) -> impl load::Make {
    let key = key.to_owned();
    move |rng: &mut Rng, _, out: &mut Vec<u8>| {
        request(
            out,
            TENANT,
            &key,
            "query",
            "compute",
            &arguments(rng, differ),
        );
    }
}

fn computes_of_workerd() -> impl load::Make {
    |rng: &mut Rng, _, out: &mut Vec<u8>| {
        let body = format!("{{\"args\":{}}}", arguments(rng, true));
        http::request(out, "POST", "/", None, Some(body.as_bytes()));
    }
}

fn queries(plan: &Plan) -> Result<Vec<Line>> {
    let cpu = (machine::cpus() > 1).then_some(0);
    let (site, cached_site, their_site) = (
        Site::new(&plan.dir)?,
        Site::new(&plan.dir)?,
        Site::new(&plan.dir)?,
    );
    let ours = deployed(plan, &site, UNCACHED, cpu)?;
    let cached = deployed(plan, &cached_site, CACHED, cpu)?;
    let script = format!("{WORK}{WORKER}");
    let theirs = plan.workerd.as_ref();
    let theirs = theirs
        .map(|program| Workerd::start(program, &their_site, &script, 1, cpu))
        .transpose()?;
    let mut pids = vec![ours.server.pid(), cached.server.pid()];
    pids.extend(theirs.iter().map(Workerd::pid));
    let leg = |round: u64, at| {
        let clients = if at % 2 == 0 { CLIENTS } else { 1 };
        let run = |server: &Deployed, differ| {
            let (address, pid) = (server.server.address(), server.server.pid());
            reads::measure(
                plan,
                address,
                pid,
                clients,
                round,
                computes(&server.key, differ),
            )
        };
        match (at / 2, &theirs) {
            (0, _) => run(&ours, true),
            (1, _) => run(&cached, false),
            (_, Some(theirs)) => {
                let address = *theirs.addresses().first().context("no worker")?;
                reads::measure(
                    plan,
                    address,
                    theirs.pid(),
                    clients,
                    round,
                    computes_of_workerd(),
                )
            }
            (_, None) => run(&ours, true),
        }
    };
    let legs = if theirs.is_some() { 6 } else { 4 };
    let rounds = rounds::run(plan, ROW, &pids, legs, leg, |legs| legs)?;
    ours.server.stop()?;
    cached.server.stop()?;
    let compared = theirs.is_some();
    theirs.map(Workerd::stop).transpose()?;

    let (noise, noisy) = (rounds.noise(), rounds.noisy());
    let rate = |at: usize| rounds.each(|legs: &Vec<Leg>| legs[at].per_cpu_second);
    let p50 = |at: usize| rounds.each(|legs: &Vec<Leg>| legs[at].p50_ms);
    let facts = |at: usize| {
        json!({
            "per_second": rounds.each(|legs| legs[at].per_second).samples,
            "cpus": rounds.each(|legs| legs[at].cpus).samples,
            "p50_ms": p50(at).samples,
            "p99_ms": rounds.each(|legs| legs[at].p99_ms).samples,
            "noise": noise,
        })
    };
    let many = Line::new(
        ROW,
        "warm query, arguments differ, no cache, 64 clients",
        Unit::PerCpuSecond,
        rate(0),
    );
    let one = Line::new(ROW, "the same, one client, p50", Unit::Milliseconds, p50(1))
        .goal(Bound::AtMost(1.0));
    let answered = Line::new(
        ROW,
        "the same arguments each time, answered from memory",
        Unit::PerCpuSecond,
        rate(2),
    );
    let (many, one, answered) = match compared {
        true => (
            many.against(SERVER, Unit::PerCpuSecond, rate(4))
                .ratio_goal(Bound::AtLeast(0.25)),
            one.against(AGAINST, Unit::Milliseconds, p50(5)),
            answered.against(AGAINST, Unit::PerCpuSecond, rate(4)),
        ),
        false => (many, one, answered),
    };
    let theirs = if compared { facts(4) } else { Value::Null };
    Ok(vec![
        many.facts(json!({ "ours": facts(0), "theirs": theirs }), noisy),
        one.facts(facts(1), noisy),
        answered.facts(facts(2), noisy),
    ])
}

/// One measurement of mutations.
struct Mutations {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    syncs_per_commit: f64,
}

fn mutate(plan: &Plan, ours: &Deployed, round: u64, make: impl load::Make) -> Result<Mutations> {
    let load = Load {
        address: ours.server.address(),
        clients: CLIENTS,
        status: 200,
        pid: None,
        cpu: None,
        spin: false,
    };
    let before = ours.server.commits_and_syncs()?;
    let mut measured = load::timed(&load, plan.warm, plan.time, round, make)?;
    let after = ours.server.commits_and_syncs()?;
    Ok(Mutations {
        per_second: measured.per_second(),
        p50_ms: measured.latencies.percentile_ms(0.5),
        p99_ms: measured.latencies.percentile_ms(0.99),
        syncs_per_commit: (after.1 - before.1) / (after.0 - before.0),
    })
}

fn insertions(key: &str) -> impl load::Make {
    let key = key.to_owned();
    move |rng: &mut Rng, number, out: &mut Vec<u8>| {
        let value = crate::documents::object(rng, number);
        request(out, TENANT, &key, "mutation", "insert", &value);
    }
}

fn mutations(plan: &Plan) -> Result<Vec<Line>> {
    let site = Site::new(&plan.dir)?;
    let ours = deployed(plan, &site, UNCACHED, None)?;
    enum Leg {
        Function(Mutations),
        Native(inserts::Inserts),
    }
    let leg = |round: u64, at| {
        Ok(match at {
            0 => Leg::Function(mutate(plan, &ours, round, insertions(&ours.key))?),
            _ => Leg::Native(inserts::inserts(plan, &ours.server, CLIENTS, round)?),
        })
    };
    let pids = [ours.server.pid()];
    let gather = |legs: Vec<Leg>| {
        let mut legs = legs.into_iter();
        match (legs.next(), legs.next()) {
            (Some(Leg::Function(function)), Some(Leg::Native(native))) => Some((function, native)),
            _ => None,
        }
    };
    let rounds =
        rounds::run(plan, "functions, inserts", &pids, 2, leg, gather)?.filter_map(|round| round);
    ours.server.stop()?;
    let facts = json!({
        "p50_ms": rounds.each(|r| r.0.p50_ms).samples,
        "p99_ms": rounds.each(|r| r.0.p99_ms).samples,
        "syncs_per_commit": rounds.each(|r| r.0.syncs_per_commit).samples,
        "native_syncs_per_commit": rounds.each(|r| r.1.syncs_per_commit).samples,
        "noise": rounds.noise(),
    });
    let rate = || rounds.each(|r| r.0.per_second);
    let job = "mutation that inserts one document, 64 clients, FULL";
    Ok(vec![
        Line::new(ROW, job, Unit::PerSecond, rate())
            .against(
                "native inserts",
                Unit::PerSecond,
                rounds.each(|r| r.1.per_second),
            )
            .ratio_goal(Bound::AtLeast(0.6))
            .facts(facts.clone(), rounds.noisy()),
        Line::new(ROW, "the same, by itself", Unit::PerSecond, rate())
            .goal(Bound::AtLeast(1_500.0))
            .facts(facts, rounds.noisy()),
    ])
}

/// One call; the value of its answer.
fn value(ours: &Deployed, kind: &str, name: &str, args: &Value) -> Result<Value> {
    let body = json!({ "path": format!("main:{name}"), "args": args, "format": "json" });
    let path = format!("/convex/{TENANT}/api/{kind}");
    let answer = ours
        .server
        .call_with(&ours.key, "POST", &path, &body, 200)?;
    ensure!(answer["status"] == "success", "{name}: {answer}");
    Ok(answer["value"].clone())
}

fn transfers(plan: &Plan) -> Result<Vec<Line>> {
    /// Accounts that one mutation opens, and one query adds up.
    const BATCH: u64 = 500;
    let site = Site::new(&plan.dir)?;
    let ours = deployed(plan, &site, UNCACHED, None)?;
    let mut accounts: Vec<String> = Vec::new();
    while (accounts.len() as u64) < plan.accounts.min(10_000) {
        let opened = value(&ours, "mutation", "open", &json!({ "count": BATCH }))?;
        let opened: Vec<String> = serde_json::from_value(opened)?;
        accounts.extend(opened);
    }
    let leg = |round: u64, _| {
        let (key, ids) = (ours.key.clone(), accounts.clone());
        let zipf = Zipf::new(ids.len(), contention::EXPONENT);
        let make = move |rng: &mut Rng, _: u64, out: &mut Vec<u8>| {
            let from = zipf.draw(rng);
            let mut to = zipf.draw(rng);
            if to == from {
                to = (from + 1) % ids.len();
            }
            let args = json!({ "from": ids[from], "to": ids[to], "amount": rng.below(10) + 1 });
            request(out, TENANT, &key, "mutation", "transfer", &args.to_string());
        };
        mutate(plan, &ours, round, make)
    };
    let pids = [ours.server.pid()];
    let first = |mut legs: Vec<Mutations>| legs.pop();
    let rounds =
        rounds::run(plan, "functions, transfers", &pids, 1, leg, first)?.filter_map(|round| round);
    let mut total = 0;
    for ids in accounts.chunks(BATCH as usize) {
        let sum = value(&ours, "query", "total", &json!({ "ids": ids }))?;
        total += sum.as_f64().context("no sum")? as u64;
    }
    let expected = accounts.len() as u64 * 1_000_000;
    ensure!(
        total == expected,
        "transfers made or lost money: {total} instead of {expected}"
    );
    ours.server.stop()?;
    let facts = json!({
        "accounts": accounts.len(),
        "p50_ms": rounds.each(|r| r.p50_ms).samples,
        "syncs_per_commit": rounds.each(|r| r.syncs_per_commit).samples,
        "noise": rounds.noise(),
    });
    let job = "transfers by mutations, zipf 1.5, 64 clients, durable";
    let speed = (rounds.each(|r| r.per_second), rounds.each(|r| r.p99_ms));
    let convex = Spread::new(rounds.kept.iter().map(|_| contention::CONVEX_PER_SECOND));
    let noisy = rounds.noisy();
    Ok(contention::lines(ROW, job, speed, convex, facts, noisy))
}

/// What first calls took, and what an idle isolate holds.
struct Cold {
    first: Latencies,
    mib_each: f64,
}

fn first_call(address: SocketAddr, make: impl load::Make) -> Result<Latencies> {
    let load = Load {
        address,
        clients: 1,
        status: 200,
        pid: None,
        cpu: None,
        spin: false,
    };
    load::counted_timed(&load, 1, make)
}

fn mib(pids: &[u32]) -> f64 {
    // A process that ended meanwhile holds nothing.
    let held = pids.iter().filter_map(|pid| machine::memory(*pid).ok());
    held.map(|memory| memory.pss as f64).sum::<f64>() / (1024.0 * 1024.0)
}

/// First calls of bundles that no worker has seen, one after the other.
fn ours_cold(plan: &Plan) -> Result<Cold> {
    const ROOM: &[&str] = &["--runtime-worker-threads=200", "--runtime-query-cache-mb=0"];
    let site = Site::new(&plan.dir)?;
    let start = Start {
        more: ROOM,
        ..Start::default()
    };
    let server = Nimbus::start(&plan.binary, &site, &start)?;
    let names: Vec<String> = (0..plan.bundles).map(|n| format!("cold-{n}")).collect();
    let keys: Vec<String> = names
        .iter()
        .map(|name| deploy(&server, name))
        .collect::<Result<_>>()?;
    let mut first = Latencies::default();
    for (name, key) in names.iter().zip(&keys) {
        let (name, key) = (name.clone(), key.clone());
        let make = move |rng: &mut Rng, _: u64, out: &mut Vec<u8>| {
            request(out, &name, &key, "query", "compute", &arguments(rng, true));
        };
        first.append(first_call(server.address(), make)?);
    }
    let workers = machine::children(server.pid())?;
    let mib_each = mib(&workers) / workers.len() as f64;
    server.stop()?;
    Ok(Cold { first, mib_each })
}

fn theirs_cold(plan: &Plan, program: &std::path::Path) -> Result<Cold> {
    let site = Site::new(&plan.dir)?;
    let script = format!("{WORK}{WORKER}");
    let server = Workerd::start(program, &site, &script, plan.bundles, None)?;
    let mut first = Latencies::default();
    for address in server.addresses() {
        first.append(first_call(*address, computes_of_workerd())?);
    }
    let loaded = mib(&[server.pid()]);
    let alone_site = Site::new(&plan.dir)?;
    let alone = Workerd::start(program, &alone_site, &script, 1, None)?;
    let one = *alone.addresses().first().context("no worker")?;
    first_call(one, computes_of_workerd())?;
    let mib_each = (loaded - mib(&[alone.pid()])) / (plan.bundles - 1).max(1) as f64;
    alone.stop()?;
    server.stop()?;
    Ok(Cold { first, mib_each })
}

fn cold(plan: &Plan) -> Result<Vec<Line>> {
    let started = Instant::now();
    let mut ours = ours_cold(plan)?;
    let theirs = plan
        .workerd
        .as_ref()
        .map(|program| theirs_cold(plan, program))
        .transpose()?;
    let one = |number: f64| Spread::new([number]);
    let mut cold = Line::new(
        ROW,
        "first call of a bundle, p50",
        Unit::Milliseconds,
        one(ours.first.percentile_ms(0.5)),
    )
    .goal(Bound::AtMost(8.0));
    let mut idle = Line::new(
        ROW,
        "idle worker, proportional set size",
        Unit::Mebibytes,
        one(ours.mib_each),
    )
    .goal(Bound::AtMost(6.0));
    let facts = json!({ "bundles": plan.bundles, "p99_ms": ours.first.percentile_ms(0.99), "seconds": started.elapsed().as_secs_f64() });
    if let Some(mut theirs) = theirs {
        cold = cold.against(
            AGAINST,
            Unit::Milliseconds,
            one(theirs.first.percentile_ms(0.5)),
        );
        idle = idle.against(AGAINST, Unit::Mebibytes, one(theirs.mib_each));
    }
    Ok(vec![
        cold.facts(facts.clone(), false),
        idle.facts(facts, false),
    ])
}
