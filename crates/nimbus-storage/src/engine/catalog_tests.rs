//! The stored form of table definitions: rows of earlier releases are read, and each version's text
//! stays what it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn apply(text: &str) -> TableDef {
    let mut catalog = Catalog::default();
    catalog.apply(b"table/t", Some(text.as_bytes())).unwrap();
    TableDef::clone(catalog.table(&"t".parse().unwrap()).unwrap())
}

fn text(def: &TableDef) -> String {
    String::from_utf8(def.encode().unwrap().to_vec()).unwrap()
}

/// Rows as written before tables could be deployed.
const NATIVE: [&str; 3] = [
    r#"{"number":10001,"name":"t","fields":null,"indexes":[]}"#,
    r#"{"number":10001,"name":"t","fields":[{"name":"a","field_type":"string","required":true}],"indexes":[{"id":1,"name":"by_a","fields":["a"],"state":"enabled"}]}"#,
    r#"{"number":10001,"name":"t","fields":null,"pending":[{"name":"a","field_type":"any","required":false}],"indexes":[{"id":1,"name":"by_a","fields":["a"],"state":"deleting"}]}"#,
];

/// Rows of tables that functions declare, and of a push in progress.
const DEPLOYED: [&str; 3] = [
    r#"{"number":10001,"name":"t","fields":null,"deployed":{},"indexes":[]}"#,
    r#"{"number":10001,"name":"t","fields":null,"deployed":{"documentType":{"type":"object","value":{"a":{"fieldType":{"type":"string"},"optional":false}}},"staged":["later"]},"indexes":[{"id":1,"name":"by_a","fields":["a"],"state":"enabled"}]}"#,
    r#"{"number":10001,"name":"t","fields":null,"push":{"id":"00","documentType":{"type":"any"}},"indexes":[{"id":1,"name":"by_a","fields":["a"],"state":"enabled"},{"id":2,"name":"by_a","fields":["b"],"state":"backfilling","push":"00"}]}"#,
];

#[test]
fn format_vectors() {
    for stored in NATIVE.into_iter().chain(DEPLOYED) {
        assert_eq!(text(&apply(stored)), stored);
    }
}

#[test]
fn indexes_of_a_push_are_kept_up_to_date_and_serve_nothing() {
    let def = apply(DEPLOYED[2]);
    let ids = |indexes: Vec<&IndexDef>| indexes.iter().map(|i| i.id).collect::<Vec<_>>();
    assert_eq!(ids(def.maintained().collect()), [1, 2]);
    assert_eq!(ids(def.declared().collect()), [1]);
    assert_eq!(ids(def.usable().collect()), [1]);
    assert_eq!(def.schema(), None, "a deployed table has no native schema");
}

#[test]
fn a_deployed_validator_is_enforced_and_a_pending_one_is_not() {
    let catalog = Catalog::default();
    let document = Object::from([("a".to_owned(), Value::Null)]);
    let error = apply(DEPLOYED[1])
        .check_deployed(&document, &catalog)
        .unwrap_err();
    assert!(
        error.to_string().starts_with(
            "Failed to insert or update a document in table \"t\" because it does not match the schema: "
        ),
        "{error}"
    );
    for free in [NATIVE[0], DEPLOYED[0], DEPLOYED[2]] {
        apply(free).check_deployed(&document, &catalog).unwrap();
    }
}

#[test]
fn damaged_rows_are_refused() {
    for (from, to) in [
        ("\"string\"", "\"strong\""),
        ("\"documentType\"", "\"documentType\":1,\"x\""),
        ("\"name\":\"t\"", "\"name\":\"u\""),
        ("enabled", "enable"),
    ] {
        let bad = DEPLOYED[1].replacen(from, to, 1);
        let mut catalog = Catalog::default();
        let read = catalog.apply(b"table/t", Some(bad.as_bytes()));
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{bad}");
    }
}

#[test]
fn the_catalog_knows_names_and_numbers() {
    let mut catalog = Catalog::default();
    catalog
        .apply(b"table/t", Some(NATIVE[0].as_bytes()))
        .unwrap();
    assert_eq!(catalog.number("t"), Some(TableNumber::FIRST_USER));
    assert_eq!(catalog.name(TableNumber::FIRST_USER).as_deref(), Some("t"));
    assert_eq!(catalog.number("u"), None);
}
