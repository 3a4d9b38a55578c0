//! Policies in process: compiling a file of 1,000 workloads, and deciding about outbound requests.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use nimbus_policy::{
    EgressProtocol, EgressRequest, Policy, Source, Verdict, WorkloadKind, compile,
};
use serde_json::json;

use crate::plan::Plan;
use crate::report::{Bound, Line, Unit};
use crate::rounds;

const ROW: &str = "policies";
const WORKLOADS: usize = 1_000;
/// Rules of each workload.
const RULES: usize = 4;
/// Decisions of one measurement.
const DECISIONS: u32 = 1_000_000;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let file = file();
    let size = file.len();
    let source = Source::new("bench.yaml", file.into_bytes());
    let compiling = || -> Result<(f64, Policy)> {
        let started = Instant::now();
        let policy = compile(&source).map_err(|invalid| anyhow!("{invalid}"))?;
        Ok((started.elapsed().as_secs_f64() * 1e3, policy))
    };
    let (_, policy) = compiling()?;
    let leg = |_, at: usize| match at {
        0 => compiling().map(|(ms, _)| ms),
        at => decisions(&policy, at == 1),
    };
    let pids = [std::process::id()];
    let found = rounds::run(plan, ROW, &pids, 3, leg, |figures| figures)?;
    let facts =
        || json!({ "file_bytes": size, "rules": WORKLOADS * RULES, "rounds": found.noise() });
    let noisy = found.noisy();
    let job = format!("compile a policy of {WORKLOADS} workloads");
    let decide = |what: &str, at: usize| {
        let job = format!("decide about an outbound request: {what}");
        Line::new(ROW, job, Unit::PerSecond, found.each(|figures| figures[at]))
            .goal(Bound::AtLeast(1e6))
            .facts(facts(), noisy)
    };
    Ok(vec![
        Line::new(
            ROW,
            job,
            Unit::Milliseconds,
            found.each(|figures| figures[0]),
        )
        .goal(Bound::AtMost(50.0))
        .facts(facts(), noisy),
        decide("allowed by a path prefix", 1),
        decide("no rule for the host", 2),
    ])
}

fn file() -> String {
    let mut file = "schema_version: 1\ntenant: bench\nworkloads:\n".to_owned();
    for workload in 0..WORKLOADS {
        let _ = writeln!(
            file,
            "- kind: runtime_function\n  name: module:function{workload}"
        );
        file.push_str(
            "  secrets: {handles: [partner/key]}\n  network:\n    egress:\n      allow:\n",
        );
        for rule in 0..RULES {
            let _ = write!(
                file,
                "      - name: rule{rule}\n        protocol: https\n        host: api{rule}.example.com\n        \
                 port: 443\n        methods: [GET, POST]\n        path_prefixes: [/v1/hooks, /v1/orders]\n"
            );
        }
    }
    file
}

/// Decisions in a second.
fn decisions(policy: &Policy, allowed: bool) -> Result<f64> {
    let decision = policy.decision(WorkloadKind::RuntimeFunction, "module:function7");
    let egress = decision
        .ok_or_else(|| anyhow!("the workload is gone"))?
        .egress();
    let request = EgressRequest {
        protocol: EgressProtocol::Https,
        host: if allowed {
            "api3.example.com"
        } else {
            "other.example.com"
        },
        port: 443,
        method: Some("POST"),
        path: Some("/v1/orders/j57038g17fdmr8w8erkzsffrsd8jp98h?expand=lines"),
    };
    let started = Instant::now();
    let mut count = 0_u32;
    for _ in 0..DECISIONS {
        if let Verdict::Allowed(_) = egress.decide(black_box(&request)) {
            count += 1;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        count == if allowed { DECISIONS } else { 0 },
        "{count} were allowed"
    );
    Ok(f64::from(DECISIONS) / seconds)
}
