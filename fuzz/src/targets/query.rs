//! Request bodies (`nimbus-http`, `wire.rs`): any bytes are a request or a short 400, and a query
//! that was taken can be checked, bound to a cursor and matched.

use std::fmt::Write as _;

use arbitrary::{Result, Unstructured};
use nimbus_core::TableName;
use nimbus_http::fuzzing::{self, Refusal};
use nimbus_storage::fuzzing::query_digest;
use nimbus_storage::{Direction, Query};

use crate::make;

/// Members of request bodies.
pub const WORDS: &[&str] = &[
    "\"table\":\"t\"",
    "\"filters\":[",
    "{\"field\":\"a\",\"op\":\"eq\",\"value\":1}",
    "\"op\":\"gte\"",
    "\"order\":{\"field\":\"a\",\"direction\":\"desc\"}",
    "\"limit\":",
    "\"page_size\":",
    "\"after\":",
    "\"fields\":",
    "\"indexes\":[",
    "\"access_policy\":null",
    "\"$integer\":",
    "4294967296",
    "[[[[[[[[",
    "{\"a\":",
    "null",
];

/// Longest error envelope, bytes: what it repeats of the input is bounded.
const ENVELOPE: usize = 4_096;

/// Checks the bytes as the body of every route, and as the recipe of a query.
pub fn check(data: &[u8]) {
    match fuzzing::query(data) {
        Ok(query) => taken(&query),
        Err(refusal) => refused(&refusal),
    }
    match fuzzing::page(data) {
        Ok(page) => taken(&page.query),
        Err(refusal) => refused(&refusal),
    }
    let table: TableName = "tasks".parse().expect("a table name");
    fuzzing::other_bodies(data, &table).iter().for_each(refused);
    let _ = made(&mut Unstructured::new(data));
}

fn refused(refusal: &Refusal) {
    assert_eq!(refusal.status, 400);
    let size = refusal.body.len();
    assert!(size < ENVELOPE, "an envelope of {size} bytes");
    let body: serde_json::Value =
        serde_json::from_slice(&refusal.body).expect("the envelope is JSON");
    assert_eq!(body["error"]["code"], "op.invalid_input", "{body}");
    assert!(body["error"]["message"].is_string(), "{body}");
}

/// A query that was taken has one digest, and one that was also checked matches without a fault.
fn taken(query: &Query) {
    let again = fuzzing::query(render(query).as_bytes()).expect("a query that was taken");
    assert_eq!(&again, query);
    assert_eq!(query_digest(&again), query_digest(query));
    if let Err(error) = query.check() {
        assert!(error.to_string().len() < ENVELOPE, "{error}");
        return;
    }
    for filter in &query.filters {
        let value = [("a".to_owned(), filter.value.clone())];
        let document = nimbus_core::Object::from(value);
        filter.matches(&document);
    }
}

/// A query that can be asked for reads as it was meant.
fn made(u: &mut Unstructured<'_>) -> Result<()> {
    let (query, other) = (make::query(u)?, make::query(u)?);
    let text = render(&query);
    let read = match fuzzing::query(text.as_bytes()) {
        Ok(read) => read,
        Err(refusal) => panic!("{text}: {}", String::from_utf8_lossy(&refusal.body)),
    };
    // The payload of a NaN is not kept.
    let exact = !text.contains("AAAAAAAA+H8=");
    assert!(!exact || read == query, "{text}: {read:?}");
    // All but the limit is in the digest.
    let unlimited = |query: &Query| Query {
        limit: None,
        ..query.clone()
    };
    assert_eq!(
        query_digest(&query) == query_digest(&other),
        unlimited(&query) == unlimited(&other)
    );
    Ok(())
}

fn render(query: &Query) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let filters: Vec<String> = query
        .filters
        .iter()
        .map(|filter| {
            format!(
                "{{\"field\":{},\"op\":\"{}\",\"value\":{}}}",
                quoted(filter.field.as_str()),
                filter.op.name(),
                filter.value.to_json()
            )
        })
        .collect();
    let table = quoted(query.table.as_str());
    let mut text = format!("{{\"table\":{table},\"filters\":[{}]", filters.join(","));
    if let Some(order) = &query.order {
        let field = quoted(order.field.as_str());
        let direction = match order.direction {
            Direction::Forward => "asc",
            Direction::Backward => "desc",
        };
        let _ = write!(
            text,
            ",\"order\":{{\"field\":{field},\"direction\":\"{direction}\"}}"
        );
    }
    if let Some(limit) = query.limit {
        let _ = write!(text, ",\"limit\":{limit}");
    }
    text.push('}');
    text
}
