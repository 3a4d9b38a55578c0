//! The error codes of the public API. This room knows their names only: HTTP statuses, severity
//! and advice belong to the HTTP crate, which maps each code in one place.

use std::fmt;

use serde::{Serialize, Serializer};

/// One table makes the enum, the text and the list, so that they cannot drift apart.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// A code of the error envelope (nimbus.md 2.11). The text is stable and part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)+
        }

        impl ErrorCode {
            /// Every code, in the order of nimbus.md 2.11.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)+];

            /// The code as it stands in the envelope, such as `op.conflict`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $text,)+
                }
            }
        }
    };
}

codes! {
    /// No credential, or one that does not hold.
    AuthUnauthorized = "auth.unauthorized",
    /// The credential holds but may not be used here (origin, surface).
    AuthForbidden = "auth.forbidden",
    /// The credential holds but its scope lacks this action.
    AuthPermissionDenied = "auth.permission_denied",
    /// The request is malformed or breaks a rule that does not depend on stored data.
    OpInvalidInput = "op.invalid_input",
    /// The caller or a deadline ended the operation.
    OpCancelled = "op.cancelled",
    /// No document with this id.
    OpDocumentNotFound = "op.document_not_found",
    /// No scheduled job with this id.
    OpScheduledJobNotFound = "op.scheduled_job_not_found",
    /// The table has no schema.
    OpSchemaNotFound = "op.schema_not_found",
    /// Another named thing does not exist.
    OpNotFound = "op.not_found",
    /// A concurrent commit or the present state stands against the operation.
    OpConflict = "op.conflict",
    /// The sequence asked for has been pruned from the log.
    OpOutOfRetention = "op.out_of_retention",
    /// A stated limit was passed.
    OpCapExceeded = "op.cap_exceeded",
    /// The name is taken.
    OpAlreadyExists = "op.already_exists",
    /// A condition that the caller set does not hold.
    OpPreconditionFailed = "op.precondition_failed",
    /// The query needs an index that is absent or not ready.
    OpMissingIndex = "op.missing_index",
    /// A document does not match the schema of its table.
    OpSchemaValidation = "op.schema_validation",
    /// A read at an earlier sequence could not be done.
    OpHistoricalRead = "op.historical_read",
    /// No such tenant, or none that this caller may know of.
    SessionTenantNotFound = "session.tenant_not_found",
    /// No such route.
    ServiceRouteNotFound = "service.route_not_found",
    /// A quota is used up.
    RateResourceExhausted = "rate.resource_exhausted",
    /// The server sheds load.
    RateOverloaded = "rate.overloaded",
    /// The queue of the tenant's committer is full.
    RateCommitterFull = "rate.committer_full",
    /// The request was refused before any of it ran.
    RateRejectedBeforeExecution = "rate.rejected_before_execution",
    /// The caller sends too fast.
    RateLimited = "rate.limited",
    /// The storage is locked or busy.
    ServiceStorageBusy = "service.storage_busy",
    /// The storage failed in a way that usually passes.
    ServiceStorageTransient = "service.storage_transient",
    /// The service is starting, stopping or waiting for a dependency.
    ServiceUnavailable = "service.unavailable",
    /// A network peer could not be reached.
    ServiceTransport = "service.transport",
    /// Reading or writing the storage failed.
    ServiceStorageIo = "service.storage_io",
    /// Stored data does not verify.
    ServiceStorageCorruption = "service.storage_corruption",
    /// The storage failed in another way.
    ServiceStorageOther = "service.storage_other",
    /// No space was left before the commit, which therefore did not happen (design.md 3).
    ServiceStorageFull = "service.storage_full",
    /// A value could not be turned into bytes or back.
    ServiceSerialization = "service.serialization",
    /// A fault of the server itself.
    ServiceInternal = "service.internal",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use super::ErrorCode;

    #[test]
    fn codes_are_distinct_and_well_formed() {
        let families = ["auth", "op", "session", "service", "rate"];
        let mut seen = BTreeSet::new();
        for code in ErrorCode::ALL {
            let (family, rest) = code.as_str().split_once('.').unwrap();
            assert!(families.contains(&family), "{code}");
            assert!(
                rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{code}"
            );
            assert!(seen.insert(code.as_str()), "{code} twice");
        }
        assert_eq!(seen.len(), 34);
    }

    #[test]
    fn variant_names_spell_the_codes() {
        for code in ErrorCode::ALL {
            let spelled: String = format!("{code:?}").to_lowercase();
            assert_eq!(spelled, code.as_str().replace(['.', '_'], ""));
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
        }
    }
}
