//! What stays: nothing between calls and tenants, no memory, no process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;
use nimbus_runtime::{Answer, Host, JsFailure, Nesting, RunError, SyscallError, UdfKind};

use crate::support::{
    Table, call, children, code, ending, is_dead, of, per_engine, runtime, runtime_with, until,
};

/// Leaves its tenant's name wherever it can, and looks for another's.
const LEAVES: &str = r#"
globalThis.imported = (globalThis.imported ?? 0) + 1;
let local = 0;
export const f = query(async ({ mine }) => {
    const found = [];
    const look = (what, it) => { if (it !== undefined) found.push(what + ": " + String(it)); };
    local++;
    if (local !== 1 || globalThis.imported !== 1) found.push("a module lives on");
    look("global", globalThis.left);
    look("Object.prototype", Object.prototype.left);
    look("Function.prototype", Function.prototype.left);
    look("Promise", Promise.left);
    look("Convex", Convex.syscall.left);
    look("console", console.left);
    look("Symbol", Object(Symbol.for("left")).left);
    look("Error", Error.left);
    look("regexp", RegExp.$1 === "" ? undefined : RegExp.$1);
    look("template", ((t) => t)`x`.raw.left);
    if (JSON.stringify({ a: 1 }) !== '{"a":1}' || [3, 1].sort()[0] !== 1) found.push("a builtin was changed");
    const got = (await ask("echo", { mine })).mine;
    if (got !== mine) found.push("asked for " + mine + ", got " + got);
    if (Math.random() === 0.5) found.push("chance stands still");
    for (const target of [globalThis, Object.prototype, Function.prototype, Promise, Convex.syscall, console, Symbol.prototype, Error]) {
        try { target.left = mine; } catch { found.push("cannot write"); }
    }
    /(.*)/.exec(mine);
    const list = found.map((x) => x);
    Array.prototype.sort = () => [mine];
    Math.random = () => 0.5;
    Promise.prototype.then = new Proxy(Promise.prototype.then, {});
    globalThis.JSON = { parse: JSON.parse, stringify: JSON.stringify };
    delete globalThis.Map;
    return [mine, list];
});
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_alternating_calls_of_two_tenants_leak_nothing() {
    // Without a snapshot a call takes many times as long.
    let rounds: u64 = per_engine(5_000, 100);
    let runtime = runtime_with(|config| config.max_active_per_tenant = Some(1));
    let (one, two) = (code(LEAVES), code(LEAVES));
    for number in 0..rounds {
        let run = |tenant: &'static str, code| {
            let mine = format!("{tenant}-{number}");
            let mut invocation = of(tenant, call(code, UdfKind::Query, "f"));
            invocation.args = format!(r#"[{{"mine":"{mine}"}}]"#);
            let runtime = runtime.clone();
            async move {
                let result = runtime.run(invocation, &Table::default()).await;
                assert_eq!(ending(&result), format!(r#"value ["{mine}",[]]"#));
            }
        };
        tokio::join!(run("acme", &one), run("other", &two));
    }
    let metrics = runtime.metrics();
    assert_eq!(metrics.completed_invocations, 2 * rounds);
    assert_eq!(
        metrics.tenants.values().copied().collect::<Vec<_>>(),
        [rounds, rounds]
    );
}

/// One bundle under one id for both: a worker that ran code of one tenant is not another's.
#[tokio::test]
async fn the_same_bundle_of_two_tenants_runs_in_two_processes() {
    let runtime = runtime();
    let code = code("export const f = query(async () => 1);");
    for tenant in ["acme", "other", "acme", "other"] {
        let result = runtime
            .run(
                of(tenant, call(&code, UdfKind::Query, "f")),
                &Table::default(),
            )
            .await;
        assert_eq!(ending(&result), "value 1");
    }
    let metrics = runtime.metrics();
    assert_eq!(
        (metrics.runtime_pool_misses, metrics.runtime_pool_hits),
        (2, 2)
    );
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<f64>()
        .unwrap()
        / 1024.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_processes_come_back_after_500_bundles() {
    let runtime = runtime_with(|config| config.idle = Duration::from_millis(1));
    let run = |number: usize| {
        let padding = format!("// {}\n", "x".repeat(50_000));
        let code = code(&format!(
            "{padding}export const f = query(async () => {number} + 'y'.repeat(1e5).length);"
        ));
        let runtime = runtime.clone();
        async move {
            let result = runtime
                .run(call(&code, UdfKind::Query, "f"), &Table::default())
                .await;
            assert_eq!(ending(&result), format!("value {}", number + 100_000));
        }
    };
    for number in 0..20 {
        run(number).await;
    }
    let before = resident_mb();
    for number in (0..500).step_by(2) {
        tokio::join!(run(number), run(number + 1));
        assert!(runtime.metrics().runtime_pool_workers <= runtime.limits().worker_threads + 1);
    }
    // What is kept beyond its time goes at the next sweep; the spare stays.
    until(|| runtime.metrics().runtime_pool_workers <= 1).await;
    until(|| children(std::process::id()).len() <= 1).await;
    let grown = resident_mb() - before;
    println!("grown by {grown:.1} MiB");
    assert!(grown < 64.0, "grown by {grown:.1} MiB");
}

/// A host that tells which process asks, and kills it.
#[derive(Default)]
struct Killer(Mutex<Vec<u32>>);

impl Host for Killer {
    fn syscall<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Answer, SyscallError>> {
        let busy = children(std::process::id());
        for pid in &busy {
            kill(*pid);
        }
        *self.0.lock().unwrap() = busy;
        Box::pin(std::future::pending())
    }

    fn udf_finished<'a>(
        &'a self,
        _: u64,
        _: Result<String, JsFailure>,
    ) -> BoxFuture<'a, Result<String, SyscallError>> {
        Box::pin(std::future::pending())
    }

    fn nesting(&self, _: Nesting) {}
}

fn kill(pid: u32) {
    let done = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_somebody_kills_is_lost_and_replaced() {
    let runtime = runtime();
    let code = code("export const f = query(async () => { await ask('x'); return 1; });");
    let killer = Killer::default();
    match runtime.run(call(&code, UdfKind::Query, "f"), &killer).await {
        Err(RunError::WorkerLost { why, .. }) => assert!(why.contains("Signalled(9)"), "{why}"),
        other => panic!("{other:?}"),
    }
    // The spare was killed too, and takes a moment to be gone.
    let killed = std::mem::take(&mut *killer.0.lock().unwrap());
    assert!(!killed.is_empty());
    for pid in killed {
        until(|| is_dead(pid)).await;
    }
    let result = runtime
        .run(call(&code, UdfKind::Query, "f"), &Table::default())
        .await;
    assert!(
        ending(&result).starts_with("thrown Uncaught Error: Unknown async operation x"),
        "{result:?}"
    );
    // And one that is killed while it waits for work.
    for pid in children(std::process::id()) {
        kill(pid);
        until(|| is_dead(pid)).await;
    }
    let result = runtime
        .run(
            call(&code, UdfKind::Query, "f"),
            &Table::answering("x", "1"),
        )
        .await;
    assert_eq!(ending(&result), "value 1");
}

/// What a worker process has of the server: no variables, no files, no arguments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_inherits_nothing() {
    let held = tempfile::NamedTempFile::new().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(held.as_file());
    // A descriptor that whoever is started inherits, as a library might leave one.
    assert_eq!(clear_close_on_exec(fd), 0);
    let runtime = runtime();
    let code = code("export const f = query(async () => 1);");
    let result = runtime
        .run(call(&code, UdfKind::Query, "f"), &Table::default())
        .await;
    assert_eq!(ending(&result), "value 1");
    let workers = children(std::process::id());
    assert!(!workers.is_empty());
    // The spare may be on its way: a process lets go of what it inherited as the first thing that it does.
    let holds = |pid: &u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        targets.any(|target| target == held.path())
    };
    until(|| !children(std::process::id()).iter().any(holds)).await;
    for pid in workers {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&environment).into_owned();
        let mut names: Vec<&str> = text
            .split('\0')
            .filter_map(|v| v.split('=').next())
            .filter(|n| !n.is_empty())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "TZ"]);
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let Ok(target) = std::fs::read_link(entry.unwrap().path()) else {
                continue;
            };
            assert_ne!(target, held.path(), "an open file of the server");
            let shown = target.to_string_lossy().into_owned();
            let kind = shown.split(':').next().unwrap_or_default();
            let known = ["socket", "pipe", "anon_inode", "/memfd"].contains(&kind)
                || target == Path::new("/dev/null");
            assert!(known, "{shown}");
        }
    }
}

#[allow(
    unsafe_code,
    reason = "a descriptor of the test's own is made inheritable"
)]
fn clear_close_on_exec(fd: i32) -> i32 {
    // SAFETY: the call changes a flag of an open descriptor and no memory.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
}

/// Set for the process that [`a_server_that_dies`] is run in.
const DIES: &str = "NIMBUS_TEST_SERVER_THAT_DIES";

/// Not a test: the server that the next one kills.
#[tokio::test]
#[ignore = "a part of the next test"]
async fn a_server_that_dies() {
    if std::env::var_os(DIES).is_none() {
        return;
    }
    let runtime = runtime_with(|config| {
        config.user_cpu = Duration::from_secs(3_000);
        config.timeout = Duration::from_secs(3_600);
    });
    let code = code("export const f = query(async () => { for (;;); });");
    drop(
        runtime
            .run(call(&code, UdfKind::Query, "f"), &Table::default())
            .await,
    );
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(11)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn workers_end_with_a_server_that_is_killed() {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "isolation::a_server_that_dies", "--ignored"])
        .env(DIES, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One that computes: more of a second of CPU time than any start takes.
    let busy = || {
        children(server.id())
            .into_iter()
            .any(|pid| cpu_ticks(pid) > 100)
    };
    until(busy).await;
    let workers = children(server.id());
    server.kill().unwrap();
    server.wait().unwrap();
    for pid in workers {
        until(|| is_dead(pid)).await;
    }
}
