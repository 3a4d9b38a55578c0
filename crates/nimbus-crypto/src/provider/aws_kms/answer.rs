//! The answers of AWS KMS: their sizes checked, and every way to fail told from the others.
//!
//! Must not know what a key is for.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use zeroize::Zeroizing;

use super::{AwsKms, KmsFault, OPERATION};
use crate::key::{Dek, KEY_BYTES};

/// Longest wrapped key that is taken, in bytes: AWS makes them of 184, and two have to fit into a
/// manifest.
pub(super) const MAX_BLOB: usize = 2_048;
/// Longest ARN that is taken, which is also what a manifest takes.
const MAX_ARN: usize = 512;
/// Most characters of a message that are repeated.
const MAX_MESSAGE: usize = 240;

/// One operation that was sent, for what its answer may be.
pub(super) struct Answer<'a> {
    provider: &'a AwsKms,
    operation: &'static str,
    /// The key that a failure is about.
    key: &'a str,
}

impl<'a> Answer<'a> {
    pub(super) fn to(provider: &'a AwsKms, operation: &'static str, key: &'a str) -> Self {
        Self {
            provider,
            operation,
            key,
        }
    }

    /// The answer, or why there is none.
    pub(super) fn of<T, E>(&self, sent: Result<T, SdkError<E>>) -> Result<T, KmsFault>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        sent.map_err(|error| self.fault(&error))
    }

    /// A key of 32 bytes. The buffer that it came in is wiped.
    pub(super) fn key(&self, found: Option<Blob>) -> Result<Dek, KmsFault> {
        let bytes = Zeroizing::new(found.map(Blob::into_inner).unwrap_or_default());
        let key: &[u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| {
            self.bad(format!(
                "a key of {} bytes in place of {KEY_BYTES}",
                bytes.len()
            ))
        })?;
        Ok(Dek::from_bytes(key))
    }

    pub(super) fn blob(&self, found: Option<Blob>) -> Result<Vec<u8>, KmsFault> {
        let bytes = found.map(Blob::into_inner).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > MAX_BLOB {
            let length = bytes.len();
            return Err(self.bad(format!("a wrapped key of {length} bytes")));
        }
        Ok(bytes)
    }

    pub(super) fn arn(&self, found: Option<String>) -> Result<String, KmsFault> {
        let arn = found.unwrap_or_default();
        let good = !arn.is_empty()
            && arn.len() <= MAX_ARN
            && arn.bytes().all(|byte| byte.is_ascii_graphic());
        if good {
            Ok(arn)
        } else {
            Err(self.bad("no ARN of a key".to_owned()))
        }
    }

    fn bad(&self, what: String) -> KmsFault {
        KmsFault::BadAnswer {
            operation: self.operation,
            what,
        }
    }

    fn fault<E>(&self, error: &SdkError<E>) -> KmsFault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        match error {
            SdkError::ServiceError(said) => self.refusal(said.err(), status),
            SdkError::ResponseError(_) => match status {
                Some(status) if status >= 500 => self.unavailable(format!("HTTP {status}")),
                Some(status) if status >= 300 => self.bad(format!("the HTTP status {status}")),
                // It began well and broke off.
                _ => self.network(chain(error)),
            },
            _ if no_credentials(error) => KmsFault::NoCredentials {
                detail: chain(error),
            },
            SdkError::TimeoutError(_) => self.network(format!(
                "no answer within {} ms: {}",
                OPERATION.as_millis(),
                chain(error)
            )),
            _ => self.network(chain(error)),
        }
    }

    fn network(&self, detail: String) -> KmsFault {
        KmsFault::Network {
            service: self.provider.service.clone(),
            detail,
        }
    }

    fn unavailable(&self, code: String) -> KmsFault {
        KmsFault::Unavailable {
            operation: self.operation,
            code,
        }
    }

    /// KMS answered with an error.
    fn refusal(&self, said: &dyn ProvideErrorMetadata, status: Option<u16>) -> KmsFault {
        let operation = self.operation;
        let key = self.key.to_owned();
        let message = short(said.message().unwrap_or("no message"));
        let status = status.unwrap_or_default();
        let code = match said.code() {
            Some(code) => short(code),
            None => format!("HTTP {status}"),
        };
        match code.as_str() {
            "NotFoundException" => KmsFault::KeyNotFound {
                key,
                service: self.provider.service.clone(),
            },
            "AccessDeniedException" | "AccessDenied" | "NotAuthorizedException" => {
                KmsFault::PermissionDenied {
                    operation,
                    key,
                    message,
                }
            }
            "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => {
                KmsFault::KeyUnusable { key, message }
            }
            "IncorrectKeyException" => KmsFault::WrongKey {
                expected: self.provider.key_id.clone(),
                found: key,
            },
            "InvalidCiphertextException" => KmsFault::InvalidCiphertext,
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "MissingAuthenticationTokenException"
            | "MissingAuthenticationToken"
            | "RequestExpired"
            | "ExpiredTokenException"
            | "ExpiredToken" => KmsFault::CredentialsRefused { code },
            "ThrottlingException"
            | "Throttling"
            | "LimitExceededException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException" => KmsFault::Throttled { operation },
            "KeyUnavailableException"
            | "KMSInternalException"
            | "DependencyTimeoutException"
            | "InternalFailure"
            | "InternalServerError"
            | "ServiceUnavailable" => self.unavailable(code),
            // What was meant to be a good answer cannot be read.
            _ if status < 300 => self.bad("a form that cannot be read".to_owned()),
            _ if status == 429 => KmsFault::Throttled { operation },
            _ if status >= 500 => self.unavailable(code),
            _ => KmsFault::Refused {
                operation,
                code,
                message,
            },
        }
    }
}

/// Whether two ARNs name one key. The replicas of a multi-Region key share their key id, and open each
/// other's ciphertexts.
pub(super) fn same_key(one: &str, two: &str) -> bool {
    let shared = |arn: &str| {
        let id = arn.rsplit_once(":key/").map(|(_, id)| id.to_owned());
        id.filter(|id| id.starts_with("mrk-"))
    };
    one == two || (shared(one).is_some() && shared(one) == shared(two))
}

/// The causes of an error, the outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn no_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<CredentialsError>())
}

/// The causes in one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    // Wrappers repeat what they wrap.
    texts.dedup();
    short(&texts.join(": "))
}

/// Safe for a log, and not longer than a reader wants.
fn short(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(safe).take(MAX_MESSAGE).collect()
}
