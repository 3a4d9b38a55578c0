//! Validators (`nimbus_core::validator`): what is read is written in one form that reads back the same,
//! checking a value never fails in another way than with its text, and a superset accepts no less.

use arbitrary::Unstructured;
use nimbus_core::{TableNames, TableNumber, Validator, Value};

use crate::make;

/// Pieces of validators.
pub const WORDS: &[&str] = &[
    "{\"type\":\"null\"}",
    "{\"type\":\"number\"}",
    "{\"type\":\"any\"}",
    "{\"type\":\"commitTs\"}",
    "{\"type\":\"literal\",\"value\":",
    "{\"type\":\"id\",\"tableName\":\"users\"}",
    "{\"type\":\"array\",\"value\":",
    "{\"type\":\"record\",\"keys\":",
    "{\"type\":\"object\",\"value\":{",
    "{\"type\":\"union\",\"value\":[",
    "\"a\":{\"fieldType\":",
    ",\"optional\":false}",
    ",\"optional\":true}",
    ",\"values\":",
    "{\"$integer\":\"AQAAAAAAAAA=\"}",
];

/// Longest message of an error.
const MESSAGE: usize = 1_024;
/// Longest text of a failure: a value and a validator, both again in the message, and a path.
const FAILURE: usize = 160 * 1_024;

struct One;

impl TableNames for One {
    fn number(&self, name: &str) -> Option<TableNumber> {
        (name == "users").then_some(TableNumber::FIRST_USER)
    }

    fn name(&self, number: TableNumber) -> Option<String> {
        (number == TableNumber::FIRST_USER).then(|| "users".to_owned())
    }
}

/// Checks the bytes before the first zero as a validator, and the rest as the recipe of a value.
pub fn check(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == 0);
    let (text, rest) = data.split_at(end.unwrap_or(data.len()));
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match Validator::from_json_text(text) {
        Ok(validator) => holds(&validator, rest),
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.len() < MESSAGE,
                "{} bytes: {message}",
                message.len()
            );
        }
    }
}

fn holds(validator: &Validator, rest: &[u8]) {
    let json = validator.to_json();
    let again = Validator::parse(&json).expect("what was read is written as it reads");
    assert_eq!(&again, validator);
    assert!(validator.is_superset_of(&again));
    assert!(Validator::any().is_superset_of(validator));
    let made = make::value(&mut Unstructured::new(rest)).unwrap_or(Value::Null);
    let checked = validator.check(&made, &One);
    if validator.is_superset_of(&Validator::any()) {
        assert!(checked.is_ok(), "{validator} is as wide as any");
    }
    if let Err(failure) = &checked {
        let text = failure.to_string();
        assert!(text.len() < FAILURE, "{} bytes", text.len());
        assert!(text.contains("\nValidator: v."), "{text}");
    }
    if let Value::Object(fields) = &made {
        assert_eq!(checked, validator.check_object(fields, &One));
    }
}
