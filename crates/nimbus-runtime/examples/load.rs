//! tmp
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]
use std::sync::Arc; use std::time::Instant;
#[path = "../tests/runtime/support.rs"] #[allow(dead_code)] mod support;
use nimbus_runtime::*; use support::*;
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let runtime = { let mut c = RuntimeConfig::new(WorkerCommand{program: std::env::args().nth(1).unwrap().into(), args: vec![]}); c.max_instances=Some(2); c.max_active_per_tenant=Some(2); c.max_in_flight_per_tenant=Some(64); c.max_queued_per_tenant=Some(64); Runtime::new(c) };
        let code = code("export const f = query(async () => (await ask('echo', {a: 1})).a); export const g = query(async () => 1); export const a = action(async () => 1);");
        for name in ["g", "f", "a"] {
            let kind = if name == "a" { UdfKind::Action } else { UdfKind::Query };
            let t = Instant::now();
            runtime.run(call(&code, kind, name), &Table::default()).await.unwrap();
            println!("{name}: first {:?}", t.elapsed());
            let n = if name == "a" { 50 } else { 3000 };
            let mut took = vec![]; let mut cpu = 0u128;
            for _ in 0..n { let t = Instant::now(); let o = runtime.run(call(&code, kind, name), &Table::default()).await.unwrap(); cpu += o.cpu.as_nanos(); took.push(t.elapsed()); }
            took.sort();
            println!("{name}: p50 {:?} p99 {:?} cpu {} us", took[n/2], took[n*99/100], cpu / n as u128 / 1000);
            let t = Instant::now();
            let tasks: Vec<_> = (0..16).map(|_| { let (r, c) = (runtime.clone(), code.clone()); tokio::spawn(async move { for _ in 0..n/16 { r.run(call(&c, kind, name), &Table::default()).await.unwrap(); } }) }).collect();
            for t in tasks { t.await.unwrap(); }
            println!("{name}: {:.0}/s with 16", n as f64 / t.elapsed().as_secs_f64());
        }
        println!("{:?}", runtime.metrics());
        for e in std::fs::read_dir("/proc").unwrap().flatten() { if let Ok(c) = std::fs::read_to_string(e.path().join("cmdline")) { if c.contains("runtime-worker") && !c.contains("load") { let s = std::fs::read_to_string(e.path().join("smaps_rollup")).unwrap_or_default(); println!("{}", s.lines().filter(|l| l.starts_with("Pss:") || l.starts_with("Rss:")|| l.starts_with("Private_Dirty")).collect::<Vec<_>>().join(" ")); } } }
    });
    let _ = Arc::new(0);
}
