//! Pages of functions: together they are the whole answer, also while others insert; cursors are bound
//! to their query; limits end a page early and say so.

use nimbus_storage::core::{DocumentId, Object};
use nimbus_storage::{FunctionError, FunctionPage, FunctionQuery, PageRequest, PageStatus, Tenant};
use serde_json::json;

use super::support::*;

fn first(page_size: u64) -> PageRequest {
    PageRequest {
        page_size,
        ..PageRequest::default()
    }
}

fn after(cursor: &str, page_size: u64) -> PageRequest {
    PageRequest {
        cursor: Some(cursor.to_owned()),
        ..first(page_size)
    }
}

async fn page(tenant: &Tenant, query: &FunctionQuery, request: &PageRequest) -> FunctionPage {
    let mut tx = tenant.begin_read(None).await.unwrap();
    tx.fn_page(query, request).await.unwrap()
}

fn ids(page: &FunctionPage) -> Vec<DocumentId> {
    page.page.iter().map(|d| d.id).collect()
}

/// All pages of a query, with something done between them.
async fn pages(
    tenant: &Tenant,
    query: &FunctionQuery,
    size: u64,
    mut between: impl AsyncFnMut(),
) -> Vec<DocumentId> {
    let mut found = Vec::new();
    let mut request = first(size);
    loop {
        let got = page(tenant, query, &request).await;
        assert!(got.page.len() as u64 <= size);
        found.extend(ids(&got));
        if got.is_done {
            return found;
        }
        request = after(&got.continue_cursor, size);
        between().await;
    }
}

#[tokio::test]
async fn pages_are_the_whole_answer() {
    let world = World::new().await;
    let mut random = Random::new(1);
    let tenant = function_tenant(&world, &mut random, 60).await;
    let mut tx = tenant.begin_read(None).await.unwrap();
    let model = model_of(&mut tx).await;
    for round in 0..200 {
        let mut asked = Asked::any(&mut random, &model);
        asked.limit = None;
        let size = 1 + random.below(9) as u64;
        let found = pages(&tenant, &asked.query(), size, async || {}).await;
        assert_eq!(found, asked.answer(&model), "round {round}: {asked:?}");
    }
}

/// What is inserted between two pages appears if it lies ahead; nothing appears twice or is left out.
#[tokio::test]
async fn pages_hold_while_others_insert() {
    let world = World::new().await;
    let mut random = Random::new(2);
    let tenant = function_tenant(&world, &mut random, 40).await;
    for round in 0..30 {
        let mut tx = tenant.begin_read(None).await.unwrap();
        let before = model_of(&mut tx).await;
        drop(tx);
        let mut asked = Asked::any(&mut random, &before);
        asked.limit = None;
        let query = asked.query();
        let found = pages(&tenant, &query, 3, async || {
            let fields = any_fields(&mut random);
            tenant.insert(&name(FUNCTION_TABLE), fields).await.unwrap();
        });
        let found = found.await;
        let mut tx = tenant.begin_read(None).await.unwrap();
        let after = model_of(&mut tx).await;
        let whole = asked.answer(&after);
        let mut rest = whole.iter();
        assert!(
            found.iter().all(|id| rest.any(|other| other == id)),
            "round {round}: not in order, or twice: {asked:?}"
        );
        for id in asked.answer(&before) {
            assert!(
                found.contains(&id),
                "round {round}: {id} is left out: {asked:?}"
            );
        }
    }
}

/// A page with an end cursor grows and shrinks with what lies within, and its neighbour does not move.
#[tokio::test]
async fn a_page_between_two_cursors_is_stable() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[("by_a", &["a"])];
    tenant
        .put_schema(schema("d", &["a"], indexes))
        .await
        .unwrap();
    let row = |a: f64| object([("a", num(a))]);
    for a in 0..6 {
        tenant.insert(&name("d"), row(f64::from(a))).await.unwrap();
    }
    for descending in [false, true] {
        let query = Asked::all("by_a", descending).query();
        let one = page(&tenant, &query, &first(3)).await;
        let again = page(&tenant, &query, &first(3)).await;
        assert_eq!(one, again, "the same page has the same cursors");
        let until = PageRequest {
            end_cursor: Some(one.continue_cursor.clone()),
            ..first(1)
        };
        assert_eq!(ids(&page(&tenant, &query, &until).await), ids(&one));
        let inside = if descending { 4.5 } else { 0.5 };
        let added = tenant.insert(&name("d"), row(inside)).await.unwrap();
        let grown = page(&tenant, &query, &until).await;
        assert_eq!(
            grown.page.len(),
            4,
            "one more, whatever the size of the page"
        );
        assert!(ids(&grown).contains(&added));
        assert_eq!(grown.continue_cursor, one.continue_cursor);
        assert!(!grown.is_done);
        let next = page(&tenant, &query, &after(&one.continue_cursor, 10)).await;
        assert_eq!(next.page.len(), 3);
        assert!(next.is_done);
        // Behind the end there is nothing, and that is the end again.
        let end = page(&tenant, &query, &after(&next.continue_cursor, 10)).await;
        assert!(end.is_done && end.page.is_empty());
        assert_eq!(end.continue_cursor, next.continue_cursor);
        // The two halves of a page are the page.
        let split = grown.split_cursor.clone().unwrap();
        let left = PageRequest {
            end_cursor: Some(split.clone()),
            ..first(1)
        };
        let right = PageRequest {
            end_cursor: Some(one.continue_cursor.clone()),
            ..after(&split, 1)
        };
        let mut halves = ids(&page(&tenant, &query, &left).await);
        assert_eq!(halves.len(), 2);
        halves.extend(ids(&page(&tenant, &query, &right).await));
        assert_eq!(halves, ids(&grown));
        tenant.delete(&name("d"), &added.to_string()).await.unwrap();
    }
}

#[tokio::test]
async fn a_page_of_exactly_what_there_is_does_not_know_that_it_is_the_last() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(3), 4).await;
    let query = Asked::all("by_creation_time", false).query();
    let one = page(&tenant, &query, &first(4)).await;
    assert_eq!((one.page.len(), one.is_done), (4, false));
    let two = page(&tenant, &query, &after(&one.continue_cursor, 4)).await;
    assert_eq!((two.page.len(), two.is_done), (0, true));
    let none = page(&tenant, &query, &first(0)).await;
    assert_eq!((none.page.len(), none.is_done), (0, false));
    let all = page(&tenant, &query, &after(&none.continue_cursor, 9)).await;
    assert_eq!((all.page.len(), all.is_done), (4, true));
}

#[tokio::test]
async fn a_cursor_of_another_query_or_tenant_is_refused() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(4), 9).await;
    let other = world.create("other").await;
    other
        .insert(&name(FUNCTION_TABLE), Object::new())
        .await
        .unwrap();
    let query = Asked::all("by_creation_time", false).query();
    let cursor = page(&tenant, &query, &first(2)).await.continue_cursor;
    let mut filtered = Asked::all("by_creation_time", false);
    filtered.filter = Some(filters()[0].clone());
    let text = r#"InvalidCursor: Tried to run a query starting from a cursor, but it looks like this cursor is from a different query."#;
    let cases = [
        (
            &tenant,
            Asked::all("by_creation_time", true),
            cursor.clone(),
        ),
        (&tenant, Asked::all("by_id", false), cursor.clone()),
        (&tenant, filtered, cursor.clone()),
        (
            &other,
            Asked::all("by_creation_time", false),
            cursor.clone(),
        ),
        (
            &tenant,
            Asked::all("by_creation_time", false),
            format!("{cursor}A"),
        ),
        (
            &tenant,
            Asked::all("by_creation_time", false),
            String::new(),
        ),
        (
            &tenant,
            Asked::all("by_creation_time", false),
            "_end_cursor".into(),
        ),
    ];
    for (tenant, asked, cursor) in cases {
        let mut tx = tenant.begin_read(None).await.unwrap();
        match tx.fn_page(&asked.query(), &after(&cursor, 2)).await {
            Err(FunctionError::User {
                code,
                message,
                data,
            }) => {
                assert_eq!((code, message.as_str()), ("InvalidCursor", text));
                let expected =
                    json!({"isConvexSystemError": true, "paginationError": "InvalidCursor"});
                assert_eq!(data, Some(expected));
            }
            other => panic!("{asked:?} {cursor}: {other:?}"),
        }
    }
}

/// A cursor is good for an index that was made again, and not for another one of that name.
#[tokio::test]
async fn a_cursor_outlives_its_index_but_not_its_fields() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(6), 9).await;
    let query = Asked::all("by_a", false).query();
    let cursor = page(&tenant, &query, &first(4)).await.continue_cursor;
    let rest = page(&tenant, &query, &after(&cursor, 9)).await;
    for (field, good) in [("a", true), ("n", false)] {
        let none: &[(&str, &[&str])] = &[];
        let again: &[(&str, &[&str])] = &[("by_a", &[field])];
        for indexes in [none, again] {
            let declared = schema(FUNCTION_TABLE, &["a", "n"], indexes);
            tenant.put_schema(declared).await.unwrap();
        }
        indexes_ready(&tenant, FUNCTION_TABLE).await;
        let mut tx = tenant.begin_read(None).await.unwrap();
        let found = tx.fn_page(&query, &after(&cursor, 9)).await;
        if good {
            assert_eq!(ids(&found.unwrap()), ids(&rest));
        } else {
            assert_eq!(caught(found).0, "InvalidCursor");
        }
    }
}

#[tokio::test]
async fn limits_end_a_page_early() {
    let world = World::new().await;
    let tenant = function_tenant(&world, &mut Random::new(5), 20).await;
    let mut asked = Asked::all("by_creation_time", false);
    asked.filter = Some((json!({"$literal": false}), |_| false));
    let mut request = first(10);
    request.max_rows = Some(8);
    let got = page(&tenant, &asked.query(), &request).await;
    assert_eq!((got.page.len(), got.is_done), (0, false));
    assert_eq!(got.page_status, Some(PageStatus::SplitRequired));
    assert!(got.split_cursor.is_some());
    request.cursor = Some(got.continue_cursor);
    request.max_rows = None;
    let rest = page(&tenant, &asked.query(), &request).await;
    assert_eq!((rest.is_done, rest.page_status), (true, None));

    let query = Asked::all("by_creation_time", false).query();
    let mut request = first(10);
    request.max_bytes = Some(1);
    let got = page(&tenant, &query, &request).await;
    assert_eq!(got.page.len(), 1, "a page makes progress");
    assert_eq!(got.page_status, Some(PageStatus::SplitRequired));
    assert_eq!(got.split_cursor, None);
}

/// 17 MiB of documents: a page ends before it reads too much, and the next one goes on.
#[tokio::test]
async fn a_page_ends_where_the_transaction_would_read_too_much() {
    let world = World::new().await;
    let tenant = world.create("t").await;
    let body = "x".repeat(1_000_000);
    for _ in 0..18 {
        let fields = object([("s", text(&body))]);
        tenant.insert(&name(FUNCTION_TABLE), fields).await.unwrap();
    }
    let query = Asked::all("by_creation_time", false).query();
    let got = page(&tenant, &query, &first(100)).await;
    assert_eq!((got.page.len(), got.is_done), (16, false));
    assert_eq!(got.page_status, Some(PageStatus::SplitRequired));
    let rest = page(&tenant, &query, &after(&got.continue_cursor, 100)).await;
    assert_eq!((rest.page.len(), rest.is_done), (2, true));
    let twelve = page(&tenant, &query, &first(13)).await;
    assert_eq!(twelve.page_status, Some(PageStatus::SplitRecommended));
}
