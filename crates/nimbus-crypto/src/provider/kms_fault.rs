//! What AWS KMS, or the way to it, may say; each text says what to check (seed 003, "AWS KMS errors").
//!
//! Must not know the SDK, so that a program without the provider can still name its errors.

/// Why AWS KMS did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KmsFault {
    /// No key of that id, ARN or alias.
    #[error(
        "AWS KMS finds no key {key:?} in {service}: check the key id or alias, the region, and the account of the credentials"
    )]
    KeyNotFound {
        /// The key that was named.
        key: String,
        /// Region and endpoint.
        service: String,
    },
    /// The caller may not do this.
    #[error(
        "AWS KMS does not permit {operation} on {key:?}: grant kms:{operation} to the caller in its IAM policy and in the key policy ({message})"
    )]
    PermissionDenied {
        /// The operation, as IAM spells it.
        operation: &'static str,
        /// The key that was named.
        key: String,
        /// What KMS said: it names the caller.
        message: String,
    },
    /// No connection, no answer in time, or one that broke off.
    #[error(
        "AWS KMS cannot be reached in {service}: check the region, the endpoint override, DNS, VPC routing, firewalls, and that the AWS credential chain answers ({detail})"
    )]
    Network {
        /// Region and endpoint.
        service: String,
        /// What failed.
        detail: String,
    },
    /// Too many requests.
    #[error(
        "AWS KMS throttles {operation}: try again, and raise the account's request quota for it if this stays"
    )]
    Throttled {
        /// The operation.
        operation: &'static str,
    },
    /// Disabled, pending deletion, or of a kind that does not encrypt.
    #[error(
        "AWS KMS cannot use the key {key:?} in its present state ({message}): enable it, or cancel its deletion before it is too late; it has to be a symmetric encryption key"
    )]
    KeyUnusable {
        /// The key that was named.
        key: String,
        /// What KMS said.
        message: String,
    },
    /// The wrapped key is of another KMS key.
    #[error(
        "wrong key: the data key was wrapped under {found:?}, and {expected:?} is configured. If an alias was pointed at another key, rotate with `nimbus encryption rotate-kek` from the key that is named here"
    )]
    WrongKey {
        /// The key that is configured.
        expected: String,
        /// The key that the manifest, or KMS, names.
        found: String,
    },
    /// KMS does not take the wrapped key for one that it made for this file.
    #[error(
        "AWS KMS refuses the wrapped key: it, or a field that it is bound to, was changed, or it was made in another account or region. Check region and endpoint, and restore file and manifest from one backup"
    )]
    InvalidCiphertext,
    /// Nothing in the credential chain gave credentials.
    #[error(
        "there are no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine or container a role ({detail})"
    )]
    NoCredentials {
        /// What the chain said.
        detail: String,
    },
    /// Credentials that AWS does not accept.
    #[error(
        "AWS KMS does not accept the credentials ({code}): check that they exist, have not expired, and that this machine's clock is right"
    )]
    CredentialsRefused {
        /// The error code.
        code: String,
    },
    /// Nothing in the region chain named a region.
    #[error(
        "no AWS region is configured: give --encryption-aws-region, or set AWS_REGION or a region in the AWS profile"
    )]
    NoRegion,
    /// KMS failed on its side.
    #[error("AWS KMS failed on its side during {operation} ({code}): try again")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// The error code or the HTTP status.
        code: String,
    },
    /// Any other refusal.
    #[error("AWS KMS refused {operation}: {code} ({message})")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The error code.
        code: String,
        /// What KMS said.
        message: String,
    },
    /// An answer that KMS does not give.
    #[error("the answer of AWS KMS to {operation} has {what}: check the endpoint override")]
    BadAnswer {
        /// The operation.
        operation: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl KmsFault {
    /// Whether the same call may succeed later with nothing changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Network { .. } | Self::Throttled { .. } | Self::Unavailable { .. }
        )
    }
}
