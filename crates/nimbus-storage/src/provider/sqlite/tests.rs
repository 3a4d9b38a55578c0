//! Tests of what only the SQLite provider has: its files, their modes and format, crashes in
//! the middle of creating and deleting, full disks, checkpoints and the end of a store.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::*;
use crate::provider::files::small_disk::SmallDisk;
use crate::provider::{
    Batch, CommitError, Direction, HEAD_KEY, Head, KeyRange, Keyspace, Row, StoreStats,
};

static PAGE_LIMITS: Mutex<Option<HashMap<PathBuf, u32>>> = Mutex::new(None);

/// Applies to a write connection what [`set_page_limit`] asked for its file.
pub(super) fn limit_pages(conn: &Connection, path: &Path) {
    let limits = PAGE_LIMITS.lock().unwrap();
    if let Some(pages) = limits.as_ref().and_then(|l| l.get(path)) {
        conn.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .unwrap();
    }
}

fn set_page_limit(path: &Path, pages: u32) {
    PAGE_LIMITS
        .lock()
        .unwrap()
        .get_or_insert_default()
        .insert(path.to_owned(), pages);
}

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn control(&self) -> ControlDb {
        ControlDb::open(self.dir.path()).unwrap()
    }

    fn provider(&self) -> SqliteProvider {
        self.with(|_| ())
    }

    fn with(&self, change: impl FnOnce(&mut SqliteOptions)) -> SqliteProvider {
        let mut options = SqliteOptions::new(self.dir.path());
        change(&mut options);
        SqliteProvider::open(options, Arc::new(self.control())).unwrap()
    }

    /// Names in the directory, without the control database.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|n| !n.starts_with("nimbus-control"));
        names.sort();
        names
    }
}

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn next(head: Head) -> Head {
    Head {
        sequence: head.sequence + 1,
        timestamp: head.timestamp + 1,
        hash: [7; 32],
    }
}

fn batch(head: Head, rows: &[(Keyspace, &[u8], &[u8])]) -> Batch {
    let row = |(keyspace, key, value): &(Keyspace, &[u8], &[u8])| {
        (
            (*keyspace, key.to_vec()),
            Some(bytes::Bytes::copy_from_slice(value)),
        )
    };
    Batch {
        head,
        writes: rows.iter().map(row).collect::<BTreeMap<_, _>>(),
    }
}

async fn put(store: &Arc<dyn TenantStore>, head: Head, key: &[u8], value: &[u8]) -> Head {
    let new = next(head);
    store
        .commit(head, batch(new, &[(Keyspace::Docs, key, value)]))
        .await
        .unwrap();
    new
}

async fn rows(store: &Arc<dyn TenantStore>) -> Vec<Row> {
    let mut snapshot = store.snapshot().await.unwrap();
    let all = KeyRange::all();
    snapshot
        .scan(Keyspace::Docs, &all, Direction::Forward, 100)
        .await
        .unwrap()
}

/// Waits until the counters are as asked; fails the test after ten seconds.
async fn until(store: &Arc<dyn TenantStore>, what: &str, ready: impl Fn(&StoreStats) -> bool) {
    let begin = Instant::now();
    while !ready(&store.stats()) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{what}: {:?}",
            store.stats()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

fn is_corrupt<T>(result: &ProviderResult<T>) -> bool {
    matches!(result, Err(ProviderError::Corrupt { .. }))
}

#[tokio::test]
async fn files_have_the_documented_names_and_modes() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("demo")).await.unwrap();
    assert_eq!(home.names(), ["demo.sqlite3"]);
    let store = provider.open(&tenant("demo")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    assert_eq!(
        home.names(),
        ["demo.sqlite3", "demo.sqlite3-shm", "demo.sqlite3-wal"]
    );
    for name in home.names() {
        assert_eq!(mode(&home.path(&name)), 0o600, "{name}");
    }
    let owned: Vec<_> = provider
        .owned(&tenant("demo"))
        .iter()
        .map(PathBuf::from)
        .collect();
    assert_eq!(owned.len(), 3);
    assert!(owned.contains(&home.path("demo.sqlite3")));
    store.close().await.unwrap();
    assert_eq!(home.names(), ["demo.sqlite3"], "closing leaves one file");
}

#[tokio::test]
async fn an_operator_can_read_the_file() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("demo")).await.unwrap();
    let store = provider.open(&tenant("demo")).await.unwrap();
    let body = br#"{"title":"caf\u00e9"}"#;
    let all = batch(
        next(Head::EMPTY),
        &[
            (Keyspace::Docs, b"\x00\x01", body),
            (Keyspace::Docs, b"\x00\x02", b"\xff not text"),
            (Keyspace::Meta, b"table/1", b"{}"),
            (Keyspace::Log, b"1", b"{}"),
        ],
    );
    store.commit(Head::EMPTY, all).await.unwrap();
    store.close().await.unwrap();

    let conn = Connection::open(home.path("demo.sqlite3")).unwrap();
    let one = |sql: &str| -> String { conn.query_row(sql, (), |r| r.get(0)).unwrap() };
    assert_eq!(
        one("SELECT value FROM docs WHERE key = x'0001'").as_bytes(),
        body
    );
    assert_eq!(
        one("SELECT group_concat(typeof(value)) FROM (SELECT value FROM docs ORDER BY key)"),
        "text,blob"
    );
    assert_eq!(
        one("SELECT group_concat(DISTINCT typeof(key)) FROM docs"),
        "blob"
    );
    assert_eq!(one("SELECT typeof(value) FROM log"), "blob");
    assert_eq!(
        one("SELECT typeof(value) FROM meta WHERE key = CAST('table/1' AS BLOB)"),
        "text"
    );
    assert_eq!(
        one("SELECT value FROM meta WHERE key = CAST('format' AS BLOB)"),
        r#"{"format":"nimbus-tenant","version":1}"#
    );
    let head: Vec<u8> = conn
        .query_row(
            "SELECT value FROM meta WHERE key = CAST('head' AS BLOB)",
            (),
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(Head::decode(&head), Some(next(Head::EMPTY)));
    assert_eq!(one("PRAGMA journal_mode"), "wal");
    assert_eq!(one("PRAGMA integrity_check"), "ok");
    let id: i32 = conn
        .query_row("PRAGMA application_id", (), |r| r.get(0))
        .unwrap();
    assert_eq!(&id.to_be_bytes(), b"Nimb");
    let without_rowid = "SELECT group_concat(name) FROM (SELECT name FROM pragma_table_list \
                         WHERE wr AND schema = 'main' ORDER BY name)";
    assert_eq!(one(without_rowid), "index,jobs,meta");
}

#[tokio::test]
async fn full_and_relaxed_durability_count_syncs() {
    for (durability, per_commit) in [(Durability::Full, 1), (Durability::Relaxed, 0)] {
        let home = Home::new();
        let provider = home.with(|o| o.durability = durability);
        provider.create(&tenant("t")).await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        let mut head = Head::EMPTY;
        for n in 0..5_u8 {
            head = put(&store, head, &[n], b"v").await;
        }
        let stats = store.stats();
        assert_eq!(
            (stats.commits, stats.commit_syncs),
            (5, 5 * per_commit),
            "{durability:?}"
        );
        store.close().await.unwrap();
    }
}

/// Every state that a crash can leave a creation in.
#[tokio::test]
async fn an_interrupted_creation_is_undone() {
    let complete = |home: &Home| {
        let path = home.path("t.sqlite3");
        drop(files::create_new(&path).unwrap());
        connection::create(&path).unwrap();
    };
    type Step<'a> = (&'a str, &'a dyn Fn(&Home));
    let steps: [Step<'_>; 6] = [
        ("nothing made", &|_| ()),
        ("file made", &|h| {
            drop(files::create_new(&h.path("t.sqlite3")).unwrap())
        }),
        ("file filled", &complete),
        ("file torn", &|h| {
            complete(h);
            let path = h.path("t.sqlite3");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[4096..].fill(0);
            std::fs::write(path, bytes).unwrap();
        }),
        ("header torn", &|h| {
            std::fs::write(h.path("t.sqlite3"), [0; 8192]).unwrap()
        }),
        ("log left", &|h| {
            std::fs::write(h.path("t.sqlite3"), []).unwrap();
            std::fs::write(h.path("t.sqlite3-wal"), [1; 40_000]).unwrap();
            std::fs::write(h.path("t.sqlite3-shm"), [0; 32_768]).unwrap();
        }),
    ];
    for (what, step) in steps {
        let home = Home::new();
        let entered =
            home.control()
                .register(&tenant("t"), NAME, Distinct::Exactly, TenantState::Creating);
        entered.unwrap();
        step(&home);
        let provider = home.provider();
        assert_eq!(home.names(), Vec::<String>::new(), "{what}");
        assert_eq!(provider.inner.control.entries(), [], "{what}");
        // The name is free again.
        provider.create(&tenant("t")).await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        put(&store, Head::EMPTY, b"k", b"v").await;
        store.close().await.unwrap();
    }
}

/// What was put under the name since, by someone else, is not ours to remove.
#[tokio::test]
async fn undoing_a_creation_spares_other_peoples_files() {
    let donor = Home::new();
    let provider = donor.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"precious").await;
    store.close().await.unwrap();

    let home = Home::new();
    let enter = |home: &Home| {
        let control = home.control();
        control
            .register(&tenant("t"), NAME, Distinct::Exactly, TenantState::Creating)
            .unwrap();
    };
    enter(&home);
    std::fs::copy(donor.path("t.sqlite3"), home.path("t.sqlite3")).unwrap();
    let provider = home.provider();
    assert_eq!(provider.unregistered().await.unwrap(), [tenant("t")]);
    assert_eq!(provider.list().await.unwrap(), []);
    provider.adopt(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(&rows(&store).await[0].1[..], b"precious");
    store.close().await.unwrap();

    let home = Home::new();
    enter(&home);
    std::fs::write(home.path("t.sqlite3"), vec![b'x'; 300_000]).unwrap();
    home.provider();
    assert_eq!(
        std::fs::read(home.path("t.sqlite3")).unwrap().len(),
        300_000
    );

    let home = Home::new();
    enter(&home);
    symlink(donor.path("t.sqlite3"), home.path("t.sqlite3")).unwrap();
    home.provider();
    assert_eq!(home.names(), ["t.sqlite3"]);
    assert!(donor.path("t.sqlite3").exists());
}

#[tokio::test]
async fn an_interrupted_deletion_is_finished() {
    for left in [
        &[
            "t.sqlite3",
            "t.sqlite3-wal",
            "t.sqlite3-shm",
            "t.sqlite3-journal",
        ][..],
        &["t.sqlite3-wal"],
        &[],
    ] {
        let home = Home::new();
        let provider = home.provider();
        provider.create(&tenant("t")).await.unwrap();
        provider.create(&tenant("other")).await.unwrap();
        drop(provider);
        home.control()
            .put_state(&tenant("t"), TenantState::Deleting)
            .unwrap();
        std::fs::remove_file(home.path("t.sqlite3")).unwrap();
        for name in left {
            std::fs::write(home.path(name), "x").unwrap();
        }
        let provider = home.provider();
        assert_eq!(home.names(), ["other.sqlite3"], "{left:?}");
        assert_eq!(provider.list().await.unwrap(), [tenant("other")]);
        provider.create(&tenant("t")).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_deletion_can_be_tried_again() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    // A directory in the way cannot be unlinked.
    std::fs::create_dir(home.path("t.sqlite3-wal")).unwrap();
    let e = provider.delete(&tenant("t")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
    assert!(!provider.contains(&tenant("t")).await.unwrap());
    std::fs::remove_dir(home.path("t.sqlite3-wal")).unwrap();
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(home.names(), Vec::<String>::new());
    assert_eq!(provider.inner.control.entries(), []);
}

#[tokio::test]
async fn deleting_a_link_spares_its_target() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let target = home.path("target");
    std::fs::rename(home.path("t.sqlite3"), &target).unwrap();
    symlink(&target, home.path("t.sqlite3")).unwrap();
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(home.names(), ["target"]);
}

#[tokio::test]
async fn creating_never_touches_what_is_there() {
    for name in [
        "t.sqlite3",
        "t.sqlite3-wal",
        "t.sqlite3-shm",
        "t.sqlite3-journal",
    ] {
        let home = Home::new();
        let provider = home.provider();
        std::fs::write(home.path(name), "precious").unwrap();
        let e = provider.create(&tenant("t")).await.unwrap_err();
        assert!(
            matches!(e, ProviderError::Unregistered { .. }),
            "{name}: {e:?}"
        );
        assert!(e.to_string().contains("nimbus tenants adopt t"), "{e}");
        assert_eq!(
            std::fs::read_to_string(home.path(name)).unwrap(),
            "precious"
        );
        assert_eq!(home.names(), [name]);
        assert_eq!(provider.inner.control.entries(), []);

        // A link, even to nowhere, counts as something.
        std::fs::remove_file(home.path(name)).unwrap();
        symlink(home.path("elsewhere"), home.path(name)).unwrap();
        let e = provider.create(&tenant("t")).await.unwrap_err();
        assert!(
            matches!(e, ProviderError::Unregistered { .. }),
            "{name}: {e:?}"
        );
        assert!(!home.path("elsewhere").exists());
    }
}

#[tokio::test]
async fn opening_refuses_what_is_not_a_tenant_file() {
    let home = Home::new();
    let provider = home.provider();
    let path = home.path("t.sqlite3");
    provider.create(&tenant("t")).await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let restore = || {
        for suffix in SIDECARS {
            let _ = std::fs::remove_file(sidecar(&path, suffix));
        }
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &good).unwrap();
    };
    let sql = |text: &'static str| {
        move |path: &Path| Connection::open(path).unwrap().execute_batch(text).unwrap()
    };
    let replace = |bytes: Vec<u8>| move |path: &Path| std::fs::write(path, &bytes).unwrap();
    type Damage<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
    let damages: Vec<Damage<'_>> = vec![
        ("missing", Box::new(|p| std::fs::remove_file(p).unwrap())),
        (
            "not a regular file",
            Box::new(|p| {
                std::fs::rename(p, home.path("moved")).unwrap();
                symlink(home.path("moved"), p).unwrap();
            }),
        ),
        (
            "damaged",
            Box::new(replace(b"This is no database at all.".repeat(1000))),
        ),
        ("damaged", Box::new(replace(Vec::new()))),
        (
            "damaged",
            Box::new(replace(good[..good.len() / 2].to_vec())),
        ),
        ("application id", Box::new(sql("PRAGMA application_id = 5"))),
        (
            "version 2",
            Box::new(sql(
                r#"UPDATE meta SET value = '{"format":"nimbus-tenant","version":2}' WHERE key = CAST('format' AS BLOB)"#,
            )),
        ),
        (
            "format row is missing",
            Box::new(sql("DELETE FROM meta WHERE key = CAST('format' AS BLOB)")),
        ),
        (
            "unreadable",
            Box::new(sql(
                "UPDATE meta SET value = '{' WHERE key = CAST('format' AS BLOB)",
            )),
        ),
        (
            "head row is missing",
            Box::new(sql("DELETE FROM meta WHERE key = CAST('head' AS BLOB)")),
        ),
        (
            "head row has 3 bytes",
            Box::new(sql(
                "UPDATE meta SET value = x'010203' WHERE key = CAST('head' AS BLOB)",
            )),
        ),
        (
            "foreign trigger",
            Box::new(sql(
                "CREATE TRIGGER evil AFTER INSERT ON docs BEGIN DELETE FROM log; END",
            )),
        ),
        (
            "foreign view",
            Box::new(sql("CREATE VIEW evil AS SELECT 1")),
        ),
        ("foreign table", Box::new(sql("CREATE TABLE evil (x)"))),
        ("6 of 7 tables", Box::new(sql("DROP TABLE files"))),
        (
            "foreign table `files`",
            Box::new(sql("DROP TABLE files; CREATE TABLE files (key, value)")),
        ),
    ];
    for (text, damage) in damages {
        restore();
        damage(&path);
        let opened = provider.open(&tenant("t")).await.map(drop);
        assert!(is_corrupt(&opened), "{text}: {opened:?}");
        let shown = opened.unwrap_err().to_string();
        assert!(shown.contains(text), "expected `{text}` in: {shown}");
        assert!(shown.contains("t.sqlite3"), "{shown}");
    }
    restore();
    // What an operator's ANALYZE leaves is no reason to refuse.
    sql("ANALYZE")(&path);
    provider
        .open(&tenant("t"))
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
}

#[tokio::test]
async fn damage_inside_the_file_is_reported() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let many: Vec<[u8; 4]> = (0..2000_u32).map(u32::to_be_bytes).collect();
    let list: Vec<_> = many
        .iter()
        .map(|k| (Keyspace::Docs, &k[..], &[b'x'; 500][..]))
        .collect();
    store
        .commit(Head::EMPTY, batch(next(Head::EMPTY), &list))
        .await
        .unwrap();
    store.close().await.unwrap();
    let path = home.path("t.sqlite3");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    for page in 0..20 {
        bytes[middle + page * 4096..][..4096].fill(0xa5);
    }
    std::fs::write(&path, bytes).unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut snapshot = store.snapshot().await.unwrap();
    let scanned = snapshot
        .scan(Keyspace::Docs, &KeyRange::all(), Direction::Forward, 5000)
        .await;
    assert!(is_corrupt(&scanned), "{:?}", scanned.map(|r| r.len()));
    drop(snapshot);
    store.close().await.unwrap();
    // And a file like that is not adopted.
    provider.inner.control.remove(&tenant("t")).unwrap();
    assert!(is_corrupt(&provider.adopt(&tenant("t")).await));
    assert!(!provider.contains(&tenant("t")).await.unwrap());
}

#[tokio::test]
async fn adopting_takes_in_a_file_with_its_log() {
    let donor = Home::new();
    let provider = donor.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"in the log").await;

    // As after a kill: the newest commit is in the log only.
    let home = Home::new();
    for suffix in ["", "-wal"] {
        let name = format!("t.sqlite3{suffix}");
        std::fs::copy(donor.path(&name), home.path(&name)).unwrap();
    }
    std::fs::set_permissions(
        home.path("t.sqlite3"),
        std::fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    store.close().await.unwrap();
    for junk in [
        "_nimbus.sqlite3",
        "a b.sqlite3",
        "x.sqlite",
        ".sqlite3",
        "y.redb",
    ] {
        std::fs::write(home.path(junk), "").unwrap();
    }
    let provider = home.provider();
    assert_eq!(provider.unregistered().await.unwrap(), [tenant("t")]);
    provider.adopt(&tenant("t")).await.unwrap();
    assert_eq!(provider.unregistered().await.unwrap(), []);
    assert_eq!(mode(&home.path("t.sqlite3")), 0o600);
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().head().await.unwrap(), head);
    assert_eq!(&rows(&store).await[0].1[..], b"in the log");
    store.close().await.unwrap();

    let home = Home::new();
    let provider = home.provider();
    symlink(donor.path("t.sqlite3"), home.path("t.sqlite3")).unwrap();
    assert!(is_corrupt(&provider.adopt(&tenant("t")).await));
    std::fs::write(home.path("u.sqlite3"), "garbage").unwrap();
    assert!(is_corrupt(&provider.adopt(&tenant("u")).await));
    assert_eq!(
        std::fs::read_to_string(home.path("u.sqlite3")).unwrap(),
        "garbage"
    );
}

/// What a crash left in the log is in the file itself before the store answers from it.
#[tokio::test]
async fn a_left_over_log_is_copied_when_the_store_opens() {
    let donor = Home::new();
    let provider = donor.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    let home = Home::new();
    for name in ["nimbus-control.db", "t.sqlite3", "t.sqlite3-wal"] {
        std::fs::copy(donor.path(name), home.path(name)).unwrap();
    }
    store.close().await.unwrap();
    let store = home.provider().open(&tenant("t")).await.unwrap();
    // The main file alone has the commit.
    let alone = Home::new();
    std::fs::copy(home.path("t.sqlite3"), alone.path("t.sqlite3")).unwrap();
    let conn = Connection::open(alone.path("t.sqlite3")).unwrap();
    let found = schema::read_head(&conn, Path::new("alone")).unwrap();
    assert_eq!(found, head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn clashing_names_are_refused_where_case_is_ignored() {
    let home = Home::new();
    let provider = home.with(|o| o.case_insensitive = Some(true));
    provider.create(&tenant("a-b")).await.unwrap();
    let e = provider.create(&tenant("A-B")).await.unwrap_err();
    assert!(
        matches!(&e, ProviderError::NameClash { existing, .. } if *existing == tenant("a-b")),
        "{e:?}"
    );
    provider.create(&tenant("a_b")).await.unwrap();
    drop(provider);
    let provider = home.with(|o| o.case_insensitive = Some(false));
    provider.create(&tenant("A-B")).await.unwrap();
}

#[tokio::test]
async fn a_full_file_refuses_commits_and_recovers() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    set_page_limit(&home.path("t.sqlite3"), 100);
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    for _ in 0..2 {
        let big = batch(next(head), &[(Keyspace::Docs, b"big", &[1; 500_000])]);
        let e = store.commit(head, big).await.unwrap_err();
        assert!(matches!(e, CommitError::Full { .. }), "{e:?}");
        assert!(e.to_string().contains("t.sqlite3"), "{e}");
        assert_eq!(rows(&store).await.len(), 1, "nothing of it was written");
    }
    let head = put(&store, head, b"small", b"v").await;
    assert_eq!(store.snapshot().await.unwrap().head().await.unwrap(), head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_creation_without_space_leaves_nothing() {
    let home = Home::new();
    let provider = home.provider();
    set_page_limit(&home.path("t.sqlite3"), 3);
    let e = provider.create(&tenant("t")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
    assert_eq!(home.names(), Vec::<String>::new());
    assert_eq!(provider.inner.control.entries(), []);
    set_page_limit(&home.path("t.sqlite3"), 1000);
    provider.create(&tenant("t")).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_survived_without_restart() {
    let Some(disk) = SmallDisk::new(16 << 20) else {
        return;
    };
    let control = Arc::new(ControlDb::open(disk.path()).unwrap());
    let provider = SqliteProvider::open(SqliteOptions::new(disk.path()), control).unwrap();
    provider.create(&tenant("t")).await.unwrap();
    provider.health().await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = put(&store, Head::EMPTY, b"first", b"v").await;
    let ballast = disk.fill();
    let e = provider.health().await.unwrap_err();
    assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
    let mut refused = 0;
    for n in 0..1000_u32 {
        let new = next(head);
        let value = [b'x'; 50_000];
        let rows = batch(new, &[(Keyspace::Docs, &n.to_be_bytes(), &value)]);
        match store.commit(head, rows).await {
            Ok(()) => head = new,
            Err(CommitError::Full { .. }) => {
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(refused, 3, "the disk never was full");
    // Reads go on, and see no trace of what was refused.
    let mut snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.head().await.unwrap(), head);
    drop(snapshot);
    let e = provider.create(&tenant("u")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Full { .. }), "{e:?}");
    drop(ballast);
    put(&store, head, b"after", b"v").await;
    provider.create(&tenant("u")).await.unwrap();
    provider.health().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_log_is_checkpointed_and_cut_back() {
    let home = Home::new();
    let provider = home.with(|o| o.durability = Durability::Relaxed);
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let mut head = Head::EMPTY;
    // Unlike the one before, since SQLite writes no page that stays the same.
    let value = |n: u8| vec![n; 1 << 20];
    let mut n = 0;
    for _ in 0..3 {
        n += 1;
        head = put(&store, head, &[n % 4], &value(n)).await;
    }
    assert_eq!(store.stats().checkpoints, 0, "below 4 MiB");
    // A snapshot keeps the log from starting over.
    let snapshot = store.snapshot().await.unwrap();
    for _ in 0..30 {
        n += 1;
        head = put(&store, head, &[n % 4], &value(n)).await;
    }
    until(&store, "a checkpoint past 4 MiB", |s| s.checkpoints >= 1).await;
    let grown = store.stats().wal_bytes;
    assert!(grown > 25 << 20, "{grown}");
    assert_eq!(store.stats().open_snapshots, 1);
    until(&store, "the snapshot gets older", |s| {
        s.oldest_snapshot_ms > 0
    })
    .await;
    drop(snapshot);
    // The log starts over at the first commit after a checkpoint that copied all of it, and is
    // then cut back. How many commits that takes is up to the threads.
    let begin = Instant::now();
    while store.stats().wal_bytes > 17 << 20 {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{grown} before, {:?}",
            store.stats()
        );
        n = n.wrapping_add(1);
        head = put(&store, head, &[n % 4], &value(n)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close().await.unwrap();
    assert_eq!(store.stats().wal_bytes, 0);
    assert_eq!(home.names(), ["t.sqlite3"]);
    let store = provider.open(&tenant("t")).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().head().await.unwrap(), head);
    store.close().await.unwrap();
}

#[tokio::test]
async fn readers_are_limited_and_waiting_ends() {
    let home = Home::new();
    let provider = home.with(|o| o.readers = 2);
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let first = store.snapshot().await.unwrap();
    let second = store.snapshot().await.unwrap();
    let e = store.snapshot().await.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Busy { .. }), "{e:?}");
    // A commit needs no reader.
    put(&store, Head::EMPTY, b"k", b"v").await;
    let (third, ()) = tokio::join!(store.snapshot(), async { drop(first) });
    drop((second, third.unwrap()));
    store.close().await.unwrap();
}

#[tokio::test]
async fn closing_ends_snapshots_that_stay_open() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    let mut kept = store.snapshot().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(home.names(), ["t.sqlite3"], "no file is held");
    let closed = |e: &ProviderError| matches!(e, ProviderError::Closed);
    assert!(closed(&kept.head().await.unwrap_err()));
    assert!(closed(
        &kept.get_many(Keyspace::Docs, &[b"k"]).await.unwrap_err()
    ));
    let all = KeyRange::all();
    let scanned = kept.scan(Keyspace::Docs, &all, Direction::Forward, 1).await;
    assert!(closed(&scanned.unwrap_err()));
    drop(kept);
    store.close().await.unwrap();
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(home.names(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_store_lets_go_of_its_files() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    drop(store);
    let begin = Instant::now();
    while home.names() != ["t.sqlite3"] {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            home.names()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn another_writer_is_a_passing_failure() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let conn = Connection::open(home.path("t.sqlite3")).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let e = store
        .commit(Head::EMPTY, batch(next(Head::EMPTY), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::Transient { .. }), "{e:?}");
    conn.execute_batch("ROLLBACK").unwrap();
    put(&store, Head::EMPTY, b"k", b"v").await;
    store.close().await.unwrap();
}

/// After an unknown outcome the store commits no more, still reads, and opens again.
#[tokio::test]
async fn an_unknown_outcome_ends_commits_until_reopened() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    let head = put(&store, Head::EMPTY, b"k", b"v").await;
    let conn = Connection::open(home.path("t.sqlite3")).unwrap();
    let set_head = |value: &[u8]| {
        conn.execute(
            "UPDATE meta SET value = ?1 WHERE key = ?2",
            (value, HEAD_KEY),
        )
        .unwrap();
    };
    set_head(b"broken");
    let e = store
        .commit(head, batch(next(head), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::OutcomeUnknown { .. }), "{e:?}");
    set_head(&head.encode());
    let e = store
        .commit(head, batch(next(head), &[]))
        .await
        .unwrap_err();
    assert!(matches!(e, CommitError::Closed), "{e:?}");
    assert_eq!(rows(&store).await.len(), 1);
    store.close().await.unwrap();
    drop(conn);
    let store = provider.open(&tenant("t")).await.unwrap();
    put(&store, head, b"k2", b"v").await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_providers_own_rows_cannot_be_written() {
    let home = Home::new();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    let store = provider.open(&tenant("t")).await.unwrap();
    for key in [HEAD_KEY, schema::FORMAT_KEY] {
        for value in [Some("x".into()), None] {
            let writes = [((Keyspace::Meta, key.to_vec()), value)].into();
            let e = store.commit(
                Head::EMPTY,
                Batch {
                    head: next(Head::EMPTY),
                    writes,
                },
            );
            let e = e.await.unwrap_err();
            assert!(matches!(e, CommitError::Refused { .. }), "{e:?}");
        }
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn readers_cannot_write() {
    let home = Home::new();
    home.provider().create(&tenant("t")).await.unwrap();
    let conn = connection::reader(&home.path("t.sqlite3")).unwrap();
    let e = conn.execute("DELETE FROM meta", ()).unwrap_err();
    assert!(e.to_string().contains("readonly"), "{e}");
}

#[tokio::test]
async fn a_tenant_of_another_provider_is_not_ours() {
    let home = Home::new();
    let control = home.control();
    let ready = TenantState::Ready;
    control
        .register(&tenant("theirs"), "redb", Distinct::Exactly, ready)
        .unwrap();
    let halfway = [
        ("made", TenantState::Creating),
        ("gone", TenantState::Deleting),
    ];
    for (id, state) in halfway {
        control
            .register(&tenant(id), "redb", Distinct::Exactly, state)
            .unwrap();
    }
    drop(control);
    let provider = home.provider();
    assert_eq!(provider.list().await.unwrap(), []);
    let e = provider.delete(&tenant("theirs")).await.unwrap_err();
    assert!(matches!(e, ProviderError::NotFound { .. }), "{e:?}");
    let e = provider.create(&tenant("theirs")).await.unwrap_err();
    assert!(matches!(e, ProviderError::AlreadyExists { .. }), "{e:?}");
    assert_eq!(home.names(), Vec::<String>::new());
    assert_eq!(provider.inner.control.entries().len(), 3);
}

#[test]
fn a_missing_data_directory_is_an_error() {
    let home = Home::new();
    let options = SqliteOptions::new(home.path("missing"));
    let e = SqliteProvider::open(options, Arc::new(home.control()))
        .map(drop)
        .unwrap_err();
    assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
}
