//! What a call without an outcome is to a client of Convex: code, status and text (convex.md 1.5).

use nimbus_core::ErrorCode;
use nimbus_runtime::RunError;
use nimbus_storage::StoreError;

use crate::error::ApiError;
use crate::functions::error::CallError;

impl From<CallError> for ApiError {
    fn from(error: CallError) -> ApiError {
        match error {
            CallError::Store(error) => store(error),
            CallError::Run(error) => run(error),
            CallError::Denied(_) => {
                ApiError::new(ErrorCode::AuthPermissionDenied, error.to_string())
            }
            CallError::KeptOut { .. } => {
                ApiError::by_policy(ErrorCode::AuthPermissionDenied, error.to_string())
            }
            CallError::Damaged(inside) => ApiError::internal(inside),
        }
    }
}

fn store(error: StoreError) -> ApiError {
    match error {
        StoreError::Conflict { ref table, .. } => {
            let what = match table {
                Some(table) => format!("Documents read from or written to the \"{table}\" table"),
                None => "Documents that were read or written".to_owned(),
            };
            let text = format!(
                "{what} changed while this mutation was being run and on every subsequent retry. Another call to this mutation changed the same documents."
            );
            let (name, code) = (
                "OptimisticConcurrencyControlFailure",
                ErrorCode::ServiceUnavailable,
            );
            ApiError::convex(name, code, text)
        }
        StoreError::TimestampOutOfRetention { .. } => {
            let code = ErrorCode::ServiceUnavailable;
            ApiError::convex("OutOfRetention", code, error.to_string())
        }
        other => other.into(),
    }
}

fn run(error: RunError) -> ApiError {
    match error {
        RunError::QueueFull { retry_after } => {
            let code = ErrorCode::RateResourceExhausted;
            ApiError::new(code, error.to_string()).retry_after(retry_after)
        }
        // It is being deleted: soon it will not have been there.
        RunError::TenantStopped => ApiError::convex(
            "TenantNotFound",
            ErrorCode::SessionTenantNotFound,
            "there is no such tenant on this server",
        ),
        RunError::ShuttingDown => ApiError::new(ErrorCode::ServiceUnavailable, error.to_string()),
        RunError::WorkerLost { why, .. } => ApiError::internal(format!("worker lost: {why}")),
        other => ApiError::internal(other.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::edge::request_id::Ulid;

    /// Status, code, text and `Retry-After` of the answer.
    async fn sent(error: CallError) -> (u16, String, String, Option<String>) {
        let response = ApiError::from(error).into_convex_response(&Ulid::next());
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let after = parts.headers.get("retry-after");
        let after = after.map(|value| value.to_str().unwrap().to_owned());
        (parts.status.as_u16(), text("code"), text("message"), after)
    }

    #[tokio::test]
    async fn failures_have_the_codes_that_clients_know() {
        let retry_after = Duration::from_millis(1_200);
        let full = sent(CallError::Run(RunError::QueueFull { retry_after })).await;
        assert_eq!((full.0, full.1.as_str()), (429, "rate.resource_exhausted"));
        assert_eq!(full.3.as_deref(), Some("2"), "whole seconds, not too soon");

        let conflict = StoreError::Conflict {
            attempts: 24,
            table: Some("notes".parse().unwrap()),
        };
        let conflict = sent(conflict.into()).await;
        assert_eq!(conflict.0, 503);
        assert_eq!(conflict.1, "OptimisticConcurrencyControlFailure");
        assert!(conflict.2.contains("\"notes\" table changed while"));

        let past = StoreError::TimestampOutOfRetention {
            requested: 1,
            newest: 2,
        };
        let past = sent(past.into()).await;
        assert_eq!((past.0, past.1.as_str()), (503, "OutOfRetention"));

        let stopped = sent(CallError::Run(RunError::TenantStopped)).await;
        assert_eq!((stopped.0, stopped.1.as_str()), (404, "TenantNotFound"));
        let denied = sent(CallError::Denied("mutations and actions")).await;
        assert_eq!((denied.0, denied.1.as_str()), (403, "Forbidden"));
    }

    #[tokio::test]
    async fn what_is_the_servers_affair_is_not_told() {
        let lost = RunError::WorkerLost {
            why: "/srv/secret: killed".into(),
            log_lines: Vec::new(),
        };
        for error in [
            CallError::Run(lost),
            CallError::Damaged("module /srv/secret".into()),
            StoreError::corrupt("/srv/secret").into(),
        ] {
            let (status, code, text, _) = sent(error).await;
            assert_eq!((status, code.as_str()), (500, "InternalServerError"));
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
