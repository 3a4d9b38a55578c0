//! Watching what was read: a watch ends exactly when a commit writes something in it, whether before or
//! after it began.

use nimbus_storage::core::{DocumentId, Object};
use nimbus_storage::{FunctionQuery, Tenant};

use super::support::*;

/// A document of few short values: where index keys are cut, a whole run of them counts as read.
fn fields(random: &mut Random) -> Object {
    let mut fields = object([("n", num(random.below(10) as f64))]);
    if !random.one_in(4) {
        fields.insert("a".into(), num(random.below(6) as f64));
    }
    fields
}

async fn tenant_of(world: &World, random: &mut Random, count: usize) -> Tenant {
    let tenant = function_tenant(world, random, 0).await;
    for _ in 0..count {
        tenant
            .insert(&name(FUNCTION_TABLE), fields(random))
            .await
            .unwrap();
    }
    tenant
}

type Row = (DocumentId, Object);

/// One commit that touches one document; the document before and after.
async fn change(tenant: &Tenant, random: &mut Random, model: &[Row]) -> (Option<Row>, Option<Row>) {
    let table = name(FUNCTION_TABLE);
    let known = random.pick(model).clone();
    let id = known.0.to_string();
    let after = match random.below(4) {
        0 => Some(tenant.insert(&table, fields(random)).await.unwrap()),
        1 if model.len() > 10 => {
            tenant.delete(&table, &id).await.unwrap();
            return (Some(known), None);
        }
        _ => {
            tenant.patch(&table, &id, fields(random)).await.unwrap();
            None
        }
    };
    let inserted = after.is_some();
    let id = after.unwrap_or(known.0);
    let now = tenant.get(&table, &id.to_string()).await.unwrap();
    let now = (id, now.fields().unwrap());
    ((!inserted).then_some(known), Some(now))
}

#[tokio::test]
async fn a_watch_ends_exactly_when_something_read_changes() {
    let world = World::new().await;
    let mut random = Random::new(1);
    let tenant = tenant_of(&world, &mut random, 40).await;
    let mut ended = [0, 0];
    for round in 0..1_200 {
        let mut tx = tenant.begin_read(None).await.unwrap();
        let model = model_of(&mut tx).await;
        tx.take_reads();
        let mut asked = Asked::any(&mut random, &model);
        let long = |t: &Term| t.value.as_ref().is_some_and(|v| v.size() > 1_000);
        while asked.terms.iter().any(long) {
            asked = Asked::any(&mut random, &model);
        }
        let mut stream = tx.open_query(&asked.query()).unwrap();
        let take = random.below(8);
        let (mut last, mut taken, mut exhausted) = (None, 0, false);
        for _ in 0..take {
            match tx.next(&mut stream).await.unwrap() {
                Some(found) => {
                    last = Some((found.id, found.fields().unwrap()));
                    taken += 1;
                }
                // At its limit a query does not look further.
                None => exhausted = asked.limit.is_none_or(|limit| taken < limit),
            }
        }
        let read: Vec<Row> = match (&last, exhausted) {
            (_, true) => asked.range(&model),
            (None, _) if take == 0 || asked.limit == Some(0) => Vec::new(),
            // A limit over a filter may have looked at more than it let through.
            (None, _) => continue,
            (Some(last), _) => {
                let range = asked.range(&model);
                let up_to = |d: &&Row| asked.compare(d, last).is_le();
                range.iter().filter(up_to).cloned().collect()
            }
        };
        if asked.limit.is_some() && asked.filter.is_some() {
            continue;
        }
        let reads = tx.take_reads();
        drop(tx);
        let early = random.one_in(2);
        let mut watch = None;
        if early {
            watch = Some(tenant.watch(reads.clone()));
        }
        let (before, after) = change(&tenant, &mut random, &model).await;
        let watch = watch.unwrap_or_else(|| tenant.watch(reads));
        let inside = |row: &Row| {
            let matches = !asked.range(std::slice::from_ref(row)).is_empty();
            matches && (exhausted || last.as_ref().is_some_and(|l| asked.compare(row, l).is_le()))
        };
        let is_read = |row: &Option<Row>| {
            row.as_ref()
                .is_some_and(|row| inside(row) || read.iter().any(|r| r.0 == row.0))
        };
        let touched = is_read(&before) || is_read(&after);
        assert_eq!(
            watch.is_valid(),
            !touched,
            "round {round}, early {early}: {asked:?} took {take}, {before:?} {after:?}"
        );
        ended[usize::from(touched)] += 1;
        if touched {
            soon("the end of the watch", watch.invalidated()).await;
        }
    }
    assert!(ended[0] > 50 && ended[1] > 50, "{ended:?}");
}

#[tokio::test]
async fn a_watch_knows_how_far_it_is_valid() {
    let world = World::new().await;
    let tenant = tenant_of(&world, &mut Random::new(2), 3).await;
    let table = name(FUNCTION_TABLE);
    let mut tx = tenant.begin_read(None).await.unwrap();
    let id = model_of(&mut tx).await[0].0.to_string();
    tx.take_reads();
    tx.fn_get(&id, None).await.unwrap().unwrap();
    let reads = tx.take_reads();
    assert_eq!(reads.at().timestamp_ns, tx.timestamp());
    let watch = tenant.watch(reads);
    let second = tenant.watch(tx.take_reads());
    let other = tenant
        .insert(&table, object([("n", num(1.0))]))
        .await
        .unwrap();
    assert!(watch.is_valid());
    assert_eq!(
        watch.valid_through().timestamp_ns,
        tenant.latest_timestamp()
    );
    let patch = object([("n", num(2.0))]);
    let known = watch.valid_through();
    tenant.patch(&table, &id, patch.clone()).await.unwrap();
    assert!(!watch.is_valid());
    assert_eq!(watch.valid_through(), known);
    assert!(
        second.is_valid(),
        "its reads were taken before, and nothing was read since"
    );
    tenant
        .patch(&table, &other.to_string(), patch)
        .await
        .unwrap();
    assert_eq!(watch.valid_through(), known);
}

#[tokio::test]
async fn closing_the_tenant_ends_its_watches() {
    let mut world = World::new().await;
    let tenant = tenant_of(&world, &mut Random::new(3), 3).await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    model_of(&mut tx).await;
    let watch = tenant.watch(tx.take_reads());
    assert!(watch.is_valid());
    drop((tx, tenant));
    let waiting = watch.invalidated();
    world.reopen().await;
    soon("the end of the watch", waiting).await;
    assert!(!watch.is_valid());
}

/// The order is: told that it is over, then acknowledged; and a reader that sees a commit sees no
/// watch that it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_a_commit_before_the_watches_that_it_ends() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let table = name(FUNCTION_TABLE);
    let id = tenant
        .insert(&table, object([("n", num(0.0))]))
        .await
        .unwrap()
        .to_string();
    let writer = tokio::spawn({
        let (tenant, id) = (tenant.clone(), id.clone());
        async move {
            for n in 1..=200 {
                let patch = object([("n", num(f64::from(n)))]);
                tenant
                    .patch(&name(FUNCTION_TABLE), &id, patch)
                    .await
                    .unwrap();
            }
        }
    });
    let mut newest = 0;
    while !writer.is_finished() {
        let mut tx = tenant.begin_read(None).await.unwrap();
        let seen = tx.fn_get(&id, None).await.unwrap();
        let watch = tenant.watch(tx.take_reads());
        assert!(tx.timestamp() >= newest);
        newest = tenant.latest_timestamp();
        assert!(newest >= tx.timestamp(), "never behind what anyone read");
        let mut later = tenant.begin_read(None).await.unwrap();
        if later.fn_get(&id, None).await.unwrap() != seen {
            assert!(!watch.is_valid());
        }
    }
    writer.await.unwrap();
}

/// `first` does not depend on what lies behind the first document.
#[tokio::test]
async fn two_transactions_that_take_different_documents_do_not_conflict() {
    let world = World::new().await;
    let tenant = tenant_of(&world, &mut Random::new(4), 50).await;
    let forward = Asked::all("by_creation_time", false).query();
    let backward = Asked::all("by_creation_time", true).query();
    let mut one = tenant.begin().await.unwrap();
    let mut two = tenant.begin().await.unwrap();
    let take = async |tx: &mut nimbus_storage::Transaction, query: &FunctionQuery| {
        let mut stream = tx.open_query(query).unwrap();
        let found = tx.next(&mut stream).await.unwrap().unwrap();
        tx.fn_remove(&found.id.to_string(), None).await.unwrap();
    };
    take(&mut one, &forward).await;
    take(&mut two, &backward).await;
    tenant.commit(one).await.unwrap();
    tenant.commit(two).await.unwrap();
    let mut all = tenant.begin_read(None).await.unwrap();
    assert_eq!(all.fn_count(FUNCTION_TABLE).await.unwrap(), 48);
}

/// Sequences mean something only within the tenant that gave them.
#[tokio::test]
async fn reads_of_another_tenant_are_over() {
    let mut world = World::new().await;
    let tenant = tenant_of(&world, &mut Random::new(5), 3).await;
    let other = world.create("other").await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    model_of(&mut tx).await;
    let reads = tx.take_reads();
    assert!(tenant.watch(reads.clone()).is_valid());
    let foreign = other.watch(reads.clone());
    assert!(!foreign.is_valid());
    assert_eq!(foreign.valid_through(), reads.at());
    drop((tx, tenant, other, foreign));
    world.reopen().await;
    let tenant = world.tenant("t").await;
    assert!(!tenant.watch(reads).is_valid(), "from before it was opened");
}

/// That a page ends at a limit, and not at the end, depends on the document behind it.
#[tokio::test]
async fn what_ends_a_page_is_read() {
    let world = World::new().await;
    let tenant = tenant_of(&world, &mut Random::new(6), 3).await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    let last = model_of(&mut tx).await.last().unwrap().0.to_string();
    tx.take_reads();
    let request = nimbus_storage::PageRequest {
        page_size: 10,
        max_rows: Some(2),
        ..Default::default()
    };
    let query = Asked::all("by_creation_time", false).query();
    let page = tx.fn_page(&query, &request).await.unwrap();
    assert!(!page.is_done && page.page.len() == 2);
    let watch = tenant.watch(tx.take_reads());
    tenant.delete(&name(FUNCTION_TABLE), &last).await.unwrap();
    assert!(!watch.is_valid());
    let mut tx = tenant.begin_read(None).await.unwrap();
    assert!(tx.fn_page(&query, &request).await.unwrap().is_done);
}
