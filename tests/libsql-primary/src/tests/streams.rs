//! Streams: batons, expiry, and the one lock of writers.

use serde_json::{Value as Json, json};

use super::{NEVER, SOON, World, code, execute, rows, world};

/// A stream whose transaction has written `k`.
fn writer(world: &World, k: u32) -> String {
    world.rows("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY)");
    let insert = format!("INSERT INTO t VALUES ({k})");
    let (baton, results) = world.pipe(
        None,
        json!([execute(json!("BEGIN")), execute(json!(insert))]),
    );
    assert_eq!(results[1]["type"], "ok", "{results}");
    baton.unwrap()
}

fn commit() -> Json {
    json!([execute(json!("COMMIT")), { "type": "close" }])
}

#[test]
fn a_baton_is_good_once() {
    let world = world(|_| {});
    let (first, _) = world.pipe(None, json!([]));
    let first = first.unwrap();
    let (second, _) = world.pipe(Some(&first), json!([]));
    let second = second.unwrap();
    assert_ne!(first, second);
    assert_eq!(
        world.refused(&first, json!([])),
        (400, "BATON_REUSED".into())
    );
    // A guess does not end the stream of the one who has the baton.
    let (third, _) = world.pipe(Some(&second), json!([{ "type": "close" }]));
    assert_eq!(third, None);
    for gone in [&*second, "", "AAAA", "no baton"] {
        assert_eq!(
            world.refused(gone, json!([])),
            (400, "BATON_INVALID".into()),
            "{gone}"
        );
    }
}

#[test]
fn a_baton_belongs_to_its_namespace() {
    let world = world(|_| {});
    assert_eq!(world.create("other").0, 200);
    let (baton, _) = world.pipe(None, json!([]));
    let body = json!({ "baton": baton, "requests": [] });
    let (status, answer) = world.post("/v3/pipeline", &[("x-namespace", "other")], &body);
    assert_eq!((status, &answer["code"]), (400, &json!("BATON_INVALID")));
    assert_eq!(world.post("/v3/pipeline", &[], &body).0, 200);
}

#[test]
fn nothing_follows_a_close() {
    let world = world(|_| {});
    let (baton, _) = world.pipe(None, json!([]));
    let after = json!([{ "type": "close" }, execute(json!("SELECT 1"))]);
    assert_eq!(
        world.refused(&baton.unwrap(), after),
        (400, "STREAM_CLOSED".into())
    );
}

#[test]
fn a_stream_that_idles_ends_with_its_transaction() {
    let world = world(|options| options.idle_timeout = SOON);
    let baton = writer(&world, 1);
    world.until("expired", || world.primary.open_streams() == 0);
    assert_eq!(
        world.refused(&baton, commit()),
        (400, "STREAM_EXPIRED".into())
    );
    // The lock is free as well, though it would be held forever.
    world.rows("INSERT INTO t VALUES (2)");
    assert_eq!(world.rows("SELECT k FROM t"), json!([["2"]]));
}

#[test]
fn a_stream_in_time_goes_on() {
    let world = world(|_| {});
    let baton = writer(&world, 1);
    assert_eq!(world.rows("SELECT k FROM t"), json!([]));
    let (_, results) = world.pipe(Some(&baton), commit());
    assert_eq!(results[0]["type"], "ok");
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"]]));
}

#[test]
fn a_dropped_stream_rolls_back() {
    let world = world(|_| {});
    let baton = writer(&world, 1);
    world.pipe(Some(&baton), json!([{ "type": "close" }]));
    world.rows("INSERT INTO t VALUES (2)");
    assert_eq!(world.rows("SELECT k FROM t"), json!([["2"]]));
}

#[test]
fn a_second_writer_waits_for_the_first() {
    let world = world(|_| {});
    let baton = writer(&world, 1);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| world.rows("INSERT INTO t VALUES (2)"));
        world.until("waiting", || world.primary.waiting_writers() == 1);
        assert!(!second.is_finished());
        let (_, results) = world.pipe(Some(&baton), commit());
        assert_eq!(results[0]["type"], "ok");
        second.join().unwrap();
    });
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"], ["2"]]));
}

#[test]
fn a_writer_over_time_loses_the_lock_to_whoever_waits() {
    let world = world(|options| options.lock_timeout = SOON);
    let baton = writer(&world, 1);
    world.rows("INSERT INTO t VALUES (2)");
    // Not even COMMIT is taken for done, and the rest of that batch does not run outside of the transaction.
    let step = |sql: &str| json!({ "stmt": { "sql": sql } });
    let steps = json!([step("INSERT INTO t VALUES (3)"), step("COMMIT")]);
    let (baton, results) = world.pipe(
        Some(&baton),
        json!([
            { "type": "get_autocommit" },
            { "type": "batch", "batch": { "steps": steps } },
            execute(json!("COMMIT")),
        ]),
    );
    assert_eq!(results[0]["response"]["is_autocommit"], true);
    let errors = &results[1]["response"]["result"]["step_errors"];
    assert_eq!(errors[0]["code"], "TRANSACTION_TIMEOUT");
    assert_eq!(errors[1]["code"], "TRANSACTION_TIMEOUT");
    assert_eq!(code(&results[2]), "SQLITE_ERROR");
    // Said once; then the stream is in autocommit.
    world.pipe(
        baton.as_deref(),
        json!([execute(json!("INSERT INTO t VALUES (4)"))]),
    );
    assert_eq!(world.rows("SELECT k FROM t"), json!([["2"], ["4"]]));
}

#[test]
fn a_writer_over_time_keeps_the_lock_while_nobody_waits() {
    let world = world(|options| options.lock_timeout = std::time::Duration::ZERO);
    let baton = writer(&world, 1);
    assert_eq!(world.rows("SELECT k FROM t"), json!([]));
    let (_, results) = world.pipe(Some(&baton), commit());
    assert_eq!(results[0]["type"], "ok");
}

#[test]
fn a_reader_that_would_write_on_an_old_view_is_refused() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k INTEGER PRIMARY KEY)");
    let read = json!([execute(json!("BEGIN")), execute(json!("SELECT k FROM t"))]);
    let (baton, _) = world.pipe(None, read);
    world.rows("INSERT INTO t VALUES (1)");
    let (_, results) = world.pipe(
        baton.as_deref(),
        json!([
            execute(json!("SELECT k FROM t")),
            execute(json!("INSERT INTO t VALUES (2)")),
        ]),
    );
    assert_eq!(rows(&results[0]), json!([]));
    assert_eq!(code(&results[1]), "SQLITE_BUSY_SNAPSHOT");
    world.rows("INSERT INTO t VALUES (3)");
}

#[test]
fn streams_are_bounded() {
    let world = world(|options| {
        options.max_streams = 1;
        options.idle_timeout = NEVER;
    });
    let (baton, _) = world.pipe(None, json!([]));
    let (status, answer) = world.post("/v3/pipeline", &[], &json!({ "requests": [] }));
    assert_eq!(
        (status, &answer["error"]),
        (503, &json!("Too many open streams"))
    );
    world.pipe(baton.as_deref(), json!([{ "type": "close" }]));
    world.pipe(None, json!([]));
}
