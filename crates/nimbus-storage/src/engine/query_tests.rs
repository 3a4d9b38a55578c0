//! The planner: which index it takes, what it leaves to check, and that its key ranges hold
//! exactly the documents that the filters ask for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nimbus_core::{InternalId, TableNumber};
use proptest::prelude::*;

use super::*;
use crate::engine::catalog::IndexState;
use crate::engine::index;

fn table(indexes: &[&[&str]]) -> TableDef {
    let mut def = TableDef::new("t".parse().unwrap(), TableNumber::FIRST_USER);
    for (i, fields) in indexes.iter().enumerate() {
        def.indexes.push(IndexDef {
            id: i as u32 + 1,
            name: format!("by_{i}").parse().unwrap(),
            fields: fields.iter().map(|f| f.parse().unwrap()).collect(),
            state: IndexState::Enabled,
            push: None,
        });
    }
    def
}

fn filter(field: &str, op: &str, value: Value) -> Filter {
    Filter {
        field: field.parse().unwrap(),
        op: FilterOp::parse(op).unwrap(),
        value,
    }
}

fn query(filters: Vec<Filter>, order: Option<(&str, Direction)>) -> Query {
    Query {
        table: "t".parse().unwrap(),
        filters,
        order: order.map(|(f, direction)| Order {
            field: f.parse().unwrap(),
            direction,
        }),
        limit: None,
    }
}

fn chosen(plan: &Plan) -> u32 {
    match &plan.source {
        Source::Index { index, .. } => index.id,
        _ => 0,
    }
}

#[test]
fn the_index_with_most_equalities_wins() {
    let t = table(&[&["a"], &["a", "b"], &["c"]]);
    let one = |v: f64| Value::Float64(v);
    let cases = [
        (query(vec![filter("a", "eq", one(1.0))], None), 1, true, 0),
        (
            query(
                vec![filter("a", "eq", one(1.0)), filter("b", "eq", one(2.0))],
                None,
            ),
            2,
            true,
            0,
        ),
        (
            query(
                vec![filter("a", "eq", one(1.0)), filter("b", "gt", one(2.0))],
                None,
            ),
            2,
            false,
            0,
        ),
        (
            query(
                vec![filter("a", "eq", one(1.0))],
                Some(("b", Direction::Backward)),
            ),
            2,
            true,
            0,
        ),
        (
            query(
                vec![filter("c", "gt", one(1.0))],
                Some(("c", Direction::Forward)),
            ),
            3,
            true,
            0,
        ),
        (query(vec![filter("b", "eq", one(1.0))], None), 0, true, 1),
        (query(vec![filter("a", "neq", one(1.0))], None), 0, true, 1),
        (query(vec![], Some(("a", Direction::Forward))), 1, true, 0),
        (query(vec![], Some(("b", Direction::Forward))), 0, false, 0),
        (
            query(
                vec![filter("c", "eq", one(1.0)), filter("z", "eq", one(1.0))],
                None,
            ),
            3,
            true,
            1,
        ),
    ];
    for (q, index, ordered, residual) in cases {
        let plan = plan(&t, &q);
        assert_eq!(
            (chosen(&plan), plan.ordered, plan.residual.len()),
            (index, ordered, residual),
            "{q:?}"
        );
    }
}

#[test]
fn an_index_that_is_not_enabled_is_not_used() {
    let mut t = table(&[&["a"]]);
    for state in [IndexState::Backfilling, IndexState::Deleting] {
        t.indexes[0].state = state;
        let plan = plan(&t, &query(vec![filter("a", "eq", Value::Null)], None));
        assert_eq!(chosen(&plan), 0, "{state:?}");
    }
}

#[test]
fn bad_bounds_are_refused() {
    let mut q = query(vec![], None);
    for (limit, ok) in [
        (Some(0), false),
        (Some(1), true),
        (Some(10_000), true),
        (Some(10_001), false),
        (None, true),
    ] {
        q.limit = limit;
        assert_eq!(q.check().is_ok(), ok, "{limit:?}");
    }
    for value in [Value::Null, Value::Bool(true), Value::Array(vec![])] {
        assert!(
            query(vec![filter("a", "gt", value.clone())], None)
                .check()
                .is_err()
        );
        assert!(query(vec![filter("a", "eq", value)], None).check().is_ok());
    }
}

#[test]
fn the_digest_depends_on_everything_but_the_limit() {
    let base = query(vec![filter("a", "eq", Value::Float64(1.0))], None);
    let mut limited = base.clone();
    limited.limit = Some(5);
    assert_eq!(base.digest(), limited.digest());
    let others = [
        query(vec![filter("a", "eq", Value::Int64(1))], None),
        query(vec![filter("a", "gte", Value::Float64(1.0))], None),
        query(vec![filter("b", "eq", Value::Float64(1.0))], None),
        query(
            vec![filter("a", "eq", Value::Float64(1.0))],
            Some(("a", Direction::Forward)),
        ),
        query(
            vec![filter("a", "eq", Value::Float64(1.0))],
            Some(("a", Direction::Backward)),
        ),
        query(vec![], None),
    ];
    for other in others {
        assert_ne!(base.digest(), other.digest(), "{other:?}");
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-3i64..3).prop_map(Value::Int64),
        prop_oneof![
            Just(-0.0),
            Just(f64::NAN),
            Just(f64::INFINITY),
            -3.0f64..3.0
        ]
        .prop_map(Value::Float64),
        prop_oneof![
            Just(""),
            Just("a"),
            Just("a\0"),
            Just("a\0b"),
            Just("ab"),
            Just("b")
        ]
        .prop_map(|s| Value::String(s.into())),
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..3)
            .prop_map(Value::Bytes),
        Just(Value::Array(vec![])),
    ]
}

proptest! {
    /// A document is inside the plan's key range exactly when it meets the covered filters.
    #[test]
    fn ranges_hold_exactly_what_the_filters_ask(
        a in prop::option::of(scalar()),
        b in prop::option::of(scalar()),
        equal in prop::option::of(scalar()),
        ranges in prop::collection::vec((0usize..4, scalar()), 0..3),
    ) {
        let t = table(&[&["a", "b"]]);
        let mut filters = Vec::new();
        let ranged = if equal.is_some() { "b" } else { "a" };
        if let Some(v) = equal {
            filters.push(filter("a", "eq", v));
        }
        for (op, v) in ranges {
            filters.push(filter(ranged, ["gt", "gte", "lt", "lte"][op], v));
        }
        let q = query(filters, None);
        prop_assume!(q.check().is_ok());
        let mut document = Object::new();
        a.map(|v| document.insert("a".into(), v));
        b.map(|v| document.insert("b".into(), v));
        document.insert("_creationTime".into(), Value::Float64(5.0));
        let wanted = q.filters.iter().all(|f| f.matches(&document));
        let plan = plan(&t, &q);
        let residual = plan.residual.iter().all(|f| f.matches(&document));
        let inside = match &plan.source {
            Source::Empty => false,
            Source::Index { index, lower, upper, .. } => {
                let full = index::full_key(index, InternalId::from_bytes([9; 16]), &document);
                full >= *lower && full < *upper
            }
            _ => true,
        };
        prop_assert_eq!(inside && residual, wanted, "{:?} {:?}", q, document);
    }
}
