//! Index keys beyond the stored limit of 2,048 bytes: strings that share a long prefix page in
//! order, and comparisons inside such a run are exact.

use nimbus_storage::core::{DocumentId, TableName};
use nimbus_storage::{Direction, Filter, FilterOp, Tenant};

use super::support::*;

const TABLE: &str = "d";
const COUNT: usize = 1_000;

fn table() -> TableName {
    name(TABLE)
}

/// Numbers 0 to 999 in an order of their own, as strings behind 4 KiB of the same.
fn shared(i: usize) -> String {
    format!("{}{:04}", "p".repeat(4_096), (i * 7_919) % COUNT)
}

/// Around the cut: a stored key of 2,048 bytes holds a string of about 2,015.
fn near(i: usize) -> String {
    let length = 1_990 + i % 71;
    let mut text = "p".repeat(length);
    if i.is_multiple_of(3) {
        text.replace_range(length - 1.., "q");
    }
    text
}

async fn insert_all(tenant: &Tenant, texts: &[String]) {
    for chunk in texts.chunks(100) {
        tenant
            .transact(|tx| {
                let chunk = chunk.to_vec();
                Box::pin(async move {
                    for s in chunk {
                        tx.insert(&table(), object([("s", text(&s))])).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
    }
}

async fn prepared() -> (World, Tenant, Vec<String>, Model) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let declared = schema(TABLE, &["s"], &[("by_s", &["s"])]);
    tenant.put_schema(declared).await.unwrap();
    let mut texts: Vec<String> = (0..COUNT).map(shared).collect();
    texts.extend((0..142).map(near));
    texts.extend(["", "p", "q", "pa"].map(str::to_owned));
    insert_all(&tenant, &texts).await;
    let model = Model::of(&tenant, TABLE).await;
    assert_eq!(model.0.len(), texts.len());
    (world, tenant, texts, model)
}

#[tokio::test]
async fn a_run_of_a_shared_prefix_pages_in_order() {
    let (_world, tenant, ..) = prepared().await;
    for direction in [Direction::Forward, Direction::Backward] {
        let asked = query(TABLE, Vec::new(), Some(("s", direction)));
        let whole: Vec<_> = tenant.query(&asked).await.unwrap();
        let texts: Vec<_> = whole
            .iter()
            .map(|d| d.fields().unwrap().remove("s"))
            .collect();
        let ordered = texts.windows(2).all(|w| match direction {
            Direction::Forward => w[0] <= w[1],
            Direction::Backward => w[0] >= w[1],
        });
        assert!(ordered, "{direction:?}");
        for size in [7, 100] {
            let (mut paged, mut after) = (Vec::<DocumentId>::new(), None);
            loop {
                let page = tenant.page(&asked, size, after.as_deref()).await.unwrap();
                paged.extend(page.documents.iter().map(|d| d.id));
                after = page.next_cursor;
                if !page.has_more {
                    break;
                }
            }
            let expected: Vec<_> = whole.iter().map(|d| d.id).collect();
            assert!(paged == expected, "{direction:?} in pages of {size}");
        }
    }
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn comparisons_inside_a_run_are_exact() {
    let (_world, tenant, texts, model) = prepared().await;
    let mut random = Random::new(3);
    let ops = [
        FilterOp::Eq,
        FilterOp::Gt,
        FilterOp::Gte,
        FilterOp::Lt,
        FilterOp::Lte,
        FilterOp::Neq,
    ];
    for round in 0..10 {
        let mut bound = || -> Filter {
            let mut s = random.pick(&texts).clone();
            match random.below(4) {
                0 => s.push('0'),
                1 => {
                    s.pop();
                }
                _ => {}
            }
            filter("s", *random.pick(&ops), text(&s))
        };
        let mut filters = vec![bound()];
        if round % 2 == 0 {
            filters.push(bound());
        }
        for order in [
            None,
            Some(("s", Direction::Forward)),
            Some(("s", Direction::Backward)),
        ] {
            let asked = query(TABLE, filters.clone(), order);
            let found: Vec<_> = tenant.query(&asked).await.unwrap();
            let found: Vec<_> = found.iter().map(|d| d.id).collect();
            let described: Vec<_> = filters.iter().map(|f| f.op).collect();
            assert!(
                found == model.answer(&asked),
                "round {round} {described:?} {order:?}"
            );
        }
    }
}

#[tokio::test]
async fn entries_of_long_keys_follow_their_documents() {
    let (_world, tenant, texts, model) = prepared().await;
    let mut random = Random::new(5);
    let ids: Vec<_> = model.0.keys().copied().collect();
    for _ in 0..60 {
        let id = random.pick(&ids).to_string();
        let patch = object([("s", text(random.pick::<String>(&texts)))]);
        tenant.patch(&table(), &id, patch).await.unwrap();
    }
    for id in &ids[..40] {
        tenant.delete(&table(), &id.to_string()).await.unwrap();
    }
    assert_consistent(&tenant).await;
    let model = Model::of(&tenant, TABLE).await;
    let asked = query(TABLE, Vec::new(), Some(("s", Direction::Forward)));
    let found: Vec<_> = tenant.query(&asked).await.unwrap();
    let found: Vec<_> = found.iter().map(|d| d.id).collect();
    assert!(found == model.answer(&asked));
}
