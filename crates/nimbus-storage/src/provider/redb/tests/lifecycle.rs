//! Tests of creating, deleting and adopting: at every step that a crash can leave, with other
//! people's files in the way, and where file, manifest and configuration disagree.

use super::*;

/// Every state that a crash can leave a creation in.
#[tokio::test]
async fn an_interrupted_creation_is_undone() {
    type Step = fn(&Home);
    fn manifest(home: &Home) {
        if let Some(keyring) = &home.keyring {
            let subject = subject(&tenant("t")).unwrap();
            keyring.create(&home.path("t.redb"), &subject).unwrap();
        }
    }
    fn complete(home: &Home) {
        let files = RedbFiles {
            durability: Durability::Full,
            cache: CACHE_BYTES,
            keyring: home.keyring.clone(),
        };
        let made = files.make(&tenant("t"), &home.path("t.redb"), &mut Vec::new());
        made.unwrap();
    }
    let steps: [(&str, Step); 7] = [
        ("nothing made", |_| ()),
        ("manifest half made", |h| {
            std::fs::write(h.path("t.redb.nimbus-enc.tmp"), "{").unwrap();
        }),
        ("manifest made", manifest),
        ("file made", |h| {
            manifest(h);
            std::fs::write(h.path("t.redb"), []).unwrap();
        }),
        ("file grown", |h| {
            manifest(h);
            std::fs::write(h.path("t.redb"), vec![0; 1 << 20]).unwrap();
        }),
        ("file filled", complete),
        ("file torn", |h| {
            complete(h);
            let path = h.path("t.redb");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[9000..].fill(0);
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    for home in Home::both() {
        for (what, step) in steps {
            let control = home.control();
            let state = TenantState::Creating;
            let entered = control.register(&tenant("t"), NAME, Distinct::Exactly, state);
            entered.unwrap();
            drop(control);
            step(&home);
            let provider = home.provider();
            assert_eq!(home.names(), Vec::<String>::new(), "{what}");
            assert_eq!(provider.inner.control.entries(), [], "{what}");
            // The name is free again.
            let store = made(&provider, "t").await;
            put(&store, Head::EMPTY, b"k", b"v").await;
            store.close().await.unwrap();
            provider.delete(&tenant("t")).await.unwrap();
        }
    }
}

/// What was put under the name since, by someone else, is not ours to remove.
#[tokio::test]
async fn undoing_a_creation_spares_other_peoples_files() {
    for donor in Home::both() {
        let provider = donor.provider();
        let store = made(&provider, "t").await;
        put(&store, Head::EMPTY, b"k", b"precious").await;
        store.close().await.unwrap();
        let enter = |home: &Home| {
            let state = TenantState::Creating;
            let entered = home
                .control()
                .register(&tenant("t"), NAME, Distinct::Exactly, state);
            entered.unwrap();
        };

        let home = donor.sibling();
        enter(&home);
        home.take(&donor, "t", "t");
        let provider = home.provider();
        assert_eq!(provider.unregistered().await.unwrap(), [tenant("t")]);
        assert_eq!(provider.list().await.unwrap(), []);
        provider.adopt(&tenant("t")).await.unwrap();
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(&rows(&store).await[0].1[..], b"precious");
        store.close().await.unwrap();

        let home = donor.sibling();
        enter(&home);
        std::fs::write(home.path("t.redb"), vec![b'x'; 3 << 20]).unwrap();
        drop(home.provider());
        assert_eq!(std::fs::read(home.path("t.redb")).unwrap().len(), 3 << 20);

        let home = donor.sibling();
        enter(&home);
        symlink(donor.path("t.redb"), home.path("t.redb")).unwrap();
        drop(home.provider());
        assert_eq!(home.names(), ["t.redb"]);
        assert!(donor.path("t.redb").exists());
    }
}

#[tokio::test]
async fn an_interrupted_deletion_is_finished() {
    for left in [
        &[
            "t.redb",
            "t.redb.nimbus-enc",
            "t.redb.nimbus-enc.tmp",
            "t.redb.rotating",
        ][..],
        &["t.redb.nimbus-enc"],
        &[],
    ] {
        for home in Home::both() {
            let provider = home.provider();
            provider.create(&tenant("t")).await.unwrap();
            provider.create(&tenant("other")).await.unwrap();
            drop(provider);
            let control = home.control();
            control
                .put_state(&tenant("t"), NAME, TenantState::Deleting)
                .unwrap();
            drop(control);
            for name in home.files_of(&["t"]) {
                std::fs::remove_file(home.path(&name)).unwrap();
            }
            for name in left {
                std::fs::write(home.path(name), "x").unwrap();
            }
            let provider = home.provider();
            assert_eq!(home.names(), home.files_of(&["other"]), "{left:?}");
            assert_eq!(provider.list().await.unwrap(), [tenant("other")]);
            provider.create(&tenant("t")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_failed_deletion_can_be_tried_again() {
    let home = Home::encrypted();
    let provider = home.provider();
    provider.create(&tenant("t")).await.unwrap();
    // A directory in the way cannot be unlinked.
    std::fs::create_dir(home.path("t.redb.rotating")).unwrap();
    let e = provider.delete(&tenant("t")).await.unwrap_err();
    assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
    assert!(!provider.contains(&tenant("t")).await.unwrap());
    std::fs::remove_dir(home.path("t.redb.rotating")).unwrap();
    provider.delete(&tenant("t")).await.unwrap();
    assert_eq!(home.names(), Vec::<String>::new());
    assert_eq!(provider.inner.control.entries(), []);
}

#[tokio::test]
async fn creating_never_touches_what_is_there() {
    for name in [
        "t.redb",
        "t.redb.nimbus-enc",
        "t.redb.nimbus-enc.tmp",
        "t.redb.rotating",
    ] {
        for home in Home::both() {
            let provider = home.provider();
            std::fs::write(home.path(name), "precious").unwrap();
            let e = provider.create(&tenant("t")).await.unwrap_err();
            assert!(
                matches!(e, ProviderError::Unregistered { .. }),
                "{name}: {e:?}"
            );
            let text = std::fs::read_to_string(home.path(name)).unwrap();
            assert_eq!(text, "precious");
            assert_eq!(home.names(), [name]);
            assert_eq!(provider.inner.control.entries(), []);
        }
    }
}

#[tokio::test]
async fn files_are_private_and_listed() {
    for home in Home::both() {
        let provider = home.provider();
        let store = made(&provider, "t").await;
        let head = put(&store, Head::EMPTY, b"k", b"v").await;
        assert_eq!(home.names(), home.files_of(&["t"]));
        for name in home.names() {
            assert_eq!(mode(&home.path(&name)), 0o600, "{name}");
        }
        assert_eq!(provider.owned(&tenant("t")).len(), home.names().len());
        // As after a kill, with a mode that somebody changed.
        let other = home.sibling();
        other.take(&home, "t", "t");
        store.close().await.unwrap();
        let wide = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(other.path("t.redb"), wide).unwrap();
        for junk in ["_nimbus.redb", "a b.redb", "x.red", ".redb", "y.sqlite3"] {
            std::fs::write(other.path(junk), "").unwrap();
        }
        let provider = other.provider();
        assert_eq!(provider.unregistered().await.unwrap(), [tenant("t")]);
        provider.adopt(&tenant("t")).await.unwrap();
        assert_eq!(provider.unregistered().await.unwrap(), []);
        assert_eq!(mode(&other.path("t.redb")), 0o600);
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_tenant_file_is_refused_untouched() {
    for home in Home::both() {
        let provider = home.provider();
        let store = made(&provider, "good").await;
        store.close().await.unwrap();
        let other = redb::TableDefinition::<&str, u64>::new("other");
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        type Fill<'a> = (&'a str, &'a dyn Fn(&redb::WriteTransaction));
        let foreign: [Fill<'_>; 3] = [
            ("no Nimbus tenant file", &|txn| {
                drop(txn.open_table(other).unwrap());
            }),
            ("meta", &|txn| drop(txn.open_table(meta).unwrap())),
            ("foreign table `other`", &|txn| {
                for keyspace in Keyspace::ALL {
                    txn.open_table(file::table(keyspace)).unwrap();
                }
                let mut meta = txn.open_table(file::table(Keyspace::Meta)).unwrap();
                let format = &b"{\"format\":\"nimbus-tenant\",\"version\":1}"[..];
                meta.insert(FORMAT_KEY, format).unwrap();
                txn.open_table(other).unwrap();
            }),
        ];
        for (n, (text, fill)) in foreign.into_iter().enumerate() {
            let id = tenant(&format!("t{n}"));
            let path = home.path(&format!("{id}.redb"));
            let key = home.keyring.as_ref();
            let key = key.map(|k| k.create(&path, &subject(&id).unwrap()).unwrap());
            let file = files::create_new(&path).unwrap();
            let pages = crate::pages::pages_of(&path, file, key.as_ref()).unwrap();
            let db = file::database(1 << 20, pages).unwrap();
            let txn = db.begin_write().unwrap();
            fill(&txn);
            txn.commit().unwrap();
            drop(db);
            let before = std::fs::read(&path).unwrap();
            let e = provider.adopt(&id).await.unwrap_err();
            assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
            assert!(e.to_string().contains(text), "{e}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
        // Neither redb nor a file, and a link to a good one.
        symlink(home.path("good.redb"), home.path("u.redb")).unwrap();
        assert!(is_corrupt(&provider.adopt(&tenant("u")).await));
        std::fs::create_dir(home.path("v.redb")).unwrap();
        assert!(is_corrupt(&provider.adopt(&tenant("v")).await));
        let e = provider.adopt(&tenant("w")).await.unwrap_err();
        assert!(matches!(e, ProviderError::NotFound { .. }), "{e:?}");
        // A tenant whose file is gone, empty or a link is not made anew.
        let good = home.path("good.redb");
        let bytes = std::fs::read(&good).unwrap();
        std::fs::write(&good, "").unwrap();
        assert!(is_corrupt(&provider.open(&tenant("good")).await));
        std::fs::write(&good, &bytes[..bytes.len() - 100]).unwrap();
        assert!(is_corrupt(&provider.open(&tenant("good")).await));
        std::fs::remove_file(&good).unwrap();
        provider.open(&tenant("good")).await.map(drop).unwrap_err();
        assert!(!good.exists());
        std::fs::write(home.path("elsewhere"), &bytes).unwrap();
        symlink(home.path("elsewhere"), &good).unwrap();
        assert!(is_corrupt(&provider.open(&tenant("good")).await));
    }
}

/// One clear refusal for each way in which file, manifest and configuration can disagree.
#[tokio::test]
async fn files_manifests_and_keys_must_belong_together() {
    let text = |result: ProviderResult<Arc<dyn TenantStore>>| match result {
        Ok(_) => panic!("it opened"),
        Err(e) => e.to_string(),
    };
    let (plain, home) = (Home::plain(), Home::encrypted());
    for home in [&plain, &home] {
        let provider = home.provider();
        for id in ["a", "b"] {
            let store = made(&provider, id).await;
            put(&store, Head::EMPTY, b"k", id.as_bytes()).await;
            store.close().await.unwrap();
        }
    }
    // In plain text, and now there is a key.
    let provider = plain.with(|o| o.keyring = Some(keyring()));
    let e = text(provider.open(&tenant("a")).await);
    assert!(e.contains("sidecar manifest is missing"), "{e}");
    drop(provider);
    // Encrypted, and now there is none.
    let provider = home.with(|o| o.keyring = None);
    let e = text(provider.open(&tenant("a")).await);
    assert!(e.contains("encryption is not configured"), "{e}");
    drop(provider);
    // Another key.
    let provider = home.with(|o| o.keyring = Some(keyring()));
    let e = provider.open(&tenant("a")).await.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Locked { .. }), "{e:?}");
    drop(provider);

    let provider = home.provider();
    let (a, b) = (home.path("a.redb"), home.path("b.redb"));
    let (good_a, good_b) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    // Files swapped, manifests not.
    std::fs::write(&a, &good_b).unwrap();
    let e = text(provider.open(&tenant("a")).await);
    assert!(e.contains("page 0 does not authenticate"), "{e}");
    // Manifests swapped as well.
    let manifests = [manifest_path(&a), manifest_path(&b)];
    let (of_a, of_b) = (
        std::fs::read(&manifests[0]).unwrap(),
        std::fs::read(&manifests[1]).unwrap(),
    );
    std::fs::write(&manifests[0], &of_b).unwrap();
    let e = text(provider.open(&tenant("a")).await);
    assert!(e.contains("mixed up"), "{e}");
    std::fs::write(&manifests[0], &of_a).unwrap();
    // In plain text under a manifest.
    std::fs::copy(plain.path("a.redb"), &a).unwrap();
    let e = provider.open(&tenant("a")).await.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Corrupt { .. }), "{e:?}");
    std::fs::write(&a, &good_a).unwrap();
    let store = provider.open(&tenant("a")).await.unwrap();
    assert_eq!(&rows(&store).await[0].1[..], b"a");
    store.close().await.unwrap();
}

/// A rotation that was stopped before any of its steps: the tenant is served as it is, and what it
/// commits then outlives the recovery.
#[tokio::test]
async fn a_tenant_is_served_in_the_middle_of_a_rotation() {
    for stop in 1..=6 {
        let home = Home::encrypted();
        let (keyring, path) = (home.keyring.clone().unwrap(), home.path("t.redb"));
        let provider = home.provider();
        let store = made(&provider, "t").await;
        let head = put(&store, Head::EMPTY, b"before", b"v").await;
        store.close().await.unwrap();
        let mut left = stop;
        let mut step = |_: &str| {
            left -= 1;
            match left {
                0 => Err(std::io::Error::other("killed")),
                _ => Ok(()),
            }
        };
        let subject = subject(&tenant("t")).unwrap();
        let rotated = crate::encryption::redb::rotate_dek_redb(
            &path,
            &subject,
            &keyring,
            true,
            &mut |_| (),
            &mut step,
        );
        rotated.unwrap_err();
        let store = provider.open(&tenant("t")).await.unwrap();
        let head = put(&store, head, b"between", b"v").await;
        store.close().await.unwrap();
        crate::encryption::redb::recover_redb(&path, &subject, &keyring).unwrap();
        assert_eq!(home.names(), home.files_of(&["t"]));
        let store = provider.open(&tenant("t")).await.unwrap();
        assert_eq!(super::head(&store).await, head, "{stop}");
        assert_eq!(rows(&store).await.len(), 2);
        store.close().await.unwrap();
        provider.delete(&tenant("t")).await.unwrap();
        assert_eq!(home.names(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn clashing_names_are_refused_where_case_is_ignored() {
    let home = Home::plain();
    let provider = home.with(|o| o.case_insensitive = Some(true));
    provider.create(&tenant("a-b")).await.unwrap();
    let e = provider.create(&tenant("A-B")).await.unwrap_err();
    assert!(
        matches!(&e, ProviderError::NameClash { existing, .. } if *existing == tenant("a-b")),
        "{e:?}"
    );
    drop(provider);
    let provider = home.with(|o| o.case_insensitive = Some(false));
    provider.create(&tenant("A-B")).await.unwrap();
}

#[tokio::test]
async fn a_tenant_of_another_provider_is_not_ours() {
    let home = Home::plain();
    let control = home.control();
    for (id, state) in [
        ("theirs", TenantState::Ready),
        ("made", TenantState::Creating),
        ("gone", TenantState::Deleting),
    ] {
        let entered = control.register(&tenant(id), "sqlite", Distinct::Exactly, state);
        entered.unwrap();
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
    let home = Home::plain();
    let options = RedbOptions::new(home.path("missing"));
    let opened = RedbProvider::open(options, Arc::new(home.control()));
    let e = opened.map(drop).unwrap_err();
    assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
}
