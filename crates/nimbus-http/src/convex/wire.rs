//! Bodies of requests and answers of the function API (convex.md 1.3 and 1.5).
//!
//! It must not know how functions run or who calls.

use nimbus_core::value::{MAX_VALUE_MEMORY, deserialize_within_memory};
use nimbus_core::{ErrorCode, Value};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ApiError, ApiResult};
use crate::functions::format::Format;
use crate::functions::path::{FunctionPath, FunctionPathError};
use crate::functions::{Bounded, FunctionCall, Ran};

/// Longest body: 16 MiB of arguments and room for what is around them.
pub(crate) const MAX_BODY: usize = 16 * 1024 * 1024 + 2_000;
/// Longest body of `echo` with a credential (convex.md 1.1).
pub(crate) const MAX_ECHO: usize = 128 * 1024 * 1024;
/// Most queries of one batch.
const MAX_BATCH: usize = 100;

/// A call as clients write it. Members that are not known are left alone: clients add their own.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallBody {
    path: String,
    #[serde(deserialize_with = "deserialize_within_memory")]
    args: Value,
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    component_path: Option<String>,
}

/// A call at a timestamp. Not one within the other: serde would keep every member that is not known.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallAtBody {
    ts: String,
    path: String,
    #[serde(deserialize_with = "deserialize_within_memory")]
    args: Value,
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    component_path: Option<String>,
}

/// Calls at one timestamp. Each is read by itself, so that what they need together is known in time.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchBody {
    queries: Vec<Box<RawValue>>,
}

/// A call whose path is in the request's path.
#[derive(Debug, Deserialize)]
pub(crate) struct RunBody {
    #[serde(deserialize_with = "deserialize_within_memory")]
    args: Value,
    #[serde(default)]
    format: Option<String>,
}

/// A call and the format that its answer has.
pub(crate) struct Wanted {
    pub call: FunctionCall,
    pub format: Format,
}

/// Reads a body as JavaScript printed it.
///
/// # Errors
/// 400 `BadJsonBody`.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    nimbus_core::json::from_javascript(body).map_err(|error| {
        ApiError::convex("BadJsonBody", ErrorCode::OpInvalidInput, error.to_string())
    })
}

impl CallBody {
    /// The call, in the format asked for or else `default`.
    ///
    /// # Errors
    /// 400 `BadConvexFunctionIdentifier`, `BadFormat`, `InvalidArguments`, `ComponentNotFound`.
    pub(crate) fn wanted(self, default: Format) -> ApiResult<Wanted> {
        if self.component_path.is_some_and(|path| !path.is_empty()) {
            let text = "this deployment has no components";
            let code = ErrorCode::OpInvalidInput;
            return Err(ApiError::convex("ComponentNotFound", code, text));
        }
        Ok(Wanted {
            call: FunctionCall {
                path: path(self.path.parse())?,
                args: arguments(self.args)?,
            },
            format: format(self.format.as_deref(), default)?,
        })
    }
}

impl BatchBody {
    /// The calls, in their order.
    ///
    /// # Errors
    /// 400 as [`CallBody::wanted`], and for more than 100 calls.
    pub(crate) fn wanted(self, default: Format) -> ApiResult<Vec<Wanted>> {
        if self.queries.len() > MAX_BATCH {
            let text = format!("a batch has at most {MAX_BATCH} queries");
            return Err(ApiError::invalid(text));
        }
        let (mut all, mut memory) = (Vec::with_capacity(self.queries.len()), 0);
        for query in self.queries {
            let wanted = parse::<CallBody>(query.get().as_bytes())?.wanted(default)?;
            memory += wanted.call.args.memory();
            if memory > MAX_VALUE_MEMORY {
                let text = format!(
                    "the arguments of a batch need more than {MAX_VALUE_MEMORY} bytes of memory together; send fewer queries at once"
                );
                return Err(ApiError::invalid(text));
            }
            all.push(wanted);
        }
        Ok(all)
    }
}

impl CallAtBody {
    /// The timestamp in ns, and the call.
    ///
    /// # Errors
    /// 400 as [`CallBody::wanted`], and for a timestamp that is none.
    pub(crate) fn wanted(self, default: Format) -> ApiResult<(u64, Wanted)> {
        let at = timestamp(&self.ts)?;
        let body = CallBody {
            path: self.path,
            args: self.args,
            format: self.format,
            component_path: self.component_path,
        };
        Ok((at, body.wanted(default)?))
    }
}

impl RunBody {
    /// The call of the function at `segments`.
    ///
    /// # Errors
    /// 400 as [`CallBody::wanted`], and `MissingIdentifier` for less than two segments.
    pub(crate) fn wanted(self, segments: &str) -> ApiResult<Wanted> {
        let Some(parsed) = FunctionPath::from_segments(segments) else {
            let text = "the path names no function: write /api/run/module/function";
            let code = ErrorCode::OpInvalidInput;
            return Err(ApiError::convex("MissingIdentifier", code, text));
        };
        Ok(Wanted {
            call: FunctionCall {
                path: path(parsed)?,
                args: arguments(self.args)?,
            },
            format: format(self.format.as_deref(), Format::Clean)?,
        })
    }
}

/// The call of `GET query?path=…&args=…&format=…`.
///
/// # Errors
/// 400 as [`CallBody::wanted`], and for parameters that are missing or given twice.
pub(crate) fn from_query(uri: &http::Uri, default: Format) -> ApiResult<Wanted> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| ApiError::invalid("the query string is malformed"))?;
    let one = |name: &str| {
        let mut found = pairs.0.iter().filter(|(key, _)| key == name);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(ApiError::invalid(format!("`{name}` is repeated"))),
            (first, None) => Ok(first.map(|(_, value)| value.as_str())),
        }
    };
    let needed = |name: &str| {
        let missing = || ApiError::invalid(format!("the query parameter `{name}` is missing"));
        one(name)?.ok_or_else(missing)
    };
    Ok(Wanted {
        call: FunctionCall {
            path: path(needed("path")?.parse())?,
            args: arguments(parse::<Bounded>(needed("args")?.as_bytes())?.0)?,
        },
        format: format(one("format")?, default)?,
    })
}

fn path(parsed: Result<FunctionPath, FunctionPathError>) -> ApiResult<FunctionPath> {
    let named = |error: FunctionPathError| {
        let code = ErrorCode::OpInvalidInput;
        ApiError::convex("BadConvexFunctionIdentifier", code, error.to_string())
    };
    parsed.map_err(named)
}

fn format(name: Option<&str>, default: Format) -> ApiResult<Format> {
    let Some(name) = name else {
        return Ok(default);
    };
    Format::named(name).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        let text = format!("unknown format `{shown}`, expected convex_encoded_json or json");
        ApiError::convex("BadFormat", ErrorCode::OpInvalidInput, text)
    })
}

/// The one object of arguments, whether or not it stands in an array.
fn arguments(args: Value) -> ApiResult<Value> {
    let refuse =
        |text: String| ApiError::convex("InvalidArguments", ErrorCode::OpInvalidInput, text);
    let object = match args {
        Value::Array(items) => {
            let mut items = items.into_iter();
            match (items.next(), items.next()) {
                (Some(only), None) => only,
                _ => {
                    return Err(refuse(
                        "a function takes exactly one object of arguments".into(),
                    ));
                }
            }
        }
        other => other,
    };
    if !matches!(object, Value::Object(_)) {
        let kind = object.type_name();
        let text = format!("the arguments of a function are an object, not of type {kind}");
        return Err(refuse(text));
    }
    Ok(object)
}

/// A timestamp in ns: base64 of eight bytes, the lowest first.
fn timestamp(text: &str) -> ApiResult<u64> {
    let bytes = data_encoding::BASE64.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| {
        let text = "`ts` must be base64 of eight bytes, as `query_ts` gives it";
        ApiError::convex("BadTimestamp", ErrorCode::OpInvalidInput, text)
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// The answer to `query_ts`.
pub(crate) fn timestamp_answer(at: u64) -> String {
    let text = data_encoding::BASE64.encode(&at.to_le_bytes());
    format!("{{\"ts\":\"{text}\"}}")
}

/// Appends what became of a call. `request` is the id that errors show.
pub(crate) fn write_outcome(ran: &Ran, format: Format, request: &str, out: &mut String) {
    let text = |value: &str, out: &mut String| Value::String(value.to_owned()).write_json(out);
    match &ran.result {
        Ok(value) => {
            out.push_str("{\"status\":\"success\",\"value\":");
            format.write(value, out);
        }
        Err(error) => {
            out.push_str("{\"status\":\"error\",\"errorMessage\":");
            let message = format!("[Request ID: {request}] Server Error\n{}", error.message);
            text(&message, out);
            if let Some(data) = &error.data {
                out.push_str(",\"errorData\":");
                format.write(data, out);
            }
        }
    }
    if !ran.log_lines.is_empty() {
        out.push_str(",\"logLines\":[");
        for (at, line) in ran.log_lines.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            text(line, out);
        }
        out.push(']');
    }
    out.push('}');
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#[path = "wire_tests.rs"]
mod tests;
