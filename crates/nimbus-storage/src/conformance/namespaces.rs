//! Cases about tenants as a whole: creating, listing, opening, closing, deleting.

use std::sync::Arc;

use super::kit::{check, check_eq, check_matches, commit, contents, fresh, get, head, id, writes};
use super::{CaseResult, Fixture};
use crate::provider::{Batch, CommitError, Head, Keyspace, ProviderError};

pub(super) async fn create_open_list_delete(fixture: Arc<dyn Fixture>) -> CaseResult {
    let provider = fixture.provider();
    check_eq!(provider.list().await?, vec![], "tenants at first");
    let (a, b) = (id("alpha")?, id("beta")?);
    provider.create(&b).await?;
    provider.create(&a).await?;
    check_eq!(
        provider.list().await?,
        vec![a.clone(), b.clone()],
        "tenants, sorted"
    );
    check!(provider.contains(&a).await?, "alpha is not there");
    check!(!provider.owned(&a).is_empty(), "alpha owns nothing");
    check_eq!(
        provider.unregistered().await?,
        vec![],
        "unregistered tenants"
    );
    let store = provider.open(&a).await?;
    store.close().await?;
    provider.delete(&a).await?;
    check_eq!(
        provider.list().await?,
        vec![b.clone()],
        "tenants after deleting alpha"
    );
    check!(
        !provider.contains(&a).await?,
        "alpha is there after its deletion"
    );
    check!(provider.contains(&b).await?, "beta is gone");
    check!(!provider.name().is_empty(), "the provider has no name");
    Ok(())
}

pub(super) async fn create_marked_has_its_row(fixture: Arc<dyn Fixture>) -> CaseResult {
    let (tenant, provider) = (id("marked")?, fixture.provider());
    provider.create_marked(&tenant, b"mark").await?;
    check_eq!(provider.list().await?, vec![tenant.clone()], "tenants");
    let again = provider.create_marked(&tenant, b"mark").await;
    check_matches!(
        again,
        Err(ProviderError::AlreadyExists { .. }),
        "creating it again"
    );
    let store = provider.open(&tenant).await?;
    check_eq!(head(&store).await?, Head::EMPTY, "the head");
    let row = get(&store, Keyspace::Meta, b"mark").await?;
    check_eq!(row.as_deref(), Some(&b"{}"[..]), "the mark");
    commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Meta, b"mark", None)]),
    )
    .await?;
    let row = get(&store, Keyspace::Meta, b"mark").await?;
    check_eq!(row, None, "the mark, taken away");
    store.close().await?;
    Ok(())
}

pub(super) async fn create_twice_is_refused(fixture: Arc<dyn Fixture>) -> CaseResult {
    let tenant = id("twice")?;
    let store = fresh(&fixture, "twice").await?;
    commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"k", Some(b"v"))]),
    )
    .await?;
    store.close().await?;
    let provider = fixture.provider();
    let again = provider.create(&tenant).await;
    check_matches!(
        again,
        Err(ProviderError::AlreadyExists { .. }),
        "creating it again"
    );
    let adopted = provider.adopt(&tenant).await;
    check_matches!(
        adopted,
        Err(ProviderError::AlreadyExists { .. }),
        "adopting it"
    );
    let store = provider.open(&tenant).await?;
    check!(
        get(&store, Keyspace::Docs, b"k").await?.is_some(),
        "the refused creation erased it"
    );
    store.close().await?;

    // Of many at once, one succeeds.
    let tenant = id("race")?;
    let mut made = 0;
    for result in futures_util::future::join_all((0..8).map(|_| provider.create(&tenant))).await {
        match result {
            Ok(()) => made += 1,
            Err(ProviderError::AlreadyExists { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    check_eq!(made, 1, "successes of eight creations at once");
    provider.open(&tenant).await?.close().await?;
    Ok(())
}

pub(super) async fn unknown_tenants_are_not_found(fixture: Arc<dyn Fixture>) -> CaseResult {
    let (provider, tenant) = (fixture.provider(), id("nobody")?);
    let opened = provider.open(&tenant).await;
    check_matches!(opened, Err(ProviderError::NotFound { .. }), "opening");
    let deleted = provider.delete(&tenant).await;
    check_matches!(deleted, Err(ProviderError::NotFound { .. }), "deleting");
    let adopted = provider.adopt(&tenant).await;
    check_matches!(adopted, Err(ProviderError::NotFound { .. }), "adopting");
    check!(!provider.contains(&tenant).await?, "it is there");
    check_eq!(
        provider.owned(&tenant),
        Vec::<String>::new(),
        "what it owns"
    );
    Ok(())
}

pub(super) async fn similar_ids_are_separate(fixture: Arc<dyn Fixture>) -> CaseResult {
    let provider = fixture.provider();
    let long = "x".repeat(127);
    let mut names = vec![
        "a-b".into(),
        "a_b".into(),
        "A-B".into(),
        "ab".into(),
        "0".into(),
    ];
    names.extend(["a", "b", "-", "_"].map(|end| format!("{long}{end}")));
    let mut stores = Vec::new();
    for name in names {
        let tenant = id(&name)?;
        match provider.create(&tenant).await {
            Ok(()) => {}
            // A disk that ignores case keeps one of the two; refusing is the promise then.
            Err(ProviderError::NameClash { existing, .. }) => {
                check_eq!(existing, id("a-b")?, "the clashing tenant");
                continue;
            }
            Err(e) => return Err(e.into()),
        }
        let store = provider.open(&tenant).await?;
        commit(
            &store,
            Head::EMPTY,
            writes(&[(Keyspace::Docs, b"who", Some(name.as_bytes()))]),
        )
        .await?;
        stores.push((name, store));
    }
    for (name, store) in &stores {
        let found = get(store, Keyspace::Docs, b"who").await?;
        check_eq!(found.as_deref(), Some(name.as_bytes()), "the row of {name}");
    }
    for (name, store) in stores {
        store.close().await?;
        let tenant = id(&name)?;
        check!(provider.contains(&tenant).await?, "{name} is gone");
        provider.delete(&tenant).await?;
        check!(!provider.contains(&tenant).await?, "{name} is still there");
    }
    check_eq!(provider.list().await?, vec![], "tenants left");
    Ok(())
}

pub(super) async fn delete_leaves_nothing(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "gone").await?;
    let mut head = Head::EMPTY;
    for n in 0..50_u8 {
        let value = vec![n; 10_000];
        head = commit(&store, head, writes(&[(Keyspace::Log, &[n], Some(&value))])).await?;
    }
    store.close().await?;
    let (provider, tenant) = (fixture.provider(), id("gone")?);
    provider.delete(&tenant).await?;
    check_eq!(
        provider.owned(&tenant),
        Vec::<String>::new(),
        "what a deleted tenant owns"
    );
    check_eq!(provider.list().await?, vec![], "tenants");
    check_eq!(
        provider.unregistered().await?,
        vec![],
        "unregistered tenants"
    );
    let opened = provider.open(&tenant).await;
    check_matches!(
        opened,
        Err(ProviderError::NotFound { .. }),
        "opening a deleted tenant"
    );
    drop((provider, store));
    fixture.restart().await?;
    let provider = fixture.provider();
    check_eq!(provider.list().await?, vec![], "tenants after a restart");
    check_eq!(
        provider.unregistered().await?,
        vec![],
        "unregistered tenants after a restart"
    );
    Ok(())
}

pub(super) async fn recreated_tenant_is_empty(fixture: Arc<dyn Fixture>) -> CaseResult {
    let (provider, tenant) = (fixture.provider(), id("phoenix")?);
    for _ in 0..3 {
        let store = fresh(&fixture, "phoenix").await?;
        check_eq!(head(&store).await?, Head::EMPTY, "head of a new life");
        let found = contents(&mut *store.snapshot().await?).await?;
        check!(
            found.is_empty(),
            "a new life has rows of the old one: {found:?}"
        );
        let all = Keyspace::ALL.map(|k| ((k, b"t/k".to_vec()), Some("old".into())));
        commit(&store, Head::EMPTY, all.into()).await?;
        store.close().await?;
        provider.delete(&tenant).await?;
    }
    Ok(())
}

pub(super) async fn new_tenant_has_the_empty_head(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "new").await?;
    check_eq!(head(&store).await?, Head::EMPTY, "head");
    let found = contents(&mut *store.snapshot().await?).await?;
    check!(found.is_empty(), "rows in a new tenant: {found:?}");
    store.close().await?;
    Ok(())
}

pub(super) async fn registry_survives_restart(fixture: Arc<dyn Fixture>) -> CaseResult {
    let tenants = [id("one")?, id("three")?, id("two")?];
    for tenant in &tenants {
        fixture.provider().create(tenant).await?;
    }
    fixture.provider().delete(&tenants[1]).await?;
    fixture.restart().await?;
    let provider = fixture.provider();
    let left = vec![tenants[0].clone(), tenants[2].clone()];
    check_eq!(provider.list().await?, left, "tenants after a restart");
    for tenant in &left {
        provider.open(tenant).await?.close().await?;
    }
    let again = provider.create(&tenants[0]).await;
    check_matches!(
        again,
        Err(ProviderError::AlreadyExists { .. }),
        "creating one again"
    );
    Ok(())
}

pub(super) async fn health_of_a_working_backend(fixture: Arc<dyn Fixture>) -> CaseResult {
    fixture.provider().health().await?;
    Ok(())
}

pub(super) async fn closed_store_refuses_everything(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "closed").await?;
    let head = commit(
        &store,
        Head::EMPTY,
        writes(&[(Keyspace::Docs, b"k", Some(b"v"))]),
    )
    .await?;
    store.close().await?;
    check_matches!(
        store.snapshot().await,
        Err(ProviderError::Closed),
        "a snapshot after close"
    );
    let batch = Batch {
        head: super::kit::next(head, 9),
        writes: writes(&[]),
    };
    let refused = store.commit(head, batch).await;
    check_matches!(refused, Err(CommitError::Closed), "a commit after close");
    Ok(())
}

pub(super) async fn close_can_be_followed_by_open(fixture: Arc<dyn Fixture>) -> CaseResult {
    let (provider, tenant) = (fixture.provider(), id("cycle")?);
    let mut store = fresh(&fixture, "cycle").await?;
    let mut at = Head::EMPTY;
    for n in 0..5_u8 {
        at = commit(&store, at, writes(&[(Keyspace::Jobs, &[n], Some(b"x"))])).await?;
        store.close().await?;
        store = provider.open(&tenant).await?;
        check_eq!(head(&store).await?, at, "head after opening again");
        check!(
            get(&store, Keyspace::Jobs, &[n]).await?.is_some(),
            "row {n} is gone"
        );
    }
    store.close().await?;
    Ok(())
}

pub(super) async fn stats_count(fixture: Arc<dyn Fixture>) -> CaseResult {
    let store = fresh(&fixture, "stats").await?;
    check_eq!(store.stats().commits, 0, "commits at first");
    let mut at = Head::EMPTY;
    for n in 0..3_u8 {
        at = commit(&store, at, writes(&[(Keyspace::Docs, &[n], Some(b"x"))])).await?;
    }
    check_eq!(store.stats().commits, 3, "commits");
    check!(
        store.stats().commit_syncs <= 6,
        "more than two syncs a commit: {:?}",
        store.stats()
    );
    check_eq!(store.stats().open_snapshots, 0, "snapshots open");
    let first = store.snapshot().await?;
    let second = store.snapshot().await?;
    check_eq!(store.stats().open_snapshots, 2, "snapshots open");
    drop(first);
    check_eq!(store.stats().open_snapshots, 1, "snapshots open");
    drop(second);
    check_eq!(store.stats().open_snapshots, 0, "snapshots open");
    check_eq!(store.stats().oldest_snapshot_ms, 0, "age of no snapshot");
    // A refused commit does not count.
    let stale = Batch {
        head: super::kit::next(at, 1),
        writes: writes(&[]),
    };
    let _ = store.commit(Head::EMPTY, stale).await;
    check_eq!(store.stats().commits, 3, "commits after a refused one");
    store.close().await?;
    Ok(())
}
