//! Others in the way: locks, deadlocks, sessions that are ended in the middle of a commit.

use sqlx::{AssertSqlSafe, MySqlConnection, raw_sql};

use super::*;

async fn run(conn: &mut MySqlConnection, sql: String) -> Result<(), sqlx::Error> {
    raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
}

/// A session that holds the lock on a row, as something else than Nimbus might.
async fn holding(world: &World, table: &str, key: &str) -> MySqlConnection {
    let mut conn = world.place.connect().await;
    let lock = format!("BEGIN; SELECT 1 FROM {table} WHERE `key`='{key}' FOR UPDATE");
    run(&mut conn, lock).await.unwrap();
    conn
}

/// Waits until a session waits for a lock in a statement about a database. The server shows only the first kilobyte
/// of what it was sent.
async fn someone_waits(world: &World, database: &str) -> String {
    let sql = format!(
        "SELECT CONCAT('KILL ', trx_mysql_thread_id) FROM information_schema.innodb_trx \
         WHERE trx_state='LOCK WAIT' AND trx_query LIKE '%{database}%'"
    );
    let until = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(kill) = world.place.ask(&sql).await.pop() {
            return kill;
        }
        assert!(std::time::Instant::now() < until, "nobody waits");
        // The server shows the same again to whoever asks within 100 ms of the last question.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_not_had_is_a_passing_failure() {
    let mut world = World::new();
    world.timing.lock = Duration::from_secs(1);
    let provider = world.provider().await;
    let store = fresh(&provider, "locked").await;
    let meta = format!("`{}`.`meta`", database(&provider, "locked"));
    let mut holder = holding(&world, &meta, "head").await;
    let refused = store
        .commit(Head::EMPTY, batch(next(Head::EMPTY, 1), b"k", "x"))
        .await;
    assert!(
        matches!(&refused, Err(CommitError::Transient { reason }) if reason.contains("1205")),
        "{refused:?}"
    );
    let refused = store.turn().await.err().unwrap();
    assert!(
        matches!(&refused, CommitError::Transient { reason } if reason.contains("1205")),
        "{refused:?}"
    );
    // Reads go on.
    assert_eq!(head(&store).await, Head::EMPTY);
    run(&mut holder, "ROLLBACK".into()).await.unwrap();
    put(&store, Head::EMPTY, 1, "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_deadlock_ended_is_tried_again() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "dead").await;
    let at = put(&store, Head::EMPTY, 1, "x").await;
    let name = database(&provider, "dead");
    let (docs, meta) = (format!("`{name}`.`docs`"), format!("`{name}`.`meta`"));
    let mut holder = holding(&world, &docs, "k").await;
    // The server ends the transaction that changed fewer rows.
    for n in 0..50 {
        let row = format!("INSERT INTO `{name}`.`jobs` VALUES ('{n}', '')");
        run(&mut holder, row).await.unwrap();
    }
    let commit = tokio::spawn({
        let store = store.clone();
        async move { put(&store, at, 2, "y").await }
    });
    someone_waits(&world, &name).await;
    let crossing = format!("SELECT 1 FROM {meta} WHERE `key`='head' FOR UPDATE");
    run(&mut holder, crossing).await.unwrap();
    run(&mut holder, "ROLLBACK".into()).await.unwrap();
    let new = commit.await.unwrap();
    assert_eq!(head(&store).await, new);
    assert_eq!(get(&store, b"k").await.as_deref(), Some("y"));
    assert_eq!(store.stats().commits, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_ended_in_mid_commit_is_looked_up() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "ended").await;
    let at = put(&store, Head::EMPTY, 1, "x").await;
    let name = database(&provider, "ended");
    let docs = format!("`{name}`.`docs`");
    let mut holder = holding(&world, &docs, "k").await;
    let commit = tokio::spawn({
        let store = store.clone();
        async move { put(&store, at, 2, "y").await }
    });
    let kill = someone_waits(&world, &name).await;
    world.place.run(&kill).await;
    // It is done again, and waits again.
    run(&mut holder, "ROLLBACK".into()).await.unwrap();
    let new = commit.await.unwrap();
    assert_eq!(head(&store).await, new);
    assert_eq!(store.stats().commits, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_hold_every_connection_leave_commits_alone() {
    let mut world = World::new();
    world.timing.wait = Duration::from_millis(300);
    let provider = world.provider().await;
    let store = fresh(&provider, "full").await;
    let mut held = Vec::new();
    let busy = loop {
        match store.snapshot().await {
            Ok(snapshot) => held.push(snapshot),
            Err(e) => break e,
        }
        assert!(held.len() < 20, "there is no bound");
    };
    assert!(matches!(busy, ProviderError::Busy { .. }), "{busy:?}");
    assert_eq!(held.len(), 3, "of 7 connections");
    let at = put(&store, Head::EMPTY, 1, "x").await;
    held.pop();
    soon("a free connection", async || store.snapshot().await.is_ok()).await;
    for mut snapshot in held {
        assert_eq!(snapshot.head().await.unwrap(), Head::EMPTY);
    }
    assert_eq!(head(&store).await, at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_that_are_dropped_leave_no_lock_behind() {
    let world = World::new();
    let provider = world.provider().await;
    let store = fresh(&provider, "dropped").await;
    let at = put(&store, Head::EMPTY, 1, "x").await;
    for _ in 0..20 {
        // A turn in the middle of being had, and one in the middle of a read.
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        let mut begun = store.turn();
        let _ = begun.as_mut().poll(&mut context);
        drop(begun);
        let mut turn = store.turn().await.unwrap();
        let mut read = turn.get_many(Keyspace::Docs, &[b"k"]);
        let _ = read.as_mut().poll(&mut context);
        drop(read);
        drop(turn);
    }
    let new = put(&store, at, 2, "y").await;
    assert_eq!(head(&store).await, new);
    assert_eq!(store.stats().open_snapshots, 0);
}
