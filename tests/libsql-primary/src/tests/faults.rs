//! The faults that tests may ask for.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{World, code, execute, world};

#[test]
fn a_stopped_primary_comes_back_with_what_it_answered() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k)");
    world.rows("INSERT INTO t VALUES (1)");
    let open = json!([
        execute(json!("BEGIN")),
        execute(json!("INSERT INTO t VALUES (2)"))
    ]);
    let (baton, _) = world.pipe(None, open);
    let health = format!("GET {}/health", world.primary.url());
    world.primary.stop();
    assert!(world.send(&health, &[], b"").is_err());
    world.primary.resume().unwrap();
    assert_eq!(world.send(&health, &[], b"").unwrap().0, 200);
    assert_eq!(
        world.refused(&baton.unwrap(), json!([])),
        (400, "BATON_INVALID".into())
    );
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"]]));
    world.rows("INSERT INTO t VALUES (3)");
}

/// Ends a namespace while one stream holds its lock and others wait for it; whether they were answered.
fn end_while_some_wait(world: &World, end: impl FnOnce()) -> Vec<bool> {
    world.rows("CREATE TABLE t (k)");
    let open = json!([
        execute(json!("BEGIN")),
        execute(json!("INSERT INTO t VALUES (1)"))
    ]);
    world.pipe(None, open);
    let call = format!("POST {}/v3/pipeline", world.primary.url());
    let insert = json!({ "requests": [execute(json!("INSERT INTO t VALUES (2)"))] }).to_string();
    let send = || world.send(&call, &[], insert.as_bytes()).is_ok();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
        world.until("waiting", || world.primary.waiting_writers() == 4);
        end();
        let answered = waiting.into_iter().map(|one| one.join().unwrap());
        answered.collect()
    })
}

#[test]
fn a_stop_does_not_wait_for_a_lock() {
    let world = world(|_| {});
    let answered = end_while_some_wait(&world, || world.primary.stop());
    assert_eq!(answered, [false; 4]);
    world.primary.resume().unwrap();
    assert_eq!(world.rows("SELECT k FROM t WHERE k = 1"), json!([]));
}

#[test]
fn a_deletion_does_not_wait_for_a_lock() {
    let world = world(|_| {});
    let answered = end_while_some_wait(&world, || {
        let deleted = world.admin("DELETE", "/v1/namespaces/default", &[], "");
        assert_eq!(deleted.0, 200);
    });
    assert_eq!(answered, [true; 4]);
    assert_eq!(world.primary.open_streams(), 0);
    assert_eq!(world.create("default").0, 200);
    world.rows("CREATE TABLE t (k)");
}

#[test]
fn refused_connections_leave_streams_alone() {
    let world = world(|_| {});
    let (baton, _) = world.pipe(None, json!([execute(json!("BEGIN"))]));
    let health = format!("GET {}/health", world.primary.url());
    world.primary.refuse_connections();
    let fresh = ureq::get(format!("{}/health", world.primary.url())).call();
    assert!(fresh.is_err());
    world.primary.resume().unwrap();
    assert_eq!(world.send(&health, &[], b"").unwrap().0, 200);
    let (_, results) = world.pipe(baton.as_deref(), json!([{ "type": "get_autocommit" }]));
    assert_eq!(results[0]["response"]["is_autocommit"], false);
}

#[test]
fn the_nth_commit_is_done_and_not_answered() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k INTEGER PRIMARY KEY)");
    let before = world.primary.faults().commits();
    world.primary.faults().cut_after_commit(2);
    world.rows("INSERT INTO t VALUES (1)");
    world.rows("SELECT 1");
    let insert = |k: u32| {
        let stmt = execute(json!(format!("INSERT INTO t VALUES ({k})")));
        let call = format!("POST {}/v3/pipeline", world.primary.url());
        let body = json!({ "requests": [stmt, { "type": "close" }] }).to_string();
        world.send(&call, &[], body.as_bytes())
    };
    assert!(insert(2).is_err());
    assert_eq!(insert(3).unwrap().0, 200);
    assert_eq!(world.primary.faults().commits() - before, 3);
    assert_eq!(world.rows("SELECT k FROM t"), json!([["1"], ["2"], ["3"]]));
}

#[test]
fn a_full_disk_fails_writes_and_their_transaction() {
    let world = world(|_| {});
    world.rows("CREATE TABLE t (k INTEGER PRIMARY KEY)");
    world.primary.faults().fail_writes(1);
    assert_eq!(world.rows("SELECT k FROM t"), json!([]));
    assert_eq!(world.code("INSERT INTO t VALUES (1)"), "SQLITE_FULL");
    let begin = json!([
        execute(json!("BEGIN IMMEDIATE")),
        execute(json!("INSERT INTO t VALUES (2)"))
    ]);
    let (baton, _) = world.pipe(None, begin);
    world.primary.faults().fail_writes(1);
    let (_, results) = world.pipe(
        baton.as_deref(),
        json!([
            execute(json!("COMMIT")),
            { "type": "get_autocommit" },
        ]),
    );
    assert_eq!(code(&results[0]), "SQLITE_FULL");
    assert_eq!(results[1]["response"]["is_autocommit"], true);
    world.rows("INSERT INTO t VALUES (3)");
    assert_eq!(world.rows("SELECT k FROM t"), json!([["3"]]));
}

#[test]
fn answers_are_delayed() {
    let world = world(|_| {});
    let delay = Duration::from_millis(30);
    world.primary.faults().delay_answers(delay);
    let start = Instant::now();
    world.rows("SELECT 1");
    assert!(start.elapsed() >= delay);
}

#[test]
fn a_primary_may_live_inside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = world(|_| {});
        world.rows("SELECT 1");
    });
}
