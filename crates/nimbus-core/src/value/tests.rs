//! Tests of values: the vectors of `vectors/values.json`, the limits, and round trips.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::json::{JsonError, from_javascript, from_slice};

/// Values as JSON can carry them: legal names, one NaN, at most four levels.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let float = any::<u64>().prop_map(|bits| {
        let value = f64::from_bits(bits);
        Value::Float64(if value.is_nan() { CANONICAL_NAN } else { value })
    });
    let round = prop::sample::select(vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1e15,
        1e16,
        1e20,
        1e21,
        1e22,
        1e23,
        9_007_199_254_740_991.0,
        9_007_199_254_740_992.0,
        9_007_199_254_740_994.0,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        f64::INFINITY,
        f64::NEG_INFINITY,
        CANONICAL_NAN,
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int64),
        (-300_i64..300).prop_map(Value::Int64),
        float,
        any::<i32>().prop_map(|number| Value::Float64(f64::from(number))),
        round.prop_map(Value::Float64),
        any::<String>().prop_map(Value::String),
        "[\\x00-\\x02a]{0,4}".prop_map(Value::String),
        prop::collection::vec(any::<u8>(), 0..6).prop_map(Value::Bytes),
        prop::collection::vec(0_u8..2, 0..4).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("|[ab]|[ab]b|[ -#%-~][ -~]{0,3}", inner, 0..4)
                .prop_map(Value::Object),
        ]
    })
}

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    json: String,
    canonical: Option<String>,
    r#type: String,
    size: usize,
    nesting: usize,
}

#[derive(Deserialize)]
struct Invalid {
    json: String,
    error: String,
    says: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../vectors/values.json")).unwrap()
}

fn parse(json: &str) -> Result<Value, JsonError> {
    from_slice(json.as_bytes())
}

fn object(json: &str) -> Object {
    match parse(json).unwrap() {
        Value::Object(fields) => fields,
        other => panic!("{} is no object", other.type_name()),
    }
}

#[test]
fn valid_vectors_read_and_print() {
    for vector in vectors().valid {
        let value = parse(&vector.json).unwrap_or_else(|error| panic!("{}: {error}", vector.json));
        assert_eq!(
            value.to_json(),
            *vector.canonical.as_ref().unwrap_or(&vector.json)
        );
        assert_eq!(value.type_name(), vector.r#type, "{}", vector.json);
        assert_eq!(value.size(), vector.size, "size of {}", vector.json);
        assert_eq!(
            value.nesting(),
            vector.nesting,
            "nesting of {}",
            vector.json
        );
        check_value(&value).unwrap();
    }
}

#[test]
fn invalid_vectors_fail_for_the_stated_reason() {
    for vector in vectors().invalid {
        let error = parse(&vector.json).expect_err(&vector.json);
        let kind = format!("{error:?}");
        assert_eq!(
            kind.split([' ', '{']).next().unwrap(),
            vector.error,
            "{}",
            vector.json
        );
        let text = error.to_string();
        assert!(text.contains(&vector.says), "{}: {text}", vector.json);
    }
}

#[test]
fn floats_print_one_way() {
    for (value, json) in [
        (
            f64::from_bits(0xfff8_0000_0000_0001),
            "{\"$float\":\"AAAAAAAA+H8=\"}",
        ),
        (-0.0, "{\"$float\":\"AAAAAAAAAIA=\"}"),
        (f64::INFINITY, "{\"$float\":\"AAAAAAAA8H8=\"}"),
        (1.0, "1"),
        (-9_007_199_254_740_991.0, "-9007199254740991"),
        (9_007_199_254_740_992.0, "9007199254740992.0"),
        (0.1 + 0.2, "0.30000000000000004"),
    ] {
        assert_eq!(Value::Float64(value).to_json(), json);
    }
    assert_eq!(Value::Int64(5).to_json(), "{\"$integer\":\"BQAAAAAAAAA=\"}");
}

#[test]
fn every_nan_reads_as_the_one() {
    for json in ["AAAAAAAA+H8=", "AAAAAAAA+P8=", "AQAAAAAA8H8="] {
        let value = parse(&format!("{{\"$float\":\"{json}\"}}")).unwrap();
        assert_eq!(value, Value::Float64(CANONICAL_NAN), "{json}");
    }
}

#[test]
fn order_separates_floats_that_compare_equal_and_unites_nan() {
    let float = Value::Float64;
    assert_eq!(float(f64::NAN), float(f64::NAN));
    assert!(float(-0.0) < float(0.0));
    assert!(float(f64::INFINITY) < float(CANONICAL_NAN));
    assert!(float(f64::from_bits(0xfff8_0000_0000_0000)) < float(f64::NEG_INFINITY));
    assert!(Value::Int64(i64::MAX) < float(f64::NEG_INFINITY));
    assert_ne!(Value::Int64(1), float(1.0));
    // Code points, not UTF-16 units, which would put U+1F600 below U+FF5E.
    let text = |text: &str| Value::String(text.to_owned());
    assert!(text("\u{ff5e}") < text("\u{1f600}"));
}

#[test]
fn get_descends_through_objects_only() {
    let value = parse(r#"{"a":{"b":{"c":1},"d":[{"e":2}]},"a.b":3,"_id":"x"}"#).unwrap();
    for (path, found) in [
        ("a.b.c", Some("1")),
        ("a.b", Some("{\"c\":1}")),
        ("_id", Some("\"x\"")),
        ("a.d.e", None),
        ("a.d.0", None),
        ("a.b.c.d", None),
        ("b", None),
    ] {
        let path: FieldPath = path.parse().unwrap();
        assert_eq!(
            value.get(&path).map(Value::to_json).as_deref(),
            found,
            "{path}"
        );
    }
    assert_eq!(parse("[1]").unwrap().get(&"a".parse().unwrap()), None);
}

#[test]
fn object_field_of_a_type_keeps_the_rules() {
    #[derive(Debug, Deserialize)]
    struct Request {
        #[serde(deserialize_with = "deserialize_object")]
        fields: Object,
    }
    let read = |json: &str| from_slice::<Request>(json.as_bytes());
    let fields = read(r#"{"fields":{"b":1,"a":{"$integer":"AQAAAAAAAAA="}}}"#)
        .unwrap()
        .fields;
    let mut out = String::new();
    write_object_json(&fields, &mut out);
    assert_eq!(out, r#"{"a":{"$integer":"AQAAAAAAAAA="},"b":1}"#);
    for (json, says) in [
        (r#"{"fields":{"a":1,"a":2}}"#, "the same key twice"),
        (
            r#"{"fields":{"$integer":"AQAAAAAAAAA="}}"#,
            "`$integer` must be the only key",
        ),
        (
            r#"{"fields":{"$bytes":"AQ==","a":1}}"#,
            "`$bytes` must be the only key",
        ),
        (r#"{"fields":[1]}"#, "expected an object"),
    ] {
        let error = read(json).unwrap_err().to_string();
        assert!(error.contains(says), "{json}: {error}");
    }
}

#[test]
fn reading_stops_at_the_size_of_a_document() {
    #[derive(Debug, Deserialize)]
    struct Request {
        #[serde(deserialize_with = "deserialize_within_document")]
        value: Value,
    }
    let read = |value: &Value| {
        let text = format!("{{\"value\":{}}}", value.to_json());
        from_slice::<Request>(text.as_bytes()).map(|request| request.value)
    };
    // Each kind of value is counted as its size says, to the last byte.
    let kinds = [
        Value::Null,
        Value::Bool(true),
        Value::Int64(7),
        Value::Float64(1.5),
        Value::Float64(f64::INFINITY),
        Value::String("text".into()),
        Value::Bytes(vec![1, 2, 3]),
        Value::Array(vec![Value::Null, Value::Array(Vec::new())]),
        Value::Object(field("name", Value::Object(Object::new()))),
    ];
    for kind in kinds {
        // An array of two, with a string that fills it up.
        let rest = MAX_DOCUMENT_SIZE - 2 - kind.size() - 2;
        for (extra, fits) in [(0, true), (1, false)] {
            let filler = Value::String("x".repeat(rest + extra));
            let value = Value::Array(vec![kind.clone(), filler]);
            assert_eq!(value.size() <= MAX_DOCUMENT_SIZE, fits);
            match read(&value) {
                Ok(found) => assert!(fits && found == value, "{kind:?}"),
                Err(error) => {
                    assert!(!fits, "{kind:?}: {error}");
                    assert!(error.to_string().contains("1048576"), "{error}");
                }
            }
        }
    }
    // Where no document is meant, more may be read.
    let large = Value::String("x".repeat(2 * MAX_DOCUMENT_SIZE));
    assert_eq!(
        from_slice::<Value>(large.to_json().as_bytes()).unwrap(),
        large
    );
    assert!(read(&large).is_err());
}

#[derive(Debug, Deserialize)]
struct Held {
    #[serde(deserialize_with = "deserialize_within_memory")]
    value: Value,
}

#[test]
fn reading_stops_at_the_memory_of_a_value() {
    let read = |value: &Value| {
        let text = format!("{{\"value\":{}}}", value.to_json());
        from_slice::<Held>(text.as_bytes()).map(|held| held.value)
    };
    let many = (0..20).map(|at| (format!("field {at}"), Value::Null));
    let kinds = [
        Value::Null,
        Value::Int64(7),
        Value::Float64(f64::INFINITY),
        Value::String("text".into()),
        Value::Bytes(vec![1; 40]),
        Value::Array(vec![Value::Null, Value::Array(Vec::new())]),
        Value::Object(field("", Value::Object(Object::new()))),
        Value::Object(many.collect()),
    ];
    // Each kind is counted as its memory says, to the last byte.
    let filled = |length: usize| {
        let filler = Value::String("x".repeat(length));
        Value::Array([&kinds[..], &[filler]].concat())
    };
    let rest = MAX_VALUE_MEMORY - filled(16).memory() + 16;
    let most = filled(rest);
    assert_eq!(read(&most).unwrap(), most);
    let error = read(&filled(rest + 1)).unwrap_err().to_string();
    assert!(error.contains("bytes of memory"), "{error}");
}

#[test]
fn small_texts_of_large_values_are_not_taken_in() {
    #[derive(Debug, Deserialize)]
    struct Fields {
        #[serde(deserialize_with = "deserialize_object")]
        #[expect(dead_code, reason = "only whether it is read counts")]
        value: Object,
    }
    // Six megabytes of text each; held as they are, up to ninety times that.
    for part in [r#"{"":0}"#, "[0]"] {
        let part_of = |count| vec![part; count].join(",");
        let lists = 6_000_000 / (8_192 * part.len());
        let list = format!("[{}]", part_of(8_192));
        let text = format!(r#"{{"value":{{"a":[{}]}}}}"#, vec![list; lists].join(","));
        for error in [
            from_slice::<Held>(text.as_bytes()).unwrap_err(),
            from_slice::<Fields>(text.as_bytes()).unwrap_err(),
        ] {
            assert!(error.to_string().contains("bytes of memory"), "{error}");
        }
    }
    // The most that may be sent as text and as numbers is.
    let text = Value::String("x".repeat(MAX_ARGS_SIZE - 2));
    let numbers = Value::Array(vec![Value::Float64(0.25); 8_192]);
    let numbers = Value::Array(vec![numbers; 200]);
    for value in [text, numbers] {
        let text = format!("{{\"value\":{}}}", value.to_json());
        assert_eq!(from_slice::<Held>(text.as_bytes()).unwrap().value, value);
    }
}

#[test]
fn a_patch_tells_what_goes_away() {
    #[derive(Debug, Deserialize)]
    struct Patch {
        #[serde(deserialize_with = "deserialize_patch")]
        fields: std::collections::BTreeMap<String, Option<Value>>,
    }
    let read = |fields: &str| {
        let text = format!("{{\"fields\":{fields}}}");
        from_slice::<Patch>(text.as_bytes()).map(|patch| patch.fields)
    };
    let fields = read(r#"{"a":{"$undefined":null},"b":null,"c":{"d":1}}"#).unwrap();
    let inner = Value::Object(field("d", Value::Float64(1.0)));
    let expected = [("a", None), ("b", Some(Value::Null)), ("c", Some(inner))];
    assert_eq!(
        fields,
        expected.map(|(key, value)| (key.to_owned(), value)).into()
    );
    for (bad, says) in [
        (
            r#"{"a":{"b":{"$undefined":null}}}"#,
            "`$undefined` is not a value",
        ),
        (
            r#"{"a":[{"$undefined":null}]}"#,
            "`$undefined` is not a value",
        ),
        (r#"{"a":{"$undefined":null,"b":1}}"#, "`$undefined`"),
        (r#"{"a":{"$undefined":1}}"#, "expected unit"),
        (r#"{"$undefined":null}"#, "`$undefined` is not a value"),
        (r#"{"a":1,"a":{"$undefined":null}}"#, "the same key twice"),
        (r#"{"a":{"b":1,"b":2}}"#, "the same key twice"),
        ("[]", "expected an object"),
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{bad}: {error}");
    }
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

fn field(name: &str, value: Value) -> Object {
    Object::from([(name.to_owned(), value)])
}

#[test]
fn value_limits_hold_at_their_edge() {
    let text = |size: usize| Value::String("x".repeat(size - 2));
    let array = |length| Value::Array(vec![Value::Null; length]);
    let fields = |count: usize| {
        Value::Object(
            (0..count)
                .map(|index| (format!("f{index}"), Value::Null))
                .collect(),
        )
    };
    let name = |name: String| Value::Object(field(&name, Value::Null));
    for good in [
        text(MAX_ARGS_SIZE),
        nested(64),
        array(8192),
        fields(1024),
        name("x".repeat(1024)),
    ] {
        assert_eq!(check_value(&good), Ok(()));
    }
    let long = MAX_ARGS_SIZE + 1;
    for (bad, error) in [
        (
            text(long),
            ValueError::TooLarge {
                size: long,
                limit: MAX_ARGS_SIZE,
            },
        ),
        (
            nested(65),
            ValueError::TooNested {
                nesting: 65,
                limit: 64,
            },
        ),
        (
            array(8193),
            ValueError::ArrayTooLong {
                length: 8193,
                limit: 8192,
            },
        ),
        (
            fields(1025),
            ValueError::TooManyFields {
                count: 1025,
                limit: 1024,
            },
        ),
    ] {
        assert_eq!(check_value(&bad), Err(error.clone()));
        assert!(
            check_value(&Value::Array(vec![bad])).is_err(),
            "{error} within an array"
        );
    }
}

#[test]
fn field_names_follow_the_rule_at_every_depth() {
    for good in ["", " ", "~", "a.b", "a$", "_a", "_id", "0"] {
        assert_eq!(
            check_value(&Value::Object(field(good, Value::Null))),
            Ok(()),
            "{good:?}"
        );
    }
    for (bad, says) in [
        ("$", "starts with `$`"),
        ("$a", "starts with `$`"),
        ("\u{e9}", "printable ASCII"),
        ("a\n", "printable ASCII"),
        ("\u{7f}", "printable ASCII"),
        (&"x".repeat(1025), "longer than 1,024"),
    ] {
        for depth in 0..3 {
            let inner = Value::Object(field(bad, Value::Null));
            let value = (0..depth).fold(inner, |inner, _| Value::Object(field("a", inner)));
            let Value::Object(fields) = &value else {
                panic!()
            };
            for error in [
                check_value(&value),
                check_user_fields(fields),
                check_document(fields),
            ] {
                let Err(ValueError::FieldName { name, reason }) = error else {
                    panic!("{bad:?} at depth {depth}: {error:?}");
                };
                assert!(reason.contains(says), "{bad:?}: {reason}");
                assert!(name.chars().count() <= 80 && bad.starts_with(&name));
            }
        }
    }
}

#[test]
fn system_fields_are_for_the_system() {
    let whole = object(r#"{"_id":"x","_creationTime":1,"a":{"_b":2}}"#);
    assert_eq!(check_document(&whole), Ok(()));
    for name in ["_id", "_creationTime", "_", "_a"] {
        let reserved = Err(ValueError::ReservedField {
            name: name.to_owned(),
        });
        assert_eq!(check_user_fields(&field(name, Value::Null)), reserved);
        let known = matches!(name, "_id" | "_creationTime");
        assert_eq!(check_document(&field(name, Value::Null)).is_ok(), known);
    }
    let inner = Value::Object(field("_a", Value::Null));
    assert_eq!(check_user_fields(&field("a", inner)), Ok(()));
}

#[test]
fn document_limits_hold_at_their_edge() {
    // The object has 2 bytes, the name 1 + 1, the string 2.
    let sized = |size: usize| field("a", Value::String("x".repeat(size - 6)));
    for check in [check_user_fields, check_document] {
        assert_eq!(check(&sized(MAX_DOCUMENT_SIZE)), Ok(()));
        let (size, limit) = (MAX_DOCUMENT_SIZE + 1, MAX_DOCUMENT_SIZE);
        assert_eq!(
            check(&sized(size)),
            Err(ValueError::TooLarge { size, limit })
        );
        assert_eq!(check(&field("a", nested(15))), Ok(()));
        let deep = Err(ValueError::TooNested {
            nesting: 17,
            limit: 16,
        });
        assert_eq!(check(&field("a", nested(16))), deep);
    }
}

proptest! {
    #[test]
    fn json_reads_back_and_is_canonical(value in any_value()) {
        let json = value.to_json();
        let read = parse(&json).unwrap();
        prop_assert_eq!(&read, &value);
        prop_assert_eq!(read.to_json(), json);
    }

    #[test]
    fn both_writers_agree(value in any_value()) {
        prop_assert_eq!(serde_json::to_string(&value).unwrap(), value.to_json());
    }

    #[test]
    fn what_javascript_prints_reads_back(bits: u64, exponent in 50..70_i32) {
        // Rust's `Display` gives the digits of JavaScript below 1e21.
        let value = (bits as f64 / 2_f64.powi(64)) * 2_f64.powi(exponent);
        let read: Value = from_javascript(value.to_string().as_bytes()).unwrap();
        prop_assert_eq!(read, Value::Float64(value));
    }

    #[test]
    fn generated_values_pass_the_checks(value in any_value()) {
        prop_assert_eq!(check_value(&value), Ok(()));
    }

    #[test]
    fn equality_and_order_agree(a in any_value(), b in any_value(), c in any_value()) {
        prop_assert_eq!(&a, &a.clone());
        prop_assert_eq!(a == b, a.to_json() == b.to_json());
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        if a <= b && b <= c {
            prop_assert!(a <= c);
        }
    }
}
