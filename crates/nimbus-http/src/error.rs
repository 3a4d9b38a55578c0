//! The error of this crate: what the caller is told, and what only the log is told.
//!
//! Every refusal on every path becomes an [`ApiError`] and leaves as the envelope of
//! nimbus.md 2.11. Statuses come from [`crate::status`]; this room must not choose them.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use nimbus_auth::AuthFailure;
use nimbus_core::{ErrorCode, JsonError, NameError};
use nimbus_storage::StoreError;
use nimbus_storage::backup::BackupError;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::edge::request_id::Ulid;
use crate::status::{Meaning, Remedy, Severity, Special, meaning};
use crate::store::DoorError;

/// Result of a handler.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

/// Text of every answer whose cause is the server's own affair.
const INTERNAL: &str = "the server failed; the request id leads to the cause in its log";

/// Seconds in `Retry-After`: queues here drain in milliseconds, and the header has no fractions.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Text for Convex clients of every answer whose cause is the server's own affair (convex.md 1.5).
const CONVEX_INTERNAL: &str = "Your request couldn't be completed. Try again later.";

/// The code for Convex clients (convex.md 1.5); what they have no word for keeps ours.
fn convex_code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::AuthUnauthorized => "Unauthenticated",
        ErrorCode::AuthForbidden | ErrorCode::AuthPermissionDenied => "Forbidden",
        ErrorCode::OpInvalidInput => "BadRequest",
        ErrorCode::OpConflict => "OptimisticConcurrencyControlFailure",
        ErrorCode::OpOutOfRetention => "OutOfRetention",
        ErrorCode::SessionTenantNotFound => "TenantNotFound",
        ErrorCode::ServiceRouteNotFound => "NotFound",
        ErrorCode::ServiceStorageBusy
        | ErrorCode::ServiceStorageTransient
        | ErrorCode::ServiceUnavailable
        | ErrorCode::ServiceTransport => "Overloaded",
        ErrorCode::ServiceStorageIo
        | ErrorCode::ServiceStorageCorruption
        | ErrorCode::ServiceStorageOther
        | ErrorCode::ServiceSerialization
        | ErrorCode::ServiceInternal => "InternalServerError",
        other => other.as_str(),
    }
}

/// A refusal or failure with its outside and its inside text.
#[derive(Debug)]
pub(crate) struct ApiError {
    code: ErrorCode,
    /// Set where the meaning differs from the one that the code has by itself.
    special: Option<Special>,
    /// Outside text.
    message: String,
    /// Data for programs; shapes are listed in docs/http-api.md.
    detail: Option<Box<Json>>,
    /// Inside text; logged with the request id, never sent.
    inside: Option<String>,
    /// The code for Convex clients, where it is not the one that follows from `code`.
    convex: Option<&'static str>,
    /// Seconds in `Retry-After`, where it is not [`RETRY_AFTER`].
    retry_after: Option<u64>,
    /// Whether the policy of the tenant does not let the caller do this.
    by_policy: bool,
}

/// The shape of an error for Convex clients (convex.md 1.5).
#[derive(Serialize)]
struct ConvexError<'a> {
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inner<'a> {
    code: ErrorCode,
    message: &'a str,
    request_id: &'a str,
    timestamp: String,
    severity: Severity,
    retryable: bool,
    detail: Option<&'a Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remediation: Option<Remedy>,
}

impl ApiError {
    /// An error with a code of the vocabulary and an outside text.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError {
            code,
            special: None,
            message: message.into(),
            detail: None,
            inside: None,
            convex: None,
            retry_after: None,
            by_policy: false,
        }
    }

    /// A refusal that follows from the policy of the tenant.
    pub(crate) fn by_policy(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError {
            by_policy: true,
            ..ApiError::new(code, message)
        }
    }

    /// Whether it is one of [`ApiError::by_policy`].
    pub(crate) fn is_by_policy(&self) -> bool {
        self.by_policy
    }

    /// An error with a code that Convex clients know.
    pub(crate) fn convex(
        name: &'static str,
        code: ErrorCode,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError {
            convex: Some(name),
            ..ApiError::new(code, message)
        }
    }

    /// The same error with the time after which it may be worth while to try again.
    pub(crate) fn retry_after(self, wait: std::time::Duration) -> ApiError {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        ApiError {
            retry_after: Some(seconds.max(1)),
            ..self
        }
    }

    /// `op.invalid_input` with an outside text.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::OpInvalidInput, message)
    }

    /// `service.internal`; the cause is logged only.
    pub(crate) fn internal(inside: impl Into<String>) -> ApiError {
        ApiError {
            inside: Some(inside.into()),
            ..ApiError::new(ErrorCode::ServiceInternal, INTERNAL)
        }
    }

    /// A case with a meaning of its own.
    pub(crate) fn special(case: Special, message: impl Into<String>) -> ApiError {
        let (code, _) = case.meaning();
        ApiError {
            special: Some(case),
            ..ApiError::new(code, message)
        }
    }

    /// A bound that was passed, as 413, 414 or 431 with its numbers.
    pub(crate) fn too_large(
        case: Special,
        cap: &'static str,
        observed: u64,
        limit: u64,
    ) -> ApiError {
        let message = format!("the {cap} cap of {limit} was passed (observed {observed})");
        ApiError::special(case, message)
            .with_detail(json!({"cap": cap, "observed": observed, "limit": limit}))
    }

    /// `service.route_not_found`.
    pub(crate) fn route_not_found() -> ApiError {
        ApiError::new(
            ErrorCode::ServiceRouteNotFound,
            "no such route; /openapi.json lists them",
        )
    }

    /// Its code.
    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// What is wrong.
    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The code that Convex clients are given, where it is a special one.
    #[cfg(test)]
    pub(crate) fn convex_name(&self) -> Option<&'static str> {
        self.convex
    }

    /// The same error with data for programs.
    pub(crate) fn with_detail(self, detail: Json) -> ApiError {
        ApiError {
            detail: Some(Box::new(detail)),
            ..self
        }
    }

    /// The same error with a cause for the log.
    pub(crate) fn with_inside(self, inside: impl Into<String>) -> ApiError {
        ApiError {
            inside: Some(inside.into()),
            ..self
        }
    }

    /// The same error, about a line of what was sent.
    pub(crate) fn at_line(self, line: u64) -> ApiError {
        ApiError {
            message: format!("line {line}: {}", self.message),
            detail: Some(Box::new(json!({"line": line, "cause": self.detail}))),
            ..self
        }
    }

    /// The same error with one more member in its data for programs.
    pub(crate) fn with_member(self, name: &str, value: impl Into<Json>) -> ApiError {
        let mut detail = self.detail.map_or_else(|| json!({}), |detail| *detail);
        if let Some(members) = detail.as_object_mut() {
            members.insert(name.to_owned(), value.into());
        }
        ApiError {
            detail: Some(Box::new(detail)),
            ..self
        }
    }

    /// Logs an error that came too late for an envelope: the answer's body was under way.
    pub(crate) fn log_late(&self, request: &Ulid) {
        let inside = self.inside.as_deref().unwrap_or("");
        let (request_id, code) = (request.as_str(), self.code.as_str());
        tracing::warn!(
            request_id,
            code,
            inside,
            "an answer was cut off: {}",
            self.message
        );
    }

    fn meaning(&self) -> Meaning {
        self.special
            .map_or_else(|| meaning(self.code), |case| case.meaning().1)
    }

    /// The status that the answer will have.
    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.meaning().status
    }

    /// The envelope as an answer. Logs the inside text under the request id.
    pub(crate) fn into_response(self, request: &Ulid) -> Response<Body> {
        let meaning = self.meaning();
        self.log(request, meaning.status);
        let envelope = Envelope {
            error: Inner {
                code: self.code,
                message: &self.message,
                request_id: request.as_str(),
                timestamp: format!("{:.3}", jiff::Timestamp::now()),
                severity: meaning.severity,
                retryable: meaning.retryable,
                detail: self.detail.as_deref(),
                remediation: meaning.remedy,
            },
        };
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        self.respond(meaning, body)
    }

    /// `{code, message}` as an answer. Logs the inside text under the request id.
    pub(crate) fn into_convex_response(self, request: &Ulid) -> Response<Body> {
        let meaning = self.meaning();
        self.log(request, meaning.status);
        let name = self.convex.unwrap_or_else(|| convex_code(self.code));
        let shape = ConvexError {
            code: name,
            message: match meaning.status {
                StatusCode::INTERNAL_SERVER_ERROR => CONVEX_INTERNAL,
                _ => &self.message,
            },
        };
        let body = serde_json::to_vec(&shape).unwrap_or_default();
        self.respond(meaning, body)
    }

    fn respond(&self, meaning: Meaning, body: Vec<u8>) -> Response<Body> {
        let status = meaning.status;
        let length = HeaderValue::from(body.len());
        let mut response = Response::new(Body::from(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        // Here, so that it stands in one place wherever the error comes from.
        headers.insert(header::CONTENT_LENGTH, length);
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"nimbus\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        let busy = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if meaning.retryable && busy.contains(&status) {
            let after = self.retry_after.map_or(RETRY_AFTER, HeaderValue::from);
            headers.insert(header::RETRY_AFTER, after);
        }
        response
    }

    fn log(&self, request: &Ulid, status: StatusCode) {
        let (id, code) = (request.as_str(), self.code.as_str());
        let inside = self.inside.as_deref().unwrap_or("");
        if status.is_server_error() {
            tracing::error!(request_id = id, code, inside, "{}", self.message);
        } else if !inside.is_empty() {
            tracing::debug!(request_id = id, code, inside, "{}", self.message);
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let message = error.to_string();
        let inside = error.inside();
        let special = match error {
            StoreError::OutcomeUnknown { .. } => Some(Special::OutcomeUnknown),
            StoreError::QuotaExceeded { .. } => Some(Special::QuotaReached),
            _ => None,
        };
        ApiError {
            inside,
            special,
            detail: store_detail(&error).map(Box::new),
            ..ApiError::new(
                special.map_or(error.code(), |case| case.meaning().0),
                message,
            )
        }
    }
}

fn store_detail(error: &StoreError) -> Option<Json> {
    Some(match error {
        StoreError::AtLine { line, source } => {
            json!({"line": line, "cause": store_detail(source)})
        }
        StoreError::CapExceeded {
            cap,
            limit,
            observed,
            ..
        } => {
            json!({"cap": cap, "observed": observed, "limit": limit})
        }
        StoreError::Conflict { attempts, .. } => json!({"attempts": attempts}),
        StoreError::Corrupt { .. } => json!({"storageKind": "corruption"}),
        StoreError::DocumentNotFound { table, id } => json!({"table": table, "documentId": id}),
        StoreError::MissingIndex { fields, limit } => json!({"fields": fields, "limit": limit}),
        StoreError::OutcomeUnknown { commit, .. } => json!({"commitId": commit.to_string()}),
        StoreError::OutOfRetention {
            requested,
            floor,
            head,
        } => {
            json!({"requested": requested, "floor": floor, "head": head})
        }
        StoreError::QuotaExceeded {
            quota,
            limit,
            observed,
        } => json!({"quota": quota, "limit": limit, "observed": observed}),
        StoreError::SchemaEnforcement { table, failure } => {
            json!({"table": table, "path": failure.path(), "reason": failure.message()})
        }
        StoreError::SchemaNotFound { table } => json!({"table": table}),
        StoreError::SchemaViolation {
            table,
            id,
            violations,
        } => {
            let violations: Vec<Json> = violations
                .iter()
                .map(|v| json!({"field": v.field, "expected": v.expected, "found": v.found}))
                .collect();
            match id {
                Some(id) => json!({"table": table, "documentId": id, "violations": violations}),
                None => json!({"table": table, "violations": violations}),
            }
        }
        StoreError::Storage(_) => json!({"storageKind": storage_kind(error.code())}),
        StoreError::StorageFull { .. } => json!({"storageKind": "full"}),
        StoreError::TableNotFound { table } => json!({"table": table}),
        StoreError::TenantExists { tenant }
        | StoreError::TenantNotFound { tenant }
        | StoreError::TenantUnregistered { tenant } => json!({"tenantId": tenant}),
        StoreError::TenantNameClash { tenant, existing } => {
            json!({"tenantId": tenant, "existing": existing})
        }
        _ => return None,
    })
}

/// The last part of a storage code, such as `busy`.
fn storage_kind(code: ErrorCode) -> &'static str {
    code.as_str()
        .strip_prefix("service.storage_")
        .unwrap_or("other")
}

impl From<AuthFailure> for ApiError {
    /// One outside text per code, so that the answer does not tell which part was wrong.
    fn from(failure: AuthFailure) -> ApiError {
        ApiError::new(failure.code(), failure.outside_text())
    }
}

impl From<DoorError> for ApiError {
    fn from(error: DoorError) -> ApiError {
        match error {
            DoorError::Store(error) => error.into(),
            DoorError::NotExposed { surface } => {
                ApiError::by_policy(ErrorCode::AuthForbidden, error.to_string())
                    .with_member("surface", surface)
            }
            DoorError::TooFast { retry_after, .. } => {
                let ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
                ApiError::new(ErrorCode::RateLimited, error.to_string())
                    .retry_after(retry_after)
                    .with_member("retryAfterMs", ms)
            }
            DoorError::PoliciesFromDirectory => {
                ApiError::special(Special::ElsewhereDecided, error.to_string())
            }
            DoorError::Backup(error) => error.into(),
            denied => ApiError::new(ErrorCode::AuthPermissionDenied, denied.to_string()),
        }
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> ApiError {
        match error {
            BackupError::Store { source, .. } => source.into(),
            BackupError::TenantsMissing { .. } => {
                ApiError::new(ErrorCode::SessionTenantNotFound, error.to_string())
            }
            BackupError::Key(nimbus_storage::ProviderError::Locked { .. }) => {
                let text = "the backup cannot be sealed, since it has no key; the log says what is missing";
                ApiError::new(ErrorCode::ServiceStorageOther, text).with_inside(error.to_string())
            }
            BackupError::Key(_) => {
                let text = "the key of the backup is not to be had; try again";
                ApiError::new(ErrorCode::ServiceUnavailable, text).with_inside(error.to_string())
            }
            other => ApiError::internal(other.to_string()),
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> ApiError {
        let detail = match &error {
            JsonError::Syntax { line, column, .. } | JsonError::Data { line, column, .. } => {
                Some(json!({"line": line, "column": column}))
            }
            JsonError::Utf8 { offset } => Some(json!({"offset": offset})),
            JsonError::TooDeep { limit } | JsonError::TooMany { limit, .. } => {
                Some(json!({"limit": limit}))
            }
            _ => None,
        };
        ApiError {
            detail: detail.map(Box::new),
            ..ApiError::invalid(error.to_string())
        }
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> ApiError {
        ApiError::invalid(error.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use http_body_util::BodyExt as _;
    use nimbus_storage::CommitId;

    use super::*;

    async fn sent(error: ApiError) -> (StatusCode, http::HeaderMap, Json) {
        let id = Ulid::next();
        let response = error.into_response(&id);
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["requestId"], id.as_str());
        (parts.status, parts.headers, body)
    }

    #[tokio::test]
    async fn the_inside_text_is_never_sent() {
        let error = ApiError::internal("/var/lib/nimbus/secret.sqlite3: disk I/O error");
        let (status, _, body) = sent(error).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!body.to_string().contains("secret.sqlite3"), "{body}");
        assert_eq!(body["error"]["severity"], "fatal");
        assert_eq!(body["error"]["detail"], Json::Null);
    }

    #[tokio::test]
    async fn the_envelope_has_every_member() {
        let (status, headers, body) = sent(ApiError::invalid("no")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(headers["content-type"], "application/json");
        let inner = body["error"].as_object().unwrap();
        let mut keys: Vec<&str> = inner.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "code",
            "detail",
            "message",
            "remediation",
            "requestId",
            "retryable",
            "severity",
            "timestamp",
        ];
        assert_eq!(keys, expected);
        assert_eq!(inner["remediation"]["action"], "fix_request");
        let stamp: jiff::Timestamp = inner["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(stamp).as_secs() < 60);
    }

    #[tokio::test]
    async fn details_have_the_documented_shapes() {
        let table: nimbus_core::TableName = "tasks".parse().unwrap();
        let tenant: nimbus_core::TenantId = "acme".parse().unwrap();
        let cases: Vec<(StoreError, u16, Json)> = vec![
            (
                StoreError::CapExceeded {
                    cap: "x",
                    limit: 3,
                    observed: 4,
                    advice: "page",
                },
                400,
                json!({"cap": "x", "observed": 4, "limit": 3}),
            ),
            (
                StoreError::DocumentNotFound {
                    table: table.clone(),
                    id: "k1".into(),
                },
                404,
                json!({"table": "tasks", "documentId": "k1"}),
            ),
            (
                StoreError::SchemaNotFound {
                    table: table.clone(),
                },
                404,
                json!({"table": "tasks"}),
            ),
            (
                StoreError::TenantNotFound {
                    tenant: tenant.clone(),
                },
                404,
                json!({"tenantId": "acme"}),
            ),
            (
                StoreError::TenantExists { tenant },
                409,
                json!({"tenantId": "acme"}),
            ),
            (
                StoreError::OutcomeUnknown {
                    commit: CommitId([0xab; 16]),
                    inside: "EIO".into(),
                },
                503,
                json!({"commitId": "ab".repeat(16)}),
            ),
            (
                StoreError::StorageFull {
                    inside: "/x".into(),
                },
                507,
                json!({"storageKind": "full"}),
            ),
            (StoreError::QueueFull, 429, Json::Null),
            (
                StoreError::SchemaViolation {
                    table,
                    id: None,
                    violations: vec![nimbus_storage::Violation {
                        field: "title".into(),
                        expected: "string".into(),
                        found: "missing".into(),
                    }],
                },
                422,
                json!({"table": "tasks", "violations":
                    [{"field": "title", "expected": "string", "found": "missing"}]}),
            ),
        ];
        for (error, status, detail) in cases {
            let text = error.to_string();
            let (found, headers, body) = sent(ApiError::from(error)).await;
            assert_eq!(found.as_u16(), status, "{text}");
            assert_eq!(body["error"]["detail"], detail, "{text}");
            assert_eq!(headers.contains_key("retry-after"), status == 429, "{text}");
            assert!(!body.to_string().contains("/x"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_fault_has_its_own_status() {
        let error = ApiError::too_large(Special::BodyTooLarge, "body_bytes", 11, 10);
        let (status, _, body) = sent(error).await;
        assert_eq!(status.as_u16(), 413);
        assert_eq!(body["error"]["code"], "op.cap_exceeded");
        assert_eq!(
            body["error"]["detail"],
            json!({"cap": "body_bytes", "observed": 11, "limit": 10})
        );
    }
}
