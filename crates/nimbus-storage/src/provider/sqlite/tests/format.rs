//! Tests of the tenant file itself: names, modes, what an operator can read in it, and which
//! files are refused.

use super::*;

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
async fn opening_refuses_what_is_not_a_tenant_file() {
    let home = Home::new();
    let provider = home.provider();
    let path = home.path("t.sqlite3");
    provider.create(&tenant("t")).await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let restore = || {
        for suffix in SIDECARS {
            let _ = std::fs::remove_file(appended(&path, suffix));
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
    provider.inner.control.remove(&tenant("t"), NAME).unwrap();
    assert!(is_corrupt(&provider.adopt(&tenant("t")).await));
    assert!(!provider.contains(&tenant("t")).await.unwrap());
}

#[tokio::test]
async fn readers_cannot_write() {
    let home = Home::new();
    home.provider().create(&tenant("t")).await.unwrap();
    let conn = connection::reader(&TenantFile::plain(home.path("t.sqlite3"))).unwrap();
    let e = conn.execute("DELETE FROM meta", ()).unwrap_err();
    assert!(e.to_string().contains("readonly"), "{e}");
}
