//! What each error code means on the wire: status, severity, whether to try again, and advice.
//!
//! This is the only room that maps codes to HTTP statuses. It must not know which call failed
//! or why; texts about a particular failure belong to [`crate::error`].

use http::StatusCode;
use nimbus_core::ErrorCode;
use serde::Serialize;

/// How bad an error is for the operator (nimbus.md 2.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The server, not the request, is at fault and will not heal by itself.
    Fatal,
    /// The request was not carried out.
    Error,
    /// The request was refused for now; the same request may succeed.
    Warning,
}

/// What the caller can do about an error (nimbus.md 2.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Remedy {
    /// One of the fixed action names.
    pub action: &'static str,
    /// The same in words.
    pub message: &'static str,
}

/// The meaning of one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// The HTTP status.
    pub status: StatusCode,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// See [`Severity`].
    pub severity: Severity,
    /// Advice, if there is any.
    pub remedy: Option<Remedy>,
}

const RETRY: Option<Remedy> = Some(Remedy {
    action: "retry",
    message: "send the request again",
});
const WAIT: Option<Remedy> = Some(Remedy {
    action: "wait_and_retry",
    message: "wait a moment, then send the request again",
});
const FIX: Option<Remedy> = Some(Remedy {
    action: "fix_request",
    message: "change the request as the message says",
});
const LOGIN: Option<Remedy> = Some(Remedy {
    action: "reauthenticate",
    message: "send the admin token that `nimbus auth token` prints",
});
const REFRESH: Option<Remedy> = Some(Remedy {
    action: "refresh_resource",
    message: "read the present state, then decide again",
});
const INDEX: Option<Remedy> = Some(Remedy {
    action: "create_index",
    message: "declare an index on the fields in the detail",
});
const OPERATOR: Option<Remedy> = Some(Remedy {
    action: "contact_operator",
    message: "give the operator the request id",
});

const QUOTA: Option<Remedy> = Some(Remedy {
    action: "contact_operator",
    message: "delete documents, or ask the operator for a higher quota",
});

const fn error(status: StatusCode, remedy: Option<Remedy>) -> Meaning {
    Meaning {
        status,
        retryable: false,
        severity: Severity::Error,
        remedy,
    }
}

const fn passing(status: StatusCode, remedy: Option<Remedy>) -> Meaning {
    Meaning {
        status,
        retryable: true,
        severity: Severity::Warning,
        remedy,
    }
}

const fn failure(status: StatusCode, retryable: bool, severity: Severity) -> Meaning {
    Meaning {
        status,
        retryable,
        severity,
        remedy: OPERATOR,
    }
}

/// The meaning of `code`; a code that this version does not know reads as an internal error.
pub(crate) const fn meaning(code: ErrorCode) -> Meaning {
    match code {
        ErrorCode::AuthUnauthorized => error(StatusCode::UNAUTHORIZED, LOGIN),
        ErrorCode::AuthForbidden => error(StatusCode::FORBIDDEN, OPERATOR),
        ErrorCode::AuthPermissionDenied => error(StatusCode::FORBIDDEN, OPERATOR),
        ErrorCode::OpInvalidInput => error(StatusCode::BAD_REQUEST, FIX),
        ErrorCode::OpCancelled => passing(StatusCode::REQUEST_TIMEOUT, RETRY),
        ErrorCode::OpDocumentNotFound => error(StatusCode::NOT_FOUND, REFRESH),
        ErrorCode::OpScheduledJobNotFound => error(StatusCode::NOT_FOUND, REFRESH),
        ErrorCode::OpSchemaNotFound => error(StatusCode::NOT_FOUND, REFRESH),
        ErrorCode::OpNotFound => error(StatusCode::NOT_FOUND, REFRESH),
        ErrorCode::OpConflict => passing(StatusCode::CONFLICT, RETRY),
        ErrorCode::OpOutOfRetention => passing(StatusCode::CONFLICT, REFRESH),
        ErrorCode::OpCapExceeded => error(StatusCode::BAD_REQUEST, FIX),
        ErrorCode::OpAlreadyExists => error(StatusCode::CONFLICT, REFRESH),
        ErrorCode::OpPreconditionFailed => error(StatusCode::PRECONDITION_FAILED, REFRESH),
        ErrorCode::OpMissingIndex => error(StatusCode::PRECONDITION_FAILED, INDEX),
        ErrorCode::OpSchemaValidation => error(StatusCode::UNPROCESSABLE_ENTITY, FIX),
        ErrorCode::OpHistoricalRead => error(StatusCode::CONFLICT, REFRESH),
        ErrorCode::SessionTenantNotFound => error(StatusCode::NOT_FOUND, FIX),
        ErrorCode::ServiceRouteNotFound => error(StatusCode::NOT_FOUND, FIX),
        ErrorCode::RateResourceExhausted
        | ErrorCode::RateOverloaded
        | ErrorCode::RateCommitterFull
        | ErrorCode::RateRejectedBeforeExecution
        | ErrorCode::RateLimited => passing(StatusCode::TOO_MANY_REQUESTS, WAIT),
        ErrorCode::ServiceStorageBusy
        | ErrorCode::ServiceUnavailable
        | ErrorCode::ServiceTransport => passing(StatusCode::SERVICE_UNAVAILABLE, WAIT),
        ErrorCode::ServiceStorageTransient => passing(StatusCode::SERVICE_UNAVAILABLE, REFRESH),
        ErrorCode::ServiceStorageIo => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, true, Severity::Error)
        }
        ErrorCode::ServiceStorageCorruption => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, false, Severity::Fatal)
        }
        ErrorCode::ServiceStorageOther | ErrorCode::ServiceSerialization => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, false, Severity::Error)
        }
        ErrorCode::ServiceStorageFull => {
            failure(StatusCode::INSUFFICIENT_STORAGE, true, Severity::Error)
        }
        _ => failure(StatusCode::INTERNAL_SERVER_ERROR, false, Severity::Fatal),
    }
}

/// Cases that share a code with others but mean something of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// The request body passed the limit.
    BodyTooLarge,
    /// An `Expect` header other than `100-continue`.
    Expectation,
    /// What is asked for is decided elsewhere, such as in a directory of policies.
    ElsewhereDecided,
    /// Too many or too large request headers.
    HeadersTooLarge,
    /// A content type or encoding other than plain JSON.
    MediaType,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// A write that may or may not be durable: a client that tries again blindly may write twice.
    OutcomeUnknown,
    /// A quota of the tenant's policy is used up: unlike a full disk, that does not pass by itself.
    QuotaReached,
    /// The request line is too long.
    UriTooLong,
}

impl Special {
    const ALL: [Special; 9] = [
        Special::BodyTooLarge,
        Special::ElsewhereDecided,
        Special::Expectation,
        Special::HeadersTooLarge,
        Special::MediaType,
        Special::MethodNotAllowed,
        Special::OutcomeUnknown,
        Special::QuotaReached,
        Special::UriTooLong,
    ];

    /// The code, and what it means in this case.
    pub(crate) const fn meaning(self) -> (ErrorCode, Meaning) {
        match self {
            Special::BodyTooLarge => with(ErrorCode::OpCapExceeded, StatusCode::PAYLOAD_TOO_LARGE),
            Special::Expectation => with(ErrorCode::OpInvalidInput, StatusCode::EXPECTATION_FAILED),
            Special::ElsewhereDecided => with(ErrorCode::OpConflict, StatusCode::CONFLICT),
            Special::HeadersTooLarge => with(
                ErrorCode::OpCapExceeded,
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ),
            Special::MediaType => with(
                ErrorCode::OpInvalidInput,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            Special::MethodNotAllowed => {
                with(ErrorCode::OpInvalidInput, StatusCode::METHOD_NOT_ALLOWED)
            }
            Special::OutcomeUnknown => {
                let code = ErrorCode::ServiceStorageTransient;
                (code, error(StatusCode::SERVICE_UNAVAILABLE, REFRESH))
            }
            Special::QuotaReached => {
                let code = ErrorCode::ServiceStorageFull;
                (code, error(StatusCode::INSUFFICIENT_STORAGE, QUOTA))
            }
            Special::UriTooLong => with(ErrorCode::OpCapExceeded, StatusCode::URI_TOO_LONG),
        }
    }
}

const fn with(code: ErrorCode, status: StatusCode) -> (ErrorCode, Meaning) {
    (code, error(status, FIX))
}

/// Every status that an error of this surface can have, for the OpenAPI document.
pub(crate) fn error_statuses() -> Vec<StatusCode> {
    let codes = ErrorCode::ALL.iter().map(|code| meaning(*code).status);
    let special = Special::ALL.iter().map(|case| case.meaning().1.status);
    let mut statuses: Vec<StatusCode> = codes.chain(special).collect();
    statuses.sort_by_key(StatusCode::as_u16);
    statuses.dedup();
    statuses
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// The table of nimbus.md 2.11, written out a second time on purpose.
    const SPEC: &[(&str, u16, bool)] = &[
        ("auth.unauthorized", 401, false),
        ("auth.forbidden", 403, false),
        ("auth.permission_denied", 403, false),
        ("op.invalid_input", 400, false),
        ("op.cancelled", 408, true),
        ("op.document_not_found", 404, false),
        ("op.scheduled_job_not_found", 404, false),
        ("op.schema_not_found", 404, false),
        ("op.not_found", 404, false),
        ("op.conflict", 409, true),
        ("op.out_of_retention", 409, true),
        ("op.cap_exceeded", 400, false),
        ("op.already_exists", 409, false),
        ("op.precondition_failed", 412, false),
        ("op.missing_index", 412, false),
        ("op.schema_validation", 422, false),
        ("op.historical_read", 409, false),
        ("session.tenant_not_found", 404, false),
        ("service.route_not_found", 404, false),
        ("rate.resource_exhausted", 429, true),
        ("rate.overloaded", 429, true),
        ("rate.committer_full", 429, true),
        ("rate.rejected_before_execution", 429, true),
        ("rate.limited", 429, true),
        ("service.storage_busy", 503, true),
        ("service.storage_transient", 503, true),
        ("service.unavailable", 503, true),
        ("service.transport", 503, true),
        ("service.storage_io", 500, true),
        ("service.storage_corruption", 500, false),
        ("service.storage_other", 500, false),
        ("service.storage_full", 507, true),
        ("service.serialization", 500, false),
        ("service.internal", 500, false),
    ];

    #[test]
    fn every_code_means_what_the_specification_says() {
        assert_eq!(SPEC.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            let (_, status, retryable) = SPEC
                .iter()
                .find(|(name, _, _)| *name == code.as_str())
                .unwrap();
            let found = meaning(*code);
            assert_eq!(found.status.as_u16(), *status, "{code}");
            assert_eq!(found.retryable, *retryable, "{code}");
        }
    }

    #[test]
    fn special_cases_are_never_tried_again_blindly() {
        for case in Special::ALL {
            let (code, found) = case.meaning();
            assert!(!found.retryable, "{case:?}");
            assert!(found.remedy.is_some(), "{case:?}");
            assert!(ErrorCode::ALL.contains(&code));
        }
    }

    #[test]
    fn only_faults_of_the_server_itself_are_fatal() {
        let fatal: Vec<&str> = ErrorCode::ALL
            .iter()
            .filter(|code| meaning(**code).severity == Severity::Fatal)
            .map(|code| code.as_str())
            .collect();
        assert_eq!(fatal, ["service.storage_corruption", "service.internal"]);
    }
}
