//! Queries as functions write them, and a naive model that answers them.
//!
//! The model sorts and compares values by itself; it must not use the engine's ranges or expressions.

use std::cmp::Ordering;

use nimbus_storage::core::{DocumentId, FieldPath, Object, Value};
use nimbus_storage::{FunctionError, FunctionQuery, Tenant, Transaction};
use serde_json::{Value as Json, json};

use super::{Random, int, lookup, name, num, object, schema, text};

pub const FUNCTION_TABLE: &str = "d";
/// The indexes of [`function_tenant`], with the fields that a range may name.
pub const FUNCTION_INDEXES: [(&str, &[&str]); 5] = [
    ("by_a", &["a", "_creationTime"]),
    ("by_ab", &["a", "o.x", "_creationTime"]),
    ("by_ox", &["o.x", "_creationTime"]),
    ("by_creation_time", &["_creationTime"]),
    ("by_id", &["_id"]),
];

/// A tenant whose table has the indexes above, and `count` documents.
pub async fn function_tenant(world: &super::World, random: &mut Random, count: usize) -> Tenant {
    let tenant = world.create("t").await;
    let indexes: &[(&str, &[&str])] = &[
        ("by_a", &["a"]),
        ("by_ab", &["a", "o.x"]),
        ("by_ox", &["o.x"]),
    ];
    let declared = schema(FUNCTION_TABLE, &["a", "o", "n"], indexes);
    tenant.put_schema(declared).await.unwrap();
    for _ in 0..count {
        let fields = any_fields(random);
        tenant.insert(&name(FUNCTION_TABLE), fields).await.unwrap();
    }
    tenant
}

/// A value of any type, from few, so that equal ones are common. `None` is a missing field.
pub fn any_value(random: &mut Random) -> Option<Value> {
    let long = |n: usize, end: &str| text(&format!("{}{end}", "p".repeat(n)));
    let values = [
        Value::Null,
        int(-1),
        int(0),
        int(1 << 40),
        num(-0.0),
        num(0.0),
        num(1.5),
        num(f64::NAN),
        num(f64::NEG_INFINITY),
        Value::Bool(false),
        Value::Bool(true),
        text(""),
        text("a"),
        text("a\0"),
        text("a\0b"),
        text("ab"),
        text("\u{10ffff}"),
        long(1_990, "1"),
        long(2_020, ""),
        long(2_100, "1"),
        long(2_100, "2"),
        long(4_000, "0"),
        Value::Bytes(vec![0, 255]),
        Value::Array(vec![]),
        Value::Array(vec![int(1), text("x")]),
        Value::Object(object([("x", num(1.0))])),
    ];
    if random.one_in(8) {
        return None;
    }
    Some(random.pick(&values).clone())
}

pub fn any_fields(random: &mut Random) -> Object {
    let mut fields = object([("n", num(random.below(10) as f64))]);
    if let Some(a) = any_value(random) {
        fields.insert("a".into(), a);
    }
    if let Some(x) = any_value(random) {
        fields.insert("o".into(), Value::Object(object([("x", x)])));
    }
    fields
}

fn operand(value: Option<&Value>) -> Json {
    match value {
        Some(value) => serde_json::from_str(&value.to_json()).unwrap(),
        None => json!({"$undefined": null}),
    }
}

#[derive(Clone, Debug)]
pub struct Term {
    pub op: &'static str,
    pub field: FieldPath,
    pub value: Option<Value>,
}

/// A filter in JSON, with what it means.
pub type Filtered = (Json, fn(&Object) -> bool);

pub fn filters() -> Vec<Filtered> {
    let n = json!({"$field": "n"});
    vec![
        (json!({"$lt": [n, {"$literal": 5}]}), |d| at(d) < 5.0),
        (
            json!({"$and": [{"$gte": [n, {"$literal": 2}]}, {"$not": {"$eq": [n, {"$literal": 4}]}}]}),
            |d| at(d) >= 2.0 && at(d) != 4.0,
        ),
        (
            json!({"$or": [{"$eq": [{"$mod": [n, {"$literal": 3}]}, {"$literal": 0}]},
                           {"$gt": [{"$neg": n}, {"$literal": -2}]}]}),
            |d| at(d) % 3.0 == 0.0 || -at(d) > -2.0,
        ),
        (
            json!({"$eq": [{"$field": "a"}, {"$literal": {"$undefined": null}}]}),
            |d| !d.contains_key("a"),
        ),
        (
            json!({"$neq": [{"$field": "_id"}, {"$literal": null}]}),
            |_| true,
        ),
    ]
}

fn at(document: &Object) -> f64 {
    match document.get("n") {
        Some(Value::Float64(n)) => *n,
        other => panic!("{other:?}"),
    }
}

/// A query, for the engine and for the model.
#[derive(Clone, Debug)]
pub struct Asked {
    pub index: &'static str,
    pub fields: Vec<FieldPath>,
    pub terms: Vec<Term>,
    pub descending: bool,
    pub filter: Option<Filtered>,
    pub limit: Option<usize>,
}

impl Asked {
    pub fn all(index: &'static str, descending: bool) -> Asked {
        let fields = FUNCTION_INDEXES.iter().find(|(name, _)| *name == index);
        Asked {
            index,
            fields: fields.unwrap().1.iter().map(|f| name(f)).collect(),
            terms: Vec::new(),
            descending,
            filter: None,
            limit: None,
        }
    }

    /// A random query, with bounds that are often those of a document.
    pub fn any(random: &mut Random, model: &[(DocumentId, Object)]) -> Asked {
        let index = random.pick(&FUNCTION_INDEXES).0;
        let mut asked = Asked::all(index, random.one_in(2));
        let equal = random.below(asked.fields.len() + 1);
        let value = |random: &mut Random, field: &FieldPath| match model.is_empty() {
            false if !random.one_in(4) => lookup(&random.pick(model).1, field).cloned(),
            _ => any_value(random),
        };
        for field in asked.fields.clone().iter().take(equal) {
            let value = value(random, field);
            let field = field.clone();
            asked.terms.push(Term {
                op: "Eq",
                field,
                value,
            });
        }
        if let Some(field) = asked.fields.get(equal).cloned() {
            for (op, other) in [("Gt", "Gte"), ("Lt", "Lte")] {
                if random.one_in(2) {
                    let op = if random.one_in(2) { op } else { other };
                    let value = value(random, &field);
                    let field = field.clone();
                    asked.terms.push(Term { op, field, value });
                }
            }
        }
        if random.one_in(3) {
            asked.filter = Some(random.pick(&filters()).clone());
        }
        if random.one_in(3) {
            asked.limit = Some(random.below(6));
        }
        asked
    }

    pub fn json(&self) -> Json {
        let range: Vec<Json> = self
            .terms
            .iter()
            .map(|t| json!({"type": t.op, "fieldPath": t.field.as_str(), "value": operand(t.value.as_ref())}))
            .collect();
        let order = if self.descending {
            json!("desc")
        } else {
            json!(null)
        };
        let source = match self.index {
            "by_creation_time" if range.is_empty() => {
                json!({"type": "FullTableScan", "tableName": FUNCTION_TABLE, "order": order})
            }
            _ => json!({
                "type": "IndexRange",
                "indexName": format!("{FUNCTION_TABLE}.{}", self.index),
                "range": range,
                "order": order,
            }),
        };
        let mut operators = Vec::new();
        if let Some((filter, _)) = &self.filter {
            operators.push(json!({"filter": filter}));
        }
        if let Some(limit) = self.limit {
            operators.push(json!({"limit": limit}));
        }
        json!({"source": source, "operators": operators})
    }

    pub fn query(&self) -> FunctionQuery {
        FunctionQuery::parse(&self.json()).unwrap()
    }

    fn holds(&self, document: &Object) -> bool {
        self.terms.iter().all(|term| {
            let order = lookup(document, &term.field).cmp(&term.value.as_ref());
            match term.op {
                "Eq" => order == Ordering::Equal,
                "Gt" => order == Ordering::Greater,
                "Gte" => order != Ordering::Less,
                "Lt" => order == Ordering::Less,
                _ => order != Ordering::Greater,
            }
        })
    }

    pub fn passes(&self, document: &Object) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|(_, holds)| holds(document))
    }

    /// How two documents lie in the query's order.
    pub fn compare(&self, a: &(DocumentId, Object), b: &(DocumentId, Object)) -> Ordering {
        let fields = self.fields.iter().filter(|f| !f.is_id());
        let mut order = Ordering::Equal;
        for field in fields {
            order = order.then_with(|| lookup(&a.1, field).cmp(&lookup(&b.1, field)));
        }
        let order = order.then_with(|| a.0.internal.cmp(&b.0.internal));
        if self.descending {
            order.reverse()
        } else {
            order
        }
    }

    /// The documents in the range, in order, before filter and limit.
    pub fn range(&self, model: &[(DocumentId, Object)]) -> Vec<(DocumentId, Object)> {
        let inside = model.iter().filter(|(_, d)| self.holds(d));
        let mut found: Vec<_> = inside.cloned().collect();
        found.sort_by(|a, b| self.compare(a, b));
        found
    }

    /// The answer.
    pub fn answer(&self, model: &[(DocumentId, Object)]) -> Vec<DocumentId> {
        let range = self.range(model);
        let passing = range.iter().filter(|(_, d)| self.passes(d));
        let limit = self.limit.unwrap_or(usize::MAX);
        passing.take(limit).map(|(id, _)| *id).collect()
    }
}

/// Every document of the table, as the transaction sees it.
pub async fn model_of(tx: &mut Transaction) -> Vec<(DocumentId, Object)> {
    let query = nimbus_storage::Query::table(name(FUNCTION_TABLE));
    let all = tx.query(&query).await.unwrap();
    all.iter().map(|d| (d.id, d.fields().unwrap())).collect()
}

/// The whole answer of a query.
pub async fn drain(tx: &mut Transaction, query: &FunctionQuery) -> Vec<DocumentId> {
    let mut stream = tx.open_query(query).unwrap();
    let mut found = Vec::new();
    while let Some(document) = tx.next(&mut stream).await.unwrap() {
        found.push(document.id);
    }
    found
}

/// Code and message of an error that the function may catch.
pub fn caught<T: std::fmt::Debug>(result: Result<T, FunctionError>) -> (&'static str, String) {
    match result {
        Err(FunctionError::User { code, message, .. }) => (code, message),
        other => panic!("expected an error of the user's: {other:?}"),
    }
}
