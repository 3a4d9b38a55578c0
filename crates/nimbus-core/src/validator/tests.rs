//! Tests of validators: what is accepted, the exact failure texts, and what holds for all of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::value::tests::any_value;
use crate::{Object, TableNumber};

/// Table 10001 is `users`, 10002 is `messages`.
struct Two;

impl TableNames for Two {
    fn number(&self, name: &str) -> Option<TableNumber> {
        match name {
            "users" => TableNumber::new(10_001),
            "messages" => TableNumber::new(10_002),
            "_storage" => TableNumber::new(5),
            _ => None,
        }
    }

    fn name(&self, number: TableNumber) -> Option<String> {
        match number.get() {
            10_001 => Some("users".into()),
            10_002 => Some("messages".into()),
            _ => None,
        }
    }
}

fn parse(json: Json) -> Validator {
    let validator = Validator::parse(&json).unwrap();
    assert_eq!(
        Validator::from_json_text(&validator.to_json().to_string()).unwrap(),
        validator
    );
    validator
}

fn value(json: Json) -> Value {
    serde_json::from_value(json).unwrap()
}

fn required(json: Json) -> Json {
    json!({"fieldType": json, "optional": false})
}

fn optional(json: Json) -> Json {
    json!({"fieldType": json, "optional": true})
}

fn object(fields: Json) -> Json {
    json!({"type": "object", "value": fields})
}

fn simple(name: &str) -> Json {
    json!({ "type": name })
}

fn id(table: u32) -> String {
    let internal = crate::InternalId::from_bytes([7; 16]);
    let table = TableNumber::new(table).unwrap();
    crate::DocumentId { table, internal }.to_string()
}

#[test]
fn scalars() {
    let one = json!({"$integer": "AQAAAAAAAAA="});
    let values = [
        ("null", json!(null)),
        ("number", json!(1)),
        ("bigint", one.clone()),
        ("boolean", json!(true)),
        ("string", json!("a")),
        ("bytes", json!({"$bytes": "AQI="})),
        ("array", json!([1])),
        ("object", json!({"a": 1})),
    ];
    let kinds = [
        "null", "number", "bigint", "boolean", "string", "bytes", "any", "commitTs",
    ];
    for kind in kinds {
        let validator = parse(simple(kind));
        for (name, json) in &values {
            let expected =
                kind == "any" || kind == *name || (kind == "commitTs" && *name == "bigint");
            let found = validator.check(&value(json.clone()), &Two);
            assert_eq!(found.is_ok(), expected, "{kind} of {name}");
        }
    }
}

#[test]
fn the_texts_of_failures() {
    let user = id(10_001);
    let system = id(5);
    let unknown = id(10_009);
    let messages = json!({"type": "id", "tableName": "messages"});
    let nested = object(json!({
        "a": required(object(json!({"b": required(json!({"type": "array", "value": simple("string")}))}))),
    }));
    let long_record =
        json!({"type": "record", "keys": simple("string"), "values": required(simple("number"))});
    let cases = [
        (
            object(json!({"body": required(simple("string")), "to": optional(simple("bigint"))})),
            json!({}),
            "Object is missing the required field `body`. Consider wrapping the field validator in `v.optional(...)` if this is expected.\n\n\
             Object: {}\nValidator: v.object({body: v.string(), to: v.optional(v.int64())})".to_owned(),
        ),
        (
            object(json!({"a": optional(object(json!({})))})),
            json!({"a": {"x": 1, "y-z": {"$integer": "AQAAAAAAAAA="}}}),
            "Object contains extra field `x` that is not in the validator.\nPath: .a\n\
             Object: {x: 1.0, \"y-z\": 1n}\nValidator: v.object({})".to_owned(),
        ),
        (
            nested,
            json!({"a": {"b": ["x", null]}}),
            "Value does not match validator.\nPath: .a.b[1]\nValue: null\nValidator: v.string()".to_owned(),
        ),
        (
            json!({"type": "union", "value": [simple("null"), {"type": "literal", "value": "a"}]}),
            json!("say \"b\"\n"),
            "Value does not match validator.\n\nValue: \"say \\\"b\\\"\\n\"\nValidator: v.union(v.null(), v.literal(\"a\"))".to_owned(),
        ),
        (
            json!({"type": "literal", "value": 2.5}),
            json!(true),
            "`true` does not match literal validator `v.literal(2.5)`.\n\nValue: true\nValidator: v.literal(2.5)".to_owned(),
        ),
        (
            messages.clone(),
            json!(user),
            format!(
                "Found ID \"{user}\" from table `users`, which does not match the table name in validator `v.id(\"messages\")`.\n\n\
                 Value: \"{user}\"\nValidator: v.id(\"messages\")"
            ),
        ),
        (
            messages.clone(),
            json!(system),
            format!(
                "Found ID \"{system}\" from a system table, which does not match the table name in validator `v.id(\"messages\")`.\n\n\
                 Value: \"{system}\"\nValidator: v.id(\"messages\")"
            ),
        ),
        (
            messages.clone(),
            json!(unknown),
            format!("Value does not match validator.\n\nValue: \"{unknown}\"\nValidator: v.id(\"messages\")"),
        ),
        (
            messages,
            json!("x"),
            "Value does not match validator.\n\nValue: \"x\"\nValidator: v.id(\"messages\")".to_owned(),
        ),
        (
            long_record,
            json!({"a b": {"$bytes": "AQI="}}),
            "Value does not match validator.\nPath: [\"a b\"]\nValue: b\"AQI=\"\nValidator: v.float64()".to_owned(),
        ),
    ];
    for (validator, given, expected) in cases {
        let failure = parse(validator).check(&value(given), &Two).unwrap_err();
        assert_eq!(failure.to_string(), expected);
    }
}

#[test]
fn ids_of_their_table_match() {
    for (table, number) in [("users", 10_001), ("messages", 10_002), ("_storage", 5)] {
        let validator = parse(json!({"type": "id", "tableName": table}));
        assert_eq!(validator.check(&value(json!(id(number))), &Two), Ok(()));
    }
    let missing = parse(json!({"type": "id", "tableName": "missing"}));
    assert!(missing.check(&value(json!(id(10_001))), &Two).is_err());
}

#[test]
fn records_check_keys_and_values() {
    let keys = json!({"type": "union", "value": [{"type": "id", "tableName": "users"}, {"type": "literal", "value": "all"}]});
    let record =
        parse(json!({"type": "record", "keys": keys, "values": required(simple("number"))}));
    let mut good = Object::new();
    good.insert(id(10_001), Value::Float64(1.0));
    good.insert("all".into(), Value::Float64(2.0));
    assert_eq!(record.check_object(&good, &Two), Ok(()));
    good.insert(id(10_002), Value::Float64(2.0));
    let failure = record.check_object(&good, &Two).unwrap_err();
    assert_eq!(failure.message(), "Value does not match validator.");
    assert!(failure.to_string().contains(&id(10_002)), "{failure}");
}

#[test]
fn documents_may_have_their_system_fields() {
    let validator = parse(object(json!({"a": required(simple("number"))})));
    let mut document = Object::from([("a".to_owned(), Value::Float64(1.0))]);
    document.insert("_id".into(), Value::String(id(10_001)));
    document.insert("_creationTime".into(), Value::Float64(1.5));
    assert_eq!(validator.check_document(&document, &Two), Ok(()));
    assert!(validator.check_object(&document, &Two).is_err());
    document.insert("b".into(), Value::Null);
    let text = validator
        .check_document(&document, &Two)
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "Object contains extra field `b` that is not in the validator.\n\n\
         Object: {a: 1.0, b: null}\nValidator: v.object({a: v.float64()})"
    );
}

#[test]
fn failures_of_large_values_are_cut() {
    let failure = parse(simple("null"))
        .check(&Value::String("é".repeat(400_000)), &Two)
        .unwrap_err()
        .to_string();
    assert!(failure.len() < 17 * 1024, "{}", failure.len());
    assert!(failure.contains("…\nValidator: v.null()"), "{failure}");
}

#[test]
fn bad_validators_are_refused_with_the_place() {
    let deep = (0..MAX_VALIDATOR_DEPTH).fold(
        simple("null"),
        |inner, _| json!({"type": "array", "value": inner}),
    );
    let cases = [
        (
            json!(null),
            "the validator is not valid: it is not an object with a `type`",
        ),
        (json!({}), "has no `type`"),
        (json!({"type": 1}), "has no `type`"),
        (simple("float"), "type \"float\" is not known"),
        (
            json!({"type": "null", "extra": 1}),
            "key \"extra\" is not known",
        ),
        (json!({"type": "literal"}), "`value` is missing"),
        (json!({"type": "literal", "value": null}), "not null"),
        (json!({"type": "literal", "value": [1]}), "not array"),
        (
            json!({"type": "literal", "value": {"$bytes": "AQI="}}),
            "not bytes",
        ),
        (
            json!({"type": "literal", "value": {"$what": 1}}),
            "not a value",
        ),
        (
            json!({"type": "id", "tableName": "a-b"}),
            "\"a-b\" is not a table name",
        ),
        (
            json!({"type": "id", "tableName": 4}),
            "`tableName` is not a string",
        ),
        (json!({"type": "array", "value": simple("x")}), "at []"),
        (object(json!([])), "not an object of fields"),
        (
            object(json!({"a b": required(simple("null"))})),
            "\"a b\" is not an identifier",
        ),
        (
            object(json!({"": required(simple("null"))})),
            "\"\" is not an identifier",
        ),
        (
            object(json!({"a": simple("null")})),
            "at .a is not valid: key \"type\"",
        ),
        (
            object(json!({"a": {"fieldType": simple("null")}})),
            "`optional` is missing",
        ),
        (
            object(json!({"a": {"fieldType": simple("null"), "optional": 1}})),
            "not a boolean",
        ),
        (
            object(json!({"a": required(object(json!({"b": required(simple("x"))})))})),
            "at .a.b is",
        ),
        (
            json!({"type": "record", "keys": simple("number"), "values": required(simple("any"))}),
            "strings or ids",
        ),
        (
            json!({"type": "record", "keys": simple("string"), "values": optional(simple("any"))}),
            "cannot be optional",
        ),
        (
            json!({"type": "union", "value": {}}),
            "not an array of validators",
        ),
        (
            json!({"type": "union", "value": [simple("null"), simple("x")]}),
            "at <1> is",
        ),
        (deep, "64 levels deep"),
    ];
    for (json, says) in cases {
        let error = Validator::parse(&json).unwrap_err().to_string();
        assert!(error.contains(says), "{json}: {error}");
    }
    let many: serde_json::Map<String, Json> = (0..1_025)
        .map(|n| (format!("f{n}"), required(simple("any"))))
        .collect();
    let error = Validator::parse(&object(Json::Object(many))).unwrap_err();
    assert!(error.to_string().contains("1025 fields"), "{error}");
    for text in ["", "{", "[1,]", "{\"type\":\"null\"} x"] {
        assert!(matches!(
            Validator::from_json_text(text),
            Err(ValidatorError::Json(_))
        ));
    }
}

#[test]
fn supersets_by_example() {
    let string = || simple("string");
    let literal = |value: Json| json!({"type": "literal", "value": value});
    let union = |members: Vec<Json>| json!({"type": "union", "value": members});
    let record = |values: Json| json!({"type": "record", "keys": string(), "values": values});
    let cases = [
        (simple("any"), string(), true),
        (string(), simple("any"), false),
        (string(), literal(json!("a")), true),
        (literal(json!("a")), string(), false),
        (string(), json!({"type": "id", "tableName": "users"}), true),
        (union(vec![string(), simple("null")]), string(), true),
        (
            union(vec![string(), simple("null")]),
            union(vec![simple("null"), literal(json!("a"))]),
            true,
        ),
        (string(), union(vec![]), true),
        (union(vec![]), string(), false),
        (
            object(json!({"a": optional(string())})),
            object(json!({})),
            true,
        ),
        (
            object(json!({"a": optional(string())})),
            object(json!({"a": required(string())})),
            true,
        ),
        (
            object(json!({"a": required(string())})),
            object(json!({"a": optional(string())})),
            false,
        ),
        (
            object(json!({"a": required(string())})),
            object(json!({})),
            false,
        ),
        (
            object(json!({})),
            object(json!({"a": optional(string())})),
            false,
        ),
        (
            record(required(simple("any"))),
            record(required(string())),
            true,
        ),
        (
            record(required(string())),
            record(required(simple("any"))),
            false,
        ),
        (
            json!({"type": "array", "value": simple("any")}),
            json!({"type": "array", "value": string()}),
            true,
        ),
        (
            simple("bigint"),
            literal(json!({"$integer": "AQAAAAAAAAA="})),
            true,
        ),
        (simple("number"), literal(json!(1)), true),
        (simple("boolean"), literal(json!(true)), true),
        (simple("boolean"), literal(json!(1)), false),
    ];
    for (wide, narrow, expected) in cases {
        let (wide, narrow) = (parse(wide), parse(narrow));
        assert_eq!(wide.is_superset_of(&narrow), expected, "{wide} ⊇ {narrow}");
    }
}

#[test]
fn what_a_document_validator_says_about_itself() {
    let document = object(
        json!({"_x": required(simple("any")), "to": optional(json!({"type": "id", "tableName": "users"}))}),
    );
    let both = parse(json!({"type": "union", "value": [document, simple("any")]}));
    assert!(both.is_for_documents() && !both.is_any() && !both.is_object());
    assert_eq!(both.top_fields().collect::<Vec<_>>(), ["_x", "to"]);
    assert_eq!(both.referenced_tables().collect::<Vec<_>>(), ["users"]);
    assert!(!parse(simple("string")).is_for_documents());
    assert!(Validator::any().is_any());
}

/// Validators that accept `value`, among others, and some that do not.
fn like(value: &Value) -> BoxedStrategy<Validator> {
    let kind = match value {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Boolean,
        Value::Int64(_) => Kind::Bigint,
        Value::Float64(_) => Kind::Number,
        Value::String(_) => Kind::String,
        Value::Bytes(_) => Kind::Bytes,
        Value::Array(items) => {
            let members = items.iter().map(like).collect::<Vec<_>>();
            return members
                .prop_map(|m| Validator(Kind::Array(Box::new(Validator(Kind::Union(m))))))
                .boxed();
        }
        Value::Object(fields) => {
            let names: Vec<_> = fields.keys().cloned().collect();
            let members = fields.values().map(like).collect::<Vec<_>>();
            return (members, any::<bool>())
                .prop_map(move |(members, optional)| {
                    let fields = names.iter().cloned().zip(members).map(|(name, validator)| {
                        (
                            name,
                            Field {
                                validator,
                                optional,
                            },
                        )
                    });
                    Validator(Kind::Object(fields.collect()))
                })
                .boxed();
        }
    };
    let exact = match value {
        Value::Bool(_) | Value::Int64(_) | Value::String(_) => Kind::Literal(value.clone()),
        _ => kind.clone(),
    };
    prop_oneof![
        4 => Just(Validator(kind)),
        2 => Just(Validator(exact)),
        1 => Just(Validator::any()),
        1 => Just(Validator(Kind::Union(vec![Validator(Kind::Null), Validator::any()]))),
    ]
    .boxed()
}

fn value_and_validators() -> impl Strategy<Value = (Value, Validator, Validator)> {
    any_value().prop_flat_map(|value| {
        let (a, b) = (like(&value), like(&value));
        (Just(value), a, b)
    })
}

proptest! {
    #[test]
    fn a_validator_made_for_a_value_accepts_it((value, a, b) in value_and_validators()) {
        prop_assert_eq!(a.check(&value, &Two), Ok(()));
        prop_assert_eq!(b.check(&value, &Two), Ok(()));
    }

    #[test]
    fn supersets_accept_what_the_narrower_accepts((_, a, b) in value_and_validators(), other in any_value()) {
        prop_assert!(a.is_superset_of(&a));
        if a.is_superset_of(&b) && b.check(&other, &Two).is_ok() {
            prop_assert_eq!(a.check(&other, &Two), Ok(()));
        }
    }

    #[test]
    fn failures_have_their_lines((_, a, _) in value_and_validators(), other in any_value()) {
        if let Err(failure) = a.check(&other, &Two) {
            let text = failure.to_string();
            prop_assert!(text.starts_with(failure.message()));
            prop_assert!(text.contains("\nValidator: v."));
            prop_assert!(text.contains("\nValue: ") || text.contains("\nObject: "));
        }
    }

    #[test]
    fn no_json_panics(text in r#"([\[\]{},:]|"(type|value|keys|values|fieldType|optional|object|union|array|record|any|id|tableName)"|true|false|1){0,40}"#) {
        if let Ok(validator) = Validator::from_json_text(&text) {
            prop_assert_eq!(Validator::parse(&validator.to_json()), Ok(validator));
        }
    }
}

#[test]
fn a_validator_has_a_bounded_number_of_parts() {
    let of = |members: usize| {
        let member = simple("null");
        Validator::parse(&json!({"type": "union", "value": vec![member; members]}))
    };
    assert!(of(MAX_VALIDATOR_NODES - 1).is_ok());
    assert_eq!(
        of(MAX_VALIDATOR_NODES).unwrap_err().to_string(),
        "the validator is not valid: it consists of 10001 validators, counted with those inside them, at most 10000 are allowed"
    );
}
