//! Tests of creating, deleting and adopting: at every step that a crash can leave, and with
//! other people's files in the way.

use super::*;

/// Every state that a crash can leave a creation in.
#[tokio::test]
async fn an_interrupted_creation_is_undone() {
    let complete = |home: &Home| {
        let path = home.path("t.sqlite3");
        drop(files::create_new(&path).unwrap());
        connection::create(&TenantFile::plain(path.clone())).unwrap();
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
            .put_state(&tenant("t"), NAME, TenantState::Deleting)
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
