//! The part of Hrana over HTTP that the provider speaks: one batch of conditional statements, as JSON.
//!
//! Must not know HTTP or what the statements mean. A stream lives for one request and is closed by it, so no baton is
//! ever kept, and a `base_url`, which says where the next request of a stream goes, has no use.

use data_encoding::{BASE64, BASE64_NOPAD};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

/// A value of SQL.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
    /// A kind that none of our columns holds.
    Other,
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::Blob(bytes.to_vec())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Integer(number)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        match self {
            Value::Null | Value::Other => map.serialize_entry("type", "null")?,
            Value::Integer(number) => {
                map.serialize_entry("type", "integer")?;
                // As text, since a number of JSON may lose digits above 2^53.
                map.serialize_entry("value", &number.to_string())?;
            }
            Value::Text(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("value", text)?;
            }
            Value::Blob(bytes) => {
                map.serialize_entry("type", "blob")?;
                map.serialize_entry("base64", &BASE64_NOPAD.encode(bytes))?;
            }
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct WireValue<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(default)]
    value: serde_json::Value,
    #[serde(default, borrow)]
    base64: Option<std::borrow::Cow<'a, str>>,
}

impl WireValue<'_> {
    fn value(self) -> Result<Value, String> {
        Ok(match (&*self.kind, self.value, self.base64) {
            ("null", ..) => Value::Null,
            ("integer", serde_json::Value::String(text), _) => {
                let number = text.parse();
                Value::Integer(number.map_err(|_| format!("{text:?} is no integer"))?)
            }
            ("text", serde_json::Value::String(text), _) => Value::Text(text),
            ("blob", _, Some(text)) => {
                let form = match text.ends_with('=') {
                    true => BASE64,
                    false => BASE64_NOPAD,
                };
                let bytes = form.decode(text.as_bytes());
                Value::Blob(bytes.map_err(|e| format!("a blob is no base64: {e}"))?)
            }
            ("float", ..) => Value::Other,
            (kind, ..) => return Err(format!("a value of type {kind:?}")),
        })
    }
}

/// When a step is done.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Condition {
    Ok { step: usize },
    Not { cond: Box<Condition> },
    And { conds: Vec<Condition> },
}

impl Condition {
    pub(super) fn not(self) -> Condition {
        Condition::Not {
            cond: Box::new(self),
        }
    }
}

#[derive(Serialize)]
struct Stmt {
    sql: String,
    args: Vec<Value>,
    want_rows: bool,
}

#[derive(Serialize)]
struct Step {
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Condition>,
    stmt: Stmt,
}

/// Statements that go to the primary in one request.
#[derive(Default)]
pub(super) struct Script {
    steps: Vec<Step>,
}

impl Script {
    /// A script of one statement that returns rows.
    pub(super) fn query(sql: impl Into<String>, args: Vec<Value>) -> Script {
        let mut script = Script::default();
        script.ask(sql, args);
        script
    }

    /// Adds a statement that is done in any case, and gives its number.
    pub(super) fn ask(&mut self, sql: impl Into<String>, args: Vec<Value>) -> usize {
        self.step(sql, args, None)
    }

    /// Adds a statement with a condition.
    pub(super) fn step(
        &mut self,
        sql: impl Into<String>,
        args: Vec<Value>,
        condition: Option<Condition>,
    ) -> usize {
        let stmt = Stmt {
            sql: sql.into(),
            args,
            want_rows: true,
        };
        self.steps.push(Step { condition, stmt });
        self.steps.len() - 1
    }

    /// Adds a statement that is done if the one before was.
    pub(super) fn then(&mut self, sql: impl Into<String>, args: Vec<Value>) -> usize {
        let condition = self.steps.len().checked_sub(1);
        let condition = condition.map(|step| Condition::Ok { step });
        self.step(sql, args, condition)
    }

    /// Begins a transaction that writes.
    pub(super) fn begin(&mut self) -> usize {
        self.then("BEGIN IMMEDIATE", Vec::new())
    }

    /// Ends the transaction that step `begun` began: with a commit if the step before was done, else with nothing
    /// changed. The number of the commit.
    pub(super) fn commit(&mut self, begun: usize) -> usize {
        let commit = self.then("COMMIT", Vec::new());
        // Fails, to no harm, where SQLite rolled back by itself.
        let not_done = vec![
            Condition::Ok { step: begun },
            Condition::Ok { step: commit }.not(),
        ];
        let rollback = Condition::And { conds: not_done };
        self.step("ROLLBACK", Vec::new(), Some(rollback));
        commit
    }

    /// The body of the request.
    pub(super) fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Request<'a> {
            Batch { batch: BatchBody<'a> },
            Close,
        }
        #[derive(Serialize)]
        struct BatchBody<'a> {
            steps: &'a [Step],
        }
        #[derive(Serialize)]
        struct Pipeline<'a> {
            baton: Option<&'a str>,
            requests: [Request<'a>; 2],
        }
        let batch = BatchBody { steps: &self.steps };
        serde_json::to_vec(&Pipeline {
            baton: None,
            requests: [Request::Batch { batch }, Request::Close],
        })
    }
}

/// An error that the primary gives for a statement or a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct SqlFault {
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: Option<String>,
}

impl SqlFault {
    /// Whether its code begins with one of these. Releases differ in how much of SQLite's extended code follows.
    pub(super) fn is(&self, codes: &[&str]) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        codes.iter().any(|c| code.starts_with(c))
    }
}

impl std::fmt::Display for SqlFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.as_deref().unwrap_or("no code");
        write!(f, "{} ({code})", self.message)
    }
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Done(Vec<Vec<Value>>),
    Failed(SqlFault),
    /// Its condition did not hold.
    Skipped,
}

impl Outcome {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Outcome::Done(_))
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    results: Vec<PipelineResult<'a>>,
}

#[derive(Deserialize)]
struct PipelineResult<'a> {
    #[serde(default, borrow)]
    response: Option<Response<'a>>,
    #[serde(default)]
    error: Option<SqlFault>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(default, borrow)]
    result: Option<BatchResult<'a>>,
}

#[derive(Deserialize)]
struct BatchResult<'a> {
    #[serde(borrow)]
    step_results: Vec<Option<StmtResult<'a>>>,
    step_errors: Vec<Option<SqlFault>>,
}

#[derive(Deserialize)]
struct StmtResult<'a> {
    #[serde(borrow)]
    rows: Vec<Vec<WireValue<'a>>>,
}

/// The outcome of each step in the answer to [`Script::body`]; the inner error is of the batch as a whole.
///
/// # Errors
/// What is wrong with the text: then nothing is known of what was done.
pub(super) fn read_answer(
    body: &[u8],
    steps: usize,
) -> Result<Result<Vec<Outcome>, SqlFault>, String> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let first = answer.results.into_iter().next().ok_or("no results")?;
    if let Some(error) = first.error {
        return Ok(Err(error));
    }
    let result = first.response.and_then(|r| r.result);
    let result = result.ok_or("a result without a response")?;
    if result.step_results.len() != steps || result.step_errors.len() != steps {
        let (found, errors) = (result.step_results.len(), result.step_errors.len());
        return Err(format!(
            "{found} results and {errors} errors of {steps} steps"
        ));
    }
    let both = result.step_results.into_iter().zip(result.step_errors);
    let outcomes = both.map(|both| match both {
        (_, Some(error)) => Ok(Outcome::Failed(error)),
        (None, None) => Ok(Outcome::Skipped),
        (Some(result), None) => {
            let rows = result.rows.into_iter();
            let rows = rows.map(|row| row.into_iter().map(WireValue::value).collect());
            Ok(Outcome::Done(rows.collect::<Result<_, String>>()?))
        }
    });
    outcomes.collect::<Result<_, String>>().map(Ok)
}

impl Script {
    /// How many steps there are.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_conditional_from_step_to_step() {
        let mut script = Script::default();
        let begun = script.begin();
        script.then(
            "INSERT INTO t VALUES (?1, ?2)",
            vec![7.into(), (&b"\xff\x00"[..]).into()],
        );
        let commit = script.commit(begun);
        assert_eq!((begun, commit, script.len()), (0, 2, 4));
        let body: serde_json::Value = serde_json::from_slice(&script.body().unwrap()).unwrap();
        let expected = serde_json::json!({"baton": null, "requests": [
            {"type": "batch", "batch": {"steps": [
                {"stmt": {"sql": "BEGIN IMMEDIATE", "args": [], "want_rows": true}},
                {"condition": {"type": "ok", "step": 0},
                 "stmt": {"sql": "INSERT INTO t VALUES (?1, ?2)", "want_rows": true,
                          "args": [{"type": "integer", "value": "7"}, {"type": "blob", "base64": "/wA"}]}},
                {"condition": {"type": "ok", "step": 1},
                 "stmt": {"sql": "COMMIT", "args": [], "want_rows": true}},
                {"condition": {"type": "and", "conds": [
                    {"type": "ok", "step": 0}, {"type": "not", "cond": {"type": "ok", "step": 2}}]},
                 "stmt": {"sql": "ROLLBACK", "args": [], "want_rows": true}}]}},
            {"type": "close"}]});
        assert_eq!(body, expected);
    }

    #[test]
    fn answers_are_read_and_their_defects_named() {
        let text = r#"{"baton":null,"base_url":"http://elsewhere","results":[{"type":"ok","response":{"type":"batch",
            "result":{"step_results":[{"cols":[],"rows":[[{"type":"integer","value":"-9007199254740993"},
            {"type":"blob","base64":"/wA="},{"type":"blob","base64":"/wA"},{"type":"text","value":"a\u0000"},
            {"type":"null"},{"type":"float","value":1.5}]],"affected_row_count":0},null,null],
            "step_errors":[null,{"message":"full","code":"SQLITE_FULL"},null]}}},{"type":"ok","response":{"type":"close"}}]}"#;
        let outcomes = read_answer(text.as_bytes(), 3).unwrap().unwrap();
        let blob = || Value::Blob(vec![255, 0]);
        let row = vec![
            Value::Integer(-9_007_199_254_740_993),
            blob(),
            blob(),
            Value::Text("a\0".into()),
            Value::Null,
            Value::Other,
        ];
        assert_eq!(outcomes[0], Outcome::Done(vec![row]));
        let Outcome::Failed(fault) = &outcomes[1] else {
            panic!("{outcomes:?}");
        };
        assert!(fault.is(&["SQLITE_FULL"]) && !fault.is(&["SQLITE_BUSY"]));
        assert_eq!(outcomes[2], Outcome::Skipped);
        assert!(
            read_answer(text.as_bytes(), 2)
                .unwrap_err()
                .contains("of 2 steps")
        );
        let refused = r#"{"results":[{"type":"error","error":{"message":"no"}}]}"#;
        assert_eq!(
            read_answer(refused.as_bytes(), 1)
                .unwrap()
                .unwrap_err()
                .to_string(),
            "no (no code)"
        );
        for broken in [
            "",
            "{",
            "{}",
            r#"{"results":[]}"#,
            r#"{"results":[{"type":"ok"}]}"#,
        ] {
            assert!(read_answer(broken.as_bytes(), 1).is_err(), "{broken}");
        }
        let wrong = text.replace("/wA=", "!");
        assert!(read_answer(wrong.as_bytes(), 3).is_err());
    }
}
