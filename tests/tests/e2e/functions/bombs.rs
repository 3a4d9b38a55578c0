//! Functions that try to take the server down or to leave their sandbox (reliability rows 15-17): each is
//! ended, the process lives, its tenant is served again, and another tenant's calls all succeed.
//!
//! It must not know how functions are ended, nor when: no time decides here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nimbus_e2e::{App, Options};
use serde_json::{Value as Json, json};

use super::World;

/// Runs of each kind.
const RUNS: usize = 3;

/// Kinds that compute or allocate without end: none has a value.
const ENDLESS: [(&str, &str); 29] = [
    ("query", "memory:arrayFill"),
    ("query", "memory:join"),
    ("query", "memory:repeat"),
    ("query", "memory:json"),
    ("action", "memory:typedArrays"),
    ("mutation", "memory:map"),
    ("query", "memory:regexpCaptures"),
    ("query", "memory:spread"),
    ("query", "memory:bigints"),
    ("query", "memory:closures"),
    ("mutation", "memory:strings"),
    ("action", "memory:asyncFrames"),
    ("action", "memory:hugeBuffer"),
    ("action", "memory:growingWasm"),
    ("query", "cpu:endlessLoop"),
    ("action", "cpu:endlessLoopInAction"),
    ("mutation", "cpu:catchingLoop"),
    ("query", "cpu:deepRecursion"),
    ("query", "cpu:recursionInACatch"),
    ("query", "cpu:catastrophicRegexp"),
    ("query", "cpu:hugeSort"),
    ("query", "cpu:promiseFlood"),
    ("query", "cpu:loopInResultGetter"),
    ("query", "cpu:loopInErrorText"),
    ("query", "cpu:loopInToJson"),
    ("query", "cpu:loopInThenable"),
    ("query", "cpu:wasmLoop"),
    ("query", "cpu:bigPower"),
    ("action", "floods:endlessCalls"),
];

/// Kinds that ask too much of the host: none has a value either.
const FLOODS: [(&str, &str); 14] = [
    ("query", "floods:hugeResult"),
    ("query", "floods:wideResult"),
    ("query", "floods:deepResult"),
    ("query", "floods:cyclicResult"),
    ("query", "floods:hugeError"),
    ("action", "floods:callsItself"),
    ("mutation", "floods:mutationCallsItself"),
    ("mutation", "floods:endlessInserts"),
    ("mutation", "floods:bigInserts"),
    ("query", "floods:endlessReads"),
    ("action", "floods:hugeArgument"),
    ("query", "floods:deepArgumentWithin"),
    ("action", "floods:deepArgumentApart"),
    ("query", "escapes:throwsOddly"),
];

/// Ways out: what each may get hold of is "", a refusal, or an empty list.
const ESCAPES: [(&str, &str); 21] = [
    ("query", "escapes:constructorOfHostFunction"),
    ("query", "escapes:constructorOfHostError"),
    ("action", "escapes:denoGlobal"),
    ("action", "escapes:denoCore"),
    ("action", "escapes:processBinding"),
    ("action", "escapes:hostEnvironment"),
    ("action", "escapes:importNodeFs"),
    ("action", "escapes:importData"),
    ("action", "escapes:importFile"),
    ("action", "escapes:importHttp"),
    ("action", "escapes:importSystemModule"),
    ("query", "escapes:importInQuery"),
    ("action", "escapes:requireModule"),
    ("query", "escapes:sharedMemory"),
    ("query", "escapes:fetchInQuery"),
    ("query", "escapes:timerInQuery"),
    ("query", "escapes:randomnessInQuery"),
    ("action", "escapes:fetchFile"),
    ("action", "escapes:sockets"),
    ("query", "escapes:systemTables"),
    ("query", "escapes:gcAndDebugger"),
];

/// A server with small budgets and the bombs in two tenants.
fn world() -> World {
    let options = Options::new().args(&[
        "--runtime-user-cpu-ms",
        "100",
        "--runtime-timeout-secs",
        "5",
    ]);
    let world = World::started(App::named("bombs"), options);
    world.app.deployed(&world.server, "demo");
    world.client().create_tenant("other");
    world.app.deployed(&world.server, "other");
    world
}

/// Runs `work` while another tenant calls without a pause; none of its calls may fail.
fn beside_another_tenant(world: &World, work: impl FnOnce()) {
    let (other, stop, calls) = (
        world.server.anonymous(),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let body = json!({"path": "calm:ping", "args": {}});
                let outcome = other
                    .post("/convex/other/api/query", &body)
                    .expect(200)
                    .json();
                assert_eq!(outcome["value"], "pong", "{outcome}");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        calling.join().unwrap();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(calls.load(Ordering::Relaxed) > 0);
}

fn each(world: &World, kinds: &[(&str, &str)], check: impl Fn(&str, &Json)) {
    let pid = world.server.pid();
    beside_another_tenant(world, || {
        for (kind, path) in kinds {
            for _ in 0..RUNS {
                let args = match *path {
                    "escapes:throwsOddly" => json!({"kind": "proxy"}),
                    "floods:hugeArgument" => json!({"megabytes": 20}),
                    _ => json!({}),
                };
                let outcome = world.call(kind, path, &args);
                check(path, &outcome.expect(200).json());
                // Its tenant is served, by the process that was there before.
                assert_eq!(
                    world.value("query", "calm:ping", &json!({})),
                    "pong",
                    "after {path}"
                );
                assert_eq!(world.server.pid(), pid);
            }
        }
    });
    assert_eq!(world.value("query", "calm:count", &json!({})), json!(0.0));
    world.client().check_consistency("demo");
}

#[test]
fn what_never_ends_is_ended() {
    each(&world(), &ENDLESS, |path, outcome| {
        assert_eq!(outcome["status"], "error", "{path}: {outcome}");
    });
}

#[test]
fn what_floods_the_host_is_refused() {
    each(&world(), &FLOODS, |path, outcome| {
        assert_eq!(outcome["status"], "error", "{path}: {outcome}");
        let text = outcome["errorMessage"].as_str().unwrap();
        assert!(
            text.len() < 1 << 20,
            "{path}: an error of {} bytes",
            text.len()
        );
    });
}

#[test]
fn no_way_leads_out() {
    each(&world(), &ESCAPES, |path, outcome| {
        let value = &outcome["value"];
        let nothing = *value == "" || *value == json!([]);
        let refused = value
            .as_str()
            .is_some_and(|text| text.starts_with("refused: "));
        assert!(
            outcome["status"] == "success" && (nothing || refused),
            "{path}: {outcome}"
        );
    });
}

#[test]
fn nothing_is_kept_from_one_call_for_the_next() {
    let world = world();
    for _ in 0..RUNS {
        assert_eq!(
            world.value("query", "escapes:keepState", &json!({"set": true})),
            json!([])
        );
        world.call("query", "escapes:prototypePollution", &json!({}));
        world.call("mutation", "escapes:pollutedSyscalls", &json!({}));
        assert_eq!(
            world.value("query", "escapes:keepState", &json!({"set": false})),
            json!([])
        );
        assert_eq!(world.value("query", "calm:ping", &json!({})), "pong");
        assert_eq!(world.value("action", "calm:relay", &json!({})), "pong");
    }
    for salt in 0..5 {
        let args = json!({"salt": salt});
        assert_eq!(
            world.value("query", "escapes:moduleState", &args),
            json!(1.0)
        );
    }
    assert_eq!(world.value("query", "calm:count", &json!({})), json!(0.0));
}
